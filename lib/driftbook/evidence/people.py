"""A judge held against people: how often both say the same, and effects corrected for what the judge gets wrong.

A label says of one answer whether it shows what a claim says. Prediction-powered inference (Angelopoulos et al. 2023)
adds to the judge's effect over all prompts what people saw and the judge did not, on the labelled answers; how much
of the judge is used is tuned to the narrowest interval (PPI++, Angelopoulos, Duchi and Zrnic 2023). The unit is the
prompt throughout, and labels that were drawn with unequal propensity count by its inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from driftbook.evidence.intervals import Interval, resample_counts, wilson_limits
from driftbook.evidence.wins import shuffled

LEAST = 50  # labels of a claim from which on its effect is corrected
YES_FROM = 0.5  # a verdict that is no less says that the answer shows it
UNSEEN = 0.5  # of an error of the judge that each side's labels are taken to have missed, in the variance


@dataclass(frozen=True)
class Agreement:
    """What a judge and people say of the same answers. ``counts`` are answers: [judge says yes, no][people yes, no];
    ``accuracy`` and ``kappa`` (Cohen 1960) weigh them by how they were drawn. A kappa is NaN where both always say the
    same one word."""

    counts: np.ndarray
    accuracy: Interval
    kappa: Interval


NOTHING = Interval(float("nan"), float("nan"), float("nan"))


def agreement(
    judge: np.ndarray, people: np.ndarray, prompts: np.ndarray, weights: np.ndarray | None = None, seed: int = 0
) -> Agreement:
    """``judge`` and ``people`` [answers] are booleans, ``prompts`` [answers] says what is resampled.

    Accuracy has Wilson's interval at the effective number of prompts (Kish), which also speaks where no error was
    seen; kappa a percentile interval over resampled prompts. Of no answer (a judge without a verdict) both are NaN.
    """
    judge, people = np.asarray(judge, dtype=bool), np.asarray(people, dtype=bool)
    if not len(judge):
        return Agreement(np.zeros((2, 2), dtype=int), NOTHING, NOTHING)
    weights = np.ones(len(judge)) if weights is None else np.asarray(weights, dtype=np.float64)
    ids, unit = np.unique(np.asarray(prompts), return_inverse=True)
    cell = 2 * ~judge + ~people
    mass = np.zeros((len(ids), 4))
    np.add.at(mass, (unit, cell), weights)
    drawn = _kappa(resample_counts(len(ids), 2000, seed) @ mass)
    known = drawn[~np.isnan(drawn)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    total, of_prompt = mass.sum(axis=0), mass.sum(axis=1)
    share = float((total[0] + total[3]) / total.sum())
    size = of_prompt.sum() ** 2 / (of_prompt**2).sum()
    accuracy = Interval(share, *wilson_limits(share, size, float(norm.isf(0.025))))
    kappa = Interval(float(_kappa(total[None])[0]), float(low), float(high))
    return Agreement(np.bincount(cell, minlength=4).reshape(2, 2), accuracy, kappa)


def _kappa(cells: np.ndarray) -> np.ndarray:
    """Cohen's kappa of each row (both yes, judge alone, people alone, both no)."""
    both, judge, people, neither = (cells / cells.sum(axis=1, keepdims=True)).T
    chance = (both + judge) * (both + people) + (neither + judge) * (neither + people)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (both + neither - chance) / (1 - chance), np.nan)


@dataclass(frozen=True)
class Labelled:
    """Labelled answers of both sides: ``prompt``, ``changed`` (of the intervention), the judge's score, what people
    say (0 or 1), and the weight of each, [answers]."""

    prompt: np.ndarray
    changed: np.ndarray
    judge: np.ndarray
    people: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Corrected:
    """The share of answers of the intervention that show it, minus that of the base: ``effect`` from judge and labels
    together, ``alone`` from the labels alone. ``use`` (0 to 1) says how much of the judge went into it."""

    effect: Interval
    alone: Interval
    use: float


