"""The front page of an experiment: changed or not, what, by how much, how sure; with the answers that show it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from driftbook.behaviours.measure import SIZES
from driftbook.errors import DriftbookError
from driftbook.members import experiment_at
from driftbook.numbers import apart, number, points, share
from driftbook.parameters import STAGES
from driftbook.workbook.answers import render_answers
from driftbook.workbook.blindspots import blind_spots
from driftbook.workbook.claims import Findings, change_of, names_of, parameters, read_findings, read_table
from driftbook.workbook.examples import Material, null_run, pairs_to_read
from driftbook.workbook.figures import curve
from driftbook.workbook.glossary import terms_in
from driftbook.workbook.page import build_page, data_size, fill, links, read_notebook, still
from driftbook.workbook.records import commit, failed, finite, read_json, read_record, write_page
from driftbook.workbook.tables import html_table
from driftbook.workbook.validity import Fact, validity
from driftbook.workbook.wording import duration, shorten

SUMMARY = "summary.json"  # what the list of all experiments says of one
LIVE_BUDGET = 1_200_000  # characters of data that live pictures may add to the front page
ROWS = 8  # of the dumbbell chart; what else moved stands in a fold
WIDTH, PAD = 300, 8  # of a row's picture


@dataclass(frozen=True)
class Row:
    """One behaviour that moved: what it was, what it is, and where both lie on the common scale."""

    n: int
    text: str
    was: str
    now: str
    change: str
    picture: Markup


def render_experiment(folder: Path) -> Path:
    """``index.html`` of ``outputs/<experiment>`` from the good runs in it, with the page of its answers and the summary
    for the list of all experiments; failed and missing stages are named.

    Raises ``DriftbookError`` when the folder holds no run at all.
    """
    folder = Path(folder)
    name = experiment_at(folder)
    good = [s for s in STAGES if (folder / s / "run.json").is_file()]
    broken = [_broken(folder, s) for s in STAGES if (folder / f"{s}.failed" / "run.json").is_file()]
    if not good and not broken:
        raise DriftbookError(f"{folder} holds no run: make run EXP={name}")
    params = parameters(folder)
    names = names_of(params)
    findings = read_findings(folder, names)
    material = Material(folder, findings)
    render_answers(folder, names, material)
    facts = validity(material.texts, material.prompts, findings, params, names) if material.there else []
    moved = findings.moved if findings is not None else pd.DataFrame()
    shares, other = _rows(moved)
    body = fill(
        "experiment.html.j2",
        experiment=name,
        names=names,
        title=_title(params, name),
        state=findings.state if findings is not None else "",
        headline=findings.headline if findings is not None else "",
        sure=findings.lines[-1] if findings is not None and findings.lines else "",
        facts=facts,
        broken=broken,
        rows=shares[:ROWS],
        scale=_scale(moved),
        more=[*shares[ROWS:], *other],
        unmoved=_unmoved(findings),
        pairs=pairs_to_read(material),
        inside=_inside(folder, params, good),
        how_sure=_how_sure(folder, params, findings, material),
        warnings=_warnings(moved),
        claims_table=_claims_table(findings),
        unseen=_unseen(findings, params, material),
        spots=blind_spots(folder, names),
        missing=[s for s in _wanted(params) if s not in good],
        stages=[_stage(folder, s) for s in good],
        reproduce=_reproduce(folder, good),
    )
    words = {word: meaning for word, meaning in terms_in(body).items()}
    body = Markup(body + fill("words.html.j2", words=words))
    page = build_page(
        title=f"{names[0]} → {names[1]} · {name}",
        body=body,
        crumb=f"driftbook · {name}",
        links=links(folder, "front page"),
    )
    summary = _summary(folder, names, findings, facts, good, [b["stage"] for b in broken])
    write_page(folder / SUMMARY, json.dumps(summary, ensure_ascii=False, indent=1) + "\n")
    return write_page(folder / "index.html", page)


def alone(page: str) -> str:
    """A front page that stands by itself, away from its reports: what led to other files becomes plain text."""
    page = re.sub(r"<nav\b.*?</nav>", "", page, flags=re.S)
    return re.sub(r'<a (?:class="[^"]*" )?href="(?!#)[^"]*"[^>]*>(.*?)</a>', r"\1", page, flags=re.S)


def _title(params: Mapping[str, Any], name: str) -> str:
    """What was done, in words: it stands under the names."""
    change = change_of(params)
    if change is None:
        return f"Experiment {name}"
    return change.title(names_of(params)[0])


def _broken(folder: Path, stage: str) -> dict[str, str]:
    record = read_record(folder / f"{stage}.failed")
    failure = record.get("failure") or record.get("error") or {}
    return {"stage": stage, "reason": str(failure.get("reason") or "no reason was recorded")}


# ---------------------------------------------------------------------------------------------------------- what moved


def _rows(moved: pd.DataFrame) -> tuple[list[Row], list[Row]]:
    """Shares of answers with their pictures, then all other units."""
    if not len(moved):
        return [], []
    scale = _scale(moved)
    shares = [_share_row(r, scale[-1]) for _, r in moved[moved["unit"] == "share"].iterrows()]
    return shares, [_other_row(r) for _, r in moved[moved["unit"] != "share"].iterrows()]


def _scale(moved: pd.DataFrame) -> list[float]:
    """Ends and ticks of the common scale of shares: up to the next quarter (the next tenth, where all are small)."""
    shares = moved[moved["unit"] == "share"].head(ROWS) if len(moved) else moved
    most = float(shares[["base", "intervention"]].max().max()) if len(shares) else 1.0
    step = 0.25 if most > 0.3 else 0.1
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)] if most > 0 else [0.0, 1.0]


def _share_row(claim: pd.Series, top: float) -> Row:
    was, now, low, high = (float(claim[k]) for k in ("base", "intervention", "low", "high"))
    change = points(float(claim["difference"]))
    interval = f" ({points(low).lstrip('+')} to {points(high).lstrip('+')})" if finite(low) and finite(high) else ""
    ends = (min(max(was + low, 0), 1), min(max(was + high, 0), 1)) if interval else (now, now)
    picture = _dumbbell(was, now, ends, top)
    return Row(int(claim["n"]), shorten(claim["text"], 120), share(was), share(now), f"{change}{interval}", picture)


def _dumbbell(was: float, now: float, ends: tuple[float, float], top: float) -> Markup:
    """A hollow grey mark for what it was, a filled one for what it is, the interval of the change around it."""

    def x(value: float) -> str:
        return f"{PAD + (WIDTH - 2 * PAD) * min(value / top, 1.0):.1f}"

    return Markup(
        f'<svg viewBox="0 0 {WIDTH} 20" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f'<path d="M{x(was)} 10H{x(now)}" style="stroke:var(--db-c6)" stroke-width="2"/>'
        f'<path d="M{x(ends[0])} 10H{x(ends[1])}" style="stroke:var(--db-c1)" stroke-width="1.5" opacity=".65"/>'
        f'<circle cx="{x(was)}" cy="10" r="4.5" style="fill:var(--db-paper);stroke:var(--db-c6)" stroke-width="2"/>'
        f'<circle cx="{x(now)}" cy="10" r="5" style="fill:var(--db-c1)"/></svg>'
    )


_UNITS = {"rate": " per 100 words", "number": " an answer"}


def _other_row(claim: pd.Series) -> Row:
    was, now = apart(float(claim["base"]), float(claim["intervention"]), 1)
    low, high = claim.get("low"), claim.get("high")
    interval = f" ({number(low)} to {number(high)})" if finite(low) and finite(high) else ""
    typical = "mean" if claim.get("scope") == "these prompts" else "median"
    of = f" ({typical})" if claim["unit"] in SIZES else _UNITS.get(str(claim["unit"]), "")
    label = f"{shorten(claim['text'], 120)}{of}"
    moved = float(claim["difference"])
    change = f"{'+' if moved > 0 else ''}{number(moved)}{interval}"
    return Row(int(claim["n"]), label, was, now, change, Markup(""))


def _unmoved(findings: Findings | None) -> int:
    """Behaviours of the panel that were not shown to move."""
    if findings is None or "proposer" not in findings.table:
        return 0
    return int((findings.table["proposer"].eq("panel") & ~findings.table["confirmed"]).sum())


# --------------------------------------------------------------------------------------------------------- where inside


def _wanted(params: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages of an experiment as far as its runs tell: answers from elsewhere may be read inside, or not."""
    change = change_of(params)
    reads = change is None or change.answers_here or {"traits", "capture"} & set(params)
    return tuple(s for s in STAGES if reads or s not in ("traits", "capture"))


