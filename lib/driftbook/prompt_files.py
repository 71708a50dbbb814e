"""Reading prompts: one reader for the formats that people in the field keep them in (docs/prompts.md)."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from driftbook.conversations import CONVERSATIONS, spelled
from driftbook.errors import DriftbookError, PromptError
from driftbook.files import Kept, Row, collected, csv_rows, json_rows, parsed_json, read_table, read_text, yaml_tree
from driftbook.prompts import Prompt

COLUMNS = ("messages", "conversations", "prompt", "question", "text")
"""Columns that hold the prompt, by preference: where ``prompt`` or ``question`` stand beside ``text``, ``text`` is
something else (the bare statement in model-written evals, the passage or the answer elsewhere)."""

OPTIONS = ("column", "family", "min_confidence", "system", "unreadable", "config", "revision")
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".yml", ".yaml")


class PromptList(list[Prompt]):
    """Prompts in reading order, and what the reading left out.

    ``duplicates`` has a pair (source that was dropped, source that was kept) for every prompt that stood there twice.
    ``unreadable`` says of the rows that were left out what is wrong with them, as far as ``#unreadable=`` allows any.
    ``files`` are the sources that were read, in order.
    """

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        super().__init__()
        self.duplicates: list[tuple[str, str]] = []
        self.unreadable: list[str] = []
        self.files: list[str] = []
        first: dict[str, str] = {}
        for prompt in prompts:
            if prompt.prompt_id in first:
                self.duplicates.append((prompt.source, first[prompt.prompt_id]))
            else:
                first[prompt.prompt_id] = prompt.source
                self.append(prompt)


def read_prompts(patterns: list[str], root: Path) -> PromptList:
    """Read every file that the patterns name; a prompt that stands there twice is kept once.

    A pattern is a path or glob relative to ``root``, or ``hf:owner/name:split:column``. Options follow a ``#``, joined
    by ``&``: ``column=NAME`` (where the prompt stands), ``family=NAME``, ``min_confidence=0.8`` (model-written evals),
    ``unreadable=3`` (rows that may be left out because they cannot be read; default: none),
    ``system=FILE`` (a text before every prompt), and ``config=`` and ``revision=`` for Hugging Face datasets. The
    formats are described in docs/prompts.md. A prompt without a family of its own gets the file's stem.

    Raises:
        PromptError: a file is missing, empty, malformed or of an unknown kind; the message names file, line and remedy.
    """
    if not patterns:
        raise PromptError("no prompt files are named: give at least one path, glob or hf: dataset under 'prompts'")
    found: list[Prompt] = []
    seen: set[tuple[str, str]] = set()
    files: list[str] = []
    unreadable: list[str] = []
    for pattern in patterns:
        target, options = _options(pattern)
        if target.startswith("hf:"):
            found += _with_system(_read_hub(target, options, root), pattern, options, root)
            files.append(target)
            continue
        for option in ("config", "revision"):
            if option in options:
                raise PromptError(f"{pattern}: option {option}= is for hf: datasets only")
        for path in _matching_files(target, root):
            key = (str(path.resolve()), json.dumps(options, sort_keys=True))
            if key in seen:  # the same file by two patterns is one file, not a set of duplicates
                continue
            seen.add(key)
            read = read_file(path, _display(path, root), options)
            unreadable += read.unreadable
            found += _with_system(read, pattern, options, root)
            files.append(_display(path, root))
    prompts = PromptList(found)
    prompts.files, prompts.unreadable = files, unreadable
    return prompts


def read_file(path: Path, label: str | None = None, options: dict[str, str] | None = None) -> Kept[Prompt]:
    """The prompts of one file, duplicates included, by the reader that its suffix and content ask for.

    ``label`` stands for the path in sources and messages. Raises PromptError as ``read_prompts`` does.
    """
    label, options = label or str(path), options or {}
    if path.suffix.lower() not in SUFFIXES:
        kind = f"{path.suffix!r}" if path.suffix else "a name without suffix"
        raise PromptError(f"{label}: prompts are read from {', '.join(SUFFIXES)}, not from {kind}")
    family = options.get("family", path.stem)
    try:
        return _prompts_from_rows(_rows(path, label), label, family, options)
    except PromptError:
        raise
    except DriftbookError as error:
        raise PromptError(str(error)) from None


def _rows(path: Path, label: str) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        table = read_table(path, label)
        return iter([(i, row) for i, row in zip(table.index, table.to_dict("records"), strict=True)])
    if suffix in (".yml", ".yaml"):
        return _items(yaml_tree(path, label)[1], label)
    content = read_text(path, label)
    if suffix == ".txt":
        return _text_rows(content)
    if suffix in (".csv", ".tsv"):
        rows = csv_rows(content, label, "\t" if suffix == ".tsv" else ",")
        return ((n, row if isinstance(row, str) else {k.lower(): v or None for k, v in row.items()}) for n, row in rows)
    if suffix == ".json" or content.lstrip().startswith("["):  # some model-written evals are a JSON list named .jsonl
        return _items(parsed_json(content, label), label) if content.strip() else iter(())
    return json_rows(content, label, '{"text": "..."}')


def check_lengths(prompts: Sequence[Prompt], count_tokens: Callable[[Prompt], int], limit: int) -> list[int]:
    """Count the tokens of every prompt, as the model will see it, and refuse those that leave no room for an answer.

    Args:
        count_tokens: tokens of one prompt, chat template included.
        limit: the most tokens a prompt may have: the model's context less the new tokens asked for.

    Returns:
        The number of tokens of each prompt, in order.

    Raises:
        PromptError: names file and prompt of up to three that are too long, and how many there are.
    """
    if limit < 1:
        raise PromptError(f"no room for any prompt: {limit} tokens are left of the context; ask for fewer new tokens")
    counts = [count_tokens(prompt) for prompt in prompts]
    long = [(p, n) for p, n in zip(prompts, counts, strict=True) if n > limit]
    if long:
        shown = "; ".join(f"{p.source or p.prompt_id} ({n} tokens): {_clip(p.text)!r}" for p, n in long[:3])
        raise PromptError(
            f"{len(long)} of {len(prompts)} prompts have more than the {limit} tokens that the context leaves: "
            f"{shown}. Shorten or remove them, or lower max_new_tokens"
        )
    return counts


# ------------------------------------------------------------------------------------------------------- finding files


def _options(pattern: str) -> tuple[str, dict[str, str]]:
    """Split ``target#key=value&key=value``."""
    target, mark, tail = pattern.partition("#")
    if not mark:
        return target, {}
    options: dict[str, str] = {}
    for item in tail.split("&"):
        key, equals, value = item.partition("=")
        if key not in OPTIONS or not equals or not value:
            close = difflib.get_close_matches(key, OPTIONS, 1)
            hint = f" (did you mean {close[0]!r}?)" if close and key not in OPTIONS else ""
            raise PromptError(f"{pattern}: option {item!r} is not one of {', '.join(o + '=' for o in OPTIONS)}{hint}")
        options[key] = value
    if "min_confidence" in options:
        try:
            float(options["min_confidence"])
        except ValueError as error:
            value = options["min_confidence"]
            raise PromptError(f"{pattern}: min_confidence must be a number, not {value!r}") from error
    if not options.get("unreadable", "0").isdecimal():
        raise PromptError(f"{pattern}: unreadable must be a number of rows, not {options['unreadable']!r}")
    return target, options


