"""What an experiment did not find, and how large an effect would have had to be for it to be found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from driftbook.evidence.intervals import JS, detectable, student_mean
from driftbook.evidence.shifts import moved
from driftbook.numbers import number
from driftbook.workbook.claims import read_table


@dataclass(frozen=True)
class BlindSpot:
    """What one stage did not find, and the effect that it would have found four times in five."""

    stage: str
    text: str


def blind_spots(experiment: Path, names: tuple[str, str]) -> list[BlindSpot]:
    """One entry per stage of ``outputs/<experiment>`` that has its tables; ``names`` are those of the two models.

    Raises ``DriftbookError`` when a table cannot be read.
    """
    said = (
        ("decode", _divergence(experiment / "decode" / "data" / "divergence.parquet")),
        ("cluster", _composition(experiment / "cluster" / "data" / "composition.parquet")),
        ("capture", _shifts(experiment / "capture" / "data", names)),
    )
    return [BlindSpot(stage, text) for stage, text in said if text]


def _divergence(path: Path) -> str:
    if not path.is_file():
        return ""
    js = read_table(path).dropna(subset="js").groupby("unit")["js"].mean().to_numpy(float)
    if len(js) < 2:
        return ""
    mean = student_mean(js, within=JS)
    return (
        f"Two models that are the same give a divergence of exactly 0 on every prompt, so none is missed here; the "
        f"mean over the {len(js):,} prompts that were screened is known to "
        f"±{number((mean.high - mean.low) / 2)} nats a token. "
        f"A difference that none of these prompts elicits stays unseen."
    )


def _composition(path: Path) -> str:
    if not path.is_file():
        return ""
    table = read_table(path)
    sentences = "group" in table
    known = table["q"].notna() if sentences else (table["cluster"] >= 0) & table["q"].notna()
    table = table[known]
    if not len(table):
        return ""
    things = ("groups of sentences", "group", "no group") if sentences else ("clusters", "cluster", "no cluster")
    still = table[table["q"] > 0.05]
    least = [100 * detectable(width / 2, len(table)) for width in table["high"] - table["low"]]
    sizes = f"{np.median(least):.1f} points in the median {things[1]}, of {max(least):.1f} in the least certain one,"
    return (
        f"{len(still)} of {len(table)} {things[0]} did not change their share beyond chance. That does not show them "
        f"to be alike: a difference between the two shares of {sizes} would have been found four times in five. "
        f"A change that the embedding does not see, or that moves {things[2]}, is not found here."
    )


def _shifts(data: Path, names: tuple[str, str]) -> str:
    """Each trait at the layer and site that were chosen before anything was compared."""
    shifts, dynamics = data / "shifts.parquet", data / "dynamics.parquet"
    if not shifts.is_file() or not dynamics.is_file():
        return ""
    at = ["trait", "layer", "site"]
    table = read_table(shifts).merge(read_table(dynamics)[at].drop_duplicates(), on=at)
    own = table[(table["comparison"] == "own_text") & table["shift"].notna()]
    if not len(own):
        return ""
    if own["prompts"].max() < 2:
        return "One prompt cannot tell whether a trait moved: shifts of any size can be missed."
    still = own.drop(moved(own).index)
    what = "All" if not len(still) else f"{len(own) - len(still)} of"
    rest = f", and no shift was found of {', '.join(map(str, still['trait']))}" if len(still) else ""
    least = [detectable(width / 2, len(own)) for width in own["high"] - own["low"]]
    return (
        f"{what} {len(own)} traits moved from {names[0]} to {names[1]}{rest}. "
        f"On {int(own['prompts'].iloc[0])} prompts, a shift of "
        f"{number(float(np.median(least)))} null standard deviations in the median trait, of "
        f"{number(max(least))} in the least certain one, would have been found four times in five. Only traits "
        f"that were given a vector are read, each at its chosen layer."
    )


__all__ = ["BlindSpot", "blind_spots"]
