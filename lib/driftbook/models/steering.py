"""Edits of the residual stream while a model runs: adding a vector, and removing the component along one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from driftbook.models.loading import LoadedModel
from driftbook.models.local import Frame, Tap


class SteerTap(Tap):
    """Add ``strength * amount * v / |v|`` at one hook point.

    Args:
        vector: ``[d_model]`` float32, any norm.
        amount: in activation units (a coefficient times the mean activation norm at that point).
        positions: ``"all"`` tokens, or those of the ``"response"`` alone.

    ``strength`` is per row (``Request.strength``), so one batch can hold a whole dose-response curve.
    """

    reads_prompts = False

    def __init__(self, layer: int, site: str, vector: torch.Tensor, amount: float, positions: str = "all"):
        self.layer, self.site, self.positions = layer, site, positions
        self.delta = amount * vector.float() / vector.float().norm()
        self._scale: torch.Tensor | None = None

    @contextlib.contextmanager
    def attach(self, model: LoadedModel):
        delta = self.delta.to(model.device)

        def add(h: torch.Tensor) -> torch.Tensor:
            assert self._scale is not None
            return h + (self._scale * delta).to(h.dtype)

        with model.hooks.edit(self.layer, self.site, add):
            yield

    def before(self, frame: Frame) -> None:
        scale = frame.strengths[:, None, None]
        if self.positions == "response":
            inside = frame.positions() >= frame.prompt_lengths[:, None]
            scale = scale * inside[:, :, None]
        self._scale = scale


class AblateTap(Tap):
    """Project a direction out of the residual stream: ``h - strength * (h.v) v / |v|^2`` at each of the given layers.

    ``vectors`` maps layer -> ``[d_model]``. (Directional ablation, Arditi et al. 2024.)
    """

    reads_prompts = False

    def __init__(self, site: str, vectors: dict[int, torch.Tensor]):
        self.site = site
        self.vectors = {layer: v.float() / v.float().norm() for layer, v in vectors.items()}
        self._strength: torch.Tensor | None = None

    @contextlib.contextmanager
    def attach(self, model: LoadedModel):
        with contextlib.ExitStack() as stack:
            for layer, v in self.vectors.items():
                stack.enter_context(model.hooks.edit(layer, self.site, self._remover(v.to(model.device))))
            yield

    def _remover(self, v: torch.Tensor):
        def remove(h: torch.Tensor) -> torch.Tensor:
            assert self._strength is not None
            along = h.float() @ v
            return h - ((self._strength * along)[..., None] * v).to(h.dtype)

        return remove

    def before(self, frame: Frame) -> None:
        self._strength = frame.strengths[:, None]


@contextlib.contextmanager
def attached(model: LoadedModel, taps: Sequence[Tap]):
    """All hooks of several taps, removed on the way out whatever happens."""
    with contextlib.ExitStack() as stack:
        for tap in taps:
            stack.enter_context(tap.attach(model))
        yield
