"""The one chat client against a server as peculiar as those that people meet: fields that it refuses, thoughts, replies
without words, content in parts. Each peculiarity has its own outcome, and none ends the run or is paid thrice."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from chat_server import Server
from driftbook.chat import ChatClient
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.labeller import parse as parse_labeller
from driftbook.interventions import Endpoint
from driftbook.judges.endpoint import EndpointJudge
from driftbook.ledger import Ledger
from driftbook.models.endpoint import EndpointEngine
from driftbook.models.sampling import SamplingParams
from driftbook.replies import Answer, json_objects, read_levels, split_thought, whole
from test_endpoint_engine import READER, asked

CLAIM = [Hypothesis("red", "intervention")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.sqlite"


def client(server, path, **more) -> ChatClient:
    return ChatClient("strong", "m", server.url, Ledger(path, 100.0), **{"pause": 0.001, "timeout": 5.0, **more})


def judge(server, path, **more) -> EndpointJudge:
    return EndpointJudge(client(server, path, **more))


def question(one: ChatClient, text: str = "Hello?", **fields):
    return one.request([{"role": "user", "content": text}], 0, 0.5, levels=fields.pop("levels", ())) | fields


def says(content, reason="stop", **fields):
    """A server's choice."""
    return {"message": {"role": "assistant", "content": content, **fields}, "finish_reason": reason}


def hear(choice, path) -> Answer:
    """The answer as it is heard, which is also as it is kept."""
    with Server(answer=lambda body: choice) as server:
        one = client(server, path)
        ((_, answer),) = one.answers([question(one)])
    assert one.ledger.peek(one.key_of(question(one))) == answer
    return answer


# ----------------------------------------------------------------------------------------------------- refused fields

REFUSALS = {
    "max_tokens": (
        400,
        {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "code": "unsupported_parameter",
            "param": "max_tokens",
        },
    ),
    "temperature": (
        400,
        {
            "message": "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) "
            "value is supported.",
            "code": "unsupported_value",
        },
    ),
    "logprobs": (403, {"message": "You are not allowed to request logprobs from this model"}),
    "seed": (422, {"message": "[{'type': 'extra_forbidden', 'loc': ['body', 'seed']}]"}),
    "top_p": (
        400,
        {"message": "`temperature` and `top_p` cannot both be specified for this model. Please use only one."},
    ),
}


def refusing(*fields):
    def refuse(body):
        return next((REFUSALS[f] for f in fields if f in body), None)

    return refuse


@pytest.mark.parametrize("field", REFUSALS)
def test_a_field_that_the_server_refuses_is_left_out_and_remembered(path, field):
    with Server(refuse=refusing(field), answer=lambda body: "Hi.") as server:
        one = client(server, path, concurrency=1)
        request = question(one, top_p=0.9, seed=3, levels=("HIGH", "LOW"))
        plain = one.key_of(request)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ((_, answer),) = one.answers([request])
        drawn = field in ("temperature", "top_p")
        assert [f"does not take {field}" in str(w.message) for w in said] == [True] * drawn
        assert answer.text == "Hi." and [field in b for b in server.bodies] == [True, False]
        assert set(server.bodies[0]) - set(server.bodies[1]) == {field} | ({"top_logprobs"} & {f"top_{field}"})
        assert server.bodies[1].get("max_completion_tokens") == (200 if field == "max_tokens" else None)
        assert one.key_of(request) != plain, "the answer to another request stands under another key"
        row = one.ledger.table().set_index("judge").loc["strong"]
        assert (row["calls"], row["failed"], row["without"]) == (2, 1, field)
        later = client(server, path)
        assert [a.text for _, a in later.answers([request])] == ["Hi."] and len(server.bodies) == 2, "warm"
        assert [a.text for _, a in later.answers([request | {"sample": 1}])] == ["Hi."]
        assert len(server.bodies) == 3 and field not in server.bodies[2], "known in later runs, too"
        assert later.ledger.table().set_index("judge").loc["strong", "without"] == field


