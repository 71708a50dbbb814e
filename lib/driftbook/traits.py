"""Trait vectors: contrastive scenarios -> answers -> activations -> directions, with the quality of each and what
steering along it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbook.auc import auc
from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import DriftbookError
from driftbook.evidence.baselines import BagOfWords
from driftbook.evidence.opened import open_judge
from driftbook.ledger import Ledger
from driftbook.models import directions as directions_
from driftbook.models.doses import strongest_dose
from driftbook.models.gradients import likelihood_gradients
from driftbook.models.instructed import filter_answers, filter_counts, kept_sequences, sample_answers
from driftbook.models.loading import LoadedModel
from driftbook.models.projection import PoolTap, all_points
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import stream_seed
from driftbook.models.traitfiles import Score, Trait, recipe
from driftbook.models.vectors import VectorRecord, VectorSet
from driftbook.parameters import Combination, Instructed
from driftbook.sections import RESIDUAL_SITES
from driftbook.stage import Run
from driftbook.store import ShardStore, digest


def sites_of(model: LoadedModel) -> list[str]:
    """The residual-stream sites of a model: all three, or two where attention and MLP run side by side."""
    return [site for site in RESIDUAL_SITES if site in model.hooks.sites]


# -------------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answers:
    """The texts that one trait's vectors are made from, as token ids.

    ``labels`` is 1 where the text shows the trait and 0 where it shows the opposite; ``scenarios`` numbers the prompt
    that it answers; ``texts`` are (answer, prompt) pairs, for controls that read words.
    """

    trait: Trait
    sequences: list[TokenSequence]
    labels: np.ndarray
    scenarios: np.ndarray
    texts: list[tuple[str, str]]


def written_answers(model: LoadedModel, trait: Trait) -> Answers:
    """The answers that the trait file holds: positive, negative, positive, ... in scenario order."""
    sequences, texts = [], []
    for s in trait.scenarios:
        for answer in (s.positive, s.negative):
            ids = model.encode_answer(answer)
            sequences.append(TokenSequence(tuple(model.encode_prompt(s.prompt)), tuple(ids)))
            texts.append((answer, s.prompt))
    n = len(trait.scenarios)
    return Answers(trait, sequences, np.tile([1, 0], n), np.repeat(np.arange(n), 2), texts)


def instructed_answers(
    model: LoadedModel,
    traits: Sequence[Trait],
    spec: Instructed,
    folds: int,
    seed: int,
    cache: Path,
    progress: Callable[[int, str, str], Any],
    score: Score | None = None,
) -> tuple[list[Answers], dict[str, pd.DataFrame]]:
    """The model's own answers under each trait's instructions, and why any was left out.

    Args:
        spec: the section ``traits.instructed``.
        folds: scenarios that must be left of every trait.

    Returns:
        the answers that are kept, per trait, and every answer per trait with a column ``dropped``
        (:func:`driftbook.models.instructed.filter_answers`).

    Raises:
        DriftbookError: too few scenarios of a trait have a pair of answers left.
    """
    bar = progress(sum(2 * spec.samples * len(t.scenarios) for t in traits), "answers under instructions", "answers")
    out, tables = [], {}
    for trait in traits:
        table = filter_answers(sample_answers(model, trait, spec, seed, cache, bar.update), trait, spec, score)
        sequences, labels, scenarios = kept_sequences(model, trait, table, spec.read_instruction)
        left = len(np.unique(scenarios))
        if left < folds:
            counts = filter_counts({trait.name: table}).iloc[0].to_dict()
            raise DriftbookError(
                f"trait {trait.name}: {left} of {len(trait.scenarios)} scenarios have a pair of answers left after "
                f"filtering ({counts}), and traits.folds is {folds}; raise traits.instructed.samples, loosen its "
                "filter, or take traits.scenarios: natural"
            )
        kept = table[table.dropped == ""].sort_values(["scenario", "sample", "label"], ascending=[True, True, False])
        texts = list(zip(kept.text, kept.prompt, strict=True))
        out.append(Answers(trait, sequences, labels, np.unique(scenarios, return_inverse=True)[1], texts))
        tables[trait.name] = table
    return out, tables


def joined(first: Sequence[Answers], second: Sequence[Answers]) -> list[Answers]:
    """Written and instructed answers of each trait together; a prompt that both answer is one scenario, so that its
    answers stay on one side of a split."""
    out = []
    for a, b in zip(first, second, strict=True):
        prompts = [p for _, p in (*a.texts, *b.texts)]
        number = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
        out.append(
            Answers(
                a.trait,
                [*a.sequences, *b.sequences],
                np.concatenate([a.labels, b.labels]),
                np.array([number[p] for p in prompts]),
                [*a.texts, *b.texts],
            )
        )
    return out


def trait_judge(run: Run) -> Score | None:
    """The judge of ``traits.judge`` as a function of trait, texts and prompts; None where none is configured."""
    spec = run.section.judge
    if spec is None:
        return None
    ledger = Ledger(run.cache / "verdicts" / "answers.sqlite", run.section.budget_usd, "traits.budget_usd")
    judge = open_judge(spec, "traits", None, ledger, run.cache, run.root, run.progress)

    def score(trait: Trait, texts: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        said = trait.high[0].lower() + trait.high[1:].rstrip(".")
        return judge.score(texts, [Hypothesis(said, "intervention", proposer="person")], prompts)[:, 0]

    return score


# ---------------------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True, kw_only=True)
class Contrast(directions_.Examples):
    """One trait's answers with what the model makes of them."""

    answers: Answers

    @classmethod
    def of(cls, answers: Answers, states: np.ndarray, gradients: np.ndarray | None = None) -> Contrast:
        return cls(states, answers.labels, answers.scenarios, gradients, answers=answers)

    @property
    def trait(self) -> Trait:
        return self.answers.trait

    @property
    def pairs(self) -> int:
        return int(min(self.labels.sum(), (1 - self.labels).sum()))

    @property
    def token_counts(self) -> np.ndarray:
        return np.array([len(s.response_ids) for s in self.answers.sequences])


