"""The traits stage on a tiny model: files, answers, planted directions, combinations, and the choice of a layer."""

import json

import numpy as np
import pandas as pd
import pytest

from driftbook import traits
from driftbook.errors import DriftbookError, PromptError
from driftbook.models import directions, formats
from driftbook.models.gradients import likelihood_gradients
from driftbook.models.projection import all_points
from driftbook.models.replay import TokenSequence
from driftbook.models.traitfiles import Scenario, Trait, combined_trait, read_traits
from driftbook.models.vectors import VectorSet
from driftbook.parameters import Combination
from models import hidden_states, loaded

SCENARIOS = [
    {
        "id": f"s{i}",
        "prompt": f"What about {topic}?",
        "positive": f"Wonderful, {topic} is great!",
        "negative": f"I dislike {topic}.",
    }
    for i, topic in enumerate(["rain", "tea", "drums", "rivers", "plans", "reports", "night", "Paris"])
]
FILE = {
    "trait": "warm",
    "definition": "Speaks with warmth.",
    "high": "warm",
    "low": "cold",
    "instruction": {"positive": "Be warm.", "negative": "Be cold."},
    "scenarios": SCENARIOS,
    "eval_prompts": ["How are you?", "What is a tide?"],
    "lexicon": {"positive": ["wonderful", "so glad"], "negative": ["dislike"]},
}


def write(root, value, name="warm.json"):
    path = root / "params" / "traits" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def warm(root, **options) -> Trait:
    write(root, FILE)
    return read_traits(["params/traits/warm.json"], root, **options)[0]


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_trait_file_is_read_whole(tmp_path):
    trait = warm(tmp_path)
    assert (trait.name, trait.definition, trait.high, trait.low) == ("warm", "Speaks with warmth.", "warm", "cold")
    assert [s.scenario_id for s in trait.scenarios] == [f"s{i}" for i in range(8)]
    assert trait.scenarios[1].positive == "Wonderful, tea is great!"
    assert trait.instructions == (("Be warm.", "Be cold."),)
    assert (trait.positive_words, trait.negative_words) == (("wonderful", "so glad"), ("dislike",))


PERSONA = {
    "instruction": [{"pos": "Be warm.", "neg": "Be cold."}, {"pos": "Show warmth.", "neg": "Show none."}],
    "questions": [f"What about {i}?" for i in range(10)],
    "eval_prompt": "Rate {answer} to {question}.",
}


def test_a_persona_vectors_file_is_a_trait_without_written_answers(tmp_path):
    write(tmp_path, PERSONA, "so_warm.json")
    (trait,) = read_traits(["params/traits/so_warm.json"], tmp_path, "instructed")
    assert trait.name == "so_warm" and trait.instructions == (("Be warm.", "Be cold."), ("Show warmth.", "Show none."))
    asked = [s.prompt for s in trait.scenarios]
    assert asked == PERSONA["questions"][:8] and trait.eval_prompts == ("What about 8?", "What about 9?")
    with pytest.raises(PromptError, match=r"no written answers.*set traits\.scenarios: instructed"):
        read_traits(["params/traits/so_warm.json"], tmp_path)
    write(tmp_path, {"questions": ["a", "b"]}, "so_warm.json")
    with pytest.raises(PromptError, match=r"key 'instruction' is missing; a trait file needs instruction"):
        read_traits(["params/traits/so_warm.json"], tmp_path, "instructed")


def test_globs_take_every_file_once(tmp_path):
    write(tmp_path, FILE)
    write(tmp_path, {**FILE, "trait": "terse"}, "terse.json")
    found = read_traits(["params/traits/*.json", "params/traits/warm.json"], tmp_path)
    assert [t.name for t in found] == ["terse", "warm"]


