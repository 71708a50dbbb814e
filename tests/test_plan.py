"""The dry run: its counts are those of the design, and it loads and starts nothing."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml
from scipy.stats import binom

from driftbook.behaviours import panel
from driftbook.errors import ModelError, ParameterError
from driftbook.parameters import ModelSpec, load_experiment
from driftbook.workbook.plan import held_against, keep, model_size, plan, written
from driftbook.workbook.power import few_prompts
from driftbook.workbook.runs import Layout, Run

REPOSITORY = Path(__file__).parent.parent


def planned(name: str):
    return plan(Layout.of(REPOSITORY).parameters(name), Layout.of(REPOSITORY), calibrate=False)


def step(found, stage: str):
    return next(s for s in found.steps if s.stage == stage)


def test_texts_and_tokens_follow_from_the_parameters():
    found = planned("quickstart")
    experiment = load_experiment(REPOSITORY / "params/quickstart.yml")
    texts, tokens = experiment.decode.sampling.max_texts, experiment.decode.max_new_tokens
    assert step(found, "decode").generated == texts * tokens  # what is screened was decoded anyway
    assert step(found, "capture").generated == 24 * 2 * 2 * experiment.capture.max_new_tokens
    assert "180 prompts" in step(found, "decode").what and found.experiment in written(found)
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


def test_counting_by_likelihood_is_read_twice_where_it_is_asked_for(tmp_path):
    found = {}
    for choice in ("auto", "always", "never"):
        tree = tmp_path / choice
        tree.mkdir()
        found[choice] = changed(tree, "{kind: prompt, system: Be brief.}", screen=f"likelihood: {choice}")
    reads = {choice: step(p, "decode").read for choice, p in found.items()}
    assert reads["auto"] == reads["never"] < reads["always"]
    more = f"{reads['always'] - reads['never']:,.0f} tokens more"
    assert [more in written(found[c]) for c in ("auto", "always", "never")] == [True, False, False]


def test_texts_bring_their_own_prompts_and_nothing_is_decoded():
    found = planned("replay")
    decode = step(found, "decode")
    assert decode.what.startswith("96 prompts, 900 texts of both sides, 0 of them made here")
    assert decode.generated == decode.seconds == 0 and "raise it" not in written(found)


def test_one_side_is_captured_when_nothing_was_done_to_the_model():
    assert step(planned("null"), "capture").generated * 2 == step(planned("quickstart"), "capture").generated


def test_the_large_experiment_is_sized_for_gpus_and_priced_without_being_run():
    found = planned("large")
    said = written(found)
    assert "200,000 texts" in said and "each GPU: 14.0 GB of weights a model, two models" in said
    assert 0 < step(found, "validate").usd < load_experiment(REPOSITORY / "params/large.yml").validation.budget_usd
    assert "prompts on the Hub" in said and "assumed" in said
    read, named = 24 + 12 * 3, load_experiment(REPOSITORY / "params/large.yml").cluster.hypotheses
    assert f"labeller: at most {read + named} calls" in step(found, "validate").what


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


def test_the_size_of_a_gguf_file_is_read_from_its_header(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    writer.add_block_count(24)
    writer.add_embedding_length(896)
    writer.add_head_count(14)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.5])
    writer.add_tensor("token_embd.weight", np.zeros((6, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = model_size(ModelSpec(model="m.gguf", dtype="float32"), tmp_path)
    assert (size.parameters, size.layers, size.width, size.known) == (7 * 32, 24, 896, "read from its header")
    assert size.kv_bytes == 2 * 24 * 896 / 7 * 4
    whole = (tmp_path / "m.gguf").read_bytes()
    for damaged, said in ((whole[:60], "is damaged"), (b"nothing of the kind", "not a GGUF file")):
        (tmp_path / "bad.gguf").write_bytes(damaged)
        with pytest.raises(ModelError, match=rf"bad\.gguf: .*{said}"):
            model_size(ModelSpec(model="bad.gguf"), tmp_path)


def test_a_plan_says_where_a_size_is_guessed(tmp_path):
    known = {name: model_size(ModelSpec(model=name), tmp_path).known for name in ("a/B-7B", "a/thing")}
    assert known["a/B-7B"] == "guessed from its name" and known["a/thing"].startswith("a guess")
    assert "30 layers (guessed from its name)" in written(planned("quickstart"))


def changed(folder: Path, intervention: str, name: str = "quickstart", screen: str = ""):
    """The plan of the quickstart with another intervention, and another screen."""
    (folder / "params").mkdir()
    for linked in ("prompts", "traits"):
        (folder / "params" / linked).symlink_to(REPOSITORY / "params" / linked)
    text = (REPOSITORY / f"params/{name}.yml").read_text()
    before, after = text.split("intervention:", 1)[0], text.split("engine:", 1)[1]
    if screen:
        after = re.sub(r"(?m)^  screen:.*\n", "", after).replace("decode:\n", f"decode:\n  screen: {{{screen}}}\n")
    (folder / f"params/{name}.yml").write_text(f"{before}intervention: {intervention}\nengine:{after}")
    return plan(folder / f"params/{name}.yml", Layout.of(folder), calibrate=False)


def test_answers_of_a_server_are_not_counted_as_made_here(tmp_path):
    found = changed(tmp_path, "{kind: endpoint, base_url: 'http://localhost:1/v1', model: m}")
    both = planned("quickstart")
    assert step(found, "decode").generated * 2 == step(both, "decode").generated
    assert step(found, "capture").generated * 2 == step(both, "capture").generated
    # What a server said is read here instead; its distributions are not known, so there is no screen.
    assert step(found, "capture").read == step(both, "capture").read + step(found, "capture").generated
    assert step(found, "decode").read == 0 and "240 of them made here, 0 of them screened" in written(found)
    assert "240 answers are asked of http://localhost:1/v1" in written(found)


def test_answers_in_a_table_are_only_read(tmp_path):
    (tmp_path / "answers.csv").write_text("side,prompt,text\n" + 2 * "base,a,b\nintervention,a,c\n")
    found = changed(tmp_path, "{kind: texts, path: answers.csv}")
    assert step(found, "decode").generated == step(found, "capture").generated == 0 < step(found, "capture").read
    assert step(found, "decode").seconds == 0


def test_a_table_that_nobody_reads_inside_needs_no_model(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "answers.csv").write_text("side,prompt,text\n" + 2 * "base,a,b\nintervention,a,c\n")
    file = tmp_path / "params/mine.yml"
    file.write_text(
        "experiment: mine\nbase: {model: nowhere}\nnames: {base: x, changed: y}\n"
        "intervention: {kind: texts, path: answers.csv}\n"
    )
    found = plan(file, Layout.of(tmp_path))
    assert [s.stage for s in found.steps] == ["decode", "cluster", "validate"]
    assert all(s.generated == s.read == 0 for s in found.steps)
    assert "1 prompts, 4 texts of both sides" in found.steps[0].what
    assert "model   none" in written(found) and "tokens/s" not in written(found) and "weights" not in written(found)


def test_a_run_says_how_far_its_plan_was_off(tmp_path):
    experiment = load_experiment(REPOSITORY / "params/quickstart.yml")
    layout = Layout.of(REPOSITORY, tmp_path)
    run = Run("decode", experiment, layout, tmp_path / "run", headless=True)
    made = {"texts": 480.0, "tokens": 25_600.0, "seconds": 300.0}
    assert held_against(run, made).planned.isna().all()  # no plan was made
    found = planned("quickstart")
    keep(dataclasses.replace(found, speeds=dataclasses.replace(found.speeds, generate=320.0, length=0.75)), layout)
    off = held_against(run, made).set_index("quantity")
    assert off.planned["texts"] == 480 and off.planned["tokens"] == 480 * 64 * 0.75
    assert off.planned["seconds"] == pytest.approx(480 * 64 * 0.75 / 320)
    assert off.was_over_planned[["texts", "tokens", "seconds"]].tolist() == pytest.approx([1, 10 / 9, 300 / 72])
    assert 0 < off.planned["memory, MB"] < 10_000 and off.was["memory, MB"] > 0
    # A plan of other parameters says nothing about this run.
    other = experiment.model_copy(update={"seed": 1})
    assert held_against(dataclasses.replace(run, params=other), made).planned.isna().all()


def test_a_bench_has_no_plan_to_keep(tmp_path):
    assert keep(planned("bench-decode"), Layout.of(REPOSITORY, tmp_path)) is None and not any(tmp_path.iterdir())


def test_too_few_prompts_are_said_before_the_run_with_the_number_that_is_needed(tmp_path):
    """The number is that of an exact sign test over everything that is tested."""
    root = tmp_path
    for folder in ("params", "prompts", "notebooks"):
        (root / folder).mkdir()
    text = "experiment: few\ntraits: {files: []}\ncapture: {prompts: [prompts/p.txt]}\n"
    (root / "params/few.yml").write_text(text + "decode: {prompts: [prompts/p.txt], samples: 1}\n")

    def note(count: int) -> str:
        (root / "prompts/p.txt").write_text("\n".join(f"What is {i} times seven?" for i in range(count)))
        return few_prompts(root / "params/few.yml", root)

    assert note(6).startswith("6 prompts are few: nothing can be confirmed with them")
    needed = int(re.search(r"takes (\d+) prompts", note(12))[1])
    tests = len(panel()) + 12
    # of p prompts that differ k go one way: what it takes at alpha / tests, two-sided
    power = sum(
        binom.pmf(m, needed, 0.1 * 0.5 + 0.9 * 0.5) * binom.sf(_least(m, 0.025 / tests) - 1, m, 0.45 / 0.5)
        for m in range(needed + 1)
    )
    assert 0.75 <= power <= 0.9
    assert note(needed + 5) == ""
    assert few_prompts(Layout.of(REPOSITORY).parameters("quickstart"), REPOSITORY) == ""
    assert few_prompts(Layout.of(REPOSITORY).parameters("bench-null"), REPOSITORY) == ""


def test_a_measure_that_nobody_knows_is_named_before_the_run(tmp_path):
    text = Layout.of(REPOSITORY).parameters("smoke").read_text(encoding="utf-8")
    path = tmp_path / "smoke.yml"
    for name, said in (("hedging", "no measure is called 'hedging', did you mean '"), ("zzz", "; there are share, ")):
        hypothesis = {"hypotheses": [{"text": "asks", "measure": name}]}
        found = yaml.safe_load(text)
        path.write_text(yaml.safe_dump(found | {"validate": found.get("validate", {}) | hypothesis}))
        with pytest.raises(ParameterError, match=re.escape(said)):
            few_prompts(path, REPOSITORY)


def _least(differ: int, level: float) -> int:
    """Wins among ``differ`` that the sign test asks for at this level."""
    return next((k for k in range(differ + 1) if binom.sf(k - 1, differ, 0.5) <= level), differ + 1)


def test_look_alikes_are_one_of_the_few_and_a_paid_judge_says_what_it_needs(tmp_path):
    for folder in ("params", "prompts", "notebooks"):
        (tmp_path / folder).mkdir()
    text = "experiment: few\ntraits: {files: []}\ncapture: {prompts: [prompts/p.txt]}\n"
    text += "decode: {prompts: [prompts/p.txt], samples: 1}\n"
    asks = ["tea", "rain", "bread", "chess", "violins", "glaciers", "taxes", "comets", "maps", "clocks", "kites", "oil"]
    ends = ("", ".", " ?")
    (tmp_path / "prompts/p.txt").write_text("".join(f"Tell me of {a}{end}\n" for a in asks for end in ends))
    (tmp_path / "params/few.yml").write_text(text)
    assert few_prompts(tmp_path / "params/few.yml", tmp_path).startswith("36 prompts (12 that differ) are few: nothing")
    judge = "{kind: endpoint, model: m, base_url: 'http://127.0.0.1:1'}"
    judged = f"validate: {{hypotheses: [{{text: is kind}}], judges: {{expensive: {judge}}}}}\n"
    (tmp_path / "params/few.yml").write_text(text + judged)
    said = few_prompts(tmp_path / "params/few.yml", tmp_path)
    assert "prompts of split screen can let no hypothesis through; it takes 5" in said
    assert "of split validate can confirm nothing that a judge reads; it takes 8" in said
