"""Clusterings ignore the order of rows, say how stable they are, can be matched, and grow without a refit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, pairwise_distances

from driftbook.discovery import clustering as c
from driftbook.errors import DriftbookError

pytestmark = pytest.mark.numeric

K_MEANS = ("minibatch_kmeans", "kmeans", "spherical_kmeans")


def sphere(n, groups, noise=0.05, width=64, seed=0, uniform=0):
    """Unit rows in planted groups, and ``uniform`` rows of no group (-1)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = rng.integers(0, groups, n)
    X = centres[truth] + rng.standard_normal((n, width)) * noise
    X = np.concatenate([X, rng.standard_normal((uniform, width))])
    truth = np.concatenate([truth, np.full(uniform, -1)])
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32), truth


@pytest.fixture(scope="module")
def planted():
    return sphere(1500, 12)


@pytest.mark.parametrize("method", [*K_MEANS, "evoc"])
def test_permuted_rows_give_the_same_clusters(method, planted):
    X, truth = planted
    shuffled = np.random.default_rng(1).permutation(len(X))
    one = c.fit(method, X, 12, seed=3)
    two = c.fit(method, X[shuffled], 12, seed=3)
    assert np.array_equal(one.labels[shuffled], two.labels)
    assert np.array_equal(one.centres, two.centres)
    assert np.array_equal(one.distance[shuffled], two.distance)
    assert adjusted_rand_score(one.labels[shuffled], two.labels) == 1.0
    assert adjusted_rand_score(truth, one.labels) > 0.8


def test_keys_from_the_text_decide_the_order_even_where_rows_differ_a_little(planted):
    X, _ = planted
    keys = np.random.default_rng(2).permutation(len(X))
    nudged = X + np.random.default_rng(3).normal(0, 1e-6, X.shape).astype(np.float32)
    one = c.fit("minibatch_kmeans", X, 12, keys=keys)
    two = c.fit("minibatch_kmeans", nudged, 12, keys=keys)
    assert adjusted_rand_score(one.labels, two.labels) == 1.0


def test_row_keys_see_every_value():
    X = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    keys = c.row_keys(X)
    assert len(np.unique(keys)) == 50
    X[3, 6] = np.nextafter(X[3, 6], np.float32(9))
    assert (c.row_keys(X) != keys).tolist() == [i == 3 for i in range(50)]


@pytest.mark.parametrize("method", K_MEANS)
def test_distance_and_margin_are_those_of_the_centres(method, planted):
    X, _ = planted
    found = c.fit(method, X, 12)
    distances = np.sort(pairwise_distances(X.astype(np.float64), found.centres.astype(np.float64)), axis=1)
    # fp32 squares of unit rows lose about 1e-4 of a small distance
    assert np.allclose(found.distance, distances[:, 0], atol=2e-3)
    assert np.allclose(found.margin, distances[:, 1] - distances[:, 0], atol=2e-3)
    assert found.labels.dtype == np.int32 and found.noise_share == 0
    assert (np.diff(np.bincount(found.labels)) <= 0).all()  # the largest first


def test_a_perfect_k_means_is_found_and_kmeans_is_as_good_as_sklearns(planted):
    X, truth = planted
    best = [c.fit("kmeans", X, 12, seed=s) for s in range(4)]
    theirs = [KMeans(12, n_init=1, random_state=s).fit(X).inertia_ for s in range(4)]
    ours = [float((b.distance.astype(np.float64) ** 2).sum()) for b in best]
    assert min(ours) < min(theirs) * 1.02
    assert max(adjusted_rand_score(truth, b.labels) for b in best) > 0.99


def test_weights_act_as_copies(planted):
    X = planted[0][:300]
    start = X[:5][None]
    weights = np.random.default_rng(0).integers(0, 4, 300)
    weighted, _ = c.lloyd(X, weights[None].astype(np.float32), start, 20)
    copied, _ = c.lloyd(np.repeat(X, weights, axis=0), np.ones((1, weights.sum()), np.float32), start, 20)
    assert np.allclose(weighted, copied, atol=1e-5)


