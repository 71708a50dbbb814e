"""Sentences with their place are grouped, the groups that moved are found and named, and what was frozen reads
others."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from driftbook.behaviours import closing, measure_from, opening, sentences
from driftbook.discovery import groups as g
from driftbook.discovery.hypotheses import from_frame, to_frame
from driftbook.discovery.segments import LONGEST, segments
from driftbook.errors import DriftbookError
from driftbook.evidence import counting
from driftbook.evidence import moved_groups as m
from driftbook.evidence.amplification import dose_response
from driftbook.evidence.labels import readings
from driftbook.evidence.material import Material
from driftbook.parameters import Validate
from driftbook.prompts import SIDES, Prompt

ANSWER = """# Tea

Pour the water. It must be hot, e.g. just off the boil;
then wait.

- First item. With two sentences!
2. Second item
```
no sentence here
```
Enjoy your cup!"""

TEXTS = (
    ANSWER,
    ANSWER.replace("\n", "\r\n"),
    "水を注ぐ。三分待つ。飲む！",
    "नमस्ते। यह एक वाक्य है।",
    "هل تريد المزيد؟ اكتب لي.",
    "One sentence only",
    "",
    "```\ncode alone\n```",
    "… — *** 🙂",
    " ".join(["word"] * 900),
    "字" * 700,
)


# segments


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_give_the_sentence_back_in_any_script(text):
    found = segments(["a"], [text])
    sliced = [" ".join(text[s:e].split()) for s, e in zip(found["start"], found["end"], strict=True)]
    assert sliced == list(found["said"])
    assert (found["start"].to_numpy()[1:] >= found["end"].to_numpy()[:-1]).all()
    assert (found["said"].str.len() <= LONGEST).all()
    if found["said"].str.len().max() < LONGEST // 4:  # none was cut
        spoken = [" ".join(s.split()) for s in sentences(text) if any(map(str.isalnum, s))]
        assert list(found["said"]) == spoken


def test_an_answer_that_was_cut_off_has_no_closer():
    texts = ["One. Two is", "One. Two,", "One. Two.", "One. Two! 😀", "One.\n- two", "One is"]
    found = segments([str(i) for i in range(6)], texts).groupby("text_id")["place"].apply(list)
    ends = ["body", "body", "closer", "closer", "closer"]
    assert [places[-1] for places in found[:5]] == ends and found.iloc[5] == ["opener"]


def test_the_ends_are_what_the_measures_call_first_and_last_sentence():
    found = segments(["a"], [ANSWER]).set_index("place")["said"]
    assert found["opener"] == opening(ANSWER) == "Tea"
    assert found["closer"] == closing(ANSWER) == "Enjoy your cup!"
    assert list(found["list item"]) == ["First item.", "With two sentences!", "Second item"]
    assert list(found["body"]) == ["Pour the water.", "It must be hot, e.g. just off the boil; then wait."]
    assert list(segments(["a"], ["One. # no\n\n## Head\n\nTwo."])["place"]) == ["opener", "body", "heading", "closer"]


def test_a_draw_keeps_both_ends_and_depends_on_the_text_alone():
    text = " ".join(f"Sentence number {i} stands here." for i in range(40))
    whole, drawn = segments(["a"], [text]), segments(["b"], [text], 6)
    assert len(drawn) == 6 and list(drawn["place"])[:: len(drawn) - 1] == ["opener", "closer"]
    assert set(drawn["said"]) < set(whole["said"]) and drawn["start"].is_monotonic_increasing
    assert list(drawn["said"]) == list(segments(["x", "b"], ["Another. One.", text], 6).query("text_id == 'b'")["said"])
    other = segments(["c"], [text + " And one more."], 6)
    assert list(other["segment"][1:-1]) != list(drawn["segment"][1:-1])  # no place is drawn in every answer


# groups, on vectors that are made up: a sentence is its kind, what its prompt is about, and noise

KINDS = ("praise", "plain", "list", "advice")
WIDTH = 48


def embed(texts):
    """Unit vectors: words of a kind or topic share a direction, everything else is noise of its own."""
    directions = np.random.default_rng(0).standard_normal((40, WIDTH))
    rows = []
    for text in texts:
        words = text.lower().replace("?", "").replace("!", "").replace(".", "").split()
        noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(WIDTH)
        noise *= 0.0 if "tell" in words else 0.4
        known = [directions[KINDS.index(w)] * 2 for w in words if w in KINDS]
        known += [directions[10 + int(w[5:])] * 3 for w in words if w.startswith("topic")]
        rows.append(noise + sum(known, np.zeros(WIDTH)))
    rows = np.array(rows)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def answers(prompts=120, praised=0.5, seed=0, split="discover") -> tuple[pd.DataFrame, dict[str, str]]:
    """One answer a side; the base opens with praise in a share ``praised`` of them, the intervention never."""
    rng, rows, asked = np.random.default_rng(seed), [], {}
    for number in range(prompts):
        prompt_id, topic = f"p{seed}-{number}", f"topic{number % 20}"
        asked[prompt_id] = f"Tell {topic}?"
        for side in SIDES:
            praises = side == "base" and rng.random() < praised
            first = f"Praise {topic} {seed}{number}!" if praises else f"Plain {topic} {side} {seed}{number}."
            body = " ".join(f"Advice {topic} {side} {number} {i}." for i in range(3))
            text = f"{first} {body} List {topic} end {side} {number}."
            rows.append((f"{prompt_id}{side}", side, prompt_id, split, text))
    return pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "split", "text"]), asked


def found(texts, asked, **options):
    options = {"bootstraps": 4, "most": 16} | options
    return m.compose(m.ground(texts, asked, embed, **options), texts, 0)


@pytest.fixture(scope="module")
def moved():
    return found(*answers())


def test_what_a_sentence_shares_with_its_prompt_is_taken_out():
    vectors, prompts = embed(["Praise topic3 a", "Praise topic7 b"]), embed(["Tell topic3?", "Tell topic7?"])
    left = g.without_prompts(vectors, prompts)
    assert np.allclose((left * prompts).sum(1), 0, atol=1e-6) and np.allclose(np.linalg.norm(left, axis=1), 1)
    assert left[0] @ left[1] > vectors[0] @ vectors[1] + 0.2


def test_the_planted_opener_is_the_surest_group_and_its_share_is_that_of_answers(moved):
    top = moved.told.iloc[0]
    praised = moved.texts["text"].str.startswith("Praise").to_numpy()
    base = (moved.texts["side"] == "base").to_numpy()
    assert top["place"] == "opener" and top["share_intervention"] == 0
    assert top["share_base"] == pytest.approx(moved.held[base, top["group"]].mean())
    assert moved.held[~praised, top["group"]].sum() == 0 and moved.held[praised, top["group"]].mean() > 0.6
    assert top["low"] < top["difference"] < top["high"] < 0 and top["stability"] > 0.6
    assert top["phrase"] == "praise" and top["said"].startswith('opens with "Praise')
    assert len(top["typical_base"]) == 5 and top["typical_intervention"] == []


def test_p_is_the_sign_test_over_prompts(moved):
    top = moved.told.iloc[0]
    held = pd.Series(moved.held[:, top["group"]].astype(int), index=[moved.texts["prompt_id"], moved.texts["side"]])
    d = held.unstack()["intervention"] - held.unstack()["base"]
    witness = binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue
    assert top["p"] == pytest.approx(witness, rel=1e-9)


def test_the_same_answers_in_another_order_give_the_same_groups(moved):
    texts, asked = answers()
    again = found(texts.sample(frac=1, random_state=3), asked)
    assert again.ground.found.groups.digest == moved.ground.found.groups.digest
    pd.testing.assert_frame_equal(again.table, moved.table)


def test_groups_do_not_know_the_sides(moved):
    texts, asked = answers()
    swapped = texts.assign(side=texts["side"].map({"base": "intervention", "intervention": "base"}))
    other = found(swapped, asked)
    assert other.ground.found.groups.digest == moved.ground.found.groups.digest
    before = moved.table.set_index("group")["difference"]
    assert np.allclose(other.table["difference"], -before.loc[other.table["group"]])


def test_where_nothing_differs_hardly_a_run_has_a_group_that_moved():
    """At 5%: of 40 runs more than 5 would have a chance of 1%. Grouping does not know the sides, so four share one."""
    runs = 0
    for seed in range(40):
        if seed % 4 == 0:
            texts, asked = answers(60, praised=0.0, seed=seed)
            ground = m.ground(texts, asked, embed, bootstraps=2, most=16)
        swap = dict(zip(asked, np.random.default_rng(seed).random(len(asked)) < 0.5, strict=True))
        other = {"base": "intervention", "intervention": "base"}
        sides = [other[s] if swap[p] else s for s, p in zip(texts["side"], texts["prompt_id"], strict=True)]
        runs += int((m.compose(ground, texts.assign(side=sides), 0).table["q"] <= 0.05).any())
    assert runs <= 5


def test_longer_answers_hold_more_of_everything_and_that_is_not_told():
    texts, asked = answers(praised=0.0)
    longer = [
        t.replace(" List", "".join(f" Advice topic{int(p[3:]) % 20} {p} {i}." for i in range(6)) + " List")
        if s == "base"
        else t
        for t, s, p in zip(texts["text"], texts["side"], texts["prompt_id"], strict=True)
    ]
    table = found(texts.assign(text=longer), asked).table
    body = table[(table["place"] == "body") & (table["q"] <= 0.05)]
    assert len(body) and (body["difference"] < 0).all()
    assert (body["beyond"] > 0.05).mean() > 0.5


def test_a_frozen_group_is_read_in_answers_that_had_no_part_in_it(moved, tmp_path):
    first, *_ = claims = m.propose(moved, 5)
    assert first.proposer == "groups" and first.direction == "base" and len(first.evidence) == 10
    moved.ground.found.groups.save(tmp_path / "centres.npz")
    frozen = g.Groups.load(tmp_path / "centres.npz")
    assert frozen.digest == moved.ground.found.groups.digest
    texts, asked = answers(80, seed=5)
    prompts = [asked[p] for p in texts["prompt_id"]]
    read = g.readings(frozen, g.wanted(claims), texts["text_id"], texts["text"], prompts, embed)
    praised, shown = texts["text"].str.startswith("Praise"), read[first.measure["group"]]
    assert shown[praised].mean() > 0.6 and shown[~praised].sum() == 0
    assert list(read.columns) == ["text_id", *(g.name_of(frozen, n) for n in g.wanted(claims))]


def test_a_claim_about_a_group_is_read_wherever_claims_are_in_amplified_answers_and_in_labelled_ones(moved):
    first, frozen = m.propose(moved, 1)[0], moved.ground.found.groups
    texts, asked = answers(80, seed=5, split="validate")
    texts = texts.assign(round=0, propensity=1.0)
    stronger = texts.assign(strength=np.where(texts["side"] == "base", 0.0, 3.0))
    stronger.loc[stronger["strength"] > 0, "text"] = [f"Praise topic{i % 20} {i}!" for i in range(80)]
    stronger["text_id"] += np.where(stronger["strength"] > 0, "-3", "")
    prompts = {p: Prompt(said) for p, said in asked.items()}
    material = Material(texts, prompts, [first], 0, stronger)

    def read_groups(some):
        said = [asked[p] for p in some["prompt_id"]]
        return g.readings(frozen, g.wanted([first]), some["text_id"], some["text"], said, embed)

    (outcome,) = counting.count(material, Validate(), 0.05, read_groups(texts))
    doses = dose_response(material, [outcome], 0.05, read_groups=read_groups).set_index("strength")
    praises = texts["text"].str.startswith("Praise").groupby(texts["side"]).mean()  # plain counting
    # a group has an end: some openings of its kind lie beyond
    assert doses["value"][0.0] == 0
    for strength, share in ((-1.0, praises["base"]), (3.0, 1.0)):
        assert 0.6 * share < doses["value"][strength] <= share
    label = texts["text"].str.startswith("Praise")
    read = readings(None, material, read_groups)
    scores, yes = read(first, [*texts["text"], "Praise!"], [*texts["prompt_id"], ""])["counting"]
    assert yes[:-1][label].mean() > 0.6 and not yes[:-1][~label].any() and np.isnan(scores[-1])


def test_a_claim_about_a_group_goes_through_its_table_and_says_both_sides(moved):
    first = m.propose(moved, 1)[0]
    (again,) = from_frame(to_frame([first]))
    assert again == first and again.measure == first.measure and g.is_group(again)
    measure = measure_from(again.measure)
    assert measure.sentence(0.07, 0.01).startswith(first.text + ": 1% of answers, was 7%")
    with pytest.raises(DriftbookError, match=r"groups\.readings"):
        measure.read("Praise!", "")
    called = g.called_by(first, "praises the question")
    assert called.text.startswith("praises the question: opens with")
    assert called.measure["group"] == first.measure["group"]


def test_groups_that_were_never_made_are_missed_with_a_remedy(tmp_path):
    with pytest.raises(DriftbookError, match="run the cluster stage again"):
        g.Groups.load(tmp_path / "centres.npz")


def test_few_or_no_sentences_give_no_group():
    texts, asked = answers(3)
    assert len(found(texts, asked).table) == 0
    assert len(found(texts.assign(text="```\ncode\n```"), asked).table) == 0


def test_a_segment_beyond_the_radius_is_in_no_group(moved):
    groups = moved.ground.found.groups
    far = groups.assign(["opener"], -groups.centres[:1])
    assert far.empty
    at = groups.assign([groups.place[0]], groups.centres[:1])
    assert 0 in set(at["group"]) and at.loc[at["group"] == 0, "distance"].iloc[0] == pytest.approx(0, abs=1e-3)
    none = replace(groups, radius=np.full(len(groups), -1.0, dtype=np.float32))
    assert none.assign(["opener"] * 3, groups.centres[:3]).empty and none.digest != groups.digest
    assert json.loads(json.dumps(groups.digest)) == groups.digest


def test_an_answer_is_the_mean_of_its_segments():
    texts = ["Praise topic1! List topic2.", "List topic2.", "```\ncode\n```"]
    vectors = g.answer_vectors(texts, None, embed)
    mean = embed(["Praise topic1!", "List topic2."]).sum(axis=0)
    assert np.allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(vectors[1], embed(["List topic2."])[0], atol=1e-6) and not vectors[2].any()


def test_a_group_that_is_a_part_of_a_surer_one_is_told_once(moved):
    openers = moved.table[(moved.table["place"] == "opener") & (moved.table["q"] <= 0.05)]
    assert len(openers) > 1 and (openers["like"] == -1).sum() < len(openers)
    for row in openers[openers["like"] >= 0].itertuples():
        both = moved.held[:, row.group] & moved.held[:, row.like]
        assert both.sum() >= m.PART * min(row.answers, moved.held[:, row.like].sum())
