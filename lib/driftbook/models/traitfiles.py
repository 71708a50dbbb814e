"""Trait files: what a trait is, scenarios that show it and its opposite, and phrases that give it away.

Two formats are read: ours (``params/traits/<name>.json``) and that of persona_vectors (``instruction``, ``questions``,
``eval_prompt``), which has no written answers, so that the model has to give them under its instructions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
        trait = _of_persona_vectors(path.stem, raw, limit) if persona else _of_ours(raw, kind, limit)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"key {error} is missing" if isinstance(error, KeyError) else f"a value of the wrong kind ({error})"
        needs = "instruction (a list of pos, neg) and questions" if persona else (
            "trait, definition, high, low, scenarios (id, prompt, positive, negative), eval_prompts and lexicon"
        )  # fmt: skip
        raise PromptError(f"{path}: {problem}; a trait file needs {needs}") from error
    for key, phrases in (("positive", trait.positive_words), ("negative", trait.negative_words)):
        try:
            _ = Words(phrases) if phrases else None
        except DriftbookError as error:
            raise PromptError(f"{path}: lexicon.{key}: {error}") from None
    if persona and kind != "instructed":
        raise PromptError(
            f"{path}: a persona_vectors file has no written answers, so traits.scenarios: {kind} cannot be had from "
            "it; set traits.scenarios: instructed"
        )
    return trait


def _of_ours(raw: Any, kind: str, limit: int | None) -> Trait:
    instruction = raw["instruction"] if kind != "natural" else raw.get("instruction")
    lexicon = raw.get("lexicon", {})
    return Trait(
        raw["trait"],
        raw["definition"],
        raw["high"],
        raw["low"],
        tuple(Scenario(s["id"], s["prompt"], s["positive"], s["negative"]) for s in raw["scenarios"][:limit]),
        ((instruction["positive"], instruction["negative"]),) if instruction else (),
        tuple(raw["eval_prompts"]),
        tuple(lexicon.get("positive", ())),
        tuple(lexicon.get("negative", ())),
    )


def _of_persona_vectors(name: str, raw: Any, limit: int | None) -> Trait:
    """The last quarter of the questions is kept for evaluation: what a vector was made from may not judge it."""
    questions = list(raw["questions"])
    asked = max(1, len(questions) // 4)
    words = name.replace("_", " ")
    return Trait(
        name,
        f"The answer shows the trait {words}.",
        f"Shows the trait {words}.",
        f"Shows no sign of the trait {words}.",
        tuple(Scenario(f"question-{i}", q, "", "") for i, q in enumerate(questions[:-asked][:limit])),
        tuple((pair["pos"], pair["neg"]) for pair in raw["instruction"]),
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
