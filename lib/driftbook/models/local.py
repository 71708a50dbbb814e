"""The local engine: batched generation around a transformers model, one loop for decoding, live capture and steering.

Why not ``generate``: it prefills a prompt again for each of its samples and pads it to the longest one of its batch,
copies the whole key-value cache at every token, computes finished rows to the end of the batch, and (on CPU) reorders
every weight matrix in every call. Here the tokens that all prompts begin with (a chat template's head, a system prompt)
are computed once, the rest of each distinct prompt once for all of its samples beside prompts of like length, keys and
values live in one preallocated slab, finished rows leave and waiting ones take their places, and on CPU the matrices
are packed once.

All rows share one write column (the *clock*): a row that joins late has its prompt written into the columns just before
the clock. So each row's tokens are contiguous, a step writes one slice, and attention reads a view. Positions are
explicit, so the column of a token never matters to the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from driftbook.errors import BudgetError, ModelError, first_line
from driftbook.models.answers import Completion, Engine, Frame, Request, Tap
from driftbook.models.families import family_of
from driftbook.models.finite import NotFiniteError, require_finite
from driftbook.models.loading import LoadedModel
from driftbook.models.packed import packed_linears
from driftbook.models.sampling import SamplingParams, sample, uniforms
from driftbook.models.thinking import Watch


class _Slab(CacheLayerMixin):
    """Keys and values of one layer: ``[rows, heads, columns, width]``, written at the clock, read as a view."""

    is_sliding = False

    def __init__(self, clock: _Clock):
        super().__init__()
        self.clock = clock

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, columns = self.clock.rows, self.clock.columns
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        c = self.clock
        n = key_states.shape[0]
        self.keys[:n, :, c.now] = key_states[:, :, 0]
        self.values[:n, :, c.now] = value_states[:, :, 0]
        return self.keys[:n, :, c.low : c.now + 1], self.values[:n, :, c.low : c.now + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.clock.now + 1 - self.clock.low, 0

    def get_seq_length(self) -> int:
        return self.clock.now - self.clock.low

    def get_max_length(self) -> int:
        return self.clock.columns


@dataclass
class _Clock:
    rows: int
    columns: int
    now: int = 0  # column that the next token is written to
    low: int = 0  # first column that any live row still reads


class LocalEngine(Engine):
    """Batched sampling from one loaded model.

    Args:
        model: what answers.
        batch_size: rows computed together; ``"auto"`` takes 128 on CPU and 512 elsewhere, halved whenever memory runs
            out.
    """

    name = "local"
    #: Raise it when the same seeds give other texts: it is part of the key that finished texts are kept under.
    version = 2

    def __init__(self, model: LoadedModel, batch_size: int | str = "auto"):
        self.model = model
        self.batch_size = batch_size if isinstance(batch_size, int) else 128 if model.device.type == "cpu" else 512
        self.out_of_memory = 0

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, taps: Sequence[Tap] = ()
    ) -> Iterator[Completion]:
        """Yield a completion per request, in the order in which they finish.

        Raises:
            BudgetError: a prompt and its response do not fit the model's context.
        """
        yield from self.together([Voice(self.model, requests, taps)], params)

    def together(
        self, voices: Sequence[Voice], params: SamplingParams, combine: Combine = operator.itemgetter(0)
    ) -> Iterator[Completion]:
        """Texts that one or several models write together: all read the growing text, each behind its own prompt, and
        the next token is drawn from what ``combine`` makes of their logits. The text is the first one's: it ends where
        that model's texts end, and completions hold its tokens.

        Raises:
            BudgetError: a prompt and its response do not fit the context of a model.
        """
        for voice in voices:
            with voice.active():
                rehearse(voice.model)
            longest = max((len(r.prompt_ids) for r in voice.requests), default=0)
            if longest + params.most_tokens > voice.model.context:
                thought = f" and max_thought_tokens {params.max_thought_tokens}" if params.max_thought_tokens else ""
                raise BudgetError(
                    f"a prompt of {longest} tokens and max_new_tokens {params.max_new_tokens}{thought} exceed the "
                    f"context of {voice.model.context} tokens; shorten the prompt or max_new_tokens"
                )
        todo = set(range(len(voices[0].requests)))
        while todo:
            try:
                for completion in _Loop(self, voices, sorted(todo), params, combine).run():
                    todo.discard(completion.index)
                    yield completion
            except torch.OutOfMemoryError:
                # Unfinished rows start again in a smaller batch; their streams make them the same texts.
                self.out_of_memory += 1
                if self.batch_size == 1:
                    raise
                self.batch_size = max(1, self.batch_size // 2)
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()


REHEARSED = (
    ((11, 25, 39, 53, 67, 81, 95), (60, 74, 88)),
    ((11, 25, 39, 53, 67, 81, 95), (11, 25, 88)),
)
"""Token ids of prompts of unlike length, which every vocabulary has: two that share nothing, two that begin alike."""
AGREE = {torch.float32: 1e-3}
"""How far logits may lie apart by rounding, as a share of the largest; 0.05 in half precision."""


def rehearse(model: LoadedModel) -> None:
    """Prove once that a family that is not listed is decoded as its own forward computes: the logits of two prompts
    side by side, step by step, are those of a whole forward over each alone. Padding that leaves a trace, positions
    that are counted in columns, or states that are kept in the modules, show in that. A family that the slab does not
    suit is tried with transformers' own caches.

    Raises:
        ModelError: it is not, or cannot be decoded with transformers' caches at all.
    """
    config = model.model.config
    if model.rehearsed or (family_of(config.model_type) and not keeps_states(model)):
        return
    kinds = Counter(getattr(config.get_text_config(), "layer_types", None) or [config.model_type])
    layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    said = f"{model.record.get('model')} ({type(model.model).__name__}, layers: {layers}) cannot be decoded here"
    for own in dict.fromkeys((keeps_states(model), True)):
        model.own_caches, why = own, "step by step it computes other logits than at once"
        try:
            model.rehearsed = all(_apart(model, p) <= AGREE.get(model.dtype, 0.05) for p in REHEARSED)
        except (NotFiniteError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what a cache of another make runs into
            why, cause = first_line(error), error
        else:
            cause = None
        if model.rehearsed:
            return
    raise ModelError(f"{said}: {why}. A server can decode it (intervention.kind endpoint)") from cause


@torch.inference_mode()
def _apart(model: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> float:
    """The largest difference between logits of the loop and of whole forwards, as a share of the largest logit."""
    told: list[torch.Tensor] = []

    def listen(logits: list[torch.Tensor]) -> torch.Tensor:
        told.append(logits[0])
        return logits[0]

    requests = [Request(ids, 0) for ids in prompts]
    loop = _Loop(LocalEngine(model, len(requests)), [Voice(model, requests)], [0, 1], SamplingParams(3, 0.0), listen)
    loop.ends = frozenset()  # none ends early
    done = {c.index: c.token_ids for c in loop.run()}
    worst = 0.0
    for row, ids in enumerate(prompts):
        own = torch.tensor([[*ids, *done[row]]], device=model.device)
        whole = model.model(input_ids=own, use_cache=False).logits[0, len(ids) - 1 : -1].float()
        mine = torch.stack([logits[row].float() for logits in told])
        worst = max(worst, float((mine - whole).abs().max() / whole.abs().max()))
    return worst


@dataclass
class Voice:
    """A model that takes part in writing texts: its prompts (one request a text, seeds and strengths alike in all
    voices), the taps around its forwards, and what switches it on, such as an adapter."""

    model: LoadedModel
    requests: Sequence[Request]
    taps: Sequence[Tap] = ()
    active: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        with self.active(), contextlib.ExitStack() as stack:
            for tap in self.taps:
                stack.enter_context(tap.attach(self.model))
            yield


#: Next-token logits of every voice, ``[rows, vocabulary]`` each, to those that the next token is drawn from.
Combine = Callable[[list[torch.Tensor]], torch.Tensor]


class Prefix:
    """The tokens that several prompts begin with, computed once per strength and read by all of them; with ``tokens``
    0, nothing."""

    def __init__(self, model: LoadedModel):
        self.model, self.masks = model, Masks(model)
        self.tokens = 0
        self.row_of: dict[float, int] = {}
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys, values: [strengths, heads, tokens, width]

    @classmethod
    def of(cls, model: LoadedModel, requests: Sequence[Any], indices: Iterable[int], taps: Sequence[Tap]) -> Prefix:
        """Compute what the prompts of the requests at ``indices`` begin with, where that saves any work and no tap
        reads prompts.

        At least the last token of each prompt is left: its logits are wanted in the prompt's own row. A request has
        ``prompt_ids`` and a ``strength``.
        """
        prefix = cls(model)
        chosen = list(indices)
        prompts = [requests[i].prompt_ids for i in chosen]
        if not prompts:
            return prefix
        low, high = min(prompts), max(prompts)  # least alike of all
        alike = [a == b for a, b in zip(low, high, strict=False)]
        tokens = min([*alike, False].index(False), min(map(len, prompts)) - 1)
        first = {requests[i].strength: i for i in reversed(chosen)}
        if tokens < 1 or len(chosen) == len(first) or any(tap.reads_prompts for tap in taps) or keeps_states(model):
            return prefix
        frame = Frame(
            list(first.values()),
            torch.tensor(list(first), device=model.device),
            torch.full((len(first),), tokens, device=model.device),
            torch.tensor([len(requests[i].prompt_ids) for i in first.values()], device=model.device),
            tokens,
        )
        inputs, _ = prefix.inputs([low[:tokens]] * len(first), list(first))
        forward(model, taps, frame, logits_to_keep=1, **inputs)
        prefix.tokens = tokens
        prefix.row_of = {strength: row for row, strength in enumerate(first)}
        prefix.layers = [(layer.keys, layer.values) for layer in inputs["past_key_values"].layers]
        return prefix

    def inputs(
        self, sequences: Sequence[tuple[int, ...]], strengths: Sequence[float]
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Arguments of a forward over what is left of the sequences behind the prefix, left-padded, and the lengths of
        whole sequences, ``[rows]``.

        The cache holds the prefix before the padded rest. Masks are made of positions, so that neither the padding
        between the two nor a sliding window moves a token.
        """
        device, shared = self.model.device, self.tokens
        width = max(map(len, sequences)) - shared
        ids, mask = left_pad([s[shared:] for s in sequences], width, device)
        cache, position = DynamicCache(), (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "past_key_values": cache}
        if shared:
            rows = torch.tensor([self.row_of[s] for s in strengths], device=device)
            for i, (keys, values) in enumerate(self.layers):
                cache.update(keys[rows], values[rows], i)
            # Padding reads the first token: it must read something.
            position = torch.where(mask.bool(), position + shared, 0)
            before = torch.arange(shared, device=device).expand(len(ids), -1)
            held = torch.cat([before, torch.where(mask.bool(), position, -1)], 1)
            inputs["position_ids"] = position
            inputs["attention_mask"] = self.masks(held[:, None, :], position[:, :, None])
        return inputs, shared + mask.sum(-1)


