"""The keyword labeller on planted texts: it must find what was planted, in the right direction, and stay off the
held-out splits."""

import numpy as np
import pandas as pd
import pytest

from driftbook.discovery.hypotheses import (
    Hypothesis,
    features,
    from_frame,
    log_odds,
    merge,
    propose,
    read_vocabulary,
    to_frame,
    tokenize,
)
from driftbook.errors import DriftbookError

SENTENCE = """
the plan is to go early and bring water since the path gets steep near the old bridge while many like to rest there
before they walk back home along the river with friends and talk about food music work travel books weather gardens dogs
"""
FILLER = SENTENCE.split()
HEDGES = ["might", "perhaps", "possibly", "maybe"]


def planted(prompts=40, samples=3, hedge=0.6, seed=0):
    """Texts of both sides from one bag of words; the intervention side hedges in a share of them, one to three
    words."""
    rng = np.random.default_rng(seed)
    rows = []
    for p in range(prompts):
        for side in ("base", "intervention"):
            for s in range(samples):
                words = [*rng.choice(FILLER, size=20), f"topic{chr(97 + p % 26)}"]
                if rng.random() < (hedge if side == "intervention" else 0.05):
                    words[5 : 5 + rng.integers(1, 4)] = rng.permutation(HEDGES)[: rng.integers(2, 4)]
                rows.append((f"{p:03d}{side[0]}{s}", side, f"p{p}", " ".join(words), "discover"))
    return pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text", "split"])


def prompts_of(texts):
    return {p: f"What about number {p}?" for p in texts["prompt_id"].unique()}


def test_planted_words_come_first_with_direction_and_evidence():
    texts = planted()
    first = propose(texts, prompts_of(texts))[0]
    assert first.direction == "intervention" and first.cluster == -1
    assert len(set(first.words) & set(HEDGES)) >= 3
    assert first.text.startswith('says "')
    evidence = texts.set_index("text_id").loc[list(first.evidence)]
    assert (evidence["side"] == "intervention").all() and evidence["prompt_id"].nunique() == 10
    assert all(set(tokenize(t)) & set(first.words) for t in evidence["text"])


def test_swapping_the_sides_swaps_the_direction():
    texts = planted()
    swapped = texts.assign(side=texts["side"].map({"base": "intervention", "intervention": "base"}))
    one, two = propose(texts, prompts_of(texts))[0], propose(swapped, prompts_of(texts))[0]
    assert one.words == two.words and {one.direction, two.direction} == {"base", "intervention"}


def test_order_of_rows_does_not_matter():
    texts = planted()
    shuffled = texts.sample(frac=1, random_state=1)
    assert propose(texts, prompts_of(texts)) == propose(shuffled, prompts_of(texts))


def test_one_prompt_that_repeats_a_word_a_hundred_times_is_one_observation():
    texts = planted(hedge=0.05)
    spam = pd.DataFrame(
        [
            (f"spam{i}", "intervention", "p0", "zebra zebra zebra " + " ".join(FILLER[:10]), "discover")
            for i in range(100)
        ],
        columns=texts.columns,
    )
    found = propose(pd.concat([texts, spam]), prompts_of(texts))
    assert not any("zebra" in h.words for h in found)


def test_words_of_the_prompt_are_not_counted():
    assert features("Paris is lovely", "Tell me about Paris") == {"is", "lovely", "paris is", "is lovely"}
    texts = planted()
    asked = {p: "Say might perhaps possibly maybe" for p in texts["prompt_id"].unique()}
    assert not any(set(h.words) & set(HEDGES) for h in propose(texts, asked))


def test_held_out_texts_are_refused():
    texts = planted()
    texts.loc[0, "split"] = "validate"
    with pytest.raises(DriftbookError, match="unseen"):
        propose(texts, {})


