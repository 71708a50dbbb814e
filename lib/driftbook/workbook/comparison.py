"""What differs between two experiments, as a page. What is alike is not shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.members import experiment_at
from driftbook.numbers import number
from driftbook.parameters import STAGES
from driftbook.prompts import SIDES
from driftbook.series import between
from driftbook.workbook.claims import names_of, parameters, read_findings, read_table
from driftbook.workbook.compare import Difference, compare
from driftbook.workbook.overlay import overlaid_layers, overlaid_tokens
from driftbook.workbook.page import Link, build_page, fill, within_size
from driftbook.workbook.records import (
    Headline,
    amount,
    finite,
    headlines,
    interval_picture,
    read_record,
    reference,
    write_page,
)
from driftbook.workbook.tables import Table, html_table

# Headlines stand in a table of their own.
KINDS = {
    "params": "Parameters",
    "metrics": "Metrics",
    "code": "Notebook code",
    "source": "Library sources",
    "input": "Input files",
    "package": "Packages",
}
SHARED_TEXTS = 50  # two clusterings are aligned when they share at least so many texts


@dataclass(frozen=True)
class ClaimChange:
    text: str
    direction: str
    a: str
    b: str


def render_compare(a: Path, b: Path, out_path: Path) -> Path:
    """Compare two experiment folders: parameters, metrics, headlines, claims gained and lost, clusterings aligned.

    Raises ``DriftbookError`` when one of them holds no run.
    """
    a, b, out_path = Path(a), Path(b), Path(out_path)
    found = compare(a, b)
    groups = {
        title: _table([d for d in found.differences if d.what.split(".", 1)[0] == kind], found.a, found.b, title)
        for kind, title in KINDS.items()
    }
    gained, lost, moved = claim_changes(a, b)
    pair = members_apart(a, b)
    body = fill(
        "compare.html.j2",
        a=found.a,
        b=found.b,
        groups={title: table for title, table in groups.items() if table},
        only_a=found.only_a,
        only_b=found.only_b,
        pair=pair and Markup(pair.html()),
        gained=gained,
        lost=lost,
        moved=moved,
        headlines=_headlines(a, b),
        traces=[Markup(figure.html()) for figure in (overlaid_layers(a, b), overlaid_tokens(a, b)) if figure],
        clusters=_clusters(a, b),
    )
    links = [Link(experiment_at(e), _relative(e, out_path)) for e in (a, b) if (e / "index.html").is_file()]
    page = build_page(
        title=f"{found.a} and {found.b} · driftbook", body=Markup(within_size(body)), crumb="driftbook", links=links
    )
    return write_page(out_path, page)


def members_apart(a: Path, b: Path) -> Table | None:
    """The answers of two changes of one series against each other; None for experiments that are not of one series."""
    if a == b or a.parent != b.parent or a.parent.name != "members":
        return None
    tables = ("claims", "verdicts")
    read = [{t: read_table(e / "validate" / "data" / f"{t}.parquet") for t in tables} for e in (a, b)]
    found = between(*read)
    title = f"{int(found['confirmed'].sum())} of {len(found)} behaviours differ between {a.name} and {b.name}"
    caption = (
        "From the answers that are there, the two changed sides of each prompt against each other, Benjamini-Hochberg "
        "over what was named before looking; 95% intervals of b minus a."
    )
    return Table(found.rename(columns={"a": a.name, "b": b.name}), title, caption, max_rows=40)


def _relative(experiment: Path, out_path: Path) -> str:
    return Path(os.path.relpath(experiment / "index.html", out_path.parent)).as_posix()


def _table(differences: list[Difference], a: str, b: str, title: str) -> Markup:
    """One row per difference; one that several stages share stands once."""
    stages: dict[tuple[str, str, str], list[str]] = {}
    changes: dict[tuple[str, str, str], float | None] = {}
    for d in differences:
        key = (d.what.split(".", 1)[1], _side(d.a), _side(d.b))
        stages.setdefault(key, []).append(d.stage)
        changes[key] = _change(d)
    if not stages:
        return Markup("")
    second = b if b != a else f"{b} (second)"
    rows = [
        {"what": what, a: left, second: right, "change": changes[what, left, right], "stage": ", ".join(where)}
        for (what, left, right), where in stages.items()
    ]
    frame = pd.DataFrame(rows)
    frame = frame.drop(columns="change") if frame["change"].isna().all() else frame
    return Markup(html_table(frame, caption=title))


def _side(value: Any) -> str:
    return "not there" if value is None else amount(value)


def _change(difference: Difference) -> float | None:
    both = finite(difference.a) and finite(difference.b)
    return float(difference.b) - float(difference.a) if both else None


# --------------------------------------------------------------------------------------------------------------- claims


def claim_changes(a: Path, b: Path) -> tuple[list[ClaimChange], list[ClaimChange], list[ClaimChange]]:
    """Claims confirmed in b alone, in a alone, and in both with win rates whose intervals do not overlap.

    Claims are the same when text and direction are.
    """
    left, right = _claims(a), _claims(b)
    names = dict(zip(SIDES, names_of(parameters(b)), strict=True))
    gained, lost, moved = [], [], []
    for key in dict.fromkeys((*left, *right)):
        x, y = left.get(key), right.get(key)
        change = ClaimChange(key[0], names.get(key[1], ""), _said(x), _said(y))
        was, now = bool(x is not None and x["confirmed"]), bool(y is not None and y["confirmed"])
        if now and not was:
            gained.append(change)
        elif was and not now:
            lost.append(change)
        elif was and now and _apart(x, y):
            moved.append(change)
    return gained, lost, moved


def _claims(experiment: Path) -> dict[tuple[str, str], Any]:
    findings = read_findings(experiment)
    rows = findings.table.to_dict("records") if findings is not None else []
    return {
        (str(r.get("text", "")), str(r.get("direction", ""))): r | {"confirmed": bool(r.get("confirmed"))} for r in rows
    }


def _said(row: Any) -> str:
    if row is None:
        return "not proposed"
    state = "confirmed" if row["confirmed"] else str(row.get("status") or "not confirmed")
    if not finite(row.get("win_rate")):
        return state
    return f"{state}, win rate {row['win_rate']:.0%} [{row['win_low']:.0%}, {row['win_high']:.0%}]"


def _apart(x: Any, y: Any) -> bool:
    if not all(finite(r.get(k)) for r in (x, y) for k in ("win_low", "win_high")):
        return False
    return bool(x["win_high"] < y["win_low"] or y["win_high"] < x["win_low"])


# ----------------------------------------------------------------------------------------------- headlines, clusterings


def _headlines(a: Path, b: Path) -> list[dict[str, Any]]:
    """Headlines that differ, each pair of intervals on one scale, and the difference."""
    rows = []
    for stage in STAGES:
        if not all((e / stage / "run.json").is_file() for e in (a, b)):
            continue
        left, right = ({h.get("label"): h for h in read_record(e / stage).get("headlines") or []} for e in (a, b))
        for label in left:
            if label in right and left[label] != right[label]:
                pair = (left[label], right[label])
                reach = [float(h[k]) for h in pair for k in ("low", "high") if finite(h.get(k))]
                x, y = (_on_scale(h, reach) for h in pair)
                rows.append({"stage": stage, "label": label, "a": x, "b": y, "difference": _difference(*pair)})
    return rows


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """b - a, with an interval from the two intervals as those of independent estimates (Zou and Donner 2008)."""
    if not all(finite(h.get("value")) for h in (a, b)):
        return ""
    change = float(b["value"]) - float(a["value"])
    sign = "%" if a.get("unit") == "%" else ""
    if not all(finite(h.get(k)) for h in (a, b) for k in ("low", "high")):
        return f"{number(change)}{sign}"
    low = change - float(np.hypot(b["value"] - b["low"], a["high"] - a["value"]))
    high = change + float(np.hypot(b["high"] - b["value"], a["value"] - a["low"]))
    return f"{number(change)}{sign} [{number(low)}, {number(high)}]"


def _on_scale(entry: Mapping[str, Any], reach: list[float]) -> Headline:
    value, low, high, baseline = (entry.get(k) for k in ("value", "low", "high", "baseline"))
    return replace(headlines([entry])[0], picture=interval_picture(value, low, high, reference(baseline), reach))


def _clusters(a: Path, b: Path) -> dict[str, Any] | None:
    """The two clusterings of answers on the texts that both hold: adjusted Rand index, and pairs by shared texts. None
    where sentences were grouped."""
    paths = [e / "cluster" / "data" / "clusters.parquet" for e in (a, b)]
    if not all(p.is_file() for p in paths):
        return None
    try:
        left, right = (pd.read_parquet(p, columns=["text_id", "cluster"]) for p in paths)
    except (OSError, ValueError) as error:
        raise DriftbookError(
            f"{paths[0]} or {paths[1]} is not a readable table ({error}); run cluster again"
        ) from error
    both = left.merge(right, on="text_id", suffixes=("_a", "_b"))
    if len(both) < SHARED_TEXTS:
        return {"shared": len(both), "ari": None, "table": ""}
    from sklearn.metrics import adjusted_rand_score  # two seconds, for a comparison alone

    pairs = both.groupby(["cluster_a", "cluster_b"]).size()
    sizes_a, sizes_b = both["cluster_a"].value_counts(), both["cluster_b"].value_counts()
    overlap = {(i, j): n / (sizes_a[i] + sizes_b[j] - n) for (i, j), n in pairs.items()}
    rows = []
    while overlap:  # the closest pair first, then what is left of either side
        i, j = max(overlap, key=overlap.__getitem__)
        row = {
            a.name: int(i),
            f"{b.name} ": int(j),
            "texts in common": int(pairs[i, j]),
            "overlap (Jaccard)": overlap[i, j],
        }
        rows.append(row)
        overlap = {key: value for key, value in overlap.items() if key[0] != i and key[1] != j}
    table = pd.DataFrame(rows)
    ari = float(adjusted_rand_score(both["cluster_a"], both["cluster_b"]))
    return {
        "shared": len(both),
        "ari": np.round(ari, 3),
        "table": Markup(html_table(table, caption="matched clusters")),
    }
