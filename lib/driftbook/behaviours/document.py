"""The catalogue as the table of docs/behaviours.md: ``python -m driftbook.behaviours.document`` writes it anew."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from driftbook.behaviours.catalogue import panel

UNITS = {
    "share": "share of answers",
    "number": "number an answer",
    "rate": "per 100 words",
    "words": "words, median",
    "sentences": "sentences, median",
    "grade": "school grade",
    "score": "score",
}
START, END = "<!-- catalogue -->", "<!-- end of catalogue -->"


def catalogue() -> str:
    """Markdown: a heading and a table a family."""
    parts = []
    for family, measures in groupby(panel(), key=lambda m: m.family):
        rows = [f"| `{m.name}` | {_cell(m.label)} | {UNITS[m.unit]} | {_cell(m.definition)} |" for m in measures]
        parts.append("\n".join([f"### {family.capitalize()}", "", "| name | an answer ... | unit | definition |",
                                "|---|---|---|---|", *rows]))  # fmt: skip
    return "\n\n".join(parts)


def renewed(page: str) -> str:
    """The page with the catalogue between its two marks as it is now."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{catalogue()}\n\n{END}{rest.partition(END)[2]}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    path = Path("docs/behaviours.md")
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
