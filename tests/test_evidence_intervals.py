"""Intervals and fixed-sample tests against scipy, statsmodels and scikit-learn, and their behaviour when texts share
prompts."""

import itertools

import numpy as np
import pytest
import scipy.stats
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from driftbook.auc import weighted_auc
from driftbook.evidence.eprocess import e_path
from driftbook.evidence.intervals import (
    JS,
    auc_interval,
    detectable,
    prompts_needed,
    sign_flip_p,
    student_mean,
    summary_interval,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 113)])
def test_wilson_agrees_with_statsmodels(k, n):
    assert wilson(k, n, 0.1)[1:] == pytest.approx(proportion_confint(k, n, 0.1, method="wilson"))


def test_auc_agrees_with_scikit_learn_and_mann_whitney_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, 80) / 4, rng.random(80) < 0.4
    weights = rng.integers(0, 4, (3, 80))
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert weighted_auc(scores, positive, weights) == pytest.approx(expected)
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    estimate = auc_interval(scores, positive, np.arange(80)).estimate
    assert estimate == pytest.approx(u / (positive.sum() * (~positive).sum()))


@pytest.mark.parametrize("tests", [1, 20])
def test_the_detectable_effect_is_found_four_times_in_five(tests):
    rng, n = np.random.default_rng(0), 400
    effect = detectable(norm.isf(0.025) / np.sqrt(n), tests)
    means = effect + rng.normal(size=20_000) / np.sqrt(n)
    found = np.abs(means) * np.sqrt(n) > norm.isf(0.025 / tests)
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_auc_interval_covers_the_truth_when_texts_share_prompts():
    rng, covered, naive = np.random.default_rng(1), 0, 0
    for run in range(60):
        mood = np.repeat(
            rng.normal(size=40), 10
        )  # ten texts a prompt, that move together; half of the prompts' texts per side
        positive = np.tile(np.arange(10) < 5, 40)
        helps = (
            np.repeat(rng.normal(size=40), 10) * positive
        )  # on some prompts the label works, on others it is the wrong way round
        scores = mood + 2 * helps + 0.3 * rng.normal(size=400)
        by_prompt = auc_interval(scores, positive, np.repeat(np.arange(40), 10), alpha=0.1, resamples=200, seed=run)
        by_text = auc_interval(scores, positive, np.arange(400), alpha=0.1, resamples=200, seed=run)
        covered += by_prompt.low <= 0.5 <= by_prompt.high
        naive += by_text.low <= 0.5 <= by_text.high
    assert covered >= 48  # 90% of 60, less three standard errors
    assert naive < 36  # what treating texts as independent would have done


def test_missing_scores_and_one_sided_tables_are_refused():
    with pytest.raises(ValueError, match="missing"):
        auc_interval(np.array([0.1, np.nan]), np.array([True, False]), np.arange(2))
    with pytest.raises(ValueError, match="both sides"):
        auc_interval(np.array([0.1, 0.2]), np.array([True, True]), np.arange(2))


def test_students_interval_is_that_of_scipy_and_says_nothing_of_a_single_prompt():
    values = np.random.default_rng(3).normal(size=7)
    found = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert student_mean(values) == pytest.approx((values.mean(), found.low, found.high))
    assert student_mean(np.array([0.3])) == (0.3, -np.inf, np.inf)
    with pytest.raises(ValueError, match="no prompts"):
        student_mean(np.array([]))


@pytest.mark.parametrize("prompts", [2, 3, 5, 8, 30])
def test_the_interval_of_a_share_holds_it_however_few_the_prompts(prompts):
    rng, covered = np.random.default_rng(prompts), 0
    for share in rng.beta(2, 5, 1000):  # a prompt's own share of answers lies around it
        low, high = summary_interval(rng.binomial(4, rng.beta(8 * share, 8 * (1 - share), prompts)) / 4)[1:]
        covered += low <= share <= high
    assert covered >= 930  # 95% of 1,000, less three standard errors
    assert summary_interval(np.ones(3)).low < 0.5  # three of three are not told apart from one half


def test_a_divergence_of_models_that_are_the_same_is_nothing_for_sure_and_of_one_prompt_anything():
    assert student_mean(np.zeros(12), within=JS) == (0, 0, 0)
    assert student_mean(np.array([0.05]), within=JS) == (0.05, 0, np.log(2))
    assert student_mean(np.array([0.0, 0.05, 0.6]), within=JS)[1:] == (0, np.log(2))


def test_a_difference_of_few_prompts_may_be_below_nothing():
    assert student_mean(np.array([0.1, 0.3])).low < 0  # in [0, 1], and yet no share


def test_sign_flips_agree_with_full_enumeration():
    x = np.array([0.9, 0.7, 0.4, 0.8, 0.6, 0.75, 0.55, 0.3])
    d = x - 0.5
    sums = [np.dot(s, d) for s in itertools.product([-1, 1], repeat=8)]
    exact = np.mean([s >= d.sum() - 1e-12 for s in sums])
    assert sign_flip_p(x, flips=20000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.full(10, 0.5)) == 1.0


def test_sign_flip_p_is_uniform_or_larger_under_the_null():
    rng = np.random.default_rng(4)
    p = np.array([sign_flip_p(rng.choice([0, 0.5, 1], size=40), flips=199, seed=i) for i in range(400)])
    assert (p <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)
    assert (p <= 0.2).mean() > 0.1


def test_planned_number_of_prompts_gives_about_the_planned_power():
    rng = np.random.default_rng(5)
    for win, hypotheses in [(0.75, 10), (0.65, 1)]:
        n = prompts_needed(win, np.sqrt(win * (1 - win)), 0.02, hypotheses)
        x = (rng.random((400, n)) < win).astype(float)
        power = (e_path(x, 0.02)[:, -1] >= hypotheses / 0.05).mean()
        assert 0.65 < power < 0.95
    assert prompts_needed(0.52, 0.3, 0.02, 1) is None
