"""Answers that were made elsewhere, as a table with a text a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from driftbook.errors import DriftbookError
from driftbook.models.answers import Answer, Question, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.local import Tap
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt

NEEDED = ("side", "prompt", "text")
OPTIONAL = ("family", "system")
SIDES = ("base", "intervention")
SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class TextTable:
    """``texts`` maps (side, prompt id) to the texts in the order of the rows; ``prompts`` are those of both sides."""

    path: Path
    prompts: list[Prompt]
    texts: dict[tuple[str, str], list[str]]

    def samples(self, prompt_id: str) -> int:
        """Texts of a prompt that both sides have."""
        return min(len(self.texts[side, prompt_id]) for side in SIDES)


def read_table(path: Path, change: str | None = None) -> TextTable:
    """Read a parquet, CSV or JSONL table with the columns ``side``, ``prompt`` and ``text`` (and maybe ``family`` and
    ``system``).

    A table of several changes has a column ``change`` that says of the intervention's texts whose they are; ``change``
    then names the one to read, beside all texts of the base.

    Raises:
        DriftbookError: the file cannot be read, a column, a side or the change is missing, a cell is no text, or a
        prompt has texts of one side only; the message names the column or the first row.
    """
    frame = _read(path)
    where = f"intervention.path {path}"
    missing = [c for c in NEEDED if c not in frame.columns]
    if missing:
        raise DriftbookError(
            f"{where}: no column {' and no column '.join(missing)}; needed are {', '.join(NEEDED)}, and "
            f"{' and '.join(OPTIONAL)} may be there. The table has {', '.join(map(str, frame.columns))}"
        )
    for column in NEEDED:
        wrong = [i for i, v in enumerate(frame[column]) if not isinstance(v, str) or (column != "text" and not v)]
        if wrong:
            raise DriftbookError(
                f"{where}: row {wrong[0] + 1} holds no text in column {column} ({len(wrong)} such rows); fill or drop "
                "them"
            )
    strange = sorted(set(frame["side"]) - set(SIDES))
    if strange:
        raise DriftbookError(f"{where}: side {strange[0]!r} is not one of {', '.join(SIDES)}; rename it in the table")
    absent = [side for side in SIDES if side not in set(frame["side"])]
    if absent:
        raise DriftbookError(f"{where}: no text of side {absent[0]}; both sides must answer the same prompts")
    return _grouped(path, _of_change(frame, change, where))


def _of_change(frame: pd.DataFrame, change: str | None, where: str) -> pd.DataFrame:
    if "change" not in frame:
        if change is not None:
            raise DriftbookError(f"{where}: no column change, so leave intervention.change out")
        return frame
    changed = frame["side"] == "intervention"
    there = sorted(frame.loc[changed, "change"].dropna().astype(str).unique())
    if change is None and len(there) > 1:
        raise DriftbookError(
            f"{where}: texts of several changes: {', '.join(there)}; say which one as intervention.change"
        )
    if change is not None and change not in there:
        raise DriftbookError(f"{where}: no change {change!r}; there are {', '.join(there)}")
    return frame if change is None else frame[~changed | (frame["change"] == change)]


def _read(path: Path) -> pd.DataFrame:
    if path.suffix not in SUFFIXES:
        raise DriftbookError(f"intervention.path {path}: a table is one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            # An answer may be "NA" or empty: cells are text as it stands.
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
    except (OSError, ValueError) as error:  # pyarrow's, pandas' and JSON's complaints are ValueErrors
        raise DriftbookError(f"intervention.path {path}: cannot be read as {path.suffix} ({error})") from None


def _grouped(path: Path, frame: pd.DataFrame) -> TextTable:
    prompts: dict[str, Prompt] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    optional = [c for c in OPTIONAL if c in frame.columns]
    for number, row in enumerate(frame[[*NEEDED, *optional]].to_dict("records"), 1):
        more = {c: row[c] for c in optional if isinstance(row[c], str) and row[c]}
        prompt = Prompt(row["prompt"], source=f"{path.name}:{number}", **{"family": path.stem, **more})
        prompts.setdefault(prompt.prompt_id, prompt)
        texts.setdefault((row["side"], prompt.prompt_id), []).append(row["text"])
    lonely = [p for p in prompts.values() if any((side, p.prompt_id) not in texts for side in SIDES)]
    if lonely:
        first = lonely[0]
        lacks = next(side for side in SIDES if (side, first.prompt_id) not in texts)
        raise DriftbookError(
            f"intervention.path {path}: {len(lonely)} of {len(prompts)} prompts have texts of one side only, the first "
            f"at {first.source} ({first.text[:60]!r}, none of side {lacks}); both sides must answer the same prompts"
        )
    return TextTable(path, list(prompts.values()), texts)


class TableEngine:
    """Answers as a table holds them: sample s of a prompt is the side's text number s.

    The reader's tokens of the text stand for the tokens that were sampled; ``finish_reason`` is ``eos``: what ended a
    text is not known, and it is complete as far as anyone can tell.
    """

    name = "texts"

    def __init__(self, table: TextTable, side: str, reader: LoadedModel):
        self.table, self.side, self.reader = table, side, reader

    def available(self, prompt: Prompt) -> int:
        """How many texts both sides have for a prompt."""
        return self.table.samples(prompt.prompt_id)

    def generate(self, requests: Sequence[Any], params: SamplingParams, taps: Sequence[Tap] = ()) -> Iterator[Answer]:
        """One answer a request. Sampling parameters do not apply to texts that are there already.

        Raises:
            DriftbookError: a prompt or a sample that the table does not hold.
        """
        for index, request in enumerate(requests):
            assert isinstance(request, Question) and request.prompt is not None
            held = self.table.texts.get((self.side, request.prompt.prompt_id), [])
            if request.sample >= len(held):
                raise DriftbookError(
                    f"intervention.path {self.table.path}: {len(held)} texts of side {self.side} for the prompt "
                    f"{request.prompt.text[:60]!r}, and {request.sample + 1} are asked for; lower samples"
                )
            text = held[request.sample]
            yield Answer(index, read_tokens(self.reader, request, text), "eos", text)
