"""Directions that separate two groups of activations, for many hook points at once.

Inputs are pooled states ``[texts, points, d_model]`` with labels and the scenario of each text. Every split is by
scenario: two answers to one scenario never stand on both sides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from driftbook.auc import auc

METHODS = ("mean_difference", "probe", "pca", "gradient")
#: Below this, what a combination leaves of its unit directions is rounding.
LEAST = 1e-3


class NothingLeft(ValueError):
    """The directions of a combination cancel at ``point``."""

    def __init__(self, point: int):
        super().__init__(f"nothing is left at point {point}: the directions cancel there")
        self.point = point


@dataclass(frozen=True)
class Examples:
    """Texts of one contrast.

    ``states`` is ``[texts, points, d_model]``; ``labels`` ``[texts]``, 1 for the trait and 0 for its opposite;
    ``scenarios`` ``[texts]`` integers; ``gradients`` (of the shape of ``states``) is what the method ``gradient`` is
    made from, see :func:`driftbook.models.gradients.likelihood_gradients`; ``given`` ``[points, d_model]`` is a
    direction that was made elsewhere, and is taken as it is.
    """

    states: np.ndarray
    labels: np.ndarray
    scenarios: np.ndarray
    gradients: np.ndarray | None = None
    given: np.ndarray | None = None


@dataclass(frozen=True)
class Fit:
    """Directions ``[points, d_model]`` float32 (unit norm, positive towards label 1) and their held-out quality per
    point."""

    directions: np.ndarray
    norms: np.ndarray  # [points]: length of the direction as its method gives it, before it was made a unit vector
    heldout_auc: np.ndarray  # [points]: AUC over all texts, each scored by the fold that did not see its scenario
    null_auc: np.ndarray  # [points]: the same with labels shuffled within scenarios, mean over shuffles


def fit(
    add: Sequence[Examples],
    subtract: Sequence[Examples] = (),
    orthogonal_to: Sequence[Examples] = (),
    method: str = "probe",
    folds: int = 5,
    shuffles: int = 5,
    seed: int = 0,
) -> Fit:
    """Fit a direction per contrast and point on all texts, combine them (:func:`combine`), and judge what comes out by
    cross-validation over scenarios.

    In each fold every part is fitted without the fold's scenarios, and the combination is made anew. Its AUC is the
    mean over the parts that are added and subtracted, on their own held-out scenarios (labels of the subtracted ones
    turned): a combination that no longer reads one of its parts shows it there. ``shuffles`` counts the label
    permutations behind ``null_auc``: labels are swapped within a scenario, so its pairing stays.

    Raises:
        ValueError: a part has fewer scenarios than folds, or the method is unknown; NothingLeft: the parts cancel.
    """
    signed = [_Part(e, 1.0, method, folds, seed) for e in add] + [_Part(e, -1.0, method, folds, seed) for e in subtract]
    others = [_Part(e, 0.0, method, folds, seed) for e in orthogonal_to]
    parts = [*signed, *others]
    labels = [p.labels for p in parts]
    whole, norms = _fitted(parts, labels, None, method)
    auc = _crossvalidated(parts, labels, folds, method)
    null = []
    for _ in range(shuffles):
        shuffled = [p.shuffled() if p.sign else p.labels for p in parts]
        null.append(_crossvalidated(parts, shuffled, folds, method))
    return Fit(whole, norms, auc, np.mean(null, 0) if null else np.full(len(whole), np.nan))


class _Part:
    """One contrast inside a fit: rows to learn from, rows to score, and its folds. Sign 0: only to be orthogonal to."""

    def __init__(self, examples: Examples, sign: float, method: str, folds: int, seed: int):
        self.sign, self.labels, self.scenarios = sign, np.asarray(examples.labels), np.asarray(examples.scenarios)
        self.rng = np.random.default_rng(seed)
        self.unique = np.unique(self.scenarios)
        if len(self.unique) < folds:
            raise ValueError(f"{len(self.unique)} scenarios cannot be split into {folds} folds")
        order = self.rng.permutation(self.unique)
        fold_of = dict(zip(order, np.arange(len(self.unique)) % folds, strict=True))
        self.fold = np.array([fold_of[s] for s in self.scenarios])
        self.seen = rows(examples.states, method)
        self.given = examples.given
        self.learned = learned_rows(examples, method) if method == "gradient" and self.given is None else self.seen

    def shuffled(self) -> np.ndarray:
        flip = dict(zip(self.unique, self.rng.integers(0, 2, len(self.unique)), strict=True))
        return self.labels ^ np.array([flip[s] for s in self.scenarios])


def _fitted(
    parts: Sequence[_Part], labels: Sequence[np.ndarray], without: int | None, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """The combination of the parts fitted without one fold (None: on everything), and its norms."""
    found: dict[float, list[np.ndarray]] = {1.0: [], -1.0: [], 0.0: []}
    norms = np.empty(0)
    for part, y in zip(parts, labels, strict=True):
        if part.given is not None:
            norms = np.linalg.norm(part.given, axis=-1)
            w = (part.given / np.maximum(norms, 1e-12)[:, None]).astype(np.float32)
            found[part.sign].append(w)
            continue
        kept = slice(None) if without is None else part.fold != without
        w, norms = directions_of(part.learned[:, kept], y[kept], part.scenarios[kept], method)
        found[part.sign].append(w)
    if len(parts) == 1:
        return w, norms
    return combine(found[1.0], found[-1.0], found[0.0])


def _crossvalidated(parts: Sequence[_Part], labels: Sequence[np.ndarray], folds: int, method: str) -> np.ndarray:
    """Mean over folds and parts of the held-out AUC per point: scores of different folds are not comparable, so they
    are never pooled."""
    aucs = []
    for f in range(folds):
        w = torch.from_numpy(_fitted(parts, labels, f, method)[0])
        for part, y in zip(parts, labels, strict=True):
            if part.sign:
                held = part.fold == f
                scores = part.sign * torch.einsum("pnd,pd->pn", part.seen[:, held], w).numpy()
                aucs.append(auc(scores, y[held]))
    return np.mean(aucs, 0)


def combine(
    add: Sequence[np.ndarray], subtract: Sequence[np.ndarray] = (), orthogonal_to: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of unit directions minus others, made orthogonal to a third group, per point.

    Args:
        add, subtract, orthogonal_to: directions ``[points, d_model]`` of any length; each counts as a unit vector. The
            third group is orthonormalized in its order (Gram-Schmidt) before its span is projected out.

    Returns:
        unit directions ``[points, d_model]`` float32, and the norms ``[points]`` of what was left before it was made
        a unit vector: near zero, little but noise is left.

    Raises:
        NothingLeft: at some point.
    """
    w = np.sum([_unit(v) for v in add] + [-_unit(v) for v in subtract], axis=0)
    basis: list[np.ndarray] = []
    for v in orthogonal_to:
        q = _unit(v)
        # Twice: one pass leaves a remainder of the size of rounding over the angle between the vectors.
        for _ in range(2):
            q = q - sum((np.einsum("pd,pd->p", q, b)[:, None] * b for b in basis), np.zeros_like(q))
        length = np.linalg.norm(q, axis=-1, keepdims=True)
        basis.append(np.where(length > LEAST, q / np.maximum(length, 1e-12), 0.0))
    for _ in range(2):
        for b in basis:
            w = w - np.einsum("pd,pd->p", w, b)[:, None] * b
    norms = np.linalg.norm(w, axis=-1)
    if norms.min() < LEAST:
        raise NothingLeft(int(norms.argmin()))
    return (w / norms[:, None]).astype(np.float32), norms.astype(np.float32)


