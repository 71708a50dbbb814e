"""Numbers that are not finite, told where they arise: by model, dtype and layer, before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from driftbook.errors import ModelError
from driftbook.models.families import LAYER_PATHS
from driftbook.models.hooks import find_layers, hidden_of, unwrap


class NotFiniteError(ModelError):
    """A model computed NaN or infinity."""


def require_finite(loaded: Any, logits: torch.Tensor, ids: Sequence[int] | None = None) -> None:
    """Raise NotFiniteError where the largest of some logits, ``[rows, vocabulary]``, is no number.

    Args:
        loaded: the model that gave them; ids: of one row, which is computed again to find the layer.
    """
    if bool(torch.isfinite(logits.amax(-1)).all()):
        return
    where = first_place(loaded.model, ids) if ids is not None and len(ids) else ""
    dtype = str(loaded.dtype).removeprefix("torch.")
    raise NotFiniteError(
        f"{loaded.record.get('model')} in {dtype} computes numbers that are not finite{where}: nothing that it says "
        "can be used. Set dtype: float32 (or bfloat16, whose range is as wide); where they stay, the weights are "
        "damaged"
    )


@torch.inference_mode()
def first_place(model: Any, ids: Sequence[int]) -> str:
    """Where the first such number stands when a model reads some tokens, in words; empty where none does."""
    inner, seen, handles = unwrap(model), [], []
    path, blocks = find_layers(inner, LAYER_PATHS)

    def watch(name: str):
        def hook(_module: Any, _args: Any, output: Any) -> None:
            value = hidden_of(output)
            if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
                seen.append(name)

        return hook

    try:
        embedding = inner.get_input_embeddings()
        handles.append(embedding.register_forward_hook(watch("the embedding")))
        for number, block in enumerate(blocks):
            name = f"layer {number} of {len(blocks)} ({path}.{number})"
            for child, module in block.named_children():
                handles.append(module.register_forward_hook(watch(f"{name}, {child}")))
            handles.append(block.register_forward_hook(watch(name)))
        logits = model(input_ids=torch.tensor([list(ids)], device=embedding.weight.device), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        return f", first in {seen[0]}"
    return "" if bool(torch.isfinite(logits).all()) else ", first in the output layer"
