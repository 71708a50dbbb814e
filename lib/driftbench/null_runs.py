"""Null experiments: one model on both sides, so that whatever is confirmed is false.

Decoding is dear, so one set of texts serves many experiments: several answers of one model to each prompt are dealt
to the two sides anew each time. The sides are then exchangeable given the texts, and everything after decoding runs
as it does in an experiment: panel, composition of clusters, hypotheses, tests, claims. (What does not look at sides is
computed once: readings of the panel, embeddings, clusters and their stability.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook import cluster, decode, validate
from driftbook.discovery import groups
from driftbook.discovery.clustering import Clustering, Stability
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.hypotheses import from_frame
from driftbook.discovery.strategies import Ask
from driftbook.evidence import counting, moved_groups, panel, vocabulary
from driftbook.evidence.amplification import dose_response
from driftbook.evidence.cascade import silent
from driftbook.evidence.material import asked_ids
from driftbook.interventions import NoIntervention
from driftbook.judges import Lexicon
from driftbook.ledger import Ledger
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.parameters import Cluster, Decode, ModelSpec, Validate
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
    asks = [Ask(p, s, 0) for p in range(len(chosen.prompts)) for s in range(samples)]
    params = SamplingParams(max_new_tokens, section.temperature, section.top_p, section.top_k, section.min_p)
    bar = progress(len(asks), "decode", "texts")
    texts = decode_texts(
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
    behaviours: pd.DataFrame
    sentences: moved_groups.Ground
    groups: pd.DataFrame  # what every answer shows of every group, by the name of its measure


def prepare(texts: pd.DataFrame, section: Cluster, cache: Path, seed: int, progress: Callable[..., Any]) -> Ground:
    seen = texts[texts["split"] == "discover"].reset_index(drop=True)
    embedding = cluster.embed_texts(seen, section, cache, progress=progress)
    found = cluster.cluster_texts(seen, embedding.vectors, section, seed)
    stability, _ = cluster.stability_of(seen, embedding.vectors, found, section, seed)
    keywords = cluster.keywords_of(seen, found, section.keywords)
    said = dict(zip(asked_ids(texts), texts["prompt"], strict=True))

    def embed(asked: list[str]) -> np.ndarray:
        return cluster.embed_texts(pd.DataFrame({"text": asked}), section, cache, progress=progress).vectors

    options = {"drawn": section.segments, "most": section.most_groups, "bootstraps": section.bootstraps, "seed": seed}
    sentences = moved_groups.ground(seen, said, embed, **options)
    known, about = sentences.found.groups, [texts[c].tolist() for c in ("text_id", "text", "prompt")]
    read = groups.readings(known, range(len(known)), *about, embed)
    behaviours = panel.readings(texts)
    return Ground(texts, found, stability, keywords, embedding, section, behaviours, sentences, read)


WAYS = ("as it ships", "bets alone")


def null_run(ground: Ground, section: Validate, ledger: Ledger, seed: int) -> pd.DataFrame:
    """One null experiment, from dealt sides to claims, a row a way: way, asked, confirmed, words_tested,
    words_confirmed, only_amplified, least_q, greatest_e, global_p, groups_moved.

    *As it ships*: the panel on all prompts and the proposals (phrases, groups of sentences) on held-out ones, counted
    on a fixed sample together, and what is confirmed in amplified answers alone (which of equal sides are ordinary
    ones: a test holds that). *Bets alone*: the proposals by e-processes and e-BH, as a paid judge's verdicts are
    tested, without a screen and without a margin. Everything that is confirmed is false.
    """
    dealt = deal(ground.texts, seed)
    seen = dealt[dealt["split"] == "discover"].reset_index(drop=True)
    compared = cluster.compose(seen, ground.found, ground.stability, ground.keywords, ground.section, seed)
    proposed = from_frame(cluster.propose(seen, ground.found, compared.table, ground.section, ground.embedding))
    moved = moved_groups.compose(ground.sentences, seen, seed)
    proposed += moved_groups.propose(moved, ground.section.hypotheses)
    prompts = {p: Prompt(text) for p, text in zip(dealt["prompt_id"], dealt["prompt"], strict=True)}
    material = validate.Material(dealt, prompts, [*panel.hypotheses(), *proposed], seed)
    known = ground.behaviours.merge(ground.groups, on="text_id")
    alpha, own = vocabulary.shared(material, section.alpha)
    counted = counting.count(material, section, alpha, known)
    words = vocabulary.words_test(material, section, own, counted)
    held = dealt[dealt["split"] == "validate"]
    amplified = held.assign(strength=np.where(held["side"] == "intervention", 3.0, 0.0))
    doses = dose_response(
        replace(material, amplified=amplified), counted, section.alpha, read_groups=lambda _: ground.groups
    )
    plain = {o.hypothesis.hypothesis_id for o in counted if o.confirmed}
    only = set(doses.loc[doses["confirmed"], "hypothesis_id"]) - plain
    judged = [replace(h, measure={"kind": "judge"}) for h in proposed if h.words]
    judges = validate.Judges(Lexicon(), None, ledger)
    tested = validate.holdout_test(replace(material, hypotheses=judged), judges, judged, section, silent)
    bets = validate.outcomes(tested, section)
    rows = []
    for way, found in zip(WAYS, (counted, bets), strict=True):
        rows.append(
            {
                "seed": seed,
                "way": way,
                "asked": len(found),
                "confirmed": sum(o.confirmed for o in found)
                + (len(only) + int(words.table["confirmed"].sum()) if way == WAYS[0] else 0),
                "words_tested": len(words.table),
                "words_confirmed": int(words.table["confirmed"].sum()),
                "only_amplified": len(only) if way == WAYS[0] else 0,
                "least_q": float(np.nanmin([o.q_value for o in found], initial=1.0)) if way == WAYS[0] else np.nan,
                "greatest_e": max((o.e_value for o in found), default=0.0),
                "global_p": compared.global_p,
                "groups_moved": int((moved.table["q"] <= moved_groups.LEVEL).sum()),
            }
        )
    return pd.DataFrame(rows)
