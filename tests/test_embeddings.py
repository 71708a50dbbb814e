"""The embedding cache loses nothing, mixes nothing up, and repairs itself; the bundled model is faithful in bf16."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from driftbook.discovery.embeddings import (
    Embedder,
    EmbeddingCache,
    Identity,
    embed,
    resolve_embedder,
    text_digest,
)
from driftbook.errors import CacheError, ModelError
from waiting import wait_until

IDENTITY = Identity("tests", "r0", "mean_tokens", True, "", "float32", None)


class Arithmetic:
    """An embedder whose rows are a function of the text alone, and which counts what it was asked."""

    def __init__(self, identity: Identity = IDENTITY, fail_after: int | None = None) -> None:
        self.identity, self.asked, self.batches, self.fail_after = identity, [], [], fail_after

    def encode(self, texts, dtype=None):
        if self.fail_after is not None and len(self.batches) >= self.fail_after:
            raise RuntimeError("the model died")
        self.asked += texts
        self.batches.append(list(texts))
        return np.stack([row(text) for text in texts])


def row(text: str) -> np.ndarray:
    values = np.frombuffer(text_digest(text), dtype=np.uint8).astype(np.float32)[:8] + 1
    return values / np.linalg.norm(values)


@pytest.fixture
def cache(tmp_path):
    with EmbeddingCache(tmp_path) as opened:
        yield opened


def test_order_is_kept_and_duplicates_are_embedded_once(cache):
    texts = ["b", "a", "b", "ccc", "a", ""]
    embedder = Arithmetic()
    result = embed(texts, cache, embedder)
    assert np.array_equal(result.vectors, np.stack([row(t) for t in texts]))
    assert sorted(embedder.asked) == ["", "a", "b", "ccc"]
    assert (result.embedded, result.cache_hits, result.duplicates) == (4, 0, 2)


def test_a_warm_run_asks_the_model_nothing_and_mixes_hits_with_misses_in_order(cache):
    embed(["a", "b"], cache, Arithmetic())
    embedder = Arithmetic()
    result = embed(["x", "b", "y", "a"], cache, embedder)
    assert sorted(embedder.asked) == ["x", "y"]
    assert np.array_equal(result.vectors, np.stack([row(t) for t in "xbya"]))
    warm = Arithmetic()
    assert embed(["a", "b", "x", "y"], cache, warm).cache_hits == 4
    assert warm.asked == []


def test_no_texts_is_no_work(cache):
    assert embed([], cache, Arithmetic()).vectors.shape == (0, 0)


def test_every_component_of_the_identity_is_part_of_the_key(cache):
    embed(["a"], cache, Arithmetic())
    other = {
        "model": "m",
        "revision": "r1",
        "pooling": "cls",
        "normalized": False,
        "instruction": "query: ",
        "dtype": "bfloat16",
        "max_tokens": 64,
    }
    assert set(other) == set(IDENTITY.__dataclass_fields__)
    for field, value in other.items():
        changed = replace(IDENTITY, **{field: value})
        assert cache.get(changed, [text_digest("a")]) == {}, field
        assert f"{field} was" in cache.explain("a", changed)


def test_long_texts_go_first(cache):
    embedder = Arithmetic()
    embed(["a" * n for n in (3, 50, 7, 20)], cache, embedder, commit=2)
    assert [len(t) for t in embedder.asked] == [50, 20, 7, 3]


def test_a_crash_loses_only_the_batch_in_flight(cache):
    texts = [f"text {i}" for i in range(10)]
    with pytest.raises(RuntimeError, match="died"):
        embed(texts, cache, Arithmetic(fail_after=2), commit=3)
    rerun = Arithmetic()
    result = embed(texts, cache, rerun, commit=3)
    assert (result.embedded, result.cache_hits) == (4, 6)
    assert np.array_equal(result.vectors, np.stack([row(t) for t in texts]))


@pytest.mark.parametrize(
    "damage",
    ["vector = zeroblob(32)", "vector = substr(vector, 1, 20)", "vector = x''", "checksum = checksum + 1"],
)
def test_a_damaged_row_is_found_and_computed_again(cache, damage):
    embed(["a", "b"], cache, Arithmetic())
    with sqlite3.connect(cache.path) as db:
        db.execute(f"UPDATE vectors SET {damage} WHERE text = ?", (text_digest("a"),))
    assert "damaged" in cache.explain("a", IDENTITY)
    again = Arithmetic()
    result = embed(["a", "b"], cache, again)
    assert again.asked == ["a"]
    assert np.array_equal(result.vectors, np.stack([row("a"), row("b")]))
    assert cache.explain("a", IDENTITY).startswith("hit")


def test_a_sound_vector_under_the_wrong_text_is_found(cache):
    embed(["a", "b"], cache, Arithmetic())
    with sqlite3.connect(cache.path) as db:
        query = "SELECT vector, checksum FROM vectors WHERE text = ?"
        of_b = db.execute(query, (text_digest("b"),)).fetchone()
        db.execute("UPDATE vectors SET vector = ?, checksum = ? WHERE text = ?", (*of_b, text_digest("a")))
    assert np.array_equal(embed(["a"], cache, Arithmetic()).vectors[0], row("a"))


def test_an_unreadable_file_is_set_aside_and_rebuilt(tmp_path):
    with EmbeddingCache(tmp_path) as first:
        embed(["a"], first, Arithmetic())
    first.path.write_bytes(b"this is not a database" * 500)
    with pytest.warns(UserWarning, match="moved to"):
        second = EmbeddingCache(tmp_path)
    assert embed(["a"], second, Arithmetic()).embedded == 1
    assert embed(["a"], second, Arithmetic()).cache_hits == 1
    second.close()
    assert len(list(tmp_path.glob("*.corrupt-*"))) == 1


def test_a_file_damaged_in_the_middle_is_rebuilt_on_the_way(tmp_path):
    with EmbeddingCache(tmp_path) as first:
        embed([f"text {i}" for i in range(400)], first, Arithmetic())
    content = bytearray(first.path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    first.path.write_bytes(content)
    texts = ["text 3", "text 200"]
    with pytest.warns(UserWarning, match="moved to"), EmbeddingCache(tmp_path) as second:
        result = embed(texts, second, Arithmetic())
        assert np.array_equal(result.vectors, np.stack([row(t) for t in texts]))


def test_a_busy_file_is_an_error_with_a_remedy_and_is_not_thrown_away(tmp_path):
    with EmbeddingCache(tmp_path, timeout=0.05) as cache:
        holder = sqlite3.connect(cache.path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CacheError, match="locked"):
            cache.put(IDENTITY, [text_digest("a")], row("a")[None])
        holder.execute("ROLLBACK")
        holder.close()
        assert not list(tmp_path.glob("*.corrupt-*"))


WRITER = """
import sys
import numpy as np
from driftbook.discovery.embeddings import EmbeddingCache, Identity, embed
from driftbook.hashes import text_digest
class Slow:
    identity = Identity("tests", "r0", "mean_tokens", True, "", "float32", None)
    def encode(self, texts, dtype=None):
        import time; time.sleep(float(sys.argv[4]))
        rows = np.stack([np.frombuffer(text_digest(t), dtype=np.uint8).astype(np.float32)[:8] + 1 for t in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
with EmbeddingCache(sys.argv[1]) as cache:
    print("ready", flush=True)
    embed([f"text {i}" for i in range(int(sys.argv[2]), int(sys.argv[3]))], cache, Slow(), commit=8)
"""


def writer(folder, low, high, pause):
    command = [sys.executable, "-c", WRITER, str(folder), str(low), str(high), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_one_cache(tmp_path):
    both = [writer(tmp_path, 0, 300, 0.001), writer(tmp_path, 150, 450, 0.001)]
    assert [p.wait(60) for p in both] == [0, 0]
    with EmbeddingCache(tmp_path) as cache:
        embedder = Arithmetic()
        texts = [f"text {i}" for i in range(450)]
        result = embed(texts, cache, embedder)
        assert embedder.asked == [] and cache.damaged == 0
        assert np.array_equal(result.vectors, np.stack([row(t) for t in texts]))


def test_a_killed_process_leaves_its_finished_batches(tmp_path):
    process = writer(tmp_path, 0, 4000, 0.2)  # 100 s for all: the kill comes before its end
    process.stdout.readline()
    with EmbeddingCache(tmp_path) as cache:
        wait_until(lambda: cache.size().rows >= 40, "five batches are stored")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        stored = cache.size().rows
        assert 40 <= stored < 4000 and stored % 8 == 0
        result = embed([f"text {i}" for i in range(4000)], cache, Arithmetic())
        assert result.cache_hits == stored and cache.damaged == 0


def test_size_and_eviction(cache):
    old, new = Arithmetic(), Arithmetic(replace(IDENTITY, revision="r1"))
    embed([f"old {i}" for i in range(3000)], cache, old)
    embed([f"new {i}" for i in range(5)], cache, new)
    assert (cache.size().rows, cache.size().identities) == (3005, 2)
    full = cache.size().bytes
    assert cache.evict(keep=new.identity) == 3000
    assert cache.size().rows == 5
    assert cache.size().bytes < full / 3
    assert cache.evict(older_than_days=1) == 0
    assert cache.evict(max_bytes=2 * (32 + 120)) == 3
    assert cache.evict(older_than_days=-1) == 2
    with pytest.raises(CacheError, match="max_bytes"):
        cache.evict()


def test_more_keys_than_one_query_may_hold(cache):
    digests = [text_digest(str(i)) for i in range(40_000)]
    cache.put(IDENTITY, digests, np.arange(40_000, dtype=np.float32)[:, None])
    found = cache.get(IDENTITY, digests[::-1])
    assert all(found[d][0] == i for i, d in enumerate(digests))


def test_texts_with_lone_surrogates_have_a_key():
    assert text_digest("\ud800") != text_digest("?")


def test_unknown_embedders_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(ModelError, match="bundled are bundled:all-minilm-l6-v2"):
        resolve_embedder("bundled:nothing")
    with pytest.raises(ModelError, match=r"without config\.json"):
        resolve_embedder(str(tmp_path))


@pytest.fixture(scope="module")
def minilm():
    return Embedder()


@pytest.mark.numeric
def test_the_bundled_model_embeds_without_its_neighbours_in_the_batch_mattering(minilm):
    texts = ["The cat sits on the mat.", "A cat is on a mat.", "Interest rates rose again. " * 20, ""]
    together = minilm.encode(texts, dtype="float32")
    alone = np.concatenate([minilm.encode([t], dtype="float32") for t in texts])
    assert together.dtype == np.float32 and together.shape == (4, 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-5)  # fp32 sums in another order
    assert together[0] @ together[1] > 0.8 > 0.3 > together[0] @ together[2]


@pytest.mark.numeric
def test_the_end_of_a_long_text_counts_and_a_text_of_several_windows_has_their_mean(minilm):
    embedded = partial(minilm.encode, dtype="float32")
    sea, tax = (" ".join(words * 60) for words in (["the", "harbour", "at", "dawn"], ["a", "new", "tax", "law"]))
    ends = embedded([f"{sea} {sea} {end}" for end in (sea, tax)])
    assert ends[0] @ ends[1] < 0.95  # they are alike for their first 480 words
    parts = minilm._windows(f"{sea} {tax}")
    assert len(parts) == 2 and " ".join(text for text, _ in parts).split() == f"{sea} {tax}".split()
    rows = minilm._load().encode([text for text, _ in parts])  # sentence-transformers itself
    mean = (rows * np.array([[tokens] for _, tokens in parts])).sum(axis=0)
    beside = embedded(["short", f"{sea} {tax}", "brief"])
    assert np.allclose(beside[1], mean / np.linalg.norm(mean), atol=1e-5)  # fp32 sums in another order
    assert np.allclose(beside[[0, 2]], embedded(["short", "brief"]), atol=1e-5)


@pytest.mark.numeric
def test_bf16_autocast_is_faithful_to_fp32(minilm):
    bf16 = Embedder(dtype="bfloat16")
    bf16._model = minilm._load()
    fidelity = bf16.fidelity([f"A sentence that talks about {topic}." for topic in ("rain", "tax", "love", "code")])
    assert fidelity.texts == 4
    assert 0.999 < fidelity.min_cosine <= fidelity.mean_cosine < 1.0


def test_an_instruction_changes_the_embedding_and_the_key(minilm):
    asked = Embedder(instruction="query: ", dtype="float32")
    assert asked.identity.digest != replace(asked.identity, instruction="").digest
    assert not np.allclose(asked.encode(["rain"]), minilm.encode(["rain"], dtype="float32"), atol=1e-3)


def test_dtype_comes_with_a_reason(minilm):
    assert minilm.identity.dtype in ("float32", "bfloat16", "float16")
    assert minilm.device in minilm.reason


def test_a_warm_run_loads_no_model(cache):
    texts = ["one", "two"]
    embed(texts, cache, Embedder(dtype="float32"))
    warm = Embedder(dtype="float32")
    assert embed(texts, cache, warm).cache_hits == 2
    assert not warm.loaded
