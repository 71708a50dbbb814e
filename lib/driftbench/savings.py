"""What a strategy of sampling saves: recall of planted differences against texts, on pools whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_mutual_info_score
from threadpoolctl import threadpool_limits

from driftbench.pools import TextPool, World, draw, found, jensen_shannon, recall, sample
from driftbook.discovery import clustering
from driftbook.discovery.strategies import propensities
from driftbook.evidence.intervals import Interval, summary_interval, wilson
from driftbook.workbook.figures import Figure, interval_plot

Triple = tuple[float, float, float]
Ratios = Mapping[tuple[str, str], Mapping[str, Triple]]

READINGS: dict[str, dict[str, bool]] = {
    "plain": {"families": False},
    "families": {},
    "likelihood": {"likelihood": True},
    "weighted": {"weighted": True},
}
"""How the same texts are tested: every text counted once over all prompts; inside families too; that and counted by
likelihood; that and counted by 1 / propensity."""

ABOUT = ["strategy", "depth", "seed", "texts", "behaviour", "strength", "scattered"]
STRATEGIES = ("uniform", "screened", "active", "oracle")
BY_ANSWERS = ("screened by answers", "active by answers")
LEVEL = 0.05
PICKS = 0.7  # sensitivity and specificity together, from which a cluster picks out a behaviour
GAINS = ("active_over_uniform", "screened_over_uniform", "active_over_screened")


def compare_strategies(
    world: World,
    depths: Mapping[str, Sequence[int]],
    seeds: Sequence[int],
    *,
    rounds: int,
    samples: int,
    name: str = "",
) -> pd.DataFrame:
    """Every strategy at every budget on the same pools: one row a planted difference, in ``ABOUT``, and for every way
    of ``READINGS`` whether it found it. ``name`` stands in the column ``world``.

    ``depths`` maps a strategy to its budgets, in texts per prompt and side on average. Beside those of ``plan_round``
    there is ``oracle``: it knows the prompts where the sides truly differ and samples fifty times as many texts there,
    which bounds what any choice of prompts can save.
    """
    parts = []
    for seed in seeds:
        pool = draw(world, seed)
        for strategy, budgets in depths.items():
            for depth in budgets:
                most = 2 * world.prompts * depth
                if strategy == "oracle":
                    true = jensen_shannon(pool.chances)
                    told = {"keep": float((true > 1e-9).mean()), "floor": 0.02}
                    asked = replace(pool, js=true)
                    texts = sample(asked, "screened", most, rounds=rounds, samples=samples, seed=seed, **told)
                else:
                    texts = sample(pool, strategy, most, rounds=rounds, samples=samples, seed=seed)
                parts.append(_read(pool, texts, READINGS, seed).assign(strategy=strategy, depth=depth))
    return pd.concat(parts, ignore_index=True)[[*ABOUT, *READINGS]].assign(world=name)


def side_by_side(
    works: Sequence[tuple[Callable[..., Any], dict[str, Any]]], progress: Callable[[int], Any] | None = None
) -> Iterator[Any]:
    """Results of ``function(**options)`` in the order in which they finish, one process a core."""
    with threadpool_limits(1), ProcessPoolExecutor() as pool:
        for done in as_completed([pool.submit(function, **options) for function, options in works]):
            yield done.result()
            if progress:
                progress(1)


def over_worlds(
    worlds: Mapping[str, World],
    depths: Mapping[str, Sequence[int]],
    seeds: Sequence[int],
    options: Mapping[str, int],
    progress: Callable[..., Any],
) -> pd.DataFrame:
    """:func:`compare_strategies` on one pool a world and seed, in the order of worlds and seeds."""
    work = [
        (compare_strategies, {"world": worlds[name], "name": name, "depths": depths, "seeds": [seed], **options})
        for name in worlds
        for seed in seeds
    ]
    parts = side_by_side(work, progress(len(work), "pools", "pools").update)
    return pd.concat(parts, ignore_index=True).sort_values(["world", "seed"], kind="stable", ignore_index=True)


def replay_strategies(
    pools: Sequence[TextPool], depths: Mapping[str, Sequence[int]], *, rounds: int, samples: int, clusters: int = 12
) -> pd.DataFrame:
    """Every strategy at every budget on texts that exist already: one row a run.

    ``screened by answers`` and ``active by answers`` are not told the divergence of the pool.

    Returns:
        pool, strategy, depth, seed and texts; recall of what was planted, NaN where nothing was: as in
        ``compare_strategies`` where a scorer says which texts show it (``plain``, ``families``, ``weighted``), and
        where nobody does (``clusters``: k-means of the chosen texts has a cluster that grew on the right side and picks
        out those texts, see ``grown``); ``moved``, how many clusters differ at all; ``ami``, adjusted mutual
        information of those clusters with the clustering of all texts; ``share_error``, root mean square over the
        clusters of all texts of the error in the difference between the sides' shares, weighted by inverse propensity.
    """
    parts = []
    for pool in pools:
        everything = _clustered(pool.embed(pool.table["text"].tolist()), clusters, pool.seed)
        for strategy, budgets in depths.items():
            asked = replace(pool, js=np.full(len(pool.ids), np.nan)) if strategy.endswith("by answers") else pool
            for depth in budgets:
                most = 2 * len(pool.ids) * depth
                texts = sample(asked, strategy.split()[0], most, rounds=rounds, samples=samples, seed=pool.seed)
                row = _replayed(pool, texts, everything, clusters)
                parts.append({"pool": pool.name, "strategy": strategy, "depth": depth, "seed": pool.seed, **row})
    return pd.DataFrame(parts)


def _clustered(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    return clustering.fit("minibatch_kmeans", vectors, clusters, seed).labels


def _replayed(pool: TextPool, texts: pd.DataFrame, everything: np.ndarray, clusters: int) -> dict[str, float]:
    truth = pool.truth(texts)
    readings = {name: how for name, how in READINGS.items() if not how.get("likelihood")}
    row = {name: float("nan") for name in [*readings, "clusters"]}
    if len(pool.planted):
        for name, how in readings.items():
            row[name] = float(recall(pool, found(texts, truth, seed=pool.seed, **how)).mean())
    labels = _clustered(pool.embed(texts["text"].tolist()), clusters, pool.seed)
    table = found(texts, labels, seed=pool.seed)
    if len(pool.planted):
        row["clusters"] = float(
            np.mean([grown(table, labels, truth == p.behaviour, p.sign) for p in pool.planted.itertuples()])
        )
    reference = everything[texts["row"].to_numpy()]
    wanted = share_differences(everything, pool.table["side"], np.ones(len(everything)))
    weight = 1 / propensities(texts)
    error = share_differences(reference, texts["side"], weight, len(wanted)) - wanted
    return row | {
        "texts": len(texts),
        "moved": int((table["q"] <= LEVEL).sum()),
        "ami": float(adjusted_mutual_info_score(reference, labels)),
        "share_error": float(np.sqrt((error**2).mean())),
    }


def grown(table: pd.DataFrame, labels: np.ndarray, shows: np.ndarray, sign: int) -> bool:
    """Whether a cluster that differs at q <= 0.05 in the direction ``sign`` picks out the texts that show a behaviour:
    the mean of sensitivity and specificity (the AUC of a yes or no) is at least ``PICKS``."""
    if not 0 < shows.sum() < len(shows):
        return False
    for row in table[(table["q"] <= LEVEL) & (np.sign(table["difference"]) == sign)].itertuples():
        inside = labels == row.cluster
        if (inside[shows].mean() + (~inside)[~shows].mean()) / 2 >= PICKS:
            return True
    return False


def share_differences(
    labels: np.ndarray, side: pd.Series, weight: np.ndarray, clusters: int | None = None
) -> np.ndarray:
    """Share of each cluster among the intervention's texts minus that among the base's, float64 ``[clusters]``."""
    changed, size = (side == "intervention").to_numpy(), clusters or int(labels.max()) + 1
    up, down = (np.bincount(labels[own], weight[own], size) / weight[own].sum() for own in (changed, ~changed))
    return up - down


def _read(pool, texts: pd.DataFrame, readings: Mapping[str, Mapping[str, bool]], seed: int) -> pd.DataFrame:
    labels = pool.truth(texts)
    table = pool.planted[["behaviour", "strength", "scattered"]].assign(seed=seed, texts=len(texts))
    for name, how in readings.items():
        table[name] = recall(pool, found(texts, labels, seed=seed, **how))
    return table


def recall_curve(
    table: pd.DataFrame, strategy: str, column: str = "families", unit: str = "seed"
) -> tuple[np.ndarray, np.ndarray]:
    """(texts ``[budgets]``, recall ``[units, budgets]``) of a strategy, its budgets in order. ``unit`` is the column
    whose values are resampled for intervals: what was drawn independently."""
    own = table[table.strategy == strategy]
    recalls = own.pivot_table(index=unit, columns="depth", values=column, aggfunc="mean")
    return own.groupby("depth").texts.mean().to_numpy(), recalls.to_numpy(float)


def mean_recall(table: pd.DataFrame, column: str = "families", unit: str = "seed") -> pd.DataFrame:
    """Mean recall of every strategy and budget with 95% intervals over units: strategy, texts, recall, low, high."""
    rows = []
    for strategy in dict.fromkeys(table.strategy):
        texts, recalls = recall_curve(table, strategy, column, unit)
        rows += [(strategy, t, *summary_interval(r)) for t, r in zip(texts, recalls.T, strict=True)]
    return pd.DataFrame(rows, columns=["strategy", "texts", "recall", "low", "high"])


def texts_needed(texts: np.ndarray, recalls: np.ndarray, target: float, most: float) -> float:
    """Texts at which the mean recall first reaches ``target``, between budgets by interpolation in log texts.

    A curve that never gets there counts as ``most``, so that it cannot look better than it is.
    """
    mean = np.maximum.accumulate(recalls.mean(0))
    reached = np.flatnonzero(mean >= target - 1e-12)
    if not len(reached):
        return most
    k = int(reached[0])
    if k == 0:
        return float(texts[0])
    part = (target - mean[k - 1]) / (mean[k] - mean[k - 1])
    return float(np.exp(np.log(texts[k - 1]) + part * (np.log(texts[k]) - np.log(texts[k - 1]))))


def savings(
    table: pd.DataFrame,
    share: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    column: str = "families",
    against: str | None = None,
    price: float = 1.0,
    unit: str = "seed",
) -> dict[str, tuple[float, float, float]]:
    """(ratio, low, high) of texts until ``share`` of the exhaustive recall; 95% intervals resample units.

    ``texts_saved_<strategy>``: exhaustive / strategy; ``<strategy>_over_uniform``: uniform / strategy; and
    ``active_over_screened``; for the strategies that are in the table. The recall to be reached is that of the
    exhaustive run on the same pools, in every resample, read as ``against`` says (default: as ``column``, like
    everything else). ``price``: what a text costs that is read by ``column``, in texts.
    """
    curves = {
        s: recall_curve(table, s, column, unit)
        for s in ("exhaustive", *STRATEGIES, *BY_ANSWERS)
        if (table.strategy == s).any()
    }
    whole = recall_curve(table, "exhaustive", against or column, unit)[1][:, -1]
    everything = float(curves["exhaustive"][0][-1])
    uniform_texts = np.append(curves["uniform"][0], everything)
    curves["uniform"] = (uniform_texts, np.column_stack([curves["uniform"][1], curves["exhaustive"][1][:, -1]]))

    def ratios(pools: np.ndarray) -> dict[str, float]:
        target = share * whole[pools].mean()
        need = {s: texts_needed(t, r[pools], target, everything) for s, (t, r) in curves.items() if s != "exhaustive"}
        out = {f"texts_saved_{s}": everything / n / price for s, n in need.items()}
        pairs = [gain.split("_over_") for gain in GAINS]
        return out | {f"{s}_over_{o}": need[o] / need[s] for s, o in pairs if s in need and o in need}

    pools = len(whole)
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame([ratios(rng.integers(0, pools, pools)) for _ in range(resamples)])
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    return {name: (value, float(low[name]), float(high[name])) for name, value in ratios(np.arange(pools)).items()}


def ratio_table(saved: Ratios, over_plain: Ratios) -> pd.DataFrame:
    """Both tables of :func:`savings`, by (world, reading), row by row."""
    rows = [(w, r, "same reading", key, *values) for (w, r), by in saved.items() for key, values in by.items()]
    rows += [
        (w, r, "over counting", key, *values)
        for (w, r), by in over_plain.items()
        for key, values in by.items()
        if key.startswith("texts_saved")
    ]
    return pd.DataFrame(rows, columns=["world", "reading", "against", "ratio", "estimate", "low", "high"])


def ratio_picture(ratios: pd.DataFrame, caption: str) -> Figure:
    """The ratios that say what screening, activity and uniform sampling save."""
    shown = ratios[ratios["ratio"].isin(["texts_saved_uniform", "texts_saved_screened", "active_over_screened"])]
    shown = shown[(shown["reading"] == "likelihood") | (shown["against"] == "same reading")]
    return interval_plot(
        [f"{r.world}: {r.ratio.replace('_', ' ')}, {r.reading}, {r.against}" for r in shown.itertuples()],
        shown["estimate"],
        shown["low"],
        shown["high"],
        reference=1.0,
        x_title="times fewer texts",
        title=f"{int((shown['low'] > 1).sum())} of {len(shown)} ratios are gains for certain",
        caption=caption,
    )


def recall_means(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean recall by texts of the strategies and readings that are drawn, named in ``strategy``."""
    lines = {
        f"{strategy}, {said}": mean_recall(table[table["strategy"] == strategy], reading)
        for strategy in ("uniform", "screened", "active", "oracle")
        for reading, said in (("plain", "all prompts"), ("families", "in families"), ("likelihood", "by likelihood"))
        if strategy in ("uniform", "screened") or reading == "likelihood"
    }
    return pd.concat([frame.assign(strategy=name) for name, frame in lines.items()], ignore_index=True)


