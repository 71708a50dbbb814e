"""How texts and tokens are written in figures, tables and pages."""

from __future__ import annotations

import html
import re


def shorten(text: object, most: int) -> str:
    """One line of at most ``most`` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def plain(text: object) -> str:
    """Text for a plotly label: plotly reads a small HTML, so what models wrote must not hold any."""
    return html.escape(str(text), quote=False)


def unmarked(text: str) -> str:
    """What plotly would show of a label: its few tags do nothing here, its entities are characters."""
    return html.unescape(re.sub(r"<[^<>]*>", " ", text)).strip()


def visible_token(token: object) -> str:
    """A token as it is shown on an axis: spaces and line ends made visible."""
    return str(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "∅"


def duration(seconds: float) -> str:
    """``59 s``, ``4 min 10 s``, ``3 h 20 min``."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
