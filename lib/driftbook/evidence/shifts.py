"""How far projections moved between two models, in units of directions that mean nothing, with intervals.

Two questions, two units. How far does a trait move on prompts like these? The prompt is drawn again. How far did it
move on this prompt? Its answers are drawn again, and their spread is pooled over prompts, since a prompt has few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtr, stdtrit  # scipy.stats takes half a second to import

from driftbook.evidence.intervals import student_quantile
from driftbook.evidence.multiplicity import bh_adjusted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scale:
    """Turns raw projections into null units: ``(h.v - mean) / sd``.

    ``mean`` is ``[layers, sites, traits]`` over the base's response tokens, ``sd`` is ``[layers, sites]`` over null
    directions on those tokens, ``low`` and ``high`` ``[layers, sites]`` hold 95% of the null's own scores.
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def score(self, grid: np.ndarray) -> np.ndarray:
        """``[..., layers, sites, traits]`` raw projections as scores."""
        return (grid - self.mean) / self.sd[..., None]

    def table(self, grid: Grid) -> pd.DataFrame:
        """One row per layer, site and trait: mean, sd, low, high."""
        columns = {"mean": self.mean}
        for name in ("sd", "low", "high"):
            columns[name] = np.broadcast_to(getattr(self, name)[..., None], self.mean.shape)
        return _points(grid).assign(**{name: v.ravel() for name, v in columns.items()})

    @classmethod
    def from_table(cls, table: pd.DataFrame, grid: Grid) -> Scale:
        """The scale that :meth:`table` wrote."""
        table = table.set_index(["layer", "site", "trait"]).loc[list(_points(grid).itertuples(index=False, name=None))]
        columns = {name: table[name].to_numpy(np.float32).reshape(grid.shape) for name in ("mean", "sd", "low", "high")}
        return cls(columns["mean"], *(columns[name][..., 0] for name in ("sd", "low", "high")))

    @classmethod
    def fit(cls, responses: np.ndarray, null: np.ndarray) -> Scale:
        """From raw projections of response tokens: on traits, ``[tokens, layers, sites, traits]``, and on null
        directions, ``[tokens, layers, sites, directions]`` (not always the same tokens)."""
        centred = null - null.mean(0)
        sd = centred.std(axis=(0, 3))
        low, high = np.quantile(centred / sd[:, :, None], [0.025, 0.975], axis=(0, 3))
        return cls(responses.mean(0), sd, low, high)


@dataclass(frozen=True)
class Grid:
    """What the last three axes of a projection are."""

    layers: Sequence[int]
    sites: Sequence[str]
    traits: Sequence[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.layers), len(self.sites), len(self.traits)


