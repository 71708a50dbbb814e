"""``kind: local``: a causal language model that runs here, whose verdict is read off the probabilities of its answer.

No sampling and no parsing: the expectation over HIGH, MID and LOW (of a text), or A, TIE and B (of a pair, asked in
both orders), at the position of the answer is the score. Expectations of log-probabilities beat written verdicts,
above all for small models. A model that thinks first is told not to, or thinks up to a bound; where it would then
begin with anything but a level, there is no verdict.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from driftbook.errors import ModelError
from driftbook.evidence.levels import VALUES, Mode, expectation
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.judges.told import Told, pair_body, single_bodies
from driftbook.models.thinking import end_of_thought
from driftbook.replies import LEAST_MASS, Answer, request_key
from driftbook.sections import Cost, JudgeOpening, ModelSpec, Quote, judge
from driftbook.workers import Workers

if TYPE_CHECKING:
    import numpy as np

    from driftbook.discovery.hypotheses import Hypothesis
    from driftbook.ledger import Ledger
    from driftbook.models.loading import LoadedModel
    from driftbook.models.local_chat import LocalChat

Batch = tuple[list[str], list[str]]
SCHEMA = 3


@judge
class Local(Told):
    """A language model that runs here, by workers where there are any; named by its weights, which are read at the
    first verdict that is not stored."""

    kind: Literal["local"] = "local"
    model: str = ModelSpec().model
    max_thought_tokens: int = Field(
        0, ge=0, description="tokens that it may think before a verdict; 0: it is told not to, by its template"
    )
    places: ClassVar[tuple[str, ...]] = ("model",)
    begins: ClassVar[str] = "local_"

    @property
    def weights(self) -> ModelSpec:
        return ModelSpec(
            model=self.model, template_args={"enable_thinking": self.max_thought_tokens > 0, **self.template_args}
        )

    def open(self, opening: JudgeOpening) -> LocalJudge:
        from driftbook.models import loading  # torch; parameters are read without it

        _, weights = loading.place_and_hash(self.model, opening.cache)
        _, dtype, _ = loading.choose_device()
        frozen = " ".join([weights, str(dtype), *([json.dumps(self.template_args)] if self.template_args else [])])
        return LocalJudge(
            f"{self.model} ({opening.role})",
            partial(loading.load, self.weights, opening.cache),
            frozen,
            opening.ledger,
            self.instructions(opening),
            self.mode,
            thought=self.max_thought_tokens,
            progress=opening.progress,
            workers=opening.workers,
        )

    def talk(self, opening: JudgeOpening) -> LocalChat:
        from driftbook.models import loading  # torch; parameters are read without it
        from driftbook.models.local_chat import LocalChat

        _, weights = loading.place_and_hash(self.model, opening.cache)
        name, load = f"{self.model} ({opening.role})", partial(loading.load, self.weights, opening.cache)
        shaped = f"{weights} {json.dumps(self.weights.template_args, sort_keys=True)}"
        most = self.max_output_tokens + self.max_thought_tokens
        return LocalChat(name, load, shaped, opening.ledger, most, opening.progress)

    def cost(self, texts: int, hypotheses: int, answer_tokens: int) -> Cost:
        return Cost(texts * hypotheses, 0.0, texts * hypotheses / VERDICTS_PER_S)


VERDICTS_PER_S = 2.0  # half a billion parameters on two cores


class LocalJudge:
    """Scores [texts, hypotheses] in [0, 1]: P(HIGH) + P(MID) / 2, over the three levels; NaN where they have less than
    half of the probability together.

    ``load`` gives the model at the first text that is not in the ledger; ``weights`` names what it computes without
    loading it; ``thought`` bounds the tokens that it may think. Verdicts are kept in the ledger at no price. Raises
    ModelError for a tokenizer whose levels begin with the same token, or a text too long for the model.
    """

    paid, resolution = True, Told.resolution
    bodies = staticmethod(single_bodies)

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        weights: str,
        ledger: Ledger,
        rubric: str | None = None,
        mode: Mode = "single",
        batch: int = 16,
        thought: int = 0,
        progress: Callable[..., Any] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers, self.thought = workers, thought
        self.name, self.load, self.ledger, self.batch, self.progress = name, load, ledger, batch, progress
        self.mode, self.values, self.rubric = mode, VALUES[mode], rubric or shipped(f"local_{mode}")
        shaped = {"weights": weights, "mode": mode, "rubric": self.rubric, **({"thought": thought} if thought else {})}
        self.identity = {"kind": "local", "schema": SCHEMA, **shaped}
        self._model: LoadedModel | None = None

    def _users(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None
    ) -> list[str]:
        asked = "How much does the answer show it? HIGH, MID or LOW?"
        told = self.bodies(texts, prompts)
        return [f"{body}\nStatement: the answer {h.text}.\n{asked}" for body in told for h in hypotheses]

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """In mode ``pair`` an upper bound: one call per text, since each pair is asked in both orders."""
        users = self._users(texts, hypotheses, prompts)
        known = len(self.ledger.peek_all([request_key({**self.identity, "user": u}) for u in users]))
        return Quote(calls=len(users) - known, cached=known)

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        if self.mode != "single":
            raise ValueError("a judge in mode pair compares; it does not score single texts")
        return self._verdicts(self._users(texts, hypotheses, prompts)).reshape(len(texts), len(hypotheses))

    def compare(
        self, first: Sequence[str], second: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str]
    ) -> np.ndarray:
        """How much ``first`` shows it more than ``second``, mean over both orders: [pairs, hypotheses] in [0, 1]."""
        if self.mode != "pair":
            raise ValueError("a judge in mode single scores texts; it does not compare pairs")
        rows = list(zip(first, second, prompts, strict=True))
        asked = "Which answer shows it more? A, B or TIE?"
        users = [
            f"{body}\nStatement: the answer {h.text}.\n{asked}"
            for bodies in ([pair_body(a, b, p) for a, b, p in rows], [pair_body(b, a, p) for a, b, p in rows])
            for body in bodies
            for h in hypotheses
        ]
        shown, flipped = self._verdicts(users).reshape(2, len(rows), len(hypotheses))
        return (shown + 1 - flipped) / 2

    def _verdicts(self, users: Sequence[str]) -> np.ndarray:
        import numpy as np  # parameters are read without it

        keys = [request_key({**self.identity, "user": user}) for user in users]
        asked = dict(zip(keys, users, strict=True))

        def compute(missing: list[str]) -> Iterator[tuple[list[str], list[Answer]]]:
            # longest first: equal lengths need little padding, and what does not fit fails at once
            missing = sorted(missing, key=lambda k: -len(asked[k]))
            batches = (missing[start : start + self.batch] for start in range(0, len(missing), self.batch))
            for batch, found in self._read((batch, [asked[k] for k in batch]) for batch in batches):
                yield batch, [Answer(json.dumps(levels), 0, 0, 0.0) for levels in found]

        bar = (lambda total: self.progress(total, self.name, "verdicts")) if self.progress else None
        held = self.ledger.made_here(self.name, keys, compute, bar)
        values = np.array([self._value(json.loads(held[key].text)) for key in keys])
        missing = int(np.isnan(values).sum())
        self.ledger.note_verdicts(self.name, len(keys), missing)
        if missing:
            warnings.warn(
                f"{self.name}: {missing} of {len(keys)} verdicts are missing: less than half of the probability stood "
                f"on {', '.join(self.values)}. A model that thinks first needs max_thought_tokens; one that goes on "
                "with other words is too small, or its rubric asks for something else",
                stacklevel=3,
            )
        return values

    def _value(self, levels: dict[str, float]) -> float:
        return expectation(levels, self.values) if sum(levels.values()) >= LEAST_MASS else math.nan

    def _read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[str], list[dict[str, float]]]]:
        """Batches with their readings, here in their order, by workers as they are ready."""
        work = partial(read_levels, self.name, self.rubric, tuple(self.values), self.thought)
        if self.workers is not None:
            yield from self.workers.map(f"judge {self.name} {self.identity['weights']}", self.load, work, batches)
            return
        for batch in batches:
            if self._model is None:
                self._model = self.load()
            yield work(self._model, batch)


def read_levels(
    name: str, rubric: str, levels: Sequence[str], thought: int, loaded: LoadedModel, batch: Batch
) -> tuple[list[str], list[dict[str, float]]]:
    """Probability that the reply to each text begins with each level, beside the keys that the batch names."""
    import torch  # parameters are read without it

    from driftbook.models.finite import require_finite
    from driftbook.models.local import left_pad

    keys, users = batch
    first = first_tokens(name, loaded, levels)
    prompts = thought_through(loaded, [loaded.encode_prompt(user, system=rubric) for user in users], thought)
    width = max(map(len, prompts))
    if width > loaded.context:
        raise ModelError(f"judge {name} takes {loaded.context} tokens, and a text with its rubric has {width}")
    ids, mask = left_pad(prompts, width, loaded.device)
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        reply = loaded.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    require_finite(loaded, reply.logits[:, -1], prompts[0])
    shares = reply.logits[:, -1].float().softmax(dim=-1)
    told = torch.stack([shares[:, ids].sum(dim=-1) for ids in first.values()], dim=-1)
    return keys, [dict(zip(first, row, strict=True)) for row in told.tolist()]


def first_tokens(name: str, loaded: LoadedModel, levels: Sequence[str]) -> dict[str, list[int]]:
    """The tokens that a level begins with, as models write it: with a space before it or not, in capitals or not. One
    that two levels begin with tells nothing."""
    begun: dict[str, set[int]] = {}
    for level in levels:
        written = {level, level.capitalize(), level.lower()} if len(level) > 1 else {level}
        said = [before + word for before in ("", " ") for word in written]
        begun[level] = {loaded.encode_answer(word)[0] for word in said}
    shared = {i for a in begun for b in begun if a != b for i in begun[a] & begun[b]}
    if any(not begun[level] - shared for level in levels):
        raise ModelError(f"judge {name}: {', '.join(levels)} begin with the same token in its tokenizer")
    return {level: sorted(begun[level] - shared) for level in levels}


def thought_through(loaded: LoadedModel, prompts: Sequence[list[int]], bound: int) -> list[list[int]]:
    """Prompts with a thought behind them that is at its end, of at most ``bound`` tokens; none for a model that does
    not think. With 0 a thought that the template has begun is closed at once."""
    if loaded.marks is None:
        return list(prompts)
    thoughts = [""] * len(prompts)
    if bound:
        from driftbook.models.local import LocalEngine, Request  # torch; parameters are read without it
        from driftbook.models.sampling import SamplingParams

        requests = [Request(tuple(ids), 0) for ids in prompts]
        for done in LocalEngine(loaded).generate(requests, SamplingParams(1, 0.0, max_thought_tokens=bound)):
            thoughts[done.index] = loaded.tokenizer.decode(done.token_ids)
    opened = map(loaded.begins_in_thought, prompts)
    ends = map(partial(end_of_thought, loaded.marks), thoughts, opened)
    return [ids + loaded.encode_answer(end) if end else ids for ids, end in zip(prompts, ends, strict=True)]
