"""What each side's texts are made of: the share of every cluster on both sides, and how sure the difference is.

The unit is the prompt. Texts are counted once into ``[prompts, clusters, sides]``, weighted by 1 / propensity, and
every interval and p-value is a matrix product with weights or signs of prompts.

A text tells more than the side that wrote it: how likely either side was to write it. Where both were about as likely,
which of them did is a coin that was tossed, and counting it adds chance alone. With the log-ratio of the two
likelihoods every text counts for both sides, in proportion: the same shares on average, with less chance in them, the
less the nearer the models (the balance heuristic of Veach and Guibas 1995; the Rao-Blackwellized count of sides).

A change that shows in one family of prompts is drowned when all prompts are added up: their texts bring chance and no
difference. So the test looks at the sum over all prompts and at each family, and pays for having looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from driftbook.evidence.intervals import resample_counts
from driftbook.evidence.multiplicity import bh_adjusted
from driftbook.prompts import SIDES

CELLS_PER_BLOCK = 8_000_000  # floats of one block of resampled sums


@dataclass(frozen=True)
class Counts:
    """Texts summed by prompt, cluster and side.

    ``weighted`` float64 ``[prompts, clusters, 2]`` holds sums of 1 / propensity, base then intervention (estimates of
    them from likelihoods may fall a little below zero). Its cluster axis follows ``clusters`` (-1, noise, first where
    there is any). ``texts`` and ``prompts`` ``[clusters]`` are plain counts. ``family`` int ``[prompts]`` numbers the
    family of each prompt in ``families``.
    """

    weighted: np.ndarray
    clusters: np.ndarray
    texts: np.ndarray
    prompts: np.ndarray
    family: np.ndarray
    families: tuple[str, ...]


@dataclass(frozen=True)
class Composition:
    """Arrays ``[clusters]``, in the order of ``counts.clusters``; ``difference`` is intervention minus base.

    ``low`` and ``high`` bound the difference at 95%. ``p`` asks whether the sides differ over all prompts or inside a
    family, two-sided; ``q`` is that after Benjamini and Hochberg. ``where`` names the family whose difference stands
    out most, "" where that is the difference over all prompts, and ``there`` is the difference of shares at that place.
    ``global_p`` asks whether the two sides differ in any cluster: the strongest of them against its own permutations.
    """

    counts: Counts
    share_base: np.ndarray
    share_intervention: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    q: np.ndarray
    where: np.ndarray
    there: np.ndarray
    global_p: float
    resamples: int
    permutations: int


def count(
    prompts: Sequence[str],
    labels: np.ndarray,
    sides: Sequence[str],
    propensity: np.ndarray | None = None,
    families: Sequence[str] | None = None,
    log_ratio: np.ndarray | None = None,
) -> Counts:
    """Sum the texts by prompt, cluster and side.

    ``log_ratio`` ``[n]``: log-likelihood of each text under the intervention minus that under the base, as they sample;
    infinite where one of them never writes it. Without it a text counts for the side that wrote it.

    ``propensity`` is the chance of each text under the sampling design, 1 where it is not given; ``families`` names the
    family of each text's prompt, one family where it is not given. Raises ValueError for a side that is neither base
    nor intervention, for a propensity that is not positive, and, with ``log_ratio``, for one that is missing and for a
    prompt whose sides have unequal numbers of texts.
    """
    labels = np.asarray(labels)
    sides = np.asarray(sides, dtype=str)
    unknown = set(np.unique(sides)) - set(SIDES)
    if unknown:
        raise ValueError(f"sides {sorted(unknown)} are neither base nor intervention")
    chance = np.ones(len(labels)) if propensity is None else np.asarray(propensity, dtype=np.float64)
    if not (np.isfinite(chance).all() and (chance > 0).all()):
        raise ValueError("a propensity must be positive: a text that could not have been drawn cannot be weighted")
    clusters, column = np.unique(labels, return_inverse=True)
    names, first, unit = np.unique(np.asarray(prompts, dtype=str), return_index=True, return_inverse=True)
    kinds = np.full(len(labels), "") if families is None else np.asarray(families, dtype=str)
    kinds, family = np.unique(kinds[first], return_inverse=True)
    side = (sides == "intervention").astype(np.int64)
    shape = (len(names), len(clusters), 2)
    cell = (unit * len(clusters) + column) * 2 + side
    number = int(np.prod(shape))
    weighted = np.bincount(cell, 1 / chance, minlength=number).reshape(shape)
    if log_ratio is not None:
        told = np.tanh(np.asarray(log_ratio, dtype=np.float64) / 2)
        if np.isnan(told).any():
            raise ValueError(f"{int(np.isnan(told).sum())} texts have no log_ratio: score all of them, or none")
        plain = np.bincount(cell, minlength=number).reshape(shape)
        half = _told_halves(plain, np.bincount(cell, told, minlength=number).reshape(shape))
        # what a text of the prompt weighs
        scale = weighted.sum(axis=(1, 2)) / plain.sum(axis=(1, 2))
        middle = weighted.sum(axis=2) / 2
        weighted = np.stack([middle - scale[:, None] * half, middle + scale[:, None] * half], axis=2)
    present = (weighted.sum(axis=2) > 1e-12).sum(axis=0)
    texts = np.bincount(column, minlength=len(clusters))
    return Counts(weighted, clusters, texts, present, family, tuple(kinds.tolist()))


def _told_halves(plain: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Half of (intervention - base) ``[prompts, clusters]``, in texts, from what likelihoods tell about the side.

    ``plain`` ``[prompts, clusters, 2]`` counts the texts that each side wrote, ``told`` sums their t = tanh(log ratio /
    2) = P(intervention | text) - P(base | text). Over n texts of both sides, sum_k t_k 1[text k in c] has the mean
    n (q_c - p_c), as the count of sides has, and no more variance.

    Sums of t that differ from zero by chance would still move all clusters of the prompt together. So t_k counts the
    cluster less a guess at its share that text k has no part in: that among the other texts of the prompt, either side
    as much, shrunk to that of the other prompts. Sum_k t_k has the mean zero, and so has what is taken off. Where every
    text gives its side away (t = -1, 1), what is left is the plain count.
    """
    n = plain.sum(axis=1)
    if (n[:, 0] != n[:, 1]).any():
        raise ValueError("with log_ratio every prompt needs as many texts of either side")
    texts = n[:, :1].astype(np.float64)
    all_told = told.sum(axis=1)
    others = np.maximum(texts - 1, 1)
    inside = np.zeros(plain.shape[:2])
    for side in (0, 1):
        own, other, t = plain[:, :, side], plain[:, :, 1 - side], all_told[:, side, None]
        inside += ((t * own - told[:, :, side]) / others + t * other / texts) / 2
    both = plain.sum(axis=2)
    elsewhere = (both.sum(axis=0) - both) / np.maximum(both.sum() - both.sum(axis=1, keepdims=True), 1)
    trust = (texts - 1) / (texts + 1)
    guess = trust * inside + (1 - trust) * all_told.sum(axis=1, keepdims=True) * elsewhere
    return (told.sum(axis=2) - guess) / 2


