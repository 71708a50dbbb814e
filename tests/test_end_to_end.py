"""The whole workbook on a real model: ``params/smoke.yml`` through the command line, in a copy of this repository."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from safetensors import safe_open

from chat_server import Server
from driftbench import demo_clock as demo
from driftbook.errors import DriftbookError
from driftbook.parameters import STAGES, load_experiment, resolved
from pages import Page

ROOT = Path(__file__).parent.parent

METRICS = {
    "traits": ["heldout_auc_uncertainty_calibration", "null_auc_uncertainty_calibration", "heldout_auc_sycophancy"],
    "capture": ["model_loads", "prompts", "samples", "tokens", "tokens_per_s"],
    "decode": ["prompts_screened", "prompts_kept", "texts", "tokens_per_s", "rounds", "model_loads", "matrix_share"],
    "cluster": ["texts", "clusters", "noise_share", "stability_ari", "embedded", "cache_hits"],
    "validate": ["hypotheses", "confirmed", "alpha", "calls_cheap", "calls_expensive", "calls_cached", "cost_usd"],
}
DATA = {
    "traits": ["vectors.safetensors", "vectors.json"],
    "capture": ["tokens.parquet", "projections.safetensors", "dynamics.parquet"],
    "decode": ["prompts.parquet", "divergence.parquet", "texts.parquet", "rounds.parquet"],
    "cluster": [
        *("groups.parquet", "centres.npz", "composition.parquet"),
        *("map.parquet", "exemplars.parquet", "hypotheses.parquet"),
    ],
    "validate": ["verdicts.parquet", "claims.parquet", "ledger.parquet"],
}


def driftbook(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree / "lib")}
    done = subprocess.run(
        [sys.executable, "-m", "driftbook", *words],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def outcome(said: str) -> dict[str, str]:
    """What the command line says of each stage: done, up to date, report drawn again."""
    found = re.findall(r"^smoke/(\w+): (up to date|report drawn again|done)", said, flags=re.MULTILINE)
    return dict(found)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the repository in which the experiment has been run once."""
    tree = tmp_path_factory.mktemp("repository")
    for folder in ("lib", "notebooks", "params"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    assert outcome(driftbook(tree, "run", "smoke")) == dict.fromkeys(STAGES, "done")
    return tree


def times(tree: Path) -> dict[str, int]:
    return {stage: (tree / f"outputs/smoke/{stage}/kernel.log").stat().st_mtime_ns for stage in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_its_metrics_and_data(tree, stage):
    folder = tree / f"outputs/smoke/{stage}"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(METRICS[stage]) | {"seconds", "peak_rss_mb"} <= set(metrics)
    assert all(isinstance(v, int | float | str) for v in metrics.values())
    assert {p.name for p in (folder / "data").iterdir()} >= set(DATA[stage])
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "ok" and run["answer"] and 1 <= len(run["headlines"]) <= 5
    assert run["components"]["versions"]["python"] and run["peak_rss_mb"] > 50
    assert all(c["status"] == "done" for c in run["cells"])


def test_the_stages_fit_together(tree):
    out = tree / "outputs/smoke"
    experiment = load_experiment(tree / "params/smoke.yml")
    texts = pd.read_parquet(out / "decode/data/texts.parquet")
    assert 0 < len(texts) <= experiment.decode.sampling.max_texts
    assert set(texts.side) == {"base", "intervention"} and texts.text_id.is_unique
    prompts = pd.read_parquet(out / "decode/data/prompts.parquet")
    assert set(texts.prompt_id) <= set(prompts.prompt_id) and set(prompts.split) == {"discover", "screen", "validate"}
    members = pd.read_parquet(out / "cluster/data/groups.parquet")
    assert set(members.text_id) <= set(texts[texts.split == "discover"].text_id)
    proposed = pd.read_parquet(out / "cluster/data/hypotheses.parquet")
    claims = pd.read_parquet(out / "validate/data/claims.parquet")
    assert set(proposed.hypothesis_id) <= set(claims.hypothesis_id)
    with safe_open(out / "traits/data/vectors.safetensors", "pt") as vectors:
        assert len(list(vectors.keys())) > 0
    metrics = {s: json.loads((out / s / "metrics.json").read_text()) for s in STAGES}
    assert metrics["decode"]["texts"] == len(texts)
    assert metrics["capture"]["model_loads"] == 1, "base and steered model share their weights"
    assert metrics["validate"]["hypotheses"] == len(claims) and metrics["validate"]["cost_usd"] == 0


def test_reports_open_without_network_and_show_the_answer(tree):
    pages = [tree / f"outputs/smoke/{stage}/report.html" for stage in STAGES]
    pages += [tree / "outputs/smoke/index.html", tree / "outputs/index.html"]
    for page in pages:
        text = page.read_text()
        outside = re.findall(
            r"""<[^>]+\s(?:src|href)\s*=\s*["']?(?:https?:)?//[^"'>\s]+|@import|url\(\s*["']?http""", text
        )
        assert outside == [], page
        assert text.count("<h1") == 1
    for stage, page in zip(STAGES, pages, strict=False):
        answer = json.loads((page.parent / "run.json").read_text())["answer"]
        assert answer in html.unescape(page.read_text()), stage
    assert all(f"{stage}/report.html" in pages[5].read_text() for stage in STAGES)


def test_the_example_in_docs_is_built_as_pages_are_built_now(tree):
    """Its numbers are those of another run. Where this fails, ``make docs`` makes it again."""
    example = (ROOT / "docs/example/index.html").read_text()
    driftbook(tree, "example", "smoke", "example.html")
    kept, made = Page(example), Page((tree / "example.html").read_text())
    # Where nothing moved there is nothing to read; all else stands in the same order.
    assert [h for h in kept.by_tag["h2"] if h in made.by_tag["h2"]] == made.by_tag["h2"]
    kinds = [{a["data-kind"] for t, a in page.elements if t == "figure"} for page in (kept, made)]
    assert kinds[0] == kinds[1] == {"plot", "trace"}
    for page in (kept, made):
        assert page.outside() == [] and all(a.startswith(("#", "data:")) for a in page.addresses)
    assert len(example.encode()) < 2_500_000


def test_everything_is_as_recorded(tree):
    assert driftbook(tree, "verify", "smoke").count("as recorded") == 5


def held(tree: Path) -> dict[str, int]:
    """What the shared caches hold: finished shards and rows of embeddings."""
    cache = tree / "outputs/.cache"
    kept = {str(p.relative_to(cache)): p.stat().st_mtime_ns for p in cache.rglob("*") if p.suffix != ".sqlite"}
    kept = {name: t for name, t in kept.items() if not name.endswith(("-wal", "-shm")) and (cache / name).is_file()}
    for path in cache.rglob("*.sqlite"):
        with sqlite3.connect(path) as rows:
            for (table,) in rows.execute("select name from sqlite_master where type = 'table'").fetchall():
                kept[f"{path.name} {table}"] = rows.execute(f'select count(*) from "{table}"').fetchone()[0]
    return kept


def in_jupyter(tree: Path, name: str, parameters: dict[str, object], again: str = "") -> list[dict]:
    """Run a committed notebook as JupyterLab would, with other values in its parameter cell; the data of its outputs.

    Cells that hold ``again`` are run a second time at the end.
    """
    path = tree / f"notebooks/{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = "\n".join([cell.source, *(f"{key} = {value!r}" for key, value in parameters.items())])
    if again:
        notebook.cells += [nbformat.v4.new_code_cell(c.source) for c in notebook.cells if again in c.source]
    environment = {**os.environ, "PYTHONPATH": str(tree / "lib")}
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=environment)
    return [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("traits", "read_contrasts"),
        ("capture", "capture_live"),
        ("decode", "decode_rounds"),
        ("cluster", "stage.find"),
        ("validate", ""),
    ],
)
def test_every_notebook_runs_in_jupyterlab_and_repeats_no_finished_work(tree, stage, again):
    before = held(tree)
    shown = in_jupyter(tree, stage, resolved(load_experiment(tree / "params/smoke.yml"), stage), again)
    assert held(tree) == before and len(before) > 8
    kinds = {kind for data in shown for kind in data}
    assert stage == "validate" or "application/vnd.plotly.v1+json" in kinds
    assert "text/html" in kinds  # tables, and the traces read as text
    if stage in ("traits", "capture", "decode"):
        assert "application/vnd.jupyter.widget-view+json" in kinds  # bars of progress
    lab = tree / f"outputs/smoke/.lab/{stage}"
    assert json.loads((lab / "finished.json").read_text())["answer"]
    assert json.loads((tree / f"outputs/smoke/{stage}/run.json").read_text())["status"] == "ok"


