"""The chat template of a tokenizer: which of several, how it takes its content, and what it writes by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftbook.errors import ModelError, first_line

ASKED, TOLD, SAID = "What is it?", "Be terse.", "Yes."
"""A question, a system prompt and an answer that a template is tried with."""
DEFAULT = "default"


@dataclass(frozen=True)
class ChatTemplate:
    """How the template of a tokenizer is called.

    ``name``: of which, where there are several; ``args``: what it takes beside the turns (``enable_thinking``);
    ``parts``: it reads the content of a turn as a list of parts, and would lose a plain text.
    """

    name: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    parts: bool = False

    def render(self, tokenizer: Any, turns: Sequence[Mapping[str, str]], begins: bool = True) -> str:
        """The text of a conversation; with ``begins`` up to where the answer begins."""
        if self.parts:
            turns = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]  # type: ignore[dict-item]
        return tokenizer.apply_chat_template(
            list(turns), chat_template=self.name, add_generation_prompt=begins, tokenize=False, **self.args
        )


def choose(tokenizer: Any, model: str, name: str | None, args: Mapping[str, Any]) -> ChatTemplate:
    """The template that a model is asked through.

    Args:
        name: of one of several.

    Raises:
        ModelError: there is none of that name, several and none is the default, or the one loses what it is given.
    """
    there = tokenizer.chat_template
    if isinstance(there, dict):
        if name is None and DEFAULT not in there and len(there) > 1:
            raise ModelError(
                f"model {model!r} has {len(there)} chat templates ({', '.join(sorted(there))}), none of them the "
                "default; name one as template:"
            )
        chosen = name or (DEFAULT if DEFAULT in there else next(iter(there)))
        if chosen not in there:
            raise ModelError(f"model {model!r} has no chat template {chosen!r}; there are {', '.join(sorted(there))}")
    elif name not in (None, DEFAULT):
        raise ModelError(f"model {model!r} has one chat template, and none is named {name!r}; leave template: out")
    else:
        chosen = None
    tried = []
    for parts in (False, True):
        template = ChatTemplate(chosen, dict(args), parts)
        try:
            if ASKED in template.render(tokenizer, [{"role": "user", "content": ASKED}]):
                return template
            tried.append("writes a prompt without the prompt's text")
        except Exception as error:  # jinja errors of many kinds
            tried.append(f"fails ({first_line(error)})")
    raise ModelError(
        f"the chat template of {model!r} {tried[0]}, and with content as parts it {tried[1]}; mend the template, name "
        "another as template:, or set chat_template: false"
    )


def text_of(tokenizer: Any, template: ChatTemplate) -> str:
    """The template itself, in jinja."""
    there = tokenizer.chat_template
    return there[template.name] if isinstance(there, dict) else there


def has_system_role(tokenizer: Any, template: ChatTemplate) -> bool:
    """Whether the template says what a system turn holds."""
    turns = [{"role": "system", "content": TOLD}, {"role": "user", "content": ASKED}]
    try:
        return TOLD in template.render(tokenizer, turns)
    except Exception:  # a template that refuses the role raises an error of its own
        return False


def own_system_text(tokenizer: Any, template: ChatTemplate) -> str:
    """What the template says to the model by itself where there is no system prompt; empty where nothing, or where it
    has no system role.

    It is what stands in the place of a system prompt: a rendering with one is cut around it, and what the rendering
    without one has between the two halves is the template's own.
    """
    user = {"role": "user", "content": ASKED}
    if not has_system_role(tokenizer, template):
        return ""
    before, _, after = template.render(tokenizer, [{"role": "system", "content": TOLD}, user]).partition(TOLD)
    plain = template.render(tokenizer, [user])
    if not (plain.startswith(before) and plain.endswith(after)):
        return ""
    return plain[len(before) : len(plain) - len(after)].strip()


def turn_end(tokenizer: Any, template: ChatTemplate) -> str:
    """What the template writes after an answer, up to the next turn; empty where it cannot be told."""
    try:
        turns = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
        return template.render(tokenizer, turns, begins=False).rpartition(SAID)[2].strip()
    except Exception:  # a template that does not render answers
        return ""


def missing_begin(tokenizer: Any, template: ChatTemplate) -> str:
    """What the template writes before the answer of an earlier turn and not where one is to begin; empty where it
    writes the same (as ``[INST]`` templates do: nothing)."""
    user, answer = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    try:
        asked, whole = (template.render(tokenizer, t, begins=False) for t in ([user], [user, answer]))
        if template.render(tokenizer, [user]) != asked or not whole.startswith(asked):
            return ""
        return whole[len(asked) :].partition(SAID)[0].strip()
    except Exception:  # a template that does not render answers
        return ""


def described(tokenizer: Any, template: ChatTemplate | None) -> dict[str, Any]:
    """What a load report says of it."""
    if template is None:
        return {"template": None}
    text = text_of(tokenizer, template)
    several = sorted(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else []
    return {
        "template": hashlib.sha256(text.encode()).hexdigest()[:16],
        "template_name": template.name,
        "templates": several,
        "template_args": dict(template.args),
        "content": "parts" if template.parts else "text",
        "system_role": has_system_role(tokenizer, template),
        "own_system_text": own_system_text(tokenizer, template),
        "writes_the_date": "strftime_now" in text or "date_string" in text,
    }


def passed_over(folder: Path, tokenizer: Any) -> list[str]:
    """Of a folder with a default template in two files, which one transformers takes, where they differ."""
    files = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if not all(file.is_file() for file in files):
        return []
    other = json.loads(files[1].read_text(encoding="utf-8")).get("chat_template")
    if isinstance(other, list):  # several, each with its name
        other = {one["name"]: one["template"] for one in other}
    used, other = (t.get(DEFAULT) if isinstance(t, dict) else t for t in (tokenizer.chat_template, other))
    if other is None or other == used:
        return []
    return ["chat_template.jinja is used; tokenizer_config.json holds another template, which is passed over"]


def remarks(tokenizer: Any, template: ChatTemplate | None, end_tokens: Iterable[str]) -> list[str]:
    """What a reader of the report should not miss of the template."""
    if template is None:
        return []
    told, said = described(tokenizer, template), []
    if told["own_system_text"]:
        said.append(f"where there is no system prompt, the template writes its own: {told['own_system_text']!r}")
    if told["writes_the_date"]:
        said.append("the template writes the date of the day, so prompts differ from day to day")
    if len(told["templates"]) > 1:
        others = [name for name in told["templates"] if name != template.name]
        said.append(f"of several templates, {template.name!r} is used (others: {', '.join(others)}; see template:)")
    if begin := missing_begin(tokenizer, template):
        said.append(
            f"the template has no add_generation_prompt: an answer begins without the {begin!r} that it writes before "
            "answers of earlier turns"
        )
    if "bos_token" in text_of(tokenizer, template) and tokenizer.bos_token is None:
        said.append("the template writes bos_token, and the tokenizer names none (tokenizer_config.json)")
    ends = turn_end(tokenizer, template)
    if ends and not any(ends.startswith(token) for token in end_tokens):
        said.append(f"the template ends an answer with {ends[:40]!r}, which is no end token: answers may run on")
    return said
