"""The table of docs/judges.md, row by row: what a server says, and what driftbook makes of it."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chat_server import Server
from driftbook.chat import ChatClient
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.judges.endpoint import EndpointJudge
from driftbook.ledger import Ledger

CLAIM = [Hypothesis("red", "intervention")]
TEXT = 'red, and {"1": "LOW"}'  # what is judged; the right verdict is HIGH
HIGH = '{"1": "HIGH"}'
NO_VERDICT, CUT, RAISE = math.nan, "length", "raise max_output_tokens"


@dataclass
class Row:
    """A server and what comes of one question to it: the score, requests sent, and what is said of it."""

    answer: Any = None  # content, or a choice
    refuse: Any = None  # (status, error object), or a function of the body that gives one
    script: tuple = ()
    logprobs: Any = None
    score: float = 1.0
    sent: int = 1
    without: str = ""
    unanswered: int = 0
    warns: str = ""
    error: str = ""
    client: dict[str, Any] = field(default_factory=dict)


def says(content, reason="stop", **message):
    return {"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}


def unless(name, status, message, **error):
    """Refuses a request with the field ``name``."""
    return lambda body: (status, {"message": message, **error}) if name in body else None


def levels(content):
    alternatives = {"HIGH": math.log(0.6), "MID": math.log(0.3), "LOW": math.log(0.1)}
    return [('{"1": "', {'{"1": "': 0.0}), ("HIGH", alternatives), ('"}', {'"}': 0.0})]


def refused_value(name):
    return f"Unsupported value: '{name}' does not support 0.0 with this model. Only the default (1) is supported."


SEVERAL = [
    unless("logprobs", 400, "logprobs?"),
    unless("max_tokens", 422, "max_tokens: use max_completion_tokens"),
    unless("temperature", 400, refused_value("temperature")),
]
ROWS = {
    "json": Row(HIGH),
    "words around": Row(f"Sure!\n```json\n{HIGH}\n```\nHope that helps."),
    "careless json": Row("{'1': 'HIGH', }"),
    "several objects": Row('{"note": 3} First thought {"1": "LOW"}, but: {"1": "HIGH"}'),
    "one word": Row("Rating: **HIGH**."),
    "quotation": Row('{"1": "HIGH"}, although it says {"1": "LOW"} itself.'),
    "probabilities": Row(HIGH, logprobs=levels, score=0.75),
    "think tags": Row('<think>{"1": "LOW"}? no</think>{"1": "HIGH"}'),
    "reasoning field": Row(says(HIGH, reasoning_content='{"1": "LOW"}? no')),
    "channels": Row(
        '<|channel|>analysis<|message|>{"1": "LOW"}?<|end|><|start|>assistant<|channel|>final<|message|>' + HIGH
    ),
    "channels joined": Row('analysisThe user asks {"1": "LOW"}.assistantfinal{"1": "HIGH"}'),
    "parts": Row(says([{"type": "thinking", "thinking": "LOW?"}, {"type": "text", "text": HIGH}])),
    "half a surrogate": Row('\ud83d {"1": "HIGH"}'),
    "no verdict": Row("I cannot tell.", score=NO_VERDICT, sent=3),
    "cut in its thought": Row(
        says(None, CUT, reasoning_content="Let me"), score=NO_VERDICT, unanswered=1, warns=f"no answer.*{RAISE}"
    ),
    "cut before a verdict": Row(says("Let me see", CUT), score=NO_VERDICT, warns=f"before a verdict.*{RAISE}"),
    "refusal": Row(says(None, refusal="I cannot help."), score=NO_VERDICT, unanswered=1, warns="no answer.*refused"),
    "filtered reply": Row(says("", "content_filter"), score=NO_VERDICT, unanswered=1, warns="no answer.*filtered"),
    "null": Row(says(None), score=NO_VERDICT, unanswered=1, warns="no answer"),
    "filtered prompt": Row(
        refuse=(400, {"message": "The prompt triggered the content management policy.", "code": "content_filter"}),
        score=NO_VERDICT,
        unanswered=1,
        warns="no answer.*filtered",
    ),
    "prompt too long": Row(
        refuse=(400, {"message": "This model's maximum context length is 4096 tokens."}),
        score=NO_VERDICT,
        unanswered=1,
        warns="no answer.*too long",
    ),
    "max_tokens": Row(
        HIGH,
        unless("max_tokens", 400, "Unsupported parameter: use 'max_completion_tokens'.", param="max_tokens"),
        sent=2,
        without="max_tokens",
    ),
    "temperature": Row(
        HIGH,
        unless("temperature", 400, refused_value("temperature")),
        sent=2,
        without="temperature",
        warns="does not take temperature",
    ),
    "logprobs 400": Row(HIGH, unless("logprobs", 400, "logprobs are not supported"), sent=2, without="logprobs"),
    "logprobs 403": Row(HIGH, unless("logprobs", 403, "not allowed to request logprobs"), sent=2, without="logprobs"),
    "logprobs 422": Row(HIGH, unless("logprobs", 422, "extra: top_logprobs"), sent=2, without="logprobs"),
    "response_format": Row(
        HIGH,
        unless("response_format", 400, "This response_format type is unavailable now"),
        sent=2,
        without="response_format",
    ),
    "several fields": Row(
        HIGH,
        lambda body: next((refused for f in SEVERAL if (refused := f(body))), None),
        sent=4,
        without="logprobs, max_tokens, temperature",
        warns="does not take temperature",
    ),
    "value out of range": Row(
        refuse=(400, {"message": "Invalid 'max_tokens': integer above maximum value."}), error="above maximum value"
    ),
    "unknown model": Row(refuse=(404, {"message": "The model `m` does not exist"}), error="does not exist"),
    "wrong key": Row(script=(401,), error=r"refused: AuthenticationError"),
    "quota spent": Row(
        refuse=(429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}),
        error="the account's quota is spent",
    ),
    "rate limit": Row(HIGH, script=(429, 429), sent=3),
    "server error": Row(HIGH, script=(500, 503), sent=3),
    "no json": Row(HIGH, script=("not json",), sent=2),
    "silence": Row(HIGH, script=("hang",), sent=2, client={"timeout": 0.3}),
    "always failing": Row(script=(500,) * 9, error="failed 3 times in a row", sent=3, client={"breaker": 3}),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_table(name, tmp_path):
    row = ROWS[name]
    refuse = row.refuse if callable(row.refuse) else lambda body: row.refuse
    with Server(row.script, answer=lambda body: row.answer, refuse=refuse, logprobs=row.logprobs) as server:
        ledger = Ledger(tmp_path / "answers.sqlite", 1.0)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            judge = EndpointJudge(ChatClient("strong", "m", server.url, ledger, **{"pause": 0.001, **row.client}))
            if row.error:
                with pytest.raises(DriftbookError, match=row.error):
                    judge.score([TEXT], CLAIM)
            else:
                assert judge.score([TEXT], CLAIM)[0, 0] == pytest.approx(row.score, nan_ok=True)
        assert len(server.bodies) == row.sent
        told = ledger.table().set_index("judge").loc["strong"]
        assert (told["without"], told["unanswered"]) == (row.without, row.unanswered)
        assert told["missing"] == math.isnan(row.score)
        assert re.search(row.warns, "; ".join(str(w.message) for w in said)) and bool(row.warns) == bool(said)


def test_every_row_of_the_table_has_its_test_and_every_test_its_row():
    page = (Path(__file__).parent.parent / "docs/judges.md").read_text(encoding="utf-8")
    table = page.split("## What servers answer")[1].split("\n## ")[0]
    assert re.findall(r"^\| \*(.+?)\* \|", table, re.M) == list(ROWS)
