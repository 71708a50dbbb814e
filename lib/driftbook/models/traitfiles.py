"""Trait files: what a trait is, scenarios that show it and its opposite, and phrases that give it away.

Two formats are read: ours (``params/traits/<name>.json``) and that of persona_vectors (``instruction``, ``questions``,
``eval_prompt``), which has no written answers, so that the model has to give them under its instructions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from driftbook.behaviours.measure import Words
from driftbook.errors import DriftbookError, PromptError
from driftbook.files import parsed_json, read_text
from driftbook.parameters import Combination


@dataclass(frozen=True)
class Scenario:
    """One prompt with an answer that shows the trait and one that shows its opposite (empty: not written)."""

    scenario_id: str
    prompt: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Trait:
    """What a trait file holds. ``instructions`` are pairs of system prompts that ask for the trait, and for its
    opposite."""

    name: str
    definition: str
    high: str
    low: str
    scenarios: tuple[Scenario, ...]
    instructions: tuple[tuple[str, str], ...]
    eval_prompts: tuple[str, ...]
    positive_words: tuple[str, ...]
    negative_words: tuple[str, ...]


Score = Callable[[Trait, Sequence[str], Sequence[str]], np.ndarray]
"""How much each text shows the trait, in [0, 1], NaN where there is no verdict: ``score(trait, texts, prompts)``."""


def read_traits(
    patterns: Sequence[str], root: Path, scenarios: str = "natural", max_scenarios: int | None = None
) -> list[Trait]:
    """Read trait files.

    Args:
        patterns: files or globs, relative to ``root``.
        scenarios: what they are to be used for: ``natural`` needs written answers, ``instructed`` needs instructions,
            ``all`` needs both.

    Raises:
        PromptError: a file is missing, is no JSON, or lacks a key; the message names file and key.
    """
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(root.glob(pattern)) if any(c in pattern for c in "*?[") else [root / pattern]
        if not found or not found[0].is_file():
            raise PromptError(f"trait file {pattern!r}: no such file under {root}")
        paths += found
    return [_read_trait(p, scenarios, max_scenarios) for p in dict.fromkeys(paths)]


def _read_trait(path: Path, kind: str, limit: int | None) -> Trait:
    try:
        raw = parsed_json(read_text(path), str(path))
    except DriftbookError as error:
        raise PromptError(str(error)) from None
    persona = isinstance(raw, dict) and "questions" in raw
    try:
        if persona:
            trait = _of_persona_vectors(path.stem, _PersonaFile.model_validate(raw), limit)
        else:
            trait = _of_ours(_File.model_validate(raw), limit)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        problem = f"key {key!r} is missing" if first["type"] == "missing" else f"{key or 'the file'}: {first['msg']}"
        needs = "instruction (a list of pos, neg) and questions" if persona else (
            "trait, definition, high, low, scenarios (id, prompt, positive, negative), eval_prompts and lexicon"
        )  # fmt: skip
        raise PromptError(f"{path}: {problem}; a trait file needs {needs}") from None
    if kind != "natural" and not trait.instructions:
        raise PromptError(f"{path}: key 'instruction' is missing; a trait file needs instruction for {kind} scenarios")
    for key, phrases in (("positive", trait.positive_words), ("negative", trait.negative_words)):
        try:
            _ = Words(phrases) if phrases else None
        except DriftbookError as error:
            raise PromptError(f"{path}: lexicon.{key}: {error}") from None
    unwritten = next((s for s in trait.scenarios if not (s.positive and s.negative)), None)
    if unwritten and kind != "instructed":
        raise PromptError(
            f"{path}: scenario {unwritten.scenario_id} has no written answers, so traits.scenarios: {kind} cannot be "
            "had from it; set traits.scenarios: instructed"
        )
    return trait


Text = Annotated[str, Field(min_length=1)]


class _Entry(BaseModel):
    """Part of a file. What it holds besides is the author's own."""

    model_config = ConfigDict(strict=True)


