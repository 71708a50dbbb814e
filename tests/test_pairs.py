"""Real pairs are held against counting that knows nothing of driftbook; here on tables whose truth is planted."""

import json

import pandas as pd
import pytest

from driftbench import pairs, plain
from driftbook.behaviours import panel
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError


def table_of(prompts=60, changed="That is all. Would you like more?"):
    rows = []
    for p in range(prompts):
        rows.append(("base", f"Prompt {p}", "Sure, here it is. That is all."))
        rows.append(("intervention", f"Prompt {p}", changed if p % 2 else "That is all."))
    return pd.DataFrame(rows, columns=["side", "prompt", "text"])


def told_of(table, *claims, hypotheses=(), strongest=()):
    columns = ["hypothesis_id", "claim", "measure", "direction", "confirmed", "prompts", "unit", "difference"]
    frame = pd.DataFrame([(*c, 60, "share", 0.5) for c in claims], columns=columns)
    words = frame["claim"].str.startswith('says "')
    frame = frame.assign(text=frame["claim"], proposer=words.map({True: "words", False: "phrases"}))
    return pairs.Told(
        "t", table, frame, {h.hypothesis_id: h for h in hypotheses}, ["Changed."], list(strongest), {"decode": 1.0}
    )


def test_counting_is_that_of_a_pocket_calculator():
    table = table_of()
    facts = {f.name: f for f in plain.facts(table)}
    asks = facts["ends_with_question"]
    assert (asks.base, asks.intervention, asks.more, asks.less) == (0.0, 0.5, 30, 0)
    assert asks.p == pytest.approx(2 * 0.5**30) and asks.plain and asks.side == "intervention"
    assert asks.sentence == "ends with question: 50%, was 0%"
    assert facts["opens_sure"].base == 1.0 and facts["opens_sure"].side == "base"
    assert facts["words"].unit == "size" and facts["words"].base == 7
    assert not facts["emoji"].plain and facts["emoji"].p == 1.0


@pytest.mark.parametrize(
    ("name", "shows", "shows_not"),
    [
        ("numbered_list", "First:\n1. one\n2. two", "In 1. FC Köln"),
        ("bulleted_list", "So:\n- one", "a well-known - thing"),
        ("several_paragraphs", "One.\n\nTwo.", "One.\nTwo."),
        ("first_person", "I'm sure.", "It is in Iowa"),
        ("eg", "fruit, e.g. apples", "eggs"),
        ("no_end_mark", "and then", "and then."),
        ("praises_question", "What a great question! So", "What is a great day?"),
        ("offers_help", "Done. Let me know if it fails.", "I let him know it."),
        ("emoji", "fine 🙂", "fine :)"),
    ],
)
def test_a_fact_draws_its_line_where_anyone_would(name, shows, shows_not):
    assert plain.SHARES[name](shows) and not plain.SHARES[name](shows_not)


def test_a_phrase_is_counted_letter_by_letter_and_not_inside_of_words():
    table = table_of()
    assert plain.phrase_fact(["would you like"], "anywhere", table).intervention == 0.5
    assert plain.phrase_fact(["sure"], "start", table).base == 1.0
    assert plain.occurrences(["is all"], "That is all, this all.") == 1
    assert plain.occurrences(["/th?at/"], "That at tat") == 2


def test_every_behaviour_that_stands_beside_a_fact_is_in_the_panel():
    assert {n for names in plain.BESIDE.values() for n in names} <= {m.name for m in panel()}
    assert set(plain.BESIDE) == set(plain.SHARES) | set(plain.SIZES)


def test_claims_are_counted_again_and_what_contradicts_counting_is_wrong():
    phrase = Hypothesis(
        'opens with "sure"', "base", words=("sure",), measure={"kind": "words", "words": ["sure"], "place": "start"}
    )
    told = told_of(
        table_of(),
        ("a", "ends with a question", "ends_with_question", "intervention", True),
        ("b", "opens with sure", "opens_with_sure", "intervention", True),  # the other way round
        (phrase.hypothesis_id, 'opens with "sure"', "words_sure", "base", True),
        ("d", "sentiment", "sentiment", "base", True),  # nothing here counts it
        ("f", 'says "sure"', "words_sure", "base", True),
        ("g", 'says "sure,"', "words_sure", "intervention", True),  # the other way round
        ("e", "has an emoji", "has_emoji", "base", False),  # not claimed
        hypotheses=[phrase],
    )
    again = pairs.recount(told).set_index("claim")["borne_out"]
    assert again.to_dict() == {
        "ends with a question": True,
        "opens with sure": False,
        'opens with "sure"': True,
        "sentiment": None,
        'says "sure"': True,
        'says "sure,"': False,
    }


def test_what_no_claim_tells_is_missed_and_the_verdict_has_to_name_one_of_the_largest():
    claims = [("a", "ends with a question", "ends_with_question", "intervention", True)]
    told = told_of(table_of(), *claims, strongest=["a"])
    missed = {f.name for f in pairs.missed(told)}
    assert "opens_sure" in missed and "ends_with_question" not in missed
    row = pairs.summary(told)
    assert row["missed"] == len(missed) and row["wrong"] == 0 and row["claims"] == 1
    assert "opens sure: 0%, was 100%" in row["facts"]
    assert not pairs.named(told_of(table_of(), *claims, strongest=[]))
    named = told_of(table_of(), ("b", "opens", "opens_with_sure", "base", True), strongest=["b"])
    assert pairs.named(named)
    other = told_of(table_of(), ("c", "moralizes", "moralizes", "base", True), strongest=["c"])
    assert not pairs.named(other)  # half of the answers, and the greeting went from all to none
    other.claims["difference"] = -1.0
    assert pairs.named(other)


def test_that_answers_are_brief_names_the_length_that_they_lost():
    said = {"base": "It rains all day, and the river rises. Stay at home. Read.", "intervention": "It rains."}
    rows = [(side, f"Prompt {p}", text) for p in range(60) for side, text in said.items()]
    table = pd.DataFrame(rows, columns=["side", "prompt", "text"])
    brief = ("b", "is five words or fewer", "is_brief", "intervention", True)
    assert pairs.largest(told_of(table, brief))[0].name in ("words", "sentences")
    assert pairs.named(told_of(table, brief, strongest=["b"]))
    longer = ("b", "is five words or fewer", "is_brief", "base", True)
    told = told_of(table, longer, strongest=["b"])
    assert not pairs.named(told)  # the other way round


def test_figures_of_the_bench_and_a_folder_that_is_not_there(tmp_path):
    told = told_of(table_of(), ("a", "ends", "ends_with_question", "intervention", True), strongest=["a"])
    same = table_of().assign(text="The same.")
    rows = pd.DataFrame([pairs.summary(told), pairs.summary(told_of(same))], columns=list(pairs.COLUMNS))
    m = pairs.metrics(rows)
    assert (m["pairs"], m["pairs_changed"], m["near_null_claims"], m["wrong_claims"]) == (2, 1, 0, 0)
    assert m["missed_10_points"] == rows["missed"].sum() and m["seconds_per_pair"] == 1.0
    pairs.save(rows, pairs.recount(told), tmp_path)
    assert "| t | Changed. |" in (tmp_path / "verdicts.md").read_text()
    assert json.loads((tmp_path / "rows.json").read_text())[0]["pair"] == "t"
    assert pairs.open_folder(tmp_path / "nowhere") == []
    assert "Skipped" in pairs.answer(rows.head(0), tmp_path / "nowhere")
    with pytest.raises(DriftbookError, match=r"no table 'x'"):
        pairs.open_folder(tmp_path, ["x"])
