"""The bench against other tools: the same work in another process, and numbers that must agree."""

import dataclasses
import sys

import numpy as np
import pytest

from driftbench import peers
from driftbench.model_speed import random_probe
from driftbook.errors import DriftbookError
from driftbook.models.loading import load
from driftbook.models.projection import all_points
from driftbook.parameters import ModelSpec
from driftbook.sections import RESIDUAL_SITES
from models import hidden_states, saved, some_prompts

PROMPTS = some_prompts([5, 9, 2])


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = load(ModelSpec(model=str(saved(folder / "tiny")), dtype="float32"), folder)
    vectors = random_probe(model, all_points(model, RESIDUAL_SITES), 4, 0)
    result, rows = peers.run_ours(model, PROMPTS, vectors, 6, repeats=1)
    return model, vectors, result, rows


def test_hooks_written_by_hand_give_the_same_numbers(ours, tmp_path):
    """The one peer that needs no package of its own: transformers with hooks, in a process of its own."""
    model, vectors, result, rows = ours
    texts = [(*p, *t) for p, t in zip(PROMPTS, result.tokens, strict=True)]
    peers.write_spec(tmp_path, model.record["model"], PROMPTS, texts, vectors, 4, 6, repeats=1)
    theirs = peers.run_peer(sys.executable, "transformers", tmp_path)
    assert theirs.tokens == result.tokens and all(len(t) == 6 for t in theirs.tokens)
    assert {work: len(s) for work, s in theirs.cpu.items()} == {"live": 1, "replay": 1}
    found = peers.compare(result, theirs, rows)
    assert found["live"].tokens == 1 and found["live"].largest < peers.TOLERANCE
    assert (found["live"].rows, found["replay"].rows) == (5 + 9 + 2 + 3 * 5, 5 + 9 + 2 + 3 * 6)  # no last state live
    v = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    h = hidden_states(model, texts[1])
    np.testing.assert_allclose(theirs.replay[1][:, 3], h[1] @ v[3], atol=1e-4)


def test_numbers_that_differ_are_no_speedup(ours):
    _, _, result, rows = ours
    moved = [r.copy() for r in result.live]
    moved[1][3, 7, 2] += 1e-3 * rows[1].norm[3, 7]
    with pytest.raises(DriftbookError, match=r"other, live: text 1, token 3, point 7 differs by 0.001 of \|h\|"):
        peers.compare(result, dataclasses.replace(result, peer="other", live=moved), rows)


def test_live_rows_are_compared_as_far_as_the_tokens_are_the_same(ours):
    _, _, result, rows = ours
    tokens = [list(t) for t in result.tokens]
    tokens[2][1] += 1
    moved = [r.copy() for r in result.live]
    moved[2][3:] += 5.0  # prompt 2 has two tokens: row 3 is the first that read another token
    found = peers.compare(result, dataclasses.replace(result, tokens=tokens, live=moved), rows)
    assert found["live"].tokens == (6 + 6 + 1) / 18 and found["live"].rows == 11 + 15 + 3
    moved[2][2] += 5.0
    with pytest.raises(DriftbookError, match="text 2, token 2"):
        peers.compare(result, dataclasses.replace(result, tokens=tokens, live=moved), rows)


def test_a_peer_that_is_not_there_or_fails_says_so(tmp_path):
    assert peers.installed(sys.executable, "json") and not peers.installed(sys.executable, "no_such_peer")
    with pytest.raises(DriftbookError, match=r"transformers failed in .*FileNotFoundError"):
        peers.run_peer(sys.executable, "transformers", tmp_path)
    with pytest.raises(DriftbookError, match=r"bench\.peers_python 'nowhere/python': no such file"):
        peers.python_of("nowhere/python", tmp_path)
    assert peers.python_of("", tmp_path) == sys.executable


def test_speedups_are_ratios_of_medians_with_the_range_of_turns():
    assert peers.speedup([1.0, 2.0, 1.5], [6.0, 9.0]) == (5.0, 3.0, 9.0)


def test_the_table_says_what_was_not_measured(ours):
    _, _, result, rows = ours
    slow = dataclasses.replace(
        result,
        peer="transformers",
        seconds={"live": [60.0], "replay": [30.0]},
        cpu={"live": [80.0], "replay": [8.0]},
        versions={"transformers": "5"},
    )
    once = {"live": [10.0], "replay": [5.0]}
    mine = peers.joined(*[dataclasses.replace(result, seconds=once, cpu={"live": [20.0], "replay": [4.0]})] * 2)
    table = peers.table(mine, [slow], rows, ["transformers", "nnsight"])
    found = peers.metrics(table)
    assert found["speedup_over_transformers"] == found["replay_speedup_over_transformers"] == 6
    assert (found["cpu_speedup_over_transformers"], found["cpu_replay_speedup_over_transformers"]) == (4, 2)
    assert found["speedup_over_nnsight"] == "not measured: not installed" and "live_seconds_nnsight" not in found
    assert found["live_seconds_driftbook"] == 10 and found["live_largest_difference_transformers"] == 0
    assert "6.0 times as fast as hooks written by hand" in peers.answer(table)
    assert peers.answer(table).endswith("Not installed, so not measured: nnsight.")
    nothing = peers.table(mine, [], rows, [])
    assert peers.answer(nothing) == "No other tool is installed, so nothing was compared."
