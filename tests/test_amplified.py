"""A change exaggerated: the next token against transformers' own logits, the two fixed points, and equal sides."""

import contextlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from driftbook.discovery.decoding import decode_into, decode_texts, shard_key
from driftbook.discovery.strategies import first_round
from driftbook.errors import ModelError
from driftbook.interventions.adapter import with_adapter
from driftbook.models.amplified import amplified, exaggerate
from driftbook.models.answers import Frame, Request
from driftbook.models.sampling import SamplingParams, filtered_probabilities, sample, stream_seed, uniforms
from driftbook.models.sides import Exaggeration, Pair, Side
from driftbook.models.steering import AblateTap
from driftbook.store import ShardStore
from models import fresh, full_logits, generated, hook_count, loaded, replaced_forwards, some_prompts
from test_decode import PROMPTS
from test_decode import pair_of as steered

pytestmark = pytest.mark.numeric

PARAMS = SamplingParams(8, temperature=0.9, top_p=0.95)
LENGTHS = [3, 11, 6, 6, 1, 9]


def checkpoints(family: str = "qwen3", seed: int = 1) -> Pair:
    """Two models with weights of their own."""
    a, b = loaded(family, "eager"), loaded(family, "eager", seed=seed)
    return Pair(Side("base", a, "a"), Side("intervention", b, f"b{seed}"), 2)


def requests(samples: int = 3, others: list[tuple[int, ...]] | None = None) -> list[Request]:
    prompts = some_prompts(LENGTHS)
    others = others or [None] * len(prompts)
    return [
        Request(p, stream_seed("amplified", p, k), other_ids=o)
        for p, o in zip(prompts, others, strict=True)
        for k in range(samples)
    ]


def said(side: Side, asked: list[Request], params=PARAMS) -> list[tuple[list[int], str]]:
    found = {c.index: (c.token_ids, c.finish_reason) for c in side.generate(asked, params)}
    return [found[i] for i in range(len(asked))]


def at(pair: Pair, strength: float, name: str = "intervention", batch_size: int = 4, **how) -> Side:
    sides = [replace(side, batch_size=batch_size, engine=None) for side in pair]
    return amplified(Pair(*sides, pair.model_loads), Exaggeration(strength, **how), name)


