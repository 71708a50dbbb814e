"""Whatever is loaded is accounted for: what is missing, cut or without a place is an error that names it."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from driftbench.tiny import VOCABULARY
from driftbook.errors import ModelError
from driftbook.models import gguf_files
from driftbook.models.gguf_header import read_gguf_header, shards
from driftbook.models.load_report import not_finite
from driftbook.models.loading import load, resolve
from driftbook.sections import ModelSpec
from gguf_models import qwen2, write_gguf
from models import saved

pytestmark = pytest.mark.numeric

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy to break: ``weights`` are written back by ``put``."""
    return shutil.copytree(folder, tmp_path / "copy")


def spec(model, **options) -> ModelSpec:
    return ModelSpec(**{"model": str(model), "dtype": "float32", "device": "cpu", **options})


def rewrite(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def configure(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---------------------------------------------------------------------------------------------------------- the account


def test_a_whole_model_is_told_with_all_that_shapes_its_answers(folder, tmp_path):
    report = load(spec(folder), tmp_path).record["load"]
    weights = load_file(folder / "model.safetensors")
    assert (report["tensors"], report["found"], report["tied"], report["left_over"]) == (len(weights), 47, [], [])
    assert report["files"] == ["model.safetensors"] and report["stored"] == {"F32": 47}
    assert report["embeddings"] == report["tokens"] == 400 and report["quantization"] is None
    assert report["end_tokens"] == {
        "<|im_end|>": ["tokenizer", "config.json", "generation_config.json"],
        "<|endoftext|>": ["config.json", "generation_config.json"],
    }
    assert (report["template_name"], report["content"], report["own_system_text"]) == (None, "text", "")
    assert report["remarks"] == [] and report["layer_kinds"] == {"full_attention": 4}
    json.dumps(report)  # it goes into run.json


def test_a_tied_output_is_no_missing_tensor(tmp_path):
    tied = saved(tmp_path / "tied", "qwen3", tie_word_embeddings=True)
    report = load(spec(tied), tmp_path).record["load"]
    assert report["tied"] == ["lm_head.weight"] and report["found"] == report["tensors"] - 1


def test_missing_tensors_are_refused_by_name_and_number(copy, tmp_path):
    rewrite(copy, lambda w: {k: v for k, v in w.items() if ".1.mlp" not in k})
    with pytest.raises(
        ModelError,
        match=r"3 of 47 tensors of Qwen3ForCausalLM are not in its files \(model\.layers\.1\.mlp\.down_proj\.weight, .*"
        r"would be random; the files are not the whole model",
    ):
        load(spec(copy), tmp_path)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module."])
def test_tensors_named_by_a_wrapper_of_training_are_refused_with_the_remedy(copy, tmp_path, wrapper):
    rewrite(copy, lambda w: {wrapper + k: v for k, v in w.items()})
    with pytest.raises(ModelError, match=rf"47 of 47 tensors .* named {wrapper}\.\.\., .*rename them without"):
        load(spec(copy), tmp_path)


def test_renamed_tensors_are_named_beside_those_that_are_missing(copy, tmp_path):
    rewrite(copy, lambda w: {k.replace("q_proj", "wq"): v for k, v in w.items()})
    with pytest.raises(ModelError, match=r"4 of 47 .*; 4 others have no place .*layers\.0\.self_attn\.wq\.weight"):
        load(spec(copy), tmp_path)
    rewrite(copy, lambda w: {k.replace("wq.weight", "q_proj.base_layer.weight"): v for k, v in w.items()})
    with pytest.raises(ModelError, match=r"a LoRA that was not merged: save the merged model"):
        load(spec(copy), tmp_path)


def test_tensors_left_over_are_refused_in_the_blocks_and_told_elsewhere(copy, tmp_path):
    more = {"value_head.weight": torch.zeros(3), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    rewrite(copy, lambda w: w | more)
    report = load(spec(copy), tmp_path).record["load"]
    assert report["left_over"] == ["model.layers.0.self_attn.k_scale", "value_head.weight"]
    assert "without a place" in report["remarks"][0]
    rewrite(copy, lambda w: w | {"model.layers.2.self_attn.q_proj.bias": torch.zeros(48)})
    with pytest.raises(ModelError, match=r"1 tensors .* no place in the blocks .*layers\.2\.self_attn\.q_proj\.bias"):
        load(spec(copy), tmp_path)


def test_a_layer_more_than_the_configuration_says_is_refused(copy, tmp_path):
    configure(copy, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    with pytest.raises(ModelError, match=r"11 tensors .* no place in the blocks"):
        load(spec(copy), tmp_path)


def test_another_shape_than_the_configuration_says_is_refused(copy, tmp_path):
    configure(copy, intermediate_size=96)
    with pytest.raises(ModelError, match=r"12 tensors have another shape .*\[48, 80\] in the file, \[48, 96\]"):
        load(spec(copy), tmp_path)


def test_tokens_without_a_row_are_refused(copy, tmp_path):
    path = copy / "tokenizer.json"
    said = json.loads(path.read_text())
    said["added_tokens"].append(said["added_tokens"][0] | {"id": 400, "content": "<|new|>"})
    path.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"tokenizer has 401 tokens and the embedding 400 rows"):
        load(spec(copy), tmp_path)


def test_numbers_that_are_not_finite_are_refused_by_the_name_of_the_weight(copy, tmp_path):
    def spoil(weights):
        weights["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
        return weights

    rewrite(copy, spoil)
    with pytest.raises(ModelError, match=r"in float32: numbers that are not finite in model\.layers\.2\.mlp\.up_proj"):
        load(spec(copy), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(dtype, bad):
    layer = nn.Linear(37, 3).to(dtype)
    largest = torch.finfo(dtype).max
    for place in range(111):
        layer.weight.data = torch.full((3, 37), largest if place % 2 else -largest, dtype=dtype)
        layer.weight.data[2] = 0
        assert not_finite(layer) is None
        layer.weight.data[divmod(place, 37)] = bad
        assert [math.isfinite(v) for v in layer.weight.flatten().tolist()].index(False) == place
        assert not_finite(layer) == "weight (1 of its weights)"
        layer.weight.data = layer.weight.data.T.contiguous().T  # in memory column by column
        assert not_finite(layer) == "weight (1 of its weights)"


def test_weights_without_numbers_are_finite():
    model = nn.ModuleDict({"empty": nn.Embedding(0, 4), "fine": nn.Embedding(2, 2)})
    assert not_finite(model) is None
    model["fine"].weight.data[1, 1] = math.nan
    assert not_finite(model) == "fine.weight (1 of its weights)"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu])
def test_a_weight_of_eight_bits_is_read_as_any_other(dtype):
    layer = nn.Linear(3, 2).to(dtype)
    assert not_finite(layer) is None
    values = torch.ones(2, 3)
    values[1, 2] = math.nan
    layer.weight.data = values.to(dtype)
    assert not_finite(layer) == "weight (1 of its weights)"


# ------------------------------------------------------------------------------------------------------------ the files


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def sharded(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    save_file({k: weights[k] for k in names[:20]}, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    where = {k: f"model-0000{1 if i < 20 else 2}-of-00002.safetensors" for i, k in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return {k: weights[k] for k in names[20:]}


def pickled(folder):
    import pickle
    from pathlib import Path

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"where": Path("x")}))


def two_saves(folder):
    rest = sharded(folder)
    with_other = rest | {"lm_head.weight": torch.zeros(VOCABULARY, 48)}
    save_file(with_other, folder / "model-00002-of-00002.safetensors", {"format": "pt"})


def relinked(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "4d7a")


def without_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def whole_numbers(folder):
    rewrite(folder, lambda w: {k: (v * 50).to(torch.int8) if "mlp" in k else v for k, v in w.items()})


BROKEN = {
    "two saves": (two_saves, r"00002\.safetensors and .*00001\S* hold different values of lm_head\.weight"),
    "link": (relinked, r"model\.safetensors are links to what is not there"),
    "index": (
        lambda f: (sharded(f), (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')),
        r"index\.json: has no weight_map",
    ),
    "end tokens": (lambda f: (f / "generation_config.json").write_text("{"), r"generation_config\.json: no readable"),
    "adapter beside": (lambda f: (f / "adapter_config.json").write_text("{}"), r"which transformers would switch on"),
    "only an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        r"holds no config\.json, but an adapter: name it as an intervention",
    ),
    "whole numbers": (whole_numbers, r"12 tensors of its files are whole numbers .*no quantization_config"),
    "no tokens": (without_tokenizer, r"its tokenizer has no tokens for plain English \(1 in all\)"),
    "tied": (
        lambda f: rewrite(f, lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}),
        r"1 of 47 .* \(lm_head\.weight\) and would be random; .*tie_word_embeddings: true, and this one does not",
    ),
    "cut": (cut, r"model\.safetensors: is cut short, 100,000 of \d\d\d,\d\d\d bytes are there; download it again"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors are empty; download"),
    "header": (lambda f: (f / "model.safetensors").write_bytes(b"{" * 64), r"not a safetensors file"),
    "pointer": (lambda f: (f / "model.safetensors").write_text(POINTER), r"pointers of git-lfs.*git lfs pull"),
    "tokenizer pointer": (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json are pointers"),
    "page": (lambda f: (f / "model.safetensors").write_text("<!doctype html><p>Log in"), r"are web pages"),
    "shard": (sharded, r"1 of 2 files of weights are missing \(model-00002-of-00002\.safetensors\), with 27 of 47"),
    "unfinished": (
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.incomplete"),
        r"no weights: .*model\.safetensors\.incomplete: a download that did not end",
    ),
    "config": (lambda f: (f / "config.json").write_text('{"model_'), r"config\.json: no readable JSON"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"its tokenizer could not be loaded"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_are_not_whole_are_named_with_the_remedy(copy, tmp_path, how):
    damage, said = BROKEN[how]
    damage(copy)
    with pytest.raises(ModelError, match=said):
        load(spec(copy), tmp_path)


def test_a_name_that_is_no_model_is_told_what_is_there(folder, tmp_path):
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "step-9").symlink_to(folder)
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized" / "m.gguf").touch()
    for name, said in {
        folder / "model.safetensors": "is a file; name the folder that holds it",
        tmp_path / "outer": "holds no config.json; step-9 in it does",
        tmp_path / "quantized": "holds no config.json; to load m.gguf, name the file itself",
        tmp_path / "none": "does not exist",
    }.items():
        with pytest.raises(ModelError, match=said):
            load(spec(name), tmp_path)
    with pytest.raises(ModelError, match="at step-9: a revision is a version on the hub, and this model lies on this"):
        load(spec(folder, revision="step-9"), tmp_path)


def test_a_model_in_several_files_is_read_whole(folder, copy, tmp_path):
    rest = sharded(copy)
    save_file(rest, copy / "model-00002-of-00002.safetensors", {"format": "pt"})
    found = load(spec(copy), tmp_path)
    assert found.record["load"]["files"] == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    same = load(spec(folder), tmp_path).model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in found.model.state_dict().items())


def test_pickles_are_read_as_tensors_alone_and_nobody_is_told_to_trust_them(copy, tmp_path):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert load(spec(copy), tmp_path).record["load"]["files"] == ["pytorch_model.bin"]
    (copy / "model.safetensors").touch()
    pickled(copy)
    with pytest.raises(ModelError, match=r"write it as safetensors") as refused:
        load(spec(copy), tmp_path)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_quantized_weights_whose_package_is_not_here_name_it(copy, tmp_path, said, package):
    configure(copy, quantization_config=said)
    with pytest.raises(
        ModelError, match=rf"needs a package that is not here: .*{package}.* Install it, or name weights"
    ):
        load(spec(copy), tmp_path)


def test_a_quantization_that_transformers_passes_over_is_refused_by_name(copy, tmp_path):
    configure(copy, quantization_config={"quant_method": "modelopt", "bits": 4})
    with pytest.raises(ModelError, match=r"is quantized by 'modelopt', which transformers does not read"):
        load(spec(copy), tmp_path)


def test_factors_that_one_long_row_would_change_for_all_bound_the_context(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    folder = saved(
        tmp_path / "m", "phi3", rope_parameters=rope, original_max_position_embeddings=16, num_attention_heads=6
    )
    model = load(spec(folder), tmp_path)
    assert (
        model.context == 16 and "may have 16 tokens together: beyond, up to 512" in model.record["load"]["remarks"][0]
    )


def test_penalties_that_the_publisher_asks_for_are_told_as_not_applied(copy, tmp_path):
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.3, "temperature": 0.6}))
    assert load(spec(copy), tmp_path).record["load"]["remarks"] == [
        "generation_config.json asks for repetition_penalty 1.3; it is not applied: answers are drawn as sampling: says"
    ]


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(copy, tmp_path):
    (copy / "modeling_x.py").write_text("raise SystemExit('executed')")
    configure(
        copy, model_type="no-such", auto_map={"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    )
    with pytest.raises(ModelError, match=r"could not be loaded"):
        load(spec(copy), tmp_path)


def test_a_model_that_does_not_answer_prompts_is_refused_by_its_kind(copy, tmp_path):
    (copy / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match=r"\(t5\) is no decoder-only language model"):
        load(spec(copy), tmp_path)
    (copy / "config.json").write_text('{"model_type": "bart"}')  # it has a decoder, which transformers would take alone
    with pytest.raises(ModelError, match=r"\(bart\) is no decoder-only language model"):
        load(spec(copy), tmp_path)


def test_a_model_that_scores_is_refused_though_its_tied_output_layer_could_be_had(tmp_path):
    tied = saved(tmp_path / "tied", "qwen3", tie_word_embeddings=True)
    rewrite(tied, lambda w: w | {"score.weight": torch.ones(1, 48)})
    configure(tied, architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(ModelError, match=r"\(Qwen3ForSequenceClassification\) is no decoder-only language model"):
        load(spec(tied), tmp_path)


# ----------------------------------------------------------------------------------------------------------------- GGUF


def test_a_gguf_file_computes_what_its_model_does_and_says_what_it_was(tmp_path):
    model = qwen2()
    (file,) = write_gguf(tmp_path / "m.gguf", model)
    found = load(spec(file), tmp_path / "cache")
    ids = torch.tensor([[1, 20, 30, 40]])
    with torch.no_grad():
        torch.testing.assert_close(found.model(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    report = found.record["load"]
    assert report["files"] == ["m.gguf"] and report["stored"] == {"F32": 51} and report["remarks"] == []


def test_a_split_gguf_model_is_read_whole_whichever_file_is_named(tmp_path):
    model = qwen2()
    files = write_gguf(tmp_path / "m.gguf", model, files=3)
    found = load(spec(files[1]), tmp_path / "cache")
    assert found.record["load"]["files"] == [f.name for f in files]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value)
    files[2].unlink()
    with pytest.raises(ModelError, match=r"1 of the 3 files .* missing \(m-00003-of-00003\.gguf\); download"):
        resolve(str(files[0]), tmp_path / "cache")
    files[1].rename(tmp_path / "b.gguf")
    with pytest.raises(ModelError, match=r"one of 3 files of a split model, under a name that does not say which"):
        shards(tmp_path / "b.gguf")


def test_a_cut_gguf_file_is_refused_and_leaves_nothing_behind(tmp_path):
    (file,) = write_gguf(tmp_path / "m.gguf", qwen2())
    whole = file.read_bytes()
    for size, said in ((len(whole) - 4000, "is cut short"), (200, "header is damaged"), (0, "not a GGUF file")):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=said):
            resolve(str(file), tmp_path / "cache")
    file.write_text(POINTER)
    with pytest.raises(ModelError, match=r"pointer of git-lfs: run `git lfs pull`"):
        resolve(str(file), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_gguf_file_without_a_tensor_or_with_one_too_many_is_refused(tmp_path):
    (file,) = write_gguf(tmp_path / "less.gguf", qwen2(), without=("blk.1.ffn_up.weight",))
    with pytest.raises(
        ModelError, match=r"1 tensors of Qwen2ForCausalLM are not in the file \(model\.layers\.1\.mlp\.up"
    ):
        resolve(str(file), tmp_path / "cache")
    extra = {"blk.0.attn_q_norm.weight": np.ones(48, np.float32)}
    (file,) = write_gguf(tmp_path / "more.gguf", qwen2(), extra=extra)
    with pytest.raises(ModelError, match=r"1 of 52 tensors have no place in Qwen2ForCausalLM \(blk\.0\.attn_q_norm"):
        resolve(str(file), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_the_reader_of_gguf_passes_over_is_told(tmp_path):
    factors = {"rope_freqs.weight": np.ones(6, np.float32), "other.weight": np.ones(6, np.float32)}
    (file,) = write_gguf(tmp_path / "m.gguf", qwen2(), extra=factors, fields={"rope.scaling.factor": 8.0})
    remarks = load(spec(file), tmp_path / "cache").record["load"]["remarks"]
    assert [r.split(":")[0] for r in remarks] == [
        "rope_freqs.weight",
        "tensors without a place in the model",
        "fields that the reader passes over",
    ]
    assert "qwen2.rope.scaling.factor = 8.0" in remarks[2]


def test_a_conversion_of_an_older_make_is_made_again(tmp_path):
    (file,) = write_gguf(tmp_path / "m.gguf", qwen2())
    folder = gguf_files.converted(file, tmp_path, "m")
    (folder / gguf_files.MARK).write_text("a hash, as it was")
    (folder / "model.safetensors").write_bytes(b"")
    assert gguf_files.converted(file, tmp_path, "m") == folder
    assert (folder / "model.safetensors").stat().st_size > 100_000
    assert gguf_files.account_of(folder).tensors == len(read_gguf_header(file).tensors)


def test_what_tells_of_a_conversion_does_not_change_the_key_of_its_weights(tmp_path):
    (file,) = write_gguf(tmp_path / "m.gguf", qwen2())
    folder = gguf_files.converted(file, tmp_path, "m")
    key = load(spec(folder), tmp_path).key
    (folder / gguf_files.MARK).unlink()
    assert load(spec(folder), tmp_path).key == key
