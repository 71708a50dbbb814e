"""The short measurement behind ``make plan``: it counts real tokens and texts, and divides by real time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driftbook.models import calibration
from driftbook.models import utilisation as used
from driftbook.models.sampling import SamplingParams
from models import loaded, some_prompts


@pytest.fixture
def clock(monkeypatch):
    """A clock that a fake batch moves on."""
    now = [100.0]
    monkeypatch.setattr(calibration.time, "monotonic", lambda: now[0])
    return now


def test_rate_is_work_over_time_without_the_first_batch(clock):
    lengths = iter([50.0, 2.0, 2.0])

    def batch(_: int) -> int:
        clock[0] += next(lengths)
        return 10

    assert calibration._rate(batch, seconds=3) == pytest.approx(20 / 4)


def test_every_distinct_batch_is_counted_by_its_tokens(clock, monkeypatch):
    model = loaded("llama", "sdpa")
    params = SamplingParams(9, temperature=1.0, top_p=1.0)
    seen, generate = [], calibration.LocalEngine.generate

    def counted(self, requests, params, taps=()):
        done = list(generate(self, requests, params, taps))
        seen.append(([r.seed for r in requests], params, [len(c.token_ids) for c in done]))
        clock[0] += 1.0
        return iter(done)

    monkeypatch.setattr(calibration.LocalEngine, "generate", counted)
    rate, length = calibration.generation_rate(model, some_prompts([4, 7, 5, 9, 2, 6]), params, seconds=2)
    assert len(seen) == 3 and len({tuple(seeds) for seeds, _, _ in seen}) == 3
    lengths = seen[1][2] + seen[2][2]
    assert seen[1][1] == seen[2][1] == params  # the first batch only warms up, with two tokens
    assert rate == pytest.approx(sum(lengths) / 2) and length == pytest.approx(sum(lengths) / (12 * 9))


def test_prompts_are_read_without_their_padding(clock, monkeypatch):
    replay = calibration.replay

    def slow(*args):
        clock[0] += 2.0
        return replay(*args)

    monkeypatch.setattr(calibration, "replay", slow)
    assert calibration.reading_rate(loaded("llama", "sdpa"), some_prompts([3, 30]), seconds=1) == pytest.approx(33 / 2)


def test_utilisation_counts_the_matrices_that_are_multiplied(monkeypatch):
    """Two operations a parameter and token; a table of embeddings of its own is looked up, not multiplied."""
    monkeypatch.setattr(used, "matrix_rate", lambda device, dtype: 1e9)
    tied, untied = loaded("llama", "sdpa", tie_word_embeddings=True), loaded("llama", "sdpa", tie_word_embeddings=False)
    assert used.utilisation(tied, 100.0) == pytest.approx(used.utilisation(untied, 100.0))
    inside = sum(p.numel() for p in tied.model.parameters())
    assert used.utilisation(tied, 100.0) == pytest.approx(2 * inside * 100.0 / 1e9)


def test_the_matrix_rate_is_that_of_the_fastest_product(monkeypatch):
    times = iter([0.0, 9.0, 10.0, 10.5, 20.0, 20.25, 30.0, 31.0])
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: next(times))
    rate = used.matrix_rate(torch.device("cpu"), torch.float32, repeats=3)
    assert rate == pytest.approx(2 * 1024**3 / 0.25)


def test_the_embedder_is_fed_distinct_texts(clock):
    class Embedder:
        def encode(self, texts):
            assert len(set(texts)) == len(texts)
            clock[0] += 0.5
            return np.zeros((len(texts), 3))

    assert calibration.embedding_rate(Embedder().encode, seconds=1, texts=8) == pytest.approx(16)
