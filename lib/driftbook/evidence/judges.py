"""Judges: how much does a text show what a hypothesis says?

Every judge scores texts in [0, 1], NaN where it has no verdict, and says what shapes its verdicts. Scores of one
judge are compared with each other only: a text of one side against a text of the other, to the same prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from driftbook.discovery.hypotheses import Hypothesis, tokenize
from driftbook.errors import DriftbookError
from driftbook.ledger import Ledger
from driftbook.replies import Quote


class Judge(Protocol):
    """``score`` gives [texts, hypotheses] in [0, 1], higher where the text shows more of it, NaN where there is no
    verdict.

    It sees the text and, where a judge needs it to understand the text, the prompt; never which side wrote it.
    ``paid`` says that verdicts cost money or minutes, so that a test stops as soon as it can. ``identity`` holds
    everything that shapes a verdict besides the text and the hypothesis, and is part of what is frozen.
    """

    name: str
    paid: bool
    identity: Mapping[str, Any]

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


class Free:
    """A judge that runs here and costs nothing."""

    paid = False

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        return Quote()


def lexicon_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """One pattern for words, phrases and ``/regular expressions/``; longer phrases first, so that none is counted
    twice.

    Raises DriftbookError for an expression that does not compile.
    """
    plain = sorted((w for w in words if not (len(w) > 2 and w[0] == w[-1] == "/")), key=lambda w: (-len(w), w))
    parts = [r"(?<!\w)" + r"\s+".join(map(re.escape, w.lower().split())) + r"(?!\w)" for w in plain]
    parts += [f"(?:{w[1:-1]})" for w in words if w not in plain]
    try:
        return re.compile("|".join(parts), re.IGNORECASE)
    except re.error as reason:
        raise DriftbookError(f"words {list(words)}: {reason} in a regular expression") from None


class LexiconJudge(Free):
    """Rate of a hypothesis' words in a text, saturating at one in ``saturation`` words.

    A rate, not a count: a longer text is not more of anything. Texts shorter than ``saturation`` words count as that
    long.
    """

    name = "lexicon"

    def __init__(self, saturation: int = 20) -> None:
        self.saturation = saturation
        self.identity = {"kind": "lexicon", "saturation": saturation, "version": 1}

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Raises DriftbookError for a hypothesis without words."""
        without = [h.text for h in hypotheses if not h.words]
        if without:
            raise DriftbookError(
                f"the lexicon judge cannot read {without[0]!r}: give it words, or set validate.judges to a model"
            )
        lower = [t.lower().replace("’", "'") for t in texts]
        length = np.array([max(len(tokenize(t)), self.saturation) for t in texts], dtype=np.float64)
        hits = np.zeros((len(texts), len(hypotheses)))
        for column, hypothesis in enumerate(hypotheses):
            pattern = lexicon_pattern(hypothesis.words)
            hits[:, column] = [sum(1 for _ in pattern.finditer(t)) for t in lower]
        return np.minimum(1.0, hits * self.saturation / length.reshape(-1, 1))


class EmbeddingJudge(Free):
    """Cosine to the exemplars of a hypothesis minus cosine to the other side's texts for the same prompts, mapped to
    [0, 1].

    ``embed`` gives unit vectors [n, d]; ``exemplars(hypothesis)`` gives (texts that show it, texts that do not), both
    of split discover. The prompts are the same on both sides, so that their topics cancel.
    """

    name = "embedding"

    def __init__(
        self,
        embed: Callable[[list[str]], np.ndarray],
        exemplars: Callable[[Hypothesis], tuple[list[str], list[str]]],
        identity: Mapping[str, Any],
    ) -> None:
        self.embed, self.exemplars = embed, exemplars
        self.identity = {"kind": "embedding", "version": 1, **identity}

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Raises DriftbookError for a hypothesis without evidence on both sides."""
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


class RepetitionJudge(Free):
    """Coherence as far as counting sees it: the share of a text's runs of three words that it has not said before.

    1 for a text that repeats nothing, near 0 for a loop, 0 for an empty one. Word salad repeats nothing, so this sees
    one way in which text breaks and no other; a judge model sees more.
    """

    name = "repetition"
    identity: Mapping[str, Any] = {"kind": "repetition", "version": 1}

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        return np.repeat(np.array([[self._new(t)] for t in texts]).reshape(-1, 1), len(hypotheses), axis=1)

    @staticmethod
    def _new(text: str) -> float:
        words = tokenize(text)
        runs = list(zip(words, words[1:], words[2:], strict=False))
        return len(set(runs)) / len(runs) if runs else float(bool(words))
