"""The how-tos for an intervention, a judge and engines of one's own, tried: their code as it stands on the page."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from driftbook import decode, engines, validate
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError, ParameterError
from driftbook.evidence.opened import open_judge
from driftbook.judges import Lexicon
from driftbook.ledger import Ledger
from driftbook.models.divergence import token_divergence
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, PairSpec, open_pair, share
from driftbook.parameters import EngineSpec, Experiment, ModelSpec, load_experiment, resolved
from driftbook.prompts import Prompt, PromptSet
from driftbook.sections import DECODERS, JUDGES, KINDS, WORKERS, judge_of, of_kind
from driftbook.store import ShardStore
from driftbook.workbook import keys, plan
from driftbook.workbook.claims import names_of
from driftbook.workers import OPENED
from models import generated, requests_for, saved
from planted import run_of
from planted import texts_of as planted_texts

DOCS = Path(__file__).parent.parent / "docs"
ASKED = [Prompt(f"Why {s}?") for s in ("tides", "apples", "chess", "violins")]
PROMPTS = PromptSet.of(ASKED, ["discover"] * len(ASKED))
GREEDY = SamplingParams(6, temperature=0.0)


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and imports it; it and what it registered are forgotten afterwards."""
    held = [(registry, set(registry)) for registry in (KINDS, JUDGES, DECODERS, WORKERS)]
    monkeypatch.syspath_prepend(tmp_path / "own")
    (tmp_path / "own").mkdir()
    written = []

    def write(name: str, code: str):
        (tmp_path / "own" / f"{name}.py").write_text(code)
        written.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in written:
        del sys.modules[name]
    for registry, before in held:
        for name in set(registry) - before:
            del registry[name]


def explained(path: Path, section: str, mistakes: dict[str, str], begins: str = "") -> None:
    """Each of the mistakes in a section of a parameter file is told in words, after what the message begins with."""
    right = path.read_text()
    for wrong, message in mistakes.items():
        path.write_text(right + section.format(wrong) + "\n")
        with pytest.raises(ParameterError, match=begins) as error:
            load_experiment(path)
        assert message in str(error.value)


@pytest.fixture
def noise(module):
    (code,) = blocks("add-intervention.md")
    return module("own_noise", code).Noise


@pytest.fixture
def base(tmp_path) -> ModelSpec:
    return ModelSpec(model=str(saved(tmp_path / "m")), device="cpu", dtype="float32")


def texts_of(pair: Pair, folder: Path, params: SamplingParams = GREEDY) -> pd.DataFrame:
    ids = decode.encode(pair, PROMPTS, params.max_new_tokens)
    asks = decode.first_round(PROMPTS, 2, 10**6)
    return decode.decode_texts(pair, PROMPTS, ids, asks, params, 0, ShardStore(folder), 5)


def said(texts: pd.DataFrame, side: str) -> list[list[int]]:
    return texts[texts.side == side].token_ids.tolist()


# --------------------------------------------------------------------------------------------------------------- walks


def test_the_files_and_records_of_the_walks_are_there():
    lib = DOCS.parent / "lib/driftbook"
    told = re.findall(r"`([^`]+)`", (DOCS / "walks.md").read_text(encoding="utf-8"))
    made_up = {"noise.py", "stems.py", "plain_engine.py", "<stage>.py"}
    files = {Path(t).name for t in told if t.endswith(".py") and not t.startswith("tests/")} - made_up
    records = {t for t in told if re.fullmatch(r"[A-Z][a-z]\w+", t)}
    assert len(files) > 15 and len(records) > 15
    there = {path: path.read_text(encoding="utf-8") for path in lib.rglob("*.py")}
    assert files - {path.name for path in there} == set()
    assert records - set(re.findall(r"^class (\w+)", "\n".join(there.values()), re.MULTILINE)) == set()


# -------------------------------------------------------------------------------------------------------- intervention


