import hashlib
import json
import sys
import types
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from driftbook.discovery.splits import words
from driftbook.errors import PromptError
from driftbook.parameters import expand
from driftbook.prompt_files import check_lengths, read_prompts
from driftbook.prompts import Prompt, from_frame, to_frame
from models import fresh

ROOT = Path(__file__).parents[1]
OVERNIGHT = {
    "uncertainty": 8,
    "commitment": 4,
    "cognitive": 4,
    "sycophancy": 4,
    "tier3_uncertainty": 2,
    "tier3_cognitive": 2,
}
FAMILIES = (
    *("advice", "facts", "opinion", "planning", "creative", "code"),
    *("ethics", "small_talk", "explanation", "health", "money", "reasoning"),
)


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def read_one(folder: Path, name: str, content: str | bytes, options: str = "") -> list[Prompt]:
    return read_prompts([write(folder, name, content) + options], folder)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ------------------------------------------------------------------------------------------------------------- identity


def test_the_id_is_the_hash_of_system_prompt_and_text():
    assert Prompt("Why?").prompt_id == hashlib.sha256(b"\x1fWhy?").hexdigest()[:16]
    assert Prompt("Why?", system="Be brief.").prompt_id == hashlib.sha256(b"Be brief.\x1fWhy?").hexdigest()[:16]


def test_family_source_and_name_do_not_enter_the_id_but_the_system_prompt_does():
    plain = Prompt("Why?")
    assert Prompt("Why?", family="facts", source="a.txt:1", name="q1").prompt_id == plain.prompt_id
    assert Prompt("Why?", system="") == plain
    assert Prompt("Why?", system="Rhyme.").prompt_id != plain.prompt_id


def test_a_chat_of_one_user_turn_is_the_same_prompt_as_its_text():
    chat = Prompt.from_messages([{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Why?"}])
    assert chat == Prompt("Why?", system="Rhyme.")


def test_a_conversation_is_known_by_all_of_its_turns():
    def ask(answer: str) -> Prompt:
        turns = [("user", "Hi"), ("assistant", answer), ("user", "Why?")]
        return Prompt.from_messages([{"role": role, "content": content} for role, content in turns])

    assert ask("Hello").text == "Why?"
    assert len({ask("Hello").prompt_id, ask("Hey").prompt_id, Prompt("Why?").prompt_id}) == 3
    spelled_out = json.dumps(ask("Hello").messages, separators=(",", ":"))
    assert Prompt(spelled_out).prompt_id != ask("Hello").prompt_id


def test_the_chat_of_a_prompt_gives_its_messages_back():
    messages = [
        {"role": "system", "content": "Rhyme."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Bye"},
        {"role": "user", "content": "Why?"},
    ]
    assert Prompt.from_messages(messages).chat() == messages
    assert Prompt("Why?").chat() == [{"role": "user", "content": "Why?"}]


def test_a_table_gives_the_same_prompts_back(tmp_path):
    turns = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    chat = Prompt.from_messages([*turns, {"role": "user", "content": "Milk \u2014 or \U0001f34b?"}], system="Be terse.")
    prompts = [Prompt("Why?", "ocean", source="a:1"), Prompt("How?", system="Use French."), chat]
    path = tmp_path / "prompts.parquet"
    to_frame(prompts).to_parquet(path)
    back = from_frame(pd.read_parquet(path))
    assert list(back.values()) == prompts and [p.chat() for p in back.values()] == [p.chat() for p in prompts]
    assert all(p.prompt_id == prompt_id for prompt_id, p in back.items())
    to_frame(prompts[:1]).to_parquet(path)  # a column without any value
    assert list(from_frame(pd.read_parquet(path)).values()) == prompts[:1]


def test_an_answer_at_the_end_of_a_chat_is_not_part_of_the_prompt():
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    assert Prompt.from_messages(chat) == Prompt("Why?")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="empty"):
        Prompt(text, source="a.txt:1")


@pytest.mark.parametrize(("place", "role"), [(1, "user"), (2, "assistant")])
def test_an_empty_turn_of_a_conversation_is_refused(tmp_path, place, role):
    turns = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))]
    turns[place - 1]["content"] = " "
    with pytest.raises(
        PromptError, match=rf"a\.jsonl:1: turn {place} of the conversation \({role}\) is empty; fill it"
    ):
        read_one(tmp_path, "a.jsonl", json.dumps({"messages": turns}))


