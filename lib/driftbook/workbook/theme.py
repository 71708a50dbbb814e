"""The look of figures and pages, light and dark: one file of colours and fonts, read here and by the page's script."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from driftbook.workbook.packing import escape

ASSETS = Path(__file__).parent / "assets"


@cache
def theme() -> dict[str, Any]:
    """The colours and fonts of figures and pages."""
    return json.loads((ASSETS / "theme.json").read_text())


@cache
def asset(name: str) -> str:
    """The text of a file of ``assets``."""
    return (ASSETS / name).read_text(encoding="utf-8")


def style(*, page: bool) -> str:
    """The style sheet of a page, light and dark; or of one figure in JupyterLab, which is light."""
    if not page:
        return f".db-figure{{{_variables('light')}}}{asset('figures.css')}"
    return (
        f":root{{{_variables('light')};--db-font:{theme()['font']}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables('dark')}}}}}"
        f"{asset('page.css')}{asset('figures.css')}"
    )


def _variables(name: str) -> str:
    colours = theme()[name]
    pairs = [f"--db-{key}:{value}" for key, value in colours.items() if isinstance(value, str)]
    return ";".join([*pairs, *(f"--db-c{i}:{value}" for i, value in enumerate(colours["palette"]))])


BASE = theme()["light"]["palette"][0]
INTERVENTION = theme()["light"]["palette"][1]
GREY = theme()["light"]["palette"][6]
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "circle-open", "square-open", "diamond-open")


def colour(index: int) -> str:
    """The hue of group ``index`` (eight, then again; marker and dash tell the rounds apart)."""
    palette = theme()["light"]["palette"]
    return palette[index % len(palette)]


def side_colour(name: str, index: int) -> str:
    """Base is blue and intervention vermilion in every figure; other groups take the palette in order."""
    return {"base": BASE, "intervention": INTERVENTION}.get(str(name), colour(index))


def band(hex_colour: str, alpha: float = 0.18) -> str:
    """The colour of an interval around a line of ``hex_colour``."""
    red, green, blue = hex_rgb(hex_colour)
    return f"rgba({red},{green},{blue},{alpha})"


def hex_rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three bytes."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def colour_ramp(colours: list[str], steps: int) -> list[tuple[int, int, int, int]]:
    """``steps`` opaque colours, linear in RGB between the given ones."""
    stops = np.array([hex_rgb(c) for c in colours], dtype=float)
    at = np.linspace(0, len(stops) - 1, steps)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, k]) for k in range(3)]
    return [(int(r), int(g), int(b), 255) for r, g, b in zip(*channels, strict=True)]


def css_colour(colour: str | None, index: int = 0) -> str:
    """A colour of the light palette as a CSS variable that follows the page's theme; any other colour as it is."""
    palette = theme()["light"]["palette"]
    if colour is None:
        colour = palette[index % len(palette)]
    lower = colour.lower()
    if lower in palette:
        return f"var(--db-c{palette.index(lower)},{lower})"
    for name in ("ink", "muted", "line", "grid", "paper"):
        if lower == theme()["light"][name]:
            return f"var(--db-{name},{lower})"
    # rgba() of a palette colour: the band of a line. Only the alpha is kept; the hue follows the theme.
    match = re.fullmatch(r"rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)", lower)
    if match:
        red, green, blue = (int(part) for part in match.groups()[:3])
        return f"color-mix(in srgb,{css_colour(f'#{red:02x}{green:02x}{blue:02x}')} {float(match[4]):.0%},transparent)"
    return escape(colour)


def lab_template() -> go.layout.Template:
    """The look of reports, for figures in JupyterLab."""
    colours = theme()["light"]
    axis = {
        "gridcolor": colours["grid"],
        "linecolor": colours["line"],
        "zerolinecolor": colours["line"],
        "automargin": True,
    }
    layout = {
        "font": {"family": theme()["font"], "size": 13, "color": colours["ink"]},
        "paper_bgcolor": colours["paper"],
        "plot_bgcolor": colours["paper"],
        "colorway": colours["palette"],
        "xaxis": axis,
        "yaxis": axis,
        "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
    }
    return go.layout.Template(layout=layout)
