"""Draw reports around what is stored. Nothing here starts a kernel."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.members import SERIES
from driftbook.parameters import is_bench, stages_of
from driftbook.workbook import keys
from driftbook.workbook.runs import RUN_FILE, Layout, label, read_json, write_json
from driftbook.workbook.slim import skip_iri_grammar
from driftbook.workbook.state import open_experiment


def draw(folder: Path) -> str:
    """Draw the report of a run folder; what went wrong, if something did (a run is worth more than its report)."""
    skip_iri_grammar()
    try:
        from driftbook.workbook import reports  # seconds (nbformat, plotly) that `make why` need not pay

        reports.render_stage(folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        traceback.print_exc()  # the user can do nothing about it: it is a fault of driftbook's
        return f"{type(error).__name__}: {error}"
    return ""


def redraw(layout: Layout, experiment: str, key: keys.Key) -> None:
    """Put the notebook's present prose and comments around the outputs of the last run and draw its report.
    No kernel starts."""
    import nbformat  # see draw

    folder = layout.stage(experiment, key.stage)
    executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
    present = nbformat.read(layout.notebook(key.stage), as_version=4)
    part = folder / f".notebook.ipynb.{os.getpid()}.part"
    nbformat.write(_with_prose(executed, present), part)
    os.replace(part, folder / "notebook.ipynb")
    if undrawn := draw(folder):
        raise DriftbookError(f"{label(experiment, key.stage)}: the report could not be drawn: {undrawn}")
    write_json(folder / RUN_FILE, {**read_json(folder / RUN_FILE), "render": key.render})


def _with_prose(executed: Any, present: Any) -> Any:
    """The cells of ``present`` with the outputs of ``executed``, whose code is the same; injected parameters stay."""
    code = iter([c for c in executed.cells if c.cell_type == "code"])
    cells = []
    for cell in present.cells:
        if cell.cell_type != "code":
            cells.append(cell)
            continue
        done = next(code)
        cells.append(done)
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(next(code))
        else:
            done.source = cell.source
    executed.cells = cells
    return executed


def front_page(layout: Layout, experiment: str) -> Path:
    """The page to open first. The one report of a bench is its front page."""
    return layout.folder(experiment) / ("report.html" if is_bench(experiment) else "index.html")


def draw_pages(layout: Layout, experiment: str) -> None:
    """The front page of one experiment, and the list of all."""
    from driftbook.workbook import reports  # see draw

    if not is_bench(experiment):
        folder = layout.folder(experiment)
        (reports.render_series if (folder / SERIES).is_dir() else reports.render_experiment)(folder)
    reports.render_outputs(layout.outputs)


def redraw_all(experiment_file: Path, outputs: Path | None = None) -> list[Path]:
    """Draw every report of an experiment again, of good runs with the notebooks' present prose, and its front page."""
    experiment, layout = open_experiment(experiment_file, outputs)
    name = experiment.experiment
    drawn = []
    for stage in stages_of(experiment):
        good, failed = layout.stage(name, stage), layout.failed(name, stage)
        if (good / RUN_FILE).is_file():
            key = keys.stage_key(experiment, stage, layout)
            # Present prose fits only around the outputs of the present code.
            if read_json(good / RUN_FILE)["components"]["cells"] == key.components["cells"]:
                redraw(layout, name, key)
            elif undrawn := draw(good):
                raise DriftbookError(f"{label(name, stage)}: the report could not be drawn: {undrawn}")
            drawn.append(good)
        if (failed / RUN_FILE).is_file():
            draw(failed)
            drawn.append(failed)
    if not drawn:
        raise DriftbookError(f"{layout.folder(name)} holds no run: make run EXP={name}")
    draw_pages(layout, name)
    return drawn
