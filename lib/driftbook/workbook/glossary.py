"""The words of reports and what they mean: one table, which people read as it stands and pages explain words from."""

from __future__ import annotations

import re
from functools import cache
from html import unescape

from driftbook.workbook.theme import asset


@cache
def _rows() -> list[tuple[list[str], str, list[str]]]:
    """The table: words, meaning in plain text, words that are explained in running text."""
    found = []
    for line in asset("glossary.md").splitlines():
        cells = [c.strip().replace("\\|", "|").replace("*", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] != "word" and not cells[0].startswith("---"):
            words = [[w.strip() for w in cell.split(",") if w.strip()] for cell in (cells[0], cells[2])]
            found.append((words[0], cells[1], words[1]))
    return found


@cache
def terms() -> dict[str, str]:
    """Word on pages to its meaning, in plain text; longer ones first, so that they are found first."""
    found = {word: meaning for _, meaning, words in _rows() for word in words}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def terms_in(html: str) -> dict[str, str]:
    """Those terms that the text of a page uses."""
    text = unescape(re.sub(r"<script\b.*?</script>|<[^>]*>", " ", html, flags=re.S))
    return {w: m for w, m in terms().items() if re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text, re.I)}


def headings_in(html: str) -> dict[str, str]:
    """Headings of a page's tables, as they stand, to their meaning: any word of the glossary, however it is joined
    (``e value``, ``e-value``)."""
    known = {_joined(word): meaning for words, meaning, shown in _rows() for word in (*words, *shown)}
    found = re.findall(r"<th\b[^>]*>(.*?)</th>", html, re.S)
    heads = {unescape(re.sub(r"<[^>]*>", "", head)).strip() for head in found}
    return {head: known[_joined(head)] for head in sorted(heads) if _joined(head) in known}


def _joined(word: str) -> str:
    return re.sub(r"[\s_-]+", " ", word).lower()
