"""The engine that answers with texts made elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from driftbook.errors import DriftbookError
from driftbook.models.answers import Answer, Engine, Question, Tap, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt
from driftbook.replies import split_thought
from driftbook.text_tables import TextTable


class Unread:
    """In the place of a model that reads a table's answers, for a stage that only hands them on: without weights they
    have no tokens, and their words are all that is needed."""

    context, device = sys.maxsize, torch.device("cpu")
    marks = None
    record: Mapping[str, Any] = MappingProxyType({})

    def encode_prompt(self, *_: Any) -> list[int]:
        return []

    def encode_answer(self, text: str) -> list[int]:
        return []


class TableEngine(Engine):
    """Answers as a table holds them: sample s of a prompt is the side's text number s.

    The reader's tokens of the text, if it has any, stand for the tokens that were sampled; ``finish_reason`` is
    ``eos``: what ended a text is not known, and it is complete as far as anyone can tell.
    """

    name = "texts"
    here = False

    def __init__(self, table: TextTable, side: str, reader: LoadedModel | Unread):
        self.table, self.side, self.reader = table, side, reader

    def available(self, prompt: Prompt) -> int:
        """How many texts both sides have for a prompt."""
        return self.table.samples(prompt.prompt_id)

    def generate(self, requests: Sequence[Any], params: SamplingParams, taps: Sequence[Tap] = ()) -> Iterator[Answer]:
        """One answer a request. Sampling parameters do not apply to texts that are there already.

        Raises:
            DriftbookError: a prompt or a sample that the table does not hold.
        """
        for index, request in enumerate(requests):
            assert isinstance(request, Question) and request.prompt is not None
            held = self.table.texts.get((self.side, request.prompt.prompt_id), [])
            if request.sample >= len(held):
                raise DriftbookError(
                    f"intervention.path {self.table.path}: {len(held)} texts of side {self.side} for the prompt "
                    f"{request.prompt.text[:60]!r}, and {request.sample + 1} are asked for; lower samples"
                )
            text = held[request.sample]
            thought, answer = split_thought(text)
            ended = "cut" if thought and not answer else "eos"  # inside of its thought
            yield Answer(index, read_tokens(self.reader, request, answer), ended, answer, thought)
