"""The pairwise pipeline against a server that answers by rule: what the rule supports is confirmed and what is drawn is
not, the tests are scipy's, and neither the order of two answers nor the name of a side matters."""

import re
import zlib
from dataclasses import replace
from math import comb

import numpy as np
import pandas as pd
import pytest

from chat_server import Server
from driftbench.proof import pairwise, scoring
from driftbench.proof.baselines import plain_counts
from driftbench.proof.pairwise import DIFFERS, Question
from driftbook.chat import ChatClient
from driftbook.errors import DriftbookError
from driftbook.ledger import Ledger
from driftbook.replies import Answer
from test_proof import planted_harvest

TEA, WARM = "mentions tea", "sounds warm"


def drawn(text):
    return zlib.crc32(text.encode())


class Reader:
    """Says of a pair that one answer mentions tea, or, where neither or both do, that one sounds warm. Judges tea by
    the word, and warmth by a draw for each answer, so that it is as frequent on either side."""

    def __init__(self, judge=None):
        self.judge = judge or self.by_rule

    def __call__(self, body):
        a, b = (Server.part(body, who) for who in "AB")
        if body["messages"][1]["content"].endswith(DIFFERS):
            return f"It {TEA}." if self.tea(a) != self.tea(b) else f"The answer {WARM}."
        axis = re.search(r"shows this more: (.*)\?\n", body["messages"][1]["content"])[1]
        return self.judge(axis, a, b)

    @staticmethod
    def tea(text):
        return "tea" in text.split()

    def by_rule(self, axis, a, b):
        shows = self.tea if axis == TEA else drawn
        return "TIE" if shows(a) == shows(b) else "AB"[shows(b) > shows(a)]


def embed(phrases):
    return np.stack([np.eye(2)[int("tea" in p)] for p in phrases])


def found(tmp_path, harvest, reader=None, **sizes):
    """The outcome, and the bodies of all requests."""
    with Server(answer=reader or Reader()) as server:
        ledger = Ledger(tmp_path / "answers.sqlite", 0.0)
        chat = ChatClient("reader", "m", server.url, ledger)
        outcome = pairwise.pairwise(harvest, chat, embed, **({"pairs": 20, "axes": 4, "held": 30} | sizes))
        ledger.close()
    return outcome, server.bodies


def by_axis(outcome):
    return outcome.claims.set_index("text")


def by_hand(harvest, scores, shows):
    """(more, less) of what ``shows`` of the texts that were judged."""
    own = harvest.texts[harvest.texts["text_id"].isin(scores)]
    wide = own.assign(shown=own["text"].map(shows)).pivot(index="prompt_id", columns="side", values="shown")
    return int((wide["intervention"] > wide["base"]).sum()), int((wide["intervention"] < wide["base"]).sum())


def sign_test(more, less):
    """Two-sided, summed by hand."""
    n = more + less
    return min(1.0, 2 * sum(comb(n, k) for k in range(max(more, less), n + 1)) / 2**n)


def test_it_confirms_what_the_rule_supports_and_not_what_is_drawn(tmp_path):
    harvest = planted_harvest(0.6)
    outcome, _ = found(tmp_path, harvest, alpha=0.01)
    claims = by_axis(outcome)
    assert claims["confirmed"].to_dict() == {TEA: True, WARM: False}
    assert claims.loc[TEA, "direction"] == "intervention" and claims.loc[WARM, "scores"] is None
    assert min(claims.loc[WARM, "more"], claims.loc[WARM, "less"]) >= 5, "the draw decides, it does not tie"
    row = scoring.score(outcome, scoring.Truth(harvest))
    assert row["recovered"] and row["confirmed"] == 1 and row["recounted"] == 0
    shown = harvest.texts.set_index("text_id")["text"].map(Reader.tea)
    assert all(value == (1.0 if shown[i] else value) for i, value in claims.loc[TEA, "scores"].items())
    assert set(claims.loc[TEA, "scores"].values()) == {0.0, 0.5, 1.0}


def test_its_tests_are_those_of_the_prompts_that_were_judged(tmp_path):
    harvest = planted_harvest(0.4)
    claims = by_axis(found(tmp_path, harvest, alpha=1.0)[0])
    for axis, shows in ((TEA, Reader.tea), (WARM, drawn)):
        one = claims.loc[axis]
        assert (one["more"], one["less"]) == by_hand(harvest, one["scores"], shows)
        assert one["p"] == pytest.approx(sign_test(one["more"], one["less"]))
    least, most = sorted(claims["p"])
    assert sorted(claims["q"]) == pytest.approx([min(2 * least, most), most])  # Benjamini-Hochberg over two


