"""Reading answers that were made elsewhere: a table with a text a row, whose prompts are those of the experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from driftbook.conversations import CONVERSATIONS, held, read_conversation, spelled
from driftbook.errors import DriftbookError
from driftbook.files import Kept, check_text, collected, read_table, refuse
from driftbook.prompts import SIDES, Prompt

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("side", "prompt", "text")
OPTIONAL = ("family", "system")


@dataclass(frozen=True)
class TextTable:
    """``texts`` maps (side, prompt id) to the texts in the order of the rows; ``prompts`` are those of both sides."""

    path: Path
    prompts: list[Prompt]
    texts: dict[tuple[str, str], list[str]]
    wrote: dict[str, str] = field(default_factory=dict)
    """Side to the model that wrote its texts, where the column ``model`` says one for each side."""
    systems: dict[str, list[str]] = field(default_factory=dict)
    """The system prompts of each side, where they are part of the change."""
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with the rows that were left out."""

    def samples(self, prompt_id: str) -> int:
        """Texts of a prompt that both sides have."""
        return min(len(self.texts[side, prompt_id]) for side in SIDES)

    def poorest(self) -> Prompt:
        """The prompt of which the sides have the fewest texts; of several the first."""
        return min(self.prompts, key=lambda p: self.samples(p.prompt_id))


def read_text_table(path: Path, change: str | None = None, unreadable: int = 0) -> TextTable:
    """Read a parquet, CSV, TSV or JSONL table with the columns ``side``, ``prompt`` and ``text`` (and maybe ``family``
    and ``system``). A prompt is a string, or the messages of a conversation as in a file of prompts. ``messages`` (or
    ``conversations``) may take the place of ``prompt``, and of ``text`` where they end with the answer.

    A table of several changes has a column ``change`` that says of the intervention's texts whose they are; ``change``
    then names the one to read, beside all texts of the base. Where prompts of the two sides match without their system
    prompts only, these are part of the change, and are told in ``systems``.

    Raises:
        DriftbookError: the file cannot be read, a column, a side or the change is missing, more than ``unreadable``
        rows hold no text or no prompt, or a prompt has texts of one side only; the message names file and line.
    """
    where = f"intervention.path {path}"
    wrong: list[str] = []
    frame = read_table(path, where, wrong)
    check_table(frame, where)
    frame = of_change(frame, change, where, "say which one as intervention.change")
    found = table_rows(frame, where, path.stem, path.name)
    wrong += found.unreadable
    refuse(wrong, unreadable, "intervention.unreadable")
    rows, systems = matched(found)
    return _grouped(path, rows, systems, wrong, _writers(frame))


def check_table(frame: pd.DataFrame, where: str) -> None:
    """Raises DriftbookError, which begins with ``where``, for a table of texts that lacks rows, a column or a side, or
    has a column twice."""
    columns = list(map(str, frame.columns))
    if twice := [c for c in (*NEEDED, *OPTIONAL, *CONVERSATIONS) if columns.count(c) > 1]:
        raise DriftbookError(f"{where}: two columns are called {twice[0]!r}; rename one, or leave it out")
    talks = any(c in columns for c in CONVERSATIONS)
    missing = [c for c in NEEDED if c not in columns and not (talks and c != "side")]
    if frame.empty and (not missing or not columns):
        raise DriftbookError(f"{where}: holds no rows")
    if missing:
        raise DriftbookError(
            f"{where}: no column {' and no column '.join(missing)}; needed are {', '.join(NEEDED)}, and "
            f"{' and '.join(OPTIONAL)} may be there. The table has {', '.join(columns)}"
        )
    strange = sorted({str(side) for side in frame["side"]} - set(SIDES))
    if strange:
        raise DriftbookError(f"{where}: side {strange[0]!r} is not one of {', '.join(SIDES)}; rename it in the table")
    absent = [side for side in SIDES if side not in set(frame["side"])]
    if absent:
        raise DriftbookError(f"{where}: no text of side {absent[0]}; both sides must answer the same prompts")


def table_rows(frame: pd.DataFrame, where: str, family: str = "default", source: str = "table") -> Kept[Row]:
    """Side, what was asked and the answer of each row of a table that ``check_table`` took, with what is wrong with the
    rows that cannot be read. Its index has the lines; ``family`` is for rows without one."""
    rows = [(number, row | {"": line}) for number, (line, row) in enumerate(
        zip(frame.index, frame.to_dict("records"), strict=True), 1)]  # fmt: skip

    def answer(number: int, row: dict[str, Any]) -> Row:
        return _row(row, {"family": family, "source": f"{source}:{row['']}"}, f"{where}:{row['']}: row {number}")

    return collected(rows, answer, len(rows), "")


Row = tuple[str, Prompt, str]
"""Side, what was asked, and the answer."""


