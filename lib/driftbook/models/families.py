"""Where each model family keeps the parts that hook points attach to, as data.

One ``Family`` per architecture: paths below a decoder block, which norm sits where, how q, k and v are laid out.
Nothing here runs a model; ``driftbook.models.hooks`` resolves the paths and proves them with a tiny forward. The paths
were read off transformers 5.23; a family that is not listed is found by ``driftbook.models.hooks.discover``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

#: Paths from a causal LM (or from the model inside a wrapper) to its list of decoder blocks, tried in order.
LAYER_PATHS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "biogpt.layers",
    "backbone.layers",
    "layers",
    "h",
)


@dataclass(frozen=True)
class AttentionParts:
    """Names inside a decoder block's attention module.

    ``qkv`` names a fused projection, in which case ``q``, ``k`` and ``v`` are not used. ``qkv_layout`` says how it is
    cut: ``blocks`` is all queries, then all keys, then all values; ``heads`` is q, k, v of head 0, then of head 1, ...
    ``norm_layout`` is the shape in which q and k leave their norm: ``flat`` [B, T, H * hd], ``tokens`` [B, T, H, hd],
    ``heads`` [B, H, T, hd]. ``method`` names the attention method of modules that do not go through transformers'
    attention interface; ``method_scale`` the attribute that it divides scores by.
    """

    module: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    qkv: str | None = None
    qkv_layout: Literal["blocks", "heads"] = "blocks"
    q_norm: str | None = None
    k_norm: str | None = None
    norm_layout: Literal["flat", "tokens", "heads"] = "tokens"
    rotary: bool = True
    method: str | None = None
    method_scale: str | None = None


@dataclass(frozen=True)
class MLPParts:
    """Names inside a decoder block's MLP module.

    ``gate`` is None where the neuron activation is act(up), without a gate; ``gate_up`` names a fused projection (gate
    first), in which case ``gate`` and ``up`` are not used.
    """

    module: str = "mlp"
    gate: str | None = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str | None = None
    act: str = "act_fn"


@dataclass(frozen=True)
class Family:
    """One architecture.

    ``mid`` is the child of the block whose *input* is the residual stream after attention (``resid_mid``): the norm
    before the MLP, or the MLP itself where a family has no such norm (OLMo 2). It is None where attention and MLP both
    read the block's input and a ``resid_mid`` does not exist; ``parallel`` names the config attribute that decides
    this, where there is one. ``attention_post_norm`` and ``mlp_post_norm`` are applied to a contribution before it is
    added.
    """

    name: str
    model_types: tuple[str, ...]
    layers: tuple[str, ...] = ("model.layers", "model.language_model.layers")
    attention: AttentionParts = AttentionParts()
    mlp: MLPParts = MLPParts()
    mid: str | None = "post_attention_layernorm"
    parallel: str | None = None
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    whole: bool = False
    """Of these blocks only input and output are known: their parts do not add up to a residual stream."""

    @property
    def attention_contribution(self) -> str:
        """The child of a block whose output attention adds to the residual stream."""
        return self.attention_post_norm or self.attention.module

    @property
    def mlp_contribution(self) -> str:
        """The child of a block whose output the MLP adds to the residual stream."""
        return self.mlp_post_norm or self.mlp.module


_LLAMA_LIKE = (
    Family("llama", ("llama",)),
    Family("mistral", ("mistral",)),
    Family("qwen2", ("qwen2",)),
    Family("gemma", ("gemma",)),
    Family("smollm3", ("smollm3",)),
    Family("qwen3", ("qwen3",), attention=AttentionParts(q_norm="q_norm", k_norm="k_norm", norm_layout="tokens")),
)

FAMILIES: tuple[Family, ...] = (
    *_LLAMA_LIKE,
    Family(
        "phi3",
        ("phi3",),
        attention=AttentionParts(qkv="qkv_proj", qkv_layout="blocks"),
        mlp=MLPParts(gate_up="gate_up_proj", act="activation_fn"),
    ),
    Family(
        "gemma2",
        ("gemma2",),
        mid="pre_feedforward_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    Family(
        "gemma3",
        ("gemma3_text", "gemma3"),
        attention=AttentionParts(q_norm="q_norm", k_norm="k_norm", norm_layout="heads"),
        mid="pre_feedforward_layernorm",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    Family(
        # No norm before the MLP: the MLP itself reads the residual stream.
        "olmo2",
        ("olmo2",),
        attention=AttentionParts(q_norm="q_norm", k_norm="k_norm", norm_layout="flat"),
        mid="mlp",
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    Family(
        "gpt2",
        ("gpt2",),
        layers=("transformer.h",),
        attention=AttentionParts("attn", o="c_proj", qkv="c_attn", qkv_layout="blocks", rotary=False),
        mlp=MLPParts(gate=None, up="c_fc", down="c_proj", act="act"),
        mid="ln_2",
    ),
    Family(
        "gpt_neox",
        ("gpt_neox",),
        layers=("gpt_neox.layers",),
        attention=AttentionParts("attention", o="dense", qkv="query_key_value", qkv_layout="heads"),
        mlp=MLPParts(gate=None, up="dense_h_to_4h", down="dense_4h_to_h", act="act"),
        parallel="use_parallel_residual",
    ),
    Family(
        "gptj",
        ("gptj",),
        layers=("transformer.h",),
        attention=AttentionParts("attn", o="out_proj", method="_attn", method_scale="scale_attn"),
        mlp=MLPParts(gate=None, up="fc_in", down="fc_out", act="act"),
        mid=None,
    ),
)


def family_of(model_type: str) -> Family | None:
    """The listed family of a ``config.model_type``, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def child(module: nn.Module, path: str) -> Any:
    """The submodule at a dotted path, or None where any step of it is missing (``get_submodule`` raises instead)."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
