"""Claims of the validate stage as a reader meets them: a sentence, its numbers, and texts to judge for oneself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.errors import DriftbookError
from driftbook.prompts import load_saved
from driftbook.workbook.records import finite
from driftbook.workbook.wording import format_number

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
    """All claims of an experiment, and how large an effect the test would have seen."""

    confirmed: list[Claim]
    others: list[Claim]
    table: pd.DataFrame
    sensitivity: str


def read_findings(experiment: Path, most: int = 6) -> Findings | None:
    """The claims of ``validate`` with texts of ``decode`` to read; None where validate has no claims file.

    Texts come with the ``most`` strongest confirmed claims and with the strongest of the others.
    """
    path = experiment / "validate" / "data" / "claims.parquet"
    if not path.is_file():
        return None
    table = read_table(path)
    if not len(table):
        return Findings([], [], table, "")
    strength = pd.to_numeric(table.get("win_rate", pd.Series(np.nan, index=table.index)), errors="coerce")
    sure = table.get("confirmed", pd.Series(False, index=table.index)).fillna(False).astype(bool)
    table = table.assign(_sure=sure, _strength=strength.fillna(-1))
    table = table.sort_values(["_sure", "_strength"], ascending=False, kind="stable", ignore_index=True)
    to_read = [*table.index[table["_sure"]][:most], *table.index[~table["_sure"]][:3]]
    pairs = _exemplars(experiment, table.loc[to_read, "hypothesis_id"].tolist() if "hypothesis_id" in table else [])
    claims = [_claim(row, pairs.get(row.get("hypothesis_id"), [])) for row in table.to_dict("records")]
    shown = table.drop(columns=["_sure", "_strength"])
    return Findings(
        [c for c in claims if c.confirmed],
        [c for c in claims if not c.confirmed],
        shown,
        _sensitivity(experiment, shown),
    )


def read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DriftbookError(f"{path}: not a readable table ({error}); run the stage again") from error


def _claim(row: Mapping[str, Any], exemplars: list[Exemplar]) -> Claim:
    numbers = []
    if finite(row.get("win_rate")):
        numbers.append(f"win rate {_interval(row, 'win_rate', 'win_low', 'win_high', percent=True)}")
    if finite(row.get("rate_base")) and finite(row.get("rate_intervention")):
        numbers.append(
            f"score {format_number(row['rate_base'])} in base, "
            f"{format_number(row['rate_intervention'])} in intervention"
        )
    if finite(row.get("rate_difference")):
        numbers.append(f"difference {_interval(row, 'rate_difference', 'rate_low', 'rate_high')}")
    if finite(row.get("auc")):
        numbers.append(f"AUC {_interval(row, 'auc', 'auc_low', 'auc_high')}")
    if finite(row.get("e_value")):
        numbers.append(f"e-value {format_number(float(row['e_value']))}")
    if row.get("status") == "screened out" and finite(row.get("p_screen")):
        numbers.append(f"set aside by the screen (p = {row['p_screen']:.2g}) and not tested on held-out prompts")
    elif finite(row.get("prompts")):
        numbers.append(f"{int(row['prompts'])} held-out prompts")
    confirmed = bool(row.get("confirmed")) if row.get("confirmed") is not None else False
    warnings = []
    if confirmed:
        warnings += [flag for flag in str(row.get("flags") or "").split("\n") if flag]
    status = str(row.get("status") or ("confirmed" if confirmed else "not confirmed"))
    strength = row.get("win_rate")
    return Claim(
        str(row.get("text", "")),
        str(row.get("direction", "")),
        confirmed,
        status,
        numbers,
        warnings,
        float(strength) if finite(strength) else float("nan"),
        exemplars,
    )


def _interval(row: Mapping[str, Any], value: str, low: str, high: str, percent: bool = False) -> str:
    def number(v: float) -> str:
        return f"{v:.0%}" if percent else format_number(float(v))

    bounds = f" [{number(row[low])}, {number(row[high])}]" if finite(row.get(low)) and finite(row.get(high)) else ""
    return number(row[value]) + bounds


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
    if "split" in table:
        table = table[table["split"] == "validate"]
    chosen: dict[str, pd.Series] = {}
    for name, own in table.groupby("hypothesis_id", sort=False):
        x = own.groupby("prompt_id")["x"].mean().sort_values(ascending=False, kind="stable")
        chosen[str(name)] = x.iloc[np.unique(np.linspace(0, len(x) - 1, EXEMPLARS).round().astype(int))]
    ids = {p for x in chosen.values() for p in x.index}
    answers = read_table(texts)
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


def _sensitivity(experiment: Path, claims: pd.DataFrame) -> str:
    """The smallest win rate that this many prompts would have confirmed, four times in five."""
    from driftbook.evidence.intervals import prompts_needed

    tested = (
        claims[pd.to_numeric(claims.get("win_rate"), errors="coerce").notna()] if "win_rate" in claims else claims[:0]
    )
    path = experiment / "validate" / "data" / "verdicts.parquet"
    if not len(tested) or not path.is_file() or "prompts" not in tested:
        return ""
    verdicts = read_table(path)
    verdicts = verdicts[verdicts["x"].notna() & verdicts["hypothesis_id"].isin(tested["hypothesis_id"])]
    if "split" in verdicts:
        verdicts = verdicts[verdicts["split"] == "validate"]
    if not len(verdicts):
        return ""
    per_prompt = verdicts.groupby(["hypothesis_id", "prompt_id"])["x"].mean()
    deviation = float(per_prompt.groupby(level=0).std().median())
    params = _params(experiment)
    margin, alpha = float(params.get("margin", 0.02)), float(params.get("alpha", 0.05))
    available = int(verdicts["prompt_id"].nunique())
    for percent in range(51, 100):
        needed = prompts_needed(percent / 100, deviation or 0.1, margin, len(tested), alpha)
        if needed is not None and needed <= available:
            return (
                f"With {available} held-out prompts and {len(tested)} hypotheses tested at once, a claim that wins on "
                f"{percent}% of prompts would have been confirmed four times in five. Smaller effects can have been "
                "missed."
            )
    return (
        f"With {available} held-out prompts, no effect of any size could have been confirmed: more prompts are needed."
    )


def _params(experiment: Path) -> Mapping[str, Any]:
    from driftbook.workbook.records import read_record

    params = (read_record(experiment / "validate").get("components") or {}).get("params") or {}
    return params.get("validate") or {}
