"""The gradient of an answer's likelihood, against what steering does to it and against autograd by hand."""

import numpy as np
import pytest
import torch

from driftbook.errors import ModelError
from driftbook.models import directions
from driftbook.models.doses import mean_log_likelihood
from driftbook.models.gradients import likelihood_gradients
from driftbook.models.replay import TokenSequence
from driftbook.models.steering import SteerTap
from models import fresh, full_logits, hook_count, loaded, some_prompts

pytestmark = pytest.mark.numeric

SEQUENCES = [
    TokenSequence((5, 9, 30), (41, 77, 12, 60)),
    TokenSequence((50, 60, 70, 80, 90, 100), (8,)),
    TokenSequence((7,), (11, 12)),
]


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt2", "eager")])
def test_it_is_the_slope_of_the_likelihood_under_steering(family, attention):
    """Central differences along a random direction, through the steering code, at every site of a layer."""
    model = loaded(family, attention)
    points = [(layer, site) for layer in (0, 2) for site in ("resid_pre", "resid_mid", "resid_post")]
    gradients = likelihood_gradients(model, SEQUENCES, points, max_tokens=24)  # two batches, and padding
    assert gradients.shape == (3, 6, model.hooks.d_model) and gradients.dtype == np.float32
    step = 2e-2
    for p, (layer, site) in enumerate(points):
        v = torch.randn(model.hooks.d_model, generator=torch.Generator().manual_seed(p))
        up, down = (
            mean_log_likelihood(model, SEQUENCES, [SteerTap(layer, site, v, sign * step)]) for sign in (1.0, -1.0)
        )
        slope = (up - down) / (2 * step)
        np.testing.assert_allclose(gradients[:, p] @ (v / v.norm()).numpy(), slope, atol=3e-3, rtol=3e-2)
        assert np.abs(slope).max() > 0.02


def test_it_is_autograd_by_hand_over_one_row():
    """One sequence alone, one vector of a plain forward hook, no batching and no padding."""
    model, layer = fresh("llama", "sdpa"), 1
    found = likelihood_gradients(model, SEQUENCES, [(layer, "resid_post"), (layer + 1, "resid_pre")])
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)  # the same place in the stream
    for row, s in enumerate(SEQUENCES):
        v = torch.zeros(model.hooks.d_model, requires_grad=True)
        handle = model.hooks.blocks[layer].register_forward_hook(lambda m, a, out, v=v: out + v)
        with torch.enable_grad():
            logits = model.model(input_ids=torch.tensor([list(s.ids)]), use_cache=False).logits[0]
            logp = torch.log_softmax(logits, -1)
            n = len(s.prompt_ids)
            value = sum(logp[n - 1 + t, token] for t, token in enumerate(s.response_ids)) / len(s.response_ids)
            (expected,) = torch.autograd.grad(value, v)
        handle.remove()
        np.testing.assert_allclose(found[row, 0], expected.numpy(), atol=1e-5, rtol=1e-4)


def test_a_step_along_it_prefers_the_positive_answers_of_other_prompts_too():
    """What the method is for: answers to random prompts share nothing but one token, and are preferred for it."""
    model, rng = loaded("llama", "sdpa"), np.random.default_rng(0)
    prompts = some_prompts([6] * 24)
    wanted, other = 100, 200
    sequences = []
    for prompt in prompts:
        filler = [int(t) for t in rng.integers(5, 300, 3)]
        sequences += [TokenSequence(prompt, (token, *filler)) for token in (wanted, other)]
    points = [(layer, "resid_post") for layer in range(model.hooks.n_layers)]
    gradients = likelihood_gradients(model, sequences, points)
    labels, scenarios = np.tile([1, 0], 24), np.repeat(np.arange(24), 2)
    learned = slice(0, 24)
    x = directions.rows(gradients[learned], "gradient")
    w, norms = directions.directions_of(x, labels[learned], scenarios[learned], "gradient")
    difference = gradients[learned][labels[learned] == 1].mean(0) - gradients[learned][labels[learned] == 0].mean(0)
    np.testing.assert_allclose(w * norms[:, None], difference, atol=1e-6)
    held = sequences[24:]
    for layer in (1, 3):
        tap = SteerTap(layer, "resid_post", torch.from_numpy(w[layer]), 1.0)
        plain, steered = mean_log_likelihood(model, held), mean_log_likelihood(model, held, [tap])
        gain = (steered - plain)[::2] - (steered - plain)[1::2]
        assert (gain > 0).mean() > 0.9


def test_the_model_is_left_as_it_was():
    model = fresh("llama", "sdpa")
    before = full_logits(model, SEQUENCES[0])
    likelihood_gradients(model, SEQUENCES, [(1, "resid_mid")])
    assert hook_count(model) == 0
    assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
    np.testing.assert_array_equal(full_logits(model, SEQUENCES[0]), before)


def test_bfloat16_is_close_and_float16_is_refused():
    points = [(2, "resid_post")]
    exact = likelihood_gradients(fresh("llama", "sdpa"), SEQUENCES, points)[:, 0]
    rough = likelihood_gradients(fresh("llama", "sdpa", torch.bfloat16), SEQUENCES, points)[:, 0]
    cosine = (exact * rough).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rough, axis=-1)
    assert cosine.min() > 0.98
    with pytest.raises(ModelError, match=r"underflow in float16; set base\.dtype"):
        likelihood_gradients(fresh("llama", "sdpa", torch.float16), SEQUENCES, points)
    with pytest.raises(ValueError, match="empty response"):
        likelihood_gradients(loaded("llama", "sdpa"), [TokenSequence((5,), ())], points)
