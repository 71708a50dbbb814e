"""Answers that are there already: what changed between two lists of them, and whether one thing did.

Everything is counted and tested as the stage *validate* does it (``evidence.counting``), on the same splits.
"""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from driftbook.behaviours import Measure, panel, pattern_measure, python_measure, words_measure
from driftbook.behaviours.measure import Place, Unit
from driftbook.discovery import groups
from driftbook.discovery import phrases as proposals
from driftbook.discovery.hypotheses import Hypothesis, merge
from driftbook.discovery.splits import prompt_set, with_units
from driftbook.errors import DriftbookError, PromptError
from driftbook.evidence import moved_groups
from driftbook.evidence.cascade import Screening
from driftbook.evidence.claims import claims_table
from driftbook.evidence.counting import count
from driftbook.evidence.material import Material, asked_ids
from driftbook.evidence.outcomes import Outcome, strongest_first
from driftbook.evidence.panel import hypotheses as panel_hypotheses
from driftbook.evidence.verdict import Verdict, verdict_of
from driftbook.evidence.vocabulary import shared, words_test
from driftbook.files import check_text, refuse
from driftbook.front.common import Shown, as_prompts, checked, folder_of
from driftbook.parameters import Cluster, Splits, Validate
from driftbook.prompt_files import PromptList
from driftbook.prompt_files import read_prompts as read_files
from driftbook.prompts import Prompt, by_unit, look_alikes
from driftbook.replies import NO_ANSWER, split_thought
from driftbook.store import digest
from driftbook.text_tables import check_table, matched, of_change, table_rows

if TYPE_CHECKING:
    from driftbook.workbook.figures import Figure

__all__ = (
    *("Claim", "Comparison", "DriftbookError", "Measure", "Prompt", "compare", "measure", "panel", "read_prompts"),
    *("test", "words"),
)

SIDES = ("base", "intervention")
DIRECTIONS = {"either": "either", "more": "intervention", "less": "base"}


# ------------------------------------------------------------------------------------------------------------- measures


def read_prompts(*patterns: str | Path, root: Path | str | None = None) -> PromptList:
    """The prompts of files (text, JSONL, JSON, CSV; ``docs/prompts.md``), each once, in reading order.

    Args:
        patterns: paths or globs, relative to ``root`` (default: the working folder).

    Raises:
        DriftbookError: a file is missing, empty or malformed; names file and line.
    """
    return read_files(list(map(str, patterns)), Path.cwd() if root is None else Path(root))


def words(*words: str, place: Place = "anywhere", unit: Unit = "share", label: str | None = None) -> Measure:
    """A measure that counts words, phrases and ``/regular expressions/``, whatever their case.

    Args:
        place: ``anywhere``, ``opening`` (first sentence), ``closing`` (last one) or ``start``.
        unit: ``share`` (of answers that hold one of them), ``number`` (an answer) or ``rate`` (per 100 words).

    Raises:
        DriftbookError: no words, an unknown place or unit, or an expression that does not compile.
    """
    return words_measure(words, place, unit, label=label)


def measure(what: str | Measure | Sequence[str], unit: Unit = "share") -> Measure:
    """A measure by what it reads: ``measure(...).read(text, prompt)`` gives its number.

    Args:
        what: name or label of a behaviour of the panel ("ends with a question"), words in a list, ``/a regular
            expression/``, or ``module:function`` of (text, prompt).
        unit: of all but behaviours of the panel.

    Raises:
        DriftbookError: no such behaviour (with what was probably meant), or what its maker refuses.
    """
    if isinstance(what, Measure):
        if not what.spec:
            raise DriftbookError(f"measure {what.name}: made by hand, so it cannot be frozen; use driftbook.measure")
        return what
    if not isinstance(what, str):
        if not _in_order(what):
            raise DriftbookError(f"measure: {what!r}; give the name of a behaviour, or words in a list")
        return words_measure(list(what), unit=unit)
    if len(what) > 2 and what[0] == what[-1] == "/":
        return pattern_measure(what[1:-1], unit=unit)
    known = {key.lower(): m for m in panel() for key in (m.name, m.label)}
    if (asked := what.strip().lower()) in known:
        return known[asked]
    if ":" in what and " " not in what:
        return python_measure(what, unit)
    near = difflib.get_close_matches(asked, known, n=3, cutoff=0.5)
    meant = f", did you mean {' or '.join(map(repr, near))}?" if near else ";"
    raise DriftbookError(f"no behaviour is named {what!r}{meant} driftbook.panel() lists all; words go in a list")


