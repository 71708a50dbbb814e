"""What README says of the quickstart stands on the page of its example."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?%?")


def example() -> str:
    """The text of the example, in one line."""
    html = (ROOT / "docs/example/index.html").read_text()
    text = re.sub(r"<script\b.*?</script>|<style\b.*?</style>|<[^>]*>", " ", html, flags=re.S)
    return " ".join(unescape(text).split())


def readme(heading: str = "") -> str:
    text = (ROOT / "README.md").read_text()
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0] if heading else text


def test_the_finding_at_its_top_is_the_verdict_of_the_example():
    quoted = " ".join(line.removeprefix("> ") for line in readme().split("\n") if line.startswith("> "))
    said = quoted.removeprefix("**Changed.** ")
    assert len(said) > 60 and said in example()


def test_every_figure_of_the_quickstart_is_one_of_the_example():
    section = readme("What the quickstart finds")
    figures = {n.rstrip(",") for n in NUMBER.findall(section)}
    assert len(figures) > 8 and figures <= {n.rstrip(",") for n in NUMBER.findall(example())}