def answer_means(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Means over tokens of each answer: ``[answers, ...]`` from arrays ``[tokens, ...]`` with a token at least."""
    return np.stack([a.mean(0) for a in answers])


def prompt_means(
    means: Sequence[np.ndarray], shape: tuple[int, ...], units: Sequence[str] | None = None
) -> np.ndarray:
    """``[prompts, ...]``: mean over the answers of each prompt (``[answers, ...]``), NaN for a prompt without any.

    ``units`` of look-alike prompts are averaged: ``[units, ...]``, in their first prompts' order.
    """
    table = np.stack([m.mean(0) if len(m) else np.full(shape, np.nan) for m in means])
    if units is None or len(set(units)) == len(units):
        return table
    rows = [[i for i, other in enumerate(units) if other == unit] for unit in dict.fromkeys(units)]
    known = ~np.isnan(table).all(axis=tuple(range(1, table.ndim)))  # a unit without any answer stays NaN
    return np.stack([table[[i for i in own if known[i]] or own].mean(0) for own in rows])


def shift_table(
    before: np.ndarray, after: np.ndarray, scale: Scale, grid: Grid, comparison: str
) -> pd.DataFrame:
    """How far each trait moved at each layer and site, in null units, with Student's 95% intervals over prompts.

    Args:
        before, after: ``[prompts, layers, sites, traits]`` from :func:`prompt_means`; prompts with NaN are left out.
        comparison: ``own_text`` (each side's own answers) or ``same_tokens`` (the base's answers under both sides).

    Returns:
        Columns comparison, layer, site, trait, shift, low, high, prompts, p (Student's paired t-test over prompts; NaN
        where no prompt moved at all). Of a single prompt low, high and p are NaN.
    """
    difference = (after - before) / scale.sd[None, ..., None]
    difference = difference[np.isfinite(difference).all(axis=(1, 2, 3))]
    n = len(difference)
    table = _points(grid)
    table.insert(0, "comparison", comparison)
    mean = difference.mean(0)
    error = difference.std(0, ddof=1) / n**0.5 if n > 1 else np.full_like(mean, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(mean / error))
    half = student_quantile(0.05, n - 1) * error if n > 1 else error
    ends = {"low": (mean - half).ravel(), "high": (mean + half).ravel()}
    return table.assign(shift=mean.ravel(), **ends, prompts=n, p=p.ravel())


def moved(at_chosen: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """The rows of a table of shifts, one a trait, that are more than chance: Benjamini-Hochberg over the traits."""
    return at_chosen[bh_adjusted(at_chosen["p"].to_numpy()) <= alpha]


def prompt_shift_table(
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    scale: Scale,
    grid: Grid,
    comparison: str,
    prompt_ids: Sequence[str],
    alpha: float = 0.05,
) -> pd.DataFrame:
    """How far each trait moved on each single prompt, with intervals over the answers that might have been drawn.

    The variance between the answers of one prompt is pooled over prompts, per side (``own_text``), or taken of the
    differences answer by answer (``same_tokens``, where both sides read the same texts). Intervals are Student's, with
    Satterthwaite's degrees of freedom where two sides are pooled apart, and NaN where no prompt has two answers.

    Args:
        before, after: one ``[answers, layers, sites, traits]`` of raw answer means per prompt.
        comparison: ``own_text`` or ``same_tokens``.
        prompt_ids: one per prompt.

    Returns:
        Columns comparison, prompt_id, layer, site, trait, shift, low, high, answers. Prompts without an answer on one
        side are left out.
    """
    import pandas as pd  # a third of a second, and capturing does without

    unit = scale.sd[None, ..., None]
    kept = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if len(a) and len(b)]
    if comparison == "same_tokens":
        groups = [[(after[i] - before[i]) / unit for i in kept]]
    else:
        groups = [[after[i] / unit for i in kept], [before[i] / unit for i in kept]]
    signs = (1, -1)[: len(groups)]
    spreads = [_pooled(group) for group in groups]
    tables = []
    for place, i in enumerate(kept):
        shift = sum(sign * group[place].mean(0) for sign, group in zip(signs, groups, strict=True))
        parts = [v / len(group[place]) for (v, _), group in zip(spreads, groups, strict=True)]
        variance = sum(parts)
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = variance**2 / sum(p**2 / df for p, (_, df) in zip(parts, spreads, strict=True))
            half = np.where(variance > 0, -stdtrit(freedom, alpha / 2) * np.sqrt(variance), variance)
        table = _points(grid)
        table.insert(0, "comparison", comparison)
        table.insert(1, "prompt_id", prompt_ids[i])
        answers = min(len(before[i]), len(after[i]))
        tables.append(
            table.assign(shift=shift.ravel(), low=(shift - half).ravel(), high=(shift + half).ravel(), answers=answers)
        )
    return pd.concat(tables, ignore_index=True)


def _pooled(groups: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Variance within groups ``[answers, ...]``, pooled, and its degrees of freedom (none: NaN)."""
    freedom = sum(len(g) - 1 for g in groups)
    squares = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups)
    return (squares / freedom if freedom else np.full_like(squares, np.nan)), freedom


def _points(grid: Grid) -> pd.DataFrame:
    """Columns layer, site, trait, one row per entry of a ``[layers, sites, traits]`` array."""
    import pandas as pd  # a third of a second, and capturing does without

    index = pd.MultiIndex.from_product([grid.layers, grid.sites, grid.traits], names=["layer", "site", "trait"])
    return index.to_frame(index=False)
