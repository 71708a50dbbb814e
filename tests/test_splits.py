import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from driftbook.discovery.splits import SPLITS, drop_near_duplicates, sample_prompts, split_prompts, words
from driftbook.errors import PromptError
from driftbook.prompt_files import read_prompts
from driftbook.prompts import Prompt

ROOT = Path(__file__).parents[1]
SHARES = {"discover": 0.5, "screen": 0.2, "validate": 0.3}


@pytest.fixture(scope="module")
def shipped() -> list[Prompt]:
    return read_prompts(["params/prompts/discovery.jsonl"], ROOT)


def numbered(family: str, count: int) -> list[Prompt]:
    return [Prompt(f"{family} question number {i}", family) for i in range(count)]


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("salt", [0, 1, 2])
def test_every_family_gets_its_shares_to_within_one_prompt(shipped, salt):
    splits = split_prompts(shipped, SHARES, salt)
    counts = Counter((p.family, s) for p, s in zip(shipped, splits, strict=True))
    for family in {p.family for p in shipped}:
        for name, share in SHARES.items():
            assert abs(counts[family, name] - 40 * share) <= 1


def test_many_tiny_families_get_the_shares_together():
    prompts = [Prompt(f"question {i}", f"family {i}") for i in range(1500)]
    counts = Counter(split_prompts(prompts, SHARES))
    for name, share in SHARES.items():
        assert abs(counts[name] / 1500 - share) < 0.04  # 3 standard deviations of a binomial share


def test_the_split_does_not_depend_on_the_order_of_the_prompts(shipped):
    split = dict(zip(shipped, split_prompts(shipped, SHARES), strict=True))
    shuffled = random.Random(0).sample(shipped, len(shipped))
    assert dict(zip(shuffled, split_prompts(shuffled, SHARES), strict=True)) == split


def test_other_families_and_repeated_prompts_move_nothing(shipped):
    advice = [p for p in shipped if p.family == "advice"]
    alone = split_prompts(advice, SHARES)
    assert split_prompts([*advice, *advice[:20], *numbered("other", 7)], SHARES)[:40] == alone


def test_one_more_prompt_moves_at_most_the_neighbours_of_the_two_cuts():
    prompts = numbered("family", 61)
    for count in range(20, 60):
        before, after = split_prompts(prompts[:count], SHARES), split_prompts(prompts[: count + 1], SHARES)
        assert sum(b != a for b, a in zip(before, after[:count], strict=True)) <= 2


def test_another_salt_gives_another_split(shipped):
    first, second = (split_prompts(shipped, SHARES, salt) for salt in (0, 1))
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert 0.28 < same < 0.48  # 0.38 by chance: 0.5^2 + 0.2^2 + 0.3^2; five standard deviations


def test_prompts_with_the_same_words_share_a_split():
    prompts = numbered("family", 40)
    variants = [Prompt(p.text.upper() + "?!", p.family, system="Rhyme.") for p in prompts]
    splits = split_prompts([*prompts, *variants], SHARES)
    assert splits[:40] == splits[40:]


def test_a_share_of_nothing_gets_nothing():
    splits = split_prompts(numbered("family", 41), {"discover": 0.6, "screen": 0.0, "validate": 0.4})
    assert set(splits) == {"discover", "validate"}


def test_no_prompts_have_no_splits():
    assert split_prompts([], SHARES) == []


@pytest.mark.parametrize(
    "shares",
    [
        {"discover": 0.5, "validate": 0.4},
        {"discover": 1.2, "screen": -0.2, "validate": 0.0},
        {"discover": 0.5, "test": 0.5},
    ],
)
def test_shares_that_do_not_make_a_whole_are_refused(shares):
    with pytest.raises(PromptError, match="sum to 1"):
        split_prompts(numbered("family", 40), shares)


def test_a_set_too_small_for_its_splits_is_refused_by_name():
    with pytest.raises(PromptError, match="2 prompts are too few to split: none fell to"):
        split_prompts(numbered("family", 2), SHARES)


