"""A steered model as an ordinary checkpoint: the vector becomes the bias of the matrix that writes to its site.

What a block adds to the residual stream leaves through one matrix (attention's output, the MLP's down projection), so a
vector that is added there at every token is a bias of that matrix. Any server then steers without knowing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from driftbook.errors import ModelError
from driftbook.models.families import child
from driftbook.models.loading import LoadedModel
from driftbook.models.steering import SteerTap
from driftbook.store import kept_folder

#: Architectures whose arithmetic is llama's, so that llama's optional biases can hold the vector.
LIKE_LLAMA = ("llama", "mistral", "qwen2")
_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


def export_steered(model: LoadedModel, tap: SteerTap, folder: Path) -> Path:
    """Write the model with the tap's edit in its weights, loadable by transformers and by any server.

    A model that has no bias at that place (Mistral, Qwen 2) is written as the llama that computes the same.

    Args:
        tap: a steering edit at full strength and all positions; folder: complete or absent.

    Raises:
        ModelError: the edit is of other positions, or the architecture has no place for a bias there.
    """
    if tap.positions != "all":
        raise ModelError(
            f"intervention.positions {tap.positions}: a bias acts on every token, so only positions: all can be "
            "written into weights; take engine.decoder: local"
        )

    def write(staging: Path) -> None:
        layer, path = _place(model, tap.layer, tap.site)
        linear = child(model.hooks.blocks[layer], path)
        state = {name: tensor.detach().cpu() for name, tensor in model.model.state_dict().items()}
        name = f"{model.hooks.layers_path}.{layer}.{path}.bias"
        delta = tap.delta.detach().cpu()
        if getattr(linear, "bias", None) is not None:
            config = model.model.config
            state[name] = (state[name].float() + delta).to(model.dtype)
        else:
            config = _with_biases(model, state, path)
            state[name] = delta.to(model.dtype)
        _write(model, config, state, staging)

    return kept_folder(folder, lambda there: (there / "config.json").is_file(), write)


def _place(model: LoadedModel, layer: int, site: str) -> tuple[int, str]:
    """The block and the path of the matrix whose bias is added at the site."""
    hooks = model.hooks
    hooks.points(site, [layer])
    if site == "resid_pre":
        if layer == 0:
            raise ModelError(
                "resid_pre of layer 0 is the embedding: no matrix writes to it; take resid_post of a layer"
            )
        layer, site = layer - 1, "resid_post"
    family = hooks.families[layer]
    attention = site in ("resid_mid", "attn_contribution")
    if family.attention_post_norm if attention else family.mlp_post_norm:
        raise ModelError(
            f"{family.name} normalizes what a block adds, so no bias is a constant vector in its residual stream; "
            "take engine.decoder: local"
        )
    part, name = (family.attention.module, family.attention.o) if attention else (family.mlp.module, family.mlp.down)
    return layer, f"{part}.{name}"


def _with_biases(model: LoadedModel, state: dict[str, torch.Tensor], path: str) -> Any:
    """A llama configuration with biases, and zeros in ``state`` for those that the model does not have."""
    old = model.model.config
    window = getattr(old, "sliding_window", None) if getattr(old, "use_sliding_window", True) else None
    if old.model_type not in LIKE_LLAMA or (window is not None and window < model.context):
        raise ModelError(
            f"{model.record['model']} ({old.model_type}) has no bias at {path}, and is no llama that could hold one; "
            "take engine.decoder: local"
        )
    kept = old.to_dict()
    for key in (
        "architectures",
        "model_type",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    ):
        kept.pop(key, None)
    attention = path.startswith("self_attn")
    own = {part: f"{model.hooks.layers_path}.0.{part}.bias" in state for part in ("self_attn.q_proj", "mlp.down_proj")}
    biases = {
        "attention_bias": attention or own["self_attn.q_proj"],
        "mlp_bias": not attention or own["mlp.down_proj"],
    }
    config = LlamaConfig(**{**kept, **biases})
    config.architectures = ["LlamaForCausalLM"]
    for layer in range(model.hooks.n_layers):
        prefix = f"{model.hooks.layers_path}.{layer}."
        parts = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] if config.mlp_bias else []
        parts += [f"self_attn.{p}" for p in (*_QUERY_KEY_VALUE, "o_proj")] if config.attention_bias else []
        for part in parts:
            rows = state[f"{prefix}{part}.weight"].shape[0]
            state.setdefault(f"{prefix}{part}.bias", torch.zeros(rows, dtype=model.dtype))
    return config


def _write(model: LoadedModel, config: PretrainedConfig, state: dict[str, torch.Tensor], folder: Path) -> None:
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    shell.load_state_dict(state, strict=True, assign=True)
    shell.tie_weights()
    shell.generation_config = model.model.generation_config
    shell.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
