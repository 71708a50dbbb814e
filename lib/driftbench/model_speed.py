"""What decoding and capture cost beside the ways that they replace. Both sides of every figure are measured in one run,
in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from driftbook.models.internals import capture_internals
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request, Tap, left_pad
from driftbook.models.projection import ProjectionTap
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.sides import Side


def requests_for(model: LoadedModel, prompts: Sequence[str], samples: Sequence[int], seed: int) -> list[Request]:
    """``samples[i]`` requests for prompt i."""
    out = []
    for prompt, n in zip(prompts, samples, strict=True):
        ids = tuple(model.encode_prompt(prompt))
        out += [Request(ids, stream_seed("bench", seed, prompt, k)) for k in range(n)]
    return out


@torch.inference_mode()
def plain_generate(
    model: LoadedModel, requests: Sequence[Request], params: SamplingParams, batch: int
) -> list[list[int]]:
    """transformers' ``generate`` in batches of left-padded prompts, sorted by length; responses with their end
    token."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
    out: list[list[int]] = [[] for _ in requests]
    sampling: dict[str, Any] = {"do_sample": False}
    if params.temperature > 0:
        sampling = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = len(requests[chosen[0]].prompt_ids)
        ids, mask = left_pad([requests[i].prompt_ids for i in chosen], width, model.device)
        eos = sorted(model.eos_ids)
        found = model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=params.max_new_tokens,
            eos_token_id=eos,
            pad_token_id=eos[0],
            **sampling,
        )
        for i, row in zip(chosen, found[:, width:].tolist(), strict=True):
            end = next((k + 1 for k, t in enumerate(row) if t in model.eos_ids), len(row))
            out[i] = row[:end]
    return out


def local_generate(
    model: LoadedModel, requests: Sequence[Request], params: SamplingParams, batch: int, taps: Sequence[Any] = ()
) -> list[list[int]]:
    """The same requests through the local engine."""
    out: list[list[int]] = [[] for _ in requests]
    for c in LocalEngine(model, batch).generate(requests, params, taps):
        out[c.index] = c.token_ids
    return out


def ending_at_lines(model: LoadedModel) -> LoadedModel:
    """The same model, whose responses also end with the first line: every token that holds a line break ends one.

    So answers end early and unevenly, in every way that reads ``eos_ids``; a small model hardly ever ends by itself.
    """
    tokenizer = model.tokenizer
    breaks = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
    return dataclasses.replace(model, eos_ids=model.eos_ids | breaks)


def decode_works(
    model: LoadedModel, requests: Sequence[Request], params: SamplingParams, batch: int, cache: Path
) -> dict[str, Callable[[], int]]:
    """Every way to answer the requests that is installed, for ``in_turns``: generate, the local engine, vLLM."""
    works: dict[str, Callable[[], int]] = {
        "generate": lambda: sum(map(len, plain_generate(model, requests, params, batch))),
        "local": lambda: sum(map(len, local_generate(model, requests, params, batch))),
    }
    if importlib.util.find_spec("vllm"):
        from driftbook.models.vllm_engine import VllmEngine  # peft: many seconds

        engine = VllmEngine(Side("base", model, model.key), cache, max_num_seqs=batch)
        next(engine.generate(requests[:1], SamplingParams(1)))  # loads the model
        works["vllm"] = lambda: sum(len(c.token_ids) for c in engine.generate(requests, params))
    return works


def in_turns(works: dict[str, Callable[[], int]], repeats: int) -> pd.DataFrame:
    """Run every work ``repeats`` times in turns; a work returns its token count. Columns: work, seconds, tokens,
    tokens_per_s."""
    rows = []
    for turn in range(repeats):
        for name, work in works.items():
            begun = time.perf_counter()
            tokens = work()
            seconds = time.perf_counter() - begun
            rows.append((name, turn, seconds, tokens, tokens / seconds))
    return pd.DataFrame(rows, columns=["work", "turn", "seconds", "tokens", "tokens_per_s"])


