"""Levels of a verdict and their values, and how they are read off the probabilities of tokens.

An expectation over levels says more than the one level that was written: a judge that hesitates between MID and HIGH
is heard as such.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

Mode = Literal["single", "pair"]

VALUES: dict[Mode, dict[str, float]] = {
    "single": {"HIGH": 1.0, "MID": 0.5, "LOW": 0.0},
    "pair": {"A": 1.0, "TIE": 0.5, "B": 0.0},
}
LEAST_MASS = 0.5  # below it the model meant something else than a level: what it wrote counts

_ENTRY = re.compile(r'"(\d+)"\s*:\s*"(?=[A-Za-z])')


def expectation(levels: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Mean value under the probabilities of the levels, which need not sum to one."""
    return sum(values[name] * p for name, p in levels.items()) / sum(levels.values())


def level_probabilities(
    tokens: Sequence[tuple[str, Mapping[str, float]]], levels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Probability of each level at the place where a JSON reply such as ``{"1": "HIGH"}`` states it.

    ``tokens``: the tokens of the reply, each with the log-probabilities of its likeliest alternatives. Returns the
    statement's number to level to probability; an alternative counts for the level that it begins, in the letters
    that follow the opening quote. Statements whose levels have less than half of the mass are left out.
    """
    text, starts = "", []
    for token, _ in tokens:
        starts.append(len(text))
        text += token
    found: dict[str, dict[str, float]] = {}
    for entry in _ENTRY.finditer(text):
        place = entry.end()
        index = max(i for i, start in enumerate(starts) if start <= place)
        before = tokens[index][0][: place - starts[index]]
        mass = dict.fromkeys(levels, 0.0)
        for alternative, logprob in tokens[index][1].items():
            rest = alternative[len(before) :].split('"')[0].upper()
            if not alternative.startswith(before) or not rest:
                continue
            begun = [level for level in levels if level.startswith(rest)]
            if len(begun) == 1:
                mass[begun[0]] += math.exp(logprob)
        if sum(mass.values()) >= LEAST_MASS:
            found.setdefault(entry.group(1), mass)
    return found
