"""What a pipeline found against what was planted: recall, precision, and what the same recall would have cost.

A confirmed claim *recovers* a plant when it names the right side and what it speaks of picks out the answers that show
the planted behaviour (AUC of the claim's score for the plant's own scorer, over all answers of both sides). A confirmed
claim is *borne out* when the difference that it claims is there in fresh answers that no pipeline saw (p at most 0.05);
of a plant that changes nothing, no claim can be. Fresh answers are fewer than those that a claim comes from, so a small
true difference is often not borne out: beside it stands the share of claims whose fresh difference goes the *same way*,
a half of which false claims would have by chance. What no plain counting reads (most behaviours of the panel, groups of
sentences) is neither. One plant recovered is one success, however many claims name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from driftbench import plain
from driftbench.proof.harvest import Harvest
from driftbench.proof.pipelines import Outcome
from driftbook.evidence.intervals import student_mean, wilson
from driftbook.workbook.figures import Figure, interval_plot

MATCH = 0.7  # AUC from which a claim's words pick out the planted behaviour
LEVEL = 0.05


class Truth:
    """The hidden side of one plant: which answers show it, and answers that no pipeline saw.

    What a claim speaks of is counted in them letter by letter (``driftbench.plain``), not by what made the claim.
    """

    def __init__(self, harvest: Harvest):
        self.harvest, self.plant = harvest, harvest.plant
        texts = pd.concat([harvest.texts, harvest.fresh], ignore_index=True)
        self.texts = texts.set_index("text_id")["text"]
        self.shown = None if self.plant.scorer is None else self.texts.map(self.plant.scorer).to_numpy(bool)
        self.fresh = harvest.fresh.rename(columns={"prompt": "asked"}).rename(columns={"prompt_id": "prompt"})

    @property
    def expected(self) -> bool:
        """Whether the plant is there to be found: its behaviour is more frequent on its side, beyond chance."""
        return self.shown is not None and self.p_value() <= LEVEL

    def p_value(self) -> float:
        """One-sided sign test over the prompts of the fresh answers, by the plant's own scorer."""
        scorer = self.plant.scorer
        return 1.0 if scorer is None else self._p(lambda t: float(scorer(t)), self.plant.direction)

    def recovers(self, claim: Any) -> bool:
        if self.shown is None or claim.direction != self.plant.direction or not 0 < self.shown.sum() < len(self.shown):
            return False
        if (read := reading(claim)) is not None:
            return bool(roc_auc_score(self.shown, self.texts.map(read)) >= MATCH)
        own = pd.Series(claim.scores, dtype=float).dropna()  # of the texts that it was tested on
        shown = pd.Series(self.shown, index=self.texts.index)[own.index]
        return bool(0 < shown.sum() < len(own) and roc_auc_score(shown, own) >= MATCH)

    def borne_out(self, claim: Any) -> bool | None:
        """Whether fresh answers show more on the claimed side (one-sided sign test over prompts); None where plain
        counting cannot tell."""
        if self.plant.kind == "none":
            return False
        read = reading(claim)
        return None if read is None else self._p(read, claim.direction) <= LEVEL

    def same_way(self, claim: Any) -> float | None:
        """1 where more prompts of the fresh answers show it more on the claimed side than on the other, 0 where fewer
        do, 0.5 for as many; None where plain counting cannot tell."""
        read = reading(claim)
        if read is None:
            return None
        more, less = self._prompts(read, claim.direction)
        return 0.5 + 0.5 * float(np.sign(more - less))

    def _p(self, read: Callable[[str], float], direction: str) -> float:
        more, less = self._prompts(read, direction)
        return float(binomtest(more, more + less, alternative="greater").pvalue) if more + less else 1.0

    def _prompts(self, read: Callable[[str], float], direction: str) -> tuple[int, int]:
        """Prompts of the fresh answers that show it more on the side ``direction``, and less."""
        found = plain.fact("claim", "share", read, self.fresh)
        return (found.more, found.less) if direction == "intervention" else (found.less, found.more)


def reading(claim: Any) -> Callable[[str], float] | None:
    """What plain counting reads of what a claim speaks of; None for what it knows nothing of."""
    measure = claim.measure or {"kind": "lexicon"}
    if measure["kind"] == "words":
        return plain.phrase_reader(measure["words"], measure.get("place", "anywhere"))
    name = measure.get("name")
    name = plain.SHARES_OF.get(name) if measure["kind"] == "panel" else name
    if name is not None:
        return lambda t: float((plain.SHARES.get(name) or plain.SIZES[name])(t))
    return (lambda t: float(plain.occurrences(claim.words, t))) if measure["kind"] == "lexicon" else None


