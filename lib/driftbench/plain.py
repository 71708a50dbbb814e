"""Plain counting: what anyone finds in two sets of answers without driftbook, as the witness of its claims.

Nothing of driftbook is used here, and nothing clever: strings, a few expressions, and a sign test over prompts. A fact
has the name of the behaviour of the panel that it stands beside, so that a claim can be held against it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

SIDES = ("base", "intervention")
POINTS = 0.10  # a share that differs by so much is there for anyone to see
PART = 0.20  # and so is a size that differs by this part
SURE = 0.001  # of the sign test, for a fact that must not be missed
HELD = 0.05  # of the sign test, for a claim to be borne out


@dataclass(frozen=True)
class Fact:
    """One plain difference: both sides (share of answers, or the median of a size), and the sign test over prompts."""

    name: str
    unit: str  # share or size
    base: float
    intervention: float
    more: int
    less: int
    p: float

    @property
    def difference(self) -> float:
        return self.intervention - self.base

    @property
    def side(self) -> str:
        """Which side shows more, by the number of prompts."""
        return "intervention" if self.more >= self.less else "base"

    @property
    def size(self) -> float:
        """Points of answers, or the part that a size changed by."""
        if self.unit == "share":
            return abs(self.difference)
        return abs(self.difference) / max(self.base, self.intervention, 1e-9)

    @property
    def sentence(self) -> str:
        """Both sides, as counted: "exclamation: 26%, was 47%"."""
        numbers = (self.intervention, self.base)
        said = [f"{n:.0%}" if self.unit == "share" else f"{n:.3g}" for n in numbers]
        return f"{self.name.replace('_', ' ')}: {said[0]}, was {said[1]}"

    @property
    def plain(self) -> bool:
        """Whether a report that does not tell it has missed something."""
        if self.p >= SURE:
            return False
        return self.size >= (POINTS if self.unit == "share" else PART)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n")]


def _starts(text: str, *beginnings: str) -> bool:
    """Whether the text begins with one of them, marks at its start aside."""
    bare = text.lower().lstrip(" \t\n\"'“*_#>-(")
    return any(bare.startswith(b) and not bare[len(b) : len(b) + 1].isalpha() for b in beginnings)


def _says(text: str, *phrases: str) -> bool:
    low = " " + re.sub(r"[^a-z0-9'.]+", " ", text.lower().replace("’", "'")) + " "
    low = re.sub(r"(?<![ieg])\.(?= )", " ", low)
    return any(f" {p} " in low for p in phrases)


def _numbered(text: str) -> bool:
    return any(re.match(r"\d{1,3}[.)]\s+\S", line) for line in _lines(text))


def _bulleted(text: str) -> bool:
    return any(len(line) > 2 and line[0] in "-*•" and line[1] in " \t" for line in _lines(text))


def _last(text: str) -> str:
    return text.rstrip().rstrip("\"'”’)]*_` \n")


def _praise(text: str) -> bool:
    first = re.sub(r"[^a-z ']", " ", text[:80].lower().replace("’", "'")).split()
    after = 2 if first[:1] and first[0] in ("what", "that's", "thats") else 1
    return first[after - 1 : after] in (["a"], ["an"]) and any(w in PRAISE for w in first[after : after + 2])


PRAISE = {
    *("great", "good", "excellent", "fascinating", "interesting", "intriguing", "wonderful", "fantastic"),
    *("delightful", "thoughtful"),
}
HEDGES = ("perhaps", "maybe", "might", "possibly", "not sure", "hard to say", "it depends", "likely")
AN_AI = re.compile(r"(?:as an?|i'?m an?|i'?m just an?) (?:ai|artificial|language|assistant)")
FIRST_PERSON = ("i", "me", "my", "i'm", "i've", "i'd", "i'll")
SECOND_PERSON = ("you", "your", "yours", "yourself", "you're", "you'll", "you've", "you'd")
REFUSALS = (
    *("i'm sorry", "i am sorry", "i apologize", "i cannot", "i can't", "i can not", "i am not able", "i'm not able"),
    *("i am unable", "i'm unable"),
)
HELP = ("let me know", "feel free to", "hope this helps", "hope that helps", "happy to help", "any other questions")
HELP = (*HELP, "any further questions", "any more questions")

SHARES: Mapping[str, Callable[[str], bool]] = {
    "bulleted_list": _bulleted,
    "numbered_list": _numbered,
    "heading": lambda t: any(re.match(r"#{1,6}\s+\S", line) for line in _lines(t)),
    "bold": lambda t: re.search(r"\*\*[^*\n]+\*\*", t) is not None,
    "code_block": lambda t: "```" in t,
    "several_paragraphs": lambda t: len([p for p in re.split(r"\n[ \t]*\n", t) if p.strip()]) > 1,
    "exclamation": lambda t: "!" in t,
    "question": lambda t: "?" in t,
    "ends_with_question": lambda t: _last(t).endswith("?"),
    "digits": lambda t: any(c.isdigit() for c in t),
    "quotation": lambda t: any(c in t for c in "\"“”"),
    "emoji": lambda t: any("\U0001f300" <= c <= "\U0001faff" or "\u2600" <= c <= "\u27bf" for c in t),
    "praises_question": _praise,
    "opens_sure": lambda t: _starts(t, "sure", "certainly", "of course", "absolutely"),
    "offers_help": lambda t: _says(t.rstrip()[-200:], *HELP),
    "refuses": lambda t: _says(t, *REFUSALS),
    "as_an_ai": lambda t: AN_AI.search(t.lower()) is not None,
    "first_person": lambda t: _says(t, *FIRST_PERSON),
    "second_person": lambda t: _says(t, *SECOND_PERSON),
    "hedges": lambda t: _says(t, *HEDGES),
    "contrast": lambda t: _says(t, "however", "but", "although", "though"),
    "summary": lambda t: _says(t, "in summary", "in conclusion", "to summarize", "overall", "ultimately"),
    "eg": lambda t: any(m in t.lower() for m in ("e.g.", "i.e.")),
    "no_end_mark": lambda t: bool(t.strip()) and t.rstrip()[-1] not in ".!?:;\"'”’)]*`|>",
}


def _sentences(text: str) -> int:
    return max(1, len(re.findall(r"[.!?]+(?=\s|$)", text)))


SIZES: Mapping[str, Callable[[str], float]] = {
    "words": lambda t: float(len(t.split())),
    "sentences": lambda t: float(_sentences(t)),
    "words_a_sentence": lambda t: len(t.split()) / _sentences(t),
    "variety": lambda t: len(set(t.lower().split()[:100])) / max(1, len(t.split()[:100])),
}


# Behaviours of the panel beside what is counted plainly: each may be told by any of them.
BESIDE: Mapping[str, tuple[str, ...]] = {
    "bulleted_list": ("has_bulleted_list", "bullets"),
    "numbered_list": ("has_numbered_list", "numbered_items"),
    "heading": ("has_heading", "headings"),
    "bold": ("has_bold", "bold_phrases"),
    "code_block": ("has_code_block",),
    "several_paragraphs": ("has_paragraphs", "paragraphs"),
    "exclamation": ("exclaims", "exclamation_marks"),
    "question": ("asks", "question_marks"),
    "ends_with_question": ("ends_with_question",),
    "digits": ("has_digits", "numbers"),
    "quotation": ("has_quotes", "quotations"),
    "emoji": ("has_emoji", "emojis"),
    "praises_question": ("praises_question",),
    "opens_sure": ("opens_with_sure",),
    "offers_help": ("offers_more_help", "hopes_it_helps"),
    "refuses": ("refuses", "apologizes", "refuses_at_once"),
    "as_an_ai": ("speaks_as_ai", "opens_as_ai"),
    "first_person": ("says_i", "i_words"),
    "second_person": ("says_you", "you_words"),
    "hedges": ("hedges", "hedging_words"),
    "contrast": ("contrasts", "contrasting_words"),
    "summary": ("sums_up", "ends_with_summary"),
    "eg": ("eg_ie",),
    "no_end_mark": ("no_end_mark",),
    "words": ("length_words", "characters"),
    "sentences": ("length_sentences", "length_words"),
    "words_a_sentence": ("words_a_sentence",),
    "variety": ("variety",),
}
SHARES_OF = {panel[0]: name for name, panel in BESIDE.items() if name not in ("refuses", "sentences")}


def fact(name: str, unit: str, read: Callable[[str], float], table: pd.DataFrame) -> Fact:
    """Count one thing in a table of paired answers (``side``, ``prompt``, ``text``); the unit is the prompt."""
    return held(name, table["text"].map(lambda t: float(read(t))), table, unit)


def held(name: str, shown: Sequence[float], table: pd.DataFrame, unit: str = "share") -> Fact:
    """What was read in every text of a table, as a fact."""
    shown = pd.Series(np.asarray(shown, dtype=float), index=table.index)
    by = shown.groupby([table["prompt"], table["side"]]).mean().unstack("side").dropna()
    more, less = int((by["intervention"] > by["base"]).sum()), int((by["intervention"] < by["base"]).sum())
    middle = statistics.median if unit == "size" else statistics.fmean
    base, changed = (float(middle(by[side])) if len(by) else float("nan") for side in SIDES)
    p = float(binomtest(more, more + less).pvalue) if more + less else 1.0
    return Fact(name, unit, base, changed, more, less, p)


def facts(table: pd.DataFrame) -> list[Fact]:
    """Everything that is counted here, of one table of paired answers."""
    shares = [fact(name, "share", read, table) for name, read in SHARES.items()]
    return shares + [fact(name, "size", read, table) for name, read in SIZES.items()]


def _squeezed(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())


def phrase_fact(words: Sequence[str], place: str, table: pd.DataFrame) -> Fact:
    """The share of answers that hold one of some phrases, by looking for the letters alone: at the start of the answer,
    in its first or last two hundred letters, or anywhere."""
    return fact(" | ".join(words), "share", phrase_reader(words, place), table)


def phrase_reader(words: Sequence[str], place: str) -> Callable[[str], float]:
    """The reading of ``phrase_fact``."""
    wanted = [_squeezed(w) for w in words]

    def read(text: str) -> float:
        low = _squeezed(text)
        if place == "start":
            return float(any(low.lstrip("\"'“*_#>-( ").startswith(w.lstrip("\"'“*_#>-( ")) for w in wanted))
        part = {"opening": low[:200], "closing": low[-200:]}.get(place, low)
        return float(any(_holds(part, w) for w in wanted))

    return read


def occurrences(words: Sequence[str], text: str) -> int:
    """How often a text holds any of the words, letter by letter; ``/regular expressions/`` by Python's own."""
    low, count = _squeezed(text), 0
    for word in words:
        if len(word) > 2 and word[0] == word[-1] == "/":
            count += sum(1 for _ in re.finditer(word[1:-1], text, re.IGNORECASE))
        else:
            count += _times(low, _squeezed(word))
    return count


def _holds(text: str, phrase: str) -> bool:
    return _times(text, phrase) > 0


def _times(text: str, phrase: str) -> int:
    """How often the phrase stands in the text, not inside of a longer word."""
    count, at = 0, text.find(phrase)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(phrase) : at + len(phrase) + 1]
        count += not ((phrase[0].isalnum() and before.isalnum()) or (phrase[-1].isalnum() and after.isalnum()))
        at = text.find(phrase, at + 1)
    return count
