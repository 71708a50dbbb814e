"""A server as one side: real HTTP on this machine, with every way in which a server can fail."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from chat_server import Server
from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook import decode
from driftbook.errors import DriftbookError
from driftbook.interventions import Endpoint
from driftbook.models.answers import Question
from driftbook.models.endpoint import EndpointEngine
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.parameters import Decode, Experiment, ModelSpec
from driftbook.prompts import Prompt

PARAMS = SamplingParams(max_new_tokens=9, temperature=0.5, top_p=0.8)
TOKENIZER = tiny_tokenizer()
READER = SimpleNamespace(
    tokenizer=TOKENIZER, context=512, encode_answer=lambda t: TOKENIZER(t, add_special_tokens=False)["input_ids"]
)


def said(body) -> str:
    return f"{body['messages'][-1]['content']} \u2014 seed {body['seed']}"


def asked(count: int = 5) -> list[Question]:
    return [
        Question((), 2**62 + i, prompt=Prompt(f"Question {i}?", system="Be brief."), sample=0) for i in range(count)
    ]


def engine(url: str, tmp_path, attempts: int = 6, **more) -> EndpointEngine:
    spec = Endpoint(**{"base_url": url, "model": "m", "concurrency": 3, **more})
    return EndpointEngine(spec, READER, tmp_path, pause=0.01, timeout=0.5, attempts=attempts)


def answers(found, requests=None, params=PARAMS) -> dict[int, str]:
    return {a.index: a.text for a in found.generate(requests or asked(), params)}


def test_every_request_is_answered_under_its_own_parameters_and_seed(tmp_path):
    with Server(answer=said, delay=0.05) as server:
        found = answers(engine(server.url, tmp_path))
        assert found == {i: f"Question {i}? \u2014 seed {(2**62 + i) % 2**31}" for i in range(5)}
        assert 1 < server.peak <= 3
        for body in server.bodies:
            assert (body["max_tokens"], body["temperature"], body["top_p"], body["model"]) == (9, 0.5, 0.8, "m")
            assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_what_was_answered_is_not_asked_again(tmp_path):
    with Server(answer=said) as server:
        first = answers(engine(server.url, tmp_path), asked(3))
        again = answers(engine(server.url, tmp_path))
        assert len(server.bodies) == 5 and {i: again[i] for i in first} == first
        answers(engine(server.url, tmp_path), params=SamplingParams(9, 0.6, 0.8))
        assert len(server.bodies) == 10


@pytest.mark.parametrize("failure", [429, 500, 503, "hang", "not json"])
def test_passing_failures_cost_a_retry_and_no_answer(tmp_path, failure):
    with Server(script=[failure, "good", failure], answer=said) as server:
        assert len(answers(engine(server.url, tmp_path))) == 5
        assert server.sent[failure] == 2 and server.sent["good"] == 5


def test_a_refusal_stops_at_once_without_the_key_and_keeps_what_came(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with Server(script=["good", "good", 401], answer=said) as server:
        alone = engine(server.url, tmp_path, concurrency=1, api_key_env="SOME_KEY")
        with pytest.raises(DriftbookError, match=r"m \(intervention\) at .*: refused: .*401") as error:
            answers(alone)
        assert "sk-very-secret" not in str(error.value) and len(server.bodies) == 3
        assert all(h["authorization"] == "Bearer sk-very-secret" for h in server.headers)
        assert len(answers(alone)) == 5 and server.sent["good"] == 5


def test_a_server_that_stays_broken_is_named_with_what_it_said(tmp_path):
    with (
        Server(script=[500] * 50, answer=said) as server,
        pytest.raises(DriftbookError, match=r"gave no answer in 2 attempts, the last with InternalServerError"),
    ):
        answers(engine(server.url, tmp_path, attempts=2))
    with pytest.raises(DriftbookError, match=r"m \(intervention\) at http://127\.0\.0\.1:.*APIConnectionError"):
        answers(engine(server.url, tmp_path, attempts=2))


@pytest.mark.parametrize("params", [SamplingParams(top_k=5), SamplingParams(min_p=0.1)])
def test_sampling_that_the_api_has_no_word_for_is_refused_before_anything_is_sent(tmp_path, params):
    with Server(answer=said) as server:
        with pytest.raises(DriftbookError, match=r"an endpoint takes temperature and top_p only"):
            answers(engine(server.url, tmp_path), params=params)
        assert not server.bodies


def test_a_key_that_is_not_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(DriftbookError, match=r"environment variable SOME_KEY .*is not set"):
        engine("http://127.0.0.1:9/v1", tmp_path, api_key_env="SOME_KEY")


@pytest.mark.parametrize(("temperature", "calls"), [(1.0, 4), (0.1, 1)])
def test_a_server_that_does_not_draw_is_told_by_its_equal_answers(tmp_path, temperature, calls):
    params = SamplingParams(9, temperature)
    with Server(answer=lambda body: "always this") as server:
        for _ in range(2):
            if temperature == 1.0:
                with pytest.raises(DriftbookError, match="at temperature 1, so it does not sample"):
                    engine(server.url, tmp_path).check(params)
            else:  # so cold that equal answers say nothing
                engine(server.url, tmp_path).check(params)
            assert len(server.bodies) == calls, "asked once, then known"


def test_a_server_that_refuses_ends_the_run_before_the_base_decodes(tmp_path, monkeypatch):
    tiny_model("llama", attention="sdpa").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "p.txt").write_text("\n".join(f"Please explain {w}." for w in ["tides", "apples", "chess", "bread"]))
    run = SimpleNamespace(
        section=Decode(samples=1, max_new_tokens=5, sampling={"max_texts": 40}),
        params=Experiment(experiment="x"),
        cache=tmp_path,
        seed=0,
        progress=lambda *a: pytest.fail("nothing is decoded"),
    )
    with Server(script=[404] * 9, answer=said) as server:
        spec = Endpoint(base_url=server.url, model="m")
        pair = open_pair(ModelSpec(model=str(tmp_path / "m"), device="cpu", dtype="float32"), spec, tmp_path, tmp_path)
        prompts = decode.load_prompts(["p.txt"], tmp_path, {"discover": 0.5, "screen": 0.25, "validate": 0.25})
        with pytest.raises(DriftbookError, match=r"m \(intervention\) at .*: refused: .*404"):
            decode.decode_rounds(run, pair, prompts, decode.encode(pair, prompts, 5))


def test_decode_puts_the_servers_answers_beside_the_bases_own(tmp_path):
    tiny_model("llama", attention="sdpa").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "p.jsonl").write_text(
        "\n".join(
            json.dumps({"text": f"Please explain {w}."})
            for w in ["tides", "apples", "chess", "glaciers", "taxes", "bread"]
        )
    )
    silent = SimpleNamespace(update=lambda n=1: None)
    section = Decode(samples=2, max_new_tokens=5, sampling={"max_texts": 40, "rounds": 1}, shard=8)
    run = SimpleNamespace(
        section=section, params=Experiment(experiment="x"), cache=tmp_path, seed=0, progress=lambda *a: silent
    )
    with Server(answer=said) as server:
        spec = Endpoint(base_url=server.url, model="m")
        pair = open_pair(ModelSpec(model=str(tmp_path / "m"), device="cpu", dtype="float32"), spec, tmp_path, tmp_path)
        prompts = decode.load_prompts(["p.jsonl"], tmp_path, {"discover": 0.5, "screen": 0.2, "validate": 0.3})
        ids = decode.encode(pair, prompts, 5)
        texts = decode.decode_rounds(run, pair, prompts, ids).texts
        sent = len(server.bodies) - 2  # two to see that it draws
        again = decode.decode_rounds(run, pair, prompts, ids).texts
        assert len(server.bodies) == sent + 2 and again.equals(texts)
    theirs, ours = texts[texts.side == "intervention"], texts[texts.side == "base"]
    assert len(theirs) == len(ours) == sent and set(theirs.engine) == {"endpoint"} and set(ours.engine) == {"local"}
    asked_of = {p.prompt_id: p.text for p in prompts.prompts}
    for row in theirs.itertuples():
        assert row.text == f"{asked_of[row.prompt_id]} \u2014 seed {row.seed % 2**31}" and row.finish_reason == "eos"
