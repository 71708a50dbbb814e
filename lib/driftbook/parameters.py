"""The parameters of an experiment: one pydantic model per section, and a reader for ``params/*.yml``.

The same models validate a headless run (``load_experiment``) and the parameter cell of a notebook opened by hand
(``validate_cell``). Importing this module costs no torch.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import regex
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import driftbook.engines  # noqa: F401 (registers what the section engine can name)
from driftbook.errors import DriftbookError, ParameterError, PromptError
from driftbook.files import blank, yaml_tree
from driftbook.interventions import NoIntervention
from driftbook.judges import Lexicon
from driftbook.judges.told import Told
from driftbook.members import NAME, SERIES, Member, Members, member_name, repeated
from driftbook.prompt_files import files_beside, read_prompts
from driftbook.prompts import Prompt
from driftbook.sections import (
    JUDGES,
    KINDS,
    AnyIntervention,
    AnyJudge,
    EngineSpec,
    Intervention,
    JudgeSpec,
    ModelSpec,
    Names,
    ResidualSite,
    Section,
    short_name,
)

S = TypeVar("S", bound=Section)
Where = Callable[[tuple[str | int, ...]], str]
"""From the keys of a problem to "file:line: "."""

STAGES = ("traits", "capture", "decode", "cluster", "validate")


# --------------------------------------------------------------------------------------------------------------- stages


class Dose(Section):
    """The steering dose-response curve; coefficients in units of the mean activation norm."""

    coefficients: list[float] = [-0.6, -0.3, 0.0, 0.3, 0.6, 0.9]
    prompts: int = Field(24, ge=1, description="of the trait's own eval set, answered at each coefficient")
    max_new_tokens: int = Field(40, ge=1)
    traits: list[str] | Literal["all", "steered"] = "steered"


class Combination(Section):
    """A trait made from others, at every layer and site: the sum of their unit vectors, minus some, without what lies
    along the rest (Gram-Schmidt). It has a name like a trait, and stands wherever a trait does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    add: list[str] = []
    subtract: list[str] = []
    orthogonal_to: list[str] = []

    @model_validator(mode="after")
    def _has_parts(self) -> Combination:
        parts = [*self.add, *self.subtract, *self.orthogonal_to]
        if not self.add and not self.subtract:
            raise ValueError("a combination needs add or subtract")
        if len(set(parts)) < len(parts):
            raise ValueError("a combination names each trait once")
        return self


class LayerBySteering(Section):
    """How ``choose: steering`` measures a layer."""

    layers: int = Field(5, ge=2, description="candidates, evenly spread between the depths")
    coefficient: float = Field(0.4, gt=0, description="pushed by plus and minus this many mean activation norms")
    prompts: int = Field(12, ge=2, description="prompts of the trait's scenarios that are answered at each")
    max_new_tokens: int = Field(32, ge=1)
    max_nats: float = Field(
        1.5, gt=0, description="most likelihood per token that steered text may lose and still be coherent"
    )
    max_repetition: float = Field(0.2, gt=0, le=1, description="most repetition that it may gain")


