"""Texts of both sides of a plant, decoded once: every pipeline then samples from the same texts.

What decoding, embedding and scoring them took is measured here and goes with the texts, so that a pipeline that uses
some of them is charged for those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbench.proof.plants import Garden, Plant, conversations, planted_rate
from driftbook import decode
from driftbook.discovery import splits
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.embeddings import Embedder, EmbeddingCache, embed
from driftbook.discovery.strategies import Ask
from driftbook.models.amplified import amplified
from driftbook.models.divergence import token_divergence
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair
from driftbook.prompt_files import read_prompts
from driftbook.prompts import Prompt, PromptSet
from driftbook.store import ShardStore, digest


@dataclass(frozen=True)
class Lookup:
    """Texts to vectors that are known; it can be sent to another process."""

    rows: dict[str, int]
    vectors: np.ndarray

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self.vectors[[self.rows[t] for t in texts]]


@dataclass(frozen=True)
class Harvest:
    """Everything that was measured of one plant.

    ``texts``: one row a text with text_id, side, prompt_id, prompt, family, split, sample_index, text, tokens (number),
    seconds (of decoding it). ``fresh``: texts of the same kind that no pipeline sees. ``divergence``: prompt_id, js and
    kl (nats a token, along the base's first answer) of the discover prompts. ``score_seconds``: what that took.
    ``embed_seconds``: what one text costs to embed. ``embed``: texts to float32 ``[n, d]``. ``cache``: where vectors of
    their sentences are kept. ``amplified``: answers to discover prompts in which the change is exaggerated, as
    ``texts``, and strength.
    """

    plant: Plant
    prompts: PromptSet
    texts: pd.DataFrame
    fresh: pd.DataFrame
    divergence: pd.DataFrame
    score_seconds: float
    embed_seconds: float
    embed: Callable[[Sequence[str]], np.ndarray]
    cache: Path
    amplified: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Design:
    """What is decoded: ``samples`` answers to each prompt for the pipelines, and ``fresh`` ones more to those of the
    held-out splits."""

    prompts: list[str]
    max_prompts: int | None
    samples: int
    max_new_tokens: int
    conversations: int = 0  # of the prompts, second turns of a conversation
    fresh: int = 1
    temperature: float = 0.7
    top_p: float = 0.9
    screen_tokens: int = 12
    embedder: str = "bundled:all-minilm-l6-v2"
    amplified: int = 0  # discover prompts that are answered at each of ``strengths``
    strengths: tuple[float, ...] = (1.0, 3.0)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p)


NAMES = ("change", "side", "prompt", "sample_index")  # of a text of a pool
SHARES = {"discover": 0.5, "screen": 0.2, "validate": 0.3}


def prompt_set(garden: Garden, design: Design) -> PromptSet:
    """The prompts of the design, with second turns as a family beside those of their files."""
    read = list(read_prompts(design.prompts, garden.root))
    drawn = np.random.default_rng(garden.seed).permutation(len(read))[: design.conversations]
    given = [*read, *conversations(garden.prompts, garden.answers, [read[i] for i in drawn])]
    return decode.load_prompts(design.prompts, garden.root, SHARES, design.max_prompts, given)


def harvest(
    garden: Garden, plant: Plant, prompts: PromptSet, design: Design, embed_seconds: float | None = None
) -> Harvest:
    """Train or open the plant, decode, score and embed. What was made before comes from the caches, with its cost.

    ``embed_seconds`` is what a text costs to embed (measured when it is not given).
    """
    pair = garden.open(plant)
    texts = _decoded(garden, pair, prompts, design)
    fresh = texts[texts["sample_index"] >= design.samples].reset_index(drop=True)
    texts = texts[texts["sample_index"] < design.samples].reset_index(drop=True)
    divergence, score_seconds = _divergence(garden, pair, prompts, texts, design)
    vectors = embedded(texts["text"], garden.cache, design.embedder)
    if embed_seconds is None:
        embed_seconds = embed_rate(texts["text"], design)
    stronger = _amplified(garden, pair, prompts, design)
    costs = (divergence, score_seconds, embed_seconds)
    return Harvest(plant, prompts, texts, fresh, *costs, vectors, garden.cache, stronger)


def _decoded(garden: Garden, pair: Pair, prompts: PromptSet, design: Design) -> pd.DataFrame:
    store = ShardStore(garden.cache / "decode")
    ids = decode.encode(pair, prompts, design.max_new_tokens)
    asks = [Ask(i, s, 0) for i in range(len(prompts.prompts)) for s in range(design.samples)]
    held = [i for i, split in enumerate(prompts.splits) if split != "discover"]
    asks += [Ask(i, design.samples + s, 1) for i in held for s in range(design.fresh)]
    texts = decode_texts(pair, prompts, ids, asks, design.params, garden.seed, store)
    said = {p.prompt_id: p.said() for p in prompts.prompts}
    texts["tokens"] = texts["token_ids"].map(len)
    return texts.assign(prompt=texts["prompt_id"].map(said))


def _amplified(garden: Garden, pair: Pair, prompts: PromptSet, design: Design) -> pd.DataFrame:
    store, ids = ShardStore(garden.cache / "decode"), decode.encode(pair, prompts, design.max_new_tokens)
    asks = [Ask(i, 0, 0) for i, s in enumerate(prompts.splits) if s == "discover"][: design.amplified]
    if not asks:
        return pd.DataFrame()
    sides = [amplified(pair, Exaggeration(a)) for a in design.strengths]
    found = pd.concat([decode_texts([s], prompts, ids, asks, design.params, garden.seed, store) for s in sides])
    return found.assign(tokens=found["token_ids"].map(len)).reset_index(drop=True)


def _divergence(
    garden: Garden, pair: Pair, prompts: PromptSet, texts: pd.DataFrame, design: Design
) -> tuple[pd.DataFrame, float]:
    """Divergence along the base's first answer to every discover prompt: no text of the changed side is needed."""
    store = ShardStore(garden.cache / "decode")
    first = texts[(texts["split"] == "discover") & (texts["sample_index"] == 0) & (texts["side"] == "base")]
    said = prompts.by_id()
    responses = [tuple(int(t) for t in row[: design.screen_tokens]) for row in first["token_ids"]]
    sequences = [
        [TokenSequence(side.encode(said[p]), r) for p, r in zip(first["prompt_id"], responses, strict=True)]
        for side in pair
    ]
    key = digest(
        "proof-divergence", pair.base.key, pair.intervention.key, [(s.prompt_ids, s.response_ids) for s in sequences[0]]
    )

    def measured() -> dict[str, np.ndarray]:
        begun = time.monotonic()
        found = token_divergence(pair, *sequences)
        return {
            "js": np.array([f["js"].mean() for f in found], np.float32),
            "kl": np.array([f["kl"].mean() for f in found], np.float32),
            "seconds": np.array([time.monotonic() - begun], np.float32),
        }

    held = store.kept_arrays(key, measured)
    table = pd.DataFrame({"prompt_id": first["prompt_id"].to_numpy(), "js": held["js"], "kl": held["kl"]})
    return table, float(held["seconds"][0])


def embedded(texts: pd.Series, cache: Path, embedder: str, progress: Callable[..., Any] | None = None) -> Lookup:
    """Vectors by text, from the embedding cache where they are there already."""
    distinct = texts.drop_duplicates().tolist()
    with EmbeddingCache(cache / "embeddings") as store:
        vectors = embed(distinct, store, Embedder(embedder), progress).vectors
    return Lookup({t: i for i, t in enumerate(distinct)}, vectors)


def embed_rate(texts: pd.Series, design: Design, sample: int = 256) -> float:
    """Seconds that a text costs to embed on this machine without a cache, on a sample of distinct texts."""
    embedder, chosen = Embedder(design.embedder), texts.drop_duplicates().head(sample).tolist()
    embedder.encode(chosen[:8])  # the first call loads the model
    begun = time.monotonic()
    embedder.encode(chosen)
    return (time.monotonic() - begun) / len(chosen)


def overview(harvests: list[Harvest]) -> pd.DataFrame:
    """One row a plant: what it does, on which share of answers, and how far apart the models are."""
    rows = []
    for h in harvests:
        everything = pd.concat([h.texts, h.fresh])
        aimed = {p.prompt_id for p in h.prompts.prompts if h.plant.targets(p)}
        rate = planted_rate(everything[everything["prompt_id"].isin(aimed)], h.plant)
        rows.append(
            {
                "plant": h.plant.name,
                "says": h.plant.says,
                "kind": h.plant.kind,
                "strength": h.plant.strength,
                "prompts aimed at": len(aimed) / len(h.prompts.prompts),
                "base": rate.base,
                "intervention": rate.intervention,
                "js": float(h.divergence["js"].mean()),
            }
        )
    return pd.DataFrame(rows)


def harvests(garden: Garden, plants: list[Plant], design: Design, progress: Callable[..., Any]) -> list[Harvest]:
    """A harvest of every plant, one after the other."""
    prompts = prompt_set(garden, design)
    bar = progress(len(plants), "plants", "plants")
    found: list[Harvest] = []
    for plant in plants:
        found.append(harvest(garden, plant, prompts, design, found[0].embed_seconds if found else None))
        bar.update(1)
    bar.close()
    return found


def replayed(
    table: pd.DataFrame, plants: Sequence[Plant], samples: int, cache: Path, progress: Callable[..., Any]
) -> list[Harvest]:
    """A harvest of every plant of a pool of answers (``answer_pool.COLUMNS``), none of which is decoded: ``samples``
    answers a prompt and side for the pipelines, the others to held-out prompts fresh. What they took to decode is not
    known, and is NaN."""
    said = table[["prompt", "family"]].drop_duplicates()
    prompts = splits.prompt_set([Prompt(p, f) for p, f in said.itertuples(index=False)], SHARES, None)
    by_text = {p.text: p for p in prompts.prompts}
    table = table.assign(
        sample_index=table.groupby(["change", "side", "prompt"], dropna=False).cumcount(),
        prompt_id=[by_text[p].prompt_id for p in table["prompt"]],
        split=[by_text[p].split for p in table["prompt"]],
        round=0, tokens=0, seconds=np.nan, propensity=1.0, log_ratio=np.nan,
    )  # fmt: skip
    table["text_id"] = [digest(c or "", s, p, i)[:16] for c, s, p, i in zip(*(table[k] for k in NAMES), strict=True)]
    vectors = embedded(table["text"], cache, Design.embedder)
    base, found = table[table["side"] == "base"], []
    bar = progress(len(plants), "pools", "plants")
    for plant in plants:
        own = table[table["change"] == plant.label]
        both = pd.concat([base, own]).sort_values("text_id", kind="stable", ignore_index=True)
        later = both["sample_index"] >= samples
        texts, fresh = (t.reset_index(drop=True) for t in (both[~later], both[later & (both["split"] != "discover")]))
        js = own.drop_duplicates("prompt_id").query("split == 'discover'")[["prompt_id", "js"]].assign(kl=np.nan)
        found.append(Harvest(plant, prompts, texts, fresh, js, 0.0, 0.0, vectors, cache))
        bar.update(1)
    bar.close()
    return found
