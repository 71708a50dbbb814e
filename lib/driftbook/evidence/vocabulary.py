"""Every word of the answers, tested on all prompts.

Which words are tested is read off the answers of both sides together: those that enough prompts use on one side more
than on the other, whichever it is. That is the same however the sides of prompts are swapped, so no prompt has a part
in suggesting a direction and none has to be held out. Words are a family of their own with a part of the level
(``shared``): they cost the behaviours of the panel nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from driftbook.discovery.hypotheses import Hypothesis, alike, log_odds, tokenize
from driftbook.discovery.phrases import FUNCTION, KEPT, LEAST_Z
from driftbook.evidence.counting import count, scope_of
from driftbook.evidence.material import Material
from driftbook.evidence.multiplicity import bh_adjusted
from driftbook.evidence.outcomes import SAME, Outcome
from driftbook.evidence.swaps import upper_tail
from driftbook.parameters import Validate
from driftbook.prompts import SIDES

PART = 0.2  # of alpha that words have
MOST = 6  # words that are told as claims; all that are confirmed stand in the table
COLUMNS = ("word", "base", "intervention", "prompts", "p_value", "q_value", "confirmed", "told")


@dataclass(frozen=True)
class Words:
    """``table``: one row for each word that was tested, the surest first: word, base, intervention (mean over prompts
    of the share of answers that hold it), prompts (whose sides differ in it), p_value, q_value, confirmed, told.
    ``outcomes``: of the words that are told, as claims."""

    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    outcomes: tuple[Outcome, ...] = ()


def shared(material: Material, alpha: float) -> tuple[float, float]:
    """(level of what was named or proposed, level of the words). Words have none where a claim is about these prompts
    alone: there it is answers that are exchanged, not sides."""
    apart = scope_of(material.paired()[0]).name != "these prompts"
    return (alpha * (1 - PART), alpha * PART) if apart else (alpha, 0.0)


def words_test(material: Material, section: Validate, alpha: float, counted: Sequence[Outcome] = ()) -> Words:
    """Test every word on all prompts, two-sided, at the level ``alpha``.

    The test is that of ``paired.paired_test``; the correction is Benjamini and Hochberg's over the words whose least
    possible p-value could pass it alone (Tarone 1990, Gilbert 2005). Told are the ``MOST`` surest of those that say
    something new: no word of a confirmed claim of ``counted``, none that stands in nearly the same answers as one, none
    whose difference lies in answers that hold a surer word, and none that longer answers explain (log-odds, as of
    phrases).
    """
    texts, prompts = material.paired()
    if alpha <= 0 or not prompts:
        return Words()
    words, holds = _read(texts["text"])
    base, changed = _per_prompt(texts, prompts, holds)
    margin = section.margin_of("share")
    moved = (changed - base).tocsc()
    moved.data[np.abs(moved.data) < 1e-9] = 0
    moved.eliminate_zeros()
    differ = np.diff(moved.indptr)
    chosen = np.flatnonzero(differ >= _enough(differ, alpha))
    parts = [moved.data[moved.indptr[i] : moved.indptr[i + 1]] for i in chosen]
    p = np.array([_two_sided(d, len(prompts), margin) for d in parts])
    order = np.lexsort((np.array(words, dtype=str)[chosen], p))
    chosen, p = chosen[order], p[order]
    q = bh_adjusted(p)
    sides = [np.asarray(side.mean(axis=0)).ravel()[chosen] for side in (base, changed)]
    names = [words[i] for i in chosen]
    table = pd.DataFrame(
        dict(zip(COLUMNS, (names, *sides, differ[chosen], p, q, q <= alpha, False), strict=True))
    ).astype({"confirmed": bool})
    kept = _told(table[table["confirmed"]], holds[:, chosen].tocsc(), texts, counted)
    table["told"] = table.index.isin(kept)
    return Words(table, tuple(_outcomes(table.loc[kept], material, section, alpha)))


def _read(texts: Sequence[str]) -> tuple[list[str], sp.csc_matrix]:
    """(words, ones ``[texts, words]``): words with a letter, but those that English has for grammar only."""
    index: dict[str, int] = {}
    columns, starts = [], [0]
    for text in texts:
        columns += [index.setdefault(w, len(index)) for w in sorted(set(tokenize(text)) - FUNCTION)]
        starts.append(len(columns))
    shape = (len(starts) - 1, len(index))
    return list(index), sp.csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=shape).tocsc()


def _per_prompt(texts: pd.DataFrame, prompts: Sequence[str], holds: sp.csc_matrix) -> list[sp.csr_matrix]:
    """Share of each prompt's answers that hold each word, ``[prompts, words]`` a side."""
    number = pd.Series(np.arange(len(prompts)), index=list(prompts)).reindex(texts["prompt_id"]).to_numpy()
    side, found = texts["side"].to_numpy(), []
    for name in SIDES:
        rows = np.flatnonzero(side == name)
        weight = 1 / np.bincount(number[rows], minlength=len(prompts))[number[rows]]
        found.append(sp.csr_matrix((weight, (number[rows], rows)), shape=(len(prompts), len(texts))) @ holds)
    return found


