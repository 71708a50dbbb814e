"""Commitment, persistence and change points of planted traces, and how rarely noise shows any."""

import numpy as np
import pandas as pd
import pytest
import ruptures

from driftbook.evidence.dynamics import BAND, dynamics, dynamics_summary, null_ranges


def noise(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n) * scale


def step(n: int, at: int, height: float, seed: int = 0, scale: float = 0.5) -> np.ndarray:
    return np.where(np.arange(n) >= at, height, 0.0) + noise(n, seed, scale)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("at", [0, 13, 30])
def test_a_planted_step_is_found_where_it_is(at, sign):
    found = [dynamics(sign * step(50, at, 5.0, seed)) for seed in range(20)]
    assert all(abs(d.commitment - at) <= 1 for d in found)
    np.testing.assert_allclose([d.persistence for d in found], (50 - at) / 50, atol=0.06)
    np.testing.assert_allclose([d.outside for d in found], (50 - at) / 50, atol=0.1)
    np.testing.assert_allclose([d.mean for d in found], sign * 5 * (50 - at) / 50, atol=0.3)
    if at:
        assert all(any(abs(c - at) <= 1 for c in d.change_points) for d in found)
    else:
        assert sum(len(d.change_points) for d in found) <= 4


def test_a_burst_that_ends_is_no_commitment():
    trace = noise(60, 0, 0.4)
    trace[20:35] += 5
    d = dynamics(trace)
    assert np.isnan(d.commitment)
    assert d.persistence == pytest.approx(15 / 60)
    assert {min(abs(c - k) for c in d.change_points) <= 1 for k in (20, 35)} == {True}


def test_one_token_outside_at_the_end_is_no_commitment():
    for last in (1, 2):
        trace = np.zeros(20)
        trace[-last:] = 9
        assert np.isnan(dynamics(trace).commitment)


def test_noise_stays_in_its_band_and_commits_to_nothing():
    found = [dynamics(noise(60, seed)) for seed in range(150)]
    assert np.mean([d.outside for d in found]) == pytest.approx(0.05, abs=0.01)
    assert np.mean([np.isfinite(d.commitment) for d in found]) < 0.02
    assert np.mean([len(d.change_points) > 0 for d in found]) < 0.15
    assert np.mean([d.persistence for d in found]) < 0.04
    assert abs(np.mean([d.mean for d in found])) < 0.05


def test_the_band_is_the_scale_and_the_only_one():
    """Twice the trace under twice the band is the same trace: nothing else in it has a unit."""
    trace = step(40, 10, 4.0)
    one, two = dynamics(trace), dynamics(trace * 2, band=BAND * 2)
    assert (one.commitment, one.persistence, one.outside) == (two.commitment, two.persistence, two.outside)
    assert one.change_points == two.change_points
    assert two.velocity == pytest.approx(2 * one.velocity)


def test_velocity_is_the_slope_of_a_ramp():
    assert dynamics(np.arange(30) * 0.25).velocity == pytest.approx(0.25)
    assert dynamics(np.zeros(30)).velocity == 0


def test_short_and_empty_traces():
    empty = dynamics(np.array([]))
    assert all(np.isnan(v) for v in (empty.mean, empty.commitment, empty.velocity, empty.persistence, empty.outside))
    assert empty.change_points == ()
    one = dynamics(np.array([3.0]))
    assert (one.mean, one.velocity, one.persistence, one.outside) == (3.0, 0.0, 1.0, 1.0)
    assert np.isnan(one.commitment)
    three = dynamics(np.array([3.0, 3.0, 3.0]))
    assert three.commitment == 0
    assert dynamics(np.full(40, 3.0)).change_points == ()


def test_rows_without_a_state_are_left_out():
    trace = step(30, 10, 5.0)
    assert dynamics(np.concatenate([[np.nan], trace])) == dynamics(trace)


# ------------------------------------------------------------------------------------------------------------ summaries


def measured(trait: str, side: str, seed: int, prompts: int = 12, lift: float = 0.0) -> list[dict]:
    rows = []
    for p in range(prompts):
        trace = noise(30, 100 * seed + p) + lift
        about = {"trait": trait, "side": side, "layer": 3, "site": "resid_post", "prompt_id": str(p)}
        rows.append(about | dynamics(trace).measures())
    return rows


def test_a_trait_that_moves_leaves_what_meaningless_directions_reach():
    null = [row | {"direction": d} for d in range(20) for row in measured("null", "base", seed=d)]
    ranges = null_ranges(pd.DataFrame(null)).set_index("measure")
    assert ranges.loc["outside", "low"] < 0.05 < ranges.loc["outside", "high"] < 0.12
    moves = measured("still", "base", 50) + measured("still", "intervention", 51)
    moves += measured("moves", "base", 52) + measured("moves", "intervention", 53, lift=3.0)
    found = dynamics_summary(pd.DataFrame(moves), ranges.reset_index()).set_index(["trait", "measure"])
    for measure in ("mean", "outside", "commits", "persistence"):
        row = found.loc["moves", measure]
        assert row.change_low > 0 and row.intervention > row.null_high
        assert row.change == pytest.approx(row.intervention - row.base) and row.prompts == 12
        assert abs(found.loc["still", measure].change) < row.change / 5
    # What few answers reach at all: the mean is over those that do.
    assert np.isnan(found.loc["still", "commitment"].change) and found.loc["moves", "commitment"].intervention < 3


def test_the_prompt_is_the_unit_of_a_summary():
    """Ten answers to one prompt are one prompt: its mean counts as often as that of a prompt with one answer."""
    rows = [r | {"mean": 10.0} for r in measured("t", "base", 0, 1) * 10]
    rows += [r | {"mean": 0.0, "prompt_id": "other"} for r in measured("t", "base", 0, 1)]
    found = dynamics_summary(pd.DataFrame(rows), null_ranges(pd.DataFrame(rows).assign(direction=0)))
    first = found.set_index("measure").loc["mean"]
    assert first.base == 5 and first.prompts == 2 and np.isnan(first.intervention)


def test_change_points_are_those_of_pelt_on_squared_error():
    rng = np.random.default_rng(3)
    for _ in range(30):
        n = int(rng.integers(8, 50))
        score = rng.normal(size=n) + np.where(np.arange(n) < n // 3, 0, rng.normal() * 3)
        noise = (np.median(np.abs(np.diff(score))) / 0.6745) ** 2 / 2
        plain = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(score[:, None]).predict(pen=3 * np.log(n) * noise)
        assert dynamics(score).change_points == tuple(plain[:-1])
