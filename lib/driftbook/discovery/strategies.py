"""Where the next texts come from: each strategy turns what is known after a round into the texts to ask for next.

All of them add the same number of samples on both sides, and only to prompts of the discover split: screen and validate
prompts keep their fixed uniform design, so that what is tested there was not chosen by what was found. Equal numbers on
both sides also keep a test by swapping the sides of a prompt fair, so a side is never sampled more than the other.

``exhaustive``, ``uniform`` and ``screened`` fix the share of every prompt before a text is read. ``active`` reads the
texts between rounds (see ``look``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import isotonic_regression
from scipy.stats import norm

from driftbook.discovery import clustering, groups
from driftbook.discovery.embeddings import Embed
from driftbook.discovery.segments import PLACES, segments
from driftbook.errors import BudgetError
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.prompts import PromptSet

DEFENSIVE = 0.3  # of the texts of an active round, the share that is spread as the screen alone would spread it
LEVEL = 0.05  # at which a cluster counts as different, over all clusters together
TEXTS_PER_CLUSTER = 20  # fewer clusters than asked for while there are few texts
SHARES = (0.01, 0.03, 0.1, 0.3)  # of cells (stratum x cluster) that may differ
EFFECTS = (0.05, 0.1, 0.2, 0.4, 0.8)  # by how many standard deviations of one text


@dataclass(frozen=True)
class Ask:
    """One text to be decoded: which prompt (index in the set), which sample of it, and why it is asked for."""

    prompt: int
    sample: int
    round: int
    propensity: float = 1.0


@dataclass(frozen=True)
class State:
    """What is known when a round is planned. ``texts`` and ``divergence`` are the tables of the decode stage so far.

    ``active`` reads the texts: by ``embed`` they become vectors, and ``clusters`` is how many groups it looks for
    ("auto": as many as the texts show). With ``segments`` it groups sentences by their place, at most so many an
    answer; without, whole answers.
    """

    prompts: PromptSet
    texts: pd.DataFrame
    divergence: pd.DataFrame | None
    seed: int
    round: int
    rounds: int
    embed: Embed
    clusters: int | Literal["auto"] = 40
    segments: int | None = None


def first_round(prompts: PromptSet, samples: int, max_texts: int) -> list[Ask]:
    """Round 0: the same number of samples for every prompt of every split (per side).

    Raises:
        BudgetError: the budget does not even hold this.
    """
    need = 2 * samples * len(prompts.prompts)
    if need > max_texts:
        raise BudgetError(
            f"decode.sampling.max_texts {max_texts} is less than the {need} texts of the first round "
            f"({len(prompts.prompts)} prompts x "
            f"{samples} samples x 2 sides); raise it, or lower decode.samples or decode.max_prompts"
        )
    return [Ask(i, s, 0) for i in range(len(prompts.prompts)) for s in range(samples)]


def plan_round(sampling: SamplingParams, state: State, budget: int) -> list[Ask]:
    """The texts of the next round, at most ``budget`` per side; empty when there is nothing left to ask for.

    Under ``active`` it is also empty once the quality that was asked for is reached.
    """
    if budget < 1:
        return []
    discover = [i for i, s in enumerate(state.prompts.splits) if s == "discover"]
    if not discover:
        return []
    if sampling.strategy == "active":
        view = look(sampling, state, discover, budget)
        if view.quality >= sampling.quality:
            return []
        weight = view.weight
    else:
        weight = weights(sampling, state, discover)
    share = budget if sampling.strategy == "exhaustive" else math.ceil(budget / (state.rounds - state.round + 1))
    return asks(state, allocate(weight, share, state), discover)


def quality(sampling: SamplingParams, state: State) -> float:
    """The share of conclusions about clusters that are expected to stand when the rest of the budget is spent.

    NaN under a strategy that does not read the texts.
    """
    discover = [i for i, s in enumerate(state.prompts.splits) if s == "discover"]
    if sampling.strategy != "active" or not discover:
        return float("nan")
    return look(sampling, state, discover, left=(sampling.max_texts - len(state.texts)) // 2).quality


def weights(sampling: SamplingParams, state: State, discover: list[int]) -> np.ndarray:
    """Relative number of samples that each discover prompt should have when the budget is spent, before any text is
    read; ``[prompts]``.
    """
    if sampling.strategy in ("exhaustive", "uniform") or state.divergence is None:
        return np.ones(len(discover))
    propensity = state.divergence.set_index("prompt_id").propensity
    ids = [state.prompts.prompts[i].prompt_id for i in discover]
    return propensity.reindex(ids).fillna(1.0).to_numpy(float)


def allocate(weight: np.ndarray, budget: int, state: State) -> np.ndarray:
    """Whole numbers of samples with the given expectation: the fraction is settled by one seeded systematic draw.

    Every prompt's expected share is exactly proportional to its weight, so inverse propensities are unbiased.
    """
    expected = budget * weight / weight.sum()
    rng = np.random.default_rng(stream_seed("strategy", state.seed, state.round) % 2**32)
    order = rng.permutation(len(weight))
    edges = np.floor(np.concatenate([[0.0], np.cumsum(expected[order])]) + rng.random()).astype(int)
    out = np.zeros(len(weight), int)
    out[order] = np.diff(edges)
    return out


def asks(state: State, counts: np.ndarray, discover: list[int]) -> list[Ask]:
    """Requests for that many further samples of each discover prompt, numbered on from those it has."""
    have = state.texts[state.texts.side == "base"].groupby("prompt_id").size()
    out = []
    for i, n in zip(discover, counts, strict=True):
        first = int(have.get(state.prompts.prompts[i].prompt_id, 0))
        out += [Ask(i, first + k, state.round) for k in range(int(n))]
    return out


def propensities(texts: pd.DataFrame) -> np.ndarray:
    """How often a text's prompt was sampled on its side, relative to the prompt sampled most in that split.

    Weighting texts by the inverse makes every prompt count once, however the rounds spread the budget.
    """
    n = texts.groupby(["split", "side", "prompt_id"]).text_id.transform("size")
    most = n.groupby(texts.split).transform("max")
    return (n / most).to_numpy(float)


# --------------------------------------------------------------------------------------------------------------- active


@dataclass(frozen=True)
class View:
    """What ``active`` makes of the texts so far.

    ``weight`` ``[prompts]``: relative number of further samples, positive. ``open`` ``[clusters]``: the chance that the
    rest of the budget turns the conclusion about a cluster round. ``quality``: the share of conclusions that are
    expected to stand when it is spent, 1 - mean of ``open``. ``z`` ``[clusters]``: how far the sides differ over all
    prompts.
    """

    weight: np.ndarray
    open: np.ndarray
    quality: float
    z: np.ndarray


@dataclass(frozen=True)
class Tally:
    """Texts so far by prompt, cluster and side: ``sums`` ``[prompts, clusters, 2]`` of soft memberships, and
    ``squares`` of them.

    ``texts`` ``[prompts]`` counts the texts of one side; both have as many.
    """

    sums: np.ndarray
    squares: np.ndarray
    texts: np.ndarray


def look(sampling: SamplingParams, state: State, discover: list[int], left: int) -> View:
    """Group the texts so far, or their sentences, and weigh the prompts; ``left`` texts a side are still to be
    spent."""
    texts = state.texts[state.texts.split == "discover"].reset_index(drop=True)
    ids = [state.prompts.prompts[i].prompt_id for i in discover]
    families = [state.prompts.prompts[i].family for i in discover]
    js = None
    if state.divergence is not None and state.divergence.js.notna().any():
        js = state.divergence.set_index("prompt_id").js.reindex(ids).to_numpy(float)
    belongs = _belongs(texts, state)
    number = {p: i for i, p in enumerate(ids)}
    unit = texts.prompt_id.map(number).to_numpy(int)
    found = tally(unit, (texts.side == "intervention").to_numpy(), belongs, len(ids))
    return weigh(found, families, js, weights(sampling, state, discover), left)


def _belongs(texts: pd.DataFrame, state: State) -> np.ndarray:
    """Probability ``[texts, groups]`` that a text lies in each cluster, or that it holds a sentence of each group (one
    less that none of its sentences does)."""
    rounds = texts["round"].to_numpy()
    if state.segments is None:
        vectors = state.embed(texts.text.tolist())
        return memberships(vectors, warm_centres(vectors, rounds, state.clusters, state.seed))
    said = {p.prompt_id: p.said() for p in state.prompts.prompts}
    names = [str(i) for i in range(len(texts))]
    table = segments(names, texts.text.tolist(), state.segments)
    vectors = groups.embedded(table, {i: said[p] for i, p in zip(names, texts.prompt_id, strict=True)}, state.embed)
    row, parts = table["text_id"].astype(int).to_numpy(), []
    for place in PLACES:
        here = np.flatnonzero(table["place"] == place)
        first = here[rounds[row[here]] == rounds.min()]
        if len(first) < 2 * TEXTS_PER_CLUSTER or len(np.unique(clustering.row_keys(vectors[first]))) < 3:
            continue
        own = memberships(vectors[here], warm_centres(vectors[here], rounds[row[here]], state.clusters, state.seed))
        none = np.zeros((len(texts), own.shape[1]))
        np.add.at(none, row[here], np.log1p(-np.minimum(own.astype(np.float64), 1 - 1e-9)))
        parts.append(-np.expm1(none))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(texts), 1))


def warm_centres(vectors: np.ndarray, rounds: np.ndarray, clusters: int | str, seed: int) -> np.ndarray:
    """Centres ``[k, d]``: k-means of the first round's texts, moved by those of later rounds (``clustering.update``);
    once those have drifted away, k-means over all texts from there."""
    first = vectors[rounds == rounds.min()]
    if clusters != "auto":
        clusters = max(2, min(clusters, len(first) // TEXTS_PER_CLUSTER, len(np.unique(clustering.row_keys(first)))))
    fitted = clustering.fit("minibatch_kmeans", first, clusters, seed)
    if len(first) == len(vectors):
        return fitted.centres
    later = clustering.update(fitted, vectors[rounds != rounds.min()])
    if not later.refit:
        return later.state.position
    return clustering.fit("minibatch_kmeans", vectors, fitted.k, seed, warm_start=fitted.centres).centres


def memberships(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Probability ``[n, k]`` that a text belongs to each cluster: near 1 and 0, but divided where its margin is small.

    The posterior of a mixture of equal spherical normals (soft k-means, MacKay 2003, ch. 22). Their variance is that of
    the residuals per dimension that they really use: the participation ratio tr(C)^2 / tr(C^2) of their covariance.
    """
    square = np.maximum((vectors**2).sum(1)[:, None] - 2 * vectors @ centres.T + (centres**2).sum(1)[None], 0)  # [n, k]
    residual = vectors - centres[square.argmin(1)]
    covariance = residual.T @ residual / len(residual)
    variance = float((covariance**2).sum() / max(np.trace(covariance), 1e-12))
    logit = (square.min(1, keepdims=True) - square) / (2 * max(variance, 1e-12))
    out = np.exp(logit)
    return out / out.sum(1, keepdims=True)