def by_hand(changed: np.ndarray, base: np.ndarray, a: float, plausible: float = 0.02) -> np.ndarray:
    """The distribution of one next token as its definition reads, token by token, in float64."""
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (changed, base))
    likely = (p >= plausible * p.max()) | (q >= plausible * q.max())
    score = np.array([p[t] * (p[t] / q[t]) ** a if likely[t] else 0.0 for t in range(len(p))])
    return np.where(likely, score / score.sum() * p[likely].sum(), p)


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0])
def test_the_next_token_is_drawn_from_the_exaggerated_distribution(a):
    rng = np.random.default_rng(0)
    changed, base = rng.normal(0, 3, (2, 5, 40))
    found = torch.softmax(exaggerate(torch.tensor(changed), torch.tensor(base), a, 0.02), -1).numpy()
    expected = np.stack([by_hand(c, b, a) for c, b in zip(changed, base, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-6)  # float32
    tail = expected < 0.02 * expected.max(-1, keepdims=True)
    assert tail.any() and not np.allclose(expected, [by_hand(c, b, 0) for c, b in zip(changed, base, strict=True)])


@pytest.mark.parametrize("pair", [checkpoints(), steered()], ids=["checkpoint", "steer"])
def test_a_text_is_the_chain_of_single_forwards_of_both_sides(pair):
    """No cache, no batch: one full forward of either side per token, each behind its own prompt."""
    others = some_prompts([n + 4 for n in LENGTHS], seed=5)
    asked = requests(1, others)
    found = said(at(pair, 2.0), asked)
    for request, (tokens, _) in zip(asked, found, strict=True):
        u, written = uniforms(request.seed, PARAMS.max_new_tokens), []
        for t in range(len(tokens)):
            logits = []
            for side, prompt in ((pair.intervention, request.prompt_ids), (pair.base, request.other_ids)):
                with side.active(), _attached(side, len(prompt) + len(written)):
                    logits.append(torch.from_numpy(full_logits(side.model, (*prompt, *written))[-1]))
            drawn = torch.tensor(by_hand(logits[0].numpy(), logits[1].numpy(), 2.0)).log()[None].float()
            written.append(int(sample(drawn, torch.tensor(u[t : t + 1]), PARAMS)))
        assert written == tokens
    assert found != said(at(pair, 0.0), asked)


def _attached(side: Side, length: int):
    """The taps of a side around one whole row."""
    stack = contextlib.ExitStack()
    for tap in side.taps:
        stack.enter_context(tap.attach(side.model))
        one = torch.tensor([length])
        tap.before(Frame([0], torch.ones(1), one, one, length))
    return stack


PAIRS = {"checkpoint": checkpoints, "steer": steered}


@pytest.mark.parametrize("kind", PAIRS)
def test_strength_0_is_the_changed_side_and_minus_1_the_base(kind):
    """Token by token, in float32: both loops make the same products of the same rows."""
    pair, asked = PAIRS[kind](), requests()
    plain = {side.name: said(replace(side, batch_size=4, engine=None), asked) for side in pair}
    assert said(at(pair, 0.0), asked) == plain["intervention"] != plain["base"]
    assert said(at(pair, -1.0), asked) == plain["base"]
    assert said(at(pair, 0.0, name="base"), asked) == plain["base"]
    assert said(at(pair, 2.0, name="base"), asked) == said(at(pair, -3.0), asked)


@pytest.mark.parametrize("a", [-3.0, 0.5, 4.0])
def test_equal_sides_write_what_they_write_alone_for_every_strength(a):
    """In float32, and where both read the same prompt tokens: then their logits are equal bit for bit."""
    model = loaded("gemma2", "eager")
    asked = requests()
    alone = generated(model, asked, PARAMS, 4)
    assert said(at(Pair(Side("base", model, "x"), Side("intervention", model, "y"), 1), a), asked) == alone
    other = fresh("gemma2", "eager")  # the same weights, held twice
    assert said(at(Pair(Side("base", model, "x"), Side("intervention", other, "y"), 2), a), asked) == alone


def test_a_text_does_not_depend_on_the_batch_and_nothing_is_left_in_the_model():
    pair, asked = steered(), requests(4, some_prompts([n + 2 for n in reversed(LENGTHS)], seed=2))
    alone = [said(at(pair, 1.5), [r])[0] for r in asked]
    for batch_size in (2, 5, 64):
        assert said(at(pair, 1.5, batch_size=batch_size), asked) == alone
    alike = [replace(asked[0], other_ids=r.other_ids) for r in asked[::4]]  # one prompt, behind other ones of the base
    each = [said(at(pair, 1.5), [r])[0] for r in alike]
    assert said(at(pair, 1.5, batch_size=64), alike) == each and len({str(e) for e in each}) > 1
    assert hook_count(pair.base.model) == 0 and replaced_forwards(pair.base.model) == 0


def test_greedy_takes_the_token_that_gained_most_among_the_likely():
    changed, base = torch.tensor([[2.0, 1.9, -9.0]]), torch.tensor([[2.0, 0.5, -20.0]])
    assert exaggerate(changed, base, 0.0, 0.02).argmax() == 0
    assert exaggerate(changed, base, 1.0, 0.02).argmax() == 1  # and not 2, which gained more but nobody finds likely


# ------------------------------------------------------------------------------------------------ by the coefficient


def adapted(tmp_path, scale: float = 1.0) -> Pair:
    model = fresh("llama", "eager")
    torch.manual_seed(3)
    spec = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(fresh("llama", "eager").model, spec).save_pretrained(tmp_path / "lora")
    return with_adapter(model, tmp_path / "lora", scale)


def test_a_coefficient_is_multiplied_by_one_more_than_the_strength(tmp_path):
    asked = requests(2)
    v = {1: torch.randn(loaded("llama", "sdpa").hooks.d_model, generator=torch.Generator().manual_seed(0))}
    model = loaded("llama", "sdpa")
    taken = Pair(Side("base", model, "b"), Side("intervention", model, "i", taps=(AblateTap("resid_post", v),)), 1)
    twice = [replace(r, strength=2.0) for r in asked]
    assert said(at(taken, 1.0, by="coefficient"), asked) == said(replace(taken.intervention, engine=None), twice)
    assert said(at(steered(1.5), 1.0, by="coefficient"), asked) == said(steered(3.0).intervention, asked)
    assert said(at(steered(), -1.0, by="coefficient"), asked) == said(steered().base, asked)
    lora = adapted(tmp_path)
    one, three = said(lora.intervention, asked), said(adapted(tmp_path, 3.0).intervention, asked)
    assert said(at(lora, 2.0, by="coefficient"), asked) == three != one
    assert said(lora.intervention, asked) == one  # and the scale is back


def test_an_adapter_is_on_for_its_own_side_alone(tmp_path):
    pair, asked = adapted(tmp_path), requests(2)
    whole = with_adapter_merged(tmp_path)
    merged = Pair(Side("base", fresh("llama", "eager"), "b"), Side("intervention", whole, "i"), 2)
    assert said(at(pair, 1.0), asked) == said(at(merged, 1.0), asked)
    assert said(pair.base, asked) == generated(fresh("llama", "eager"), asked, PARAMS)


def with_adapter_merged(tmp_path):
    model = fresh("llama", "eager")
    model.model = PeftModel.from_pretrained(model.model, str(tmp_path / "lora")).merge_and_unload()
    return model


# --------------------------------------------------------------------------------------------- what cannot be amplified


class Elsewhere:
    name, here = "table", False


def test_what_has_no_common_next_token_is_refused_with_the_reason():
    pair = checkpoints()
    pair.intervention.engine = Elsewhere()
    with pytest.raises(ModelError, match="answers of intervention were made elsewhere"):
        amplified(pair, Exaggeration(1.0))
    other = fresh("llama", "eager")
    other.tokenizer = _renamed(other.tokenizer)
    pair = Pair(Side("base", loaded(), "a"), Side("intervention", other, "b"), 2)
    with pytest.raises(ModelError, match="different tokenizers"):
        amplified(pair, Exaggeration(1.0))
    with pytest.raises(ModelError, match=r"decode.amplify.by: coefficient needs a change that has a size"):
        amplified(checkpoints(), Exaggeration(1.0, by="coefficient"))


def _renamed(tokenizer):
    class Renamed:
        def get_vocab(self):
            return {f"{word}!": i for word, i in tokenizer.get_vocab().items()}

    return Renamed()


def test_added_vocabulary_is_never_drawn():
    """Another output layer may be wider, and hold tokens that the base does not know: they are masked."""
    base, wide = loaded("llama", "eager"), fresh("llama", "eager", vocab_size=408)
    tokens = base.tokenizer.get_vocab()

    class More:
        def get_vocab(self):
            return tokens | {"<new>": len(tokens)}

    wide.tokenizer = More()
    with torch.no_grad():
        wide.model.lm_head.weight[len(tokens) :] *= 30
    pair = Pair(Side("base", base, "a"), Side("intervention", wide, "b"), 2)
    hot = SamplingParams(8, temperature=3.0, top_p=1.0)
    drawn = {t for ids, _ in said(at(pair, 2.0), requests(6), hot) for t in ids}
    assert max(drawn) < len(tokens)
    assert max(t for ids, _ in generated(wide, requests(6), hot) for t in ids) >= len(tokens)
    wide.eos_ids = frozenset({len(tokens) + 1})  # an end token alone is drawn: nobody reads on behind it
    ended = said(at(pair, 2.0), requests(6), hot)
    assert {t for ids, _ in ended for t in ids[:-1]} < set(tokens.values())
    assert {ids[-1] for ids, reason in ended if reason == "eos"} == {len(tokens) + 1}


def test_a_text_ends_where_texts_of_the_exaggerated_side_end():
    """A fine-tune that has forgotten an end token talks on, exaggerated and not; and one that has learned it stops."""
    pair, asked = checkpoints(), requests()
    plain = said(pair.intervention, asked)
    common = [t for t, _ in Counter(t for ids, _ in plain for t in ids[:-1]).most_common(2)]
    for side, ends in ((pair.base, common), (pair.intervention, common)):
        model = replace(side.model, eos_ids=frozenset(ends))
        other = pair.base if side is pair.intervention else pair.intervention
        both = {side.name: Side(side.name, model, "own"), other.name: Side(other.name, other.model, "other")}
        expected = said(both["intervention"], asked)
        assert said(at(Pair(both["base"], both["intervention"], 2), 0.0), asked) == expected
        assert (expected == plain) == (side is pair.base)


# ---------------------------------------------------------------------------------------------------- stored and shared


def test_amplified_texts_are_stored_apart_and_a_worker_makes_the_same(tmp_path):
    pair = steered()
    ids = {side.name: [side.encode(p) for p in PROMPTS.prompts] for side in pair}
    asks, store = first_round(PROMPTS, 1, 10**6), ShardStore(tmp_path / "here")
    tables = {}
    for a in (0.0, 1.0, 3.0):
        side = at(pair, a)
        tables[a] = decode_texts([side], PROMPTS, ids, asks, PARAMS, 0, store, 5)
        assert set(tables[a].strength) == {a} and set(tables[a].side) == {"intervention"}
    assert len({t for table in tables.values() for t in table.text_id}) == 3 * len(asks)
    plain = decode_texts([pair.intervention], PROMPTS, ids, asks, PARAMS, 0, store, 5)
    assert tables[0.0].token_ids.tolist() == plain.token_ids.tolist() != tables[3.0].token_ids.tolist()
    assert (tables[3.0].seed == plain.seed).all()  # the same draws at every strength: only the strength differs
    side = at(pair, 3.0)
    prompts = [(ids["intervention"][a.prompt], ids["base"][a.prompt]) for a in asks]
    questions = [Request(own, s, other_ids=other) for (own, other), s in zip(prompts, plain.seed, strict=True)]
    key = shard_key(side, PARAMS, questions)
    assert key != shard_key(at(pair, 1.0), PARAMS, questions)
    assert key != shard_key(side, PARAMS, [replace(q, other_ids=(*q.other_ids, 7)) for q in questions])
    decode_into(PARAMS, tmp_path / "there", pair, ("intervention", side.exaggerated, key, questions))
    assert ShardStore(tmp_path / "there").table(key).column("token_ids").to_pylist() == tables[3.0].token_ids.tolist()


def test_filters_act_on_what_was_exaggerated():
    changed, base = torch.randn(2, 1, 50, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(1, temperature=0.7, top_p=1.0, top_k=3)
    kept = filtered_probabilities(exaggerate(changed, base, 2.0, 0.02), params)
    assert (kept > 0).sum() == 3
    best = exaggerate(changed, base, 2.0, 0.02).topk(3).indices
    assert set(kept.nonzero()[:, 1].tolist()) == set(best[0].tolist())
