"""A PEFT adapter whose layers stand in a model that both sides share: on for one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from driftbook.errors import ModelError
from driftbook.models.loading import LoadedModel


@dataclass(frozen=True)
class Adapted:
    """The adapter as one side sees it: ``on`` says which. ``folder`` is what peft wrote, ``scale`` what it is
    multiplied by."""

    peft: PeftModel
    folder: Path
    scale: float
    on: bool

    @property
    def rank(self) -> int:
        return self.peft.peft_config["default"].r

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Everything in here computes as this side; outside, the adapter is off."""
        if self.on:
            self.peft.enable_adapter_layers()
        else:
            self.peft.disable_adapter_layers()
        try:
            yield
        finally:
            self.peft.disable_adapter_layers()


def weights_of(folder: Path) -> Path:
    """The file with the matrices. Raises ModelError where there is none."""
    weights = sorted(folder.glob("adapter_model.*"))
    if not weights:
        raise ModelError(f"adapter {folder}: no adapter_model.safetensors beside its configuration")
    return weights[0]


def put_into(loaded: LoadedModel, folder: Path, scale: float) -> PeftModel:
    """Put the adapter of a folder into a model, switched off.

    Raises:
        ModelError: it was trained on another model, or cannot be scaled.
    """
    weights = weights_of(folder)
    try:
        config = scaled(PeftConfig.from_pretrained(str(folder)), scale)
        adapter = PeftModel.from_pretrained(loaded.model, str(folder), config=config)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"adapter {folder} does not fit {loaded.record['model']}: {str(error).splitlines()[0]}"
        ) from error
    _check_complete(adapter, weights, folder, loaded)
    adapter.eval().requires_grad_(False)
    adapter.disable_adapter_layers()
    return adapter


def _check_complete(adapter: PeftModel, weights: Path, folder: Path, loaded: LoadedModel) -> None:
    """peft leaves out what the model has no place for, and starts anew what the file does not hold, with a warning."""
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
