"""One reader of the text files that people bring: lines, JSON, CSV, YAML, tables; for prompts, texts, training data.

UTF-8 with or without a byte-order mark (also in the middle, where files were joined), UTF-16 and UTF-32 with one. Lines
end at ``\\n``, ``\\r\\n`` or ``\\r`` and at nothing else that Unicode calls the end of a line, since those may stand
inside a string. Other encodings, NUL characters and what only stands in for a file (a pointer of git-lfs, a web page,
an archive) are refused with the remedy; so is a column, or a key of an object, that is there twice. A row that cannot
be read is no reason to refuse a million others: rows come with what is wrong with them, and ``collected`` allows as
many of those as its caller does.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import regex
import yaml

from driftbook.errors import DriftbookError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Row = tuple[int, "dict[str, Any] | str"]
"""The number of a row (its line where lines mean rows) and its fields, or what is wrong with it."""



class Kept(list[T]):
    """What could be read, and in ``unreadable`` what is wrong with the rows that were left out."""

    def __init__(self, items: Iterable[T] = (), unreadable: Iterable[str] = ()) -> None:
        super().__init__(items)
        self.unreadable = list(unreadable)


TABLES = (".parquet", ".csv", ".jsonl", ".tsv")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_STAND_INS = {  # how a file begins that is not what its name says
    b"version https://git-lfs": "a pointer of git-lfs, not the file; fetch it with git lfs pull",
    b"<!doctype html": "a web page, not the file; download it again, from the address of the file itself",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"PK\x03\x04": "a zip archive (or a spreadsheet); unpack it, or save it as CSV",
    b"PAR1": "a parquet file; call it .parquet",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"%PDF-": "a PDF document; save its text as UTF-8",
    b"{\\rtf": "a document in rich text; save it as plain text",
}
_YAML_NUMBER = re.compile(r"[-+]?0[0-7_]+|[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+")


def read_text(path: Path, label: str | None = None) -> str:
    """The text of a file, its lines ended by ``\\n``. ``label`` stands for the path in messages.

    Raises DriftbookError for a file that is not there, is a folder, is in another encoding or holds NUL characters.
    """
    label = label or str(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DriftbookError(f"{label}: cannot be read ({error.strerror or error})") from None
    begun = content[:64].lstrip().lower()
    if stands := next((told for mark, told in _STAND_INS.items() if begun.startswith(mark.lower())), None):
        raise DriftbookError(f"{label}: is {stands}")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        _refuse_nul(content, b"\0", b"\n", label)
        line = content[: error.start].count(b"\n") + 1
        raise DriftbookError(
            f"{label}:{line}: not {encoding.removesuffix('-sig').upper()} ({error.reason}); save the file as UTF-8 "
            f"(iconv -f latin1 -t utf-8, if it is Latin-1)"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n\ufeff", "\n")
    _refuse_nul(text, "\0", "\n", label)
    return text


def _refuse_nul(content: Any, nul: Any, end: Any, label: str) -> None:
    if nul in content:
        line = content[: content.index(nul)].count(end) + 1
        raise DriftbookError(
            f"{label}:{line}: holds a NUL character, as UTF-16 without a mark and binary files do; save it as UTF-8"
        )


_VISIBLE = regex.compile(r"[^\p{Z}\p{Cc}\p{Cf}\s]")


def blank(text: str) -> bool:
    """Whether a text shows nothing: white space, zero-width and control characters alone."""
    return _VISIBLE.search(text) is None


def seen(text: str) -> str:
    """What a reader tells texts apart by: without zero-width and control characters."""
    return regex.sub(r"[\p{Cf}\p{Cc}]", "", text)


def check_text(text: str, where: str) -> None:
    """Raise DriftbookError for half of a surrogate pair, which JSON can hold and no table or page can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DriftbookError(f"{where}: half of a surrogate pair (\\ud8xx) is not text; mend or drop it") from None


def lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def json_rows(text: str, label: str, example: str = "") -> Iterator[Row]:
    """An object a line, or a list of objects (some call that ``.jsonl`` too). ``example`` says in a message what was
    expected."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(DriftbookError):  # else every line is told as what it is
            items = parsed_json(text, label)
            text = "\n".join(json.dumps(item) for item in items)
    for number, line in lines(text):
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except DriftbookError as error:
            yield number, f"{label}:{number}: {error}"
            continue
        except (ValueError, RecursionError) as error:
            told = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            yield number, f"{label}:{number}: not JSON ({told}){f'; expected {example}' if example else ''}"
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            shown = line if len(line) <= 60 else f"{line[:57]}..."
            wanted = f"an object such as {example}" if example else "an object"
            yield number, f"{label}:{number}: expected {wanted}, found {shown}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises DriftbookError for a key that stands in it twice: a parser would drop one value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DriftbookError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is written twice")
    return found


def parsed_json(text: str, label: str) -> Any:
    """One JSON document. Raises DriftbookError with the line of what is none, and for a key that is written twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except DriftbookError as error:
        raise DriftbookError(f"{label}: {error}") from None
    except json.JSONDecodeError as error:
        raise DriftbookError(f"{label}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets without end
        raise DriftbookError(f"{label}: not JSON ({error})") from None


def csv_rows(text: str, label: str, delimiter: str = ",") -> Iterator[Row]:
    """Rows under a head of names, all cells as they stand; a cell that is missing at the end is "".

    Raises DriftbookError where quotes or cells do not fit: what follows in the file cannot be told.
    """
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line, header = 1, list[str]()  # the first line of the row being read: a quoted field may span several
    try:
        for fields in reader:
            first, line = line, reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = _columns([name.strip() for name in fields], label)
                continue
            if len(fields) > len(header):
                raise DriftbookError(
                    f"{label}:{first}: {len(fields)} fields, but {len(header)} columns; a text that holds a separator "
                    'needs "quotes"'
                )
            yield first, dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True))
    except csv.Error as error:
        raise DriftbookError(f"{label}:{line}: not CSV ({error})") from None


