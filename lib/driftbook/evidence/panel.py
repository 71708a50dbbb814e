"""The judges of an experiment, opened from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.chat import Endpoint
from driftbook.evidence.endpoint import EndpointJudge
from driftbook.evidence.judges import EmbeddingJudge, Judge, LexiconJudge
from driftbook.evidence.ledger import Ledger
from driftbook.evidence.local_judge import LocalJudge
from driftbook.evidence.material import Material
from driftbook.workbook.parameters import ModelSpec

if TYPE_CHECKING:
    from driftbook.scale import Workers
    from driftbook.workbook.parameters import Judge as JudgeSpec

Progress = Callable[..., Any]
Embed = Callable[[Sequence[str]], np.ndarray]
EMBEDDER = "bundled:all-minilm-l6-v2"


@dataclass(frozen=True)
class Judges:
    """``cheap`` screens; ``expensive`` tests where one is configured, else ``cheap`` does both."""

    cheap: Judge
    expensive: Judge | None
    ledger: Ledger

    @property
    def tester(self) -> Judge:
        return self.expensive or self.cheap


def open_embedder(cache: Path, model: str = EMBEDDER, workers: Workers | None = None) -> Embed:
    """Unit vectors of texts, from the cache that the cluster stage fills; the model is loaded, here or by ``workers``,
    when a text is missing."""
    from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed

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


def open_endpoint(spec: JudgeSpec, name: str, ledger: Ledger, progress: Progress | None = None) -> Endpoint:
    """The server that a parameter section describes; ``name`` is its line in the ledger."""
    assert spec.model and spec.base_url  # the parameter model has checked it
    return Endpoint(
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
) -> Judge:
    """The judge that a parameter section describes; ``role`` names it in the ledger.

    ``workers`` compute for judges whose model is here. Calls to an endpoint are made by this process alone: it keeps
    as many under way as the server bears, and the cap on money holds because there is one account.
    """
    if spec.kind == "lexicon":
        return LexiconJudge()
    if spec.kind == "embedding":
        model = spec.model or EMBEDDER
        return EmbeddingJudge(open_embedder(cache, model, workers), exemplars(material), {"model": model})
    rubric = _rubric(spec, root)
    if spec.kind == "endpoint":
        endpoint = open_endpoint(spec, f"{spec.model} ({role})", ledger, progress)
        return EndpointJudge(endpoint, per_call=spec.per_call, mode=spec.mode, rubric=rubric)
    return open_local_judge(spec.model or ModelSpec().model, role, ledger, cache, rubric, progress, workers)


def _rubric(spec: JudgeSpec, root: Path) -> str | None:
    if spec.rubric is None:
        return None
    path = root / spec.rubric
    if not path.is_file():
        raise DriftbookError(f"{path} (rubric of judge {spec.model}) is not a file")
    return path.read_text(encoding="utf-8")


def open_local_judge(
    model: str,
    role: str,
    ledger: Ledger,
    cache: Path,
    rubric: str | None = None,
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> LocalJudge:
    """A judge that runs here (by ``workers``, where there are any), named by its weights; they are read at the first
    verdict that is not stored."""
    from driftbook.models import loading

    source = Path(loading.resolve(model, cache))
    weights = loading.weights_hash(source, cache) if source.is_dir() else model
    _, dtype, _ = loading.choose_device()
    load = partial(loading.load, ModelSpec(model=model), cache)
    name = f"{model} ({role})"
    return LocalJudge(name, load, f"{weights} {dtype}", ledger, rubric, progress=progress, workers=workers)
