"""A pool of real answers: decoded once from the base and from every plant, kept as one table, replayed in seconds.

The table has a row a text: ``side``, ``change`` (the plant and its strength; null for the base, whose texts stand
beside those of every change), ``family``, ``prompt``, ``text`` and ``js`` (nats a token between the two models along
the base's first answer to the prompt). The ``texts`` intervention reads it as it is, and so do the strategies of
sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from driftbench import pools as pool
from driftbench.proof.harvest import Design, Lookup, harvest
from driftbench.proof.plants import Garden, Plant
from driftbook.discovery.splits import sample_prompts
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import student_mean
from driftbook.prompt_files import read_prompts
from driftbook.prompts import Prompt, PromptSet

COLUMNS = ("side", "change", "family", "prompt", "text", "js")


def asked(garden: Garden, design: Design) -> PromptSet:
    """The prompts of a pool, all of them to be searched: nothing is held out."""
    prompts = sample_prompts(list(read_prompts(list(design.prompts), garden.root)), design.max_prompts)
    return PromptSet.of(prompts, ["discover"] * len(prompts))


def gather(garden: Garden, plants: Sequence[Plant], design: Design, progress: Callable[..., Any]) -> pd.DataFrame:
    """``design.samples`` answers to every prompt from the base and from each plant, in ``COLUMNS``.

    Adapters, texts and divergence come from the caches where they were made before; a killed run goes on.
    """
    prompts = asked(garden, design)
    bar = progress(len(plants), "plants", "plants")
    parts = []
    for plant in plants:
        found = harvest(garden, plant, prompts, design, embed_seconds=0.0)
        js = found.divergence.set_index("prompt_id")["js"]
        texts = found.texts.assign(change=plant.label, js=found.texts["prompt_id"].map(js).astype(np.float32))
        base = texts["side"] == "base"
        if not parts:
            parts.append(texts[base].assign(change=None, js=np.nan))
        parts.append(texts[~base])
        bar.update(1)
    bar.close()
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def read_pools(
    table: pd.DataFrame, plants: Sequence[Plant], vectors: Lookup, seeds: Sequence[int]
) -> list[pool.TextPool]:
    """One pool a change and seed (an order of the samples): what is planted is what the plant's own scorer sees.

    Raises:
        DriftbookError: the table lacks a column, or holds a change that is no plant.
    """
    if missing := [c for c in COLUMNS if c not in table]:
        raise DriftbookError(f"the pool of answers has no column {missing[0]}; make it again with make bench-pool")
    known = {p.label: p for p in plants}
    base = table[table["side"] == "base"]
    pools = []
    for change in dict.fromkeys(table["change"].dropna()):
        if change not in known:
            raise DriftbookError(f"the pool of answers holds {change!r}, and no plant of that name and strength exists")
        own, plant = table[table["change"] == change], known[change]
        both = pd.concat([base, own], ignore_index=True)
        prompts = [Prompt(p, f) for p, f in own[["prompt", "family"]].drop_duplicates().itertuples(index=False)]
        ids = {p.text: p.prompt_id for p in prompts}
        both["prompt_id"] = both["prompt"].map(ids)
        shown = None if plant.scorer is None else both["text"].map(plant.scorer)
        both["behaviour"] = None if shown is None else np.where(shown, plant.name, None)
        js = own.drop_duplicates("prompt").set_index("prompt")["js"]
        used = both["text"].drop_duplicates()
        own_vectors = Lookup({t: i for i, t in enumerate(used)}, vectors(used))
        for seed in seeds:
            pools.append(
                pool.read_texts(
                    both,
                    prompts,
                    own_vectors,
                    planted={} if shown is None else {plant.name: 1},
                    js={ids[p]: float(v) for p, v in js.items()},
                    seed=seed,
                    name=change,
                )
            )
    return pools


def rates(table: pd.DataFrame, plants: Sequence[Plant]) -> pd.DataFrame:
    """One row a change: texts, the share of each side's texts that shows the behaviour, the difference with a 95%
    interval over prompts, and the mean divergence. NaN where no behaviour is expected."""
    base = table[table["side"] == "base"]
    rows = []
    for plant in plants:
        own = table[table["change"] == plant.label]
        values = [np.nan] * 5
        if plant.scorer and len(own):
            shares = [t["text"].map(plant.scorer).groupby(t["prompt"]).mean() for t in (base, own)]
            difference = student_mean((shares[1] - shares[0]).to_numpy(float))
            values = [s.mean() for s in shares] + [difference.estimate, difference.low, difference.high]
        if len(own):
            js = own.drop_duplicates("prompt")["js"].mean()
            rows.append((plant.label, plant.says, len(own), *map(float, values), float(js)))
    columns = ["change", "says", "texts", "base", "intervention", "difference", "low", "high", "js"]
    return pd.DataFrame(rows, columns=columns)
