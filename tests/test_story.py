"""The start notebook as a page: pictures as files, tables and printed lines as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from nbformat import v4

import pages
from driftbench.story import written


def test_a_notebook_becomes_a_page_with_pictures_that_need_no_script(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DRIFTBOOK_RUN_DIR", str(tmp_path / "run"))
    data, _ = pages.forest()._repr_mimebundle_()
    table = {"text/html": '<div><style>.x{}</style><table class="dataframe"><tr><td>maybe</td></tr></table></div>'}
    outputs = [
        v4.new_output("stream", text="Changed: hedges\n"),
        v4.new_output("stream", name="stderr", text="a bar"),
        v4.new_output("display_data", data=data),
        v4.new_output("execute_result", data=table),
    ]
    cells = [v4.new_markdown_cell("# Story\n[more](../docs/README.md)"), v4.new_code_cell("x = 1", outputs=outputs)]
    page = written(v4.new_notebook(cells=cells), tmp_path / "start.md").read_text()
    assert "# Story\n[more](README.md)" in page and "```python\nx = 1\n```" in page
    assert "```\nChanged: hedges\n```" in page and "a bar" not in page
    assert "<table><tr><td>maybe</td></tr></table>" in page and "style" not in page
    (name,) = re.findall(r'<img src="(start/[^"]+\.svg)" alt="Interval plot', page)
    picture = (tmp_path / name).read_text()
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "<script" not in picture