def _inside(folder: Path, params: Mapping[str, Any], good: list[str]) -> dict[str, Any]:
    """The layer curve of the trait that moved most, and the token view, where the weights were here."""
    change = change_of(params)
    if "capture" not in good:
        kind = "Answers from elsewhere" if change is not None and not change.answers_here else ""
        said = "not measurable from text" if kind else ""
        return {"said": said, "figures": [], "run": "" if kind else f"make capture EXP={experiment_at(folder)}"}
    answer = str(read_record(folder / "capture").get("answer") or "")
    curve_of = _layer_curve(folder / "capture" / "data", names_of(params))
    shown = [] if curve_of is None else [Markup(curve_of.html())]
    notebook = folder / "capture" / "notebook.ipynb"
    traces = [Markup(f) for f in read_notebook(notebook).best if 'data-kind="trace"' in f] if notebook.is_file() else []
    left = LIVE_BUDGET
    for figure in traces[:1]:
        size = data_size(figure)
        shown.append(figure if size <= left else still(figure))
    if change is not None and not change.answers_here:
        answer = f"Text only: not measured in the models that wrote. {answer}"
    return {"said": answer, "figures": shown, "run": ""}


def _layer_curve(data: Path, names: tuple[str, str]) -> Any:
    """How far the trait that moved most moved, layer by layer, on own text and on the same tokens; None without a
    table of shifts."""
    shifts, dynamics = data / "shifts.parquet", data / "dynamics.parquet"
    if not shifts.is_file() or not dynamics.is_file():
        return None
    table, at = read_table(shifts), ["trait", "layer", "site"]
    chosen = read_table(dynamics)[at].drop_duplicates("trait")
    own = table[table["comparison"] == "own_text"].merge(chosen, on=at)
    if not len(own):
        return None
    top = own.loc[own["shift"].abs().idxmax()]
    part = table[(table["trait"] == top["trait"]) & (table["site"] == top["site"])].sort_values("layer")
    kept = part[part["comparison"].isin(["own_text", "same_tokens"])]
    words = {"own_text": "each reads its own answers", "same_tokens": f"both read {names[0]}'s answers"}
    same = kept[kept["comparison"] == "same_tokens"]
    clear = same[(same["low"] > 0) | (same["high"] < 0)]
    trait = str(top["trait"]).replace("_", " ")
    where = f"; on the same tokens from layer {int(clear['layer'].min())} on" if len(clear) else ""
    return curve(
        kept["layer"], kept["shift"], low=kept["low"], high=kept["high"], groups=[words[c] for c in kept["comparison"]],
        title=f"{trait.capitalize()} moved most, {number(float(top['shift']))} null standard deviations at layer "
        f"{int(top['layer'])}{where}",
        caption=f"{names[1]} minus {names[0]}, layer by layer; bands are 95% intervals over prompts.",
        x_title="layer", y_title="shift (null SD)", reference=0.0, height=300,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- how sure


def _how_sure(folder: Path, params: Mapping[str, Any], findings: Findings | None, material: Material) -> list[str]:
    said = [*_three_ways(folder)]
    if findings is None:
        return [*said, "Nothing has been validated yet, so nothing on this page is confirmed."]
    metrics = _metrics(folder / "validate")
    table, alpha = findings.table, metrics.get("alpha", 0.05)
    own = table[table["proposer"] != "words"] if "proposer" in table else table
    total, good, words = len(own), int(own["confirmed"].sum()), metrics.get("words_tested", 0)
    likes = int(table["confirmed"].sum()) - len(findings.moved)
    beside = f", and {metrics['words_confirmed']} of {words} words" if words else ""
    repeat = f" ({likes} of them say nearly what another says)" if likes else ""
    said.append(
        f"{good} of {total} behaviours, phrases and groups of sentences that were checked are confirmed{repeat}{beside}"
        f"{f'; at most {share(alpha)} of the confirmed are false on average' if good else ''}."
    )
    held = [material.holds_in(i) for i in findings.moved["hypothesis_id"].head(3)]
    if held and held[0][1] > 1:
        listed = ", ".join(dict.fromkeys(f"{'all' if k == n else f'{k} of'} {n}" for k, n in held))
        who = f"The first {len(held)} each go" if len(held) > 1 else "The first goes"
        said.append(f"{who} the same way in {listed} kinds of prompts.")
    amplified = findings.moved["amplified"].fillna("").head(3) if "amplified" in findings.moved else ()
    said += [f"Amplified: {a}" for a in amplified if a]
    if finite(metrics.get("share_of_bag_of_words")):
        low, high = metrics.get("share_of_bag_of_words_low"), metrics.get("share_of_bag_of_words_high")
        ends = f" ({low:.0%} to {high:.0%})" if finite(low) and finite(high) else ""
        said.append(
            f"Baseline: together the confirmed claims tell the two models apart "
            f"{metrics['share_of_bag_of_words']:.0%}{ends} as well as a bag of words that was trained on both."
        )
    made_elsewhere = (params.get("intervention") or {}).get("kind") == "texts"  # by models that no run here has
    null = None if made_elsewhere else null_run(folder, params.get("base") or {})
    if made_elsewhere:
        said.append("Null run: none; a table of answers that one of the models gave twice makes one.")
    elif null is not None:
        said.append(f"Null run: of the same model twice ({null[0]}), {null[1]} of {null[2]} claims were confirmed.")
    else:
        said.append("Null run: none beside this experiment; intervention: {kind: none} makes one.")
    return said


def _metrics(run: Path) -> dict[str, Any]:
    return read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}


