"""The capture stage on a tiny model: every row belongs to its token, every shift to its cause."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from driftbook import capture
from driftbook.errors import BudgetError, DriftbookError, ModelError, PromptError
from driftbook.evidence.dynamics import MEASURES
from driftbook.evidence.shifts import prompt_means
from driftbook.models import captured
from driftbook.models.capture_files import prompt_roles
from driftbook.models.internals import capture_internals
from driftbook.models.local import LocalEngine
from driftbook.models.projection import ProjectionTap
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, Side
from driftbook.models.steering import SteerTap
from driftbook.models.tier3 import capture_tier3, read_internals, tier3_bytes, top_neurons
from driftbook.models.vectors import VectorSet
from driftbook.prompts import Prompt
from driftbook.report import capture as report
from driftbook.traits import sites_of
from models import fresh, hidden_states, hook_count, loaded
from test_vectors import some_vectors

pytestmark = pytest.mark.numeric

PROMPTS = [
    Prompt("What is tea?"),
    Prompt("Rain, drums, rivers.", system="Be terse."),
    Prompt("Why?"),
    Prompt("Go on then"),
]
PARAMS = SamplingParams(6, temperature=1.0, top_p=1.0)
LAYER, AMOUNT = 2, 6.0


def one_direction() -> VectorSet:
    """``warm`` is the same direction at every point, so that what is added at one layer is seen at those above it."""
    vectors = some_vectors(null=16)
    warm = vectors.directions["warm", "probe"]
    warm[:] = warm[LAYER, 1]
    return vectors


VECTORS = one_direction()


def side(name: str = "base", model=None, **options) -> Side:
    model = model or loaded("llama", "sdpa")
    return Side(name, model, model.key + name, **options)


def steered_pair() -> Pair:
    v = torch.from_numpy(VECTORS.at("warm", "probe", LAYER, "resid_post"))
    return Pair(side(), side("intervention", taps=(SteerTap(LAYER, "resid_post", v, AMOUNT),)), 1)


def probe_of(model=None) -> capture.Probe:
    return capture.make_probe(VECTORS, "probe", ["resid_pre", "resid_post"], model or loaded("llama", "sdpa"))


def live(which: Side, cache, samples: int = 2, batch_size: int = 3, params=PARAMS, prompts=PROMPTS, **options):
    which = replace(which, batch_size=batch_size, engine=which.engine if not which.here else None)
    return capture.capture_live(which, prompts, samples, params, probe_of(which.model), 0, cache, **options)


def test_without_sites_a_probe_takes_those_of_the_vectors():
    """Attention and MLP side by side: there is no middle to read, and nobody has to say so in the parameters."""
    model = loaded("gpt_neox", "sdpa")
    sites = sites_of(model)
    shape = (model.hooks.n_layers, len(sites))
    directions = {("warm", "probe"): np.ones((*shape, model.hooks.d_model), np.float32)}
    vectors = VectorSet(list(range(shape[0])), sites, directions, np.ones(shape))
    assert capture.make_probe(vectors, "probe", None, model).sites == sites == ["resid_pre", "resid_post"]
    with pytest.raises(ModelError, match="resid_mid"):
        capture.make_probe(vectors, "probe", ["resid_mid"], model)


# ----------------------------------------------------------------------------------------------------------------- live


def test_rows_of_every_sample_are_its_own(tmp_path):
    """Wrong-sample check, in prompt and response: each sample's rows against its own text through the bare model."""
    base = side()
    told: list[int] = []
    samples = live(base, tmp_path, 3, progress=told.append)
    probe = probe_of()
    assert [(s.prompt, s.sample) for s in samples] == [(p, k) for p in range(4) for k in range(3)]
    assert sum(told) == 12 and len({s.sample_id for s in samples}) == 12
    assert len({s.sequence.response_ids for s in samples}) > 6
    for s in samples:
        assert s.sequence.prompt_ids == base.encode(PROMPTS[s.prompt])
        assert s.rows.projection.shape == (len(s.sequence), 8, 2) and s.rows.norm.shape == (len(s.sequence), 8)
        assert not set(s.sequence.response_ids) & base.model.eos_ids
        assert s.finish_reason == "eos" or len(s.sequence.response_ids) == PARAMS.max_new_tokens
        h = hidden_states(base.model, s.sequence.ids)
        grid = probe.grid(s.rows.projection)
        for layer in range(4):
            for k, trait in enumerate(probe.traits):
                expected = h[layer] @ VECTORS.at(trait, "probe", layer, "resid_pre")
                np.testing.assert_allclose(grid[:, layer, 0, k], expected, atol=3e-4)


