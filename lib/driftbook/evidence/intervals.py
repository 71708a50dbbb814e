"""Intervals and fixed-sample tests whose unit is the prompt.

Texts of one prompt are not independent, so whatever resamples here resamples prompts, with all their texts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

CHUNK = 4_000_000  # numbers in flight per block of resamples


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson score interval of a proportion. For independent trials only: one per prompt, never one per text."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    z = float(norm.isf(alpha / 2))
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def resample_counts(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap resample: [resamples, prompts] int32, every row sums to
    ``prompts``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.int32)


def bootstrap_mean(values: np.ndarray, alpha: float = 0.05, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean over prompts; ``values``: [prompts], one number per prompt."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no prompts to resample")
    means = resample_counts(len(values), resamples, seed) @ values / len(values)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return Interval(float(values.mean()), float(low), float(high))


def weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(score of a positive > score of a negative) + half of the ties, for each row of weights.

    ``scores``: [n]; ``positive``: [n] booleans; ``weights``: [rows, n], for instance bootstrap counts. Returns
    [rows]; NaN where a row leaves one side empty.
    """
    order = np.argsort(scores, kind="stable")
    levels = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    positive = positive[order]
    rows = []
    step = max(1, CHUNK // max(1, len(scores)))
    for start in range(0, len(weights), step):
        block = weights[start : start + step][:, order].astype(np.float64)
        up = np.add.reduceat(block * positive, levels, axis=1)
        down = np.add.reduceat(block * ~positive, levels, axis=1)
        below = np.cumsum(down, axis=1) - down
        with np.errstate(invalid="ignore"):
            rows.append((up * (below + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1)))
    return np.concatenate(rows)


def auc_resamples(
    scores: np.ndarray, positive: np.ndarray, prompts: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """AUC of all texts (first entry) and of each resample of prompts; arguments as [texts].

    Raises ValueError for missing scores or texts of one side only.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError("missing scores: drop them, or give them their worst-case bound")
    if positive.all() or not positive.any():
        raise ValueError("an AUC needs texts of both sides")
    ids, inverse = np.unique(np.asarray(prompts), return_inverse=True)
    counts = resample_counts(len(ids), resamples, seed)[:, inverse]
    return weighted_auc(scores, positive, np.concatenate([np.ones((1, len(scores)), dtype=np.int32), counts]))


def auc_interval(
    scores: np.ndarray,
    positive: np.ndarray,
    prompts: np.ndarray,
    alpha: float = 0.05,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Area under the ROC curve with a percentile interval from resampled prompts; arguments as [texts]."""
    drawn = auc_resamples(scores, positive, prompts, resamples, seed)
    low, high = np.nanquantile(drawn[1:], [alpha / 2, 1 - alpha / 2])
    return Interval(float(drawn[0]), float(low), float(high))


def sign_flip_p(x: np.ndarray, center: float = 0.5, flips: int = 9999, seed: int = 0) -> float:
    """One-sided p-value of ``E[X] <= center`` by flipping the sign of ``X - center`` per prompt; ``x``: [prompts].

    The statistic is studentized. With ``center = 1/2`` and sides that can be exchanged within a prompt the test is
    exact; with another center it is valid for large samples. Ties (all ``x`` equal to the center) give 1.
    """
    d = np.asarray(x, dtype=np.float64) - center
    n = len(d)
    if n == 0 or not d.any():
        return 1.0
    square = float(d @ d)
    signs = np.random.default_rng(seed).integers(0, 2, size=(flips, n), dtype=np.int8) * 2 - 1
    sums = np.concatenate([[d.sum()], signs @ d])
    spread = np.sqrt(np.maximum(square - sums**2 / n, 1e-12))
    t = sums / spread
    return float((1 + (t[1:] >= t[0] - 1e-9).sum()) / (1 + flips))


def prompts_needed(
    win_rate: float, deviation: float, margin: float, hypotheses: int, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Prompts after which the e-process of a hypothesis with this win rate passes ``hypotheses / alpha`` with about
    this power.

    ``deviation`` is the standard deviation of X over prompts (0.5 for single win-or-lose pairs, less with ties and
    several texts). Plans with the normal approximation of log wealth under the best stake, ``n g - log sqrt(n)`` for
    the hedge over stakes, and its standard deviation ``sqrt(2 n g)``. None when the win rate does not lie above ``1/2
    + margin``: no number of prompts suffices.
    """
    gap = win_rate - 0.5 - margin
    if gap < 1e-6:
        return None
    growth = gap**2 / (2 * (deviation**2 + gap**2))
    target = np.log(hypotheses / alpha)
    z = float(norm.ppf(power))
    low, high = 1, 1
    while high * growth - z * np.sqrt(2 * high * growth) - 0.5 * math.log(high) < target:
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        enough = middle * growth - z * np.sqrt(2 * middle * growth) - 0.5 * math.log(middle) >= target
        low, high = (low, middle) if enough else (middle + 1, high)
    return high


def detectable(half_width: float, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest effect that a two-sided test finds with probability ``power``; from half of a 95% interval's width.

    ``tests`` are made at once and each gets ``alpha / tests``; with Benjamini-Hochberg somewhat smaller effects can be
    found as well. Normal approximation: ``(z(1 - alpha / 2 tests) + z(power)) * half_width / 1.96``.
    """
    if tests < 1:
        raise ValueError(f"tests must be at least 1, not {tests}")
    standard_error = half_width / float(norm.isf(0.025))
    return float((norm.isf(alpha / (2 * tests)) + norm.ppf(power)) * standard_error)
