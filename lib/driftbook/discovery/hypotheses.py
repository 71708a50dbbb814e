"""Hypotheses: structured claims about what one side says more often, proposed from the texts of the discover split.

The keyword labeller contrasts the words of both sides by weighted log-odds with an informative Dirichlet prior
(Monroe, Colaresi & Quinn 2008, "Fightin' Words"), with one change: a word counts once per prompt (the share of the
prompt's texts that hold it), because texts of one prompt are not independent. Nothing here tests anything; a proposal
is only a proposal.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from driftbook.discovery.forms import FORMS
from driftbook.errors import DriftbookError

Side = Literal["base", "intervention"]
SIDES: tuple[Side, Side] = ("base", "intervention")
COLUMNS = ("hypothesis_id", "text", "direction", "cluster", "evidence", "proposer", "words", "prompt", "measure")

MIN_STABILITY = 0.6  # below it a cluster dissolves when prompts are drawn anew (Hennig 2007)
SAME_TEXTS = 0.6  # correlation over texts from which on two lexicons say one thing in other words
LEAST_Z = 1.5  # of a word to be in a lexicon: words that are weak alone make a strong hypothesis together

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CLAUSE = re.compile(r"[.!?;:,()\[\]\"“”\n]+")


@dataclass(frozen=True)
class Hypothesis:
    """A claim that the side ``direction`` does what ``text`` says more than the other side does.

    ``cluster`` is -1 for the whole split; ``words`` is the lexicon that a deterministic judge counts; ``evidence``
    are ids of texts that led to it; ``prompt`` is what a model was asked when it proposed the text. ``measure`` is what
    the claim is tested on, JSON-able: ``{"kind": "words", "words", "place", "unit"}``, ``{"kind": "panel", "name"}`` or
    ``{"kind": "judge"}``. Where it is not given, it is the share of answers that hold one of ``words``, and without
    words a judge's.
    """

    text: str
    direction: Side
    cluster: int = -1
    evidence: tuple[str, ...] = ()
    proposer: Literal["phrases", "keywords", "panel", "llm", "person"] = "phrases"
    words: tuple[str, ...] = ()
    prompt: str | None = None
    measure: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.measure is None:
            counted = {"kind": "words", "words": list(self.words), "place": "anywhere", "unit": "share"}
            object.__setattr__(self, "measure", counted if self.words else {"kind": "judge"})

    @property
    def hypothesis_id(self) -> str:
        """First 16 hex of the sha256 of what is claimed (not of how it was found)."""
        claim = json.dumps(
            [self.text, self.direction, sorted(self.words), self.measure], ensure_ascii=False, sort_keys=True
        )
        return hashlib.sha256(claim.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def to_frame(hypotheses: Sequence[Hypothesis]) -> pd.DataFrame:
    """One row per hypothesis with the columns of ``hypotheses.parquet``."""
    rows = [
        (
            *(h.hypothesis_id, h.text, h.direction, h.cluster, list(h.evidence), h.proposer, list(h.words), h.prompt),
            json.dumps(h.measure, ensure_ascii=False, sort_keys=True),
        )
        for h in hypotheses
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"cluster": "int32"})


def from_frame(frame: pd.DataFrame) -> list[Hypothesis]:
    """The hypotheses of a table; those of a table without ``measure`` have the one that their words say.

    Raises DriftbookError for a missing column or an unknown direction.
    """
    missing = set(COLUMNS) - {"measure"} - set(frame.columns)
    if missing:
        raise DriftbookError(f"hypotheses: columns {sorted(missing)} are missing; run the cluster stage again")
    found = []
    for row in frame.to_dict("records"):
        if row["direction"] not in SIDES:
            raise DriftbookError(
                f"hypothesis {row['text']!r}: direction is {row['direction']!r}, use base or intervention"
            )
        prompt = row["prompt"] if isinstance(row["prompt"], str) else None
        words, evidence = tuple(map(str, row["words"])), tuple(map(str, row["evidence"]))
        measure = json.loads(row["measure"]) if isinstance(row.get("measure"), str) else None
        about = (row["text"], row["direction"], int(row["cluster"]), evidence, row["proposer"])
        found.append(Hypothesis(*about, words, prompt, measure))
    return found


# ---------------------------------------------------------------------------------------------------------------- words


def tokenize(text: str) -> list[str]:
    """Lower-case words; digits and punctuation separate, apostrophes inside a word belong to it."""
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


def features(text: str, prompt: str = "") -> set[str]:
    """Words and two-word phrases (within a clause) of a text, without those that the prompt itself holds."""

    def grams(string: str) -> set[str]:
        found: set[str] = set()
        for clause in _CLAUSE.split(string):
            words = tokenize(clause)
            found.update(words)
            found.update(f"{a} {b}" for a, b in pairwise(words))
        return found

    return grams(text) - grams(prompt)


@dataclass(frozen=True)
class Vocabulary:
    """Which text holds which word: ``holds`` [texts, words] booleans (sparse), ``share`` per side [prompts, words]."""

    terms: list[str]
    holds: sp.csr_matrix

    def shares(self, prompt: np.ndarray, side: np.ndarray, rows: np.ndarray) -> dict[str, sp.csr_matrix]:
        """Per side: the share of each prompt's texts that hold each word, over prompts with texts of both sides."""
        both = np.intersect1d(prompt[rows & (side == "base")], prompt[rows & (side == "intervention")])
        shares = {}
        for name in SIDES:
            keep = np.flatnonzero(rows & (side == name) & np.isin(prompt, both))
            group = np.searchsorted(both, prompt[keep])
            weight = 1 / np.bincount(group, minlength=len(both))[group] if len(keep) else np.zeros(0)
            pool = sp.csr_matrix((weight, (group, np.arange(len(keep)))), shape=(len(both), len(keep)))
            shares[name] = (pool @ self.holds[keep]).tocsr()
        return shares


