"""The pictures, tables and sentences of *traits*, in the order in which the notebook shows them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from driftbook.models.doses import strongest_dose
from driftbook.models.instructed import filter_counts
from driftbook.models.vectors import VectorSet
from driftbook.report.loading import loaded as loaded
from driftbook.traits import geometry
from driftbook.workbook.figures import Figure, curve
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table


def filtered(tables: Mapping[str, pd.DataFrame], judged: bool) -> Table | None:
    """How many answers under instructions were left out, and why; None where there are none."""
    if not tables:
        return None
    rules = "Filtered by rules: length, repetition, phrases of the lexicon."
    caption = "Filtered by the judge of traits.judge." if judged else rules
    return Table(filter_counts(dict(tables)), "Answers under instructions, and why some were left out", caption)


def instructed(tables: Mapping[str, pd.DataFrame]) -> Table | None:
    """The first answers under instructions, to read; None where there are none."""
    if not tables:
        return None
    caption = "Positive and negative instruction; dropped: why it was left out."
    return Table(instructed_examples(tables), "The first answers of each trait", caption)


def instructed_examples(tables: Mapping[str, pd.DataFrame], most: int = 6) -> pd.DataFrame:
    """The first answers of each trait under its instructions: trait, instruction (positive or negative), prompt, text,
    dropped."""
    shown = [table.head(most).assign(trait=name) for name, table in tables.items()]
    rows = pd.concat(shown, ignore_index=True)
    rows["instruction"] = np.where(rows.label == 1, "positive", "negative")
    return rows[["trait", "instruction", "prompt", "text", "dropped"]]


def overview(run: Run, controls: pd.DataFrame) -> Table:
    """The answers of each trait (:func:`driftbook.traits.overview`)."""
    caption = (
        f"Window {run.section.window}; scenarios: {run.section.scenarios}. AUCs of length and of a bag of words are "
        "controls."
    )
    return Table(controls, "What the vectors are made from", caption)


def heldout(run: Run, quality: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """How well each trait's directions separate scenarios that they were not fitted on, layer by layer."""
    wanted = run.section
    at_site = quality[(quality.site == wanted.site) & (quality.method == wanted.method)]
    good = int((chosen.heldout_auc >= 0.8).sum())
    figure = curve(
        at_site.layer,
        at_site.heldout_auc,
        groups=list(at_site.trait),
        title=f"{good} of {len(chosen)} traits separate unseen scenarios with an AUC of 0.8 or more",
        caption=f"{wanted.method} at {wanted.site}, {wanted.folds} folds by scenario, seed {run.seed}. Dashed: chance.",
        x_title="layer",
        y_title="held-out AUC",
        reference=0.5,
    )
    figure.best = True
    return figure


def chosen(table: pd.DataFrame) -> Table:
    """The chosen vectors beside their controls (:func:`driftbook.traits.chosen_table`)."""
    caption = (
        "Controls: layer0, AUC at the first layer's output; length and words, AUCs of token counts and of a bag of "
        "words. share: largest squared coordinate of the vector."
    )
    return Table(table, "The chosen vectors", caption)


def methods(quality: pd.DataFrame, site: str) -> Table:
    """The best of every method and trait."""
    caption = f"Best held-out AUC over layers at {site}."
    return Table(method_table(quality, site), "Methods side by side", caption)


def method_table(quality: pd.DataFrame, site: str) -> pd.DataFrame:
    """Best held-out AUC over layers for every trait and method at one site."""
    best = quality[quality.site == site].groupby(["trait", "method"]).heldout_auc.max().unstack()
    return best.round(3).reset_index()


def layers(run: Run, by_steering: pd.DataFrame | None, judged: bool) -> Figure | None:
    """What steering at each layer does to the text; None where layers were not chosen by it."""
    if by_steering is None:
        return None
    wanted = run.section.steering
    return curve(
        by_steering.layer,
        by_steering.effect,
        low=by_steering.low,
        high=by_steering.high,
        groups=list(by_steering.trait),
        title=choice_title(by_steering),
        caption=f"Text at +{wanted.coefficient:g} minus text at -{wanted.coefficient:g}, {wanted.prompts} prompts of "
        f"the scenarios, 95% intervals over prompts, seed {run.seed}.",
        x_title="layer",
        y_title="judged score" if judged else "net lexicon phrases per 100 words",
        reference=0.0,
    )


def layer_table(run: Run, by_steering: pd.DataFrame | None) -> Table | None:
    """The same in numbers, and which layers keep the text coherent."""
    if by_steering is None:
        return None
    wanted = run.section.steering
    bounds = (
        f"A layer counts where text loses at most {wanted.max_nats:g} nats a token and gains at most "
        f"{wanted.max_repetition:.0%} repetition."
    )
    return Table(by_steering, "Layers by the effect of steering", bounds)


