"""Traces of two experiments in one picture: token by token on the prompts that both captured, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from safetensors import safe_open

from driftbook.workbook.claims import read_table
from driftbook.workbook.explorers import trace_explorer
from driftbook.workbook.figure import Figure
from driftbook.workbook.figures import curve

POINT = ["layer", "site", "trait"]


@dataclass(frozen=True)
class Capture:
    """What a capture left: rows of tokens, raw projections [row, layer, site, trait], and the scale of its null."""

    tokens: pd.DataFrame
    projection: np.ndarray
    layers: list[int]
    sites: list[str]
    traits: list[str]
    convention: str
    scale: pd.DataFrame


def read_capture(experiment: Path) -> Capture | None:
    """The capture of ``outputs/<experiment>``; None where one of its files is not there."""
    data = experiment / "capture" / "data"
    if not all((data / f).is_file() for f in ("projections.safetensors", "tokens.parquet", "scale.parquet")):
        return None
    with safe_open(data / "projections.safetensors", "numpy") as file:
        names = file.metadata()
        projection = file.get_tensor("projection")
    return Capture(
        read_table(data / "tokens.parquet"),
        projection,
        [int(v) for v in names["layers"].split(",")],
        names["sites"].split(","),
        names["traits"].split(","),
        names["convention"],
        read_table(data / "scale.parquet").set_index(POINT),
    )


def overlaid_tokens(a: Path, b: Path) -> Figure | None:
    """The interventions of both on the prompts that both captured, each in the null units of its own experiment.

    None where the two share no prompt, trait and layer, hold their rows by different conventions, or are the same.
    """
    left, right = read_capture(a), read_capture(b)
    if left is None or right is None or left.convention != right.convention:
        return None
    if np.array_equal(left.projection, right.projection):
        return None  # one and the same capture: nothing to lay over another
    traits = [t for t in left.traits if t in right.traits]
    layers = [v for v in left.layers if v in right.layers]
    site = next((s for s in reversed(left.sites) if s in right.sites), None)
    answers = [_first_answers(c) for c in (left, right)]
    shared = [p for p in answers[0] if p in answers[1]]
    if not traits or not layers or site is None or not shared:
        return None
    names = _names(a, b)
    prompts = _prompt_texts((a, b))
    scored = [_scored(c, own, shared, layers, site, traits) for c, own in zip((left, right), answers, strict=True)]
    bands = [[_points(c, name, layers, site, traits) for c in (left, right)] for name in ("low", "high")]
    return trace_explorer(
        {
            "samples": [prompts.get(p, p) for p in shared],
            "traits": traits,
            "layers": layers,
            "tokens": {n: tokens for n, (_, tokens) in zip(names, scored, strict=True)},
            "projections": {n: values for n, (values, _) in zip(names, scored, strict=True)},
            "null_low": np.minimum(*bands[0]),
            "null_high": np.maximum(*bands[1]),
            "unit": "score in null standard deviations",
            "convention": left.convention,
        },
        title=f"The changed models of {a.name} and {b.name}, token by token",
        caption=f"First answers to {len(shared)} prompts at {site}, each in the null units of its own experiment. "
        "Shaded: the wider of the two null bands.",
    )


def overlaid_layers(a: Path, b: Path) -> Figure | None:
    """Shift of every trait by layer, on the models' own text, of both with intervals; None where they are the same."""
    paths = [e / "capture" / "data" / "shifts.parquet" for e in (a, b)]
    if not all(p.is_file() for p in paths):
        return None
    tables = [read_table(p) for p in paths]
    tables = [t[t["comparison"] == "own_text"] for t in tables]
    if tables[0].reset_index(drop=True).equals(tables[1].reset_index(drop=True)):
        return None
    common = set(map(tuple, tables[0][["site", "trait"]].to_numpy())) & set(
        map(tuple, tables[1][["site", "trait"]].to_numpy())
    )
    if not common:
        return None
    sites = [s for s in ("resid_post", "resid_mid", "resid_pre") if s in {own for own, _ in common}]
    site = sites[0] if sites else min(own for own, _ in common)
    parts = [t[t["site"] == site].assign(experiment=name) for t, name in zip(tables, _names(a, b), strict=True)]
    both = pd.concat(parts, ignore_index=True)
    most = both["shift"].abs().groupby(both["trait"]).max().sort_values(ascending=False, kind="stable")
    traits = [str(t) for t in most.index if (site, t) in common]
    prompts = " and ".join(f"{int(p['prompts'].iloc[0])}" for p in parts)
    title = f"How far each trait moved, layer by layer, in {a.name} and {b.name}"
    caption = f"Own text at {site}, {prompts} prompts, 95% intervals over prompts."
    figures = []
    for trait in traits:
        own = both[both["trait"] == trait]
        figures.append(
            curve(
                own["layer"], own["shift"], low=own["low"], high=own["high"], groups=list(own["experiment"]),
                title=title, caption=caption, x_title="layer", y_title="shift (null SD)", reference=0.0,
            )
        )  # fmt: skip
    return _choice_of(figures, traits, "Trait")


