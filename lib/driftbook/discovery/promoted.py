"""Which next tokens the change promotes and which it suppresses, read off the screen for nothing.

The screen holds both next-token distributions at every scored position. The tokens that gain most probability there,
counted over positions and factored over prompts (non-negative matrix factorisation), name what a change talks about
before a single further answer is sampled (diff mining, Mechanistic Interpretability workshops 2025-26).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from driftbook.discovery.hypotheses import Hypothesis

TOP = 5  # tokens of a position that are looked at, gained and lost
LEAST = 0.01  # of probability: a smaller move of a token is noise
MOST = 200  # tokens of either direction that are kept and factored
THEMES = 6
COLUMNS = ("token_id", "token", "direction", "gain", "positions", "prompts", "family", "family_share", "theme")


def promoted_tokens(tokens: np.ndarray, gains: np.ndarray, scored: pd.DataFrame, tokenizer: Any) -> pd.DataFrame:
    """``promoted.parquet``: one row a token and direction, largest first.

    Args:
        tokens, gains: ``[responses, positions, 2, k]``, ids (-1: none) and differences of probability, gained before
            lost.
        scored: the responses, with prompt_id and family.

    Returns:
        direction (promoted, suppressed), ``gain`` (probability moved, summed over positions and divided by their
        number), ``positions`` and ``prompts`` where it is among the ``TOP`` and moved by at least ``LEAST``, the
        ``family`` with most of its gain and how much of it, and ``theme`` (1 to ``THEMES``; 0: none).
    """
    prompt = scored["prompt_id"].to_numpy()
    family_of = scored["family"].to_numpy()
    positions = max(1, int((tokens[:, :, 0, 0] >= 0).sum()))
    tables = []
    for side, direction in enumerate(("promoted", "suppressed")):
        row, _, _ = (where := np.nonzero((tokens[:, :, side] >= 0) & (np.abs(gains[:, :, side]) >= LEAST)))
        own = pd.DataFrame(
            {
                "token_id": tokens[:, :, side][where],
                "gain": gains[:, :, side][where].astype(np.float64),
                "prompt": prompt[row],
                "family": family_of[row],
            }
        )
        tables.append(_summary(own, direction, positions))
    out = pd.concat(tables, ignore_index=True)
    said = [_inside_a_text(tokenizer, int(i)) for i in out["token_id"]]
    out.insert(1, "token", pd.Series(said, dtype=str))  # also where there are none: no numbers
    return out[list(COLUMNS)]


def _inside_a_text(tokenizer: Any, token: int) -> str:
    """A token as it stands behind another one: at the start of a text some tokenizers drop its space."""
    alone, after = tokenizer.decode([token]), tokenizer.decode([token, token])
    return after[len(alone) :] if after.startswith(alone) else alone


def _summary(own: pd.DataFrame, direction: str, positions: int) -> pd.DataFrame:
    if own.empty:
        return pd.DataFrame(columns=[c for c in COLUMNS if c != "token"])
    by = own.groupby("token_id")
    table = by.agg(gain=("gain", "sum"), positions=("gain", "size"), prompts=("prompt", "nunique"))
    family = own.groupby(["token_id", "family"])["gain"].sum().abs().reset_index()
    top = family.sort_values(["gain", "family"], ascending=[False, True], kind="stable").drop_duplicates("token_id")
    table["family"] = top.set_index("token_id")["family"]
    table["family_share"] = top.set_index("token_id")["gain"] / table["gain"].abs()
    table["gain"] /= positions
    order = table["gain"].abs().sort_values(ascending=False, kind="stable").index[:MOST]
    table = table.loc[order].reset_index()
    return table.assign(direction=direction, theme=_themes(own, table["token_id"].to_numpy()))


def _themes(own: pd.DataFrame, kept: np.ndarray) -> np.ndarray:
    """The theme of each token: the factor of prompts by tokens that it weighs most in, [tokens]; 0 where there are too
    few prompts or tokens to tell themes apart."""
    from sklearn.decomposition import NMF  # seconds

    own = own[own["token_id"].isin(kept)]
    prompts, row = np.unique(own["prompt"], return_inverse=True)
    column = pd.Index(kept).get_indexer(own["token_id"])
    count = min(THEMES, len(prompts) // 4, len(kept) // 4)
    if count < 2:
        return np.zeros(len(kept), int)
    table = sparse.csr_matrix((own["gain"].abs(), (row, column)), shape=(len(prompts), len(kept)))
    factors = NMF(count, init="nndsvda", max_iter=400, tol=1e-3).fit(table).components_
    size = factors.sum(axis=1, keepdims=True)
    return np.where(factors.any(axis=0), (factors / np.maximum(size, 1e-12)).argmax(axis=0) + 1, 0)


def themes(table: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """Direction, theme, its strongest tokens in words, their gain and the family that has most of it."""
    rows = []
    for (direction, theme), own in table[table["theme"] > 0].groupby(["direction", "theme"], sort=True):
        said = ", ".join(repr(t.strip()) for t in own["token"].head(most) if t.strip())
        family = own.groupby("family")["gain"].sum().abs().idxmax()
        rows.append((direction, int(theme), said, float(own["gain"].sum()), family))
    out = pd.DataFrame(rows, columns=["direction", "theme", "tokens", "gain", "family"])
    return out.sort_values("gain", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def propose(table: pd.DataFrame, most: int = 4, least_prompts: int = 3) -> list[Hypothesis]:
    """Whole words that the change promotes, or suppresses, on several prompts, as claims to test: strongest first."""
    whole = table["token"].str.fullmatch(r" [^\W\d_]{4,}") & (table["prompts"] >= least_prompts)
    found = []
    for row in table[whole].sort_values("gain", key=np.abs, ascending=False, kind="stable").head(most).itertuples():
        word = row.token.strip().lower()
        side = "intervention" if row.direction == "promoted" else "base"
        measure = {"kind": "words", "words": [word], "place": "anywhere", "unit": "share"}
        found.append(Hypothesis(f'says "{word}"', side, proposer="promoted", words=(word,), measure=measure))
    return found
