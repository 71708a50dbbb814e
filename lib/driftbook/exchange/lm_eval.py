"""Samples of lm-evaluation-harness: ``samples_<task>_<date>.jsonl`` as ``--log_samples`` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        texts = responses[0] if responses and isinstance(responses[0], list) else responses
        texts = [t for t in texts if isinstance(t, str)]
        for text in texts or [None]:
            yield Answer(prompt, text, f"{task}/{document}", task)


def _prompt(arguments: Any, where: str) -> str | list[dict[str, str]]:
    """The context, in the two ways that it was logged; with a chat API it is a list of messages as JSON."""
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    context = first["arg_0"] if isinstance(first, dict) else first[0] if isinstance(first, list) else first
    if isinstance(context, list):
        context = context[0]  # of a chat API: the JSON, in a list
    if isinstance(context, str) and context.startswith('[{"role"'):
        return turns(json.loads(context), where)
    return str(context)
