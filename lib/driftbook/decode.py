"""Decode: both sides answer the same prompts; divergence says where they part, and the sampling goes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.discovery.amplification import COHERENCE, ROUND, coherence, decode_amplified
from driftbook.discovery.decoding import TEXT_SCHEMA, available, decode_texts
from driftbook.discovery.embeddings import through_cache
from driftbook.discovery.promoted import COLUMNS as PROMOTED
from driftbook.discovery.readback import read_back, texts_from_beginnings
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
from driftbook.errors import ModelError, PromptError
from driftbook.evidence.intervals import JS, Interval, student_mean
from driftbook.models.lens import difference_lens, weights_of_change
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair
from driftbook.models.utilisation import peak_gpu_mb, utilisation
from driftbook.prompt_files import check_lengths, read_prompts
from driftbook.prompts import Prompt, PromptSet, save_prompts
from driftbook.replies import NO_ANSWER
from driftbook.stage import Run
from driftbook.store import ShardStore

# -------------------------------------------------------------------------------------------------------------- prompts


def load_prompts(
    patterns: Sequence[str],
    root: Path,
    shares: dict[str, float],
    limit: int | None = None,
    given: Sequence[Prompt] | None = None,
) -> PromptSet:
    """The prompts of the files that the patterns name, or those ``given``, split as ``splits.prompt_set`` does."""
    read = read_prompts(list(patterns), root) if given is None else given
    chosen = prompt_set(read, shares, limit)
    chosen.unreadable = getattr(read, "unreadable", [])
    return chosen


def encode(
    pair: Pair, prompts: PromptSet, max_new_tokens: int, max_thought_tokens: int = 0
) -> dict[str, list[tuple[int, ...]]]:
    """Token ids of every prompt per side, in the order of the set.

    Raises:
        PromptError: one leaves no room to answer; ModelError: a side is made to think, and has no tokens for it.
    """
    ids = {side.name: [side.encode(p) for p in prompts.prompts] for side in pair}
    for side in pair:
        count = dict(zip((p.prompt_id for p in prompts.prompts), map(len, ids[side.name]), strict=True))
        room = side.model.context - max_new_tokens - max_thought_tokens
        check_lengths(prompts.prompts, lambda p, n=count: n[p.prompt_id], room)
        if side.here and not max_thought_tokens and side.model.begins_in_thought(ids[side.name][0]):
            raise ModelError(
                f"the chat template of {side.name} makes the model think before it answers: set "
                "decode.max_thought_tokens (1024, say), or template_args: {enable_thinking: false} where the model "
                "takes it"
            )
    return ids


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
    amplified: pd.DataFrame = field(default_factory=pd.DataFrame)  # answers in which the change is exaggerated
    strengths: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COHERENCE)))
    promoted: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PROMOTED)))
    read_back: pd.DataFrame = field(default_factory=pd.DataFrame)  # phrases that come back from bare beginnings
    shared: str = ""  # what of the vocabulary divergence is measured on, where it is not all

    @property
    def every(self) -> pd.DataFrame:
        """Ordinary answers, then amplified ones."""
        return pd.concat([self.texts, self.amplified], ignore_index=True)


def decode_rounds(run: Run, pair: Pair, prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]]) -> Decoded:
    """Round 0 for every prompt, the divergence screen, then rounds by the strategy until the budget or the stated
    quality is met."""
    d = run.section
    params = SamplingParams(d.max_new_tokens, d.temperature, d.top_p, d.top_k, d.min_p, d.max_thought_tokens)
    store = ShardStore(run.cache / "decode")
    sampling = d.ordinary
    asks = first_round(prompts, d.samples, sampling.max_texts)
    for side in pair:
        side.engine.check(params)  # a server that is not there ends the run now, not after the other side

    def decode(asked: list[Ask], label: str) -> pd.DataFrame:
        bar = run.progress(2 * len(asked), label, "texts")
        return decode_texts(pair, prompts, ids, asked, params, run.seed, store, d.shard, bar.update)

    c = run.params.cluster
    embed = through_cache(run.cache / "embeddings", c.embedder, c.instruction, run.params.base.device, run.progress)
    texts = decode(asks, "round 0")
    check_reached(texts)
    rounds = [_round_row(0, texts)]
    divergence = profile = promoted = None
    unscreened = pair.no_divergence() if d.screen.enabled else "decode.screen.enabled is false"
    families = pd.DataFrame(columns=FAMILY_COLUMNS)
    if unscreened and d.screen.enabled:
        divergence, families = screen_answers(prompts, texts, d.screen.samples, embed, run.seed)
        divergence = keep_divergent(divergence, d.screen.keep, d.screen.floor)
    elif not unscreened:
        bar = run.progress(
            int(((texts.split == "discover") & (texts.sample_index < d.screen.samples)).sum())
            // (2 if d.screen.along == "base" else 1),
            "divergence",
            "responses",
        )
        divergence, profile, promoted = screen_divergence(
            pair,
            prompts,
            ids,
            texts,
            min(d.screen.tokens, d.max_new_tokens),
            d.screen.samples,
            store,
            bar.update,
            params if d.temperature > 0 and d.screen.likelihood != "never" and pair.one_vocabulary() else None,
            d.screen.along,
        )
        divergence = keep_divergent(divergence, d.screen.keep, d.screen.floor)

    def known(number: int) -> State:
        return State(
            prompts=prompts,
            texts=texts,
            divergence=divergence,
            seed=run.seed,
            round=number,
            rounds=sampling.rounds,
            embed=embed,
            clusters=c.clusters,
            segments=c.segments if c.unit == "segment" else None,
        )

    exaggerated, strengths, back = _exaggerated(run, pair, ids, params, known(ROUND), store)
    rounds[0]["quality"] = quality(sampling, known(1))
    for number in range(1, sampling.rounds + 1):
        left = sampling.max_texts - len(texts)
        state = known(number)
        planned = available(pair, prompts, plan_round(sampling, state, left // 2))
        if not planned:
            break
        new = decode(planned, f"round {number}")
        texts = pd.concat([texts, new], ignore_index=True)
        rounds.append(_round_row(number, new) | {"quality": quality(sampling, known(number))})
    texts["propensity"] = propensities(texts)
    scored = divergence is not None and not unscreened and pair.one_vocabulary()
    if scored and worth_scoring(d.screen.likelihood, divergence):
        discover = (texts.split == "discover").to_numpy()
        bar = run.progress(int(discover.sum()), "likelihood", "texts")
        texts.loc[discover, "log_ratio"] = score_texts(
            pair, prompts, ids, texts[discover], params, store, d.shard, bar.update
        )
    if divergence is None:
        divergence = no_divergence(prompts)
    units = {p.prompt_id: p.unit or p.prompt_id for p in prompts.prompts}
    return Decoded(
        texts,
        pd.DataFrame(rounds),
        divergence.assign(unit=divergence.prompt_id.map(units)),
        profile if profile is not None else pd.DataFrame(columns=["position", "kl", "js", "js_se", "n"]),
        sum(int(t.token_ids.map(len).sum()) for t in (texts, exaggerated) if len(t)),
        sum(float(t.seconds.sum()) for t in (texts, exaggerated) if len(t)) / at_once(pair),
        unscreened,
        families,
        exaggerated,
        strengths,
        promoted if promoted is not None else pd.DataFrame(columns=list(PROMOTED)),
        back,
        pair.on_shared_tokens() if not unscreened else "",
    )


def _exaggerated(
    run: Run,
    pair: Pair,
    ids: dict[str, list[tuple[int, ...]]],
    params: SamplingParams,
    state: State,
    store: ShardStore,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Amplified answers, whether each strength makes sense, and what comes back from bare beginnings; empty tables
    where nothing is amplified."""
    d, a, prompts = run.section, run.section.amplify, state.prompts
    if a is None:
        return pd.DataFrame(), pd.DataFrame(columns=list(COHERENCE)), pd.DataFrame()
    bar = run.progress(d.exaggerated, "amplified answers", "texts")
    texts = decode_amplified(pair, prompts, ids, d, params, state, store, bar.update)
    strengths = coherence(pair, prompts, ids, pd.concat([state.texts, texts], ignore_index=True), store)
    if not a.beginnings or not strengths.used.any():
        return texts, strengths, pd.DataFrame()
    how = Exaggeration(float(strengths.loc[strengths.used, "strength"].max()), plausible=a.plausible)
    bar = run.progress(2 * a.beginnings, "bare beginnings", "texts")
    begun = texts_from_beginnings(pair, a.beginnings, how, params, run.seed, store, d.shard, bar.update)
    return texts, strengths, read_back(begun).assign(strength=how.strength)


