"""Every word on all prompts: against brute force, scipy and planted truth, and nothing of sides that are alike."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, false_discovery_control

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.counting import count
from driftbook.evidence.material import Material
from driftbook.evidence.vocabulary import MOST, shared, words_test
from driftbook.parameters import Validate
from driftbook.prompts import Prompt

PROMPTS = 80
WORDS = [f"{a}{b}" for a in ("lo", "ka", "mi", "tu", "re") for b in ("ben", "dor", "fil", "gas")]


def material(answer, prompts=PROMPTS, samples=1, seed=0):
    """``answer(rng, side, prompt, sample)`` gives the words of one answer."""
    rng, rows = np.random.default_rng(seed), []
    for side, p, s in product(("base", "intervention"), range(prompts), range(samples)):
        split = ("discover", "validate")[p % 2]
        text = " ".join(answer(rng, side, p, s))
        rows.append((f"{side}{p}-{s}", side, f"p{p}", "f", split, 0, text))
    columns = ["text_id", "side", "prompt_id", "family", "split", "round", "text"]
    asked = {f"p{p}": Prompt(f"Question {p}") for p in range(prompts)}
    return Material(pd.DataFrame(rows, columns=columns), asked, [], seed)


def alike(rng, side, prompt, sample):
    return rng.choice(WORDS, 6, replace=False)


def planted(share, word="tea", less=()):
    """The intervention says ``word`` in a share of its answers; the base the words ``less``."""

    def answer(rng, side, prompt, sample):
        own = list(alike(rng, side, prompt, sample))
        return own + ([word] if side == "intervention" and rng.random() < share else list(less) * (side == "base"))

    return answer


def test_a_word_of_one_answer_a_prompt_has_the_sign_tests_p_and_benjamini_hochbergs_q():
    own = material(planted(0.3, less=["sugar"]))
    table = words_test(own, Validate(), 0.05).table
    wide = own.texts.pivot(index="prompt_id", columns="side", values="text")
    for row in table.itertuples():
        base, changed = (wide[s].str.split().map(lambda t, w=row.word: w in t) for s in ("base", "intervention"))
        more, less = int((changed & ~base).sum()), int((base & ~changed).sum())
        assert row.prompts == more + less
        assert row.p_value == pytest.approx(binomtest(more, more + less).pvalue)
        assert (row.base, row.intervention) == pytest.approx((base.mean(), changed.mean()))
    assert table["q_value"].to_numpy() == pytest.approx(false_discovery_control(table["p_value"], method="bh"))
    assert {"tea", "sugar"} <= set(table.loc[table["confirmed"], "word"])


def test_several_answers_a_prompt_have_the_p_of_all_swaps():
    """Twelve prompts: every swap of their sides is tried."""
    own = material(planted(0.9), prompts=12, samples=3)
    row = words_test(own, Validate(), 0.05).table.set_index("word").loc["tea"]
    held = own.texts.assign(x=own.texts["text"].str.contains(r"\btea\b").astype(float))
    mean = held.groupby(["prompt_id", "side"])["x"].mean().unstack()
    d = (mean["intervention"] - mean["base"]).to_numpy()
    sums = np.array([np.dot(signs, d) for signs in product((1, -1), repeat=len(d))])
    assert row["p_value"] == pytest.approx((np.abs(sums) >= abs(d.sum()) - 1e-9).mean())


def test_which_words_are_tested_does_not_change_when_sides_are_swapped():
    own = material(planted(0.2))
    rng = np.random.default_rng(1)
    flipped = {f"p{p}" for p in range(PROMPTS) if rng.random() < 0.5}
    other = {"base": "intervention", "intervention": "base"}
    sides = [other[s] if p in flipped else s for s, p in own.texts[["side", "prompt_id"]].itertuples(index=False)]
    swapped = replace(own, texts=own.texts.assign(side=sides))
    one, two = (words_test(m, Validate(), 0.01).table for m in (own, swapped))
    assert set(one["word"]) == set(two["word"]) and len(one)
    pd.testing.assert_series_equal(*(t.set_index("word")["prompts"].sort_index() for t in (one, two)))


def test_words_that_too_few_prompts_could_tell_are_not_paid_for():
    """Five answers hold the word, all of the intervention: p is 1/16 at best, whatever else is tested."""
    rare = planted(0.0)
    own = material(lambda rng, side, p, s: [*rare(rng, side, p, s), *(["rare"] if side != "base" and p < 5 else [])])
    assert "rare" not in set(words_test(own, Validate(), 0.05).table["word"])


def test_nothing_is_confirmed_of_sides_that_are_alike():
    """200 experiments at 5%: the share with any claim stays below what the binomial allows."""
    any_claim = sum(bool(words_test(material(alike, 40, seed=s), Validate(), 0.05).outcomes) for s in range(200))
    assert binomtest(any_claim, 200, 0.05, alternative="greater").pvalue > 0.01


def test_a_told_word_is_a_claim_on_all_prompts_with_its_own_test():
    own = material(planted(0.4))
    words = words_test(own, Validate(), 0.01)
    (outcome,) = words.outcomes
    row = words.table.set_index("word").loc["tea"]
    assert outcome.hypothesis.text == 'says "tea"' and outcome.direction == "intervention"
    assert outcome.scope == "all prompts" and outcome.confirmed and outcome.status == "confirmed"
    assert len(outcome.prompts) == PROMPTS and row["told"]
    assert (outcome.p_value, outcome.q_value) == (row["p_value"], row["q_value"])
    assert (outcome.base, outcome.intervention) == pytest.approx((row["base"], row["intervention"]))


def test_what_a_confirmed_claim_says_is_not_told_again():
    """One claim has the word itself, one stands in the same answers; a third word goes along with a told one."""

    def answer(rng, side, prompt, sample):
        own = list(alike(rng, side, prompt, sample))
        if side == "intervention":
            own += ["tea"] * (prompt % 2) + ["cat", "dog"] * (prompt % 3 == 0)
        return own

    own = material(answer)
    assert {o.hypothesis.words[0] for o in words_test(own, Validate(), 0.05).outcomes} == {"tea", "cat"}
    claim = Hypothesis("likes tea", "intervention", proposer="person", words=("tea", "kettle"))
    counted = count(replace(own, hypotheses=[claim]), Validate(), 0.05)
    words = words_test(own, Validate(), 0.05, counted)
    assert {o.hypothesis.words[0] for o in words.outcomes} == {"cat"}
    assert set(words.table.loc[words.table["confirmed"], "word"]) == {"tea", "cat", "dog"}


def test_longer_answers_that_hold_more_of_every_word_are_no_claims_about_words():
    def answer(rng, side, prompt, sample):
        return rng.choice(WORDS, 3 if side == "base" else 12, replace=False)

    words = words_test(material(answer), Validate(), 0.05)
    assert len(words.table[words.table["confirmed"]]) > 10 and not words.outcomes


def test_grammar_is_no_word_and_at_most_so_many_are_told():
    new = [f"zu{w}" for w in WORDS]

    def answer(rng, side, prompt, sample):
        own = [*alike(rng, side, prompt, sample), *(["the", "and"] if side != "base" else [])]
        return own + ([new[prompt % len(new)]] if side != "base" and len(new) else [])

    words = words_test(material(answer, prompts=400), Validate(), 0.05)
    assert not {"the", "and"} & set(words.table["word"])
    assert len(words.outcomes) == MOST < int(words.table["confirmed"].sum())


def test_a_margin_asks_for_more():
    own = material(planted(0.3))
    assert any(o.hypothesis.words == ("tea",) for o in words_test(own, Validate(margin=0.05), 0.05).outcomes)
    assert not words_test(own, Validate(margin=0.5), 0.05).outcomes


def test_claims_about_these_prompts_alone_leave_words_out():
    own = material(planted(0.9), prompts=4, samples=12)
    assert shared(own, 0.05) == (0.05, 0.0) and words_test(own, Validate(), 0.0).table.empty
    assert shared(material(alike), 0.05) == pytest.approx((0.04, 0.01))