def read_vocabulary(texts: Sequence[str], prompts: Sequence[str], min_texts: int = 3) -> Vocabulary:
    """Words and phrases that occur in at least ``min_texts`` texts; ``prompts`` [texts] is the prompt of each one."""
    index: dict[str, int] = {}
    columns: list[int] = []
    starts = [0]
    for text, prompt in zip(texts, prompts, strict=True):
        for term in sorted(features(text, prompt)):
            columns.append(index.setdefault(term, len(index)))
        starts.append(len(columns))
    matrix = sp.csr_matrix(
        (np.ones(len(columns), dtype=np.float32), columns, starts), shape=(len(starts) - 1, len(index))
    )
    terms = np.array(list(index), dtype=object)
    often = np.flatnonzero(np.asarray(matrix.sum(axis=0)).ravel() >= min_texts)
    often = often[np.argsort(terms[often].astype(str), kind="stable")] if len(often) else often
    return Vocabulary([str(t) for t in terms[often]], matrix[:, often])


def log_odds(up: np.ndarray, down: np.ndarray, background: np.ndarray, strength: float = 0.1) -> np.ndarray:
    """z-scores of the weighted log-odds ratio with an informative Dirichlet prior; arguments and result are [words].

    ``up`` and ``down`` are counts on both sides, ``background`` counts that give the prior its shape; the prior
    weighs ``strength`` times as much as the data. Positive where ``up`` has more.
    """
    total = up.sum() + down.sum()
    if total == 0:
        return np.zeros(len(up))
    prior = np.maximum(strength * total * background / max(background.sum(), 1e-12), 0.01)
    mass = prior.sum()

    def logit(y: np.ndarray) -> np.ndarray:
        return np.log((y + prior) / np.maximum(y.sum() + mass - y - prior, 0.01))  # of all other words

    return (logit(up) - logit(down)) / np.sqrt(1 / (up + prior) + 1 / (down + prior))


# -------------------------------------------------------------------------------------------------------------- propose


def _without_overlap(terms: list[str], order: np.ndarray, z: np.ndarray, limit: int) -> list[int]:
    """The strongest terms, a phrase only where it says clearly more than its words, and no word whose phrase was
    taken."""
    kept: list[int] = []
    for i in order:
        words = set(terms[i].split())
        rivals = [k for k in kept if words & set(terms[k].split()) and (len(words) > 1 or " " in terms[k])]
        if all(abs(z[i]) > 1.25 * abs(z[k]) for k in rivals):
            kept.append(int(i))
        if len(kept) == limit:
            break
    return kept


