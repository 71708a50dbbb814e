"""Where the next texts come from: budgets kept, expectations exact, and nothing outside the discover split."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbook.discovery.strategies import State, allocate, asks, plan_round, weights
from driftbook.prompts import Prompt, PromptSet

PROMPTS = PromptSet.of(
    [Prompt(f"prompt {i}") for i in range(12)], ["discover", "screen", "discover", "validate"] * 3
)
DISCOVER = [i for i, s in enumerate(PROMPTS.splits) if s == "discover"]


def never(texts):
    pytest.fail("a strategy that fixes its shares before a text is read has read one")


def state(**changes) -> State:
    texts = pd.DataFrame(
        [(side, p.prompt_id, k) for side in ("base", "intervention") for p in PROMPTS.prompts for k in range(2)],
        columns=["side", "prompt_id", "sample_index"],
    )
    defaults = dict(prompts=PROMPTS, texts=texts, divergence=None, seed=0, round=1, rounds=3, embed=never)
    return State(**{**defaults, **changes})


def screened(propensity: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"prompt_id": [PROMPTS.prompts[i].prompt_id for i in DISCOVER], "propensity": propensity})


def sampling(strategy: str) -> SimpleNamespace:
    return SimpleNamespace(strategy=strategy)


@pytest.mark.parametrize("strategy", ["uniform", "screened", "exhaustive"])
def test_rounds_spend_the_budget_on_discover_prompts_alone(strategy):
    spent, texts, done = 0, state().texts, []
    for number in (1, 2, 3):
        s = state(texts=texts, round=number, divergence=screened([1, 1, 1, 0.1, 0.1, 0.1]))
        planned = plan_round(sampling(strategy), s, 100 - spent)
        assert {PROMPTS.splits[a.prompt] for a in planned} <= {"discover"}
        assert all(a.round == number for a in planned)
        spent += len(planned)
        done += [(a.prompt, a.sample) for a in planned]
        new = [
            (side, PROMPTS.prompts[a.prompt].prompt_id, a.sample) for side in ("base", "intervention") for a in planned
        ]
        texts = pd.concat([texts, pd.DataFrame(new, columns=texts.columns)])
        if number == 1:
            assert len(planned) == (100 if strategy == "exhaustive" else 34)
    assert spent == 100
    assert len(set(done)) == len(done)  # numbered on from what there is, never a text twice
    for i in DISCOVER:
        mine = sorted(k for p, k in done if p == i)
        assert mine == list(range(2, 2 + len(mine)))


def test_nothing_is_planned_without_a_budget_or_prompts():
    assert plan_round(sampling("uniform"), state(), 0) == []
    none = PromptSet.of(PROMPTS.prompts, ["validate"] * 12)
    assert plan_round(sampling("uniform"), state(prompts=none), 50) == []


def test_weights_are_propensities_where_a_screen_was_made():
    propensity = [1.0, 0.1, 1.0, 0.1, 1.0, 0.1]
    table = screened(propensity).sample(frac=1, random_state=0)
    np.testing.assert_array_equal(weights(sampling("screened"), state(divergence=table), DISCOVER), propensity)
    for other in (
        weights(sampling("uniform"), state(divergence=table), DISCOVER),
        weights(sampling("screened"), state(), DISCOVER),
    ):
        np.testing.assert_array_equal(other, np.ones(6))


@pytest.mark.parametrize("budget", [1, 7, 25])
def test_counts_have_exactly_their_expectation(budget):
    """No prompt is rounded away: the mean count is budget * weight / sum, and every draw is within one of it."""
    weight = np.array([1.0, 0.1, 0.5, 1.0, 0.1, 0.3])
    expected = budget * weight / weight.sum()
    counts = np.stack([allocate(weight, budget, state(seed=seed)) for seed in range(3000)])
    assert (counts.sum(1) == budget).all()
    assert (np.abs(counts - expected) < 1).all()
    error = np.sqrt(0.25 / len(counts))
    assert (np.abs(counts.mean(0) - expected) < 4 * error).all()
    np.testing.assert_array_equal(allocate(weight, budget, state()), allocate(weight, budget, state()))


def test_shares_weighted_by_inverse_propensity_are_unbiased():
    """Prompts sampled ten times as often carry a behaviour: the raw share says so, the weighted one does not."""
    rng = np.random.default_rng(0)
    rate = np.array([0.9, 0.9, 0.2, 0.1, 0.1, 0.0])
    weight = np.array([1.0, 1.0, 0.1, 0.1, 0.1, 0.1])
    raw, weighted = [], []
    for seed in range(400):
        counts = allocate(weight, 60, state(seed=seed))
        hits = rng.binomial(counts, rate)
        raw.append(hits.sum() / counts.sum())
        weighted.append((hits / (60 * weight / weight.sum())).mean())
    assert np.mean(raw) > 0.7
    assert np.mean(weighted) == pytest.approx(rate.mean(), abs=0.01)


def test_asks_number_on_from_the_samples_that_are_there():
    planned = asks(state(round=2), np.array([0, 2, 0, 0, 1, 0]), DISCOVER)
    assert [(a.prompt, a.sample, a.round) for a in planned] == [(2, 2, 2), (2, 3, 2), (8, 2, 2)]
