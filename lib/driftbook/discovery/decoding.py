"""Texts that were asked for, decoded shard by shard: what a store holds is read from it, here or by workers the rest.

A shard's content follows from its own requests alone, so a run that was killed, or that runs on other workers, gives
the same texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driftbook.discovery.strategies import Ask
from driftbook.models.amplified import amplified
from driftbook.models.answers import Answer, Completion, Question, Request
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.sides import Exaggeration, Pair, Side
from driftbook.prompts import SIDES, Prompt, PromptSet
from driftbook.store import ShardStore, digest

TEXT_SCHEMA = pa.schema(
    [
        ("text_id", pa.string()),
        ("side", pa.string()),
        ("prompt_id", pa.string()),
        ("family", pa.string()),
        ("split", pa.string()),
        ("strength", pa.float64()),
        ("sample_index", pa.int32()),
        ("round", pa.int32()),
        ("propensity", pa.float64()),
        ("seed", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("thought", pa.string()),
        ("log_ratio", pa.float64()),
        ("finish_reason", pa.string()),
        ("model_key", pa.string()),
        ("engine", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Work:
    """What ``decode_texts`` was asked for; ``ids`` by side."""

    prompts: PromptSet
    ids: dict[str, Sequence[tuple[int, ...]]]
    asks: Sequence[Ask]
    params: SamplingParams
    seed: int
    store: ShardStore
    shard: int

    def shards(self, side: Side) -> Iterator[tuple[str, list[int], list[Question]]]:
        """Key, places in ``asks`` and requests of what is decoded together. Prompts of similar length share a shard:
        less padding, and samples of a prompt share its prefill."""
        asks, ids = self.asks, self.ids[side.name]
        order = sorted(
            range(len(asks)), key=lambda i: (asks[i].round, -len(ids[asks[i].prompt]), asks[i].prompt, asks[i].sample)
        )
        for start in range(0, len(order), self.shard):
            chosen = order[start : start + self.shard]
            asked = [(asks[i], self.prompts.prompts[asks[i].prompt]) for i in chosen]
            others = self.ids[_other(side.name)] if side.exaggerated else None
            requests = [
                Question(
                    ids[a.prompt],
                    text_seed(self.seed, side.name, p, a.sample),
                    other_ids=others and others[a.prompt],
                    prompt=p,
                    sample=a.sample,
                )
                for a, p in asked
            ]
            yield shard_key(side, self.params, requests), chosen, requests


def decode_texts(
    sides: Iterable[Side],
    prompts: PromptSet,
    ids: dict[str, Sequence[tuple[int, ...]]],
    asks: Sequence[Ask],
    params: SamplingParams,
    seed: int,
    store: ShardStore,
    shard: int = 128,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Sample the texts that are asked for from every side, shard by shard; finished shards come from the store.

    A shard's content follows from its own requests alone, so a run that was killed, or that runs on other workers,
    gives the same texts. Row order is that of ``sides``, then of ``asks``. Workers get the shards of all sides at
    once, so that none waits for the end of a side.

    Returns:
        a table with the columns of ``texts.parquet``, and ``seconds``: what a text took when it was decoded, so that a
        rate can be told of texts that came from the store.
    """
    sides, work = list(sides), _Work(prompts, ids, asks, params, seed, store, shard)
    made = _made_by_workers([side for side in sides if side.workers is not None], work, progress)
    return pd.concat([_texts_of(side, work, made, progress) for side in sides], ignore_index=True)


def _made_by_workers(sides: Sequence[Side], work: _Work, progress: Callable[[int], Any] | None) -> set[str]:
    """Keys of the shards that were missing and that workers put into the store."""
    if not sides:
        return set()
    missing = (
        (side.name, side.exaggerated, key, [Request(q.prompt_ids, q.seed, other_ids=q.other_ids) for q in requests])
        for side in sides
        for key, _, requests in work.shards(side)
        if not work.store.has_table(key)
    )
    unused = str(sides[0].model.dtype).removeprefix("torch.") if sides[0].engine.loads_weights else None
    decode = partial(decode_into, work.params, work.store.folder)
    made: set[str] = set()
    for key, count in sides[0].workers.map(decode, missing, unused_weights=unused):
        made.add(key)
        if progress:
            progress(count)
    return made


