"""Decode: both sides answer the same prompts; divergence says where they part, and the sampling goes there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driftbook.discovery.embeddings import through_cache
from driftbook.discovery.screen import (
    keep_divergent,
    no_divergence,
    score_texts,
    screen_answers,
    screen_divergence,
    worth_scoring,
)
from driftbook.discovery.splits import prompt_set
from driftbook.discovery.strategies import Ask, State, first_round, plan_round, propensities, quality
from driftbook.discovery.two_sample import COLUMNS as FAMILY_COLUMNS
from driftbook.errors import PromptError
from driftbook.evidence.intervals import Interval, bootstrap_mean
from driftbook.models.answers import Question, Request, text_of
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.sides import Pair, Side
from driftbook.models.utilisation import peak_gpu_mb, utilisation
from driftbook.prompt_files import check_lengths, read_prompts
from driftbook.prompts import Prompt, PromptSet, save_prompts
from driftbook.stage import Run
from driftbook.store import ShardStore, digest

TEXT_SCHEMA = pa.schema(
    [
        ("text_id", pa.string()),
        ("side", pa.string()),
        ("prompt_id", pa.string()),
        ("family", pa.string()),
        ("split", pa.string()),
        ("sample_index", pa.int32()),
        ("round", pa.int32()),
        ("propensity", pa.float64()),
        ("seed", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("log_ratio", pa.float64()),
        ("finish_reason", pa.string()),
        ("model_key", pa.string()),
        ("engine", pa.string()),
    ]
)


# -------------------------------------------------------------------------------------------------------------- prompts


def load_prompts(
    patterns: Sequence[str],
    root: Path,
    shares: dict[str, float],
    limit: int | None = None,
    given: Sequence[Prompt] | None = None,
) -> PromptSet:
    """The prompts of the files that the patterns name, or those ``given``, split as ``splits.prompt_set`` does."""
    return prompt_set(read_prompts(list(patterns), root) if given is None else given, shares, limit)


def encode(pair: Pair, prompts: PromptSet, max_new_tokens: int) -> dict[str, list[tuple[int, ...]]]:
    """Token ids of every prompt per side, in the order of the set. Raises PromptError for one that leaves no room to
    answer."""
    ids = {side.name: [side.encode(p) for p in prompts.prompts] for side in pair}
    for side in pair:
        count = dict(zip((p.prompt_id for p in prompts.prompts), map(len, ids[side.name]), strict=True))
        check_lengths(prompts.prompts, lambda p, n=count: n[p.prompt_id], side.model.context - max_new_tokens)
    return ids


# ---------------------------------------------------------------------------------------------------------------- texts


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
            requests = [
                Question(ids[a.prompt], text_seed(self.seed, side.name, p, a.sample), prompt=p, sample=a.sample)
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
        (side.name, key, [Request(q.prompt_ids, q.seed) for q in requests])
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
        pieces.append(
            pd.DataFrame(
                {
                    "ask": chosen,
                    "seed": [r.seed for r in requests],
                    "token_ids": [list(map(int, t)) for t in rows.token_ids],
                    "finish_reason": rows.finish_reason,
                    "seconds": rows.seconds,
                    "text": rows.text
                    if "text" in rows
                    else rows.token_ids.map(lambda t: side.model.decode(t.tolist())),
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
    out["split"] = [work.prompts.splits[a.prompt] for a in asks]
    out["sample_index"] = np.array([a.sample for a in asks], np.int32)
    out["round"] = np.array([a.round for a in asks], np.int32)
    out["propensity"] = [a.propensity for a in asks]
    out["log_ratio"] = np.nan
    out["model_key"] = side.key
    out["engine"] = side.engine.name
    out["text_id"] = [
        digest(side.name, side.key, p, int(s), int(k), asdict(work.params))[:16]
        for p, s, k in zip(out.prompt_id, out.sample_index, out.seed, strict=True)
    ]
    return out[[*TEXT_SCHEMA.names, "seconds"]]


def shard_key(side: Side, params: SamplingParams, requests: Sequence[Request]) -> str:
    """What a shard of texts is kept under: everything that shapes them, and nothing of who decodes them."""
    asked = [(r.prompt_ids, r.seed) for r in requests]
    return digest("decode", side.engine.name, side.engine.version, side.key, asdict(params), asked)


def decode_shard(
    side: Side,
    requests: Sequence[Request],
    params: SamplingParams,
    progress: Callable[[int], Any] | None = None,
) -> pa.Table:
    """The texts of one shard in the order of its requests: token_ids, finish_reason, seconds, and text where the
    engine answers in words."""
    begun = time.monotonic()
    done: dict[int, tuple[list[int], str, str | None]] = {}
    for completion in side.generate(requests, params):
        done[completion.index] = (completion.token_ids, completion.finish_reason, text_of(completion))
        if progress:
            progress(1)
    columns = {
        "token_ids": pa.array([done[k][0] for k in range(len(requests))], pa.list_(pa.int32())),
        "finish_reason": [done[k][1] for k in range(len(requests))],
        "seconds": [(time.monotonic() - begun) / len(requests)] * len(requests),
    }
    if any(text is not None for _, _, text in done.values()):  # said in words: tokens may not give them back
        columns["text"] = [done[k][2] for k in range(len(requests))]
    return pa.table(columns)


def decode_into(
    params: SamplingParams, folder: Path, pair: Pair, shard: tuple[str, str, list[Request]]
) -> tuple[str, int]:
    """What a worker does with one shard (side, key, requests): decode it into the store. Returns its key and how many
    texts it holds."""
    name, key, requests = shard
    ShardStore(folder).put_table(key, decode_shard(getattr(pair, name), requests, params))
    return key, len(requests)


def text_seed(seed: int, side: str, prompt: Prompt, sample: int) -> int:
    """The stream of one text: the sides draw independently, also where their models are the same."""
    return stream_seed("decode", seed, side, prompt.prompt_id, sample)


# --------------------------------------------------------------------------------------------------------------- design


def available(pair: Pair, prompts: PromptSet, asks: list[Ask]) -> list[Ask]:
    """The requests that both sides can answer: a table of texts holds only so many samples of a prompt."""
    return [a for a in asks if all(a.sample < s.engine.available(prompts.prompts[a.prompt]) for s in pair)]


# ------------------------------------------------------------------------------------------------------------ the stage


@dataclass
class Decoded:
    """Everything that the stage hands on, and the totals for its metrics."""

    texts: pd.DataFrame
    rounds: pd.DataFrame
    divergence: pd.DataFrame
    profile: pd.DataFrame
    tokens: int
    decode_seconds: float
    unscreened: str = ""  # why there is no divergence of next tokens
    families: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=FAMILY_COLUMNS))  # by their answers


def decode_rounds(run: Run, pair: Pair, prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]]) -> Decoded:
    """Round 0 for every prompt, the divergence screen, then rounds by the strategy until the budget or the stated
    quality is met."""
    d = run.section
    params = SamplingParams(d.max_new_tokens, d.temperature, d.top_p, d.top_k, d.min_p)
    store = ShardStore(run.cache / "decode")
    asks = first_round(prompts, d.samples, d.sampling.max_texts)
    for side in pair:
        side.engine.check(params)  # a server that is not there ends the run now, not after the other side

    def decode(asked: list[Ask], label: str) -> pd.DataFrame:
        bar = run.progress(2 * len(asked), label, "texts")
        return decode_texts(pair, prompts, ids, asked, params, run.seed, store, d.shard, bar.update)

    c = run.params.cluster
    embed = through_cache(run.cache / "embeddings", c.embedder, c.instruction, run.params.base.device, run.progress)
    texts = decode(asks, "round 0")
    rounds = [_round_row(0, texts)]
    divergence = profile = None
    unscreened = pair.no_divergence() if d.screen.enabled else "decode.screen.enabled is false"
    families = pd.DataFrame(columns=FAMILY_COLUMNS)
    if unscreened and d.screen.enabled:
        divergence, families = screen_answers(prompts, texts, d.screen.samples, embed, run.seed)
        divergence = keep_divergent(divergence, d.screen.keep, d.screen.floor)
    elif not unscreened:
        bar = run.progress(
            int(((texts.split == "discover") & (texts.sample_index < d.screen.samples)).sum()),
            "divergence",
            "responses",
        )
        divergence, profile = screen_divergence(
            pair,
            prompts,
            ids,
            texts,
            min(d.screen.tokens, d.max_new_tokens),
            d.screen.samples,
            store,
            bar.update,
            params if d.temperature > 0 and d.screen.likelihood != "never" else None,
        )
        divergence = keep_divergent(divergence, d.screen.keep, d.screen.floor)

    def known(number: int) -> State:
        return State(
            prompts=prompts,
            texts=texts,
            divergence=divergence,
            seed=run.seed,
            round=number,
            rounds=d.sampling.rounds,
            embed=embed,
            clusters=run.params.cluster.clusters,
        )

    rounds[0]["quality"] = quality(d.sampling, known(1))
    for number in range(1, d.sampling.rounds + 1):
        left = d.sampling.max_texts - len(texts)
        state = known(number)
        planned = available(pair, prompts, plan_round(d.sampling, state, left // 2))
        if not planned:
            break
        new = decode(planned, f"round {number}")
        texts = pd.concat([texts, new], ignore_index=True)
        rounds.append(_round_row(number, new) | {"quality": quality(d.sampling, known(number))})
    texts["propensity"] = propensities(texts)
    if divergence is not None and worth_scoring(d.screen.likelihood, divergence):
        discover = (texts.split == "discover").to_numpy()
        bar = run.progress(int(discover.sum()), "likelihood", "texts")
        texts.loc[discover, "log_ratio"] = score_texts(
            pair, prompts, ids, texts[discover], params, store, d.shard, bar.update
        )
    return Decoded(
        texts,
        pd.DataFrame(rounds),
        divergence if divergence is not None else no_divergence(prompts),
        profile if profile is not None else pd.DataFrame(columns=["position", "kl", "js", "js_se", "n"]),
        int(texts.token_ids.map(len).sum()),
        float(texts.seconds.sum()) / at_once(pair),
        unscreened,
        families,
    )


def _round_row(number: int, new: pd.DataFrame) -> dict[str, Any]:
    return {
        "round": number,
        "prompts": int(new.prompt_id.nunique()),
        "texts": len(new),
        "tokens": int(new.token_ids.map(len).sum()),
        "seconds": round(float(new.seconds.sum()), 3),
    }


def write(run: Run, prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]], pair: Pair, decoded: Decoded) -> None:
    """The stage's tables and metrics."""
    save_prompts(run.data, prompts.prompts, [len(i) for i in ids["base"]])
    decoded.texts[TEXT_SCHEMA.names].to_parquet(
        run.data / "texts.parquet", compression="zstd", schema=TEXT_SCHEMA, index=False
    )
    decoded.rounds.to_parquet(run.data / "rounds.parquet", compression="zstd")
    decoded.divergence.to_parquet(run.data / "divergence.parquet", compression="zstd")
    decoded.profile.to_parquet(run.data / "profile.parquet", compression="zstd")
    run.metric("prompts_screened", int(decoded.divergence.js.notna().sum()))
    run.metric("prompts_kept", int(decoded.divergence.kept.sum()))
    run.metric("texts", len(decoded.texts))
    run.metric("tokens", decoded.tokens)
    run.metric("tokens_per_s", decoded.tokens / max(decoded.decode_seconds, 1e-9))
    run.metric("rounds", len(decoded.rounds))
    run.metric("model_loads", pair.model_loads)
    run.metric("prompts_dropped", len(prompts.dropped))
    run.metric("texts_scored", int(decoded.texts.log_ratio.notna().sum()))
    if "told" in decoded.divergence:
        run.metric("told_mean", float(decoded.divergence.told.mean()))
    if len(decoded.families):
        run.metric("energy", float(decoded.families.energy.iloc[-1]))
        run.metric("energy_p", float(decoded.families.p.iloc[-1]))
    if decoded.divergence.js.notna().any():
        run.metric("js_mean", float(decoded.divergence.js.mean()))
        run.metric("kl_mean", float(decoded.divergence.kl.mean()))