def without(key: str) -> dict:
    return {k: v for k, v in FILE.items() if k != key}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"trait": "warm",\n "definition": }', r"warm\.json:2: not JSON"),
        *[
            (without(key), rf"warm\.json: key '{key}' is missing")
            for key in ("trait", "definition", "high", "low", "scenarios", "eval_prompts")
        ],
        (
            {**FILE, "scenarios": [{"id": "a", "prompt": "p", "positive": "x"}]},
            r"warm\.json: key 'scenarios\.0\.negative' is missing",
        ),
        ({**FILE, "scenarios": None}, r"warm\.json: scenarios: Input should be a valid list"),
        ({**FILE, "scenarios": []}, r"warm\.json: scenarios: List should have at least 1 item"),
        ({**FILE, "lexicon": {"positive": "so glad"}}, r"lexicon\.positive: Input should be a valid list"),
        ({**FILE, "eval_prompts": "Why?"}, r"eval_prompts: Input should be a valid list"),
        ({**FILE, "eval_prompts": ["Why?", 3]}, r"eval_prompts\.1: Input should be a valid string"),
        ({**FILE, "trait": ["warm"]}, r"trait: Input should be a valid string"),
        ({**FILE, "scenarios": [{"id": 1, "prompt": "p", "positive": "x", "negative": ""}]}, r"scenario 1 has no writ"),
        ([FILE], r"warm\.json: .*a trait file needs trait, definition"),
        ("3", r"warm\.json: .*a trait file needs trait, definition"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, content, said):
    write(tmp_path, content)
    with pytest.raises(PromptError, match=said):
        read_traits(["params/traits/warm.json"], tmp_path)


def test_a_missing_file_and_a_missing_instruction_are_named(tmp_path):
    for pattern in ("params/traits/none.json", "params/nowhere/*.json"):
        with pytest.raises(PromptError, match=f"trait file '{pattern.replace('*', r'[*]')}'"):
            read_traits([pattern], tmp_path)
    write(tmp_path, without("instruction"))
    assert len(read_traits(["params/traits/warm.json"], tmp_path)) == 1
    with pytest.raises(PromptError, match="key 'instruction' is missing"):
        read_traits(["params/traits/warm.json"], tmp_path, "instructed")


# ---------------------------------------------------------------------------------------------------------- activations


def test_contrasts_are_pooled_over_each_answers_own_tokens(tmp_path):
    model, trait = loaded("llama", "sdpa"), warm(tmp_path, max_scenarios=4)
    told = []
    answers = traits.written_answers(model, trait)
    (contrast,) = traits.read_contrasts(
        model, [answers], ["resid_pre", "resid_post"], "response_avg", tmp_path, told.append
    )
    assert contrast.states.shape == (8, 8, model.hooks.d_model) and sum(told) == 8
    assert contrast.labels.tolist() == [1, 0] * 4 and answers.scenarios.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert contrast.pairs == 4 and contrast.gradients is None
    for k, s in enumerate(trait.scenarios):
        for j, answer in enumerate((s.positive, s.negative)):
            prompt = model.encode_prompt(s.prompt)
            ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert prompt[0] == model.tokenizer.bos_token_id and model.tokenizer.bos_token_id not in [*prompt[1:], *ids]
            h = hidden_states(model, (*prompt, *ids))
            np.testing.assert_allclose(
                contrast.states[2 * k + j, 3], h[2][len(prompt) :].mean(0), atol=2e-4
            )  # (1, resid_post)
            assert contrast.token_counts[2 * k + j] == len(ids)


def test_contrasts_come_from_the_cache_until_something_changes(tmp_path, monkeypatch):
    model = loaded("llama", "sdpa")
    answers = [traits.written_answers(model, warm(tmp_path, max_scenarios=4))]
    arguments = (["resid_post"], "response_avg", tmp_path)
    (first,) = traits.read_contrasts(model, answers, *arguments)
    replays, replay = [], traits.replay
    monkeypatch.setattr(traits, "replay", lambda *a, **k: (replays.append(1), replay(*a, **k))[1])
    told = []
    (again,) = traits.read_contrasts(model, answers, *arguments, told.append)
    np.testing.assert_array_equal(again.states, first.states)
    assert replays == [] and sum(told) == 8
    traits.read_contrasts(model, answers, ["resid_post"], "response_last", tmp_path)
    traits.read_contrasts(model, [traits.written_answers(model, warm(tmp_path, max_scenarios=5))], *arguments)
    assert len(replays) == 2


