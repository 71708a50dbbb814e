"""The bench of groups: on answers whose difference is planted every way of looking is held against the same truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from driftbench import groups as bench
from driftbench.proof.plants import Plant
from driftbook.parameters import Cluster
from test_groups import answers, embed

SECTION = Cluster(clusters=8, bootstraps=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of paired answers as people bring it: the base opens with praise half of the time."""
    texts, asked = answers(120)
    path = tmp_path_factory.mktemp("pairs") / "praise.parquet"
    texts = texts.assign(prompt=[f"{asked[p]} {p}" for p in texts["prompt_id"]], family="f")
    texts[["side", "prompt", "text", "family"]].to_parquet(path)
    return path


def test_a_pair_is_read_in_every_way_and_nothing_moves_under_swapped_sides(table):
    row = bench.of_pair(table, SECTION, embed, 120, 60, 2, 0)
    assert row["told"] >= 1 and "Praise" in row["first"] and row["moved"] >= row["moved_stable"] >= 1
    assert row["confirmed"] >= 1 and row["null_runs"] == 2 and row["null_runs_with_a_moved_group"] <= 1
    assert 0.5 < row["accuracy_groups"] <= 1 and 0.5 < row["accuracy_both"] <= 1
    assert row["answer_prompts"] == 60 and row["clusters"] >= 2
    figures = bench.metrics(pd.DataFrame([row | {"plain_differences": 3}]), pd.DataFrame())
    assert figures["pairs_with_a_moved_stable_group"] == figures["pairs_changed"] == 1
    near = bench.metrics(pd.DataFrame([row | {"plain_differences": 0}]), pd.DataFrame())
    assert near["pairs_changed"] == 0 and near["null_moved"] == row["moved"]


def test_a_planted_change_is_found_where_a_group_picks_out_its_texts(table):
    pool = pd.read_parquet(table).assign(change=None)
    changed = pool[pool["side"] == "base"].assign(side="intervention", change="praise 1")  # praises
    plain = pool[pool["side"] == "intervention"].assign(side="base")
    plant = Plant("praise", "praises", 1.0, "prompt", lambda t: t.startswith("Praise"), lambda p: True)
    found = bench.of_plants(pd.concat([plain, changed]), [plant], SECTION, embed, 1, 4, 0)
    assert len(found) == 1 and found["by_groups"].all() and found["intervention"].iloc[0] > 0.3
    figures = bench.metrics(pd.DataFrame(), found)
    assert figures["plants_found_by_groups"] == 1 and "100%" in bench.answer(pd.DataFrame(), found, table)


def test_a_pick_is_the_mean_of_sensitivity_and_specificity():
    shows = np.array([True, True, False, False])
    assert bench._picks(np.array([True, False, False, False]), shows) == 0.75
    assert bench._picks(shows, np.ones(4, dtype=bool)) == 0
