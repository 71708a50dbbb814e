"""Both sides of a comparison, opened as an experiment would, on tiny checkpoints and adapters in a temporary folder."""

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from driftbook.errors import DriftbookError, ModelError
from driftbook.interventions import Ablate, Adapter, Checkpoint, Endpoint, NoIntervention, Steer, SystemPrompt
from driftbook.models.divergence import token_divergence
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.models.steering import AblateTap, SteerTap
from driftbook.parameters import ModelSpec
from driftbook.prompts import Prompt
from models import full_logits, generated, loaded, requests_for, saved, some_prompts
from test_vectors import some_vectors

SEQUENCES = [TokenSequence(p, r) for p, r in zip(some_prompts([5, 9]), some_prompts([4, 3], 5), strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(folder)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(path)
    return path


def spec(folder) -> ModelSpec:
    return ModelSpec(model=str(folder), dtype="float32", device="cpu")


def opened(folder, intervention, tmp_path, vectors=None):
    return open_pair(spec(folder), intervention, tmp_path / "cache", tmp_path, vectors)


def logits_of(side) -> list[np.ndarray]:
    out = [np.empty(0)] * len(SEQUENCES)
    for batch, logits in side.read(SEQUENCES, logits=True):
        for row, i in enumerate(batch):
            out[i] = logits[row, -len(SEQUENCES[i].response_ids) - 1 :].numpy()
    return out


def expected_logits(model) -> list[np.ndarray]:
    plain = loaded("llama")
    other = LoadedModel(**{**plain.__dict__, "model": model, "_hooks": None})
    return [full_logits(other, s)[-len(s.response_ids) - 1 :] for s in SEQUENCES]


def same(a, b, atol=1e-4) -> bool:
    return all(np.allclose(x, y, atol=atol) for x, y in zip(a, b, strict=True))


def test_no_intervention_is_the_same_model_twice(folder, tmp_path):
    pair = opened(folder, NoIntervention(), tmp_path)
    assert pair.model_loads == 1 and pair.base.model is pair.intervention.model
    assert pair.base.key == pair.intervention.key
    assert [s.name for s in pair] == ["base", "intervention"]
    assert all((f["js"] == 0).all() for f in token_divergence(pair, SEQUENCES, SEQUENCES))


def test_a_system_prompt_stands_before_the_prompts_own(folder, tmp_path):
    pair = opened(folder, SystemPrompt(system="Be terse."), tmp_path)
    tokenizer = pair.base.model.tokenizer
    assert pair.model_loads == 1 and pair.base.key != pair.intervention.key
    base, other = (tokenizer.decode(s.encode(Prompt("Hi there", system="Use French."))) for s in pair)
    assert "Be terse." not in base and "<|im_start|>system\nUse French.<|im_end|>" in base
    assert "<|im_start|>system\nBe terse.\n\nUse French.<|im_end|>" in other
    assert other.count("<|im_start|>system") == 1
    assert opened(folder, SystemPrompt(system="Be long."), tmp_path).intervention.key != pair.intervention.key


@pytest.mark.parametrize(("layer", "expected"), [("auto", 2), (1, 1)])
def test_steering_uses_the_chosen_vector_in_units_of_the_activation_norm(folder, tmp_path, layer, expected):
    vectors = some_vectors()
    pair = opened(folder, Steer(trait="warm", coefficient=0.5, layer=layer), tmp_path, vectors)
    (tap,) = pair.intervention.taps
    assert isinstance(tap, SteerTap) and (tap.layer, tap.site, pair.base.taps) == (expected, "resid_post", ())
    unit = vectors.norms[expected, 1]
    np.testing.assert_allclose(
        tap.delta.numpy(), 0.5 * unit * vectors.at("warm", "probe", expected, "resid_post"), rtol=1e-4
    )
    assert pair.intervention.notes["coefficient"] == 0.5
    assert same(logits_of(pair.base), expected_logits(loaded("llama").model))
    assert not same(logits_of(pair.base), logits_of(pair.intervention), atol=0.01)


def test_the_key_of_a_steered_side_follows_vector_and_strength(folder, tmp_path):
    keys = [
        opened(folder, Steer(trait=t, coefficient=c, layer=layer), tmp_path, some_vectors(seed=seed)).intervention.key
        for t, c, layer, seed in [
            ("warm", 0.5, 2, 0), ("warm", 0.6, 2, 0), ("terse", 0.5, 2, 0), ("warm", 0.5, 1, 0), ("warm", 0.5, 2, 1)]
    ]  # fmt: skip
    assert len(set(keys)) == 5
    assert (
        opened(folder, Steer(trait="warm", coefficient=0.5, layer=2), tmp_path, some_vectors()).intervention.key
        == keys[0]
    )


def test_ablation_takes_every_layer(folder, tmp_path):
    pair = opened(folder, Ablate(trait="terse"), tmp_path, some_vectors())
    (tap,) = pair.intervention.taps
    assert isinstance(tap, AblateTap) and sorted(tap.vectors) == [0, 1, 2, 3]
    (one,) = opened(folder, Ablate(trait="terse", layer=3), tmp_path, some_vectors()).intervention.taps
    assert sorted(one.vectors) == [3]
    assert not same(logits_of(pair.base), logits_of(pair.intervention), atol=0.01)


def test_vectors_that_do_not_fit_are_refused(folder, tmp_path):
    assert Steer.needs_vectors and Ablate.needs_vectors and not NoIntervention.needs_vectors
    with pytest.raises(DriftbookError, match="needs the traits stage"):
        opened(folder, Steer(trait="warm", coefficient=1), tmp_path)
    with pytest.raises(ModelError, match="has layers 0 to 3"):
        opened(folder, Steer(trait="warm", coefficient=1, layer=4), tmp_path, some_vectors())
    vectors = some_vectors()
    vectors.layers = vectors.layers[:3]
    with pytest.raises(ModelError, match="made on 3 layers, this model has 4; run traits again"):
        opened(folder, Steer(trait="warm", coefficient=1), tmp_path, vectors)


def test_an_adapter_is_toggled_on_one_model(folder, adapter, tmp_path):
    pair = opened(folder, Adapter(path=str(adapter)), tmp_path)
    assert pair.model_loads == 1 and pair.base.model is pair.intervention.model
    assert pair.base.key != pair.intervention.key
    plain = expected_logits(AutoModelForCausalLM.from_pretrained(folder))
    merged = expected_logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).merge_and_unload()
    )
    assert not same(plain, merged, atol=0.01)
    # In turns, as decode does: what a side computes does not depend on which one was active before.
    for _ in range(2):
        assert same(logits_of(pair.intervention), merged)
        assert same(logits_of(pair.base), plain)
    for side in (pair.base, pair.intervention):
        with pytest.raises(RuntimeError), side.active():
            raise RuntimeError("inside")
        outside = [full_logits(side.model, s)[-len(s.response_ids) - 1 :] for s in SEQUENCES]
        assert same(outside, plain)


