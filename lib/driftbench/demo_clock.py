"""The demo by the clock: an experiment run in a copy of the repository whose ``outputs`` are empty, and run again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from driftbook.errors import DriftbookError
from driftbook.workbook.runs import OUTPUTS, RUN_DIR, RUN_FILE, Layout, read_json

COPIED = ("lib", "notebooks", "params")


@dataclass(frozen=True)
class Timed:
    """One call of ``python -m driftbook run``: seconds of the whole process, and what it said of each stage."""

    seconds: float
    outcomes: dict[str, str]


def copy_repository(root: Path, folder: Path) -> Path:
    """What a run reads of the repository, in ``folder``. Nothing that was computed comes along."""
    for name in COPIED:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def timed_run(repository: Path, experiment: str) -> Timed:
    """Run an experiment as ``make run`` does, with the copied library, and take the time.

    Raises DriftbookError, with the end of what was said, when the run fails.
    """
    environment = {k: v for k, v in os.environ.items() if k not in (RUN_DIR, OUTPUTS)}
    environment["PYTHONPATH"] = str(repository / "lib")
    command = [sys.executable, "-m", "driftbook", "run", experiment]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise DriftbookError(f"driftbook run {experiment} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    said = re.findall(rf"^{re.escape(experiment)}/(\w+): (done|up to date|report drawn again)", done.stdout, re.M)
    return Timed(seconds, dict(said))


def stage_seconds(repository: Path, experiment: str) -> dict[str, float]:
    """Seconds of every stage of a run in ``repository``, start of its kernel included, in the order of their start."""
    layout = Layout.of(repository)
    files = (layout.outputs / experiment).glob(f"*/{RUN_FILE}")
    runs = sorted((read_json(f) for f in files), key=lambda run: str(run["started"]))
    return {run["stage"]: float(run["seconds"]) for run in runs}
