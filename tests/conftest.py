"""A small repository to run: five stages of one cell each, or a bench, with the real runner and real kernels."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml

# Test processes side by side share the cores; set before torch is imported, and handed on to kernels.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))

import driftbook.models  # noqa: E402, F401 (it says how threads wait)
from serve import server as server  # noqa: E402

PARAMETERS = {
    "bench-tiny": 'experiment: str = "bench-tiny"\nseed: int = 0\nbench: dict = {}',
    "series": 'experiment: str = "many"\nseed: int = 0\nbase: dict = {}\nnames: dict = None\n'
    "interventions: list = []\nseries: dict = {}",
    **{
        stage: 'experiment: str = "small"\nseed: int = 0\nbase: dict = {}\nnames: dict = None\n'
        f'intervention: dict = {{"kind": "none"}}\n'
        f"engine: dict = {{}}\n{stage}: dict = {{}}"
        for stage in ("traits", "capture", "decode", "cluster", "validate")
    },
}


def open_cell(stage: str) -> str:
    shared = ["base", "names", "interventions"] if stage == "series" else ["base", "names", "intervention", "engine"]
    names = ["experiment", "seed", *([] if stage.startswith("bench-") else shared)]
    names.append("bench" if stage.startswith("bench-") else stage)
    passed = ", ".join(f"{n}={n}" for n in names)
    return f'from driftbook.workbook import open_run\nrun = open_run("{stage}", {passed})'


def write_notebook(path: Path, stage: str, *cells: str, prose: str = "# What is this?", finish: bool = True) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell(prose, id="prose"),
        nbformat.v4.new_code_cell(PARAMETERS[stage], metadata={"tags": ["parameters"]}, id="parameters"),
        nbformat.v4.new_code_cell(open_cell(stage), id="open"),
        *(nbformat.v4.new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)),
    ]
    if finish:
        notebook.cells.append(nbformat.v4.new_code_cell("run.finish()", id="finish"))
    nbformat.write(notebook, path)


@pytest.fixture(autouse=True)
def shared_models_are_left_as_they_were():
    yield
    if models := sys.modules.get("models"):
        left = [(m.key, models.hook_count(m), models.replaced_forwards(m)) for m in models.SHARED]
        assert all(hooks == replaced == 0 for _, hooks, replaced in left), left


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty repository with one bench experiment and one five-stage experiment, and the files that they name."""
    for folder in ("params/prompts", "params/traits", "params/bench", "notebooks/bench"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "params/prompts/few.txt").write_text("How are you?\nWhat is a tide?\n")
    (tmp_path / "params/traits/calm.json").write_text(json.dumps({"trait": "calm"}))
    (tmp_path / "params/bench/bench-tiny.yml").write_text("experiment: bench-tiny\nseed: 3\nbench: {size: 4}\n")
    (tmp_path / "params/small.yml").write_text(
        "experiment: small\nseed: 1\ntraits: {files: [params/traits/calm.json]}\n"
        "capture: {prompts: [params/prompts/few.txt]}\ndecode: {prompts: [params/prompts/few.txt]}\n"
        "cluster: {clusters: 2}\n"
    )
    return tmp_path


@pytest.fixture
def bench(root: Path) -> Callable[..., Path]:
    """Write the notebook of the bench from its cells; returns the parameter file to run."""

    def write(*cells: str, **options) -> Path:
        write_notebook(root / "notebooks/bench/bench-tiny.ipynb", "bench-tiny", *cells, **options)
        return root / "params/bench/bench-tiny.yml"

    return write


@pytest.fixture
def plain_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without drawing: what is tested is when they are drawn."""
    from driftbook.workbook import drawing, keys, runner

    def draw(folder: Path) -> str:
        run = json.loads((folder / "run.json").read_text())
        (folder / "report.html").write_text(f"{run['status']} {(run['failure'] or {}).get('reason', '')}")
        return ""

    for module in (drawing, runner):
        monkeypatch.setattr(module, "draw", draw)
        monkeypatch.setattr(module, "draw_pages", lambda layout, experiment: None)
    monkeypatch.setattr(keys, "_render_key", lambda notebook, package: {"prose": "".join(keys.prose(notebook))})


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are executed here and at once, for tests of what happens around a run. Returns the stages that were run."""
    from driftbook.workbook import execute, keys, runner, runs

    executed = []

    def run_cells(layout, staging, stage, *_):
        executed.append(stage)
        monkeypatch.chdir(layout.root)
        monkeypatch.setenv(runs.RUN_DIR, str(staging))
        monkeypatch.setenv(runs.OUTPUTS, str(layout.outputs))
        journal = execute.Journal(staging / execute.JOURNAL)
        journal.write("kernel", pid=0)
        names = yaml.safe_load((staging / "params.yml").read_text())
        notebook = nbformat.read(layout.notebook(stage), as_version=4)
        injected = nbformat.v4.new_code_cell("", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(2, injected)
        nbformat.write(notebook, staging / "notebook.ipynb")
        for number, code in enumerate(keys.code_cells(layout.notebook(stage)), 3):
            journal.write("start", cell=number)
            try:
                exec(code, names)
            except Exception as error:
                journal.write("failed", cell=number, reason=f"{type(error).__name__}: {error}")
                return 1
            journal.write("done", cell=number)
        journal.write("end", code=0, peak_rss_mb=1.0)
        return 0

    monkeypatch.setattr(runner, "_execute", run_cells)
    return executed
