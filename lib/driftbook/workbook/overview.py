"""``outputs/index.html``: every run of every experiment, from ``run.json`` and the thumbnail of its report alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.members import SERIES
from driftbook.parameters import STAGES
from driftbook.workbook.page import build_page, fill
from driftbook.workbook.records import Headline, failed, finite, headlines, read_json, write_page
from driftbook.workbook.runs import THUMBNAIL
from driftbook.workbook.thumbnails import LARGEST
from driftbook.workbook.wording import duration

ANSWER = 180  # characters of an answer in the list


@dataclass(frozen=True)
class Entry:
    """One run in the list. ``href`` is relative to ``outputs``."""

    experiment: str
    stage: str
    href: str
    failed: bool
    answer: str
    headline: Headline | None
    seconds: float
    duration: str
    when: str
    front: bool
    thumbnail: Markup


def render_outputs(outputs: Path) -> Path:
    """List all runs below ``outputs``; a run whose ``run.json`` is damaged is listed as such."""
    outputs = Path(outputs)
    entries = list(_entries(outputs))
    body = fill("outputs.html.j2", entries=entries, experiments=sorted({e.experiment for e in entries}))
    page = build_page(title="Experiments · driftbook", body=Markup(body), crumb="driftbook")
    return write_page(outputs / "index.html", page)


def _entries(outputs: Path) -> Iterator[Entry]:
    for folder in sorted(p for p in outputs.iterdir() if p.is_dir() and not p.name.startswith(".")):
        runs = [folder] if (folder / "run.json").is_file() else []
        runs += [folder / f"{s}{end}" for s in (SERIES, *STAGES) for end in ("", ".failed")]
        for run in runs:
            if (run / "run.json").is_file():
                yield _entry(outputs, folder, run)


def _entry(outputs: Path, folder: Path, run: Path) -> Entry:
    front = (folder / "index.html").is_file()
    href = (run / "report.html").relative_to(outputs).as_posix()
    stage = run.name.removesuffix(".failed") if run != folder else "bench"
    try:
        record: Mapping[str, Any] = read_json(run / "run.json")
    except DriftbookError as error:
        return Entry(folder.name, stage, href, True, str(error), None, 0.0, "", "", front, Markup(""))
    reason = (record.get("failure") or record.get("error") or {}).get("reason", "") if failed(record) else ""
    answer = str(reason or record.get("answer") or "")
    shown = headlines((record.get("headlines") or [])[:1])
    seconds = float(record["seconds"]) if finite(record.get("seconds")) else 0.0
    return Entry(
        str(record.get("experiment", folder.name)),
        stage,
        href,
        failed(record),
        answer if len(answer) <= ANSWER else answer[: ANSWER - 1] + "…",
        shown[0] if shown else None,
        seconds,
        duration(seconds),
        str(record.get("finished") or record.get("started") or "")[:16].replace("T", " "),
        front,
        _thumbnail(run),
    )


def _thumbnail(run: Path) -> Markup:
    """What the run's report left; a run without a report has none."""
    path = run / THUMBNAIL
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return Markup(text if len(text) <= LARGEST else "")