def test_a_parameter_file_may_name_a_new_kind_and_its_mistakes_are_explained(noise, root):
    path = root / "params/small.yml"
    plain = path.read_text()
    path.write_text(plain + "intervention: {kind: noise, size: 0.02}\n")
    experiment = load_experiment(path)
    assert experiment.intervention == noise(size=0.02)
    assert resolved(experiment, "decode")["intervention"] == {"kind": "noise", "size": 0.02, "seed": 0}
    path.write_text(plain)
    mistakes = {
        "{kind: nois, size: 1}": "intervention.kind: there is no 'nois', did you mean 'noise'?; one of none, ",
        "{kind: noise, sise: 1, size: 1}": "intervention.sise: unknown key, did you mean 'size'?",
        "{kind: noise, size: 0}": "intervention.size: input should be greater than 0 (it is 0)",
        "{kind: noise}": "intervention.size: is missing",
    }
    explained(path, "intervention: {}", mistakes, r"params/small\.yml:\d+: ")


def test_everything_that_asks_for_the_kind_asks_the_class(noise, root):
    (root / "weights.bin").write_bytes(b"w")
    experiment = Experiment(experiment="x", intervention={"kind": "noise", "size": 0.5})
    assert keys.upstream(experiment, "decode") == () and keys.input_files(experiment, "decode", root) == []
    size = plan.model_size(experiment.base, root)
    assert "two models" in plan._memory(experiment, size)[0][0]
    said = "with noise of 0.5 standard deviations on its weights"
    assert experiment.intervention.title("m") == f"How did m change {said}?"
    assert names_of(resolved(experiment, "decode")) == ("smollm2-135m-instruct", f"smollm2-135m-instruct, {said}")
    assert names_of({"base": {"model": "m"}, "intervention": {"kind": "gone"}}) == ("m", "m, changed")


def test_a_new_kind_goes_through_decode_and_divergence(noise, base, tmp_path):
    pair = open_pair(base, noise(size=0.3), tmp_path / "cache", tmp_path)
    texts = texts_of(pair, tmp_path / "decode")
    # The same noise by hand.
    other = open_pair(base, KINDS["none"](), tmp_path / "cache", tmp_path).base.model
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.model.parameters():
            if weight.dim() == 2:
                weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    prompts = [tuple(other.encode_prompt(p.text)) for p in ASKED]
    by_hand = [ids for ids, _ in generated(other, requests_for(prompts, 2), GREEDY)]
    assert said(texts, "intervention") == by_hand != said(texts, "base")
    sequences = [TokenSequence(p, (7, 8, 9)) for p in prompts]
    assert all((found["js"] > 0).all() for found in token_divergence(pair, sequences, sequences))
    again = open_pair(base, noise(size=0.3), tmp_path / "cache", tmp_path)
    assert again.intervention.key == pair.intervention.key != pair.base.key


def test_a_name_is_registered_once(noise):
    with pytest.raises(ValueError, match="'noise' is registered already"):
        KINDS.register("noise")(KINDS["none"])
    assert of_kind({"kind": "noise", "size": 1}) == noise(size=1)


# ---------------------------------------------------------------------------------------------------------------- judge


@pytest.fixture
def stems(module):
    (code,) = blocks("add-judge.md")
    return module("own_stems", code).Stems


def test_a_parameter_file_may_name_a_new_judge_and_its_mistakes_are_explained(stems, root):
    path = root / "params/small.yml"
    plain_text = path.read_text()
    path.write_text(plain_text + "validate: {judges: {cheap: {kind: stems, letters: 4}}}\n")
    experiment = load_experiment(path)
    assert experiment.validation.judges.cheap == stems(letters=4)
    assert resolved(experiment, "validate")["validate"]["judges"]["cheap"] == {"kind": "stems", "letters": 4}
    assert plan._validate(experiment, 100).what.count("cheap, stems: no calls") == 1
    path.write_text(plain_text)
    mistakes = {
        "{kind: stem}": "cheap.kind: there is no 'stem', did you mean 'stems'?; one of lexicon, ",
        "{kind: stems, leters: 4}": "cheap.leters: unknown key, did you mean 'letters'?",
        "{kind: stems, letters: 0}": "cheap.letters: input should be greater than or equal to 1 (it is 0)",
    }
    explained(path, "validate: {{judges: {{cheap: {}}}}}", mistakes, r"params/small\.yml:\d+: validate\.judges\.")


