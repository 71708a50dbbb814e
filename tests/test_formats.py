"""Vectors in the files of other tools: what is in the bytes, and that a coefficient there means what it means here."""

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open

from driftbook.errors import DriftbookError
from driftbook.models import formats
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.steering import SteerTap
from models import fresh, full_logits, hidden_states, loaded
from test_vectors import LAYERS, D, record, some_vectors


def vectors_with_records(method: str = "mean_difference"):
    """Every point has a record; raw norms differ by layer."""
    vectors = some_vectors(methods=(method,))
    vectors.records = [
        type(r)(**{**r.__dict__, "norm": 1.0 + r.layer, "architecture": "llama"})
        for trait in vectors.traits
        for layer in range(LAYERS)
        for r in [record(trait, layer, layer == 2 and site == "resid_post", site, method) for site in vectors.sites]
    ]
    return vectors


# ------------------------------------------------------------------------------------------------------ persona_vectors


def test_persona_vectors_rows_are_raw_and_in_hidden_states_indexing(tmp_path):
    vectors = vectors_with_records()
    rows = formats.to_persona_vectors(vectors, "warm")
    assert rows.shape == (LAYERS + 1, D) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[0], vectors.at("warm", "mean_difference", 0, "resid_pre"))
    for layer in range(LAYERS):
        raw = (1 + layer) * vectors.at("warm", "mean_difference", layer, "resid_post")
        np.testing.assert_allclose(rows[layer + 1], raw, rtol=1e-6)
    formats.write_persona_vectors(rows, tmp_path / "warm.pt")
    loaded_by_torch = torch.load(tmp_path / "warm.pt", weights_only=True)  # as persona_vectors reads it
    assert loaded_by_torch.dtype == torch.float32
    np.testing.assert_array_equal(loaded_by_torch.numpy(), rows)
    np.testing.assert_array_equal(formats.read_persona_vectors(tmp_path / "warm.pt"), rows)


def test_imported_rows_stand_at_both_ends_of_a_block(tmp_path):
    rows = np.random.default_rng(0).normal(size=(LAYERS + 1, D)).astype(np.float32)
    formats.write_persona_vectors(rows, tmp_path / "warm.pt")
    sites = ["resid_pre", "resid_mid", "resid_post"]
    found = formats.imported({"warm": "warm.pt"}, tmp_path, LAYERS, D, sites)["warm"]
    assert found.shape == (LAYERS, 3, D)
    np.testing.assert_array_equal(found[:, 0], rows[:-1])
    np.testing.assert_array_equal(found[:, 2], rows[1:])
    with pytest.raises(DriftbookError, match=r"traits\.imports\.warm: warm\.pt holds \(5, 48\).*needs \(7, 48\)"):
        formats.imported({"warm": "warm.pt"}, tmp_path, LAYERS + 2, D, sites)


def test_a_pt_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(DriftbookError, match=r"evil\.pt: no tensor can be read"):
        formats.read_persona_vectors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    torch.save(torch.zeros(4), tmp_path / "flat.pt")
    with pytest.raises(DriftbookError, match=r"holds \[layers \+ 1, d_model\], this one holds \(4,\)"):
        formats.read_persona_vectors(tmp_path / "flat.pt")


def test_row_l_of_persona_vectors_moves_hidden_state_l():
    """The offset itself: steering by an imported row l at resid_post changes hidden_states[l] and nothing before it."""
    plain, steered = loaded("llama", "sdpa"), fresh("llama", "sdpa")
    rows = np.random.default_rng(0).normal(size=(plain.hooks.n_layers + 1, plain.hooks.d_model))
    ids, row = (5, 6, 7, 8), 2
    there = formats.from_persona_vectors(rows, ["resid_post"])[row - 1, 0]
    tap = SteerTap(row - 1, "resid_post", torch.from_numpy(there), 1.0)
    states = []
    handle = steered.model.model.layers[row].register_forward_pre_hook(lambda m, args: states.append(args[0].clone()))
    list(replay(steered, [TokenSequence(ids, ())], [tap]))
    handle.remove()
    before = hidden_states(plain, ids)
    moved = states[-1][0].numpy() - before[row]
    np.testing.assert_allclose(moved, np.tile(rows[row] / np.linalg.norm(rows[row]), (4, 1)), atol=1e-4)