@pytest.mark.parametrize("scale", [0.5, -1.0, 0.0])
def test_a_scale_multiplies_what_an_adapter_adds_and_makes_other_texts(folder, adapter, tmp_path, scale):
    pair = opened(folder, Adapter(path=str(adapter), scale=scale), tmp_path)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).merge_and_unload()
    by_hand = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for mine, full in zip(by_hand.parameters(), merged.parameters(), strict=True):
            mine += scale * (full - mine)
    assert same(logits_of(pair.intervention), expected_logits(by_hand))
    assert same(logits_of(pair.base), expected_logits(AutoModelForCausalLM.from_pretrained(folder)))
    plain = opened(folder, Adapter(path=str(adapter)), tmp_path)
    assert pair.intervention.key != plain.intervention.key and pair.base.key == plain.base.key
    assert pair.intervention.notes["scale"] == scale


def test_a_scale_is_for_low_rank_matrices_alone(folder, tmp_path):
    for name, config in {
        "dora": LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        "head": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    }.items():
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=r"intervention\.scale 2: only a LoRA .* set scale: 1"):
            opened(folder, Adapter(path=name, scale=2), tmp_path)
        opened(folder, Adapter(path=name), tmp_path)


def test_generation_with_an_adapter_is_generation_of_the_merged_model(folder, adapter, tmp_path):
    pair = opened(folder, Adapter(path=str(adapter)), tmp_path)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter)).merge_and_unload()
    alone = LoadedModel(**{**pair.base.model.__dict__, "model": merged, "_hooks": None})
    requests, params = requests_for(some_prompts([4, 8, 3]), 2), SamplingParams(8, 1.0, 1.0)
    with pair.intervention.active():
        texts = generated(pair.intervention.model, requests, params, 4)
    assert texts == generated(alone, requests, params, 4)
    with pair.base.active():
        assert generated(pair.base.model, requests, params, 4) != texts


def test_an_adapter_that_is_not_there_or_does_not_fit_is_named(folder, adapter, tmp_path):
    with pytest.raises(ModelError, match=r"intervention.path 'nowhere': no adapter_config.json there"):
        opened(folder, Adapter(path="nowhere"), tmp_path)
    wide = saved(tmp_path / "wide", hidden_size=96)
    with pytest.raises(ModelError, match=r"does not fit .*wide"):
        opened(wide, Adapter(path=str(adapter)), tmp_path)
    for name, shape in {"deep": {"num_hidden_layers": 6}, "flat": {"num_hidden_layers": 2}}.items():
        other = saved(tmp_path / name, **shape)
        with pytest.raises(
            ModelError, match=rf"does not fit .*{name}.*trained on another model; name that one as base"
        ):
            opened(other, Adapter(path=str(adapter)), tmp_path)
    with pytest.raises(ModelError, match=r"does not fit .*gpt2"):
        opened(saved(tmp_path / "gpt2", "gpt2"), Adapter(path=str(adapter)), tmp_path)
    half = tmp_path / "half"
    half.mkdir()
    (half / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors"):
        opened(folder, Adapter(path="half"), tmp_path)


def test_a_checkpoint_is_a_second_model(folder, tmp_path):
    other = saved(tmp_path / "other", seed=1)
    pair = opened(folder, Checkpoint(model=str(other), dtype="float32", device="cpu"), tmp_path)
    assert pair.model_loads == 2 and pair.base.model is not pair.intervention.model
    assert pair.base.key != pair.intervention.key and pair.same_tokenizer()
    assert same(logits_of(pair.intervention), expected_logits(AutoModelForCausalLM.from_pretrained(other)))
    assert not same(logits_of(pair.base), logits_of(pair.intervention), atol=0.01)


def test_a_side_that_answers_elsewhere_is_read_by_the_base(folder, tmp_path):
    pair = opened(folder, Endpoint(base_url="http://127.0.0.1:1", model="m"), tmp_path)
    assert pair.model_loads == 1 and pair.intervention.model is pair.base.model and not pair.same_tokenizer()
    assert pair.base.here and not pair.intervention.here and isinstance(pair.base.engine, LocalEngine)
    assert pair.base.key != pair.intervention.key
