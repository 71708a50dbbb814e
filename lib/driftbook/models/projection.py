"""Project activations on many vectors at once, while the model runs: live (token by token) or over given tokens
(replay)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from driftbook.errors import BudgetError
from driftbook.models.loading import LoadedModel
from driftbook.models.local import Frame, Tap


@dataclass(frozen=True)
class Rows:
    """The rows of one sample: its tokens from the first one of the prompt on.

    ``projection`` is ``[tokens, points, vectors]`` float32, h.v/|v|, and ``norm`` is ``[tokens, points]`` float32, |h|.
    Convention ``own``: row t holds the state at token t. The last token sampled has a state of its own only where one
    more forward was run.
    """

    projection: np.ndarray
    norm: np.ndarray

    def producer(self) -> Rows:
        """The same rows in the other convention: row t holds the state that predicted token t (row 0, which nothing
        predicted, is NaN)."""
        shifted = [np.concatenate([np.full_like(a[:1], np.nan), a[:-1]]) for a in (self.projection, self.norm)]
        return Rows(*shifted)


class ProjectionTap(Tap):
    """Collects projections of every token of every request at every point.

    Args:
        points: (layer, site) pairs; an edit at a point is read after the edit.
        vectors: ``[points, d_model, vectors]`` float32; normalized here.
        max_bytes: refuse the run when its result would be larger.

    A hook copies the state into a preallocated stack and nothing else; one batched product per step projects all points
    on all vectors on the device, and the result leaves the device once per step.
    """

    wants_last_token = True
    reads_prompts = False  # what prompts begin with alike is read once, and belongs to every row

    def __init__(self, points: Sequence[tuple[int, str]], vectors: torch.Tensor, max_bytes: int = 4_000_000_000):
        self.points = list(points)
        self.index = {p: i for i, p in enumerate(self.points)}
        self.vectors = vectors.float() / vectors.float().norm(dim=1, keepdim=True)
        self.max_bytes = max_bytes
        self._stack: torch.Tensor | None = None
        self._step = False
        self._prefill: list[torch.Tensor | None] = []
        self._shared: dict[float, np.ndarray] = {}  # what all prompts begin with, by strength
        self._prompts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._steps: list[tuple[np.ndarray, np.ndarray, torch.Tensor]] = []
        self.dropped = 0
        self._device_vectors: torch.Tensor | None = None

    def bytes_per_token(self) -> int:
        return len(self.points) * (self.vectors.shape[-1] + 1) * 4

    def check_budget(self, tokens: int) -> None:
        """Raise BudgetError when rows for that many tokens exceed ``max_bytes``."""
        need = tokens * self.bytes_per_token()
        if need > self.max_bytes:
            raise BudgetError(
                f"projections of {tokens} tokens at {len(self.points)} points on "
                f"{self.vectors.shape[-1]} vectors need {need / 1e9:.1f} GB, "
                f"over the bound of {self.max_bytes / 1e9:.1f} GB; capture fewer prompts, samples, sites or traits"
            )

    @contextlib.contextmanager
    def attach(self, model: LoadedModel):
        self._device_vectors = self.vectors.to(model.device)
        sites = {site for _, site in self.points}
        layers = {layer for layer, _ in self.points}
        with model.hooks.capture(sorted(sites), sorted(layers), sink=self):
            yield

    def __call__(self, layer: int, site: str, h: torch.Tensor) -> None:
        self.point(layer, site)(h)

    def point(self, layer: int, site: str) -> Callable[[torch.Tensor], None]:
        """The sink of one hook point (see ``models.sinks``)."""
        p = self.index.get((layer, site))
        if p is None:
            return _ignore

        def read(h: torch.Tensor) -> None:
            if self._step:
                if self._stack is None or self._stack.shape[1] < len(h) or self._stack.dtype != h.dtype:
                    self._stack = h.new_empty(len(self.points), len(h), h.shape[-1])
                self._stack[p, : len(h)] = h[:, 0]
            else:
                h = h.float()
                assert self._device_vectors is not None
                self._prefill[p] = torch.cat([h @ self._device_vectors[p], h.norm(dim=-1, keepdim=True)], -1)

        return read

    def before(self, frame: Frame) -> None:
        self._step = frame.step
        self._prefill = [None] * len(self.points)

    def after(self, frame: Frame) -> None:
        if not frame.step:
            both = torch.stack([p for p in self._prefill if p is not None], 2)  # [rows, width, points, vectors + 1]
            self._prefill = []
            host = both.cpu().numpy()
            begins = bool((frame.lengths < frame.prompt_lengths).all())
            about = zip(frame.requests, frame.lengths.tolist(), frame.strengths.tolist(), strict=True)
            for row, (request, n, strength) in enumerate(about):
                kept = host[row, frame.width - (n - frame.shared) :]
                if begins:
                    self._shared[strength] = kept
                    continue
                if frame.shared:
                    kept = np.concatenate([self._shared[strength], kept])
                self._prompts[request] = (kept[..., :-1].copy(), kept[..., -1].copy())
            return
        assert self._stack is not None and self._device_vectors is not None
        rows = len(frame.requests)
        h = self._stack[:, :rows].float()
        both = torch.cat(
            [torch.bmm(h, self._device_vectors), h.norm(dim=-1, keepdim=True)], -1
        )  # [points, rows, vectors + 1]
        self._steps.append((np.asarray(frame.requests), frame.lengths.cpu().numpy() - 1, both.cpu()))

    def rows(
        self, prompts: Sequence[tuple[int, ...]], strengths: Sequence[float], lengths: Sequence[int]
    ) -> list[Rows]:
        """One ``Rows`` per request, prompt tokens first, and forget everything.

        ``lengths`` are the token counts to keep (prompt and response). Rows beyond them, and those of requests that had
        ended when their row was computed, are left out; ``dropped`` counts them from here on.
        """
        self.dropped = 0
        owner = {(prompts[i], strengths[i]): i for i in self._prompts}
        projection = [np.full((n, len(self.points), self.vectors.shape[-1]), np.nan, np.float32) for n in lengths]
        norm = [np.full((n, len(self.points)), np.nan, np.float32) for n in lengths]
        for i, n in enumerate(lengths):
            p, h = self._prompts[owner[(prompts[i], strengths[i])]]
            m = min(len(p), n)
            projection[i][:m], norm[i][:m] = p[:m], h[:m]
        for requests, positions, both in self._steps:
            values = both.numpy()
            for row, (i, position) in enumerate(zip(requests, positions, strict=True)):
                if i < 0 or position >= lengths[i]:
                    self.dropped += 1
                    continue
                projection[i][position] = values[:, row, :-1]
                norm[i][position] = values[:, row, -1]
        self._shared, self._prompts, self._steps = {}, {}, []
        return [Rows(p, h) for p, h in zip(projection, norm, strict=True)]

    def replayed(self, sequences: int) -> list[Rows]:
        """One ``Rows`` per replayed sequence, and forget everything."""
        out = [Rows(*self._prompts[i]) for i in range(sequences)]
        self._shared, self._prompts = {}, {}
        return out


class PoolTap(Tap):
    """Pools the states of a window of tokens per sequence during replay: ``states`` is ``[sequences, points, d_model]``
    float32.

    Windows: ``response_avg``, ``response_first_<n>``, ``response_last``, ``prompt_last``.
    """

    reads_prompts = False  # the last token of a prompt is never among those that are shared

    def __init__(self, points: Sequence[tuple[int, str]], sequences: int, d_model: int, window: str):
        self.points = list(points)
        self.index = {p: i for i, p in enumerate(self.points)}
        self.window = window
        self.states = np.zeros((sequences, len(self.points), d_model), np.float32)
        self._weights: torch.Tensor | None = None
        self._pooled: list[torch.Tensor | None] = []

    @contextlib.contextmanager
    def attach(self, model: LoadedModel):
        sites = sorted({site for _, site in self.points})
        layers = sorted({layer for layer, _ in self.points})
        with model.hooks.capture(sites, layers, sink=self):
            yield

    def before(self, frame: Frame) -> None:
        t, start, end = frame.positions(), frame.prompt_lengths[:, None], frame.lengths[:, None]
        if self.window == "prompt_last":
            inside = t == start - 1
        elif self.window == "response_last":
            inside = t == end - 1
        elif self.window.startswith("response_first_"):
            inside = (t >= start) & (t < start + int(self.window.rsplit("_", 1)[1]))
        else:
            inside = t >= start
        weights = inside.float()
        self._weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        self._pooled = [None] * len(self.points)

    def after(self, frame: Frame) -> None:
        pooled = torch.stack([p for p in self._pooled if p is not None], 1)
        self.states[list(frame.requests)] = pooled.cpu().numpy()

    def __call__(self, layer: int, site: str, h: torch.Tensor) -> None:
        p = self.index.get((layer, site))
        if p is not None:
            assert self._weights is not None
            self._pooled[p] = torch.bmm(self._weights[:, None, :], h.float()).squeeze(1)


def _ignore(h: torch.Tensor) -> None:
    """The sink of a point that nobody asked for (a cross product of sites and layers holds more than the selection)."""


def all_points(model: LoadedModel, sites: Sequence[str]) -> list[tuple[int, str]]:
    """Every layer at the given sites, layer by layer. Raises ModelError for a site that the family lacks."""
    model.hooks.points(sites, [])
    return [(layer, site) for layer in range(model.hooks.n_layers) for site in sites]
