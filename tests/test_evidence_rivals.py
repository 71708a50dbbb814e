"""A claim beside a rival: what the rival knows is taken away, and nothing else."""

import numpy as np
import pytest

from driftbook.evidence.baselines import BagOfWords, beside, length_scores, together

PROMPTS = np.repeat(np.arange(150), 4)
UP = np.tile([True, True, False, False], 150)


def drawn(*shares, seed=0):
    """Booleans per text, each true with one probability on the claimed side and with another on the other."""
    rng = np.random.default_rng(seed)
    return [(rng.random(len(UP)) < np.where(UP, high, low)).astype(float) for high, low in shares]


def test_a_rival_that_is_stronger_but_about_something_else_takes_nothing_away():
    claim, other = drawn((0.6, 0.3), (0.9, 0.1))
    found = beside(claim, UP, other, PROMPTS)
    assert found.auc.estimate > 0.85 and found.verdict == "adds"
    assert found.share.estimate == pytest.approx(0.15 / 0.4, abs=0.08)
    assert found.share.low < 0.15 / 0.4 < found.share.high


def test_a_claim_that_only_copies_its_rival_is_explained_and_a_blind_rival_explains_nothing():
    (other,) = drawn((0.9, 0.1))
    copies = other * (np.random.default_rng(1).random(len(other)) < 0.5)
    found = beside(copies, UP, other, PROMPTS)
    assert found.correlation > 0.3 and abs(found.left.estimate) < 0.08 and found.verdict == "explained"
    blind = beside(copies, UP, np.zeros(len(UP)), PROMPTS)
    assert blind.left.estimate == pytest.approx(blind.correlation, abs=0.01) and blind.auc.estimate == 0.5
    assert np.isnan(blind.share.estimate)


def test_few_prompts_leave_the_question_open():
    claim, other = drawn((0.6, 0.3), (0.98, 0.02), seed=3)
    few = slice(0, 100)
    assert beside(claim[few], UP[few], other[few], PROMPTS[few]).verdict == "open"


def test_what_is_left_keeps_its_level_when_there_is_nothing_left():
    """Given the rival, claim and side have nothing in common: intervals exclude 0 about as often as they say."""
    wrong = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mood = rng.normal(size=len(UP)) + 1.5 * UP
        claim = np.tanh(mood) + 0.5 * rng.normal(size=len(UP))
        wrong += beside(claim, UP, mood, PROMPTS, resamples=200).left.low > 0
    assert wrong <= 6  # 2.5% of 60 is 1.5


def test_the_bag_of_words_can_be_asked_without_some_words():
    train = [("maybe it is red", "p"), ("it is red", "p"), ("maybe red maybe", "p"), ("so red", "p")] * 3
    changed = np.array([True, False, True, False] * 3)
    bag = BagOfWords(train, changed, [("maybe", "q"), ("it", "q")], min_texts=2)
    one, two = bag.scores()
    assert one > two
    never = [(text.replace("maybe", ""), prompt) for text, prompt in train]
    unsaid = BagOfWords(never, changed, [("", "q"), ("it", "q")], min_texts=2).scores()
    assert bag.scores(["maybe"]) == pytest.approx(unsaid) and unsaid[0] < one
    assert (BagOfWords([("", "")] * 4, changed[:4], [("a", "")]).scores() == 0).all()


def test_length_counts_with_the_sign_that_it_had_where_it_was_learned():
    changed = np.array([True, False])
    assert length_scores(["one two three", "one"], changed, ["a b", "a"]).tolist() == [2, 1]
    assert length_scores(["one", "one two three"], changed, ["a b", "a"]).tolist() == [-2, -1]


def test_claims_together_separate_what_each_alone_does_not():
    one, two = drawn((0.7, 0.3), (0.7, 0.3), seed=7)
    score = together(np.stack([one, two], axis=1), UP, PROMPTS)
    alone = beside(one, UP, score, PROMPTS)
    assert alone.auc.estimate > 0.72 and alone.share.high < 1
