"""Steering by dose: what is sampled, how it is measured, and the layer that is chosen by it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from driftbench import shipped_traits
from driftbook.errors import DriftbookError
from driftbook.models import doses
from driftbook.models.replay import TokenSequence
from driftbook.models.vectors import VectorSet
from driftbook.parameters import Dose, LayerBySteering
from driftbook.report.traits import dose_title
from driftbook.traits import null_twin
from models import full_logits, hidden_states, loaded
from test_traits import warm, warm_with
from test_vectors import record


def test_lexicon_rate_counts_whole_phrases_per_hundred_words():
    phrases = ["so glad", "glad", "don't", "c++"]
    texts = ["I am SO glad, glad indeed", "gladly", "I don\u2019t know c++ at all", "", "glad"]
    np.testing.assert_allclose(doses.lexicon_rate(texts, phrases), [100 * 2 / 6, 0, 100 * 2 / 6, 0, 100])
    np.testing.assert_array_equal(doses.lexicon_rate(iter(texts), []), np.zeros(5))
    np.testing.assert_array_equal(doses.lexicon_rate(iter(texts), ["glad"]), doses.lexicon_rate(texts, ["glad"]))


def test_mean_log_likelihood_is_that_of_the_tokens_themselves():
    model = loaded("llama", "sdpa")
    sequences = [TokenSequence((5, 6, 7), (8, 9)), TokenSequence((5,), (40, 41, 42)), TokenSequence((5, 6), ())]
    found = doses.mean_log_likelihood(model, sequences)
    for s, value in zip(sequences[:2], found, strict=False):
        logp = torch.log_softmax(torch.from_numpy(full_logits(model, s)), -1)
        n = len(s.prompt_ids)
        expected = np.mean([float(logp[n - 1 + t, token]) for t, token in enumerate(s.response_ids)])
        assert value == pytest.approx(expected, abs=1e-4)
    assert np.isnan(found[2])


def one_vector(model, v: np.ndarray, unit: float) -> VectorSet:
    shape = (model.hooks.n_layers, 1, model.hooks.d_model)
    directions = np.broadcast_to(v.astype(np.float32), shape).copy()
    return VectorSet(
        list(range(shape[0])),
        ["resid_post"],
        {("warm", "probe"): directions},
        np.full(shape[:2], unit),
        None,
        [record("warm", layer, layer == 1) for layer in range(shape[0])],
    )


def test_dose_response_answers_each_prompt_at_each_dose(tmp_path):
    """Pushing towards one token's row of the unembedding makes that token more likely, dose by dose."""
    model, trait = loaded("llama", "sdpa"), warm(tmp_path)
    target = model.tokenizer.convert_tokens_to_ids("Z")
    head = model.model.lm_head.weight.detach().numpy()
    vectors = one_vector(model, head[target] * model.model.model.norm.weight.detach().numpy(), 4.0)
    given, asked = [-2.0, 0.0, 2.0, 8.0], [*trait.eval_prompts, trait.eval_prompts[0]]
    frame = doses.dose_response(model, trait, vectors, given, asked, max_new_tokens=10, seed=0, layer=3)
    assert frame.columns.tolist() == list(doses.DOSE_COLUMNS)
    assert frame.coefficient.tolist() == [c for c in given for _ in range(3)]
    assert frame.prompt.tolist() == ["How are you?", "What is a tide?", "How are you?"] * 4
    piece = model.tokenizer.decode([target])
    share = frame.assign(n=[t.count(piece) for t in frame.text]).groupby("coefficient").n.sum()
    assert share[8.0] > 20 > 3 > share[2.0] >= share[0.0] >= share[-2.0] == 0
    # Likelihood is that of the unsteered model: what steering forces is unlikely to it.
    likelihood = frame.groupby("coefficient").log_likelihood.mean()
    assert likelihood[8.0] < likelihood[0.0]
    assert frame.tokens.between(1, 10).all()


def test_zero_dose_is_the_plain_model(tmp_path):
    model, trait = loaded("llama", "sdpa"), warm(tmp_path)
    v = np.random.default_rng(0).normal(size=model.hooks.d_model)
    frames = [
        doses.dose_response(model, trait, one_vector(model, v * s, 4.0), [0.0, 1.0], trait.eval_prompts, 8, seed=5)
        for s in (1, -1)
    ]
    assert frames[0].text[:2].tolist() == frames[1].text[:2].tolist()
    assert frames[0].text[2:].tolist() != frames[1].text[2:].tolist()


