"""Ray: the same texts from one worker, two, and one that is killed half-way; replay, embedding and judging as here.

Workers and this process may have different numbers of threads. Texts are compared letter by letter all the same: in
float32 another order of sums moves a probability by about 1e-7, and a draw becomes another token only if its random
number lies that close to an edge, which none of these few hundred does. Numbers are compared up to their rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from driftbook import decode, scale
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.discovery.strategies import first_round
from driftbook.engines import open_workers
from driftbook.errors import DriftbookError, ModelError
from driftbook.evidence.opened import open_judge
from driftbook.hashes import text_digest
from driftbook.interventions import Checkpoint, Steer
from driftbook.judges import Local
from driftbook.ledger import Ledger
from driftbook.models import captured, sides
from driftbook.models.projection import Rows
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, open_pair
from driftbook.models.vectors import VectorRecord, VectorSet
from driftbook.parameters import EngineSpec, ModelSpec
from driftbook.replies import request_key
from driftbook.store import ShardStore
from models import assert_same_but_for_rounding, saved
from test_decode import PROMPTS, content

FOUR = EngineSpec(batch_size=4)
PARAMS = SamplingParams(8, temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def ray():
    """One Ray for this file: starting it takes seconds. The engines of the tests differ in their workers alone.

    Ray gives its own processes 30 s, and no setting gives them more: on a busy machine it may take another try."""
    try:
        scale.connect(EngineSpec(kind="ray", workers=2), 1)
    except DriftbookError:
        scale.connect(EngineSpec(kind="ray", workers=2), 1)
    yield
    scale.disconnect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), "llama", attn_implementation="sdpa")


@pytest.fixture(scope="module")
def steered(folder, tmp_path_factory) -> tuple[Pair, sides.PairSpec]:
    """A pair with a steered side, and what a worker needs to open it too."""
    cache = tmp_path_factory.mktemp("cache")
    base = ModelSpec(model=str(folder), dtype="float32", device="cpu")
    intervention = Steer(trait="calm", coefficient=0.5)
    vectors = some_vectors()
    pair = open_pair(base, intervention, cache, cache, vectors, engine=FOUR)
    keys = {side.name: side.key for side in pair}
    return pair, sides.PairSpec(base, intervention, cache, cache, vectors, keys, FOUR)


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

    def share(workers: int) -> scale.RayWorkers:
        for other in used:  # it holds the CPUs
            other.close()
        used.append(scale.RayWorkers(EngineSpec(kind="ray", workers=workers)))
        sides.share(pair, used[-1], spec)
        return used[-1]

    yield share
    for workers in used:
        workers.close()
    for side in pair:
        side.workers = None


def texts_of(pair: Pair, store: Path, samples: int = 4, progress=None, **options) -> pd.DataFrame:
    ids = decode.encode(pair, PROMPTS, PARAMS.max_new_tokens)
    asks = first_round(PROMPTS, samples, 10**6)
    options = {"shard": 7, "progress": progress, **options}
    texts = decode_texts(pair, PROMPTS, ids, asks, PARAMS, 0, ShardStore(store), **options)
    return content(texts)


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


def test_a_worker_that_computes_another_model_is_refused(ray, steered, shared, tmp_path):
    pair, spec = steered
    workers = shared(1)
    strange = replace(spec, keys=spec.keys | {"intervention": "0" * 16})
    sides.share(pair, workers, strange)
    with pytest.raises(ModelError, match="opened another intervention model than the driver"):
        texts_of(pair, tmp_path)


def test_a_worker_for_vllm_leaves_the_gpu_to_it(steered):
    _, spec = steered
    other = replace(spec, intervention=Checkpoint(model="x", device="cuda"), base=ModelSpec(device="cuda"))
    there = other.unused_weights("bfloat16")
    assert {(m.device, m.dtype) for m in (there.base, there.intervention)} == {("cpu", "bfloat16")}
    assert spec.unused_weights("float32").intervention == spec.intervention


# --------------------------------------------------------------------------------------- replay, embeddings, judging


@pytest.mark.numeric
def test_replay_embeddings_and_verdicts_are_those_of_this_process(ray, steered, shared, folder, tmp_path, monkeypatch):
    pair, spec = steered
    workers = shared(2)
    vectors = spec.vectors
    points = [(layer, "resid_post") for layer in range(4)]
    probe = captured.Probe([], [], ["calm"], points, torch.from_numpy(vectors.matrix(["calm"], "probe", points)))
    rng = np.random.default_rng(1)
    sequences = [TokenSequence(tuple(rng.integers(5, 300, n)), tuple(rng.integers(5, 300, 4))) for n in range(3, 23)]
    monkeypatch.setattr(captured, "REPLAY_SHARD", 6)
    texts = [f"{'rain and ' * (i % 7)}tea {i}" for i in range(60)]
    claims = [Hypothesis("hedges", "base", words=("may",)), Hypothesis("agrees", "base", words=("yes",))]

    def rows(cache: Path) -> list[Rows]:
        told: list[int] = []
        out = captured.capture_replay(pair.intervention, sequences, probe, cache, told.append)
        assert sum(told) == len(sequences)
        return out

    def vectors_of(cache: Path, workers: scale.RayWorkers | None) -> np.ndarray:
        with EmbeddingCache(cache) as store:
            found = embed(texts, store, Embedder(dtype="float32", device="cpu"), commit=16, workers=workers)
            assert len(store.get(Embedder(dtype="float32", device="cpu").identity, [text_digest(texts[0])])) == 1
        assert found.embedded == len(texts)
        return found.vectors

    def verdicts(cache: Path, workers: scale.RayWorkers | None) -> np.ndarray:
        ledger = Ledger(cache / "answers.sqlite", 0.0)
        spec = Local(model=str(folder))
        judge = open_judge(spec, "cheap", None, ledger, cache, cache, workers=workers, rubric="Rate it.")
        with pytest.warns(UserWarning, match="40 of 40 verdicts are missing"):  # a random model begins with no level
            judge.score(texts[:20], claims)
        assert ledger.accounts[judge.name].calls == 40
        keys = [request_key({**judge.identity, "user": user}) for user in judge._users(texts[:20], claims, None)]
        stored = ledger.peek_all(keys)
        return np.array([[*json.loads(stored[key].text).values()] for key in keys])

    there = rows(tmp_path / "ray"), vectors_of(tmp_path / "ray", workers), verdicts(tmp_path / "ray", workers)
    with monkeypatch.context() as patch:
        patch.setattr(pair.intervention, "workers", None)
        here = rows(tmp_path / "local"), vectors_of(tmp_path / "local", None), verdicts(tmp_path / "local", None)
    for a, b in zip(there[0], here[0], strict=True):
        assert_same_but_for_rounding(a.projection, b.projection)
        assert_same_but_for_rounding(a.norm, b.norm)
    assert_same_but_for_rounding(there[1], here[1])
    assert_same_but_for_rounding(there[2], here[2])
    assert np.isfinite(here[2]).all() and here[2].std() > 0


# ----------------------------------------------------------------------------------------------------- the connection


def test_what_ray_starts_here_listens_on_the_loopback_interface_alone(ray, shared):
    """Everything that this process started and that listens, as the kernel lists it."""
    shared(1).memory()
    mine, open_to_all = family(os.getpid()), []
    sockets = {held for pid in mine for held in descriptors(pid)}
    assert any(s.startswith("socket:") for s in sockets)
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                address = words[1].split(":")[0]
                open_to_all += [] if address.endswith("0100007F") else [line]
    assert len(mine) > 3 and not open_to_all
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(os.environ["RAY_AUTH_TOKEN"]) == 64


def family(pid: int) -> list[int]:
    """A process and those under it; one that ends while it is looked at has none."""
    try:
        children = [c.read_text() for c in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *(p for words in children for child in words.split() for p in family(int(child)))]


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process point to; those closed while they are read, and processes that ended,
    hold nothing open."""
    found = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def test_an_address_that_is_none_or_does_not_answer_is_refused_with_the_remedy():
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            DriftbookError, match=rf"engine\.address {address}: no Ray cluster answers .*leave engine\."
        ):
            open_workers(EngineSpec(kind="ray", address=address), ModelSpec())
    for wrong in ("somewhere", "head:port", ":6379"):
        with pytest.raises(DriftbookError, match=r"engine\.address .* is none: give host:port"):
            scale.check(EngineSpec(kind="ray", address=wrong))
    assert open_workers(EngineSpec(), ModelSpec()) is None


def test_more_workers_than_the_cluster_holds_are_refused(ray, tmp_path):
    with pytest.raises(
        DriftbookError, match=r"engine\.workers 64: each takes a CPU, and the cluster has \d+; lower it"
    ):
        list(scale.RayWorkers(EngineSpec(kind="ray", workers=64)).map("a", dict, dict.get, [1]))