class Masks:
    """What a token reads, by positions, as transformers takes it for the family of a model."""

    def __init__(self, model: LoadedModel):
        config = model.model.config.get_text_config()
        self.dtype = model.dtype
        self.window = _sliding_window(config)
        self.mixed = len(set(getattr(config, "layer_types", None) or ())) > 1
        self.eager = config._attn_implementation == "eager"

    def __call__(self, held: torch.Tensor, position: torch.Tensor) -> Any:
        """The mask, or a mask per kind of layer.

        Args:
            held: ``[rows, 1, columns]``, the position that every column of the keys holds, negative for none.
            position: ``[rows, tokens, 1]``, of the tokens that read.
        """
        visible = (held >= 0) & (held <= position)
        full = self._as_taken(visible)
        if self.window is None:
            return full
        near = self._as_taken(visible & (held > position - self.window))
        return {"full_attention": full, "sliding_attention": near} if self.mixed else near

    def _as_taken(self, visible: torch.Tensor) -> torch.Tensor:
        mask = visible[:, None]
        if self.eager:  # eager attention adds the mask to the scores
            return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(
                ~mask, torch.finfo(self.dtype).min
            )
        return mask


#: Families whose window counts columns, wider than a rehearsal is long; padding inside of a row would shift it.
BY_COLUMN = ("gpt_neo",)
#: What a family's forward calls the cache that it is given.
CACHES = ("past_key_values", "cache_params")