def read_contrasts(
    model: LoadedModel,
    answers: Sequence[Answers],
    sites: Sequence[str],
    window: str,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
    gradients: bool = False,
) -> list[Contrast]:
    """Replay every answer once and pool the window at every layer and site; with ``gradients``, also the gradient of
    its likelihood there. Finished traits come from the cache; ``progress`` hears of every answer once."""
    store = ShardStore(cache / "contrasts")
    points = all_points(model, sites)
    out = []
    for one in answers:
        ids = [(s.prompt_ids, s.response_ids) for s in one.sequences]
        key = digest("contrasts", model.key, list(sites), window, ids)
        count, heard = len(one.sequences), None if gradients else progress  # where both are read, the slower one tells
        held = store.kept_arrays(key, partial(_pooled, model, one.sequences, points, window, heard), heard, count)
        slopes = None
        if gradients:
            key = digest("gradients", model.key, list(sites), ids)
            found = partial(likelihood_gradients, model, one.sequences, points, progress=progress)
            slopes = store.kept_arrays(key, lambda f=found: {"gradients": f()}, progress, count)["gradients"]
        out.append(Contrast.of(one, held["states"], slopes))
    return out


def _pooled(
    model: LoadedModel,
    sequences: Sequence[Any],
    points: Sequence[Any],
    window: str,
    progress: Callable[[int], Any] | None,
) -> dict[str, np.ndarray]:
    tap = PoolTap(points, len(sequences), model.hooks.d_model, window)
    for batch, _ in replay(model, sequences, [tap]):
        if progress:
            progress(len(batch))
    return {"states": tap.states}


# -------------------------------------------------------------------------------------------------------------- vectors


