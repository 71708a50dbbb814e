"""Capture: every trait is read at every token, layer and site while both sides answer, in one pass over all prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.discovery.splits import sample_prompts, units
from driftbook.errors import BudgetError, DriftbookError
from driftbook.evidence.dynamics import dynamics, dynamics_summary, null_ranges
from driftbook.evidence.shifts import Scale, answer_means, moved, prompt_means, prompt_shift_table, shift_table
from driftbook.models.capture_files import read_rows, sample_table, token_table, write_rows
from driftbook.models.captured import (
    Probe,
    Sample,
    capture_live,
    capture_replay,
    make_probe,
    null_probe,
    text_scores,
)
from driftbook.models.projection import Rows
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Pair, Side
from driftbook.models.tier3 import Inside, capture_tier3, look_inside, read_internals, tier3_bytes, too_large
from driftbook.models.vectors import VectorSet
from driftbook.prompt_files import check_lengths, read_prompts
from driftbook.prompts import Prompt
from driftbook.stage import Run

__all__ = [
    "capture_live",
    "capture_replay",
    "dynamics_summary",
    "make_probe",
    "null_probe",
    "read_internals",
    "read_rows",
    "sample_table",
    "text_scores",
    "token_table",
    "write_rows",
]

MOST_GIVEN = 24  # prompts of a table of texts that are captured: a capture is for reading token by token
MOST_NULL = 24  # null directions whose dynamics are taken


def sampling(section: Any) -> SamplingParams:
    """How the answers of a capture are drawn."""
    s = section
    thought = s.max_thought_tokens
    return SamplingParams(s.max_new_tokens, s.temperature, s.top_p, s.top_k, max_thought_tokens=thought)


def load_prompts(
    patterns: Sequence[str], root: Path, side: Side, max_new_tokens: int, given: Sequence[Prompt] | None = None
) -> list[Prompt]:
    """The prompts of a capture, or some of those ``given`` (families in proportion); each must leave room for its
    answer."""
    prompts = list(read_prompts(list(patterns), root)) if given is None else sample_prompts(given, MOST_GIVEN)
    check_lengths(prompts, lambda p: len(side.encode(p)), side.model.context - max_new_tokens)
    return prompts


def check_answers(live: dict[str, list[Sample]]) -> None:
    """Refuse a capture that has nothing to read.

    Raises:
        DriftbookError: a side whose every answer is empty.
    """
    for side, samples in live.items():
        if not any(s.answer_ids for s in samples):
            raise DriftbookError(
                f"capture: all {len(samples)} answers of side {side} are empty: the model ends at once. Look at the "
                "chat template (base.chat_template: false gives the prompt as it stands), the prompts, or the table of "
                "texts"
            )


# ---------------------------------------------------------------------------------------------------------------- scale


def read_null(
    side: Side, base: Sequence[Sample], null: Probe, cache: Path, progress: Callable[[int], Any] | None = None
) -> list[tuple[Sample, Rows]]:
    """Null directions read on the base's own answers, the first sample of every prompt that says anything."""
    first = [s for s in base if s.sample == 0 and s.answer_ids]
    return list(zip(first, capture_replay(side, [s.sequence for s in first], null, cache, progress), strict=True))


def make_scale(base: Sequence[Sample], probe: Probe, null: Sequence[tuple[Sample, Rows]]) -> Scale:
    """The units of a capture: the base's mean on every trait, and the spread of the null directions."""
    responses = np.concatenate([s.rows.projection[s.response] for s in base])
    values = np.concatenate([rows.projection[s.response] for s, rows in null])
    return Scale.fit(probe.grid(responses), probe.grid(values))


# ---------------------------------------------------------------------------------------------------------------- shift


def same_tokens(
    pair: Pair,
    base: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, list[Sample]]:
    """The base's answers as each side processes them, replayed in the same batches after the prompt as that side gets
    it.

    Both sides are replayed, the base too: a difference is then exactly zero wherever the two compute the same, which
    the rows of the live capture, made in other batches, would blur by rounding.
    """
    out = {}
    for side in pair:
        encoded = [side.encode(p) for p in prompts]
        sequences = [TokenSequence(encoded[s.prompt], s.sequence.response_ids) for s in base]
        rows = capture_replay(side, sequences, probe, cache, progress)
        out[side.name] = [
            replace(s, side=side.name, sequence=q, rows=r) for s, q, r in zip(base, sequences, rows, strict=True)
        ]
    return out


