"""The old way and driftbook's on the same texts: what each finds, and what it would have paid.

A *rung* is one pipeline. Between rungs one thing changes at a time: which texts are decoded, whether what is known is
read from a cache, and how labels are found and tested. Every rung runs at several budgets, given as a share of the
texts that the old way takes.

Judges count words here, whatever their price: the proof measures sampling, clustering and tests, not how well a
language model reads. The price of a call is that of the list in the parameter file. The last rungs ask no judge: the
panel, phrases and groups of sentences are counted, as driftbook does by default.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from driftbench import pools as pool
from driftbench.cascade_designs import t_test_p
from driftbench.proof.harvest import Harvest
from driftbook import cluster, validate
from driftbook.discovery import groups, phrases
from driftbook.discovery import hypotheses as hypothesis
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.discovery.segments import segments
from driftbook.evidence import counting, panel, vocabulary
from driftbook.evidence.cascade import silent
from driftbook.evidence.multiplicity import bh_adjusted
from driftbook.evidence.reading import read
from driftbook.evidence.wins import shuffled
from driftbook.judges import Lexicon
from driftbook.ledger import Ledger
from driftbook.parameters import Cluster, Validate
from driftbook.prompts import Prompt, by_unit
from driftbook.sections import Quote
from driftbook.workers import cores


@dataclass(frozen=True)
class Rung:
    """One pipeline. ``sampling``: exhaustive, uniform, screened or active; ``cached``: texts and vectors of the base
    that an earlier plant paid for cost nothing; ``tested``: ``fixed`` (one label a cluster and direction, all held-out
    texts judged, Benjamini-Hochberg), ``cascade`` (phrases of stable clusters, screen and sequential test by a judge)
    or ``counted`` (panel, words, phrases and groups of sentences, paired tests without a judge).
    ``amplified``: a part of the texts are answers in which the change is exaggerated; they propose labels, too."""

    name: str
    sampling: str
    cached: bool = False
    tested: str = "fixed"
    amplified: bool = False


@dataclass(frozen=True)
class Prices:
    """List prices of the expensive judge: tokens of a call beside the text itself, and dollars a million tokens."""

    prompt_tokens: int = 250
    output_tokens: int = 20
    usd_in: float = 3.0
    usd_out: float = 15.0

    def usd(self, texts: Sequence[str]) -> float:
        return (
            sum((self.prompt_tokens + len(t) / 4) * self.usd_in + self.output_tokens * self.usd_out for t in texts)
            / 1e6
        )


class PricedLexicon:
    """The lexicon judge as an expensive one: counts its calls and their price, and is saved like a paid judge."""

    name, paid, identity = "lexicon at list price", True, Lexicon().identity

    def __init__(self, prices: Prices):
        self.prices, self.calls, self.usd = prices, 0, 0.0

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        self.calls += len(texts) * len(hypotheses)
        self.usd += self.prices.usd(texts) * len(hypotheses)
        return Lexicon().score(texts, hypotheses, prompts)

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        return Quote(calls=len(texts) * len(hypotheses), usd=self.prices.usd(texts) * len(hypotheses))


@dataclass
class Paid:
    """What one pipeline took on one plant. ``seconds`` is decoding, scoring, embedding and computing together."""

    texts: int = 0
    tokens: int = 0
    decode: float = 0.0
    score: float = 0.0
    embed: float = 0.0
    compute: float = 0.0
    calls: int = 0
    usd: float = 0.0

    @property
    def seconds(self) -> float:
        return self.decode + self.score + self.embed + self.compute


CLAIM = ("text", "direction", "cluster", "words", "confirmed", "measure", "scores")
"""Columns of claims. ``measure``: what a counted claim is tested on, None where its words are; ``scores``: what the
texts of a confirmed one show of it, by text id, None where its words tell."""


def claims_of(rows: Sequence[tuple[str, str, int, list[str], bool]]) -> pd.DataFrame:
    """Claims that their words tell."""
    return pd.DataFrame([(*row, None, None) for row in rows], columns=list(CLAIM))


@dataclass(frozen=True)
class Outcome:
    """What one rung found on one plant at one budget: hypotheses with whether each was confirmed, shares of clusters,
    and the bill."""

    rung: str
    budget: float
    claims: pd.DataFrame  # CLAIM
    clusters: pd.DataFrame  # composition of the discover texts
    labels: dict[str, int]  # text id to cluster
    paid: Paid
    chosen: frozenset[str] = frozenset()  # ids of the texts that it took


# -------------------------------------------------------------------------------------------------------------- texts


def choose(harvest: Harvest, rung: Rung, budget: float, seed: int) -> pd.DataFrame:
    """The texts that a rung decodes at a budget: of split discover by its strategy, of the others by a fixed design.

    A budget under one text a prompt takes fewer prompts, not fewer than ten.
    """
    texts = harvest.texts
    seen = texts[texts["split"] == "discover"]
    if rung.sampling == "exhaustive" or budget >= 1:
        return texts
    held = _thinned(texts[texts["split"] != "discover"], budget, seed)
    return pd.concat([_discover(harvest, seen, rung, budget, seed), held], ignore_index=True)


def ordinary_budget(harvest: Harvest, rung: Rung, budget: float) -> float:
    """What is left of a budget beside amplified answers, where a rung has some."""
    return budget - (len(harvest.amplified) / len(harvest.texts) if rung.amplified else 0.0)


def propose_amplified(harvest: Harvest, rung: Rung, seen: pd.DataFrame) -> list[Hypothesis]:
    """Phrases of amplified answers, held against the base's own to the same prompts as far as they were decoded."""
    if not rung.amplified or harvest.amplified.empty:
        return []
    base = seen[(seen["side"] == "base") & seen["prompt_id"].isin(set(harvest.amplified["prompt_id"]))]
    asked = {p.prompt_id: p.said() for p in harvest.prompts.prompts}
    return phrases.propose(pd.concat([base, harvest.amplified], ignore_index=True), asked, limit=6)


