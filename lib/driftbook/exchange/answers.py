"""What a format gives: answers with what was asked, from whatever a tool wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from driftbook.conversations import read_conversation
from driftbook.errors import DriftbookError
from driftbook.files import json_rows, parsed_json, read_text
from driftbook.sections import Registry

K = TypeVar("K")


@dataclass(frozen=True)
class Answer:
    """One answer. ``prompt`` is a text or chat messages, ``id`` what the tool calls the question (empty: nothing);
    ``text`` is None where the tool kept none (an error, a score of options), and so is ``prompt``. ``side`` is set by a
    file that holds both; ``where`` is the place in the file.
    """

    prompt: str | list[dict[str, str]] | None
    text: str | None
    id: str = ""
    family: str = ""
    system: str = ""
    side: str = ""
    where: str = ""


Options = Mapping[str, str]
"""What the command line was given beside the paths: ``--with name=value``."""
Reader = Callable[[Path, Options], Iterator[Answer]]

READERS: Registry[Reader] = Registry()
"""Name of a format to what reads one file of it. Raises DriftbookError for a file that is none."""


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not empty. Raises DriftbookError for one that is no JSON object."""
    for number, row in json_rows(read_text(path), str(path)):
        if isinstance(row, str):
            raise DriftbookError(row)
        yield f"{path}:{number}", row


def document(text: str, where: str, kind: type[K]) -> K:
    """One JSON document. Raises DriftbookError where it is none, or none of that kind."""
    value = parsed_json(text, where)
    if not isinstance(value, kind):
        raise DriftbookError(f"{where}: is {type(value).__name__}, not {kind.__name__}")
    return value


def key(row: Mapping[str, Any], name: str, where: str) -> Any:
    """``row[name]``. Raises DriftbookError where it is missing."""
    if name not in row:
        raise DriftbookError(f"{where}: no {name!r}; there are {', '.join(map(str, row))}")
    return row[name]


def at(value: Any, place: str, kind: type[K], where: str) -> K | None:
    """What stands at a place such as ``output.choices.0.message``; None where it is missing or null.

    Raises DriftbookError for what is of another kind, there or on the way.
    """
    for step in place.split("."):
        if isinstance(value, list) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(step)
        elif value is not None:
            break
    else:
        if value is None or isinstance(value, kind):
            return value
    raise DriftbookError(f"{where}: {place} cannot be read; what stands there is a {type(value).__name__}")


def said(content: Any) -> str | None:
    """The text of a chat message's content: a string, or a list of parts of which those of type text count."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") in ("text", "output_text")]
        return "".join(map(str, parts)) if parts else None
    return content if isinstance(content, str) else None


def turns(messages: Any, where: str) -> list[dict[str, str]]:
    """Messages of any form that ``conversations`` reads, with plain contents, the system prompt first. Raises
    PromptError for what is none."""
    found = read_conversation(messages, where)
    head = [{"role": "system", "content": found.system}] if found.system else []
    return head + [{"role": turn.role, "content": turn.content} for turn in found.turns]
