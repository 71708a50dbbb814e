"""Nothing that a user brings ends in a library's traceback: broken bytes and structures for every reader and loader,
and broken replies of models and servers.

Only the errors of ``driftbook.errors`` may reach the top: ``DriftbookError`` and what is derived from it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftbook.behaviours.own import read_own
from driftbook.conversations import read_conversation
from driftbook.errors import DriftbookError
from driftbook.evidence.gate import read_allow
from driftbook.exchange.matching import read as read_answers
from driftbook.files import read_table, read_text, yaml_tree
from driftbook.models.finetune import read_documents
from driftbook.models.traitfiles import read_traits
from driftbook.parameters import load_experiment
from driftbook.prompt_files import read_prompts
from driftbook.replies import json_objects, read_levels, read_message, split_thought
from driftbook.text_tables import read_text_table

READERS: dict[str, Callable[[Path], object]] = {
    **{f"prompts{s}": lambda p: read_prompts([p.name], p.parent) for s in (".txt", ".jsonl", ".json", ".csv", ".tsv")},
    **{f"asked{s}": lambda p: read_prompts([f"{p.name}#unreadable=2"], p.parent) for s in (".yml", ".parquet")},
    **{f"texts{s}": read_text_table for s in (".parquet", ".csv", ".jsonl", ".tsv")},
    **{f"table{s}": lambda p: read_table(p, p.name) for s in (".parquet", ".csv", ".jsonl")},
    **{f"training{s}": read_documents for s in (".txt", ".jsonl")},
    "traits.json": lambda p: read_traits([p.name], p.parent),
    "persona.json": lambda p: read_traits([p.name], p.parent, scenarios="instructed"),
    "behaviours.yml": lambda p: read_own([p.name], p.parent),
    "params.yml": lambda p: load_experiment(p, p.parent),
    "tree.yml": yaml_tree,
    "text.txt": read_text,
    "allow.yml": lambda p: read_allow(p, p.parent),
    "inspect.json": lambda p: read_answers("inspect", [p, p], {}),
    "inspect.eval": lambda p: read_answers("inspect", [p, p], {}),
    "lm-eval.jsonl": lambda p: read_answers("lm-eval", [p, p], {}),
    "alpaca.json": lambda p: read_answers("alpaca-eval", [p, p], {}),
    "batch.jsonl": lambda p: read_answers("openai-batch", [p, p], {"requests": str(p)}),
    "chat.jsonl": lambda p: read_answers("chat", [p, p], {}, "id"),
    "columns.jsonl": lambda p: read_answers("columns", [p, p], {}),
    "columns.csv": lambda p: read_answers("columns", [p], {"base": "prompt", "changed": "text"}),
}
HOSTILE = [b"", b"[" * 100_000, b'{"a": ' * 5000, b"1" * 6000, b"\xff\xfe", b"PAR1PAR1", b"\n" * 9]
FEW = settings(max_examples=25, derandomize=True, deadline=None, database=None,
               suppress_health_check=list(HealthCheck))  # fmt: skip

NAMES = """
    prompt text side messages conversations role content from value response system family weight tool_calls function
    name words pattern python unit place label trait scenarios eval_prompts lexicon positive negative instruction
    questions id experiment decode prompts base model intervention kind validate hypotheses seed definition high low pos
    neg type change label_confidence