def _thinned(texts: pd.DataFrame, budget: float, seed: int) -> pd.DataFrame:
    """A share of the texts: the first answers to a random share of each split's prompts, then second answers."""
    depth = int(texts["sample_index"].max()) + 1
    parts = []
    for split, own in texts.groupby("split"):
        order = shuffled(sorted(own["prompt_id"].unique()), f"{seed} {split}")
        wanted = max(10.0, budget * len(order) * depth)
        for sample in range(depth):
            share = min(len(order), round(wanted - sample * len(order)))
            if share > 0:
                parts.append(own[own["prompt_id"].isin(order[:share]) & (own["sample_index"] == sample)])
    return pd.concat(parts, ignore_index=True)


def _discover(harvest: Harvest, seen: pd.DataFrame, rung: Rung, budget: float, seed: int) -> pd.DataFrame:
    """Texts of split discover by the strategies of the product, replayed over the texts that exist."""
    prompts = [p for p, s in zip(harvest.prompts.prompts, harvest.prompts.splits, strict=True) if s == "discover"]
    depth = int(seen["sample_index"].max()) + 1
    wanted = max(10, round(budget * len(prompts) * depth))  # a side
    js = dict(zip(harvest.divergence["prompt_id"], harvest.divergence["js"], strict=True))
    asked = [p.prompt_id for p in prompts]
    if wanted < len(asked):
        chosen = set(_prompts(asked, js if rung.sampling != "uniform" else None, wanted, seed))
        return seen[seen["prompt_id"].isin(chosen) & (seen["sample_index"] == 0)]
    known = js if rung.sampling != "uniform" else None
    texts = pool.read_texts(
        seen[["prompt_id", "side", "text"]].assign(text_id_=seen["text_id"]),
        prompts,
        harvest.embed,
        js=known,
        seed=seed,
    )
    drawn = pool.sample(texts, rung.sampling, 2 * wanted, samples=1, rounds=2, seed=seed)
    # the pool numbers its rows; back to the texts by what they say, each at most as often as it was drawn
    keys = ["prompt_id", "side", "text"]
    count = drawn.groupby(keys).size().rename("drawn").reset_index()
    again = seen.assign(turn=seen.groupby(keys).cumcount()).merge(count, on=keys)
    return again[again["turn"] < again["drawn"]][seen.columns]


