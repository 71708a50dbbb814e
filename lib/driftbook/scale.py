"""``engine: {kind: ray}``: shards of decoding, replay, embedding and judging on worker processes, here or on a cluster.

A shard is the unit of determinism: its result follows from what it asks for and from nothing else, so the texts are
the same with one worker, with eight, and with one that was killed half-way (in bfloat16, where all have the same number
of threads; docs/scale.md says what is exact). Ray starts the workers, places them, starts them again when they die and
repeats what they were doing. What they made goes into the shared store of shards, and the driver (the notebook) gets
keys and counts.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from driftbook.errors import DriftbookError, first_line
from driftbook.sections import EngineSpec, ModelSpec
from driftbook.workers import OPENED, PASSIVE, Workers, cores, peak_rss_mb

RESTARTS = (
    20  # of one worker in one run: a machine that is taken away now and then is borne, a crash at every start not
)
RETRIES = 3  # of one shard: one that kills every worker that takes it must come to an end
REACH_S = 5.0
OBJECT_STORE_BYTES = 1_000_000_000  # arguments only: what workers make goes to disk

#: A Ray that is started here listens on the loopback interface alone. Ray takes "127.0.0.1" for a request to find the
#: machine's outer address, unless this says that there is no cluster to be reached by others.
_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OF_OUR_OWN = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}  # workers have the priority of this process
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


# ------------------------------------------------------------------------------------------------------- the connection


def check(engine: EngineSpec) -> None:
    """Refuse what cannot work before anything is loaded: no Ray, or an address at which nothing answers.

    Raises:
        DriftbookError: names ``engine.kind`` or ``engine.address`` and what to do.
    """
    if find_spec("ray") is None:
        raise DriftbookError("engine.kind ray: Ray is not installed: pip install 'driftbook[ray]', or use kind: local")
    if engine.address in (None, "auto"):
        return
    host, _, port = engine.address.rpartition(":")
    if not host or not port.isdigit():
        raise DriftbookError(
            f"engine.address {engine.address!r} is none: give host:port of a Ray head (ray start --head shows it), "
            "auto for the cluster that this machine belongs to, or leave it out and one is started here"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise _unreachable(engine.address, error) from None


def _unreachable(address: str, reason: object) -> DriftbookError:
    return DriftbookError(
        f"engine.address {address}: no Ray cluster answers there ({first_line(reason)}). Start one (ray start "
        "--head, then ray start --address=... on the other machines), correct the address, or leave engine.address out "
        "and workers are started on this machine"
    )


def connect(engine: EngineSpec, threads: int, gpus: int = 0) -> None:
    """Connect this process to ``engine.address``, or start a Ray on this machine for it: on the loopback interface
    alone, behind a token that only this process and its workers know, without a dashboard. It ends with this process.

    Args:
        threads: of one worker; a Ray that is started here has so many CPUs for each.
        gpus: of this machine, for a Ray that is started here.

    Raises:
        DriftbookError: nothing answers at the address, it refuses us, or this process is connected elsewhere.
    """
    check(engine)
    wanted = engine.address or "local"
    if _connected and _connected[-1] == wanted:
        return
    os.environ.update(_QUIET)
    if engine.address is None and not _prepared:
        if "ray" in sys.modules:
            raise DriftbookError(
                "engine.kind ray: Ray was imported before driftbook could close it to the network (it reads its "
                "settings once); restart the kernel and let driftbook import it"
            )
        os.environ.update(_LOOPBACK_ONLY | _OF_OUR_OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        _prepared.append(True)
    import ray  # seconds, where an experiment asks for it

    if ray.is_initialized():
        raise DriftbookError(
            f"engine.address: this process is connected to another Ray, and {wanted} is asked for; call ray.shutdown() "
            "or restart the kernel"
        )
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if engine.address is not None:
        try:
            ray.init(address=engine.address, **options)
        except ConnectionError as error:
            raise _unreachable(engine.address, error) from None
        except (RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
            reason = "the token is missing or another" if "uthentication" in str(error) else first_line(error)
            raise DriftbookError(
                f"engine.address {engine.address}: something answers there and does not let us in ({reason}). Ray and "
                "Python must be those of the cluster, and where it wants a token, so must RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH be set before this process starts"
            ) from None
        _connected.append(wanted)
        return
    try:
        found = ray.init(
            address="local",
            num_cpus=threads * engine.workers,
            num_gpus=gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **options,
        )
    except Exception as error:  # Ray raises the plainest kind when its processes are not up in time
        raise DriftbookError(
            f"engine.kind ray: Ray could not be started on this machine ({first_line(error)}). It gives its "
            "processes 30 s, which a machine that is busy with other work may miss: run again, or use kind: local"
        ) from error
    assert found.address_info["node_ip_address"] == "127.0.0.1", found.address_info
    _connected.append(wanted)


_connected: list[str] = []
_prepared: list[bool] = []  # whether Ray was imported under the settings for a Ray of our own


def disconnect() -> None:
    """Leave the cluster; a Ray that was started here ends. Workers that were opened are gone."""
    if _connected:
        import ray  # seconds, where an experiment asks for it

        ray.shutdown()
        _connected.clear()
    OPENED.clear()


# ---------------------------------------------------------------------------------------------------------- the workers


class _Worker:
    """A worker process. It opens what a job needs (a pair of models, an embedder, a judge) once, and keeps it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder  # of the driver: relative paths in parameters start there
        self.held: dict[str, Any] = {}
        self.job: tuple[str, Any, Any] | None = None
        self.number = -1

    def do(self, number: int, jobs: list[Any], item: Any) -> Any:
        import ray  # seconds, where an experiment asks for it

        if self.job is None or self.number != number:
            if not os.path.isdir(self.folder):
                raise DriftbookError(
                    f"engine.kind ray: {self.folder} is not there on {socket.gethostname()}; the repository and its "
                    "outputs/ must lie under the same path on every machine"
                )
            os.chdir(self.folder)
            self.job, self.number = ray.get(jobs[0]), number
        name, opened, work = self.job
        if name not in self.held:
            self.held[name] = opened()
        return work(self.held[name], item)

    def memory(self) -> tuple[int, float]:
        """Process id and peak resident memory in MB (10^6 bytes)."""
        return os.getpid(), peak_rss_mb()


