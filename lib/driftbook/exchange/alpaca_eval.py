"""``model_outputs.json`` of AlpacaEval: a list of instruction, output and generator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, key
from driftbook.files import parsed_json, read_text


@READERS.register("alpaca-eval")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """An answer an instruction; the family is the data set."""
    rows = parsed_json(read_text(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DriftbookError(f"{path}: expected a list of objects with instruction and output")
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        asked, text = key(row, "instruction", where), key(row, "output", where)
        yield Answer(asked if isinstance(asked, str) else None, text if isinstance(text, str) else None,
                     family=str(row.get("dataset") or ""), where=where)  # fmt: skip
