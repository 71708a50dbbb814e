"""What a verdict tells first, and in which words."""

from __future__ import annotations

import pandas as pd
import pytest

from driftbook.behaviours.catalogue import panel
from driftbook.evidence.verdict import headline, told, verdict

COLUMNS = ["hypothesis_id", "text", "kind", "unit", "base", "intervention", "like", "measure"]


def claims(*rows: tuple) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["difference"] = table["intervention"] - table["base"]
    table["claim"], table["confirmed"], table["proposer"] = table["text"] + ": ...", True, "panel"
    return table.assign(scope="all prompts", low=table["difference"] - 0.05, high=table["difference"] + 0.05)


OPENS = ("a", "opens with I", "opening and closing", "share", 0.0, 0.99, "", "opens_with_i")
REFUSES = ("b", "refuses", "stance", "share", 0.01, 0.97, "a", "refuses")
LONGER = ("c", "length in words", "form", "words", 321.0, 282.0, "", "length_words")
LISTS = ("d", "has a numbered list", "form", "share", 0.51, 0.67, "", "has_numbered_list")


def test_of_claims_that_say_the_same_the_one_in_a_readers_words_is_told():
    assert told(claims(OPENS, REFUSES, LISTS))["text"].tolist() == ["refuses", "has a numbered list"]
    weak = (*REFUSES[:5], 0.3, *REFUSES[6:])
    assert told(claims(OPENS, weak))["text"].tolist() == ["opens with I"]  # a third of the change is another thing


def test_what_is_told_first_changed_most_for_what_it_was_and_a_length_by_the_part_that_it_changed_by():
    rare = ("e", "gives a web address", "content", "share", 0.02, 0.15, "", "has_url")  # 13 points, from nearly none
    assert told(claims(LISTS, LONGER, rare, OPENS))["hypothesis_id"].tolist() == ["a", "e", "d", "c"]
    halved = (*LONGER[:5], 100.0, *LONGER[6:])
    assert told(claims(LISTS, halved))["hypothesis_id"].tolist() == ["c", "d"]


def test_what_the_length_tells_is_told_after_what_it_does_not():
    digits = ("e", "has digits", "content", "share", 0.3, 0.6, "", "has_digits")
    found = claims(LISTS, digits)
    assert told(found)["hypothesis_id"].tolist() == ["e", "d"]
    explained = found.assign(at_length=[0.51, 0.58])  # answers as long as these hold digits as often
    assert told(explained)["hypothesis_id"].tolist() == ["d", "e"]
    assert told(found.assign(at_length=[0.51, 0.2]))["hypothesis_id"].tolist() == ["e", "d"]  # shorter, and yet more


def test_a_behaviour_is_told_before_a_phrase_that_moved_as_much():
    said = ("e", 'says "specific"', "words", "share", 0.51, 0.69, "", "words_specific")
    found = claims(said, LISTS).assign(proposer=["phrases", "panel"])
    assert told(found)["hypothesis_id"].tolist() == ["d", "e"]


def test_the_headline_is_a_sentence_about_the_changed_model():
    assert headline(told(claims(OPENS, REFUSES, LONGER, LISTS))) == (
        "nearly always refuses (1% → 97% of answers), more often writes a numbered list (51% → 67%), and writes "
        "shorter answers (median 321 → 282 words)"
    )
    assert headline(claims()) == ""
    shorter = ("s", "words a sentence (lists aside)", "form", "words", 16.0, 12.0, "", "words_a_sentence")
    colder = ("t", "sentiment", "voice", "score", 0.2, 0.02, "", "sentiment")
    assert headline(claims(shorter, colder)) == (
        "writes shorter sentences (16 → 12 words), and sounds less positive (0.2 → 0.02 on a scale from -1 to 1)"
    )