# -------------------------------------------------------------------------------------------------------------- samples


def test_a_sample_takes_every_family_in_proportion_and_keeps_the_order(shipped):
    sample = sample_prompts(shipped, 120)
    assert [p for p in shipped if p in set(sample)] == sample
    assert len(sample) == 120
    assert all(abs(n - 10) <= 1 for n in Counter(p.family for p in sample).values())


def test_a_larger_sample_keeps_the_smaller_one_and_order_of_input_does_not_matter(shipped):
    sizes = [12, 13, 60, 200, 480]
    samples = [set(sample_prompts(shipped, n)) for n in sizes]
    assert [len(s) for s in samples] == sizes
    assert all(small < large for small, large in pairwise(samples))
    assert set(sample_prompts(shipped[::-1], 60)) == samples[2]
    assert set(sample_prompts(shipped, 60, salt=1)) != samples[2]


def test_a_sample_of_all_or_more_is_the_whole_set(shipped):
    assert sample_prompts(shipped, None) == sample_prompts(shipped, 1000) == list(shipped)


# ------------------------------------------------------------------------------------------------------ near-duplicates


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Why's the SEA salty?", ["why's", "the", "sea", "salty"]),
        ("don\u2019t -- stop!", ["don't", "stop"]),
        ("ﬁve １２", ["five", "12"]),
        ("snake_case", ["snake", "case"]),
        ("海水为什么", ["海水", "水为", "为什", "什么"]),
        ("why 海", ["why", "海"]),
        ("?!", []),
    ],
)
def test_words_are_compared_without_case_punctuation_or_width(text, expected):
    assert words(text) == expected


def split_by_hand(*rows: tuple[str, str]) -> tuple[list[Prompt], list[str]]:
    return [Prompt(text, source=f"a.txt:{i}") for i, (_, text) in enumerate(rows)], [split for split, _ in rows]


def test_validate_loses_what_resembles_discover_and_the_pair_is_reported():
    prompts, splits = split_by_hand(
        ("validate", "What is the capital of France?"),
        ("discover", "What is the capital of Spain?"),
        ("validate", "Why do cats purr at night?"),
    )
    keep, dropped = drop_near_duplicates(prompts, splits)
    assert keep.tolist() == [False, True, True]
    (row,) = dropped.to_dict("records")
    assert row == {
        "prompt_id": prompts[0].prompt_id,
        "split": "validate",
        "text": "What is the capital of France?",
        "resembles": prompts[1].prompt_id,
        "resembles_split": "discover",
        "resembles_text": "What is the capital of Spain?",
        "similarity": pytest.approx(5 / 7),
    }


def test_pairs_inside_a_split_stay_and_a_dropped_prompt_drops_nothing():
    prompts, splits = split_by_hand(
        ("discover", "a b c d"),
        ("discover", "a b c d e"),
        ("screen", "b c d e f"),  # 4 of 6 with the second
        ("screen", "p q r"),
        ("validate", "d e f b g"),  # 4 of 6 with the dropped third, 3 of 7 with the second
        ("validate", "p q r s"),  # 3 of 4 with the fourth, which is kept
    )
    keep, dropped = drop_near_duplicates(prompts, splits)
    assert keep.tolist() == [True, True, False, True, True, False]
    assert dropped["resembles_split"].tolist() == ["discover", "screen"]


def test_the_threshold_itself_counts_as_resembling():
    prompts, splits = split_by_hand(("discover", "a b c d"), ("validate", "a b c e"), ("validate", "x y"))
    assert drop_near_duplicates(prompts, splits, threshold=0.6)[0].tolist() == [True, False, True]  # 3 of 5
    assert drop_near_duplicates(prompts, splits, threshold=0.61)[0].all()


def test_the_same_question_under_another_system_prompt_or_later_in_a_chat_resembles_it():
    ask = "How do whales sleep in the open ocean?"
    chat = Prompt.from_messages(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": ask}]
    )
    prompts = [Prompt(ask), Prompt(ask, system="Rhyme."), chat, Prompt("Unlike anything else")]
    keep, _ = drop_near_duplicates(prompts, ["discover", "validate", "validate", "validate"])
    assert keep.tolist() == [True, False, False, True]


