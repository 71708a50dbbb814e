"""The judges of an experiment, opened from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from driftbook.chat import Chat
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.judges import Judge, RepetitionJudge
from driftbook.evidence.labeller import pairs_to_show
from driftbook.evidence.material import Material
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.evidence.wins import shuffled
from driftbook.judges import Embedding
from driftbook.judges.told import Told, fenced
from driftbook.ledger import Ledger
from driftbook.parameters import Judges as JudgesSpec
from driftbook.sections import JudgeOpening, JudgeSpec
from driftbook.stage import Progress
from driftbook.workers import Workers

Embed = Callable[[Sequence[str]], np.ndarray]
EMBEDDER = Embedding().model


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


def open_judge(
    spec: JudgeSpec,
    role: str,
    material: Material | None,
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
    embed, shown = partial(open_embedder, cache, workers=workers), exemplars(material) if material else None
    return spec.open(JudgeOpening(role, ledger, cache, root, progress, workers, rubric, embed, shown))


def open_labeller(spec: JudgeSpec, ledger: Ledger, cache: Path, progress: Progress | None = None) -> Chat:
    """The language model that proposes hypotheses and writes texts for them: behind a server, or on this machine."""
    assert isinstance(spec, Told)  # the parameter model has checked it
    return spec.talk(JudgeOpening("labeller", ledger, cache, cache, progress))


# -------------------------------------------------------------------------------------------- coherence, and no label

COHERENT = Hypothesis("is coherent", "intervention")
EXAMPLES = 4  # prompts of split discover that a judge without a label is shown
EXAMPLE_LENGTH = 600  # characters of each answer


def model_of(judges: JudgesSpec) -> Told | None:
    """The strongest judge that is told in words what to look for, None where there is none."""
    return next((spec for spec in (judges.expensive, judges.cheap) if isinstance(spec, Told)), None)


def open_coherence(judges: JudgesSpec, opened: Callable[..., Judge]) -> Judge:
    """Who judges coherence, apart from any claim: the strongest judge model with a rubric of its own; without a judge
    model, ``RepetitionJudge``. ``opened`` is ``open_judge`` of the run."""
    spec = model_of(judges)
    if spec is None:
        return RepetitionJudge()
    plain, rubric = spec.plainest(), shipped(f"{spec.begins}coherence")
    return opened(plain, "coherence", rubric=rubric)


def open_unlabelled(
    judges: JudgesSpec, material: Material, opened: Callable[..., Judge]
) -> tuple[Judge, Hypothesis] | None:
    """A judge that is told nothing of what changed: it sees a few answers of both sides, of split discover, and says
    which side a held-out answer is from. With it, the statement that it rates. None without a judge model."""
    spec = model_of(judges)
    if spec is None:
        return None
    seen = material.texts[material.texts["split"] == "discover"]
    shown = pairs_to_show(seen, material.prompts, EXAMPLES, f"{material.seed} no label")
    swap = shuffled(["0", "1"], f"{material.seed} who is ONE")[0] == "1"
    sides = dict(zip(("ONE", "TWO"), ("intervention", "base") if swap else ("base", "intervention"), strict=True))
    parts = [
        fenced(("prompt", row.prompt), *((name, getattr(row, side)[:EXAMPLE_LENGTH]) for name, side in sides.items()))
        for row in shown.itertuples()
    ]
    rubric = "\n\n".join([shipped(f"{spec.begins}unlabelled_{spec.mode}"), *parts])
    statement = Hypothesis(f"was written by {'ONE' if swap else 'TWO'}", "intervention")
    return opened(spec, "no label", rubric=rubric), statement
