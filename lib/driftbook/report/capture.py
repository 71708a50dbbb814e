"""The pictures, tables and sentences of *capture*, in the order in which the notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from driftbook.capture import MOST_NULL, Shifts, Tier3, shift_at_chosen
from driftbook.evidence.dynamics import MEASURES
from driftbook.evidence.shifts import Scale, moved
from driftbook.models.captured import Probe, Sample
from driftbook.models.loading import LoadedModel
from driftbook.models.sides import Pair
from driftbook.models.tier3 import Inside
from driftbook.models.vectors import VectorSet
from driftbook.numbers import fixed
from driftbook.prompts import Prompt
from driftbook.report.loading import loaded as loaded
from driftbook.sections import Intervention
from driftbook.workbook.explorers import trace_explorer
from driftbook.workbook.figures import Figure, curve, interval_plot, layer_token_heatmap
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table

COMPARISONS = {"own_text": "Own text", "same_tokens": "Same tokens"}


def overview(run: Run, live: dict[str, list[Sample]], prompts: Sequence[Prompt]) -> Table:
    """What was captured, a row a side."""
    wanted = run.section
    caption = f"{len(prompts)} prompts, {wanted.samples} samples each, {wanted.max_new_tokens} tokens at most."
    return Table(counts(live), "What was captured", caption)


def counts(live: dict[str, list[Sample]]) -> pd.DataFrame:
    """One row per side: answers, tokens, how many ended by themselves, rows, rows computed after an answer's end."""
    return pd.DataFrame(
        {
            "side": list(live),
            "answers": [len(s) for s in live.values()],
            "response_tokens": [sum(len(x.answer_ids) for x in s) for s in live.values()],
            "ended_by_itself": [sum(x.finish_reason == "eos" for x in s) for s in live.values()],
            "rows": [sum(len(x.sequence) for x in s) for s in live.values()],
            "rows_dropped": [round(sum(x.dropped for x in s)) for s in live.values()],
        }
    )


def explorer(
    run: Run,
    pair: Pair,
    live: dict[str, list[Sample]],
    prompts: Sequence[Prompt],
    probe: Probe,
    null: Probe,
    scale: Scale,
    vectors: VectorSet,
) -> Figure:
    """Every trait on every token of both sides, to be looked through."""
    site = vectors.chosen(vectors.traits[0]).site
    return trace_explorer(
        explorer_data(pair, live["base"], live["intervention"], prompts, probe, scale, site),
        title="Every trait on every token, base and intervention side by side",
        caption=f"First sample of {len(prompts)} prompts at {site}, convention own. Shaded: where "
        f"{null.matrix.shape[-1]} null directions stay 95% of the time. Seed {run.seed}.",
        start=first_view(run.params.intervention, vectors),
    )


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
    longest = max(len(s.answer_ids) for side in chosen.values() for s in side)
    projections, tokens = {}, {}
    for side, samples in chosen.items():
        block = np.full((len(samples), len(probe.layers), len(probe.traits), longest), np.nan, np.float32)
        for row, s in enumerate(samples):
            score = scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j]
            block[row, :, :, : len(score)] = score.transpose(1, 2, 0)
        projections[side] = block
        tokenizer = getattr(pair, side).model.tokenizer
        tokens[side] = [[tokenizer.decode([i]) for i in s.answer_ids] for s in samples]
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


def first_view(intervention: Intervention, vectors: VectorSet) -> dict[str, Any] | None:
    """What the trace shows first: the trait that the intervention is about, at its layer."""
    trait = intervention.about
    return {"trait": trait, "layer": vectors.chosen(trait).layer, "sample": 0} if trait in vectors.traits else None


def shift(run: Run, shifts: Shifts, vectors: VectorSet, prompts: Sequence[Prompt]) -> Figure:
    """How far each trait moved at its chosen layer, under both comparisons."""
    both = both_comparisons(shifts.traits, vectors)
    figure = interval_plot(
        list(both.label),
        both["shift"],
        both.low,
        both.high,
        title=shift_title(shift_at_chosen(shifts.traits, vectors, "own_text")),
        caption=f"Each trait at its chosen layer, {len(prompts)} prompts, 95% intervals over prompts, seed {run.seed}.",
        x_title="shift in null standard deviations",
        table=both,
    )
    figure.best = True
    return figure


def both_comparisons(shifts: pd.DataFrame, vectors: VectorSet) -> pd.DataFrame:
    """Each trait at its chosen point under both comparisons, largest shift on own text first; with a ``label``."""
    own, same = (shift_at_chosen(shifts, vectors, comparison) for comparison in COMPARISONS)
    both = pd.concat([own, same.set_index("trait").loc[own.trait].reset_index()]).sort_index(kind="stable")
    label = [f"{t}, {COMPARISONS[c].lower()}" for t, c in zip(both.trait, both.comparison, strict=True)]
    return both.assign(label=label).reset_index(drop=True)


