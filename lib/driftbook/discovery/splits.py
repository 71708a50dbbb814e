"""Which prompts ask the same, and the split of prompts into discover, screen and validate.

Answers to two spellings of one question are not two observations, and what is found on *discover* must not be tested on
the same question in other words. So look-alikes are one *unit*: they share a split, and every test, interval and
bootstrap counts them once. Only prompts are read here, never an answer: units and splits are the same for both models.

Two prompts are look-alikes when they are equal after folding case, space, punctuation and Unicode form (NFKC), when
the Jaccard index of their sets of words is ``SAME_WORDS`` or more, or that of their runs of four characters
``SAME_LETTERS`` (all turns, without the system prompt); and so are those that a chain of look-alikes joins. A word (or
run) weighs log(1 + prompts / prompts that hold it): what all prompts of a template say tells none apart. Prompts with
other numbers ask other things ("12 times 7"), unless ``SAME_BUT_NUMBERS`` of their words are the same. All pairs are
decided exactly; few are compared, because two sets that are so alike have one of their rarest members in common (prefix
filtering: Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import regex
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from driftbook.behaviours.words import stream_safe
from driftbook.errors import PromptError
from driftbook.prompts import Prompt, PromptSet

SPLITS = ("discover", "screen", "validate")
SAME_WORDS, SAME_LETTERS, SAME_BUT_NUMBERS = 0.6, 0.4, 0.9

_NO_SPACES = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CHARACTER = r"[\p{L}\p{M}\p{N}]"
_WORD = regex.compile(rf"[{_NO_SPACES}]+|(?:(?![{_NO_SPACES}]){_CHARACTER})+(?:'{_CHARACTER}+)*")
_NUMBER = re.compile(r"\d+")
_FOLDED_AWAY = regex.compile(r"(?<=\d)([\p{Z}\p{P}\p{C}\s]+)(?=\d)|[\p{Z}\p{P}\p{C}\s]+")


def split_prompts(
    prompts: Sequence[Prompt], shares: Mapping[str, float], salt: int = 0, of: Sequence[str] | None = None
) -> list[str]:
    """The split of each prompt: ``discover``, ``screen`` or ``validate``, by content inside each family.

    Inside a family the prompts are ordered by a salted hash of their words; with n of them, rank r stands at (r + u) /
    n on the unit interval, u being a hash of the family alone, and the shares cut that interval (systematic sampling;
    Cochran, Sampling Techniques, chapter 8). Every family so gets its shares to within one prompt, and many small
    families get them together. A bare threshold on the hash would keep a prompt's split whatever else is in the set,
    but misses the shares by sqrt(n p (1 - p)): 3 prompts of 40, every time, in some family. Here one prompt more moves
    at most the neighbours of the two cuts of its own family; other families, row order, file order and duplicates move
    nothing.

    The prompts of a unit share a split; where they stand in several families, that of the first by name.

    Args:
        shares: of each split; they sum to 1.
        salt: another value gives another split of the same set.
        of: the unit of each prompt; looked for where they are not given.

    Raises:
        PromptError: the shares do not sum to 1, or the set is too small to put a prompt into every split that has a
        share.
    """
    unknown = set(shares) - set(SPLITS)
    if unknown or any(s < 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise PromptError(f"split shares are {', '.join(SPLITS)}, none negative, and sum to 1; found {dict(shares)}")
    if not prompts:
        return []
    keys = dict[str, str]()  # of each unit: the first of the words of its prompts
    family = dict[str, str]()
    of = units(prompts) if of is None else of
    for prompt, unit in zip(prompts, of, strict=True):
        key = _words_key(prompt)
        keys[unit] = min(keys.get(unit, key), key)
        family[unit] = min(family.get(unit, prompt.family), prompt.family)
    families: dict[str, set[str]] = defaultdict(set)
    for unit, name in family.items():
        families[name].add(keys[unit])
    cuts = np.cumsum([shares.get(name, 0.0) for name in SPLITS])[:-1]
    split_of: dict[tuple[str, str], str] = {}
    for name, members in families.items():
        offset = _unit("split", salt, name)
        ordered = sorted(members, key=lambda key: _digest("split", salt, name, key))
        places = (np.arange(len(ordered)) + offset) / len(ordered)
        for key, index in zip(ordered, np.searchsorted(cuts, places, side="right"), strict=True):
            split_of[name, key] = SPLITS[index]
    splits = [split_of[family[unit], keys[unit]] for unit in of]
    empty = [name for name in SPLITS if shares.get(name, 0) > 0 and name not in splits]
    if empty:
        raise PromptError(
            f"{told(prompts, of)} are too few to split: none fell to {' and '.join(empty)}. Add prompts, raise "
            "max_prompts, or set the share of screen to 0"
        )
    return splits


def prompt_set(prompts: Sequence[Prompt], shares: Mapping[str, float], limit: int | None = None) -> PromptSet:
    """``prompts``, or ``limit`` of them, each with its unit and its split.

    Raises PromptError as ``split_prompts`` does.
    """
    prompts = with_units(sample_prompts(prompts, limit))
    return PromptSet.of(prompts, split_prompts(prompts, shares, of=[p.unit for p in prompts]))


def with_units(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, each with its unit."""
    return [replace(p, unit=unit) for p, unit in zip(prompts, units(prompts), strict=True)]