def _row(row: dict[str, Any], about: dict[str, Any], where: str) -> Row:
    own = {c: value for c in OPTIONAL if (value := row.get(c)) is not None and (not isinstance(value, str) or value)}
    if other := next((c for c, value in own.items() if not isinstance(value, str)), None):
        raise DriftbookError(f"{where}: {other} must be text, found {str(own[other])[:60]!r}")
    about = about | own
    asked, text = spelled(row.get("prompt")), row.get("text")
    messages = held(row)
    if asked is None and messages is not None:
        asked = messages
        if text is None:
            last = read_conversation(messages, where).turns[-1]
            text = last.content if last.role == "assistant" else None
    if not isinstance(asked, str) and not hasattr(asked, "__len__"):
        raise DriftbookError(f"{where} holds no text in column prompt; fill or drop it")
    if not isinstance(text, str):
        raise DriftbookError(
            f'{where} holds no text in column text; fill or drop it (an empty answer is "" in JSONL and parquet; CSV '
            "cannot tell it from none)"
        )
    check_text(text, where)
    if not len(asked):
        raise DriftbookError(f"{where} holds no text in column prompt; fill or drop it")
    prompt = Prompt(asked, **about) if isinstance(asked, str) else Prompt.from_messages(list(asked), **about)
    return row["side"], prompt, text


def matched(rows: Sequence[Row]) -> tuple[list[Row], dict[str, list[str]]]:
    """The rows, and the system prompts of each side where they are part of the change: where some prompt has answers of
    one side only, and none does once system prompts are left out. The rows are then without them."""
    if not _lonely(rows) or not any(prompt.system for _, prompt, _ in rows):
        return list(rows), {}
    bare = [(side, replace(prompt, system=None), text) for side, prompt, text in rows]
    if _lonely(bare):
        return list(rows), {}
    return bare, {name: sorted({p.system or "" for side, p, _ in rows if side == name}) for name in SIDES}


def _lonely(rows: Sequence[Row]) -> list[Prompt]:
    """Prompts with answers of one side only."""
    asked = {name: {p.prompt_id for side, p, _ in rows if side == name} for name in SIDES}
    alone = asked["base"] ^ asked["intervention"]
    return list({p.prompt_id: p for _, p, _ in rows if p.prompt_id in alone}.values())


def of_change(frame: pd.DataFrame, change: str | None, where: str, remedy: str) -> pd.DataFrame:
    """The texts of one change, beside all of the base; without a column ``change`` the table as it is.

    Raises DriftbookError for a change that is not there, for several where none is named (``remedy`` says how one is),
    and for several strengths, as ``driftbook.amplify`` writes them.
    """
    if "strength" in frame:
        doses = sorted(set(frame.loc[frame["side"] == "intervention", "strength"].dropna().astype(str)))
        if len(doses) > 1:
            raise DriftbookError(
                f"{where}: texts of several strengths: {', '.join(doses)}; keep those of one, and all of the base"
            )
    if "change" not in frame:
        if change is not None:
            raise DriftbookError(f"{where}: no column change, so leave intervention.change out")
        return frame
    changed = frame["side"] == "intervention"
    named = frame["change"].where(frame["change"].notna(), "").astype(str)
    there = sorted(set(named[changed]))
    if change is None and len(there) > 1:
        raise DriftbookError(f"{where}: texts of several changes: {', '.join(c or '(none)' for c in there)}; {remedy}")
    if change is not None and change not in there:
        raise DriftbookError(f"{where}: no change {change!r}; there are {', '.join(there)}")
    return frame if change is None else frame[~changed | (named == change)]


def _grouped(
    path: Path, rows: Sequence[Row], systems: dict[str, list[str]], unreadable: list[str], models: dict[str, str]
) -> TextTable:
    prompts: dict[str, Prompt] = {}
    texts: dict[tuple[str, str], list[str]] = {}
    for side, prompt, text in rows:
        prompts.setdefault(prompt.prompt_id, prompt)
        texts.setdefault((side, prompt.prompt_id), []).append(text)
    lonely = _lonely(rows)
    if lonely:
        first = lonely[0]
        lacks = next(side for side in SIDES if (side, first.prompt_id) not in texts)
        raise DriftbookError(
            f"intervention.path {path}: {len(lonely)} of {len(prompts)} prompts have texts of one side only, the first "
            f"at {first.source} ({first.text[:60]!r}, none of side {lacks}); both sides must answer the same prompts"
        )
    return TextTable(path, list(prompts.values()), texts, models, systems, unreadable)


def _writers(frame: pd.DataFrame) -> dict[str, str]:
    """Side to model where the column ``model`` names one a side, and not the same."""
    if "model" not in frame:
        return {}
    by = frame.groupby("side")["model"].agg(lambda names: sorted(set(names.dropna().astype(str))))
    found = {side: names[0] for side, names in by.items() if len(names) == 1 and names[0]}
    return found if len(set(found.values())) == len(SIDES) else {}
