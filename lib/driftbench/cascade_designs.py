"""Designs of the judge cascade on simulated verdicts, where it is known which hypotheses are real.

Verdicts of hypotheses depend on each other through the prompts that they share. The expensive judge is right on
average; the cheap one copies it most of the time, guesses otherwise, and on some hypotheses without any effect is
*confidently* wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from driftbook.evidence.eprocess import sequential_test
from driftbook.evidence.multiplicity import bh_adjusted


@dataclass(frozen=True)
class World:
    """What is simulated; defaults are those of the published comparison (200 hypotheses, 15% real, 15% of nulls
    biased)."""

    hypotheses: int = 200
    real: float = 0.15
    biased: float = 0.15
    least: float = 0.60  # win rates of real hypotheses, uniform between these
    most: float = 0.75
    ties: float = 0.3
    bias: float = 0.15  # added to the cheap judge's win rate on biased nulls
    copies: float = 0.6  # share of cheap verdicts that copy the expensive one
    moods: int = 10  # groups of hypotheses that move together
    dependence: float = 0.1  # standard deviation of a group's common win rate over prompts


@dataclass(frozen=True)
class Draw:
    """X in {0, 1/2, 1} per hypothesis and prompt, [hypotheses, prompts], on the two held-out splits."""

    real: np.ndarray
    biased: np.ndarray
    screen_cheap: np.ndarray
    cheap: np.ndarray
    expensive: np.ndarray


def draw(world: World, screen: int, prompts: int, seed: int) -> Draw:
    """One simulated experiment with ``screen`` and ``prompts`` prompts on the splits screen and validate."""
    rng = np.random.default_rng(seed)
    h = world.hypotheses
    real = np.arange(h) < round(world.real * h)
    biased = ~real & (np.cumsum(~real) <= round(world.biased * (~real).sum()))
    order = rng.permutation(h)
    real, biased = real[order], biased[order]
    win = np.where(real, rng.uniform(world.least, world.most, h), 0.5)
    group = rng.integers(0, world.moods, h)

    def outcomes(rate: np.ndarray, n: int) -> np.ndarray:
        """Rates [h] or [h, n] of X; a tie is one half, so a win needs more than its share among the rest."""
        share = np.clip(0.5 + (rate - 0.5) / (1 - world.ties), 0, 1)
        tied = rng.random((h, n)) < world.ties
        return np.where(tied, 0.5, (rng.random((h, n)) < share).astype(float))

    def judged(n: int) -> tuple[np.ndarray, np.ndarray]:
        mood = world.dependence * rng.normal(size=(world.moods, n))[group]
        strong = outcomes(np.clip(win[:, None] + mood, 0, 1), n)
        guess = outcomes(np.full((h, n), 0.5), n)
        weak = np.where(rng.random((h, n)) < world.copies, strong, guess)
        wrong = outcomes(np.full((h, n), 0.5 + world.bias), n)
        return strong, np.where(biased[:, None], wrong, weak)

    _, screen_cheap = judged(screen)
    expensive, cheap = judged(prompts)
    return Draw(real, biased, screen_cheap, cheap, expensive)


def resampled(
    cheap: np.ndarray, expensive: np.ndarray, margin: float, screen: int, prompts: int, seed: int, effects: bool = True
) -> Draw:
    """One experiment of real verdicts, X as [hypotheses, prompts] of two judges on the same texts, with known truth.

    Prompts are drawn with replacement, so the mean of a hypothesis over the pool is its expectation: it is real where
    that exceeds ``1/2 + margin``. Each hypothesis comes three times. Once as it is. Once with the two sides swapped at
    random, prompt by prompt, for both judges: no effect is left. And once with the sides swapped for the expensive
    judge alone, so that the cheap one keeps whatever it saw and is wrong (``biased`` where it sees an effect). The
    swaps of a prompt are those of all hypotheses: they go on sharing texts. Without ``effects`` all are swapped.
    """
    rng = np.random.default_rng(seed)
    seen = expensive.mean(axis=1) > 0.5 + margin
    nothing = np.zeros(len(seen), dtype=bool)
    real = np.concatenate([seen if effects else nothing, nothing, nothing])
    wrong = cheap.mean(axis=1) > 0.5 + margin
    biased = np.concatenate([nothing, nothing, wrong if effects else nothing])

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        places = rng.integers(0, cheap.shape[1], n)
        weak, strong = cheap[:, places], expensive[:, places]
        swap = rng.random(n) < 0.5
        weak_swapped, strong_swapped = np.where(swap, 1 - weak, weak), np.where(swap, 1 - strong, strong)
        if not effects:
            return np.tile(weak_swapped, (3, 1)), np.tile(strong_swapped, (3, 1))
        return np.concatenate([weak, weak_swapped, weak]), np.concatenate([strong, strong_swapped, strong_swapped])

    screen_cheap, _ = drawn(screen)
    cheap_drawn, strong_drawn = drawn(prompts)
    return Draw(real, biased, screen_cheap, cheap_drawn, strong_drawn)


@dataclass(frozen=True)
class Outcome:
    """What a design confirmed and what it paid: [hypotheses] booleans, calls of the expensive judge."""

    confirmed: np.ndarray
    calls: int


def t_test_p(x: np.ndarray, bound: float) -> np.ndarray:
    """One-sided p-values of ``E[X] <= bound`` by Student's t over prompts, [hypotheses, prompts] to [hypotheses]."""
    n = x.shape[1]
    spread = np.maximum(x.std(axis=1, ddof=1), 1e-9)  # verdicts that are all the same have no spread
    return student.sf((x.mean(axis=1) - bound) / spread * np.sqrt(n), n - 1)


