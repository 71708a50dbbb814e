"""What is too dense to draw one by one in a static picture: heat maps and crowds of points as an indexed PNG."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

import numpy as np

from driftbook.numbers import number
from driftbook.workbook.axes import Axis, trace_values
from driftbook.workbook.packing import escape
from driftbook.workbook.theme import colour_ramp, hex_rgb, theme
from driftbook.workbook.wording import unmarked

MAX_IMAGE = 28_000  # bytes of a raster, where a lower resolution can reach it


def indexed_png(indices: np.ndarray, palette: list[tuple[int, int, int, int]]) -> bytes:
    """An indexed PNG with transparency from ``indices`` [rows, columns] (uint8) and RGBA entries, 256 at most."""
    rows, columns = indices.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = np.zeros((rows, columns + 1), np.uint8)  # the leading zero of each row is PNG's filter "none"
    raw[:, 1:] = indices
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", b"".join(bytes(entry[:3]) for entry in palette))
        + chunk(b"tRNS", bytes(entry[3] for entry in palette))
        + chunk(b"IDAT", zlib.compress(raw.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def heatmap(trace: Any, xa: Axis, ya: Axis) -> str:
    z = np.asarray(trace.z, dtype=float)
    finite = z[np.isfinite(z)]
    low = float(trace.zmin) if trace.zmin is not None else float(finite.min(initial=0))
    high = float(trace.zmax) if trace.zmax is not None else float(finite.max(initial=1))
    if trace.zmid is not None:
        reach = max(abs(high - trace.zmid), abs(low - trace.zmid))
        low, high = trace.zmid - reach, trace.zmid + reach
    share = np.clip((z - low) / ((high - low) or 1.0), 0, 1)
    shrink_rows, shrink_columns = math.ceil(z.shape[0] / 240), math.ceil(z.shape[1] / 480)
    share = share[::shrink_rows, ::shrink_columns]
    steps = 63
    indices = np.where(np.isfinite(share), 1 + np.rint(np.nan_to_num(share) * (steps - 1)), 0).astype(np.uint8)
    diverging = low < 0 < high
    stops = theme()["light"]["diverging" if diverging else "sequential"]
    png_palette = [(0, 0, 0, 0), *colour_ramp(stops, steps)]
    xs, ys = xa.pixel(_grid_edges(trace, "x", xa)), ya.pixel(_grid_edges(trace, "y", ya))
    flipped = indices[::-1] if ys[0] > ys[1] else indices
    legend = _colour_bar(stops, low, high, max(xs), min(ys), abs(ys[1] - ys[0]), trace)
    return _image(indexed_png(flipped, png_palette), min(xs), min(ys), abs(xs[1] - xs[0]), abs(ys[1] - ys[0])) + legend


def dense_points(trace: Any, xa: Axis, ya: Axis, index: int) -> str:
    """Points as a raster: the colour that most recently fell on a pixel, as a GPU would draw it."""
    palette = theme()["light"]["palette"]
    colour = trace.marker.color
    if colour is None or isinstance(colour, str):
        codes = np.zeros(len(trace_values(trace, "x")), int)
        entries = [hex_rgb(colour if colour else palette[index % len(palette)])]
    else:
        codes = np.asarray(colour).astype(int)
        stops = [stop for _, stop in trace.marker.colorscale or ()]
        entries = [hex_rgb(c) for c in (list(dict.fromkeys(stops)) or palette)]
    left, right = sorted((xa.start, xa.end))
    top, bottom = sorted((ya.start, ya.end))
    xs, ys = xa.position(trace_values(trace, "x")), ya.position(trace_values(trace, "y"))
    for resolution in (0.8, 0.6, 0.45, 0.3):
        columns, rows = int((right - left) * resolution), int((bottom - top) * resolution)
        px = ((xs - left) / (right - left) * (columns - 1)).astype(int)
        py = ((ys - top) / (bottom - top) * (rows - 1)).astype(int)
        grid = np.zeros((rows, columns), np.uint8)
        reach = 3 if len(px) < 8_000 else 2 if len(px) < 40_000 else 1
        for step_y in range(reach):
            for step_x in range(reach):
                at_x, at_y = px + step_x, py + step_y
                inside = (at_x >= 0) & (at_x < columns) & (at_y >= 0) & (at_y < rows)
                grid[at_y[inside], at_x[inside]] = 1 + codes[inside] % len(entries)
        png = indexed_png(grid, [(0, 0, 0, 0), *[(*e, 215) for e in entries]])
        if len(png) <= MAX_IMAGE:
            break
    return _image(png, left, top, right - left, bottom - top)


def _image(png: bytes, x: float, y: float, width: float, height: float) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def _grid_edges(trace: Any, side: str, axis: Axis) -> np.ndarray:
    numbers = axis.numbers(trace_values(trace, side))
    half = (numbers[1] - numbers[0]) / 2 if len(numbers) > 1 else 0.5
    return np.array([numbers[0] - half, numbers[-1] + half])


def _colour_bar(stops: list[str], low: float, high: float, x: float, y: float, height: float, trace: Any) -> str:
    parts, cells = [], 24
    for i, (red, green, blue, _) in enumerate(colour_ramp(stops, cells)[::-1]):
        top = y + height * i / cells
        parts.append(
            f'<rect x="{x + 10:.1f}" y="{top:.1f}" width="10" height="{height / cells + 0.5:.1f}" '
            f'fill="#{red:02x}{green:02x}{blue:02x}"/>'
        )
    for value, top in ((high, y + 9), (low, y + height)):
        parts.append(f'<text x="{x + 24:.1f}" y="{top:.1f}" class="db-t">{escape(number(value))}</text>')
    title = getattr(trace.colorbar.title, "text", None)
    if title:
        parts.append(
            f'<text x="{x + 58:.1f}" y="{y - 7:.1f}" text-anchor="end" class="db-t">'
            f"{escape(unmarked(title)[:40])}</text>"
        )
    return "".join(parts)
