"""Tier 3 on disk: everything inside chosen layers for whole answers, one safetensors file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from driftbook.errors import BudgetError
from driftbook.models.captured import Sample
from driftbook.models.internals import capture_internals, validate_internals
from driftbook.models.sides import Side

if TYPE_CHECKING:
    import pandas as pd


def tier3_bytes(side: Side, layers: Sequence[int], lengths: Sequence[int]) -> int:
    """Bytes that the internals of those layers take for sequences of those lengths, from two tiny forwards."""
    sizes = {}
    for n in (4, 8):
        with side.active(), capture_internals(side.model.hooks, layers) as held, torch.inference_mode():
            side.model.model(input_ids=torch.ones(1, n, dtype=torch.long, device=side.model.device), use_cache=False)
            sizes[n] = sum(4 * t.numel() for part in held.values() for t in part.values())  # float32 on disk
    # Bytes are a n + b n^2 (the attention pattern is square).
    b = (sizes[8] - 2 * sizes[4]) / 32
    a = (sizes[4] - 16 * b) / 4
    return int(sum(a * n + b * n * n for n in lengths))


def capture_tier3(
    side: Side,
    samples: Sequence[Sample],
    layers: Sequence[int],
    folder: Path,
    max_bytes: int,
    progress: Callable[[int], Any] | None = None,
) -> list[Path]:
    """All internals of the chosen layers for every sample, one safetensors file each: ``<side>-<sample
    id>.safetensors``.

    Tensors are named ``<layer>.<name>`` with the names and shapes of ``models.internals`` without the batch axis; row t
    is the state at token t (own). Read them back with :func:`read_internals`.

    Raises:
        BudgetError: the files would exceed ``max_bytes``, refused before anything runs.
        ModelError: the layers' attention or neurons are not what their equations say (``models.internals``).
    """
    need = tier3_bytes(side, layers, [len(s.sequence) for s in samples])
    if need > max_bytes:
        raise BudgetError(too_large(need, max_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with side.active():
        validate_internals(side.model.hooks, layers)
    for s in samples:
        path = folder / f"{side.name}-{s.sample_id}.safetensors"
        with capture_internals(side.model.hooks, layers) as held:
            for _ in side.read([s.sequence]):
                pass
        arrays = {
            f"{layer}.{name}": t[0].float().cpu().numpy() for layer, part in held.items() for name, t in part.items()
        }
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
        paths.append(path)
        if progress:
            progress(1)
    return paths


def read_internals(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """The internals of one sample: ``{layer: {name: array}}`` (``pattern`` ``[heads, tokens, tokens]``, ``neurons``
    ``[tokens, m]``, ...)."""
    out: dict[int, dict[str, np.ndarray]] = {}
    for name, array in load_file(path).items():
        layer, part = name.split(".", 1)
        out.setdefault(int(layer), {})[part] = array
    return out


def top_neurons(internals: dict[str, np.ndarray], response: slice, count: int = 10) -> pd.DataFrame:
    """Neurons with the largest mean |activation| over the response; columns neuron, mean, mean_abs, peak_token."""
    import pandas as pd  # a third of a second, and capturing does without

    neurons = internals["neurons"][response]
    size = np.abs(neurons).mean(0)
    chosen = np.argsort(-size)[:count]
    peak = np.abs(neurons[:, chosen]).argmax(0)
    return pd.DataFrame(
        {"neuron": chosen, "mean": neurons[:, chosen].mean(0), "mean_abs": size[chosen], "peak_token": peak}
    )


@dataclass(frozen=True)
class Inside:
    """One layer while one answer was written, for pictures; the first axis of ``tokens`` is the answer's, prompt first.

    ``attention`` ``[heads, response, tokens]`` uint8: percent that each response token reads from each token;
    ``neurons`` and ``firing`` ``[neurons, response]``: those that fire most, and how much at each response token.
    """

    side: str
    layer: int
    prompt: str
    tokens: list[str]
    response: slice
    attention: np.ndarray
    neurons: pd.DataFrame
    firing: np.ndarray

    @property
    def reading(self) -> np.ndarray:
        """Mean percent ``[heads, tokens]`` over response tokens."""
        return self.attention.mean(1)

    @property
    def said(self) -> list[str]:
        """The response tokens."""
        return self.tokens[self.response]


def look_inside(path: Path, sample: Sample, prompt: str, tokens: list[str], layers: Sequence[int]) -> list[Inside]:
    """What the files of :func:`capture_tier3` show of one answer, layer by layer; ``tokens`` are its tokens as text."""
    held = read_internals(path)
    out = []
    for layer in layers:
        table = top_neurons(held[layer], sample.response)
        words = [tokens[sample.response.start + int(t)] for t in table.peak_token]
        out.append(
            Inside(
                sample.side,
                layer,
                prompt,
                tokens,
                sample.response,
                np.rint(100 * held[layer]["pattern"][:, sample.response]).astype(np.uint8),
                table.assign(peak_token=words),
                held[layer]["neurons"][sample.response][:, table.neuron].T,
            )
        )
    return out


def too_large(need: int, bound: int) -> str:
    """What is said of internals beyond their budget."""
    return (
        f"capture.tier3: the internals take {need / 1e9:.2f} GB, over max_bytes {bound / 1e9:.2f} GB; "
        "choose fewer prompts or layers, or raise capture.tier3.max_bytes"
    )
