"""Ray: the same texts from one worker, two, and one that is killed half-way; replay, embedding and judging as here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from driftbook import decode, scale
from driftbook.models.interventions import Pair, open_pair
from driftbook.models.sampling import SamplingParams
from driftbook.models.vectors import VectorRecord, VectorSet
from driftbook.store import ShardStore
from driftbook.workbook.parameters import Engine, ModelSpec, Steer
from models import saved
from test_decode import PROMPTS, content

PARAMS = SamplingParams(8, temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def ray():
    """One Ray for this file: starting it takes seconds. The engines of the tests differ in their workers alone."""
    scale.connect(Engine(kind="ray", workers=2), 1)
    yield
    scale.disconnect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), "llama", attn_implementation="sdpa")


@pytest.fixture(scope="module")
def steered(folder, tmp_path_factory) -> tuple[Pair, scale.PairSpec]:
    """A pair with a steered side, and what a worker needs to open it too."""
    cache = tmp_path_factory.mktemp("cache")
    base = ModelSpec(model=str(folder), dtype="float32", device="cpu")
    intervention = Steer(trait="calm", coefficient=0.5)
    vectors = some_vectors()
    pair = open_pair(base, intervention, cache, cache, vectors)
    keys = {side.name: side.key for side in pair}
    return pair, scale.PairSpec(base, intervention, cache, cache, vectors, keys)


def some_vectors(layers: int = 4, d_model: int = 48) -> VectorSet:
    rng = np.random.default_rng(0)
    record = VectorRecord(
        "calm", "probe", 1, "resid_post", "response_avg", "own", "tiny", None, "float32", None, "natural", 4,
        1.0, 0.5, 1.0, 5.0, 0.1, True,
    )  # fmt: skip
    directions = {("calm", "probe"): rng.normal(size=(layers, 1, d_model)).astype(np.float32)}
    null = rng.normal(size=(8, layers, 1, d_model)).astype(np.float32)
    return VectorSet(
        list(range(layers)), ["resid_post"], directions, np.full((layers, 1), 5.0, np.float32), null, [record]
    )


@pytest.fixture
def shared(steered):
    """Let the pair use some number of workers for one test."""
    pair, spec = steered
    used = []

    def share(workers: int) -> scale.Workers:
        for other in used:  # it holds the CPUs
            other.close()
        used.append(scale.Workers(Engine(kind="ray", workers=workers)))
        scale.share(pair, used[-1], spec)
        return used[-1]

    yield share
    for workers in used:
        workers.close()
    for side in pair:
        side.workers = None


def texts_of(pair: Pair, store: Path, samples: int = 4, progress=None, **options) -> pd.DataFrame:
    ids = decode.encode(pair, PROMPTS, PARAMS.max_new_tokens)
    asks = decode.first_round(PROMPTS, samples, 10**6)
    options = {"shard": 7, "batch_size": 4, "progress": progress, **options}
    parts = [
        decode.decode_texts(side, PROMPTS, ids[side.name], asks, PARAMS, 0, ShardStore(store), **options)
        for side in pair
    ]
    return content(pd.concat(parts, ignore_index=True))


# -------------------------------------------------------------------------------------------------------------- texts


def test_texts_are_the_same_with_one_worker_and_with_two(ray, steered, shared, tmp_path):
    pair, _ = steered
    here = texts_of(pair, tmp_path / "local")
    for n in (1, 2):
        told: list[int] = []
        workers = shared(n)
        there = texts_of(pair, tmp_path / str(n), progress=told.append)
        pd.testing.assert_frame_equal(there, here)
        assert sum(told) == len(here) and max(told) > 1  # a shard at a time: no text was made in this process
        assert len(workers.memory()) == n and os.getpid() not in workers.memory()
    assert {p.name for p in (tmp_path / "2").rglob("*.parquet")} == {
        p.name for p in (tmp_path / "local").rglob("*.parquet")
    }
    assert here[here.side == "base"].text.tolist() != here[here.side == "intervention"].text.tolist()


def test_a_worker_that_is_killed_half_way_changes_no_text(ray, steered, shared, tmp_path):
    pair, _ = steered
    here = texts_of(pair, tmp_path / "local", samples=8)
    workers = shared(2)
    texts_of(pair, tmp_path / "warm", samples=1)
    (victim, _), other = workers.memory().items()
    told: list[int] = []

    def kill(n: int) -> None:
        told.append(n)
        if len(told) == 4:
            os.kill(victim, signal.SIGKILL)

    there = texts_of(pair, tmp_path / "killed", samples=8, progress=kill)
    pd.testing.assert_frame_equal(there, here)
    assert sum(told) == len(here) and len(told) > 20
    now = workers.memory()
    assert victim not in now and other[0] in now and len(now) == 2
