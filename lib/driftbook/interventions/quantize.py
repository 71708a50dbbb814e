"""``kind: quantize``: the base with its linear weights rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from driftbook.sections import Intervention, Opening, intervention

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class Quantize(Intervention):
    kind: Literal["quantize"] = "quantize"
    bits: Literal[8, 4] = 8
    models: ClassVar[int] = 2

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.loading import load  # torch; parameters are read without it
        from driftbook.models.quantize import quantized
        from driftbook.models.sides import Pair, Side

        other = quantized(load(opening.base, opening.cache), self.bits)
        return Pair(Side("base", base, base.key), Side("intervention", other, other.key), 2)

    def by(self) -> str:
        return f"when quantized to {self.bits} bits"
