"""The area under the ROC curve: P(score of a positive > score of a negative) + half of the ties."""

from __future__ import annotations

import numpy as np

CHUNK = 4_000_000  # numbers in flight per block of weights


def auc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area along the last axis of ``scores``; ``positive``: [n] booleans or 0 and 1. NaN where one side is empty."""
    positive = np.asarray(positive).astype(bool)
    rows = np.asarray(scores).reshape(-1, len(positive))
    found = [weighted_auc(row, positive, np.ones((1, len(row))))[0] for row in rows]
    return np.array(found).reshape(np.shape(scores)[:-1])


def weighted_auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area for each row of weights.

    ``scores``: [n]; ``positive``: [n] booleans; ``weights``: [rows, n], for instance bootstrap counts. Returns
    [rows]; NaN where a row leaves one side empty.
    """
    order = np.argsort(scores, kind="stable")
    levels = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    positive = positive[order]
    rows = []
    step = max(1, CHUNK // max(1, len(scores)))
    for start in range(0, len(weights), step):
        block = weights[start : start + step][:, order].astype(np.float64)
        up = np.add.reduceat(block * positive, levels, axis=1)
        down = np.add.reduceat(block * ~positive, levels, axis=1)
        below = np.cumsum(down, axis=1) - down
        with np.errstate(invalid="ignore"):
            rows.append((up * (below + down / 2)).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1)))
    return np.concatenate(rows)
