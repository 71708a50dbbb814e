"""The command line: exit codes, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from driftbook.discovery.embeddings import Embedder, EmbeddingCache
from driftbook.hashes import text_digest
from driftbook.workbook import cli, reports

pytestmark = pytest.mark.usefixtures("plain_reports")


@pytest.fixture
def call(root, bench, no_kernel, monkeypatch, capsys):
    """Call the command line inside the small repository; returns (exit code, what it printed)."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(reports, "render_compare", lambda a, b, out: out.write_text("compared"))
    monkeypatch.setattr(reports, "render_outputs", lambda outputs: (outputs / "index.html").write_text("all"))
    bench('run.metric("size", run.section.size)')

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(list(words))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_run_why_verify_render(call, root):
    assert call("why", "bench-tiny") == (0, "bench-tiny: runs\n  never run\n")
    code, said = call("run", "bench-tiny")
    assert (
        code == 0
        and "bench-tiny: done in" in said
        and said.endswith(f"report: {root}/outputs/bench-tiny/report.html\n")
    )
    assert call("why", "bench-tiny") == (0, "bench-tiny: up to date\n")
    assert call("verify", "bench-tiny") == (0, "bench-tiny: as recorded\n")
    assert call("render", "bench-tiny")[0] == 0
    (root / "outputs/bench-tiny/metrics.json").write_text("{}")
    code, said = call("verify", "bench-tiny")
    assert code == 1 and "NOT as recorded" in said and "metrics.json: changed" in said


def test_an_experiment_can_be_given_by_its_path(call):
    assert call("why", "params/bench/bench-tiny.yml")[1].startswith("bench-tiny: runs")


def test_a_failed_stage_ends_with_1(call, bench):
    bench("1 / 0")
    code, said = call("run", "bench-tiny")
    assert code == 1 and "FAILED" in said and "ZeroDivisionError" in said
    assert "the last run failed: ZeroDivisionError: division by zero" in call("why", "bench-tiny")[1]


def test_what_was_not_run_cannot_be_verified_rendered_or_compared(call):
    for words in (("verify", "bench-tiny"), ("render", "bench-tiny"), ("compare", "bench-tiny", "bench-tiny")):
        code, said = call(*words)
        assert code == 1 and said.startswith("error: ") and "make run EXP=bench-tiny" in said


def test_compare_says_only_what_differs(call, root):
    (root / "params/bench/bench-other.yml").write_text("experiment: bench-other\nseed: 3\nbench: {size: 5}\n")
    text = (root / "notebooks/bench/bench-tiny.ipynb").read_text().replace("bench-tiny", "bench-other")
    (root / "notebooks/bench/bench-other.ipynb").write_text(text)
    call("run", "bench-tiny")
    call("run", "bench-other")
    code, said = call("compare", "bench-tiny", "bench-other")
    assert code == 0 and "params.bench.size: 4 | 5" in said and "metrics.size: 4 | 5" in said
    assert "params.seed" not in said and "seconds" not in said
    assert call("compare", "bench-tiny", "bench-tiny")[1].splitlines()[1] == "  nothing differs"


def test_clean_keeps_good_runs_unless_they_are_named(call, root, bench):
    call("run", "bench-tiny")
    bench("1 / 0")
    call("run", "bench-tiny")
    (root / "outputs/small/.lab").mkdir(parents=True)
    assert call("clean")[0] == 0
    assert sorted(p.name for p in (root / "outputs").iterdir() if p.is_dir()) == [".cache", "bench-tiny", "small"]
    assert not (root / "outputs/small/.lab").exists()
    call("clean", "bench-tiny", "--cache")
    assert not (root / "outputs/bench-tiny").exists() and not (root / "outputs/.cache").exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("No space left on device")])
def test_a_full_disk_is_told_by_every_command_whoever_met_it(call, monkeypatch, failure):
    def full(*_):
        raise failure

    monkeypatch.setattr(cli.state, "explain", full)
    code, said = call("why", "bench-tiny")
    assert code == 1 and "No space left on device" in said


def test_a_file_in_the_place_of_outputs_is_named(call, root):
    (root / "outputs").write_text("")
    for command in ("run", "why", "clean", "index"):
        code, said = call(command, *([] if command == "index" else ["bench-tiny"]))
        assert "Traceback" not in said and (code == 0 or f"{root}/outputs" in said), command


