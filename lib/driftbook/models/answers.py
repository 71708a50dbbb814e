"""Requests in words and answers in words, for sides whose model is not in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from driftbook.models.loading import LoadedModel
from driftbook.models.local import Completion, LocalEngine, Request, Tap
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt


@dataclass(frozen=True)
class Question(Request):
    """A request that also says what is asked in words. ``sample`` counts the texts of one prompt and side from 0."""

    prompt: Prompt | None = None
    sample: int = 0


@dataclass(frozen=True)
class Answer(Completion):
    """A completion whose ``text`` is what was said; ``token_ids`` are the reading model's tokens of it."""

    text: str = ""


class Engine(Protocol):
    """What answers requests: the local engine, vLLM, a server, a table.

    ``generate`` yields a completion per request, in the order in which they finish. Sampling parameters mean the same
    in all engines; one that cannot hold to a parameter raises DriftbookError.
    """

    name: str

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]: ...


class ModelInWords:
    """A model of this process that answers in words, for another one to read: their tokens or layers differ."""

    name = "local"

    def __init__(self, model: LoadedModel, reader: LoadedModel):
        self.model, self.reader = model, reader

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Answer]:
        """One answer a request, to the prompt as the answering model gets it."""
        asked = []
        for request in requests:
            assert isinstance(request, Question) and request.prompt is not None
            p = request.prompt
            ids = self.model.encode_prompt(p.text, p.system, p.chat() if p.messages else None)
            asked.append(Request(tuple(ids), request.seed))
        for done in LocalEngine(self.model).generate(asked, params):
            text = self.model.decode(done.token_ids)
            tokens = read_tokens(self.reader, requests[done.index], text)
            yield Answer(done.index, tokens, done.finish_reason, text)


def read_tokens(reader: LoadedModel, request: Request, text: str) -> list[int]:
    """The reader's tokens of an answer, as far as they fit behind the prompt in its context."""
    ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(i) for i in ids[: max(0, reader.context - len(request.prompt_ids))]]


def text_of(completion: Completion) -> str | None:
    """What was said, where the engine answers in words; None where the tokens are the answer."""
    return completion.text if isinstance(completion, Answer) else None
