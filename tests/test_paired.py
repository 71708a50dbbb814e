"""Fixed-sample tests of many measures: against other libraries, against every swap, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, norm, wilcoxon
from statsmodels.stats.contingency_tables import StratifiedTable, mcnemar

from driftbook.evidence import swaps
from driftbook.evidence.paired import (
    allowed,
    paired_interval,
    paired_test,
    per_prompt,
    prompts_for,
    scope_for,
    smallest_seen,
    within_prompts_test,
)


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
    monkeypatch.setattr(swaps, "COUNTED", 10)
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


# ------------------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("prompts", "base", "changed", "samples", "together"),
    [
        (36, 0.0, 0.03, 1, 0.0), (150, 0.0, 0.03, 1, 0.3), (36, 0.01, 0.01, 1, 0.0), (20, 0.3, 0.45, 1, 0.8),
        (88, 0.05, 0.2, 1, 0.3), (36, 0.3, 0.45, 8, 0.7), (100, 0.01, 0.03, 4, 0.5),
    ],
)  # fmt: skip
def test_intervals_of_shares_cover_the_difference_at_few_prompts_and_rare_behaviours(
    prompts, base, changed, samples, together
):
    rng = np.random.default_rng(9)
    one, two = shares(rng, prompts, max(base, 1e-12), changed, samples, together, columns=1000)
    _, low, high = paired_interval(one, two)
    assert ((low <= changed - base + 1e-9) & (changed - base <= high + 1e-9)).mean() >= 0.93  # 0.95 less 3 errors
    # and what survives a correction has an interval without zero
    rejected = paired_test(one, two, np.zeros(1000)).p <= 0.01
    assert (rejected & (low < -1e-12) & (high > 1e-12)).mean() <= 0.005


def test_intervals_of_sizes_cover_the_typical_change_though_answers_are_skewed():
    rng = np.random.default_rng(10)

    def lengths(runs):
        topic = 0.6 * rng.normal(size=(40, runs))
        return [np.round(np.exp(m + topic + s * rng.normal(size=(40, runs)))) for m, s in ((4.5, 0.4), (4.7, 0.6))]

    one, two = lengths(20_000)
    d = (two - one).ravel()
    truth = np.median((d + rng.permutation(d)) / 2)
    difference, low, high = paired_interval(*lengths(500), center="median")
    assert ((low <= truth) & (truth <= high)).mean() >= 0.92  # 0.95 less 3 errors
    assert np.median(difference) == pytest.approx(truth, abs=2)


def test_the_middle_of_sizes_is_the_median_of_the_means_of_all_pairs():
    rng = np.random.default_rng(11)
    d = rng.normal(size=41)
    pairs = np.sort(((d[:, None] + d) / 2).ravel())
    difference, low, high = paired_interval(np.zeros((41, 1)), d[:, None], center="median")
    assert difference[0] == pytest.approx(np.median(pairs), abs=1e-9)
    # the ends turn Wilcoxon's test round: just outside of them it rejects, just inside it does not
    inside, outside = (wilcoxon(d - x, method="exact").pvalue for x in (low[0] + 0.03, low[0] - 0.03))
    assert inside > 0.04 and outside < 0.06 and low[0] < difference[0] < high[0]


def test_the_typical_change_of_whole_words_is_a_whole_or_half_word_and_none_is_0():
    """Not a hair beside it, which would be written with all its digits."""
    base = np.random.default_rng(0).integers(20, 40, size=(41, 1)).astype(float)
    moved = paired_interval(base, base + np.tile([-3.0, 0.0, 3.0], 14)[:41, None], center="median")
    assert all(2 * end == np.round(2 * end) for end in np.ravel(moved)) and moved[0][0] == 0


def test_what_was_never_seen_is_still_allowed_by_a_few_prompts():
    nothing = np.zeros((36, 1))
    assert 0.05 < allowed(nothing, nothing)[0] < 0.1  # "three in n", for either side
    assert allowed(np.zeros((1000, 1)), np.zeros((1000, 1)))[0] < 0.004


@pytest.mark.parametrize("prompts", [50, 300])
def test_what_is_not_allowed_any_more_is_wrong_at_most_one_time_in_twenty(prompts):
    rng = np.random.default_rng(12)
    base, changed = shares(rng, prompts, 0.2, 0.3, columns=1500)
    assert (allowed(base, changed) < 0.1).mean() <= 0.05 + 0.017  # three standard errors


def test_intervals_of_confirmed_claims_keep_their_promise_after_the_selection():
    rng = np.random.default_rng(13)
    missed, plain, claims = [], [], 0
    for _ in range(150):
        base = rng.normal(size=(40, 30))
        truth = np.where(np.arange(30) < 10, 0.5, 0.0)
        found = paired_test(base, base + truth + rng.normal(size=(40, 30)), np.zeros(30))
        r = found.rejected
        if r.any():
            missed.append(((truth < found.selected_low) | (truth > found.selected_high))[r].mean())
            plain.append(((truth < found.low) | (truth > found.high))[r].mean())
            claims += int(r.sum())
    assert claims > 500
    assert np.mean(missed) <= 0.06 < np.mean(plain)


# ------------------------------------------------------------------------------------------------------ level and power


@pytest.mark.parametrize("method", ["bh", "max_t"])
@pytest.mark.parametrize("center", ["mean", "median"])
def test_without_a_change_anything_is_confirmed_in_at_most_one_experiment_in_twenty(method, center):
    rng = np.random.default_rng(14)
    alarms, runs = 0, 300 if center == "mean" else 100
    for run in range(runs):
        long = rng.normal(size=(60, 1))  # all measures of an answer move together
        one, two = (np.round(10 * (0.7 * rng.permutation(long) + rng.normal(size=(60, 12)))) for _ in range(2))
        found = paired_test(one, two, np.zeros(12), center=center, method=method, flips=199, seed=run)
        alarms += bool(found.rejected.any())
    assert alarms / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_fixed_sample_finds_what_the_plan_says():
    rng = np.random.default_rng(15)
    rise = smallest_seen(88, 0.05, hypotheses=20)
    base, changed = shares(rng, 88, 0.05, 0.05 + rise, together=0.0, columns=4000)
    found = paired_test(base, changed, np.zeros(4000)).p <= 0.05 / 20
    assert found.mean() == pytest.approx(0.8, abs=0.02)  # three standard errors
    needed = prompts_for(0.05, 0.05 + rise, hypotheses=20)
    assert abs(needed - 88) <= 4
    assert prompts_for(0.05 + rise, 0.05, hypotheses=20) == needed


def test_plans_say_when_nothing_helps():
    assert smallest_seen(5, 0.1, hypotheses=20) is None
    assert prompts_for(0.2, 0.2) is None
    assert smallest_seen(100_000, 0.05, hypotheses=20) < 0.01
    assert smallest_seen(300, 0.0, 20, either=False) < smallest_seen(300, 0.0, 20) < smallest_seen(300, 0.0, 200)
    with pytest.raises(ValueError, match="base_share"):
        smallest_seen(100, 1.0)


# -------------------------------------------------------------------------------------------------------- these prompts


def answers(rng, prompts, samples, base, changed, spread=0.0, columns=1):
    """Single answers, (values, prompt, side); a prompt's share lies ``spread`` logits around the mean on both sides."""
    mood = spread * rng.normal(size=(prompts, 1, columns))
    drawn = []
    for share in (base, changed):
        logit = np.log(share / (1 - share)) + mood
        drawn.append((rng.random((prompts, samples, columns)) < 1 / (1 + np.exp(-logit))).astype(float))
    values = np.concatenate(drawn, axis=1).reshape(-1, columns)
    side = np.tile(np.repeat(["base", "intervention"], samples), prompts)
    return values, np.repeat(np.arange(prompts), 2 * samples), side


