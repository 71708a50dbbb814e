"""Models by name, and prompts as token ids."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook.errors import ModelError
from driftbook.models.load_report import end_ids
from driftbook.models.loading import choose_device, load, resolve, weights_hash
from driftbook.parameters import ModelSpec
from models import fresh, loaded, saved

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), "qwen3")


def spec(model, **options) -> ModelSpec:
    return ModelSpec(**{"model": str(model), "dtype": "float32", "device": "cpu", **options})


# -------------------------------------------------------------------------------------------------------------- loading


def test_a_folder_is_loaded_with_its_record(folder, tmp_path):
    model = load(spec(folder), tmp_path)
    assert model.record | {"identity": None, "template": None, "load": None} == {
        "model": str(folder),
        "revision": None,
        "identity": None,
        "key": model.key,
        "architecture": "Qwen3ForCausalLM",
        "layers": 4,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "dtype": "float32",
        "device": "cpu",
        "reason": "cpu was asked for; float32 was asked for",
        "template": None,
        "system_role": True,
        "load": None,
    }
    assert len(model.record["template"]) == 16 and model.context == 512 and not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    ids = torch.tensor([[1, 20, 30]])
    with torch.no_grad():
        found, made = (m(input_ids=ids).logits for m in (model.model, tiny_model("qwen3", "sdpa")))
    # Matrix products may depend on where in memory a weight begins, so up to rounding.
    torch.testing.assert_close(found, made, atol=1e-4, rtol=1e-4)
    assert model.hooks.n_layers == 4 and model.hooks is model.hooks


def test_the_record_says_whether_the_template_has_a_system_role(folder, tmp_path):
    assert load(spec(folder), tmp_path).record["system_role"] is True
    deaf = shutil.copytree(folder, tmp_path / "deaf")
    written = AutoTokenizer.from_pretrained(deaf)
    drops = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    no_system = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    refuses = "{% for m in messages %}" + no_system + "{{ m.content }}{% endfor %}"
    for template in (drops, refuses):
        written.chat_template = template
        written.save_pretrained(deaf)
        assert load(spec(deaf), tmp_path).record["system_role"] is False
    assert load(spec(folder, chat_template=False), tmp_path).record["system_role"] is None


def test_the_key_follows_all_that_decides_what_is_computed(folder, tmp_path):
    key = load(spec(folder), tmp_path).key
    assert load(spec(folder), tmp_path / "another cache").key == key
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert load(spec(copy), tmp_path).key == key  # by content, not by place
    others = {load(spec(folder, dtype="bfloat16"), tmp_path).key, load(spec(folder, chat_template=False), tmp_path).key}
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    others.add(load(spec(copy), tmp_path).key)
    assert len(others | {key}) == 4


def test_the_hash_of_a_folder_is_remembered_until_a_file_changes(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    first = weights_hash(copy, tmp_path)
    assert weights_hash(copy, tmp_path) == first == weights_hash(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert weights_hash(copy, tmp_path) != first
    (copy / "README.md").write_text("says nothing about what the model computes")
    second = weights_hash(copy, tmp_path)
    (copy / "README.md").unlink()
    assert weights_hash(copy, tmp_path) == second


def test_names_that_lead_nowhere_say_what_would(tmp_path):
    with pytest.raises(
        ModelError, match=r"unknown bundled model 'bundled:gpt9'; there are bundled:smollm2-135m-instruct"
    ):
        resolve("bundled:gpt9", tmp_path)
    with pytest.raises(ModelError, match=r"GGUF file 'no\.gguf' does not exist"):
        resolve("no.gguf", tmp_path)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path), tmp_path)
    assert resolve("org/name", tmp_path) == "org/name"


def test_a_folder_that_is_no_model_is_named_with_the_remedy(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"broken holds no weights: neither model\.safetensors nor"):
        load(spec(broken), tmp_path)
    strange = shutil.copytree(folder, tmp_path / "strange")
    (strange / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(ModelError, match=r"strange' could not be loaded"):
        load(spec(strange), tmp_path)


def test_devices_and_their_reasons(monkeypatch):
    assert choose_device("cpu", "float16") == (
        torch.device("cpu"),
        torch.float16,
        "cpu was asked for; float16 was asked for",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        device, chosen, reason = choose_device()
        assert (device.type, chosen) == ("cpu", dtype) and "cpu is the fastest device here" in reason
    with pytest.raises(
        ModelError, match=r"base\.device 'cuda:1': this torch build .* sees no GPU; use device: auto or cpu"
    ):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device()[:2] == (torch.device("mps"), torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device()[:2] == (torch.device("cuda"), torch.bfloat16)


def test_end_tokens_of_all_three_places_count(folder, tmp_path):
    tokenizer, model = tiny_tokenizer(), tiny_model()
    model.generation_config.eos_token_id = 77
    assert set(end_ids(model, tokenizer)) == {*model.config.eos_token_id, tokenizer.eos_token_id, 77}
    model.config.eos_token_id = -1  # as some say that there is none
    assert set(end_ids(model, tokenizer)) == {tokenizer.eos_token_id, 77}
    opened = load(spec(folder), tmp_path)
    assert opened.eos_ids == set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


# -------------------------------------------------------------------------------------------------------------- prompts


def test_a_chat_prompt_begins_with_one_bos_and_ends_where_the_answer_begins():
    model = loaded()
    ids = model.encode_prompt("Hi there", "Be terse.")
    assert ids.count(model.tokenizer.bos_token_id) == 1 and ids[0] == model.tokenizer.bos_token_id
    assert model.tokenizer.decode(ids) == (
        "<|begin|><|im_start|>system\nBe terse.<|im_end|>\n"
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.decode(ids).count("<|") == 0  # texts are decoded without special tokens


def test_a_base_model_takes_the_prompt_as_it_stands():
    model = fresh(template=False)
    for text in ("Once upon a time ", "  indented\n", "x"):
        ids = model.encode_prompt(text)
        assert ids[0] == model.tokenizer.bos_token_id and model.tokenizer.decode(ids[1:]) == text
    assert model.tokenizer.decode(model.encode_prompt("b", "a")[1:]) == "a\n\nb"
    turns = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    turns.append({"role": "user", "content": "d"})
    assert model.tokenizer.decode(model.encode_prompt("d", "a", turns)[1:]) == "a\n\nb\n\nc\n\nd"


def test_a_conversation_keeps_its_turns_and_has_one_system_prompt():
    model = loaded()
    turns = [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Milk?"},
    ]
    plain = model.tokenizer.decode(model.encode_prompt("Milk?", None, turns))
    assert plain.count("<|im_start|>") == 4 and plain.index("Tea?") < plain.index("Yes.") < plain.index("Milk?")
    # A prompt's own messages begin with its system prompt, which is given apart as well: it must not stand there twice.
    both = [{"role": "system", "content": "Be terse."}, *turns]
    text = model.tokenizer.decode(model.encode_prompt("Milk?", "Be kind.\n\nBe terse.", both))
    assert text.count("<|im_start|>system") == 1 and text.count("Be terse.") == 1 and "Be kind." in text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
         "{{ m.content }}{% endfor %}",
         r"refuses these roles \['system', 'user'\]: no system here"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops the system prompt"),
    ],
)  # fmt: skip
def test_a_template_without_a_system_role_is_an_error(template, said):
    import copy

    model = fresh()
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = template
    assert model.encode_prompt("Hi there") == model.tokenizer("Hi there", add_special_tokens=False)["input_ids"]
    with pytest.raises(ModelError, match=said):
        model.encode_prompt("Hi there", "Be terse.")