def _means(samples: Sequence[Sample], probe: Probe, prompts: int) -> list[np.ndarray]:
    """Per prompt ``[answers, layers, sites, traits]``: means of raw projections over the tokens of each response."""
    out = []
    for p in range(prompts):
        said = [s for s in samples if s.prompt == p and s.answer_ids]
        answers = [probe.grid(s.rows.projection[s.response]) for s in said]
        out.append(answer_means(answers) if answers else np.empty((0, *probe.shape)))
    return out


@dataclass(frozen=True)
class Shifts:
    """Both comparisons, told apart by the column ``comparison``: ``traits`` over prompts, ``prompts`` one by one."""

    traits: pd.DataFrame
    prompts: pd.DataFrame


def shift_tables(
    base: Sequence[Sample],
    own: Sequence[Sample],
    same: dict[str, list[Sample]],
    prompts: Sequence[Prompt],
    scale: Scale,
    probe: Probe,
) -> Shifts:
    """The intervention's own text, and the base's tokens under both, against the base: per trait and per prompt."""
    pairs = {"own_text": (base, own), "same_tokens": (same["base"], same["intervention"])}
    ids, alike = [p.prompt_id for p in prompts], units(prompts)
    by_trait, by_prompt = [], []
    for comparison, sides in pairs.items():
        before, after = (_means(samples, probe, len(prompts)) for samples in sides)
        means = [prompt_means(m, probe.shape, alike) for m in (before, after)]
        by_trait.append(shift_table(*means, scale, probe, comparison))
        by_prompt.append(prompt_shift_table(before, after, scale, probe, comparison, ids))
    return Shifts(pd.concat(by_trait, ignore_index=True), pd.concat(by_prompt, ignore_index=True))


# ------------------------------------------------------------------------------------------------------------- dynamics


def dynamics_table(
    samples: Sequence[Sample], prompts: Sequence[Prompt], probe: Probe, scale: Scale, vectors: VectorSet
) -> pd.DataFrame:
    """Commitment, velocity, persistence and change points of every answer and trait, at the trait's chosen layer and
    site."""
    rows = []
    for s in samples:
        score = scale.score(probe.grid(s.rows.projection[s.response]))
        for k, trait in enumerate(probe.traits):
            record = vectors.chosen(trait)
            d = dynamics(score[:, probe.layers.index(record.layer), probe.sites.index(record.site), k])
            rows.append(
                {
                    "sample": s.sample_id,
                    "side": s.side,
                    "prompt_id": prompts[s.prompt].prompt_id,
                    "sample_index": s.sample,
                    "trait": trait,
                    "layer": record.layer,
                    "site": record.site,
                    "tokens": len(score),
                    **d.measures(),
                    "change_points": list(d.change_points),
                }
            )
    return pd.DataFrame(rows)


def null_dynamics(
    null: Sequence[tuple[Sample, Rows]],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    vectors: VectorSet,
    most: int = MOST_NULL,
) -> pd.DataFrame:
    """The same measures of directions that mean nothing, at the points that the traits chose: one row per direction,
    answer and point. ``most`` directions are taken."""
    records = [vectors.chosen(trait) for trait in probe.traits]
    rows = []
    for layer, site in dict.fromkeys((r.layer, r.site) for r in records):
        i, j = probe.layers.index(layer), probe.sites.index(site)
        values = [probe.grid(r.projection[s.response])[:, i, j, :most] for s, r in null]
        centre = np.concatenate(values).mean(0)
        for (s, _), answer in zip(null, values, strict=True):
            for direction, score in enumerate(((answer - centre) / scale.sd[i, j]).T):
                about = {"layer": layer, "site": site, "direction": direction, "prompt_id": prompts[s.prompt].prompt_id}
                rows.append(about | dynamics(score).measures())
    return pd.DataFrame(rows)