def test_several_weightings_at_once_are_each_alone(planted):
    X = planted[0][:400]
    weights = np.random.default_rng(0).integers(0, 3, (4, 400)).astype(np.float32)
    start = c.plus_plus(X, weights, 6, seed=0)
    together, labels = c.lloyd(X, weights, start, 5, tolerance=0)
    for b in range(4):
        alone, own = c.lloyd(X, weights[b : b + 1], start[b : b + 1], 5, tolerance=0)
        assert np.allclose(together[b], alone[0], atol=1e-5) and np.array_equal(labels[b], own[0])


def test_noise_has_the_nearest_centres_distance_and_no_margin():
    X, _ = sphere(600, 5, noise=0.03, uniform=150)
    found = c.fit("evoc", X, "auto", min_cluster_size=15)
    noise = found.labels < 0
    assert 0 < found.noise_share == noise.mean() < 0.5
    assert np.isnan(found.margin[noise]).all() and np.isfinite(found.margin[~noise]).all()
    assert np.allclose(found.distance[noise], c.assign(X[noise], found.centres)[1])


HDBSCAN = """
import numpy as np
from driftbook.discovery import clustering as c
rng = np.random.default_rng(0)
centres, truth = rng.standard_normal((4, 6)) * 2, rng.integers(0, 4, 160)
X = np.concatenate([centres[truth] + rng.standard_normal((160, 6)) * 0.05, rng.uniform(-6, 6, (40, 6))])
found = c.fit("hdbscan", X, "auto", min_cluster_size=8)
assert found.k == 4 and (found.labels[160:] == -1).mean() > 0.9 and (found.labels[:160] >= 0).mean() > 0.9
shuffled = rng.permutation(200)
assert np.array_equal(c.fit("hdbscan", X[shuffled], min_cluster_size=8).labels, found.labels[shuffled])
assert np.nanmean(c.stability(X, found, bootstraps=3, min_cluster_size=5).jaccard) > 0.9
strangers = rng.uniform(-6, 6, (30, 6))
updated = c.update(found, strangers)
assert (updated.labels == -1).mean() > 0.9 and updated.refit
"""


def test_hdbscan_leaves_noise_as_noise_whatever_the_order():
    # compiling fast_hdbscan takes half a minute in every process; interpreted, a small problem takes two seconds
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", HDBSCAN], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_given_groupings_are_taken_as_they_are():
    X, _ = sphere(40, 4)
    prompts = [f"p{i % 7}" for i in range(40)]
    found = c.fit("per_prompt", X, groups=prompts)
    assert adjusted_rand_score(prompts, found.labels) == 1.0
    assert np.allclose(found.centres[found.labels[0]], X[::7].mean(axis=0), atol=1e-6)
    assert (c.stability(X, found, bootstraps=3).jaccard == 1).all()
    with pytest.raises(ValueError, match="needs groups"):
        c.fit("family", X)


def test_the_number_of_clusters_is_found_where_there_is_one():
    X, _ = sphere(900, 8)
    found = c.fit("kmeans", X, "auto")
    assert found.k == 8
    assert dict(found.choice)[8] == max(score for _, score in found.choice)


def test_bad_input_is_refused_with_a_remedy():
    X, _ = sphere(30, 3)
    with pytest.raises(DriftbookError, match="only 10 distinct texts"):
        c.fit("kmeans", np.tile(X[:10], (3, 1)), 12)
    with pytest.raises(DriftbookError, match="choose one of minibatch_kmeans"):
        c.fit("dbscan", X)
    with pytest.raises(DriftbookError, match="NaN"):
        c.fit("kmeans", np.full_like(X, np.nan), 3)
    with pytest.raises(DriftbookError, match="max_texts"):
        c.fit("kmeans", X[:1], 1)


# stability


def test_planted_groups_are_stable_and_no_groups_are_not(planted):
    X, _ = planted
    found = c.fit("kmeans", X, 12, seed=1)
    structured = c.stability(X, found)
    bare = c.structureless(X, 0)
    chance = c.stability(bare, c.fit("kmeans", bare, 12))
    assert structured.ari.mean() > 0.8 > 0.3 > chance.ari.mean()
    assert np.nanmean(structured.jaccard) > 0.8 > 0.5 > np.nanmean(chance.jaccard)
    assert (structured.low <= structured.high).all() and (structured.high <= 1).all()