def at_once(pair: Pair) -> int:
    """Processes of this machine that decode at the same time: their seconds overlap."""
    return max(side.workers.workers.at_once if side.workers is not None else 1 for side in pair)


def made_here(pair: Pair, texts: pd.DataFrame) -> dict[str, float]:
    """Texts, tokens and seconds of the sides that answer here: a table and a server do not."""
    here = texts[texts.side.isin([side.name for side in pair if side.here])]
    return {
        "texts": float(len(here)),
        "tokens": float(here.token_ids.map(len).sum()),
        "seconds": float(here.seconds.sum()) / at_once(pair),
    }


def utilisation_of(pair: Pair, made: dict[str, float]) -> dict[str, float]:
    """How busy decoding kept the machine: ``matrix_share`` of its matrix rate (measured now, in the model's dtype), and
    ``peak_gpu_mb`` on a GPU. Empty where nothing was decoded here."""
    model = pair.base.model
    if not made["seconds"]:
        return {}
    found = {"matrix_share": utilisation(model, made["tokens"] / made["seconds"])}
    gpu = peak_gpu_mb(model)
    return found if gpu is None else found | {"peak_gpu_mb": gpu}


def no_prompts(prompts: PromptSet) -> None:
    """Raise PromptError when a split that later stages need is empty."""
    for split in ("discover", "validate"):
        if split not in prompts.splits:
            raise PromptError(f"no prompt fell into the split {split!r}; give more prompts, or change decode.splits")


def family_divergence(divergence: pd.DataFrame, prompts: PromptSet, seed: int) -> pd.DataFrame:
    """Mean JS per family with 95% intervals by resampling prompts, largest first; empty when nothing was screened."""
    families = {p.prompt_id: p.family for p in prompts.prompts}
    rows = []
    for family, group in divergence.assign(family=divergence.prompt_id.map(families)).groupby("family", sort=True):
        js = group.js.dropna().to_numpy(float)
        if len(js):
            i = bootstrap_mean(js, seed=seed)
            rows.append((family, i.estimate, i.low, i.high, len(js)))
    out = pd.DataFrame(rows, columns=["family", "js", "low", "high", "prompts"])
    return out.sort_values("js", ascending=False, kind="stable").reset_index(drop=True)


def mean_divergence(divergence: pd.DataFrame, seed: int) -> Interval | None:
    """Mean JS over prompts with its 95% interval by resampling prompts; None where there was no screen."""
    js = divergence.js.dropna().to_numpy(float)
    return bootstrap_mean(js, seed=seed) if len(js) else None
