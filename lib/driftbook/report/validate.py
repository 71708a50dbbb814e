"""The pictures, tables and sentences of *validate*, in the order in which the notebook shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from driftbook.evidence.baselines import NAMES
from driftbook.evidence.cascade import Screening, Tested, caution
from driftbook.evidence.outcomes import Outcome, strongest_first
from driftbook.evidence.verdict import Verdict
from driftbook.parameters import Validate
from driftbook.prompts import Prompt
from driftbook.workbook.figures import Figure, curve, dumbbell, interval_plot
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table
from driftbook.workbook.wording import by_name

MOST_ROWS = 24
CLAIM_COLUMNS = (
    *("claim", "direction", "status", "scope", "q_value", "e_value", "prompts"),
    *("win_rate", "win_low", "win_high", "auc", "share_of_bow", "explained_by"),
    *("judge_agreement", "declined_base", "declined_intervention", "prompts_needed", "proposer", "cluster"),
    *("amplified", "flags"),
)


def frozen(claims: pd.DataFrame) -> Table:
    """What is claimed, before a single held-out text is read."""
    caption = "sha256 over claim, measure, judges, margin, alpha and seed."
    claims = claims.assign(measure=[m if len(m) <= 200 else f"{m[:199]}…" for m in claims["measure"]])
    return Table(claims, "Hypotheses, frozen", caption, max_rows=200)


def words(table: pd.DataFrame) -> Table | None:
    """Every word that was tested, the surest first; None where none was."""
    if not len(table):
        return None
    caption = (
        "base, intervention: share of answers that hold it; prompts: whose sides differ in it. A word is tested where "
        "that many prompts could confirm it. told: as a claim; the others go along with claims or with longer answers."
    )
    return Table(table, f"{int(table['confirmed'].sum())} of {len(table)} words differ", caption, max_rows=60)


def bill(table: pd.DataFrame) -> Table:
    """What judges may cost."""
    return Table(table, "The bill before the first call", "Upper bounds, without early stops.")


def screened(screening: Screening, frozen: pd.DataFrame, level: float) -> Table | None:
    """What the cheap judge lets through; None where no claim needs a judge."""
    if not len(screening.table):
        return None
    table = screening.table.merge(frozen[["hypothesis_id", "text", "direction"]])
    caption = f"One-sided sign-flip test over prompts, kept up to p = {level}."
    return Table(table, f"{len(screening.survivors)} judged claims go on", caption)


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


def e_paths(tested: Tested, section: Validate, most: int = 8) -> pd.DataFrame:
    """Long table of e-values for pictures: hypothesis, prompts, e_value; the ``most`` strongest hypotheses, from e =
    1."""
    best = np.argsort(-tested.looks.e, kind="stable")[:most]
    paths = tested.paths(section.margin_of("score"))
    tables = [
        pd.DataFrame(
            {
                "hypothesis": f"{tested.hypotheses[i].text} ({tested.hypotheses[i].direction})",
                "prompts": np.arange(len(paths[i]) + 1),
                "e_value": np.concatenate([[1.0], paths[i]]),
            }
        )
        for i in best
    ]
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["hypothesis", "prompts", "e_value"])
    )


def threshold(tested: Tested) -> float:
    """The e-value that e-BH asks of each claim: hypotheses / (alpha * confirmed), of a lone claim where none was
    confirmed.

    Closed e-BH accepts somewhat less (never below 1 / alpha) where other claims are far above it.
    """
    return len(tested.hypotheses) / (tested.alpha * max(1, int(tested.looks.rejected.sum())))


def audit(table: pd.DataFrame, share: float) -> Table | None:
    """What the screen dropped, read again; None where nothing was."""
    if not len(table):
        return None
    caption = f"{share:.0%} of the prompts of split screen, drawn for each claim that was dropped."
    return Table(table, "What the screen dropped, read again by the expensive judge", caption)


def together(table: pd.DataFrame) -> Table | None:
    """Whether a judge that reads several claims in one call says what it says of each alone."""
    if not len(table):
        return None
    caption = "The same texts of split screen, asked about one claim a call; 95% interval over prompts."
    return Table(table, "Several claims in one call, and each alone", caption)


def coherence(table: pd.DataFrame) -> Table | None:
    """How coherent each side is; None where no judge of coherence is configured."""
    if not len(table):
        return None
    caption = "Mean over held-out prompts with 95% intervals; difference: intervention minus base."
    return Table(table, "How coherent the answers of each side are", caption)


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


def areas(claims: pd.DataFrame, beside: pd.DataFrame, most: int = 6) -> pd.DataFrame:
    """AUCs for a picture: label, auc, low, high, claim; the strongest confirmed claims, then the baselines of the
    strongest one that has any."""
    held = claims[claims["auc"].notna()].head(most)
    rows = [(c.text, c.auc, c.auc_low, c.auc_high, True) for c in held.itertuples()]
    for r in beside[beside["hypothesis_id"].isin(beside["hypothesis_id"].head(1))].itertuples():
        rows.append((f"baseline: {NAMES[r.baseline]}", r.auc, r.auc_low, r.auc_high, False))
    return pd.DataFrame(rows, columns=["label", "auc", "low", "high", "claim"])


def beside(table: pd.DataFrame) -> Table | None:
    """What is left of each claim beside each baseline; None where there were none."""
    if not len(table):
        return None
    caption = (
        "left: correlation of the claim with the side when the baseline's score is held fixed; unrelated: what would "
        "be left of a claim that has nothing to do with it. explained: nothing is shown to be left."
    )
    return Table(table, "Claims beside their baselines", caption, list(table.columns[1:]))


def places(table: pd.DataFrame) -> Table | None:
    """Where each confirmed claim holds; None where nothing was confirmed."""
    if not len(table):
        return None
    caption = "Confidence sequences at alpha, each row on its own; outside: no text of the prompt is near the cluster."
    return Table(table, "Confirmed claims by place", caption, list(table.columns[1:]), 60)


def generated(table: pd.DataFrame) -> Table | None:
    """Whether the models' own likelihoods tell apart texts written for the claims; None where none were written."""
    if not len(table):
        return None
    caption = "How often the claimed side prefers the text that shows it, more than the other side does; 95% intervals."
    return Table(table, "Texts written for the claims, read by both models", caption)


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


