"""Groups of sentences beside directions and clusters of whole answers: what each finds on the same answers.

Real pairs (tables with side, prompt, text): prompts are split by their content, half to find on and half to test on.
What was found is tested on the other half, each way with its own correction. Planted changes (the pool of answers): a
change is found where a group, or a cluster, that moved to the right side picks out the texts that show it. Null runs:
the sides of every prompt are swapped at random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import LogisticRegression

from driftbench import plain, savings
from driftbench.proof.plants import Plant
from driftbook import cluster
from driftbook.discovery import groups
from driftbook.discovery.clustering import assign
from driftbook.discovery.embeddings import Embed
from driftbook.evidence import moved_groups
from driftbook.evidence.moved_groups import LEVEL, STABLE, Ground, Moved
from driftbook.evidence.paired import paired_test, per_prompt
from driftbook.parameters import Cluster
from driftbook.prompts import SIDES

FEATURES = 64  # of the dictionary
CHOSEN = 12  # features, groups and clusters that are tested on the other half, at most
DIRECTED = ("opener", "closer", "body")


def answers(path: Path, most: int) -> pd.DataFrame:
    """The answers of a table to ``most`` prompts, chosen by their hash: text_id, side, prompt_id, prompt, family, text,
    split (discover, validate)."""
    frame = pd.read_parquet(path)
    frame["prompt_id"] = [hashlib.sha256(p.encode()).hexdigest()[:16] for p in frame["prompt"]]
    kept = sorted(frame["prompt_id"].unique())[:most]
    frame = frame[frame["prompt_id"].isin(kept)]
    names = [f"{s} {p} {t}" for s, p, t in zip(frame["side"], frame["prompt_id"], frame["text"], strict=True)]
    frame = frame.assign(text_id=[hashlib.sha256(n.encode("utf-8", "surrogatepass")).hexdigest()[:16] for n in names])
    frame = frame.drop_duplicates("text_id").sort_values("text_id", kind="stable", ignore_index=True)
    found = set(kept[: len(kept) // 2])
    split = np.where(frame["prompt_id"].isin(found), "discover", "validate")
    return frame.assign(split=split, propensity=1.0, log_ratio=np.nan)


# --------------------------------------------------------------------------------------------------------- real pairs


def of_pair(path: Path, section: Cluster, embed: Embed, most: int, whole: int, runs: int, seed: int) -> dict:
    """One row of the bench. What moved is counted over all of ``most`` prompts, about as many as the product searches
    of such a table; what is confirmed is found on half of them and tested on the others. ``whole``: prompts of which
    whole answers are embedded too, 0: none; ``runs``: null runs."""
    texts = answers(path, most)
    seen, held = (texts[texts["split"] == s].reset_index(drop=True) for s in ("discover", "validate"))
    moved = find(texts, section, embed, seed)
    told, table = moved.told, moved.table
    up = table["q"] <= LEVEL
    row = {
        "pair": path.stem,
        "prompts": texts["prompt_id"].nunique(),
        "plain_differences": sum(f.plain for f in plain.facts(texts[["side", "prompt", "text"]])),
        "segments": len(moved.ground.table),
        "groups": len(table),
        "moved": int(up.sum()),
        "told": len(told),
        "moved_stable": int((up & (table["stability"] >= STABLE)).sum()),
        "told_stable": int((told["stability"] >= STABLE).sum()),
        "first": "; ".join(
            f"{r.said}: {r.share_base:.0%} to {r.share_intervention:.0%}" for r in told.head(3).itertuples()
        ),
    }
    half = find(seen, section, embed, seed)
    row |= confirmed(half, held, embed) | directions(half.ground, seen, held, section, embed, seed)
    row |= null_runs(moved.ground, texts, runs, seed)
    if whole:
        row |= of_answers(answers(path, whole), section, embed, seed)
    return row


def find(texts: pd.DataFrame, section: Cluster, embed: Embed, seed: int) -> Moved:
    """The groups of the texts as the stage finds them."""
    known = moved_groups.ground(
        texts,
        dict(zip(texts["prompt_id"], texts["prompt"], strict=True)),
        embed,
        drawn=section.segments,
        most=section.most_groups,
        bootstraps=section.bootstraps,
        seed=seed,
    )
    return moved_groups.compose(known, texts, seed)


def _tested(values: np.ndarray, texts: pd.DataFrame, direction: Sequence[int]) -> int:
    """How many of ``values`` [texts, hypotheses] differ in the ``direction`` that was found, Benjamini-Hochberg."""
    if not values.shape[1]:
        return 0
    prompt, side = texts["prompt_id"].to_numpy(), texts["side"].to_numpy()
    return int(paired_test(*per_prompt(values, prompt, side, sorted(set(prompt))), direction, LEVEL).rejected.sum())


def confirmed(moved: Moved, held: pd.DataFrame, embed: Embed) -> dict[str, int]:
    """Groups that were proposed, and that hold on the other prompts."""
    claims = moved_groups.propose(moved, CHOSEN)
    asked, known = groups.wanted(claims), moved.ground.found.groups
    if not claims:
        return {"proposed": 0, "confirmed": 0}
    text_id, text, prompt = (held[c].tolist() for c in ("text_id", "text", "prompt"))
    read = groups.readings(known, asked, text_id, text, prompt, embed)
    values = read[[h.measure["group"] for h in claims]].to_numpy()
    direction = [1 if h.direction == "intervention" else -1 for h in claims]
    return {"proposed": len(claims), "confirmed": _tested(values, held, direction)}


def null_runs(known: Ground, texts: pd.DataFrame, runs: int, seed: int) -> dict[str, int]:
    """Runs in which the two sides of every prompt were swapped at random, and those of them with a group that moved."""
    rng, names = np.random.default_rng([seed, 5]), sorted(texts["prompt_id"].unique())
    swapped = dict(zip(SIDES, reversed(SIDES), strict=True))
    alarms = 0
    for _ in range(runs):
        swap = dict(zip(names, rng.random(len(names)) < 0.5, strict=True))
        side = [swapped[s] if swap[p] else s for s, p in zip(texts["side"], texts["prompt_id"], strict=True)]
        alarms += bool((moved_groups.compose(known, texts.assign(side=side), seed).table["q"] <= LEVEL).any())
    return {"null_runs": runs, "null_runs_with_a_moved_group": alarms}


# --------------------------------------------------------------------------------------------------------- directions


def directions(
    known: Ground, seen: pd.DataFrame, held: pd.DataFrame, section: Cluster, embed: Embed, seed: int
) -> dict[str, float]:
    """What sets the sides apart within a prompt, found on ``seen`` and tested on ``held``: the mean of the paired
    difference vectors of each place, and features of a sparse dictionary of the segments (as in HypotheSAEs).

    ``accuracy_*``: how often a classifier of paired differences says on held-out prompts which answer is the
    intervention's, from the groups, from directions and features, and from both.
    """
    parts = {"seen": (known.table, known.vectors, seen), "held": _segments(held, section, embed)}
    learned = MiniBatchDictionaryLearning(
        FEATURES,
        batch_size=256,
        max_iter=20,
        random_state=seed,
        fit_algorithm="lars",
        transform_algorithm="omp",
        transform_n_nonzero_coefs=4,
    ).fit(known.vectors)
    mean, read, grouping = {}, {}, known.found.groups
    for name, (table, vectors, texts) in parts.items():
        columns = []
        for place in DIRECTED:
            of_answer = _means(table, vectors, texts, place)
            if name == "seen":
                base, changed = per_prompt(of_answer, *_where(texts))
                mean[place] = np.nanmean(changed - base, axis=0)
            columns.append(np.nan_to_num(of_answer) @ mean[place] / max(1e-12, np.linalg.norm(mean[place])))
        code = np.abs(learned.transform(vectors)) if len(vectors) else np.zeros((0, FEATURES))
        row = pd.Index(texts["text_id"]).get_indexer(table["text_id"])
        features = np.zeros((len(texts), FEATURES))
        np.maximum.at(features, row, code)
        members = grouping.assign(table["place"], vectors)
        grouped = groups.holds(table, members, texts["text_id"], len(grouping))
        read[name] = np.column_stack(columns), features, grouped.astype(float)
    _, features, grouped = read["seen"]
    test = paired_test(*per_prompt(features, *_where(seen)), np.zeros(FEATURES), LEVEL)
    best = np.argsort(np.nan_to_num(test.p, nan=1.0), kind="stable")[:CHOSEN]
    signs = np.where(test.difference[best] > 0, 1, -1)
    sides = paired_test(*per_prompt(grouped, *_where(seen)), np.zeros(grouped.shape[1]), LEVEL)
    surest = np.argsort(np.nan_to_num(sides.p, nan=1.0), kind="stable")[:24]

    def ways(part: str) -> dict[str, np.ndarray]:
        a, f, g = read[part]
        return {"groups": g[:, surest], "directions": np.column_stack([a, f[:, best]]),
                "both": np.column_stack([a, f[:, best], g[:, surest]])}  # fmt: skip

    one, two = ways("seen"), ways("held")
    return {
        "mean_directions_confirmed": _tested(read["held"][0], held, [1] * len(DIRECTED)),
        "features_confirmed": _tested(read["held"][1][:, best], held, signs),
    } | {f"accuracy_{way}": _accuracy(one[way], seen, two[way], held) for way in one}


def _segments(texts: pd.DataFrame, section: Cluster, embed: Embed) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    table = groups.segments(texts["text_id"], texts["text"], section.segments)
    return table, groups.embedded(table, dict(zip(texts["text_id"], texts["prompt"], strict=True)), embed), texts


def _where(texts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return texts["prompt_id"].to_numpy(), texts["side"].to_numpy(), sorted(texts["prompt_id"].unique())


def _means(table: pd.DataFrame, vectors: np.ndarray, texts: pd.DataFrame, place: str) -> np.ndarray:
    """Mean vector of each answer's segments at a place, ``[texts, d]``, NaN where it has none."""
    here = (table["place"] == place).to_numpy()
    row = pd.Index(texts["text_id"]).get_indexer(table["text_id"][here])
    total, count = np.zeros((len(texts), vectors.shape[1])), np.bincount(row, minlength=len(texts))
    np.add.at(total, row, vectors[here])
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)