def score(outcome: Outcome, truth: Truth) -> dict:
    """One row of the proof's table: claims, those borne out, whether the plant was recovered, and the bill."""
    confirmed = outcome.claims[outcome.claims["confirmed"].astype(bool)]
    good = [truth.borne_out(c) for c in confirmed.itertuples()]
    way = [w for c in confirmed.itertuples() if (w := truth.same_way(c)) is not None]
    named = [truth.recovers(c) for c in confirmed.itertuples()]
    paid = outcome.paid
    return {
        "plant": truth.harvest.plant.name,
        "strength": truth.harvest.plant.strength,
        "kind": truth.harvest.plant.kind,
        "expected": truth.expected,
        "rung": outcome.rung,
        "budget": outcome.budget,
        "hypotheses": len(outcome.claims),
        "confirmed": len(confirmed),
        "recounted": sum(g is not None for g in good),
        "borne_out": sum(g is True for g in good),
        "same_way": float(sum(way)),
        "recovered": bool(any(named)),
        "texts": paid.texts,
        "tokens": paid.tokens,
        "seconds": paid.seconds,
        "calls": paid.calls,
        "usd": paid.usd,
    }


def cluster_shares(outcome: Outcome, truth: Truth) -> dict:
    """The baseline that reads no words: a cluster whose share moved (q at most 0.05) and that holds the planted
    answers."""
    moved = outcome.clusters[(outcome.clusters["cluster"] >= 0) & (outcome.clusters["q"] <= LEVEL)]
    texts = truth.harvest.texts
    seen = texts[texts["text_id"].isin(outcome.labels)]
    label = seen["text_id"].map(outcome.labels).to_numpy()
    scorer = truth.harvest.plant.scorer
    shown = None if scorer is None else seen["text"].map(scorer).to_numpy(bool)
    recovered = False
    if shown is not None and 0 < shown.sum() < len(shown):
        sign = 1 if truth.plant.direction == "intervention" else -1
        grown = moved[sign * moved["difference"] > 0]["cluster"]
        recovered = any(roc_auc_score(shown, label == c) >= MATCH for c in grown)
    row = score(
        Outcome(outcome.rung, outcome.budget, outcome.claims.head(0), outcome.clusters, {}, outcome.paid), truth
    )
    told = {"confirmed": len(moved), "recounted": 0, "borne_out": 0, "same_way": 0.0}
    return row | told | {"rung": "cluster shares alone", "recovered": recovered}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Recall over the plants that are there to be found, precision (share borne out) and share the same way over the
    claims that plain counting reads, and mean costs; one row a rung and budget, with 95% Wilson intervals for recall
    and for precision by plants drawn anew."""
    rows = []
    for (rung, budget), own in table.groupby(["rung", "budget"], sort=False):
        wanted = own[own["expected"]]
        recall = wilson(int(wanted["recovered"].sum()), len(wanted))
        precision = _precision(own)
        false = own[own["kind"] == "none"]["confirmed"].sum()
        means = own[["texts", "tokens", "seconds", "calls", "usd"]].mean()
        rows.append(
            {
                "rung": rung,
                "budget": budget,
                "recall": recall.estimate,
                "recall_low": recall.low,
                "recall_high": recall.high,
                "precision": precision[0],
                "precision_low": precision[1],
                "precision_high": precision[2],
                "claims": int(own["confirmed"].sum()),
                "recounted": int(own["recounted"].sum()),
                "same_way": own["same_way"].sum() / own["recounted"].sum() if own["recounted"].sum() else np.nan,
                "claims_of_nothing": int(false),
                **means,
            }
        )
    return pd.DataFrame(rows)


def bills(table: pd.DataFrame) -> pd.DataFrame:
    """What a comparison takes, and how many of its claims are false (not borne out by fresh answers): one row a rung
    and budget, each the mean over plants with its 95% interval over plants in words."""
    rows = []
    for (rung, budget), own in table.assign(false=table["recounted"] - table["borne_out"]).groupby(
        ["rung", "budget"], sort=False
    ):
        row = {"rung": rung, "budget": budget}
        for what in ("texts", "tokens", "seconds", "calls", "usd", "false"):
            mean = student_mean(own[what].to_numpy(float), within=(0, np.inf))
            digits = 2 if mean.estimate < 10 else 0
            said = [f"{x:,.{digits}f}" for x in mean]
            row[what] = f"{said[0]} [{said[1]}, {said[2]}]" if np.isfinite(mean.estimate) else ""
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"false": "false claims"})


def _precision(own: pd.DataFrame, resamples: int = 1000) -> tuple[float, float, float]:
    confirmed, good = own["recounted"].to_numpy(float), own["borne_out"].to_numpy(float)
    if not confirmed.sum():
        return (float("nan"),) * 3
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(own), (resamples, len(own)))
    total = confirmed[draws].sum(1)
    shares = good[draws].sum(1)[total > 0] / total[total > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(good.sum() / confirmed.sum()), float(low), float(high)


def saved(table: pd.DataFrame, old: str, rung: str, what: str, share: float = 0.95, resamples: int = 1000) -> dict:
    """The factor by which ``rung`` needs less of ``what`` than the old way, at the smallest budget whose recall is at
    least ``share`` of the old way's; with an interval by drawing plants anew (all strengths of one together).

    Returns factor, low, high, and reached: the share of draws in which any budget gets there. NaN where none does, and
    where nothing of it is needed; no interval where fewer than nine of ten draws reach it.
    """
    names = sorted(table["plant"].unique())
    before, ours = table[table["rung"] == old], table[table["rung"] == rung]
    budgets = sorted(ours["budget"].unique())

    def sums(own: pd.DataFrame, column: str) -> np.ndarray:
        return own.groupby("plant")[column].sum().reindex(names).fillna(0.0).to_numpy(float)

    cells = [before, *(ours[ours["budget"] == b] for b in budgets)]
    hits = np.stack([sums(c[c["expected"]].assign(n=c["recovered"].astype(float)), "n") for c in cells], 1)
    cost = np.stack([sums(c, what) for c in cells], 1)
    rng = np.random.default_rng(0)
    draws = np.vstack([np.arange(len(names)), rng.integers(0, len(names), (resamples, len(names)))])
    hit, paid = hits[draws].sum(1), cost[draws].sum(1)  # [draws, old way and budgets]
    enough = hit[:, 1:] >= share * hit[:, :1] - 1e-9
    first = 1 + enough.argmax(1)
    ours = paid[np.arange(len(draws)), first]
    factors = np.divide(paid[:, 0], ours, where=enough.any(1) & (ours > 0), out=np.full(len(draws), np.nan))
    known = factors[1:][np.isfinite(factors[1:])]
    reached = len(known) / max(resamples, 1)
    low, high = np.quantile(known, [0.025, 0.975]) if reached >= 0.9 else (np.nan, np.nan)
    return {"factor": float(factors[0]), "low": float(low), "high": float(high), "reached": reached}


def factors_of(table: pd.DataFrame, rungs: Sequence[str]) -> pd.DataFrame:
    """What every later pipeline saves over the first one: pipeline, of (texts, seconds, calls, usd), and
    :func:`saved`."""
    old, *later = rungs
    kinds = ("texts", "seconds", "calls", "usd")
    return pd.DataFrame([{"pipeline": r, "of": what, **saved(table, old, r, what)} for r in later for what in kinds])


def factor_picture(factors: pd.DataFrame, last: str, seed: int) -> Figure:
    """Texts and seconds of every pipeline, over those of the old way."""
    own = factors[factors.pipeline == last]
    near = factors[factors["of"].isin(["texts", "seconds"]) & factors.factor.notna()]
    return interval_plot(
        [f"{r.of}, {r.pipeline}" for r in near.itertuples()],
        near.factor,
        near.low,
        near.high,
        reference=1.0,
        x_title="times less than the old way",
        title=f"At 95% of the old way's recall: {own.factor.iloc[0]:.1f} times fewer texts, {own.factor.iloc[2]:.1f} "
        "times fewer expensive calls",
        caption="Smallest budget that keeps 95% of the recall; intervals by drawing plants anew (1,000 times). Seed "
        f"{seed}.",
    )


def at_recall(table: pd.DataFrame, old: str, rung: str, share: float = 0.95) -> float:
    """The smallest budget at which ``rung`` reaches ``share`` of the old way's recall; its largest where none does."""
    wanted = table[table["expected"]]
    bar = share * wanted[wanted["rung"] == old]["recovered"].mean()
    ours = wanted[wanted["rung"] == rung].groupby("budget")["recovered"].mean()
    enough = ours.index[ours >= bar - 1e-12]
    return float(enough.min() if len(enough) else ours.index.max())