def test_within_prompts_the_sides_are_dealt_out_again_prompt_by_prompt():
    rng = np.random.default_rng(16)
    values, prompt, side = answers(rng, 2, 3, 0.3, 0.7, columns=4)
    values += rng.normal(size=values.shape)
    found = within_prompts_test(values, prompt, side, [1, 1, 0, 0], flips=40_000)
    deals = [set(c) for c in itertools.combinations(range(6), 3)]
    for i, either in enumerate((False, False, True, True)):
        statistics = []
        for deal in itertools.product(deals, deals):
            total = spread = 0.0
            for k, chosen in enumerate(deal):
                v = values[prompt == k, i]
                on = np.array([j in chosen for j in range(6)])
                total += v[on].mean() - v[~on].mean()
                spread += v[on].var(ddof=1) / 3 + v[~on].var(ddof=1) / 3
            statistics.append(abs(total / spread**0.5) if either else total / spread**0.5)
        seen = deals.index({3, 4, 5}) * len(deals) + deals.index({3, 4, 5})
        expected = np.mean(np.array(statistics) >= statistics[seen] - 1e-9)
        assert found.p[i] == pytest.approx(expected, abs=0.01)  # of random deals: three standard errors and more


def test_eight_prompts_with_many_answers_speak_of_themselves():
    rng = np.random.default_rng(17)
    values, prompt, side = answers(rng, 8, 250, 0.01, 0.03, spread=1.0, columns=6)
    values[:, 3:] = answers(rng, 8, 250, 0.05, 0.05, spread=1.0, columns=3)[0]
    found = within_prompts_test(values, prompt, side, np.zeros(6), flips=2000)
    table = StratifiedTable(
        [
            [[values[on & (side == s), 0].sum(), (1 - values[on & (side == s), 0]).sum()] for s in np.unique(side)]
            for on in (prompt == p for p in range(8))
        ]
    )
    assert found.rejected.tolist() == [True] * 3 + [False] * 3
    assert table.test_null_odds().pvalue < 1e-3 and found.p[0] < 2e-3
    assert (found.low[:3] > 0).all() and (found.high[:3] < 0.05).all()
    base, changed = per_prompt(values, prompt, side, range(8))
    over_prompts = paired_test(base, changed, np.zeros(6))
    assert (over_prompts.p > found.p)[:3].all()  # eight prompts say less of other prompts