def test_the_batch_changes_nothing(tmp_path):
    one, many = (live(side(), tmp_path / str(b), batch_size=b) for b in (1, 8))
    for a, b in zip(one, many, strict=True):
        assert (a.sample_id, a.sequence, a.finish_reason) == (b.sample_id, b.sequence, b.finish_reason)
        np.testing.assert_allclose(a.rows.projection, b.rows.projection, atol=2e-4)


def test_a_second_capture_comes_from_the_cache(tmp_path, monkeypatch):
    first = live(side(), tmp_path)
    monkeypatch.setattr(LocalEngine, "generate", lambda *a: pytest.fail("the model ran again"))
    told = []
    for a, b in zip(first, live(side(), tmp_path, progress=told.append), strict=True):
        assert (a.sample_id, a.sequence, a.finish_reason, a.seconds) == (
            b.sample_id,
            b.sequence,
            b.finish_reason,
            b.seconds,
        )
        np.testing.assert_array_equal(a.rows.projection, b.rows.projection)
        np.testing.assert_array_equal(a.rows.norm, b.rows.norm)
    assert sum(told) == len(first)
    with pytest.raises(pytest.fail.Exception):
        live(side(), tmp_path, params=dataclasses.replace(PARAMS, temperature=0.9))
    with pytest.raises(pytest.fail.Exception):
        live(side("intervention"), tmp_path)


def test_memory_that_runs_out_costs_no_sample(tmp_path, monkeypatch):
    expected = live(side(), tmp_path / "calm", batch_size=8)
    generate = LocalEngine.generate

    def halved(self, *arguments):
        if self.batch_size > 2:
            self.batch_size //= 2  # as it does on torch.OutOfMemoryError
        return generate(self, *arguments)

    monkeypatch.setattr(LocalEngine, "generate", halved)
    found = live(side(), tmp_path / "tight", batch_size=4)
    assert [(s.sample_id, s.sequence) for s in found] == [(s.sample_id, s.sequence) for s in expected]


def test_sides_draw_different_texts_from_the_same_model(tmp_path):
    base, other = live(side(), tmp_path), live(side("intervention"), tmp_path)
    assert [s.sequence.prompt_ids for s in base] == [s.sequence.prompt_ids for s in other]
    assert not {s.sample_id for s in base} & {s.sample_id for s in other}
    assert sum(a.sequence == b.sequence for a, b in zip(base, other, strict=True)) < 3


def test_too_many_bytes_are_refused_before_any_forward(tmp_path):
    model = fresh("llama", "sdpa")
    base = side(model=model)
    rows = sum(len(base.encode(p)) + PARAMS.max_new_tokens for p in PROMPTS) * 2
    need = rows * 8 * 3 * 4  # 8 points, 2 traits and a norm, float32
    assert model.hooks  # proved by forwards of its own
    called = []
    model.model.register_forward_pre_hook(lambda *a: called.append(1))
    with pytest.raises(BudgetError, match="8 points on 2 vectors"):
        live(base, tmp_path, max_bytes=need - 1)
    assert called == []
    assert len(live(base, tmp_path, max_bytes=need)) == 8


def test_a_prompt_without_room_for_an_answer_is_named(tmp_path):
    (tmp_path / "p.txt").write_text("Short.\n" + "tea and rain " * 60 + "\n")
    model = fresh("llama", "sdpa", max_position_embeddings=100)
    with pytest.raises(PromptError, match=r"p\.txt:2"):
        capture.load_prompts(["p.txt"], tmp_path, side(model=model), 6)
    (tmp_path / "p.txt").write_text("Short.\nShort too.\n")
    assert len(capture.load_prompts(["p.txt"], tmp_path, side(model=model), 6)) == 2


