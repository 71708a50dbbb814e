"""Claims of the validate stage as a reader meets them: a sentence, its numbers, and texts to judge for oneself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.discovery.amplification import ordinary
from driftbook.errors import DriftbookError
from driftbook.numbers import e_value, number, p_value, share
from driftbook.prompts import load_saved
from driftbook.workbook.records import finite, read_record

EXEMPLARS = 4


@dataclass(frozen=True)
class Exemplar:
    """One held-out prompt with an answer of each side. ``x`` is the win rate of the claim on it."""

    prompt: str
    base: str
    intervention: str
    x: float


@dataclass(frozen=True)
class Claim:
    text: str
    direction: str
    confirmed: bool
    status: str
    numbers: list[str]
    warnings: list[str]
    win_rate: float
    exemplars: list[Exemplar] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """All claims of an experiment. ``confirmed`` holds those that do not repeat a stronger one; ``verdict`` is the
    answer of the experiment in three lines."""

    confirmed: list[Claim]
    others: list[Claim]
    table: pd.DataFrame
    verdict: list[str]


def read_findings(experiment: Path, most: int = 6) -> Findings | None:
    """The claims of ``validate`` with texts of ``decode`` to read; None where validate has no claims file.

    Texts come with the ``most`` strongest confirmed claims and with the strongest of the others.
    """
    path = experiment / "validate" / "data" / "claims.parquet"
    if not path.is_file():
        return None
    table = read_table(path)
    if not len(table):
        return Findings([], [], table, [])
    strength = pd.to_numeric(table.get("size", pd.Series(np.nan, index=table.index)), errors="coerce")
    sure = table.get("confirmed", pd.Series(False, index=table.index)).fillna(False).astype(bool)
    table = table.assign(_sure=sure, _strength=strength.fillna(-1))
    table = table.sort_values(["_sure", "_strength"], ascending=False, kind="stable", ignore_index=True)
    own = table["_sure"] & (table.get("like", pd.Series("", index=table.index)).fillna("") == "")
    to_read = [*table.index[own][:most], *table.index[~table["_sure"]][:3]]
    pairs = _exemplars(experiment, table.loc[to_read, "hypothesis_id"].tolist() if "hypothesis_id" in table else [])
    claims = [_claim(row, pairs.get(row.get("hypothesis_id"), [])) for row in table.to_dict("records")]
    record = read_record(experiment / "validate").get("verdict") or {}
    return Findings(
        [c for c, first in zip(claims, own, strict=True) if first],
        [c for c in claims if not c.confirmed],
        table.drop(columns=["_sure", "_strength"]),
        [str(line) for line in record.get("lines") or []],
    )


def read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DriftbookError(f"{path}: not a readable table ({error}); run the stage again") from error


def _claim(row: Mapping[str, Any], exemplars: list[Exemplar]) -> Claim:
    confirmed = bool(row.get("confirmed")) if row.get("confirmed") is not None else False
    numbers = []
    if row.get("status") == "screened out" and finite(row.get("p_screen")):
        numbers.append(f"set aside by the screen (p = {row['p_screen']:.2g}) and not tested on held-out prompts")
    elif finite(row.get("prompts")):
        numbers.append(f"tested on {int(row['prompts']):,} prompts ({row.get('scope') or 'held-out prompts'})")
    if finite(row.get("q_value")):
        numbers.append(f"q = {p_value(float(row['q_value']))}")
    if finite(row.get("e_value")):
        numbers.append(f"e-value {e_value(float(row['e_value']))}")
    if finite(row.get("win_rate")):
        numbers.append(f"win rate {_interval(row, 'win_rate', 'win_low', 'win_high', percent=True)}")
    if finite(row.get("auc")):
        numbers.append(f"AUC {_interval(row, 'auc', 'auc_low', 'auc_high')}")
    warnings = [flag for flag in str(row.get("flags") or "").split("\n") if flag] if confirmed else []
    status = str(row.get("status") or ("confirmed" if confirmed else "not confirmed"))
    strength = row.get("win_rate")
    return Claim(
        str(row.get("claim") or row.get("text") or ""),
        str(row.get("direction", "")),
        confirmed,
        status,
        numbers,
        warnings,
        float(strength) if finite(strength) else float("nan"),
        exemplars,
    )


def _interval(row: Mapping[str, Any], value: str, low: str, high: str, percent: bool = False) -> str:
    written = share if percent else number
    ends = f" [{written(row[low])}, {written(row[high])}]" if finite(row.get(low)) and finite(row.get(high)) else ""
    return written(row[value]) + ends


def _exemplars(experiment: Path, wanted: list[str]) -> dict[str, list[Exemplar]]:
    """Prompts spread evenly from the clearest win to the clearest loss: not only those that look good."""
    verdicts, texts = (
        experiment / "validate" / "data" / "verdicts.parquet",
        experiment / "decode" / "data" / "texts.parquet",
    )
    if not wanted or not verdicts.is_file() or not texts.is_file():
        return {}
    table = read_table(verdicts)
    table = table[table["hypothesis_id"].isin(wanted) & table["x"].notna()]
    if "split" in table:  # what a judge saw on the screen's prompts is no evidence
        table = table[(table["split"] != "screen") | (table["judge"] == "counting")]
    chosen: dict[str, pd.Series] = {}
    for name, own in table.groupby("hypothesis_id", sort=False):
        x = own.groupby("prompt_id")["x"].mean().sort_values(ascending=False, kind="stable")
        chosen[str(name)] = x.iloc[np.unique(np.linspace(0, len(x) - 1, EXEMPLARS).round().astype(int))]
    ids = {p for x in chosen.values() for p in x.index}
    answers = read_table(texts)
    answers = ordinary(answers)
    answers = answers[answers["prompt_id"].isin(ids)].drop_duplicates(["prompt_id", "side"])
    said = {(a.prompt_id, a.side): a.text for a in answers.itertuples()}
    asked = load_saved(texts.parent)
    return {
        name: [
            Exemplar(asked[p].shown(), str(said[p, "base"]), str(said[p, "intervention"]), float(v))
            for p, v in x.items()
            if (p, "base") in said and (p, "intervention") in said
        ]
        for name, x in chosen.items()
    }
