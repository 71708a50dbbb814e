"""A picture of many texts in two dimensions. It is to look at: nothing is clustered or tested on it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from driftbook.discovery.clustering import content_order

ROWS_PER_BLOCK = 2048


def project(
    X: np.ndarray,
    *,
    seed: int = 0,
    neighbors: int = 15,
    min_dist: float = 0.1,
    fit_rows: int = 20_000,
    keys: Sequence | np.ndarray | None = None,
) -> np.ndarray:
    """UMAP of the rows of ``X`` ``[n, d]`` by cosine: float32 ``[n, 2]``.

    Fitted on at most ``fit_rows`` rows, drawn by ``seed`` after sorting by content (``keys`` as in ``clustering.fit``),
    so the order of the rows does not matter. The others are placed at the weighted mean of their nearest fitted rows,
    which is where UMAP's own transform begins. Neighbours are exact, by matrix products: that spares compiling
    approximate search, which takes longer than searching 20,000 rows. A stated seed makes UMAP use one thread; 20,000
    rows take about 20 seconds on two cores. Fewer than five rows are laid out by their principal components.
    """
    X = np.ascontiguousarray(X, dtype=np.float32)
    order = content_order(X, keys)
    unit = X[order]
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    if len(X) < 5:
        placed = _principal(unit)
    else:
        chosen = np.zeros(len(X), dtype=bool)
        chosen[np.random.default_rng([seed, 2]).permutation(len(X))[:fit_rows]] = True
        placed = np.empty((len(X), 2), dtype=np.float32)
        fitted = unit[chosen]
        placed[chosen] = _umap(fitted, seed, min(neighbors, len(fitted) - 1), min_dist)
        if not chosen.all():
            near, distance = nearest(unit[~chosen], fitted, min(neighbors, len(fitted) - 1))
            # the scale of each row's own neighbourhood, as in UMAP's fuzzy sets
            weight = np.exp(-(distance - distance[:, :1]) / np.maximum(distance.std(axis=1, keepdims=True), 1e-6))
            weight /= weight.sum(axis=1, keepdims=True)
            placed[~chosen] = np.einsum("ij,ijk->ik", weight, placed[chosen][near])
    out = np.empty_like(placed)
    out[order] = placed
    return out


def _umap(X: np.ndarray, seed: int, neighbors: int, min_dist: float) -> np.ndarray:
    import umap  # compiles for seconds

    near, distance = nearest(X, X, neighbors)
    model = umap.UMAP(
        n_neighbors=neighbors,
        min_dist=min_dist,
        metric="cosine",
        init="pca",
        n_epochs=200,  # what UMAP takes itself from 10,000 rows on; below, it would take 500
        random_state=seed,
        precomputed_knn=(near, distance, None),
        force_approximation_algorithm=True,  # below 4,096 rows UMAP would ignore the neighbours that it was given
    )
    with warnings.catch_warnings():
        # one thread because of the seed, no transform because of the given neighbours: both are meant
        warnings.filterwarnings("ignore", message="n_jobs value")
        warnings.filterwarnings("ignore", message="precomputed_knn")
        placed = model.fit_transform(X)
    # rows far from everything have no place of their own
    return np.where(np.isfinite(placed), placed, np.nanmean(placed, axis=0))


def nearest(queries: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` nearest of ``rows`` by cosine distance, nearest first: (indices int32, distances) ``[n, count]``.

    Both arguments hold unit rows. A row that is its own query comes first, or ties with its copies.
    """
    indices = np.empty((len(queries), count), dtype=np.int32)
    distances = np.empty((len(queries), count), dtype=np.float32)
    for start in range(0, len(queries), ROWS_PER_BLOCK):
        part = slice(start, start + ROWS_PER_BLOCK)
        apart = 1 - queries[part] @ rows.T
        found = np.argpartition(apart, count - 1, axis=1)[:, :count]
        by_distance = np.take_along_axis(apart, found, axis=1)
        inner = np.argsort(by_distance, axis=1, kind="stable")
        indices[part] = np.take_along_axis(found, inner, axis=1)
        distances[part] = np.maximum(np.take_along_axis(by_distance, inner, axis=1), 0)
    return indices, distances


def _principal(X: np.ndarray) -> np.ndarray:
    left, scale, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    placed = np.zeros((len(X), 2), dtype=np.float32)
    width = min(2, len(scale))
    placed[:, :width] = left[:, :width] * scale[:width]
    return placed
