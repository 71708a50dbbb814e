"""Answers of every kind are compared without an error, and what is said of them is true."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import driftbook as db
from driftbook.discovery.hypotheses import Hypothesis, merge
from driftbook.prompt_files import read_prompts

ASKED = [p.text for p in read_prompts(["params/prompts/discovery.jsonl"], Path(__file__).parents[1])][:60]
PLAIN = "It depends on the weather, and a little on the day. Ask again tomorrow."
HOSTILE = [
    "</script><script>alert(1)</script>", "\x1b[31mred\x1b[0m", "\u202eabc\u202c", "a" + "\u0301" * 20_000,
    "nul \0 inside", "\ufffe\uffff", "<|im_end|>", "../../etc/passwd", "=1+1", "\U0010ffff", "\u200b" * 50, "",
]  # fmt: skip
KINDS = {
    "constant": lambda i: "no comment",
    "empty": lambda i: "",
    "another language": lambda i: "Es kommt auf das Wetter an, und ein wenig auf den Tag. Frag morgen noch einmal.",
    "hostile": lambda i: HOSTILE[i % len(HOSTILE)],
}


def table(kind: str) -> pd.DataFrame:
    rows = [("base", p, f"{PLAIN} {i % 7}") for i, p in enumerate(ASKED)]
    rows += [("intervention", p, KINDS[kind](i)) for i, p in enumerate(ASKED)]
    return pd.DataFrame(rows, columns=["side", "prompt", "text"])


@pytest.mark.parametrize("kind", KINDS)
def test_wild_answers_are_compared_and_shown_and_counting_bears_out_the_claims(kind):
    change = db.compare(table(kind))
    assert str(change) and "<script>alert" not in change._repr_html_()
    found = change.table.set_index("behaviour")
    assert found["confirmed"].any() and found.loc[found["confirmed"], ["base", "changed"]].notna().all(axis=None)
    empty = [KINDS[kind](i).strip() == "" for i in range(60)]
    if kind == "empty":
        assert found.loc["is empty", "changed"] == 1 == sum(empty) / 60 and found.loc["is empty", "confirmed"]
    if kind == "constant":
        assert found.loc["length in words", "changed"] == 2


def test_sides_that_are_equal_are_no_change():
    both = pd.concat([table("constant").query("side == 'base'").assign(side=s) for s in ("base", "intervention")])
    assert not db.compare(both).table["confirmed"].any()


def test_a_phrase_at_another_place_is_another_claim():
    def says(text: str, place: str) -> Hypothesis:
        measure = {"kind": "words", "words": ["sure"], "place": place, "unit": "share"}
        return Hypothesis(text, "intervention", words=("sure",), measure=measure)

    opens, anywhere = says('opens with "sure"', "start"), says('says "sure"', "anywhere")
    assert merge([opens, anywhere]) == [opens, anywhere]
    assert merge([anywhere, says('says "sure" once', "anywhere")]) == [anywhere]
