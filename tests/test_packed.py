"""Packed weight matrices: the same products, and no trace left behind."""

import pytest
import torch
from torch import nn

from driftbook.models.local import Tap
from driftbook.models.packed import packed_linears
from driftbook.models.sampling import SamplingParams
from models import fresh, generated, replaced_forwards, requests_for, some_prompts

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN to pack for"),
]


@torch.no_grad()
def logits_of(model, ids):
    return model.model(input_ids=ids, use_cache=False).logits


IDS = torch.tensor([list(range(20, 45)), list(range(60, 85))])


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("qwen2", torch.float32), ("phi3", torch.bfloat16)]
)
def test_numbers_stay_the_same(family, dtype):
    """In fp32 oneDNN may sum in another order than MKL: 1e-5. qwen2 has biases, phi3 fused projections."""
    model = fresh(family, "sdpa", dtype)
    before = logits_of(model, IDS).float()
    packs = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with packed_linears(model):
        linears = sum(type(m) is nn.Linear for m in model.model.modules())
        assert replaced_forwards(model) == (linears if packs else 0)
        packed = logits_of(model, IDS).float()
    assert replaced_forwards(model) == 0
    relative = (packed - before).norm() / before.norm()
    assert relative < (1e-5 if dtype == torch.float32 else 0.02)
    assert torch.equal(logits_of(model, IDS).float(), before)


def test_without_bfloat16_in_the_processor_nothing_is_packed_and_texts_come_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = fresh("llama", "sdpa", torch.bfloat16)
    with packed_linears(model):
        assert replaced_forwards(model) == 0
    assert len(generated(model, requests_for(some_prompts([4, 5])))) == 2


def test_forwards_come_back_after_an_exception():
    model = fresh()
    with pytest.raises(RuntimeError, match="inside"), packed_linears(model):
        raise RuntimeError("inside")
    assert replaced_forwards(model) == 0

    class Fails(Tap):
        def after(self, frame):
            raise RuntimeError("in a tap")

    with pytest.raises(RuntimeError, match="in a tap"):
        generated(model, requests_for(some_prompts([4, 5])), taps=(Fails(),))
    assert replaced_forwards(model) == 0


def test_a_generator_that_is_not_read_to_the_end_leaves_nothing():
    from driftbook.models.local import LocalEngine

    model = fresh()
    texts = LocalEngine(model, 2).generate(requests_for(some_prompts([4, 5, 6])), SamplingParams(4, 0.0))
    next(texts)
    texts.close()
    assert replaced_forwards(model) == 0


def test_a_nested_use_leaves_the_outer_one_in_place():
    model = fresh()
    with packed_linears(model):
        count = replaced_forwards(model)
        with packed_linears(model):
            logits_of(model, IDS)
        assert replaced_forwards(model) == count > 0
    assert replaced_forwards(model) == 0


def change_in_place(layer):
    with torch.no_grad():
        layer.weight.mul_(-1.5)


def change_the_parameter(layer):
    layer.weight = nn.Parameter(layer.weight.detach() * -1.5, requires_grad=False)


def change_by_data(layer):
    layer.weight.data = layer.weight.data * -1.5


def change_by_an_optimizer(layer):
    layer.weight.requires_grad_(True)
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW([layer.weight], lr=0.3).step()
    layer.weight.grad = None
    layer.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [change_in_place, change_the_parameter, change_by_data, change_by_an_optimizer])
def test_a_changed_weight_is_seen(change):
    model = fresh()
    with packed_linears(model):
        before = logits_of(model, IDS)
    change(model.model.model.layers[1].mlp.down_proj)
    with packed_linears(model):
        packed = logits_of(model, IDS)
    torch.testing.assert_close(packed, logits_of(model, IDS), atol=1e-4, rtol=1e-4)
    assert (packed - before).abs().max() > 0.01


def test_lora_layers_keep_their_own_forward():
    from peft import LoraConfig, get_peft_model

    model = fresh("llama")
    adapted = get_peft_model(
        model.model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    adapted.eval()
    before = logits_of(model, IDS)
    lora = [m for m in model.model.modules() if hasattr(m, "lora_A")]
    assert lora
    with packed_linears(model):
        assert not any("forward" in m.__dict__ for m in lora)
        packed = logits_of(model, IDS)
        with adapted.disable_adapter():
            plain = logits_of(model, IDS)
    torch.testing.assert_close(packed, before, atol=1e-4, rtol=1e-4)
    assert (plain - before).abs().max() > 0.01
