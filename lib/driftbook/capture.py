"""Capture: every trait is read at every token, layer and site while both sides answer, in one pass over all prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.discovery.splits import sample_prompts
from driftbook.errors import BudgetError, DriftbookError
from driftbook.evidence.dynamics import MEASURES, dynamics, dynamics_summary, null_ranges
from driftbook.evidence.shifts import Grid, Scale, answer_means, prompt_means, prompt_shift_table, shift_table
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
from driftbook.models.loading import LoadedModel
from driftbook.models.projection import Rows
from driftbook.models.replay import TokenSequence
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
        if not any(s.sequence.response_ids for s in samples):
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
    first = [s for s in base if s.sample == 0 and s.sequence.response_ids]
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
    shape = grid_of(probe).shape
    out = []
    for p in range(prompts):
        said = [s for s in samples if s.prompt == p and s.sequence.response_ids]
        answers = [probe.grid(s.rows.projection[s.response]) for s in said]
        out.append(answer_means(answers) if answers else np.empty((0, *shape)))
    return out


def grid_of(probe: Probe) -> Grid:
    """The names of the last axes of what a probe reads."""
    return Grid(probe.layers, probe.sites, probe.traits)


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
    seed: int,
) -> Shifts:
    """The intervention's own text, and the base's tokens under both, against the base: per trait and per prompt."""
    pairs = {"own_text": (base, own), "same_tokens": (same["base"], same["intervention"])}
    grid, ids = grid_of(probe), [p.prompt_id for p in prompts]
    by_trait, by_prompt = [], []
    for comparison, sides in pairs.items():
        before, after = (_means(samples, probe, len(prompts)) for samples in sides)
        means = [prompt_means(m, grid.shape) for m in (before, after)]
        by_trait.append(shift_table(*means, scale, grid, comparison, seed))
        by_prompt.append(prompt_shift_table(before, after, scale, grid, comparison, ids))
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
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every answer's dynamics, and their summary beside the null's."""
    moves = dynamics_table([s for side in live.values() for s in side], prompts, probe, scale, vectors)
    ranges = null_ranges(null_dynamics(null, prompts, probe, scale, vectors))
    return moves, dynamics_summary(moves, ranges, seed)


# ------------------------------------------------------------------------------------------------------------- pictures


def explorer_data(
    pair: Pair,
    base: Sequence[Sample],
    other: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    site: str,
) -> dict[str, Any]:
    """First samples of both sides for the trace explorer: response tokens, scores ``[sample, layer, trait, position]``,
    null band."""
    j = probe.sites.index(site)
    chosen = {"base": [s for s in base if s.sample == 0], "intervention": [s for s in other if s.sample == 0]}
    longest = max(len(s.sequence.response_ids) for side in chosen.values() for s in side)
    projections, tokens = {}, {}
    for side, samples in chosen.items():
        block = np.full((len(samples), len(probe.layers), len(probe.traits), longest), np.nan, np.float32)
        for row, s in enumerate(samples):
            score = scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j]
            block[row, :, :, : len(score)] = score.transpose(1, 2, 0)
        projections[side] = block
        tokenizer = getattr(pair, side).model.tokenizer
        tokens[side] = [[tokenizer.decode([i]) for i in s.sequence.response_ids] for s in samples]
    band = (len(probe.layers), len(probe.traits))
    return {
        "samples": [prompts[s.prompt].text for s in chosen["base"]],
        "traits": probe.traits,
        "layers": probe.layers,
        "tokens": tokens,
        "projections": projections,
        "null_low": np.broadcast_to(scale.low[:, j, None], band),
        "null_high": np.broadcast_to(scale.high[:, j, None], band),
        "unit": "score in null standard deviations",
        "convention": "own",
    }


@dataclass(frozen=True)
class Heatmap:
    """Scores ``[samples, layers, tokens]`` of one trait for the layer x token picture, NaN beyond the end of an
    answer."""

    values: np.ndarray
    tokens: list[list[str]]
    labels: list[str]
    mean: float


def shared_reach(pictures: dict[str, Heatmap]) -> float:
    """What 99% of the scores of all pictures stay within, so that their colours mean the same."""
    scores = np.concatenate([p.values[np.isfinite(p.values)] for p in pictures.values()])
    return float(np.quantile(np.abs(scores), 0.99)) or 1.0


def heatmap_data(
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    site: str,
    trait: str,
    model: LoadedModel,
    most: int = 6,
) -> Heatmap:
    """First samples of the first prompts, for one trait at one site."""
    j, k = probe.sites.index(site), probe.traits.index(trait)
    chosen = [s for s in samples if s.sample == 0 and s.sequence.response_ids][:most]
    scores = [scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j, k].T for s in chosen]
    values = np.full((len(scores), len(probe.layers), max(v.shape[1] for v in scores)), np.nan, np.float32)
    for row, v in enumerate(scores):
        values[row, :, : v.shape[1]] = v
    tokens = [[model.tokenizer.decode([i]) for i in s.sequence.response_ids] for s in chosen]
    return Heatmap(values, tokens, [prompts[s.prompt].text for s in chosen], float(np.nanmean(values)))


