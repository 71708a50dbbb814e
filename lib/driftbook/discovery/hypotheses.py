"""Hypotheses: structured claims about what one side does more often, and the measure that each is tested on.

``discovery.phrases`` proposes them from texts, ``evidence.labeller`` asks a model for them, and people write them. Here
are what all share: the record and its table, near-duplicates, and the words of texts weighed by log-odds with an
informative Dirichlet prior (Monroe, Colaresi & Quinn 2008, "Fightin' Words"), which name clusters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
import regex
import scipy.sparse as sp

from driftbook.behaviours.words import unspaced, words
from driftbook.errors import DriftbookError
from driftbook.prompts import SIDES, SideName

COLUMNS = ("hypothesis_id", "text", "direction", "cluster", "evidence", "proposer", "words", "prompt", "measure")

MIN_STABILITY = 0.6  # below it a cluster dissolves when prompts are drawn anew (Hennig 2007)
SAME_TEXTS = 0.6  # correlation over texts from which on two lexicons say one thing in other words

_LETTER = regex.compile(r"\p{L}")
_CLAUSE = re.compile(r"[.!?;:,()\[\]\"“”\n。！？；：，、；।॥؟،؛۔]+")


@dataclass(frozen=True)
class Hypothesis:
    """A claim that the side ``direction`` does what ``text`` says more than the other side does.

    ``cluster`` is -1 for the whole split; ``words`` is the lexicon that a deterministic judge counts; ``evidence`` are
    ids of texts that led to it; ``prompt`` is what a model was asked when it proposed the text. ``measure`` is what the
    claim is tested on, JSON-able: ``{"kind": "words", "words", "place", "unit"}``, ``{"kind": "panel", "name"}``,
    ``{"kind": "group", "group", "label", "place"}`` or ``{"kind": "judge"}``. Where it is not given, it is the share of
    answers that hold one of ``words``, and without words a judge's.
    """

    text: str
    direction: SideName
    cluster: int = -1
    evidence: tuple[str, ...] = ()
    proposer: Literal["phrases", "keywords", "groups", "amplified", "promoted", "words", "panel", "llm", "person"] = (
        "phrases"
    )
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
    """The folded words of a text (``behaviours.words``) that hold a letter."""
    return [w for w in words(text) if _LETTER.search(w)]


def features(text: str, prompt: str = "") -> set[str]:
    """Words and two-word phrases (within a clause) of a text, without those that the prompt itself holds."""

    def grams(string: str) -> set[str]:
        found: set[str] = set()
        for clause in _CLAUSE.split(string):
            said = tokenize(clause)
            found.update(said)
            found.update(f"{a}{'' if unspaced(a) and unspaced(b) else ' '}{b}" for a, b in pairwise(said))
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


def log_odds(
    up: np.ndarray,
    down: np.ndarray,
    background: np.ndarray,
    strength: float = 0.1,
    totals: tuple[float, float] | None = None,
) -> np.ndarray:
    """z-scores of the weighted log-odds ratio with an informative Dirichlet prior; arguments and result are [words].

    ``up`` and ``down`` are counts on both sides, ``background`` counts that give the prior its shape; the prior
    weighs ``strength`` times as much as the data. ``totals`` are the sizes of both sides, where they are not the sums
    of the counts (which phrases that overlap inflate). Positive where ``up`` has more.
    """
    sizes = totals or (up.sum(), down.sum())
    total = sum(sizes)
    if total == 0:
        return np.zeros(len(up))
    whole = background.sum() if totals is None else total
    prior = np.maximum(strength * total * background / max(whole, 1e-12), 0.01)
    mass = prior.sum() if totals is None else strength * total

    def logit(y: np.ndarray, size: float) -> np.ndarray:
        return np.log((y + prior) / np.maximum(size + mass - y - prior, 0.01))  # of all other words

    return (logit(up, sizes[0]) - logit(down, sizes[1])) / np.sqrt(1 / (up + prior) + 1 / (down + prior))


# --------------------------------------------------------------------------------------------------------------- moved


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


# ---------------------------------------------------------------------------------------------------------------- merge


def _alike(a: Iterable[str], b: Iterable[str], least: float) -> bool:
    one, two = set(a), set(b)
    return bool(one | two) and len(one & two) / len(one | two) >= least


def merge(
    hypotheses: Sequence[Hypothesis], least: float = 0.5, held: Sequence[np.ndarray] | None = None
) -> list[Hypothesis]:
    """Drop near-duplicates, keeping the first of each and all evidence (at most ten ids).

    Two hypotheses are near-duplicates when their direction is the same and at least half of all their words are
    shared (of their lexicons where both have one and look for it at the same place, else of their sentences), or when
    they hold of nearly the same texts: ``held`` says of each which, ``[texts]`` booleans. To open with a phrase and to
    say it anywhere are two claims, unless the same answers do both. A person's hypothesis is never merged into another.
    """
    kept: list[tuple[Hypothesis, np.ndarray | None]] = []
    for h, texts in zip(hypotheses, held if held is not None else [None] * len(hypotheses), strict=True):
        for i, (k, others) in enumerate(kept):
            by_words = bool(h.words and k.words)
            one, two = (h.words, k.words) if by_words else (tokenize(h.text), tokenize(k.text))
            same = _place(h) == _place(k) and _alike(one, two, least if by_words else 0.7)
            same = same or alike(texts, others) >= SAME_TEXTS
            if same and h.direction == k.direction and h.proposer != "person":
                kept[i] = replace(k, evidence=tuple(dict.fromkeys(k.evidence + h.evidence))[:10]), others
                break
        else:
            kept.append((h, texts))
    return [h for h, _ in kept]


def _place(hypothesis: Hypothesis) -> Any:
    return (hypothesis.measure or {}).get("place", "anywhere")


def alike(one: np.ndarray | None, two: np.ndarray | None) -> float:
    """Correlation over texts of what holds of them; 0 where one holds of all or of none."""
    if one is None or two is None or one.std() == 0 or two.std() == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])
