import math
import random
import re
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from driftbook.discovery.splits import _joined, alike, prompt_set, sample_prompts, split_prompts, units, words
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


def unit_numbers(texts: list[str]) -> list[int]:
    """0 for the first text and its look-alikes, 1 for the next that is none of them, and so on."""
    labels = alike(texts).tolist()
    return [list(dict.fromkeys(labels)).index(label) for label in labels]


ASKED = "Why is the sea salty?"


@pytest.mark.parametrize(
    "spelling",
    [
        "why is the SEA salty",  # case and punctuation
        "  Why is\tthe sea  salty ?? ",  # space
        "W h y is the sea salty",
        "\uff37\uff48\uff59 is the sea salty?",  # full-width letters: another Unicode form
        "Why is the\u00a0sea salty?\u200b",  # a space and a character that nobody sees
        "Why is the sea salty, please?",  # one word more
        "Why is the sea sallty?",  # a slip of the keyboard
        "The sea: why is it salty?",  # other order, a word more
    ],
)
def test_spellings_of_one_prompt_are_one_unit(spelling):
    assert unit_numbers([ASKED, spelling, "How do whales sleep?"]) == [0, 0, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 12 times 7?", "What is 12 times 8?"),  # other numbers are other questions
        ("Question 17", "Question 18"),
        ("Count to 1 2", "Count to 12"),
        ("?!", "..."),
        ("\U0001f41f", "\U0001f436"),
        ("海水为什么是咸的？", "鲸鱼怎么睡觉？"),
    ],
)
def test_prompts_that_ask_other_things_are_two_units(one, other):
    assert unit_numbers([one, other]) == [0, 1]


def test_long_prompts_that_differ_in_a_number_alone_are_one_unit():
    text = " ".join(first + second for first in "abcdef" for second in "ghijkl")
    assert unit_numbers([f"{text} (1)", f"{text} (2)"]) == [0, 0]


def test_units_are_those_of_a_plain_comparison_of_all_pairs_and_a_chain_joins_its_ends():
    rng = random.Random(1)
    vocabulary = [f"w{i}" if i % 3 else "abcdefghij"[: 1 + i % 7] + "xyz"[i % 3 :] for i in range(120)]
    weights = [1 / (i + 1) for i in range(120)]
    texts = [" ".join(rng.choices(vocabulary, weights, k=rng.randint(1, 9))) for _ in range(120)]
    expected = plainly(texts)
    assert 40 < len(set(expected)) < 115
    assert unit_numbers(texts) == expected
    order = rng.sample(range(120), 120)
    again = dict(zip(order, unit_numbers([texts[i] for i in order]), strict=True))
    pairs = [(again[i], expected[i]) for i in range(120)]
    assert len(set(pairs)) == len(set(expected))  # the same units, in whatever order


def plainly(texts: list[str]) -> list[int]:
    """Units by comparing every pair of different texts and flooding from one to the next."""
    keys = [re.sub(r"(?<!\d) | (?!\d)", "", t) for t in texts]
    different = {key: t for key, t in zip(reversed(keys), reversed(texts), strict=True)}
    runs = {key: {key[i : i + 4] for i in range(max(1, len(key) - 3))} for key in different}
    bags = {key: set(words(t)) for key, t in different.items()}
    numbers = {key: sorted(re.findall(r"\d+", key)) for key in different}
    n = len(different)

    def near(sets: dict, one: str, two: str, among: list[str]) -> float:
        weight = {m: math.log1p(n / sum(m in sets[k] for k in among)) for m in sets[one] | sets[two]}
        return sum(weight[m] for m in sets[one] & sets[two]) / sum(weight.values())

    def same(i: int, j: int) -> bool:
        one, two = keys[i], keys[j]
        if one == two or near(bags, one, two, list(different)) >= 0.9 - 1e-12:
            return True
        if numbers[one] != numbers[two]:
            return False
        among = [k for k in different if numbers[k] == numbers[one]]
        return near(bags, one, two, among) >= 0.6 - 1e-12 or near(runs, one, two, among) >= 0.4 - 1e-12

    unit: dict[int, int] = {}
    for start in range(len(texts)):
        if start not in unit:
            number, todo = len(set(unit.values())), [start]
            while todo:
                i = todo.pop()
                if i not in unit:
                    unit[i] = number
                    todo += [j for j in range(len(texts)) if j not in unit and same(i, j)]
    return [unit[i] for i in range(len(texts))]


