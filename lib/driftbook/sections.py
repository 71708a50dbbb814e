"""The ground floor of parameters: what a section is, and the sections whose kinds are registered.

A kind of intervention is one class in one file of :mod:`driftbook.interventions`: its parameters, how it opens, what it
can tell and how it is described. A parameter file may name whatever is registered, so a new kind is that file and its
registration. Judges (:mod:`driftbook.judges`) and engines (:mod:`driftbook.engines`) likewise.
"""

from __future__ import annotations

import json
import re
import typing
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from driftbook.files import blank, seen

if TYPE_CHECKING:
    import numpy as np

    from driftbook.discovery.hypotheses import Hypothesis
    from driftbook.evidence.judges import Judge
    from driftbook.ledger import Ledger
    from driftbook.models.loading import LoadedModel
    from driftbook.models.sides import Pair
    from driftbook.models.vectors import VectorSet
    from driftbook.text_tables import TextTable
    from driftbook.workers import Workers

T = TypeVar("T")

ResidualSite = Literal["resid_pre", "resid_mid", "resid_post"]
RESIDUAL_SITES: tuple[ResidualSite, ...] = typing.get_args(ResidualSite)


class Registry(dict[str, T], Generic[T]):
    """What parameter files can name, in the order of registration."""

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator. Raises ValueError for a name that is taken by another."""

        def add(one: T) -> T:
            if self.setdefault(name, one) is not one:
                raise ValueError(f"{name!r} is registered already, as {self[name]}")
            return one

        return add

    def known(self, name: str) -> str:
        """The name, where it is registered; as a validator of pydantic, which explains it like a literal."""
        if name not in self:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, self))})
        return name


def _kinds(annotation: Any) -> set[Any]:
    """An annotation and all that stands inside it."""
    return {annotation}.union(*map(_kinds, typing.get_args(annotation)))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``yes`` and ``on`` are true to YAML, and 1 to Python."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if kinds & {int, float} and bool not in kinds and any(isinstance(one, bool) for one in _each(value)):
            raise PydanticCustomError("switch", "input should be a number; yes, no, on and off are none to YAML")
        return value


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as reason:
        raise ValueError(f"is sent as JSON, which cannot hold it: {reason} (dates and names need quotes)") from None
    return value


Json = Annotated[dict[str, Any], AfterValidator(_json)]


class ThoughtMarks(Section):
    """What a model writes before and after its thought."""

    open: str = Field(min_length=1)
    close: str = Field(min_length=1)


ONE_VERSION = (
    "a revision is a version on the hub, and this model lies on this disk, in one version; name the folder of that "
    "version, and leave revision: out"
)


class ModelSpec(Section):
    """Where weights come from: ``bundled:<name>``, a Hugging Face id, a folder, or a GGUF file."""

    model: str = "bundled:smollm2-135m-instruct"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    chat_template: bool = Field(True, description="False: the prompt as it stands, as base models want it")
    template: str | None = Field(None, description="which one, where the tokenizer has several chat templates")
    template_args: Json = Field(
        {}, description="arguments of the chat template, such as enable_thinking: false"
    )
    thought: ThoughtMarks | None = Field(
        None, description="marks around what is thought before the answer; null: known ones are looked for"
    )


def short_name(model: str) -> str:
    """What a model is called on a page: its name without ``bundled:``, owner, folders and file type."""
    name = Path(model.removeprefix("bundled:").rstrip("/\\")).name
    return name.removesuffix(".gguf") or model


class Names(Section):
    """What the two models are called on every page."""

    base: str = Field(min_length=1, max_length=80)
    changed: str = Field(min_length=1, max_length=80)

    @field_validator("base", "changed")
    @classmethod
    def _shows(cls, value: str) -> str:
        if blank(value):
            raise ValueError("input should have a character that shows")
        return " ".join(value.split())

    @model_validator(mode="after")
    def _differ(self) -> Names:
        if seen(self.base) == seen(self.changed):
            raise ValueError(f"names.base and names.changed are both {self.base!r}: a reader could not tell them apart")
        return self


# What providers give out begins so; the name of a variable does not, nor is it a long run of letters and digits.
_KEY = re.compile(
    r"(sk|pk|rk|gsk|hf|xai|r8|pplx|nvapi|gh[opsu]|github_pat|glpat|xox[abp])[-_](?=.*\d)[-_.\w]{8,}"
    r"|(AIza|AKIA|ASIA|eyJ)[-_.\w]{12,}|Bearer .+|(?=\w*\d)(?=\w*[A-Za-z])[A-Za-z0-9]{24,}[-_.=A-Za-z0-9]*"
)
_NAMES_A_SECRET = re.compile(r"(^|[-_])(key|token|secret|password|sig|signature|authorization)$", re.IGNORECASE)


def looks_like_a_key(text: str) -> bool:
    """Whether a text has the shape of a secret rather than of a name."""
    return _KEY.fullmatch(text.strip()) is not None


class Server(Section):
    """How a server of the OpenAI chat API is reached. The key itself stands nowhere: ``api_key_env`` names the
    environment variable that holds it, and what has the shape of a key is refused without being shown."""

    api_key_env: str | None = None
    concurrency: int = Field(8, ge=1)
    timeout_s: float = Field(60.0, gt=0)
    extra_body: Json = Field({}, description="fields that go with every request as they stand")
    template_args: Json = Field(
        {}, description="arguments of the server's chat template, such as enable_thinking: false"
    )
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or looks_like_a_key(value)):
            raise PydanticCustomError(
                "secret",
                "is the NAME of an environment variable, and this is none (a key itself? put it into a variable, and "
                "treat it as read by others if this file was shared)",
            )
        return value

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _url_without_a_secret(cls, value: str | None) -> str | None:
        if value is None:
            return value
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
            raise PydanticCustomError("secret", "is no http:// or https:// address")
        if value.rstrip("/").endswith("/chat/completions"):
            raise PydanticCustomError("secret", "ends with /chat/completions, which is added; leave it out")
        if _in_url(value):
            raise PydanticCustomError(
                "secret", "holds a user, password or key; name the variable that holds the key as api_key_env"
            )
        return value

    @field_validator("extra_body", "template_args")
    @classmethod
    def _fields_without_a_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        return refuse_secrets(value)


def refuse_secrets(value: dict[str, Any]) -> dict[str, Any]:
    """The same mapping. Raises PydanticCustomError for what looks like a key in it, without showing it."""
    for name, said in _leaves(value):
        if isinstance(said, str) and (_NAMES_A_SECRET.search(name) or looks_like_a_key(said) or _in_url(said)):
            raise PydanticCustomError(
                "secret", "holds what looks like a key; name the variable that holds it as api_key_env"
            )
    return value


def _in_url(text: str) -> bool:
    """Whether an address holds a user, a password or a key."""
    parts = urlsplit(text) if "://" in text else urlsplit("")
    asked = parse_qsl(parts.query, True)
    return "@" in parts.netloc or any(_NAMES_A_SECRET.search(n) or looks_like_a_key(said) for n, said in asked)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _leaves(inside, str(key))
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside, name)
    else:
        yield name, value


# -------------------------------------------------------------------------------------------------------- interventions


class Kind(Section):
    """A section whose ``kind`` is registered: a class in a file of its own, with parameters and with what they do."""

    kind: str

    files: ClassVar[tuple[str, ...]] = ()
    """Parameters that name a file, which must be there."""
    places: ClassVar[tuple[str, ...]] = ()
    """Parameters that name a file or a folder, if there is one; what lies there shapes the texts."""

    def inputs(self) -> list[str]:
        """The files and folders of this disk that it may name."""
        return [said for name in (*self.files, *self.places) if (said := getattr(self, name))]


def registered(kinds: Registry[type[T]]) -> Callable[[type[T]], type[T]]:
    """A decorator: register a kind under the default of its field ``kind``."""
    return lambda cls: kinds.register(cls.model_fields["kind"].default)(cls)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Opening:
    """What an intervention may need to open.

    ``base`` says where the base came from, for a kind that loads it again; ``vectors`` are those of the traits stage,
    for one with ``needs_vectors``; ``progress(total, label, unit)`` gives a handle with ``update(n)``.
    """

    base: ModelSpec
    cache: Path
    root: Path
    vectors: VectorSet | None = None
    progress: Callable[[int, str, str], Any] | None = None

    def path(self, name: str) -> Path:
        """A file or folder that a parameter names, relative to the repository."""
        return self.root / Path(name).expanduser()


class Intervention(Kind):
    """What was done to the base model: parameters, and everything that is particular to a kind.

    A kind has a field ``kind`` with a literal and that default, and is registered by ``@intervention``. All but
    ``open`` and ``by`` have defaults, which are those of a kind that changes how the base computes.
    """

    needs_vectors: ClassVar[bool] = False
    """Whether it is made of a trait vector: the traits stage runs before decode then."""
    answers_here: ClassVar[tuple[str, ...]] = ("base", "intervention")
    """Sides whose own weights answer: of the others no likelihood and no activation is to be had."""
    models: ClassVar[int] = 1
    """Sets of weights in memory; 1 where the sides share the base's."""
    brings_prompts: ClassVar[bool] = False
    """Whether the answers are there already, with their prompts (``table``)."""
    changes: ClassVar[bool] = True
    """False where both sides are the same model."""
    changes_the_prompt: ClassVar[bool] = False
    """Whether the sides are meant to be asked differently."""
    sized: ClassVar[bool] = False
    """Whether the change has a size that can be multiplied: a coefficient, the scale of a LoRA."""

    @abstractmethod
    def open(self, base: LoadedModel, opening: Opening) -> Pair:
        """Put this beside the loaded base.

        A side's key must follow from everything that shapes its texts: they are kept under it.

        Raises:
            ModelError: weights, adapter or vector do not fit; DriftbookError: what it names cannot be used.
        """

    @abstractmethod
    def by(self) -> str:
        """How the base changed, in words that follow "How did the base change"."""

    def title(self, base: str) -> str:
        """The question that an experiment asks. ``base`` is the name of the base model."""
        return f"How did {base} change {self.by()}?"

    def called(self, base: str) -> str:
        """What the changed model is called where no name was given. ``base`` is the name of the base model."""
        return f"{base}, {self.by().removeprefix('when ')}"[:80]

    @property
    def about(self) -> str | None:
        """The trait that it is meant to move, where it names one."""
        return None

    @property
    def likelihoods(self) -> bool:
        """Whether both sides can tell how likely they find a text."""
        return self.answers_here == ("base", "intervention")

    def missing(self, root: Path) -> Mapping[str, str]:
        """What is wrong with the files that it names, beyond ``files``: parameter to a sentence."""
        return {}

    def unavailable(self) -> str:
        """Why what it names cannot be had, as far as that is told without loading it; a series asks before it runs."""
        return ""

    def table(self, root: Path) -> TextTable | None:
        """The answers that it brings along, with their prompts. Raises DriftbookError for what is no such table."""
        return None

    def plan_note(self, elsewhere: int) -> str:
        """What a plan should say of it; ``elsewhere``: the answers that are not made here."""
        return ""

    def placed(self, **where: str) -> Intervention:
        """The same on another device and dtype than the parameters say, where it has its own."""
        return self


