"""Tables (CSV, JSONL, parquet) whose columns have other names than those of a table of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from driftbook.conversations import spelled
from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, turns
from driftbook.files import read_table

ROLES = ("prompt", "text", "base", "changed", "id", "family", "system")


@READERS.register("columns")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """``--with prompt=question --with text=answer`` say which column is what. A table that holds both sides has a
    column for each: ``--with base=before --with changed=after``."""
    names = {role: options.get(role, role) for role in ROLES}
    table = read_table(path, str(path))
    if "side" in table:
        raise DriftbookError(f"{path}: has a column side, so it is a table of texts already; name it as kind: texts")
    both = names["base"] in table and names["changed"] in table
    if unknown := [role for role in options if role not in ROLES]:
        raise DriftbookError(f"--with {unknown[0]}: there is no such part of an answer; there are {', '.join(ROLES)}")
    needed = ["prompt", *(["base", "changed"] if both else ["text"])]
    missing = [role for role in (*needed, *(r for r in options if r in ROLES)) if names[role] not in table]
    if missing:
        raise DriftbookError(
            f"{path}: no column {names[missing[0]]!r} for {missing[0]}; name it by --with {missing[0]}=NAME; there are "
            f"{', '.join(map(str, table.columns))}"
        )
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        where = f"{path}:{line}"
        about = {k: str(row[names[k]]) for k in ("id", "family", "system") if isinstance(row.get(names[k]), str | int)}
        for role, side in (("base", "base"), ("changed", "intervention")) if both else (("text", ""),):
            asked, text = spelled(row[names["prompt"]]), row[names[role]]
            asked = asked.tolist() if hasattr(asked, "tolist") else asked
            prompt = turns(asked, where) if isinstance(asked, list) else asked if isinstance(asked, str) else None
            yield Answer(prompt, text if isinstance(text, str) else None, **about, side=side, where=where)
