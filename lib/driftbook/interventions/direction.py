"""What ``steer`` and ``ablate`` have in common: an edit of activations along a trait's vector."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from driftbook.errors import DriftbookError, ModelError
from driftbook.sections import Intervention, Opening

if TYPE_CHECKING:
    import torch

    from driftbook.models.answers import Tap
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair
    from driftbook.models.vectors import VectorSet


class AlongTrait(Intervention):
    """An edit along the vector of ``trait``, at the layer that the traits stage chose or at those asked for."""

    trait: str
    needs_vectors: ClassVar[bool] = True
    sized: ClassVar[bool] = True

    @abstractmethod
    def tap(self, directions: dict[int, torch.Tensor], site: str, unit: float) -> tuple[Tap, dict[str, Any]]:
        """The edit, and what is told of it.

        Args:
            directions: layer to ``[d_model]`` float32; unit: the mean activation norm at the first layer and site.
        """

    @property
    def about(self) -> str:
        return self.trait

    @property
    def words(self) -> str:
        """The trait in words."""
        return self.trait.replace("_", " ")

    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        from driftbook.models.sides import Pair, Side  # torch; parameters are read without it
        from driftbook.store import digest

        if opening.vectors is None:
            raise DriftbookError(f"intervention.kind {self.kind} needs the traits stage; run `make traits` first")
        tap, notes = self._made(opening.vectors, base)
        key = digest(base.key, self.model_dump(mode="json"), notes)[:16]
        changed = Side("intervention", base, key, taps=(tap,), notes=notes)
        return Pair(Side("base", base, base.key), changed, 1)

    def _made(self, vectors: VectorSet, model: LoadedModel) -> tuple[Tap, dict[str, Any]]:
        import torch  # parameters are read without it

        record = vectors.chosen(self.trait)
        method, site = record.method, record.site
        if vectors.layers[-1] + 1 != model.hooks.n_layers:
            raise ModelError(
                f"the vectors were made on {len(vectors.layers)} layers, this model has "
                f"{model.hooks.n_layers}; run traits again"
            )
        layers = vectors.layers if self.layer == "all" else [record.layer if self.layer == "auto" else int(self.layer)]
        if layers[0] not in vectors.layers:
            raise ModelError(f"intervention.layer {self.layer}: the model has layers 0 to {vectors.layers[-1]}")
        directions = {layer: torch.from_numpy(vectors.at(self.trait, method, layer, site)) for layer in layers}
        checksum = hashlib.sha256(b"".join(directions[layer].numpy().tobytes() for layer in layers)).hexdigest()[:16]
        unit = float(vectors.norms[vectors.layers.index(layers[0]), vectors.sites.index(site)])
        tap, told = self.tap(directions, site, unit)
        notes = {"trait": self.trait, "layers": layers, "site": site, "method": method, "vector": checksum}
        return tap, notes | told