def _three_ways(folder: Path) -> list[str]:
    """What divergence, groups and claims say of the same two models, in one sentence that reconciles them."""
    decode, cluster, validate = (_metrics(folder / s) for s in ("decode", "cluster", "validate"))
    parts = []
    if finite(decode.get("js_mean")):
        js = float(decode["js_mean"])
        parts.append(f"next-token distributions {f'differ by {number(js)} nats a token' if js else 'are equal'}")
    moved, total = cluster.get("moved_groups", cluster.get("moved_clusters")), cluster.get("clusters")
    if finite(moved) and finite(total):
        what = "sentences" if "moved_groups" in cluster else "answers"
        parts.append(f"{moved:,} of {total:,} groups of like {what} changed their share")
    if finite(validate.get("confirmed")):
        parts.append(f"{validate['confirmed']:,} claims are confirmed")
    if len(parts) < 2:
        return []
    why = ""
    if validate.get("confirmed") and moved == 0:
        why = ": the answers are written otherwise rather than about other things"
    elif validate.get("confirmed") == 0 and (moved or decode.get("js_mean")):
        why = ": something differs, and nothing that was checked was shown to be it"
    return [f"Measured {('two', 'three')[len(parts) - 2]} ways: {'; '.join(parts)}{why}."]


def _warnings(moved: pd.DataFrame) -> list[tuple[str, str]]:
    """(claim, what to beware of) for the claims that the page shows."""
    if "flags" not in moved:
        return []
    flags = moved["flags"].fillna("").astype(str)
    return [
        (shorten(t, 120), line) for t, f in zip(moved["text"], flags, strict=True) for line in f.split("\n") if line
    ][:12]


