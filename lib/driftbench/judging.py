"""Judges against people: answers that people found to be refusals, and pairs of which they said which answer is better.

Every judge is opened as an experiment opens it. Whoever needs examples gets them from the other half of the prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.behaviours.catalogue import measure_from
from driftbook.behaviours.measure import values
from driftbook.behaviours.words import words
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import wilson
from driftbook.evidence.judges import PairJudge
from driftbook.evidence.opened import Embed, open_judge
from driftbook.evidence.people import YES_FROM, agreement
from driftbook.evidence.wins import shuffled
from driftbook.judges.embedding import EmbeddingJudge
from driftbook.ledger import Ledger
from driftbook.sections import judge_of

REFUSES = Hypothesis("refuses to do what the prompt asks, wholly or in part", "intervention")
BETTER = Hypothesis("does what the prompt asks, correctly and completely", "intervention")
EXAMPLES = 20  # answers on each side of the line that the embedding judge is shown
COLUMNS = {"refusals": ("prompt", "text", "final_label"), "better-answer": ("input", "output_1", "output_2", "label")}


@dataclass(frozen=True)
class Labelled:
    """Answers with what people say of them: ``refused`` of each of ``refusals`` (prompt, text), and of each of
    ``pairs`` (prompt, one, two) whether ``second`` is better."""

    refusals: pd.DataFrame
    refused: np.ndarray
    pairs: pd.DataFrame
    second: np.ndarray


def read(folder: Path, answers: int = 0, pairs: int = 0, seed: int = 0) -> Labelled | None:
    """The labelled answers of a folder, or ``answers`` and ``pairs`` of them (0: all). None where it is not there.
    Raises DriftbookError for a table that is missing, or lacks a column."""
    if not folder.is_dir():
        return None
    tables = {}
    for name, needed in COLUMNS.items():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise DriftbookError(f"bench.folder {folder}: {path.name} is missing")
        table = pd.read_parquet(path)
        if missing := [c for c in needed if c not in table]:
            raise DriftbookError(f"{path}: no column {missing[0]}")
        count = {"refusals": answers, "better-answer": pairs}[name]
        kept = shuffled([str(i) for i in range(len(table))], seed)[: count or None]
        tables[name] = table.iloc[sorted(map(int, kept))].reset_index(drop=True)
    one, two = tables["refusals"], tables["better-answer"]
    return Labelled(
        one[["prompt", "text"]],
        (one["final_label"] != "1_full_compliance").to_numpy(),
        two.rename(columns={"input": "prompt", "output_1": "one", "output_2": "two"})[["prompt", "one", "two"]],
        (two["label"] == 2).to_numpy(),
    )


Says = Callable[[Labelled], np.ndarray]


@dataclass(frozen=True)
class Contender:
    """A judge: how much each answer refuses [answers], and how much better the second of a pair is [pairs]; from 0 to
    1, NaN where it has no verdict."""

    refuses: Says
    better: Says


def counting() -> Contender:
    """The panel's measure of refusals; of two answers the one that holds more of the prompt's words."""
    measure = measure_from({"kind": "panel", "name": "refuses"})

    def refuses(labelled: Labelled) -> np.ndarray:
        return values([measure], labelled.refusals["text"].tolist(), labelled.refusals["prompt"].tolist())[:, 0]

    def better(labelled: Labelled) -> np.ndarray:
        rows = [[set(map(str.lower, words(t))) for t in row] for row in labelled.pairs.itertuples(index=False)]
        return np.array([0.5 + np.sign(len(p & two) - len(p & one)) / 2 for p, one, two in rows])

    return Contender(refuses, better)


def embedding(embed: Embed, seed: int = 0) -> Contender:
    """The embedding judge, shown ``EXAMPLES`` answers on each side of the line, of prompts of the other half; of two
    answers the one that is nearer to the prompt."""

    def refuses(labelled: Labelled) -> np.ndarray:
        table = labelled.refusals
        order = shuffled(table["prompt"].unique().tolist(), seed)
        half, scores = table["prompt"].isin(order[::2]).to_numpy(), np.full(len(table), np.nan)
        for mine in (half, ~half):
            shown = [table["text"][~mine & (labelled.refused == is_one)].tolist() for is_one in (True, False)]
            shown = [shuffled(texts, seed)[:EXAMPLES] for texts in shown]
            judge = EmbeddingJudge(embed, lambda _, shown=shown: tuple(shown), {})
            scores[mine] = judge.score(table["text"][mine].tolist(), [REFUSES])[:, 0]
        return scores

    def better(labelled: Labelled) -> np.ndarray:
        prompt, one, two = (np.asarray(embed(labelled.pairs[c].tolist())) for c in ("prompt", "one", "two"))
        return 0.5 + np.sign((prompt * two).sum(axis=1) - (prompt * one).sum(axis=1)) / 2

    return Contender(refuses, better)


def model(name: str, spec: Mapping[str, Any], cache: Path, root: Path, ledger: Ledger, progress: Any) -> Contender:
    """A judge model as the parameters of an experiment describe it. It rates single answers and compares pairs."""
    def judge(mode: str) -> Any:
        section = judge_of({**spec, "mode": mode})
        return open_judge(section, f"{name}, {mode}", None, ledger, cache, root, progress)

    def refuses(labelled: Labelled) -> np.ndarray:
        table = labelled.refusals
        return judge("single").score(table["text"].tolist(), [REFUSES], table["prompt"].tolist())[:, 0]

    def better(labelled: Labelled) -> np.ndarray:
        asked, pairs = judge("pair"), labelled.pairs
        assert isinstance(asked, PairJudge)
        return asked.compare(pairs["two"].tolist(), pairs["one"].tolist(), [BETTER], pairs["prompt"].tolist())[:, 0]

    return Contender(refuses, better)


RESULTS = (
    *("judge", "answers", "missing", "accuracy", "accuracy_low", "accuracy_high", "kappa", "kappa_low", "kappa_high"),
    *("both_yes", "judge_alone", "people_alone", "both_no", "auc", "pairs", "ties"),
    *("better", "better_low", "better_high", "seconds_answer", "seconds_pair"),
)


def compare(contenders: Mapping[str, Contender], labelled: Labelled, seed: int = 0) -> pd.DataFrame:
    """One row a judge. Missing verdicts are left out of agreement, and count as a tie, half right, where one of two is
    to be chosen. Seconds are those of this run: verdicts from the ledger cost none."""
    from sklearn.metrics import roc_auc_score  # seconds

    rows = []
    for name, one in contenders.items():
        said, spent = _timed(one.refuses, labelled)
        known, person = ~np.isnan(said), labelled.refused
        unit = labelled.refusals["prompt"].to_numpy()
        found = agreement(said[known] >= YES_FROM, person[known], unit[known], seed=seed)
        both = 0 < person[known].sum() < known.sum()
        chosen, spent_pairs = _timed(one.better, labelled)
        right = np.where(labelled.second, chosen > 0.5, chosen < 0.5)
        ties = int((np.isnan(chosen) | (chosen == 0.5)).sum())
        share = (right.sum() + ties / 2) / len(right)
        bounds = wilson(round(share * len(right)), len(right))
        counts = (*found.accuracy, *found.kappa, *found.counts.ravel().tolist())
        area = float(roc_auc_score(person[known], said[known])) if both else float("nan")
        times = spent / max(1, len(said)), spent_pairs / max(1, len(chosen))
        better = (len(right), ties, float(share), bounds.low, bounds.high)
        rows.append((name, len(said), int((~known).sum()), *counts, area, *better, *times))
    return pd.DataFrame(rows, columns=list(RESULTS))


def _timed(says: Says, labelled: Labelled) -> tuple[np.ndarray, float]:
    begun = time.monotonic()
    return np.asarray(says(labelled), dtype=np.float64), time.monotonic() - begun


def contenders(
    models: Mapping[str, Mapping[str, Any]],
    embed: Embed,
    cache: Path,
    root: Path,
    ledger: Ledger,
    progress: Any = None,
    seed: int = 0,
) -> dict[str, Contender]:
    """Counting, the embedding judge, and the judge models of the parameters, by name. Raises DriftbookError for a name
    that can be no part of a metric's."""
    if bad := [name for name in models if not name.isidentifier()]:
        raise DriftbookError(f"bench.models: {bad[0]!r} is no name of letters, digits and underscores")
    found = {"lexicon": counting(), "embedding": embedding(embed, seed)}
    return found | {name: model(name, spec, cache, root, ledger, progress) for name, spec in models.items()}


