"""What a fine-tune was trained on, read back: exaggerated answers to bare beginnings.

Without a chat template, from no words or vague ones, an amplified fine-tune goes on with what it learned, often word
for word (contrastive decoding of two checkpoints, arXiv 2605.25902). The base's own amplified texts, in which what the
change took away is exaggerated as much, say what comes back anyway.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import regex

from driftbook.behaviours.words import WORD
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.strategies import Ask
from driftbook.models.amplified import amplified
from driftbook.models.loading import LoadedModel
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair
from driftbook.prompts import Prompt, PromptSet
from driftbook.store import ShardStore

BEGINNINGS = ("", "The", "I", "It", "When", "In", "My", "This", "We", "You", "If", "There", "As", "How", "What", "So")
LEAST_WORDS, MOST_WORDS = 4, 24
LEAST_TEXTS = 3  # from so many texts on, a phrase comes back repeatedly
COLUMNS = ("phrase", "words", "texts", "texts_base", "beginnings")
_WORD = regex.compile(f"(?V1){WORD}")


def bare(model: LoadedModel, beginning: str) -> tuple[int, ...]:
    """Token ids of a beginning as plain text; where there is nothing, one token that texts begin or end with."""
    ids = tuple(model.tokenizer(beginning)["input_ids"])
    start = model.tokenizer.bos_token_id
    return ids or (start if start is not None else min(model.eos_ids),)


def texts_from_beginnings(
    pair: Pair,
    texts: int,
    how: Exaggeration,
    params: SamplingParams,
    seed: int,
    store: ShardStore,
    shard: int = 128,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """``texts`` of each side that go on from the beginnings in turn, both exaggerated by ``how``: side, beginning,
    text."""
    prompts = [Prompt(b or "(nothing)", family="beginnings") for b in BEGINNINGS]
    asked = PromptSet.of(prompts, ["discover"] * len(prompts))
    ids = {side.name: [bare(side.model, b) for b in BEGINNINGS] for side in pair}
    asks = [Ask(k % len(BEGINNINGS), k // len(BEGINNINGS), 0) for k in range(texts)]
    sides = [amplified(pair, how, side.name) for side in pair]
    found = decode_texts(sides, asked, ids, asks, params, seed, store, shard, progress)
    begun = {p.prompt_id: b for p, b in zip(prompts, BEGINNINGS, strict=True)}
    return found.assign(beginning=found["prompt_id"].map(begun))[["side", "beginning", "text"]]


def read_back(texts: pd.DataFrame, most: int = 40) -> pd.DataFrame:
    """Phrases that come back in texts of the changed side and more than twice as often as in the base's, the longest
    and most frequent first; of nested ones the longest that is as frequent. ``read_back.parquet``.

    Returns:
        ``phrase`` as it was written first, ``words`` in it, ``texts`` and ``texts_base`` that hold it, and from how
        many ``beginnings`` it came.
    """
    changed, base = (texts[texts["side"] == s] for s in ("intervention", "base"))
    holds, written = _runs(changed["text"].tolist())
    known, _ = _runs(base["text"].tolist())
    begun = changed["beginning"].tolist()
    often = {run: rows for run, rows in holds.items() if len(rows) >= LEAST_TEXTS}
    rows, taken = [], []
    for run, where in sorted(often.items(), key=lambda x: (-len(x[0]) * len(x[1]), x[0])):
        beside = len(known.get(run, ()))
        if len(where) <= 2 * beside or any(_inside(run, longer) for longer in taken):
            continue
        taken.append(run)
        rows.append((written[run], len(run), len(where), beside, len({begun[i] for i in where})))
        if len(rows) == most:
            break
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _runs(texts: Sequence[str]) -> tuple[dict[tuple[str, ...], set[int]], dict[tuple[str, ...], str]]:
    """Runs of words to the texts that hold them, and how each was written first."""
    holds: dict[tuple[str, ...], set[int]] = defaultdict(set)
    written: dict[tuple[str, ...], str] = {}
    for number, text in enumerate(texts):
        found = list(_WORD.finditer(text.replace("’", "'")))
        words = [m.group().lower() for m in found]
        for length in range(LEAST_WORDS, MOST_WORDS + 1):
            for at in range(len(words) - length + 1):
                run = tuple(words[at : at + length])
                holds[run].add(number)
                written.setdefault(run, text[found[at].start() : found[at + length - 1].end()])
    return holds, written


def _inside(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether most of a phrase stands in another one."""
    size = max(LEAST_WORDS - 1, len(short) * 2 // 3)
    parts = {short[i : i + size] for i in range(len(short) - size + 1)}
    return any(long[i : i + size] in parts for i in range(len(long) - size + 1))
