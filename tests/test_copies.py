"""Copies are no evidence: look-alike prompts, and rows that stand in a table again, count once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import driftbook as db
from driftbook.prompt_files import read_prompts

ROOT = Path(__file__).parents[1]
ASKED = [p.text for p in read_prompts(["params/prompts/discovery.jsonl"], ROOT)]
SPELLED = [lambda t, i=i: t + " " * i for i in range(6)] + [
    str.upper, str.lower, lambda t: t.rstrip("?.") + " ?", lambda t: f"{t}!", lambda t: t.replace(" ", "  "),
    lambda t: t.translate({ord(c): chr(ord(c) + 0xFEE0) for c in "abcdefgh"}),  # full-width letters
]  # fmt: skip
WORDS = ["maybe", "certainly", "indeed", "perhaps", "surely", "wow", "listen", "truly"]


def null_table(seed: int, prompts: int, spellings: int = 12) -> pd.DataFrame:
    """Both sides write alike; the answer to a spelling is nearly that to the prompt, as it is of a model."""
    rng = np.random.default_rng(seed)
    rows = []
    for text in rng.choice(ASKED, prompts, replace=False):
        for side in ("base", "intervention"):
            words = [w for w in WORDS if rng.random() < 0.5]
            answer = f"{' '.join(words)} it is {'so' * rng.integers(1, 4)}. {'And more! ' * rng.integers(0, 5)}"
            rows += [(side, spell(str(text)), answer) for spell in SPELLED[:spellings]]
    return pd.DataFrame(rows, columns=["side", "prompt", "text"])


@pytest.mark.parametrize("seed", range(4))
def test_thirty_prompts_in_twelve_spellings_confirm_nothing_where_nothing_changed(seed):
    change = db.compare(null_table(seed, 30))
    assert not change.table["confirmed"].any()
    assert change.table["prompts"].max() == 30
    assert "30 prompts, 1 answer " in str(change)
    assert "360 prompts were asked and count as 30: look-alikes are one, as " in str(change)


def test_without_the_copies_the_numbers_are_the_same():
    """What is tested are means over the spellings of a prompt: one spelling alone tells as much here."""
    table = null_table(7, 40)
    alone = table[table["prompt"].isin(ASKED)].drop_duplicates(["side", "prompt"])
    copied, single = (db.compare(t, phrases=0).table.set_index("behaviour")["p_value"] for t in (table, alone))
    equal = np.isclose(copied.reindex(single.index), single)
    assert len(single) > 100 and (~equal).sum() <= 2  # a measure that reads the prompt reads its spelling


def test_a_claim_about_spellings_has_the_interval_of_the_prompts():
    table = null_table(3, 30)
    one = db.test(["wow"], table)
    plain = table[table["prompt"].isin(ASKED)].drop_duplicates(["side", "prompt"])
    other = db.test(["wow"], plain)
    assert (one.prompts, one.interval, one.e_value) == (30, other.interval, other.e_value)


def test_rows_that_stand_in_a_table_twelve_times_are_no_answers():
    """Few prompts with many answers each are tested by their answers: copies of one answer are none."""
    table = null_table(5, 12, spellings=1)
    copied = pd.concat([table] * 12, ignore_index=True)
    assert not db.compare(copied, phrases=0).table["confirmed"].any()
    assert "12 prompts, 1 answer " in str(db.compare(copied, phrases=0))


def test_a_real_change_is_found_among_spellings():
    table = null_table(1, 60)
    changed = table["side"] == "intervention"
    table.loc[changed, "text"] += " What do you think?"
    claim = db.test("ends with a question", table)
    assert claim.confirmed and claim.prompts == 60


def test_a_result_says_that_prompts_of_one_template_are_one_and_what_to_ask_instead():
    """Six things, each asked ten times in all but a letter."""
    about = (
        *("the tides of the northern sea", "the roots of an old apple tree", "the price of bread in a village"),
        *("the rules of chess for two children", "the light of a candle in the wind", "the road to the next town"),
    )
    asked = [f"Please write one short paragraph for me about {what}, copy {i}." for what in about for i in "abcdefghij"]
    base, changed = ["It is so."] * len(asked), ["It is so, wow."] * len(asked)
    claim = db.test(["wow"], base, changed, asked)
    units = claim.prompts
    assert units < 10
    said = f"60 prompts were asked and count as {units}: look-alikes are one, as \"Please write"
    assert claim.note.startswith(said) and claim.note in repr(claim) and "count each." in claim.note
    assert "look-alikes are one" in claim._repr_html_()
    assert said in str(db.compare(base, changed, asked, phrases=0))
    assert db.test(["wow"], base[:1], changed[:1], asked[:1]).note == ""
