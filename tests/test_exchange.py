"""What other tools wrote becomes a table of texts, and what was left out is counted; findings go out and come back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from driftbook.errors import DriftbookError
from driftbook.exchange import findings
from driftbook.exchange.answers import READERS, Answer
from driftbook.exchange.matching import matched, read, write
from driftbook.text_tables import read_text_table
from driftbook.workbook import cli

LOGS = Path(__file__).parent / "logs"  # written for this project by inspect_ai 0.3.285 and lm-evaluation-harness 0.4.13
TALK = [
    ("What is a tide?", "The sea rises."),
    ("Name a tree.", "An oak \U0001f333, of course.\n\nOr a birch."),
    ("Why?", ""),
]


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def user(prompt: str) -> list[dict]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]


def inspect_samples(talk, attached=False):
    for n, (prompt, text) in enumerate(talk):
        message = {
            "role": "assistant",
            "content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": text}],
        }
        sample = {"id": f"q{n}", "epoch": 1, "input": [{"role": "user", "content": prompt}], "target": "x"}
        sample |= {"output": {"choices": [{"message": message, "stop_reason": "stop"}], "completion": text}}
        if attached:
            sample["input"] = "attachment://ab12"
            sample["attachments"] = {"ab12": prompt}
        yield sample


def inspect_eval(path, talk):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"version": 2, "eval": {"task": "talk", "model": "m"}}))
        archive.writestr("summaries.json", "[]")
        for sample in inspect_samples(talk, attached=True):
            archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
    return path


def inspect_json(path, talk):
    log = {"version": 2, "eval": {"task": "talk"}, "samples": list(inspect_samples(talk))}
    path.write_text(json.dumps(log))
    return path


def lm_eval(path, talk):
    rows = [
        {
            "doc_id": n, "doc": {"q": prompt}, "target": "x", "filter": which, "filtered_resps": [text.strip()],
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n\n"]}}}, "resps": [[text]],
        }
        for which in ("strict", "flexible")
        for n, (prompt, text) in enumerate(talk)
    ]  # fmt: skip
    return jsonl(path, rows)


def alpaca_eval(path, talk):
    rows = [{"instruction": p, "output": t, "generator": "m", "dataset": "talk"} for p, t in talk]
    path.write_text(json.dumps(rows))
    return path


def openai_batch(path, talk):
    requests = [{"custom_id": f"q{n}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": user(p)}}
                for n, (p, _) in enumerate(talk)]  # fmt: skip
    jsonl(path.parent / "requests.jsonl", requests)
    choice = {"index": 0, "finish_reason": "stop"}
    rows = [
        {"id": f"b{n}", "custom_id": f"q{n}", "error": None, "response": {"status_code": 200, "body": {
            "choices": [choice | {"message": {"role": "assistant", "content": t}}]}}}
        for n, (_, t) in enumerate(talk)
    ]  # fmt: skip
    return jsonl(path, rows[::-1])  # in whatever order they were done


def chat_openai(path, talk):
    return jsonl(path, [{"messages": [*user(p), {"role": "assistant", "content": t}]} for p, t in talk])


def chat_sharegpt(path, talk):
    turns = [[{"from": "human", "value": p}, {"from": "gpt", "value": t}] for p, t in talk]
    return jsonl(path, [{"id": f"q{n}", "conversations": t} for n, t in enumerate(turns)])


def columns(path, talk):
    pd.DataFrame(talk, columns=["question", "answer"]).to_csv(path, index=False)
    return path


FILES = [
    ("inspect", inspect_eval, "eval", "talk"),
    ("inspect", inspect_json, "json", "talk"),
    ("lm-eval", lm_eval, "jsonl", "samples"),
    ("alpaca-eval", alpaca_eval, "json", "talk"),
    ("openai-batch", openai_batch, "jsonl", ""),
    ("chat", chat_openai, "jsonl", ""),
    ("chat", chat_sharegpt, "jsonl", ""),
    ("columns", columns, "csv", ""),
]
OPTIONS = {"columns": {"prompt": "question", "text": "answer"}}


def options(form, folder):
    return OPTIONS.get(form, {"requests": str(folder / "requests.jsonl")} if form == "openai-batch" else {})


def test_every_format_is_tried():
    assert {form for form, *_ in FILES} == set(READERS)


@pytest.mark.parametrize(("form", "make", "suffix", "family"), FILES, ids=lambda v: getattr(v, "__name__", v))
def test_two_files_become_a_table_that_an_experiment_reads(tmp_path, form, make, suffix, family):
    changed = [(p, t and t.upper()) for p, t in TALK[::-1]]
    paths = []
    for name, talk in (("base", TALK), ("changed", changed if form != "openai-batch" else changed[::-1])):
        paths.append(make(tmp_path / f"{name}.{suffix}", talk))
    table, counts = read(form, paths, options(form, tmp_path))
    for end in ("parquet", "jsonl"):
        write(table, tmp_path / f"texts.{end}")
        found = read_text_table(tmp_path / f"texts.{end}")
        said = {p.text: [found.texts[side, p.prompt_id] for side in ("base", "intervention")] for p in found.prompts}
        # a cell of CSV that is empty holds no answer
        assert said == {p: [[t], [t.upper()]] for p, t in TALK if t or suffix != "csv"}
    systems = {p.system for p in found.prompts}
    assert systems == ({"Be brief."} if make in (openai_batch, chat_openai) else {None})
    if family == "talk":
        assert {p.family for p in found.prompts} == {"talk"}
    assert counts["texts"] == 2 * counts["prompts"] == len(table)


def test_a_log_that_inspect_ai_wrote_gives_what_was_asked_and_the_last_answer():
    """Entries in zstd, a solver's system prompt, a thought, a tool that was called, long answers put aside."""
    table, counts = read("inspect", [LOGS / "base.eval", LOGS / "tuned.eval"], {})
    assert counts == {"prompts": 2, "texts": 8} and set(table["family"]) == {"talk"}
    asked = {(p[0]["content"], p[1]["content"], len(p)) for p in table["prompt"]}
    assert asked == {("Be brief.", "What is a tide?", 2), ("Be brief.", "What is 1 + 1?", 2)}
    for (side, name), texts in table.groupby(["side", "id"])["text"]:
        tag = "base." if side == "base" else "tuned."
        said = f"It is 2, {tag}" if name == "talk/2" else "The sea rises twice a day, " * 30 + f"or nearly. {tag}"
        assert texts.tolist() == [said] * 2  # epochs


