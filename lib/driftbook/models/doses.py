"""What a model says while a vector is added at one point, and measures of it, most of which never saw the vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from driftbook.behaviours.measure import Words
from driftbook.behaviours.words import fold, words
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import student_mean
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request, Tap
from driftbook.models.projection import PoolTap
from driftbook.models.replay import TokenSequence, replay, response_likelihoods
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.steering import SteerTap
from driftbook.models.traitfiles import Score, Trait
from driftbook.models.vectors import VectorSet
from driftbook.parameters import Dose, LayerBySteering
from driftbook.sections import Intervention
from driftbook.store import ShardStore, digest

#: Text counts as coherent up to this many nats a token under the unsteered text's likelihood, and this much more of it
#: repeated.
MAX_NATS, MAX_REPETITION = 1.5, 0.2
DOSE_COLUMNS = (
    *("coefficient", "prompt", "text", "lexicon", "repetition"),
    *("projection", "log_likelihood", "tokens"),
)


def dose_response(
    model: LoadedModel,
    trait: Trait,
    vectors: VectorSet,
    coefficients: Sequence[float],
    prompts: Sequence[str],
    max_new_tokens: int,
    seed: int,
    layer: int | None = None,
) -> pd.DataFrame:
    """Answers to the prompts at every coefficient, all in one batch. A prompt that is named twice is sampled twice.

    Args:
        vectors: holds the trait's chosen direction; coefficients are in units of the mean activation norm there.
        layer: another layer than the chosen one.

    Columns: coefficient, prompt, text, tokens; lexicon (net phrases per 100 words); repetition (share of repeated
    triples of words); and, from reading the text with the *unsteered* model: log_likelihood (mean per token, nats: low
    where text broke) and projection (mean over the response of h.v/|v| at the point, in mean activation norms: how much
    the text itself carries the direction, without what was added while it was written).
    """
    record = vectors.chosen(trait.name)
    layer = record.layer if layer is None else layer
    v = torch.from_numpy(vectors.at(trait.name, record.method, layer, record.site))
    unit = float(vectors.norms[vectors.layers.index(layer), vectors.sites.index(record.site)])
    requests, keys = [], []
    for c in coefficients:
        for i, prompt in enumerate(prompts):
            ids = tuple(model.encode_prompt(prompt))
            requests.append(Request(ids, stream_seed("dose", seed, prompt, i), strength=float(c)))
            keys.append((float(c), prompt))
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.7, top_p=0.9)
    tap = SteerTap(layer, record.site, v, unit)
    done: list[list[int]] = [[] for _ in requests]
    for completion in LocalEngine(model).generate(requests, params, [tap]):
        done[completion.index] = completion.token_ids
    sequences = [TokenSequence(r.prompt_ids, tuple(ids)) for r, ids in zip(requests, done, strict=True)]
    pool = PoolTap([(layer, record.site)], len(sequences), model.hooks.d_model, "response_avg")
    likelihood = mean_log_likelihood(model, sequences, [pool])
    texts = [model.decode(ids) for ids in done]
    return pd.DataFrame(
        {
            "coefficient": [k[0] for k in keys],
            "prompt": [k[1] for k in keys],
            "text": texts,
            "lexicon": net_lexicon(texts, trait),
            "repetition": repetition(texts),
            "projection": pool.states[:, 0] @ (v / v.norm()).numpy() / unit,
            "log_likelihood": likelihood,
            "tokens": [len(ids) for ids in done],
        }
    )


def mean_log_likelihood(model: LoadedModel, sequences: Sequence[TokenSequence], taps: Sequence[Tap] = ()) -> np.ndarray:
    """Mean log-probability per response token (nats) under a model, one number a sequence; NaN for an empty
    response."""
    out = np.full(len(sequences), np.nan)
    batches = replay(model, sequences, taps, logits=True, max_tokens=4096)
    for i, told in response_likelihoods(batches, sequences):
        out[i] = float(told.mean())
    return out


def lexicon_rate(texts: Iterable[str], phrases: Sequence[str]) -> np.ndarray:
    """Occurrences of any of the phrases per 100 words, one number a text. Uses no vector: an independent measure of a
    trait."""
    if not phrases:
        return np.zeros(len(list(texts)))
    search = Words(phrases)
    return np.array([100 * search.count(fold(t)) / max(1, len(words(t))) for t in texts])


def net_lexicon(texts: Sequence[str], trait: Trait) -> np.ndarray:
    """Rate of the trait's phrases minus that of its opposite's, per 100 words."""
    return lexicon_rate(texts, trait.positive_words) - lexicon_rate(texts, trait.negative_words)


def repetition(texts: Iterable[str], n: int = 3) -> np.ndarray:
    """Share of the word n-grams of a text that it has said before, one number a text; 0 where it has none.

    A model that runs in circles finds its own text likely, so likelihood alone takes a loop for coherence.
    """
    shares = []
    for text in texts:
        said = words(text)
        grams = Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1))
        total = sum(grams.values())
        shares.append((total - len(grams)) / total if total else 0.0)
    return np.array(shares)


# ---------------------------------------------------------------------------------------------------------- dose curves


def traits_to_steer(dose: Dose | None, intervention: Intervention, traits: Sequence[Trait]) -> list[Trait]:
    """Whose dose-response curve is measured: those that were named, all, or the one that the intervention steers."""
    if dose is None:
        return []
    if dose.traits == "all":
        return list(traits)
    if dose.traits == "steered":
        wanted = [getattr(intervention, "trait", None)]
    else:
        wanted = list(dose.traits)
        unknown = set(wanted) - {t.name for t in traits}
        if unknown:
            raise DriftbookError(
                f"traits.dose.traits names {sorted(unknown)}, which is in none of traits.files; "
                f"there are {[t.name for t in traits]}"
            )
    return [t for t in traits if t.name in wanted]


def dose_curves(
    model: LoadedModel,
    traits: Sequence[Trait],
    vectors: VectorSet,
    dose: Dose,
    seed: int,
    cache: Path,
    progress: Callable[[int, str, str], Any],
) -> pd.DataFrame:
    """Dose-response answers of several traits to their evaluation prompts, with a ``trait`` column; finished ones come
    from the cache."""
    store = ShardStore(cache / "doses")
    frames = []
    bar = progress(len(traits) * len(dose.coefficients) * dose.prompts, "dose-response", "answers") if traits else None
    for trait in traits:
        asked = [trait.eval_prompts[i % len(trait.eval_prompts)] for i in range(dose.prompts)]
        layer = vectors.chosen(trait.name).layer
        frame = _cached_doses(store, model, trait, vectors, dose.coefficients, asked, dose.max_new_tokens, seed, layer)
        frames.append(frame.assign(trait=trait.name))
        if bar:
            bar.update(len(frames[-1]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*DOSE_COLUMNS, "trait"])


def _cached_doses(
    store: ShardStore,
    model: LoadedModel,
    trait: Trait,
    vectors: VectorSet,
    coefficients: Sequence[float],
    prompts: Sequence[str],
    max_new_tokens: int,
    seed: int,
    layer: int,
) -> pd.DataFrame:
    r = vectors.chosen(trait.name)
    direction = vectors.at(trait.name, r.method, layer, r.site).round(6).tolist()
    # The unit of a coefficient is a mean over all traits' answers: it changes when another file is added.
    unit = float(vectors.norms[vectors.layers.index(layer), vectors.sites.index(r.site)])
    asked = (list(prompts), trait.positive_words, trait.negative_words)
    key = digest(
        "doses", DOSE_COLUMNS, model.key, list(coefficients), max_new_tokens, seed, layer, r.site, direction,
        round(unit, 4), asked,
    )  # fmt: skip

    def answered() -> pa.Table:
        frame = dose_response(model, trait, vectors, coefficients, prompts, max_new_tokens, seed, layer)
        return pa.Table.from_pandas(frame, preserve_index=False)

    return store.kept_table(key, answered).to_pandas()


def summarize_doses(doses: pd.DataFrame) -> pd.DataFrame:
    """Per trait and coefficient: the mean lexicon measure with a 95% interval over prompts, mean projection,
    repetition and log-likelihood, and whether the text is coherent (within ``MAX_NATS`` and ``MAX_REPETITION`` of the
    unsteered text, where there is one)."""
    rows = []
    for (trait, c), group in doses.groupby(["trait", "coefficient"], sort=True):
        per_prompt = group.groupby("prompt", sort=True).lexicon.mean().to_numpy(float)
        i = student_mean(per_prompt)
        means = [float(group[name].mean()) for name in ("projection", "repetition", "log_likelihood")]
        rows.append((trait, c, i.estimate, i.low, i.high, *means, len(per_prompt)))
    names = ["trait", "coefficient", "lexicon", "low", "high", "projection", "repetition", "log_likelihood", "prompts"]
    out = pd.DataFrame(rows, columns=names)
    zero = out[out.coefficient == 0].set_index("trait")
    lost = out.trait.map(zero.log_likelihood) - out.log_likelihood
    gained = out.repetition - out.trait.map(zero.repetition)
    coherent = ~((lost > MAX_NATS) | (gained > MAX_REPETITION))
    return out.assign(at_zero=out.trait.map(zero.lexicon), coherent=coherent)


def dose_slopes(doses: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """How much each measure changes per unit of the coefficient, over the coherent coefficients.

    A least-squares slope per prompt, then the mean over prompts with a 95% interval over prompts.

    Returns:
        trait, measure (projection, lexicon), slope, low, high, prompts, coefficients; a trait with fewer than two
        coherent coefficients is left out.
    """
    rows = []
    for trait, curve in curves.groupby("trait", sort=False):
        good = curve[curve.coherent].coefficient
        if len(good) < 2:
            continue
        mine = doses[(doses.trait == trait) & doses.coefficient.isin(good)]
        for measure in ("projection", "lexicon"):
            grid = mine.pivot_table(index="prompt", columns="coefficient", values=measure, aggfunc="mean").dropna()
            x = grid.columns.to_numpy(float) - grid.columns.to_numpy(float).mean()
            i = student_mean(grid.to_numpy(float) @ x / (x @ x))
            rows.append((trait, measure, i.estimate, i.low, i.high, len(grid), len(good)))
    return pd.DataFrame(rows, columns=["trait", "measure", "slope", "low", "high", "prompts", "coefficients"])


def strongest_dose(curves: pd.DataFrame) -> pd.DataFrame:
    """Per trait the largest positive coefficient at which text still holds."""
    rows = []
    for _, group in curves.groupby("trait", sort=True):
        coherent = group[(group.coefficient > 0) & group.coherent]
        rows += [coherent.sort_values("coefficient").iloc[-1]] if len(coherent) else []
    return pd.DataFrame(rows, columns=curves.columns)


# --------------------------------------------------------------------------------------------------- layers by steering


def choose_by_steering(
    model: LoadedModel,
    traits: Sequence[Trait],
    vectors: VectorSet,
    depth: tuple[float, float],
    spec: LayerBySteering,
    seed: int,
    cache: Path,
    progress: Callable[[int, str, str], Any],
    score: Score | None = None,
) -> pd.DataFrame:
    """Choose each trait's layer by what steering there does to the text, and mark it in ``vectors``.

    At ``spec.layers`` layers, evenly spread between the depths, the model answers prompts of the trait's scenarios at
    plus and minus ``spec.coefficient``. The effect is the difference of the two in the judge's score where there is a
    judge, else in net phrases of the lexicon: neither sees the vector. A layer counts only where both texts stay
    coherent: within ``spec.max_nats`` of the unsteered text's likelihood per token, and with at most
    ``spec.max_repetition`` more of it repeated. The prompts are those of the scenarios, so that the dose-response on
    the evaluation prompts is no selected best.

    Returns:
        trait, layer, effect, low, high (95% over prompts), nats (lost by the worse side), repetition (gained by the
        worse side), coherent, chosen.

    Raises:
        DriftbookError: there is no measure for a trait, or none of its layers stays coherent.
    """
    n = len(vectors.layers)
    inside = [lay for lay in vectors.layers if depth[0] * n <= lay <= depth[1] * n]
    layers = sorted({inside[round(i)] for i in np.linspace(0, len(inside) - 1, spec.layers)}) if inside else []
    bar = progress(len(traits) * len(layers), "layers by steering", "layers")
    store, rows = ShardStore(cache / "doses"), []
    for trait in traits:
        if score is None and not (trait.positive_words or trait.negative_words):
            raise DriftbookError(
                f"traits.choose: steering needs a measure of {trait.name} that does not use the vector: give its file "
                "a lexicon, or set traits.judge"
            )
        prompts = _choice_prompts(trait, traits, spec.prompts)
        zero: pd.DataFrame | None = None
        found = []
        for layer in layers:
            doses = [-spec.coefficient, *([0.0] if zero is None else []), spec.coefficient]
            frame = _cached_doses(store, model, trait, vectors, doses, prompts, spec.max_new_tokens, seed, layer)
            if score is not None:
                frame = frame.assign(lexicon=score(trait, frame.text.tolist(), frame.prompt.tolist()))
            zero = frame[frame.coefficient == 0] if zero is None else zero
            found.append(_layer_effect(trait.name, layer, frame, zero, spec))
            bar.update(1)
        coherent = [row for row in found if row["coherent"]]
        if not coherent:
            raise DriftbookError(
                f"traits.choose: steering: at a coefficient of {spec.coefficient:g} no layer keeps the text of "
                f"{trait.name} coherent; lower traits.steering.coefficient"
            )
        best = max(coherent, key=lambda row: row["effect"])
        vectors.choose(trait.name, best["layer"])
        rows += [row | {"chosen": row is best} for row in found]
    return pd.DataFrame(rows)


def _choice_prompts(trait: Trait, traits: Sequence[Trait], count: int) -> list[str]:
    """Prompts of the trait's own scenarios; a combination takes those of all traits in turn."""
    own = [s.prompt for s in trait.scenarios] or [
        s.prompt for group in zip(*(t.scenarios for t in traits if t.scenarios), strict=False) for s in group
    ]
    return [own[i % len(own)] for i in range(count)]


def _layer_effect(
    trait: str, layer: int, frame: pd.DataFrame, zero: pd.DataFrame, spec: LayerBySteering
) -> dict[str, Any]:
    sides = {sign: frame[frame.coefficient == sign * spec.coefficient] for sign in (-1.0, 1.0)}
    up, down = (sides[sign].groupby("prompt", sort=True).lexicon.mean() for sign in (1.0, -1.0))
    i = student_mean((up - down).dropna().to_numpy(float))
    nats = zero.log_likelihood.mean() - min(side.log_likelihood.mean() for side in sides.values())
    repeated = max(side.repetition.mean() for side in sides.values()) - zero.repetition.mean()
    return {
        "trait": trait, "layer": layer, "effect": i.estimate, "low": i.low, "high": i.high, "nats": float(nats),
        "repetition": float(repeated), "coherent": bool(nats <= spec.max_nats and repeated <= spec.max_repetition),
    }  # fmt: skip
