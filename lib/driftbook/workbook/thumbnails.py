"""A figure as small as a stamp, for the list of all experiments: its lines, points and bars without words."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np

from driftbook.workbook.packing import unpack
from driftbook.workbook.theme import theme

WIDTH, HEIGHT = 96, 40
LARGEST = 1_000  # characters; five hundred of them have to fit into a page
MOST_TRACES, MOST_POINTS = 5, 16
_SPEC = re.compile(
    r'<script type="application/json" class="db-block" data-name="spec"( data-packed="gzip")?[^>]*>([^<]*)</script>'
)


def thumbnail(figures: tuple[str, ...]) -> str:
    """The first of the figures (HTML fragments) that can be drawn small, as SVG; empty where none can."""
    for figure in figures:
        found = _SPEC.search(figure)
        if found:
            text = unpack(found[2]).decode() if found[1] else found[2]
            spec = json.loads(text)
            drawn = _drawn(spec["data"], *(_is_log(spec["layout"], side) for side in ("x", "y")))
            if drawn and len(drawn) <= LARGEST:
                return drawn
    return ""


def _is_log(layout: dict[str, Any], side: str) -> bool:
    return (layout.get(f"{side}axis") or {}).get("type") == "log"


def _drawn(data: list[dict[str, Any]], log_x: bool, log_y: bool) -> str:
    traces = [t for t in data if t.get("visible", True) is True and t.get("type", "scatter") in ("scatter", "bar")]
    shown = [(t, _numbers(t.get("x"), log_x), _numbers(t.get("y"), log_y)) for t in traces]
    shown = [(t, x, y) for t, x, y in shown if len(x) == len(y) and t.get("line", {}).get("width") != 0]
    shown = [(t, x, y) for t, x, y in shown if np.isfinite(x + y).any()]
    if not shown:
        return ""
    # Bars and intervals reach further than their ends; the picture takes in what the points take.
    spans = [np.concatenate([c[i][np.isfinite(c[1] + c[2])] for c in shown]) for i in (1, 2)]
    if any(t.get("type") == "bar" for t, *_ in shown):
        side = 0 if shown[0][0].get("orientation") == "h" else 1
        spans[side] = np.append(spans[side], 0.0)
    paths = [_path(t, x, y, spans, index) for index, (t, x, y) in enumerate(shown[:MOST_TRACES])]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} aria-hidden="true">{"".join(paths)}</svg>'


def _path(trace: dict[str, Any], x: np.ndarray, y: np.ndarray, spans: list[np.ndarray], index: int) -> str:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    px = _scaled(x[chosen], spans[0], 4, WIDTH - 4)
    # A forest plot has its first row on top, other charts their smallest value at the bottom.
    upward = trace.get("error_x") is None and trace.get("orientation") != "h"
    py = _scaled(y[chosen], spans[1], *((HEIGHT - 4, 4) if upward else (4, HEIGHT - 4)))
    hue = str((trace.get("marker") or {}).get("color") or (trace.get("line") or {}).get("color") or "").lower()
    palette = theme()["light"]["palette"]
    number = palette.index(hue) if hue in palette else index % len(palette)
    width = 2
    if trace.get("type") == "bar":
        flat = trace.get("orientation") == "h"
        zero = _scaled(np.zeros(1), spans[0 if flat else 1], *((4, WIDTH - 4) if flat else (HEIGHT - 4, 4)))[0]
        known = [(a, b) for a, b in zip(px, py, strict=True) if None not in (a, b)]
        path = "".join(f"M{zero} {b}H{a}" if flat else f"M{a} {zero}V{b}" for a, b in known)
        width = 3
    elif "lines" in str(trace.get("mode", "lines")):
        path, pen = "", "M"
        for a, b in zip(px, py, strict=True):
            path += "" if a is None or b is None else f"{pen}{a} {b}"
            pen = "M" if a is None or b is None else "L"
    else:
        path = "".join(f"M{a} {b}h0" for a, b in zip(px, py, strict=True) if None not in (a, b))
        width = 4
    cap = ' stroke-linecap="round"' if width == 4 else ""
    return f'<path d="{path}" fill="none" stroke-width="{width}"{cap} style="stroke:var(--db-c{number})"/>'


def _scaled(values: np.ndarray, span: np.ndarray, start: float, end: float) -> list[int | None]:
    """Pixels of values on ``span``; None where a value is missing."""
    low, high = float(span.min()), float(span.max())
    share = (values - low) / (high - low) if high > low else np.where(np.isfinite(values), 0.5, np.nan)
    return [round(start + s * (end - start)) if np.isfinite(s) else None for s in share.tolist()]


def _numbers(column: Any, log: bool) -> np.ndarray:
    """A column of a plotly trace as floats: a list, or packed bytes; places in order where it holds names."""
    if isinstance(column, dict):
        values = np.frombuffer(base64.b64decode(column["bdata"]), column["dtype"]).astype(np.float64)
        return np.log10(np.maximum(values, 1e-30)) if log else values
    values = list(column or [])
    if any(isinstance(v, str) for v in values):
        order = {v: i for i, v in enumerate(dict.fromkeys(values))}
        return np.array([order[v] for v in values], dtype=np.float64)
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
