"""Fixed-sample tests of many measures: against other libraries, against every swap, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, norm, wilcoxon
from statsmodels.stats.contingency_tables import mcnemar

from driftbook.evidence import paired
from driftbook.evidence.paired import paired_test, per_prompt


def every_swap(d: np.ndarray) -> np.ndarray:
    """The sum of the differences after each of the 2^n swaps of sides."""
    return np.array(list(itertools.product((1, -1), repeat=len(d)))) @ d


def shares(rng, prompts, base, changed, samples=1, together=0.3, columns=1):
    """Per-prompt shares of both sides, [prompts, columns]; a prompt moves both sides in the same direction."""
    mood = np.sqrt(together) * rng.normal(size=(prompts, columns, 1))

    def side(share):
        return (mood + np.sqrt(1 - together) * rng.normal(size=(prompts, columns, samples)) < norm.ppf(share)).mean(2)

    return side(base), side(changed)


def test_answers_of_a_prompt_are_one_number_and_what_is_unknown_is_left_out():
    values = np.array([[1.0, np.nan], [0.0, 2.0], [1.0, np.nan], [1.0, np.nan], [0.0, 4.0]])
    side = np.array(["base", "base", "intervention", "intervention", "intervention"])
    base, changed = per_prompt(values, np.array(["a", "a", "a", "b", "b"]), side, ["b", "a"])
    np.testing.assert_array_equal(base, [[np.nan, np.nan], [0.5, 2.0]])
    np.testing.assert_array_equal(changed, [[0.5, 4.0], [1.0, np.nan]])


@pytest.mark.parametrize(("direction", "alternative"), [(1, "greater"), (-1, "less"), (0, "two-sided")])
def test_single_answers_of_yes_or_no_are_tested_as_scipy_and_statsmodels_do(direction, alternative):
    rng = np.random.default_rng(0)
    base, changed = shares(rng, 60, 0.2, 0.4, columns=20)
    found = paired_test(base, changed, np.full(20, direction))
    for i in range(20):
        more, less = int((changed > base)[:, i].sum()), int((changed < base)[:, i].sum())
        assert found.p[i] == pytest.approx(binomtest(more, more + less, alternative=alternative).pvalue)
        assert (found.more[i], found.less[i], found.test[i]) == (more, less, "sign")
        if direction == 0:
            table = [[0, more], [less, 0]]
            assert found.p[i] == pytest.approx(min(1.0, mcnemar(table, exact=True).pvalue))


@pytest.mark.parametrize("samples", [1, 2, 4, 12])
@pytest.mark.parametrize("direction", [1, -1, 0])
def test_p_counts_every_swap_of_the_sides(samples, direction):
    rng = np.random.default_rng(samples)
    base, changed = shares(rng, 11, 0.3, 0.5, samples, columns=8)
    found = paired_test(base, changed, np.full(8, direction))
    for i in range(8):
        d = changed[:, i] - base[:, i]
        sums = every_swap(d)
        beyond = np.abs(sums) >= abs(d.sum()) - 1e-9 if direction == 0 else sums >= direction * d.sum() - 1e-9
        if direction == -1:
            beyond = sums <= d.sum() + 1e-9
        assert found.p[i] == pytest.approx(beyond.mean())


def test_numbers_without_a_common_unit_are_counted_as_finely_as_matters():
    rng = np.random.default_rng(3)
    base, changed = rng.normal(size=(12, 10)), rng.normal(0.5, 1, size=(12, 10))
    found = paired_test(base, changed, np.ones(10))
    brute = [(every_swap(d) >= d.sum() - 1e-9).mean() for d in (changed - base).T]
    np.testing.assert_allclose(found.p, brute, atol=0.002)  # differences are rounded to 1 / 32,768 of their sum


@pytest.mark.parametrize(("direction", "alternative"), [(1, "greater"), (-1, "less"), (0, "two-sided")])
def test_sizes_are_tested_by_wilcoxons_signed_ranks(direction, alternative):
    rng = np.random.default_rng(1)
    base = rng.lognormal(4, 1, size=(40, 6))
    changed = base * rng.lognormal(0.2, 0.5, size=(40, 6))
    found = paired_test(base, changed, np.full(6, direction), center="median")
    scipy = wilcoxon(changed, base, alternative=alternative, method="exact").pvalue
    np.testing.assert_allclose(found.p, scipy, rtol=1e-6)
    assert (found.test == "ranks").all()


def test_a_few_long_answers_decide_the_mean_and_not_the_median():
    rng = np.random.default_rng(2)
    base = rng.normal(100, 10, size=(60, 1))
    changed = base + 8 + rng.normal(0, 6, size=(60, 1))
    changed[:3] -= 700
    both = paired_test(np.c_[base, base], np.c_[changed, changed], [0, 0], center=["mean", "median"])
    assert not both.rejected[0] and both.rejected[1]
    assert both.low[1] < 8 < both.high[1] and both.high[1] - both.low[1] < 6


@pytest.mark.parametrize("kind", ["lattice", "rounded"])
@pytest.mark.parametrize("effect", [0.1, 0.3, -0.1])
def test_many_prompts_have_the_p_value_that_counting_gives(kind, effect, monkeypatch):
    rng = np.random.default_rng(4)
    base, changed = rng.normal(size=(300, 1)), rng.normal(effect, 1, size=(300, 1))
    if kind == "lattice":
        base, changed = np.round(base), np.round(changed)
    counted = paired_test(base, changed, [1]).p
    monkeypatch.setattr(paired, "COUNTED", 10)
    np.testing.assert_allclose(paired_test(base, changed, [1]).p, counted, rtol=0.05)


def test_adjusted_p_values_are_those_of_benjamini_and_hochberg_without_the_tests_that_cannot_confirm():
    rng = np.random.default_rng(5)
    base, changed = shares(rng, 80, 0.3, 0.4, columns=12)
    base[:, 8:], changed[:, 8:] = 0.0, 0.0
    changed[:3, 8:] = 1.0  # three prompts that differ give 1/4 at best
    found = paired_test(base, changed, np.zeros(12))
    np.testing.assert_array_equal(found.counted, np.arange(12) < 8)
    np.testing.assert_allclose(found.adjusted[:8], false_discovery_control(found.p[:8]))
    assert (found.adjusted[8:] == 1).all()


def test_step_down_max_t_counts_the_strongest_of_every_joint_swap():
    rng = np.random.default_rng(6)
    base, changed = rng.normal(size=(12, 3)), rng.normal([1.5, 0.6, 0.0], 1, size=(12, 3))
    found = paired_test(base, changed, [0, 0, 0], method="max_t", flips=40_000)
    d = changed - base
    z = np.abs(np.array(list(itertools.product((1, -1), repeat=12))) @ (d / np.sqrt((d**2).sum(axis=0))))
    order, expected, last = np.argsort(-z[0]), np.empty(3), 0.0  # the first of all swaps is none
    for k, i in enumerate(order):
        last = max(last, (z[:, order[k:]].max(axis=1) >= z[0, i] - 1e-9).mean())
        expected[i] = last
    np.testing.assert_allclose(found.adjusted, expected, atol=0.01)  # of random swaps: 3.5 standard errors at most


def test_a_prompt_on_which_a_hypothesis_is_not_tested_does_not_count_for_it():
    rng = np.random.default_rng(7)
    base, changed = shares(rng, 50, 0.2, 0.5, columns=2)
    base[:20, 1] = np.nan
    changed[30:, 0] = np.nan
    both = paired_test(base, changed, [1, 0])
    one, two = paired_test(base[:30, :1], changed[:30, :1], [1]), paired_test(base[20:, 1:], changed[20:, 1:], [0])
    for name in ("p", "low", "high", "base", "changed", "prompts", "more", "allowed"):
        assert getattr(both, name).tolist() == [getattr(one, name)[0], getattr(two, name)[0]]


def test_a_margin_asks_for_more_than_a_difference():
    rng = np.random.default_rng(8)
    base, changed = shares(rng, 400, 0.3, 0.45)
    p = [float(paired_test(base, changed, [1], margin=m).p[0]) for m in (0.0, 0.05, 0.15, 0.3)]
    assert p[0] < p[1] < p[2] < p[3] and p[0] < 1e-4 and p[3] > 0.99
    either = paired_test(base, changed, [0], margin=0.05).p[0]
    assert either == pytest.approx(2 * p[1])