def test_every_row_of_a_batch_begins_with_one_bos(tmp_path):
    """The first ids that are not padding, in every row: a look at row 0 alone would be a look at the longest prompt."""
    model = fresh("llama", "sdpa")
    bos, whole, rest = model.tokenizer.bos_token_id, [], []

    def look(_module, _args, kwargs):
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        if ids.shape == mask.shape:
            whole.extend(row[m.bool()].tolist() for row, m in zip(ids, mask, strict=True))
        elif ids.shape[1] > 1:  # what is left of prompts behind their common beginning
            rest.extend(next(i for i in row if i) for row in ids.tolist())  # the first one that is not padding

    assert model.hooks
    model.model.model.register_forward_pre_hook(look, with_kwargs=True)
    base = side(model=model)
    samples = live(base, tmp_path, 1, batch_size=4)
    assert len(whole) == 1 and whole[0][0] == bos and whole[0].count(bos) == 1 and rest and bos not in rest
    whole.clear()
    rest.clear()
    captured.capture_replay(base, [s.sequence for s in samples], probe_of(model), tmp_path)
    assert len(whole) == 1 and whole[0][0] == bos and whole[0].count(bos) == 1 and rest and bos not in rest


# --------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("convention", ["own", "producer"])
def test_tables_line_up_with_the_rows(tmp_path, convention):
    base = side()
    samples, probe = live(base, tmp_path), probe_of()
    table = capture.token_table(samples, PROMPTS, base.model, convention)
    scale = null_scale(base, samples, tmp_path)
    capture.write_rows(tmp_path, samples, probe, convention, scale)
    held = capture.read_rows(tmp_path)
    with safe_open(tmp_path / "projections.safetensors", "np") as file:
        assert file.metadata()["read"] == "after the side's own edits" and set(file.keys()) == {"projection", "norm"}
    projection, norm = held.projection, held.norm
    assert projection.shape == (len(table), 4, 2, 2) and norm.shape == (len(table), 4, 2)
    assert (held.traits, held.layers) == (["warm", "terse"], [0, 1, 2, 3])
    with pytest.raises(DriftbookError, match=r"nowhere/projections\.safetensors: cannot be read .* run"):
        capture.read_rows(tmp_path / "nowhere")
    assert (held.sites, held.convention) == (["resid_pre", "resid_post"], convention)
    np.testing.assert_allclose(held.centred[5], projection[5] - scale.mean, rtol=1e-5)
    np.testing.assert_allclose(held.score[5], (projection[5] - scale.mean) / scale.sd[..., None], rtol=1e-4)
    assert np.nanmax(np.abs(held.cosine)) <= 1 + 1e-5
    for name in ("mean", "sd", "low", "high"):
        np.testing.assert_allclose(getattr(held.scale, name), getattr(scale, name), rtol=1e-6)
    np.testing.assert_allclose(held.cosine[4, 1, 0] * norm[4, 1, 0], projection[4, 1, 0], rtol=1e-5)
    assert set(table.convention) == {convention}
    at = 0
    for s in samples:
        rows = table.iloc[at : at + len(s.sequence)]
        assert set(rows["sample"]) == {s.sample_id} and rows.token.tolist() == list(s.sequence.ids)
        assert rows.position.tolist() == list(range(len(s.sequence)))
        assert set(rows.prompt_id) == {PROMPTS[s.prompt].prompt_id} and set(rows.finished) == {s.finish_reason == "eos"}
        assert (rows.role == "response").tolist() == [i >= len(s.sequence.prompt_ids) for i in range(len(rows))]
        own = probe.grid(s.rows.projection)
        if convention == "own":
            np.testing.assert_array_equal(projection[at : at + len(rows)], own)
        else:
            assert np.isnan(projection[at]).all()
            np.testing.assert_array_equal(projection[at + 1 : at + len(rows)], own[:-1])
        at += len(rows)
    assert at == len(table)


