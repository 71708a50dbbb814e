"""The two sides of a comparison: the base model, and the same model after whatever was done to it.

A kind that shares the base's weights loads them once: steering and ablation are hooks, adapters are toggled, a system
prompt is text.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from driftbook.errors import DriftbookError, ModelError
from driftbook.models.answers import Engine, ModelInWords
from driftbook.models.loading import LoadedModel, file_hash, load
from driftbook.models.local import LocalEngine, Tap
from driftbook.models.steering import AblateTap, SteerTap
from driftbook.models.vectors import VectorSet
from driftbook.prompts import Prompt
from driftbook.scale import PairSpec, PairWorkers, open_workers, share
from driftbook.store import digest
from driftbook.text_tables import read_text_table

SIDES = ("base", "intervention")


@dataclass
class Side:
    """One side: a model, the taps that edit it, a system prompt before every prompt, and a switch for shared weights.

    ``key`` identifies what this side computes: texts under the same key, prompt, seed and sampling are the same texts.
    """

    name: str
    model: LoadedModel
    key: str
    taps: tuple[Tap, ...] = ()
    system: str | None = None
    adapter: Any = None  # a PeftModel whose LoRA layers stand in ``model``; on for this side only
    uses_adapter: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    source: Engine | None = None  # answers in the place of ``model``, which then only reads what was said
    workers: PairWorkers | None = None  # processes that hold the same pair and take shards of its work

    def encode(self, text: str, system: str | None = None, messages: list[dict] | None = None) -> tuple[int, ...]:
        """Token ids of a prompt as this side gets it: the side's system prompt stands before the prompt's own."""
        both = [s for s in (self.system, system) if s]
        return tuple(self.model.encode_prompt(text, "\n\n".join(both) or None, messages))

    def engine(self, cache: Path, decoder: str = "local", batch_size: int | str = "auto") -> Engine:
        """What answers for this side. ``decoder`` is ``engine.decoder`` of the parameter file, ``cache`` holds what it
        has to write."""
        if self.source is not None:
            return self.source
        if decoder == "local":
            return LocalEngine(self.model, batch_size)
        from driftbook.models.vllm_engine import VllmEngine

        return VllmEngine(self, cache / "steered")

    @contextlib.contextmanager
    def active(self) -> Iterator[Side]:
        """Everything in here computes as this side."""
        if self.adapter is None:
            yield self
            return
        if self.uses_adapter:
            self.adapter.enable_adapter_layers()
        else:
            self.adapter.disable_adapter_layers()
        try:
            yield self
        finally:
            self.adapter.disable_adapter_layers()


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
        made_elsewhere = [side.name for side in self if side.source is not None]
        if made_elsewhere:
            return f"the answers of {' and '.join(made_elsewhere)} were made elsewhere, and only their text is known"
        a, b = self.base.model.tokenizer, self.intervention.model.tokenizer
        if a is b or a.get_vocab() == b.get_vocab():
            return ""
        return "the two sides have different tokenizers, so there is no common next token"

    def same_tokenizer(self) -> bool:
        """Whether both sides have next-token distributions here, over the same vocabulary."""
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
        changed = Side("intervention", a, key, notes=notes, source=ModelInWords(b, a))
        return Pair(self.base, changed, self.model_loads, self.prompts)


def needs_vectors(intervention: Any) -> bool:
    """Whether the intervention takes a trait vector from the traits stage."""
    return intervention.kind in ("steer", "ablate")


def open_pair(
    base: Any,
    intervention: Any,
    cache: Path,
    root: Path,
    vectors: VectorSet | None = None,
    progress: Callable[[int, str, str], Any] | None = None,
) -> Pair:
    """Load the base model and put the intervention beside it.

    Args:
        base: a ``ModelSpec``; intervention: one of the intervention sections of the parameter file.
        vectors: the traits stage's vectors, for ``steer`` and ``ablate``.
        progress: ``progress(total, label, unit)`` gives a handle with ``update(n)``, for what takes long.

    Raises:
        ModelError: weights, adapter or vector do not fit; DriftbookError: the data of a fine-tune, a table of texts or
        the settings of an endpoint cannot be used.
    """
    loaded = load(base, cache)
    plain = Side("base", loaded, loaded.key)
    kind = intervention.kind
    if kind == "none":
        return Pair(plain, Side("intervention", loaded, loaded.key), 1)
    if kind == "prompt":
        key = digest(loaded.key, "prompt", intervention.system)[:16]
        return Pair(plain, Side("intervention", loaded, key, system=intervention.system), 1)
    if kind in ("steer", "ablate"):
        if vectors is None:
            raise DriftbookError(f"intervention.kind {kind} needs the traits stage; run `make traits` first")
        tap, notes = _vector_tap(intervention, vectors, loaded)
        key = digest(loaded.key, intervention.model_dump(mode="json"), notes)[:16]
        return Pair(plain, Side("intervention", loaded, key, taps=(tap,), notes=notes), 1)
    if kind == "checkpoint":
        other = load(intervention, cache)
        return Pair(plain, Side("intervention", other, other.key), 2)
    if kind in ("adapter", "finetune"):
        if kind == "finetune":
            from driftbook.models.finetune import train_lora

            folder = train_lora(loaded, intervention, cache, root, progress)
        else:
            folder = _adapter_folder(intervention.path, root)
        return _with_adapter(loaded, plain, folder, intervention.scale)
    if kind == "quantize":
        from driftbook.models.quantize import quantized

        other = quantized(load(base, cache), intervention.bits)
        return Pair(plain, Side("intervention", other, other.key), 2)
    if kind == "texts":
        return _with_table(loaded, root / Path(intervention.path).expanduser(), intervention.change)
    from driftbook.models.endpoint import EndpointEngine

    more = [m for m in (intervention.extra_body, intervention.template_args) if m]
    key = digest("endpoint", intervention.base_url, intervention.model, *more)[:16]
    source = EndpointEngine(intervention, loaded, cache)
    notes = {"endpoint": intervention.base_url, "answers_of": intervention.model}
    return Pair(plain, Side("intervention", loaded, key, notes=notes, source=source), 1)


def open_sides(run: Any, inside: bool = False) -> Pair:
    """The pair of a run: loads the base once, and reads the traits stage where the intervention is made of a vector.

    With ``engine.kind: processes`` or ``ray`` the sides hand their shards to workers, which open the same pair.
    ``inside``: for a stage that reads activations (see ``Pair.inside``).
    """
    p = run.params
    workers = open_workers(p)  # before the weights: an address that does not answer is known at once
    vectors = VectorSet.load(run.input("traits")) if needs_vectors(p.intervention) else None
    pair = open_pair(p.base, p.intervention, run.cache, run.root, vectors, run.progress)
    if workers is not None:
        keys = {side.name: side.key for side in pair}
        share(pair, workers, PairSpec(p.base, p.intervention, run.cache, run.root, vectors, keys))
        run.record("engine", workers.describe())
    pair = pair.inside() if inside else pair
    run.record("base", pair.base.model.record)
    run.record(
        "intervention",
        pair.intervention.model.record
        | {"key": pair.intervention.key, "kind": p.intervention.kind, **pair.intervention.notes},
    )
    run.record(
        "device",
        {"device": str(pair.base.model.device), "dtype": str(pair.base.model.dtype), "reason": pair.base.model.reason},
    )
    return pair


def _vector_tap(spec: Any, vectors: VectorSet, model: LoadedModel) -> tuple[Tap, dict[str, Any]]:
    record = vectors.chosen(spec.trait)
    method, site = record.method, record.site
    if vectors.layers[-1] + 1 != model.hooks.n_layers:
        raise ModelError(
            f"the vectors were made on {len(vectors.layers)} layers, this model has "
            f"{model.hooks.n_layers}; run traits again"
        )
    layers = vectors.layers if spec.layer == "all" else [record.layer if spec.layer == "auto" else int(spec.layer)]
    if layers[0] not in vectors.layers:
        raise ModelError(f"intervention.layer {spec.layer}: the model has layers 0 to {vectors.layers[-1]}")
    directions = {layer: torch.from_numpy(vectors.at(spec.trait, method, layer, site)) for layer in layers}
    checksum = hashlib.sha256(b"".join(directions[layer].numpy().tobytes() for layer in layers)).hexdigest()[:16]
    notes = {"trait": spec.trait, "layers": layers, "site": site, "method": method, "vector": checksum}
    if spec.kind == "ablate":
        return AblateTap(site, directions), notes
    unit = float(vectors.norms[vectors.layers.index(layers[0]), vectors.sites.index(site)])
    notes |= {"coefficient": spec.coefficient, "mean_activation_norm": unit, "positions": spec.positions}
    return SteerTap(layers[0], site, directions[layers[0]], spec.coefficient * unit, spec.positions), notes


def _with_table(reader: LoadedModel, path: Path, change: str | None) -> Pair:
    from driftbook.models.tables import TableEngine

    table = read_text_table(path, change)
    key = digest("texts", file_hash(path), *([change] if change else []))[:16]
    notes = {"texts": path.name} | ({"change": change} if change else {})
    sides = [Side(name, reader, key, notes=notes, source=TableEngine(table, name, reader)) for name in SIDES]
    return Pair(*sides, model_loads=1, prompts=table.prompts)


def _adapter_folder(path: str, root: Path) -> Path:
    folder = Path(path).expanduser()
    folder = folder if folder.is_absolute() else root / folder
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"intervention.path {path!r}: no adapter_config.json there; name the folder that peft's "
            f"save_pretrained wrote"
        )
    return folder


def _with_adapter(loaded: LoadedModel, plain: Side, folder: Path, scale: float) -> Pair:
    from peft import PeftConfig, PeftModel

    weights = sorted(folder.glob("adapter_model.*"))
    if not weights:
        raise ModelError(f"adapter {folder}: no adapter_model.safetensors beside its configuration")
    try:
        config = scaled(PeftConfig.from_pretrained(str(folder)), scale)
        adapter = PeftModel.from_pretrained(loaded.model, str(folder), config=config)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"adapter {folder} does not fit {loaded.record['model']}: {str(error).splitlines()[0]}"
        ) from error
    _check_complete(adapter, weights[0], folder, loaded)
    adapter.eval().requires_grad_(False)
    adapter.disable_adapter_layers()
    shaped = [file_hash(weights[0]), file_hash(folder / "adapter_config.json"), *([scale] if scale != 1 else [])]
    key = digest(loaded.key, "adapter", *shaped)[:16]
    plain.adapter = adapter
    notes = {"adapter": str(folder), "scale": scale}
    changed = Side("intervention", loaded, key, adapter=adapter, uses_adapter=True, notes=notes)
    return Pair(plain, changed, 1)


def _check_complete(adapter: Any, weights: Path, folder: Path, loaded: LoadedModel) -> None:
    """peft leaves out what the model has no place for, and starts anew what the file does not hold, with a warning."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    if weights.suffix != ".safetensors":
        return  # a pickle of older days; peft has read it
    with safe_open(weights, "pt") as file:
        held = {name for name in file.keys() if ".lora_" in name}  # noqa: SIM118 (not a dict)
    wanted = {name for name in get_peft_model_state_dict(adapter) if ".lora_" in name}
    if held != wanted:
        first = sorted(held ^ wanted)[0]
        raise ModelError(
            f"adapter {folder} does not fit {loaded.record['model']}: {len(held - wanted)} of its {len(held)} matrices "
            f"have no place there, and {len(wanted - held)} that belong there are not in the file (first: {first}). "
            "It was trained on another model; name that one as base"
        )


def scaled(config: Any, scale: float) -> Any:
    """An adapter's configuration (peft) under which it adds ``scale`` times what it would add, in place.

    Raises:
        ModelError: another scale than 1 for an adapter whose effect is not a product of two small matrices alone.
    """
    if scale == 1:
        return config
    lora = getattr(config, "peft_type", None) == "LORA"
    whole = lora and (config.use_dora or config.bias != "none" or config.modules_to_save)
    if not lora or whole:
        raise ModelError(
            f"intervention.scale {scale:g}: only a LoRA without DoRA, biases and modules_to_save can be scaled; "
            "set scale: 1"
        )
    config.lora_alpha *= scale
    config.alpha_pattern = {name: alpha * scale for name, alpha in config.alpha_pattern.items()}
    return config


def taps_of(side: Side, more: Sequence[Tap] = ()) -> list[Tap]:
    """The side's own edits first, then what reads: a reader sees the stream after the edit."""
    return [*side.taps, *more]
