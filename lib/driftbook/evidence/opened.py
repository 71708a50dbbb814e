"""The judges of an experiment, opened from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from driftbook.chat import ChatClient
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.endpoint import EndpointJudge
from driftbook.evidence.judges import EmbeddingJudge, Judge, LexiconJudge, RepetitionJudge
from driftbook.evidence.labeller import pairs_to_show
from driftbook.evidence.local_chat import LocalChat
from driftbook.evidence.local_judge import LocalJudge
from driftbook.evidence.material import Material
from driftbook.evidence.nli import NliJudge
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.evidence.wins import shuffled
from driftbook.ledger import Ledger
from driftbook.models import loading
from driftbook.parameters import Judge as JudgeSpec
from driftbook.parameters import Judges as JudgesSpec
from driftbook.parameters import ModelSpec
from driftbook.stage import Progress
from driftbook.workers import Workers

Embed = Callable[[Sequence[str]], np.ndarray]
EMBEDDER = "bundled:all-minilm-l6-v2"


def open_embedder(cache: Path, model: str = EMBEDDER, workers: Workers | None = None) -> Embed:
    """Unit vectors of texts, from the cache that the cluster stage fills; the model is loaded, here or by ``workers``,
    when a text is missing."""
    embedder, store = Embedder(model), EmbeddingCache(cache / "embeddings")
    return lambda texts: embed(texts, store, embedder, workers=workers).vectors


def exemplars(material: Material) -> Callable[[Hypothesis], tuple[list[str], list[str]]]:
    """Evidence texts of a hypothesis, and the other side's answers to the same prompts; split discover only."""
    seen = material.texts[material.texts["split"] == "discover"]

    def find(hypothesis: Hypothesis) -> tuple[list[str], list[str]]:
        show = seen[seen["text_id"].isin(hypothesis.evidence)]
        other = seen[seen["prompt_id"].isin(show["prompt_id"]) & (seen["side"] != hypothesis.direction)]
        return show["text"].tolist(), other["text"].tolist()

    return find


def open_endpoint(spec: JudgeSpec, name: str, ledger: Ledger, progress: Progress | None = None) -> ChatClient:
    """The server that a parameter section describes; ``name`` is its line in the ledger."""
    assert spec.model and spec.base_url  # the parameter model has checked it
    return ChatClient(
        name,
        spec.model,
        spec.base_url,
        ledger,
        api_key_env=spec.api_key_env,
        usd_in=spec.usd_per_million_input,
        usd_out=spec.usd_per_million_output,
        concurrency=spec.concurrency,
        max_tokens=spec.max_output_tokens,
        timeout=spec.timeout_s,
        extra_body=spec.extra_body,
        template_args=spec.template_args,
        progress=progress,
    )


def open_judge(
    spec: JudgeSpec,
    role: str,
    material: Material,
    ledger: Ledger,
    cache: Path,
    root: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
    rubric: str | None = None,
) -> Judge:
    """The judge that a parameter section describes; ``role`` names it in the ledger, ``rubric`` replaces its own.

    ``workers`` compute for judges whose model is here. Calls to an endpoint are made by this process alone: it keeps
    as many under way as the server bears, and the cap on money holds because there is one account.
    """
    if spec.kind == "lexicon":
        return LexiconJudge()
    if spec.kind == "embedding":
        model = spec.model or EMBEDDER
        return EmbeddingJudge(open_embedder(cache, model, workers), exemplars(material), {"model": model})
    if spec.kind == "nli":
        return open_nli_judge(spec, role, ledger, cache, progress)
    rubric = rubric or _rubric(spec, root)
    if spec.kind == "endpoint":
        endpoint = open_endpoint(spec, f"{spec.model} ({role})", ledger, progress)
        asked = {"per_call": spec.per_call, "mode": spec.mode, "logprobs": spec.logprobs, "structured": spec.structured}
        return EndpointJudge(endpoint, rubric=rubric, **asked)
    return open_local_judge(spec, role, ledger, cache, rubric, progress, workers)


def _rubric(spec: JudgeSpec, root: Path) -> str | None:
    if spec.rubric is None:
        return None
    path = root / spec.rubric
    if not path.is_file():
        raise DriftbookError(f"{path} (rubric of judge {spec.model}) is not a file")
    return path.read_text(encoding="utf-8")


def _weights(model: str, cache: Path) -> tuple[str, str]:
    """Where a model is, and what names its weights: their hash for a folder, else the name itself."""
    source = Path(loading.resolve(model, cache))
    return (str(source), loading.weights_hash(source, cache)) if source.is_dir() else (model, model)


