"""The model labeller against a scripted endpoint: directions survive the drawn order of sides, and held-out texts
stay unseen."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from driftbook.discovery.hypotheses import moved_answers
from driftbook.errors import DriftbookError
from driftbook.evidence.labeller import Reading, pairs_to_show, parse, propose
from driftbook.ledger import Ledger
from driftbook.models.local_chat import LocalChat
from driftbook.prompts import Prompt
from driftbook.replies import Answer
from models import GREEDY, generated, loaded, requests_for


class Scripted:
    """An endpoint that reads what it is shown and finds who says "perhaps"; answers in JSON, or as ``replies`` say."""

    def __init__(self, replies=()):
        self.replies, self.prompts = list(replies), []

    def request(self, messages, sample, temperature=0.0):
        return {"messages": messages, "sample": sample, "temperature": temperature}

    def converse(self, conversations):
        for one in conversations:
            while (request := one.next()) is not None:
                text = request["messages"][1]["content"]
                self.prompts.append(text)
                said = self.replies.pop(0) if self.replies else self.find(text)
                one.receive(Answer(said, 0, 0, 0.0))

    @staticmethod
    def find(text):
        hedges = {who: len(re.findall(rf"{who} <answer>[^<]*perhaps", text)) for who in ("ONE", "TWO")}
        who = max(hedges, key=hedges.get)
        return json.dumps([{"statement": "hedges its claims", "who": who, "words": ["Perhaps "]}])


def texts(prompts=20, samples=2):
    rows = []
    for p in range(prompts):
        for side, word in (("base", "surely"), ("intervention", "perhaps")):
            for s in range(samples):
                rows.append((f"{p:02d}{side[0]}{s}", side, f"p{p}", f"{word} it is so {p} {s}", "discover"))
    return pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text", "split"])


WHOLE = {"base": -1, "intervention": -1}
PROMPTS = {f"p{p}": Prompt(f"question {p}") for p in range(20)}


def test_the_direction_is_right_whichever_side_is_shown_first():
    table = pairs_to_show(texts(), PROMPTS, 6, "x")
    for flip in (False, True):
        endpoint = Scripted()
        one = Reading(endpoint, table, WHOLE, flip)
        endpoint.converse([one])
        (found,) = one.hypotheses()
        assert found.direction == "intervention" and found.words == ("perhaps",) and found.proposer == "llm"
        assert set(found.evidence) <= set(table["intervention_id"])
        assert found.prompt == endpoint.prompts[0]
    first = {re.search(r"ONE <answer>(\w+)", prompt_of(table, flip))[1] for flip in (False, True)}
    assert first == {"surely", "perhaps"}


def prompt_of(table, flip):
    return Reading(Scripted(), table, WHOLE, flip).prompt()


def test_both_orders_are_drawn_and_near_duplicates_are_merged():
    endpoint = Scripted()
    clusters = {c: texts() for c in range(12)}
    found = propose(endpoint, texts(), PROMPTS, clusters, rounds=3)
    assert [h.text for h in found] == ["hedges its claims"]
    starts = [re.search(r"ONE <answer>(\w+)", p)[1] for p in endpoint.prompts]
    assert len(starts) == 15 and 3 <= starts.count("surely") <= 12


def test_later_questions_know_what_was_found():
    replies = [json.dumps([{"statement": s, "who": "TWO", "words": []}]) for s in ("is short", "asks a question")]
    endpoint = Scripted(replies)
    found = propose(endpoint, texts(), PROMPTS, rounds=3)
    assert [h.text for h in found] == ["is short", "asks a question", "hedges its claims"]
    assert "- is short" not in endpoint.prompts[0] and "- is short" in endpoint.prompts[1]
    assert "- asks a question" in endpoint.prompts[2]


def test_what_cannot_be_read_is_asked_again_and_then_let_go():
    endpoint = Scripted(["I cannot say", "[]", '[{"statement": "x"}]'])
    assert propose(endpoint, texts(), PROMPTS, rounds=1) == []
    assert len(endpoint.prompts) == 3


def test_only_texts_of_split_discover_are_shown_and_their_order_does_not_matter():
    table = texts()
    with pytest.raises(DriftbookError, match="unseen"):
        propose(Scripted(), table.assign(split=np.where(table.index == 3, "screen", "discover")), PROMPTS)
    one = pairs_to_show(table, PROMPTS, 5, "a")
    assert one.equals(pairs_to_show(table.sample(frac=1, random_state=1), PROMPTS, 5, "a"))
    assert not one.equals(pairs_to_show(table, PROMPTS, 5, "b"))
    assert len(one) == 5 and one["prompt"].is_unique
    assert pairs_to_show(table[table["side"] == "base"], PROMPTS, 5, "a").empty


def test_parsing_keeps_what_is_well_formed():
    good = 'Here: [{"statement": " uses  lists. ", "who": "one", "words": ["- ", 3]}, {"statement": "no side"}, "x"]'
    assert parse(good) == [("uses lists", "ONE", ("-",))]
    assert parse('One finding: {"statement": "a b c", "who": "ONE"}') == [("a b c", "ONE", ())]
    for bad in ("", "[", "[1, 2]", "[{]"):
        assert parse(bad) == []


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
    endpoint = Scripted([json.dumps([{"statement": "moves on", "who": "TWO", "words": []}])])
    (found, *_) = propose(endpoint, texts(), PROMPTS, moved=moved, rounds=0)
    assert found.text == "moves on" and found.cluster == {"intervention": 2, "base": 0}[found.direction]
    assert set(found.evidence) <= set(moved[0, 2]["text_id"])


def test_a_model_on_this_machine_is_asked_in_batches_and_remembers(tmp_path):
    model, ledger = loaded(max_position_embeddings=1024), Ledger(tmp_path / "a.sqlite", 0.0)
    table, tokens = pairs_to_show(texts(), PROMPTS, 1, "x"), GREEDY.max_new_tokens

    class Heard(Reading):
        def receive(self, answer):
            said.append(answer.text)
            super().receive(answer)

    def both(chat):
        return [Heard(chat, table, WHOLE, flip) for flip in (False, True)]

    said = []
    chat = LocalChat("tiny", lambda: model, "w", ledger, tokens)
    prompts = [one.next()["messages"] for one in both(chat)]
    ids = [tuple(model.encode_prompt(user["content"], system=system["content"])) for system, user in prompts]
    asked = both(chat)
    chat.converse(asked)
    greedy = [model.tokenizer.decode(t, skip_special_tokens=True) for t, _ in generated(model, requests_for(ids))]
    assert said[:2] == greedy  # a random model finds nothing, so each is asked twice more, at a temperature
    assert len(said) == ledger.accounts["tiny"].calls == 6 and all(one.found == [] for one in asked)
    again = LocalChat("tiny", pytest.fail, "w", ledger, tokens)
    again.converse(both(again))
    assert said[6:] == said[:6] and ledger.accounts["tiny"].calls == ledger.accounts["tiny"].cached == 6
    with pytest.raises(DriftbookError, match="1024 tokens"):
        LocalChat("tiny", lambda: model, "w", ledger, 2000).converse(both(LocalChat("x", lambda: model, "v", ledger)))
