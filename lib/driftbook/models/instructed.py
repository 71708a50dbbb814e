"""Answers that a model gives when it is told to show a trait, and told the opposite: sampled, filtered, counted.

A vector from such answers may read the instruction instead of the trait (refusal measured -0.51 on harmful prompts and
+6.15 on benign ones that were told to refuse), so the answers are read behind the prompt alone unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driftbook.behaviours.words import words as words_of
from driftbook.models.doses import net_lexicon, repetition
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.traitfiles import Score, Trait
from driftbook.parameters import Instructed
from driftbook.store import ShardStore, digest

#: Why an answer was left out, in the order in which it is looked at.
REASONS = ("short", "repetitive", "phrases", "judge", "no partner", "length")


def sample_answers(
    model: LoadedModel,
    trait: Trait,
    spec: Instructed,
    seed: int,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Answers to every scenario's prompt under its positive and its negative instruction.

    Scenarios take the trait's instruction pairs in turn. Both sides of a pair draw from the same stream of random
    numbers, so that they differ by the instruction alone. Finished traits come from the cache.

    Args:
        spec: the section ``traits.instructed``: samples, max_new_tokens, temperature, top_p.

    Returns:
        scenario (int), sample, label (1 or 0), instruction, prompt, text, token_ids (without the end token).
    """
    requests, keys = [], []
    for i, s in enumerate(trait.scenarios):
        pair = trait.instructions[i % len(trait.instructions)]
        for k in range(spec.samples):
            for label, system in zip((1, 0), pair, strict=True):
                ids = tuple(model.encode_prompt(s.prompt, system))
                requests.append(Request(ids, stream_seed("instructed", seed, s.prompt, k)))
                keys.append((i, k, label, system, s.prompt))
    params = SamplingParams(spec.max_new_tokens, spec.temperature, spec.top_p)
    store = ShardStore(cache / "instructed")
    key = digest("instructed", model.key, LocalEngine.version, vars(params), [(r.prompt_ids, r.seed) for r in requests])

    def answered() -> pa.Table:
        ids: list[list[int]] = [[] for _ in requests]
        for done in LocalEngine(model).generate(requests, params):
            kept = done.token_ids
            ids[done.index] = kept[:-1] if kept and kept[-1] in model.eos_ids else kept
            if progress:
                progress(1)
        table = pd.DataFrame(keys, columns=["scenario", "sample", "label", "instruction", "prompt"])
        table = table.assign(text=[model.said(row).text.strip() for row in ids], token_ids=ids)
        return pa.Table.from_pandas(table, preserve_index=False)

    return store.kept_table(key, answered, progress, len(requests)).to_pandas()


def filter_answers(answers: pd.DataFrame, trait: Trait, spec: Instructed, score: Score | None = None) -> pd.DataFrame:
    """Say of every answer why it is left out: a column ``dropped``, empty where it is kept.

    ``short``: fewer than ``spec.min_words`` words; ``repetitive``: more than ``spec.max_repetition`` of its word
    triples were said before. With a judge, ``judge``: its score is not above one half for a positive answer, or not
    below it for a negative one (as persona_vectors filters at 50 of 100), or missing. Without, ``phrases``: it has more
    phrases of the other side's lexicon than of its own. What is left is paired within scenario and sample: an answer
    whose partner fell out has ``no partner``, and a pair in which one is more than twice as long as the other falls out
    for its ``length``, which a vector could read.
    """
    words = answers.text.map(lambda text: len(words_of(text))).to_numpy()
    positive = answers.label.to_numpy() == 1
    found = {"short": words < spec.min_words, "repetitive": repetition(answers.text) > spec.max_repetition}
    if score is None:
        net = net_lexicon(answers.text.tolist(), trait)
        found["phrases"] = np.where(positive, net < 0, net > 0)
    else:
        fine = ~(found["short"] | found["repetitive"])
        said = np.full(len(answers), np.nan)
        said[fine] = score(trait, answers.text[fine].tolist(), answers.prompt[fine].tolist())
        found["judge"] = ~np.where(positive, said > 0.5, said < 0.5)
    dropped = np.full(len(answers), "", object)
    for reason, wrong in found.items():
        dropped[(dropped == "") & wrong] = reason
    table = answers.assign(dropped=dropped)
    pair = [table.scenario, table["sample"]]
    whole = table.dropped.eq("").groupby(pair).transform("all")
    table.loc[table.dropped.eq("") & ~whole, "dropped"] = "no partner"
    count = pd.Series(words, index=table.index).groupby(pair)
    uneven = count.transform("max") > 2 * count.transform("min")
    table.loc[table.dropped.eq("") & uneven, "dropped"] = "length"
    return table


def kept_sequences(
    model: LoadedModel, trait: Trait, table: pd.DataFrame, read_instruction: bool
) -> tuple[list[TokenSequence], np.ndarray, np.ndarray]:
    """The kept answers as token ids, with their labels and scenarios; positive and negative in turn.

    ``read_instruction`` leaves the instruction in front of them, as persona_vectors reads them.
    """
    kept = table[table.dropped == ""].sort_values(["scenario", "sample", "label"], ascending=[True, True, False])
    sequences = []
    for row in kept.itertuples():
        prompt = model.encode_prompt(row.prompt, row.instruction if read_instruction else None)
        sequences.append(TokenSequence(tuple(prompt), tuple(int(t) for t in row.token_ids)))
    return sequences, kept.label.to_numpy(), kept.scenario.to_numpy()


def filter_counts(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per trait: answers given, kept, and left out for each reason."""
    rows = []
    for name, table in tables.items():
        counts = table.dropped.value_counts()
        rows.append(
            {"trait": name, "answers": len(table), "kept": int(counts.get("", 0))}
            | {reason: int(counts.get(reason, 0)) for reason in REASONS}
        )
    return pd.DataFrame(rows, columns=["trait", "answers", "kept", *REASONS])
