"""``kind: checkpoint``: another model, or another revision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from driftbook.sections import ONE_VERSION, Intervention, ModelSpec, Opening, intervention, short_name

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class Checkpoint(Intervention, ModelSpec):
    kind: Literal["checkpoint"] = "checkpoint"
    model: str
    models: ClassVar[int] = 2
    places: ClassVar[tuple[str, ...]] = ("model",)

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.loading import load  # torch; parameters are read without it
        from driftbook.models.sides import Pair, Side

        other = load(self, opening.cache)
        return Pair(Side("base", base, base.key), Side("intervention", other, other.key), 2)

    def by(self) -> str:
        return f"into {self.model}"

    def called(self, base: str) -> str:
        name = short_name(self.model)
        return name if name != base else f"{base}, changed"

    def unavailable(self) -> str:
        place = Path(self.model).expanduser()
        if self.revision and (self.model.startswith("bundled:") or place.exists()):
            return f"{self.model} at {self.revision}: {ONE_VERSION}"
        if self.model.startswith("bundled:") or place.is_file():
            return ""
        if place.is_dir():
            return "" if (place / "config.json").is_file() else f"{self.model} holds no config.json"
        if self.model.startswith((".", "/", "~")) or place.suffix == ".gguf":
            return f"{self.model}: there is no such folder or file"
        from transformers.utils import cached_file  # transformers takes seconds

        try:
            cached_file(self.model, "config.json", revision=self.revision)
        except OSError as reason:
            return f"{self.model} at {self.revision or 'main'}: {' '.join(str(reason).split())}"
        return ""

    def placed(self, **where: str) -> Checkpoint:
        return self.model_copy(update=where)
