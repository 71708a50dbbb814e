"""Which weight matrices changed between two checkpoints, and how: size, rank, leading directions."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import torch
from torch import nn

from driftbook.errors import ModelError

COLUMNS = ("module", "layer", "kind", "norm", "change", "relative", "effective_rank", "top_share", "singular_values")
WIDEST = 1024  # side of a matrix up to which its singular values are worth their seconds
_LAYER = re.compile(r"\.(\d+)\.")


def weight_change(base: nn.Module, changed: nn.Module, leading: int = 8) -> pd.DataFrame:
    """One row per weight matrix that two models of one architecture share, in the order of the network.

    Args:
        base, changed: quantized weights are compared as the numbers they stand for.
        leading: singular values of the difference that are kept.

    Returns:
        module (its name), layer (block, -1 outside of blocks), kind (last parts of the name), norm (Frobenius norm of
        the base's matrix), change (that of the difference), relative (change / norm), effective_rank (of the
        difference: exp of the entropy of its normalised singular values, Roy and Vetterli 2007; 0 where nothing
        changed), top_share (share of the squared change in the first direction), singular_values (the first
        ``leading``). The last three are left out of matrices wider than ``WIDEST``.

    Raises:
        ModelError: the two have different matrices.
    """
    ours, theirs = _matrices(base), _matrices(changed)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())[0]
        raise ModelError(f"the two models have different weights ({odd} is in one of them only): nothing to subtract")
    rows = []
    for name, weight in ours.items():
        other = theirs[name]
        if weight.shape != other.shape:
            raise ModelError(f"{name} is {tuple(weight.shape)} in one model and {tuple(other.shape)} in the other")
        rows.append(change_row(name, weight, other - weight, leading))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def change_row(name: str, weight: torch.Tensor, difference: torch.Tensor, leading: int = 8) -> tuple:
    """One row of ``weight_change``; no spectrum (NaN) where the smaller side of the matrix is above ``WIDEST``."""
    difference = difference.detach().to("cpu", torch.float32)
    norm, change = float(weight.detach().float().norm()), float(difference.norm())
    known = min(difference.shape) <= WIDEST
    values = _singular_values(difference) if change > 0 and known else np.zeros(0)
    layer = _LAYER.search(name)
    return (
        name,
        int(layer.group(1)) if layer else -1,
        ".".join(name.split(".")[-2:]) if layer else name,
        norm,
        change,
        change / norm if norm else np.nan,
        effective_rank(values) if known else np.nan,
        float(values[0] ** 2 / (values**2).sum()) if len(values) else np.nan,
        values[:leading].astype(float).tolist(),
    )


def _singular_values(matrix: torch.Tensor) -> np.ndarray:
    """Largest first, float64; from the smaller product of the matrix with itself, some times faster than an SVD."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0).numpy()


def _matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights with two dimensions by module name, as float32 on the CPU; tied weights once."""
    found, seen = {}, set()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or id(weight) in seen:
            continue
        seen.add(id(weight))
        plain = (
            weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not torch.nn.Parameter else weight
        )
        found[name] = plain.detach().to("cpu", torch.float32)
    return found


def effective_rank(values: np.ndarray) -> float:
    """exp of the Shannon entropy of the normalised singular values ``[r]``; 0 for a matrix of zeros."""
    values = np.asarray(values, np.float64)
    total = values.sum()
    if not total > 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-(p * np.log(p)).sum()))
