"""Shares per side: planted differences are found, no difference is not, and unequal propensities bias nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from driftbook.discovery.composition import Counts, compare, count


def texts(rng, prompts, samples, shift, clusters=5, spread=1.0):
    """(prompt, label, side) of texts whose prompts have habits of their own; the changed side moves ``shift`` of its
    texts to cluster 0."""
    habits = rng.dirichlet(np.full(clusters, spread), size=prompts)
    rows = []
    for prompt in range(prompts):
        for side in ("base", "intervention"):
            labels = rng.choice(clusters, size=samples, p=habits[prompt])
            if side == "intervention":
                labels[rng.random(samples) < shift] = 0
            rows += [(str(prompt), int(label), side) for label in labels]
    prompt, label, side = zip(*rows, strict=True)
    return np.array(prompt), np.array(label), np.array(side)


def test_shares_and_plain_counts():
    counts = count(["p", "p", "q", "q", "q"], np.array([0, 1, 0, 0, -1]), ["base", "intervention"] * 2 + ["base"])
    assert counts.clusters.tolist() == [-1, 0, 1]
    assert counts.texts.tolist() == [1, 3, 1]
    assert counts.prompts.tolist() == [1, 2, 1]
    result = compare(counts, resamples=100)
    assert np.allclose(result.share_base, [1 / 3, 2 / 3, 0])
    assert np.allclose(result.share_intervention, [0, 0.5, 0.5])
    assert np.allclose(result.difference, result.share_intervention - result.share_base)


def test_a_planted_difference_is_found_with_its_sign():
    result = compare(count(*texts(np.random.default_rng(0), 150, 4, shift=0.25)), seed=1)
    assert result.q[0] < 0.01 and 0.1 < result.low[0] < result.difference[0] < result.high[0]
    assert result.global_p < 0.01
    assert (result.difference[1:] < 0).all()


def test_rows_in_another_order_change_nothing():
    prompt, label, side = texts(np.random.default_rng(0), 30, 3, shift=0.1)
    shuffled = np.random.default_rng(1).permutation(len(label))
    one = compare(count(prompt, label, side), seed=3)
    two = compare(count(prompt[shuffled], label[shuffled], side[shuffled]), seed=3)
    for field in ("difference", "low", "high", "p", "q"):
        assert np.array_equal(getattr(one, field), getattr(two, field)), field


def test_the_null_is_calibrated_although_texts_of_a_prompt_agree():
    """Prompts have habits, so their texts are alike. 300 null data sets of five clusters each."""
    p, covered = [], []
    for seed in range(300):
        result = compare(count(*texts(np.random.default_rng(seed), 40, 6, shift=0)), resamples=300, seed=seed)
        p.append(result.p)
        covered.append((result.low <= 0) & (result.high >= 0))
    p = np.array(p)
    # three standard errors of 300 independent data sets around the nominal level
    assert (p[:, 0] <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert 0.42 < (p <= 0.5).mean() < 0.58  # ties count against a difference, so a little under a half
    assert 0.90 < np.mean(covered) < 0.98
    any_q = np.array([(multipletests(row, method="fdr_bh")[1] <= 0.05).any() for row in p])
    assert any_q.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_copies_of_a_prompts_texts_are_no_new_evidence():
    prompt, label, side = texts(np.random.default_rng(5), 40, 2, shift=0.15)
    once = compare(count(prompt, label, side), seed=2)
    tenfold = compare(count(np.tile(prompt, 10), np.tile(label, 10), np.tile(side, 10)), seed=2)
    assert np.allclose(once.low, tenfold.low) and np.allclose(once.p, tenfold.p)


def test_unequal_propensities_bias_nothing():
    """Prompts of habit A are screened in ten times as often as those of habit B, and the sides differ only in B."""
    rng = np.random.default_rng(0)
    weighted, unweighted = [], []
    for _ in range(300):
        propensity = np.where(np.arange(400) < 200, 1.0, 0.1)
        kept = np.flatnonzero(rng.random(400) < propensity)
        prompt, label, side = [], [], []
        for p in kept:
            for s in ("base", "intervention"):
                chance = 0.2 if p < 200 else (0.3 if s == "base" else 0.7)
                prompt.append(str(p)), side.append(s), label.append(int(rng.random() < chance))
        weights = propensity[np.array(prompt, dtype=int)]
        weighted.append(difference(count(prompt, np.array(label), side, weights)))
        unweighted.append(difference(count(prompt, np.array(label), side)))
    error = np.std(weighted) / np.sqrt(300)
    assert abs(np.mean(weighted) - 0.2) < 3 * error  # half of the prompts differ by 0.4
    assert np.mean(unweighted) < 0.06


def difference(counts: Counts) -> float:
    base, changed = counts.weighted.sum(axis=0).T
    return changed[1] / changed.sum() - base[1] / base.sum()


def test_q_values_are_those_of_statsmodels():
    result = compare(count(*texts(np.random.default_rng(3), 60, 3, shift=0.1)), seed=0)
    assert np.allclose(result.q, multipletests(result.p, method="fdr_bh")[1])


def test_p_can_be_small_enough_for_many_clusters():
    rng = np.random.default_rng(0)
    prompt, label, side = texts(rng, 200, 4, shift=0.2, clusters=120)
    result = compare(count(prompt, label, side), resamples=100)
    assert result.q[0] < 0.05 and result.permutations >= 40 * 120


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="neither base nor intervention"):
        count(["p"], np.array([0]), ["left"])
    with pytest.raises(ValueError, match="must be positive"):
        count(["p"], np.array([0]), ["base"], np.array([0.0]))
    with pytest.raises(ValueError, match="two prompts"):
        compare(count(["p", "p"], np.array([0, 0]), ["base", "intervention"]))
    with pytest.raises(ValueError, match="both sides"):
        compare(count(["p", "q"], np.array([0, 0]), ["base", "base"]))


def in_families(rng, prompts=240, families=12, samples=4, shift=0.6, moved=("family 3",)):
    """As ``texts``, but the changed side moves only on prompts of some families."""
    still, turned = texts(rng, prompts, samples, 0.0), texts(rng, prompts, samples, shift)
    family = np.array([f"family {int(p) % families}" for p in still[0]])
    label = np.where(np.isin(family, moved), turned[1], still[1])
    return still[0], label, still[2], family


def test_what_moves_in_one_family_alone_is_found_there():
    alone, drowned, places = [], [], []
    for seed in range(8):
        prompt, label, side, family = in_families(np.random.default_rng(seed))
        result = compare(count(prompt, label, side, families=family), resamples=100, seed=seed)
        alone.append(result.q[0] <= 0.05)
        drowned.append(compare(count(prompt, label, side), resamples=100, seed=seed).q[0] <= 0.05)
        places.append(result.where[0])
        assert places[-1] != "family 3" or result.there[0] > 0.1 > result.difference[0]
    assert sum(alone) >= 6 and sum(drowned) <= 4 and places.count("family 3") >= 6


def test_what_moves_everywhere_is_still_found_over_all_prompts():
    every = tuple(f"family {f}" for f in range(12))
    for seed in range(4):
        prompt, label, side, family = in_families(np.random.default_rng(seed), shift=0.15, moved=every)
        result = compare(count(prompt, label, side, families=family), resamples=100, seed=seed)
        assert result.q[0] <= 0.05 and result.where[0] == "" and result.there[0] == result.difference[0]


def test_looking_into_families_keeps_the_level():
    p, anywhere = [], []
    for seed in range(200):
        prompt, label, side, family = in_families(np.random.default_rng(seed), 60, 6, 3, shift=0.0)
        result = compare(count(prompt, label, side, families=family), resamples=200, seed=seed)
        p.append(result.p)
        anywhere.append(result.global_p)
    assert (np.array(p)[:, 0] <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert (np.array(anywhere) <= 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_one_family_is_all_prompts():
    prompt, label, side = texts(np.random.default_rng(4), 40, 3, shift=0.1)
    one, none = (compare(count(prompt, label, side, families=f), seed=1) for f in (["x"] * len(label), None))
    assert np.array_equal(one.p, none.p) and set(one.where) == {""}


# ---------------------------------------------------------------------------------- counting by likelihood

KINDS = np.array([0, 0, 1, 2])  # the cluster of each of four possible texts
ODDS = (
    (np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.35, 0.3, 0.15, 0.2])),
    (np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, 0.25, 0.3, 0.35])),
)


def halves(drawn, prompt: int, likelihood: bool) -> np.ndarray:
    """Half of (intervention - base) of one prompt, beside a second prompt with fixed texts."""
    p, q = ODDS[prompt]
    n = len(drawn) // 2
    label = np.concatenate([KINDS[list(drawn)], [0, 1, 2, 0]])
    side = ["base"] * n + ["intervention"] * n + ["base", "intervention"] * 2
    ratio = np.concatenate([np.log(q / p)[list(drawn)], [0.2, -0.1, 0.4, 0.0]])
    counts = count(["a"] * 2 * n + ["b"] * 4, label, side, log_ratio=ratio if likelihood else None)
    return (counts.weighted[0, :, 1] - counts.weighted[0, :, 0]) / 2


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("prompt", [0, 1])
def test_counting_by_likelihood_has_the_mean_of_counting_sides_and_less_variance(prompt, n):
    """All outcomes of n texts a side, each with its probability: no simulation."""
    p, q = ODDS[prompt]
    outcomes = list(itertools.product(range(4), repeat=2 * n))
    chance = np.array([np.prod(p[list(o[:n])]) * np.prod(q[list(o[n:])]) for o in outcomes])
    true = n * np.array([(q - p)[c == KINDS].sum() for c in range(3)]) / 2
    spread = {}
    for likelihood in (True, False):
        found = np.array([halves(o, prompt, likelihood) for o in outcomes])
        np.testing.assert_allclose(chance @ found, true, atol=1e-12)
        spread[likelihood] = chance @ (found - true) ** 2
    assert (spread[True] < 0.2 * spread[False]).all()


def test_sides_that_are_given_away_are_counted_and_those_that_are_not_bring_nothing():
    prompt, label, side = texts(np.random.default_rng(0), 40, 3, shift=0.3)
    sign = np.where(side == "intervention", 1.0, -1.0)
    plain = count(prompt, label, side)
    told = count(prompt, label, side, log_ratio=np.inf * sign)
    np.testing.assert_allclose(told.weighted, plain.weighted, atol=1e-9)
    nothing = compare(count(prompt, label, side, log_ratio=np.zeros(len(label))), resamples=100)
    np.testing.assert_allclose(nothing.difference, 0, atol=1e-12)
    assert (nothing.p == 1).all()
    np.testing.assert_allclose(nothing.share_base, plain.weighted.sum((0, 2)) / plain.weighted.sum())


def test_counting_by_likelihood_keeps_propensities():
    """Prompts that were sampled more count no more: two texts a side weigh as much as four."""
    rng = np.random.default_rng(1)
    prompt = np.repeat(["few", "many"], [4, 8])
    side = np.tile(["base", "intervention"], 6)
    chance = np.where(prompt == "few", 0.5, 1.0)
    label, ratio = rng.integers(0, 3, 12), rng.normal(size=12)
    weighted = count(prompt, label, side, chance, log_ratio=ratio).weighted
    np.testing.assert_allclose(weighted.sum(1), 4)
    alone = count(prompt, label, side, log_ratio=ratio).weighted
    np.testing.assert_allclose(weighted, alone * np.array([2, 1])[:, None, None])


def test_likelihoods_must_be_there_for_every_text():
    with pytest.raises(ValueError, match="1 texts have no log_ratio"):
        count(["p", "p"], np.array([0, 0]), ["base", "intervention"], log_ratio=np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="as many texts of either side"):
        count(["p", "q"], np.array([0, 0]), ["base", "intervention"], log_ratio=np.zeros(2))
