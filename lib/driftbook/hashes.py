"""sha256 of texts and files, and what is remembered of it: hashing weights takes minutes, and they rarely change."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

LARGE = 16_000_000  # bytes from which on a hash is remembered on disk


def text_digest(text: str) -> bytes:
    """sha256 of the text, 32 bytes. Lone surrogates, which models do produce, are hashed as they stand."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def file_hash(path: Path) -> str:
    """sha256 of a file as it is now, hex."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@functools.cache
def _once(path: Path, size: int, changed: int) -> str:
    return file_hash(path)


def remembered_hash(path: Path, cache: Path | None = None) -> str:
    """sha256 of a file, hashed once in a process while its size and time of change stay; for a large file once for all
    processes that name the same ``cache`` folder. One that another process overwrites costs hashing again."""
    at = path.stat()
    if cache is None or at.st_size < LARGE:
        return _once(path, at.st_size, at.st_mtime_ns)
    memo = cache / "digests.json"
    try:
        known: dict[str, list[Any]] = json.loads(memo.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # half-written by a full disk
        known = {}
    stamp, name = [at.st_size, at.st_mtime_ns], str(path.resolve())
    if known.get(name, [None])[:2] != stamp:
        known[name] = [*stamp, _once(path, *stamp)]
        cache.mkdir(parents=True, exist_ok=True)
        part = memo.with_name(f".{memo.name}.{os.getpid()}.part")
        part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(part, memo)
    return known[name][2]
