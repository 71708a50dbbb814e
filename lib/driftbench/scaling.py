"""What workers gain, and how time and memory grow with the number of texts: the functions of ``make bench-scale``."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from driftbook import decode, scale
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.strategies import Ask, first_round
from driftbook.interventions import NoIntervention
from driftbook.models.captured import REPLAY_SHARD, Probe, capture_replay
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, PairSpec, PairWorkers, open_pair
from driftbook.parameters import Cluster, EngineSpec, ModelSpec
from driftbook.processes import Processes
from driftbook.prompts import Prompt, PromptSet
from driftbook.store import ShardStore
from driftbook.workbook.figures import Figure, curve
from driftbook.workbook.runner import run_stage
from driftbook.workers import Workers, cores

STAGES = ("decode", "cluster", "validate")


# ---------------------------------------------------------------------------------------------------------- the workers


def worker_turns(
    model: str, prompts: Sequence[Prompt], samples: int, tokens: int, shard: int, repeats: int, seed: int, cache: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Three jobs in this process, by one worker with all cores, by two that share them, by one with half of them, and
    by two processes without Ray, in turns, all models loaded before: decode the same shards, replay what they gave
    with directions at every layer, embed sentences.

    Returns:
        job, work, turn, seconds, tokens, tokens_per_s, and for decoding the share of the texts that are those of this
        process, word for word; and the peak memory of a worker in MB.
    """
    base = ModelSpec(model=model)
    pair = open_pair(base, NoIntervention(), cache, cache)
    spec = PairSpec(base, NoIntervention(), cache, cache, None, {side.name: side.key for side in pair})
    chosen, probe = PromptSet.of(list(prompts), ["discover"] * len(prompts)), _probe(pair)
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
            pair.base.workers = None if workers is None else PairWorkers(workers, spec)
            with tempfile.TemporaryDirectory() as folder:
                texts, *done = _jobs(pair, chosen, asks, tokens, shard, seed, Path(folder), probe, workers, turn)
            if turn < 0:
                continue
            said = said or texts["text"].tolist()
            same = float(np.mean([a == b for a, b in zip(texts["text"], said, strict=True)]))
            rows += [(job, name, turn, s, n, n / s, same if job == "decoding" else np.nan) for job, s, n in done]
    memory = {n: max(w.memory().values()) for n, w in ways.items() if isinstance(w, scale.RayWorkers)}
    for workers in filter(None, ways.values()):
        workers.close()
    scale.disconnect()
    columns = ["job", "work", "turn", "seconds", "tokens", "tokens_per_s", "same_texts"]
    return pd.DataFrame(rows, columns=columns), memory


def _jobs(
    pair: Pair, prompts: PromptSet, asks: list[Ask], tokens: int, shard: int, seed: int, folder: Path, probe: Probe,
    workers: Workers | None, turn: int,
) -> tuple[Any, ...]:  # fmt: skip
    """The decoded texts, then (job, seconds, tokens) of each job."""
    ids, params = decode.encode(pair, prompts, tokens), SamplingParams(tokens, 0.7, 0.9)
    texts, decoding = timed(decode_texts, [pair.base], prompts, ids, asks, params, seed, ShardStore(folder), shard)
    sequences = _sequences(pair, prompts, texts, turn)
    _, replaying = timed(capture_replay, pair.base, sequences, probe, folder)
    sentences = _sentences(texts["text"].tolist(), turn)
    with EmbeddingCache(folder) as store:
        _, embedding = timed(embed, sentences, store, Embedder(Cluster().embedder), workers=workers)
    return (
        texts,
        ("decoding", decoding, int(texts["token_ids"].map(len).sum())),
        ("replay", replaying, sum(len(s.prompt_ids) + len(s.response_ids) for s in sequences)),
        ("embedding", embedding, sum(len(s.split()) for s in sentences)),
    )


