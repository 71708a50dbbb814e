"""The two sides of a comparison: the base model, and the same model after whatever was done to it.

What a side is made of (edits, a system prompt, an adapter that is switched, answers that come from elsewhere) is its
own affair: a stage encodes prompts, generates and reads, and asks what can be had.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from driftbook.engines import open_decoder, open_workers
from driftbook.errors import ModelError
from driftbook.models.answers import Answer, Completion, Engine, Question, Request, Tap, read_tokens
from driftbook.models.finite import NotFiniteError
from driftbook.models.loading import LoadedModel, load
from driftbook.models.local import LocalEngine
from driftbook.models.replay import TokenSequence, head, replay, response_likelihoods
from driftbook.models.sampling import SamplingParams
from driftbook.models.table_engine import Unread
from driftbook.models.vectors import VectorSet
from driftbook.prompts import Prompt
from driftbook.sections import EngineSpec, Intervention, ModelSpec, Opening
from driftbook.stage import Run
from driftbook.store import digest
from driftbook.workers import Item, Result, Workers

if TYPE_CHECKING:
    from driftbook.models.adapters import Adapted


@dataclass(frozen=True)
class Exaggeration:
    """How much more of a change: ``strength`` times the difference is added to it, ``by`` the logits of both sides or
    the coefficient of the change. Tokens within the factor ``plausible`` of a side's likeliest one are exaggerated."""

    strength: float
    by: Literal["logits", "coefficient"] = "logits"
    plausible: float = 0.02


@dataclass
class Side:
    """One side of a comparison.

    ``key`` identifies what it computes: texts under the same key, prompt, seed and sampling are the same texts.
    ``model`` answers, unless ``engine`` says that the answers are made elsewhere; then it reads them.
    """

    name: str
    model: LoadedModel
    key: str
    taps: tuple[Tap, ...] = ()
    """Edits of its activations."""
    system: str | None = None
    """Stands before every prompt, and before the prompt's own system prompt."""
    adapter: Adapted | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    """For ``run.json``, beside the model's record."""
    engine: Engine | None = None
    """What answers; None: the local engine."""
    batch_size: int | str = "auto"
    workers: PairWorkers | None = None
    """Processes that hold the same pair and take shards of its work."""
    exaggerated: Exaggeration | None = None
    """Where its answers exaggerate what sets it apart from the other side (:mod:`driftbook.models.amplified`)."""

    def __post_init__(self) -> None:
        self.local = LocalEngine(self.model, self.batch_size)
        self.engine = self.engine or self.local

    @property
    def here(self) -> bool:
        """Whether its own weights answer: then their likelihoods and activations are those of what is said."""
        return self.engine.here

    def answered_by(self, engine: EngineSpec, cache: Path) -> Side:
        """The same side with the decoder and the batch size of a parameter file."""
        side = replace(self, batch_size=engine.batch_size, engine=None)
        side.engine = open_decoder(engine.decoder, side, cache)
        return side

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt as this side gets it, up to where the response begins."""
        both = [s for s in (self.system, prompt.system) if s]
        turns = prompt.chat() if prompt.messages else None
        return tuple(self.model.encode_prompt(prompt.text, "\n\n".join(both) or None, turns))

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """A completion per request, in the order in which they finish. Taps that read see the stream after the side's
        own edits; only the local engine has them, so with taps it answers.

        Raises:
            DriftbookError: as the engine does.
        """
        engine = self.local if taps and self.exaggerated is None else self.engine
        with self.active(), self._named():
            yield from engine.generate(requests, params, [*self.taps, *taps])

    def read(
        self,
        sequences: Sequence[TokenSequence],
        taps: Sequence[Tap] = (),
        logits: bool = False,
        max_tokens: int = 8192,
        states: bool = False,
    ) -> Iterator[tuple[list[int], torch.Tensor | None]]:
        """Tokens that exist already through this side: see :func:`driftbook.models.replay.replay`."""
        with self.active(), self._named():
            yield from replay(self.model, sequences, [*self.taps, *taps], logits, max_tokens, states)

    def log_likelihood(self, sequences: Sequence[TokenSequence]) -> np.ndarray:
        """Log-probability (nats) of each whole response after its prompt, [sequences]; 0 for an empty one."""
        out = np.zeros(len(sequences))
        for i, told in response_likelihoods(self.read(sequences, logits=True, max_tokens=2048), sequences):
            out[i] = float(told.sum())
        return out

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Next-token logits ``[rows, vocabulary]`` of last hidden states ``[rows, d_model]`` of this side."""
        with self.active():
            return head(self.model, states)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error about numbers says whose they are."""
        try:
            yield
        except NotFiniteError as error:
            raise NotFiniteError(f"{self.name}: {error}") from error

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Everything in here computes as this side, without its taps."""
        return self.adapter.active() if self.adapter else contextlib.nullcontext()