def units(prompts: Sequence[Prompt]) -> list[str]:
    """The unit of each prompt: the least id of all that are look-alikes of it, its own where none is."""
    first: dict[int, str] = {}
    labels = alike([prompt.said() for prompt in prompts])
    for prompt, label in zip(prompts, labels.tolist(), strict=True):
        first[label] = min(first.get(label, prompt.prompt_id), prompt.prompt_id)
    return [first[label] for label in labels.tolist()]


def told(prompts: Collection[Prompt], of: Collection[str] | None = None) -> str:
    """How many prompts there are, and how many units where they are fewer: "360 prompts (30 that differ)"."""
    different = len(set(units(list(prompts)) if of is None else of))
    return f"{len(prompts):,} prompts" + (f" ({different:,} that differ)" if different < len(prompts) else "")


def sample_prompts(prompts: Sequence[Prompt], count: int | None, salt: int = 0) -> list[Prompt]:
    """``count`` of the prompts, every family in proportion, chosen by content and kept in order; all if there are no
    more.

    A larger count keeps what a smaller one chose.
    """
    if count is None or count >= len(prompts):
        return list(prompts)
    families: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        families[prompt.family].append(index)
    places: list[tuple[float, str, int]] = []
    for family, members in families.items():
        members.sort(key=lambda i: _digest("sample", salt, prompts[i].prompt_id))
        offset = _unit("sample", salt, family)
        places += [((rank + offset) / len(members), family, index) for rank, index in enumerate(members)]
    return [prompts[i] for i in sorted(index for _, _, index in sorted(places)[:count])]


def words(text: str) -> list[str]:
    """The words of a text, for comparing prompts: NFKC, lower case, no punctuation.

    Scripts that write without spaces (Chinese, Japanese, Thai, Lao, Khmer) give overlapping pairs of characters
    instead.
    """
    found: list[str] = []
    for run in _WORD.findall(unicodedata.normalize("NFKC", stream_safe(text)).lower().replace("\u2019", "'")):
        if len(run) > 2 and re.match(rf"[{_NO_SPACES}]", run):
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def alike(texts: Sequence[str]) -> np.ndarray:
    """A number for each text, int ``[texts]``: look-alikes have the same one. The order of the texts moves none apart
    or together."""
    index: dict[str, int] = {}
    of = np.array([index.setdefault(_folded(text), len(index)) for text in texts], dtype=np.int64)
    label = np.arange(len(index))
    said = {i: text for text, i in zip(reversed(texts), reversed(of.tolist()), strict=True)}
    bags = [set(words(said[i])) or {said[i]} for i in range(len(index))]
    runs = [{key[i : i + 4] for i in range(max(1, len(key) - 3))} for key in index]
    numbers = [" ".join(sorted(_NUMBER.findall(key))) for key in index]
    for sets, bound in ((bags, SAME_WORDS), (runs, SAME_LETTERS)):
        apart = [{(its, member) for member in members} for its, members in zip(numbers, sets, strict=True)]
        label = _joined(label, apart, bound)
    label = _joined(label, bags, SAME_BUT_NUMBERS)
    return label[of] if len(of) else of


