"""Run one stage headless: skip it when nothing changed, build it aside, judge it, and swap it in.

A run is good only when the journal of the child process says that every code cell was done and the notebook reached
``run.finish()``. papermill's own signs do not suffice: a cell that timed out and a killed kernel leave a notebook
whose cells all read "completed", and ``sys.exit(0)`` in a cell leaves an exit code of 0.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from driftbook.engines import check_decoder
from driftbook.errors import DriftbookError, ParameterError
from driftbook.hashes import remembered_hash
from driftbook.members import SERIES
from driftbook.parameters import BenchExperiment, Experiment, load_experiment, load_members, resolved, stages_of
from driftbook.prompt_files import check_hub
from driftbook.sections import WORKERS
from driftbook.workbook import keys
from driftbook.workbook.drawing import draw, draw_pages, front_page, redraw
from driftbook.workbook.runs import FINISHED, MEMBERS, OUTPUTS, RUN_DIR, RUN_FILE, Layout, label, read_json, write_json
from driftbook.workbook.state import explain, fingerprints, git_state, open_experiment, staleness, upstream_outputs
from driftbook.workbook.wording import duration
from driftbook.workers import PASSIVE

SECONDS_TO_STOP = 15


@dataclass(frozen=True)
class RunResult:
    """How one stage ended. ``folder`` is the good run, or the evidence of the failed one."""

    experiment: str
    stage: str
    status: Literal["ok", "skipped", "rendered", "failed"]
    folder: Path
    seconds: float = 0.0
    reason: str = ""

    @property
    def good(self) -> bool:
        return self.status != "failed"


@dataclass(frozen=True)
class Failure:
    """Why a run is not good. ``cell`` counts the cells of the executed notebook from 0."""

    reason: str
    cell: int | None = None

    def described(self, stage: str) -> str:
        return f"{stage}, cell {self.cell + 1}: {self.reason}" if self.cell is not None else f"{stage}: {self.reason}"


# -------------------------------------------------------------------------------------------------------------- the run


def run_stage(
    experiment_file: Path,
    stage: str,
    force: bool = False,
    *,
    outputs: Path | None = None,
    cell_timeout: float | None = None,
    kernel: str = "python3",
    echo: bool = True,
) -> RunResult:
    """Run one stage of an experiment, or find that its last good run still holds.

    ``experiment_file`` is ``<root>/params/<experiment>.yml``; outputs go to ``<root>/outputs`` unless ``outputs``
    says otherwise. ``cell_timeout`` is in seconds per cell. Stages before this one must be good and up to date.
    Raises ``ParameterError`` before anything starts, ``DriftbookError`` when a stage before is missing or the disk is
    full. A notebook that fails raises nothing: the result says ``failed``, and its folder holds the evidence.
    """
    experiment, layout = open_experiment(experiment_file, outputs)
    _check_stages(experiment, [stage])
    name = resolved(experiment, stage)["experiment"]  # of the traits that members of a series share: the series
    key = keys.stage_key(experiment, stage, layout)
    with clear_disk_errors(layout), contextlib.ExitStack() as locks:
        layout.parent(name, stage).mkdir(parents=True, exist_ok=True)
        for other in keys.upstream(experiment, stage):
            locks.enter_context(lock(layout, name, other, shared=True))
        locks.enter_context(lock(layout, name, stage))
        _recover(layout, name, stage)
        before = upstream_outputs(experiment, stage, layout)
        target = layout.stage(name, stage)
        stale = [] if force else staleness(layout, name, key, before)
        if not force and not stale:
            run = read_json(target / RUN_FILE)
            if run.get("render") == key.render and (target / "report.html").is_file():
                return RunResult(name, stage, "skipped", target)
            redraw(layout, name, key)
            return RunResult(name, stage, "rendered", target)
        if isinstance(experiment, Experiment) and stage != SERIES:
            _check_engine(experiment, experiment_file)
        return _run(experiment, layout, key, before, cell_timeout, kernel, echo)


def _check_engine(experiment: Experiment, file: Path) -> None:
    """Refuse an engine that cannot be had before a kernel starts. Raises ``ParameterError``."""
    try:
        WORKERS[experiment.engine.kind].check(experiment.engine)
    except DriftbookError as error:
        raise ParameterError(f"{file}: {error}") from None


def _run(
    experiment: Experiment | BenchExperiment,
    layout: Layout,
    key: keys.Key,
    before: dict[str, str],
    cell_timeout: float | None,
    kernel: str,
    echo: bool,
) -> RunResult:
    params, stage = resolved(experiment, key.stage), key.stage
    name = params["experiment"]
    staging = layout.staging(name, stage)
    (staging / "data").mkdir(parents=True)
    (staging / "params.yml").write_text(
        yaml.safe_dump(params, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8"
    )
    if stage == SERIES:
        write_json(staging / MEMBERS, sorted(key.components["upstream"]))
    notebook = layout.notebook(stage)
    inputs = {**key.components["inputs"], keys.shown(notebook, layout.root): remembered_hash(notebook), **before}
    began, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    interrupted = False
    try:
        code = _execute(layout, staging, stage, label(name, stage), kernel, cell_timeout, echo)
        failure = judge(staging, code)
    except KeyboardInterrupt:
        interrupted = True
        failure = _interrupted(staging)
    seconds = round(time.monotonic() - clock, 3)
    record = {
        "experiment": name,
        "stage": stage,
        "status": "failed" if failure else "ok",
        "failure": failure and {"stage": stage, "cell": failure.cell, "reason": failure.reason},
        # What was edited while the kernel ran may or may not have been read: such a run holds for nothing but itself.
        "key": key.digest if keys.stage_key(experiment, stage, layout).digest == key.digest else None,
        "components": key.components,
        "render": key.render,
        "command": shlex.join([Path(sys.argv[0]).name if sys.argv[0] else "python", *sys.argv[1:]]),
        "started": began.isoformat(timespec="seconds"),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "git": git_state(layout.root),
        "versions": {
            "driftbook": keys.installed("driftbook"),
            **key.components["versions"],
            "python": platform.python_version(),
        },
        "platform": platform.platform(),
        "seeds": {"seed": experiment.seed},
        **_told(staging),
        **_journalled(staging),
        "inputs": inputs,
    }
    _put_down(staging, layout.notebook(stage), record, seconds)
    if failure:
        folder = layout.failed(name, stage)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(staging / RUN_FILE, {**record, "outputs": fingerprints(staging)})
        os.rename(staging, folder)
        draw(folder)
        if interrupted:
            raise KeyboardInterrupt
        return RunResult(name, stage, "failed", folder, seconds, failure.described(stage))
    write_json(staging / RUN_FILE, {**record, "outputs": fingerprints(staging)})
    undrawn = draw(staging)
    _swap(layout, name, stage, staging)
    if undrawn:
        raise DriftbookError(f"{label(name, stage)} ran and is kept, but its report could not be drawn: {undrawn}")
    return RunResult(name, stage, "ok", layout.stage(name, stage), seconds)


def _execute(
    layout: Layout, staging: Path, stage: str, title: str, kernel: str, cell_timeout: float | None, echo: bool
) -> int:
    """Run the notebook in a child process, its output into ``kernel.log`` and, line by line, to the terminal."""
    command = [
        sys.executable,
        "-m",
        "driftbook.workbook.execute",
        str(layout.notebook(stage)),
        str(staging),
        "--kernel",
        kernel,
    ]
    if cell_timeout is not None:
        command += ["--timeout", str(cell_timeout)]
    environment = {
        **dict([PASSIVE]),
        **os.environ,
        RUN_DIR: str(staging),
        OUTPUTS: str(layout.outputs),
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",  # sets of strings iterate alike in every run
        "TQDM_DISABLE": "1",  # bars of other libraries would fill the log; progress is written as lines
    }
    child = subprocess.Popen(
        command,
        cwd=layout.root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the child in order
    )
    reader = threading.Thread(target=_copy, args=(child.stdout, staging / "kernel.log", title, echo), daemon=True)
    reader.start()
    try:
        code = child.wait()
    except BaseException:
        _stop(child)
        raise
    finally:
        # What a kernel leaves behind (a Ray daemon) may hold the pipe open for ever.
        reader.join(timeout=5)
        child.stdin.close()
    return code


def _copy(lines: Any, log: Path, title: str, echo: bool) -> None:
    with log.open("ab", buffering=0) as out:
        for line in lines:
            out.write(line)
            if echo:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    print(f"[{title}] {text}", flush=True)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and its kernel: it watches its standard input."""
    child.stdin.close()
    try:
        child.wait(timeout=SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


# -------------------------------------------------------------------------------------------------------------- judging


def _events(folder: Path) -> list[dict[str, Any]]:
    journal = folder / "journal.jsonl"
    if not journal.is_file():
        return []
    events = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            events.append(json.loads(line))
    return events


def judge(folder: Path, code: int) -> Failure | None:
    """What was wrong with a run, by the journal in ``folder`` and the exit code of the process; None if good."""
    events = _events(folder)
    for event in events:
        if event["event"] == "failed":
            return Failure(event["reason"] + room(event["reason"]), event["cell"])
    started = [e["cell"] for e in events if e["event"] == "start"]
    done = {e["cell"] for e in events if e["event"] == "done"}
    error = next((e["reason"] for e in events if e["event"] == "error"), "")
    if not any(e["event"] == "kernel" for e in events):
        return Failure(f"the kernel did not start: {error or f'exit code {code}, see kernel.log'}")
    if open_cells := [c for c in started if c not in done]:
        return Failure(error or f"the process that ran the notebook ended with code {code}", open_cells[-1])
    if code != 0:
        return Failure(error or f"the process that ran the notebook ended with code {code}", max(done, default=None))
    if not (folder / FINISHED).is_file():
        return Failure(
            "the notebook ended without run.finish(): a cell left early, or the last cell is missing",
            max(done, default=None),
        )
    return None


def _interrupted(folder: Path) -> Failure:
    running = [e["cell"] for e in _events(folder) if e["event"] == "start"]
    return Failure("interrupted", running[-1] if running else None)


def room(reason: str) -> str:
    """What mends a full disk; "" for another reason."""
    if "No space left on device" in reason:
        return " (make room, or move outputs/ to a larger disk; what was cached is kept)"
    return ""


def _told(folder: Path) -> dict[str, Any]:
    """What the notebook said about itself: answer, headlines, and records such as device and model hashes."""
    told = read_json(folder / FINISHED) if (folder / FINISHED).is_file() else {}
    return {"answer": told.get("answer", ""), "headlines": told.get("headlines", []), **told.get("records", {})}


def _journalled(folder: Path) -> dict[str, Any]:
    """Seconds of each cell that was started (counted from 0 in the executed notebook), and peak memory in MB."""
    cells: dict[int, dict[str, Any]] = {}
    begun: dict[int, float] = {}
    peak = None
    for event in _events(folder):
        if event["event"] == "start":
            begun[event["cell"]] = event["at"]
            cells[event["cell"]] = {"cell": event["cell"], "status": "running", "seconds": None}
        elif event["event"] in ("done", "failed"):
            cell = cells[event["cell"]]
            cell["status"] = event["event"]
            if cell["seconds"] is None:
                cell["seconds"] = round(event["at"] - begun[event["cell"]], 3)
        elif event["event"] == "end":
            peak = event["peak_rss_mb"]
    return {"cells": list(cells.values()), "peak_rss_mb": peak}


def _put_down(staging: Path, notebook: Path, record: dict[str, Any], seconds: float) -> None:
    """Complete the files of a run folder, good or failed, and drop what only the runner needed."""
    if not (staging / "notebook.ipynb").is_file():
        shutil.copyfile(notebook, staging / "notebook.ipynb")
    metrics = read_json(staging / "metrics.json") if (staging / "metrics.json").is_file() else {}
    metrics["seconds"] = seconds
    if record["peak_rss_mb"] is not None:
        metrics["peak_rss_mb"] = record["peak_rss_mb"]
    write_json(staging / "metrics.json", metrics)
    for name in ("journal.jsonl", FINISHED):
        (staging / name).unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------- folders, reports


def _recover(layout: Layout, experiment: str, stage: str) -> None:
    """Clear what a killed runner left. The caller holds the lock, so every staging folder of the stage is abandoned."""
    target, retired = layout.stage(experiment, stage), layout.retired(experiment, stage)
    if retired.is_dir() and not target.exists():
        os.rename(retired, target)
    shutil.rmtree(retired, ignore_errors=True)
    for folder in target.parent.glob(f".staging-{stage}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _swap(layout: Layout, experiment: str, stage: str, staging: Path) -> None:
    target, retired = layout.stage(experiment, stage), layout.retired(experiment, stage)
    if target.exists():
        os.rename(target, retired)
    os.rename(staging, target)
    shutil.rmtree(retired, ignore_errors=True)
    shutil.rmtree(layout.failed(experiment, stage), ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------- experiments


def run_experiment(
    experiment_file: Path,
    stages: Iterable[str] | None = None,
    force: bool = False,
    *,
    outputs: Path | None = None,
    cell_timeout: float | None = None,
    echo: bool = True,
    keep_going: bool = False,
) -> list[RunResult]:
    """Run ``stages`` (default: all) and what they need, in order, until one fails; then draw the front page.

    ``force`` repeats the named stages even if nothing changed; the ones before them still skip. Of a series, all
    changes run one after the other and then what reads them together; with ``keep_going`` also those after one that
    cannot run or fails. Raises ``ParameterError`` before anything runs, and names all changes that cannot.
    """
    experiment, layout = open_experiment(experiment_file, outputs)
    more = {"outputs": outputs, "cell_timeout": cell_timeout, "echo": echo}
    if isinstance(experiment, Experiment) and experiment.interventions:
        asked = list(stages) if stages else None
        files, wrong = load_members(experiment_file, layout.root, ask=True)
        if wrong and not (keep_going and files):
            hint = ["--keep-going runs the others without them"] if files else []
            raise ParameterError("\n".join(dict.fromkeys([*wrong.values(), *hint])))
        results = [
            RunResult(f"{experiment.experiment}:{name}", "", "failed", layout.folder(experiment.experiment), 0, said)
            for name, said in wrong.items()
        ]
        for index, file in enumerate(files.values()):
            # The traits are read once for all: --force repeated them with the first change.
            own = (s for s in asked or stages_of(load_experiment(file)) if s != SERIES)
            todo = [s for s in own if not (index and force and s == "traits")]
            results += run_experiment(file, todo, force, **more) if todo else []
            if not keep_going and not all(r.good for r in results):
                return results
        if asked is None or SERIES in asked:
            results += _run_stages(experiment_file, experiment, layout, [SERIES], force, **more)
        return results
    return _run_stages(experiment_file, experiment, layout, list(stages or ()), force, **more)


def _run_stages(
    experiment_file: Path,
    experiment: Experiment | BenchExperiment,
    layout: Layout,
    stages: list[str],
    force: bool,
    *,
    outputs: Path | None,
    cell_timeout: float | None,
    echo: bool,
) -> list[RunResult]:
    asked = list(stages or stages_of(experiment))
    _check_stages(experiment, asked)
    results, todo = [], keys.closure(experiment, asked)
    if isinstance(experiment, Experiment):
        _check_packages(experiment, experiment_file, todo, outputs)
    for stage in todo:
        if echo:
            print(label(experiment.experiment, stage), flush=True)
        result = run_stage(
            experiment_file, stage, force and stage in asked, outputs=outputs, cell_timeout=cell_timeout, echo=echo
        )
        if echo:
            print(f"{label(experiment.experiment, stage)}: {described(result)}", flush=True)
        results.append(result)
        if not result.good:
            break
        if result.experiment != experiment.experiment:
            _share(layout, experiment.experiment, stage)
    page = front_page(layout, experiment.experiment)
    if any(r.status != "skipped" for r in results) or not page.is_file():
        with clear_disk_errors(layout), lock(layout, "", "index"):
            draw_pages(layout, experiment.experiment)
    return results


def _check_stages(experiment: Experiment | BenchExperiment, stages: Iterable[str]) -> None:
    """Raises DriftbookError for a stage that the experiment does not have."""
    there = stages_of(experiment)
    for stage in stages:
        if stage in there:
            continue
        elsewhere = "; its answers exist already, and base.model reads them where the file has a section "
        more = f"{elsewhere}{stage}: {{...}}" if stage in ("traits", "capture") and "decode" in there else ""
        raise DriftbookError(f"{experiment.experiment} has no stage {stage!r}; it has {', '.join(there)}{more}")


def _check_packages(experiment: Experiment, file: Path, stages: Sequence[str], outputs: Path | None) -> None:
    """Refuse what a stage to come needs and is not installed, before those ahead of it run. Raises ``ParameterError``.
    A stage that holds needs nothing."""
    capture, own = experiment.capture, not experiment.intervention.brings_prompts
    prompts = {"capture": [*capture.prompts, *capture.tier3.prompts], "decode": experiment.decode.prompts}
    for stage in stages:
        try:
            check_hub(prompts.get(stage, ()) if own else ())
            check_decoder(experiment.engine.decoder if stage == "decode" else "")
        except DriftbookError as error:
            if explain(file, outputs)[stage][0] == "runs":
                raise ParameterError(f"{file}: {error}") from None


def _share(layout: Layout, member: str, stage: str) -> None:
    """Let whoever reads the folder of a member find the stage that stands once for the whole series."""
    link, target = layout.folder(member) / stage, layout.stage(member, stage)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))


def described(result: RunResult) -> str:
    if result.status == "skipped":
        return "up to date"
    if result.status == "rendered":
        return "report drawn again"
    if result.status == "ok":
        return f"done in {duration(result.seconds)}"
    return f"FAILED after {duration(result.seconds)}: {result.reason}\n  evidence in {result.folder}"


# --------------------------------------------------------------------------------------------------------------- guards


@contextlib.contextmanager
def lock(layout: Layout, experiment: str, stage: str, shared: bool = False) -> Iterator[None]:
    """One runner per stage; the stages that it reads stay as they are. The system frees it when a runner dies."""
    path = layout.lock(experiment, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as held:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(held, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{label(experiment, stage)}: another run has it; waiting", flush=True)
            fcntl.flock(held, mode)
        yield


@contextlib.contextmanager
def clear_disk_errors(layout: Layout) -> Iterator[None]:
    """Say what to do when the disk is full, and leave the last good run alone."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(layout.outputs if layout.outputs.is_dir() else layout.root).free
        raise DriftbookError(
            f"the disk is full ({error.filename or layout.outputs}; {free / 1e6:,.0f} MB free): make room, or move "
            f"{layout.outputs} to a larger disk and link it. The last good runs and the caches are kept."
        ) from error