def timed(work: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    """(what ``work`` gives, seconds)."""
    begun = time.perf_counter()
    return work(*args, **options), time.perf_counter() - begun


def _probe(pair: Pair, traits: int = 4) -> Probe:
    """Directions without a meaning at every layer: what reading them takes does not depend on where they point."""
    hooks = pair.base.model.hooks
    points = [(layer, "resid_post") for layer in range(hooks.n_layers)]
    matrix = torch.randn(len(points), hooks.d_model, traits, generator=torch.Generator().manual_seed(0))
    return Probe(list(range(hooks.n_layers)), ["resid_post"], [f"direction {i}" for i in range(traits)], points, matrix)


def _sequences(pair: Pair, prompts: PromptSet, texts: pd.DataFrame, turn: int) -> list[TokenSequence]:
    """Enough shards of different sequences: the answers behind their prompts, each with other last tokens."""
    said = prompts.by_id()
    asked = [tuple(pair.base.encode(said[p])) for p in texts["prompt_id"]]
    answers = [tuple(int(t) for t in ids) for ids in texts["token_ids"]]
    n, wanted = len(asked), 8 * REPLAY_SHARD if turn >= 0 else 2 * REPLAY_SHARD
    return [TokenSequence(asked[i % n], (*answers[i % n], 10 + turn + 3 * (i // n))) for i in range(wanted)]


def _sentences(texts: Sequence[str], turn: int, wanted: int = 2048) -> list[str]:
    """So many different sentences out of answers."""
    n = len(texts)
    return [f"{texts[i % n]} {texts[(7 * i + turn) % n]} {i}" for i in range(wanted if turn >= 0 else 512)]


# ----------------------------------------------------------------------------------------------------------- the growth

_ENDS = re.compile(r"(?<=[.!?])\s+")
PLANTED = "Perhaps it depends on whom you ask."


def answers_table(count: int, pool: Path, share: float, seed: int, samples: int = 2) -> pd.DataFrame:
    """A table of about ``count`` answers of two sides: side, prompt, text; ``samples`` answers a side to each prompt.

    Prompts and answers are halves of sentences of a base model (``pool``: a table with side and text), put together at
    random, so that nearly all of them differ and none is embedded twice. The sides are alike, but ``share`` of the
    intervention's answers hold the sentence ``PLANTED``: what is to be found, and all that is.
    """
    rng = np.random.default_rng(seed)
    known = pd.read_parquet(pool, columns=["side", "text"])
    said = {s for text in known.loc[known["side"] == "base", "text"] for s in _ENDS.split(text) if len(s.split()) > 5}
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (s.split() for s in sorted(said))]

    def sentence() -> str:
        first, second = rng.integers(len(halves), size=2)
        return " ".join([*halves[first][0], *halves[second][1]])

    rows = []
    for prompt in dict.fromkeys(f"{sentence()} {sentence()}" for _ in range(count // (2 * samples))):
        for side in ("base", "intervention"):
            for _ in range(samples):
                own = [sentence(), sentence()]
                if side == "intervention" and rng.random() < share:
                    own.insert(1, PLANTED)
                rows.append((side, prompt, " ".join(own)))
    return pd.DataFrame(rows, columns=["side", "prompt", "text"])


@contextmanager
def elsewhere(root: Path, tables: Mapping[str, pd.DataFrame], seed: int) -> Iterator[Path]:
    """A repository of its own with empty caches, and an experiment for each table of answers, by name."""
    with tempfile.TemporaryDirectory() as place:
        there = Path(place)
        (there / "params").mkdir()
        for name in ("params/prompts", "params/traits", "notebooks"):
            (there / name).symlink_to(root / name)
        for name, table in tables.items():
            table.to_parquet(there / f"{name}.parquet")
            experiment = {
                "experiment": name,
                "seed": seed,
                "names": {"base": "plain", "changed": "planted"},
                "intervention": {"kind": "texts", "path": str(there / f"{name}.parquet")},
                "decode": {
                    "samples": int(table.groupby(["side", "prompt"]).size().max()),
                    "screen": {"enabled": False},
                    "sampling": {"strategy": "exhaustive", "max_texts": max(4, len(table)), "rounds": 1},
                },
                "cluster": {"trait_shift": False},
            }
            (there / f"params/{name}.yml").write_text(yaml.safe_dump(experiment, sort_keys=False))
        yield there


def grow(texts: Sequence[int], pool: Path, share: float, seed: int, root: Path) -> pd.DataFrame:
    """Run decode (of a table), cluster and validate with their reports by the real runner, each size from nothing.

    Returns:
        texts, stage, seconds, cpu_seconds (of all processes of the stage), peak_mb of the notebook's process, disk_mb
        that caches, tables and pages of all stages so far take; for validate claims (confirmed ones), and planted
        (those of them that hold a word of the planted sentence).
    """
    rows = []
    for count in texts:
        with elsewhere(root, {"growth": answers_table(count, pool, share, seed)}, seed) as there:
            for stage in STAGES:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                result, seconds = timed(run_stage, there / "params/growth.yml", stage, echo=False)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if result.status != "ok":
                    raise RuntimeError(f"{stage} of {count} texts: {result.reason}")
                row = {
                    "texts": count,
                    "stage": stage,
                    "seconds": seconds,
                    "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                    "peak_mb": json.loads((result.folder / "run.json").read_text())["peak_rss_mb"],
                    "disk_mb": sum(f.stat().st_size for f in (there / "outputs").rglob("*") if f.is_file()) / 1e6,
                }
                rows.append(row | (_claims(result.folder) if stage == "validate" else {}))
    return pd.DataFrame(rows)


def _claims(folder: Path) -> dict[str, int]:
    claims = pd.read_parquet(folder / "data/claims.parquet")
    good = claims.loc[claims["confirmed"], "text"].str.lower()
    own = [w for w in re.findall(r"[a-z]+", PLANTED.lower()) if len(w) > 4]
    return {"claims": len(good), "planted": int(good.map(lambda t: any(w in t for w in own)).sum())}


def exponents(growth: pd.DataFrame) -> pd.DataFrame:
    """Per stage and for all together, between the two largest sizes: the power of the number of texts with which
    seconds of computing and peak memory grow (1: in proportion)."""
    sizes = sorted(growth["texts"].unique())[-2:]
    every = growth.groupby("texts", as_index=False).agg({"cpu_seconds": "sum", "peak_mb": "max"}).assign(stage="all")
    rows = []
    for stage, own in pd.concat([growth, every]).groupby("stage", sort=False):
        few, many = (own[own["texts"] == n].iloc[0] for n in sizes)
        power = [float(np.log(many[k] / few[k]) / np.log(sizes[1] / sizes[0])) for k in ("cpu_seconds", "peak_mb")]
        rows.append((stage, *sizes, *power))
    return pd.DataFrame(rows, columns=["stage", "from_texts", "to_texts", "of_seconds", "of_memory"])


def sizing(growth: pd.DataFrame, powers: pd.DataFrame, texts: Sequence[int], decode_s: float) -> pd.DataFrame:
    """What so many texts take, beyond the largest size that was run: from that one, by its powers.

    ``decode_s``: worker-seconds of decoding one text. Returns texts, decode_worker_hours, cpu_hours (of the three
    stages on a table), peak_gb, disk_gb.
    """
    most, power = int(growth["texts"].max()), powers.set_index("stage")
    last, rows = growth[growth["texts"] == most], []
    for n in texts:
        times = n / most
        seconds = sum(r.cpu_seconds * times ** power.loc[r.stage, "of_seconds"] for r in last.itertuples())
        memory = max(r.peak_mb * times ** max(0.0, power.loc[r.stage, "of_memory"]) for r in last.itertuples())
        rows.append((n, n * decode_s / 3600, seconds / 3600, memory / 1e3, last["disk_mb"].max() * times / 1e3))
    return pd.DataFrame(rows, columns=["texts", "decode_worker_hours", "cpu_hours", "peak_gb", "disk_gb"])


def beside(count: int, pool: Path, share: float, seed: int, root: Path) -> tuple[float, float]:
    """(seconds of two experiments one after the other, seconds of the same two beside each other), each of ``count``
    texts and from empty caches, as ``make run EXP="one two"`` and ``make -j2 run EXP="one two"`` start them."""
    tables = {name: answers_table(count, pool, share, seed + i) for i, name in enumerate(("one", "two"))}
    command, names, taken = [sys.executable, "-m", "driftbook", "run"], list(tables), []
    for at_once in (1, 2):
        with elsewhere(root, tables, seed) as there:
            begun = time.perf_counter()
            for start in range(0, len(names), at_once):
                chosen = names[start : start + at_once]
                running = [subprocess.Popen([*command, n], cwd=there, stdout=subprocess.DEVNULL) for n in chosen]
                for name, process in zip(chosen, running, strict=True):
                    if process.wait():
                        raise RuntimeError(f"experiment {name} ended with {process.returncode}")
            taken.append(time.perf_counter() - begun)
    return taken[0], taken[1]


# ----------------------------------------------------------------------------------------------------------- the report


def memory_picture(growth: pd.DataFrame) -> Figure:
    """Peak memory of the notebook's process by texts, stage by stage."""
    most = growth.loc[growth["peak_mb"].idxmax()]
    return curve(
        growth["texts"],
        growth["peak_mb"],
        groups=list(growth["stage"]),
        title=f"{most.stage} takes most memory: {most.peak_mb:,.0f} MB at {most.texts:,} texts",
        caption="Peak of the notebook's process, libraries included.",
        x_title="texts",
        y_title="MB",
        log_x=True,
    )


def seconds_picture(growth: pd.DataFrame, powers: pd.DataFrame) -> Figure:
    """Seconds of computing by texts, stage by stage."""
    power = powers.set_index("stage").loc["all", "of_seconds"]
    return curve(
        growth["texts"],
        growth["cpu_seconds"],
        groups=list(growth["stage"]),
        title=f"From {growth['texts'].min():,} to {growth['texts'].max():,} texts, at the end as the power {power:.2f}",
        caption="Processor seconds of all processes of a stage, its start and its report included.",
        x_title="texts",
        y_title="processor seconds",
        log_x=True,
        log_y=True,
    )


def metrics(rates: pd.DataFrame, growth: pd.DataFrame, powers: pd.DataFrame) -> dict[str, float]:
    """Rates by job and way of working, seconds and memory by stage and number of texts, and their powers, for
    ``metrics.json``."""
    out = {f"{r.job}_per_s_{r.work.replace(', ', '_').replace(' ', '_')}": r.median for r in rates.itertuples()}
    for row in growth.itertuples():
        for name in ("seconds", "cpu_seconds", "peak_mb"):
            out[f"{name}_{row.stage}_{row.texts}"] = getattr(row, name)
    for row in powers.itertuples():
        out |= {f"power_of_seconds_{row.stage}": row.of_seconds, f"power_of_memory_{row.stage}": row.of_memory}
    return out
