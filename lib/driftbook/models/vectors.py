"""Trait vectors on disk: ``vectors.safetensors`` and ``vectors.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from driftbook.errors import DriftbookError


@dataclass(frozen=True)
class VectorRecord:
    """What is known about one vector (rules: every vector says how good it is and where it came from).

    ``norm`` is the length that its method gave it before it was made a unit vector: activation units for
    ``mean_difference``, nats per token and unit for ``gradient``, what the unit vectors of its parts left for a
    combination. ``source`` is ``fitted``, ``imported``, or ``combined: <recipe>``; ``architecture`` is the model type
    of the configuration.
    """

    trait: str
    method: str
    layer: int
    site: str
    window: str
    convention: str
    model: str
    revision: str | None
    dtype: str
    template: str | None
    scenarios: str
    pairs: int
    heldout_auc: float
    null_auc: float
    norm: float
    mean_activation_norm: float
    largest_dimension_share: float
    chosen: bool = False
    source: str = "fitted"
    architecture: str = ""


@dataclass
class VectorSet:
    """Vectors of several traits at every captured point.

    ``directions[trait, method]`` is ``[layers, sites, d_model]`` float32; ``norms`` is the mean activation norm
    ``[layers, sites]`` over the response tokens of the contrastive answers (the unit of steering coefficients).
    ``null`` is ``[directions, layers, sites, d_model]``: the same method on shuffled labels, which is what every null
    band is drawn from.
    """

    layers: list[int]
    sites: list[str]
    directions: dict[tuple[str, str], np.ndarray]
    norms: np.ndarray
    null: np.ndarray | None = None
    records: list[VectorRecord] = field(default_factory=list)

    @property
    def traits(self) -> list[str]:
        return list(dict.fromkeys(trait for trait, _ in self.directions))

    def chosen(self, trait: str) -> VectorRecord:
        """The record of the layer, site and method that was chosen for a trait."""
        found = [r for r in self.records if r.trait == trait and r.chosen]
        if not found:
            raise DriftbookError(
                f"no vector for trait {trait!r}; there are {', '.join(self.traits)}. Add its file to traits.files."
            )
        return found[0]

    def record(self, trait: str, method: str, layer: int, site: str) -> VectorRecord:
        """The record of one vector. Raises DriftbookError where there is none."""
        for r in self.records:
            if (r.trait, r.method, r.layer, r.site) == (trait, method, layer, site):
                return r
        raise DriftbookError(
            f"no vector for trait {trait!r} by {method} at layer {layer}, {site}; there are traits "
            f"{', '.join(self.traits)}, methods {', '.join(sorted({m for _, m in self.directions}))}, layers "
            f"{self.layers[0]} to {self.layers[-1]} and sites {', '.join(self.sites)}"
        )

    def choose(self, trait: str, layer: int) -> None:
        """Mark another layer of a trait as the chosen one; method and site stay."""
        now = self.chosen(trait)
        other = self.record(trait, now.method, layer, now.site)
        self.records = [
            replace(r, chosen=r is other) if r.trait == trait and (r.chosen or r is other) else r for r in self.records
        ]

    def at(self, trait: str, method: str, layer: int, site: str) -> np.ndarray:
        """``[d_model]`` direction."""
        return self.directions[trait, method][self.layers.index(layer), self.sites.index(site)]

    def matrix(self, traits: Sequence[str], method: str, points: Sequence[tuple[int, str]]) -> np.ndarray:
        """``[points, d_model, traits]``: each trait's own direction at each point."""
        return np.stack([np.stack([self.at(t, method, layer, site) for t in traits], -1) for layer, site in points])

    def null_matrix(self, points: Sequence[tuple[int, str]]) -> np.ndarray:
        """``[points, d_model, directions]`` null directions. Raises DriftbookError where the set holds none."""
        if self.null is None:
            raise DriftbookError("vectors.safetensors holds no null directions; run the traits stage again")
        return np.stack([self.null[:, self.layers.index(layer), self.sites.index(site)].T for layer, site in points])

    def save(self, folder: Path) -> None:
        arrays = {f"{trait}/{method}": v.astype(np.float32) for (trait, method), v in self.directions.items()}
        arrays["mean_activation_norm"] = self.norms.astype(np.float32)
        if self.null is not None:
            arrays["null"] = self.null.astype(np.float32)
        save_file(arrays, folder / "vectors.safetensors")
        head = {"layers": self.layers, "sites": self.sites, "records": [asdict(r) for r in self.records]}
        (folder / "vectors.json").write_text(json.dumps(head, indent=1))

    @classmethod
    def load(cls, folder: Path) -> VectorSet:
        try:
            head = json.loads((folder / "vectors.json").read_text())
            arrays = load_file(folder / "vectors.safetensors")
        except (OSError, ValueError) as error:
            raise DriftbookError(
                f"{folder}: no readable vectors.json and vectors.safetensors ({error}); run the traits stage again"
            ) from error
        norms, null = arrays.pop("mean_activation_norm"), arrays.pop("null", None)
        # safetensors sorts its names; the order of the traits is that of their files.
        place = {trait: i for i, trait in enumerate(dict.fromkeys(r["trait"] for r in head["records"]))}
        directions = {tuple(name.split("/")): v for name, v in arrays.items()}
        directions = dict(sorted(directions.items(), key=lambda item: place[item[0][0]]))
        return cls(head["layers"], head["sites"], directions, norms, null, [VectorRecord(**r) for r in head["records"]])
