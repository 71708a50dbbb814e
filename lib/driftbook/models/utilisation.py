"""How much of a machine a run keeps busy: its speed held against the fastest matrix products."""

from __future__ import annotations

import time

import torch

from driftbook.models.loading import LoadedModel


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 8) -> float:
    """Operations per second (a multiplication and an addition are two) of square matrix products, the fastest of some:
    what this device does at best in this dtype."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up, and is hardly the fastest
        begun = time.perf_counter()
        float((a @ b)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def peak_gpu_mb(model: LoadedModel) -> float | None:
    """Memory that tensors took at most on the model's GPU in this process, in MB (10^6 bytes); None on a CPU."""
    return torch.cuda.max_memory_allocated(model.device) / 1e6 if model.device.type == "cuda" else None


def utilisation(model: LoadedModel, tokens_per_s: float) -> float:
    """Share of the device's matrix rate that sampling at this speed keeps busy, by two operations a parameter and
    token.

    A lower bound of the model's own work: prompts, attention and sampling are not counted. Embedding tables that only
    look rows up multiply nothing, so they count once where they are tied to the output matrix and not at all elsewhere.
    """
    module = model.model
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    parameters = sum(p.numel() for p in module.parameters())
    if head is not None and head.weight is not table.weight:
        parameters -= table.weight.numel()
    return 2 * parameters * tokens_per_s / matrix_rate(model.device, model.dtype)
