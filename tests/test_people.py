"""Judges beside people: agreement as sklearn has it, corrected effects that cover the truth, tables as people bring
them, and the page on which they label."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from driftbench import coverage
from driftbook import validate as stage
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError, ParameterError
from driftbook.evidence import people
from driftbook.evidence.judges import Judges
from driftbook.evidence.labels import held_against, read_labels, readings
from driftbook.evidence.outcomes import verdicts
from driftbook.evidence.people import Labelled, agreement, corrected, draw
from driftbook.ledger import Ledger
from driftbook.parameters import load_experiment
from driftbook.workbook import cli
from driftbook.workbook import people as pages
from planted import HEDGES, SPLITS, run_of, texts_of
from test_validate import stages

ROOT = Path(__file__).parents[1]

# ------------------------------------------------------------------------------------------------------------ agreement


def test_accuracy_and_kappa_are_those_of_sklearn_weighted_or_not():
    rng = np.random.default_rng(0)
    person = rng.random(120) < 0.3
    judge = np.where(rng.random(120) < 0.85, person, ~person)
    prompts, weights = np.repeat(np.arange(60), 2), rng.integers(1, 6, 120).astype(float)
    for w in (None, weights):
        found = agreement(judge, person, prompts, w)
        assert found.kappa.estimate == pytest.approx(cohen_kappa_score(judge, person, sample_weight=w))
        assert found.accuracy.estimate == pytest.approx(np.average(judge == person, weights=w))
        assert found.accuracy.low < found.accuracy.estimate < found.accuracy.high
        assert found.kappa.low < found.kappa.estimate < found.kappa.high
    assert found.counts.tolist() == confusion_matrix(judge, person, labels=[True, False]).tolist()


def test_a_judge_that_never_errs_has_an_interval_all_the_same_and_one_word_has_no_kappa():
    same = np.arange(40) % 2 == 0
    found = agreement(same, same, np.arange(40))
    assert found.kappa.estimate == found.accuracy.estimate == 1 and 0.9 < found.accuracy.low < 0.95
    assert np.isnan(agreement(np.ones(9), np.ones(9), np.arange(9)).kappa.estimate)
    none = agreement(np.ones(0), np.ones(0), np.ones(0))
    assert np.isnan([none.kappa.estimate, none.accuracy.estimate]).all() and not none.counts.any()


def test_answers_to_one_prompt_count_as_one():
    judge, person = np.tile([True, False, True], 20), np.tile([True, False, False], 20)
    alone, together = agreement(judge, person, np.arange(60)), agreement(judge, person, np.repeat(np.arange(6), 10))
    assert together.accuracy.high - together.accuracy.low > 2 * (alone.accuracy.high - alone.accuracy.low)


# ------------------------------------------------------------------------------------------------------------ corrected


def pair(rng, prompts=300, labels=100, base=0.2, changed=0.4, hit=0.9, false=(0.05, 0.2)):
    """(judge's scores of both sides, labels of whole prompts) where the judge sees more than there is in one side."""
    shows = rng.random((2, prompts)) < [[base], [changed]]
    judge = np.where(shows, rng.random(shows.shape) < hit, rng.random(shows.shape) < np.array(false)[:, None]) * 1.0
    rows = rng.choice(prompts, labels // 2, replace=False)
    mine = np.concatenate([rows, rows])
    side = np.repeat([False, True], len(rows))
    told = Labelled(mine, side, judge[side * 1, mine], shows[side * 1, mine] * 1.0, np.ones(len(mine)))
    return judge, told


def by_hand(judge, told):
    """PPI++ on paired differences, labelled prompts among the others, from its formula."""
    half = len(told.prompt) // 2
    y = told.people[half:] - told.people[:half]
    f, every = told.judge[half:] - told.judge[:half], judge[1] - judge[0]
    n, size = len(y), len(every)
    mine, rest = told.prompt[:half], np.setdiff1d(np.arange(size), told.prompt)

    def effect(use):
        return use * every.mean() + (y - use * f).mean()

    def variance(use):
        own = use * (every[mine] - every.mean()) / size + (y - use * f - (y - use * f).mean()) / n
        return (own**2).sum() + ((use * (every[rest] - every.mean()) / size) ** 2).sum()

    grid = np.linspace(0, 1, 100_001)
    best = grid[np.argmin([variance(u) for u in grid[::100]]) * 100]
    return effect, variance, best


def test_the_effect_is_the_prediction_powered_one_over_prompts(monkeypatch):
    monkeypatch.setattr(people, "UNSEEN", 0.0)
    judge, told = pair(np.random.default_rng(1))
    found = corrected(np.arange(300), judge[0], judge[1], told)
    effect, variance, best = by_hand(judge, told)
    assert found.use == pytest.approx(best, abs=0.001)  # of the grid
    assert found.effect.estimate == pytest.approx(effect(found.use))
    assert found.effect.high - found.effect.low == pytest.approx(2 * 1.984 * variance(found.use) ** 0.5, rel=1e-3)
    assert found.alone.estimate == pytest.approx(effect(0)) and found.use > 0.3
    assert found.effect.high - found.effect.low < found.alone.high - found.alone.low


def test_the_effect_is_that_of_ppi_python(monkeypatch):
    """Figures of ``ppi_mean_ci`` (ppi-python 0.2.3) on the same paired differences, at the same use of the judge."""
    monkeypatch.setattr(people, "UNSEEN", 0.0)
    rng, n = np.random.default_rng(0), 120
    shows = (rng.random((2, n + 900)) < [[0.2], [0.45]]).astype(float)
    judge = np.where(shows > 0, rng.random(shows.shape) < 0.85, rng.random(shows.shape) < 0.15).astype(float)
    prompt, side = np.arange(n + 900), np.repeat([False, True], n)
    mine = np.tile(prompt[:n], 2)
    told = Labelled(mine, side, judge[side * 1, mine], shows[side * 1, mine], np.ones(2 * n))
    found = corrected(prompt[n:], judge[0, n:], judge[1, n:], told)
    assert found.use == pytest.approx(0.48686364853952464)
    assert found.effect.estimate == pytest.approx(0.23561303, abs=1e-8)
    normal, student = 1.959964, 1.969982  # quantiles; ours has 238 degrees of freedom
    half = (found.effect.high - found.effect.low) / 2 * normal / student
    assert half == pytest.approx((0.32509137 - 0.14613469) / 2, rel=1e-4)


def test_what_a_judge_sees_too_much_of_is_taken_back():
    judge, told = pair(np.random.default_rng(2), prompts=2000, labels=400)
    moved = judge[1] - judge[0]
    raw = moved.mean(), 1.96 * moved.std() / 2000**0.5
    found = corrected(np.arange(2000), judge[0], judge[1], told)
    assert raw[0] - raw[1] > 0.22  # the truth is 0.2
    assert found.effect.low < 0.2 < found.effect.high and found.effect.low > 0


def test_a_blind_judge_is_not_used_and_a_perfect_one_wholly():
    rng = np.random.default_rng(3)
    judge, told = pair(rng, hit=0.5, false=(0.5, 0.5))
    assert corrected(np.arange(300), *judge, told).use < 0.15
    judge, told = pair(rng, hit=1.0, false=(0.0, 0.0))
    found = corrected(np.arange(300), *judge, told)
    assert found.use > 0.9
    assert found.effect.high - found.effect.low < 0.75 * (found.alone.high - found.alone.low)


def test_labels_without_an_error_leave_an_interval_with_width_and_a_missing_verdict_is_left_out():
    judge = np.zeros((2, 200))
    told = Labelled(np.arange(50), np.arange(50) % 2 == 0, np.zeros(50), np.zeros(50), np.ones(50))
    found = corrected(np.arange(200), *judge, told)
    assert found.effect.estimate == 0 and 0.05 < found.effect.high < 0.15
    judge[0, :20] = np.nan
    assert corrected(np.arange(200), *judge, told).effect == found.effect
    with pytest.raises(ValueError, match="one side"):
        corrected(np.arange(200), *judge, Labelled(*(v[::2] for v in vars(told).values())))


@pytest.mark.parametrize("drawn", ["uniform", "page"])
def test_corrected_intervals_cover_the_truth_where_those_of_the_judge_do_not(drawn):
    design = coverage.Design(0.05, 0.2, "biased to a side", 50, 250, drawn)
    low, high = map(np.array, zip(*(coverage.once(design, i) for i in range(120)), strict=True))
    effect, _, judge = ((low <= 0.15) & (high >= 0.15)).mean(axis=0)
    assert effect >= 0.9 and judge < 0.6  # 0.9: two standard errors of 120 runs below 0.95


# ----------------------------------------------------------------------------------------------------------------- draw


def test_answers_are_drawn_by_their_propensity_and_rare_verdicts_are_met():
    table = pd.DataFrame({"text_id": [f"{i:03d}" for i in range(400)], "side": ["base", "intervention"] * 200})
    table["score"] = np.where(np.arange(400) < 20, 1.0, np.where(np.arange(400) < 40, 0.5, 0.1))
    times, told = np.zeros(400), np.zeros(400)
    for seed in range(200):
        chosen = draw(table, 60, str(seed))
        rows = chosen["text_id"].astype(int)
        assert 55 <= len(chosen) <= 65 and chosen["side"].value_counts().min() >= 25
        assert (rows < 20).sum() >= 8 and ((rows >= 20) & (rows < 40)).sum() >= 8
        times[rows] += 1
        told[rows] = chosen["propensity"]
    assert np.abs(times / 200 - told).max() < 0.16  # four standard errors of a share of 200
    assert draw(table.sample(frac=1, random_state=0), 60, "1").equals(draw(table, 60, "1"))
    assert draw(table.head(0), 60, "1").empty and len(draw(table.head(3), 60, "1")) == 3


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """An experiment in which hedges were planted, validated."""
    folder = tmp_path_factory.mktemp("planted")
    run = run_of(folder / "planted", texts_of())
    return SimpleNamespace(run=run, **vars(stages(run)))


def labels_of(planted, count=120, claim="hedges"):
    """What a person would say who reads the words, of ``count`` held-out answers."""
    held = planted.material.texts
    own = held[held["split"] != "discover"].sample(count, random_state=0)
    said = own["text"].str.contains("|".join(HEDGES))
    label = np.where(said, "yes", "n")
    return pd.DataFrame({"text_id": own["text_id"], "text": own["text"], "claim": claim, "label": label})


def of_claims(planted):
    """The row of the planted claim; the panel has one of its name."""
    return planted.claims.query("text == 'hedges' and proposer != 'panel'").iloc[0]


def held(planted, table, path):
    table.to_csv(path, index=False)
    labels = read_labels(path, planted.material)
    read = readings(planted.judges, planted.material, None)
    return held_against(labels, planted.claims, verdicts(planted.outcomes), planted.material, read)


def test_labels_are_held_against_counting_by_side(planted, tmp_path):
    table = labels_of(planted)
    wrong = table.index[:12]
    table.loc[wrong, "label"] = np.where(table.loc[wrong, "label"] == "yes", "no", "yes")
    agree, effects = held(planted, table, tmp_path / "labels.csv")
    assert agree["side"].tolist() == ["both", "base", "intervention"] and set(agree["judge"]) == {"counting"}
    both = agree.iloc[0]
    assert both["labels"] == 120 and both["accuracy"] == pytest.approx(0.9)
    assert both["judge_alone"] + both["people_alone"] == 12 and both["accuracy_low"] < 0.9 < both["accuracy_high"]
    cells = ["both_yes", "judge_alone", "people_alone", "both_no"]
    assert agree.loc[1:, cells].sum().tolist() == both[cells].tolist() and agree.loc[1:, "labels"].sum() == 120
    claim, effect = of_claims(planted), effects.iloc[0]
    assert effect["difference"] == claim["difference"] and effect["note"] == ""
    assert effect["corrected_low"] < 0.5 < effect["corrected_high"]  # as planted: 60% and 10%
    assert effect["corrected_high"] - effect["corrected_low"] < effect["people_high"] - effect["people_low"]


def test_labels_are_found_by_their_words_and_those_of_other_answers_are_only_agreement(planted, tmp_path):
    table = labels_of(planted).drop(columns="text_id")
    table["claim"] = of_claims(planted)["hypothesis_id"]
    other = pd.DataFrame({"text": ["It might be so."] * 5, "claim": " Hedges ", "label": 1})
    agree, effects = held(planted, pd.concat([table, other]), tmp_path / "labels.csv")
    assert agree.iloc[0]["labels"] == 125 and agree.loc[1:, "labels"].sum() == 120
    assert effects.iloc[0]["labels"] == 120 and effects.iloc[0]["prompts"] == SPLITS["screen"] + SPLITS["validate"]


def test_words_that_both_sides_answered_with_count_for_a_side_only_where_it_can_be_told(planted, tmp_path):
    texts = planted.material.texts
    own = texts[texts["split"] == "validate"]
    two = pd.concat([own[own["side"] == side].head(2) for side in ("base", "intervention")]).index
    changed = replace(planted.material, texts=texts.assign(text=texts["text"].mask(texts.index.isin(two), "The same.")))
    answers = changed.texts.loc[two].sort_index()

    def read(rows, **columns):
        table = pd.DataFrame({"text": ["The same. "] * rows, "claim": "hedges", "label": "no", **columns})
        table.to_csv(tmp_path / "labels.csv", index=False)
        return read_labels(tmp_path / "labels.csv", changed)

    found = read(4)  # a row an answer: whose is whose does not matter
    assert found[["side", "prompt_id"]].equals(answers[["side", "prompt_id"]].reset_index(drop=True))
    with pytest.warns(UserWarning, match="3 labels are of words that both sides answered with.*add a column side"):
        assert (read(3)[["side", "prompt_id"]] == "").all(axis=None)
    assert read(3, side="base")["side"].tolist() == ["base"] * 3
    of_base = answers.loc[answers["side"] == "base", "prompt_id"].tolist()
    assert read(3, side="base")["prompt_id"].tolist() == [*of_base, of_base[0]]
    assert read(1, text_id=answers["text_id"].iloc[1])["prompt_id"].tolist() == [answers["prompt_id"].iloc[1]]


def test_too_few_labels_are_said_and_not_corrected(planted, tmp_path):
    agree, effects = held(planted, labels_of(planted, 49), tmp_path / "labels.csv")
    assert len(agree) == 3 and np.isnan(effects.iloc[0]["corrected"])
    assert "50 are needed" in effects.iloc[0]["note"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"claim": "hedgs"}, "no claim 'hedgs'; did you mean 'hedges'"),
        ({"claim": "length in words"}, "unit words: yes and no cannot"),
        ({"label": "perhaps"}, "'perhaps' .* is neither yes nor no"),
        ({"side": "left"}, "side 'left' is not one of"),
        ({"propensity": 0}, "propensity is above 0"),
        ({"propensity": "x"}, "propensity is above 0"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_is_wrong(planted, tmp_path, change, said):
    path = tmp_path / "labels.csv"
    labels_of(planted).assign(**change).to_csv(path, index=False)
    with pytest.raises(DriftbookError, match=said):
        read_labels(path, planted.material)


def test_a_column_that_is_missing_and_a_file_of_another_kind_are_said(planted, tmp_path):
    labels_of(planted).drop(columns="label").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DriftbookError, match=r"validate.labels .*a.csv: no column label"):
        read_labels(tmp_path / "a.csv", planted.material)
    (tmp_path / "a.txt").write_text("yes")
    with pytest.raises(DriftbookError, match=r"validate.labels .*a.txt: a table is one of"):
        read_labels(tmp_path / "a.txt", planted.material)


def test_skipped_answers_are_left_out(planted, tmp_path):
    table = labels_of(planted)
    table.loc[table.index[:7], "label"] = ["skip", "s", "", "Skip", " ", None, "skip"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    table.to_parquet(tmp_path / "labels.parquet")
    for name in ("labels.csv", "labels.parquet"):
        assert len(read_labels(tmp_path / name, planted.material)) == 113


def test_a_judge_model_is_held_against_people_too(planted, tmp_path):
    """It reads what it has not read yet; a judge that compares answers cannot be held against labels of one."""

    class Sees:
        name, paid, mode = "sees", False, "single"
        identity = {"kind": "sees"}  # noqa: RUF012

        def score(self, texts, hypotheses, prompts=None):
            return np.array([[0.7 * any(w in t for w in HEDGES)] * len(hypotheses) for t in texts])

        def compare(self, *args):
            raise AssertionError("not asked")

    texts = texts_of()
    run = run_of(tmp_path / "judged", texts, [Hypothesis("hedges", "intervention", measure={"kind": "judge"})])
    judges = Judges(Sees(), None, Ledger(tmp_path / "a.sqlite", 0.0))
    found = SimpleNamespace(**vars(stages(run, judges)))
    agree, effects = held(found, labels_of(found), tmp_path / "labels.csv")
    assert set(agree["judge"]) == {"sees"} and agree.iloc[0]["kappa"] == 1
    assert effects.iloc[0]["difference"] == pytest.approx(0.35, abs=0.08)  # a level of 0.7 where it is seen
    assert effects.iloc[0]["corrected_low"] < 0.5 < effects.iloc[0]["corrected_high"]
    Sees.mode = "pair"
    with pytest.raises(DriftbookError, match="set its mode to single"):
        held(found, labels_of(found), tmp_path / "labels.csv")


def test_the_stage_holds_judges_against_the_labels_that_the_parameters_name(planted, tmp_path):
    run = run_of(tmp_path / "named", texts_of(), labels="mine.csv")
    labels_of(planted).to_csv(run.folder / "mine.csv", index=False)
    agree, effects = stage.people(run, planted.material, planted.judges, planted.claims, planted.outcomes)
    assert len(agree) == 3 and len(effects) == 1
    without = stage.people(planted.run, planted.material, planted.judges, planted.claims, planted.outcomes)
    assert [len(t) for t in without] == [0, 0]


def test_labels_that_are_not_there_are_missed_before_a_run(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/a.yml").write_text("experiment: a\nvalidate: {labels: mine.csv}\n")
    with pytest.raises(ParameterError, match=r"validate.labels: mine.csv: there is no such file"):
        load_experiment(tmp_path / "params/a.yml", tmp_path)


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def repository(planted, tmp_path, monkeypatch):
    """The planted experiment as a repository holds it."""
    for name in (
        "params",
        "notebooks",
        "outputs/planted/decode",
        "outputs/planted/cluster",
        "outputs/planted/validate",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("params/prompts", "params/traits"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "params/planted.yml").write_text("experiment: planted\n")
    for name in ("decode", "cluster"):
        (tmp_path / f"outputs/planted/{name}/data").symlink_to(planted.run.folder / name)
    data = tmp_path / "outputs/planted/validate/data"
    data.mkdir()
    stage.write(
        data, planted.frozen, planted.screening, planted.outcomes, planted.claims, planted.judges, planted.run.section
    )
    for name in ("decode", "cluster", "validate"):
        (tmp_path / f"outputs/planted/{name}/run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tasks_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="tasks">')[1].split("</script>")[0])["tasks"]


def test_the_page_asks_about_proposed_claims_and_tells_nothing_of_the_side(repository, planted, capsys):
    assert cli.main(["label", "planted", "--count", "20"]) == 0
    page = repository / "outputs/planted/label.html"
    assert f"open in a browser: {page}" in capsys.readouterr().out
    tasks, text = tasks_of(page), page.read_text(encoding="utf-8")
    assert len({t["claim"] for t in tasks}) == pages.CLAIMS and 50 <= len(tasks) <= 70
    assert set(tasks[0]) == {"text_id", "claim_id", "claim", "propensity", "prompt", "text"}
    assert "http" not in text.replace("http-equiv", "") and '"side"' not in text and "intervention" not in text
    held_out = set(planted.material.texts.query("split != 'discover'")["text_id"])
    assert {t["text_id"] for t in tasks} <= held_out  # claims that the texts suggested were tested there


def test_a_saved_table_is_held_against_the_experiment_by_the_command(repository, planted, capsys):
    assert cli.main(["label", "planted", "--claim", "hedges", "--count", "80"]) == 0
    tasks = pd.DataFrame(tasks_of(repository / "outputs/planted/label.html"))
    said = np.where(tasks["text"].str.contains("|".join(HEDGES)), "yes", "no")
    table = tasks.assign(label=said)[["text_id", "claim_id", "label", "propensity", "text"]]
    table.rename(columns={"claim_id": "claim"}).to_csv(repository / "mine.csv", index=False)
    assert cli.main(["judge-check", "planted", "--labels", "mine.csv"]) == 0
    out = capsys.readouterr().out
    assert "counting, both: accuracy 1.00" in out and "effect in points: +" in out
    effect = pd.read_csv(repository / "outputs/planted/judge-check/corrected.csv").iloc[0]
    assert effect["corrected_low"] < 0.5 < effect["corrected_high"]


def test_commands_say_what_is_missing(repository, capsys):
    assert cli.main(["label", "planted", "--claim", "hedgs"]) == 1
    assert "did you mean 'hedges'" in capsys.readouterr().err
    assert cli.main(["judge-check", "planted", "--labels", "no.csv"]) == 1
    assert "--labels no.csv: cannot be read" in capsys.readouterr().err
    table = repository / "outputs/planted/validate/data/verdicts.parquet"
    pd.read_parquet(table).iloc[:0].to_parquet(table)
    assert cli.main(["label", "planted", "--claim", "hedges"]) == 1
    assert "'hedges' was confirmed: no judge read held-out answers for it" in capsys.readouterr().err
    (repository / "outputs/planted/validate/run.json").unlink()
    assert cli.main(["label", "planted"]) == 1
    assert "make validate EXP=planted" in capsys.readouterr().err


def test_an_answer_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><!--"
    task = {"text_id": "a", "claim_id": "c", "claim": evil, "propensity": 1.0, "prompt": evil, "text": evil}
    page = pages.drawn("x", [task])
    assert page.count("</script>") == 2 and json.loads(page.split('id="tasks">')[1].split("</script>")[0])["tasks"] == [
        task
    ]
