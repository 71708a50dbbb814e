"""What both models are asked: one record of a prompt, from the file that it stands in to the claims about its answers.

A prompt is known by its content (``Prompt.prompt_id``), never by its place in a file: moving, reordering or renaming
files changes no id, so splits and caches hold. ``prompts.parquet`` of the decode stage is written and read here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from driftbook.conversations import EXPECTED, read_conversation
from driftbook.errors import PromptError
from driftbook.files import blank

if TYPE_CHECKING:
    import pandas as pd

SideName = Literal["base", "intervention"]
SIDES: tuple[SideName, SideName] = ("base", "intervention")


@dataclass(frozen=True)
class Prompt:
    """What both models are asked.

    ``text`` is the user's turn, the last one of a conversation. ``messages`` is None for a single turn; for a
    conversation it holds the (role, content) pairs from the first user turn to the last, without the system prompt.
    ``source`` says where the prompt came from (``file:line``), ``name`` the id that the file itself gave, and ``split``
    where it was put (empty before that); ``unit`` is the id of the prompt that stands for all its look-alikes
    (``discovery.splits``; empty before they were looked for). None of the four takes part in ``prompt_id``.
    """

    text: str
    family: str = "default"
    system: str | None = None
    source: str = ""
    messages: tuple[tuple[str, str], ...] | None = None
    name: str | None = None
    split: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        if blank(self.text):
            raise PromptError(f"{self.source or 'prompt'}: the prompt is empty")
        if any("\ud800" <= character <= "\udfff" for character in self.text + (self.system or "")):
            raise PromptError(f"{self.source or 'prompt'}: half of a surrogate pair (\\ud8xx) is not text")
        if self.system == "":  # an empty system prompt and none render alike, so they must not get two ids
            object.__setattr__(self, "system", None)
        if self.messages is not None:
            if self.messages[-1] != ("user", self.text):
                raise PromptError(f"{self.source or 'prompt'}: text must be the last user turn of messages")
            empty = [i for i, (_, content) in enumerate(self.messages) if blank(content)]
            if empty:
                role = self.messages[empty[0]][0]
                raise PromptError(
                    f"{self.source or 'prompt'}: turn {empty[0] + 1} of the conversation ({role}) is empty; fill it, "
                    "or begin the conversation after it"
                )
            if len(self.messages) == 1:
                object.__setattr__(self, "messages", None)

    @classmethod
    def from_messages(
        cls,
        messages: Sequence[Mapping[str, Any]],
        *,
        family: str = "default",
        system: str | None = None,
        source: str = "",
        name: str | None = None,
    ) -> Prompt:
        """A prompt from chat messages in any of the forms of ``conversations``. Assistant turns at the end are answers,
        not prompt, and are left off. ``system`` is for messages without a system prompt of their own.

        Raises:
            PromptError: the messages cannot be read, or hold no user turn.
        """
        where = source or "messages"
        found = read_conversation(messages, where)
        turns = [(turn.role, turn.content) for turn in found.turns]
        while turns and turns[-1][0] == "assistant":
            turns.pop()
        if not turns:
            raise PromptError(f"{where}: {EXPECTED}, but there is no user turn")
        system = found.system or system
        return cls(turns[-1][1], family, system, source, tuple(turns), name)

    @cached_property
    def prompt_id(self) -> str:
        """The first 16 hex digits of sha256 over system prompt, ``\\x1f`` and text.

        A conversation hashes its turns as JSON pairs, behind a second ``\\x1f`` so that no single-turn text shares its
        id.
        """
        content = self.text
        if self.messages is not None:
            content = "\x1f" + json.dumps(self.messages, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(f"{self.system or ''}\x1f{content}".encode()).hexdigest()[:16]

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(role, content) of every turn, without the system prompt."""
        return self.messages or (("user", self.text),)

    def chat(self) -> list[dict[str, str]]:
        """The messages that a chat template or an endpoint takes, system prompt first."""
        head = [("system", self.system)] if self.system else []
        return [{"role": role, "content": content} for role, content in (*head, *self.turns)]

    def shown(self) -> str:
        """The prompt for a judge or a person to read: the text, or the turns of a conversation with their roles.

        The system prompt is left out: it is the same for both sides, and an answer is judged by what was asked.
        """
        if self.messages is None:
            return self.text
        return "\n".join(f"{role.capitalize()}: {content}" for role, content in self.messages)

    def said(self) -> str:
        """What was said in all turns, without roles: whose words an answer may take up, and look-alikes share."""
        return "\n".join(content for _, content in self.turns)


