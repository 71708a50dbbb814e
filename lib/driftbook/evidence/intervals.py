"""Intervals and fixed-sample tests whose unit is the prompt.

Texts of one prompt are not independent: a mean is one over prompts, and whatever resamples here resamples prompts, with
all their texts.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit  # scipy.stats takes half a second to import

from driftbook.auc import weighted_auc

JS = (0.0, math.log(2))  # nats: of equal distributions, and of those that have nothing in common


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float


def wilson(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson score interval of a proportion. For independent trials only: one per prompt, never one per text."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    share = successes / n
    return Interval(share, *wilson_limits(share, n, normal_quantile(alpha)))


def wilson_limits(share: float, n: float, z: float) -> tuple[float, float]:
    """Limits of a share of ``n`` trials, whose number need not be whole."""
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@lru_cache(maxsize=4)  # every claim of a run draws the same
def resample_counts(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap resample: [resamples, prompts] int32, every row sums to
    ``prompts``. Not to be written to."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.int32)
    drawn.setflags(write=False)
    return drawn


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
    z = float(ndtri(power))
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
    standard_error = half_width / normal_quantile(0.05)
    return float((normal_quantile(alpha / tests) + ndtri(power)) * standard_error)


# ---------------------------------------------------------------------------------------- differences of paired sides


def normal_quantile(alpha: float) -> float:
    """The standard normal's two-sided quantile."""
    return -float(ndtri(alpha / 2))


def student_quantile(alpha: float, freedom: float) -> float:
    """Student's two-sided quantile."""
    return -float(stdtrit(freedom, alpha / 2))


def shares_difference(
    shares: tuple[float, float], variances: tuple[float, float], least: tuple[float, float], r: float, z: float
) -> tuple[float, float]:
    """Limits of the second share less the first: Wilson's limits of both, put together.

    ``variances`` are those of the two shares, and say how many trials each is worth; where a share is 0 or 1 and has
    none, it is worth as many as the other, and ``least`` at least. ``r``: the correlation of the two; ``z``: the
    quantile. Newcombe (1998, method 10), as the recovery of variances of Zou and Donner (2008).
    """
    trials = [p * (1 - p) / v if v > 1e-15 and 0 < p < 1 else 0.0 for p, v in zip(shares, variances, strict=True)]
    trials = [one or max(other, n) for one, other, n in zip(trials, trials[::-1], least, strict=True)]
    (p1, p2), ((l1, u1), (l2, u2)) = shares, [wilson_limits(p, n, z) for p, n in zip(shares, trials, strict=True)]

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * r * a * b + b * b, 0.0))

    d = p2 - p1
    return max(-1.0, d - reach(p2 - l2, u1 - p1)), min(1.0, d + reach(u2 - p2, p1 - l1))


def bounded(*values: np.ndarray) -> bool:
    """Are these shares, or at least numbers between 0 and 1?"""
    return all(v.min() >= 0 and v.max() <= 1 for v in values)


def student_mean(
    values: np.ndarray, alpha: float = 0.05, within: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Mean of ``values`` [prompts], one number a prompt, with Student's interval, cut at the ends that the mean can
    have (``within``); as wide as those for a single prompt.

    Resampling prompts would be too sure of few of them: its 95% interval holds the mean of two in half of all cases,
    and that of eight in nine of ten. Raises ValueError for no values.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if not n:
        raise ValueError("no prompts")
    mean = float(values.mean())
    half = student_quantile(alpha, n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, max(within[0], mean - half), min(within[1], mean + half))


def summary_interval(values: np.ndarray, center: str = "mean", alpha: float = 0.05) -> Interval:
    """What one side shows of a measure, one number a prompt: Wilson's interval for shares, worth as many trials as
    their variance says; Student's for other means, that of the pseudo-median (Hodges and Lehmann) for ``center``
    median. Raises ValueError for no values."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) and center == "median":
        return Interval(*hodges_lehmann(values, alpha))
    if not len(values) or not bounded(values):
        return student_mean(values, alpha)
    n, mean = len(values), float(values.mean())
    variance = float(values.var(ddof=1)) / n if n > 1 else 0.0
    trials = mean * (1 - mean) / variance if variance > 1e-15 else n
    z = student_quantile(alpha, n - 1) if n > 1 else normal_quantile(alpha)
    return Interval(mean, *wilson_limits(mean, trials, z))


def paired_mean(base: np.ndarray, changed: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """(mean of changed - base, low, high) over prompts, [prompts] each: as ``shares_difference`` where all values lie
    in [0, 1], else Student's interval."""
    n, d = len(base), changed - base
    mean = float(d.mean())
    if n == 1:
        return mean, -np.inf, np.inf
    z = student_quantile(alpha, n - 1)
    if bounded(base, changed):
        spread = base.std() * changed.std()
        r = float(((base - base.mean()) * (changed - changed.mean())).mean() / spread) if spread > 1e-15 else 0.0
        shares = (float(base.mean()), float(changed.mean()))
        return mean, *shares_difference(shares, (base.var(ddof=1) / n, changed.var(ddof=1) / n), (n, n), r, z)
    return tuple(student_mean(d, alpha))


def hodges_lehmann(d: np.ndarray, alpha: float) -> tuple[float, float, float]:
    """(estimate, low, high) of Hodges and Lehmann (1963): the median of the means of all pairs of differences, each
    with itself too.

    The interval turns round the test whether as many pairs lie above as below. The spread of that count is read from
    the data, as differences need not lie evenly around their middle.
    """
    n, d = len(d), np.sort(d)
    middle = _pair_mean(d, 0.5)
    if n == 1:
        return middle, -np.inf, np.inf
    above = n - np.searchsorted(d, 2 * middle - d, side="right")
    below = np.searchsorted(d, 2 * middle - d, side="left")
    spread = max(float((above - below).std()) / n, 1 / math.sqrt(3))  # 1 / sqrt(3) where they do, without ties
    off = 2 * student_quantile(alpha, n - 1) * spread / math.sqrt(n)
    if off >= 1:
        return middle, -np.inf, np.inf
    return middle, _pair_mean(d, (1 - off) / 2), _pair_mean(d, (1 + off) / 2)


def _pair_mean(d: np.ndarray, share: float) -> float:
    """The quantile of (d_i + d_j) / 2 over all ordered pairs; ``d`` [n] is sorted. Without the n^2 pairs: by
    bisection over how many lie below."""
    rank = share * len(d) ** 2
    low, high = float(d[0]), float(d[-1])
    for _ in range(40):
        middle = (low + high) / 2
        if np.searchsorted(d, 2 * middle - d, side="right").sum() >= rank:
            high = middle
        else:
            low = middle
    partner = np.searchsorted(d, 2 * high - d, side="right") - 1  # a mean of two that are there, not a hair above it
    return float((d + d[partner])[partner >= 0].max() / 2)