def test_gradients_are_read_once_beside_the_states(tmp_path, monkeypatch):
    model, told = loaded("llama", "sdpa"), []
    answers = traits.written_answers(model, warm(tmp_path, max_scenarios=2))
    calls, compute = [], traits.likelihood_gradients
    monkeypatch.setattr(traits, "likelihood_gradients", lambda *a, **k: (calls.append(1), compute(*a, **k))[1])
    for _ in range(2):
        (contrast,) = traits.read_contrasts(
            model, [answers], ["resid_post"], "response_avg", tmp_path, told.append, gradients=True
        )
        assert sum(told) == 4
        told.clear()
    expected = likelihood_gradients(model, answers.sequences, all_points(model, ["resid_post"]))
    np.testing.assert_array_equal(contrast.gradients, expected)
    assert contrast.states.shape == contrast.gradients.shape and len(calls) == 1


def test_written_and_instructed_answers_to_one_prompt_are_one_scenario(tmp_path):
    model = loaded("llama", "sdpa")
    one = traits.written_answers(model, warm(tmp_path, max_scenarios=3))
    other = traits.written_answers(model, warm_with(one.trait, scenarios=one.trait.scenarios[::-1]))
    (both,) = traits.joined([one], [other])
    assert both.scenarios.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 1, 1, 0, 0]
    assert both.labels.tolist() == [1, 0] * 6 and both.sequences == [*one.sequences, *other.sequences]


# -------------------------------------------------------------------------------------------------------------- vectors


def planted(model, tmp_path, layer: int = 2, scenarios: int = 24) -> tuple[traits.Contrast, np.ndarray]:
    """A contrast in which one point of one site holds a direction, and nothing else holds any."""
    rng = np.random.default_rng(0)
    shape = (2 * scenarios, model.hooks.n_layers, 2, model.hooks.d_model)
    v = rng.normal(size=model.hooks.d_model)
    v /= np.linalg.norm(v)
    labels, ids = np.tile([1, 0], scenarios), np.repeat(np.arange(scenarios), 2)
    states = rng.normal(size=shape)
    states[:, layer, 1] += 4 * (2 * labels[:, None] - 1) * v
    trait = warm(tmp_path)
    many = tuple(Scenario(f"s{i}", "p", "a", "b") for i in range(scenarios))
    trait = Trait(**{**trait.__dict__, "scenarios": many})
    return contrast_of(trait, states.reshape(2 * scenarios, -1, shape[-1]).astype(np.float32), labels, ids), v


def contrast_of(trait, states, labels, scenarios, tokens=5, texts=None) -> traits.Contrast:
    """Given states as if the trait's answers had them; ``tokens`` of each answer, or one number for all."""
    counts = np.broadcast_to(tokens, len(labels))
    sequences = [TokenSequence((5,), (6,) * int(n)) for n in counts]
    texts = texts or [("words", "p")] * len(labels)
    return traits.Contrast.of(traits.Answers(trait, sequences, labels, scenarios, texts), states)