# -------------------------------------------------------------------------------------------------------------- answers


def gathered(base: Any, changed: Any, prompts: Any) -> tuple[pd.DataFrame, list[Prompt]]:
    """Answers of both sides as a table (text_id, side, prompt_id, family, round, propensity, text, asked), and the
    prompts. Look-alikes have one ``prompt_id``; ``asked`` is the prompt itself.

    ``base`` may be a table as ``text_tables.read_text_table`` reads it; else both are lists of texts, or of lists of
    texts, one entry a prompt. What a model thought before it answered is left off.

    Raises:
        DriftbookError: lengths differ, a side is empty, a prompt has answers of one side only, or an answer is no text.
    """
    if isinstance(base, pd.DataFrame) and changed is None:
        check_table(base, "the table")
        base = of_change(base, None, "the table", 'table[table.change.isin([name]) | (table.side == "base")] keeps one')
        found = table_rows(base, "the table")
        refuse(found.unreadable, 0, "table.drop(...)")
        rows, ended = list(found), base.get("finish_reason", pd.Series("", base.index)).tolist()
    else:
        rows = _of_lists(base, changed, as_prompts(prompts))
        ended = [""] * len(rows)
    for _, prompt, text in rows:
        check_text(text, f"the answer to {prompt.text[:60]!r}")
    rows, _ = matched(_answered(rows, ended))
    asked: dict[str, Prompt] = {}
    number: dict[tuple[str, str], int] = {}
    table = []
    for side, prompt, text in rows:
        name = prompt.prompt_id
        asked.setdefault(name, prompt)
        sample = number[side, name] = number.get((side, name), -1) + 1
        about = (digest("given", side, name, sample)[:16], side, name, asked[name].family)
        table.append((*about, 0, 1.0, text))
    for side in SIDES:
        lacking = [p for p in asked.values() if (side, p.prompt_id) not in number]
        if lacking:
            raise DriftbookError(
                f"{len(lacking)} of {len(asked)} prompts have no answer of side {side}, the first: "
                f"{lacking[0].text[:60]!r}; both sides must answer the same prompts"
            )
    columns = ["text_id", "side", "prompt_id", "family", "round", "propensity", "text"]
    texts = pd.DataFrame(table, columns=columns).sort_values("text_id", kind="stable", ignore_index=True)
    known = with_units(list(asked.values()))
    return by_unit(texts, {p.prompt_id: p for p in known}), known


def _of_lists(base: Any, changed: Any, prompts: list[Prompt]) -> list[tuple[str, Prompt, str]]:
    rows = []
    for side, name, given in (("base", "base", base), ("intervention", "changed", changed)):
        if not _in_order(given):
            raise DriftbookError(
                f"{name}: give a list with the answers to each prompt, in their order (or one table of both sides)"
            )
        given = list(given)
        if not given:
            raise DriftbookError(f"{name}: no answers; both sides must answer the same prompts")
        if len(given) != len(prompts):
            raise DriftbookError(f"{name}: {len(given)} answers and {len(prompts)} prompts; give an entry a prompt")
        for number, (prompt, said) in enumerate(zip(prompts, given, strict=True), 1):
            for text in said if _in_order(said) else [said]:
                if not isinstance(text, str):
                    raise DriftbookError(f"{name}: answer {number} is {text!r}, which is no text; fill or drop it")
                rows.append((side, prompt, text))
    return rows


def _in_order(given: Any) -> bool:
    """Whether it is several things one after the other, as a text, a mapping or a set are not."""
    return np.iterable(given) and not isinstance(given, str | bytes | Mapping | Set | pd.DataFrame)


