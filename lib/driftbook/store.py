"""Finished work by content: what was computed is written once under the digest of everything that shaped it, and read
ever after.

Shards of tables and arrays are files (``ShardStore``); small rows under a key stand in an SQLite file (``Database``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors.numpy import load_file, save_file

from driftbook.errors import CacheError

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Key = TypeVar("Key")
Value = TypeVar("Value")
LOOKUP_CHUNK = 4000  # variables of one IN (...) clause; SQLite allows 32,766


def digest(*parts: Any) -> str:
    """32 hex digits over JSON-able parts; the same in every process and on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class ShardStore:
    """A folder of shards. A write is complete or absent (written beside, then renamed), so kill -9 costs the shard in
    flight.

    A shard that cannot be read is dropped with a warning, and counts as absent.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def table(self, key: str) -> pa.Table | None:
        """The table under a key, or None."""
        import pyarrow.parquet as pq  # a tenth of a second, and arrays are kept without

        return self._read(self._path(key, "parquet"), pq.read_table)

    def has_table(self, key: str) -> bool:
        """Whether a table was written under a key; reading it may still find it damaged."""
        return self._path(key, "parquet").exists()

    def put_table(self, key: str, table: pa.Table) -> pa.Table:
        import pyarrow.parquet as pq  # as above

        self._write(self._path(key, "parquet"), lambda p: pq.write_table(table, p, compression="zstd"))
        return table

    def kept_table(
        self, key: str, make: Callable[[], pa.Table], progress: Callable[[int], Any] | None = None, count: int = 1
    ) -> pa.Table:
        """The table under a key, made and stored where it is absent. Where it is there ``progress`` hears of its
        ``count`` pieces; ``make`` tells of its own."""
        return self._kept(self.table(key), lambda: self.put_table(key, make()), progress, count)

    def arrays(self, key: str) -> dict[str, np.ndarray] | None:
        """The named arrays under a key, or None."""
        return self._read(self._path(key, "safetensors"), load_file)

    def has_arrays(self, key: str) -> bool:
        """Whether arrays were written under a key; reading them may still find them damaged."""
        return self._path(key, "safetensors").exists()

    def put_arrays(self, key: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        contiguous = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
        self._write(self._path(key, "safetensors"), lambda p: save_file(contiguous, p))
        return arrays

    def kept_arrays(
        self,
        key: str,
        make: Callable[[], dict[str, np.ndarray]],
        progress: Callable[[int], Any] | None = None,
        count: int = 1,
    ) -> dict[str, np.ndarray]:
        """``kept_table`` for arrays."""
        return self._kept(self.arrays(key), lambda: self.put_arrays(key, make()), progress, count)

    @staticmethod
    def _kept(held: T | None, make: Callable[[], T], progress: Callable[[int], Any] | None, count: int) -> T:
        if held is None:
            return make()
        if progress:
            progress(count)
        return held

    def _path(self, key: str, suffix: str) -> Path:
        return self.folder / key[:2] / f"{key}.{suffix}"

    def _read(self, path: Path, reader: Callable[[Path], Any]) -> Any:
        if not path.exists():
            return None
        try:
            return reader(path)
        except Exception as error:  # parquet and safetensors raise many kinds for a damaged file
            warnings.warn(f"cache file {path} is damaged ({type(error).__name__}) and will be made again", stacklevel=3)
            path.unlink(missing_ok=True)
            return None

    def _write(self, path: Path, writer: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Writers on several machines may share the folder: a process id alone does not tell them apart.
        staging = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
        try:
            writer(staging)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)


def kept_folder(folder: Path, complete: Callable[[Path], bool], make: Callable[[Path], Any]) -> Path:
    """A folder that is complete or absent: ``make`` fills one beside it, which is then renamed. Of several processes
    that make the same one, the first to end gives it to all."""
    if complete(folder):
        return folder
    staging = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        make(staging)
        try:
            staging.rename(folder)
        except OSError:
            if not complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def cached_map(
    keys: Sequence[Key],
    find: Callable[[list[Key]], Mapping[Key, Value]],
    compute: Callable[[list[Key]], Iterable[tuple[Sequence[Key], Sequence[Value]]]],
    keep: Callable[[Sequence[Key], Sequence[Value]], Any],
    bar: Callable[[int], Any] | None = None,
) -> dict[Key, Value]:
    """Values by key: what ``find`` has, and the rest computed and kept batch by batch.

    Args:
        compute: batches of keys with their values, in any order; each is kept before the next is asked for, so that a
            killed process loses no more than one.
        bar: ``bar(total)`` gives a handle with ``update(n)``; not called where nothing is missing.
    """
    distinct = list(dict.fromkeys(keys))
    held = dict(find(distinct))
    missing = [key for key in distinct if key not in held]
    if not missing:
        return held
    handle = bar(len(missing)) if bar is not None else None
    for batch, values in compute(missing):
        keep(batch, values)
        held.update(zip(batch, values, strict=True))
        if handle is not None:
            handle.update(len(batch))
    return held


class Database:
    """Rows under keys in one SQLite file that threads and processes of one machine share.

    A transaction is committed as it ends (WAL mode), so kill -9 costs the one in flight. WAL mode wants a local disk,
    not a network share.

    Args:
        schema: the tables, each ``CREATE ... IF NOT EXISTS``; lost: what is made anew when the file is moved away.
        set_aside: a file that SQLite cannot read is moved to ``<name>.corrupt-<n>`` with a warning, and a new one is
            begun; else it is a CacheError, for what costs money to make again.

    Raises:
        CacheError: the file is locked, the disk is full, or the file cannot be read.
    """

    def __init__(self, path: Path, schema: str, lost: str, *, set_aside: bool = False, timeout: float = 60.0) -> None:
        self.path, self.schema, self.lost, self.set_aside, self.timeout = path, schema, lost, set_aside, timeout
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.run(lambda db: None)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What ``work`` gives on the connection, which is its own meanwhile."""
        with self._lock:
            try:
                return work(self._open())
            except sqlite3.OperationalError as reason:  # locked, full, no permission: the file itself is not at fault
                raise CacheError(
                    f"{self.path}: {reason}; close the program that holds it, or make room on the disk"
                ) from reason
            except sqlite3.IntegrityError:
                raise
            except sqlite3.DatabaseError as reason:
                self.close()
                if not self.set_aside:
                    raise CacheError(
                        f"{self.path} cannot be used ({reason}): move it away, and {self.lost} anew"
                    ) from None
                self._move_away()
                return work(self._open())

    def select(self, query: str, keys: Sequence[Any], *before: Any) -> list[tuple]:
        """Rows of a query that holds ``IN (keys)``, whose other parameters, all ahead of it, are ``before``."""
        found: list[tuple] = []
        for start in range(0, len(keys), LOOKUP_CHUNK):
            chunk = keys[start : start + LOOKUP_CHUNK]
            asked = query.replace("IN (keys)", f"IN ({','.join('?' * len(chunk))})")
            found += self.run(lambda db, q=asked, c=chunk: db.execute(q, (*before, *c)).fetchall())
        return found

    def put(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Store rows, values in the order of the columns, in one transaction; an older row of a key is replaced."""
        if not rows:
            return
        statement = f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})"

        def write(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.executemany(statement, rows)

        self.run(write)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            db = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None, check_same_thread=False)
            try:
                if db.execute("PRAGMA page_count").fetchone()[0] == 0:
                    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
                db.execute("PRAGMA journal_mode = WAL").fetchone()
                # in WAL mode NORMAL survives a killed process; only a power cut may lose the last transactions
                db.execute("PRAGMA synchronous = NORMAL")
                with transaction(db):
                    for statement in self.schema.split(";"):
                        db.execute(statement)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _move_away(self) -> None:
        with open(self.path.with_name(self.path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._readable():  # another process has set it aside while this one waited
                return
            target = next(
                t for n in range(1, 10_000) if not (t := self.path.with_name(f"{self.path.name}.corrupt-{n}")).exists()
            )
            self.path.replace(target)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            warnings.warn(f"{self.path} cannot be read; moved to {target.name}, {self.lost} anew", stacklevel=5)

    def _readable(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path, timeout=self.timeout)) as db:
                return db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.DatabaseError:
            return False


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing of it; inside another one, a part of that."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