def unreached(texts: pd.DataFrame) -> dict[str, float]:
    """Share of each side's answers that never came: the text ended inside of the thought before it, or right after."""
    cut = texts.finish_reason.isin(("cut", "nothing")).groupby(texts.side).mean()
    return {side: float(share) for side, share in cut.items()}


def check_reached(texts: pd.DataFrame) -> None:
    """Raises ModelError: of some side no answer came at all."""
    for side, share in unreached(texts).items():
        if share == 1:
            raise ModelError(
                f"{side} thinks before it answers, and not one of its {int((texts.side == side).sum())} answers was "
                "reached: raise decode.max_thought_tokens, or set template_args: {enable_thinking: false} where the "
                "model takes it"
            )


def free_readings(run: Run, pair: Pair) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the insides tell without an answer: the activation-difference lens and the weights that changed, written as
    ``lens.parquet`` and ``weights.parquet``; empty where the sides cannot be subtracted or share their weights."""
    try:
        lens = difference_lens(pair, seed=run.seed)
    except ModelError:
        lens = pd.DataFrame()
    changed = weights_of_change(pair)
    changed = pd.DataFrame() if changed is None else changed
    for name, table in (("lens", lens), ("weights", changed)):
        if len(table):
            table.to_parquet(run.data / f"{name}.parquet", compression="zstd", index=False)
    return lens, changed


def _round_row(number: int, new: pd.DataFrame) -> dict[str, Any]:
    return {
        "round": number,
        "prompts": int(new.prompt_id.nunique()),
        "texts": len(new),
        "tokens": int(new.token_ids.map(len).sum()),
        "seconds": round(float(new.seconds.sum()), 3),
    }


def write(run: Run, prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]], pair: Pair, decoded: Decoded) -> None:
    """The stage's tables and metrics. What a server did not answer stands apart from the texts."""
    save_prompts(run.data, prompts.prompts, [len(i) for i in ids["base"]])
    every = decoded.every
    silent = every.finish_reason.isin(NO_ANSWER)
    for name, rows in (("texts", ~silent), ("unanswered", silent)):
        if rows.any() or name == "texts":
            every.loc[rows, TEXT_SCHEMA.names].to_parquet(
                run.data / f"{name}.parquet", compression="zstd", schema=TEXT_SCHEMA, index=False
            )
    if silent.any():
        run.metric("texts_unanswered", int(silent.sum()))
    for side, share in unreached(decoded.texts).items():
        if share:
            run.metric(f"unreached_{side}", share)
    decoded.rounds.to_parquet(run.data / "rounds.parquet", compression="zstd")
    decoded.divergence.to_parquet(run.data / "divergence.parquet", compression="zstd")
    decoded.profile.to_parquet(run.data / "profile.parquet", compression="zstd")
    decoded.promoted.to_parquet(run.data / "promoted.parquet", compression="zstd", index=False)
    run.metric("prompts_screened", int(decoded.divergence.js.notna().sum()))
    run.metric("prompts_kept", int(decoded.divergence.kept.sum()))
    if len(decoded.strengths):
        decoded.strengths.to_parquet(run.data / "amplified.parquet", compression="zstd", index=False)
        run.metric("texts_amplified", len(decoded.amplified))
        run.metric("strengths_used", int(decoded.strengths.used.sum()))
        decoded.read_back.to_parquet(run.data / "read_back.parquet", compression="zstd", index=False)
        run.metric("phrases_read_back", len(decoded.read_back))
    run.metric("texts", int((~silent).sum()) - len(decoded.amplified))
    run.metric("tokens", decoded.tokens)
    run.metric("tokens_per_s", decoded.tokens / max(decoded.decode_seconds, 1e-9))
    run.metric("rounds", len(decoded.rounds))
    run.metric("model_loads", pair.model_loads)
    run.metric("prompts", len(prompts))
    run.metric("prompts_that_differ", prompts.units)
    if prompts.unreadable:
        run.metric("prompts_unreadable", len(prompts.unreadable))
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


def family_divergence(divergence: pd.DataFrame, prompts: PromptSet) -> pd.DataFrame:
    """Mean JS per family with 95% intervals over prompts, largest first; empty when nothing was screened."""
    families = {p.prompt_id: p.family for p in prompts.prompts}
    rows = []
    for family, group in divergence.assign(family=divergence.prompt_id.map(families)).groupby("family", sort=True):
        js = _by_unit(group)
        if len(js):
            i = student_mean(js, within=JS)
            rows.append((family, i.estimate, i.low, i.high, len(js)))
    out = pd.DataFrame(rows, columns=["family", "js", "low", "high", "prompts"])
    return out.sort_values("js", ascending=False, kind="stable").reset_index(drop=True)


def mean_divergence(divergence: pd.DataFrame) -> Interval | None:
    """Mean JS over prompts with its 95% interval over prompts; None where there was no screen."""
    js = _by_unit(divergence)
    return student_mean(js, within=JS) if len(js) else None


def _by_unit(divergence: pd.DataFrame) -> np.ndarray:
    """Mean JS of each unit of look-alike prompts, ``[units]``."""
    return divergence.dropna(subset="js").groupby("unit").js.mean().to_numpy(float)
