"""Processes of this machine: the same texts as here, an end with their parent's, and errors that say what happened.

The workers have one thread each and this process may have more: texts are the same letter by letter for the reason that
``test_scale`` gives, numbers up to their rounding.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from driftbook import decode
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.strategies import first_round
from driftbook.engines import open_workers
from driftbook.errors import DriftbookError, ModelError
from driftbook.interventions import Steer
from driftbook.models import captured, sides
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import open_pair
from driftbook.parameters import EngineSpec, ModelSpec
from driftbook.processes import Processes
from driftbook.store import ShardStore
from models import assert_same_but_for_rounding, saved
from test_decode import PROMPTS
from test_scale import FOUR, PARAMS, some_vectors, texts_of
from waiting import wait_until


@pytest.fixture(scope="module")
def two():
    """Two processes for this file: to start them takes seconds."""
    processes = Processes(2, 1)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    folder, cache = (
        saved(tmp_path_factory.mktemp("model"), "llama", attn_implementation="sdpa"),
        tmp_path_factory.mktemp("c"),
    )
    base, intervention = (
        ModelSpec(model=str(folder), dtype="float32", device="cpu"),
        Steer(trait="calm", coefficient=0.5),
    )
    vectors = some_vectors()
    pair = open_pair(base, intervention, cache, cache, vectors, engine=FOUR)
    keys = {side.name: side.key for side in pair}
    return pair, sides.PairSpec(base, intervention, cache, cache, vectors, keys, FOUR)


@pytest.fixture
def shared(steered, two):
    pair, spec = steered
    sides.share(pair, two, spec)
    yield pair
    for side in pair:
        side.workers = None


@pytest.mark.numeric
def test_texts_are_those_of_one_process(steered, shared, tmp_path, monkeypatch):
    told: list[int] = []
    there = texts_of(shared, tmp_path / "there", progress=told.append)
    assert sum(told) == len(there) and max(told) > 1  # a shard at a time: no text was made in this process
    with monkeypatch.context() as patch:
        for side in shared:
            patch.setattr(side, "workers", None)
        here = texts_of(shared, tmp_path / "here")
    pd.testing.assert_frame_equal(there, here)
    names = [{p.name for p in (tmp_path / where).rglob("*.parquet")} for where in ("there", "here")]
    assert names[0] == names[1]


def test_shards_of_both_sides_are_handed_out_at_once_and_counted_once(shared, two, tmp_path, monkeypatch):
    ids = decode.encode(shared, PROMPTS, PARAMS.max_new_tokens)
    asks = first_round(PROMPTS, 3, 10**6)
    asked, plain = [], two.map

    def seen(name, opened, work, items):
        asked.append(list(items))
        return plain(name, opened, work, asked[-1])

    monkeypatch.setattr(two, "map", seen)
    for turn in range(2):
        told: list[int] = []
        texts = decode_texts(shared, PROMPTS, ids, asks, PARAMS, 0, ShardStore(tmp_path), 7, told.append)
        assert len(texts) == sum(told) == 2 * len(asks)
        assert len(asked[turn]) == (0 if turn else 2 * -(-len(asks) // 7))  # one call for both sides; then all is there
    assert {item[0] for item in asked[0]} == {"base", "intervention"} and len(asked) == 2


@pytest.mark.numeric
def test_replay_and_embeddings_are_those_of_one_process(steered, shared, two, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    sequences = [TokenSequence(tuple(rng.integers(5, 300, n)), tuple(rng.integers(5, 300, 4))) for n in range(3, 23)]
    points = [(layer, "resid_post") for layer in range(4)]
    matrix = torch.from_numpy(steered[1].vectors.matrix(["calm"], "probe", points))
    probe = captured.Probe([], [], ["calm"], points, matrix)
    monkeypatch.setattr(captured, "REPLAY_SHARD", 6)
    monkeypatch.setattr(two, "worth", lambda shards: True)
    there = captured.capture_replay(shared.intervention, sequences, probe, tmp_path / "there", lambda n: None)
    monkeypatch.setattr(shared.intervention, "workers", None)
    here = captured.capture_replay(shared.intervention, sequences, probe, tmp_path / "here", lambda n: None)
    for a, b in zip(there, here, strict=True):
        assert_same_but_for_rounding(a.projection, b.projection)

    texts, embedder = [f"{'rain and ' * (i % 7)}tea {i}" for i in range(40)], Embedder(dtype="float32", device="cpu")
    found = []
    for workers in (two, None):
        with EmbeddingCache(tmp_path / str(workers is None)) as cache:
            found.append(embed(texts, cache, embedder, commit=16, workers=workers))
    assert found[0].embedded == found[1].embedded == 40
    assert_same_but_for_rounding(found[0].vectors, found[1].vectors)


# ------------------------------------------------------------------------------------------------------- the machinery


def number() -> int:
    return os.getpid()


def meet(pid: int, item: tuple[Path, int]) -> tuple[int, int, int]:
    """Waits until two processes have come: else one may have done everything before the other has started."""
    folder, number = item
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return pid, number, torch.get_num_threads()


def fail(held: int, item: int) -> int:
    raise ModelError(f"item {item} is no good")


def die(held: int, item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_what_a_process_opened_it_keeps_and_each_has_its_threads(two, tmp_path):
    found = []
    for turn in range(2):
        (tmp_path / str(turn)).mkdir()
        found.append(list(two.map("number", number, meet, [(tmp_path / str(turn), i) for i in range(12)])))
        assert sorted(i for _, i, _ in found[-1]) == list(range(12)) and {t for *_, t in found[-1]} == {1}
    pids = [{p for p, *_ in turn} for turn in found]
    assert pids[0] == pids[1] and len(pids[0]) == 2 and os.getpid() not in pids[0]
    assert list(two.map("number", number, meet, [])) == []


def test_items_are_drawn_as_processes_get_free(two, tmp_path):
    drawn = []
    items = (drawn.append(i) or (tmp_path, i) for i in range(50))
    results = two.map("number", number, meet, items)
    next(results)
    assert len(drawn) <= 4
    results.close()
    assert len(list(two.map("number", number, meet, [(tmp_path, i) for i in range(4)]))) == 4


def test_an_error_of_the_work_is_that_error(two):
    with pytest.raises(ModelError, match="item 1 is no good"):
        list(two.map("number", number, fail, [1]))


def test_a_process_that_dies_is_named_and_new_ones_are_started():
    processes = Processes(2, 1)
    with pytest.raises(DriftbookError, match=r"a worker process died.*run again"):
        list(processes.map("number", number, die, range(8)))
    assert sorted(processes.map("number", number, partial(die), [0, 1])) == [0, 1]
    processes.close()


ORPHANS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from driftbook.processes import Processes
from test_processes import meet, number
from pathlib import Path
if __name__ == "__main__":
    found = list(Processes(2, 1).map("number", number, meet, [(Path(sys.argv[2]), i) for i in range(8)]))
    print(*{p for p, *_ in found}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_their_parent(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    (tmp_path / "met").mkdir()
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path / "met")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pids = [int(p) for p in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(pids) == 2, done.stderr
    wait_until(lambda: not any(alive(p) for p in pids), "both have ended")


def alive(pid: int) -> bool:
    """Whether a process runs: one that ended and that nobody waited for has only its number left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_processes_are_started_for_much_work_and_used_once_they_are_there(two, tmp_path):
    fresh = Processes(2, 1)
    assert not fresh.worth(7) and fresh.worth(8)
    list(two.map("number", number, fail_not, [1]))
    assert two.worth(1)


def fail_not(held: int, item: int) -> int:
    return item


def test_a_gpu_is_filled_from_one_process(monkeypatch):
    three, four = (EngineSpec(kind="processes", workers=n) for n in (3, 4))
    opened = open_workers(three, ModelSpec())
    assert isinstance(opened, Processes) and opened.at_once == 3 and opened is open_workers(three, ModelSpec())
    assert opened.describe()["processes"] == 3
    monkeypatch.setattr("driftbook.models.loading.choose_device", lambda *a: (SimpleNamespace(type="cuda"), ""))
    assert open_workers(four, ModelSpec()) is None
    assert open_workers(EngineSpec(), ModelSpec()) is None