def test_roles_tell_the_users_words_from_the_template():
    base = side()
    for p in PROMPTS:
        ids = base.encode(p)
        roles = prompt_roles(base.model, ids, p.text)
        words = base.model.tokenizer.decode([i for i, r in zip(ids, roles, strict=True) if r == "prompt"])
        assert p.text in words and len(words) <= len(p.text) + 6
        assert roles[0] == roles[-1] == "template" and set(roles) == {"prompt", "template"}


# ---------------------------------------------------------------------------------------------------------------- scale


def null_rows(base: Side, samples, tmp_path):
    return capture.read_null(base, samples, capture.null_probe(VECTORS, probe_of(base.model)), tmp_path)


def null_scale(base: Side, samples, tmp_path) -> capture.Scale:
    probe = probe_of(base.model)
    return capture.make_scale(samples, probe, null_rows(base, samples, tmp_path))


def test_scores_are_in_units_of_the_null(tmp_path):
    base = side()
    samples, probe = live(base, tmp_path), probe_of()
    scale = null_scale(base, samples, tmp_path)
    responses = np.concatenate([probe.grid(s.rows.projection[s.response]) for s in samples])
    np.testing.assert_allclose(scale.score(responses).mean(0), 0, atol=1e-4)
    # Brute force at one point: the null directions on the response tokens of the first samples.
    values = np.concatenate(
        [
            hidden_states(base.model, s.sequence.ids)[1][s.response] @ VECTORS.null[:, 1, 0].T
            for s in samples
            if s.sample == 0
        ]
    )
    centred = values - values.mean(0)
    assert scale.sd[1, 0] == pytest.approx(centred.std(), rel=1e-3)
    low, high = np.quantile(centred / centred.std(), [0.025, 0.975])
    assert (scale.low[1, 0], scale.high[1, 0]) == (pytest.approx(low, abs=1e-2), pytest.approx(high, abs=1e-2))
    assert (scale.low < -1).all() and (scale.high > 1).all()


def test_every_prompt_counts_once_however_many_tokens_its_answers_have(tmp_path):
    """Means over response tokens, then over answers; a prompt that was answered with nothing has no mean."""
    samples, probe = live(side(), tmp_path, 3), probe_of()
    empty = dataclasses.replace(
        samples[0], prompt=4, sequence=dataclasses.replace(samples[0].sequence, response_ids=())
    )
    means = capture._means([*samples, empty], probe, 5)
    found = prompt_means(means, (4, 2, 2))
    for p in range(4):
        mine = [s for s in samples if s.prompt == p and s.sequence.response_ids]
        expected = np.mean([probe.grid(s.rows.projection[len(s.sequence.prompt_ids) :]).mean(0) for s in mine], 0)
        np.testing.assert_allclose(found[p], expected, rtol=1e-5)
    assert np.isnan(found[4]).all()


# ---------------------------------------------------------------------------------------------------------------- shift


