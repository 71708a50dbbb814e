"""How the likelihood of an answer changes when a vector is added to the residual stream: its gradient at every hook
point, in one backward pass per batch.

Method: BiPO (Cao et al. 2024, arXiv 2406.00045) trains a vector v, added at one layer to every token, by the preference
loss ``-log sigmoid(beta * [log p_v(positive) - log p_v(negative) - ...])``, beginning at v = 0 and in both directions.
Its first step goes along ``grad_v log p(positive) - grad_v log p(negative)``, averaged over the scenarios. At v = 0 the
layers do not disturb each other, so one backward pass gives that gradient at all of them. Log-likelihoods are means
per token, as in SimPO and RePS (Wu et al. 2025, arXiv 2505.20809): with sums, the longer answer would pull harder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from driftbook.errors import ModelError
from driftbook.models.loading import LoadedModel
from driftbook.models.local import left_pad
from driftbook.models.replay import TokenSequence, buckets, response_log_probabilities


def likelihood_gradients(
    model: LoadedModel,
    sequences: Sequence[TokenSequence],
    points: Sequence[tuple[int, str]],
    max_tokens: int = 1024,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Gradient of each response's mean log-likelihood per token with respect to a vector that is added at every token
    of its sequence, prompt and response (as steering does), at each point.

    Args:
        points: (layer, site) pairs.
        max_tokens: padded tokens in a batch; activations of all of them are held for the backward pass.

    Returns:
        ``[sequences, points, d_model]`` float32, nats per token and unit of the residual stream.

    Raises:
        ModelError: the weights are float16, in which such gradients underflow, or a gradient is not finite.
        ValueError: a response is empty.
    """
    if model.dtype == torch.float16:
        raise ModelError(
            "traits.method gradient: gradients of likelihoods underflow in float16; set base.dtype: bfloat16 or float32"
        )
    if any(not s.response_ids for s in sequences):
        raise ValueError("an empty response has no likelihood")
    out = np.empty((len(sequences), len(points), model.hooks.d_model), np.float32)
    for batch in buckets([len(s) for s in sequences], max_tokens):
        out[batch] = _of_batch(model, [sequences[i] for i in batch], points).transpose(1, 0, 2)
        if progress:
            progress(len(batch))
    if not np.isfinite(out).all():
        raise ModelError(
            f"traits.method gradient: gradients in {model.record['dtype']} are not finite; set base.dtype: float32"
        )
    return out


def _of_batch(model: LoadedModel, batch: Sequence[TokenSequence], points: Sequence[tuple[int, str]]) -> np.ndarray:
    """``[points, rows, d_model]``."""
    ids, mask = left_pad([s.ids for s in batch], max(map(len, batch)), model.device)
    keep = max(len(s.response_ids) for s in batch) + 1
    with torch.enable_grad(), contextlib.ExitStack() as stack:
        added = []
        for layer, site in points:
            # One row per sequence, and one vector for all of its tokens: autograd sums over them.
            zero = torch.zeros(len(batch), 1, model.hooks.d_model, device=model.device, requires_grad=True)
            stack.enter_context(model.hooks.edit(layer, site, _Add(zero)))
            added.append(zero)
        logits = model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=min(keep, ids.shape[1]),
        ).logits
        total = logits.new_zeros((), dtype=torch.float32)
        for row, s in enumerate(batch):
            total = total + response_log_probabilities(logits[row], s.response_ids).mean()
        gradients = torch.autograd.grad(total, added)
    return torch.stack([g[:, 0] for g in gradients]).float().cpu().numpy()


class _Add:
    """An edit that adds one row's vector to all of its tokens."""

    __slots__ = ("zero",)

    def __init__(self, zero: torch.Tensor):
        self.zero = zero

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.zero.to(h.dtype)
