"""The simulated cascade: the world is what it says, and the designs keep or break their promises as published."""

import numpy as np
import pytest

from driftbench import cascade_designs as simulate
from driftbench import real_verdicts

WORLD = simulate.World()


@pytest.fixture(scope="module")
def draws():
    return [simulate.draw(WORLD, 150, 150, seed) for seed in range(25)]


def test_the_world_is_what_it_says(draws):
    data = draws[0]
    assert data.real.sum() == 30 and data.biased.sum() == round(0.15 * 170) and not (data.real & data.biased).any()
    assert data.expensive.shape == (200, 150) and set(np.unique(data.expensive)) == {0, 0.5, 1}
    means = {"real": [], "null": [], "biased": [], "biased, cheap": []}
    for d in draws:
        means["real"].append(d.expensive[d.real].mean())
        means["null"].append(d.expensive[~d.real].mean())
        means["biased"].append(d.expensive[d.biased].mean())
        means["biased, cheap"].append(d.cheap[d.biased].mean())
    assert {k: round(float(np.mean(v)), 2) for k, v in means.items()} == {
        "real": pytest.approx(0.675, abs=0.02),
        "null": pytest.approx(0.5, abs=0.01),
        "biased": pytest.approx(0.5, abs=0.02),
        "biased, cheap": pytest.approx(0.65, abs=0.02),
    }
    assert (simulate.draw(WORLD, 5, 7, 3).cheap == simulate.draw(WORLD, 5, 7, 3).cheap).all()


def test_screening_then_testing_keeps_its_promise_where_the_borderline_cascade_breaks_it(draws):
    ours = simulate.summarize(lambda d: simulate.screen_then_test(d, 150, 0.05, 0.02, 0.1), draws)
    borderline = simulate.summarize(lambda d: simulate.borderline(d, 0.05, 0.02), draws)
    assert ours.fdp.mean() <= 0.05 and ours.power.mean() > 0.6
    assert borderline.fdp.mean() > 0.35


def test_expensive_calls_are_saved_at_equal_power_and_more_when_hypotheses_share_calls(draws):
    sizes = (20, 40, 60, 80, 100, 120, 150)
    curve = [simulate.summarize(lambda d, n=n: simulate.fixed_sample(d, n, 0.05, 0.02), draws) for n in sizes]
    one = simulate.summarize(lambda d: simulate.screen_then_test(d, 150, 0.05, 0.02, 0.1), draws)
    five = simulate.summarize(lambda d: simulate.screen_then_test(d, 150, 0.05, 0.02, 0.1, per_call=5), draws)
    alone, together = simulate.saving(one, curve, 200), simulate.saving(five, curve, 200)
    assert (one.power == five.power).all()
    assert 4 < alone[1] < alone[0] < alone[2]
    assert together[1] > 15


def test_calls_at_power_reads_the_curve():
    def summary(power, calls):
        return simulate.Summary(np.zeros(4), np.full(4, power), np.full(4, float(calls)))

    curve, runs = [summary(0.2, 100), summary(0.6, 300)], np.arange(4)
    assert simulate.calls_at_power(curve, 0.4, runs) == pytest.approx(200)
    assert np.isnan(simulate.calls_at_power(curve, 0.7, runs))
    assert simulate.saving(summary(0.6, 30), curve, 50)[0] == pytest.approx(10)


def test_peeking_finds_effects_that_are_not_there():
    null = [simulate.draw(simulate.World(real=0.0, hypotheses=40), 1, 200, s) for s in range(60)]
    peeks = np.mean([simulate.peeking(d, 0.05, 0.0).confirmed.any() for d in null])
    once = np.mean([simulate.fixed_sample(d, 200, 0.05, 0.0).confirmed.any() for d in null])
    assert peeks > 0.2 > once


def test_resampled_verdicts_keep_effects_where_they_are_and_take_them_where_sides_are_swapped():
    rng = np.random.default_rng(0)
    shared = rng.random(80)
    expensive = np.array([shared < 0.7, shared < 0.5, rng.random(80) < 0.72], dtype=float)
    cheap = np.where(rng.random((3, 80)) < 0.8, expensive, rng.integers(0, 2, (3, 80)))
    cheap[1] = rng.random(80) < 0.75  # sure of something that is not there
    draws = [simulate.resampled(cheap, expensive, 0.02, 100, 100, s) for s in range(40)]
    data = draws[0]
    assert data.real.tolist() == [*(expensive.mean(axis=1) > 0.52), *[False] * 6] and data.real[:3].sum() == 2
    assert data.biased.tolist() == [*[False] * 6, *(cheap.mean(axis=1) > 0.52)]
    strong = np.mean([d.expensive for d in draws], axis=(0, 2))
    weak = np.mean([d.screen_cheap for d in draws], axis=(0, 2))
    assert strong[:3] == pytest.approx(expensive.mean(axis=1), abs=0.03)
    assert strong[3:] == pytest.approx(0.5, abs=0.03) and weak[3:6] == pytest.approx(0.5, abs=0.03)
    assert weak[6:] == pytest.approx(cheap.mean(axis=1), abs=0.03)
    swapped = draws[1].expensive[3:5]  # one swap for all: what two hypotheses share stays shared
    assert abs(np.corrcoef(swapped)[0, 1] - np.corrcoef(expensive[:2])[0, 1]) < 0.3
    none = simulate.resampled(cheap, expensive, 0.02, 100, 100, 0, effects=False)
    assert not none.real.any() and not none.biased.any()


def test_a_fixed_sample_counts_its_calls():
    data = simulate.draw(WORLD, 5, 40, 0)
    assert simulate.fixed_sample(data, 30, 0.05, 0.02).calls == 200 * 30
    assert simulate.fixed_sample(data, 30, 0.05, 0.02, per_call=7).calls == 29 * 30


def test_the_design_on_real_verdicts_finds_what_the_strong_judge_sees_and_nothing_where_sides_are_swapped():
    rng = np.random.default_rng(5)
    strong = np.clip(rng.normal([[0.75], [0.7], [0.5], [0.5]], 0.25, (4, 150)), 0, 1)
    cheap = np.clip(strong + rng.normal(0, 0.2, strong.shape), 0, 1)
    found = real_verdicts.default_design(cheap, strong, [40, 80, 150], 150, 60, 30, 0.05, 0.02, 0.05, 0)
    assert found["real hypotheses"][0] == 2
    assert found["power"][0] > 0.9
    assert found["false discovery rate"][0] <= 0.05
    assert found["any claim without effects"][0] <= 0.1
    assert all(low <= value <= high for value, low, high in list(found.values())[1:])
