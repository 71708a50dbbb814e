"""What a statistic would have been if the two sides of prompts were swapped: exact tails of one, joint draws of many.

Sources: exact tails by counting, Pagano and Tritchler (1983); of many prompts by a saddlepoint, Robinson (1982), in the
form of Barndorff-Nielsen (1986); step-down max-T, Westfall and Young (1993).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from scipy.stats import binom, norm, rankdata

from driftbook.auc import CHUNK

GRID = 1 << 15  # steps of the greatest sum of differences whose distribution is counted out
COUNTED = 400  # prompts with a difference up to which it is counted out; beyond, a saddlepoint


def swapped(base: np.ndarray, changed: np.ndarray, sign: int, margin: float, ranks: bool) -> np.ndarray:
    """What each prompt adds to the statistic, [prompts]: it takes the other sign where the prompt's sides are swapped.

    The difference in the direction ``sign`` (1 or -1) beyond ``margin``, or with ``ranks`` its signed rank.
    """
    d = sign * (changed - base) - margin
    d[np.abs(d) <= 1e-12 * max(1.0, float(np.max(np.abs([base, changed]), initial=0.0)))] = 0.0
    if ranks:
        moved = d != 0
        d[moved] = np.sign(d[moved]) * rankdata(np.abs(d[moved]))
    return d


def upper_tail(weights: np.ndarray) -> tuple[float, str]:
    """(P(a sum of the weights with random signs reaches theirs), "sign" or "swap").

    One size: binomial. Otherwise exact for up to ``COUNTED`` prompts, with weights rounded to 1 / ``GRID`` of their sum
    where they have no common unit; for more, a saddlepoint, a few per cent from it.
    """
    w = weights[weights != 0]
    size = np.abs(w)
    if not len(w):
        return 1.0, "sign"
    if size.max() <= size.min() * (1 + 1e-9):
        return float(binom.sf((w > 0).sum() - 1, len(w), 0.5)), "sign"
    unit = _lattice(size)
    if len(w) > COUNTED:
        return _saddlepoint(size / size.max(), w.sum() / size.max(), unit / size.max()), "swap"
    step = unit if unit and size.sum() <= GRID * unit else size.sum() / GRID
    steps = np.round(size / step).astype(np.int64)
    chance, top = np.zeros(steps.sum() + 1), 0  # of each sum of those with sign +; only additions, so tails are exact
    chance[0] = 1.0
    for a in np.sort(steps):
        top += a
        added = chance[: top + 1 - a] / 2
        chance[: top + 1] /= 2
        chance[a : top + 1] += added
    return float(chance[steps[w > 0].sum() :].sum()), "swap"


def _lattice(size: np.ndarray) -> float:
    """The unit of which all sizes are multiples, 0 where there is none; means of up to twelve answers have one."""
    for parts in range(1, 13):
        steps = size / (size.min() / parts)
        if (np.abs(steps - np.round(steps)) <= 1e-6).all():
            return float(size.min() / parts)
    return 0.0


def _saddlepoint(size: np.ndarray, total: float, unit: float) -> float:
    """P(a sum of ``size`` with random signs >= ``total``); ``unit``: 0, or that of which all are multiples."""
    if total >= size.sum() * (1 - 1e-12):
        return max(0.5 ** len(size), np.finfo(float).tiny)
    total -= unit  # sums lie two units apart: half of the gap
    if total <= -size.sum() * (1 - 1e-12):
        return 1.0
    low, high = 0.0, 1.0
    while (size * np.tanh(high * size)).sum() < abs(total):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (size * np.tanh(middle * size)).sum() < abs(total) else (low, middle)
    y = high * size
    growth = (y + np.log1p(np.exp(-2 * y)) - math.log(2)).sum()
    w = math.sqrt(max(2 * (high * abs(total) - growth), 0.0))
    u = high * math.sqrt((size**2 * 4 * np.exp(-2 * y) / (1 + np.exp(-2 * y)) ** 2).sum())
    near = w < 1e-3 or u == 0
    z = w if near else w + math.log(u / w) / w
    return max(float(norm.sf(math.copysign(z, total))), np.finfo(float).tiny)


def joint_p(observed: np.ndarray, blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(p, adjusted by step-down max-T), [m] each, from blocks [draws, m] of what the statistics are without a change.

    The statistics of a draw belong together: they were read after one swap of all texts.
    """
    order = np.argsort(-observed, kind="stable")
    alone, beyond, total = np.ones(len(observed)), np.ones(len(observed)), 1
    for block in blocks:
        # ties count as beyond; without the slack, rounding would decide them
        reached = observed - 1e-9 * np.maximum(1.0, np.abs(observed))
        alone += (block >= reached).sum(axis=0)
        highest = np.maximum.accumulate(block[:, order[::-1]], axis=1)[:, ::-1]
        beyond += (highest >= reached[order]).sum(axis=0)
        total += len(block)
    adjusted = np.empty(len(observed))
    adjusted[order] = np.maximum.accumulate(beyond / total)
    return alone / total, adjusted


def max_t(weights: np.ndarray, either: np.ndarray, flips: int, seed: int) -> np.ndarray:
    """p-values adjusted by step-down max-T, [m].

    One swap of the sides of a prompt turns the sign of its row of ``weights`` [prompts, m]; ``either`` [m]: both
    directions count.
    """
    weights = weights[weights.any(axis=1)]
    scaled = weights / np.sqrt((weights**2).sum(axis=0))
    rng, n = np.random.default_rng(seed), len(scaled)

    def statistic(sums: np.ndarray) -> np.ndarray:
        return np.where(either, np.abs(sums), sums)

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, CHUNK // max(1, n + scaled.shape[1]))
        for start in range(0, flips, step):
            signs = rng.integers(0, 2, size=(min(step, flips - start), n), dtype=np.int8) * 2.0 - 1.0
            yield statistic(signs @ scaled)

    return joint_p(statistic(scaled.sum(axis=0)), blocks())[1]
