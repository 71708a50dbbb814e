"""``driftbook check``: the gate of an experiment for a CI system, as lines, as JUnit XML and as Markdown."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from driftbook.errors import DriftbookError
from driftbook.evidence.gate import Allow, Answer, check, passed
from driftbook.numbers import number
from driftbook.parameters import Where
from driftbook.workbook.claims import read_table
from driftbook.workbook.runs import Layout

Answers = Mapping[str, Sequence[Answer]]
"""By experiment; a series has several."""


def check_experiment(name: str, layout: Layout, allow: Allow, where: Where) -> list[Answer]:
    """The rules, answered by the last good run of validate. Raises DriftbookError where there is none."""
    folder = layout.stage(name, "validate")
    if not (folder / "run.json").is_file():
        raise DriftbookError(f"{folder} holds no good run: make run EXP={name}")
    section = yaml.safe_load((folder / "params.yml").read_text(encoding="utf-8"))["validate"]
    claims, verdicts = (read_table(folder / "data" / f"{table}.parquet") for table in ("claims", "verdicts"))
    return check(allow, claims, verdicts, where, section["alpha"])


def check_series(names: Sequence[str], layout: Layout, allow: Allow, where: Where) -> dict[str, list[Answer]]:
    """The rules for every change of a series. One without a good run was left out of the series, and fails the gate.
    Raises DriftbookError where none has one."""
    ran = [n for n in names if (layout.stage(n, "validate") / "run.json").is_file()]
    said = "it has no good run, so nothing of it is known"
    left = Answer("a good run", "a good run", "run", "cannot be told", True, said)
    return {n: check_experiment(n, layout, allow, where) if n in ran or not ran else [left] for n in names}


def write(answers: Answers, folder: Path) -> tuple[Path, Path]:
    """``check.xml`` (JUnit) and ``check.md`` in ``folder``."""
    junit, summary = folder / "check.xml", folder / "check.md"
    junit.write_text(junit_xml(answers), encoding="utf-8")
    summary.write_text(markdown(answers), encoding="utf-8")
    return junit, summary


def junit_xml(answers: Answers) -> str:
    """A test suite an experiment, a test case a rule and behaviour. What cannot be told is a skipped test, unless it
    fails the gate."""
    top = ElementTree.Element("testsuites")
    for name, own in answers.items():
        failures = sum(a.failed for a in own)
        skipped = sum(a.state == "cannot be told" and not a.failed for a in own)
        counts = {"tests": len(own), "failures": failures, "skipped": skipped, "errors": 0}
        suite = ElementTree.SubElement(top, "testsuite", name=name, **{k: str(v) for k, v in counts.items()})
        for a in own:
            case = ElementTree.SubElement(suite, "testcase", classname=f"{name}.{a.family}", name=_title(a))
            if a.failed or a.state == "cannot be told":
                said = f"{a.state}: {a.said}{_between(a)}"
                ElementTree.SubElement(case, "failure" if a.failed else "skipped", message=said)
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def markdown(answers: Answers) -> str:
    """A heading and a table an experiment, what fails first."""
    lines = []
    for name, own in answers.items():
        lines += [f"## {name}: {summary(own)}", "", "| rule | answer | what was measured |", "|---|---|---|"]
        for a in sorted(own, key=lambda a: (not a.failed, a.state == "holds")):
            cells = (_title(a), f"**{a.state}**" if a.failed else a.state, a.said + _between(a))
            lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def summary(answers: Sequence[Answer]) -> str:
    """``passes: 3 hold, 1 cannot be told``."""
    words = {"broken": "broken", "holds": "hold", "cannot be told": "cannot be told"}
    count = {said: sum(a.state == state for a in answers) for state, said in words.items()}
    told = ", ".join(f"{n} {said}" for said, n in count.items() if n)
    return f"{'passes' if passed(answers) else 'FAILS'}: {told}"


def written(answers: Answers) -> str:
    """The answers as lines for a terminal."""
    lines = []
    for name, own in answers.items():
        lines.append(f"{name} {summary(own)}")
        lines += [f"  {a.state:16}{_title(a)} | {a.said}{_between(a)}" for a in own]
    return "\n".join(lines)


def _title(a: Answer) -> str:
    what = a.rule.partition(":")[0].strip().lower()
    return f"{a.behaviour} ({a.rule})" if what.startswith("family ") or what == "every behaviour" else a.rule


def _between(a: Answer) -> str:
    if math.isnan(a.low) or "%" not in a.rule:
        return ""
    return f"; {number(100 * a.low)}% to {number(100 * a.high)}% of the base's value"
