"""Logs of inspect_ai: ``.eval`` (a zip with a JSON a sample) and ``.json`` (all in one)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, at, document, key, said, turns
from driftbook.files import read_text

ZSTD = 93  # the compression of a zip's entry that inspect_ai writes, and that Python's zipfile learned in 3.14


@READERS.register("inspect")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The last answer of each sample to what was asked before its first one, as solvers put it (with system prompt,
    template, options), else to its input. Epochs are several answers to one prompt. The family is the task."""
    head, samples = _zip(path) if path.suffix == ".eval" or zipfile.is_zipfile(path) else _json(path)
    task = str(at(head, "eval.task", str, str(path)) or "")
    for where, sample in samples:
        kept = {f"attachment://{name}": text for name, text in (at(sample, "attachments", dict, where) or {}).items()}
        messages = [m for m in at(sample, "messages", list, where) or [] if isinstance(m, dict)]
        before = list(takewhile(lambda m: m.get("source") != "generate", messages))
        given = before if 0 < len(before) < len(messages) else key(sample, "input", where)
        asked = _resolved(given, kept)
        output = _resolved(at(sample, "output", dict, where), kept)
        told = at(output, "choices.0.message", dict, where)
        text = said(told.get("content")) if told else at(output, "completion", str, where)
        prompt = asked if isinstance(asked, str) else turns(asked, where)
        name = f"{task}/{key(sample, 'id', where)}"
        yield Answer(prompt, None if sample.get("error") else text, name, task, where=where)


def _zip(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as reason:
        raise DriftbookError(f"{path}: a zip that cannot be read ({reason}); copy it again") from None
    names = [n for n in archive.namelist() if n.startswith("samples/") and n.endswith(".json")]
    top = "header.json" if "header.json" in archive.namelist() else "_journal/start.json"  # of a run that was cut

    def load(name: str) -> dict[str, Any]:
        try:
            return document(_unpacked(archive, name).decode("utf-8"), f"{path}:{name}", dict)
        except KeyError:
            raise DriftbookError(f"{path}: a zip without {name}, so no log of inspect_ai") from None
        except (NotImplementedError, zipfile.BadZipFile, zlib.error, UnicodeDecodeError, EOFError) as reason:
            raise DriftbookError(f"{path}:{name}: cannot be unpacked ({reason})") from None

    return load(top), ((f"{path}:{name}", load(name)) for name in names)


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """An entry of a zip. Raises KeyError where there is none, BadZipFile where it is not what was written."""
    entry = archive.getinfo(name)
    if entry.compress_type != ZSTD:
        return archive.read(name)
    with open(archive.filename, "rb") as file:
        file.seek(entry.header_offset + 26)  # two lengths end its own header: of the name and of what follows it
        lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
        file.seek(sum(lengths), 1)
        packed = file.read(entry.compress_size)
    try:
        found = pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
    except OSError as reason:
        raise zipfile.BadZipFile(str(reason)) from None
    if zlib.crc32(found) != entry.CRC:
        raise zipfile.BadZipFile("its checksum differs")
    return found


def _json(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    log = document(read_text(path), str(path), dict)
    samples = log.get("samples")
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise DriftbookError(f"{path}: no list of samples, so no log of inspect_ai (or one that kept only its header)")
    return log, ((f"{path}: sample {n}", sample) for n, sample in enumerate(samples, 1))


def _resolved(value: Any, kept: dict[str, str]) -> Any:
    """The value with what inspect_ai put aside (long texts, by hash) put back."""
    if not kept:
        return value
    if isinstance(value, str):
        return kept.get(value, value)
    if isinstance(value, list):
        return [_resolved(v, kept) for v in value]
    return {k: _resolved(v, kept) for k, v in value.items()} if isinstance(value, dict) else value
