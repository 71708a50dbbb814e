"""Forwards over token ids that already exist: for replay capture, pooled activations and divergence between two
models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from driftbook.errors import BudgetError
from driftbook.models.finite import require_finite
from driftbook.models.loading import LoadedModel
from driftbook.models.local import Frame, Prefix, Tap, forward, rehearse
from driftbook.models.packed import packed_linears
from driftbook.models.steering import attached


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and a response as token ids: the record that replay works on; nothing is decoded and tokenized again."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    strength: float = 1.0

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.response_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def buckets(lengths: Sequence[int], max_tokens: int, max_rows: int = 256) -> Iterator[list[int]]:
    """Indices in batches of similar length: at most ``max_tokens`` padded tokens and ``max_rows`` rows each, longest
    first."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch and ((len(batch) + 1) * lengths[batch[0]] > max_tokens or len(batch) >= max_rows):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def replay(
    model: LoadedModel,
    sequences: Sequence[TokenSequence],
    taps: Sequence[Tap] = (),
    logits: bool = False,
    max_tokens: int = 8192,
    states: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor | None]]:
    """Run sequences through the model in length-sorted batches; taps see every forward.

    Yields ``(indices, logits)`` per batch: with ``logits``, the next-token logits ``[rows, columns, vocabulary]`` of
    the last columns, enough to cover every response of the batch (column -1 predicts what follows the last token);
    with ``states``, the hidden states ``[rows, columns, d_model]`` that the output layer makes them of
    (:func:`head`); otherwise None.

    Raises:
        BudgetError: a sequence is longer than the model's context.
    """
    lengths = [len(s) for s in sequences]
    if lengths and max(lengths) > model.context:
        raise BudgetError(f"a sequence of {max(lengths)} tokens exceeds the context of {model.context} tokens")
    rehearse(model)
    body = model.model.base_model if hasattr(model.model, "base_model") else model.model
    with packed_linears(model), attached(model, taps):
        prefix = Prefix.of(model, sequences, range(len(sequences)), taps)
        for batch in buckets([n - prefix.tokens for n in lengths], max_tokens):
            strengths = [sequences[i].strength for i in batch]
            inputs, whole = prefix.inputs([sequences[i].ids for i in batch], strengths)
            width = inputs["input_ids"].shape[1]
            frame = Frame(
                requests=batch,
                strengths=torch.tensor(strengths, device=model.device),
                lengths=whole,
                prompt_lengths=torch.tensor([len(sequences[i].prompt_ids) for i in batch], device=model.device),
                width=width,
                shared=prefix.tokens,
            )
            if not prefix.tokens:
                del inputs["past_key_values"]  # nobody will read the keys and values
            keep = min(max(len(sequences[i].response_ids) for i in batch) + 1, width)
            first = sequences[batch[0]].ids
            if logits:
                told = forward(model, taps, frame, logits_to_keep=keep, **inputs)
                require_finite(model, told[:, -1], first)
                yield batch, told
            else:  # the vocabulary product is a third of a small model's work: leave it out
                for tap in taps:
                    tap.before(frame)
                found = body(use_cache="past_key_values" in inputs, **inputs)
                for tap in taps:
                    tap.after(frame)
                require_finite(model, found.last_hidden_state[:, -1], first)
                yield batch, found.last_hidden_state[:, -keep:] if states else None


@torch.inference_mode()
def head(model: LoadedModel, states: torch.Tensor) -> torch.Tensor:
    """Next-token logits ``[rows, vocabulary]`` of last hidden states ``[rows, d_model]``, as the model's own forward
    makes them (caps and scales of a family included)."""
    body = model.model.base_model if hasattr(model.model, "base_model") else model.model
    told = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states[None])
    body.forward = lambda *args, **kwargs: told
    try:
        with packed_linears(model):
            return model.model(input_ids=torch.zeros(1, len(states), dtype=torch.long, device=states.device)).logits[0]
    finally:
        del body.forward


def response_log_probabilities(logits: torch.Tensor, response_ids: Sequence[int]) -> torch.Tensor:
    """Log-probability (nats, float32) of every token of a response, ``[n]``, from the row's next-token logits
    ``[columns, vocabulary]``, the last column of which predicts what follows the response."""
    told = torch.log_softmax(logits[-len(response_ids) - 1 : -1].float(), -1)
    said = torch.tensor(response_ids, device=told.device)
    return told.gather(-1, said[:, None])[:, 0]


def response_likelihoods(
    batches: Iterable[tuple[list[int], torch.Tensor | None]], sequences: Sequence[TokenSequence]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Sequences by index with the log-probabilities (nats) of their response's tokens, from what :func:`replay` yields
    with ``logits``; nothing for an empty response."""
    for batch, logits in batches:
        assert logits is not None
        for row, i in enumerate(batch):
            if sequences[i].response_ids:
                yield i, response_log_probabilities(logits[row], sequences[i].response_ids)