def _prompts(ids: Sequence[str], js: Mapping[str, float] | None, count: int, seed: int) -> list[str]:
    """Fewer prompts than there are: at random, or the most divergent ones and a tenth at random."""
    order = shuffled(ids, seed)
    if js is None:
        return order[:count]
    spared = max(1, count // 10)
    first = sorted(order, key=lambda p: -js.get(p, 0.0))[: count - spared]
    taken = set(first)
    return first + [p for p in order if p not in taken][:spared]


# ------------------------------------------------------------------------------------------------------------- labels


def label_every_cluster(texts: pd.DataFrame, found: Any, words: int = 8) -> list[Hypothesis]:
    """One hypothesis for each cluster and direction: the words by which its texts of one side differ from those of the
    other. No cluster is left out for being unstable; nothing is merged."""
    vocabulary = hypothesis.read_vocabulary(texts["text"].tolist(), texts["prompt"].tolist())
    if not vocabulary.terms:
        return []
    prompt, side = texts["prompt_id"].to_numpy(dtype=str), texts["side"].to_numpy(dtype=str)
    everywhere = np.ones(len(texts), bool)
    prior = sum(np.asarray(s.sum(axis=0)).ravel() for s in vocabulary.shares(prompt, side, everywhere).values())
    labels = []
    for number in range(found.k):
        inside = found.labels == number
        up = np.asarray(vocabulary.holds[inside & (side == "intervention")].sum(axis=0), float).ravel()
        down = np.asarray(vocabulary.holds[inside & (side == "base")].sum(axis=0), float).ravel()
        z = hypothesis.log_odds(up, down, prior)
        for direction, sign in (("intervention", 1), ("base", -1)):
            order = [int(i) for i in np.argsort(-sign * z, kind="stable")[:words] if sign * z[i] > 0]
            if order:
                terms = tuple(vocabulary.terms[i] for i in order)
                quoted = ", ".join(f'"{t}"' for t in terms[:4])
                labels.append(Hypothesis(f"in cluster {number}: {quoted}", direction, number, (), "phrases", terms))
    return labels


# -------------------------------------------------------------------------------------------------------------- tests


def _by_id(texts: pd.DataFrame) -> dict[str, Prompt]:
    asked = texts.drop_duplicates("prompt_id")
    return {p: Prompt(said) for p, said in zip(asked["prompt_id"], asked["prompt"], strict=True)}


def fixed(
    texts: pd.DataFrame, found: list[Hypothesis], judge: PricedLexicon, alpha: float, margin: float
) -> list[bool]:
    """Every hypothesis on every held-out text; t-test over prompts and Benjamini-Hochberg."""
    held = texts[texts["split"] != "discover"].assign(split="validate")
    material = validate.Material(held, _by_id(held), found, 0)
    part = material.held_out("validate")
    if not found or not part.order:
        return [False] * len(found)
    wins = read(judge, part, part.order, found).wins
    return list(bh_adjusted(t_test_p(wins.low.T, 0.5 + margin)) <= alpha)


def cascade(
    texts: pd.DataFrame, found: list[Hypothesis], judge: PricedLexicon, ledger: Ledger, section: Validate, seed: int
) -> list[bool]:
    """driftbook's own: screen by the free judge on split screen, then sequential tests with closed e-BH."""
    if not found:
        return []
    found = [replace(h, measure={"kind": "judge"}) for h in found]
    material = validate.Material(texts, _by_id(texts), found, seed)
    judges = validate.Judges(Lexicon(), judge, ledger)
    screening = validate.screen(material, judges, section)
    tested = validate.holdout_test(material, judges, screening.survivors, section, silent)
    confirmed = {h.hypothesis_id for h, r in zip(tested.hypotheses, tested.looks.rejected, strict=True) if r}
    return [h.hypothesis_id in confirmed for h in found]


def as_it_ships(harvest: Harvest, rung: Rung, texts: pd.DataFrame, alpha: float, seed: int) -> pd.DataFrame:
    """What driftbook claims by default, in ``CLAIM``: the panel and every word on all prompts, phrases and groups of
    sentences of split discover on the others, by paired tests."""
    prompts = harvest.prompts.by_id()
    texts = by_unit(texts, prompts).sort_values("text_id", kind="stable").reset_index(drop=True)
    seen, section = texts[texts["split"] == "discover"].reset_index(drop=True), Cluster(bootstraps=5)
    grouped = cluster.find(seen, section, harvest.cache, seed)
    proposed = hypothesis.from_frame(cluster.proposals(grouped, section))
    proposed = hypothesis.merge([*proposed, *propose_amplified(harvest, rung, seen)])
    about = [texts[c].tolist() for c in ("text_id", "text", "prompt")]
    read = groups.readings(grouped.moved.ground.found.groups, groups.wanted(proposed), *about, grouped.embedding.words)
    material = validate.Material(texts, prompts, [*panel.hypotheses(), *proposed], seed)
    level, own = vocabulary.shared(material, alpha)
    counted = counting.count(material, Validate(), level, read)
    rows = []
    for o in (*counted, *vocabulary.words_test(material, Validate(), own, counted).outcomes):
        h = o.hypothesis
        scores = dict(zip(o.texts["text_id"], o.scores, strict=True)) if o.confirmed else None
        rows.append((h.text, o.direction, h.cluster, list(h.words), o.confirmed, h.measure, scores))
    return pd.DataFrame(rows, columns=list(CLAIM))


# ---------------------------------------------------------------------------------------------------------------- run

NO_CLUSTERS = pd.DataFrame({"cluster": [], "q": [], "difference": []})


class Known:
    """What earlier plants have paid for: texts of the base."""

    def __init__(self) -> None:
        self.texts: set[str] = set()


def run(
    harvest: Harvest,
    rung: Rung,
    budget: float,
    clusters: int,
    known: Known,
    ledger: Ledger,
    prices: Prices,
    seed: int,
    alpha: float = 0.05,
    margin: float = 0.02,
) -> Outcome:
    """One pipeline on one plant at one budget."""
    texts = choose(harvest, rung, ordinary_budget(harvest, rung, budget), seed)
    paid = bill(harvest, texts, rung, known)
    begun = time.monotonic()
    if rung.tested == "counted":
        claims = as_it_ships(harvest, rung, texts, alpha, seed)
        paid.compute = time.monotonic() - begun
        return Outcome(rung.name, budget, claims, NO_CLUSTERS, {}, paid, frozenset(texts["text_id"]))
    seen = texts[texts["split"] == "discover"].sort_values("text_id", kind="stable").reset_index(drop=True)
    vectors = harvest.embed(seen["text"])
    method = "kmeans" if rung.tested == "fixed" else "minibatch_kmeans"
    section = Cluster(clusters=min(clusters, max(2, len(seen) // 10)), method=method, bootstraps=5, resamples=500)
    found = cluster.cluster_texts(seen, vectors, section, seed)
    stability, _ = cluster.stability_of(seen, vectors, found, section, seed)
    compared = cluster.compose(seen, found, stability, {}, section, seed)
    judge = PricedLexicon(prices)
    if rung.tested == "fixed":
        labels = label_every_cluster(seen, found)
        confirmed = fixed(texts, labels, judge, alpha, margin)
    else:
        proposals = phrases.propose(
            seen,
            dict(zip(seen["prompt_id"], seen["prompt"], strict=True)),
            clusters=pd.DataFrame({"text_id": seen["text_id"], "cluster": found.labels}),
            composition=compared.table,
        )
        labels = [*proposals, *propose_amplified(harvest, rung, seen)]
        confirmed = cascade(texts, labels, judge, ledger, Validate(alpha=alpha, margin=margin), seed)
    paid.compute = time.monotonic() - begun
    paid.calls, paid.usd = judge.calls, judge.usd
    claims = claims_of(
        [(h.text, h.direction, h.cluster, list(h.words), c) for h, c in zip(labels, confirmed, strict=True)]
    )
    assigned = dict(zip(seen["text_id"], found.labels.tolist(), strict=True))
    return Outcome(rung.name, budget, claims, compared.table, assigned, paid, frozenset(texts["text_id"]))


def climb(
    harvests: Sequence[Harvest],
    rungs: Sequence[Rung],
    budgets: Sequence[float],
    clusters: int,
    verdicts: Path,
    prices: Prices,
    seed: int,
    alpha: float,
    progress: Any,
    jobs: int | None = None,
) -> list[tuple[int, Outcome]]:
    """Every rung at every budget on every plant: (number of the harvest, outcome). An exhaustive rung has one budget.

    Plants are worked on side by side, by ``jobs`` processes (one a core) of one thread each. What a rung pays depends
    on what the plants before it have paid for, so bills are written afterwards, in order. ``verdicts``: a folder for
    verdicts of the judge.
    """
    works = [(r, b) for r in rungs for b in ([1.0] if r.sampling == "exhaustive" else budgets)]
    known = {(rung.name, budget): Known() for rung, budget in works}
    bar = progress(len(harvests), "pipelines", "plants")
    options = (works, clusters, verdicts, prices, seed, alpha)
    side_by_side = Parallel(jobs or cores(), return_as="generator")(delayed(_every)(h, *options) for h in harvests)
    found = []
    for number, (harvest, outcomes) in enumerate(zip(harvests, side_by_side, strict=True)):
        for (rung, budget), one in zip(works, outcomes, strict=True):
            texts = harvest.texts[harvest.texts["text_id"].isin(one.chosen)]
            paid = bill(harvest, texts, rung, known[rung.name, budget])
            paid.compute, paid.calls, paid.usd = one.paid.compute, one.paid.calls, one.paid.usd
            found.append((number, replace(one, rung=rung.name, budget=budget, paid=paid)))
        bar.update(1)
    bar.close()
    return found


def _every(
    harvest: Harvest,
    works: Sequence[tuple[Rung, float]],
    clusters: int,
    verdicts: Path,
    prices: Prices,
    seed: int,
    alpha: float,
) -> list[Outcome]:
    """Every rung and budget on one plant. A rung that takes the same texts and tests them the same way as one before it
    (it only adds caches, or the budget pays for everything) finds what that one found."""
    ledger = Ledger(verdicts / f"{harvest.plant.label}.sqlite", 0.0)
    done: dict[tuple, Outcome] = {}
    found = []
    for rung, budget in works:
        way = "all" if budget >= 1 and not rung.amplified else rung.sampling, rung.tested, rung.amplified, budget
        if way not in done:
            done[way] = run(harvest, rung, budget, clusters, Known(), ledger, prices, seed, alpha)
        found.append(done[way])
    return found


def bill(harvest: Harvest, texts: pd.DataFrame, rung: Rung, known: Known) -> Paid:
    """What the texts of a pipeline cost to make, to embed and to screen, as measured when they were made."""
    new = texts[~texts["text_id"].isin(known.texts)] if rung.cached else texts
    if rung.cached:
        known.texts.update(texts.loc[texts["side"] == "base", "text_id"])
    paid = Paid(texts=len(new), tokens=int(new["tokens"].sum()), decode=float(new["seconds"].sum()))
    embedded = new[new["split"] == "discover"] if rung.tested == "cascade" else new
    if rung.tested == "counted":  # sentences, each billed as a whole text is
        embedded = segments(new["text_id"], new["text"], Cluster().segments)
    paid.embed = harvest.embed_seconds * len(embedded)
    if rung.sampling in ("screened", "active"):
        paid.score = harvest.score_seconds
    if rung.amplified and len(harvest.amplified):
        paid.texts += len(harvest.amplified)
        paid.tokens += int(harvest.amplified["tokens"].sum())
        paid.decode += float(harvest.amplified["seconds"].sum())
    return paid
