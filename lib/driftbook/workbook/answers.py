"""``answers.html``: every pair of answers of an experiment, to be searched, filtered and linked to; and
``answers.csv``, the same as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from driftbook.behaviours.words import stream_safe
from driftbook.prompts import SIDES
from driftbook.workbook.examples import Material, who_shows
from driftbook.workbook.packing import csv_text, pack, script_json
from driftbook.workbook.page import build_page, fill, links
from driftbook.workbook.records import write_page
from driftbook.workbook.wording import shorten

BUDGET = 5_000_000  # characters of packed answers that the page holds
PROBE = 400  # pairs that tell how much a pair takes
MARKED = 8  # pairs of a claim whose evidence is marked
CSV = "answers.csv"


def render_answers(experiment: Path, names: tuple[str, str], material: Material) -> Path | None:
    """``answers.html`` and ``answers.csv`` of ``outputs/<experiment>``; None where *decode* has not run.

    Pairs beyond the budget are left out of the page, those that show no claim first, and the page says so.
    """
    if not material.there:
        return None
    write_csv(material, experiment / CSV)
    every = [p for p in dict.fromkeys(material.texts["prompt_id"]) if p in material.asked]
    shown = _first(material, every)
    count, packed = _within(material, every, shown)
    claims = [_claim(row) for _, row in material.claims.iterrows()]
    body = fill(
        "answers.html.j2",
        names=names,
        experiment=experiment.name,
        claims=claims,
        held=count,
        total=len(every),
        answers=len(material.texts),
        data=Markup(packed),
        settings=Markup(script_json({"names": list(names), "claims": claims})),
    )
    page = build_page(
        title=f"Answers · {experiment.name}",
        body=Markup(body),
        crumb=f"{names[0]} → {names[1]}",
        links=links(experiment, "answers"),
        scripts=("answers",),
    )
    return write_page(experiment / "answers.html", page)


def write_csv(material: Material, path: Path) -> None:
    """Every answer a row: prompt, kind, split, model, text; the ids that pages link to."""
    texts = material.texts
    asked = {p: prompt.shown() for p, prompt in material.asked.items()}
    table = texts.assign(prompt=texts["prompt_id"].map(asked))
    first = ["text_id", "prompt_id", "family", "split", "side", "prompt", "text"]
    columns = [*(c for c in first if c in table), *(c for c in ("sample_index", "finish_reason") if c in table)]
    write_page(path, csv_text(table[columns]))


def _claim(row: Any) -> dict[str, Any]:
    return {"n": int(row["n"]), "id": row["hypothesis_id"], "text": shorten(row["text"], 120),
            "said": shorten(row["claim"], 240), "by": row["direction"]}  # fmt: skip


def _first(material: Material, every: list[str]) -> list[str]:
    """The prompts in the order in which a page that cannot hold all keeps them: those with examples of claims first."""
    examples = [
        p for _, claim in material.claims.iterrows()
        for p in material.showing(claim["hypothesis_id"], claim["direction"])["prompt_id"].head(50)
    ]  # fmt: skip
    known = set(every)
    return [p for p in dict.fromkeys([*examples, *every]) if p in known]


def _within(material: Material, every: list[str], shown: list[str]) -> tuple[int, str]:
    """How many pairs the page holds, and they packed."""
    count = len(shown)
    if count > PROBE:
        size = len(pack(script_json(_data(material, shown[:PROBE], marked=False))))
        count = min(count, max(PROBE, int(BUDGET / size * PROBE)))
    while True:
        kept = set(shown[:count])
        packed = pack(script_json(_data(material, [p for p in every if p in kept])))
        if len(packed) <= BUDGET or count <= 1:
            return count, packed
        count = int(count * 0.95 * BUDGET / len(packed))


def _data(material: Material, prompts: list[str], marked: bool = True) -> dict[str, Any]:
    """What the script of the page reads, by position of the prompt."""
    about = material.prompts.set_index("prompt_id")
    data: dict[str, Any] = {"prompts": [stream_safe(material.asked[p].shown()) for p in prompts]}
    for column in ("family", "split"):
        values = about[column].reindex(prompts).fillna("").astype(str) if column in about else [""] * len(prompts)
        names = list(dict.fromkeys(values))
        code = {name: i for i, name in enumerate(names)}
        data[column] = {"names": names, "of": [code[v] for v in values]}
    said = [[material.answers.get((p, side), []) for p in prompts] for side in SIDES]
    data["ids"] = [[[i for i, _ in own] for own in side] for side in said]
    data["texts"] = [[[t for _, t in own] for own in side] for side in said]
    place = {p: i for i, p in enumerate(prompts)}
    data["shows"], data["marks"] = [], []
    for _, claim in material.claims.iterrows():
        name = claim["hypothesis_id"]
        scores = material.scores.get(name)
        data["shows"].append(who_shows(scores, prompts) if scores is not None else "")
        marks = {}
        examples = [p for p in material.showing(name, claim["direction"])["prompt_id"] if p in place][:MARKED]
        for p in examples if marked and material.markers.get(name) is not None else []:
            spans = [[material.marks(name, p, t) for _, t in material.answers.get((p, s), [])] for s in SIDES]
            marks[str(place[p])] = spans
        data["marks"].append(marks)
    return data
