"""What an experiment has found, as its pages tell it: the state, the claims in the order of telling, their measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from driftbook.errors import DriftbookError
from driftbook.evidence.verdict import headline, told
from driftbook.members import member_name
from driftbook.parameters import STAGES
from driftbook.sections import Intervention, of_kind, short_name
from driftbook.workbook.records import read_record


@dataclass(frozen=True)
class Findings:
    """What *validate* left. ``table`` holds all claims, confirmed ones first; ``moved`` those confirmed ones that do
    not repeat a stronger one, in the order of telling, numbered from 1 (``n``). ``specs`` maps a claim to what its
    measure is made from, ``lines`` are the verdict's three sentences."""

    names: tuple[str, str]
    state: str
    lines: tuple[str, ...]
    table: pd.DataFrame
    moved: pd.DataFrame
    specs: Mapping[str, Mapping[str, Any]]

    @property
    def said(self) -> str:
        """What the changed model does otherwise, without names; where nothing changed, what would have been seen."""
        if self.state == "changed" and len(self.moved):
            return headline(self.moved)
        said = (self.lines[0] if self.lines else "").removeprefix(self.state.capitalize()).lstrip(": ")
        return said[:1].upper() + said[1:]

    @property
    def headline(self) -> str:
        """The verdict as a sentence that names the models."""
        changed = self.state == "changed" and len(self.moved)
        base, now = map(_spoken, self.names)
        return f"Compared with {base}, {now} {self.said}." if changed else self.said


def _spoken(name: str) -> str:
    """A name inside a sentence: "Llama, steered" has a comma that would part it."""
    model, _, what = name.partition(", ")
    return f"{model} ({what})" if what else name


def read_findings(experiment: Path, names: tuple[str, str] = ("base", "changed")) -> Findings | None:
    """The claims of ``outputs/<experiment>``; None where *validate* has left none. Raises DriftbookError for a table
    that cannot be read."""
    data = experiment / "validate" / "data"
    if not (data / "claims.parquet").is_file():
        return None
    table = read_table(data / "claims.parquet")
    table = table.assign(
        confirmed=table.get("confirmed", pd.Series(False, index=table.index)).eq(True),
        like=table.get("like", pd.Series("", index=table.index)).fillna("").astype(str),
    ).sort_values("confirmed", ascending=False, kind="stable", ignore_index=True)
    moved = told(table)
    specs: dict[str, Any] = {}
    if (data / "frozen.parquet").is_file():
        frozen = read_table(data / "frozen.parquet")
        specs = {i: json.loads(m) for i, m in zip(frozen["hypothesis_id"], frozen["measure"], strict=True)}
    record = read_record(experiment / "validate").get("verdict") or {}
    state = str(record.get("state") or ("changed" if len(moved) else ""))
    lines = tuple(str(line) for line in record.get("lines") or [])
    return Findings(names, state, lines, table, moved.assign(n=range(1, len(moved) + 1)), specs)


def read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DriftbookError(f"{path}: not a readable table ({error}); run the stage again") from error


def parameters(experiment: Path) -> dict[str, Any]:
    """What the good runs of an experiment were given, by section; of what they differ in, the earliest stage's."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        if (experiment / stage / "run.json").is_file():
            found = {**((read_record(experiment / stage).get("components") or {}).get("params") or {}), **found}
    return found


def change_of(params: Mapping[str, Any]) -> Intervention | None:
    """The intervention that runs recorded; None for one that is not known here, as a kind that is gone."""
    try:
        return of_kind(params.get("intervention"))
    except ValueError:
        return None


def names_of(params: Mapping[str, Any]) -> tuple[str, str]:
    """What the two models are called: ``names`` of the parameters, else what is told from the models."""
    names = params.get("names") or {}
    base = str(names.get("base") or short_name(str((params.get("base") or {}).get("model", "the base model"))))
    if member := member_name(str(params.get("experiment", "")))[1]:
        return base, f"{base}, {member}"
    change = change_of(params)
    return base, str(names.get("changed") or (change.called(base) if change else f"{base}, changed"))
