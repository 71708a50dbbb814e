"""The model labeller against a scripted endpoint: directions survive the drawn order of sides, what is not quoted is
dropped, differences become axes with two poles, and held-out texts stay unseen."""

import json
import re
import zlib

import numpy as np
import pandas as pd
import pytest

from driftbook.behaviours.catalogue import measure_from
from driftbook.discovery.hypotheses import moved_answers
from driftbook.errors import DriftbookError
from driftbook.evidence.labeller import (
    Comparing,
    Difference,
    axes,
    is_quoted,
    pairs_to_show,
    parse,
    propose,
    read_pairs,
    statement,
)
from driftbook.ledger import Ledger
from driftbook.models.local_chat import LocalChat
from driftbook.prompts import Prompt
from driftbook.replies import Answer
from models import GREEDY, generated, loaded, requests_for


class Scripted:
    """An endpoint that reads the pair that it is shown and finds who says "perhaps"; or answers as ``replies`` say."""

    def __init__(self, replies=(), does="hedges its claims", quote="perhaps"):
        self.replies, self.prompts, self.does, self.quote = list(replies), [], does, quote

    def request(self, messages, sample, temperature=0.0):
        return {"messages": messages, "sample": sample, "temperature": temperature}

    def converse(self, conversations):
        for one in conversations:
            while (request := one.next()) is not None:
                text = request["messages"][1]["content"]
                self.prompts.append(text)
                said = self.replies.pop(0) if self.replies else self.find(text)
                one.receive(Answer(said, 0, 0, 0.0))

    def find(self, text):
        who = next(w for w in "AB" if "perhaps" in shown(text, w))
        return json.dumps([{"answer": who, "does": self.does, "quote": self.quote}])


def shown(text, who):
    return re.search(rf"<{who} (\w+)>\n(.*?)\n</{who} \1>", text, re.DOTALL)[2]


def texts(prompts=20, samples=2):
    rows = []
    for p in range(prompts):
        for side, word in (("base", "surely"), ("intervention", "perhaps")):
            for s in range(samples):
                rows.append((f"{p:02d}{side[0]}{s}", side, f"p{p}", f"{word} it is so {p} {s}", "discover"))
    return pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text", "split"])


def embed(said):
    """One direction for each first word."""
    return np.eye(997)[[zlib.crc32(t.split()[0].encode()) % 997 for t in said]]


PROMPTS = {f"p{p}": Prompt(f"question {p}") for p in range(20)}


def test_the_direction_is_right_whichever_side_is_shown_first():
    endpoint = Scripted()
    found, account = read_pairs(endpoint, texts(), PROMPTS, count=16)
    assert {d.side for d in found} == {"intervention"} and {d.statement for d in found} == {"hedges its claims"}
    first = [shown(p, "A").split()[0] for p in endpoint.prompts]
    assert len(first) == 16 and 3 <= first.count("surely") <= 13
    assert (account.pairs, account.proposed, account.quoted) == (16, 16, 16)
    assert all(p.index("<prompt ") < p.index("<A ") < p.index("</B ") < p.index("Reply with") for p in endpoint.prompts)


def test_what_is_not_quoted_from_its_own_answer_is_dropped_and_counted():
    wrong = [json.dumps([{"answer": w, "does": "hedges its claims", "quote": "perhaps"} for w in "A"])] * 16
    found, account = read_pairs(Scripted(wrong), texts(), PROMPTS, count=16)
    assert account.proposed == 16 and account.quoted == len(found) and 3 <= len(found) <= 13
    assert {d.side for d in found} == {"intervention"}
    found, account = read_pairs(Scripted(quote="maybe"), texts(), PROMPTS, count=4)
    assert found == [] and account.proposed == 4


@pytest.mark.parametrize(
    ("quote", "there"),
    [
        ("It’s  a\nTest", True),
        ("it's a **test**", True),
        ("“it's a test”", True),
        ("its a test", False),
        ("", False),
        ("...", False),
    ],
)
def test_a_quote_is_found_whatever_its_case_spaces_marks_and_apostrophes(quote, there):
    assert is_quoted(quote.strip("“”"), "So: *It's* a test, I think.") is there


