"""Draws against the distribution that they claim, and that against transformers' own filters."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from driftbook.models import sampling
from driftbook.models.local import Request
from driftbook.models.sampling import (
    SamplingParams,
    filtered_probabilities,
    sample,
    stream_seed,
    token_log_probabilities,
    uniforms,
)
from models import fresh, full_logits, generated, loaded, some_prompts

pytestmark = pytest.mark.numeric

FILTERS = [
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.0, top_p=1.0),
    SamplingParams(temperature=1.3, top_p=1.0, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.8, top_k=10),
    SamplingParams(temperature=0.9, top_p=1.0, min_p=0.05),
    SamplingParams(temperature=1.5, top_p=0.95, top_k=30, min_p=0.02),
    SamplingParams(temperature=0.2, top_p=0.5),
]


def some_logits(rows: int = 4, vocabulary: int = 300, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def warped(logits: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    """What transformers would draw from."""
    ids, scores = torch.zeros(len(logits), 1, dtype=torch.long), logits.float()
    scores = TemperatureLogitsWarper(p.temperature)(ids, scores)
    if p.top_k:
        scores = TopKLogitsWarper(p.top_k)(ids, scores)
    if p.top_p < 1:
        scores = TopPLogitsWarper(p.top_p)(ids, scores)
    if p.min_p:
        scores = MinPLogitsWarper(p.min_p)(ids, scores)
    return scores.softmax(-1)


@pytest.mark.parametrize("params", FILTERS, ids=str)
@pytest.mark.parametrize("spread", [0.01, 2.0, 8.0])
def test_the_filtered_distribution_is_that_of_transformers(params, spread):
    logits = some_logits(spread=spread)
    torch.testing.assert_close(filtered_probabilities(logits, params), warped(logits, params), atol=1e-6, rtol=1e-4)


def shares(logits: torch.Tensor, params: SamplingParams, points: int = 5_000) -> torch.Tensor:
    """How often each token of one row is drawn when u runs evenly over [0, 1): the measure that ``sample`` gives it."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    drawn = sample(logits.expand(points, -1), u, params)
    return torch.bincount(drawn, minlength=logits.shape[-1]) / points


@pytest.mark.parametrize("params", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_have_the_filtered_distribution(params, dtype):
    """No luck in it: evenly spaced u hit each token as often as its probability says, to a few points in 5,000."""
    for row in some_logits(rows=2).to(dtype):
        expected = filtered_probabilities(row[None], params)[0]
        found = shares(row[None], params)
        # bf16 has equal logits: which of two equal tokens stands inside the edge of a filter is nobody's promise.
        _, value = row.float().unique(return_inverse=True)
        by_value = torch.zeros(2, int(value.max()) + 1).index_add_(1, value, torch.stack([found, expected]))
        assert (by_value[0] - by_value[1]).abs().max() < 5e-4


@pytest.mark.parametrize("candidates", [(64, 2048), (8, 32), (4, 280, 290)])
@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=1.0, top_p=0.9), SamplingParams(temperature=1, min_p=0.5)]
)
def test_a_nucleus_wider_than_the_candidates_is_drawn_whole(params, candidates, monkeypatch):
    """Nearly flat rows keep some 270 of 300 tokens; a peaked row stands in the same batch."""
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    flat, peaked = some_logits(rows=1, spread=0.05), some_logits(rows=1, spread=9.0, seed=1)
    assert (filtered_probabilities(flat, params) > 0).sum() > 200
    both = torch.cat([flat, peaked])
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = sample(both.repeat_interleave(4000, 0), u.repeat(2), params).view(2, -1)
    for row in range(2):
        found = torch.bincount(drawn[row], minlength=300) / 4000
        assert (found - filtered_probabilities(both[row : row + 1], params)[0]).abs().max() < 6e-4


def test_random_draws_pass_a_chi_square_test():
    params, n = SamplingParams(temperature=1.0, top_p=0.95), 40_000
    logits = some_logits(rows=1, vocabulary=40, spread=1.5)
    expected = filtered_probabilities(logits, params)[0].double().numpy()
    drawn = sample(logits.expand(n, -1), torch.from_numpy(uniforms(7, n)), params).numpy()
    counts = np.bincount(drawn, minlength=40)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    scale = n / expected[kept].sum() / n
    assert stats.chisquare(counts[kept], expected[kept] * n * scale).pvalue > 1e-3


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_the_ends_of_the_unit_interval_give_tokens_that_are_possible(params):
    logits = torch.cat([some_logits(), some_logits(spread=12.0, seed=2), torch.full((1, 300), -50.0)])
    logits[-1, 17] = 50.0  # nothing else has any mass in float32
    possible = filtered_probabilities(logits, params) > 0
    for u in (0.0, 1e-300, 1e-12, 1 - 1e-12, float(np.nextafter(1, 0))):
        drawn = sample(logits, torch.full((len(logits),), u, dtype=torch.float64), params)
        assert possible.gather(-1, drawn[:, None]).all()
        assert drawn[-1] == 17