@pytest.mark.parametrize("name", ["..", "", "../params", "/", ".cache"])
def test_clean_removes_nothing_outside_of_outputs(call, root, name):
    code, said = call("clean", name)
    assert code == 1 and "is not the name of an experiment" in said
    assert (root / "params/small.yml").exists()


def test_outside_of_a_repository_it_says_so(tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert cli.main(["why", "x"]) == 1
    assert "not inside a driftbook repository" in capsys.readouterr().err


def test_index_is_drawn(call, root):
    assert call("index") == (0, f"report: {root}/outputs/index.html\n")


def test_the_cache_says_how_large_it_is_gives_way_and_explains_itself(call, root):
    assert call("cache") == (0, "")
    code, said = call("cache", "explain", "small", "What is a tide?")
    assert code == 1 and "no text was embedded here yet" in said
    identity = Embedder().identity
    with EmbeddingCache(root / "outputs/.cache/embeddings") as cache:
        cache.put(identity, [text_digest(f"text {i}") for i in range(3000)], np.ones((3000, 64), np.float32))
    code, said = call("cache", "size")
    assert code == 0 and "embeddings: " in said and "3,000 embeddings" in said and identity.model in said
    assert call("cache", "explain", "small", "text 7")[1].startswith("hit: ")
    assert "never embedded" in call("cache", "explain", "small", "text 3001")[1]
    (root / "params/other.yml").write_text(
        (root / "params/small.yml").read_text().replace("small", "other").replace("clusters: 2", 'instruction: "q: "')
    )
    assert "instruction was '' and is 'q: '" in call("cache", "explain", "other", "text 7")[1]
    code, said = call("cache", "evict")
    assert code == 1 and "--max-mb" in said
    assert call("cache", "evict", "--older-than-days", "1")[1].startswith("0 of 3,000 embeddings removed")
    assert call("cache", "evict", "--max-mb", "0.376")[1].startswith("2,000 of 3,000 embeddings removed")
    assert call("cache", "evict", "--keep", "other")[1].startswith("1,000 of 1,000 embeddings removed")


def test_export_writes_the_vectors_of_a_run(call, root):
    from test_formats import vectors_with_records

    code, said = call("export", "small")
    assert code == 1 and "no vectors there yet; run `make traits EXP=small` first" in said
    data = root / "outputs/small/traits/data"
    data.mkdir(parents=True)
    vectors_with_records().save(data)
    code, said = call("export", "small")
    assert code == 0 and len(said.splitlines()) == 6
    assert sorted(p.name for p in (root / "outputs/small/export").iterdir())[:2] == [
        "terse.persona_vectors.pt",
        "terse.repeng.gguf",
    ]
    to = root / "elsewhere"
    code, said = call("export", "small", "--format", "repeng", "--trait", "warm", "--layers", "chosen", "--to", str(to))
    assert (code, said) == (0, f"{to}/warm.repeng.gguf\n")
    code, said = call("export", "small", "--format", "onnx")
    assert code == 1 and "there is no format 'onnx'; there are persona-vectors, repeng, steering-vectors" in said


@pytest.mark.parametrize("leak", ["api_key_env: sk-canary-4711x", "base_url: 'http://u:canary-4711x@h/v1'"])
@pytest.mark.parametrize("kind", ["endpoint", "lexicon"])
def test_a_key_in_a_parameter_file_is_refused_by_every_command_and_left_in_no_other_file(call, root, leak, kind):
    path = root / "params/small.yml"
    fields = f"{leak}, model: m" + ("" if "base_url" in leak else ", base_url: http://h/v1")
    path.write_text(path.read_text() + f"validate: {{judges: {{expensive: {{kind: {kind}, {fields}}}}}}}\n")
    for command in ("run", "plan", "why", "render", "verify"):
        code, said = call(command, "small")
        assert code == 1 and "canary" not in said, command
    assert "api_key_env" in call("run", "small")[1]
    held = [p for p in root.rglob("*") if p.is_file() and b"canary" in p.read_bytes()]
    assert held == [path]