def test_a_planted_shift_is_found_where_it_was_planted(tmp_path):
    """Steering at block 2's output: on the same tokens nothing at all moves before it, and from there on the trait."""
    pair = steered_pair()
    base, own, probe = live(pair.base, tmp_path), live(pair.intervention, tmp_path), probe_of()
    scale = null_scale(pair.base, base, tmp_path)
    same = capture.same_tokens(pair, base, PROMPTS, probe, tmp_path)
    assert [s.sequence.response_ids for s in same["intervention"]] == [s.sequence.response_ids for s in base]
    tables = capture.shift_tables(base, own, same, PROMPTS, scale, probe)
    table = tables.traits
    assert len(table) == 2 * 4 * 2 * 2 and (table.prompts == 4).all()
    assert ((table.low <= table["shift"]) & (table["shift"] <= table.high)).all()
    shift = table[table.comparison == "same_tokens"].set_index(["trait", "layer", "site"])
    for trait in ("warm", "terse"):
        for point in [(0, "resid_pre"), (0, "resid_post"), (1, "resid_pre"), (1, "resid_post"), (2, "resid_pre")]:
            assert shift.loc[(trait, *point), ["shift", "low", "high"]].eq(0).all()
    at = shift.loc["warm", LAYER, "resid_post"]
    expected = AMOUNT / scale.sd[LAYER, 1]
    assert at["shift"] == pytest.approx(expected, rel=1e-3) and at.low == pytest.approx(expected, rel=1e-3)
    for point in [(3, "resid_pre"), (3, "resid_post")]:
        assert shift.loc[("warm", *point), "low"] > 1
        assert shift.loc[("warm", *point), "shift"] > abs(shift.loc[("terse", *point), "shift"])
    own_text = table[table.comparison == "own_text"].set_index(["trait", "layer", "site"])
    assert own_text.loc[("warm", LAYER, "resid_post"), "low"] > 1
    chosen = capture.shift_at_chosen(table, VECTORS, "same_tokens")
    assert chosen.trait.iloc[0] == "warm" and "warm" in capture.moved(chosen).trait.tolist()
    assert "on the same tokens from layer 2 on" in report.answer(
        capture.shift_at_chosen(table, VECTORS, "own_text"), table
    )
    both = report.both_comparisons(table, VECTORS)
    assert both.label.tolist()[:2] == ["warm, own text", "warm, same tokens"] and len(both) == 4
    view = report.prompt_view(tables, PROMPTS, VECTORS, "warm", "same_tokens")
    assert set(view.text) == {p.text for p in PROMPTS} and view["shift"].is_monotonic_decreasing
    assert report.prompt_title(view) == "warm goes up on 4 of 4 prompts, 4 of them beyond the spread of their answers"
    # One by one: the same tokens move by the planted amount on every prompt, and every prompt's mean is the table's.
    one = tables.prompts[tables.prompts.comparison == "same_tokens"].set_index(["trait", "layer", "site"])
    at = one.loc[("warm", LAYER, "resid_post")]
    assert set(at.prompt_id) == {p.prompt_id for p in PROMPTS} and (at.answers == 2).all()
    np.testing.assert_allclose(at[["shift", "low", "high"]], expected, rtol=1e-3)
    names = ["comparison", "trait", "layer", "site"]
    one_by_one, whole = tables.prompts.groupby(names)["shift"].mean(), table.set_index(names)["shift"]
    np.testing.assert_allclose(one_by_one.sort_index(), whole.sort_index(), atol=1e-6)


def test_the_same_model_on_both_sides_shifts_by_exactly_nothing(tmp_path):
    pair = Pair(side(), side("intervention"), 1)
    base, probe = live(pair.base, tmp_path), probe_of()
    same = capture.same_tokens(pair, base, PROMPTS, probe, tmp_path)
    tables = capture.shift_tables(base, base, same, PROMPTS, null_scale(pair.base, base, tmp_path), probe)
    table = tables.traits
    assert (tables.prompts["shift"] == 0).all()
    assert (tables.prompts.loc[tables.prompts.comparison == "same_tokens", ["low", "high"]] == 0).all().all()
    assert (table[["shift", "low", "high"]] == 0).all().all()
    assert report.answer(capture.shift_at_chosen(table, VECTORS, "own_text"), table).startswith("No trait moved")
    one = capture.shift_at_chosen(table.assign(prompts=1, low=np.nan, high=np.nan, p=np.nan), VECTORS, "own_text")
    assert report.answer(one, table) == "One prompt cannot tell whether a trait moved: ask several."
    assert report.shift_title(one) == "One prompt cannot tell whether a trait moved"


def test_the_base_tokens_stand_after_the_prompt_as_each_side_gets_it(tmp_path):
    pair = Pair(side(), side("intervention", system="Speak of rain."), 1)
    base, probe = live(pair.base, tmp_path), probe_of()
    same = capture.same_tokens(pair, base, PROMPTS, probe, tmp_path)
    for b, s, t in zip(base, same["base"], same["intervention"], strict=True):
        assert s.sequence == b.sequence and s.sequence.response_ids == t.sequence.response_ids
        assert len(t.sequence.prompt_ids) > len(s.sequence.prompt_ids)
        h = hidden_states(pair.base.model, t.sequence.ids)
        expected = h[2][t.response] @ VECTORS.at("terse", "probe", 1, "resid_post")
        np.testing.assert_allclose(probe.grid(t.rows.projection[t.response])[:, 1, 1, 1], expected, atol=3e-4)
        np.testing.assert_allclose(s.rows.projection, b.rows.projection, atol=3e-4)