def test_the_same_question_under_another_system_prompt_or_later_in_a_chat_is_one_unit():
    ask = "How do whales sleep in the open ocean?"
    chat = Prompt.from_messages(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": ask}]
    )
    prompts = [Prompt(ask), Prompt(ask, system="Rhyme."), chat, Prompt("Unlike anything else")]
    found = units(prompts)
    assert found[:3] == [min(p.prompt_id for p in prompts[:3])] * 3 and found[3] == prompts[3].prompt_id


def test_look_alikes_share_a_split_and_none_is_dropped():
    asked = [p.text for p in read_prompts(["params/prompts/discovery.jsonl"], ROOT)[:60]]
    prompts = [Prompt(text + end, family=f"f{i % 3}") for i, text in enumerate(asked) for end in ("", " ", "!", " ?")]
    chosen = prompt_set(prompts, SHARES)
    assert len(chosen) == 240 and chosen.units == 60
    splits = {unit: {p.split for p in chosen.prompts if p.unit == unit} for unit in {p.unit for p in chosen.prompts}}
    assert all(len(found) == 1 for found in splits.values())
    assert split_prompts([Prompt(text, family=f"f{i % 3}") for i, text in enumerate(asked)], SHARES) == [
        p.split for p in chosen.prompts[::4]
    ]


def test_many_prompts_of_one_template_are_told_apart_by_what_they_ask_for():
    names = ["tea", "rain", "bread", "chess", "violins", "glaciers", "taxes", "comets", "maps", "clocks"]
    assert len(set(unit_numbers([f"Tell me about {name}." for name in names]))) == 10
    ends = ("", ".", "!", " please")
    spelled = [f"{start}ell me about {name}{end}" for name in names for start in "Tt" for end in ends]
    assert unit_numbers(spelled) == [i // 8 for i in range(80)]
    assert unit_numbers(["What is the capital of France?", "What is the capital of Spain?"]) == [0, 0]  # nothing else


def test_three_thousand_prompts_with_other_numbers_are_three_thousand():
    assert len(set(unit_numbers([f"What is the price of item{i} in the shop?" for i in range(3000)]))) == 3000


def test_nothing_to_compare_has_no_units():
    assert alike([]).shape == (0,) and units([]) == []


def test_a_hundred_thousand_marks_on_one_letter_are_read():
    assert unit_numbers(["a" + "\u0301" * 100_000, "b"]) == [0, 1]


def test_nothing_of_the_discovery_set_looks_like_another_prompt(shipped):
    assert len(set(units(shipped))) == len(shipped) == 480


def test_too_few_prompts_that_differ_are_refused_with_their_number():
    with pytest.raises(PromptError, match=r"12 prompts \(1 that differ\) are too few to split"):
        prompt_set([Prompt("Why is the sea salty?" + " " * i) for i in range(12)], SHARES)


@pytest.mark.parametrize(("seed", "bound"), [(0, 0.6), (1, 0.7), (2, 0.85), (3, 0.5)])
def test_sets_are_joined_where_comparing_all_pairs_joins_them(seed, bound):
    """Weighted Jaccard index of every pair by hand, and what is linked by steps is one."""
    rng, sets = np.random.default_rng(seed), []
    for _ in range(60):
        own = set(rng.zipf(1.4, 14) % 90)
        sets.append(own)
        for _ in range(int(rng.integers(0, 4))):  # relatives, from near to far
            sets.append({x if rng.random() < 0.85 else int(rng.integers(200)) for x in own})
    often = Counter(x for one in sets for x in one)
    weight = {x: math.log1p(len(sets) / k) for x, k in often.items()}
    group = list(range(len(sets)))
    for a, b in combinations(range(len(sets)), 2):
        shared, whole = (sum(weight[x] for x in part) for part in (sets[a] & sets[b], sets[a] | sets[b]))
        if shared >= bound * whole - 1e-9:
            group = [group[a] if g == group[b] else g for g in group]
    found = _joined(np.arange(len(sets)), sets, bound).tolist()
    assert 60 < len(set(group)) < len(sets)
    assert len(set(zip(found, group, strict=True))) == len(set(found)) == len(set(group))
