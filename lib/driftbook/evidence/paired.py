"""Tests of many measures at once on a fixed sample of prompts that both sides answered.

Where every verdict is free and read, nothing is gained by the right to stop early, and a fixed sample finds about twice
as much as a bet. If the change did nothing, the two sides of a prompt could be swapped and nothing would look
different. All measures are taken from the same answers, so they are swapped together; how they depend on each other
needs no model.

Two scopes. *Prompts like these*: the unit is the prompt, all its answers are one number a side (``paired_test``).
*These prompts*: the unit is the answer within its prompt, and nothing is said of other prompts
(``within_prompts_test``); for few prompts with many answers each.

Sources: swaps of paired sides, Fisher (1935) and Wilcoxon (1945); false discoveries, Benjamini and Hochberg (1995),
without the tests that no outcome could confirm (Tarone 1990, Gilbert 2005); any false claim, Westfall and Young (1993);
intervals of claims that were selected, Benjamini and Yekutieli (2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from scipy.stats import binom

from driftbook.auc import CHUNK
from driftbook.evidence.intervals import (
    bounded,
    hodges_lehmann,
    paired_mean,
    shares_difference,
    student_quantile,
)
from driftbook.evidence.multiplicity import bh_adjusted
from driftbook.evidence.swaps import joint_p, max_t, swapped, upper_tail
from driftbook.evidence.wins import mean_by

Center = Literal["mean", "median"]
Method = Literal["bh", "max_t"]
FLIPS = 9999  # joint swaps of step-down max-T
FEW = 30  # prompts below which many answers a prompt are read as "these prompts"


@dataclass(frozen=True)
class Paired:
    """What a test found, [hypotheses] each; NaN where nothing was known on both sides.

    ``difference`` is changed minus base in the unit of the measure, with an interval at 1 - alpha, and with
    ``selected_low`` and ``selected_high``, which keep the rate of claims outside their interval at alpha among those
    that were confirmed. ``base`` and ``changed`` are means over prompts, or medians; the difference is then the
    Hodges-Lehmann estimate of the change within a prompt, not the difference of the two medians. ``allowed`` is the
    largest difference, in absolute value, that a test at alpha does not exclude (two one-sided tests).

    ``p`` belongs to the direction that was named, or to both. ``adjusted`` are p-values after the correction, to be
    compared with alpha. ``prompts`` counts those with a value on both sides, ``more`` and ``less`` those whose changed
    side has more or less. ``test`` names how p was computed: "sign" (exact), "swap" and "ranks" (exact for up to 400
    prompts with a difference, else a saddlepoint, a few per cent from it), "within" (random permutations; none is
    smaller than 1 / (1 + permutations)). ``counted`` says which tests could have confirmed anything with this many
    prompts that differ; the others are not corrected for.
    """

    base: np.ndarray
    changed: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    selected_low: np.ndarray
    selected_high: np.ndarray
    allowed: np.ndarray
    p: np.ndarray
    adjusted: np.ndarray
    rejected: np.ndarray
    prompts: np.ndarray
    more: np.ndarray
    less: np.ndarray
    counted: np.ndarray
    test: np.ndarray


def per_prompt(
    values: np.ndarray, prompt: np.ndarray, side: np.ndarray, prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the known values of a prompt's answers, (base, changed), [prompts, hypotheses] each; NaN where none is
    known.

    ``values``: [texts, hypotheses], NaN where missing; ``prompt`` [texts] ids and ``side`` [texts], base or
    intervention; ``prompts``: ids in the order of the result.
    """
    values, prompt, side = np.asarray(values, dtype=np.float64), np.asarray(prompt), np.asarray(side)
    base, changed = (mean_by(values[side == s], prompt[side == s], prompts) for s in ("base", "intervention"))
    return base, changed


