"""docs/cases.md: every situation names the tests that show what is done in it."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROW = re.compile(r"^\| .+ \| .+ \| .+ \| .+ \|$")


def cases() -> list[str]:
    """The rows of all tables, without their heads."""
    lines = (HERE.parent / "docs" / "cases.md").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("|") and not line.startswith(("| Situation", "|---"))]


def test_every_situation_names_tests_that_exist():
    for case in cases():
        assert ROW.match(case), f"no row of four columns: {case}"
        named = re.findall(r"`(\w+\.py)::(\w+)`", case)
        assert named, f"no test is named: {case}"
        for file, test in named:
            text = (HERE / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", text, re.MULTILINE), f"there is no {file}::{test}: {case}"


def test_no_situation_stands_twice():
    situations = [case.split(" | ")[0] for case in cases()]
    assert len(set(situations)) == len(situations)