def test_samples_that_lm_evaluation_harness_wrote_keep_their_few_shot_turns_and_repeats():
    table, counts = read("lm-eval", [LOGS / "base", LOGS / "tuned"], {}, "id")
    (path,) = (LOGS / "base").iterdir()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert counts == {"prompts": len(rows), "texts": 4 * len(rows)}
    first = table["prompt"].iloc[0]
    assert [m["role"] for m in first] == ["system", "user", "assistant", "user"]
    assert first[-1]["content"] == f"Q: {rows[0]['doc']['q']}\nA:"
    assert all(t.startswith("tuned says: ") for t in table[table.side == "intervention"].text)


def test_a_log_that_is_cut_or_damaged_is_named(tmp_path):
    whole = (LOGS / "base.eval").read_bytes()
    with zipfile.ZipFile(LOGS / "base.eval") as archive:
        inside = archive.getinfo("samples/1_epoch_1.json").header_offset + 500
    damaged = whole[:inside] + bytes([whole[inside] ^ 1]) + whole[inside + 1 :]
    cut, changed = "a zip that cannot be read", "samples/1_epoch_1.json: cannot be unpacked"
    for written, said in ((whole[:-200], cut), (damaged, changed)):
        (tmp_path / "base.eval").write_bytes(written)
        with pytest.raises(DriftbookError, match=said):
            read("inspect", [tmp_path / "base.eval", LOGS / "tuned.eval"], {})


def test_questions_of_two_tasks_with_one_id_stay_apart(tmp_path):
    for side in ("base", "tuned"):
        (tmp_path / side).mkdir()
        for task, talk in (("one", TALK[:1]), ("two", TALK[1:2])):
            path = inspect_json(tmp_path / side / f"{task}.json", talk)
            path.write_text(path.read_text().replace('"task": "talk"', f'"task": "{task}"'))
    table, _ = read("inspect", [tmp_path / "base", tmp_path / "tuned"], {}, "id")
    assert sorted(set(table["id"])) == ["one/q0", "two/q0"] and table.groupby("id").size().tolist() == [2, 2]


def test_what_cannot_be_asked_or_is_no_text_is_left_out_and_counted(tmp_path):
    rows = [{"prompt": "Why?", "text": "So."}, {"prompt": None, "text": "a"}, {"prompt": 3, "text": "b"},
            {"prompt": " ", "text": "c"}, {"prompt": "How?", "text": "\ud83d"}]  # fmt: skip
    table, counts = read("columns", [jsonl(tmp_path / "a.jsonl", rows)] * 2, {})
    assert table["prompt"].tolist() == ["Why?"] * 2
    assert counts["left out: no prompt"] == 6 and counts["left out: half of a surrogate pair"] == 2


