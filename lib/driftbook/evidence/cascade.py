"""From hypotheses to decisions: a screen by the cheap judge, a sequential test by the expensive one, an audit of the
screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import Measure
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.eprocess import Looks, bounds, e_path, sequential_test
from driftbook.evidence.intervals import Interval, prompts_needed, sign_flip_p, summary_interval
from driftbook.evidence.judges import Judges, ManyAtOnce
from driftbook.evidence.material import Held, Material
from driftbook.evidence.multiplicity import selected_alpha
from driftbook.evidence.outcomes import Outcome, means
from driftbook.evidence.reading import VERDICTS, Reading, read
from driftbook.evidence.wins import Wins, mean_by, shuffled
from driftbook.parameters import Validate
from driftbook.stage import Progress

BATCH = 2  # prompts between two looks


@dataclass(frozen=True)
class Screening:
    """What the cheap judge let through: ``table`` has one row per hypothesis."""

    table: pd.DataFrame  # hypothesis_id, prompts, win_rate, p_screen, survives
    verdicts: pd.DataFrame
    survivors: list[Hypothesis]


def screen(material: Material, judges: Judges, section: Validate) -> Screening:
    """Drop hypotheses for which the cheap judge sees nothing on split screen (one-sided sign-flip p above
    ``screen_level``).

    Survivors are tested on other prompts, so this costs power at most, never false claims. With ``cascade`` other than
    screen_then_test, or without prompts in split screen, all survive; so does what the cheap judge cannot read.
    """
    held, hypotheses = material.held_out("screen"), material.judged
    ids = pd.Series([h.hypothesis_id for h in hypotheses], dtype="str")
    if section.cascade != "screen_then_test" or not held.order or not hypotheses:
        table = pd.DataFrame(
            {"hypothesis_id": ids, "prompts": 0, "win_rate": np.nan, "p_screen": np.nan, "survives": True}
        )
        return Screening(table, pd.DataFrame(columns=list(VERDICTS)), hypotheses)
    reading = read(judges.cheap, held, held.order, hypotheses)
    x = np.where(np.isnan(reading.wins.x), 0.5, reading.wins.x)  # only a filter: a missing verdict speaks neither way
    p = np.array([sign_flip_p(x[:, i], flips=999, seed=material.seed) for i in range(len(hypotheses))])
    unread = np.isnan(reading.wins.x).all(axis=0)
    survives = (p <= section.screen_level) | unread
    table = pd.DataFrame(
        {
            "hypothesis_id": ids,
            "prompts": len(held.order),
            "win_rate": x.mean(axis=0),
            "p_screen": np.where(unread, np.nan, p),
            "survives": survives,
        }
    )
    return Screening(table, reading.verdicts(), [h for h, s in zip(hypotheses, survives, strict=True) if s])


@dataclass(frozen=True)
class Tested:
    """Verdicts on split validate and what the sequential test made of them; arrays follow ``hypotheses``."""

    hypotheses: list[Hypothesis]
    prompts: list[str]
    looks: Looks
    readings: list[Reading]
    judged_by: list[str]  # per hypothesis
    cheap: list[Reading]  # the cheap judge on the same prompts, where two judges are configured
    alpha: float  # false discovery rate of the decision

    def paths(self, margin: float) -> list[np.ndarray]:
        """E-values after each prompt, per hypothesis, as far as it read."""
        return [e_path(x[~np.isnan(x)], margin) for x in self.looks.x]

    def verdicts(self) -> pd.DataFrame:
        tables = [r.verdicts() for r in [*self.readings, *self.cheap]]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(VERDICTS))


def holdout_test(
    material: Material,
    judges: Judges,
    survivors: list[Hypothesis],
    section: Validate,
    progress: Progress,
    alpha: float | None = None,
) -> Tested:
    """Test the survivors on split validate, in one shuffled order of prompts, by e-process and e-BH at ``alpha``.

    A missing verdict counts against the hypothesis. A paid judge stops as soon as a hypothesis is decided or out of
    reach; a free one reads all prompts, so that fixed-sample figures can stand beside.
    """
    held = material.held_out("validate")
    readings: list[Reading] = []
    compared: list[Reading] = []
    escalated = _escalated(held, judges, survivors, section)
    bar = progress(len(held.order) if survivors else 0, "validate", "prompts")

    def look(rows: np.ndarray, columns: slice) -> np.ndarray:
        prompts, low = held.order[columns], np.empty((len(rows), columns.stop - columns.start))
        for judge, chosen in ((judges.tester, escalated[rows]), (judges.cheap, ~escalated[rows])):
            if chosen.any():
                hypotheses = [survivors[i] for i in rows[chosen]]
                readings.append(read(judge, held, prompts, hypotheses))
                low[chosen] = readings[-1].wins.low.T
                if judge is not judges.cheap and not judges.cheap.paid:
                    compared.append(read(judges.cheap, held, prompts, hypotheses))
        bar.update(len(prompts))
        return low

    paid = judges.tester.paid
    batch = BATCH if paid else max(1, len(held.order))
    level, margin = alpha or section.alpha, section.margin_of("score")
    looks = sequential_test(look, len(survivors), len(held.order), level, margin, batch, save=paid)
    bar.close()
    names = [(judges.tester if e else judges.cheap).name for e in escalated]
    return Tested(survivors, held.order, looks, readings, names, compared, level)


def outcomes(tested: Tested, section: Validate) -> list[Outcome]:
    """What the sequential test saw and decided of each hypothesis, in its order.

    Win rate and difference have confidence sequences, which hold although the test may have stopped early: at the
    selection-corrected level for confirmed claims, at alpha for the rest; missing verdicts widen them to their worst
    cases.
    """
    looks, confirmed = tested.looks, int(tested.looks.rejected.sum())
    found = []
    for i, h in enumerate(tested.hypotheses):
        texts, scores, wins = scores_of(tested, i)
        level = selected_alpha(tested.alpha, confirmed, len(tested.hypotheses)) if looks.rejected[i] else tested.alpha
        prompts = [p for p, x in zip(tested.prompts, looks.x[i], strict=True) if not np.isnan(x)]
        x = wins.x[~np.isnan(wins.x)]
        mean = float(x.mean()) if len(x) else np.nan
        base, changed, difference = _rates(scores, texts, prompts, level)
        needed = None
        if len(x) > 1:
            tests = len(tested.hypotheses)
            needed = prompts_needed(mean, float(x.std()), section.margin_of("score"), tests, tested.alpha)
        status = "confirmed" if looks.rejected[i] else "stopped: out of reach" if looks.futile[i] else "not confirmed"
        found.append(
            Outcome(
                hypothesis=h,
                direction=h.direction,
                measure=judged(h, tested.judged_by[i]),
                judge=tested.judged_by[i],
                scope="held-out prompts",
                texts=texts,
                scores=scores,
                prompts=prompts,
                wins=wins,
                win_rate=Interval(mean, *bounds(wins.low, wins.high, level)),
                base=base,
                intervention=changed,
                difference=difference,
                confirmed=bool(looks.rejected[i]),
                status=status,
                e_value=float(looks.e[i]),
                stopped=int(looks.stopped[i]),
                agreement=_agreement(tested, i),
                needed=np.nan if needed is None else float(needed),
            )
        )
    return found


def judged(hypothesis: Hypothesis, judge: str) -> Measure:
    """The measure of a hypothesis that a judge reads: its score, from 0 (nothing of it) to 1."""
    said = f"How much an answer shows it, as {judge} says, from 0 to 1."
    return Measure("judged", hypothesis.text, "score", "judged", _unread, said, spec={"kind": "judge"})


def _unread(text: str, prompt: str) -> float:
    return float("nan")  # only a judge can read it


def scores_of(tested: Tested, row: int) -> tuple[pd.DataFrame, np.ndarray, Wins]:
    """Texts that were judged for one hypothesis, their scores, and its wins over the prompts that it read."""
    tables, scores, wins = [], [], []
    for reading in tested.readings:
        for column, h in enumerate(reading.hypotheses):
            if h is tested.hypotheses[row]:
                tables.append(reading.texts)
                scores.append(reading.scores[:, column])
                wins.append([part[:, column] for part in reading.wins])
    return (
        pd.concat(tables, ignore_index=True),
        np.concatenate(scores),
        Wins(*map(np.concatenate, zip(*wins, strict=True))),
    )


def _agreement(tested: Tested, row: int) -> float:
    """Share of prompts on which the cheap and the expensive judge say the same: more, less, or a tie."""
    same = []
    for one, two in zip(tested.readings, tested.cheap, strict=False):
        for column, h in enumerate(one.hypotheses):
            if h is tested.hypotheses[row]:
                a, b = one.wins.x[:, column], two.wins.x[:, column]
                known = ~(np.isnan(a) | np.isnan(b))
                same.extend((np.sign(a - 0.5) == np.sign(b - 0.5))[known])
    return float(np.mean(same)) if same else np.nan


def _rates(
    scores: np.ndarray, texts: pd.DataFrame, prompts: list[str], level: float
) -> tuple[float, float, Interval]:
    """Mean score over prompts of base and intervention, and their difference.

    The interval is the confidence sequence of (difference + 1) / 2; a missing score takes 0 or 1, whichever is worse.
    """
    filled = {b: means(np.where(np.isnan(scores), b, scores), texts, prompts) for b in (0.0, 1.0)}
    known = means(scores, texts, prompts)
    worst = filled[0.0]["intervention"] - filled[1.0]["base"]
    best = filled[1.0]["intervention"] - filled[0.0]["base"]
    low, high = bounds((worst + 1) / 2, (best + 1) / 2, level)
    base, changed = (
        float(np.nanmean(known[s])) if not np.isnan(known[s]).all() else np.nan for s in ("base", "intervention")
    )
    return base, changed, Interval(changed - base, 2 * low - 1, 2 * high - 1)


def _escalated(held: Held, judges: Judges, survivors: list[Hypothesis], section: Validate) -> np.ndarray:
    """Which hypotheses the expensive judge tests, [survivors] booleans: all, but for the borderline cascade."""
    if section.cascade != "borderline" or judges.expensive is None or not survivors:
        return np.ones(len(survivors), dtype=bool)
    x = read(judges.cheap, held, held.order, survivors).wins.x
    return np.abs(np.nan_to_num(x, nan=0.5).mean(axis=0) - 0.5) < BORDER


BORDER = 0.1  # of the cheap judge's win rate around one half


def caution(section: Validate) -> str:
    """What the chosen cascade risks, for the report; empty for those that keep the promise."""
    if section.cascade != "borderline":
        return ""
    return (
        "Borderline cascade: verdicts of the cheap judge stand wherever it is sure, so a claim on which it is surely "
        "wrong is confirmed. The false discovery rate is not controlled; screen_then_test controls it."
    )


def audit(material: Material, judges: Judges, screening: Screening, section: Validate) -> pd.DataFrame:
    """The expensive judge repeats a random share of the cheap verdicts that dropped hypotheses: hypothesis by
    hypothesis.

    Prompts of split screen are drawn by a hash of hypothesis and prompt, each with probability ``section.audit`` and
    at least two per hypothesis. Columns: hypothesis_id, text, prompts, x_cheap, x_expensive, agreement (share of
    prompts on which both say the same: more, less or a tie). Empty without an expensive judge or without a dropped
    hypothesis.
    """
    names = ["hypothesis_id", "text", "prompts", "x_cheap", "x_expensive", "agreement"]
    dropped = [h for h in material.judged if h not in screening.survivors]
    if judges.expensive is None or not dropped or not section.audit:
        return pd.DataFrame(columns=names)
    held = material.held_out("screen")
    cheap = screening.verdicts.set_index(["hypothesis_id", "prompt_id"])["x"]
    rows = []
    for h in dropped:
        drawn = shuffled(held.order, f"{material.seed} audit {h.hypothesis_id}")
        chosen = drawn[: max(2, round(section.audit * len(drawn)))]
        strong = read(judges.expensive, held, chosen, [h]).wins.x[:, 0]
        weak = cheap.loc[[(h.hypothesis_id, p) for p in chosen]].to_numpy()
        known = ~(np.isnan(strong) | np.isnan(weak))
        same = np.sign(strong[known] - 0.5) == np.sign(weak[known] - 0.5)
        means = [float(v.mean()) if known.any() else np.nan for v in (weak[known], strong[known], same)]
        rows.append((h.hypothesis_id, h.text, int(known.sum()), *means))
    return pd.DataFrame(rows, columns=names)


def alone_and_together(material: Material, judges: Judges, section: Validate) -> pd.DataFrame:
    """Does a judge say the same of a hypothesis when it is asked about several in one call, and about each alone?

    The testing judge reads the texts of some prompts of split screen (the share ``section.audit``, at least four) both
    ways. One row: judge, per_call, prompts, verdicts, agreement (share of texts and hypotheses with the same verdict
    within a quarter of the scale) with an interval over prompts, difference (together minus alone). Empty for a judge
    that is asked about one hypothesis a call.
    """
    names = ["judge", "per_call", "prompts", "verdicts", "agreement", "low", "high", "difference"]
    judge, held = judges.tester, material.held_out("screen")
    many = isinstance(judge, ManyAtOnce) and judge.per_call > 1 and len(material.judged) > 1
    if not many or not held.order or not section.audit:
        return pd.DataFrame(columns=names)
    drawn = shuffled(held.order, f"{material.seed} alone")[: max(4, round(section.audit * len(held.order)))]
    both = [read(j, held, drawn, material.judged) for j in (judge, judge.alone())]
    one, two = (r.scores for r in both)
    known = ~(np.isnan(one) | np.isnan(two))
    same = np.where(known, np.abs(one - two) < 0.25, np.nan)
    per_prompt = np.nanmean(mean_by(same, both[0].texts["prompt_id"].to_numpy(), drawn), axis=1)
    per_prompt = per_prompt[~np.isnan(per_prompt)]
    if not len(per_prompt):
        return pd.DataFrame(columns=names)
    agreement = summary_interval(per_prompt)
    row = (judge.name, judge.per_call, len(drawn), int(known.sum()), *agreement, float((one - two)[known].mean()))
    return pd.DataFrame([row], columns=names)


class Silent:
    """A bar that draws nothing: two hundred of them would fill the log."""

    def update(self, n: int = 1) -> None:
        pass

    def close(self) -> None:
        pass


def silent(*_: Any) -> Silent:
    """For ``progress`` where nobody watches."""
    return Silent()
