"""What a stage is handed: its parameters, where it reads and writes, and whom it tells how far it is.

The workbook's run (:mod:`driftbook.workbook.runs`) is one; a test or a script may bring its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Progress = Callable[..., Any]
"""``progress(iterable or total, label, unit)`` gives a counter with ``update(n)`` and ``close()``, to iterate over
where it was made from an iterable."""


class Run(Protocol):
    """One stage of one experiment while it runs."""

    @property
    def params(self) -> Any:
        """The experiment: a ``parameters.Experiment``."""

    @property
    def section(self) -> Any:
        """The stage's own parameters."""

    @property
    def seed(self) -> int: ...

    @property
    def root(self) -> Path:
        """The folder to which paths in parameters are relative."""

    @property
    def cache(self) -> Path:
        """Content-addressed caches that all experiments share."""

    @property
    def data(self) -> Path:
        """Where the stage writes its tables and tensors."""

    @property
    def progress(self) -> Progress: ...

    def input(self, stage: str) -> Path:
        """The data folder of a stage before this one. Raises DriftbookError if it has not been run."""
        ...

    def members(self) -> Mapping[str, Path]:
        """Of a series: name to the folder of each change whose runs hold, which has a folder a stage."""
        ...

    def metric(self, name: str, value: float | str, low: float | None = None, high: float | None = None) -> None:
        """One number or short text, and the ends of its interval."""

    def record(self, name: str, value: Any) -> None:
        """How the run was carried out: a device and why, hashes of model files."""