def keeps_states(model: LoadedModel) -> bool:
    """Whether a family keeps anything beside the keys and values of every layer: states of state spaces, linear
    attention or convolutions, or layers that share a cache. Or it needs caches of transformers' own make, as
    :func:`rehearse` found."""
    if model.own_caches or model.model.config.model_type in BY_COLUMN:
        return True
    if "cache_params" in inspect.signature(model.model.forward).parameters:
        return True
    try:
        layers = DynamicCache(config=model.model.config).layers
    except (KeyError, AttributeError, TypeError):  # kinds of layers that transformers has no cache for
        return True
    return any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def forward(model: LoadedModel, taps: Sequence[Tap], frame: Frame, **inputs: Any) -> torch.Tensor:
    """Logits of the columns asked for, ``[rows, columns, vocabulary]``, with the taps around the forward."""
    for tap in taps:
        tap.before(frame)
    logits = model.model(use_cache=not inputs.keys().isdisjoint(CACHES), **inputs).logits
    for tap in taps:
        tap.after(frame)
    return logits


#: Tokens of one prefill that are worth a forward of their own: from here on a prompt that is a quarter shorter than the
#: first one of its group waits for the next. Smaller products leave a GPU idle; a CPU is busy from a few hundred rows.
ENOUGH_TOKENS = {"cpu": 256}
MOST_TOKENS = 8192


