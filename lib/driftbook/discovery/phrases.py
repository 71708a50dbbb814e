"""Phrases: what one side says more, each named with its place in the answer.

A phrase is a run of tokens within a clause. It counts once per answer, and the unit is the prompt: the statistic is
paired over prompts, ``sum(d) / sqrt(sum(d^2) + 1)`` with ``d`` the share of a prompt's answers of the intervention that
hold the phrase minus that of the base. Where nothing differs the sign of each ``d`` is a coin, so this is a z-score but
for the one, which dampens rare phrases (for one answer a side, McNemar's). Runs are counted all at once to find
candidates; each one that is proposed is read again by the measure that it will be tested on (``behaviours``), and
ranked by that. Nothing here tests anything; a proposal is only a proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import regex
import scipy.sparse as sp

from driftbook.behaviours import measure_from, values
from driftbook.behaviours.words import UNSPACED, WORD, fold, reading, sentences
from driftbook.discovery.hypotheses import MIN_STABILITY, SAME_TEXTS, Hypothesis, alike, log_odds
from driftbook.errors import DriftbookError
from driftbook.prompts import SIDES, SideName

Place = Literal["start", "opening", "closing", "anywhere"]
PLACES: tuple[Place, ...] = ("start", "opening", "closing", "anywhere")
LONGEST = 8  # tokens in a phrase
COMMON = 0.5  # share of the answers of each side that hold a word from which on it names nothing, in any language
LEAST_Z = 2.0  # of a phrase to be proposed
POOL = 300  # phrases a direction that are weighed against each other
KEPT = 0.8  # share of a phrase's answers, or of a difference, from which on a part of it says as much as the whole
SAME_MEANING = 0.65  # cosine of two phrases from which on they mean the same
GAIN = 1.1  # by which phrases that are counted together have to be stronger than the strongest of them
FROM_PROMPTS = 0.2  # share of a phrase's answers that are to prompts with its words, from which on it is the prompts'

# English words that name nothing, alone or with each other
_GRAMMAR = """
    a an the this that these those such some any each every all both either neither other another many much more
    most less least few several own same very just only also too so even still yet already then than there here now
    well i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our
    ours ourselves they them their theirs themselves one ones who whom whose which what whatever when where why how
    be am is are was were been being have has had having do does did doing done will would shall should can could
    may might must get gets got getting make makes made making let use used using go goes going i'm i've i'll i'd
    you're you've you'll you'd he's she's it's we're we've we'll they're they've that's there's here's what's who's
    let's isn't aren't wasn't weren't don't doesn't didn't and or but nor if because as until while although though
    since unless whether of at by for with about against between into through during before after above below to
    from up down in out on off over under again further once within without upon across along among around per via
    like two three thing things something anything everything someone way ways time times lot not no s t d ll m re
    ve