class _Scenario(_Entry):
    id: Text | int
    prompt: Text
    positive: str
    negative: str


class _Sides(_Entry):
    positive: Text
    negative: Text


class _Lexicon(_Entry):
    positive: list[Text] = []
    negative: list[Text] = []


class _File(_Entry):
    trait: Text
    definition: Text
    high: Text
    low: Text
    scenarios: list[_Scenario] = Field(min_length=1)
    instruction: _Sides | None = None
    eval_prompts: list[Text]
    lexicon: _Lexicon = _Lexicon()


class _PosNeg(_Entry):
    pos: Text
    neg: Text


class _PersonaFile(_Entry):
    instruction: list[_PosNeg] = Field(min_length=1)
    questions: list[Text] = Field(min_length=2)


def _of_ours(file: _File, limit: int | None) -> Trait:
    return Trait(
        file.trait,
        file.definition,
        file.high,
        file.low,
        tuple(Scenario(str(s.id), s.prompt, s.positive, s.negative) for s in file.scenarios[:limit]),
        ((file.instruction.positive, file.instruction.negative),) if file.instruction else (),
        tuple(file.eval_prompts),
        tuple(file.lexicon.positive),
        tuple(file.lexicon.negative),
    )


def _of_persona_vectors(name: str, file: _PersonaFile, limit: int | None) -> Trait:
    """The last quarter of the questions is kept for evaluation: what a vector was made from may not judge it."""
    questions = file.questions
    asked = max(1, len(questions) // 4)
    words = name.replace("_", " ")
    return Trait(
        name,
        f"The answer shows the trait {words}.",
        f"Shows the trait {words}.",
        f"Shows no sign of the trait {words}.",
        tuple(Scenario(f"question-{i}", q, "", "") for i, q in enumerate(questions[:-asked][:limit])),
        tuple((pair.pos, pair.neg) for pair in file.instruction),
        tuple(questions[-asked:]),
        (),
        (),
    )


def combined_trait(combination: Combination, traits: Sequence[Trait]) -> Trait:
    """The trait that a combination of vectors stands for: prompts of its parts in turn, and their phrases.

    Args:
        combination: a ``traits.combine`` entry with name, add, subtract and orthogonal_to.

    Raises:
        DriftbookError: a part is in none of the trait files, or the name is that of a trait.
    """
    by_name = {t.name: t for t in traits}
    if combination.name in by_name:
        raise DriftbookError(f"traits.combine: {combination.name!r} is the name of a trait already; take another one")
    unknown = [n for n in (*combination.add, *combination.subtract, *combination.orthogonal_to) if n not in by_name]
    if unknown:
        raise DriftbookError(
            f"traits.combine: {combination.name!r} is made from {unknown[0]!r}, which is in none of traits.files; "
            f"there are {', '.join(by_name)}"
        )
    plus, minus = [by_name[n] for n in combination.add], [by_name[n] for n in combination.subtract]
    turns = itertools.zip_longest(*(t.eval_prompts for t in (*plus, *minus)))
    return Trait(
        combination.name,
        recipe(combination),
        "; ".join([*(t.high for t in plus), *(t.low for t in minus)]),
        "; ".join([*(t.low for t in plus), *(t.high for t in minus)]),
        (),
        (),
        _distinct([[p for p in turn if p is not None] for turn in turns]),
        _distinct([*(t.positive_words for t in plus), *(t.negative_words for t in minus)]),
        _distinct([*(t.negative_words for t in plus), *(t.positive_words for t in minus)]),
    )


def _distinct(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(itertools.chain.from_iterable(groups)))


def recipe(combination: Combination) -> str:
    """A combination in words: ``warm + calm - terse, orthogonal to formal``."""
    text = " + ".join(combination.add)
    for name in combination.subtract:
        text = f"{text} - {name}" if text else f"- {name}"
    return f"{text}, orthogonal to {', '.join(combination.orthogonal_to)}" if combination.orthogonal_to else text