@dataclass
class PromptSet:
    """The prompts of an experiment in one fixed order, each with its unit and its split."""

    prompts: list[Prompt]
    unreadable: list[str] = field(default_factory=list)
    """What is wrong with the rows of their files that were left out."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], splits: Sequence[str]) -> PromptSet:
        """``prompts`` with a split each."""
        return cls([replace(p, split=s) for p, s in zip(prompts, splits, strict=True)])

    @property
    def splits(self) -> list[str]:
        return [p.split for p in self.prompts]

    @property
    def units(self) -> int:
        """Prompts that differ: look-alikes count once."""
        return len({p.unit or p.prompt_id for p in self.prompts})

    def __len__(self) -> int:
        return len(self.prompts)

    def by_id(self) -> dict[str, Prompt]:
        return {p.prompt_id: p for p in self.prompts}


def by_unit(texts: pd.DataFrame, prompts: Mapping[str, Prompt]) -> pd.DataFrame:
    """A table of answers whose ``prompt_id`` is the unit, so that whatever counts, tests or draws prompts counts
    look-alikes once; ``asked`` is the id of the prompt that was answered."""
    return texts.assign(asked=texts["prompt_id"], prompt_id=[prompts[p].unit or p for p in texts["prompt_id"]])


def look_alikes(prompts: Collection[Prompt]) -> str:
    """That look-alikes count as one, in a sentence, with the remedy where that leaves half of the prompts or fewer; ""
    where no two are alike."""
    members: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        members.setdefault(prompt.unit or prompt.prompt_id, []).append(prompt)
    if len(members) == len(prompts):
        return ""
    said = f"{len(prompts):,} prompts were asked and count as {len(members):,}: look-alikes are one"
    if 2 * len(members) > len(prompts):
        return f"{said}."
    most = max(members.values(), key=len)
    one, other = (f'"{" ".join(p.said().split())[:60]}"' for p in (most[0], most[-1]))
    return f"{said}, as {one} and {other} ({len(most)} such). Prompts that differ in more than a few words count each."


# ---------------------------------------------------------------------------------------------------------- as a table

TABLE = "prompts.parquet"


def to_frame(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """prompt_id, text, system, messages, family, source, split, unit: what ``from_frame`` makes the same prompts of.

    ``messages`` is None for a single turn, else the (role, content) pairs as JSON.
    """
    import pandas as pd  # half a second that reading parameters need not pay

    return pd.DataFrame(
        {
            "prompt_id": [p.prompt_id for p in prompts],
            "text": [p.text for p in prompts],
            "system": [p.system for p in prompts],
            "messages": [p.messages and json.dumps(p.messages, ensure_ascii=False) for p in prompts],
            "family": [p.family for p in prompts],
            "source": [p.source for p in prompts],
            "split": [p.split for p in prompts],
            "unit": [p.unit for p in prompts],
        }
    )


def from_frame(table: pd.DataFrame) -> dict[str, Prompt]:
    """The prompts of such a table, by id."""
    found = {}
    for row in table.to_dict("records"):
        turns = row["messages"] if isinstance(row["messages"], str) else None
        messages = tuple((role, content) for role, content in json.loads(turns)) if turns else None
        system = row["system"] if isinstance(row["system"], str) else None
        found[row["prompt_id"]] = Prompt(
            row["text"], row["family"], system, row["source"], messages, split=row["split"], unit=row.get("unit", "")
        )
    return found


def save_prompts(folder: Path, prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> None:
    """Write ``prompts.parquet``; ``n_tokens`` of each prompt as the base gets it."""
    to_frame(prompts).assign(n_tokens=list(n_tokens)).to_parquet(folder / TABLE, compression="zstd")


def load_saved(folder: Path) -> dict[str, Prompt]:
    """The prompts of a decode stage's data folder, by id."""
    import pandas as pd  # half a second that reading parameters need not pay

    return from_frame(pd.read_parquet(folder / TABLE))