def _answered(rows: list[tuple[str, Prompt, str]], ended: Sequence[Any]) -> list[tuple[str, Prompt, str]]:
    """The rows with their answers alone, without the thought before them. Answers that never came are no answers.

    ``ended`` says why each ended, where that is known. Raises DriftbookError where none of a side came.
    """
    told = [(side, prompt, *split_thought(text), why) for (side, prompt, text), why in zip(rows, ended, strict=True)]
    came = [
        (side, prompt, text) for side, prompt, thought, text, why in told if text or not (thought or why in NO_ANSWER)
    ]
    left = Counter(side for side, *_ in rows) - Counter(side for side, *_ in came)
    for side, number in left.items():
        of = sum(one == side for one, *_ in rows)
        if number == of:
            raise DriftbookError(f"{side}: all {of} answers ended before they began; give the model more tokens")
        warnings.warn(f"{side}: {number} of {of} answers ended before they began, and are left out", stacklevel=4)
    if not left:
        return came
    both = set.intersection(*({p.prompt_id for one, p, _ in came if one == side} for side in SIDES))
    return [row for row in came if row[1].prompt_id in both]


# ----------------------------------------------------------------------------------------------------------- one claim


@dataclass(frozen=True)
class Claim(Shown):
    """One claim about two sides, tested. ``str(claim)`` says it.

    ``base``, ``changed``, ``difference`` (changed minus base) and ``interval`` (95%, of the difference) are in the unit
    of ``measure``; shares lie in [0, 1]. ``e_value`` is the evidence against "no more often than half of the prompts",
    ``p_value`` that of the paired test; ``confirmed`` is decided by it at ``alpha``. ``prompts`` counts those that were
    read on both sides, ``win_rate`` how often, over them, the side that does it more shows more (a tie is a half).
    ``note`` says where they are fewer than were asked, because look-alikes count as one.
    """

    sentence: str
    base: float
    changed: float
    difference: float
    interval: tuple[float, float]
    e_value: float
    p_value: float
    confirmed: bool
    alpha: float
    prompts: int
    win_rate: float
    measure: Measure = field(repr=False)
    note: str = ""

    @classmethod
    def of(cls, o: Outcome, alpha: float, note: str = "") -> Claim:
        return cls(
            o.sentence, o.base, o.intervention, o.difference.estimate, (o.difference.low, o.difference.high),
            o.e_value, o.p_value, o.confirmed, alpha, len(o.x), o.win_rate.estimate, o.measure, note,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.sentence}: {'confirmed' if self.confirmed else 'not confirmed'}"

    def to_frame(self) -> pd.DataFrame:
        """One row: behaviour, unit, base, changed, difference, low, high, e_value, p_value, confirmed, prompts."""
        low, high = self.interval
        about = {"behaviour": self.measure.label, "unit": self.measure.unit}
        numbers = {name: getattr(self, name) for name in ("base", "changed", "difference")} | {"low": low, "high": high}
        rest = {name: getattr(self, name) for name in ("e_value", "p_value", "confirmed", "prompts")}
        return pd.DataFrame([about | numbers | rest])

    def plot(self) -> Figure:
        """Both sides with the interval of the change."""
        from driftbook.workbook.figures import dumbbell  # plotly: a result is drawn when it is asked to be

        share = self.measure.unit == "share"
        return dumbbell(
            [self.measure.label], [self.base], [self.changed], [self.interval[0]], [self.interval[1]],
            title=str(self), caption=f"{self.prompts:,} prompts. Bar: 95% interval of the change.",
            names=("base", "changed"), x_title="share of answers" if share else self.measure.unit, percent=share,
        )  # fmt: skip


