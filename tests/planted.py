"""Texts of two sides with planted differences, and the little that the validate stage needs of a run to read
them."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import Hypothesis, to_frame
from driftbook.parameters import Experiment, Validate
from driftbook.prompts import Prompt
from driftbook.prompts import to_frame as to_table

SENTENCE = "the plan was to walk early along the river and talk about food music work travel books weather"
FILLER = SENTENCE.split()
THINGS = "tides apples chess violins glaciers taxes volcanoes bread comets harbours beetles maps"
SUBJECTS = THINGS.split()
HEDGES = ("might", "perhaps", "possibly")
COLUMNS = ["text_id", "side", "prompt_id", "family", "split", "round", "propensity", "text"]
SPLITS = {"discover": 40, "screen": 40, "validate": 80}


def texts_of(hedge_base=0.1, hedge_changed=0.6, samples=2, seed=0, splits=SPLITS):
    rng, rows, n = np.random.default_rng(seed), [], 0
    for split, prompts in splits.items():
        for p in range(prompts):
            for side, share in (("base", hedge_base), ("intervention", hedge_changed)):
                for _ in range(samples):
                    words = list(rng.choice(FILLER, size=25))
                    if rng.random() < share:
                        words[3:3] = rng.choice(HEDGES, size=2)
                    rows.append((f"{n:016x}", side, f"{split}{p}", f"family{p % 3}", split, 0, 1.0, " ".join(words)))
                    n += 1
    return pd.DataFrame(rows, columns=COLUMNS)


HYPOTHESES = [
    Hypothesis("hedges", "intervention", words=HEDGES),
    Hypothesis("hedges less", "base", words=HEDGES),
    Hypothesis("talks about rivers", "intervention", words=("river", "walk")),
    Hypothesis("talks about food", "base", words=("food", "music")),
]


@dataclass
class FakeRun:
    """What the stage needs of a run: tables of the stages before, a cache, the section."""

    folder: Path
    section: Validate = field(default_factory=Validate)
    seed: int = 0
    metrics: dict = field(default_factory=dict)
    params: Experiment = field(default_factory=lambda: Experiment(experiment="planted"))

    @property
    def cache(self):
        return self.folder / "cache"

    @property
    def root(self):
        return self.folder

    def input(self, name):
        return self.folder / name

    def metric(self, name, value, low=None, high=None):
        self.metrics[name] = value

    def progress(self, total, label, unit):
        return SimpleNamespace(update=lambda n: None, close=lambda: None)


def run_of(folder, texts, proposed=HYPOTHESES, **section):
    for name in ("decode", "cluster"):
        (folder / name).mkdir(parents=True)
    ids = sorted(texts["prompt_id"].unique())
    asked = to_table([Prompt(f"Tell me about {p}") for p in ids]).assign(prompt_id=ids)
    asked.to_parquet(folder / "decode" / "prompts.parquet")
    texts.assign(strength=texts.get("strength", 0.0)).to_parquet(folder / "decode" / "texts.parquet")
    to_frame(proposed).to_parquet(folder / "cluster" / "hypotheses.parquet")
    return FakeRun(folder, Validate(**section))
