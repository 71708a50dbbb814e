"""Hypotheses about the form of answers, which no word tells: how long they are, lists, questions, other alphabets.

Each form is a regular expression that the lexicon judge counts like a word, so a claim about it is tested like any
other claim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Form(NamedTuple):
    """``says`` completes "the side ...more often"; ``word`` is the expression between slashes, as judges take it."""

    says: str
    word: str

    def holds(self, texts: Sequence[str]) -> np.ndarray:
        """Which texts have it, bool ``[texts]``."""
        pattern = re.compile(self.word[1:-1], re.IGNORECASE)
        return np.array([pattern.search(t) is not None for t in texts], dtype=bool)


FORMS = (
    Form("answers in a dozen words or fewer", r"/\A\W*(?:\w+\W+){0,11}\w*\W*\Z/"),
    Form("answers in forty words or more", r"/\A\W*(?:\w+\W+){39}\w/"),
    Form("answers in bullet points", r"/(?m:^\s*[-*•]\s)/"),
    Form("answers in numbered lists", r"/(?m:^\s*\d+[.)]\s)/"),
    Form("writes several paragraphs", r"/\S[^\S\n]*\n\s*\n\s*\S/"),
    Form("asks questions", r"/\?/"),
    Form("exclaims", r"/!/"),
    Form("gives numbers", r"/\d/"),
    Form("puts words in quotation marks", r"/[\"“][^\"“”]+[\"”]/"),
    Form("writes code", r"/```|\bdef \w+\(|\bimport \w+/"),
    Form("writes letters that English has not", r"/[à-öø-ÿ]|[^\W\d_a-z]/"),
)
