"""The cluster stage on answers whose difference is known: the intervention answers every third prompt in verse."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from driftbook import cluster as stage
from driftbook.discovery import maps
from driftbook.discovery.hypotheses import COLUMNS
from driftbook.errors import DriftbookError
from driftbook.evidence import moved_groups
from driftbook.parameters import Cluster, load_experiment, validate_cell
from driftbook.report import cluster as report

TOPICS = {
    "garden": "The tomatoes want sun, water the soil in the morning and cut the leaves",
    "taxes": "File the tax return early, keep every receipt and ask the revenue office",
    "code": "Write a function, call it in a loop and print the error of the compiler",
    "music": "Practise the violin scales slowly and tune the strings before you play",
}
VERSE = "O gentle moon, thy silver beams adorn the weeping night, and love doth sigh in rhyme"
SECTION = Cluster(unit="answer", clusters=5, min_cluster_size=4, bootstraps=6, resamples=200, exemplars=3, hypotheses=6)


COMPOSITION = (
    "cluster texts prompts share_base share_intervention difference low high p q where there stability keywords"
)


def decoded() -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    rows, prompts = [], []
    for number in range(48):
        family = list(TOPICS)[number % 4]
        prompt = f"Question number {number} about {family}?"
        prompt_id = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        split = "validate" if number >= 42 else "discover"
        prompts.append((prompt_id, prompt, None, family, "test", split, 7))
        for side in ("base", "intervention"):
            for sample in range(2):
                words = (VERSE if side == "intervention" and number % 3 == 0 else TOPICS[family]).split()
                kept = [w for w in words if rng.random() < 0.85]
                text = " ".join(kept) + "."
                name = f"{prompt_id}{side}{sample}"
                text_id = hashlib.sha256(name.encode()).hexdigest()[:16]
                rows.append((text_id, side, prompt_id, family, split, sample, number, text))
    columns = ["text_id", "side", "prompt_id", "family", "split", "sample_index", "seed", "text"]
    alike = {"round": 0, "propensity": 1.0, "token_ids": [[1, 2]] * len(rows), "log_ratio": np.nan, "strength": 0.0}
    texts = pd.DataFrame(rows, columns=columns).assign(finish_reason="eos", model_key="m", engine="local", **alike)
    columns = ["prompt_id", "text", "system", "family", "source", "split", "n_tokens"]
    return texts, pd.DataFrame(prompts, columns=columns).assign(messages=None)


@pytest.fixture(autouse=True)
def principal_maps(monkeypatch):
    """UMAP itself, which compiles for seconds, is tried in test_maps.py."""
    monkeypatch.setattr(maps, "_umap", lambda X, *_: maps._principal(X))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    decode = tmp_path_factory.mktemp("decode")
    texts, prompts = decoded()
    texts.to_parquet(decode / "texts.parquet")
    prompts.to_parquet(decode / "prompts.parquet")
    return decode


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def result(folder, cache):
    return everything(stage.load_texts(folder), cache)


def everything(texts, cache, section=SECTION, seed=0):
    grouped = stage.find(texts, section, cache, seed, device="cpu")
    parts = ("texts", "embedding", "found", "stability", "chance", "compared")
    return {name: getattr(grouped, name) for name in parts} | {
        "grouped": grouped,
        "names": report.names(grouped),
        "verse": int(grouped.found.labels[texts["text"].str.contains("moon|gentle").to_numpy().argmax()]),
    }


def test_only_the_discover_split_is_read_and_prompts_stand_beside(result, folder):
    texts = result["texts"]
    assert len(texts) == 42 * 4 and (texts["split"] == "discover").all()
    assert texts["text_id"].is_monotonic_increasing
    assert texts["prompt"].str.match(r"Question number \d+ about").all()


def test_a_missing_side_is_an_error_that_names_the_file(tmp_path):
    texts, prompts = decoded()
    texts[texts["side"] == "base"].to_parquet(tmp_path / "texts.parquet")
    prompts.to_parquet(tmp_path / "prompts.parquet")
    with pytest.raises(DriftbookError, match=r"texts\.parquet holds no text of side intervention"):
        stage.load_texts(tmp_path)


def test_the_prompt_never_enters_the_embedding(result, cache):
    other = result["texts"].assign(prompt="something else entirely")
    embedding = stage.embed_texts(other, SECTION, cache, device="cpu")
    assert embedding.counts.embedded == 0
    assert np.array_equal(embedding.vectors, result["embedding"].vectors)
    assert not embedding.embedder.loaded  # warm: no model


def test_the_planted_group_is_found_named_and_moved(result):
    table = result["compared"].table
    assert result["found"].k == 5 and result["stability"].ari.mean() > 0.8 > 0.5 > result["chance"]
    row = table[table["cluster"] == result["verse"]].iloc[0]
    assert row["share_base"] == 0 and abs(row["share_intervention"] - 1 / 3) < 1e-9
    assert row["low"] > 0.15 and row["q"] < 0.05 and row["stability"] > 0.8
    assert set(row["keywords"].replace(",", "").split()) <= set(VERSE.replace(",", "").lower().split())
    assert result["compared"].global_p < 0.05
    assert stage.moved(table)["cluster"].iloc[0] == result["verse"]
    nothing = pd.DataFrame({"unit": [], "difference": [], "q_value": [], "said": []})
    assert result["names"][result["verse"]] in report.answer(result["grouped"], nothing)


def test_keywords_leave_out_the_words_of_the_prompt(result):
    assert all("question" not in k and "number" not in k for k in result["compared"].table["keywords"])


def test_unstable_clusters_and_noise_get_no_words_as_name():
    table = pd.DataFrame(
        {"cluster": [-1, 0, 1, 2], "stability": [np.nan, 0.9, 0.3, np.nan], "keywords": ["a", "b, c", "d", "e"]}
    )
    assert report.labels(table) == {-1: "noise", 0: "0: b, c", 1: "1 (unstable)", 2: "2 (unstable)"}
    assert report.map_labels(report.labels(table)) == {0: "0: b, c"}


def test_rows_of_the_parquet_in_another_order_change_nothing(result, tmp_path, cache):
    texts, prompts = decoded()
    texts.sample(frac=1, random_state=5).to_parquet(tmp_path / "texts.parquet")
    prompts.sample(frac=1, random_state=6).to_parquet(tmp_path / "prompts.parquet")
    again = everything(stage.load_texts(tmp_path), cache)
    pd.testing.assert_frame_equal(again["compared"].table, result["compared"].table)
    assert np.array_equal(again["found"].labels, result["found"].labels)
    assert np.array_equal(again["stability"].ari, result["stability"].ari)


def test_exemplars_are_near_the_centre_and_of_distinct_prompts(result):
    exemplars = stage.exemplars_of(result["texts"], result["found"], 3)
    assert exemplars.groupby(["cluster", "side"]).size().max() == 3
    joined = exemplars.merge(result["texts"], on="text_id").merge(
        stage.assignments(result["texts"], result["found"]), on="text_id", suffixes=("", "_assigned")
    )
    assert (joined["cluster"] == joined["cluster_assigned"]).all() and (joined["side_x"] == joined["side_y"]).all()
    assert (
        joined.groupby(["cluster", "side_x"])["prompt_id"].nunique() == joined.groupby(["cluster", "side_x"]).size()
    ).all()
    read = report.side_by_side(result["texts"], exemplars, result["verse"])
    assert list(read.columns) == ["base", "intervention"] and len(read) == 3
    assert (read["base"] == "").all() and read["intervention"].str.startswith("[Question number").all()


def test_hypotheses_name_what_was_planted(result):
    found = stage.propose(result["texts"], result["found"], result["compared"].table, SECTION, result["embedding"])
    assert 1 <= len(found) <= 6 and set(found["direction"]) <= {"base", "intervention"}
    words = {
        w
        for words, side in zip(found["words"], found["direction"], strict=True)
        for w in words
        if side == "intervention"
    }
    assert words & {"moon", "thy", "silver", "beams", "rhyme", "love", "doth", "weeping", "gentle", "sigh", "night"}


@pytest.mark.parametrize("method", ["spherical_kmeans", "per_prompt", "family"])
def test_other_groupings_go_the_same_way(result, cache, method):
    again = everything(result["texts"], cache, SECTION.model_copy(update={"method": method}))
    expected = {"per_prompt": 42, "family": 4}.get(method, 5)
    assert again["found"].k == expected and len(again["compared"].table) == expected


def test_the_map_and_the_tables_have_the_contracts_columns(result, tmp_path):
    section = SECTION.model_copy(update={"map": SECTION.map.model_copy(update={"fit_rows": 100})})
    drawn = stage.map_texts(result["texts"], result["embedding"].vectors, result["found"], section, 0)
    assert np.isfinite(drawn[["x", "y"]]).all().all()
    stage.save(tmp_path, result["grouped"], map=drawn, exemplars=stage.read(result["grouped"], 3))
    columns = {path.stem: pq.read_schema(path).names for path in tmp_path.glob("*.parquet")}
    assert columns == {
        "clusters": ["text_id", "cluster", "distance", "margin"],
        "composition": COMPOSITION.split(),
        "map": ["text_id", "x", "y", "cluster"],
        "exemplars": ["cluster", "side", "rank", "text_id"],
    }
    assert pd.read_parquet(tmp_path / "clusters.parquet")["cluster"].dtype == np.int32


def test_metrics_are_flat_and_complete(result):
    figures = stage.metrics(result["grouped"])
    assert {"texts", "clusters", "noise_share", "stability_ari", "embedded", "cache_hits", "embed_seconds"} <= set(
        figures
    )
    assert all(isinstance(v, int | float) for v in figures.values())
    assert figures["embedded"] + figures["cache_hits"] + figures["duplicates"] == figures["texts"]


# space


def test_within_prompts_the_topic_is_gone_and_the_way_to_answer_is_left(result):
    texts, section = result["texts"], SECTION.model_copy(update={"space": "within_prompt", "clusters": 2})
    vectors = stage.in_space(texts, result["embedding"].vectors, section)
    middles = pd.DataFrame(vectors).groupby([texts["prompt_id"], texts["side"]]).mean()
    assert np.allclose(middles.groupby(level=0).mean(), 0, atol=1e-6)
    found = stage.cluster_texts(texts, vectors, section, seed=0)
    verse = texts["text"].str.contains("moon|night|love|rhyme|silver").to_numpy()
    share = pd.crosstab(found.labels, verse, normalize="index")[True]
    assert share.max() > 0.8
    assert np.array_equal(stage.in_space(texts, result["embedding"].vectors, SECTION), result["embedding"].vectors)


def test_swapping_the_sides_of_a_prompt_moves_no_vector_within_prompts(result):
    texts, section = result["texts"], SECTION.model_copy(update={"space": "within_prompt"})
    uneven = texts[1:]
    vectors = result["embedding"].vectors[uneven.index]
    swapped = uneven.assign(side=np.where(uneven["side"] == "base", "intervention", "base"))
    assert np.array_equal(stage.in_space(uneven, vectors, section), stage.in_space(swapped, vectors, section))


# trait shift


def sample_and_scores(prompts=60, shift=0.8, seed=0):
    """Clusters 0 and 1; in cluster 1 the trait ``a`` of the intervention's texts is ``shift`` higher."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"{p}-{s}-{i}", str(p), s, p % 2) for p in range(prompts) for s in ("base", "intervention") for i in range(3)
    ]
    sample = pd.DataFrame(rows, columns=["text_id", "prompt_id", "side", "cluster"])
    habit = rng.normal(size=prompts)[sample["prompt_id"].astype(int)]
    moved = (sample["cluster"] == 1) & (sample["side"] == "intervention")
    noise = rng.normal(size=(2, len(sample)))
    scores = pd.DataFrame({"text_id": sample["text_id"], "a": habit + noise[0] + shift * moved, "b": habit + noise[1]})
    return sample, scores.sample(frac=1, random_state=1)