def test_dose_curves_come_from_the_cache_until_vector_or_file_change(tmp_path, monkeypatch):
    model, trait = loaded("llama", "sdpa"), warm(tmp_path)
    v = np.random.default_rng(0).normal(size=model.hooks.d_model)
    dose = Dose(coefficients=[0.0, 1.0], prompts=2, max_new_tokens=4)
    told, calls, answer = [], [], doses.dose_response
    monkeypatch.setattr(doses, "dose_response", lambda *a, **k: (calls.append(1), answer(*a, **k))[1])

    def curves(vectors, trait=trait, dose=dose):
        return doses.dose_curves(
            model, [trait], vectors, dose, 0, tmp_path, lambda *a: SimpleNamespace(update=told.append)
        )

    first = curves(one_vector(model, v, 4.0))
    pd.testing.assert_frame_equal(curves(one_vector(model, v, 4.0)), first)
    assert len(calls) == 1 and told == [4, 4]
    curves(one_vector(model, -v, 4.0))
    curves(one_vector(model, v, 9.0))  # the same direction in another unit is another push
    curves(one_vector(model, v, 4.0), warm_with(trait, positive_words=("drum",)))
    assert len(calls) == 4
    assert curves(one_vector(model, v, 4.0), dose=dose).trait.tolist() == ["warm"] * 4
    assert doses.dose_curves(model, [], one_vector(model, v, 4.0), dose, 0, tmp_path, None).empty


def test_traits_to_steer(tmp_path):
    some = [warm(tmp_path), warm_with(warm(tmp_path), name="terse")]
    steer = SimpleNamespace(kind="steer", trait="terse")
    names = lambda dose, intervention=steer: [t.name for t in doses.traits_to_steer(dose, intervention, some)]  # noqa: E731
    assert names(Dose(traits="steered")) == ["terse"] and names(Dose(traits="all")) == ["warm", "terse"]
    assert names(Dose(traits=["warm"])) == ["warm"] and names(None) == []
    assert names(Dose(traits="steered"), SimpleNamespace(kind="none")) == []
    with pytest.raises(DriftbookError, match=r"traits.dose.traits names \['calm'\]"):
        names(Dose(traits=["calm"]))


def frame_of(lexicon, likelihood, repetition, trait="warm", coefficients=(-0.5, 0.0, 0.5, 1.0), projection=0.0):
    n = len(coefficients)
    return pd.DataFrame(
        {
            "trait": trait,
            "coefficient": np.repeat(coefficients, 4),
            "prompt": ["a", "b"] * (2 * n),
            "lexicon": np.repeat(lexicon, 4) if len(lexicon) == n else lexicon,
            "projection": np.repeat(np.broadcast_to(projection, n), 4),
            "repetition": np.repeat(repetition, 4),
            "log_likelihood": np.repeat(likelihood, 4),
        }
    )


def test_the_strongest_dose_is_the_largest_that_stays_coherent():
    broken = frame_of([0.0, 1.0, 3.0, 9.0], [-2.0, -1.0, -2.0, -5.0], [0.0] * 4)
    curves = doses.summarize_doses(broken)
    assert curves.lexicon.tolist() == [0, 1, 3, 9] and (curves.at_zero == 1).all() and (curves.prompts == 2).all()
    assert curves.coherent.tolist() == [True, True, True, False]
    (best,) = doses.strongest_dose(curves).itertuples()
    assert best.coefficient == 0.5 and best.lexicon == 3
    slopes = doses.dose_slopes(broken, curves)
    assert dose_title(slopes) == "Pushing along warm adds its phrases (3.0 per 100 words and unit, 3.0 to 3.0)"
    assert "does not clearly add" in dose_title(slopes.assign(low=-0.1)) and "few doses" in dose_title(slopes[:0])
    # A loop is likely text to the model that runs in it: repetition sees what likelihood does not.
    looping = frame_of([0.0, 1.0, 3.0, 9.0], [-1.0, -1.0, -0.8, -0.2], [0.0, 0.05, 0.1, 0.7])
    assert doses.summarize_doses(looping).coherent.tolist() == [True, True, True, False]


def test_a_run_without_doses_has_empty_curves(tmp_path):
    none = doses.dose_curves(None, [], None, None, 0, tmp_path, None)
    curves = doses.summarize_doses(none)
    assert len(curves) == len(doses.strongest_dose(curves)) == len(doses.dose_slopes(none, curves)) == 0
    assert {"lexicon", "coherent", "at_zero"} <= set(curves.columns)


