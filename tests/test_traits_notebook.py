"""The cells of the traits notebook with all that its section offers, on a tiny model whose numbers say nothing."""

import json
from pathlib import Path

import numpy as np

from driftbook.models import formats
from driftbook.models.vectors import VectorSet
from driftbook.workbook import runs
from driftbook.workbook.keys import code_cells
from models import saved

ROOT = Path(__file__).parent.parent


def test_every_option_of_the_section_reaches_its_cell(tmp_path, monkeypatch):
    folder = saved(tmp_path / "model")
    rows = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    formats.write_persona_vectors(rows, tmp_path / "sycophancy.pt")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(runs.RUN_DIR, str(tmp_path / "run"))
    monkeypatch.setenv(runs.OUTPUTS, str(tmp_path / "outputs"))
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    names = {
        "experiment": "tiny",
        "seed": 0,
        "base": {"model": str(folder), "dtype": "float32", "device": "cpu"},
        "names": {"base": "tiny", "changed": "frank"},
        "intervention": {"kind": "steer", "trait": "frank", "coefficient": 0.3},
        "engine": {"kind": "local"},
        "traits": {
            "files": ["params/traits/sycophancy.json", "params/traits/directness.json"],
            "method": "gradient",
            "compare": ["mean_difference"],
            "choose": "steering",
            "steering": {"layers": 2, "prompts": 2, "max_new_tokens": 4, "max_nats": 50, "max_repetition": 1.0},
            "scenarios": "all",
            "instructed": {"samples": 1, "max_new_tokens": 8, "min_words": 1, "max_repetition": 1.0},
            "combine": [{"name": "frank", "add": ["directness"], "orthogonal_to": ["sycophancy"]}],
            "imports": {"sycophancy": str(tmp_path / "sycophancy.pt")},
            "depth": [0.25, 0.8],
            "folds": 2,
            "shuffles": 1,
            "max_scenarios": 6,
            "null_vectors": 8,
            "dose": {"coefficients": [-0.3, 0.0, 0.3], "prompts": 2, "max_new_tokens": 4},
        },
    }
    for source in code_cells(ROOT / "notebooks/traits.ipynb"):
        exec(compile(source, "traits.ipynb", "exec"), names)
    vectors = VectorSet.load(tmp_path / "run/data")
    assert vectors.traits == ["sycophancy", "directness", "frank"]
    for layer in vectors.layers:
        for method in ("gradient", "mean_difference"):
            frank, other = (vectors.at(t, method, layer, "resid_post") for t in ("frank", "sycophancy"))
            assert abs(frank @ other) < 1e-5
            np.testing.assert_allclose(other, rows[layer + 1] / np.linalg.norm(rows[layer + 1]), atol=1e-6)
    by_steering = names["by_steering"].query("chosen and trait == 'frank'")
    assert vectors.chosen("frank").layer == by_steering.layer.item()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["answers_directness"] == 12 and 4 <= metrics["answers_kept_directness"] <= 12
    assert {"heldout_auc_frank", "words_auc_directness", "layer_sycophancy"} <= set(metrics)
    written = {p.name for p in (tmp_path / "run/data").iterdir()}
    assert {
        "vectors.safetensors",
        "doses.parquet",
        "layers_by_steering.parquet",
        "answers_directness.parquet",
    } <= written
    assert set(names["doses"].trait) == {"frank"}
