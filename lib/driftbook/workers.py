"""What all workers have in common, whether Ray (:mod:`driftbook.scale`) or this machine runs them
(:mod:`driftbook.processes`): shards go out, results come back in the order in which they finish."""

from __future__ import annotations

import itertools
import os
import resource
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

from driftbook.sections import EngineSpec, ModelSpec

Item = TypeVar("Item")
Result = TypeVar("Result")
Held = TypeVar("Held")

# Threads of a matrix product that wait by spinning starve each other as soon as two processes share the cores
# (measured on two cores beside other work: 12 times slower decoding). torch reads it once, when it is imported.
PASSIVE = ("OMP_WAIT_POLICY", "PASSIVE")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in MB (10^6 bytes)."""
    kilo = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e6, 1)


class Workers(ABC):
    """Processes that are started at the first shard and stay."""

    at_once = 1
    """How many of them share this machine, so that its seconds are theirs divided by as many."""

    # What a kind of workers says of itself; ``engine`` is the section of the parameter file.
    divide_cores: ClassVar[bool] = False
    """Whether they share the cores of this machine, which decode more so than one process does."""
    gpu_each: ClassVar[bool] = False
    """Whether each has a GPU of its own."""

    @classmethod  # noqa: B027 (most have nothing to refuse)
    def check(cls, engine: EngineSpec) -> None:
        """Raise DriftbookError for what cannot work, before anything is loaded."""

    @classmethod
    @abstractmethod
    def opened(cls, engine: EngineSpec, base: ModelSpec) -> Workers | None:
        """Workers for models as large as ``base``, on its device; None where one process does as well."""

    def __init__(self) -> None:
        self._jobs = itertools.count()

    def map(
        self, name: str, opened: Callable[[], Held], work: Callable[[Held, Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """``work(opened(), item)`` for every item, in the order in which they finish.

        A worker calls ``opened`` once per ``name`` and keeps what it gives. Items are drawn as workers get free, so
        that those of a generator are never all in memory. All must be picklable. Nothing is started for no items.

        Raises:
            DriftbookError: what ``opened`` or ``work`` raised of that kind; or workers died more often than is borne.
        """
        waiting = iter(items)
        for first in waiting:
            yield from self._run(next(self._jobs), (name, opened, work), itertools.chain([first], waiting))

    def worth(self, shards: int) -> bool:
        """Whether so many shards of reading (replay, embedding, judging) are worth the seconds that a start takes."""
        return True

    @abstractmethod
    def _run(self, number: int, job: tuple[str, Callable, Callable], items: Iterator[Any]) -> Iterator[Any]:
        """Results of ``items``, at least one; ``number`` tells jobs apart."""

    @abstractmethod
    def close(self) -> None:
        """End the processes; the next shard starts new ones."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For ``run.json``."""


OPENED: dict[str, Workers | None] = {}
"""The workers of this process by their parameters."""


class OneProcess(Workers):
    """No workers: all work stays in this process."""

    @classmethod
    def opened(cls, engine: EngineSpec, base: ModelSpec) -> None:
        return None
