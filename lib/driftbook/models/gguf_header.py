"""The header of a GGUF file: what kind of model it holds and how large, without its weights or its vocabulary.

``gguf.GGUFReader`` makes an array of every token of the vocabulary, which takes seconds; this walks past them. The
format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from driftbook.errors import ModelError

MAGIC = b"GGUF"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """``kind`` is ggml's number of the type of its elements, ``offset`` counts from where the weights begin."""

    name: str
    elements: int
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """``fields`` by name, arrays of strings left out; ``start``: where the weights begin in the file."""

    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    start: int

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(t.elements for t in self.tensors)

    def of_model(self, name: str) -> Any:
        """The field ``<architecture>.<name>``; None where the file has none."""
        return self.fields.get(f"{self.fields.get('general.architecture')}.{name}")


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises ModelError for a file that is no GGUF file, is cut short, or is of another version."""
    with path.open("rb") as file:
        if (begin := file.read(4)) != MAGIC:
            pointer = " (it is a pointer of git-lfs: run `git lfs pull`)" if begin == b"vers" else ""
            raise ModelError(
                f"{path}: not a GGUF file{pointer}; name one, a folder with config.json, or a Hugging Face id"
            )
        try:
            (version,) = _unpack(file, "I")
            if version not in (2, 3):
                raise ModelError(f"{path}: GGUF version {version}, and versions 2 and 3 are read; convert it anew")
            count, pairs = _unpack(file, "QQ")
            fields = {}
            for _ in range(pairs):
                name = _string(file)
                value = _value(file, *_unpack(file, "I"))
                if value is not None:
                    fields[name] = value
            tensors = []
            for _ in range(count):
                name = _string(file)
                (dimensions,) = _unpack(file, "I")
                elements = math.prod(_unpack(file, f"{dimensions}Q"))
                tensors.append(GgufTensor(name, elements, *_unpack(file, "IQ")))
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path}: the GGUF header is damaged ({error}); copy or download the file again") from None
        alignment = fields.get("general.alignment", 32)
        return GgufHeader(fields, tuple(tensors), -(-file.tell() // alignment) * alignment)


def shards(path: Path) -> list[Path]:
    """The files of a model that was split, in their order, whichever is named; the file alone where it was not.

    Raises:
        ModelError: files are missing, or hold fewer tensors than the first one says.
    """
    header = read_gguf_header(path)
    count = header.fields.get("split.count", 0)
    if count < 2:
        return [path]
    match = _SHARD.search(path.name)
    if match is None or int(match[2]) != count:
        raise ModelError(
            f"{path}: one of {count} files of a split model, under a name that does not say which; name them "
            f"<model>-00001-of-{count:05}.gguf and so on, or join them (llama-gguf-split --merge)"
        )
    stem = path.name[: match.start()]
    found = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if missing := [p.name for p in found if not p.is_file()]:
        raise ModelError(
            f"{path}: {len(missing)} of the {count} files of this split model are missing ({', '.join(missing[:3])}); "
            "download them into the same folder"
        )
    headers = [read_gguf_header(p) for p in found]
    stated, there = headers[0].fields.get("split.tensors.count"), sum(len(h.tensors) for h in headers)
    if stated is not None and stated != there:
        raise ModelError(
            f"{path}: the split model has {stated} tensors, and its files hold {there}; download them again"
        )
    return found


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _string(file: BinaryIO) -> str:
    return file.read(*_unpack(file, "Q")).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _unpack(file, NUMBERS[kind])[0]
    inner, count = _unpack(file, "IQ")
    if inner == STRING:
        for _ in range(count):
            file.seek(*_unpack(file, "Q"), 1)
        return None
    return list(_unpack(file, f"{count}{NUMBERS[inner]}"))
