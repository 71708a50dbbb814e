"""The pool of real answers: how it is made, what lies in the repository, and that it can be replayed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbench import savings
from driftbench.proof import answer_pool, plants
from driftbench.proof.harvest import Design
from driftbook.errors import DriftbookError
from driftbook.text_tables import read_text_table

ROOT = Path(__file__).parent.parent
POOL = ROOT / "params/bench/pool/answers.parquet"
KNOWN = plants.read(ROOT / "params/bench/plants/plants.yml")[1]


class Lengths:
    """In the place of embeddings: what a text is like, without a model."""

    def __call__(self, texts):
        rng = np.random.default_rng(0)
        letters = rng.standard_normal((256, 24))
        vectors = np.array([letters[list(t.encode()[:60])].sum(0) if t else np.zeros(24) for t in texts])
        return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def test_a_pool_holds_the_base_once_and_the_divergence_of_each_change(monkeypatch):
    design = Design([str(ROOT / "params/prompts/discovery.jsonl")], 24, 3, 8)
    garden = SimpleNamespace(root=ROOT)
    prompts = answer_pool.asked(garden, design)
    assert len(prompts.prompts) == 24 and set(prompts.splits) == {"discover"}
    assert len({p.family for p in prompts.prompts}) > 4

    def harvest(garden, plant, prompts, design, embed_seconds):
        rows = [
            (side, p.prompt_id, p.family, p.text, k, f"{plant.label if side != 'base' else 'base'} {p.text} {k}")
            for side in ("base", "intervention")
            for p in prompts.prompts
            for k in range(design.samples)
        ]
        texts = pd.DataFrame(rows, columns=["side", "prompt_id", "family", "prompt", "sample_index", "text"])
        js = pd.DataFrame({"prompt_id": [p.prompt_id for p in prompts.prompts], "js": np.arange(24) / 100})
        return SimpleNamespace(texts=texts, divergence=js)

    monkeypatch.setattr(answer_pool, "harvest", harvest)
    bar = SimpleNamespace(update=lambda n: None, close=lambda: None)
    table = answer_pool.gather(garden, KNOWN[:2], design, lambda *a: bar)
    assert tuple(table.columns) == answer_pool.COLUMNS
    assert table.groupby(["side", "change"], dropna=False).size().tolist() == [72, 72, 72]
    own = table[table.change == KNOWN[1].label]
    assert own.groupby("prompt").js.first().reindex([p.text for p in prompts.prompts]).to_numpy() == pytest.approx(
        np.arange(24) / 100
    )
    assert table[table.side == "base"].js.isna().all() and not table.text.duplicated().any()


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    return pd.read_parquet(POOL)


def test_the_pool_in_the_repository_is_small_real_and_planted(shipped):
    assert POOL.stat().st_size < 5e6 and len(shipped) >= 20_000 and tuple(shipped.columns) == answer_pool.COLUMNS
    found = answer_pool.rates(shipped, KNOWN)
    assert set(found.change) == set(shipped.change.dropna()) <= {p.label for p in KNOWN}
    assert len(found) == 35  # those that were planted when it was made
    sizes = shipped.groupby("change", dropna=False).size()
    assert sizes.nunique() == 1
    moved = found.set_index("change")
    assert (moved.low.dropna() > 0).sum() >= 20
    assert moved.js["nothing 1"] == 0 and (moved.js.drop("nothing 1") > 0).all()
    # nobody wrote these: they vary from sample to sample
    assert shipped.text.nunique() > 0.8 * len(shipped)


def test_the_texts_intervention_reads_any_change_of_the_pool(shipped):
    held = read_text_table(POOL, "refusal 0.7")
    own = shipped[shipped.change == "refusal 0.7"]
    of = {p.prompt_id: p for p in held.prompts}
    assert len(of) == own.prompt.nunique()
    for (side, prompt_id), texts in held.texts.items():
        rows = own if side == "intervention" else shipped[shipped.side == "base"]
        assert texts == rows[rows.prompt == of[prompt_id].text].text.tolist()


def test_strategies_find_a_strong_plant_among_real_answers_and_nothing_where_nothing_is(shipped):
    few = shipped[shipped.change.isna() | shipped.change.isin(["tone 0.5", "nothing 1"])]
    pools = answer_pool.read_pools(few, KNOWN, Lengths(), [0, 1])
    assert [p.name for p in pools] == ["nothing 1"] * 2 + ["tone 0.5"] * 2 or len(pools) == 4
    depths = {"exhaustive": [8], "uniform": [3], "screened": [3], "screened by answers": [3]}
    table = savings.replay_strategies(pools, depths, rounds=1, samples=1, clusters=6)
    strong, none = (table[table.pool == name] for name in ("tone 0.5", "nothing 1"))
    assert strong.families.min() == 1 and none.families.isna().all()
    assert strong.texts.max() == 2 * 8 * few.prompt.nunique() and (none.moved <= 1).all()
    exhaustive = table[table.strategy == "exhaustive"]
    assert exhaustive.ami.to_numpy() == pytest.approx(1) and exhaustive.share_error.to_numpy() == pytest.approx(0)


def test_a_table_that_does_not_fit_the_plants_is_refused(shipped):
    few = shipped.groupby("change", dropna=False).head(200)
    with pytest.raises(DriftbookError, match="no plant of that name"):
        answer_pool.read_pools(few, KNOWN[:1], Lengths(), [0])
    with pytest.raises(DriftbookError, match="no column js"):
        answer_pool.read_pools(few.drop(columns="js"), KNOWN, Lengths(), [0])
