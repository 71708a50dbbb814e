"""Builders of figures: they take arrays and tables, and give a :class:`Figure` with its words and data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftbook.numbers import number
from driftbook.workbook.explorers import trace_explorer, trait_trace
from driftbook.workbook.figure import Figure, View, chart, floats, reference_line, same_length
from driftbook.workbook.tables import Table
from driftbook.workbook.textmap import map_scatter
from driftbook.workbook.theme import BASE, DASHES, GREY, INTERVENTION, SYMBOLS, band, side_colour
from driftbook.workbook.wording import plain, shorten, visible_token

__all__ = [
    "BASE",
    "INTERVENTION",
    "Figure",
    "Table",
    "View",
    "bars",
    "curve",
    "dumbbell",
    "histogram",
    "interval_plot",
    "layer_token_heatmap",
    "map_scatter",
    "trace_explorer",
    "trait_trace",
]

MOST_BINS = 60


def interval_plot(
    labels: Sequence[str],
    estimate: Any,
    low: Any,
    high: Any,
    *,
    title: str,
    caption: str,
    reference: float | None = 0.0,
    x_title: str = "",
    marked: Any = None,
    marked_name: str = "interval excludes the reference",
    unmarked_name: str = "interval includes the reference",
    alt: str | None = None,
    table: pd.DataFrame | None = None,
    percent: bool = False,
) -> Figure:
    """A forest plot: one row per label, first on top, with its estimate and interval.

    ``marked`` (bool per row; by default: the interval excludes ``reference``) gives filled vermilion markers, the
    others are hollow and grey. Rows whose estimate is NaN are drawn without marker.
    """
    same_length(labels=labels, estimate=estimate, low=low, high=high, marked=marked)
    estimate, low, high = (np.asarray(v, dtype=np.float64) for v in (estimate, low, high))
    if marked is None:
        marked = np.zeros(len(estimate), bool) if reference is None else (low > reference) | (high < reference)
    marked = np.asarray(marked, dtype=bool)
    rows = np.arange(len(labels), dtype=np.int16)
    traces = []
    for flag, name, hue, symbol in (
        (True, marked_name, INTERVENTION, "circle"),
        (False, unmarked_name, GREY, "circle-open"),
    ):
        chosen = marked == flag
        if not chosen.any():
            continue
        traces.append(
            go.Scatter(
                x=floats(estimate[chosen]),
                y=rows[chosen],
                mode="markers",
                name=plain(name),
                marker={"color": hue, "symbol": symbol, "size": 9},
                error_x={
                    "array": floats((high - estimate)[chosen]),
                    "arrayminus": floats((estimate - low)[chosen]),
                    "color": hue,
                    "thickness": 2,
                    "width": 0,
                },
                text=[plain(labels[i]) for i in np.flatnonzero(chosen)],
                customdata=np.stack([floats(low[chosen]), floats(high[chosen])], axis=1),
                hovertemplate="%{text}<br>%{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
            )
        )
    figure = _rows(traces, labels, x_title, percent, [] if reference is None else [reference_line("x", reference)])
    if alt is None:
        said = "; ".join(
            f"{shorten(label, 60)}: {_number(e, percent)} [{_number(a, percent)}, {_number(b, percent)}]"
            for label, e, a, b in list(zip(labels, estimate, low, high, strict=True))[:8]
        )
        rest = f"; and {len(labels) - 8} more" if len(labels) > 8 else ""
        alt = f"Interval plot of {len(labels)} rows, {int(marked.sum())} marked ({marked_name}). {said}{rest}."
    if table is None:
        table = pd.DataFrame({"label": list(labels), "estimate": estimate, "low": low, "high": high, "marked": marked})
    return Figure(figure, title, caption, alt, table)


def dumbbell(
    labels: Sequence[str],
    was: Any,
    now: Any,
    low: Any,
    high: Any,
    *,
    title: str,
    caption: str,
    names: tuple[str, str] = ("base", "intervention"),
    x_title: str = "share of answers",
    percent: bool = True,
    alt: str | None = None,
) -> Figure:
    """What each behaviour was and what it is now: one row per label, first on top.

    ``was`` is a hollow grey mark, ``now`` a filled one with the interval of the change, ``low`` to ``high`` (of now
    minus was), around it.
    """
    same_length(labels=labels, was=was, now=now, low=low, high=high)
    was, now, low, high = (np.asarray(v, dtype=np.float64) for v in (was, now, low, high))
    rows = np.arange(len(labels), dtype=np.float64)
    gap = np.full(len(rows), np.nan)
    text = [plain(label) for label in labels]
    line = {"x": floats(np.stack([was, now, gap], 1).ravel()), "y": floats(np.stack([rows, rows, gap], 1).ravel())}
    least, most = was + low, was + high
    if percent:  # a share lies between none and all
        least, most = np.clip(least, 0, 1), np.clip(most, 0, 1)
    interval = {
        "array": floats(np.maximum(most - now, 0)),
        "arrayminus": floats(np.maximum(now - least, 0)),
        "color": INTERVENTION,
        "thickness": 1.5,
        "width": 0,
    }
    traces = [
        go.Scatter(**line, mode="lines", line={"color": GREY, "width": 2}, hoverinfo="skip", showlegend=False),
        go.Scatter(
            x=floats(was),
            y=floats(rows),
            mode="markers",
            name=plain(names[0]),
            marker={"color": GREY, "symbol": "circle-open", "size": 10},
            text=text,
            hovertemplate="%{text}: was %{x:.3g}<extra></extra>",
        ),
        go.Scatter(
            x=floats(now),
            y=floats(rows),
            mode="markers",
            name=plain(names[1]),
            marker={"color": INTERVENTION, "symbol": "circle", "size": 10},
            error_x=interval,
            text=text,
            hovertemplate="%{text}: now %{x:.3g}<extra></extra>",
        ),
    ]
    figure = _rows(traces, labels, x_title, percent)
    said = "; ".join(
        f"{shorten(label, 60)}: {_number(a, percent)} to {_number(b, percent)}"
        for label, a, b in list(zip(labels, was, now, strict=True))[:8]
    )
    rest = f"; and {len(labels) - 8} more" if len(labels) > 8 else ""
    alt = alt or f"Dumbbell chart of {len(labels)} behaviours, {names[0]} to {names[1]}. {said}{rest}."
    table = pd.DataFrame({"behaviour": list(labels), names[0]: was, names[1]: now, "low": low, "high": high})
    return Figure(figure, title, caption, alt, table)


def _rows(
    traces: list[Any], labels: Sequence[str], x_title: str, percent: bool, shapes: Sequence[Any] = ()
) -> go.Figure:
    """One row per label, first on top."""
    return chart(
        traces,
        height=max(160, 92 + 27 * len(labels)),
        x={"title": {"text": plain(x_title)}, "tickformat": ".0%" if percent else None},
        y={
            "tickvals": np.arange(len(labels), dtype=np.int16),
            "ticktext": [plain(shorten(label, 56)) for label in labels],
            "range": [len(labels) - 0.4, -0.6],
            "showgrid": False,
            "zeroline": False,
        },
        shapes=list(shapes),
    )


def curve(
    x: Any,
    y: Any,
    *,
    low: Any = None,
    high: Any = None,
    groups: Sequence[str] | None = None,
    title: str,
    caption: str,
    x_title: str = "",
    y_title: str = "",
    reference: float | None = None,
    log_x: bool = False,
    log_y: bool = False,
    height: int = 380,
    percent: bool = False,
    alt: str | None = None,
) -> Figure:
    """Lines with interval bands. All arrays are long form, one entry a point; ``groups`` names the line of each point.

    A group called ``base`` or ``intervention`` takes that side's colour. Lines also differ by dash and marker.
    """
    same_length(x=x, y=y, low=low, high=high, groups=groups)
    x, y = np.asarray(x), np.asarray(y, dtype=np.float64)
    low = None if low is None else np.asarray(low, dtype=np.float64)
    high = None if high is None else np.asarray(high, dtype=np.float64)
    names = np.asarray([""] * len(y) if groups is None else [str(g) for g in groups], dtype=object)
    numeric = x.dtype.kind in "iuf"
    traces: list[Any] = []
    said = []
    for index, name in enumerate(dict.fromkeys(names)):
        at = np.flatnonzero(names == name)
        if numeric:
            at = at[np.argsort(x[at], kind="stable")]
        xs = floats(x[at]) if numeric else [plain(v) for v in x[at]]
        hue = side_colour(name, index)
        if low is not None and high is not None:
            hidden = {
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "mode": "lines",
                "legendgroup": plain(name),
            }
            traces.append(go.Scatter(x=xs, y=floats(low[at]), **hidden))
            traces.append(go.Scatter(x=xs, y=floats(high[at]), fill="tonexty", fillcolor=band(hue), **hidden))
        mode = "lines+markers" if len(at) <= 32 else "lines"
        traces.append(
            go.Scatter(
                x=xs,
                y=floats(y[at]),
                name=plain(shorten(name, 48)),
                legendgroup=plain(name),
                mode=mode,
                line={"color": hue, "width": 2, "dash": DASHES[index % len(DASHES)]},
                marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
            )
        )
        finite = y[at][np.isfinite(y[at])]
        if len(finite):
            prefix = f"{name}: " if name else ""
            said.append(
                f"{prefix}from {_number(y[at][0], percent)} at {_value(x[at][0])} to {_number(y[at][-1], percent)} at "
                f"{_value(x[at][-1])}, least {_number(finite.min(), percent)}, most {_number(finite.max(), percent)}"
            )
    shapes = [] if reference is None else [reference_line("y", reference)]
    figure = chart(
        traces,
        height=height,
        x={"title": {"text": plain(x_title)}, "type": "log" if log_x else None, "exponentformat": "power"},
        y={
            "title": {"text": plain(y_title)}, "type": "log" if log_y else None, "exponentformat": "power",
            "tickformat": ".0%" if percent else None,
        },
        shapes=shapes,
        showlegend=len(set(names)) > 1,
    )
    columns: dict[str, Any] = {"group": names} if groups is not None else {}
    columns |= {x_title or "x": x, y_title or "y": y}
    columns |= {name: values for name, values in (("low", low), ("high", high)) if values is not None}
    alt = alt or f"Line chart of {y_title or 'values'} against {x_title or 'x'}. {'; '.join(said)}."
    return Figure(figure, title, caption, alt, pd.DataFrame(columns))


def bars(
    labels: Sequence[str],
    values: Any,
    *,
    low: Any = None,
    high: Any = None,
    groups: Sequence[str] | None = None,
    title: str,
    caption: str,
    value_title: str = "",
    horizontal: bool = False,
    reference: float | None = None,
    height: int | None = None,
    percent: bool = False,
    alt: str | None = None,
) -> Figure:
    """Bars side by side per group (long form), with intervals where ``low`` and ``high`` are given. First label on top
    or left.
    """
    same_length(labels=labels, values=values, low=low, high=high, groups=groups)
    values = np.asarray(values, dtype=np.float64)
    names = np.asarray([""] * len(values) if groups is None else [str(g) for g in groups], dtype=object)
    order = [plain(shorten(v, 48)) for v in dict.fromkeys(map(str, labels))]
    traces = []
    for index, name in enumerate(dict.fromkeys(names)):
        at = np.flatnonzero(names == name)
        places, lengths = [plain(shorten(labels[i], 48)) for i in at], floats(values[at])
        error = None
        if low is not None and high is not None:
            error = {
                "array": floats(np.asarray(high, float)[at] - values[at]),
                "arrayminus": floats(values[at] - np.asarray(low, float)[at]),
                "thickness": 1.5,
                "width": 0,
            }
        place, length = ("y", "x") if horizontal else ("x", "y")
        kind: dict[str, Any] = {place: places, length: lengths, f"error_{length}": error}
        pattern = {
            "shape": ("", "/", ".", "x")[index % 4],
            "fillmode": "overlay",
            "fgcolor": "#ffffff",
            "fgopacity": 0.55,
            "size": 7,
        }
        marker = {"color": side_colour(name, index), "pattern": pattern}
        traces.append(go.Bar(name=plain(name), orientation="h" if horizontal else "v", marker=marker, **kind))
    categories = {
        "type": "category",
        "categoryarray": order,
        "autorange": "reversed" if horizontal else None,
        "showgrid": False,
    }
    numbers = {"title": {"text": plain(value_title)}, "tickformat": ".0%" if percent else None}
    shapes = [] if reference is None else [reference_line("x" if horizontal else "y", reference)]
    figure = chart(
        traces,
        height=height or (max(170, 90 + 26 * len(order) * max(1, len(traces) * 0.7)) if horizontal else 380),
        x=numbers if horizontal else categories,
        y=categories if horizontal else numbers,
        barmode="group",
        shapes=shapes,
    )
    said = "; ".join(
        f"{shorten(label, 50)}{f' ({name})' if name else ''}: {_number(v, percent)}"
        for label, name, v in list(zip(labels, names, values, strict=True))[:10]
    )
    columns: dict[str, Any] = {"label": list(map(str, labels))}
    columns |= {"group": names} if groups is not None else {}
    columns |= {value_title or "value": values}
    columns |= {k: np.asarray(v, float) for k, v in (("low", low), ("high", high)) if v is not None}
    alt = alt or f"Bar chart of {value_title or 'values'} for {len(order)} labels. {said}."
    return Figure(figure, title, caption, alt, pd.DataFrame(columns))


def histogram(
    values: Any,
    *,
    groups: Sequence[str] | None = None,
    bins: int | None = None,
    title: str,
    caption: str,
    x_title: str = "",
    share: bool = True,
    reference: float | None = None,
    alt: str | None = None,
) -> Figure:
    """Outlines of distributions over common bins, counted here so that the page holds counts, not values. NaN is left
    out.
    """
    same_length(values=values, groups=groups)
    values = np.asarray(values, dtype=np.float64)
    names = np.asarray([""] * len(values) if groups is None else [str(g) for g in groups], dtype=object)
    finite = np.isfinite(values)
    counted = values[finite] if finite.any() else np.zeros(1)
    edges = np.histogram_bin_edges(counted, bins="auto" if bins is None else bins)
    if len(edges) > MOST_BINS + 1:
        edges = np.histogram_bin_edges(counted, bins=MOST_BINS)
    traces, rows, said = [], [], []
    for index, name in enumerate(dict.fromkeys(names)):
        own = values[(names == name) & finite]
        counts, _ = np.histogram(own, edges)
        heights = counts / max(len(own), 1) if share else counts
        hue = side_colour(name, index)
        # A step outline: both ends of each bin at its height, down to zero outside.
        xs, ys = np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
        line = {"color": hue, "width": 2, "dash": DASHES[index % len(DASHES)]}
        traces.append(
            go.Scatter(
                x=floats(xs),
                y=floats(ys),
                mode="lines",
                fill="tozeroy",
                fillcolor=band(hue, 0.14),
                line=line,
                name=plain(name),
            )
        )
        rows.append(pd.DataFrame({"group": name, "from": edges[:-1], "to": edges[1:], "count": counts}))
        if len(own):
            prefix = f"{name}: " if name else ""
            said.append(
                f"{prefix}n {len(own)}, median {_value(np.median(own))}, from {_value(own.min())} to "
                f"{_value(own.max())}"
            )
    shapes = [] if reference is None else [reference_line("x", reference)]
    figure = chart(
        traces,
        height=320,
        x={"title": {"text": plain(x_title)}},
        y={"title": {"text": "share" if share else "count"}, "rangemode": "tozero"},
        shapes=shapes,
    )
    table = pd.concat(rows, ignore_index=True) if rows else None
    alt = alt or f"Distribution of {x_title or 'values'}. {'; '.join(said)}."
    return Figure(
        figure, title, caption, alt, table if groups is not None or table is None else table.drop(columns="group")
    )


def layer_token_heatmap(
    values: Any,
    tokens: Sequence[Any],
    layers: Sequence[int],
    *,
    title: str,
    caption: str,
    unit: str = "projection",
    choices: Sequence[str] | None = None,
    choice_label: str = "Prompt",
    centre: float | None = 0.0,
    reach: float | None = None,
    row_title: str = "layer",
    rows_named: Sequence[str] | None = None,
    alt: str | None = None,
) -> Figure:
    """Layers (rows, first at the bottom) by tokens (columns), one picture or one per choice.

    ``reach`` is the largest distance from the centre that the colours tell apart, for pictures that share a scale (by
    default what 99% of the values stay within). ``row_title`` says what the rows are, where they are heads, neurons or
    tokens; ``rows_named`` gives them names, from the top, where the numbers of ``layers`` do not do. Values in uint8
    are packed as they are.

    ``values`` is [layer, token] with ``tokens`` a list of strings; with ``choices`` it is [choice, layer, token], NaN
    beyond the end of a sample, and ``tokens`` holds one list per choice. ``centre`` is the middle of the diverging
    scale (None: sequential).
    """
    stack = np.asarray(values)
    stack = stack if stack.dtype == np.uint8 else stack.astype(np.float32)
    if choices is None:
        stack, token_lists = stack[None], [list(tokens)]
    else:
        token_lists = [list(t) for t in tokens]
        same_length(values=stack, tokens=token_lists, choices=choices)
    finite = stack[np.isfinite(stack)]
    if reach is None:
        reach = float(np.quantile(np.abs(finite - (centre or 0)), 0.99)) if finite.size else 1.0
    reach = reach or 1.0
    limits = (
        {"zmin": centre - reach, "zmax": centre + reach}
        if centre is not None
        else {"zmin": float(finite.min(initial=0)), "zmax": float(finite.max(initial=1))}
    )
    traces, rows = [], []
    for index, own in enumerate(token_lists):
        z = stack[index][:, : len(own)]
        # Steps of a hundredth of the scale: no eye sees them, and the page holds a quarter of the data.
        step = (limits["zmax"] - limits["zmin"]) / 200 or 1.0
        traces.append(
            go.Heatmap(
                z=np.ascontiguousarray(z if z.dtype == np.uint8 else np.rint(z / step) * step, dtype=z.dtype),
                x=np.arange(len(own), dtype=np.int16),
                y=np.asarray(layers, dtype=np.int16),
                hovertemplate=f"{plain(row_title)} %{{y}}, token %{{x}}<br>%{{z:.3g}}<extra></extra>",
                colorbar={"title": {"text": plain(unit)}, "thickness": 12},
                meta={"choice": index, "tokens": [plain(visible_token(t)) for t in own]}
                if choices
                else {"tokens": [plain(visible_token(t)) for t in own]},
                visible=index == 0,
                **limits,
            )
        )
        summary = np.nan_to_num(z, nan=0.0)
        peak = (
            np.unravel_index(int(np.argmax(np.abs(summary - (centre or 0)))), summary.shape) if summary.size else (0, 0)
        )
        name = choices[index] if choices else ""
        rows.append(
            {
                choice_label.lower(): name,
                "tokens": len(own),
                "mean": float(np.nanmean(z)),
                "largest": float(summary[peak]),
                f"at {row_title}": rows_named[peak[0]] if rows_named else int(layers[peak[0]]),
                "at token": visible_token(own[peak[1]]),
            }
        )
    named: dict[str, Any] = {}
    if rows_named:
        labels = [plain(shorten(visible_token(name), 24)) for name in rows_named]
        named = {"tickvals": np.asarray(layers, np.int16), "ticktext": labels, "autorange": "reversed"}
    figure = chart(
        traces,
        height=max(240, 120 + (max(13, min(24, 320 // max(len(layers), 1))) if rows_named else 9) * len(layers)),
        x={
            "title": {"text": "token"},
            "showgrid": False,
            "tickvals": np.arange(len(token_lists[0]), dtype=np.int16),
            "ticktext": [plain(visible_token(t)) for t in token_lists[0]],
            **({"tickangle": -90, "tickfont": {"size": 8}} if max(map(len, token_lists)) > 48 else {"tickangle": -50}),
        },
        y={"title": {"text": plain(row_title)}, "showgrid": False} | named,
    )
    top = rows[0]
    alt = alt or (
        f"Heat map of {unit}, {len(layers)} {row_title}s by {top['tokens']} tokens"
        f"{f' ({choices[0]})' if choices else ''}: "
        f"mean {_value(top['mean'])}, largest {_value(top['largest'])} at {row_title} {top[f'at {row_title}']}, "
        f"token {top['at token']!r}."
    )
    table = pd.DataFrame(rows) if choices else pd.DataFrame(rows).drop(columns=choice_label.lower())
    return Figure(figure, title, caption, alt, table, choices=tuple(choices or ()), choice_label=choice_label)


def _number(value: float, percent: bool) -> str:
    return "missing" if not np.isfinite(value) else (f"{value:.1%}" if percent else number(float(value)))


def _value(value: Any) -> str:
    return number(float(value)) if isinstance(value, int | float | np.number) else str(value)
