"""Tables of reports: escaped, sortable in the page, aligned by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from driftbook.numbers import e_value, number, p_value
from driftbook.prompts import SIDES
from driftbook.workbook.packing import escape
from driftbook.workbook.wording import by_name

LONGEST = 400  # characters of a cell that are shown
MOST_ROWS = 100


@dataclass
class Table:
    """A table that shows itself with title and caption, escaped; in a report its columns sort by a click or the Enter
    key.
    """

    frame: pd.DataFrame
    title: str
    caption: str = ""
    columns: Sequence[str] | None = None
    max_rows: int | None = None
    fold: str = ""
    """Where given, the table is folded away under this line."""

    def named(self, names: tuple[str, str]) -> Table:
        """The same with the models' names, where columns and cells say base and intervention."""
        columns = None if self.columns is None else [_heading_of(c, names) for c in self.columns]
        title, caption = by_name(self.title, names), by_name(self.caption, names)
        return replace(self, frame=with_names(self.frame, names), title=title, caption=caption, columns=columns)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"text/html": self.html(), "text/plain": f"{self.title}\n{self.frame.head(MOST_ROWS).to_string()}"}, {}

    def html(self) -> str:
        rows = MOST_ROWS if self.max_rows is None else self.max_rows
        more = f" The first {rows:,} of {len(self.frame):,} rows." if len(self.frame) > rows else ""
        caption = (
            f'<p class="db-table-caption">{escape((self.caption + more).strip())}</p>' if self.caption or more else ""
        )
        table = html_table(self.frame, caption=self.title, max_rows=rows, columns=self.columns)
        if self.fold:
            return f'<details class="db-data"><summary>{escape(self.fold)}</summary>{table}{caption}</details>'
        title = f'<p class="db-figure-title">{escape(self.title)}</p>'
        return f'<div class="db-table-block">{title}{table}{caption}</div>'


def html_table(
    frame: pd.DataFrame, *, caption: str, max_rows: int | None = None, columns: Sequence[str] | None = None
) -> str:
    """A table in a scrolling region that the keyboard reaches. ``caption`` names it for screen readers. Cells are
    escaped.
    """
    shown = frame if columns is None else frame[list(columns)]
    shown = shown if max_rows is None else shown.head(max_rows)
    kinds = ["n" if shown[name].dtype.kind in "iuf" else _text_kind(shown[name]) for name in shown.columns]
    written = [_WRITTEN.get(str(name), number) for name in shown.columns]
    head = "".join(
        f'<th scope="col" class="{k}">{escape(_heading(c))}</th>' for c, k in zip(shown.columns, kinds, strict=True)
    )
    rows = []
    for values in shown.itertuples(index=False, name=None):
        cells = "".join(_cell(v, k, w) for v, k, w in zip(values, kinds, written, strict=True))
        rows.append(f"<tr>{cells}</tr>")
    label = escape(f"Table: {caption}")
    return (
        f'<div class="db-scroll" role="region" tabindex="0" aria-label="{label}"><table class="db-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def with_names(frame: pd.DataFrame, names: tuple[str, str]) -> pd.DataFrame:
    """A table in which base and intervention, in headings and in cells that name a side, are the models' names."""
    said = dict(zip(SIDES, names, strict=True))
    shown = frame.rename(columns={c: _heading_of(c, names) for c in frame.columns})
    for column in ("side", "direction", "group"):
        if column in shown and shown[column].isin(SIDES).any():
            shown[column] = shown[column].map(lambda v: said.get(v, v))
    return shown


def _heading_of(column: Any, names: tuple[str, str]) -> Any:
    """A heading such as ``share_base`` with the name of the model: "share, Llama"."""
    parts = str(column).split("_")
    at = next((i for i, part in enumerate(parts) if part in SIDES), None)
    if at is None or len(parts) > 3:
        return column
    rest = " ".join(parts[:at] + parts[at + 1 :])
    name = names[SIDES.index(parts[at])]
    return f"{rest}, {name}" if rest else name


def _heading(name: object) -> str:
    return str(name).replace("_", " ")


def _text_kind(column: pd.Series) -> str:
    """Columns of sentences get room to be read: in a crowded table, a browser would make them as narrow as a word."""
    longest = max((len(str(v)) for v in column if not _is_hash(str(v))), default=0)
    return "t wide" if longest > 60 else "t mid" if longest > 24 else "t"


def _is_hash(text: str) -> bool:
    return len(text) >= 40 and all(c in "0123456789abcdef" for c in text)


_WRITTEN = {
    **dict.fromkeys(("p", "q", "p_value", "q_value", "p_screen"), p_value),
    **dict.fromkeys(("e", "e_value", "e-value"), e_value),
}


def _cell(value: Any, kind: str, written: Callable[[float], str]) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return f'<td class="{kind}"><span class="db-none">–</span></td>'
    if isinstance(value, bool | np.bool_):
        return f'<td class="{kind}">{"yes" if value else "no"}</td>'
    if kind == "n":
        text = f"{int(value):,}" if isinstance(value, int | np.integer) else written(float(value))
        return f'<td class="n" data-v="{float(value):.6g}">{escape(text)}</td>'
    if isinstance(value, list | tuple | np.ndarray):
        value = ", ".join(str(v) for v in value)
    text = str(value)
    if _is_hash(text):
        return f'<td class="{kind}"><code title="{text}">{text[:12]}</code></td>'
    return f'<td class="{kind}">{escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")}</td>'