# --------------------------------------------------------------------------------------------------------------- tier 3


@dataclass(frozen=True)
class Tier3:
    """What tier 3 shows: the files, and each layer of each side on the first answer that says anything."""

    paths: list[Path]
    inside: list[Inside]
    neurons: pd.DataFrame
    caption: str


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
        shown = next((i for i, s in enumerate(mine) if s.sequence.response_ids), None)
        if shown is not None:
            words = [side.model.tokenizer.decode([i]) for i in mine[shown].sequence.ids]
            inside += look_inside(written[shown], mine[shown], prompts[mine[shown].prompt].text, words, layers)
    neurons = [x.neurons.assign(side=x.side, layer=x.layer) for x in inside]
    columns = ["side", "layer", "neuron", "mean", "mean_abs", "peak_token"]
    table = pd.concat(neurons, ignore_index=True)[columns] if neurons else pd.DataFrame(columns=columns)
    caption = (
        f"Mean |activation| over the response to one prompt, and the token of its peak. {len(paths)} files, "
        f"{need / 1e6:.0f} MB."
    )
    return Tier3(paths, inside, table, caption)


def heads_title(inside: Inside) -> str:
    """The finding over the attention of a layer: how much the first token draws, and who reads the answer itself."""
    first = inside.attention[:, :, 0].mean()
    own = inside.attention[:, :, inside.response].sum(-1).mean(1)
    return (
        f"Layer {inside.layer}, {inside.side}: {first:.0f}% of attention goes to the first token; "
        f"head {own.argmax()} reads the answer most ({own.max():.0f}%)"
    )


def neurons_title(inside: Inside) -> str:
    """The finding over the neurons of a layer."""
    top = inside.neurons.iloc[0]
    return f"Layer {inside.layer}, {inside.side}: neuron {top.neuron} fires most, at {top.peak_token.strip()!r}"


# ----------------------------------------------------------------------------------------------------------- the report


def overview(live: dict[str, list[Sample]]) -> pd.DataFrame:
    """One row per side: answers, tokens, how many ended by themselves, rows, rows computed after an answer's end."""
    return pd.DataFrame(
        {
            "side": list(live),
            "answers": [len(s) for s in live.values()],
            "response_tokens": [sum(len(x.sequence.response_ids) for x in s) for s in live.values()],
            "ended_by_itself": [sum(x.finish_reason == "eos" for x in s) for s in live.values()],
            "rows": [sum(len(x.sequence) for x in s) for s in live.values()],
            "rows_dropped": [round(sum(x.dropped for x in s)) for s in live.values()],
        }
    )


def first_view(intervention: Any, vectors: VectorSet) -> dict[str, Any] | None:
    """What the trace shows first: the trait that the intervention is about, at its layer."""
    trait = intervention.about
    return {"trait": trait, "layer": vectors.chosen(trait).layer, "sample": 0} if trait in vectors.traits else None


def shift_at_chosen(shifts: pd.DataFrame, vectors: VectorSet, comparison: str) -> pd.DataFrame:
    """Each trait at its chosen layer and site, largest shift first."""
    where = pd.DataFrame(
        [(r.trait, r.layer, r.site) for r in map(vectors.chosen, vectors.traits)], columns=["trait", "layer", "site"]
    )
    mine = shifts[shifts.comparison == comparison].merge(where)
    return mine.iloc[mine["shift"].abs().argsort()[::-1]].reset_index(drop=True)


def moved(at_chosen: pd.DataFrame) -> pd.DataFrame:
    """Traits whose interval excludes 0."""
    return at_chosen[(at_chosen.low > 0) | (at_chosen.high < 0)]


COMPARISONS = {"own_text": "Own text", "same_tokens": "Same tokens"}


def shift_title(at_chosen: pd.DataFrame) -> str:
    """The finding over the picture of own-text shifts."""
    found = moved(at_chosen)
    if not len(found):
        return "No trait moved by more than its interval"
    top = found.iloc[0]
    return f"{len(found)} of {len(at_chosen)} traits moved; {top.trait} most ({top['shift']:+.2f} null SD)"


def both_comparisons(shifts: pd.DataFrame, vectors: VectorSet) -> pd.DataFrame:
    """Each trait at its chosen point under both comparisons, largest shift on own text first; with a ``label``."""
    own, same = (shift_at_chosen(shifts, vectors, comparison) for comparison in COMPARISONS)
    both = pd.concat([own, same.set_index("trait").loc[own.trait].reset_index()]).sort_index(kind="stable")
    label = [f"{t}, {COMPARISONS[c].lower()}" for t, c in zip(both.trait, both.comparison, strict=True)]
    return both.assign(label=label).reset_index(drop=True)


