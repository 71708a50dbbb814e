"""When a trait commits, how fast it moves, and how long it stays: from traces in units of their own null.

A trace is a score per token, ``(h.v - mean) / sd``, where mean is over the base's response tokens and sd over
directions that mean nothing (fitted to shuffled labels) on the same tokens. So thresholds are scale-free: +-1.96 is the
band that such directions stay in 95% of the time, whatever the layer, the model or the trait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from driftbook.evidence.intervals import student_mean

BAND = 1.96


@dataclass(frozen=True)
class Dynamics:
    """Of one trace. Positions count response tokens from 0; NaN where there is none."""

    mean: float
    commitment: float  # first token from which the running mean of the rest stays outside the band
    velocity: float  # mean absolute change of the smoothed score per token
    persistence: float  # longest run outside the band, as a share of the tokens
    outside: float  # share of tokens outside the band
    change_points: tuple[int, ...]

    def measures(self) -> dict[str, float]:
        """The numbers of :data:`MEASURES`."""
        return {
            "mean": self.mean,
            "outside": self.outside,
            "commits": float("nan") if np.isnan(self.mean) else float(np.isfinite(self.commitment)),
            "commitment": self.commitment,
            "velocity": self.velocity,
            "persistence": self.persistence,
            "changes": float("nan") if np.isnan(self.mean) else float(len(self.change_points)),
        }


def dynamics(score: np.ndarray, band: float = BAND, smooth: int = 5) -> Dynamics:
    """Summaries of one trace ``[tokens]`` in null units (NaN rows are left out).

    Change points are the optimal segmentation of the mean (PELT with an l2 cost, Killick et al. 2012, by ruptures)
    under a penalty of ``3 log n`` noise variances, the noise variance taken from successive differences.
    """
    score = np.asarray(score, float)
    score = score[np.isfinite(score)]
    n = len(score)
    if n == 0:
        nan = float("nan")
        return Dynamics(nan, nan, nan, nan, nan, ())
    kernel = np.ones(min(smooth, n)) / min(smooth, n)
    smoothed = np.convolve(score, kernel, mode="valid")
    outside = np.abs(score) > band
    return Dynamics(
        mean=float(score.mean()),
        commitment=_commitment(score, band),
        velocity=float(np.abs(np.diff(smoothed)).mean()) if len(smoothed) > 1 else 0.0,
        persistence=_longest_run(outside) / n,
        outside=float(outside.mean()),
        change_points=_change_points(score),
    )


def _commitment(score: np.ndarray, band: float) -> float:
    """The first t such that the score at t, and the mean of every stretch from t to a later token, are outside the band
    on one side. At least three tokens must be left, so that one token at the end is no commitment."""
    n = len(score)
    for t in range(n - 2):
        means = np.cumsum(score[t:]) / np.arange(1, n - t + 1)
        if (means > band).all() or (means < -band).all():
            return float(t)
    return float("nan")


def _longest_run(flags: np.ndarray) -> int:
    padded = np.concatenate([[0], flags.astype(int), [0]])
    edges = np.flatnonzero(np.diff(padded))
    return int((edges[1::2] - edges[::2]).max()) if len(edges) else 0


def _change_points(score: np.ndarray) -> tuple[int, ...]:
    import ruptures  # a second

    n = len(score)
    if n < 8:
        return ()
    noise = float(np.median(np.abs(np.diff(score))) / 0.6745) ** 2 / 2
    if noise == 0:
        return ()
    # PELT with the linear kernel, whose cost is the squared error about the mean of a stretch; compiled.
    search = ruptures.KernelCPD(kernel="linear", min_size=3).fit(score[:, None])
    found = search.predict(pen=3 * np.log(n) * noise)
    return tuple(int(i) for i in found[:-1])


# ------------------------------------------------------------------------------------------------------------ summaries

#: What is summarized, and how a report calls it.
MEASURES = {
    "mean": "mean score",
    "outside": "share of tokens outside the band",
    "commits": "share of answers that commit",
    "commitment": "token of commitment",
    "velocity": "change per token",
    "persistence": "longest run outside",
    "changes": "change points per answer",
}


def null_ranges(null: pd.DataFrame) -> pd.DataFrame:
    """What meaningless directions reach: per (layer, site) and measure, the middle 95% of directions.

    Args:
        null: one row per direction and answer: layer, site, direction, prompt_id and the measures that were taken.

    Returns:
        Columns layer, site, measure, low, middle, high: quantiles over directions of their mean over prompts.
    """
    taken = [m for m in MEASURES if m in null]
    per_prompt = null.groupby(["layer", "site", "direction", "prompt_id"])[taken].mean()
    per_direction = per_prompt.groupby(["layer", "site", "direction"]).mean()
    rows = []
    for (layer, site), group in per_direction.groupby(["layer", "site"]):
        for measure in taken:
            values = group[measure].dropna()
            if len(values):
                rows.append((layer, site, measure, *np.quantile(values, [0.025, 0.5, 0.975])))
    return pd.DataFrame(rows, columns=["layer", "site", "measure", "low", "middle", "high"])


def dynamics_summary(moves: pd.DataFrame, ranges: pd.DataFrame) -> pd.DataFrame:
    """Per trait and measure: both sides' means over prompts and what changed, with Student's 95% intervals,
    beside what meaningless directions reach at the same layer and site.

    Args:
        moves: one row per trait and answer: trait, layer, site, side, prompt_id and the measures.
        ranges: from :func:`null_ranges`.

    Returns:
        Columns trait, measure, base, intervention (estimates), base_low, ..., intervention_high, change, change_low,
        change_high (prompts with both sides), null_low, null_high, prompts. The mean of a measure that some answers
        lack (the token of commitment) is over the prompts that have it.
    """
    rows = []
    for trait, group in moves.groupby("trait", sort=False):
        where = ranges[(ranges.layer == group.layer.iloc[0]) & (ranges.site == group.site.iloc[0])].set_index("measure")
        per_prompt = group.groupby(["side", "prompt_id"])[list(MEASURES)].mean()
        for measure in MEASURES:
            sides = per_prompt[measure].unstack("side")
            row: dict[str, Any] = {"trait": trait, "measure": measure, "prompts": len(sides)}
            columns = {side: sides[side] for side in ("base", "intervention") if side in sides}
            if len(columns) == 2:
                columns["change"] = sides["intervention"] - sides["base"]
            for name, values in columns.items():
                found = values.dropna().to_numpy(float)
                if len(found):
                    interval = student_mean(found)
                    row |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
            if measure in where.index:
                row |= {"null_low": where.low[measure], "null_high": where.high[measure]}
            rows.append(row)
    columns = ["trait", "measure"]
    for name in ("base", "intervention", "change"):
        columns += [name, f"{name}_low", f"{name}_high"]
    return pd.DataFrame(rows, columns=[*columns, "null_low", "null_high", "prompts"])