class Instructed(Section):
    """Answers that the model gives under a trait's instructions, and which of them are kept."""

    samples: int = Field(2, ge=1, description="pairs of answers per scenario")
    max_new_tokens: int = Field(60, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    read_instruction: bool = Field(
        False, description="leave the instruction before the answer when it is read, as persona_vectors does"
    )
    min_words: int = Field(8, ge=1)
    max_repetition: float = Field(0.3, gt=0, le=1, description="most of an answer's word triples said before")


Method = Literal["mean_difference", "probe", "pca", "gradient"]


class Traits(Section):
    files: list[str] = ["params/traits/*.json"]
    method: Method = "probe"
    compare: list[Method] = Field(["mean_difference", "probe"], description="methods that are fitted beside method")
    combine: list[Combination] = []
    imports: dict[str, str] = Field(
        {}, description="trait -> persona_vectors .pt file, instead of a direction that is fitted here"
    )
    site: ResidualSite = "resid_post"
    layer: int | Literal["auto"] = "auto"
    choose: Literal["auc", "steering"] = Field(
        "auc", description="what layer: auto goes by: held-out AUC, or what steering there does to the text"
    )
    depth: tuple[float, float] = Field((0.25, 0.7), description="share of depth within which layer: auto chooses")
    steering: LayerBySteering = LayerBySteering()
    window: str = Field("response_avg", pattern=r"^(response_avg|response_first_\d+|response_last|prompt_last)$")
    scenarios: Literal["natural", "instructed", "all"] = Field(
        "natural", description="answers that the file holds, the model's own under instructions, or both"
    )
    instructed: Instructed = Instructed()
    judge: AnyJudge | None = Field(
        None, description="filters instructed answers, and measures steered ones for choose: steering"
    )
    budget_usd: float = Field(1.0, ge=0, description="the most that traits.judge may cost in a run")
    folds: int = Field(5, ge=2)
    shuffles: int = Field(5, ge=1)
    max_scenarios: int | None = Field(None, ge=4)
    null_vectors: int = Field(64, ge=8, description="directions fitted to shuffled labels, behind every null band")
    dose: Dose | None = Dose()

    @model_validator(mode="after")
    def _judge_reads(self) -> Traits:
        if self.judge is not None and not (isinstance(self.judge, Told) and self.judge.mode == "single"):
            raise ValueError("judge needs a language model, as kind: local or endpoint, and mode: single")
        return self

    def names(self, files: list[str]) -> list[str]:
        """The traits that can be named elsewhere: those of the files, and the combinations."""
        return [*files, *(one.name for one in self.combine)]


class Tier3(Section):
    prompts: list[str] = []
    layers: list[int] | Literal["auto"] = "auto"
    max_bytes: int = Field(2_000_000_000, ge=1)


class Capture(Section):
    prompts: list[str] = ["params/prompts/prompts_*.txt"]
    tier: Literal[2, 3] = 2
    tier3: Tier3 = Tier3()
    sites: list[ResidualSite] | None = Field(
        None, min_length=1, description="of the residual stream; null: all that the model has"
    )
    convention: Literal["producer", "own"] = "own"
    samples: int = Field(4, ge=1)
    max_new_tokens: int = Field(50, ge=1)
    max_thought_tokens: int = Field(
        0, ge=0, description="that a model which thinks first may think, beside max_new_tokens for the answer"
    )
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(0, ge=0)

    @property
    def most_tokens(self) -> int:
        """The longest response, thought and answer."""
        return self.max_new_tokens + self.max_thought_tokens


class Screen(Section):
    """Divergence screen: exact next-token KL and JS along sampled responses."""

    enabled: bool = True
    samples: int = Field(1, ge=1, description="responses per prompt and side that are scored under both models")
    tokens: int = Field(24, ge=1, description="first response tokens that are scored")
    along: Literal["both", "base"] = Field(
        "both", description="whose responses are read; base: a further change of the same base reads half as much"
    )
    keep: float = Field(0.5, gt=0, le=1, description="share of prompts that keep full weight")
    floor: float = Field(0.1, gt=0, le=1, description="least propensity of any prompt, relative to a kept one")
    likelihood: Literal["auto", "always", "never"] = Field(
        "never",
        description="both sides read every discover text, which then counts for each by how likely it was to write it; "
        "auto: where the models are near enough for that to halve the variance. Saves texts, not always time",
    )


class Sampling(Section):
    strategy: Literal["exhaustive", "uniform", "screened", "active"] = "screened"
    max_texts: int = Field(4000, ge=2, description="texts of both sides together, all splits")
    rounds: int = Field(3, ge=1)
    quality: float = Field(0.95, gt=0, le=1, description="stop before the budget once this stability is reached")


class Amplify(Section):
    """Answers in which the change is exaggerated: they find what is faint. Tests read ordinary ones."""

    strengths: list[float] = Field([1.0, 3.0], min_length=1, description="how many times the difference is added")
    share: float = Field(
        0.2, gt=0, lt=1, description="of sampling.max_texts: half for prompts of discover, half for those of validate"
    )
    by: Literal["logits", "coefficient"] = Field(
        "logits", description="coefficient: the size of the change is multiplied (steer, ablate, adapter, finetune)"
    )
    plausible: float = Field(
        0.02, gt=0, lt=1, description="tokens within this factor of either side's likeliest one are exaggerated"
    )
    beginnings: int = Field(
        64, ge=0, description="texts a side that go on from bare beginnings, to read back what was learned; 0: none"
    )

    @model_validator(mode="after")
    def _strengths_are_some(self) -> Amplify:
        if min(self.strengths) <= 0 or len(set(self.strengths)) < len(self.strengths):
            raise ValueError("strengths must be above 0, each once (0 is the changed side as it is)")
        return self


class Splits(Section):
    """Shares of the prompts, by content hash inside each family."""

    discover: float = Field(0.4, gt=0, lt=1, description="where anything is searched")
    screen: float = Field(0.15, ge=0, lt=1, description="where a paid judge's cheap one looks first; else as validate")
    validation: float = Field(0.45, gt=0, lt=1, alias="validate", description="where what was found is tested")
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Splits:
        if abs(self.discover + self.screen + self.validation - 1) > 1e-6:
            raise ValueError("discover + screen + validate must be 1")
        return self


class Decode(Section):
    prompts: list[str] = ["params/prompts/discovery.jsonl"]
    max_prompts: int | None = Field(None, ge=4)
    splits: Splits = Splits()
    samples: int = Field(2, ge=1, description="samples per prompt and side outside of what the strategy adds")
    max_new_tokens: int = Field(48, ge=1)
    max_thought_tokens: int = Field(
        0, ge=0, description="that a model which thinks first may think, beside max_new_tokens for the answer"
    )
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    screen: Screen = Screen()
    sampling: Sampling = Sampling()
    amplify: Amplify | None = None
    shard: int = Field(
        128,
        ge=1,
        description="texts stored together, all that a killed run loses: one batch on a CPU; on a GPU take several",
    )

    @property
    def amplified(self) -> int:
        """Amplified answers at each strength, of both splits together."""
        a = self.amplify
        return int(a.share * self.sampling.max_texts) // len(a.strengths) if a else 0

    @property
    def exaggerated(self) -> int:
        """Amplified answers of all strengths."""
        return self.amplified * len(self.amplify.strengths) if self.amplify else 0

    @property
    def ordinary(self) -> Sampling:
        """The budget that is left for ordinary answers."""
        return self.sampling.model_copy(update={"max_texts": self.sampling.max_texts - self.exaggerated})

    @property
    def most_tokens(self) -> int:
        """The longest response, thought and answer."""
        return self.max_new_tokens + self.max_thought_tokens


class UmapSpec(Section):
    neighbors: int = Field(15, ge=2)
    min_dist: float = Field(0.1, ge=0)
    fit_rows: int = Field(20_000, ge=100, description="rows that the map is fitted on; the rest is transformed")


class Cluster(Section):
    unit: Literal["segment", "answer"] = Field(
        "segment", description="what is grouped: sentences with their place in the answer, or whole answers"
    )
    segments: int = Field(
        10, ge=2, description="most segments of an answer that are read: opener, closer, others by a hash"
    )
    embedder: str = "bundled:all-minilm-l6-v2"
    instruction: str = Field("", description='put before each text, for embedders that want one ("query: " for E5)')
    method: Literal["minibatch_kmeans", "kmeans", "spherical_kmeans", "evoc", "hdbscan", "per_prompt", "family"] = (
        "minibatch_kmeans"
    )
    clusters: int | Literal["auto"] = 40
    space: Literal["answer", "within_prompt"] = Field(
        "answer", description="within_prompt: what sets an answer apart from the other answers to its prompt"
    )
    min_cluster_size: int = Field(20, ge=2)
    bootstraps: int = Field(20, ge=2, description="bootstrap clusterings behind the stability of each cluster")
    resamples: int = Field(2000, ge=100, description="prompt resamplings behind intervals and p-values")
    exemplars: int = Field(5, ge=1)
    keywords: int = Field(8, ge=1)
    hypotheses: int = Field(12, ge=1, description="most candidates handed to validate")
    trait_shift: bool = True
    trait_shift_texts: int = Field(400, ge=2)
    trait_shift_tokens: int = Field(
        40_000, ge=1, description="most tokens, prompts included, that are read again to see where inside groups moved"
    )
    map: UmapSpec = UmapSpec()

    @model_validator(mode="after")
    def _segments_are_grouped_by_k_means(self) -> Cluster:
        if self.unit == "segment" and not self.method.endswith("kmeans"):
            raise ValueError(f"method {self.method} groups whole answers: set unit: answer, or a k-means method")
        return self

    @property
    def most_groups(self) -> int:
        """Groups of the finest division of the segments of one place."""
        return 128 if self.clusters == "auto" else self.clusters


class Judges(Section):
    cheap: AnyJudge = Lexicon()
    expensive: AnyJudge | None = None


Unit = Literal["share", "number", "rate", "words", "sentences", "grade", "score"]


COUNTED = ("share", "number", "rate")
"""Measures of a hypothesis that count its words."""


class HandWritten(Section):
    """A hypothesis written by a person."""

    text: str
    direction: Literal["intervention", "base"] = "intervention"
    words: list[str] = Field([], description="words, phrases or /regular expressions/ that are counted")
    measure: str | None = Field(
        None,
        description="share (of answers that hold one of the words; the default where there are words), number (an "
        "answer), rate (per 100 words), judge (a judge's score), or the name of a behaviour of the panel",
    )

    @field_validator("words")
    @classmethod
    def _expressions_compile(cls, words: list[str]) -> list[str]:
        for word in words:
            if blank(word):
                raise ValueError("a word is empty")
            if len(word) > 2 and word[0] == word[-1] == "/":
                try:
                    regex.compile(word[1:-1])
                except regex.error as reason:
                    raise ValueError(f"{word} is no regular expression: {reason}") from None
        return words

    @model_validator(mode="after")
    def _can_be_read(self) -> HandWritten:
        if blank(self.text):
            raise ValueError("text is empty; it is what the claim says")
        if self.measure in COUNTED and not self.words:
            raise ValueError(f"measure {self.measure} counts words, and there are none; give words, or leave it out")
        return self


class Validate(Section):
    behaviours: list[str] = Field(
        [], description="files of your own behaviours (YAML), or of traits (their lexicons), counted beside the panel"
    )
    labeller: Literal["phrases", "keywords", "llm"] = Field("phrases", description="keywords: as phrases")
    labeller_judge: AnyJudge | None = None
    labeller_pairs: int = Field(
        24, ge=1, description="pairs of answers that an llm labeller reads; beside them an eighth as many of each group"
    )
    hypotheses: list[HandWritten] = []
    judges: Judges = Judges()
    cascade: Literal["screen_then_test", "borderline", "expensive_only"] = "screen_then_test"
    screen_level: float = Field(
        0.05, gt=0, le=1, description="the cheap judge's p-value up to which a hypothesis goes on"
    )
    alpha: float = Field(0.05, gt=0, lt=1)
    margin: float | dict[Unit, float] = Field(
        0.0,
        description="smallest difference of interest, in the unit of the measure (of shares where it is one number); "
        "of a judge's verdicts: H0 is that it wins on at most 1/2 + margin of the prompts",
    )
    budget_usd: float = Field(5.0, ge=0)
    baselines: bool = Field(
        True,
        validation_alias=AliasChoices("baselines", "rivals"),
        description="compare claims with a bag of words, an embedding classifier, length, and a judge without a label",
    )
    audit: float = Field(
        0.05, ge=0, le=1, description="share of the verdicts behind the screen that the expensive judge repeats"
    )
    labels: str | None = Field(
        None, description="table of answers that people labelled (text, claim, label), to hold judges against"
    )
    coherence: bool = Field(True, description="judge the coherence of held-out texts, apart from all claims")
    generative: int = Field(
        16, ge=0, description="prompts per confirmed claim that texts are written to, for both models to read; 0: none"
    )

    def margin_of(self, unit: str) -> float:
        """The margin of measures in ``unit``."""
        if isinstance(self.margin, dict):
            return self.margin.get(unit, 0.0)
        return self.margin if unit in ("share", "score") else 0.0

    @model_validator(mode="after")
    def _labeller_has_a_model(self) -> Validate:
        if self.labeller == "llm" and not isinstance(self.labeller_judge, Told):
            raise ValueError("labeller: llm needs labeller_judge, a language model as kind: local or endpoint")
        return self

    def every_judge(self) -> dict[str, JudgeSpec]:
        """The judges that are asked for, by their dotted key inside this section."""
        judges = {
            "judges.cheap": self.judges.cheap,
            "judges.expensive": self.judges.expensive,
            "labeller_judge": self.labeller_judge,
        }
        return {key: judge for key, judge in judges.items() if judge is not None}


class Series(Section):
    """What is read of all changes together."""

    alpha: float = Field(0.05, gt=0, lt=1, description="chance that any change is told where there is none")
    shown: int = Field(24, ge=1, description="behaviours that the matrix shows, those that move most first")


class Experiment(Section):
    experiment: str = Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_.-]*(:{NAME})?$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)  # what every library takes
    base: ModelSpec = ModelSpec()
    names: Names | None = Field(None, description="of the two models, on every page; needed for kind texts")
    intervention: AnyIntervention = NoIntervention()
    interventions: Members = Field([], description="a series: several changes of one base")
    engine: EngineSpec = EngineSpec()
    series: Series = Series()
    traits: Traits = Traits()
    capture: Capture = Capture()
    decode: Decode = Decode()
    cluster: Cluster = Cluster()
    validation: Validate = Field(Validate(), alias="validate")
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    def section(self, stage: str) -> Section:
        """The section of one stage (``validate`` is stored as ``validation``: pydantic owns the other name)."""
        return getattr(self, "validation" if stage == "validate" else stage)

    @property
    def called(self) -> tuple[str, str]:
        """What the two models are called: ``names``, else what is told from the models."""
        base = self.names.base if self.names else short_name(self.base.model)
        if member := member_name(self.experiment)[1]:
            return base, f"{base}, {member}"
        if self.names is not None:
            return base, self.names.changed
        return base, self.intervention.called(base)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it consists of. Answers of both sides that exist already are read inside only where a section
        asks for it: ``traits`` or ``capture``."""
        if self.intervention.answers_here or {"traits", "capture"} & self.model_fields_set:
            return STAGES
        return tuple(s for s in STAGES if s not in ("traits", "capture"))

    @property
    def members(self) -> list[Member]:
        """The changes of a series, in order of their numbers where all have one."""
        found = [member for entry in self.interventions for member in entry]
        return sorted(found, key=lambda m: m.number) if all(m.number is not None for m in found) else found

    def member(self, name: str) -> Experiment:
        """The experiment that one change of a series is. Raises ParameterError for a name that none has."""
        found = {m.name: m.intervention for m in self.members}
        if name not in found:
            raise ParameterError(
                f"{self.experiment} has no change {name!r}{_meant(name, list(found))}; there are {', '.join(found)}"
            )
        steered = sorted({i.about for i in found.values() if i.about is not None})
        about: dict[str, Any] = {"experiment": f"{self.experiment}:{name}", "interventions": []}
        about["intervention"] = found[name]
        traits = self.traits
        if traits.dose is not None and traits.dose.traits == "steered" and steered:  # one traits stage serves all
            about["traits"] = traits.model_copy(update={"dose": traits.dose.model_copy(update={"traits": steered})})
        if self.names is not None:
            about["names"] = Names(base=self.names.base, changed=name)
        return self.model_copy(update=about)

    @model_validator(mode="after")
    def _steered_trait_has_a_file(self) -> Experiment:
        known = self.traits.names([Path(f).stem for f in self.traits.files])
        for one in (self.intervention, *(m.intervention for m in self.members)):
            if one.about is not None and one.about not in known and all("*" not in f for f in self.traits.files):
                raise ValueError(f"intervention.trait {one.about!r} is in none of traits.files {self.traits.files}")
        return self

    @model_validator(mode="after")
    def _series(self) -> Experiment:
        if self.interventions and "intervention" in self.model_fields_set and self.intervention.changes:
            raise ValueError(
                "interventions stands beside intervention: an experiment has one change, or a series of them"
            )
        if twice := list(repeated(self.members)):
            raise ValueError(
                f"interventions holds {twice[0]!r} twice: write each as an entry with a name of its own, name: ..."
            )
        return self

    @model_validator(mode="after")
    def _what_is_amplified_answers_here(self) -> Experiment:
        if self.decode.amplify is None:
            return self
        if not self.intervention.likelihoods:
            raise ValueError(
                "decode.amplify needs the next tokens of both sides, and with intervention.kind "
                f"{self.intervention.kind} answers are made elsewhere; take it out"
            )
        if self.decode.amplify.by == "coefficient" and not self.intervention.sized:
            raise ValueError(
                f"decode.amplify.by coefficient needs a change that has a size, and intervention.kind "
                f"{self.intervention.kind} has none; set it to logits"
            )
        return self


class Bench(BaseModel):
    """The one section of a bench: a bench measures its own things, so its keys are its own."""

    model_config = ConfigDict(extra="allow", frozen=True)


class BenchExperiment(Section):
    """``params/bench/bench-<name>.yml``, run by ``notebooks/bench/bench-<name>.ipynb``."""

    experiment: str = Field(pattern=r"^bench-[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)  # what every library takes
    bench: Bench = Bench()
    called: ClassVar[None] = None  # a bench compares no two models

    def section(self, stage: str) -> Bench:
        return self.bench


SHARED = ("experiment", "seed", "base", "names", "intervention", "engine")


BENCH = "bench"  # the folder of benches, in params and in notebooks


def is_bench(name: str) -> bool:
    return name.startswith("bench-")


def shelf(name: str) -> str:
    """The folder below ``params`` and ``notebooks`` that holds the files of an experiment or a stage."""
    return BENCH if is_bench(name) else ""


def repository_of(path: Path) -> Path:
    """The repository that a parameter file lies in: the folder above ``params``."""
    folder = path.resolve().parent
    return (folder.parent if folder.name == BENCH else folder).parent


def stages_of(experiment: Experiment | BenchExperiment) -> tuple[str, ...]:
    """The stages that an experiment consists of; a bench is its own and only stage, a series has members and one that
    reads them."""
    if isinstance(experiment, BenchExperiment):
        return (experiment.experiment,)
    return (SERIES,) if experiment.interventions else experiment.stages


def resolved(experiment: Experiment | BenchExperiment, stage: str) -> dict[str, Any]:
    """What the notebook of ``stage`` is given, with every default written out, as JSON holds it."""
    dump = experiment.model_dump(mode="json", by_alias=True)
    if isinstance(experiment, BenchExperiment):
        return {name: dump[name] for name in ("experiment", "seed", "bench")}
    if stage == SERIES:
        return {name: dump[name] for name in ("experiment", "seed", "base", "names", "interventions", SERIES)}
    series, member = member_name(experiment.experiment)
    if member and stage == "traits":  # once for all members: it reads the base alone
        names = {**dump["names"], "changed": "the changes"} if dump["names"] else None
        dump |= {"experiment": series, "intervention": NoIntervention().model_dump(mode="json"), "names": names}
    return {name: dump[name] for name in (*SHARED, stage)}


# -------------------------------------------------------------------------------------------------------------- reading


def load_experiment(path: Path, root: Path | None = None) -> Experiment | BenchExperiment:
    """Read and check ``params/<experiment>.yml``, and that every file it names is there.

    ``root`` is the folder that the paths in it are relative to (default: the one above ``params``).
    Raises ``ParameterError`` with file, line, dotted key and, where one is near, what was probably meant.
    """
    path = Path(path)
    root = repository_of(path) if root is None else root
    name, member = member_name(path.stem)
    if member:
        series, where = _read_file(path.with_name(f"{name}{path.suffix}"), root)
        if isinstance(series, BenchExperiment) or not series.interventions:
            raise ParameterError(f"{path.stem}: {name} is no series; a series has interventions")
        return _checked(series.member(member), root, _in_series(where, series, member))
    experiment, where = _read_file(path, root)
    if isinstance(experiment, BenchExperiment) or experiment.interventions:  # members are checked one by one
        return experiment
    return _checked(experiment, root, where)


def load_members(path: Path, root: Path | None = None, ask: bool = False) -> tuple[dict[str, Path], dict[str, str]]:
    """(name to parameter file of each change of a series that can run, name to what is wrong with the others).

    A member's file is ``params/<series>:<name>.yml``, which every function that takes a parameter file understands.
    ``ask``: also whether what they name can be had, which may take a look at the Hub.
    """
    experiment = load_experiment(path, root)
    files = {m.name: path.with_name(f"{path.stem}:{m.name}{path.suffix}") for m in experiment.members}
    wrong: dict[str, str] = {}
    for name, file in files.items():
        try:
            one = load_experiment(file, root)
            if ask and (said := one.intervention.unavailable()):
                raise ParameterError(f"{file.stem}: {said}")
        except ParameterError as error:
            wrong[name] = str(error)
    return {name: file for name, file in files.items() if name not in wrong}, wrong


def _in_series(where: Where, series: Experiment, member: str) -> Where:
    """Where in the file of a series the keys of a member's intervention stand."""
    entry = next(i for i, e in enumerate(series.interventions) if member in {m.name for m in e})

    def inside(keys: tuple[str | int, ...]) -> str:
        return where(("interventions", entry, *keys[1:]) if keys[:1] == ("intervention",) else keys)

    return inside