def test_what_would_be_dropped_from_a_prompt_is_refused_by_its_place(tmp_path):
    seen = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What is this?"}]
    talk = [{"role": "user", "content": seen}, {"role": "assistant", "content": "A cat."}]
    path = jsonl(tmp_path / "a.jsonl", [{"messages": talk}])
    with pytest.raises(DriftbookError, match=r"a\.jsonl:1: .*message 1 has a part of type 'image_url'"):
        read("chat", [path, path], {})
    requests = [{"custom_id": "1", "body": {"messages": user(p)}} for p in ("Why?", "How?")]
    answers = jsonl(tmp_path / "b.jsonl", [{"custom_id": "1"}])
    with pytest.raises(DriftbookError, match=r"r\.jsonl:2: custom_id '1' stands in .*r\.jsonl:1 already"):
        read("openai-batch", [answers] * 2, {"requests": str(jsonl(tmp_path / "r.jsonl", requests))})
    sides = [{"side": side, "prompt": "Why?", "text": "So."} for side in ("base", "intervention")]
    texts = jsonl(tmp_path / "t.jsonl", sides)
    with pytest.raises(DriftbookError, match="a table of texts already; name it as kind: texts"):
        read("columns", [texts, texts], {})
    with pytest.raises(DriftbookError, match="--with promt: there is no such part"):
        read("columns", [path, path], {"promt": "q"})