def by_plant(table: pd.DataFrame, old: str, rung: str, budget: float) -> pd.DataFrame:
    """One row a plant: is it there to be found, and did the two pipelines recover it?"""
    ways = {old: table[table["rung"] == old], rung: table[(table["rung"] == rung) & (table["budget"] == budget)]}
    out = ways[old][["plant", "strength", "kind", "expected"]].reset_index(drop=True)
    for name, own in ways.items():
        out[name] = own["recovered"].to_numpy(bool)
        out[f"claims of {name}"] = own["confirmed"].to_numpy(int)
    return out


def by_strength(table: pd.DataFrame, cells: Sequence[tuple[str, float]]) -> pd.DataFrame:
    """Recall and precision at each strength of a plant, weakest first, for some (rung, budget); 95% intervals as in
    ``summary``. Plants of one strength stand apart."""
    rank = table.groupby("plant")["strength"].rank("dense")
    most = rank.groupby(table["plant"]).transform("max")
    names = np.select([most == 1, rank == 1, rank == most], ["one strength", "weakest", "strongest"], "middle")
    rows = []
    for name in ("weakest", "middle", "strongest", "one strength"):
        own = table[names == name]
        for rung, budget in cells:
            part = own[(own["rung"] == rung) & (own["budget"] == budget)]
            if len(part):
                one = summary(part).iloc[0]
                wanted = part[part["expected"]]
                rows.append(
                    {
                        "strength": name,
                        "pipeline": rung,
                        "there": len(wanted),
                        "recovered": int(wanted["recovered"].sum()),
                    }
                    | {k: one[k] for k in ("recall", "recall_low", "recall_high", "precision", "claims")}
                )
    return pd.DataFrame(rows)


