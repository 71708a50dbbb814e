"""Texts that exist already, replayed in the place of decoding."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from driftbench import pools as pool
from driftbench import savings
from driftbook.discovery.strategies import Ask
from driftbook.errors import DriftbookError
from driftbook.prompts import Prompt

PROMPTS = [Prompt(f"question {i}", f"family {i % 4}") for i in range(40)]


def table(samples: int = 8, seed: int = 0) -> pd.DataFrame:
    """The intervention hedges in the prompts of one family, and rhymes nowhere more than the base."""
    rng = np.random.default_rng(seed)
    rows = []
    for p in PROMPTS:
        for side in ("base", "intervention"):
            hedges = 0.9 if side == "intervention" and p.family == "family 0" else 0.1
            for k in range(samples):
                what = rng.choice(["hedges", "rhymes", None], p=[hedges, 0.08, 0.92 - hedges])
                rows.append((p.prompt_id, side, f"{what} {side} {p.text} {k}", what))
    return pd.DataFrame(rows, columns=["prompt_id", "side", "text", "behaviour"])


def vectors(texts):
    kinds = {"hedges": 0, "rhymes": 1, "None": 2}
    return np.eye(3, 8, dtype=np.float32)[[kinds[t.split()[0]] for t in texts]]


def read(**changes) -> pool.TextPool:
    options = {"planted": {"hedges": 1}, "js": {p.prompt_id: 0.5 if p.family == "family 0" else 0.1 for p in PROMPTS}}
    return pool.read_texts(table(), PROMPTS, vectors, **(options | changes))


@pytest.mark.parametrize("strategy", ["uniform", "screened", "active", "exhaustive"])
def test_every_strategy_runs_on_texts_that_exist_and_finds_what_was_planted(strategy):
    held = read()
    texts = pool.sample(held, strategy, 400, rounds=2, samples=2)
    assert 300 < len(texts) <= 400
    assert not texts.row.duplicated().any()
    assert (texts.groupby(["prompt_id", "side"]).size().unstack().pipe(lambda n: n.base == n.intervention)).all()
    assert pool.recall(held, pool.found(texts, held.truth(texts))).all()


def test_a_text_is_what_the_table_says_it_is():
    held = read()
    texts = held.texts([Ask(3, 0, 0), Ask(3, 1, 0), Ask(5, 7, 2)])
    assert len(texts) == 6 and set(texts["round"]) == {0, 2}
    own = table().set_index("text")
    for row, label in zip(texts.itertuples(), held.truth(texts), strict=True):
        assert own.loc[row.text, "prompt_id"] == row.prompt_id and own.loc[row.text, "side"] == row.side
        assert (held.behaviours[label] if label >= 0 else "None") == row.text.split()[0]


def test_another_seed_is_another_order_of_the_same_texts():
    one, other = (read(seed=s).texts([Ask(i, 0, 0) for i in range(40)]) for s in (0, 1))
    assert sorted(one.text) != sorted(other.text)
    everything = [Ask(i, k, 0) for i in range(40) for k in range(8)]
    assert sorted(read(seed=0).texts(everything).text) == sorted(read(seed=1).texts(everything).text)


def test_a_prompt_gives_no_more_than_both_sides_have():
    short = table()
    short = short[~((short.prompt_id == PROMPTS[0].prompt_id) & (short.side == "base") & (short.index % 8 > 2))]
    held = pool.read_texts(short, PROMPTS, vectors)
    texts = held.texts([Ask(0, k, 0) for k in range(8)])
    assert texts.groupby("side").size().tolist() == [3, 3]


def test_bad_tables_are_refused():
    with pytest.raises(DriftbookError, match="no column text"):
        pool.read_texts(table().drop(columns="text"), PROMPTS, vectors)
    with pytest.raises(DriftbookError, match="no texts of both sides"):
        pool.read_texts(table().query("side == 'base'"), PROMPTS, vectors)


def test_strategies_are_compared_on_texts_that_exist():
    pools = [read(seed=s) for s in range(3)]
    depths = {"exhaustive": [8], "uniform": [3, 6], "screened": [3, 6], "active": [3, 6]}
    table = savings.replay_strategies(pools, depths, rounds=2, samples=2, clusters=3)
    assert set(table.seed) == {0, 1, 2} and "likelihood" not in table
    assert table[table.strategy == "exhaustive"].families.all() and table.texts.max() == 2 * 40 * 8
    saved = savings.savings(table, resamples=20)
    assert saved["texts_saved_screened"][0] > 1
    everything = table[table.strategy == "exhaustive"]
    assert everything.ami.to_numpy() == pytest.approx(1) and everything.share_error.to_numpy() == pytest.approx(0)
    fewer = table[table.strategy == "uniform"]
    assert (fewer.share_error > 0).all() and fewer.clusters.mean() > 0.5


def test_a_pool_where_nothing_was_planted_has_no_recall_and_counts_what_moved():
    held = read(planted={}, name="nothing")
    table = savings.replay_strategies(
        [held], {"uniform": [4], "screened by answers": [4]}, rounds=1, samples=2, clusters=3
    )
    assert table[["plain", "families", "weighted", "clusters"]].isna().all(axis=None) and (table.moved >= 1).all()
    assert table.pool.tolist() == ["nothing"] * 2


def test_by_answers_nobody_is_told_the_divergence():
    told = read(js={p.prompt_id: float(p.family == "family 3") for p in PROMPTS})  # of the wrong family
    depths = {"screened": [4], "screened by answers": [4]}
    table = savings.replay_strategies([told], depths, rounds=1, samples=2, clusters=3).set_index("strategy")
    untold = savings.replay_strategies([read(js=None)], depths, rounds=1, samples=2, clusters=3).set_index("strategy")
    columns = ["texts", "plain", "families", "clusters", "ami", "share_error"]
    same = table.loc["screened by answers", columns].astype(float)
    assert same.tolist() == untold.loc["screened", columns].astype(float).tolist()
    assert table.loc["screened", "share_error"] != table.loc["screened by answers", "share_error"]


def test_a_cluster_picks_out_a_behaviour_where_it_grew_on_the_right_side():
    labels = np.array([0] * 10 + [1] * 10 + [2] * 20)
    shows = np.arange(40) < 8
    moved = pd.DataFrame({"cluster": [0, 1, 2], "difference": [0.2, -0.1, -0.1], "q": [0.01, 0.01, 0.5]})
    assert savings.grown(moved, labels, shows, 1)
    assert not savings.grown(moved, labels, shows, -1)  # cluster 1 shrank, and does not hold them
    assert not savings.grown(moved.assign(q=0.2), labels, shows, 1)
    assert not savings.grown(moved, labels, np.arange(40) % 2 == 0, 1)
    assert not savings.grown(moved, labels, np.ones(40, bool), 1)


def test_differences_of_shares_are_weighted():
    side = pd.Series(["base"] * 3 + ["intervention"] * 3)
    labels, weight = np.array([0, 0, 1, 1, 1, 0]), np.array([1, 1, 2, 1, 1, 2.0])
    assert savings.share_differences(labels, side, weight).tolist() == [0.0, 0.0]
    assert savings.share_differences(labels, side, np.ones(6), 3) == pytest.approx([-1 / 3, 1 / 3, 0])