def _groups(picked: list[int], related: np.ndarray, size: int) -> list[list[int]]:
    """Greedy groups: the strongest ungrouped word and those related to it, strongest first; positions in ``picked``."""
    left, groups = list(range(len(picked))), []
    while left:
        head = left[0]
        group = [head, *[j for j in left[1:] if related[head, j]][: size - 1]]
        groups.append([picked[j] for j in group])
        left = [j for j in left if j not in group]
    return groups


def _related(vocabulary: Vocabulary, picked: list[int], rows: np.ndarray, embed: Callable | None) -> np.ndarray:
    """[picked, picked] booleans: words that share texts twice as often as chance has it, or that mean nearly the
    same."""
    held = vocabulary.holds[rows][:, picked]
    together = np.asarray((held.T @ held).todense(), dtype=np.float64)
    alone = np.maximum(together.diagonal(), 1)
    lift = together * max(1, int(rows.sum())) / np.outer(alone, alone)
    related = (lift >= 2) & (together >= 3)
    if embed is not None and picked:
        vectors = np.asarray(embed([vocabulary.terms[i] for i in picked]))
        related |= vectors @ vectors.T >= 0.5
    return related


def _sentence(words: Sequence[str], cluster: int, theme: bool) -> str:
    quoted = ", ".join(f'"{w}"' for w in words[:4])
    if theme:
        return f"gives answers of the kind of cluster {cluster}, with words such as {quoted}, more often"
    like = " and the like" if len(words) > 1 else ""
    return f"says {quoted}{like} more often"  # what tells claims apart comes first: labels are cut


@dataclass(frozen=True)
class _Scored:
    hypothesis: Hypothesis
    score: float
    held: np.ndarray  # [texts] booleans


def _score(held: np.ndarray, prompt: np.ndarray, side: np.ndarray, direction: Side) -> float:
    """z of the paired difference over prompts: share of texts that hold it (``[texts]`` booleans), that side minus the
    other."""
    column = Vocabulary(["it"], sp.csr_matrix(held[:, None].astype(np.float64)))
    shares = column.shares(prompt, side, np.ones(len(prompt), dtype=bool))
    d = np.asarray((shares["intervention"] - shares["base"]).todense()).ravel()
    if len(d) < 2:
        return 0.0
    d = d if direction == "intervention" else -d
    return float(d.mean() / np.sqrt((d.var() + 0.25 / len(d)) / len(d)))


