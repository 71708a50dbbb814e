"""The table of claims: what was measured on both sides, in its unit, how sure it is, and what stands beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from driftbook.evidence.baselines import NAMES, Rivals, beside, together
from driftbook.evidence.cascade import Screening
from driftbook.evidence.intervals import Interval, auc_interval
from driftbook.evidence.lengths import at_lengths
from driftbook.evidence.material import Material
from driftbook.evidence.outcomes import Outcome, alike, strongest_first
from driftbook.prompts import SIDES

CLAIMS = (
    *("hypothesis_id", "claim", "text", "direction", "measure", "unit", "kind", "scope", "status", "confirmed"),
    *("base", "intervention", "difference", "low", "high", "at_length"),
    *("win_rate", "win_low", "win_high", "size", "like"),
    *("p_value", "q_value", "e_value", "prompts", "declined_base", "declined_intervention", "judge", "stopped"),
    *("proposer", "cluster", "auc", "auc_low", "auc_high", "p_screen", "baseline_bow", "baseline_embedding"),
    *("baseline_length", "baseline_judge", "share_of_bow", "share_of_bow_low", "share_of_bow_high"),
    *("adds_to_baselines", "explained_by", "judge_agreement", "prompts_needed", "frozen"),
)
NUMBERS = tuple(
    c
    for c in CLAIMS
    if c
    not in (
        *("hypothesis_id", "claim", "text", "direction", "measure", "unit", "kind", "scope", "status", "confirmed"),
        *("like", "judge", "proposer", "cluster", "prompts", "adds_to_baselines", "explained_by", "frozen"),
    )
)


def claims_table(
    material: Material,
    frozen: pd.DataFrame,
    screening: Screening,
    outcomes: Sequence[Outcome],
    beside_baselines: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per hypothesis: confirmed ones first, each kind by the size of its effect.

    ``claim`` says it in plain units; ``base``, ``intervention`` and ``difference`` (intervention minus base) are in
    ``unit``; ``at_length`` is the share of the base's answers that would show a confirmed behaviour if they were as
    long as the changed model's (``lengths.at_lengths``). ``size`` is the net share of prompts that moved in the
    claimed direction, which compares units. ``like`` is the id of a stronger confirmed claim that says nearly the
    same. ``p_value`` and ``q_value`` are those of the fixed sample, for what was counted; ``e_value`` stands beside
    all, and decides where a paid judge gave the verdicts.
    """
    repeats = alike(outcomes)
    screened = screening.table.set_index("hypothesis_id")["p_screen"]
    rows = [_row(o, repeats, material.seed) for o in strongest_first(outcomes)]
    tested = {o.hypothesis.hypothesis_id for o in outcomes}
    for h in material.hypotheses:
        if h.hypothesis_id not in tested:
            about = {"text": h.text, "direction": h.direction, "proposer": h.proposer, "cluster": h.cluster}
            rows.append(
                {"hypothesis_id": h.hypothesis_id, "claim": h.text, "kind": "judged", "status": "screened out"}
                | about
                | {"measure": json.dumps(dict(h.measure or {"kind": "judge"})), "unit": "score", "confirmed": False}
            )
    stood = {} if beside_baselines is None else dict(list(beside_baselines.groupby("hypothesis_id")))
    rows = [r | (_summary(stood[r["hypothesis_id"]]) if r["hypothesis_id"] in stood else {}) for r in rows]
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    table["p_screen"] = table["hypothesis_id"].map(screened)
    table["frozen"] = table["hypothesis_id"].map(dict(zip(frozen["hypothesis_id"], frozen["frozen"], strict=True)))
    table[list(NUMBERS)] = table[list(NUMBERS)].astype(np.float64)
    table["prompts"] = table["prompts"].fillna(0).astype(int)
    table["cluster"] = table["cluster"].fillna(-1).astype("int32")
    for column in ("confirmed", "adds_to_baselines"):
        table[column] = table[column].eq(True)
    texts = ["like", "explained_by", "scope", "judge"]
    table[texts] = table[texts].fillna("").astype(str)
    return table


def _row(one: Outcome, repeats: dict[str, str], seed: int) -> dict[str, Any]:
    h, known = one.hypothesis, ~np.isnan(one.scores)
    up = (one.texts["side"] == one.direction).to_numpy()
    row = {
        "hypothesis_id": h.hypothesis_id,
        "claim": one.sentence,
        "text": h.text,
        "direction": one.direction,
        "measure": one.measure.name,
        "unit": one.measure.unit,
        "kind": one.measure.family,
        "scope": one.scope,
        "status": one.status,
        "confirmed": one.confirmed,
        "base": one.base,
        "intervention": one.intervention,
        "difference": one.difference.estimate,
        "low": one.difference.low,
        "high": one.difference.high,
        "win_rate": one.win_rate.estimate,
        "win_low": one.win_rate.low,
        "win_high": one.win_rate.high,
        "size": one.size,
        "like": repeats.get(h.hypothesis_id, ""),
        "p_value": one.p_value,
        "q_value": one.q_value,
        "e_value": one.e_value,
        "prompts": len(one.x),
        "declined_base": one.declined("base"),
        "declined_intervention": one.declined("intervention"),
        "judge": one.judge,
        "stopped": one.stopped,
        "proposer": h.proposer,
        "cluster": h.cluster,
        "judge_agreement": one.agreement,
        "prompts_needed": one.needed,
    }
    if one.confirmed and one.measure.unit == "share":
        changed = (one.texts["side"] == SIDES[1]).to_numpy()
        row["at_length"] = at_lengths(one.scores, one.texts["text"].str.len().to_numpy(), changed)
    if one.confirmed and h.proposer != "panel" and 0 < up[known].sum() < known.sum():
        area = auc_interval(one.scores[known], up[known], one.texts["prompt_id"].to_numpy()[known], seed=seed)
        row |= {"auc": area.estimate, "auc_low": area.low, "auc_high": area.high}
    return row


