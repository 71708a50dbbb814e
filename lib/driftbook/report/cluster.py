"""The pictures and tables of *cluster*."""

from __future__ import annotations

import numpy as np
import pandas as pd

from driftbook.workbook.figures import Figure, dumbbell

MOST_ROWS = 24
PANEL_COLUMNS = ("said", "kind", "q_value", "e_value", "prompts", "declined_base", "declined_intervention")


def panel(table: pd.DataFrame, seed: int, level: float = 0.05) -> Figure:
    """Shares of answers on both sides: the behaviours that differ most, among those that differ at ``level``."""
    shares = table[(table["unit"] == "share") & table["difference"].notna()]
    moved = shares[shares["q_value"] <= level]
    order = (moved if len(moved) else shares).sort_values("difference", key=np.abs, ascending=False, kind="stable")
    shown = order.head(MOST_ROWS)
    title = f"{len(moved)} of {len(shares)} behaviours are shown in another share of answers (q <= {level})"
    prompts = int(table["prompts"].max()) if len(table) else 0
    figure = dumbbell(
        shown["behaviour"].tolist(),
        shown["base"],
        shown["intervention"],
        shown["low"],
        shown["high"],
        title=title,
        caption=f"The largest changes first, over {prompts:,} prompts. Bars: 95% interval of the change, prompts drawn "
        f"anew, seed {seed}. q: Benjamini-Hochberg over the panel; validate decides over panel and proposals together.",
    )
    figure.best = True
    return figure
