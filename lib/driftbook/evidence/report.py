"""What a reader sees of a test: e-paths of judged claims, answers of both sides, baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from driftbook.evidence.baselines import NAMES
from driftbook.evidence.cascade import Tested
from driftbook.evidence.outcomes import Outcome, strongest_first
from driftbook.parameters import Validate
from driftbook.prompts import Prompt


def threshold(tested: Tested) -> float:
    """The e-value that e-BH asks of each claim: hypotheses / (alpha * confirmed), of a lone claim where none was
    confirmed.

    Closed e-BH accepts somewhat less (never below 1 / alpha) where other claims are far above it.
    """
    return len(tested.hypotheses) / (tested.alpha * max(1, int(tested.looks.rejected.sum())))


def e_paths(tested: Tested, section: Validate, most: int = 8) -> pd.DataFrame:
    """Long table of e-values for pictures: hypothesis, prompts, e_value; the ``most`` strongest hypotheses, from e =
    1."""
    best = np.argsort(-tested.looks.e, kind="stable")[:most]
    paths = tested.paths(section.margin_of("score"))
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
    outcomes: Sequence[Outcome], prompts: Mapping[str, Prompt], most: int = 3, each: int = 4
) -> pd.DataFrame:
    """Answers of both sides to read, for the ``most`` strongest claims.

    Not only the best examples: ``each`` prompts are spread evenly from the clearest win to the clearest loss, in that
    order.
    """
    rows = []
    for one in strongest_first(outcomes)[:most]:
        table = one.texts.assign(score=one.scores)
        x = one.x.sort_values(ascending=False, kind="stable")
        places = np.unique(np.linspace(0, len(x) - 1, each).round().astype(int)) if len(x) else []
        for prompt_id in x.index[places]:
            pair = table[table["prompt_id"] == prompt_id].groupby("side").first()
            rows.append(
                {
                    "claim": one.hypothesis.text,
                    "direction": one.direction,
                    "prompt": prompts[prompt_id].shown(),
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
    """AUCs for a picture: label, auc, low, high, claim; the strongest confirmed claims, then the baselines of the
    strongest one that has any."""
    held = claims[claims["auc"].notna()].head(most)
    rows = [(c.text, c.auc, c.auc_low, c.auc_high, True) for c in held.itertuples()]
    for r in beside[beside["hypothesis_id"].isin(beside["hypothesis_id"].head(1))].itertuples():
        rows.append((f"baseline: {NAMES[r.baseline]}", r.auc, r.auc_low, r.auc_high, False))
    return pd.DataFrame(rows, columns=["label", "auc", "low", "high", "claim"])
