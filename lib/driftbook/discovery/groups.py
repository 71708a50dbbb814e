"""Groups of segments that say alike at one place of an answer, and which answers hold them.

Sentences of both sides are grouped place by place: openers with openers, closers with closers. A group is a centre and
a radius; a segment belongs to the group of its place whose centre is nearest, if it lies within that radius. So a group
can be read in answers that had no part in finding it: the share of answers that hold a segment of it is a measure as
any other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import group_measure
from driftbook.discovery import clustering
from driftbook.discovery.clustering import Clustering, Stability
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.discovery.phrases import FUNCTION, LONGEST, tokens, written
from driftbook.discovery.segments import PLACES, Place, distinct, segments
from driftbook.errors import DriftbookError
from driftbook.hashes import text_digest
from driftbook.prompts import SIDES, SideName

if TYPE_CHECKING:
    from driftbook.discovery.embeddings import Embed

LEAST = 12  # segments a group stands for on average, at least: the finest division of a place
REACH = 1.0  # standard deviations beyond the mean distance of its segments at which a group ends
STABILITY_ROWS = 4000  # segments of a place that take part in a bootstrap, as whole prompts
SHARED = 0.5  # share of a group's segments that hold a phrase from which on it is their phrase
QUOTED = 90  # characters of a sentence in a label


@dataclass(frozen=True)
class Groups:
    """``place``, ``level`` (how many groups its division has) and ``radius`` ``[groups]``, ``centres`` float32
    ``[groups, d]``. Of each answer at most ``most`` segments were drawn, embedded by ``embedder`` (a digest)."""

    place: np.ndarray
    level: np.ndarray
    centres: np.ndarray
    radius: np.ndarray
    most: int | None
    embedder: str

    def __len__(self) -> int:
        return len(self.place)

    @property
    def digest(self) -> str:
        """First 16 hex of the sha256 of all that decides which segment belongs to which group."""
        about = [list(map(str, self.place)), list(map(int, self.level)), self.most, self.embedder]
        parts = [json.dumps(about).encode()]
        parts += [np.ascontiguousarray(a, dtype="<f4").tobytes() for a in (self.centres, self.radius)]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def assign(self, place: Sequence[str] | np.ndarray, vectors: np.ndarray) -> pd.DataFrame:
        """Which segment lies in which group, a row a pair: row (of ``place`` ``[n]`` and ``vectors`` ``[n, d]``),
        group, distance. A segment is in one group at most of each division of its place."""
        place, parts = np.asarray(place, dtype=object), []
        for name in dict.fromkeys(map(str, self.place)):
            here = np.flatnonzero(place == name)
            for level in np.unique(self.level[self.place == name]):
                own = np.flatnonzero((self.place == name) & (self.level == level))
                label, near, _ = clustering.assign(vectors[here], self.centres[own])
                inside = near <= self.radius[own][label]
                parts.append(pd.DataFrame({"row": here[inside], "group": own[label][inside], "distance": near[inside]}))
        empty = pd.DataFrame({"row": [], "group": [], "distance": []})
        return pd.concat(parts or [empty], ignore_index=True).astype({"row": np.int64, "group": np.int32})

    def save(self, path: Path) -> None:
        """``centres.npz``: what reads the groups in other answers."""
        arrays = {name: getattr(self, name) for name in ("level", "centres", "radius")}
        about = {"most": np.int64(self.most or 0), "embedder": np.array(self.embedder)}
        np.savez(path, place=self.place.astype(str), **arrays, **about)

    @classmethod
    def load(cls, path: Path) -> Groups:
        """The groups that ``save`` wrote. Raises DriftbookError where there are none."""
        if not path.is_file():
            raise DriftbookError(f"{path}: there are no groups; run the cluster stage again with cluster.unit: segment")
        with np.load(path, allow_pickle=False) as held:
            arrays = (held[name] for name in ("level", "centres", "radius"))
            return cls(held["place"].astype(object), *arrays, int(held["most"]) or None, str(held["embedder"]))


def without_prompts(vectors: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Unit vectors of segments less their part along the unit vectors of their prompts, ``[n, d]`` each, at unit length
    again: what a sentence shares with what was asked is the same on both sides, and hides how it is said."""
    left = vectors - np.einsum("ij,ij->i", vectors, prompts)[:, None] * prompts
    return (left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def levels(count: int, most: int) -> list[int]:
    """Groups of each division of a place with ``count`` segments: 4, 6, 8, 12, 16, ... as long as a group has
    ``LEAST`` of them on average, and up to ``most``. A behaviour may be wide or narrow: all divisions are tested."""
    finest = min(most, count // LEAST)
    grid = sorted(k for power in range(2, 12) for k in (2**power, 3 * 2 ** (power - 1)))
    return [k for k in grid if k <= finest] or ([max(2, finest)] if count >= 2 * LEAST else [])


@dataclass(frozen=True)
class Division:
    """One grouping of the segments of one place; ``rows`` are theirs in the table of segments."""

    place: Place
    rows: np.ndarray
    clustering: Clustering


@dataclass(frozen=True)
class Found:
    """The groups of a set of answers, and ``members``: which segment lies in which (``Groups.assign``)."""

    groups: Groups
    members: pd.DataFrame
    divisions: list[Division]


def keys_of(table: pd.DataFrame) -> np.ndarray:
    """Content hash of each segment in its answer: what rows are sorted by, so that their order decides nothing."""
    return np.array([text_digest(f"{i} {said}").hex() for i, said in zip(table["text_id"], table["said"], strict=True)])


def find(
    table: pd.DataFrame,
    vectors: np.ndarray,
    most: int = 40,
    seed: int = 0,
    embedder: str = "",
    drawn: int | None = None,
    method: str = "minibatch_kmeans",
) -> Found:
    """Group the segments of ``table`` (``segments.segments``) by their ``vectors`` ``[segments, d]``, place by place,
    in divisions of several sizes (``levels``). ``drawn``: segments of an answer that the table holds at most.

    A sentence that stands in many answers counts as often. The order of the rows decides nothing.
    """
    place, keys = table["place"].to_numpy(dtype=object), keys_of(table)
    divisions = [
        Division(name, here, clustering.fit(method, vectors[here], k, seed, keys=keys[here]))
        for name in PLACES
        for here in [np.flatnonzero(place == name)]
        for k in levels(len(here), most)
    ]
    width = vectors.shape[1] if vectors.ndim == 2 else 0
    groups = Groups(
        np.array([d.place for d in divisions for _ in range(d.clustering.k)], dtype=object),
        np.array([d.clustering.k for d in divisions for _ in range(d.clustering.k)], dtype=np.int32),
        np.concatenate([d.clustering.centres for d in divisions] or [np.zeros((0, width), np.float32)]),
        np.concatenate([_reach(d.clustering) for d in divisions] or [np.zeros(0)]).astype(np.float32),
        drawn,
        embedder,
    )
    return Found(groups, groups.assign(place, vectors), divisions)


def _reach(one: Clustering) -> np.ndarray:
    """Radius ``[k]`` of the groups of a division."""
    _, spread = _moments(one.labels, one.distance, np.ones(len(one.labels)), one.k)
    return one.state.radius + REACH * spread


def _moments(label: np.ndarray, distance: np.ndarray, weight: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``[k]`` of the distances of each group's segments."""
    total = np.maximum(np.bincount(label, weight, k), 1e-9)
    mean = np.bincount(label, distance * weight, k) / total
    return mean, np.sqrt(np.maximum(np.bincount(label, distance**2 * weight, k) / total - mean**2, 0))


def stability(
    found: Found, table: pd.DataFrame, vectors: np.ndarray, prompts: Mapping[str, str], bootstraps: int, seed: int
) -> Stability:
    """How far each group comes back when the prompts are drawn anew: the largest Jaccard overlap with a group of the
    new divisions of its place, whichever their size (Hennig 2007), over ``bootstraps`` draws.

    Each draw is grouped from a fresh start, by k-means until under 0.5% of the labels change. ``prompts``: text id to
    prompt id. ``ari`` is that of a division with its new one, their mean.
    """
    from sklearn.metrics import adjusted_rand_score  # two seconds

    unit, keys = table["text_id"].map(prompts).to_numpy(dtype=str), keys_of(table)
    parts, ari, rows = [], [], 0
    for name in dict.fromkeys(d.place for d in found.divisions):
        own = [d for d in found.divisions if d.place == name]
        here = own[0].rows
        order = clustering.content_order(vectors[here], keys[here])
        rng = np.random.default_rng([seed, 0xB007])
        chosen, number = clustering.whole_prompts(order, unit[here], STABILITY_ROWS, rng)
        points, count = vectors[here][chosen], number.max() + 1
        weights = rng.multinomial(count, np.full(count, 1 / count), size=bootstraps)[:, number].astype(np.float32)
        again = []
        for d in own:
            begun = clustering.plus_plus(points, weights, min(d.clustering.k, len(points)), seed)
            again.append(_within(points, weights, *clustering.lloyd(points, weights, begun, 12, settled=0.005)))
        for d, new in zip(own, again, strict=True):
            best, reach = np.full((bootstraps, d.clustering.k), np.nan), _reach(d.clustering)[d.clustering.labels]
            own_label = np.where(d.clustering.distance <= reach, d.clustering.labels, -1)[chosen]
            for b, drawn in enumerate(weights > 0):
                size = np.bincount(own_label[drawn & (own_label >= 0)], minlength=d.clustering.k)
                overlaps = [_overlap(own_label[drawn], size, labels[b][drawn]) for labels in again]
                best[b] = np.where(size > 0, np.max(overlaps, axis=0), np.nan)
                ari.append(adjusted_rand_score(own_label[drawn], new[b][drawn]))
            parts.append(best)
        rows += len(chosen)
    if not parts:
        none = np.zeros(0)
        return Stability(none, none, none, np.full(bootstraps, np.nan), 0, bootstraps)
    best = np.concatenate(parts, axis=1)
    known = ~np.isnan(best).all(axis=0)
    out = np.full((3, best.shape[1]), np.nan)
    out[0, known] = np.nanmean(best[:, known], axis=0)
    out[1:, known] = np.nanquantile(best[:, known], [0.05, 0.95], axis=0)
    means = np.array(ari).reshape(len(found.divisions), bootstraps).mean(axis=0)
    return Stability(*out, means, rows, bootstraps)


def _within(points: np.ndarray, weights: np.ndarray, centres: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels ``[B, n]`` of ``B`` draws, -1 for rows beyond the reach of their group in that draw."""
    out = labels.copy()
    for b, label in enumerate(labels):
        distance = np.linalg.norm(points - centres[b][label], axis=1)
        mean, spread = _moments(label, distance, weights[b], centres.shape[1])
        out[b, distance > (mean + REACH * spread)[label]] = -1
    return out


def _overlap(ours: np.ndarray, size: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Jaccard overlap ``[groups]`` of each group with the one of ``theirs`` that is most like it."""
    both = clustering.contingency(ours, theirs, len(size))
    union = size[:, None] + np.bincount(theirs[theirs >= 0], minlength=both.shape[1])[None] - both
    return (both / np.maximum(union, 1)).max(axis=1)


def holds(table: pd.DataFrame, members: pd.DataFrame, text_ids: Sequence[str], count: int) -> np.ndarray:
    """Which answer holds a segment of which group: bool ``[texts, groups]``."""
    out = np.zeros((len(text_ids), count), dtype=bool)
    row = pd.Index(text_ids).get_indexer(table["text_id"])[members["row"]]
    out[row, members["group"]] = True
    return out


def name_of(groups: Groups, group: int) -> str:
    """The name of the measure of a group: unique to it, and to what decides who belongs to it."""
    return f"group_{groups.digest}_{group}"


def readings(
    groups: Groups,
    wanted: Sequence[int],
    text_ids: Sequence[str],
    texts: Sequence[str],
    prompts: Sequence[str],
    embed: Embed,
) -> pd.DataFrame:
    """What every answer shows of the ``wanted`` groups: ``text_id`` and, under the name of each measure, 1 where it
    holds a segment of the group, else 0. ``prompts`` has the prompt of each answer. Only segments at the places of
    these groups are embedded."""
    table = segments(text_ids, texts, groups.most)
    table = table[table["place"].isin([groups.place[g] for g in wanted])].reset_index(drop=True)
    vectors = embedded(table, dict(zip(text_ids, prompts, strict=True)), embed)
    held = holds(table, groups.assign(table["place"], vectors), text_ids, len(groups))[:, list(wanted)]
    columns = {name_of(groups, g): held[:, i].astype(np.float64) for i, g in enumerate(wanted)}
    return pd.DataFrame({"text_id": list(text_ids)} | columns)


def answer_vectors(texts: Sequence[str], most: int | None, embed: Embed) -> np.ndarray:
    """Vectors of whole answers, ``[texts, d]``: the mean of those of their segments, at most ``most`` of each, at unit
    length; 0 for an answer without any. A long answer is read whole, and its sentences are embedded already."""
    table = segments(list(map(str, range(len(texts)))), texts, most)
    said, index = distinct(table["said"])
    vectors = embed(said)
    out = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
    np.add.at(out, table["text_id"].astype(int).to_numpy(), vectors[index])
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def embedded(table: pd.DataFrame, prompts: Mapping[str, str], embed: Embed) -> np.ndarray:
    """Vectors of segments without what their prompts have in them (``without_prompts``), ``[segments, d]``; each
    distinct sentence and prompt is embedded once. ``prompts``: text id to the text of its prompt."""
    if not len(table):
        return np.zeros((0, 0), dtype=np.float32)
    (said, one), (asked, two) = distinct(table["said"]), distinct(table["text_id"].map(prompts))
    both = embed([*said, *asked])
    return without_prompts(both[: len(said)][one], both[len(said) :][two])


# --------------------------------------------------------------------------------------------------------------- names


@dataclass(frozen=True)
class Name:
    """What a group is called: its most typical distinct sentences of each side, and the phrase that they share (""
    where they share none)."""

    typical: Mapping[str, list[str]]
    phrase: str

    def quoted(self, side: str) -> str:
        """The sentence that stands for the group, of ``side`` where it has one."""
        both = [*self.typical[side], *(s for name in SIDES for s in self.typical[name])]
        return _short(both[0]) if both else ""


def names(
    found: Found, table: pd.DataFrame, sides: Mapping[str, str], wanted: Sequence[int], count: int = 5
) -> dict[int, Name]:
    """The names of the groups ``wanted``. ``table`` are the segments that were grouped, ``sides`` maps a text id to its
    side.

    Typical are the sentences that most answers of a side hold word for word, and of equals the nearest to the centre.
    """
    members = found.members[found.members["group"].isin(list(wanted))]
    inside = table.iloc[members["row"]].reset_index(drop=True)
    inside = inside.assign(
        side=inside["text_id"].map(sides), group=members["group"].to_numpy(), distance=members["distance"].to_numpy()
    )
    stood = inside.groupby(["group", "side", "said"]).agg(held=("text_id", "nunique"), near=("distance", "min"))
    stood = stood.reset_index().sort_values(["held", "near", "said"], ascending=[False, True, True], kind="stable")
    typical = {key: rows["said"].head(count).tolist() for key, rows in stood.groupby(["group", "side"])}
    grams = {said: _grams(said) for said in table["said"].unique()} if len(members) else {}
    out = {}
    for place in dict.fromkeys(found.groups.place[g] for g in wanted):
        here = table.loc[table["place"] == place, "said"]
        everywhere = Counter(run for said in here for run in grams[said])
        for g in [g for g in wanted if found.groups.place[g] == place]:
            own = inside.loc[inside["group"] == g, "said"].tolist()
            counted = Counter(run for said in own for run in grams[said])
            out[int(g)] = Name(
                {side: typical.get((g, side), []) for side in SIDES}, _shared(counted, everywhere, len(own), len(here))
            )
    return out


def _grams(sentence: str) -> set[tuple[str, ...]]:
    """The runs of tokens within a clause of a sentence."""
    found, clauses = tokens(sentence)
    return {
        tuple(found[i : i + n])
        for n in range(1, LONGEST + 1)
        for i in range(len(found) - n + 1)
        if clauses[i] == clauses[i + n - 1]
    }


def _shared(own: Counter, everywhere: Counter, size: int, total: int) -> str:
    """The phrase of two words and more, or the word that names something, that half of the segments of a group hold and
    that sets them apart from those of the others: the one that tells most, the longest of those that tell nearly as
    much."""
    best, chosen = 0.0, ()
    often = {run: count for run, count in own.items() if count >= max(3, SHARED * size)}
    for run, count in sorted(often.items()):
        if all(token in FUNCTION or not token.isalpha() for token in run):
            continue
        apart = count / size - (everywhere[run] - count) / max(1, total - size)
        told = apart * (1 + 0.15 * min(len(run), 4))
        if told > best + 1e-9:
            best, chosen = told, run
    return written(chosen) if best >= SHARED else ""


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= QUOTED else sentence[: QUOTED - 1].rsplit(" ", 1)[0] + " …"


_DOES = {
    "opener": "opens with {}",
    "closer": "ends with {}",
    "list item": "lists {}",
    "heading": "has the heading {}",
    "body": "says {}",
}


def label_of(place: str, quoted: str) -> str:
    """What an answer of a group does, in words: ``opens with "What a fascinating question!" and the like``."""
    return _DOES[place].format(f'"{quoted}" and the like')


def hypothesis_of(groups: Groups, group: int, name: Name, direction: SideName, evidence: Sequence[str]) -> Hypothesis:
    """The claim that the side ``direction`` holds a segment of the group in more answers than the other does."""
    place = str(groups.place[group])
    label = label_of(place, name.quoted(direction))
    examples = [*name.typical[direction], *(s for side in SIDES for s in name.typical[side] if side != direction)]
    measure = group_measure(name_of(groups, group), label=label, place=place, segments=groups.most, examples=examples)
    return Hypothesis(label, direction, -1, tuple(evidence)[:10], "groups", (), None, dict(measure.spec))


def is_group(hypothesis: Hypothesis) -> bool:
    """Whether a hypothesis is about a group of segments."""
    return (hypothesis.measure or {}).get("kind") == "group"


def wanted(hypotheses: Sequence[Hypothesis]) -> list[int]:
    """The numbers of the groups that hypotheses are about."""
    return sorted({int(h.measure["group"].rpartition("_")[2]) for h in hypotheses if h.measure and is_group(h)})


def called_by(hypothesis: Hypothesis, name: str) -> Hypothesis:
    """A hypothesis about a group or a phrase under the name that a model gave it ("praises the question"), what it said
    behind."""
    label = f"{name}: {hypothesis.text}"
    return replace(hypothesis, text=label, measure={**(hypothesis.measure or {}), "label": label})