def paired_test(
    base: np.ndarray,
    changed: np.ndarray,
    direction: Sequence[int] | np.ndarray,
    alpha: float = 0.05,
    margin: float | np.ndarray = 0.0,
    center: Center | Sequence[Center] = "mean",
    flips: int = FLIPS,
    seed: int = 0,
    method: Method = "bh",
) -> Paired:
    """Which measures differ between the sides, over prompts like these.

    ``base`` and ``changed``: [prompts, hypotheses], one number a prompt (``per_prompt``), NaN where a hypothesis is not
    tested on a prompt. ``direction`` [hypotheses]: 1 where more by the changed side was claimed before looking, -1
    where less, 0 for either. ``margin``: how much larger than nothing a difference must be, in the unit of the measure;
    with 0 the test is exact, else it holds for many prompts. ``center``: what the sentence says, the mean (shares,
    numbers, rates) or the median (sizes, which a few long answers would drag): then ranks of the differences are
    tested.

    With single answers and a measure of yes or no this is the sign test (McNemar's). With differences of several sizes
    it is the mean of the swapped differences by their spread. ``bh`` keeps the expected share of false claims at alpha
    (needs no random numbers), ``max_t`` the chance of any false claim (``flips`` joint swaps drawn from ``seed``).
    Raises ValueError for shapes that disagree and for infinite values.
    """
    base, changed = _known(base, changed)
    h = base.shape[1]
    direction = np.broadcast_to(np.asarray(direction, dtype=np.int64), h)
    margin, centers = np.broadcast_to(np.asarray(margin, dtype=np.float64), h), np.broadcast_to(center, h)
    p, attainable, test = np.full(h, np.nan), np.full(h, np.inf), np.full(h, "", dtype=object)
    weights = np.zeros_like(base)  # what a swap turns the sign of, 0 where nothing is known
    for i in np.flatnonzero(~np.isnan(base).all(axis=0)):
        known = ~np.isnan(base[:, i])
        signs = [int(direction[i])] if direction[i] else [1, -1]
        ranks = bool(centers[i] == "median")
        each = [swapped(base[known, i], changed[known, i], s, float(margin[i]), ranks) for s in signs]
        if not (direction[i] or margin[i]):  # the two tails are one
            each = [w for w in each if w.sum() >= 0][:1]
        tails, names = zip(*map(upper_tail, each), strict=True)
        p[i], test[i] = min(1.0, len(signs) * min(tails)), "ranks" if ranks else names[0]
        attainable[i] = len(signs) * 0.5 ** np.count_nonzero(each[0])
        weights[known, i] = each[0]
    if method == "max_t" and (margin[direction == 0] > 0).any():
        raise ValueError("max_t takes a margin for hypotheses with a direction only")
    counted = attainable <= alpha
    adjusted = np.where(np.isnan(p), np.nan, 1.0)
    if method == "bh":
        adjusted[counted] = bh_adjusted(p[counted])
    else:
        drawn = max_t(weights[:, counted], direction[counted] == 0, flips, seed)
        adjusted[counted] = np.maximum(drawn, p[counted])  # chance may put it a hair below
    interval = partial(paired_interval, base, changed, center=centers)
    return _told(base, changed, centers, interval, alpha, p, adjusted, counted, test)


