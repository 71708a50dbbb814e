"""The scale bench: its texts, its powers, and whole stages on a few hundred answers."""

from pathlib import Path

import pandas as pd
import pytest

from driftbench import scaling

ROOT = Path(__file__).parents[1]
POOL = ROOT / "params/bench/pool/answers.parquet"


def test_answers_differ_and_the_sides_are_alike_but_for_the_planted_sentence():
    table = scaling.answers_table(4000, POOL, 0.1, seed=0)
    assert len(table) == 4000 and table["text"].nunique() > 3990
    assert (table.groupby(["prompt", "side"]).size() == 2).all()
    holds = table["text"].str.contains(scaling.PLANTED, regex=False)
    changed = table["side"] == "intervention"
    assert not holds[~changed].any() and holds[changed].mean() == pytest.approx(0.1, abs=0.02)
    rest = table["text"].str.replace(f" {scaling.PLANTED}", "", regex=False).str.split().map(len)
    assert rest[changed].mean() == pytest.approx(rest[~changed].mean(), rel=0.02)
    pd.testing.assert_frame_equal(table, scaling.answers_table(4000, POOL, 0.1, seed=0))


def test_powers_are_those_of_known_growth():
    rows = [
        {"texts": n, "stage": stage, "cpu_seconds": a * n**power, "peak_mb": 100 * n**0.25, "disk_mb": n / 10}
        for stage, a, power in (("decode", 1e-3, 1.0), ("cluster", 1e-5, 1.5))
        for n in (10, 1000, 100_000)
    ]
    powers = scaling.exponents(pd.DataFrame(rows)).set_index("stage")
    assert powers.loc["decode", "of_seconds"] == pytest.approx(1.0)
    assert powers.loc["cluster", "of_seconds"] == pytest.approx(1.5)
    assert powers.loc["all", "of_memory"] == pytest.approx(0.25)
    sizes = scaling.sizing(pd.DataFrame(rows), powers.reset_index(), [1_000_000], 0.36).iloc[0]
    assert sizes["cpu_hours"] == pytest.approx((1e-3 * 1e6 + 1e-5 * 1e9) / 3600)
    assert sizes["peak_gb"] == pytest.approx(100 * 1e6**0.25 / 1e3)
    assert (sizes["decode_worker_hours"], sizes["disk_gb"]) == pytest.approx((100.0, 100.0))


def test_a_table_goes_through_all_stages_and_what_was_planted_is_found():
    """The planted sentence is claimed; what is claimed besides goes along with it (a sentence more)."""
    growth = scaling.grow([400], POOL, 0.4, 0, ROOT)
    assert growth["stage"].tolist() == list(scaling.STAGES)
    assert (growth[["seconds", "cpu_seconds", "peak_mb"]] > 0).all(axis=None)
    assert growth["disk_mb"].is_monotonic_increasing and growth.iloc[-1]["planted"] >= 1