def test_every_method_can_be_asked_for(tmp_path):
    model = loaded("llama", "sdpa")
    answers = traits.written_answers(model, warm(tmp_path))
    (contrast,) = traits.read_contrasts(model, [answers], ["resid_post"], "response_avg", tmp_path, gradients=True)
    vectors, table = fitted(
        model, contrast, sites=["resid_post"], method="gradient", methods=directions.METHODS, layer=2
    )
    assert set(table.method) == {"mean_difference", "probe", "pca", "gradient"}
    difference = contrast.gradients[::2].mean(0) - contrast.gradients[1::2].mean(0)
    for layer in range(model.hooks.n_layers):
        found = vectors.record("warm", "gradient", layer, "resid_post")
        assert found.norm == pytest.approx(np.linalg.norm(difference[layer]), rel=1e-4)
        expected = difference[layer] / np.linalg.norm(difference[layer])
        np.testing.assert_allclose(vectors.at("warm", "gradient", layer, "resid_post"), expected, atol=1e-5)
    shape = (4, 1, model.hooks.d_model)
    null = traits.fit_null([contrast], "gradient", 8, shape, 0)
    assert null.shape == (8, *shape) and np.isfinite(null).all()


def fitted(model, contrast, **changes):
    options = dict(
        sites=["resid_pre", "resid_post"], method="probe", site="resid_post", layer="auto", depth=(0.25, 0.8),
        window="response_avg", scenarios="natural", folds=4, shuffles=3, seed=0,
    )  # fmt: skip
    return traits.fit_vectors(model, [contrast], **{**options, **changes})


def test_a_planted_direction_is_found_at_its_point_alone(tmp_path):
    model = loaded("llama", "sdpa")
    contrast, v = planted(model, tmp_path)
    vectors, table = fitted(model, contrast, layer=2)
    assert len(table) == 4 * 2 * 2 and set(table.method) == {"mean_difference", "probe"}
    for method in ("mean_difference", "probe"):
        assert vectors.at("warm", method, 2, "resid_post") @ v > 0.75
        quality = table[table.method == method].set_index(["layer", "site"]).heldout_auc
        assert quality[2, "resid_post"] > 0.95
        assert quality.drop((2, "resid_post")).max() < 0.85
    assert table.null_auc.mean() == pytest.approx(0.5, abs=0.1)
    chosen = vectors.chosen("warm")
    assert (chosen.layer, chosen.site, chosen.method, chosen.pairs) == (2, "resid_post", "probe", 24)
    assert sum(r.chosen for r in vectors.records) == 1 and len(vectors.records) == 16
    expected = np.linalg.norm(contrast.states.reshape(48, 4, 2, -1), axis=-1).mean(0)
    np.testing.assert_allclose(vectors.norms, expected, rtol=1e-5)
    assert chosen.mean_activation_norm == pytest.approx(expected[2, 1])


def test_a_layer_that_was_asked_for_is_taken(tmp_path):
    model = loaded("llama", "sdpa")
    contrast, _ = planted(model, tmp_path)
    assert fitted(model, contrast, layer=1)[0].chosen("warm").layer == 1
    assert fitted(model, contrast)[0].chosen("warm").layer == 2
    with pytest.raises(DriftbookError, match=r"traits\.layer 7: the model has layers 0 to 3"):
        fitted(model, contrast, layer=7)


def test_null_directions_separate_nothing_and_lie_where_answers_do(tmp_path):
    model = loaded("llama", "sdpa")
    contrast, v = planted(model, tmp_path)
    null = traits.fit_null([contrast], "probe", 20, (4, 2, model.hooks.d_model), seed=3)
    assert null.shape == (20, 4, 2, model.hooks.d_model)
    np.testing.assert_allclose(np.linalg.norm(null, axis=-1), 1, rtol=1e-4)
    assert np.abs(null[:, 2, 1] @ v).mean() < 0.7
    assert len({n.tobytes() for n in null}) > 15
    np.testing.assert_array_equal(null, traits.fit_null([contrast], "probe", 20, (4, 2, model.hooks.d_model), seed=3))


def layers_table(auc: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"layer": range(len(auc)), "heldout_auc": auc})


