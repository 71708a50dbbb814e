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


@intervention
class Adapter(Intervention):
    """A PEFT adapter folder, toggled on the one loaded base. ``scale`` multiplies what a LoRA adds."""

    kind: Literal["adapter"] = "adapter"
    path: str
    scale: float = Field(1.0, allow_inf_nan=False)
    places: ClassVar[tuple[str, ...]] = ("path",)
    sized: ClassVar[bool] = True

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        folder = opening.path(self.path)
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"intervention.path {self.path!r}: no adapter_config.json there; name the folder that peft's "
                f"save_pretrained wrote"
            )
        return with_adapter(base, folder, self.scale)

    def by(self) -> str:
        return f"with the adapter {Path(self.path).name}"

    def missing(self, root: Path) -> Mapping[str, str]:
        if (root / Path(self.path).expanduser()).is_dir():
            return {}
        said = f"{self.path}: there is no such folder; name the one that peft's save_pretrained wrote"
        return {"path": said}


def with_adapter(base: LoadedModel, folder: Path, scale: float) -> Pair:
    """The pair of a base and itself with the adapter of a folder. Raises ModelError where the two do not fit."""
    from driftbook.models.adapters import Adapted, put_into, weights_of
    from driftbook.models.sides import Pair, Side
    from driftbook.store import digest

    peft = put_into(base, folder, scale)
    off, on = (Adapted(peft, folder, scale, on=on) for on in (False, True))
    shaped = [
        file_hash(weights_of(folder)),
        file_hash(folder / "adapter_config.json"),
        *([scale] if scale != 1 else []),
    ]
    key = digest(base.key, "adapter", *shaped)[:16]
    notes = {"adapter": str(folder), "scale": scale}
    changed = Side("intervention", base, key, adapter=on, notes=notes)
    return Pair(Side("base", base, base.key, adapter=off), changed, 1)
