"""``kind: finetune``: a LoRA that is trained on a file before anything is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from driftbook.interventions.adapter import with_adapter
from driftbook.sections import Intervention, Opening, intervention

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class Finetune(Intervention):
    """A LoRA trained on a text or chat file before decoding, cached by content. ``scale`` multiplies what it adds
    afterwards: one training serves every strength."""

    kind: Literal["finetune"] = "finetune"
    data: str
    rank: int = Field(8, ge=1)
    alpha: float = 16.0
    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    max_tokens: int = Field(256, ge=8)
    targets: list[str] | Literal["all-linear"] = "all-linear"
    seed: int = Field(0, ge=0, lt=2**32)
    scale: float = Field(1.0, allow_inf_nan=False)
    unreadable: int = Field(0, ge=0, description="lines of the data that may be left out because they cannot be read")
    files: ClassVar[tuple[str, ...]] = ("data",)
    sized: ClassVar[bool] = True

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.finetune import train_lora  # torch; parameters are read without it

        folder = train_lora(base, self, opening.cache, opening.root, opening.progress)
        return with_adapter(base, folder, self.scale, opening)

    def called(self, base: str) -> str:
        return f"{base}, fine-tuned"

    def by(self) -> str:
        return f"when fine-tuned on {Path(self.data).name}"
