"""What the decode bench compares: both ways answer the same requests to the same ends."""

import pandas as pd
import pytest

from driftbench import model_speed as benchmarks
from driftbook.models.sampling import SamplingParams
from models import fresh, loaded, requests_for, some_prompts


def test_both_ways_answer_every_request_to_the_same_end(tmp_path):
    model = benchmarks.ending_at_lines(loaded("llama", "sdpa"))
    requests = requests_for(some_prompts([3, 9, 5, 7]), 2)
    greedy = SamplingParams(8, 0.0)
    one = benchmarks.plain_generate(model, requests, greedy, 3)
    assert one == benchmarks.local_generate(model, requests, greedy, 3)
    works = benchmarks.decode_works(model, requests, greedy, 3, tmp_path)
    assert {work() for work in works.values()} == {sum(map(len, one))} and {"generate", "local"} <= set(works)


def test_an_answer_ends_with_its_first_line():
    model = fresh("llama", "sdpa")
    ending = benchmarks.ending_at_lines(model)
    added = ending.eos_ids - model.eos_ids
    assert added and all("\n" in model.tokenizer.decode([i]) for i in added)
    assert model.tokenizer("a\nb", add_special_tokens=False)["input_ids"][1] in added
    assert ending.model is model.model


def test_ratios_are_taken_turn_by_turn_inside_a_group():
    rows = [("bf16", turn, work, rate) for turn, rates in enumerate([(100, 250, 90), (50, 100, 50), (10, 30, 11)])
            for work, rate in zip(("generate", "local", "other"), rates, strict=True)]  # fmt: skip
    times = pd.DataFrame(rows, columns=["dtype", "turn", "work", "tokens_per_s"])
    times = pd.concat([times, times.assign(dtype="fp32", tokens_per_s=100.0)])
    found = benchmarks.ratios(times, ["dtype"], "generate").set_index(["dtype", "work"])
    assert found.loc[("bf16", "local")].tolist() == pytest.approx([2.5, 2.0, 3.0])
    assert found.loc[("bf16", "other")].tolist() == pytest.approx([1.0, 0.9, 1.1])
    assert found.loc[("fp32", "local")].tolist() == [1.0, 1.0, 1.0]
