"""The betting tests are what a confirmed claim rests on: they are checked exactly on small trees, and by seeded
simulation."""

import itertools

import numpy as np
import pytest

from driftbook.evidence.eprocess import bounds, e_path, log_wealth, out_of_reach


@pytest.mark.parametrize("mean", [0.5, 0.55, 0.3])
def test_expected_wealth_is_one_on_every_binary_tree(mean):
    """Exact: over all 2^8 coin sequences with P(1) = mean, wealth averages to 1 after each step."""
    paths = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
    probability = np.prod(np.where(paths == 1, mean, 1 - mean), axis=1)
    assert probability @ np.exp(log_wealth(paths, mean)) == pytest.approx(np.ones(8))


def test_expected_wealth_is_below_one_when_the_next_mean_depends_on_the_past_but_stays_under_the_null():
    """Exact, on a tree with ties and a mean that falls after each win: a supermartingale needs no independence."""
    values = np.array([0.0, 0.5, 1.0])
    paths = np.array(list(itertools.product(values, repeat=6)))
    probability = np.ones(len(paths))
    for t in range(6):
        lost = (paths[:, :t] == 0).mean(axis=1) if t else np.ones(len(paths))
        up = 0.3 * lost  # P(win) <= P(loss): the mean never exceeds 1/2
        table = np.stack([np.full(len(paths), 0.3), 0.7 - up, up], axis=1)
        probability *= table[np.arange(len(paths)), np.searchsorted(values, paths[:, t])]
    expected = probability @ np.exp(log_wealth(paths, 0.5))
    assert probability.sum() == pytest.approx(1)
    assert (expected <= 1 + 1e-12).all() and expected[-1] < 0.99


def test_wealth_is_the_plain_product_averaged_over_stakes():
    x, mean = np.random.default_rng(0).random(20), 0.52
    stakes = (np.arange(32) + 0.5) / 32
    by_hand = [np.mean([np.prod([1 + u / mean * (v - mean) for v in x[:n]]) for u in stakes]) for n in range(1, 21)]
    assert np.exp(log_wealth(x, mean)) == pytest.approx(by_hand)


def test_wealth_and_interval_agree_with_confseq():
    """Reference: confseq 0.0.11 (Waudby-Smith & Ramdas), ``diversified_betting_mart`` with the same 32 stakes, theta
    1 and 0, and ``cs_from_martingale`` with theta 1/2, 200 breaks, alpha 0.05, running intersection, over
    ``default_rng(0).beta(3, 2, 60)``."""
    x = np.array([0.9, 0.25, 0.5, 1.0, 0.75, 0.0, 0.625, 0.875, 1.0])
    up = [
        1.365384615,
        0.97932082,
        0.96102534,
        1.389100806,
        1.717308812,
        0.751276303,
        0.809807685,
        1.029198432,
        1.436553594,
    ]
    down = [
        0.604166667,
        0.737015406,
        0.750030239,
        0.429882651,
        0.368676478,
        0.476756809,
        0.444802906,
        0.347676199,
        0.260107814,
    ]
    assert np.exp(log_wealth(x, 0.52)) == pytest.approx(up, abs=1e-8)
    assert np.exp(log_wealth(1 - x, 0.48)) == pytest.approx(down, abs=1e-8)


def test_final_e_value_does_not_depend_on_the_order():
    x = np.random.default_rng(1).random(40)
    assert log_wealth(x, 0.5)[-1] == pytest.approx(log_wealth(x[::-1], 0.5)[-1])


def null_texts(rng, runs, prompts):
    """X under the null with heavy dependence between prompts' texts: a few pairs, many ties, symmetric around 1/2."""
    pairs = rng.choice([0.0, 0.5, 1.0], p=[0.15, 0.7, 0.15], size=(runs, prompts, 4))
    return pairs.mean(axis=-1)


