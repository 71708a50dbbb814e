"""``model_outputs.json`` of AlpacaEval: a list of instruction, output and generator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, contents, key


@READERS.register("alpaca-eval")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """An answer an instruction; the family is the data set."""
    try:
        rows = json.loads(contents(path))
    except ValueError as reason:
        raise DriftbookError(f"{path}: not JSON ({reason})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DriftbookError(f"{path}: expected a list of objects with instruction and output")
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        text = key(row, "output", where)
        yield Answer(str(key(row, "instruction", where)), text if isinstance(text, str) else None,
                     family=str(row.get("dataset") or ""))  # fmt: skip
