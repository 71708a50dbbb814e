"""``kind: endpoint``: a model behind a chat server rates single texts, or says which of two shows a statement more."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from driftbook.evidence.levels import VALUES, Mode, expectation
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.judges.told import Told, pair_body, single_bodies
from driftbook.replies import Answer, read_levels, verdict_schema
from driftbook.sections import Cost, JudgeOpening, Quote, Server, judge

if TYPE_CHECKING:
    import numpy as np

    from driftbook.chat import ChatClient
    from driftbook.discovery.hypotheses import Hypothesis

SCHEMA = 3  # raise it when the meaning of a stored answer changes


@judge
class Endpoint(Told, Server):
    """Any OpenAI-compatible server."""

    kind: Literal["endpoint"] = "endpoint"
    base_url: str
    model: str
    usd_per_million_input: float = Field(0.0, ge=0)
    usd_per_million_output: float = Field(0.0, ge=0)
    per_call: int = Field(1, ge=1, description="hypotheses asked in one call")
    logprobs: bool = Field(True, description="hear the probabilities of the levels where the server gives them")
    structured: bool = Field(True, description="ask for the form of the reply, where the server knows JSON schemas")

    def open(self, opening: JudgeOpening) -> EndpointJudge:
        asked = {"per_call": self.per_call, "logprobs": self.logprobs, "structured": self.structured}
        return EndpointJudge(self.talk(opening), mode=self.mode, rubric=self.instructions(opening), **asked)

    def talk(self, opening: JudgeOpening) -> ChatClient:
        from driftbook.chat import ChatClient  # numpy; parameters are read without it

        return ChatClient(
            f"{self.model} ({opening.role})",
            self.model,
            self.base_url,
            opening.ledger,
            api_key_env=self.api_key_env,
            usd_in=self.usd_per_million_input,
            usd_out=self.usd_per_million_output,
            concurrency=self.concurrency,
            max_tokens=self.max_output_tokens,
            timeout=self.timeout_s,
            extra_body=self.extra_body,
            template_args=self.template_args,
            progress=opening.progress,
        )

    def cost(self, texts: int, hypotheses: int, answer_tokens: int) -> Cost:
        calls = math.ceil(hypotheses / self.per_call) * texts
        shown = 2 if self.mode == "pair" else 1
        given = FRAME_TOKENS + shown * answer_tokens + 40 * self.per_call
        written = min(self.max_output_tokens, 10 + 15 * self.per_call)
        usd = calls * (given * self.usd_per_million_input + written * self.usd_per_million_output) / 1e6
        return Cost(calls, usd, calls / self.concurrency)  # about a second a call


FRAME_TOKENS = 250  # of a rubric, and of the marks around what is judged


@dataclass
class Question:
    """One call, asked again while statements lack a verdict: what is read, and which cells of the result it fills."""

    judge: EndpointJudge
    body: str
    statements: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]  # (row, column) of the result for each statement
    flip: bool = False  # pair mode: the second text was shown as A
    values: list[float] = field(default_factory=list)
    asked: int = 0
    cut: bool = False  # the reply ended at its limit of tokens

    def __post_init__(self) -> None:
        self.values = [float("nan")] * len(self.statements)

    @property
    def missing(self) -> int:
        return sum(map(math.isnan, self.values))

    def request(self, sample: int) -> dict[str, Any]:
        statements = "\n".join(f"{i + 1}. The answer {s}" for i, s in enumerate(self.statements))
        messages = [
            {"role": "system", "content": self.judge.rubric},
            {"role": "user", "content": f"{self.body}\n<statements>\n{statements}\n</statements>"},
        ]
        levels = tuple(self.judge.scale)
        form = verdict_schema(len(self.statements), levels) if self.judge.structured else None
        heard = levels if self.judge.logprobs else ()
        # another sample of an answer that could not be parsed must be able to differ
        asked = self.judge.endpoint.request(messages, sample, 0.7 if sample else 0.0, form, heard)
        return asked | {"schema": SCHEMA}

    def next(self) -> dict[str, Any] | None:
        return self.request(self.asked) if self.missing and self.asked <= self.judge.retries else None

    def receive(self, answer: Answer | None) -> None:
        self.asked += 1
        if answer is None or answer.reason != "stop":  # to ask again would bring the same, and cost as much
            self.asked = self.judge.retries + 1
            self.cut = answer is not None and answer.answered
        if answer is None or not answer.answered:
            return
        scale = self.judge.scale
        found = read_levels(answer.text, len(self.values), scale, self.body)
        for i, value in enumerate(found):
            told = (answer.levels or {}).get(str(i + 1))
            if told and scale[max(told, key=told.__getitem__)] == value:  # else they are of another place
                found[i] = expectation(told, scale)
        self.values = [f if math.isnan(v) else v for v, f in zip(self.values, found, strict=True)]


class EndpointJudge:
    """HIGH, MID or LOW per text (``mode: single``), or which of two texts shows it more, asked in both orders
    (``mode: pair``). With ``logprobs`` a server that gives the probabilities of its tokens is heard by the expectation
    over levels, any other by the level that it writes.

    ``per_call`` hypotheses share a call, in an order that differs from text to text. ``structured``: a JSON schema of
    the verdict is sent, where the server takes it. A reply without a verdict is asked for again up to ``retries``
    times, one that ended at its limit of tokens is not; what then has no verdict is missing, never one half.
    """

    paid, resolution = True, Told.resolution
    bodies = staticmethod(single_bodies)

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
        self.scale, self.rubric = VALUES[mode], rubric or shipped(mode)
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
        asked = {"retries": self.retries, "logprobs": self.logprobs, "structured": self.structured}
        return EndpointJudge(self.endpoint, mode=self.mode, rubric=self.rubric, **asked)

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """In pair mode: about as many calls as texts (matched pairs, both orders), each with two texts."""
        bodies = self.bodies(texts, prompts)
        if self.mode == "pair":
            bodies = [2 * body for body in bodies]
        questions = [q for row, body in enumerate(bodies) for q in self._questions(body, row, hypotheses)]
        return self.endpoint.quote([q.request(0) for q in questions], 12 * self.per_call)

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """[texts, hypotheses] in [0, 1], NaN where no verdict could be had. Raises BudgetError at the cap."""
        if self.mode != "single":
            raise ValueError("a judge in pair mode compares; it does not score single texts")
        bodies = self.bodies(texts, prompts)
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
                body = pair_body(two, one, prompt) if flip else pair_body(one, two, prompt)
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
            Question(self, body, tuple(hypotheses[c].text for c in chunk), tuple((row, c) for c in chunk), flip)
            for chunk in chunks
        ]

    def _verdicts(self, questions: list[Question], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np  # parameters are read without it

        self.endpoint.converse(questions)
        asked, missing = (sum(n) for n in (map(len, (q.cells for q in questions)), (q.missing for q in questions)))
        self.endpoint.ledger.note_verdicts(self.name, asked, missing)
        if cut := sum(q.cut and q.missing > 0 for q in questions):
            warnings.warn(
                f"{self.name}: {cut} of {len(questions)} replies ended at their {self.endpoint.max_tokens} tokens "
                "before a verdict, which is missing: raise max_output_tokens",
                stacklevel=3,
            )
        result = np.full((2, *shape), np.nan)
        for question in questions:
            for (row, column), value in zip(question.cells, question.values, strict=True):
                result[int(question.flip), row, column] = value
        return result[0], result[1]
