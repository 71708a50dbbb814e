"""A language model as labeller: it reads pairs of answers to one prompt, and what differs becomes axes with two poles.

Only texts of split discover are shown, one pair a call. Which side is A is drawn for each pair, so that a preference
for a place cannot become a direction. What it finds counts where it quotes the answer that it speaks of. Differences
that say the same are one axis, whose poles are what each side does; an axis that most pairs agree on is a hypothesis,
on the measure that reads it where there is one.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import Measure, values
from driftbook.behaviours.words import fold, words
from driftbook.chat import Chat
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.judges.told import fenced
from driftbook.prompts import SIDES, Prompt
from driftbook.replies import Answer, json_objects

SCHEMA = 2
SHOWN = 1500  # characters of an answer that are shown, and 500 of its prompt: one short call a pair
SAME = 0.6  # cosine of two statements from which on they say the same
NEAR = 0.4  # of a statement and what a measure is called, from which on the measure may read it
MOVED = 0.75  # of the pairs behind an axis, those in which a measure has to move as the axis says
STEM = 5  # letters by which a word of a statement is one of its prompt
LEAST = 2  # pairs that an axis needs more of in its direction than against it

_SUBJECT = re.compile(r"^(?:the |this )?(?:answer|response|it)(?: [ab])?\b(?: is the one that)?\s*", re.IGNORECASE)
_LESS = re.compile(r"\b(?:less|fewer)\s+|^(?:does not|doesn't|lacks|avoids|omits|without|no)\s+", re.IGNORECASE)
_MORE = re.compile(r"\bmore\s+", re.IGNORECASE)
_MARKS = re.compile(r"[*_#>`~\s]+")
_ENDS = " \"'.…"


@dataclass(frozen=True)
class Difference:
    """What a model says that one of two answers does, and the words of that answer that show it."""

    statement: str
    side: str
    quote: str
    prompt_id: str
    text_id: str
    cluster: int = -1


@dataclass(frozen=True)
class Axis:
    """Differences that say the same: ``pole`` is what ``side`` does, ``other`` what the other side does instead (or
    empty), ``pairs`` and ``against`` the prompts behind either direction, ``of`` the differences of the pole."""

    pole: str
    other: str
    side: str
    pairs: int
    against: int
    of: tuple[Difference, ...]


@dataclass(frozen=True)
class Account:
    """What came of the pairs: differences that could be read, of these the ones quoted correctly, and axes."""

    pairs: int
    proposed: int
    quoted: int
    axes: int


def parse(text: str) -> list[tuple[str, str, str]]:
    """(A or B, what it does, quote) of each well-formed entry. What is said of both answers alike is no difference.

    Of a reply that was cut the last entry counts too where its quote was begun: small models copy whole answers.
    """
    found = []
    for entry in max((json_objects(text + end) for end in ("", "}", '"}')), key=len):
        who, does, quote = (entry.get(key) for key in ("answer", "does", "quote"))
        if all(isinstance(v, str) for v in (who, does, quote)) and who.strip().upper()[-1:] in ("A", "B"):
            said = statement(does)
            if 3 <= len(said) <= 120:
                found.append((who.strip().upper()[-1], said, quote.strip(_ENDS)))
    of_both = {said for _, said, _ in found if len({w for w, s, _ in found if s == said}) == 2}
    return list(dict.fromkeys(f for f in found if f[1] not in of_both))


def statement(does: str) -> str:
    """The verb phrase in what a model wrote: without its subject, its end, and what follows where it runs on."""
    said = _SUBJECT.sub("", " ".join(does.split())).strip(_ENDS)
    said = re.split(r",? (?:while|whereas|but) |; ", said)[0].strip(_ENDS)
    said = said if len(said) <= 80 else re.split(r"[,:]| by ", said)[0].strip(_ENDS)
    return said[:1].lower() + said[1:]


def is_quoted(quote: str, text: str) -> bool:
    """Whether the words stand in the text, whatever their case, spaces, emphasis and kind of quotation marks."""
    wanted, there = (_MARKS.sub(" ", fold(t)).strip() for t in (quote, text))
    return bool(re.search(r"\w", wanted)) and wanted in there


@dataclass
class Comparing:
    """One call: two answers to one prompt. Asked once more, at a temperature, where nothing can be read."""

    endpoint: Chat
    prompt: str
    answers: Mapping[str, tuple[str, str, str]]  # A and B: side, text id, text
    prompt_id: str = ""
    cluster: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, -1))
    rubric: str = field(default_factory=lambda: shipped("labeller"))
    retries: int = 1
    asked: int = 0
    found: list[tuple[str, str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        system, _, question = self.rubric.partition("\n\n")
        answers = ((who, text[:SHOWN]) for who, (_, _, text) in sorted(self.answers.items()))
        user = f"{fenced(('prompt', self.prompt[:500]), *answers)}\n\n{question}"
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def next(self) -> dict[str, Any] | None:
        if self.found or self.asked > self.retries:
            return None
        return self.endpoint.request(self.messages(), self.asked, 0.7 if self.asked else 0.0) | {"schema": SCHEMA}

    def receive(self, answer: Answer | None) -> None:
        heard = answer is not None and answer.answered
        self.asked = self.asked + 1 if heard else self.retries + 1
        self.found = parse(answer.text) if answer is not None and heard else []

    def quoted(self) -> list[Difference]:
        """The differences whose quote stands in the answer that they speak of."""
        found = []
        for who, said, quote in self.found:
            side, text_id, text = self.answers[who]
            if is_quoted(quote, text[:SHOWN]):
                found.append(Difference(said, side, quote, self.prompt_id, text_id, self.cluster[side]))
        return found


def pairs_to_show(texts: pd.DataFrame, prompts: Mapping[str, Prompt], count: int, salt: str) -> pd.DataFrame:
    """``count`` prompts with one answer of each side, chosen by a salted hash: the same texts in any order of rows."""

    def rank(text_id: str) -> bytes:
        return hashlib.sha256(f"{salt}\x1f{text_id}".encode()).digest()

    ranked = texts.assign(rank=[rank(t) for t in texts["text_id"]]).sort_values("rank")
    first = ranked.drop_duplicates(["prompt_id", "side"])
    base, changed = (first.loc[first["side"] == side, ["prompt_id", "text_id", "text"]] for side in SIDES)
    both = base.merge(changed, on="prompt_id", suffixes=("_base", "_intervention"))
    both = both.assign(rank=[rank(p) for p in both["prompt_id"]]).sort_values("rank").head(count)
    return pd.DataFrame(
        {
            "prompt_id": both["prompt_id"].tolist(),
            "prompt": [prompts[p].shown() for p in both["prompt_id"]],
            "base": both["text_base"].tolist(),
            "intervention": both["text_intervention"].tolist(),
            "base_id": both["text_id_base"].tolist(),
            "intervention_id": both["text_id_intervention"].tolist(),
        }
    )


Embed = Callable[[list[str]], np.ndarray]


def read_pairs(
    endpoint: Chat,
    texts: pd.DataFrame,
    prompts: Mapping[str, Prompt],
    clusters: Mapping[int, pd.DataFrame] | None = None,
    moved: Mapping[tuple[int, int], pd.DataFrame] | None = None,
    count: int = 24,
    inside: int = 3,
    seed: int = 0,
) -> tuple[list[Difference], Account]:
    """Differences that were quoted correctly, and what came of all: ``count`` pairs of the whole split, then ``inside``
    pairs of each of ``clusters`` (cluster id to its texts) and of each pair of matched ones (``moved_answers``).

    ``texts``: text_id, side, prompt_id, text, of split discover only. Raises DriftbookError when texts of another split
    are among them, BudgetError at the cap.
    """
    if "split" in texts and (texts["split"] != "discover").any():
        raise DriftbookError("a labeller reads split discover only: texts of screen and validate must stay unseen")
    asked: dict[tuple[str, str], Comparing] = {}
    places = [(texts, -1, -1, count, f"{seed} all")]
    places += [(t, c, c, inside, f"{seed} cluster {c}") for c, t in sorted((clusters or {}).items())]
    places += [(t, a, b, inside, f"{seed} clusters {a} {b}") for (a, b), t in sorted((moved or {}).items())]
    for table, base, changed, number, salt in places:
        for row in pairs_to_show(table, prompts, number, salt).itertuples():
            flip = hashlib.sha256(f"{salt} {row.prompt_id} side".encode()).digest()[0] % 2 == 1
            order = ("intervention", "base") if flip else ("base", "intervention")
            answers = {w: (s, getattr(row, f"{s}_id"), getattr(row, s)) for w, s in zip("AB", order, strict=True)}
            one = Comparing(endpoint, row.prompt, answers, row.prompt_id, {"base": base, "intervention": changed})
            asked.setdefault((row.base_id, row.intervention_id), one)
    calls = list(asked.values())
    endpoint.converse(calls)
    found = [d for one in calls for d in one.quoted()]
    return found, Account(len(calls), sum(len(one.found) for one in calls), len(found), 0)


def axes(found: Sequence[Difference], embed: Embed, prompts: Mapping[str, str]) -> list[Axis]:
    """Differences merged into axes, those with the most pairs behind their direction first. ``prompts``: prompt id to
    what was asked.

    Statements within ``SAME`` of each other are one, words that their prompts hold aside: small models say of every
    pair what it is about, too. One that says less, or that something is not done, counts for the
    other side. Two groups that are again and again said of the two answers of one pair are the poles of one axis.
    """
    if not found:
        return []
    other = {"base": "intervention", "intervention": "base"}
    less = [bool(_LESS.search(d.statement)) for d in found]
    cores = [_apart(_MORE.sub("", _LESS.sub("", d.statement)), prompts.get(d.prompt_id, "")) for d in found]
    group = _groups(np.asarray(embed(cores), dtype=np.float64))
    votes: dict[int, dict[str, set[str]]] = {g: {s: set() for s in SIDES} for g in group}
    for g, d, turned in zip(group, found, less, strict=True):
        votes[g][other[d.side] if turned else d.side].add(d.prompt_id)
    lean = {g: max(SIDES, key=lambda s, v=v: (len(v[s]), s)) for g, v in votes.items()}
    strength = {g: len(votes[g][lean[g]]) - len(votes[g][other[lean[g]]]) for g in votes}
    order = sorted(votes, key=lambda g: (-strength[g], g))
    result, taken = [], set()
    for g in order:
        if g in taken or strength[g] < LEAST:
            continue
        taken.add(g)
        mine = votes[g][lean[g]]
        facing = [
            h for h in order if h not in taken and lean[h] != lean[g] and len(votes[h][lean[h]] & mine) >= LEAST
            and 2 * len(votes[h][lean[h]] & mine) >= len(votes[h][lean[h]])
        ]  # fmt: skip
        taken |= set(facing[:1])
        said = [(n, d) for n, d, turned in zip(group, found, less, strict=True) if d.side == lean[n] and not turned]
        plain = [d for n, d in said if n == g]
        if plain:
            opposite = _common([d.statement for n, d in said if n in facing[:1]])
            against = len(votes[g][other[lean[g]]])
            pole = _common([d.statement for d in plain])
            result.append(Axis(pole, opposite, lean[g], len(mine), against, tuple(plain)))
    return result


def _apart(said: str, prompt: str) -> str:
    """A statement without the words of its prompt, by their first letters; as it is where too little would be left."""
    asked = {w[:STEM] for w in words(fold(prompt)) if len(w) >= STEM}
    kept = [w for w in words(fold(said)) if w[:STEM] not in asked]
    return " ".join(kept) if any(len(w) >= STEM for w in kept) else said


def _groups(vectors: np.ndarray) -> list[int]:
    """The group of each statement, by average linkage over cosines."""
    from sklearn.cluster import AgglomerativeClustering  # seconds

    if len(vectors) < 2:
        return [0] * len(vectors)
    linked = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - SAME)
    return linked.fit_predict(vectors).tolist()


def _common(said: Sequence[str]) -> str:
    """The most frequent of several statements; of equally frequent ones the shortest."""
    counts = Counter(said)
    return min(counts, key=lambda s: (-counts[s], len(s), s)) if counts else ""


def measure_of(
    axis: Axis,
    measures: Sequence[Measure],
    near: np.ndarray,
    texts: Mapping[tuple[str, str], str],
    prompts: Mapping[str, str],
) -> Measure | None:
    """The measure that reads an axis: near to it in words (``near`` [measures], cosines), and more on its side in
    ``MOVED`` of the pairs behind it. None where there is none, so that a judge has to.

    ``texts``: (prompt id, side) to the answer that was shown.
    """
    close = [m for m, cosine in zip(measures, near, strict=True) if cosine >= NEAR]
    asked = list(dict.fromkeys(d.prompt_id for d in axis.of))
    if not close or len(asked) < LEAST:
        return None
    sides = (axis.side, next(s for s in SIDES if s != axis.side))
    mine, others = (values(close, [texts[p, side] for p in asked], [prompts[p] for p in asked]) for side in sides)
    moved = (mine > others).mean(axis=0)
    best = max(range(len(close)), key=lambda i: (moved[i], near[measures.index(close[i])]))
    return close[best] if moved[best] >= MOVED else None


def propose(
    endpoint: Chat,
    texts: pd.DataFrame,
    prompts: Mapping[str, Prompt],
    embed: Embed,
    measures: Sequence[Measure] = (),
    clusters: Mapping[int, pd.DataFrame] | None = None,
    moved: Mapping[tuple[int, int], pd.DataFrame] | None = None,
    count: int = 24,
    inside: int = 3,
    limit: int = 12,
    seed: int = 0,
) -> tuple[list[Hypothesis], Account]:
    """Hypotheses of a language model, at most ``limit``, and what came of the pairs that it read (``read_pairs``).

    Each is a pole of an axis; the text names the other pole too, where there is one. It is tested on the one of
    ``measures`` that reads it (``measure_of``), else by a judge.
    """
    found, account = read_pairs(endpoint, texts, prompts, clusters, moved, count, inside, seed)
    asked = {p: prompts[p].shown() for p in texts["prompt_id"].unique()}
    kept = axes(found, embed, asked)[:limit]
    if not kept:
        return [], account
    labels = np.asarray(embed([m.label for m in measures])) if measures else np.zeros((0, 1))
    poles = np.asarray(embed([a.pole for a in kept]))
    by_id = dict(zip(texts["text_id"], texts["text"], strict=True))
    first = {(r.prompt_id, r.side): r.text for r in texts.sort_values("text_id").itertuples()}
    shown = first | {(d.prompt_id, d.side): by_id[d.text_id] for d in found}
    result = []
    for axis, pole in zip(kept, poles, strict=True):
        measure = measure_of(axis, measures, labels @ pole, shown, asked) if measures else None
        where = {d.cluster for d in axis.of}
        text = f"{axis.pole} rather than {axis.other}" if axis.other and measure is None else axis.pole
        quotes = "\n".join(f"{d.statement}: {d.quote}" for d in axis.of[:10])
        evidence = tuple(dict.fromkeys(d.text_id for d in axis.of))[:10]
        spec = {"kind": "judge"} if measure is None else measure.spec
        cluster = where.pop() if len(where) == 1 else -1
        result.append(Hypothesis(text, axis.side, cluster, evidence, "llm", (), quotes, spec))
    return result, Account(account.pairs, account.proposed, account.quoted, len(kept))


@dataclass
class Naming:
    """One question: what do these phrases show? Asked again, up to ``retries`` times, while no name can be read."""

    endpoint: Chat
    phrases: Sequence[str]
    sentences: Sequence[str]
    rubric: str = field(default_factory=lambda: shipped("name_phrases"))
    retries: int = 2
    asked: int = 0
    name: str | None = None
    done: bool = False

    def next(self) -> dict[str, Any] | None:
        if self.done or self.asked > self.retries:
            return None
        shown = [f"PHRASE {p}" for p in self.phrases] + [f"IN {s}" for s in self.sentences]
        material = "\n".join(" ".join(line.split()).replace("</phrases>", "") for line in shown)
        user = {"role": "user", "content": f"<phrases>\n{material}\n</phrases>"}
        messages = [{"role": "system", "content": self.rubric}, user]
        return self.endpoint.request(messages, self.asked, 0.0 if self.asked == 0 else 0.7) | {"schema": SCHEMA}

    def receive(self, answer: Answer | None) -> None:
        self.asked = self.asked + 1 if answer is not None else self.retries + 1
        for found in json_objects(answer.text if answer is not None else ""):
            if "name" in found:
                said = found["name"]
                name = " ".join(said.split()).rstrip(".") if isinstance(said, str) else ""
                copied = name in self.rubric  # a small model says again what it was shown
                self.done, self.name = True, name if 3 <= len(name) <= 80 and not copied else None


def name_phrases(endpoint: Chat, groups: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[str | None]:
    """What a model calls each group of (phrases, sentences that hold them): "praises the question"; None where it has
    no name for it. A name is for reading: what is tested stays the phrases. Raises BudgetError at the cap."""
    questions = [Naming(endpoint, phrases, sentences) for phrases, sentences in groups]
    endpoint.converse(questions)
    return [q.name for q in questions]
