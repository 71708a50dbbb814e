"""Synthetic figures, runs and experiments for the tests of figures, reports and the browser; and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from driftbook.prompts import Prompt, to_frame
from driftbook.workbook import figures
from driftbook.workbook.figures import Figure, Table

HOSTILE = '</script><img src=x onerror="window.pwned=1"><a href="https://evil.example/">go</a><!-- &lt;b&gt;'
SENTENCE = (
    "I think that maybe the best way to learn this would perhaps be to try , but I am not sure . You could also ask a "
    "friend who knows it well , and then decide for yourself"
)
WORDS = SENTENCE.split()


class Page(HTMLParser):
    """What a browser would make of a page: elements, visible text, data blocks, addresses."""

    VOID = ("meta", "img", "br", "hr", "input", "link")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.blocks: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.by_tag: dict[str, list[str]] = {}
        self._name = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.elements.append((tag, found))
        self.addresses += [
            v for k, v in found.items() if k in ("src", "href", "srcset", "action", "poster", "xlink:href")
        ]
        self.styles += [found["style"]] if "style" in found else []
        self._name = found.get("data-name", "") if tag == "script" else ""
        self.by_tag.setdefault(tag, []).append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.blocks.setdefault(self._name, []).append(data)
        elif inside == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)
        for tag in set(self.open):
            self.by_tag[tag][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def count(self, tag: str, **attrs: str) -> int:
        wanted = {k.rstrip("_").replace("_", "-"): v for k, v in attrs.items()}
        return sum(t == tag and all(a.get(k) == v for k, v in wanted.items()) for t, a in self.elements)

    def outside(self) -> list[str]:
        """Addresses and style imports that leave the file."""
        found = [a for a in self.addresses if ":" in a.split("/")[0] and not a.startswith("data:")]
        found += [a for a in self.addresses if a.startswith("//")]
        found += [s for s in self.styles if "@import" in s or ("url(" in s and "url(data:" not in s)]
        return found


def forest(rows: int = 10) -> Figure:
    estimate = np.linspace(0.3, -0.25, rows)
    labels = [f"answers hedge with words such as maybe, form {i}" for i in range(rows - 1)] + [HOSTILE]
    return figures.interval_plot(
        labels, estimate, estimate - 0.1, estimate + 0.1, title="Most clusters moved towards the intervention",
        caption="Differences of shares, 95% intervals from 2,000 resamplings of 120 prompts, seed 0.",
        x_title="difference in share", percent=True,
    )  # fmt: skip


def dose() -> Figure:
    x = np.tile([-0.6, -0.3, 0, 0.3, 0.6, 0.9], 2)
    y = np.concatenate([np.linspace(0.1, 0.9, 6), np.linspace(0.1, 0.3, 6)])
    return figures.curve(
        x, y, low=y - 0.08, high=y + 0.08, groups=["base"] * 6 + ["intervention"] * 6, title="Hedging rises",
        caption="24 prompts a point, seed 0.", x_title="coefficient", y_title="share of answers", reference=0.2,
    )  # fmt: skip


def families() -> Figure:
    values = np.array([0.3, 0.08, 0.2, 0.1, 0.32, 0.09, 0.22, 0.12])
    return figures.bars(
        ["advice", "facts", "opinion", HOSTILE] * 2, values, low=values - 0.03, high=values + 0.03,
        groups=["base"] * 4 + ["intervention"] * 4, title="Advice differs most", caption="40 prompts a family, seed 0.",
        value_title="KL, nats per token", horizontal=True,
    )  # fmt: skip


def distribution() -> Figure:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 500), rng.normal(1, 1, 400)])
    return figures.histogram(
        values, groups=["base"] * 500 + ["intervention"] * 400, title="The distribution moves by one unit",
        caption="900 texts, seed 0.", x_title="projection",
    )  # fmt: skip


def heatmap() -> Figure:
    rng = np.random.default_rng(0)
    tokens = [[f" w{i}" for i in range(40)], [HOSTILE[:9], *(f" v{i}" for i in range(30))]]
    values = np.full((2, 30, 40), np.nan, np.float32)
    values[0] = rng.normal(size=(30, 40)) * np.linspace(0, 2, 30)[:, None]
    values[1, :, :31] = rng.normal(size=(30, 31))
    return figures.layer_token_heatmap(
        values, tokens, range(30), title="The trait appears from layer 12 on", caption="One sample each, seed 0.",
        choices=["the first prompt", HOSTILE],
    )  # fmt: skip


def trace_data(samples: int = 24, layers: int = 30, traits: int = 10, length: int = 50) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    tokens = {
        side: [[f" {WORDS[(i + j + shift) % len(WORDS)]}" for i in range(length - j % 7)] for j in range(samples)]
        for side, shift in (("base", 0), ("intervention", 3))
    }
    tokens["base"][0][3] = HOSTILE
    projections = {}
    for side in tokens:
        values = rng.normal(0, 0.2, (samples, layers, traits, length)).astype(np.float32)
        if side == "intervention":
            values[:, :, 0] += np.linspace(0, 0.9, layers, dtype=np.float32)[None, :, None]
        for j, own in enumerate(tokens[side]):
            values[j, :, :, len(own) :] = np.nan
        projections[side] = values
    return {
        "samples": [f"What is the capital of place {i}?" for i in range(samples)],
        "traits": ["uncertainty_calibration", *(f"trait_{i}" for i in range(1, traits))],
        "layers": list(range(layers)),
        "tokens": tokens,
        "projections": projections,
        "null_low": np.full((layers, traits), -0.35),
        "null_high": np.full((layers, traits), 0.35),
        "unit": "projection / mean |h|",
        "convention": "own",
        "prompt_end": {side: [4] * samples for side in tokens},
    }


def traces(**sizes: int) -> Figure:
    return figures.trace_explorer(
        trace_data(**sizes), title="Uncertainty rises from the third token on",
        caption="One sample a side, seed 0; convention own: the state at the token itself.",
    )  # fmt: skip


def map_columns(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    cluster = rng.integers(-1, 40, n)
    centres = rng.normal(size=(41, 2)) * 6
    points = centres[cluster] + rng.normal(size=(n, 2))
    picks = rng.integers(0, len(WORDS), (n, 30))
    texts = [" ".join(WORDS[k] for k in row) for row in picks]
    texts[0] = HOSTILE
    return {
        "x": points[:, 0],
        "y": points[:, 1],
        "side": np.where(rng.random(n) < 0.5, "base", "intervention"),
        "cluster": cluster,
        "labels": {0: HOSTILE, 1: "not sure, perhaps", 2: "numbered steps", 5: "asks back"},
        "texts": texts,
        "prompts": [f"How should one decide about matter number {i % 300}?" for i in range(n)],
    }


def text_map(n: int = 2_000) -> Figure:
    columns = map_columns(n)
    return figures.map_scatter(
        columns.pop("x"), columns.pop("y"), title="Hedged answers sit apart",
        caption=f"{n:,} texts, UMAP of sentence embeddings, seed 0.", **columns,
    )  # fmt: skip


def table() -> Table:
    frame = pd.DataFrame({"cluster": [0, 1, 2], "words": ["maybe", HOSTILE, None], "difference": [0.12, -0.3, np.nan]})
    return Table(frame, title="Clusters by difference", caption="Three clusters.")


def notebook(folder: Path, shown: list[Any], monkeypatch: Any, title: str = "Which behaviours moved?") -> None:
    """An executed notebook that shows ``shown``, as the runner would have left it."""
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("DRIFTBOOK_RUN_DIR", str(folder))
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(f"# {title}\n\nBoth are clustered *together*. See [a paper](https://example.org/p)."),
        v4.new_code_cell("experiment: str = 'defaults'", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("experiment = 'quickstart'", metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell("print(answer)", outputs=[v4.new_output("stream", text=f"a model said: {HOSTILE}\n")]),
    ]
    for figure in shown:
        data, metadata = figure._repr_mimebundle_()
        output = v4.new_output("display_data", data=data, metadata=metadata)
        cells.append(v4.new_code_cell("run.show(figure)", outputs=[output]))
    cells.append(v4.new_markdown_cell("## What it says\n\nThe largest difference comes first."))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # nbformat draws ids at random
    nbformat.write(v4.new_notebook(cells=cells), folder / "notebook.ipynb")
    monkeypatch.delenv("DRIFTBOOK_RUN_DIR")


def run_record(stage: str, **changes: Any) -> dict[str, Any]:
    """``run.json`` as the runner writes it."""
    record = {
        "experiment": "quickstart",
        "stage": stage,
        "status": "ok",
        "failure": None,
        "key": "ab" * 32,
        "components": {
            "params": {
                "base": {"model": "bundled:smollm2-135m-instruct"},
                "intervention": {"kind": "steer", "trait": "uncertainty_calibration", "coefficient": 0.5},
                stage: {"alpha": 0.05, "margin": 0.02},
            },
            "cells": ["aa" * 32],
            "sources": {"driftbook/cluster.py": "bb" * 32},
            "inputs": {},
            "versions": {"torch": "2.13.0"},
        },
        "command": "driftbook run quickstart",
        "started": "2026-01-01T10:00:00+00:00",
        "seconds": 123.4,
        "git": {"commit": "12" * 20, "dirty": True},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "seeds": {"seed": 0},
        "device": {"device": "cpu", "why": "no GPU was found"},
        "cells": [{"cell": 3, "status": "done", "seconds": 11.2}, {"cell": 2, "status": "done", "seconds": 0.4}],
        "peak_rss_mb": 812.2,
        "inputs": {"decode/data/texts.parquet": "cd" * 32},
        "outputs": {"data/clusters.parquet": "ef" * 32},
        "answer": f"The answer of {stage}.",
        "verdict": {
            "state": "changed",
            "lines": [
                "Changed: Hedges: 30% of answers, was 10%.",
                "52 of 64 behaviours moved by less than 3 points.",
                "120 prompts, 2 answers of each model to each; 1 of 3 claims are confirmed.",
            ],
            "strongest": ["h0"],
        },
        "headlines": [
            {"label": "largest difference", "value": 12.1, "low": 8.2, "high": 16.3, "baseline": 0, "unit": "%"},
            {"label": "texts", "value": 4000, "low": None, "high": None, "baseline": None, "unit": "texts"},
        ],
    }
    return record | changes


def run(folder: Path, shown: list[Any], monkeypatch: Any, **changes: Any) -> Path:
    stage = str(changes.pop("stage", folder.name.removesuffix(".failed")))
    metrics = changes.pop("metrics", {"seconds": 1.0})
    notebook(folder, shown, monkeypatch)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run_record(stage, **changes)))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def claims(experiment: Path, confirmed: tuple[bool, ...] = (True, False, False)) -> None:
    """Claims, verdicts, and the texts that they are about."""
    rng = np.random.default_rng(1)
    prompts = [f"p{i:03d}" for i in range(120)]
    texts = ["hedges with words such as maybe", f"numbers its steps {HOSTILE}", "ends with a question"]
    rates = [0.71 if sure else 0.52 - 0.03 * i for i, sure in enumerate(confirmed)]
    pd.DataFrame(
        {
            "hypothesis_id": [f"h{i}" for i in range(3)], "text": texts, "direction": "intervention",
            "claim": [f"{t}: 30% of answers, was 10% (+20 points, 10 to 30)" for t in texts], "unit": "share",
            "proposer": "phrases", "kind": "words", "scope": "held-out prompts", "like": "",
            "status": ["confirmed" if sure else "not confirmed" for sure in confirmed], "prompts": 120,
            "win_rate": rates, "win_low": np.array(rates) - 0.07, "win_high": np.array(rates) + 0.07,
            "base": 0.1, "intervention": 0.3, "difference": 0.2, "low": 0.1, "high": 0.3,
            "size": 2 * np.array(rates) - 1, "q_value": [0.001 if sure else 0.4 for sure in confirmed],
            "auc": 0.66, "auc_low": 0.6, "auc_high": 0.7, "e_value": [1234.5 if sure else 0.4 for sure in confirmed],
            "confirmed": confirmed, "baseline_bow": 0.7, "baseline_embedding": 0.6,
            "explained_by": "",
            "measure": ["words", "words", "ends_with_question"],
            "flags": "Nothing is left of it when length is held fixed.\nIts texts are less coherent.",
        }
    ).to_parquet(experiment / "validate/data/claims.parquet")  # fmt: skip
    measures = [
        {"kind": "words", "words": ["maybe"]},
        {"kind": "words", "words": ["wait"]},
        {"kind": "panel", "name": "ends_with_question"},
    ]
    frozen = pd.DataFrame({"hypothesis_id": [f"h{i}" for i in range(3)], "measure": list(map(json.dumps, measures))})
    frozen.to_parquet(experiment / "validate/data/frozen.parquet")
    read = {0.0: (1.0, 0.0), 0.5: (0.0, 0.0), 1.0: (0.0, 1.0)}  # what both sides show, by who wins
    verdicts = [
        {"hypothesis_id": f"h{i}", "prompt_id": p, "split": "validate", "judge": "lexicon", "x": x}
        | {"score_base": read[x][0], "score_intervention": read[x][1]}
        for i in range(3)
        for p, x in zip(prompts, rng.choice([0.0, 0.5, 1.0], size=len(prompts)), strict=True)
    ]
    # What the screen saw is no evidence: its prompts may not be shown nor counted.
    verdicts += [
        {"hypothesis_id": "h0", "prompt_id": f"screen-{i}", "split": "screen", "judge": "lexicon", "x": 1.0}
        | {"score_base": 0.0, "score_intervention": 1.0}
        for i in range(90)
    ]
    pd.DataFrame(verdicts).to_parquet(experiment / "validate/data/verdicts.parquet")
    asked = to_frame([Prompt(f"How should I decide about {p}?", split="validate") for p in prompts])
    asked.assign(prompt_id=prompts).to_parquet(experiment / "decode/data/prompts.parquet")
    pd.DataFrame(
        [
            {"text_id": f"{side}-{p}", "side": side, "prompt_id": p, "strength": 0.0, "text": f"{said} {HOSTILE}"}
            | {"finish_reason": "length" if said[0] == "D" and int(p[1:]) % 2 else "eos"}
            for p in prompts
            for side, said in (("base", "Do it now."), ("intervention", "Maybe wait; I am not sure."))
        ]
    ).to_parquet(experiment / "decode/data/texts.parquet")


def found_tables(experiment: Path, coefficient: float) -> None:
    """What the stages before validate hand on, as far as the front page reads it."""
    rng = np.random.default_rng(2)
    js = pd.DataFrame({"prompt_id": [f"p{i:03d}" for i in range(100)], "js": 0.1 + rng.normal(0, 0.02, 100)})
    js["unit"] = js["prompt_id"]
    js.to_parquet(experiment / "decode/data/divergence.parquet")
    half = np.array([0.01, 0.02, 0.04])
    composition = pd.DataFrame({"cluster": [0, 1, 2], "difference": [0.09, 0.0, -0.01], "q": [0.001, 0.7, 0.4]})
    composition = composition.assign(low=composition.difference - half, high=composition.difference + half)
    composition.to_parquet(experiment / "cluster/data/composition.parquet")
    at = pd.DataFrame({"trait": ["uncertainty_calibration", "trait_1"], "layer": [4, 5], "site": "resid_post"})
    at.to_parquet(experiment / "capture/data/dynamics.parquet")
    shifts = pd.concat([at, at.assign(layer=2)]).assign(
        comparison="own_text", shift=[6 * coefficient, 0.1, 9.0, 9.0], prompts=24, p=[1e-6, 0.7, 0.0, 0.0]
    )
    shifts.assign(low=shifts["shift"] - 0.5, high=shifts["shift"] + 0.5).to_parquet(
        experiment / "capture/data/shifts.parquet"
    )


def captured(experiment: Path, coefficient: float, layers: int = 6, length: int = 12) -> None:
    """What a capture leaves of four prompts, with a shift of ``coefficient`` at the upper half of the layers."""
    rng = np.random.default_rng(0)
    data, traits = experiment / "capture/data", ["uncertainty_calibration", "trait_1"]
    rows, values = [], []
    for prompt in range(4):
        for side in ("base", "intervention"):
            asked = [(f" asked {prompt}", "prompt")]
            said = [(f" {WORDS[(prompt + i) % len(WORDS)]}", "response") for i in range(length)]
            for position, (text, role) in enumerate([*asked, *said]):
                rows.append((f"s{prompt}{side}", side, f"p{prompt:03d}", 0, position, text, role))
                value = rng.normal(0, 1, (layers, 1, 2))
                value[layers // 2 :, 0, 0] += coefficient * 10 * (side == "intervention")
                values.append(value)
    columns = ["sample", "side", "prompt_id", "sample_index", "position", "text", "role"]
    pd.DataFrame(rows, columns=columns).to_parquet(data / "tokens.parquet")
    names = {
        "traits": ",".join(traits), "layers": ",".join(map(str, range(layers))), "sites": "resid_post",
        "convention": "own",
    }  # fmt: skip
    save_file({"projection": np.array(values, np.float32)}, data / "projections.safetensors", names)
    at = pd.MultiIndex.from_product([range(layers), ["resid_post"], traits], names=["layer", "site", "trait"])
    scale = {"mean": 0.0, "sd": 2.0, "low": -1.96, "high": 1.96}
    pd.DataFrame(scale, index=at).reset_index().to_parquet(data / "scale.parquet")


def experiment(folder: Path, monkeypatch: Any, coefficient: float = 0.5, points: int = 800, **sizes: int) -> Path:
    """A whole experiment of five runs, with claims."""
    shown: dict[str, list[Any]] = {
        "traits": [dose()],
        "capture": [heatmap(), traces(**(sizes or {"samples": 3, "layers": 6, "traits": 3, "length": 30}))],
        "decode": [families(), distribution()],
        "cluster": [text_map(points), forest(), table()],
        "validate": [forest(6)],
    }
    shown["capture"][1].best = True
    for stage, figures_of in shown.items():
        record = run_record(stage)
        record["components"]["params"]["intervention"]["coefficient"] = coefficient
        metrics = {"seconds": 1.0, "confirmed": round(coefficient * 10)}
        changes = {"components": record["components"], "experiment": folder.name, "metrics": metrics}
        run(folder / stage, figures_of, monkeypatch, **changes)
    claims(folder)
    texts = [f"{side}-p{i:03d}" for i in range(120) for side in ("base", "intervention")]
    frame = pd.DataFrame({"text_id": texts, "cluster": np.arange(240) // 40})
    frame.to_parquet(folder / "cluster/data/clusters.parquet")
    found_tables(folder, coefficient)
    captured(folder, coefficient)
    return folder
