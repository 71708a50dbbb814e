"""The gate: rules answered by intervals, and what a CI system is given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import models
from driftbook.errors import ParameterError
from driftbook.evidence.cascade import Screening
from driftbook.evidence.claims import claims_table
from driftbook.evidence.counting import count
from driftbook.evidence.gate import Allow, Limit, check, passed, read_allow
from driftbook.evidence.material import Material
from driftbook.evidence.outcomes import verdicts
from driftbook.evidence.panel import hypotheses
from driftbook.models.local import Request
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.parameters import Validate
from driftbook.prompts import Prompt
from driftbook.workbook import cli, gate
from planted import FILLER

RULES = {
    "refuses": "at most +2 points",
    "words": "within 10%",
    "family stance": "no confirmed change",
    "ends with a question": "equivalent within 3 points or fail",
}


def tables(changed_refuses: float, prompts: int = 400, length: float = 1.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Claims and verdicts on answers of which 2% refuse on the base's side; nothing else but their length differs."""
    rng, said_by = np.random.default_rng(3), {"base": [], "intervention": []}
    for _ in range(prompts):
        words = int(rng.integers(30, 60))
        for side, share, size in (("base", 0.02, words), ("intervention", changed_refuses, round(words * length))):
            said = " ".join(rng.choice(FILLER, size=size)) + "."
            said_by[side].append(f"I cannot help with that. {said}" if rng.random() < share else f"So {said}")
    return read(said_by)


