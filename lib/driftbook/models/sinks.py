"""Where captured values go. A sink is called inside a hook: it copies or projects on the device, and never waits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Sink(Protocol):
    """Takes (layer, site, value [B, T, d]) inside a forward pass.

    A sink may also have ``point(layer, site)``, which gives the function of the tensor alone that a hook then calls, as
    ``models.projection.ProjectionTap`` does.
    """

    def __call__(self, layer: int, site: str, value: Tensor, /) -> None: ...


class Record:
    """Keeps a copy of everything: ``record[layer, site]`` is [B, T, d], successive forward passes joined along T.

    For a few texts, tests and looking around; ``models.projection.ProjectionTap`` keeps what a capture needs.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[int, str], list[Tensor]] = {}

    def __call__(self, layer: int, site: str, value: Tensor, /) -> None:
        self.values.setdefault((layer, site), []).append(value.detach().clone())

    def __getitem__(self, point: tuple[int, str]) -> Tensor:
        return torch.cat(self.values[point], dim=1)
