"""What the benches of embedding and clustering share: data that anybody can make again, and fair clocks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree
from sentence_transformers import SentenceTransformer
from sklearn.metrics import adjusted_rand_score

from driftbook.discovery.clustering import Update, fit, silhouette, stability, structureless
from driftbook.discovery.embeddings import (
    COMMIT_TEXTS,
    Embedded,
    Embedder,
    EmbeddingCache,
    Identity,
    embed,
    text_digest,
)
from driftbook.workbook.figures import Figure, bars


def alternate(works: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Time every piece of work ``repeats`` times, in turns, so that a busy moment of the machine meets all alike.

    Returns (table of work, repeat, seconds; last result of each). Compare the best times: other programs can make work
    slower, never faster.
    """
    rows, results = [], {}
    for repeat in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            results[name] = work()
            rows.append((name, repeat, time.perf_counter() - start))
    return pd.DataFrame(rows, columns=["work", "repeat", "seconds"]), results


def paired(times: pd.DataFrame, over: str, under: str) -> float:
    """Median over the turns of seconds of ``over`` by seconds of ``under``: both met the same busy moments."""
    by = times.pivot(index="repeat", columns="work", values="seconds")
    return float((by[over] / by[under]).median())


def best(times: pd.DataFrame) -> pd.Series:
    """Shortest time of each work, in the order in which they ran."""
    return times.groupby("work", sort=False)["seconds"].min()


def picture(best: pd.Series, slowest: pd.Series, unit: str, title: str, caption: str) -> Figure:
    """The best turn of every piece of work, with a line to the slowest."""
    return bars(
        list(best.index),
        best,
        low=np.minimum(best, slowest),
        high=np.maximum(best, slowest),
        title=title,
        caption=caption,
        value_title=unit,
        horizontal=True,
    )


def planted_sphere(n: int, width: int, groups: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(unit rows float32 ``[n, width]``, group of each): normal clouds of standard deviation ``noise`` around random
    directions, put back on the sphere."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, width), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = rng.integers(0, groups, n)
    X = rng.standard_normal((n, width), dtype=np.float32)
    X *= noise
    X += centres[truth]
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, truth


def natural_texts(root: Path) -> list[str]:
    """Sentences written by people for this project: answers of the traits' scenarios, and the discovery prompts."""
    texts: list[str] = []
    for path in sorted((root / "params" / "traits").glob("*.json")):
        for scenario in json.loads(path.read_text(encoding="utf-8"))["scenarios"]:
            texts += [scenario["positive"], scenario["negative"]]
    lines = (root / "params" / "prompts" / "discovery.jsonl").read_text(encoding="utf-8").splitlines()
    return texts + [json.loads(line)["text"] for line in lines if line.strip()]


# ------------------------------------------------------------------------------------------------------------ embedding


def embed_into(folder: Path, texts: list[str], embedder: Embedder) -> Embedded:
    """``embed`` with the cache in ``folder``, opened and closed inside."""
    with EmbeddingCache(folder) as cache:
        return embed(texts, cache, embedder)


def encode_under_autocast(model: Any, texts: list[str], embedder: Embedder) -> np.ndarray:
    """Plain ``encode`` in the embedder's own dtype."""
    with torch.autocast(embedder.device, dtype=getattr(torch, embedder.dtype), enabled=embedder.dtype != "float32"):
        return model.encode(texts, show_progress_bar=False)


def three_ways(texts: list[str], embedder: Embedder, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Plain ``encode``, alone and under our dtype, and ``embed`` into an empty cache and out of a full one, which is
    the first that was filled. Both models are warm."""
    plain = SentenceTransformer(str(embedder.folder), device=embedder.device)
    plain.encode(texts[:32]), embedder.encode(texts[:32])
    numbers = count()
    return {
        "encode": partial(plain.encode, texts, show_progress_bar=False),
        "encode, same dtype": partial(encode_under_autocast, plain, texts, embedder),
        "embed, cold": lambda: embed_into(scratch / str(next(numbers)), texts, embedder),
        "embed, warm": lambda: embed_into(scratch / "0", texts, embedder),
    }


def cache_speed(folder: Path, identity: Identity, rows: int, width: int, seed: int) -> pd.DataFrame:
    """Rows per second of writing in batches of ``COMMIT_TEXTS``, and of looking all of them up at once."""
    rng = np.random.default_rng(seed)
    digests = [text_digest(str(i)) for i in range(rows)]
    vectors = rng.standard_normal((rows, width), dtype=np.float32)
    with EmbeddingCache(folder) as cache:
        start = time.perf_counter()
        for begin in range(0, rows, COMMIT_TEXTS):
            cache.put(identity, digests[begin : begin + COMMIT_TEXTS], vectors[begin : begin + COMMIT_TEXTS])
        written = time.perf_counter() - start
        start = time.perf_counter()
        found = cache.get(identity, digests)
        read = time.perf_counter() - start
        size = cache.size().bytes / rows
    if len(found) != rows:
        raise RuntimeError(f"the cache gave {len(found)} of {rows} rows back")
    table = [("write", rows / written, size), ("read", rows / read, size)]
    return pd.DataFrame(table, columns=["work", "rows_per_s", "bytes_per_row"])


# ----------------------------------------------------------------------------------------------------------- clustering


def update_table(updates: Mapping[str, Update]) -> pd.DataFrame:
    """One row an incremental update: how far it drifted, and whether a refit is due."""
    rows = [(name, len(u.labels), u.outside, u.moved, u.refit, u.reason) for name, u in updates.items()]
    return pd.DataFrame(rows, columns=["new rows", "number", "outside", "moved", "refit", "reason"])


def map_agreement(placed: np.ndarray, truth: np.ndarray, seed: int, sample: int = 5000) -> float:
    """How often the nearest of a row's neighbours on a map ``[n, 2]`` is of the same group, over a sample of rows."""
    rows = np.random.default_rng(seed).permutation(len(placed))[:sample]
    near = cKDTree(placed).query(placed[rows], k=2)[1]
    other = np.where(near[:, 0] == rows, near[:, 1], near[:, 0])
    return float((truth[other] == truth[rows]).mean())


def compare_methods(methods: list[str], X: np.ndarray, truth: np.ndarray, k: int, seed: int) -> pd.DataFrame:
    """Seconds of the first and the second fit, agreement with the truth, noise, and stability of each method."""
    rows = []
    for method in methods:
        times, found = alternate({method: partial(fit, method, X, k, seed)}, 2)
        first, second = times["seconds"]
        ari = stability(X, found[method], bootstraps=5, seed=seed).ari.mean()
        agreement = adjusted_rand_score(truth, found[method].labels)
        rows.append((method, found[method].k, first, second, agreement, found[method].noise_share, ari))
    columns = ["method", "clusters", "first_s", "second_s", "ari_to_truth", "noise_share", "stability_ari"]
    return pd.DataFrame(rows, columns=columns)


def stability_by_k(X: np.ndarray, numbers: tuple[int, ...], seed: int) -> pd.DataFrame:
    """Stability of k-means at several k, beside that of rows without groups."""
    bare, rows = structureless(X, seed), []
    for k in numbers:
        found = fit("minibatch_kmeans", X, k, seed)
        own = stability(X, found, seed=seed)
        chance = stability(bare, fit("minibatch_kmeans", bare, k, seed), seed=seed)
        rows.append(
            (k, own.ari.mean(), chance.ari.mean(), int((own.jaccard >= 0.6).sum()), silhouette(X, found.labels)[0])
        )
    return pd.DataFrame(rows, columns=["clusters", "stability_ari", "chance_ari", "trusted", "silhouette"])