def test_the_starting_notebook_tells_the_story_with_the_front_door(tree):
    small = {"prompts": "params/prompts/smoke.jsonl", "count": 16, "max_new_tokens": 8, "scenarios": 8}
    shown = in_jupyter(tree, "start", small)
    titles = [d["text/plain"] for d in shown]
    for said in ("Directions of", "hedges: ", "Next-token distributions differ", "along an answer to"):
        assert any(said in title for title in titles), said
    cells = nbformat.read(tree / "notebooks/start.ipynb", as_version=4).cells
    assert len(cells) <= 15
    page = (ROOT / "docs/start.md").read_text()
    assert all(c.source.splitlines()[-1].replace("../docs/", "") in page for c in cells), "make docs"
    assert all((ROOT / "docs" / name).is_file() for name in re.findall(r'<img src="(start/[^"]+)"', page))


def test_a_second_run_starts_no_kernel(tree):
    before = times(tree)
    again = demo.timed_run(tree, "smoke")
    assert again.outcomes == dict.fromkeys(STAGES, "up to date")
    assert times(tree) == before
    seconds = demo.stage_seconds(tree, "smoke")
    assert list(seconds) == list(STAGES) and again.seconds < sum(seconds.values())


def test_the_demo_is_timed_in_a_repository_without_outputs(tree, tmp_path):
    copy = demo.copy_repository(tree, tmp_path)
    assert sorted(p.name for p in copy.iterdir()) == ["lib", "notebooks", "params"]
    with pytest.raises(DriftbookError, match="no-such"):
        demo.timed_run(copy, "no-such")


