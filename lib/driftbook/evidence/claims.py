"""The table of claims: effects with intervals, e-values, and what trivial rivals make of the same texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.cascade import Screening, Tested
from driftbook.evidence.eprocess import bounds
from driftbook.evidence.intervals import auc_difference, auc_interval, prompts_needed, sign_flip_p
from driftbook.evidence.material import Material
from driftbook.evidence.multiplicity import bh_adjusted, selected_alpha
from driftbook.evidence.reading import mean_by
from driftbook.evidence.rivals import Rivals
from driftbook.evidence.wins import Wins

if TYPE_CHECKING:
    from driftbook.workbook.parameters import Validate


def scores_of(tested: Tested, row: int) -> tuple[pd.DataFrame, np.ndarray, Wins]:
    """Texts that were judged for one hypothesis, their scores, and its wins over the prompts that it read."""
    tables, scores, wins = [], [], []
    for reading in tested.readings:
        for column, h in enumerate(reading.hypotheses):
            if h is tested.hypotheses[row]:
                tables.append(reading.texts)
                scores.append(reading.scores[:, column])
                wins.append([part[:, column] for part in reading.wins])
    return (
        pd.concat(tables, ignore_index=True),
        np.concatenate(scores),
        Wins(*map(np.concatenate, zip(*wins, strict=True))),
    )


def _agreement(tested: Tested, row: int) -> float:
    """Share of prompts on which the cheap and the expensive judge say the same: more, less, or a tie."""
    if not tested.cheap:
        return np.nan
    same = []
    for one, two in zip(tested.readings, tested.cheap, strict=True):
        for column, h in enumerate(one.hypotheses):
            if h is tested.hypotheses[row]:
                a, b = one.wins.x[:, column], two.wins.x[:, column]
                known = ~(np.isnan(a) | np.isnan(b))
                same.extend((np.sign(a - 0.5) == np.sign(b - 0.5))[known])
    return float(np.mean(same)) if same else np.nan


def claims_table(
    material: Material,
    frozen: pd.DataFrame,
    screening: Screening,
    tested: Tested,
    section: Validate,
    rivals: Rivals | None = None,
) -> pd.DataFrame:
    """One row per hypothesis, confirmed ones first, with effects, intervals, e-values and rivals.

    Win rate and rate difference have confidence sequences, which hold although the test may have stopped early: at
    the selection-corrected level for confirmed claims, at alpha for the rest; missing verdicts widen them to their
    worst cases. AUC has a percentile interval over resampled prompts. ``p_value`` (and ``p_bh``) is the fixed-sample
    sign-flip test of the same null, where no verdict was saved by stopping. ``rate_*`` are mean scores of the judge,
    ``rate_difference`` is intervention minus base.
    """
    tested_rows = {h.hypothesis_id: i for i, h in enumerate(tested.hypotheses)}
    screened = screening.table.set_index("hypothesis_id")
    confirmed = int(tested.looks.rejected.sum())
    rows = []
    for h in material.hypotheses:
        row: dict[str, Any] = {
            "hypothesis_id": h.hypothesis_id,
            "text": h.text,
            "direction": h.direction,
            "proposer": h.proposer,
            "cluster": h.cluster,
            "p_screen": screened.loc[h.hypothesis_id, "p_screen"],
            "status": "screened out",
            "confirmed": False,
            "beats_rivals": False,
        }
        if h.hypothesis_id in tested_rows:
            i = tested_rows[h.hypothesis_id]
            level = (
                selected_alpha(section.alpha, confirmed, len(tested.hypotheses))
                if tested.looks.rejected[i]
                else section.alpha
            )
            row |= _claim(material, tested, i, level, section, rivals)
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    table["frozen"] = table["hypothesis_id"].map(dict(zip(frozen["hypothesis_id"], frozen["frozen"], strict=True)))
    numbers = [c for c in CLAIMS if c not in TEXT_COLUMNS]
    table[numbers] = table[numbers].astype(np.float64)
    table["p_bh"] = bh_adjusted(table["p_value"].to_numpy())
    table["prompts"] = table["prompts"].fillna(0).astype(int)
    table["cluster"] = table["cluster"].astype("int32")
    table[["confirmed", "beats_rivals"]] = table[["confirmed", "beats_rivals"]].astype(bool)
    return table.sort_values(
        ["confirmed", "e_value", "hypothesis_id"], ascending=[False, False, True], ignore_index=True
    )


CLAIMS = (
    *("hypothesis_id", "text", "direction", "frozen", "status", "proposer", "cluster", "prompts", "judge", "missing"),
    *("win_rate", "win_low", "win_high", "rate_base", "rate_intervention", "rate_difference", "rate_low", "rate_high"),
    *("auc", "auc_low", "auc_high", "p_screen", "e_value", "stopped", "p_value", "p_bh", "confirmed"),
    *("rival_bow", "rival_embedding", "beats_rivals", "judge_agreement", "prompts_needed"),
)
TEXT_COLUMNS = ("hypothesis_id", "text", "direction", "frozen", "status", "proposer", "judge")


def _claim(
    material: Material, tested: Tested, i: int, level: float, section: Validate, rivals: Rivals | None
) -> dict[str, Any]:
    h, looks = tested.hypotheses[i], tested.looks
    texts, scores, wins = scores_of(tested, i)
    known = ~np.isnan(scores)
    order = [p for p, x in zip(tested.prompts, looks.x[i], strict=True) if not np.isnan(x)]
    up = (texts["side"] == h.direction).to_numpy()
    prompt = texts["prompt_id"].to_numpy()
    low, high = bounds(wins.low, wins.high, level)
    x = wins.x[~np.isnan(wins.x)]
    (rate_up, rate_down), (rate_low, rate_high) = _rates(scores, prompt, up, order, level)
    if h.direction == "base":  # the table says intervention minus base throughout
        rate_up, rate_down, rate_low, rate_high = rate_down, rate_up, -rate_high, -rate_low
    status = "confirmed" if looks.rejected[i] else "stopped: out of reach" if looks.futile[i] else "not confirmed"
    row = {
        "status": status,
        "prompts": len(order),
        "judge": tested.judged_by[i],
        "missing": float(1 - known.mean()),
        "win_rate": float(x.mean()) if len(x) else np.nan,
        "win_low": low,
        "win_high": high,
        "rate_base": rate_down,
        "rate_intervention": rate_up,
        "rate_difference": rate_up - rate_down,
        "rate_low": rate_low,
        "rate_high": rate_high,
        "e_value": float(looks.e[i]),
        "stopped": int(looks.stopped[i]),
        "p_value": np.nan,
        "confirmed": bool(looks.rejected[i]),
        "judge_agreement": _agreement(tested, i),
        "prompts_needed": np.nan,
    }
    if tested.fixed_sample:
        row["p_value"] = sign_flip_p(wins.low, 0.5 + section.margin, seed=material.seed)
    if len(x) > 1:
        needed = prompts_needed(float(x.mean()), float(x.std()), section.margin, len(tested.hypotheses), section.alpha)
        row["prompts_needed"] = needed if needed is not None else np.nan
    if known.any() and 0 < up[known].sum() < known.sum():
        area = auc_interval(scores[known], up[known], prompt[known], seed=material.seed)
        row |= {"auc": area.estimate, "auc_low": area.low, "auc_high": area.high}
        if rivals is not None:
            row |= _against_rivals(rivals, texts[known], scores[known], up[known], h, material.seed)
    return row


def _rates(
    scores: np.ndarray, prompt: np.ndarray, up: np.ndarray, order: list[str], level: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Mean score over prompts of the direction's side and of the other, and bounds on the difference.

    The interval is the confidence sequence of (difference + 1) / 2; a missing score takes 0 or 1, whichever is worse.
    """
    filled = {b: np.where(np.isnan(scores), b, scores)[:, None] for b in (0.0, 1.0)}

    def mean(values: np.ndarray, side: np.ndarray) -> np.ndarray:
        return mean_by(values[side], prompt[side], order)[:, 0]

    one, two = mean(scores[:, None], up), mean(scores[:, None], ~up)
    worst, best = mean(filled[0.0], up) - mean(filled[1.0], ~up), mean(filled[1.0], up) - mean(filled[0.0], ~up)
    low, high = bounds((worst + 1) / 2, (best + 1) / 2, level)
    return (float(np.nanmean(one)), float(np.nanmean(two))), (2 * low - 1, 2 * high - 1)


def _against_rivals(
    rivals: Rivals, texts: pd.DataFrame, scores: np.ndarray, up: np.ndarray, h: Hypothesis, seed: int
) -> dict[str, Any]:
    """AUC of each rival on the texts that were judged; beaten when the label's AUC is higher and the interval
    excludes 0."""
    row: dict[str, Any] = {}
    prompt, beaten = texts["prompt_id"].to_numpy(), []
    for name, table in (("rival_bow", rivals.bow), ("rival_embedding", rivals.embedding)):
        other = texts["text_id"].map(table).to_numpy(dtype=np.float64) * (1 if h.direction == "intervention" else -1)
        gap = auc_difference(scores, other, up, prompt, seed=seed)
        row[name] = auc_interval(other, up, prompt, resamples=1, seed=seed).estimate
        beaten.append(gap.low > 0)
    return row | {"beats_rivals": all(beaten)}