@pytest.mark.parametrize("kind", ["coin", "ties", "skewed"])
def test_false_alarm_at_any_time_stays_under_alpha(kind):
    rng, runs, prompts, alpha = np.random.default_rng(2), 2000, 150, 0.05
    if kind == "coin":
        x = (rng.random((runs, prompts)) < 0.5).astype(float)
    elif kind == "ties":
        x = null_texts(rng, runs, prompts)
    else:  # mean 1/2 by rare large values: normal approximations fail here
        x = np.where(rng.random((runs, prompts)) < 1 / 11, 1.0, 0.45)
    ever = (e_path(x) >= 1 / alpha).any(axis=1).mean()
    assert ever <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / runs)


def test_the_margin_belongs_to_the_null():
    rng = np.random.default_rng(3)
    x = (rng.random((1000, 400)) < 0.55).astype(float)
    assert (e_path(x, margin=0.05) >= 20).any(axis=1).mean() <= 0.065
    assert (e_path(x, margin=0.0) >= 20).any(axis=1).mean() > 0.2


def test_a_real_effect_is_found_in_either_direction():
    rng = np.random.default_rng(4)
    x = (rng.random((200, 150)) < 0.75).astype(float)
    assert (e_path(x)[:, -1] >= 20).mean() > 0.95
    assert (e_path(1 - x)[:, -1] >= 1).mean() == 0


def test_all_ties_leave_the_wealth_where_it_was():
    assert e_path(np.full(50, 0.5)) == pytest.approx(np.ones(50))
    assert e_path(np.full(50, 0.5), margin=0.02)[-1] < 1


@pytest.mark.parametrize("bad", [[0.2, np.nan], [1.2], [-0.1]])
def test_missing_or_impossible_observations_are_refused(bad):
    with pytest.raises(ValueError, match="worst-case"):
        log_wealth(np.array(bad), 0.5)


def test_no_bet_ever_rejects_the_mean_too_often():
    """An interval holds the means that are not rejected, and misses the mean no more often, whenever it is read."""
    rng, runs, alpha = np.random.default_rng(5), 200, 0.1
    for draw, mean in [(lambda n: rng.random(n) ** 3, 0.25), (lambda n: (rng.random(n) < 0.6) * 1.0, 0.6)]:
        x = np.stack([draw(80) for _ in range(runs)])
        most = np.maximum(log_wealth(x, mean).max(1), log_wealth(1 - x, 1 - mean).max(1))
        assert (most >= np.log(2 / alpha)).mean() <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / runs)


def test_bounds_invert_the_last_wealth_and_missing_values_widen_them():
    x = np.random.default_rng(8).beta(3, 2, size=80)
    low, high = bounds(x, x, 0.05)
    assert np.exp(log_wealth(x, low)[-1]) >= 40 > np.exp(log_wealth(x, low + 1 / 500)[-1])
    assert np.exp(log_wealth(1 - x, 1 - high)[-1]) >= 40 > np.exp(log_wealth(1 - x, 1 - high + 1 / 500)[-1])
    assert bounds(x, x, 0.05) == bounds(x[::-1], x[::-1], 0.05)
    lost = np.arange(80) % 8 == 0
    wider = bounds(np.where(lost, 0, x), np.where(lost, 1, x), 0.05)
    assert wider[0] < low and wider[1] > high
    assert bounds(x[:0], x[:0], 0.05) == (0.0, 1.0)


def test_hopeless_hypotheses_stop_and_promising_ones_go_on():
    threshold = np.log(200)
    flat = np.full(60, 0.5)
    assert out_of_reach(flat, float(log_wealth(flat, 0.52)[-1]), 60, 0.02, threshold)
    good = (np.random.default_rng(8).random(60) < 0.7).astype(float)
    assert not out_of_reach(good, float(log_wealth(good, 0.52)[-1]), 60, 0.02, threshold)
    assert not out_of_reach(np.array([]), 0.0, 100, 0.02, threshold)
