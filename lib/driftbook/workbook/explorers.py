"""Traces: one of them as a line, or all of a capture as text, coloured by projection, with a script of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from driftbook.numbers import number
from driftbook.workbook.figure import Figure, View, chart, floats, same_length
from driftbook.workbook.packing import MOST_STEPS, differences, pack, quantize, script_json
from driftbook.workbook.theme import DASHES, GREY, SYMBOLS, band, side_colour
from driftbook.workbook.wording import plain, shorten, visible_token

TRACE_BUDGET = 700_000  # characters of base64 that the traces of one explorer may take
FEWEST_LAYERS = 10  # an explorer keeps so many at least


def trait_trace(
    tokens: Sequence[str],
    base: Any,
    *,
    null_low: Any,
    null_high: Any,
    title: str,
    caption: str,
    intervention: Any = None,
    intervention_tokens: Sequence[str] | None = None,
    unit: str = "projection",
    names: tuple[str, str] = ("base", "intervention"),
    alt: str | None = None,
) -> Figure:
    """One sample, one layer, one trait: the projection along the tokens, with the null band behind it.

    ``base`` and ``intervention`` are [position]; the band is a number or [position] each for its low and high end.
    Ticks are the base's tokens. For many samples, layers and traits at once, use :func:`trace_explorer`.
    """
    base = np.asarray(base, dtype=np.float64)
    length = max(len(base), 0 if intervention is None else len(intervention))
    low, high = (np.broadcast_to(np.asarray(v, dtype=np.float64), (length,)) for v in (null_low, null_high))
    at = np.arange(length, dtype=np.int16)
    quiet = {"line": {"width": 0}, "hoverinfo": "skip", "mode": "lines"}
    traces = [
        go.Scatter(x=at, y=floats(low), showlegend=False, **quiet),
        go.Scatter(x=at, y=floats(high), fill="tonexty", fillcolor=band(GREY, 0.25), name="null band", **quiet),
    ]
    sides = [(names[0], base, list(tokens))]
    if intervention is not None:
        own = list(tokens if intervention_tokens is None else intervention_tokens)
        sides.append((names[1], np.asarray(intervention, dtype=np.float64), own))
    said = []
    for index, (name, values, own) in enumerate(sides):
        same_length(**{f"{name} tokens": own, f"{name} values": values})
        traces.append(
            go.Scatter(
                x=at[: len(values)],
                y=floats(values),
                name=name,
                mode="lines+markers",
                line={"color": side_colour(name, index), "dash": DASHES[index], "width": 2},
                marker={"symbol": SYMBOLS[index], "size": 6},
                text=[plain(visible_token(t)) for t in own],
                hovertemplate="%{text}: %{y:.3g}<extra>" + name + "</extra>",
            )
        )
        outside = int(((values > high[: len(values)]) | (values < low[: len(values)])).sum())
        mean = number(float(np.nanmean(values)))
        said.append(f"{name}: mean {mean}, {outside} of {len(values)} tokens outside the null band")
    ticks = [plain(shorten(visible_token(t), 10)) for t in tokens]
    figure = chart(
        traces,
        height=340,
        x={"tickvals": at[: len(ticks)], "ticktext": ticks, "tickangle": -50, "showgrid": False},
        y={"title": {"text": plain(unit)}},
    )
    table = pd.concat(
        [
            pd.DataFrame({"side": name, "position": np.arange(len(own)), "token": own, unit: values})
            for name, values, own in sides
        ],
        ignore_index=True,
    )
    return Figure(
        figure, title, caption, alt or f"Line chart of {unit} along {length} tokens. {'; '.join(said)}.", table
    )


def trace_explorer(
    data: Mapping[str, Any],
    *,
    title: str,
    caption: str,
    start: Mapping[str, Any] | None = None,
    budget: int = TRACE_BUDGET,
) -> Figure:
    """Tokens as text, coloured by projection, with the trace above them: for every sample, layer and trait of a
    capture. It goes to the experiment's front page.

    ``data`` holds
        ``samples``: labels, one a sample; ``traits``: names; ``layers``: numbers;
        ``tokens``: {"base": [sample][position] text, and where there is one "intervention": the same};
        ``projections``: {"base": float [sample, layer, trait, position], ...}, NaN beyond the end of a sample; one or
            two sides, whatever their names;
        ``null_low``, ``null_high``: [layer, trait], the band of random directions;
        ``unit``: what the numbers are, e.g. "projection / mean |h|"; ``null_label``: what the band is;
        ``convention``: "own" or "producer"; the reader can look at both, which are one position apart;
        optional ``prompt_end``: {"base": [sample] number of leading tokens that belong to the prompt, ...}.
    ``start`` may name the first view: {"sample": i, "layer": number, "trait": name}. By default it is the trait, layer
    and sample with the most tokens outside the band.

    Values are stored as steps of 1/63 of the largest |value| of their (layer, trait), in at most ``budget`` characters:
    where that is too little, layers are left out evenly, down to 10, then the last samples, and the figure says so.
    Raises ``ValueError`` when shapes differ.
    """
    arrays, low, high = _checked(data)
    sides = list(arrays)
    samples, traits, layers = list(data["samples"]), list(data["traits"]), [int(v) for v in data["layers"]]
    sample, layer, trait = first = _first_view(arrays, low, high, layers, traits, start or {})
    table = _trace_summary(arrays, low, high, samples, layers, traits)
    picture = _first_picture(data, arrays, low, high, first, title, caption)
    alt = f"Trace of {traits[trait]} at layer {layers[layer]} on {samples[sample]!r}. {picture.alt}"

    at_layer, at_sample = np.arange(len(layers)), np.arange(len(samples))
    blocks = _packed(arrays, low, high)
    while (size := sum(map(len, blocks.values()))) > budget and (len(at_layer) > FEWEST_LAYERS or len(at_sample) > 1):
        share = 0.97 * budget / size
        if len(at_layer) > FEWEST_LAYERS:
            at_layer = _thinned(len(layers), max(FEWEST_LAYERS, int(len(at_layer) * share)), layer)
        else:
            count = max(1, min(len(at_sample) - 1, int(len(at_sample) * share)))
            at_sample = np.array(sorted([sample, *(i for i in range(len(samples)) if i != sample)][:count]))
        kept = {side: a[at_sample][:, at_layer] for side, a in arrays.items()}
        blocks = _packed(kept, low[at_layer], high[at_layer])
    tokens = {side: [list(map(str, data["tokens"][side][i])) for i in at_sample] for side in sides}
    settings = {
        "samples": [samples[i] for i in at_sample],
        "traits": traits,
        "layers": [layers[i] for i in at_layer],
        "sides": sides,
        "unit": data.get("unit", "projection"),
        "convention": data.get("convention", "own"),
        "nullLabel": data.get("null_label", "null band: what meaningless directions reach 95% of the time"),
        "length": max(a.shape[3] for a in arrays.values()),
        "first": [int(np.searchsorted(at_sample, sample)), int(np.searchsorted(at_layer, layer)), trait],
        "steps": MOST_STEPS,
        "note": _left_out(len(at_layer), len(layers), len(at_sample), len(samples)),
    }
    if data.get("prompt_end") is not None:
        settings["promptEnd"] = {s: [int(data["prompt_end"][s][i]) for i in at_sample] for s in sides}
    blocks["tokens"] = pack(script_json(tokens))
    return Figure(picture.plotly, title, caption, alt, table, best=True, view=View("trace", blocks, settings))


def _checked(data: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Projections by side, and the ends of the null band, as float32 arrays of matching shapes."""
    sides = list(data["projections"])
    wanted = (len(data["samples"]), len(data["layers"]), len(data["traits"]))
    low, high = (np.asarray(data[k], dtype=np.float32) for k in ("null_low", "null_high"))
    arrays: dict[str, np.ndarray] = {}
    for side in sides:
        values = np.asarray(data["projections"][side], dtype=np.float32)
        tokens = data["tokens"][side]
        if values.ndim != 4 or values.shape[:3] != wanted:
            raise ValueError(
                f"projections[{side!r}] must be [sample, layer, trait, position] = {wanted}, got {values.shape}"
            )
        if len(tokens) != wanted[0] or any(len(t) > values.shape[3] for t in tokens):
            raise ValueError(f"tokens[{side!r}] must be one list per sample, at most {values.shape[3]} long")
        arrays[side] = values
    if low.shape != wanted[1:] or high.shape != low.shape:
        raise ValueError(f"null_low and null_high must be [layer, trait] = {wanted[1:]}, got {low.shape}, {high.shape}")
    return arrays, low, high


