"""Where in an answer a measure sees what it counts: the spans that a page marks.

Words are found as they stand. For any other measure, sentences are left out from both ends: the shortest run that shows
it by itself, and without which the answer does not, is the evidence; else all sentences that show it by themselves. A
behaviour of the whole answer (its language, several paragraphs) has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from driftbook.behaviours.catalogue import measure_from
from driftbook.behaviours.measure import Measure, Words
from driftbook.behaviours.words import fold

Span = tuple[int, int]
MOST_PIECES = 80  # sentences of an answer that are looked through
WHOLE = 0.85  # of an answer: evidence that takes more of it is the answer itself
_PIECE = re.compile(r"[^\n]+?(?:(?<!\d)[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？।]+|(?=\n)|\Z)")
READ_FROM_TEXT = ("panel", "words", "pattern", "python")


def marker(spec: Mapping[str, Any]) -> Callable[[str, str], list[Span]] | None:
    """A function of (text, prompt) that gives the spans of a measure's evidence, in order; None for a measure that a
    text alone does not tell, as a judge's."""
    if spec.get("kind") not in READ_FROM_TEXT:
        return None
    measure = measure_from(spec)
    if spec["kind"] == "words" and spec.get("place", "anywhere") == "anywhere":
        search = Words(spec["words"])
        return lambda text, prompt: _found(search, text)
    return lambda text, prompt: _evidence(measure, text, prompt)


def placed(text: str, place: str) -> list[Span]:
    """The first sentence of an answer (``opener``) or its last (``closer``): where a group of sentences stands that an
    embedder alone reads."""
    pieces = [_stripped(text, *m.span()) for m in _PIECE.finditer(text) if m[0].strip()]
    return {"opener": pieces[:1], "closer": pieces[-1:]}.get(place, [])


def _found(search: Words, text: str) -> list[Span]:
    """Words where they stand in the text as written; folding may have changed its length."""
    pieces = [fold(c) for c in text]
    if "".join(pieces) != fold(text):  # letters that compose with their neighbours: as written, in lower case
        pieces = [c.lower() for c in text]
    folded = "".join(pieces)
    at = [i for i, piece in enumerate(pieces) for _ in piece]
    spans = sorted(m.span() for c in search.candidates(None) for m in c.finditer(folded, timeout=1))
    return [(at[a], at[b - 1] + 1) for a, b in spans if b > a]


def _evidence(measure: Measure, text: str, prompt: str) -> list[Span]:
    pieces = [_stripped(text, *m.span()) for m in _PIECE.finditer(text) if m[0].strip()]
    if not pieces or len(pieces) > MOST_PIECES:
        return []
    if measure.unit in ("number", "rate"):
        alone = [(a, b) for a, b in pieces if measure.read(text[a:b], prompt) > 0]
        return alone if 2 * len(alone) <= len(pieces) or len(pieces) == 1 else []
    if measure.unit != "share":
        return []

    def shows(part: str) -> bool:
        return bool(part.strip()) and measure.read(part, prompt) >= 0.5

    if not shows(text):
        return []
    found = [s for s in (_from_start(text, pieces, shows), _from_end(text, pieces, shows)) if s is not None]
    found = [(a, b) for a, b in found if "\n\n" not in text[a:b].strip()]
    lost = [s for s in found if not shows(text[: s[0]] + text[s[1] :])]
    spans = sorted(lost, key=lambda s: (s[1] - s[0], s))[:1] or [s for s in pieces if shows(text[s[0] : s[1]])]
    whole = sum(b - a for a, b in spans) > WHOLE * len(text.strip())
    return [] if whole and len(pieces) > 1 else spans


def _stripped(text: str, start: int, end: int) -> Span:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - (len(part) - len(part.rstrip()))


def _from_start(text: str, pieces: list[Span], shows: Callable[[str], bool]) -> Span | None:
    """The first sentences that show it, without those before that are not needed."""
    end = next((k for k in range(len(pieces)) if shows(text[: pieces[k][1]])), None)
    if end is None:
        return None
    start = next((j for j in range(end, -1, -1) if shows(text[pieces[j][0] : pieces[end][1]])), 0)
    return pieces[start][0], pieces[end][1]


def _from_end(text: str, pieces: list[Span], shows: Callable[[str], bool]) -> Span | None:
    start = next((j for j in range(len(pieces) - 1, -1, -1) if shows(text[pieces[j][0] :])), None)
    if start is None:
        return None
    end = next((k for k in range(start, len(pieces)) if shows(text[pieces[start][0] : pieces[k][1]])), len(pieces) - 1)
    return pieces[start][0], pieces[end][1]


Piece = tuple[str, bool]  # a stretch of text, and whether it is evidence


def excerpt(text: str, spans: list[Span], around: int = 150, near: float = 0.0) -> list[Piece]:
    """The first evidence with a line of text around it, as stretches that are marked or not; what is left out at an
    end is an ellipsis. Without evidence: the beginning, or the end where ``near`` is 1."""
    if spans:
        low = max(0, spans[0][0] - around)
        high = min(len(text), max(spans[0][1], low + 2 * around) + around)
    else:
        low = int(near * max(0, len(text) - 3 * around))
        high = min(len(text), low + 3 * around)
    low, high = _at_word(text, low, -1), _at_word(text, high, 1)
    inside = [(max(a, low), min(b, high)) for a, b in spans if a < high and b > low]
    parts: list[Piece] = [("… ", False)] if low > 0 else []
    at = low
    for a, b in inside:
        if a < at:
            continue
        parts += [(text[at:a], False), (text[a:b], True)]
        at = b
    parts += [(text[at:high], False), *([(" …", False)] if high < len(text) else [])]
    return [(part, marked) for part, marked in parts if part]


def _at_word(text: str, at: int, step: int) -> int:
    """The nearest end of a word, at most 20 characters on."""
    for i in range(20):
        here = at + step * i
        if here <= 0 or here >= len(text):
            return max(0, min(len(text), here))
        if text[here - 1 if step < 0 else here].isspace():
            return here
    return at
