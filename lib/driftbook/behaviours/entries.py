"""How the catalogue is written: one call an entry, flat lists, one module a family."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import regex

from driftbook.behaviours.measure import Measure, Unit, Words
from driftbook.behaviours.words import Reading, reading


@dataclass(frozen=True)
class Family:
    """Makes the measures of one family.

    What is looked for is a regular expression without capturing groups, or words and phrases as ``words_measure``
    takes them. ``of`` is the part of a ``Reading`` in which it is looked for: text, prose or tail as written; folded,
    opening, closing, ending or last_paragraph in lower case with straight quotation marks (words always read folded).
    ``english`` declines texts that are known to be in another language.
    """

    name: str

    def share(
        self, name: str, label: str, pattern: str | Sequence[str], definition: str, shows: str, shows_not: str,
        of: str = "text", english: bool = False,
    ) -> Measure:  # fmt: skip
        """Whether it is found."""
        look = _Look(pattern, of)
        return self.read(name, label, "share", look.found, definition, shows, shows_not, english)

    def number(
        self, name: str, label: str, pattern: str | Sequence[str], definition: str, shows: str, shows_not: str,
        of: str = "text", english: bool = False,
    ) -> Measure:  # fmt: skip
        """How often it is found in an answer."""
        look = _Look(pattern, of)
        return self.read(name, label, "number", look.count, definition, shows, shows_not, english)

    def rate(
        self, name: str, label: str, pattern: str | Sequence[str], definition: str, shows: str, shows_not: str,
        of: str = "folded", english: bool = False,
    ) -> Measure:  # fmt: skip
        """How often it is found per 100 words of where it is looked for; declines where there are none."""
        look = _Look(pattern, of)

        def rate(r: Reading) -> float:
            size = len(r.prose_words if of == "prose" else r.words)
            return 100 * look.count(r) / size if size and r.spaced else math.nan

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
    """Looks for a pattern or words in one part of a reading; compiled when it is first used."""

    def __init__(self, sought: str | Sequence[str], of: str) -> None:
        self.sought, self.of = sought, of

    @cached_property
    def search(self) -> regex.Pattern[str] | Words:
        return regex.compile(self.sought) if isinstance(self.sought, str) else Words(self.sought)

    def found(self, r: Reading) -> float:
        if isinstance(self.search, Words):
            return self.search.found(r.folded, r.vocabulary)
        return float(self.search.search(getattr(r, self.of)) is not None)

    def count(self, r: Reading) -> float:
        if isinstance(self.search, Words):
            return self.search.count(r.folded, r.vocabulary)
        return float(len(self.search.findall(getattr(r, self.of))))
