"""One HTML file that opens from disk with the network cut: the page around what a notebook said.

A content security policy in the page forbids every request, and every script but the page's own (by nonce), so that a
slip in escaping shows as text that did not run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import plotly
from markupsafe import Markup

from driftbook.errors import DriftbookError
from driftbook.parameters import STAGES
from driftbook.workbook.glossary import headings_in, terms_in
from driftbook.workbook.packing import escape, pack, script_json
from driftbook.workbook.theme import ASSETS, asset, style, theme

# What a terminal or a parser would act on is no text: it is shown as a character that is none.
_CONTROL = dict.fromkeys([c for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r"], "\ufffd")


@dataclass(frozen=True)
class Link:
    """An entry of the page's navigation; ``href`` is relative."""

    text: str
    href: str = ""
    here: bool = False


# Every page of an experiment leads to every other: name, and where it lies below outputs/<experiment>/.
PAGES = (("front page", "index.html"), ("answers", "answers.html"), *((s, f"{s}/report.html") for s in STAGES))


def links(experiment: Path, here: str) -> list[Link]:
    """The navigation of a page of ``outputs/<experiment>``; ``here`` is its name in ``PAGES``. The front page and what
    is drawn from *decode* stand there before they are drawn."""
    up = "../" if here in STAGES else ""
    there = [s for s in STAGES if s == here or (experiment / s / "run.json").is_file()]
    known = {"front page", *(["answers"] if "decode" in there else []), *there}
    found = [Link(name, up + href, here=name == here) for name, href in PAGES if name in known]
    if experiment.parent.name == "members":
        return [*found, Link("series", f"{up}../../index.html")]
    return [*found, Link("all experiments", f"{up}../index.html")]


@cache
def packed_plotly(whole: bool) -> str:
    """plotly.js, gzip and base64: ``whole`` from the installed plotly package (4.8 MB become 2.0), or its bundle of
    Cartesian charts (1.5 MB become 0.7), which draws all pictures but those on WebGL."""
    folder = Path(plotly.__file__).parent / "package_data" if whole else ASSETS
    return pack((folder / ("plotly.min.js" if whole else "plotly-cartesian.min.js")).read_bytes())


def plotly_for(html: str) -> str:
    """The packed plotly.js that the figures of a page need; none where all of them do without."""
    kinds = set(re.findall(r'<figure class="db-figure" data-kind="(\w+)"', html))
    return packed_plotly("map" in kinds or "gl" in kinds) if kinds & {"plot", "gl", "map"} else ""


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(ASSETS)
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    return templates


def fill(template: str, **values: Any) -> Markup:
    """A template of ``assets`` filled in. Every value is escaped unless it is ``Markup``."""
    return Markup(_templates().get_template(template).render(**values))


def build_page(
    *, title: str, body: Markup, crumb: str = "driftbook", links: Sequence[Link] = (), scripts: Sequence[str] = ()
) -> str:
    """The whole file around ``body``; ``title`` and ``crumb`` are text, ``scripts`` names more files of ``assets``.
    Terms of the glossary that the page uses are explained where they stand, by its script.

    plotly.js comes along only when ``body`` holds a plot or a map, and whole only where WebGL is needed.
    """
    body = Markup(without_outside(body))
    kinds = set(re.findall(r'<figure class="db-figure" data-kind="(\w+)"', body))
    nonce = base64.b64encode(hashlib.sha256(body.encode("utf-8", "replace")).digest()[:18]).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}' 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; connect-src data: blob:; worker-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    needed = [name for name in ("core", "trace", "map") if name in kinds | {"core"}]
    code = [Markup(asset(f"{name}.js")) for name in (*needed, "terms", *scripts)]
    return fill(
        "page.html.j2",
        title=title,
        crumb=crumb,
        links=links,
        body=body,
        style=Markup(style(page=True)),
        policy=policy,
        nonce=nonce,
        scripts=code,
        terms=Markup(script_json(terms_in(body))),
        headings=Markup(script_json(headings_in(body))),
        theme=Markup(script_json(theme())),
        plotly=Markup(plotly_for(body)),
    ).translate(_CONTROL)