def _enough(differ: np.ndarray, alpha: float) -> int:
    """The least number of prompts that differ from which on a word is tested: where k words reach it and all prompts
    of one differed in one direction, its p-value would be at most alpha / k."""
    least = 1
    while 2 * 0.5**least * (differ >= least).sum() > alpha:
        least += 1
    return least


def _two_sided(moved: np.ndarray, prompts: int, margin: float) -> float:
    """p of differences ``moved`` of so many prompts, those of the others 0."""
    if not margin:
        return min(1.0, 2 * upper_tail(moved if moved.sum() >= 0 else -moved)[0])
    whole = np.concatenate([moved, np.zeros(prompts - len(moved))])
    return min(1.0, 2 * min(upper_tail(sign * whole - margin)[0] for sign in (1, -1)))


def _told(sure: pd.DataFrame, holds: sp.csc_matrix, texts: pd.DataFrame, counted: Sequence[Outcome]) -> list[int]:
    """Rows of ``sure`` that are told as claims."""
    changed = (texts["side"] == "intervention").to_numpy()
    up, down = (np.asarray(holds[rows].sum(axis=0)).ravel() for rows in (changed, ~changed))
    sizes = np.array([len(tokenize(t)) for t in texts["text"]])
    odds = log_odds(up, down, up + down, totals=(sizes[changed].sum(), sizes[~changed].sum()))
    claims = [o for o in counted if o.confirmed]
    said = {(w, o.direction) for o in claims for phrase in o.hypothesis.words for w in tokenize(phrase)}
    scores = [pd.Series(o.scores, o.texts["text_id"]).reindex(texts["text_id"]).to_numpy() for o in claims]
    read = [(own, ~np.isnan(own)) for own in scores]
    seen = {side: np.zeros(len(texts), bool) for side in SIDES}
    kept: list[int] = []
    for i, row in zip(sure.index, sure.itertuples(), strict=True):
        side = "intervention" if row.intervention > row.base else "base"
        sign = 1 if side == "intervention" else -1
        held = holds[:, [i]].toarray().ravel() > 0
        new = held & ~seen[side]
        own = sign * (held[changed].mean() - held[~changed].mean())
        rest = sign * (new[changed].mean() - new[~changed].mean())
        if (row.word, side) in said or sign * odds[i] < LEAST_Z or rest < (1 - KEPT) * own:
            continue
        if any(abs(alike(held[known], own[known])) >= SAME for own, known in read):
            continue
        kept.append(i)
        seen[side] |= held
        if len(kept) == MOST:
            break
    return kept


def _outcomes(told: pd.DataFrame, material: Material, section: Validate, alpha: float) -> list[Outcome]:
    """The words as claims, each with what its own test has found."""
    directions = np.where(told["intervention"] > told["base"], "intervention", "base")
    found = [
        Hypothesis(f'says "{word}"', str(side), proposer="words", words=(word,))
        for word, side in zip(told["word"], directions, strict=True)
    ]
    outcomes = count(replace(material, hypotheses=found), section, alpha)
    own = zip(outcomes, told["p_value"], told["q_value"], strict=True)
    return [replace(o, confirmed=True, status="confirmed", p_value=p, q_value=q) for o, p, q in own]
