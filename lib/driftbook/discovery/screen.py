"""The screen: on which prompts do the two sides part, before the rest of the budget is spent?

Where both have next-token distributions over the same tokens, exact divergence along the responses of round 0; else the
energy distance between their embedded answers. The same reading tells how likely each side was to write a text.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from driftbook.discovery.embeddings import Embed
from driftbook.discovery.promoted import TOP, promoted_tokens
from driftbook.discovery.two_sample import energy_of_prompts, family_energy
from driftbook.evidence.intervals import student_mean
from driftbook.models.divergence import SEQUENCES, kept_states, token_divergence
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair
from driftbook.prompts import SIDES, PromptSet, by_unit
from driftbook.stage import Progress
from driftbook.store import ShardStore, digest


class Screened(NamedTuple):
    """What the screen measured. ``divergence``: one row a prompt (kl, js in nats a token, intervals by t over its
    responses, NaN where there is one; with sampling also told, see :func:`told_by`). ``profile``: position in the
    response, mean kl and js with standard errors over prompts. ``promoted``: see :mod:`driftbook.discovery.promoted`.
    """

    divergence: pd.DataFrame
    profile: pd.DataFrame
    promoted: pd.DataFrame


def screen_divergence(
    pair: Pair,
    prompts: PromptSet,
    ids: dict[str, list[tuple[int, ...]]],
    texts: pd.DataFrame,
    tokens: int,
    samples: int,
    store: ShardStore,
    progress: Callable[[int], Any] | None = None,
    sampling: SamplingParams | None = None,
    along: Literal["both", "base"] = "both",
) -> Screened:
    """Exact KL and JS per discover prompt along the first tokens of its sampled responses, of ``both`` sides or of the
    ``base`` alone.

    What the base's output layer sees of its own responses is kept: a second change of the same base does not make it
    read them again.
    """
    index = {p.prompt_id: i for i, p in enumerate(prompts.prompts)}
    scored = texts[(texts.split == "discover") & (texts.sample_index < samples)]
    if along == "base":
        scored = scored[scored.side == "base"]
    scored = scored.reset_index(drop=True)
    shared = pair.shared_tokens() or 0  # a token that only one side has ends what both can read
    responses = [tuple(takewhile(lambda t: t < shared, map(int, row[:tokens]))) for row in scored.token_ids]
    where = [index[p] for p in scored.prompt_id]
    sequences = {
        side.name: [TokenSequence(ids[side.name][w], r) for w, r in zip(where, responses, strict=True)] for side in pair
    }
    key = digest(
        "divergence 2",
        tokens,  # how wide the arrays are, also where every response is shorter
        pair.base.key,
        pair.intervention.key,
        [[(s.prompt_ids, s.response_ids) for s in sequences[side.name]] for side in pair],
        None if sampling is None else asdict(sampling),
    )

    def measured() -> dict[str, np.ndarray]:
        found: list[dict[str, np.ndarray]] = [{} for _ in responses]
        shards = []
        for name in SIDES:  # the base's own responses stand apart: what it sees of them is read again
            rows = np.flatnonzero((scored.side == name).to_numpy())
            for start in range(0, len(rows), SEQUENCES):
                part = rows[start : start + SEQUENCES].tolist()
                shards.append((name == "base", part, *([sequences[s.name][i] for i in part] for s in pair)))
        work, workers = partial(_compare_shard, store.folder, sampling), pair.base.workers
        for part, told in workers.map(work, shards) if workers else map(partial(work, pair), shards):
            for i, one in zip(part, told, strict=True):
                found[i] = one
            if progress:
                progress(len(part))
        shapes = {"kl": (), "js": (), "gains": (2, TOP), "tokens": (2, TOP)}
        held = {k: np.full((len(found), tokens, *s), np.nan, np.float32) for k, s in shapes.items() if k != "tokens"}
        held["tokens"] = np.full((len(found), tokens, *shapes["tokens"]), -1, np.int32)
        for row, f in enumerate(found):
            for k in held:
                held[k][row, : len(f[k])] = f[k]
        if sampling is not None:
            held["log_ratio"] = log_ratios(found, scored.side)
        return held

    held = store.kept_arrays(key, measured, progress, len(scored))
    kl, js = held["kl"], held["js"]
    along_base = (scored.side == "base").to_numpy()
    rows = []
    for prompt_id, group in scored.groupby("prompt_id", sort=False):
        r = group.index.to_numpy()
        on_base = r[along_base[r]]
        # KL(base || intervention) is an expectation over the base's own responses; JS is symmetric and takes both.
        rows.append(
            (
                prompt_id,
                *_mean_interval(np.nanmean(kl[on_base], 1)),
                *_mean_interval(np.nanmean(js[r], 1)),
                int(np.isfinite(js[r]).sum()),
            )
        )
    divergence = pd.DataFrame(
        rows, columns=["prompt_id", "kl", "kl_low", "kl_high", "js", "js_low", "js_high", "n_tokens"]
    ).assign(energy=np.nan)
    if sampling is not None:
        told = pd.Series(told_by(held["log_ratio"])).groupby(scored.prompt_id.to_numpy()).mean()
        divergence["told"] = divergence.prompt_id.map(told)
    n = np.isfinite(js).sum(0)
    with warnings.catch_warnings():  # no response may reach the last positions: NaN there
        warnings.simplefilter("ignore", RuntimeWarning)
        profile = pd.DataFrame(
            {
                "position": np.arange(tokens),
                "kl": np.nanmean(kl[along_base], 0),
                "js": np.nanmean(js, 0),
                "js_se": np.nanstd(js, 0) / np.sqrt(np.maximum(n, 1)),
                "n": n,
            }
        )
    tokenizer = pair.intervention.model.tokenizer
    return Screened(divergence, profile, promoted_tokens(held["tokens"], held["gains"], scored, tokenizer))


def _compare_shard(
    folder: Path,
    sampling: SamplingParams | None,
    pair: Pair,
    shard: tuple[bool, list[int], list[TokenSequence], list[TokenSequence]],
) -> tuple[list[int], list[dict[str, np.ndarray]]]:
    """What this process, or a worker, does with some responses (whether they are the base's own, their places, and
    both sides' sequences)."""
    own, part, base, changed = shard
    known = kept_states(pair.base, base, ShardStore(folder)) if own else None
    return part, token_divergence(pair, base, changed, sampling=sampling, base_states=known, top=TOP)


def log_ratios(found: Sequence[dict[str, np.ndarray]], sides: Sequence[str]) -> np.ndarray:
    """Log-likelihood of every text under the intervention minus that under the base, float64 ``[n]``; infinite where
    one of them never draws one of its tokens. A text that by rounding neither would draw is that of its own side."""
    with np.errstate(invalid="ignore"):
        out = np.array(
            [float(f["intervention"].sum(dtype=np.float64) - f["base"].sum(dtype=np.float64)) for f in found]
        )
    own = np.where(np.asarray(sides, dtype=str) == "intervention", np.inf, -np.inf)
    return np.where(np.isnan(out), own, out)


def told_by(log_ratio: np.ndarray) -> np.ndarray:
    """How much a text tells about the side that wrote it, tanh^2(log ratio / 2): 0 where both were as likely to, 1
    where only one could have. Its mean is what is left of the chance in a difference of shares once texts are counted
    by likelihood instead of by side."""
    return np.tanh(log_ratio / 2) ** 2


def score_texts(
    pair: Pair,
    prompts: PromptSet,
    ids: dict[str, list[tuple[int, ...]]],
    texts: pd.DataFrame,
    sampling: SamplingParams,
    store: ShardStore,
    shard: int = 256,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """``log_ratio`` of every text, float64 ``[n]``: both sides read it, and nothing is generated. Finished shards come
    from the store."""
    index = {p.prompt_id: i for i, p in enumerate(prompts.prompts)}
    out = np.empty(len(texts))
    for start in range(0, len(texts), shard):
        rows = texts.iloc[start : start + shard]
        where = [index[p] for p in rows.prompt_id]
        responses = [tuple(int(t) for t in row) for row in rows.token_ids]
        both = {s.name: [(ids[s.name][w], r) for w, r in zip(where, responses, strict=True)] for s in pair}
        keys = (pair.base.key, pair.intervention.key)
        key = digest("log_ratio", *keys, both["base"], both["intervention"], asdict(sampling), rows.side.tolist())
        read = partial(_read_shard, pair, both, rows.side, sampling, progress)
        held = store.kept_arrays(key, read, progress, len(rows))
        out[start : start + len(rows)] = held["log_ratio"]
    return out


def _read_shard(
    pair: Pair, both: dict[str, list], sides: Sequence[str], sampling: SamplingParams, progress: Progress
) -> dict[str, np.ndarray]:
    sequences = [[TokenSequence(*s) for s in both[side.name]] for side in pair]
    found = token_divergence(pair, *sequences, progress=progress, first=0, sampling=sampling)
    return {"log_ratio": log_ratios(found, sides)}


def _mean_interval(x: np.ndarray) -> tuple[float, float, float]:
    """Mean with a 95% t interval (NaN bounds for fewer than two values), never below zero."""
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return (float(x.mean()) if len(x) else float("nan"), float("nan"), float("nan"))
    return student_mean(x, within=(0.0, np.inf))


def screen_answers(
    prompts: PromptSet, texts: pd.DataFrame, samples: int, embed: Embed, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The screen where next tokens cannot be compared: energy distance between the answers of the sides, per family.

    Returns:
        ``divergence`` (one row a discover prompt: ``energy`` is that of its family; kl and js are NaN) and the families
        (``two_sample.family_energy``).
    """
    seen = texts[(texts.split == "discover") & (texts.sample_index < samples)].reset_index(drop=True)
    families = family_energy(by_unit(seen, prompts.by_id()), embed(seen.text.tolist()), seed)
    family_of = seen.drop_duplicates("prompt_id").set_index("prompt_id")["family"]
    energy = energy_of_prompts(families, family_of).set_index("prompt_id")["energy"]
    unknown = no_divergence(prompts).set_index("prompt_id").drop(columns=["kept", "propensity"])
    return unknown.loc[energy.index].assign(energy=energy).reset_index(), families


def keep_divergent(divergence: pd.DataFrame, keep: float, floor: float) -> pd.DataFrame:
    """Mark the share ``keep`` of prompts with the largest JS (``energy`` of their family, where only texts could be
    compared), and give every prompt its propensity: 1 when kept, else ``floor``.

    No prompt is made invisible: what is not kept is sampled at the floor rate and weighted up by it. Where nothing
    tells prompts apart, all are kept.
    """
    out = divergence.copy()
    by_family = "energy" in out and out.js.isna().all()
    size = out.energy if by_family else out.js
    n = len(out) if by_family and size.nunique() < 2 else max(1, round(keep * len(out)))
    kept = np.zeros(len(out), bool)
    kept[np.argsort(-size.to_numpy(), kind="stable")[:n]] = True
    out["kept"] = kept
    out["propensity"] = np.where(kept, 1.0, floor)
    return out


def no_divergence(prompts: PromptSet) -> pd.DataFrame:
    """Every discover prompt kept, when nothing was screened."""
    chosen = [p.prompt_id for p, s in zip(prompts.prompts, prompts.splits, strict=True) if s == "discover"]
    out = pd.DataFrame({"prompt_id": chosen})
    for column in ("kl", "kl_low", "kl_high", "js", "js_low", "js_high", "energy"):
        out[column] = np.nan
    return out.assign(n_tokens=0, kept=True, propensity=1.0)


def worth_scoring(wanted: str, divergence: pd.DataFrame) -> bool:
    """Whether both sides shall read every discover text: under ``auto`` where the screen's responses told less than
    half of their sides, so that counting by likelihood at least halves the variance of a difference."""
    if "told" not in divergence:
        return False
    return wanted == "always" or float(divergence.told.mean()) < 0.5
