"""Segments: the sentences and list items that answers are made of, each with its place in the answer.

What answers are about is most of what an embedder sees of a whole answer, and it is the same on both sides; how they
open, close, list and refuse stands in single sentences. The splitter is that of the behaviours, so an opener here is
what a measure calls the first sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from driftbook.behaviours.words import UNSPACED_LETTER, located

Place = Literal["opener", "closer", "list item", "heading", "body"]
PLACES: tuple[Place, ...] = get_args(Place)
COLUMNS = ("text_id", "segment", "place", "start", "end", "said")
LONGEST = 1000  # characters of a segment, of scripts without spaces a quarter: what embedders read whole


def segments(text_ids: Sequence[str], texts: Sequence[str], most: int | None = None) -> pd.DataFrame:
    """One row a segment, in the order of the texts: text_id, segment (its number in the answer), place, start, end
    (``text[start:end]``), said (the sentence without the marks of lists and headings, its white space joined).

    The first sentence is the opener, the last of several the closer, whatever their marks; but an answer whose last
    sentence breaks off at a letter, a digit or a comma was most likely cut off, and has no closer. Blocks of code are
    left out, and what holds no letter or digit. A sentence longer than ``LONGEST`` is cut at spaces. With ``most``, an
    answer keeps its opener and its last segment, and of the others those that come first by a hash of the answer and
    their place in it: a draw that depends on nothing but the text.
    """
    rows = []
    for name, text in zip(text_ids, texts, strict=True):
        own = [(*cut, kind) for start, end, kind, _ in located(text) for cut in _cut(text, start, end)]
        own = [part for part in own if any(map(str.isalnum, text[part[0] : part[1]]))]
        kept = range(len(own)) if most is None or len(own) <= most else _drawn(text, len(own), most)
        for i in kept:
            start, end, kind = own[i]
            closes = i == len(own) - 1 and not (kind == "prose" and _breaks_off(text))
            ends = "opener" if i == 0 else "closer" if closes else None
            place = ends or ("body" if kind == "prose" else kind)
            rows.append((name, i, place, start, end, " ".join(text[start:end].split())))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"segment": np.int32, "start": np.int32, "end": np.int32})


def _breaks_off(text: str) -> bool:
    end = text.rstrip()[-1:]
    return end.isalnum() or end in ",-–—("


def _drawn(text: str, count: int, most: int) -> list[int]:
    salt = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    rank = {i: hashlib.sha256(salt + i.to_bytes(4, "big")).digest() for i in range(1, count - 1)}
    inner = sorted(rank, key=rank.__getitem__)[: max(0, most - 2)]
    return sorted({0, count - 1, *inner})[: max(1, most)]


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of a sentence begin and end."""
    most = LONGEST // 4 if UNSPACED_LETTER.search(text, start, end) else LONGEST
    while end - start > most:
        space = text.rfind(" ", start + 1, start + most)
        stop = space if space > 0 else start + most
        yield start, stop
        start = stop + (space > 0)
    yield start, end


def distinct(said: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(the distinct sentences in order of their text, index of each in them ``[segments]``)."""
    # numpy's own strings would all be as wide as the longest
    index, found = pd.factorize(np.asarray(said, dtype=object), sort=True)
    return found.tolist(), index
