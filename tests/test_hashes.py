"""Hashes of large files: taken once for all processes, until the file changes."""

import hashlib
import json

import pytest

from driftbook import hashes


def test_a_large_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "LARGE", 10)
    weights, cache = tmp_path / "model.safetensors", tmp_path / "cache"

    def hashed(allowed=True):
        hashes._once.cache_clear()  # as another process would begin
        with monkeypatch.context() as patch:
            if not allowed:
                patch.setattr(hashes, "file_hash", lambda *a: pytest.fail("hashed again"))
            return hashes.remembered_hash(weights, cache)

    weights.write_bytes(b"0123456789")
    first = hashed()
    assert first == hashlib.sha256(b"0123456789").hexdigest() == hashed(allowed=False)
    (cache / "digests.json").write_text("{ half a fi")
    assert hashed() == first
    weights.write_bytes(b"01234567890")
    assert hashed() == hashlib.sha256(b"01234567890").hexdigest()
    assert json.loads((cache / "digests.json").read_text())


def test_a_small_file_leaves_no_trace_on_disk(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert hashes.remembered_hash(tmp_path / "a.txt", tmp_path / "cache") == hashlib.sha256(b"a").hexdigest()
    assert not (tmp_path / "cache").exists()