def prompt_view(
    shifts: Shifts, prompts: Sequence[Prompt], vectors: VectorSet, trait: str, comparison: str = "own_text"
) -> pd.DataFrame:
    """One trait on every prompt at its chosen point, largest shift first, with the prompt's ``text``."""
    record = vectors.chosen(trait)
    t = shifts.prompts
    mine = t[(t.comparison == comparison) & (t.trait == trait) & (t.layer == record.layer) & (t.site == record.site)]
    text = {p.prompt_id: p.text for p in prompts}
    return mine.assign(text=mine.prompt_id.map(text)).sort_values("shift", ascending=False).reset_index(drop=True)


def prompt_title(view: pd.DataFrame) -> str:
    """The finding over the picture of single prompts."""
    trait = view.trait.iloc[0]
    up, down = int((view["shift"] > 0).sum()), int((view["shift"] < 0).sum())
    way, count = ("up", up) if up >= down else ("down", down)
    clear = view[(view.low > 0) | (view.high < 0)]
    known = f", {len(clear)} of them beyond the spread of their answers" if view.low.notna().any() else ""
    return f"{trait} goes {way} on {count} of {len(view)} prompts{known}"


def outside_view(summary: pd.DataFrame) -> pd.DataFrame:
    """The share of tokens outside the null band, one row per trait and side, with a ``label``."""
    rows = summary[summary.measure == "outside"]
    sides = [
        rows.assign(
            label=[f"{t}, {side}" for t in rows.trait],
            share=rows[side],
            low=rows[f"{side}_low"],
            high=rows[f"{side}_high"],
        )
        for side in ("base", "intervention")
    ]
    view = pd.concat(sides).sort_index(kind="stable").reset_index(drop=True)
    return view.assign(beyond=view.low > view.null_high)[
        ["label", "trait", "share", "low", "high", "null_high", "beyond"]
    ]


def outside_title(summary: pd.DataFrame) -> str:
    """The finding over the picture of shares outside the band."""
    rows = summary[summary.measure == "outside"].dropna(subset=["change"])
    if not len(rows):
        return "No trait has answers on both sides"
    top = rows.loc[rows.change.abs().idxmax()]
    return f"{top.trait} leaves the null band on {top.intervention:.0%} of tokens, {top.base:.0%} before"


def dynamics_view(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary for reading: measures in words, what changed with its interval, and what null directions reach."""
    ends = {name: (summary[f"{name}_low"], summary[f"{name}_high"]) for name in ("change", "null")}
    spans = {
        name: [f"{a:.3g} to {b:.3g}" if np.isfinite(a) and np.isfinite(b) else "" for a, b in zip(*pair, strict=True)]
        for name, pair in ends.items()
    }
    return pd.DataFrame(
        {
            "trait": summary.trait,
            "measure": summary.measure.map(MEASURES),
            "base": summary.base,
            "intervention": summary.intervention,
            "change": summary.change,
            "its 95% interval": spans["change"],
            "null directions": spans["null"],
        }
    )


def profile_title(part: pd.DataFrame, comparison: str) -> str:
    """The finding over the picture of shifts by layer."""
    words = {"own_text": "each model's own text", "same_tokens": "the same tokens through both"}[comparison]
    top = part.loc[part["shift"].abs().idxmax()]
    return f"On {words}, {top.trait} moves most, at layer {top.layer} ({top['shift']:+.2f} null SD)"


def most_moved(at_chosen: pd.DataFrame) -> str:
    return str(at_chosen.iloc[0].trait)


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


def answer(at_chosen: pd.DataFrame, shifts: pd.DataFrame) -> str:
    """The stage's answer in a sentence or two."""
    found = moved(at_chosen)
    if not len(found):
        widest = at_chosen.high.sub(at_chosen.low).max() / 2
        return (
            f"No trait moved: all intervals contain 0 (a shift of {widest:.2f} null standard deviations "
            f"would have shown)."
        )
    top = found.iloc[0]
    same = shifts[(shifts.comparison == "same_tokens") & (shifts.trait == top.trait) & (shifts.site == top.site)]
    onset = same[(same.low > 0) | (same.high < 0)].layer.min()
    where = (
        f", and on the same tokens from layer {int(onset)} on" if pd.notna(onset) else ", but not on the same tokens"
    )
    return (
        f"{len(found)} of {len(at_chosen)} traits moved on the models' own text; {top.trait} most, by "
        f"{top['shift']:+.2f} null standard "
        f"deviations ({top.low:.2f} to {top.high:.2f}) at layer {top.layer}{where}."
    )
