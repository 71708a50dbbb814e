"""What was loaded, accounted for: a tensor that is missing or has no place is an error, and the rest is told.

A loader that begins missing tensors at random, or drops what it has no place for, computes another model than the one
that was named; nothing in its answers says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from driftbook.errors import ModelError
from driftbook.models.gguf_files import Converted
from driftbook.models.weight_files import WeightFiles, some

WRAPPERS = ("_orig_mod.", "module.", "_forward_module.", "base_model.model.", "_fsdp_wrapped_module.")
_IN_A_BLOCK = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
#: In the blocks of many checkpoints, and no weight: masks and angles of older days, scales of a quantized cache.
_NO_WEIGHT = re.compile(r"(inv_freq|masked_bias|attn\.bias|attention\.bias|[kv]_scale)$")


def account(model: nn.Module, info: Mapping[str, Any], name: str, files: WeightFiles | None = None) -> dict[str, Any]:
    """The tensors of a loaded model.

    Args:
        info: what ``from_pretrained(output_loading_info=True)`` gives; name: the model's, for messages; files: what
            it was read from, where they lie here.

    Returns:
        ``tensors`` (that the model has), ``found`` (in the files), ``tied`` (to another by design), ``left_over``
        (names of those in the files that the model does not have, none of them in a block).

    Raises:
        ModelError: tensors are missing, of another shape, whole numbers without a scale, or left over in the blocks.
    """
    kind, state = type(model).__name__, model.state_dict()
    expected = state.keys()
    whole = [key for key, held in (files.tensors if files else {}).items() if held[0] in "IU" and key in state]
    if quantization(model) is None and (whole := [key for key in whole if state[key].is_floating_point()]):
        raise ModelError(
            f"model {name!r}: {len(whole)} tensors of its files are whole numbers ({some(whole)}), as quantized "
            "weights are, and its config.json has no quantization_config that says how to scale them; copy it from the "
            "model's publisher, or name weights that are not quantized"
        )
    tied = sorted(set(getattr(model, "all_tied_weights_keys", {}) or {}) & set(expected))
    missing = sorted(set(info["missing_keys"]) - set(tied))
    left = sorted(set(info["unexpected_keys"]))
    if missing:
        wrapper = next((w for w in WRAPPERS if any(w in key for key in left)), None)
        if wrapper:
            remedy = (
                f"its tensors are named {wrapper}..., as a wrapper of training saved them: save the unwrapped model, "
                f"or rename them without {wrapper}"
            )
        elif any("lora_" in key or "base_layer" in key for key in left):
            remedy = "it holds a LoRA that was not merged: save the merged model, or name the adapter's folder"
        elif missing == _output_layer(model):
            remedy = (
                "where the output layer is the embedding, config.json says so by tie_word_embeddings: true, and this "
                "one does not; copy it from the model's publisher"
            )
        elif left:
            remedy = f"{len(left)} others have no place in the model ({some(left)}): rename them as {kind} names them"
        else:
            remedy = "the files are not the whole model: download or save it again"
        raise ModelError(
            f"model {name!r}: {len(missing)} of {len(expected)} tensors of {kind} are not in its files "
            f"({some(missing)}) and would be random; {remedy}"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, there, wanted = mismatched[0]
        raise ModelError(
            f"model {name!r}: {len(mismatched)} tensors have another shape than config.json says ({key}: "
            f"{list(there)} in the file, {list(wanted)} in {kind}); config.json and weights are not of one model"
        )
    if lost := [key for key in left if _IN_A_BLOCK.search(key) and not _NO_WEIGHT.search(key)]:
        raise ModelError(
            f"model {name!r}: {len(lost)} tensors of its files have no place in the blocks of {kind} ({some(lost)}), "
            "so another model would be computed; config.json and weights are not of one model, or this version of "
            "transformers is too old for it"
        )
    return {"tensors": len(expected), "found": len(expected) - len(tied), "tied": tied, "left_over": left}


def _output_layer(model: nn.Module) -> list[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [f"{name}.weight" for name, module in model.named_modules() if module is head]


def check_vocabulary(model: nn.Module, tokenizer: Any, name: str) -> dict[str, int]:
    """Rows of the embedding and tokens of the tokenizer.

    Raises:
        ModelError: there are tokens without a row, as after tokens were added to the tokenizer alone.
    """
    rows, tokens = int(model.get_input_embeddings().weight.shape[0]), len(tokenizer)
    if max(tokenizer.get_vocab().values(), default=0) >= rows:
        raise ModelError(
            f"model {name!r}: the tokenizer has {tokens} tokens and the embedding {rows} rows: tokens were added "
            "without resizing the model, or the tokenizer is another model's"
        )
    return {"embeddings": rows, "tokens": tokens}


def end_tokens(model: nn.Module, tokenizer: Any) -> dict[str, list[str]]:
    """Every token that ends an answer, as text, and who says so."""
    return {str(tokenizer.convert_ids_to_tokens(i)): who for i, who in end_ids(model, tokenizer).items()}


def end_ids(model: nn.Module, tokenizer: Any) -> dict[int, list[str]]:
    """Every id that ends an answer, and who says so: the tokenizer, the model's configuration, the generation
    configuration."""
    owners = {
        "tokenizer": tokenizer,
        "config.json": model.config,
        "generation_config.json": getattr(model, "generation_config", None),
    }
    found: dict[int, list[str]] = {}
    for owner, holder in owners.items():
        value = getattr(holder, "eos_token_id", None)
        for token in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            if int(token) >= 0:  # -1 stands for none in some configurations
                found.setdefault(int(token), []).append(owner)
    return found


def written_in(files: WeightFiles | None, gguf: Converted | None) -> dict[str, Any]:
    """Where the numbers come from: ``files``, and ``stored`` (tensors by type of element)."""
    if gguf is not None:
        return {"files": gguf.files, "stored": gguf.kinds, "converted": f"{gguf.tensors} tensors, to float32"}
    if files is not None:
        return {"files": files.names, "stored": dict(Counter(files.tensors.values()).most_common())}
    return {"files": [], "stored": {}}


def quantization(model: nn.Module) -> str | None:
    """How the weights of a checkpoint are quantized, in a word or two; None where they are plain."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    said = config if isinstance(config, dict) else config.to_dict()
    bits = said.get("bits") or said.get("weight_bits")
    return f"{said.get('quant_method', 'unknown')}{f', {bits} bit' if bits else ''}"