class ModelInWords(Engine):
    """A side of this process that answers in words, for another model to read: their tokens or layers differ."""

    name = "local"
    here = False

    def __init__(self, side: Side, reader: LoadedModel):
        self.side, self.reader = side, reader

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Answer]:
        """One answer a request, to the prompt as the answering side gets it."""
        asked = []
        for request in requests:
            assert isinstance(request, Question) and request.prompt is not None
            asked.append(Request(self.side.encode(request.prompt), request.seed))
        for done in self.side.local.generate(asked, params):
            said = self.side.model.said(done.token_ids, asked[done.index].prompt_ids)
            tokens = read_tokens(self.reader, requests[done.index], said.text)
            yield Answer(done.index, tokens, said.reason(done.finish_reason), said.text, said.thought)


@dataclass
class Pair:
    """Base and intervention. ``model_loads`` counts how often weights were read; ``prompts`` are those that the texts
    of a table answer, None where the parameters name the prompts."""

    base: Side
    intervention: Side
    model_loads: int
    prompts: list[Prompt] | None = None

    def __iter__(self) -> Iterator[Side]:
        return iter((self.base, self.intervention))

    def no_divergence(self) -> str:
        """Why the next-token distributions of the sides cannot be compared; empty where they can."""
        made_elsewhere = [side.name for side in self if not side.here]
        if made_elsewhere:
            return f"the answers of {' and '.join(made_elsewhere)} were made elsewhere, and only their text is known"
        if self.shared_tokens() is not None:
            return ""
        return "the two sides have different tokenizers, so there is no common next token"

    def one_vocabulary(self) -> bool:
        """Whether the tokens of both sides are the same."""
        a, b = self.base.model.tokenizer, self.intervention.model.tokenizer
        return a is b or a.get_vocab() == b.get_vocab()

    def shared_tokens(self) -> int | None:
        """How many tokens, from the first on, are the same on both sides: all of them, or those that one had before
        tokens were added; None where the vocabularies differ otherwise."""
        # Of one vocabulary, larger members of a family may pad their output matrix further: no token stands there.
        width = min(side.model.model.config.get_text_config().vocab_size for side in self)
        if self.one_vocabulary():
            return width
        own, their = (side.model.tokenizer.get_vocab().items() for side in self)
        shared, first = own & their, min(i for _, i in own ^ their)
        plain = len(shared) == min(len(own), len(their)) and all(i < first for _, i in shared)
        return min(first, width) if plain else None

    def on_shared_tokens(self) -> str:
        """What is left out of a comparison of next tokens; empty where nothing is."""
        if self.one_vocabulary() or (shared := self.shared_tokens()) is None:
            return ""
        more, side = max((len(side.model.tokenizer), side.name) for side in self)
        return f"on the {shared:,} tokens that both have ({side} has {more - shared:,} more)"

    def same_tokenizer(self) -> bool:
        """Whether both sides have next-token distributions here, over a common vocabulary."""
        return not self.no_divergence()

    def inside(self) -> Pair:
        """The pair for stages that look inside the models. Where the intervention's tokens, layers or width are not
        the base's, vectors of the base mean nothing in it: then the base reads what the intervention answers."""
        a, b = self.base.model, self.intervention.model
        same_shape = a.hooks.n_layers == b.hooks.n_layers and a.hooks.d_model == b.hooks.d_model
        if a is b or (same_shape and self.same_tokenizer()):
            return self
        notes = {**self.intervention.notes, "read_by": a.record["model"]}
        key = digest("read by another", b.key, a.key)[:16]
        changed = Side("intervention", a, key, notes=notes, engine=ModelInWords(self.intervention, a))
        return Pair(self.base, changed, self.model_loads, self.prompts)


# -------------------------------------------------------------------------------------------------------------- opening


