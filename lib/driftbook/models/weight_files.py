"""The files of a model folder before anything reads them: whole, all there, and what they hold.

Libraries that meet a cut or missing file raise whatever their reader stumbles on, or begin with random weights. Here
each such file is named, with what mends it.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from driftbook.errors import ModelError

POINTER = b"version https://git-lfs"
UNFINISHED = (".incomplete", ".part", ".crdownload", ".download", ".tmp")
WEIGHTS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))
ADAPTER = "adapter_config.json"
_READ = (".safetensors", ".bin", ".json", ".model", ".gguf", ".jinja", ".txt")
_MOST_HEADER = 100_000_000  # bytes: what safetensors itself takes as a header

PICKLED = (
    "pickled weights (.bin) are read as tensors alone, and this file holds other objects or is damaged. Load it once "
    "where you trust it, write it as safetensors (model.save_pretrained(folder)), and name that folder"
)


@dataclass
class WeightFiles:
    """``names`` of the files with weights; ``tensors`` to the type of their elements, of safetensors alone;
    ``pickled``: there are only files that pickle wrote."""

    names: list[str] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    pickled: bool = False


def check_files(folder: Path) -> WeightFiles:
    """What the weights of a model folder are written in.

    Raises:
        ModelError: a file is a pointer of git-lfs, a link to nothing, a web page, cut or empty, a shard of the index is
            missing, two files say different things of a tensor, an adapter lies beside, or there are no weights.
    """
    try:
        return _checked(folder)
    except OSError as error:
        raise ModelError(f"model folder {folder}: {error.filename} cannot be read ({error.strerror})") from error


def _checked(folder: Path) -> WeightFiles:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    _refuse_stand_ins(folder, files)
    config = _json(folder / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"model folder {folder}: config.json names no model_type; copy it from the model's publisher")
    ends = folder / "generation_config.json"  # transformers passes over one that it cannot read, end tokens and all
    if ends.exists() and not isinstance(_json(ends), dict):
        raise ModelError(f"{ends}: holds no settings; download it again")
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"model folder {folder} holds an adapter beside the model ({ADAPTER}), which transformers would switch on "
            "unasked; move its files to a folder of their own, and name that as an intervention of kind adapter"
        )
    chosen, listed = _chosen(folder)
    if not chosen:
        part = [p.name for p in files if p.suffix in UNFINISHED]
        other = [p.name for p in files if p.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf")]
        began = f"; {some(part)}: a download that did not end" if part else f"; it has {some(other)}" if other else ""
        raise ModelError(
            f"model folder {folder} holds no weights: neither model.safetensors nor model-*.safetensors with their "
            f"index{began}"
        )
    found = WeightFiles([p.name for p in chosen], pickled=all(p.suffix == ".bin" for p in chosen))
    held: dict[str, Path] = {}
    for path in chosen:
        if path.suffix == ".safetensors":
            entries = read_header(path)
            twice = {name: held[name] for name in entries if name in held}
            if unlike := [name for name, other in twice.items() if not _same(name, other, path)]:
                raise ModelError(
                    f"model folder {folder}: {path.name} and {held[unlike[0]].name} hold different values of "
                    f"{some(unlike)}: they are not of one save; download the model again"
                )
            found.tensors |= {name: str(entry["dtype"]) for name, entry in entries.items()}
            held |= dict.fromkeys(entries, path)
    if found.tensors and (lost := sorted(set(listed) - set(found.tensors))):
        raise ModelError(
            f"model folder {folder}: {len(lost)} of {len(listed)} tensors of the index are in none of its files "
            f"({some(lost)}); download the files again"
        )
    return found


def _same(name: str, one: Path, other: Path) -> bool:
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        return torch.equal(a.get_tensor(name), b.get_tensor(name))


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name to ``dtype``, ``shape``, ``data_offsets``. Raises ModelError for one that
    is cut short or none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        (length,) = struct.unpack("<Q", begin) if len(begin) == 8 else (_MOST_HEADER + 1,)
        if length > _MOST_HEADER:
            raise ModelError(f"{path}: not a safetensors file; download it again")
        head = file.read(length)
    try:
        entries = {k: v for k, v in json.loads(head).items() if k != "__metadata__"}
        end = 8 + length + max((v["data_offsets"][1] for v in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ModelError(f"{path}: the header is damaged or cut short; download it again") from None
    if size != end:
        raise ModelError(f"{path}: is cut short, {size:,} of {end:,} bytes are there; download it again")
    return entries


def _refuse_stand_ins(folder: Path, files: list[Path]) -> None:
    pointers, pages, empty = [], [], []
    if nowhere := sorted(p.name for p in folder.iterdir() if p.suffix in _READ and not p.exists()):
        raise ModelError(
            f"model folder {folder}: {some(nowhere)} are links to what is not there (a cache that was cleaned, or "
            "copied without its blobs); download them again"
        )
    for path in files:
        if path.suffix not in _READ:
            continue
        with path.open("rb") as file:
            begin = file.read(64)
        if begin.startswith(POINTER):
            pointers.append(path.name)
        elif begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            pages.append(path.name)
        elif not begin and path.suffix != ".txt":
            empty.append(path.name)
    if pointers:
        raise ModelError(
            f"model folder {folder}: {some(pointers)} are pointers of git-lfs, not the files themselves; run "
            "`git lfs install && git lfs pull` there"
        )
    if pages:
        raise ModelError(
            f"model folder {folder}: {some(pages)} are web pages (an error or a login that was saved as the file); "
            "download them again, with access to the model"
        )
    if empty:
        raise ModelError(f"model folder {folder}: {some(empty)} are empty; download them again")


def _chosen(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of weights that transformers would read, and the tensors that their index names."""
    for plain, index in WEIGHTS:
        if (folder / plain).is_file():
            return [folder / plain], []
        if (folder / index).is_file():
            return _of_index(folder / index)
    return [], []


def _of_index(path: Path) -> tuple[list[Path], list[str]]:
    index = _json(path)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise ModelError(f"{path}: has no weight_map; download it again")
    named = Counter(where.values())
    if missing := [file for file in sorted(named) if not (path.parent / file).is_file()]:
        count = sum(named[file] for file in missing)
        raise ModelError(
            f"model folder {path.parent}: {len(missing)} of {len(named)} files of weights are missing "
            f"({some(missing)}), with {count} of {len(where)} tensors; download them"
        )
    return [path.parent / file for file in sorted(named)], list(where)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # as transformers reads it
    except ValueError as error:
        raise ModelError(f"{path}: no readable JSON ({error}); download it again") from None


def some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
