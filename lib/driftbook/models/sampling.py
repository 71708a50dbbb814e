"""Exact sampling from next-token logits with one uniform draw per row.

Every row brings its own uniform numbers, so a text depends on its prompt, its seed and the weights, never on the rows
that happen to share its batch (up to the rounding of the matrix products).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

#: How many of the likeliest tokens are looked at, step by step, before the whole vocabulary is: a nucleus is mostly
#: small, and to sort 49,152 tokens of a row or two took as long as to find the 64 likeliest of 64 rows.
CANDIDATES = (64, 2048)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn. The filters apply in the order temperature, top-k, top-p, min-p, as in transformers.

    ``temperature`` 0 means greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filter off. A model that
    thinks first may think for ``max_thought_tokens``; from the end of its thought on ``max_new_tokens`` count.
    """

    max_new_tokens: int = 50
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    max_thought_tokens: int = 0

    @property
    def most_tokens(self) -> int:
        """The longest response."""
        return self.max_new_tokens + self.max_thought_tokens


def stream_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same seed on every machine and in every
    process."""
    digest = hashlib.sha256("\x1f".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def uniforms(seed: int, n: int) -> np.ndarray:
    """``n`` uniform float64 numbers of the stream ``seed`` (Philox, counter-based: independent across seeds)."""
    return np.random.Generator(np.random.Philox(key=seed)).random(n)


def sample(logits: torch.Tensor, u: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Draw one token a row.

    Args:
        logits: ``[rows, vocabulary]``, any float dtype; computed on in float32.
        u: ``[rows]`` uniforms in [0, 1).

    Returns:
        ``[rows]`` int64 token ids, distributed exactly as the filtered softmax.
    """
    if params.temperature == 0:
        return logits.argmax(-1)
    scores = logits.float() / params.temperature
    probs = torch.softmax(scores, -1)
    if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
        return _inverse_cdf(probs, u)
    return _draw_filtered(probs, u, params, params.top_k or CANDIDATES[0])


def _draw_filtered(probs: torch.Tensor, u: torch.Tensor, params: SamplingParams, width: int) -> torch.Tensor:
    """Draw among the ``width`` likeliest tokens; rows whose filters keep more than those are drawn among more."""
    vocabulary = probs.shape[-1]
    top, ids = probs.topk(min(width, vocabulary), -1)
    drawn = _draw_sorted(top, ids, u, params)
    if params.top_k == 0 and width < vocabulary:
        rows = (~_settled(top, params)).nonzero().squeeze(-1)
        if len(rows):
            wider = next((w for w in CANDIDATES if w > width), vocabulary)
            drawn[rows] = _draw_filtered(probs[rows], u[rows], params, wider)
    return drawn


def filtered_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution that :func:`sample` draws from, ``[rows, vocabulary]`` float32 (greedy: one-hot)."""
    if params.temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    probs = torch.softmax(logits.float() / params.temperature, -1)
    order, ids = probs.sort(dim=-1, descending=True, stable=True)
    if params.top_k:
        order[..., params.top_k :] = 0
    weights = _filter_sorted(order, params)
    return torch.zeros_like(probs).scatter_(-1, ids, weights / weights.sum(-1, keepdim=True))


def token_log_probabilities(
    logits: torch.Tensor, tokens: torch.Tensor, params: SamplingParams, slack: float = 0.0
) -> torch.Tensor:
    """Log-probability ``[rows]`` of one token a row under the distribution that :func:`sample` draws from; -inf for one
    that the filters leave out.

    ``logits`` ``[rows, vocabulary]``, or log-probabilities; ``slack`` is added to ``top_p``: a text that was decoded in
    other batches than it is read in has tokens on the very edge of the nucleus, which rounding would put outside.

    Raises ValueError for greedy sampling: it has no distribution.
    """
    if params.temperature == 0:
        raise ValueError("greedy sampling has no distribution: temperature must be above 0")
    probs = torch.softmax(logits.float() / params.temperature, -1)
    own = probs.gather(-1, tokens[:, None]).squeeze(-1)
    if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
        return own.log()
    loose = replace(params, top_p=min(1.0, params.top_p + slack))
    return _log_filtered(probs, own, loose, params.top_k or CANDIDATES[0])


def _log_filtered(probs: torch.Tensor, own: torch.Tensor, params: SamplingParams, width: int) -> torch.Tensor:
    vocabulary = probs.shape[-1]
    top = probs.topk(min(width, vocabulary), -1).values
    kept = _filter_sorted(top, params)
    share = own / top.sum(-1) if params.top_k else own
    least = torch.where(kept > 0, kept, torch.inf).amin(-1)
    out = torch.where(share >= least, (share / kept.sum(-1)).log(), -torch.inf)
    if params.top_k == 0 and width < vocabulary:
        rows = (~_settled(top, params)).nonzero().squeeze(-1)
        if len(rows):
            wider = next((w for w in CANDIDATES if w > width), vocabulary)
            out[rows] = _log_filtered(probs[rows], own[rows], params, wider)
    return out


def _settled(top: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Whether the sorted candidates certainly hold every token that the filters keep."""
    by_mass = (
        top.sum(-1) >= params.top_p if params.top_p < 1 else torch.zeros(len(top), dtype=torch.bool, device=top.device)
    )
    by_min_p = top[:, -1] < params.min_p * top[:, 0]
    return by_mass | by_min_p


def _filter_sorted(probs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    if params.top_k:
        probs = probs / probs.sum(-1, keepdim=True)
    if params.top_p < 1:
        before = probs.cumsum(-1) - probs
        probs = torch.where(before < params.top_p, probs, 0.0)
    if params.min_p > 0:
        probs = torch.where(probs >= params.min_p * probs[..., :1], probs, 0.0)
    return probs


def _draw_sorted(probs: torch.Tensor, ids: torch.Tensor, u: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    return ids.gather(-1, _inverse_cdf(_filter_sorted(probs, params), u)[:, None]).squeeze(-1)


def _inverse_cdf(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    cdf = weights.cumsum(-1)
    # The first index whose mass reaches a target above zero always has mass itself, also when rounding puts it on the
    # very end.
    target = (u.to(cdf.dtype) * cdf[:, -1]).clamp(min=torch.finfo(cdf.dtype).tiny)
    return torch.searchsorted(cdf, target[:, None]).squeeze(-1)
