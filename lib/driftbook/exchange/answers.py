"""What a format gives: answers with what was asked, from whatever a tool wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.sections import Registry


@dataclass(frozen=True)
class Answer:
    """One answer. ``prompt`` is a text or chat messages, ``id`` what the tool calls the question (empty: nothing);
    ``text`` is None where the tool kept none (an error, a score of options). ``side`` is set by a file that holds both.
    """

    prompt: str | list[dict[str, str]]
    text: str | None
    id: str = ""
    family: str = ""
    system: str = ""
    side: str = ""


Options = Mapping[str, str]
"""What the command line was given beside the paths: ``--with name=value``."""
Reader = Callable[[Path, Options], Iterator[Answer]]

READERS: Registry[Reader] = Registry()
"""Name of a format to what reads one file of it. Raises DriftbookError for a file that is none."""


def contents(path: Path) -> str:
    """The text of a file, without the mark that some put before it. Raises DriftbookError for what is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise DriftbookError(
            f"{path}: no text in UTF-8 ({reason.reason} at byte {reason.start}); cut off, or of another format?"
        ) from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not empty. Raises DriftbookError for one that is no JSON object."""
    for number, line in enumerate(contents(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", parsed(line, f"{path}:{number}")


def parsed(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as reason:
        raise DriftbookError(f"{where}: not JSON ({reason})") from None
    if not isinstance(value, dict):
        raise DriftbookError(f"{where}: is {type(value).__name__}, not an object")
    return value


def key(row: Mapping[str, Any], name: str, where: str) -> Any:
    """``row[name]``. Raises DriftbookError where it is missing."""
    if name not in row:
        raise DriftbookError(f"{where}: no {name!r}; there are {', '.join(map(str, row))}")
    return row[name]


def said(content: Any) -> str | None:
    """The text of a chat message's content: a string, or a list of parts of which those of type text count."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") in ("text", "output_text")]
        return "".join(map(str, parts)) if parts else None
    return content if isinstance(content, str) else None


def turns(messages: Any, where: str) -> list[dict[str, str]]:
    """Chat messages with plain contents; developer's are the system's. Raises DriftbookError for what is none."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise DriftbookError(f"{where}: expected a list of messages with role and content")
    return [
        {"role": "system" if m["role"] == "developer" else str(m["role"]), "content": said(m.get("content")) or ""}
        for m in messages
    ]
