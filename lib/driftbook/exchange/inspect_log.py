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
from driftbook.exchange.answers import READERS, Answer, Options, contents, key, parsed, said, turns

ZSTD = 93  # the compression of a zip's entry that inspect_ai writes, and that Python's zipfile learned in 3.14


@READERS.register("inspect")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The last answer of each sample to what was asked before its first one, as solvers put it (with system prompt,
    template, options), else to its input. Epochs are several answers to one prompt. The family is the task."""
    head, samples = _zip(path) if zipfile.is_zipfile(path) else _json(path)
    task = str(head.get("eval", {}).get("task", ""))
    for where, sample in samples:
        kept = {f"attachment://{name}": text for name, text in (sample.get("attachments") or {}).items()}
        messages = sample.get("messages") or []
        before = list(takewhile(lambda m: m.get("source") != "generate", messages))
        given = before if 0 < len(before) < len(messages) else key(sample, "input", where)
        asked = _resolved(given, kept)
        output = _resolved(sample.get("output") or {}, kept)
        choices = output.get("choices") or []
        text = said(choices[0]["message"].get("content")) if choices else output.get("completion")
        prompt = asked if isinstance(asked, str) else turns(asked, where)
        yield Answer(prompt, None if sample.get("error") else text, f"{task}/{key(sample, 'id', where)}", task)


def _zip(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    archive = zipfile.ZipFile(path)
    names = [n for n in archive.namelist() if n.startswith("samples/") and n.endswith(".json")]
    top = "header.json" if "header.json" in archive.namelist() else "_journal/start.json"  # of a run that was cut

    def load(name: str) -> dict[str, Any]:
        try:
            return parsed(_unpacked(archive, name).decode("utf-8"), f"{path}:{name}")
        except KeyError:
            raise DriftbookError(f"{path}: a zip without {name}, so no log of inspect_ai") from None
        except (NotImplementedError, zipfile.BadZipFile, zlib.error) as reason:
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
    log = parsed(contents(path), str(path))
    samples = log.get("samples")
    if not isinstance(samples, list):
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