KINDS: Registry[type[Intervention]] = Registry()


intervention = registered(KINDS)


def of_kind(value: Any, kinds: Mapping[str, type[Kind]] = KINDS, base: type[Kind] = Intervention) -> Any:
    """The section that a mapping with ``kind`` describes. Raises as a discriminated union of pydantic does."""
    if isinstance(value, base):
        return value
    if not isinstance(value, dict):
        raise PydanticKnownError("model_attributes_type")
    known = {"discriminator": "'kind'", "expected_tags": ", ".join(map(repr, kinds))}
    if "kind" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": known["expected_tags"]})
    if not isinstance(value["kind"], str) or value["kind"] not in kinds:
        raise PydanticKnownError("union_tag_invalid", known | {"tag": str(value["kind"])})
    return kinds[value["kind"]].model_validate(value)


#: The field of an experiment: any registered kind, also one that is registered later.
AnyIntervention = Annotated[SerializeAsAny[Intervention], PlainValidator(of_kind)]


# --------------------------------------------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class JudgeOpening:
    """What a judge may need to open.

    ``role`` stands behind its name in the ledger, ``rubric`` in the place of what it would be told. ``embed`` gives for
    a model a function from texts to unit vectors; ``exemplars`` for a hypothesis texts that show it, and the other
    side's answers to the same prompts.
    """

    role: str
    ledger: Ledger
    cache: Path
    root: Path
    progress: Callable[[int, str, str], Any] | None = None
    workers: Workers | None = None
    rubric: str | None = None
    embed: Callable[[str], Callable[[Sequence[str]], np.ndarray]] | None = None
    exemplars: Callable[[Hypothesis], tuple[list[str], list[str]]] | None = None


