"""Static pictures: plotly traces as a small inline SVG that reads on light and dark paper, without any script.

Colours are CSS variables with a fallback (``var(--db-c0, #0072b2)``), so that the page's theme reaches the picture.
Dense scatters and heat maps become an indexed PNG inside the SVG. Trace types: scatter, scattergl, bar, heatmap.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from driftbook.workbook.axes import Axis, axis_name, layout_axis, make_axis, trace_values
from driftbook.workbook.packing import escape
from driftbook.workbook.raster import dense_points, heatmap
from driftbook.workbook.theme import css_colour, theme
from driftbook.workbook.wording import unmarked

WIDTH = 900
MAX_POINTS = 600  # points of one trace that are drawn one by one; more become a raster


def picture(figure: go.Figure) -> str:
    """The figure as one inline ``<svg>``: axes, grid, shapes, traces, annotations, legend. No id, no script, no outside
    reference.

    Raises ``ValueError`` for a trace type that it cannot draw.
    """
    traces = [t for t in figure.data if t.visible in (None, True)]
    for trace in traces:
        if trace.type not in ("scatter", "scattergl", "bar", "heatmap"):
            raise ValueError(
                f"no static picture for traces of type {trace.type!r}: use scatter, scattergl, bar or heatmap"
            )
    height = int(figure.layout.height or 380)
    named = _legend_entries(figure, traces)
    legend_rows = math.ceil(sum(len(name) * 7 + 40 for name, *_ in named) / (WIDTH - 90)) if len(named) > 0 else 0
    pairs = list(dict.fromkeys((axis_name(t, "x"), axis_name(t, "y")) for t in traces)) or [("x", "y")]
    left, right = _left_margin(figure, traces), WIDTH - (64 if any(t.type == "heatmap" for t in traces) else 14)
    tilt = _tilted(figure, traces, right - left)
    top, bottom = (
        (22 if any(t.type == "heatmap" for t in traces) else 12) + 20 * legend_rows,
        height - (48 if not tilt else 48 + tilt),
    )
    if any(a.yref == "paper" and (a.y or 0) >= 1 for a in figure.layout.annotations or ()):
        top += 18
    body: list[str] = []
    boxes: dict[str, tuple[float, float]] = {}
    axes: dict[str, Axis] = {}
    for x_id, y_id in pairs:
        for name in (x_id, y_id):
            if name in axes:
                continue
            own = [t for t in traces if axis_name(t, name[0]) == name]
            domain = layout_axis(figure, name).domain or (0, 1)
            if name[0] == "x":
                ends = (left + domain[0] * (right - left), left + domain[1] * (right - left))
            else:
                ends = (bottom - domain[0] * (bottom - top), bottom - domain[1] * (bottom - top))
            boxes[name] = ends
            axes[name] = make_axis(figure, name, own, *ends)
        body.append(_frame(axes[x_id], axes[y_id], bool(tilt), multi=len(pairs) > 1))
    body.append(_shapes(figure, axes, (left, right, top, bottom)))
    bars = [t for t in traces if t.type == "bar"]
    grouped = bool(bars) and (figure.layout.barmode or "group") == "group"
    floors: dict[tuple[str, str], dict[Any, float]] = {}
    previous: tuple[np.ndarray, np.ndarray] | None = None
    for index, trace in enumerate(traces):
        pair = (axis_name(trace, "x"), axis_name(trace, "y"))
        xa, ya = axes[pair[0]], axes[pair[1]]
        if trace.type == "heatmap":
            body.append(heatmap(trace, xa, ya))
        elif trace.type == "bar":
            mates = [t for t in bars if (axis_name(t, "x"), axis_name(t, "y")) == pair]
            slot = (mates.index(trace), len(mates)) if grouped else (0, 1)
            floor = floors.setdefault(pair, {}) if figure.layout.barmode in ("stack", "relative") else {}
            body.append(_bar(trace, xa, ya, index, slot, floor))
        else:
            body.append(_scatter(trace, xa, ya, index, previous))
            previous = (xa.position(trace_values(trace, "x")), ya.position(trace_values(trace, "y")))
    body.append(_annotations(figure, axes, (left, right, top, bottom)))
    body.append(_legend(named, left))
    style = "font:12px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif;max-width:100%;height:auto"
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" style="{style}" aria-hidden="true" '
        f'focusable="false">'
        f"<style>.db-t{{fill:var(--db-muted,#57606a)}}.db-g{{stroke:var(--db-grid,#e6e8eb)}}.db-z{{stroke:var(--db-line,#d5d9de)}}</style>"
        f"{''.join(body)}</svg>"
    )


_DASHES = {"dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3"}


def _path(xs: np.ndarray, ys: np.ndarray, shape: str | None) -> str:
    parts: list[str] = []
    pen = "M"
    previous = 0.0
    for x, y in zip(xs, ys, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        if pen == "L" and shape == "hv":
            parts.append(f"L{x:.1f} {previous:.1f}")
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen, previous = "L", y
    return "".join(parts)


def _polygon(x: float, y: float, *steps: tuple[float, float]) -> str:
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in steps)


_MARKERS = {
    "circle": lambda x, y, r: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>',
    "square": lambda x, y, r: f'<path d="{_polygon(x, y, (-r, -r), (r, -r), (r, r), (-r, r))}Z"/>',
    "diamond": lambda x, y, r: (
        f'<path d="{_polygon(x, y, (0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0))}Z"/>'
    ),
    "triangle-up": lambda x, y, r: f'<path d="{_polygon(x, y, (0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r))}Z"/>',
    "x": lambda x, y, r: (
        f'<path stroke-width="2" d="{_polygon(x, y, (-r, -r), (r, r))}{_polygon(x, y, (-r, r), (r, -r))}"/>'
    ),
}


def _error_bars(trace: Any, side: str, numbers: np.ndarray, along: Axis, across: np.ndarray, colour: str) -> str:
    error = getattr(trace, f"error_{side}", None)
    if error is None or error.array is None or error.visible is False:
        return ""
    plus = np.asarray(error.array, dtype=float)
    minus = plus if error.arrayminus is None else np.asarray(error.arrayminus, dtype=float)
    lows, highs = along.position(numbers - minus), along.position(numbers + plus)
    parts = []
    for low, high, other in zip(lows, highs, across, strict=True):
        if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(other)):
            continue
        parts.append(
            f"M{low:.1f} {other:.1f}L{high:.1f} {other:.1f}"
            if side == "x"
            else f"M{other:.1f} {low:.1f}L{other:.1f} {high:.1f}"
        )
    return f'<path d="{"".join(parts)}" stroke="{colour}" stroke-width="{error.thickness or 2}" fill="none"/>'


def _scatter(trace: Any, xa: Axis, ya: Axis, index: int, previous: tuple[np.ndarray, np.ndarray] | None) -> str:
    x_values, y_values = trace_values(trace, "x"), trace_values(trace, "y")
    mode = trace.mode or "lines"
    if mode == "markers" and len(x_values) > MAX_POINTS:
        return dense_points(trace, xa, ya, index)
    xs, ys = xa.position(x_values), ya.position(y_values)
    colour = css_colour(
        trace.line.color or (trace.marker.color if isinstance(trace.marker.color, str) else None), index
    )
    parts = []
    if trace.fill in ("toself", "tonexty", "tozeroy"):
        outline_x, outline_y = xs, ys
        if trace.fill == "tonexty" and previous is not None:
            outline_x, outline_y = np.concatenate([xs, previous[0][::-1]]), np.concatenate([ys, previous[1][::-1]])
        elif trace.fill == "tozeroy":
            zero = ya.position([0.0])
            outline_x, outline_y = np.concatenate([xs[:1], xs, xs[-1:]]), np.concatenate([zero, ys, zero])
        fill = css_colour(trace.fillcolor, index) if trace.fillcolor else f"color-mix(in srgb,{colour} 20%,transparent)"
        parts.append(f'<path d="{_path(outline_x, outline_y, None)}Z" style="fill:{fill}"/>')
    width = trace.line.width if trace.line.width is not None else 2
    if "lines" in mode and width > 0:
        dash = f' stroke-dasharray="{_DASHES[trace.line.dash]}"' if trace.line.dash in _DASHES else ""
        stride = max(1, math.ceil(len(xs) / 800))
        path = _path(xs[::stride], ys[::stride], trace.line.shape)
        parts.append(
            f'<path d="{path}" style="stroke:{colour}" stroke-width="{width}" fill="none" stroke-linejoin="round"'
            f"{dash}/>"
        )
    for side, numbers, along, across in (("x", x_values, xa, ys), ("y", y_values, ya, xs)):
        if along.kind != "category" and getattr(trace, f"error_{side}", None) is not None:
            parts.append(_error_bars(trace, side, numbers.astype(float), along, across, colour))
    if "markers" in mode:
        symbol = trace.marker.symbol if isinstance(trace.marker.symbol, str) else "circle"
        draw = _MARKERS.get(symbol.removesuffix("-open"), _MARKERS["circle"])
        size = trace.marker.size if isinstance(trace.marker.size, int | float) else 7
        hollow = symbol.endswith("-open") or symbol == "x"
        colours = [colour] * len(xs)
        if trace.marker.color is not None and not isinstance(trace.marker.color, str):
            palette = [stop for _, stop in trace.marker.colorscale or ()] or None
            palette = list(dict.fromkeys(palette)) if palette else theme()["light"]["palette"]
            colours = [
                css_colour(c) if isinstance(c, str) else css_colour(palette[int(c) % len(palette)])
                for c in trace.marker.color
            ]
        points: dict[str, list[str]] = {}
        for x, y, own in zip(xs, ys, colours, strict=True):
            if math.isfinite(x) and math.isfinite(y):
                points.setdefault(own, []).append(draw(x, y, size / 2))
        for own, marks in points.items():
            style = f"fill:none;stroke:{own}" if hollow else f"fill:{own}"
            parts.append(f'<g style="{style}">{"".join(marks)}</g>')
    if "text" in mode and trace.text is not None:
        for x, y, text in zip(xs, ys, np.broadcast_to(np.asarray(trace.text, dtype=object), xs.shape), strict=True):
            if math.isfinite(x) and math.isfinite(y):
                parts.append(
                    f'<text x="{x:.1f}" y="{y - 5:.1f}" class="db-t" text-anchor="middle">'
                    f"{escape(unmarked(str(text)))}</text>"
                )
    return "".join(parts)


def _bar(trace: Any, xa: Axis, ya: Axis, index: int, slot: tuple[int, int], floor: dict[Any, float]) -> str:
    horizontal = trace.orientation == "h"
    place, length = (ya, xa) if horizontal else (xa, ya)
    at_values, values = (
        trace_values(trace, "y" if horizontal else "x"),
        trace_values(trace, "x" if horizontal else "y").astype(float),
    )
    at = place.position(at_values)
    gap = abs(place.end - place.start) / max(abs(place.high - place.low), 1e-9)
    numbers = np.unique(place.numbers(at_values))
    unit = gap * (float(np.min(np.diff(numbers))) if len(numbers) > 1 else 1.0)
    given = trace.width if isinstance(trace.width, int | float) else None
    whole = gap * given if given is not None else unit * 0.8
    thick = whole / slot[1]
    shift = -whole / 2 + thick * slot[0]
    base = np.broadcast_to(np.asarray(trace.base if trace.base is not None else 0.0, dtype=float), values.shape).copy()
    if floor is not None and slot[1] == 1:
        for i, key in enumerate(map(str, at_values)):
            base[i] += floor.get(key, 0.0)
            floor[key] = base[i] + values[i]
    starts, ends = length.position(base), length.position(base + values)
    single = trace.marker.color if isinstance(trace.marker.color, str) else None
    colours = (
        [css_colour(str(c)) for c in trace.marker.color]
        if trace.marker.color is not None and single is None
        else [css_colour(single, index)] * len(at)
    )
    parts = []
    for centre, start, end, colour in zip(at, starts, ends, colours, strict=True):
        if not (math.isfinite(centre) and math.isfinite(start) and math.isfinite(end)):
            continue
        low, span = min(start, end), abs(end - start)
        box = (low, centre + shift, span, thick) if horizontal else (centre + shift, low, thick, span)
        parts.append(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill:{}"/>'.format(*box, colour)
        )
    across = at + shift + thick / 2
    side = "x" if horizontal else "y"
    parts.append(_error_bars(trace, side, base + values, length, across, "var(--db-ink,#1b1f24)"))
    return "".join(parts)


def _left_margin(figure: go.Figure, traces: list[Any]) -> float:
    longest = 5
    for trace in traces:
        spec = layout_axis(figure, axis_name(trace, "y"))
        if spec.visible is False or spec.showticklabels is False:
            continue
        values = trace_values(trace, "y")
        if spec.ticktext is not None:
            longest = max([longest, *(len(str(t)) for t in spec.ticktext)])
        elif values.dtype.kind in "OUS":
            longest = max([longest, *(len(unmarked(str(v))) for v in values)])
    return min(34 + 6.4 * longest, WIDTH * 0.46)


def _tilted(figure: go.Figure, traces: list[Any], width: float) -> int:
    """Extra height below for x labels that would overlap when written flat."""
    longest = count = 0
    for trace in traces:
        spec = layout_axis(figure, axis_name(trace, "x"))
        values = trace_values(trace, "x")
        texts = spec.ticktext if spec.ticktext is not None else (values if values.dtype.kind in "OUS" else [])
        longest = max([longest, *(len(str(t)) for t in texts)])
        count = max(count, len({str(t) for t in texts}))
    count = min(count, int(width / 26))
    return min(90, int(longest * 5)) if longest * 7 * count > width else 0


def _label(text: str, most: int) -> str:
    text = unmarked(text)
    return escape(text if len(text) <= most else text[: most - 1] + "…")


def _frame(xa: Axis, ya: Axis, tilt: bool, multi: bool) -> str:
    parts = []
    y_low, y_high = max(ya.start, ya.end), min(ya.start, ya.end)
    x_low, x_high = min(xa.start, xa.end), max(xa.start, xa.end)
    room = 15 if tilt else 120
    for value, text in xa.ticks if xa.shown else ():
        x = xa.pixel(value)
        if xa.grid:
            parts.append(f'<path class="db-g" d="M{x:.1f} {y_low:.1f}V{y_high:.1f}"/>')
        label = _label(text, room)
        where = f'x="{x:.1f}" y="{y_low + 17:.1f}" text-anchor="middle"'
        if tilt:
            where = f'transform="translate({x:.1f},{y_low + 14:.1f}) rotate(-40)" text-anchor="end"'
        parts.append(f'<text class="db-t" {where}>{label}</text>')
    longest = int((x_low - 34) / 6.2) if not multi else 12
    for value, text in ya.ticks if ya.shown else ():
        y = ya.pixel(value)
        if ya.grid:
            parts.append(f'<path class="db-g" d="M{x_low:.1f} {y:.1f}H{x_high:.1f}"/>')
        label = _label(text, max(longest, 6))
        parts.append(f'<text class="db-t" x="{x_low - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    if xa.shown or ya.shown:
        parts.append(f'<path class="db-z" fill="none" d="M{x_low:.1f} {y_high:.1f}V{y_low:.1f}H{x_high:.1f}"/>')
    if xa.title:
        below = y_low + (36 if not tilt else 36 + 44)
        parts.append(
            f'<text class="db-t" x="{(x_low + x_high) / 2:.1f}" y="{below:.1f}" text-anchor="middle">'
            f"{escape(xa.title)}</text>"
        )
    if ya.title:
        left = x_low - 40 if multi else 14
        at = f'transform="translate({left:.1f},{(y_low + y_high) / 2:.1f}) rotate(-90)"'
        parts.append(f'<text class="db-t" {at} text-anchor="middle">{escape(ya.title)}</text>')
    return "".join(parts)


def _reference(
    ref: str | None, side: str, value: Any, axes: dict[str, Axis], box: tuple[float, float, float, float]
) -> float:
    """Pixel of a shape's or annotation's coordinate: in data units, in shares of an axis domain, or in shares of the
    paper.
    """
    ref = ref or side
    if ref == "paper":
        left, right, top, bottom = box
        return left + float(value) * (right - left) if side == "x" else bottom - float(value) * (bottom - top)
    axis = axes.get(ref.split()[0]) or next(a for name, a in axes.items() if name[0] == side)
    if ref.endswith("domain"):
        return axis.start + float(value) * (axis.end - axis.start)
    return float(axis.position([value])[0])


def _shapes(figure: go.Figure, axes: dict[str, Axis], box: tuple[float, float, float, float]) -> str:
    parts = []
    for shape in figure.layout.shapes or ():
        x0, x1 = (_reference(shape.xref, "x", v, axes, box) for v in (shape.x0, shape.x1))
        y0, y1 = (_reference(shape.yref, "y", v, axes, box) for v in (shape.y0, shape.y1))
        if shape.type == "rect":
            fill = css_colour(shape.fillcolor) if shape.fillcolor else "none"
            opacity = shape.opacity if shape.opacity is not None else 1
            parts.append(
                f'<rect x="{min(x0, x1):.1f}" y="{min(y0, y1):.1f}" '
                f'width="{abs(x1 - x0):.1f}" height="{abs(y1 - y0):.1f}" style="fill:{fill};opacity:{opacity}"/>'
            )
        else:
            dash = f' stroke-dasharray="{_DASHES[shape.line.dash]}"' if shape.line.dash in _DASHES else ""
            colour = css_colour(shape.line.color) if shape.line.color else "var(--db-muted,#57606a)"
            parts.append(
                f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" style="stroke:{colour}" '
                f'stroke-width="{shape.line.width or 1}"{dash}/>'
            )
    return "".join(parts)


def _annotations(figure: go.Figure, axes: dict[str, Axis], box: tuple[float, float, float, float]) -> str:
    parts = []
    for note in figure.layout.annotations or ():
        if not note.text or note.visible is False:
            continue
        x, y = _reference(note.xref, "x", note.x, axes, box), _reference(note.yref, "y", note.y, axes, box)
        anchor = {"left": "start", "right": "end"}.get(note.xanchor or "", "middle")
        rise = -4 if note.yanchor == "bottom" else 4
        halo = "paint-order:stroke;stroke:var(--db-paper,#fff);stroke-width:3px;fill:var(--db-ink,#1b1f24)"
        text = escape(unmarked(str(note.text))[:60])
        parts.append(f'<text x="{x:.1f}" y="{y + rise:.1f}" text-anchor="{anchor}" style="{halo}">{text}</text>')
    return "".join(parts)


def _legend_entries(figure: go.Figure, traces: list[Any]) -> list[tuple[str, str, str | None, str]]:
    if figure.layout.showlegend is False:
        return []
    entries = [
        (
            unmarked(str(t.name))[:48],
            css_colour(_own_colour(t), i),
            getattr(t.line, "dash", None) if t.type.startswith("scatter") else None,
            (t.marker.symbol if t.type.startswith("scatter") and "markers" in (t.mode or "") else None) or "",
        )
        for i, t in enumerate(traces)
        if t.name and t.showlegend is not False and t.type != "heatmap"
    ]
    return entries if len(entries) > 1 or figure.layout.showlegend else []


def _own_colour(trace: Any) -> str | None:
    line = trace.line.color if trace.type.startswith("scatter") else None
    marker = trace.marker.color if isinstance(trace.marker.color, str) else None
    fill = trace.fillcolor if trace.type.startswith("scatter") and trace.fill else None
    return line or marker or fill


def _legend(entries: list[tuple[str, str, str | None, str]], left: float) -> str:
    parts, x, y = [], left, 12.0
    for name, colour, dash, symbol in entries:
        width = len(name) * 6.6 + 40
        if x + width > WIDTH and x > left:
            x, y = left, y + 20
        if dash is not None or not symbol:
            dashes = f' stroke-dasharray="{_DASHES[dash]}"' if dash in _DASHES else ""
            parts.append(f'<path d="M{x:.1f} {y:.1f}h20" style="stroke:{colour}" stroke-width="3"{dashes}/>')
        if symbol:
            draw = _MARKERS.get(symbol.removesuffix("-open"), _MARKERS["circle"])
            parts.append(f'<g style="fill:{colour};stroke:{colour}">{draw(x + 10, y, 4)}</g>')
        parts.append(f'<text class="db-t" x="{x + 25:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
        x += width
    return "".join(parts)
