"""``kind: none``: the same model twice, to try a pipeline that should find nothing, or to read one model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from driftbook.sections import Intervention, Opening, intervention

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair


@intervention
class NoIntervention(Intervention):
    kind: Literal["none"] = "none"
    changes: ClassVar[bool] = False

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.sides import Pair, Side  # torch; parameters are read without it

        return Pair(Side("base", base, base.key), Side("intervention", base, base.key), 1)

    def by(self) -> str:
        return "by nothing"

    def title(self, base: str) -> str:
        return f"Does anything differ between {base} and itself?"

    def called(self, base: str) -> str:
        return f"{base}, again"