def compare(counts: Counts, *, resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Composition:
    """Shares per side, their difference, intervals and p-values.

    A share is the weighted sum of a cluster's texts over that of all texts of the side (Hajek's ratio), so unequal
    propensities leave it unbiased. Intervals: prompts drawn with replacement, percentiles of the difference. p: the
    sides swapped within randomly chosen prompts, which under no difference changes nothing but chance; there are at
    least 40 permutations a cluster, so that the smallest p can survive the correction.

    What is compared with its permutations is the larger of z^2 / 2 over all prompts and, where there are several
    families, the largest z^2 / 2 - log(families) inside one: about the smallest of their log p-values, after Bonferroni
    (weights as in Genovese, Roeder and Wasserman 2006). Any statistic of swapped sides gives a valid p; this one finds
    what moves in one family alone with a fraction of the texts, and hardly loses what moves everywhere. Counts by
    likelihood are symmetric under swapping where texts of a cluster are worded no further from the others than by
    chance; elsewhere their mean is still zero where shares are equal, and p holds as prompts become many.

    Raises ValueError when a side is empty or there is one prompt.
    """
    weighted = counts.weighted
    n, clusters, _ = weighted.shape
    if n < 2:
        raise ValueError("composition needs texts of two prompts or more")
    base, changed = weighted[:, :, 0], weighted[:, :, 1]
    if not base.sum() or not changed.sum():
        raise ValueError("composition needs texts of both sides")
    observed = _shares(changed.sum(axis=0)) - _shares(base.sum(axis=0))
    step = max(1, CELLS_PER_BLOCK // max(n, 2 * clusters))
    drawn = np.empty((resamples, clusters))
    weights = resample_counts(n, resamples, seed)
    for start in range(0, resamples, step):
        block = weights[start : start + step].astype(np.float64)
        drawn[start : start + step] = _shares(block @ changed) - _shares(block @ base)
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)

    permutations = max(resamples, 40 * clusters)
    parts = _parts(counts)
    step = max(1, CELLS_PER_BLOCK // max(n, 4 * clusters * (1 + len(parts))))
    scores, differences = _strength(np.ones((1, n)), parts)
    at = scores[:, 0].argmax(axis=0)
    strongest = scores[:, 0].max(axis=0)
    beyond = np.zeros(clusters)
    rng = np.random.default_rng([seed, 1])
    anywhere = strongest.max()
    anywhere_beyond = 0
    # ties count as beyond; without the slack, rounding would decide them
    slack = 1e-9 * max(1.0, float(anywhere))
    for start in range(0, permutations, step):
        signs = rng.choice(np.array([-1.0, 1.0]), size=(min(step, permutations - start), n))
        swapped = _strength(signs, parts)[0].max(axis=0)
        beyond += (swapped >= strongest - slack).sum(axis=0)
        anywhere_beyond += int((swapped.max(axis=1) >= anywhere - slack).sum())
    p = (1 + beyond) / (1 + permutations)
    names = np.array(["", *counts.families], dtype=object)
    return Composition(
        counts=counts,
        share_base=_shares(base.sum(axis=0)),
        share_intervention=_shares(changed.sum(axis=0)),
        difference=observed,
        low=low,
        high=high,
        p=p,
        q=bh_adjusted(p),
        where=names[at],
        there=differences[at, 0, np.arange(clusters)],
        global_p=(1 + anywhere_beyond) / (1 + permutations),
        resamples=resamples,
        permutations=permutations,
    )


@dataclass(frozen=True)
class _Part:
    """The prompts ``rows`` of one family: sums ``middle`` ``[clusters]`` and half differences ``half`` ``[rows,
    clusters]``."""

    rows: np.ndarray
    middle: np.ndarray
    half: np.ndarray


def _parts(counts: Counts) -> list[_Part]:
    """One part a family; together they are all prompts."""
    parts = []
    for family in range(len(counts.families)):
        rows = np.flatnonzero(counts.family == family)
        base, changed = counts.weighted[rows, :, 0], counts.weighted[rows, :, 1]
        parts.append(_Part(rows, (base + changed).sum(axis=0) / 2, (changed - base) / 2))
    return parts


def _strength(signs: np.ndarray, parts: list[_Part]) -> tuple[np.ndarray, np.ndarray]:
    """(score, difference of shares) ``[1 + families, permutations, clusters]``: all prompts first. With one family, it
    is all prompts and not looked at twice.

    z is the difference of shares by its scatter under swapping; a cluster that no swap changes has none, and score 0.
    """
    swings = [signs[:, part.rows] @ part.half for part in parts]
    squares = [(part.half**2).sum(axis=0) for part in parts]
    everywhere = (sum(swings), sum(part.middle for part in parts), sum(squares))
    inside = list(zip(swings, (part.middle for part in parts), squares, strict=True)) if len(parts) > 1 else []
    scores, differences = [], []
    for number, (swing, middle, square) in enumerate([everywhere, *inside]):
        difference = np.nan_to_num(_shares(middle + swing) - _shares(middle - swing))
        scatter = np.where(square > 0, np.sqrt(square), np.inf) / max(middle.sum(), 1e-300)
        score = (difference / 2 / scatter) ** 2 / 2
        scores.append(np.maximum(score - np.log(len(parts)), 0) if number else score)
        differences.append(difference)
    return np.stack(scores), np.stack(differences)


def _shares(sums: np.ndarray) -> np.ndarray:
    """Along the last axis; NaN where a draw holds no text of the side."""
    with np.errstate(invalid="ignore"):
        return sums / sums.sum(axis=-1, keepdims=True)