def test_slopes_are_least_squares_per_prompt_over_coherent_doses():
    """Prompt a gains 2 a unit, prompt b gains 6; a broken dose beyond counts for nothing."""
    x = np.repeat([-0.5, 0.0, 0.5, 1.0], 4)
    lexicon = np.where(np.tile([1, 0], 8), 2 * x, 6 * x + 1)
    lexicon[x == 1.0] = 99
    frame = frame_of(lexicon, [-1.0, -1.0, -1.0, -9.0], [0.0] * 4, projection=[-1.0, 0.0, 1.0, 50.0])
    slopes = doses.dose_slopes(frame, doses.summarize_doses(frame)).set_index("measure")
    assert slopes.slope.to_dict() == pytest.approx({"lexicon": 4.0, "projection": 2.0})
    half = 12.7062 * 2.0  # Student's quantile of one degree of freedom, and the standard error of 2 and 6
    assert (slopes.low["lexicon"], slopes.high["lexicon"]) == pytest.approx((4 - half, 4 + half), rel=1e-4)
    assert slopes.coefficients.tolist() == [3, 3] and slopes.prompts.tolist() == [2, 2]


def test_the_report_says_which_traits_do_not_move_their_text():
    chosen = pd.DataFrame(
        {"trait": ["warm", "terse"], "layer": 3, "heldout_auc": [0.9, 0.7], "null_auc": 0.5, "layer0": 0.6}
    ).assign(length=0.5, words=0.8)

    def slopes(lexicon):
        rows = [(t, m, v, v - 1, v + 1, 12, 5) for t, v in lexicon.items() for m in ("lexicon", "projection")]
        return pd.DataFrame(rows, columns=["trait", "measure", "slope", "low", "high", "prompts", "coefficients"])

    result = shipped_traits.table(chosen, slopes({"warm": 3.0, "terse": 0.5}), slopes({"warm": 0.0}))
    assert result.moves_text.tolist() == [True, False] and np.isnan(result.null_lexicon[1])
    assert shipped_traits.title(result) == "Pushing moves the text of 1 of 2 traits, not clearly that of terse"
    metrics = shipped_traits.metrics(result)
    assert metrics["traits_that_move_text"] == metrics["traits_with_auc_of_80"] == 1
    assert (metrics["lexicon_warm"], metrics["lexicon_low_warm"], metrics["words_auc_terse"]) == (3.0, 2.0, 0.8)
    assert "along 1 of them changes what the text says, along terse not clearly." in shipped_traits.answer(result)


def test_a_null_twin_pushes_along_null_directions_in_the_same_units(tmp_path):
    model = loaded("llama", "sdpa")
    vectors = one_vector(model, np.ones(model.hooks.d_model), 4.0)
    vectors.null = np.random.default_rng(0).normal(size=(2, 4, 1, model.hooks.d_model)).astype(np.float32)
    twin = null_twin(vectors)
    np.testing.assert_array_equal(twin.at("warm", "probe", 2, "resid_post"), vectors.null[0, 2, 0])
    assert twin.chosen("warm") == vectors.chosen("warm") and twin.norms is vectors.norms
    assert (vectors.at("warm", "probe", 2, "resid_post") == 1).all()


def test_repetition_is_the_share_of_word_triples_said_before():
    assert doses.repetition(["a b c a b c a b c", "one two three four", "no", ""]).tolist() == pytest.approx(
        [4 / 7, 0, 0, 0]
    )
    assert doses.repetition(["Yes, yes, YES, yes!"]).tolist() == [0.5]


def test_the_projection_is_that_of_the_text_under_the_plain_model(tmp_path):
    """Steering must not read back what it added: the same text under the plain model has the same projection."""
    model, trait = loaded("llama", "sdpa"), warm(tmp_path)
    v = np.random.default_rng(0).normal(size=model.hooks.d_model).astype(np.float32)
    frame = doses.dose_response(model, trait, one_vector(model, v, 4.0), [0.0, 2.0], trait.eval_prompts, 6, 0, layer=1)
    for row in frame.itertuples():
        prompt = model.encode_prompt(row.prompt)
        ids = model.tokenizer(row.text, add_special_tokens=False)["input_ids"]
        if len(ids) != row.tokens or model.decode(ids) != row.text:
            continue  # a text that is not tokenized as it was sampled
        h = hidden_states(model, (*prompt, *ids))[2][len(prompt) :]
        assert row.projection == pytest.approx((h @ v / np.linalg.norm(v)).mean() / 4.0, abs=1e-3)
        break
    else:
        pytest.fail("no text could be compared")


# --------------------------------------------------------------------------------------------------- layers by steering


