"""``kind: lexicon``: the words of a hypothesis, counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from driftbook.errors import DriftbookError
from driftbook.sections import JudgeSpec, judge

if TYPE_CHECKING:
    import numpy as np

    from driftbook.discovery.hypotheses import Hypothesis


@judge
class Lexicon(JudgeSpec):
    """Rate of a hypothesis' words in a text, saturating at one in ``saturation`` words.

    A rate, not a count: a longer text is not more of anything. Texts shorter than ``saturation`` words count as that
    long.
    """

    kind: Literal["lexicon"] = "lexicon"
    saturation: int = Field(20, ge=1, description="one of its words in so many is all there can be")
    reads_words: ClassVar[bool] = True

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Raises DriftbookError for a hypothesis without words."""
        import numpy as np  # parameters are read without it

        from driftbook.behaviours.measure import Words
        from driftbook.behaviours.words import fold
        from driftbook.discovery.hypotheses import tokenize

        without = [h.text for h in hypotheses if not h.words]
        if without:
            raise DriftbookError(
                f"the lexicon judge cannot read {without[0]!r}: give it words, or set validate.judges to a model"
            )
        folded = [fold(t) for t in texts]
        length = np.array([max(len(tokenize(t)), self.saturation) for t in texts], dtype=np.float64)
        hits = np.zeros((len(texts), len(hypotheses)))
        for column, hypothesis in enumerate(hypotheses):
            search = Words(hypothesis.words)
            hits[:, column] = [search.count(t) for t in folded]
        return np.minimum(1.0, hits * self.saturation / length.reshape(-1, 1))