# ------------------------------------------------------------------------------------------------------------- dynamics


def test_dynamics_have_one_row_per_sample_and_trait_at_the_chosen_point(tmp_path):
    base = side()
    samples, probe = live(base, tmp_path), probe_of()
    scale = null_scale(base, samples, tmp_path)
    table = capture.dynamics_table(samples, PROMPTS, probe, scale, VECTORS)
    assert len(table) == 16 and set(table.layer) == {2} and set(table.site) == {"resid_post"}
    assert {"outside", "commits", "velocity", "persistence", "changes", "change_points"} <= set(table.columns)
    row = table[(table["sample"] == samples[3].sample_id) & (table.trait == "terse")].iloc[0]
    score = scale.score(probe.grid(samples[3].rows.projection[samples[3].response]))[:, 2, 1, 1]
    assert row["mean"] == pytest.approx(score.mean(), rel=1e-4) and row.tokens == len(samples[3].sequence.response_ids)


def test_the_dynamics_of_meaningless_directions_stand_beside_those_of_traits(tmp_path):
    pair = steered_pair()
    base, other, probe = live(pair.base, tmp_path), live(pair.intervention, tmp_path), probe_of()
    null, scale = null_rows(pair.base, base, tmp_path), null_scale(pair.base, base, tmp_path)
    found = capture.null_dynamics(null, PROMPTS, probe, scale, VECTORS, most=5)
    assert set(found.direction) == set(range(5)) and set(found.layer) == {2} and set(found.site) == {"resid_post"}
    assert len(found) == 5 * len(null)
    s, rows = null[1]
    every = np.concatenate([r.projection[a.response][:, 5, 3] for a, r in null])  # layer 2, the second of two sites
    score = (rows.projection[s.response][:, 5, 3] - every.mean()) / scale.sd[2, 1]
    mine = found[(found.direction == 3) & (found.prompt_id == PROMPTS[s.prompt].prompt_id)].iloc[0]
    assert mine["mean"] == pytest.approx(score.mean(), rel=1e-3)
    assert mine.outside == pytest.approx((np.abs(score) > 1.96).mean())
    moves, summary = capture.dynamics_tables(
        {"base": base, "intervention": other}, null, PROMPTS, probe, scale, VECTORS
    )
    assert len(moves) == 32 and set(moves.side) == {"base", "intervention"}
    warm = summary[summary.trait == "warm"].set_index("measure")
    assert warm.loc["mean", "change_low"] > 1 and warm.loc["mean", "intervention"] > warm.loc["mean", "null_high"]
    view = report.outside_view(summary).set_index("label")
    assert view.loc["warm, intervention", "share"] == warm.loc["outside", "intervention"]
    assert view.beyond["warm, intervention"] and "warm leaves the null band on" in report.outside_title(summary)
    read = report.dynamics_view(summary)
    assert set(read.measure) == set(MEASURES.values()) and len(read) == len(summary)
    assert " to " in read["null directions"].iloc[0] and read.change.equals(summary.change)
    assert warm.loc["outside", "null_low"] < warm.loc["outside", "null_high"] < warm.loc["outside", "intervention"]


