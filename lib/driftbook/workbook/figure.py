"""A figure: a finding as title, the picture, how it was made, its words for those who cannot see it, its data.

In JupyterLab a figure shows itself through plotly; headless (the environment holds ``DRIFTBOOK_RUN_DIR``) it becomes a
small HTML fragment with a static picture, and the plotly specification as data that the report's script brings to life.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftbook.prompts import SIDES
from driftbook.workbook.packing import csv_text, escape, pack, script_json
from driftbook.workbook.static import picture
from driftbook.workbook.tables import html_table, with_names
from driftbook.workbook.theme import asset, lab_template, style, theme
from driftbook.workbook.wording import by_name, plain, shorten, unmarked

INLINE_LIMIT = 48_000  # characters of one data block in a cell's output; longer ones go to a file beside the notebook
TABLE_ROWS = 200
CSV_LIMIT = 400_000
SVG_POINTS = 5_000


@dataclass
class View:
    """A picture with a script of its own: which one (``trace`` or ``map``) and its data, already packed by name."""

    kind: str
    blocks: dict[str, str]
    """Name of the block to gzip+base64 text."""
    settings: dict[str, Any]


@dataclass
class Figure:
    """A picture that can stand in a report.

    ``title`` says what was found; ``caption`` n, method and seed; ``alt`` is text made from the data; ``table`` holds
    the data behind the picture. ``choices`` names alternatives that share one picture (a trace belongs to choice i when
    its ``meta`` is ``{"choice": i}``). ``best`` marks the picture that the experiment's front page shows for this
    stage.
    """

    plotly: go.Figure
    title: str
    caption: str
    alt: str
    table: pd.DataFrame | None = None
    choices: tuple[str, ...] = ()
    choice_label: str = "Show"
    best: bool = False
    view: View | None = None

    def named(self, names: tuple[str, str]) -> Figure:
        """The same with the models' names in legends and data, where it says base and intervention."""
        said = dict(zip(SIDES, names, strict=True))
        drawn = go.Figure(self.plotly)
        for trace in drawn.data:
            if trace.name in said:
                trace.name = plain(shorten(said[trace.name], 48))
        for axis in (drawn.layout.xaxis, drawn.layout.yaxis):
            if axis.title.text:
                axis.title.text = plain(by_name(unmarked(axis.title.text), names))
        table = None if self.table is None else with_names(self.table, names)
        view = None if self.view is None else replace(self.view, settings=self.view.settings | {"names": said})
        title, caption = by_name(self.title, names), by_name(self.caption, names)
        return replace(self, plotly=drawn, title=title, caption=caption, table=table, view=view)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        run_dir = os.environ.get("DRIFTBOOK_RUN_DIR")
        if run_dir:
            metadata = {"driftbook": {"figure": self.title, "best": self.best}}
            return {"text/html": self.html(Path(run_dir)), "text/plain": self.title}, metadata
        if self.view is not None and self.view.kind == "trace":
            return {"text/html": self._lab_html(), "text/plain": self.title}, {}
        return {"application/vnd.plotly.v1+json": self._lab_spec(), "text/plain": self.title}, {}

    def _lab_html(self) -> str:
        """The explorer of a trace as the output of a cell: its script comes along."""
        scripts = "".join(f"<script>{asset(name)}</script>" for name in ("core.js", "trace.js"))
        return (
            f"<style>{style(page=False)}</style>{self.html()}"
            f'<script type="application/json" class="db-theme">{script_json(theme())}</script>{scripts}'
            "<script>window.driftbook.start(document);</script>"
        )

    def _lab_spec(self) -> dict[str, Any]:
        figure = go.Figure(self.plotly)
        figure.update_layout(
            template=lab_template(), title_text=plain(self.title), margin_t=56 if not self.choices else 90
        )
        if self.choices:
            owner = [_choice(trace) for trace in figure.data]
            buttons = [
                {"label": plain(name), "method": "update", "args": [{"visible": [c in (None, i) for c in owner]}]}
                for i, name in enumerate(self.choices)
            ]
            figure.update_layout(
                updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12, "yanchor": "bottom"}]
            )
        spec = json.loads(figure.to_json(validate=False))
        # Named one by one: plotly's own set holds a button that sends the chart to a server.
        buttons = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]]
        spec["config"] = {"responsive": True, "displaylogo": False, "modeBarButtons": buttons}
        return spec

    def html(self, run_dir: Path | None = None) -> str:
        """The fragment for a report. Data blocks above 48 kB are written to ``run_dir/figures`` when it is given, so
        that the executed notebook stays small; the report puts them back.
        """
        gl = any(trace.type == "scattergl" for trace in self.plotly.data)
        kind = self.view.kind if self.view else "gl" if gl else "plot"
        blocks = self._blocks()
        scripts = "".join(_block_html(name, data, packed, run_dir) for name, (data, packed) in blocks.items())
        flag = ' data-best="1"' if self.best else ""
        return (
            f'<figure class="db-figure" data-kind="{kind}"{flag}><p class="db-figure-title">{escape(self.title)}</p>'
            f'<div class="db-controls"></div>'
            f'<div class="db-static" role="img" aria-label="{escape(self.alt)}">{self.static()}</div>'
            f'<div class="db-live" hidden></div><figcaption>{escape(self.caption)}</figcaption>'
            f"{self._table_html(run_dir)}{scripts}</figure>"
        )

    def static(self) -> str:
        """The picture as inline SVG, of the first choice where there are several."""
        shown = self.plotly
        if self.choices:
            shown = go.Figure([t for t in shown.data if _choice(t) in (None, 0)], shown.layout)
            for trace in shown.data:
                trace.visible = True
        return picture(shown)

    def _blocks(self) -> dict[str, tuple[str, bool]]:
        """Name to (text, whether it is packed)."""
        settings: dict[str, Any] = {"alt": self.alt, "choices": list(self.choices), "choiceLabel": self.choice_label}
        if self.view is not None:
            blocks = {"settings": (script_json(settings | self.view.settings), False)}
            return blocks | {name: (data, True) for name, data in self.view.blocks.items()}
        spec = json.loads(self.plotly.to_json(validate=False))
        spec["layout"].pop("template", None)  # the page brings its own, one for light and one for dark
        return {
            "settings": (script_json(settings), False),
            "spec": (script_json({"data": spec["data"], "layout": spec["layout"]}), False),
        }

    def _table_html(self, run_dir: Path | None) -> str:
        if self.table is None or not len(self.table.columns):
            return ""
        rows = len(self.table)
        shown = f", the first {TABLE_ROWS} shown" if rows > TABLE_ROWS else ""
        csv = csv_text(self.table)
        note = ""
        if len(csv) > CSV_LIMIT:
            csv = csv[: csv.rindex("\n", 0, CSV_LIMIT) + 1]
            kept = csv.count("\n") - 1
            note = f"<p>The download holds the first {kept:,} rows; all are in the stage's data folder.</p>"
        return (
            f'<details class="db-data"><summary>Data: {rows:,} row{"" if rows == 1 else "s"}{shown}</summary>'
            f"{html_table(self.table, caption=self.title, max_rows=TABLE_ROWS)}{note}"
            f'<button type="button" class="db-csv" hidden>Download CSV</button>'
            f"{_block_html('csv', csv, False, run_dir)}</details>"
        )


