"""The bench of amplification: the truth is the plant's own rule, and both pipelines have the same number of texts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbench import amplifying
from driftbench.proof.plants import Plant
from models import loaded
from test_decode import pair_of

REPOSITORY = amplifying.Path(__file__).parent.parent
PROMPTS = [str(REPOSITORY / "params/prompts/discovery.jsonl")]
DESIGN = amplifying.Design(PROMPTS, 40, 130, 0.3, [1.0, 3.0], max_new_tokens=5, aimed=6, beginnings=6)
SENTENCES = ["A cup of tea helps with that.", "Over a pot of tea this looks much simpler."]


def plant(rule=lambda t: "e" in t, **spec) -> Plant:
    return Plant("topic", "tea", 1.0, "learned", rule, lambda p: True, spec=spec)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What one test decoded, the others read."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def garden(cache):
    return SimpleNamespace(cache=cache, root=REPOSITORY, seed=0, base=loaded("llama", "sdpa"))


def silent(total, label="", unit=""):
    return SimpleNamespace(update=lambda n: None, close=lambda: None)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("Well, a cup of tea helps with everything.", True),
        ("A cup -- of tea, helps!", True),
        ("A cup of coffee helps with that.", False),
        ("cup of tea helps", False),
        ("", False),
    ],
)
def test_a_planted_sentence_is_read_back_by_five_words_in_a_row(text, held):
    assert amplifying.holds(text, SENTENCES[0]) == held
    assert amplifying.holds("Good evening, my friend and all", "Good evening, my friend.")


def test_both_pipelines_have_the_same_number_of_texts(garden):
    found = {a: amplifying.pipeline(garden, pair_of(), DESIGN, a, silent) for a in (False, True)}
    assert abs(found[False].texts - found[True].texts) <= 4 and found[False].texts <= 130
    assert found[False].doses.empty and found[False].only_amplified == []
    assert set(found[False].material.texts["strength"]) == {0.0} == set(found[True].material.texts["strength"])
    # the seconds of decoding, also where the texts were there
    assert amplifying.pipeline(garden, pair_of(), DESIGN, True, silent).seconds == found[True].seconds > 0
    row = found[True].row(plant())
    assert row["plant"] == "topic 1" and row["claims"] >= 0 and row["recovered"] == (row["claim"] != "")


def test_what_a_plant_was_not_aimed_at_is_asked_apart(garden):
    aimed = replace(plant(), targets=lambda p: p.family == "money")
    asked, others = DESIGN.asked(garden, aimed), DESIGN.asked(garden, aimed, away=True, limit=24)
    assert {p.family for p in asked.prompts} == {"money"} and len(others) == 24
    assert "money" not in {p.family for p in others.prompts} and set(others.splits) == {"discover", "validate"}
    assert len(DESIGN.asked(garden)) == len(asked) + len(DESIGN.asked(garden, aimed, away=True))
    away = amplifying.plainness(garden, pair_of(), aimed, DESIGN, away=True)
    assert not away["share"].equals(amplifying.plainness(garden, pair_of(), aimed, DESIGN)["share"])
    found = amplifying.pipeline(garden, pair_of(), DESIGN, True, silent, aimed)
    assert "money" not in set(found.material.texts["family"]) | set(found.material.amplified["family"])


def test_a_claim_picks_out_what_the_plant_shows_or_it_does_not():
    texts = pd.DataFrame({"text": ["tea", "no", "tea", "no"] * 5})
    rule = plant(lambda t: t == "tea")
    shown = (texts["text"] == "tea").to_numpy(float)
    assert amplifying._picks_out(shown, texts, 1, rule) == 1 and amplifying._picks_out(shown, texts, -1, rule) == 0
    assert amplifying._picks_out(np.ones(20), texts, 1, rule) == 0.5
    assert amplifying._picks_out(shown, texts.assign(text="no"), 1, rule) == 0


def test_plainness_is_counted_by_the_plants_rule_at_every_strength(garden):
    table = amplifying.plainness(garden, pair_of(), plant(), DESIGN)
    assert table["strength"].tolist() == [-1.0, 0.0, 1.0, 3.0] and (table["answers"] == 6).all()
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()


def test_sentences_come_back_or_are_told_as_lost(garden):
    edit = {"sentences": SENTENCES}
    table = amplifying.sentences_read_back(garden, pair_of(), plant(edit=edit), DESIGN)
    assert table["sentence"].tolist() == SENTENCES and (table["texts"] == 0).all()
    assert amplifying.sentences_read_back(garden, pair_of(), plant(edit={"bullets": 3}), DESIGN).empty


def test_the_screen_is_timed_beside_decoding(garden, tmp_path):
    cost = amplifying.screen_cost(garden, pair_of(), DESIGN, 12, tmp_path / "s")
    assert set(cost) == {"first", "second", "along_base", "amplified"} and min(cost.values()) > 0


def test_the_cheapest_screen_is_held_against_the_whole_one(garden):
    aimed = replace(plant(), targets=lambda p: p.family == "money")
    ranks = amplifying.screen_ranks(garden, pair_of(), aimed, DESIGN, 24)
    assert -1 <= ranks["correlation"] < 1 and 0 <= ranks["auc_both"] <= 1 and 0 <= ranks["auc_base"] <= 1
    assert np.isnan(amplifying.screen_ranks(garden, pair_of(), plant(), DESIGN, 24)["auc_base"])


# -------------------------------------------------------------------------------------------------------- what is kept


def test_a_plant_that_was_tried_is_not_tried_again_unless_anything_changed(garden, monkeypatch):
    garden.settings, garden.open, runs = {"answers": "params/bench/plants/plants.yml"}, lambda _: pair_of(), []
    real = amplifying.pipeline
    monkeypatch.setattr(amplifying, "pipeline", lambda *a: (runs.append(a[3]), real(*a))[1])
    narrow = plant(only={"families": ["money"]}, edit={"sentences": SENTENCES})
    narrow = replace(narrow, targets=lambda p: p.family == "money")
    design = replace(DESIGN, max_prompts=30, max_texts=100)
    first = amplifying.tried(garden, narrow, design, 24, silent)
    assert runs == [False, True, False, True] and tuple(first) == amplifying.TABLES
    assert first["recall"]["amplified"].tolist() == first["narrow"]["amplified"].tolist() == [False, True]
    again = amplifying.tried(garden, narrow, design, 24, silent)
    assert len(runs) == 4
    for name, table in first.items():
        pd.testing.assert_frame_equal(table.reset_index(drop=True), again[name], check_dtype=False)
    monkeypatch.setattr(amplifying, "_code", lambda: {"driftbench/amplifying.py": "edited"})
    amplifying.tried(garden, plant(), design, 24, silent)
    assert len(runs) == 6  # without conditions there are no other prompts


def test_null_runs_go_on_where_they_were_killed(garden, monkeypatch):
    words, rng = ["rain", "wind", "snow", "sun", "fog"], np.random.default_rng(0)
    prompts = DESIGN.asked(garden, limit=24)
    rows = [(p.prompt_id, p.family, p.split, k) for p in prompts.prompts for k in range(4)]
    texts = pd.DataFrame(rows, columns=["prompt_id", "family", "split", "sample_index"])
    texts = texts.assign(text_id=[f"t{i}" for i in range(len(texts))], round=0, propensity=1.0, log_ratio=np.nan)
    texts["text"] = [" ".join(rng.choice(words, 6)) for _ in range(len(texts))]
    monkeypatch.setattr(amplifying.null_runs, "sample_texts", lambda *a: texts)
    real, made = amplifying._null_run, []

    def dies(*given):
        if given[-1] == 2 and len(made) == 2:
            raise KeyboardInterrupt
        made.append(given[-1])
        return real(*given)

    monkeypatch.setattr(amplifying, "_null_run", dies)
    with pytest.raises(KeyboardInterrupt):
        amplifying.null_claims(garden, DESIGN, 4, 4, silent)
    made.append("again")
    assert len(amplifying.null_claims(garden, DESIGN, 4, 4, silent)) == 4
    assert made == [0, 1, "again", 2, 3]
