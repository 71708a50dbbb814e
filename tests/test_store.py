"""Shards: complete or absent, whatever happened to the process that wrote them."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from driftbook.errors import CacheError
from driftbook.store import Database, ShardStore, cached_map, digest, kept_folder

TABLE = pa.table({"token_ids": [[1, 2, 3], [], [4]], "finish_reason": ["eos", "eos", "length"]})
ARRAYS = {"projection": np.arange(12, dtype=np.float32).reshape(3, 4), "finished": np.array([1, 0, 1], np.uint8)}


def test_digest_is_the_same_everywhere_and_separates_its_parts():
    assert digest("a", 1, [(2, 3)], {"x": None, "y": 0.5}) == digest("a", 1, [[2, 3]], {"y": 0.5, "x": None})
    parts = [("ab", "c"), ("a", "bc"), (["ab"], "c"), ("ab", "c", ""), (1, "c"), ("1", "c"), (1.0, "c")]
    assert len({digest(*p) for p in parts}) == len(parts)
    code = "from driftbook.store import digest; print(digest('decode', ('a', 1), {'k': 2}))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": s},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for s in ("1", "2")
    }
    assert runs == {digest("decode", ("a", 1), {"k": 2})}


def test_what_is_put_is_there_for_the_next_process(tmp_path):
    store, key = ShardStore(tmp_path / "shards"), digest("x")
    assert store.table(key) is None and store.arrays(key) is None
    store.put_table(key, TABLE)
    store.put_arrays(key, {**ARRAYS, "view": np.arange(10)[::2]})
    again = ShardStore(tmp_path / "shards")
    assert again.table(key).equals(TABLE)
    held = again.arrays(key)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(held[name], array)
        assert held[name].dtype == array.dtype
    np.testing.assert_array_equal(held["view"], [0, 2, 4, 6, 8])
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", None], ids=["empty", "foreign", "half"])
@pytest.mark.parametrize("kind", ["table", "arrays"])
def test_a_damaged_shard_is_dropped_with_a_warning_and_made_again(tmp_path, kind, damage):
    store, key = ShardStore(tmp_path), digest("x")
    put, get, value = (
        (store.put_table, store.table, TABLE) if kind == "table" else (store.put_arrays, store.arrays, ARRAYS)
    )
    put(key, value)
    (path,) = (p for p in tmp_path.rglob("*.*") if p.is_file())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .* will be made again"):
        assert get(key) is None
    assert get(key) is None  # absent now, and no second warning
    put(key, value)
    assert get(key) is not None


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    store = ShardStore(tmp_path)
    with pytest.raises(Exception, match="Unknown dtype"):
        store.put_arrays("abcd", {"names": np.array(["text"], dtype=object)})
    assert store.arrays("abcd") is None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


WRITER = """
import sys, os
from pathlib import Path
import numpy as np
from driftbook.store import ShardStore
store = ShardStore(Path(sys.argv[1]))
print("go", flush=True)
for i in range(10_000):
    store.put_arrays(f"{i:08x}", {"row": np.full(200_000, i, np.float32)})
"""


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from driftbook import store
save = store.save_file
def half(arrays, path):
    save(arrays, path)
    os.truncate(path, os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
shards = store.ShardStore(Path(sys.argv[1]))
shards.put_arrays("before", {"row": np.arange(1000.0)})
store.save_file = half
shards.put_arrays("during", {"row": np.arange(1000.0)})
"""


@pytest.mark.filterwarnings("error")
def test_kill_in_the_middle_of_writing_leaves_no_half_shard(tmp_path):
    """SIGKILL when half of the bytes are on disk: the shard is absent, not damaged, and can be made."""
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    store = ShardStore(tmp_path)
    assert (store.arrays("before")["row"] == np.arange(1000.0)).all()
    assert store.arrays("during") is None
    store.put_arrays("during", ARRAYS)
    assert store.arrays("during").keys() == ARRAYS.keys()


