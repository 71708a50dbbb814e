"""How the code stands, as figures: ``python tests/house.py [ROOT ...]`` prints a table with a column for each checkout.

It reads the source and runs nothing of it but ``import driftbook``, so it also measures checkouts that do not work.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from test_architecture import FLOORS

LONG_FUNCTION, LONG_CELL, IMPORTS_TIMED = 50, 15, 3


@dataclass
class Import:
    module: str
    target: str
    inside: bool  # a function


@dataclass
class Figures:
    """What one checkout holds. Lines are those of the files, blank ones and comments too."""

    lines: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    modules: set[str] = field(default_factory=set)
    imports: list[Import] = field(default_factory=list)
    functions: list[tuple[str, int]] = field(default_factory=list)
    any_typed: int = 0
    type_checking: int = 0


def modules(lib: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(lib.rglob("*.py")):
        if path.relative_to(lib).parts[0] in ("driftbook", "driftbench"):
            name = ".".join(path.relative_to(lib).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def package(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def measure(lib: Path) -> Figures:
    found = Figures(modules={name for name, _ in modules(lib)})
    for name, path in modules(lib):
        text = path.read_text()
        found.lines[name.split(".")[0]] += text.count("\n")
        tree, home = ast.parse(text), package(name, path)
        found.files[home] += 1
        found.names[home] += len(public(tree))
        look(tree, name, found)
    return found


def public(tree: ast.Module) -> set[str]:
    """The public names that a module defines, without those that it imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)}
    return {n for n in names if not n.startswith("_")}


def look(node: ast.AST, module: str, found: Figures, inside: bool = False) -> None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        found.imports += [Import(module, t, inside) for t in targets(node, found.modules)]
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        found.type_checking += 1
        return  # read by type checkers alone: nothing is imported
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        inside = True
        found.functions.append((f"{module}.{node.name}", node.end_lineno - node.lineno + 1))
        a = node.args
        said = [p.annotation for p in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if p]
        found.any_typed += sum(ast.unparse(s) == "Any" for s in [*said, node.returns] if s)
    for child in ast.iter_child_nodes(node):
        look(child, module, found, inside)


def targets(node: ast.Import | ast.ImportFrom, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names)
        return
    plain = [a.name for a in node.names if f"{node.module}.{a.name}" not in known]
    yield from (f"{node.module}.{a.name}" for a in node.names if a.name not in plain)
    if plain:
        yield str(node.module)


def floor(module: str) -> int | None:
    """None for driftbench, which stands beside the house, and for what ``FLOORS`` does not name."""
    known = {name: i for i, names in enumerate(FLOORS.values()) for name in names.split()}
    parts = module.split(".")[1:] if module.startswith("driftbook.") else []
    return next((known[n] for k in range(len(parts), 0, -1) if (n := ".".join(parts[:k])) in known), None)


def upward(found: Figures) -> list[str]:
    pairs = {(i.module, i.target) for i in found.imports if i.target in found.modules}
    floors = {m: floor(m) for m in found.modules}
    return sorted(
        f"{m} -> {t}"
        for m, t in pairs
        if floors[m] is not None and floors[t] is not None and floors[m] < floors[t]  # type: ignore[operator]
    )


def circles(found: Figures) -> list[list[str]]:
    """Modules that import each other, at the top or inside functions."""
    edges: dict[str, set[str]] = {m: set() for m in found.modules}
    for i in found.imports:
        if i.target in edges and i.target != i.module:
            edges[i.module].add(i.target)
    reach = {m: reachable(m, edges) for m in edges}
    groups = {frozenset(n for n in reach[m] if m in reach[n]) for m in edges if m in reach[m]}
    return sorted(sorted(g) for g in groups)


def reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen, waiting = set(), list(edges[start])
    while waiting:
        if (module := waiting.pop()) not in seen:
            seen.add(module)
            waiting += edges[module]
    return seen


def long_cells(root: Path, bench: bool) -> int:
    count = 0
    for path in root.glob("notebooks/**/*.ipynb"):
        if path.name.startswith("bench-") == bench and ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text())["cells"]
            count += sum(c["cell_type"] == "code" and len(_lines(c["source"])) > LONG_CELL for c in cells)
    return count


def _lines(source: str | list[str]) -> list[str]:
    return "".join(source).strip().splitlines()


def import_seconds(lib: Path) -> float:
    code = "import time; t = time.perf_counter(); import driftbook; print(time.perf_counter() - t)"
    command, env = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(lib)}
    return min(float(subprocess.check_output(command, env=env)) for _ in range(IMPORTS_TIMED))


def rows(root: Path) -> tuple[dict[str, str], list[str]]:
    """The table's column of one checkout, and what is to be read below it: circles and imports upward by name."""
    found = measure(root / "lib")
    names, rings = upward(found), circles(found)
    inside = [i.target in found.modules for i in found.imports if i.inside]
    lengths = [n for _, n in found.functions]
    over = sum(n > LONG_FUNCTION for n in lengths)
    unknown = sorted(m for m in found.modules if m.startswith("driftbook.") and floor(m) is None and "__" not in m)
    figures = {f"lines of {part}": f"{n:,}" for part, n in sorted(found.lines.items(), reverse=True)}
    figures |= {f"{p}: files, public names": f"{n}, {found.names[p]}" for p, n in sorted(found.files.items())}
    figures |= {
        "import circles (modules in them)": f"{len(rings)} ({sum(map(len, rings))})",
        "imports upward": str(len(names)),
        "imports inside functions (of the project)": f"{len(inside)} ({sum(inside)})",
        f"functions over {LONG_FUNCTION} lines (share)": f"{over} ({over / len(lengths):.1%})",
        "parameters and results typed Any": str(found.any_typed),
        "TYPE_CHECKING blocks": str(found.type_checking),
        f"notebook cells over {LONG_CELL} lines (in benches)": f"{long_cells(root, False)} ({long_cells(root, True)})",
        "import driftbook": f"{import_seconds(root / 'lib') * 1000:.0f} ms",
    }
    notes = [f"circle: {' <-> '.join(ring)}" for ring in rings] + [f"upward: {name}" for name in names]
    return figures, notes + [f"on no floor: {m}" for m in unknown]


def main(roots: list[Path]) -> None:
    columns = [rows(root.resolve()) for root in roots]
    labels = list(dict.fromkeys(label for figures, _ in columns for label in figures))
    labels.sort(
        key=lambda label: (0, "") if label.startswith("lines") else (1, label) if ": files" in label else (2, "")
    )
    width = max(map(len, labels))
    for label in labels:
        print(label.ljust(width), *(figures.get(label, "-").rjust(14) for figures, _ in columns))
    for root, (_, notes) in zip(roots, columns, strict=True):
        print("", f"{root}:", *notes, sep="\n  ")


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [Path(__file__).parent.parent])
