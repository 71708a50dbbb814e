"""The share of a behaviour that the length of answers tells."""

from __future__ import annotations

import numpy as np
import pytest

from driftbook.evidence.lengths import at_lengths


def answers(rng: np.random.Generator, count: int, typical: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, and who shows a behaviour that comes with ``rate`` a character."""
    lengths = np.exp(rng.normal(np.log(typical), 0.6, count)).round() + 1
    return lengths, (rng.random(count) < 1 - np.exp(-rate * lengths)).astype(float)


@pytest.mark.parametrize("longer", [60.0, 200.0, 400.0])
def test_a_behaviour_that_comes_with_length_is_expected_as_often_as_it_comes(longer):
    rng = np.random.default_rng(0)
    base, other = answers(rng, 4000, 200.0, 0.003), answers(rng, 4000, longer, 0.003)
    lengths, scores = (np.concatenate(part) for part in zip(base, other, strict=True))
    found = at_lengths(scores, lengths, np.arange(8000) >= 4000)
    assert found == pytest.approx(other[1].mean(), abs=0.04)  # the logistic curve is not the one that was drawn from


def test_a_behaviour_that_has_nothing_to_do_with_length_is_expected_as_before():
    rng = np.random.default_rng(1)
    lengths = np.concatenate([rng.integers(50, 500, 3000), rng.integers(400, 900, 3000)])
    scores = (rng.random(6000) < np.repeat([0.2, 0.7], 3000)).astype(float)
    assert at_lengths(scores, lengths, np.arange(6000) >= 3000) == pytest.approx(scores[:3000].mean(), abs=0.04)


def test_answers_of_the_same_lengths_tell_nothing():
    lengths = np.tile([10, 40, 90, 200], 20)
    scores = np.tile([0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], 10)
    assert at_lengths(scores, lengths, np.arange(80) >= 40) == pytest.approx(0.5, abs=1e-6)


def test_sides_without_a_reading_and_scores_that_are_no_shares():
    lengths, changed = np.arange(6.0), np.arange(6) >= 3
    assert np.isnan(at_lengths(np.array([np.nan, np.nan, np.nan, 1, 0, 1]), lengths, changed))
    assert at_lengths(np.array([0.0, 0, 0, 1, 0, 1]), lengths, changed) == 0
    assert at_lengths(np.array([0.2, 0.4, 0.6, 1, 0, 1]), lengths, changed) == pytest.approx(0.4)
