"""Families beyond plain attention: decoded as transformers' own generate decodes them, read at the sites that exist."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from driftbench.tiny import CHAT_TEMPLATE, VOCABULARY, tiny_model, tiny_tokenizer
from driftbook.errors import ModelError
from driftbook.models.loading import LoadedModel, load
from driftbook.models.local import LocalEngine, keeps_states
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.models.steering import SteerTap
from driftbook.sections import ModelSpec
from models import GREEDY, full_logits, generated, hidden_states, requests_for, some_prompts

pytestmark = pytest.mark.numeric

PLAIN = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
STATES = {"mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
ALONE = {"hidden_size": 48, "num_hidden_layers": 4, "state_size": 8}

#: Hybrid and state-space families: tiny configurations.
RECURRENT = {
    "qwen3_next": {**PLAIN, **LINEAR, **EXPERTS, "head_dim": 12, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": {**PLAIN, **LINEAR, "head_dim": 12},
    "olmo_hybrid": {**PLAIN, **LINEAR},
    "lfm2": {**PLAIN, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "granitemoehybrid": {
        **PLAIN,
        **STATES,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
    },
    "bamba": {**PLAIN, **STATES, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**PLAIN, **STATES, "mamba_d_ssm": 96, "head_dim": 12},
    "jamba": {
        **PLAIN,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "mamba": ALONE,
    "falcon_mamba": ALONE,
    "mamba2": {**ALONE, "num_heads": 4, "head_dim": 24, "n_groups": 1, "chunk_size": 8},
}
PROMPTS = some_prompts([9, 3, 6, 6, 14])
BEGIN_ALIKE = [PROMPTS[4] + rest for rest in some_prompts([2, 7, 4], seed=1)]
"""Of one beginning that is computed once, and of unlike length behind it."""


def held(model, tokenizer=None, **more) -> LoadedModel:
    config = model.config.get_text_config()
    return LoadedModel(
        model=model.requires_grad_(False).eval(),
        tokenizer=tokenizer or tiny_tokenizer(),
        key=type(model).__name__,
        device=torch.device("cpu"),
        dtype=torch.float32,
        reason="a test",
        eos_ids=frozenset(),
        context=int(getattr(config, "max_position_embeddings", 512)),
        use_chat_template=True,
        record={"model": f"tiny {config.model_type}"},
        **more,
    )


@pytest.fixture(scope="module", params=RECURRENT)
def recurrent(request):
    return held(tiny_model(request.param, **RECURRENT[request.param]))


def by_generate(model: LoadedModel, prompt: tuple[int, ...], tokens: int = 8) -> list[int]:
    """Greedy tokens as transformers itself decodes the prompt alone."""
    with torch.no_grad():
        out = model.model.generate(
            torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return out[0, len(prompt) :].tolist()


def test_a_family_with_states_is_decoded_as_generate_decodes_it(recurrent):
    assert keeps_states(recurrent)
    expected = [by_generate(recurrent, p) for p in PROMPTS]
    for batch in (8, 2, 1):  # with 2, rows leave and others join
        found = generated(recurrent, requests_for(PROMPTS), GREEDY, batch)
        assert [ids for ids, _ in found] == expected
    twice = generated(recurrent, requests_for(PROMPTS[:2], samples=3), SamplingParams(5, 0.9))
    alone = generated(recurrent, requests_for(PROMPTS[:2], samples=3), SamplingParams(5, 0.9), 1)
    assert twice == alone and len({tuple(ids) for ids, _ in twice}) > 2  # samples of a prompt have streams of their own


def test_a_family_with_states_is_read_as_its_own_forward_computes(recurrent):
    sequences = [TokenSequence(p, (5, 6, 7)) for p in PROMPTS]
    for batch, logits in replay(recurrent, sequences, logits=True):
        for row, i in enumerate(batch):
            own = logits[row, -4:].double().numpy()
            # the same sums in a batch with padding, of which float32 keeps 2**-24
            assert abs(own - full_logits(recurrent, sequences[i])[-4:]).max() < 2e-3


def test_sites_that_exist_are_captured_and_edits_move_the_text(recurrent):
    points = recurrent.hooks
    assert {"resid_pre", "resid_post"} <= set(points.sites)
    ids = PROMPTS[0]
    with torch.no_grad(), points.capture("resid_post", layers=[0]) as record:
        recurrent.model(input_ids=torch.tensor([ids]), use_cache=False)
    # Of state-space models transformers gives the blocks' outputs from the first on, of others the embedding before.
    own = hidden_states(recurrent, ids)
    assert min(abs(h - record[0, "resid_post"][0].numpy()).max() for h in own[:3]) < 1e-5
    tap = SteerTap(1, "resid_post", torch.randn(points.d_model, generator=torch.Generator().manual_seed(0)), 30.0)
    plain, steered = (generated(recurrent, requests_for(PROMPTS[:2]), GREEDY, taps=t) for t in ((), (tap,)))
    assert plain != steered


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        (  # it keeps its states in its modules, where two batches would meet
            "recurrent_gemma",
            {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
             "lru_width": 48, "attention_window_size": 16},
        ),
        ("rwkv", {"hidden_size": 48, "attention_hidden_size": 48, "num_hidden_layers": 3, "context_length": 64}),
        (
            "minimax",
            {**PLAIN, "head_dim": 12, "layer_types": ["linear_attention", "full_attention"] * 2,
             "num_local_experts": 2, "block_size": 8},
        ),
    ],
)  # fmt: skip
def test_a_family_with_a_cache_of_its_own_is_refused_by_the_kinds_of_its_layers(model_type, settings):
    model = held(tiny_model(model_type, **settings))
    with pytest.raises(ModelError, match=rf"tiny {model_type} \(\w+, layers: .*\) cannot be decoded here"):
        list(LocalEngine(model).generate(requests_for(PROMPTS[:1]), GREEDY))


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("granite", PLAIN),
        ("qwen3_moe", {**PLAIN, **EXPERTS, "head_dim": 12}),
        ("gpt_oss", {**PLAIN, "head_dim": 12, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6,
                     "layer_types": ["sliding_attention", "full_attention"] * 2}),
        ("cohere2", {**PLAIN, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}),
        ("opt", {"hidden_size": 48, "word_embed_proj_dim": 24, "ffn_dim": 80, "num_hidden_layers": 2,
                 "num_attention_heads": 4}),
        ("falcon", {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
                    "new_decoder_architecture": True}),
        ("stablelm", {**PLAIN, "partial_rotary_factor": 0.5}),
        ("deepseek_v3", {**PLAIN, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
                         "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
                         "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                         "v_head_dim": 8}),
    ],
)  # fmt: skip
def test_an_unlisted_family_of_attention_is_rehearsed_once(model_type, settings):
    model = held(tiny_model(model_type, **settings))
    assert not keeps_states(model) and not model.rehearsed
    for prompts in (PROMPTS, BEGIN_ALIKE):
        found = generated(model, requests_for(prompts), GREEDY)
        assert [ids for ids, _ in found] == [by_generate(model, p) for p in prompts] and model.rehearsed


BY_COLUMNS = {
    "mpt": {"d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "llama4_text": {**PLAIN, "head_dim": 12, "attention_chunk_size": 6, "intermediate_size_mlp": 80,
                    "num_local_experts": 2, "num_experts_per_tok": 1, "no_rope_layers": [1, 1, 1, 0]},
    "gpt_neo": {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                "window_size": 15},  # wider than a rehearsal is long
}  # fmt: skip


@pytest.mark.parametrize("model_type", BY_COLUMNS)
def test_a_family_that_counts_columns_or_cuts_chunks_is_decoded_with_its_own_cache(model_type):
    model = held(tiny_model(model_type, **BY_COLUMNS[model_type]))
    for prompts in (PROMPTS, BEGIN_ALIKE):
        found = generated(model, requests_for(prompts), GREEDY)
        assert [ids for ids, _ in found] == [by_generate(model, p) for p in prompts]
    assert keeps_states(model)
    for batch, logits in replay(model, [TokenSequence(p, (5,)) for p in BEGIN_ALIKE], logits=True):
        for row, i in enumerate(batch):
            own = full_logits(model, (*BEGIN_ALIKE[i], 5))[-2:]
            assert abs(logits[row, -2:].double().numpy() - own).max() < 1e-3 * abs(own).max()


def test_a_window_that_a_family_does_not_read_is_no_window():
    plain, stray = (held(tiny_model("llama", **more)) for more in ({}, {"sliding_window": 6}))
    found, expected = (generated(model, requests_for(BEGIN_ALIKE), GREEDY) for model in (stray, plain))
    assert stray.model.config.sliding_window == 6 and found == expected


def test_several_streams_a_token_are_decoded_and_not_captured():
    model = held(tiny_model("gemma3n_text", **{
        **PLAIN, "head_dim": 12, "intermediate_size": [80] * 4, "layer_types": ["full_attention"] * 4,
        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
        "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4,
    }))  # fmt: skip
    assert [ids for ids, _ in generated(model, requests_for(PROMPTS), GREEDY)] == [
        by_generate(model, p) for p in PROMPTS
    ]
    with pytest.raises(
        ModelError, match=r"model\.layers\.0: Gemma3n\w+ keeps several streams a token \(\[2, 1, 5, 48\]\)"
    ):
        _ = model.hooks


def test_a_family_that_steps_otherwise_than_it_reads_is_refused():
    model = held(tiny_model("granite", **PLAIN))
    own = model.model.forward

    def forgets(*args, **kwargs):
        out = own(*args, **kwargs)
        if kwargs["input_ids"].shape[1] == 1:  # a step
            out.logits = out.logits.flip(-1)
        return out

    model.model.forward = forgets
    with pytest.raises(ModelError, match="step by step it computes other logits than at once"):
        list(LocalEngine(model).generate(requests_for(PROMPTS[:1]), GREEDY))
    assert not model.rehearsed


# ------------------------------------------------------------------------------------------------- models that also see

TEXT = {**PLAIN, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 4, "pad_token_id": 0}
SEES = {
    "qwen2_vl": {
        "text_config": {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2], "rope_type": "default"}},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 48, "num_heads": 2, "patch_size": 4},
    },
    "gemma3": {
        "text_config": {**TEXT, "head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 12,
                        "layer_types": ["sliding_attention", "full_attention"] * 2},
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                          "image_size": 8, "patch_size": 4},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16,
                          "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
                          "projection_dim": 16},
    },
}  # fmt: skip
PARTS = CHAT_TEMPLATE.replace("message['content']", "message['content'] | map(attribute='text') | join")


@pytest.mark.parametrize("model_type", SEES)
def test_a_model_that_also_sees_answers_text_as_generate_does(model_type, tmp_path):
    config = AutoConfig.for_model(model_type, **SEES[model_type])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForImageTextToText.from_config(config)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.15)
    made.eval().save_pretrained(tmp_path / "m")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    (tmp_path / "m" / "chat_template.json").write_text(json.dumps({"chat_template": PARTS}))  # of its processor
    model = load(ModelSpec(model=str(tmp_path / "m"), dtype="float32", device="cpu"), tmp_path)
    assert model.template.parts and model.record["load"]["content"] == "parts"
    assert "<|im_start|>user\nHi<|im_end|>" in model.tokenizer.decode(model.encode_prompt("Hi"))
    found = generated(model, requests_for(PROMPTS), GREEDY)
    expected = [by_generate(model, p) for p in PROMPTS]
    for (ids, _), own in zip(found, expected, strict=True):
        end = next((k + 1 for k, t in enumerate(own) if t in model.eos_ids), len(own))
        assert ids == own[:end]
    assert {"resid_pre", "resid_post"} <= set(model.hooks.sites)
