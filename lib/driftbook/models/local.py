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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from driftbook.errors import BudgetError
from driftbook.models.answers import Completion, Engine, Frame, Request, Tap
from driftbook.models.loading import LoadedModel
from driftbook.models.packed import packed_linears
from driftbook.models.sampling import SamplingParams, sample, uniforms


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
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        if longest + params.max_new_tokens > self.model.context:
            raise BudgetError(
                f"a prompt of {longest} tokens and max_new_tokens {params.max_new_tokens} exceed the context of "
                f"{self.model.context} tokens; shorten the prompt or max_new_tokens"
            )
        todo = set(range(len(requests)))
        while todo:
            try:
                for completion in _Loop(self, requests, sorted(todo), params, taps).run():
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
        if tokens < 1 or len(chosen) == len(first) or any(tap.reads_prompts for tap in taps):
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


def forward(model: LoadedModel, taps: Sequence[Tap], frame: Frame, **inputs: Any) -> torch.Tensor:
    """Logits of the columns asked for, ``[rows, columns, vocabulary]``, with the taps around the forward."""
    for tap in taps:
        tap.before(frame)
    logits = model.model(use_cache="past_key_values" in inputs, **inputs).logits
    for tap in taps:
        tap.after(frame)
    return logits


#: Tokens of one prefill that are worth a forward of their own: from here on a prompt that is a quarter shorter than the
#: first one of its group waits for the next. Smaller products leave a GPU idle; a CPU is busy from a few hundred rows.
ENOUGH_TOKENS = {"cpu": 256}
MOST_TOKENS = 8192


