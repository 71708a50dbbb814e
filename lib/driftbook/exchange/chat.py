"""Conversations as JSONL: OpenAI's ``messages``, and ``conversations`` of ShareGPT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftbook.conversations import held
from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, json_lines, turns


@READERS.register("chat")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The last turn of the assistant answers all turns before it; a conversation without one has no text."""
    for where, row in json_lines(path):
        if (messages := held(row)) is None:
            raise DriftbookError(f"{where}: neither messages (OpenAI) nor conversations (ShareGPT)")
        said = turns(messages, where)
        last = said.pop()["content"] if said[-1:] and said[-1]["role"] == "assistant" else None
        name, family = str(row.get("id", "")), str(row.get("family") or row.get("category") or "")
        yield Answer(said or None, last, name, family, where=where)
