"""Simulated judges whose errors are known: do effects that were corrected by labels cover the truth?

Answers of both sides to a prompt share its topic; whether they show the behaviour is drawn, what the judge says of it
too, and some are labelled, uniformly or as the labelling page draws them. The truth is the difference between the
sides in all answers that could have been drawn.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from driftbook.evidence.intervals import wilson
from driftbook.evidence.people import Labelled, corrected, draw

EFFECTS = ((0.0, 0.03), (0.05, 0.2), (0.3, 0.45), (0.5, 0.5))
JUDGES = {  # P(yes | shows it), P(yes | does not) for base and intervention, and whether it says how sure it is
    "good": (0.95, 0.03, 0.95, 0.03, False),
    "poor": (0.6, 0.2, 0.6, 0.2, False),
    "unsure": (0.8, 0.3, 0.8, 0.3, True),
    "biased to a side": (0.8, 0.02, 0.95, 0.2, False),
    "blind": (0.3, 0.3, 0.3, 0.3, False),
}


@dataclass(frozen=True)
class Design:
    base: float
    changed: float
    judge: str
    labels: int
    prompts: int
    drawn: str  # uniform, or as the labelling page draws


def designs() -> list[Design]:
    return [
        Design(*shares, judge, labels, prompts, drawn)
        for shares in EFFECTS
        for judge in JUDGES
        for labels, prompts in ((50, 250), (100, 250), (50, 1000))
        for drawn in ("uniform", "page")
    ]


def answers(design: Design, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(what the answers show, what the judge says), [side, prompts] each."""
    topic = rng.normal(size=design.prompts)
    own = np.sqrt(0.5) * (topic + rng.normal(size=(2, design.prompts)))
    shows = own < norm.ppf([[design.base], [design.changed]])
    hit_base, false_base, hit_changed, false_changed, unsure = JUDGES[design.judge]
    chance = np.where(shows, [[hit_base], [hit_changed]], [[false_base], [false_changed]])
    sure = 1.0 * (rng.random(shows.shape) < chance)
    return shows.astype(float), rng.beta(4 * chance, 4 * (1 - chance)) if unsure else sure


def once(design: Design, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends of three intervals: corrected, of the labels alone, of the judge alone."""
    rng = np.random.default_rng(seed)
    shows, judge = answers(design, rng)
    prompts = np.arange(design.prompts)
    table = pd.DataFrame({"text_id": [f"{i:05d}" for i in range(2 * design.prompts)]})
    table = table.assign(side=np.repeat(["base", "intervention"], design.prompts), score=judge.ravel())
    if design.drawn == "page":
        chosen = draw(table, design.labels, str(seed))
        rows, weight = chosen["text_id"].astype(int).to_numpy(), 1 / chosen["propensity"].to_numpy()
    else:
        rows = rng.choice(2 * design.prompts, design.labels, replace=False)
        weight = np.ones(design.labels)
    changed = rows >= design.prompts
    labels = Labelled(rows % design.prompts, changed, judge.ravel()[rows], shows.ravel()[rows], weight)
    found = corrected(prompts, judge[0], judge[1], labels)
    moved = judge[1] - judge[0]
    half = 1.96 * moved.std(ddof=1) / len(moved) ** 0.5
    ends = [found.effect[1:], found.alone[1:], (moved.mean() - half, moved.mean() + half)]
    return tuple(np.array(ends).T)


def simulate(runs: int, seed: int = 0) -> pd.DataFrame:
    """One row a design: how often each interval covers the truth, with Wilson's interval, and the median widths."""
    rows = []
    for number, design in enumerate(designs()):
        low, high = map(np.array, zip(*(once(design, seed + 100_000 * number + i) for i in range(runs)), strict=True))
        truth = design.changed - design.base
        covered = ((low <= truth) & (truth <= high)).sum(axis=0)
        share = wilson(int(covered[0]), runs)
        width = np.median(high - low, axis=0)
        rows.append((*astuple(design), *share, covered[1] / runs, covered[2] / runs, *width))
    return pd.DataFrame(rows, columns=list(COLUMNS))


COLUMNS = (
    *("base", "changed", "judge", "labels", "prompts", "drawn", "coverage", "coverage_low", "coverage_high"),
    *("coverage_labels", "coverage_judge", "width", "width_labels", "width_judge"),
)
