"""The changes of a series: what ``interventions:`` in an experiment file says, one change after the other.

An entry is an intervention, with a ``name`` and a ``number`` (step, strength, bits) if it likes, or a range: one
parameter that holds a list (``coefficient: [0.1, 0.2]``, ``revision: [step-100, step-200]``, ``bits: [8, 4]``) or a
path with ``*``. Each change is an experiment of its own, ``<series>:<name>``; what it shares with the others comes from
the caches.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from driftbook.sections import KINDS, AnyIntervention, Section

SERIES = "series"  # the stage that reads all members
NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"


class Member(Section):
    """One change of a series."""

    name: str = Field(pattern=f"^{NAME}$", max_length=60)
    number: float | None = Field(None, allow_inf_nan=False, description="where it stands on the axis of the series")
    intervention: AnyIntervention


def expanded(entry: Any, info: ValidationInfo) -> list[Any]:
    """The members that one entry of ``interventions`` means, as mappings. Raises ValueError for two lists in an entry,
    and for a path that matches nothing."""
    if isinstance(entry, list):  # as a run hands it to its notebook
        return entry
    if not isinstance(entry, dict):
        raise ValueError("an entry is a mapping with kind")
    rest = {k: v for k, v in entry.items() if k not in ("name", "number")}
    given = {k: entry[k] for k in ("name", "number") if k in entry}
    found = {k: _values(entry.get("kind"), k, v, info.context) for k, v in rest.items()}
    ranges = {k: values for k, values in found.items() if values is not None}
    if not ranges:
        return [{"name": str(entry.get("kind")), "number": None} | given | {"intervention": rest}]
    if len(ranges) > 1 or "number" in given:
        said = " and ".join(ranges) if len(ranges) > 1 else f"number, and {next(iter(ranges))}"
        raise ValueError(f"{said}: one of them is the range of an entry, and gives the numbers; write several entries")
    ((field, values),) = ranges.items()
    labels = _labels(values)
    prefix = given.get("name") or ("" if isinstance(values[0], str) else field)
    return [
        {
            "name": "-".join(filter(None, (prefix, label))),
            "number": _number(value),
            "intervention": rest | {field: value},
        }
        for value, label in zip(values, labels, strict=True)
    ]


Members = list[Annotated[list[Member], BeforeValidator(expanded)]]


def member_name(experiment: str) -> tuple[str, str]:
    """(series, member) of ``series:member``; an experiment that is none has no member."""
    series, _, member = experiment.partition(":")
    return series, member


def experiment_at(folder: Path) -> str:
    """The name of the experiment whose outputs lie in ``folder``."""
    series = folder.parent.parent.name if folder.parent.name == "members" else ""
    return f"{series}:{folder.name}" if series else folder.name


def _values(kind: Any, field: str, value: Any, context: Any) -> list[Any] | None:
    """The values of a range; None for a parameter that is none."""
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    known = KINDS[kind].model_fields
    if isinstance(value, list) and value and field in known and "list" not in str(known[field].annotation):
        return value
    if isinstance(value, str) and "*" in value and field in (*KINDS[kind].files, *KINDS[kind].places):
        root = Path((context or {}).get("root", "."))
        found = sorted(glob.glob(str(Path(value).expanduser()), root_dir=root, recursive=True))
        if not found:
            raise ValueError(f"{field}: {value} matches nothing")
        return sorted((Path(p).as_posix() for p in found), key=lambda p: (_number(p) or 0.0, p))
    return None


def _labels(values: list[Any]) -> list[str]:
    """Short names: numbers as they are, texts without the parts of a path that all share."""
    if not all(isinstance(v, str) for v in values):
        return [f"{v:g}" if isinstance(v, int | float) else str(v) for v in values]
    parts = [[p for p in re.split(r"[/\\]", v) if p] for v in values]
    while len(values) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(values) > 1 and all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(p)).strip("-.")[:40] for p in parts]


def _number(value: Any) -> float | None:
    """The number itself, or the last one in a name (``step-200``)."""
    if isinstance(value, int | float):
        return float(value)
    found = re.findall(r"\d+(?:\.\d+)?", str(value))
    return float(found[-1]) if found else None


def repeated(members: list[Member]) -> Iterator[str]:
    """Names that several members have."""
    names = [m.name for m in members]
    yield from (n for n in dict.fromkeys(names) if names.count(n) > 1)
