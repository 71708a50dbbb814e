"""Conversations as people keep them, read in one way: chat messages, ShareGPT, parts, tool calls.

- *Messages* have ``role`` and ``content``. The roles system and developer, which come first, give the system prompt;
  then come user, assistant and tool.
  Tables hold them as text, too: as JSON, or as Python writes a list.
- *ShareGPT* has ``from`` (system, human, gpt, tool, and the names that its descendants use) and ``value``.
- A content in *parts* is the texts of its parts, each on lines of its own. Parts that hold a thought are left out;
  another part (an image) cannot be read.
- A *tool call* stands in the assistant's turn as ``[calls NAME(ARGUMENTS)]``, and what the tool gave in a user's turn
  as ``[NAME gave: CONTENT]``. Models without tools can be asked so, and nothing that was said is lost.
  What several tools gave, and what the user says next, is one turn.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from driftbook.errors import PromptError

SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "model": "assistant", "bot": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
CONVERSATIONS = ("messages", "conversations")  # where a row has them; the second as ShareGPT calls it
EXPECTED = 'expected "messages": [{"role": "system|user|assistant|tool", "content": "..."}, ...]'


@dataclass(frozen=True)
class Turn:
    """What one role said; ``learned`` is False for an assistant's turn of weight 0."""

    role: str
    content: str
    learned: bool = True


@dataclass(frozen=True)
class Conversation:
    """``system`` is None where there is no system prompt; the other turns are the user's and the assistant's."""

    system: str | None
    turns: tuple[Turn, ...]


def held(row: Mapping[str, Any]) -> Any:
    """The messages of a row; None where it has none."""
    return next((spelled(row[k]) for k in CONVERSATIONS if row.get(k) is not None), None)


_SPELLED = re.compile(r"""\s*\[\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")


def spelled(value: Any) -> Any:
    """The messages that a text spells, as JSON or as Python writes a list: tables hold them so. Whatever else it is
    given, it gives back."""
    if isinstance(value, str) and _SPELLED.match(value):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def read_conversation(messages: Any, where: str) -> Conversation:
    """Raises PromptError, which begins with ``where`` and names the message that cannot be read."""
    expected = f"{where}: {EXPECTED}"
    messages = spelled(messages)
    if hasattr(messages, "tolist"):  # an array of a parquet file
        messages = messages.tolist()
    if not isinstance(messages, list | tuple) or not messages:
        raise PromptError(expected)
    system: list[str] = []
    turns: list[Turn] = []
    after_tool = False
    for number, message in enumerate(messages, 1):
        role, content = _said(message, number, expected)
        if role in ("system", "developer"):
            if turns:
                raise PromptError(f"{expected}, but message {number} has role {role!r}, which comes first")
            system += [content] if content.strip() else []
            continue
        weight = message.get("weight")
        if weight not in (None, 0, 1):
            raise PromptError(f"{where}: the weight of a turn is 0 (not learned) or 1")
        if turns and after_tool and role in ("user", "tool"):
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{content}")
        else:
            turns.append(Turn("user" if role == "tool" else role, content, weight != 0))
        after_tool = role == "tool"
    return Conversation("\n\n".join(system) or None, tuple(turns))


def _said(message: Any, number: int, expected: str) -> tuple[str, str]:
    """Role and content of one message, flattened."""
    if not isinstance(message, Mapping):
        raise PromptError(f"{expected}, but message {number} has no role or content that is a string")
    known = {k: v for k, v in message.items() if v is not None}
    calls = [*_listed(known.get("tool_calls")), *([known["function_call"]] if "function_call" in known else [])]
    if "from" in known and "role" not in known:
        role, content = SHAREGPT.get(str(known["from"]).lower()), known.get("value")
        if role is None:
            raise PromptError(f"{expected}, but message {number} is from {known['from']!r}")
    else:
        role, content = known.get("role"), known.get("content", "" if calls or "content" in message else None)
    content = _text(content, number, expected)
    if not isinstance(role, str) or content is None:
        raise PromptError(f"{expected}, but message {number} has no role or content that is a string")
    role = {"function": "tool", "ipython": "tool"}.get(role.lower(), role.lower())
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise PromptError(f"{expected}, but message {number} has role {role!r}")
    if role == "tool":
        content = f"[{known.get('name') or 'the tool'} gave: {content}]"
    return role, "\n".join(filter(None, [content, *(_call(c, number, expected) for c in calls)]))


def _listed(value: Any) -> Iterable[Any]:
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, list | tuple) else []


def _text(content: Any, number: int, expected: str) -> str | None:
    if hasattr(content, "tolist"):
        content = content.tolist()
    if not isinstance(content, list | tuple):
        return content if isinstance(content, str) else None
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind in ("thinking", "redacted_thinking", "reasoning"):
            continue
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            if kind is None or kind.endswith("text"):
                return None
            raise PromptError(f"{expected}, but message {number} has a part of type {kind!r}: only text can be read")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any, number: int, expected: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise PromptError(f"{expected}, but message {number} has a tool call without a name")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str) if arguments is not None else ""
    return f"[calls {function['name']}({arguments})]"
