"""The engine's own loop against transformers' ``generate``, in fp32 on the CPU, where both agree to 1e-6."""

import itertools

import pytest
import torch

from driftbook.errors import BudgetError
from driftbook.models import local
from driftbook.models.local import LocalEngine, Request, Tap
from driftbook.models.sampling import SamplingParams, sample, uniforms
from driftbook.models.steering import SteerTap
from models import (
    GREEDY,
    fresh,
    full_logits,
    generated,
    hook_count,
    loaded,
    replaced_forwards,
    requests_for,
    some_prompts,
)

pytestmark = pytest.mark.numeric

# Short windows (6 tokens) that every text outgrows; gemma2 with soft caps has no sdpa in transformers.
FAMILIES = [
    ("llama", "eager"),
    ("llama", "sdpa"),
    ("gpt2", "sdpa"),
    ("qwen2", "eager"),
    ("qwen3", "sdpa"),
    ("gemma2", "eager"),
    ("gemma3_text", "sdpa"),
    ("mistral", "eager"),
    ("mistral", "sdpa"),
    ("gpt_neox", "eager"),
    ("olmo2", "sdpa"),
    ("phi3", "sdpa"),
    ("smollm3", "eager"),
]
LENGTHS = [3, 17, 9, 9, 4, 12, 1, 7]


def generate_alone(model, prompt, tokens):
    """What transformers' greedy ``generate`` says for one prompt, cut after the first end token."""
    ids = torch.tensor([prompt])
    out = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=sorted(model.eos_ids) or None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_greedy_tokens_are_those_of_generate(family, attention):
    model = loaded(family, attention)
    prompts = some_prompts(LENGTHS)
    expected = [generate_alone(model, p, GREEDY.max_new_tokens) for p in prompts]
    # Three rows for eight prompts of mixed lengths: rows leave and others join while the rest goes on.
    found = generated(model, requests_for(prompts), GREEDY, batch_size=3)
    assert [tokens for tokens, _ in found] == expected
    assert len({tuple(e) for e in expected}) > len(prompts) // 2  # a model that repeats one text would prove nothing


def test_texts_do_not_depend_on_the_batch():
    model, params = loaded("qwen3", "sdpa"), SamplingParams(12, temperature=1.0, top_p=0.95)
    requests = requests_for(some_prompts([5, 2, 11, 5, 8]), samples=3)
    alone = [generated(model, [r], params)[0] for r in requests]
    for batch_size in (2, 5, 64):
        assert generated(model, requests, params, batch_size) == alone


def test_a_sampled_text_is_the_chain_of_single_forwards():
    """No cache, no batch: one full forward per token, with the request's own uniforms."""
    model, params = loaded("mistral"), SamplingParams(10, temperature=0.8, top_p=0.9)
    for request in requests_for(some_prompts([4, 9]), samples=2):
        u, ids = uniforms(request.seed, params.max_new_tokens), list(request.prompt_ids)
        for t in range(params.max_new_tokens):
            logits = torch.from_numpy(full_logits(model, tuple(ids))[-1:])
            ids.append(int(sample(logits, torch.tensor(u[t : t + 1]), params)))
            if ids[-1] in model.eos_ids:
                break
        assert generated(model, [request], params)[0][0] == ids[len(request.prompt_ids) :]


def test_samples_of_a_prompt_share_one_prefill():
    class Count(Tap):
        def __init__(self):
            self.prefilled = 0

        def before(self, frame):
            self.prefilled += len(frame.requests) if frame.width > 1 else 0

    count = Count()
    model, prompts = loaded(), some_prompts([6, 6, 9])
    found = generated(model, requests_for(prompts, 20), SamplingParams(6, 1.0, 1.0), batch_size=60, taps=(count,))
    assert count.prefilled == 3
    texts = [tuple(tokens) for tokens, _ in found]
    assert all(len(set(texts[i * 20 : i * 20 + 20])) > 10 for i in range(3))  # and they are twenty texts, not one


