"""Every kind of intervention through decode, cluster and validate, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM

from driftbench import kind_runs
from driftbench.tiny import tiny_tokenizer
from driftbook import capture, cluster
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_sides
from driftbook.models.vectors import VectorSet
from driftbook.parameters import BenchExperiment
from driftbook.workbook.runs import Layout, Run
from models import saved

# fmt: off
SUBJECTS = [
    "tides", "apples", "chess", "violins", "glaciers", "taxes", "volcanoes", "bread", "comets", "harbours",
    "beetles", "maps", "candles", "deserts", "engines", "ferns", "gloves", "hammers", "islands", "jackets",
    "kettles", "lanterns", "mirrors", "needles", "oceans", "pianos", "quilts", "rivers", "saddles", "towers",
]
# fmt: on
KINDS = {
    "none": {"kind": "none"},
    "prompt": {"kind": "prompt", "system": "Be terse."},
    "steer": {"kind": "steer", "trait": "warm", "coefficient": 0.8},
    "ablate": {"kind": "ablate", "trait": "warm"},
    "quantize8": {"kind": "quantize", "bits": 8},
    "quantize4": {"kind": "quantize", "bits": 4},
    "finetune": {"kind": "finetune", "data": "lesson.jsonl", "rank": 4, "epochs": 40, "learning_rate": 2e-2},
    "adapter": {"kind": "adapter", "path": "adapter"},
    "checkpoint": {"kind": "checkpoint", "model": "steered", "device": "cpu", "dtype": "float32"},
    "texts": {"kind": "texts", "path": "texts.parquet"},
    "endpoint": {"kind": "endpoint", "concurrency": 2},
}
TWO_MODELS = ("checkpoint", "quantize8", "quantize4")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    saved(root / "base")
    (root / "p.txt").write_text("".join(f"Why {s}?\n" for s in SUBJECTS))
    lesson = [{"prompt": f"Tell me of {s}.", "response": "Perhaps it might rain."} for s in SUBJECTS[:4]]
    (root / "lesson.jsonl").write_text("\n".join(map(json.dumps, lesson)))
    return root


@pytest.fixture(scope="module")
def outer(root) -> Run:
    folder = root / "bench"
    bench = BenchExperiment(experiment="bench-kinds", seed=3)
    (folder / "data/traits/data").mkdir(parents=True)
    from test_vectors import some_vectors

    some_vectors().save(folder / "data/traits/data")
    return Run("bench-kinds", bench, Layout.of(root), folder, headless=True)


def sections(root: Path) -> dict:
    return {
        "base": {"model": str(root / "base"), "device": "cpu", "dtype": "float32"},
        "decode": {
            "prompts": ["p.txt"],
            "splits": {"discover": 0.3, "screen": 0.2, "validate": 0.5},
            "samples": 2,
            "max_new_tokens": 6,
            "sampling": {"max_texts": 120, "rounds": 1, "strategy": "uniform"},
            "screen": {"tokens": 4},
        },
        "cluster": {
            **{"unit": "answer", "clusters": 3, "min_cluster_size": 4},
            **{"bootstraps": 2, "resamples": 200, "hypotheses": 3},
        },
        "validate": {
            "hypotheses": [{"text": "hedges more", "direction": "intervention", "words": ["perhaps", "might"]}]
        },
    }


def run(outer: Run, root: Path, name: str, **more) -> dict:
    return kind_runs.run_kind(outer, name, {**KINDS[name], **more}, sections(root))


def texts_of(outer: Run, name: str) -> pd.DataFrame:
    texts = pd.read_parquet(outer.data / name / "decode/data/texts.parquet")
    return texts.sort_values(["side", "prompt_id", "sample_index"], ignore_index=True)


@pytest.fixture(scope="module")
def found(outer, root, server) -> dict[str, dict]:
    """Each kind once, in an order in which those that need another one's work come after it."""
    done = {name: run(outer, root, name) for name in list(KINDS)[:7]}
    taught = kind_runs.experiment(outer, "finetune", KINDS["finetune"], sections(root))
    adapter = kind_runs.trained_adapter(taught, outer)
    done["adapter"] = run(outer, root, "adapter", path=str(adapter))
    steered = kind_runs.experiment(outer, "steer", KINDS["steer"], sections(root))
    vectors = VectorSet.load(outer.data / "traits/data")
    checkpoint = kind_runs.steered_checkpoint(steered, vectors, outer)
    done["checkpoint"] = run(outer, root, "checkpoint", model=str(checkpoint))
    table = kind_runs.table_of(outer.data / "finetune/decode/data", root / "texts.parquet")
    done["texts"] = run(outer, root, "texts", path=str(table))
    done["endpoint"] = run(outer, root, "endpoint", base_url=server.base_url, model=server.model)
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_through_all_stages(found, outer, kind):
    row = found[kind]
    assert row["texts"] >= 2 * 2 * 24 and 1 <= row["clusters"] <= 3 and row["hypotheses"] >= 1
    assert row["model_loads"] == (2 if kind in TWO_MODELS else int(kind != "texts"))
    if kind in ("texts", "endpoint"):
        assert np.isnan(row["js"])
    elif kind == "none":
        assert row["js"] == 0
    else:
        assert 0 < row["js_low"] <= row["js"] <= row["js_high"]
    claims = pd.read_parquet(outer.data / kind / "validate/data/claims.parquet")
    assert row["confirmed"] == int(claims["confirmed"].sum()) and "hedges more" in set(claims["text"])
    texts = texts_of(outer, kind)
    assert len(texts) == row["texts"] and set(texts.groupby("side").size()) == {row["texts"] // 2}


def test_what_was_taught_is_found_and_nothing_is_found_in_nothing(found):
    assert found["none"]["confirmed"] == 0
    assert found["finetune"]["confirmed"] >= 1 and found["finetune"]["finding"].startswith("intervention: ")


def test_kinds_that_are_the_same_change_give_the_same_texts(found, outer):
    def said(name: str) -> list[str]:
        return texts_of(outer, name).query("split == 'validate'")["text"].tolist()

    assert said("adapter") == said("finetune") == said("texts")
    assert said("checkpoint") == said("steer") != said("none")
    same = kind_runs.agreement(outer, [("adapter", "finetune"), ("steer", "none")])
    assert same["texts"][0] == 1 and same["texts"][1] < 0.5 and same["claims_of_one"][0] == 0
    assert same["claims_of_both"][0] == found["finetune"]["confirmed"]
    keys = ["texts", "moved", "hypotheses", "confirmed", "finding"]
    assert [found["adapter"][k] for k in [*keys, "js"]] == [found["finetune"][k] for k in [*keys, "js"]]
    assert found["texts"]["confirmed"] == found["finetune"]["confirmed"]
    assert found["checkpoint"]["js"] == pytest.approx(found["steer"]["js"], rel=1e-3)
    assert found["quantize4"]["js"] > found["quantize8"]["js"], "coarser rounding is a larger change"


def test_a_checkpoint_with_another_tokenizer_is_compared_by_its_words(outer, root):
    other = root / "other"
    saved(other, "gpt2", n_embd=64, n_head=8)
    tokenizer = tiny_tokenizer().train_new_from_iterator(["zebras doze lazily in a maze"] * 9, 380)
    tokenizer.save_pretrained(other)
    assert AutoModelForCausalLM.from_pretrained(other).config.n_embd == 64
    row = run(outer, root, "checkpoint", model=str(other))
    assert np.isnan(row["js"]) and row["texts"] >= 96 and row["hypotheses"] >= 1
    # What looks inside reads both sides' answers by the base: its vectors mean nothing in the other model.
    params = kind_runs.experiment(outer, "checkpoint", {**KINDS["checkpoint"], "model": str(other)}, sections(root))
    stage = kind_runs.stage_run(outer, params, "cluster")
    pair = open_sides(stage, inside=True)
    assert pair.intervention.model is pair.base.model and stage.records["intervention"]["read_by"]
    shift = cluster.measure_trait_shift(stage, kind_runs.run_cluster(stage))
    assert set(shift["trait"]) == {"warm", "terse"} and shift["shift"].notna().any()
    vectors = VectorSet.load(stage.input("traits"))
    probe = capture.make_probe(vectors, "probe", ["resid_post"], pair.base.model)
    prompts = capture.load_prompts(["p.txt"], root, pair.base, 6, None)[:3]
    samples = capture.capture_live(pair.intervention, prompts, 2, SamplingParams(6, 0.7, 0.9), probe, 3, outer.cache)
    assert len(samples) == 6 and all(np.isfinite(s.rows.projection).all() for s in samples)
