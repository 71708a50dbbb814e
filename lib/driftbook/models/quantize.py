"""The same model with its linear weights rounded to 8 or 4 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from driftbook.errors import ModelError
from driftbook.models.loading import LoadedModel
from driftbook.store import digest

#: Weights that share a scale in 4 bit, the largest that divides a row; as GGUF's Q4 and most GPU kernels have it.
GROUPS = (32, 16, 8)


def quantized(loaded: LoadedModel, bits: int) -> LoadedModel:
    """Round the weights of every ``nn.Linear`` inside the blocks, in place, and return the model under a new key.

    8 bit: one scale an output row; 4 bit: one scale per group of 32 weights; both symmetric, weights only, by torchao.
    Activations, embeddings and the output head keep their dtype, as is usual.

    Args:
        loaded: a model of its own (its modules are changed); bits: 8 or 4.

    Raises:
        ModelError: the model has no ``nn.Linear`` to round (GPT-2 keeps its weights in ``Conv1D``).
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # seconds

    head = loaded.model.get_output_embeddings()
    chosen = {id(m) for m in loaded.model.modules() if type(m) is nn.Linear and m is not head}
    if not chosen:
        raise ModelError(
            f"intervention.kind quantize: {loaded.record['model']} ({loaded.record['architecture']}) has no nn.Linear "
            "to round; take a model of another family"
        )
    if bits == 8:
        quantize_(loaded.model, Int8WeightOnlyConfig(set_inductor_config=False), lambda m, _: id(m) in chosen)
    else:
        for group in GROUPS:
            here = {i for i in chosen if i in _divided(loaded.model, group)}
            quantize_(loaded.model, _four_bit(group), lambda m, _, here=here: id(m) in here)
            chosen -= here
        if chosen:
            raise ModelError(f"{loaded.record['model']}: 4 bit needs rows of a multiple of {GROUPS[-1]} weights")
    loaded.model.requires_grad_(False)
    record = loaded.record | {"quantized": f"{bits} bit, weights only, by torchao"}
    return replace(loaded, key=digest(loaded.key, "quantize", bits, GROUPS)[:16], record=record, _hooks=None)


def _four_bit(group: int) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup  # seconds

    return IntxWeightOnlyConfig(torch.int4, PerGroup(group))


def _divided(model: nn.Module, group: int) -> set[int]:
    return {id(m) for m in model.modules() if isinstance(m, nn.Linear) and m.in_features % group == 0}
