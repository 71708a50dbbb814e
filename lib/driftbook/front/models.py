"""Models: a base and what was done to it, their answers, their divergence, and traits read while they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from driftbook import decode, interventions, traits
from driftbook.capture import make_scale, read_null, sampling
from driftbook.discovery.screen import screen_divergence
from driftbook.discovery.splits import with_units
from driftbook.discovery.strategies import Ask
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import JS, Interval, student_mean
from driftbook.front.common import Shown, as_prompts, checked, folder_of
from driftbook.models import loading
from driftbook.models.amplified import amplified
from driftbook.models.captured import Sample, capture_live, make_probe, null_probe
from driftbook.models.loading import LoadedModel
from driftbook.models.projection import PoolTap, all_points
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair, Side
from driftbook.models.traitfiles import Trait, read_traits
from driftbook.models.vectors import VectorRecord, VectorSet
from driftbook.parameters import Amplify, Capture, Decode, ModelSpec, Screen, Traits
from driftbook.prompt_files import PromptList, check_lengths
from driftbook.prompts import Prompt, PromptSet
from driftbook.sections import Intervention, Opening
from driftbook.store import ShardStore, digest

if TYPE_CHECKING:
    from driftbook.workbook.figures import Figure

__all__ = (
    *("Ablate", "Adapter", "Checkpoint", "Divergence", "Quantize", "States", "Steer", "SystemPrompt", "Vectors"),
    *("amplify", "divergence", "fit_vectors", "generate", "load", "pair", "project"),
)

# What a model says of these is read to learn how long its states are, where no answers came with the vectors.
PLAIN = (
    ("What is a tide?", "The sea rises and falls twice a day, because the moon and the sun pull on it."),
    ("How do I boil an egg?", "Put it into boiling water for eight minutes, then cool it under the tap."),
    ("Who wrote Hamlet?", "William Shakespeare wrote it around the year 1600."),
    ("Name three rivers.", "The Nile, the Danube and the Amazon are three well known rivers."),
)


def load(
    model: str = ModelSpec().model,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    chat_template: bool = True,
    template: str | None = None,
    template_args: Mapping[str, Any] | None = None,
    cache: Path | str | None = None,
) -> LoadedModel:
    """A causal language model, ready to answer and to be read.

    Args:
        model: ``bundled:<name>``, a Hugging Face id, a folder, or a GGUF file.
        chat_template: False gives prompts as they stand, as base models want them.
        template: which one, where there are several; template_args: what it takes, such as ``enable_thinking``.
        cache: where a converted model is kept (default: ``outputs/.cache`` of the repository around the working
            folder, else the user's cache folder; so for all functions here).

    Raises:
        DriftbookError: the name is unknown, cannot be reached, or is no causal language model.
    """
    options = {"revision": revision, "dtype": dtype, "device": device, "chat_template": chat_template}
    options |= {"template": template, "template_args": dict(template_args or {})}
    return loading.load(checked(ModelSpec, model=model, **options), folder_of(cache))


# -------------------------------------------------------------------------------------------------------------- vectors


@dataclass(frozen=True)
class Vectors(Shown):
    """Directions of traits in the residual stream, by trait.

    From ``fit_vectors``, ``Vectors.load`` or ``Vectors.from_arrays``. ``set`` is the set of an experiment; None for
    arrays, which become one when they meet a model (``on``).
    """

    set: VectorSet | None = field(default=None, repr=False)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    layer: int = -1
    site: str = "resid_post"

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], *, layer: int, site: str = "resid_post") -> Vectors:
        """Directions made elsewhere.

        Args:
            arrays: trait to ``[d_model]`` (one direction, read at every layer), or ``[layers, d_model]``; any length.
            layer: where they steer, and what is shown first; site: resid_pre, resid_mid or resid_post.

        Raises:
            DriftbookError: no arrays, or one that is no finite vector or matrix.
        """
        if not arrays:
            raise DriftbookError("arrays: none given; map the name of a trait to its direction")
        kept = {str(name): np.asarray(v, dtype=np.float32) for name, v in arrays.items()}
        for name, v in kept.items():
            if v.ndim not in (1, 2) or not np.isfinite(v).all() or not np.linalg.norm(v, axis=-1).all():
                raise DriftbookError(
                    f"arrays[{name!r}]: shape {v.shape}; give a finite direction [d_model], or one a layer "
                    "[layers, d_model], none of them zero"
                )
        return cls(None, kept, layer, site)

    @classmethod
    def load(cls, folder: Path | str) -> Vectors:
        """Those of an experiment (``outputs/<experiment>/traits/data``). Raises DriftbookError where none are there."""
        return cls(VectorSet.load(Path(folder)))

    def save(self, folder: Path | str) -> None:
        """Write them as an experiment does. Raises DriftbookError for arrays that have met no model."""
        if self.set is None:
            raise DriftbookError("these arrays belong to no model yet: Vectors(vectors.on(model)).save(folder)")
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.set.save(Path(folder))

    @property
    def traits(self) -> list[str]:
        return list(self.arrays) if self.set is None else self.set.traits

    def on(self, model: LoadedModel, cache: Path | str | None = None) -> VectorSet:
        """The set on this model: directions at every layer and site, and the unit of steering coefficients, which is
        the mean norm of its states (of arrays: over a few plain answers).

        Raises:
            DriftbookError: layers or width are not the model's.
        """
        layers, d_model = model.hooks.n_layers, model.hooks.d_model
        if self.set is not None:
            width = next(iter(self.set.directions.values())).shape[-1]
            if (len(self.set.layers), width) != (layers, d_model):
                raise DriftbookError(
                    f"the vectors have {len(self.set.layers)} layers of width {width}, the model has {layers} of "
                    f"{d_model}; fit them on it"
                )
            return self.set
        sites = traits.sites_of(model)
        if not 0 <= self.layer < layers or self.site not in sites:
            raise DriftbookError(
                f"layer {self.layer}, {self.site}: the model has layers 0 to {layers - 1} and {', '.join(sites)}"
            )
        directions = {}
        for name, v in self.arrays.items():
            if v.shape[-1] != d_model or (v.ndim == 2 and len(v) != layers):
                raise DriftbookError(f"arrays[{name!r}] has shape {v.shape}, the model {layers} layers of {d_model}")
            each = np.broadcast_to(v.reshape(-1, 1, d_model), (layers, len(sites), d_model))
            directions[name, "given"] = each / np.linalg.norm(each, axis=-1, keepdims=True)
        norms = _norms(model, sites, folder_of(cache))
        made = VectorSet(list(range(layers)), sites, directions, norms)
        for name, v in self.arrays.items():
            row = v if v.ndim == 1 else v[self.layer]
            made.records.append(
                VectorRecord(
                    trait=name, method="given", layer=self.layer, site=self.site, window="", convention="own",
                    model=model.record["model"], revision=model.record["revision"], dtype=model.record["dtype"],
                    template=model.record["template"], scenarios="", pairs=0, heldout_auc=np.nan, null_auc=np.nan,
                    norm=float(np.linalg.norm(row)), largest_dimension_share=float((row**2).max() / (row**2).sum()),
                    mean_activation_norm=float(norms[self.layer, sites.index(self.site)]), chosen=True,
                    source="imported", architecture=model.model.config.model_type,
                )
            )  # fmt: skip
        return made

    def to_frame(self) -> pd.DataFrame:
        """One row a trait: trait, method, layer, site, heldout_auc, null_auc (both NaN for arrays), pairs."""
        columns = ["trait", "method", "layer", "site", "heldout_auc", "null_auc", "pairs"]
        if self.set is None:
            rows = [(t, "given", self.layer, self.site, np.nan, np.nan, 0) for t in self.traits]
        else:
            rows = [tuple(getattr(self.set.chosen(t), c) for c in columns) for t in self.traits]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        return f"Directions of {', '.join(self.traits)}"

    def plot(self) -> Figure:
        """How well each trait's direction tells held-out answers apart, at its layer."""
        from driftbook.workbook.figures import bars  # plotly: a result is drawn when it is asked to be

        table = self.to_frame()
        caption = "Area under the ROC curve over scenarios that the direction was not fitted on. Dashed: chance."
        return bars(
            table["trait"].tolist(), table["heldout_auc"], title=str(self), caption=caption, value_title="held-out AUC",
            horizontal=True, reference=0.5,
        )  # fmt: skip


def _norms(model: LoadedModel, sites: Sequence[str], cache: Path) -> np.ndarray:
    """``[layers, sites]``: mean norm of the states that answers have, as the traits stage measures it."""
    points = all_points(model, sites)

    def measured() -> dict[str, np.ndarray]:
        said = [(model.encode_prompt(p), model.encode_answer(a)) for p, a in PLAIN]
        sequences = [TokenSequence(tuple(p), tuple(a)) for p, a in said]
        tap = PoolTap(points, len(sequences), model.hooks.d_model, "response_avg")
        for _ in replay(model, sequences, [tap]):
            pass
        return {"norms": np.linalg.norm(tap.states, axis=-1).mean(0).reshape(model.hooks.n_layers, len(sites))}

    return ShardStore(cache / "contrasts").kept_arrays(digest("norms", model.key, sites, PLAIN), measured)["norms"]


def fit_vectors(
    model: LoadedModel,
    files: str | Sequence[str | Trait] = tuple(Traits().files),
    *,
    root: Path | str | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
    **options: Any,
) -> Vectors:
    """Directions of traits, from contrastive answers that the model reads.

    Args:
        files: trait files (``docs/traits.md``), globs, or traits that were read already.
        root: what paths are relative to (default: the working folder).
        options: of the section ``traits``: method, site, layer, depth, window, folds, shuffles, max_scenarios,
            null_vectors, compare, combine.

    Raises:
        DriftbookError: a file is missing or malformed, an option is wrong, or no layer can be chosen.
    """
    named = [files] if isinstance(files, str) else list(files)
    section = checked(Traits, **options)
    if section.scenarios != "natural" or section.imports or section.choose != "auc":
        raise DriftbookError("fit_vectors reads written answers; run an experiment for scenarios, imports and choose")
    given = [t for t in named if isinstance(t, Trait)]
    patterns = [t for t in named if not isinstance(t, Trait)]
    base = Path.cwd() if root is None else Path(root)
    found = given + (read_traits(patterns, base, max_scenarios=section.max_scenarios) if patterns else [])
    if not found:
        raise DriftbookError("files: no trait is named; give trait files, such as params/traits/*.json")
    sites, answers = traits.sites_of(model), [traits.written_answers(model, t) for t in found]
    wants = "gradient" in (section.method, *section.compare)
    contrasts = traits.read_contrasts(model, answers, sites, section.window, folder_of(cache), gradients=wants)
    vectors, _ = traits.fit_vectors(
        model, contrasts, sites, section.method, section.site, section.layer, section.depth, section.window,
        section.scenarios, section.folds, section.shuffles, seed, section.compare, section.combine,
    )  # fmt: skip
    shape = (model.hooks.n_layers, len(sites), model.hooks.d_model)
    vectors.null = traits.fit_null(contrasts, section.method, section.null_vectors, shape, seed)
    return Vectors(vectors)


# ---------------------------------------------------------------------------------------------------------- two sides


@dataclass(frozen=True)
class Change:
    """What is done to a model: the fields of an ``intervention`` in a parameter file (``docs/interventions.md``)."""

    section: ClassVar[type[Intervention]]

    def parameters(self) -> Intervention:
        """The section of a parameter file. Raises DriftbookError for a value that it refuses."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "vectors"}
        return checked(self.section, **own)


@dataclass(frozen=True)
class Steer(Change):
    """The direction of a trait is added at one layer, ``coefficient`` mean activation norms of it."""

    trait: str
    coefficient: float
    vectors: Vectors
    layer: int | Literal["auto"] = "auto"
    positions: Literal["all", "response"] = "all"
    section = interventions.Steer


@dataclass(frozen=True)
class Ablate(Change):
    """The component along the direction of a trait is removed, at one layer or at all."""

    trait: str
    vectors: Vectors
    layer: int | Literal["auto", "all"] = "all"
    section = interventions.Ablate


@dataclass(frozen=True)
class Quantize(Change):
    """Linear weights are rounded to 8 or 4 bits."""

    bits: Literal[8, 4] = 8
    section = interventions.Quantize


@dataclass(frozen=True)
class SystemPrompt(Change):
    """A system prompt stands before every prompt."""

    system: str
    section = interventions.SystemPrompt


@dataclass(frozen=True)
class Adapter(Change):
    """A PEFT adapter folder is switched on; ``scale`` multiplies what a LoRA adds."""

    path: str
    scale: float = 1.0
    section = interventions.Adapter


@dataclass(frozen=True)
class Checkpoint(Change):
    """Another model, or another revision, in the place of the base."""

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    chat_template: bool = True
    template: str | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    section = interventions.Checkpoint


def pair(
    model: LoadedModel,
    change: Change | Intervention,
    *,
    root: Path | str | None = None,
    cache: Path | str | None = None,
) -> Pair:
    """Both sides of a comparison: ``model``, and itself after ``change``.

    Args:
        change: ``Steer``, ``Ablate``, ``Quantize``, ``SystemPrompt``, ``Adapter``, ``Checkpoint``, or any section
            ``intervention`` of a parameter file that needs no vectors.
        root: what paths are relative to (default: the working folder).

    Raises:
        DriftbookError: a parameter is wrong, or weights, adapter or vectors do not fit the model.
    """
    section = change.parameters() if isinstance(change, Change) else change
    vectors = getattr(change, "vectors", None)
    folder = folder_of(cache)
    known = vectors.on(model, folder) if vectors is not None else None
    where = model.record
    again = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
    again |= {"template": model.template.name, "template_args": dict(model.template.args)}
    spec = ModelSpec(model=where["model"], revision=where["revision"], chat_template=model.use_chat_template, **again)
    return section.open(model, Opening(spec, folder, Path.cwd() if root is None else Path(root), known))


def _sides(models: LoadedModel | Pair) -> list[Side]:
    return list(models) if isinstance(models, Pair) else [Side("base", models, models.key)]


def _asked(prompts: Any, sides: Sequence[Side], max_new_tokens: int) -> PromptSet:
    """The prompts, each once, all in one split. Raises DriftbookError for one that leaves no room to answer."""
    known = PromptList(as_prompts(prompts))
    for side in sides:
        check_lengths(known, lambda p, side=side: len(side.encode(p)), side.model.context - max_new_tokens)
    return PromptSet.of(with_units(known), ["discover"] * len(known))


def _decoded(
    sides: Sequence[Side], asked: PromptSet, section: Decode, samples: int, seed: int, folder: Path
) -> tuple[pd.DataFrame, dict[str, list[tuple[int, ...]]], SamplingParams]:
    params = SamplingParams(
        section.max_new_tokens,
        section.temperature,
        section.top_p,
        section.top_k,
        section.min_p,
        section.max_thought_tokens,
    )
    ids = {side.name: [side.encode(p) for p in asked.prompts] for side in sides}
    asks = [Ask(p, s, 0) for p in range(len(asked)) for s in range(samples)]
    store = ShardStore(folder / "decode")
    return decode.decode_texts(sides, asked, ids, asks, params, seed, store, section.shard), ids, params


def generate(
    models: LoadedModel | Pair, prompts: Any, *, seed: int = 0, cache: Path | str | None = None, **options: Any
) -> pd.DataFrame:
    """Answers to every prompt, of one model or of both sides. Finished answers come from the cache.

    Args:
        prompts: texts, ``Prompt`` records or conversations.
        options: of the section ``decode``: samples (to each prompt and side), max_new_tokens, temperature, top_p,
            top_k, min_p.

    Returns:
        one row an answer: side (base, intervention), prompt, text, prompt_id, family, sample, finish_reason; a table
        that ``compare`` and ``test`` take as it is. Of a conversation ``prompt`` holds the messages.

    Raises:
        DriftbookError: an option is wrong, or a prompt leaves no room to answer.
    """
    section, sides = checked(Decode, **options), _sides(models)
    asked = _asked(prompts, sides, section.most_tokens)
    texts, _, _ = _decoded(sides, asked, section, section.samples, seed, folder_of(cache))
    return _answers(texts, asked)


def _answers(texts: pd.DataFrame, asked: PromptSet, *more: str) -> pd.DataFrame:
    by_id = asked.by_id()
    said = [p.chat() if p.messages or p.system else p.text for p in map(by_id.__getitem__, texts["prompt_id"])]
    table = texts.assign(prompt=said).rename(columns={"sample_index": "sample"})
    return table[["side", "prompt", "text", "prompt_id", "family", "sample", "finish_reason", *more]]


def amplify(
    pair: Pair,
    prompts: Any,
    strength: float | Sequence[float] = 2.0,
    *,
    by: Literal["logits", "coefficient"] = "logits",
    plausible: float = Amplify().plausible,
    seed: int = 0,
    cache: Path | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Answers in which what was done to a model is exaggerated, beside the base's own: what is faint shows.

    The same seeds draw at every strength, so an answer differs from the ordinary one by the exaggeration alone.

    Args:
        strength: how many times the difference between the sides is added to each next token; 0: the changed side as
            it is, -1: the base. Several give answers at each.
        by: ``coefficient`` multiplies the size of a steering vector, an ablation or a LoRA instead.
        plausible: tokens within this factor of a side's likeliest one are exaggerated.
        options: as ``generate`` takes them.

    Returns:
        a table as of ``generate``, with ``strength`` (0 for the base's answers, which are not exaggerated).

    Raises:
        DriftbookError: the sides have no common next token, or the change has no size.
    """
    section, folder = checked(Decode, **options), folder_of(cache)
    known = checked(Amplify, by=by, plausible=plausible)
    asked = _asked(prompts, list(pair), section.max_new_tokens)
    strengths = [float(a) for a in np.atleast_1d(strength)]
    sides = [pair.base, *(amplified(pair, Exaggeration(a, known.by, known.plausible)) for a in strengths)]
    texts, _, _ = _decoded(sides, asked, section, section.samples, seed, folder)
    return _answers(texts, asked, "strength")


@dataclass(frozen=True)
class Divergence(Shown):
    """How far the next-token distributions of two sides are apart, along answers of both.

    ``js`` is the mean over prompts in nats a token (0: equal, 0.69 at most) with a 95% interval over prompts;
    ``table`` has a row a prompt, largest first: prompt, js, js_low, js_high, kl, kl_low, kl_high, n_tokens, prompt_id.
    ``profile`` has a row a position in the answer: position, kl, js, js_se, n. ``promoted`` has the next tokens that
    the change makes likelier or less likely: token, direction, gain, positions, prompts, family, theme.
    """

    js: Interval
    table: pd.DataFrame
    profile: pd.DataFrame = field(repr=False)
    promoted: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The same as ``table``."""
        return self.table

    def __str__(self) -> str:
        js = self.js
        return f"Next-token distributions differ by {js.estimate:.3f} nats (JS) a token ({js.low:.3f} to {js.high:.3f})"

    def plot(self, most: int = 24) -> Figure:
        """The prompts where the sides are furthest apart."""
        from driftbook.workbook.figures import bars  # plotly: a result is drawn when it is asked to be

        shown = self.table.head(most)
        caption = f"The {len(shown)} of {len(self.table)} prompts with the largest divergence, along answers of both."
        return bars(
            shown["prompt"].tolist(), shown["js"], title=str(self), caption=caption, horizontal=True,
            value_title="JS (nats a token)",
        )  # fmt: skip


def divergence(
    pair: Pair,
    prompts: Any,
    *,
    samples: int = Screen().samples,
    tokens: int = Screen().tokens,
    seed: int = 0,
    cache: Path | str | None = None,
    **options: Any,
) -> Divergence:
    """Exact KL and JS between the next-token distributions of two sides, along the answers that both give.

    Args:
        samples: answers of each side to each prompt; tokens: of each answer that are compared.
        options: how they are drawn, as ``generate`` takes it: temperature, top_p, top_k, min_p.

    Raises:
        DriftbookError: the sides have different vocabularies, or answers of one were made elsewhere.
    """
    if reason := pair.no_divergence():
        raise DriftbookError(f"divergence: {reason}")
    section, folder = checked(Decode, **{"max_new_tokens": tokens, **options}), folder_of(cache)
    asked = _asked(prompts, list(pair), section.max_new_tokens)
    texts, ids, _ = _decoded(list(pair), asked, section, samples, seed, folder)
    store = ShardStore(folder / "decode")
    table, profile, promoted = screen_divergence(pair, asked, ids, texts, tokens, samples, store)
    unit = table["prompt_id"].map({p.prompt_id: p.unit for p in asked.prompts})
    mean = student_mean(table.dropna(subset="js").groupby(unit)["js"].mean().to_numpy(float), within=JS)
    text = {p.prompt_id: p.text for p in asked.prompts}
    columns = ["prompt", "js", "js_low", "js_high", "kl", "kl_low", "kl_high", "n_tokens", "prompt_id"]
    table = table.assign(prompt=table["prompt_id"].map(text)).sort_values("js", ascending=False, kind="stable")
    return Divergence(mean, table[columns].reset_index(drop=True), profile, promoted)


# --------------------------------------------------------------------------------------------------------------- states


@dataclass(frozen=True)
class States(Shown):
    """Traits read at every token of answers, prompt tokens first.

    ``values`` is ``[sample, token, layer, site, trait]`` float32, NaN beyond the end of a sample, in ``unit``: null
    standard deviations from the base's mean where the vectors have null directions, else raw projections h.v/|v|.
    ``low`` and ``high`` ``[layer, site]`` hold 95% of what null directions reach (NaN without them). ``samples`` has a
    row a sample: side, prompt, prompt_id, sample, prompt_tokens, tokens, text; ``tokens`` the tokens of each as text.
    """

    values: np.ndarray = field(repr=False)
    unit: str
    layers: list[int] = field(repr=False)
    sites: list[str]
    traits: list[str]
    chosen: dict[str, tuple[int, str]]
    samples: pd.DataFrame = field(repr=False)
    tokens: list[list[str]] = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)

    def at(self, trait: str, layer: int | None = None, site: str | None = None) -> np.ndarray:
        """``[sample, token]`` of one trait, by default at its chosen layer and site. Raises DriftbookError for what
        was not read."""
        if trait not in self.traits:
            raise DriftbookError(f"trait {trait!r} was not read; there are {', '.join(self.traits)}")
        layer, site = self._place(trait, layer, site)
        return self.values[:, :, self.layers.index(layer), self.sites.index(site), self.traits.index(trait)]

    def _place(self, trait: str, layer: int | None = None, site: str | None = None) -> tuple[int, str]:
        layer, site = self.chosen[trait][0] if layer is None else layer, site or self.chosen[trait][1]
        if layer not in self.layers or site not in self.sites:
            raise DriftbookError(f"layer {layer}, {site} was not read; sites are {', '.join(self.sites)}")
        return layer, site

    def to_frame(self) -> pd.DataFrame:
        """Long form at each trait's chosen layer and site: sample, side, prompt_id, position, token, part (prompt,
        response), trait, value."""
        pieces = []
        for trait in self.traits:
            read = self.at(trait)
            for i, row in enumerate(self.samples.itertuples()):
                own, position = self.tokens[i], np.arange(len(self.tokens[i]))
                part = np.where(position < row.prompt_tokens, "prompt", "response")
                about = {"sample": i, "side": row.side, "prompt_id": row.prompt_id, "position": position, "token": own}
                pieces.append(pd.DataFrame(about | {"part": part, "trait": trait, "value": read[i, : len(own)]}))
        return pd.concat(pieces, ignore_index=True)

    def means(self) -> pd.DataFrame:
        """Mean over response tokens at each trait's chosen layer and site: one row a sample, a column a trait."""
        found = {}
        for trait in self.traits:
            read = self.at(trait)
            spans = zip(read, self.samples["prompt_tokens"], self.samples["tokens"], strict=True)
            found[trait] = [float(row[start:end].mean()) if end > start else np.nan for row, start, end in spans]
        return self.samples[["side", "prompt", "sample", "text"]].assign(**found)

    def _shown(self) -> pd.DataFrame:
        return self.means()

    def __str__(self) -> str:
        return f"{', '.join(self.traits)} over {len(self.samples):,} answers ({self.unit})"

    def plot(self, trait: str | None = None, sample: int = 0, layer: int | None = None) -> Figure:
        """One trait along the tokens of one sample; with two sides, of the intervention's answer to the same prompt,
        too."""
        from driftbook.workbook.figures import curve, trait_trace  # plotly: a result is drawn when it is asked to be

        trait = self.traits[0] if trait is None else trait
        read, (layer, site) = self.at(trait, layer), self._place(trait, layer)
        row = self.samples.iloc[sample]
        mine = self.samples[(self.samples["prompt_id"] == row["prompt_id"]) & (self.samples["sample"] == row["sample"])]
        each = {r.side: (self.tokens[r.Index], read[r.Index, : len(self.tokens[r.Index])]) for r in mine.itertuples()}
        title = f"{trait} along an answer to {row['prompt'][:60]!r}"
        caption = f"Layer {layer}, {site}."
        if np.isnan(self.low).all():
            values = np.concatenate([v for _, v in each.values()])
            position = np.concatenate([np.arange(len(v)) for _, v in each.values()])
            names = [side for side, (_, v) in each.items() for _ in v]
            return curve(
                position, values, groups=names, title=title, caption=caption, x_title="token", y_title=self.unit
            )
        at = self.layers.index(layer), self.sites.index(site)
        (first, (words, base)), *rest = each.items()
        other = {"intervention": rest[0][1][1], "intervention_tokens": rest[0][1][0]} if rest else {}
        return trait_trace(
            words, base, null_low=self.low[at], null_high=self.high[at], title=title, caption=caption, unit=self.unit,
            names=(first, rest[0][0] if rest else "intervention"), **other,
        )  # fmt: skip