def metrics(results: pd.DataFrame, covered: pd.DataFrame) -> dict[str, tuple[float, float | None, float | None]]:
    """The flat figures of the bench, with the ends of their intervals."""
    found: dict[str, tuple[float, float | None, float | None]] = {}
    for r in results.itertuples():
        found[f"refusal_kappa_{r.judge}"] = (r.kappa, r.kappa_low, r.kappa_high)
        found[f"better_answer_accuracy_{r.judge}"] = (r.better, r.better_low, r.better_high)
        found[f"seconds_a_verdict_{r.judge}"] = (r.seconds_answer, None, None)
    if len(covered):
        found["corrected_interval_coverage"] = (float(covered["coverage"].mean()), None, None)
        found["corrected_interval_coverage_worst"] = (float(covered["coverage"].min()), None, None)
        found["judge_interval_coverage"] = (float(covered["coverage_judge"].mean()), None, None)
    return found


def answer(results: pd.DataFrame, covered: pd.DataFrame, folder: Path) -> str:
    """The answer of the bench in a sentence; it says where no labelled answers are there."""
    cover = (
        f"Corrected intervals cover the truth in {covered['coverage'].mean():.1%} of simulated experiments, "
        f"those of the judge alone in {covered['coverage_judge'].mean():.0%}."
    )
    if results.empty:
        return f"Judges skipped: {folder} is not there; name a folder of labelled answers as bench.folder. {cover}"
    best = results.sort_values("kappa", ascending=False, kind="stable").iloc[0]
    return f"{best['judge']} agrees best with people on refusals (kappa {best['kappa']:.2f}). {cover}"


def no_results() -> pd.DataFrame:
    """The table of ``compare`` where there is nothing to compare."""
    return pd.DataFrame(columns=list(RESULTS))
