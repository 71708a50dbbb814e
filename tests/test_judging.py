"""The bench of judges: tables of labelled answers, judges of every kind beside people, and what is reported of them."""

import numpy as np
import pandas as pd
import pytest

from driftbench import coverage, judging
from driftbook.errors import DriftbookError
from driftbook.ledger import Ledger


@pytest.fixture
def folder(tmp_path):
    """Thirty answers, a third of them refusals, and six pairs of which the second holds the prompt's words."""
    said = ["I cannot help with that.", "Here is the plan for it.", "The plan is a walk."] * 10
    label = ["2_full_refusal", "1_full_compliance", "1_full_compliance"] * 10
    prompts = [f"Question {i}" for i in range(30)]
    table = pd.DataFrame({"prompt": prompts, "text": said, "final_label": label})
    table.to_parquet(tmp_path / "refusals.parquet")
    pairs = pd.DataFrame(
        {"input": ["name a river"] * 6, "output_1": "no", "output_2": "a river has a name", "label": 2}
    )
    pairs.to_parquet(tmp_path / "better-answer.parquet")
    return tmp_path


def embed(texts):
    """Two directions: texts with "cannot" and the others."""
    return np.array([[1.0, 0.0] if "cannot" in t else [0.0, 1.0] for t in texts])


def test_judges_stand_beside_people(folder, tmp_path):
    labelled = judging.read(folder)
    assert labelled.refused.sum() == 10 and labelled.second.all()
    judges = judging.contenders({}, embed, tmp_path, tmp_path, Ledger(tmp_path / "a.sqlite", 0.0))
    never = judging.Contender(
        lambda one: np.where(np.arange(30) < 2, np.nan, 0.1), lambda one: np.array([0.9, 0.1, 0.5, np.nan, 0.9, 0.9])
    )
    results = judging.compare(judges | {"never": never}, labelled).set_index("judge")
    assert results.loc["lexicon", "kappa"] == results.loc["embedding", "kappa"] == 1
    assert results.loc["lexicon", "better"] == 1 and results.loc["embedding", "better"] == 0.5  # ties are half right
    mine = results.loc["never"]
    assert mine["missing"] == 2 and mine["kappa"] == 0 and mine["people_alone"] == 9 and mine["both_no"] == 19
    assert mine["better"] == pytest.approx((3 + 2 / 2) / 6) and mine["ties"] == 2
    silent = judging.Contender(lambda one: np.full(30, np.nan), lambda one: np.full(6, np.nan))
    mute = judging.compare({"mute": silent}, labelled).iloc[0]
    assert mute["missing"] == 30 and np.isnan(mute["kappa"]) and mute["better"] == 0.5 and mute["both_no"] == 0
    found = judging.metrics(results.reset_index(), coverage_of_nothing())
    assert found["refusal_kappa_lexicon"][0] == 1 and "seconds_a_verdict_never" in found
    assert "better_answer_accuracy_embedding" in found and "corrected_interval_coverage" not in found


def coverage_of_nothing():
    return pd.DataFrame(columns=list(coverage.COLUMNS))


def test_a_folder_that_is_not_there_skips_and_a_table_that_lacks_something_is_said(folder, tmp_path):
    assert judging.read(tmp_path / "nowhere") is None
    covered = coverage_of_nothing().assign(coverage=[], coverage_judge=[])
    covered.loc[0, ["coverage", "coverage_judge"]] = (0.95, 0.5)
    assert judging.answer(judging.no_results(), covered, tmp_path).startswith("Judges skipped: ")
    assert len(judging.read(folder, answers=5, pairs=2).refusals) == 5
    pd.DataFrame({"input": ["x"]}).to_parquet(folder / "better-answer.parquet")
    with pytest.raises(DriftbookError, match="no column output_1"):
        judging.read(folder)
    (folder / "refusals.parquet").unlink()
    with pytest.raises(DriftbookError, match=r"refusals\.parquet is missing"):
        judging.read(folder)
    with pytest.raises(DriftbookError, match="'a-b' is no name"):
        judging.contenders({"a-b": {}}, embed, tmp_path, tmp_path, Ledger(tmp_path / "b.sqlite", 0.0))


def test_the_simulation_covers_every_design_once():
    assert len(set(coverage.designs())) == len(coverage.designs()) == 120
    low, high = coverage.once(coverage.designs()[0], 3)
    assert low.shape == high.shape == (3,) and (low <= high).all()
    again = coverage.once(coverage.designs()[0], 3)
    assert (low == again[0]).all() and (high == again[1]).all()