def test_editing_prose_draws_one_report_again(tree):
    before = times(tree)
    path = tree / "notebooks/cluster.ipynb"
    notebook = json.loads(path.read_text())
    prose = next(c for c in reversed(notebook["cells"]) if c["cell_type"] == "markdown")
    prose["source"] = "A sentence that was not there before."
    path.write_text(json.dumps(notebook))
    assert "smoke/cluster: draws its report again\n  prose: edited\n" in driftbook(tree, "why", "smoke")
    expected = dict.fromkeys(STAGES, "up to date") | {"cluster": "report drawn again"}
    assert outcome(driftbook(tree, "run", "smoke")) == expected
    assert "A sentence that was not there before." in (tree / "outputs/smoke/cluster/report.html").read_text()
    assert times(tree) == before


def test_editing_the_map_runs_cluster_and_validate_alone(tree):
    before = times(tree)
    path = tree / "lib/driftbook/discovery/maps.py"
    path.write_text(path.read_text() + "\n\nEDITED = True\n")
    said = driftbook(tree, "why", "smoke")
    assert "smoke/cluster: runs\n  driftbook/discovery/maps.py: edited\n" in said
    assert "smoke/validate: runs\n  cluster runs again\n" in said
    expected = dict.fromkeys(STAGES, "up to date") | {"cluster": "done", "validate": "done"}
    assert outcome(driftbook(tree, "run", "smoke")) == expected
    assert {s for s, t in times(tree).items() if t != before[s]} == {"cluster", "validate"}
    # Every text was embedded before.
    assert json.loads((tree / "outputs/smoke/cluster/metrics.json").read_text())["embedded"] == 0


def test_a_judges_key_is_in_no_artefact_and_no_log_of_good_and_of_failed_runs(tree, monkeypatch):
    monkeypatch.setenv("CANARY_KEY", "sk-canary-4711")
    path = tree / "params/smoke.yml"
    plain = path.read_text()

    def answer(body):
        labels = "<statements>" not in body["messages"][1]["content"]
        return '[{"answer": "A", "does": "hedges its claims", "quote": "the"}]' if labels else Server.rate(body)

    with Server(script=[401], answer=answer) as server:  # the error's text quotes the key, as some servers do
        judge = f"{{kind: endpoint, model: m, base_url: {server.url}, api_key_env: CANARY_KEY}}"
        judges = f"labeller: llm\n  labeller_judge: {judge}\n  judges: {{cheap: {judge}}}\n  cascade: expensive_only"
        path.write_text(plain.replace("labeller: phrases\n  judges: {cheap: {kind: lexicon}}", judges))
        words = [sys.executable, "-m", "driftbook", "run", "smoke"]
        environment = {**os.environ, "PYTHONPATH": str(tree / "lib")}
        failed = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
        assert failed.returncode != 0 and "401" in failed.stdout + failed.stderr
        at_first = len(server.headers)  # those on their way together with the refused one
        evidence = [p for p in (tree / "outputs/smoke/validate.failed").rglob("*") if p.is_file()]
        assert evidence and [p for p in evidence if b"canary-4711" in p.read_bytes()] == []
        good = driftbook(tree, "run", "smoke")
        sent = [h["authorization"] for h in server.headers]
    assert set(sent) == {"Bearer sk-canary-4711"} and len(sent) > 20
    ledger = pd.read_parquet(tree / "outputs/smoke/validate/data/ledger.parquet")
    assert ledger["calls"].sum() == len(sent) - at_first
    assert "canary-4711" not in failed.stdout + failed.stderr + good
    files = [p for p in (tree / "outputs").rglob("*") if p.is_file()]
    assert [p for p in files if b"canary-4711" in p.read_bytes()] == []
    path.write_text(plain)
