"""Outputs of OpenAI's batch API, and of those who copied it: a line a request, known by its ``custom_id``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, json_lines, key, said, turns


@READERS.register("openai-batch")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """An answer a choice of each request that succeeded. What was asked stands in the file that was sent, which
    ``--with requests=FILE`` names."""
    if "requests" not in options:
        raise DriftbookError(
            f"{path}: holds answers without what was asked; name the file that was sent: --with requests=FILE"
        )
    asked = {str(key(row, "custom_id", where)): (where, row) for where, row in json_lines(Path(options["requests"]))}
    for where, row in json_lines(path):
        name = str(key(row, "custom_id", where))
        if name not in asked:
            raise DriftbookError(f"{where}: no request {name!r} in {options['requests']}")
        place, request = asked[name]
        body = key(request, "body", place)
        prompt = body.get("messages", body.get("input"))  # chat completions; responses
        prompt = prompt if isinstance(prompt, str) else turns(prompt, place)
        for text in _texts(row):
            yield Answer(prompt, text, name, system=str(body.get("instructions") or ""))


def _texts(row: dict[str, Any]) -> list[str | None]:
    response = row.get("response") or {}
    body = response.get("body") or {}
    if row.get("error") or response.get("status_code", 200) != 200:
        return [None]
    if "output" in body:
        written = [said(item.get("content")) for item in body["output"] if item.get("type") == "message"]
        return ["".join(w for w in written if w) or None]
    return [said(choice["message"].get("content")) for choice in body.get("choices") or []] or [None]