_CLAIM_COLUMNS = (
    *("claim", "status", "scope", "q_value", "e_value", "win_rate", "win_low", "win_high", "auc"),
    *("explained_by", "prompts", "prompts_needed"),
)


def _claims_table(findings: Findings | None) -> Markup:
    if findings is None or not len(findings.table):
        return Markup("")
    columns = [c for c in _CLAIM_COLUMNS if c in findings.table]
    return Markup(html_table(findings.table, caption="all claims", columns=columns, max_rows=200))


def _unseen(findings: Findings | None, params: Mapping[str, Any], material: Material) -> list[str]:
    """What this experiment is blind to, whatever it found."""
    said = [findings.lines[1]] if findings is not None and len(findings.lines) > 1 else []
    judges = (params.get("validate") or {}).get("judges") or {}
    kinds = {str(j.get("kind")) for j in judges.values() if isinstance(j, Mapping)}
    if not kinds & {"endpoint", "local", "nli"}:
        said.append("Whether facts are right and answers are better: no judge read them (validate.judges).")
    said.append("What prompts unlike these would bring out.")
    turns = "messages" in material.prompts and material.prompts["messages"].notna().any()
    if not turns:
        said.append("Conversations of several turns: every prompt is one message.")
    return said


# ------------------------------------------------------------------------------------------------------------ reproduce


