"""Trait vectors in the files of other tools: persona_vectors, repeng (and llama.cpp), steering-vectors.

All three add to a block's output, which is the site ``resid_post`` here. In repeng's and steering-vectors' files a
vector is as long as the mean activation there, so that their coefficient (``coeff``, ``multiplier``) means the same as
``intervention.coefficient``. persona_vectors' files hold raw mean differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from driftbook.errors import DriftbookError, first_line
from driftbook.models.vectors import VectorSet

LAYER_TYPE = "decoder_block"


def scaled(vectors: VectorSet, trait: str, layers: Sequence[int] | None = None) -> dict[int, np.ndarray]:
    """``layer -> [d_model]`` float32 at resid_post by the trait's chosen method, as long as the mean activation.

    Raises DriftbookError where the set holds no resid_post.
    """
    method = vectors.chosen(trait).method
    place = _resid_post(vectors)
    wanted = vectors.layers if layers is None else layers
    return {
        layer: np.ascontiguousarray(
            vectors.at(trait, method, layer, "resid_post") * vectors.norms[vectors.layers.index(layer), place],
            dtype=np.float32,
        )
        for layer in wanted
    }


def _resid_post(vectors: VectorSet) -> int:
    if "resid_post" not in vectors.sites:
        raise DriftbookError("other tools add vectors at resid_post, and this set holds none there")
    return vectors.sites.index("resid_post")


# ------------------------------------------------------------------------------------------------------ persona_vectors


def to_persona_vectors(vectors: VectorSet, trait: str) -> np.ndarray:
    """``[layers + 1, d_model]`` float32 raw mean differences in ``hidden_states`` indexing: row l is the output of
    block l - 1, row 0 the embeddings.

    persona_vectors' own last row is taken after the final norm, as transformers gives it; here it is the last block's
    output, where steering adds. Raises DriftbookError for a combination, which has no length of its own.
    """
    method = "mean_difference"
    _resid_post(vectors)

    def raw(layer: int, site: str) -> np.ndarray:
        record = vectors.record(trait, method, layer, site)
        if record.source.startswith("combined"):
            raise DriftbookError(
                f"{trait} is a combination of unit vectors: it has no raw mean difference, which is what a "
                "persona_vectors file holds; export it for repeng or steering-vectors"
            )
        return record.norm * vectors.at(trait, method, layer, site)

    first = raw(0, "resid_pre") if "resid_pre" in vectors.sites else np.zeros_like(raw(0, "resid_post"))
    return np.stack([first, *(raw(layer, "resid_post") for layer in vectors.layers)]).astype(np.float32)


def write_persona_vectors(rows: np.ndarray, path: Path) -> None:
    """A ``.pt`` file with one float32 tensor, as persona_vectors saves it."""
    torch.save(torch.from_numpy(np.ascontiguousarray(rows, np.float32)), path)


def read_persona_vectors(path: Path) -> np.ndarray:
    """``[layers + 1, d_model]`` float32 from a ``.pt`` file.

    Only tensors are read (``weights_only``): nothing in the file is run. Raises DriftbookError for anything else.
    """
    try:
        rows = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive, an object that is no tensor, a missing file: many kinds
        raise DriftbookError(f"{path}: no tensor can be read from it ({first_line(error)})") from error
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) < 2:
        shape = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise DriftbookError(f"{path}: a persona_vectors file holds [layers + 1, d_model], this one holds {shape}")
    return rows.float().numpy()


def from_persona_vectors(rows: np.ndarray, sites: Sequence[str]) -> np.ndarray:
    """``[layers, sites, d_model]`` from a persona_vectors array: row l is the input of block l and the output of block
    l - 1.

    At ``resid_mid``, which such a file does not have, stands the vector of the block's output.
    """
    at = {"resid_pre": rows[:-1], "resid_mid": rows[1:], "resid_post": rows[1:]}
    return np.stack([at[site] for site in sites], 1).astype(np.float32)


def imported(files: dict[str, str], root: Path, layers: int, d_model: int, sites: Sequence[str]) -> dict:
    """Directions ``[layers, sites, d_model]`` per trait from persona_vectors files (``traits.imports``).

    Raises DriftbookError for a file of a model of another shape.
    """
    out = {}
    for trait, name in files.items():
        rows = read_persona_vectors(root / Path(name).expanduser())
        if rows.shape != (layers + 1, d_model):
            raise DriftbookError(
                f"traits.imports.{trait}: {name} holds {tuple(rows.shape)}, and this model of {layers} layers needs "
                f"{(layers + 1, d_model)}: was it made with another model?"
            )
        out[trait] = from_persona_vectors(rows, sites)
    return out


# ------------------------------------------------------------------------------------------------ repeng and llama.cpp


def write_repeng(directions: dict[int, np.ndarray], architecture: str, path: Path) -> None:
    """A control vector as repeng's ``ControlVector.export_gguf`` writes it; ``ControlVector.import_gguf`` and
    llama.cpp (``--control-vector``) read it.

    A layer's number is that of the block whose output is changed. Layer 0 is left out: llama.cpp refuses it. Raises
    DriftbookError where nothing else is there.
    """
    import gguf  # half a second, for one format

    kept = {layer: v for layer, v in directions.items() if layer > 0}
    if not kept:
        raise DriftbookError("a control vector has no layer 0 in repeng's and llama.cpp's format; take another layer")
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", architecture)
    writer.add_uint32("controlvector.layer_count", len(kept))
    for layer, v in kept.items():
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(v, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ----------------------------------------------------------------------------------------------------- steering-vectors


def write_steering_vectors(directions: dict[int, np.ndarray], path: Path) -> None:
    """``SteeringVector.layer_activations`` of the package steering-vectors, one tensor per layer number.

    The package defines no file of its own. To use this one:
    ``SteeringVector({int(k): v for k, v in safetensors.torch.load_file(path).items()})``.
    """
    arrays = {str(layer): np.ascontiguousarray(v, np.float32) for layer, v in directions.items()}
    save_file(arrays, path, metadata={"layer_type": LAYER_TYPE})


# -------------------------------------------------------------------------------------------------------------- export

#: format -> ending of its files
FORMATS = {
    "persona-vectors": "persona_vectors.pt",
    "repeng": "repeng.gguf",
    "steering-vectors": "steering_vectors.safetensors",
}


def export(
    vectors: VectorSet,
    formats: Sequence[str],
    folder: Path,
    traits: Sequence[str] | None = None,
    layers: str = "all",
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Write ``<folder>/<trait>.<ending>`` for every trait (or those named) and format; ``say`` hears of what is left
    out and why.

    Args:
        formats: keys of ``FORMATS``.
        layers: ``all``, or each trait's ``chosen`` layer alone (a persona_vectors file always holds all).
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise DriftbookError(f"there is no format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for trait in traits if traits else vectors.traits:
        record = vectors.chosen(trait)
        wanted = scaled(vectors, trait, [record.layer] if layers == "chosen" else None)
        for form in formats:
            path = folder / f"{trait}.{FORMATS[form]}"
            if form == "repeng":
                write_repeng(wanted, record.architecture, path)
            elif form == "steering-vectors":
                write_steering_vectors(wanted, path)
            elif record.source.startswith("combined"):
                say(f"{trait}: a combination has no raw mean difference, so no {path.name}")
                continue
            else:
                write_persona_vectors(to_persona_vectors(vectors, trait), path)
            written.append(path)
    return written
