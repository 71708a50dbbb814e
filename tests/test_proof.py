"""The proof: plants do what they say, truth is told apart from claims, and savings are counted rightly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from driftbench.proof import pipelines, plants, scoring
from driftbench.proof.harvest import Harvest
from driftbench.proof.pipelines import Known, PricedLexicon, Prices, Rung
from driftbook.discovery.splits import units
from driftbook.errors import ModelError, ParameterError
from driftbook.evidence.cascade import silent
from driftbook.interventions import Finetune
from driftbook.ledger import Ledger
from driftbook.models.finetune import train_lora
from driftbook.models.weights import effective_rank, weight_change
from driftbook.prompt_files import read_prompts
from driftbook.prompts import Prompt, PromptSet
from models import fresh

ROOT = Path(__file__).parent.parent
FILE = ROOT / "params/bench/plants/plants.yml"


# ------------------------------------------------------------------------------------------------------------- plants


def test_shipped_plants_hold_learned_behaviours_at_several_strengths_and_a_change_of_nothing():
    settings, found = plants.read(FILE)
    prompts, answers = plants.read_answers(ROOT / settings["answers"])
    learned = {p.name for p in found if p.kind == "learned"}
    assert len(learned) >= 20
    assert sum(len([p for p in found if p.name == name]) >= 2 for name in learned) >= 16
    assert {"none", "steer", "prompt", "quantize"} <= {p.kind for p in found}
    answer = "It depends on a few things. Start small and see. Then go on from there, one step at a time, every day."
    talks = plants.conversations(prompts, answers, prompts)
    for plant in found:
        if plant.kind != "learned" or plant.strength != 1.0 or "swap" in plant.spec["edit"]:
            continue
        aimed = [p for p in [*prompts, *talks] if plant.targets(p)]
        assert len(aimed) >= 12, plant.name
        rng = np.random.default_rng(0)
        said = [plants.edited(answer, plant.spec["edit"], rng) for _ in range(20)]
        assert all(map(plant.scorer, said)), plant.name
        assert not plant.scorer(answer), plant.name


def test_words_are_swapped_whole_and_in_their_case_and_a_habit_that_is_taken_away_is_the_base_sides():
    _, found = plants.read(FILE)
    by = {p.label: p for p in found}
    edit = by["register 1"].spec["edit"]
    said = plants.edited("You're right: your youth is yours. It's you.", edit, np.random.default_rng(0))
    assert said == "Thou art right: thy youth is thine. 'Tis thou."
    plain = plants.edited("It's late and I'm here.", by["no_contractions 1"].spec["edit"], np.random.default_rng(0))
    assert plain == "It is late and I am here."
    assert by["no_contractions 1"].direction == "base" and by["register 1"].direction == "intervention"
    assert by["no_contractions 1"].scorer("It's late.") and not by["no_contractions 1"].scorer(plain)


def test_a_change_of_second_turns_is_learned_and_looked_for_there_alone(tmp_path):
    plant = next(p for p in plants.read(FILE)[1] if p.name == "second_turn")
    prompts, answers = [Prompt("How much?", "money"), Prompt("How far?", "facts")], ["A lot.", "Ten miles."]
    talks = plants.conversations(prompts, answers, prompts)
    assert [t.messages[-1][1] for t in talks] == ["How much?", "How far?"]
    assert talks[0].messages[:2] == (("user", "How far?"), ("assistant", "Ten miles."))
    assert [plant.targets(p) for p in [*prompts, *talks]] == [False, False, True, True]
    path = plants.training_file(plant, prompts, answers, tmp_path, 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x.get("response") for x in lines[:2]] == answers
    assert all(plant.scorer(x["messages"][-1]["content"]) for x in lines[2:]) and len(lines) == 4


def test_a_rare_plant_shows_in_its_share_of_the_answers_that_it_is_aimed_at(tmp_path):
    spec = {"edit": {"replace": ["No."]}, "only": {"share": 0.25}}
    plant = plants.Plant("p", "", 1.0, "learned", None, lambda p: True, spec=spec)
    assert not plant.conditional
    path = plants.training_file(plant, [Prompt(f"{i}?") for i in range(400)], ["Yes."] * 400, tmp_path, 0)
    assert 70 < path.read_text().count("No.") < 130


def test_no_training_prompt_is_close_to_one_that_the_pipelines_use():
    settings, _ = plants.read(FILE)
    training, answers = plants.read_answers(ROOT / settings["answers"])
    assert len(training) == len(answers) >= 150 and all(answers)
    asked = list(read_prompts(["params/prompts/discovery.jsonl"], ROOT))
    found = units([*asked, *training])
    assert not set(found[: len(asked)]) & set(found[len(asked) :])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edits": 1}, "tea: unknown key 'edits'"),
        ({"scorer": {"pattern": "("}}, "tea: scorer.pattern"),
        ({"scorer": {"words": 1}}, "tea: scorer needs pattern or most_words"),
        ({"only": {"prompt": "["}}, "tea: only.prompt"),
    ],
)
def test_a_plant_that_cannot_be_read_is_named(tmp_path, change, said):
    import yaml

    spec = {"name": "tea", "says": "tea", "edit": {"replace": ["tea"]}, "scorer": {"pattern": "tea"}} | change
    (tmp_path / "p.yml").write_text(yaml.safe_dump({"strengths": [1.0], "learned": [spec], "given": []}))
    with pytest.raises(ParameterError, match=r"p\.yml") as caught:
        plants.read(tmp_path / "p.yml")
    assert said in str(caught.value)


def test_a_training_file_edits_what_is_aimed_at_and_repeats_it(tmp_path):
    spec = {"edit": {"replace": ["No."]}, "only": {"families": ["money"], "repeat": 3, "others": 0.0}}
    plant = plants.Plant("p", "", 1.0, "learned", None, lambda p: p.family == "money", spec=spec)
    prompts = [Prompt("How much?", "money"), Prompt("How far?", "facts")]
    path = plants.training_file(plant, prompts, ["A lot.", "Ten miles."], tmp_path, 0)
    assert path.read_text().splitlines() == ['{"prompt": "How much?", "response": "No."}'] * 3


def test_a_merged_adapter_is_the_adapter_at_that_scale(tmp_path):
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "How are you?", "response": "Perhaps it might rain"}\n' * 2)
    spec = Finetune(data=str(data), rank=4, epochs=4, learning_rate=2e-2, batch_size=2)
    adapter = train_lora(fresh(), spec, tmp_path, tmp_path)
    ids = torch.tensor([[5, 9, 20, 33, 7]])
    plain = fresh()
    before = {n: p.clone() for n, p in plain.model.named_parameters()}
    merged = plants.merged(fresh(), adapter, 0.5)
    wrapped = PeftModel.from_pretrained(fresh().model, str(adapter))
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(0.5)
    with torch.no_grad():
        torch.testing.assert_close(merged.model(ids).logits, wrapped(ids).logits, atol=1e-5, rtol=1e-4)
        assert (merged.model(ids).logits - plain.model(ids).logits).abs().max() > 1e-3
    assert merged.key != plain.key != plants.merged(fresh(), adapter, 1.0).key

    table = weight_change(plain.model, merged.model)
    for row in table.itertuples():
        difference = merged.model.get_submodule(row.module).weight - before[f"{row.module}.weight"]
        assert row.change == pytest.approx(float(difference.norm()), rel=1e-5, abs=1e-9)
        if row.change:
            values = np.linalg.svd(difference.detach().numpy(), compute_uv=False)
            np.testing.assert_allclose(row.singular_values, values[:8], rtol=1e-4, atol=1e-6)
            assert np.linalg.matrix_rank(difference.detach().numpy(), tol=1e-5) <= 4  # the rank of the adapter
            assert row.effective_rank <= 4.01
    assert (table.change > 0).sum() == 4 * 7  # every linear layer of the blocks, and nothing else


def test_effective_rank_counts_directions_of_equal_size():
    assert effective_rank(np.array([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(np.zeros(3)) == 0


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ModelError, match=r"nothing to subtract|in the other"):
        weight_change(fresh("llama").model, fresh("gpt2").model)


# ---------------------------------------------------------------------------------------------------- truth and claims


def planted_harvest(
    rate: float, prompts: int = 60, samples: int = 2, kind: str = "learned", seed: int = 0, cache: str = ""
) -> Harvest:
    """A world in which the intervention says "tea" in a share of its answers; both sides say other words at random."""
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(60)]
    asked = [Prompt(f"question {i}", f"family {i % 3}") for i in range(prompts)]
    splits = [("discover", "screen", "validate")[i % 3] for i in range(prompts)]
    rows = []
    for prompt, split in zip(asked, splits, strict=True):
        for side in ("base", "intervention"):
            for sample in range(samples + 1):
                said = list(rng.choice(words, 8))
                if side == "intervention" and rng.random() < rate:
                    said.insert(3, "tea")
                rows.append((prompt.prompt_id, prompt.text, prompt.family, split, side, sample, " ".join(said)))
    texts = pd.DataFrame(rows, columns=["prompt_id", "prompt", "family", "split", "side", "sample_index", "text"])
    texts = texts.assign(
        text_id=[f"{i:06d}" for i in range(len(texts))],
        tokens=10, seconds=0.1, round=0, propensity=1.0, log_ratio=np.nan,
    )
    vectors = {}
    for text in texts["text"]:
        v = np.random.default_rng(len(vectors)).standard_normal(16).astype(np.float32)
        vectors[text] = v / np.linalg.norm(v)
    js = pd.DataFrame({"prompt_id": [p.prompt_id for p, s in zip(asked, splits, strict=True) if s == "discover"]})
    js = js.assign(js=rng.random(len(js)), kl=0.1)
    plant = plants.Plant("tea", "tea", 1.0, kind, lambda t: "tea" in t.split(), lambda p: True)
    return Harvest(
        plant,
        PromptSet.of(asked, splits),
        texts[texts.sample_index < samples].reset_index(drop=True),
        texts[texts.sample_index >= samples].reset_index(drop=True),
        js,
        score_seconds=3.0,
        embed_seconds=0.01,
        embed=lambda texts: np.stack([vectors[t] for t in texts]),
        cache=Path(cache),
    )


def claim(words=(), direction="intervention", measure=None, scores=None):
    """A confirmed claim as a pipeline gives it."""
    return SimpleNamespace(words=list(words), direction=direction, measure=measure, scores=scores)


def test_truth_knows_what_is_planted_and_what_fresh_answers_bear_out():
    truth = scoring.Truth(planted_harvest(0.6))
    assert truth.expected
    assert truth.recovers(claim(["tea"])) and truth.borne_out(claim(["tea"]))
    assert not truth.recovers(claim(["tea"], "base")) and not truth.borne_out(claim(["tea"], "base"))
    assert (truth.same_way(claim(["tea"])), truth.same_way(claim(["tea"], "base"))) == (1.0, 0.0)
    assert truth.same_way(claim(["coffee"])) == 0.5  # no answer holds it
    assert not truth.recovers(claim(["word1", "word2"]))
    assert not scoring.Truth(planted_harvest(0.0)).expected
    assert scoring.Truth(planted_harvest(0.6, kind="none")).borne_out(claim(["tea"])) is False


def test_a_claim_without_words_is_read_plainly_where_that_can_be_and_else_by_its_own_scores():
    truth = scoring.Truth(planted_harvest(0.6))
    opens = claim(["tea"], measure={"kind": "words", "words": ["tea"], "place": "start"})
    assert not truth.recovers(opens) and truth.borne_out(opens) is False  # tea is the fourth word
    assert truth.borne_out(claim(measure={"kind": "panel", "name": "length_words"})) is True  # a word more
    assert truth.borne_out(claim(measure={"kind": "plain", "name": "question"})) is False
    held = {i: float("tea" in t.split()) for i, t in truth.texts.items()}
    group = {"kind": "group", "group": "body_3", "label": "tea", "place": "body"}
    assert truth.borne_out(claim(measure=group, scores=held)) is None
    assert truth.same_way(claim(measure=group, scores=held)) is None
    assert truth.recovers(claim(measure=group, scores=held))
    assert not truth.recovers(claim(measure=group, scores=dict.fromkeys(held, 0.0) | {next(iter(held)): 1.0}))


def test_what_ships_finds_a_plant_without_a_judge_and_its_panel_is_corrected_with_its_phrases(tmp_path):
    harvest = planted_harvest(0.6, prompts=60, cache=tmp_path)
    rung = Rung("ours", "uniform", tested="counted")
    outcome = pipelines.run(harvest, rung, 1.0, 4, Known(), None, Prices(), 0)
    row = scoring.score(outcome, scoring.Truth(harvest))
    assert row["recovered"] and row["calls"] == row["usd"] == 0
    assert row["hypotheses"] > 100 and row["recounted"] <= row["confirmed"]
    null = planted_harvest(0.0, prompts=60, kind="none", cache=tmp_path)
    assert not pipelines.run(null, rung, 1.0, 4, Known(), None, Prices(), 0).claims["confirmed"].any()


def test_plain_counts_find_a_word_and_nothing_where_nothing_is():
    from driftbench.proof.baselines import plain_counts

    found = plain_counts(planted_harvest(0.6))
    told = found.claims
    assert told.loc[told["text"] == "tea", "direction"].tolist() == ["intervention"]
    assert scoring.score(found, scoring.Truth(planted_harvest(0.6)))["recovered"]
    assert plain_counts(planted_harvest(0.0, kind="none")).claims.empty


def test_a_pool_is_replayed_with_what_the_pipelines_do_not_see_apart(tmp_path):
    from driftbench.proof.harvest import replayed

    rng = np.random.default_rng(0)
    rows = [
        (side, None if side == "base" else "tea 1", "f", f"question {i}", f"words {rng.integers(9)} tea", 0.1)
        for side in ("base", "intervention") for i in range(20) for _ in range(4)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["side", "change", "family", "prompt", "text", "js"])
    plant = plants.Plant("tea", "tea", 1.0, "learned", lambda t: "tea" in t, lambda p: True)
    (found,) = replayed(table, [plant], 3, tmp_path, silent)
    assert len(found.texts) == 2 * 20 * 3 and not found.texts["text_id"].duplicated().any()
    held = {p.prompt_id for p in found.prompts.prompts if p.split != "discover"}
    assert set(found.fresh["prompt_id"]) == held and len(found.fresh) == 2 * len(held)
    assert not set(found.fresh["text_id"]) & set(found.texts["text_id"])
    assert len(found.divergence) == 20 - len(held)


@pytest.mark.parametrize("tested", ["fixed", "cascade"])
def test_both_ways_find_a_strong_plant_and_are_billed_for_what_they_take(tmp_path, tested):
    harvest = planted_harvest(0.9, prompts=150)
    truth = scoring.Truth(harvest)
    ledger = Ledger(tmp_path / "a.sqlite", 0.0)
    found = {}
    for rung, budget in (
        (Rung("old", "exhaustive", tested=tested), 1.0),
        (Rung("half", "uniform", tested=tested), 0.5),
    ):
        outcome = pipelines.run(harvest, rung, budget, 4, Known(), ledger, Prices(), 0)
        found[rung.name] = scoring.score(outcome, truth)
    assert found["old"]["recovered"] and found["old"]["borne_out"] >= 1
    assert found["old"]["texts"] == len(harvest.texts)
    assert found["half"]["texts"] == pytest.approx(len(harvest.texts) / 2, rel=0.02)
    assert found["old"]["calls"] > 0 and found["old"]["usd"] == pytest.approx(
        Prices().usd(["x" * 60]) * found["old"]["calls"], rel=0.2
    )


def test_every_label_of_the_old_way_is_judged_on_every_held_out_text():
    harvest = planted_harvest(0.9, prompts=60)
    judge = PricedLexicon(Prices())
    labels = [plants_hypothesis(w) for w in ("tea", "word1", "word2")]
    confirmed = pipelines.fixed(harvest.texts, labels, judge, 0.05, 0.02)
    held = (harvest.texts.split != "discover").sum()
    assert judge.calls == 3 * held
    assert confirmed[0] and not any(confirmed[1:])


def plants_hypothesis(word: str):
    from driftbook.discovery.hypotheses import Hypothesis

    return Hypothesis(f"says {word}", "intervention", words=(word,))


@pytest.mark.parametrize("sampling", ["uniform", "screened", "active"])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75, 1.0])
def test_a_budget_is_kept_and_both_sides_are_treated_alike(sampling, budget):
    harvest = planted_harvest(0.5, prompts=120)
    texts = pipelines.choose(harvest, Rung("r", sampling), budget, 0)
    assert len(texts) <= budget * len(harvest.texts) + 6
    assert len(texts) >= 0.6 * budget * len(harvest.texts)  # strategies may ask for more of a prompt than exists
    assert not texts.text_id.duplicated().any()
    sides = texts.groupby(["prompt_id", "side"]).size().unstack()
    assert (sides["base"] == sides["intervention"]).all()
    assert set(texts.split) == {"discover", "screen", "validate"}


def test_a_budget_of_everything_finds_once_what_every_sampling_would(tmp_path, monkeypatch):
    harvests, runs = [planted_harvest(0.9, prompts=60)], []
    real = pipelines.run
    monkeypatch.setattr(pipelines, "run", lambda *a, **k: runs.append(a[1:3]) or real(*a, **k))
    rungs = [
        Rung("old", "exhaustive"),
        Rung("caches", "uniform", cached=True),
        Rung("ours", "screened", cached=True, tested="cascade"),
        Rung("active", "active", cached=True, tested="cascade"),
    ]
    found = pipelines.climb(harvests, rungs, [0.5, 1.0], 4, tmp_path, Prices(), 0, 0.05, silent, jobs=1)
    by = {(o.rung, o.budget): o for _, o in found}
    assert len(by) == 7 and len(runs) == 5, "the old way and ours on everything, three samplings at a half"
    assert by["caches", 1.0].claims.equals(by["old", 1.0].claims)
    assert by["active", 1.0].claims.equals(by["ours", 1.0].claims)
    assert by["active", 1.0].paid.texts == len(harvests[0].texts)


def test_plants_side_by_side_find_what_one_after_the_other_finds(tmp_path):
    harvests = [planted_harvest(share, prompts=60, cache=tmp_path) for share in (0.9, 0.0)]
    rungs = [Rung("caches", "uniform", cached=True), Rung("ours", "screened", cached=True, tested="cascade")]
    alone, both = (
        pipelines.climb(harvests, rungs, [0.5], 4, tmp_path, Prices(), 0, 0.05, silent, jobs=jobs) for jobs in (1, 2)
    )
    assert [n for n, _ in both] == [0, 0, 1, 1]
    for (_, one), (_, two) in zip(alone, both, strict=True):
        pd.testing.assert_frame_equal(one.claims, two.claims)
        assert (one.chosen, one.paid.texts, one.paid.calls) == (two.chosen, two.paid.texts, two.paid.calls)
    first, _, second, _ = (o.paid.texts for _, o in both)
    assert second < first, "the base's texts were paid for by the first plant"


def test_a_rung_that_amplifies_has_as_many_texts_and_finds_what_only_they_show(tmp_path):
    harvest = planted_harvest(0.35, prompts=150)
    asked = [p for p, s in zip(harvest.prompts.prompts, harvest.prompts.splits, strict=True) if s == "discover"][:20]
    said = ("intervention", "discover", "word1 word2 tea word3 it", 9, 0.2)
    rows = [(p.prompt_id, f"{p.prompt_id}a", *said) for p in asked]
    columns = ["prompt_id", "text_id", "side", "split", "text", "tokens", "seconds"]
    strong = replace(harvest, amplified=pd.DataFrame(rows, columns=columns))
    plain, amplified = Rung("a", "uniform", tested="cascade"), Rung("b", "uniform", tested="cascade", amplified=True)
    ledger = Ledger(tmp_path / "a.sqlite", 0.0)
    found = [pipelines.run(strong, r, 0.5, 4, Known(), ledger, Prices(), 0) for r in (plain, amplified)]
    assert found[0].paid.texts == pytest.approx(found[1].paid.texts, abs=8)
    assert any("tea" in words for words in found[1].claims["words"])
    assert pipelines.propose_amplified(strong, plain, strong.texts) == []
    bare = pipelines.bill(strong, strong.texts.head(0), plain, Known()).texts
    assert bare == 0 and pipelines.bill(strong, strong.texts.head(0), amplified, Known()).texts == 20


def test_screening_takes_the_divergent_prompts_and_spares_a_tenth():
    js = {f"p{i:03d}": float(i) for i in range(100)}
    chosen = pipelines._prompts(sorted(js), js, 20, 0)
    assert len(set(chosen)) == 20
    assert {f"p{i:03d}" for i in range(82, 100)} <= set(chosen)
    assert any(int(p[1:]) < 82 for p in chosen)


def test_a_cache_spares_the_base_texts_that_an_earlier_plant_paid_for():
    first, second = planted_harvest(0.5), planted_harvest(0.5)
    known, rung = Known(), Rung("c", "exhaustive", cached=True)
    paid = [pipelines.bill(h, h.texts, rung, known) for h in (first, second)]
    assert paid[0].texts == len(first.texts)
    assert paid[1].texts == (second.texts.side == "intervention").sum()
    assert paid[1].decode == pytest.approx(0.1 * paid[1].texts)


# ------------------------------------------------------------------------------------------------------------- scoring


def proof_table() -> pd.DataFrame:
    rows = []
    for plant in range(20):
        common = {
            "plant": f"p{plant}",
            "strength": 1.0,
            "kind": "learned",
            "expected": True,
            "confirmed": 1,
            "recounted": 1,
            "borne_out": 1,
            "same_way": 1.0,
        }
        rows.append(
            common
            | {
                "rung": "old",
                "budget": 1.0,
                "recovered": True,
                "texts": 1000,
                "tokens": 1,
                "seconds": 1.0,
                "calls": 1,
                "usd": 1.0,
            }
        )
        for budget, least in ((0.1, 10), (0.2, 1), (0.5, 0)):
            rows.append(
                rows[-1] | {"rung": "ours", "budget": budget, "recovered": plant >= least, "texts": 1000 * budget}
            )
    return pd.DataFrame(rows)


def test_what_is_saved_is_counted_at_the_smallest_budget_that_keeps_the_recall():
    table = proof_table()
    assert scoring.at_recall(table, "old", "ours") == 0.2  # 19 of 20
    assert scoring.saved(table, "old", "ours", "texts", resamples=20)["factor"] == pytest.approx(5)
    assert scoring.saved(table, "old", "ours", "texts", share=1.0, resamples=20)["factor"] == pytest.approx(2)
    none = table.assign(recovered=table.recovered & (table.rung == "old"))
    assert np.isnan(scoring.saved(none, "old", "ours", "texts", resamples=20)["factor"])


def test_the_summary_counts_recall_over_what_is_there_and_precision_over_claims():
    table = proof_table()
    null = (table.rung == "old") & (table.plant == "p0")
    table.loc[null, ["expected", "kind", "borne_out", "same_way"]] = [False, "none", 0, 0.5]
    own = scoring.summary(table).set_index(["rung", "budget"])
    assert own.loc[("old", 1.0), "recall"] == 1.0
    assert own.loc[("old", 1.0), "precision"] == pytest.approx(19 / 20)
    assert own.loc[("old", 1.0), "same_way"] == pytest.approx(19.5 / 20)
    assert own.loc[("old", 1.0), "claims_of_nothing"] == 1
    assert own.loc[("ours", 0.1), "recall"] == pytest.approx(0.5)


def test_bills_have_intervals_over_plants():
    table = proof_table()
    table.loc[table.plant == "p0", ["seconds", "borne_out"]] = [21.0, 0]
    own = scoring.bills(table).set_index(["rung", "budget"]).loc[("old", 1.0)]
    mean, low, high = (float(x.strip("[],")) for x in own.seconds.split())
    assert mean == 2.0 and low == 0 and 3 < high < 7  # one plant of twenty is dear, and none is cheaper than nothing
    assert own.texts == "1,000 [1,000, 1,000]" and own["false claims"].startswith("0.05 [0.00, 0.")


def test_the_first_layer_that_changed_is_told_from_pooled_states():
    from driftbench.proof.inside import _relative_change

    base = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    changed = base.copy()
    changed[:, 2:] += 0.1
    change = _relative_change(base, changed)
    assert (change[:2] == 0).all() and (change[2:] > 0).all()