def test_what_one_client_was_refused_another_one_leaves_out_that_was_opened_before(path):
    with Server(refuse=refusing("temperature"), answer=lambda body: "Hi.") as server:
        one, other = client(server, path), client(server, path)
        assert [a.text for _, a in one.answers([question(one)])] == ["Hi."]
        assert [a.text for _, a in other.answers([question(other) | {"sample": 1}])] == ["Hi."]
        assert ["temperature" in b for b in server.bodies] == [True, False, False]


@pytest.mark.parametrize("status", [400, 403, 422])
def test_logprobs_may_be_refused_by_any_status(path, status):
    def refuse(body):
        return (status, {"message": "logprobs are not supported"}) if "logprobs" in body else None

    with Server(refuse=refuse) as server:
        assert judge(server, path, concurrency=1).score(["red", "blue"], CLAIM).tolist() == [[1.0], [0.0]]
        assert len(server.bodies) == 3


def test_several_refused_fields_go_one_by_one(path):
    with Server(refuse=refusing("max_tokens", "temperature", "logprobs", "seed"), answer=lambda body: "Hi.") as server:
        one = client(server, path)
        request = question(one, top_p=0.9, seed=3, levels=("HIGH", "LOW"))
        ((_, answer),) = one.answers([request])
        assert answer.text == "Hi." and set(server.bodies[-1]) == {
            "model",
            "messages",
            "max_completion_tokens",
            "top_p",
        }
        assert one.ledger.accounts["strong"].without == "logprobs, max_tokens, seed, temperature"


def test_a_value_out_of_range_and_a_refusal_of_something_else_are_errors_that_leave_no_trace(path):
    for message in ("Invalid 'temperature': decimal above maximum value.", "no such model"):
        with Server(refuse=lambda body, m=message: (400, {"message": m}), answer=lambda body: "") as server:
            one = client(server, path)
            with pytest.raises(DriftbookError, match=message):
                list(one.answers([question(one)]))
            assert len(server.bodies) == 1 and one.ledger.refused(f"{server.url} m") == []


def test_samples_of_a_side_stay_apart_where_the_server_takes_no_seed(tmp_path):
    count = iter(range(100))
    with Server(refuse=refusing("seed", "top_p"), answer=lambda body: f"answer {next(count)}") as server:
        spec = Endpoint(base_url=server.url, model="m", concurrency=1)
        engine = EndpointEngine(spec, READER, tmp_path, pause=0.001)
        before = engine.version
        texts = {a.index: a.text for a in engine.generate(asked(4), SamplingParams(9, 0.5, 0.8))}
        assert len(set(texts.values())) == 4 and engine.version != before == 1
        again = EndpointEngine(spec, READER, tmp_path)
        assert again.version == engine.version
        assert {a.index: a.text for a in again.generate(asked(4), SamplingParams(9, 0.5, 0.8))} == texts


# -------------------------------------------------------------------------------------------- replies without an answer

NO_ANSWER = {
    "length": says(None, "length", reasoning_content="Let me see"),
    "refusal": says(None, refusal="I cannot help with that."),
    "content_filter": says("", "content_filter"),
    "nothing": says(None),
}


@pytest.mark.parametrize("reason", NO_ANSWER)
def test_what_is_no_answer_is_an_outcome_paid_once_with_its_remedy(path, reason):
    def answer(body):
        return NO_ANSWER[reason] if Server.part(body) == "odd" else Server.rate(body)

    with Server(answer=answer) as server:
        one = judge(server, path)
        with pytest.warns(UserWarning, match=r"1 replies are no answer.*raise max_output_tokens.*count as missing"):
            scores = one.score(["red", "odd", "blue"], CLAIM)
        assert np.isnan(scores[1, 0]) and scores[[0, 2], 0].tolist() == [1.0, 0.0]
        assert len(server.bodies) == 3, "asked once"
        assert one.endpoint.ledger.accounts["strong"].unanswered == 1
        with pytest.warns(UserWarning, match="no answer"):
            assert np.isnan(judge(server, path).score(["odd"], CLAIM)[0, 0])
        assert len(server.bodies) == 3, "and stored as what it is"


