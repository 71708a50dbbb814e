"""What differs between two experiments: parameters, sources, packages, numbers, claims. What is alike is not said."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driftbook.errors import DriftbookError
from driftbook.members import experiment_at
from driftbook.parameters import STAGES
from driftbook.workbook.keys import flat
from driftbook.workbook.runs import read_json

# Of every run another, whatever was run.
INCIDENTAL = ("params.experiment", "metrics.seconds", "metrics.peak_rss_mb")


@dataclass(frozen=True)
class Difference:
    """One line: where, and the value on either side (None: not there)."""

    stage: str
    what: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Comparison:
    a: str
    b: str
    differences: list[Difference] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)


def compare(a: Path, b: Path) -> Comparison:
    """Compare two experiment folders (``outputs/<experiment>``) by their ``run.json`` and ``metrics.json`` alone.

    Raises ``DriftbookError`` when one of them holds no run.
    """
    runs_a, runs_b = _runs(a), _runs(b)
    found: list[Difference] = []
    for stage in (s for s in runs_a if s in runs_b):
        left, right = _facts(runs_a[stage]), _facts(runs_b[stage])
        for what in dict.fromkeys((*left, *right)):
            if left.get(what) != right.get(what) and what not in INCIDENTAL:
                found.append(Difference(stage, what, left.get(what), right.get(what)))
    names = experiment_at(a), experiment_at(b)
    return Comparison(
        *names, found, [s for s in runs_a if s not in runs_b], [s for s in runs_b if s not in runs_a]
    )


def _runs(folder: Path) -> dict[str, Path]:
    places = {folder.name: folder} if folder.name.startswith("bench-") else {s: folder / s for s in STAGES}
    runs = {("bench" if s == folder.name else s): p for s, p in places.items() if (p / "run.json").is_file()}
    if not runs:
        raise DriftbookError(f"{folder} holds no finished run: make run EXP={experiment_at(folder)}")
    return runs


def _facts(folder: Path) -> dict[str, Any]:
    """Everything of one run that is worth a line, flat."""
    run = read_json(folder / "run.json")
    metrics = read_json(folder / "metrics.json")
    parts = run["components"]
    return {
        **{f"params.{k}": v for k, v in flat(parts["params"]).items()},
        **{f"code.cell {i}": v[:12] for i, v in enumerate(parts["cells"], 1)},
        **{f"source.{k}": v[:12] for k, v in parts["sources"].items()},
        **{f"input.{k}": v[:12] for k, v in parts["inputs"].items()},
        **{f"package.{k}": v for k, v in parts["versions"].items()},
        **{f"metrics.{k}": v for k, v in metrics.items()},
        **{f"answer.{h['label']}": _headline(h) for h in run.get("headlines", [])},
    }


def _headline(headline: dict[str, Any]) -> str:
    text = f"{headline['value']}{headline.get('unit', '')}"
    if headline.get("low") is not None:
        text += f" [{headline['low']}, {headline['high']}]"
    return text


def written(comparison: Comparison) -> str:
    """The comparison as lines for a terminal."""
    lines = [f"{comparison.a} | {comparison.b}"]
    lines += [f"  {stage}: only in {comparison.a}" for stage in comparison.only_a]
    lines += [f"  {stage}: only in {comparison.b}" for stage in comparison.only_b]
    stage = ""
    for difference in comparison.differences:
        if difference.stage != stage:
            stage = difference.stage
            lines.append(f"  {stage}")
        lines.append(f"    {difference.what}: {_short(difference.a)} | {_short(difference.b)}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing differs"])


def _short(value: Any) -> str:
    text = "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
