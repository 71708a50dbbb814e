"""Forms of answers: each expression finds what it says, and a difference in form alone becomes a hypothesis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from driftbook.discovery.forms import FORMS
from driftbook.discovery.hypotheses import Hypothesis, propose
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


@pytest.mark.parametrize("side", ["base", "intervention"])
def test_brevity_is_proposed_for_the_side_that_is_brief(side):
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(200)]
    rows = []
    for prompt in range(40):
        for name in ("base", "intervention"):
            said = " ".join(rng.choice(words, 6 if name == side else 30))
            rows.append((f"{len(rows):04d}", name, f"p{prompt}", said))
    texts = pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text"])
    found = propose(texts, {})
    brief = [h for h in found if h.text.startswith("answers in a dozen words or fewer")]
    assert [h.direction for h in brief] == [side]
    evidence = texts.set_index("text_id").loc[list(brief[0].evidence)]
    assert len(evidence) == 10 and (evidence.side == side).all()


def test_sides_that_answer_alike_get_no_form_by_much():
    rng = np.random.default_rng(1)
    rows = [
        (f"{i:04d}", ("base", "intervention")[i % 2], f"p{i // 2}", " ".join(rng.choice(["a", "b", "c?"], 9)))
        for i in range(200)
    ]
    found = propose(pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text"]), {})
    assert sum(h.words[0].startswith("/") for h in found) <= 2