def widths_of(model) -> list[tuple[int, int]]:
    """Rows and tokens of every forward from now on."""
    seen: list[tuple[int, int]] = []
    model.model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape)))
    return seen


def after_a_head(lengths: list[int], head: int = 11) -> list[tuple[int, ...]]:
    """Prompts that begin with the same tokens, more of them than a short window holds."""
    (shared,) = some_prompts([head], seed=7)
    return [shared + rest for rest in some_prompts(lengths, seed=8)]


@pytest.mark.parametrize(("family", "attention"), FAMILIES)
def test_what_all_prompts_begin_with_is_computed_once(family, attention):
    model = fresh(family, attention)
    prompts = after_a_head(LENGTHS)
    expected = [generate_alone(model, p, GREEDY.max_new_tokens) for p in prompts]
    seen = widths_of(model)
    found = generated(model, requests_for(prompts), GREEDY, batch_size=3)
    assert [tokens for tokens, _ in found] == expected
    assert seen[0] == (1, 11) and max(width for _, width in seen[1:]) == max(LENGTHS)
    assert len({tuple(e) for e in expected}) > len(prompts) // 2


def test_prompts_that_begin_alike_in_part_or_altogether():
    """Two heads of 9 tokens that share 4, a prompt that is the shared part alone, one that is a whole head."""
    model = fresh("mistral", "sdpa")
    (common, one, other), rests = some_prompts([4, 5, 5], seed=3), some_prompts([3, 12, 6, 1], seed=5)
    prompts = [common + one + r for r in rests] + [common + other + r for r in rests] + [common + one, common]
    expected = [generate_alone(model, p, GREEDY.max_new_tokens) for p in prompts]
    seen = widths_of(model)
    for batch_size in (2, 16):
        seen.clear()
        assert [tokens for tokens, _ in generated(model, requests_for(prompts), batch_size=batch_size)] == expected
        assert seen[0] == (1, 3)  # the last token of the shortest prompt stays: its logits are wanted
    seen.clear()
    alone = generated(model, requests_for(prompts[:1], 3))
    assert seen[0] == (1, len(prompts[0])) and [tokens for tokens, _ in alone] == expected[:1] * 3


def test_prompts_of_unlike_length_are_not_padded_to_the_longest(monkeypatch):
    monkeypatch.setattr(local, "ENOUGH_TOKENS", {"cpu": 24})
    model = fresh("llama", "sdpa")
    prompts = after_a_head([20, 19, 18, 8, 8, 7, 7, 2, 2, 2])
    expected = [generate_alone(model, p, GREEDY.max_new_tokens) for p in prompts]
    seen = widths_of(model)
    assert [tokens for tokens, _ in generated(model, requests_for(prompts))] == expected
    assert seen[:4] == [(1, 11), (3, 20), (4, 8), (3, 2)]


@pytest.mark.parametrize("positions", ["all", "response"])
def test_a_shared_head_is_steered_as_strongly_as_the_rest(positions):
    """Each strength has a head of its own; texts are those of one request at a time, which shares nothing."""
    model = fresh("qwen3", "sdpa", eos=frozenset())
    model.eos_ids = likely_ends(model, some_prompts([5]), 12)
    v = torch.randn(model.hooks.d_model, generator=torch.Generator().manual_seed(0))
    taps, params = (SteerTap(1, "resid_post", v, 4.0, positions),), SamplingParams(10, 1.0, 1.0)
    prompts = after_a_head([4, 9, 2, 6])
    requests = [Request(p, k, s) for p, s, k in itertools.product(prompts, (0.0, 1.0, -2.0), range(3))]
    alone = [generated(model, [r], params, taps=taps)[0] for r in requests]
    seen = widths_of(model)
    assert generated(model, requests, params, batch_size=5, taps=taps) == alone
    assert seen[0] == (3, 11)
    unsteered = [generated(model, [Request(r.prompt_ids, r.seed, 0.0)], params, taps=taps)[0] for r in requests]
    assert sum(a != u for a, u in zip(alone, unsteered, strict=True)) > 12