def test_two_writers_of_one_shard_agree(tmp_path):
    """Both write beside and rename: whoever comes last wins, and a reader never sees a mixture."""
    code = WRITER.replace("range(10_000)", "range(20)")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [w.wait(timeout=60) for w in writers] == [0, 0]
    store = ShardStore(tmp_path)
    assert all((store.arrays(f"{i:08x}")["row"] == i).all() for i in range(20))
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 20


def test_of_two_makers_of_one_folder_the_first_to_end_gives_it_to_both(tmp_path):
    folder = tmp_path / "models/x"

    def complete(there):
        return (there / "done").is_file()

    def make(staging, text):
        (staging / "done").write_text(text)

    def beside(staging):
        kept = folder.with_name("of another process")
        kept_folder(kept, complete, lambda there: make(there, "first"))
        kept.rename(folder)  # it ended while this one was still at work
        make(staging, "second")

    folder.mkdir(parents=True)  # a process of an older make was killed in it
    with pytest.raises(OSError, match="full"):
        kept_folder(folder, complete, lambda staging: (_ for _ in ()).throw(OSError("full")))
    folder.rmdir()
    assert kept_folder(folder, complete, beside) == folder
    assert kept_folder(folder, complete, lambda staging: pytest.fail("it is there")) == folder
    assert (folder / "done").read_text() == "first" and [p.name for p in folder.parent.iterdir()] == ["x"]
    (folder / "done").rename(folder / "half")
    assert (kept_folder(folder, complete, lambda there: make(there, "anew")) / "done").read_text() == "anew"


def test_a_mapping_computes_what_is_missing_once_and_keeps_it_batch_by_batch():
    stored, told = {"a": 1}, []
    bar = SimpleNamespace(update=told.append)

    def compute(missing):
        assert missing == ["b", "c", "d"]
        yield ["c"], [3]
        assert stored["c"] == 3, "kept before the next batch is asked for"
        yield ["b", "d"], [2, 4]

    def run(keys):
        return cached_map(
            keys,
            lambda asked: {k: stored[k] for k in asked if k in stored},
            compute,
            lambda batch, values: stored.update(zip(batch, values, strict=True)),
            lambda total: told.append(f"of {total}") or bar,
        )

    assert run(["b", "a", "b", "c", "d"]) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert told == ["of 3", 1, 2]
    assert run(["d", "a"]) == {"a": 1, "d": 4} and len(told) == 3, "a warm run tells nothing"


def test_a_shard_is_made_once_and_told_of_either_way(tmp_path):
    store, told, made = ShardStore(tmp_path), [], []

    def make():
        made.append(1)
        told.append("made")
        return {"x": np.arange(3)}

    for _ in range(2):
        assert store.kept_arrays("ab12", make, told.append, 7)["x"].tolist() == [0, 1, 2]
    assert told == ["made", 7] and len(made) == 1


SCHEMA = "CREATE TABLE IF NOT EXISTS t (key TEXT PRIMARY KEY, value INTEGER)"


def test_processes_write_to_one_database_at_once(tmp_path):
    script = (
        "import sys; from pathlib import Path; from driftbook.store import Database\n"
        f"db = Database(Path(sys.argv[1]), {SCHEMA!r}, 'values')\n"
        "for i in range(50): db.put('t', [(f'{sys.argv[2]} {i}', i)])"
    )
    path = tmp_path / "d.sqlite"
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [p.wait() for p in running] == [0, 0]
    keys = [f"{name} {i}" for name in "ab" for i in range(50)]
    assert len(Database(path, SCHEMA, "values").select("SELECT value FROM t WHERE key IN (keys)", keys)) == 100


def test_a_file_that_cost_money_is_not_set_aside(tmp_path):
    path = tmp_path / "d.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(CacheError, match=r"d.sqlite cannot be used .*: move it away, and values are bought anew"):
        Database(path, SCHEMA, "values are bought")
    assert path.read_bytes().startswith(b"no database")