def test_the_layer_is_the_middle_of_the_plateau_inside_the_depths():
    plateau = [0.5, 0.6, 0.7, 0.9, 0.95, 0.955, 0.95, 0.952, 0.95, 0.8, 0.6, 0.5]
    assert traits.choose_layer(layers_table(plateau), (0.25, 0.7)) == 6
    better_outside = [0.99] * 3 + [0.6] * 3 + [0.8] + [0.6] * 2 + [0.99] * 3
    assert traits.choose_layer(layers_table(better_outside), (0.4, 0.6)) == 6
    spike = [0.6] * 12
    spike[4] = 0.7  # one lucky layer does not beat a pair
    spike[7] = spike[8] = 0.69
    assert traits.choose_layer(layers_table(spike), (0.25, 0.8)) in (7, 8)
    two_plateaus = [0.5] * 3 + [0.9] * 2 + [0.5] * 2 + [0.9] * 4 + [0.5]
    assert traits.choose_layer(layers_table(two_plateaus), (0.2, 0.95)) in (8, 9)  # inside one, not between them
    shuffled = layers_table(plateau).sample(frac=1, random_state=0)
    assert traits.choose_layer(shuffled, (0.25, 0.7)) == traits.choose_layer(layers_table(plateau), (0.25, 0.7))


def test_with_few_layers_each_stands_for_itself():
    assert traits.choose_layer(layers_table([0.5, 0.5, 1.0, 0.5]), (0.25, 0.8)) == 2
    assert traits.choose_layer(layers_table([0.9, 1.0, 0.5, 0.5, 0.5, 0.6]), (0.5, 1.0)) == 5
    # What lies outside the depths does not leak in, however many layers there are.
    outside = [1.0] * 4 + [0.6, 0.6, 0.6, 0.7, 0.7, 0.7] + [0.6] * 2
    assert traits.choose_layer(layers_table(outside), (0.33, 0.85)) == 8
    with pytest.raises(DriftbookError, match=r"traits\.depth \(0\.4, 0\.45\): none of the 4 layers lies there"):
        traits.choose_layer(layers_table([0.5] * 4), (0.4, 0.45))


def test_geometry_is_the_table_of_cosines():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 1, 6)).astype(np.float32)
    vectors = VectorSet([0, 1], ["resid_post"], {("x", "probe"): a, ("y", "probe"): -3 * a}, np.ones((2, 1)))
    np.testing.assert_allclose(
        traits.geometry(vectors, ["x", "y"], "probe", 1, "resid_post"), [[1, -1], [-1, 1]], atol=1e-6
    )


def test_length_or_words_that_give_the_label_away_are_said(tmp_path):
    trait, labels, scenarios = warm(tmp_path), np.tile([1, 0], 24), np.repeat(np.arange(24), 2)
    states = np.zeros((48, 1, 2), np.float32)
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(["rain", "sun", "cloud", "wind", "snow"], 6)) for _ in labels]
    plain = contrast_of(trait, states, labels, scenarios, texts=[(t, "p") for t in said])
    assert traits.length_auc(plain) == 0.5 and abs(traits.words_auc(plain, 4, 0) - 0.5) < 0.2
    longer = contrast_of(trait, states, labels, scenarios, np.where(labels, 9, 4))
    assert traits.length_auc(longer) == 1.0
    marked = [(f"{'indeed' if y else 'never'} {t}", "p") for t, y in zip(said, labels, strict=True)]
    given = contrast_of(trait, states, labels, scenarios, np.where(labels, 9, 4), marked)
    assert traits.words_auc(given, 4, 0) == 1.0
    # Words of the prompt are not the answer's: they are not counted.
    echoed = [(t, t.split()[0]) for t, _ in marked]
    assert traits.words_auc(contrast_of(trait, states, labels, scenarios, texts=echoed), 4, 0) < 0.8
    row = traits.overview([given], 4, 0).iloc[0].to_dict()
    assert row == {
        "trait": "warm", "definition": "Speaks with warmth.", "scenarios": 24, "pairs": 24, "tokens_positive": 9.0,
        "tokens_negative": 4.0, "length_auc": 1.0, "words_auc": 1.0,
    }  # fmt: skip