def dynamics_tables(
    live: dict[str, list[Sample]],
    null: Sequence[tuple[Sample, Rows]],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    vectors: VectorSet,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every answer's dynamics, and their summary beside the null's."""
    moves = dynamics_table([s for side in live.values() for s in side], prompts, probe, scale, vectors)
    ranges = null_ranges(null_dynamics(null, prompts, probe, scale, vectors))
    unit = dict(zip((p.prompt_id for p in prompts), units(prompts), strict=True))
    return moves, dynamics_summary(moves.assign(prompt_id=moves["prompt_id"].map(unit)), ranges)


# --------------------------------------------------------------------------------------------------------------- tier 3


@dataclass(frozen=True)
class Tier3:
    """What tier 3 has written: the files and their bytes, and each layer of each side on the first answer that says
    anything."""

    paths: list[Path]
    inside: list[Inside]
    neurons: pd.DataFrame
    bytes: int


def tier3(run: Run, pair: Pair, live: dict[str, list[Sample]], prompts: Sequence[Prompt], vectors: VectorSet) -> Tier3:
    """Internals of the chosen layers for the tier 3 prompts of both sides (``capture.tier3``, else every captured
    prompt).

    With ``layers: auto``, the layer of the trait that the intervention names, else of the first trait.

    Raises:
        BudgetError: the files of both sides would exceed ``capture.tier3.max_bytes``.
        DriftbookError: the prompts asked for were not captured.
    """
    wanted = run.section.tier3
    asked = {p.prompt_id for p in read_prompts(list(wanted.prompts or run.section.prompts), run.root)}
    trait = run.params.intervention.about or vectors.traits[0]
    layers = [vectors.chosen(trait).layer] if wanted.layers == "auto" else list(wanted.layers)
    chosen = {side: [s for s in samples if prompts[s.prompt].prompt_id in asked] for side, samples in live.items()}
    if not any(chosen.values()):
        raise DriftbookError(
            f"capture.tier3.prompts {wanted.prompts} are not among capture.prompts; tier 3 reads captured answers"
        )
    need = sum(tier3_bytes(s, layers, [len(x.sequence) for x in chosen[s.name]]) for s in pair)
    if need > wanted.max_bytes:
        raise BudgetError(too_large(need, wanted.max_bytes))
    bar = run.progress(sum(map(len, chosen.values())), "tier 3", "answers")
    paths, inside = [], []
    for side in pair:
        mine = chosen[side.name]
        written = capture_tier3(side, mine, layers, run.data / "internals", wanted.max_bytes, bar.update)
        paths += written
        shown = next((i for i, s in enumerate(mine) if s.answer_ids), None)
        if shown is not None:
            words = [side.model.tokenizer.decode([i]) for i in mine[shown].sequence.ids]
            inside += look_inside(written[shown], mine[shown], prompts[mine[shown].prompt].text, words, layers)
    neurons = [x.neurons.assign(side=x.side, layer=x.layer) for x in inside]
    columns = ["side", "layer", "neuron", "mean", "mean_abs", "peak_token"]
    table = pd.concat(neurons, ignore_index=True)[columns] if neurons else pd.DataFrame(columns=columns)
    return Tier3(paths, inside, table, need)


# ----------------------------------------------------------------------------------------------------------- what moved


def shift_at_chosen(shifts: pd.DataFrame, vectors: VectorSet, comparison: str) -> pd.DataFrame:
    """Each trait at its chosen layer and site, largest shift first."""
    where = pd.DataFrame(
        [(r.trait, r.layer, r.site) for r in map(vectors.chosen, vectors.traits)], columns=["trait", "layer", "site"]
    )
    mine = shifts[shifts.comparison == comparison].merge(where)
    return mine.iloc[mine["shift"].abs().argsort()[::-1]].reset_index(drop=True)


def metrics(
    live: dict[str, list[Sample]], prompts: Sequence[Prompt], pair: Pair, at_chosen: pd.DataFrame
) -> dict[str, float]:
    """The stage's numbers for ``metrics.json``."""
    seconds = sum(s.seconds for samples in live.values() for s in samples)
    tokens = sum(len(s.sequence.response_ids) for samples in live.values() for s in samples)
    out = {
        "model_loads": pair.model_loads,
        "prompts": len(prompts),
        "samples": sum(map(len, live.values())),
        "tokens": tokens,
        "tokens_per_s": tokens / max(seconds, 1e-9),
        "rows_dropped": round(sum(s.dropped for samples in live.values() for s in samples)),
        "traits_moved": len(moved(at_chosen)),
    }
    for row in at_chosen.itertuples():
        out[f"shift_{row.trait}"], out[f"shift_{row.trait}_low"], out[f"shift_{row.trait}_high"] = (
            row.shift,
            row.low,
            row.high,
        )
    return out
