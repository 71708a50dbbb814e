"""The notebooks as they are committed: no outputs, no definitions, and a parameter cell that runs the quickstart."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest

from driftbook.members import SERIES
from driftbook.parameters import STAGES, load_experiment, resolved, shelf, validate_cell
from driftbook.workbook.keys import code_cells, read_cells

ROOT = Path(__file__).parent.parent
BENCHES = sorted(p.stem for p in (ROOT / "notebooks/bench").glob("*.ipynb"))
NOTEBOOKS = [*STAGES, SERIES, *BENCHES]  # those that a run executes
COMMITTED = [*NOTEBOOKS, "start"]


def notebook(stage: str) -> Path:
    return ROOT / "notebooks" / shelf(stage) / f"{stage}.ipynb"


def code(stage: str) -> list[dict]:
    return [cell for cell in read_cells(notebook(stage)) if cell["type"] == "code"]


def parsed(stage: str) -> ast.Module:
    return ast.parse("\n".join(cell["source"] for cell in code(stage)))


def test_there_is_a_notebook_for_every_stage_and_bench_one_to_start_with_and_no_other():
    stems = {p.stem for p in (ROOT / "notebooks").rglob("*.ipynb")}
    assert stems == {"start", SERIES, *STAGES, *(p.stem for p in (ROOT / "params/bench").glob("*.yml"))}


@pytest.mark.parametrize("stage", COMMITTED)
def test_no_outputs_are_committed(stage):
    raw = json.loads(notebook(stage).read_text())
    for number, cell in enumerate(raw["cells"], 1):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"cell {number}: run nbstripout on it"
        assert "papermill" not in cell["metadata"] and "execution" not in cell["metadata"], f"cell {number}"
    assert raw["nbformat"] == 4 and raw["nbformat_minor"] >= 5
    assert raw["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("stage", COMMITTED)
def test_what_is_longer_than_a_few_lines_is_in_the_library(stage):
    defined = [
        n for n in ast.walk(parsed(stage)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert [n.name for n in defined] == []
    assert not any("sys.path" in cell["source"] for cell in code(stage))


@pytest.mark.parametrize("stage", COMMITTED)
def test_a_cell_is_read_at_a_glance(stage):
    cells = [c["source"].splitlines() for c in code(stage) if "parameters" not in c["tags"]]
    assert [lines[0] for lines in cells if len(lines) > 15] == []


@pytest.mark.parametrize("stage", COMMITTED)
def test_it_begins_with_its_question(stage):
    first = read_cells(notebook(stage))[0]
    assert first["type"] == "markdown" and first["source"].startswith("# ")
    assert first["source"].splitlines()[0].endswith("?")
    headings = [c["source"] for c in read_cells(notebook(stage)) if c["type"] == "markdown"]
    assert sum(h.startswith("# ") or "\n# " in h for h in headings) == 1


@pytest.mark.parametrize("stage", COMMITTED)
def test_it_calls_what_the_library_has(stage):
    """Notebooks meet a function that was moved only when they run, minutes into a run or never in these tests."""
    imported = {}
    for node in ast.walk(parsed(stage)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("driftbook", "driftbench")):
            for alias in node.names:
                try:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                except ModuleNotFoundError:
                    found = getattr(importlib.import_module(node.module), alias.name)
                imported[alias.asname or alias.name] = found
    used = [n for n in ast.walk(parsed(stage)) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    named = [(n.value.id, n.attr) for n in used if inspect.ismodule(imported.get(n.value.id))]
    assert [name for name in named if not hasattr(imported[name[0]], name[1])] == []
    for node in ast.walk(parsed(stage)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")
            function = imported.get(name[0])
            function = getattr(function, name[1], None) if len(name) == 2 else function
            starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
            if inspect.isfunction(function):
                bind = inspect.signature(function).bind_partial if starred else inspect.signature(function).bind
                given = [a for a in node.args if not isinstance(a, ast.Starred)]
                try:
                    bind(*given, **{k.arg: k.value for k in node.keywords if k.arg})
                except TypeError as error:
                    pytest.fail(f"{ast.unparse(node.func)}: {error}")


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_the_parameter_cell_holds_the_quickstart_one_name_a_line(stage):
    first = code(stage)[0]
    assert first["tags"] == ["parameters"]
    lines = ast.parse(first["source"]).body
    # papermill's help reads one plain "name: type = value" per line.
    assert all(isinstance(n, ast.AnnAssign) for n in lines)
    assert stage in BENCHES or all(n.lineno == n.end_lineno for n in lines)
    cell = {n.target.id: ast.literal_eval(n.value) for n in lines}
    name = stage if stage.startswith("bench-") or stage == SERIES else "quickstart"
    experiment = load_experiment(ROOT / "params" / shelf(name) / f"{name}.yml")
    assert list(cell) == list(resolved(experiment, stage))
    assert resolved(validate_cell(stage, cell), stage) == resolved(experiment, stage)


@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_the_next_cell_checks_it_and_the_last_one_finishes(stage):
    second, last = code_cells(notebook(stage))[0], code_cells(notebook(stage))[-1]
    calls = [n for n in ast.walk(ast.parse(second)) if isinstance(n, ast.Call)]
    (opened,) = [c for c in calls if getattr(c.func, "id", "") == "open_run"]
    assert opened.args[0].value == stage
    passed = {k.arg: k.value.id for k in opened.keywords}
    assert passed == {name: name for name in (n.target.id for n in ast.parse(code(stage)[0]["source"]).body)}
    assert last.rstrip().endswith("run.finish()")