def test_a_length_goes_where_the_answers_to_the_same_prompt_go_whatever_the_medians_of_all_say():
    same = claims((*LONGER[:4], 24.0, 24.0, *LONGER[6:])).assign(difference=4.0)
    assert headline(same) == "writes longer answers (typically +4 words to the same prompt)"
    contrary = claims((*LONGER[:4], 50.0, 20.0, *LONGER[6:])).assign(difference=1.5)
    assert headline(contrary) == "writes longer answers (typically +1.5 words to the same prompt)"
    assert told(pd.concat([contrary, claims(LISTS)], ignore_index=True))["hypothesis_id"].tolist() == ["d", "c"]
    sentences = ("s", "words a sentence (lists aside)", "form", "words", 16.0, 12.0, "", "words_a_sentence")
    said = headline(claims(sentences).assign(difference=2.0))
    assert said == "writes longer sentences (typically +2 words to the same prompt)"
    halved = claims((*LONGER[:4], 100.0, 45.0, *LONGER[6:]))
    assert headline(halved) == "writes much shorter answers (median 100 → 45 words)"
    assert headline(halved.assign(scope="these prompts")) == "writes much shorter answers (mean 100 → 45 words)"


def test_words_alone_are_a_change():
    found = verdict(claims(OPENS).assign(confirmed=False), 100, (1, 3), 0.05, 0.1, words=(7, 175))
    assert found.state == "changed" and found.strongest == ()
    assert found.moved == (
        "Changed: 7 of 175 words stand in more answers of one side, and none of 1 behaviours and phrases was shown to "
        "move."
    )
    assert "100 prompts, 1 to 3 answers of each model to each; 0 of 1 claims and 7 of 175 words" in found.sure


def test_of_what_shows_only_when_exaggerated_a_share_of_answers_is_told_first():
    longer = ("l", "letters a word", "voice", "score", 4.6, 4.6, "", "letters_a_word")
    found = claims(longer, LISTS).assign(confirmed=False, only_amplified=True, amplified=["letters ...", "lists ..."])
    said = verdict(found, 60, (1, 1), 0.05, 0.2).moved
    assert said.endswith("Shown only when the change is exaggerated: lists ...; and 1 more.")


def test_every_measure_that_is_no_share_and_no_count_is_said_as_something_that_a_model_does():
    counts = ("share", "number", "rate", "sentences")
    for m in panel():
        if m.unit not in counts and m.name != "length_words":
            said = headline(claims(("a", m.label, m.family, m.unit, 1.0, 2.0, "", m.name)))
            assert ": more" not in said, m.name


def test_what_goes_the_same_way_is_said_in_one_run():
    hedges = ("e", "hedges", "stance", "share", 0.04, 0.25, "", "hedges")
    assert headline(told(claims(hedges, LISTS))) == (
        "more often hedges (4% → 25% of answers) and writes a numbered list (51% → 67%)"
    )
    asks = ("f", "ends with a question", "opening and closing", "share", 0.4, 0.02, "", "ends_with_question")
    brief = ("g", "is five words or fewer", "form", "share", 0.01, 0.96, "", "is_brief")
    rate = ("h", "dashes", "form", "rate", 0.2, 1.1, "", "dashes")
    assert headline(claims(asks, brief, rate)) == (
        "hardly ever ends with a question (40% → 2% of answers), nearly always writes five words or fewer (1% → 96%), "
        "and writes more dashes (0.2 → 1.1 per 100 words)"
    )


@pytest.mark.parametrize(("seen", "state"), [(0.1, "no change found"), (0.6, "could not tell")])
def test_without_a_confirmed_claim_the_size_of_what_could_be_seen_decides(seen, state):
    assert verdict(claims(OPENS).assign(confirmed=False), 100, (1, 1), 0.05, seen).state == state


def test_the_verdict_names_three_claims_at_most_and_counts_the_rest():
    more = [(f"e{i}", f"does {i}", "form", "share", 0.1, 0.2 + i / 100, "", "x") for i in range(4)]
    found = verdict(claims(OPENS, REFUSES, LISTS, *more), 100, (1, 1), 0.05, 0.1)
    assert len(found.strongest) == 3 and found.strongest[0] == "b" and found.moved.endswith("and 3 more.")