def test_a_vector_that_reads_words_is_no_better_than_words(tmp_path):
    """The control at work: layer 0 of a real model and a bag of words both read a marked word perfectly."""
    model = loaded("llama", "sdpa")
    trait = warm(tmp_path)
    answers = traits.written_answers(model, trait)
    (contrast,) = traits.read_contrasts(model, [answers], ["resid_post"], "response_avg", tmp_path)
    vectors, quality = fitted(model, contrast, sites=["resid_post"], layer=2)
    table = traits.chosen_table(vectors, quality, traits.overview([contrast], 4, 0)).iloc[0]
    assert table.words == table.layer0 == 1.0 and table.source == "fitted"


# --------------------------------------------------------------------------------------------------------- combinations


def planted_pair(model, tmp_path, scenarios: int = 24):
    """Two traits: ``warm`` lies along one axis, ``mixed`` along the sum of that axis and another."""
    rng, d, layers = np.random.default_rng(1), model.hooks.d_model, model.hooks.n_layers
    axes = np.eye(d)[:2]
    labels, ids = np.tile([1, 0], scenarios), np.repeat(np.arange(scenarios), 2)
    out = []
    for name, along in (("warm", axes[0]), ("mixed", (axes[0] + axes[1]) / np.sqrt(2))):
        states = 0.3 * rng.normal(size=(2 * scenarios, layers, d)) + 2 * (2 * labels[:, None, None] - 1) * along
        trait = warm_with(
            warm(tmp_path), name=name, scenarios=tuple(Scenario(f"s{i}", "p", "a", "b") for i in range(24))
        )
        out.append(contrast_of(trait, states.astype(np.float32), labels, ids))
    return out, axes


def test_a_combination_is_a_trait_like_any_other(tmp_path):
    model = loaded("llama", "sdpa")
    contrasts, axes = planted_pair(model, tmp_path)
    combine = [
        Combination(name="both", add=["warm", "mixed"]),
        Combination(name="rest", add=["mixed"], orthogonal_to=["warm"]),
        Combination(name="less", add=["mixed"], subtract=["warm"]),
    ]
    vectors, table = traits.fit_vectors(
        model, contrasts, ["resid_post"], "mean_difference", "resid_post", "auto", (0.25, 0.8), "response_avg",
        "natural", 4, 2, 0, ["mean_difference"], combine,
    )  # fmt: skip
    assert vectors.traits == ["warm", "mixed", "both", "rest", "less"]
    at = {t: vectors.at(t, "mean_difference", 2, "resid_post") for t in vectors.traits}
    assert at["rest"] @ axes[1] > 0.95 and abs(at["rest"] @ at["warm"]) < 1e-5
    expected = at["warm"] + at["mixed"]
    np.testing.assert_allclose(at["both"], expected / np.linalg.norm(expected), atol=1e-5)
    expected = at["mixed"] - at["warm"]
    np.testing.assert_allclose(at["less"], expected / np.linalg.norm(expected), atol=1e-5)
    record = vectors.chosen("rest")
    assert record.source == "combined: mixed, orthogonal to warm" and record.norm == pytest.approx(0.71, abs=0.03)
    assert record.heldout_auc > 0.95 and abs(record.null_auc - 0.5) < 0.3 and record.pairs == 24
    assert set(table.trait) == set(vectors.traits) and sum(r.chosen for r in vectors.records) == 5
    # It reads back, is captured as a column of the matrix, and has an intervention's unit.
    vectors.null = np.zeros((1, 4, 1, model.hooks.d_model), np.float32)
    vectors.save(tmp_path)
    back = VectorSet.load(tmp_path)
    assert back.traits == vectors.traits and back.chosen("rest") == record
    matrix = back.matrix(back.traits, "mean_difference", [(2, "resid_post")])
    np.testing.assert_array_equal(matrix[0, :, 3], at["rest"])
    control = traits.chosen_table(vectors, table, traits.overview(contrasts, 4, 0)).set_index("trait")
    assert np.isnan(control.words["rest"]) and control.length["warm"] == 0.5


