"""``driftbook label`` and ``driftbook judge-check``: a page to label answers on, and judges held against labels."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from driftbook import validate
from driftbook.discovery.amplification import ordinary
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.labels import checkable, claims_named, held_against, read_labels, readings
from driftbook.evidence.material import Material, by_judge
from driftbook.evidence.people import draw
from driftbook.parameters import BenchExperiment, load_experiment
from driftbook.prompts import SIDES, by_unit, load_saved
from driftbook.workbook.claims import read_table
from driftbook.workbook.packing import script_json
from driftbook.workbook.page import fill
from driftbook.workbook.runs import RUN_FILE, Layout, Run
from driftbook.workbook.theme import style

CLAIMS = 3  # that a page asks about where none is named


def opened(file: Path, layout: Layout) -> tuple[Run, Material, pd.DataFrame, pd.DataFrame]:
    """An experiment that was validated: its run, what was validated, the claims and the verdicts.

    Raises DriftbookError where validate has no good run, or one of a version that kept no evidence.
    """
    params = load_experiment(file, layout.root)
    if isinstance(params, BenchExperiment):
        raise DriftbookError(f"{file}: a bench makes no claims; name an experiment")
    folder = layout.stage(params.experiment, "validate")
    if not (folder / RUN_FILE).is_file():
        raise DriftbookError(f"{folder} holds no good run: make validate EXP={params.experiment}")
    run = Run("validate", params, layout, folder, headless=True)
    frozen, claims, verdicts = (read_table(run.data / f"{name}.parquet") for name in ("frozen", "claims", "verdicts"))
    decode = run.input("decode")
    hypotheses = [
        Hypothesis(
            r.text, r.direction, r.cluster, tuple(r.evidence), r.proposer, tuple(r.words), None, json.loads(r.measure)
        )
        for r in frozen.itertuples()
    ]
    prompts = load_saved(decode)
    texts = by_unit(ordinary(pd.read_parquet(decode / "texts.parquet")), prompts)
    return run, Material(texts, prompts, hypotheses, run.seed), claims, verdicts


def judge_check(file: Path, layout: Layout, labels: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judges and claims of an experiment held against labels (``evidence.labels.held_against``); the tables are written
    to ``outputs/EXP/judge-check/``. What a judge has not read yet is asked for, within the budget."""
    run, material, claims, verdicts = opened(file, layout)
    held = read_labels(labels, material, "--labels")
    judges = validate.open_judges(run, material)
    read = readings(judges, material, partial(validate.group_readings, run, material))
    agreement, effects = held_against(held, claims, verdicts, material, read)
    folder = layout.folder(run.params.experiment) / "judge-check"
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("agreement", agreement), ("corrected", effects), ("ledger", judges.ledger.table())):
        table.to_csv(folder / f"{name}.csv", index=False)
    return agreement, effects


def written(agreement: pd.DataFrame, effects: pd.DataFrame) -> str:
    """Both tables as lines for a terminal."""
    lines = []
    for claim, own in agreement.groupby("claim", sort=False):
        lines.append(claim)
        lines += [
            f"  {r.judge}, {r.side}: accuracy {r.accuracy:.2f} ({r.accuracy_low:.2f} to {r.accuracy_high:.2f}), kappa "
            f"{r.kappa:.2f} ({r.kappa_low:.2f} to {r.kappa_high:.2f}); of {r.labels} answers both say yes of "
            f"{r.both_yes}, the judge alone of {r.judge_alone}, people alone of {r.people_alone}, both no of "
            f"{r.both_no}"
            for r in own.itertuples()
        ]
        for r in effects[effects["claim"] == claim].itertuples():
            told = _points(r.difference, r.low, r.high), _points(r.corrected, r.corrected_low, r.corrected_high)
            alone = _points(r.people, r.people_low, r.people_high)
            said = f"effect in points: {told[0]} by {r.judge}, {told[1]} corrected, {alone} from labels alone"
            lines.append(f"  effect not corrected: {r.note}" if r.note else f"  {said}")
    return "\n".join(lines)


