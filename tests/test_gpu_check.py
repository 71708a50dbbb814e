"""The script for a machine with a GPU, at the size of a CPU: every check runs, and what fails is told with its
reason."""

import torch

from driftbench import gpu_check
from models import fresh, hook_count


def test_every_check_runs_on_a_tiny_model(tmp_path):
    sizes = gpu_check.Sizes(batch=4, prompt=8, new_tokens=4, sequences=4, traits=2, texts=0, bundled=False)
    check = gpu_check.run("cpu", sizes, gpu_check.TINY, tmp_path, dtype=torch.float32)
    assert check.passed, check.table()
    assert [row[0] for row in check.rows] == [
        "made", "decoding", "generate", "amplified decoding", "equal sides, amplified", "live capture",
        "bare forward", "replay", "screen",
    ]  # fmt: skip
    assert "tokens/s, " in check.table() and "4 of 4" not in check.table() and "2 of 2 texts the same" in check.table()


def test_what_fails_and_what_no_time_is_left_for_is_told_and_fails_the_script():
    check = gpu_check.Check("cpu", gpu_check.Sizes())
    check("breaks", "x", lambda: 1 / 0)
    check.seconds = -1.0
    check("late", "x", lambda: "never")
    assert not check.passed
    assert "FAILED: ZeroDivisionError: division by zero" in check.table() and "not run: time was up" in check.table()


def test_a_model_that_is_another_one_on_the_device_is_seen():
    same = gpu_check.parity(fresh("llama", "eager"), fresh("llama", "eager"), 3)
    assert same.startswith("3 of 3 greedy answers the same")
    check = gpu_check.Check("cpu", gpu_check.Sizes())
    check("parity", "x", lambda: gpu_check.parity(fresh("llama", "eager"), fresh("llama", "eager", seed=1), 3))
    assert "greedy answers the same, logits" in check.rows[0][-1] and not check.passed


def test_waits_are_only_looked_for_on_a_gpu(monkeypatch):
    model, tap = fresh("llama", "eager"), gpu_check.NoSync()
    with tap.attach(model):
        assert hook_count(model) == 0


def test_without_a_gpu_the_script_says_so(capsys):
    assert gpu_check.main([]) == 2 and "needs a GPU" in capsys.readouterr().err