def test_a_prompt_that_the_server_filters_costs_its_own_answer_and_no_other(path):
    said = {"message": "The response was filtered due to the prompt triggering the content management policy.",
            "code": "content_filter"}  # fmt: skip
    with Server(refuse=lambda body: (400, said) if Server.part(body) == "odd" else None) as server:
        one = judge(server, path)
        with pytest.warns(UserWarning, match="filtered by the server"):
            scores = one.score([*(f"red {i}" for i in range(20)), "odd"], CLAIM)
        assert (scores[:20] == 1).all() and np.isnan(scores[20, 0]) and len(server.bodies) == 21
        assert one.endpoint.ledger.accounts["strong"].usd == 0


def test_a_side_tells_apart_what_is_no_answer_what_is_empty_and_what_was_cut(tmp_path):
    choices = [NO_ANSWER["length"], NO_ANSWER["refusal"], NO_ANSWER["content_filter"], says(""), says("The", "length")]
    with Server(answer=lambda body: choices[int(body["messages"][-1]["content"].split()[1][0])]) as server:
        engine = EndpointEngine(Endpoint(base_url=server.url, model="m"), READER, tmp_path)
        with pytest.warns(UserWarning, match="3 replies are no answer.*decode.max_new_tokens"):
            found = {a.index: (a.text, a.finish_reason) for a in engine.generate(asked(5), SamplingParams(9, 0.5))}
    assert found == {
        0: ("", "cut"),
        1: ("I cannot help with that.", "refusal"),
        2: ("", "content_filter"),
        3: ("", "eos"),
        4: ("The", "length"),
    }


def test_a_model_that_only_thinks_is_told_from_one_that_does_not_draw(tmp_path):
    with Server(answer=lambda body: NO_ANSWER["length"]) as server:
        engine = EndpointEngine(Endpoint(base_url=server.url, model="m"), READER, tmp_path)
        with pytest.raises(DriftbookError, match=r"no answer .*\(length\).* max_new_tokens.*enable_thinking: false"):
            engine.check(SamplingParams(9, 0.7))


def test_spent_quota_stops_at_once_and_a_rate_limit_is_waited_for(path):
    spent = (429, {"message": "You exceeded your current quota", "code": "insufficient_quota", "type": "x"})
    with Server(refuse=lambda body: spent) as server:
        with pytest.raises(DriftbookError, match="the account's quota is spent"):
            judge(server, path, concurrency=1).score(["red", "blue"], CLAIM)
        assert len(server.bodies) == 1
    with Server([429, 429]) as server:
        assert judge(server, path, concurrency=1).score(["red"], CLAIM)[0, 0] == 1.0 and len(server.bodies) == 3


def test_money_of_a_call_that_never_got_there_is_free_again(path):
    with Server() as server:
        pass
    one = client(server, path, usd_in=10.0, usd_out=10.0, attempts=2)
    one.ledger.budget_usd = 1.5 * one.most(question(one))  # two reservations that stay would pass it
    with pytest.raises(DriftbookError, match="no answer in 2 attempts, the last with APIConnectionError"):
        list(one.answers([question(one)]))


# --------------------------------------------------------------------------------------------------- forms of an answer


def test_content_in_parts_is_joined_and_its_thought_set_apart(path):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "red."},
    ]
    answer = hear(says(parts), path)
    assert (answer.text, answer.thought, answer.answered) == ("It is red.", "Hm.", True)


@pytest.mark.parametrize(
    "content",
    [["It is ", "red."], {"type": "text", "text": "It is red."}, [{"type": "text", "text": {"value": "It is red."}}]],
)
def test_content_is_read_in_whatever_parts_it_comes(path, content):
    assert hear(says(content), path).text == "It is red."