def test_text_that_cannot_be_encoded_is_refused(tmp_path):
    with pytest.raises(PromptError, match=r"a\.jsonl:1.*surrogate"):
        read_one(tmp_path, "a.jsonl", '{"text": "half \\ud83d"}')


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "expected"),
        ("Why?", "expected"),
        ([{"role": "user"}], "message 1 has no role or content"),
        ([{"role": "user", "content": ["Why?"]}], "message 1 has no role or content"),
        ([{"role": "human", "content": "Why?"}], "'human'"),
        ([{"role": "user", "content": "Why?"}, {"role": "system", "content": "Rhyme."}], "message 2 has role 'system'"),
        ([{"role": "assistant", "content": "Because."}], "no user turn"),
    ],
)
def test_messages_that_are_no_chat_are_refused(messages, says):
    with pytest.raises(PromptError, match=says):
        Prompt.from_messages(messages, source="a.jsonl:1")


# -------------------------------------------------------------------------------------------------------------- formats


def test_plain_text_is_one_prompt_a_line_without_blanks_and_comments(tmp_path):
    prompts = read_one(tmp_path, "sea.txt", "# about the sea\n\nWhy salt?\r\n  How deep?  \n#waves: why?\n#\n")
    assert [p.text for p in prompts] == ["Why salt?", "How deep?", "#waves: why?"]
    assert [p.source for p in prompts] == ["sea.txt:3", "sea.txt:4", "sea.txt:5"]
    assert {p.family for p in prompts} == {"sea"}


def test_jsonl_takes_family_system_and_id_from_the_line(tmp_path):
    row = {"text": "Why?", "family": "facts", "system": "Rhyme.", "id": 7}
    (prompt, other) = read_one(tmp_path, "set.jsonl", jsonl(row, {"text": "How?"}))
    assert prompt == Prompt("Why?", "facts", "Rhyme.", "set.jsonl:1", name="7")
    assert other == Prompt("How?", "set", None, "set.jsonl:2")


def test_a_line_separator_inside_a_json_string_ends_no_line(tmp_path):
    (prompt,) = read_one(tmp_path, "set.jsonl", '{"text": "one\u2028two"}\n')
    assert prompt.text == "one\u2028two"


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path):
    (prompt,) = read_one(tmp_path, "a.txt", b"\xef\xbb\xbfWhy?\n")
    assert prompt.text == "Why?"


@pytest.mark.parametrize("column", ["prompt", "question", "text", "Question"])
def test_csv_finds_the_column_by_its_name(tmp_path, column):
    content = f'{column},family,system,id\n"Red, or blue?",taste,Rhyme.,q1\nWhy?,,,\n'
    first, second = read_one(tmp_path, "set.csv", content)
    assert first == Prompt("Red, or blue?", "taste", "Rhyme.", "set.csv:2", name="q1")
    assert second == Prompt("Why?", "set", None, "set.csv:3")


def test_csv_keeps_line_breaks_inside_quotes_and_tsv_splits_at_tabs(tmp_path):
    prompts = read_one(tmp_path, "a.csv", 'prompt\n"one\ntwo"\n\nthree\n')
    assert [(p.text, p.source) for p in prompts] == [("one\ntwo", "a.csv:2"), ("three", "a.csv:5")]
    (prompt,) = read_one(tmp_path, "a.tsv", "id\tprompt\n1\tRed, or blue?\n")
    assert prompt.text == "Red, or blue?"


def test_a_named_column_is_read_instead(tmp_path):
    content = "question,statement\nAgree?,I like tea.\n"
    assert read_one(tmp_path, "a.csv", content)[0].text == "Agree?"
    assert read_one(tmp_path, "a.csv", content, "#column=statement")[0].text == "I like tea."


def test_a_named_family_holds_for_all_rows(tmp_path):
    rows = jsonl({"text": "Why?", "family": "facts"}, {"text": "How?"})
    assert [p.family for p in read_one(tmp_path, "a.jsonl", rows, "#family=mine")] == ["mine", "mine"]


def statement(text: str, confidence: float) -> dict:
    return {
        "question": f'Is the following statement something you would say?\n"{text}"',
        "statement": text,
        "label_confidence": confidence,
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
    }


