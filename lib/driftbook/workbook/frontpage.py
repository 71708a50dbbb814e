"""The front page of an experiment: four questions, answered in sentences, with the best picture of each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from pydantic import ValidationError
from pydantic_core import PydanticKnownError

from driftbook.errors import DriftbookError
from driftbook.members import experiment_at
from driftbook.parameters import STAGES
from driftbook.sections import Intervention, of_kind
from driftbook.workbook.blindspots import blind_spots
from driftbook.workbook.claims import read_findings, read_table
from driftbook.workbook.page import Link, build_page, data_size, fill, read_notebook, still
from driftbook.workbook.records import (
    Headline,
    commit,
    failed,
    finite,
    headlines,
    read_record,
    write_page,
)
from driftbook.workbook.tables import html_table
from driftbook.workbook.wording import duration

LIVE_BUDGET = 1_200_000  # characters of data that live pictures may add to the front page
# The four questions, and the stages that answer them: the first is the one whose answer leads.
FOUR = (
    ("Where do the two differ at all?", ("decode",)),
    ("Which behaviours moved, by how much?", ("cluster",)),
    ("Where inside does it show?", ("capture", "traits")),
    ("Which of these claims are real?", ("validate",)),
)


@dataclass(frozen=True)
class Part:
    """One stage on the front page."""

    stage: str
    record: Mapping[str, Any]
    answer: str
    headlines: list[Headline]
    figures: tuple[Markup, ...]
    """Those that its notebook marks as its best, in its order; the first one where none is marked."""
    some_are_still: bool = False


@dataclass(frozen=True)
class Question:
    text: str
    parts: list[Part]
    missing: list[str]


def render_experiment(folder: Path) -> Path:
    """``index.html`` of ``outputs/<experiment>`` from the good runs in it; failed and missing stages are named.

    Raises ``DriftbookError`` when the folder holds no run at all.
    """
    folder = Path(folder)
    name = experiment_at(folder)
    good = [s for s in STAGES if (folder / s / "run.json").is_file()]
    broken = [_broken(folder, s) for s in STAGES if (folder / f"{s}.failed" / "run.json").is_file()]
    if not good and not broken:
        raise DriftbookError(f"{folder} holds no run: make run EXP={name}")
    parts = {stage: _part(folder, stage) for stage in good}
    params = _params(parts)
    change = _change(params)
    questions = [
        Question(text, [parts[s] for s in stages if s in parts], [s for s in stages if s not in parts])
        for text, stages in FOUR
    ]
    questions = _within_budget(questions)
    findings = read_findings(folder)
    body = fill(
        "experiment.html.j2",
        title=_title(params, name),
        experiment=name,
        base=_model(params.get("base") or {}),
        intervention=_intervention(params.get("intervention") or {}),
        single=change is not None and not change.changes,
        description=_description(folder, name),
        questions=questions,
        broken=broken,
        findings=findings,
        claims_table=_claims_table(findings),
        stages=[_row(folder, s) for s in good],
        blind_spots=blind_spots(folder, findings),
        asked=_asked(folder),
    )
    page = build_page(
        title=f"{_title(params, name)} · {name}",
        body=body,
        crumb=f"driftbook · {name}",
        links=[
            Link("All experiments", "../index.html") if name == folder.name else Link("Series", "../../index.html"),
            *(Link(s, f"{s}/report.html") for s in good),
        ],
    )
    return write_page(folder / "index.html", page)


def alone(page: str) -> str:
    """A front page that stands by itself, away from its reports: what led to other files becomes plain text."""
    page = re.sub(r"<nav\b.*?</nav>", "", page, flags=re.S)
    return re.sub(r'<a href="(?!#)[^"]*">(.*?)</a>', r"\1", page, flags=re.S)


def _part(folder: Path, stage: str) -> Part:
    record = read_record(folder / stage)
    notebook = folder / stage / "notebook.ipynb"
    best = read_notebook(notebook).best if notebook.is_file() else ()
    return Part(
        stage,
        record,
        str(record.get("answer") or ""),
        headlines((record.get("headlines") or [])[:4]),
        tuple(Markup(figure) for figure in best),
    )


def _within_budget(questions: list[Question]) -> list[Question]:
    """The front page is the one that people send: pictures whose data is large stay still and link to their report."""
    left, out = LIVE_BUDGET, []
    for question in questions:
        parts = []
        for part in question.parts:
            figures = []
            for figure in part.figures:
                size = data_size(figure)
                figures.append(still(figure) if size > left else figure)
                left -= size if size <= left else 0
            parts.append(replace(part, figures=tuple(figures), some_are_still=tuple(figures) != part.figures))
        out.append(replace(question, parts=parts))
    return out


def _broken(folder: Path, stage: str) -> dict[str, Any]:
    record = read_record(folder / f"{stage}.failed")
    failure = record.get("failure") or record.get("error") or {}
    return {
        "stage": stage,
        "reason": str(failure.get("reason") or "no reason was recorded"),
        "started": record.get("started", ""),
    }


def _row(folder: Path, stage: str) -> dict[str, Any]:
    record = read_record(folder / stage)
    return {
        "stage": stage,
        "when": str(record.get("finished") or record.get("started") or "")[:16].replace("T", " "),
        "duration": duration(float(record["seconds"])) if finite(record.get("seconds")) else "",
        "memory": f"{record['peak_rss_mb']:,.0f} MB" if finite(record.get("peak_rss_mb")) else "",
        "commit": commit(record["git"], 10) if record.get("git") else "",
        "device": _device(record.get("device")),
        "failed": failed(record),
        "key": str(record.get("key", ""))[:12],
    }


def _device(device: Any) -> str:
    if isinstance(device, Mapping):
        name, why = device.get("device") or device.get("name") or "", device.get("why") or device.get("reason") or ""
        return f"{name} ({why})" if why else str(name)
    return str(device or "")


def _params(parts: Mapping[str, Part]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for part in parts.values():
        found = {**((part.record.get("components") or {}).get("params") or {}), **found}
    return found


def _description(folder: Path, name: str) -> str:
    """What the experiment file says of itself; it is no parameter of any run, so it is read where it stands."""
    path = folder.parent.parent / "params" / f"{name}.yml"
    if not path.is_file():
        return ""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return ""  # the run that this page describes was made from an earlier, valid file
    return str(value.get("description") or "") if isinstance(value, dict) else ""


def _asked(folder: Path) -> str:
    """What the two models were asked, in one sentence: without it no number on the page has a meaning."""
    path = folder / "decode" / "data" / "prompts.parquet"
    if not path.is_file():
        return ""
    prompts = read_table(path)
    families = f" of {prompts['family'].nunique()} kinds" if "family" in prompts else ""
    held_out = int((prompts["split"] == "validate").sum()) if "split" in prompts else 0
    tested = "; what the answers suggested is tested where it was not suggested" if held_out else ""
    return f"Both models were asked the same {len(prompts):,} prompts{families}{tested}."


def _title(params: Mapping[str, Any], name: str) -> str:
    intervention = params.get("intervention") or {}
    if not intervention:
        return f"Experiment {name}"
    base = str((params.get("base") or {}).get("model", "the base model")).removeprefix("bundled:")
    change = _change(params)
    return change.title(base) if change else f"How did {base} change by {intervention.get('kind')}?"


def _change(params: Mapping[str, Any]) -> Intervention | None:
    """The intervention that a run recorded; None for one that is not known here, as a kind that is gone."""
    try:
        return of_kind(params.get("intervention"))
    except (ValidationError, PydanticKnownError):
        return None


def _model(spec: Mapping[str, Any]) -> str:
    revision = f" at {spec['revision']}" if spec.get("revision") else ""
    return f"{spec.get('model', 'not recorded')}{revision}"


def _intervention(spec: Mapping[str, Any]) -> str:
    if not spec:
        return "not recorded"
    rest = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "kind" and v not in (None, "", "auto", []))
    return f"{spec.get('kind')}{f' ({rest})' if rest else ''}"


_CLAIM_COLUMNS = (
    *("claim", "direction", "status", "scope", "q_value", "e_value", "win_rate", "win_low", "win_high", "auc"),
    *("explained_by", "prompts", "prompts_needed"),
)


def _claims_table(findings: Any) -> Markup:
    if findings is None or not len(findings.table):
        return Markup("")
    columns = [c for c in _CLAIM_COLUMNS if c in findings.table]
    return Markup(html_table(findings.table, caption="all claims", columns=columns, max_rows=200))