def metrics(
    figures: pd.DataFrame, factors: pd.DataFrame, graded: pd.DataFrame, old: str, rung: str, kept: float
) -> dict:
    """The flat figures of ``metrics.json``: what ``rung`` saves (and every other, by its name); recall and precision of
    both ways, of ``rung`` at the budget ``kept`` and (``most_texts_``) at its largest; and by strength. Arguments are
    the tables of ``summary``, ``saved`` (a row a pipeline and cost) and ``by_strength``."""
    keys = {
        "texts": "texts_saved_at_95_recall",
        "seconds": "seconds_saved",
        "calls": "expensive_calls_saved",
        "usd": "usd_saved",
    }
    out: dict[str, float] = {}
    for row in factors.itertuples():
        name = keys[row.of] + ("" if row.pipeline == rung else "_" + row.pipeline.strip("+ ").replace(" ", "_"))
        for suffix, value in (("", row.factor), ("_low", row.low), ("_high", row.high)):
            out[name + suffix] = value
    ours = figures[(figures["rung"] == rung) & (figures["budget"] == kept)].iloc[0]
    everything = figures[figures["rung"] == rung].sort_values("budget").iloc[-1]
    for whose, one in (("", ours), ("most_texts_", everything), ("old_", figures[figures["rung"] == old].iloc[0])):
        for name in ("recall", "precision"):
            for suffix in ("", "_low", "_high"):
                out[f"{whose}{name}{suffix}"] = one[name + suffix]
    for row in graded.itertuples():
        suffix = row.strength.replace(" ", "_")
        whose = "old_" if row.pipeline == old else ""
        out |= {f"{whose}recall_{suffix}": row.recall, f"{whose}precision_{suffix}": row.precision}
    return out | {"claims_of_nothing": int(ours["claims_of_nothing"]), "budget": kept}


def deep_metrics(figures: pd.DataFrame, factors: pd.DataFrame, old: str, rung: str) -> dict[str, float]:
    """``deep_*`` of ``metrics.json``: recall and precision of both ways with all texts of a deeper old way, and the
    texts that ``rung`` saves over it."""
    out: dict[str, float] = {}
    for whose, name in (("deep_old_", old), ("deep_", rung)):
        own = figures[figures["rung"] == name].sort_values("budget").iloc[-1]
        out |= {f"{whose}{k}": own[k] for k in ("recall", "recall_low", "recall_high", "precision")}
    texts = factors[(factors["pipeline"] == rung) & (factors["of"] == "texts")].iloc[0]
    return out | {f"deep_texts_saved{k}": texts[v] for k, v in (("", "factor"), ("_low", "low"), ("_high", "high"))}
