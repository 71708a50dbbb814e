"""What stands in ``outputs``, and whether it holds: fingerprints, staleness, and what ``why`` and ``verify`` say."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.hashes import file_hash
from driftbook.members import SERIES
from driftbook.parameters import (
    STAGES,
    BenchExperiment,
    Experiment,
    load_experiment,
    load_members,
    repository_of,
    stages_of,
)
from driftbook.workbook import keys
from driftbook.workbook.runs import RUN_FILE, Layout, read_json


def open_experiment(experiment_file: Path, outputs: Path | None = None) -> tuple[Experiment | BenchExperiment, Layout]:
    experiment_file = Path(experiment_file)
    layout = Layout.of(repository_of(experiment_file), outputs)
    return load_experiment(experiment_file, layout.root), layout


@functools.lru_cache(maxsize=8)
def git_state(root: Path) -> dict[str, Any] | None:
    """The commit of the repository and whether tracked files differ from it; None where there is no commit."""
    ask = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
    try:
        commit = ask(["git", "rev-parse", "HEAD"]).stdout.strip()
        dirty = bool(ask(["git", "status", "--porcelain"]).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": dirty}


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file that a run hands on."""
    about_the_run = (RUN_FILE, "report.html", "kernel.log", "notebook.ipynb")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    files = [p for p in files if p.name not in about_the_run]
    return {str(p.relative_to(folder)): {"sha256": file_hash(p), "bytes": p.stat().st_size} for p in files}


def upstream_outputs(experiment: Experiment | BenchExperiment, stage: str, layout: Layout) -> dict[str, str]:
    """sha256 of every data file of the stages before. Raises ``DriftbookError`` if one is missing or out of date."""
    name = experiment.experiment
    found: dict[str, str] = {}
    if stage == SERIES:
        return _of_members(experiment, layout)
    for other in keys.upstream(experiment, stage):
        folder = layout.stage(name, other)
        if not (folder / RUN_FILE).is_file():
            raise DriftbookError(f"{stage} reads {other}, which has no good run in {folder}: make {other} EXP={name}")
        run = read_json(folder / RUN_FILE)
        now = keys.stage_key(experiment, other, layout)
        if run["key"] != now.digest:
            changed = "; ".join(_changes(run, now))
            raise DriftbookError(f"{stage} reads {other}, which is out of date ({changed}): make {other} EXP={name}")
        found |= {f"{other}/{n}": kept["sha256"] for n, kept in run["outputs"].items() if n.startswith("data/")}
    return found


def _of_members(experiment: Experiment, layout: Layout) -> dict[str, str]:
    """sha256 of the data files of all stages of the members that hold. Raises ``DriftbookError`` where none does."""
    held = keys.held(experiment, layout)
    if not held:
        raise DriftbookError(
            f"{SERIES} reads the changes of {experiment.experiment}, of which none has a good run: "
            f"make run EXP={experiment.experiment}"
        )
    return {
        f"{member}/{stage}/{name}": kept["sha256"]
        for member in held
        for stage in STAGES
        if (layout.stage(member, stage) / RUN_FILE).is_file()
        for name, kept in read_json(layout.stage(member, stage) / RUN_FILE)["outputs"].items()
        if name.startswith("data/")
    }


def staleness(layout: Layout, experiment: str, key: keys.Key, before: dict[str, str]) -> list[str]:
    """Why the last good run of a stage does not hold any more: one sentence each, nothing if it holds."""
    folder = layout.stage(experiment, key.stage)
    if not (folder / RUN_FILE).is_file():
        failed = layout.failed(experiment, key.stage) / RUN_FILE
        return [f"the last run failed: {read_json(failed)['failure']['reason']}" if failed.is_file() else "never run"]
    try:
        run = read_json(folder / RUN_FILE)
    except DriftbookError as error:
        return [str(error)]
    if run.get("status") != "ok":
        return [f"its status is {run.get('status')!r}"]
    if run["key"] != key.digest:
        return _changes(run, key)
    damaged = [
        f"{folder.name}/{name}: {'is gone' if not (folder / name).is_file() else 'has another size'}"
        for name, kept in run["outputs"].items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != kept["bytes"]
    ]
    if not (folder / "notebook.ipynb").is_file():
        damaged.append(f"{folder.name}/notebook.ipynb: is gone")
    other = [n for n, sha in before.items() if run["inputs"].get(n) != sha]
    return damaged + [f"{name}: has other content than the run read" for name in other]


def _changes(run: dict[str, Any], key: keys.Key) -> list[str]:
    return keys.changes(run["components"], key.components, key.stage) or ["its files were edited while it ran"]


def explain(experiment_file: Path, outputs: Path | None = None) -> dict[str, tuple[str, list[str]]]:
    """Per stage what ``run`` would do ("up to date", "draws its report again", "runs") and why. Starts nothing."""
    experiment, layout = open_experiment(experiment_file, outputs)
    name = experiment.experiment
    said: dict[str, tuple[str, list[str]]] = {}
    for stage in stages_of(experiment):
        key = keys.stage_key(experiment, stage, layout)
        try:
            before = upstream_outputs(experiment, stage, layout)
        except DriftbookError:
            before = {}  # a stage before this one runs first; its key says so among the reasons
        reasons = staleness(layout, name, key, before)
        if reasons:
            said[stage] = ("runs", reasons)
            continue
        drawn = read_json(layout.stage(name, stage) / RUN_FILE).get("render", {})
        redrawn = [f"{n}: edited" for n in dict.fromkeys((*drawn, *key.render)) if drawn.get(n) != key.render.get(n)]
        if not (layout.stage(name, stage) / "report.html").is_file():
            redrawn.append("report.html: is gone")
        said[stage] = ("draws its report again", redrawn) if redrawn else ("up to date", [])
    return said


def parts(experiment_file: Path) -> list[Path]:
    """The parameter files of the changes of a series, and its own; of another experiment its own alone."""
    experiment = load_experiment(experiment_file)
    series = isinstance(experiment, Experiment) and bool(experiment.interventions)
    return [*(load_members(experiment_file)[0].values() if series else ()), Path(experiment_file)]


def verify(experiment_file: Path, outputs: Path | None = None) -> dict[str, list[str]]:
    """Per stage with a good run, the files that are not as ``run.json`` recorded them.

    Raises ``DriftbookError`` when the experiment has no good run at all.
    """
    experiment, layout = open_experiment(experiment_file, outputs)
    name = experiment.experiment
    said = {}
    for stage in stages_of(experiment):
        folder = layout.stage(name, stage)
        if not (folder / RUN_FILE).is_file():
            continue
        kept = read_json(folder / RUN_FILE)["outputs"]
        now = fingerprints(folder)
        said[stage] = [
            f"{folder / n}: {'is gone' if n not in now else 'is not of the run' if n not in kept else 'changed'}"
            for n in dict.fromkeys((*kept, *now))
            if kept.get(n) != now.get(n)
        ]
    if not said:
        raise DriftbookError(f"{layout.folder(name)} holds no good run: make run EXP={name}")
    return said