class _Track:
    """What one voice has read in a loop: its prompts, and keys and values of every row. Rows are those of the loop."""

    def __init__(self, voice: Voice, indices: Sequence[int], rows: int, max_new_tokens: int):
        self.voice, self.m, self.taps, self.requests = voice, voice.model, list(voice.taps), voice.requests
        self.prefix = Prefix(self.m)
        self.speaking = voice.speaking
        self.longest = max(len(self.requests[i].prompt_ids) for i in indices)
        self.clock = _Clock(rows, 2 * self.longest + 2 * max_new_tokens + 2, now=self.longest)
        config = self.m.model.config.get_text_config()
        self.cache = Cache(layers=[_Slab(self.clock) for _ in range(config.num_hidden_layers)])
        self.start = torch.zeros(rows, dtype=torch.long, device=self.m.device)  # first column of each row
        self.prompt_length = torch.zeros(rows, dtype=torch.long, device=self.m.device)

    def prompt(self, index: int) -> tuple[int, ...]:
        return self.requests[index].prompt_ids

    def begin(self, indices: Iterable[int]) -> None:
        """Compute what the prompts of these requests begin with."""
        with self.speaking():
            self.prefix = Prefix.of(self.m, self.requests, indices, self.taps)

    def prefill(self, representatives: list[int], rows: torch.Tensor, a: int, strengths: torch.Tensor) -> torch.Tensor:
        """Compute the prompts of ``representatives`` behind the shared prefix, and put that of number ``rows[k]`` into
        row ``a + k`` of the slab. Returns next-token logits, ``[representatives, vocabulary]``."""
        device = self.m.device
        inputs, lengths = self.prefix.inputs(
            [self.prompt(i) for i in representatives], [self.requests[i].strength for i in representatives]
        )
        shared, width = self.prefix.tokens, inputs["input_ids"].shape[1]
        frame = Frame(representatives, strengths, lengths, lengths, width, shared=shared)
        with self.speaking():
            logits = forward(self.m, self.taps, frame, logits_to_keep=1, **inputs)[:, -1]
            require_finite(self.m, logits, self.prompt(representatives[0]))
        cache = inputs["past_key_values"]
        if len(cache.layers) != len(self.cache.layers):
            raise ModelError(f"its forward keeps {len(cache.layers)} of {len(self.cache.layers)} layers in its cache")
        width += shared
        b, now = a + len(rows), self.clock.now
        # Padding stands between the prefix and the rest of a prompt; in the slab it comes first.
        columns, padding = torch.arange(width, device=device)[None], (width - lengths)[:, None]
        source = torch.where(columns < padding + shared, (columns - padding).clamp(min=0), columns)[rows]
        for slab, filled in zip(self.cache.layers, cache.layers, strict=True):
            if not slab.is_initialized:
                slab.lazy_initialization(filled.keys, filled.values)
            for held, new in ((slab.keys, filled.keys), (slab.values, filled.values)):
                held[a:b, :, now - width : now] = new[rows[:, None], :, source].transpose(1, 2)
        self.start[a:b] = now - lengths[rows]
        self.prompt_length[a:b] = lengths[rows]
        return logits

    def step(self, slot: Sequence[int], strength: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Read one token in every row. Returns next-token logits, ``[rows, vocabulary]``."""
        n, device = len(slot), self.m.device
        if self.full():
            self.rewind(n)
        live = [i for i in range(n) if slot[i] >= 0]
        self.clock.low = int(self.start[torch.tensor(live, device=device)].min())
        now, low = self.clock.now, self.clock.low
        position = (now - self.start[:n])[:, None]
        held = torch.arange(low, now + 1, device=device) - self.start[:n, None]
        frame = Frame(slot, strength, position[:, 0] + 1, self.prompt_length[:n], 1, step=True)
        with self.speaking():
            logits = forward(
                self.m,
                self.taps,
                frame,
                past_key_values=self.cache,
                input_ids=last[:, None],
                attention_mask=self.prefix.masks(held[:, None, :], position[:, :, None]),
                # A dead row is computed until it is moved out: its position must not leave a table of learned
                # positions.
                position_ids=position.clamp(max=self.m.context - 1),
            )
        self.clock.now += 1
        require_finite(self.m, logits[:, -1])
        return logits[:, -1]

    def full(self) -> bool:
        return self.clock.now >= self.clock.columns

    def keep(self, rows: list[int]) -> None:
        """Move these rows to the front."""
        if not rows:
            self.clock.now = self.longest
            return
        idx = torch.tensor(rows, device=self.m.device)
        low, now = int(self.start[idx].min()), self.clock.now
        for slab in self.cache.layers:
            slab.keys[: len(rows), :, low:now] = slab.keys[idx, :, low:now]
            slab.values[: len(rows), :, low:now] = slab.values[idx, :, low:now]
        for state in (self.start, self.prompt_length):
            state[: len(rows)] = state[idx]

    def rewind(self, n: int) -> None:
        """The clock reached the last column: move what the first ``n`` rows still read back to the front of the
        slab."""
        low, now = int(self.start[:n].min()), self.clock.now
        target = max(0, self.longest - (now - low))  # keep room in front for the longest prompt still waiting
        for slab in self.cache.layers:
            slab.keys[:, :, target : target + now - low] = slab.keys[:, :, low:now].clone()
            slab.values[:, :, target : target + now - low] = slab.values[:, :, low:now].clone()
        self.start -= low - target
        self.clock.now = target + now - low


@dataclass
class _Group:
    """Rows that were read together: their cache, mask ``[rows, columns]`` and prompts' lengths."""

    cache: DynamicCache
    mask: torch.Tensor
    prompt_length: torch.Tensor


class _States(_Track):
    """What a voice has read whose family keeps states (see :func:`keeps_states`): transformers' own cache, one for each
    group of prompts that were read together, since a state cannot be moved to another column."""

    def __init__(self, voice: Voice):
        self.voice, self.m, self.taps, self.requests = voice, voice.model, list(voice.taps), voice.requests
        self.prefix = Prefix(self.m)  # nothing is shared
        self.speaking = voice.speaking
        self.groups: list[_Group] = []
        self.name = next(
            n for n in CACHES[::-1] if n in (*inspect.signature(self.m.model.forward).parameters, CACHES[0])
        )

    def begin(self, indices: Iterable[int]) -> None:
        pass

    def prefill(self, representatives: list[int], rows: torch.Tensor, a: int, strengths: torch.Tensor) -> torch.Tensor:
        prompts = [self.prompt(i) for i in representatives]
        width = max(map(len, prompts))
        ids, mask = left_pad(prompts, width, self.m.device)
        lengths, cache = mask.sum(-1), DynamicCache(config=self.m.model.config)
        frame = Frame(representatives, strengths, lengths, lengths, width)
        logits = self._read(cache, frame, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        require_finite(self.m, logits, prompts[0])
        cache.reorder_cache(rows)
        self.groups.append(_Group(cache, mask[rows], lengths[rows]))
        return logits

    def step(self, slot: Sequence[int], strength: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        told, a = [], 0
        for group in self.groups:
            b = a + len(group.mask)
            group.mask = torch.cat([group.mask, group.mask.new_ones(b - a, 1)], 1)
            position = group.mask.sum(-1, keepdim=True) - 1
            frame = Frame(slot[a:b], strength[a:b], position[:, 0] + 1, group.prompt_length, 1, step=True)
            # where nothing but states is kept, padding is behind
            mask = group.mask if any(isinstance(layer, CacheLayerMixin) for layer in group.cache.layers) else None
            told.append(self._read(group.cache, frame, last[a:b, None], mask, position))
            a = b
        logits = torch.cat(told)
        require_finite(self.m, logits)
        return logits

    def _read(
        self, cache: DynamicCache, frame: Frame, ids: torch.Tensor, mask: torch.Tensor | None, position: torch.Tensor
    ) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, self.name: cache}
        with self.speaking():
            return forward(self.m, self.taps, frame, logits_to_keep=1, **inputs)[:, -1]

    def full(self) -> bool:
        return False

    def keep(self, rows: list[int]) -> None:
        a, kept = 0, []
        for group in self.groups:
            b = a + len(group.mask)
            if own := [row - a for row in rows if a <= row < b]:
                idx = torch.tensor(own, device=self.m.device)
                group.cache.reorder_cache(idx)
                kept.append(_Group(group.cache, group.mask[idx], group.prompt_length[idx]))
            a = b
        self.groups = kept


class _Loop:
    """Rows of texts that grow by a token a step; every voice reads all of them."""

    def __init__(self, engine: LocalEngine, voices: Sequence[Voice], indices, params: SamplingParams, combine: Combine):
        requests = self.requests = voices[0].requests
        self.params, self.combine = params, combine
        # Longest prompts first, so that those of like length share a prefill. Samples of one prompt meet.
        order = sorted(
            indices, key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, requests[i].strength, i)
        )
        self.queue = deque(order)
        self.rows = max(1, min(engine.batch_size, len(order)))
        self.tracks = [
            _States(v) if keeps_states(v.model) else _Track(v, order, self.rows, params.most_tokens) for v in voices
        ]
        self.ends = voices[0].model.eos_ids
        self.extra = any(t.wants_last_token for voice in voices for t in voice.taps)
        self.device = device = voices[0].model.device
        self.slot = [-1] * self.rows  # request index per row, -1 when free
        self.tokens: list[list[int]] = [[] for _ in range(self.rows)]
        self.watches: list[Watch | None] = [None] * self.rows
        self.closing = [False] * self.rows  # finished, but owed one more forward for its last token's state
        self.n = 0  # rows in use form a prefix: 0..n-1 (some may be dead)
        self.strength = torch.zeros(self.rows, device=device)
        self.last = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.u = torch.zeros(self.rows, params.most_tokens, device=device)  # float32: mps has no float64

    @torch.inference_mode()
    def run(self) -> Iterator[Completion]:
        with contextlib.ExitStack() as stack:
            for track in self.tracks:
                stack.enter_context(packed_linears(track.m))
            if len(self.tracks) == 1:  # nobody else computes meanwhile: hooks stay for the whole loop
                (track,) = self.tracks
                stack.enter_context(track.voice.speaking())
                track.speaking = contextlib.nullcontext
            distinct = {self._key(i): i for i in self.queue}
            for track in self.tracks:
                track.begin(distinct.values())
            while self.queue or self._live():
                live = self._live()
                if self.queue and self.rows - live >= min(max(1, self.rows // 8), len(self.queue)):
                    yield from self._admit()
                elif live <= 0.8 * self.n:
                    self._compact()
                if self._live():
                    yield from self._step()

    def _key(self, index: int) -> tuple:
        """What is computed once: the prompts of a text, and the strength."""
        return (*(track.prompt(index) for track in self.tracks), self.requests[index].strength)

    def _live(self) -> int:
        return sum(i >= 0 for i in self.slot)

    # ------------------------------------------------------------------------------------------------ admission

    def _admit(self) -> Iterator[Completion]:
        self._compact()
        shared = self.tracks[0].prefix.tokens
        enough = ENOUGH_TOKENS.get(self.device.type, MOST_TOKENS // 2)
        while self.queue and self.n < self.rows:
            # One prefill holds prompts of like length (the queue is sorted) up to a bound on padded tokens.
            group: list[int] = []
            distinct: dict[tuple, int] = {}
            width = len(self.requests[self.queue[0]].prompt_ids) - shared
            while self.queue and self.n + len(group) < self.rows:
                key = self._key(self.queue[0])
                if key not in distinct:
                    most = enough if len(key[0]) - shared < 0.75 * width else MOST_TOKENS
                    if distinct and (len(distinct) + 1) * width > most:
                        break
                    distinct[key] = len(distinct)
                group.append(self.queue.popleft())
            yield from self._prefill(group, distinct)

    def _prefill(self, group: list[int], distinct: dict[tuple, int]) -> Iterator[Completion]:
        """Compute the prompts of a group (``distinct``: prompts and strength to row), and give every request a row."""
        row_of = [distinct[self._key(i)] for i in group]
        first = {row: i for i, row in reversed(list(zip(group, row_of, strict=True)))}
        representatives = [first[row] for row in range(len(distinct))]
        strengths = torch.tensor([key[-1] for key in distinct], device=self.device)
        rows = torch.tensor(row_of, device=self.device)
        a, b = self.n, self.n + len(group)
        logits = self.combine([track.prefill(representatives, rows, a, strengths) for track in self.tracks])
        self.strength[a:b] = strengths[rows]
        for k, i in enumerate(group):
            self.slot[a + k], self.tokens[a + k], self.closing[a + k] = i, [], False
            self.watches[a + k] = self._watch(i)
        streams = np.stack([uniforms(self.requests[i].seed, self.params.most_tokens) for i in group])
        self.u[a:b] = torch.from_numpy(streams.astype(np.float32)).to(self.device)
        self.n = b
        drawn = sample(logits[rows], self.u[a:b, 0], self.params)
        yield from self._take(a, b, drawn)

    # ------------------------------------------------------------------------------------------ one token for every row

    def _step(self) -> Iterator[Completion]:
        if any(track.full() for track in self.tracks):
            self._compact()
        n = self.n
        logits = self.combine([t.step(self.slot[:n], self.strength[:n], self.last[:n]) for t in self.tracks])
        step = [min(len(t), self.params.most_tokens - 1) for t in self.tokens[:n]]
        u = self.u[torch.arange(n, device=self.device), torch.tensor(step, device=self.device)]
        yield from self._take(0, n, sample(logits, u, self.params))

    def _take(self, a: int, b: int, drawn: torch.Tensor) -> Iterator[Completion]:
        """Store the tokens drawn for rows a..b-1, retire what is finished."""
        self.last[a:b] = drawn
        for row, token in zip(range(a, b), drawn.tolist(), strict=True):
            index = self.slot[row]
            if index < 0:
                continue
            if self.closing[row]:
                yield self._retire(row, "length")
                continue
            self.tokens[row].append(token)
            if token in self.ends:
                yield self._retire(row, "eos")
            elif len(self.tokens[row]) >= self._most(row):
                if self.extra:
                    self.closing[row] = True
                else:
                    yield self._retire(row, "length")

    def _watch(self, index: int) -> Watch | None:
        """What tells how long the text of a request may be, where its model thinks first."""
        m = self.tracks[0].m
        if m.marks is None or not self.params.max_thought_tokens:
            return None
        opened = m.begins_in_thought(self.requests[index].prompt_ids)
        return Watch(m.tokenizer, m.marks, opened, self.params.max_thought_tokens, self.params.max_new_tokens)

    def _most(self, row: int) -> int:
        watch = self.watches[row]
        return self.params.max_new_tokens if watch is None else watch.most(self.tokens[row])

    def _retire(self, row: int, reason: str) -> Completion:
        done = Completion(self.slot[row], self.tokens[row], reason)
        self.slot[row] = -1
        self.last[row] = 0  # until it is moved out, it reads a token that every voice has
        return done

    def _compact(self) -> None:
        """Move live rows to the front, so that dead ones cost nothing."""
        keep = [i for i in range(self.n) if self.slot[i] >= 0]
        if len(keep) == self.n:
            return
        for track in self.tracks:
            track.keep(keep)
        if keep:
            idx = torch.tensor(keep, device=self.device)
            for state in (self.strength, self.last, self.u):
                state[: len(keep)] = state[idx]
        self.slot = [self.slot[i] for i in keep] + [-1] * (self.rows - len(keep))
        self.tokens = [self.tokens[i] for i in keep] + [[] for _ in range(self.rows - len(keep))]
        self.closing = [self.closing[i] for i in keep] + [False] * (self.rows - len(keep))
        self.watches = [self.watches[i] for i in keep] + [None] * (self.rows - len(keep))
        self.n = len(keep)


def left_pad(sequences: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, ``[rows, width]`` int64, padded on the left."""
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def _sliding_window(config: Any) -> int | None:
    """The window that the family's own code reads, if any: a value of that name in a config.json may be no one's."""
    read = {field.name for field in dataclasses.fields(config)}
    if "sliding_window" not in read:
        return None
    types = getattr(config, "layer_types", None)
    return config.sliding_window if types is None or "sliding_attention" in types else None
