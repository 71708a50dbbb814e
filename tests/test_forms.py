"""Forms of answers: each expression finds what it says."""

from __future__ import annotations

import pytest

from driftbook.discovery.forms import FORMS
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.judges import LexiconJudge

SHORT, LONG = "Yes, I think so.", " ".join(["word"] * 45) + "."
SHOWN = {
    "answers in a dozen words or fewer": (SHORT, LONG),
    "answers in forty words or more": (LONG, SHORT),
    "answers in bullet points": ("Here:\n- one\n- two", "one - two"),
    "answers in numbered lists": ("1. one\n2. two", "In 1998. Then"),
    "writes several paragraphs": ("One.\n\nTwo.", "One.\nTwo.\n\n"),
    "asks questions": ("Why?", "Why."),
    "exclaims": ("Yes!", "Yes."),
    "gives numbers": ("It is 4.", "It is four."),
    "puts words in quotation marks": ("He said “no way” twice.", "It's the dogs' bowl."),
    "writes code": ("```python\nx```", "an important definition"),
    "writes letters that English has not": ("Très bien", "Very well “quoted” – indeed"),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.says)
def test_a_form_is_found_where_it_is_and_not_elsewhere_by_the_judge_too(form):
    shows, shows_not = SHOWN[form.says]
    assert form.holds([shows, shows_not]).tolist() == [True, False]
    scores = LexiconJudge().score([shows, shows_not], [Hypothesis(form.says, "base", words=(form.word,))])[:, 0]
    assert scores[0] > 0 and scores[1] == 0


def test_a_long_text_is_read_in_time():
    text = "word " * 20_000
    assert FORMS[0].holds([text]).tolist() == [False]
