"""Answers under instructions: sampled with the system prompt, filtered by named rules, paired, and read without it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbook import traits
from driftbook.errors import DriftbookError
from driftbook.models import instructed
from driftbook.parameters import Instructed, Traits
from models import fresh, loaded
from test_doses import progress
from test_traits import warm, warm_with


def test_answers_are_sampled_under_both_instructions(tmp_path, monkeypatch):
    model, trait, told = loaded("llama", "sdpa"), warm(tmp_path, max_scenarios=3), []
    trait = warm_with(trait, instructions=(*trait.instructions, ("Show warmth.", "Show none.")))
    asked = []
    encode = model.encode_prompt
    monkeypatch.setattr(
        type(model), "encode_prompt", lambda self, t, s=None, m=None: (asked.append((t, s)), encode(t, s))[1]
    )
    spec = Instructed(samples=2, max_new_tokens=6)
    table = instructed.sample_answers(model, trait, spec, 0, tmp_path, told.append)
    assert len(table) == 12 == sum(told) and table.label.tolist() == [1, 0] * 6
    assert table.scenario.tolist() == sorted([0, 1, 2] * 4)
    assert set(asked) == {
        (trait.scenarios[0].prompt, "Be warm."), (trait.scenarios[0].prompt, "Be cold."),
        (trait.scenarios[1].prompt, "Show warmth."), (trait.scenarios[1].prompt, "Show none."),
        (trait.scenarios[2].prompt, "Be warm."), (trait.scenarios[2].prompt, "Be cold."),
    }  # fmt: skip
    for row in table.itertuples():
        assert model.decode(list(row.token_ids)).strip() == row.text and not set(row.token_ids) & model.eos_ids


def test_finished_answers_come_from_the_cache(tmp_path, monkeypatch):
    model, trait, spec = (
        loaded("llama", "sdpa"),
        warm(tmp_path, max_scenarios=2),
        Instructed(samples=1, max_new_tokens=4),
    )
    calls, engine = [], instructed.LocalEngine.generate
    monkeypatch.setattr(instructed.LocalEngine, "generate", lambda *a, **k: (calls.append(1), engine(*a, **k))[1])
    first = instructed.sample_answers(model, trait, spec, 0, tmp_path)
    again = instructed.sample_answers(model, trait, spec, 0, tmp_path)
    assert first.text.tolist() == again.text.tolist() and len(calls) == 1
    instructed.sample_answers(model, trait, spec, 1, tmp_path)
    instructed.sample_answers(model, warm_with(trait, instructions=(("Be hot.", "Be icy."),)), spec, 0, tmp_path)
    assert len(calls) == 3


GOOD = "so glad that you asked me about the rain today my friend"
BAD = "I dislike the rain and I would much rather not say it"
LOOP = "rain is rain is rain is rain is rain is rain is"


def answers(*pairs: tuple[str, str]) -> pd.DataFrame:
    rows = [
        (i, 0, label, "", "p", text, [7])
        for i, pair in enumerate(pairs)
        for label, text in zip((1, 0), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["scenario", "sample", "label", "instruction", "prompt", "text", "token_ids"])


def test_every_rule_says_what_it_left_out(tmp_path):
    trait, spec = warm(tmp_path), Instructed()
    table = instructed.filter_answers(
        answers(
            (GOOD, BAD),
            ("short", BAD),
            (GOOD, LOOP),
            (BAD, BAD),  # told to be warm, and is not
            (GOOD, GOOD),
            (GOOD + " and so on and on because it is a very long story to tell you in so many words", BAD),
        ),
        trait,
        spec,
    )
    assert table.dropped.tolist() == [
        "", "", "short", "no partner", "no partner", "repetitive", "phrases", "no partner", "no partner", "phrases",
        "length", "length",
    ]  # fmt: skip
    row = instructed.filter_counts({"warm": table}).iloc[0].to_dict()
    assert row == {
        "trait": "warm", "answers": 12, "kept": 2, "short": 1, "repetitive": 1, "phrases": 2, "judge": 0,
        "no partner": 4, "length": 2,
    }  # fmt: skip


def test_a_judge_reads_in_the_place_of_the_phrases(tmp_path):
    seen = []

    def score(trait, texts, prompts):
        seen.extend(texts)
        return np.array([{GOOD: 0.9, BAD: 0.2}.get(t, np.nan) for t in texts])

    neutral = "the rain falls on the hills and then it runs to sea"
    table = instructed.filter_answers(
        answers((GOOD, BAD), (BAD, GOOD), (neutral, BAD), ("short", BAD)), warm(tmp_path), Instructed(), score
    )
    assert table.dropped.tolist() == ["", "", "judge", "judge", "judge", "no partner", "short", "no partner"]
    assert "short" not in seen  # what a rule left out is not paid for


def test_kept_answers_are_read_behind_the_prompt_alone_unless_asked(tmp_path):
    model, trait = loaded("llama", "sdpa"), warm(tmp_path)
    table = answers((GOOD, BAD), (GOOD, "short"), (GOOD, BAD)).assign(instruction=["Be warm.", "Be cold."] * 3)
    table["token_ids"] = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in table.text]
    table = instructed.filter_answers(table, trait, Instructed())
    sequences, labels, scenarios = instructed.kept_sequences(model, trait, table, read_instruction=False)
    assert labels.tolist() == [1, 0, 1, 0] and scenarios.tolist() == [0, 0, 2, 2]
    assert sequences[0].prompt_ids == sequences[1].prompt_ids == tuple(model.encode_prompt("p"))
    assert sequences[0].response_ids == tuple(table.token_ids[0])
    with_it, _, _ = instructed.kept_sequences(model, trait, table, read_instruction=True)
    assert with_it[1].prompt_ids == tuple(model.encode_prompt("p", "Be cold."))


def test_answers_of_a_model_become_contrasts(tmp_path):
    """A real run on a tiny model: what it says is noise, so the filter is opened wide; the ids are those it sampled."""
    model, trait = fresh("llama", "sdpa", eos=frozenset()), warm(tmp_path)
    spec = Instructed(samples=2, max_new_tokens=12, min_words=1, max_repetition=1.0)
    made, tables = traits.instructed_answers(model, [trait], spec, 4, 0, tmp_path, progress)
    (contrast,) = traits.read_contrasts(model, made, ["resid_post"], "response_avg", tmp_path)
    kept = tables["warm"][tables["warm"].dropped == ""]
    assert len(contrast.labels) == len(kept) == 2 * contrast.pairs
    assert {s.response_ids for s in made[0].sequences} == {tuple(ids) for ids in kept.token_ids}
    assert made[0].scenarios.max() + 1 == kept.scenario.nunique()
    strict = Instructed(samples=1, max_new_tokens=4, min_words=50)
    with pytest.raises(DriftbookError, match=r"trait warm: 0 of 8 scenarios.*'short': 16.*traits\.instructed\.samples"):
        traits.instructed_answers(model, [trait], strict, 4, 0, tmp_path, progress)


def test_the_judge_is_asked_whether_the_answer_shows_the_trait(tmp_path, monkeypatch):
    asked = []

    class Judge:
        def score(self, texts, hypotheses, prompts):
            asked.append((texts, [h.text for h in hypotheses], prompts))
            return np.array([[0.25], [np.nan]])

    monkeypatch.setattr("driftbook.traits.open_judge", lambda spec, role, *_: Judge())
    run = SimpleNamespace(section=Traits(judge={"kind": "local"}), cache=tmp_path, root=tmp_path, progress=progress)
    trait = warm_with(warm(tmp_path), high="Speaks with warmth.")
    np.testing.assert_array_equal(traits.trait_judge(run)(trait, ["a", "b"], ["p", "q"]), [0.25, np.nan])
    assert asked == [(["a", "b"], ["speaks with warmth"], ["p", "q"])]
    run.section = Traits()
    assert traits.trait_judge(run) is None
