"""Which groups of sentences moved: the share of answers that hold one, on both sides, paired over prompts.

What is found on split discover is a proposal. Groups do not know the sides, so swapping the two sides of a prompt gives
the null of all of them at once; q corrects over all groups of all places and divisions. How far a group comes back when
prompts are drawn anew decides whether it is named as a kind of sentence, not whether it moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import gammaln

from driftbook.discovery import groups
from driftbook.discovery.clustering import Stability
from driftbook.discovery.groups import Found, Name
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.discovery.segments import segments
from driftbook.evidence.counting import scope_of
from driftbook.evidence.material import asked_ids, balanced
from driftbook.evidence.paired import Paired, paired_test, per_prompt, within_prompts_test

if TYPE_CHECKING:
    from driftbook.discovery.embeddings import Embed

LEVEL = 0.05  # q up to which a group counts as moved
PROMISING = 0.1  # q up to which one is worth a test on held-out prompts
PART = 0.75  # share of the answers of the smaller of two groups from which on they are told once
STABLE = 0.6  # mean Jaccard from which on a group is named as a kind (Hennig 2007)
COLUMNS = (
    *("group", "place", "of", "answers", "prompts", "share_base", "share_intervention", "difference", "low", "high"),
    *("p", "q", "beyond", "stability", "like", "phrase", "said", "typical_base", "typical_intervention"),
)


@dataclass(frozen=True)
class Ground:
    """What is known before anybody looks at sides: ``table`` of segments, their ``vectors``, the groups ``found``, how
    stable they are."""

    table: pd.DataFrame
    vectors: np.ndarray
    found: Found
    stability: Stability


def ground(
    texts: pd.DataFrame,
    prompts: Mapping[str, str],
    embed: Embed,
    *,
    drawn: int | None = None,
    most: int = 40,
    method: str = "minibatch_kmeans",
    bootstraps: int = 20,
    seed: int = 0,
    embedder: str = "",
) -> Ground:
    """Segments of the answers, grouped. ``texts``: text_id, prompt_id (and asked, where look-alike prompts are one
    unit), text; ``prompts``: prompt id to what was asked.
    ``drawn``: segments an answer at most; the other arguments are those of ``groups.find``."""
    texts = texts.sort_values("text_id", kind="stable")
    table = segments(texts["text_id"], texts["text"], drawn)
    of = dict(zip(texts["text_id"], texts["prompt_id"], strict=True))
    asked = {name: prompts[p] for name, p in zip(texts["text_id"], asked_ids(texts), strict=True)}
    vectors = groups.embedded(table, asked, embed)
    found = groups.find(table, vectors, most, seed, embedder, drawn, method)
    return Ground(table, vectors, found, groups.stability(found, table, vectors, of, bootstraps, seed))


@dataclass(frozen=True)
class Moved:
    """``table``: one row a group, the surest first (``COLUMNS``); ``held`` bool ``[texts, groups]`` by number of the
    group, rows as ``texts``; ``names`` of the promising groups by number."""

    ground: Ground
    texts: pd.DataFrame
    table: pd.DataFrame
    held: np.ndarray
    names: dict[int, Name]

    @property
    def told(self) -> pd.DataFrame:
        return told(self.table)


def told(table: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """The groups that moved and are worth telling, the surest first: beyond what the number of sentences explains, and
    none that is a part of a surer one."""
    return table[(table["q"] <= level) & (table["beyond"] <= LEVEL) & (table["like"] < 0)]


def compose(known: Ground, texts: pd.DataFrame, seed: int, count: int = 5) -> Moved:
    """Compare the sides. ``texts``: text_id, side, prompt_id, those of ``known``, of which as many of both sides to a
    prompt are compared; ``count`` sentences a side and group are kept to be read.

    ``p`` and ``q`` ask whether the sides differ, over prompts like these, or, for few prompts with many answers each,
    on these prompts (``counting.scope_of``). ``beyond`` is the p-value of the same difference when both sides' answers
    to a prompt are read by equally many segments at that place: longer answers hold more of everything. ``like`` is the
    surer group, of the promising ones, that it is a part of, or that is a part of it (-1: none).
    """
    texts = texts.sort_values("text_id", kind="stable").reset_index(drop=True)
    grouped = known.found.groups
    held = groups.holds(known.table, known.found.members, texts["text_id"], len(grouped))
    if not len(grouped):
        return Moved(known, texts, pd.DataFrame(columns=list(COLUMNS)), held, {})
    prompt, side = texts["prompt_id"].to_numpy(), texts["side"].to_numpy()
    surplus = ~texts.index.isin(balanced(texts).index)

    def tested(values: np.ndarray) -> Paired:
        either, values = np.zeros(values.shape[1], dtype=int), np.where(surplus[:, None], np.nan, values)
        if scope_of(texts).name == "these prompts":
            return within_prompts_test(values, asked_ids(texts).to_numpy(), side, either, LEVEL, seed=seed)
        return paired_test(*per_prompt(values, prompt, side, sorted(set(prompt))), either, LEVEL)

    test = tested(held.astype(np.float64))
    beyond = np.full(len(grouped), np.nan)
    if len(sure := np.flatnonzero(test.adjusted <= PROMISING)):
        left = tested(_rarefied(known, texts, sure))
        beyond[sure] = np.where(np.sign(left.difference) == np.sign(test.difference[sure]), left.p, 1.0)
    rows = pd.DataFrame(
        {
            "group": np.arange(len(grouped), dtype=np.int32),
            "place": grouped.place.astype(str),
            "of": grouped.level,
            "answers": held.sum(axis=0),
            "prompts": [len(set(prompt[own])) for own in held.T],
            "share_base": test.base,
            "share_intervention": test.changed,
            "difference": test.difference,
            "low": test.low,
            "high": test.high,
            "p": test.p,
            "q": test.adjusted,
            "beyond": beyond,
            "stability": known.stability.jaccard,
        }
    )
    rows = rows.sort_values(["p", "of", "group"], kind="stable", ignore_index=True)
    rows["like"] = _like(rows, held)
    shown = rows.loc[rows["q"] <= PROMISING, "group"].tolist()
    names = groups.names(known.found, known.table, dict(zip(texts["text_id"], side, strict=True)), shown, count)
    empty = Name({"base": [], "intervention": []}, "")
    own = [names.get(g, empty) for g in rows["group"]]
    up = ["intervention" if d > 0 else "base" for d in rows["difference"]]
    rows = rows.assign(
        phrase=[n.phrase for n in own],
        said=[groups.label_of(p, n.quoted(u)) for n, p, u in zip(own, rows["place"], up, strict=True)],
        typical_base=[n.typical["base"] for n in own],
        typical_intervention=[n.typical["intervention"] for n in own],
    )
    return Moved(known, texts, rows[list(COLUMNS)], held, names)


def _rarefied(known: Ground, texts: pd.DataFrame, wanted: np.ndarray) -> np.ndarray:
    """How likely each answer is to hold each of the groups ``wanted`` by as many of its segments at that place as the
    answer to its prompt has that has fewest, ``[texts, wanted]``: rarefaction (Hurlbert 1971), 1 - C(N - k, n) / C(N,
    n) for k of N segments in the group."""
    grouped, place = known.found.groups, known.table["place"].to_numpy(dtype=object)
    row = pd.Index(texts["text_id"]).get_indexer(known.table["text_id"])
    unit = np.unique(texts["prompt_id"].to_numpy(dtype=str), return_inverse=True)[1]
    own = known.found.members[known.found.members["group"].isin(wanted)]
    column = np.searchsorted(wanted, own["group"])
    k = np.zeros((len(texts), len(wanted)))
    np.add.at(k, (row[own["row"]], column), 1)
    whole, fewest = np.zeros_like(k), np.zeros_like(k)
    for name in set(grouped.place[wanted]):
        number = np.bincount(row[place == name], minlength=len(texts))
        least = np.full(unit.max() + 1, np.iinfo(np.int64).max)
        np.minimum.at(least, unit, number)
        here = grouped.place[wanted] == name
        whole[:, here], fewest[:, here] = number[:, None], least[unit][:, None]

    def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

    possible = whole - k >= fewest  # a draw without the group
    none = np.zeros_like(k)
    none[possible] = np.exp(log_choose((whole - k)[possible], fewest[possible]) - log_choose(whole, fewest)[possible])
    return 1 - none


def _like(rows: pd.DataFrame, held: np.ndarray) -> np.ndarray:
    """For each row, in order, the group of an earlier row of the same place that is told and that it is a part of, or
    that is a part of it, by the answers that hold them; -1: none."""
    place = dict(zip(rows["group"], rows["place"], strict=True))
    heads: list[int] = []
    found = np.full(len(rows), -1, dtype=np.int32)
    for i, (group, q, beyond) in enumerate(zip(rows["group"], rows["q"], rows["beyond"], strict=True)):
        if not (q <= PROMISING and beyond <= LEVEL):
            continue
        same = [h for h in heads if place[h] == place[group] and _within(held[:, group], held[:, h]) >= PART]
        if same:
            found[i] = same[0]
        else:
            heads.append(group)
    return found


def _within(one: np.ndarray, two: np.ndarray) -> float:
    """The share of the answers of the smaller group that the other one holds too."""
    return float((one & two).sum() / max(1, min(one.sum(), two.sum())))


def propose(moved: Moved, limit: int) -> list[Hypothesis]:
    """A claim for each promising group, the surest first, at most ``limit``; its evidence are the answers nearest to
    the centre on the side that says it more."""
    known, rows = moved.ground, told(moved.table, PROMISING).head(limit)
    side = dict(zip(moved.texts["text_id"], moved.texts["side"], strict=True))
    members = known.found.members.assign(text_id=known.table["text_id"].to_numpy()[known.found.members["row"]])
    members = members.sort_values(["distance", "text_id"], kind="stable")
    found = []
    for row in rows.itertuples():
        direction = "intervention" if row.difference > 0 else "base"
        own = members.loc[members["group"] == row.group, "text_id"].drop_duplicates()
        evidence = [name for name in own if side[name] == direction]
        found.append(groups.hypothesis_of(known.found.groups, row.group, moved.names[row.group], direction, evidence))
    return found
