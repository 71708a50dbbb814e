"""Probabilities of levels read off the tokens of a JSON reply, however it was cut into tokens."""

import math

import pytest

from driftbook.evidence.levels import VALUES, expectation
from driftbook.replies import level_probabilities

RATING = tuple(VALUES["single"])


def logs(**p):
    return {k: math.log(v) for k, v in p.items()}


def test_levels_are_found_where_the_reply_states_them():
    whole = [('{"', {}), ("1", {}), ('": "', {}), ("HIGH", logs(HIGH=0.6, MID=0.3, LOW=0.05)), ('"}', {})]
    parts = [('{"1":', {}), (' "H', {' "H': math.log(0.6), ' "M': math.log(0.3), ' "L': math.log(0.05)}), ('IGH"}', {})]
    for tokens in (whole, parts):
        found = level_probabilities(tokens, RATING)
        assert found == {"1": pytest.approx({"HIGH": 0.6, "MID": 0.3, "LOW": 0.05})}
        assert expectation(found["1"], VALUES["single"]) == pytest.approx(0.75 / 0.95)


def test_each_statement_has_its_own_place_and_case_does_not_matter():
    tokens = [('{"2": "', {}), ("low", logs(low=0.9, high=0.1)), ('", "1": "', {}), ("MID", logs(MID=1.0)), ('"}', {})]
    found = level_probabilities(tokens, RATING)
    assert found["2"]["LOW"] == pytest.approx(0.9) and found["1"]["MID"] == pytest.approx(1.0)


def test_what_does_not_speak_of_levels_is_left_to_the_words():
    unsure = [('{"1": "', {}), ("HIGH", logs(HIGH=0.2, None_=0.7)), ('"}', {})]
    assert level_probabilities(unsure, RATING) == {}
    assert level_probabilities([("HIGH", logs(HIGH=1.0))], RATING) == {} == level_probabilities([], RATING)
    pair = [('{"1": "', {}), ("T", {"T": math.log(0.5), "A": math.log(0.25), "B": math.log(0.25)}), ('IE"}', {})]
    assert expectation(level_probabilities(pair, tuple(VALUES["pair"]))["1"], VALUES["pair"]) == pytest.approx(0.5)