def test_held_out_pairs_are_unseen_when_axes_are_proposed_and_a_prompt_counts_once(tmp_path):
    harvest = planted_harvest(0.6)
    outcome, bodies = found(tmp_path, harvest, alpha=1.0)
    split = harvest.texts.set_index("text")["split"]
    for body in bodies:
        asked = body["messages"][1]["content"].endswith(DIFFERS)
        assert {split[Server.part(body, who)] == "discover" for who in "AB"} == {asked}
    own = harvest.texts[harvest.texts["text_id"].isin(outcome.claims["scores"][0])]
    assert (own.groupby(["prompt_id", "side"]).size() == 1).all() and len(own) == 60
    assert outcome.paid.calls == len(bodies) == 20 + 30 * 2 * 2
    assert outcome.paid.texts == 2 * (20 + 30) and outcome.budget == 100 / len(harvest.texts)
    assert outcome.paid.usd > 0


def test_it_is_blind_to_the_side_and_shows_either_first(tmp_path):
    harvest = planted_harvest(0.9)
    _, bodies = found(tmp_path, harvest)
    asked = [b for b in bodies if b["messages"][1]["content"].endswith(DIFFERS)]
    first = [Reader.tea(Server.part(b, "A")) for b in asked]
    assert 3 <= sum(first) <= 17
    assert not any(w in m["content"] for b in bodies for m in b["messages"] for w in ("base", "intervention", "chang"))
    judged = [b for b in bodies if b not in asked]
    pairs = [(Server.part(b, "A"), Server.part(b, "B")) for b in judged]
    assert sorted(pairs) == sorted((b, a) for a, b in pairs)


@pytest.mark.parametrize("letter", ["A", "B", "TIE", "I cannot say", "A or B"])
def test_a_model_that_goes_by_the_place_confirms_nothing(tmp_path, letter):
    outcome, _ = found(tmp_path, planted_harvest(0.9), Reader(lambda axis, a, b: letter), alpha=0.999)
    assert outcome.claims[["more", "less"]].to_numpy().sum() == 0 and (outcome.claims["p"] == 1).all()
    assert not outcome.claims["confirmed"].any()


def test_a_model_that_names_only_the_first_answer_or_none_is_heard_in_the_order_that_it_hears(tmp_path):
    reader = Reader(lambda axis, a, b: "A" if Reader.tea(a) > Reader.tea(b) else "TIE")
    harvest = planted_harvest(0.6)
    one = by_axis(found(tmp_path, harvest, reader)[0]).loc[TEA]
    assert one["confirmed"] and (one["more"], one["less"]) == by_hand(harvest, one["scores"], Reader.tea)


def test_where_the_sides_change_names_the_direction_turns_and_nothing_else(tmp_path):
    harvest = planted_harvest(0.6)
    other = {"base": "intervention", "intervention": "base"}
    turned = replace(harvest, texts=harvest.texts.assign(side=harvest.texts["side"].map(other)))
    here, there = (by_axis(found(tmp_path, h)[0]) for h in (harvest, turned))
    assert there.loc[TEA, "direction"] == "base" and there.loc[TEA, "confirmed"]
    assert (there["more"] == here["less"]).all() and (there["p"] == here["p"]).all()
    assert there.loc[TEA, "scores"] == here.loc[TEA, "scores"]


def test_nothing_is_claimed_where_nothing_changed_or_nothing_is_said(tmp_path):
    null = planted_harvest(0.0, kind="none")
    outcome, _ = found(tmp_path, null, alpha=0.01)
    assert outcome.claims["text"].tolist() == [WARM] and not outcome.claims["confirmed"].any()
    silent, bodies = found(tmp_path / "silent", null, lambda body: "")
    assert silent.claims.empty and len(bodies) == 20
    assert scoring.score(silent, scoring.Truth(null))["confirmed"] == 0


