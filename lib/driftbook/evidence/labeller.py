"""A labeller behind a chat endpoint: it reads answers of both sides and proposes what one side does more.

Only texts of split discover are shown. Which side comes first is drawn anew for each question, so that the model's
preference for a place cannot become a direction. Later questions show the statements found so far and ask for others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from driftbook.chat import Chat
from driftbook.discovery.hypotheses import Hypothesis, merge
from driftbook.errors import DriftbookError
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.prompts import SIDES, Prompt
from driftbook.replies import Answer, json_objects

SCHEMA = 1


def parse(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """(statement, ONE or TWO, words) of each well-formed entry; the empty list where there is none."""
    found = []
    for entry in json_objects(text):
        if not isinstance(entry.get("statement"), str):
            continue
        statement = " ".join(entry["statement"].split()).rstrip(".")
        who = str(entry.get("who", "")).strip().upper()
        given = entry.get("words")
        words = (
            tuple(w.strip().lower() for w in given if isinstance(w, str) and w.strip())
            if isinstance(given, list)
            else ()
        )
        if 3 <= len(statement) <= 200 and who in ("ONE", "TWO"):
            found.append((statement, who, words[:8]))
    return found


@dataclass
class Reading:
    """One question: answers of both sides to some prompts. Asked again, up to ``retries`` times, while no finding can
    be read."""

    endpoint: Chat
    shown: pd.DataFrame  # prompt, base, intervention, and the ids of both texts
    cluster: Mapping[str, int]  # side to the cluster that its answers are from; -1: the whole split
    flip: bool  # the intervention is ONE
    known: tuple[str, ...] = ()
    rubric: str = field(default_factory=lambda: shipped("labeller"))
    retries: int = 2
    asked: int = 0
    found: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)

    def prompt(self) -> str:
        first, second = ("intervention", "base") if self.flip else ("base", "intervention")
        parts = []
        for row in self.shown.itertuples():
            one, two = getattr(row, first), getattr(row, second)
            parts.append(f"<prompt>{row.prompt}</prompt>\nONE <answer>{one}</answer>\nTWO <answer>{two}</answer>")
        if self.known:
            parts.append("Found already, look for other things:\n" + "\n".join(f"- {k}" for k in self.known))
        return "\n\n".join(parts)

    def next(self) -> dict[str, Any] | None:
        if self.found or self.asked > self.retries:
            return None
        messages = [{"role": "system", "content": self.rubric}, {"role": "user", "content": self.prompt()}]
        return self.endpoint.request(messages, self.asked, 0.0 if self.asked == 0 else 0.7) | {"schema": SCHEMA}

    def receive(self, answer: Answer | None) -> None:
        heard = answer is not None and answer.answered
        self.asked = self.asked + 1 if heard else self.retries + 1
        self.found = parse(answer.text) if answer is not None and heard else []

    def hypotheses(self) -> list[Hypothesis]:
        result = []
        for statement, who, words in self.found:
            direction = "intervention" if (who == "ONE") == self.flip else "base"
            evidence = tuple(self.shown[f"{direction}_id"])[:10]
            result.append(
                Hypothesis(statement, direction, self.cluster[direction], evidence, "llm", words, self.prompt())
            )
        return result


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
            "prompt": [prompts[p].shown() for p in both["prompt_id"]],
            "base": both["text_base"].tolist(),
            "intervention": both["text_intervention"].tolist(),
            "base_id": both["text_id_base"].tolist(),
            "intervention_id": both["text_id_intervention"].tolist(),
        }
    )


def propose(
    endpoint: Chat,
    texts: pd.DataFrame,
    prompts: Mapping[str, Prompt],
    clusters: Mapping[int, pd.DataFrame] | None = None,
    moved: Mapping[tuple[int, int], pd.DataFrame] | None = None,
    rounds: int = 3,
    count: int = 12,
    limit: int = 12,
    seed: int = 0,
) -> list[Hypothesis]:
    """Hypotheses of a language model, near-duplicates merged, at most ``limit``.

    ``texts``: text_id, side, prompt_id, text, of split discover only. ``rounds`` questions about the whole split, one
    after the other so that each knows what was found, on ``count`` prompts each; then, side by side, one within each
    of ``clusters`` (cluster id to its texts) and one between each pair of matched ones (``moved_answers``). Raises
    DriftbookError when texts of another split are among them, BudgetError at the cap.
    """
    if "split" in texts and (texts["split"] != "discover").any():
        raise DriftbookError("a labeller reads split discover only: texts of screen and validate must stay unseen")
    found: list[Hypothesis] = []

    def reading(table: pd.DataFrame, base: int, changed: int, salt: str) -> Reading:
        flip = hashlib.sha256(f"{salt} side".encode()).digest()[0] % 2 == 1
        known, cluster = tuple(h.text for h in found), {"base": base, "intervention": changed}
        return Reading(endpoint, pairs_to_show(table, prompts, count, salt), cluster, flip, known)

    for number in range(rounds):
        one = reading(texts, -1, -1, f"{seed} round {number}")
        if len(one.shown):
            endpoint.converse([one])
            found = merge([*found, *one.hypotheses()])
    local = [reading(t, c, c, f"{seed} cluster {c}") for c, t in sorted((clusters or {}).items())]
    local += [reading(t, a, b, f"{seed} clusters {a} {b}") for (a, b), t in sorted((moved or {}).items())]
    local = [one for one in local if len(one.shown)]
    endpoint.converse(local)
    for one in local:
        found = merge([*found, *one.hypotheses()])
    return found[:limit]


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
                self.done, self.name = True, name if 3 <= len(name) <= 80 else None


def name_phrases(endpoint: Chat, groups: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[str | None]:
    """What a model calls each group of (phrases, sentences that hold them): "praises the question"; None where it has
    no name for it. A name is for reading: what is tested stays the phrases. Raises BudgetError at the cap."""
    questions = [Naming(endpoint, phrases, sentences) for phrases, sentences in groups]
    endpoint.converse(questions)
    return [q.name for q in questions]
