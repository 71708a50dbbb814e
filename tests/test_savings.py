"""What strategies save, on curves whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from driftbench import pools as pool
from driftbench import savings

SMALL = pool.World(prompts=96, families=4, behaviours=6, planted=2, scattered=0.0, strengths=(0.4,), deepest=16)


def curves(uniform: float, screened: float, active: float, plain: float = 1.0) -> pd.DataFrame:
    """Recall grows with texts until it is 1 at the given number of texts a prompt; 4 pools alike."""
    rows = []
    for name, enough in {"exhaustive": 32, "uniform": uniform, "screened": screened, "active": active}.items():
        for depth in [32] if name == "exhaustive" else [1, 2, 4, 8, 16]:
            for seed in range(4):
                for behaviour in range(20):
                    found = behaviour < 20 * min(1, depth / enough)
                    rows.append((name, depth, seed, 100 * depth, behaviour, found, found and behaviour < 20 * plain))
    return pd.DataFrame(rows, columns=["strategy", "depth", "seed", "texts", "behaviour", "families", "plain"])


def test_a_saving_is_the_ratio_of_texts_at_equal_recall():
    found = savings.savings(curves(16, 8, 4), resamples=50)
    assert found["texts_saved_screened"][0] == pytest.approx(32 / (8 * 0.95), rel=0.05)
    assert found["active_over_uniform"][0] == pytest.approx(4, rel=0.05)
    assert found["active_over_screened"][1] <= found["active_over_screened"][0] <= found["active_over_screened"][2]


def test_a_target_below_takes_fewer_texts_and_a_price_is_paid():
    table = curves(16, 8, 4, plain=0.5)
    same, over = (savings.savings(table, resamples=20, against=a)["texts_saved_screened"][0] for a in (None, "plain"))
    assert over == pytest.approx(same * 2, rel=0.1)
    dear = savings.savings(table, resamples=20, price=1.25)
    assert dear["texts_saved_screened"][0] == pytest.approx(same / 1.25)
    assert dear["active_over_screened"] == savings.savings(table, resamples=20)["active_over_screened"]


def test_what_never_gets_there_saves_nothing():
    assert savings.savings(curves(16, 8, 1000), resamples=20)["texts_saved_active"][0] == 1


def test_all_strategies_are_read_in_all_ways_on_the_same_pools():
    depths = {"exhaustive": [8], "uniform": [3], "screened": [3], "active": [3], "oracle": [3]}
    table = savings.compare_strategies(SMALL, depths, [0], rounds=2, samples=1)
    assert len(table) == 5 * 2 and set(savings.READINGS) <= set(table)
    assert table.groupby("strategy").texts.first().to_dict() == {
        "exhaustive": 96 * 16, "uniform": 96 * 6, "screened": 96 * 6, "active": 96 * 6, "oracle": 96 * 6,
    }  # fmt: skip
    assert table[table.strategy == "exhaustive"].likelihood.all()


def test_work_is_done_side_by_side():
    works = [(savings.claim, {"saving": (float(i), 0.5, 2.0), "other": "x"}) for i in range(5)]
    told = []
    assert sorted(savings.side_by_side(works, told.append))[4].startswith("not certainly fewer texts than x (4.0 times")
    assert sum(told) == 5


def test_likelihoods_find_with_fewer_texts_where_models_are_near_and_not_where_they_are_far():
    hits = {}
    for nuisance in (0.3, 100.0):
        world = pool.World(prompts=240, families=6, planted=6, strengths=(0.2,), deepest=16, nuisance=nuisance)
        depths = {"uniform": [3]}
        table = savings.compare_strategies(world, depths, range(3), rounds=1, samples=1)
        hits[nuisance] = table[["families", "likelihood"]].mean()
        near = np.mean([pool.told(pool.draw(world, s)) for s in range(3)])
        assert (near < 0.3) == (nuisance == 0.3)
    assert hits[0.3].likelihood > hits[0.3].families + 0.2
    assert abs(hits[100.0].likelihood - hits[100.0].families) < 0.15


def test_wording_alone_gives_no_alarm_by_likelihood():
    world = pool.World(prompts=96, families=4, behaviours=6, deepest=16, nuisance=10.0)
    assert savings.false_alarms(world, "uniform", 3, range(40), rounds=1, samples=1).likelihood.sum() <= 6


def test_log_ratios_of_a_pool_are_those_of_its_texts():
    """Over texts of the base E[q / p] is 1 for every prompt's mixture of behaviours and wording."""
    drawn = pool.draw(pool.World(prompts=200, deepest=64, nuisance=1.0), 0)
    rows = (np.arange(200)[:, None] * 2 * 64 + np.arange(64)).ravel()
    ratio = np.exp(drawn.log_ratio(rows))
    assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(len(ratio)))
    inverse = np.exp(-drawn.log_ratio(rows + 64))
    assert inverse.mean() == pytest.approx(1, abs=4 * inverse.std() / np.sqrt(len(inverse)))