def _packed(arrays: Mapping[str, np.ndarray], low: np.ndarray, high: np.ndarray) -> dict[str, str]:
    """The data blocks of an explorer: step and band per (layer, trait); per side the steps, as differences by layer."""
    reach = np.maximum.reduce(
        [np.nanmax(np.abs(a), axis=(0, 3)) for a in arrays.values()] + [np.abs(low), np.abs(high)]
    )
    scale = np.where(reach > 0, reach / MOST_STEPS, 1.0).astype(np.float32)
    blocks = {"scale": pack(np.stack([scale, low, high]).astype("<f4").tobytes())}
    length = max(a.shape[3] for a in arrays.values())
    for side, values in arrays.items():
        padded = np.full((*values.shape[:3], length), np.nan, np.float32)
        padded[..., : values.shape[3]] = values
        blocks[side] = pack(differences(quantize(padded, scale[None, :, :, None]), axis=1).tobytes())
    return blocks


def _thinned(count: int, keep: int, always: int) -> np.ndarray:
    """``keep`` of ``count`` indices, evenly apart; the one nearest to ``always`` gives it its place."""
    chosen = np.unique(np.linspace(0, count - 1, keep).round().astype(int))
    chosen[np.abs(chosen - always).argmin()] = always
    return chosen


def _left_out(layers: int, of_layers: int, samples: int, of_samples: int) -> str:
    parts = [f"{layers} of {of_layers} layers"] if layers < of_layers else []
    parts += [f"{samples} of {of_samples} prompts"] if samples < of_samples else []
    return f"This page holds {' and '.join(parts)}; all are in the stage's data folder." if parts else ""


