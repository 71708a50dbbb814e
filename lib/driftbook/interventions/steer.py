"""``kind: steer``: a trait's vector is added to the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from driftbook.interventions.direction import AlongTrait
from driftbook.sections import intervention

if TYPE_CHECKING:
    import torch

    from driftbook.models.answers import Tap


@intervention
class Steer(AlongTrait):
    """Add a trait vector at one site. ``coefficient`` is in units of the mean activation norm at that site."""

    kind: Literal["steer"] = "steer"
    trait: str
    coefficient: float
    layer: int | Literal["auto"] = "auto"
    positions: Literal["all", "response"] = "all"

    def tap(self, directions: dict[int, torch.Tensor], site: str, unit: float) -> tuple[Tap, dict[str, Any]]:
        from driftbook.models.steering import SteerTap  # torch; parameters are read without it

        ((layer, vector),) = directions.items()
        told = {"coefficient": self.coefficient, "mean_activation_norm": unit, "positions": self.positions}
        return SteerTap(layer, site, vector, self.coefficient * unit, self.positions), told

    def called(self, base: str) -> str:
        return f"{base}, steered"

    def by(self) -> str:
        return f"when steered {'towards' if self.coefficient >= 0 else 'away from'} {self.words}"