def test_parsing_keeps_what_is_well_formed():
    good = {"answer": "Answer B", "does": "The answer is more polite.", "quote": '"Please..."'}
    said = f'```json\n[{json.dumps(good)}, {{"answer": "A"}}, 3, {{"answer": "C", "does": "x y z", "quote": "q"}}]'
    assert parse(said) == [("B", "is more polite", "Please")]
    cut = '[{"answer": "A", "does": "uses lists", "quote": "1. One",}, {"answer": "B", "does": "is'
    assert parse(cut) == [("A", "uses lists", "1. One")], "what stood whole before the end"
    begun = '```json\n[{"answer": "A", "does": "gives reasons", "quote": "Because it'
    assert parse(begun) == parse(begun + '"\n ') == [("A", "gives reasons", "Because it")], "a quote that was begun"
    same = [{"answer": w, "does": "gives advice", "quote": w} for w in "AB"]
    assert parse(json.dumps(same)) == [], "what is said of both is no difference"
    for bad in ("", "[", "[1, 2]", '{"answer": 1, "does": "a b c", "quote": "q"}', "[{]"):
        assert parse(bad) == []


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("The answer provides steps.", "provides steps"),
        ("Answer A is more formal", "is more formal"),
        ("it hedges", "hedges"),
        ("offers help, while B refuses", "offers help"),
        ("Gives a list, " + "and so on " * 9, "gives a list"),
    ],
)
def test_a_statement_is_the_verb_phrase(does, said):
    assert statement(does) == said


def test_what_cannot_be_read_is_asked_again_once_and_then_let_go():
    endpoint = Scripted(["I cannot say", "[]"])
    assert propose(endpoint, texts(), PROMPTS, embed, count=1)[0] == []
    assert len(endpoint.prompts) == 2


def differences(*rows):
    return [Difference(said, side, "q", f"p{n}", f"t{n}{side}") for said, side, prompts in rows for n in range(prompts)]


def test_statements_that_say_the_same_are_one_axis_and_less_of_it_counts_for_the_other_side():
    found = axes(differences(("is more formal", "intervention", 3), ("is less formal", "base", 5)), embed, {})
    assert [(a.pole, a.side, a.pairs, a.against) for a in found] == [("is more formal", "intervention", 5, 0)]
    split = differences(("gives advice", "intervention", 3), ("gives warnings", "base", 3))
    assert axes(split, embed, {}) == [], "as often of one side as of the other"
    assert axes(differences(("gives advice", "intervention", 1)), embed, {}) == [] and axes([], embed, {}) == []


def test_what_is_said_of_both_answers_of_the_same_pairs_are_the_poles_of_one_axis():
    found = axes(
        differences(("explains why", "intervention", 5), ("stays short", "base", 4), ("uses lists", "base", 2)),
        embed,
        {},
    )
    assert [(a.pole, a.other, a.side) for a in found] == [
        ("explains why", "stays short", "intervention"),
        ("uses lists", "", "base"),
    ]


def test_what_a_prompt_is_about_does_not_keep_two_statements_apart():
    prompts = {"p0": "How do volcanoes erupt?", "p1": "Name materials for a kite."}
    said = ("explains in detail how the volcanoes erupt", "explains in detail which materials a kite takes")
    found = [Difference(s, "intervention", "q", f"p{n}", f"t{n}") for n, s in enumerate(said)]

    def words_of(cores):
        seen.extend(cores)
        return embed(cores)

    seen: list[str] = []
    axes(found, words_of, prompts)
    assert seen == ["explains in detail how the", "explains in detail which a kite takes"]
    seen.clear()
    axes([Difference("praises volcanoes", "base", "q", "p0", "t")], words_of, {"p0": "Praise volcanoes."})
    assert seen == ["praises volcanoes"]  # nothing would be left


def test_an_axis_is_tested_on_the_measure_that_shows_it_else_by_a_judge():
    hedges = measure_from({"kind": "panel", "name": "hedges"})
    found, account = propose(Scripted(), texts(), PROMPTS, embed, [hedges], count=8)
    (one,) = found
    assert one.measure == hedges.spec and one.text == "hedges its claims" and one.direction == "intervention"
    assert one.proposer == "llm" and set(one.evidence) <= set(texts().query("side == 'intervention'")["text_id"])
    assert account.axes == 1
    still = measure_from({"kind": "words", "words": ["it is"], "label": "hedges"})
    assert propose(Scripted(), texts(), PROMPTS, embed, [still], count=8)[0][0].measure == {"kind": "judge"}
    far = propose(Scripted(does="sounds unsure"), texts(), PROMPTS, embed, [hedges], count=8)[0]
    assert far[0].measure == {"kind": "judge"} and far[0].text == "sounds unsure"


