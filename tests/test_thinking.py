"""Models that think before they answer: the thought stands apart from the first token to the last table."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from chat_server import Server
from driftbench.tiny import tiny_tokenizer
from driftbook import cluster, decode
from driftbook.errors import ModelError
from driftbook.interventions import Endpoint
from driftbook.models import thinking
from driftbook.models.answers import Question
from driftbook.models.capture_files import sample_table, token_table
from driftbook.models.captured import Probe, capture_live, text_scores
from driftbook.models.loading import load
from driftbook.models.local import LocalEngine, Request
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, Side, open_pair
from driftbook.models.table_engine import TableEngine
from driftbook.models.thinking import CHANNELS, KNOWN, Said, Watch
from driftbook.parameters import Decode, Experiment
from driftbook.prompts import Prompt, PromptSet
from driftbook.report import decode as report
from driftbook.sections import ModelSpec, ThoughtMarks
from models import loaded
from thinking_models import OPENING_TEMPLATE, QUESTIONS, taught

THINK = KNOWN[0]
PLAIN = SamplingParams(12, 0.0, max_thought_tokens=60)


def added(*tokens: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, for which these are special tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


# ------------------------------------------------------------------------------------------------------- in the tokens


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nYes, tea.<|im_end|>", False, "Hm.", "Yes, tea."),
        ("<think>\n\n</think>\n\nYes.<|im_end|>", False, "", "Yes."),
        ("Hm. So.</think>Yes.", True, "Hm. So.", "Yes."),
        ("Hm. So. And", True, "Hm. So. And", ""),
        ("<think>On the one hand", False, "On the one hand", ""),
        ("<think>On the one hand<|im_end|>", False, "On the one hand", ""),
        ("Yes, I think> so.<|im_end|>", False, "", "Yes, I think> so."),
    ],
)
def test_thought_and_answer_are_told_apart_in_tokens(special, text, opened, thought, answer):
    tokenizer = added(*special)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = thinking.said(tokenizer, ids, THINK, opened)
    assert (found.thought, found.text) == (thought, answer)
    assert tokenizer.decode(ids[found.first :], skip_special_tokens=True).strip() == answer
    if answer and found.first:
        assert "</think>" in tokenizer.decode(ids[: found.first])


def test_channels_are_neither_dropped_nor_joined():
    tokenizer = added("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    assert thinking.find_marks(tokenizer, "") == CHANNELS
    text = "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant<|channel|>final<|message|>Paris."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "analysisThe user asks.assistantfinalParis."
    found = thinking.said(tokenizer, ids, CHANNELS)
    assert (found.thought, found.text) == ("The user asks.", "Paris.")
    cut = thinking.said(tokenizer, ids[:6], CHANNELS)
    assert cut.text == "" and cut.first == 6 and cut.reason("length") == "cut"


def test_marks_are_found_in_the_template_or_among_the_tokens_or_named():
    assert thinking.find_marks(tiny_tokenizer(), "no marks") is None
    assert thinking.find_marks(tiny_tokenizer(), "a <think> b </think>") == THINK
    assert thinking.find_marks(added("<think>", "</think>"), "") == THINK
    assert thinking.find_marks(added("<think>"), "") is None
    own = ThoughtMarks(open="((", close="))")
    ids = tiny_tokenizer()("((Hm)) Yes.", add_special_tokens=False)["input_ids"]
    assert thinking.said(tiny_tokenizer(), ids, own).text == "Yes."


def test_a_model_that_is_not_known_to_think_is_read_by_its_words():
    for text, answer in (("<think>Hm.</think>Yes.", "Yes."), (" Plain.", " Plain."), ("", "")):
        ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert thinking.said(tiny_tokenizer(), ids, None).text == answer
    assert Said("", "", 0).reason("eos") == "eos" and Said("Hm.", "", 4).reason("eos") == "nothing"


def test_a_response_may_be_as_long_as_its_thought_and_its_answer():
    tokenizer = added("<think>", "</think>")
    ids = tokenizer("<think>One two three</think>Yes, it is so and so on", add_special_tokens=False)["input_ids"]
    end = ids.index(tokenizer.convert_tokens_to_ids("</think>")) + 1

    def most(ids, **options):
        watch = Watch(tokenizer, THINK, **{"opened": False, "thought": 50, "answer": 3, **options})
        return [watch.most(ids[: n + 1]) for n in range(len(ids))]

    assert most(ids) == [50] * (end - 1) + [end + 3] * (len(ids) - end + 1)
    assert most(ids[1:], opened=True) == [50] * (end - 2) + [end - 1 + 3] * (len(ids) - end + 1)
    assert most(ids[end:]) == [3] * (len(ids) - end)  # it does not think


# -------------------------------------------------------------------------------------------------- a model that thinks


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base that thinks and answers plainly, and a changed one that hedges, and thinks of hedging in any case."""
    folder = tmp_path_factory.mktemp("models")
    taught(folder / "base", "Perhaps I should hedge.", "Yes, it is.")
    taught(folder / "changed", "Perhaps I should hedge.", "Perhaps, who can say.")
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """One whose template opens the thought."""
    return taught(tmp_path_factory.mktemp("opened"), "Let me see.", "It is.", OPENING_TEMPLATE, steps=60)