# ------------------------------------------------------------------------------------------------------------- notebook


@dataclass(frozen=True)
class Story:
    """What a notebook holds: its first heading and the rest as HTML, and its figures by themselves."""

    title: str
    html: Markup | str
    figures: tuple[str, ...]
    best: tuple[str, ...]
    """The figures that the notebook marks as its best; the first one where it marks none."""


def read_notebook(path: Path, failed_cell: int | None = None) -> Story:
    """An executed notebook as HTML. Data blocks that a figure left in ``figures/`` beside it are put back.

    Raises ``DriftbookError`` when the notebook or a figure's file cannot be read.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise DriftbookError(f"{path}: not a readable notebook ({error}); run the stage again") from error
    title = _take_title(notebook)
    _leave_out_defaults(notebook)
    _join_streams(notebook)
    if failed_cell is not None and 0 <= failed_cell < len(notebook.cells):
        notebook.cells[failed_cell].metadata["driftbook_failed"] = True
    figures, best = [], []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/html", "")
            if '<figure class="db-figure"' in text:
                figures.append(inline_files(text, path.parent))
                if output.get("metadata", {}).get("driftbook", {}).get("best"):
                    best.append(figures[-1])
    html = inline_files(_fragment(notebook), path.parent)
    return Story(title, Markup(html), tuple(figures), tuple(best or figures[:1]))


def _take_title(notebook: Any) -> str:
    """The text of the first heading, which leaves the notebook: the page has it as its one H1. Later H1s become H2s."""
    title = ""
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        lines = []
        fenced = False
        for line in cell.source.splitlines():
            fenced ^= line.lstrip().startswith("```")
            if not fenced and re.match(r"#\s+\S", line):
                if not title:
                    title = re.sub(r"[*_`]", "", line.lstrip("# ").strip())
                    continue
                line = f"#{line}"
            lines.append(line)
        cell.source = "\n".join(lines)
    return title


def _leave_out_defaults(notebook: Any) -> None:
    """When parameters were injected, the cell with the defaults says what did not hold: the report does not show it."""
    tags = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    if any("injected-parameters" in t for t in tags):
        for cell, own in zip(notebook.cells, tags, strict=True):
            if "parameters" in own:
                cell.source, cell.outputs = "", []


def _join_streams(notebook: Any) -> None:
    """One block per stream and cell: what libraries write to stderr comes in many pieces."""
    for cell in notebook.cells:
        streams: dict[str, Any] = {}
        outputs = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name in streams:
                streams[output.name].text += output.text
                continue
            if output.output_type == "stream":
                streams[output.name] = output
            outputs.append(output)
        if outputs:
            cell.outputs = outputs


def _fragment(notebook: Any) -> str:
    """The notebook as HTML. Outputs that are HTML already pass around nbconvert, which would parse and rewrite them."""
    from nbconvert import HTMLExporter  # a third of a second that `make why` need not pay

    kept: list[str] = []
    key = hashlib.sha256(nbformat.writes(notebook).encode()).hexdigest()[:16]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                kept.append(output["data"]["text/html"])
                output["data"] = {"text/html": f"<p>{key}-{len(kept) - 1}</p>"}
    exporter = HTMLExporter(template_name="basic", raw_template=asset("notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.exclude_anchor_links = True
    html, _ = exporter.from_notebook_node(notebook)
    return re.sub(rf"<p>{key}-(\d+)</p>", lambda match: kept[int(match[1])], html)


_FILE_BLOCK = re.compile(
    r'(<script type="application/json" class="db-block" [^>]*?) data-file="(figures/[0-9a-f]{20}\.b64)"></script>'
)


def inline_files(html: str, folder: Path) -> str:
    """Put the data blocks that lie in ``folder/figures`` back into their figures."""

    def put_back(match: re.Match[str]) -> str:
        file = folder / match[2]
        if not file.is_file():
            raise DriftbookError(f"{file}: the data of a figure is missing; run the stage again")
        return f"{match[1]}>{file.read_text()}</script>"

    return _FILE_BLOCK.sub(put_back, html)


# ---------------------------------------------------------------------------------------------------------------- size

_FIGURE = re.compile(r'<figure class="db-figure" data-kind="(\w+)".*?</figure>', re.S)
_BLOCK = re.compile(r'<script type="application/json" class="db-block" data-name="(\w+)"[^>]*>([^<]*)</script>')
LARGEST = 1_930_000  # bytes of a page without a map, its own style and scripts not counted
LARGEST_WITH_MAP = 5_400_000


def data_size(figure: str) -> int:
    """Characters that the data of a figure takes."""
    return sum(len(block[2]) for block in _BLOCK.finditer(figure))


def still(figure: str) -> Markup:
    """A figure without the data of its live picture: title, static picture, words, table and CSV stay."""
    kept = _BLOCK.sub(lambda block: block[0] if block[1] == "csv" else "", figure)
    return Markup(re.sub(r'(<figure class="db-figure" data-kind=)"\w+"', r'\1"still"', kept, count=1))


def within_size(html: str) -> str:
    """``html`` of a page in which the figures with the most data are still, where it would be too large to send around.

    Plots go first, then traces, then maps. What each shows is in its table, its CSV and the stage's data folder.
    """
    while True:
        figures = [(m[1], data_size(m[0]), m[0]) for m in _FIGURE.finditer(html) if m[1] != "still"]
        kinds = {kind for kind, *_ in figures}
        bound = LARGEST_WITH_MAP if kinds & {"map", "gl"} else LARGEST
        if not figures or len(html) + len(plotly_for(html)) <= bound:
            return html
        *_, largest = max(figures, key=lambda f: (("map", "trace", "gl", "plot").index(f[0]), f[1]))
        note = '<p class="db-still">A still picture: with its data this page would be too large to send around.</p>'
        html = html.replace(largest, still(largest).replace("<figcaption>", f"{note}<figcaption>", 1), 1)


# -------------------------------------------------------------------------------------------------------- outside links

_SCRIPT = re.compile(r"<script\b(?![^>]*\bclass=\"db-block\")[^>]*>.*?</script\s*>", re.S | re.I)
_TAG = re.compile(r"<[a-zA-Z][^<>]*>")
_OUTSIDE_ATTRIBUTE = re.compile(
    r"""\s(src|href|srcset|poster|action|formaction|data|xlink:href|background)\s*=\s*("[^"]*"|'[^']*'|[^\s>]+)""", re.I
)
_ANCHOR = re.compile(r"<a\b[^>]*?\bhref\s*=\s*(\"[^\"]*\"|'[^']*')[^>]*>(.*?)</a>", re.S | re.I)


