"""The engine that answers with texts made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.models.answers import Answer, Engine, Question, Tap, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt
from driftbook.replies import split_thought
from driftbook.text_tables import TextTable


class TableEngine(Engine):
    """Answers as a table holds them: sample s of a prompt is the side's text number s.

    The reader's tokens of the text stand for the tokens that were sampled; ``finish_reason`` is ``eos``: what ended a
    text is not known, and it is complete as far as anyone can tell.
    """

    name = "texts"
    here = False

    def __init__(self, table: TextTable, side: str, reader: LoadedModel):
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
