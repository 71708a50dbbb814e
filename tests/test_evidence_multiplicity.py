"""False discovery rates: against statsmodels where it knows the procedure, by seeded simulation where dependence
matters."""

import itertools

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from driftbook.evidence.eprocess import e_path, sequential_test
from driftbook.evidence.multiplicity import bh_adjusted, closed_e_bh, selected_alpha


def test_bh_agrees_with_statsmodels_and_leaves_missing_out():
    p = np.random.default_rng(0).random(40) ** 2
    assert bh_adjusted(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    with_gap = np.concatenate([p[:5], [np.nan], p[5:]])
    assert np.delete(bh_adjusted(with_gap), 5) == pytest.approx(bh_adjusted(p))
    assert np.isnan(bh_adjusted(with_gap)[5])


def plain_e_bh(e, alpha):
    """Wang & Ramdas 2022: BH on inverse e-values."""
    return multipletests(np.minimum(1 / np.maximum(e, 1e-300), 1), alpha=alpha, method="fdr_bh")[0]


def brute_force(e, alpha):
    """Closed e-BH by its definition, over all sets R and S."""
    index, best = range(len(e)), np.zeros(len(e), dtype=bool)
    subsets = [s for n in range(1, len(e) + 1) for s in itertools.combinations(index, n)]
    for chosen in subsets:
        r = set(chosen)
        if e[list(chosen)].min() < 1 / alpha:
            continue
        good = all(np.mean(e[list(s)]) >= len(r & set(s)) / (alpha * len(r)) - 1e-9 for s in subsets)
        if good and (len(r), e[list(chosen)].sum()) > (best.sum(), e[best].sum()):
            best = np.isin(index, chosen)
    return best


def test_closed_e_bh_is_its_definition():
    rng = np.random.default_rng(1)
    for _ in range(25):
        e = np.exp(rng.normal(1.5, 1.5, size=6))
        assert (closed_e_bh(e, 0.2) == brute_force(e, 0.2)).all()


def test_closed_e_bh_rejects_all_that_e_bh_rejects_and_sometimes_more():
    rng, more = np.random.default_rng(1), 0
    for _ in range(200):
        e = np.exp(rng.normal(2, 2, size=15))
        closed, plain = closed_e_bh(e, 0.1), plain_e_bh(e, 0.1)
        assert (closed | ~plain).all()
        more += closed.sum() > plain.sum()
    assert more > 20


def test_closed_e_bh_by_hand():
    assert closed_e_bh(np.array([38.9, 1.0]), 0.05).tolist() == [
        False,
        False,
    ]  # the mean with the other one is below 20
    assert closed_e_bh(np.array([39.0, 1.0]), 0.05).tolist() == [True, False]
    assert closed_e_bh(np.array([40.0, 25.0, 0.0]), 0.05).tolist() == [True, True, False]  # e-BH wants 30 of both
    assert closed_e_bh(np.array([1000.0, 19.9]), 0.05).tolist() == [True, False]  # each stands on its own
    assert closed_e_bh(np.array([]), 0.05).tolist() == []
    assert closed_e_bh(np.array([np.inf, 0.0]), 0.05).tolist() == [True, False]
    with pytest.raises(ValueError, match="e-values"):
        closed_e_bh(np.array([np.nan]), 0.05)


def test_false_discoveries_stay_rare_whatever_the_dependence():
    """Nulls that share one e-value, the worst dependence for counting: it is large for all or for none."""
    rng, shares = np.random.default_rng(7), []
    for _ in range(4000):
        null = 20.0 * (rng.random() < 0.05)  # mean 1
        e = np.concatenate([np.full(5, null), np.full(2, 40.0)])
        rejected = closed_e_bh(e, 0.1)
        shares.append(rejected[:5].sum() / max(1, rejected.sum()))
    assert 0.01 < np.mean(shares) <= 0.1


def simulate(rng, hypotheses=20, real=0, prompts=120, shift=0.1):
    """X of hypotheses that share prompts: two families of ten move together; the first ``real`` ones are true."""
    mood = rng.normal(size=(prompts, 2))[:, np.arange(hypotheses) % 2].T
    latent = 0.8 * mood + 0.6 * rng.normal(size=(hypotheses, prompts))
    x = np.clip(0.5 + 0.2 * latent, 0, 1)
    x[:real] = np.clip(x[:real] + shift, 0, 1)
    return x


def run(x, alpha=0.1, save=True):
    return sequential_test(lambda rows, columns: x[rows, columns], *x.shape, alpha=alpha, margin=0.0, save=save)


def test_no_discoveries_in_nearly_all_null_runs_of_dependent_hypotheses():
    rng = np.random.default_rng(2)
    assert np.mean([run(simulate(rng), save=False).rejected.any() for _ in range(100)]) <= 0.1


def test_false_discovery_rate_with_real_effects_and_optional_stopping():
    rng, shares, found, saved = np.random.default_rng(3), [], [], []
    for _ in range(60):
        looks = run(simulate(rng, real=5))
        shares.append(looks.rejected[5:].sum() / max(1, looks.rejected.sum()))
        found.append(looks.rejected[:5].mean())
        saved.append(np.isnan(looks.x).mean())
    assert np.mean(shares) <= 0.1
    assert np.mean(found) > 0.9
    assert np.mean(saved) > 0.4  # verdicts that were never bought


def test_a_rejected_hypothesis_stops_betting_and_buys_nothing_more():
    x = np.stack([np.ones(100), np.full(100, 0.5)])
    looks = run(x, alpha=0.05)
    assert looks.rejected.tolist() == [True, False]
    assert looks.stopped[0] == 8 and np.isnan(looks.x[0, 8:]).all()
    assert looks.e[0] == pytest.approx(e_path(np.ones(8))[-1])
    free = run(x, alpha=0.05, save=False)
    assert not np.isnan(free.x).any() and free.stopped.tolist() == [100, 100]
    assert free.e == pytest.approx(e_path(x)[:, -1])


def test_what_costs_nothing_is_decided_on_all_prompts_in_any_order():
    x = simulate(np.random.default_rng(5), real=4)
    one, two = run(x, save=False), run(x[:, ::-1], save=False)
    assert one.e == pytest.approx(two.e) and (one.rejected == two.rejected).all()


def test_who_reads_next_never_depends_on_what_is_not_yet_read():
    """Other verdicts in the future leave every purchase in the past as it was."""
    rng = np.random.default_rng(9)
    one = simulate(rng, real=5)
    two = one.copy()
    two[:, 60:] = simulate(rng)[:, 60:]
    a, b = run(one), run(two)
    assert (np.isnan(a.x[:, :60]) == np.isnan(b.x[:, :60])).all()
    batches = ~np.isnan(a.x).reshape(20, -1, 2)
    assert (batches.all(axis=2) == batches.any(axis=2)).all()  # whole batches, nobody lags behind


def test_intervals_of_the_selected_get_stricter_the_fewer_they_are():
    assert selected_alpha(0.05, 2, 10) == pytest.approx(0.01)
    assert selected_alpha(0.05, 0, 10) == pytest.approx(0.005)
    with pytest.raises(ValueError):
        selected_alpha(0.05, 3, 2)
