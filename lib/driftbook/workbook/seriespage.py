"""The front page of a series: what its own stage answered, and where each change has its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from driftbook.members import SERIES
from driftbook.sections import short_name
from driftbook.workbook.frontpage import SUMMARY
from driftbook.workbook.page import Link, build_page, fill, read_notebook, within_size
from driftbook.workbook.records import failed, headlines, read_json, read_record, write_page


def render_series(folder: Path) -> Path:
    """``index.html`` of ``outputs/<series>`` (the answer, its best picture, a line a change), and the summary for the
    list of all experiments."""
    folder = Path(folder)
    good = (folder / SERIES / "run.json").is_file()
    record = read_record(folder / (SERIES if good else f"{SERIES}.failed"))
    best = read_notebook(folder / SERIES / "notebook.ipynb").best if good else ()
    changes = [p.parent for p in sorted((folder / "members").glob(f"*/{SUMMARY}"))]
    members = [{"name": p.name, "said": _said(read_json(p / SUMMARY))} for p in changes]
    body = fill(
        "series.html.j2",
        failed=failed(record),
        answer=record.get("answer", ""),
        headlines=headlines(record.get("headlines") or []),
        figures=[Markup(figure) for figure in best],
        members=members,
    )
    links = [Link(s, f"{s}/report.html") for s in (SERIES, "traits") if (folder / s / "report.html").is_file()]
    page = build_page(
        title=f"When did it begin? · {folder.name}",
        body=Markup(within_size(body)),
        crumb=f"driftbook · {folder.name}",
        links=[*links, Link("all experiments", "../index.html")],
    )
    if good:
        write_page(folder / SUMMARY, json.dumps(_summary(folder, record), ensure_ascii=False, indent=1) + "\n")
    return write_page(folder / "index.html", page)


def _said(told: dict[str, Any]) -> str:
    """What a change's own report says, and where it tells no change, that it does not."""
    state, line = told.get("state", ""), told.get("line", "")
    return line if state in ("", "changed") else f"{state.capitalize()}. {line}"


def _summary(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What the list of all experiments says of a series."""
    told = read_json(folder / SERIES / "metrics.json")
    base = record["components"]["params"]["base"]["model"]
    return {
        "experiment": folder.name,
        "names": [short_name(base), f"{told.get('changes', 0)} changes"],
        "state": "changed" if told.get("behaviours_told") else "",
        "line": record.get("answer", ""),
    }
