"""``outputs/index.html``: a row an experiment, from the summaries that front pages leave and ``run.json`` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.members import SERIES
from driftbook.parameters import STAGES
from driftbook.workbook.frontpage import SUMMARY
from driftbook.workbook.page import build_page, fill
from driftbook.workbook.records import failed, read_json, write_page
from driftbook.workbook.wording import shorten

ANSWER = 220  # characters of a verdict in the list


@dataclass(frozen=True)
class Entry:
    """One experiment in the list. ``href`` is relative to ``outputs``; ``failed`` names the stages whose last run
    failed, each with its reason."""

    experiment: str
    href: str
    names: str
    state: str
    line: str
    top: str
    warnings: list[str]
    date: str
    ran: list[str]
    failed: list[tuple[str, str]]


def render_outputs(outputs: Path) -> Path:
    """List all experiments below ``outputs``, and the benches; what is damaged is listed as such."""
    outputs = Path(outputs)
    folders = sorted(p for p in outputs.iterdir() if p.is_dir() and not p.name.startswith("."))
    entries = [e for e in (_experiment(p) for p in folders) if e is not None]
    benches = [e for e in (_bench(p) for p in folders) if e is not None]
    body = fill("outputs.html.j2", entries=entries, benches=benches)
    page = build_page(title="Experiments · driftbook", body=Markup(body), crumb="driftbook")
    return write_page(outputs / "index.html", page)


def _experiment(folder: Path) -> Entry | None:
    good = [s for s in (*STAGES, SERIES) if (folder / s / "run.json").is_file()]
    broken = [s for s in (*STAGES, SERIES) if (folder / f"{s}.failed" / "run.json").is_file()]
    if not good and not broken:
        return None
    told: dict[str, Any] = {}
    problems = []
    for stage, run in [*((s, folder / s) for s in good), *((s, folder / f"{s}.failed") for s in broken)]:
        record, reason = _record(run)
        problems += [(stage, reason)] if reason else []
        told["date"] = max(told.get("date", ""), str(record.get("finished") or record.get("started") or "")[:10])
        told["line"] = str(record.get("answer") or told.get("line", "")) if not reason else told.get("line", "")
    try:
        told |= read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    except DriftbookError as error:
        problems.append(("summary", str(error)))
    top = told.get("top") or {}
    return Entry(
        folder.name,
        f"{folder.name}/index.html" if (folder / "index.html").is_file() else "",
        " → ".join(told.get("names") or []),
        str(told.get("state") or ""),
        shorten(told.get("line") or "", ANSWER),
        f"{top['text']}: {top['was']} → {top['now']}" if top else "",
        [str(w) for w in told.get("warnings") or []],
        str(told.get("date") or ""),
        good,
        problems,
    )


def _bench(folder: Path) -> Entry | None:
    if not (folder / "run.json").is_file():
        return None
    record, reason = _record(folder)
    date = str(record.get("finished") or record.get("started") or "")[:10]
    line = shorten(record.get("answer") or "", ANSWER)
    problems = [("bench", reason)] if reason else []
    return Entry(folder.name, f"{folder.name}/report.html", "", "", line, "", [], date, ["bench"], problems)


def _record(run: Path) -> tuple[dict[str, Any], str]:
    """``run.json`` of a run, and what is wrong with it."""
    try:
        record = read_json(run / "run.json")
    except DriftbookError as error:
        return {}, str(error)
    reason = (record.get("failure") or record.get("error") or {}).get("reason") or "no reason was recorded"
    return record, str(reason) if failed(record) else ""