def _checked(experiment: Experiment, root: Path, where: Where) -> Experiment:
    if "traits" not in experiment.stages and experiment.cluster.trait_shift:
        if "trait_shift" in experiment.cluster.model_fields_set:
            raise ParameterError(
                f"{where(('cluster', 'trait_shift'))}cluster.trait_shift: nobody reads traits in answers that exist "
                "already; leave it out, or write a section traits: {files: [...]}, which base.model then reads"
            )
        cluster = experiment.cluster.model_copy(update={"trait_shift": False})
        experiment = experiment.model_copy(update={"cluster": cluster})
    _check_files(experiment, root, where)
    return _checked_design(experiment, root, where)


def _read_file(path: Path, root: Path) -> tuple[Experiment | BenchExperiment, Where]:
    if not path.is_file():
        names = sorted(p.stem for p in path.parent.glob("*.yml"))
        listed = f"; there are {', '.join(names)}" if names else f"; {path.parent} holds no experiment"
        raise ParameterError(f"{path}: there is no such experiment{_meant(path.stem, names)}{listed}")
    experiment, where = read_section(path, BenchExperiment if is_bench(path.stem) else Experiment, root)
    if experiment.experiment != path.stem:
        raise ParameterError(
            f"{where(('experiment',))}experiment: {experiment.experiment!r} must be the name of the file, "
            f"{path.stem!r} (outputs go to outputs/{path.stem}/)"
        )
    return experiment, where


