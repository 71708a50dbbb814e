"""Where a planted change shows inside the network, against what is known of it.

Four questions with known answers. *Prompts*: is divergence larger on the prompts that a change was aimed at? *Tokens*:
is it larger on the tokens of the planted sentence? *Layers*: is the first block whose output differs, on the same
tokens, the first one that was changed? *Traits*: does the trait that a plant pushes move more than the other traits?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from driftbench.proof.harvest import Harvest
from driftbench.proof.plants import Garden, Plant
from driftbook.models.divergence import token_divergence
from driftbook.models.projection import PoolTap, all_points
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import Pair
from driftbook.models.vectors import VectorSet
from driftbook.workbook.figures import Figure, curve

_CHANGED = 1e-6  # relative change of a residual stream below which nothing happened


@dataclass(frozen=True)
class Inside:
    """What was seen inside one plant; NaN or None where the question does not arise."""

    prompts_auc: float
    tokens_auc: float
    first_layer: int | None
    true_layer: int | None
    trait_rank: int | None  # 1: the expected trait moved most
    change: np.ndarray  # [layers] relative change of each block's output on the same tokens
    profile: np.ndarray  # [positions] mean JS by position in the intervention's answers
    traits: pd.Series  # standardised shift of each trait on the same tokens


def look(garden: Garden, harvest: Harvest, vectors: VectorSet, answers: int = 24) -> Inside:
    """Replay ``answers`` of the intervention's texts under both models."""
    plant = harvest.plant
    pair = garden.open(plant)
    texts = _aimed(harvest, answers)
    sequences = [_sequences(side, harvest, texts) for side in pair]
    found = token_divergence(pair, *sequences)
    js = [f["js"] for f in found]
    hidden = [_pooled(side, s) for side, s in zip(pair, sequences, strict=True)]
    change = _relative_change(*hidden)
    first = next((layer for layer, c in enumerate(change) if c > _CHANGED), None)
    shifts = _trait_shifts(*hidden, vectors)
    order = shifts.abs().sort_values(ascending=False).index.tolist()
    longest = max(map(len, js))
    padded = np.full((len(js), longest), np.nan)
    for row, values in enumerate(js):
        padded[row, : len(values)] = values
    return Inside(
        prompts_auc=_prompts_auc(harvest),
        tokens_auc=_tokens_auc(garden, harvest, texts, js),
        first_layer=first,
        true_layer=_true_layer(plant, pair),
        trait_rank=order.index(plant.trait) + 1 if plant.trait in order else None,
        change=change,
        profile=np.nanmean(padded, axis=0),
        traits=shifts,
    )


def _aimed(harvest: Harvest, answers: int) -> pd.DataFrame:
    aimed = {p.prompt_id for p in harvest.prompts.prompts if harvest.plant.targets(p)}
    texts = harvest.texts
    chosen = texts[(texts["side"] == "intervention") & (texts["sample_index"] == 0) & texts["prompt_id"].isin(aimed)]
    return chosen.sort_values("text_id").head(answers).reset_index(drop=True)


def _sequences(side: Any, harvest: Harvest, texts: pd.DataFrame) -> list[TokenSequence]:
    said = harvest.prompts.by_id()
    return [
        TokenSequence(side.encode(said[p]), tuple(map(int, ids)))
        for p, ids in zip(texts["prompt_id"], texts["token_ids"], strict=True)
    ]


def _prompts_auc(harvest: Harvest) -> float:
    if not harvest.plant.conditional:
        return float("nan")
    aimed = {p.prompt_id for p in harvest.prompts.prompts if harvest.plant.targets(p)}
    hit = harvest.divergence["prompt_id"].isin(aimed).to_numpy()
    return float(roc_auc_score(hit, harvest.divergence["js"])) if 0 < hit.sum() < len(hit) else float("nan")


