"""The stage from texts to claims on planted texts: what was planted is confirmed, and nothing else, and nothing on
null runs."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from chat_server import Server
from driftbook import validate as stage
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.eprocess import sequential_test
from driftbook.evidence.opened import open_judge
from driftbook.judges import Lexicon
from driftbook.ledger import Ledger
from driftbook.parameters import Validate
from driftbook.report import validate as report
from driftbook.sections import judge_of
from planted import FILLER, HEDGES, HYPOTHESES, SPLITS, run_of, texts_of


def go(run, with_baselines=True, write=None, judges=None):
    """The stage as its notebook runs it; gives the claims that are not of the panel, by text, or the metrics."""
    found = stages(run, judges)
    baselines = stage.baselines(found.material, length_vectors) if with_baselines else None
    beside = stage.beside_baselines(found.outcomes, baselines, run.seed)
    table = stage.claims_table(found.material, found.frozen, found.screening, found.outcomes, beside)
    if write is not None:
        return stage.write(write, found.frozen, found.screening, found.outcomes, table, found.judges, run.section)
    return proposed(table)


def proposed(claims):
    """The claims that somebody or the texts proposed, by their text."""
    return claims[~claims["proposer"].isin(["panel", "words"])].set_index("text")


def stages(run, judges=None):
    """From texts to outcomes."""
    material = stage.load(run)
    judges = judges or stage.open_judges(run, material)
    material = stage.label(run, material, judges)
    frozen = stage.freeze(material, judges, run.section)
    counted = stage.count(run, material, judges)
    words = stage.words(run, material, judges, counted)
    screening = stage.screen(material, judges, run.section)
    alpha = stage.levels(material, judges, run.section.alpha).judged
    survivors = screening.survivors if judges.tester.paid else []
    tested = stage.holdout_test(material, judges, survivors, run.section, run.progress, alpha)
    outcomes = [*counted, *words.outcomes, *stage.outcomes(tested, run.section)]
    claims = stage.claims_table(material, frozen, screening, outcomes)
    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "run"})


def by_judge(hypotheses):
    """The same hypotheses, for a judge to read."""
    return [replace(h, measure={"kind": "judge"}) for h in hypotheses]


def length_vectors(texts):
    """A stand-in for embeddings that knows nothing but length."""
    lengths = np.array([len(t.split()) for t in texts], dtype=float)
    return np.stack([lengths, np.ones(len(texts)), np.zeros(len(texts))], axis=1)


def test_what_was_planted_is_confirmed_and_the_rest_is_not(tmp_path):
    texts = texts_of()
    table = go(run_of(tmp_path, texts))
    assert table["confirmed"].to_dict() == {
        "hedges": True,
        "hedges less": False,
        "talks about rivers": False,
        "talks about food": False,
    }
    claim, held = table.loc["hedges"], texts[texts["split"] != "discover"]
    says = held["text"].str.contains("|".join(HEDGES)).groupby(held["side"]).mean()  # plain counting
    assert (claim["base"], claim["intervention"]) == pytest.approx((says["base"], says["intervention"]))
    assert claim["low"] < claim["difference"] < claim["high"] and claim["difference"] == pytest.approx(0.5, abs=0.1)
    assert claim["claim"].startswith('says "might", "perhaps" or "possibly": ')
    assert claim["unit"] == "share" and claim["judge"] == "counting" and claim["q_value"] < 0.05
    assert claim["e_value"] > 20 and claim["auc_low"] > 0.6
    # X of a pair: 0.6 * 0.9 wins, 0.1 * 0.4 losses (few pairs hold hedges on both sides), the rest ties
    assert claim["win_low"] < 0.5 + (0.6 * 0.9 - 0.1 * 0.4) / 2 < claim["win_high"]
    assert claim["prompts"] == SPLITS["screen"] + SPLITS["validate"] and claim["scope"] == "held-out prompts"


def test_the_other_direction_is_confirmed_when_the_sides_are_swapped(tmp_path):
    table = go(run_of(tmp_path, texts_of(hedge_base=0.6, hedge_changed=0.1)), with_baselines=False)
    assert table["confirmed"].to_dict()["hedges less"] and not table["confirmed"].to_dict()["hedges"]
    claim = table.loc["hedges less"]
    assert claim["win_rate"] > 0.6 and claim["difference"] < 0 and claim["high"] < 0
    assert claim["base"] > claim["intervention"] and claim["auc"] > 0.6


def test_null_runs_confirm_nothing_beyond_alpha(tmp_path):
    """Panel and proposals together: any claim at all is false."""
    any_claim = [
        stages(run_of(tmp_path / str(i), texts_of(0.4, 0.4, seed=i), alpha=0.2)).claims["confirmed"].any()
        for i in range(12)
    ]
    assert np.mean(any_claim) <= 0.25


def test_an_effect_below_the_margin_is_not_confirmed(tmp_path):
    table = go(run_of(tmp_path, texts_of(), margin=0.6), with_baselines=False)
    assert not table["confirmed"].any()
    assert table.loc["hedges", "win_rate"] > 0.7
    units = go(run_of(tmp_path / "units", texts_of(), margin={"words": 100.0}), with_baselines=False)
    assert units.loc["hedges", "confirmed"]


def test_what_the_texts_suggested_is_tested_on_prompts_that_did_not_suggest_it(tmp_path):
    """The same held-out texts with other discover texts give the same verdicts."""
    one = texts_of()
    two = one.assign(text=np.where(one["split"] == "discover", "nothing here", one["text"]))
    a, b = (go(run_of(tmp_path / str(i), t), with_baselines=False) for i, t in enumerate((one, two)))
    columns = ["base", "intervention", "difference", "low", "high", "p_value", "win_rate", "e_value", "prompts"]
    pd.testing.assert_frame_equal(a[columns], b[columns])


def test_what_was_named_before_looking_is_tested_on_all_prompts(tmp_path):
    mine = {"text": "is unsure of itself", "words": list(HEDGES)}
    claims = stages(run_of(tmp_path, texts_of(), HYPOTHESES[2:], hypotheses=[mine])).claims
    named = claims[claims["proposer"].isin(["panel", "person"])]
    assert (named["scope"] == "all prompts").all()
    own = named.set_index("text").loc["is unsure of itself"]
    assert own["confirmed"] and own["prompts"] == sum(SPLITS.values()) and own["proposer"] == "person"
    length = named[named["measure"] == "length_words"].iloc[0]
    assert length["confirmed"] and length["unit"] == "words"  # a hedge makes an answer longer by two words


def test_a_person_chooses_what_is_measured(tmp_path):
    asked = [
        {"text": "hedges, a share", "words": list(HEDGES)},
        {"text": "hedges, a rate", "words": list(HEDGES), "measure": "rate"},
        {"text": "hedges, a number", "words": list(HEDGES), "measure": "number"},
        {"text": "is long", "measure": "length_words"},
    ]
    table = go(run_of(tmp_path, texts_of(), [], hypotheses=asked), with_baselines=False)
    assert table["unit"].to_dict() == {
        "hedges, a share": "share",
        "hedges, a rate": "rate",
        "hedges, a number": "number",
        "is long": "words",
    }
    assert "per 100 words" in table.loc["hedges, a rate", "claim"]
    number = texts_of()["text"].str.count("|".join(HEDGES)).groupby(texts_of()["side"]).mean()
    assert table.loc["hedges, a number", "intervention"] == pytest.approx(number["intervention"])


def test_a_longer_side_is_not_told_to_do_more_of_what_both_do_once(tmp_path):
    """One full stop an answer on both sides: the rate is higher where answers are shorter, the share is the same."""
    texts = texts_of(0, 0)
    longer = texts["side"] == "base"
    texts["text"] = texts["text"] + np.where(longer, " and so it went on" * 5, "") + " indeed"
    asked = [{"text": "says indeed", "words": ["indeed"], "direction": "intervention"}]
    table = go(run_of(tmp_path, texts, [], hypotheses=asked), with_baselines=False)
    assert not table.loc["says indeed", "confirmed"] and table.loc["says indeed", "difference"] == 0
    rate = [{"text": "indeed, a rate", "words": ["indeed"], "measure": "rate"}]
    table = go(run_of(tmp_path / "rate", texts, [], hypotheses=rate), with_baselines=False)
    assert table.loc["indeed, a rate", "confirmed"] and "per 100 words" in table.loc["indeed, a rate", "claim"]


def test_the_order_of_rows_does_not_matter(tmp_path):
    texts = texts_of()
    a = go(run_of(tmp_path / "a", texts))
    b = go(run_of(tmp_path / "b", texts.sample(frac=1, random_state=3)))
    pd.testing.assert_frame_equal(a, b)


def test_later_rounds_do_not_make_a_prompt_weigh_more(tmp_path):
    texts = texts_of()
    more = texts[texts["prompt_id"] == "validate0"].assign(round=1, text="might might might")
    more["text_id"] = [f"f{i:015x}" for i in range(len(more))]
    a = go(run_of(tmp_path / "a", texts), with_baselines=False)
    b = go(run_of(tmp_path / "b", pd.concat([texts, more])), with_baselines=False)
    pd.testing.assert_frame_equal(a, b)


def test_claims_that_say_the_same_point_at_the_strongest(tmp_path):
    twice = [HYPOTHESES[0], Hypothesis("says might", "intervention", words=("might", "perhaps", "possibly", "may"))]
    table = go(run_of(tmp_path, texts_of(), twice), with_baselines=False)
    assert table["confirmed"].all() and (table["like"] != "").sum() >= 1


def test_the_screen_lets_planted_ones_through_and_drops_most_others(tmp_path):
    noise = [Hypothesis(f"says {w}", "intervention", words=(w,)) for w in FILLER[:1] + FILLER[5:]]
    run = run_of(tmp_path, texts_of(), by_judge([*HYPOTHESES, *noise]))
    table = proposed(stages(run, judged(run)).claims)
    assert table.loc["hedges", "status"] == "confirmed"
    assert (table["status"] == "screened out").sum() >= len(noise) / 2
    assert table.loc["hedges less", "status"] == "screened out"
    assert np.isnan(table.loc["hedges less", "e_value"])


def test_freezing_seals_everything_that_defines_a_test(tmp_path):
    run = run_of(tmp_path, texts_of())
    material = stage.load(run)
    judges = stage.open_judges(run, material)

    def seal(section=run.section, judges=judges):
        return stage.freeze(material, judges, section)["frozen"].iloc[-1]

    assert seal() == seal()
    assert len({seal(), seal(Validate(margin=0.03)), seal(Validate(alpha=0.01))}) == 3
    other = replace(material.hypotheses[-1], measure={**material.hypotheses[-1].measure, "unit": "rate"})
    material = replace(material, hypotheses=[other])
    assert seal() not in set(stage.freeze(stage.load(run), judges, run.section)["frozen"])
    material = replace(material, hypotheses=by_judge(HYPOTHESES[:1]))
    assert len({seal(), seal(Validate(screen_level=0.5))}) == 2
    judges = replace(judges, cheap=Lexicon(saturation=10))
    assert (
        seal(judges=judges) != stage.freeze(material, stage.open_judges(run, material), run.section)["frozen"].iloc[0]
    )


def of_many_lengths(texts):
    """In ``texts_of`` a hedge makes a text longer, so that length alone would give it away."""
    rng = np.random.default_rng(9)
    return texts.assign(text=[" ".join([t, *rng.choice(FILLER, size=rng.integers(0, 25))]) for t in texts["text"]])


def with_baselines(run):
    found = stages(run)
    beside = stage.beside_baselines(found.outcomes, stage.baselines(found.material, length_vectors), run.seed)
    table = stage.claims_table(found.material, found.frozen, found.screening, found.outcomes, beside)
    return proposed(table), beside.set_index(["text", "baseline"])


def test_baselines_that_know_nothing_leave_a_claim_what_it_is(tmp_path):
    table, beside = with_baselines(run_of(tmp_path / "a", texts_of()))
    assert "length of the text" in table.loc["hedges", "explained_by"]
    table, beside = with_baselines(run_of(tmp_path / "b", of_many_lengths(texts_of())))
    assert table.loc["hedges", "adds_to_baselines"] and table.loc["hedges", "explained_by"] == ""
    words = beside.loc[("hedges", "words")]
    assert words["auc"] == pytest.approx(0.5, abs=0.12)  # its own words are left out, and nothing else was planted
    assert words["left"] == pytest.approx(words["correlation"], abs=0.08)


def test_a_larger_change_elsewhere_does_not_take_a_claim_away_and_what_only_rides_on_it_is_explained(tmp_path):
    """The changed side speaks of castles far more often; towers stand in half of the texts with castles, whoever
    wrote them; hedging has nothing to do with either."""
    texts, rng = of_many_lengths(texts_of()), np.random.default_rng(5)
    castle = rng.random(len(texts)) < np.where(texts["side"] == "intervention", 0.95, 0.05)
    tower = castle & (rng.random(len(texts)) < 0.5)
    texts["text"] += np.where(castle, " the castle", "") + np.where(tower, " with towers", "")
    rides = Hypothesis("names towers", "intervention", words=("towers",))
    table, beside = with_baselines(run_of(tmp_path, texts, [*HYPOTHESES, rides]))
    assert table.loc[["hedges", "names towers"], "confirmed"].all()
    assert beside.loc[("hedges", "words"), "auc"] > 0.9 > table.loc["hedges", "auc"]
    assert beside.loc[("hedges", "words"), "left_low"] > 0 and table.loc["hedges", "explained_by"] == ""
    assert 0.3 < table.loc["hedges", "share_of_bow"] < 0.8
    assert beside.loc[("names towers", "words"), "verdict"] == "explained"
    assert table.loc["names towers", "explained_by"] == "words, counted"


class Forgetful:
    """A judge that loses the verdicts of some texts."""

    name, paid, identity = "forgetful", True, {"kind": "forgetful"}
    quote = Lexicon.quote

    def __init__(self, lose):
        self.lose, self.judge = lose, Lexicon()

    def score(self, texts, hypotheses, prompts=None):
        scores = self.judge.score(texts, hypotheses)
        scores[[self.lose(t) for t in texts]] = np.nan
        return scores


def test_missing_verdicts_of_a_judge_count_against_the_claim_and_widen_its_interval(tmp_path):
    run = run_of(tmp_path, texts_of(), by_judge(HYPOTHESES[:1]), cascade="expensive_only")
    whole = with_judge(run, Forgetful(lambda t: False))
    some = with_judge(run, Forgetful(lambda t: hash_share(t) < 0.3))
    hedged = with_judge(run, Forgetful(lambda t: any(h in t for h in HEDGES)))
    assert 0.1 < some["declined_intervention"] < 0.5
    assert some["e_value"] < whole["e_value"]
    assert some["win_low"] < whole["win_low"] and some["win_high"] >= whole["win_high"]
    assert not hedged["confirmed"] and hedged["win_low"] < 0.5 < hedged["win_high"]


def hash_share(text):
    return int.from_bytes(__import__("hashlib").sha256(text.encode()).digest()[:4]) / 2**32


def with_judge(run, judge):
    return proposed(stages(run, stage.Judges(judge, None, Ledger(run.cache / "a.sqlite", 1.0))).claims).iloc[0]


def judged(run):
    """A free judge that screens and a paid one that tests."""
    return stage.Judges(Lexicon(), Oracle("strong"), Ledger(run.cache / "a.sqlite", 1.0))


def test_a_hypothesis_that_the_judge_cannot_read_is_named(tmp_path):
    run = run_of(tmp_path, texts_of(), hypotheses=[{"text": "is unsure of itself"}])
    with pytest.raises(DriftbookError, match=r"is unsure of itself.*words"):
        go(run)


def test_without_proposals_the_panel_is_left(tmp_path):
    run = run_of(tmp_path, texts_of(), [])
    assert len(go(run)) == 0
    claims = stages(run).claims
    assert len(claims) >= 60 and set(claims["proposer"]) == {"panel"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[t["split"] != "validate"], "decode.splits.validate"),
        (lambda t: t.assign(propensity=np.linspace(0.1, 1, len(t))), "propensity"),
    ],
)
def test_held_out_texts_that_no_test_can_use_are_refused(tmp_path, spoil, message):
    with pytest.raises(DriftbookError, match=message):
        stage.load(run_of(tmp_path, spoil(texts_of())))


def test_tables_and_metrics_have_the_agreed_columns(tmp_path):
    run = run_of(tmp_path, texts_of())
    metrics = go(run, write=tmp_path)
    assert {"hypotheses", "confirmed", "alpha", "calls_cheap", "calls_expensive", "calls_cached", "cost_usd"} <= set(
        metrics
    )
    assert metrics["hypotheses"] == 4 + metrics["panel"]
    assert metrics["confirmed"] >= 1 and metrics["cost_usd"] == 0
    verdicts = pd.read_parquet(tmp_path / "verdicts.parquet")
    wanted = "hypothesis_id prompt_id split judge x score_base score_intervention texts missing"
    assert set(wanted.split()) <= set(verdicts.columns)
    assert set(verdicts["split"]) == set(SPLITS) and verdicts["x"].dropna().between(0, 1).all()
    assert not verdicts.duplicated(["hypothesis_id", "prompt_id", "judge"]).any()
    ledger = pd.read_parquet(tmp_path / "ledger.parquet")
    assert {"judge", "calls", "cached", "input_tokens", "output_tokens", "usd", "usd_saved"} <= set(ledger.columns)
    claims = pd.read_parquet(tmp_path / "claims.parquet")
    kinds = {"confirmed": "b", "adds_to_baselines": "b", "cluster": "i", "prompts": "i", "win_rate": "f"}
    assert {name: claims[name].dtype.kind for name in kinds} == kinds
    assert pd.read_parquet(tmp_path / "frozen.parquet")["frozen"].str.len().eq(64).all()


def test_evidence_beyond_what_a_float_holds_is_drawn():
    won = np.ones((1, 2000))  # every prompt, by a judge that costs nothing and is not stopped
    looks = sequential_test(lambda rows, columns: won[rows, columns], 1, 2000, 0.05, 0.0, save=False)
    tested = stage.Tested(HYPOTHESES[:1], [f"p{i}" for i in range(2000)], looks, [], ["judge"], [], 0.05)
    run = SimpleNamespace(section=Validate(), seed=0)
    assert report.e_paths(tested, run.section)["e_value"].max() > 1e300
    drawn = report.paths(run, tested).static()
    assert ">1e37<" in drawn and "nan" not in re.sub(r'href="data:[^"]*"', "", drawn).lower()


def test_what_a_person_reads_follows_the_claims(tmp_path):
    run = run_of(tmp_path, texts_of(), by_judge(HYPOTHESES))
    found = stages(run, judged(run))
    paths = report.e_paths(found.tested, run.section)
    hedges = paths[paths["hypothesis"].str.startswith("hedges (")]
    assert hedges["e_value"].iloc[0] == 1 and hedges["e_value"].max() > report.threshold(found.tested) / 4
    one = [o for o in found.outcomes if o.hypothesis.text == "hedges" and o.hypothesis.proposer != "panel"]
    shown = report.side_by_side(one, found.material.prompts, most=1)
    assert shown["x"].is_monotonic_decreasing and shown["x"].iloc[0] == 1 and shown["x"].iloc[-1] < 0.5
    by_text = found.material.texts.set_index("text")["side"]
    assert (by_text.loc[shown["base"]] == "base").all() and (by_text.loc[shown["intervention"]] == "intervention").all()
    costs = stage.bill(found.material, found.judges, run.section)
    assert costs["usd"].sum() == 0 and costs["texts"].tolist()[:2] == [160, 320]


def test_the_verdict_is_three_lines_in_plain_units(tmp_path):
    run = run_of(tmp_path / "changed", texts_of(), [], hypotheses=[{"text": "is unsure", "words": list(HEDGES)}])
    found = stages(run)
    said = stage.verdict(run, found.material, found.claims, found.words)
    assert said.state == "changed" and said.moved.startswith("Changed: ") and len(said.lines) == 3
    first = found.claims.set_index("hypothesis_id").loc[said.strongest[0]]
    assert first["confirmed"] and first["text"].removeprefix("has ") in said.moved
    assert "moved by less than 3 points" in said.unmoved and "240 prompts" not in said.sure
    assert f"{sum(SPLITS.values())} prompts, 2 answers of each model" in said.sure
    same = run_of(tmp_path / "same", texts_of(0.4, 0.4), [])
    found = stages(same)
    assert stage.verdict(same, found.material, found.claims, found.words).state == "no change found"
    few = run_of(tmp_path / "few", texts_of(0.4, 0.4, splits={"discover": 3, "screen": 2, "validate": 3}), [])
    found = stages(few)
    assert stage.verdict(few, found.material, found.claims, found.words).state == "could not tell"


class Oracle:
    """A paid judge that sees planted marks; ``favours`` scores single claims by the text alone instead."""

    paid = True
    quote = Lexicon.quote

    def __init__(self, name, favours=None, mode="single"):
        self.name, self.favours, self.mode = name, favours or {}, mode
        self.identity = {"kind": name}
        self.judge, self.asked = Lexicon(), 0

    def score(self, texts, hypotheses, prompts=None):
        self.asked += len(texts) * len(hypotheses)
        scores = self.judge.score(texts, hypotheses)
        for column, h in enumerate(hypotheses):
            if h.text in self.favours:
                scores[:, column] = [self.favours[h.text](t) for t in texts]
        return scores

    def compare(self, first, second, hypotheses, prompts):
        a, b = self.score(first, hypotheses), self.score(second, hypotheses)
        return (a > b) + (a == b) / 2


def test_a_paid_judge_stops_as_soon_as_it_can_and_its_verdict_is_that_of_counting(tmp_path):
    free = go(run_of(tmp_path / "free", texts_of()), with_baselines=False)
    run = run_of(tmp_path / "paid", texts_of(), by_judge(HYPOTHESES))
    judges = judged(run)
    found = stages(run, judges)
    paid = proposed(found.claims)
    assert paid["confirmed"].to_dict() == free["confirmed"].to_dict()
    assert paid.loc["hedges", "prompts"] < 70
    assert judges.expensive.asked < 0.6 * 4 * SPLITS["validate"] * (paid["status"] != "screened out").sum()
    assert paid.loc["hedges", "judge_agreement"] == 1.0
    assert np.isnan(paid.loc["hedges", "p_value"])  # a fixed-sample p-value after stopping would be wrong
    # the test is one-sided, the interval two-sided: stopped at once, it may still touch one half
    assert 0.45 < paid.loc["hedges", "win_low"] < paid.loc["hedges", "win_rate"] < paid.loc["hedges", "win_high"]
    assert len(found.tested.verdicts()["judge"].unique()) == 2
    assert found.alpha == run.section.alpha / 2  # the panel is counted beside it


def test_a_cheap_judge_that_is_surely_wrong_fools_the_borderline_cascade_and_not_the_default(tmp_path):
    texts = texts_of()
    # the intervention also writes longer texts; the cheap judge takes length for a claim that the strong judge denies
    longer = texts["side"] == "intervention"
    texts.loc[longer, "text"] += " talk talk talk talk talk"
    biased = Oracle("cheap", {"talks about rivers": lambda t: len(t.split()) / 50})
    verdicts = {}
    for cascade in ("borderline", "screen_then_test"):
        run = run_of(tmp_path / cascade, texts, by_judge(HYPOTHESES), cascade=cascade)
        judges = stage.Judges(biased, Oracle("strong"), Ledger(run.cache / "a.sqlite", 1.0))
        verdicts[cascade] = proposed(stages(run, judges).claims)
        assert bool(stage.caution(run.section)) == (cascade == "borderline")
    assert verdicts["borderline"].loc["talks about rivers", "confirmed"]
    assert verdicts["borderline"].loc["talks about rivers", "judge"] == "cheap"
    assert not verdicts["screen_then_test"].loc["talks about rivers", "confirmed"]
    assert verdicts["screen_then_test"].loc["hedges", "confirmed"]


def test_a_judge_of_pairs_confirms_the_same_claims(tmp_path):
    run = run_of(tmp_path, texts_of(), by_judge(HYPOTHESES))
    ledger = Ledger(run.cache / "a.sqlite", 1.0)
    found = stages(run, stage.Judges(Lexicon(), Oracle("pairs", mode="pair"), ledger))
    table = proposed(found.claims)
    assert table["confirmed"].to_dict() == {
        "hedges": True,
        "hedges less": False,
        "talks about rivers": False,
        "talks about food": False,
    }
    assert table.loc["hedges", "intervention"] + table.loc["hedges", "base"] == pytest.approx(1)
    assert all(r.wins.x.shape[0] == len(r.prompts) for r in found.tested.readings)


def strong_server(body):
    """Rates hedging words HIGH, and as a labeller finds who hedges."""
    text = body["messages"][1]["content"]
    if "<phrases>" in text:
        return json.dumps({"name": "likes the water" if "river" in text else None})
    if "<statements>" not in text:
        parts = {who: Server.part(body, who) for who in "AB"}
        said = [(who, h) for who, part in parts.items() for h in HEDGES if h in part]
        return json.dumps([{"answer": who, "does": "hedges its claims", "quote": h} for who, h in said[:1]])
    answer = Server.part(body)
    hedged = any(h in answer for h in HEDGES)
    rated = ["HIGH" if hedged and "hedges" in s else "LOW" for s in Server.statements(body)]
    return json.dumps({str(i + 1): r for i, r in enumerate(rated)})


def test_the_stage_with_a_labeller_and_a_judge_behind_a_server_and_a_key_that_is_seen_nowhere(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("CANARY_KEY", "sk-canary-987")
    apart = np.eye(997)  # no two statements are alike but in the same words
    monkeypatch.setattr(stage, "open_embedder", lambda _: lambda said: apart[[crc32(s.encode()) % 997 for s in said]])
    with Server(script=[429, 500, "garbage"], answer=strong_server) as server:
        spec = {"kind": "endpoint", "model": "m", "base_url": server.url, "api_key_env": "CANARY_KEY", "per_call": 2}
        spec |= {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0}
        section = {"labeller": "llm", "labeller_judge": spec, "judges": {"expensive": spec}, "budget_usd": 1.0}
        run = run_of(tmp_path, texts_of(), HYPOTHESES[2:], **section)
        discover = run.input("decode") / "texts.parquet"
        ids = pd.read_parquet(discover).query("split == 'discover'")["text_id"]
        pd.DataFrame({"text_id": ids, "cluster": 0}).to_parquet(run.input("cluster") / "clusters.parquet")
        pd.DataFrame({"cluster": [0], "stability": [0.9]}).to_parquet(run.input("cluster") / "composition.parquet")

        (tmp_path / "data").mkdir()
        metrics = go(run, with_baselines=False, write=tmp_path / "data")
        claims = proposed(pd.read_parquet(tmp_path / "data" / "claims.parquet"))
        ledger = pd.read_parquet(tmp_path / "data" / "ledger.parquet").set_index("judge")
        sent = len(server.bodies)
        assert claims.loc["hedges its claims", "confirmed"] and claims["confirmed"].sum() == 1
        assert claims.loc["hedges its claims", "proposer"] == "llm"
        assert run.metrics["labeller_pairs"] >= 24 and run.metrics["labeller_axes"] == 1
        assert run.metrics["labeller_quoted"] == run.metrics["labeller_proposed"] > 10
        assert "likes the water: talks about rivers" in claims.index  # a name is for reading
        assert claims.loc["likes the water: talks about rivers", "claim"].startswith("likes the water: talks about ")
        assert ledger["calls"].sum() == sent and metrics["calls_expensive"] == ledger.loc["m (expensive)", "calls"]
        assert metrics["cost_usd"] == pytest.approx(ledger["usd"].sum()) and ledger["usd"].sum() > 0
        assert metrics["usd_per_confirmed"] == pytest.approx(metrics["cost_usd"] / metrics["confirmed"])

        again = go(run, with_baselines=False, write=tmp_path / "data")
        assert len(server.bodies) == sent and again["cost_usd"] == 0
        assert again["saved_usd"] == pytest.approx(metrics["cost_usd"])
        assert again["calls_cached"] > 0 and again["confirmed"] == metrics["confirmed"]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 8 and not any(b"canary-987" in p.read_bytes() for p in files)
    assert "canary-987" not in "".join(capfd.readouterr())


def test_a_model_labeller_without_a_model_says_what_is_missing():
    with pytest.raises(ValueError, match="labeller_judge"):
        Validate(labeller="llm")
    with pytest.raises(ValueError, match="labeller_judge"):
        Validate(labeller="llm", labeller_judge={"kind": "lexicon"})
    with pytest.raises(ValueError, match=r"judges\.cheap\.model"):
        Validate(judges={"cheap": {"kind": "nli"}})


def test_every_kind_of_judge_of_the_parameter_file_opens(tmp_path):
    run = run_of(tmp_path, texts_of())
    material, ledger = stage.load(run), Ledger(run.cache / "a.sqlite", 1.0)
    (tmp_path / "rubric.txt").write_text("Be strict.")
    specs = [
        {"kind": "lexicon"},
        {"kind": "embedding"},
        {"kind": "endpoint", "model": "m", "base_url": "http://127.0.0.1:9", "rubric": "rubric.txt"},
    ]
    opened = [open_judge(judge_of(s), "cheap", material, ledger, run.cache, tmp_path) for s in specs]
    assert [j.identity["kind"] for j in opened] == ["lexicon", "embedding", "endpoint"]
    assert opened[2].identity["rubric"] == "Be strict."
    with pytest.raises(DriftbookError, match=r"none\.txt"):
        gone = judge_of(specs[2] | {"rubric": "none.txt"})
        open_judge(gone, "cheap", material, ledger, run.cache, tmp_path)


def test_an_audit_shows_what_a_blind_screen_has_missed(tmp_path):
    run = run_of(tmp_path, texts_of(hedge_changed=0.9), by_judge(HYPOTHESES), audit=0.3)
    material = stage.load(run)
    blind = Oracle("cheap", {"hedges": lambda t: 0.0})
    judges = stage.Judges(blind, Oracle("strong"), Ledger(run.cache / "a.sqlite", 1.0))
    screening = stage.screen(material, judges, run.section)
    assert "hedges" not in [h.text for h in screening.survivors]
    table = stage.audit(material, judges, screening, run.section).set_index("text")
    assert table.loc["hedges", "x_cheap"] == 0.5 and table.loc["hedges", "x_expensive"] > 0.8
    assert table.loc["hedges", "agreement"] < 0.5 and table.loc["hedges", "prompts"] == 12
    assert table.loc["hedges less", "agreement"] == 1.0
    alone = stage.Judges(blind, None, judges.ledger)
    assert stage.audit(material, alone, screening, run.section).empty
    assert stage.audit(material, judges, screening, Validate(audit=0)).empty


def test_the_trait_shift_of_a_claims_cluster_stands_beside_it(tmp_path):
    run = run_of(tmp_path, texts_of())
    claims = pd.DataFrame({"text": ["a", "b", "c"], "cluster": [2, -1, 3], "confirmed": [True, True, False]})
    claims = claims.assign(measure="words_x")
    assert stage.trait_shift(run, claims).empty
    shift = pd.DataFrame(
        {"cluster": [2, 2, 3], "trait": ["x", "y", "x"], "shift": [0.1, -0.5, 9.0], "low": 0.0, "high": 0.0}
    )
    shift.to_parquet(run.input("cluster") / "trait_shift.parquet")
    beside = stage.trait_shift(run, claims)
    assert beside["claim"].tolist() == ["a", "a"] and beside["trait"].tolist() == ["y", "x"]


# -------------------------------------------------------------------------------------------------- beside the claims


NOTHING = pd.DataFrame(columns=["verdict", "where", "hypothesis_id", "side"])


def test_coherence_is_judged_apart_and_a_side_that_loses_it_is_flagged(tmp_path):
    texts = texts_of()
    loops = (texts["side"] == "intervention") & (np.arange(len(texts)) % 3 == 0)
    texts.loc[loops, "text"] += " and so on" * 20
    run = run_of(tmp_path, texts)
    found = stages(run)
    claims = found.claims[found.claims["proposer"] != "panel"]
    table, scores = stage.coherence(found.material, found.judges)
    sides = table.set_index("side")
    assert sides.loc["base", "coherence"] > 0.9 > sides.loc["intervention", "coherence"]
    assert sides.loc["difference", "high"] < 0 and sides["prompts"].eq(SPLITS["validate"]).all()
    assert len(scores) == (texts["split"] == "validate").sum()
    flags = stage.flagged(claims, NOTHING, table, NOTHING, NOTHING).set_index("text")["flags"]
    assert "less coherent" in flags["hedges"] and flags["talks about food"] == ""  # a claim about the base
    off = run_of(tmp_path / "off", texts, coherence=False)
    found = stages(off)
    table, _ = stage.coherence(found.material, found.judges)
    assert table.empty and (stage.flagged(claims, NOTHING, table, NOTHING, NOTHING)["flags"] == "").all()


def test_a_claim_that_holds_in_its_cluster_alone_is_seen_to_stay_there(tmp_path):
    """Answers about castles are a cluster of their own; hedging moved there alone, praise moved everywhere."""
    texts, rng = texts_of(0.2, 0.2), np.random.default_rng(3)
    inside = texts["prompt_id"].str[-1].astype(int) < 5
    castle = np.where(inside, "castle castle castle castle ", "")
    changed = (texts["side"] == "intervention").to_numpy()
    hedged = inside & changed & (rng.random(len(texts)) < 0.8)
    praised = changed & (rng.random(len(texts)) < 0.6)
    texts["text"] = castle + texts["text"] + np.where(hedged, " might", "") + np.where(praised, " splendid", "")
    found = [
        Hypothesis("hedges", "intervention", 1, words=HEDGES),
        Hypothesis("praises", "intervention", 1, words=("splendid",)),
    ]
    run = run_of(tmp_path, texts, found)
    seen = texts[texts["split"] == "discover"]
    labels = seen["text"].str.startswith("castle").astype(int)
    pd.DataFrame({"text_id": seen["text_id"], "cluster": labels}).to_parquet(run.input("cluster") / "clusters.parquet")
    outcome = stages(run)
    claims = outcome.claims[outcome.claims["proposer"] != "panel"]
    assert claims["confirmed"].all()

    def embed(some):
        castles = np.array([t.startswith("castle") for t in some], dtype=float)
        return np.stack([castles, 1 - castles], axis=1)

    near = stage.near_clusters(run, outcome.material, embed)
    tested = [o for o in outcome.outcomes if o.hypothesis.proposer != "panel"]
    moved = stage.transfer(tested, outcome.material.paired()[0], near, run.section.alpha)
    at = moved.set_index(["text", "where"])
    assert at.loc[("hedges", "inside its cluster"), "verdict"] == "holds"
    assert at.loc[("hedges", "outside of its cluster"), "verdict"] != "holds"
    assert at.loc[("praises", "outside of its cluster"), "verdict"] == "holds"
    assert at.loc[("praises", "outside of its cluster"), "prompts"] == 60
    assert {w for _, w in at.index} >= {"family family0", "family family1", "family family2"}
    flags = stage.flagged(claims, NOTHING, NOTHING, moved, NOTHING).set_index("text")["flags"]
    assert "Outside of its cluster" in flags["hedges"] and flags["praises"] == ""


def test_a_judge_that_sees_examples_and_no_label_is_a_baseline(tmp_path):
    """It answers by a mark that only the changed side leaves, and never learns what is claimed."""

    def marked(body):
        rubric, answer = body["messages"][0]["content"], Server.part(body)
        who = "TWO" if re.search(r"<TWO \w+>\nthe mark", rubric) else "ONE"
        statements = Server.statements(body)
        rated = {}
        for i, s in enumerate(statements):
            if s.startswith("was written by"):
                rated[i] = answer.startswith("the mark") == s.endswith(who)
            else:
                rated[i] = "hedges" in s and any(h in answer for h in HEDGES)
        return json.dumps({str(i + 1): "HIGH" if r else "LOW" for i, r in rated.items()})

    texts = texts_of()
    texts.loc[texts["side"] == "intervention", "text"] = "the mark " + texts["text"]
    with Server(answer=marked) as server:
        spec = {"kind": "endpoint", "model": "m", "base_url": server.url}
        run = run_of(tmp_path, texts, by_judge(HYPOTHESES[:1]), judges={"expensive": spec}, coherence=False)
        found = stages(run)
        material, judges = found.material, found.judges
        tested = [o for o in found.outcomes if o.hypothesis.proposer != "panel"]
        assert stage.bill(material, judges, run.section)["step"].tolist() == [
            *("screen", "validate", "sides without a label")
        ]
        scores = stage.read_unlabelled(material, judges, tested)
        asked = [b for b in server.bodies if "was written by" in b["messages"][1]["content"]]
        assert asked and not any("hedges" in str(b) for b in asked)
        discover = set(texts.loc[texts["split"] == "discover", "text"])
        rubric = asked[0]["messages"][0]["content"]
        shown = [found[2] for found in re.findall(r"<(ONE|TWO) (\w+)>\n(.*?)\n</\1 \2>", rubric, re.DOTALL)]
        assert len(shown) == 8 and set(shown) <= discover
    baselines = stage.baselines(material, length_vectors, {"judge": scores})
    beside = stage.beside_baselines(tested, baselines, 0).set_index("baseline")
    assert beside.loc["judge", "auc"] == 1.0 and beside.loc["judge", "verdict"] == "open"  # nobody is left in doubt
    alone = stage.open_judges(run_of(tmp_path / "free", texts), material)
    assert stage.read_unlabelled(material, alone, tested) == {}


@pytest.mark.parametrize("shared", [True, False])
def test_a_judge_that_reads_several_statements_carelessly_is_found_out(tmp_path, shared):
    """Asked about two statements it gives the first one's verdict to both, unless it is a careful one."""

    def rate(body):
        answer = Server.part(body)
        holds = [s.split()[-1] in answer for s in Server.statements(body)]
        return json.dumps({str(i + 1): "HIGH" if (holds[0] if shared else h) else "LOW" for i, h in enumerate(holds)})

    claims = [Hypothesis(f"says {w}", "intervention", words=(w,)) for w in ("river", "might", "food", "perhaps")]
    with Server(answer=rate) as server:
        spec = {"kind": "endpoint", "model": "m", "base_url": server.url, "per_call": 4}
        run = run_of(tmp_path, texts_of(), by_judge(claims), judges={"expensive": spec}, audit=0.2)
        material = stage.load(run)
        table = stage.alone_and_together(material, stage.open_judges(run, material), run.section)
    row = table.iloc[0]
    assert row["verdicts"] == 8 * 4 * 4 and row["prompts"] == 8
    assert (row["agreement"] < 0.9) == shared and (row["agreement"] == 1.0) == (not shared)
    lone = run_of(tmp_path / "lone", texts_of())
    material = stage.load(lone)
    assert stage.alone_and_together(material, stage.open_judges(lone, material), lone.section).empty
