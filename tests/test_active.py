"""Active sampling: where it sends texts, when it stops, and that what it samples stays unbiased and fair."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from driftbench import pools as pool
from driftbench import savings
from driftbook.discovery import composition, strategies
from driftbook.discovery.strategies import State, Tally, memberships, propensities, tally, weigh
from driftbook.prompts import SIDES, Prompt, PromptSet
from driftbook.workbook import keys

EVEN = np.ones(60)
SMALL = pool.World(prompts=120, families=6, behaviours=8, planted=2, scattered=0.0, strengths=(0.4,), nuisance=0.5)


def made_up(
    per_prompt: int = 4, prompts: int = 60, shift: float = 0.6, families: int = 3, seed: int = 0
) -> tuple[Tally, list[str]]:
    """Families of equal size and three clusters; in ``family 0`` the intervention turns cluster 0 into cluster
    1.
    """
    rng = np.random.default_rng(seed)
    family = np.arange(prompts) % families
    unit = np.repeat(np.arange(prompts), 2 * per_prompt)
    changed = np.tile(np.arange(2 * per_prompt) < per_prompt, prompts)
    label = rng.choice(3, len(unit), p=[0.4, 0.2, 0.4])
    moved = changed & (family[unit] == 0) & (label == 0) & (rng.random(len(unit)) < shift)
    label[moved] = 1
    return tally(unit, changed, np.eye(3)[label], prompts), [f"family {f}" for f in family]


def test_texts_go_to_the_family_whose_sides_differ():
    found, families = made_up()
    weight = weigh(found, families, None, EVEN, left=240).weight
    mean = {f: weight[np.array(families) == f].mean() for f in set(families)}
    assert mean["family 0"] > 1.5 * max(mean["family 1"], mean["family 2"])


def test_more_divergence_means_more_texts_where_the_texts_do_not_speak_against_it():
    found, families = made_up(per_prompt=1, shift=0.0)
    js = np.where(np.arange(60) < 30, 0.01, 0.2)
    weight = weigh(found, families, js, EVEN, left=240).weight
    assert weight[30:].mean() > 2.5 * weight[:30].mean()


def test_divergence_that_says_nothing_is_found_out():
    # divergence points at the prompts that do not differ; the texts say otherwise
    found, families = made_up(per_prompt=12, shift=0.9)
    differs = np.array(families) == "family 0"
    js = np.where(differs, 0.02, 0.2)
    weight = weigh(found, families, js, EVEN, left=240).weight
    assert weight[differs].mean() > weight[~differs].mean()


def test_every_prompt_keeps_its_share_of_what_the_screen_gives():
    found, families = made_up(per_prompt=12, shift=0.9)
    js = np.r_[1.0, np.zeros(59)]
    screened = np.where(np.arange(60) < 30, 1.0, 0.1)
    for defensive in (0.1, 0.3):
        weight = weigh(found, families, js, screened, left=240, defensive=defensive).weight
        assert (weight >= defensive * screened / screened.mean() - 1e-12).all()
        assert weight.mean() == pytest.approx(1)


def test_sides_exchanged_give_the_same_plan():
    found, families = made_up()
    other = Tally(found.sums[:, :, ::-1], found.squares[:, :, ::-1], found.texts)
    js = np.random.default_rng(0).random(60)
    one, two = weigh(found, families, js, EVEN, 100), weigh(other, families, js, EVEN, 100)
    np.testing.assert_allclose(one.weight, two.weight)
    np.testing.assert_allclose(one.open, two.open)


def test_a_prompts_own_answers_do_not_earn_it_texts(monkeypatch):
    """With the parameters of the prior fixed, which all cells share, none of the factors hears of a prompt's texts."""
    monkeypatch.setattr(strategies, "SHARES", (0.1,))
    monkeypatch.setattr(strategies, "EFFECTS", (0.4,))
    found, families = made_up(prompts=360, families=24)
    sums = found.sums.copy()
    sums[0] = sums[0][:, ::-1]  # the sides of prompt 0 exchanged
    assert sums[0, :, 1].tolist() != sums[0, :, 0].tolist()
    family = np.unique(families, return_inverse=True)[1]
    factors = []
    for told in (found, Tally(sums, found.squares, found.texts)):
        difference = told.sums[:, :, 1] - told.sums[:, :, 0]
        variance = strategies._variance(told, family)
        still_open = strategies._open(difference, told.texts, variance[family], family, 240)[2]
        factors.append((still_open, strategies._effect(difference, told.texts, 2 * family, variance.repeat(2, axis=0))))
    for before, after in zip(*factors, strict=True):
        np.testing.assert_allclose(after[0], before[0])
        assert np.abs(after[24::24] / before[24::24] - 1).max() > 0.05  # the others of its family hear of it