def test_only_texts_of_split_discover_are_shown_and_their_order_does_not_matter():
    table = texts()
    with pytest.raises(DriftbookError, match="unseen"):
        propose(Scripted(), table.assign(split=np.where(table.index == 3, "screen", "discover")), PROMPTS, embed)
    one = pairs_to_show(table, PROMPTS, 5, "a")
    assert one.equals(pairs_to_show(table.sample(frac=1, random_state=1), PROMPTS, 5, "a"))
    assert not one.equals(pairs_to_show(table, PROMPTS, 5, "b"))
    assert len(one) == 5 and one["prompt"].is_unique
    assert pairs_to_show(table[table["side"] == "base"], PROMPTS, 5, "a").empty
    first, second = Scripted(), Scripted()
    read_pairs(first, table, PROMPTS)
    read_pairs(second, table.sample(frac=1, random_state=1), PROMPTS)
    assert first.prompts == second.prompts


def test_matched_clusters_are_those_that_answers_moved_between():
    members = texts().assign(cluster=0)
    number = members["prompt_id"].str[1:].astype(int)
    changed = members["side"] == "intervention"
    members.loc[changed & (number < 8), "cluster"] = 2
    members.loc[changed & (number >= 8) & (number < 11), "cluster"] = 3  # too few
    members.loc[number >= 18, "cluster"] = 4  # both sides moved there, and 4 is not stable
    moved = moved_answers(members, [0, 2, 3])
    assert list(moved) == [(0, 2)] and moved[0, 2]["prompt_id"].nunique() == 8
    assert set(moved[0, 2].groupby("side")["cluster"].unique().map(tuple)) == {(0,), (2,)}
    endpoint = Scripted()
    (found, *_), account = propose(endpoint, texts(), PROMPTS, embed, moved=moved, count=0)
    assert account.pairs == 3 and found.cluster == {"intervention": 2, "base": 0}[found.direction]
    assert set(found.evidence) <= set(moved[0, 2]["text_id"])
    inside, _ = read_pairs(Scripted(), texts(), PROMPTS, {7: texts()}, count=0)
    assert {d.cluster for d in inside} == {7} and len(inside) == 3


def test_a_model_on_this_machine_is_asked_in_batches_and_remembers(tmp_path):
    model, ledger = loaded(max_position_embeddings=1024), Ledger(tmp_path / "a.sqlite", 0.0)
    tokens = GREEDY.max_new_tokens

    class Heard(Comparing):
        def receive(self, answer):
            said.append(answer.text)
            super().receive(answer)

    def both(chat):
        both = {"A": ("base", "a", "surely"), "B": ("intervention", "b", "perhaps")}
        return [Heard(chat, "question", answers) for answers in (both, {"A": both["B"], "B": both["A"]})]

    said = []
    chat = LocalChat("tiny", lambda: model, "w", ledger, tokens)
    prompts = [one.next()["messages"] for one in both(chat)]
    ids = [tuple(model.encode_prompt(user["content"], system=system["content"])) for system, user in prompts]
    asked = both(chat)
    chat.converse(asked)
    greedy = [model.tokenizer.decode(t, skip_special_tokens=True) for t, _ in generated(model, requests_for(ids))]
    assert said[:2] == greedy  # a random model finds nothing, so each is asked once more, at a temperature
    assert len(said) == ledger.accounts["tiny"].calls == 4 and all(one.found == [] for one in asked)
    again = LocalChat("tiny", pytest.fail, "w", ledger, tokens)
    again.converse(both(again))
    assert said[4:] == said[:4] and ledger.accounts["tiny"].calls == ledger.accounts["tiny"].cached == 4
    with pytest.raises(DriftbookError, match="1024 tokens"):
        LocalChat("tiny", lambda: model, "w", ledger, 2000).converse(both(LocalChat("x", lambda: model, "v", ledger)))
