"""Hook points: read and edit the residual stream of any decoder-only model, exactly where transformers computes it.

    points = HookPoints(model)
    with points.capture(["resid_pre", "resid_post"], layers=[3, 4]) as record:
        model(input_ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    record[4, "resid_post"]          # [B, T, d]

Sites of a decoder block, all [B, T, d]:

==================== ==========================================================================================
``resid_pre``        the block's input
``attn_contribution`` what attention adds to the residual stream (after the post-norm, where a family has one)
``resid_mid``        the residual stream after attention was added; families whose attention and MLP run side by
                     side (GPT-NeoX, GPT-J) have none
``mlp_contribution`` what the MLP adds
``resid_post``       the block's output, which is ``hidden_states[layer + 1]`` of transformers, except for the last
                     block: transformers gives that entry after the final norm
==================== ==========================================================================================

``resid_mid == resid_pre + attn_contribution`` and ``resid_post == resid_mid + mlp_contribution``. Hooks do no host
synchronization and do not outlive their ``with`` block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from driftbook.errors import ModelError
from driftbook.models.families import FAMILIES, LAYER_PATHS, AttentionParts, Family, MLPParts, child, family_of
from driftbook.models.sinks import Record, Sink

Site = Literal["resid_pre", "attn_contribution", "resid_mid", "mlp_contribution", "resid_post"]
Point = tuple[int, str]
Edit = Callable[[Tensor], Tensor]

#: All sites, in the order in which a sequential block computes them.
SITES: tuple[Site, ...] = ("resid_pre", "attn_contribution", "resid_mid", "mlp_contribution", "resid_post")


def hidden_of(output: Any) -> Tensor:
    """The hidden state in a module's output: the tensor itself (decoder layers of transformers 5), or the first entry
    of a tuple (attention modules, GPT-J's blocks, decoder layers of transformers 4). Indexing a tensor would take batch
    row 0."""
    return output if isinstance(output, Tensor) else output[0]


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """``output`` with its hidden state replaced, in the same shape of container."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


def unwrap(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class HookPoints:
    """The hook points of one model.

    Attributes: ``n_layers``, ``d_model``, ``sites`` (those that this family has), ``family`` (its declarative
    description; ``families`` has one a layer, since an unlisted family may mix kinds of blocks), ``blocks`` (the
    decoder layers).

    Raises ModelError when a module that the family needs is missing, or when an unlisted family cannot be proved; the
    message names the path.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        inner = unwrap(model)
        config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
        listed = family_of(config.model_type) or family_of(inner.config.model_type)
        found = [] if listed else discover(model)
        self.family = listed or found[0]
        self.layers_path, self.blocks = find_layers(inner, self.family.layers)
        self.n_layers = len(self.blocks)
        self.families = found or [self.family] * self.n_layers
        self.d_model: int = config.hidden_size
        self.whole = any(family.whole for family in self.families)
        self.parallel = not self.whole and any(
            family.mid is None or bool(family.parallel and getattr(config, family.parallel)) for family in self.families
        )
        known = ("resid_pre", "resid_post") if self.whole else SITES
        self.sites: tuple[str, ...] = tuple(site for site in known if not (self.parallel and site == "resid_mid"))
        for point in self.points():
            self._place(*point)

    def points(self, sites: str | Sequence[str] | None = None, layers: Iterable[int] | None = None) -> list[Point]:
        """All (layer, site) pairs of a selection (default: everything), layer by layer in the order of computation.

        Negative layers count from the end. Raises ModelError for a layer or a site that the model does not have.
        """
        wanted = self.sites if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        for site in wanted:
            self._check_site(site)
        chosen = range(self.n_layers) if layers is None else sorted({self.layer(layer) for layer in layers})
        return [(layer, site) for layer in chosen for site in SITES if site in wanted]

    @contextmanager
    def capture(
        self, sites: str | Sequence[str] | None = None, layers: Iterable[int] | None = None, sink: Sink | None = None
    ) -> Iterator[Any]:
        """Hand every value at the chosen points to ``sink(layer, site, tensor)``, [B, T, d] on the model's device.

        A sink with a method ``point(layer, site)`` is asked once, on entry, for a function of the tensor alone
        (faster). The tensor is the model's own: a sink that keeps it must copy it. Without a sink the values go to a
        ``Record``, which is yielded. What is read is the value *after* the edits at the point, whichever ``with`` came
        first: the value that the model went on with. (An edit's function sees the value before.)
        """
        sink = Record() if sink is None else sink
        bind = getattr(sink, "point", None)
        with ExitStack() as stack:
            for layer, site in self.points(sites, layers):
                reader = bind(layer, site) if bind else _Bound(sink, layer, site)
                stack.enter_context(_reading(*self._place(layer, site), reader))
            yield sink

    @contextmanager
    def edit(self, layer: int, site: str, fn: Edit) -> Iterator[None]:
        """Replace the value at a point by ``fn(value)``, [B, T, d] to [B, T, d].

        ``fn`` must not write into its argument.

        An edit of ``resid_mid`` goes through the residual addition: attention's contribution is moved by
        ``fn(resid_mid) - resid_mid``, so that the MLP *and* the stream that it is added to see the new value, and rows
        that ``fn`` leaves alone stay bit-identical. A captured ``attn_contribution`` then includes that move (rule 9
        still holds). Several edits at one point run in the order in which they were entered.
        """
        layer = self.layer(layer)
        self._check_site(site)
        if site != "resid_mid":
            with _editing(*self._place(layer, site), _checked(fn, layer, site)):
                yield
            return
        before: list[Tensor] = []

        def through_attention(contribution: Tensor) -> Tensor:
            mid = before.pop() + contribution
            # A copy goes to fn, so that an in-place edit would still be seen in the difference.
            return contribution + (edited(mid.clone()) - mid)

        edited = _checked(fn, layer, site)
        with (
            _reading(*self._place(layer, "resid_pre"), _Keep(before)),
            _editing(*self._place(layer, "attn_contribution"), through_attention, last=True),
        ):
            yield

    def module(self, layer: int, path: str) -> nn.Module:
        """The submodule of a block at a dotted path. Raises ModelError naming the full path where it is missing."""
        found = child(self.blocks[layer], path)
        if found is None:
            raise ModelError(
                f"{self.layers_path}.{layer}.{path}: no such module in {type(unwrap(self.model)).__name__} (read as "
                f"family '{self.family.name}'; families are described in driftbook/models/families.py)"
            )
        return found

    def _place(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """The module whose boundary is the point, and whether it is the module's input (else its output)."""
        family = self.families[layer]
        if site == "resid_pre":
            return self.blocks[layer], True
        if site == "resid_post":
            return self.blocks[layer], False
        if site == "resid_mid":
            return self.module(layer, family.mid or ""), True
        path = family.attention_contribution if site == "attn_contribution" else family.mlp_contribution
        return self.module(layer, path), False

    def layer(self, layer: int) -> int:
        """A layer index counted from 0 (negative ones count from the end). Raises ModelError beyond the model."""
        if not -self.n_layers <= layer < self.n_layers:
            raise ModelError(f"layer {layer}: the model has {self.n_layers} blocks, 0 to {self.n_layers - 1}")
        return layer % self.n_layers

    def _check_site(self, site: str) -> None:
        if site == "resid_mid" and self.parallel:
            raise ModelError(
                f"resid_mid: {self.family.name} adds attention and MLP side by side to the block's input, so there is "
                f"no residual stream between them; use one of {', '.join(self.sites)}"
            )
        if site in SITES and self.whole and site not in self.sites:
            raise ModelError(
                f"{site}: the parts of the blocks of {type(unwrap(self.model)).__name__} do not add up to its residual "
                f"stream, so only their input and output can be read; use one of {', '.join(self.sites)}"
            )
        if site not in self.sites:
            raise ModelError(f"unknown site '{site}'; this model has {', '.join(self.sites)}")


# ---------------------------------------------------------------------------------------------------------------- hooks


class _Bound:
    """A three-argument sink as a function of the tensor alone."""

    __slots__ = ("layer", "sink", "site")

    def __init__(self, sink: Sink, layer: int, site: str):
        self.sink, self.layer, self.site = sink, layer, site

    def __call__(self, value: Tensor) -> None:
        self.sink(self.layer, self.site, value)


class _Keep:
    """Holds the last value it was given in a list of one."""

    __slots__ = ("cell",)

    def __init__(self, cell: list[Tensor]):
        self.cell = cell

    def __call__(self, value: Tensor) -> None:
        self.cell[:] = (value,)


def _checked(fn: Edit, layer: int, site: str) -> Edit:
    """``fn`` with a readable error for a result of another shape, and back in the model's dtype."""

    def edited(value: Tensor) -> Tensor:
        new = fn(value)
        if new.shape != value.shape:
            raise ModelError(f"edit of layer {layer} {site}: {tuple(value.shape)} became {tuple(new.shape)}")
        return new if new.dtype == value.dtype else new.to(value.dtype)

    return edited


class _Tap:
    """The one hook at a module's input or output, shared by everyone who edits or reads there."""

    def __init__(self, module: nn.Module, at_input: bool):
        self.module, self.at_input = module, at_input
        self.edits: list[Edit] = []
        self.last_edits: list[Edit] = []
        self.readers: list[Callable[[Tensor], None]] = []
        self.handle: Any = None

    def renew(self) -> None:
        """Take the hook off, and put one on that does what is asked for now, if anything is."""
        if self.handle is not None:
            self.handle.remove()
            self.handle = None
        edits, readers = (*self.edits, *self.last_edits), tuple(self.readers)
        if not edits and not readers:
            _taps.pop((id(self.module), self.at_input), None)
            return
        if self.at_input:
            self.handle = self.module.register_forward_pre_hook(_input_hook(edits, readers), with_kwargs=True)
        else:
            # In front of transformers' own hooks: those record output_hidden_states, which must hold the edited value.
            self.handle = self.module.register_forward_hook(_output_hook(edits, readers), prepend=True)


# Taps in use, by module and side. An entry lives as long as somebody edits or reads there, so an id is never stale.
_taps: dict[tuple[int, bool], _Tap] = {}


@contextmanager
def _joined(module: nn.Module, at_input: bool, member: str, fn: Callable) -> Iterator[None]:
    tap = _taps.setdefault((id(module), at_input), _Tap(module, at_input))
    members = getattr(tap, member)
    members.append(fn)
    tap.renew()
    try:
        yield
    finally:
        # By identity: two equal functions may be in the list.
        del members[next(index for index, other in enumerate(members) if other is fn)]
        tap.renew()


def _reading(module: nn.Module, at_input: bool, reader: Callable[[Tensor], None]):
    return _joined(module, at_input, "readers", reader)


def _editing(module: nn.Module, at_input: bool, fn: Edit, last: bool = False):
    return _joined(module, at_input, "last_edits" if last else "edits", fn)


def _output_hook(edits: tuple[Edit, ...], readers: tuple[Callable[[Tensor], None], ...]):
    if not edits and len(readers) == 1:
        read = readers[0]

        def read_only(_module, _args, output):
            read(output if isinstance(output, Tensor) else output[0])

        return read_only

    def hook(_module, _args, output):
        value = hidden_of(output)
        for fn in edits:
            value = fn(value)
        for read in readers:
            read(value)
        return with_hidden(output, value) if edits else None

    return hook


def _input_hook(edits: tuple[Edit, ...], readers: tuple[Callable[[Tensor], None], ...]):
    if not edits and len(readers) == 1:
        read = readers[0]

        def read_only(_module, args, kwargs):
            read(args[0] if args else kwargs["hidden_states"])

        return read_only

    def hook(_module, args, kwargs):
        value = args[0] if args else kwargs["hidden_states"]
        for fn in edits:
            value = fn(value)
        for read in readers:
            read(value)
        if not edits:
            return None
        return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

    return hook


# -------------------------------------------------------------------------------------------------- finding and proving


def find_layers(model: nn.Module, paths: Sequence[str]) -> tuple[str, nn.ModuleList]:
    """The path and the list of decoder blocks, by the first path that exists and is not empty. Raises ModelError."""
    for path in paths:
        found = child(model, path)
        if isinstance(found, nn.ModuleList) and len(found):
            return path, found
    raise ModelError(
        f"{paths[0]}: no such list of decoder blocks in {type(model).__name__} (looked for {', '.join(paths)})"
    )


def tiny_input(model: nn.Module, rows: int, tokens: int) -> Tensor:
    """Token ids [rows, tokens], all rows alike, on the device of the input embedding."""
    embedding = unwrap(model).get_input_embeddings()
    vocabulary = embedding.num_embeddings if hasattr(embedding, "num_embeddings") else embedding.weight.shape[0]
    ids = (torch.arange(tokens) * 7 + 11) % vocabulary
    return ids.expand(rows, tokens).to(embedding.weight.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients and without dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def rounding_error(value: Tensor, *terms: Tensor) -> float:
    """The largest difference between ``value`` and the sum of ``terms``, in units of what rounding may cost.

    1 is the most that honest arithmetic gives; NaN counts as infinite. Synchronizes with the host.
    """
    total, scale = terms[0].double(), terms[0].double().abs()
    for term in terms[1:]:
        total = total + term.double()
        scale = scale + term.double().abs()
    allowed = len(terms) * torch.finfo(value.dtype).eps * scale + torch.finfo(value.dtype).tiny
    error = ((value.double() - total).abs() / allowed).max().item()
    return error if error == error else float("inf")


def validate(model: nn.Module | HookPoints) -> HookPoints:
    """Prove the hook points of a model by one tiny forward; returns them.

    Checked on every layer: each site is met once, as [B, T, d]; a block's input is the output of the block before; the
    two additions (or, for parallel blocks, the one). Checked in the middle layer, each in a batch row of its own:
    editing a site moves that row's logits and no other row's. Raises ModelError naming the module path that is missing
    or the layer and site that failed.
    """
    points = model if isinstance(model, HookPoints) else HookPoints(model)
    rows, tokens, middle = len(points.sites) + 1, 5, points.n_layers // 2
    ids = tiny_input(points.model, rows, tokens)

    def nudged(row: int) -> Edit:
        def fn(value: Tensor) -> Tensor:
            noise = torch.randn(points.d_model, generator=torch.Generator().manual_seed(row)).to(value)
            new = value.clone()
            # At the size of the stream itself, so that a half-precision model cannot round the nudge away.
            new[row] += noise * value[row].abs().mean()
            return new

        return fn

    with evaluating(points.model), ExitStack() as stack:
        record = stack.enter_context(points.capture())
        for row, site in enumerate(points.sites, start=1):
            stack.enter_context(points.edit(middle, site, nudged(row)))
        logits = points.model(input_ids=ids, use_cache=False).logits

    name = f"{type(unwrap(points.model)).__name__} (family '{points.family.name}')"
    for layer, site in points.points():
        seen = record.values.get((layer, site), [])
        shapes = [tuple(value.shape) for value in seen]
        if shapes != [(rows, tokens, points.d_model)]:
            expected = f"once [{rows}, {tokens}, {points.d_model}]"
            raise ModelError(f"{name}: layer {layer} {site} should be met {expected}, and was met as {shapes}")
    for layer in range(points.n_layers):
        if not points.whole:
            _check_additions(record, layer, points.parallel, name, edited=layer == middle)
        if layer and layer != middle and not torch.equal(record[layer, "resid_pre"], record[layer - 1, "resid_post"]):
            raise ModelError(f"{name}: the input of block {layer} is not the output of block {layer - 1}")
    moved = (logits.float() - logits[:1].float()).abs().flatten(1).amax(1).tolist()
    for row, site in enumerate(points.sites, start=1):
        if not moved[row] > 0:
            raise ModelError(f"{name}: editing {site} of layer {middle} does not move the logits")
    return points


def _check_additions(record: Record, layer: int, parallel: bool, name: str, edited: bool) -> None:
    pre, attention, mlp, post = (
        record[layer, site] for site in ("resid_pre", "attn_contribution", "mlp_contribution", "resid_post")
    )
    if edited:
        # The row whose resid_post was replaced does not add up, by intent; it is the last one.
        pre, attention, mlp, post = pre[:-1], attention[:-1], mlp[:-1], post[:-1]
    if parallel:
        sums = {"resid_post = resid_pre + attn_contribution + mlp_contribution": (post, pre, attention, mlp)}
    else:
        mid = record[layer, "resid_mid"][:-1] if edited else record[layer, "resid_mid"]
        sums = {
            "resid_mid = resid_pre + attn_contribution": (mid, pre, attention),
            "resid_post = resid_mid + mlp_contribution": (post, mid, mlp),
        }
    for equation, terms in sums.items():
        error = rounding_error(*terms)
        if error > 1:
            raise ModelError(f"{name}: layer {layer}: {equation} is off by {error:.3g} times what rounding explains")


def discover(model: nn.Module) -> list[Family]:
    """The description of each block of a family that is not listed, read off one tiny forward.

    The children of the blocks are watched, and the ones whose values add up as rule 9 says are taken: the output that
    turns the block's input into another child's input is attention's contribution, and so on. ``validate`` then checks
    every layer with the hooks themselves. Where nothing adds up (blocks with one part, as of state spaces, or that
    scale their contributions) a block is taken ``whole``: its input and its output.
    """
    inner = unwrap(model)
    path, blocks = find_layers(inner, LAYER_PATHS)
    config = inner.config.get_text_config()
    # Not as many tokens as there are heads, so that a shape tells which axis is which.
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    tokens = next(number for number in (5, 6, 7) if number not in heads)
    seen: list[dict[str, list[tuple[Tensor, Tensor]]]] = [{} for _ in blocks]

    def hook(layer: int, name: str):
        def watch(_module, args, kwargs, output):
            value = args[0] if args else kwargs.get("hidden_states")
            result = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else None
            if isinstance(value, Tensor) and isinstance(result, Tensor):
                seen[layer].setdefault(name, []).append((value.clone(), result.clone()))

        return watch

    with evaluating(model), ExitStack() as stack:
        for layer, block in enumerate(blocks):
            for name, module in block.named_modules():
                if name.count(".") <= 1:
                    stack.callback(module.register_forward_hook(hook(layer, name), with_kwargs=True).remove)
        model(input_ids=tiny_input(model, 1, tokens), use_cache=False)
    return [
        _described(inner, f"{path}.{layer}", block, values, tokens)
        for layer, (block, values) in enumerate(zip(blocks, seen, strict=True))
    ]


def _described(
    model: Any, path: str, block: nn.Module, seen: dict[str, list[tuple[Tensor, Tensor]]], tokens: int
) -> Family:
    """What ``discover`` makes of one block, from the (input, output) pairs of the block ("") and of what is inside."""
    kind = model.config.model_type
    if "" not in seen:
        raise ModelError(f"{path}: the block's input or output is not a hidden state in {type(model).__name__}")
    pre, post = seen[""][0]
    if pre.ndim != 3:
        raise ModelError(
            f"{path}: {type(model).__name__} keeps several streams a token ({list(pre.shape)}), so there is no one "
            "residual stream to read or to edit; it can be decoded, and its inside cannot be captured"
        )
    # What runs twice (a dropout module that is shared, say) is no hook point.
    once = {name: calls[0] for name, calls in seen.items() if name and "." not in name and len(calls) == 1}
    inputs = {name: value for name, (value, _) in once.items() if value.shape == pre.shape}
    outputs = {name: value for name, (_, value) in once.items() if value.shape == pre.shape}

    def source(name: str) -> tuple[str, str | None]:
        """The module behind a contribution, and the post-norm if the contribution is a norm's output."""
        if "norm" not in type(child(block, name)).__name__.lower():
            return name, None
        behind = (other for other in outputs if other != name and torch.equal(outputs[other], inputs[name]))
        return next(behind, name), name

    def described(attention: str, mlp: str, mid: str | None) -> Family:
        (attention, attention_norm), (mlp, mlp_norm) = source(attention), source(mlp)
        query = seen.get(f"{attention}.q_norm")
        return Family(
            kind,
            (kind,),
            layers=(path.rpartition(".")[0],),
            attention=_attention_parts(
                child(block, attention), attention, query[0][1].shape if query else None, tokens
            ),
            mlp=_mlp_parts(child(block, mlp), mlp),
            mid=mid,
            attention_post_norm=attention_norm,
            mlp_post_norm=mlp_norm,
        )

    for attention, mid in itertools.product(outputs, inputs):
        if rounding_error(inputs[mid], pre, outputs[attention]) > 1:
            continue
        for mlp in outputs:
            if rounding_error(post, inputs[mid], outputs[mlp]) <= 1:
                return described(attention, mlp, mid)
    for attention, mlp in itertools.combinations(outputs, 2):
        if rounding_error(post, pre, outputs[attention], outputs[mlp]) <= 1:
            return described(attention, mlp, None)
    return Family(kind, (kind,), layers=(path.rpartition(".")[0],), mid=None, whole=True)


def _attention_parts(module: nn.Module, name: str, norm_shape: torch.Size | None, tokens: int) -> AttentionParts:
    """The names inside an unlisted attention module: those of the first listed family that it has all of."""
    for parts in dict.fromkeys(family.attention for family in FAMILIES):
        projections = (parts.qkv,) if parts.qkv else (parts.q, parts.k, parts.v)
        if all(hasattr(module, part) for part in (*projections, parts.o)):
            break
    else:
        parts = AttentionParts()
    parts = replace(parts, module=name, q_norm=None, k_norm=None)
    if norm_shape is None:
        return parts
    layout = "flat" if len(norm_shape) == 3 else "tokens" if norm_shape[1] == tokens else "heads"
    return replace(parts, q_norm="q_norm", k_norm="k_norm", norm_layout=layout)


def _mlp_parts(module: nn.Module, name: str) -> MLPParts:
    for parts in (*dict.fromkeys(family.mlp for family in FAMILIES), MLPParts(gate=None)):
        names = (parts.gate_up,) if parts.gate_up else (parts.gate, parts.up) if parts.gate else (parts.up,)
        if all(hasattr(module, part) for part in (*names, parts.down, parts.act)):
            return replace(parts, module=name)
    return MLPParts(module=name)
