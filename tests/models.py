"""Tiny models as the library holds them, and the plainest way to compute what it computes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftbench.tiny import VOCABULARY, tiny_model, tiny_tokenizer
from driftbook.models.hooks import HookPoints
from driftbook.models.load_report import end_ids
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, stream_seed

GREEDY = SamplingParams(max_new_tokens=8, temperature=0.0)
SHARED: list[LoadedModel] = []


@cache
def loaded(family: str = "llama", attention: str = "eager", **overrides: Any) -> LoadedModel:
    """One model of a family for all tests; one that writes into its weights, or hooks it, takes ``fresh``."""
    SHARED.append(fresh(family, attention, **overrides))
    return SHARED[-1]


def fresh(
    family: str = "llama",
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    eos: frozenset[int] | None = None,
    template: bool = True,
    **overrides: Any,
) -> LoadedModel:
    """A tiny model of its own. ``eos`` replaces the ids that end a response (an empty set: nothing does)."""
    model = tiny_model(family, attention, dtype, **overrides).requires_grad_(False)
    tokenizer = tiny_tokenizer()
    key = f"{family}-{attention}-{dtype}-{sorted(overrides.items())}"
    config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        key=key,
        device=torch.device("cpu"),
        dtype=dtype,
        reason="a test",
        eos_ids=frozenset(end_ids(model, tokenizer)) if eos is None else eos,
        context=int(config.max_position_embeddings),
        use_chat_template=template,
        record={"model": f"tiny {family}", "revision": None, "dtype": "float32", "template": None, "key": key},
    )


def some_prompts(lengths: list[int], seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of the given lengths, without special tokens."""
    rng = np.random.default_rng(seed)
    return [tuple(int(i) for i in rng.integers(5, VOCABULARY, n)) for n in lengths]


def requests_for(prompts: list[tuple[int, ...]], samples: int = 1, strength: float = 1.0) -> list[Request]:
    return [Request(p, stream_seed("test", p, k), strength) for p in prompts for k in range(samples)]


def generated(
    model: LoadedModel,
    requests: list[Request],
    params: SamplingParams = GREEDY,
    batch_size: int | str = "auto",
    taps: tuple = (),
) -> list[tuple[list[int], str]]:
    """Token ids and finish reason of every request, in the order of the requests; each must come back exactly once."""
    done: dict[int, tuple[list[int], str]] = {}
    for c in LocalEngine(model, batch_size).generate(requests, params, taps):
        assert c.index not in done, f"request {c.index} was answered twice"
        done[c.index] = (c.token_ids, c.finish_reason)
    assert sorted(done) == list(range(len(requests)))
    return [done[i] for i in range(len(requests))]


@torch.no_grad()
def hidden_states(model: LoadedModel, ids: tuple[int, ...] | list[int]) -> list[np.ndarray]:
    """``output_hidden_states`` of one row: ``[tokens, d_model]`` per entry (the last one is after the final norm)."""
    out = model.model(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return [h[0].numpy() for h in out.hidden_states]


@torch.no_grad()
def full_logits(model: LoadedModel, sequence: TokenSequence | tuple[int, ...]) -> np.ndarray:
    """``[tokens, vocabulary]`` of one row alone, float64."""
    ids = sequence.ids if isinstance(sequence, TokenSequence) else sequence
    return model.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()


def assert_same_but_for_rounding(found: np.ndarray, expected: np.ndarray, share: float = 1e-5) -> None:
    """Numbers of one float32 computation made twice: by another process, with other threads or in another batch. Its
    sums may then run in another order, and each keeps 2**-24 of what it adds up; so each difference is measured against
    the largest number, of which ``share`` is some hundred such steps. A wrong row or a wrong side is off by far more.
    """
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.nanmax(np.abs(expected)))


def hook_count(model: LoadedModel | HookPoints) -> int:
    """Hooks of ours: transformers leaves recorders of its own in a model that was asked for hidden states once."""
    hooks = (h for m in model.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()))
    return sum(h.__module__ != "transformers.utils.output_capturing" for h in hooks)


def replaced_forwards(model: LoadedModel) -> int:
    """Modules whose forward is not their class's: what packing leaves behind when it is not undone."""
    return sum("forward" in m.__dict__ for m in model.model.modules())


def saved(folder: Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """A tiny model and its tokenizer as a folder that ``load`` takes."""
    tiny_model(family, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