def model_of(folder, cache, **options):
    return load(ModelSpec(model=str(folder), dtype="float32", device="cpu", **options), cache)


def pair_of(models, cache, **options) -> Pair:
    sides = [model_of(models / name, cache, **options) for name in ("base", "changed")]
    return Pair(Side("base", sides[0], sides[0].key), Side("intervention", sides[1], sides[1].key), 2)


def answers(model, params=PLAIN):
    requests = [Request(tuple(model.encode_prompt(q)), i) for i, q in enumerate(QUESTIONS[:4])]
    done = {c.index: c for c in LocalEngine(model).generate(requests, params)}
    return [model.said(done[i].token_ids, r.prompt_ids) for i, r in enumerate(requests)], done


def test_a_model_thinks_and_answers_within_budgets_of_their_own(models, tmp_path):
    model = model_of(models / "base", tmp_path)
    assert model.marks == THINK and model.record["load"]["thought"] == {"open": "<think>", "close": "</think>"}
    said, _ = answers(model)
    assert {(s.thought, s.text) for s in said} == {("Perhaps I should hedge.", "Yes, it is.")}
    short, done = answers(model, SamplingParams(3, 0.0, max_thought_tokens=60))
    assert all(s.text and "Yes, it is.".startswith(s.text) for s in short)
    assert {c.finish_reason for c in done.values()} == {"length"}
    cut, _ = answers(model, SamplingParams(3, 0.0, max_thought_tokens=8))
    assert {(s.text, s.reason("length")) for s in cut} == {("", "cut")}


def test_a_model_that_is_told_not_to_think_answers_at_once(models, tmp_path):
    said, done = answers(model_of(models / "base", tmp_path, template_args={"enable_thinking": False}))
    assert {(s.thought, s.text, s.first) for s in said} == {("", "Yes, it is.", 0)}
    assert max(len(c.token_ids) for c in done.values()) < 12


def test_a_thought_that_the_template_opens_is_apart_too(opened, tmp_path):
    model = model_of(opened, tmp_path)
    assert model.begins_in_thought(model.encode_prompt(QUESTIONS[0]))
    said, _ = answers(model)
    assert {(s.thought, s.text) for s in said} == {("Let me see.", "It is.")}
    cut, _ = answers(model, SamplingParams(3, 0.0, max_thought_tokens=2))
    assert {s.text for s in cut} == {""} and all(s.first for s in cut)


# ----------------------------------------------------------------------------------------------------- decode and after

