"""Tiny models as GGUF files, as llama.cpp's converter would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from driftbench.tiny import tiny_model, tiny_tokenizer

PLAIN = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "use_sliding_window": False,
}


def qwen2(**overrides: Any):
    """A tiny Qwen 2, whose tensors GGUF holds as they stand."""
    return tiny_model("qwen2", **{**PLAIN, **overrides})


def write_gguf(
    path: Path,
    model: Any,
    files: int = 1,
    without: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    fields: dict[str, float] | None = None,
) -> list[Path]:
    """Write a Qwen 2 into so many files; ``without`` names tensors that are left out, ``extra`` those that are added,
    ``fields`` numbers of the architecture."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    tensors = {}
    for name, value in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        tensors[f"{names.get_name(stem)}.{suffix}"] = value.float().numpy()
    tensors = {name: value for name, value in tensors.items() if name not in without} | (extra or {})
    parts = np.array_split(list(tensors), files)
    paths = [path] if files == 1 else [
        path.with_name(f"{path.stem}-{i + 1:05}-of-{files:05}.gguf") for i in range(files)
    ]  # fmt: skip
    for number, (file, part) in enumerate(zip(paths, parts, strict=True)):
        writer = gguf.GGUFWriter(file, "qwen2")
        if number == 0:
            _describe(writer, config, fields or {})
        if files > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", files)
            writer.add_int32("split.tensors.count", len(tensors))
        for name in part:
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def _describe(writer: Any, config: Any, fields: dict[str, float]) -> None:
    import json

    tokenizer = tiny_tokenizer()
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in fields.items():
        writer.add_float32(f"qwen2.{name}", value)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