def tally(unit: np.ndarray, changed: np.ndarray, belongs: np.ndarray, prompts: int) -> Tally:
    """Sum memberships ``[n, k]`` by prompt number ``unit`` ``[n]`` and side (``changed``: is of the intervention)."""
    rows = sparse.csr_matrix((np.ones(len(unit)), (unit * 2 + changed, np.arange(len(unit)))), (2 * prompts, len(unit)))
    shape = (prompts, 2, belongs.shape[1])
    sums, squares = (np.asarray(rows @ b).reshape(shape).transpose(0, 2, 1) for b in (belongs, belongs**2))
    return Tally(sums, squares, np.bincount(unit, minlength=prompts) / 2)


def weigh(
    found: Tally,
    families: Sequence[str],
    js: np.ndarray | None,
    screened: np.ndarray,
    left: int,
    defensive: float = DEFENSIVE,
) -> View:
    """How many further samples each prompt should have, relative to the others.

    The rule is Neyman's (1934): texts in proportion to the size of what they measure, here the difference between the
    sides that a prompt may still contribute to conclusions that are open,

        weight_i = (1 - defensive) a_i / mean(a) + defensive screened_i / mean(screened)
        a_i^2    = h_i sum_c open_ic E[xi_ic^2 | texts of other prompts]

    with xi_ic the difference in cluster c per standard deviation of a text. ``open_ic`` is the predictive probability
    (Spiegelhalter, Freedman and Blackburn 1986) that the rest of the budget changes the verdict on c, over all prompts
    or in the prompt's family. E[xi^2] is shared
    by the prompts of a stratum, a family above or below the median divergence, under a two-groups prior (Efron 2008:
    most cells differ by nothing, some by a normal amount) whose two parameters are averaged over their likelihood: a
    cell that has hardly been looked at keeps its prior, one that was looked at in vain loses it. ``h_i`` is how much
    divergence says about a prompt, to the extent that the texts so far bear it out (``_told_by_screen``).

    The second term is a defensive mixture (Hesterberg 1995): whatever the texts suggest, every prompt keeps a share of
    what ``screened`` ``[prompts]``, the propensities of the screen with their floor, would give it. A prompt's own
    texts take part in none of the factors, save through the parameters of the prior that all cells share. So the number
    of its samples hardly depends on what they said, and the mean over its texts stays unbiased. Everything is symmetric
    in the sides: a choice does not depend on which of them did something more.
    """
    n = found.texts
    difference = found.sums[:, :, 1] - found.sums[:, :, 0]
    family = np.unique(np.asarray(families, dtype=str), return_inverse=True)[1]
    variance = _variance(found, family)
    stratum = 2 * family
    if js is not None:
        stratum = stratum + (js > np.nanmedian(js))
    z, still_open, open_to_others = _open(difference, n, variance[family], family, left)
    effect = _effect(difference, n, stratum, variance.repeat(2, axis=0))
    a = np.sqrt(np.maximum(_told_by_screen(found, js) * (effect * open_to_others).sum(1), 0))
    weight = screened / screened.mean()
    if a.sum() > 0:
        weight = (1 - defensive) * a / a.mean() + defensive * weight
    return View(weight, still_open, float(1 - still_open.mean()), z)


