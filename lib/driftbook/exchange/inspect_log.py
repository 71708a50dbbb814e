"""Logs of inspect_ai: ``.eval`` (a zip with a JSON a sample) and ``.json`` (all in one)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.exchange.answers import READERS, Answer, Options, key, parsed, said, turns


@READERS.register("inspect")
def read(path: Path, options: Options) -> Iterator[Answer]:
    """The last answer of each sample to its input; epochs are several answers to one prompt. The family is the task."""
    head, samples = _zip(path) if zipfile.is_zipfile(path) else _json(path)
    task = str(head.get("eval", {}).get("task", ""))
    for where, sample in samples:
        kept = {f"attachment://{name}": text for name, text in (sample.get("attachments") or {}).items()}
        asked = _resolved(key(sample, "input", where), kept)
        output = _resolved(sample.get("output") or {}, kept)
        choices = output.get("choices") or []
        text = said(choices[0]["message"].get("content")) if choices else output.get("completion")
        prompt = asked if isinstance(asked, str) else turns(asked, where)
        yield Answer(prompt, None if sample.get("error") else text, str(key(sample, "id", where)), task)


def _zip(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    archive = zipfile.ZipFile(path)
    names = [n for n in archive.namelist() if n.startswith("samples/") and n.endswith(".json")]
    top = "header.json" if "header.json" in archive.namelist() else "_journal/start.json"  # of a run that was cut

    def load(name: str) -> dict[str, Any]:
        try:
            return parsed(archive.read(name).decode("utf-8"), f"{path}:{name}")
        except KeyError:
            raise DriftbookError(f"{path}: a zip without {name}, so no log of inspect_ai") from None
        except NotImplementedError:  # zstd, which newer versions of inspect_ai may use
            raise DriftbookError(
                f"{path}: its compression cannot be read here; `inspect log convert --to json` writes one that can"
            ) from None

    return load(top), ((f"{path}:{name}", load(name)) for name in names)


def _json(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    log = parsed(path.read_text(encoding="utf-8"), str(path))
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
