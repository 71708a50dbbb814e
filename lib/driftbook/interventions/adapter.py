"""``kind: adapter``: a PEFT adapter, switched on for one side of the one loaded base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from driftbook.errors import ModelError
from driftbook.hashes import file_hash
from driftbook.sections import Intervention, Opening, intervention

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair

Words = Literal["own", "base"]


@intervention
class Adapter(Intervention):
    """A PEFT adapter folder, toggled on the one loaded base. ``scale`` multiplies what a LoRA adds; ``tokenizer: base``
    leaves the tokenizer and template that it may bring, so that both sides are asked alike."""

    kind: Literal["adapter"] = "adapter"
    path: str
    scale: float = Field(1.0, allow_inf_nan=False)
    tokenizer: Words = "own"
    places: ClassVar[tuple[str, ...]] = ("path",)
    sized: ClassVar[bool] = True

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        folder = opening.path(self.path)
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"intervention.path {self.path!r}: no adapter_config.json there; name the folder that peft's "
                f"save_pretrained wrote"
            )
        return with_adapter(base, folder, self.scale, opening, self.tokenizer)

    def by(self) -> str:
        return f"with the adapter {Path(self.path).name}"

    def missing(self, root: Path) -> Mapping[str, str]:
        if (root / Path(self.path).expanduser()).is_dir():
            return {}
        said = f"{self.path}: there is no such folder; name the one that peft's save_pretrained wrote"
        return {"path": said}


def with_adapter(
    base: LoadedModel, folder: Path, scale: float, opening: Opening | None = None, words: Words = "own"
) -> Pair:
    """The pair of a base and itself with the adapter of a folder.

    Both share the base's weights where the model with the adapter switched off is the base; where it is not (trained
    biases, embeddings that were saved along), the adapter keeps the model and the base is loaded again.

    Args:
        opening: where the base came from; words: ``own`` takes the tokenizer and template that the adapter brings.

    Raises:
        ModelError: the two do not fit.
    """
    from driftbook.models.adapters import Adapted, put_into, weights_of  # torch; parameters are read without it
    from driftbook.models.loading import load, with_tokenizer_of
    from driftbook.models.sides import Pair, Side
    from driftbook.store import digest

    spec = opening.base if opening is not None else None
    put = put_into(base, folder, scale)
    changed = with_tokenizer_of(base, folder, spec) if spec is not None and words == "own" else None
    if not put.shared and opening is None:
        raise ModelError(f"adapter {folder}: it changes weights of the base that cannot be switched back")
    plain = base if put.shared else load(opening.base, opening.cache)
    shaped = [
        file_hash(weights_of(folder)),
        file_hash(folder / "adapter_config.json"),
        *([scale] if scale != 1 else []),
        *([sorted(changed.eos_ids), changed.record["template"], len(changed.tokenizer)] if changed else []),
    ]
    key = digest(base.key, "adapter", *shaped)[:16]
    brings = {"brings": "tokenizer, template and end tokens of its own"} if changed else {}
    model = "the base's, in which it is switched" if put.shared else "of its own: switched off, it is not the base"
    notes = {"adapter": str(folder), "scale": scale, "adapter_load": put.told | {"model": model} | brings}
    on = Adapted(put.peft, folder, scale, on=True, alone=not put.shared)
    off = Adapted(put.peft, folder, scale, on=False) if put.shared else None
    side = Side("intervention", changed or base, key, adapter=on, notes=notes)
    return Pair(Side("base", plain, plain.key, adapter=off), side, 1 if put.shared else 2)