def test_temperature_zero_is_the_argmax():
    logits = some_logits()
    params = SamplingParams(temperature=0.0, top_p=0.5)
    assert torch.equal(sample(logits, torch.rand(4), params), logits.argmax(-1))
    assert torch.equal(filtered_probabilities(logits, params).argmax(-1), logits.argmax(-1))


def test_rows_do_not_see_each_other():
    params = SamplingParams(temperature=1.0, top_p=0.9)
    logits = torch.cat([some_logits(spread=s, seed=k) for k, s in enumerate((0.05, 1.0, 6.0))])
    u = torch.rand(len(logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = torch.cat([sample(logits[i : i + 1], u[i : i + 1], params) for i in range(len(logits))])
    assert torch.equal(sample(logits, u, params), alone)


def test_streams_are_reproducible_and_apart():
    assert stream_seed("decode", 0, "base", "ab", 1) == 2082907972653442188
    seeds = [stream_seed("decode", 0, side, p, k) for side in ("base", "intervention") for p in "ab" for k in range(50)]
    assert len(set(seeds)) == 200 and all(0 <= s < 2**63 for s in seeds)
    u = np.stack([uniforms(s, 100) for s in seeds])
    assert (np.abs(np.corrcoef(u)[~np.eye(200, dtype=bool)]) < 0.5).all()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert np.array_equal(uniforms(seeds[0], 5), uniforms(seeds[0], 100)[:5])


def test_first_two_tokens_of_a_model_have_their_exact_joint_distribution():
    """Prefill, shared prompt, cache and step together: 4,000 texts against the product of two exact distributions."""
    n, params = 4000, SamplingParams(2, temperature=0.6, top_k=4, top_p=1.0)
    model = fresh("llama", "sdpa", eos=frozenset())
    (prompt,) = some_prompts([5])
    found = generated(model, [Request(prompt, stream_seed("joint", k)) for k in range(n)], params, batch_size=500)
    counts: dict[tuple[int, int], int] = {}
    for tokens, _ in found:
        counts[tokens[0], tokens[1]] = counts.get((tokens[0], tokens[1]), 0) + 1
    first = filtered_probabilities(torch.from_numpy(full_logits(model, prompt)[-1:]), params)[0].double()
    expected = {}
    for a in first.nonzero().flatten().tolist():
        after = filtered_probabilities(torch.from_numpy(full_logits(model, (*prompt, a))[-1:]), params)[0].double()
        expected |= {(a, b): float(first[a] * after[b]) for b in after.nonzero().flatten().tolist()}
    assert set(counts) <= set(expected) and len(expected) == 16
    p = np.array(list(expected.values()))
    observed = np.array([counts.get(pair, 0) for pair in expected])
    large = p * n >= 5
    assert stats.chisquare(observed[large], p[large] / p[large].sum() * observed[large].sum()).pvalue > 1e-3


def test_seeds_decide_the_text_and_nothing_else_does():
    model, params = loaded("llama", "sdpa"), SamplingParams(10, 1.0, 1.0)
    (prompt,) = some_prompts([6])
    first, again, other = (generated(model, [Request(prompt, s)], params)[0] for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_probability_of_a_token_is_that_of_the_distribution_it_is_drawn_from(params, spread):
    logits = some_logits(300, 300, spread)
    tokens = torch.arange(300)
    expected = filtered_probabilities(logits, params).gather(-1, tokens[:, None]).squeeze(-1)
    for given in (logits, logits.log_softmax(-1)):
        found = token_log_probabilities(given, tokens, params)
        torch.testing.assert_close(found.exp(), expected, rtol=1e-4, atol=1e-9)
        assert ((found == -torch.inf) == (expected == 0)).all()
    assert (token_log_probabilities(logits, tokens, params, slack=0.05) > -torch.inf).sum() >= (expected > 0).sum()


def test_greedy_sampling_has_no_distribution():
    with pytest.raises(ValueError, match="greedy"):
        token_log_probabilities(some_logits(), torch.zeros(4, dtype=torch.long), SamplingParams(temperature=0))
