"""Maps of texts: every text a point, with a script of its own to filter, zoom, and read the texts of a region."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftbook.workbook.figure import SVG_POINTS, Figure, View
from driftbook.workbook.packing import pack, to_int16
from driftbook.workbook.theme import BASE, GREY, INTERVENTION, lab_template, theme
from driftbook.workbook.wording import plain

TEXT_LENGTH = 240  # characters of a text that a map carries
MAP_BUDGET = 3_000_000  # characters of base64 that one map may take


def map_scatter(
    x: Any,
    y: Any,
    *,
    title: str,
    caption: str,
    side: Any = None,
    sides: Sequence[str] = ("base", "intervention"),
    cluster: Any = None,
    labels: Mapping[int, str] | None = None,
    texts: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    budget: int = MAP_BUDGET,
    alt: str | None = None,
) -> Figure:
    """A map of texts, one point a text: pan, zoom, filter by side, and read the texts of a region by a click or a
    lasso.

    ``x``, ``y`` [n]; ``side`` [n] of "base" / "intervention", or of the three that ``sides`` names, the last of them
    grey; ``cluster`` [n] of ints, -1 is noise; ``labels`` names
    clusters on the map; ``texts`` and ``prompts`` [n]. At most ``budget`` characters go into the page: what does not
    fit of the texts is left out by a fixed random choice, and the page says how many it holds. Up to 5,000 points are
    drawn as SVG, more by WebGL.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(x)
    for name, values in (("y", y), ("side", side), ("cluster", cluster), ("texts", texts), ("prompts", prompts)):
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has {len(values)} entries for {n} points")
    # Sorted by x, the steps between neighbours are tiny and pack to almost nothing; and no side is drawn on top of the
    # other.
    order = np.argsort(x, kind="stable")
    qx, x_offset, x_step = to_int16(x[order])
    qy, y_offset, y_step = to_int16(y[order])
    blocks = {
        "x": pack(np.diff(qx.astype(np.int32), prepend=0).astype("<i4").tobytes()),
        "y": pack(qy.astype("<i2").tobytes()),
    }
    settings: dict[str, Any] = {
        "n": n,
        "x": [x_offset, x_step],
        "y": [y_offset, y_step],
        "sides": [],
        "gl": n > SVG_POINTS,
    }
    side_codes = np.zeros(n, np.uint8)
    if side is not None:
        names = [s for s in sides if s in set(map(str, side)) or len(sides) > 2]
        names += sorted(set(map(str, side)) - set(names))
        side_codes = np.array([names.index(str(s)) for s in np.asarray(side, dtype=object)[order]], dtype=np.uint8)
        settings["sides"] = names
        if len(sides) > 2:
            settings["grey"] = len(sides) - 1
        blocks["side"] = pack(side_codes.tobytes())
    cluster_codes = np.full(n, -1, np.int32)
    if cluster is not None:
        cluster_codes = np.asarray(cluster, dtype=np.int32)[order]
        blocks["cluster"] = pack(cluster_codes.astype("<i2").tobytes())
        settings["labels"] = _labels(x[order], y[order], cluster_codes, labels or {})
    used = sum(map(len, blocks.values()))
    if prompts is not None:
        unique = list(dict.fromkeys(prompts))
        index = {p: i for i, p in enumerate(unique)}
        codes = np.array([index[prompts[i]] for i in order], dtype="<u4" if len(unique) > 65_535 else "<u2")
        block, names = pack(codes.tobytes()), pack(_joined([p[:TEXT_LENGTH] for p in unique]))
        if used + len(block) + len(names) <= budget:
            blocks |= {"prompt": block, "prompts": names}
            settings["promptBytes"] = codes.itemsize
            used += len(block) + len(names)
    kept = np.zeros(n, np.uint8)
    if texts is not None:
        kept, packed = _texts_within([texts[i] for i in order], budget - used)
        blocks |= {"kept": pack(np.packbits(kept, bitorder="little").tobytes()), "texts": packed}
        settings["texts"] = int(kept.sum())
    ordered = [str(texts[i]) for i in order] if texts is not None else None
    figure = _map_figure(x[order], y[order], side_codes, settings, ordered)
    table = _cluster_table(cluster_codes, side_codes, settings["sides"], labels or {}) if cluster is not None else None
    if alt is None:
        alt = f"Map of {n:,} texts"
        if settings["sides"]:
            alt += ": " + ", ".join(
                f"{int((side_codes == i).sum()):,} {name}" for i, name in enumerate(settings["sides"])
            )
        if cluster is not None:
            names = settings["labels"]
            alt += f"; {len(names)} clusters" + (
                ", the largest " + "; ".join(repr(v["text"]) for v in names[:5]) if names else ""
            )
        alt += "."
    return Figure(figure, title, caption, alt, table, view=View("map", blocks, settings))