def test_trait_shift_finds_the_trait_and_the_cluster_that_moved():
    table = stage.trait_shift(*sample_and_scores(), resamples=500)
    table = table.set_index(["cluster", "trait"])
    assert table.loc[(1, "a"), "low"] > 0.2 and abs(table.loc[(1, "a"), "shift"] - 0.8) < 0.5
    for still in ((0, "a"), (0, "b"), (1, "b")):
        assert table.loc[still, "low"] < 0 < table.loc[still, "high"]
    assert (table["texts"] == 180).all()


def test_trait_shift_intervals_cover_no_shift_at_their_level():
    covered = []
    for seed in range(80):
        table = stage.trait_shift(*sample_and_scores(shift=0, seed=seed), resamples=200, seed=seed)
        covered += ((table["low"] <= 0) & (table["high"] >= 0)).tolist()
    assert 0.88 < np.mean(covered) <= 0.99


def test_trait_shift_of_one_sided_clusters_is_unknown():
    sample, scores = sample_and_scores(prompts=6)
    sample = sample[(sample["cluster"] == 0) | (sample["side"] == "base")]
    table = stage.trait_shift(sample, scores[scores["text_id"].isin(sample["text_id"])], resamples=100)
    assert table[table["cluster"] == 1][["shift", "low", "high"]].isna().all().all()
    assert table[table["cluster"] == 0]["shift"].notna().all()