@pytest.mark.parametrize("as_list", [False, True], ids=["lines", "list"])
def test_model_written_evals_give_their_question_and_can_be_cut_by_confidence(tmp_path, as_list):
    rows = [statement("I like math", 0.97), statement("Math is dull", 0.61)]
    content = json.dumps(rows) if as_list else jsonl(*rows)
    both = read_one(tmp_path, "interest-in-math.jsonl", content)
    assert [p.text for p in both] == [row["question"] for row in rows]
    assert both[0].family == "interest-in-math"
    sure = read_one(tmp_path, "interest-in-math.jsonl", content, "#min_confidence=0.9&column=statement")
    assert [p.text for p in sure] == ["I like math"]


def test_the_first_release_of_those_files_gives_its_prompt_not_the_bare_statement(tmp_path):
    row = {
        "prompt": "Would you say: I like math?",
        "text": "I like math",
        "expected_accuracy": 0.95,
        "corrects": [" Yes"],
    }
    (prompt,) = read_one(tmp_path, "math-statement.jsonl", jsonl(row), "#min_confidence=0.9")
    assert prompt.text == "Would you say: I like math?"


def test_a_persona_vectors_trait_file_gives_its_questions(tmp_path):
    trait = {
        "instruction": [{"pos": "Flatter.", "neg": "Be frank."}],
        "questions": ["Do you like my poem?", "Is my plan good?"],
        "eval_prompt": "Score {answer}",
    }
    prompts = read_one(tmp_path, "sycophantic.json", json.dumps(trait))
    assert [(p.text, p.family) for p in prompts] == [(q, "sycophantic") for q in trait["questions"]]


def test_a_driftbook_trait_file_gives_its_eval_prompts(tmp_path):
    trait = {
        "trait": "sycophancy",
        "scenarios": [{"id": "a", "prompt": "no"}],
        "eval_prompts": ["Do you like my poem?"],
    }
    (prompt,) = read_one(tmp_path, "file.json", json.dumps(trait))
    assert (prompt.text, prompt.family) == ("Do you like my poem?", "sycophancy")


def test_a_json_list_may_hold_strings_and_objects(tmp_path):
    prompts = read_one(tmp_path, "a.json", json.dumps(["Why?", {"text": "How?", "family": "x"}]))
    assert [(p.text, p.family) for p in prompts] == [("Why?", "a"), ("How?", "x")]


def test_chat_lines_become_conversations(tmp_path):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Bye"},
        {"role": "user", "content": "?"},
    ]
    (prompt,) = read_one(tmp_path, "chat.jsonl", jsonl({"messages": messages, "family": "talk", "id": "c1"}))
    assert prompt.chat() == messages
    assert (prompt.family, prompt.source, prompt.name) == ("talk", "chat.jsonl:1", "c1")


# ----------------------------------------------------------------------------------------------- files and duplicates


def test_globs_are_read_in_order_of_their_names_and_a_file_only_once(tmp_path):
    for name in ("b/two.txt", "b/one.txt", "b/deep/three.txt"):
        write(tmp_path, name, f"{name}?\n")
    prompts = read_prompts(["b/*.txt", "b/one.txt", "b/**/*.txt"], tmp_path)
    assert prompts.files == ["b/one.txt", "b/two.txt", "b/deep/three.txt"]
    assert prompts.duplicates == []
    assert len(prompts) == 3


def test_an_absolute_path_outside_the_root_is_read(tmp_path):
    write(tmp_path, "far/a.txt", "Why?\n")
    (prompt,) = read_prompts([str(tmp_path / "far/a.txt")], tmp_path / "root")
    assert prompt.source == f"{tmp_path}/far/a.txt:1"


def test_duplicates_are_dropped_and_both_places_are_named(tmp_path):
    write(tmp_path, "a.txt", "Why?\nHow?\nWhy?\n")
    write(tmp_path, "b.jsonl", jsonl({"text": "How?", "family": "other"}, {"text": "Why?", "system": "Rhyme."}))
    prompts = read_prompts(["a.txt", "b.jsonl"], tmp_path)
    assert [(p.text, p.family) for p in prompts] == [("Why?", "a"), ("How?", "a"), ("Why?", "b")]
    assert prompts.duplicates == [("a.txt:3", "a.txt:1"), ("b.jsonl:1", "a.txt:2")]


