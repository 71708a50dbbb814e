"""Axes of static pictures: data to pixels, and round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from driftbook.numbers import number
from driftbook.workbook.wording import unmarked


@dataclass
class Axis:
    """One axis: data to pixels, and its ticks."""

    kind: str  # linear | log | category
    low: float
    high: float
    start: float  # pixel of `low`
    end: float
    title: str
    categories: list[str]
    ticks: list[tuple[float, str]]
    shown: bool
    grid: bool

    def position(self, values: Any) -> np.ndarray:
        """Pixels of data values."""
        return self.pixel(self.numbers(values))

    def pixel(self, number: Any) -> Any:
        """Pixels of positions on the axis: category numbers, or powers of ten on a log axis."""
        return self.start + (number - self.low) / (self.high - self.low) * (self.end - self.start)

    def numbers(self, values: Any) -> np.ndarray:
        if self.kind == "category":
            index = {name: i for i, name in enumerate(self.categories)}
            return np.array([index.get(str(v), np.nan) for v in np.atleast_1d(values)], dtype=float)
        numbers = np.atleast_1d(np.asarray(values, dtype=float))
        if self.kind == "log":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.where(numbers > 0, np.log10(numbers), np.nan)
        return numbers


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers inside ``[low, high]``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def axis_name(trace: Any, side: str) -> str:
    """The axis that a trace stands on, as plotly names it: x, y, x2, ..."""
    return getattr(trace, f"{side}axis", None) or side


def layout_axis(figure: go.Figure, name: str) -> Any:
    """The layout of the axis with that name."""
    side, number = name[0], name[1:]
    return figure.layout[f"{side}axis{number}"]


def trace_values(trace: Any, side: str) -> np.ndarray:
    """The x or y of a trace; positions where it names none, NaN where a number is missing."""
    values = getattr(trace, side, None)
    if values is None and trace.type == "heatmap":
        return np.arange(np.asarray(trace.z).shape[1 if side == "x" else 0])
    if values is None:
        other = getattr(trace, "y" if side == "x" else "x", None)
        return np.arange(0 if other is None else len(other))
    values = np.asarray(values)
    if values.dtype.kind == "O" and not any(isinstance(v, str) for v in values):
        return np.array([np.nan if v is None else float(v) for v in values])
    return values


def make_axis(figure: go.Figure, name: str, traces: list[Any], start: float, end: float) -> Axis:
    side = name[0]
    spec = layout_axis(figure, name)
    values = [trace_values(t, side) for t in traces]
    categorical = spec.type == "category" or any(v.dtype.kind in "OUS" for v in values)
    categories: list[str] = []
    if categorical:
        ordered = spec.categoryarray if spec.categoryarray is not None else [v for vs in values for v in vs]
        categories = list(dict.fromkeys(str(v) for v in ordered))
        low, high = -0.5, len(categories) - 0.5
    else:
        ends = [v for t, vs in zip(traces, values, strict=True) for v in _extent(t, side, vs)]
        ends += [
            float(v)
            for shape in figure.layout.shapes or ()
            if (getattr(shape, f"{side}ref") or side) == name
            for v in (shape[f"{side}0"], shape[f"{side}1"])
        ]
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        if spec.type == "log":
            positive = [v for v in ends if v > 0] or [1.0]
            low, high = math.log10(min(positive)), math.log10(max(positive))
        if spec.range is not None:
            low, high = (float(v) for v in spec.range)
        else:
            solid = any(t.type == "heatmap" for t in traces)
            pad = 0.0 if solid else (high - low) * 0.04
            touches_zero = any(t.type == "bar" for t in traces) and low == 0
            low, high = low - (0 if touches_zero else pad), high + pad
    if high == low:
        low, high = low - 0.5, high + 0.5
    if spec.autorange == "reversed":
        low, high = high, low
    return Axis(
        kind="category" if categorical else ("log" if spec.type == "log" else "linear"),
        low=low,
        high=high,
        start=start,
        end=end,
        title=unmarked(spec.title.text or ""),
        categories=categories,
        ticks=_ticks(spec, categorical, categories, min(low, high), max(low, high), abs(end - start), side),
        shown=spec.visible is not False and spec.showticklabels is not False,
        grid=spec.showgrid is not False and not categorical,
    )


def _extent(trace: Any, side: str, values: np.ndarray) -> list[float]:
    numbers = values.astype(float)
    parts = [numbers]
    error = getattr(trace, f"error_{side}", None)
    if error is not None and error.array is not None:
        plus = np.asarray(error.array, dtype=float)
        minus = plus if error.arrayminus is None else np.asarray(error.arrayminus, dtype=float)
        parts += [numbers + plus, numbers - minus]
    if trace.type == "bar" and (trace.orientation or "v") == ("h" if side == "x" else "v"):
        parts.append(np.zeros(1))
        if trace.base is not None:
            parts.append(np.atleast_1d(np.asarray(trace.base, dtype=float)))
    elif trace.type == "bar" and len(numbers) > 1:
        half = float(np.min(np.diff(np.unique(numbers)))) / 2
        parts += [numbers - half, numbers + half]
    elif trace.type == "heatmap" and len(numbers) > 1:
        half = float(numbers[1] - numbers[0]) / 2
        parts += [numbers[:1] - half, numbers[-1:] + half]
    stacked = np.concatenate([np.atleast_1d(p) for p in parts])
    stacked = stacked[np.isfinite(stacked)]
    return [float(stacked.min()), float(stacked.max())] if stacked.size else []


def _ticks(
    spec: Any, categorical: bool, categories: list[str], low: float, high: float, pixels: float, side: str
) -> list[tuple[float, str]]:
    if spec.tickvals is not None:
        texts = spec.ticktext if spec.ticktext is not None else [number(v) for v in spec.tickvals]
        pairs = [(float(v), str(t)) for v, t in zip(spec.tickvals, texts, strict=True)]
    elif categorical:
        pairs = [(float(i), name) for i, name in enumerate(categories)]
    elif spec.type == "log":
        whole = [p for p in range(math.floor(low), math.ceil(high) + 1) if low - 1e-9 <= p <= high + 1e-9]
        pairs = [(float(p), f"1e{p}".replace("-", "−") if abs(p) > 3 else number(10.0**p)) for p in whole]
    else:
        percent = (spec.tickformat or "").endswith("%")
        ticks = nice_ticks(low, high, most=max(3, int(pixels / (65 if side == "x" else 36))))
        pairs = [(v, number(v) if not percent else f"{v:.0%}") for v in ticks]
    pairs = [(v, t) for v, t in pairs if low - 1e-9 <= v <= high + 1e-9]
    room = max(1, int(pixels / (15 if side == "y" else 26)))
    stride = math.ceil(len(pairs) / room)
    return pairs[::stride] if stride > 1 else pairs
