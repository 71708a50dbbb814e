"""Does a claim hold where it was not found: outside of the cluster that proposed it, and in each family of prompts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from driftbook.evidence.eprocess import bounds
from driftbook.evidence.outcomes import Outcome

NEIGHBOURS = 5
LEAST_PROMPTS = 8  # fewer say nothing: no row
COLUMNS = ("hypothesis_id", "text", "direction", "where", "prompts", "win_rate", "low", "high", "verdict")


def clusters_near(
    seen: np.ndarray, labels: np.ndarray, held: np.ndarray, neighbours: int = NEIGHBOURS
) -> list[set[int]]:
    """The clusters of the nearest clustered texts of each held-out one, however the clusters were made.

    ``seen`` [n, d] and ``held`` [m, d] are unit vectors, ``labels`` [n]. Returns a set of labels for each held-out
    text.
    """
    near: list[set[int]] = []
    for start in range(0, len(held), 1024):
        close = np.argsort(-(held[start : start + 1024] @ seen.T), axis=1, kind="stable")[:, :neighbours]
        near += [set(map(int, row)) for row in labels[close]]
    return near


def transfer(
    outcomes: Sequence[Outcome], texts: pd.DataFrame, near: Mapping[str, set[int]], alpha: float
) -> pd.DataFrame:
    """One row per confirmed claim and place: inside and outside of its cluster (where it comes from one), and each
    family.

    ``texts``: text_id, prompt_id and, where there is one, family; ``near`` maps a text id to the clusters around it. A
    prompt is outside of a cluster when none of its texts, of either side, is near to it; both sides are treated alike,
    so under the null hypothesis the choice of prompts favours neither. ``low`` and ``high`` are a confidence sequence
    at alpha for each row on its own. ``verdict``: ``holds`` above one half, ``does not hold`` below it, else ``open``.
    """
    inside: dict[str, set[int]] = {}
    for prompt_id, text_id in zip(texts["prompt_id"], texts["text_id"], strict=True):
        inside.setdefault(prompt_id, set()).update(near.get(text_id, set()))
    family = dict(zip(texts["prompt_id"], texts["family"], strict=True)) if "family" in texts else {}
    rows = []
    for one in outcomes:
        h = one.hypothesis
        places: dict[str, list[float]] = {}
        for p, x in one.x.items() if one.confirmed else ():
            if h.cluster >= 0:
                where = "inside its cluster" if h.cluster in inside.get(p, set()) else "outside of its cluster"
                places.setdefault(where, []).append(x)
            if p in family:
                places.setdefault(f"family {family[p]}", []).append(x)
        for where, x in sorted(places.items()):
            if len(x) >= LEAST_PROMPTS:
                rows.append((h.hypothesis_id, h.text, one.direction, where, *_held(np.array(x), alpha)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _held(x: np.ndarray, alpha: float) -> tuple[int, float, float, float, str]:
    low, high = bounds(x, x, alpha)
    verdict = "holds" if low > 0.5 else "does not hold" if high < 0.5 else "open"
    return len(x), float(x.mean()), low, high, verdict


def outside(table: pd.DataFrame, hypothesis_ids: Sequence[str]) -> pd.DataFrame:
    """The rows of ``transfer`` that say whether these claims leave their cluster."""
    return table[(table["where"] == "outside of its cluster") & table["hypothesis_id"].isin(list(hypothesis_ids))]