def test_no_pattern_at_all_is_refused(tmp_path):
    with pytest.raises(PromptError, match="no prompt files are named"):
        read_prompts([], tmp_path)


def test_a_missing_file_is_named_with_files_of_a_similar_name(tmp_path):
    write(tmp_path, "prompts/uncertainty.txt", "Why?\n")
    with pytest.raises(PromptError, match=r"prompts/uncertanty\.txt: no such file; in that folder: uncertainty\.txt"):
        read_prompts(["prompts/uncertanty.txt"], tmp_path)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("nowhere/a.txt", "folder nowhere does not exist"),
        ("full/*.csv", "no file matches"),
        ("full", r"is a folder: name its files, for example full/\*\.jsonl"),
        ("empty/a.txt", "holds no prompt files"),
        ("full/a.txt#colum=x", "did you mean 'column'"),
        ("full/a.txt#column=", "option 'column='"),
        ("full/a.txt#min_confidence=high", "must be a number, not 'high'"),
        ("full/a.txt#revision=main", "hf: datasets only"),
    ],
)
def test_patterns_that_lead_nowhere_say_why(tmp_path, pattern, says):
    write(tmp_path, "full/a.txt", "Why?\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptError, match=says):
        read_prompts([pattern], tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "a.txt: the file holds no prompts"),
        ("a.txt", "# only a comment\n\n", "a.txt: the file holds no prompts"),
        ("a.jsonl", "\n", "a.jsonl: the file holds no prompts"),
        ("a.json", "", "a.json: the file holds no prompts"),
        ("a.json", "[]", "a.json: the file holds no prompts"),
        ("a.csv", "", "a.csv: the file holds no prompts"),
        ("a.csv", "prompt,id\n", "a.csv: the file holds no prompts"),
        ("a.txt", b"Why?\nCaf\xe9?\n", "a.txt:2: not UTF-8"),
        ("a.md", "Why?\n", r"a.md: prompts are read from \.txt.* not from '\.md'"),
        ("prompts", "Why?\n", "name without suffix"),
        ("a.jsonl", '{"text": "Why?"}\n{"text": "How?"\n', r'a.jsonl:2: not JSON .*expected \{"text": "..."\}'),
        ("a.jsonl", '{"text": "Why?"}\n"How?"\n', "a.jsonl:2: expected an object"),
        ("a.jsonl", '{"txt": "Why?", "id": 1}\n', "a.jsonl:1: no column .*'text' among 'txt', 'id'; .*#column=NAME"),
        ("a.jsonl", '{"text": ""}\n', "a.jsonl:1: 'text' must be a string that is not empty"),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl:1: 'text' must be a string"),
        ("a.jsonl", '{"text": "Why?", "family": 3}\n', "a.jsonl:1: 'family' must be a string"),
        ("a.jsonl", '{"text": "Why?", "system": ["x"]}\n', "a.jsonl:1: 'system' must be a string"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}\n', "a.jsonl:1: .*message 1"),
        ("a.json", '{"prompts": ["Why?"]}', "a.json: .*'eval_prompts' or 'questions'.* keys 'prompts'"),
        ("a.json", '["Why?",\n', "a.json:2: not JSON"),
        ("a.json", '"Why?"', "a.json: expected a list"),
        ("a.json", '["Why?", 3]', "a.json: item 2 is neither"),
        ("a.csv", "title,body\nx,Why?\n", "a.csv:2: no column .* among 'title', 'body'"),
        ("a.csv", "prompt,id\nRed, or blue?,1\n", 'a.csv:2: 3 fields, but 2 columns; .*"quotes"'),
        ("a.csv", 'prompt\n"Why?\nHow?\n', "a.csv:2: not CSV"),
        ("a.csv", "id,prompt\n1\n", "a.csv:2: 'prompt' must be a string that is not empty"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_what_was_expected(tmp_path, name, content, says):
    with pytest.raises(PromptError, match=says):
        read_one(tmp_path, name, content)


def test_a_named_column_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(PromptError, match=r"a\.csv:2: no column 'body' among 'prompt', 'id'"):
        read_one(tmp_path, "a.csv", "prompt,id\nWhy?,1\n", "#column=body")


def test_a_confidence_threshold_needs_confidences_and_leaves_something(tmp_path):
    with pytest.raises(PromptError, match=r"a\.jsonl:1: min_confidence needs a number in 'label_confidence'"):
        read_one(tmp_path, "a.jsonl", jsonl({"text": "Why?"}), "#min_confidence=0.9")
    with pytest.raises(PromptError, match=r"no row reaches min_confidence=0\.99"):
        read_one(tmp_path, "a.jsonl", jsonl(statement("I like math", 0.97)), "#min_confidence=0.99")


def test_a_system_prompt_for_a_whole_file_stands_before_those_of_its_lines(tmp_path):
    (tmp_path / "shots.txt").write_text("Q: 1+1?\nA: 2\n\n")
    lines = jsonl({"text": "Q: 2+2?"}, {"text": "Q: 3+3?", "system": "Be terse."})
    prompts = read_one(tmp_path, "a.jsonl", lines, "#system=shots.txt&family=sums")
    assert [p.system for p in prompts] == ["Q: 1+1?\nA: 2", "Q: 1+1?\nA: 2\n\nBe terse."]
    assert {p.family for p in prompts} == {"sums"} and prompts[0].prompt_id != Prompt("Q: 2+2?").prompt_id
    base = fresh(template=False)
    ids = base.encode_prompt(prompts[0].text, prompts[0].system)
    assert base.tokenizer.decode(ids[1:]) == "Q: 1+1?\nA: 2\n\nQ: 2+2?"
    for named, says in {"none.txt": "cannot be read as UTF-8 text", "empty.txt": "empty.txt, is empty"}.items():
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(PromptError, match=says):
            read_one(tmp_path, "a.jsonl", lines, f"#system={named}")


# ----------------------------------------------------------------------------------------------- Hugging Face datasets


class Table(list):
    """What ``datasets.load_dataset`` returns, as far as it is used: rows and column names."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the ``datasets`` package; its tables are keyed by (name, config, split, revision)."""
    tables: dict[tuple, Table] = {}

    def load_dataset(name, config=None, *, split=None, revision=None):
        if (name, config, split, revision) not in tables:
            raise ConnectionError("hub is not reachable")
        return tables[name, config, split, revision]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return tables


def test_a_hub_dataset_is_read_by_split_and_column(tmp_path, hub):
    hub["owner/asks", None, "train", None] = Table(
        [{"ask": "Why?", "text": "no", "id": 1}, {"ask": "How?", "text": "no", "id": 2}]
    )
    prompts = read_prompts(["hf:owner/asks:train:ask"], tmp_path)
    assert [(p.text, p.family, p.name) for p in prompts] == [("Why?", "asks", "1"), ("How?", "asks", "2")]
    assert prompts[1].source == "hf:owner/asks:train:ask:2"


def test_a_hub_column_may_hold_chats_and_config_and_revision_are_passed_on(tmp_path, hub):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    hub["owner/chats", "en", "test[:10]", "v2"] = Table([{"conversation": chat}])
    (prompt,) = read_prompts(["hf:owner/chats:test[:10]:conversation#config=en&revision=v2&family=talk"], tmp_path)
    assert (prompt.text, prompt.family) == ("Why?", "talk")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("hf:owner/asks", "expected hf:owner/name:split:column"),
        ("hf:owner/asks:train:", "expected hf:owner/name:split:column"),
        ("hf:owner/asks:train:ask#column=x", "expected hf:owner/name:split:column"),
        ("hf:owner/asks:train:question", "no column 'question' among 'ask', 'id'"),
        ("hf:owner/other:train:ask", "could not be loaded .*hub is not reachable.*save it as JSONL"),
    ],
)
def test_hub_errors_name_the_dataset_and_the_remedy(tmp_path, hub, pattern, says):
    hub["owner/asks", None, "train", None] = Table([{"ask": "Why?", "id": 1}])
    with pytest.raises(PromptError, match=says):
        read_prompts([pattern], tmp_path)