def _columns(names: list[str], label: str) -> list[str]:
    """The names. Raises DriftbookError for one that stands there twice."""
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DriftbookError(f"{label}: two columns are called {twice[0]!r}; rename one, or leave it out")
    return names


def collected(
    rows: Iterable[Row], read: Callable[[int, dict[str, Any]], T], allowed: int, remedy: str
) -> Kept[T]:
    """What ``read`` makes of each row.

    Raises DriftbookError for more than ``allowed`` that it cannot read, with the first three; ``remedy`` says how to
    allow more.
    """
    found, wrong = Kept[T](), list[str]()
    for number, fields in rows:
        try:
            if isinstance(fields, str):
                raise DriftbookError(fields)
            found.append(read(number, fields))
        except DriftbookError as error:
            wrong.append(str(error))
    refuse(wrong, allowed, remedy)
    found.unreadable = wrong
    return found


def refuse(wrong: Sequence[str], allowed: int, remedy: str) -> None:
    """Raise DriftbookError, with the first three, where more rows are wrong than are ``allowed``."""
    if len(wrong) > allowed:
        more = f"\n{len(wrong)} rows cannot be read; mend them, or leave them out with {remedy}"
        raise DriftbookError("\n".join(wrong[:3]) + (more if len(wrong) > 1 else ""))


def read_table(path: Path, where: str, wrong: list[str] | None = None) -> pd.DataFrame:
    """A parquet, CSV, TSV or JSONL file as it stands, None in cells without a value; its index has the line, or the row
    of a parquet file. An empty cell of CSV and TSV is one without a value: they have no other way to write it.

    What is wrong with lines that are no JSON goes into ``wrong``. Raises DriftbookError, which begins with ``where``,
    for a file that cannot be read, and without ``wrong`` for such a line.
    """
    import pandas as pd  # a second, and texts are read without
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix not in TABLES:
        raise DriftbookError(f"{where}: a table is one of {', '.join(TABLES)}")
    if path.suffix == ".parquet":
        try:
            schema = pq.read_schema(path)
            _columns(schema.names, where)
            table = pd.read_parquet(path)
        except DriftbookError:
            raise
        except Exception as error:  # pyarrow has its own errors for cut, foreign and hostile files
            raise DriftbookError(f"{where}: cannot be read as .parquet ({error})") from None
        table.index = pd.RangeIndex(1, len(table) + 1)
        table.columns = [str(name) for name in table.columns]  # pandas writes names that are pairs, or numbers
        for field in schema:  # text that was written without saying so
            if field.type in (pa.binary(), pa.large_binary()) and field.name in table.columns:
                with contextlib.suppress(UnicodeDecodeError):
                    table[field.name] = [v.decode() if isinstance(v, bytes) else v for v in table[field.name]]
    else:
        text = read_text(path, where)
        separator = "\t" if path.suffix == ".tsv" else ","
        rows = list(json_rows(text, where) if path.suffix == ".jsonl" else csv_rows(text, where, separator))
        problems = [fields for _, fields in rows if isinstance(fields, str)]
        if wrong is None and problems:
            raise DriftbookError("\n".join(problems[:3]))
        (wrong if wrong is not None else []).extend(problems)
        good = [(number, fields) for number, fields in rows if isinstance(fields, dict)]
        table = pd.DataFrame([fields for _, fields in good], [number for number, _ in good], dtype=object)
        table = table if path.suffix == ".jsonl" else table.mask(table == "", None)
    return table.astype(object).where(table.notna(), None)


# ----------------------------------------------------------------------------------------------------------------- YAML


def yaml_tree(path: Path, label: str | None = None) -> tuple[yaml.Node | None, Any]:
    """A YAML file as a tree with line numbers, and as values.

    Raises DriftbookError, with the line, for what is no YAML, a tag that YAML does not have, a key that is written
    twice, and what ``read_text`` refuses.
    """
    label = label or str(path)
    text = read_text(path, label)
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twice(tree, label, (), set())
        return tree, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise DriftbookError(f"{label}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:  # a date 2024-13-45, brackets without end
        raise DriftbookError(f"{label}: not valid YAML: {' '.join(str(error).split())}") from None


def _refuse_twice(node: yaml.Node | None, label: str, keys: tuple[str, ...], seen: set[int]) -> None:
    if id(node) in seen:  # an anchor that is used again
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        check_text(node.value, f"{label}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and _YAML_NUMBER.fullmatch(node.value):
        number = yaml.safe_load(node.value)
        raise DriftbookError(
            f"{label}:{node.start_mark.line + 1}: {'.'.join(keys)}: {node.value} is the number {number} to YAML; write "
            f'{number}, or "{node.value}" in quotes'
        )
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise DriftbookError(f"{label}:{line}: a key is a word, not a list or a mapping")
            if (kind := key.tag.rpartition(":")[2]) in ("bool", "null", "float", "timestamp"):
                raise DriftbookError(f"{label}:{line}: the key {key.value!r} is a {kind} to YAML; put it in quotes")
            if key.value in first and key.tag != "tag:yaml.org,2002:merge":
                dotted = ".".join((*keys, key.value))
                raise DriftbookError(f"{label}:{line}: {dotted}: is written twice (first in line {first[key.value]})")
            first[key.value] = line
            _refuse_twice(value, label, (*keys, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, label, keys, seen)