def project(
    models: LoadedModel | Pair,
    prompts: Any,
    vectors: Vectors,
    *,
    sites: Sequence[str] | None = None,
    seed: int = 0,
    cache: Path | str | None = None,
    **options: Any,
) -> States:
    """Read every trait at every token, layer and site while a model (or both sides) answers.

    Args:
        sites: of the residual stream (default: all that the vectors have).
        options: of the section ``capture``: samples (to each prompt and side), max_new_tokens, temperature, top_p,
            top_k.

    Raises:
        DriftbookError: the vectors do not fit the model, a site is not there, a prompt leaves no room to answer, or
            the states would take more memory than is allowed.
    """
    section, sides, folder = checked(Capture, **options), _sides(models), folder_of(cache)
    known = list(_asked(prompts, sides, section.most_tokens).prompts)
    base = sides[0].model
    if any(side.model.hooks.n_layers != base.hooks.n_layers for side in sides):
        raise DriftbookError("project: the two sides have different layers; read each of them alone")
    held = vectors.on(base, folder)
    method = held.chosen(held.traits[0]).method
    probe = make_probe(held, method, list(sites) if sites is not None else None, base)
    params = sampling(section)
    live = {s.name: capture_live(s, known, section.samples, params, probe, seed, folder) for s in sides}
    samples = [s for side in live.values() for s in side]
    rows = [probe.grid(s.rows.projection) for s in samples]
    shape = rows[0].shape[1:]
    low = high = np.full(shape[:2], np.nan)
    unit = "projection"
    if held.null is not None:
        null = read_null(sides[0], live[sides[0].name], null_probe(held, probe), folder)
        scale = make_scale(live[sides[0].name], probe, null)
        rows, low, high, unit = [scale.score(r) for r in rows], scale.low, scale.high, "null SD"
    values = np.full((len(rows), max(map(len, rows)), *shape), np.nan, np.float32)
    for own, row in zip(values, rows, strict=True):
        own[: len(row)] = row
    of = {side.name: side.model for side in sides}
    table = pd.DataFrame([_told(s, known[s.prompt], of[s.side]) for s in samples])
    tokens = [
        [of[s.side].tokenizer.decode([i]) for i in s.sequence.ids[: len(r)]] for s, r in zip(samples, rows, strict=True)
    ]
    chosen = {t: (held.chosen(t).layer, held.chosen(t).site) for t in held.traits}
    return States(values, unit, probe.layers, probe.sites, probe.traits, chosen, table, tokens, low, high)


def _told(sample: Sample, prompt: Prompt, model: LoadedModel) -> dict[str, Any]:
    asked, said = sample.sequence.prompt_ids, sample.answer_ids
    about = {"side": sample.side, "prompt": prompt.text, "prompt_id": prompt.prompt_id, "sample": sample.sample}
    return about | {"prompt_tokens": len(asked), "tokens": len(sample.sequence), "text": model.decode(list(said))}
