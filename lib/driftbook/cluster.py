"""The cluster stage: what do both sides say, and which of it does one side say more?

``find`` groups the sentences of answers (``unit: segment``: what answers do) or whole answers (``unit: answer``: what
they are about); what it gives is what the report and the other functions here take. The functions stand in the order in
which ``notebooks/cluster.ipynb`` calls them. Tables go in and come out; only ``load_texts`` and ``save`` touch files.
Texts of split ``discover`` alone are read: what is found here is a proposal, and the splits ``screen`` and ``validate``
must not have been seen by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from driftbook import parameters
from driftbook.discovery import clustering, composition, groups, hypotheses, maps, phrases, promoted
from driftbook.discovery.amplification import amplified_answers, ordinary
from driftbook.discovery.clustering import Clustering, Stability
from driftbook.discovery.embeddings import Embed, Embedded, Embedder, EmbeddingCache, Fidelity, embed
from driftbook.errors import DriftbookError
from driftbook.evidence import moved_groups
from driftbook.evidence.intervals import resample_counts
from driftbook.evidence.material import asked_ids
from driftbook.evidence.moved_groups import Moved
from driftbook.hashes import text_digest
from driftbook.models.captured import text_scores
from driftbook.models.sides import open_sides
from driftbook.models.vectors import VectorSet
from driftbook.prompts import SIDES, by_unit, load_saved
from driftbook.stage import Run
from driftbook.workers import Workers

TRUSTED = 0.6  # mean Jaccard under which a cluster is not to be trusted (Hennig 2007), and gets no label


def load_texts(decode: Path, split: str = "discover") -> pd.DataFrame:
    """The texts of one split with ``prompt``, what was said in the prompt, beside each; sorted by text id. Their
    ``prompt_id`` is the unit of look-alike prompts, ``asked`` the prompt itself (``prompts.by_unit``).

    ``decode`` is the data folder of the decode stage. Raises DriftbookError when a side is missing.
    """
    columns = [
        *("text_id", "side", "prompt_id", "family", "split", "round", "propensity"),
        *("token_ids", "text", "log_ratio", "strength"),
    ]
    texts = ordinary(pd.read_parquet(decode / "texts.parquet", columns=columns))
    texts = texts[texts["split"] == split].sort_values("text_id", kind="stable").reset_index(drop=True)
    for side in SIDES:
        if not (texts["side"] == side).any():
            raise DriftbookError(
                f"{decode / 'texts.parquet'} holds no text of side {side} in split {split}: "
                "raise decode.sampling.max_texts or decode.splits.discover"
            )
    prompts = load_saved(decode)
    return by_unit(texts.assign(prompt=[prompts[p].said() for p in texts["prompt_id"]]), prompts)


def load_answers(decode: Path) -> pd.DataFrame:
    """The first answers to every prompt, of all splits and both sides, with ``prompt`` beside each: what the panel
    reads, because it was named before anybody looked. Sorted by text id."""
    columns = ["text_id", "side", "prompt_id", "family", "split", "round", "text", "strength"]
    texts = ordinary(pd.read_parquet(decode / "texts.parquet", columns=columns))
    texts = texts[texts["round"] == 0].sort_values("text_id", kind="stable").reset_index(drop=True)
    prompts = load_saved(decode)
    return by_unit(texts.assign(prompt=[prompts[p].text for p in texts["prompt_id"]]), prompts)


# --------------------------------------------------------------------------------------------------------------- embed


@dataclass(frozen=True)
class Embedding:
    """Vectors of the texts (float32 ``[n, d]``, unit length), where they came from, and how true to fp32 they are."""

    vectors: np.ndarray
    counts: Embedded
    fidelity: Fidelity
    embedder: Embedder
    cache: EmbeddingCache

    def words(self, words: list[str]) -> np.ndarray:
        """Embeddings of single words or phrases, through the same cache."""
        return embed(words, self.cache, self.embedder).vectors


def embed_texts(
    texts: pd.DataFrame,
    section: parameters.Cluster,
    cache: Path,
    device: str = "auto",
    progress: Callable[[int, str, str], Any] | None = None,
    workers: Workers | None = None,
) -> Embedding:
    """Embed the answers, never the prompts, here or by ``workers``. A warm run reads ``cache/embeddings`` and loads no
    model."""
    embedder = Embedder(section.embedder, instruction=section.instruction, device=device)
    store = EmbeddingCache(cache / "embeddings")
    found = embed(texts["text"], store, embedder, progress, workers=workers)
    fidelity = store.fidelity(embedder.identity)
    if fidelity is None:
        fidelity = embedder.fidelity(texts["text"].tolist())
        store.note_fidelity(embedder.identity, fidelity)
    return Embedding(found.vectors, found, fidelity, embedder, store)


def describe_embedder(embedding: Embedding) -> dict[str, Any]:
    """For ``run.json``: what made the vectors, and on what."""
    return asdict(embedding.embedder.identity) | {
        "device": embedding.embedder.device,
        "reason": embedding.embedder.reason,
        "fidelity": asdict(embedding.fidelity),
    }


# ---------------------------------------------------------------------------------------------------------------- find


@dataclass(frozen=True)
class Sentences:
    """What ``find`` gives for ``unit: segment``."""

    texts: pd.DataFrame
    embedding: Embedding  # of the distinct sentences and prompts
    moved: Moved

    @property
    def table(self) -> pd.DataFrame:
        """``composition.parquet``, a row a group."""
        return self.moved.table

    @property
    def segments(self) -> pd.DataFrame:
        return self.moved.ground.table


@dataclass(frozen=True)
class Answers:
    """What ``find`` gives for ``unit: answer``; ``vectors`` are those that were clustered (``in_space``), ``chance`` is
    the ARI that rows without any groups would reach."""

    texts: pd.DataFrame
    embedding: Embedding
    vectors: np.ndarray
    found: Clustering
    stability: Stability
    chance: float
    compared: Comparison

    @property
    def table(self) -> pd.DataFrame:
        """``composition.parquet``, a row a cluster."""
        return self.compared.table


Grouped = Sentences | Answers


def find(
    texts: pd.DataFrame,
    section: parameters.Cluster,
    cache: Path,
    seed: int,
    device: str = "auto",
    progress: Callable[[int, str, str], Any] | None = None,
    workers: Workers | None = None,
) -> Grouped:
    """Embed and group the ``texts`` of both sides (``load_texts``) by ``section.unit``, and compare the sides."""
    if section.unit == "segment":
        return _sentences(texts, section, cache, seed, device, progress, workers)
    embedding = embed_texts(texts, section, cache, device, progress, workers)
    vectors = in_space(texts, embedding.vectors, section)
    found = cluster_texts(texts, vectors, section, seed)
    stable, chance = stability_of(texts, vectors, found, section, seed)
    keywords = keywords_of(texts, found, section.keywords)
    compared = compose(texts, found, stable, keywords, section, seed)
    return Answers(texts, embedding, vectors, found, stable, chance, compared)


def _sentences(
    texts: pd.DataFrame, section: parameters.Cluster, cache: Path, seed: int, device: str, progress: Any, workers: Any
) -> Sentences:
    made: list[Embedding] = []

    def vectors(said: list[str]) -> np.ndarray:
        made.append(embed_texts(pd.DataFrame({"text": said}), section, cache, device, progress, workers))
        return made[-1].vectors

    known = moved_groups.ground(
        texts,
        dict(zip(asked_ids(texts), texts["prompt"], strict=True)),
        vectors,
        drawn=section.segments,
        most=section.most_groups,
        method=section.method,
        bootstraps=section.bootstraps,
        seed=seed,
        embedder=json.dumps({"model": section.embedder, "instruction": section.instruction}),
    )
    if not made:
        raise DriftbookError("no answer holds a sentence: there is nothing to group; see texts.parquet of decode")
    return Sentences(texts, made[0], moved_groups.compose(known, texts, seed, section.exemplars))


# ------------------------------------------------------------------------------------------------------------- cluster


def in_space(texts: pd.DataFrame, vectors: np.ndarray, section: parameters.Cluster) -> np.ndarray:
    """The vectors that are clustered, by ``cluster.space``.

    ``answer``: as they are, so that clusters are mostly topics. ``within_prompt``: less the middle of the answers to
    the same prompt (the mean of the two sides' means): what all answers to a prompt share is gone, and clusters are
    ways to answer. Swapping the sides of a prompt moves no vector, so the tests of composition hold in both.
    """
    if section.space == "answer":
        return vectors
    names, unit = np.unique(texts["prompt_id"], return_inverse=True)
    middle, sides = np.zeros((len(names), vectors.shape[1])), np.zeros(len(names))
    for side in SIDES:
        own = (texts["side"] == side).to_numpy()
        number = np.bincount(unit[own], minlength=len(names))
        total = np.zeros_like(middle)
        np.add.at(total, unit[own], vectors[own])
        middle += total / np.maximum(number, 1)[:, None]
        sides += number > 0
    return (vectors - (middle / sides[:, None])[unit]).astype(np.float32)


def content_keys(texts: pd.DataFrame) -> np.ndarray:
    """Content hash of each text: what rows are sorted by, so that their order decides nothing."""
    return np.array([text_digest(text).hex() for text in texts["text"]])


def cluster_texts(texts: pd.DataFrame, vectors: np.ndarray, section: parameters.Cluster, seed: int) -> Clustering:
    """Both sides' texts clustered together by ``cluster.method``."""
    groups = {"per_prompt": "prompt_id", "family": "family"}.get(section.method)
    return clustering.fit(
        section.method,
        vectors,
        section.clusters,
        seed,
        keys=content_keys(texts),
        groups=None if groups is None else texts[groups].tolist(),
        min_cluster_size=section.min_cluster_size,
    )


def stability_of(
    texts: pd.DataFrame, vectors: np.ndarray, found: Clustering, section: parameters.Cluster, seed: int
) -> tuple[Stability, float]:
    """(stability under resampled prompts, mean ARI that rows without any groups would reach)."""
    keys = content_keys(texts)
    options: dict[str, Any] = {"seed": seed, "min_cluster_size": section.min_cluster_size}
    stability = clustering.stability(
        vectors, found, prompts=texts["prompt_id"].tolist(), keys=keys, bootstraps=section.bootstraps, **options
    )
    if found.method in clustering.GIVEN:
        return stability, float("nan")
    order = clustering.content_order(vectors, keys)
    sample = order[np.sort(np.random.default_rng([seed, 3]).permutation(len(order))[:2000])]
    bare = clustering.structureless(vectors[sample], seed)
    k = min(found.k, len(sample) // 2) if found.k else "auto"
    chance = clustering.fit(found.method, bare, k, seed, min_cluster_size=section.min_cluster_size)
    null = clustering.stability(bare, chance, bootstraps=min(5, section.bootstraps), **options)
    return stability, float(null.ari.mean())


# --------------------------------------------------------------------------------------------------------- composition


def keywords_of(texts: pd.DataFrame, found: Clustering, count: int) -> dict[int, list[str]]:
    """Words and phrases that set each cluster apart from the others (log-odds z of at least 2), strongest first.

    Words of a text's own prompt do not count, and a term that shares a word with a stronger one is left out.
    """
    vocabulary = hypotheses.read_vocabulary(texts["text"].tolist(), texts["prompt"].tolist())
    words: dict[int, list[str]] = {cluster: [] for cluster in range(found.k)}
    if not vocabulary.terms:
        return words
    everywhere = np.asarray(vocabulary.holds.sum(axis=0), dtype=np.float64).ravel()
    for cluster in words:
        inside = np.asarray(vocabulary.holds[found.labels == cluster].sum(axis=0), dtype=np.float64).ravel()
        z = hypotheses.log_odds(inside, everywhere - inside, everywhere)
        used: set[str] = set()
        for term in np.argsort(-z, kind="stable"):
            if z[term] < 2 or len(words[cluster]) == count:
                break
            parts = set(vocabulary.terms[term].split())
            if not parts & used:
                used |= parts
                words[cluster].append(vocabulary.terms[term])
    return words


@dataclass(frozen=True)
class Comparison:
    """``table`` is ``composition.parquet``; ``global_p`` asks whether the sides differ in any cluster at all."""

    table: pd.DataFrame
    global_p: float
    permutations: int


def compose(
    texts: pd.DataFrame,
    found: Clustering,
    stability: Stability,
    keywords: Mapping[int, list[str]],
    section: parameters.Cluster,
    seed: int,
) -> Comparison:
    """Share of every cluster (and of noise, -1) on both sides, weighted by 1 / propensity, prompts resampled.

    p and q count every text once: both sides have as many texts of a prompt, so swapping them stays fair, and the few
    texts of rarely sampled prompts do not drown the others (in pools with planted differences, screened sampling found
    0.56 of them this way and 0.10 with weighted counts). They ask whether the sides differ over all prompts or inside
    one family: ``where`` names the family that speaks loudest ("" where all prompts together do), ``there`` is the
    difference in it, unweighted. Where the decode stage scored the texts, they are counted by likelihood
    (``composition.count``). So an interval, which is about all prompts, and a p-value may disagree.
    """
    prompts, sides = texts["prompt_id"], texts["side"]
    log_ratio = texts["log_ratio"].to_numpy() if by_likelihood(texts) else None
    counts = composition.count(prompts, found.labels, sides, texts["propensity"].to_numpy(), log_ratio=log_ratio)
    result = composition.compare(counts, resamples=section.resamples, seed=seed)
    tested = composition.compare(
        composition.count(prompts, found.labels, sides, families=texts["family"], log_ratio=log_ratio),
        resamples=section.resamples,
        seed=seed,
    )
    jaccard = [np.nan if c < 0 else stability.jaccard[c] for c in counts.clusters]
    table = pd.DataFrame(
        {
            "cluster": counts.clusters.astype(np.int32),
            "texts": counts.texts,
            "prompts": counts.prompts,
            "share_base": result.share_base,
            "share_intervention": result.share_intervention,
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
            "p": tested.p,
            "q": tested.q,
            "where": tested.where.astype(str),
            "there": tested.there,
            "stability": jaccard,
            "keywords": [", ".join(keywords.get(int(c), [])) for c in counts.clusters],
        }
    )
    return Comparison(table, tested.global_p, tested.permutations)


def by_likelihood(texts: pd.DataFrame) -> bool:
    """Whether the texts can be counted by how likely each side was to write them: the decode stage scored them all, and
    the sides have as many of each prompt."""
    sizes = texts.groupby(["prompt_id", "side"]).size().unstack(fill_value=0)
    return bool(texts["log_ratio"].notna().all() and (sizes["base"] == sizes["intervention"]).all())


def moved(table: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """The clusters whose share differs between the sides at q <= ``level``, the largest first; never noise."""
    own = table[(table["cluster"] >= 0) & (table["q"] <= level)]
    return own.sort_values("difference", key=np.abs, ascending=False, kind="stable")


# ----------------------------------------------------------------------------------------------------------- exemplars


def exemplars_of(texts: pd.DataFrame, found: Clustering, count: int) -> pd.DataFrame:
    """The texts nearest the centre of each cluster and side, distinct prompts first: cluster, side, rank, text_id."""
    table = texts[["text_id", "side", "prompt_id", "text"]].assign(cluster=found.labels, distance=found.distance)
    table = table[table["cluster"] >= 0].sort_values(["cluster", "side", "distance", "text_id"], kind="stable")
    table = table.drop_duplicates(["cluster", "side", "text"])
    again = table.groupby(["cluster", "side", "prompt_id"]).cumcount()
    table = table.assign(again=again).sort_values(["cluster", "side", "again", "distance", "text_id"], kind="stable")
    table = table.assign(rank=table.groupby(["cluster", "side"]).cumcount())
    chosen = table[table["rank"] < count].sort_values(["cluster", "side", "rank"], kind="stable")
    chosen = chosen[["cluster", "side", "rank", "text_id"]].astype({"cluster": "int32", "rank": "int32"})
    return chosen.reset_index(drop=True)


def read(grouped: Grouped, count: int) -> pd.DataFrame:
    """``exemplars.parquet``: of answers by cluster (``exemplars_of``), of sentences by group that is told: group, side,
    rank, text_id, start, end, said; the sentences most typical of each side, where they stand."""
    if isinstance(grouped, Answers):
        return exemplars_of(grouped.texts, grouped.found, count)
    own = grouped.segments.assign(side=grouped.segments["text_id"].map(_sides(grouped.texts)))
    members = grouped.moved.ground.found.members
    rows = []
    for row in grouped.moved.told.itertuples():
        inside = own.iloc[members.loc[members["group"] == row.group, "row"]]
        for side in SIDES:
            typical = grouped.moved.names[row.group].typical[side][:count]
            found = inside[(inside["side"] == side) & inside["said"].isin(typical)].drop_duplicates("said")
            found = found.set_index("said").loc[typical].reset_index()
            rows.append(found.assign(group=row.group, rank=range(len(found))))
    columns = ["group", "side", "rank", "text_id", "start", "end", "said"]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return table[columns].astype({"group": "int32", "rank": "int32"})


def _sides(texts: pd.DataFrame) -> dict[str, str]:
    return dict(zip(texts["text_id"], texts["side"], strict=True))


# ----------------------------------------------------------------------------------------------------------------- map


def map_texts(
    texts: pd.DataFrame, vectors: np.ndarray, found: Clustering, section: parameters.Cluster, seed: int
) -> pd.DataFrame:
    """text_id, x, y, cluster: UMAP with the seed of the experiment."""
    spec = section.map
    xy = maps.project(
        vectors,
        seed=seed,
        neighbors=spec.neighbors,
        min_dist=spec.min_dist,
        fit_rows=spec.fit_rows,
        keys=content_keys(texts),
    )
    return pd.DataFrame({"text_id": texts["text_id"], "x": xy[:, 0], "y": xy[:, 1], "cluster": found.labels})


MAP_ROWS = 4000  # segments on a map: those of groups that moved, and others drawn beside them


def map_of(grouped: Grouped, section: parameters.Cluster, seed: int) -> pd.DataFrame:
    """``map.parquet``: the answers (``map_texts``), or segments: text_id, segment, x, y, group (the surest of those
    that are told which hold it, -1: none). At most ``MAP_ROWS`` segments, drawn by their content."""
    if isinstance(grouped, Answers):
        return map_texts(grouped.texts, grouped.vectors, grouped.found, section, seed)
    table, known = grouped.segments, grouped.moved.ground
    group = np.full(len(table), -1, dtype=np.int32)
    members = known.found.members
    for number in reversed(grouped.moved.told["group"].tolist()):
        group[members.loc[members["group"] == number, "row"]] = number
    keys = groups.keys_of(table)
    chosen = np.sort(np.lexsort((keys, group < 0))[:MAP_ROWS])
    spec = section.map
    xy = maps.project(
        known.vectors[chosen], seed=seed, neighbors=spec.neighbors, min_dist=spec.min_dist, fit_rows=spec.fit_rows,
        keys=keys[chosen],
    )  # fmt: skip
    drawn = table.iloc[chosen][["text_id", "segment"]].reset_index(drop=True)
    return drawn.assign(x=xy[:, 0], y=xy[:, 1], group=group[chosen])


# ---------------------------------------------------------------------------------------------------------- hypotheses


def proposals(grouped: Grouped, section: parameters.Cluster) -> pd.DataFrame:
    """``hypotheses.parquet``: candidates for the validate stage, at most ``section.hypotheses`` phrases that one side
    says more, and as many groups of sentences."""
    if isinstance(grouped, Answers):
        return propose(grouped.texts, grouped.found, grouped.table, section, grouped.embedding)
    texts, limit = grouped.texts, section.hypotheses
    prompts = dict(zip(texts["prompt_id"], texts["prompt"], strict=True))
    said = phrases.propose(texts, prompts, limit=limit, embed=grouped.embedding.words)
    return hypotheses.to_frame([*said, *moved_groups.propose(grouped.moved, limit)])


def propose(
    texts: pd.DataFrame, found: Clustering, table: pd.DataFrame, section: parameters.Cluster, embedding: Embedding
) -> pd.DataFrame:
    """Candidates for the validate stage (``hypotheses.parquet``): phrases that one side says more, with their place."""
    proposals = phrases.propose(
        texts,
        dict(zip(texts["prompt_id"], texts["prompt"], strict=True)),
        clusters=pd.DataFrame({"text_id": texts["text_id"], "cluster": found.labels}),
        composition=table,
        limit=section.hypotheses,
        min_stability=TRUSTED,
        embed=embedding.words,
    )
    return hypotheses.to_frame(proposals)


def propose_more(decode: Path, proposed: pd.DataFrame, section: parameters.Cluster, embed: Embed) -> pd.DataFrame:
    """``proposed`` and what the decode stage's other readings suggest: words that the change promotes or suppresses,
    and half as many phrases again from amplified answers, held against the base's own answers to the same prompts.
    What ordinary answers proposed too comes once."""
    found = []
    if (path := decode / "promoted.parquet").is_file():
        found += promoted.propose(pd.read_parquet(path))
    texts = amplified_answers(decode, "discover")
    if len(texts):
        said = {name: prompt.said() for name, prompt in load_saved(decode).items()}
        stronger = phrases.propose(texts, said, limit=max(1, section.hypotheses // 2), embed=embed)
        found += [replace(h, proposer="amplified") for h in stronger]
    if not found:
        return proposed
    return hypotheses.to_frame(hypotheses.merge([*hypotheses.from_frame(proposed), *found]))


# --------------------------------------------------------------------------------------------------------- trait shift


def trait_sample(texts: pd.DataFrame, found: Clustering, most: int, seed: int) -> pd.DataFrame:
    """At most ``most`` texts to replay, as many from every (cluster, side) as far as they go; noise is left out."""
    table = texts.assign(cluster=found.labels)
    table = table[table["cluster"] >= 0].sort_values("text_id", kind="stable")
    table = table.assign(draw=np.random.default_rng([seed, 4]).random(len(table))).sort_values("draw", kind="stable")
    turn = table.groupby(["cluster", "side"]).cumcount()
    chosen = table.assign(turn=turn).sort_values(["turn", "draw"], kind="stable").head(most)
    return chosen.drop(columns=["draw", "turn"]).sort_values("text_id", kind="stable").reset_index(drop=True)


def trait_shift(sample: pd.DataFrame, scores: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How far each trait moved inside each cluster: cluster, trait, shift, low, high, texts, p.

    ``sample``: text_id, prompt_id, side, cluster. ``scores``: text_id and one column a trait (mean centred projection
    of the text's tokens, read under the side that wrote it). The shift is the mean of the intervention's texts minus
    that of the base's, its 95% interval and p (normal, by the spread of the draws) from prompts drawn anew; NaN where a
    cluster has texts of one side only.
    """
    table = sample[["text_id", "prompt_id", "side", "cluster"]].merge(scores, on="text_id", validate="many_to_one")
    traits = [name for name in scores.columns if name != "text_id"]
    clusters, column = np.unique(table["cluster"], return_inverse=True)
    prompts, unit = np.unique(table["prompt_id"], return_inverse=True)
    side = (table["side"] == "intervention").to_numpy().astype(np.int64)
    cell = (unit * len(clusters) + column) * 2 + side
    shape = (len(prompts), len(clusters), 2)
    number = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)
    draws = resample_counts(len(prompts), resamples, seed).astype(np.float64)
    drawn_number = _drawn(draws, number)
    rows = []
    for trait in traits:
        total = np.bincount(cell, table[trait].to_numpy(np.float64), minlength=int(np.prod(shape))).reshape(shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total.sum(axis=0) / number.sum(axis=0)
            drawn = _drawn(draws, total) / drawn_number
        moved = drawn[:, :, 1] - drawn[:, :, 0]
        for index, cluster in enumerate(clusters):
            shift = mean[index, 1] - mean[index, 0]
            # a draw without a text of one side says nothing about the difference
            usable = moved[np.isfinite(moved[:, index]), index]
            known = np.isfinite(shift) and len(usable) > 1
            low, high = np.quantile(usable, [0.025, 0.975]) if known else (np.nan, np.nan)
            spread = usable.std() if known else 0.0
            p = 2 * norm.sf(abs(shift) / spread) if spread else np.nan
            rows.append((int(cluster), trait, shift, low, high, int(number[:, index].sum()), p))
    columns = ["cluster", "trait", "shift", "low", "high", "texts", "p"]
    return pd.DataFrame(rows, columns=columns).astype({"cluster": "int32", "texts": "int64"})


def _drawn(draws: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``[resamples, clusters, 2]``: sums of ``values`` ``[prompts, clusters, 2]`` over the drawn prompts."""
    return (draws @ values.reshape(len(values), -1).astype(np.float64)).reshape(len(draws), *values.shape[1:])


def segment_sample(grouped: Sentences, most: int, tokens: int, seed: int) -> pd.DataFrame:
    """Segments to replay: at most ``most``, as many from every (group that is told, side) as far as they go, and no
    more than ``tokens`` tokens take, prompts and what stands before them in their answers included.

    Segments that stand early are read first: an opener costs its prompt and itself, a closer its whole answer. The
    length of a prompt is taken as a token for four characters. ``text_id`` names answer and segment.
    """
    table, members = grouped.segments, grouped.moved.ground.found.members
    members = members[members["group"].isin(grouped.moved.told["group"])]
    own = table.iloc[members["row"]].reset_index(drop=True).assign(cluster=members["group"].to_numpy())
    own = own.merge(
        grouped.texts[["text_id", "side", "prompt_id", "asked", "prompt", "token_ids", "text"]], on="text_id"
    )
    length = own["text"].str.len().clip(lower=1)
    cost = own["token_ids"].map(len) * own["end"] / length + own["prompt"].str.len() / 4
    own = own.assign(cost=np.ceil(cost), text_id=own["text_id"] + ":" + own["segment"].astype(str))
    own = own.assign(draw=np.random.default_rng([seed, 4]).random(len(own)))
    own = own.sort_values(["cost", "draw"], kind="stable")
    own = own.assign(turn=own.groupby(["cluster", "side"]).cumcount())
    own = own.sort_values(["turn", "draw"], kind="stable").head(most)
    return own[own["cost"].cumsum() <= tokens].reset_index(drop=True)


def measure_trait_shift(run: Run, grouped: Grouped) -> pd.DataFrame:
    """Replay a sample of what every cluster or group holds under the side that wrote it, and compare the sides inside.

    Returns :func:`trait_shift`'s table, with ``group`` for ``cluster`` where sentences were grouped; without a row
    where none is told. Loads the models; what was replayed comes from the cache.
    """
    section = run.section
    if isinstance(grouped, Answers):
        chosen = trait_sample(grouped.texts, grouped.found, section.trait_shift_texts, run.seed)
    else:
        chosen = segment_sample(grouped, section.trait_shift_texts, section.trait_shift_tokens, run.seed)
    name = "cluster" if isinstance(grouped, Answers) else "group"
    if not (chosen["side"] == "base").any():  # scores are told in units of the base's
        return pd.DataFrame(columns=[name, "trait", "shift", "low", "high", "texts"])
    bar = run.progress(chosen["text_id"].nunique(), "replay of texts", "texts")
    prompts = load_saved(run.input("decode"))
    vectors = VectorSet.load(run.input("traits"))
    # a segment may be in groups of several divisions
    once = chosen.drop_duplicates("text_id").assign(prompt_id=lambda t: t["asked"])
    scores = text_scores(open_sides(run, inside=True), once, prompts, vectors, run.cache, bar.update)
    table = trait_shift(chosen[chosen["text_id"].isin(scores["text_id"])], scores, seed=run.seed)
    return table.rename(columns={"cluster": name})


# ---------------------------------------------------------------------------------------------------------------- save


def assignments(texts: pd.DataFrame, found: Clustering) -> pd.DataFrame:
    """``clusters.parquet``: text_id, cluster, distance, margin."""
    return pd.DataFrame(
        {"text_id": texts["text_id"], "cluster": found.labels, "distance": found.distance, "margin": found.margin}
    )


def tables(grouped: Grouped) -> dict[str, pd.DataFrame]:
    """``composition.parquet``, and who belongs where: ``clusters.parquet``, or ``groups.parquet`` (text_id, segment,
    place, start, end, group, distance; a segment has a row for every division that it has a group in)."""
    if isinstance(grouped, Answers):
        return {"composition": grouped.table, "clusters": assignments(grouped.texts, grouped.found)}
    members = grouped.moved.ground.found.members
    where = grouped.segments[["text_id", "segment", "place", "start", "end"]].iloc[members["row"]]
    where = where.reset_index(drop=True).assign(group=members["group"], distance=members["distance"])
    return {"composition": grouped.table, "groups": where.astype({"distance": "float32"})}


def save(data: Path, grouped: Grouped | None = None, **more: pd.DataFrame) -> None:
    """Write each table to ``<data>/<name>.parquet``, and what reads the groups in other answers to ``centres.npz``."""
    for name, table in ((tables(grouped) if grouped is not None else {}) | more).items():
        table.to_parquet(data / f"{name}.parquet", compression="zstd", index=False)
    if isinstance(grouped, Sentences):
        grouped.moved.ground.found.groups.save(data / "centres.npz")


def metrics(grouped: Grouped) -> dict[str, float]:
    """The flat figures of ``metrics.json``. Of sentences, ``clusters`` counts groups, ``noise_share`` the segments that
    lie in none."""
    counts = grouped.embedding.counts
    told = {
        "embedded": counts.embedded,
        "cache_hits": counts.cache_hits,
        "duplicates": counts.duplicates,
        "embed_seconds": counts.seconds,
        "fidelity_cosine": grouped.embedding.fidelity.mean_cosine,
    }
    if isinstance(grouped, Answers):
        found, stable = grouped.found, grouped.stability
        return {
            "texts": len(found.labels),
            "clusters": found.k,
            "noise_share": found.noise_share,
            "stability_ari": float(stable.ari.mean()),
            "stable_clusters": int((stable.jaccard >= TRUSTED).sum()),
            "moved_clusters": len(moved(grouped.table)),
        } | told
    table, known = grouped.table, grouped.moved.ground
    up = table["q"] <= moved_groups.LEVEL
    return {
        "texts": len(grouped.texts),
        "segments": len(known.table),
        "clusters": len(table),
        "noise_share": 1 - known.found.members["row"].nunique() / max(1, len(known.table)),
        "stability_ari": float(np.nan_to_num(known.stability.ari.mean())),
        "stable_groups": int((table["stability"] >= TRUSTED).sum()),
        "moved_groups": int(up.sum()),
        "moved_stable_groups": int((up & (table["stability"] >= TRUSTED)).sum()),
        "told_groups": len(grouped.moved.told),
    } | told