def read_section(path: Path, model: type[S], root: Path) -> tuple[S, Where]:
    """A YAML file as ``model`` holds it, and what says where in the file a key stands. Raises ``ParameterError``."""
    shown = _shown(path, root)
    try:
        tree, values = yaml_tree(path, shown)
    except DriftbookError as error:
        raise ParameterError(str(error)) from None

    def where(keys: tuple[str | int, ...]) -> str:
        return f"{shown}:{_line(tree, keys)}: "

    return _validated(model, values, where, root), where


def validate_cell(stage: str, namespace: dict[str, Any]) -> Experiment | BenchExperiment:
    """Check what the parameter cell of a notebook holds. ``namespace`` maps the names of the cell to their values.

    Sections that the stage does not read keep their defaults. Raises ``ParameterError`` naming the dotted key.
    """
    model = BenchExperiment if is_bench(stage) else Experiment
    return _validated(model, namespace, lambda keys: f"notebooks/{stage}.ipynb, parameters cell: ")


def _validated(model: type[Section], values: Any, where: Where, root: Path | None = None) -> Any:
    if not isinstance(values, dict):
        raise ParameterError(f"{where(())}an experiment is a mapping of sections, not {type(values).__name__}")
    try:
        return model.model_validate(values, context={"root": root or Path()})
    except ValidationError as error:
        messages: dict[tuple[str | int, ...], str] = {}
        for problem in error.errors():
            keys, said = _explain(model, values, problem)
            # A union fails once per member: "an integer", "'auto'".
            messages[keys] = (
                f"{messages[keys]}, or {said.split(': ', 1)[1]}" if keys in messages else where(keys) + said
            )
        raise ParameterError("\n".join(messages.values())) from None