def likely_ends(model, prompts, share: int = 3) -> frozenset[int]:
    """Tokens that this model's texts are full of, so that making them end a response stops many early."""
    found = generated(model, requests_for(prompts, 4), SamplingParams(12, 1.0, 1.0))
    tokens = sorted(t for ids, _ in found for t in ids)
    ranked = sorted({t: tokens.count(t) for t in set(tokens)}.items(), key=lambda kv: (-kv[1], kv[0]))
    return frozenset(t for t, _ in ranked[:share])


def test_early_ends_free_their_rows_and_every_text_comes_once():
    prompts = some_prompts([3, 14, 8, 5, 5, 10, 2, 7, 12])
    model = fresh("llama", "sdpa", eos=frozenset())
    model.eos_ids = likely_ends(model, prompts, 12)
    params = SamplingParams(24, 1.0, 1.0)
    requests = requests_for(prompts, 5)
    found = generated(model, requests, params, batch_size=4)
    reasons = [reason for _, reason in found]
    assert reasons.count("eos") > 5 and reasons.count("length") > 5
    for tokens, reason in found:
        ends = [t in model.eos_ids for t in tokens]
        assert not any(ends[:-1]) and ends[-1] == (reason == "eos")
        assert reason == "eos" or len(tokens) == params.max_new_tokens
    assert found == generated(model, requests, params, batch_size=45)


@pytest.mark.parametrize(("family", "batch_size"), [("llama", 2), ("gemma2", 3), ("mistral", 6)])
def test_the_clock_rewinds_through_many_waves(monkeypatch, family, batch_size):
    """Rows overlap for many times the columns of the slab, some dead; texts stay those of one batch without refills."""
    prompts = some_prompts([9, *([2, 5, 3] * 6)], seed=4)
    model = fresh(family, "eager", eos=frozenset())
    model.eos_ids = likely_ends(model, prompts, 6)
    params = SamplingParams(14, 1.0, 1.0)
    requests = requests_for(prompts, 3)
    together = generated(model, requests, params)
    rewinds, rewind = [], local._Track.rewind
    monkeypatch.setattr(local._Track, "rewind", lambda self, n: (rewinds.append(self.clock.now), rewind(self, n)))
    assert generated(model, requests, params, batch_size) == together
    assert len(rewinds) >= 2


def test_a_context_that_fits_exactly_holds_for_learned_positions():
    """A row that is dead for a while keeps being computed; its position must not run past the model's table."""
    (prompt,), new = some_prompts([6]), 12
    model = fresh("gpt2", "sdpa", eos=frozenset(), n_positions=len(prompt) + new)
    model.eos_ids = likely_ends(model, [prompt], 12)
    params = SamplingParams(new, 1.0, 1.0)
    pool = requests_for([prompt], 150)
    alone = generated(model, pool, params, batch_size=1)
    full = [i for i, (_, reason) in enumerate(alone) if reason == "length"]
    short = [i for i, (tokens, reason) in enumerate(alone) if reason == "eos" and 2 < len(tokens) < 7]
    # One row runs to its length beside five that end early; five others take their places and run on after it is dead.
    chosen = [full[0], *short[:5], *full[1:6]]
    assert len(chosen) == 11
    assert generated(model, [pool[i] for i in chosen], params, batch_size=6) == [alone[i] for i in chosen]


def test_every_end_token_of_model_and_tokenizer_counts():
    model = loaded()
    im_end, endoftext = model.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert {im_end, endoftext} <= model.eos_ids and model.tokenizer.eos_token_id == im_end
    changed = fresh("llama", "eager")
    with torch.no_grad():  # the other one, which the tokenizer does not name, wins every draw
        changed.model.lm_head.weight.zero_()
        changed.model.model.norm.weight.zero_()
        changed.model.lm_head = torch.nn.Linear(changed.model.config.hidden_size, changed.model.config.vocab_size)
        changed.model.lm_head.bias.zero_()[endoftext] = 50.0
    assert generated(changed, requests_for(some_prompts([4])))[0] == ([endoftext], "eos")