def files_beside(pattern: str, root: Path) -> list[Path]:
    """Files on this disk that a pattern reads besides those that it names: that of ``system=``, and the files of a
    dataset in a folder."""
    target, _, tail = pattern.partition("#")
    named = [item.removeprefix("system=") for item in tail.split("&") if item.startswith("system=")]
    found = [root / Path(name).expanduser() for name in named]
    if target.startswith("hf:"):
        folder = root / Path(target.removeprefix("hf:").partition(":")[0]).expanduser()
        found += sorted(folder.rglob("*"))
    return [path for path in found if path.is_file()]


def _with_system(prompts: list[Prompt], pattern: str, options: dict[str, str], root: Path) -> list[Prompt]:
    """The prompts under the text of the file that ``system=`` names, before a system prompt of their own."""
    if "system" not in options:
        return prompts
    path = root / Path(options["system"]).expanduser()
    try:
        text = read_text(path, options["system"]).strip()
    except DriftbookError as error:
        raise PromptError(f"{pattern}: the file of system= cannot be read as UTF-8 text ({error})") from None
    if not text:
        raise PromptError(f"{pattern}: the file of system=, {options['system']}, is empty")
    return [replace(p, system="\n\n".join(s for s in (text, p.system) if s)) for p in prompts]


def _matching_files(target: str, root: Path) -> list[Path]:
    if glob.has_magic(target) and not (root / Path(target).expanduser()).is_file():
        names = sorted(glob.glob(str(Path(target).expanduser()), root_dir=root, recursive=True))
        matches = [root / name for name in names if (root / name).is_file()]
        if matches:
            return matches
        raise PromptError(f"{target}: no file matches this pattern under {root}")
    path = root / Path(target).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise PromptError(f"{target} is a folder: name its files, for example {target.rstrip('/')}/*.jsonl")
    if "://" in target:
        raise PromptError(f"{target}: an address; download the file and name that, or a dataset as hf:owner/name")
    if path.is_symlink() or path.exists():
        found = "a link to what is not there" if path.is_symlink() else "neither a file nor a folder"
        raise PromptError(f"{target}: {found}")
    folder = path.parent
    if not folder.is_dir():
        raise PromptError(f"{target}: no such file, and the folder {_display(folder, root)} does not exist")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    close = difflib.get_close_matches(path.name, names, 3, 0.5) or names[:5]
    hint = f"; in that folder: {', '.join(close)}" if close else "; that folder holds no prompt files"
    raise PromptError(f"{target}: no such file{hint}")


