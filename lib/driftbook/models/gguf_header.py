"""The header of a GGUF file: what kind of model it holds and how large, without its weights or its vocabulary.

``gguf.GGUFReader`` makes an array of every token of the vocabulary, which takes seconds; this walks past them. The
format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from driftbook.errors import ModelError

MAGIC = b"GGUF"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """``fields`` by name, arrays of strings left out; ``parameters``: elements of all tensors."""

    fields: dict[str, Any]
    parameters: int

    def of_model(self, name: str) -> Any:
        """The field ``<architecture>.<name>``; None where the file has none."""
        return self.fields.get(f"{self.fields.get('general.architecture')}.{name}")


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises ModelError for a file that is no GGUF file, is cut short, or is of another version."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError(f"{path}: not a GGUF file; name one, a folder with config.json, or a Hugging Face id")
        try:
            (version,) = _unpack(file, "I")
            if version not in (2, 3):
                raise ModelError(f"{path}: GGUF version {version}, and versions 2 and 3 are read; convert it anew")
            tensors, count = _unpack(file, "QQ")
            fields = {}
            for _ in range(count):
                name = _string(file)
                value = _value(file, *_unpack(file, "I"))
                if value is not None:
                    fields[name] = value
            parameters = 0
            for _ in range(tensors):
                _string(file)
                (dimensions,) = _unpack(file, "I")
                parameters += math.prod(_unpack(file, f"{dimensions}Q"))
                _unpack(file, "IQ")  # type of the elements, place in the file
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: the GGUF header is damaged ({error}); copy or download the file again") from None
    return GgufHeader(fields, parameters)


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