def choosing(monkeypatch, answer, layers=4, **changes):
    """Run the choice with made-up texts: ``answer(layer, coefficient)`` is lexicon, likelihood and repetition."""

    def frame(model, trait, vectors, coefficients, prompts, max_new_tokens, seed, layer):
        rows = [(float(c), p, f"text {layer} {c}", *answer(layer, c)) for c in coefficients for p in prompts]
        names = ["coefficient", "prompt", "text", "lexicon", "log_likelihood", "repetition"]
        return pd.DataFrame(rows, columns=names).assign(projection=0.0, tokens=3)

    monkeypatch.setattr(doses, "dose_response", frame)
    spec = LayerBySteering(**{"layers": layers, "prompts": 3, "coefficient": 0.5, **changes})
    return spec


def layered(n=12, chosen=5) -> VectorSet:
    directions = np.ones((n, 1, 8), np.float32)
    records = [record("warm", layer, layer == chosen) for layer in range(n)]
    return VectorSet(list(range(n)), ["resid_post"], {("warm", "probe"): directions}, np.ones((n, 1)), None, records)


def progress(*_):
    return SimpleNamespace(update=lambda n: None)


def test_the_layer_with_the_largest_coherent_effect_is_chosen(tmp_path, monkeypatch):
    effects = {3: 1.0, 5: 2.0, 6: 9.0, 8: 3.0}
    lost = {6: 4.0}  # the largest effect, on broken text

    def answer(layer, c):
        return c * effects.get(layer, 0.0), -1.0 - abs(c) * lost.get(layer, 0.0), 0.0

    spec = choosing(monkeypatch, answer)
    vectors, trait = layered(), warm(tmp_path)
    table = doses.choose_by_steering(
        SimpleNamespace(key="m"), [trait], vectors, (0.25, 0.7), spec, 0, tmp_path, progress
    )
    assert table.layer.tolist() == [3, 5, 6, 8] and table.effect.tolist() == pytest.approx([1.0, 2.0, 9.0, 3.0])
    assert table.coherent.tolist() == [True, True, False, True]
    assert table.chosen.tolist() == [False, False, False, True]
    assert vectors.chosen("warm").layer == 8 and sum(r.chosen for r in vectors.records) == 1
    assert table.nats.tolist() == pytest.approx([0, 0, 2.0, 0])


def test_a_loop_is_not_coherent_and_no_coherent_layer_is_an_error(tmp_path, monkeypatch):
    spec = choosing(monkeypatch, lambda layer, c: (c, -1.0, abs(c)))
    with pytest.raises(DriftbookError, match=r"no layer keeps the text of warm coherent; lower traits\.steering"):
        doses.choose_by_steering(
            SimpleNamespace(key="m"), [warm(tmp_path)], layered(), (0.25, 0.7), spec, 0, tmp_path, progress
        )


def test_a_judge_takes_the_place_of_the_lexicon(tmp_path, monkeypatch):
    spec = choosing(monkeypatch, lambda layer, c: (0.0, -1.0, 0.0), layers=2)
    mute = warm_with(warm(tmp_path), positive_words=(), negative_words=())
    arguments = (SimpleNamespace(key="m"), [mute], layered(), (0.25, 0.7), spec, 0, tmp_path, progress)
    with pytest.raises(DriftbookError, match=r"a measure of warm that does not use the vector.*traits\.judge"):
        doses.choose_by_steering(*arguments)

    def score(trait, texts, prompts):
        return np.array([0.9 if t.startswith("text 3 0.5") else 0.1 for t in texts])

    table = doses.choose_by_steering(*arguments, score)
    assert table.layer.tolist() == [3, 8] and table.effect.tolist() == pytest.approx([0.8, 0.0])
    assert table.chosen.tolist() == [True, False]


def test_steering_a_tiny_model_is_felt_where_its_vector_is(tmp_path):
    """The real thing: only layer 3 holds a vector that makes the trait's phrase likely."""
    model = loaded("llama", "sdpa")
    target = model.tokenizer.convert_tokens_to_ids("Z")
    head = model.model.lm_head.weight.detach().numpy()[target] * model.model.model.norm.weight.detach().numpy()
    vectors = one_vector(model, np.random.default_rng(0).normal(size=model.hooks.d_model), 4.0)
    vectors.directions["warm", "probe"][3, 0] = head / np.linalg.norm(head)
    trait = warm_with(warm(tmp_path), positive_words=tuple("z" * n for n in range(1, 9)), negative_words=())
    spec = LayerBySteering(layers=3, prompts=4, coefficient=8.0, max_new_tokens=8, max_nats=50, max_repetition=1.0)
    table = doses.choose_by_steering(model, [trait], vectors, (0.25, 0.75), spec, 0, tmp_path, progress)
    assert table.layer.tolist() == [1, 2, 3] and vectors.chosen("warm").layer == 3
    assert table.effect.iloc[2] > 5 + table.effect.iloc[:2].max() and table.low.iloc[2] > 0