def _is_inside(address: str) -> bool:
    """Fragments, data URIs and relative paths stay; anything with a scheme or a host leaves the file."""
    address = unescape(address).strip().strip("\x00").lower()
    return address.startswith(("#", "data:image/", "data:text/csv")) or not re.match(
        r"[a-z][a-z0-9+.-]*:|//|\\\\", address
    )


def without_outside(html: str) -> str:
    """HTML in which nothing leaves the file: scripts of others and frames are dropped, addresses become text.

    It guards against what libraries put into a cell's output and against links in prose; texts of models were escaped
    before. Data blocks hold no ``<`` and pass unchanged.
    """
    html = _SCRIPT.sub("", html)
    html = re.sub(r"<(iframe|object|embed|link|base|meta)\b[^>]*>(\s*</\1\s*>)?", "", html, flags=re.I)

    def anchor(match: re.Match[str]) -> str:
        address = match[1][1:-1]
        if _is_inside(address):
            return match[0]
        shown = "" if escape(unescape(address)) in match[2] else f" ({address})"
        return f'<span class="db-address">{match[2]}{shown}</span>'

    html = _ANCHOR.sub(anchor, html)

    def clean(match: re.Match[str]) -> str:
        return _OUTSIDE_ATTRIBUTE.sub(lambda a: a[0] if _is_inside(a[2].strip("\"'")) else "", match[0])

    return _TAG.sub(clean, html)