class _Loop:
    def __init__(self, engine: LocalEngine, requests, indices, params: SamplingParams, taps):
        self.m = engine.model
        self.requests, self.params, self.taps = requests, params, list(taps)
        # Longest prompts first: a row that joins later always fits into the columns before the clock. Samples of one
        # prompt meet.
        order = sorted(
            indices, key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, requests[i].strength, i)
        )
        self.queue = deque(order)
        self.prefix = Prefix(self.m)
        self.rows = max(1, min(engine.batch_size, len(order)))
        self.longest = len(requests[order[0]].prompt_ids)
        self.extra = any(t.wants_last_token for t in self.taps)
        columns = 2 * self.longest + 2 * params.max_new_tokens + 2
        self.clock = _Clock(self.rows, columns, now=self.longest)
        config = self.m.model.config.get_text_config()
        self.cache = Cache(layers=[_Slab(self.clock) for _ in range(config.num_hidden_layers)])
        device = self.m.device
        self.slot = [-1] * self.rows  # request index per row, -1 when free
        self.tokens: list[list[int]] = [[] for _ in range(self.rows)]
        self.closing = [False] * self.rows  # finished, but owed one more forward for its last token's state
        self.n = 0  # rows in use form a prefix: 0..n-1 (some may be dead)
        self.start = torch.zeros(self.rows, dtype=torch.long, device=device)  # first column of each row
        self.prompt_length = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.strength = torch.zeros(self.rows, device=device)
        self.last = torch.zeros(self.rows, dtype=torch.long, device=device)
        self.u = torch.zeros(self.rows, params.max_new_tokens, device=device)  # float32: mps has no float64

    @torch.inference_mode()
    def run(self) -> Iterator[Completion]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(packed_linears(self.m))
            for tap in self.taps:
                stack.enter_context(tap.attach(self.m))
            distinct = {(self.requests[i].prompt_ids, self.requests[i].strength): i for i in self.queue}
            self.prefix = Prefix.of(self.m, self.requests, distinct.values(), self.taps)
            while self.queue or self._live():
                live = self._live()
                if self.queue and self.rows - live >= min(max(1, self.rows // 8), len(self.queue)):
                    yield from self._admit()
                elif live <= 0.8 * self.n:
                    self._compact()
                if self._live():
                    yield from self._step()

    def _live(self) -> int:
        return sum(i >= 0 for i in self.slot)

    # ------------------------------------------------------------------------------------------------ admission

    def _admit(self) -> Iterator[Completion]:
        self._compact()
        shared = self.prefix.tokens
        enough = ENOUGH_TOKENS.get(self.m.device.type, MOST_TOKENS // 2)
        while self.queue and self.n < self.rows:
            # One prefill holds prompts of like length (the queue is sorted) up to a bound on padded tokens.
            group: list[int] = []
            distinct: dict[tuple, int] = {}
            width = len(self.requests[self.queue[0]].prompt_ids) - shared
            while self.queue and self.n + len(group) < self.rows:
                r = self.requests[self.queue[0]]
                key = (r.prompt_ids, r.strength)
                if key not in distinct:
                    most = enough if len(r.prompt_ids) - shared < 0.75 * width else MOST_TOKENS
                    if distinct and (len(distinct) + 1) * width > most:
                        break
                    distinct[key] = len(distinct)
                group.append(self.queue.popleft())
            yield from self._prefill(group, distinct)

    def _prefill(self, group: list[int], distinct: dict[tuple, int]) -> Iterator[Completion]:
        """Compute the prompts of a group (``distinct``: prompt and strength to row) behind the shared prefix, and give
        every request a row of the slab."""
        device = self.m.device
        row_of = [distinct[(self.requests[i].prompt_ids, self.requests[i].strength)] for i in group]
        first = {row: i for i, row in reversed(list(zip(group, row_of, strict=True)))}
        representatives = [first[row] for row in range(len(distinct))]
        inputs, lengths = self.prefix.inputs([prompt for prompt, _ in distinct], [s for _, s in distinct])
        strengths = torch.tensor([strength for _, strength in distinct], device=device)
        shared, width = self.prefix.tokens, inputs["input_ids"].shape[1]
        frame = Frame(representatives, strengths, lengths, lengths, width, shared=shared)
        logits = forward(self.m, self.taps, frame, logits_to_keep=1, **inputs)[:, -1]
        cache = inputs["past_key_values"]
        width += shared
        if self.clock.now < width:  # cannot happen with the longest prompt first, except after a restart of the clock
            self.clock.now = width
        rows = torch.tensor(row_of, device=device)
        a, b, now = self.n, self.n + len(group), self.clock.now
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
        self.strength[a:b] = strengths[rows]
        for k, i in enumerate(group):
            self.slot[a + k], self.tokens[a + k], self.closing[a + k] = i, [], False
        streams = np.stack([uniforms(self.requests[i].seed, self.params.max_new_tokens) for i in group])
        self.u[a:b] = torch.from_numpy(streams.astype(np.float32)).to(device)
        self.n = b
        drawn = sample(logits[rows], self.u[a:b, 0], self.params)
        yield from self._take(a, b, drawn)

    # ------------------------------------------------------------------------------------------ one token for every row

    def _step(self) -> Iterator[Completion]:
        if self.clock.now >= self.clock.columns:
            self._rewind()
        n, device = self.n, self.m.device
        live = [i for i in range(n) if self.slot[i] >= 0]
        self.clock.low = int(self.start[torch.tensor(live, device=device)].min())
        now, low = self.clock.now, self.clock.low
        position = (now - self.start[:n])[:, None]
        held = torch.arange(low, now + 1, device=device) - self.start[:n, None]
        frame = Frame(self.slot[:n], self.strength[:n], position[:, 0] + 1, self.prompt_length[:n], 1, step=True)
        logits = forward(
            self.m,
            self.taps,
            frame,
            past_key_values=self.cache,
            input_ids=self.last[:n, None],
            attention_mask=self.prefix.masks(held[:, None, :], position[:, :, None]),
            # A dead row is computed until it is moved out: its position must not leave a table of learned positions.
            position_ids=position.clamp(max=self.m.context - 1),
        )
        self.clock.now += 1
        step = [min(len(t), self.params.max_new_tokens - 1) for t in self.tokens[:n]]
        u = self.u[torch.arange(n, device=device), torch.tensor(step, device=device)]
        yield from self._take(0, n, sample(logits[:, -1], u, self.params))

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
            if token in self.m.eos_ids:
                yield self._retire(row, "eos")
            elif len(self.tokens[row]) >= self.params.max_new_tokens:
                if self.extra:
                    self.closing[row] = True
                else:
                    yield self._retire(row, "length")

    def _retire(self, row: int, reason: str) -> Completion:
        done = Completion(self.slot[row], self.tokens[row], reason)
        self.slot[row] = -1
        return done

    # ------------------------------------------------------------------------------------------------ the slab

    def _compact(self) -> None:
        """Move live rows to the front, so that dead ones cost nothing."""
        keep = [i for i in range(self.n) if self.slot[i] >= 0]
        if len(keep) == self.n:
            return
        if keep:
            idx = torch.tensor(keep, device=self.m.device)
            low, now = int(self.start[idx].min()), self.clock.now
            for slab in self.cache.layers:
                slab.keys[: len(keep), :, low:now] = slab.keys[idx, :, low:now]
                slab.values[: len(keep), :, low:now] = slab.values[idx, :, low:now]
            for state in (self.start, self.prompt_length, self.strength, self.last, self.u):
                state[: len(keep)] = state[idx]
        self.slot = [self.slot[i] for i in keep] + [-1] * (self.rows - len(keep))
        self.tokens = [self.tokens[i] for i in keep] + [[] for _ in range(self.rows - len(keep))]
        self.closing = [self.closing[i] for i in keep] + [False] * (self.rows - len(keep))
        self.n = len(keep)
        if not keep:
            self.clock.now = self.longest

    def _rewind(self) -> None:
        """The clock reached the last column: move what is still read back to the front of the slab."""
        self._compact()
        low, now = int(self.start[: self.n].min()), self.clock.now
        target = max(0, self.longest - (now - low))  # keep room in front for the longest prompt still waiting
        for slab in self.cache.layers:
            slab.keys[:, :, target : target + now - low] = slab.keys[:, :, low:now].clone()
            slab.values[:, :, target : target + now - low] = slab.values[:, :, low:now].clone()
        self.start -= low - target
        self.clock.now = target + now - low


def left_pad(sequences: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, ``[rows, width]`` int64, padded on the left."""
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def _sliding_window(config: Any) -> int | None:
    types = getattr(config, "layer_types", None)
    if types is not None:
        return config.sliding_window if "sliding_attention" in types else None
    return getattr(config, "sliding_window", None)