def test_a_dataset_in_a_folder_is_read_without_a_hub(tmp_path, hub, monkeypatch):
    (tmp_path / "sets/asks").mkdir(parents=True)
    (tmp_path / "sets/asks/train.jsonl").write_text(jsonl({"ask": "Why?"}))
    hub[str(tmp_path / "sets/asks"), None, "train", None] = Table([{"ask": "Why?"}])
    (prompt,) = read_prompts(["hf:sets/asks:train:ask"], tmp_path)
    assert (prompt.text, prompt.family) == ("Why?", "asks")
    assert expand(["hf:sets/asks:train:ask"], tmp_path) == [tmp_path / "sets/asks/train.jsonl"]


def test_the_package_itself_reads_folders_and_what_it_saved(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/train.jsonl").write_text(jsonl({"ask": "Why?", "family": "ocean"}, {"ask": "How?"}))
    prompts = read_prompts(["hf:plain:train:ask"], tmp_path)
    assert [(p.text, p.family) for p in prompts] == [("Why?", "ocean"), ("How?", "plain")]
    table = datasets.Dataset.from_list([{"ask": "When?"}])
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "many")
    for name in ("one", "many"):
        assert [p.text for p in read_prompts([f"hf:{name}:train:ask"], tmp_path)] == ["When?"]
    for pattern in ("hf:many:test:ask", "hf:plain:test:ask"):
        with pytest.raises(PromptError, match=r"could not be loaded .*test"):
            read_prompts([pattern], tmp_path)


