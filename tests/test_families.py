"""Which models are accepted, and how the ones that cannot be read are refused."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from driftbench.tiny import BOS, CONFIGS, TURN_END, tiny_model, tiny_tokenizer
from driftbook.errors import ModelError
from driftbook.models import hooks
from driftbook.models.families import FAMILIES, AttentionParts, family_of
from driftbook.models.hooks import SITES, HookPoints, validate
from driftbook.models.internals import validate_internals

pytestmark = pytest.mark.numeric

GROUPED = {key: value for key, value in CONFIGS["llama"].items() if key != "head_dim"}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Families that families.py does not describe: what tier 1 and 2 find in them, and whether tier 3 can be read too.
UNLISTED = {
    "olmo": (GROUPED, "post_attention_layernorm", ("attention", "mlp")),
    "starcoder2": (GROUPED, "post_attention_layernorm", ("attention", "mlp")),
    "nemotron": (GROUPED, "post_attention_layernorm", ("attention", "mlp")),
    "olmo3": (GROUPED, "mlp", ("attention", "mlp")),
    "exaone4": (GROUPED, "mlp", ("attention", "mlp")),
    "glm4": (CONFIGS["llama"], "post_attention_layernorm", ("attention", "mlp")),
    "gpt_bigcode": ({"n_embd": 48, "n_layer": 4, "n_head": 6}, "ln_2", ("attention", "mlp")),
    "cohere": (GROUPED, None, ("attention", "mlp")),
    "phi": (GROUPED, None, ()),
    "mixtral": ({**GROUPED, **EXPERTS}, "post_attention_layernorm", ("attention",)),
    "qwen3_next": ({**CONFIGS["llama"], **EXPERTS}, "post_attention_layernorm", ()),
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_listed_family_is_proved_at_load(model_type):
    points = validate(tiny_model(model_type))
    assert (points.n_layers, points.d_model) == (4, 48)
    parallel = model_type in ("gptj", "gpt_neox")
    assert points.sites == tuple(site for site in SITES if not (parallel and site == "resid_mid"))
    validate_internals(points, range(points.n_layers))


def test_at_least_nine_families_are_described():
    wanted = {"gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt_neox", "olmo2"}
    assert all(family_of(model_type) for model_type in wanted)
    assert wanted <= set(CONFIGS)


@pytest.mark.parametrize("model_type", UNLISTED)
def test_unlisted_family_is_found_by_its_arithmetic(model_type):
    settings, mid, parts = UNLISTED[model_type]
    points = validate(tiny_model(model_type, **settings))
    assert points.family.mid == mid
    assert ("resid_mid" in points.sites) == (mid is not None)
    if parts:
        validate_internals(points, range(points.n_layers), parts)


def test_block_kinds_may_differ_from_layer_to_layer():
    settings, _, _ = UNLISTED["qwen3_next"]
    points = HookPoints(tiny_model("qwen3_next", **settings))
    assert {family.attention.module for family in points.families} == {"linear_attn", "self_attn"}


def test_gpt_neox_with_sequential_blocks_has_a_resid_mid():
    points = validate(tiny_model("gpt_neox", use_parallel_residual=False))
    assert "resid_mid" in points.sites


def test_parallel_family_says_that_it_has_no_resid_mid():
    points = HookPoints(tiny_model("gpt_neox"))
    with pytest.raises(ModelError, match="gpt_neox adds attention and MLP side by side"):
        points.points("resid_mid")


@pytest.mark.parametrize("path", ["self_attn", "post_attention_layernorm"])
def test_missing_module_is_named_with_its_path(path):
    model = tiny_model("llama")
    delattr(model.model.layers[2], path)
    with pytest.raises(ModelError, match=rf"model\.layers\.2\.{path}: no such module in LlamaForCausalLM"):
        validate(model)


def test_missing_list_of_blocks_is_named():
    model = tiny_model("llama")
    model.model.blocks = model.model.layers
    del model.model.layers
    with pytest.raises(ModelError, match=r"model\.layers: no such list of decoder blocks"):
        validate(model)


def test_tier_3_of_a_mixture_of_experts_names_the_missing_projection():
    settings, _, _ = UNLISTED["mixtral"]
    points = HookPoints(tiny_model("mixtral", **settings))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.down_proj: no such module in MixtralForCausalLM"):
        validate_internals(points, [0])


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("granite", {**GROUPED, "residual_multiplier": 0.5}),
        ("mamba", {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 4}),
    ],
)
def test_a_block_whose_parts_do_not_add_up_is_read_at_its_input_and_output(model_type, settings):
    points = validate(tiny_model(model_type, **settings))
    assert points.sites == ("resid_pre", "resid_post") and points.whole
    with pytest.raises(ModelError, match=r"resid_mid: the parts of the blocks .* only their input and output"):
        points.points("resid_mid")


# Each description is wrong in a way that a reader of the model's code could get wrong.
WRONG = {
    "normed MLP input taken for resid_mid": ("llama", {"mid": "mlp"}, "resid_mid = resid_pre"),
    "contribution taken before the post-norm": ("gemma2", {"attention_post_norm": None}, "resid_mid = resid_pre"),
    "MLP contribution taken before the post-norm": ("olmo2", {"mlp_post_norm": None}, "resid_post = resid_mid"),
    "parallel block taken for a sequential one": ("gpt_neox", {"parallel": None}, "resid_mid = resid_pre"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_description_fails_at_load(mistake, monkeypatch):
    model_type, change, message = WRONG[mistake]
    wrong = dataclasses.replace(family_of(model_type), **change)
    monkeypatch.setattr(hooks, "family_of", lambda _: wrong)
    with pytest.raises(ModelError, match=f"layer 0: {message}"):
        validate(tiny_model(model_type))


@pytest.mark.parametrize(
    ("model_type", "change"),
    [("qwen3", {"q_norm": None}), ("gemma3_text", {"norm_layout": "tokens"}), ("gpt_neox", {"qkv_layout": "blocks"})],
)
def test_wrong_description_of_attention_fails_the_proof(model_type, change, monkeypatch):
    family = family_of(model_type)
    wrong = dataclasses.replace(family, attention=dataclasses.replace(family.attention, **change))
    monkeypatch.setattr(hooks, "family_of", lambda _: wrong)
    with pytest.raises(ModelError, match="at position 0 fails"):
        validate_internals(HookPoints(tiny_model(model_type)), [1])


def test_model_whose_logits_ignore_the_stream_is_refused():
    model = tiny_model("gpt2", tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(ModelError, match="editing resid_pre of layer 2 does not move the logits"):
        validate(model)


def test_not_a_number_is_refused():
    model = tiny_model("llama")
    torch.nn.init.constant_(model.model.layers[1].mlp.down_proj.weight, float("nan"))
    with pytest.raises(ModelError, match="layer 1: resid_post"):
        validate(model)


def test_validation_leaves_the_model_as_it_was():
    model = tiny_model("gpt2").train()
    validate_internals(validate(model), [0])
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_half_precision_and_peft_models_are_read():
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama", dtype=torch.bfloat16)
    validate_internals(validate(model), range(4))
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    points = validate(adapted)
    assert points.layers_path == "model.layers"
    validate_internals(points, range(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_model_is_read(dtype):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = tiny_model("llama", dtype=dtype)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    validate_internals(validate(model), range(4))


def test_text_model_inside_a_multimodal_one_is_read():
    text = {**CONFIGS["gemma3_text"], "vocab_size": 400, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    special = {"image_token_index": 399, "boi_token_index": 398, "eoi_token_index": 397, "mm_tokens_per_image": 4}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **special))
    points = validate(model)
    assert (points.family.name, points.layers_path) == ("gemma3", "model.language_model.layers")


def test_every_listed_family_has_a_tiny_model():
    kinds = {model_type for family in FAMILIES for model_type in family.model_types}
    # A multimodal Gemma 3 has another config around the same text model.
    assert kinds - set(CONFIGS) == {"gemma3"}


def test_tiny_models_come_from_their_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = tiny_model("qwen3"), tiny_model("qwen3"), tiny_model("qwen3", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_tiny_model_survives_a_round_trip_to_disk(tmp_path):
    model, tokenizer = tiny_model("gemma2"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = tokenizer("It may rain.", return_tensors="pt").input_ids
    # Matrix products may depend on where in memory a weight begins, so up to rounding.
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)


def test_tiny_tokenizer_is_a_real_one():
    tokenizer = tiny_tokenizer()
    text = "Perhaps été ≠ 東京?\n\n<b>"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids(BOS)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith(BOS) and TURN_END in chat
    assert tokenizer.eos_token == TURN_END


def test_descriptions_are_values():
    assert AttentionParts() == AttentionParts()
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES[0].mid = "mlp"