def propose(
    texts: pd.DataFrame,
    prompts: Mapping[str, str],
    clusters: pd.DataFrame | None = None,
    composition: pd.DataFrame | None = None,
    limit: int = 12,
    min_stability: float = MIN_STABILITY,
    embed: Callable[[list[str]], np.ndarray] | None = None,
) -> list[Hypothesis]:
    """Candidate hypotheses, strongest first, at most ``limit``.

    ``texts``: text_id, side, prompt_id, text, of split discover only (a table with other splits is refused).
    ``prompts``: prompt id to prompt text. ``clusters`` (text_id, cluster) and ``composition`` (cluster, stability,
    and where there: difference, low, high) add contrasts inside each stable cluster, contrasts between two of them that
    answers moved between, and themes of clusters whose share moved; unstable clusters propose nothing. ``embed`` (list
    of words to unit vectors) also groups words by meaning; without it by the texts that they share.
    """
    if "split" in texts and (texts["split"] != "discover").any():
        raise DriftbookError("hypotheses come from split discover only: texts of screen and validate must stay unseen")
    texts = texts.sort_values("text_id", kind="stable").reset_index(drop=True)
    if texts.empty:
        return []
    prompt_ids = texts["prompt_id"].to_numpy(dtype=str)
    side, ids = texts["side"].to_numpy(dtype=str), texts["text_id"].to_numpy(dtype=str)
    vocabulary = read_vocabulary(texts["text"].tolist(), [prompts.get(p, "") for p in prompt_ids])
    if not vocabulary.terms:
        return []
    everything = np.ones(len(texts), dtype=bool)
    background = _totals(vocabulary.shares(prompt_ids, side, everything))
    prior = background["base"] + background["intervention"]

    found: list[_Scored] = []

    def add(members: list[int], direction: Side, cluster: int, rows: np.ndarray, theme: bool = False) -> None:
        held = np.asarray(vocabulary.holds[:, members].sum(axis=1)).ravel() > 0
        score = _score(held, prompt_ids, side, direction)
        words = tuple(vocabulary.terms[i] for i in members)
        evidence = _evidence(vocabulary, members, ids, prompt_ids, rows & (side == direction))
        text = _sentence(words, cluster, theme)
        found.append(_Scored(Hypothesis(text, direction, cluster, evidence, "keywords", words), score, held))

    scopes: list[tuple[dict[Side, int], np.ndarray]] = [({"base": -1, "intervention": -1}, everything)]
    stable = _stable(composition, min_stability)
    label = np.full(len(texts), -1)
    if clusters is not None:
        table = dict(zip(clusters["text_id"], clusters["cluster"], strict=True))
        label = np.array([table.get(i, -1) for i in ids])
        scopes += [({"base": c, "intervention": c}, label == c) for c in sorted(stable)]
        for (a, b), moved in moved_answers(texts.assign(cluster=label), sorted(stable)).items():
            scopes.append(({"base": a, "intervention": b}, np.isin(ids, moved["text_id"])))
    for cluster, rows in scopes:
        counts = _totals(vocabulary.shares(prompt_ids, side, rows))
        z = log_odds(counts["intervention"], counts["base"], prior)
        z[counts["intervention"] + counts["base"] < 2] = 0  # fewer than two prompts' worth
        for direction, sign in (("intervention", 1), ("base", -1)):
            order = np.argsort(-sign * z, kind="stable")
            order = order[sign * z[order] >= LEAST_Z]
            picked = _without_overlap(vocabulary.terms, order, z, 24)
            if not picked:
                continue
            for members in _groups(picked, _related(vocabulary, picked, rows, embed), 8):
                add(members, direction, cluster[direction], rows)
            add(picked[:8], direction, cluster[direction], rows)
    for cluster, difference in _moved(composition, stable).items():
        rows = label == cluster
        z = log_odds(_spread(vocabulary, rows), _spread(vocabulary, ~rows), prior)
        order = np.argsort(-z, kind="stable")
        picked = _without_overlap(vocabulary.terms, order[z[order] >= LEAST_Z], z, 8)
        if picked:
            add(picked, "intervention" if difference > 0 else "base", cluster, rows, theme=True)

    for form in FORMS:
        held = form.holds(texts["text"].tolist())
        if held.sum() < 3:
            continue
        for direction in SIDES:
            score = _score(held, prompt_ids, side, direction)
            if score >= LEAST_Z:
                chosen = held & (side == direction)
                evidence = tuple(map(str, ids[chosen][:10]))
                hypothesis = Hypothesis(f"{form.says} more often", direction, -1, evidence, "keywords", (form.word,))
                found.append(_Scored(hypothesis, score, held))

    ranked = sorted((s for s in found if s.score > 0), key=lambda s: (-s.score, s.hypothesis.hypothesis_id))
    return merge([s.hypothesis for s in ranked], held=[s.held for s in ranked])[:limit]


def moved_answers(
    members: pd.DataFrame, stable: Sequence[int], least: int = 6, most: int = 4
) -> dict[tuple[int, int], pd.DataFrame]:
    """Matched clusters: (cluster of the base, another of the intervention) to the answers of the prompts that moved.

    ``members``: text_id, side, prompt_id, text, cluster. A prompt counts for a pair of ``stable`` clusters when its
    first text of each side lies there; pairs with at least ``least`` prompts are kept, the ``most`` frequent ones.
    """
    inside = members[members["cluster"].isin(list(stable))].sort_values("text_id", kind="stable")
    first = inside.drop_duplicates(["prompt_id", "side"])
    base, changed = (first[first["side"] == side].set_index("prompt_id")["cluster"] for side in SIDES)
    both = pd.concat([base.rename("base"), changed.rename("intervention")], axis=1, join="inner")
    both = both[both["base"] != both["intervention"]]
    counts = both.groupby(["base", "intervention"]).size().sort_values(ascending=False, kind="stable")
    found = {}
    for a, b in counts[counts >= least].index[:most]:
        prompts = both.index[(both["base"] == a) & (both["intervention"] == b)]
        here = inside["prompt_id"].isin(prompts)
        place = np.where(inside["side"] == "base", inside["cluster"] == a, inside["cluster"] == b)
        found[int(a), int(b)] = inside[here & place]
    return found


