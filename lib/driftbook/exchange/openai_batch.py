"""Outputs of OpenAI's batch API, and of those who copied it: a line a request, known by its ``custom_id``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, at, json_lines, key, said, turns


@READERS.register("openai-batch")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """An answer a choice of each request that succeeded. What was asked stands in the file that was sent, which
    ``--with requests=FILE`` names."""
    if "requests" not in options:
        raise DriftbookError(
            f"{path}: holds answers without what was asked; name the file that was sent: --with requests=FILE"
        )
    asked: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, row in json_lines(Path(options["requests"])):
        name = str(key(row, "custom_id", where))
        if name in asked:
            raise DriftbookError(f"{where}: custom_id {name!r} stands in {asked[name][0]} already")
        asked[name] = where, row
    for where, row in json_lines(path):
        name = str(key(row, "custom_id", where))
        if name not in asked:
            raise DriftbookError(f"{where}: no request {name!r} in {options['requests']}")
        place, request = asked[name]
        body = at(request, "body", dict, place) or {}
        prompt = body.get("messages", body.get("input"))  # chat completions; responses
        prompt = prompt if isinstance(prompt, str) else turns(prompt, place)
        for text in _texts(row, where):
            yield Answer(prompt, text, name, system=str(body.get("instructions") or ""), where=where)


def _texts(row: dict[str, Any], where: str) -> list[str | None]:
    if row.get("error") or str(at(row, "response.status_code", object, where) or 200) != "200":
        return [None]
    body = at(row, "response.body", dict, where) or {}
    if (output := at(body, "output", list, where)) is not None:
        messages = [n for n in range(len(output)) if at(output, f"{n}.type", str, where) == "message"]
        return ["".join(filter(None, (said(output[n].get("content")) for n in messages))) or None]
    choices = at(body, "choices", list, where) or []
    told = [at(choices, f"{n}.message", dict, where) or {} for n in range(len(choices))]
    texts = [(said(one.get("content")), at(one, "refusal", str, where)) for one in told]
    return [refusal if text is None else text for text, refusal in texts] or [None]
