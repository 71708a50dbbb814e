"""What a GPU changes, in one script of at most four minutes: ``make gpu-check``, for a machine with one GPU and no
network.

Architectures of 1B and 7B with random weights in bfloat16 decode, amplify, capture, replay and are screened; the
bundled model must give on the GPU what it gives on the CPU. Every check stands by itself: one that fails is told with
its reason, one that no time is left for as well, and either makes the script fail.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from driftbench.model_speed import bare_forward, local_generate, plain_generate, projecting_replay, random_probe
from driftbench.tiny import tiny_tokenizer
from driftbook.discovery.embeddings import Embedder
from driftbook.models.amplified import amplified
from driftbook.models.answers import Frame, Request, Tap
from driftbook.models.divergence import token_divergence
from driftbook.models.loading import LoadedModel, load
from driftbook.models.projection import ProjectionTap
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.sides import Exaggeration, Pair, Side
from driftbook.models.steering import SteerTap
from driftbook.parameters import ModelSpec

SECONDS = 240.0
#: Shapes of Llama 3.2 1B and Qwen2.5 7B; no weights of theirs.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "1B": ("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                     "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "7B": ("qwen2", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                     "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}),
}  # fmt: skip
TINY = {"tiny": ("llama", {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
                           "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 400})}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much each check does; the defaults suit a GPU of 24 GB and more."""

    batch: int = 128
    prompt: int = 64
    new_tokens: int = 64
    sequences: int = 64
    traits: int = 16
    texts: int = 4096  # embedded; 0: none
    parity: int = 8  # prompts whose greedy answers must be the same as on the CPU
    bundled: bool = True


@dataclass
class Check:
    """The rows of the table: what was checked on what, the figure, how long it took, and what went wrong."""

    device: str
    sizes: Sizes
    seconds: float = SECONDS
    rows: list[tuple[str, str, str, float, str]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def __call__(self, what: str, model: str, work: Callable[[], str]) -> None:
        """Run one check. Its figure, or the error it raised, is told; it is not begun when time is up."""
        begun = time.monotonic()
        if begun - self.begun > self.seconds:
            self.rows.append((what, model, "", 0.0, "not run: time was up"))
            return
        try:
            figure, wrong = work(), ""
        except Exception as error:  # a table with a reason in it, and not the first of many errors
            figure, wrong = "", f"{type(error).__name__}: {error}".splitlines()[0]
        self.synchronize()
        self.rows.append((what, model, figure, time.monotonic() - begun, wrong))

    def synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], int]) -> float:
        """Tokens per second of the second of two runs."""
        work()
        self.synchronize()
        begun = time.perf_counter()
        tokens = work()
        self.synchronize()
        return tokens / (time.perf_counter() - begun)

    @property
    def passed(self) -> bool:
        return all(not wrong for *_, wrong in self.rows)

    def table(self) -> str:
        """The rows as Markdown, with device and date."""
        name = torch.cuda.get_device_name() if self.device.startswith("cuda") else f"CPU, {platform.machine()}"
        head = f"{name}, torch {torch.__version__}, {datetime.date.today().isoformat()}\n\n"
        head += "| check | model | figure | seconds |\n|---|---|---|---|\n"
        lines = (f"| {a} | {b} | {(wrong and f'FAILED: {wrong}') or c} | {s:.1f} |" for a, b, c, s, wrong in self.rows)
        return head + "\n".join(lines) + "\n"


class NoSync(Tap):
    """Refuse any wait for the device while a step's forward runs, hooks included."""

    reads_prompts = False

    def __init__(self) -> None:
        self.step = False

    def before(self, frame: Frame) -> None:
        self.step = frame.step

    @contextlib.contextmanager
    def attach(self, model: LoadedModel) -> Iterator[None]:
        if model.device.type != "cuda":
            yield
            return
        mode = torch.cuda.set_sync_debug_mode
        begin = model.model.register_forward_pre_hook(lambda *_: mode("error" if self.step else "default"))
        end = model.model.register_forward_hook(lambda *_: mode("default"), always_call=True)
        try:
            yield
        finally:
            begin.remove()
            end.remove()
            mode("default")