def _explain(model: type[Section], values: Any, problem: Any) -> tuple[tuple[str | int, ...], str]:
    """The keys that a person wrote (pydantic's location without the names of union members) and one sentence."""
    kind, context = problem["type"], problem.get("ctx", {})
    keys: list[str | int] = []
    at = values
    for part in problem["loc"]:
        inside = part in at if isinstance(at, dict) else isinstance(at, list | tuple) and part in range(len(at))
        if inside:
            at = at[part]
        elif kind == "missing" and part == problem["loc"][-1]:
            keys.append(part)
            break
        else:
            continue  # the name of a union member
        keys.append(part)
    dotted = ".".join(map(str, keys))
    if kind == "extra_forbidden":
        siblings = _fields(model, keys[:-1], values)
        return tuple(keys), f"{dotted}: unknown key{_meant_key(str(keys[-1]), siblings, keys[:-1], model)}"
    if kind == "missing":
        return tuple(keys), f"{dotted}: is missing"
    if kind == "union_tag_not_found":
        tags = context["discriminator"].replace("'", "")
        return (*keys, "kind"), f"{dotted}.kind: is missing; one of {tags}"
    if kind == "union_tag_invalid":
        tags = [t.strip(" '") for t in context["expected_tags"].split(",")]
        tag = str(context["tag"])
        return (*keys, "kind"), f"{dotted}.kind: there is no {tag!r}{_meant(tag, tags)}; one of {', '.join(tags)}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "secret":  # not shown
        return tuple(keys), f"{dotted}: {message}"
    if kind == "value_error" and not keys:
        return tuple(message.split(" ", 1)[0].split(".")), message
    shown = f"{at!r}" if not isinstance(at, dict) else "a mapping"
    if kind == "literal_error":
        allowed = [t.strip(" '") for t in context["expected"].replace(" or ", ", ").split(",")]
        return tuple(keys), f"{dotted}: {shown} is not one of {', '.join(allowed)}{_meant(str(at), allowed)}"
    quoted = "; put it in quotes" if kind == "string_type" and isinstance(at, bool | int | float | date) else ""
    return tuple(keys), f"{dotted}: {message[0].lower()}{message[1:]} (it is {shown}{quoted})"