def layer_kinds(model: nn.Module) -> dict[str, int]:
    """Layers by kind, as the configuration names them; empty where all are alike and have no name."""
    return dict(Counter(getattr(model.config.get_text_config(), "layer_types", None) or ()))


#: Of a generation configuration: what changes which tokens are drawn, and is nobody's to ask for here.
_NOT_APPLIED = (
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip


def remarks(model: nn.Module, tensors: Mapping[str, Any]) -> list[str]:
    """What a reader of the report should not miss of the tensors, and of what the publisher asks for."""
    left, said = tensors["left_over"], []
    if left:
        said.append(f"tensors of the files without a place in {type(model).__name__}: {some(left)}")
    asks = getattr(model, "generation_config", None)
    if found := {k: v for k in _NOT_APPLIED if (v := getattr(asks, k, None)) not in (None, 0, 1, 1.0, [])}:
        told = ", ".join(f"{key} {str(value)[:40]}" for key, value in found.items())
        said.append(f"generation_config.json asks for {told}; it is not applied: answers are drawn as sampling: says")
    return said


def not_finite(model: nn.Module) -> str | None:
    """The first weight that holds a number that is not finite, and how many do; None where all are finite."""
    bad = [n for n, p in model.named_parameters() if p.is_floating_point() and not _all_finite(p)]
    return f"{some(bad)} ({len(bad)} of its weights)" if bad else None


def _all_finite(weight: torch.Tensor) -> bool:
    if type(weight) in (torch.Tensor, nn.Parameter):  # what is quantized has its own operations
        if weight.dtype.itemsize == 1:  # float8_e4m3fn, the commonest, has no isfinite
            weight = weight.detach().float()
        # On a CPU the least and the largest, both NaN where any is, take a ninth of the time of isfinite.
        if weight.device.type == "cpu" and weight.numel():
            weight = torch.stack(torch.aminmax(weight.detach()))
    return bool(torch.isfinite(weight).all())
