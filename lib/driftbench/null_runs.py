"""Null experiments: one model on both sides, so that whatever is confirmed is false.

Decoding is dear, so one set of texts serves many experiments: several answers of one model to each prompt are dealt
to the two sides anew each time. The sides are then exchangeable given the texts, and everything after decoding runs
as it does in an experiment: composition of clusters, hypotheses, screen, test, claims. (What does not look at sides
is computed once: embeddings, clusters and their stability.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook import cluster, decode, validate
from driftbook.discovery.clustering import Clustering, Stability
from driftbook.discovery.hypotheses import from_frame
from driftbook.evidence.cascade import silent
from driftbook.evidence.judges import LexiconJudge
from driftbook.ledger import Ledger
from driftbook.models.interventions import open_pair
from driftbook.models.sampling import SamplingParams
from driftbook.parameters import Cluster, Decode, ModelSpec, NoIntervention, Validate
from driftbook.prompts import Prompt
from driftbook.store import ShardStore


def sample_texts(
    cache: Path,
    root: Path,
    prompts: int,
    samples: int,
    max_new_tokens: int,
    seed: int,
    progress: Callable[..., Any],
) -> pd.DataFrame:
    """``samples`` answers of the bundled model to each prompt of the discovery set: the columns of ``texts.parquet``,
    and ``prompt``."""
    section = Decode()
    shares = section.splits.model_dump(by_alias=True)
    chosen = decode.load_prompts(section.prompts, root, shares, prompts)
    pair = open_pair(ModelSpec(), NoIntervention(), cache, root)
    ids = decode.encode(pair, chosen, max_new_tokens)
    asks = [decode.Ask(p, s, 0) for p in range(len(chosen.prompts)) for s in range(samples)]
    params = SamplingParams(max_new_tokens, section.temperature, section.top_p, section.top_k, section.min_p)
    bar = progress(len(asks), "decode", "texts")
    texts = decode.decode_texts(
        [pair.base], chosen, ids, asks, params, seed, ShardStore(cache / "decode"), progress=bar.update
    )
    bar.close()
    return texts.assign(prompt=texts["prompt_id"].map({p.prompt_id: p.said() for p in chosen.prompts}))


def deal(texts: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same texts with sides dealt at random within each prompt, half and half. Raises ValueError for an odd
    number."""
    sizes = texts.groupby("prompt_id")["text_id"].transform("size")
    if (sizes % 2).any():
        raise ValueError("every prompt needs an even number of texts to be dealt to two sides")
    draw = pd.Series(np.random.default_rng(seed).random(len(texts)), index=texts.index)
    first = draw.groupby(texts["prompt_id"]).rank() <= sizes / 2
    # sides that were dealt have no likelihoods: every text counts for the side that it was dealt to
    return texts.assign(side=np.where(first, "base", "intervention"), log_ratio=np.nan)


@dataclass(frozen=True)
class Ground:
    """What all null experiments share: texts of one model, and what is known of those of split discover before sides
    are dealt."""

    texts: pd.DataFrame
    found: Clustering
    stability: Stability
    keywords: dict[int, list[str]]
    embedding: cluster.Embedding
    section: Cluster


def prepare(texts: pd.DataFrame, section: Cluster, cache: Path, seed: int, progress: Callable[..., Any]) -> Ground:
    seen = texts[texts["split"] == "discover"].reset_index(drop=True)
    embedding = cluster.embed_texts(seen, section, cache, progress=progress)
    found = cluster.cluster_texts(seen, embedding.vectors, section, seed)
    stability, _ = cluster.stability_of(seen, embedding.vectors, found, section, seed)
    return Ground(texts, found, stability, cluster.keywords_of(seen, found, section.keywords), embedding, section)


def null_run(ground: Ground, sections: Sequence[Validate], ledger: Ledger, seed: int) -> pd.DataFrame:
    """One null experiment, from dealt sides to claims, once for each section: margin, proposed, tested, confirmed,
    least p.

    Everything that is confirmed is false.
    """
    dealt = deal(ground.texts, seed)
    seen = dealt[dealt["split"] == "discover"].reset_index(drop=True)
    compared = cluster.compose(seen, ground.found, ground.stability, ground.keywords, ground.section, seed)
    proposed = from_frame(cluster.propose(seen, ground.found, compared.table, ground.section, ground.embedding))
    prompts = {p: Prompt(said) for p, said in zip(dealt["prompt_id"], dealt["prompt"], strict=True)}
    material = validate.Material(dealt, prompts, proposed, seed)
    judges = validate.Judges(LexiconJudge(), None, ledger)
    rows = []
    for section in sections:
        frozen = validate.freeze(material, judges, section)
        screening = validate.screen(material, judges, section)
        tested = validate.holdout_test(material, judges, screening.survivors, section, silent)
        claims = validate.claims_table(material, frozen, screening, tested, section)
        rows.append(
            {
                "seed": seed,
                "margin": section.margin,
                "proposed": len(proposed),
                "tested": len(tested.hypotheses),
                "confirmed": int(claims["confirmed"].sum()),
                "greatest_e": float(tested.looks.e.max(initial=0.0)),
                "global_p": compared.global_p,
            }
        )
    return pd.DataFrame(rows)