@pytest.mark.parametrize("choice", [says(3), says([1]), says("It is", "error")])
def test_a_content_that_is_no_text_is_no_empty_answer(path, choice):
    with Server(answer=lambda body: choice) as server:
        one = client(server, path, attempts=2)
        with pytest.raises(DriftbookError, match="gave no answer in 2 attempts, the last with ValueError"):
            list(one.answers([question(one)]))


@pytest.mark.parametrize(
    ("said", "reason"),
    [("MAX_TOKENS", "length"), ("max_tokens", "length"), ("SAFETY", "content_filter"), ("eos", "stop")],
)
def test_what_other_servers_call_the_end_of_a_reply_is_understood(path, said, reason):
    assert hear(says("It is", said), path).reason == reason


def test_half_a_surrogate_pair_is_replaced_and_a_whole_one_joined(path):
    assert hear(says("a \ud83d b \ud83d\ude00"), path).text == "a � b 😀"
    assert whole("plain ü 😀") == "plain ü 😀"


@pytest.mark.parametrize(
    ("choice", "thought", "text"),
    [
        (says("<think>\nHm.\n</think>\n\nRed."), "Hm.", "Red."),
        (says("Hm.</think>Red."), "Hm.", "Red."),  # the template has written the opening mark
        (says("Red.", reasoning_content="Hm."), "Hm.", "Red."),
        (says("Red.", reasoning="Hm."), "Hm.", "Red."),
        (says("[THINK]Hm.[/THINK]Red."), "Hm.", "Red."),
        (says("◁think▷Hm.◁/think▷Red."), "Hm.", "Red."),
        (
            says("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Red.<|return|>"),
            "Hm.",
            "Red.",
        ),
        (says("analysisHm.assistantfinalRed."), "Hm.", "Red."),  # the same, its marks dropped
        (says("analysisHm.finalRed."), "Hm.", "Red."),
        (says("Here is my thought process: Hm. Here is my response: Red."), "Hm.", "Red."),
        (says("<THINK>Hm.</THINK>Red."), "Hm.", "Red."),
        (says('<think effort="low">Hm.</think>Red.'), "Hm.", "Red."),
        (says("\ufeff<think>Hm.</think>Red."), "Hm.", "Red."),
        (says("<|START_THINKING|>Hm.<|END_THINKING|>Red."), "Hm.", "Red."),
        (says("<|channel>thought\nHm.<channel|>Red."), "Hm.", "Red."),
        (says("<|begin_of_thought|>Hm.<|end_of_thought|>Red."), "Hm.", "Red."),
        (says("<think>Hm.</think>Red.", reasoning_content="Hm."), "Hm.", "Red."),  # told twice, thought once
        (says("Red.", reasoning_content=[{"type": "text", "text": "Hm."}]), "Hm.", "Red."),
        (says("Close it by `</think>` there."), "", "Close it by `</think>` there."),
        (says("It says <think> there."), "", "It says <think> there."),
        (says("analysis of variance, finally."), "", "analysis of variance, finally."),
    ],
)
def test_a_thought_is_split_off_the_answer_and_kept(path, choice, thought, text):
    answer = hear(choice, path)
    assert (answer.thought, answer.text) == (thought, text)


def test_a_thought_that_does_not_end_leaves_no_answer(path):
    answer = hear(says("<think>On the one hand", "length"), path)
    assert (answer.text, answer.thought, answer.answered) == ("", "On the one hand", False)
    assert split_thought("<think>a</think><think>b</think>c") == ("a\nb", "c")


def test_what_a_judge_thinks_notes_or_quotes_is_no_verdict(path):
    thinking = '<think>{"1": "LOW"}? no</think>{"1": "HIGH"}'
    noting = '{"note": 3} First thought {"1": "LOW"}, but: {"1": "HIGH"}'
    tokens = {
        '<think>{"1": "': {'<think>{"1": "': 0.0},
        "LOW": {"LOW": 0.0},
        '"}? no</think>': {'"}? no</think>': 0.0},
        '{"1": "': {'{"1": "': 0.0},
        "HIGH": {"HIGH": np.log(0.75), "LOW": np.log(0.25)},
        '"}': {'"}': 0.0},
    }
    for said, told, expected in ((thinking, tokens, 0.75), (thinking, None, 1.0), (noting, None, 1.0)):
        with Server(answer=lambda body, s=said: s, logprobs=told and (lambda content: tokens.items())) as server:
            assert judge(server, path).score(["x"], CLAIM)[0, 0] == pytest.approx(expected)
            assert len(server.bodies) == 1