def _block_html(name: str, text: str, packed: bool, run_dir: Path | None) -> str:
    """One data block of a fragment. What is longer than 4,000 characters is packed; what is still long goes to a
    file.
    """
    if name == "csv" and not packed and len(text) <= 4_000:
        text = script_json(text)
    if not packed and len(text) > 4_000:
        text, packed = pack(text), True
    attributes = f'class="db-block" data-name="{escape(name)}"' + (' data-packed="gzip"' if packed else "")
    if packed and run_dir is not None and len(text) > INLINE_LIMIT:
        file = Path("figures") / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.b64"
        (run_dir / "figures").mkdir(parents=True, exist_ok=True)
        (run_dir / file).write_text(text)
        return f'<script type="application/json" {attributes} data-file="{file.as_posix()}"></script>'
    return f'<script type="application/json" {attributes}>{text}</script>'


def _choice(trace: Any) -> int | None:
    return trace.meta.get("choice") if isinstance(trace.meta, dict) else None


def chart(traces: Sequence[Any], *, height: int, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> go.Figure:
    """A plotly figure with the look of reports. Its legend stands above and takes nothing from the picture's height."""
    figure = go.Figure(list(traces))
    rows = _legend_rows(figure) if layout.get("showlegend") is not False else 0
    if rows > 1:
        layout["margin"] = {"t": 34 + 25 * rows}
    figure.update_layout(
        template=lab_template(),
        height=round(height + 25 * max(rows - 1, 0)),
        xaxis=x,
        yaxis=y,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        **layout,
    )
    return figure


def _legend_rows(figure: go.Figure) -> int:
    """Rows that plotly needs for the legend at the width of a report: it makes every entry as wide as the widest."""
    names = [unmarked(trace.name) for trace in figure.data if trace.name and trace.showlegend is not False]
    if len(names) < 2:
        return 0
    columns = max(1, int(850 / (max(map(len, names)) * 7.2 + 45)))
    return -(-len(names) // columns)


def floats(values: Any) -> np.ndarray:
    """float32 in one piece: plotly packs it, and half of float64 is enough for a picture. What is larger than float32
    can hold is drawn as the largest that it can."""
    most = float(np.finfo(np.float32).max)
    return np.ascontiguousarray(np.clip(np.asarray(values, dtype=np.float64), -most, most), dtype=np.float32)


def same_length(**arrays: Any) -> None:
    """Raise ``ValueError`` unless all arrays that are given have one length."""
    lengths = {name: len(values) for name, values in arrays.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays of one figure must have one length, got {lengths}")


def reference_line(side: str, value: float) -> dict[str, Any]:
    """A dashed line across the picture at ``value`` of the x or y axis."""
    other = "y" if side == "x" else "x"
    line = {"color": theme()["light"]["muted"], "width": 1, "dash": "dash"}
    return {
        "type": "line",
        f"{side}0": value,
        f"{side}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": f"{other} domain",
        "line": line,
    }
