"""Forwards over tokens that exist already: batches, padding, and which logits belong to which token."""

import numpy as np
import pytest
import torch

from driftbook.errors import BudgetError
from driftbook.models.local import Tap
from driftbook.models.projection import PoolTap, ProjectionTap, all_points
from driftbook.models.replay import TokenSequence, buckets, replay
from models import fresh, full_logits, hidden_states, hook_count, loaded, replaced_forwards, some_prompts

pytestmark = pytest.mark.numeric

LENGTHS = [(3, 9), (12, 4), (1, 1), (7, 7), (20, 2), (5, 0)]


def some_sequences(lengths=LENGTHS, seed=1) -> list[TokenSequence]:
    prompts, responses = some_prompts([n for n, _ in lengths], seed), some_prompts([n for _, n in lengths], seed + 1)
    return [TokenSequence(p, r) for p, r in zip(prompts, responses, strict=True)]


def test_buckets_hold_everything_once_within_their_bounds():
    lengths = list(np.random.default_rng(0).integers(1, 60, 200))
    batches = list(buckets(lengths, max_tokens=256, max_rows=16))
    assert sorted(i for b in batches for i in b) == list(range(200))
    for b in batches:
        assert len(b) <= 16 and (len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 256)
        assert lengths[b[0]] == max(lengths[i] for i in b)
    assert list(buckets([], 10)) == []
    assert list(buckets([50, 3], max_tokens=10)) == [[0], [1]]  # longer than the bound: alone, not lost


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("gpt2", "sdpa"),
        ("gemma2", "eager"),
        ("mistral", "sdpa"),
        ("gpt_neox", "eager"),
        ("olmo2", "eager"),
    ],
)
@pytest.mark.parametrize("max_tokens", [1, 60, 8192])
def test_padded_rows_give_the_logits_of_single_rows(family, attention, max_tokens):
    model, sequences = loaded(family, attention), some_sequences()
    seen = []
    for batch, logits in replay(model, sequences, logits=True, max_tokens=max_tokens):
        for row, i in enumerate(batch):
            n = len(sequences[i].response_ids) + 1
            expected = full_logits(model, sequences[i])[-n:]
            np.testing.assert_allclose(logits[row, logits.shape[1] - n :].numpy(), expected, atol=2e-4)
            seen.append(i)
    assert sorted(seen) == list(range(len(sequences)))


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("gpt2", "sdpa"), ("gemma2", "eager"), ("olmo2", "eager")]
)
@pytest.mark.parametrize("max_tokens", [40, 8192])
def test_what_all_sequences_begin_with_is_computed_once_and_belongs_to_every_row(family, attention, max_tokens):
    model, head = loaded(family, attention), some_prompts([11], 9)[0]
    sequences = [TokenSequence(head + s.prompt_ids, s.response_ids) for s in some_sequences() if s.response_ids]
    points, widths = all_points(model, ["resid_pre", "resid_post"]), []
    vectors = torch.randn(len(points), model.hooks.d_model, 3)
    rows, pool = ProjectionTap(points, vectors), PoolTap(points, len(sequences), model.hooks.d_model, "response_avg")
    hook = model.model.get_input_embeddings().register_forward_hook(lambda m, a, out: widths.append(out.shape[1]))
    list(replay(model, sequences, [rows, pool], max_tokens=max_tokens))
    hook.remove()
    assert widths[0] >= len(head) and max(widths[1:]) + widths[0] <= max(map(len, sequences))
    for i, (s, found) in enumerate(zip(sequences, rows.replayed(len(sequences)), strict=True)):
        hidden = hidden_states(model, s.ids)
        for p, (layer, site) in enumerate(points):
            h = hidden[layer + (site == "resid_post")]
            unit = (vectors[p] / vectors[p].norm(dim=0)).numpy()
            if layer < model.hooks.n_layers - 1 or site == "resid_pre":  # the last one is normed in hidden_states
                np.testing.assert_allclose(found.projection[:, p], h @ unit, atol=2e-4)
                np.testing.assert_allclose(pool.states[i, p], h[len(s.prompt_ids) :].mean(0), atol=2e-4)


def test_without_logits_the_states_are_the_same_and_no_vocabulary_product_is_made():
    model, sequences = fresh("qwen3", "sdpa"), some_sequences()
    calls = []
    model.model.lm_head.register_forward_hook(lambda *a: calls.append(1))
    vectors = torch.randn(len(all_points(model, ["resid_post"])), model.hooks.d_model, 3)
    calls.clear()  # opening the hook points runs the whole model
    found = []
    for logits in (False, True):
        tap = ProjectionTap(all_points(model, ["resid_post"]), vectors)
        assert all((out is None) == (not logits) for _, out in replay(model, sequences, [tap], logits))
        found.append((tap.replayed(len(sequences)), len(calls)))
    assert found[0][1] == 0 < found[1][1]
    for a, b in zip(found[0][0], found[1][0], strict=True):
        np.testing.assert_array_equal(a.projection, b.projection)


def test_frames_say_where_the_response_begins():
    model, sequences = loaded("llama", "sdpa"), some_sequences()
    seen = {}

    class Watch(Tap):
        def before(self, frame):
            assert not frame.step
            for row, i in enumerate(frame.requests):
                t = frame.positions()[row]
                seen[i] = (
                    int((t >= 0).sum()),
                    int((t >= frame.prompt_lengths[row]).sum()),
                    float(frame.strengths[row]),
                )

    list(replay(model, [*sequences, TokenSequence((7, 8), (9,), strength=-2.0)], [Watch()], max_tokens=40))
    expected = {i: (len(s), len(s.response_ids), 1.0) for i, s in enumerate(sequences)}
    assert seen == expected | {len(sequences): (3, 1, -2.0)}


def test_the_states_of_a_row_are_its_own():
    """Wrong-sample check: every sequence's projection equals that of its own unpadded row."""
    model, sequences = loaded("llama", "sdpa"), some_sequences()
    points = all_points(model, ["resid_post"])
    v = torch.randn(len(points), model.hooks.d_model, 2)
    tap = ProjectionTap(points, v)
    list(replay(model, sequences, [tap]))
    for s, rows in zip(sequences, tap.replayed(len(sequences)), strict=True):
        h = hidden_states(model, s.ids)[2]  # output of block 1
        unit = (v[1] / v[1].norm(dim=0)).numpy()
        np.testing.assert_allclose(rows.projection[:, 1], h @ unit, atol=1e-4)


def test_a_sequence_beyond_the_context_is_refused_before_any_forward():
    model = fresh("llama", "sdpa", max_position_embeddings=10)
    called = []
    model.model.register_forward_pre_hook(lambda *a: called.append(1))
    with pytest.raises(BudgetError, match="11 tokens exceeds the context of 10"):
        list(replay(model, some_sequences([(2, 2), (6, 5)])))
    assert called == []
    assert list(replay(model, [])) == []


def test_nothing_stays_behind_after_an_exception():
    model = fresh()

    class Fails(Tap):
        def after(self, frame):
            raise RuntimeError("in a tap")

    tap = ProjectionTap(all_points(model, ["resid_post"]), torch.randn(4, model.hooks.d_model, 1))
    with pytest.raises(RuntimeError, match="in a tap"):
        list(replay(model, some_sequences(), [tap, Fails()]))
    assert hook_count(model) == 0 and replaced_forwards(model) == 0
