"""The words of reports and what they mean: one table, which people read as it stands and pages explain words from."""

from __future__ import annotations

import re
from functools import cache
from html import unescape

from driftbook.workbook.theme import asset


@cache
def terms() -> dict[str, str]:
    """Word on pages to its meaning, in plain text; longer ones first, so that they are found first."""
    found = {}
    for line in asset("glossary.md").splitlines():
        cells = [c.strip().replace("\\|", "|").replace("*", "") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] != "word" and not cells[0].startswith("---"):
            found |= {word.strip(): cells[1] for word in cells[2].split(",") if word.strip()}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def terms_in(html: str) -> dict[str, str]:
    """Those terms that the text of a page uses."""
    text = unescape(re.sub(r"<script\b.*?</script>|<[^>]*>", " ", html, flags=re.S))
    return {w: m for w, m in terms().items() if re.search(rf"(?<![\w-]){re.escape(w)}(?![\w-])", text, re.I)}
