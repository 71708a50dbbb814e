"""What a run folder says about its run, made ready for a page: headlines, one line of facts, the table of
provenance.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.numbers import number
from driftbook.workbook.packing import escape
from driftbook.workbook.wording import duration

QUESTIONS = {
    "traits": "Which directions inside the model stand for the traits?",
    "capture": "Where inside does it show?",
    "decode": "Where do the two differ at all?",
    "cluster": "Which behaviours moved, by how much?",
    "validate": "Which of these claims are real?",
    "series": "When did it begin?",
}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ``DriftbookError`` when the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DriftbookError(f"{path} is missing: run the stage first") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DriftbookError(f"{path} is damaged ({error}); delete it and run the stage again") from None
    if not isinstance(value, dict):
        raise DriftbookError(f"{path} must hold a JSON object; delete it and run the stage again")
    return value


def read_record(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run."""
    return read_json(folder / "run.json")


def failed(record: Mapping[str, Any]) -> bool:
    return record.get("status") == "failed"


def write_page(path: Path, html: str) -> Path:
    """Write through a rename, so that a reader never opens half a page."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(html, encoding="utf-8", errors="replace")
    os.replace(part, path)
    return path


# ------------------------------------------------------------------------------------------------------------ headlines


@dataclass(frozen=True)
class Headline:
    """One figure at the top of a report: its interval and its baseline in words, and where they lie as a picture."""

    label: str
    value: str
    unit: str
    interval: str
    baseline: str
    picture: Markup


def headlines(entries: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """Headlines as ``run.headline`` stored them, ready to be shown."""
    return [_headline(entry) for entry in entries]


def _headline(entry: Mapping[str, Any]) -> Headline:
    value, low, high, baseline = (entry.get(k) for k in ("value", "low", "high", "baseline"))
    unit = str(entry.get("unit") or "")
    sign = "%" if unit == "%" else ""
    spread = str(entry.get("spread") or "95% interval")
    interval = f"{spread} {amount(low)}{sign} to {amount(high)}{sign}" if finite(low) and finite(high) else ""
    beside = f"baseline {amount(baseline)}{sign}" if finite(baseline) else str(baseline or "")
    picture = interval_picture(value, low, high, reference(baseline))
    return Headline(str(entry.get("label", "")), amount(value) + sign, "" if sign else unit, interval, beside, picture)


def reference(baseline: Any) -> Any:
    """Where the baseline lies, if it is a number or begins with one: "0 for the same model"."""
    leading = re.match(r"[-−]?\d+(\.\d+)?(?=\s|$)", str(baseline))
    return baseline if finite(baseline) or not leading else float(leading[0].replace("−", "-"))


def finite(value: Any) -> TypeGuard[float]:
    """A number that is one: no bool, no NaN, no infinity."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == value and abs(value) != float("inf")


def amount(value: Any) -> str:
    """A number as people read it; anything else as text."""
    if not finite(value):
        return str(value)
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else number(value)


def interval_picture(value: Any, low: Any, high: Any, baseline: Any, reach: Sequence[float] = ()) -> Markup:
    """An interval as a small picture; ``reach`` are further points of the scale, for pictures that share one."""
    if not (finite(value) and finite(low) and finite(high)):
        return Markup("")
    points = [float(v) for v in (value, low, high, *([baseline] if finite(baseline) else []), *reach)]
    least, span = min(points), (max(points) - min(points)) or 1.0

    def x(number: float) -> str:
        return f"{6 + (number - least) / span * 148:.1f}"

    reference = ""
    if finite(baseline):
        dash = 'style="stroke:var(--db-ink)" stroke-width="1.5" stroke-dasharray="3 2"'
        reference = f'<path d="M{x(baseline)} 1V15" {dash}/>'
    return Markup(
        '<svg viewBox="0 0 160 16" aria-hidden="true" focusable="false" preserveAspectRatio="none">'
        f'<path d="M{x(low)} 8H{x(high)}" style="stroke:var(--db-c1)" stroke-width="3"/>'
        f'<path d="M{x(value)} 2V14" style="stroke:var(--db-c1)" stroke-width="5"/>{reference}</svg>'
    )


