"""The evidence that a page marks is what the measure counts."""

from __future__ import annotations

import pytest

from driftbook.behaviours.catalogue import panel
from driftbook.behaviours.marks import excerpt, marker, placed
from driftbook.behaviours.measure import words_measure

BY_NAME = {m.name: m for m in panel()}
TEXT = (
    "What an honor! Neruda wrote of love. He was from Chile!\n\n1. Read him aloud.\n2. Read him twice.\n\n"
    "I might be wrong. Would you like another poem?"
)


def marked(name: str, text: str) -> list[str]:
    find = marker(BY_NAME[name].spec)
    return [text[a:b] for a, b in find(text, "Write of Neruda.")]


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("opens_with_exclamation", ["What an honor!"]),
        ("ends_with_question", [" Would you like another poem?"]),
        ("hedges", ["I might be wrong."]),
        ("has_numbered_list", ["1. Read him aloud.", "2. Read him twice."]),
        ("has_paragraphs", []),  # of the whole answer
        ("length_words", []),
    ],
)
def test_the_evidence_is_the_sentence_without_which_the_answer_does_not_show_it(name, evidence):
    assert [m.strip() for m in marked(name, TEXT)] == [e.strip() for e in evidence]


def test_what_an_answer_does_not_show_has_no_evidence():
    assert marked("ends_with_question", "It is so. Is it? Yes.") == []


def test_words_are_marked_where_they_stand_whatever_their_case():
    find = marker(words_measure(["perhaps", "I'm not sure"]).spec)
    text = "Perhaps it’s so; I’m not sure, PERHAPS."
    assert [text[a:b] for a, b in find(text, "")] == ["Perhaps", "I’m not sure", "PERHAPS"]


def test_a_judges_claim_has_no_evidence_in_the_text():
    assert marker({"kind": "judge"}) is None


@pytest.mark.parametrize("name", [m.name for m in panel() if m.unit == "share" and m.shows])
def test_marks_of_every_behaviour_lie_in_its_example(name):
    text = BY_NAME[name].shows
    spans = marker(BY_NAME[name].spec)(text, "")
    assert all(0 <= a < b <= len(text) for a, b in spans)


def test_an_excerpt_holds_the_evidence_and_a_line_around_it():
    text = "word " * 200 + "HERE IT IS. " + "after " * 200
    at = text.index("HERE")
    parts = excerpt(text, [(at, at + 11)])
    assert [p for p, m in parts if m] == ["HERE IT IS."]
    said = "".join(p for p, _ in parts)
    assert said.startswith("… word") and said.endswith("after …") and len(said) < 500
    assert "".join(p for p, _ in excerpt("short", [])) == "short"
    assert excerpt(text, [], near=1.0)[0] == ("… ", False)


@pytest.mark.parametrize(
    ("place", "said"), [("opener", ["What an honor!"]), ("closer", ["Would you like another poem?"]), ("body", [])]
)
def test_a_group_of_sentences_is_marked_where_it_stands(place, said):
    assert [TEXT[a:b] for a, b in placed(TEXT, place)] == said
