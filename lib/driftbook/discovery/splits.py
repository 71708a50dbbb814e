"""Splitting prompts into discover, screen and validate, and keeping look-alikes from standing on both sides of a split.

What is found on *discover* is tested on *validate*, so a prompt of one that says the same as a prompt of the other
would test a hypothesis on what suggested it. Only prompts are read here, never an answer: the split is the same for
both models.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from driftbook.errors import PromptError
from driftbook.prompts import Prompt, PromptSet

SPLITS = ("discover", "screen", "validate")
"""In the order in which a look-alike is kept: a later split loses what resembles an earlier one."""

_NO_SPACES = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_NO_SPACES}]+|(?:(?![{_NO_SPACES}])[^\W_])+(?:'[^\W_]+)*")


def split_prompts(prompts: Sequence[Prompt], shares: Mapping[str, float], salt: int = 0) -> list[str]:
    """The split of each prompt: ``discover``, ``screen`` or ``validate``, by content inside each family.

    Inside a family the prompts are ordered by a salted hash of their words; with n of them, rank r stands at (r + u) /
    n on the unit interval, u being a hash of the family alone, and the shares cut that interval (systematic sampling;
    Cochran, Sampling Techniques, chapter 8). Every family so gets its shares to within one prompt, and many small
    families get them together. A bare threshold on the hash would keep a prompt's split whatever else is in the set,
    but misses the shares by sqrt(n p (1 - p)): 3 prompts of 40, every time, in some family. Here one prompt more moves
    at most the neighbours of the two cuts of its own family; other families, row order, file order and duplicates move
    nothing.

    Prompts with the same words (whatever the case, punctuation or system prompt) share a split.

    Args:
        shares: of each split; they sum to 1.
        salt: another value gives another split of the same set.

    Raises:
        PromptError: the shares do not sum to 1, or the set is too small to put a prompt into every split that has a
        share.
    """
    unknown = set(shares) - set(SPLITS)
    if unknown or any(s < 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise PromptError(f"split shares are {', '.join(SPLITS)}, none negative, and sum to 1; found {dict(shares)}")
    if not prompts:
        return []
    keys = [_words_key(prompt) for prompt in prompts]
    families: dict[str, set[str]] = defaultdict(set)
    for prompt, key in zip(prompts, keys, strict=True):
        families[prompt.family].add(key)
    cuts = np.cumsum([shares.get(name, 0.0) for name in SPLITS])[:-1]
    split_of: dict[tuple[str, str], str] = {}
    for family, members in families.items():
        offset = _unit("split", salt, family)
        ordered = sorted(members, key=lambda key: _digest("split", salt, family, key))
        places = (np.arange(len(ordered)) + offset) / len(ordered)
        for key, index in zip(ordered, np.searchsorted(cuts, places, side="right"), strict=True):
            split_of[family, key] = SPLITS[index]
    splits = [split_of[prompt.family, key] for prompt, key in zip(prompts, keys, strict=True)]
    empty = [name for name in SPLITS if shares.get(name, 0) > 0 and name not in splits]
    if empty:
        raise PromptError(
            f"{len(prompts)} prompts are too few to split: none fell to {' and '.join(empty)}. Add prompts, raise "
            "max_prompts, or set the share of screen to 0"
        )
    return splits


def prompt_set(prompts: Sequence[Prompt], shares: Mapping[str, float], limit: int | None = None) -> PromptSet:
    """``prompts``, or ``limit`` of them, split by content inside each family, without look-alikes that straddle splits.

    Raises PromptError as ``split_prompts`` and ``drop_near_duplicates`` do.
    """
    prompts = sample_prompts(prompts, limit)
    splits = split_prompts(prompts, shares)
    keep, dropped = drop_near_duplicates(prompts, splits)
    kept = np.flatnonzero(keep)
    return PromptSet.of([prompts[i] for i in kept], [splits[i] for i in kept], dropped)


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
    for run in _WORD.findall(unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")):
        if len(run) > 2 and re.match(rf"[{_NO_SPACES}]", run):
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


def drop_near_duplicates(
    prompts: Sequence[Prompt], splits: Sequence[str], threshold: float = 0.6
) -> tuple[np.ndarray, pd.DataFrame]:
    """Drop from later splits every prompt that resembles one kept in an earlier split; pairs inside a split stay.

    Two prompts resemble each other when the Jaccard index of their word sets (all turns, without the system prompt)
    reaches the
    threshold. All pairs are compared exactly, in blocks: the words of more than one prompt in a hundred as a dense
    product, the rest as a sparse one, so the worst case is bounded and a frequent word costs what a rare one does. The
    order of the rows changes nothing.

    Returns:
        keep: bool, shape (len(prompts),).
        dropped: a row per dropped prompt with its most similar kept one: prompt_id, split, text, resembles (prompt_id),
            resembles_split, resembles_text, similarity.

    Raises:
        PromptError: a split would lose all of its prompts.
        ValueError: threshold is not in (0, 1], lengths differ, or a split has another name.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {threshold}")
    if len(prompts) != len(splits) or not set(splits) <= set(SPLITS):
        raise ValueError(f"one of {SPLITS} is needed for each of {len(prompts)} prompts")
    keep = np.ones(len(prompts), bool)
    rows: list[dict[str, object]] = []
    labels = np.asarray(splits, dtype=object)
    frequent, rare, sizes = _word_matrices(prompts)
    kept = np.flatnonzero(labels == SPLITS[0])
    for split in SPLITS[1:]:
        mine = np.flatnonzero(labels == split)
        order = np.array(sorted(kept.tolist(), key=lambda i: prompts[i].prompt_id), int)  # ties: by content
        best, similarity = _nearest(frequent, rare, sizes, mine, order)
        for index, other, value in zip(mine.tolist(), best.tolist(), similarity.tolist(), strict=True):
            if value >= threshold:
                keep[index] = False
                a, b = prompts[index], prompts[other]
                rows.append(
                    {
                        "prompt_id": a.prompt_id, "split": split, "text": a.text,
                        "resembles": b.prompt_id, "resembles_split": splits[other], "resembles_text": b.text,
                        "similarity": value,
                    }
                )  # fmt: skip
        if len(mine) and not keep[mine].any():
            pair = f"{rows[-1]['text']!r} and {rows[-1]['resembles_text']!r}"
            raise PromptError(
                f"all {len(mine)} prompts of {split} resemble prompts of an earlier split (for example {pair}), so "
                "nothing could be tested on new ones: add prompts that differ"
            )
        kept = np.concatenate([kept, mine[keep[mine]]])
    columns = ["prompt_id", "split", "text", "resembles", "resembles_split", "resembles_text", "similarity"]
    return keep, pd.DataFrame(rows, columns=columns)