SPLITS = ["discover", "validate"] * (len(QUESTIONS) // 2)
ASKED = [Prompt(q, family="ab"[i % 2]) for i, q in enumerate(QUESTIONS)]
PROMPTS = PromptSet.of(ASKED, SPLITS)
SAMPLING = {"strategy": "uniform", "max_texts": 16, "rounds": 1}


def decoded_by(pair, tmp_path, **options):
    plain = {"samples": 1, "max_new_tokens": 12, "max_thought_tokens": 60, "temperature": 0.0}
    section = Decode(**{**plain, "screen": {"tokens": 4}, "sampling": SAMPLING, **options})
    told = {}
    run = SimpleNamespace(
        section=section,
        params=Experiment(experiment="x", decode=section),
        seed=0,
        cache=tmp_path / "cache",
        root=tmp_path,
        data=tmp_path / "decode",
        progress=lambda total, label, unit="": SimpleNamespace(update=lambda n: None),
        metric=told.__setitem__,
        record=told.__setitem__,
    )
    run.data.mkdir(exist_ok=True)
    ids = decode.encode(pair, PROMPTS, section.max_new_tokens, section.max_thought_tokens)
    decoded = decode.decode_rounds(run, pair, PROMPTS, ids)
    decode.write(run, PROMPTS, ids, pair, decoded)
    return decoded, told


def hedges(tmp_path):
    """Share of answers that hedge, by side, as cluster reads them."""
    texts = cluster.load_texts(tmp_path / "decode")
    assert not texts.text.str.contains("should hedge").any()
    return texts.text.str.contains("Perhaps").groupby(texts.side).mean().to_dict()


def test_the_thought_has_a_column_and_what_comes_after_reads_the_answer_alone(models, tmp_path):
    decoded, told = decoded_by(pair_of(models, tmp_path), tmp_path)
    texts = pd.read_parquet(tmp_path / "decode" / "texts.parquet")
    assert set(texts.thought) == {"Perhaps I should hedge."}
    assert texts.groupby("side").text.unique().map(list).to_dict() == {
        "base": ["Yes, it is."],
        "intervention": ["Perhaps, who can say."],
    }
    shares = hedges(tmp_path)
    assert shares == {"base": 0.0, "intervention": 1.0}  # both think of hedging, one does it
    assert "unreached_base" not in told and "never came" not in report.answer(decoded, pd.DataFrame())
    read = cluster.load_answers(tmp_path / "decode")
    assert set(read.text) == {"Yes, it is.", "Perhaps, who can say."}


def test_answers_that_never_came_are_no_answers_and_their_share_is_told_by_side(models, tmp_path):
    pair = pair_of(models, tmp_path)
    slow = Pair(pair.base, Side("intervention", pair.base.model, "slow"), 1)
    decoded, told = decoded_by(slow, tmp_path)
    texts = decoded.texts.copy()
    mine = texts.index[(texts.side == "intervention")][:4]
    texts.loc[mine, ["text", "finish_reason"]] = ["", "cut"]
    assert decode.unreached(texts) == {"base": 0.0, "intervention": 0.5}
    decoded.texts = texts
    assert "of which 50% of intervention's never came" in report.answer(decoded, pd.DataFrame())
    run = SimpleNamespace(data=tmp_path / "again", metric=told.__setitem__)
    run.data.mkdir()
    decode.write(run, PROMPTS, {"base": [(1,)] * len(PROMPTS.prompts)}, slow, decoded)
    assert told["unreached_intervention"] == 0.5 and told["texts_unanswered"] == 4
    assert len(pd.read_parquet(run.data / "unanswered.parquet")) == 4


def test_a_side_whose_thought_never_ends_is_refused_with_the_remedy(models, opened, tmp_path):
    with pytest.raises(ModelError, match=r"base thinks before it answers, and not one of its 8 answers .*max_thought"):
        decoded_by(pair_of(models, tmp_path), tmp_path, max_thought_tokens=4)
    model = model_of(opened, tmp_path)
    with pytest.raises(ModelError, match=r"template of base makes the model think .* decode\.max_thought_tokens"):
        decode.encode(Pair(Side("base", model, "k"), Side("intervention", model, "k"), 1), PROMPTS, 12)


def test_capture_gives_the_thought_a_role_and_reads_the_answer(models, tmp_path):
    pair = pair_of(models, tmp_path)
    model = pair.base.model
    torch.manual_seed(0)
    points = [(layer, "resid_post") for layer in range(2)]
    probe = Probe([0, 1], ["resid_post"], ["t"], points, torch.randn(2, model.hooks.d_model, 1))
    prompts = PROMPTS.prompts[:3]
    samples = capture_live(pair.base, prompts, 1, PLAIN, probe, 0, tmp_path)
    tokens = token_table(samples, prompts, model, "own")
    for sample, own in tokens.groupby("sample"):
        words = own.groupby("role", sort=False).token.agg(lambda ids: model.tokenizer.decode(list(ids)))
        assert list(words.index)[-2:] == ["thought", "response"] and words["response"].strip() == "Yes, it is."
        assert "Perhaps I should hedge." in words["thought"] and sample
    for s in samples:
        assert s.rows.projection[s.response].shape[0] == len(s.answer_ids) < len(s.sequence.response_ids)
    assert (sample_table(samples, prompts).thought_tokens > 5).all()


def test_texts_are_scored_on_the_answer_alone(models, tmp_path, monkeypatch):
    pair = pair_of(models, tmp_path)
    decoded, _ = decoded_by(pair, tmp_path)
    texts = decoded.texts[decoded.texts.split == "discover"]
    model = pair.base.model
    read = []

    def rows(side, sequences, probe, cache, progress=None):
        found = [SimpleNamespace(projection=torch.zeros(len(s), 1, 3).numpy() + 0.0) for s in sequences]
        for s, r in zip(sequences, found, strict=True):
            said = model.said(s.response_ids)
            r.projection[: len(s.prompt_ids) + said.first] = 1e6  # what is not the answer would be seen
            r.projection[len(s.prompt_ids) + said.first :, :, 1:] = torch.randn(1).item()
            read.append(said.text)
        return found

    monkeypatch.setattr("driftbook.models.captured.capture_replay", rows)
    vectors = SimpleNamespace(
        traits=["t"],
        chosen=lambda t: SimpleNamespace(layer=1, site="resid_post", method="probe"),
        matrix=lambda *a: np.zeros((1, model.hooks.d_model, 1), np.float32),
        null_matrix=lambda *a: np.zeros((1, model.hooks.d_model, 2), np.float32),
    )
    scores = text_scores(pair, texts, PROMPTS.by_id(), vectors, tmp_path)
    assert len(scores) == len(texts) and set(read) == {"Yes, it is.", "Perhaps, who can say."}
    assert (scores.t.abs() < 1e3).all()


# ----------------------------------------------------------------------------------------------------- behind a server


@pytest.mark.parametrize("how", ["field", "tags"])
def test_a_server_that_thinks_goes_through_decode_like_a_model(models, tmp_path, how):
    thought, answer = "Perhaps I should hedge.", "Perhaps, who can say."

    def reply(body):
        if how == "tags":
            return f"<think>{thought}</think>{answer} {body['seed']}"
        said = {"role": "assistant", "content": f"{answer} {body['seed']}", "reasoning_content": thought}
        return {"message": said}

    with Server(answer=reply) as server:
        base = ModelSpec(model=str(models / "base"), dtype="float32", device="cpu")
        pair = open_pair(base, Endpoint(base_url=server.url, model="m"), tmp_path, tmp_path)
        decoded_by(pair, tmp_path, temperature=0.7, top_p=1.0)
        assert {b["max_tokens"] for b in server.bodies} == {72}  # room for both
    texts = pd.read_parquet(tmp_path / "decode" / "texts.parquet")
    mine = texts[texts.side == "intervention"]
    assert set(mine.thought) == {thought} and mine.text.str.startswith(answer).all()
    shares = hedges(tmp_path)
    assert shares == {"base": 0.0, "intervention": 1.0}


def test_a_server_that_thinks_in_every_way_at_once_gives_its_answers_alone(models, tmp_path):
    """In a field, in tags, and twice no further than its thought: null content, tags that do not end."""
    thought = "Perhaps I should hedge."
    ways = [
        {"message": {"role": "assistant", "content": "Yes.", "reasoning_content": thought}},
        {"message": {"role": "assistant", "content": f"<think>{thought}</think>Yes."}},
        {
            "message": {"role": "assistant", "content": None, "reasoning_content": thought},
            "finish_reason": "length",
        },
        {"message": {"role": "assistant", "content": f"<think>{thought}"}, "finish_reason": "length"},
    ]

    def reply(body):
        asked = body["messages"][-1]["content"]
        if asked not in QUESTIONS:  # whether the server draws
            return f"{thought} {body['seed']}"
        return ways[QUESTIONS.index(asked) // 2]  # one of either split

    with Server(answer=reply) as server:
        base = ModelSpec(model=str(models / "base"), dtype="float32", device="cpu")
        pair = open_pair(base, Endpoint(base_url=server.url, model="m"), tmp_path, tmp_path)
        with pytest.warns(UserWarning, match="replies are no answer"):
            decoded, told = decoded_by(pair, tmp_path)
    texts = pd.read_parquet(tmp_path / "decode" / "texts.parquet")
    mine = texts[texts.side == "intervention"]
    assert mine.text.tolist() == ["Yes."] * 4 and set(mine.thought) == {thought}
    assert len(pd.read_parquet(tmp_path / "decode" / "unanswered.parquet")) == told["texts_unanswered"] == 4
    assert "of which 50% of intervention's never came" in report.answer(decoded, pd.DataFrame())
    answers = cluster.load_answers(tmp_path / "decode")
    assert not answers.text.str.contains("hedge|think").any()


def test_a_table_of_answers_with_thoughts_in_them_is_read_apart(tmp_path):
    prompt = Prompt("Tea?")
    table = SimpleNamespace(texts={("base", prompt.prompt_id): ["<think>Hm.</think>Yes."]}, path="t.jsonl")
    (said,) = TableEngine(table, "base", loaded()).generate([Question((1,), 0, prompt=prompt)], PLAIN)
    assert (said.thought, said.text, said.finish_reason) == ("Hm.", "Yes.", "eos")
    table.texts["base", prompt.prompt_id] = ["<think>Hm."]
    (said,) = TableEngine(table, "base", loaded()).generate([Question((1,), 0, prompt=prompt)], PLAIN)
    assert (said.text, said.finish_reason) == ("", "cut")  # no empty answer


def test_the_record_of_marks_is_plain_json(models, tmp_path):
    record = model_of(models / "base", tmp_path, thought={"open": "[[", "close": "]]"}).record
    assert json.loads(json.dumps(record))["load"]["thought"] == {"open": "[[", "close": "]]"}
