"""A steered model written as a checkpoint computes what the hooked model computes."""

from __future__ import annotations

import pytest
import torch

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook.errors import ModelError
from driftbook.models.export import export_steered
from driftbook.models.loading import LoadedModel, load
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.steering import SteerTap
from driftbook.parameters import ModelSpec


@pytest.fixture
def loaded(tmp_path):
    def build(name: str, **more) -> LoadedModel:
        folder = tmp_path / name
        tiny_model(name, **more).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return load(ModelSpec(model=str(folder), device="cpu", dtype="float32"), tmp_path)

    return build


def vector(model: LoadedModel) -> torch.Tensor:
    return torch.randn(model.hooks.d_model, generator=torch.Generator().manual_seed(3))


def logits(model: LoadedModel, taps=()) -> torch.Tensor:
    sequence = TokenSequence(tuple(model.encode_prompt("What should I do about my neighbour?")), (7, 8, 9, 10))
    return torch.cat([found for _, found in replay(model, [sequence], taps, logits=True)])


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False}),
        ("gpt2", {}),
    ],
    ids=["llama", "tied llama", "mistral", "qwen2", "gpt2"],
)
def test_the_checkpoint_gives_the_logits_of_the_hooked_model(loaded, tmp_path, name, more, site):
    model = loaded(name, **more)
    tap = SteerTap(2, site, vector(model), amount=3.0)
    hooked, plain = logits(model, [tap]), logits(model)
    folder = export_steered(model, tap, tmp_path / "steered")
    written = load(ModelSpec(model=str(folder), device="cpu", dtype="float32"), tmp_path)
    # The vector enters one addition earlier: float32 rounding of a stream of this size.
    assert torch.allclose(logits(written), hooked, atol=2e-5)
    assert (hooked - plain).abs().max() > 0.1
    assert torch.equal(logits(model), plain) and written.key != model.key
    assert export_steered(model, tap, folder) == folder


def test_a_parallel_block_takes_the_vector_at_its_end(loaded, tmp_path):
    model = loaded("gpt_neox")
    tap = SteerTap(1, "resid_post", vector(model), amount=3.0)
    hooked = logits(model, [tap])
    folder = export_steered(model, tap, tmp_path / "steered")
    assert torch.allclose(
        logits(load(ModelSpec(model=str(folder), device="cpu", dtype="float32"), tmp_path)), hooked, atol=2e-5
    )


@pytest.mark.parametrize(
    ("name", "layer", "site", "positions", "said"),
    [
        ("gemma2", 1, "resid_post", "all", "normalizes what a block adds"),
        ("qwen3", 1, "resid_post", "all", r"\(qwen3\) has no bias at mlp\.down_proj"),
        ("mistral", 1, "resid_post", "all", r"\(mistral\) has no bias"),
        ("llama", 0, "resid_pre", "all", "is the embedding"),
        ("llama", 1, "resid_post", "response", "intervention.positions response"),
    ],
)
def test_what_no_bias_can_hold_is_refused_and_leaves_nothing(loaded, tmp_path, name, layer, site, positions, said):
    model = loaded(name)
    with pytest.raises(ModelError, match=said):
        export_steered(model, SteerTap(layer, site, vector(model), 1.0, positions), tmp_path / "steered")
    assert not (tmp_path / "steered").exists()
