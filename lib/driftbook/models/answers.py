"""What is asked of a model and what comes back: requests, completions, the engines that answer them, and the taps that
read or edit on the way."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from driftbook.models.loading import LoadedModel
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt


@dataclass(frozen=True)
class Request:
    """One response to be sampled.

    ``prompt_ids`` are the tokens up to the response; ``seed`` is the stream of its uniforms; ``strength`` scales a
    steering edit for this row alone (rows that share a prompt and a strength share the prefill). ``other_ids`` is the
    prompt as the other side of a pair gets it, for a text that both write; None: the same tokens.
    """

    prompt_ids: tuple[int, ...]
    seed: int
    strength: float = 1.0
    other_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished response. ``token_ids`` hold the end token where there is one; ``finish_reason`` is ``eos`` or
    ``length``; of a server also ``refusal`` (whose words are the answer) or one of ``replies.NO_ANSWER``: cut before
    the first word, filtered, with a prompt too long for the server, or ended without one."""

    index: int
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class Frame:
    """One forward as the taps see it. Rows are left-padded to ``width`` tokens: the whole prompts, or, where no tap
    reads prompts, first what they have in common (a row per strength) and then what is left of each.

    ``requests`` index the caller's list: in a prefill one representative per row (rows with the same prompt and
    strength are computed once), in a step the row's own request or -1 for a dead row. ``lengths`` counts the tokens of
    each row up to and with this forward, so column j of a row holds its position ``lengths - width + j`` (padding: a
    negative one, or one that an earlier forward had).
    """

    requests: Sequence[int]
    strengths: torch.Tensor  # [rows] float32
    lengths: torch.Tensor  # [rows] int64
    prompt_lengths: torch.Tensor  # [rows] int64
    width: int
    step: bool = False  # one token per row, after its prompt (a prompt may be one token long, too)
    shared: int = 0  # tokens that all prompts begin with, which an earlier forward held

    def positions(self) -> torch.Tensor:
        """Position of every column, ``[rows, width]``; before the row's own tokens in padding."""
        return (self.lengths - self.width)[:, None] + torch.arange(self.width, device=self.lengths.device)


class Tap:
    """Something that reads or edits activations while a model runs. The base class does nothing.

    ``attach`` installs hooks for the time of one call; ``before`` and ``after`` frame every forward.
    """

    #: run one more step for a row that ends by length, so that its last token has a state of its own
    wants_last_token = False
    #: see every prompt whole, in a row of its own; without it the tokens that prompts begin with alike come once
    reads_prompts = True

    def attach(self, model: LoadedModel) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def before(self, frame: Frame) -> None: ...

    def after(self, frame: Frame) -> None: ...


@dataclass(frozen=True)
class Question(Request):
    """A request that also says what is asked in words. ``sample`` counts the texts of one prompt and side from 0."""

    prompt: Prompt | None = None
    sample: int = 0


@dataclass(frozen=True)
class Answer(Completion):
    """A completion whose ``text`` is what was said; ``token_ids`` are the reading model's tokens of it. ``thought`` is
    what was thought before, where that can be told apart."""

    text: str = ""
    thought: str = ""


class Answering(Protocol):
    """What an engine needs of a side (:class:`driftbook.models.sides.Side`) to answer for it."""

    model: LoadedModel
    key: str
    taps: tuple[Tap, ...]
    adapter: Any
    local: Engine
    batch_size: int | str


class Engine(ABC):
    """What answers requests: the local engine, vLLM, a server, a table.

    Sampling parameters mean the same in all engines; one that cannot hold to a parameter raises DriftbookError.
    """

    #: Stands in the key that finished texts are kept under, and in their table.
    name: str
    #: Raise it when the same seeds give other texts: it is part of that key, too.
    version = 1
    #: Whether the weights of the side answer, so that their activations and likelihoods are those of what is said.
    here = True
    #: Whether it reads the weights of the side by itself, so that those loaded here are not computed with.
    loads_weights = False

    def check(self, params: SamplingParams) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raise DriftbookError for what would else fail only after hours: it runs before anything is decoded."""

    def available(self, prompt: Prompt) -> float:
        """How many answers to a prompt can be had."""
        return math.inf

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """Yield a completion per request, in the order in which they finish. ``taps`` edit or read on the way."""


def read_tokens(reader: LoadedModel, request: Request, text: str) -> list[int]:
    """The reader's tokens of an answer, as far as they fit behind the prompt in its context."""
    ids = reader.encode_answer(text)
    return [int(i) for i in ids[: max(0, reader.context - len(request.prompt_ids))]]

