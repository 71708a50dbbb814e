"""Finished work by content: a shard is written once under the digest of everything that shaped it, and read ever
after."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    import pyarrow as pa


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
        import pyarrow.parquet as pq

        return self._read(self._path(key, "parquet"), pq.read_table)

    def has_table(self, key: str) -> bool:
        """Whether a table was written under a key; reading it may still find it damaged."""
        return self._path(key, "parquet").exists()

    def put_table(self, key: str, table: pa.Table) -> pa.Table:
        import pyarrow.parquet as pq

        self._write(self._path(key, "parquet"), lambda p: pq.write_table(table, p, compression="zstd"))
        return table

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
