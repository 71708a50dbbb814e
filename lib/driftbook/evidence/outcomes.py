"""What the test of one hypothesis saw and decided, whoever gave the verdicts: counting, or a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import Measure
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.eprocess import log_wealth
from driftbook.evidence.intervals import Interval
from driftbook.evidence.wins import Wins
from driftbook.prompts import SIDES

Scope = Literal["all prompts", "held-out prompts", "these prompts"]
MOST_LOG = 700.0  # beyond it an e-value is no number any more
SAME = 0.6  # correlation over answers from which on two claims say nearly the same


@dataclass(frozen=True)
class Outcome:
    """One tested hypothesis.

    ``texts`` [t] are the answers that were read and ``scores`` [t] what they show, in the unit of ``measure``, NaN
    where there is no reading. ``prompts`` [p] are those of the test, and ``wins`` says of each how often an answer of
    the side ``direction`` shows more than one of the other. ``base``, ``intervention`` and ``difference`` (intervention
    minus base, with its interval) are in the unit of ``measure``.
    """

    hypothesis: Hypothesis
    direction: str  # of a behaviour that was named without one: the side that showed more of it
    measure: Measure
    judge: str
    scope: Scope
    texts: pd.DataFrame
    scores: np.ndarray
    prompts: list[str]
    wins: Wins
    win_rate: Interval
    base: float
    intervention: float
    difference: Interval
    confirmed: bool
    status: str
    e_value: float
    p_value: float = float("nan")  # of a fixed sample; NaN where a paid judge stopped early
    q_value: float = float("nan")  # the same, corrected for everything that was counted beside it
    stopped: int = 0  # prompts gone by when a paid judge stopped
    agreement: float = float("nan")  # share of prompts on which a second judge says the same
    needed: float = float("nan")  # prompts that would confirm an effect of this size

    @property
    def sign(self) -> int:
        return 1 if self.direction == "intervention" else -1

    @property
    def x(self) -> pd.Series:
        """Prompt to how often the direction's side shows more of it (a tie is one half), where both were read."""
        return pd.Series(self.wins.x, index=self.prompts).dropna()

    @property
    def size(self) -> float:
        """The net share of prompts that moved in the claimed direction: comparable between units."""
        return 2 * self.win_rate.estimate - 1

    @property
    def sentence(self) -> str:
        """The claim in plain units, both sides."""
        moved, low, high = self.difference
        summary = "mean" if self.scope == "these prompts" else None  # answers are exchanged there, not prompts
        return self.measure.sentence(self.base, self.intervention, low, high, moved, summary)

    def declined(self, side: str) -> float:
        """Share of a side's answers that the measure could not read."""
        own = (self.texts["side"] == side).to_numpy()
        return float(np.isnan(self.scores[own]).mean()) if own.any() else 0.0


def e_value(x: np.ndarray, either: bool = False) -> float:
    """The e-value against "no more often than half" after all of ``x``; capped where it is no number any more.

    ``either``: against "half", where nobody named a side before looking: half of the stake bets on each.
    """
    x = x[~np.isnan(x)]
    if not len(x):
        return 1.0
    bets = [log_wealth(own, 0.5)[-1] for own in ([x, 1 - x] if either else [x])]
    return float(np.mean([np.exp(min(b, MOST_LOG)) for b in bets]))


PLAIN = ("share", "words")  # units that a reader sees with the naked eye


def strongest_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Confirmed ones first; among them shares of answers and lengths in words, then rates, numbers and scores; each
    kind by the size of the effect."""

    def rank(o: Outcome) -> tuple:
        size = o.size if np.isfinite(o.size) else -1.0
        return not o.confirmed, o.confirmed and o.measure.unit not in PLAIN, -size, o.hypothesis.hypothesis_id

    return sorted(outcomes, key=rank)


def alike(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Confirmed claims that say nearly the same as a stronger one: hypothesis id to the id of that one.

    Two claims are alike when their scores correlate (either sign) by at least ``SAME`` over the answers that both have
    read; a claim that is like another stands for none itself.
    """
    ordered = [o for o in strongest_first(outcomes) if o.confirmed]
    close = np.abs(_correlations(ordered)) >= SAME
    heads: list[int] = []
    found: dict[str, str] = {}
    for i, one in enumerate(ordered):
        head = next((h for h in heads if close[i, h]), None)
        if head is None:
            heads.append(i)
        else:
            found[one.hypothesis.hypothesis_id] = ordered[head].hypothesis.hypothesis_id
    return found


def _correlations(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Of each two's scores over the answers that both have read, ``[outcomes, outcomes]``; 0 where one is constant."""
    read = [pd.Series(o.scores, index=o.texts["text_id"].to_numpy(), dtype=np.float64) for o in outcomes]
    return pd.concat(read, axis=1).corr(min_periods=2).fillna(0.0).to_numpy() if read else np.zeros((0, 0))


def means(scores: np.ndarray, texts: pd.DataFrame, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Side to the mean score of its answers to each prompt, [prompts]; NaN where there is no reading."""
    table = pd.DataFrame({"score": scores, "prompt": texts["prompt_id"].to_numpy(), "side": texts["side"].to_numpy()})
    by = table.groupby(["prompt", "side"])["score"].mean().unstack("side").reindex(index=list(prompts))
    return {side: by[side].to_numpy(np.float64) for side in SIDES}


VERDICTS = (
    *("hypothesis_id", "prompt_id", "split", "judge", "x", "x_low", "x_high"),
    *("score_base", "score_intervention", "texts", "missing"),
)


def verdicts(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The columns of ``verdicts.parquet``: one row per hypothesis and prompt. ``x_low`` and ``x_high`` are X with every
    missing verdict against the hypothesis, and for it."""
    tables = []
    for one in outcomes:
        sides = means(one.scores, one.texts, one.prompts)
        split = one.texts.drop_duplicates("prompt_id").set_index("prompt_id")["split"].reindex(one.prompts)
        size = one.texts["prompt_id"].value_counts().reindex(one.prompts)
        table = pd.DataFrame(
            {
                "hypothesis_id": one.hypothesis.hypothesis_id,
                "prompt_id": one.prompts,
                "split": split.to_numpy(),
                "judge": one.judge,
                "x": one.wins.x,
                "x_low": one.wins.low,
                "x_high": one.wins.high,
                "score_base": sides["base"],
                "score_intervention": sides["intervention"],
                "texts": size.to_numpy(dtype=np.int32),
            }
        )
        tables.append(table.assign(missing=table["x_low"] < table["x_high"]))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(VERDICTS))