def test_a_labellers_list_is_found_beside_other_brackets():
    said = 'Findings [of A and B], as asked [1]: [{"answer": "A", "does": "uses lists", "quote": "1. One"}] [end]'
    assert parse_labeller(said) == [("A", "uses lists", "1. One")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": [1]} {b} {"c": {"d": 2}}', [{"a": [1]}, {"c": {"d": 2}}, {"d": 2}]),
        ('```json\n{"a": 1,}\n```', [{"a": 1}]),
        ("{'a': 'it\\'s', \"b\": \"x, }\"}", [{"a": "it's", "b": "x, }"}]),
        ("{a: HIGH, 2: None}", [{"a": "HIGH", "2": None}]),
        ('{"a": "two\nlines"}', [{"a": "two\nlines"}]),
        ("{" * 5000, []),
        ('{"a":' * 5000 + "1", []),
    ],
)
def test_json_is_found_as_models_write_it(text, found):
    assert json_objects(text) == found


SCALE = {"HIGH": 1.0, "MID": 0.5, "LOW": 0.0}


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"note": 3} {"1": "HIGH"} {"note": 4}', 1.0),
        ('{"1": "LOW"} No: {"1": "HIGH"}', 1.0),
        ('{"ratings": {"1": "HIGH"}}', 1.0),
        ('{"1": {"level": "high", "why": "it says so"}}', 1.0),
        ('{"1": "HIGH: it says so"}', 1.0),
        ('{"note": "he wrote {\'1\': \'LOW\'}", "1": "HIGH"}', 1.0),
        ("high", 1.0),
        ("**HIGH**.", 1.0),
        ("Not LOW, for it is red.\nRating: HIGH", 1.0),
        ("1. HIGH", 1.0),
        ("I thought of LOW. My verdict is **HIGH**.", 1.0),
        (r"\boxed{HIGH}", 1.0),
        ('{"1": "HIGH, since it says so"}', 1.0),
    ],
)
def test_a_verdict_is_read_as_judges_write_it(reply, value):
    assert read_levels(reply, 1, SCALE) == [value]


@pytest.mark.parametrize(
    "reply", ['{"1": "HIGH, LOW"}', '{"1": "HIGH or LOW"}', '{"1": "not HIGH"}', '{"1": 1}', "LOW HIGH"]
)
def test_two_verdicts_or_half_of_one_are_none(reply):
    assert np.isnan(read_levels(reply, 1, SCALE)[0])


@pytest.mark.parametrize("stuck", ["{", '{"a":', '{"', '{"\\', "{'a"])
def test_a_reply_that_is_stuck_in_braces_is_read_to_where_it_stands(stuck):
    """It was tried from every brace to the end, which takes the square of its length."""
    assert json_objects(stuck * 30_000) == []
    assert read_levels('{"1": "HIGH"} ' + stuck * 30_000, 1, SCALE) == [1.0]


def test_verdicts_of_several_statements_are_read_from_lines_too():
    assert read_levels("1. HIGH\n2: mid\n1. LOW", 2, SCALE) == [0.0, 0.5]
    assert read_levels("A", 1, {"A": 1.0, "TIE": 0.5, "B": 0.0}) == [1.0]


def test_a_verdict_that_is_quoted_from_what_was_read_is_none():
    material = 'red. {"1": "HIGH"} <answer>'
    assert read_levels('{"1": "LOW"}, though it says {"1": "HIGH"}', 1, SCALE, material) == [0.0]
    assert read_levels('It says {"1": "HIGH"}. So: {"1": "LOW"}', 1, SCALE, material) == [0.0]
    assert read_levels('{"1": "HIGH"}', 1, SCALE, material) == [1.0], "the only one is the judge's own"


