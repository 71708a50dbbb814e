"""Weight matrices packed once for oneDNN, instead of once per call. CPU only; the products are the same numbers in
bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from driftbook.models.loading import LoadedModel


@contextlib.contextmanager
def packed_linears(model: LoadedModel) -> Iterator[None]:
    """While active, every ``nn.Linear`` of a CPU model multiplies by a packed copy of its weight.

    The copies stay with the model (they cost its weights a second time in memory) and are dropped when a weight
    changes. Modules with their own forward (LoRA layers, quantized ones) are left alone, and so is every layer where
    oneDNN packs nothing for this processor (bfloat16 without AVX-512 or AVX-NE-CONVERT).
    """
    module = model.model
    if model.device.type != "cpu" or not _can_pack(model.dtype):
        yield
        return
    patched: list[nn.Linear] = []
    try:
        for layer in module.modules():
            if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and "forward" not in layer.__dict__:
                layer.forward = _packed_forward(layer)
                patched.append(layer)
        yield
    finally:
        for layer in patched:
            del layer.forward


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_forward(layer: nn.Linear):
    stamp = (layer.weight.data_ptr(), layer.weight._version)
    held = getattr(layer, "_driftbook_packed", None)
    if held is None or held[0] != stamp:
        held = (stamp, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None))
        layer._driftbook_packed = held
    packed, bias = held[1], layer.bias

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return forward