def open_local_judge(
    spec: JudgeSpec,
    role: str,
    ledger: Ledger,
    cache: Path,
    rubric: str | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> LocalJudge:
    """A language model that runs here (by ``workers``, where there are any), named by its weights; they are read at the
    first verdict that is not stored."""
    model = ModelSpec(model=spec.model or ModelSpec().model)
    _, weights = _weights(model.model, cache)
    _, dtype, _ = loading.choose_device()
    load, name = partial(loading.load, model, cache), f"{model.model} ({role})"
    frozen = f"{weights} {dtype}"
    return LocalJudge(name, load, frozen, ledger, rubric, spec.mode, progress=progress, workers=workers)


def open_labeller(
    spec: JudgeSpec, ledger: Ledger, cache: Path, progress: Progress | None = None
) -> ChatClient | LocalChat:
    """The language model that proposes hypotheses and writes texts for them: behind a server, or on this machine."""
    if spec.kind == "endpoint":
        return open_endpoint(spec, f"{spec.model} (labeller)", ledger, progress)
    model = ModelSpec(model=spec.model or ModelSpec().model)
    _, weights = _weights(model.model, cache)
    name = f"{model.model} (labeller)"
    return LocalChat(name, lambda: loading.load(model, cache), weights, ledger, spec.max_output_tokens, progress)


def open_nli_judge(
    spec: JudgeSpec, role: str, ledger: Ledger, cache: Path, progress: Progress | None = None
) -> NliJudge:
    """A cross-encoder for natural language inference, from a folder or a hub; read at the first verdict that is not
    stored."""
    assert spec.model  # the parameter model has checked it
    source, weights = _weights(spec.model, cache)

    def load() -> Any:
        from sentence_transformers import CrossEncoder  # seconds; verdicts from the ledger need no model

        return CrossEncoder(source)

    return NliJudge(f"{spec.model} ({role})", load, weights, ledger, progress=progress)


# -------------------------------------------------------------------------------------------- coherence, and no label

COHERENT = Hypothesis("is coherent", "intervention")
EXAMPLES = 4  # prompts of split discover that a judge without a label is shown
EXAMPLE_LENGTH = 600  # characters of each answer


def model_of(judges: JudgesSpec) -> JudgeSpec | None:
    """The strongest judge that is told in words what to look for, None where there is none."""
    named = [spec for spec in (judges.expensive, judges.cheap) if spec is not None]
    return next((spec for spec in named if spec.kind in ("endpoint", "local")), None)


def open_coherence(
    judges: JudgesSpec,
    material: Material,
    ledger: Ledger,
    cache: Path,
    root: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> Judge:
    """Who judges coherence, apart from any claim: the strongest judge model with a rubric of its own; without a judge
    model, ``RepetitionJudge``."""
    spec = model_of(judges)
    if spec is None:
        return RepetitionJudge()
    plain = spec.model_copy(update={"mode": "single", "per_call": 1})
    rubric = shipped("coherence" if spec.kind == "endpoint" else "local_coherence")
    return open_judge(plain, "coherence", material, ledger, cache, root, progress, workers, rubric)


def open_unlabelled(
    judges: JudgesSpec,
    material: Material,
    ledger: Ledger,
    cache: Path,
    root: Path,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> tuple[Judge, Hypothesis] | None:
    """A judge that is told nothing of what changed: it sees a few answers of both sides, of split discover, and says
    which side a held-out answer is from. With it, the statement that it rates. None without a judge model."""
    spec = model_of(judges)
    if spec is None:
        return None
    seen = material.texts[material.texts["split"] == "discover"]
    shown = pairs_to_show(seen, material.prompts, EXAMPLES, f"{material.seed} no label")
    swap = shuffled(["0", "1"], f"{material.seed} who is ONE")[0] == "1"
    one, two = ("intervention", "base") if swap else ("base", "intervention")
    parts = [
        f"<prompt>{row.prompt}</prompt>\nONE <answer>{getattr(row, one)[:EXAMPLE_LENGTH]}</answer>\n"
        f"TWO <answer>{getattr(row, two)[:EXAMPLE_LENGTH]}</answer>"
        for row in shown.itertuples()
    ]
    kind = "unlabelled_" if spec.kind == "endpoint" else "unlabelled_local_"
    rubric = "\n\n".join([shipped(kind + spec.mode), *parts])
    judge = open_judge(spec, "no label", material, ledger, cache, root, progress, workers, rubric)
    return judge, Hypothesis(f"was written by {'ONE' if swap else 'TWO'}", "intervention")