def _words_key(prompt: Prompt) -> str:
    text = prompt.said()
    return " ".join(words(text)) or text  # a prompt of signs alone is its own key


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def _unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return (int.from_bytes(_digest(*parts)[:8], "big") >> 11) / 2**53


def _word_matrices(prompts: Sequence[Prompt]) -> tuple[np.ndarray, sparse.csr_matrix, np.ndarray]:
    """Prompts x words as 0 and 1: frequent words dense (float32), rare ones sparse; and the words of each prompt."""
    vocabulary: dict[str, int] = {}
    indices: list[int] = []
    starts = [0]
    for prompt in prompts:
        text = prompt.said()
        for word in dict.fromkeys(words(text) or [text]):
            indices.append(vocabulary.setdefault(word, len(vocabulary)))
        starts.append(len(indices))
    shape = (len(prompts), len(vocabulary))
    table = sparse.csr_matrix((np.ones(len(indices), np.float32), indices, starts), shape=shape)
    common = table.getnnz(axis=0) > max(20, len(prompts) // 100)
    return table[:, common].toarray(), table[:, ~common].tocsr(), table.getnnz(axis=1)


def _nearest(
    frequent: np.ndarray, rare: sparse.csr_matrix, sizes: np.ndarray, rows: np.ndarray, against: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``rows``, the most similar of ``against`` (indices into the prompts) and their Jaccard index."""
    best, similarity = np.zeros(len(rows), int), np.zeros(len(rows))
    if not len(against):
        return best, similarity
    dense_side, sparse_side = frequent[against].T, rare[against].T.tocsr()
    for start in range(0, len(rows), 1024):
        block = rows[start : start + 1024]
        shared = frequent[block] @ dense_side
        product = (rare[block] @ sparse_side).tocoo()
        shared[product.row, product.col] += product.data
        jaccard = shared / (sizes[block][:, None] + sizes[against][None, :] - shared)
        column = jaccard.argmax(axis=1)
        best[start : start + len(block)] = against[column]
        similarity[start : start + len(block)] = jaccard[np.arange(len(block)), column]
    return best, similarity
