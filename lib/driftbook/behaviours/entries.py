"""How the catalogue is written: one call an entry, flat lists, one module a family."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import regex

from driftbook.behaviours.measure import Measure, Unit
from driftbook.behaviours.words import Reading, reading


@dataclass(frozen=True)
class Family:
    """Makes the measures of one family.

    ``of`` is the part of a ``Reading`` that a pattern is looked for in: text or prose as written; folded, opening,
    closing or ending in lower case with straight quotation marks. ``english`` declines texts that are known to be in
    another language.
    """

    name: str

    def share(
        self, name: str, label: str, pattern: str, definition: str, shows: str, shows_not: str,
        of: str = "text", english: bool = False,
    ) -> Measure:  # fmt: skip
        """Whether the pattern is found."""
        look = _Look(pattern)
        found = lambda r: float(look.pattern.search(getattr(r, of)) is not None)  # noqa: E731
        return self.read(name, label, "share", found, definition, shows, shows_not, english)

    def number(
        self, name: str, label: str, pattern: str, definition: str, shows: str, shows_not: str,
        of: str = "text", english: bool = False,
    ) -> Measure:  # fmt: skip
        """How often the pattern is found in an answer."""
        look = _Look(pattern)
        count = lambda r: float(len(look.pattern.findall(getattr(r, of))))  # noqa: E731
        return self.read(name, label, "number", count, definition, shows, shows_not, english)

    def rate(
        self, name: str, label: str, pattern: str, definition: str, shows: str, shows_not: str,
        of: str = "folded", english: bool = False,
    ) -> Measure:  # fmt: skip
        """How often the pattern is found per 100 words; declines where there are none."""
        look = _Look(pattern)

        def rate(r: Reading) -> float:
            return 100 * len(look.pattern.findall(getattr(r, of))) / len(r.words) if r.words and r.spaced else math.nan

        return self.read(name, label, "rate", rate, definition, shows, shows_not, english)

    def read(
        self, name: str, label: str, unit: Unit, function: Callable[[Reading], float], definition: str, shows: str,
        shows_not: str, english: bool = False,
    ) -> Measure:  # fmt: skip
        """What a function of the reading gives."""

        def read(text: str, prompt: str) -> float:
            r = reading(text, prompt)
            return function(r) if not english or r.english else math.nan

        spec = {"kind": "panel", "name": name}
        return Measure(name, label, unit, self.name, read, definition, shows, shows_not, spec)


class _Look:
    """A pattern without capturing groups, compiled when it is first used."""

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def pattern(self) -> regex.Pattern[str]:
        return regex.compile(self.source)