def _tokens_auc(garden: Garden, harvest: Harvest, texts: pd.DataFrame, js: Sequence[np.ndarray]) -> float:
    """Does divergence pick out the tokens of sentences that show the plant, among all tokens of those answers?"""
    plant = harvest.plant
    if plant.kind != "learned" or plant.scorer is None or "insert" not in plant.spec["edit"]:
        return float("nan")
    inside: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for ids, own in zip(texts["token_ids"], js, strict=True):
        pieces = [garden.base.decode([int(i)]) for i in ids]
        ends = np.cumsum([len(p) for p in pieces])
        text = "".join(pieces)
        sentence = np.cumsum([0, *[p.rstrip().endswith((".", "!", "?")) for p in pieces]])[:-1]
        shown = np.zeros(len(pieces), bool)
        for number in np.unique(sentence):
            rows = sentence == number
            begin = ends[rows][0] - len(pieces[int(np.flatnonzero(rows)[0])])
            shown[rows] = plant.scorer(text[begin : ends[rows][-1]])
        if shown.any() and not shown.all():
            inside.append(shown)
            values.append(np.asarray(own))
    if not inside:
        return float("nan")
    return float(roc_auc_score(np.concatenate(inside), np.concatenate(values)))


def _pooled(side: Any, sequences: Sequence[TokenSequence]) -> np.ndarray:
    """Mean over the response of every block's output, ``[sequences, layers, width]`` float32."""
    points = all_points(side.model, ["resid_post"])
    tap = PoolTap(points, len(sequences), side.model.hooks.d_model, "response_avg")
    for _ in side.read(sequences, [tap]):
        pass
    return tap.states


def _relative_change(base: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """``[layers]``: length of the change over length of the state, averaged over sequences."""
    size = np.linalg.norm(changed - base, axis=-1) / np.maximum(np.linalg.norm(base, axis=-1), 1e-12)
    return size.mean(axis=0)


def _trait_shifts(base: np.ndarray, changed: np.ndarray, vectors: VectorSet) -> pd.Series:
    """Shift of each trait's projection on the same tokens, at the trait's own layer, in standard deviations of the
    base's answers along that direction."""
    shifts = {}
    for trait in vectors.traits:
        record = vectors.chosen(trait)
        direction = vectors.at(trait, record.method, record.layer, record.site)
        direction = direction / np.linalg.norm(direction)
        before, after = base[:, record.layer] @ direction, changed[:, record.layer] @ direction
        shifts[trait] = float((after - before).mean() / max(before.std(ddof=1), 1e-12))
    return pd.Series(shifts)


def _true_layer(plant: Plant, pair: Pair) -> int | None:
    """The first block whose output the change can reach, where the plant says so."""
    if plant.layers is not None:
        return min(plant.layers)
    notes = pair.intervention.notes
    return int(min(notes["layers"])) if plant.kind == "steer" else None


def table(harvests: Sequence[Harvest], looks: Sequence[Inside]) -> pd.DataFrame:
    """One row a plant: the four questions."""
    return pd.DataFrame(
        {
            "plant": [h.plant.name for h in harvests],
            "strength": [h.plant.strength for h in harvests],
            "prompts_auc": [x.prompts_auc for x in looks],
            "tokens_auc": [x.tokens_auc for x in looks],
            "first_layer": pd.array([x.first_layer for x in looks], dtype="Int64"),
            "true_layer": pd.array([x.true_layer for x in looks], dtype="Int64"),
            "trait_rank": pd.array([x.trait_rank for x in looks], dtype="Int64"),
            "trait": [h.plant.trait for h in harvests],
            "most_moved_trait": [x.traits.abs().idxmax() if x.traits.any() else None for x in looks],
        }
    )


def matrix_picture(matrices: pd.DataFrame, note: str) -> Figure:
    """How much every matrix of every block changed (:func:`driftbook.models.weights.weight_change`)."""
    moved, blocks = matrices[matrices.change > 0], matrices[matrices.layer >= 0]
    return curve(
        blocks.layer,
        blocks.relative,
        groups=list(blocks.kind),
        x_title="block",
        y_title="relative change of the weights",
        title=f"{len(moved)} of {len(matrices)} matrices changed, in blocks {moved.layer.min()} to {moved.layer.max()}",
        caption=f"Frobenius norm of the difference over that of the weight; {note}.",
    )
