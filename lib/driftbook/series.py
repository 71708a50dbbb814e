"""Series: how do many changes of one base compare, and when did it begin?

The notebook calls, in order: ``load``, ``readings``, ``told``, ``began``, ``divergence``, ``trait_shifts``, ``maps``,
``write``. All of it is read from the tables that the members' own runs left; no model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from driftbook.behaviours.measure import SIZES
from driftbook.errors import DriftbookError
from driftbook.evidence.counting import BEFORE_LOOKING
from driftbook.evidence.intervals import JS, student_mean
from driftbook.evidence.multiplicity import holm_adjusted
from driftbook.evidence.paired import paired_test
from driftbook.stage import Run


@dataclass(frozen=True)
class Change:
    """One member of a series and where its runs lie. ``x`` is its place on the axis: its number, else its rank."""

    name: str
    x: float
    numbered: bool
    folder: Path

    def table(self, stage: str, name: str) -> pd.DataFrame | None:
        """A table of one of its stages; None where the stage has not left it."""
        path = self.folder / stage / "data" / f"{name}.parquet"
        return pd.read_parquet(path) if path.is_file() else None


def load(run: Run) -> list[Change]:
    """The changes whose runs hold, in order. Raises DriftbookError where there is none."""
    folders = run.members()
    members = run.params.members
    numbered = all(m.number is not None for m in members)
    found = [
        Change(m.name, float(m.number) if numbered else float(rank), numbered, folders[m.name])
        for rank, m in enumerate(members, 1)
        if m.name in folders
    ]
    if not found:
        raise DriftbookError(
            f"no change of {run.params.experiment} has a good run: make run EXP={run.params.experiment}"
        )
    return found


def readings(changes: Sequence[Change]) -> pd.DataFrame:
    """One row a behaviour and change, of what was named before looking: change, x, hypothesis_id, behaviour, family,
    unit, base, changed, difference, low, high, size (net share of prompts that moved), p_value, attainable (the
    smallest p-value that as many prompts that differ could give), prompts, claim."""
    rows = []
    for change in changes:
        claims, verdicts = change.table("validate", "claims"), change.table("validate", "verdicts")
        if claims is None or verdicts is None:
            continue
        claims = claims[claims["proposer"].isin(BEFORE_LOOKING) & claims["p_value"].notna()]
        differ = (verdicts["score_base"] - verdicts["score_intervention"]).abs() > 1e-12
        many = differ.groupby(verdicts["hypothesis_id"]).sum()
        least = 2.0 * 0.5 ** claims["hypothesis_id"].map(many).fillna(0)
        least = least.where(claims["scope"] != "these prompts", 0.0)
        up = np.where(claims["direction"] == "intervention", 1, -1)
        rows.append(
            pd.DataFrame(
                {
                    "change": change.name, "x": change.x, "hypothesis_id": claims["hypothesis_id"],
                    "behaviour": claims["text"], "family": claims["kind"], "unit": claims["unit"],
                    "base": claims["base"], "changed": claims["intervention"], "difference": claims["difference"],
                    "low": claims["low"], "high": claims["high"], "size": up * claims["size"],
                    "p_value": claims["p_value"], "attainable": np.minimum(least, 1.0),
                    "prompts": claims["prompts"], "claim": claims["claim"],
                }
            )
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def told(read: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """``read`` with ``adjusted`` p-values and ``told``: whether a behaviour differs from the base at a change, by Holm
    over all behaviours and changes at once. The chance that anything is told where there is no difference is at most
    alpha, whatever the changes share. ``band``: about how large a difference would have to be to be told."""
    adjusted = holm_adjusted(read["p_value"].to_numpy(), read["attainable"].to_numpy(), alpha)
    half = ((read["high"] - read["low"]) / 2).replace(np.inf, np.nan)
    wider = norm.isf(alpha / 2 / max(1, (adjusted < 1).sum())) / norm.isf(0.025)  # than a 95% interval
    return read.assign(adjusted=adjusted, told=adjusted <= alpha, band=wider * half)


def began(read: pd.DataFrame) -> pd.DataFrame:
    """One row a behaviour that is told anywhere, in the order of the first change at which it is: behaviour, unit,
    first, x, before (the change before it), base, changed, difference, low, high, adjusted, changes (at how many it
    is told), most (the largest net share of prompts that moved, signed)."""
    order = list(dict.fromkeys(read.sort_values("x", kind="stable")["change"]))
    rows = []
    for _, own in read[read["told"]].groupby("hypothesis_id", sort=False):
        own = own.sort_values("x", kind="stable")
        first = own.iloc[0]
        place = order.index(first["change"])
        most = own["size"].iloc[own["size"].abs().argmax()]
        about = {c: first[c] for c in ("behaviour", "family", "unit")}
        about |= {"first": first["change"], "x": first["x"], "before": order[place - 1] if place else ""}
        shown = ("base", "changed", "difference", "low", "high", "adjusted", "hypothesis_id", "claim")
        about |= {c: first[c] for c in shown}
        rows.append(about | {"changes": len(own), "most": most})
    columns = ["behaviour", "family", "unit", "first", "x", "before", "base", "changed", "difference", "low", "high"]
    table = pd.DataFrame(rows, columns=[*columns, "adjusted", "hypothesis_id", "claim", "changes", "most"])
    return table.sort_values(["x", "most"], key=lambda c: -c.abs() if c.name == "most" else c, ignore_index=True)


def divergence(changes: Sequence[Change]) -> pd.DataFrame:
    """Mean JS a token of each change from the base, with 95% intervals over prompts: change, x, js, low, high, prompts.
    NaN where no exact divergence could be had."""
    rows = []
    for change in changes:
        table = change.table("decode", "divergence")
        js = np.array([]) if table is None else table["js"].dropna().to_numpy(float)
        interval = student_mean(js, within=JS) if len(js) else (np.nan,) * 3
        rows.append((change.name, change.x, *interval, len(js)))
    return pd.DataFrame(rows, columns=["change", "x", "js", "low", "high", "prompts"])


def trait_shifts(changes: Sequence[Change]) -> pd.DataFrame:
    """How far each trait moved at its chosen layer and site, on own text, in null standard deviations: change, x,
    trait, shift, low, high."""
    tables = []
    for change in changes:
        shifts, head = change.table("capture", "shifts"), change.folder / "traits" / "data" / "vectors.json"
        if shifts is None or not head.is_file():
            continue
        chosen = pd.DataFrame([r for r in json.loads(head.read_text())["records"] if r["chosen"]])
        own = shifts[shifts["comparison"] == "own_text"].merge(chosen[["trait", "layer", "site"]])
        tables.append(own.assign(change=change.name, x=change.x))
    columns = ["change", "x", "trait", "shift", "low", "high"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def maps(changes: Sequence[Change]) -> dict[str, pd.DataFrame]:
    """Change to the map of its answers: x, y, side. Every change is mapped together with its base, by itself."""
    found = {}
    for change in changes:
        drawn, texts = change.table("cluster", "map"), change.table("decode", "texts")
        if drawn is not None and texts is not None:
            found[change.name] = drawn.merge(texts[["text_id", "side"]], on="text_id")[["x", "y", "side"]]
    return found


def lacking(change: Change, apart: pd.DataFrame, shifts: pd.DataFrame) -> str:
    """What could not be measured of a change, in words; empty where everything was."""
    parts = []
    if apart.loc[apart["change"] == change.name, "js"].isna().all():
        run = change.folder / "decode" / "run.json"
        why = json.loads(run.read_text(encoding="utf-8")).get("unscreened") if run.is_file() else None
        parts.append(f"next-token divergence ({why})" if why else "next-token divergence")
    if shifts.empty or change.name not in set(shifts["change"]):
        parts.append("traits inside")
    if change.table("validate", "claims") is None:
        parts.append("behaviours")
    return ", ".join(parts)


def between(a: Mapping[str, pd.DataFrame], b: Mapping[str, pd.DataFrame], alpha: float = 0.05) -> pd.DataFrame:
    """Two members of a series against each other, from the answers that are there: behaviour, unit, a, b, difference (b
    minus a), low, high, p_value, q_value, confirmed, prompts; what moved most first.

    ``a``, ``b``: the tables ``claims`` and ``verdicts`` of each. The two changed sides of a prompt are compared as base
    and changed are elsewhere, Benjamini-Hochberg over all that was named before looking.
    """
    claims = a["claims"].merge(b["claims"][["hypothesis_id"]], on="hypothesis_id")
    claims = claims[claims["proposer"].isin(BEFORE_LOOKING) & claims["p_value"].notna()].reset_index(drop=True)
    sides = [
        t["verdicts"].pivot_table(
            index="prompt_id", columns="hypothesis_id", values="score_intervention", aggfunc="mean"
        )
        for t in (a, b)
    ]
    prompts = sorted(set(sides[0].index) & set(sides[1].index))
    if not prompts or claims.empty:
        raise DriftbookError("the two were not asked the same prompts: nothing can be compared")
    first, second = (s.reindex(index=prompts, columns=claims["hypothesis_id"]).to_numpy(np.float64) for s in sides)
    centers = ["median" if unit in SIZES else "mean" for unit in claims["unit"]]
    test = paired_test(first, second, np.zeros(len(claims), dtype=int), alpha, center=centers)
    table = pd.DataFrame({"behaviour": claims["text"], "unit": claims["unit"], "a": test.base, "b": test.changed})
    table = table.assign(difference=test.difference, low=test.low, high=test.high, p_value=test.p)
    table = table.assign(q_value=test.adjusted, confirmed=test.rejected, prompts=test.prompts)
    moved = (test.more - test.less) / np.maximum(test.prompts, 1)
    return table.iloc[np.lexsort((-np.abs(moved), ~test.rejected))].reset_index(drop=True)


def write(folder: Path, **tables: pd.DataFrame) -> None:
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)


def metrics(read: pd.DataFrame, first: pd.DataFrame, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "changes": len(changes),
        "behaviours": int(read["hypothesis_id"].nunique()) if len(read) else 0,
        "tests": len(read),
        "told": int(read["told"].sum()) if len(read) else 0,
        "behaviours_told": len(first),
    }
