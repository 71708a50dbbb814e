"""How claims grow when the change is exaggerated, and what shows only then.

A real effect of the change grows with the strength of amplification; a chance difference does not. All of it is read in
answers to held-out prompts: ordinary ones of both sides (strength -1 is the base, 0 the changed side) beside amplified
ones to the same prompts. What is confirmed in amplified answers alone is a difference between the models that ordinary
answers do not show: a kind of claim of its own, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import describe
from driftbook.discovery.amplification import ordinary
from driftbook.evidence.counting import read_all
from driftbook.evidence.intervals import summary_interval
from driftbook.evidence.judges import Judge
from driftbook.evidence.material import Material, by_judge
from driftbook.evidence.outcomes import Outcome
from driftbook.evidence.paired import paired_test
from driftbook.evidence.wins import mean_by
from driftbook.numbers import fixed

LEVEL = 0.1  # of alpha that claims about amplified answers may spend, beside those about ordinary ones
DOSES = (
    *("hypothesis_id", "text", "direction", "unit", "strength", "prompts", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p_value", "q_value", "confirmed"),
)
TIMES = {1: "onefold", 2: "twofold", 3: "threefold", 4: "fourfold"}


def dose_response(
    material: Material,
    outcomes: Sequence[Outcome],
    alpha: float,
    judge: Judge | None = None,
    read_groups: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """``doses.parquet``: what each measure shows at every strength, with 95% intervals over prompts, and how far from
    the base.

    The strongest amplification is tested against the base over all hypotheses together, at ``LEVEL`` of ``alpha``;
    at other strengths p, q and ``confirmed`` are empty. What only a paid judge reads has no dose-response. ``judge``: a
    free one; ``read_groups``: what texts show of the groups of sentences that are claimed, by text id. Empty without
    amplified answers.
    """
    texts = material.amplified
    found = [o for o in outcomes if judge is not None or not by_judge(o.hypothesis)]
    if texts.empty or not found:
        return pd.DataFrame(columns=list(DOSES))
    plain = material.texts[(material.texts["round"] == 0) & (material.texts["side"] == "intervention")]
    plain = plain[plain["prompt_id"].isin(set(texts["prompt_id"]))].assign(strength=0.0)
    base = ordinary(texts)
    texts = pd.concat([base.assign(strength=-1.0), plain, texts[texts["strength"] > 0]], ignore_index=True)
    known = read_groups(texts.drop_duplicates("text_id")) if read_groups else None
    measures, scores = read_all([o.hypothesis for o in found], texts, material, known, judge)
    prompts = sorted(set(texts["prompt_id"]))
    centers = [m.summary for m in measures]
    by = {a: texts["strength"].to_numpy() == a for a in sorted(set(texts["strength"]))}
    prompt = texts["prompt_id"].to_numpy()
    means = {a: mean_by(scores[rows], prompt[rows], prompts) for a, rows in by.items()}
    sign = {"intervention": 1, "base": -1}
    directions = [sign.get(o.hypothesis.direction, 0) for o in found]
    rows = []
    for a, shown in means.items():
        top = a == max(means)
        level = LEVEL * alpha if top else 0.05
        test = None if a < 0 else paired_test(means[-1.0], shown, directions, level, center=centers, seed=material.seed)
        for i, o in enumerate(found):
            x = shown[~np.isnan(shown[:, i]), i]
            told = summary_interval(x, centers[i]) if len(x) else (np.nan,) * 3
            moved = (test.difference[i], test.low[i], test.high[i]) if test else (np.nan,) * 3
            tested = (test.p[i], test.adjusted[i], bool(test.rejected[i])) if top else (np.nan, np.nan, False)
            about = (o.hypothesis.hypothesis_id, o.hypothesis.text, o.direction, o.measure.unit)
            rows.append((*about, a, len(x), *told, *moved, *tested))
    return pd.DataFrame(rows, columns=list(DOSES))


def with_doses(claims: pd.DataFrame, doses: pd.DataFrame) -> pd.DataFrame:
    """The table of claims with ``amplified``, a sentence on the strongest amplification ("" where there was none), and
    ``only_amplified``: confirmed there, and not in ordinary answers."""
    said, only = dict.fromkeys(claims["hypothesis_id"], ""), set()
    for name, own in doses.groupby("hypothesis_id", sort=False):
        own = own.set_index("strength").sort_index()
        top, plain = own.iloc[-1], own.loc[0.0]
        said[name] = (
            f"{top['text']}: when exaggerated {fold(top.name)}, {_told(top)}; in ordinary answers {_told(plain)}"
        )
        if top["confirmed"]:
            only.add(name)
    confirmed = claims["hypothesis_id"].isin(only) & ~claims["confirmed"]
    status = claims["status"].where(~confirmed, "only when amplified")
    return claims.assign(amplified=claims["hypothesis_id"].map(said), only_amplified=confirmed, status=status)


def fold(strength: float) -> str:
    """A strength in words: "threefold"."""
    return TIMES.get(strength, f"{strength:g}-fold")


def _told(row: pd.Series) -> str:
    scale, digits = (100, 0) if row["unit"] == "share" else (1, 1)
    low, high = (fixed(scale * row[end], digits) for end in ("low", "high"))
    return f"{describe(row['value'], row['unit'])} ({low} to {high})"