def test_unstable_clusters_propose_nothing_and_stable_ones_do():
    texts = planted(hedge=0.05)
    local = texts["prompt_id"].isin([f"p{i}" for i in range(20)]) & (texts["side"] == "intervention")
    texts.loc[local, "text"] += " sadly alas"
    clusters = pd.DataFrame({"text_id": texts["text_id"], "cluster": texts["prompt_id"].str[1:].astype(int) // 20})
    composition = pd.DataFrame({"cluster": [0, 1, -1], "stability": [0.9, 0.3, 1.0]})

    def scopes(table):
        return {h.cluster for h in propose(texts, prompts_of(texts), clusters, table)}

    assert 0 in scopes(composition) | {0} and 1 not in scopes(composition)
    inside = propose(texts[texts["prompt_id"].str[1:].astype(int) < 20], prompts_of(texts), clusters, composition)
    assert {"sadly", "alas"} & set(inside[0].words)


def test_a_cluster_whose_share_moved_becomes_a_theme_though_no_single_word_moved_much():
    rng = np.random.default_rng(2)
    excuses = [f"sorry{chr(97 + i)}" for i in range(20)]
    rows = []
    for p in range(40):
        for side, chance in (("base", 0.2), ("intervention", 0.5)):
            for s in range(3):
                refuse = rng.random() < chance
                words = list(rng.choice(FILLER, size=12)) + list(rng.choice(excuses, size=2)) * refuse
                rows.append((f"{p:03d}{side[0]}{s}", side, f"p{p}", " ".join(words), int(refuse)))
    texts = pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text", "cluster"])
    composition = pd.DataFrame(
        {"cluster": [0, 1], "stability": 0.9, "difference": [-0.3, 0.3], "low": [-0.4, 0.2], "high": [-0.2, 0.4]}
    )
    tables = texts[texts.columns[:4]], {}, texts[["text_id", "cluster"]]
    themes = [h for h in propose(*tables, composition) if h.text.startswith("gives answers of the kind of cluster")]
    assert any(h.cluster == 1 and h.direction == "intervention" and set(h.words) <= set(excuses) for h in themes)
    still = composition.assign(low=-0.4, high=0.4)
    assert not [h for h in propose(*tables, still) if h.text.startswith("gives answers of the kind of cluster")]


def test_at_most_the_limit_and_no_near_duplicates():
    texts = planted()
    found = propose(texts, prompts_of(texts), limit=3)
    assert len(found) <= 3
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            shared = len(set(a.words) & set(b.words)) / len(set(a.words) | set(b.words))
            assert a.direction != b.direction or shared < 0.5


def test_no_texts_no_words_no_hypotheses():
    empty = planted().iloc[:0]
    assert propose(empty, {}) == []
    one = pd.DataFrame({"text_id": ["a"], "side": ["base"], "prompt_id": ["p"], "text": ["…"]})
    assert propose(one, {}) == []


def test_log_odds_agree_with_the_formula_of_the_paper():
    up, down, background = np.array([30.0, 5.0, 65.0]), np.array([10.0, 6.0, 84.0]), np.array([40.0, 11.0, 149.0])
    prior = 0.1 * 200 * background / 200
    delta = [
        np.log((up[i] + prior[i]) / (100 + 20 - up[i] - prior[i]))
        - np.log((down[i] + prior[i]) / (100 + 20 - down[i] - prior[i]))
        for i in range(3)
    ]
    expected = delta / np.sqrt(1 / (up + prior) + 1 / (down + prior))
    assert log_odds(up, down, background) == pytest.approx(expected)
    assert log_odds(up, down, background) == pytest.approx(-log_odds(down, up, background))


def test_a_word_in_few_texts_is_left_out_and_phrases_stay_within_a_clause():
    assert "yes no" not in features("Yes. No")
    assert read_vocabulary(["alpha beta", "alpha", "alpha"], ["", "", ""]).terms == ["alpha"]


def test_merge_keeps_the_first_and_all_evidence_and_never_drops_a_persons_hypothesis():
    a = Hypothesis("uses a", "intervention", evidence=("1",), words=("might", "may"))
    b = Hypothesis("uses b", "intervention", evidence=("2",), words=("might", "may", "could"))
    person = Hypothesis("hedges", "intervention", proposer="person", words=("might", "may"))
    other = Hypothesis("uses a", "base", words=("might", "may"))
    merged = merge([a, b, person, other])
    assert [h.text for h in merged] == ["uses a", "hedges", "uses a"]
    assert merged[0].evidence == ("1", "2")


def test_merge_takes_two_lexicons_for_one_claim_when_they_hold_of_the_same_texts():
    here = np.arange(100) < 30
    nearly = here.copy()
    nearly[[0, 1, 60]] ^= True
    a = Hypothesis("uses a", "intervention", evidence=("1",), words=("might", "may"))
    b = Hypothesis("uses b", "intervention", evidence=("2",), words=("there's", "a more"))
    c = Hypothesis("uses c", "intervention", words=("zebra",))
    opposite = Hypothesis("uses d", "base", words=("plainly",))
    held = [here, nearly, np.roll(here, 20), here]
    assert [h.text for h in merge([a, b, c, opposite], held=held)] == ["uses a", "uses c", "uses d"]
    assert merge([a, b], held=held[:2])[0].evidence == ("1", "2")
    assert len(merge([a, b], held=[np.ones(100, bool)] * 2)) == 2, "what holds of every text tells nothing"


def test_a_table_gives_the_same_hypotheses_back(tmp_path):
    texts = planted()
    found = [*propose(texts, prompts_of(texts)), Hypothesis("is kind", "base", proposer="person", prompt="asked")]
    to_frame(found).to_parquet(tmp_path / "h.parquet")
    assert from_frame(pd.read_parquet(tmp_path / "h.parquet")) == found
    with pytest.raises(DriftbookError, match="columns"):
        from_frame(to_frame(found).drop(columns="words"))
    with pytest.raises(DriftbookError, match="direction"):
        from_frame(to_frame(found).assign(direction="left"))


def test_a_measure_is_saved_and_is_part_of_what_is_claimed(tmp_path):
    opens = {"kind": "words", "words": ["what a"], "place": "start", "unit": "share"}
    said = [
        Hypothesis('opens with "what a"', "base", words=("what a",), measure=opens),
        Hypothesis("ends with a question", "base", measure={"kind": "panel", "name": "ends_with_question"}),
        Hypothesis("is kind", "base"),
        Hypothesis('says "may"', "base", words=("may",)),
    ]
    to_frame(said).to_parquet(tmp_path / "h.parquet")
    table = pd.read_parquet(tmp_path / "h.parquet")
    assert from_frame(table) == said and [h.measure for h in from_frame(table)] == [h.measure for h in said]
    assert [h.measure["kind"] for h in said] == ["words", "panel", "judge", "words"]
    assert said[3].measure == {"kind": "words", "words": ["may"], "place": "anywhere", "unit": "share"}
    elsewhere = Hypothesis(said[0].text, "base", words=("what a",), measure=opens | {"place": "closing"})
    assert elsewhere.hypothesis_id != said[0].hypothesis_id
    assert list(table["hypothesis_id"]) == [h.hypothesis_id for h in from_frame(table)]


def test_an_old_table_without_measures_counts_its_words():
    old = to_frame([Hypothesis('says "may"', "base", words=("may",)), Hypothesis("is kind", "base")])
    words, judged = from_frame(old.drop(columns="measure"))
    assert words.measure["words"] == ["may"] and words.measure["place"] == "anywhere"
    assert judged.measure == {"kind": "judge"}


def test_words_that_come_with_a_move_between_clusters_are_found_there():
    """On twelve prompts answers moved from cluster 0 to 1 and began to speak of zebras, as both sides do elsewhere."""
    rows = []
    for p in range(48):
        for side in ("base", "intervention"):
            moved = p < 12 and side == "intervention"
            zebra = moved or p >= 12
            text = f"it is so {'zebra' if zebra else 'horse'} {'far' if p % 2 else 'near'}"
            rows.append((f"{p:02d}{side[0]}", side, f"p{p}", text, 1 if moved else 0))
    texts = pd.DataFrame(rows, columns=["text_id", "side", "prompt_id", "text", "cluster"])
    composition = pd.DataFrame({"cluster": [0, 1], "stability": [0.9, 0.9]})
    asked = {p: "" for p in texts["prompt_id"]}
    found = propose(texts.drop(columns="cluster"), asked, texts[["text_id", "cluster"]], composition)

    def zebras(some):
        return {(h.direction, h.cluster) for h in some if any("zebra" in w for w in h.words)}

    assert zebras(found) == {("intervention", 1)}
    still = propose(texts.drop(columns="cluster"), asked, texts[["text_id", "cluster"]].assign(cluster=0), composition)
    assert zebras(still) == set()