def test_a_combination_that_cancels_names_itself_and_the_layer(tmp_path):
    model = loaded("llama", "sdpa")
    (one, _), _ = planted_pair(model, tmp_path)
    twin = traits.Contrast.of(
        traits.Answers(**{**one.answers.__dict__, "trait": warm_with(one.trait, name="twin")}), one.states
    )
    with pytest.raises(DriftbookError, match=r"'none' \(warm - twin\) leaves nothing at layer 0, resid_post"):
        traits.fit_vectors(
            model, [one, twin], ["resid_post"], "pca", "resid_post", 2, (0.2, 0.8), "response_avg", "natural", 4, 1, 0,
            [], [Combination(name="none", add=["warm"], subtract=["twin"])],
        )  # fmt: skip


def test_the_trait_of_a_combination_has_its_parts_prompts_and_phrases(tmp_path):
    words = {"positive_words": ("short",), "negative_words": ("long",)}
    terse = warm_with(warm(tmp_path), name="terse", eval_prompts=("A?", "B?", "C?"), high="terse", low="wordy", **words)
    some = [warm(tmp_path), terse]
    trait = combined_trait(Combination(name="mix", add=["warm"], subtract=["terse"]), some)
    assert trait.eval_prompts == ("How are you?", "A?", "What is a tide?", "B?", "C?")
    assert trait.positive_words == ("wonderful", "so glad", "long") and trait.negative_words == ("dislike", "short")
    assert (trait.definition, trait.high, trait.low) == ("warm - terse", "warm; wordy", "cold; terse")
    with pytest.raises(DriftbookError, match=r"'mix' is made from 'calm', which is in none of traits.files"):
        combined_trait(Combination(name="mix", add=["warm"], orthogonal_to=["calm"]), some)
    with pytest.raises(DriftbookError, match="'warm' is the name of a trait already"):
        combined_trait(Combination(name="warm", add=["terse"]), some)


def test_an_imported_vector_is_judged_by_its_traits_scenarios(tmp_path):
    model = loaded("llama", "sdpa")
    contrasts, axes = planted_pair(model, tmp_path)
    rows = np.tile(5 * axes[0], (model.hooks.n_layers + 1, 1)).astype(np.float32)
    formats.write_persona_vectors(rows, tmp_path / "warm.pt")
    given = formats.imported({"warm": "warm.pt"}, tmp_path, model.hooks.n_layers, model.hooks.d_model, ["resid_post"])
    vectors, _ = traits.fit_vectors(
        model, contrasts, ["resid_post"], "probe", "resid_post", 2, (0.25, 0.8), "response_avg", "natural", 4, 2, 0,
        ["mean_difference"], [Combination(name="rest", add=["mixed"], orthogonal_to=["warm"])], given,
    )  # fmt: skip
    record = vectors.chosen("warm")
    assert (record.source, record.norm, record.method) == ("imported", 5.0, "probe") and record.heldout_auc > 0.99
    np.testing.assert_allclose(vectors.at("warm", "probe", 2, "resid_post"), axes[0], atol=1e-6)
    assert abs(vectors.at("rest", "probe", 2, "resid_post") @ axes[0]) < 1e-5
    np.testing.assert_allclose(formats.to_persona_vectors(vectors, "warm")[1:], rows[1:], atol=1e-5)
    with pytest.raises(DriftbookError, match=r"traits\.imports names 'calm'"):
        traits.fit_vectors(
            model, contrasts, ["resid_post"], "probe", "resid_post", 2, (0.25, 0.8), "response_avg", "natural", 4, 1,
            0, imported={"calm": given["warm"]},
        )  # fmt: skip


def warm_with(trait, **changes) -> Trait:
    return Trait(**{**trait.__dict__, **changes})
