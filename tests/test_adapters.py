"""Adapters of every kind: the base side is the base, and what an adapter brings along is used and told."""

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from driftbench.tiny import CHAT_TEMPLATE
from driftbook.errors import ModelError
from driftbook.interventions import Adapter, Checkpoint
from driftbook.judges.local import read_levels
from driftbook.models.divergence import token_divergence
from driftbook.models.finite import NotFiniteError
from driftbook.models.local import LocalEngine
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, Side, open_pair
from driftbook.report.loading import loaded as report
from driftbook.sections import ModelSpec
from models import fresh, requests_for, saved, some_prompts

pytestmark = pytest.mark.numeric
IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])

KINDS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "dora": LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "head": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[20, 30]),
    "embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=4, target_modules=["q_proj"]),
    "lokr": LoKrConfig(r=4, target_modules=["q_proj"]),
    "oft": OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
    "norms": LNTuningConfig(target_modules=["input_layernorm"]),
    "adalora": AdaLoraConfig(r=4, target_modules=["q_proj"], total_step=10),
}
BIASES = {
    "all": LoraConfig(r=4, target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    "lora_only": LoraConfig(r=4, target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {family: saved(place / family, family) for family in ("llama", "gpt2")}


def trained(base, config, to):
    """What peft writes after a training that moved every trainable number, and the logits then."""
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval().save_pretrained(to)
    with torch.no_grad():
        return model(IDS).logits


def plain_logits(base):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(base).eval()(IDS).logits


def opened(base, adapter, cache, **options) -> Pair:
    spec = ModelSpec(model=str(base), dtype="float32", device="cpu")
    return open_pair(spec, Adapter(path=str(adapter), **options), cache, cache)


def logits_of(side):
    with side.active(), torch.no_grad():
        return side.model.model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_side_is_the_base_whatever_the_kind_of_adapter(folders, tmp_path, kind):
    base, (want) = folders["llama"], trained(folders["llama"], KINDS[kind], tmp_path / "a")
    pair = opened(base, tmp_path / "a", tmp_path)
    assert pair.model_loads == 1 and pair.base.model.model is pair.intervention.model.model
    for _ in range(2):  # in turns
        assert torch.equal(logits_of(pair.base), plain_logits(base))
        torch.testing.assert_close(logits_of(pair.intervention), want, atol=1e-4, rtol=1e-4)
    told = pair.intervention.notes["adapter_load"]
    assert told["largest change of a logit on a first batch"] > 0.01 and "it is switched" in told["model"]


@pytest.mark.parametrize("bias", BIASES)
def test_biases_that_cannot_be_switched_back_give_the_adapter_a_model_of_its_own(folders, tmp_path, bias):
    base, want = folders["gpt2"], trained(folders["gpt2"], BIASES[bias], tmp_path / "a")
    pair = opened(base, tmp_path / "a", tmp_path)
    assert pair.model_loads == 2 and pair.base.model.model is not pair.intervention.model.model
    for _ in range(2):
        assert torch.equal(logits_of(pair.base), plain_logits(base))
        torch.testing.assert_close(logits_of(pair.intervention), want, atol=1e-4, rtol=1e-4)
    told = pair.intervention.notes["adapter_load"]
    assert told["bias"] == bias and told["model"].startswith("of its own")


@pytest.mark.parametrize("config", [PromptTuningConfig(num_virtual_tokens=3), PrefixTuningConfig(num_virtual_tokens=3)])
def test_virtual_tokens_are_refused_by_what_peft_calls_them(folders, tmp_path, config):
    trained(folders["llama"], config, tmp_path / "a")
    with pytest.raises(ModelError, match=r"of the kind P\w+_TUNING, which puts trained virtual tokens before every"):
        opened(folders["llama"], tmp_path / "a", tmp_path)


@pytest.mark.parametrize("kind", ["loha", "ia3", "head"])
def test_an_adapter_without_one_of_its_tensors_is_refused_whatever_its_kind(folders, tmp_path, kind):
    trained(folders["llama"], KINDS[kind], tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if k != sorted(weights)[-1]}, path)
    with pytest.raises(ModelError, match=r"1 that belong there are not in the file"):
        opened(folders["llama"], tmp_path / "a", tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: "):
        opened(folders["llama"], tmp_path / "a", tmp_path)


def pickled(folder, tensors):
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")


SPOILED = {
    "pickle, whole": (pickled, None),
    "pickle, a part": (lambda f, w: pickled(f, {k: w[k] for k in sorted(w)[:5]}), r"11 that belong there are not in"),
    "pickle, objects": (lambda f, w: pickled(f, {"where": f}), r"read as tensors alone.*write it as safetensors"),
    "wrapper": (
        lambda f, w: put(f, {k.replace("model.layers", "_orig_mod.model.layers"): v for k, v in w.items()}),
        r"rename its matrices without _orig_mod\.",
    ),
    "diverged": (lambda f, w: put(f, {k: v * float("nan") for k, v in w.items()}), r"not finite in float32"),
    "folder": (lambda f, w: put_folder(f / "adapter_model.safetensors"), r"no adapter_model\.safetensors beside"),
    "stale pickle": (lambda f, w: torch.save({}, f / "adapter_model.bin"), None),
    "empty error": (lambda f, w: (f / "adapter_config.json").write_text('{"peft_type": "NEW"}'), r"KeyError: 'NEW'"),
}


def put(folder, tensors):
    save_file(tensors, folder / "adapter_model.safetensors")


def put_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("how", SPOILED)
def test_an_adapter_is_what_was_trained_or_refused(folders, tmp_path, how):
    want = trained(folders["llama"], KINDS["lora"], tmp_path / "a")
    damage, said = SPOILED[how]
    damage(tmp_path / "a", load_file(tmp_path / "a" / "adapter_model.safetensors"))
    if said:
        with pytest.raises(ModelError, match=said):
            opened(folders["llama"], tmp_path / "a", tmp_path)
        return
    pair = opened(folders["llama"], tmp_path / "a", tmp_path)
    torch.testing.assert_close(logits_of(pair.intervention), want, atol=1e-4, rtol=1e-4)
    assert pair.intervention.notes["adapter_load"]["trained on"] == str(folders["llama"])


def test_tokens_that_an_adapter_added_without_rows_are_refused_with_the_way_out(folders, tmp_path):
    trained(folders["llama"], KINDS["lora"], tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    tokenizer.add_tokens(["<pad>"])
    tokenizer.save_pretrained(tmp_path / "a")
    with pytest.raises(ModelError, match=r"401 tokens and the embedding 400 rows.*set intervention\.tokenizer: base"):
        opened(folders["llama"], tmp_path / "a", tmp_path)
    assert opened(folders["llama"], tmp_path / "a", tmp_path, tokenizer="base").model_loads == 1


def with_words(folder, base, **changes):
    """Put a tokenizer beside an adapter, as trainers do."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_an_adapter_that_brings_its_template_and_end_token_is_asked_by_them(folders, tmp_path):
    base = folders["llama"]
    trained(base, KINDS["lora"], tmp_path / "a")
    with_words(tmp_path / "a", base, chat_template="SFT " + CHAT_TEMPLATE, eos_token="<|im_start|>")
    pair = opened(base, tmp_path / "a", tmp_path)
    first = {side.name: side.model.tokenizer.decode(side.model.encode_prompt("Hi")) for side in pair}
    assert first["intervention"] == "SFT " + first["base"]
    start = pair.base.model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in pair.intervention.model.eos_ids and start not in pair.base.model.eos_ids
    load = pair.intervention.model.record["load"]
    assert load["words_of"] == str(tmp_path / "a") and "tokenizer" in load["end_tokens"]["<|im_start|>"]
    rows = report(pair).frame.set_index("")
    assert f"from {tmp_path / 'a'}" in rows.intervention["chat template"]
    assert "brings tokenizer, template and end tokens of its own" in rows.intervention["adapter"]
    alike = opened(base, tmp_path / "a", tmp_path, tokenizer="base")
    assert alike.intervention.model is alike.base.model and alike.intervention.key != pair.intervention.key


def test_an_adapter_whose_tokenizer_is_that_of_the_base_changes_nothing(folders, tmp_path):
    base = folders["llama"]
    trained(base, KINDS["lora"], tmp_path / "a")
    bare = opened(base, tmp_path / "a", tmp_path)
    with_words(tmp_path / "a", base)
    pair = opened(base, tmp_path / "a", tmp_path)
    assert pair.intervention.model is pair.base.model and pair.intervention.key == bare.intervention.key


def test_an_adapter_that_added_tokens_gets_their_rows_and_leaves_the_base_alone(folders, tmp_path):
    base = folders["llama"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    pair = opened(base, tmp_path / "a", tmp_path)
    assert pair.model_loads == 2 and torch.equal(logits_of(pair.base), plain_logits(base))
    assert logits_of(pair.intervention).shape[-1] == 402
    assert pair.intervention.notes["adapter_load"]["embedding resized"] == "400 to 402 rows"
    assert pair.shared_tokens() == 400 and pair.on_shared_tokens() == (
        "on the 400 tokens that both have (intervention has 2 more)"
    )


# --------------------------------------------------------------------------------------------------- shared vocabulary


def test_a_checkpoint_with_an_added_token_is_compared_on_the_tokens_that_both_have(folders, tmp_path):
    base = folders["llama"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<tool>"])
    model.resize_token_embeddings(401, mean_resizing=False)
    model.save_pretrained(tmp_path / "more")
    tokenizer.save_pretrained(tmp_path / "more")
    spec = ModelSpec(model=str(base), dtype="float32", device="cpu")
    other = Checkpoint(model=str(tmp_path / "more"), dtype="float32", device="cpu")
    pair = open_pair(spec, other, tmp_path, tmp_path)
    assert pair.no_divergence() == "" and "400 tokens that both have" in pair.on_shared_tokens()
    sequences = [TokenSequence((1, 20, 30), (40, 50, 60))]
    (found,) = token_divergence(pair, sequences, sequences)
    assert found["js"].max() < 1e-6  # the same weights: what the new token takes does not count
    with torch.no_grad():
        p, q = (s.model.model(torch.tensor([sequences[0].ids])).logits[0, 2:5, :400].log_softmax(-1) for s in pair)
    assert found["kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).clamp(min=0).numpy(), abs=1e-5)


# --------------------------------------------------------------------------------------------------- not finite numbers


def spoiled(layer=2, value=float("nan")):
    model = fresh()
    with torch.no_grad():
        model.model.model.layers[layer].mlp.down_proj.weight[0, 0] = value
    return model


def test_numbers_that_are_not_finite_are_told_by_side_layer_and_dtype_at_the_first_batch():
    model = spoiled()
    said = r"tiny llama in float32 computes numbers that are not finite, first in layer 2 of 4 \(model\.layers\.2\)"
    with pytest.raises(NotFiniteError, match=said):
        list(LocalEngine(model).generate(requests_for(some_prompts([5, 6])), SamplingParams(4)))
    side = Side("intervention", model, "k")
    with pytest.raises(NotFiniteError, match=f"^intervention: {said}"):
        list(side.generate(requests_for(some_prompts([5])), SamplingParams(4)))
    for logits in (True, False):
        with pytest.raises(NotFiniteError, match=f"^intervention: {said}"):
            list(side.read([TokenSequence((1, 20), (30,))], logits=logits))


def test_an_output_layer_that_overflows_is_told_as_such():
    model = fresh()
    with torch.no_grad():
        model.model.lm_head.weight[7] = float("inf")
    with pytest.raises(NotFiniteError, match="first in the output layer"):
        list(replay(model, [TokenSequence((1, 20), (30,))], logits=True))


def test_a_local_judge_does_not_read_a_verdict_off_such_numbers():
    with pytest.raises(NotFiniteError, match="layer 2 of 4"):
        read_levels("judge", "Rate.", ("HIGH", "MID", "LOW"), 0, spoiled(), (["k"], ["Is it?"]))
