"""From scores of texts to one number per prompt: how often the direction's side shows more of it than the other
side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


class Wins(NamedTuple):
    """Per prompt and hypothesis, [prompts, hypotheses] each. ``x``: NaN where no pair has both verdicts."""

    x: np.ndarray  # average over pairs of texts: win 1, tie 1/2, loss 0, and between them below the judge's resolution
    low: np.ndarray  # the same with every missing verdict against the hypothesis
    high: np.ndarray  # and with every missing verdict for it


def mean_by(values: np.ndarray, prompt: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Mean of the known values per prompt, [prompts, hypotheses]; NaN where none is known."""
    return pd.DataFrame(values).groupby(prompt).mean().reindex(list(prompts)).to_numpy(dtype=np.float64)


def shuffled(prompt_ids: Sequence[str], seed: int | str) -> list[str]:
    """The one order in which all hypotheses read the prompts: by hash of seed and id, so that nothing else can choose
    it."""
    return sorted(prompt_ids, key=lambda p: hashlib.sha256(f"{seed}\x1f{p}".encode()).digest())


def win_rates(
    scores: np.ndarray, prompt: np.ndarray, up: np.ndarray, prompts: Sequence[str], resolution: float = 0.0
) -> Wins:
    """Compare all pairs of texts of the two sides within each prompt.

    ``scores``: [texts, hypotheses] in [0, 1] or NaN; ``prompt``: [texts] ids; ``up``: [texts, hypotheses] booleans,
    True where the text is of the side that the hypothesis says does it more; ``prompts``: ids in the order of the
    result. Exact ties stay ties. ``resolution`` is the difference of scores from which on a win is whole: one that
    is smaller counts in proportion, so that a judge's 0.069 against its 0.060 is nearly a tie; 0: any difference is a
    win. Raises ValueError for a prompt without texts of both sides.
    """
    shape = (len(prompts), scores.shape[1])
    x, low, high = np.full(shape, np.nan), np.zeros(shape), np.ones(shape)
    groups: dict[str, list[int]] = {p: [] for p in prompts}
    for i, p in enumerate(prompt):
        if p in groups:
            groups[p].append(i)
    for row, p in enumerate(prompts):
        s, side = scores[groups[p]], up[groups[p]]
        for pattern in np.unique(side, axis=1).T if side.size else []:
            columns = (side == pattern[:, None]).all(axis=0)
            one, two = s[pattern][:, None, columns], s[~pattern][None, :, columns]
            if not one.size or not two.size:
                raise ValueError(f"prompt {p} has texts of one side only")
            missing = np.isnan(one) | np.isnan(two)
            more = (one - two) / (2 * resolution) if resolution else np.sign(one - two) / 2
            won = np.where(missing, np.nan, 0.5 + np.clip(more, -0.5, 0.5))
            pairs, known = missing[..., 0].size, (~missing).sum(axis=(0, 1))
            total = np.nansum(won, axis=(0, 1))
            x[row, columns] = np.divide(total, known, out=np.full(len(total), np.nan), where=known > 0)
            low[row, columns] = total / pairs
            high[row, columns] = (total + pairs - known) / pairs
    return Wins(x, low, high)


def matched_win_rates(preference: np.ndarray, prompt: np.ndarray, prompts: Sequence[str]) -> Wins:
    """The same from comparisons: ``preference`` [pairs, hypotheses] is how much the direction's side shows more, NaN
    where missing.

    ``prompt``: [pairs] ids. Raises ValueError for a prompt without a pair.
    """
    shape = (len(prompts), preference.shape[1])
    x, low, high = np.full(shape, np.nan), np.zeros(shape), np.ones(shape)
    for row, p in enumerate(prompts):
        seen = preference[prompt == p]
        if not len(seen):
            raise ValueError(f"prompt {p} has texts of one side only")
        known, total = (~np.isnan(seen)).sum(axis=0), np.nansum(seen, axis=0)
        x[row] = np.divide(total, known, out=np.full(len(total), np.nan), where=known > 0)
        low[row], high[row] = total / len(seen), (total + len(seen) - known) / len(seen)
    return Wins(x, low, high)