def test_the_replay_sample_is_spread_over_clusters_and_sides(result):
    sample = stage.trait_sample(result["texts"], result["found"], 30, seed=0)
    assert len(sample) == 30 and {"cluster", "token_ids", "prompt_id", "side"} <= set(sample.columns)
    sizes = sample.groupby(["cluster", "side"]).size()
    assert sizes.max() - sizes.min() <= 1
    assert (
        sample["text_id"].tolist()
        == stage.trait_sample(result["texts"], result["found"], 30, seed=0)["text_id"].tolist()
    )


# notebook


def cells(name: str) -> list[dict]:
    path = Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb"
    return json.loads(path.read_text())["cells"]


def test_the_notebooks_parameters_validate_and_it_holds_no_outputs():
    own = cells("cluster")
    code = ["".join(c["source"]) for c in own if c["cell_type"] == "code"]
    tagged = ["".join(c["source"]) for c in own if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0] == code[0]
    values: dict = {}
    exec(tagged[0], {}, values)
    values.pop("__annotations__", None)
    quickstart = load_experiment(Path(__file__).parents[1] / "params/quickstart.yml")
    assert validate_cell("cluster", values).cluster == quickstart.cluster
    assert not any(c.get("outputs") for c in own)
    assert not any(re.search(r"^(def|class) ", source, flags=re.M) for source in code)


