"""The dry run: its counts are those of the design, and it loads and starts nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from driftbook.workbook.parameters import ModelSpec, load_experiment
from driftbook.workbook.plan import model_size, plan, written
from driftbook.workbook.runs import Layout

REPOSITORY = Path(__file__).parent.parent


def planned(name: str):
    return plan(REPOSITORY / f"params/{name}.yml", Layout.of(REPOSITORY), calibrate=False)


def step(found, stage: str):
    return next(s for s in found.steps if s.stage == stage)


def test_texts_and_tokens_follow_from_the_parameters():
    found = planned("quickstart")
    experiment = load_experiment(REPOSITORY / "params/quickstart.yml")
    texts, tokens = experiment.decode.sampling.max_texts, experiment.decode.max_new_tokens
    assert step(found, "decode").generated == texts * tokens  # what is screened was decoded anyway
    assert step(found, "capture").generated == 24 * 2 * 2 * experiment.capture.max_new_tokens
    assert "360 prompts" in step(found, "decode").what and found.experiment in written(found)
    assert not any(m in sys.modules for m in ("vllm", "ray"))


def test_what_the_traits_stage_samples_is_counted(tmp_path):
    (tmp_path / "params").mkdir()
    for name in ("prompts", "traits"):
        (tmp_path / "params" / name).symlink_to(REPOSITORY / "params" / name)
    text = (REPOSITORY / "params/smoke.yml").read_text()

    def traits(more: str):
        (tmp_path / "params/smoke.yml").write_text(text.replace("  folds: 2", f"  folds: 2\n{more}"))
        return step(plan(tmp_path / "params/smoke.yml", Layout.of(tmp_path), calibrate=False), "traits")

    plain = traits("")
    told = traits("  scenarios: instructed\n  instructed: {samples: 3, max_new_tokens: 10}")
    assert told.generated - plain.generated == 2 * 3 * 16 * 10
    by_steering = traits("  choose: steering\n  steering: {layers: 4, prompts: 3, max_new_tokens: 10}")
    assert by_steering.generated - plain.generated == 2 * 2 * 4 * 3 * 10
    assert traits("  method: gradient").read == 4 * plain.read


def test_one_side_is_captured_when_nothing_was_done_to_the_model():
    assert step(planned("null"), "capture").generated * 2 == step(planned("quickstart"), "capture").generated


def test_the_large_experiment_is_sized_for_gpus_and_priced_without_being_run():
    found = planned("large")
    said = written(found)
    assert "200,000 texts" in said and "each GPU: 14.0 GB of weights a model, two models" in said
    assert 0 < step(found, "validate").usd < load_experiment(REPOSITORY / "params/large.yml").validation.budget_usd
    assert "prompts on the Hub" in said and "assumed" in said


def test_a_bill_above_the_cap_is_said(tmp_path):
    (tmp_path / "params").mkdir()
    for name in ("prompts", "traits"):
        (tmp_path / "params" / name).symlink_to(REPOSITORY / "params" / name)
    text = (REPOSITORY / "params/large.yml").read_text().replace("budget_usd: 200", "budget_usd: 1")
    (tmp_path / "params/large.yml").write_text(text)
    found = plan(tmp_path / "params/large.yml", Layout.of(tmp_path), calibrate=False)
    assert "above validate.budget_usd: it stops at 1.00" in written(found)


@pytest.mark.parametrize(
    ("name", "billions"), [("a/B-7B-Instruct", 7), ("x/y-0.5b", 0.5), ("bundled:smollm2-135m-instruct", 0.135)]
)
def test_the_size_of_a_model_is_read_from_its_name(tmp_path, name, billions):
    assert model_size(ModelSpec(model=name), tmp_path).parameters == pytest.approx(billions * 1e9)


def test_the_size_of_a_model_that_is_here_is_read_from_its_files(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(
        '{"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}'
    )
    (tmp_path / "m/model.safetensors").write_bytes(bytes(2000))
    size = model_size(ModelSpec(model="m", dtype="float32"), tmp_path)
    assert (size.parameters, size.layers, size.width, size.weight_bytes) == (1000, 3, 8, 4000)
    assert size.kv_bytes == 2 * 3 * 8 / 2 * 4
