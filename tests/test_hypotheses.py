"""Hypotheses as records: their measure, their table, near-duplicates; words of texts and their log-odds."""

import numpy as np
import pandas as pd
import pytest

from driftbook.discovery.hypotheses import (
    Hypothesis,
    features,
    from_frame,
    log_odds,
    merge,
    read_vocabulary,
    to_frame,
)
from driftbook.errors import DriftbookError


def test_features_leave_out_the_words_of_the_prompt():
    assert features("Paris is lovely", "Tell me about Paris") == {"is", "lovely", "paris is", "is lovely"}


def test_log_odds_agree_with_the_formula_of_the_paper():
    up, down, background = np.array([30.0, 5.0, 65.0]), np.array([10.0, 6.0, 84.0]), np.array([40.0, 11.0, 149.0])
    prior = 0.1 * 200 * background / 200
    delta = [
        np.log((up[i] + prior[i]) / (100 + 20 - up[i] - prior[i]))
        - np.log((down[i] + prior[i]) / (100 + 20 - down[i] - prior[i]))
        for i in range(3)
    ]
    expected = delta / np.sqrt(1 / (up + prior) + 1 / (down + prior))
    assert log_odds(up, down, background) == pytest.approx(expected)
    assert log_odds(up, down, background) == pytest.approx(-log_odds(down, up, background))


def test_a_word_in_few_texts_is_left_out_and_phrases_stay_within_a_clause():
    assert "yes no" not in features("Yes. No")
    assert read_vocabulary(["alpha beta", "alpha", "alpha"], ["", "", ""]).terms == ["alpha"]


def test_merge_keeps_the_first_and_all_evidence_and_never_drops_a_persons_hypothesis():
    a = Hypothesis("uses a", "intervention", evidence=("1",), words=("might", "may"))
    b = Hypothesis("uses b", "intervention", evidence=("2",), words=("might", "may", "could"))
    person = Hypothesis("hedges", "intervention", proposer="person", words=("might", "may"))
    other = Hypothesis("uses a", "base", words=("might", "may"))
    merged = merge([a, b, person, other])
    assert [h.text for h in merged] == ["uses a", "hedges", "uses a"]
    assert merged[0].evidence == ("1", "2")


def test_merge_takes_two_lexicons_for_one_claim_when_they_hold_of_the_same_texts():
    here = np.arange(100) < 30
    nearly = here.copy()
    nearly[[0, 1, 60]] ^= True
    a = Hypothesis("uses a", "intervention", evidence=("1",), words=("might", "may"))
    b = Hypothesis("uses b", "intervention", evidence=("2",), words=("there's", "a more"))
    c = Hypothesis("uses c", "intervention", words=("zebra",))
    opposite = Hypothesis("uses d", "base", words=("plainly",))
    held = [here, nearly, np.roll(here, 20), here]
    assert [h.text for h in merge([a, b, c, opposite], held=held)] == ["uses a", "uses c", "uses d"]
    assert merge([a, b], held=held[:2])[0].evidence == ("1", "2")
    assert len(merge([a, b], held=[np.ones(100, bool)] * 2)) == 2, "what holds of every text tells nothing"


def test_a_table_gives_the_same_hypotheses_back(tmp_path):
    found = [
        Hypothesis('says "may"', "intervention", 3, ("a", "b"), "phrases", ("may",)),
        Hypothesis("is kind", "base", proposer="person", prompt="asked"),
    ]
    to_frame(found).to_parquet(tmp_path / "h.parquet")
    assert from_frame(pd.read_parquet(tmp_path / "h.parquet")) == found
    with pytest.raises(DriftbookError, match="columns"):
        from_frame(to_frame(found).drop(columns="words"))
    with pytest.raises(DriftbookError, match="direction"):
        from_frame(to_frame(found).assign(direction="left"))


def test_a_measure_is_saved_and_is_part_of_what_is_claimed(tmp_path):
    opens = {"kind": "words", "words": ["what a"], "place": "start", "unit": "share"}
    said = [
        Hypothesis('opens with "what a"', "base", words=("what a",), measure=opens),
        Hypothesis("ends with a question", "base", measure={"kind": "panel", "name": "ends_with_question"}),
        Hypothesis("is kind", "base"),
        Hypothesis('says "may"', "base", words=("may",)),
    ]
    to_frame(said).to_parquet(tmp_path / "h.parquet")
    table = pd.read_parquet(tmp_path / "h.parquet")
    assert from_frame(table) == said and [h.measure for h in from_frame(table)] == [h.measure for h in said]
    assert [h.measure["kind"] for h in said] == ["words", "panel", "judge", "words"]
    assert said[3].measure == {"kind": "words", "words": ["may"], "place": "anywhere", "unit": "share"}
    elsewhere = Hypothesis(said[0].text, "base", words=("what a",), measure=opens | {"place": "closing"})
    assert elsewhere.hypothesis_id != said[0].hypothesis_id
    assert list(table["hypothesis_id"]) == [h.hypothesis_id for h in from_frame(table)]


def test_an_old_table_without_measures_counts_its_words():
    old = to_frame([Hypothesis('says "may"', "base", words=("may",)), Hypothesis("is kind", "base")])
    words, judged = from_frame(old.drop(columns="measure"))
    assert words.measure["words"] == ["may"] and words.measure["place"] == "anywhere"
    assert judged.measure == {"kind": "judge"}


def test_totals_may_be_given_where_counts_overlap():
    up, down = np.array([30.0, 5.0]), np.array([10.0, 6.0])
    given = log_odds(up, down, up + down, totals=(100.0, 50.0))
    prior = 0.1 * (up + down)
    logit = [np.log((y + prior) / (size + 15 - y - prior)) for y, size in ((up, 100), (down, 50))]
    assert given == pytest.approx((logit[0] - logit[1]) / np.sqrt(1 / (up + prior) + 1 / (down + prior)))
