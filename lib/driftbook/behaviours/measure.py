"""A behaviour of an answer as a measure: a number in a plain unit, read from the text alone.

Whatever is claimed of two models is claimed of such a measure, tested on it, and said in its unit on both sides.
Measures come from the catalogue (``catalogue.panel``), from words and phrases (``words_measure``), a regular
expression (``pattern_measure``) or a function of the user (``python_measure``).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import regex

from driftbook.behaviours.words import UNSPACED, WORD_CHARACTERS, Reading, fold, reading, tokens, words
from driftbook.errors import DriftbookError
from driftbook.numbers import NEVER, apart, fixed

Unit = Literal["share", "number", "rate", "words", "sentences", "grade", "score"]
Place = Literal["anywhere", "opening", "closing", "start"]

SIZES = ("words", "sentences")  # units whose typical value is the median: a few long answers would drag the mean
LIMIT_S = 0.25  # that a regular expression from outside may take over one text; catastrophic ones never return
PATIENCE = 20  # texts over which it may take longer before it is tried no more
PLACES = {"anywhere": "", "opening": " in its first sentence", "closing": " in its last sentence", "start": ""}


@dataclass(frozen=True)
class Measure:
    """What is read of one answer.

    Attributes:
        name: unique id, snake case.
        label: completes "an answer ..." where the unit is share ("ends with a question"), else says what is counted.
        unit: share (of answers: 0 or 1 a text), number (an answer), rate (per 100 words), words and sentences (sizes),
            grade (school years), score (a number on a scale that the definition gives).
        family: heading under which it is listed.
        read: (text, prompt) to its value, NaN where it cannot read the text.
        definition: one sentence.
        shows, shows_not: a text on each side of the line; for other units than share, with more and with less.
        spec: what ``measure_from`` rebuilds it from, JSON-able; hashed when a hypothesis is frozen.
    """

    name: str
    label: str
    unit: Unit
    family: str
    read: Callable[[str, str], float] = field(repr=False, compare=False)
    definition: str = ""
    shows: str = ""
    shows_not: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def summary(self) -> Literal["mean", "median"]:
        """How answers of one side are summed up: the median for sizes, which a few long answers would drag."""
        return "median" if self.unit in SIZES else "mean"

    def sentence(
        self,
        base: float,
        changed: float,
        low: float | None = None,
        high: float | None = None,
        difference: float | None = None,
        summary: Literal["mean", "median"] | None = None,
    ) -> str:
        """What moved, on both sides: "ends with a question: 33% of answers, was 5% (+28 points, 19 to 37)".

        ``base`` and ``changed`` are summaries of the values of both sides; ``low`` and ``high`` bound ``difference``
        (by default changed - base; of a median, the typical change of a prompt), all in the unit of the values (0.19,
        not 19, for a share). ``summary`` says what both are, where it is not what is usual for the unit. Where one of
        them has no value: "ends with a question: not read".
        """
        if math.isnan(base) or math.isnan(changed):
            return f"{self.label}: {NEVER}"
        scale, digits = (100, 0) if self.unit == "share" else (1, 1)
        numbers = [x * scale for x in (base, changed)]
        moved = numbers[1] - numbers[0] if difference is None else difference * scale
        if digits and 0 < abs(moved) < 0.1:
            digits = min(4, math.ceil(-math.log10(abs(moved))))
        bounds = [x * scale for x in (low, high) if x is not None]
        first, second = apart(*numbers, digits)
        change = fixed(moved, digits, signed=True)
        points = {"1": " point", "-1": " point", "+1": " point"}.get(change, " points") if scale == 100 else ""
        summary = summary or self.summary
        typical = "to the same prompt typically " if difference is not None and summary == "median" else ""
        interval = f", {fixed(bounds[0], digits)} to {fixed(bounds[1], digits)}" if len(bounds) == 2 else ""
        return f"{self._told(first, second, summary)} ({typical}{change}{points}{interval})"

    def _told(self, base: str, changed: str, summary: str) -> str:
        if self.unit == "share":
            return f"{self.label}: {changed}% of answers, was {base}%"
        if self.unit == "number":
            return f"{self.label}: {changed} an answer, was {base}"
        if self.unit == "rate":
            return f"{self.label}: {changed} per 100 words, was {base}"
        size = f"length in {self.unit}"
        if self.label == size:
            return f"length: {summary} {changed} {self.unit} an answer, was {base}"
        return f"{self.label}: {f'{summary} ' if self.summary == 'median' else ''}{changed}, was {base}"


def values(measures: Sequence[Measure], texts: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
    """Every measure of every answer, float64 [texts, measures]; NaN where a measure declines to read a text.

    ``prompts`` has one prompt a text. Raises DriftbookError for another number of prompts, and for a function of the
    user that fails or gives no number.
    """
    if len(texts) != len(prompts):
        raise DriftbookError(f"{len(texts)} answers and {len(prompts)} prompts: give one prompt an answer")
    out = np.empty((len(texts), len(measures)))
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        out[row] = [m.read(text, prompt) for m in measures]
    return out


def declined(measures: Sequence[Measure], read: np.ndarray) -> dict[str, int]:
    """How many answers each measure declined to read, of those that declined any. ``read`` is what ``values`` gave."""
    counts = np.isnan(read).sum(axis=0)
    return {m.name: int(n) for m, n in zip(measures, counts, strict=True) if n}


def describe(value: float, unit: Unit) -> str:
    """A value of one side in its unit, without a measure: "33% of answers", "1.6 per 100 words"."""
    text = fixed(100 * value if unit == "share" else value, 0 if unit == "share" else 1)
    return {"share": f"{text}% of answers", "number": f"{text} an answer", "rate": f"{text} per 100 words"}.get(
        unit, f"{text} {unit}" if unit in ("words", "sentences") else text
    )


# --------------------------------------------------------------------------------------------------------------- makers


def words_measure(
    words: Sequence[str],
    place: Place = "anywhere",
    unit: Unit = "share",
    *,
    name: str | None = None,
    label: str | None = None,
    family: str = "words",
    definition: str | None = None,
) -> Measure:
    """Words, phrases and ``/regular expressions/``, as whole words, whatever their case, apostrophes and composition.

    ``unit`` is share (says any of them), number (how often, an answer) or rate (per 100 words). Raises DriftbookError
    for no words, an unknown place or unit, and for an expression that does not compile.
    """
    asked: dict[str, Any] = {"kind": "words", "words": list(words), "place": place, "unit": unit}
    search = Words(words)
    read = _counted(search, place, unit)
    told = _listed(words)
    says = f"begins with {told}" if place == "start" else f"says {told}{PLACES[place]}"
    label = label or (says if unit == "share" else f"{told}{' at its start' if place == 'start' else PLACES[place]}")
    asked |= {k: v for k, v in {"name": name, "definition": definition}.items() if v is not None}
    asked |= {"label": label, "family": family}
    plain = next((w for w in words if not _is_expression(w)), "")
    return Measure(
        name or f"words_{_slug(words)}_{_digest(asked, 'words', 'place', 'unit')}",
        label, unit, family, read, definition or f"{_OF[unit]} {told}{PLACES[place]}.", plain, "", asked,
    )  # fmt: skip


def pattern_measure(
    pattern: str,
    place: Place = "anywhere",
    unit: Unit = "share",
    *,
    name: str | None = None,
    label: str | None = None,
    family: str = "own",
    definition: str | None = None,
) -> Measure:
    """One regular expression of the ``regex`` package over the text as written (``(?i)`` and other flags inside it).

    A text over which it takes longer than ``LIMIT_S`` is declined. Raises DriftbookError as ``words_measure`` does.
    """
    compiled = _compile(pattern, pattern)
    asked: dict[str, Any] = {"kind": "pattern", "pattern": pattern, "place": place, "unit": unit}
    read = _counted(Pattern(compiled), place, unit)
    label = label or (f"matches /{pattern}/" if unit == "share" else f"matches of /{pattern}/")
    asked |= {k: v for k, v in {"name": name, "definition": definition}.items() if v is not None}
    asked |= {"label": label, "family": family}
    return Measure(
        name or f"pattern_{_digest(asked, 'pattern', 'place', 'unit')}",
        label, unit, family, read, definition or f"{_OF[unit]} /{pattern}/{PLACES[place]}.", "", "", asked,
    )  # fmt: skip


def python_measure(
    function: str,
    unit: Unit = "share",
    *,
    name: str | None = None,
    label: str | None = None,
    family: str = "own",
    definition: str | None = None,
) -> Measure:
    """A function ``module:function`` of (text, prompt) that gives a number, or None where it cannot read the text.

    Raises DriftbookError for a module or function that is not there, and while reading for a function that fails or
    gives no number (for a share: none from 0 to 1).
    """
    module, _, attribute = function.partition(":")
    try:
        called = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as reason:
        raise DriftbookError(f"python: {function!r}: {reason}; write module:function, importable from here") from None
    if unit not in get_args(Unit):
        raise DriftbookError(f"unit: {unit!r}; use one of {', '.join(get_args(Unit))}")
    label = label or function

    def read(text: str, prompt: str) -> float:
        try:
            value = called(text, prompt)
            value = math.nan if value is None else float(value)
        except Exception as reason:  # whatever a user's function raises is his to read
            raise DriftbookError(f"python: {function}: {type(reason).__name__}: {reason}, on {text[:80]!r}") from reason
        if unit == "share" and not (math.isnan(value) or 0 <= value <= 1):
            raise DriftbookError(f"python: {function} gave {value} for unit share; give 0 or 1, or set another unit")
        return value

    asked = {"kind": "python", "python": function, "unit": unit, "label": label, "family": family}
    asked |= {k: v for k, v in {"name": name, "definition": definition}.items() if v is not None}
    told = definition or f"What {function} gives."
    return Measure(name or f"python_{_digest(asked, 'python', 'unit')}", label, unit, family, read, told, spec=asked)


def group_measure(
    name: str, *, label: str, place: str, segments: int | None = None, examples: Sequence[str] = ()
) -> Measure:
    """Whether an answer holds a segment of a group (``discovery.groups``), ``examples`` of which are quoted: what an
    embedder reads, many answers at a time, under ``name``. Reading a single answer raises DriftbookError."""

    def read(text: str, prompt: str) -> float:
        raise DriftbookError(f"measure {name}: an embedder reads it; use discovery.groups.readings")

    asked = {"kind": "group", "group": name, "label": label, "place": place, "segments": segments}
    asked["examples"] = list(examples)
    among = "" if place in ("opener", "closer") or segments is None else f", among at most {segments} that are drawn"
    told = f"Whether a segment of the answer ({place}{among}) lies in the group."
    return Measure(name, label, "share", "groups", read, told, next(iter(examples), ""), spec=asked)


# ---------------------------------------------------------------------------------------------------------------- words


class Pattern:
    """A compiled expression with a time limit; NaN for a text over which it is reached, and from ``PATIENCE`` of them
    on for every text."""

    folded = False

    def __init__(self, compiled: regex.Pattern[str]) -> None:
        self.compiled, self.late = [compiled], 0

    def candidates(self, vocabulary: frozenset[str] | None) -> list[regex.Pattern[str]]:
        """The expressions that may match a text of this vocabulary (None: not known)."""
        return self.compiled

    def found(self, text: str, vocabulary: frozenset[str] | None = None) -> float:
        return self._timed(lambda: any(c.search(text, timeout=LIMIT_S) for c in self.candidates(vocabulary)))

    def starts(self, text: str, vocabulary: frozenset[str] | None = None) -> float:
        return self._timed(lambda: any(c.match(text, timeout=LIMIT_S) for c in self.candidates(vocabulary)))

    def count(self, text: str, vocabulary: frozenset[str] | None = None) -> float:
        """Matches that do not overlap, the longer of two that begin together."""

        def count() -> int:
            spans = [m.span() for c in self.candidates(vocabulary) for m in c.finditer(text, timeout=LIMIT_S)]
            number, end = 0, -1
            for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
                if start >= end:
                    number, end = number + 1, stop
            return number

        return self._timed(count)

    def _timed(self, read: Callable[[], float]) -> float:
        if self.late >= PATIENCE:
            return math.nan
        try:
            return float(read())
        except TimeoutError:
            self.late += 1
            if self.late == PATIENCE:
                told = " or ".join(f"/{c.pattern}/" for c in self.compiled)
                warnings.warn(
                    f"{told} took longer than {LIMIT_S} s on {PATIENCE} texts, and is tried on no more: such texts are "
                    "declined; write an expression without nested repetitions",
                    stacklevel=2,
                )
            return math.nan


class Words(Pattern):
    """Words, phrases and ``/regular expressions/`` over folded text.

    A word has no letter, digit or joining apostrophe on either side: ``i`` is not found in ``i'm``, nor ``5`` in
    ``3.5``. Where it begins or ends with a letter of a script without spaces, anything may stand there. Between the
    words of a phrase stand spaces or one hyphen, and emphasis marks.
    """

    folded = True

    def __init__(self, words: Sequence[str]) -> None:
        if isinstance(words, str) or not words or not all(isinstance(w, str) and w.strip() for w in words):
            raise DriftbookError(f"words: {words!r}; give a list of words, phrases and /regular expressions/")
        phrases = sorted({fold(w).strip() for w in words if not _is_expression(w)})
        self.expressions = [_compile(f"(?i:{w[1:-1]})", w) for w in words if _is_expression(w)]
        self.compiled, self.late = self.expressions, 0
        # Which words must stand in a text for a match to be possible: asking that is far cheaper than matching.
        self.phrases = [(frozenset(tokens(p)), regex.compile(_bounded(p))) for p in phrases]

    def candidates(self, vocabulary: frozenset[str] | None) -> list[regex.Pattern[str]]:
        possible = [c for needed, c in self.phrases if vocabulary is None or needed <= vocabulary]
        return [*possible, *self.expressions]


_LEFT = rf"(?<![{WORD_CHARACTERS}])(?<!\p{{L}}')(?<!\p{{N}}[.,](?=\p{{N}}))"
_RIGHT = rf"(?!'?[{WORD_CHARACTERS}])(?!(?<=\p{{N}})[.,]\p{{N}})"
_GAP = r"[*_]*(?:\s+|[-‐‑])[*_]*"
_IN_WORD = regex.compile(rf"(?V1)[{WORD_CHARACTERS}--[{UNSPACED}]]")
_OUTSIDE = regex.compile(r"\A[^\p{L}\p{N}]+")
_OF = {
    "share": "Whether it holds",
    "number": "How often it holds",
    "rate": "How often per 100 words it holds",
}


def _bounded(phrase: str) -> str:
    pieces = [regex.escape(p, special_only=True) for p in regex.split(r"[\s\-‐‑]+", phrase) if p]
    left = _LEFT if _IN_WORD.match(phrase) else ""
    right = _RIGHT if _IN_WORD.match(phrase[-1]) else ""
    return left + _GAP.join(pieces or [regex.escape(phrase)]) + right


def _is_expression(word: str) -> bool:
    return len(word) > 2 and word[0] == word[-1] == "/"


def _compile(pattern: str, said: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except regex.error as reason:
        raise DriftbookError(f"pattern: {said}: {reason}; correct the regular expression") from None


def _counted(search: Pattern, place: Place, unit: Unit) -> Callable[[str, str], float]:
    if place not in get_args(Place):
        raise DriftbookError(f"place: {place!r}; use one of {', '.join(get_args(Place))}")
    if unit not in _OF:
        raise DriftbookError(f"unit: {unit!r}; words and patterns are counted as share, number or rate")

    def part(of: Reading) -> str:
        if place == "opening":
            return of.opening if search.folded else next(iter(of.sentences), "")
        if place == "closing":
            return of.closing if search.folded else next(reversed(of.sentences), "")
        text = of.folded if search.folded else of.text
        return _OUTSIDE.sub("", text) if place == "start" and search.folded else text

    def read(text: str, prompt: str) -> float:
        of = reading(text, prompt)
        where, known = part(of), of.vocabulary if search.folded else None
        if unit == "share":
            return search.starts(where, known) if place == "start" else search.found(where, known)
        count = search.starts(where, known) if place == "start" else search.count(where, known)
        if unit == "number":
            return count
        size = len(of.words) if place in ("anywhere", "start") else len(words(where))
        return 100 * count / size if size and of.spaced else math.nan

    return read


def _listed(words: Sequence[str]) -> str:
    quoted = [w if _is_expression(w) else f'"{w}"' for w in words]
    if len(quoted) > 4:
        return f"{', '.join(quoted[:3])} or one of {len(quoted) - 3} others"
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _slug(words: Sequence[str]) -> str:
    return "_".join(regex.findall(r"\w+", fold(" ".join(words[:2])))[:4])


def _digest(asked: Mapping[str, Any], *keys: str) -> str:
    kept = json.dumps([asked[k] for k in keys], ensure_ascii=False)
    return hashlib.sha256(kept.encode("utf-8", "surrogatepass")).hexdigest()[:8]