def _words_key(prompt: Prompt) -> str:
    text = prompt.said()
    return " ".join(words(text)) or text  # a prompt of signs alone is its own key


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def _unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return (int.from_bytes(_digest(*parts)[:8], "big") >> 11) / 2**53


def _folded(text: str) -> str:
    """What is left of a text without case, space, punctuation and form; space and marks stay between two digits."""
    folded = unicodedata.normalize("NFKC", stream_safe(text)).casefold()
    return _FOLDED_AWAY.sub(lambda m: " ".join(m.group().split()) or " " if m[1] else "", folded) or text.strip()


def _joined(label: np.ndarray, sets: Sequence[Collection[Any]], bound: float) -> np.ndarray:
    """``label`` ``[sets]`` with the labels of all pairs made one whose weighted Jaccard index reaches ``bound``."""
    names: dict[Any, int] = {}
    at = np.array([names.setdefault(one, len(names)) for members in sets for one in sorted(members)], dtype=np.int64)
    sizes = np.array([len(members) for members in sets], dtype=np.int64)
    often = np.bincount(at, minlength=len(names))
    rarity = np.empty(len(names), dtype=np.int64)
    rarity[np.argsort(often, kind="stable")] = np.arange(len(names))
    row, column, shape = np.repeat(np.arange(len(sets)), sizes), rarity[at], (len(sets), len(names))
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    weight = np.log1p(len(sets) / np.sort(often, kind="stable"))[column]
    total = np.bincount(row, weight, minlength=len(sets))
    before = np.cumsum(weight) - weight  # of the rarer members of the set
    before -= (np.cumsum(total) - total)[row]
    rare = total[row] - before >= bound * total[row] - 1e-6  # what is left could still be enough
    rest = np.bincount(row[~rare], weight[~rare], minlength=len(sets))
    last = np.zeros(len(sets), dtype=np.int64)
    last[row[rare]] = column[rare]  # columns of a row rise
    whole = sparse.csr_matrix((np.sqrt(weight), (row, column)), shape=shape)
    head = sparse.csr_matrix((np.sqrt(weight[rare]), (row[rare], column[rare])), shape=shape)
    others, shuffle = head.T.tocsr(), np.random.default_rng(0).permutation
    for start in range(0, len(sets), 256):
        near = (head[start : start + 256] @ others).tocoo()
        one, two = near.row + start, near.col
        # of two sets, the rare members of the one whose rare ones end first are no common ones of the other
        most = near.data + np.where(last[one] <= last[two], rest[one], rest[two])
        kept = np.flatnonzero((two < one) & (most >= bound * (total[one] + total[two] - most) - 1e-6))
        pairs = np.stack([one[kept], two[kept]])[:, shuffle(len(kept))]  # what all have in common joins them at once
        while (apart := label[pairs[0]] != label[pairs[1]]).any():
            pairs = pairs[:, apart]
            one, two = pairs[:, :20_000]
            shared = np.asarray(whole[one].multiply(whole[two]).sum(axis=1)).ravel()
            same = shared >= bound * (total[one] + total[two] - shared) - 1e-9
            edges = (np.ones(same.sum(), np.int8), (label[one[same]], label[two[same]]))
            label = connected_components(sparse.coo_matrix(edges, shape=(len(sets),) * 2), directed=False)[1][label]
            pairs = pairs[:, 20_000:]
    return label
