"""The catalogue: every behaviour that is read of every pair of models, and measures rebuilt from what was frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from driftbook.behaviours import content, degeneration, form, opening, stance, voice
from driftbook.behaviours.measure import Measure, group_measure, pattern_measure, python_measure, words_measure
from driftbook.errors import DriftbookError

FAMILIES = (form, opening, stance, voice, content, degeneration)

_PANEL = {m.name: m for family in FAMILIES for m in family.MEASURES}
_MAKERS = {"words": words_measure, "pattern": pattern_measure, "python": python_measure, "group": group_measure}


def panel() -> list[Measure]:
    """Every measure of the catalogue, family by family."""
    return list(_PANEL.values())


def measure_from(spec: Mapping[str, Any]) -> Measure:
    """The measure that a ``spec`` describes: ``measure_from(m.spec)`` reads what ``m`` reads.

    Raises DriftbookError for a kind or a name that is unknown, and for what its maker refuses.
    """
    kind = spec.get("kind")
    if kind == "panel":
        if spec.get("name") not in _PANEL:
            raise DriftbookError(f"measure: no behaviour is named {spec.get('name')!r}; docs/behaviours.md lists all")
        return _PANEL[spec["name"]]
    if kind not in _MAKERS:
        raise DriftbookError(f"measure: kind is {kind!r}; use panel, {', '.join(_MAKERS)}")
    asked = {k: v for k, v in spec.items() if k != "kind"}
    try:
        return _MAKERS[kind](asked.pop(kind), **asked)
    except (KeyError, TypeError) as reason:
        raise DriftbookError(f"measure of kind {kind}: {reason}; it has the keys of {_MAKERS[kind].__name__}") from None
