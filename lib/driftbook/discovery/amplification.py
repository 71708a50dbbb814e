"""Answers in which the change is exaggerated: for which prompts, whether a strength still makes sense, and who reads
them.

They propose: phrases, a labeller and the panel read them beside ordinary answers, because what is faint there is plain
here. How much of it there is in ordinary text is another question, and is answered on ordinary text alone. So whoever
counts or tests takes ``ordinary`` rows of ``texts.parquet``, and amplified ones are read through ``amplified_answers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.behaviours.degeneration import BREAKS
from driftbook.behaviours.measure import values
from driftbook.behaviours.words import reading
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.strategies import Ask, State, allocate, weights
from driftbook.models.amplified import amplified
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair
from driftbook.parameters import Decode
from driftbook.prompts import PromptSet, by_unit, load_saved
from driftbook.store import ShardStore, digest

ROUND = -1  # of amplified answers: no round of ordinary sampling
READ = 48  # answers of a strength that both sides read to see whether it still makes sense
STRANGE = 0.5  # halfway between a side's own answers and their words in random order
BROKEN = 0.2  # more broken answers than this, beyond those of the changed side as it is
COHERENCE = ("strength", "texts", "tokens", "broken", "strangeness", "used")


def ordinary(texts: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``texts.parquet`` in which nothing is exaggerated."""
    return texts[texts["strength"] == 0]


def amplified_answers(decode: Path, split: str) -> pd.DataFrame:
    """Amplified answers of a split at the strengths that still make sense, beside the base's ordinary answers to the
    same prompts; sorted by text id. Empty where there are none. ``decode`` is the data folder of that stage."""
    columns = ["text_id", "side", "prompt_id", "family", "split", "strength", "round", "text"]
    texts = pd.read_parquet(decode / "texts.parquet", columns=columns)
    texts = texts[texts["split"] == split]
    path = decode / "amplified.parquet"
    known = pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=list(COHERENCE))
    stronger = texts[texts["strength"].isin(known.loc[known["used"].eq(True), "strength"]) & (texts["strength"] > 0)]
    beside = ordinary(texts)
    beside = beside[(beside["side"] == "base") & beside["prompt_id"].isin(set(stronger["prompt_id"]))]
    found = pd.concat([stronger, beside]).sort_values("text_id", kind="stable", ignore_index=True)
    return by_unit(found, load_saved(decode) if len(found) else {})


