"""Whole experiments: a parameter file, read or run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from driftbook import parameters
from driftbook.errors import DriftbookError
from driftbook.parameters import BenchExperiment, Experiment
from driftbook.workbook.runner import run_experiment
from driftbook.workbook.runs import Layout, find_root

if TYPE_CHECKING:
    import pandas as pd

__all__ = ("load_experiment", "run")


def _file(experiment: str | Path) -> Path:
    given = Path(experiment)
    return given if given.suffix in (".yml", ".yaml") else Layout.of(find_root()).parameters(str(experiment))


def load_experiment(experiment: str | Path) -> Experiment | BenchExperiment:
    """The parameters of an experiment, every default written out.

    Args:
        experiment: a parameter file, or the name of one in ``params/`` of the repository around the working folder.

    Raises:
        DriftbookError: no such file, or a key that it may not hold; names file, line and key.
    """
    return parameters.load_experiment(_file(experiment))


def run(experiment: str | Path, stages: Iterable[str] | None = None, *, force: bool = False) -> pd.DataFrame:
    """Run an experiment headless, as ``make run`` does; stages that still hold are skipped.

    Args:
        experiment: as ``load_experiment`` takes it.
        stages: only these and what they need (traits, capture, decode, cluster, validate).
        force: repeat the named stages even if nothing changed.

    Returns:
        one row a stage: stage, status, folder.

    Raises:
        DriftbookError: the file is wrong, or a stage failed; its evidence lies in ``<stage>.failed``.
    """
    import pandas as pd  # a second, and only a table needs it

    results = run_experiment(_file(experiment), stages, force)
    if failed := [r for r in results if not r.good]:
        raise DriftbookError(f"{failed[0].stage} failed: {failed[0].reason}")
    return pd.DataFrame([(r.stage, r.status, str(r.folder)) for r in results], columns=["stage", "status", "folder"])
