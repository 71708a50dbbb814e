"""Which of many hypotheses to reject."""

from __future__ import annotations

import numpy as np


def closed_e_bh(e: np.ndarray, alpha: float) -> np.ndarray:
    """Rejections of the closed e-BH procedure: [m] booleans.

    The largest set R of e-values of at least ``1 / alpha`` such that every set S of hypotheses has a mean e-value of
    at least ``|S and R| / (alpha |R|)``. For S the set of true nulls, whose mean e-value is itself an e-value, this
    bounds the false discovery proportion by ``alpha`` times an e-value: the false discovery rate is at most ``alpha``
    under any dependence. It rejects all that e-BH (Wang & Ramdas 2022) rejects, and sometimes more (Xu, Fischer &
    Ramdas 2025, "Bringing closure to FDR control: beating the e-Benjamini-Hochberg procedure"). The floor of ``1 /
    alpha``, which e-BH implies and closed e-BH does not, keeps a weak claim from riding on strong ones.
    """
    e = np.asarray(e, dtype=np.float64)
    if (e < 0).any() or np.isnan(e).any():
        raise ValueError("e-values must be numbers of at least 0")
    order = np.argsort(-e, kind="stable")
    ranked = np.minimum(e[order], 1e12)  # beyond all thresholds, and sums stay exact
    rejected = np.zeros(len(e), dtype=bool)
    for r in range(len(e), 0, -1):
        if ranked[r - 1] * alpha < 1:
            continue
        inside = np.cumsum(ranked[:r][::-1])  # S takes the weakest k of R and the weakest l of the rest
        outside = np.concatenate([[0.0], np.cumsum(ranked[r:][::-1])])
        k, size = np.arange(1, r + 1)[:, None], np.arange(len(outside))[None, :]
        if (alpha * r * (inside[:, None] + outside[None, :]) >= k * (k + size) * (1 - 1e-12)).all():
            rejected[order[:r]] = True
            break
    return rejected


def bh_adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg adjusted p-values, [m]; NaN entries are not counted and stay NaN."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    if len(known):
        order = known[np.argsort(p[known], kind="stable")]
        scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
        adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def selected_alpha(alpha: float, selected: int, tested: int) -> float:
    """Error level of an interval that is reported because its hypothesis was among the ``selected`` of ``tested`` ones.

    The e-BY rule of Xu, Wang & Ramdas (2024), "Post-selection inference for e-value based confidence intervals":
    confidence sequences at this level keep the false coverage rate at ``alpha`` whatever the selection and the
    dependence.
    """
    if not 0 <= selected <= tested or tested < 1:
        raise ValueError(f"cannot select {selected} of {tested}")
    return alpha * max(selected, 1) / tested


def holm_adjusted(p: np.ndarray, attainable: np.ndarray | None = None, alpha: float = 0.05) -> np.ndarray:
    """Holm's adjusted p-values, [m]: rejecting those up to ``alpha`` errs at all with a probability of at most alpha,
    under any dependence (Holm 1979). NaN entries are not counted and stay NaN.

    ``attainable`` [m] is the smallest p-value that each test could have given. Tests that can never be rejected beside
    the others are not paid for, and get 1 (Tarone 1990): those that do not reach alpha / k, with the least k that no
    more than k tests reach.
    """
    p = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    counted = known
    if attainable is not None and len(known):
        least = np.asarray(attainable, dtype=np.float64)[known]
        k = next(k for k in range(1, len(known) + 1) if (least <= alpha / k).sum() <= k)
        counted = known[least <= alpha / k]
    adjusted = np.full(len(p), np.nan)
    adjusted[known] = 1.0
    order = counted[np.argsort(p[counted], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
