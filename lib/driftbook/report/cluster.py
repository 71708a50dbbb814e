"""The pictures, tables and sentences of *cluster*, in the order in which the notebook shows them.

Functions take what ``cluster.find`` gave, groups of sentences or clusters of whole answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from driftbook.cluster import TRUSTED, Answers, Comparison, Grouped, Sentences, by_likelihood, moved
from driftbook.discovery.clustering import Clustering, Stability
from driftbook.evidence.moved_groups import LEVEL
from driftbook.evidence.shifts import moved as moved_traits
from driftbook.numbers import p_value
from driftbook.prompts import SIDES
from driftbook.workbook.figures import Figure, dumbbell, interval_plot, map_scatter
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table

MOST_ROWS = 24
PANEL_COLUMNS = ("said", "kind", "q_value", "e_value", "prompts", "declined_base", "declined_intervention")
COLUMNS_TO_READ = (
    *("cluster", "keywords", "difference", "low", "high", "q", "where", "stability"),
    *("share_base", "share_intervention", "texts", "prompts"),
)
UNSTABLE = "(unstable)"


ASKED = {
    "segment": "Groups of sentences, place by place: they say what answers do.",
    "answer": "Clusters of whole answers: they say what answers are about.",
}
GROUP_COLUMNS = (
    *("said", "place", "share_base", "share_intervention", "difference", "low", "high", "q", "stability"),
    *("phrase", "answers", "prompts", "of", "beyond", "like"),
)


def panel(table: pd.DataFrame) -> Table:
    """All behaviours of the panel, those that moved first; *validate* draws those that are confirmed."""
    changed = int((table["q_value"] <= LEVEL).sum())
    title = f"{changed} of {len(table)} behaviours that anyone can count moved (q <= {LEVEL})"
    caption = "Both sides in plain units, all prompts. q: Benjamini-Hochberg over the panel; validate decides over all."
    return Table(table, title, caption, PANEL_COLUMNS, 200)


def overview(grouped: Grouped) -> Table:
    """What goes in, as a small table of counts."""
    texts, embedding = grouped.texts, grouped.embedding
    counts = embedding.counts
    segments = {"segments": [len(grouped.segments)]} if isinstance(grouped, Sentences) else {}
    sides = texts["side"].value_counts()
    table = pd.DataFrame(
        {
            "texts of base": [int(sides["base"])],
            "texts of intervention": [int(sides["intervention"])],
            "prompts": [texts["prompt_id"].nunique()],
            **segments,
            "embedded now": [counts.embedded],
            "from the cache": [counts.cache_hits],
            "repeated texts": [counts.duplicates],
            "cosine to fp32": [embedding.fidelity.mean_cosine],
        }
    )
    asked = ASKED["segment" if isinstance(grouped, Sentences) else "answer"]
    return Table(table, "What goes in", f"{asked} Split discover. {embedding.embedder.reason}.")


# ------------------------------------------------------------------------------------------------------- what one says


def first(run: Run, grouped: Grouped) -> Figure | None:
    """What one side says more: the groups of sentences that moved, with their shares on both sides; or the difference
    in share of every cluster of answers. None where the sentences are too few to form a group."""
    if isinstance(grouped, Answers):
        return composition(run, grouped.texts, grouped.compared, names(grouped))
    if grouped.table.empty:
        return None
    told = grouped.moved.told
    shown = (told if len(told) else grouped.table).head(MOST_ROWS)
    shown = shown.sort_values("difference", key=np.abs, ascending=False, kind="stable")
    figure = dumbbell(
        [labelled(row) for row in shown.itertuples()],
        shown["share_base"],
        shown["share_intervention"],
        shown["low"],
        shown["high"],
        title=moved_title(grouped),
        caption=f"Share of answers with such a sentence, the largest changes first; prompts of split discover "
        f"({grouped.texts.prompt_id.nunique()}). Bars: 95% interval of the change. q: Benjamini-Hochberg over the "
        f"{len(grouped.table)} groups of all places and sizes. Seed {run.seed}.",
    )
    figure.best = True
    return figure


def labelled(row: Any) -> str:
    """How a group is called: by its phrase and a sentence, or by the sentence alone where it is not stable enough to be
    named as a kind."""
    if row.phrase and row.stability >= TRUSTED and row.phrase not in row.said.lower():
        return f'{row.said} ("{row.phrase}")'
    return row.said or f"{row.place}, group {row.group}"


def moved_title(grouped: Sentences) -> str:
    """The finding of the first picture in a sentence."""
    up, told = int((grouped.table["q"] <= LEVEL).sum()), grouped.moved.told
    if told.empty:
        rest = f"; {up} moved with the number of sentences alone" if up else ""
        return f"None of {len(grouped.table)} groups of sentences moved by itself (q <= {LEVEL}){rest}"
    more, less = int((told["difference"] > 0).sum()), int((told["difference"] < 0).sum())
    return f"{len(told)} different groups of sentences moved: {more} are said more, {less} less"


def everything(grouped: Grouped) -> Table:
    """Every cluster or group with its shares, the surest first."""
    if isinstance(grouped, Answers):
        return clusters(grouped.texts, grouped.compared)
    caption = (
        "p asks whether the sides differ, over prompts; beyond: the same by equally many sentences of both answers; "
        "like: a surer group of which it is a part, or the reverse; of: how many groups its division of the place has. "
        "Only groups with q <= 0.1 are quoted."
    )
    return Table(grouped.table, "All groups", caption, GROUP_COLUMNS, 200)


def to_read(grouped: Grouped, read: pd.DataFrame, count: int = 6) -> list[Table]:
    """Sentences of the groups, or answers of the clusters, that moved most: a table each, both sides beside each other.
    ``read`` is ``cluster.read``."""
    if isinstance(grouped, Answers):
        return exemplars(grouped.texts, read, grouped.table, names(grouped))
    told = grouped.moved.told.sort_values("difference", key=np.abs, ascending=False, kind="stable").head(count)
    text = grouped.texts.set_index("text_id")
    found = []
    for row in told.itertuples():
        own = read[read["group"] == row.group]
        shown = [
            f"[{text.at[r.text_id, 'prompt'][:60]}] {in_answer(text.at[r.text_id, 'text'], r.start, r.end)}"
            for r in own.itertuples()
        ]
        table = own.assign(shown=shown).pivot(index="rank", columns="side", values="shown")
        table = table.reindex(columns=list(SIDES)).fillna("").rename_axis(columns=None).reset_index(drop=True)
        found.append(Table(table, labelled(row), _group_sentence(row)))
    return found


def in_answer(text: str, start: int, end: int, around: int = 60) -> str:
    """A segment marked in its answer, with what stands around it."""
    before, after = text[max(0, start - around) : start], text[end : end + around]
    cut = "…" if start > around else "", "…" if end + around < len(text) else ""
    return " ".join(f"{cut[0]}{before}»{text[start:end]}«{after}{cut[1]}".split())


def _group_sentence(row: Any) -> str:
    stable = "comes back" if row.stability >= TRUSTED else "does not come back surely"
    return (
        f"{row.share_base:.1%} of the base's answers, {row.share_intervention:.1%} of the intervention's "
        f"(difference {row.difference:+.1%}, {row.low:+.1%} to {row.high:+.1%}), q = {row.q:.2g}; "
        f"{row.answers} answers to {row.prompts} prompts. It {stable} when prompts are drawn anew "
        f"({row.stability:.2f})."
    )


def names(grouped: Grouped) -> dict[int, str]:
    """A name for each cluster, or for each group that is told."""
    if isinstance(grouped, Answers):
        return labels(grouped.table)
    return {int(row.group): labelled(row) for row in grouped.moved.told.itertuples()}


SAYS_MORE = ("base says more", "intervention says more", "neither does")


def picture(run: Run, grouped: Grouped, drawn: pd.DataFrame) -> Figure:
    """The answers on the plane of ``drawn`` (``cluster.map_of``), or the sentences, coloured by who says more of their
    group."""
    if isinstance(grouped, Answers):
        return map_of(run, grouped.texts, grouped.found, drawn, names(grouped))
    table = drawn.merge(grouped.segments, on=["text_id", "segment"]).merge(
        grouped.texts[["text_id", "text", "prompt", "side"]], on="text_id"
    )
    up = grouped.table.set_index("group")["difference"]
    more = [SAYS_MORE[2] if g < 0 else SAYS_MORE[int(up[g] > 0)] for g in table["group"]]
    texts = [
        f"{r.side}, {r.place}: {in_answer(r.text, r.start, r.end)}" for r in table.itertuples()
    ]
    return map_scatter(
        table["x"],
        table["y"],
        side=more,
        sides=SAYS_MORE,
        cluster=table["group"].to_numpy(),
        labels=names(grouped),
        texts=texts,
        prompts=table["prompt"].tolist(),
        title=f"{len(table):,} sentences; coloured are those of the {len(grouped.moved.told)} groups that moved",
        caption=f"UMAP (cosine, {run.section.map.neighbors} neighbours, seed {run.seed}) of sentences without what "
        f"they share with their prompts; {len(table):,} of {len(grouped.segments):,}. The sentence is marked.",
    )


def stability_of(run: Run, grouped: Grouped) -> Figure:
    """How far each cluster, or each group that moved, is to be trusted."""
    if isinstance(grouped, Answers):
        return stability(run, grouped.found, grouped.stability, grouped.chance, names(grouped))
    known = grouped.moved.ground.stability
    told = (grouped.moved.told if len(grouped.moved.told) else grouped.table).head(MOST_ROWS)
    told = told.sort_values("stability", ascending=False, kind="stable")
    good = int((told["stability"] >= TRUSTED).sum())
    number = told["group"].to_numpy(dtype=int)
    return interval_plot(
        [labelled(row) for row in told.itertuples()],
        told["stability"],
        known.low[number],
        known.high[number],
        title=f"{good} of {len(told)} groups come back when the prompts are drawn anew",
        caption=f"Overlap (Jaccard) with the group most like it, whichever its size, over {known.bootstraps} draws, "
        f"and the middle 90%. Below {TRUSTED} a group moved all the same, and is not named as a kind. Seed {run.seed}.",
        reference=TRUSTED,
        x_title="stability (Jaccard)",
        marked=told["stability"] >= TRUSTED,
        marked_name="stable",
        unmarked_name="not to be trusted as a kind",
    )


# ------------------------------------------------------------------------------------------------- clusters of answers


def labels(table: pd.DataFrame, words: int = 3) -> dict[int, str]:
    """A name for each cluster from its first keywords; an unstable cluster gets none."""
    names = {}
    for row in table.itertuples():
        if row.cluster < 0:
            names[-1] = "noise"
        elif not row.stability >= TRUSTED:
            names[row.cluster] = f"{row.cluster} {UNSTABLE}"
        else:
            first = ", ".join(row.keywords.split(", ")[:words])
            names[row.cluster] = f"{row.cluster}: {first}" if first else str(row.cluster)
    return names


def stability(run: Run, found: Clustering, stability: Stability, chance: float, names: Mapping[int, str]) -> Figure:
    """How far each cluster is to be trusted; ``chance`` is what rows without any groups would reach."""
    spread = _spread(found, stability, names)
    trusted = int((spread.stability >= TRUSTED).sum())
    return interval_plot(
        list(spread.label),
        spread.stability,
        spread.low,
        spread.high,
        title=f"{trusted} of {found.k} clusters come back when the prompts are drawn anew",
        caption=f"Mean Jaccard over {stability.bootstraps} bootstraps of {stability.rows:,} texts, and the middle 90%. "
        f"Dashed: {TRUSTED}. Whole clustering: ARI {stability.ari.mean():.2f}; without any groups {chance:.2f}. "
        f"Method {found.method}, space {run.section.space}, seed {run.seed}.",
        reference=TRUSTED,
        x_title="stability (Jaccard)",
        marked=spread.stability >= TRUSTED,
        marked_name="stable",
        unmarked_name="not to be trusted",
    )


def _spread(found: Clustering, stability: Stability, names: Mapping[int, str]) -> pd.DataFrame:
    """One row a cluster, the most stable first: label, stability, low, high."""
    table = pd.DataFrame(
        {
            "label": [names.get(c, str(c)) for c in range(found.k)],
            "stability": stability.jaccard,
            "low": stability.low,
            "high": stability.high,
        }
    )
    return table.sort_values("stability", ascending=False, kind="stable").reset_index(drop=True)


def composition(run: Run, texts: pd.DataFrame, compared: Comparison, names: Mapping[int, str]) -> Figure:
    """What one side says more: the difference in share of every cluster."""
    forest = _forest(compared.table, names)
    return interval_plot(
        list(forest.label),
        forest.difference,
        forest.low,
        forest.high,
        title=composition_title(compared.table),
        caption=f"{len(texts):,} texts, {texts.prompt_id.nunique()} prompts. 95% intervals: "
        f"{run.section.resamples:,} draws. Filled: q <= 0.05 ({compared.permutations:,} swaps), seed {run.seed}.",
        x_title="share in the intervention's texts minus share in the base's",
        marked=forest.q <= 0.05,
        marked_name="q <= 0.05",
        unmarked_name="q > 0.05",
        percent=True,
    )


def _forest(table: pd.DataFrame, names: Mapping[int, str], most: int = 24) -> pd.DataFrame:
    """The clusters with the largest differences, those that grew first, with a ``label``; noise is not among them."""
    own = table[(table["cluster"] >= 0) & table["difference"].notna()]
    order = own["difference"].abs().sort_values(ascending=False, kind="stable").index[:most]
    own = own.loc[order].sort_values("difference", ascending=False, kind="stable")
    return own.assign(label=[names[c] for c in own["cluster"]]).reset_index(drop=True)


def composition_title(table: pd.DataFrame) -> str:
    """The finding of the forest plot in a sentence."""
    total, found = int((table["cluster"] >= 0).sum()), moved(table)
    if found.empty:
        return f"None of {total} clusters is written more by one side than chance explains"
    up, down = int((found["difference"] > 0).sum()), int((found["difference"] < 0).sum())
    return f"{len(found)} of {total} clusters moved: {up} grew, {down} shrank"


def clusters(texts: pd.DataFrame, compared: Comparison) -> Table:
    """Every cluster with its shares, the surest first."""
    caption = (
        f"Any difference at all: p {chance(compared)}. Shares and intervals weighted by 1 / propensity; "
        f"{counted(texts)}. p asks about all prompts and about each family (where: the family that stands out most). "
        "-1 is noise."
    )
    return Table(compared.table.sort_values("q"), "All clusters", caption, COLUMNS_TO_READ, 200)


def chance(compared: Comparison) -> str:
    """The p-value of any difference at all, with its sign."""
    said = p_value(compared.global_p, compared.permutations)
    return said if said.startswith("<") else f"= {said}"


def counted(texts: pd.DataFrame) -> str:
    """How the texts were counted, for a caption."""
    if not by_likelihood(texts):
        return "every text counts once"
    told = float((np.tanh(texts["log_ratio"] / 2) ** 2).mean())
    return f"texts count for each side by its likelihood, which tells {told:.0%} of the sides"


def map_of(run: Run, texts: pd.DataFrame, found: Clustering, drawn: pd.DataFrame, names: Mapping[int, str]) -> Figure:
    """All texts on the plane of ``drawn`` (:func:`driftbook.cluster.map_texts`)."""
    return map_scatter(
        drawn.x,
        drawn.y,
        side=texts.side.to_numpy(),
        cluster=found.labels,
        labels=map_labels(names),
        texts=texts.text.tolist(),
        prompts=texts.prompt.tolist(),
        title=_map_title(found, names),
        caption=f"UMAP (cosine, {run.section.map.neighbors} neighbours, seed {run.seed}) of {len(texts):,} texts.",
    )


def _map_title(found: Clustering, names: Mapping[int, str]) -> str:
    return f"{len(found.labels):,} texts in {found.k} clusters, {len(map_labels(names))} stable enough to be named"


def map_labels(names: Mapping[int, str]) -> dict[int, str]:
    """The names that are drawn on the map: those of trusted clusters."""
    return {c: name for c, name in names.items() if c >= 0 and not name.endswith(UNSTABLE)}


def exemplars(
    texts: pd.DataFrame, chosen: pd.DataFrame, table: pd.DataFrame, names: Mapping[int, str], count: int = 3
) -> list[Table]:
    """Exemplars of the clusters that moved most, one table a cluster."""
    return [
        Table(side_by_side(texts, chosen, c), f"Cluster {names[c]}", _share_sentence(table, c))
        for c in _most_moved(table, count)
    ]


def _most_moved(table: pd.DataFrame, count: int) -> list[int]:
    """Cluster numbers by |difference|, trusted ones first."""
    own = table[table["cluster"] >= 0].assign(size=table["difference"].abs(), trusted=table["stability"] >= TRUSTED)
    own = own.sort_values(["trusted", "size"], ascending=False, kind="stable")
    return own["cluster"].astype(int).tolist()[:count]


def _share_sentence(table: pd.DataFrame, cluster: int) -> str:
    row = table[table["cluster"] == cluster].iloc[0]
    return (
        f"{row['share_base']:.1%} of the base's texts, {row['share_intervention']:.1%} of the intervention's: "
        f"difference {row['difference']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], q = {p_value(row['q'])}; "
        f"{row['texts']} texts of {row['prompts']} prompts, stability {row['stability']:.2f}."
    )


def side_by_side(texts: pd.DataFrame, exemplars: pd.DataFrame, cluster: int, length: int = 240) -> pd.DataFrame:
    """Exemplars of one cluster to read: a row a rank, base and intervention beside each other."""
    own = exemplars[exemplars["cluster"] == cluster].merge(texts[["text_id", "prompt", "text"]], on="text_id")
    shown = own.assign(shown="[" + own["prompt"].str.slice(0, 60) + "] " + own["text"].str.strip().str.slice(0, length))
    table = shown.pivot(index="rank", columns="side", values="shown").reindex(columns=list(SIDES)).fillna("")
    return table.rename_axis(columns=None).reset_index(drop=True)


def trait_shift(shift: pd.DataFrame | None, names: Mapping[int, str], seed: int) -> Figure | None:
    """The trait that moved most inside each cluster or group; None where nothing was replayed."""
    if shift is None or shift.empty:
        return None
    shift = shift.rename(columns={"group": "cluster"})
    strongest = _strongest_shifts(shift, names)
    return interval_plot(
        list(strongest.label),
        strongest["shift"],
        strongest.low,
        strongest.high,
        title=_shift_title(shift, strongest),
        caption=f"Intervention's texts minus base's; {int(shift.groupby('cluster').texts.first().sum())} texts or "
        "sentences replayed, each under the model that wrote it. 95% intervals by resampling prompts. Largest shift of "
        f"each. Seed {seed}.",
        x_title="shift in null standard deviations",
    )


def _strongest_shifts(shift: pd.DataFrame, names: Mapping[int, str], most: int = 15) -> pd.DataFrame:
    """The trait that moved most in each cluster, largest first: label, shift, low, high, trait, cluster."""
    known = shift[shift["shift"].notna() & shift["low"].notna()]
    order = known["shift"].abs().sort_values(ascending=False, kind="stable").index
    top = known.loc[order].drop_duplicates("cluster").head(most)
    return top.assign(label=[f"{names[c]}: {t}" for c, t in zip(top["cluster"], top["trait"], strict=True)])


def _shift_title(shift: pd.DataFrame, strongest: pd.DataFrame) -> str:
    """What the picture of shifts shows, in words."""
    clear = moved_traits(shift)
    if not len(clear):
        return "Inside no cluster did a trait move beyond chance"
    trait = strongest["trait"].mode().iloc[0]
    where = int((clear["trait"] == trait).sum())
    return f"{trait} moved in {where} of {shift['cluster'].nunique()} of them"


def proposals(proposed: pd.DataFrame) -> Table:
    """The candidate hypotheses."""
    proposed = proposed.drop(columns="measure")
    columns = ["text", "direction", "cluster", "proposer"]
    return Table(proposed, f"{len(proposed)} candidate hypotheses", "Proposals, not findings.", columns)


def answer(grouped: Grouped, panel: pd.DataFrame, level: float = LEVEL) -> str:
    """The answer of the stage: groups of sentences, or clusters of answers, and behaviours of the ``panel`` that
    moved."""
    changed = panel[panel["q_value"] <= level]
    most = changed.loc[changed["unit"] == "share"].sort_values("difference", key=np.abs, ascending=False, kind="stable")
    first = f", most of all: {most.iloc[0]['said']}" if len(most) else ""
    said = f"{len(changed)} of {len(panel)} behaviours of the panel moved (q <= {level}){first}."
    if isinstance(grouped, Answers):
        return f"{said} {_kinds(grouped.compared, names(grouped))}"
    return f"{_groups(grouped)} {said}"


def _groups(grouped: Sentences, most: int = 3) -> str:
    told = grouped.moved.told.sort_values("difference", key=np.abs, ascending=False, kind="stable")
    parts = [
        f"{labelled(row)}: {row.share_intervention:.0%} of answers, was {row.share_base:.0%}"
        for row in told.head(most).itertuples()
    ]
    return f"{moved_title(grouped)}{': ' if parts else ''}{'; '.join(parts)}."


def _kinds(compared: Comparison, names: Mapping[int, str]) -> str:
    total, found = int((compared.table["cluster"] >= 0).sum()), moved(compared.table)
    anywhere = f"p {chance(compared)} for any difference at all"
    if found.empty:
        return f"Of {total} clusters of whole answers none moved for sure ({anywhere})."
    first = found.iloc[0]
    return (
        f"{len(found)} of {total} clusters of whole answers moved ({anywhere}). The largest: cluster "
        f"{names[int(first['cluster'])]}, {first['share_base']:.1%} of the base's texts and "
        f"{first['share_intervention']:.1%} of the intervention's (difference {100 * first['difference']:+.1f} points, "
        f"{100 * first['low']:.1f} to {100 * first['high']:.1f})."
    )


def headlines(run: Run, grouped: Grouped) -> None:
    """The cards of the stage."""
    if isinstance(grouped, Answers):
        found, ari = grouped.found, grouped.stability.ari
        run.headline("clusters that moved", len(moved(grouped.table)), baseline=f"{found.k} clusters, q <= 0.05")
        run.headline("stability (ARI)", ari.mean(), *_middle(ari), baseline=f"{grouped.chance:.2f} without groups")
        run.headline("noise", f"{found.noise_share:.0%}", baseline="share of the texts that fit no cluster")
        forest = _forest(grouped.table, names(grouped))
        if len(forest):
            top = forest.loc[forest.difference.abs().idxmax()]
            run.headline(f"largest difference: cluster {top.cluster}", top.difference, top.low, top.high, baseline=0)
        return
    told = grouped.moved.told
    run.headline("groups of sentences that moved", len(told), baseline=f"{len(grouped.table)} groups, q <= {LEVEL}")
    stable = int((told["stability"] >= TRUSTED).sum())
    run.headline("of them stable", stable, baseline=f"overlap of {TRUSTED} or more when prompts are drawn anew")
    if len(told):
        top = told.loc[told["difference"].abs().idxmax()]
        run.headline(f"largest: {top['said']}", top["difference"], top["low"], top["high"], baseline=0)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