def _accuracy(train: np.ndarray, seen: pd.DataFrame, test: np.ndarray, held: pd.DataFrame) -> float:
    """How often the difference of the held-out answers to a prompt has the right sign; a tie is a half."""
    spread = np.maximum(train.std(axis=0), 1e-9)
    d, e = (np.subtract(*reversed(per_prompt(x / spread, *_where(t)))) for x, t in ((train, seen), (test, held)))
    d, e = (x[~np.isnan(x).any(axis=1)] for x in (d, e))
    model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=500)
    model.fit(np.concatenate([d, -d]), np.repeat([1, 0], len(d)))
    score = e @ model.coef_[0]
    return float(np.mean((score > 0) + 0.5 * (score == 0)))


# ------------------------------------------------------------------------------------------------------ whole answers


def of_answers(texts: pd.DataFrame, section: Cluster, embed: Embed, seed: int) -> dict[str, int]:
    """Clusters of whole answers on the same answers: how many, moved, stable, and confirmed on the other prompts."""
    seen, held = (texts[texts["split"] == s].reset_index(drop=True) for s in ("discover", "validate"))
    whole = Cluster(unit="answer", clusters=min(24, len(seen) // 10), bootstraps=section.bootstraps, resamples=1000)
    vectors = embed(seen["text"].tolist())
    found = cluster.cluster_texts(seen, vectors, whole, seed)
    stable, _ = cluster.stability_of(seen, vectors, found, whole, seed)
    table = cluster.compose(seen, found, stable, {}, whole, seed).table
    best = table.sort_values("p", kind="stable").head(CHOSEN)
    best = best[best["q"] <= moved_groups.PROMISING]
    label, *_ = assign(embed(held["text"].tolist()), found.centres)
    values = (label[:, None] == best["cluster"].to_numpy()[None]).astype(float)
    return {
        "answer_prompts": texts["prompt_id"].nunique(),
        "clusters": found.k,
        "clusters_moved": len(cluster.moved(table)),
        "clusters_moved_stable": int((cluster.moved(table)["stability"] >= STABLE).sum()),
        "clusters_confirmed": _tested(values, held, np.where(best["difference"] > 0, 1, -1)),
    }


# --------------------------------------------------------------------------------------------------------------- plants


def of_plants(
    table: pd.DataFrame,
    plants: Sequence[Plant],
    section: Cluster,
    embed: Embed,
    samples: int,
    clusters: int,
    seed: int,
    progress: Callable | None = None,
) -> pd.DataFrame:
    """One row a planted change of the pool that shows (its rule tells the sides apart, p < 0.05): the share of texts
    that show it on both sides, and whether groups and clusters of answers find it by ``samples`` answers a prompt and
    side."""
    table = table.assign(turn=table.groupby(["change", "side", "prompt"], dropna=False).cumcount())
    table = table[table["turn"] < samples]
    base, rows = table[table["side"] == "base"], []
    for plant in progress(plants, "plants", "plants") if progress else plants:
        own = table[table["change"] == plant.label]
        if plant.scorer is None or own.empty:
            continue
        texts = pd.concat([base, own], ignore_index=True)
        texts["prompt_id"] = [hashlib.sha256(p.encode()).hexdigest()[:16] for p in texts["prompt"]]
        names = texts["prompt_id"] + texts["side"] + texts["turn"].astype(str)
        texts = texts.assign(text_id=names, propensity=1.0, log_ratio=np.nan)
        texts = texts.sort_values("text_id", kind="stable", ignore_index=True)
        shows = texts["text"].map(plant.scorer).to_numpy(dtype=bool)
        test = paired_test(*per_prompt(shows[:, None].astype(float), *_where(texts)), [0], LEVEL)
        sign = int(np.sign(test.difference[0]))
        if not test.p[0] < LEVEL:
            continue
        moved = find(texts, section, embed, seed)
        up = moved.table[(moved.table["q"] <= LEVEL) & (np.sign(moved.table["difference"]) == sign)]
        picks = [_picks(moved.held[:, g], shows) for g in up["group"]]
        whole = Cluster(unit="answer", clusters=clusters, bootstraps=2, resamples=1000)
        vectors = embed(texts["text"].tolist())
        found = cluster.cluster_texts(texts, vectors, whole, seed)
        stable, _ = cluster.stability_of(texts, vectors, found, whole, seed)
        composed = cluster.compose(texts, found, stable, {}, whole, seed).table
        rows.append(
            {
                "change": plant.label,
                "texts": len(texts),
                "base": test.base[0],
                "intervention": test.changed[0],
                "groups_moved": int((moved.table["q"] <= LEVEL).sum()),
                "best_pick": max(picks, default=float("nan")),
                "said": up.iloc[int(np.argmax(picks))]["said"] if picks else "",
                "by_groups": bool(picks and max(picks) >= savings.PICKS),
                "by_clusters": savings.grown(composed, found.labels, shows, sign),
            }
        )
    return pd.DataFrame(rows)


def _picks(inside: np.ndarray, shows: np.ndarray) -> float:
    """Mean of sensitivity and specificity with which a group's answers are those that show a behaviour."""
    return float((inside[shows].mean() + (~inside)[~shows].mean()) / 2) if 0 < shows.sum() < len(shows) else 0.0


# -------------------------------------------------------------------------------------------------------------- figures


def metrics(pairs: pd.DataFrame, planted: pd.DataFrame) -> dict[str, float]:
    """The flat figures of the bench. A pair without a plain difference is near-null."""
    out: dict[str, float] = {"pairs": len(pairs), "plants": len(planted)}
    if len(pairs):
        changed, near = pairs[pairs["plain_differences"] > 0], pairs[pairs["plain_differences"] == 0]
        out |= {
            "pairs_changed": len(changed),
            "pairs_with_a_moved_group": int((changed["moved"] > 0).sum()),
            "pairs_with_a_moved_stable_group": int((changed["moved_stable"] > 0).sum()),
            "pairs_with_a_confirmed_group": int((changed["confirmed"] > 0).sum()),
            "pairs_with_a_confirmed_direction": int((changed["mean_directions_confirmed"] > 0).sum()),
            "null_moved": int(near["moved"].sum()),
            "null_runs": int(pairs["null_runs"].sum()),
            "null_runs_without_a_moved_group": 1
            - pairs["null_runs_with_a_moved_group"].sum() / max(1, pairs["null_runs"].sum()),
            **{f"accuracy_{w}": float(pairs[f"accuracy_{w}"].mean()) for w in ("groups", "directions", "both")},
        }
        if "clusters_moved" in pairs:
            out["pairs_with_a_moved_stable_cluster"] = int((changed["clusters_moved_stable"] > 0).sum())
    if len(planted):
        out["plants_found_by_groups"] = float(planted["by_groups"].mean())
        out["plants_found_by_clusters"] = float(planted["by_clusters"].mean())
    return out


def answer(pairs: pd.DataFrame, planted: pd.DataFrame, folder: Path) -> str:
    """The answer of the bench in a sentence or two."""
    m = metrics(pairs, planted)
    said = f"{folder} is not there; name a folder of paired answers as bench.folder. "
    if len(pairs):
        said = (
            f"In {m['pairs_with_a_moved_stable_group']} of {m['pairs_changed']} changed pairs a stable group of "
            f"sentences moved, and in {m['pairs_with_a_moved_group']} any; "
            f"{1 - m['null_runs_without_a_moved_group']:.1%} of {m['null_runs']} null runs had one that moved. "
        )
    if len(planted):
        said += (
            f"Of {m['plants']} planted changes that show, groups of sentences pick out "
            f"{m['plants_found_by_groups']:.0%}, clusters of whole answers {m['plants_found_by_clusters']:.0%}."
        )
    return said.strip()