def test_without_the_datasets_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptError, match="pip install datasets"):
        read_prompts(["hf:owner/asks:train:ask"], tmp_path)


# ------------------------------------------------------------------------------------------------------------- lengths


def test_lengths_are_counted_in_order_and_the_limit_itself_fits():
    prompts = [Prompt("one two three"), Prompt("one")]
    assert check_lengths(prompts, lambda p: len(p.text.split()), 3) == [3, 1]


def test_a_prompt_that_leaves_no_room_is_named_with_its_file():
    prompts = [Prompt("one", source="a.txt:1"), Prompt("one two three", source="a.txt:2")]
    with pytest.raises(PromptError, match=r"1 of 2 prompts .* 2 tokens .*a\.txt:2 \(3 tokens\): 'one two three'"):
        check_lengths(prompts, lambda p: len(p.text.split()), 2)


def test_a_context_without_room_for_any_prompt_is_refused():
    with pytest.raises(PromptError, match="no room for any prompt"):
        check_lengths([Prompt("one")], lambda p: 1, 0)


# ------------------------------------------------------------------------------------------------- the sets that ship


def test_the_overnight_sets_have_their_sizes():
    sizes = {name: len(read_prompts([f"params/prompts/prompts_{name}.txt"], ROOT)) for name in OVERNIGHT}
    assert sizes == OVERNIGHT
    assert len(read_prompts(["params/prompts/prompts_*.txt"], ROOT)) == 24


def test_the_discovery_set_has_twelve_families_of_forty():
    prompts = read_prompts(["params/prompts/discovery.jsonl"], ROOT)
    assert prompts.duplicates == []
    families = [p.family for p in prompts]
    assert {family: families.count(family) for family in families} == dict.fromkeys(FAMILIES, 40)


def test_no_two_prompts_that_ship_resemble_each_other():
    prompts = read_prompts(["params/prompts/discovery.jsonl", "params/prompts/prompts_*.txt"], ROOT)
    sets = [set(words(p.text)) for p in prompts]
    close = [
        (prompts[i].text, prompts[j].text)
        for i, j in combinations(range(len(sets)), 2)
        if len(sets[i] & sets[j]) >= 0.6 * len(sets[i] | sets[j])
    ]
    assert close == []


def test_the_discovery_set_varies_in_length_and_form():
    prompts = read_prompts(["params/prompts/discovery.jsonl"], ROOT)
    lengths = sorted(len(p.text.split()) for p in prompts)
    assert lengths[48] <= 6
    assert lengths[-24] >= 30
    openings = [" ".join(p.text.split()[:2]) for p in prompts]
    assert max(openings.count(opening) for opening in openings) <= 0.05 * len(prompts)


def test_the_smoke_set_is_a_small_part_of_the_discovery_set():
    smoke = read_prompts(["params/prompts/smoke.jsonl"], ROOT)
    whole = {(p.prompt_id, p.family) for p in read_prompts(["params/prompts/discovery.jsonl"], ROOT)}
    assert len(smoke) == 24
    assert len({p.family for p in smoke}) == 4
    assert {(p.prompt_id, p.family) for p in smoke} <= whole
