"""What the capture benches count, on a tiny model."""

import pytest

from driftbench import model_speed as benchmarks
from driftbook.models.projection import all_points
from driftbook.models.sampling import SamplingParams
from models import fresh, requests_for, some_prompts


def test_cost_by_size_reads_every_batch_with_every_number_of_traits():
    model = fresh("llama", "sdpa", eos=frozenset())
    requests = requests_for(some_prompts([4, 9, 2]))
    points = all_points(model, ["resid_pre", "resid_post"])
    table = benchmarks.by_size(model, requests, SamplingParams(5, 1.0), points, [1, 3], [2, 7], seed=0)
    assert list(zip(table.batch, table.traits, strict=True)) == [(b, n) for b in (1, 3) for n in (0, 2, 7)]
    assert (table.tokens_per_s > 0).all() and (table.of_bare[table.traits == 0] == 1).all()
    # 8 points of (traits + norm) float32 numbers a token, prompt and response.
    for row in table[table.traits > 0].itertuples():
        tokens = sum([4, 9, 2][: row.batch]) + 5 * row.batch
        assert row.rows_mb == pytest.approx(tokens * 8 * (row.traits + 1) * 4 / 1e6)


def test_both_sides_of_a_bench_answer_all_requests():
    model = fresh("llama", "sdpa")
    requests, params = requests_for(some_prompts([4, 9, 2])), SamplingParams(5, 0.0)
    plain = benchmarks.plain_generate(model, requests, params, 2)
    assert plain == benchmarks.local_generate(model, requests, params, 2) and any(plain)
    points = all_points(model, ["resid_post"])
    vectors = benchmarks.random_probe(model, points, 3, 0)
    assert benchmarks.tier3_generate(model, requests, params, 2, 1, points, vectors) == sum(map(len, plain))