def _members(annotation: Any) -> list[Any]:
    """The classes inside Optional, Annotated, unions and lists; every kind of intervention or judge for their base."""
    if annotation in (Intervention, JudgeSpec):
        return list((KINDS if annotation is Intervention else JUDGES).values())
    if annotation is Member:
        return [Member, *KINDS.values()]
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    return [member for part in typing.get_args(annotation) for member in _members(part)]


def _fields(model: type[Section], keys: list[str | int], values: Any) -> list[str]:
    """The keys that the model knows at ``keys``."""
    models: list[Any] = [model]
    at = values
    for key in keys:
        at = at[key]
        if isinstance(key, int):
            continue
        found = [m.model_fields[n] for m in models for n in m.model_fields if key in (n, m.model_fields[n].alias)]
        models = [m for f in found for m in _members(f.annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
    kind = at.get("kind") if isinstance(at, dict) else None
    exact = [m for m in models if kind and "kind" in m.model_fields and m.model_fields["kind"].default == kind]
    return sorted({f.alias or n for m in exact or models for n, f in m.model_fields.items()})


def _every_key(model: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{info.alias or name}"
        keys.append(dotted)
        for member in _members(info.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                keys += _every_key(member, f"{dotted}.")
    return keys


def _meant(word: str, words: list[str]) -> str:
    begins = [w for w in words if len(word) >= 3 and w.startswith(word)]
    near = begins if len(begins) == 1 else difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f", did you mean {near[0]!r}?" if near else ""


def _meant_key(key: str, siblings: list[str], parents: list[str | int], model: type[Section]) -> str:
    """The nearest key at the same place, else the same key at another place, else the list of what there is."""
    if near := _meant(key, siblings):
        return near
    elsewhere = [k for k in _every_key(model) if k.rsplit(".", 1)[-1] == key]
    if elsewhere:
        return f", did you mean {' or '.join(sorted(set(elsewhere))[:3])}?"
    place = ".".join(map(str, parents)) or "an experiment"
    return f"; {place} knows {', '.join(siblings)}" if siblings else ""


# ------------------------------------------------------------------------------------------------------------- the file


def _shown(path: Path, root: Path) -> str:
    resolved_path = path.resolve()
    return str(resolved_path.relative_to(root.resolve()) if resolved_path.is_relative_to(root.resolve()) else path)


def _line(tree: yaml.Node | None, keys: tuple[str | int, ...]) -> int:
    """The line of a key, or of the nearest thing around it that is in the file."""
    node, line = tree, 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(key)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line


# -------------------------------------------------------------------------------------------------- files that it names


def expand(patterns: list[str], root: Path) -> list[Path]:
    """The files on this disk that ``patterns`` name, in order, each once.

    A pattern is a path or glob below ``root``, or absolute; what follows a ``#`` are options of its reader, which may
    name a file, too.
    """
    named = (path for pattern in patterns for path in (*_matches(pattern, root), *files_beside(pattern, root)))
    return list(dict.fromkeys(named))


def _matches(pattern: str, root: Path) -> list[Path]:
    if pattern.startswith("hf:"):
        return []
    path = root / Path(pattern.partition("#")[0]).expanduser()
    if not any(c in str(path.relative_to(root) if path.is_relative_to(root) else path) for c in "*?["):
        return [path] if path.is_file() else []
    base = root if path.is_relative_to(root) else Path(path.anchor)
    return sorted(p for p in base.glob(str(path.relative_to(base))) if p.is_file())


def _check_files(experiment: Experiment, root: Path, where: Where) -> None:
    """Refuse what would else be missed only in a kernel: files that are not there, and prompts that are none."""
    inside = "traits" in experiment.stages
    problems = _unmatched(experiment.traits.files, ("traits", "files"), root, where) if inside else []
    intervention = experiment.intervention
    for key in intervention.files:
        problems += _unmatched([getattr(intervention, key)], ("intervention", key), root, where)
    for key, said in intervention.missing(root).items():
        problems.append(f"{where(('intervention', key))}intervention.{key}: {said}")
    judges = {("validate", *key.split(".")): judge for key, judge in experiment.validation.every_judge().items()}
    for keys, judge in (judges | {("traits", "judge"): experiment.traits.judge}).items():
        for name in judge.files if judge else ():
            problems += _unmatched([said] if (said := getattr(judge, name)) else [], (*keys, name), root, where)
    if experiment.validation.labels:
        problems += _unmatched([experiment.validation.labels], ("validate", "labels"), root, where)
    problems += _unmatched(experiment.validation.behaviours, ("validate", "behaviours"), root, where)
    trait = intervention.about
    files = sorted(p.stem for p in expand(experiment.traits.files, root))
    problems += _unmatched(list(experiment.traits.imports.values()), ("traits", "imports"), root, where)
    for index, one in enumerate(experiment.traits.combine if files else []):
        for part in (*one.add, *one.subtract, *one.orthogonal_to):
            if part not in files:
                problems.append(
                    f"{where(('traits', 'combine', index))}traits.combine.{index}: there is no trait {part!r} in "
                    f"traits.files{_meant(part, files)}; there are {', '.join(files)}"
                )
        if one.name in files:
            problems.append(
                f"{where(('traits', 'combine', index))}traits.combine.{index}.name: {one.name!r} is the name of a "
                "trait already; take another one"
            )
    names = experiment.traits.names(files)
    if trait is not None and files and trait not in names:
        problems.append(
            f"{where(('intervention', 'trait'))}intervention.trait: there is no trait {trait!r} in traits.files"
            f"{_meant(trait, names)}; there are {', '.join(names)}"
        )
    if not intervention.brings_prompts:
        problems += _unreadable(experiment.capture.prompts, ("capture", "prompts"), root, where)
        problems += _unreadable(experiment.decode.prompts, ("decode", "prompts"), root, where)
    problems += _unreadable(experiment.capture.tier3.prompts, ("capture", "tier3", "prompts"), root, where)
    if problems:
        raise ParameterError("\n".join(problems))


def _checked_design(experiment: Experiment, root: Path, where: Where) -> Experiment:
    """The experiment, with as many samples as a table of texts holds where none are written.

    Raises ParameterError where more are written than the table holds, or the budget does not hold the first round.
    """
    prompts = None
    try:
        table = experiment.intervention.table(root)
    except DriftbookError as error:
        raise ParameterError(f"{where(('intervention', 'path'))}{error}") from None
    if table is not None:
        experiment = _named(experiment, table.wrote, _shown(table.path, root), where)
        prompts, poorest = table.prompts, table.poorest()
        fewest = table.samples(poorest.prompt_id)
        for stage in (s for s in ("capture", "decode") if s in experiment.stages):
            section = experiment.section(stage)
            if section.samples > fewest and "samples" in section.model_fields_set:
                raise ParameterError(
                    f"{where((stage, 'samples'))}{stage}.samples: {section.samples}, and {_shown(table.path, root)} "
                    f"holds {fewest} texts a side of {poorest.text[:60]!r} ({poorest.source}); set at most {fewest}, "
                    "or leave it out"
                )
            samples = min(section.samples, fewest)
            experiment = experiment.model_copy(update={stage: section.model_copy(update={"samples": samples})})
    elif not any(pattern.startswith("hf:") for pattern in experiment.decode.prompts):  # the hub is asked later
        prompts = read_prompts(experiment.decode.prompts, root)
    _check_budget(experiment.decode, prompts, where)
    return experiment


def _named(experiment: Experiment, wrote: Mapping[str, str], table: str, where: Where) -> Experiment:
    """The experiment with the names of the models that wrote a table of texts: the base only reads them."""
    if experiment.names is not None:
        return experiment
    if not wrote:
        raise ParameterError(
            f"{where(('intervention',))}names: the texts of {table} have to be told apart on every page, and the table "
            "has no column model with one name a side; write names: {base: <who wrote the first>, changed: <the other>}"
        )
    return experiment.model_copy(update={"names": Names(base=wrote["base"][:80], changed=wrote["intervention"][:80])})


def _check_budget(decode: Decode, prompts: Sequence[Prompt] | None, where: Where) -> None:
    """Whether the first round fits."""
    most, samples = decode.ordinary.max_texts, decode.samples
    if prompts is None:
        return
    count = min(len(prompts), decode.max_prompts or len(prompts))
    if (needed := 2 * samples * count) > most:
        raise ParameterError(
            f"{where(('decode', 'sampling', 'max_texts'))}decode.sampling.max_texts: {most}"
            f"{' without the share of decode.amplify' if decode.amplify else ''} is less than the {needed} "
            f"texts of the first round ({count} prompts x {samples} samples x 2 sides); raise it to "
            f"{math.ceil(needed / (1 - decode.amplify.share)) if decode.amplify else needed} at least, "
            "or lower decode.samples or decode.max_prompts"
        )


def _unreadable(patterns: list[str], keys: tuple[str, ...], root: Path, where: Where) -> list[str]:
    problems = [] if patterns or keys[1:2] == ("tier3",) else [f"{where(keys)}{'.'.join(keys)}: names no file"]
    for index, pattern in enumerate(patterns):
        if pattern.startswith("hf:"):
            continue  # the hub is asked when the stage runs
        try:
            read_prompts([pattern], root)
        except PromptError as error:
            problems.append(f"{where((*keys, index))}{'.'.join(keys)}: {error}")
    return problems


def _unmatched(patterns: list[str], keys: tuple[str, ...], root: Path, where: Where) -> list[str]:
    dotted, problems = ".".join(keys), []
    for index, pattern in enumerate(patterns):
        place = f"{where((*keys, index))}{dotted}: "
        matches = _matches(pattern, root)
        if not matches:
            folder = (root / pattern).parent
            beside = sorted(p.name for p in folder.glob("*") if p.is_file()) if folder.is_dir() else []
            problems.append(f"{place}{pattern}: there is no such file{_meant(Path(pattern).name, beside)}")
        problems += [f"{place}{_shown(p, root)}: the file is empty" for p in matches if p.stat().st_size == 0]
    return problems
