"""Chat templates: which of several, what one loses or writes by itself, and sides that are asked differently."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from driftbench.tiny import CHAT_TEMPLATE
from driftbook.errors import ModelError
from driftbook.models import templates
from driftbook.models.loading import load
from driftbook.models.sides import Pair, Side
from driftbook.models.templates import ChatTemplate
from driftbook.parameters import validate_cell
from driftbook.report.loading import asked, lines, loaded
from driftbook.sections import ModelSpec
from models import saved

_FIRST = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Smol.<|im_end|>\n' }}{% endif %}"
OWN_SYSTEM = CHAT_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}" + _FIRST)
PARTS = (
    "{% for m in messages %}{% for part in m.content if part.type == 'text' %}[{{ m.role }}] {{ part.text }}"
    "{% endfor %}{% endfor %}"
)
LOSES = "{% for m in messages %}[{{ m.role }}]{% endfor %}"
NAMED = {"default": CHAT_TEMPLATE, "rag": "RAG " + CHAT_TEMPLATE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture
def templated(folder, tmp_path):
    def make(template):
        copy = shutil.copytree(folder, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
        tokenizer = AutoTokenizer.from_pretrained(copy)
        (copy / "chat_template.jinja").unlink()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(copy)
        return copy

    return make


def opened(folder, cache, **options):
    return load(ModelSpec(model=str(folder), dtype="float32", device="cpu", **options), cache)


# ---------------------------------------------------------------------------------------------------- several templates


def test_of_several_templates_the_default_is_used_and_told(templated, tmp_path):
    model = opened(templated(NAMED), tmp_path)
    assert model.use_chat_template and model.record["load"]["template_name"] == "default"
    assert "<|im_start|>user\nHi" in model.tokenizer.decode(model.encode_prompt("Hi"))
    assert model.record["load"]["remarks"] == [
        "of several templates, 'default' is used (others: rag; see template:)"
    ]  # fmt: skip


def test_a_second_template_that_is_passed_over_is_told(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "two")
    written = json.loads((copy / "tokenizer_config.json").read_text())
    same, another = ([{"name": "default", "template": t}] for t in (CHAT_TEMPLATE, LOSES))
    for other, told in ((CHAT_TEMPLATE, False), (LOSES, True), (same, False), (another, True)):
        (copy / "tokenizer_config.json").write_text(json.dumps(written | {"chat_template": other}))
        model = opened(copy, tmp_path)
        assert "<|im_start|>user\nHi" in model.tokenizer.decode(model.encode_prompt("Hi"))
        assert any("which is passed over" in said for said in model.record["load"]["remarks"]) == told
    assert opened(copy, tmp_path, chat_template=False).record["load"]["remarks"] == []


def test_a_template_is_named_and_changes_the_key(templated, tmp_path):
    folder = templated(NAMED)
    plain, rag = opened(folder, tmp_path), opened(folder, tmp_path, template="rag")
    assert rag.tokenizer.decode(rag.encode_prompt("Hi")).startswith("RAG ")
    assert plain.key != rag.key and plain.record["template"] != rag.record["template"]
    with pytest.raises(ModelError, match=r"no chat template 'tool'; there are default, rag"):
        opened(folder, tmp_path, template="tool")


def test_several_templates_without_a_default_need_a_name(templated, tmp_path):
    folder = templated({"chat": CHAT_TEMPLATE, "rag": "RAG " + CHAT_TEMPLATE})
    with pytest.raises(ModelError, match=r"has 2 chat templates \(chat, rag\), none of them the default; name one as"):
        opened(folder, tmp_path)
    assert opened(folder, tmp_path, template="chat").use_chat_template
    assert not opened(folder, tmp_path, chat_template=False).use_chat_template


def test_a_name_that_nothing_bears_is_refused_where_there_is_one_template(folder, tmp_path):
    with pytest.raises(ModelError, match=r"has one chat template, and none is named 'rag'"):
        opened(folder, tmp_path, template="rag")


def test_arguments_reach_the_template_and_the_key(templated, tmp_path):
    folder = templated(CHAT_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}QUICK{% endif %}")
    plain, quick = opened(folder, tmp_path), opened(folder, tmp_path, template_args={"enable_thinking": False})
    assert quick.tokenizer.decode(quick.encode_prompt("Hi")).endswith("QUICK") and quick.key != plain.key
    assert not plain.tokenizer.decode(plain.encode_prompt("Hi")).endswith("QUICK")


# ------------------------------------------------------------------------------------------------ what a template loses


def test_a_template_that_reads_parts_is_given_parts(templated, tmp_path):
    model = opened(templated(PARTS), tmp_path)
    assert model.template.parts and model.record["load"]["content"] == "parts"
    assert model.tokenizer.decode(model.encode_prompt("Hi there", "Be terse.")) == "[system] Be terse.[user] Hi there"


def test_a_template_that_loses_the_prompt_is_refused(templated, tmp_path):
    folder = templated(LOSES)
    with pytest.raises(ModelError, match=r"writes a prompt without the prompt's text.*chat_template: false"):
        opened(folder, tmp_path)
    assert opened(folder, tmp_path, chat_template=False).encode_prompt("Hi")


def test_a_template_that_loses_one_turn_is_refused_with_its_text(folder, tmp_path):
    model = opened(folder, tmp_path)
    model.tokenizer.chat_template = "{{ messages[-1].content }}"
    turns = [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "."},
        {"role": "user", "content": "Y"},
    ]
    with pytest.raises(ModelError, match=r"writes a prompt without what is asked \('Tea\?'\)"):
        model.encode_prompt("Y", None, turns)


def test_a_template_that_loses_an_earlier_answer_is_refused_and_its_thought_may_go(folder, tmp_path):
    model = opened(folder, tmp_path, thought={"open": "<think>", "close": "</think>"})
    turns = [
        {"role": "user", "content": "Tea?"},
        {"role": "assistant", "content": "<think>Green.</think>Yes, please."},
        {"role": "user", "content": "How much?"},
    ]
    thoughtless = "{% for m in messages %}[{{ m.content.split('</think>') | last }}]{% endfor %}"
    model.tokenizer.chat_template = thoughtless
    assert model.tokenizer.decode(model.encode_prompt("", None, turns)) == "[Tea?][Yes, please.][How much?]"
    model.tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(ModelError, match=r"without what is answered before \('Yes, please\.'\)"):
        model.encode_prompt("", None, turns)


# --------------------------------------------------------------------------------------- what a template writes itself


def test_a_template_that_does_not_begin_the_answer_is_told_unless_it_never_does(templated, tmp_path):
    headless = CHAT_TEMPLATE.partition("{% if add_generation_prompt")[0]
    assert opened(templated(headless), tmp_path).record["load"]["remarks"] == [
        "the template has no add_generation_prompt: an answer begins without the '<|im_start|>assistant' that it "
        "writes before answers of earlier turns"
    ]
    bare = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    assert opened(templated(bare), tmp_path).record["load"]["remarks"] == []


def test_a_template_that_writes_a_bos_that_the_tokenizer_does_not_name_is_told(templated, tmp_path):
    folder = templated(CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").unlink()
    assert "bos_token, and the tokenizer names none" in opened(folder, tmp_path).record["load"]["remarks"][0]


def test_a_system_text_that_the_template_writes_is_found(templated, tmp_path):
    report = opened(templated(OWN_SYSTEM), tmp_path).record["load"]
    assert report["own_system_text"] == "You are Smol."
    assert "'You are Smol.'" in report["remarks"][0]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PARTS, "{{ messages[-1].content }}"])
def test_a_template_without_a_text_of_its_own_has_none(template):
    from driftbench.tiny import tiny_tokenizer

    tokenizer = SimpleNamespace(chat_template=template, **{"apply_chat_template": None})
    tokenizer.apply_chat_template = lambda turns, chat_template=None, **k: tiny_tokenizer().apply_chat_template(
        turns, chat_template=template, **k
    )
    assert templates.own_system_text(tokenizer, ChatTemplate(parts=template == PARTS)) == ""


def test_an_end_of_turn_that_ends_nothing_is_told(templated, tmp_path):
    other = CHAT_TEMPLATE.replace("<|im_end|>", "</turn>")
    remarks = opened(templated(other), tmp_path).record["load"]["remarks"]
    assert remarks == ["the template ends an answer with '</turn>', which is no end token: answers may run on"]


def test_a_template_that_writes_the_date_is_told(templated, tmp_path):
    dated = CHAT_TEMPLATE + "{{ strftime_now('%d %b') }}"
    assert "differ from day to day" in opened(templated(dated), tmp_path).record["load"]["remarks"][0]


# ----------------------------------------------------------------------------------------------------------- both sides


class Told:
    """A run that keeps what it is told."""

    def __init__(self, **intervention):
        self.params = validate_cell("decode", {"experiment": "x", "intervention": intervention}).model_copy()
        self.records = {}

    def record(self, name, value):
        self.records[name] = value


def compared(a, b, run):
    pair = Pair(Side("base", a, a.key), Side("intervention", b, b.key), 2)
    return asked(run, pair, {side.name: [tuple(side.model.encode_prompt("Hi"))] for side in pair})


def test_one_side_without_a_template_is_said_above_the_prompts(templated, folder, tmp_path):
    chat, plain = opened(folder, tmp_path), opened(folder, tmp_path, chat_template=False)
    run = Told(kind="checkpoint", model="m")
    table = compared(chat, plain, run)
    assert "only base has a chat template" in table.title and "chat_template: false on base" in table.title
    assert run.records["asked_differently"] == table.title and not table.fold
    assert table.frame.prompt.tolist() == [
        "<|begin|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "<|begin|>Hi",
    ]
    assert "only base" not in compared(chat, chat, run).title


def test_a_system_text_of_one_side_is_said(templated, folder, tmp_path):
    run = Told(kind="checkpoint", model="m")
    table = compared(opened(folder, tmp_path), opened(templated(OWN_SYSTEM), tmp_path), run)
    assert "the template of intervention writes a system text of its own" in table.title


def test_prompts_that_are_meant_to_differ_are_shown_without_alarm(folder, tmp_path):
    run, model = Told(kind="prompt", system="Be terse."), opened(folder, tmp_path)
    pair = Pair(Side("base", model, model.key), Side("intervention", model, "k", system="Be terse."), 1)
    ids = {side.name: [tuple(model.encode_prompt("Hi", side.system))] for side in pair}
    table = asked(run, pair, ids)
    assert table.fold == table.title == "The first prompt, as each side is asked" and not run.records


def test_the_report_stands_in_a_fold_with_a_column_a_side(templated, folder, tmp_path):
    a, b = opened(folder, tmp_path), opened(templated(OWN_SYSTEM), tmp_path)
    table = loaded(Pair(Side("base", a, a.key), Side("intervention", b, b.key), 2))
    assert list(table.frame.columns) == ["", "base", "intervention"]
    assert table.fold == "What was loaded: every tensor is accounted for; 1 remark"
    assert table.html().startswith('<details class="db-data"><summary>What was loaded')
    assert (
        lines(a.record)["tensors"].startswith("47 of 47 in the files") or "in the files" in lines(a.record)["tensors"]
    )
    same = loaded(Pair(Side("base", a, a.key), Side("intervention", a, a.key), 1))
    assert list(same.frame.columns) == ["", "both sides"]
