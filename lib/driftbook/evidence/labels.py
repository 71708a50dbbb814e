"""Labelled answers: a table that a person filled in, and what it says of the judges and the claims of an experiment."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.behaviours.catalogue import measure_from
from driftbook.behaviours.measure import values
from driftbook.discovery.groups import is_group
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.judges import Judge, Judges, PairJudge, reads_words
from driftbook.evidence.material import Material, asked_ids, by_judge
from driftbook.evidence.people import LEAST, YES_FROM, Labelled, agreement, corrected
from driftbook.files import read_table
from driftbook.prompts import SIDES

NEEDED = ("text", "claim", "label")
YES, NO = ("yes", "y", "1", "1.0", "true"), ("no", "n", "0", "0.0", "false")
SKIPPED = ("skip", "s", "", "none")
AGREEMENT = (
    *("hypothesis_id", "claim", "judge", "side", "labels", "accuracy", "accuracy_low", "accuracy_high"),
    *("kappa", "kappa_low", "kappa_high", "both_yes", "judge_alone", "people_alone", "both_no"),
)
CORRECTED = (
    *("hypothesis_id", "claim", "judge", "labels", "prompts", "difference", "low", "high"),
    *("corrected", "corrected_low", "corrected_high", "people", "people_low", "people_high", "use", "note"),
)


def checkable(hypothesis: Hypothesis) -> bool:
    """Whether a person can say of one answer if it shows what is claimed: shares of answers, and judged statements. A
    group of sentences is what an embedder makes of them, and no statement."""
    measure = hypothesis.measure or {}
    return by_judge(hypothesis) or (measure.get("kind") != "group" and measure_from(measure).unit == "share")


def read_labels(path: Path, material: Material, key: str = "validate.labels") -> pd.DataFrame:
    """The labels of a table, each with the answer that it is of.

    The table (parquet, CSV or JSONL) has columns ``text``, ``claim`` (the statement, its id or the name of its measure)
    and ``label`` (yes or no, 1 or 0; what was skipped is left out); ``side``, ``text_id`` and ``propensity`` may be
    there. Returns hypothesis_id, text, label (bool), weight, side, prompt_id and ``asked`` (the prompt itself, where
    prompt_id is that of its look-alikes). Of a text that is no answer of this experiment the side is that of the table
    or empty, and its prompt is empty; so they are, with a warning, where both sides gave it and nothing says which
    answer was labelled.

    Raises DriftbookError for a table that cannot be read, an unknown claim or side, a label that is neither yes nor
    no, a claim that yes and no cannot be held against, and a propensity outside of (0, 1].
    """
    where = f"{key} {path}"
    table = read_table(path, where)
    if missing := [c for c in NEEDED if c not in table.columns]:
        raise DriftbookError(f"{where}: no column {missing[0]}; it has {', '.join(map(str, table.columns))}")
    said = table["label"].map(lambda v: str(v).strip().lower())
    table, said = (t[~said.isin(SKIPPED)].reset_index(drop=True) for t in (table, said))
    strange = said.index[~said.isin([*YES, *NO])]
    if len(strange):
        raise DriftbookError(
            f"{where}: label {said[strange[0]]!r} (of {str(table['text'][strange[0]])[:40]!r}) is neither yes nor no; "
            "write yes, no, 1, 0 or skip"
        )
    weight = 1 / pd.to_numeric(table.get("propensity", pd.Series(1.0, table.index)), errors="coerce")
    if not np.isfinite(weight).all() or (weight < 1).any():
        raise DriftbookError(f"{where}: a propensity is above 0 and at most 1; leave it out where all are alike")
    if "side" in table and (wrong := sorted({str(s) for s in table["side"]} - {*SIDES, "", "nan", "None"})):
        raise DriftbookError(f"{where}: side {wrong[0]!r} is not one of {', '.join(SIDES)}")
    found = pd.DataFrame({"hypothesis_id": claims_named(table["claim"].tolist(), material.hypotheses, where)})
    found = found.assign(text=table["text"].astype(str), label=said.isin(YES), weight=weight)
    answers, unclear = _answers(table, material.texts)
    if unclear:
        warnings.warn(
            f"{where}: {unclear} labels are of words that both sides answered with, and count for neither side: add a "
            "column side (base, intervention) or text_id, or a row for each answer with these words",
            stacklevel=2,
        )
    return pd.concat([found, answers], axis=1)


def claims_named(named: Sequence[str], hypotheses: Sequence[Hypothesis], where: str) -> list[str]:
    """The id of each claim that is named by its statement, its id or its measure. Raises DriftbookError for one that
    is not there, or that yes and no cannot be held against."""
    known: dict[str, Hypothesis] = {}
    for h in sorted(hypotheses, key=lambda h: h.proposer == "panel"):  # of two of one name the one that somebody wrote
        for name in (h.hypothesis_id, str((h.measure or {}).get("name", "")), h.text):
            known.setdefault(_folded(name), h)
    for name in dict.fromkeys(map(str, named)):
        h = known.get(_folded(name))
        if h is None:
            near = difflib.get_close_matches(_folded(name), known, 1, 0.5)
            raise DriftbookError(
                f"{where}: there is no claim {name!r}{f'; did you mean {known[near[0]].text!r}?' if near else ''} "
                "(a claim is named by its statement, its id or its measure; claims.parquet lists them)"
            )
        if not checkable(h):
            measure = measure_from(h.measure or {})
            by = f"in unit {measure.unit}" if measure.unit != "share" else "as a group of sentences"
            raise DriftbookError(f"{where}: {name!r} is measured {by}: yes and no cannot be held against it")
    return [known[_folded(str(name))].hypothesis_id for name in named]


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _answers(table: pd.DataFrame, texts: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """(side, unit and prompt of each labelled text, how many are of a side that cannot be told).

    A text is found by its id, else by its words (and side, where it is given): of several answers with the same words
    each row is the next. Where they are of both sides, only as many rows as answers tell which is which."""
    answers = list(zip(texts["side"], texts["prompt_id"], asked_ids(texts), strict=True))
    by_id = dict(zip(texts["text_id"], answers, strict=True))
    by_words: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for words, answer in zip(texts["text"].str.strip(), answers, strict=True):
        for side in (answer[0], ""):
            by_words.setdefault((words, side), []).append(answer)
    labelled = table.to_dict("records")
    keys = [(r["claim"], str(r["text"]).strip(), r["side"] if r.get("side") in SIDES else "") for r in labelled]
    rows_of, taken, rows, unclear = Counter(keys), Counter[tuple[str, str, str]](), [], 0
    for r, key in zip(labelled, keys, strict=True):
        there = by_words.get(key[1:], [])
        if (own := by_id.get(r.get("text_id"))) is not None:
            rows.append(own)
        elif len({side for side, *_ in there}) == 2 and rows_of[key] != len(there):
            unclear += 1
            asked = {prompt for *_, prompt in there}
            rows.append(("", "", asked.pop() if len(asked) == 1 else ""))
        else:
            rows.append(there[taken[key] % len(there)] if there else (key[2], "", ""))
            taken[key] += 1
    return pd.DataFrame(rows, columns=["side", "prompt_id", "asked"]), unclear


Read = Callable[[Hypothesis, Sequence[str], Sequence[str]], Mapping[str, tuple[np.ndarray, np.ndarray]]]


def readings(judges: Judges, material: Material, read_groups: Callable[[pd.DataFrame], pd.DataFrame]) -> Read:
    """Who reads a claim: judge to (its scores of texts, whether each says yes); counting where a measure reads it.

    ``read_groups``: what texts (text_id, text, prompt_id) show of the groups of sentences that are claimed; it reads
    answers to prompts of this experiment alone. Raises DriftbookError for a judge that only compares answers."""

    def read(h: Hypothesis, texts: Sequence[str], prompts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if is_group(h):
            table = pd.DataFrame({"text_id": map(str, range(len(texts))), "text": texts, "prompt_id": prompts})
            known = read_groups(table[table["prompt_id"] != ""]).set_index("text_id")[(h.measure or {})["group"]]
            scores = known.reindex(table["text_id"]).to_numpy(np.float64)
            return {"counting": (scores, scores >= YES_FROM)}
        if not by_judge(h):
            asked = [material.prompts[p].text if p else "" for p in prompts]
            scores = values([measure_from(h.measure or {})], texts, asked)[:, 0]
            return {"counting": (scores, scores >= YES_FROM)}
        shown = [material.prompts[p].shown() if p else "" for p in prompts]
        found = {}
        for judge in dict.fromkeys([judges.tester, judges.cheap]):
            if isinstance(judge, PairJudge) and judge.mode == "pair":
                raise DriftbookError(
                    f"judge {judge.name} compares two answers, and labels are of one: set its mode to single"
                )
            if h.words or not reads_words(judge):
                scores = judge.score(texts, [h], shown)[:, 0]
                found[judge.name] = scores, scores >= _yes_from(judge)
        return found

    return read


def _yes_from(judge: Judge) -> float:
    return 1e-9 if reads_words(judge) else YES_FROM  # of words any match is one


def held_against(
    labels: pd.DataFrame, claims: pd.DataFrame, verdicts: pd.DataFrame, material: Material, read: Read
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(how often each judge and people agree, the effects of claims corrected for the judge's errors).

    ``labels`` as of ``read_labels``; ``claims`` and ``verdicts`` are the tables of the stage. Answers of which a judge
    has no verdict are left out. An effect is corrected from ``LEAST`` labels on answers of this experiment on; ``note``
    says why one is not.
    """
    agree, effects = [], []
    by_id = {h.hypothesis_id: h for h in material.hypotheses}
    for name, own in labels.groupby("hypothesis_id", sort=False):
        own, h = own.reset_index(drop=True), by_id[str(name)]
        claim = claims[claims["hypothesis_id"] == name].iloc[0]
        read_by = read(h, own["text"].tolist(), own["asked"].tolist())
        for judge, (scores, yes) in read_by.items():
            known = ~np.isnan(scores)
            for side in ("both", *SIDES):
                here = known & ((own["side"] == side) | (side == "both")).to_numpy()
                if here.any():
                    agree.append((name, h.text, judge, side, *_agreement(own[here], yes[here], material.seed)))
        judge = claim["judge"]
        scores = read_by.get(judge, (np.full(len(own), np.nan),))[0]
        effects.append((name, h.text, judge, *_effect(own, scores, claim, verdicts)))
    return pd.DataFrame(agree, columns=list(AGREEMENT)), pd.DataFrame(effects, columns=list(CORRECTED))


