"""Exact next-token divergence between two sides along responses that were already sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from driftbook.errors import ModelError
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, token_log_probabilities
from driftbook.models.sides import Pair, Side

EDGE = 0.01  # of probability: how far rounding may move the edge of the nucleus between decoding and reading


def token_divergence(
    pair: Pair,
    base_sequences: Sequence[TokenSequence],
    intervention_sequences: Sequence[TokenSequence],
    max_tokens: int = 3072,
    progress: Callable[[int], Any] | None = None,
    first: int | None = None,
    sampling: SamplingParams | None = None,
) -> list[dict[str, np.ndarray]]:
    """KL and JS between the next-token distributions of the two sides at every response position.

    Args:
        base_sequences, intervention_sequences: the same responses, each after the prompt as that side gets it.
        first: compare the first tokens of a response only; 0 compares none.
        sampling: also tell how likely each side was to draw every token under these parameters.

    Returns:
        per sequence ``{"kl": [first], "js": [first]}`` in nats; KL is base against intervention, JS is symmetric and at
        most ln 2. With ``sampling`` also ``{"base": [tokens], "intervention": [tokens]}``, log-probabilities of the
        tokens, -inf for one that the side would never draw.

    Raises:
        ModelError: the sides have different vocabularies, so that exact divergence does not exist.
    """
    if reason := pair.no_divergence():
        raise ModelError(f"exact next-token divergence does not exist here: {reason}")
    # Of one vocabulary, larger members of a family may pad their output matrix further: no token stands there.
    width = min(side.model.model.config.get_text_config().vocab_size for side in pair)
    out: list[dict[str, np.ndarray]] = [{} for _ in base_sequences]
    # One batch at a time through both sides: only one batch of full distributions is ever held.
    order = sorted(range(len(base_sequences)), key=lambda i: (-len(base_sequences[i]), i))
    start = 0
    while start < len(order):
        rows = max(1, min(max_tokens // max(1, len(base_sequences[order[start]])), 256))
        chunk = order[start : start + rows]
        start += rows
        p = _log_probabilities(pair.base, [base_sequences[i] for i in chunk], width)
        q = _log_probabilities(pair.intervention, [intervention_sequences[i] for i in chunk], width)
        for i, a, b in zip(chunk, p, q, strict=True):
            out[i] = {"kl": kl(a[:first], b[:first]).cpu().numpy(), "js": js(a[:first], b[:first]).cpu().numpy()}
            if sampling is not None:
                tokens = torch.tensor(base_sequences[i].response_ids, device=a.device)
                for name, x in (("base", a), ("intervention", b)):
                    out[i][name] = token_log_probabilities(x, tokens, sampling, EDGE).cpu().numpy()
        if progress:
            progress(len(chunk))
    return out


def _log_probabilities(side: Side, sequences: Sequence[TokenSequence], width: int) -> list[torch.Tensor]:
    """``[response tokens, width]`` log-probabilities of the vocabulary's first ``width`` tokens per sequence: row t is
    the distribution that token t was drawn from."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for batch, logits in side.read(sequences, logits=True, max_tokens=10**9):
        assert logits is not None
        for row, i in enumerate(batch):
            n = len(sequences[i].response_ids)
            found[i] = torch.log_softmax(logits[row, logits.shape[1] - n - 1 : logits.shape[1] - 1, :width].float(), -1)
    return found


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats along the last axis, never negative."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def js(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats along the last axis, between 0 and ln 2."""
    # Where the two agree so does their mean: rounding must not make a divergence between equal distributions.
    log_m = torch.where(log_p == log_q, log_p, torch.logaddexp(log_p, log_q) - float(np.log(2)))
    return 0.5 * (kl(log_p, log_m) + kl(log_q, log_m))