def test_a_judge_of_ones_own_goes_through_the_stage_and_is_frozen_with_its_parameters(stems, tmp_path):
    """Words that the texts hold in other forms are found by their beginnings, and by no whole word."""
    hedged = [Hypothesis("hedges", "intervention", words=("mightily", "perhapses"), measure={"kind": "judge"})]
    run = run_of(tmp_path, planted_texts(hedge_changed=0.9), hedged)
    material, ledger = validate.load(run), Ledger(tmp_path / "a.sqlite", 0.0)
    frozen, confirmed = [], []
    for spec in (stems(), stems(letters=8), Lexicon()):
        judge = open_judge(judge_of(spec.model_dump()), "cheap", material, ledger, tmp_path, tmp_path)
        judges = validate.Judges(judge, None, ledger)
        (sealed,) = (r for r in validate.freeze(material, judges, run.section).itertuples() if "judge" in r.measure)
        (found,) = (o for o in validate.count(run, material, judges) if o.hypothesis.measure == {"kind": "judge"})
        frozen.append(sealed.frozen)
        confirmed.append(found.confirmed)
    assert confirmed == [True, False, False] and len(set(frozen)) == 3


# -------------------------------------------------------------------------------------------------------------- engines


@pytest.fixture
def plain(module):
    engine, registration, _ = blocks("add-engine.md")
    module("own_plain", engine)
    registration = registration.replace("driftbook.models.plain_engine", "own_plain")
    names = "from pathlib import Path\nfrom driftbook.models.answers import Answering, Engine\n"
    module("own_registration", f"{names}from driftbook.sections import DECODERS\n\n{registration}")


def test_a_decoder_of_ones_own_gives_the_greedy_texts_of_the_local_engine(plain, base, tmp_path):
    found = {}
    for decoder in ("local", "plain"):
        pair = open_pair(base, KINDS["none"](), tmp_path, tmp_path, engine=EngineSpec(decoder=decoder))
        assert pair.base.engine.name == decoder
        found[decoder] = texts_of(pair, tmp_path / decoder)
    assert said(found["plain"], "base") == said(found["local"], "base")
    assert set(found["plain"].engine) == {"plain"}
    with pytest.raises(DriftbookError, match=r"it is greedy; set decode\.temperature: 0"):
        pair.base.engine.check(SamplingParams(6, 0.7))


def test_an_engine_that_is_not_registered_is_explained(plain, root):
    mistakes = {
        "{decoder: plane}": "engine.decoder: 'plane' is not one of local, vllm, plain, did you mean 'plain'?",
        "{kind: rey}": "engine.kind: 'rey' is not one of local, processes, ray, did you mean 'ray'?",
    }
    explained(root / "params/small.yml", "engine: {}", mistakes)


def test_workers_of_ones_own_give_the_same_texts(module, base, tmp_path, monkeypatch):
    inline = module("own_inline", blocks("add-engine.md")[2]).Inline
    WORKERS.register("inline")(inline)
    monkeypatch.setattr("driftbook.workers.OPENED", OPENED.copy())
    engine, none = EngineSpec(kind="inline", batch_size=3), KINDS["prompt"](system="Be terse.")
    workers = engines.open_workers(engine, base)
    assert isinstance(workers, inline)
    pair = open_pair(base, none, tmp_path, tmp_path, engine=engine)
    here = texts_of(pair, tmp_path / "here", SamplingParams(6, 1.0))
    spec = PairSpec(base, none, tmp_path, tmp_path, None, {side.name: side.key for side in pair}, engine)
    share(pair, workers, spec)
    there = texts_of(pair, tmp_path / "there", SamplingParams(6, 1.0))
    pd.testing.assert_frame_equal(here.drop(columns="seconds"), there.drop(columns="seconds"))
