"""Null experiments deal the same texts anew: the sides are exchangeable, nothing leaks, and the whole path from texts
to claims runs."""

import numpy as np
import pandas as pd
import pytest

from driftbench import null_runs
from driftbook import cluster
from driftbook.behaviours.catalogue import panel
from driftbook.discovery.embeddings import Embedded
from driftbook.ledger import Ledger
from driftbook.parameters import Cluster, Validate

WORDS = [f"word{a}{b}" for a in "abcdefgh" for b in "klmno"]


def texts_of(prompts=90, samples=4):
    rng, rows = np.random.default_rng(0), []
    for p in range(prompts):
        split = ("discover", "screen", "validate")[p % 3]
        for s in range(samples):
            text = " ".join(rng.choice(WORDS, size=12))
            rows.append((f"{p:03d}{s}", "base", f"p{p}", "f", split, s, 0, 1.0, text, f"prompt {p}"))
    names = ["text_id", "side", "prompt_id", "family", "split", "sample_index", "round", "propensity", "text", "prompt"]
    return pd.DataFrame(rows, columns=names)


def test_dealing_gives_each_side_half_of_every_prompt_and_is_seeded():
    texts = texts_of()
    one = null_runs.deal(texts, 3)
    assert (one.groupby(["prompt_id", "side"]).size() == 2).all()
    assert one.equals(null_runs.deal(texts, 3)) and not one.equals(null_runs.deal(texts, 4))
    share = np.mean([(null_runs.deal(texts, s)["side"] == "base").to_numpy() for s in range(200)], axis=0)
    assert share.min() > 0.35 and share.max() < 0.65  # every text is as likely on either side
    with pytest.raises(ValueError, match="even"):
        null_runs.deal(texts.iloc[:-1], 0)


class Counted:
    """Embeddings that count words: no model is loaded."""

    def __call__(self, words):
        vectors = np.array([[w.split().count(v) + 0.1 for v in WORDS] for w in words], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_path_from_texts_to_claims_runs_on_dealt_sides(tmp_path, monkeypatch):
    embed = Counted()

    class Embedding:
        words = staticmethod(embed)

        def __init__(self, texts):
            self.vectors = embed(texts["text"].tolist())
            self.counts = Embedded(self.vectors, len(texts), 0, 0, 0.0)

    monkeypatch.setattr(cluster, "embed_texts", lambda texts, *a, **k: Embedding(texts))
    section = Cluster(clusters=3, bootstraps=2, resamples=100)
    ground = null_runs.prepare(texts_of(), section, tmp_path, 0, lambda *a: None)
    ledger = Ledger(tmp_path / "a.sqlite", 0.0)
    tables = [null_runs.null_run(ground, Validate(), ledger, seed) for seed in range(4)]
    table = pd.concat(tables)
    assert len(table) == 8 and table["confirmed"].sum() <= 1  # at 5% a run; 200 of them are a bench
    assert (table.loc[table["way"] == "as it ships", "asked"] >= len(panel())).all()
    assert tables[0].equals(null_runs.null_run(ground, Validate(), ledger, 0))