def choice_title(table: pd.DataFrame) -> str:
    """What the picture of layers by steering shows, in words."""
    chosen = table[table.chosen]
    clear = chosen[chosen.low > 0]
    said = "; ".join(f"{row.trait} is moved most at layer {row.layer}" for row in clear.itertuples())
    unclear = [row.trait for row in chosen.itertuples() if row.low <= 0]
    rest = f"no layer clearly moves the text of {', '.join(unclear)}" if unclear else ""
    text = "; ".join(filter(None, [said, rest]))
    return text[0].upper() + text[1:]


def angles(vectors: VectorSet, method: str, site: str) -> Table:
    """Cosines between the traits, at the layer that the first one chose."""
    layer = vectors.chosen(vectors.traits[0]).layer
    table = geometry(vectors, vectors.traits, method, layer, site).reset_index(names="trait").round(2)
    return Table(table, "Cosines between traits", f"{method}, layer {layer}, {site}.")


def doses(run: Run, curves: pd.DataFrame, slopes: pd.DataFrame) -> Figure | None:
    """What is said at every coefficient; None where no trait was steered."""
    if not len(curves):
        return None
    return curve(
        curves.coefficient,
        curves.lexicon,
        low=curves.low,
        high=curves.high,
        groups=list(curves.trait),
        title=dose_title(slopes),
        caption=f"{run.section.dose.prompts} prompts a point, 95% intervals over prompts, seed {run.seed}. "
        "The change per unit is that of all coefficients at which the text holds.",
        x_title="coefficient (mean activation norms)",
        y_title="net lexicon phrases per 100 words",
        reference=0.0,
    )


def dose_tables(curves: pd.DataFrame, slopes: pd.DataFrame, answers: pd.DataFrame) -> list[Table]:
    """Every point, the change per unit, and answers to read; nothing where no trait was steered."""
    if not len(curves):
        return []
    points = (
        "log_likelihood: nats per token under the unsteered model; it falls as text breaks. projection: of the text, "
        "as the unsteered model reads it."
    )
    change = "Least squares per prompt over the coherent coefficients; 95% intervals over prompts."
    read = "First evaluation prompt of each steered trait."
    return [
        Table(curves, "Dose and response", points),
        Table(slopes, "Change per unit of the coefficient", change),
        Table(dose_examples(answers), "The same prompt at every dose", read),
    ]


def dose_title(slopes: pd.DataFrame) -> str:
    """What the dose-response picture shows, in words: of all doses together, as a single one says little."""
    said = []
    for row in slopes[slopes.measure == "lexicon"].itertuples():
        verb = "adds" if row.low > 0 else "removes" if row.high < 0 else "does not clearly add"
        said.append(
            f"pushing along {row.trait} {verb} its phrases ({row.slope:.1f} per 100 words and unit, {row.low:.1f} to "
            f"{row.high:.1f})"
        )
    text = "; ".join(said) or "too few doses kept the text coherent"
    return text[0].upper() + text[1:]


def dose_examples(doses: pd.DataFrame) -> pd.DataFrame:
    """One answer per trait and coefficient to the first evaluation prompt."""
    first = doses.groupby("trait").prompt.transform("first")
    shown = doses[doses.prompt == first].drop_duplicates(["trait", "coefficient"])
    return shown.sort_values(["trait", "coefficient"])[["trait", "coefficient", "prompt", "text"]]


def answer(chosen: pd.DataFrame, curves: pd.DataFrame) -> str:
    """The stage's answer in one sentence or two."""
    good = int((chosen.heldout_auc >= 0.8).sum())
    text = (
        f"{good} of {len(chosen)} traits have a direction that tells unseen scenarios apart with an AUC of 0.8 or more "
        f"(lowest {chosen.heldout_auc.min():.2f}; shuffled labels give {chosen.null_auc.mean():.2f})."
    )
    for row in strongest_dose(curves).itertuples():
        text += (
            f" Pushed along {row.trait} by {row.coefficient:g}, the model's phrases of it go from {row.at_zero:.1f} to "
            f"{row.lexicon:.1f} per 100 words."
        )
    return text


def headlines(run: Run, chosen: pd.DataFrame, curves: pd.DataFrame) -> None:
    """The cards of the stage."""
    good = int((chosen.heldout_auc >= 0.8).sum())
    run.headline("traits with held-out AUC of 0.8 or more", good, baseline=f"{len(chosen)} traits")
    shuffled = f"{chosen.null_auc.mean():.2f} with shuffled labels"
    run.headline("lowest held-out AUC", chosen.heldout_auc.min(), baseline=shuffled)
    for row in strongest_dose(curves).itertuples():
        label, unsteered = f"{row.trait} phrases at {row.coefficient:+g}", f"{row.at_zero:.2f} unsteered"
        run.headline(label, row.lexicon, row.low, row.high, baseline=unsteered, unit="per 100 words")