"""
keys = st.sampled_from(NAMES.split())
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["user", "assistant", "system", "tool", "human", "base", "intervention", "share", "texts", "none"]),
    st.sampled_from(["/(/", "(a+)+$", "\ud800", "\0", "a\u2028b", "10" * 5000, "os:system", "!!x", "bundled:x"]),
)  # fmt: skip
values = st.recursive(
    leaves, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(keys, v, max_size=4)), max_leaves=12
)


shaped = st.one_of(
    values,
    st.dictionaries(keys, values, min_size=3, max_size=9),
    st.fixed_dictionaries({"side": leaves, "prompt": values, "text": leaves}, optional={"system": leaves}),
    st.fixed_dictionaries({"messages": st.lists(st.dictionaries(keys, values, min_size=2, max_size=4), max_size=3)}),
    st.fixed_dictionaries(
        {"name": leaves, "label": leaves}, optional={"words": values, "pattern": leaves, "unit": leaves}
    ),
    st.fixed_dictionaries(
        {key: leaves for key in ("trait", "definition", "high", "low")}
        | {key: values for key in ("scenarios", "eval_prompts")},
        optional={"lexicon": values, "instruction": values},
    ),
    st.fixed_dictionaries({"instruction": values, "questions": values}),
    st.fixed_dictionaries({"id": leaves, "input": values}, optional={"output": values, "attachments": values}),
    st.fixed_dictionaries({"doc_id": leaves, "arguments": values, "resps": values}, optional={"filter": leaves}),
    st.fixed_dictionaries({"instruction": values, "output": values}),
    st.fixed_dictionaries({"custom_id": leaves}, optional={"body": values, "response": values, "error": leaves}),
    st.fixed_dictionaries({"rules": values}),
    st.fixed_dictionaries({"experiment": st.just("params")}, optional={
        "decode": values, "intervention": values, "interventions": st.lists(values, max_size=3), "validate": values,
        "base": values, "seed": leaves, "traits": values,
    }),
)  # fmt: skip


def written(content: bytes | str, name: str, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        try:
            read(path)
        except DriftbookError as error:
            assert str(error).strip()


@pytest.mark.parametrize("name", READERS)
@FEW
@given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_bytes_of_any_kind_are_read_or_refused_by_name(name, content):
    written(content, name, READERS[name])


@pytest.mark.parametrize("name", READERS)
@FEW
@given(value=shaped)
def test_structures_of_any_kind_are_read_or_refused_by_name(name, value):
    """As JSON, which is YAML too, and one a line."""
    line = json.dumps(value)
    written(line if name.endswith((".json", ".yml")) else f"{line}\n{line}\n", name, READERS[name])


@FEW
@given(messages=values)
def test_conversations_of_any_kind_are_read_or_refused(messages):
    try:
        read_conversation(messages, "a.jsonl:1")
    except DriftbookError as error:
        assert str(error).startswith("a.jsonl:1: ")


class Choice:
    """A choice of a chat completion: the client's own object, whose fields hold whatever the server sent."""

    def __init__(self, fields):
        self.__dict__.update({"finish_reason": None, "message": None, "content": None} | fields)


@FEW
@given(content=values, reason=leaves, more=st.dictionaries(st.sampled_from(
    ["reasoning", "reasoning_content", "refusal"]), values, max_size=2))  # fmt: skip
def test_a_message_of_any_kind_is_heard_or_refused(content, reason, more):
    try:
        heard = read_message(Choice({"finish_reason": reason, "message": Choice({"content": content, **more})}))
    except ValueError as error:  # the client asks again, and tells which server sent it
        assert str(error).startswith("a message") or str(error).startswith("a reply")
    else:
        assert isinstance(heard.text, str) and isinstance(heard.thought, str)
        (heard.text + heard.thought).encode()


marks = st.sampled_from(["<think>", "</think>", "[THINK]", "<|channel|>analysis<|message|>", "analysis", "final", "{",
                         "}", '"1"', ": ", "HIGH", "LOW", ", ", "'", '"', "\\", "\n", "1.", "[", "]", "`"])  # fmt: skip


@FEW
@given(text=st.one_of(st.text(max_size=80), st.lists(marks, max_size=30).map("".join)))
def test_a_reply_of_any_kind_is_read(text):
    """What is thought and what is answered stand in the text as they are told; a verdict is a level or none."""
    thought, answer = split_thought(text)
    assert answer in text and all(part.strip() in text for part in thought.split("\n"))
    assert all(isinstance(one, dict) for one in json_objects(text))
    assert all(value in (0.0, 1.0) or value != value for value in read_levels(text, 2, {"HIGH": 1.0, "LOW": 0.0}))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", HOSTILE)
def test_hostile_files_are_read_or_refused_by_name(name, content):
    written(content, name, READERS[name])