def amplified_asks(section: Decode, state: State) -> list[Ask]:
    """The answers of one strength: half to prompts of discover, by the weights of the strategy; half to those of
    validate, spread evenly."""
    asks = []
    for split, count in (
        ("discover", section.amplified - section.amplified // 2),
        ("validate", section.amplified // 2),
    ):
        which = [i for i, s in enumerate(state.prompts.splits) if s == split]
        if which:
            weight = weights(section.sampling, state, which) if split == "discover" else np.ones(len(which))
            samples = allocate(weight, count, state)
            asks += [Ask(i, k, ROUND) for i, n in zip(which, samples, strict=True) for k in range(n)]
    return asks


def decode_amplified(
    pair: Pair,
    prompts: PromptSet,
    ids: dict[str, list[tuple[int, ...]]],
    section: Decode,
    params: SamplingParams,
    state: State,
    store: ShardStore,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """The answers of every strength, as ``decode_texts`` gives them."""
    a = section.amplify
    assert a is not None
    asks = amplified_asks(section, state)
    sides = [amplified(pair, Exaggeration(s, a.by, a.plausible)) for s in a.strengths]
    return decode_texts(sides, prompts, ids, asks, params, state.seed, store, section.shard, progress)


def coherence(
    pair: Pair, prompts: PromptSet, ids: Mapping[str, list[tuple[int, ...]]], texts: pd.DataFrame, store: ShardStore
) -> pd.DataFrame:
    """Whether the texts of each strength still make sense: ``amplified.parquet``, one row a strength, 0 first.

    ``texts``: ordinary answers of both sides and amplified ones. ``broken`` is the share that is empty, loops, or is no
    words. ``strangeness`` says how unlikely their tokens are where a side's own answers are 0 and the same answers with
    their words in random order are 1, under the side that finds them less strange. ``used``: neither is far beyond
    that of the changed side as it is.
    """
    asked = {p.prompt_id: p.text for p in prompts.prompts}
    index = {p.prompt_id: i for i, p in enumerate(prompts.prompts)}
    changed = texts[texts["side"] == "intervention"]
    strange = _strangeness(pair, ids, index, texts, store)
    rows = []
    for strength, own in changed.groupby("strength", sort=True):
        broken = values(BREAKS, own["text"].tolist(), [asked[p] for p in own["prompt_id"]])
        share = float((np.nan_to_num(broken) > 0).any(axis=1).mean())
        rows.append((strength, len(own), int(own["token_ids"].map(len).sum()), share, strange[strength]))
    table = pd.DataFrame(rows, columns=list(COHERENCE[:-1]))
    usual = table.loc[table["strength"] == 0, "broken"].max()
    makes_sense = ~(table["strangeness"] > STRANGE) & (table["broken"] <= usual + BROKEN)
    return table.assign(used=makes_sense & (table["strength"] > 0))


def _strangeness(
    pair: Pair,
    ids: Mapping[str, list[tuple[int, ...]]],
    index: Mapping[str, int],
    texts: pd.DataFrame,
    store: ShardStore,
) -> dict[float, float]:
    """Strength to the strangeness of its texts; NaN where a side finds words in random order no stranger."""
    strengths = sorted(set(texts["strength"]))
    chosen = texts.sort_values("text_id", kind="stable").groupby(["side", "strength"], sort=True).head(READ)
    found = []
    for side in pair:
        sequences = _sequences(side.name, chosen, partial(_of_side, ids[side.name], index))
        rng = np.random.default_rng(0)
        own = chosen[(chosen["side"] == side.name) & (chosen["strength"] == 0)]
        scrambled = [_scrambled(t, rng) for t in own["text"]]
        tokens = [side.model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in scrambled]
        sequences["scrambled"] = [
            TokenSequence(ids[side.name][index[p]], tuple(t))
            for p, t in zip(own["prompt_id"], tokens, strict=True)
            if t
        ]
        key = digest("strangeness", side.key, [[(s.prompt_ids, s.response_ids) for s in g] for g in sequences.values()])
        held = store.kept_arrays(key, partial(_nats, side, sequences), None, 0)["nats"]
        nats = dict(zip(sequences, held.tolist(), strict=True))
        span = nats["scrambled"] - nats["own"]
        found.append([(nats[s] - nats["own"]) / span if span > 0.1 else np.nan for s in strengths])
    least = np.fmin(*np.array(found))
    return dict(zip(strengths, np.maximum(least, 0).tolist(), strict=True))


def _scrambled(text: str, rng: np.random.Generator) -> str:
    """The words of a text in random order; its characters, where it is written without spaces."""
    if reading(text).spaced:
        return " ".join(rng.permutation(text.split()))
    return "".join(rng.permutation(list(text)))


def _sequences(
    side: str, chosen: pd.DataFrame, sequence: Callable[[Any], TokenSequence]
) -> dict[Any, list[TokenSequence]]:
    """What a side reads: its ``own`` answers, and those of the changed side at every strength."""
    groups: dict[Any, pd.DataFrame] = {"own": chosen[(chosen["side"] == side) & (chosen["strength"] == 0)]}
    groups |= dict(list(chosen[chosen["side"] == "intervention"].groupby("strength", sort=True)))
    return {name: [sequence(row) for row in rows.itertuples() if len(row.token_ids)] for name, rows in groups.items()}


def _of_side(ids: list[tuple[int, ...]], index: Mapping[str, int], row: Any) -> TokenSequence:
    return TokenSequence(ids[index[row.prompt_id]], tuple(int(t) for t in row.token_ids))


def _nats(side: Any, groups: Mapping[Any, list[TokenSequence]]) -> dict[str, np.ndarray]:
    """Nats a token that a side needs for each group of answers."""
    every = [s for group in groups.values() for s in group]
    told = side.log_likelihood(every)
    ends = np.cumsum([len(g) for g in groups.values()])[:-1]
    tokens = np.array([len(s.response_ids) for s in every])
    parts = zip(np.split(told, ends), np.split(tokens, ends), strict=True)
    return {"nats": np.array([-a.sum() / max(1, n.sum()) if len(n) else np.nan for a, n in parts])}
