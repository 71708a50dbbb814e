"""Vectors on disk."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from driftbook.errors import DriftbookError
from driftbook.models.vectors import VectorRecord, VectorSet

LAYERS, SITES, D = 4, ["resid_pre", "resid_post"], 48


def record(trait: str, layer: int, chosen: bool, site: str = "resid_post", method: str = "probe") -> VectorRecord:
    return VectorRecord(
        trait=trait, method=method, layer=layer, site=site, window="response_avg", convention="own",
        model="tiny", revision=None,
        dtype="float32", template=None, scenarios="natural", pairs=9, heldout_auc=0.9, null_auc=0.5, norm=1.0,
        mean_activation_norm=3.0, largest_dimension_share=0.1, chosen=chosen,
    )  # fmt: skip


def some_vectors(traits=("warm", "terse"), methods=("probe",), null: int | None = 6, seed: int = 0) -> VectorSet:
    rng = np.random.default_rng(seed)

    def unit(*shape):
        v = rng.normal(size=(*shape, D)).astype(np.float32)
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    return VectorSet(
        list(range(LAYERS)),
        SITES,
        {(t, m): unit(LAYERS, len(SITES)) for t in traits for m in methods},
        rng.uniform(1, 5, (LAYERS, len(SITES))).astype(np.float32),
        unit(null, LAYERS, len(SITES)) if null else None,
        [record(t, layer, layer == 2) for t in traits for layer in range(LAYERS)],
    )


@pytest.mark.parametrize("null", [6, None])
def test_a_set_reads_back_as_it_was_saved(tmp_path, null):
    vectors = some_vectors(methods=("probe", "mean_difference"), null=null)
    vectors.save(tmp_path)
    back = VectorSet.load(tmp_path)
    assert (back.layers, back.sites, back.records, back.traits) == (
        vectors.layers,
        SITES,
        vectors.records,
        vectors.traits,
    )
    assert back.directions.keys() == vectors.directions.keys()
    for name, v in vectors.directions.items():
        np.testing.assert_array_equal(back.directions[name], v)
    np.testing.assert_array_equal(back.norms, vectors.norms)
    assert (back.null is None) == (null is None)
    if null:
        np.testing.assert_array_equal(back.null, vectors.null)
    assert {a.dtype for a in load_file(tmp_path / "vectors.safetensors").values()} == {np.dtype(np.float32)}


def test_every_point_gets_its_own_direction():
    vectors = some_vectors()
    points = [(3, "resid_post"), (0, "resid_pre"), (1, "resid_post")]
    matrix = vectors.matrix(["terse", "warm"], "probe", points)
    assert matrix.shape == (3, D, 2)
    for p, (layer, site) in enumerate(points):
        for k, trait in enumerate(("terse", "warm")):
            expected = vectors.directions[trait, "probe"][layer, SITES.index(site)]
            np.testing.assert_array_equal(matrix[p, :, k], expected)
            np.testing.assert_array_equal(vectors.at(trait, "probe", layer, site), expected)
    null = vectors.null_matrix(points)
    assert null.shape == (3, D, 6)
    np.testing.assert_array_equal(null[0, :, 4], vectors.null[4, 3, 1])


def test_errors_say_what_there_is():
    vectors = some_vectors(null=None)
    assert vectors.chosen("warm").layer == 2
    with pytest.raises(DriftbookError, match=r"no vector for trait 'calm'; there are warm, terse"):
        vectors.chosen("calm")
    with pytest.raises(DriftbookError, match="no null directions; run the traits stage again"):
        vectors.null_matrix([(0, "resid_pre")])


def test_a_damaged_folder_names_itself_and_the_remedy(tmp_path):
    with pytest.raises(DriftbookError, match=rf"{tmp_path}.*run the traits stage again"):
        VectorSet.load(tmp_path)
    some_vectors().save(tmp_path)
    (tmp_path / "vectors.json").write_text(json.dumps({"layers": [0]})[:-3])
    with pytest.raises(DriftbookError, match="run the traits stage again"):
        VectorSet.load(tmp_path)


def test_another_layer_can_be_chosen():
    vectors = some_vectors()
    vectors.choose("warm", 3)
    assert vectors.chosen("warm").layer == 3 and vectors.chosen("terse").layer == 2
    assert sum(r.chosen for r in vectors.records) == 2
    with pytest.raises(DriftbookError, match=r"no vector for trait 'warm' by probe at layer 9.*layers 0 to 3"):
        vectors.choose("warm", 9)
