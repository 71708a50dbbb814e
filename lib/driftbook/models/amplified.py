"""Amplified decoding: a change exaggerated, so that what is faint in ordinary answers stands out.

Both sides read one growing text, and its next token is drawn from

    log p_changed + a (log p_changed - log p_base)

over the tokens that at least one of them finds likely (logit amplification, Goodfire 2025; contrastive decoding of two
checkpoints, arXiv 2605.25902; the plausibility bound is that of contrastive decoding, Li et al. 2023). ``a`` = 0 is the
changed side, ``a`` = -1 the base. What neither finds likely keeps the probability that the changed side gives it: were
it dropped, as in contrastive decoding, two equal sides would write other texts at a > 0 than at 0, and a difference
between amplified and ordinary answers would be no sign of a change. Tokens that one vocabulary has and the other has
not are never drawn, as the other side could not read on; but an end token is, since nothing is read after it.

For an edit that has a size (a steering coefficient, an ablation, the scale of a LoRA) that size may be multiplied
instead, by ``1 + a``: one forward a token, and the same two fixed points.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from peft.helpers import rescale_adapter_scale

from driftbook.errors import ModelError
from driftbook.models.answers import Completion, Engine, Request, Tap
from driftbook.models.local import Voice
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair, Side
from driftbook.store import digest


def amplified(pair: Pair, how: Exaggeration | None, name: str = "intervention") -> Side:
    """One side of a pair with what sets it apart from the other exaggerated; itself where ``how`` is None.

    Its requests bring the prompt of the other side, too (``Request.other_ids``). ``name="base"`` exaggerates what the
    change took away.

    Raises:
        ModelError: the two have no common next token, or the change has no size that could be multiplied.
    """
    side = getattr(pair, name)
    if how is None:
        return side
    other = pair.base if name == "intervention" else pair.intervention
    key = digest("amplified", side.key, other.key, how.strength, how.by, how.plausible)[:16]
    engine: Engine
    if how.by == "coefficient":
        if name != "intervention" or not (side.taps or side.adapter):
            raise ModelError(
                "decode.amplify.by: coefficient needs a change that has a size (steer, ablate, adapter, finetune); "
                "set it to logits"
            )
        engine = _ByCoefficient(side, how)
    else:
        if reason := pair.no_divergence():
            raise ModelError(f"{reason}: nothing can be exaggerated")
        engine = _ByLogits(side, other, how, None if pair.one_vocabulary() else pair.shared_tokens())
    # the engine switches on what belongs to either side
    return replace(side, key=key, engine=engine, exaggerated=how, taps=(), adapter=None)


def exaggerate(
    changed: torch.Tensor,
    base: torch.Tensor,
    strength: float,
    plausible: float,
    shared: int | None = None,
    ends: Iterable[int] = (),
) -> torch.Tensor:
    """Logits to draw the next token from.

    Args:
        changed, base: ``[rows, vocabulary]``; of unlike width where one output layer is padded further.
        strength: ``a``; below -1/2 the roles are those of the base, whose own tail then stays as it is.
        plausible: tokens within this factor of the likeliest one of either side are exaggerated.
        shared: how many tokens, from the first on, both vocabularies have; None where that is all.
        ends: tokens that end a text; of those that are not shared no other is drawn.

    Returns:
        ``[rows, vocabulary]`` float32, equal to ``changed`` bit for bit where ``strength`` is 0 or the sides are equal,
        and to ``base`` where it is -1.
    """
    changed, base = changed.float(), base.float()
    if strength < -0.5:
        changed, base, strength = base, changed, -1 - strength
    width = min(x for x in (changed.shape[-1], base.shape[-1], shared) if x is not None)
    alone, changed, base = changed[..., width:], changed[..., :width], base[..., :width]
    floor = math.log(plausible)
    likely = (changed >= changed.amax(-1, keepdim=True) + floor) | (base >= base.amax(-1, keepdim=True) + floor)
    # lerp is exact at both ends and between equal numbers
    moved = torch.lerp(base, changed, 1 + strength).masked_fill(~likely, -torch.inf)
    before = changed.masked_fill(~likely, -torch.inf)
    gained = before.logsumexp(-1, keepdim=True) - moved.logsumexp(-1, keepdim=True)
    told = torch.where(likely, moved + gained, changed)
    if not alone.shape[-1]:
        return told
    last = [token - width for token in ends if 0 <= token - width < alone.shape[-1]]
    never = torch.full_like(alone, -torch.inf)
    never[..., last] = alone[..., last]
    return torch.cat([told, never], -1)


class _ByLogits(Engine):
    """Two sides in lockstep."""

    name = "amplified"

    def __init__(self, side: Side, other: Side, how: Exaggeration, shared: int | None):
        self.side, self.other = side, other
        self.combine = partial(
            exaggerate, strength=how.strength, plausible=how.plausible, shared=shared, ends=side.model.eos_ids
        )

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """As every engine; both sides use the batch size of the one that is exaggerated."""
        others = [replace(r, prompt_ids=r.other_ids or r.prompt_ids) for r in requests]
        voices = [
            Voice(self.side.model, requests, [*self.side.taps, *taps], self.side.active),
            Voice(self.other.model, others, self.other.taps, self.other.active),
        ]
        yield from self.side.local.together(voices, params, lambda logits: self.combine(*logits))


class _ByCoefficient(Engine):
    """The changed side with a change of ``1 + a`` times its size."""

    name = "amplified"

    def __init__(self, side: Side, how: Exaggeration):
        self.side, self.times = side, 1 + how.strength

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """As every engine."""
        adapter = self.side.adapter
        scaled = contextlib.nullcontext() if adapter is None else rescale_adapter_scale(adapter.peft, self.times)
        stronger = [replace(r, strength=self.times * r.strength) for r in requests]
        with scaled, self.side.active():
            yield from self.side.local.generate(stronger, params, [*self.side.taps, *taps])