def _labels(x: np.ndarray, y: np.ndarray, cluster: np.ndarray, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """One label per cluster at the median of its points, largest cluster first. Where some are named, only those
    show.
    """
    numbers, counts = np.unique(cluster[cluster >= 0], return_counts=True)
    found = []
    for number in numbers[np.argsort(-counts, kind="stable")]:
        own = cluster == number
        text = labels.get(int(number), f"cluster {number}")
        found.append(
            {
                "cluster": int(number),
                "text": str(text),
                "shown": not labels or int(number) in labels,
                "x": float(np.median(x[own])),
                "y": float(np.median(y[own])),
                "n": int(own.sum()),
            }
        )
    return found


def _joined(texts: Sequence[str]) -> str:
    return "\x00".join(t.replace("\x00", " ") for t in texts)


def _texts_within(texts: Sequence[str], budget: int) -> tuple[np.ndarray, str]:
    """Which texts are kept (uint8 flags), and them packed within ``budget`` characters."""
    n = len(texts)
    priority = np.random.default_rng(0).permutation(n)
    short = [t if len(t) <= TEXT_LENGTH else t[: TEXT_LENGTH - 1] + "…" for t in map(str, texts)]
    probe = priority[:2_000]
    per_text = (
        4
        / 3
        * len(gzip.compress(_joined([short[i] for i in probe]).encode("utf-8", "replace"), 9))
        / max(len(probe), 1)
    )
    count = min(n, max(0, int(budget / per_text))) if n else 0
    while True:
        kept = np.zeros(n, np.uint8)
        kept[priority[:count]] = 1
        packed = pack(_joined([short[i] for i in np.flatnonzero(kept)]))
        if len(packed) <= budget or count == 0:
            return kept, packed
        count = int(count * 0.93 * budget / len(packed))


def _map_figure(
    x: np.ndarray,
    y: np.ndarray,
    side: np.ndarray,
    settings: Mapping[str, Any],
    texts: Sequence[str] | None,
) -> go.Figure:
    """The map for JupyterLab and for the static picture: one colour per point by side, labels at the largest
    clusters.
    """
    palette = [BASE, INTERVENTION, *theme()["light"]["palette"][2:7]] if settings["sides"] else [GREY]
    if settings.get("grey"):
        palette[settings["grey"]] = GREY
    last = max(len(palette) - 1, 1)
    scale = [[i / last, c] for i, c in enumerate(palette)] if len(palette) > 1 else [[0, GREY], [1, GREY]]
    few = len(x) <= SVG_POINTS
    hover = [plain(_wrapped(text)).replace("\n", "<br>") for text in texts] if few and texts is not None else None
    points = (go.Scatter if few else go.Scattergl)(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        mode="markers",
        marker={"color": side, "cmin": 0, "cmax": last, "colorscale": scale, "size": 5 if few else 3},
        text=hover,
        hoverinfo="text" if hover else "skip",
        showlegend=False,
    )
    traces = [points]
    for code, name in enumerate(settings["sides"]):
        marker = {"color": palette[code % len(palette)], "size": 9}
        traces.append(go.Scatter(x=[None], y=[None], mode="markers", name=plain(name), marker=marker))
    figure = go.Figure(traces)
    notes = [
        {"x": x_at, "y": y_at, "text": plain(text), "showarrow": False, "font": {"size": 12}}
        for x_at, y_at, text in _apart(settings.get("labels", []), x, y)
    ]
    bare = {"visible": False, "showgrid": False}
    figure.update_layout(
        template=lab_template(),
        height=520,
        xaxis=bare,
        yaxis=bare,
        annotations=notes,
        showlegend=bool(settings["sides"]),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    return figure


def _apart(labels: Sequence[Mapping[str, Any]], x: np.ndarray, y: np.ndarray) -> list[tuple[float, float, str]]:
    """Labels that can stand on a map of 690 by 460 pixels without covering one another, largest cluster first."""
    taken: list[tuple[float, float, float]] = []
    kept = []
    for label in labels:
        text = label["text"] if len(label["text"]) <= 36 else label["text"][:35] + "…"
        px = (label["x"] - float(x.min())) / (float(np.ptp(x)) or 1.0) * 690
        py = (label["y"] - float(y.min())) / (float(np.ptp(y)) or 1.0) * 460
        half = len(text) * 3.6
        if not label["shown"] or any(abs(px - a) < half + b and abs(py - c) < 18 for a, c, b in taken):
            continue
        taken.append((px, py, half))
        kept.append((label["x"], label["y"], text))
    return kept[:24]


def _wrapped(text: str, width: int = 70) -> str:
    words, lines, line = str(text)[:TEXT_LENGTH].split(), [], ""
    for word in words:
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def _cluster_table(
    cluster: np.ndarray, side: np.ndarray, sides: Sequence[str], labels: Mapping[int, str]
) -> pd.DataFrame:
    rows = []
    for number in np.unique(cluster):
        own = cluster == number
        row: dict[str, Any] = {
            "cluster": int(number),
            "label": "noise" if number < 0 else labels.get(int(number), ""),
            "texts": int(own.sum()),
        }
        row |= {name: int((side[own] == i).sum()) for i, name in enumerate(sides)}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("texts", ascending=False, ignore_index=True)
