"""Experiment files: what is wrong is said with file, line, key and the nearest right word, before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from driftbook.errors import ParameterError
from driftbook.judges import Endpoint
from driftbook.parameters import STAGES, Decode, Experiment, load_experiment, resolved, validate_cell
from driftbook.sections import judge_of

REPOSITORY = Path(__file__).parent.parent
GOOD = "experiment: x\ntraits: {files: [params/traits/calm.json]}\ncapture: {prompts: [params/prompts/few.txt]}\n"
GOOD += "decode: {prompts: [params/prompts/few.txt]}\n"


def refused(root: Path, text: str, name: str = "x") -> str:
    path = root / f"params/{name}.yml"
    path.write_text(text)
    with pytest.raises(ParameterError) as error:
        load_experiment(path)
    return str(error.value)


MISTAKES = {
    "unknown key": (
        "cluster:\n  clustres: 3\n",
        "params/x.yml:6: cluster.clustres: unknown key, did you mean 'clusters'?",
    ),
    "key of another place": (
        "max_texts: 9\n",
        "params/x.yml:5: max_texts: unknown key, did you mean decode.sampling.max_texts?",
    ),
    "beginning of a key": (
        "validate: {judges: {cheap: {conc: 3}}}\n",
        "validate.judges.cheap.conc: unknown key, did you mean 'concurrency'?",
    ),
    "wrong type": ("seed: many\n", "params/x.yml:5: seed: input should be a valid integer"),
    "out of range": ("validate: {alpha: 2}\n", "params/x.yml:5: validate.alpha: input should be less than 1 (it is 2)"),
    "wrong word": ("cluster: {method: kmean}\n", "params/x.yml:5: cluster.method: 'kmean' is not one of"),
    "nearest word": ("cluster: {method: kmean}\n", "did you mean 'kmeans'?"),
    "either of two": (
        "cluster: {clusters: some}\n",
        "cluster.clusters: input should be a valid integer, unable to parse string as an integer (it is 'some'), or "
        "'some' is not one of auto",
    ),
    "unknown kind": (
        "intervention: {kind: ster}\n",
        "params/x.yml:5: intervention.kind: there is no 'ster', did you mean 'steer'?",
    ),
    "kind that is a list": ("intervention: {kind: [steer]}\n", "params/x.yml:5: intervention.kind: there is no"),
    "change whose kind is a list": ("interventions: [{kind: [steer]}]\n", "kind: there is no"),
    "judge whose kind is a mapping": ("validate: {judges: {cheap: {kind: {a: 1}}}}\n", "cheap.kind: there is no"),
    "pattern of another disk that matches nothing": (
        "interventions: [{kind: checkpoint, model: /nowhere/step-*}]\n",
        "model: /nowhere/step-* matches nothing",
    ),
    "no kind": (
        "intervention: {trait: calm}\n",
        "params/x.yml:5: intervention.kind: is missing; one of none, checkpoint",
    ),
    "key of a kind": (
        "intervention:\n  kind: steer\n  trait: calm\n  coeficient: 1\n",
        "params/x.yml:8: intervention.coeficient: unknown key, did you mean 'coefficient'?",
    ),
    "missing key": (
        "intervention: {kind: steer, trait: calm}\n",
        "params/x.yml:5: intervention.coefficient: is missing",
    ),
    "section of a wrong kind": ("cluster: 7\n", "params/x.yml:5: cluster: input should be"),
    "in a list": (
        "traits: {dose: {coefficients: [0.1, high]}}\n",
        "traits.dose.coefficients.1: input should be a valid number",
    ),
    "endpoint without model": (
        "validate: {judges: {cheap: {kind: endpoint}}}\n",
        "params/x.yml:5: validate.judges.cheap.base_url: is missing",
    ),
    "key written twice": ("seed: 1\nseed: 2\n", "params/x.yml:6: seed: is written twice (first in line 5)"),
    "bad YAML": ("base: [\n", "not valid YAML"),
    "unknown trait": (
        "intervention: {kind: steer, trait: clam, coefficient: 1}\n",
        "params/x.yml:5: intervention.trait",
    ),
    "combination of nothing": ("traits: {combine: [{name: mix, orthogonal_to: [calm]}]}\n", "needs add or subtract"),
    "part named twice": ("traits: {combine: [{name: mix, add: [calm, calm]}]}\n", "names each trait once"),
    "unknown part": (
        "traits:\n  files: [params/traits/calm.json]\n  combine:\n    - {name: mix, add: [clam]}\n",
        "traits.combine.0: there is no trait 'clam' in traits.files, did you mean 'calm'?; there are calm",
    ),
    "name that is taken": (
        "traits: {files: [params/traits/calm.json], combine: [{name: calm, subtract: [calm]}]}\n",
        "traits.combine.0.name: 'calm' is the name of a trait already",
    ),
    "missing import": (
        "traits: {files: [params/traits/calm.json], imports: {calm: calm.pt}}\n",
        "traits.imports: calm.pt: there is no such file",
    ),
    "yes for a number": ("seed: yes\n", "params/x.yml:5: seed: input should be a number; yes, no, on and off are none"),
    "hypothesis without a text": ("validate: {hypotheses: [{text: ' '}]}\n", "validate.hypotheses.0: text is empty"),
    "hypothesis that counts no words": (
        "validate: {hypotheses: [{text: asks, measure: rate}]}\n",
        "validate.hypotheses.0: measure rate counts words, and there are none",
    ),
    "seed of 33 bits": ("seed: 5000000000\n", "params/x.yml:5: seed: input should be less than 4294967296"),
    "octal number": ("seed: 010\n", 'params/x.yml:5: seed: 010 is the number 8 to YAML; write 8, or "010" in quotes'),
    "number of minutes": ("seed: 1:30\n", "params/x.yml:5: seed: 1:30 is the number 90 to YAML"),
    "revision that is a number": ("base: {model: a, revision: 0123456}\n", "0123456 is the number 42798 to YAML"),
    "word that YAML reads as no": ("base: {model: off}\n", "base.model: input should be a valid string (it is False; "),
    "key that YAML reads as yes": ("on: 1\n", "params/x.yml:5: the key 'on' is a bool to YAML; put it in quotes"),
    "a number that is none": ("validate: {margin: .nan}\n", "validate.margin: input should be a finite number"),
    "a number without end": ("decode: {temperature: 1e400}\n", "decode.temperature: input should be a finite number"),
    "names that look alike": ('names: {base: A, changed: "A\\u200b"}\n', "a reader could not tell them apart"),
    "a name that shows nothing": ("names: {base: ' ', changed: B}\n", "names.base: input should have a character"),
    "an empty word": ("validate: {hypotheses: [{text: a, words: ['']}]}\n", "hypotheses.0.words: a word is empty"),
    "no prompts": ("decode: {prompts: []}\n", "params/x.yml:5: decode.prompts: names no file"),
    "an address for a file": ("decode: {prompts: ['https://a.b/c.txt']}\n", "an address; download the file"),
    "what JSON cannot hold": ("base: {template_args: {date: 2024-01-01}}\n", "is sent as JSON, which cannot hold it"),
    "whole address of a server": (
        "intervention: {kind: endpoint, model: m, base_url: 'http://h/v1/chat/completions'}\n",
        "params/x.yml:5: intervention.base_url: ends with /chat/completions, which is added; leave it out",
    ),
    "judge that cannot read": ("traits: {judge: {kind: lexicon}}\n", "judge needs a language model, as kind: local"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_line_key_and_remedy(root, name):
    added, said = MISTAKES[name]
    section = added.split(":")[0]
    kept = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{section}:"))
    before = GOOD if kept == GOOD.strip() else kept + "\n# one line was taken out\n"
    assert said in refused(root, before + added)


SECRETS = ("sk-proj-Ab12Cd34Ef56", "gsk_a1b2c3d4e5f6", "0123456789abcdef0123456789abcdef", "AIzaSyA-1234567890bcdefgh")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "fields",
    [
        "base_url: http://h/v1, api_key_env: {secret}",
        "base_url: 'http://user:{secret}@h/v1'",
        "base_url: 'http://h/v1?key={secret}'",
        "base_url: 'http://h/v1?x={secret}'",
        "base_url: http://h/v1, extra_body: {{auth: [{{is: {secret}}}]}}",
    ],
)
@pytest.mark.parametrize("place", ["validate: {{judges: {{expensive: {}}}}}\n", "intervention: {}\n"])
def test_a_key_in_the_file_is_refused_by_its_shape_and_not_shown(root, secret, fields, place):
    server = f"{{kind: endpoint, model: m, {fields.format(secret=secret)}}}"
    said = refused(root, GOOD + place.format(server))
    key = next(k for k in ("api_key_env", "extra_body", "base_url") if k in fields)
    assert f"params/x.yml:5: {place.split(':')[0]}." in said and f".{key}: " in said and secret not in said
    with pytest.raises(ValueError) as error:  # built by hand, in a notebook
        judge_of(yaml.safe_load(server))
    assert secret not in str(error.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "hf_token", "KEY2", "my_key_of_the_second_project_2"])
def test_names_of_variables_are_taken(name):
    url = "https://h:8000/v1?api-version=2025-01-01"
    assert Endpoint(model="m", api_key_env=name, base_url=url).api_key_env == name


def test_a_judge_is_exchanged_by_one_word_and_a_key_hides_in_no_other_kind(root):
    """What belongs to another kind has no effect, as in files of before, where all kinds shared their parameters."""
    server = "base_url: http://h/v1, model: m, api_key_env: KEY_OF_MINE, per_call: 4, concurrency: 2, rubric: null"
    path = root / "params/x.yml"
    for kind in ("lexicon", "embedding", "local"):
        path.write_text(GOOD + f"validate: {{judges: {{cheap: {{kind: {kind}, {server}}}}}}}\n")
        cheap = load_experiment(path).validation.judges.cheap
        assert cheap.kind == kind and not {"base_url", "per_call"} & set(cheap.model_dump())
    for secret in SECRETS:
        for field in (f"api_key_env: {secret}", f"base_url: 'http://user:{secret}@h/v1'"):
            said = refused(root, GOOD + f"validate: {{judges: {{cheap: {{{field}}}}}}}\n")
            assert "holds what looks like a key" in said and secret not in said


def test_the_old_name_of_the_baselines_is_still_read(root):
    path = root / "params/x.yml"
    path.write_text(GOOD + "validate: {rivals: false}\n")
    experiment = load_experiment(path)
    assert resolved(experiment, "validate")["validate"]["baselines"] is experiment.validation.baselines is False


def test_every_mistake_of_a_file_is_said_at_once(root):
    said = refused(root, GOOD + "seed: x\ncluster: {clusters: none, bootstrap: 3}\n")
    assert len(said.splitlines()) == 3
    assert "seed" in said and "cluster.clusters" in said and "did you mean 'bootstraps'?" in said


BARE = "experiment: x\ntraits: {files: [params/traits/calm.json]}\n"


def answers(root, samples):
    """A table of that many answers a prompt and side, and of one less to one of six prompts."""
    rows = [
        f"{side},Why {word}?,{word} {s}"
        for word in ("apples", "tides", "chess", "maps", "bread", "comets")
        for side in ("base", "intervention")
        for s in range(samples - (word == "chess"))
    ]
    (root / "answers.csv").write_text("side,prompt,text\n" + "\n".join(rows) + "\n")
    return f"{BARE}intervention: {{kind: texts, path: answers.csv}}\nnames: {{base: old, changed: new}}\n"


def accepted(root, text):
    (root / "params/x.yml").write_text(text)
    return load_experiment(root / "params/x.yml")


def test_samples_that_a_table_of_texts_does_not_hold_are_refused_when_it_is_named(root):
    table = answers(root, 3)
    said = refused(root, f"{table}decode: {{samples: 3}}\n")
    assert said.startswith("params/x.yml:5: decode.samples: 3, and answers.csv holds 2 texts a side of 'Why chess?'")
    assert "set at most 2" in said
    assert "params/x.yml:5: capture.samples: 9" in refused(root, f"{table}capture: {{samples: 9}}\n")


@pytest.mark.parametrize(("held", "decode", "capture"), [(1, 1, 1), (2, 2, 2), (5, 2, 4)])
def test_samples_that_are_not_written_are_those_of_a_table_that_holds_fewer(root, held, decode, capture):
    found = accepted(root, answers(root, held + 1))
    assert (found.decode.samples, found.capture.samples) == (decode, capture)


@pytest.mark.parametrize(
    ("sections", "stages"),
    [("", STAGES[2:]), ("traits: {files: [params/traits/calm.json]}\n", STAGES), ("capture: {tier: 2}\n", STAGES)],
)
def test_answers_that_exist_are_read_inside_only_where_a_section_asks_for_it(root, sections, stages):
    plain = answers(root, 2).removeprefix(BARE)
    (root / "params/traits/wild.json").write_text("{}")  # the default of traits.files is every file there
    found = accepted(root, f"experiment: x\n{sections}{plain}")
    assert found.stages == stages and found.cluster.trait_shift == ("traits" in stages)
    assert load_experiment(root / "params/small.yml").stages == STAGES
    if "traits" not in stages:
        said = refused(root, f"experiment: x\n{plain}cluster: {{trait_shift: true}}\n")
        assert said.startswith("params/x.yml:4: cluster.trait_shift: nobody reads traits") and "traits: {files" in said


def test_a_bad_table_of_texts_is_refused_when_it_is_named(root):
    text = answers(root, 1)
    (root / "answers.csv").write_text("side,prompt\nbase,Why?\n")
    said = refused(root, text)
    assert said.startswith("params/x.yml:3: intervention.path") and "no column text" in said


def test_texts_that_nobody_is_named_for_are_refused_unless_their_table_names_who_wrote_them(root):
    text = answers(root, 1).replace("names: {base: old, changed: new}\n", "")
    said = refused(root, text)
    assert said.startswith("params/x.yml:3: names: ") and "names: {base: <who wrote the first>" in said
    table = (root / "answers.csv").read_text().splitlines()
    told = {"base": "Llama", "intervention": "Llama SimPO"}
    (root / "answers.csv").write_text("\n".join(f"{r},{told.get(r.split(',')[0], 'model')}" for r in table))
    assert accepted(root, text).called == ("Llama", "Llama SimPO")
    assert accepted(root, f"{text}names: {{base: old, changed: new}}\n").called == ("old", "new")


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ("base: {model: models/q.gguf}\nintervention: {kind: quantize, bits: 8}", ("q", "q, quantized to 8 bits")),
        ("base: {model: org/m}\nintervention: {kind: checkpoint, model: org/m-dpo}", ("m", "m-dpo")),
        ("base: {model: 'bundled:m'}", ("m", "m, again")),
        ("names: {base: A, changed: B}", ("A", "B")),
    ],
)
def test_models_that_are_not_named_are_called_by_what_they_are(section, named):
    values = yaml.safe_load(f"experiment: x\n{section}\n")
    assert Experiment.model_validate(values).called == named


def test_two_models_have_two_names(root):
    assert "a reader could not tell them apart" in refused(root, GOOD + "names: {base: A, changed: A}\n")


@pytest.mark.parametrize(("kind", "count"), [("texts", 6), ("none", 8)])
def test_a_budget_below_the_first_round_is_refused_with_what_it_needs(root, kind, count):
    words = ("apples", "tides", "chess", "maps", "bread", "comets", "violins", "taxes")
    (root / "params/prompts/some.txt").write_text("".join(f"{w} {w[::-1]}?\n" for w in words))
    text = answers(root, 3) if kind == "texts" else f"{BARE}capture: {{prompts: [params/prompts/few.txt]}}\n"
    text += "decode: {prompts: [params/prompts/some.txt], splits: {discover: 0.5, screen: 0, validate: 0.5}, "
    needed = 2 * 2 * count
    said = refused(root, f"{text}sampling: {{max_texts: {needed - 1}}}}}\n")
    assert said.startswith("params/x.yml:")
    assert f"decode.sampling.max_texts: {needed - 1} is less than the {needed} texts of the first round" in said
    assert f"raise it to {needed} at least" in said
    accepted(root, f"{text}sampling: {{max_texts: {needed}}}}}\n")


def test_look_alikes_are_answered_and_count_in_the_budget(root):
    lines = [f"{c * 5} {c * 6} {c * 7} {c * 8}" for c in "abcdefgh"]
    same = [f"{line} more" for line in lines]
    (root / "params/prompts/some.txt").write_text("\n".join(lines + same) + "\n")
    asked = "decode: {prompts: [params/prompts/some.txt], samples: 1, sampling: {max_texts: %d}}\n"
    text = f"{BARE}capture: {{prompts: [params/prompts/few.txt]}}\n{asked}"
    said = refused(root, text % 4)
    assert "(16 prompts x 1 samples x 2 sides)" in said
    accepted(root, text % 32)


FILES = {
    "missing prompt file": (
        "capture: {prompts: [params/prompts/fw.txt]}",
        "capture.prompts: params/prompts/fw.txt: no such file; in that folder: few.txt",
    ),
    "pattern without match": (
        "decode: {prompts: [params/prompts/a*.txt]}",
        "decode.prompts: params/prompts/a*.txt: no file matches",
    ),
    "empty prompt file": ("decode: {prompts: [params/prompts/empty.txt]}", "params/prompts/empty.txt"),
    "malformed prompt file": ("decode: {prompts: [params/prompts/bad.jsonl]}", "params/prompts/bad.jsonl:1"),
    "missing trait file": (
        "traits: {files: [params/traits/clam.json]}",
        "traits.files: params/traits/clam.json: there is no such file, did you mean 'calm.json'?",
    ),
    "empty trait file": ("traits: {files: [params/traits/none.json]}", "params/traits/none.json: the file is empty"),
    "missing texts": (
        "intervention: {kind: texts, path: params/answers.csv}",
        "intervention.path: params/answers.csv: there is no such file",
    ),
    "missing adapter": (
        "intervention: {kind: adapter, path: adapters/mine}",
        "intervention.path: adapters/mine: there is no such folder",
    ),
    "missing training data": (
        "intervention: {kind: finetune, data: params/d.txt}",
        "intervention.data: params/d.txt: there is no such file",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_there_are_refused_before_anything_starts(root, name):
    line, said = FILES[name]
    (root / "params/prompts/empty.txt").touch()
    (root / "params/traits/none.json").touch()
    (root / "params/prompts/bad.jsonl").write_text("{text\n")
    section = line.split(":")[0]
    lines = [old for old in GOOD.splitlines() if not old.startswith(f"{section}:")]
    message = refused(root, "\n".join([*lines, line, ""]))
    assert said in message
    assert message.startswith(f"params/x.yml:{len(lines) + 1}: ")


def test_datasets_of_the_hub_are_not_asked_for_while_reading(root):
    path = root / "params/x.yml"
    path.write_text(GOOD.replace("decode: {prompts: [", 'decode: {prompts: ["hf:owner/name:train:prompt", '))
    assert load_experiment(path).decode.prompts[0] == "hf:owner/name:train:prompt"


def test_an_experiment_that_is_not_there_is_told_what_there_is(root):
    with pytest.raises(
        ParameterError, match=r"smal\.yml: there is no such experiment, did you mean 'small'\?; there are "
    ):
        load_experiment(root / "params/smal.yml")


def test_the_name_of_an_experiment_is_the_name_of_its_file(root):
    assert "experiment: 'x' must be the name of the file, 'y'" in refused(root, GOOD, "y")


def test_numbers_that_yaml_reads_as_text_are_numbers(root):
    path = root / "params/x.yml"
    path.write_text(GOOD + "validate: {alpha: 1e-3}\n")
    assert yaml.safe_load(path.read_text())["validate"]["alpha"] == "1e-3"
    assert load_experiment(path).validation.alpha == 1e-3


def test_what_a_notebook_is_given_loads_back_as_the_same_parameters():
    experiment = load_experiment(REPOSITORY / "params/overnight.yml")
    for stage in STAGES:
        given = resolved(experiment, stage)
        assert list(given) == ["experiment", "seed", "base", "names", "intervention", "engine", stage]
        assert yaml.safe_load(yaml.safe_dump(given)) == given
        assert validate_cell(stage, given).section(stage) == experiment.section(stage)


def test_the_split_of_prompts_keeps_its_name_when_written():
    assert set(Decode().model_dump(by_alias=True, mode="json")["splits"]) == {"discover", "screen", "validate"}


def test_a_cell_is_checked_like_a_file():
    cell = {
        "experiment": "x",
        "seed": 0,
        "base": {},
        "intervention": {"kind": "none"},
        "engine": {},
        "cluster": {"k": 3},
    }
    with pytest.raises(ParameterError, match=r"notebooks/cluster\.ipynb, parameters cell: cluster\.k: unknown key"):
        validate_cell("cluster", cell)
    assert validate_cell("cluster", {**cell, "cluster": {"clusters": 7}}).cluster.clusters == 7


def test_a_bench_has_a_section_of_its_own_and_no_other(root):
    path = root / "params/bench/bench-a.yml"
    path.write_text("experiment: bench-a\nbench: {anything: [1, 2], deep: {er: 3}}\n")
    experiment = load_experiment(path)
    assert resolved(experiment, "bench-a")["bench"] == {"anything": [1, 2], "deep": {"er": 3}}
    assert "unknown key" in refused(root, "experiment: bench-b\nclusters: 3\n", "bench-b")


SHIPPED = (p for folder in ("params", "params/bench") for p in (REPOSITORY / folder).glob("*.yml"))
EXPERIMENTS = sorted(p for p in SHIPPED if p.stem != "allow")  # the rules of `make check`


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_the_experiments_that_ship_are_valid(path):
    assert load_experiment(path).experiment == path.stem


def test_reading_parameters_costs_no_torch(root):
    (root / "params/x.yml").write_text(GOOD + "cluster: {clustres: 3}\n")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "driftbook", "run", "x"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "did you mean 'clusters'" in done.stderr and done.returncode == 1
    assert not any(f"{heavy}\n" in done.stderr for heavy in ("| torch", "| transformers", "| papermill", "| nbformat"))


def test_a_combination_can_be_steered_along(root):
    path = root / "params/x.yml"
    path.write_text(
        "experiment: x\ntraits:\n  files: [params/traits/calm.json]\n  combine: [{name: mix, subtract: [calm]}]\n"
        "intervention: {kind: steer, trait: mix, coefficient: 1}\n"
        "capture: {prompts: [params/prompts/few.txt]}\ndecode: {prompts: [params/prompts/few.txt]}\n"
    )
    assert load_experiment(path).traits.combine[0].subtract == ["calm"]
    path.write_text(path.read_text().replace("trait: mix", "trait: mux"))
    assert "intervention.trait 'mux' is in none of traits.files" in refused(root, path.read_text())
