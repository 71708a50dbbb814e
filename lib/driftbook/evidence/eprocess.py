"""Betting tests and intervals for the mean of a variable in [0, 1].

A gambler who doubts ``H0: E[X] <= m`` starts with one unit and stakes the share ``u`` of it on every observation, so
that the wealth is ``prod(1 + u (X_t / m - 1))``. Under H0 no stake makes money on average: the wealth is a
non-negative supermartingale, its value at any stopping time is an e-value, and the chance that it *ever* reaches ``1
/ alpha`` is at most ``alpha`` (Ville). Capital is hedged over a grid of stakes that is fixed in advance: the
diversified Kelly bets of Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting",
JRSS B 86(1). Over the effects that matter here this found them a tenth sooner than aGRAPA did. No stake has to be
learned, the e-value after n observations does not depend on their order, and for a fixed stake the wealth falls in
``m``, so that inverting the tests gives an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from driftbook.evidence.multiplicity import closed_e_bh

STAKES = (np.arange(32) + 0.5) / 32


def _checked(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.size and not ((x >= 0) & (x <= 1)).all():  # NaN fails both comparisons
        raise ValueError("observations must lie in [0, 1]; give missing ones their worst-case bound first")
    return x


def _log_steps(x: np.ndarray, mean: float) -> np.ndarray:
    if not 0 < mean < 1:
        raise ValueError(f"the mean under test must lie inside (0, 1), not {mean}")
    return np.log1p(STAKES * (_checked(x)[..., None] / mean - 1))


def _hedged(each: np.ndarray) -> np.ndarray:
    """Log of the mean over stakes of ``exp(each)``: [..., stakes] to [...]."""
    top = each.max(axis=-1)
    return top + np.log(np.exp(each - top[..., None]).mean(axis=-1))


def log_wealth(x: np.ndarray, mean: float) -> np.ndarray:
    """Log wealth of the hedged bets against ``E[X] <= mean`` after each observation.

    ``x``: [..., n] in [0, 1]; ``mean`` in (0, 1). Returns [..., n]. Raises ValueError for values outside [0, 1] and
    NaN.
    """
    return _hedged(np.cumsum(_log_steps(x, mean), axis=-2))


def e_path(x: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """E-values against ``E[X] <= 1/2 + margin`` after each observation: [..., n]. For the other direction give ``1 -
    x``."""
    return np.exp(np.minimum(log_wealth(x, 0.5 + margin), 700.0))


def _last_lower(x: np.ndarray, log_threshold: float, grid: int) -> float:
    """The greatest mean on the grid, 0 included, that the wealth after all observations rejects; by bisection."""
    rejected, kept = 0, grid
    while kept - rejected > 1:
        middle = (rejected + kept) // 2
        if len(x) and log_wealth(x, middle / grid)[-1] >= log_threshold:
            rejected = middle
        else:
            kept = middle
    return rejected / grid


def bounds(low: np.ndarray, high: np.ndarray, alpha: float, grid: int = 500) -> tuple[float, float]:
    """Confidence interval of the mean after all observations, however their number came about: (lower, upper).

    ``low`` and ``high``, [n], are the observations with missing ones at their least and at their greatest. Only the
    last wealth counts, not the highest so far: the interval inverts e-values, as the correction for selection
    (``selected_alpha``) wants it.
    """
    threshold = float(np.log(2 / alpha))
    upper = 1 - _last_lower(1 - _checked(high), threshold, grid)
    return _last_lower(_checked(low), threshold, grid), upper


@dataclass(frozen=True)
class Looks:
    """What a sequential test of several hypotheses saw and decided."""

    x: np.ndarray  # [hypotheses, prompts], NaN where nothing was read
    e: np.ndarray  # [hypotheses], at the moment each one stopped betting
    stopped: np.ndarray  # [hypotheses] prompts gone by at that moment
    rejected: np.ndarray  # [hypotheses] booleans: closed e-BH over all of them
    futile: np.ndarray  # [hypotheses] booleans: given up because success was out of reach


def out_of_reach(
    x: np.ndarray, log_e: float, remaining: int, margin: float, log_threshold: float, z: float = 1.3
) -> bool:
    """True when even a favourable reading of ``x`` does not carry the wealth to the threshold in ``remaining``
    observations.

    The favourable mean lies ``z`` standard errors above the estimate (one pseudo-observation at each end keeps the
    error honest when all values are equal); the growth of log wealth under the best stake is about ``d^2 / 2 (var +
    d^2)`` for a mean ``d`` above the bound. Stopping is never wrong for the error rate; only power is at stake.
    """
    n = len(x)
    if n == 0:
        return False
    mean = float(np.mean(x))
    var = (float(np.var(x)) * n + 0.25) / (n + 1)
    gap = min(1.0, mean + z * np.sqrt(var / n)) - (0.5 + margin)
    growth = gap**2 / (2 * (var + gap**2)) if gap > 0 else 0.0
    return log_e + remaining * growth < log_threshold


def sequential_test(
    read: Callable[[np.ndarray, slice], np.ndarray],
    hypotheses: int,
    prompts: int,
    alpha: float,
    margin: float,
    batch: int = 2,
    save: bool = True,
    patience: int = 20,
    floor: float = 0.3,
) -> Looks:
    """Test ``E[X] <= 1/2 + margin`` for several hypotheses that read the same prompts in one order.

    ``read(rows, columns)`` returns X, [len(rows), columns.stop - columns.start] in [0, 1], for those hypotheses on
    those prompts. After each batch closed e-BH runs over the e-values so far. Who reads the next batch follows from
    the past alone, and nobody reads a batch later than the others, so that every e-value stays one and the decision
    at the end is valid under any dependence.

    With ``save`` verdicts are bought only where they can matter: not for a hypothesis that is rejected, that has what
    e-BH asks for if all that are left succeed (it waits), whose wealth has fallen below ``floor``, or that is out of
    reach after at least ``patience`` prompts. A real effect seldom falls so low (under the alternative that the stakes
    suit best, with a probability of at most ``floor``: there the wealth is a likelihood ratio), and this is the
    soonest way to see that nothing is there. Without ``save`` every hypothesis bets on all prompts, and the decision
    does not depend on their order.
    """
    x = np.full((hypotheses, prompts), np.nan)
    each = np.zeros((hypotheses, len(STAKES)))
    log_e, stopped = np.zeros(hypotheses), np.zeros(hypotheses, dtype=int)
    rejected, futile = np.zeros(hypotheses, dtype=bool), np.zeros(hypotheses, dtype=bool)
    for start in range(0, prompts, batch):
        columns = slice(start, min(start + batch, prompts))
        needed = np.log(hypotheses / (alpha * max(1, int((~futile).sum())))) if hypotheses else 0.0
        rows = np.flatnonzero(~(rejected | futile) & (log_e < needed)) if save else np.arange(hypotheses)
        if not len(rows):
            break
        x[rows, columns] = read(rows, columns)
        each[rows] += _log_steps(x[rows, columns], 0.5 + margin).sum(axis=1)
        log_e[rows], stopped[rows] = _hedged(each[rows]), columns.stop
        rejected = closed_e_bh(np.exp(np.minimum(log_e, 700.0)), alpha)
        if save:
            futile[rows] = ~rejected[rows] & (log_e[rows] < np.log(floor))
        if save and columns.stop >= patience:
            for row in rows[~(rejected | futile)[rows]]:
                seen = x[row, ~np.isnan(x[row])]
                futile[row] = out_of_reach(seen, log_e[row], prompts - columns.stop, margin, needed)
    return Looks(x, np.exp(np.minimum(log_e, 700.0)), stopped, rejected, futile)