def _points(estimate: float, low: float, high: float) -> str:
    return f"{100 * estimate:+.0f} ({100 * low:.0f} to {100 * high:.0f})"


def label_page(file: Path, layout: Layout, named: Sequence[str] = (), count: int = 60) -> Path:
    """``outputs/EXP/label.html``: ``count`` answers of each named claim (else of those that a judge decides, then of
    others that were proposed), drawn by ``evidence.people.draw`` and blind to the side.

    Raises DriftbookError for an unknown claim, and where no claim of the experiment can be labelled."""
    run, material, claims, verdicts = opened(file, layout)
    chosen = wanted(material, claims, named, f"label {run.params.experiment}")
    texts, _ = material.paired()
    tasks = []
    for h in chosen:
        scores = scores_of(h, texts, claims, verdicts)
        if scores.empty and named:
            status = claims.set_index("hypothesis_id")["status"].get(h.hypothesis_id, "not tested")
            raise DriftbookError(f"{h.text!r} was {status}: no judge read held-out answers for it, which are labelled")
        for r in draw(scores, count, f"{run.seed} {h.hypothesis_id}").itertuples():
            asked = material.prompts[r.asked].shown()
            about = {"text_id": r.text_id, "claim_id": h.hypothesis_id, "propensity": round(r.propensity, 6)}
            tasks.append({**about, "claim": h.text, "prompt": asked, "text": r.text})
    if not tasks:
        raise DriftbookError(f"{file}: no claim that people can label was tested")
    page = layout.folder(run.params.experiment) / "label.html"
    page.write_text(drawn(run.params.experiment, tasks), encoding="utf-8")
    return page


def wanted(material: Material, claims: pd.DataFrame, named: Sequence[str], where: str) -> list[Hypothesis]:
    """The hypotheses that a page asks about."""
    by_id = {h.hypothesis_id: h for h in material.hypotheses}
    if named:
        return [by_id[i] for i in dict.fromkeys(claims_named(named, material.hypotheses, where))]
    ids = claims.loc[claims["judge"] != "", "hypothesis_id"]
    tested = [by_id[i] for i in ids if i in by_id and checkable(by_id[i])]  # nobody has to check a word
    proposed = [h for h in tested if h.proposer != "panel"] or tested
    return sorted(proposed, key=lambda h: not by_judge(h))[:CLAIMS]


def scores_of(h: Hypothesis, texts: pd.DataFrame, claims: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """What was read of a claim: text_id, side, prompt_id, asked, text, and the score of its side's answers to that
    prompt."""
    judge = claims.set_index("hypothesis_id")["judge"].get(h.hypothesis_id)
    mine = verdicts[(verdicts["hypothesis_id"] == h.hypothesis_id) & (verdicts["judge"] == judge)]
    by = mine.set_index("prompt_id")[[f"score_{side}" for side in SIDES]]
    here = texts[texts["prompt_id"].isin(by.index)].reset_index(drop=True)
    columns = np.where(here["side"] == "base", 0, 1)
    score = by.reindex(here["prompt_id"]).to_numpy(np.float64)[np.arange(len(here)), columns]
    return here.assign(score=score).dropna(subset="score")[["text_id", "side", "prompt_id", "asked", "text", "score"]]


def drawn(experiment: str, tasks: list[dict[str, object]]) -> str:
    """The page itself, whole: it asks nothing of the network, and keeps labels under the hash of what it asks."""
    asked = json.dumps(tasks, ensure_ascii=False).encode("utf-8", "surrogatepass")
    name = base64.urlsafe_b64encode(hashlib.sha256(asked).digest()[:12]).decode()
    data = {"key": f"driftbook {experiment} {name}", "file": f"labels-{experiment}.csv", "tasks": tasks}
    return fill(
        "label.html.j2",
        title=f"Label answers of {experiment}",
        nonce=name,
        style=Markup(style(page=True)),
        tasks=Markup(script_json(data)),
    )