def false_alarms(
    world: World, strategy: str, depth: int, seeds: Sequence[int], *, rounds: int, samples: int
) -> pd.DataFrame:
    """One row a pool without any difference of behaviour: strategy, seed, and for every reading but the weighted one
    whether the test on that strategy's texts finds something. Wording differs as much as in ``world``."""
    rows = []
    for seed in seeds:
        pool = draw(replace(world, planted=0), seed)
        texts = sample(pool, strategy, 2 * world.prompts * depth, rounds=rounds, samples=samples, seed=seed)
        labels = pool.truth(texts)
        readings = {name: how for name, how in READINGS.items() if name != "weighted"}
        alarms = {
            name: bool((found(texts, labels, seed=seed, **how).q <= 0.05).any()) for name, how in readings.items()
        }
        rows.append({"strategy": strategy, "seed": seed, **alarms})
    return pd.DataFrame(rows)


def null_pools(
    world: World,
    counts: Mapping[str, int],
    depth: int,
    first: int,
    options: Mapping[str, int],
    progress: Callable[..., Any],
) -> dict[tuple[str, str], Interval]:
    """The share of pools without any difference in which a strategy's texts, read in one way, find something: by
    (strategy, reading). ``counts`` pools a strategy, from seed ``first`` on, ten at a time."""
    fixed = {"world": world, "depth": depth, **options}
    work = [
        (false_alarms, {"strategy": strategy, "seeds": range(first + i, first + i + 10), **fixed})
        for strategy, count in counts.items()
        for i in range(0, count, 10)
    ]
    alarms = pd.concat(side_by_side(work, progress(len(work), "null pools", "tens of pools").update), ignore_index=True)
    return {
        (strategy, reading): wilson(int(group[reading].sum()), len(group))
        for strategy, group in alarms.groupby("strategy")
        for reading in ("plain", "families", "likelihood")
    }


