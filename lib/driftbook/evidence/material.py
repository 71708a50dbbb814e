"""What is validated: answers of both sides with their split, and what was claimed about them.

The prompts that are counted and tested are units of look-alikes (``prompts.by_unit``).
A prompt is shown to judges, the labeller and a reader in one way (``Prompt.shown``): a conversation with all its turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.wins import shuffled
from driftbook.prompts import SIDES, Prompt


@dataclass(frozen=True)
class Material:
    """All that is validated: answers of both sides with their split, prompts by id, and the hypotheses."""

    texts: pd.DataFrame  # text_id, side, prompt_id (of the unit), asked (the prompt itself), family, split, text
    prompts: Mapping[str, Prompt]
    hypotheses: list[Hypothesis]
    seed: int
    amplified: pd.DataFrame = field(default_factory=pd.DataFrame)  # answers to held-out prompts, not tested with texts

    @property
    def judged(self) -> list[Hypothesis]:
        """The hypotheses that only a judge can read."""
        return [h for h in self.hypotheses if by_judge(h)]

    def held_out(self, split: str) -> Held:
        """The texts of a split, on prompts that both sides answered, with the prompts in their one shuffled order."""
        return Held(split, *self._answered(self.texts[self.texts["split"] == split]), self.prompts)

    def paired(self) -> tuple[pd.DataFrame, list[str]]:
        """The first answers of all splits, as many of both sides to a prompt, on prompts that both answered, and those
        prompts in shuffled order.

        What later rounds added is left out: how often a prompt was asked then depended on divergence, or on what its
        answers said.
        """
        return self._answered(self.texts[self.texts["round"] == 0])

    @property
    def surplus(self) -> int:
        """First answers that are not read, because the other side has fewer to their prompt."""
        first = without_copies(self.texts[self.texts["round"] == 0])
        both = first.groupby("prompt_id")["side"].transform("nunique") == 2
        return int(both.sum()) - len(balanced(first[both]))

    def _answered(self, texts: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        texts = balanced(without_copies(texts))
        order = shuffled([str(p) for p in texts["prompt_id"].unique()], self.seed)
        return texts.reset_index(drop=True), order


@dataclass(frozen=True)
class Held:
    """Texts of one held-out split; ``order`` are its prompts."""

    split: str
    texts: pd.DataFrame
    order: list[str]
    prompts: Mapping[str, Prompt]

    def asked(self, texts: pd.DataFrame) -> list[str]:
        """What a judge is given as the prompt of each text."""
        return [self.prompts[p].shown() for p in asked_ids(texts)]

    def of(self, prompt_ids: Sequence[str]) -> pd.DataFrame:
        return self.texts[self.texts["prompt_id"].isin(set(prompt_ids))]


def asked_ids(texts: pd.DataFrame) -> pd.Series:
    """The id of the prompt that each text answers, where ``prompt_id`` is that of its look-alikes."""
    return texts["asked" if "asked" in texts else "prompt_id"]


def without_copies(texts: pd.DataFrame) -> pd.DataFrame:
    """The answers, each once where a table holds each of them k times: k copies are no k observations."""
    cell = texts.groupby([asked_ids(texts), "side", "text"], sort=False)
    copies = int(np.gcd.reduce(cell.size().to_numpy(dtype=np.int64)))
    return texts[cell.cumcount() % max(copies, 1) == 0]


def balanced(texts: pd.DataFrame) -> pd.DataFrame:
    """The answers, as many of both sides to each prompt: of the side that has more, the first.

    A test swaps the two sides of a prompt, and the mean of eight answers is no single answer: what one in fifty does
    would stand on the side that has more of them on most of the prompts that show it at all.
    """
    asked = asked_ids(texts)
    rows = [texts["side"].eq(side).groupby(asked).transform("sum") for side in SIDES]
    return texts[texts.groupby([asked, "side"]).cumcount() < np.minimum(*rows)]


def by_judge(hypothesis: Hypothesis) -> bool:
    """Whether no measure reads a hypothesis, so that a judge has to."""
    return (hypothesis.measure or {}).get("kind") == "judge"
