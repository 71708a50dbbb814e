"""A judge behind a chat endpoint: it rates single texts, or says which of two texts shows a statement more."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from driftbook.chat import ChatClient
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.levels import VALUES, Mode, expectation
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.replies import Answer, Quote, read_levels, verdict_schema

SCHEMA = 3  # raise it when the meaning of a stored answer changes


@dataclass
class Question:
    """One call, asked again while statements lack a verdict: what is read, and which cells of the result it fills."""

    endpoint: ChatClient
    rubric: str
    body: str
    statements: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]  # (row, column) of the result for each statement
    scale: dict[str, float]
    retries: int
    flip: bool = False  # pair mode: the second text was shown as A
    logprobs: bool = True
    structured: bool = True
    cut: bool = False  # the reply ended at its limit of tokens
    values: list[float] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.values = [float("nan")] * len(self.statements)

    def request(self, sample: int) -> dict[str, Any]:
        statements = "\n".join(f"{i + 1}. The answer {s}" for i, s in enumerate(self.statements))
        messages = [
            {"role": "system", "content": self.rubric},
            {"role": "user", "content": f"{self.body}\n<statements>\n{statements}\n</statements>"},
        ]
        # another sample of an answer that could not be parsed must be able to differ
        levels = tuple(self.scale) if self.logprobs else ()
        form = verdict_schema(len(self.statements), tuple(self.scale)) if self.structured else None
        return self.endpoint.request(messages, sample, 0.7 if sample else 0.0, form, levels) | {"schema": SCHEMA}

    def next(self) -> dict[str, Any] | None:
        return self.request(self.asked) if np.isnan(self.values).any() and self.asked <= self.retries else None

    def receive(self, answer: Answer | None) -> None:
        self.asked += 1
        found = read_levels(answer.text, len(self.values), self.scale, self.body) if answer and answer.answered else []
        for i, value in enumerate(found):
            told = (answer.levels or {}).get(str(i + 1))
            if told and self.scale[max(told, key=told.__getitem__)] == value:  # else they are of another place
                found[i] = expectation(told, self.scale)
        self.values = [f if np.isnan(v) else v for v, f in zip(self.values, found or self.values, strict=True)]
        if answer is None or answer.reason != "stop":  # to ask again would bring the same, and cost as much
            self.asked = self.retries + 1
            self.cut = answer is not None and answer.answered


class EndpointJudge:
    """HIGH, MID or LOW per text (``mode: single``), or which of two texts shows it more, asked in both orders
    (``mode: pair``). With ``logprobs`` a server that gives the probabilities of its tokens is heard by the expectation
    over levels, any other by the level that it writes.

    ``per_call`` hypotheses share a call, in an order that differs from text to text. ``structured``: a JSON schema of
    the verdict is sent, where the server takes it. A reply without a verdict is asked for again up to ``retries``
    times, one that ended at its limit of tokens is not; what then has no verdict is missing, never one half.
    """

    paid = True

    def __init__(
        self,
        endpoint: ChatClient,
        *,
        per_call: int = 1,
        mode: Mode = "single",
        rubric: str | None = None,
        retries: int = 2,
        logprobs: bool = True,
        structured: bool = True,
    ) -> None:
        self.endpoint, self.name, self.per_call, self.mode = endpoint, endpoint.name, per_call, mode
        self.retries, self.logprobs, self.structured = retries, logprobs, structured
        self.rubric = rubric or shipped(mode)
        self.identity = {
            "kind": "endpoint",
            "schema": SCHEMA,
            "model": endpoint.model,
            "base_url": endpoint.base_url,
            "mode": mode,
            "per_call": per_call,
            "rubric": self.rubric,
            "max_tokens": endpoint.max_tokens,
            "retries": retries,
            "logprobs": logprobs,
            "structured": structured,
            **({"extra_body": endpoint.extra} if endpoint.extra else {}),
        }

    def alone(self) -> EndpointJudge:
        """The same judge, asked about one hypothesis a call."""
        return EndpointJudge(
            self.endpoint,
            mode=self.mode,
            rubric=self.rubric,
            retries=self.retries,
            logprobs=self.logprobs,
            structured=self.structured,
        )

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """In pair mode: about as many calls as texts (matched pairs, both orders), each with two texts."""
        bodies = _single(texts, prompts)
        if self.mode == "pair":
            bodies = [2 * body for body in bodies]
        questions = [q for row, body in enumerate(bodies) for q in self._questions(body, row, hypotheses)]
        return self.endpoint.quote([q.request(0) for q in questions], 12 * self.per_call)

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """[texts, hypotheses] in {0, 1/2, 1}, NaN where no verdict could be had. Raises BudgetError at the cap."""
        if self.mode != "single":
            raise ValueError("a judge in pair mode compares; it does not score single texts")
        bodies = _single(texts, prompts)
        questions = [q for row, body in enumerate(bodies) for q in self._questions(body, row, hypotheses)]
        return self._verdicts(questions, (len(texts), len(hypotheses)))[0]

    def compare(
        self, first: Sequence[str], second: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str]
    ) -> np.ndarray:
        """How much ``first`` shows each hypothesis more than ``second`` does, [pairs, hypotheses]: mean of both
        orders."""
        questions = []
        for row, (one, two, prompt) in enumerate(zip(first, second, prompts, strict=True)):
            for flip in (False, True):
                a, b = (two, one) if flip else (one, two)
                body = f"<prompt>\n{prompt}\n</prompt>\n<answer_a>\n{a}\n</answer_a>\n<answer_b>\n{b}\n</answer_b>"
                questions += self._questions(body, row, hypotheses, flip)
        shown, flipped = self._verdicts(questions, (len(first), len(hypotheses)))
        return (shown + 1 - flipped) / 2

    def _questions(self, body: str, row: int, hypotheses: Sequence[Hypothesis], flip: bool = False) -> list[Question]:
        digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
        columns = sorted(
            range(len(hypotheses)),
            key=lambda c: hashlib.sha256(f"{digest}{hypotheses[c].hypothesis_id}".encode()).digest(),
        )
        chunks = [columns[i : i + self.per_call] for i in range(0, len(columns), self.per_call)]
        return [
            Question(
                self.endpoint,
                self.rubric,
                body,
                tuple(hypotheses[c].text for c in chunk),
                tuple((row, c) for c in chunk),
                VALUES[self.mode],
                self.retries,
                flip,
                self.logprobs,
                self.structured,
            )
            for chunk in chunks
        ]

    def _verdicts(self, questions: list[Question], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        self.endpoint.converse(questions)
        missing = sum(int(np.isnan(q.values).sum()) for q in questions)
        self.endpoint.ledger.note_verdicts(self.name, sum(len(q.cells) for q in questions), missing)
        if cut := sum(q.cut and np.isnan(q.values).any() for q in questions):
            warnings.warn(
                f"{self.name}: {cut} of {len(questions)} replies ended at their {self.endpoint.max_tokens} tokens "
                "before a verdict, which is missing: raise max_output_tokens",
                stacklevel=2,
            )
        result = np.full((2, *shape), np.nan)
        for question in questions:
            for (row, column), value in zip(question.cells, question.values, strict=True):
                result[int(question.flip), row, column] = value
        return result[0], result[1]


def _single(texts: Sequence[str], prompts: Sequence[str] | None) -> list[str]:
    asked = prompts if prompts is not None else [""] * len(texts)
    return [f"<prompt>\n{p}\n</prompt>\n<answer>\n{t}\n</answer>" for t, p in zip(texts, asked, strict=True)]