# ----------------------------------------------------------------------------------------------------------- provenance


def facts(record: Mapping[str, Any]) -> list[str]:
    """When, how long, commit and seed, a few words each."""
    found = []
    moment = str(record.get("finished") or record.get("started") or "")
    if moment:
        found.append(moment[:16].replace("T", " "))
    if finite(record.get("seconds")):
        found.append(duration(float(record["seconds"])))
    if record.get("git"):
        found.append(f"commit {commit(record['git'], 10)}")
    seeds = record.get("seeds")
    if isinstance(seeds, Mapping) and seeds:
        found += [f"{'' if 'seed' in str(name) else 'seed of '}{name} {value}" for name, value in seeds.items()][:1]
    return found


def commit(git: Any, length: int = 40) -> str:
    if isinstance(git, Mapping):
        return f"{str(git.get('commit') or 'none')[:length]}{', with local changes' if git.get('dirty') else ''}"
    return str(git)[:length]


PROVENANCE = {
    "command": "Command",
    "status": "Status",
    "started": "Started",
    "finished": "Finished",
    "seconds": "Duration",
    "git": "Commit",
    "seeds": "Seeds",
    "device": "Device, and why",
    "platform": "Platform",
    "peak_rss_mb": "Peak memory",
    "cells": "Time per cell",
    "versions": "Versions",
    "inputs": "Inputs (sha256)",
    "outputs": "Outputs (sha256)",
    "key": "Key",
}
_NOT_HERE = {"stage", "experiment", "error", "failure", "answer", "headlines", "metrics", "components", "render"}


def provenance(record: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """How the run came about: (name, value) rows. What a notebook recorded by itself stands between device and
    platform.
    """
    own = {key: key.replace("_", " ").capitalize() for key in record if key not in PROVENANCE and key not in _NOT_HERE}
    names = list(PROVENANCE)
    at = names.index("platform")
    order = [*names[:at], *own, *names[at:]]
    titles = PROVENANCE | own
    rows = [(titles[key], _shown(key, record[key])) for key in order if record.get(key) not in (None, "", [], {})]
    params = (record.get("components") or {}).get("params")
    return [*rows, ("Parameters", _nested(params))] if params else rows


def _shown(key: str, value: Any) -> Markup:
    if key == "seconds" and finite(value):
        return Markup(escape(duration(float(value))))
    if key == "peak_rss_mb" and finite(value):
        return Markup(f"{value:,.0f} MB")
    if key == "git":
        return Markup(escape(commit(value)))
    if key == "cells":
        return Markup(escape(_cells(value)))
    if key == "command":
        return Markup(f"<code>{escape(value)}</code>")
    return _nested(value)


def _cells(cells: Sequence[Any] | Mapping[str, Any]) -> str:
    """The slow cells first: what a reader wants to know of the times."""
    entries = cells.items() if isinstance(cells, Mapping) else enumerate(cells)
    pairs = [(c.get("cell", i), c.get("seconds")) if isinstance(c, Mapping) else (i, c) for i, c in entries]
    timed = sorted(((float(s), int(c)) for c, s in pairs if finite(s)), reverse=True)
    slowest = ", ".join(f"cell {c + 1} {s:.1f} s" for s, c in timed[:5])
    return f"{len(pairs)} cells ran, {sum(s for s, _ in timed):.1f} s in all; the slowest: {slowest}"


def _nested(value: Any, depth: int = 0) -> Markup:
    if isinstance(value, Mapping):
        items = [f"{escape(k)} {_nested(v, depth + 1)}" for k, v in value.items() if v not in (None, "", [], {})]
        if depth == 0:
            return Markup("<br>".join(items))
        return Markup(f"({', '.join(items)})")
    if isinstance(value, list | tuple):
        return Markup(", ".join(_nested(v, depth + 1) for v in value))
    text = str(value)
    if len(text) >= 40 and all(c in "0123456789abcdef" for c in text):
        return Markup(f'<code title="{text}">{text[:12]}</code>')
    return Markup(escape(text))
