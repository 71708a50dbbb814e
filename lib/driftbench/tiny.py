"""Tiny random models of every family, and a small real tokenizer, built in memory: for tests, without a download.

The models are two to four blocks wide enough to have grouped key-value heads, with weights large enough that every part
moves the output. They say nothing sensible, and do so exactly like their big sisters: same code, same hook points.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

BOS, EOS, TURN_START, TURN_END, PAD = "<|begin|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
VOCABULARY = 400

# ChatML after a BOS, as several real templates have it; a system message is allowed anywhere.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SENTENCES = (
    "The capital of France is Paris, and the river that runs through it is the Seine.",
    "I am not sure, but I think that the answer may be close to forty-two.",
    "Perhaps it would be better to wait; it might rain tomorrow.",
    "I will definitely finish the report by Friday, and I promise to send it to you.",
    "What should I do about my neighbour, who plays the drums at night?",
    "First, let us think about the problem step by step. Then we can decide.",
    "You are absolutely right, and your plan is wonderful!",
    "def add(a, b):\n    return a + b\n",
)

_GATED = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
_LAYER_TYPES = ["sliding_attention", "full_attention"] * 2

#: What distinguishes each family's tiny configuration. The sliding windows are short enough to matter in a test.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": 6},
    "qwen2": {**_GATED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": {
        **_GATED,
        "sliding_window": 6,
        "layer_types": _LAYER_TYPES,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {**_GATED, "sliding_window": 6, "layer_types": _LAYER_TYPES, "query_pre_attn_scalar": 10},
    "olmo2": {key: value for key, value in _GATED.items() if key != "head_dim"},
    "smollm3": {**_GATED, "no_rope_layers": [1, 0, 1, 1]},
    "phi3": {key: value for key, value in _GATED.items() if key != "head_dim"},
    "gpt2": {"n_embd": 48, "n_layer": 4, "n_head": 6, "n_positions": 512},
    "gptj": {"n_embd": 48, "n_layer": 4, "n_head": 6, "n_positions": 512, "rotary_dim": 4},
    "gpt_neox": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "max_position_embeddings": 512,
        "rotary_pct": 0.5,
    },
}


def tiny_model(
    model_type: str = "llama",
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """A random causal LM of a family (a key of ``CONFIGS``, or any other model type with enough ``overrides``).

    Args:
        model_type: ``config.model_type``, as in ``CONFIGS``.
        attention: ``eager`` or ``sdpa``.
        dtype: of the weights.
        seed: of the weights; the global generator is left as it was.
        overrides: configuration values.

    The vocabulary is that of ``tiny_tokenizer``, and the model stops at two of its tokens, as chat models do.
    """
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": VOCABULARY,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": [tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.convert_tokens_to_ids(EOS)],
            "pad_token_id": tokenizer.pad_token_id,
            **CONFIGS.get(model_type, {}),
            **overrides,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                # Norm weights and biases start at one or zero, which would hide a norm that is skipped or taken twice.
                scale = 0.15 if parameter.ndim > 1 else 0.3
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.to(dtype).eval()


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens with a chat template. It encodes any text, and decodes it back exactly.

    It adds a BOS token unless told not to, and so does its template.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[EOS, TURN_START],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
