"""Quantization: weights lie on a grid of so many bits, nothing else changes, and engine and hooks still work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook.errors import ModelError
from driftbook.interventions import Quantize
from driftbook.models.loading import load
from driftbook.models.local import LocalEngine, Request
from driftbook.models.quantize import quantized
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.parameters import ModelSpec

pytestmark = pytest.mark.numeric


@pytest.fixture
def spec(tmp_path):
    def save(name="llama", **more):
        folder = tmp_path / name
        tiny_model(name, attention="sdpa", **more).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return ModelSpec(model=str(folder), device="cpu", dtype="float32")

    return save


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 16)])
def test_the_intervention_has_rounded_weights_under_its_own_key(spec, tmp_path, bits, levels):
    pair = open_pair(spec(), Quantize(bits=bits), tmp_path, tmp_path)
    base, changed = pair.base.model, pair.intervention.model
    assert pair.model_loads == 2 and pair.same_tokenizer() and base.key != changed.key
    for name, plain in base.model.named_modules():
        if not isinstance(plain, nn.Linear):
            continue
        other = changed.model.get_submodule(name)
        if name == "lm_head":
            assert torch.equal(other.weight, plain.weight)
            continue
        rounded = other.weight.dequantize()
        # The nearest of `levels` symmetric steps of a row (or of a part of it) is half a step away at most.
        step = 2 * plain.weight.abs().amax(1, keepdim=True) / (levels - 1)
        assert 0 < ((rounded - plain.weight).abs() / step).max() < 0.51 + (bits == 4) * 0.52
        assert max(len(row.unique()) for row in rounded) > 2
    ids = torch.tensor([base.encode_prompt("How are you?")])
    assert not torch.equal(base.model(ids).logits, changed.model(ids).logits)


def test_four_bit_rounds_more_than_eight(spec, tmp_path):
    saved = spec()
    plain = load(saved, tmp_path)
    ids = torch.tensor([plain.encode_prompt("What should I do about my neighbour?")])
    reference = plain.model(ids).logits
    off = {bits: (quantized(load(saved, tmp_path), bits).model(ids).logits - reference).abs().mean() for bits in (8, 4)}
    assert 0 < 4 * off[8] < off[4]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_generates_and_is_read_at_its_hook_points(spec, tmp_path, bits):
    model = quantized(load(spec("qwen3"), tmp_path), bits)
    prompt = tuple(model.encode_prompt("How are you?"))
    (done,) = LocalEngine(model).generate([Request(prompt, 0)], SamplingParams(6, temperature=0))
    ids = list(prompt)
    for _ in done.token_ids:
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert ids[len(prompt) :] == done.token_ids
    with model.hooks.capture("resid_post", [1]) as record:
        hidden = model.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert torch.equal(record[1, "resid_post"], hidden[2])


def test_a_model_without_linear_weights_is_refused(spec, tmp_path):
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel\) has no nn\.Linear to round"):
        quantized(load(spec("gpt2"), tmp_path), 8)