def _outside(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of tokens outside the band, [sample, layer, trait]."""
    out = (values > high[None, :, :, None]) | (values < low[None, :, :, None])
    return out.sum(axis=3) / np.maximum(np.isfinite(values).sum(axis=3), 1)


def _first_view(
    arrays: Mapping[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    layers: list[int],
    traits: list[str],
    start: Mapping[str, Any],
) -> tuple[int, int, int]:
    share = np.sum([_outside(a, low, high) for a in arrays.values()], axis=0)
    if "layer" in start:
        share = np.where((np.asarray(layers) == start["layer"])[None, :, None], share, -1)
    if "trait" in start:
        share = np.where((np.asarray(traits, dtype=object) == start["trait"])[None, None, :], share, -1)
    if "sample" in start:
        share = np.where((np.arange(share.shape[0]) == start["sample"])[:, None, None], share, -1)
    sample, layer, trait = np.unravel_index(int(np.argmax(share)), share.shape)
    return int(sample), int(layer), int(trait)


def _first_picture(
    data: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    at: tuple[int, int, int],
    title: str,
    caption: str,
) -> Figure:
    sample, layer, trait = at
    own = {side: a[sample, layer, trait, : len(data["tokens"][side][sample])] for side, a in arrays.items()}
    first, second = (*own, None)[:2]
    return trait_trace(
        data["tokens"][first][sample],
        own[first],
        null_low=float(low[layer, trait]),
        null_high=float(high[layer, trait]),
        intervention=own[second] if second else None,
        intervention_tokens=data["tokens"][second][sample] if second else None,
        names=(first, second or "intervention"),
        unit=str(data.get("unit", "projection")),
        title=title,
        caption=caption,
    )


def _trace_summary(
    arrays: Mapping[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    samples: list[str],
    layers: list[int],
    traits: list[str],
) -> pd.DataFrame:
    """Mean and share outside the band per sample and trait, at the trait's layer with the most tokens outside."""
    rows = []
    best = np.sum([_outside(a, low, high).mean(axis=0) for a in arrays.values()], axis=0).argmax(axis=0)
    for t, trait in enumerate(traits):
        layer = int(best[t])
        for s, label in enumerate(samples):
            row: dict[str, Any] = {"trait": trait, "layer": layers[layer], "sample": label}
            for side, values in arrays.items():
                own = values[s, layer, t]
                row[f"mean, {side}"] = float(np.nanmean(own)) if np.isfinite(own).any() else np.nan
                outside = (own > high[layer, t]) | (own < low[layer, t])
                row[f"outside band, {side}"] = float(outside.sum() / max(np.isfinite(own).sum(), 1))
            rows.append(row)
    return pd.DataFrame(rows)
