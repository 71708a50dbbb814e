"""Where two sets of answers differ when nothing but their text is known: the energy distance per family of prompts.

The screen for sides without a common next token: other tokenizers, a server, a table of texts. Answers are compared as
embeddings. Only answers to *different* prompts are paired, so one answer a prompt and side is enough, and no text is
held against its own prompt.

Source: Szekely and Rizzo (2013), Energy statistics, J. Stat. Plan. Inference 143; the null swaps the sides of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import t

from driftbook.evidence.wins import shuffled

LEAST = 4  # prompts of a family, for a distance with an interval
MOST = 1000  # prompts of a family that are read: the distance is known well enough, and its cost is their square
ALL = "all prompts, inside their families"
COLUMNS = ["family", "energy", "low", "high", "p", "prompts"]


FLIPS = 999  # random swaps of the sides of prompts: no p is smaller than one in a thousand


def pair_differences(vectors: np.ndarray, prompt: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """What each pair of prompts says about the distance between the sides, float64 ``[prompts, prompts]``.

    For prompts i and j with base answers x and changed ones y it is d(x_i, y_j) + d(y_i, x_j) - d(x_i, x_j) -
    d(y_i, y_j), Euclidean and averaged over the answers of each; the diagonal is 0. Its mean off the diagonal is
    unbiased for the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, and to swap the sides of a prompt turns the
    sign of its row and column.

    Args:
        vectors: ``[n, d]``, one row a text. prompt: ``[n]`` numbers from 0, each with texts of both sides. changed:
            bool ``[n]``, whether the text is of the intervention.
    """
    mean = np.zeros((2, int(prompt.max()) + 1, len(vectors)))
    mean[changed.astype(int), prompt, np.arange(len(vectors))] = 1
    mean /= mean.sum(2, keepdims=True)
    contrast = mean[1] - mean[0]
    between = -contrast @ cdist(vectors, vectors) @ contrast.T
    np.fill_diagonal(between, 0.0)
    return between


def energy_test(blocks: Sequence[np.ndarray], flips: int = FLIPS, seed: int = 0) -> tuple[float, float, float, float]:
    """(energy distance, low, high, p) from the ``pair_differences`` of one family or several, ``LEAST`` prompts in all.

    The mean over the pairs inside families. The 95% interval is the jackknife's over prompts; p is that of ``flips``
    random swaps of the sides of prompts, under which nothing changes if the sides write alike.
    """
    m, pairs = sum(map(len, blocks)), sum(len(b) * (len(b) - 1) for b in blocks)
    total = sum(b.sum() for b in blocks)
    without = np.concatenate([(total - 2 * b.sum(1)) / (pairs - 2 * (len(b) - 1)) for b in blocks])
    half = t.ppf(0.975, m - 1) * np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
    rng, null = np.random.default_rng([seed, 0xE4E6]), np.zeros(flips)
    for b in blocks:
        signs = rng.choice((-1.0, 1.0), (flips, len(b)))
        null += ((signs @ b) * signs).sum(1)
    p = (1 + (null >= total - 1e-12).sum()) / (1 + flips)
    return float(total / pairs), float(total / pairs - half), float(total / pairs + half), float(p)


def read_together(family_of: pd.Series) -> dict[str, str]:
    """Family to the name under which it is read: its own, or one for all those of fewer than ``LEAST`` prompts.

    ``family_of`` maps prompt ids to families.
    """
    sizes = family_of.value_counts()
    small = sizes.index[sizes < LEAST]
    name = small[0] if len(small) == 1 else f"{len(small)} families of less than {LEAST} prompts"
    return {family: name if size < LEAST else family for family, size in sizes.items()}


def family_energy(texts: pd.DataFrame, vectors: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """One row a family of prompts, the most different first, and a last one for ``ALL`` of them: ``COLUMNS``.

    Small families are read as one (``read_together``), and of large ones the ``MOST`` prompts whose ids hash lowest.
    What has fewer than ``LEAST`` prompts with texts of both sides has no row.

    Args:
        texts: family, prompt_id and side (base or intervention).
        vectors: ``[n, d]``, the embedding of each text; ``energy`` is in units of its distances.
    """
    frame = texts[["family", "prompt_id", "side"]].assign(row=np.arange(len(texts)))
    both = frame.groupby("prompt_id")["side"].nunique()
    frame = frame[frame["prompt_id"].isin(both.index[both == 2])]
    names = read_together(frame.drop_duplicates("prompt_id").set_index("prompt_id")["family"])
    rows, blocks = [], []
    for name, own in frame.groupby(frame["family"].map(names), sort=True):
        chosen = shuffled(own["prompt_id"].unique(), "two samples")[:MOST]
        own = own[own["prompt_id"].isin(chosen)]
        number = own["prompt_id"].map({p: i for i, p in enumerate(chosen)}).to_numpy()
        if len(chosen) >= LEAST:
            blocks.append(pair_differences(vectors[own["row"]], number, (own["side"] == "intervention").to_numpy()))
            rows.append((name, *energy_test(blocks[-1:], seed=seed), len(chosen)))
    out = pd.DataFrame(rows, columns=COLUMNS).sort_values("energy", ascending=False, kind="stable")
    if blocks:
        everything = (ALL, *energy_test(blocks, seed=seed), sum(map(len, blocks)))
        out = pd.concat([out, pd.DataFrame([everything], columns=COLUMNS)])
    return out.reset_index(drop=True)


def energy_of_prompts(families: pd.DataFrame, family_of: pd.Series) -> pd.DataFrame:
    """What ``decode.keep_divergent`` reads: ``prompt_id`` and the ``energy`` of its family, in an order that says
    nothing about a prompt. NaN where the family has none."""
    energy = dict(zip(families["family"], families["energy"], strict=True))
    names = read_together(family_of)
    order = shuffled(family_of.index, "two samples")
    return pd.DataFrame({"prompt_id": order, "energy": [energy.get(names[family_of[p]], np.nan) for p in order]})