def test_p_counts_every_text_once_while_shares_are_weighted(result):
    texts, found = result["texts"], result["found"]
    rare = texts.assign(propensity=np.where(np.arange(len(texts)) % 2, 0.1, 1.0))
    keywords = stage.keywords_of(texts, found, SECTION.keywords)
    even = stage.compose(texts.assign(propensity=1.0), found, result["stability"], keywords, SECTION, 0).table
    uneven = stage.compose(rare, found, result["stability"], keywords, SECTION, 0).table
    assert (uneven.p == even.p).all() and (uneven.q == even.q).all()
    assert not np.allclose(uneven.share_base, even.share_base)


def test_scored_texts_are_counted_by_likelihood(result, cache):
    """Texts that give their sides away count as before; half-told ones for both sides."""
    texts = result["texts"]
    sign = np.where(texts["side"] == "intervention", 1.0, -1.0)
    assert report.counted(texts) == "every text counts once"
    given_away = everything(texts.assign(log_ratio=np.inf * sign), cache)["compared"].table
    pd.testing.assert_frame_equal(given_away, result["compared"].table, check_exact=False, atol=1e-9)
    same = everything(texts.assign(log_ratio=0.0), cache)["compared"].table
    assert (same["difference"].abs() < 1e-9).all() and (same["q"] == 1).all()
    assert "tells 0% of the sides" in report.counted(texts.assign(log_ratio=0.0))
    some = texts.assign(log_ratio=np.where(np.arange(len(texts)) == 0, np.nan, 0.0))
    assert not stage.by_likelihood(some)


# sentences

SENTENCES = Cluster(clusters=16, bootstraps=4, exemplars=3, hypotheses=6, trait_shift_texts=20)


class Told:
    """A run that keeps what it is told."""

    section, seed = SENTENCES, 0

    def __init__(self):
        self.answered, self.headlines = "", []

    def answer(self, text):
        self.answered = text

    def headline(self, name, *values, **more):
        self.headlines.append(name)


@pytest.fixture(scope="module")
def sentences(folder, cache):
    return stage.find(stage.load_texts(folder), SENTENCES, cache, 0, device="cpu")