def ratio(times: pd.DataFrame, a: str, b: str) -> tuple[float, float, float]:
    """Rate of a over rate of b turn by turn: median, least, largest."""
    rates = times.pivot(index="turn", columns="work", values="tokens_per_s")
    r = (rates[a] / rates[b]).to_numpy()
    return float(np.median(r)), float(r.min()), float(r.max())


def by_size(
    model: LoadedModel,
    requests: Sequence[Request],
    params: SamplingParams,
    points: Sequence[tuple[int, str]],
    batches: Sequence[int],
    traits: Sequence[int],
    seed: int,
) -> pd.DataFrame:
    """Live capture by batch and number of traits, beside the same engine bare: each once, after a first run of a batch.

    Returns:
        Columns batch, traits (0: bare), tokens_per_s, of_bare, rows_mb (what the rows of the batch take).
    """
    out = []
    for batch in batches:
        chosen = requests[:batch]
        local_generate(model, chosen, params, batch)
        bare = 0.0
        for n in (0, *traits):
            taps = [ProjectionTap(points, random_probe(model, points, n, seed))] if n else []
            begun = time.perf_counter()
            answers = local_generate(model, chosen, params, batch, taps)
            rate = sum(map(len, answers)) / (time.perf_counter() - begun)
            bare = bare or rate
            tokens = sum(len(r.prompt_ids) + len(a) for r, a in zip(chosen, answers, strict=True))
            size = tokens * taps[0].bytes_per_token() / 1e6 if taps else 0.0
            out.append((batch, n, rate, rate / bare, size))
    return pd.DataFrame(out, columns=["batch", "traits", "tokens_per_s", "of_bare", "rows_mb"])


def ratios(times: pd.DataFrame, by: Sequence[str], over: str) -> pd.DataFrame:
    """``ratio`` of every other work to ``over`` within each group of ``by``.

    Returns:
        columns of ``by``, work, over, low, high; groups and works in the order in which they ran.
    """
    rows = []
    for group, table in times.groupby(list(by), sort=False):
        rows += [(*group, work, *ratio(table, work, over)) for work in table.work.unique() if work != over]
    return pd.DataFrame(rows, columns=[*by, "work", "over", "low", "high"])


def bare_forward(model: LoadedModel, sequences: Sequence[TokenSequence], max_tokens: int = 8192) -> int:
    """A forward over the sequences in the same batches, without hooks; returns the number of tokens."""
    for _ in replay(model, sequences, max_tokens=max_tokens):
        pass
    return sum(map(len, sequences))


def random_probe(model: LoadedModel, points: Sequence[tuple[int, str]], traits: int, seed: int) -> torch.Tensor:
    """``[points, d_model, traits]`` directions; what they are does not matter to the time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(points), model.hooks.d_model, traits, generator=generator)


def projecting_replay(
    model: LoadedModel, sequences: Sequence[TokenSequence], points: Sequence[tuple[int, str]], vectors: torch.Tensor
) -> int:
    """Replay with projections at every point; returns the number of tokens."""
    tap = ProjectionTap(points, vectors)
    for _ in replay(model, sequences, [tap]):
        pass
    tap.replayed(len(sequences))
    return sum(map(len, sequences))


class InternalsTap(Tap):
    """Keeps the internals of one layer for every forward, on the device: what live tier 3 adds."""

    def __init__(self, layer: int):
        self.layer = layer
        self.held: list[dict[str, torch.Tensor]] = []

    @contextlib.contextmanager
    def attach(self, model: LoadedModel):
        with capture_internals(model.hooks, [self.layer], sink=lambda _layer, tensors: self.held.append(tensors)):
            yield


def tier3_generate(
    model: LoadedModel,
    requests: Sequence[Request],
    params: SamplingParams,
    batch: int,
    layer: int,
    points: Sequence[tuple[int, str]],
    vectors: torch.Tensor,
) -> int:
    """Live capture of both tiers; returns the number of sampled tokens."""
    taps = [ProjectionTap(points, vectors), InternalsTap(layer)]
    return sum(map(len, local_generate(model, requests, params, batch, taps)))