def test_a_group_split_at_random_is_the_unstable_one():
    X, truth = sphere(800, 4, noise=0.04)
    found = c.fit("kmeans", X, 4)
    assert adjusted_rand_score(found.labels, truth) == 1.0
    split = found.labels.copy()
    split[(found.labels == 0) & (np.random.default_rng(0).random(800) < 0.5)] = 4
    jaccard = c.compare_draws(split, np.tile(found.labels, (3, 1)), np.ones((3, 800), bool), 5).jaccard
    assert np.allclose(jaccard[1:4], 1) and (jaccard[[0, 4]] < 0.65).all()


def test_stability_draws_prompts_not_texts(monkeypatch):
    """Every group is the ten answers of one prompt, which come into a draw together or not at all."""
    X, truth = sphere(400, 40, noise=0.02)
    found = c.fit("per_prompt", X, groups=truth.astype(str))
    found = replace(found, method="kmeans")
    drawn, compare = [], c.compare_draws
    monkeypatch.setattr(c, "compare_draws", lambda *given: drawn.append(given[2]) or compare(*given))
    c.stability(X, found, prompts=truth, bootstraps=20)
    order = c.content_order(X)
    for kept in drawn[0]:
        groups = [kept[truth[order] == p] for p in range(40)]
        assert all(g.all() or not g.any() for g in groups)
    assert 0.55 < drawn[0].mean() < 0.72  # 1 - 1/e


def test_stability_of_a_density_method(planted):
    X, _ = planted
    found = c.fit("evoc", X, 12)
    assert np.nanmean(c.stability(X, found, bootstraps=3).jaccard) > 0.9


def test_stability_useswhole_prompts_within_its_bound():
    prompts = np.repeat(np.arange(300), 5)
    chosen, unit = c.whole_prompts(np.arange(1500), prompts, 400, np.random.default_rng(0))
    assert 300 < len(chosen) <= 400 and (np.bincount(unit) == 5).all()


# quality


def test_silhouette_tells_tight_from_loose():
    tight, truth = sphere(400, 4, noise=0.02)
    loose, _ = sphere(400, 4, noise=0.15)
    scores = []
    for X in (tight, loose):
        found = c.fit("per_prompt", X, groups=truth.astype(str))
        scores.append(c.silhouette(X, found.labels)[0])
    assert scores[0] > 0.8 > scores[1]


# growth


@pytest.mark.parametrize("method", K_MEANS)
def test_new_rows_are_assigned_and_move_the_centres_by_their_weight(method, planted):
    X, _ = planted
    found = c.fit(method, X[:1400], 12)
    new = X[1400:]
    updated = c.update(found, new)
    assert np.array_equal(updated.labels, c.assign(new, found.centres)[0])
    assert updated.state.counts.sum() == 1500 and not updated.refit
    if method == "kmeans":  # its centres are the means of their rows, so means of all rows must come out
        everything = np.concatenate([found.labels, updated.labels])
        for cluster in range(12):
            assert np.allclose(updated.state.position[cluster], X[everything == cluster].mean(axis=0), atol=1e-3)


def test_updates_in_two_steps_are_one_update(planted):
    X, _ = planted
    found = c.fit("kmeans", X[:1000], 12)
    first = c.update(found, X[1000:1200])
    second = c.update(found, X[1200:1400], first.state)
    assert second.state.added == 400 and second.state.counts.sum() == 1400


def test_rows_of_a_new_kind_call_for_a_refit(planted):
    X, _ = planted
    found = c.fit("kmeans", X, 12)
    strangers, _ = sphere(60, 2, seed=9)
    updated = c.update(found, strangers)
    assert updated.refit and "outside" in updated.reason


def test_more_rows_than_were_fitted_call_for_a_refit(planted):
    X, _ = planted
    found = c.fit("kmeans", X[:700], 12)
    assert "since a fit on 700" in c.update(found, X[700:]).reason


def test_a_warm_start_begins_where_it_is_told(planted):
    X, _ = planted
    found = c.fit("kmeans", X[:1000], 12)
    for method in K_MEANS:
        again = c.fit(method, X, warm_start=found.centres)
        assert pairwise_distances(again.centres, found.centres, metric="cosine").min(axis=1).max() < 0.1
