"""Levels of a verdict and their values.

An expectation over levels says more than the one level that was written: a judge that hesitates between MID and HIGH
is heard as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Mode = Literal["single", "pair"]

VALUES: dict[Mode, dict[str, float]] = {
    "single": {"HIGH": 1.0, "MID": 0.5, "LOW": 0.0},
    "pair": {"A": 1.0, "TIE": 0.5, "B": 0.0},
}


def expectation(levels: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Mean value under the probabilities of the levels, which need not sum to one."""
    return sum(values[name] * p for name, p in levels.items()) / sum(levels.values())