def _unit(v: np.ndarray) -> np.ndarray:
    v = np.asarray(v, np.float64)
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def rows(states: np.ndarray, method: str) -> torch.Tensor:
    """``[points, texts, d]``; rows of unit norm for the probe, so that a few massive dimensions do not decide it."""
    x = torch.from_numpy(np.ascontiguousarray(states.transpose(1, 0, 2))).float()
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) if method == "probe" else x


def learned_rows(examples: Examples, method: str) -> torch.Tensor:
    """The rows that a direction is made from: gradients for the method ``gradient``, else the states."""
    if method != "gradient":
        return rows(examples.states, method)
    if examples.gradients is None:
        raise ValueError("the method gradient needs gradients beside the states")
    return rows(examples.gradients, method)


def directions_of(
    x: torch.Tensor, labels: np.ndarray, scenarios: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions ``[points, d]`` from rows ``[points, texts, d]``, and their norms ``[points]`` before.

    ``mean_difference`` and ``gradient`` are differences of means, over states and over gradients of the answers'
    log-likelihood: the latter is, up to its length, the first step of BiPO from the zero vector (Cao et al. 2024,
    arXiv 2406.00045), with likelihoods per token as in RePS (Wu et al. 2025, arXiv 2505.20809).
    """
    y = torch.from_numpy(np.asarray(labels)).bool()
    if method in ("mean_difference", "gradient"):
        w = x[:, y].mean(1) - x[:, ~y].mean(1)
    elif method == "probe":
        w = logistic(x, y.float())
    elif method == "pca":
        w = _pca_of_differences(x, y, scenarios)
    else:
        raise ValueError(f"unknown method {method!r}; there are {METHODS}")
    norm = w.norm(dim=-1, keepdim=True)
    return (w / norm.clamp(min=1e-12)).numpy(), norm[:, 0].numpy()


def logistic(x: torch.Tensor, y: torch.Tensor, c: float = 100.0, iterations: int = 15) -> torch.Tensor:
    """L2-regularized logistic regression with an intercept, for many points at once by Newton's method in the span of
    the rows.

    The objective is scikit-learn's, ``|w|^2 / 2 + c * sum(log loss)``, with the intercept unpenalized. With fewer rows
    than dimensions the solution lies in the span of the rows (representer theorem), so a Newton step solves a system of
    the size of the number of rows.

    Args:
        x: ``[points, texts, d]``.
        y: ``[texts]`` of 0 and 1.

    Returns:
        weights ``[points, d]``.
    """
    with _one_thread():
        return _newton(x.double(), y.double(), c, iterations)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of systems of a few dozen rows: handing each to several threads costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _newton(x: torch.Tensor, y: torch.Tensor, c: float, iterations: int) -> torch.Tensor:
    points, n, _ = x.shape
    k = x @ x.transpose(1, 2)  # w = x^T a, scores = k a + b
    a = torch.zeros(points, n, dtype=x.dtype)
    b = torch.zeros(points, 1, dtype=x.dtype)
    eye = torch.eye(n, dtype=x.dtype)
    ones = torch.ones(points, n, 1, dtype=x.dtype)
    for _ in range(iterations):
        p = torch.sigmoid(torch.einsum("pij,pj->pi", k, a) + b)
        weight = (p * (1 - p)).clamp(min=1e-9)
        # Newton as iteratively reweighted least squares: (k + W^-1/c) a + b = z, sum(a) = 0.
        z = torch.einsum("pij,pj->pi", k, a) + b + (y - p) / weight
        system = k + (eye / (c * weight)[:, :, None])
        solved = torch.linalg.solve(system, torch.cat([z[..., None], ones], -1))
        b = solved[..., 0].sum(-1, keepdim=True) / solved[..., 1].sum(-1, keepdim=True)
        previous, a = a, solved[..., 0] - b * solved[..., 1]
        if float((a - previous).abs().max()) < 1e-9 * c:
            break
    return torch.einsum("pi,pid->pd", a, x).float()


def _pca_of_differences(x: torch.Tensor, y: torch.Tensor, scenarios: np.ndarray) -> torch.Tensor:
    """First principal component of the paired differences (uncentred), signed towards label 1 (Zou et al. 2023)."""
    differences = torch.stack(
        [
            x[:, y & torch.from_numpy(scenarios == s)].mean(1) - x[:, ~y & torch.from_numpy(scenarios == s)].mean(1)
            for s in np.unique(scenarios)
        ],
        1,
    )
    _, _, vh = torch.linalg.svd(differences, full_matrices=False)
    w = vh[:, 0]
    sign = torch.sign(torch.einsum("pd,pd->p", w, differences.mean(1)))
    return w * torch.where(sign == 0, 1.0, sign)[:, None]


def largest_dimension_share(directions: np.ndarray) -> np.ndarray:
    """Share of the squared norm that the largest coordinate holds, per direction: near 1, a massive activation is all
    there is."""
    return (directions**2).max(-1) / (directions**2).sum(-1)