def _stage(folder: Path, stage: str) -> dict[str, Any]:
    record = read_record(folder / stage)
    device = record.get("device")
    named = f"{device.get('device') or ''} ({device.get('why') or device.get('reason') or ''})" if isinstance(
        device, Mapping) else str(device or "")  # fmt: skip
    return {
        "stage": stage,
        "answer": str(record.get("answer") or ""),
        "when": str(record.get("finished") or record.get("started") or "")[:16].replace("T", " "),
        "duration": duration(float(record["seconds"])) if finite(record.get("seconds")) else "",
        "memory": f"{record['peak_rss_mb']:,.0f} MB" if finite(record.get("peak_rss_mb")) else "",
        "commit": commit(record["git"], 10) if record.get("git") else "",
        "device": named.removesuffix(" ()"),
        "key": str(record.get("key", ""))[:12],
    }


def _reproduce(folder: Path, good: list[str]) -> list[tuple[str, str]]:
    records = [read_record(folder / s) for s in good]
    if not records:
        return []
    last = records[-1]
    made = dict(zip(good, records, strict=True)).get("decode", {}).get("outputs") or {}
    texts = made.get("data/texts.parquet") or ""
    texts = texts.get("sha256", "") if isinstance(texts, Mapping) else texts
    seconds = sum(float(r["seconds"]) for r in records if finite(r.get("seconds")))
    found = [
        ("run", f"make run EXP={experiment_at(folder)}"),
        ("commit", commit(last["git"], 12) if last.get("git") else ""),
        ("texts (sha256)", str(texts)[:16]),
        ("seed", str((last.get("seeds") or {}).get("seed", ""))),
        ("time", duration(seconds) if seconds else ""),
    ]
    return [(name, value) for name, value in found if value]


def _summary(
    folder: Path, names: tuple[str, str], findings: Findings | None, facts: list[Fact], good: list[str],
    broken: list[str],
) -> dict[str, Any]:  # fmt: skip
    """What the list of all experiments says of one."""
    records = [read_record(folder / s) for s in good]
    top = findings.moved.iloc[0] if findings is not None and len(findings.moved) else None
    shown = _rows(findings.moved.head(1)) if top is not None else ([], [])
    row = next((r for rows in shown for r in rows), None)
    return {
        "experiment": folder.name,
        "names": list(names),
        "state": findings.state if findings is not None else "",
        "line": findings.said if findings is not None else "",
        "top": {"text": shorten(row.text, 60), "was": row.was, "now": row.now} if row is not None else None,
        "warnings": [f.text for f in facts if f.warns],
        "date": max((str(r.get("finished") or r.get("started") or "") for r in records), default="")[:10],
        "ran": [s for s, r in zip(good, records, strict=True) if not failed(r)],
        "failed": broken,
    }
