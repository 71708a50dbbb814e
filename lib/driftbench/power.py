"""Designs of the final test on simulated answers, where it is known which behaviours changed.

Answers of one side to one prompt show behaviours together (a long answer shows more of everything), and the two sides
of a prompt resemble each other. Both are common normal effects under the threshold that makes a behaviour show or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from driftbook.evidence.eprocess import sequential_test
from driftbook.evidence.intervals import summary_interval, wilson
from driftbook.evidence.paired import paired_test


@dataclass(frozen=True)
class World:
    """What is simulated: the first ``real`` hypotheses rise from ``base`` to ``changed``, the others do not change.

    Shares of answers in [0, 1]; those that do not change are spread from 1% to 50%, or all at ``base`` without
    ``spread``. With ``sizes``: medians of answer lengths in words, and all begin at ``base``.
    """

    prompts: int
    base: float
    changed: float
    hypotheses: int = 20
    real: int = 3
    alike: float = 0.3  # share of the variance that the sides of a prompt have in common
    together: float = 0.2  # and that all hypotheses have in common in an answer
    sizes: bool = False
    spread: bool = True

    @property
    def name(self) -> str:
        unit = " words" if self.sizes else "%"
        scale = 1 if self.sizes else 100
        return f"{round(scale * self.base)} to {round(scale * self.changed)}{unit}"


def draw(world: World, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(base, changed), [prompts, hypotheses] each: one answer a side."""
    rng = np.random.default_rng(seed)
    shape = (world.prompts, world.hypotheses)
    topic = np.sqrt(world.alike) * rng.normal(size=shape)

    def side(level: np.ndarray | float) -> np.ndarray:
        long = np.sqrt(world.together) * rng.normal(size=(world.prompts, 1))
        z = topic + long + np.sqrt(1 - world.alike - world.together) * rng.normal(size=shape)
        return np.round(level * np.exp(0.6 * z)) if world.sizes else (z < norm.ppf(level)).astype(float)

    plain = world.sizes or not world.spread
    others = np.full(world.hypotheses, world.base) if plain else np.geomspace(0.01, 0.5, world.hypotheses)
    rises = np.arange(world.hypotheses) < world.real
    return side(np.where(rises, world.base, others)), side(np.where(rises, world.changed, others))


Design = Callable[[np.ndarray, np.ndarray, str], np.ndarray]
FLIPS = 499  # joint swaps of max-T: enough for a level of 0.05


def _bets(margin: float, alpha: float) -> Design:
    def test(base: np.ndarray, changed: np.ndarray, center: str) -> np.ndarray:
        x = ((np.sign(changed - base) + 1) / 2).T
        h, n = x.shape
        return sequential_test(lambda rows, columns: x[rows, columns], h, n, alpha, margin, max(1, n), False).rejected

    return test


def _fixed(method: str, direction: int, alpha: float) -> Design:
    def test(base: np.ndarray, changed: np.ndarray, center: str) -> np.ndarray:
        directions = np.full(base.shape[1], direction)
        return paired_test(base, changed, directions, alpha, center=center, method=method, flips=FLIPS).rejected

    return test


def designs(alpha: float = 0.05) -> dict[str, Design]:
    """By name; all but the last know the direction."""
    return {
        "e-BH, margin 0.02": _bets(0.02, alpha),
        "e-BH, margin 0": _bets(0.0, alpha),
        "fixed, BH": _fixed("bh", 1, alpha),
        "fixed, max-T": _fixed("max_t", 1, alpha),
        "fixed, BH, either direction": _fixed("bh", 0, alpha),
    }


def compare(worlds: Iterable[World], runs: int, seed: int, alpha: float = 0.05) -> pd.DataFrame:
    """One row a world and design: share, prompts, hypotheses, design, power, low, high, fdr (mean share of false claims
    among those confirmed), any_false, any_false_low, any_false_high (experiments with a false claim).

    All designs read the same ``runs`` experiments. Intervals are of 95% over experiments.
    """
    rows = []
    for world in worlds:
        center = "median" if world.sizes else "mean"
        drawn = [draw(world, seed + run) for run in range(runs)]
        for name, design in designs(alpha).items():
            confirmed = np.array([design(base, changed, center) for base, changed in drawn])
            true, false = confirmed[:, : world.real].sum(axis=1), confirmed[:, world.real :].sum(axis=1)
            power = summary_interval(true / max(1, world.real))
            alarms = wilson(int((false > 0).sum()), runs)
            fdr = float((false / np.maximum(1, true + false)).mean())
            rows.append((world.name, world.prompts, world.hypotheses, name, *power, fdr, *alarms))
    ends = ["power", "low", "high", "fdr", "any_false", "any_false_low", "any_false_high"]
    return pd.DataFrame(rows, columns=["share", "prompts", "hypotheses", "design", *ends])


def split_power(
    prompts: int,
    base: float,
    changed: float,
    discover: Iterable[float],
    runs: int,
    seed: int,
    candidates: int = 400,
    proposed: int = 20,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """How often a change that nobody named is proposed on *discover* and confirmed on the other prompts.

    Three of ``candidates`` phrases changed; the others are as frequent on both sides (0.5% to 30% of answers). The
    ``proposed`` ones that differ most on *discover*, by at least 1.5 standard errors, are tested in the direction that
    was seen. Columns: share, prompts, discover, proposed, confirmed (shares of the three), low, high.
    """
    found: dict[float, list[tuple[float, float]]] = {share: [] for share in discover}
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        level = np.exp(rng.uniform(np.log(0.005), np.log(0.3), candidates))
        level[:3] = base
        one = (rng.random((prompts, candidates)) < level).astype(float)
        level[:3] = changed
        d = (rng.random((prompts, candidates)) < level) - one
        for share, results in found.items():
            cut = round(share * prompts)
            z = d[:cut].sum(axis=0) / np.sqrt((d[:cut] ** 2).sum(axis=0) + 1)
            chosen = np.argsort(-np.abs(z), kind="stable")[:proposed]
            chosen = chosen[np.abs(z[chosen]) >= 1.5]
            later, direction = d[cut:, chosen], np.where(z[chosen] > 0, 1, -1)
            confirmed = paired_test(np.zeros_like(later), later, direction, alpha).rejected
            results.append(((chosen < 3).sum() / 3, (confirmed & (chosen < 3)).sum() / 3))
    name, rows = f"{round(100 * base)} to {round(100 * changed)}%", []
    for share, results in found.items():
        proposals, confirmed = np.array(results).T
        rows.append((name, prompts, share, proposals.mean(), *summary_interval(confirmed)))
    return pd.DataFrame(rows, columns=["share", "prompts", "discover", "proposed", "confirmed", "low", "high"])