def _texts_of(side: Side, work: _Work, made: set[str], progress: Callable[[int], Any] | None) -> pd.DataFrame:
    """One side's texts, decoded here where the store does not have them. ``progress`` has heard of ``made``."""
    store, asks = work.store, work.asks
    pieces: list[pd.DataFrame] = []
    for key, chosen, requests in work.shards(side):
        decoded = partial(decode_shard, side, requests, work.params, progress)
        rows = store.kept_table(key, decoded, None if key in made else progress, len(chosen)).to_pandas()
        if "text" not in rows:
            said = [side.model.said(t.tolist(), r.prompt_ids) for t, r in zip(rows.token_ids, requests, strict=True)]
            ended = [s.reason(reason) for s, reason in zip(said, rows.finish_reason, strict=True)]
            answers, thoughts = [s.text for s in said], [s.thought for s in said]
            rows = rows.assign(text=answers, thought=thoughts, finish_reason=ended)
        pieces.append(
            pd.DataFrame(
                {
                    "ask": chosen,
                    "seed": [r.seed for r in requests],
                    "token_ids": [list(map(int, t)) for t in rows.token_ids],
                    "finish_reason": rows.finish_reason,
                    "seconds": rows.seconds,
                    "text": rows.text,
                    "thought": rows.thought if "thought" in rows else "",
                }
            )
        )
    if not pieces:
        return TEXT_SCHEMA.empty_table().to_pandas().assign(seconds=np.zeros(0))
    out = pd.concat(pieces).sort_values("ask", kind="stable").reset_index(drop=True)
    asked = [work.prompts.prompts[a.prompt] for a in asks]
    out["side"] = side.name
    out["prompt_id"] = [p.prompt_id for p in asked]
    out["family"] = [p.family for p in asked]
    out["split"] = [p.split for p in asked]
    out["strength"] = side.exaggerated.strength if side.exaggerated else 0.0
    out["sample_index"] = np.array([a.sample for a in asks], np.int32)
    out["round"] = np.array([a.round for a in asks], np.int32)
    out["propensity"] = [a.propensity for a in asks]
    out["log_ratio"] = np.nan
    out["model_key"] = side.key
    out["engine"] = side.engine.name
    params = asdict(work.params)
    out["text_id"] = [
        digest(side.name, side.key, p, int(s), int(k), params)[:16]
        for p, s, k in zip(out.prompt_id, out.sample_index, out.seed, strict=True)
    ]
    return out[[*TEXT_SCHEMA.names, "seconds"]]


def shard_key(side: Side, params: SamplingParams, requests: Sequence[Request]) -> str:
    """What a shard of texts is kept under: everything that shapes them, and nothing of who decodes them."""
    asked = [(r.prompt_ids, r.seed) if r.other_ids is None else (r.prompt_ids, r.seed, r.other_ids) for r in requests]
    return digest("decode", side.engine.name, side.engine.version, side.key, asdict(params), asked)


def decode_shard(
    side: Side,
    requests: Sequence[Request],
    params: SamplingParams,
    progress: Callable[[int], Any] | None = None,
) -> pa.Table:
    """The texts of one shard in the order of its requests: token_ids, finish_reason, seconds, and text and thought
    where the engine answers in words."""
    begun = time.monotonic()
    done: dict[int, Completion] = {}
    for completion in side.generate(requests, params):
        done[completion.index] = completion
        if progress:
            progress(1)
    completions = [done[k] for k in range(len(requests))]
    columns = {
        "token_ids": pa.array([c.token_ids for c in completions], pa.list_(pa.int32())),
        "finish_reason": [c.finish_reason for c in completions],
        "seconds": [(time.monotonic() - begun) / len(requests)] * len(requests),
    }
    if any(isinstance(c, Answer) for c in completions):  # said in words: tokens may not give them back
        columns |= {name: [getattr(c, name) for c in completions] for name in ("text", "thought")}
    return pa.table(columns)


def decode_into(
    params: SamplingParams, folder: Path, pair: Pair, shard: tuple[str, Exaggeration | None, str, list[Request]]
) -> tuple[str, int]:
    """What a worker does with one shard (side, how it is exaggerated, key, requests): decode it into the store. Returns
    its key and how many texts it holds."""
    name, how, key, requests = shard
    ShardStore(folder).put_table(key, decode_shard(amplified(pair, how, name), requests, params))
    return key, len(requests)


def _other(side: str) -> str:
    return SIDES[1 - SIDES.index(side)]


def text_seed(seed: int, side: str, prompt: Prompt, sample: int) -> int:
    """The stream of one text: the sides draw independently, also where their models are the same."""
    return stream_seed("decode", seed, side, prompt.prompt_id, sample)


def available(pair: Pair, prompts: PromptSet, asks: list[Ask]) -> list[Ask]:
    """The requests that both sides can answer: a table of texts holds only so many samples of a prompt."""
    return [a for a in asks if all(a.sample < s.engine.available(prompts.prompts[a.prompt]) for s in pair)]