def _variance(found: Tally, family: np.ndarray) -> np.ndarray:
    """Variance ``[families, clusters]`` of the difference between one text of each side, when the sides do not
    differ.
    """
    families = int(family.max()) + 1
    both, squares = found.sums.sum(2), found.squares.sum(2)
    total = 2 * found.texts.sum()
    overall = both.sum(0) / total
    # soft memberships vary less than zeros and ones would
    softness = (squares.sum(0) / total - overall**2) / np.maximum(overall * (1 - overall), 1e-12)
    inside = np.zeros((families, both.shape[1]))
    np.add.at(inside, family, both)
    texts = 2 * np.bincount(family, found.texts, minlength=families)[:, None]
    # two texts of the overall mixture beside those of the family: a cell without texts has a variance too
    share = (inside + 2 * overall) / (texts + 2)
    return np.maximum(2 * share * (1 - share) * np.clip(softness, 0.05, 1), 1e-9)


def _open(
    difference: np.ndarray, n: np.ndarray, variance: np.ndarray, family: np.ndarray, left: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(z ``[clusters]`` over all prompts, chance that the verdict on each changes when ``left`` more texts a side are
    read, the same ``[prompts, clusters]`` as far as each prompt's own texts have no part in it and could change it).

    A cluster counts as different, as in ``composition.compare``, by its z over all prompts or by that inside a family.
    Predictive under a flat prior: with the share t of the texts at hand, a final z is normal around z / sqrt(t) with
    variance (1 - t) / t; the places are taken as independent. The bars hold over all clusters together (Bonferroni:
    no prompt's texts move them).
    """
    t = n.sum() / (n.sum() + max(left, 1))
    families = int(family.max()) + 1
    bar = float(norm.isf(LEVEL / difference.shape[1] / 4))
    high = float(np.sqrt(bar**2 + 2 * np.log(families))) if families > 1 else np.inf

    def ends_beyond(z: np.ndarray, bar: float) -> np.ndarray:
        middle, scatter = z / np.sqrt(t), np.sqrt((1 - t) / t)
        return np.clip(norm.sf((bar - middle) / scatter) + norm.cdf((-bar - middle) / scatter), 0, 1 - 1e-12)

    def size(total: np.ndarray, square: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return np.abs(total) / np.sqrt(np.maximum(np.maximum(square, expected), 1e-12))

    expected = n[:, None] * variance
    sums = np.zeros((3, families, difference.shape[1]))
    for table, values in zip(sums, (difference, difference**2, expected), strict=True):
        np.add.at(table, family, values)
    everywhere, inside = size(*sums.sum(axis=1)), size(*sums)
    own = np.stack([difference, difference**2, expected])
    z = size(*(sums.sum(axis=1)[:, None] - own))  # [prompts, clusters], without the prompt
    z_inside = size(*(sums[:, family] - own))

    misses = np.log1p(-ends_beyond(inside, high))
    chance = 1 - (1 - ends_beyond(everywhere, bar)) * np.exp(misses.sum(axis=0))
    differs = (everywhere >= bar) | (inside >= high).any(axis=0)
    beyond = (inside >= high).astype(int)
    elsewhere = (beyond.sum(axis=0) - beyond)[family] > 0
    may_find = 1 - (1 - ends_beyond(z, bar)) * (1 - ends_beyond(z_inside, high))
    may_lose = (1 - may_find) * np.exp((misses.sum(axis=0) - misses)[family])
    others = np.where((z >= bar) | (z_inside >= high) | elsewhere, may_lose, may_find)
    return everywhere, np.where(differs, 1 - chance, chance), others


def _effect(difference: np.ndarray, n: np.ndarray, stratum: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E[xi^2] ``[prompts, clusters]`` given the texts of the other prompts of the stratum, averaged over the prior's
    parameters.
    """
    strata = len(variance)
    sums = np.zeros_like(variance)
    np.add.at(sums, stratum, difference)
    texts = np.bincount(stratum, n, minlength=strata)
    z = sums / np.sqrt(np.maximum(texts, 1e-9)[:, None] * variance)
    likelihood = []
    grid = [(share, effect) for share in SHARES for effect in EFFECTS]
    for share, effect in grid:
        slab = 1 + texts[:, None] * effect**2
        none = np.log(1 - share) - z**2 / 2
        some = np.log(share) - z**2 / 2 / slab - np.log(slab) / 2
        likelihood.append(np.logaddexp(none, some).sum())
    trust = np.exp(np.array(likelihood) - max(likelihood))
    trust /= trust.sum()
    others = np.maximum(texts[stratum] - n, 0)[:, None]
    rest = (sums[stratum] - difference) / np.sqrt(np.maximum(others, 1e-9) * variance[stratum])
    rest[others[:, 0] <= 0] = 0
    out = np.zeros_like(difference)
    for (share, effect), weight in zip(grid, trust, strict=True):
        if weight < 1e-6:
            continue
        slab = 1 + others * effect**2
        odds = share / (1 - share) / np.sqrt(slab) * np.exp(np.minimum(rest**2 / 2 * (1 - 1 / slab), 500))
        mean_square = rest**2 * others * effect**4 / slab**2
        out += weight * odds / (1 + odds) * (mean_square + effect**2 / slab)
    return out


def _told_by_screen(found: Tally, js: np.ndarray | None) -> np.ndarray:
    """Relative size ``[prompts]`` of squared differences as divergence predicts it, mean 1.

    An isotonic regression on JS of the unbiased estimates of sum_c (p_1c - p_0c)^2 that prompts with two texts a side
    give: it finds thresholds, and where divergence is only wording it comes out flat. Each half of the prompts is
    predicted from the other half. While there are no such prompts, JS itself.
    """
    n = found.texts
    if js is None or not np.isfinite(js).any() or not np.nanmax(js) > 0:
        return np.ones(len(n))
    x = np.where(np.isfinite(js), js, np.nanmean(js))
    x = x / x.mean()
    # (sum^2 - sum of squares) / n (n - 1) is unbiased for p^2
    own = (found.sums**2 - found.squares).sum((1, 2)) / np.maximum(n * (n - 1), 1)
    cross = (found.sums[:, :, 0] * found.sums[:, :, 1]).sum(1) / np.maximum(n, 1) ** 2
    order = np.argsort(x, kind="stable")
    out = np.zeros(len(n))
    for half in (0, 1):
        told = order[half::2]
        seen = order[1 - half :: 2]
        seen = seen[n[seen] >= 2]
        if len(seen) < 2:
            return x
        fitted = isotonic_regression((own - 2 * cross)[seen], weights=n[seen] - 1).x
        out[told] = np.interp(x[told], x[seen], np.maximum(fitted, 0))
    return out / out.mean() if out.sum() > 0 else x