def test(
    what: str | Measure | Sequence[str],
    base: Any,
    changed: Any = None,
    prompts: Any = None,
    *,
    words: Sequence[str] | None = None,
    direction: Literal["either", "more", "less"] = "either",
    alpha: float = 0.05,
    margin: float = 0.0,
    seed: int = 0,
) -> Claim:
    """Does one behaviour differ between two sides? A claim that was made before looking, tested on all prompts.

    Args:
        what: what ``measure`` takes: a behaviour of the panel by name or label, a measure, words in a list. With
            ``words`` it is only the name of what they say.
        base, changed: an answer to each prompt, or a list of answers, of which as many of both sides are read; or
            ``base`` alone, a table of one change with the columns side (base, intervention), prompt and text. Where it
            has ``finish_reason``, answers that never came are left out.
        prompts: one a position: texts, ``Prompt`` records or conversations. A prompt may stand there twice.
            Look-alikes count as one.
        direction: whether ``changed`` was said to do it ``more`` or ``less``, before looking.
        margin: smallest difference of interest, in the unit of the measure (of shares and scores).

    Raises:
        DriftbookError: an unknown behaviour, lists of different lengths, an empty side, no prompts.
    """
    if words is not None and not _in_order(words):
        raise DriftbookError(f"words: {words!r}; give words in a list")
    asked = words_measure(list(words), label=str(what)) if words is not None else measure(what)
    if direction not in DIRECTIONS:
        raise DriftbookError(f"direction: {direction!r}; use one of {', '.join(DIRECTIONS)}")
    section = checked(Validate, alpha=alpha, margin=margin)
    texts, known = gathered(base, changed, prompts)
    claim = Hypothesis(asked.label, DIRECTIONS[direction], proposer="person", measure=asked.spec)
    material = Material(texts.assign(split="validate"), {p.prompt_id: p for p in known}, [claim], seed)
    (outcome,) = count(material, section, alpha)
    return Claim.of(outcome, alpha, look_alikes(known))


# ----------------------------------------------------------------------------------------------------------- everything


GROUPS = (
    *("behaviour", "place", "base", "changed", "difference", "low", "high", "p_value", "q_value", "confirmed"),
    *("stability", "phrase", "said_base", "said_changed"),
)


@dataclass(frozen=True)
class Comparison(Shown):
    """What changed between two sides. ``str(change)`` is the verdict.

    ``table`` has one row a behaviour, confirmed ones first, the strongest of each kind first: behaviour, unit, base,
    changed, difference, low, high (95%), e_value, p_value, q_value, confirmed, prompts, scope, proposer. ``claims`` is
    the table of claims of an experiment. ``answers`` are those that were read, with their split; their ``prompt_id`` is
    the same for look-alike prompts, which count as one. ``prompts`` are those asked, by id.
    """

    table: pd.DataFrame
    verdict: Verdict
    claims: pd.DataFrame = field(repr=False)
    answers: pd.DataFrame = field(repr=False)
    seed: int
    prompts: dict[str, Prompt] = field(repr=False)
    alpha: float
    cache: Path = field(repr=False)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """Groups of sentences that one side says more, as the stage *cluster* finds them, tested on the prompts that
        had no part in finding them.

        One row a group that was proposed, confirmed ones first: behaviour ('opens with "What a fascinating question!"
        and the like'), place, base, changed, difference, low, high (95%, of shares of answers), p_value, q_value (over
        these groups alone), confirmed, stability, phrase, said_base and said_changed (typical sentences of each side).
        Sentences are embedded when it is first asked for.

        Raises DriftbookError where no prompt was set apart (``phrases=0``).
        """
        from driftbook.discovery.embeddings import through_cache  # torch, which counting does without

        seen = self.answers[self.answers["split"] == "discover"]
        if seen.empty:
            raise DriftbookError("groups are found on prompts that are set apart: call compare with phrases above 0")
        section = Cluster()
        embed = through_cache(self.cache / "embeddings", section.embedder)
        said = {name: prompt.said() for name, prompt in self.prompts.items()}
        known = moved_groups.ground(
            seen, said, embed, drawn=section.segments, most=section.most_groups, bootstraps=section.bootstraps,
            seed=self.seed,
        )  # fmt: skip
        moved = moved_groups.compose(known, seen, self.seed)
        claims = moved_groups.propose(moved, section.hypotheses)
        held = self.answers[self.answers["split"] != "discover"]
        asked = [said[p] for p in asked_ids(held)]
        ids, texts = held["text_id"].tolist(), held["text"].tolist()
        read = groups.readings(known.found.groups, groups.wanted(claims), ids, texts, asked, embed)
        material = Material(self.answers, self.prompts, claims, self.seed)
        found = count(material, checked(Validate, alpha=self.alpha), self.alpha, read)
        about = moved.table.set_index("group")
        rows = []
        for o in strongest_first(found):
            row = about.loc[groups.wanted([o.hypothesis])[0]]
            rows.append(
                (o.hypothesis.text, row["place"], o.base, o.intervention, *o.difference, o.p_value, o.q_value,
                 o.confirmed, row["stability"], row["phrase"], row["typical_base"], row["typical_intervention"])
            )  # fmt: skip
        return pd.DataFrame(rows, columns=list(GROUPS))

    def __str__(self) -> str:
        return " ".join(self.verdict.lines)

    def to_frame(self) -> pd.DataFrame:
        """The same as ``table``."""
        return self.table

    def plot(self) -> Figure:
        """Confirmed behaviours, before and after; where none is a share, how far the others can have moved.

        Raises DriftbookError where no behaviour is a share of answers.
        """
        from driftbook.report import validate as report  # plotly: a result is drawn when it is asked to be

        prompts = int(self.claims["prompts"].max())
        figure = report.shares(self.claims, prompts, self.seed) or report.unmoved(self.claims, self.seed)
        if figure is None:
            raise DriftbookError("no behaviour was read as a share of answers, so there is nothing to draw")
        return figure


