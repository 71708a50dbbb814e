"""What a reader has to know before any result: whether the answers are whole, and whether enough were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from driftbook.evidence.paired import smallest_seen
from driftbook.numbers import share
from driftbook.prompts import SIDES
from driftbook.sections import short_name
from driftbook.workbook.claims import Findings, change_of

CUT = 0.1  # share of a side's answers that were cut off, from which on the page warns
FEW = 0.01  # of a side's answers that are empty
SAME = 0.2  # of a side's answers that are one and the same text
OTHER = (0.05, 0.95)  # share of answers in another language than English, between which languages are mixed
RARE = 0.1  # share of answers of which the smallest change that could be seen is said
WIDE = 0.25  # a smallest change beyond it is too large to tell much


@dataclass(frozen=True)
class Fact:
    """One sentence; ``warns`` where it puts the results in doubt."""

    text: str
    warns: bool = False


def validity(
    texts: pd.DataFrame,
    prompts: pd.DataFrame,
    findings: Findings | None,
    params: Mapping[str, Any],
    names: tuple[str, str],
) -> list[Fact]:
    """``texts`` and ``prompts`` are the tables of *decode*."""  # fmt: skip
    found = [*_cut(texts, findings, names), *_empty(texts, names), *_constant(texts, names)]
    found += [*_languages(findings, names), *_asked(prompts), *_smallest(prompts, findings)]
    return [*(f for f in found if f.warns), *(f for f in found if not f.warns), *_reader(params)]


def _by_side(table: pd.DataFrame, flags: pd.Series) -> tuple[float, float]:
    by = flags.groupby(table["side"]).mean()
    return float(by.get(SIDES[0], 0.0)), float(by.get(SIDES[1], 0.0))


def _both(shares: tuple[float, float], names: tuple[str, str]) -> str:
    return f"{share(shares[0])} of {names[0]}'s answers and {share(shares[1])} of {names[1]}'s"


def _cut(texts: pd.DataFrame, findings: Findings | None, names: tuple[str, str]) -> list[Fact]:
    """By what the engine says; of texts from elsewhere, by whether an answer ends in the middle of a sentence."""
    reasons = texts.get("finish_reason", pd.Series("", index=texts.index)).fillna("")
    here = ~texts["engine"].eq("texts").any() if "engine" in texts else True
    if here and reasons.isin(["length", "stop", "eos"]).any():
        shares, why = _by_side(texts, reasons.eq("length")), "were cut off at the token limit"
    else:
        shares, why = _panel(findings, "ends_cut_off"), "end in the middle of a sentence"
    if max(shares) == 0:
        none = "was cut off at the token limit" if why.startswith("were") else "ends in the middle of a sentence"
        return [Fact(f"No answer {none}.")] if len(texts) else []
    return [Fact(f"{_both(shares, names)} {why}.", max(shares) >= CUT)]


def _empty(texts: pd.DataFrame, names: tuple[str, str]) -> list[Fact]:
    shares = _by_side(texts, texts["text"].str.strip().eq(""))
    return [Fact(f"{_both(shares, names)} are empty.", True)] if max(shares) > FEW else []


def _constant(texts: pd.DataFrame, names: tuple[str, str]) -> list[Fact]:
    found = []
    for side, name in zip(SIDES, names, strict=True):
        own = texts.loc[texts["side"] == side, "text"]
        most = float(own.value_counts(normalize=True).iloc[0]) if len(own) > 1 else 0.0
        if most > SAME and own.mode().iloc[0].strip():
            found.append(Fact(f"{share(most)} of {name}'s answers are one and the same text.", True))
    return found


def _panel(findings: Findings | None, measure: str) -> tuple[float, float]:
    """What a behaviour of the panel was on both sides; 0 where it was not read."""
    if findings is None or "measure" not in findings.table:
        return 0.0, 0.0
    row = findings.table[findings.table["measure"] == measure][["base", "intervention"]].dropna().head(1)
    return (float(row["base"].iloc[0]), float(row["intervention"].iloc[0])) if len(row) else (0.0, 0.0)


def _languages(findings: Findings | None, names: tuple[str, str]) -> list[Fact]:
    other = _panel(findings, "other_language")
    if not any(OTHER[0] < s < OTHER[1] for s in other):
        return []
    return [Fact(f"Languages are mixed: {_both(other, names)} are not in English. The panel reads English.", True)]


def _asked(prompts: pd.DataFrame) -> list[Fact]:
    if "split" not in prompts:
        return []
    seen = int((prompts["split"] == "discover").sum())
    return [
        Fact(
            f"{seen:,} prompts to look for changes, {len(prompts) - seen:,} to test what was found there; behaviours "
            "that were named before are tested on all."
        )
    ]


def _smallest(prompts: pd.DataFrame, findings: Findings | None) -> list[Fact]:
    if findings is None or not len(findings.table) or not len(prompts):
        return []
    seen = smallest_seen(len(prompts), RARE, len(findings.table), 0.05)
    if seen is None:
        return [Fact("So few prompts can confirm nothing.", True)]
    return [
        Fact(
            f"The smallest change that could be seen: a behaviour of {RARE:.0%} of answers that goes to "
            f"{share(min(1.0, RARE + seen))}.",
            seen > WIDE,
        )
    ]


def _reader(params: Mapping[str, Any]) -> list[Fact]:
    change = change_of(params)
    if change is None or change.answers_here:
        return []
    said = "Text only: no weights were seen."
    if "capture" in params or "traits" in params:
        reader = short_name(str((params.get("base") or {}).get("model", "")))
        said += f" What is said of traits is read by {reader}, which wrote neither."
    return [Fact(said)]