def test_all_pairs_are_found_with_frequent_and_rare_words_and_in_any_order():
    rng = random.Random(1)
    vocabulary = [f"w{i}" for i in range(300)]
    weights = [1 / (i + 1) for i in range(300)]
    texts = dict.fromkeys(" ".join(rng.choices(vocabulary, weights, k=rng.randint(2, 8))) for _ in range(1500))
    prompts = [Prompt(text) for text in texts]
    splits = [rng.choice(SPLITS) for _ in prompts]
    expected = brute_force(prompts, splits, 0.6)
    assert 100 < (~expected).sum() < 1000
    keep, dropped = drop_near_duplicates(prompts, splits)
    assert keep.tolist() == expected.tolist()
    assert set(dropped["prompt_id"]) == {p.prompt_id for p, k in zip(prompts, keep, strict=True) if not k}

    order = rng.sample(range(len(prompts)), len(prompts))
    again, table = drop_near_duplicates([prompts[i] for i in order], [splits[i] for i in order])
    assert again.tolist() == keep[order].tolist()
    by_id = ["prompt_id", "split", "resembles"]
    assert sorted(table[by_id].itertuples(index=False)) == sorted(dropped[by_id].itertuples(index=False))


def brute_force(prompts: list[Prompt], splits: list[str], threshold: float) -> np.ndarray:
    sets = [set(words(p.text)) for p in prompts]
    keep = np.ones(len(prompts), bool)
    for position, split in enumerate(SPLITS):
        earlier = [i for i, s in enumerate(splits) if s in SPLITS[:position] and keep[i]]
        for i in (i for i, s in enumerate(splits) if s == split):
            keep[i] = all(len(sets[i] & sets[j]) < threshold * len(sets[i] | sets[j]) for j in earlier)
    return keep


def test_prompts_of_signs_alone_resemble_only_themselves():
    prompts = [Prompt(t) for t in ("?!", "...", "\U0001f41f", "\U0001f41f ")]
    keep, _ = drop_near_duplicates(prompts, ["discover", "validate", "discover", "validate"])
    assert keep.tolist() == [True] * 4


def test_twenty_thousand_prompts_of_one_template_are_told_apart_in_blocks():
    prompts = [Prompt(f"What is the price of item{i % 15000} in the shop?", f"f{i % 3}") for i in range(20_000)]
    others = [Prompt(f"alpha{i} beta{i} gamma{i}") for i in range(30)]
    splits = ["discover"] * 10_000 + ["validate"] * 10_000 + ["validate"] * 30
    keep, dropped = drop_near_duplicates([*prompts, *others], splits)
    assert keep.tolist() == [True] * 10_000 + [False] * 10_000 + [True] * 30
    assert len(dropped) == 10_000


def test_a_split_that_would_lose_everything_is_refused():
    prompts, splits = split_by_hand(("discover", "a b c d"), ("validate", "a b c d e"))
    with pytest.raises(PromptError, match="all 1 prompts of validate resemble"):
        drop_near_duplicates(prompts, splits)


def test_nothing_to_compare_keeps_everything():
    keep, dropped = drop_near_duplicates([Prompt("a"), Prompt("b")], ["validate", "validate"])
    assert keep.all()
    assert dropped.empty
    assert "similarity" in dropped
    assert drop_near_duplicates([], [])[0].shape == (0,)


@pytest.mark.parametrize("threshold", [0.0, 1.5, -1.0])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        drop_near_duplicates([Prompt("a")], ["discover"], threshold)


def test_a_split_of_another_name_is_refused():
    with pytest.raises(ValueError, match="discover"):
        drop_near_duplicates([Prompt("a")], ["test"])


def test_nothing_of_the_discovery_set_is_dropped(shipped):
    for salt in range(3):
        keep, _ = drop_near_duplicates(shipped, split_prompts(shipped, SHARES, salt))
        assert keep.all()
