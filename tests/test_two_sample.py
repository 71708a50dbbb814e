"""The screen that knows nothing but texts: energy distance per family of prompts."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import energy_distance

from driftbench import pools as pool
from driftbook.discovery import two_sample
from driftbook.discovery.screen import keep_divergent
from driftbook.prompts import Prompt
from driftbook.report.decode import energy_title


def answers(prompts: int, samples: int, shift: float, seed: int, width: int = 1):
    """(vectors, prompt, changed) of normal answers, the changed side's moved by ``shift``."""
    rng = np.random.default_rng(seed)
    prompt = np.tile(np.repeat(np.arange(prompts), samples), 2)
    changed = np.arange(len(prompt)) >= len(prompt) // 2
    return rng.standard_normal((len(prompt), width)) + shift * changed[:, None], prompt, changed


def test_pairs_of_prompts_are_compared_as_written_out():
    vectors, prompt, changed = answers(5, 3, 0.7, 0, width=4)
    prompt[:2] = 1, 2  # not as many answers to each prompt
    between = two_sample.pair_differences(vectors, prompt, changed)

    def apart(i, a, j, b):
        one, other = vectors[(prompt == i) & (changed == a)], vectors[(prompt == j) & (changed == b)]
        return np.mean([np.linalg.norm(x - y) for x in one for y in other])

    for i in range(5):
        for j in range(5):
            wanted = apart(i, 0, j, 1) + apart(i, 1, j, 0) - apart(i, 0, j, 0) - apart(i, 1, j, 1)
            assert between[i, j] == pytest.approx(0 if i == j else wanted)


def test_the_estimate_is_the_energy_distance_of_scipy():
    vectors, prompt, changed = answers(1500, 1, 0.8, 1)
    estimate, low, high, p = two_sample.energy_test([two_sample.pair_differences(vectors, prompt, changed)], 199)
    # scipy pairs every text with itself too, which adds about 2 E|X - X'| / n
    plain = energy_distance(vectors[~changed, 0], vectors[changed, 0]) ** 2
    assert estimate == pytest.approx(plain, abs=0.01) and low < plain < high and p == 1 / 200


def test_the_interval_covers_and_the_null_holds_its_level():
    true = np.mean(
        [energy_distance(*np.random.default_rng(s).normal([[0], [0.8]], 1, (2, 20_000))) ** 2 for s in (0, 1)]
    )
    covered, alarms = 0, 0
    for seed in range(200):
        moved = two_sample.energy_test([two_sample.pair_differences(*answers(30, 1, 0.8, seed))], 0)
        covered += moved[1] <= true <= moved[2]
        null = [two_sample.pair_differences(*answers(n, 2, 0.0, 1000 * n + seed)) for n in (4, 12)]
        alarms += two_sample.energy_test(null, 199, seed)[3] <= 0.05
    assert covered >= 180  # of 190 wanted
    assert alarms <= 20  # 10 expected


def frame(sizes: dict[str, int], differ: set[str]) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(3)
    rows, vectors = [], []
    for family, size in sizes.items():
        for i in range(size):
            for side in ("base", "intervention"):
                rows.append((family, f"{family} {i}", side))
                vectors.append(rng.standard_normal(3) * 0.3 + (family in differ and side == "intervention"))
    return pd.DataFrame(rows, columns=["family", "prompt_id", "side"]), np.array(vectors)


def test_families_are_ranked_by_how_far_their_answers_lie_apart():
    texts, vectors = frame({"a": 12, "b": 12, "c": 12, "d": 2, "e": 3}, {"b"})
    order = np.random.default_rng(0).permutation(len(texts))
    found = two_sample.family_energy(texts, vectors)
    again = two_sample.family_energy(texts.iloc[order].reset_index(drop=True), vectors[order])
    pd.testing.assert_frame_equal(found, again)
    own, everything = found.iloc[:-1], found.iloc[-1]
    assert own.family[0] == "b" and own.p[0] < 0.01 < own.p[1:].min() and own.prompts.sum() == 41 == everything.prompts
    assert everything.family == two_sample.ALL and everything.p < 0.01
    pairs = own.prompts * (own.prompts - 1)
    assert everything.energy == pytest.approx((own.energy * pairs).sum() / pairs.sum())
    assert "2 families of less than 4 prompts" in set(found.family)
    said = energy_title(found)
    assert said.startswith("Answers differ beyond chance over all prompts") and "1 of 4 families" in said
    lonely = texts[~((texts.prompt_id == "b 0") & (texts.side == "base"))]
    assert two_sample.family_energy(lonely, vectors[lonely.index]).prompts[0] == 11


def test_prompts_of_the_families_that_differ_keep_their_weight():
    texts, vectors = frame({"a": 12, "b": 12, "c": 12, "d": 2}, {"b"})
    family_of = texts.drop_duplicates("prompt_id").set_index("prompt_id").family
    found = two_sample.family_energy(texts, vectors)
    screened = keep_divergent(two_sample.energy_of_prompts(found, family_of).assign(js=np.nan), 0.35, 0.1)
    kept = family_of[screened.prompt_id[screened.kept]]
    assert (kept == "b").sum() == 12 and len(kept) == round(0.35 * 38)
    assert (screened.propensity[~screened.kept] == 0.1).all()


def test_one_family_tells_no_prompts_apart():
    texts, vectors = frame({"a": 12}, {"a"})
    family_of = texts.drop_duplicates("prompt_id").set_index("prompt_id").family
    found = two_sample.family_energy(texts, vectors)
    assert found.p[0] < 0.01
    screened = keep_divergent(two_sample.energy_of_prompts(found, family_of).assign(js=np.nan), 0.5, 0.1)
    assert screened.kept.all() and (screened.propensity == 1).all()


def test_large_families_are_read_in_part(monkeypatch):
    texts, vectors = frame({"a": 40}, {"a"})
    monkeypatch.setattr(two_sample, "MOST", 10)
    found = two_sample.family_energy(texts, vectors)
    assert found.prompts[0] == 10 and found.p[0] < 0.01


def test_a_pool_without_divergence_is_screened_by_its_answers():
    prompts = [Prompt(f"question {i}", f"family {i % 4}") for i in range(40)]
    rows = [
        (p.prompt_id, side, f"{'yes' if side == 'intervention' and p.family == 'family 2' else 'no'} {k} {p.text}")
        for p in prompts
        for side in ("base", "intervention")
        for k in range(8)
    ]
    table = pd.DataFrame(rows, columns=["prompt_id", "side", "text"])
    noise = np.random.default_rng(0).standard_normal((1000, 4)) * 0.2

    def vectors(texts):
        return np.array(
            [noise[zlib.crc32(t.encode()) % 1000] + [t.startswith("yes"), 0, 0, 0] for t in texts], np.float32
        )

    held = pool.read_texts(table, prompts, vectors)
    counts = pool.sample(held, "screened", 240, rounds=1, samples=2, keep=0.25).groupby("family").size()
    assert counts["family 2"] > 1.5 * counts.drop("family 2").max()