def test_one_token_is_enough_for_a_response():
    model = loaded("gpt2", "sdpa")
    found = generated(model, requests_for(some_prompts(LENGTHS)), SamplingParams(1, 0.0), batch_size=3)
    assert [len(tokens) for tokens, _ in found] == [1] * len(LENGTHS)
    assert generated(model, []) == []


def test_a_prompt_that_leaves_no_room_is_refused_before_any_forward():
    model = fresh("llama", "sdpa", max_position_embeddings=20)
    called = []
    model.model.register_forward_pre_hook(lambda *a: called.append(1))
    with pytest.raises(BudgetError, match=r"13 tokens and max_new_tokens 8 exceed the context of 20"):
        generated(model, requests_for(some_prompts([3, 13])))
    assert called == []
    assert len(generated(model, requests_for(some_prompts([3, 12])))) == 2


class OutOfMemory(Tap):
    """A forward of more rows than the device has room for fails, in the middle of the work."""

    def __init__(self, most: int, after: int = 5):
        self.most, self.forwards, self.after_forwards, self.failed = most, 0, after, 0

    def before(self, frame):
        self.forwards += 1
        if len(frame.requests) > self.most and self.forwards > self.after_forwards:
            self.failed += 1
            raise torch.OutOfMemoryError("simulated")


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    prompts = some_prompts([4, 7, 7, 2, 9, 3])
    model = fresh("llama", "sdpa", eos=frozenset())
    model.eos_ids = likely_ends(model, prompts, 6)
    params = SamplingParams(16, 1.0, 1.0)
    requests = requests_for(prompts, 6)
    expected = generated(model, requests, params)
    engine, tap = LocalEngine(model, 32), OutOfMemory(most=9)
    found = [(c.index, c.token_ids, c.finish_reason) for c in engine.generate(requests, params, [tap])]
    assert tap.failed == 2 and engine.out_of_memory == 2 and engine.batch_size == 8
    assert sorted(i for i, *_ in found) == list(range(len(requests)))
    assert [(t, r) for _, t, r in sorted(found)] == expected
    assert hook_count(model) == 0 and replaced_forwards(model) == 0


def test_out_of_memory_with_one_row_is_an_error():
    engine = LocalEngine(loaded(), 2)
    with pytest.raises(torch.OutOfMemoryError):
        list(engine.generate(requests_for(some_prompts([4, 5])), GREEDY, [OutOfMemory(most=0, after=0)]))


def test_strengths_reach_the_rows_of_their_requests():
    """A tap sees strength, prompt length and position of the request that each row stands for, wherever it moved."""
    prompts = some_prompts([5, 9, 3])
    model = fresh("llama", "sdpa", eos=frozenset())
    model.eos_ids = likely_ends(model, prompts, 12)
    requests = [Request(p, k, float(s)) for p, k, s in itertools.product(prompts, range(4), (0.0, 1.0, -2.0))]
    seen: dict[int, list[int]] = {i: [] for i in range(len(requests))}

    class Watch(Tap):
        def before(self, frame):
            for row, i in enumerate(frame.requests):
                if i < 0:
                    continue
                r = requests[i]
                assert frame.strengths[row] == r.strength and frame.prompt_lengths[row] == len(r.prompt_ids)
                positions = frame.positions()[row]
                assert (positions[positions >= 0] >= 0).all() and int(positions[-1]) == int(frame.lengths[row]) - 1
                if frame.step:
                    seen[i].append(int(positions[-1]))

    found = generated(model, requests, SamplingParams(12, 1.0, 1.0), batch_size=7, taps=(Watch(),))
    assert len({len(tokens) for tokens, _ in found}) > 5
    for i, positions in seen.items():
        first = len(requests[i].prompt_ids)
        assert positions == list(range(first, first + len(positions)))