def _totals(shares: dict[str, sp.csr_matrix]) -> dict[str, np.ndarray]:
    return {side: np.asarray(s.sum(axis=0)).ravel() for side, s in shares.items()}


def _spread(vocabulary: Vocabulary, rows: np.ndarray) -> np.ndarray:
    return np.asarray(vocabulary.holds[rows].sum(axis=0), dtype=np.float64).ravel()


def _stable(composition: pd.DataFrame | None, least: float) -> set[int]:
    if composition is None:
        return set()
    good = composition[(composition["cluster"] >= 0) & (composition["stability"] >= least)]
    return set(good["cluster"].astype(int))


def _moved(composition: pd.DataFrame | None, stable: set[int]) -> dict[int, float]:
    """Stable clusters whose share of the two sides differs by more than its interval: cluster to difference."""
    if composition is None or not {"difference", "low", "high"} <= set(composition.columns):
        return {}
    table = composition[composition["cluster"].isin(stable)]
    table = table[(table["low"] > 0) | (table["high"] < 0)]
    return dict(zip(table["cluster"].astype(int), table["difference"].astype(float), strict=True))


def _evidence(
    vocabulary: Vocabulary, members: list[int], ids: np.ndarray, prompt: np.ndarray, rows: np.ndarray, limit: int = 10
) -> tuple[str, ...]:
    """Texts with most of the words, one per prompt first."""
    keep = np.flatnonzero(rows)
    hits = np.asarray(vocabulary.holds[keep][:, members].sum(axis=1)).ravel()
    order = sorted((i for i in range(len(keep)) if hits[i] > 0), key=lambda i: (-hits[i], ids[keep[i]]))
    seen: set[str] = set()
    first, later = [], []
    for i in order:
        (later if prompt[keep[i]] in seen else first).append(str(ids[keep[i]]))
        seen.add(prompt[keep[i]])
    return tuple((first + later)[:limit])


# ---------------------------------------------------------------------------------------------------------------- merge


def _alike(a: Iterable[str], b: Iterable[str], least: float) -> bool:
    one, two = set(a), set(b)
    return bool(one | two) and len(one & two) / len(one | two) >= least


def merge(
    hypotheses: Sequence[Hypothesis], least: float = 0.5, held: Sequence[np.ndarray] | None = None
) -> list[Hypothesis]:
    """Drop near-duplicates, keeping the first of each and all evidence (at most ten ids).

    Two hypotheses are near-duplicates when their direction is the same and at least half of all their words are
    shared (of their lexicons where both have one, else of their sentences), or when they hold of nearly the same
    texts: ``held`` says of each which, ``[texts]`` booleans. A person's hypothesis is never merged into another.
    """
    kept: list[tuple[Hypothesis, np.ndarray | None]] = []
    for h, texts in zip(hypotheses, held if held is not None else [None] * len(hypotheses), strict=True):
        for i, (k, others) in enumerate(kept):
            by_words = bool(h.words and k.words)
            one, two = (h.words, k.words) if by_words else (tokenize(h.text), tokenize(k.text))
            same = _alike(one, two, least if by_words else 0.7) or _together(texts, others) >= SAME_TEXTS
            if same and h.direction == k.direction and h.proposer != "person":
                kept[i] = replace(k, evidence=tuple(dict.fromkeys(k.evidence + h.evidence))[:10]), others
                break
        else:
            kept.append((h, texts))
    return [h for h, _ in kept]


def _together(one: np.ndarray | None, two: np.ndarray | None) -> float:
    """Correlation over texts of what holds of them; 0 where one holds of all or of none."""
    if one is None or two is None or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