def test_within_prompts_nothing_is_confirmed_without_a_change_and_intervals_cover():
    rng = np.random.default_rng(18)
    alarms, covered = 0, []
    for run in range(150):
        data = answers(rng, 8, 25, 0.2, 0.2, spread=1.5, columns=5)
        found = within_prompts_test(*data, np.zeros(5), flips=199, seed=run)
        alarms += bool(found.rejected.any())
        covered.append((found.low <= 0) & (found.high >= 0))
    assert alarms / 150 <= 0.05 + 0.054  # three standard errors
    assert np.mean(covered) >= 0.93


def test_the_scope_follows_from_the_numbers_and_says_what_it_holds_for():
    eight = scope_for(8, 250)
    assert eight.name == "these prompts" and "these 8 prompts" in eight.sentence
    assert eight.offered == ("prompts like these", "these prompts")
    many = scope_for(805, 1)
    assert many.name == "prompts like these" and "805" in many.sentence and many.offered == ("prompts like these",)
    assert scope_for(200, 50).name == "prompts like these"


# ----------------------------------------------------------------------------------------------------- degenerate input


@pytest.mark.parametrize("method", ["bh", "max_t"])
@pytest.mark.parametrize("center", ["mean", "median"])
def test_equal_sides_say_nothing(method, center):
    same = np.random.default_rng(19).normal(size=(30, 3))
    for base, changed in ((same, same), (np.zeros((30, 3)), np.zeros((30, 3)))):
        found = paired_test(base, changed, [0, 1, -1], center=center, method=method)
        assert (found.p == 1).all() and (found.adjusted == 1).all() and not found.rejected.any()
        assert (found.difference == 0).all() and not found.counted.any()


@pytest.mark.parametrize("method", ["bh", "max_t"])
def test_too_little_is_no_error(method):
    one = paired_test(np.zeros((1, 2)), np.ones((1, 2)), [1, 0], center=["mean", "median"], method=method)
    assert one.p.tolist() == [0.5, 1.0] and not one.rejected.any() and np.isinf(one.low).all()
    for rows in (np.zeros((0, 2)), np.full((5, 2), np.nan)):
        none = paired_test(rows, rows, [0, 1], method=method)
        assert np.isnan([none.p, none.adjusted, none.base, none.low, none.allowed]).all() and not none.rejected.any()
        side = np.resize(["base", "intervention"], len(rows))
        within = within_prompts_test(rows, np.zeros(len(rows)), side, [0, 1], method=method)
        assert np.isnan([within.p, within.low]).all() and not within.rejected.any()
    empty = paired_test(np.zeros((5, 0)), np.zeros((5, 0)), [], method=method)
    assert empty.p.shape == empty.rejected.shape == (0,)


def test_overwhelming_evidence_and_very_many_prompts_stay_finite():
    rng = np.random.default_rng(20)
    base = rng.normal(size=(100_000, 3))
    changed = base + np.array([1.0, 0.0, 5.0]) + rng.normal(size=base.shape)
    changed[:, 1] = base[:, 1] - rng.random(100_000)
    found = paired_test(base, changed, [1, 0, 0], center=["mean", "mean", "median"])
    assert (found.p > 0).all() and (found.p < 1e-100).all() and found.rejected.all()
    assert np.isfinite([found.low, found.high, found.selected_low, found.selected_high, found.allowed]).all()


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="must both be"):
        paired_test(np.zeros((3, 2)), np.zeros((3, 1)), [0, 0])
    with pytest.raises(ValueError, match="finite"):
        paired_test(np.full((3, 1), np.inf), np.zeros((3, 1)), [0])
    with pytest.raises(ValueError, match="paired_test"):
        within_prompts_test(np.zeros((5000, 1)), np.arange(5000), np.resize(["base", "intervention"], 5000), [0])