def compare(
    base: Any,
    changed: Any = None,
    prompts: Any = None,
    *,
    phrases: int = Cluster().hypotheses,
    alpha: float = 0.05,
    seed: int = 0,
    cache: Path | str | None = None,
) -> Comparison:
    """What changed between the answers of two sides to the same prompts, and is it real?

    The behaviours of the panel and every word are tested on all prompts. Phrases that one side says more are looked for
    on half of the prompts and tested on the others. At most ``alpha`` of what is confirmed is false on average.

    Args:
        base, changed, prompts: as ``test`` takes them.
        phrases: most phrases that are proposed; 0: the panel alone, without words, and no prompt is set apart.
        cache: where embeddings of sentences are kept, for ``.groups``.

    Raises:
        DriftbookError: lists of different lengths, an empty side, no prompts, or too few of them to set some apart.
    """
    section = checked(Validate, alpha=alpha)
    texts, known = gathered(base, changed, prompts)
    found = panel_hypotheses()
    if phrases > 0:
        try:
            chosen = prompt_set(known, Splits().model_dump(by_alias=True))
        except PromptError as reason:
            raise DriftbookError(f"{reason}; or set phrases=0 to read the panel alone") from None
        known = chosen.prompts
        texts = texts.assign(split=texts["asked"].map({p.prompt_id: p.split for p in known}))
        seen = texts[texts["split"] == "discover"]
        found += merge(proposals.propose(seen, {p.prompt_id: p.text for p in known}, limit=phrases))
    else:
        texts = texts.assign(split="validate")
    material = Material(texts, {p.prompt_id: p for p in known}, found, seed)
    unscreened = Screening(pd.DataFrame({"hypothesis_id": [], "p_screen": []}), pd.DataFrame(), [])
    unfrozen = pd.DataFrame({"hypothesis_id": [], "frozen": []})
    counted, own = shared(material, alpha) if phrases > 0 else (alpha, 0.0)
    outcomes = count(material, section, counted)
    words = words_test(material, section, own, outcomes)
    claims = claims_table(material, unfrozen, unscreened, [*outcomes, *words.outcomes])
    said = verdict_of(material, claims, alpha, words.table)
    return Comparison(_table(claims), said, claims, texts, seed, dict(material.prompts), alpha, folder_of(cache))


def _table(claims: pd.DataFrame) -> pd.DataFrame:
    columns = {"text": "behaviour", "unit": "unit", "base": "base", "intervention": "changed"}
    same = ("difference", "low", "high", "e_value", "p_value", "q_value", "confirmed", "prompts", "scope", "proposer")
    columns |= {name: name for name in same}
    return claims[list(columns)].rename(columns=columns)
