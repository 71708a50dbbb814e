"""``kind: ablate``: the component along a trait's vector is removed from the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from driftbook.interventions.direction import AlongTrait
from driftbook.sections import intervention

if TYPE_CHECKING:
    import torch

    from driftbook.models.answers import Tap


@intervention
class Ablate(AlongTrait):
    """Remove the component along a trait vector at one layer, or at all of them."""

    kind: Literal["ablate"] = "ablate"
    trait: str
    layer: int | Literal["auto", "all"] = "all"

    def tap(self, directions: dict[int, torch.Tensor], site: str, unit: float) -> tuple[Tap, dict[str, Any]]:
        from driftbook.models.steering import AblateTap  # torch; parameters are read without it

        return AblateTap(site, directions), {}

    def called(self, base: str) -> str:
        return f"{base}, ablated"

    def by(self) -> str:
        return f"without its direction of {self.words}"
