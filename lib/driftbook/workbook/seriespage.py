"""The front page of a series: what its own stage answered, and where each change has its report."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from driftbook.members import SERIES
from driftbook.workbook.page import Link, build_page, fill, read_notebook, within_size
from driftbook.workbook.records import failed, headlines, read_record, write_page


def render_series(folder: Path) -> Path:
    """``index.html`` of ``outputs/<series>``: the answer, its best picture, and a line a change."""
    folder = Path(folder)
    good = (folder / SERIES / "run.json").is_file()
    record = read_record(folder / (SERIES if good else f"{SERIES}.failed"))
    best = read_notebook(folder / SERIES / "notebook.ipynb").best if good else ()
    members = [
        {"name": f.name, "said": str(read_record(f / "validate").get("answer") or "")}
        for f in sorted((folder / "members").glob("*"))
        if (f / "validate" / "run.json").is_file()
    ]
    body = fill(
        "series.html.j2",
        experiment=folder.name,
        failed=failed(record),
        answer=record.get("answer", ""),
        headlines=headlines(record.get("headlines") or []),
        figures=[Markup(figure) for figure in best],
        members=members,
    )
    links = [Link("All experiments", "../index.html")]
    links += [Link(s, f"{s}/report.html") for s in (SERIES, "traits") if (folder / s / "report.html").is_file()]
    page = build_page(
        title=f"When did it begin? · {folder.name}",
        body=Markup(within_size(body)),
        crumb=f"driftbook · {folder.name}",
        links=links,
    )
    return write_page(folder / "index.html", page)
