"""Samples of lm-evaluation-harness: ``samples_<task>_<date>.jsonl`` as ``--log_samples`` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driftbook.conversations import spelled
from driftbook.exchange.answers import READERS, Answer, Options, json_lines, key, turns

_NAME = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?")


@READERS.register("lm-eval")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The first response of each document that the task generated; a row that only scored options has no text. Several
    filters repeat a document: its responses count once. The family is the task."""
    named = _NAME.fullmatch(path.stem)
    task = named["task"] if named else path.stem
    of = None  # the first filter
    for where, row in json_lines(path):
        document, filtered = key(row, "doc_id", where), row.get("filter")
        of = filtered if of is None else of
        if filtered != of:
            continue
        prompt = _prompt(key(row, "arguments", where), where)
        responses = key(row, "resps", where)
        if isinstance(responses, list) and responses and isinstance(responses[0], list):
            responses = responses[0]
        texts = [t for t in _listed(responses) if isinstance(t, str)]
        for text in texts or [None]:
            yield Answer(prompt, text, f"{task}/{document}", task, where=where)


def _prompt(arguments: Any, where: str) -> str | list[dict[str, str]] | None:
    """The context, in the two ways that it was logged; with a chat API it is a list of messages as JSON."""
    first = arguments
    for _ in range(3):  # requests, arguments of one; of a chat API the JSON, in a list
        held = spelled(first)
        if held is not first:
            return turns(held, where)
        if isinstance(first, dict):
            first = first.get("arg_0", next(iter(first.values()), None))
        else:
            first = next(iter(_listed(first)), None)
    held = spelled(first)
    return turns(held, where) if held is not first else first if isinstance(first, str) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