def _display(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _shown(value: Any) -> str:
    return _clip(json.dumps(value, default=str))


def _clip(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


# -------------------------------------------------------------------------------------------------------------- formats

def _text_rows(content: str) -> Iterator[Row]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip() not in ("", "#") and not line.startswith("# "):
            yield number, {"prompt": line.strip()}


def _items(document: Any, label: str) -> Iterator[Row]:
    """A list of prompts, or a trait file: ours (``eval_prompts``) or that of persona_vectors (``questions``)."""
    fields: dict[str, Any] = {}
    items = document
    if isinstance(document, dict):
        key = next((k for k in ("eval_prompts", "questions") if isinstance(document.get(k), list)), None)
        if key is None:
            raise PromptError(
                f"{label}: such a file is a list of prompts, or a trait file with 'eval_prompts' or 'questions'; "
                f"this one has the keys {', '.join(map(repr, document)) or 'none'}"
            )
        items = document[key]
        if isinstance(document.get("trait"), str):
            fields["family"] = document["trait"]
    if not isinstance(items, list):
        raise PromptError(f"{label}: expected a list of prompts, found {_shown(items)}")
    for number, item in enumerate(items, 1):
        if isinstance(item, str):
            yield number, fields | {"prompt": item}
        elif isinstance(item, dict):
            yield number, fields | {str(k): v for k, v in item.items()}
        else:
            quoted = "" if isinstance(item, list) else "; a prompt that reads as something else needs quotes"
            yield number, f"{label}: item {number} is neither a string nor an object: {_shown(item)}{quoted}"


def _prompts_from_rows(rows: Iterable[Row], label: str, family: str, options: dict[str, str]) -> Kept[Prompt]:
    """Prompts from the rows of any format; ``family`` is for rows without one, unless the options fix it for all."""
    least = float(options["min_confidence"]) if "min_confidence" in options else None

    def prompt(number: int, row: dict[str, Any]) -> Prompt | None:
        source = f"{label}:{number}"
        if least is not None and not _confident(row, least, source):
            return None
        about: dict[str, Any] = {
            "family": family if "family" in options else _string(row, "family", source) or family,
            "system": _string(row, "system", source),
            "source": source,
            "name": None if row.get("id") is None else str(row["id"]),
        }
        column = _column(row, source, options.get("column"))
        value = row[column]
        if hasattr(value, "tolist"):  # an array of a parquet file
            value = value.tolist()
        value = spelled(value)
        broken = column.lower() in CONVERSATIONS and str(value).lstrip().startswith("[")
        if isinstance(value, list) or broken:
            return Prompt.from_messages(value, **about)
        if isinstance(value, str) and value.strip():
            return Prompt(value, **about)
        raise PromptError(f"{source}: {column!r} must be a string that is not empty, found {_shown(value)}")

    allowed = int(options.get("unreadable", 0))
    read = collected(rows, prompt, allowed, f"#unreadable=N behind the path {label}")
    prompts = Kept([p for p in read if p is not None], read.unreadable)
    if not read and not read.unreadable:
        raise PromptError(f"{label}: the file holds no prompts")
    if not prompts:
        why = f"no row reaches min_confidence={least}" if least is not None else "no row can be read"
        raise PromptError(f"{label}: {why}")
    return prompts


def _column(row: dict[str, Any], source: str, asked: str | None) -> str:
    names = {name.lower(): name for name in row} | {name: name for name in row}
    there = [names[wanted] for wanted in ([asked, asked.lower()] if asked else COLUMNS) if wanted in names]
    if there:
        return next((name for name in there if row[name] is not None), there[0])
    has = ", ".join(map(repr, row)) or "none"
    if asked:
        raise PromptError(f"{source}: no column {asked!r} among {has}")
    raise PromptError(
        f"{source}: no column {', '.join(map(repr, COLUMNS))} among {has}; "
        "name the right one by adding '#column=NAME' to the path"
    )


def _string(row: dict[str, Any], key: str, source: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise PromptError(f"{source}: {key!r} must be a string, found {_shown(value)}")
    return value or None


def _confident(row: dict[str, Any], least: float, source: str) -> bool:
    """Whether a model-written row is labelled surely enough (the field had another name in the first release)."""
    value = row.get("label_confidence", row.get("expected_accuracy"))
    try:
        return float(str(value)) >= least
    except ValueError as error:
        raise PromptError(f"{source}: min_confidence needs a number in 'label_confidence', found {value!r}") from error


def check_hub(patterns: Sequence[str]) -> None:
    """Refuse patterns of Hugging Face datasets where their package is not here, before anything is read. Raises
    PromptError."""
    for target in patterns:
        if target.startswith("hf:") and find_spec("datasets") is None:
            raise _no_hub(target)


def _no_hub(target: str) -> PromptError:
    needed = "pip install 'driftbook[hub]', or pip install datasets"
    return PromptError(f"{target}: reading Hugging Face datasets needs a package: {needed}")


def _read_hub(target: str, options: dict[str, str], root: Path) -> list[Prompt]:
    """Prompts of ``hf:name:split:column``; the name is that of the hub, or a folder on this disk. The column holds
    strings or lists of chat messages."""
    name, _, rest = target.removeprefix("hf:").partition(":")
    split, _, column = rest.rpartition(":")  # a split may hold a colon: train[:100]
    if not (name and split and column) or "column" in options:
        raise PromptError(f"{target}: expected hf:owner/name:split:column, for example hf:owner/name:train:prompt")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _no_hub(target) from error
    folder = root / Path(name).expanduser()
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            table = _saved_split(datasets.load_from_disk(str(folder)), split)
        else:
            where = str(folder) if folder.is_dir() else name
            table = datasets.load_dataset(where, options.get("config"), split=split, revision=options.get("revision"))
    except Exception as error:  # the hub's own exceptions come from four packages; all mean: no data
        raise PromptError(
            f"{target}: the dataset could not be loaded ({type(error).__name__}: {error}). Check name, split and "
            "connection; without a hub, save it as JSONL and name that file, or name the folder of its files as "
            "hf:FOLDER:split:column"
        ) from error
    if column not in table.column_names:
        raise PromptError(f"{target}: no column {column!r} among {', '.join(map(repr, table.column_names))}")
    beside = [c for c in ("family", "system", "id", "label_confidence") if c in table.column_names and c != column]
    rows = ((i, {"prompt": row[column]} | {c: row[c] for c in beside}) for i, row in enumerate(table, 1))
    return _prompts_from_rows(rows, target, options.get("family", name.rstrip("/").rpartition("/")[2]), options)


def _saved_split(saved: Any, split: str) -> Any:
    """The split of what ``save_to_disk`` wrote: one table, or one for each split."""
    splits = saved if isinstance(saved, dict) else {str(saved.split or split): saved}
    if split not in splits:
        raise KeyError(f"no split {split!r} among {', '.join(map(repr, splits))}")
    return splits[split]