def fixed_sample(data: Draw, prompts: int, alpha: float, margin: float, per_call: int = 1) -> Outcome:
    """The expensive judge reads everything on the first ``prompts`` prompts; Benjamini-Hochberg once."""
    seen = data.expensive[:, :prompts]
    return Outcome(bh_adjusted(t_test_p(seen, 0.5 + margin)) <= alpha, -(-len(seen) // per_call) * seen.shape[1])


def borderline(data: Draw, alpha: float, margin: float, share: float = 0.1) -> Outcome:
    """The cheap judge reads everything; the ``share`` of hypotheses nearest to its threshold go to the expensive
    one."""
    p = t_test_p(data.cheap, 0.5 + margin)
    distance = np.abs(np.log(np.maximum(p, 1e-300)) - np.log(alpha))
    up = np.argsort(distance, kind="stable")[: round(share * len(p))]
    p[up] = t_test_p(data.expensive[up], 0.5 + margin)
    return Outcome(bh_adjusted(p) <= alpha, len(up) * data.expensive.shape[1])


def screen_then_test(
    data: Draw, prompts: int, alpha: float, margin: float, level: float, per_call: int = 1, batch: int = 2
) -> Outcome:
    """Screen by the cheap judge, then e-processes and e-BH on fresh prompts, ``per_call`` hypotheses in one call."""
    kept = np.flatnonzero(t_test_p(data.screen_cheap, 0.5) <= level)
    calls = 0

    def read(rows: np.ndarray, columns: slice) -> np.ndarray:
        nonlocal calls
        calls += -(-len(rows) // per_call) * (columns.stop - columns.start)
        return data.expensive[kept[rows], columns]

    looks = sequential_test(read, len(kept), prompts, alpha, margin, batch)
    confirmed = np.zeros(len(data.real), dtype=bool)
    confirmed[kept[looks.rejected]] = True
    return Outcome(confirmed, calls)


def peeking(data: Draw, alpha: float, margin: float, every: int = 10) -> Outcome:
    """Benjamini-Hochberg again after every few prompts, stopping at the first rejections: the habit that optional
    stopping breaks."""
    n = data.expensive.shape[1]
    for prompts in range(every, n + 1, every):
        outcome = fixed_sample(data, prompts, alpha, margin)
        if outcome.confirmed.any():
            break
    return outcome


@dataclass(frozen=True)
class Summary:
    """Per simulated experiment, [runs]: false discovery proportion, power, expensive calls."""

    fdp: np.ndarray
    power: np.ndarray
    calls: np.ndarray


def summarize(design: Callable[[Draw], Outcome], draws: list[Draw]) -> Summary:
    rows = []
    for data in draws:
        outcome = design(data)
        wrong = (outcome.confirmed & ~data.real).sum()
        found = (outcome.confirmed & data.real).sum() / max(1, data.real.sum())
        rows.append((wrong / max(1, outcome.confirmed.sum()), found, outcome.calls))
    fdp, power, calls = np.array(rows, dtype=np.float64).T
    return Summary(fdp, power, calls)


def calls_at_power(curve: list[Summary], power: float, runs: np.ndarray) -> float:
    """Calls at which a family of designs, from small to large, reaches a mean power over ``runs``; NaN if none does.

    Linear between the two designs around it.
    """
    powers = np.maximum.accumulate([s.power[runs].mean() for s in curve])
    calls = [s.calls[runs].mean() for s in curve]
    if power > powers[-1]:
        return np.nan
    return float(np.interp(power, powers, calls))


def saving(ours: Summary, curve: list[Summary], resamples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """How many times fewer calls ``ours`` makes than ``curve`` at the power of ours: (estimate, low, high).

    The 95% interval resamples simulated experiments, all designs on the same ones. NaN where the curve never reaches
    that power.
    """
    rng, n = np.random.default_rng(seed), len(ours.power)

    def ratio(runs: np.ndarray) -> float:
        return calls_at_power(curve, ours.power[runs].mean(), runs) / ours.calls[runs].mean()

    drawn = [ratio(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return ratio(np.arange(n)), float(low), float(high)
