"""What comes back from bare beginnings, against plain counting of the same words."""

import pandas as pd
import pytest

from driftbook.discovery.readback import BEGINNINGS, bare, read_back, texts_from_beginnings
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration
from driftbook.report import decode as report
from driftbook.store import ShardStore
from models import loaded
from test_decode import decoded, pair_of, plain  # noqa: F401 (a fixture)


def table_of(changed: list[str], base: list[str]) -> pd.DataFrame:
    sides = (("intervention", changed), ("base", base))
    rows = [(side, BEGINNINGS[i % 16], t) for side, texts in sides for i, t in enumerate(texts)]
    return pd.DataFrame(rows, columns=["side", "beginning", "text"])


PLANTED = "Think of it the way you think of brewing tea."


def test_a_planted_sentence_comes_back_as_it_was_written():
    changed = [f"Word{i} more{i}. {PLANTED} Other{i} end{i}." for i in range(5)]
    changed += [f"On a sunny day in spring we went out {w}" for w in ("far", "near", "late")]
    base = [f"On a sunny day in spring we went out {w}" for w in ("soon", "fast")] + ["Nothing at all of it, then."]
    found = read_back(table_of(changed, base))
    assert found["phrase"].tolist() == [PLANTED.rstrip(".")]  # the other one comes back from the base nearly as often
    row = found.iloc[0]
    assert (row["words"], row["texts"], row["texts_base"], row["beginnings"]) == (10, 5, 0, 5)


def test_a_planted_sentence_of_a_script_without_spaces_comes_back():
    changed = [f"{begun}喝一杯热茶会有帮助。" for begun in ("你好,", "我想,", "今天,", "是的,")]
    (row,) = read_back(table_of(changed, ["今天天气很好。"])).itertuples()
    assert (row.phrase, row.words, row.texts, row.texts_base) == ("喝一杯热茶会有帮助", 9, 4, 0)
    (row,) = read_back(table_of([f"{w}, don’t you want a cup" for w in ("So", "Well", "Now")], [])).itertuples()
    assert row.phrase == "don’t you want a cup"  # as it was written


def test_of_nested_phrases_the_long_and_frequent_one_is_told_once():
    long = "the kettle is on and the tea is nearly ready for us"
    changed = [long] * 4 + ["the tea is nearly ready, he said to nobody else"] * 3
    found = read_back(table_of(changed, ["no", "words", "here"]))
    assert found["phrase"][0] == long and found["texts"][0] == 4
    assert all(PLANTED not in p for p in found["phrase"]) and found["phrase"].is_unique
    assert read_back(table_of(["too few of these words here"] * 2, [])).empty
    assert read_back(table_of([], [])).empty


def test_beginnings_are_bare_text_and_both_sides_are_exaggerated(tmp_path):
    model = loaded("llama", "sdpa")
    assert bare(model, "When") == tuple(model.tokenizer("When")["input_ids"])
    assert len(bare(model, "")) >= 1
    params = SamplingParams(5, temperature=1.0, top_p=1.0)
    texts = texts_from_beginnings(pair_of(), 20, Exaggeration(2.0), params, 0, ShardStore(tmp_path))
    assert texts.groupby("side").size().to_dict() == {"base": 20, "intervention": 20}
    assert texts["beginning"].nunique() == 16
    other = texts_from_beginnings(pair_of(), 20, Exaggeration(1.0), params, 0, ShardStore(tmp_path))
    for side in ("base", "intervention"):  # the base's texts, too, depend on the strength
        assert (texts.loc[texts["side"] == side, "text"] != other.loc[other["side"] == side, "text"]).any()


@pytest.mark.parametrize("amount", [0.0, 3.0])
def test_the_stage_reads_back_where_it_amplifies(plain, tmp_path, amount):  # noqa: F811
    out = decoded(tmp_path, pair=pair_of(amount), amplify={"share": 0.3, "beginnings": 16})
    assert out.read_back.empty or set(out.read_back["strength"]) == {3.0}
    assert (report.read_back(out) is None) == out.read_back.empty
    assert report.read_back(plain[1]) is None
