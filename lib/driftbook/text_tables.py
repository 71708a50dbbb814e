"""Reading answers that were made elsewhere: a table with a text a row, whose prompts are those of the experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftbook.errors import DriftbookError
from driftbook.prompts import SIDES, Prompt

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("side", "prompt", "text")
OPTIONAL = ("family", "system")
SUFFIXES = (".parquet", ".csv", ".jsonl")


@dataclass(frozen=True)
class TextTable:
    """``texts`` maps (side, prompt id) to the texts in the order of the rows; ``prompts`` are those of both sides."""

    path: Path
    prompts: list[Prompt]
    texts: dict[tuple[str, str], list[str]]
    wrote: dict[str, str] = field(default_factory=dict)
    """Side to the model that wrote its texts, where the column ``model`` says one for each side."""

    def samples(self, prompt_id: str) -> int:
        """Texts of a prompt that both sides have."""
        return min(len(self.texts[side, prompt_id]) for side in SIDES)

    def poorest(self) -> Prompt:
        """The prompt of which the sides have the fewest texts; of several the first."""
        return min(self.prompts, key=lambda p: self.samples(p.prompt_id))


def read_text_table(path: Path, change: str | None = None) -> TextTable:
    """Read a parquet, CSV or JSONL table with the columns ``side``, ``prompt`` and ``text`` (and maybe ``family``,
    ``system`` and ``model``, who wrote it). A prompt is a string, or the chat messages of a conversation as in a file
    of prompts.

    A table of several changes has a column ``change`` that says of the intervention's texts whose they are; ``change``
    then names the one to read, beside all texts of the base.

    Raises:
        DriftbookError: the file cannot be read, a column, a side or the change is missing, a cell is no text, or a
        prompt has texts of one side only; the message names the column or the first row.
    """
    where = f"intervention.path {path}"
    frame = read_frame(path, where)
    missing = [c for c in NEEDED if c not in frame.columns]
    if missing:
        raise DriftbookError(
            f"{where}: no column {' and no column '.join(missing)}; needed are {', '.join(NEEDED)}, and "
            f"{' and '.join(OPTIONAL)} may be there. The table has {', '.join(map(str, frame.columns))}"
        )
    for column in NEEDED:
        wrong = [i for i, v in enumerate(frame[column]) if not _holds(column, v)]
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


def _holds(column: str, value: Any) -> bool:
    """An answer may be empty; a prompt may be a list of messages (an array, where parquet was read)."""
    if column == "prompt" and not isinstance(value, str):
        return hasattr(value, "__len__") and len(value) > 0
    return isinstance(value, str) and (column == "text" or bool(value))


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


def read_frame(path: Path, where: str) -> pd.DataFrame:
    """A parquet, CSV or JSONL file as it stands. Raises DriftbookError, which begins with ``where``."""
    import pandas as pd

    if path.suffix not in SUFFIXES:
        raise DriftbookError(f"{where}: a table is one of {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".csv":
            # An answer may be "NA" or empty: cells are text as it stands.
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
    except (OSError, ValueError) as error:  # pyarrow's, pandas' and JSON's complaints are ValueErrors
        raise DriftbookError(f"{where}: cannot be read as {path.suffix} ({error})") from None


def _grouped(path: Path, frame: pd.DataFrame) -> TextTable:
    prompts: dict[str, Prompt] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    optional = [c for c in OPTIONAL if c in frame.columns]
    for number, row in enumerate(frame[[*NEEDED, *optional]].to_dict("records"), 1):
        more = {c: row[c] for c in optional if isinstance(row[c], str) and row[c]}
        about = {"family": path.stem, **more, "source": f"{path.name}:{number}"}
        asked = row["prompt"]
        prompt = Prompt(asked, **about) if isinstance(asked, str) else Prompt.from_messages(list(asked), **about)
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
    return TextTable(path, list(prompts.values()), texts, _writers(frame))


def _writers(frame: pd.DataFrame) -> dict[str, str]:
    """Side to model where the column ``model`` names one a side, and not the same."""
    if "model" not in frame:
        return {}
    by = frame.groupby("side")["model"].agg(lambda names: sorted(set(names.dropna().astype(str))))
    found = {side: names[0] for side, names in by.items() if len(names) == 1 and names[0]}
    return found if len(set(found.values())) == len(SIDES) else {}
