"""Answers of two or more sides, matched by what was asked, as a table of texts (``kind: texts``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options
from driftbook.files import blank, check_text
from driftbook.prompts import Prompt

By = Literal["prompt", "id"]


def read(form: str, paths: Sequence[Path], options: Options, by: By = "prompt") -> tuple[pd.DataFrame, Counter[str]]:
    """A table of texts from the files of one format, the base's first, and what was read and left out.

    A single path is a file of both sides. A folder stands for all files in it that the format's names fit. Several
    paths after the first are several changes, named by their files in the column ``change``.

    Raises:
        DriftbookError: no such format or file, a file that is none of the format, or nothing that both sides answered.
    """
    if form not in READERS:
        raise DriftbookError(f"there is no format {form!r}; there are {', '.join(READERS)}")
    answers = {path: [a for file in _files(path) for a in READERS[form](file, options)] for path in paths}
    first, *others = paths
    if not others:
        both = answers[first]
        if not any(a.side for a in both):
            raise DriftbookError(f"{first}: holds one side; name the file of the other side, too")
        sides = {side: [a for a in both if a.side == side] for side in ("base", "intervention")}
        return matched(sides["base"], {"": sides["intervention"]}, by)
    names = [p.stem if len({o.stem for o in others}) == len(others) else str(p) for p in others]
    changes = dict(zip(names if len(others) > 1 else [""], [answers[p] for p in others], strict=True))
    return matched(answers[first], changes, by)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in (".eval", ".json", ".jsonl", ".csv", ".parquet"))
        samples = [p for p in found if p.name.startswith("samples_")]  # lm-eval leaves its results beside them
        if found:
            return samples or found
    if not path.is_file():
        raise DriftbookError(f"{path}: there is no such file")
    return [path]


def matched(
    base: Sequence[Answer], changes: Mapping[str, Sequence[Answer]], by: By = "prompt"
) -> tuple[pd.DataFrame, Counter[str]]:
    """One row a text: side, prompt, text, id, family, system, and change where there are several.

    By ``prompt``, answers belong together whose prompts are the same, system prompt and earlier turns included; by
    ``id``, those whose ids are (the prompt is then the base's). A prompt counts that every side answered; the counts
    say what was left out.
    """
    counts: Counter[str] = Counter()
    sides = {"base": _by(base, by, counts), **{f"changed {n}".rstrip(): _by(c, by, counts) for n, c in changes.items()}}
    common = [k for k in sides["base"] if all(k in own for own in sides.values())]
    for name, own in sides.items():
        if left := sum(len(v) for k, v in own.items() if k not in set(common)):
            counts[f"left out, {name}: not answered by all sides"] = left
    if none := [name for name, own in sides.items() if not own]:
        without = counts["left out: no text"]
        raise DriftbookError(f"{none[0]}: no answer has a text; {without} in all have none (errors, scored options)")
    if not common:
        left = "".join(f"; {what}: {number}" for what, number in counts.items() if "all sides" not in what)
        raise DriftbookError(
            f"no {by} was answered by both sides ({', '.join(f'{n}: {len(own)}' for n, own in sides.items())}{left}); "
            + ("--by id matches by what the files call a question" if by == "prompt" else "--by prompt matches texts")
        )
    rows = []
    for one in common:
        asked = sides["base"][one][0]
        for name, own in zip(("", *changes), sides.values(), strict=True):
            side = "base" if own is sides["base"] else "intervention"
            counts["prompts that differ between the sides"] += sum(_asked(a) != _asked(asked) for a in own[one][:1])
            about = (asked.id, asked.family, asked.system)
            rows += [(side, _plain(asked), a.text, *about, None if side == "base" else name) for a in own[one]]
    counts["prompts"], counts["texts"] = len(common), len(rows)
    table = pd.DataFrame(rows, columns=["side", "prompt", "text", "id", "family", "system", "change"])
    empty = [c for c in ("id", "family", "system") if not table[c].any()]
    return table.drop(columns=[*empty, *([] if len(changes) > 1 else ["change"])]), +counts


def _halved(text: str) -> bool:
    try:
        check_text(text, "")
    except DriftbookError:
        return True
    return False


def _by(answers: Sequence[Answer], by: By, counts: Counter[str]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.text is None:
            counts["left out: no text"] += 1
        elif answer.prompt is None or (isinstance(answer.prompt, str) and blank(answer.prompt)):
            counts["left out: no prompt"] += 1
        elif _halved(answer.text):
            counts["left out: half of a surrogate pair"] += 1
        elif by == "id" and not answer.id:
            counts["left out: no id"] += 1
        else:
            found.setdefault(answer.id if by == "id" else _asked(answer), []).append(answer)
    return found


def _asked(answer: Answer) -> str:
    """The id of what was asked. Raises DriftbookError for messages that are no prompt (tools, images)."""
    system = answer.system or None
    if isinstance(answer.prompt, str):
        return Prompt(answer.prompt, system=system, source=answer.where).prompt_id
    return Prompt.from_messages(answer.prompt or [], system=system, source=answer.where).prompt_id


def _plain(answer: Answer) -> str | list[dict[str, str]]:
    """A single user's turn as its text."""
    messages = answer.prompt or ""
    return messages if isinstance(messages, str) or len(messages) > 1 else messages[0]["content"]


def write(table: pd.DataFrame, path: Path) -> None:
    """By the suffix: parquet, CSV or JSONL. Raises DriftbookError for another, and for conversations and empty
    answers in a CSV, which cannot hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    talks = any(not isinstance(p, str) for p in table["prompt"])
    if path.suffix == ".parquet" and talks and any(isinstance(p, str) for p in table["prompt"]):
        lone = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in table["prompt"]]
        table = table.assign(prompt=lone)  # a column of parquet has one type
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".csv" and not talks and not (table["text"] == "").any():
        table.to_csv(path, index=False)
    else:
        raise DriftbookError(
            f"{path}: a table of texts is .parquet, .jsonl, or .csv without conversations and empty answers"
        )