def fit_vectors(
    model: LoadedModel,
    contrasts: Sequence[Contrast],
    sites: Sequence[str],
    method: str,
    site: str,
    layer: int | str,
    depth: tuple[float, float],
    window: str,
    scenarios: str,
    folds: int,
    shuffles: int,
    seed: int,
    methods: Sequence[str] = ("mean_difference", "probe"),
    combine: Sequence[Any] = (),
    imported: Mapping[str, np.ndarray] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[VectorSet, pd.DataFrame]:
    """Directions of every trait and combination, method, layer and site, one of them marked as chosen per trait.

    The chosen layer is :func:`choose_layer`'s at ``site`` inside ``depth``, or the one that was asked for.

    Args:
        combine: entries of ``traits.combine`` (name, add, subtract, orthogonal_to), made from the traits' directions
            at each point (:func:`driftbook.models.directions.combine`).
        imported: directions ``[layers, sites, d_model]`` of traits that are not fitted here, by trait. They stand
            under every method, and are judged by the trait's own answers, none of which they saw.

    Returns:
        the set, and a table with columns trait, method, layer, site, heldout_auc, null_auc, largest_dimension_share.

    Raises:
        DriftbookError: the layer or the site does not exist, no layer lies inside ``depth``, or the parts of a
            combination cancel.
    """
    imported = imported or {}
    if site not in sites:
        raise DriftbookError(f"traits.site {site}: this model has {', '.join(sites)}")
    layers = list(range(model.hooks.n_layers))
    shape = (len(layers), len(sites), model.hooks.d_model)
    norms = np.mean([np.linalg.norm(c.states, axis=-1).mean(0) for c in contrasts], 0).reshape(shape[:2])
    vectors = VectorSet(layers, list(sites), {}, norms)
    by_name = {c.trait.name: c for c in contrasts}
    unknown = set(imported) - set(by_name)
    if unknown:
        raise DriftbookError(
            f"traits.imports names {sorted(unknown)[0]!r}, which is in none of traits.files: a vector is judged by its "
            "trait's scenarios, so it needs a file"
        )
    points = [(lay, st) for lay in layers for st in sites]
    learned = {
        n: replace(c, given=imported[n].reshape(len(points), -1)) if n in imported else c for n, c in by_name.items()
    }
    singles = [(n, [c], None) for n, c in by_name.items()]
    combined = [(one.name, [by_name[n] for n in (*one.add, *one.subtract)], one) for one in combine]
    for name, parts, combination in [*singles, *combined]:
        fitted: dict[str, directions_.Fit] = {}
        for m in dict.fromkeys([*methods, method]):
            if combination is not None:
                fitted[m] = _fit_combination(combination, learned, points, m, folds, shuffles, seed)
            else:
                fitted[m] = directions_.fit([learned[name]], (), (), m, folds, shuffles, seed)
            vectors.directions[name, m] = fitted[m].directions.reshape(shape)
            if progress:
                progress(1)
        auc = fitted[method].heldout_auc.reshape(shape[:2])[:, list(sites).index(site)]
        ranked = pd.DataFrame({"layer": layers, "heldout_auc": auc})
        best = choose_layer(ranked, depth) if layer == "auto" else int(layer)
        if best not in layers:
            raise DriftbookError(f"traits.layer {layer}: the model has layers 0 to {layers[-1]}")
        source = "imported" if name in imported else "fitted"
        source = source if combination is None else f"combined: {recipe(combination)}"
        for m, found in fitted.items():
            share = directions_.largest_dimension_share(found.directions)
            for p, (lay, st) in enumerate(points):
                vectors.records.append(
                    VectorRecord(
                        trait=name, method=m, layer=lay, site=st, window=window, convention="own",
                        model=model.record["model"], revision=model.record["revision"], dtype=model.record["dtype"],
                        template=model.record["template"], scenarios=scenarios, pairs=sum(c.pairs for c in parts),
                        heldout_auc=float(found.heldout_auc[p]), null_auc=float(found.null_auc[p]),
                        norm=float(found.norms[p]), mean_activation_norm=float(norms[lay, list(sites).index(st)]),
                        largest_dimension_share=float(share[p]), chosen=m == method and lay == best and st == site,
                        source=source, architecture=model.model.config.model_type,
                    )
                )  # fmt: skip
    columns = ["trait", "method", "layer", "site", "heldout_auc", "null_auc", "largest_dimension_share"]
    return vectors, pd.DataFrame([[getattr(r, c) for c in columns] for r in vectors.records], columns=columns)


def _fit_combination(
    combination: Combination,
    learned: Mapping[str, Contrast],
    points: Sequence[tuple[int, str]],
    method: str,
    folds: int,
    shuffles: int,
    seed: int,
) -> directions_.Fit:
    parts = (combination.add, combination.subtract, combination.orthogonal_to)
    groups = [[learned[name] for name in names] for names in parts]
    try:
        return directions_.fit(*groups, method, folds, shuffles, seed)
    except directions_.NothingLeft as error:
        layer, site = points[error.point]
        raise DriftbookError(
            f"traits.combine: {combination.name!r} ({recipe(combination)}) leaves nothing at layer {layer}, {site}: "
            "its parts cancel there; leave one of them out"
        ) from None


def fit_null(
    contrasts: Sequence[Contrast], method: str, count: int, shape: tuple[int, int, int], seed: int
) -> np.ndarray:
    """Directions of the same method on shuffled labels, ``[count, layers, sites, d_model]``.

    Labels are swapped within scenarios, traits in turn: such a direction lies in the span of real answers, as a trait's
    does, and means nothing. Isotropic random directions would make too narrow a null, since activations fill few of
    their dimensions.
    """
    rng = np.random.default_rng(stream_seed("null", seed) % 2**32)
    out = np.empty((count, *shape), np.float32)
    for k in range(count):
        e = contrasts[k % len(contrasts)]
        flip = rng.integers(0, 2, e.scenarios.max() + 1)
        labels = e.labels ^ flip[e.scenarios]
        out[k] = directions_.directions_of(directions_.learned_rows(e, method), labels, e.scenarios, method)[0].reshape(
            shape
        )
    return out


def null_twin(vectors: VectorSet) -> VectorSet:
    """The same records and units with null directions in the place of the traits' own: what pushing along a direction
    that means nothing does. The k-th trait gets the k-th null direction."""
    assert vectors.null is not None
    place = {trait: k % len(vectors.null) for k, trait in enumerate(vectors.traits)}
    directions = {(trait, m): vectors.null[place[trait]] for trait, m in vectors.directions}
    return replace(vectors, directions=directions)


def choose_layer(table: pd.DataFrame, depth: tuple[float, float], tolerance: float = 0.01) -> int:
    """The middle of the longest run of layers between two depths whose held-out AUC is within ``tolerance`` of the
    best: on a plateau the argmax is noise, and steering works best away from its edges.

    From 12 layers on, an AUC is the mean with both neighbours, so that one lucky layer does not decide; a neighbour
    outside the depths lowers it where it is worse, and lends nothing where it is better. Below 12 a layer is a large
    step, and each stands for itself.

    Raises:
        DriftbookError: no layer lies between the depths.
    """
    ordered = table.sort_values("layer")
    auc, layer = ordered.heldout_auc.to_numpy(), ordered.layer.to_numpy()
    inside = np.flatnonzero((layer >= depth[0] * len(layer)) & (layer <= depth[1] * len(layer)))
    if not len(inside):
        raise DriftbookError(
            f"traits.depth {tuple(depth)}: none of the {len(layer)} layers lies there; widen it, or set traits.layer"
        )
    first, last = inside[0], inside[-1]
    before, after = min(auc[max(first - 1, 0)], auc[first]), min(auc[min(last + 1, len(auc) - 1)], auc[last])
    auc, layer = auc[inside], layer[inside]
    if len(ordered) >= 12:
        auc = np.convolve([before, *auc, after], np.ones(3) / 3, mode="valid")
    good = np.flatnonzero(auc >= auc.max() - tolerance)
    runs = np.split(good, np.flatnonzero(np.diff(good) > 1) + 1)
    longest = max(runs, key=lambda run: (len(run), auc[run].mean()))
    return int(layer[longest[len(longest) // 2]])


def length_auc(contrast: Contrast) -> float:
    """AUC of the answer's token count alone: how well length gives the label away (0.5: not at all)."""
    return float(auc(contrast.token_counts.astype(float), contrast.labels))


def words_auc(contrast: Contrast, folds: int, seed: int) -> float:
    """Held-out AUC of a bag of words on the same answers, split by scenario: how well words alone give the label away.

    A vector that does no better may be reading words. Words of the prompt are not counted.
    """
    labels, scenarios = contrast.labels, contrast.answers.scenarios
    order = np.random.default_rng(seed).permutation(scenarios.max() + 1)
    fold = (np.argsort(order) % folds)[scenarios]
    aucs = []
    for f in range(folds):
        train = [t for t, k in zip(contrast.answers.texts, fold, strict=True) if k != f]
        test = [t for t, k in zip(contrast.answers.texts, fold, strict=True) if k == f]
        scores = BagOfWords(train, labels[fold != f], test).scores()
        aucs.append(float(auc(scores, labels[fold == f])))
    return float(np.mean(aucs))


def geometry(vectors: VectorSet, traits: Sequence[str], method: str, layer: int, site: str) -> pd.DataFrame:
    """Cosines between traits' directions at one point."""
    v = np.stack([vectors.at(t, method, layer, site) for t in traits])
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    return pd.DataFrame(v @ v.T, index=list(traits), columns=list(traits))


# ------------------------------------------------------------------------------------------------- controls and numbers


def overview(contrasts: Sequence[Contrast], folds: int, seed: int) -> pd.DataFrame:
    """One row per trait: scenarios, pairs of answers, mean tokens of both kinds, and how well length alone and words
    alone tell them apart."""
    return pd.DataFrame(
        {
            "trait": [c.trait.name for c in contrasts],
            "definition": [c.trait.definition for c in contrasts],
            "scenarios": [len(np.unique(c.answers.scenarios)) for c in contrasts],
            "pairs": [c.pairs for c in contrasts],
            "tokens_positive": [c.token_counts[c.labels == 1].mean() for c in contrasts],
            "tokens_negative": [c.token_counts[c.labels == 0].mean() for c in contrasts],
            "length_auc": [length_auc(c) for c in contrasts],
            "words_auc": [words_auc(c, folds, seed) for c in contrasts],
        }
    )


def chosen_table(vectors: VectorSet, quality: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """One row per trait: the chosen vector, its held-out and null AUC, and the controls (layer 0, length, words; the
    last two from :func:`overview`, empty for a combination)."""
    rows, alone = [], controls.set_index("trait")[["length_auc", "words_auc"]]
    for trait in vectors.traits:
        r = vectors.chosen(trait)
        mine = quality[(quality.trait == r.trait) & (quality.method == r.method) & (quality.site == r.site)]
        rows.append(
            {
                "trait": r.trait,
                "method": r.method,
                "layer": r.layer,
                "site": r.site,
                "heldout_auc": r.heldout_auc,
                "null_auc": r.null_auc,
                "layer0": float(mine[mine.layer == 0].heldout_auc.iloc[0]),
                "length": alone.length_auc.get(trait, np.nan),
                "words": alone.words_auc.get(trait, np.nan),
                "share": r.largest_dimension_share,
                "norm": r.norm,
                "mean_activation_norm": r.mean_activation_norm,
                "source": r.source,
            }
        )
    return pd.DataFrame(rows)


def metrics(
    vectors: VectorSet, curves: pd.DataFrame, controls: pd.DataFrame, filtered: Mapping[str, pd.DataFrame]
) -> dict[str, float]:
    """The stage's numbers for ``metrics.json``."""
    out: dict[str, float] = {"traits": len(vectors.traits), "vectors": len(vectors.records)}
    for trait in vectors.traits:
        r = vectors.chosen(trait)
        out[f"heldout_auc_{trait}"], out[f"null_auc_{trait}"], out[f"layer_{trait}"] = (
            r.heldout_auc,
            r.null_auc,
            r.layer,
        )
    for row in controls.itertuples():
        out[f"length_auc_{row.trait}"], out[f"words_auc_{row.trait}"] = row.length_auc, row.words_auc
    for row in filter_counts(dict(filtered)).itertuples():
        out[f"answers_{row.trait}"], out[f"answers_kept_{row.trait}"] = row.answers, row.kept
    for row in strongest_dose(curves).itertuples():
        out[f"dose_effect_{row.trait}"] = row.lexicon - row.at_zero
    return out