def sizes(claims: pd.DataFrame) -> Table | None:
    """Confirmed claims in other units than shares (words, numbers, rates, grades, scores), strongest first."""
    good = claims[claims["confirmed"] & (claims["unit"] != "share")].head(MOST_ROWS)
    if good.empty:
        return None
    columns = ["claim", "unit", "base", "intervention", "difference", "low", "high"]
    return Table(good, "What moved in other units", "Confirmed; both sides in the unit of the measure.", columns)


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


def doses(table: pd.DataFrame, claims: pd.DataFrame, most: int = 4) -> Figure | None:
    """What the strongest claims show at every strength of amplification, half of them such as hold in amplified answers
    alone where there are enough; None without amplified answers."""
    told = claims[(claims["unit"] == "share") & (claims["like"] == "") & (claims["amplified"] != "")]
    plain, faint = told[told["confirmed"]], told[told["only_amplified"]]
    plain = plain.head(most - min(len(faint), most // 2))
    told = pd.concat([plain, faint.head(most - len(plain))])
    if told.empty:
        return None
    shown = table[table["hypothesis_id"].isin(set(told["hypothesis_id"]))]
    first = told.iloc[0]
    return curve(
        shown["strength"],
        shown["value"],
        low=shown["low"],
        high=shown["high"],
        groups=shown["text"].tolist(),
        title=first["amplified"][0].upper() + first["amplified"][1:],
        caption="Answers to held-out prompts with 95% intervals. -1: the base; 0: the changed side as it is; beyond, "
        "the difference between the two is added that many times. An effect of the change grows to the right, and "
        "what it took away falls.",
        x_title="strength of amplification",
        y_title="share of answers",
        percent=True,
    )


def dose_table(table: pd.DataFrame) -> Table | None:
    """Every claim at every strength; None without amplified answers."""
    if table.empty:
        return None
    caption = (
        "difference: to the base, on the same prompts. The strongest amplification is tested over all claims together; "
        "confirmed there alone is a claim about exaggerated answers."
    )
    return Table(table, "Claims by strength of amplification", caption, list(table.columns[1:]), 400)


def claims(table: pd.DataFrame) -> Table:
    """All claims, confirmed or not."""
    caption = (
        "Both sides in the unit of the measure; win_rate: how often an answer of that side shows more; flags: what to "
        "know."
    )
    return Table(table, "Claims", caption, CLAIM_COLUMNS, 200)


def answers(found: Sequence[Outcome], prompts: Mapping[str, Prompt]) -> Table:
    """Answers behind the strongest claims, to read."""
    caption = "Chosen evenly along the win rate, not for their looks."
    return Table(side_by_side(found, prompts), "Answers behind the claims", caption, max_rows=20)


def side_by_side(
    outcomes: Sequence[Outcome], prompts: Mapping[str, Prompt], most: int = 3, each: int = 4
) -> pd.DataFrame:
    """Answers of both sides to read, for the ``most`` strongest claims.

    Not only the best examples: ``each`` prompts are spread evenly from the clearest win to the clearest loss, in that
    order.
    """
    rows = []
    for one in strongest_first(outcomes)[:most]:
        table = one.texts.assign(score=one.scores)
        x = one.x.sort_values(ascending=False, kind="stable")
        places = np.unique(np.linspace(0, len(x) - 1, each).round().astype(int)) if len(x) else []
        for prompt_id in x.index[places]:
            pair = table[table["prompt_id"] == prompt_id].groupby("side").first()
            rows.append(
                {
                    "claim": one.hypothesis.text,
                    "direction": one.direction,
                    "prompt": prompts[prompt_id].shown(),
                    "base": pair.loc["base", "text"],
                    "intervention": pair.loc["intervention", "text"],
                    "score_base": pair.loc["base", "score"],
                    "score_intervention": pair.loc["intervention", "score"],
                    "x": x[prompt_id],
                }
            )
    names = ["claim", "direction", "prompt", "base", "intervention", "score_base", "score_intervention", "x"]
    return pd.DataFrame(rows, columns=names)


def agreement(table: pd.DataFrame) -> Table | None:
    """How often judges and people say the same of an answer; None without labels."""
    if not len(table):
        return None
    caption = (
        "both_yes to both_no are labelled answers; accuracy and kappa weigh them by how they were drawn, with 95% "
        "intervals over prompts."
    )
    return Table(table, "Judges beside people", caption, list(table.columns[1:]), 60)


def effects(table: pd.DataFrame) -> Figure | None:
    """Effects of claims as the judge tells them, corrected for its errors, and from labels alone; None where there are
    too few labels."""
    told = table[table["note"] == ""]
    if not len(told):
        return None
    kinds = {"judge": ("difference", "low", "high"), "corrected": ("corrected", "corrected_low", "corrected_high")}
    kinds["people alone"] = ("people", "people_low", "people_high")
    rows = [(f"{r.claim}: {kind}", *(getattr(r, c) for c in columns), kind == "corrected")
            for r in told.itertuples() for kind, columns in kinds.items()]  # fmt: skip
    first = told.iloc[0]
    labels, estimate, low, high, marked = zip(*rows, strict=True)
    return interval_plot(
        labels, estimate, low, high,
        title=f"{first['claim']}: {100 * first['difference']:+.0f} points by the judge, "
        f"{100 * first['corrected']:+.0f} when its errors are counted in",
        caption="Intervention minus base, 95% intervals; corrected: prediction-powered inference on labelled answers.",
        marked=marked, marked_name="corrected", unmarked_name="judge, or people alone",
        x_title="difference between the sides", percent=True,
    )  # fmt: skip


def corrected(table: pd.DataFrame) -> Table | None:
    """The same as a table, with what stands against a correction; None without labels."""
    if not len(table):
        return None
    caption = (
        "difference: as the judge tells it; corrected: with its errors on the labelled answers counted in; people: the "
        "labels alone; use: how much of the judge went into it (0 to 1); note: why there is no correction."
    )
    return Table(table, "Effects, corrected for the judge's errors", caption, list(table.columns[1:]), 60)


def against_people(run: Run, agreement: pd.DataFrame, corrected: pd.DataFrame) -> None:
    """The metrics of labels: for each claim and judge the kappa, for each claim the corrected effect."""
    for r in agreement[agreement["side"] == "both"].itertuples():
        name = f"{slug(r.claim)}_{slug(r.judge)}"
        run.metric(f"kappa_{name}", r.kappa, r.kappa_low, r.kappa_high)
        run.metric(f"accuracy_{name}", r.accuracy, r.accuracy_low, r.accuracy_high)
    for r in corrected[corrected["note"] == ""].itertuples():
        run.metric(f"corrected_{slug(r.claim)}", r.corrected, r.corrected_low, r.corrected_high)


def slug(text: str) -> str:
    """A text as part of a metric's name."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:40]


def inside(shift: pd.DataFrame) -> Table | None:
    """How traits moved in the clusters that confirmed claims come from; None where that was not measured."""
    if not len(shift):
        return None
    caption = "Shift of the mean projection, 95% intervals over prompts."
    return Table(shift, "Traits in the clusters of confirmed claims", caption)


def cost(ledger: pd.DataFrame) -> Table:
    """What every judge was asked, how often it had no verdict, and what it cost."""
    lost = [f"{r.judge}: {r.missing:,} of {r.verdicts:,}" for r in ledger.itertuples() if r.missing]
    missing = f" Verdicts that could not be had: {'; '.join(lost)}. They count against their claims." if lost else ""
    return Table(ledger, "Ledger", f"Calls to models. Savings of the cache are not part of the cost.{missing}")


def say(run: Run, verdict: Verdict) -> None:
    """The verdict in three lines, as the answer of the stage."""
    run.answer(" ".join(verdict.lines))
    lines = [by_name(line, run.names) if run.names else line for line in verdict.lines]
    run.record("verdict", {"state": verdict.state, "lines": lines, "strongest": list(verdict.strongest)})


def headlines(run: Run, claims: pd.DataFrame, found: Sequence[Outcome], spent: float) -> None:
    """The cards of the stage."""
    own = claims[claims["proposer"] != "words"]
    good, tested = own[own["confirmed"]], len(found) - (len(claims) - len(own))
    run.headline("claims confirmed", len(good), baseline=f"{len(own)} asked for, {tested} tested")
    run.headline("false discovery rate", f"at most {run.section.alpha:.0%}")
    if len(good):
        top = good.iloc[0]
        run.headline("net share of prompts that moved, strongest claim", f"{top['size']:.0%}", baseline=top["text"])
    run.headline("cost", spent, baseline=f"cap {run.section.budget_usd}", unit="USD")
