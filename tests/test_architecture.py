"""The imports of the library, read from its text: one way down, no circles, and light where it must be."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

LIB = Path(__file__).parent.parent / "lib"

# From the ground up: a module imports from its own floor and those below. The longest name that fits decides.
FLOORS = {
    "ground": "errors files conversations hashes numbers workers store replies ledger chat prompts prompt_files "
    "text_tables discovery.splits sections members stage exchange behaviours.words "
    "behaviours.measure",
    "statistics": "auc evidence.dynamics evidence.eprocess evidence.intervals evidence.levels evidence.multiplicity "
    "evidence.paired evidence.rubrics evidence.shifts evidence.swaps evidence.wins discovery.hypotheses "
    "discovery.two_sample",
    "models": "models judges parameters interventions engines processes scale",
    "discovery": "discovery behaviours",
    "evidence": "evidence",
    "stages": "traits capture decode cluster validate series",
    "workbook": "workbook __main__",
    "reports": "report",
    "front": "front",
}
# Libraries that take from a tenth of a second to many seconds: a function may import them by itself where what else
# its module does can go without, as `driftbook why`, `plan` and `--help` do, or who finds all answers in a cache.
HEAVY = frozenset(
    {
        *("IPython", "datasets", "evoc", "fast_hdbscan", "gguf", "nbconvert", "nbformat", "numpy", "openai", "pandas"),
        *("papermill", "peft", "plotly", "py3langid", "pyarrow", "ray", "ruptures", "scipy", "sentence_transformers"),
        *("sklearn", "torch", "torchao", "tqdm", "transformers", "umap", "vllm"),
    }
)
# The class of all kinds of intervention names in its signatures what a kind opens; it imports none of it.
NAMES_TYPES_ABOVE = {"driftbook.sections"}


class Import(NamedTuple):
    """``name`` is dotted and whole; ``module`` is its module where it is one of ours, else its top-level name."""

    name: str
    module: str
    line: int
    late: bool
    typing: bool


def file_of(module: str) -> Path | None:
    stem = LIB.joinpath(*module.split("."))
    return next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)


def all_modules(package: str) -> dict[str, Path]:
    names = {".".join(p.relative_to(LIB).with_suffix("").parts): p for p in LIB.glob(f"{package}/**/*.py")}
    return {name.removesuffix(".__init__"): path for name, path in sorted(names.items())}


def nodes(tree: ast.AST, late: bool = False, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(tree):
        inside = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checked = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield child, inside, checked
        yield from nodes(child, inside, checked)


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    found = []
    for node, late, typing in nodes(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import; name the module"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            owner = name
            while "." in owner and (owner.partition(".")[0] not in ("driftbook", "driftbench") or not file_of(owner)):
                owner = owner.rpartition(".")[0]
            found.append(Import(name, owner, node.lineno, late, typing))
    return tuple(found)


def ours(module: str) -> list[Import]:
    return [i for i in imports(module) if i.module.startswith("driftbook")]


@functools.cache
def heavy_behind(module: str) -> frozenset[str]:
    """The heavy libraries that importing ``module`` imports at once."""
    seen, todo, heavy = set(), [module], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            parents = [name.rpartition(".")[0]] if "." in name else []
            at_once = [i.module for i in imports(name) if not i.late and not i.typing]
            heavy |= HEAVY & set(at_once)
            todo += [m for m in (*at_once, *parents) if m.startswith("driftbook")]
    return frozenset(heavy)


def short(module: str) -> str:
    return module.removeprefix("driftbook.")


def floor(module: str) -> int:
    prefixes = [(p, level) for level, names in enumerate(FLOORS.values()) for p in names.split()]
    fits = [(len(p), level) for p, level in prefixes if f"{short(module)}.".startswith(f"{p}.")]
    assert fits, f"{module} stands on no floor: add it to FLOORS in {Path(__file__).name}"
    return max(fits)[1]


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of modules that import each other, by what each of them reaches."""
    reach = {}
    for start in edges:
        seen, todo = set(), list(edges[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += edges.get(name, ())
        reach[start] = seen
    rings = ({b for b in reach[a] if a in reach[b]} for a in edges if a in reach[a])
    return {frozenset(short(name) for name in ring) for ring in rings}


MODULES = list(all_modules("driftbook"))
FACE = "driftbook"
PACKAGES = [FACE, *(f"{FACE}.{p}" for p in ("discovery", "evidence", "models"))]  # of modules on several floors
# A measure may be a function of the user's, which the parameters name.
NAMED_BY_USERS = {"driftbook.behaviours.measure"}


def test_the_library_does_not_know_its_benches():
    assert not [(m, i.name) for m in MODULES for i in imports(m) if i.name.split(".")[0] == "driftbench"]


def test_there_are_no_circles_of_imports_those_in_functions_included():
    everything = [*MODULES, *all_modules("driftbench")]
    edges = {m: {i.module for i in ours(m) if not i.typing} - {m, FACE} for m in everything if m != FACE}
    for module, others in edges.items():  # Python imports the package of a module before the module
        packages = {other.rpartition(".")[0] for other in others} & set(edges)
        others |= {package for package in packages if not f"{module}.".startswith(f"{package}.")}
    assert circles(edges) == set()


def test_no_module_imports_from_a_floor_above():
    for module in set(MODULES) - set(PACKAGES):
        asked = [i for i in ours(module) if not (i.typing and module in NAMES_TYPES_ABOVE)]
        up = [i.name for i in asked if i.module not in PACKAGES and floor(i.module) > floor(module)]
        assert not up, f"{module}, on floor {floor(module)}, imports from above"


def test_every_import_says_what_it_imports():
    """The change keys read imports as they stand: a name that is put together at run time would be missed."""
    for module in set(MODULES) - NAMED_BY_USERS:
        text = file_of(module).read_text(encoding="utf-8")
        assert "import_module" not in text and "__import__" not in text, module


@pytest.mark.parametrize("module", MODULES)
def test_a_function_imports_only_what_is_heavy_and_what_its_module_can_go_without(module):
    for i in imports(module):
        if not i.late or module == FACE:
            continue
        where = f"{module}:{i.line} imports {i.name} in a function"
        if i.module.startswith("driftbook."):
            assert heavy_behind(i.module) - heavy_behind(module), f"{where}, and it costs nothing: import it at the top"
        else:
            assert i.module in HEAVY, f"{where}: import it at the top, or say in HEAVY that it is slow"
            here_already = i.module != "torch" and i.module in heavy_behind(module)
            assert not here_already, f"{where}, and it is imported already: import it at the top"


@pytest.mark.parametrize("module", [*MODULES, *all_modules("driftbench")])
def test_imports_in_a_function_say_why_they_are_there(module):
    """In a few words behind the first of them, or above it."""
    lines = ["", *file_of(module).read_text(encoding="utf-8").splitlines(keepends=True)]
    for line in {i.line for i in imports(module) if i.late and module != FACE}:
        while "#" not in lines[line] and lines[line - 1].lstrip(" ").startswith(("import ", "from ", "\n")):
            line -= 1
        why = "#" in lines[line] or lines[line - 1].lstrip().startswith("#")
        assert why, f"{module}:{line}: {lines[line].strip()}  # what it costs, or who does without"


@pytest.mark.parametrize("module", MODULES)
def test_what_only_type_checkers_import_is_heavy(module):
    for i in imports(module):
        if i.typing and module not in NAMES_TYPES_ABOVE:
            behind = heavy_behind(i.module) if i.module.startswith("driftbook.") else {i.module} & HEAVY
            assert behind - heavy_behind(module), f"{module}:{i.line}: {i.name} can be imported plainly"


def test_torch_is_imported_at_once_by_models_alone():
    """Settings that torch reads when it is imported stand in driftbook.models: whoever imports it passes there."""
    early = {m for m in MODULES for i in imports(m) if i.module == "torch" and not i.late and not i.typing}
    assert {m for m in early if not m.startswith("driftbook.models.")} == set()


@pytest.mark.parametrize("module", ["driftbook", "driftbook.workbook.cli", "driftbook.workbook.state"])
def test_light_commands_import_nothing_heavy(module):
    assert heavy_behind(module) == set()


def test_importing_the_package_changes_nothing_and_loads_nothing():
    code = (
        "import logging, os, sys\n"
        "before = dict(os.environ)\n"
        "import driftbook\n"
        "assert dict(os.environ) == before, set(os.environ) ^ set(before)\n"
        "names = ('torchao', 'torch.utils._pytree')\n"
        "assert [logging.getLogger(n).level for n in ('', *names)] == [logging.WARNING, 0, 0]\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(LIB)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "pydantic", "yaml", "safetensors"})


def test_whoever_opens_a_model_gets_threads_that_wait_without_spinning():
    code = (
        "import logging, os, sys\n"
        "import driftbook.models\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'torch' not in sys.modules\n"
        "assert logging.getLogger('torchao').level == logging.ERROR\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"PYTHONPATH": str(LIB)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    set_by_user = environment | {"OMP_WAIT_POLICY": "ACTIVE"}
    asked = "import driftbook.models, os; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", asked], env=set_by_user, capture_output=True, text=True, check=True)
    assert done.stdout == "ACTIVE\n"


@pytest.mark.parametrize(("before", "after"), [(700, 5_000), (20_000, 20_000), (0, 0)])
def test_whoever_opens_a_model_collects_garbage_seldom_and_one_who_chose_keeps_the_choice(before, after):
    code = f"import gc; gc.set_threshold({before}, 7, 9); import driftbook.models; print(*gc.get_threshold())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(LIB)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(after), "7", "9"], done.stderr


def test_what_captures_imports_no_tables():
    assert heavy_behind("driftbook.models.tier3") == {"numpy", "scipy", "torch", "transformers"}


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {frozenset("bc")}
    assert circles({"a": {"b"}, "b": {"c"}}) == set()