"""
FUNCTION = frozenset(_GRAMMAR.split())
# that no phrase which names something begins or ends with
BEGINS_NONE, ENDS_NONE = ["and", "or", "but", "nor", ","], ["and", "or", "but", "nor", "the", "a", "an", ","]
# that a phrase can do without at its end
_LOOSE = "a an the and or but that this any your my is are as if you have in with for some other which it ,"
LOOSE = frozenset(_LOOSE.split())

# -------------------------------------------------------------------------------------------------------------- tokens

_TOKEN = regex.compile(
    rf"""
      (?P<mark>^[\ \t]*\d{{1,3}}[.)](?=\s|$)) | (?P<lone>^[\ \t]*[-*+•–>](?=\s|$)) | (?P<sign>\#{{1,6}}|\*\*|```|,)
    | (?P<word>{WORD})
    | (?P<emoji>\p{{RI}}\p{{RI}}|\p{{Extended_Pictographic}}[\p{{EMod}}\p{{Extended_Pictographic}}\u200d\ufe0f]*)
    | (?P<end>[!?.…]+(?=[\s"'*_)\]]|$)|[!?。।॥؟۔።៕]|\n) | (?P<lone>[:;()"/—–]|(?<=\s)-(?=\s))
    """,
    regex.VERBOSE | regex.MULTILINE | regex.VERSION1,
)
_LETTER = regex.compile(r"\p{L}")
_SPEAKS = regex.compile(r"[\p{L}\p{Extended_Pictographic}\p{RI}--\d#*]", regex.VERSION1)  # marks alone: the panel
_NAMED = regex.compile(r"[\p{L}\p{N}]")
_UNSPACED = regex.compile(rf"[{UNSPACED}]", regex.VERSION1)


def tokens(text: str) -> tuple[list[str], list[int]]:
    """The folded tokens of a text, and of each the clause that it stands in: no phrase crosses the end of one.

    Tokens are words (``behaviours.words``), "!" and "?", emoji, commas, numbers of lists, marks of headings, bold type
    and code. Brackets, quotation marks, colons, dashes and bullets are none, and end a clause.
    """
    found: list[str] = []
    clauses: list[int] = []
    clause = 0
    for match in _TOKEN.finditer(fold(text)):
        kind, token = match.lastgroup, match.group()
        if kind in ("end", "lone"):
            if mark := next((c for c in token if c in "!?؟"), ""):
                found.append(mark)
                clauses.append(clause)
            clause += 1
            continue
        clause += kind == "emoji"
        found.append(token.strip())
        clauses.append(clause)
        clause += kind == "emoji"
    return found, clauses


def written(phrase: Sequence[str]) -> str:
    """A phrase as people write it."""
    text = ""
    for token in phrase:
        close = token in ("!", "?", "؟", ",") or (_UNSPACED.match(token) and _UNSPACED.match(text[-1:]))
        text += token if close or not text else f" {token}"
    return text


_STREAM = {"start": 0, "anywhere": 0, "opening": 1, "closing": 2}


def _streams(text: str) -> Iterator[tuple[int, list[str], list[int]]]:
    """(stream, tokens, clauses) of the whole answer (0), of its first (1) and of its last sentence (2)."""
    yield 0, *tokens(text)
    yield 1, *tokens(reading(text).opening)
    yield 2, *tokens(reading(text).closing)


# ------------------------------------------------------------------------------------------------------------ counting


@dataclass(frozen=True)
class Phrases:
    """Phrases that at least a few texts hold, and which text holds which where.

    ``tokens``: of each phrase. ``holds``: per place ones and zeros ``[texts, phrases]`` (sparse). ``asked``: ``[texts,
    phrases]``, held while the prompt holds every word of it that names something. ``hollow``: which phrases name
    nothing: they are proposed where answers start with them, and nowhere else.
    """

    tokens: list[tuple[str, ...]]
    holds: dict[Place, sp.csr_matrix]
    asked: sp.csr_matrix
    hollow: np.ndarray


def read_phrases(
    texts: Sequence[str], prompts: Sequence[str], side: np.ndarray, least: int = 3, longest: int = LONGEST
) -> Phrases:
    """Count the phrases of ``texts``; ``prompts`` and ``side`` ``[texts]`` are those of each text.

    A word names nothing if English has it for grammar only, or if more than half of the answers of both sides hold it.
    """
    index: dict[str, int] = {}
    number, clause, text, stream, begins, asked = [], [], [], [], [], []
    offset = 0
    given: dict[str, set[str]] = {}
    for row, (answer, prompt) in enumerate(zip(texts, prompts, strict=True)):
        if prompt not in given:
            given[prompt] = set(tokens(prompt)[0])
        of_prompt = given[prompt]
        for part, found, clauses in _streams(answer):
            if not found:
                continue
            number += [index.setdefault(token, len(index)) for token in found]
            clause += [offset + c for c in clauses]
            asked += [token in of_prompt for token in found]
            text += [row] * len(found)
            stream += [part] * len(found)
            first = next((i for i, token in enumerate(found) if _NAMED.search(token)), -1)
            begins += [i == first and part == 0 for i in range(len(found))]
            offset += clauses[-1] + 1
    words = np.array(list(index), dtype=object)
    one, clause_, row_ = (np.array(a, dtype=np.int64) for a in (number, clause, text))
    part_, begin_ = np.array(stream, dtype=np.int8), np.array(begins, dtype=bool)
    whole = part_ == 0
    empty = _hollow(words, one[whole], row_[whole], side)[one] if len(one) else np.zeros(0, dtype=bool)
    silent = empty | np.array(asked, dtype=bool)  # names nothing, or is the prompt's

    comma = (words == ",")[one]
    first, last = np.isin(words, BEGINS_NONE)[one], np.isin(words, ENDS_NONE)[one]
    speaks = np.array([_SPEAKS.search(w) is not None for w in words], dtype=bool)[one]
    names: list[tuple[str, ...]] = []
    hollow: list[np.ndarray] = []
    held_at: dict[str, list[np.ndarray]] = {place: [] for place in (*PLACES, "asked")}
    code, at = one.copy(), np.arange(len(one))
    for n in range(1, longest + 1):
        if not len(at):
            break
        kinds, gram = np.unique(code[at], return_inverse=True)
        inside = whole[at]
        pairs = np.unique(row_[at[inside]] * len(kinds) + gram[inside])
        often = np.bincount(pairs % len(kinds), minlength=len(kinds)) >= least
        at, gram = at[often[gram]], gram[often[gram]]

        example = np.zeros(len(kinds), dtype=np.int64)
        example[gram[::-1]] = at[::-1]
        nothing = _all(empty, example, n)
        bare = first[example] | last[np.minimum(example + n - 1, len(one) - 1)]
        bare = (bare & (~nothing | comma[example])) | _all(~speaks, example, n)
        bare |= empty[example] & comma[np.minimum(example + 1, len(one) - 1)] & (n > 1)  # "is, of course"
        opener = np.bincount(gram[begin_[at]], minlength=len(kinds)) >= least
        kept = often & ~bare & (~nothing | (opener & (n > 1)))
        column = np.cumsum(kept) - 1 + len(names)
        here, which = at[kept[gram]], column[gram[kept[gram]]]
        names += [tuple(words[one[i : i + n]]) for i in example[kept]]
        hollow.append(nothing[kept])
        for place in PLACES:
            mask = begin_[here] if place == "start" else part_[here] == _STREAM[place]
            held_at[place].append(np.stack([row_[here[mask]], which[mask]]))
        mask = whole[here] & _all(silent, here, n) & ~nothing[gram[kept[gram]]]
        held_at["asked"].append(np.stack([row_[here[mask]], which[mask]]))

        # a longer phrase is made of two that are frequent
        frequent, label = np.zeros(len(one) + 1, dtype=bool), np.zeros(len(one), dtype=np.int64)
        frequent[at], label[at] = True, gram
        at = at[at + n < len(one)]
        at = at[frequent[at + 1] & (clause_[at + n] == clause_[at])]
        code[at] = label[at] * len(words) + one[at + n]

    def matrix(place: str) -> sp.csr_matrix:
        rows, columns = np.concatenate(held_at[place], axis=1) if held_at[place] else np.zeros((2, 0), dtype=np.int64)
        table = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), len(names)))
        table.data[:] = 1  # a phrase counts once per answer
        return table

    return Phrases(
        names,
        {place: matrix(place) for place in PLACES},
        matrix("asked"),
        np.concatenate(hollow) if hollow else np.zeros(0, dtype=bool),
    )


def _all(flags: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    """Whether ``flags`` holds of all of the ``n`` tokens that begin ``at``."""
    result = np.ones(len(at), dtype=bool)
    for i in range(n):
        result &= flags[np.minimum(at + i, len(flags) - 1)]
    return result


def _hollow(words: np.ndarray, one: np.ndarray, row: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Which ``words`` name nothing: function words, commas, words of most answers on both sides."""
    pairs = np.unique(row * len(words) + one)
    most = np.ones(len(words), dtype=bool)
    for name in np.unique(side):
        own = pairs[side[pairs // len(words)] == name] % len(words)
        most &= np.bincount(own, minlength=len(words)) > COMMON * (side == name).sum()
    known = np.array([w in FUNCTION or w == "," for w in words], dtype=bool)
    return known | (most & np.array([_LETTER.search(w) is not None for w in words], dtype=bool))


# ------------------------------------------------------------------------------------------------------------- propose


class _Paired:
    """Differences over the prompts that both sides answered, paired; texts of other prompts do not count."""

    def __init__(self, prompt: np.ndarray, side: np.ndarray) -> None:
        both = np.intersect1d(prompt[side == "base"], prompt[side == "intervention"])
        self.prompts = len(both)
        self.weight: dict[str, np.ndarray] = {}  # [texts], 1 / texts of the prompt on its side
        pools = {}
        for name in SIDES:
            rows = np.flatnonzero((side == name) & np.isin(prompt, both))
            group = np.searchsorted(both, prompt[rows])
            weight = 1 / np.bincount(group, minlength=len(both))[group]
            pools[name] = sp.csr_matrix((weight, (group, rows)), shape=(len(both), len(prompt)))
            self.weight[name] = np.asarray(pools[name].sum(axis=0)).ravel()
        self.pool = pools["intervention"] - pools["base"]

    def z(self, held: Any) -> tuple[np.ndarray, np.ndarray]:
        """(z, sum of the differences) of each column of ``held`` ``[texts, columns]``; positive: intervention."""
        d = self.pool @ held
        if sp.issparse(d):
            total, square = np.asarray(d.sum(axis=0)).ravel(), np.asarray(d.multiply(d).sum(axis=0)).ravel()
        else:
            total, square = d.sum(axis=0), (d**2).sum(axis=0)
        return total / np.sqrt(square + 1), total


@dataclass(frozen=True)
class _Candidate:
    """A phrase at a place. ``held`` is bool ``[texts]``; ``z`` speaks for ``direction`` where it is positive, and
    ``beyond`` does so beyond what longer answers explain."""

    words: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    place: Place
    direction: SideName
    z: float
    beyond: float
    held: np.ndarray

    @property
    def strength(self) -> float:
        return float(_strength(self.z, self.beyond))


def propose(
    texts: pd.DataFrame,
    prompts: Mapping[str, str],
    clusters: pd.DataFrame | None = None,
    composition: pd.DataFrame | None = None,
    limit: int = 12,
    min_stability: float = MIN_STABILITY,
    embed: Callable[[list[str]], np.ndarray] | None = None,
) -> list[Hypothesis]:
    """Candidate hypotheses, strongest first, at most ``limit``, each a phrase with its place.

    ``texts``: text_id, side, prompt_id, text, of split discover only (a table with other splits is refused).
    ``prompts``: prompt id to prompt text; a phrase whose answers hold it because their prompts do is left out. With
    ``clusters`` (text_id, cluster) and ``composition`` (cluster, stability) a phrase says in which stable cluster most
    of its difference lies, if in one. ``embed`` (list of phrases to unit vectors) lets phrases that mean the same be
    counted together, besides those that have a word in common.
    """
    if "split" in texts and (texts["split"] != "discover").any():
        raise DriftbookError("hypotheses come from split discover only: texts of screen and validate must stay unseen")
    texts = texts.sort_values("text_id", kind="stable").reset_index(drop=True)
    if texts.empty:
        return []
    prompt, side = texts["prompt_id"].to_numpy(dtype=str), texts["side"].to_numpy(dtype=str)
    answers, asked = texts["text"].tolist(), [prompts.get(p, "") for p in prompt]
    paired = _Paired(prompt, side)
    if not paired.prompts:
        return []
    found = read_phrases(answers, asked, side)
    if not found.tokens:
        return []
    picked = [c for sign in (1, -1) for c in _distinct(_pool(found, paired, sign), paired, 2 * limit)]
    read = values([measure_from(_measure(c.words, c.place)) for c in picked], answers, asked)
    exact = [_counted(c, held, paired) for c, held in zip(picked, read.T > 0, strict=True)]
    exact = [c for c in exact if c.z >= LEAST_Z]
    exact += _together(exact, paired, embed)
    ranked = _best(exact, limit)
    where = _clusters(texts["text_id"], clusters, composition, min_stability)
    return [_hypothesis(c, texts, paired, where) for c in ranked]


def _strength(z: Any, beyond: Any) -> Any:
    """Between how plain a difference is and how little of it longer answers explain; sums over rows in another order
    differ in the last digits."""
    return np.round((z + np.minimum(z, beyond)) / 2, 9)


def _pool(found: Phrases, paired: _Paired, sign: int) -> list[_Candidate]:
    """The strongest phrases of one direction, each at the place where its difference is, strongest first.

    Longer answers hold more of every phrase, so a phrase that is held anywhere is as strong as its log-odds among all
    phrases (Monroe, Colaresi & Quinn 2008), where these are less than its z. No answer has more than one beginning.
    """
    z, total = np.zeros((2, len(PLACES), len(found.tokens)))
    for row, place in enumerate(PLACES):
        table = found.holds[place]
        z[row], total[row] = paired.z((table - table.multiply(found.asked)).tocsr())
        if place != "start":
            z[row, found.hollow] = total[row, found.hollow] = 0
    z, total = sign * z, sign * total
    place = z.argmax(axis=0)
    for row in range(len(PLACES) - 2, -1, -1):  # the narrower place where it holds most of the difference
        place[(total[row] >= KEPT * total.max(axis=0)) & (total[row] > 0)] = row
    up, down = (paired.weight[name] @ found.holds["anywhere"] for name in ("intervention", "base"))
    words = np.array([len(t) == 1 for t in found.tokens])
    odds = sign * log_odds(up, down, up + down, totals=(up[words].sum(), down[words].sum()))
    beyond = np.where(place == len(PLACES) - 1, odds, np.inf)
    z = z[place, np.arange(z.shape[1])]
    often = np.asarray(found.holds["anywhere"].sum(axis=0)).ravel()
    z[np.asarray(found.asked.sum(axis=0)).ravel() > FROM_PROMPTS * often] = 0
    names = np.array([written(t) for t in found.tokens], dtype=str)
    possible = np.flatnonzero(z >= LEAST_Z)
    order = possible[np.lexsort((names[possible], -_strength(z, beyond)[possible]))][:POOL]
    direction: SideName = "intervention" if sign > 0 else "base"
    columns = {p: found.holds[p].tocsc() for p in PLACES}
    return [
        _Candidate(
            (str(names[i]),), (found.tokens[i],), PLACES[place[i]], direction, float(z[i]), float(beyond[i]),
            columns[PLACES[place[i]]][:, [i]].toarray().ravel() > 0,
        )
        for i in order
    ]  # fmt: skip


def _inside(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    n = len(short)
    return n < len(long) and any(long[i : i + n] == short for i in range(len(long) - n + 1))


def _distinct(pool: list[_Candidate], paired: _Paired, limit: int) -> list[_Candidate]:
    """The strongest phrases that say different things.

    A phrase gives way to a longer one that holds ``KEPT`` of its answers. One that holds of nearly the same texts as a
    stronger one, or whose difference is mostly that of stronger ones which share a naming word with it, is left out.
    """
    kept: list[_Candidate] = []
    by_tokens = {c.tokens[0]: c for c in pool}
    for head in pool:
        if len(kept) == limit:
            break
        longer = [
            c
            for c in pool
            if _inside(head.tokens[0], c.tokens[0]) and (c.held & head.held).sum() >= KEPT * head.held.sum()
        ]
        one = max(longer, key=lambda c: (len(c.tokens[0]), c.strength), default=head)
        one = next((c for c in map(by_tokens.get, _trimmed(one.tokens[0])) if c and _mostly(c, one)), one)
        if any(alike(one.held, k.held) > SAME_TEXTS for k in kept):
            continue
        related = [k.held for k in kept if _naming(one) & _naming(k)]
        if related:
            rest = one.held & ~np.logical_or.reduce(related)
            if abs(paired.z(rest[:, None].astype(np.float64))[0][0]) < KEPT * one.z:
                continue
        kept.append(one)
    return kept


def _mostly(shorter: _Candidate, longer: _Candidate) -> bool:
    return bool((shorter.held & longer.held).sum() >= KEPT * shorter.held.sum())


def _trimmed(phrase: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Shorter phrases without the loose words at the end of one, and without its article, the shortest first."""
    end = len(phrase)
    while end > 1 and phrase[end - 1] in LOOSE:
        end -= 1
    for size in range(end, len(phrase) + 1):
        if phrase[0] in ("a", "an", "the", "and", "or") and phrase[-1] != "of" and size > 1:
            yield phrase[1:size]
        yield phrase[:size]


def _naming(candidate: _Candidate) -> set[str]:
    words = {w for tokens_ in candidate.tokens for w in tokens_}
    return {w for w in words if w not in FUNCTION and _LETTER.search(w)} or words


def _measure(words: Sequence[str], place: Place) -> dict[str, Any]:
    return {"kind": "words", "words": list(words), "place": place, "unit": "share"}


def _counted(c: _Candidate, held: np.ndarray, paired: _Paired) -> _Candidate:
    """The candidate as its measure counts it: ``held`` is bool ``[texts]``."""
    z = float(paired.z(held[:, None].astype(np.float64))[0][0])
    return replace(c, z=z if c.direction == "intervention" else -z, held=held)


def _together(found: list[_Candidate], paired: _Paired, embed: Callable | None) -> list[_Candidate]:
    """Up to three phrases of one direction and place that have a naming word in common, or that mean the same, counted
    as one where that tells the sides apart better than the strongest of them. (Phrases that merely stand in the same
    answers are no name together.)"""
    themes, used = [], set()
    order = sorted(range(len(found)), key=lambda i: (-found[i].strength, found[i].words))
    vectors = np.asarray(embed([c.words[0] for c in found])) if embed is not None and found else None
    for head in order:
        one, members = found[head], [head]
        for i in order:
            c = found[i]
            if i in used or i == head or head in used or (c.direction, c.place) != (one.direction, one.place):
                continue
            related = bool(_naming(one) & _naming(c))
            related |= vectors is not None and float(vectors[head] @ vectors[i]) >= SAME_MEANING
            if related and len(members) < 3:
                members.append(i)
        if len(members) == 1:
            continue
        chosen = [found[i] for i in members]
        theme = replace(
            one,
            words=tuple(c.words[0] for c in chosen),
            tokens=tuple(c.tokens[0] for c in chosen),
            beyond=min(c.beyond for c in chosen),
        )
        theme = _counted(theme, np.logical_or.reduce([c.held for c in chosen]), paired)
        if theme.strength >= GAIN * one.strength:
            used.update(members)
            themes.append(theme)
    return themes


def _best(found: list[_Candidate], limit: int) -> list[_Candidate]:
    """The strongest first, none that holds of nearly the same texts as a stronger one, or that is a part of it."""
    kept: list[_Candidate] = []
    for c in sorted(found, key=lambda c: (-c.strength, c.direction, c.place, c.words)):
        same = [k for k in kept if k.direction == c.direction]
        part = any(set(c.words) <= set(k.words) and c.place == k.place for k in same)
        if not part and not any(alike(c.held, k.held) > SAME_TEXTS for k in same):
            kept.append(c)
    return kept[:limit]


def _clusters(
    ids: pd.Series, clusters: pd.DataFrame | None, composition: pd.DataFrame | None, least: float
) -> np.ndarray | None:
    """The stable cluster of each text, -1 where it is in none."""
    if clusters is None or composition is None:
        return None
    good = composition[(composition["cluster"] >= 0) & (composition["stability"] >= least)]
    stable = set(good["cluster"].astype(int))
    table = dict(zip(clusters["text_id"], clusters["cluster"], strict=True))
    return np.array([c if (c := int(table.get(i, -1))) in stable else -1 for i in ids])


def _hypothesis(c: _Candidate, texts: pd.DataFrame, paired: _Paired, where: np.ndarray | None) -> Hypothesis:
    sign = {c.direction: 1.0}
    weight = sum(sign.get(name, -1.0) * paired.weight[name] for name in SIDES) * c.held  # sums to the difference
    cluster = -1
    if where is not None:
        for number in np.unique(where[where >= 0]):
            inside = where == number
            if inside.mean() <= 0.5 and weight[inside].sum() >= KEPT * weight.sum():
                cluster = int(number)
    own = texts[c.held & (texts["side"] == c.direction).to_numpy()]
    first = ~own.duplicated("prompt_id")
    evidence = tuple(map(str, pd.concat([own[first], own[~first]])["text_id"][:10]))
    return Hypothesis(
        said(c.words, c.place), c.direction, cluster, evidence, "phrases", c.words, None, _measure(c.words, c.place)
    )


def said(words: Sequence[str], place: Place) -> str:
    """A claim in words: ``opens with "what a"``."""
    quoted = [f'"{w}"' for w in words]
    listed = " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
    if place == "start":
        return f"opens with {listed}"
    if place == "opening":
        return f"says {listed} in its first sentence"
    if place == "closing":
        whole = min(len(w.split()) for w in words) > 2
        return f"ends with {listed}" if whole else f"says {listed} in its last sentence"
    return f"says {listed}"


def examples(hypothesis: Hypothesis, texts: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The phrase in context: text_id, prompt_id, sentence, of at most ``count`` of its evidence texts, prompts first.

    ``texts``: text_id, prompt_id, text. The sentence is the one that holds the phrase, at its place.
    """
    measure = measure_from({**(hypothesis.measure or {}), "place": "anywhere"})
    place = (hypothesis.measure or {}).get("place")
    known = texts.set_index("text_id")
    rows = []
    for text_id in [i for i in hypothesis.evidence if i in known.index][:count]:
        found = sentences(known.at[text_id, "text"])
        found = {"start": found[:1], "opening": found[:1], "closing": found[-1:]}.get(place, found)
        sentence = next((s for s in found if measure.read(s, "") > 0), "")
        rows.append((text_id, known.at[text_id, "prompt_id"], sentence))
    return pd.DataFrame(rows, columns=["text_id", "prompt_id", "sentence"])
