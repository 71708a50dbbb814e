"""What workers gain, and how time and memory grow with the number of texts: the functions of ``make bench-scale``."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook import decode, scale
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.strategies import Ask, first_round
from driftbook.interventions import NoIntervention
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, PairSpec, PairWorkers, open_pair
from driftbook.parameters import EngineSpec, ModelSpec
from driftbook.processes import Processes
from driftbook.prompts import Prompt, PromptSet
from driftbook.store import ShardStore
from driftbook.workbook.figures import Figure, curve
from driftbook.workbook.runner import run_stage
from driftbook.workers import Workers, cores

GROWTH_STAGES = ("decode", "cluster", "validate")


# ---------------------------------------------------------------------------------------------------------- the workers


def worker_turns(
    model: str, prompts: Sequence[Prompt], samples: int, tokens: int, shard: int, repeats: int, seed: int, cache: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Decode the same shards in this process, by one worker with all cores, by two that share them, by one with half of
    them, and by two processes without Ray; in turns, all models loaded before.

    Returns:
        work, turn, seconds, tokens, tokens_per_s, and the share of the texts that are those of this process, word for
        word; and the peak memory of a worker in MB.
    """
    base = ModelSpec(model=model)
    pair = open_pair(base, NoIntervention(), cache, cache)
    spec = PairSpec(base, NoIntervention(), cache, cache, None, {side.name: side.key for side in pair})
    chosen = PromptSet.of(list(prompts), ["discover"] * len(prompts))
    here = cores()
    half = max(1, here // 2)
    # Workers that wait take no time: Ray counts CPUs, it does not hand them out.
    scale.connect(EngineSpec(kind="ray", workers=3), here + 2 * half)
    ways: dict[str, Workers | None] = {"this process": None}
    for name, count, threads in (("1 worker", 1, here), ("2 workers", 2, half), ("1 worker, half", 1, half)):
        ways[name] = scale.RayWorkers(EngineSpec(kind="ray", workers=count), threads=threads)
    ways["2 processes"] = Processes(2, half)
    rows, said = [], []
    for turn in range(-1, repeats):  # the first turn, on few texts, loads the models
        asks = first_round(chosen, samples if turn >= 0 else 1, 10**9)
        for name, workers in ways.items():
            _share(pair, workers, spec)
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                texts = _decoded(pair, chosen, asks, tokens, shard, seed, Path(folder))
                seconds = time.perf_counter() - begun
            if turn < 0:
                continue
            said = said or texts.text.tolist()
            same = float(np.mean([a == b for a, b in zip(texts.text, said, strict=True)]))
            count = int(texts.token_ids.map(len).sum())
            rows.append((name, turn, seconds, count, count / seconds, same))
    memory = {n: max(w.memory().values()) for n, w in ways.items() if isinstance(w, scale.RayWorkers)}
    for workers in filter(None, ways.values()):
        workers.close()
    scale.disconnect()
    return pd.DataFrame(rows, columns=["work", "turn", "seconds", "tokens", "tokens_per_s", "same_texts"]), memory


def _share(pair: Pair, workers: Workers | None, spec: PairSpec) -> None:
    pair.base.workers = None if workers is None else PairWorkers(workers, spec)


def _decoded(
    pair: Pair, prompts: PromptSet, asks: list[Ask], tokens: int, shard: int, seed: int, folder: Path
) -> pd.DataFrame:
    ids = decode.encode(pair, prompts, tokens)
    params = SamplingParams(tokens, 0.7, 0.9)
    return decode_texts([pair.base], prompts, ids, asks, params, seed, ShardStore(folder), shard)


# ----------------------------------------------------------------------------------------------------------- the growth


def grow(texts: Sequence[int], prompts: int, tokens: int, workers: int, seed: int, root: Path) -> pd.DataFrame:
    """Run decode, cluster and validate by the real runner on so many texts of two tiny models, each size from nothing.

    Returns:
        texts, stage, seconds, and the peak memory in MB of the process that ran the notebook (with ``engine.kind: ray``
        the driver); bytes that the caches and the tables of all stages take on disk.
    """
    rows = []
    for count in texts:
        with tempfile.TemporaryDirectory() as place:
            there = Path(place)
            (there / "params").mkdir()
            for name in ("params/prompts", "params/traits", "notebooks"):
                (there / name).symlink_to(root / name)
            for number, name in enumerate(("before", "after")):
                tiny_model("llama", "sdpa", seed=number).save_pretrained(there / name)
                tiny_tokenizer().save_pretrained(there / name)
            experiment = growth_experiment(count, prompts, tokens, workers, seed, there)
            file = there / "params/growth.yml"
            file.write_text(yaml.safe_dump(experiment, sort_keys=False))
            for stage in GROWTH_STAGES:
                result = run_stage(file, stage, echo=False)
                if result.status != "ok":
                    raise RuntimeError(f"{stage} of {count} texts: {result.reason}")
                record = json.loads((result.folder / "run.json").read_text())
                metrics = json.loads((result.folder / "metrics.json").read_text())
                rows.append(
                    {
                        "texts": metrics["texts"] if stage == "decode" else rows[-1]["texts"],
                        "stage": stage,
                        "seconds": metrics["seconds"],
                        "driver_mb": record["peak_rss_mb"],
                        "disk_mb": sum(f.stat().st_size for f in (there / "outputs").rglob("*") if f.is_file()) / 1e6,
                    }
                )
    return pd.DataFrame(rows)


def growth_experiment(texts: int, prompts: int, tokens: int, workers: int, seed: int, folder: Path) -> dict[str, Any]:
    """An experiment of two tiny models that decodes ``texts`` texts of ``prompts`` prompts in one round."""
    return {
        "experiment": "growth",
        "seed": seed,
        "base": {"model": str(folder / "before")},
        "intervention": {"kind": "checkpoint", "model": str(folder / "after")},
        "engine": {"kind": "ray", "workers": workers},
        "decode": {
            "prompts": ["params/prompts/discovery.jsonl"],
            "max_prompts": prompts,
            "samples": max(1, texts // (2 * prompts)),
            "max_new_tokens": tokens,
            "sampling": {"strategy": "exhaustive", "max_texts": texts, "rounds": 1},
        },
        "cluster": {"trait_shift": False},
        "validate": {"judges": {"cheap": {"kind": "lexicon"}}},
    }


def slopes(growth: pd.DataFrame) -> pd.DataFrame:
    """Per stage, from the least to the most texts: seconds and driver memory (kB) that one more text takes."""
    rows = []
    for stage, group in growth.groupby("stage", sort=False):
        first, last = group.loc[group.texts.idxmin()], group.loc[group.texts.idxmax()]
        more = last.texts - first.texts
        seconds, memory = last.seconds - first.seconds, 1000 * (last.driver_mb - first.driver_mb)
        rows.append((stage, seconds / more, memory / more))
    return pd.DataFrame(rows, columns=["stage", "seconds_per_text", "driver_kb_per_text"])


def sizing(rates: dict[str, float], texts: Sequence[int]) -> pd.DataFrame:
    """Hours, driver memory and disk for so many texts, in proportion to measured rates.

    ``rates``: ``decode_s``, ``embed_s``: worker-seconds a text; ``driver_kb``: of the hungriest stage; ``disk_kb``.
    """
    n = np.asarray(texts, float)
    return pd.DataFrame(
        {
            "texts": list(texts),
            "decode_worker_hours": n * rates["decode_s"] / 3600,
            "driver_gb": n * rates["driver_kb"] / 1e6,
            "disk_gb": n * rates["disk_kb"] / 1e6,
        }
    )


# ---------------------------------------------------------------------------------------------------------- the report


def memory_picture(growth: pd.DataFrame, workers: int, tokens: int) -> Figure:
    """Peak memory of the notebook's process by texts, stage by stage."""
    most = growth.loc[growth.driver_mb.idxmax()]
    return curve(
        growth.texts,
        growth.driver_mb,
        groups=list(growth.stage),
        title=f"{most.stage} takes most memory: {most.driver_mb:,.0f} MB at {most.texts:,} texts",
        caption=f"Peak of the notebook's process, {workers} workers beside it, at most {tokens} tokens a text.",
        x_title="texts",
        y_title="MB",
    )


def seconds_picture(growth: pd.DataFrame) -> Figure:
    """Seconds by texts, stage by stage."""
    return curve(
        growth.texts,
        growth.seconds,
        groups=list(growth.stage),
        title=f"From {growth.texts.min():,} to {growth.texts.max():,} texts",
        caption="Seconds of the notebook, start of the workers included.",
        x_title="texts",
        y_title="seconds",
    )


def metrics(rates: pd.DataFrame, growth: pd.DataFrame, slopes: pd.DataFrame) -> dict[str, float]:
    """Rates by way of working, and memory and seconds by stage and number of texts, for ``metrics.json``."""
    out = {f"tokens_per_s_{row.work.replace(', ', '_').replace(' ', '_')}": row.median for row in rates.itertuples()}
    for row in growth.itertuples():
        out |= {
            f"driver_mb_{row.stage}_{row.texts}": row.driver_mb,
            f"seconds_{row.stage}_{row.texts}": row.seconds,
        }
    return out | {f"driver_kb_per_text_{row.stage}": row.driver_kb_per_text for row in slopes.itertuples()}
