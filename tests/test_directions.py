"""Directions against scikit-learn and brute force, and what their held-out quality may not see."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from driftbook.auc import auc
from driftbook.models import directions

pytestmark = pytest.mark.numeric


def fit(states, labels, scenarios, method="probe", **more) -> directions.Fit:
    return directions.fit([directions.Examples(states, labels, scenarios)], method=method, **more)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def contrast(scenarios: int = 30, points: int = 3, d: int = 20, strength: float = 1.0, seed: int = 0):
    """Pairs of one scenario: a shared random place, plus or minus a planted direction per point."""
    rng = np.random.default_rng(seed)
    planted = rng.normal(size=(points, d))
    planted /= np.linalg.norm(planted, axis=-1, keepdims=True)
    place = rng.normal(size=(scenarios, 1, points, d))
    sign = np.array([1, -1])[None, :, None, None]
    states = place + sign * strength * planted + 0.3 * rng.normal(size=(scenarios, 2, points, d))
    labels = np.tile([1, 0], scenarios)
    return states.reshape(-1, points, d).astype(np.float32), labels, np.repeat(np.arange(scenarios), 2), planted


@pytest.mark.parametrize(
    ("n", "d", "strength"),
    [(40, 15, 0.3), (40, 200, 0.3), (60, 30, 3.0), (24, 576, 0.0)],
    ids=["more rows", "more dimensions", "separable", "noise"],
)
def test_the_probe_is_sklearns_logistic_regression(n, d, strength):
    states, labels, _, _ = contrast(n // 2, 4, d, strength)
    x = directions.rows(states, "probe")
    assert torch.allclose(x.norm(dim=-1), torch.ones(4, n), atol=1e-5)
    found = directions.logistic(x, torch.from_numpy(labels).float()).numpy()
    for p in range(4):
        expected = LogisticRegression(C=100, tol=1e-10, max_iter=10_000).fit(x[p].double().numpy(), labels)
        assert cosine(found[p], expected.coef_[0]) > 0.9999
        assert np.linalg.norm(found[p]) == pytest.approx(np.linalg.norm(expected.coef_[0]), rel=1e-3)


def test_the_intercept_is_free():
    """Unequal groups far from the origin: a penalized intercept would turn the direction."""
    rng = np.random.default_rng(1)
    labels = np.array([1] * 8 + [0] * 40)
    x = rng.normal(size=(48, 10)) + 5.0
    x[labels == 1, 0] += 1.5
    found = directions.logistic(torch.from_numpy(x)[None], torch.from_numpy(labels).float()).numpy()[0]
    expected = LogisticRegression(C=100, tol=1e-10, max_iter=10_000).fit(x, labels).coef_[0]
    assert cosine(found, expected) > 0.9999


@pytest.mark.parametrize("method", ["mean_difference", "probe", "pca"])
def test_a_planted_direction_is_found_and_points_to_label_one(method):
    states, labels, scenarios, planted = contrast(60, strength=2.0)
    fitted = fit(states, labels, scenarios, method)
    assert fitted.directions.shape == (3, 20)
    np.testing.assert_allclose(np.linalg.norm(fitted.directions, axis=-1), 1, rtol=1e-5)
    for found, true in zip(fitted.directions, planted, strict=True):
        assert cosine(found, true) > (0.75 if method == "probe" else 0.9)
    assert (fitted.heldout_auc > 0.98).all()
    swapped = fit(states, 1 - labels, scenarios, method)
    assert all(cosine(a, b) < -0.99 for a, b in zip(fitted.directions, swapped.directions, strict=True))


def test_mean_difference_and_pca_are_what_they_say():
    states, labels, scenarios, _ = contrast(25, strength=0.5)
    x = directions.rows(states, "pca")
    mean, norms = directions.directions_of(x, labels, scenarios, "mean_difference")
    pca, _ = directions.directions_of(x, labels, scenarios, "pca")
    for p in range(states.shape[1]):
        difference = states[labels == 1, p].mean(0) - states[labels == 0, p].mean(0)
        np.testing.assert_allclose(mean[p], difference / np.linalg.norm(difference), atol=1e-5)
        assert norms[p] == pytest.approx(np.linalg.norm(difference), rel=1e-5)
        paired = states[labels == 1, p] - states[labels == 0, p]
        values, vectors = np.linalg.eigh(paired.T @ paired)  # uncentred
        first = vectors[:, -1] * np.sign(vectors[:, -1] @ difference)
        np.testing.assert_allclose(pca[p], first, atol=1e-4)
        assert values[-1] > 1.01 * values[-2]


def test_auc_is_sklearns_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    scores = rng.integers(0, 6, (4, 80)).astype(float) + labels
    found = auc(scores, labels)
    np.testing.assert_allclose(found, [roc_auc_score(labels, s) for s in scores])
    assert auc(np.zeros((1, 80)), labels)[0] == 0.5


def test_a_scenario_never_stands_on_both_sides():
    """Answers to one scenario with one label share a random offset: split by row, the test set is known by heart."""
    rng = np.random.default_rng(0)
    count, copies, d = 40, 4, 120
    offset = rng.normal(size=(count, 2, 1, 1, d))  # one per scenario and label, telling nothing about other scenarios
    states = (offset + 0.05 * rng.normal(size=(count, 2, copies, 1, d))).reshape(-1, 1, d).astype(np.float32)
    labels = np.tile(np.repeat([1, 0], copies), count)
    scenarios = np.repeat(np.arange(count), 2 * copies)
    by_scenario = fit(states, labels, scenarios, "probe", shuffles=1).heldout_auc[0]
    by_row = fit(states, labels, np.arange(len(labels)), "probe", shuffles=1).heldout_auc[0]
    assert by_row > 0.9
    assert 0.3 < by_scenario < 0.7


@pytest.mark.parametrize("method", ["mean_difference", "probe", "pca"])
def test_the_null_is_near_one_half(method):
    """Also where the trait is plain: flipped labels leave the pairs in place, and nothing to find."""
    states, labels, scenarios, _ = contrast(60, 4, strength=2.0)
    fitted = fit(states, labels, scenarios, method, shuffles=20)
    assert np.abs(fitted.null_auc - 0.5).max() < 0.15
    noise, labels, scenarios, _ = contrast(100, 4, strength=0.0)
    assert np.abs(fit(noise, labels, scenarios, method).heldout_auc.mean() - 0.5) < 0.1


def test_the_same_seed_gives_the_same_fit():
    data = contrast(20)[:3]
    a, b, c = (fit(*data, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.heldout_auc, b.heldout_auc)
    np.testing.assert_array_equal(a.null_auc, b.null_auc)
    np.testing.assert_allclose(a.directions, c.directions, atol=1e-5)  # folds do not touch the direction itself


def test_too_few_scenarios_are_refused():
    states, labels, scenarios, _ = contrast(4)
    with pytest.raises(ValueError, match="4 scenarios cannot be split into 5 folds"):
        fit(states, labels, scenarios, folds=5)
    with pytest.raises(ValueError, match="unknown method 'svm'"):
        directions.directions_of(directions.rows(states, "svm"), labels, scenarios, "svm")


def test_a_massive_dimension_shows_and_does_not_decide_the_probe():
    states, labels, scenarios, _ = contrast(60, 1, strength=1.0)
    states[:, 0, 3] += 1000 + 2 * labels + np.random.default_rng(0).normal(size=len(labels)) * 60
    mean = fit(states, labels, scenarios, "mean_difference", shuffles=1)
    probe = fit(states, labels, scenarios, "probe", shuffles=1)
    assert directions.largest_dimension_share(mean.directions)[0] == pytest.approx(mean.directions[0, 3] ** 2, rel=1e-4)
    assert mean.directions[0, 3] ** 2 > 0.9
    assert probe.directions[0, 3] ** 2 < 1e-6
    assert mean.heldout_auc[0] < 0.7 < 0.85 < probe.heldout_auc[0]
    assert directions.largest_dimension_share(np.eye(5)[:1])[0] == 1
    assert directions.largest_dimension_share(np.ones((1, 4)))[0] == 0.25


# --------------------------------------------------------------------------------------------------------- combinations


def examples(planted: np.ndarray, scenarios: int = 60, strength: float = 2.0, seed: int = 0) -> directions.Examples:
    """Pairs that differ along ``planted`` [points, d] alone."""
    rng = np.random.default_rng(seed)
    points, d = planted.shape
    sign = np.array([1, -1])[None, :, None, None]
    states = rng.normal(size=(scenarios, 1, points, d)) + sign * strength * planted
    states = (states + 0.1 * rng.normal(size=(scenarios, 2, points, d))).reshape(-1, points, d).astype(np.float32)
    return directions.Examples(states, np.tile([1, 0], scenarios), np.repeat(np.arange(scenarios), 2))


def axes(*which: int, points: int = 2, d: int = 20) -> np.ndarray:
    v = np.zeros((points, d))
    v[:, list(which)] = 1
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_planted_directions_are_added_subtracted_and_made_orthogonal():
    a, b, c = (examples(axes(i), seed=i) for i in (3, 7, 11))
    both = examples(axes(3, 7), seed=5)
    fitted = directions.fit([a, b], [c], method="mean_difference")
    for found in fitted.directions:
        expected = (np.eye(20)[3] + np.eye(20)[7] - np.eye(20)[11]) / np.sqrt(3)
        assert cosine(found, expected) > 0.99
    np.testing.assert_allclose(fitted.norms, np.sqrt(3), rtol=0.05)
    assert (fitted.heldout_auc > 0.9).all()  # it still reads all three, the subtracted one turned
    # What lies along b is taken out of a vector that was half of it.
    clean = directions.fit([both], (), [b], method="mean_difference")
    assert cosine(clean.directions[0], np.eye(20)[3]) > 0.99
    np.testing.assert_allclose(clean.norms, np.sqrt(0.5), rtol=0.05)
    assert (clean.heldout_auc > 0.95).all()


def test_gram_schmidt_leaves_nothing_along_any_of_the_others():
    rng = np.random.default_rng(0)
    add, subtract = [rng.normal(size=(3, 30))], [rng.normal(size=(3, 30)) * 50]
    others = [rng.normal(size=(3, 30)) for _ in range(4)]
    others[3] = others[0] + 1e-4 * others[3]  # nearly the same as another
    w, norms = directions.combine(add, subtract, others)
    np.testing.assert_allclose(np.linalg.norm(w, axis=-1), 1, rtol=1e-6)
    for other in others[:3]:
        along = np.einsum("pd,pd->p", w, other / np.linalg.norm(other, axis=-1, keepdims=True))
        np.testing.assert_allclose(along, 0, atol=1e-6)
    # The least-squares residual is the same thing by another way; lengths of the inputs do not matter.
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (*add, *subtract)]
    for p in range(3):
        basis = np.stack([o[p] for o in others], 1)
        target = unit[0][p] - unit[1][p]
        residual = target - basis @ np.linalg.lstsq(basis, target, rcond=1e-3)[0]
        assert cosine(w[p], residual) > 0.999 and norms[p] == pytest.approx(np.linalg.norm(residual), rel=1e-2)


def test_a_combination_that_cancels_is_refused_at_its_point():
    a = axes(3)
    b = a.copy()
    b[0] = axes(5)[0]
    with pytest.raises(directions.NothingLeft) as error:
        directions.combine([a], [b])
    assert error.value.point == 1
    with pytest.raises(directions.NothingLeft):
        directions.combine([a], (), [-2 * a])


def test_a_combination_is_judged_on_scenarios_that_no_part_saw():
    """Noise learned by heart: parts and their sum are at chance on held-out scenarios."""
    rng = np.random.default_rng(0)
    parts = [
        directions.Examples(
            rng.normal(size=(80, 1, 400)).astype(np.float32), np.tile([1, 0], 40), np.repeat(np.arange(40), 2)
        )
        for _ in range(2)
    ]
    fitted = directions.fit(parts, method="probe", shuffles=3)
    assert abs(fitted.heldout_auc[0] - 0.5) < 0.15 and abs(fitted.null_auc[0] - 0.5) < 0.15
    scores = np.einsum("npd,pd->n", parts[0].states, fitted.directions)
    assert auc(scores, parts[0].labels) > 0.9  # in the training set it is perfect


def test_a_given_direction_is_judged_as_it_is():
    one = examples(axes(4))
    given = directions.Examples(one.states, one.labels, one.scenarios, given=3 * axes(4))
    fitted = directions.fit([given], method="probe")
    np.testing.assert_allclose(fitted.directions, axes(4), atol=1e-6)
    np.testing.assert_allclose(fitted.norms, 3, rtol=1e-5)
    assert (fitted.heldout_auc > 0.95).all() and abs(fitted.null_auc.mean() - 0.5) < 0.2
    wrong = directions.Examples(one.states, one.labels, one.scenarios, given=axes(9))
    assert (directions.fit([wrong], method="probe").heldout_auc < 0.7).all()
