"""The clocks and the data of the embedding and clustering benches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from driftbench import discovery_speed as benchmarks
from driftbook.discovery.embeddings import Identity


def test_works_take_turns_and_the_best_time_counts():
    turns = []
    works = {name: (lambda name=name: turns.append(name) or len(turns)) for name in "ab"}
    times, results = benchmarks.alternate(works, 3)
    assert turns == ["a", "b"] * 3 and results == {"a": 5, "b": 6}
    times["seconds"] = [3.0, 5.0, 1.0, 9.0, 2.0, 4.0]
    assert benchmarks.best(times).to_dict() == {"a": 1.0, "b": 4.0}


def test_ratios_are_taken_turn_by_turn():
    times = pd.DataFrame(
        {"work": ["a", "b"] * 3, "repeat": [0, 0, 1, 1, 2, 2], "seconds": [2.0, 1.0, 20.0, 9.0, 3.0, 6.0]}
    )
    assert benchmarks.paired(times, "a", "b") == 2.0


def test_a_map_agrees_where_neighbours_are_of_one_group():
    truth = np.arange(400) % 2
    rng = np.random.default_rng(0)
    placed = np.c_[100 * truth, np.zeros(400)] + rng.normal(size=(400, 2))
    assert benchmarks.map_agreement(placed, truth, 0) == 1
    assert 0.3 < benchmarks.map_agreement(rng.normal(size=(400, 2)), truth, 0) < 0.7


def test_planted_rows_are_unit_and_nearest_to_their_own_group():
    X, truth = benchmarks.planted_sphere(500, 64, 6, 0.05, seed=1)
    assert np.allclose(np.linalg.norm(X, axis=1), 1, atol=1e-5)
    middles = np.stack([X[truth == g].mean(axis=0) for g in range(6)])
    assert ((X @ middles.T).argmax(axis=1) == truth).all()
    assert np.array_equal(X, benchmarks.planted_sphere(500, 64, 6, 0.05, seed=1)[0])


def test_the_caches_own_speed_is_measured_on_rows_that_come_back(tmp_path):
    table = benchmarks.cache_speed(tmp_path, Identity("m", "r", "mean", True, "", "float32", None), 600, 16, seed=0)
    assert table["work"].tolist() == ["write", "read"] and (table["rows_per_s"] > 0).all()


def test_the_repositorys_sentences_are_many():
    texts = benchmarks.natural_texts(Path(__file__).parents[1])
    assert len(set(texts)) > 500 and all(t.strip() for t in texts)


def test_methods_and_sentences_are_compared():
    X, truth = benchmarks.planted_sphere(300, 32, 5, 0.03, seed=0)
    methods = benchmarks.compare_methods(["kmeans", "spherical_kmeans"], X, truth, 5, seed=0)
    assert (methods["ari_to_truth"] > 0.6).all() and (methods["clusters"] == 5).all()
    by_k = benchmarks.stability_by_k(X, (5, 20), seed=0).set_index("clusters")
    assert by_k.loc[5, "stability_ari"] > by_k.loc[20, "stability_ari"] > 0
    assert by_k.loc[5, "silhouette"] == pytest.approx(by_k["silhouette"].max())