def claim(saving: tuple[float, float, float], other: str) -> str:
    """A saving (ratio, low, high) against another way, in words: a gain only where the interval excludes 1."""
    sure = "fewer" if saving[1] > 1 else "more" if saving[2] < 1 else None
    said = f"{saving[0]:.1f} times [{saving[1]:.1f}, {saving[2]:.1f}]"
    return f"{sure} texts than {other} ({said})" if sure else f"not certainly fewer texts than {other} ({said})"


def measured(
    worlds: Sequence[str],
    saved: Ratios,
    over_plain: Ratios,
    weighted: Mapping[str, Triple],
    null: Mapping[tuple[str, str], Triple],
) -> dict[str, Triple]:
    """The ratios and shares that go into ``metrics.json``, by name; the first world is the one that others vary."""
    first = worlds[0]
    same = saved[first, "families"]
    named = {"texts_saved_at_95_recall": over_plain[first, "families"]["texts_saved_screened"]}
    named |= {f"texts_saved_at_95_recall_same_reading_{s}": same[f"texts_saved_{s}"] for s in STRATEGIES}
    named |= {"texts_saved_at_95_recall_oracle": over_plain[first, "families"]["texts_saved_oracle"]}
    named |= {"texts_saved_at_95_recall_likelihood": over_plain[first, "likelihood"]["texts_saved_screened"]}
    named |= {f"{key}_{reading}": by[key] for (world, reading), by in saved.items() if world == first for key in GAINS}
    named |= {key: same[key] for key in GAINS}
    named |= {f"weighted_test_{key}": weighted[key] for key in ("active_over_uniform", "screened_over_uniform")}
    named |= {f"null_share_with_any_{s}_{reading}": interval for (s, reading), interval in null.items()}
    for i, name in enumerate(worlds):
        named |= {f"texts_saved_world_{i}": over_plain[name, "families"]["texts_saved_screened"]}
        named |= {f"texts_saved_same_reading_world_{i}": saved[name, "families"]["texts_saved_screened"]}
        named |= {f"texts_saved_likelihood_world_{i}": over_plain[name, "likelihood"]["texts_saved_screened"]}
        named |= {f"active_over_screened_world_{i}": saved[name, "families"]["active_over_screened"]}
    return named