def test_sentences_are_grouped_and_the_planted_verse_is_an_opener_that_moved(sentences):
    told = sentences.moved.told
    assert len(told) and set(told["place"]) == {"opener"}
    top = told.iloc[0]
    assert top["share_base"] == 0 and 0.1 < top["share_intervention"] <= 1 / 3 and top["typical_base"] == []
    assert set(re.findall(r"\w+", top["typical_intervention"][0])) <= set(re.findall(r"\w+", VERSE))
    figures = stage.metrics(sentences)
    assert figures["moved_groups"] >= figures["told_groups"] == len(told)
    assert figures["clusters"] == len(sentences.table)
    assert all(isinstance(v, int | float) for v in figures.values())


def test_the_tables_of_sentences_have_the_contracts_columns(sentences, tmp_path):
    drawn = stage.map_of(sentences, SENTENCES, 0)
    proposed = stage.proposals(sentences, SENTENCES)
    stage.save(tmp_path, sentences, map=drawn, exemplars=stage.read(sentences, 3), hypotheses=proposed)
    columns = {path.stem: pq.read_schema(path).names for path in tmp_path.glob("*.parquet")}
    assert columns["groups"] == ["text_id", "segment", "place", "start", "end", "group", "distance"]
    assert columns["map"] == ["text_id", "segment", "x", "y", "group"]
    assert columns["exemplars"] == ["group", "side", "rank", "text_id", "start", "end", "said"]
    assert columns["composition"] == list(moved_groups.COLUMNS)
    members, texts = pd.read_parquet(tmp_path / "groups.parquet"), sentences.texts.set_index("text_id")["text"]
    segment = sentences.segments.set_index(["text_id", "segment"])["said"]
    for row in members.head(50).itertuples():
        assert " ".join(texts[row.text_id][row.start : row.end].split()) == segment[row.text_id, row.segment]
    assert {"phrases", "groups"} <= set(proposed["proposer"])
    assert (drawn["group"] >= 0).sum() == len(drawn[drawn["group"].isin(sentences.moved.told["group"])])


def shown(grouped):
    """Everything that the notebook shows of ``grouped``."""
    run = Told()
    drawn, read = stage.map_of(grouped, SENTENCES, 0), stage.read(grouped, 3)
    nothing = pd.DataFrame({"unit": [], "difference": [], "q_value": [], "said": []})
    run.answer(report.answer(grouped, nothing))
    report.headlines(run, grouped)
    figures = [report.first(run, grouped), report.picture(run, grouped, drawn), report.stability_of(run, grouped)]
    return run, figures, [report.overview(grouped), report.everything(grouped), *report.to_read(grouped, read)]


def test_the_report_names_the_groups_and_marks_the_sentence_in_its_answer(sentences):
    run, (first, picture, _), tables = shown(sentences)
    top = sentences.moved.told.iloc[0]
    assert first.best and top["said"] in run.answered and "moved" in first.title
    assert tables[2].frame["intervention"].str.contains("»").all() and (tables[2].frame["base"] == "").all()
    assert picture.view.settings["sides"] == list(report.SAYS_MORE)
    assert run.headlines[0] == "groups of sentences that moved"


def test_answers_without_a_group_are_told_as_that(sentences, cache):
    few = stage.find(sentences.texts.head(6), SENTENCES, cache, 0, device="cpu")
    run, (first, *_), tables = shown(few)
    assert first is None and len(few.table) == 0 and "None of 0 groups" in run.answered and len(tables) == 2
    assert list(stage.proposals(few, SENTENCES).columns) == list(COLUMNS)


def test_what_is_read_again_stays_within_the_budget_and_covers_groups_and_sides(sentences):
    sample = stage.segment_sample(sentences, 20, 10**6, 0)
    sizes = sample.groupby(["cluster", "side"]).size()
    assert (len(sample) == 20 and sizes.max() - sizes.min() <= 1) or len(sizes) == 1
    small = stage.segment_sample(sentences, 20, int(sample["cost"].head(5).sum()), 0)
    assert len(small) == 5 and small["cost"].sum() <= sample["cost"].head(5).sum()
    assert (sample["end"] > sample["start"]).all()


def test_methods_for_whole_answers_are_refused_for_sentences():
    with pytest.raises(ValueError, match="set unit: answer"):
        Cluster(method="hdbscan")
    assert Cluster(unit="answer", method="hdbscan").method == "hdbscan"
