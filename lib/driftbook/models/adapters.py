"""A PEFT adapter: in the one model that both sides share, on for one of them, or in a model of its own where the shared
one would not be the base's.

What kind an adapter is, peft says. Whether a model with the adapter switched off is still the base is not taken on
trust: trained biases, for one, stay. One batch through the model before and after decides it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict

from driftbook.errors import ModelError, first_line
from driftbook.models.hooks import tiny_input
from driftbook.models.load_report import WRAPPERS
from driftbook.models.loading import LoadedModel
from driftbook.models.weight_files import PICKLED, read_header, some

TRIED = 12  # tokens of the batch that decides whether a model is the base


@dataclass(frozen=True)
class Adapted:
    """The adapter as one side sees it: ``on`` says which; ``alone``: its model is no one else's, and it stays on.
    ``folder`` is what peft wrote, ``scale`` what it is multiplied by."""

    peft: PeftModel
    folder: Path
    scale: float
    on: bool
    alone: bool = False

    @property
    def rank(self) -> int:
        return self.peft.peft_config["default"].r

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Everything in here computes as this side; outside, an adapter that is shared is off."""
        if self.on:
            self.peft.enable_adapter_layers()
        else:
            self.peft.disable_adapter_layers()
        try:
            yield
        finally:
            if not self.alone:
                self.peft.disable_adapter_layers()


def weights_of(folder: Path) -> Path:
    """The file with the matrices. Raises ModelError where there is none, or it is cut."""
    names = ("adapter_model.safetensors", "adapter_model.bin")  # in the order in which peft takes them
    weights = [folder / name for name in names if (folder / name).is_file()]
    if not weights:
        raise ModelError(f"adapter {folder}: no adapter_model.safetensors beside its configuration")
    if weights[0].suffix == ".safetensors":
        read_header(weights[0])
    return weights[0]


def _held(weights: Path) -> set[str]:
    """The names of the tensors of an adapter."""
    if weights.suffix == ".safetensors":
        return set(read_header(weights))
    try:
        return set(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # what a pickle of other objects, or half of one, makes of its reader
        raise ModelError(f"adapter {weights}: {PICKLED}") from error


@dataclass(frozen=True)
class Put:
    """An adapter in a model, switched off. ``shared``: the model is still the base then; ``told``: what a load report
    says of it."""

    peft: PeftModel
    shared: bool
    told: dict[str, Any]


def put_into(loaded: LoadedModel, folder: Path, scale: float) -> Put:
    """Put the adapter of a folder into a model, switched off, and see whether that is the base as it was.

    Raises:
        ModelError: it was trained on another model, cannot be scaled, or puts virtual tokens before the prompt.
    """
    weights = weights_of(folder)
    held, before = _held(weights), _logits(loaded)
    try:
        config = scaled(PeftConfig.from_pretrained(str(folder)), scale)
        if config.is_prompt_learning:
            raise ModelError(
                f"adapter {folder} is of the kind {kind_of(config)}, which puts trained virtual tokens before every "
                "prompt; they are not computed here. Name an adapter of layers (LoRA, IA3, LoHa, ...), or a checkpoint"
            )
        resized = _make_room(loaded.model, weights)
        adapter = PeftModel.from_pretrained(loaded.model, str(folder), config=config)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"adapter {folder} does not fit {loaded.record['model']}: {first_line(error)}"
        ) from error
    _check_complete(adapter, held, folder, loaded)
    adapter.eval().requires_grad_(False)
    adapter.enable_adapter_layers()
    effect = _distance(before, _logits(loaded))
    if not math.isfinite(effect):
        raise ModelError(
            f"adapter {folder} in {loaded.record['model']} computes numbers that are not finite in "
            f"{loaded.record.get('dtype')}: set dtype: float32, and if they stay its training diverged or the file is "
            "damaged"
        )
    adapter.disable_adapter_layers()
    left = _distance(before, _logits(loaded))
    told: dict[str, Any] = {"kind": kind_of(config), "tensors": len(get_peft_model_state_dict(adapter)), "scale": scale}
    if trained_on := config.base_model_name_or_path:
        told["trained on"] = str(trained_on)
    told |= {name: value for name in ("r", "bias") if (value := getattr(config, name, None)) is not None}
    if config.target_modules:
        found = config.target_modules
        told["targets"] = found if isinstance(found, str) else some(sorted(found), 6)
    if saved := getattr(config, "modules_to_save", None):
        told["trained whole"] = some(sorted(saved))
    told["largest change of a logit on a first batch"] = float(f"{effect:.3g}")
    if resized:
        told["embedding resized"] = resized
    return Put(adapter, left == 0 and not resized, told)


def _make_room(model: Any, weights: Path) -> str:
    """Rows for the tokens that an adapter added, where it brings its embedding along; from how many to how many."""
    rows = model.get_input_embeddings().weight.shape[0]
    shapes = read_header(weights) if weights.suffix == ".safetensors" else {}
    held = [e["shape"][0] for name, e in shapes.items() if name.endswith(("embed_tokens.weight", "wte.weight"))]
    if not held or held[0] <= rows:
        return ""
    model.resize_token_embeddings(held[0], mean_resizing=False)
    return f"{rows:,} to {held[0]:,} rows"


def kind_of(config: Any) -> str:
    """What peft calls the kind of an adapter."""
    return str(getattr(config.peft_type, "value", config.peft_type))


@torch.inference_mode()
def _logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(input_ids=tiny_input(loaded.model, 1, TRIED), use_cache=False).logits.float()


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference; of the tokens that both have."""
    width = min(a.shape[-1], b.shape[-1])
    return float((a[..., :width] - b[..., :width]).abs().max())


def _check_complete(adapter: PeftModel, held: set[str], folder: Path, loaded: LoadedModel) -> None:
    """peft leaves out what the model has no place for, and starts anew what the file does not hold, with a warning."""
    wanted = set(get_peft_model_state_dict(adapter))
    own = {f"base_model.model.{name}" for name in loaded.model.state_dict()}  # embeddings that were saved along
    if held - own != wanted - own:
        first = sorted((held ^ wanted) - own)[0]
        wrapper = next((w for w in WRAPPERS if w in first.removeprefix("base_model.model.")), None)
        remedy = (
            f"A wrapper of training saved it: rename its matrices without {wrapper}"
            if wrapper
            else "It was trained on another model; name that one as base"
        )
        raise ModelError(
            f"adapter {folder} does not fit {loaded.record['model']}: {len(held - wanted - own)} of its {len(held)} "
            f"matrices have no place there, and {len(wanted - held)} that belong there are not in the file (first: "
            f"{first}). {remedy}"
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
