"""Shifts and their intervals on arrays that are made up, where the right answer is known."""

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_rel

from driftbook.evidence.shifts import Grid, Scale, answer_means, moved, prompt_means, prompt_shift_table, shift_table

GRID = Grid([0, 1, 2, 3], ["resid_pre", "resid_post"], ["warm", "terse"])
ONE = Grid([0], ["resid_post"], ["warm"])


def scale_of(sd: float, grid: Grid = GRID) -> Scale:
    points = grid.shape[:2]
    return Scale(np.zeros(grid.shape), np.full(points, sd), -np.ones(points), np.ones(points))


def test_intervals_are_over_prompts():
    """One prompt of twenty moves a lot: the interval knows that it is one. Prompts with no answer are left out."""
    before = np.zeros((21, *GRID.shape))
    after = before.copy()
    after[3] = 20.0
    after[20] = np.nan
    table = shift_table(before, after, scale_of(2.0), GRID, "own_text")
    assert (table["shift"] == 0.5).all() and (table.prompts == 20).all()
    assert (table.low < 0).all() and table.high.between(1.0, 2.0).all()


@pytest.mark.parametrize("prompts", [2, 3, 8])
def test_of_few_prompts_an_interval_says_as_little_as_their_test(prompts):
    rng = np.random.default_rng(prompts)
    before, after = rng.normal(size=(2, prompts, 500, 1, 1))
    grid = Grid(list(range(500)), ["resid_post"], ["calm"])
    table = shift_table(before, after, scale_of(1.0, grid), grid, "own_text")
    told = (table.low > 0) | (table.high < 0)
    assert (told == (table.p < 0.05)).all() and 10 <= told.sum() <= 40  # 5% of 500, and three standard errors
    one = shift_table(before[:1], after[:1], scale_of(1.0, grid), grid, "own_text")
    assert one[["low", "high", "p"]].isna().all(axis=None) and one["shift"].notna().all()


def test_of_ten_traits_that_did_not_move_hardly_an_experiment_tells_one_and_one_that_moved_is_told():
    grid, rng, alarms, plain = Grid([0], ["resid_post"], [f"t{i}" for i in range(10)]), np.random.default_rng(0), 0, 0
    for _ in range(200):
        before, after = rng.normal(size=(2, 24, *grid.shape))
        table = shift_table(before, after, scale_of(1.0, grid), grid, "own_text")
        alarms += len(moved(table)) > 0
        plain += bool(((table.low > 0) | (table.high < 0)).any())
        expected = ttest_rel(after[:, 0, 0, 3], before[:, 0, 0, 3]).pvalue
        assert table.loc[3, "p"] == pytest.approx(expected, rel=1e-9)
    assert alarms <= 20 < plain  # 5% of 200, and five standard errors; one interval each excludes 0 far more often
    after[..., 4] += 2.0
    assert moved(shift_table(before, after, scale_of(1.0, grid), grid, "own_text"))["trait"].tolist() == ["t4"]
    assert moved(shift_table(before, before, scale_of(1.0, grid), grid, "own_text")).empty


def test_every_number_stands_at_its_point():
    before = np.zeros((3, *GRID.shape))
    after = before + np.arange(16).reshape(GRID.shape)
    table = shift_table(before, after, scale_of(1.0), GRID, "own_text").set_index(["layer", "site", "trait"])
    assert table.loc[(2, "resid_post", "terse"), "shift"] == np.arange(16).reshape(GRID.shape)[2, 1, 1]
    one = prompt_shift_table([before[:2]], [after[:2]], scale_of(1.0), GRID, "own_text", ["p"])
    assert one.set_index(["layer", "site", "trait"])["shift"].loc[(1, "resid_pre", "terse")] == 5


def drawn(prompts: int, answers: int, shift: float, sd: float, seed: int) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 5, (prompts, 1, 1, 1, 1))
    before = level + rng.normal(0, sd, (prompts, answers, 1, 1, 1))
    after = level + shift + rng.normal(0, 2 * sd, (prompts, answers, 1, 1, 1))
    return list(before), list(after)


def test_intervals_of_one_prompt_hold_their_level():
    """Two answers a prompt and two unequal spreads: over many prompts 95% of the intervals hold the shift."""
    inside = []
    for seed in range(20):
        before, after = drawn(30, 2, shift=1.5, sd=1.0, seed=seed)
        table = prompt_shift_table(before, after, scale_of(1.0, ONE), ONE, "own_text", [str(i) for i in range(30)])
        inside += ((table.low <= 1.5) & (table.high >= 1.5)).tolist()
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_same_tokens_are_compared_answer_by_answer():
    """What the two readings share drops out: the interval is that of the paired differences, pooled over prompts."""
    rng = np.random.default_rng(0)
    before = list(rng.normal(0, 50, (4, 3, 1, 1, 1)))
    difference = rng.normal(2.0, 0.1, (4, 3, 1, 1, 1))
    after = [b + d for b, d in zip(before, difference, strict=True)]
    table = prompt_shift_table(before, after, scale_of(1.0, ONE), ONE, "same_tokens", list("abcd"))
    pooled = ((difference - difference.mean(1, keepdims=True)) ** 2).sum() / 8
    half = student.isf(0.025, 8) * np.sqrt(pooled / 3)
    np.testing.assert_allclose(table["shift"], difference.mean(1).ravel())
    np.testing.assert_allclose(table.high - table["shift"], half)
    assert (table.high - table.low < 0.5).all()


def test_one_answer_a_prompt_has_no_interval_and_none_has_no_row():
    one = [np.ones((1, 1, 1, 1))] * 3
    table = prompt_shift_table(
        one, [*one[:2], np.empty((0, 1, 1, 1))], scale_of(1.0, ONE), ONE, "own_text", list("abc")
    )
    assert table.prompt_id.tolist() == ["a", "b"] and (table["shift"] == 0).all()
    assert table[["low", "high"]].isna().all().all() and (table.answers == 1).all()


def test_scores_are_centred_on_traits_and_scaled_by_the_null():
    rng = np.random.default_rng(0)
    responses, null = rng.normal(7, 3, (400, *GRID.shape)), rng.normal(2, 4, (300, 4, 2, 50))
    scale = Scale.fit(responses, null)
    np.testing.assert_allclose(scale.sd, 4, rtol=0.03)
    np.testing.assert_allclose(scale.low, -1.96, atol=0.06)
    np.testing.assert_allclose(scale.high, 1.96, atol=0.06)
    np.testing.assert_allclose(scale.score(responses).mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scale.score(responses).std(0), 0.75, rtol=0.15)


def test_means_are_over_tokens_then_over_answers():
    answers = [np.array([[1.0], [3.0]]), np.array([[10.0]])]
    np.testing.assert_array_equal(answer_means(answers), [[2.0], [10.0]])
    found = prompt_means([answer_means(answers), np.empty((0, 1))], (1,))
    assert found[0, 0] == 6 and np.isnan(found[1, 0])
