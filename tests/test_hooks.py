"""The parity ladder: hook points against transformers itself, for every family, in fp32 on the CPU.

Tolerances: where the same operation on the same numbers is compared, by one process and in tensors of the same shape,
equality to the bit. Where a batch, a cache or a padded row changes the shapes that the matrix products see, 1e-4: their
sums run in another order, which depends on the processor too. Where some elementwise operations are done in another
order, 1e-5.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import StaticCache

from driftbench.tiny import CONFIGS, VOCABULARY, tiny_model
from driftbook.errors import ModelError
from driftbook.models.hooks import HookPoints
from driftbook.models.internals import attention_output, attention_pattern, capture_internals, validate_internals
from driftbook.models.local import Frame
from driftbook.models.projection import ProjectionTap
from driftbook.models.sinks import Record
from models import hook_count

pytestmark = pytest.mark.numeric

TOKENS = 14
# Gemma 2 and GPT-J have no sdpa attention in transformers.
MODELS = [(family, "eager") for family in CONFIGS] + [(f, "sdpa") for f in CONFIGS if f not in ("gemma2", "gptj")]
MIDDLE = 2

_models: dict[tuple[str, str], torch.nn.Module] = {}


def points_of(model_type: str, attention: str = "eager") -> HookPoints:
    if (model_type, attention) not in _models:
        _models[model_type, attention] = tiny_model(model_type, attention)
    return HookPoints(_models[model_type, attention])


def some_ids(rows: int = 2, tokens: int = TOKENS, seed: int = 0) -> torch.Tensor:
    # Above the special tokens, so that no row holds a pad.
    return torch.randint(5, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(points: HookPoints, ids: torch.Tensor, mask: torch.Tensor | None = None, **options):
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    options = {"use_cache": False, **options}
    return points.model(input_ids=ids, attention_mask=mask, position_ids=positions, **options)


def captured(points: HookPoints, ids: torch.Tensor, mask: torch.Tensor | None = None, **options) -> Record:
    with points.capture() as record:
        run(points, ids, mask, **options)
    return record


def constant(points: HookPoints, seed: int = 3) -> torch.Tensor:
    return torch.randn(points.d_model, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------ residual stream


@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_resid_post_is_the_hidden_state_of_transformers(model_type, attention):
    points = points_of(model_type, attention)
    with points.capture() as record:
        states = run(points, some_ids(), output_hidden_states=True).hidden_states
    assert len(states) == points.n_layers + 1
    for layer in range(points.n_layers):
        assert torch.equal(record[layer, "resid_pre"], states[layer])
    # hidden_states[i + 1] is the output of block i, but the last entry is taken after the final norm, so it is left
    # out.
    for layer in range(points.n_layers - 1):
        assert torch.equal(record[layer, "resid_post"], states[layer + 1])
    assert not torch.equal(record[points.n_layers - 1, "resid_post"], states[-1])


@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_contributions_add_up_to_the_bit(model_type, attention):
    points = points_of(model_type, attention)
    record = captured(points, some_ids())
    for layer in range(points.n_layers):
        pre, post = record[layer, "resid_pre"], record[layer, "resid_post"]
        attn, mlp = record[layer, "attn_contribution"], record[layer, "mlp_contribution"]
        if points.parallel:
            # In the order in which these families add: floating-point addition is not associative.
            assert torch.equal((mlp + attn) + pre, post)
        else:
            assert torch.equal(pre + attn, record[layer, "resid_mid"])
            assert torch.equal(record[layer, "resid_mid"] + mlp, post)


@pytest.mark.parametrize("pads", [0, 1, 9])
@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_padded_row_equals_single_row(model_type, attention, pads):
    points = points_of(model_type, attention)
    short, other = some_ids(1, TOKENS - pads), some_ids(1, TOKENS, seed=1)
    ids = torch.cat([torch.cat([torch.zeros(1, pads, dtype=torch.long), short], dim=1), other])
    mask = torch.ones_like(ids)
    mask[0, :pads] = 0
    padded, single = captured(points, ids, mask), captured(points, short)
    for point in points.points():
        torch.testing.assert_close(padded[point][:1, pads:], single[point], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_step_by_step_with_a_cache_equals_one_forward(model_type, attention):
    points = points_of(model_type, attention)
    ids = some_ids()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    whole = captured(points, ids, mask)
    prompt = 6
    with points.capture() as record:
        past = run(points, ids[:, :prompt], mask[:, :prompt], use_cache=True).past_key_values
        for t in range(prompt, TOKENS):
            run(points, ids[:, t : t + 1], mask[:, : t + 1], use_cache=True, past_key_values=past)
    for point in points.points():
        assert record[point].shape == whole[point].shape
        for row, start in ((0, 3), (1, 0)):
            torch.testing.assert_close(record[point][row, start:], whole[point][row, start:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_tokens_are_the_same_with_capture_on_and_off(model_type):
    points = points_of(model_type)
    ids = some_ids()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    plain = points.model.generate(ids, **options)
    with points.capture() as record, capture_internals(points, [1]):
        hooked = points.model.generate(ids, **options)
    assert torch.equal(plain, hooked)
    # The last token that was sampled is never fed back, so it has no state.
    assert record[0, "resid_pre"].shape[1] == hooked.shape[1] - 1


def test_logits_are_the_same_to_the_bit_with_capture_on_and_off():
    points = points_of("gemma3_text")
    plain = run(points, some_ids()).logits
    with points.capture(), capture_internals(points, range(points.n_layers)):
        assert torch.equal(run(points, some_ids()).logits, plain)


def test_selection_of_sites_and_layers():
    points = points_of("llama")
    with points.capture("resid_mid", [-1, 1]) as record:
        run(points, some_ids())
    assert set(record.values) == {(1, "resid_mid"), (3, "resid_mid")}
    with pytest.raises(ModelError, match="layer 4: the model has 4 blocks, 0 to 3"):
        points.points(layers=[4])
    with pytest.raises(ModelError, match="unknown site 'residual'; this model has resid_pre"):
        points.points("residual")


def test_half_precision_states_are_close_in_direction():
    points, half = points_of("qwen2"), HookPoints(tiny_model("qwen2", dtype=torch.bfloat16))
    exact, rounded = captured(points, some_ids()), captured(half, some_ids())
    for point in points.points("resid_post"):
        cosine = torch.cosine_similarity(exact[point], rounded[point].float(), dim=-1)
        # bf16 keeps 8 bits and every block adds its rounding; one row may come near a tie in its attention.
        assert cosine.mean() > 0.999 and cosine.min() > 0.99


# -------------------------------------------------------------------------------------------------------------- hygiene


def failing_sink(layer, site, value):
    raise KeyError("the sink failed")


def failing_edit(value):
    raise KeyError("the edit failed")


@pytest.mark.parametrize("model_type", ["llama", "gptj", "olmo2"])
def test_no_hook_is_left_after_an_exception(model_type):
    points = HookPoints(tiny_model(model_type))
    before = hook_count(points)
    assert before == 0
    plain = run(points, some_ids()).logits
    for inside in (
        points.capture(sink=failing_sink),
        points.edit(1, "attn_contribution", failing_edit),
        points.edit(1, points.sites[2], failing_edit),
        capture_internals(points, [0, 1], failing_sink),
    ):
        with pytest.raises((KeyError, TypeError)), inside:
            assert hook_count(points) > 0
            run(points, some_ids())
        assert hook_count(points) == before
    with pytest.raises(RuntimeError), points.capture(), points.edit(0, "resid_post", lambda h: h + 1):
        raise RuntimeError("in the body")
    assert hook_count(points) == before
    assert torch.equal(run(points, some_ids()).logits, plain)


def test_exception_while_attaching_leaves_no_hook():
    points = HookPoints(tiny_model("llama"))
    del points.model.model.layers[2].mlp.gate_proj
    missing = r"model\.layers\.2\.mlp\.gate_proj"
    with pytest.raises(ModelError, match=missing), capture_internals(points, [0, 1, 2]):
        pass
    assert hook_count(points) == 0


def test_attention_functions_are_as_before():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    points = points_of("llama")
    with capture_internals(points, [0]), capture_internals(points, [0, 1]):
        assert "get_interface" in vars(ALL_ATTENTION_FUNCTIONS)
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


class NoSynchronization(TorchDispatchMode):
    """Refuses every operation that makes the host wait for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith(("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")):
            raise AssertionError(f"{name} synchronizes with the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", [False, True], ids=["prompt", "step"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_hooks_do_not_wait_for_the_device(model_type, step):
    points = points_of(model_type)
    tap = ProjectionTap(points.points(), torch.randn(len(points.points()), points.d_model, 3))
    ids = some_ids()
    two = torch.full((2,), ids.shape[1])
    frame = Frame([0, 1], torch.ones(2), two, two, 1 if step else ids.shape[1], step)
    embedded = points.model.get_input_embeddings()(ids)
    block = points.blocks[MIDDLE]
    seen: list = []
    with contextlib.ExitStack() as stack:
        handle = block.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        run(points, ids)
        handle.remove()
        stack.enter_context(torch.no_grad())
        stack.enter_context(tap.attach(SimpleNamespace(device=torch.device("cpu"), hooks=points)))
        stack.enter_context(capture_internals(points, [MIDDLE]))
        for site in points.sites:
            stack.enter_context(points.edit(MIDDLE, site, lambda h: h * 1.5))
        tap.before(frame)
        # One block alone: transformers' own code around the blocks may look at masks on the host.
        with NoSynchronization():
            block(embedded, *seen[0][0][1:], **seen[0][1])


# ---------------------------------------------------------------------------------------------------------------- edits


@pytest.mark.parametrize("model_type", CONFIGS)
def test_edit_moves_the_logits_of_its_own_row_only(model_type):
    points = points_of(model_type)
    ids = some_ids(3)
    plain = run(points, ids).logits
    shift = constant(points)

    def second_row(value):
        new = value.clone()
        new[1] += shift
        return new

    for site in points.sites:
        with points.edit(MIDDLE, site, second_row):
            edited = run(points, ids).logits
        assert (edited[1] - plain[1]).abs().max() > 0.1
        assert torch.equal(edited[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("model_type", CONFIGS)
def test_later_positions_alone_are_moved_by_an_edit_of_one_position(model_type):
    points = points_of(model_type)
    ids = some_ids()
    plain, shift, position = run(points, ids).logits, constant(points), 7

    def one_position(value):
        new = value.clone()
        new[:, position] += shift
        return new

    for site in points.sites:
        with points.edit(MIDDLE, site, one_position):
            edited = run(points, ids).logits
        assert torch.equal(edited[:, :position], plain[:, :position])
        assert (edited[:, position] - plain[:, position]).abs().max() > 0.1


# The bias that a constant edit can be written into: (module path below the block, sites that it is the same as).
LLAMA_LIKE = (
    ("self_attn.o_proj", ("attn_contribution", "resid_mid")),
    ("mlp.down_proj", ("mlp_contribution", "resid_post")),
)
BIASES = {
    "llama": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "gpt2": (("attn.c_proj", ("attn_contribution", "resid_mid")), ("mlp.c_proj", ("mlp_contribution", "resid_post"))),
    "gpt_neox": (
        ("attention.dense", ("attn_contribution", "resid_post")),
        ("mlp.dense_4h_to_h", ("mlp_contribution",)),
    ),
}


@pytest.mark.parametrize("model_type", BIASES)
def test_constant_edit_is_a_bias(model_type):
    points = points_of(model_type)
    biased = HookPoints(tiny_model(model_type))
    shift = constant(points)
    for path, sites in BIASES[model_type]:
        projection = biased.module(MIDDLE, path)
        old = projection.bias
        projection.bias = torch.nn.Parameter(shift if old is None else old.detach() + shift)
        expected = run(biased, some_ids()).logits
        projection.bias = old
        for site in sites:
            with points.edit(MIDDLE, site, lambda h: h + shift):
                # The constant joins the sum at another place, so its last bits differ.
                torch.testing.assert_close(run(points, some_ids()).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_edit_of_resid_post_is_an_edit_of_the_next_resid_pre(model_type):
    points = points_of(model_type)
    shift = constant(points)
    with points.edit(MIDDLE, "resid_post", lambda h: h + shift):
        after = run(points, some_ids()).logits
    with points.edit(MIDDLE + 1, "resid_pre", lambda h: h + shift):
        assert torch.equal(run(points, some_ids()).logits, after)


@pytest.mark.parametrize("model_type", [family for family in CONFIGS if family not in ("gptj", "gpt_neox")])
def test_edit_of_resid_mid_reaches_the_mlp_and_the_stream(model_type):
    points = points_of(model_type)
    plain = captured(points, some_ids())
    with points.edit(MIDDLE, "resid_mid", torch.zeros_like), points.capture() as record:
        run(points, some_ids())
    # Set to zero through an addition: what is left is the rounding of x + (-x + y) - y.
    assert record[MIDDLE, "resid_mid"].abs().max() < 1e-5
    torch.testing.assert_close(record[MIDDLE, "resid_post"], record[MIDDLE, "mlp_contribution"], atol=1e-5, rtol=0)
    assert torch.equal(record[MIDDLE, "resid_pre"], plain[MIDDLE, "resid_pre"])
    assert not torch.allclose(record[MIDDLE, "mlp_contribution"], plain[MIDDLE, "mlp_contribution"], atol=1e-2)


def test_edit_that_writes_into_its_argument_at_resid_mid_is_still_seen():
    points = points_of("llama")
    with points.edit(MIDDLE, "resid_mid", lambda h: h + 1):
        expected = run(points, some_ids()).logits
    with points.edit(MIDDLE, "resid_mid", lambda h: h.add_(1)):
        assert torch.equal(run(points, some_ids()).logits, expected)


def test_capture_reads_after_edits_whichever_came_first():
    points, shift = points_of("olmo2"), constant(points_of("olmo2"))
    plain = captured(points, some_ids())
    seen_by_edit = []

    def edit(value):
        seen_by_edit.append(value.clone())
        return value + shift

    for site in points.sites:
        seen_by_edit.clear()
        with points.capture(site) as outer, points.edit(1, site, edit), points.capture(site) as inner:
            states = run(points, some_ids(), output_hidden_states=True).hidden_states
        assert torch.equal(outer[1, site], inner[1, site])
        assert torch.equal(seen_by_edit[0], plain[1, site])
        torch.testing.assert_close(outer[1, site], plain[1, site] + shift, atol=1e-5, rtol=1e-5)
        if site == "resid_post":
            assert torch.equal(states[2], outer[1, site])  # transformers' own record sees the edited value too


def test_edits_at_one_point_run_in_the_order_in_which_they_were_entered():
    points = points_of("mistral")
    for site in points.sites:
        with points.edit(1, site, lambda h: h + 1), points.edit(1, site, lambda h: h * 2), points.capture(site) as both:
            run(points, some_ids())
        with points.edit(1, site, lambda h: (h + 1) * 2), points.capture(site) as once:
            run(points, some_ids())
        torch.testing.assert_close(both[1, site], once[1, site], atol=1e-5, rtol=1e-5)


def test_edit_that_changes_the_shape_is_refused():
    points = points_of("llama")
    message = r"edit of layer 1 resid_post: \(2, 14, 48\) became \(2, 48\)"
    with pytest.raises(ModelError, match=message), points.edit(1, "resid_post", lambda h: h[:, 0]):
        run(points, some_ids())


def test_gradients_reach_a_captured_point():
    points = points_of("llama")
    kept = []
    with points.edit(1, "resid_post", lambda h: kept.append(h.detach().requires_grad_()) or kept[-1]):
        points.model(input_ids=some_ids(), use_cache=False).logits.sum().backward()
    points.model.zero_grad(set_to_none=True)
    assert kept[0].grad is not None and kept[0].grad.abs().sum() > 0


# ---------------------------------------------------------------------------------------------------------------- sinks


def test_record_keeps_copies():
    record, value = Record(), torch.ones(1, 2, 3)
    record(0, "resid_post", value)
    value.zero_()
    record(0, "resid_post", value)
    assert record[0, "resid_post"].sum(-1).tolist() == [[3, 3, 0, 0]]


# --------------------------------------------------------------------------------------------------------------- tier 3


@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_pattern_is_the_attention_that_was_computed(model_type, attention):
    points = points_of(model_type, attention)
    ids = some_ids()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with capture_internals(points, range(points.n_layers)) as internals:
        weights = run(points, ids, mask, output_attentions=attention == "eager").attentions
    real = mask.bool()
    for layer, tensors in internals.items():
        pattern = tensors["pattern"]
        torch.testing.assert_close(pattern.sum(-1).transpose(1, 2)[real], torch.ones(int(real.sum()), pattern.shape[1]))
        assert pattern[0, :, :3].abs().sum() == 0 and pattern[0, :, :, :3].abs().sum() == 0
        assert torch.equal(pattern, pattern.tril())
        output = attention_output(points, layer, pattern, tensors["v"])
        torch.testing.assert_close(output[real], tensors["attn_out"][real], atol=1e-5, rtol=1e-5)
        if attention == "eager":
            torch.testing.assert_close(pattern[1], weights[layer][1], atol=1e-6, rtol=0)
            torch.testing.assert_close(pattern[0, :, 3:], weights[layer][0, :, 3:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_shapes_and_equations_of_tier_3(model_type):
    points = points_of(model_type)
    config = points.model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    neurons = points.module(1, f"{points.family.mlp.module}.{points.family.mlp.down}").weight.numel() // points.d_model
    with capture_internals(points, [1]) as internals, points.capture(layers=[1]) as record:
        run(points, some_ids())
    tensors = internals[1]
    gated = points.family.mlp.gate is not None
    rope = ("q_pre_rope", "q_post_rope", "k_pre_rope", "k_post_rope") if model_type != "gpt2" else ("q", "k")
    assert set(tensors) == {*rope, "v", "pattern", "attn_out", "up", "neurons", "down", *(["gate"] if gated else [])}
    for name in rope:
        assert tensors[name].shape == (2, TOKENS, heads if name.startswith("q") else kv_heads, 8)
    assert tensors["v"].shape == (2, TOKENS, kv_heads, 8)
    assert tensors["pattern"].shape == (2, heads, TOKENS, TOKENS)
    assert tensors["neurons"].shape == tensors["up"].shape == (2, TOKENS, neurons)
    # W_o's and W_down's outputs are the contributions, unless a post-norm comes between.
    if points.family.attention_post_norm is None:
        assert torch.equal(tensors["attn_out"], record[1, "attn_contribution"])
        assert torch.equal(tensors["down"], record[1, "mlp_contribution"])
    else:
        norms = points.family.attention_post_norm, points.family.mlp_post_norm
        pairs = ("attn_out", "attn_contribution"), ("down", "mlp_contribution")
        for norm, (inner, outer) in zip(norms, pairs, strict=True):
            assert torch.equal(points.module(1, norm)(tensors[inner]), record[1, outer])
    act = points.module(1, f"{points.family.mlp.module}.{points.family.mlp.act}")
    product = act(tensors["gate"]) * tensors["up"] if gated else act(tensors["up"])
    assert torch.equal(product, tensors["neurons"])


@pytest.mark.parametrize(("model_type", "attention"), MODELS)
def test_tier_3_step_by_step_equals_one_forward(model_type, attention):
    points = points_of(model_type, attention)
    ids = some_ids()
    with capture_internals(points, [0, 3]) as internals:
        run(points, ids)
        whole = {layer: dict(tensors) for layer, tensors in internals.items()}
        past = run(points, ids[:, :6], use_cache=True).past_key_values
        for t in range(6, TOKENS):
            run(points, ids[:, t : t + 1], torch.ones_like(ids[:, : t + 1]), use_cache=True, past_key_values=past)
            for layer, tensors in internals.items():
                for name, value in tensors.items():
                    if name == "pattern":
                        # A sliding cache forgets keys that are out of the window; those that are left are the last
                        # ones.
                        keys = value.shape[-1]
                        expected = whole[layer][name][:, :, t : t + 1, t + 1 - keys : t + 1]
                        assert keys == t + 1 or whole[layer][name][:, :, t, : t + 1 - keys].abs().sum() == 0
                    else:
                        expected = whole[layer][name][:, t : t + 1]
                    # Neurons are larger than the stream, and their rounding grows with the largest of them.
                    size = max(1.0, float(whole[layer][name].abs().max()))
                    torch.testing.assert_close(value, expected, atol=1e-5 * size, rtol=1e-5)


def test_sliding_window_and_soft_cap_show_in_the_pattern():
    points = points_of("gemma2")
    with capture_internals(points, [0, 1]) as internals:
        run(points, some_ids())
    near = torch.ones(TOKENS, TOKENS).tril().triu(-5).bool()  # a window of 6
    assert internals[0]["pattern"][:, :, ~near].abs().sum() == 0
    assert (internals[1]["pattern"][:, :, ~near.triu(-20) & torch.ones_like(near).tril()] > 0).all()
    tensors = internals[1]
    q, k = (tensors[f"{name}_post_rope"].transpose(1, 2) for name in "qk")
    uncapped = attention_pattern(q, k, None, 10**-0.5)
    capped = attention_pattern(q, k, None, 10**-0.5, softcap=2.0)
    torch.testing.assert_close(capped, tensors["pattern"], atol=1e-6, rtol=0)
    assert (uncapped - tensors["pattern"]).abs().max() > 1e-3


def test_patterns_without_a_mask_know_causality_window_and_padding():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 3, 8, generator=generator), torch.randn(2, 2, 7, 8, generator=generator)
    pattern = attention_pattern(q, k, None, 1.0, window=3)
    query, key = torch.arange(4, 7)[:, None], torch.arange(7)[None, :]
    allowed = (key <= query) & (key > query - 3)
    assert ((pattern > 0) == allowed).all()
    padding = torch.ones(2, 7)
    padding[0, :5] = 0
    pattern = attention_pattern(q, k, padding, 1.0)
    assert pattern[0, :, :, :5].sum() == 0 and pattern[0, :, 0].sum() == 0
    torch.testing.assert_close(pattern[1].sum(-1), torch.ones(4, 3))


def test_families_without_an_mlp_to_read_give_attention_alone():
    points = points_of("llama")
    with capture_internals(points, [1], parts=["attention"]) as internals:
        run(points, some_ids())
    assert "pattern" in internals[1] and "neurons" not in internals[1]


def test_what_was_captured_survives_the_cache_being_written_over():
    points = points_of("llama")
    ids = some_ids()
    with capture_internals(points, [1]) as internals:
        past = run(points, ids[:, :6], use_cache=True).past_key_values
        kept = {name: tensor for name, tensor in internals[1].items()}
        copies = {name: tensor.clone() for name, tensor in kept.items()}
        for layer in past.layers:
            layer.keys.zero_()
            layer.values.zero_()
    assert all(torch.equal(kept[name], copies[name]) for name in kept)


def test_static_cache_is_refused_for_tier_3():
    points = points_of("llama")
    past = StaticCache(config=points.model.config, max_cache_len=20)
    with capture_internals(points, [1]), pytest.raises(ModelError, match="static cache"):
        run(points, some_ids(), use_cache=True, past_key_values=past)


def test_scale_of_a_family_with_its_own_attention_method_is_read():
    model = tiny_model("gptj")
    model.transformer.h[1].attn.scale_attn *= 3
    validate_internals(HookPoints(model), [1])


def test_attention_that_cannot_be_read_is_refused():
    points = HookPoints(tiny_model("gpt2", reorder_and_upcast_attn=True))
    message = r"transformer\.h\.1\.attn: with these settings"
    with capture_internals(points, [1]), pytest.raises(ModelError, match=message):
        run(points, some_ids())
