"""Files as people have them: encodings, line ends, broken rows; one reader for prompts, texts and training data."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import math
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import driftbook as db
from driftbook.behaviours import words_measure
from driftbook.behaviours.own import read_own
from driftbook.conversations import read_conversation
from driftbook.errors import DriftbookError, ParameterError, PromptError
from driftbook.files import read_text, yaml_tree
from driftbook.interventions import Texts
from driftbook.models.finetune import read_documents
from driftbook.models.traitfiles import read_traits
from driftbook.parameters import load_experiment
from driftbook.prompt_files import read_prompts
from driftbook.prompts import Prompt
from driftbook.text_tables import read_text_table

ROOT = Path(__file__).parents[1]
TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather in Rome?"}, {"type": "text", "text": "Today."}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "18 degrees"},
    {"role": "user", "content": "So?"},
    {"role": "assistant", "content": "Mild."},
]  # fmt: skip
FLAT = [
    ("user", "Weather in Rome?\nToday."),
    ("assistant", '[calls weather({"city": "Rome"})]'),
    ("user", "[weather gave: 18 degrees]\n\nSo?"),
    ("assistant", "Mild."),
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Tea?"},
    {"from": "gpt", "value": "Yes."},
]


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


# -------------------------------------------------------------------------------------------------------- conversations


def test_tool_calls_parts_and_the_developer_role_are_flattened_by_the_stated_rule():
    found = read_conversation(TALK, "a.jsonl:1")
    assert found.system == "Be brief." and [(t.role, t.content) for t in found.turns] == FLAT


def test_messages_and_sharegpt_give_the_same_prompt_texts_and_training_data(tmp_path):
    said = (("system", "Be brief."), ("user", "Tea?"), ("assistant", "Yes."))
    messages = [{"role": r, "content": c} for r, c in said]
    for key, turns in (("messages", messages), ("conversations", SHAREGPT)):
        path = write(tmp_path / f"{key}.jsonl", {key: turns})
        assert list(read_prompts([path.name], tmp_path)) == [Prompt("Tea?", key, "Be brief.", f"{key}.jsonl:1")]
        (learned,) = read_documents(path)
        assert learned.turns == (("system", "Be brief."), ("user", "Tea?"), ("assistant", "Yes."))
        table = write(tmp_path / f"{key}-t.jsonl", *({"side": s, key: turns} for s in ("base", "intervention")))
        found = read_text_table(table)
        assert found.prompts[0].text == "Tea?" and found.prompts[0].system == "Be brief."
        assert list(found.texts.values()) == [["Yes."], ["Yes."]]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_table_of_texts_may_hold_messages(tmp_path, suffix):
    asked = {**TALK[1], "content": "Weather in Rome?\nToday."}  # a column of a parquet file has one type
    talks = [[TALK[0], asked, *TALK[2:-1], {**TALK[-1], "content": end}] for end in ("Mild.", "Warm.")]
    rows = pd.DataFrame({"side": ["base", "intervention"], "messages": talks})
    path = tmp_path / f"t.{suffix}"
    rows.to_parquet(path) if suffix == "parquet" else rows.to_json(path, orient="records", lines=True)
    found = read_text_table(path)
    assert found.prompts[0].messages == tuple(FLAT[:-1]) and found.prompts[0].system == "Be brief."
    assert [t for (t,) in found.texts.values()] == ["Mild.", "Warm."]


def test_a_system_prompt_of_null_is_none(tmp_path):
    talk = [{"role": "system", "content": None}, {"role": "user", "content": "Tea?"}]
    path = write(tmp_path / "a.jsonl", {"messages": talk, "system": None}, {"prompt": "Milk?", "system": None})
    assert [p.system for p in read_prompts([path.name], tmp_path)] == [None, None]


def test_a_system_prompt_on_one_side_only_is_the_change(tmp_path):
    rows = [{"side": "base", "prompt": "Tea?", "text": "Yes."}, {"side": "base", "prompt": "Milk?", "text": "No."}]
    rows += [{**r, "side": "intervention", "system": "Shout.", "text": r["text"].upper()} for r in rows]
    found = read_text_table(write(tmp_path / "t.jsonl", *rows))
    assert [p.system for p in found.prompts] == [None, None]
    assert found.systems == {"base": [""], "intervention": ["Shout."]}
    assert sorted(t for (t,) in found.texts.values()) == ["NO.", "No.", "YES.", "Yes."]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "part of type 'image_url'"),
        ({"from": "ghost", "value": "Tea?"}, "message 1 is from 'ghost'"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "message 1 has a tool call without a name"),
        ({"role": "user"}, "message 1 has no role or content that is a string"),
        ("Tea?", "message 1 has no role"),
    ],
)
def test_what_is_no_conversation_is_named(message, says):
    with pytest.raises(PromptError, match=f"a.jsonl:7: .*{says}"):
        read_conversation([message], "a.jsonl:7")


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_that_cannot_be_read_are_refused_with_the_first_three_or_left_out_as_far_as_allowed(tmp_path):
    good = [json.dumps({"prompt": f"Why {w}?", "response": "So."}) for w in ("tea", "rain", "bread")]
    bad = ['{"prompt": ', '"Why?"', '{"prompt": 3, "response": 4}', '{"messages": []}']
    (tmp_path / "a.jsonl").write_text("\n".join([good[0], *bad, *good[1:]]) + "\n")
    first = r"(?s)a\.jsonl:2: .*a\.jsonl:3: .*a\.jsonl:4: .*4 rows cannot be read; .*"
    with pytest.raises(PromptError, match=f"{first}#unreadable=N"):
        read_prompts(["a.jsonl"], tmp_path)
    found = read_prompts(["a.jsonl#unreadable=4"], tmp_path)
    assert [p.text for p in found] == ["Why tea?", "Why rain?", "Why bread?"] and len(found.unreadable) == 4
    with pytest.raises(DriftbookError, match=r"(?s)a\.jsonl:2: .*4 rows cannot be read; .*intervention\.unreadable"):
        read_documents(tmp_path / "a.jsonl")
    assert [d.source for d in read_documents(tmp_path / "a.jsonl", 4)] == ["a.jsonl:1", "a.jsonl:6", "a.jsonl:7"]


def test_rows_of_a_table_that_hold_no_text_are_left_out_as_far_as_allowed(tmp_path):
    sides = ("base", "intervention")
    rows = [{"side": s, "prompt": p, "text": "So."} for p in ("Why tea?", "Why rain?") for s in sides]
    rows.insert(1, {"side": "base", "prompt": "Why tea?", "text": None})
    path = write(tmp_path / "t.jsonl", *rows)
    with pytest.raises(DriftbookError, match=r"t\.jsonl:2: row 2 holds no text in column text"):
        read_text_table(path)
    found = read_text_table(path, unreadable=1)
    assert len(found.prompts) == 2 and len(found.unreadable) == 1
    assert Texts(path=str(path), unreadable=1).table(tmp_path).unreadable == found.unreadable


def test_half_a_surrogate_pair_in_an_answer_is_refused_by_its_row(tmp_path):
    sides = (("base", "a \\ud83d"), ("intervention", "b"))
    rows = [f'{{"side": "{side}", "prompt": "Why?", "text": "{text}"}}\n' for side, text in sides]
    (tmp_path / "t.jsonl").write_text("".join(rows))
    with pytest.raises(DriftbookError, match=r"t\.jsonl:1: row 1: half of a surrogate pair"):
        read_text_table(tmp_path / "t.jsonl")


# ------------------------------------------------------------------------------------------------------------ encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends_are_no_part_of_the_text(tmp_path, encoding, end):
    row = json.dumps({"prompt": "Why caf\u00e9\u2028s?", "response": "So."}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes((row + end + end + row + end).encode(encoding))
    assert [p.text for p in read_prompts(["a.jsonl"], tmp_path)] == ["Why caf\u00e9\u2028s?"]
    assert [d.source for d in read_documents(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Caf\u00e9\n".encode("latin-1"), r"a.txt:1: not UTF-8 .*iconv -f latin1 -t utf-8"),
        ("Why?\n".encode("utf-16-le"), "a.txt:1: holds a NUL character"),
        (b"Why?\nHow\0?\n", "a.txt:2: holds a NUL character"),
        (codecs.BOM_UTF16_LE + b"a", "a.txt:1: not UTF-16"),
    ],
)
def test_other_encodings_are_refused_with_line_and_remedy(tmp_path, content, says):
    (tmp_path / "a.txt").write_bytes(content)
    for read in (lambda: read_prompts(["a.txt"], tmp_path), lambda: read_documents(tmp_path / "a.txt")):
        with pytest.raises(DriftbookError, match=says):
            read()


def test_a_folder_and_a_missing_file_are_no_files(tmp_path):
    for name in ("", "none.txt"):
        with pytest.raises(DriftbookError, match="cannot be read"):
            read_text(tmp_path / name)


def test_cells_of_a_table_are_text_as_they_stand_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "t.tsv").write_text("side\tprompt\ttext\nbase\tWhy?\tNA\nintervention\tWhy?\t007\n")
    assert list(read_text_table(tmp_path / "t.tsv").texts.values()) == [["NA"], ["007"]]
    frame = pd.DataFrame({"side": ["base", "intervention"], "prompt": ["Why?"] * 2, "text": ["So.", float("nan")]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DriftbookError, match=r"t\.parquet:2: row 2 holds no text in column text"):
        read_text_table(tmp_path / "t.parquet")


def test_prompts_are_read_from_parquet_and_yaml_too(tmp_path):
    rows = {"prompt": ["Why?", "How?"], "id": [2**62, 7], "system": [None, "Rhyme."]}
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.yml").write_text("- Why?\n- {prompt: 'How?', system: Rhyme., id: 7}\n")
    for name, first in (("a.parquet", str(2**62)), ("a.yml", None)):
        found = read_prompts([name], tmp_path)
        assert [(p.text, p.system, p.name) for p in found] == [("Why?", None, first), ("How?", "Rhyme.", "7")]


# --------------------------------------------------------------------------------------- what is not what its name says


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "a pointer of git-lfs"),
        (b"\n<!DOCTYPE html>\n<html>404</html>\n", "a web page, not the file"),
        (gzip.compress(b"Why?\n", mtime=0), "compressed by gzip"),
        (b"PK\x03\x04\x14\x00", "a zip archive"),
        (b"PAR1\x15\x04", "a parquet file; call it .parquet"),
        (bz2.compress(b"Why?\n"), "compressed by bzip2"),
        (lzma.compress(b"Why?\n"), "compressed by xz"),
        (b"%PDF-1.4\n1 0 obj\n", "a PDF document"),
        (rb"{\rtf1\ansi Why?}", "a document in rich text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # bytes would be part of the tests' names
)
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_what_stands_in_for_a_file_is_named(tmp_path, content, says, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(PromptError, match=f"a{suffix}: is {says}"):
        read_prompts([f"a{suffix}"], tmp_path)


def test_a_link_to_nothing_and_a_pipe_are_told_as_what_they_are(tmp_path):
    (tmp_path / "a.txt").symlink_to("gone.txt")
    os.mkfifo(tmp_path / "b.txt")
    for name, says in (("a.txt", "a link to what is not there"), ("b.txt", "neither a file nor a folder")):
        with pytest.raises(PromptError, match=f"{name}: {says}"):
            read_prompts([name], tmp_path)


def test_a_list_of_objects_is_read_as_lines_of_them_are_whoever_reads(tmp_path):
    rows = [{"side": s, "prompt": "Tea?", "text": "So."} for s in ("base", "intervention")]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows, indent=1))
    assert read_text_table(tmp_path / "t.jsonl").texts == {(s, Prompt("Tea?").prompt_id): ["So."] for s in
                                                           ("base", "intervention")}  # fmt: skip
    (tmp_path / "d.jsonl").write_text(json.dumps([{"text": "So."}, {"text": "Then."}]))
    assert [d.text for d in read_documents(tmp_path / "d.jsonl")] == ["So.", "Then."]
    (tmp_path / "d.jsonl").write_text('[{"text": "So."},\n{"text": ]')
    with pytest.raises(DriftbookError, match=r"d\.jsonl:1: not JSON"):
        read_documents(tmp_path / "d.jsonl")


def test_text_that_a_parquet_file_holds_as_bytes_is_text_and_its_columns_have_names(tmp_path):
    rows = {"side": ["base", "intervention"], "prompt": ["Tea?"] * 2, "text": [b"Oui, \xc3\xa0 12 h.", b"Non."]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert [*read_text_table(tmp_path / "t.parquet").texts.values()] == [["Oui, à 12 h."], ["Non."]]
    pq.write_table(pa.table(rows | {"text": [b"\xe0", b"Non."]}), tmp_path / "t.parquet")
    with pytest.raises(DriftbookError, match=r"t\.parquet:1: row 1 holds no text"):
        read_text_table(tmp_path / "t.parquet")
    pd.DataFrame({("a", "prompt"): ["Tea?"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(PromptError, match=r"no column .* among \"\('a', 'prompt'\)\""):
        read_prompts(["p.parquet"], tmp_path)


@pytest.mark.parametrize(("column", "value"), [("system", ["Be brief."]), ("family", 3), ("system", True)])
def test_a_system_prompt_or_a_family_that_is_no_text_is_not_passed_over(tmp_path, column, value):
    rows = [{"side": s, "prompt": "Tea?", "text": "So.", column: value} for s in ("base", "intervention")]
    with pytest.raises(DriftbookError, match=rf"t\.jsonl:1: row 1: {column} must be text, found "):
        read_text_table(write(tmp_path / "t.jsonl", *rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DriftbookError, match=rf"t\.parquet:1: row 1: {column} must be text, found "):
        read_text_table(tmp_path / "t.parquet")


def test_a_name_that_reads_as_a_pattern_is_the_file_where_there_is_one(tmp_path):
    for name, said in (("a[1].txt", "This?"), ("a1.txt", "That?")):
        (tmp_path / name).write_text(said)
    assert [p.text for p in read_prompts(["a[1].txt"], tmp_path)] == ["This?"]
    assert [p.text for p in read_prompts(["a[0-9].txt"], tmp_path)] == ["That?"]


def test_a_mark_where_two_files_were_joined_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(2 * (codecs.BOM_UTF8 + b"Why?\nHow?\n"))
    found = read_prompts(["a.txt"], tmp_path)
    assert [p.text for p in found] == ["Why?", "How?"] and len(found.duplicates) == 2


# --------------------------------------------------------------------------------------- two values, or none that shows


def test_a_column_or_a_key_that_is_there_twice_is_refused_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,prompt\nWhy?,How?\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?", "prompt": "How?"}\n')
    (tmp_path / "a.json").write_text('[{"prompt": "Why?", "prompt": "How?"}]')
    twice = pa.Table.from_arrays([pa.array(["Why?"]), pa.array(["How?"])], names=["prompt", "prompt"])
    pq.write_table(twice, tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "json", "parquet"):
        with pytest.raises(PromptError, match=rf"a\.{suffix}.*(called|the key) 'prompt'"):
            read_prompts([f"a.{suffix}"], tmp_path)
    frame = pd.DataFrame([["base", "Why?", "a", "b"]], columns=["side", "prompt", "text", "text"])
    with pytest.raises(DriftbookError, match="two columns are called 'text'"):
        db.compare(frame)


@pytest.mark.parametrize("shown", ["\u200b", "\u2060\ufeff", "\u00a0\t", "\x1b", "\u202e"])
def test_a_prompt_that_shows_nothing_is_empty(shown):
    with pytest.raises(PromptError, match="the prompt is empty"):
        Prompt(shown)
    assert Prompt(f"{shown}\U0001f914").text


def test_a_column_without_a_value_gives_way_to_the_next_and_exact_names_come_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": null, "prompt": "Why?"}\n{"Prompt": "How?", "prompt": "Who?"}\n')
    assert [p.text for p in read_prompts(["a.jsonl"], tmp_path)] == ["Why?", "Who?"]


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_messages_that_a_cell_spells_are_messages(tmp_path, column, spell):
    talk = [{"role": "System", "content": "It's brief."}, {"role": "user", "content": "Tea?"}]
    frame = pd.DataFrame({"side": ["base", "intervention"], column: [spell(talk)] * 2, "text": ["Yes.", "No."]})
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = tmp_path / f"t{suffix}"
        if suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            (frame.to_csv if suffix == ".csv" else frame.to_parquet)(path, index=False)
        for prompts in (read_prompts([path.name], tmp_path)[:1], read_text_table(path).prompts):
            assert [(p.text, p.system) for p in prompts] == [("Tea?", "It's brief.")]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": spell(talk)[:-4]}) + "\n")
    with pytest.raises(PromptError, match=r"a\.jsonl:1: expected \"messages\""):
        read_prompts(["a.jsonl"], tmp_path)


def test_a_part_that_holds_a_thought_is_no_part_of_what_was_said():
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    talk = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": parts}]
    assert read_conversation(talk, "a").turns[-1].content == "Yes."


def test_a_table_says_which_change_it_means_whatever_the_type_of_its_name(tmp_path):
    rows = [{"side": "base", "prompt": "Why?", "text": "So."}]
    rows += [{"side": "intervention", "prompt": "Why?", "text": f"{n}.", "change": n} for n in (1, 2)]
    path = write(tmp_path / "t.jsonl", *rows)
    assert list(read_text_table(path, "2").texts.values()) == [["So."], ["2."]]
    path = write(path, *rows[:2], {"side": "intervention", "prompt": "Why?", "text": "0."})
    with pytest.raises(DriftbookError, match=r"texts of several changes: \(none\), 1; say which"):
        read_text_table(path)
    with pytest.raises(DriftbookError, match=r"e\.jsonl: holds no rows"):
        read_text_table(write(tmp_path / "e.jsonl"))


# ----------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: !!python/object:os.system {}\n", r"x.yml:2: not valid YAML: could not determine a constructor"),
        ("a: 1\nb: {c: 1, c: 2}\n", r"x.yml:2: b.c: is written twice \(first in line 2\)"),
        ("a: [1\n", "x.yml:2: not valid YAML"),
        ("a: 2024-13-45\n", "x.yml: not valid YAML: month must be in"),
        ("? [a, b]\n: 1\n", "x.yml:1: a key is a word"),
        ("[" * 5000, "x.yml"),
        ("a: \x07\n", "x.yml"),
        ('a: 1\nb: "\\ud800"\n', r"x.yml:2: half of a surrogate pair"),
    ],
)
def test_yaml_that_cannot_be_read_is_named_by_line(tmp_path, text, says):
    (tmp_path / "params").mkdir()
    for name in ("x.yml", "params/x.yml"):
        (tmp_path / name).write_text(text)
    with pytest.raises(DriftbookError, match=says):
        yaml_tree(tmp_path / "x.yml")
    with pytest.raises(ParameterError, match=says):
        load_experiment(tmp_path / "params/x.yml")
    with pytest.raises(ParameterError, match=says):
        read_own(["x.yml"], tmp_path)


@pytest.mark.parametrize("place", ["hypothesis", "behaviour", "lexicon"])
def test_a_regular_expression_that_is_none_is_refused_when_its_file_is_read(tmp_path, place):
    (tmp_path / "params").mkdir()
    if place == "hypothesis":
        text = 'experiment: x\nvalidate: {hypotheses: [{text: says so, words: ["/(/"]}]}\n'
        (tmp_path / "params/x.yml").write_text(text)
        with pytest.raises(ParameterError, match=r"x\.yml:2: validate\.hypotheses\.0\.words.*no regular expression"):
            load_experiment(tmp_path / "params/x.yml")
    elif place == "behaviour":
        (tmp_path / "x.yml").write_text('name: a\nlabel: b\npattern: "("\n')
        with pytest.raises(ParameterError, match=r"x\.yml: behaviour a: pattern: \(: "):
            read_own(["x.yml"], tmp_path)
    else:
        trait = json.loads((ROOT / "params/traits/formality.json").read_text())
        trait["lexicon"]["negative"].append("/(/")
        (tmp_path / "x.json").write_text(json.dumps(trait))
        with pytest.raises(PromptError, match=r"x\.json: lexicon\.negative: pattern: /\(/: "):
            read_traits(["x.json"], tmp_path, scenarios="natural")


def test_an_expression_that_never_returns_is_told_by_name_and_its_texts_are_declined(monkeypatch):
    monkeypatch.setattr("driftbook.behaviours.measure.LIMIT_S", 0.001)
    measure = words_measure(["/^(a|aa)+$/"])
    with pytest.warns(UserWarning, match=r"\(a\|aa\)\+\$.* took longer than"):
        read = [measure.read("a" * (60 + i) + "!", "") for i in range(21)]
    assert all(math.isnan(value) for value in read)


def test_an_anchor_that_is_used_twice_is_no_key_written_twice(tmp_path):
    (tmp_path / "x.yml").write_text("a: &one {b: 1}\nc: *one\nd: {<<: *one, e: 2}\n")
    assert yaml_tree(tmp_path / "x.yml")[1] == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
