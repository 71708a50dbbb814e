"""Behaviours of the user: ``params/behaviours/*.yml``, and the lexicons of trait files, as measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from driftbook.behaviours.catalogue import measure_from, panel
from driftbook.behaviours.measure import Measure, words_measure
from driftbook.errors import DriftbookError, ParameterError
from driftbook.files import yaml_tree
from driftbook.models.traitfiles import read_traits

KINDS = ("words", "pattern", "python")
KEYS = ("name", "label", *KINDS, "unit", "place", "definition")


def read_own(patterns: Sequence[str], root: Path) -> list[Measure]:
    """The behaviours of the files, each checked: expressions compile, functions are there, names are unique.

    Args:
        patterns: files or globs, relative to ``root``. A file holds a behaviour or a list of them; a behaviour has
            ``name``, ``label``, one of ``words``, ``pattern`` and ``python``, and may have ``unit`` (share, number,
            rate; with python any), ``place`` (anywhere, opening, closing, start) and ``definition``.

    Raises:
        ParameterError: a file is missing or no YAML, or a behaviour cannot be read; names file, behaviour and key.
    """
    found: dict[str, Measure] = {}
    taken = {m.name: "the catalogue" for m in panel()}
    for path in _paths(patterns, root):
        for number, raw in enumerate(_behaviours(path), 1):
            name = raw.get("name") if isinstance(raw, dict) else None
            where = f"{path}: behaviour {name or number}"
            measure = _measure(raw, where)
            if measure.name in taken:
                raise ParameterError(f"{where}: name: stands in {taken[measure.name]} already; give it another")
            taken[measure.name] = str(path)
            found[measure.name] = measure
    return list(found.values())


def measures_of(patterns: Sequence[str], root: Path) -> list[Measure]:
    """The measures of ``validate.behaviours``: files of behaviours, and trait files (``.json``) with their lexicons.

    Raises ParameterError and PromptError as ``read_own`` and ``trait_measures`` do.
    """
    traits = [p for p in patterns if p.endswith(".json")]
    return [*read_own([p for p in patterns if p not in traits], root), *trait_measures(traits, root)]


def trait_measures(patterns: Sequence[str], root: Path) -> list[Measure]:
    """Two measures a trait file with a lexicon: its phrases, and those of its opposite, per 100 words.

    Raises PromptError for a trait file that cannot be read.
    """
    return [
        words_measure(phrases, unit="rate", name=f"trait_{trait.name}{suffix}", label=label, family="trait")
        for trait in read_traits(patterns, root, scenarios="natural")
        for suffix, label, phrases in (
            ("", f"phrases of {trait.name}", trait.positive_words),
            ("_opposite", f"phrases against {trait.name}", trait.negative_words),
        )
        if phrases
    ]


def _paths(patterns: Sequence[str], root: Path) -> list[Path]:
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(root.glob(pattern)) if any(c in pattern for c in "*?[") else [root / pattern]
        if not found or not found[0].is_file():
            raise ParameterError(f"behaviour file {pattern!r}: no such file under {root}")
        paths += found
    return list(dict.fromkeys(paths))


def _behaviours(path: Path) -> list[Any]:
    try:
        _, raw = yaml_tree(path)
    except DriftbookError as reason:
        raise ParameterError(f"{path}: not YAML: {reason}") from None
    if not isinstance(raw, dict | list) or not raw:
        raise ParameterError(f"{path}: holds no behaviour; write name, label and one of {', '.join(KINDS)}")
    return raw if isinstance(raw, list) else [raw]


def _measure(raw: Any, where: str) -> Measure:
    if not isinstance(raw, dict):
        raise ParameterError(f"{where}: is {raw!r}; write keys and values: {', '.join(KEYS)}")
    unknown = [str(k) for k in raw if k not in KEYS]
    if unknown:
        raise ParameterError(f"{where}: {unknown[0]}: no such key; a behaviour has {', '.join(KEYS)}")
    kinds = [k for k in KINDS if k in raw]
    if len(kinds) != 1:
        raise ParameterError(f"{where}: {', '.join(kinds) or 'words'}: write exactly one of {', '.join(KINDS)}")
    kind = kinds[0]
    for key in ("name", "label", *(k for k in ("pattern", "python", "unit", "place", "definition") if k in raw)):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise ParameterError(f"{where}: {key}: is {raw.get(key)!r}; write text")
    if not raw["name"].isidentifier():
        raise ParameterError(f"{where}: name: {raw['name']!r}; use letters, digits and underscores")
    if kind == "python" and "place" in raw:
        raise ParameterError(f"{where}: place: a function reads the whole answer; leave place out")
    try:
        return measure_from({"kind": kind, "family": "own", **raw})
    except DriftbookError as reason:
        raise ParameterError(f"{where}: {reason}") from None
