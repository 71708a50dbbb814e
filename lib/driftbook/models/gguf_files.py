"""A GGUF model as a folder that transformers loads, converted once: every tensor of every file has its place."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftbook.errors import ModelError, first_line
from driftbook.hashes import file_hash
from driftbook.models.gguf_header import GgufHeader, read_gguf_header, shards
from driftbook.models.weight_files import some
from driftbook.store import kept_folder

MARK = "complete"
"""The file that a finished folder holds: where its weights came from, as JSON."""
_ROTATION = re.compile(r"^rope_(freqs|factors_long|factors_short)\.weight$")
_IN_A_BLOCK = re.compile(r"^blk\.\d+\.")


@dataclass(frozen=True)
class Converted:
    """What became of a GGUF model. ``kinds``: tensors by type of element; ``left_over``: tensors without a place in the
    model, none of them in its blocks; ``passed_over``: fields of the file that say how to compute, and that the reader
    does not read."""

    sha256: str
    files: list[str]
    tensors: int
    kinds: dict[str, int]
    left_over: list[str] = field(default_factory=list)
    passed_over: dict[str, Any] = field(default_factory=dict)

    def told(self) -> list[str]:
        """Sentences about what is not computed as the file says."""
        said = []
        if turned := [name for name in self.left_over if _ROTATION.match(name)]:
            said.append(
                f"{', '.join(turned)}: factors of the positions, which the reader does not apply; long prompts are "
                "read otherwise than llama.cpp reads them"
            )
        if others := [name for name in self.left_over if not _ROTATION.match(name)]:
            said.append(f"tensors without a place in the model: {some(others)}")
        if self.passed_over:
            fields = ", ".join(f"{name} = {value}" for name, value in sorted(self.passed_over.items()))
            said.append(f"fields that the reader passes over: {fields}")
        return said


def account_of(folder: Path) -> Converted | None:
    """What became of the GGUF model that a folder was converted from; None for any other folder."""
    try:
        return Converted(**json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent; one of an older make, which held a hash alone
        return None


def converted(gguf: Path, cache: Path, name: str) -> Path:
    """A safetensors folder with the weights of a GGUF model, dequantized to float32. Safe under concurrent callers.

    Raises:
        ModelError: a file is missing or cut, the architecture cannot be read, or a tensor of the blocks has no place.
    """

    def convert(staging: Path) -> None:
        files = shards(gguf)
        headers = [read_gguf_header(path) for path in files]
        _refuse_cut(files, headers)
        account = _convert(files, headers, staging)
        (staging / MARK).write_text(json.dumps(asdict(account)), encoding="utf-8")

    return kept_folder(cache / "models" / name, lambda folder: account_of(folder) is not None, convert)


def _convert(files: list[Path], headers: list[GgufHeader], staging: Path) -> Converted:
    from gguf import GGMLQuantizationType  # half a second, for one format
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds

    names: dict[str, str] = {}
    try:
        with _read_once(files, names):
            where: dict[str, Any] = {"pretrained_model_name_or_path": files[0].parent, "gguf_file": files[0].name}
            told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = AutoModelForCausalLM.from_pretrained(**where, **told, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # the readers raise many kinds, and what is wrong is the file or its architecture
        raise ModelError(
            f"{files[0]}: transformers cannot read this GGUF file (architecture "
            f"{headers[0].fields.get('general.architecture')!r}): {first_line(error)}. Take the model's safetensors "
            "folder instead"
        ) from error
    tensors = [t for header in headers for t in header.tensors]
    again = "download it again" if names or len(files) == 1 else "join its files (llama-gguf-split --merge)"
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{files[0]}: {len(missing)} tensors of {type(model).__name__} are not in the file ({some(missing)}), "
            f"which holds {len(tensors)}; {again}, or take the model's safetensors folder"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        raise ModelError(
            f"{files[0]}: {len(mismatched)} tensors have another shape than the fields of the file say (first: "
            f"{mismatched[0][0]}); take the model's safetensors folder"
        )
    if names:  # the older reader drops what it has no name for
        left = [t.name for t in tensors if t.name not in names and "_exps." not in t.name]
    else:
        left = sorted(info["unexpected_keys"])
    if lost := [name for name in left if _IN_A_BLOCK.match(name)]:
        raise ModelError(
            f"{files[0]}: {len(lost)} of {len(tensors)} tensors have no place in {type(model).__name__} "
            f"({some(lost)}), so another model would be computed; take the model's safetensors folder"
        )
    # The weights are plain float32 now; transformers refuses to save them while the quantizer is attached.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    return Converted(
        file_hash(files[0]),
        [path.name for path in files],
        len(tensors),
        dict(Counter(GGMLQuantizationType(t.kind).name for t in tensors).most_common()),
        left,
        _passed_over(headers[0]),
    )


def _passed_over(header: GgufHeader) -> dict[str, Any]:
    """Fields of the architecture that the older reader knows nothing of; the newer one works from the fields itself."""
    # a second, and texts are read without
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    arch = str(header.fields.get("general.architecture"))
    known = GGUF_TO_TRANSFORMERS_MAPPING["config"].get(arch)
    if known is None:
        return {}
    own = {name.removeprefix(f"{arch}."): v for name, v in header.fields.items() if name.startswith(f"{arch}.")}
    return {f"{arch}.{name}": value for name, value in own.items() if name not in known}


def _refuse_cut(files: list[Path], headers: list[GgufHeader]) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # a second

    for path, header in zip(files, headers, strict=True):
        end = header.start
        for tensor in header.tensors:
            try:
                elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
            except (ValueError, KeyError):
                raise ModelError(
                    f"{path}: {tensor.name} is of ggml's type {tensor.kind}, which is not known here; take another "
                    "quantization of the model, or update the package gguf"
                ) from None
            end = max(end, header.start + tensor.offset + tensor.elements // elements * size)
        there = path.stat().st_size
        if there < end:
            raise ModelError(f"{path}: is cut short, {there:,} of {end:,} bytes are there; download it again")


@contextlib.contextmanager
def _read_once(files: list[Path], names: dict[str, str]) -> Iterator[None]:
    """While active, a GGUF model is parsed once, with the tensors of all its files, and the names of its tensors are
    worked out once (transformers does the first for configuration, weights and tokenizer each, and the second for every
    module). ``names`` receives the tensors that get a place."""
    import gguf  # a second
    from transformers import modeling_gguf_pytorch_utils as reader

    def whole(path: Any, *args: Any) -> Any:
        first = parse(path, *args)
        for more in files[1:]:
            first.tensors.extend(parse(more).tensors)
        return first

    def placed(*args: Any, **kwargs: Any) -> dict[str, str]:
        found = mapped(*args, **kwargs)
        names.update(found)
        return found

    parse, mapped = gguf.GGUFReader, reader.get_gguf_hf_weights_map
    made = {
        (gguf, "GGUFReader"): functools.cache(whole),
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (reader, "get_gguf_hf_weights_map"): placed,
    }
    plain = {(module, name): getattr(module, name) for module, name in made}
    try:
        for (module, name), one in made.items():
            setattr(module, name, one)
        yield
    finally:
        for (module, name), one in plain.items():
            setattr(module, name, one)
