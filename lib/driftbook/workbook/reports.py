"""Reports: a page per stage, a front page and a page of all answers per experiment, an index of all, and what differs
between two.

Each function reads what runs left in their folders, writes one page, and returns its path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.members import SERIES
from driftbook.parameters import STAGES
from driftbook.workbook.comparison import render_compare
from driftbook.workbook.frontpage import render_experiment
from driftbook.workbook.overview import render_outputs
from driftbook.workbook.page import Link, Story, build_page, fill, links, read_notebook, within_size
from driftbook.workbook.records import (
    QUESTIONS,
    facts,
    failed,
    headlines,
    provenance,
    read_record,
    write_page,
)
from driftbook.workbook.seriespage import render_series

__all__ = ["render_compare", "render_experiment", "render_outputs", "render_series", "render_stage"]


def render_stage(folder: Path) -> Path:
    """``report.html`` of one run, good or failed, from its ``notebook.ipynb`` and ``run.json``.

    Raises ``DriftbookError`` when one of the two cannot be read (a failed run may lack its notebook).
    """
    folder = Path(folder)
    record = read_record(folder)
    stage = str(record.get("stage", folder.name))
    failure = (record.get("failure") or record.get("error") or {}) if failed(record) else {}
    cell = failure.get("cell")
    cell = cell if isinstance(cell, int) else None
    story = Story("", "", (), ())
    if (folder / "notebook.ipynb").is_file() or not failed(record):
        story = read_notebook(folder / "notebook.ipynb", failed_cell=cell)
    title = story.title or QUESTIONS.get(stage, stage)
    body = fill(
        "stage.html.j2",
        title=title,
        record=record,
        stage=stage,
        failed=failed(record),
        failure=failure,
        cell=cell,
        source=_source(folder / "notebook.ipynb", cell),
        headlines=headlines(record.get("headlines") or []),
        facts=facts(record),
        story=Markup(within_size(story.html)),
        has_code="db-code" in story.html,
        provenance=provenance(record),
    )
    page = build_page(
        title=f"{title} · {record.get('experiment', '')} {stage}",
        body=body,
        crumb=f"driftbook · {record.get('experiment', folder.parent.name)}",
        links=_links(folder, stage),
    )
    return write_page(folder / "report.html", page)


def _source(notebook: Path, cell: int | None) -> str:
    """The first line of the cell that failed: people know their cells by it, not by number."""
    if cell is None or not notebook.is_file():
        return ""
    try:
        cells: list[Any] = nbformat.read(notebook, as_version=4).cells
    except ValueError as error:
        raise DriftbookError(f"{notebook}: not a readable notebook ({error}); run the stage again") from error
    lines = cells[cell].source.strip().splitlines() if cell < len(cells) else []
    return lines[0] if lines else ""


def _links(folder: Path, stage: str) -> list[Link]:
    if stage == SERIES:
        members = sorted(p.name for p in (folder.parent / "members").glob("*") if (p / "index.html").is_file())
        return [Link("series", "../index.html"), *(Link(m, f"../members/{m}/index.html") for m in members)]
    if stage not in STAGES:
        return [Link("all experiments", "../index.html"), Link(stage, here=True)]
    return links(folder.parent, stage)