BASELINES = (
    *("hypothesis_id", "text", "direction", "baseline", "prompts", "auc", "auc_low", "auc_high"),
    *("share", "share_low", "share_high", "correlation", "left", "left_low", "left_high", "unrelated", "verdict"),
)


def beside_baselines(outcomes: Sequence[Outcome], baselines: Rivals | None, seed: int, most: int = 5) -> pd.DataFrame:
    """One row per claim and baseline, on the held-out texts that both have read: for the ``most`` strongest confirmed
    claims that the texts, a model or a person proposed.

    ``auc`` is the baseline's, ``share`` what the claim reaches of it beyond one half; ``left`` is the claim's
    correlation with the side when the baseline's score is held fixed, ``correlation`` the same when nothing is,
    ``unrelated`` what a claim that has nothing to do with the baseline would keep. The bag of words is fitted without
    the claim's own words. ``verdict`` is ``adds``, ``explained`` or ``open``.
    """
    rows = []
    wanted = [o for o in strongest_first(outcomes) if o.confirmed and o.hypothesis.proposer != "panel"][:most]
    for one in wanted if baselines is not None else []:
        h = one.hypothesis
        scores, texts = _on(one, baselines)
        up, prompt = (texts["side"] == one.direction).to_numpy(), texts["prompt_id"].to_numpy()
        for name, other in baselines.scores(texts["text_id"].tolist(), h.words).items():
            known = ~(np.isnan(scores) | np.isnan(other))
            if not known.any() or len({*up[known]}) < 2:
                continue
            b = beside(scores[known], up[known], one.sign * other[known], prompt[known], seed=seed)
            found = (*b.auc, *b.share, b.correlation, *b.left, b.unrelated, b.verdict)
            rows.append((h.hypothesis_id, h.text, one.direction, name, len({*prompt[known]}), *found))
    return pd.DataFrame(rows, columns=list(BASELINES))


def _on(one: Outcome, baselines: Rivals) -> tuple[np.ndarray, pd.DataFrame]:
    """Scores and texts of a claim, of the texts that the baselines have read."""
    here = one.texts["text_id"].isin(baselines.ids).to_numpy()
    return one.scores[here], one.texts[here].reset_index(drop=True)


def share_together(outcomes: Sequence[Outcome], baselines: Rivals | None, seed: int) -> Interval | None:
    """The share of the bag of words' AUC beyond one half that the confirmed claims reach together, as a cross-fitted
    classifier; on the held-out texts that all of them have read. None without baselines or a confirmed claim, or when
    fewer than 20 prompts are shared."""
    good = [o for o in outcomes if o.confirmed] if baselines is not None else []
    read = [_on(o, baselines) for o in good]
    if not read:
        return None
    scores = pd.concat([pd.Series(s, index=t["text_id"].to_numpy()) for s, t in read], axis=1, join="inner").dropna()
    texts = read[0][1].set_index("text_id").reindex(scores.index)
    if texts["prompt_id"].nunique() < 20:
        return None
    up, prompt = (texts["side"] == "intervention").to_numpy(), texts["prompt_id"].to_numpy()
    words = baselines.scores(scores.index.tolist())["words"]
    return beside(together(scores.to_numpy(), up, prompt), up, words, prompt, seed=seed).share


def _summary(own: pd.DataFrame) -> dict[str, Any]:
    """What the table of claims says about the baselines of one claim."""
    by_name = own.set_index("baseline")
    row: dict[str, Any] = {
        "adds_to_baselines": bool((by_name["verdict"] == "adds").all()),
        "explained_by": ", ".join(NAMES[n] for n in by_name.index[by_name["verdict"] == "explained"]),
    }
    columns = {"words": "bow", "embeddings": "embedding", "length": "length", "judge": "judge"}
    row |= {f"baseline_{c}": by_name.loc[name, "auc"] for name, c in columns.items() if name in by_name.index}
    shares = {"share_of_bow": "share", "share_of_bow_low": "share_low", "share_of_bow_high": "share_high"}
    return row | {column: by_name.loc["words", key] for column, key in shares.items() if "words" in by_name.index}