class RayWorkers(Workers):
    """``engine.workers`` processes on a Ray cluster, started at the first shard.

    On CPUs each gets ``threads``, or the cores of this machine (of the cluster, where there is an address) divided by
    the workers; on GPUs one GPU each.
    """

    gpu_each = True

    @classmethod
    def check(cls, engine: EngineSpec) -> None:
        check(engine)

    @classmethod
    def opened(cls, engine: EngineSpec, base: ModelSpec) -> RayWorkers:
        from driftbook.models.loading import choose_device  # imports torch

        return cls(engine, choose_device(base.device, base.dtype)[0].type == "cuda")

    def __init__(self, engine: EngineSpec, gpu: bool = False, threads: int | None = None):
        super().__init__()
        self.engine, self.gpu, self.fixed = engine, gpu, threads is not None
        self.threads = threads or max(1, cores() // engine.workers)
        self._actors: list[Any] = []
        if engine.address is not None:
            connect(engine, self.threads)

    def _run(self, number: int, job: tuple[str, Callable, Callable], items: Iterator[Any]) -> Iterator[Any]:
        self._start()
        import ray  # seconds, where an experiment asks for it
        from ray.util import ActorPool

        stored, pool = ray.put(job), ActorPool(self._actors)
        try:
            for item in items:
                if not pool.has_free():
                    yield pool.get_next_unordered()
                pool.submit(lambda actor, one: actor.do.remote(number, [stored], one), item)
            while pool.has_next():
                yield pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, DriftbookError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            self._actors = []
            raise DriftbookError(
                f"engine.kind ray: a worker died again and again ({first_line(error)}). Too little memory is "
                "the usual reason: lower engine.workers or engine.batch_size. Finished shards are kept: run again"
            ) from None

    def memory(self) -> dict[int, float]:
        """Peak resident memory of each worker in MB, by process id."""
        import ray  # seconds, where an experiment asks for it

        return dict(ray.get([actor.memory.remote() for actor in self._actors]))

    def close(self) -> None:
        import ray  # seconds, where an experiment asks for it

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def describe(self) -> dict[str, Any]:
        where = self.engine.address or "this machine"
        here = f"{self.threads} thread(s)" if self.engine.address is None else "its share of the cluster's CPUs"
        return {"ray": where, "workers": self.engine.workers, "each": "1 GPU" if self.gpu else here}

    def _start(self) -> None:
        if self._actors:
            return
        connect(self.engine, self.threads, _gpus() if self.gpu else 0)
        import ray  # seconds, where an experiment asks for it

        there = ray.cluster_resources()
        kind, have = ("GPU", int(there.get("GPU", 0))) if self.gpu else ("CPU", int(there.get("CPU", 0)))
        if have < self.engine.workers:
            raise DriftbookError(
                f"engine.workers {self.engine.workers}: each takes a {kind}, and the cluster has {have}; lower it, or "
                "start more machines first"
            )
        if not self.gpu and not self.fixed:
            self.threads = have // self.engine.workers
        actor = ray.remote(_Worker).options(
            num_cpus=self.threads if not self.gpu else 1,
            num_gpus=1 if self.gpu else 0,
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.threads), **dict([PASSIVE])}},
        )
        self._actors = [actor.remote(os.getcwd()) for _ in range(self.engine.workers)]


def _gpus() -> int:
    import torch  # seconds that a runner, which asks for the engine alone, need not pay

    return torch.cuda.device_count()
