"""How fast this machine is: a few seconds of real work, for the plan of an experiment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from driftbook.models.loading import LoadedModel, load
from driftbook.models.local import LocalEngine, Request
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.parameters import ModelSpec

_QUESTIONS = (
    "How do tides work?",
    "Write a short note to a neighbour who plays the drums at night.",
    "What should I think about before I accept a job in another city?",
    "Is it ever right to break a promise? Give one example for each side, and say where you stand.",
)


@dataclass(frozen=True)
class Measured:
    """What this machine does per second: tokens sampled (the reading of their prompts included), tokens read in a
    forward over given text, short texts embedded; the share of the longest response that answers used; the mean tokens
    of a prompt; and tokens sampled with the threads of one of several processes, None where that was not asked."""

    generate: float
    read: float
    embed: float
    length: float
    prompt_tokens: float
    of_a_process: float | None = None


def measure(
    base_spec: ModelSpec,
    prompts: Sequence[str],
    params: SamplingParams,
    encode: Callable[[Sequence[str]], object],
    cache: Path = Path("outputs/.cache"),
    seconds: float = 3,
    threads: int | None = None,
) -> Measured:
    """Speeds with the base model, its prompts and its sampling, and of the embedder.

    Loading is not counted. Each of the three runs for about ``seconds``, after a first call that warms it up.

    Args:
        prompts: some of those that the experiment asks; encode: embeds texts; cache: where converted models are kept;
            threads: of a process, where several share this machine's cores.

    Raises:
        ModelError: the model cannot be loaded.
    """
    model = load(base_spec, cache)
    ids = [tuple(model.encode_prompt(p)) for p in prompts or _QUESTIONS]
    generate, length = generation_rate(model, ids, params, seconds)
    read = reading_rate(model, ids, seconds / 2)
    embed = embedding_rate(encode, seconds)
    one = None
    if threads is not None:
        with few_threads(threads):
            one, _ = generation_rate(model, ids, params, seconds)
    return Measured(generate, read, embed, length, sum(map(len, ids)) / len(ids), one)


@contextmanager
def few_threads(threads: int) -> Iterator[None]:
    """Torch computes with so many threads in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generation_rate(
    model: LoadedModel, prompts: Sequence[tuple[int, ...]], params: SamplingParams, seconds: float = 3
) -> tuple[float, float]:
    """Sampled tokens per second in whole batches of an answer to each prompt, the prompts' prefill included, and the
    mean length of an answer as a share of ``params.most_tokens``."""
    engine = LocalEngine(model, len(prompts))
    lengths: list[int] = []

    def batch(number: int) -> int:
        requests = [Request(p, stream_seed("calibration", number, i)) for i, p in enumerate(prompts)]
        found = [len(c.token_ids) for c in engine.generate(requests, params if number else SamplingParams(2))]
        lengths.extend(found if number else [])
        return sum(found)

    rate = _rate(batch, seconds)
    return rate, sum(lengths) / (len(lengths) * params.most_tokens)


def reading_rate(model: LoadedModel, prompts: Sequence[tuple[int, ...]], seconds: float = 1) -> float:
    """Tokens per second of a forward over the prompts, padding not counted."""

    def batch(_: int) -> int:
        for _batch, _logits in replay(model, [TokenSequence(p, ()) for p in prompts]):
            pass
        return sum(map(len, prompts))

    return _rate(batch, seconds)


def embedding_rate(encode: Callable[[Sequence[str]], object], seconds: float = 3, texts: int = 64) -> float:
    """Texts of about fifty tokens that are embedded per second."""
    pool = [f"{i}. {' '.join(_QUESTIONS)}" for i in range(texts)]

    def batch(_: int) -> int:
        encode(pool)
        return len(pool)

    return _rate(batch, seconds)


def _rate(batch: Callable[[int], int], seconds: float) -> float:
    batch(0)
    done, number, begun = 0, 0, time.monotonic()
    while True:
        number += 1
        done += batch(number)
        spent = time.monotonic() - begun
        if spent >= seconds:
            return done / spent
