"""Readings of a change that need no answer: mean activation differences through the unembedding, and weight changes.

A narrow fine-tune moves activations in one direction already on the first tokens of text that has nothing to do with
it. The mean of the difference, put through final norm and output layer, names what was learned (Minder et al. 2025,
"Narrow finetuning leaves clearly readable traces in activation differences").
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from driftbook.errors import ModelError
from driftbook.models.answers import Tap
from driftbook.models.loading import LoadedModel
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import Pair, Side
from driftbook.models.weights import COLUMNS as WEIGHTS
from driftbook.models.weights import change_row, weight_change

TOKENS = 5  # of each text, behind its first one, whose state is much the same whatever follows
COLUMNS = ("layer", "norm", "relative", "null", "promoted", "suppressed")
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")

#: Text about nothing in particular.
NEUTRAL = (
    "The bridge over the river was closed for repairs during the week.",
    "Several boxes stood in the corridor next to the lift.",
    "In the north of the country the winters are long and dry.",
    "The meeting began at nine and ended shortly before noon.",
    "Most of the seats on the upper deck were already taken.",
    "A new edition of the map was printed last spring.",
    "They walked along the road until the houses came to an end.",
    "The second floor of the building has eleven rooms.",
    "Rain fell over the harbour for most of the afternoon.",
    "Each of the machines is checked twice a year.",
    "The old railway line now serves as a path for cyclists.",
    "Her brother works in an office near the station.",
    "Some of the letters were written in a small, neat hand.",
    "The price of the ticket depends on the distance.",
    "On the table lay a pencil, a ruler and some paper.",
    "The museum is open every day except on Mondays.",
    "Between the two villages lies a forest of beech and oak.",
    "The first chapter describes how the town was founded.",
    "A small boat crosses the lake every half an hour.",
    "The results were published in the autumn of that year.",
    "He opened the window and looked at the street below.",
    "The committee has seven members, who meet once a month.",
    "Large stones had been placed along both sides of the field.",
    "The film lasts for two hours and has no intermission.",
)


def difference_lens(
    pair: Pair, texts: Sequence[str] = NEUTRAL, top: int = 8, resamples: int = 400, seed: int = 0
) -> pd.DataFrame:
    """Where and towards which tokens the change moves activations on unrelated text; one row a layer.

    Returns:
        ``norm`` of the mean difference (intervention minus base, mean over texts and their first tokens), ``relative``
        to the base's mean activation norm there, ``null``: what ``relative`` reaches in 95% of draws where every text's
        difference has a random sign; the tokens that the direction ``promoted`` and ``suppressed``, strongest first.

    Raises:
        ModelError: the sides have other layers, widths or tokens, so that nothing can be subtracted.
    """
    a, b = pair.base.model, pair.intervention.model
    if reason := pair.no_divergence():
        raise ModelError(f"activations cannot be subtracted: {reason}")
    if (a.hooks.n_layers, a.hooks.d_model) != (b.hooks.n_layers, b.hooks.d_model):
        raise ModelError("activations cannot be subtracted: the sides have other layers or widths")
    ids = [tuple(a.tokenizer(t)["input_ids"])[: TOKENS + 1] for t in texts]
    length = min(map(len, ids))
    sequences = [TokenSequence(i[:1], i[1:length]) for i in ids]
    base, changed = (_first_states(side, sequences) for side in pair)  # [layers, texts, d_model]
    size = base.norm(dim=-1).mean(1)
    difference = changed - base
    mean = difference.mean(1)
    signs = torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], (resamples, len(texts)))).float()
    drawn = torch.einsum("rt,ltd->rld", signs / len(texts), difference).norm(dim=-1)  # [resamples, layers]
    rows = []
    for layer, direction in enumerate(mean):
        norm = float(direction.norm())
        promoted, suppressed = _tokens(pair.intervention, direction, top) if norm > 0 else ([], [])
        null = float(drawn[:, layer].quantile(0.95) / size[layer])
        rows.append((layer, norm, norm / float(size[layer]), null, promoted, suppressed))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Keep(Tap):
    """The stream behind every block, of one batch."""

    def __init__(self, layers: int):
        self.found: list[list[torch.Tensor]] = [[] for _ in range(layers)]

    @contextlib.contextmanager
    def attach(self, model: LoadedModel) -> Iterator[None]:
        with model.hooks.capture("resid_post", sink=self):
            yield

    def __call__(self, layer: int, site: str, value: torch.Tensor) -> None:
        self.found[layer].append(value.float().cpu())


def _first_states(side: Side, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Mean state of the first tokens of each text behind its first one, float32 ``[layers, texts, d_model]``."""
    tap = _Keep(side.model.hooks.n_layers)
    for _ in side.read(sequences, [tap], max_tokens=10**9):  # one batch of equal lengths: rows in their order
        pass
    return torch.stack([torch.cat(x)[:, 1:].mean(1) for x in tap.found])


def _tokens(side: Side, direction: torch.Tensor, top: int) -> tuple[list[str], list[str]]:
    """The tokens that a direction promotes and suppresses through final norm and output layer; what a norm or an output
    layer adds whatever comes in is taken out."""
    model = side.model
    body = model.model.base_model
    norm = next((m for name in _FINAL_NORMS if isinstance(m := getattr(body, name, None), nn.Module)), None)
    if norm is None:
        raise ModelError(f"no final norm found in {type(body).__name__}: looked for {', '.join(_FINAL_NORMS)}")
    weight = next(norm.parameters(), None)
    both = torch.stack([direction, -direction]).to(model.device, model.dtype if weight is None else weight.dtype)
    with torch.inference_mode():
        logits = side.logits(norm(both).to(model.dtype)).float()
    apart = (logits[0] - logits[1])[: len(model.tokenizer)]
    return tuple([model.tokenizer.decode([int(i)]) for i in x.topk(top).indices] for x in (apart, -apart))


def weights_of_change(pair: Pair) -> pd.DataFrame | None:
    """Which weight matrices the change is made of (columns of ``weights.weight_change``): of an adapter what it adds,
    of a checkpoint the difference. None where the weights are the same ones."""
    adapter = pair.intervention.adapter
    if adapter is not None:
        rows = [
            change_row(name, m.get_base_layer().weight, m.get_delta_weight("default"))
            for name, m in adapter.peft.named_modules()
            if isinstance(m, LoraLayer) and "default" in getattr(m, "lora_A", {})
        ]
        return pd.DataFrame(rows, columns=list(WEIGHTS)) if rows else None
    if pair.base.model is pair.intervention.model or not (pair.base.here and pair.intervention.here):
        return None
    try:
        return weight_change(pair.base.model.model, pair.intervention.model.model)
    except ModelError:
        return None  # another architecture: nothing to subtract