def test_messages_in_a_column_are_asked_as_messages(tmp_path):
    talk = json.dumps([{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Tea?"}])
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": talk, "text": "Yes."}])
    write(read("columns", [path, path], {})[0], tmp_path / "t.jsonl")
    (prompt,) = read_text_table(tmp_path / "t.jsonl").prompts
    assert (prompt.text, prompt.system) == ("Tea?", "Rhyme.")


def test_a_side_without_any_text_is_named():
    with pytest.raises(DriftbookError, match=r"^changed: no answer has a text; 2 in all have none"):
        matched([Answer("a", "1")], {"": [Answer("a", None), Answer("b", None)]})


def test_what_is_left_out_is_counted():
    base = [Answer("a", "1"), Answer("a", "2"), Answer("b", "3"), Answer("c", None), Answer("d", "5")]
    changed = [Answer("d", "6"), Answer("a", "7"), Answer("e", "8")]
    table, counts = matched(base, {"": changed})
    assert table.values.tolist() == [["base", "a", "1"], ["base", "a", "2"], ["intervention", "a", "7"],
                                     ["base", "d", "5"], ["intervention", "d", "6"]]  # fmt: skip
    assert counts == {"left out: no text": 1, "left out, base: not answered by all sides": 1,
                      "left out, changed: not answered by all sides": 1, "prompts": 2, "texts": 5}  # fmt: skip


def test_by_id_the_prompt_is_the_bases_and_differences_are_counted():
    base, changed = [Answer("What?", "1", "q1")], [Answer("Q: What?", "2", "q1")]
    with pytest.raises(DriftbookError, match=r"no prompt was answered by both sides.*--by id"):
        matched(base, {"": changed})
    table, counts = matched(base, {"": changed}, "id")
    assert table["prompt"].tolist() == ["What?", "What?"] and counts["prompts that differ between the sides"] == 1


def test_several_files_after_the_first_are_several_changes(tmp_path):
    paths = [alpaca_eval(tmp_path / f"{name}.json", [(p, t + name) for p, t in TALK]) for name in ("base", "a", "b")]
    table, _ = read("alpaca-eval", paths, {})
    write(table, tmp_path / "texts.parquet")
    for change in "ab":
        found = read_text_table(tmp_path / "texts.parquet", change)
        assert all(found.texts["intervention", p.prompt_id][0].endswith(change) for p in found.prompts)


def test_one_table_may_hold_both_sides(tmp_path):
    pd.DataFrame({"prompt": ["a", "b"], "old": ["1", "2"], "new": ["3", "4"]}).to_csv(tmp_path / "t.csv", index=False)
    table, _ = read("columns", [tmp_path / "t.csv"], {"base": "old", "changed": "new"})
    assert table[table.side == "intervention"].text.tolist() == ["3", "4"]


def test_responses_of_openai_and_rows_that_failed(tmp_path):
    jsonl(tmp_path / "requests.jsonl", [
        {"custom_id": "a", "body": {"input": "Hi", "instructions": "Be kind."}},
        {"custom_id": "b", "body": {"input": "Ho"}},
    ])  # fmt: skip
    message = {"type": "message", "content": [{"type": "output_text", "text": "Hello."}]}
    rows = [{"custom_id": "a", "response": {"status_code": 200, "body": {"output": [{"type": "reasoning"}, message]}}},
            {"custom_id": "b", "response": {"status_code": 429, "body": {}}, "error": {"code": "rate"}}]  # fmt: skip
    found = list(
        READERS["openai-batch"](jsonl(tmp_path / "o.jsonl", rows), {"requests": str(tmp_path / "requests.jsonl")})
    )
    assert [(a.prompt, a.text, a.system) for a in found] == [("Hi", "Hello.", "Be kind."), ("Ho", None, "")]


def test_scores_of_options_and_messages_of_a_chat_api_in_lm_eval(tmp_path):
    scored = {"doc_id": 0, "arguments": [["Sky is", " blue"]], "resps": [[["-1.2", "True"]]]}
    asked = {"doc_id": 1, "arguments": {"gen_args_0": {"arg_0": [json.dumps(user("Hi"))]}}, "resps": [["Hello", "Hey"]]}
    path = jsonl(tmp_path / "samples_sky_color_2025-05-14T01-09-12.508820.jsonl", [scored, asked])
    found = list(READERS["lm-eval"](path, {}))
    assert [a.text for a in found] == [None, "Hello", "Hey"] and {a.family for a in found} == {"sky_color"}
    assert found[1].prompt == user("Hi")


@pytest.mark.parametrize(
    ("form", "written", "said"),
    [
        ("chat", '{"text": 1}\n', r"c:1: neither messages \(OpenAI\) nor conversations"),
        ("chat", "{\n", "c:1: not JSON"),
        ("alpaca-eval", "{}", "expected a list of objects"),
        ("inspect", '{"eval": {}}', "no list of samples"),
        ("openai-batch", "{}", "--with requests=FILE"),
        ("lm-eval", '{"doc_id": 1}\n', "no 'arguments'; there are doc_id"),
        ("paper", "", "there is no format 'paper'; there are inspect, lm-eval"),
    ],
)
def test_what_is_none_of_the_format_is_named(tmp_path, form, written, said):
    (tmp_path / "c").write_text(written)
    with pytest.raises(DriftbookError, match=said):
        read(form, [tmp_path / "c", tmp_path / "c"], {})


def test_the_command_says_what_it_read_and_how_to_go_on(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    for name in ("base", "changed"):
        columns(root / f"{name}.csv", TALK)
    words = ("import", "columns", "base.csv", "changed.csv", "--to", "made/texts.csv")
    assert cli.main([*words, "--with", "prompt=question", "--with", "text=answer"]) == 0
    said = capsys.readouterr().out
    assert "prompts: 2\ntexts: 4\nleft out: no text: 2\n" in said
    assert said.endswith("intervention: {kind: texts, path: made/texts.csv}\n")
    assert cli.main(list(words)) == 1 and "no column 'prompt' for prompt" in capsys.readouterr().err


def test_findings_come_back_as_they_were(root, monkeypatch, capsys):
    claims = pd.DataFrame({"claim": ['a, "b"\n', "é"], "difference": [0.1, float("nan")], "confirmed": [True, False]})
    for stage, name in (("validate", "claims"), ("cluster", "panel")):
        (root / f"outputs/small/{stage}/data").mkdir(parents=True)
        claims.to_parquet(root / f"outputs/small/{stage}/data/{name}.parquet")
    monkeypatch.chdir(root)
    assert cli.main(["export", "small", "--to", "out"]) == 0
    printed = capsys.readouterr().out.split()
    assert len(printed) == 7 and {Path(p).name for p in printed} >= {"claims.csv", "panel.json", "README.md"}
    back = [
        pd.read_csv("out/claims.csv"),
        pd.read_json("out/claims.json"),
        pd.read_parquet("out/huggingface/claims.parquet"),
    ]
    for one in back:
        pd.testing.assert_frame_equal(one, claims)
    head = yaml.safe_load(Path("out/huggingface/README.md").read_text().split("---")[1])
    assert [c["data_files"] for c in head["configs"]] == ["claims.parquet", "panel.parquet"]
    assert cli.main(["export", "null", "--format", "csv"]) == 1 and "make run EXP=null" in capsys.readouterr().err
    assert findings.FORMATS == ("csv", "json", "huggingface")
