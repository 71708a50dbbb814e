"""The generative check: texts are written that show a claim and texts that do not, and both models read them.

If a claim describes what changed in the model, and not only what a judge sees in its answers, then the model that is
claimed to do it more finds the first kind likelier, relative to the second, than the other model does. Who writes: the
labeller, where one is configured; else the claim's own words, put in the place of others of like frequency.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from driftbook.chat import Chat
from driftbook.discovery.hypotheses import Hypothesis, tokenize
from driftbook.evidence.intervals import summary_interval
from driftbook.evidence.rubrics import rubric
from driftbook.prompts import Prompt
from driftbook.replies import Answer, json_objects

SCHEMA = 1
OPENING = 8  # words of an answer before the word that is put in
COLUMNS = ("hypothesis_id", "text", "direction", "writer", "prompts", "pairs", "preferred", "low", "high", "verdict")


class Written(NamedTuple):
    """Two texts for one prompt: one shows the claim, the other does not."""

    prompt_id: str
    shows: str
    shows_not: str


def _rank(*parts: str) -> bytes:
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).digest()


def written_with_words(
    hypothesis: Hypothesis, seen: pd.DataFrame, avoid: Sequence[str], prompts: int, per_prompt: int = 1
) -> list[Written]:
    """The beginnings of answers, followed by a word of the claim or by another word that is about as frequent.

    ``seen``: texts of split discover (text_id, prompt_id, text); ``avoid``: words of other claims, which are no
    controls. One answer per prompt, of either side, chosen by hash. Empty for a claim without plain words.
    """
    plain = sorted({w.lower() for w in hypothesis.words if not (len(w) > 2 and w[0] == w[-1] == "/")})
    frequency: dict[str, int] = {}
    for text in seen["text"]:
        for word in set(tokenize(text)):
            frequency[word] = frequency.get(word, 0) + 1
    shunned = {t for w in (*plain, *avoid) for t in tokenize(w)}
    others = sorted(w for w in frequency if w not in shunned)
    if not plain or not others:
        return []
    ranked = seen.assign(rank=[_rank(hypothesis.hypothesis_id, t) for t in seen["text_id"]]).sort_values("rank")
    written = []
    for row in ranked.drop_duplicates("prompt_id").head(prompts).itertuples():
        opening = " ".join(row.text.split()[:OPENING])
        order = sorted(plain, key=lambda w, r=row: _rank(r.text_id, w))
        for word in order[:per_prompt]:
            count = min((frequency.get(t, 0) for t in tokenize(word)), default=0)
            near = sorted(others, key=lambda w, c=count, r=row: (abs(frequency[w] - c), _rank(r.text_id, w)))
            control = near[int.from_bytes(_rank(row.text_id, word)[:2]) % min(5, len(near))]
            written.append(Written(row.prompt_id, f"{opening} {word}", f"{opening} {control}"))
    return written


@dataclass
class Writing:
    """One request to a labeller: two answers to a prompt. Asked again while they cannot be read."""

    endpoint: Chat
    hypothesis: Hypothesis
    prompt: Prompt
    retries: int = 2
    asked: int = 0
    found: list[Written] = field(default_factory=list)

    def next(self) -> dict[str, Any] | None:
        if self.found or self.asked > self.retries:
            return None
        user = f"<prompt>\n{self.prompt.shown()}\n</prompt>\nStatement: the answer {self.hypothesis.text}."
        messages = [{"role": "system", "content": rubric("write")}, {"role": "user", "content": user}]
        return self.endpoint.request(messages, self.asked, 0.7) | {"schema": SCHEMA}

    def receive(self, answer: Answer | None) -> None:
        if answer is None or not answer.answered:
            self.asked = self.retries + 1
            return
        self.asked += 1
        for pair in json_objects(answer.text):
            texts = [pair.get(k) for k in ("shows", "shows_not")]
            if all(isinstance(t, str) and t.strip() for t in texts):
                self.found = [Written(self.prompt.prompt_id, *texts)]


def written_by_labeller(endpoint: Chat, hypothesis: Hypothesis, prompts: Sequence[Prompt]) -> list[Written]:
    """Two answers to each prompt, in the words of the labeller."""
    asked = [Writing(endpoint, hypothesis, p) for p in prompts]
    endpoint.converse(asked)
    return [written for one in asked for written in one.found]


def preferred(
    hypothesis: Hypothesis,
    written: Sequence[Written],
    ratio: Callable[[Sequence[tuple[str, str]]], np.ndarray],
) -> dict[str, Any]:
    """How often the claimed side prefers the text that shows the claim more than the other side does.

    ``ratio`` gives log p(text | prompt) of the intervention minus that of the base for (prompt id, text) pairs. The
    mean is taken over prompts, with an interval over prompts; a tie is one half. ``verdict``: ``told apart``
    above one half, ``not told apart`` else.
    """
    asked = [(w.prompt_id, t) for w in written for t in (w.shows, w.shows_not)]
    gained = np.asarray(ratio(asked)).reshape(-1, 2) * (1 if hypothesis.direction == "intervention" else -1)
    won = (gained[:, 0] > gained[:, 1]) + (gained[:, 0] == gained[:, 1]) / 2
    per_prompt = pd.Series(won).groupby([w.prompt_id for w in written]).mean()
    found = summary_interval(per_prompt.to_numpy())
    return {
        "prompts": len(per_prompt),
        "pairs": len(written),
        "preferred": found.estimate,
        "low": found.low,
        "high": found.high,
        "verdict": "told apart" if found.low > 0.5 else "not told apart",
    }
