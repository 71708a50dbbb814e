"""The gate: rules on how far behaviours may move, each answered *holds*, *broken* or *cannot be told* by intervals.

A rule bounds the difference of one behaviour, in its unit. It holds where a one-sided interval at ``alpha`` lies inside
the bound. It is broken where one lies beyond the bound at ``alpha`` divided by the number of bounds. So a gate all of
whose rules hold lets a change pass that breaks one with a probability of at most ``alpha`` (an intersection-union test,
Berger 1982, needs no correction for that), and a gate without a broken rule fails with a probability of at most
``alpha`` (Bonferroni).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from scipy.stats import norm

from driftbook.behaviours.measure import SIZES
from driftbook.errors import ParameterError
from driftbook.evidence.paired import paired_interval, smallest_seen
from driftbook.evidence.verdict import WIDE
from driftbook.parameters import Where, read_section
from driftbook.sections import Section

State = Literal["holds", "broken", "cannot be told"]
NO_CHANGE = "no confirmed change"
UNITS = {
    "points": "share", "point": "share", "words": "words", "sentences": "sentences", "an answer": "number",
    "per 100 words": "rate", "grades": "grade", "": "score", "%": "any",
}  # fmt: skip
_SIZE = rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})"
_LIMIT = re.compile(
    rf"(?:(?P<one>at most|at least) (?P<sign>[+-]){_SIZE}|(?:equivalent )?within {_SIZE}|(?P<none>{NO_CHANGE}))"
    r"(?P<strict> or fail)?"
)
GRAMMAR = (
    "write 'at most +2 points', 'at least -5 points', 'within 10%' or 'no confirmed change', and ' or fail' behind it "
    "where what cannot be told fails; units are points (of a share), words, sentences, an answer, per 100 words, "
    "grades, none for a score, and % of the base's value"
)


@dataclass(frozen=True)
class Limit:
    """What a rule allows of a difference: ``low`` to ``high``, in ``unit`` (of a measure, or "any": a part of the
    base's value); of shares in [-1, 1]. Without bounds, that no change is confirmed. ``strict``: untold fails."""

    low: float
    high: float
    unit: str
    strict: bool

    @classmethod
    def read(cls, said: str) -> Limit:
        """Raises ValueError for what is no limit."""
        found = _LIMIT.fullmatch(" ".join(said.split()))
        if found is None:
            raise ValueError(f"{said!r} is no limit; {GRAMMAR}")
        strict = found["strict"] is not None
        if found["none"]:
            return cls(-math.inf, math.inf, "", strict)
        number, name = found.group(3, 4) if found["one"] else found.group(5, 6)
        unit = UNITS[name]
        size = float(number) / (100 if unit in ("share", "any") else 1)
        if not found["one"]:
            return cls(-size, size, unit, strict)
        size = -size if found["sign"] == "-" else size
        return cls(-math.inf, size, unit, strict) if found["one"] == "at most" else cls(size, math.inf, unit, strict)

    @property
    def bounds(self) -> int:
        return math.isfinite(self.low) + math.isfinite(self.high)


class Allow(Section):
    """``params/allow.yml``: what may change. ``rules`` maps a behaviour (its name, its label, ``family <name>`` or
    ``every behaviour``) to a limit."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    cannot_tell: Literal["pass", "fail"] = "pass"
    rules: dict[str, str] = Field(min_length=1)

    @model_validator(mode="after")
    def _limits(self) -> Allow:
        for what, said in self.rules.items():
            try:
                Limit.read(said)
            except ValueError as reason:
                raise ValueError(f"rules.{what} {reason}") from None
        return self


@dataclass(frozen=True)
class Answer:
    """What a rule came to. ``low`` and ``high`` bound the difference at the level of *holds* (a part of the base's
    value for a limit in %), NaN where the rule asks for none. ``failed``: whether the gate fails by it."""

    rule: str
    behaviour: str
    family: str
    state: State
    failed: bool
    said: str
    low: float = math.nan
    high: float = math.nan


def read_allow(path: Path, root: Path) -> tuple[Allow, Where]:
    """The rules of a file. Raises ParameterError with file, line and key."""
    if not path.is_file():
        raise ParameterError(f"{path}: there is no such file; docs/gate.md says what stands in one")
    return read_section(path, Allow, root)


def check(allow: Allow, claims: pd.DataFrame, verdicts: pd.DataFrame, where: Where, stored: float) -> list[Answer]:
    """Every rule answered, in the order of the file; a family gives an answer for each of its behaviours.

    Args:
        claims, verdicts: the tables of the validate stage; ``stored`` is the error level of the intervals in
            ``claims``.

    Raises:
        ParameterError: a behaviour that nobody measured, or a limit in another unit than the behaviour's.
    """
    claims = claims[claims["unit"].notna()]
    found: list[tuple[str, Limit, pd.DataFrame]] = []
    for what, said in allow.rules.items():
        place = where(("rules", what))
        limit, rows = Limit.read(said), _named(what, claims, place)
        if limit.bounds and limit.unit != "any":
            fits = rows[rows["unit"] == limit.unit]
            if fits.empty:
                names = {unit: name or "a bare number" for name, unit in reversed(UNITS.items())}
                own = " or ".join(names[unit] for unit in sorted(set(rows["unit"])))
                raise ParameterError(f"{place}rules.{what}: {said!r} is in another unit than the behaviour's, {own}")
            rows = fits
        found.append((f"{what}: {said}", limit, rows))
    tails = sum(limit.bounds * len(rows) for _, limit, rows in found)
    scores = dict(list(verdicts.groupby("hypothesis_id")))
    answers = []
    for rule, limit, rows in found:
        strict = limit.strict or allow.cannot_tell == "fail"
        if limit.bounds:
            of = [(row, scores.get(row["hypothesis_id"])) for row in rows.to_dict("records")]
            answers += [_bounded(rule, limit, strict, row, own, allow.alpha, tails, stored) for row, own in of]
        else:
            answers.append(_unconfirmed(rule, strict, rows, len(claims), stored))
    return answers


def _named(what: str, claims: pd.DataFrame, place: str) -> pd.DataFrame:
    """The claims that a rule speaks of."""
    asked = what.strip().lower()
    if asked == "every behaviour":
        return claims[claims["proposer"] == "panel"]
    family = asked.removeprefix("family ") if asked.startswith("family ") else None
    keys = ["kind"] if family is not None else ["measure", "text"]
    wanted = {family} if family is not None else {asked, f"length in {asked}"}
    rows = claims[np.logical_or.reduce([claims[key].str.lower().isin(wanted) for key in keys])]
    if len(rows):
        return rows
    known = sorted({str(v) for key in keys for v in claims[key]})
    near = difflib.get_close_matches(family or asked, known, n=3, cutoff=0.4)
    meant = f", did you mean {' or '.join(map(repr, near))}? " if near else "; "
    kind = "family" if family is not None else "behaviour"
    more = f"families are {', '.join(known)}" if family is not None else "docs/behaviours.md lists all"
    raise ParameterError(f"{place}rules.{what}: nobody measures this {kind}{meant}{more}")


def _bounded(
    rule: str, limit: Limit, strict: bool, row: Mapping[str, object], scores: pd.DataFrame | None, alpha: float,
    tails: int, stored: float,
) -> Answer:  # fmt: skip
    relative = limit.unit == "any"

    def ends(level: float, part: float) -> tuple[float, float]:
        """A two-sided interval of changed - (1 + part) base, each of whose ends errs with probability ``level``."""
        if scores is None or row["judge"] != "counting" or row["scope"] == "these prompts":
            z = norm.isf(level) / norm.isf(stored / 2)  # the unit is not the prompt: the claim's interval, scaled
            d, low, high = (float(row[c]) for c in ("difference", "low", "high"))
            off = part * float(row["base"])
            return d + z * (low - d) - off, d + z * (high - d) - off
        base, changed = (scores[c].to_numpy(np.float64)[:, None] for c in ("score_base", "score_intervention"))
        center = "median" if row["unit"] in SIZES else "mean"
        _, low, high = paired_interval(base * (1 + part), changed, 2 * level, center)
        return float(low[0]), float(high[0])

    def beyond(bound: float, upward: bool, level: float) -> tuple[bool, bool]:
        """(is the difference shown to lie inside, outside of) one bound, at ``level`` and ``alpha / tails``."""
        off, part = (0.0, math.copysign(bound, bound * float(row["base"]))) if relative else (bound, 0.0)
        (low, high), (least, most) = ends(level, part), ends(alpha / tails, part)
        return (high <= off, least > off) if upward else (low >= off, most < off)

    sides = [beyond(b, up, alpha) for b, up in ((limit.low, False), (limit.high, True)) if math.isfinite(b)]
    state: State = "cannot be told"
    if all(inside for inside, _ in sides):
        state = "holds"
    elif any(outside for _, outside in sides):
        state = "broken"
    low, high = ends(alpha, 0.0)
    if relative:
        base = abs(float(row["base"])) or math.nan
        low, high = low / base, high / base
    failed = state == "broken" or (state == "cannot be told" and strict)
    return Answer(rule, str(row["text"]), str(row["kind"]), state, failed, str(row["claim"]), low, high)


def _unconfirmed(rule: str, strict: bool, rows: pd.DataFrame, tested: int, alpha: float) -> Answer:
    """A rule that no change is confirmed; where hardly any could be, that none was says nothing."""
    confirmed = rows[rows["confirmed"]]
    family = str(rows["kind"].iloc[0]) if rows["kind"].nunique() == 1 else "several families"
    behaviour = str(rows["text"].iloc[0]) if len(rows) == 1 else f"{len(rows)} behaviours"
    if len(confirmed):
        return Answer(rule, behaviour, family, "broken", True, "; ".join(confirmed["claim"]))
    prompts = int(rows["prompts"].max())
    seen = smallest_seen(prompts, 0.1, tested, alpha)
    if rows["scope"].iloc[0] != "these prompts" and (seen is None or seen > WIDE):
        said = f"{prompts} prompts are too few to confirm less than a jump from 10% to {0.1 + (seen or 0.9):.0%}"
        return Answer(rule, behaviour, family, "cannot be told", strict, said)
    return Answer(rule, behaviour, family, "holds", False, f"none of {len(rows)} was confirmed on {prompts} prompts")


def passed(answers: Sequence[Answer]) -> bool:
    return not any(a.failed for a in answers)