def test_conclusions_close_as_the_budget_is_spent():
    found, families = made_up(per_prompt=8)
    quality = [weigh(found, families, None, EVEN, left=left).quality for left in (4000, 400, 40, 1, 0)]
    assert quality == sorted(quality)
    assert quality[0] < 0.8 < 0.95 < quality[-1]


def test_a_difference_in_one_family_is_a_conclusion():
    """Twelve families, one differs: settled in its family while it is open over all prompts."""
    found, families = made_up(prompts=240, families=12, per_prompt=6, shift=0.6)
    told, untold = (weigh(found, f, None, np.ones(240), left=1440) for f in (families, ["all"] * 240))
    assert told.open[:2].max() < 1e-3 < 5e-3 < untold.open[:2].min()


def test_a_text_between_two_centres_belongs_to_both():
    rng = np.random.default_rng(0)
    centres = np.eye(2, 8, dtype=np.float32)
    X = np.r_[centres.repeat(50, 0) + 0.1 * rng.standard_normal((100, 8)), [centres.mean(0)]]
    belongs = memberships(X, centres)
    np.testing.assert_allclose(belongs.sum(1), 1)
    assert (belongs[:50, 0] > 0.9).all() and (belongs[50:100, 1] > 0.9).all()
    assert belongs[-1] == pytest.approx([0.5, 0.5])


def test_active_stops_at_the_stated_quality_and_never_passes_the_budget():
    drawn = pool.draw(SMALL, 0)
    texts = {q: pool.sample(drawn, "active", 4000, rounds=4, quality=q) for q in (0.8, 1.0)}
    assert len(texts[0.8]) < len(texts[1.0]) <= 4000
    assert len(texts[1.0]) > 3900
    assert pool.recall(drawn, pool.found(texts[0.8], drawn.truth(texts[0.8]))).all()


def test_active_finds_the_planted_families_and_asks_both_sides_alike():
    drawn = pool.draw(SMALL, 1)
    texts = pool.sample(drawn, "active", 2400, rounds=4)
    counts = texts.groupby(["prompt_id", "side"]).size().unstack()
    assert (counts.base == counts.intervention).all()
    assert not texts.duplicated(["prompt_id", "side", "text_id"]).any()
    true = np.abs(drawn.chances[:, :, 1] - drawn.chances[:, :, 0]).sum(1)
    family = np.array([p.family for p in drawn.prompts.prompts])
    planted = np.isin(family, np.unique(family[true > 0.01]))
    n = counts.base.reindex(drawn.ids).to_numpy()
    assert n[planted].mean() > 1.5 * n[~planted].mean()
    assert n.min() >= 2


def test_the_same_seed_gives_the_same_texts():
    drawn = pool.draw(SMALL, 2)
    one, two = (pool.sample(drawn, "active", 1600, seed=3) for _ in range(2))
    assert one.text_id.tolist() == two.text_id.tolist()