def test_the_form_of_a_verdict_is_asked_for_where_the_server_knows_forms(path):
    said = {"message": "Unsupported: json_schema is not available for this model"}
    with Server(refuse=lambda body: (400, said) if "response_format" in body else None) as server:
        assert judge(server, path, concurrency=1).score(["red"], CLAIM)[0, 0] == 1.0
        first, second = server.bodies
        schema = first["response_format"]["json_schema"]["schema"]
        assert schema["properties"] == {"1": {"type": "string", "enum": ["HIGH", "MID", "LOW"]}}
        assert "response_format" not in second
        assert judge(server, path).endpoint.without == {"response_format"}
        plain = EndpointJudge(client(server, path), structured=False)
        plain.score(["blue"], CLAIM)
        assert plain.identity["structured"] is False and "response_format" not in server.bodies[-1]


def test_a_reply_that_was_cut_before_its_verdict_is_missing_paid_once_and_told(path):
    with Server(answer=lambda body: says("Let me think about it step by step", "length")) as server:
        one = judge(server, path)
        with pytest.warns(UserWarning, match=r"2 of 2 replies ended at their 200 tokens.*raise max_output_tokens"):
            assert np.isnan(one.score(["red", "blue"], CLAIM)).all()
        assert len(server.bodies) == 2
        row = one.endpoint.ledger.table().set_index("judge").loc["strong"]
        assert (row["verdicts"], row["missing"]) == (2, 2)
    with Server(answer=lambda body: says('{"1": "LOW"} because', "length")) as server:
        assert judge(server, path).score(["red"], CLAIM)[0, 0] == 0.0, "a verdict before the end counts"


def test_a_text_too_long_for_the_server_costs_its_own_answer_and_no_other(path):
    said = {"message": "This model's maximum context length is 4096 tokens.", "code": "context_length_exceeded"}
    with Server(refuse=lambda body: (400, said) if Server.part(body) == "odd" else None) as server:
        one = judge(server, path)
        with pytest.warns(UserWarning, match="too long for it"):
            scores = one.score(["red", "odd"], CLAIM)
        assert scores[0, 0] == 1.0 and np.isnan(scores[1, 0]) and len(server.bodies) == 2


# ----------------------------------------------------------------------------------------------- parameters of a server


def test_fields_of_the_parameter_file_go_with_every_request_and_shape_the_key(path):
    more = {"extra_body": {"top_k": 20}, "template_args": {"enable_thinking": False}}
    with Server() as server:
        one, plain = client(server, path, **more), client(server, path)
        assert one.key_of(question(one)) != plain.key_of(question(plain))
        EndpointJudge(one).score(["red"], CLAIM)
        (body,) = server.bodies
        assert body["top_k"] == 20 and body["chat_template_kwargs"] == {"enable_thinking": False}
        assert EndpointJudge(one).identity["extra_body"] == {
            "top_k": 20,
            "chat_template_kwargs": {"enable_thinking": False},
        }


def test_replies_without_peculiarities_warn_of_nothing(path):
    with Server() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(server, path).score(["red", "blue"], CLAIM)


def test_the_caller_may_leave_before_the_end_and_what_was_sent_is_kept(path):
    with Server(answer=lambda body: "Hi.") as server:
        one = client(server, path, concurrency=2)
        requests = [question(one, f"Question {i}?") for i in range(30)]
        left = one.answers(requests)
        next(left)
        left.close()
        sent = len(server.bodies)
        assert sent < 30
        assert len(dict(client(server, path).answers(requests))) == 30 == len(server.bodies)


def test_threads_and_later_runs_share_the_answers(path):
    ledger = Ledger(path, 1.0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: ledger.settle(str(i), "here", 0.0, Answer(json.dumps(i), 0, 0, 0.0)), range(100)))
    assert Ledger(path, 1.0).peek("57").text == "57"
