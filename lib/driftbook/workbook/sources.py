"""Which sources a notebook's code reaches, by the imports as they stand in the text: nothing is imported to find out.

What counts of a source is its syntax tree without docstrings, so that prose, comments and layout may be edited. A
module counts whole, constants and defaults included, and so do the modules that it imports, inside functions and for
type checkers too.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from driftbook.errors import DriftbookError
from driftbook.hashes import remembered_hash

PACKAGE = Path(__file__).parents[1]
BENCHES = "driftbench"  # the package of the benches, beside this one
# These carry a run and compute nothing: what lies behind the runner draws reports, and the other one prints.
MACHINERY = ("driftbook.workbook.progress", "driftbook.workbook.runner")
MAGIC = re.compile(r"(?m)^\s*[%!].*$")


@dataclass(frozen=True)
class Source:
    """One module: a hash of what it says to Python, and the names that it imports."""

    digest: str
    imports: frozenset[str]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def cell_digest(code: str) -> str:
    """A hash of a notebook's cell that comments and layout leave alone; magics and a last ``;``, which hides a result,
    count. Raises ``DriftbookError`` when it is not valid Python."""
    return sha(repr((ast.dump(_parsed(code)), MAGIC.findall(code), code.rstrip().endswith(";"))))


def _parsed(code: str) -> ast.Module:
    try:
        return ast.parse(MAGIC.sub("", code))
    except SyntaxError as error:
        raise DriftbookError(
            f"the notebook's code is not valid Python: {error.msg}: {(error.text or '').strip()}"
        ) from None


def read_source(path: Path, module: str) -> Source:
    """Raises ``DriftbookError`` when the file is not valid Python."""
    return _source(path, module, path.stat().st_mtime_ns)


@functools.cache
def _source(path: Path, module: str, changed: int) -> Source:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise DriftbookError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imports = frozenset(_imports(tree, package))
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return Source(sha(ast.dump(tree)), imports)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """The tree and every statement in it, without their expressions, which are most of it."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            todo += getattr(node, part, ())


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that the code imports: modules, and functions and classes behind the name of theirs."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def reached(code: list[str], package: Path = PACKAGE) -> tuple[dict[str, str], set[str]]:
    """What notebook ``code`` reaches in the package and its benches, and what that imports from elsewhere.

    The face of the whole package (its ``__init__``) counts only for code that takes a name from it.

    Returns ``({file relative to the package's parent: sha256}, {top-level module})``.
    """
    modules, foreign = follow((name for cell in code for name in _imports(_parsed(cell), "")), package)
    files: dict[str, str] = {}
    for name, path in modules.items():
        files[str(path.relative_to(package.parent))] = read_source(path, name).digest
        if path.name == "__init__.py" and "." in name:
            data = filter(_is_data, path.parent.iterdir())
            files |= {str(p.relative_to(package.parent)): remembered_hash(p) for p in data}
    return dict(sorted(files.items())), foreign - set(sys.stdlib_module_names)


def follow(names: Iterable[str], package: Path) -> tuple[dict[str, Path], set[str]]:
    """The modules of the package and its benches that ``names`` lead to, with their files, and the top-level names of
    all others."""
    modules: dict[str, Path] = {}
    foreign, seen, todo = set[str](), set[str](), list(names)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        root = name.partition(".")[0]
        if root not in (package.name, BENCHES):
            foreign.add(root)
            continue
        while (path := module_file(name, package)) is None and name:
            name = name.rpartition(".")[0]  # a function or class of the module before the last dot
        if path is None or name in modules or name in MACHINERY:
            continue
        modules[name] = path
        todo += read_source(path, name).imports
        if name.count(".") > 1:
            todo.append(name.rpartition(".")[0])
    return modules, foreign


def module_file(name: str, package: Path) -> Path | None:
    """The file of a module of ``package`` or of its benches, which lie beside it; None for all other names."""
    stem = os.path.join(package.parent, *name.split("."))
    files = (f"{stem}.py", os.path.join(stem, "__init__.py"))
    return next((Path(file) for file in files if os.path.isfile(file)), None)


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc", ".pyi", ".md") and not path.name.startswith(".")
