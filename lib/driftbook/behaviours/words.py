"""Words and sentences of a text by Unicode rules, the one tokenizer of every behaviour.

A word is a run of letters, marks and digits (Unicode Standard Annex 29, with abbreviations such as ``e.g.`` as one
word and hyphens between two); scripts that write no spaces give one word a character, as the annex does without a
dictionary, and measures that need real words decline there. A sentence ends at an end mark, at the end of a line, list
item or heading; a fenced block of code is no sentence. (pysbd 0.3.4 and syntok 1.4.4 take 120 and 20 times as long an
answer, in their English settings find no end in Hindi and Arabic, and syntok joins the items of a list.)
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々〆"
WORD_CHARACTERS = r"\p{L}\p{M}\p{N}_\u200c\u200d"  # with the joiners of Persian and Indic words

Kind = Literal["prose", "list item", "heading"]

_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
_QUOTES = str.maketrans({c: "'" for c in "’‘ʼ＇´"} | {c: '"' for c in "“”„«»"} | {"\u00ad": None, "\ufeff": None})
WORD = (  # of version 1 of the regex package
    rf"(?:\p{{L}}\.){{2,}}|[{UNSPACED}]\p{{M}}*"
    rf"|[\p{{L}}\p{{N}}_--[{UNSPACED}]][{WORD_CHARACTERS}--[{UNSPACED}]]*"
    rf"(?:(?:'(?=\p{{L}})|(?<=\d)[.,](?=\d))[{WORD_CHARACTERS}--[{UNSPACED}]]+)*"
)
_WORD = regex.compile(f"(?V1){WORD}")
# The same over ASCII, which most answers are: Python's own engine is twice as fast there.
_ASCII_WORD = re.compile(r"(?:[a-z]\.){2,}|\w+(?:(?:'(?=[a-z])|(?<=\d)[.,](?=\d))\w+)*", re.ASCII)
UNSPACED_LETTER = regex.compile(rf"[{UNSPACED}]")
_LETTERS = re.compile(r"[^\W\d_]+")
_LETTER = regex.compile(r"\p{L}")
_FOREIGN = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")

FENCE = regex.compile(r"(?m)^[ \t]*(```+|~~~+)[^\n]*\n(?:.*?)(?:^[ \t]*\1[ \t]*$|\Z)", regex.DOTALL)
_MARKER = regex.compile(r"^\s*(?:(?:[-*+•‣◦▪●–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|#{1,6}|>)\s+)*")
_RULE = regex.compile(r"^[\s\-=_*|:+]*$")
_END = regex.compile(r"""[.!?…]+["'”’)\]*_]*(?=\s)|[。！？｡।॥؟۔።៕]+["'”’)\]」』】]*""")
_ABBREVIATION = regex.compile(
    r"(?i)(?:^|[\s(\[\"'“*])"
    r"(?:mr|mrs|ms|dr|prof|st|vs|no|fig|al|jr|sr|cf|approx|gen|col|rev|e\.g|i\.e|p\.s|\p{L})\.$"
)

# Words that English has and its neighbours in the Latin alphabet have not.
ENGLISH = frozenset(
    {"the", "and", "to", "of", "that", "with", "for", "you", "your", "this", "are", "from", "have", "not", "by", "be"}
    | {"it", "as", "can", "is", "they", "their", "there", "which", "will", "would", "should", "what", "how", "when"}
    | {"i'm", "it's", "don't", "its", "i", "my", "we"}
)
LEAST_WORDS = 20  # different ones of a Latin text, below which its language is not asked for
CLEARLY_ENGLISH = 0.2  # share of the words above which nothing else need be asked


def stream_safe(text: str) -> str:
    """At most 30 combining marks in a row (Unicode Standard Annex 15), so that normalization stays linear."""
    return text if text.isascii() else _MARKS.sub(r"\1", text)


def fold(text: str) -> str:
    """Text as it is compared: NFKC, straight apostrophes and quotation marks, case folded."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", stream_safe(text).translate(_QUOTES)).casefold()


class Reading:
    """What the measures read of one answer, each part made once."""

    def __init__(self, text: str, prompt: str = "") -> None:
        self.text = stream_safe(text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n"))
        self.prompt = prompt

    @cached_property
    def folded(self) -> str:
        return fold(self.text)

    @cached_property
    def words(self) -> list[str]:
        return tokens(self.folded)

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def prompt_words(self) -> list[str]:
        return words(self.prompt)

    @cached_property
    def prose(self) -> str:
        """The text without fenced blocks of code."""
        return FENCE.sub("\n\n", self.text) if "```" in self.text or "~~~" in self.text else self.text

    @cached_property
    def prose_words(self) -> list[str]:
        return self.words if self.prose is self.text else words(self.prose)

    @cached_property
    def letters(self) -> int:
        """Number of letters of the prose, combining marks not counted."""
        return sum(map(len, _LETTERS.findall(self.prose)))

    @cached_property
    def sentences(self) -> list[str]:
        return [line.text[a:b] for line in _lines(self.prose) for a, b in _split(line.text)]

    @cached_property
    def opening(self) -> str:
        """First sentence, folded."""
        return fold(self.sentences[0]) if self.sentences else ""

    @cached_property
    def closing(self) -> str:
        """Last sentence, folded."""
        return fold(self.sentences[-1]) if self.sentences else ""

    @cached_property
    def ending(self) -> str:
        """Last two sentences, folded: a farewell often takes two."""
        return fold(" ".join(self.sentences[-2:]))

    @cached_property
    def last_paragraph(self) -> str:
        """What stands after the last blank line, folded."""
        return fold(self.text.rstrip().rpartition("\n\n")[2])

    @cached_property
    def tail(self) -> str:
        """The last 200 characters as written, where patterns of the very end are looked for."""
        return self.text[-200:]

    @cached_property
    def spaced(self) -> bool:
        """Whether its words can be told: at most a tenth of its letters are of scripts that write no spaces."""
        unspaced = 0 if self.text.isascii() else len(UNSPACED_LETTER.findall(self.text))
        return not unspaced or 10 * unspaced <= len(_LETTER.findall(self.text))

    @cached_property
    def latin(self) -> bool:
        """Whether at least half of its letters are Latin, or it has none."""
        foreign = 0 if self.text.isascii() else len(_FOREIGN.findall(self.prose))
        return not foreign or 2 * foreign <= len(_LETTER.findall(self.prose))

    @cached_property
    def english(self) -> bool:
        """False where the text is known to be in another language.

        By script first; of Latin texts of 20 different words and more, by the share of English function words, and
        where that is low by py3langid (Lui and Baldwin 2012). Shorter Latin texts count as English.
        """
        if not self.latin:
            return False
        prose = self.prose_words
        if sum(w in ENGLISH for w in prose) >= CLEARLY_ENGLISH * len(prose):
            return True
        if len({w for w in prose if w.isalpha()}) < LEAST_WORDS:
            return True
        return _language(" ".join(prose[:150])) == "en"


@lru_cache(maxsize=64)
def reading(text: str, prompt: str = "") -> Reading:
    """The reading of an answer, shared by measures that follow each other on one text."""
    return Reading(text, prompt)


def words(text: str) -> list[str]:
    """Words in order, folded: ``"It’s e.g. 3.5 cats"`` gives ``it's``, ``e.g.``, ``3.5``, ``cats``."""
    return tokens(fold(text))


def tokens(folded: str) -> list[str]:
    """Words of a text that is folded already."""
    if not folded.isascii():
        folded = folded.replace("—", " ").replace("–", " ").replace("•", " ")
    return (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)


def unspaced(word: str) -> bool:
    """Whether a word is of a script that writes no spaces, and so is one character."""
    return UNSPACED_LETTER.match(word) is not None


def sentences(text: str) -> list[str]:
    """Sentences in order, as written, without the marks of lists and headings."""
    return reading(text).sentences


def opening(text: str) -> str:
    """First sentence as written, "" where there is none."""
    return next(iter(sentences(text)), "")


def closing(text: str) -> str:
    """Last sentence as written, "" where there is none."""
    found = sentences(text)
    return found[-1] if found else ""


def _language(text: str) -> str:
    import py3langid  # reads 4 MB, needed by few texts

    return py3langid.classify(text)[0]


class Line(NamedTuple):
    """A line without its mark, what it is by its mark, and ``(place in it, offset in the text)`` of each piece that was
    joined."""

    text: str
    kind: Kind
    pieces: list[tuple[int, int]]

    def offset(self, place: int) -> int:
        """Where in the text the character at ``place`` of the line stands."""
        at, begins = next(p for p in reversed(self.pieces) if p[0] <= place)
        return begins + place - at


def located(text: str) -> list[tuple[int, int, Kind, str]]:
    """``(start, end, kind, sentence)`` of every sentence in order: ``text[start:end]`` is the sentence but for the
    white space where lines were joined. Blocks of code are left out."""
    even = text.replace("\r\n", " \n").replace("\u2028", "\n").replace("\u2029", "\n")
    if "```" in even or "~~~" in even:
        even = FENCE.sub(lambda found: "\n" * len(found[0]), even)
    found = []
    for line in _lines(even):
        for start, end in _split(line.text):
            found.append((line.offset(start), line.offset(end - 1) + 1, line.kind, line.text[start:end]))
    return found


def _lines(text: str) -> list[Line]:
    """Lines without their marks; a line that goes on in lower case belongs to the one before it."""
    lines: list[Line] = []
    joins, begins = False, 0
    for raw in text.split("\n"):
        mark = _MARKER.match(raw).group()
        line = raw[len(mark) :].strip()
        if _RULE.match(line):
            joins = False
        else:
            at = begins + raw.index(line, len(mark))
            if joins and line[0].islower() and raw.lstrip().startswith(line):
                last = lines[-1]
                lines[-1] = Line(f"{last.text} {line}", last.kind, [*last.pieces, (len(last.text) + 1, at)])
            else:
                sign = mark.strip()
                kind: Kind = "heading" if sign.startswith("#") else "list item" if sign.strip(">") else "prose"
                lines.append(Line(line, kind, [(0, at)]))
                joins = True
        begins += len(raw) + 1
    return lines


def _split(line: str) -> list[tuple[int, int]]:
    """Where the sentences of a line begin and end."""
    found, start = [], 0
    for end in _END.finditer(line):
        after = line[end.end() :].lstrip()
        if not after:
            break
        before = line[start : end.end()]
        if end.group()[0] == "." and (after[0].islower() or _ABBREVIATION.search(before[-12:])):
            continue
        found.append((start, end.end()))
        start = end.end()
    found.append((start, len(line)))
    stripped = [(a + len(line[a:b]) - len(line[a:b].lstrip()), a + len(line[a:b].rstrip())) for a, b in found]
    return [(a, b) for a, b in stripped if a < b]
