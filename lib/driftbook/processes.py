"""``engine: {kind: processes}``: shards of decoding, replay, embedding and judging on processes of this machine.

For CPUs. A small model's matrix products, a few rows at a time, do not keep two cores busy from one process; two
processes with a thread each do. What a shard gives follows from what it asks for alone, as with Ray
(:mod:`driftbook.scale`): docs/scale.md says how far that makes texts the same. On a GPU one process fills the device,
and the work stays in it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.sections import EngineSpec, ModelSpec
from driftbook.workers import PASSIVE, Workers, cores

_held: dict[str, Any] = {}
_job: tuple[int, Callable[[Any, Any], Any], str] | None = None


class Processes(Workers):
    """``count`` processes with ``threads`` threads each (default: the cores that this process may use, divided among
    them), started at the first shard. They end with this process, however it ends."""

    divide_cores = True

    @classmethod
    def opened(cls, engine: EngineSpec, base: ModelSpec) -> Processes | None:
        from driftbook.models.loading import choose_device  # imports torch

        return cls(engine.workers) if choose_device(base.device, base.dtype)[0].type == "cpu" else None

    def __init__(self, count: int, threads: int | None = None):
        super().__init__()
        self.at_once, self.threads = count, threads or max(1, cores() // count)
        self._pool: ProcessPoolExecutor | None = None

    def worth(self, shards: int) -> bool:
        return self._pool is not None or shards >= 4 * self.at_once

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # waits: what is still there when this process ends is reported
        self._pool = None

    def describe(self) -> dict[str, Any]:
        return {"processes": self.at_once, "each": f"{self.threads} thread(s)"}

    def _run(self, number: int, job: tuple[str, Callable, Callable], items: Iterator[Any]) -> Iterator[Any]:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.at_once, spawn, initializer=_begin, initargs=(self.threads,))
        packed, running = pickle.dumps(job), set[Future]()
        try:
            for item in items:
                running.add(self._pool.submit(_do, number, packed, item))
                if len(running) > self.at_once:  # one is ready for whoever is free first
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (f.result() for f in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (f.result() for f in done)
        except BrokenProcessPool:
            self.close()
            raise DriftbookError(
                "engine.kind processes: a worker process died. Too little memory is the usual reason: lower "
                "engine.workers or engine.batch_size. Finished shards are kept: run again"
            ) from None
        finally:
            for future in running:
                future.cancel()


def _begin(threads: int) -> None:
    """In a new process: few threads, no interrupts (they are for the notebook), and an end with the parent's."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault(*PASSIVE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch  # by the settings above

    torch.set_num_threads(threads)


def _do(number: int, job: bytes, item: Any) -> Any:
    global _job
    if _job is None or _job[0] != number:
        name, opened, work = pickle.loads(job)
        if name not in _held:
            _held[name] = opened()
        _job = number, work, name
    return _job[1](_held[_job[2]], item)