def test_phrases_that_say_the_same_are_one_axis_and_the_most_said_come_first():
    said = ["sounds warm", "mentions tea", "brings up tea", "mentions tea", ""]
    assert pairwise.merged(said, embed) == ["mentions tea", "sounds warm"]
    assert pairwise.merged(["brings up tea", "has tea"], embed) == ["has tea"]
    assert pairwise.merged(["", "has tea"], embed) == ["has tea"] and pairwise.merged([""], embed) == []
    angle = {"tea": 0.0, "a tea": np.arccos(0.65), "milk": np.arccos(0.65) + np.arccos(0.55)}
    near = pairwise.merged(list(angle), lambda said: np.array([(np.cos(angle[p]), np.sin(angle[p])) for p in said]))
    assert near == ["tea", "milk"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Mentions tea.\nIt is about tea.", "mentions tea"),
        ("A is more formal, while B is not.", "is more formal"),
        ("**Answer B:** hedges", "hedges"),
        ("The answer hedges", "hedges"),
        ("Hedges, and B gives examples", "hedges"),
        ("A is a statement, B is a question.", "is a statement"),
        ("Is more direct than answer B", "is more direct"),
        ("word " * 30, ""),
        ("", ""),
    ],
)
def test_a_phrase_names_neither_answer(reply, said):
    assert pairwise.phrase(reply) == said


@pytest.mark.parametrize(
    ("reply", "side"),
    [
        ("A", "base"),
        ("**B**", "intervention"),
        ("Answer A.", "base"),
        ("Tie", None),
        ("A tie", None),
        ("A and B", None),
    ],
)
def test_a_reply_names_one_answer_or_none(reply, side):
    question = Question(None, "", ("base", "intervention"))
    question.receive(Answer(reply, 0, 0, 0.0))
    assert question.side == side
    question.receive(None)
    assert question.side is None and question.next() is None


def test_it_stands_beside_the_other_ways_on_the_same_plants(tmp_path):
    harvests = [planted_harvest(0.6), planted_harvest(0.0, kind="none")]
    harvests[1] = replace(harvests[1], plant=replace(harvests[1].plant, name="nothing"))
    truths = [scoring.Truth(h) for h in harvests]
    with Server(answer=Reader()) as server:
        chat = ChatClient("reader", "m", server.url, Ledger(tmp_path / "a.sqlite", 0.0))
        sizes = {"pairs": 20, "axes": 4, "held": 30, "alpha": 0.01}
        outcomes = pairwise.on_plants(harvests, ["tea 1"], chat, embed, **sizes)
        with pytest.raises(DriftbookError, match=r"bench\.pairwise\.plants: 'te 1' is none of tea 1, nothing 1"):
            pairwise.on_plants(harvests, ["te 1"], chat, embed)
    scored = [scoring.score(o, truths[n]) for n, o in outcomes]
    table = pd.DataFrame(
        [
            scored[0] | {"rung": r, "budget": b, "plant": p}
            for r in ("old", "+")
            for b in (0.5, 1.0)
            for p in ("tea", "?")
        ]
    )
    rows = pairwise.beside(scored, table, ["old", "+"])
    assert rows[["plant", "rung"]].to_numpy().tolist() == [["tea", pairwise.NAME], ["tea", "old"], ["tea", "+"]]
    assert (rows["budget"][1:] == 1.0).all()
    told = pairwise.metrics(rows)
    assert told["pairwise_recall"] == 1.0 and told["pairwise_plants"] == 1 and told["pairwise_calls"] == 140
    assert pairwise.axes_of(outcomes, harvests)["plant"].tolist() == ["tea 1"] * 2


def test_without_a_model_the_part_is_left_out_and_a_judge_that_is_none_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "a.sqlite", 0.0)
    harvest = planted_harvest(0.6)
    assert pairwise.opened(None, ledger, tmp_path, tmp_path, None) is None
    outcomes = pairwise.on_plants([harvest], ["tea 1"], None, embed)
    table = pd.DataFrame([scoring.score(plain_counts(harvest), scoring.Truth(harvest))])
    rows = pairwise.beside([], table, ["plain counts"])
    assert outcomes == [] and rows.empty and list(rows) == list(table)
    assert pairwise.metrics(rows) == {} and pairwise.axes_of([], [harvest]).empty
    with pytest.raises(DriftbookError, match="lexicon is no language model"):
        pairwise.opened({"kind": "lexicon"}, ledger, tmp_path, tmp_path, None)
    spec = {"kind": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    assert pairwise.opened(spec, ledger, tmp_path, tmp_path, None).model == "m"