def corrected(
    prompts: np.ndarray, base: np.ndarray, changed: np.ndarray, labels: Labelled, alpha: float = 0.05
) -> Corrected:
    """Prediction-powered effect of a claim, paired over prompts.

    ``base`` and ``changed`` are the judge's mean scores of each side's answers to ``prompts`` [p], NaN where there is
    no verdict. With ``use`` u the effect is u times the judge's, plus the labelled difference between the sides of
    people minus u times judge. Its variance is the sum over prompts of the squared influence of each, in which a prompt
    stands once with its pair and its labels, so that labelled prompts may be among ``prompts`` or not. An error rate
    near zero leaves labels without a single error, and a naive interval without width: each side is read as if
    ``UNSEEN`` more label had shown an error. Student's t with the effective number of labels (Kish) less two.
    Raises ValueError where a side has no label.
    """
    moved = np.asarray(changed, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    known = ~np.isnan(moved)
    moved, ids = moved[known], np.asarray(prompts)[known]
    units, place = np.unique(np.concatenate([ids, labels.prompt]), return_inverse=True)
    by_people, by_judge = np.zeros(len(units)), np.zeros(len(units))
    np.add.at(by_judge, place[: len(ids)], (moved - moved.mean()) / len(moved))
    told = judged = unseen = freedom = 0.0
    for sign, side in ((1.0, labels.changed), (-1.0, ~labels.changed)):
        if not side.any():
            raise ValueError("labels of one side only")
        weight = labels.weight[side] / labels.weight[side].sum()
        mine, size = place[len(ids) :][side], 1 / (weight**2).sum()
        for source, scores, influence in ((1.0, labels.people, by_people), (-1.0, labels.judge, by_judge)):
            mean = float(weight @ scores[side])
            np.add.at(influence, mine, source * sign * weight * (scores[side] - mean))
            told, judged = (told + sign * mean, judged) if source > 0 else (told, judged + sign * mean)
        unseen, freedom = unseen + UNSEEN / size**2, freedom + size
    square = float(by_judge @ by_judge)
    use = float(np.clip(-(by_people @ by_judge) / square, 0, 1)) if square > 0 else 0.0
    t = float(student.isf(alpha / 2, max(1.0, freedom - 2)))

    def interval(use: float) -> Interval:
        estimate = told + use * (float(moved.mean()) - judged)
        half = t * float(np.sqrt(((by_people + use * by_judge) ** 2).sum() + unseen))
        return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half))

    return Corrected(interval(use), interval(0.0), use)


def draw(scores: pd.DataFrame, count: int, salt: str) -> pd.DataFrame:
    """The answers of which labels teach most: ``count`` of ``scores`` (text_id, side, score), with their
    ``propensity``, in an order that tells nothing.

    Half of them go evenly to what the judge finds low, undecided and high, by thirds of the score, so that rare
    verdicts are met; half go to these in proportion, so that no answer has a propensity near zero.
    """
    if scores.empty:
        return scores.assign(propensity=[])
    third = np.clip((scores["score"].to_numpy(np.float64) * 3).astype(int), 0, 2)
    strata = dict(list(scores.assign(third=third).groupby(["side", "third"])))
    sides = scores["side"].value_counts()
    chosen = []
    for (side, _), own in sorted(strata.items()):
        parts = sum(s == side for s, _ in strata)
        wanted = round(count / len(sides) * (len(own) / sides[side] + 1 / parts) / 2)
        taken = shuffled(own["text_id"].tolist(), salt)[: max(1, min(len(own), wanted))]
        chosen.append(own[own["text_id"].isin(taken)].assign(propensity=len(taken) / len(own)))
    table = pd.concat(chosen).drop(columns="third").set_index("text_id")
    return table.loc[shuffled(table.index.tolist(), f"{salt} order")].reset_index()
