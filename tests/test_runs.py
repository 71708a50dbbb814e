"""What a notebook holds in its hand: folders, metrics, progress, in JupyterLab and headless."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
import tqdm.std

from driftbook import chat, stage
from driftbook.errors import DriftbookError, ParameterError
from driftbook.workbook import open_run
from driftbook.workbook.progress import open_progress
from driftbook.workbook.runs import OUTPUTS, RUN_DIR, find_root, plain, plain_warnings
from driftbook.workbook.wording import duration

CELL = {"experiment": "small", "seed": 1, "base": {}, "intervention": {"kind": "none"}, "engine": {}}


@pytest.fixture
def lab(root, monkeypatch):
    """The working folder of a notebook that is open in JupyterLab."""
    monkeypatch.delenv(RUN_DIR, raising=False)
    monkeypatch.delenv(OUTPUTS, raising=False)
    monkeypatch.chdir(root / "notebooks")
    return root


def test_a_run_of_the_workbook_has_all_that_stages_are_promised(lab):
    promised = {name for name in vars(stage.Run) if not name.startswith("_")}
    assert {"params", "section", "input", "metric", "progress"} <= promised
    run = open_run("decode", **CELL, decode={})
    assert not [name for name in promised if not hasattr(run, name)]


def test_a_notebook_that_is_open_in_jupyterlab_has_a_folder_of_its_own(lab):
    run = open_run("decode", **CELL, decode={"samples": 3})
    assert run.data == lab / "outputs/small/.lab/decode/data" and run.data.is_dir()
    assert (run.root, run.cache) == (lab, lab / "outputs/.cache")
    assert (run.section.samples, run.seed, run.params.decode.samples) == (3, 1, 3)
    assert run.progress(3, "texts").mininterval < 1  # a bar that moves, where a log gets a line in five seconds


def test_it_reads_good_headless_runs_before_those_of_the_lab(lab):
    decode = open_run("decode", **CELL, decode={})
    cluster = open_run("cluster", **CELL, cluster={})
    with pytest.raises(DriftbookError, match=r"cluster reads decode, and .* make decode EXP=small"):
        cluster.input("decode")
    decode.finish()
    assert cluster.input("decode") == decode.data
    good = lab / "outputs/small/decode"
    good.mkdir(parents=True)
    (good / "run.json").write_text("{}")
    assert cluster.input("decode") == good / "data"


def test_a_headless_run_reads_no_run_of_the_lab(lab, monkeypatch):
    open_run("decode", **CELL, decode={}).finish()
    monkeypatch.setenv(RUN_DIR, str(lab / "outputs/small/.staging-cluster-1"))
    monkeypatch.setenv(OUTPUTS, str(lab / "outputs"))
    run = open_run("cluster", **CELL, cluster={})
    assert run.headless and run.data == lab / "outputs/small/.staging-cluster-1/data"
    with pytest.raises(DriftbookError, match="cluster reads decode"):
        run.input("decode")


def test_a_cell_that_does_not_validate_is_refused(lab):
    with pytest.raises(ParameterError, match=r"decode\.sample: unknown key, did you mean 'samples'"):
        open_run("decode", **CELL, decode={"sample": 3})


def test_metrics_are_numbers_and_texts(lab):
    run = open_run("decode", **CELL, decode={})
    run.metric("n", np.int64(3))
    run.metric("x", np.float32(0.5))
    run.metric("undefined", float("nan"))
    with pytest.raises(TypeError, match="metric 'list'"):
        run.metric("list", [1, 2])
    run.finish()
    kept = json.loads((run.folder / "metrics.json").read_text())
    assert (kept["n"], kept["x"], kept["undefined"]) == (3, 0.5, "nan")
    assert kept["seconds"] >= 0 and kept["peak_rss_mb"] > 1


def test_what_a_run_records_is_json():
    assert plain({"a": np.arange(2), "b": (np.float64("inf"), None, True)}) == {"a": [0, 1], "b": ["inf", None, True]}
    with pytest.raises(TypeError, match="cannot be kept"):
        plain(object())


def test_a_folder_outside_of_any_repository_is_told(tmp_path):
    with pytest.raises(DriftbookError, match="not inside a driftbook repository"):
        find_root(tmp_path)


def test_progress_in_a_log_is_a_line_in_five_seconds_with_rate_and_time_left(monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    with open_progress(100, "decode", "texts", headless=True, stream=log) as progress:
        for _ in range(10):
            now[0] += 1
            progress.update(10)
    lines = [line for line in log.getvalue().splitlines() if line]
    assert lines == [
        "decode:  50% 50/100 [00:05<00:05, 10.00 texts/s]",
        "decode: 100% 100/100 [00:10<00:00, 10.00 texts/s]",
    ]


def test_progress_in_a_log_ends_with_a_line():
    log = io.StringIO()
    assert list(open_progress(iter("abc"), "read", "rows", headless=True, stream=log)) == ["a", "b", "c"]
    assert log.getvalue().count("\n") == 1 and log.getvalue().startswith("read: 3 rows")
    with open_progress(0, "read", "rows", headless=True, stream=log):
        pass
    assert log.getvalue().count("\n") == 1, "nothing to do is not told"


def test_a_warning_of_driftbook_is_a_sentence_and_one_of_others_says_where(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    plain_warnings()
    own, other = (warnings.formatwarning("so", UserWarning, file, 7) for file in (chat.__file__, "/elsewhere/x.py"))
    assert own == "Warning: so\n" and "/elsewhere/x.py:7: UserWarning: so" in other


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59, "59 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said