def test_the_trace_explorer_holds_the_scores_of_first_samples(tmp_path):
    pair = steered_pair()
    base, other, probe = live(pair.base, tmp_path), live(pair.intervention, tmp_path), probe_of()
    scale = null_scale(pair.base, base, tmp_path)
    data = report.explorer_data(pair, base, other, PROMPTS, probe, scale, "resid_post")
    assert data["samples"] == [p.text for p in PROMPTS] and data["traits"] == ["warm", "terse"]
    for name, samples in (("base", base), ("intervention", other)):
        block = data["projections"][name]
        assert block.shape[:3] == (4, 4, 2)
        for row, s in enumerate(s for s in samples if s.sample == 0):
            n = len(s.sequence.response_ids)
            score = scale.score(probe.grid(s.rows.projection[s.response]))
            np.testing.assert_allclose(block[row, 3, 1, :n], score[:, 3, 1, 1], rtol=1e-5)
            assert np.isnan(block[row, :, :, n:]).all() and len(data["tokens"][name][row]) == n
    heat = report.heatmap_data(other, PROMPTS, probe, scale, "resid_post", "warm", pair.base.model, most=3)
    np.testing.assert_allclose(
        heat.values[0, 2], data["projections"]["intervention"][0, 2, 0, : heat.values.shape[2]], rtol=1e-5
    )

    wide = report.heatmap_data(base, PROMPTS, probe, scale, "resid_post", "warm", pair.base.model)
    reach = report.shared_reach({"base": wide, "intervention": heat})
    every = np.abs(np.concatenate([h.values[np.isfinite(h.values)] for h in (wide, heat)]))
    assert (every <= reach).mean() == pytest.approx(0.99, abs=0.01)


# --------------------------------------------------------------------------------------------------------------- tier 3