@pytest.mark.parametrize("strategy", ["screened", "active"])
def test_shares_stay_unbiased_under_their_propensities(strategy):
    """Over many draws of the texts, the weighted difference averages to the truth, and the unweighted one does not."""
    world = pool.World(
        prompts=60, families=3, behaviours=4, planted=1, scattered=0.0, affected=0.8, strengths=(0.5,), nuisance=0.2
    )
    drawn = pool.draw(world, 5)
    true = (drawn.chances[:, :, 1] - drawn.chances[:, :, 0]).mean(0)
    errors = {True: [], False: []}
    for repeat in range(80):
        again = pool.redraw(drawn, repeat)
        texts = pool.sample(again, strategy, 720, rounds=2, samples=1, seed=repeat)
        for weighted, into in errors.items():
            chance = propensities(texts) if weighted else None
            counts = composition.count(texts.prompt_id, again.truth(texts), texts.side, chance)
            share = counts.weighted.sum(0) / counts.weighted.sum((0, 1))
            difference = np.zeros(world.behaviours)
            difference[counts.clusters] = share[:, 1] - share[:, 0]
            into.append(difference - true)
    weighted, plain = np.array(errors[True]), np.array(errors[False])
    z = weighted.mean(0) / (weighted.std(0, ddof=1) / np.sqrt(len(weighted)))
    assert np.abs(z).max() < 3.5
    assert np.abs(plain.mean(0)).max() > 4 * np.abs(weighted.mean(0)).max()


def test_without_a_difference_the_test_on_active_texts_keeps_its_level():
    world = pool.World(prompts=60, families=3, behaviours=6, planted=0, deepest=32)
    alarms = savings.false_alarms(world, "active", 6, range(24), rounds=3, samples=1).families.sum()
    assert alarms <= 5  # 5% of 24 is 1.2; more than 5 has a chance of 0.2%


def test_allocation_spends_the_budget_in_proportion():
    weight = np.array([1.0, 2.0, 0.1, 4.0])
    state = SimpleNamespace(seed=0, round=1)
    total = Counter()
    for seed in range(400):
        state.seed = seed
        counts = strategies.allocate(weight, 5, state)
        assert counts.sum() == 5
        total.update(dict(enumerate(counts)))
    share = np.array([total[i] for i in range(4)]) / 2000
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)


def worded(texts):
    """Unit vectors of sentences: each word has a direction of its own."""
    rows = [sum(np.random.default_rng(zlib.crc32(w.encode())).standard_normal(24) for w in t.split()) for t in texts]
    return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_sentences_send_texts_to_the_prompts_whose_openings_differ():
    """Whole answers differ by their topics; in family 0 alone the intervention opens otherwise, some of the time."""
    prompts = [Prompt(f"ask {n}", family=f"family {n % 3}") for n in range(60)]
    rng, rows = np.random.default_rng(0), []
    for n, p in enumerate(prompts):
        for side in ("base", "intervention"):
            for k in range(2):
                opens = "Sure" if side == "intervention" and n % 3 == 0 and rng.random() < 0.3 else f"Well{n % 7}"
                rows.append((f"{n}{side}{k}", side, p.prompt_id, "discover", 0, f"{opens}. Topic{n} a{k}. Topic{n} b."))
    names = ["text_id", "side", "prompt_id", "split", "round", "text"]
    chosen = PromptSet.of(prompts, ["discover"] * len(prompts))
    state = State(chosen, pd.DataFrame(rows, columns=names), None, 0, 1, 3, worded, clusters=8, segments=6)
    view = strategies.look(SimpleNamespace(strategy="active"), state, list(range(60)), left=240)
    weight = np.array([view.weight[np.arange(60) % 3 == f].mean() for f in range(3)])
    assert weight[0] > 1.2 * weight[1:].max() and 0 < view.quality <= 1 and len(view.z) == 24
    other = state.texts["side"].map(dict(zip(SIDES, SIDES[::-1], strict=True)))
    swapped = replace(state, texts=state.texts.assign(side=other))
    again = strategies.look(SimpleNamespace(strategy="active"), swapped, list(range(60)), left=240)
    assert np.allclose(again.weight, view.weight)


def test_an_edit_of_what_groups_the_texts_decodes_them_again():
    reached, _ = keys.reached(["from driftbook import decode"])
    by = {f"driftbook/discovery/{name}.py" for name in ("strategies", "clustering", "embeddings", "groups", "segments")}
    assert by <= set(reached)


def test_js_between_known_distributions():
    chances = np.array([[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(pool.jensen_shannon(chances), [0, np.log(2)], atol=1e-12)
