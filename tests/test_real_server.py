"""A server that nobody here wrote: ``transformers serve`` on a tiny model answers as one side, and as a judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from driftbench.serving import transformers_server
from driftbook.chat import ChatClient as Chat
from driftbook.errors import DriftbookError
from driftbook.interventions import Endpoint
from driftbook.ledger import Ledger
from driftbook.models.answers import Question
from driftbook.models.endpoint import EndpointEngine
from driftbook.models.loading import load
from driftbook.models.local import LocalEngine
from driftbook.models.sampling import SamplingParams
from driftbook.parameters import ModelSpec
from driftbook.prompts import Prompt

PROMPTS = [Prompt("How are you?"), Prompt("Why is it so?", system="Be brief."), Prompt("I am not sure.")]


@pytest.fixture(scope="module")
def model(server, tmp_path_factory):
    return load(ModelSpec(model=server.model, device="cpu", dtype="float32"), tmp_path_factory.mktemp("cache"))


def questions(model, samples: int = 1) -> list[Question]:
    return [
        Question(tuple(model.encode_prompt(p.text, p.system)), 7 + k, prompt=p, sample=k)
        for p in PROMPTS
        for k in range(samples)
    ]


def answered(engine, requests, params) -> list[tuple[list[int], str]]:
    done = {a.index: a for a in engine.generate(requests, params)}
    return [(done[i].token_ids, done[i].finish_reason) for i in range(len(requests))]


def remote(server, model, cache: Path, concurrency: int = 1) -> EndpointEngine:
    return EndpointEngine(Endpoint(base_url=server.base_url, model=server.model, concurrency=concurrency), model, cache)


def test_greedy_answers_are_those_of_the_local_engine(server, model, tmp_path):
    greedy = SamplingParams(12, temperature=0.0)
    local = {c.index: c for c in LocalEngine(model).generate(questions(model), greedy)}
    theirs = {a.index: a for a in remote(server, model, tmp_path, 3).generate(questions(model), greedy)}
    assert {i: a.text for i, a in theirs.items()} == {i: model.decode(c.token_ids) for i, c in local.items()}
    assert {i: a.finish_reason for i, a in theirs.items()} == {i: c.finish_reason for i, c in local.items()}


def test_seeds_and_the_length_are_heeded(server, model, tmp_path):
    drawn = SamplingParams(10, temperature=1.0)
    remote(server, model, tmp_path / "a").check(drawn)
    first = answered(remote(server, model, tmp_path / "a"), questions(model, 2), drawn)
    assert first == answered(remote(server, model, tmp_path / "b"), questions(model, 2), drawn)
    assert all(first[i] != first[i + 1] for i in (0, 2, 4)), "samples of a prompt have seeds of their own"


def test_a_model_that_the_server_does_not_have_is_refused_with_its_name(server, model, tmp_path):
    wrong = EndpointEngine(Endpoint(base_url=server.base_url, model="other"), model, tmp_path)
    with pytest.raises(DriftbookError, match=r"other \(intervention\) at .*: refused: .*400"):
        answered(wrong, questions(model), SamplingParams(4, temperature=0.0))


def test_a_server_that_is_greedy_at_any_temperature_is_refused(server, model, tmp_path):
    folder = shutil.copytree(server.model, tmp_path / "greedy")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "do_sample"}))
    with transformers_server(folder, tmp_path / "log.txt") as greedy:
        with pytest.raises(DriftbookError, match=r'at temperature 1, so it does not sample.*"do_sample": true'):
            remote(greedy, model, tmp_path).check(SamplingParams(4, temperature=1.0))
        assert len(answered(remote(greedy, model, tmp_path), questions(model), SamplingParams(4, temperature=0.0))) == 3


def test_a_judge_talks_to_it_and_its_answers_are_kept(server, tmp_path):
    ledger = Ledger(tmp_path / "answers.sqlite", 0.0)
    judge = Chat("expensive", server.model, server.base_url, ledger, max_tokens=6, concurrency=2)

    class Once:
        def __init__(self, text: str):
            self.text, self.said = text, None

        def next(self):
            return judge.request([{"role": "user", "content": self.text}], 0) if self.said is None else None

        def receive(self, answer):
            self.said = answer

    for cached in (0, 3):
        asked = [Once(p.text) for p in PROMPTS]
        judge.converse(asked)
        assert all(one.said is not None and one.said.text for one in asked)
        (row,) = ledger.table().itertuples()
        assert (row.calls, row.cached) == (3, cached) and row.output_tokens == 18
