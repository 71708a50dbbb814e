"""What a change's insides tell without an answer: difference of activations, and weights."""

import numpy as np
import pandas as pd
import pytest
import torch

from driftbook import decode
from driftbook.errors import ModelError
from driftbook.models.lens import NEUTRAL, TOKENS, difference_lens, weights_of_change
from driftbook.models.sides import Pair, Side
from driftbook.models.steering import SteerTap
from driftbook.report import decode as report
from models import fresh, hidden_states, hook_count, loaded
from test_amplified import adapted, with_adapter_merged
from test_decode import run_of

pytestmark = pytest.mark.numeric


def towards(token: int, amount: float = 5.0, layer: int = 1) -> Pair:
    """A change that adds the unembedding of one token behind a block."""
    model = loaded("llama", "sdpa")
    v = model.model.lm_head.weight[token].float()
    tap = SteerTap(layer, "resid_post", v - v.mean(), amount)
    return Pair(Side("base", model, "b"), Side("intervention", model, f"i{token}", taps=(tap,)), 1)


def test_the_direction_that_was_added_is_named_where_it_was_added():
    model = loaded("llama", "sdpa")
    before = hook_count(model)
    table = difference_lens(towards(123))
    said = model.tokenizer.decode([123])
    assert table["layer"].tolist() == [0, 1, 2, 3] and table["norm"][0] == 0 and table["promoted"][0] == []
    assert table["norm"][1] == pytest.approx(5.0, rel=1e-4) and said in table["promoted"][1][:2]
    assert (table["relative"][1:] > table["null"][1:]).all() and hook_count(model) == before


def test_the_mean_difference_is_that_of_transformers_own_states():
    a, b = loaded("llama", "eager"), loaded("llama", "eager", seed=1)
    table = difference_lens(Pair(Side("base", a, "a"), Side("intervention", b, "b"), 2))
    ids = [tuple(a.tokenizer(t)["input_ids"])[: TOKENS + 1] for t in NEUTRAL]
    for layer in (0, 2):  # the last entry of transformers is behind the final norm
        means = [np.mean([hidden_states(m, i)[layer + 1][1:].mean(0) for i in ids], axis=0) for m in (a, b)]
        assert table["norm"][layer] == pytest.approx(np.linalg.norm(means[1] - means[0]), rel=1e-3)
    sizes = [np.linalg.norm(hidden_states(a, i)[1][1:].mean(0)) for i in ids]
    assert table["relative"][0] == pytest.approx(table["norm"][0] / np.mean(sizes), rel=1e-3)


def test_sides_that_cannot_be_subtracted_are_refused():
    pair = Pair(Side("base", loaded(), "a"), Side("intervention", fresh("llama", hidden_size=96), "b"), 2)
    with pytest.raises(ModelError, match="other layers or widths"):
        difference_lens(pair)


def test_an_adapter_changes_the_weights_by_what_it_adds(tmp_path):
    lora = adapted(tmp_path)
    ours = weights_of_change(lora).set_index("module")
    whole = with_adapter_merged(tmp_path)
    merged = Pair(Side("base", fresh("llama", "eager"), "a"), Side("intervention", whole, "b"), 2)
    theirs = weights_of_change(merged).set_index("module")
    theirs = theirs[theirs["change"] > 0]
    assert len(ours) == len(theirs) == 8
    np.testing.assert_allclose(sorted(ours["change"]), sorted(theirs["change"]), rtol=1e-4)
    assert (ours["effective_rank"] <= 4.01).all()  # r=4
    delta = theirs.index[0]
    base, changed = (dict(s.model.model.named_modules())[delta].weight for s in merged)
    values = torch.linalg.svdvals(changed - base).numpy()
    np.testing.assert_allclose(theirs.loc[delta, "singular_values"][:4], values[:4], rtol=1e-4)
    figure, table = report.weights_changed(weights_of_change(lora))
    assert figure is not None and table is not None


def test_the_stage_writes_its_readings_where_there_are_any(tmp_path):
    run = run_of(tmp_path)
    lens, changed = decode.free_readings(run, towards(77))
    assert changed.empty and report.weights_changed(changed) == (None, None)
    assert report.lens(lens) is not None and report.lens_tokens(lens) is not None
    columns = ["layer", "norm"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "lens.parquet")[columns], lens[columns])
    same = Pair(Side("base", loaded(), "a"), Side("intervention", loaded(), "b"), 1)
    lens, changed = decode.free_readings(run, same)
    assert (lens["norm"] == 0).all() and report.lens(lens) is None and changed.empty
