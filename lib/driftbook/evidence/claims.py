"""The table of claims: effects with intervals, e-values, and how each stands beside trivial rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from driftbook.evidence.baselines import NAMES, Rivals, beside, together
from driftbook.evidence.cascade import Screening, Tested
from driftbook.evidence.eprocess import bounds
from driftbook.evidence.intervals import Interval, auc_interval, prompts_needed, sign_flip_p
from driftbook.evidence.material import Material
from driftbook.evidence.multiplicity import bh_adjusted, selected_alpha
from driftbook.evidence.wins import Wins, mean_by

if TYPE_CHECKING:
    from driftbook.parameters import Validate


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
    rivals: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per hypothesis, confirmed ones first, with effects, intervals and e-values; ``rivals`` is the table of
    ``beside_rivals``.

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
            "adds_to_rivals": False,
            "explained_by": "",
        }
        if h.hypothesis_id in tested_rows:
            i = tested_rows[h.hypothesis_id]
            level = (
                selected_alpha(section.alpha, confirmed, len(tested.hypotheses))
                if tested.looks.rejected[i]
                else section.alpha
            )
            row |= _claim(material, tested, i, level, section)
            if rivals is not None and len(rivals):
                row |= _summary(rivals[rivals["hypothesis_id"] == h.hypothesis_id])
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    table["frozen"] = table["hypothesis_id"].map(dict(zip(frozen["hypothesis_id"], frozen["frozen"], strict=True)))
    numbers = [c for c in CLAIMS if c not in TEXT_COLUMNS]
    table[numbers] = table[numbers].astype(np.float64)
    table["p_bh"] = bh_adjusted(table["p_value"].to_numpy())
    table["prompts"] = table["prompts"].fillna(0).astype(int)
    table["cluster"] = table["cluster"].astype("int32")
    table[["confirmed", "adds_to_rivals"]] = table[["confirmed", "adds_to_rivals"]].astype(bool)
    return table.sort_values(
        ["confirmed", "e_value", "hypothesis_id"], ascending=[False, False, True], ignore_index=True
    )


CLAIMS = (
    *("hypothesis_id", "text", "direction", "frozen", "status", "proposer", "cluster", "prompts", "judge", "missing"),
    *("win_rate", "win_low", "win_high", "rate_base", "rate_intervention", "rate_difference", "rate_low", "rate_high"),
    *("auc", "auc_low", "auc_high", "p_screen", "e_value", "stopped", "p_value", "p_bh", "confirmed"),
    *("rival_bow", "rival_embedding", "rival_length", "rival_judge", "share_of_bow", "share_of_bow_low"),
    *("share_of_bow_high", "adds_to_rivals", "explained_by", "judge_agreement", "prompts_needed"),
)
TEXT_COLUMNS = ("hypothesis_id", "text", "direction", "frozen", "status", "proposer", "judge", "explained_by")


def _claim(material: Material, tested: Tested, i: int, level: float, section: Validate) -> dict[str, Any]:
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
    means = [float(v[~np.isnan(v)].mean()) if not np.isnan(v).all() else np.nan for v in (one, two)]
    return (means[0], means[1]), (2 * low - 1, 2 * high - 1)


RIVALS = (
    *("hypothesis_id", "text", "direction", "rival", "prompts", "auc", "auc_low", "auc_high"),
    *("share", "share_low", "share_high", "correlation", "left", "left_low", "left_high", "unrelated", "verdict"),
)


def beside_rivals(tested: Tested, rivals: Rivals | None, seed: int) -> pd.DataFrame:
    """One row per tested hypothesis and rival, on the texts that both have read.

    ``auc`` is the rival's, ``share`` what the claim reaches of it beyond one half; ``left`` is the claim's correlation
    with the side when the rival's score is held fixed, ``correlation`` the same when nothing is, ``unrelated`` what a
    claim that has nothing to do with the rival would keep. The bag of words is
    fitted without the claim's own words. ``verdict`` is ``adds``, ``explained`` or ``open``.
    """
    rows = []
    for i, h in enumerate(tested.hypotheses if rivals is not None else []):
        texts, scores, _ = scores_of(tested, i)
        up, prompt = (texts["side"] == h.direction).to_numpy(), texts["prompt_id"].to_numpy()
        sign = 1 if h.direction == "intervention" else -1
        for name, other in rivals.scores(texts["text_id"].tolist(), h.words).items():
            known = ~(np.isnan(scores) | np.isnan(other))
            if not known.any() or len({*up[known]}) < 2:
                continue
            b = beside(scores[known], up[known], sign * other[known], prompt[known], seed=seed)
            found = (*b.auc, *b.share, b.correlation, *b.left, b.unrelated, b.verdict)
            rows.append((h.hypothesis_id, h.text, h.direction, name, len({*prompt[known]}), *found))
    return pd.DataFrame(rows, columns=list(RIVALS))


def share_together(tested: Tested, rivals: Rivals | None, seed: int) -> Interval | None:
    """The share of the bag of words' AUC beyond one half that the confirmed claims reach together, as a cross-fitted
    classifier; on the texts that all of them have read. None without rivals or a confirmed claim, or when fewer than
    20 prompts are shared."""
    rows = np.flatnonzero(tested.looks.rejected) if rivals is not None else []
    tables = [scores_of(tested, i)[:2] for i in rows]
    if not tables:
        return None
    scores = pd.concat([pd.Series(s, index=t["text_id"].to_numpy()) for t, s in tables], axis=1, join="inner").dropna()
    texts = tables[0][0].set_index("text_id").loc[scores.index]
    if texts["prompt_id"].nunique() < 20:
        return None
    up, prompt = (texts["side"] == "intervention").to_numpy(), texts["prompt_id"].to_numpy()
    words = rivals.scores(scores.index.tolist())["words"]
    return beside(together(scores.to_numpy(), up, prompt), up, words, prompt, seed=seed).share


def _summary(beside: pd.DataFrame) -> dict[str, Any]:
    """What the table of claims says about the rivals of one claim."""
    if beside.empty:
        return {}
    by_name = beside.set_index("rival")
    row: dict[str, Any] = {
        "adds_to_rivals": bool((by_name["verdict"] == "adds").all()),
        "explained_by": ", ".join(NAMES[n] for n in by_name.index[by_name["verdict"] == "explained"]),
    }
    columns = {"words": "rival_bow", "embeddings": "rival_embedding", "length": "rival_length", "judge": "rival_judge"}
    row |= {column: by_name.loc[name, "auc"] for name, column in columns.items() if name in by_name.index}
    shares = {"share_of_bow": "share", "share_of_bow_low": "share_low", "share_of_bow_high": "share_high"}
    return row | {column: by_name.loc["words", key] for column, key in shares.items()}