def open_pair(
    base: ModelSpec,
    intervention: Intervention,
    cache: Path,
    root: Path,
    vectors: VectorSet | None = None,
    progress: Callable[[int, str, str], Any] | None = None,
    engine: EngineSpec | None = None,
    inside: bool = True,
) -> Pair:
    """Load the base model and put the intervention beside it.

    Args:
        intervention: a section of the parameter file, which knows how it opens.
        vectors: the traits stage's vectors, for a kind that needs them.
        progress: ``progress(total, label, unit)`` gives a handle with ``update(n)``, for what takes long.
        engine: what decodes where a side answers here, and how many rows at a time.
        inside: whether the base is to read answers that exist already; without it, it is loaded only to answer.

    Raises:
        ModelError: weights, adapter or vector do not fit; DriftbookError: the data of a fine-tune, a table of texts or
        the settings of an endpoint cannot be used.
    """
    model: Any = load(base, cache) if inside or intervention.answers_here else Unread()
    pair = intervention.open(model, Opening(base, cache, root, vectors, progress))
    if engine is None:
        return pair
    sides = [side.answered_by(engine, cache) if side.here else side for side in pair]
    return Pair(*sides, pair.model_loads, pair.prompts)


def open_sides(run: Run, inside: bool = False) -> Pair:
    """The pair of a run: loads the base once, and reads the traits stage where the intervention is made of a vector.

    With ``engine.kind: processes`` or ``ray`` the sides hand their shards to workers, which open the same pair.
    ``inside``: for a stage that reads activations (see ``Pair.inside``).
    """
    p = run.params
    # before the weights: an address that does not answer is known at once
    workers = open_workers(p.engine, p.base) if p.intervention.answers_here else None
    vectors = VectorSet.load(run.input("traits")) if p.intervention.needs_vectors else None
    pair = open_pair(p.base, p.intervention, run.cache, run.root, vectors, run.progress, p.engine, inside)
    if workers is not None:
        keys = {side.name: side.key for side in pair}
        share(pair, workers, PairSpec(p.base, p.intervention, run.cache, run.root, vectors, keys, p.engine))
        run.record("engine", workers.describe())
    pair = pair.inside() if inside else pair
    about = {"key": pair.intervention.key, "kind": p.intervention.kind, **pair.intervention.notes}
    run.record("intervention", {**pair.intervention.model.record, **about})
    if not pair.base.model.record:  # nobody reads
        return pair
    run.record("base", pair.base.model.record)
    run.record(
        "device",
        {"device": str(pair.base.model.device), "dtype": str(pair.base.model.dtype), "reason": pair.base.model.reason},
    )
    return pair


# -------------------------------------------------------------------------------------------------- the pair, elsewhere


@dataclass(frozen=True)
class PairSpec:
    """All that it takes to open the pair of an experiment in another process. ``keys`` are those of the driver's sides:
    a worker that would compute anything else is refused."""

    base: ModelSpec
    intervention: Intervention
    cache: Path
    root: Path
    vectors: VectorSet | None
    keys: dict[str, str]
    engine: EngineSpec | None = None

    def open(self) -> Pair:
        """Raises ModelError when this process computes other models than the driver."""
        pair = open_pair(self.base, self.intervention, self.cache, self.root, self.vectors, engine=self.engine)
        for side in pair:
            if side.key != self.keys[side.name]:
                raise ModelError(
                    f"engine.kind: the worker on {socket.gethostname()} opened another {side.name} model than the "
                    f"driver (as {side.model.dtype}); all machines need the same files, and base.dtype must be named "
                    "where they are not of one kind"
                )
        return pair

    def unused_weights(self, dtype: str) -> PairSpec:
        """The same pair for workers whose engine holds the weights by itself: those read here stay off the GPU."""
        there = {"device": "cpu", "dtype": dtype}
        return replace(self, base=self.base.model_copy(update=there), intervention=self.intervention.placed(**there))


@dataclass(frozen=True)
class PairWorkers:
    """Workers that hold the pair that ``spec`` describes."""

    workers: Workers
    spec: PairSpec

    def map(
        self, work: Callable[[Pair, Item], Result], items: Iterable[Item], unused_weights: str | None = None
    ) -> Iterator[Result]:
        """``work(pair, item)`` for every item, in the order in which they finish. ``unused_weights`` names the dtype
        where the pair's own weights are not computed with."""
        spec = self.spec if unused_weights is None else self.spec.unused_weights(unused_weights)
        name = f"pair {sorted(spec.keys.items())} {spec.base.device} {spec.engine}"
        return self.workers.map(name, spec.open, work, items)


def share(pair: Pair, workers: Workers, spec: PairSpec) -> None:
    """Let the sides hand their shards to workers. A side whose answers come from a server or a table keeps them here:
    there is nothing to compute."""
    for side in pair:
        if side.here:
            side.workers = PairWorkers(workers, spec)
