"""The overnight bench on a tiny model: every way does the whole work, and says where its time went."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from driftbench import overnight
from models import saved


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("night")
    model = saved(folder / "cache" / "models" / "tiny")
    return overnight.Work(
        str(model), ["Hi?", "Why is that?", "Go on"], [1], 2, 5, 4, str(folder / "cache"), str(folder)
    )


@pytest.mark.parametrize("way", ["one_batch", "one_load"])
def test_a_way_answers_everything_and_looks_inside_one_prompt(work, way):
    night = overnight.spend(way, work)
    assert (night.way, night.tokens) == (way, 15)
    parts = (night.start, night.load, night.tier2, night.tier3)
    assert all(p > 0 for p in parts) and sum(parts) == pytest.approx(night.seconds, rel=0.05)
    folder = Path(work.folder)
    if way == "one_batch":
        assert np.load(folder / "projections.npy").shape[1:] == (12, 4)
        assert [p.name for p in (folder / "internals").iterdir()] == ["base-1.safetensors"]
    else:
        with np.load(folder / "prompt2.npz") as sites:
            assert len(sites.files) == 12 and sites["3.resid_post"].ndim == 1
        with np.load(folder / "inside1.npz") as inside:
            assert {"2.q", "2.k", "2.v", "2.up", "2.activation", "2.down", "attention0", "attention4"} <= set(
                inside.files
            )
        assert not (folder / "inside0.npz").exists()


def test_the_old_way_is_a_process_for_each_prompt(work, monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(json.loads(Path(command[-1]).read_text()))
        part = {"load": 0, "tier2": 0, "tier3": 0, "tokens": 5, "peak_rss_mb": 10.0 * len(asked)}
        return type("Done", (), {"stdout": "loading ...\n" + json.dumps(part) + "\n"})

    monkeypatch.setattr(overnight.subprocess, "run", run)
    night = overnight.spend("process_per_prompt", replace(work, folder=str(tmp_path)))
    assert [a["prompts"] for a in asked] == [["Hi?"], ["Why is that?"], ["Go on"]]
    assert [a["tier3"] for a in asked] == [[], [0], []]
    assert (night.tokens, night.peak_rss_mb) == (15, 30.0)


def test_the_old_way_is_a_script_that_knows_nothing_of_driftbook(work, monkeypatch):
    asked = []

    def run(command, **_):
        asked.append(command)
        part = {"load": 0, "tier2": 0, "tier3": 0, "tokens": 5, "peak_rss_mb": 10.0}
        return type("Done", (), {"stdout": json.dumps(part)})

    with monkeypatch.context() as patch:
        patch.setattr(overnight.subprocess, "run", run)
        overnight.spend("one_load", work)
    python, *options, script, _ = asked[0]
    assert options == ["-P"]  # nor is its folder on the path
    code = (
        f"import runpy, sys; runpy.run_path({script!r})['one_load']\n"
        "print(*[m for m in sys.modules if m.startswith('drift')])"
    )
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_figures_come_from_all_runs():
    night = overnight.Night("one_batch", 10.0, 5.0, 1.0, 3.0, 1.0, 1200, 900.0)
    nights = [
        night,
        replace(night, way="process_per_prompt", seconds=210.0),
        replace(night, way="one_load", seconds=60.0),
    ]
    nights.append(replace(night, seconds=14.0))
    table = overnight.table(nights)
    found = overnight.metrics(table)
    assert (found["overnight_seconds"], found["old_seconds"], found["speedup"]) == (12.0, 210.0, 17.5)
    assert found["speedup_over_one_load"] == 5 and found["old_tokens"] == 1200
    assert overnight.speedup(nights, "process_per_prompt") == (17.5, 15.0, 21.0)
    assert "take 210 s with one process per prompt, 60 s after one load, and 12.0 s in one batch" in overnight.answer(
        table
    )
    assert table.way.tolist() == list(overnight.WAYS) and set(asdict(night)) <= set(table.columns)
    assert "cores" in overnight.machine_table().what.tolist()