def _choice_of(figures: list[Figure], choices: list[str], label: str) -> Figure:
    """One picture with a picker from several of the same kind."""
    traces = []
    for i, figure in enumerate(figures):
        for trace in figure.plotly.data:
            trace.meta, trace.visible = {"choice": i}, i == 0
            traces.append(trace)
    first = figures[0]
    tables = [f.table.assign(**{label.lower(): name}) for f, name in zip(figures, choices, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    together = go.Figure(traces, first.plotly.layout)
    alt = f"{choices[0]}: {first.alt}"
    return Figure(together, first.title, first.caption, alt, table, choices=tuple(choices), choice_label=label)


def _names(a: Path, b: Path) -> list[str]:
    return [a.name, b.name if b.name != a.name else f"{b.name} (second)"]


def _first_answers(capture: Capture) -> dict[str, np.ndarray]:
    """Prompt id to the rows of the response tokens of its first answer by the intervention."""
    tokens = capture.tokens.reset_index(drop=True)
    chosen = tokens[(tokens["side"] == "intervention") & (tokens["sample_index"] == 0) & (tokens["role"] == "response")]
    return {str(p): own.to_numpy() for p, own in chosen.groupby("prompt_id", sort=False).groups.items()}


def _scored(
    capture: Capture,
    answers: Mapping[str, np.ndarray],
    prompts: list[str],
    layers: list[int],
    site: str,
    traits: list[str],
) -> tuple[np.ndarray, list[list[str]]]:
    """Scores [prompt, layer, trait, position], NaN after the end of an answer, and its tokens as text."""
    at = np.ix_([capture.layers.index(v) for v in layers], [capture.traits.index(t) for t in traits])
    mean, sd = (_points(capture, name, layers, site, traits) for name in ("mean", "sd"))
    texts = capture.tokens["text"].astype(str).to_numpy()
    longest = max(len(answers[p]) for p in prompts)
    values = np.full((len(prompts), len(layers), len(traits), longest), np.nan, np.float32)
    for i, prompt in enumerate(prompts):
        rows = answers[prompt]
        raw = capture.projection[rows][:, :, capture.sites.index(site)]
        values[i, :, :, : len(rows)] = ((raw[:, at[0], at[1]] - mean) / sd).transpose(1, 2, 0)
    return values, [[str(t) for t in texts[answers[p]]] for p in prompts]


def _points(capture: Capture, name: str, layers: list[int], site: str, traits: list[str]) -> np.ndarray:
    """A column of the scale as [layer, trait]."""
    column: Any = capture.scale[name]
    return np.array([[column[(v, site, t)] for t in traits] for v in layers], dtype=np.float32)


def _prompt_texts(experiments: tuple[Path, Path]) -> dict[str, str]:
    """What the captured prompts ask, read from the rows whose role is prompt."""
    said: dict[str, str] = {}
    for experiment in experiments:
        tokens = read_table(experiment / "capture" / "data" / "tokens.parquet")
        asked = tokens[(tokens["role"] == "prompt") & (tokens["sample_index"] == 0) & (tokens["side"] == "base")]
        for prompt, own in asked.groupby("prompt_id", sort=False):
            said.setdefault(str(prompt), "".join(own["text"].astype(str)).strip())
    return said