SINGLE = "One prompt cannot tell whether a trait moved"


def single(at_chosen: pd.DataFrame) -> bool:
    """Whether all shifts are of one prompt, which says nothing of others."""
    return len(at_chosen) > 0 and int(at_chosen["prompts"].max()) < 2


def shift_title(at_chosen: pd.DataFrame) -> str:
    """The finding over the picture of own-text shifts."""
    found = moved(at_chosen)
    if not len(found):
        return SINGLE if single(at_chosen) else "No trait moved beyond chance"
    top = found.iloc[0]
    most = f"{top.trait} most ({fixed(top['shift'], 2, signed=True)} null SD)"
    return f"{len(found)} of {len(at_chosen)} traits moved; {most}"


def by_layer(run: Run, shifts: Shifts, prompts: Sequence[Prompt], site: str) -> list[Figure]:
    """The shifts at every layer of one site, a picture a comparison."""
    figures = []
    for comparison, words in COMPARISONS.items():
        part = shifts.traits[(shifts.traits.comparison == comparison) & (shifts.traits.site == site)]
        figures.append(
            curve(
                part.layer,
                part["shift"],
                low=part.low,
                high=part.high,
                groups=list(part.trait),
                title=profile_title(part, comparison),
                caption=f"{words}, {site}, {len(prompts)} prompts, 95% intervals over prompts, seed {run.seed}.",
                x_title="layer",
                y_title="shift (null SD)",
                reference=0.0,
            )
        )
    return figures


def profile_title(part: pd.DataFrame, comparison: str) -> str:
    """The finding over the picture of shifts by layer."""
    words = {"own_text": "each model's own text", "same_tokens": "the same tokens through both"}[comparison]
    top = part.loc[part["shift"].abs().idxmax()]
    return f"On {words}, {top.trait} moves most, at layer {top.layer} ({fixed(top['shift'], 2, signed=True)} null SD)"


def most_moved(at_chosen: pd.DataFrame) -> str:
    return str(at_chosen.iloc[0].trait)


def by_prompt(run: Run, shifts: Shifts, prompts: Sequence[Prompt], vectors: VectorSet, trait: str) -> Figure:
    """One trait at its chosen layer, prompt by prompt."""
    view = prompt_view(shifts, prompts, vectors, trait)
    return interval_plot(
        list(view.text),
        view["shift"],
        view.low,
        view.high,
        title=prompt_title(view),
        caption=f"Own text, layer {vectors.chosen(trait).layer}, {run.section.samples} answers a prompt and side, 95% "
        "intervals from the pooled spread of answers.",
        x_title="shift in null standard deviations",
        table=view,
    )


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


def heatmaps(
    run: Run,
    pair: Pair,
    live: dict[str, list[Sample]],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    site: str,
    trait: str,
) -> list[Figure]:
    """One trait layer by layer and token by token, a picture a side."""
    pictures = {
        side: heatmap_data(samples, prompts, probe, scale, site, trait, getattr(pair, side).model)
        for side, samples in live.items()
    }
    return [
        layer_token_heatmap(
            picture.values,
            picture.tokens,
            probe.layers,
            choices=picture.labels,
            unit="score (null SD)",
            reach=shared_reach(pictures),
            title=f"{trait} in the {side}'s answers: {fixed(picture.mean, 1, signed=True)} on average over layers and "
            "tokens",
            caption=f"Scores in null standard deviations at {site}, first samples, one colour scale for both sides. "
            f"Seed {run.seed}.",
        )
        for side, picture in pictures.items()
    ]


@dataclass(frozen=True)
class Heatmap:
    """Scores ``[samples, layers, tokens]`` of one trait for the layer x token picture, NaN beyond the end of an
    answer."""

    values: np.ndarray
    tokens: list[list[str]]
    labels: list[str]
    mean: float


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
    chosen = [s for s in samples if s.sample == 0 and s.answer_ids][:most]
    scores = [scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j, k].T for s in chosen]
    values = np.full((len(scores), len(probe.layers), max(v.shape[1] for v in scores)), np.nan, np.float32)
    for row, v in enumerate(scores):
        values[row, :, : v.shape[1]] = v
    tokens = [[model.tokenizer.decode([i]) for i in s.answer_ids] for s in chosen]
    return Heatmap(values, tokens, [prompts[s.prompt].text for s in chosen], float(np.nanmean(values)))