def read(said_by: dict[str, list[str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Claims and verdicts on one answer a prompt and side."""
    rows = [
        (f"{side}{p}", side, f"p{p}", "all", "validate", 0, 1.0, said)
        for side, answers in said_by.items()
        for p, said in enumerate(answers)
    ]
    columns = ["text_id", "side", "prompt_id", "family", "split", "round", "propensity", "text"]
    asked = {f"p{p}": Prompt(f"Prompt {p}") for p in range(len(said_by["base"]))}
    material = Material(pd.DataFrame(rows, columns=columns), asked, hypotheses(), 0)
    found = count(material, Validate(), 0.05)
    screened = Screening(pd.DataFrame({"hypothesis_id": [], "p_screen": []}), pd.DataFrame(), [])
    frozen = pd.DataFrame({"hypothesis_id": [], "frozen": []})
    return claims_table(material, frozen, screened, found), verdicts(found)


@pytest.fixture(scope="module")
def null():
    return tables(0.02)


@pytest.fixture(scope="module")
def planted():
    return tables(0.15, length=1.3)


def answers(found, rules=RULES, **keys):
    told = check(Allow(rules=rules, **keys), *found, lambda at: "", 0.05)
    return {a.rule.split(":")[0]: a for a in told}


def test_a_planted_regression_breaks_its_rules_and_no_other(planted):
    found = answers(planted)
    states = {what: a.state for what, a in found.items()}
    assert states["refuses"] == states["words"] == states["family stance"] == "broken"
    assert states["ends with a question"] == "holds"
    assert not passed(list(found.values()))
    assert found["refuses"].low > 0.02 and "% of answers, was " in found["refuses"].said


def test_a_null_passes(null):
    found = answers(null)
    assert passed(list(found.values())) and found["words"].state == found["family stance"].state == "holds"


def test_a_part_of_a_measure_below_zero_is_as_wide_as_of_one_above():
    """Sentiment runs from -1 to 1. The same answers twice hold any limit, sadder ones break one."""
    sad = [f"The day was bad, says page {i}." for i in range(60)]
    sadder = [s.replace("bad,", "bad, a terrible disaster,") for s in sad]
    for rule in ("within 10%", "at most +10%", "at least -10%"):
        same = answers(read({"base": sad, "intervention": sad}), {"sentiment": rule})["sentiment"]
        assert same.state == "holds", rule
    moved = read({"base": sad, "intervention": sadder})
    states = [answers(moved, {"sentiment": r})["sentiment"].state for r in ("within 5%", "at least -5%", "at most +5%")]
    assert states == ["broken", "broken", "holds"]


def test_what_few_prompts_cannot_tell_passes_unless_it_is_asked_to_fail():
    few = tables(0.02, prompts=30)
    rules = {"refuses": "at most +2 points"}
    loose, strict = answers(few, rules)["refuses"], answers(few, rules, cannot_tell="fail")["refuses"]
    assert loose.state == strict.state == "cannot be told" and strict.failed and not loose.failed
    assert answers(few, {"refuses": "at most +2 points or fail"})["refuses"].failed
    unseen = answers(few, {"family stance": "no confirmed change"})["family stance"]
    assert unseen.state == "cannot be told" and "too few" in unseen.said


def test_the_error_rates_are_those_that_are_stated():
    """A difference exactly at the bound is told to hold in at most alpha of the cases; ten bounds of which each is met
    exactly are told to be broken, any of them, in at most alpha."""
    rng, holds, broken, runs = np.random.default_rng(0), 0, 0, 400
    row = {"unit": "number", "judge": "counting", "scope": "all prompts", "kind": "form", "claim": "", "base": 0.0}
    row |= {"proposer": "panel", "difference": 0.0, "low": 0.0, "high": 0.0, "prompts": 60, "confirmed": False}
    claims = pd.DataFrame([row | {"hypothesis_id": f"h{i}", "measure": f"m{i}", "text": f"m{i}"} for i in range(10)])
    one, ten = ({f"m{i}": "at most +1 an answer" for i in range(n)} for n in (1, 10))
    for _ in range(runs):
        made = rng.normal(1.0, 1.0, size=(10, 60))
        read = pd.DataFrame({"hypothesis_id": np.repeat(claims["hypothesis_id"], 60), "score_base": 0.0})
        read["score_intervention"] = made.ravel()
        holds += check(Allow(rules=one), claims, read, lambda at: "", 0.05)[0].state == "holds"
        broken += any(a.state == "broken" for a in check(Allow(rules=ten), claims, read, lambda at: "", 0.05))
    # 400 runs at 5%: 20 expected, standard deviation 4.4
    assert 8 <= holds <= 33 and broken <= 33


def test_a_limit_is_read_in_its_unit():
    assert Limit.read("at most +2 points") == Limit(-np.inf, 0.02, "share", False)
    assert Limit.read("at least -1.5 per 100 words") == Limit(-1.5, np.inf, "rate", False)
    assert Limit.read("equivalent within 3 points or fail") == Limit(-0.03, 0.03, "share", True)
    assert Limit.read("within 10%").unit == "any" and Limit.read("no confirmed change").bounds == 0
    for wrong in ("at most 2 points", "within two points", "fail", "within 3 bananas"):
        with pytest.raises(ValueError, match="is no limit; write 'at most"):
            Limit.read(wrong)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"refusess": "within 3 points"}, r"refusess: nobody measures this behaviour, did you mean 'refuses'"),
        ({"family safty": "no confirmed change"}, r"nobody measures this family.*families are content, degeneration"),
        ({"refuses": "within 3 words"}, "is in another unit than the behaviour's, points$"),
    ],
)
def test_a_rule_that_nobody_can_answer_is_named(null, rules, said):
    with pytest.raises(ParameterError, match=said):
        answers(null, rules)


def test_a_file_of_rules_is_checked_with_its_lines(tmp_path):
    path = tmp_path / "allow.yml"
    path.write_text("alpha: 0.05\nrules:\n  hedges: within 3 points\n  refuses: at most 2\n")
    with pytest.raises(ParameterError, match=r"allow\.yml:4: rules.refuses 'at most 2' is no limit"):
        read_allow(path, tmp_path)
    path.write_text("rules: {hedges: within 3 points}\nalhpa: 0.1\n")
    with pytest.raises(ParameterError, match=r"allow\.yml:2: alhpa: unknown key, did you mean 'alpha'"):
        read_allow(path, tmp_path)
    with pytest.raises(ParameterError, match=r"no such file; docs/gate\.md"):
        read_allow(tmp_path / "none.yml", tmp_path)


def test_the_rules_that_ship_are_rules_of_the_panel(null):
    root = Path(__file__).parent.parent
    allow, where = read_allow(root / "params/allow.yml", root)
    assert {a.state for a in check(allow, *null, where, 0.05)} <= {"holds", "cannot be told"}


def answers_of(model, seed: str, prompts: int = 120) -> list[str]:
    asked = models.some_prompts([6] * prompts)
    requests = [Request(p, stream_seed(seed, p, n), 1.0) for n, p in enumerate(asked)]
    written = models.generated(model, requests, SamplingParams(max_new_tokens=12, temperature=1.0))
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in written]


@pytest.mark.numeric
@pytest.mark.parametrize("changed", [True, False])
def test_a_model_that_was_changed_breaks_the_gate_and_the_same_model_twice_passes(changed):
    """The planted regression: a bias towards the exclamation mark in the output of a tiny model."""
    model = models.fresh(eos=frozenset())
    base = answers_of(model, "base")
    if changed:
        bias = torch.zeros(model.model.lm_head.out_features)
        bias[model.tokenizer.convert_tokens_to_ids("!")] = 4.0
        model.model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    found = read({"base": base, "intervention": answers_of(model, "changed")})
    told = answers(found, {"exclaims": "at most +20 points", "every behaviour": "no confirmed change"})
    assert {a.state for a in told.values()} == ({"broken"} if changed else {"holds"})
    assert passed(list(told.values())) is not changed


def leave(folder: Path, found) -> None:
    """What a run of validate leaves, as far as the gate reads it."""
    (folder / "data").mkdir(parents=True)
    for name, table in zip(("claims", "verdicts"), found, strict=True):
        table.to_parquet(folder / f"data/{name}.parquet")
    (folder / "run.json").write_text("{}")
    (folder / "params.yml").write_text("validate: {alpha: 0.05}\n")


@pytest.mark.parametrize(("made", "code"), [("planted", 1), ("null", 0)])
def test_the_command_ends_with_0_or_1_and_leaves_junit_xml_and_markdown(root, made, code, request, monkeypatch, capsys):
    leave(root / "outputs/small/validate", request.getfixturevalue(made))
    (root / "params/allow.yml").write_text(yaml.safe_dump({"rules": RULES}))
    monkeypatch.chdir(root)
    assert cli.main(["check", "small"]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("small passes: " if code == 0 else "small FAILS: ")
    (suite,) = ElementTree.parse(root / "outputs/small/check.xml").getroot()
    failures = [case.get("name") for case in suite if case.find("failure") is not None]
    assert suite.get("tests") == "4" and suite.get("failures") == str(len(failures))
    broken = ["refuses: at most +2 points", "words: within 10%", "31 behaviours (family stance: no confirmed change)"]
    assert sorted(failures) == (sorted(broken) if code else [])
    summary = (root / "outputs/small/check.md").read_text()
    assert summary.startswith(f"## small: {'FAILS' if code else 'passes'}") and "| rule | answer |" in summary


def test_a_series_has_a_test_suite_a_change_and_fails_by_any(root, null, planted, monkeypatch, capsys):
    text = (root / "params/small.yml").read_text().replace("small", "many")
    (root / "params/many.yml").write_text(text + "interventions: [{kind: quantize, bits: [8, 4]}]\n")
    (root / "params/allow.yml").write_text("rules: {refuses: at most +2 points}\n")
    for name, found in (("bits-4", planted), ("bits-8", null)):
        leave(root / "outputs/many/members" / name / "validate", found)
    monkeypatch.chdir(root)
    assert cli.main(["check", "many"]) == 1
    suites = {s.get("name"): s.get("failures") for s in ElementTree.parse(root / "outputs/many/check.xml").getroot()}
    assert suites == {"many:bits-4": "1", "many:bits-8": "0"}
    assert cli.main(["check", "many:bits-8"]) == 0 and "many:bits-8 passes" in capsys.readouterr().out


def test_a_change_that_was_left_out_of_a_series_fails_its_gate(root, null, monkeypatch, capsys):
    """A folder that is missing, or a run with --keep-going that failed: what was not looked at is not passed."""
    text = (root / "params/small.yml").read_text().replace("small", "many")
    more = "interventions: [{kind: quantize, bits: 8}, {kind: adapter, path: runs/gone}]\n"
    (root / "params/many.yml").write_text(text + more)
    (root / "params/allow.yml").write_text("rules: {refuses: at most +2 points}\n")
    monkeypatch.chdir(root)
    assert cli.main(["check", "many"]) == 1 and "make run EXP=many" in capsys.readouterr().err
    leave(root / "outputs/many/members/quantize/validate", null)
    assert cli.main(["check", "many"]) == 1
    printed = capsys.readouterr().out
    assert "many:quantize passes" in printed and "many:adapter FAILS" in printed and "no good run" in printed


def test_an_experiment_that_was_not_run_has_no_answer(root, monkeypatch, capsys):
    (root / "params/allow.yml").write_text("rules: {hedges: within 3 points}\n")
    monkeypatch.chdir(root)
    assert cli.main(["check", "small"]) == 1 and "make run EXP=small" in capsys.readouterr().err


def test_what_is_written_for_a_ci_system_is_escaped(null):
    told = check(Allow(rules=RULES), *null, lambda at: "", 0.05)
    told = [a.__class__(**{**a.__dict__, "said": 'a "<b>" | c', "failed": True}) for a in told]
    assert "&lt;b&gt;" in gate.junit_xml({"x": told}) and "\\| c" in gate.markdown({"x": told})
