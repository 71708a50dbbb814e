"""Live capture, replay and transformers' own hidden states must agree, row by row and token by token."""

import numpy as np
import pytest
import torch

from driftbook.errors import BudgetError
from driftbook.models.local import LocalEngine, Request, Tap
from driftbook.models.projection import PoolTap, ProjectionTap, Rows, all_points
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.models.sinks import Record
from models import fresh, generated, hidden_states, hook_count, loaded, replaced_forwards, requests_for, some_prompts

pytestmark = pytest.mark.numeric

# gpt_neox adds attention and MLP side by side: it has no resid_mid.
FAMILIES = [
    ("llama", "sdpa"),
    ("gpt2", "sdpa"),
    ("qwen3", "eager"),
    ("gemma2", "eager"),
    ("mistral", "eager"),
    ("gpt_neox", "sdpa"),
    ("olmo2", "eager"),
    ("qwen2", "sdpa"),
    ("gemma3_text", "eager"),
]
PROMPTS = [6, 2, 11, 1, 6]
PARAMS = SamplingParams(7, temperature=1.0, top_p=1.0)


def sites_of(model) -> list[str]:
    return [s for s in ("resid_pre", "resid_mid", "resid_post") if s in model.hooks.sites]


def some_vectors(points: int, d: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(points, d, count, generator=torch.Generator().manual_seed(seed)) * 5


def captured(model, requests, batch_size=3, params=PARAMS, keep_end: bool = True):
    """Live rows and sequences of every request."""
    points = all_points(model, sites_of(model))
    tap = ProjectionTap(points, some_vectors(len(points), model.hooks.d_model))
    found = generated(model, requests, params, batch_size, (tap,))
    sequences = [TokenSequence(r.prompt_ids, tuple(t)) for r, (t, _) in zip(requests, found, strict=True)]
    # An end token is drawn but never fed back: its state is not computed.
    lengths = [len(s) - (reason == "eos") for s, (_, reason) in zip(sequences, found, strict=True)]
    rows = tap.rows([r.prompt_ids for r in requests], [r.strength for r in requests], lengths)
    return (
        tap,
        rows,
        [TokenSequence(s.prompt_ids, s.ids[len(s.prompt_ids) : n]) for s, n in zip(sequences, lengths, strict=True)],
    )


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_live_is_replay_is_hidden_states(family, attention):
    model = loaded(family, attention)
    requests = requests_for(some_prompts(PROMPTS), samples=2)
    tap, live, sequences = captured(model, requests)
    list(replay(model, sequences, [tap]))
    replayed = tap.replayed(len(sequences))
    layers, sites = model.hooks.n_layers, sites_of(model)
    v = (tap.vectors / tap.vectors.norm(dim=1, keepdim=True)).numpy()
    for s, a, b in zip(sequences, live, replayed, strict=True):
        assert a.projection.shape == b.projection.shape == (len(s), layers * len(sites), 3)
        assert np.isfinite(a.projection).all() and np.isfinite(a.norm).all()
        np.testing.assert_allclose(a.projection, b.projection, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(a.norm, b.norm, atol=2e-4, rtol=1e-4)
        # hidden_states[l] is the input of block l; the last entry, after the final norm, is no resid_post.
        h = hidden_states(model, s.ids)
        for p, (layer, site) in enumerate(tap.points):
            if site == "resid_mid" or (site == "resid_post" and layer == layers - 1):
                continue
            state = h[layer + (site == "resid_post")]
            np.testing.assert_allclose(a.projection[:, p], state @ v[p], atol=3e-4, rtol=1e-3)
            np.testing.assert_allclose(a.norm[:, p], np.linalg.norm(state, axis=-1), atol=3e-4, rtol=1e-3)


def test_mid_and_last_block_are_those_of_a_recorded_forward():
    """The two points that ``hidden_states`` does not show, against the plain recorder of the hook points."""
    model = loaded("gemma2", "eager")
    tap, live, sequences = captured(model, requests_for(some_prompts(PROMPTS)))
    for s, rows in zip(sequences, live, strict=True):
        record = Record()
        with torch.no_grad(), model.hooks.capture(sites_of(model), sink=record):
            model.model(input_ids=torch.tensor([s.ids]), use_cache=False)
        for p, point in enumerate(tap.points):
            np.testing.assert_allclose(
                rows.projection[:, p], (record[point][0] @ tap.vectors[p]).numpy(), atol=3e-4, rtol=1e-3
            )


def test_rows_of_samples_that_share_a_prompt_differ_where_their_tokens_do():
    """The prompt's rows are shared, the response's are not: each must be its own text's, whatever the batch held."""
    model = loaded("llama", "sdpa")
    requests = requests_for(some_prompts([5, 5, 9]), samples=6)
    _, rows, sequences = captured(model, requests, batch_size=4)
    _, alone_rows, alone = captured(model, requests, batch_size=1)
    assert sequences == alone
    for i, (a, b) in enumerate(zip(rows, alone_rows, strict=True)):
        np.testing.assert_allclose(a.projection, b.projection, atol=2e-4)
        other = next(k for k in range(len(sequences)) if sequences[k].ids[:6] != sequences[i].ids[:6])
        m = min(len(sequences[i]), len(sequences[other]))
        assert np.abs(a.projection[:m] - rows[other].projection[:m]).max() > 0.1


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt2", "sdpa")])
def test_what_prompts_begin_with_alike_is_read_once_and_belongs_to_every_row(family, attention, monkeypatch):
    model = loaded(family, attention)
    begins = some_prompts([12], seed=5)[0]
    prompts = [begins + p for p in some_prompts([3, 1, 9, 4])]
    requests = [Request(p, seed) for seed, p in enumerate(prompts * 2)]
    computed = []
    frames = ProjectionTap.after

    def count(tap, frame):
        computed.append(0 if frame.step else len(frame.requests) * frame.width)
        frames(tap, frame)

    monkeypatch.setattr(ProjectionTap, "after", count)
    _, rows, sequences = captured(model, requests, batch_size=3)
    assert sum(computed) < 12 + 4 * 9 + 20  # the beginning once, and the rest of each prompt with its padding
    v = some_vectors(len(all_points(model, sites_of(model))), model.hooks.d_model)
    v = (v / v.norm(dim=1, keepdim=True)).numpy()
    for s, r in zip(sequences, rows, strict=True):
        h = hidden_states(model, s.ids)
        np.testing.assert_allclose(r.projection[:, 0], h[0] @ v[0], atol=3e-4, rtol=1e-3)
        np.testing.assert_allclose(r.norm[:, 0], np.linalg.norm(h[0], axis=-1), atol=3e-4, rtol=1e-3)
        later = len(sites_of(model)) * 2  # the input of block 2
        np.testing.assert_allclose(r.projection[:, later], h[2] @ v[later], atol=3e-4, rtol=1e-3)


def test_a_prompt_of_one_token_is_a_prompt():
    """Its prefill is one column wide, like a step; all its samples, and a replay of it alone, have their rows."""
    model = loaded("gpt2", "sdpa")
    tap, live, sequences = captured(model, requests_for([(9,), (31,)], samples=3), batch_size=6)
    for s, rows in zip(sequences, live, strict=True):
        h = hidden_states(model, s.ids)
        np.testing.assert_allclose(rows.norm[:, 0], np.linalg.norm(h[0], axis=-1), atol=1e-4)
    list(replay(model, [TokenSequence((9,), ()), TokenSequence((31,), ())], [tap]))
    for rows, s in zip(tap.replayed(2), (sequences[0], sequences[3]), strict=True):
        assert rows.projection.shape[0] == 1
        live_rows = live[sequences.index(s)]
        np.testing.assert_allclose(rows.projection[0], live_rows.projection[0], atol=1e-4)


def test_the_last_token_has_a_state_of_its_own():
    model = fresh("llama", "sdpa", eos=frozenset())
    _, rows, sequences = captured(model, requests_for(some_prompts(PROMPTS)))
    for s, r in zip(sequences, rows, strict=True):
        assert len(s.response_ids) == PARAMS.max_new_tokens and len(r.norm) == len(s)
        np.testing.assert_allclose(r.norm[-1, 0], np.linalg.norm(hidden_states(model, s.ids)[0][-1]), rtol=1e-4)


def test_no_row_is_wider_than_its_text_when_texts_end_early():
    model = fresh("llama", "sdpa", eos=frozenset(range(5, 150)))  # a third of all tokens ends a response
    requests = requests_for(some_prompts(PROMPTS), samples=4)
    _, rows, sequences = captured(model, requests, batch_size=3)
    assert len({len(s.response_ids) for s in sequences}) > 3
    for s, r in zip(sequences, rows, strict=True):
        assert len(r.norm) == len(s)
        np.testing.assert_allclose(r.norm[:, 0], np.linalg.norm(hidden_states(model, s.ids)[0], axis=-1), atol=2e-4)


def test_producer_rows_are_own_rows_one_later():
    own = Rows(np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.arange(8, dtype=np.float32).reshape(4, 2))
    producer = own.producer()
    assert np.isnan(producer.projection[0]).all() and np.isnan(producer.norm[0]).all()
    np.testing.assert_array_equal(producer.projection[1:], own.projection[:-1])
    np.testing.assert_array_equal(producer.norm[1:], own.norm[:-1])
    assert producer.projection.shape == own.projection.shape


@pytest.mark.parametrize("params", [SamplingParams(9, 0.0), SamplingParams(9, 1.0, 0.9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_tokens_are_the_same_with_capture_on_and_off(family, attention, params):
    model = loaded(family, attention)
    requests = requests_for(some_prompts(PROMPTS), samples=3)
    points = all_points(model, sites_of(model))
    tap = ProjectionTap(points, some_vectors(len(points), model.hooks.d_model))
    assert generated(model, requests, params, 4, (tap,)) == generated(model, requests, params, 4)


def test_vectors_are_normalized_and_the_norm_is_not():
    model = loaded("llama", "sdpa")
    points = all_points(model, ["resid_post"])
    v = some_vectors(len(points), model.hooks.d_model, 2)
    rows = []
    for scale in (1.0, 37.0):
        tap = ProjectionTap(points, v * scale)
        list(replay(model, [TokenSequence((5, 6, 7), (8,))], [tap]))
        rows += tap.replayed(1)
    np.testing.assert_allclose(rows[0].projection, rows[1].projection, rtol=1e-5)
    np.testing.assert_array_equal(rows[0].norm, rows[1].norm)
    assert (np.abs(rows[0].projection) <= rows[0].norm[..., None] * (1 + 1e-5)).all()


def test_projections_are_summed_in_float32_whatever_the_model_computes_in():
    """A bfloat16 state times a vector, summed in bfloat16, is off by a hundredth; the rows are not."""
    model = fresh("llama", "sdpa", torch.bfloat16)
    tap, live, sequences = captured(model, requests_for(some_prompts(PROMPTS)))
    list(replay(model, sequences, [tap]))
    replayed = tap.replayed(len(sequences))
    for s, a, b in zip(sequences, live, replayed, strict=True):
        record = Record()
        with torch.no_grad(), model.hooks.capture(sites_of(model), sink=record):
            list(replay(model, [s]))
        list(replay(model, [s], [tap]))
        (alone,) = tap.replayed(1)
        for p, point in enumerate(tap.points):
            assert record[point].dtype == torch.bfloat16
            exact = record[point][0].double() @ tap.vectors[p].double()
            np.testing.assert_allclose(alone.projection[:, p], exact, atol=1e-5)
        # Live rows come from other batch shapes, where bfloat16 rounds otherwise: close, never the same.
        for rows in (a, b):
            off = np.abs(rows.projection - alone.projection).max(-1) / alone.norm
            assert off.max() < 0.1 and rows.projection.dtype == np.float32


def test_a_selection_of_points_reads_only_those_points():
    model = loaded("llama", "sdpa")
    points = [(2, "resid_post"), (0, "resid_pre"), (3, "resid_mid")]  # not a cross product, and not in order
    v = some_vectors(3, model.hooks.d_model, 1)
    tap, record = ProjectionTap(points, v), Record()
    with model.hooks.capture(sink=record):
        list(replay(model, [TokenSequence((5, 6), (7,))], [tap]))
    (rows,) = tap.replayed(1)
    for p, point in enumerate(points):
        np.testing.assert_allclose(rows.projection[:, p], (record[point][0] @ tap.vectors[p]).numpy(), atol=1e-4)


def test_a_capture_that_is_too_large_is_refused():
    tap = ProjectionTap([(0, "resid_post"), (1, "resid_post")], torch.randn(2, 8, 5), max_bytes=4800)
    assert tap.bytes_per_token() == 2 * 6 * 4
    tap.check_budget(100)
    with pytest.raises(BudgetError, match="101 tokens at 2 points on 5 vectors"):
        tap.check_budget(101)


def test_no_hooks_are_left_after_an_exception():
    model = fresh()

    class Fails(Tap):
        def after(self, frame):
            if frame.step:
                raise RuntimeError("in a step")

    points = all_points(model, ["resid_post"])
    tap = ProjectionTap(points, some_vectors(len(points), model.hooks.d_model))
    with pytest.raises(RuntimeError, match="in a step"):
        generated(model, requests_for(some_prompts([4, 6])), PARAMS, taps=(tap, Fails()))
    assert hook_count(model) == 0 and replaced_forwards(model) == 0


def test_a_batch_that_ran_out_of_memory_leaves_no_false_rows():
    class OutOfMemory(Tap):
        failed = False

        def before(self, frame):
            if frame.step and len(frame.requests) > 3 and int(frame.lengths.max()) > 13 and not self.failed:
                self.failed = True
                raise torch.OutOfMemoryError("simulated")

    model = loaded("llama", "sdpa")
    requests = requests_for(some_prompts(PROMPTS), samples=2)
    points = all_points(model, ["resid_post"])
    tap, oom = ProjectionTap(points, some_vectors(len(points), model.hooks.d_model)), OutOfMemory()
    found = generated(model, requests, PARAMS, 8, (oom, tap))
    lengths = [len(r.prompt_ids) + len(t) - (why == "eos") for r, (t, why) in zip(requests, found, strict=True)]
    rows = tap.rows([r.prompt_ids for r in requests], [r.strength for r in requests], lengths)
    assert oom.failed
    for r, (tokens, _), n, got in zip(requests, found, lengths, rows, strict=True):
        h = hidden_states(model, (*r.prompt_ids, *tokens)[:n])
        np.testing.assert_allclose(got.norm[:, 0], np.linalg.norm(h[1], axis=-1), atol=2e-4)


# -------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ("response_avg", lambda p, n: range(p, n)),
        ("response_first_3", lambda p, n: range(p, min(p + 3, n))),
        ("response_last", lambda p, n: [n - 1]),
        ("prompt_last", lambda p, n: [p - 1]),
    ],
)
def test_pooled_windows_are_the_mean_of_their_tokens(window, inside):
    model = loaded("qwen3", "eager")
    sequences = [
        TokenSequence(p, r) for p, r in zip(some_prompts([4, 9, 1, 6]), some_prompts([8, 2, 5, 1], 3), strict=True)
    ]
    points = all_points(model, ["resid_pre", "resid_post"])
    tap = PoolTap(points, len(sequences), model.hooks.d_model, window)
    list(replay(model, sequences, [tap], max_tokens=30))
    for i, s in enumerate(sequences):
        h = hidden_states(model, s.ids)
        chosen = list(inside(len(s.prompt_ids), len(s)))
        for p, (layer, site) in enumerate(points):
            if site == "resid_post" and layer == model.hooks.n_layers - 1:
                continue
            expected = h[layer + (site == "resid_post")][chosen].mean(0)
            np.testing.assert_allclose(tap.states[i, p], expected, atol=2e-4)


def test_engine_and_tap_take_any_mix_of_strengths():
    """Rows that share a prompt but not a strength have prompt rows of their own."""
    model = loaded("llama", "sdpa")
    (prompt,) = some_prompts([6])
    requests = [Request(prompt, 1, s) for s in (0.0, 1.0, 1.0, 2.0)]

    class Scale(Tap):
        def attach(self, model):
            return model.hooks.edit(0, "resid_post", lambda h: h * self.factor)

        def before(self, frame):
            self.factor = 1 + frame.strengths[:, None, None]

    points = [(0, "resid_post")]
    tap, engine = ProjectionTap(points, some_vectors(1, model.hooks.d_model)), LocalEngine(model, 3)
    done = {c.index: c for c in engine.generate(requests, PARAMS, [Scale(), tap])}
    rows = tap.rows([prompt] * 4, [r.strength for r in requests], [len(prompt)] * 4)
    assert len(done) == 4
    plain = np.linalg.norm(hidden_states(model, prompt)[1], axis=-1)
    for r, got in zip(requests, rows, strict=True):
        np.testing.assert_allclose(got.norm[:, 0], plain * (1 + r.strength), rtol=1e-3)
