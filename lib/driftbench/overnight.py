"""The overnight capture, as the scripts before ran it and as one process runs it: ``python -m
driftbench.overnight WAY SPEC``.

Both tiers: every prompt is answered with every layer and three sites projected, and some are also taken apart inside
one layer. What a way needs is imported inside it, so that nobody pays for the other's libraries.

``process_per_prompt`` is one process a prompt: load, batch size 1, every state copied to the host at every token, one
trait. ``one_load`` does the same after one load. ``one_batch`` is ours: one load, one batch, all traits at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
        command = [sys.executable, "-m", "driftbench.overnight", way, str(spec)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
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

    clock = _Clock()
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


# --------------------------------------------------------------------------------------------------------- the old way


def one_load(work: Work) -> dict[str, float]:
    """What the scripts did, for each prompt in turn: states to the host at every token, then one vector on them."""
    import torch  # what this way needs
    from transformers import AutoModelForCausalLM, AutoTokenizer

    clock = _Clock()
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    captured: dict[tuple[int, str], list[torch.Tensor]] = {}

    def keep(layer: int, site: str):
        def hook(_module, _inputs, output):
            value = output[0] if isinstance(output, tuple) else output
            captured.setdefault((layer, site), []).append(value.detach().cpu().clone())

        return hook

    for i, block in enumerate(model.model.layers):
        block.input_layernorm.register_forward_hook(keep(i, "resid_pre"))
        block.self_attn.register_forward_hook(keep(i, "attn"))
        block.register_forward_hook(keep(i, "resid_post"))
    clock.lap("load")
    tokens = 0
    for place, prompt in enumerate(work.prompts):
        captured.clear()
        inside = place in work.tier3
        handles = _watch_inside(model.model.layers[work.layer], work.layer, keep) if inside else []
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            if inside:  # attention weights are formed by the eager kernel alone
                model.set_attn_implementation("eager")
            out = model.generate(
                **ids,
                max_new_tokens=work.max_new_tokens,
                do_sample=True,
                temperature=0.7,
                pad_token_id=0,
                output_attentions=inside,
                return_dict_in_generate=True,
            )
            model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()
        tokens += out.sequences.shape[1] - ids["input_ids"].shape[1]
        stacked = {f"{layer}.{site}": torch.cat([s.flatten(0, -2) for s in v]) for (layer, site), v in captured.items()}
        sites = {k: (v @ vector).numpy() for k, v in stacked.items() if k.endswith(("resid_pre", "attn", "resid_post"))}
        np.savez(Path(work.folder) / f"prompt{place}.npz", **sites)
        if inside:
            weights = {f"attention{t}": step[work.layer].numpy() for t, step in enumerate(out.attentions)}
            own = {name: v.numpy() for name, v in stacked.items() if name.startswith(f"{work.layer}.")}
            np.savez(Path(work.folder) / f"inside{place}.npz", **weights, **own)
        clock.lap("tier3" if inside else "tier2")
    return clock.laps | {"tokens": tokens}


def _watch_inside(block: Any, layer: int, keep: Any) -> list[Any]:
    attention, mlp = block.self_attn, block.mlp
    parts = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "up": mlp.up_proj}
    parts |= {"activation": mlp.act_fn, "down": mlp.down_proj}
    return [module.register_forward_hook(keep(layer, name)) for name, module in parts.items()]


class _Clock:
    def __init__(self):
        self.laps = {"load": 0.0, "tier2": 0.0, "tier3": 0.0}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] += now - self.last
        self.last = now


def main(arguments: Sequence[str]) -> None:
    way, spec = arguments
    work = Work(**json.loads(Path(spec).read_text()))
    out = one_batch(work) if way == "one_batch" else one_load(work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(out | {"peak_rss_mb": peak}))


if __name__ == "__main__":
    main(sys.argv[1:])
