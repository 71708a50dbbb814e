"""Exact divergence against scipy over full distributions."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax
from scipy.stats import entropy
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from driftbook.errors import ModelError
from driftbook.models.divergence import js, kl, token_divergence
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import Pair, Side
from driftbook.models.steering import SteerTap
from models import fresh, full_logits, loaded, some_prompts

pytestmark = pytest.mark.numeric


def pair_of(a, b, **options) -> Pair:
    return Pair(Side("base", a, a.key), Side("intervention", b, b.key + "x", **options), 2)


def some_sequences() -> list[TokenSequence]:
    prompts, responses = some_prompts([3, 8, 5, 12, 1]), some_prompts([6, 2, 9, 1, 4], 7)
    return [TokenSequence(p, r) for p, r in zip(prompts, responses, strict=True)]


def brute_force(a, b, s: TokenSequence, t: TokenSequence | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Row t: between the distributions that response token t was drawn from."""
    t = s if t is None else t
    n = len(s.response_ids)
    p = np.exp(log_softmax(full_logits(a, s), -1))[-n - 1 : -1]
    q = np.exp(log_softmax(full_logits(b, t), -1))[-n - 1 : -1]
    return entropy(p, q, axis=-1), jensenshannon(p, q, axis=-1) ** 2


@pytest.mark.parametrize("max_tokens", [1, 30, 3072])
def test_divergence_is_that_of_the_full_distributions(max_tokens):
    a, b = loaded("llama", "sdpa"), loaded("llama", "sdpa", seed=1)
    sequences, told = some_sequences(), []
    found = token_divergence(pair_of(a, b), sequences, sequences, max_tokens, told.append)
    assert sum(told) == len(sequences)
    for s, f in zip(sequences, found, strict=True):
        expected_kl, expected_js = brute_force(a, b, s)
        np.testing.assert_allclose(f["kl"], expected_kl, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(f["js"], expected_js, rtol=1e-3, atol=1e-5)
        assert (f["kl"] > 0).all() and (f["js"] <= np.log(2)).all()


def test_each_side_reads_the_response_after_its_own_prompt():
    a, b = loaded("gpt2", "sdpa"), loaded("gpt2", "sdpa", seed=1)
    base = some_sequences()
    other = [TokenSequence((9, 8, 7, *s.prompt_ids), s.response_ids) for s in base]
    for s, t, f in zip(base, other, token_divergence(pair_of(a, b), base, other), strict=True):
        expected_kl, expected_js = brute_force(a, b, s, t)
        np.testing.assert_allclose(f["kl"], expected_kl, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(f["js"], expected_js, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("gemma3_text", "sdpa"), ("mistral", "eager")]
)
def test_what_prompts_begin_with_is_read_once(family, attention):
    """A head longer than the short windows; each side has its own, since a side may have its own system prompt."""
    a, b = fresh(family, attention), fresh(family, attention, seed=1)
    (head, other), rests = some_prompts([11, 8], 5), some_sequences()
    base = [TokenSequence(head + s.prompt_ids, s.response_ids) for s in rests]
    changed = [TokenSequence(other + s.prompt_ids, s.response_ids) for s in rests]
    expected = [brute_force(a, b, s, t) for s, t in zip(base, changed, strict=True)]
    read: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    for name, model in (("a", a), ("b", b)):
        model.model.get_input_embeddings().register_forward_pre_hook(
            lambda _m, args, seen=read[name]: seen.append(tuple(args[0].shape))
        )
    found = token_divergence(pair_of(a, b), base, changed)
    assert read == {"a": [(1, 11), (5, 14)], "b": [(1, 8), (5, 14)]}
    for f, (kl_, js_) in zip(found, expected, strict=True):
        np.testing.assert_allclose(f["kl"], kl_, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(f["js"], js_, rtol=1e-3, atol=1e-5)


def test_the_same_model_diverges_by_exactly_nothing():
    model = loaded("llama", "sdpa")
    for f in token_divergence(pair_of(model, model), some_sequences(), some_sequences(), max_tokens=30):
        assert (f["kl"] == 0).all() and (f["js"] == 0).all()


def test_taps_of_a_side_are_at_work():
    model = loaded("llama", "sdpa")
    v = torch.ones(model.hooks.d_model)
    sizes = []
    for amount in (0.0, 0.5, 2.0):
        pair = pair_of(model, model, taps=(SteerTap(1, "resid_post", v, amount),))
        sizes.append(np.mean([f["js"].mean() for f in token_divergence(pair, some_sequences(), some_sequences())]))
    assert sizes[0] < 1e-9 < sizes[1] < sizes[2]


def test_limits_of_the_two_measures():
    p = torch.log(torch.tensor([[0.5, 0.5, 1e-30], [1 - 1e-7, 5e-8, 5e-8]]))
    q = torch.log(torch.tensor([[1e-30, 1e-30, 1.0], [1 - 1e-7, 5e-8, 5e-8]]))
    assert js(p, q)[0] == pytest.approx(np.log(2), rel=1e-5) and js(q, p)[0] == pytest.approx(float(js(p, q)[0]))
    assert kl(p, q)[0] > 30
    assert (kl(p, p) == 0).all() and js(p, q)[1] == 0
    logits = torch.randn(500, 300, generator=torch.Generator().manual_seed(0)) * 1e-3
    nudged = torch.log_softmax(logits + 1e-6, -1)  # rounding must not give a negative divergence
    assert (kl(torch.log_softmax(logits, -1), nudged) >= 0).all()


def test_sides_with_different_tokenizers_are_refused():
    a, b = loaded("llama", "sdpa"), copy.copy(fresh("llama", "sdpa"))
    b.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])))
    pair = pair_of(a, b)
    assert not pair.same_tokenizer()
    with pytest.raises(ModelError, match="different tokenizers"):
        token_divergence(pair, some_sequences(), some_sequences())
