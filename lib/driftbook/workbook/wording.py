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


_SIDE = re.compile(r"\b(?:the |of (?=base|intervention))?(base|intervention)\b(?!-| models?\b| alone)", re.IGNORECASE)


def by_name(text: str, names: tuple[str, str]) -> str:
    """A sentence of ours with the models' names in it; what stands in quotation marks is a text's, and stays."""
    parts = re.split(r'("[^"]*")', text)

    def name(match: re.Match[str]) -> str:
        said = names[0] if match[1].lower() == "base" else names[1]
        return f"of {said}" if match[0].lower().startswith("of ") else said

    return "".join(p if i % 2 else _SIDE.sub(name, p) for i, p in enumerate(parts))


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