def random_model(name: str, family: str, config: dict[str, Any], device: str, dtype: torch.dtype) -> LoadedModel:
    """An architecture with random weights, made on its device; its tokenizer is the small one of the tests, and
    hardly any answer ends before its length."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(family, max_position_embeddings=4096, **config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model, tokenizer=tiny_tokenizer(), key=f"random {name}", device=torch.device(device), dtype=dtype,
        reason="gpu-check", eos_ids=frozenset({0}), context=4096, use_chat_template=False,
        record={"model": f"random {name}", "revision": None},
    )  # fmt: skip


def prompts_of(sizes: Sizes) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(max(2, sizes.prompt // 2), sizes.prompt + 1, sizes.batch)
    return [tuple(int(i) for i in rng.integers(5, 400, n)) for n in lengths]


def check_architecture(check: Check, name: str, model: LoadedModel) -> None:
    """Every kind of work on one model, and what it costs beside plain ways."""
    s, points = check.sizes, model.hooks.points("resid_post")
    params = SamplingParams(s.new_tokens, 0.8, 0.95)
    requests = [Request(p, stream_seed("gpu", i)) for i, p in enumerate(prompts_of(s))]
    v = torch.randn(model.hooks.d_model, generator=torch.Generator().manual_seed(0))
    tap = SteerTap(model.hooks.n_layers // 2, "resid_post", v, 1.0)
    pair = Pair(Side("base", model, "a"), Side("intervention", model, "b", taps=(tap,), batch_size=s.batch), 1)
    probe = random_probe(model, points, s.traits, 0)
    rates: dict[str, float] = {}

    def rate(kind: str, work: Callable[[], int]) -> str:
        rates[kind] = check.rate(work)
        beside = f", {rates[kind] / rates['plain']:.2f} of plain" if kind != "plain" and "plain" in rates else ""
        return f"{rates[kind]:,.0f} tokens/s{beside}"

    def amplify() -> int:
        side = amplified(pair, Exaggeration(1.0))
        return sum(len(c.token_ids) for c in side.generate(requests, params))

    def plain(taps: Sequence[Tap] = ()) -> int:
        return sum(map(len, local_generate(model, requests, params, s.batch, taps)))

    def generate() -> int:
        return sum(map(len, plain_generate(model, requests, params, s.batch)))

    check("decoding", name, lambda: rate("plain", plain))
    check("generate", name, lambda: rate("generate", generate))
    check("amplified decoding", name, lambda: rate("amplified", amplify))
    check("equal sides, amplified", name, lambda: equal_sides(model, requests[: max(2, s.batch // 8)], params))
    check("live capture", name, lambda: rate("capture", lambda: plain([ProjectionTap(points, probe), NoSync()])))
    sequences = [TokenSequence(p, p[::-1][: s.new_tokens]) for p in prompts_of(s)[: s.sequences]]
    check("bare forward", name, lambda: rate("forward", lambda: bare_forward(model, sequences)))
    check("replay", name, lambda: rate("replay", lambda: projecting_replay(model, sequences, points, probe)))
    check("screen", name, lambda: screened(check, pair, sequences))


def equal_sides(model: LoadedModel, requests: Sequence[Request], params: SamplingParams) -> str:
    pair = Pair(Side("base", model, "a"), Side("intervention", model, "b"), 1)
    found = [
        {c.index: c.token_ids for c in side.generate(requests, params)}
        for side in (pair.intervention, amplified(pair, Exaggeration(3.0)))
    ]
    same = sum(found[0][i] == found[1][i] for i in found[0])
    if same < len(requests):
        raise AssertionError(f"{len(requests) - same} of {len(requests)} texts of equal sides changed when amplified")
    return f"{same} of {len(requests)} texts the same"


def screened(check: Check, pair: Pair, sequences: Sequence[TokenSequence]) -> str:
    same = Pair(pair.base, Side("intervention", pair.base.model, "c"), 1)
    apart = max(float(f["js"].max()) for f in token_divergence(same, sequences[:4], sequences[:4]))
    if apart != 0:
        raise AssertionError(f"equal sides have a divergence of {apart:g}")
    begun = time.perf_counter()
    found = token_divergence(pair, sequences, sequences, top=5)
    check.synchronize()
    mean = float(np.mean([f["js"].mean() for f in found]))
    return f"{len(sequences) / (time.perf_counter() - begun):,.0f} responses/s (JS {mean:.3f})"


def parity(cpu: LoadedModel, device: LoadedModel, count: int) -> str:
    """Greedy answers and logits of one model in float32 on both. Raises AssertionError where they differ."""
    asked = ["What is a tide?", "Name three rivers.", "How do I boil an egg?", "Who wrote Hamlet?"]
    requests = [Request(tuple(cpu.encode_prompt(f"{asked[i % 4]} ({i})")), 0) for i in range(count)]
    ours, theirs = (local_generate(m, requests, SamplingParams(16, 0.0), count) for m in (cpu, device))
    sequences = [TokenSequence(r.prompt_ids, tuple(t)) for r, t in zip(requests, ours, strict=True)]
    logits = [[x.float().cpu() for _, x in replay(m, sequences, logits=True, max_tokens=10**6)] for m in (cpu, device)]
    apart = max(float((a - b).abs().max()) for a, b in zip(*logits, strict=True))
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    if same < count or apart > 1e-2:  # float32 sums in another order; logits are some tens
        raise AssertionError(f"{same} of {count} greedy answers the same, logits {apart:g} apart")
    return f"{same} of {count} greedy answers the same, logits at most {apart:.1e} apart"


def embedded(device: str, texts: int) -> str:
    embedder = Embedder("bundled:all-minilm-l6-v2", device=device)
    said = [f"The answer number {i} is about tea, rivers and {i % 97} other things." for i in range(texts)]
    embedder.encode(said[:8])
    begun = time.perf_counter()
    embedder.encode(said)
    return f"{texts / (time.perf_counter() - begun):,.0f} texts/s"


def run(
    device: str,
    sizes: Sizes,
    architectures: dict[str, tuple[str, dict[str, Any]]],
    cache: Path,
    seconds: float = SECONDS,
    dtype: torch.dtype = torch.bfloat16,
) -> Check:
    """All checks, the small model first."""
    check = Check(device, sizes, seconds)
    if sizes.bundled:
        where = {d: ModelSpec(dtype="float32", device=d) for d in ("cpu", device)}
        check("parity with the CPU", "bundled", lambda: parity(*(load(w, cache) for w in where.values()), sizes.parity))
    if sizes.texts:
        check("embedding", "all-minilm-l6-v2", lambda: embedded(device, sizes.texts))
    for name, (family, config) in architectures.items():
        made: list[LoadedModel] = []

        def make(name: str = name, family: str = family, config: dict[str, Any] = config, made: list = made) -> str:
            made.append(random_model(name, family, config, device, dtype))
            return f"{sum(p.numel() for p in made[0].model.parameters()) / 1e9:.2f}B weights"

        check("made", name, make)
        if made:
            check_architecture(check, name, made.pop())
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return check


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every check ran and held."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("outputs/.cache"))
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check.json"))
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check needs a GPU that torch can see (torch.cuda.is_available() is False)", file=sys.stderr)
        return 2
    check = run("cuda", Sizes(), ARCHITECTURES, chosen.cache)
    print(check.table())
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    names = ("check", "model", "figure", "seconds", "wrong")
    chosen.out.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in check.rows], indent=1))
    return 0 if check.passed else 1


if __name__ == "__main__":
    sys.exit(main())
