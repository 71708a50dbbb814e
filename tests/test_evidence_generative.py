"""The generative check on models whose likelihoods are known."""

import json

import numpy as np
import pandas as pd
import pytest

from chat_server import Server
from driftbook.chat import ChatClient
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.generative import preferred, written_by_labeller, written_with_words
from driftbook.ledger import Ledger
from driftbook.prompts import Prompt
from planted import FILLER

HEDGES = Hypothesis("hedges", "intervention", words=("might", "perhaps", "/may(be)?/"))


def seen(n=40):
    rng = np.random.default_rng(0)
    texts = [
        " ".join([*rng.choice(FILLER, 20), *(["might"] * (i % 3 == 0)), *(["perhaps"] * (i % 5 == 0))])
        for i in range(n)
    ]
    return pd.DataFrame(
        {"text_id": [f"{i:03d}" for i in range(n)], "prompt_id": [f"p{i // 2}" for i in range(n)], "text": texts}
    )


def likes(word, by):
    """The intervention gives texts that hold the word so much more log-likelihood than the base does."""
    return lambda asked: np.array([by * (word in t.split()) + 1e-3 * len(t) for _, t in asked])


def test_words_are_put_into_answers_beside_controls_that_are_about_as_frequent():
    written = written_with_words(HEDGES, seen(), ["perhaps", "weather"], prompts=10, per_prompt=2)
    assert len({w.prompt_id for w in written}) == 10 and len(written) == 20
    for w in written:
        *opening, word = w.shows.split()
        *same, control = w.shows_not.split()
        assert opening == same and word in ("might", "perhaps")
        assert control in FILLER and control != "weather"
    assert written == written_with_words(HEDGES, seen().sample(frac=1, random_state=2), ["perhaps", "weather"], 10, 2)
    assert written_with_words(Hypothesis("x", "base", words=("/x/",)), seen(), [], 5) == []


def test_models_that_differ_in_the_claim_tell_the_texts_apart_and_others_do_not():
    written = written_with_words(HEDGES, seen(), [], prompts=16, per_prompt=3)

    def by_hash(asked):
        return np.array([int.from_bytes(__import__("hashlib").sha256(t.encode()).digest()[:4]) for _, t in asked])

    told = preferred(HEDGES, written, lambda a: likes("might", 3.0)(a) + likes("perhaps", 3.0)(a))
    assert told["preferred"] == 1.0 and told["verdict"] == "told apart" and told["prompts"] == 16
    other = preferred(Hypothesis("hedges", "base", words=HEDGES.words), written, likes("might", 3.0))
    assert other["preferred"] <= 0.5 and other["verdict"] == "not told apart"
    blind = preferred(HEDGES, written, by_hash)
    assert blind["low"] < 0.5 < blind["high"] and blind["verdict"] == "not told apart"
    equal = preferred(HEDGES, written, lambda a: np.zeros(len(a)))
    assert equal["preferred"] == 0.5 and equal["verdict"] == "not told apart"


def test_a_labeller_writes_both_texts_and_is_asked_again_for_what_cannot_be_read(tmp_path):
    def write(body):
        asked = body["messages"][1]["content"]
        return json.dumps({"shows": f"perhaps {len(asked)}", "shows_not": "surely"}) if "hedges" in asked else "no"

    with Server(script=["garbage"], answer=write) as server:
        ledger = Ledger(tmp_path / "a.sqlite", 1.0)
        endpoint = ChatClient("labeller", "m", server.url, ledger, pause=0.001)
        prompts = [Prompt("Will it rain?"), Prompt("Is it late?")]
        written = written_by_labeller(endpoint, HEDGES, prompts)
        assert [w.prompt_id for w in written] == [p.prompt_id for p in prompts] and len(server.bodies) == 3
        assert all(w.shows.startswith("perhaps") and w.shows_not == "surely" for w in written)
        assert written_by_labeller(endpoint, Hypothesis("x", "base"), prompts[:1]) == []


def test_likelihoods_are_those_of_the_logits():
    import torch

    from driftbook.models.replay import TokenSequence
    from driftbook.models.sides import Side
    from models import loaded, some_prompts

    model = loaded()
    first, second = some_prompts([5, 9])
    sequences = [TokenSequence(first, second), TokenSequence(second, first), TokenSequence(first, ())]
    got = Side("base", model, "k").log_likelihood(sequences)
    for value, s in zip(got, sequences, strict=True):
        logits = model.model(input_ids=torch.tensor([list(s.ids)])).logits[0].log_softmax(-1)
        n = len(s.prompt_ids)
        wanted = sum(float(logits[n - 1 + i, t]) for i, t in enumerate(s.response_ids))
        assert value == pytest.approx(wanted, abs=1e-3)
