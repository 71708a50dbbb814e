"""From hypotheses to decisions: a screen by the cheap judge, a sequential test by the expensive one, an audit of the
screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.endpoint import EndpointJudge
from driftbook.evidence.eprocess import Looks, e_path, sequential_test
from driftbook.evidence.intervals import bootstrap_mean, sign_flip_p
from driftbook.evidence.material import Held, Material
from driftbook.evidence.opened import Judges
from driftbook.evidence.reading import VERDICTS, Reading, read
from driftbook.evidence.wins import mean_by, shuffled

if TYPE_CHECKING:
    from driftbook.parameters import Validate

Progress = Callable[..., Any]
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
    screen_then_test, or without prompts in split screen, all survive.
    """
    held, hypotheses = material.held_out("screen"), material.hypotheses
    ids = pd.Series([h.hypothesis_id for h in hypotheses], dtype="str")
    if section.cascade != "screen_then_test" or not held.order or not hypotheses:
        table = pd.DataFrame(
            {"hypothesis_id": ids, "prompts": 0, "win_rate": np.nan, "p_screen": np.nan, "survives": True}
        )
        return Screening(table, pd.DataFrame(columns=list(VERDICTS)), hypotheses)
    reading = read(judges.cheap, held, held.order, hypotheses)
    x = np.where(np.isnan(reading.wins.x), 0.5, reading.wins.x)  # only a filter: a missing verdict speaks neither way
    p = np.array([sign_flip_p(x[:, i], flips=999, seed=material.seed) for i in range(len(hypotheses))])
    survives = p <= section.screen_level
    table = pd.DataFrame(
        {
            "hypothesis_id": ids,
            "prompts": len(held.order),
            "win_rate": x.mean(axis=0),
            "p_screen": p,
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
    fixed_sample: bool  # all prompts were read whatever they said
    cheap: list[Reading]  # the cheap judge on the same prompts, where two judges are configured

    def paths(self, margin: float) -> list[np.ndarray]:
        """E-values after each prompt, per hypothesis, as far as it read."""
        return [e_path(x[~np.isnan(x)], margin) for x in self.looks.x]

    def verdicts(self) -> pd.DataFrame:
        tables = [r.verdicts() for r in [*self.readings, *self.cheap]]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(VERDICTS))


def holdout_test(
    material: Material, judges: Judges, survivors: list[Hypothesis], section: Validate, progress: Progress
) -> Tested:
    """Test the survivors on split validate, in one shuffled order of prompts, by e-process and e-BH.

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
    looks = sequential_test(look, len(survivors), len(held.order), section.alpha, section.margin, batch, save=paid)
    bar.close()
    names = [(judges.tester if e else judges.cheap).name for e in escalated]
    return Tested(survivors, held.order, looks, readings, names, not paid, compared)


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
    dropped = [h for h in material.hypotheses if h not in screening.survivors]
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
    many = isinstance(judge, EndpointJudge) and judge.per_call > 1 and len(material.hypotheses) > 1
    if not many or not held.order or not section.audit:
        return pd.DataFrame(columns=names)
    drawn = shuffled(held.order, f"{material.seed} alone")[: max(4, round(section.audit * len(held.order)))]
    both = [read(j, held, drawn, material.hypotheses) for j in (judge, judge.alone())]
    one, two = (r.scores for r in both)
    known = ~(np.isnan(one) | np.isnan(two))
    same = np.where(known, np.abs(one - two) < 0.25, np.nan)
    per_prompt = np.nanmean(mean_by(same, both[0].texts["prompt_id"].to_numpy(), drawn), axis=1)
    per_prompt = per_prompt[~np.isnan(per_prompt)]
    if not len(per_prompt):
        return pd.DataFrame(columns=names)
    agreement = bootstrap_mean(per_prompt, seed=material.seed)
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
