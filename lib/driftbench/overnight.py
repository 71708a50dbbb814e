"""The overnight capture, as the scripts before ran it and as one process runs it: ``python -m
driftbench.overnight SPEC``.

Both tiers: every prompt is answered with every layer and three sites projected, and some are also taken apart inside
one layer.

``process_per_prompt`` is one process a prompt: load, batch size 1, every state copied to the host at every token, one
trait. ``one_load`` does the same after one load; both are a script without driftbook
(:mod:`driftbench.overnight_before`). ``one_batch`` is ours: one load, one batch, all traits at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from driftbench import overnight_before
from driftbench.overnight_before import Clock, told

if TYPE_CHECKING:
    import pandas as pd

    from driftbook.workbook.figures import Figure
    from driftbook.workbook.tables import Table

WAYS = {
    "process_per_prompt": "one process per prompt",
    "one_load": "one load, one prompt at a time",
    "one_batch": "one load, one batch",
}


@dataclass(frozen=True)
class Work:
    """What each way has to do; ``tier3`` holds the places of the prompts whose ``layer`` is taken apart. Every answer
    has ``max_new_tokens`` tokens, whatever the model says, so that all ways do the same work."""

    model: str
    prompts: list[str]
    tier3: list[int]
    layer: int
    max_new_tokens: int
    traits: int
    cache: str
    folder: str


@dataclass(frozen=True)
class Night:
    """What one way took: ``seconds`` from the start of python to its end, all processes together, and the parts."""

    way: str
    seconds: float
    start: float  # starting python and importing
    load: float
    tier2: float
    tier3: float  # of the tier 3 prompts; the old ways read both tiers of them at once
    tokens: int
    peak_rss_mb: float


def spend(way: str, work: Work) -> Night:
    """Run one way and time it from outside, start of python included."""
    folder = Path(work.folder)
    jobs = range(len(work.prompts)) if way == "process_per_prompt" else [None]
    parts, begun = [], time.perf_counter()
    for job in jobs:
        chosen = work if job is None else _only(work, job)
        spec = folder / "work.json"
        spec.write_text(json.dumps(asdict(chosen)))
        before = time.perf_counter()
        code = ["-m", "driftbench.overnight"] if way == "one_batch" else ["-P", overnight_before.__file__]
        out = subprocess.run([sys.executable, *code, str(spec)], check=True, capture_output=True, text=True).stdout
        part = json.loads(out.strip().splitlines()[-1])
        part["start"] = time.perf_counter() - before - part["load"] - part["tier2"] - part["tier3"]
        parts.append(part)
    seconds = time.perf_counter() - begun
    total = {name: sum(p[name] for p in parts) for name in ("start", "load", "tier2", "tier3", "tokens")}
    return Night(way, seconds, peak_rss_mb=max(p["peak_rss_mb"] for p in parts), **total)


def _only(work: Work, job: int) -> Work:
    tier3 = [0] if job in work.tier3 else []
    return Work(**asdict(work) | {"prompts": [work.prompts[job]], "tier3": tier3})


def table(nights: Sequence[Night]) -> pd.DataFrame:
    """One row per way, means where it was run more than once; ``label`` and ``tokens_per_s`` beside the fields of
    :class:`Night`."""
    import pandas as pd  # no way needs it

    frame = pd.DataFrame([asdict(n) for n in nights]).groupby("way", sort=False).mean().loc[list(WAYS)].reset_index()
    frame.insert(1, "label", [WAYS[way] for way in frame.way])
    return frame.assign(tokens_per_s=frame.tokens / frame.seconds)


def speedup(nights: Sequence[Night], way: str) -> tuple[float, float, float]:
    """Seconds of a way over ours: of the means, and the least and largest of any two runs."""
    theirs, ours = ([n.seconds for n in nights if n.way == name] for name in (way, "one_batch"))
    return float(np.mean(theirs) / np.mean(ours)), min(theirs) / max(ours), max(theirs) / min(ours)


def title(table: pd.DataFrame) -> str:
    """The finding over the picture."""
    seconds = table.set_index("way").seconds
    times = seconds["process_per_prompt"] / seconds["one_batch"]
    return f"One load and one batch take the overnight prompts {times:.0f} times faster"


def picture(table: pd.DataFrame, work: Work) -> Figure:
    """Seconds of every way."""
    from driftbook.workbook.figures import bars  # no way needs it

    return bars(
        list(table.label),
        table.seconds,
        horizontal=True,
        title=title(table),
        caption=f"{len(work.prompts)} prompts, {work.max_new_tokens} tokens each, tier 3 for {len(work.tier3)} of "
        f"them. Old: one trait a prompt. Ours: {work.traits} traits, mean of a run before and one after. Start of "
        "python and model load included.",
        value_title="seconds",
    )


def stages(table: pd.DataFrame) -> Table:
    """The same, part by part."""
    from driftbook.workbook.tables import Table  # no way needs it

    caption = (
        "Seconds. start: python and its libraries; load: the model; tier 2 and tier 3: the prompts (the old ways read "
        "both tiers of a tier 3 prompt at once, so tier 3 holds those prompts whole)."
    )
    return Table(table, "Where the time goes", caption)


def answer(table: pd.DataFrame) -> str:
    """The bench in a sentence or two."""
    t = table.set_index("way")
    ours = t.loc["one_batch"]
    return (
        f"The overnight prompts, both tiers, take {t.seconds['process_per_prompt']:.0f} s with one process per prompt, "
        f"{t.seconds['one_load']:.0f} s after one load, and {ours.seconds:.1f} s in one batch: "
        f"{t.seconds['process_per_prompt'] / ours.seconds:.1f} and {t.seconds['one_load'] / ours.seconds:.1f} times "
        f"faster. Of ours, {ours.start + ours.load:.1f} s are python, its libraries and the model."
    )


def metrics(table: pd.DataFrame) -> dict[str, float]:
    """The numbers of ``metrics.json``."""
    t = table.set_index("way")
    out = {
        "speedup": t.seconds["process_per_prompt"] / t.seconds["one_batch"],
        "speedup_over_one_load": t.seconds["one_load"] / t.seconds["one_batch"],
        "overnight_seconds": t.seconds["one_batch"],
        "old_seconds": t.seconds["process_per_prompt"],
        "one_load_seconds": t.seconds["one_load"],
    }
    for part in ("start", "load", "tier2", "tier3", "tokens", "peak_rss_mb"):
        out |= {f"overnight_{part}": t[part]["one_batch"], f"old_{part}": t[part]["process_per_prompt"]}
    return {name: float(value) for name, value in out.items()}


def machine_table() -> pd.DataFrame:
    """The hardware that the figures belong to: columns what, value."""
    import pandas as pd  # no way needs them
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    rows = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return pd.DataFrame({"what": list(rows), "value": [str(v) for v in rows.values()]})


# ------------------------------------------------------------------------------------------------------------- our way


def one_batch(work: Work) -> dict[str, float]:
    """All prompts in one batch, all traits; then the tier 3 prompts once more through the layer."""
    import torch  # what this way needs

    from driftbook.models.captured import Sample
    from driftbook.models.loading import load
    from driftbook.models.local import LocalEngine, Request
    from driftbook.models.projection import ProjectionTap, all_points
    from driftbook.models.replay import TokenSequence
    from driftbook.models.sampling import SamplingParams, stream_seed
    from driftbook.models.sides import Side
    from driftbook.models.tier3 import capture_tier3
    from driftbook.parameters import ModelSpec
    from driftbook.sections import RESIDUAL_SITES

    clock = Clock()
    folder = Path(work.folder)
    model = load(ModelSpec(model=work.model), Path(work.cache))
    model = dataclasses.replace(model, eos_ids=frozenset())
    points = all_points(model, RESIDUAL_SITES)
    clock.lap("load")
    generator = torch.Generator().manual_seed(0)
    tap = ProjectionTap(points, torch.randn(len(points), model.hooks.d_model, work.traits, generator=generator))
    requests = [Request(tuple(model.encode_prompt(p)), stream_seed("night", i)) for i, p in enumerate(work.prompts)]
    params = SamplingParams(work.max_new_tokens, 0.7, 1.0)
    said = {c.index: c.token_ids for c in LocalEngine(model, len(requests)).generate(requests, params, [tap])}
    lengths = [len(r.prompt_ids) + len(said[i]) for i, r in enumerate(requests)]
    rows = tap.rows([r.prompt_ids for r in requests], [1.0] * len(requests), lengths)
    np.save(folder / "projections.npy", np.concatenate([r.projection for r in rows]))
    clock.lap("tier2")
    if work.tier3:
        samples = [
            Sample(str(i), "base", i, 0, TokenSequence(requests[i].prompt_ids, tuple(said[i])), "length", rows[i])
            for i in work.tier3
        ]
        capture_tier3(Side("base", model, model.key), samples, [work.layer], folder / "internals", 10**10)
    clock.lap("tier3")
    return clock.laps | {"tokens": sum(map(len, said.values()))}


def main(spec: str) -> None:
    print(told(one_batch(Work(**json.loads(Path(spec).read_text())))))


if __name__ == "__main__":
    main(sys.argv[1])
