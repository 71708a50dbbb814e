"""Conversations as JSONL: OpenAI's ``messages``, and ``conversations`` of ShareGPT."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, json_lines, turns

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@READERS.register("chat")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The last turn of the assistant answers all turns before it; a conversation without one has no text."""
    for where, row in json_lines(path):
        if "messages" in row:
            said = turns(row["messages"], where)
        elif "conversations" in row:
            given = [{"role": _ROLES.get(str(m.get("from"))), "content": m.get("value")} for m in row["conversations"]]
            if unknown := [n for n, turn in enumerate(given, 1) if turn["role"] is None]:
                raise DriftbookError(f"{where}: turn {unknown[0]} is from nobody known; known are {', '.join(_ROLES)}")
            said = turns(given, where)
        else:
            raise DriftbookError(f"{where}: neither messages (OpenAI) nor conversations (ShareGPT)")
        last = said.pop()["content"] if said and said[-1]["role"] == "assistant" else None
        yield Answer(said, last, str(row.get("id", "")), str(row.get("family") or row.get("category") or ""))
