"""The pictures, tables and sentences of *cluster*, in the order in which the notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from driftbook.cluster import TRUSTED, Comparison, Embedding, by_likelihood, moved
from driftbook.discovery.clustering import Clustering, Stability
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


def panel(table: pd.DataFrame, seed: int, level: float = 0.05) -> Figure:
    """Shares of answers on both sides: the behaviours that differ most, among those that differ at ``level``."""
    shares = table[(table["unit"] == "share") & table["difference"].notna()]
    moved = shares[shares["q_value"] <= level]
    order = (moved if len(moved) else shares).sort_values("difference", key=np.abs, ascending=False, kind="stable")
    shown = order.head(MOST_ROWS)
    title = f"{len(moved)} of {len(shares)} behaviours are shown in another share of answers (q <= {level})"
    prompts = int(table["prompts"].max()) if len(table) else 0
    figure = dumbbell(
        shown["behaviour"].tolist(),
        shown["base"],
        shown["intervention"],
        shown["low"],
        shown["high"],
        title=title,
        caption=f"The largest changes first, over {prompts:,} prompts. Bars: 95% interval of the change, prompts drawn "
        f"anew, seed {seed}. q: Benjamini-Hochberg over the panel; validate decides over panel and proposals together.",
    )
    figure.best = True
    return figure


def overview(texts: pd.DataFrame, embedding: Embedding) -> Table:
    """What goes in, as a small table of counts."""
    counts = embedding.counts
    sides = texts["side"].value_counts()
    table = pd.DataFrame(
        {
            "texts of base": [int(sides["base"])],
            "texts of intervention": [int(sides["intervention"])],
            "prompts": [texts["prompt_id"].nunique()],
            "embedded now": [counts.embedded],
            "from the cache": [counts.cache_hits],
            "repeated texts": [counts.duplicates],
            "cosine to fp32": [embedding.fidelity.mean_cosine],
        }
    )
    return Table(table, "What goes in", f"Split discover. {embedding.embedder.reason}.")


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
    """The trait that moved most inside each cluster; None where no texts were replayed."""
    if shift is None:
        return None
    strongest = _strongest_shifts(shift, names)
    return interval_plot(
        list(strongest.label),
        strongest["shift"],
        strongest.low,
        strongest.high,
        title=_shift_title(shift, strongest),
        caption=f"Intervention's texts minus base's; {int(shift.groupby('cluster').texts.first().sum())} texts "
        "replayed, each under the model that wrote it. 95% intervals by resampling prompts. Largest shift of each "
        f"cluster. Seed {seed}.",
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
    clear = shift[(shift["low"] > 0) | (shift["high"] < 0)]
    if not len(clear):
        return "Inside no cluster did a trait move by more than its interval"
    trait = strongest["trait"].mode().iloc[0]
    where = int((clear["trait"] == trait).sum())
    return f"{trait} moved in {where} of {shift['cluster'].nunique()} clusters"


def proposals(proposed: pd.DataFrame) -> Table:
    """The candidate hypotheses."""
    columns = ["text", "direction", "cluster", "proposer"]
    return Table(proposed, f"{len(proposed)} candidate hypotheses", "Proposals, not findings.", columns)


def answer(compared: Comparison, names: Mapping[int, str], panel: pd.DataFrame, level: float = 0.05) -> str:
    """The answer of the stage: behaviours of the ``panel`` that moved, and kinds of answers."""
    changed = panel[panel["q_value"] <= level]
    most = changed.loc[changed["unit"] == "share"].sort_values("difference", key=np.abs, ascending=False, kind="stable")
    first = f", most of all: {most.iloc[0]['said']}" if len(most) else ""
    said = f"{len(changed)} of {len(panel)} behaviours of the panel moved (q <= {level}){first}."
    return f"{said} {_kinds(compared, names)}"


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


def headlines(run: Run, compared: Comparison, found: Clustering, stability: Stability, chance: float) -> None:
    """The cards of the stage."""
    run.headline("clusters that moved", len(moved(compared.table)), baseline=f"{found.k} clusters, q <= 0.05")
    ari = stability.ari
    run.headline("stability (ARI)", ari.mean(), *_middle(ari), baseline=f"{chance:.2f} without groups")
    run.headline("noise", f"{found.noise_share:.0%}", baseline="share of the texts that fit no cluster")
    forest = _forest(compared.table, labels(compared.table))
    if len(forest):
        top = forest.loc[forest.difference.abs().idxmax()]
        run.headline(f"largest difference: cluster {top.cluster}", top.difference, top.low, top.high, baseline=0)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The middle 95% of bootstrap values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
