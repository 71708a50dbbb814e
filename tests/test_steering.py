"""Steering and ablation against edits that are written into the model itself."""

import numpy as np
import pytest
import torch

from driftbook.errors import ModelError
from driftbook.models.local import LocalEngine, Request, Tap
from driftbook.models.projection import ProjectionTap
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.models.steering import AblateTap, SteerTap, attached
from models import fresh, generated, hook_count, loaded, requests_for, some_prompts

pytestmark = pytest.mark.numeric

LAYER = 1
SEQUENCES = [
    TokenSequence((5, 9, 30), (41, 77)),
    TokenSequence((50, 60, 70, 80, 90, 100), (8,)),
    TokenSequence((7,), (11, 12)),
]


def vector(d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed)) * 4


def logits_of(model, sequences, taps=()) -> list[np.ndarray]:
    out = [np.empty(0)] * len(sequences)
    for batch, logits in replay(model, sequences, taps, logits=True):
        for row, i in enumerate(batch):
            out[i] = logits[row, -len(sequences[i].response_ids) - 1 :].numpy()
    return out


class Biased(torch.nn.Module):
    """A block whose output has a constant added: the steered model as an ordinary checkpoint."""

    def __init__(self, block, bias):
        super().__init__()
        self.block, self.bias = block, bias

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args, **kwargs):
        out = self.block(*args, **kwargs)
        return (out[0] + self.bias, *out[1:]) if isinstance(out, tuple) else out + self.bias


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("gpt2", "sdpa"), ("gemma2", "eager"), ("gpt_neox", "eager")]
)
def test_steering_is_a_bias_at_the_block_output(family, attention):
    model, written = loaded(family, attention), fresh(family, attention)
    v = vector(model.hooks.d_model)
    blocks = written.hooks.blocks
    blocks[LAYER] = Biased(blocks[LAYER], 3.0 * v / v.norm())
    steered = logits_of(model, SEQUENCES, [SteerTap(LAYER, "resid_post", v, 3.0)])
    expected, plain = logits_of(written, SEQUENCES), logits_of(model, SEQUENCES)
    for a, b, c in zip(steered, expected, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(a - c).max() > 0.05


def test_generation_under_steering_is_generation_of_the_written_model():
    model, written = loaded("llama", "sdpa"), fresh("llama", "sdpa")
    v = vector(model.hooks.d_model)
    written.hooks.blocks[LAYER] = Biased(written.hooks.blocks[LAYER], 2.0 * v / v.norm())
    requests, params = requests_for(some_prompts([4, 9, 2]), samples=3), SamplingParams(8, 1.0, 1.0)
    steered = generated(model, requests, params, 4, (SteerTap(LAYER, "resid_post", v, 2.0),))
    assert steered == generated(written, requests, params, 4)
    assert steered != generated(model, requests, params, 4)


def test_strengths_of_one_batch_are_those_of_runs_of_their_own():
    model, params = loaded("qwen3", "sdpa"), SamplingParams(8, 1.0, 1.0)
    v, prompts, strengths = vector(model.hooks.d_model), some_prompts([5, 5, 8]), (-1.5, 0.0, 0.5, 2.0)
    requests = [Request(p, k, s) for k, p in enumerate(prompts) for s in strengths]
    together = generated(model, requests, params, 5, (SteerTap(LAYER, "resid_post", v, 2.0),))
    for i, r in enumerate(requests):
        alone = (SteerTap(LAYER, "resid_post", v, 2.0 * r.strength),) if r.strength else ()
        assert together[i] == generated(model, [Request(r.prompt_ids, r.seed)], params, taps=alone)[0]
    assert len({tuple(t) for t, _ in together}) > len(prompts)


@pytest.mark.parametrize("positions", ["all", "response"])
def test_positions_that_are_not_meant_stay_exactly_as_they_were(positions):
    model = loaded("llama", "sdpa")
    v = vector(model.hooks.d_model)
    read = [(LAYER, "resid_post")]
    rows = []
    for taps in ([], [SteerTap(LAYER, "resid_post", v, 2.5, positions)]):
        tap = ProjectionTap(read, v[None, :, None])
        list(replay(model, SEQUENCES, [*taps, tap]))
        rows.append(tap.replayed(len(SEQUENCES)))
    for s, before, after in zip(SEQUENCES, *rows, strict=True):
        moved = (after.projection - before.projection)[:, 0, 0]  # a reader sees the stream after the edit
        n = len(s.prompt_ids)
        np.testing.assert_allclose(moved[n:], 2.5, atol=1e-4)
        if positions == "response":
            assert (moved[:n] == 0).all()
        else:
            np.testing.assert_allclose(moved[:n], 2.5, atol=1e-4)


def test_response_positions_in_generation_leave_the_first_token_alone():
    """The first token is predicted by the prompt's last state, which is not steered; the later ones are."""
    model, params = loaded("llama", "sdpa"), SamplingParams(6, 0.0)
    v = vector(model.hooks.d_model, 3)
    seen: list[tuple[bool, float]] = []

    class Watch(Tap):
        def attach(self, model):
            return model.hooks.capture(["resid_post"], [LAYER], sink=self.read)

        def before(self, frame):
            self.frame = frame

        def read(self, layer, site, h):
            seen.append((self.frame.step, float((h[0, -1] @ v) / v.norm())))

    requests = requests_for(some_prompts([5]))
    plain = generated(model, requests, params, taps=(Watch(),))[0][0]
    before, seen[:] = list(seen), []
    steered = generated(model, requests, params, taps=(SteerTap(LAYER, "resid_post", v, 40.0, "response"), Watch()))[0][
        0
    ]
    assert steered[0] == plain[0] and steered != plain
    assert seen[0] == before[0] and not seen[0][0]
    assert all(step and along > 25 for step, along in seen[1:])


@pytest.mark.parametrize(("family", "site"), [("llama", "resid_post"), ("llama", "resid_mid"), ("gemma2", "resid_pre")])
def test_ablation_removes_the_component_and_nothing_else(family, site):
    model = loaded(family)
    d, n = model.hooks.d_model, model.hooks.n_layers
    removed = {layer: vector(d, layer) for layer in range(n)}
    other = vector(d, 99)
    points = [(layer, site) for layer in range(n)]
    matrix = torch.stack([torch.stack([removed[layer], other], -1) for layer in range(n)])
    tap = ProjectionTap(points, matrix)
    list(replay(model, SEQUENCES, [AblateTap(site, removed), tap]))
    rows = tap.replayed(len(SEQUENCES))
    for r in rows:
        assert (np.abs(r.projection[..., 0]) < 1e-5 * r.norm).all()
        assert np.abs(r.projection[..., 1]).max() > 0.1
    tap = ProjectionTap(points[:1], matrix[:1])
    list(replay(model, SEQUENCES, [tap]))
    plain = tap.replayed(len(SEQUENCES))
    list(replay(model, SEQUENCES, [AblateTap(site, {0: removed[0]}), tap]))
    for a, b in zip(tap.replayed(len(SEQUENCES)), plain, strict=True):
        # |h|^2 loses the square of what was removed, at the first layer, where nothing before it changed.
        np.testing.assert_allclose(
            a.norm[:, 0] ** 2, b.norm[:, 0] ** 2 - b.projection[:, 0, 0] ** 2, rtol=1e-3, atol=1e-4
        )


def test_ablation_goes_by_row_strength():
    model = loaded("llama", "sdpa")
    v = vector(model.hooks.d_model)
    (prompt,) = some_prompts([6])
    requests = [Request(prompt, 1, s) for s in (0.0, 0.5, 1.0)]
    tap = ProjectionTap([(LAYER, "resid_post")], v[None, :, None])
    done = sorted(
        LocalEngine(model, 3).generate(requests, SamplingParams(5, 0.0), [AblateTap("resid_post", {LAYER: v}), tap]),
        key=lambda c: c.index,
    )
    assert done[0].token_ids == generated(model, requests[:1], SamplingParams(5, 0.0))[0][0]
    rows = tap.rows([prompt] * 3, [r.strength for r in requests], [len(prompt) + len(c.token_ids) for c in done])
    n = len(prompt)
    np.testing.assert_allclose(rows[1].projection[:n], rows[0].projection[:n] / 2, atol=1e-4)
    np.testing.assert_allclose(rows[2].projection, 0, atol=1e-4)


def test_taps_compose_in_their_order_and_are_removed():
    model = fresh()
    d = model.hooks.d_model
    a, b = vector(d, 1), vector(d, 2)
    both = logits_of(model, SEQUENCES, [SteerTap(1, "resid_post", a, 1.0), SteerTap(1, "resid_post", b, 2.0)])
    one = logits_of(
        model,
        SEQUENCES,
        [SteerTap(1, "resid_post", a / a.norm() + 2 * b / b.norm(), float((a / a.norm() + 2 * b / b.norm()).norm()))],
    )
    for x, y in zip(both, one, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)
    with (
        pytest.raises(RuntimeError, match="inside"),
        attached(model, [SteerTap(1, "resid_post", a, 1.0), AblateTap("resid_mid", {0: b})]),
    ):
        raise RuntimeError("inside")
    assert hook_count(model) == 0


def test_a_layer_or_site_that_is_not_there_is_refused():
    model = loaded("gpt_neox")
    v = vector(model.hooks.d_model)
    with pytest.raises(ModelError, match="layer 4: the model has 4 blocks"):
        logits_of(model, SEQUENCES, [SteerTap(4, "resid_post", v, 1.0)])
    with pytest.raises(ModelError, match="resid_mid"):
        logits_of(model, SEQUENCES, [SteerTap(0, "resid_mid", v, 1.0)])