def _agreement(own: pd.DataFrame, yes: np.ndarray, seed: int) -> tuple[Any, ...]:
    unit = np.where(own["prompt_id"] == "", own["text"], own["prompt_id"])
    found = agreement(yes, own["label"].to_numpy(), unit, own["weight"].to_numpy(), seed)
    return (len(own), *found.accuracy, *found.kappa, *found.counts.ravel().tolist())


def _effect(own: pd.DataFrame, scores: np.ndarray, claim: pd.Series, verdicts: pd.DataFrame) -> tuple[Any, ...]:
    mine = verdicts[(verdicts["hypothesis_id"] == claim["hypothesis_id"]) & (verdicts["judge"] == claim["judge"])]
    here = (~np.isnan(scores)) & (own["prompt_id"] != "").to_numpy()
    own, scores = own[here], scores[here]
    counts = own["side"].value_counts().reindex(list(SIDES), fill_value=0)
    told = (len(own), len(mine), claim["difference"], claim["low"], claim["high"])
    if mine.empty:
        return (*told, *[np.nan] * 7, "this claim was not tested")
    if len(own) < LEAST or counts.min() < 2:
        each = " and ".join(f"{n} of {side}" for side, n in counts.items())
        return (*told, *[np.nan] * 7, f"labels of {each}: {LEAST} are needed, of both sides")
    labelled = Labelled(
        own["prompt_id"].to_numpy(),
        (own["side"] == "intervention").to_numpy(),
        scores,
        own["label"].to_numpy(np.float64),
        own["weight"].to_numpy(),
    )
    sides = (mine[f"score_{side}"].to_numpy(np.float64) for side in SIDES)
    found = corrected(mine["prompt_id"].to_numpy(), *sides, labelled)
    return (*told, *found.effect, *found.alone, found.use, "")
