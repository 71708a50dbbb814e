"""``kind: embedding``: nearness to the texts that led to a hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from driftbook.errors import DriftbookError
from driftbook.sections import JudgeOpening, JudgeSpec, Quote, judge

if TYPE_CHECKING:
    import numpy as np

    from driftbook.discovery.hypotheses import Hypothesis


@judge
class Embedding(JudgeSpec):
    """The embedder ``model`` and the exemplars of a hypothesis."""

    kind: Literal["embedding"] = "embedding"
    model: str = "bundled:all-minilm-l6-v2"
    places: ClassVar[tuple[str, ...]] = ("model",)

    def open(self, opening: JudgeOpening) -> EmbeddingJudge:
        assert opening.embed is not None and opening.exemplars is not None
        return EmbeddingJudge(opening.embed(self.model), opening.exemplars, self.identity)


class EmbeddingJudge:
    """Cosine to the exemplars of a hypothesis minus cosine to the other side's texts for the same prompts, mapped to
    [0, 1].

    ``embed`` gives unit vectors [n, d]; ``exemplars(hypothesis)`` gives (texts that show it, texts that do not), both
    of split discover. The prompts are the same on both sides, so that their topics cancel.
    """

    name, paid = "embedding", False

    def __init__(
        self,
        embed: Callable[[list[str]], np.ndarray],
        exemplars: Callable[[Hypothesis], tuple[list[str], list[str]]],
        identity: Mapping[str, object],
    ) -> None:
        self.embed, self.exemplars, self.identity = embed, exemplars, dict(identity)

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        return Quote()

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Raises DriftbookError for a hypothesis without evidence on both sides."""
        import numpy as np  # parameters are read without it

        scores = np.zeros((len(texts), len(hypotheses)))
        if not len(texts):
            return scores
        vectors = np.asarray(self.embed(list(texts)), dtype=np.float64)
        for column, hypothesis in enumerate(hypotheses):
            show, show_not = self.exemplars(hypothesis)
            if not show or not show_not:
                raise DriftbookError(
                    f"the embedding judge cannot read {hypothesis.text!r}: it has no exemplars; give it words instead"
                )
            up = np.asarray(self.embed(show), dtype=np.float64).mean(axis=0)
            down = np.asarray(self.embed(show_not), dtype=np.float64).mean(axis=0)
            cosine = vectors @ np.stack([up / np.linalg.norm(up), down / np.linalg.norm(down)], axis=1)
            scores[:, column] = np.clip((1 + cosine[:, 0] - cosine[:, 1]) / 2, 0, 1)
        return scores
