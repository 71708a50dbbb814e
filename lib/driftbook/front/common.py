"""What the functions of the library share: prompts and options as people write them, and results that show
themselves."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from driftbook.conversations import held, spelled
from driftbook.errors import DriftbookError
from driftbook.prompts import Prompt
from driftbook.workbook.runs import find_root
from driftbook.workbook.tables import Table

T = TypeVar("T", bound=BaseModel)


class Shown(ABC):
    """A result that a notebook shows as a table under its finding, over a ``note`` where there is one."""

    note: str = ""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The result as a table."""

    @abstractmethod
    def __str__(self) -> str: ...

    def _shown(self) -> pd.DataFrame:
        return self.to_frame()

    def _repr_html_(self) -> str:
        return Table(self._shown(), str(self), self.note, max_rows=20).html()


def as_prompts(prompts: Any) -> list[Prompt]:
    """Prompts of a list, array or column whose items are texts, ``Prompt`` records or conversations (lists of
    messages).

    Raises:
        DriftbookError: nothing was given, a text where a list is wanted, or an item that is no prompt.
    """
    if prompts is None:
        raise DriftbookError("prompts are not given: driftbook compares answers prompt by prompt; give one an answer")
    if isinstance(prompts, str | bytes | Prompt | Mapping | Set) or not isinstance(prompts, Iterable):
        raise DriftbookError("prompts: give a list of prompts, in order (of files: driftbook.read_prompts)")
    found = [_prompt(one, number) for number, one in enumerate(prompts, 1)]
    if not found:
        raise DriftbookError("prompts: the list is empty; give one prompt at least")
    return found


def _prompt(one: Any, number: int) -> Prompt:
    if isinstance(one, Prompt):
        return one
    said = held(one) if isinstance(one, Mapping) else spelled(one)
    if isinstance(said, str):
        return Prompt(said, source=f"prompt {number}")
    if isinstance(said, Iterable) and not isinstance(said, bytes):
        return Prompt.from_messages(list(said), source=f"prompt {number}")
    raise DriftbookError(f"prompt {number} is {one!r}; give text, a Prompt or a list of messages")


def checked(section: type[T], **values: Any) -> T:
    """A section of parameters with these ``values``. Raises DriftbookError naming the first one that it refuses."""
    try:
        return section(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or section.__name__
        raise DriftbookError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def folder_of(cache: Path | str | None) -> Path:
    """Where finished work is kept: ``cache``, else that of the repository around the working folder, else the user's
    cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    try:
        return find_root() / "outputs" / ".cache"
    except DriftbookError:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "driftbook"
