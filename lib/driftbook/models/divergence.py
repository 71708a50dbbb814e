"""Exact next-token divergence between two sides along responses that were already sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from driftbook.errors import ModelError
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, token_log_probabilities
from driftbook.models.sides import Pair, Side
from driftbook.store import ShardStore, digest

SEQUENCES = 256  # that both sides read before they are compared
EDGE = 0.01  # of probability: how far rounding may move the edge of the nucleus between decoding and reading


def token_divergence(
    pair: Pair,
    base_sequences: Sequence[TokenSequence],
    intervention_sequences: Sequence[TokenSequence],
    max_tokens: int = 3072,
    progress: Callable[[int], Any] | None = None,
    first: int | None = None,
    sampling: SamplingParams | None = None,
    base_states: Sequence[torch.Tensor] | None = None,
    top: int = 0,
) -> list[dict[str, np.ndarray]]:
    """KL and JS between the next-token distributions of the two sides at every response position.

    Args:
        base_sequences, intervention_sequences: the same responses, each after the prompt as that side gets it.
        max_tokens: padded tokens of one forward.
        first: compare the first tokens of a response only; 0 compares none.
        sampling: also tell how likely each side was to draw every token under these parameters.
        base_states: ``response_states`` of the base, where it has read its sequences before.
        top: how many of the tokens that gained, and that lost, most probability are told of every position.

    Returns:
        per sequence ``{"kl": [first], "js": [first]}`` in nats; KL is base against intervention, JS is symmetric and at
        most ln 2. With ``sampling`` also ``{"base": [tokens], "intervention": [tokens]}``, log-probabilities of the
        tokens, -inf for one that the side would never draw. With ``top`` also ``{"tokens": [first, 2, top], "gains":
        [first, 2, top]}``: ids and differences of probability, gained before lost, largest first.

    Raises:
        ModelError: the sides have different vocabularies, so that exact divergence does not exist.
    """
    if reason := pair.no_divergence():
        raise ModelError(f"exact next-token divergence does not exist here: {reason}")
    width = pair.shared_tokens()
    assert width is not None  # else there is no divergence
    out: list[dict[str, np.ndarray]] = [{} for _ in base_sequences]
    # Some sequences at a time through both sides: distributions are only held of those, and of a few positions.
    order = sorted(range(len(base_sequences)), key=lambda i: (-len(base_sequences[i]), i))
    for start in range(0, len(order), SEQUENCES):
        chunk = order[start : start + SEQUENCES]
        ours = [base_sequences[i] for i in chunk], [intervention_sequences[i] for i in chunk]
        known = [base_states[i].to(pair.base.model.device) for i in chunk] if base_states is not None else None
        p = known or response_states(pair.base, ours[0], max_tokens)
        q = response_states(pair.intervention, ours[1], max_tokens)
        for i, a, b in zip(
            chunk, _distributions(pair.base, p, width), _distributions(pair.intervention, q, width), strict=True
        ):
            out[i] = _compared(a[:first], b[:first], top)
            if sampling is not None:
                tokens = torch.tensor(base_sequences[i].response_ids, device=a.device)
                for name, x in (("base", a), ("intervention", b)):
                    out[i][name] = token_log_probabilities(x, tokens, sampling, EDGE).cpu().numpy()
        if progress:
            progress(len(chunk))
    return out


def response_states(side: Side, sequences: Sequence[TokenSequence], max_tokens: int = 3072) -> list[torch.Tensor]:
    """Last hidden states of a side before every token of a response, ``[response tokens, d_model]`` per sequence in the
    model's dtype: what its output layer makes that token's distribution of."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for batch, states in side.read(sequences, max_tokens=max_tokens, states=True):
        assert states is not None
        for row, i in enumerate(batch):
            n = len(sequences[i].response_ids)
            found[i] = states[row, states.shape[1] - n - 1 : states.shape[1] - 1].clone()
    return found


def kept_states(side: Side, sequences: Sequence[TokenSequence], store: ShardStore) -> list[torch.Tensor]:
    """``response_states``, from the store where the side has read the same sequences together before."""
    key = digest("states", side.key, [(s.prompt_ids, s.response_ids) for s in sequences])

    def read() -> dict[str, np.ndarray]:
        found = torch.cat(response_states(side, sequences)).contiguous()
        return {"states": found.view(torch.uint8).cpu().numpy()}  # numpy has no bfloat16

    held = torch.from_numpy(store.kept_arrays(key, read)["states"]).view(side.model.dtype)
    return list(held.split([len(s.response_ids) for s in sequences]))


def _distributions(side: Side, states: Sequence[torch.Tensor], width: int) -> Iterator[torch.Tensor]:
    """``[response tokens, width]`` log-probabilities of the vocabulary's first ``width`` tokens per sequence."""
    for own in states:
        yield torch.log_softmax(side.logits(own)[:, :width].float(), -1)


def _compared(a: torch.Tensor, b: torch.Tensor, top: int) -> dict[str, np.ndarray]:
    out = {"kl": kl(a, b).cpu().numpy(), "js": js(a, b).cpu().numpy()}
    if top:
        gain = b.exp() - a.exp()
        moved = [gain.topk(top, -1), gain.topk(top, -1, largest=False)]
        out["tokens"], out["gains"] = (
            torch.stack(x, 1).cpu().numpy() for x in ([m.indices for m in moved], [m.values for m in moved])
        )
    return out


def kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats along the last axis, never negative."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def js(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats along the last axis, between 0 and ln 2."""
    # Where the two agree so does their mean: rounding must not make a divergence between equal distributions.
    log_m = torch.where(log_p == log_q, log_p, torch.logaddexp(log_p, log_q) - float(np.log(2)))
    return 0.5 * (kl(log_p, log_m) + kl(log_q, log_m))