def test_tier3_files_hold_what_the_blocks_computed(tmp_path):
    base = side(model=loaded("qwen3", "sdpa"))
    samples = live(base, tmp_path)[:3]
    paths = capture_tier3(base, samples, [1, 3], tmp_path / "internals", 10**9)
    assert [p.name for p in paths] == [f"base-{s.sample_id}.safetensors" for s in samples]
    for s, path in zip(samples, paths, strict=True):
        found = read_internals(path)
        with torch.no_grad(), capture_internals(base.model.hooks, [1, 3]) as expected:
            base.model.model(input_ids=torch.tensor([s.sequence.ids]), use_cache=False)
        assert found.keys() == expected.keys() == {1, 3}
        for layer, part in expected.items():
            assert found[layer].keys() == part.keys()
            for name, tensor in part.items():
                np.testing.assert_allclose(found[layer][name], tensor[0].numpy(), atol=1e-4)
        assert found[1]["pattern"].shape[-1] == len(s.sequence)
    assert hook_count(base.model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_tier3_are_known_before(tmp_path, dtype):
    """What is counted is what is written: float32, whatever the model computes in."""
    base = side(model=fresh("gpt2", "sdpa", dtype))
    samples = live(base, tmp_path)[:4]
    need = tier3_bytes(base, [0, 2], [len(s.sequence) for s in samples])
    paths = capture_tier3(base, samples, [0, 2], tmp_path / "internals", need)
    written = sum(a.nbytes for p in paths for part in read_internals(p).values() for a in part.values())
    assert written == need
    with pytest.raises(BudgetError, match=r"over max_bytes .* choose fewer prompts or layers"):
        capture_tier3(base, samples, [0, 2], tmp_path / "refused", need - 1)
    assert not (tmp_path / "refused").exists()


def test_top_neurons_are_the_largest_over_the_response():
    neurons = np.zeros((6, 5), np.float32)
    neurons[0, 4] = 99  # in the prompt
    neurons[3:, 1], neurons[4, 2] = -2, 3
    top = top_neurons({"neurons": neurons}, slice(2, 6), 2)
    assert top.neuron.tolist() == [1, 2] and top["mean"].tolist() == [-1.5, 0.75] and top.peak_token.tolist() == [1, 2]


def test_tier3_of_both_sides_asks_for_captured_prompts(tmp_path):
    pair = steered_pair()
    base, other = live(pair.base, tmp_path), live(pair.intervention, tmp_path)
    (tmp_path / "some.txt").write_text("What is tea?\nWhy?\n")
    wanted = SimpleNamespace(prompts=["some.txt"], layers="auto", max_bytes=10**9)
    bars = []
    run = SimpleNamespace(
        section=SimpleNamespace(tier3=wanted, prompts=[]),
        params=SimpleNamespace(intervention=SimpleNamespace(about="terse")),
        root=tmp_path,
        data=tmp_path / "data",
        progress=lambda total, *a: (bars.append(total), SimpleNamespace(update=lambda n: None))[1],
    )
    shown = capture.tier3(run, pair, {"base": base, "intervention": other}, PROMPTS, VECTORS)
    assert bars == [8] and len(shown.paths) == 8
    assert {int(layer) for layer in shown.neurons.layer} == {2} and set(shown.neurons.side) == {"base", "intervention"}
    for inside, samples in zip(shown.inside, (base, other), strict=True):
        first = samples[0]
        n, said = len(first.sequence), len(first.sequence.response_ids)
        assert inside.prompt == "What is tea?" and (len(inside.tokens), len(inside.said)) == (n, said)
        assert inside.attention.shape == (6, said, n) and inside.attention.dtype == np.uint8
        assert (np.abs(inside.attention.sum(-1).astype(int) - 100) <= n / 2).all()  # rounded to whole percent
        held = read_internals(next(p for p in shown.paths if first.sample_id in p.name))[2]
        np.testing.assert_allclose(inside.reading, 100 * held["pattern"][:, first.response].mean(1), atol=0.51)
        np.testing.assert_array_equal(inside.firing, held["neurons"][first.response][:, inside.neurons.neuron].T)
        peaks = [inside.said[int(k)] for k in np.abs(inside.firing).argmax(1)]
        assert inside.neurons.peak_token.tolist() == peaks
        assert f"neuron {inside.neurons.neuron[0]} fires most" in report.neurons_title(inside)
        own = held["pattern"][:, first.response][:, :, first.response].sum(-1).mean(1)
        assert f"head {own.argmax()} reads the answer most" in report.heads_title(inside)
    wanted.max_bytes = 1000
    with pytest.raises(BudgetError, match=r"capture\.tier3"):
        capture.tier3(run, pair, {"base": base, "intervention": other}, PROMPTS, VECTORS)


def test_overview_counts(tmp_path):
    samples = live(side(), tmp_path)
    found = report.counts({"base": samples})
    tokens = sum(len(s.sequence.response_ids) for s in samples)
    assert found.iloc[0].to_dict() == {
        "side": "base",
        "answers": 8,
        "response_tokens": tokens,
        "ended_by_itself": sum(s.finish_reason == "eos" for s in samples),
        "rows": sum(len(s.sequence) for s in samples),
        "rows_dropped": round(sum(s.dropped for s in samples)),
    }
    metrics = capture.metrics(
        {"base": samples}, PROMPTS, steered_pair(), pd.DataFrame(columns=["trait", "low", "high", "p"])
    )
    assert metrics["tokens"] == tokens and metrics["samples"] == 8


def test_answers_that_are_all_empty_are_refused(tmp_path):
    samples = live(side(), tmp_path)
    silent = [dataclasses.replace(s, sequence=dataclasses.replace(s.sequence, response_ids=())) for s in samples]
    capture.check_answers({"base": [*silent[1:], samples[0]]})
    with pytest.raises(DriftbookError, match=r"all 8 answers of side base are empty.*chat template"):
        capture.check_answers({"base": silent})


def test_rows_after_an_end_are_dropped_and_counted(tmp_path):
    """Every step computes one row for each answer of its batch: what was computed is what is kept and what is not."""
    model = fresh("llama", "sdpa", eos=frozenset(range(5, 150)))  # a third of all tokens ends an answer
    computed = []

    class Counting(ProjectionTap):
        def after(self, frame):
            computed.append(len(frame.requests) if frame.step else 0)
            super().after(frame)

    base = side(model=model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "ProjectionTap", Counting)
        samples = live(base, tmp_path, 4, batch_size=8)
    kept = sum(len(s.sequence.response_ids) for s in samples)
    dropped = sum(s.dropped for s in samples)
    assert len({len(s.sequence.response_ids) for s in samples}) > 2 and dropped > 0
    assert kept + dropped == pytest.approx(sum(computed))
    again = live(base, tmp_path, 4, batch_size=8)
    assert sum(s.dropped for s in again) == pytest.approx(dropped)
    table = capture.sample_table(samples, PROMPTS)
    assert table.prompt_end.tolist() == [len(s.sequence.prompt_ids) for s in samples]
    assert table.response_tokens.sum() == kept and set(table.finish_reason) <= {"eos", "length"}