def paired_interval(
    base: np.ndarray, changed: np.ndarray, alpha: float = 0.05, center: Center | Sequence[Center] = "mean"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(difference, low, high), [hypotheses] each, at level 1 - ``alpha``; arguments as for ``paired_test``.

    Measures all of whose values lie in [0, 1] are shares: Wilson's limits of both sides, put together with the
    correlation of the sides over prompts; they do not shrink to nothing where no answer shows the behaviour. Other
    means have Student's interval over prompts, medians that of the Hodges-Lehmann estimate. Infinite for a single
    prompt, NaN for none.
    """
    base, changed = _known(base, changed)
    out = np.full((3, base.shape[1]), np.nan)
    for i, how in enumerate(np.broadcast_to(center, base.shape[1])):
        known = ~np.isnan(base[:, i])
        b, c = base[known, i], changed[known, i]
        if len(b):
            out[:, i] = hodges_lehmann(c - b, alpha) if how == "median" else paired_mean(b, c, alpha)
    return out[0], out[1], out[2]


def allowed(
    base: np.ndarray, changed: np.ndarray, alpha: float = 0.05, center: Center | Sequence[Center] = "mean"
) -> np.ndarray:
    """The largest difference that the data still allow, [hypotheses], as an absolute value in the unit of the measure.

    It is the further end of the 1 - 2 ``alpha`` interval: that the difference is smaller is confirmed at ``alpha`` (two
    one-sided tests, Schuirmann 1987), for each measure by itself.
    """
    _, low, high = paired_interval(base, changed, 2 * alpha, center)
    return np.maximum(np.abs(low), np.abs(high))


def within_prompts_test(
    values: np.ndarray,
    prompt: np.ndarray,
    side: np.ndarray,
    direction: Sequence[int] | np.ndarray,
    alpha: float = 0.05,
    flips: int = FLIPS,
    seed: int = 0,
    method: Method = "bh",
) -> Paired:
    """Which measures differ between the sides on these very prompts; the unit is the answer within its prompt.

    ``values``: [texts, hypotheses] with NaN where missing, ``prompt`` and ``side`` [texts] as for ``per_prompt``,
    ``direction`` as for ``paired_test``. The statistic is the mean over prompts of the difference of a prompt's means,
    by its standard error from the scatter of answers within prompts and sides; it is compared with what it is after
    the sides were dealt out again within each prompt, for all hypotheses at once, ``flips`` times (more where the
    correction needs it). Sizes are compared by their means here. A prompt counts for a hypothesis where both sides
    have two known answers. Raises ValueError for more than 2,000 prompts: there the prompt is the unit.
    """
    values, prompt = np.asarray(values, dtype=np.float64), np.asarray(prompt)
    changed_side = np.asarray(side) == "intervention"
    if values.ndim != 2 or np.isinf(values).any():
        raise ValueError("values must be [texts, hypotheses], finite or NaN")
    ids, h = np.unique(prompt), values.shape[1]
    if len(ids) > 2000:
        raise ValueError(f"{len(ids)} prompts: use paired_test, whose unit is the prompt")
    either = np.broadcast_to(np.asarray(direction), h) == 0
    sign = np.where(either, 1, direction)
    strata = [_stratum(values[prompt == p], changed_side[prompt == p]) for p in ids]
    used = np.array([s.used for s in strata]).reshape(len(ids), h)
    number = used.sum(axis=0)

    def statistic(labels: list[np.ndarray]) -> np.ndarray:
        total = spread = 0.0
        for stratum, chosen in zip(strata, labels, strict=True):
            means, variances = stratum.moments(chosen)
            total = total + (means[1] - means[0]) * stratum.used
            spread = spread + variances.sum(axis=0) * stratum.used
        t = sign * total / np.sqrt(spread + 1e-12 * scale)
        return np.where(either, np.abs(t), t)

    def blocks() -> Iterator[np.ndarray]:
        rng, step = np.random.default_rng(seed), max(1, CHUNK // max(1, len(values) + 6 * h))
        for start in range(0, draws, step):
            block = min(step, draws - start)
            yield statistic([rng.permuted(np.tile(s.label, (block, 1)), axis=1) for s in strata])

    draws = max(flips, math.ceil(2 * h / alpha))
    scale = np.nan_to_num(np.nanmax(np.abs(values), axis=0, initial=1e-100)) ** 2
    observed = statistic([s.label[None] for s in strata])[0] if len(ids) else np.zeros(h)
    alone, together = joint_p(observed, blocks() if len(ids) else [])
    moments = [s.moments(s.label[None]) for s in strata]
    means, variances = (
        np.array([np.where(s.used, m[k][:, 0], np.nan) for s, m in zip(strata, moments, strict=True)]).reshape(-1, 2, h)
        for k in (0, 1)
    )
    counted = (number > 0) & np.array([s.varies for s in strata]).reshape(len(ids), h).any(axis=0)
    p = np.where(number > 0, np.where(counted, alone, 1.0), np.nan)
    adjusted = np.where(number > 0, 1.0, np.nan)
    adjusted[counted] = bh_adjusted(p[counted]) if method == "bh" else together[counted]

    def interval(level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        out = np.full((3, h), np.nan)
        for i in np.flatnonzero(number):
            rows = used[:, i]
            shares = means[rows, :, i].mean(axis=0)
            spread = variances[rows, :, i].sum(axis=0) / number[i] ** 2
            answers = np.array([s.answers[:, i] for s in strata])[rows].sum(axis=0)
            z = student_quantile(level, max(1, answers.sum() - 2 * number[i]))
            d = shares[1] - shares[0]
            if bounded(values[np.isin(prompt, ids[rows]) & ~np.isnan(values[:, i]), i]):
                out[:, i] = d, *shares_difference(tuple(shares), tuple(spread), tuple(answers), 0.0, z)
            else:
                out[:, i] = d, d - z * math.sqrt(spread.sum()), d + z * math.sqrt(spread.sum())
        return out[0], out[1], out[2]

    centers, test = np.full(h, "mean"), np.where(number > 0, "within", "").astype(object)
    return _told(means[:, 0], means[:, 1], centers, interval, alpha, p, adjusted, counted, test)


class Scope(NamedTuple):
    """What a confirmed claim may be said of, and which scopes these numbers bear."""

    name: Literal["prompts like these", "these prompts"]
    sentence: str
    offered: tuple[str, ...]


def scope_for(prompts: int, samples: int) -> Scope:
    """The scope for ``prompts`` with ``samples`` answers each on a side.

    Fewer than 30 prompts say little of others, however many answers they have; with ten answers a prompt or more they
    say much about themselves.
    """
    which = "this prompt" if prompts == 1 else f"these {prompts} prompts"
    likes = f"holds for prompts like these; asked: {prompts}"
    these = f"holds for {which}, asked {samples} times on a side; nothing is said of other prompts"
    offered = (("prompts like these",) if prompts > 1 else ()) + (("these prompts",) if samples > 1 else ())
    if (samples >= 10 and prompts < FEW) or prompts == 1:
        return Scope("these prompts", these, offered)
    return Scope("prompts like these", likes, offered)


# ------------------------------------------------------------------------------------------------------- before a run


def smallest_seen(
    prompts: int, base_share: float, hypotheses: int = 1, alpha: float = 0.05, power: float = 0.8, either: bool = True
) -> float | None:
    """The least rise of a share that would be confirmed with this ``power``: changed minus base; None where not even
    all answers would do.

    Exact for single answers whose sides are independent given the prompt's share, the sign test, and a claim that
    stands alone among ``hypotheses`` (the first step of Benjamini and Hochberg; beside other real claims somewhat less
    is seen). ``either``: no direction was named. A fall of a share is the rise of its complement. For other measures,
    ``intervals.detectable`` from the width of an interval.
    """

    def enough(rise: float) -> bool:
        return _sign_power(prompts, base_share, base_share + rise, alpha / hypotheses, either) >= power

    if not 0 <= base_share < 1:
        raise ValueError(f"base_share must be in [0, 1), not {base_share}")
    low, high = 0.0, 1.0 - base_share
    if not enough(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def prompts_for(
    base_share: float,
    changed_share: float,
    hypotheses: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
    either: bool = True,
) -> int | None:
    """Prompts with which the sign test confirms this difference of shares; as ``smallest_seen``. None without a
    difference. Power rises in small teeth with the number of prompts, so a prompt more may have a little less."""
    if not (0 <= base_share <= 1 and 0 <= changed_share <= 1):
        raise ValueError(f"shares must lie in [0, 1], not {base_share} and {changed_share}")
    if abs(base_share - changed_share) < 1e-4:
        return None
    few, many = sorted((base_share, changed_share))
    low, high = 0, 1
    while _sign_power(high, few, many, alpha / hypotheses, either) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = _sign_power(middle, few, many, alpha / hypotheses, either) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _sign_power(prompts: int, base: float, changed: float, level: float, either: bool) -> float:
    """P(the exact sign test at ``level`` finds the changed side doing it more)."""
    up, down = changed * (1 - base), base * (1 - changed)
    if up + down == 0:
        return 0.0
    low, high = binom.ppf([1e-12, 1 - 1e-12], prompts, up + down).astype(int)
    differ = np.arange(max(low, 0), high + 1)  # prompts whose sides differ
    enough = binom.isf(level / (1 + either), differ, 0.5)
    found = binom.sf(enough, differ, up / (up + down))
    return float(binom.pmf(differ, prompts, up + down) @ np.where(differ > 0, found, 0.0))


# ------------------------------------------------------------------------------------------------------------- inside


def _known(base: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    base, changed = np.asarray(base, dtype=np.float64), np.asarray(changed, dtype=np.float64)
    if base.ndim != 2 or base.shape != changed.shape:
        raise ValueError(f"base {base.shape} and changed {changed.shape} must both be [prompts, hypotheses]")
    if np.isinf(base).any() or np.isinf(changed).any():
        raise ValueError("values must be finite; NaN says that nothing is known")
    unknown = np.isnan(base) | np.isnan(changed)
    return np.where(unknown, np.nan, base), np.where(unknown, np.nan, changed)


def _told(
    base: np.ndarray, changed: np.ndarray, centers: np.ndarray, interval: Callable[[float], tuple], alpha: float,
    p: np.ndarray, adjusted: np.ndarray, counted: np.ndarray, test: np.ndarray,
) -> Paired:  # fmt: skip
    """``interval`` gives (difference, low, high) at an error level; the other arguments are as in ``Paired``."""
    rejected = adjusted <= alpha
    share = max(1, int(rejected.sum())) / max(1, int(counted.sum()))
    difference, low, high = interval(alpha)
    _, selected_low, selected_high = interval(alpha * share)
    _, least, most = interval(2 * alpha)
    sides = [np.full(len(p), np.nan), np.full(len(p), np.nan)]
    some = ~np.isnan(base).all(axis=0)
    for values, side in zip((base[:, some], changed[:, some]), sides, strict=True):
        if some.any():
            side[some] = np.where(centers[some] == "median", np.nanmedian(values, axis=0), np.nanmean(values, axis=0))
    d = changed - base
    known, more, less = (x.sum(axis=0) for x in (~np.isnan(d), d > 1e-12, d < -1e-12))
    still = np.maximum(np.abs(least), np.abs(most))
    intervals = (difference, low, high, selected_low, selected_high, still)
    return Paired(*sides, *intervals, p, adjusted, rejected, known, more, less, counted, test)


@dataclass(frozen=True)
class _Stratum:
    """The answers to one prompt: ``both`` [texts, 3 h] are values, squares and which are known; ``label`` [texts] is 1
    on the changed side."""

    label: np.ndarray
    both: np.ndarray
    answers: np.ndarray  # [2, h] known ones, base and changed
    used: np.ndarray  # [h] booleans: two known answers or more on both sides
    varies: np.ndarray  # [h] booleans

    def moments(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(means, variances of the means), [2, draws, h] each, for ``labels`` [draws, texts]."""
        changed = labels @ self.both
        out = []
        for sums in (self.both.sum(axis=0) - changed, changed):
            total, squares, n = np.split(sums, 3, axis=-1)
            mean = total / np.maximum(n, 1)
            out.append((mean, np.maximum(squares - mean * total, 0.0) / np.maximum(n * (n - 1), 1)))
        return np.array([m for m, _ in out]), np.array([v for _, v in out])


def _stratum(values: np.ndarray, changed: np.ndarray) -> _Stratum:
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    answers = np.array([known[~changed].sum(axis=0), known[changed].sum(axis=0)])
    middle = filled.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    varies = (np.abs(np.where(known, values - middle, 0.0)) > 1e-12 * np.maximum(1.0, np.abs(middle))).any(axis=0)
    both = np.concatenate([filled, filled**2, known], axis=1).astype(np.float64)
    return _Stratum(changed.astype(np.float64), both, answers, (answers >= 2).all(axis=0), varies)
