"""Judges as the tests of hypotheses see them: what each gives, and who does what.

Every judge scores texts in [0, 1], NaN where it has no verdict, and says what shapes its verdicts. Scores of one
judge are compared with each other only: a text of one side against a text of the other, to the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from driftbook.discovery.hypotheses import Hypothesis, tokenize
from driftbook.ledger import Ledger
from driftbook.sections import JudgeSpec, Quote


class Judge(Protocol):
    """``score`` gives [texts, hypotheses] in [0, 1], higher where the text shows more of it, NaN where there is no
    verdict.

    It sees the text and, where a judge needs it to understand the text, the prompt; never which side wrote it.
    ``paid`` says that verdicts cost money or minutes, so that a test stops as soon as it can. ``identity`` holds
    everything that shapes a verdict besides the text and the hypothesis, and is part of what is frozen.
    """

    @property
    def name(self) -> str: ...

    @property
    def paid(self) -> bool: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray: ...

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """What ``score`` would cost at most. Sends nothing."""
        ...


@dataclass(frozen=True)
class Judges:
    """``cheap`` screens; ``expensive`` tests where one is configured, else ``cheap`` does both.

    Beside the claims: ``coherence`` judges single texts whatever is claimed, ``unlabelled`` says which side a text is
    from (with the statement that it rates).
    """

    cheap: Judge
    expensive: Judge | None
    ledger: Ledger
    coherence: Judge | None = None
    unlabelled: tuple[Judge, Hypothesis] | None = None

    @property
    def tester(self) -> Judge:
        return self.expensive or self.cheap


def reads_words(judge: Judge) -> bool:
    """Whether a judge sees nothing of a hypothesis but its words."""
    return getattr(judge, "reads_words", False)


@runtime_checkable
class PairJudge(Protocol):
    """A judge that can put two answers to one prompt side by side, in both orders."""

    mode: str

    def compare(
        self, first: Sequence[str], second: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str]
    ) -> np.ndarray:
        """How much ``first`` shows it more than ``second``: [pairs, hypotheses] in [0, 1], NaN where there is no
        verdict."""
        ...


@runtime_checkable
class ManyAtOnce(Protocol):
    """A judge that can be asked about several hypotheses in a call."""

    per_call: int

    def alone(self) -> Judge:
        """The same judge, asked about one hypothesis a call."""
        ...


class RepetitionJudge(JudgeSpec):
    """Coherence as far as counting sees it: the share of a text's runs of three words that it has not said before.

    1 for a text that repeats nothing, near 0 for a loop, 0 for an empty one. Word salad repeats nothing, so this sees
    one way in which text breaks and no other; a judge model sees more.
    """

    kind: Literal["repetition"] = "repetition"

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        return np.repeat(np.array([[self._new(t)] for t in texts]).reshape(-1, 1), len(hypotheses), axis=1)

    @staticmethod
    def _new(text: str) -> float:
        words = tokenize(text)
        runs = list(zip(words, words[1:], words[2:], strict=False))
        return len(set(runs)) / len(runs) if runs else float(bool(words))
