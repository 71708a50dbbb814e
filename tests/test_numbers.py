"""Numbers as pages write them: 0 for 0 alone, and what cannot be resolved says so."""

from __future__ import annotations

import math

import pytest

from driftbook import numbers
from driftbook.workbook.tables import html_table


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0%"),
        (0.1, "10%"),
        (0.004, "0.4%"),
        (0.0004, "0.04%"),
        (0.9996, "99.96%"),
        (0.996, "99.6%"),
        (1, "100%"),
        (math.nan, "not read"),
    ],
)
def test_a_share_is_none_or_all_only_where_it_is(value, said):
    assert numbers.share(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.2, "+20"), (-0.17, "−17"), (0, "0"), (0.002, "+0.2"), (-0.0004, "−0.04")]
)
def test_a_difference_of_shares_has_a_sign_and_no_0_that_is_none(value, said):
    assert numbers.points(value) == said


@pytest.mark.parametrize(
    ("p", "permutations", "said"),
    [
        (0.0321, None, "0.032"),
        (1 / 1000, 999, "< 1/999"),
        (2 / 1000, 999, "0.002"),
        (1e-9, None, "1.0e−9"),
        (1e-4, 10**6, "0.0001"),
    ],
)
def test_a_p_value_that_permutations_cannot_resolve_says_so(p, permutations, said):
    assert numbers.p_value(p, permutations) == said


@pytest.mark.parametrize(
    ("e", "said"), [(2462, "2,462"), (999_999, "999,999"), (1e6, "10^6"), (3.2e12, "10^12"), (1e-7, "1.0e−7")]
)
def test_an_e_value_beyond_a_million_is_a_power_of_ten(e, said):
    assert numbers.e_value(e) == said


@pytest.mark.parametrize("value", [1e-12, -3e-7, 0.00004, 0.3, 12.4, 4e8])
def test_no_way_of_writing_makes_a_number_0_that_is_not(value):
    ways = (numbers.number, numbers.share, numbers.points, numbers.e_value, lambda v: numbers.fixed(v, 0))
    assert all(way(abs(value)).strip("%+−") not in ("0", "0.0", "0.00") for way in ways)
    assert all(way(0) in ("0", "0%") for way in (numbers.number, numbers.share, numbers.points))


def test_a_table_writes_e_values_and_p_values_as_sentences_do():
    pd = pytest.importorskip("pandas")
    html = html_table(pd.DataFrame({"e_value": [3e9, 2462.0, 0.4], "q_value": [1e-7, 0.0321, 1.0]}), caption="c")
    for said in ("10^9", "2,462", ">0.4<", "1.0e−7", "0.032", ">1<"):
        assert said in html
    assert ">0<" not in html
