"""What a reader sees of a test: paths, texts of both sides, rivals, the answer in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from driftbook.evidence.baselines import NAMES
from driftbook.evidence.cascade import Tested
from driftbook.evidence.claims import scores_of
from driftbook.evidence.material import Material

if TYPE_CHECKING:
    from driftbook.parameters import Validate


def threshold(tested: Tested, section: Validate) -> float:
    """The e-value that e-BH asks of each claim: hypotheses / (alpha * confirmed), of a lone claim where none was
    confirmed.

    Closed e-BH accepts somewhat less (never below 1 / alpha) where other claims are far above it.
    """
    return len(tested.hypotheses) / (section.alpha * max(1, int(tested.looks.rejected.sum())))


def e_paths(tested: Tested, section: Validate, most: int = 8) -> pd.DataFrame:
    """Long table of e-values for pictures: hypothesis, prompts, e_value; the ``most`` strongest hypotheses, from e =
    1."""
    best = np.argsort(-tested.looks.e, kind="stable")[:most]
    paths = tested.paths(section.margin)
    tables = [
        pd.DataFrame(
            {
                "hypothesis": f"{tested.hypotheses[i].text} ({tested.hypotheses[i].direction})",
                "prompts": np.arange(len(paths[i]) + 1),
                "e_value": np.concatenate([[1.0], paths[i]]),
            }
        )
        for i in best
    ]
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["hypothesis", "prompts", "e_value"])
    )


def side_by_side(
    material: Material, tested: Tested, claims: pd.DataFrame, most: int = 3, prompts: int = 4
) -> pd.DataFrame:
    """Texts of both sides to read, for the ``most`` strongest claims.

    Not only the best examples: prompts are spread evenly from the clearest win to the clearest loss, in that order.
    """
    rows = []
    index = {h.hypothesis_id: i for i, h in enumerate(tested.hypotheses)}
    for claim in claims[claims["hypothesis_id"].isin(list(index))].head(most).itertuples():
        i = index[claim.hypothesis_id]
        texts, scores, _ = scores_of(tested, i)
        table = texts.assign(score=scores)
        x = pd.Series(tested.looks.x[i], index=tested.prompts).dropna().sort_values(ascending=False, kind="stable")
        places = np.unique(np.linspace(0, len(x) - 1, prompts).round().astype(int))
        for prompt_id in x.index[places]:
            pair = table[table["prompt_id"] == prompt_id].groupby("side").first()
            rows.append(
                {
                    "claim": claim.text,
                    "direction": claim.direction,
                    "prompt": material.prompts[prompt_id].shown(),
                    "base": pair.loc["base", "text"],
                    "intervention": pair.loc["intervention", "text"],
                    "score_base": pair.loc["base", "score"],
                    "score_intervention": pair.loc["intervention", "score"],
                    "x": x[prompt_id],
                }
            )
    names = ["claim", "direction", "prompt", "base", "intervention", "score_base", "score_intervention", "x"]
    return pd.DataFrame(rows, columns=names)


def areas(claims: pd.DataFrame, beside: pd.DataFrame, most: int = 6) -> pd.DataFrame:
    """AUCs for a picture: label, auc, low, high, claim; the strongest tested claims, then the rivals of the strongest
    one."""
    held = claims[claims["auc"].notna()].head(most)
    rows = [(c.text, c.auc, c.auc_low, c.auc_high, True) for c in held.itertuples()]
    for r in beside[beside["hypothesis_id"].isin(held["hypothesis_id"].head(1))].itertuples():
        rows.append((f"rival: {NAMES[r.rival]}", r.auc, r.auc_low, r.auc_high, False))
    return pd.DataFrame(rows, columns=["label", "auc", "low", "high", "claim"])


def answer(claims: pd.DataFrame, tested: Tested, section: Validate) -> str:
    """The answer of the stage in one sentence."""
    good = claims[claims["confirmed"].astype(bool)]
    if not len(claims):
        return "Nothing was proposed, so nothing was tested."
    where = f"on {len(tested.prompts)} held-out prompts at a false discovery rate of {section.alpha:.0%}"
    if not len(good):
        return f"None of {len(claims)} hypotheses survived {where}."
    first = good.iloc[0]
    side = "the changed model" if first["direction"] == "intervention" else "the base model"
    return (
        f"{len(good)} of {len(claims)} hypotheses survived {where}; the strongest: {side} {first['text']} "
        f"(win rate {first['win_rate']:.2f}, {first['win_low']:.2f} to {first['win_high']:.2f})."
    )
