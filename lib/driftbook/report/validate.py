"""The pictures and tables of *validate*."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from driftbook.evidence.cascade import Screening, Tested, caution
from driftbook.evidence.outcomes import Outcome
from driftbook.evidence.report import areas, e_paths, threshold
from driftbook.evidence.verdict import Verdict
from driftbook.workbook.figures import Figure, curve, dumbbell, interval_plot
from driftbook.workbook.runs import Run

MOST_ROWS = 24
CLAIM_COLUMNS = (
    *("claim", "direction", "status", "scope", "q_value", "e_value", "prompts"),
    *("win_rate", "win_low", "win_high", "auc", "share_of_bow", "explained_by"),
    *("judge_agreement", "declined_base", "declined_intervention", "prompts_needed", "proposer", "cluster", "flags"),
)


def say(run: Run, verdict: Verdict) -> None:
    """The verdict in three lines, as the answer of the stage."""
    run.answer(" ".join(verdict.lines))
    run.record("verdict", {"state": verdict.state, "lines": list(verdict.lines), "strongest": list(verdict.strongest)})


def shares(claims: pd.DataFrame, prompts: int, seed: int) -> Figure | None:
    """What moved, in shares of answers: confirmed claims that do not repeat a stronger one, the largest first."""
    good = claims[claims["confirmed"] & (claims["unit"] == "share") & (claims["like"] == "")]
    if good.empty:
        return None
    good = good.sort_values("difference", key=np.abs, ascending=False, kind="stable").head(MOST_ROWS)
    first = good.iloc[0]
    figure = dumbbell(
        good["text"].tolist(),
        good["base"],
        good["intervention"],
        good["low"],
        good["high"],
        title=f"{first['text']}: {first['base']:.0%} of answers before, {first['intervention']:.0%} after",
        caption=f"Confirmed behaviours, the largest change first, over {prompts:,} prompts at most. Bars: 95% interval "
        f"of the change, seed {seed}. A claim that says nearly the same as a stronger one is left out.",
    )
    figure.best = True
    return figure


def sizes(claims: pd.DataFrame) -> pd.DataFrame:
    """Confirmed claims in other units than shares (words, numbers, rates, grades, scores), strongest first."""
    return claims[claims["confirmed"] & (claims["unit"] != "share")].head(MOST_ROWS)


def unmoved(claims: pd.DataFrame, seed: int) -> Figure | None:
    """How far the behaviours of the panel that were not shown to move can have moved all the same."""
    still = claims[(claims["proposer"] == "panel") & ~claims["confirmed"] & (claims["unit"] == "share")]
    still = still[still["low"].notna()]
    if still.empty:
        return None
    allowed = np.maximum(still["low"].abs(), still["high"].abs())
    still = still.assign(allowed=allowed).sort_values("allowed", ascending=False, kind="stable")
    near = int((allowed < 0.03).sum())
    shown = still.head(MOST_ROWS)
    return interval_plot(
        shown["text"].tolist(),
        shown["difference"],
        shown["low"],
        shown["high"],
        title=f"{near} of {len(still)} behaviours that were not shown to move moved by less than 3 points",
        caption=f"Change in the share of answers, 95% intervals, the least certain first ({len(shown)} of "
        f"{len(still)}). Seed {seed}.",
        x_title="share after minus share before",
        percent=True,
    )


def screened(screening: Screening, frozen: pd.DataFrame) -> pd.DataFrame:
    return screening.table.merge(frozen[["hypothesis_id", "text", "direction"]])


def paths(run: Run, tested: Tested) -> Figure | None:
    """The bets of judged claims, prompt by prompt."""
    table = e_paths(tested, run.section)
    if table.empty:
        return None
    needed = threshold(tested)
    return curve(
        table["prompts"],
        table["e_value"],
        groups=table["hypothesis"].tolist(),
        title=f"{int(tested.looks.rejected.sum())} of {len(tested.hypotheses)} judged claims gather enough evidence",
        caption=f"After each of {len(tested.prompts)} held-out prompts. Dashed: {needed:,.0f}, what e-BH asks for. "
        f"Seed {run.seed}. {caution(run.section)}".strip(),
        x_title="held-out prompts read",
        y_title="e-value",
        reference=needed,
        log_y=True,
    )


def baselines(claims: pd.DataFrame, beside: pd.DataFrame, seed: int) -> Figure | None:
    """How well claims and baselines tell the two sides apart."""
    table = areas(claims, beside)
    if beside.empty or table.empty:
        return None
    counted = beside[beside["baseline"] == "words"]
    share = f"{counted.iloc[0]['share']:.0%} of what a bag of words sees" if len(counted) else "beside its baselines"
    return interval_plot(
        table["label"].tolist(),
        table["auc"],
        table["low"],
        table["high"],
        title=f"The strongest proposed claim alone reaches {share}",
        caption="AUC; 95% intervals of resampled prompts. The bag of words is fitted without the claim's own words. "
        f"Seed {seed}.",
        marked=table["claim"],
        marked_name="claim",
        unmarked_name="baseline",
        x_title="AUC",
        reference=0.5,
    )


def headlines(run: Run, claims: pd.DataFrame, found: Sequence[Outcome], spent: float) -> None:
    """The cards of the stage."""
    good = claims[claims["confirmed"]]
    run.headline("claims confirmed", len(good), baseline=f"{len(claims)} asked for, {len(found)} tested")
    run.headline("false discovery rate", f"at most {run.section.alpha:.0%}")
    if len(good):
        top = good.iloc[0]
        run.headline("net share of prompts that moved, strongest claim", f"{top['size']:.0%}", baseline=top["text"])
    run.headline("cost", spent, baseline=f"cap {run.section.budget_usd}", unit="USD")