def shared_reach(pictures: dict[str, Heatmap]) -> float:
    """What 99% of the scores of all pictures stay within, so that their colours mean the same."""
    scores = np.concatenate([p.values[np.isfinite(p.values)] for p in pictures.values()])
    return float(np.quantile(np.abs(scores), 0.99)) or 1.0


def outside(run: Run, summary: pd.DataFrame, prompts: Sequence[Prompt], null: Probe) -> Figure:
    """How much of its answers each trait spends outside the null band."""
    view = outside_view(summary)
    return interval_plot(
        list(view.label),
        view.share,
        view.low,
        view.high,
        marked=view.beyond,
        marked_name="more than null directions reach",
        unmarked_name="within what null directions reach",
        title=outside_title(summary),
        caption=f"At each trait's chosen layer, {len(prompts)} prompts, 95% intervals over prompts, seed "
        f"{run.seed}. Dashed: the 5% that null directions spend there; {min(MOST_NULL, null.matrix.shape[-1])} of them "
        "set what counts as more.",
        x_title="share of tokens outside the null band",
        reference=0.05,
        percent=True,
        table=view,
    )


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


def dynamics(summary: pd.DataFrame) -> Table:
    """Commitment, persistence, velocity and change points of every trait beside what null directions reach."""
    caption = (
        "Means over prompts; change: intervention less base on the same prompts, with 95% intervals over "
        "prompts. Null directions: the middle 95% of what they reach on the base's answers."
    )
    return Table(dynamics_view(summary), "Dynamics by trait", caption, max_rows=80)


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


def inside(tier3: Tier3 | None) -> list[Figure | Table]:
    """What each head reads and which neurons fire, layer by layer, and a table of the neurons; nothing without tier
    3."""
    if tier3 is None:
        return []
    caption = (
        f"Mean |activation| over the response to one prompt, and the token of its peak. {len(tier3.paths)} files, "
        f"{tier3.bytes / 1e6:.0f} MB."
    )
    pictures = [picture for layer in tier3.inside for picture in (_heads(layer), _neurons(layer))]
    return [*pictures, Table(tier3.neurons, "Neurons that fire most", caption, max_rows=60)]


def _heads(layer: Inside) -> Figure:
    heads = [f"head {i}" for i in range(len(layer.attention))]
    return layer_token_heatmap(
        layer.attention,
        [layer.tokens] * len(heads),
        range(len(layer.said)),
        choices=heads,
        choice_label="Head",
        centre=None,
        unit="attention, %",
        row_title="token",
        rows_named=layer.said,
        title=heads_title(layer),
        caption=f"Rows: response tokens; columns: what they read. Layer {layer.layer}, {layer.side}. Prompt: "
        f"{layer.prompt}",
    )


def _neurons(layer: Inside) -> Figure:
    return layer_token_heatmap(
        layer.firing,
        layer.said,
        range(len(layer.firing)),
        unit="activation",
        row_title="neuron",
        rows_named=[str(n) for n in layer.neurons.neuron],
        title=neurons_title(layer),
        caption=f"The {len(layer.firing)} neurons with the largest mean |activation|. Layer {layer.layer}, "
        f"{layer.side}. Prompt: {layer.prompt}",
    )


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


def answer(at_chosen: pd.DataFrame, shifts: pd.DataFrame) -> str:
    """The stage's answer in a sentence or two."""
    found = moved(at_chosen)
    if single(at_chosen):
        return f"{SINGLE}: ask several."
    if not len(found):
        widest = at_chosen.high.sub(at_chosen.low).max() / 2
        return (
            f"No trait moved beyond chance (a shift of {fixed(widest, 2)} null standard deviations lies outside every "
            f"95% interval)."
        )
    top = found.iloc[0]
    same = shifts[(shifts.comparison == "same_tokens") & (shifts.trait == top.trait) & (shifts.site == top.site)]
    onset = same[(same.low > 0) | (same.high < 0)].layer.min()
    where = (
        f", and on the same tokens from layer {int(onset)} on" if pd.notna(onset) else ", but not on the same tokens"
    )
    if len(same) and not same["shift"].any():  # one model reads what both wrote: the same tokens are the same to it
        where = "; both models' texts were read by one that wrote neither"
    return (
        f"{len(found)} of {len(at_chosen)} traits moved on the models' own text; {top.trait} most, by "
        f"{fixed(top['shift'], 2, signed=True)} null standard deviations ({fixed(top.low, 2)} to {fixed(top.high, 2)}) "
        f"at layer {top.layer}{where}."
    )


def headlines(run: Run, at_chosen: pd.DataFrame) -> None:
    """The cards of the stage."""
    for row in at_chosen.head(3).itertuples():
        run.headline(
            f"{row.trait}, layer {row.layer}",
            row.shift,
            row.low,
            row.high,
            baseline="0 without a change",
            unit="null SD",
        )
