"""What a verdict tells first, and in which words."""

from __future__ import annotations

import pandas as pd
import pytest

from driftbook.evidence.verdict import headline, told, verdict

COLUMNS = ["hypothesis_id", "text", "kind", "unit", "base", "intervention", "like", "measure"]


def claims(*rows: tuple) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["difference"] = table["intervention"] - table["base"]
    table["claim"], table["confirmed"], table["proposer"] = table["text"] + ": ...", True, "panel"
    return table.assign(low=table["difference"] - 0.05, high=table["difference"] + 0.05)


OPENS = ("a", "opens with I", "opening and closing", "share", 0.0, 0.99, "", "opens_with_i")
REFUSES = ("b", "refuses", "stance", "share", 0.01, 0.97, "a", "refuses")
LONGER = ("c", "length in words", "form", "words", 321.0, 282.0, "", "length_words")
LISTS = ("d", "has a numbered list", "form", "share", 0.51, 0.67, "", "has_numbered_list")


def test_of_claims_that_say_the_same_the_one_in_a_readers_words_is_told():
    assert told(claims(OPENS, REFUSES, LISTS))["text"].tolist() == ["refuses", "has a numbered list"]
    weak = (*REFUSES[:5], 0.5, *REFUSES[6:])
    assert told(claims(OPENS, weak))["text"].tolist() == ["opens with I"]  # half of the change is another thing


def test_shares_are_told_by_points_and_lengths_by_the_part_that_they_changed_by():
    assert told(claims(LISTS, LONGER, OPENS))["hypothesis_id"].tolist() == ["a", "d", "c"]


def test_the_headline_is_a_sentence_about_the_changed_model():
    said = headline(told(claims(OPENS, REFUSES, LONGER, LISTS)))
    assert said == (
        "refuses more often (1% → 97%), has a numbered list more often (51% → 67%) and writes shorter answers "
        "(median 321 → 282 words)"
    )
    assert headline(claims()) == ""


@pytest.mark.parametrize(("seen", "state"), [(0.1, "no change found"), (0.6, "could not tell")])
def test_without_a_confirmed_claim_the_size_of_what_could_be_seen_decides(seen, state):
    assert verdict(claims(OPENS).assign(confirmed=False), 100, 1, 0.05, seen).state == state


def test_the_verdict_names_three_claims_at_most_and_counts_the_rest():
    more = [(f"e{i}", f"does {i}", "form", "share", 0.1, 0.2 + i / 100, "", "x") for i in range(4)]
    found = verdict(claims(OPENS, REFUSES, LISTS, *more), 100, 1, 0.05, 0.1)
    assert len(found.strongest) == 3 and found.strongest[0] == "b" and found.moved.endswith("and 3 more.")
