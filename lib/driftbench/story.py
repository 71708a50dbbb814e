"""``notebooks/start.ipynb`` as a page with pictures: what a reader on GitHub sees of a notebook without outputs.

``python -m driftbench.story docs/start.md`` runs the notebook and writes the page, and its pictures as SVG beside it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from driftbook.workbook.runs import RUN_DIR, find_root

_STATIC = re.compile(
    r'<p class="db-figure-title">(.*?)</p>.*?<div class="db-static"[^>]*aria-label="(.*?)">(<svg.*?</svg>)', re.S
)
_LAYOUT = re.compile(r"<style.*?</style>|</?div[^>]*>|\s(class|style|border|id)=\"[^\"]*\"", re.S)
_LINES = 12  # of a printed output


def executed(path: Path) -> Any:
    """The notebook after a run, whose figures are still pictures."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}})
        client.execute(env={**os.environ, RUN_DIR: place})
    return notebook


def written(notebook: Any, page: Path) -> Path:
    """The page, and its pictures in a folder of its name. Outputs of progress bars are left out."""
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [f"<!-- made from notebooks/start.ipynb by python -m driftbench.story {page.name} -->"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace("](../docs/", "]("))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts += _shown(output, pictures, page)
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _shown(output: Any, pictures: Path, page: Path) -> list[str]:
    if output.output_type == "stream":
        lines = output.text.strip().splitlines()[:_LINES] if output.name == "stdout" else []
        return ["```\n" + "\n".join(lines) + "\n```"] if lines else []
    data = output.get("data", {})
    if found := _STATIC.search(data.get("text/html", "")):
        title, alt, svg = found.groups()
        name = re.sub(r"\W+", "-", title.lower()).strip("-")[:40]
        file = pictures / f"{len(list(pictures.glob('*.svg'))) + 1}-{name}.svg"
        file.write_text(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1), encoding="utf-8")
        return [f"**{title}**", f'<img src="{pictures.name}/{file.name}" alt="{alt}">']
    if "widget-view" in " ".join(data) or "text/html" not in data:
        return []
    return [_LAYOUT.sub("", data["text/html"]).strip()]


def main(argv: list[str]) -> int:
    page = Path(argv[0] if argv else "docs/start.md").resolve()
    folder = page.with_suffix("")
    for old in folder.glob("*.svg"):
        old.unlink()
    print(written(executed(find_root() / "notebooks/start.ipynb"), page))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
