"""Verdicts that cost nothing, on a fixed sample: the panel of behaviours, a person's hypotheses, phrases.

What was named before looking (the panel, a person's hypotheses) is tested on all prompts; what the texts suggested is
tested on the prompts that had no part in suggesting it. All of it is one family of tests: one joint swap of the sides
inside prompts, one correction (``evidence.paired``). Few prompts with many answers each say little of other prompts and
much of themselves: there the answers are exchanged inside their prompts, and the claim says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from driftbook.behaviours.catalogue import measure_from
from driftbook.behaviours.measure import Measure, values
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.cascade import judged
from driftbook.evidence.intervals import Interval, student_mean
from driftbook.evidence.judges import Judge
from driftbook.evidence.material import Material, asked_ids, by_judge
from driftbook.evidence.outcomes import Outcome, e_value
from driftbook.evidence.paired import Scope, paired_test, per_prompt, scope_for, within_prompts_test
from driftbook.evidence.wins import Wins, win_rates
from driftbook.parameters import Validate

BEFORE_LOOKING = ("panel", "person")  # who proposed what needs no held-out prompts
ON_ALL = (*BEFORE_LOOKING, "words")  # chosen without a look at the sides (evidence.vocabulary)


def count(
    material: Material,
    section: Validate,
    alpha: float,
    known: pd.DataFrame | None = None,
    judge: Judge | None = None,
) -> list[Outcome]:
    """Test every hypothesis whose verdicts are free, in the order of ``material.hypotheses``.

    ``known`` holds readings that were made before: ``text_id`` and a column for each behaviour of the panel. ``judge``
    is a free judge that scores the hypotheses that no measure reads. Raises DriftbookError for one that nobody reads.
    """
    found = [h for h in material.hypotheses if judge is not None or not by_judge(h)]
    if not found:
        return []
    texts, prompts = material.paired()
    later = texts["split"].to_numpy() != "discover"
    measures, scores = read_all(found, texts, material, known, judge)
    before = np.array([h.proposer in ON_ALL for h in found])
    scores[np.ix_(~later, ~before)] = np.nan
    prompt, side = texts["prompt_id"].to_numpy(), texts["side"].to_numpy()
    within = scope_of(texts).name == "these prompts"
    direction = [_sign(h.direction) for h in found]
    if within:
        test = within_prompts_test(scores, asked_ids(texts).to_numpy(), side, direction, alpha, seed=material.seed)
    else:
        base, changed = per_prompt(scores, prompt, side, prompts)
        margin = np.array([section.margin_of(m.unit) for m in measures])
        test = paired_test(base, changed, direction, alpha, margin, [m.summary for m in measures], seed=material.seed)
    # where no direction was named before looking: the side that the difference names
    moved = np.nan_to_num(test.difference)
    signs = np.where(moved == 0, np.where(test.more >= test.less, 1, -1), np.sign(moved))
    signs = np.array([_sign(h.direction) or s for h, s in zip(found, signs, strict=True)])
    wins = win_rates(scores, prompt, (side == "intervention")[:, None] == (signs > 0)[None, :], prompts)
    apart = set(prompt[later])
    suggested = np.array([p in apart for p in prompts], dtype=bool)  # had no part in suggesting anything
    held, held_prompts = texts[later].reset_index(drop=True), list(np.array(prompts, dtype=object)[suggested])
    outcomes = []
    for i, (h, measure) in enumerate(zip(found, measures, strict=True)):
        rows, asked = (slice(None), slice(None)) if before[i] else (later, suggested)
        own = Wins(*(part[asked, i] for part in wins))
        x = own.x[~np.isnan(own.x)]
        outcomes.append(
            Outcome(
                hypothesis=h,
                direction="intervention" if signs[i] > 0 else "base",
                measure=measure,
                judge=judge.name if judge is not None and measure.name == "judged" else "counting",
                scope="these prompts" if within else "all prompts" if before[i] else "held-out prompts",
                texts=texts if before[i] else held,
                scores=scores[rows, i],
                prompts=prompts if before[i] else held_prompts,
                wins=own,
                win_rate=student_mean(x, within=(0, 1)) if len(x) else Interval(np.nan, 0.0, 1.0),
                base=float(test.base[i]),
                intervention=float(test.changed[i]),
                difference=Interval(float(test.difference[i]), float(test.low[i]), float(test.high[i])),
                confirmed=bool(test.rejected[i]),
                status="confirmed" if test.rejected[i] else "not confirmed",
                e_value=e_value(x, either=h.direction == "either" or h.proposer == "words"),
                p_value=float(test.p[i]),
                q_value=float(test.adjusted[i]),
            )
        )
    return outcomes


def scope_of(texts: pd.DataFrame) -> Scope:
    """What a test of these answers can speak of: prompts like these, or, for few prompts with many answers each, these
    prompts alone. ``texts``: prompt_id, side, and asked where look-alikes are one prompt."""
    samples = texts.groupby([asked_ids(texts), "side"]).size().unstack(fill_value=0).min(axis=1)  # of the poorer side
    return scope_for(texts["prompt_id"].nunique(), int(samples.median()) if len(samples) else 0)


def _sign(direction: str) -> int:
    return {"intervention": 1, "base": -1}.get(direction, 0)


def read_all(
    found: Sequence[Hypothesis],
    texts: pd.DataFrame,
    material: Material,
    known: pd.DataFrame | None = None,
    judge: Judge | None = None,
) -> tuple[list[Measure], np.ndarray]:
    """The measure of each hypothesis, and what every text shows of it: [texts, hypotheses], NaN where it was declined.

    Readings of ``known`` are looked up by text id; a judge reads what no measure does.
    """
    measures = [
        judged(h, judge.name) if by_judge(h) and judge is not None else measure_from(h.measure or {}) for h in found
    ]
    scores = np.full((len(texts), len(found)), np.nan)
    names = set() if known is None else set(known.columns)
    stored = None if known is None else known.set_index("text_id").reindex(texts["text_id"])
    own = {"judged": [], "known": [], "counted": []}
    for i, (h, m) in enumerate(zip(found, measures, strict=True)):
        own["judged" if by_judge(h) else "known" if m.name in names else "counted"].append(i)
    for i in own["known"]:
        scores[:, i] = stored[measures[i].name].to_numpy(np.float64)
    if own["counted"]:
        said = [material.prompts[p].text for p in asked_ids(texts)]
        scores[:, own["counted"]] = values([measures[i] for i in own["counted"]], texts["text"].tolist(), said)
    if own["judged"] and judge is not None:
        shown = [material.prompts[p].shown() for p in asked_ids(texts)]
        scores[:, own["judged"]] = judge.score(texts["text"].tolist(), [found[i] for i in own["judged"]], shown)
    return measures, scores
