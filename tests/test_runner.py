"""The runner: skips what holds, never takes a failed run for a good one, and loses nothing when it is stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest

from conftest import write_notebook
from driftbook.errors import DriftbookError, ParameterError
from driftbook.parameters import STAGES
from driftbook.workbook import runner
from driftbook.workbook.runner import run_experiment, run_stage
from driftbook.workbook.runs import Layout
from driftbook.workbook.state import explain, verify
from models import saved
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("plain_reports")
BENCH = "bench-tiny"


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


# ---------------------------------------------------------------------------------------------------------- a good run


def test_a_good_run_leaves_everything_that_a_reader_needs(root, bench, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    file = bench(
        'for _ in run.progress(range(3), "counting", "steps"):\n    pass\nprint("a line of output")',
        'run.metric("size", run.section.size)\nrun.answer("It works.")',
        'run.headline("share", 0.5, 0.4, 0.6, baseline=0.1)',
        'import os, sys\nrun.metric("python", sys.executable)\nrun.metric("threads", os.environ["OMP_WAIT_POLICY"])',
        'run.record("device", {"name": "cpu", "reason": "no accelerator"})',
        '(run.data / "table.csv").write_text("a,b\\n1,2\\n");',
    )
    result = run_stage(file, BENCH)
    assert (result.status, result.folder) == ("ok", root / "outputs/bench-tiny")
    names = {p.name for p in result.folder.iterdir()}
    assert names == {"run.json", "params.yml", "notebook.ipynb", "report.html", "metrics.json", "data", "kernel.log"}
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["python"] == sys.executable  # whatever kernels are registered elsewhere as python3
    assert metrics["threads"] == "PASSIVE"
    assert metrics["size"] == 4 and metrics["seconds"] > 0 and metrics["peak_rss_mb"] > 20
    run = run_json(result.folder)
    assert run["status"] == "ok" and run["seeds"] == {"seed": 3} and run["answer"] == "It works."
    assert run["headlines"][0]["baseline"] == 0.1 and run["device"]["reason"] == "no accelerator"
    assert set(run["outputs"]) == {"metrics.json", "params.yml", "data/table.csv"}
    assert [c["cell"] for c in run["cells"]] == list(range(1, 11))
    assert all(c["status"] == "done" and c["seconds"] >= 0 for c in run["cells"])
    assert "notebooks/bench/bench-tiny.ipynb" in run["inputs"] and run["versions"]["python"].startswith("3.")
    log = (result.folder / "kernel.log").read_text()
    assert "counting: 100% 3/3" in log and "a line of output" in log
    # Progress is for whoever waits; the notebook keeps what the cells printed.
    cells = nbformat.read(result.folder / "notebook.ipynb", as_version=4).cells
    assert [o.text for c in cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"] == [
        "a line of output\n"
    ]


def test_a_cluster_that_does_not_answer_is_refused_before_anything_starts(root, no_kernel):
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = root / "params/small.yml"
        file.write_text(file.read_text() + f"engine: {{kind: ray, address: '{address}'}}\n")
        write_notebook(root / "notebooks/traits.ipynb", "traits")
        with pytest.raises(ParameterError, match=rf"small\.yml: engine\.address {address}: no Ray .*ray start --head"):
            run_stage(file, "traits")
    assert not no_kernel


def test_a_second_run_starts_no_kernel(root, bench, no_kernel):
    file = bench("pass")
    run_stage(file, BENCH)
    assert run_stage(file, BENCH).status == "skipped"
    assert explain(file)[BENCH] == ("up to date", [])
    for path in root.rglob("*"):  # a checkout changes times, not content
        os.utime(path)
    assert run_stage(file, BENCH).status == "skipped"
    assert no_kernel == [BENCH]
    assert run_stage(file, BENCH, force=True).status == "ok"
    assert no_kernel == [BENCH, BENCH]


def test_editing_prose_draws_the_report_again_around_the_old_outputs(root, bench, monkeypatch):
    file = bench('print("kept")', prose="# Old")
    run_stage(file, BENCH)
    bench('print("kept")', prose="# New question")
    monkeypatch.setattr(runner, "_execute", lambda *a: pytest.fail("a kernel was started"))
    assert explain(file)[BENCH] == ("draws its report again", ["prose: edited"])
    result = run_stage(file, BENCH)
    assert result.status == "rendered"
    cells = nbformat.read(result.folder / "notebook.ipynb", as_version=4).cells
    assert cells[0].source == "# New question"
    assert [c.outputs[0].text for c in cells if c.cell_type == "code" and c.outputs] == ["kept\n"]
    assert [c.metadata.get("tags") for c in cells[1:3]] == [["parameters"], ["injected-parameters"]]
    assert run_stage(file, BENCH).status == "skipped"


def test_verify_names_what_changed_and_a_lost_output_is_made_again(root, bench, no_kernel):
    file = bench('(run.data / "a.txt").write_text("abc")')
    folder = run_stage(file, BENCH).folder
    assert verify(file) == {BENCH: []}
    (folder / "data/a.txt").write_text("abd")
    assert "changed" in verify(file)[BENCH][0]
    (folder / "data/a.txt").unlink()
    assert "is gone" in explain(file)[BENCH][1][0]
    assert run_stage(file, BENCH).status == "ok"
    assert verify(file) == {BENCH: []}


def test_a_run_that_is_kept_but_cannot_be_drawn_says_so(root, bench, no_kernel, monkeypatch):
    file = bench("pass")
    monkeypatch.setattr(runner, "draw", lambda folder: "KeyError: 'x'")
    with pytest.raises(DriftbookError, match=r"ran and is kept, but its report could not be drawn: KeyError"):
        run_stage(file, BENCH)
    assert run_json(root / "outputs/bench-tiny")["status"] == "ok"


# ------------------------------------------------------------------------------------------------------ five failures

FAILURES = {
    "exception": ("raise ValueError('no such thing')", {}, r"cell 5: ValueError: no such thing"),
    "cell timeout": ("import time\ntime.sleep(60)", {"cell_timeout": 2}, r"cell 5: the cell took longer than the 2 s"),
    "killed kernel": ("import os\nos.kill(os.getpid(), 9)", {}, r"cell 5: the kernel was killed by SIGKILL"),
    "missing kernel": ("pass", {"kernel": "no-such-kernel"}, r"the kernel did not start: NoSuchKernel"),
    "sys.exit(0)": ("import sys\nsys.exit(0)", {}, r"cell 5: the cell left the notebook by sys\.exit\(0\)"),
    "result that cannot be shown": (
        "class Picture:\n    def _repr_mimebundle_(self, **_):\n        raise TypeError('no picture')\nPicture()",
        {},
        r"cell 5: TypeError: no picture, while showing a result",
    ),
    "never finished": ("pass", {"finish": False}, r"ended without run\.finish\(\)"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_run_is_never_taken_for_a_good_one(root, bench, name):
    cell, options, reason = FAILURES[name]
    finish = options.get("finish", True)
    options = {k: v for k, v in options.items() if k != "finish"}
    file = bench(cell, finish=finish)
    result = run_stage(file, BENCH, **options)
    assert not result.good
    assert result.folder == root / "outputs/bench-tiny.failed"
    run = run_json(result.folder)
    assert run["status"] == "failed" and run["failure"]["stage"] == BENCH
    assert re.search(reason, result.reason)
    assert run["failure"]["reason"] in (result.folder / "report.html").read_text()
    assert (result.folder / "notebook.ipynb").is_file() and (result.folder / "kernel.log").is_file()
    assert not (root / "outputs/bench-tiny").exists()
    assert explain(file)[BENCH][0] == "runs"


def test_a_failed_run_leaves_the_good_one_and_the_next_good_one_clears_its_evidence(root, bench):
    run_stage(bench('run.metric("x", 1)'), BENCH)
    file = bench("1 / 0")
    assert not run_stage(file, BENCH).good
    assert json.loads((root / "outputs/bench-tiny/metrics.json").read_text())["x"] == 1
    cells = nbformat.read(root / "outputs/bench-tiny.failed/notebook.ipynb", as_version=4).cells
    assert cells[4].outputs[0].ename == "ZeroDivisionError"  # cell 5, as the reason counts
    assert run_stage(bench('run.metric("x", 2)'), BENCH).status == "ok"
    assert json.loads((root / "outputs/bench-tiny/metrics.json").read_text())["x"] == 2
    assert not (root / "outputs/bench-tiny.failed").exists()


def test_the_command_line_ends_with_1_and_without_traceback(root, bench):
    bench("1 / 0")
    done = command(root, "run", BENCH)
    assert done.returncode == 1
    assert "FAILED" in done.stdout and "ZeroDivisionError: division by zero" in done.stdout
    assert "runner.py" not in done.stdout + done.stderr
    done = command(root, "run", "bench-tin")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "did you mean 'bench-tiny'" in done.stderr


def command(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "driftbook", *words], cwd=root, capture_output=True, text=True, timeout=180
    )


# ----------------------------------------------------------------------------------------------------------- stopping

SLOW = """
import os, time
print("begun", flush=True)
(run.root / "kernel.pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def start(root: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a run from the command line and wait until its kernel is in the slow cell, and what it said is on disk:
    a line takes its own way there, through two processes, and may come later than the kernel's file."""
    runner_process = subprocess.Popen(
        [sys.executable, "-m", "driftbook", "run", BENCH],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell hands its background jobs an ignored SIGINT on, and these tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid = root / "kernel.pid"
    wait_until(lambda: pid.is_file() and pid.read_text(), "the kernel is in its slow cell")
    logs = (root / "outputs").glob
    wait_until(lambda: any("begun" in log.read_text() for log in logs(".staging-*/kernel.log")), "its line is logged")
    return runner_process, int(pid.read_text())


def ended(pid: int) -> bool:
    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return wait_until(gone, f"process {pid} has ended")


def test_ctrl_c_ends_the_kernel_and_leaves_the_last_good_run(root, bench):
    run_stage(bench('run.metric("x", 1)'), BENCH)
    bench(SLOW)
    process, kernel = start(root)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert ended(kernel)
    assert run_json(root / "outputs/bench-tiny.failed")["failure"] == {
        "stage": BENCH,
        "cell": 4,
        "reason": "interrupted",
    }
    assert json.loads((root / "outputs/bench-tiny/metrics.json").read_text())["x"] == 1
    assert not list((root / "outputs").glob(".staging-*"))


def test_kill_9_of_the_runner_ends_the_kernel_and_the_next_run_clears_up(root, bench):
    run_stage(bench('run.metric("x", 1)'), BENCH)
    bench(SLOW)
    process, kernel = start(root)
    process.kill()
    process.wait(timeout=120)
    assert ended(kernel)
    assert json.loads((root / "outputs/bench-tiny/metrics.json").read_text())["x"] == 1
    (abandoned,) = (root / "outputs").glob(".staging-*")
    assert "begun" in (abandoned / "kernel.log").read_text()
    assert run_stage(bench('run.metric("x", 2)'), BENCH).status == "ok"
    assert not list((root / "outputs").glob(".staging-*"))


def test_a_kill_between_the_two_renames_of_a_swap_loses_nothing(root, bench, no_kernel):
    file = bench('run.metric("x", 1)')
    folder = run_stage(file, BENCH).folder
    folder.rename(root / "outputs/.retired-bench-tiny")
    assert run_stage(file, BENCH).status == "skipped"
    assert (folder / "run.json").is_file()


def test_a_full_disk_is_a_clear_error_and_keeps_the_last_good_run(root, bench, no_kernel, monkeypatch):
    run_stage(bench('run.metric("x", 1)'), BENCH)
    file = bench('run.metric("x", 2)')

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(root / "outputs/x"))

    monkeypatch.setattr(runner, "fingerprints", full)
    with pytest.raises(DriftbookError, match="the disk is full"):
        run_stage(file, BENCH)
    assert json.loads((root / "outputs/bench-tiny/metrics.json").read_text())["x"] == 1


def test_a_full_disk_inside_the_notebook_says_what_to_do(root, bench, no_kernel):
    result = run_stage(bench('raise OSError(28, "No space left on device")'), BENCH)
    assert "No space left on device" in result.reason and "make room" in result.reason


def test_two_runners_of_one_stage_take_turns(root, bench):
    bench('import time\ntime.sleep(1.5)\n(run.root / "count").open("a").write("x")')
    processes = [
        subprocess.Popen([sys.executable, "-m", "driftbook", "run", BENCH], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=180)[0] for process in processes]
    assert (root / "count").read_text() == "x"
    assert sorted("up to date" in s for s in said) == [False, True]


# ------------------------------------------------------------------------------------------------------------- stages


@pytest.fixture
def small(root) -> Path:
    reads = {"capture": ["traits"], "cluster": ["traits", "decode"], "validate": ["decode", "cluster"]}
    for stage in STAGES:
        cells = [f'seen = [(run.input(s) / "out.txt").read_text() for s in {reads.get(stage, [])}]']
        cells.append(f'(run.data / "out.txt").write_text("{stage}")')
        write_notebook(root / f"notebooks/{stage}.ipynb", stage, *cells)
    return root / "params/small.yml"


def test_an_experiment_runs_in_order_and_repeats_only_what_a_change_reaches(root, small, no_kernel):
    results = run_experiment(small)
    assert [(r.stage, r.status) for r in results] == [(s, "ok") for s in STAGES]
    small.write_text(small.read_text().replace("clusters: 2", "clusters: 3"))
    said = explain(small)
    assert said["decode"] == ("up to date", [])
    assert said["cluster"] == ("runs", ["parameter cluster.clusters: 2 -> 3"])
    assert said["validate"] == ("runs", ["cluster runs again"])
    assert [r.status for r in run_experiment(small)] == ["skipped"] * 3 + ["ok"] * 2


def test_an_experiment_stops_at_the_first_failure(root, small, no_kernel):
    write_notebook(root / "notebooks/capture.ipynb", "capture", "1 / 0")
    assert [(r.stage, r.status) for r in run_experiment(small)] == [("traits", "ok"), ("capture", "failed")]
    assert [r.stage for r in run_experiment(small, ["traits"])] == ["traits"]


def test_a_stage_does_not_read_stages_that_are_missing_or_out_of_date(root, small, no_kernel):
    with pytest.raises(DriftbookError, match=r"capture reads traits, which has no good run .*make traits EXP=small"):
        run_stage(small, "capture")
    assert [r.stage for r in run_experiment(small, ["capture"])] == ["traits", "capture"]
    write_notebook(root / "notebooks/traits.ipynb", "traits", '(run.data / "out.txt").write_text("new")')
    with pytest.raises(
        DriftbookError, match=r"traits, which is out of date \(notebooks/traits.ipynb: 4 code cells -> 3\)"
    ):
        run_stage(small, "capture")


def test_a_stage_whose_files_were_edited_while_it_ran_runs_again(root, bench, no_kernel):
    file = bench('path = run.root / "params/bench/bench-tiny.yml"\npath.write_text(path.read_text())')
    assert run_stage(file, BENCH).status == "ok"
    assert explain(file)[BENCH][0] == "up to date"
    code = 'import json\npath = run.root / "notebooks/bench/bench-tiny.ipynb"\ntext = path.read_text()\n'
    file = bench(code + 'path.write_text(text.replace("import json", "import json, os"))')
    assert run_stage(file, BENCH).status == "ok"
    assert explain(file)[BENCH] == ("runs", ["notebooks/bench/bench-tiny.ipynb: code cell 2 edited"])
    bench(code + 'path.write_text(text.replace("import json", "import json, os"))')
    assert explain(file)[BENCH] == ("runs", ["its files were edited while it ran"])


def test_an_unknown_stage_is_refused(small):
    with pytest.raises(DriftbookError, match="has no stage 'clusters'; it has traits, capture"):
        run_stage(small, "clusters")


def test_make_j_runs_experiments_side_by_side(root, bench):
    """Each of the two waits for the other to begin, which it never would if they ran in turn."""
    wait = """
import time
(run.root / f"{run.stage}.begun").touch()
deadline = time.monotonic() + 120
while len(list(run.root.glob("*.begun"))) < 2:
    assert time.monotonic() < deadline, "the other one did not begin"
    time.sleep(0.05)
"""
    bench(wait)
    for folder, suffix in (("params", "yml"), ("notebooks", "ipynb")):
        text = (root / f"{folder}/bench/bench-tiny.{suffix}").read_text().replace("bench-tiny", "bench-two")
        (root / f"{folder}/bench/bench-two.{suffix}").write_text(text)
    repository = Path(__file__).parent.parent
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(repository / name, root / name)
    (root / "stamp").touch()
    command = ["make", "-j2", "run", "EXP=bench-tiny bench-two", f"VENV={sys.prefix}", "STAMP=stamp"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bench-tiny: done" in done.stdout and "bench-two: done" in done.stdout


def test_runs_beside_each_other_share_a_base_and_its_answers(root):
    """Two experiments of one base, one of them started twice: answers are made once each, and all tables are whole."""
    repository = Path(__file__).parent.parent
    base = saved(root / "base", hidden_size=24, num_hidden_layers=2, vocab_size=400)
    (root / "params/asked.txt").write_text("\n".join(f"Why {c}{d}?" for c in "abcdefgh" for d in "xyz"))
    shutil.rmtree(root / "notebooks")
    (root / "notebooks").symlink_to(repository / "notebooks")
    for name, said in (("kind", "Be kind."), ("calm", "Be calm.")):
        (root / f"params/{name}.yml").write_text(
            f"experiment: {name}\nbase: {{model: {base}, dtype: float32, device: cpu}}\n"
            f"intervention: {{kind: prompt, system: {said}}}\ntraits: {{files: [params/traits/calm.json]}}\n"
            "capture: {prompts: [params/asked.txt]}\ndecode: {prompts: [params/asked.txt], samples: 1, shard: 8, "
            "max_new_tokens: 8, screen: {enabled: false}, sampling: {strategy: uniform, max_texts: 48, rounds: 1}}\n"
        )
    command = [sys.executable, "-m", "driftbook", "run", "--stage", "decode"]
    with runner.lock(Layout.of(root), "kind", "decode"):  # both runs of it are there before either begins
        runs = [
            subprocess.Popen([*command, name], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for name in ("kind", "calm", "kind")
        ]
        for run in runs[::2]:
            assert "kind/decode: another run has it; waiting\n" in iter(run.stdout.readline, "")
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert sorted("up to date" in s for s in said[::2]) == [False, True]
    texts = {name: pd.read_parquet(root / f"outputs/{name}/decode/data/texts.parquet") for name in ("kind", "calm")}
    for table in texts.values():
        assert len(table) == 48 and table.text_id.is_unique and set(table.side) == {"base", "intervention"}
    own = [table[table.side == "base"].set_index("text_id").text for table in texts.values()]
    assert own[0].equals(own[1])
    kept = [path for path in (root / "outputs/.cache/decode").rglob("*") if path.is_file()]
    assert all(path.suffix == ".parquet" and not path.name.startswith(".") for path in kept)
    assert sum(pq.read_metadata(path).num_rows for path in kept) == 3 * 24  # the base's answers stand there once