@dataclass(frozen=True)
class Quote:
    """The most that a piece of work may cost: calls to a model and their tokens; ``cached`` calls cost nothing."""

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Quote) -> Quote:
        return Quote(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Cost:
    """The most that verdicts may take, for the plan: calls to a model (0 where nothing is asked), USD, seconds."""

    calls: int
    usd: float
    seconds: float


class JudgeSpec(Kind):
    """A judge: its parameters, and everything that is particular to a kind.

    A kind has a field ``kind`` with a literal and that default, and is registered by ``@judge``. It has ``score`` and
    is the judge itself, or ``open`` gives what has it (``evidence.judges.Judge``). All else has defaults, which are
    those of a judge that runs here, costs nothing and is told nothing.
    """

    version: ClassVar[int] = 1
    """Raised when the same parameters give other verdicts."""
    paid: ClassVar[bool] = False
    """Whether verdicts cost money or minutes, so that a test stops as soon as it can."""
    told: ClassVar[bool] = False
    """Whether it is a language model: told in words what to look for, in ``mode`` single or pair (``judges.told``)."""
    reads_words: ClassVar[bool] = False
    """Whether it sees nothing of a hypothesis but its words."""
    resolution: ClassVar[float] = 0.0
    """The difference of two scores from which on one answer wins altogether; below, in proportion. 0: any wins."""

    @property
    def name(self) -> str:
        return self.kind

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that shapes a verdict besides the text and the hypothesis: it is part of what is frozen, and of
        the key of a stored verdict."""
        return {**self.model_dump(mode="json"), "version": self.version}

    def open(self, opening: JudgeOpening) -> Judge:
        """What gives the verdicts. Raises DriftbookError for what cannot be used."""
        return self

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        """[texts, hypotheses] in [0, 1], higher where the text shows more of it, NaN where there is no verdict."""
        raise NotImplementedError(f"judge {self.kind}: neither score nor open is there")

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """What ``score`` would cost at most. Sends nothing."""
        return Quote()

    def cost(self, texts: int, hypotheses: int, answer_tokens: int) -> Cost:
        """The same from counts, before there are texts; ``answer_tokens`` of each at most."""
        return Cost(0, 0.0, texts * hypotheses / CHECKS_PER_S)


CHECKS_PER_S = 20_000.0  # texts in which the words of one hypothesis are counted
JUDGES: Registry[type[JudgeSpec]] = Registry()
judge = registered(JUDGES)


def judge_of(value: Any) -> JudgeSpec:
    """The judge that a mapping describes, by its ``kind`` or the first one there is.

    Parameters of other kinds have no effect, so that a judge is exchanged by one word; a key among them is refused
    like everywhere.
    """
    if not isinstance(value, dict):
        return of_kind(value, JUDGES, JudgeSpec)
    value = {"kind": next(iter(JUDGES)), **value}
    known = isinstance(value["kind"], str) and value["kind"] in JUDGES
    own = JUDGES[value["kind"]].model_fields if known else value
    elsewhere = {name for kind in JUDGES.values() for name in kind.model_fields} - set(own)
    refuse_secrets({name: said for name, said in value.items() if name in elsewhere})
    return of_kind({name: said for name, said in value.items() if name not in elsewhere}, JUDGES, JudgeSpec)


#: A field for a judge: any registered kind, also one that is registered later.
AnyJudge = Annotated[SerializeAsAny[JudgeSpec], PlainValidator(judge_of)]


# -------------------------------------------------------------------------------------------------------------- engines

DECODERS: Registry[Callable[..., Any]] = Registry()
"""Name to a function of a side and the cache that gives what answers for it (``models.answers.Engine``)."""
WORKERS: Registry[type] = Registry()
"""Name to a class of :class:`driftbook.workers.Workers`."""


class EngineSpec(Section):
    """What runs the models. ``decoder`` is the generation engine inside a worker.

    ``local``: this process. ``processes``: shards of decoding, replay, embedding and judging go to ``workers``
    processes of this machine, which on a CPU are faster than its threads; on a GPU it is ``local``. ``ray``: to
    ``workers`` processes of the cluster at ``address`` (``host:port``, or ``auto`` for the one that this machine
    belongs to), else started on this machine.
    """

    kind: Annotated[str, AfterValidator(WORKERS.known)] = "local"
    decoder: Annotated[str, AfterValidator(DECODERS.known)] = "local"
    address: str | None = None
    workers: int = Field(2, ge=1)
    batch_size: int | Literal["auto"] = "auto"