# ------------------------------------------------------------------------------------------------ repeng and llama.cpp


def test_a_control_vector_holds_what_repeng_and_llama_cpp_look_for(tmp_path):
    vectors = vectors_with_records()
    formats.export(vectors, ["repeng"], tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["terse.repeng.gguf", "warm.repeng.gguf"]
    reader = gguf.GGUFReader(tmp_path / "warm.repeng.gguf")
    text = {
        name: bytes(reader.get_field(name).parts[-1]).decode()
        for name in ("general.architecture", "controlvector.model_hint")
    }
    assert text == {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == LAYERS - 1
    tensors = {t.name: t for t in reader.tensors}
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]  # llama.cpp refuses layer 0
    for layer in (1, 2, 3):
        t = tensors[f"direction.{layer}"]
        assert t.tensor_type == gguf.GGMLQuantizationType.F32 and list(t.shape) == [D]
        expected = vectors.at("warm", "mean_difference", layer, "resid_post") * vectors.norms[layer, 1]
        np.testing.assert_array_equal(t.data, expected.astype(np.float32))
    with pytest.raises(DriftbookError, match="no layer 0"):
        formats.write_repeng({0: np.ones(D)}, "llama", tmp_path / "none.gguf")


# ----------------------------------------------------------------------------------------------------- steering-vectors


def test_a_steering_vectors_file_is_its_layer_activations(tmp_path):
    vectors = vectors_with_records()
    (path,) = formats.export(vectors, ["steering-vectors"], tmp_path, ["terse"], "chosen")
    assert path.name == "terse.steering_vectors.safetensors"
    with safe_open(path, "np") as file:
        assert file.metadata() == {"layer_type": "decoder_block"} and list(file.keys()) == ["2"]
        found = file.get_tensor("2")
    expected = vectors.at("terse", "mean_difference", 2, "resid_post") * vectors.norms[2, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_coefficient_in_other_tools_is_a_coefficient_here():
    """Both add ``coefficient * vector`` to a block's output at every token; so does a plain hook with the file's
    numbers."""
    model, other = loaded("llama", "sdpa"), fresh("llama", "sdpa")
    vectors, layer, coefficient = vectors_with_records(), 2, 0.7
    unit = float(vectors.norms[layer, 1])
    v = torch.from_numpy(vectors.at("warm", "mean_difference", layer, "resid_post"))
    tap = SteerTap(layer, "resid_post", v, coefficient * unit)
    ids = (5, 9, 30, 41)
    ((_, ours),) = list(replay(model, [TokenSequence(ids[:1], ids[1:])], [tap], logits=True))
    exported = torch.from_numpy(formats.scaled(vectors, "warm")[layer])
    handle = other.hooks.blocks[layer].register_forward_hook(lambda m, args, out: out + coefficient * exported)
    np.testing.assert_allclose(ours[0].numpy(), full_logits(other, ids), atol=1e-4)
    handle.remove()


def test_what_cannot_be_exported_is_said(tmp_path):
    vectors = vectors_with_records()
    vectors.records = [
        type(r)(**{**r.__dict__, "source": "combined: a - b"}) if r.trait == "warm" else r for r in vectors.records
    ]
    said = []
    written = formats.export(vectors, list(formats.FORMATS), tmp_path, say=said.append)
    assert len(written) == 5 and said == [
        "warm: a combination has no raw mean difference, so no warm.persona_vectors.pt"
    ]
    with pytest.raises(DriftbookError, match="warm is a combination of unit vectors"):
        formats.to_persona_vectors(vectors, "warm")
    with pytest.raises(DriftbookError, match="there is no format 'pickle'; there are persona-vectors, repeng"):
        formats.export(vectors, ["pickle"], tmp_path)
    with pytest.raises(DriftbookError, match="no vector for trait 'calm'"):
        formats.export(vectors, ["repeng"], tmp_path, ["calm"])
