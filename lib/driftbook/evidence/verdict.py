"""The verdict of an experiment in three lines: what moved, what did not, how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from driftbook.behaviours.measure import SIZES
from driftbook.evidence.counting import scope_of
from driftbook.evidence.material import Material, asked_ids
from driftbook.evidence.paired import smallest_seen
from driftbook.numbers import apart, fixed, share
from driftbook.prompts import look_alikes

State = Literal["changed", "no change found", "could not tell"]
STRONGEST = 3  # behaviours that the first line names
NEAR = 0.03  # points of answers within which a behaviour counts as unmoved
WIDE = 0.25  # a difference of shares beyond it must be visible, or the prompts are too few to tell anything


@dataclass(frozen=True)
class Verdict:
    """``state`` and three sentences; ``strongest`` are the ids of the claims that the first one names."""

    state: State
    moved: str
    unmoved: str
    sure: str
    strongest: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, str, str]:
        return self.moved, self.unmoved, self.sure

    def __str__(self) -> str:
        return " ".join(self.lines)


def verdict_of(
    material: Material, claims: pd.DataFrame, alpha: float, words: pd.DataFrame, missing: str = ""
) -> Verdict:
    """The verdict on the table of claims about what was read; ``words``: the words that were tested
    (``vocabulary.Words``), ``missing``: a sentence on answers that never came."""
    texts, prompts = material.paired()
    ids = asked_ids(texts)
    sizes = texts.groupby([ids, "side"]).size() if len(texts) else pd.Series([0])
    answers = int(sizes.min()), int(sizes.max())
    scope = scope_of(texts)
    within = scope.name == "these prompts"
    seen = smallest_seen(len(prompts) * (int(sizes.median()) if within else 1), 0.1, max(1, len(claims)), alpha)
    alike = look_alikes([material.prompts[p] for p in ids.unique()])
    left = material.surplus
    fewer = f"{left:,} answers are not read: to their prompts the other side has fewer." if left else ""
    said = " ".join(filter(None, [alike, f"It {scope.sentence}." if within else "", fewer, missing]))
    counted = int(words["confirmed"].sum()), len(words)
    return verdict(claims, len(prompts), answers, alpha, 0.9 if seen is None else seen, said, counted)


def verdict(
    claims: pd.DataFrame,
    prompts: int,
    answers: tuple[int, int],
    alpha: float,
    seen: float,
    scope: str = "",
    words: tuple[int, int] = (0, 0),
) -> Verdict:
    """``claims`` is the table of claims, strongest first; ``prompts`` and ``answers`` (of a side to a prompt, fewest
    and most) say what was read; ``seen`` is the smallest change of a share, from a tenth of answers, that would
    have been confirmed four times in five; ``scope`` is a sentence on what the claims speak of, where it is not prompts
    like these; ``words``: how many of them are confirmed, and how many were tested."""
    good = told(claims)
    first = good.head(STRONGEST)
    if len(good):
        state: State = "changed"
        more = f"; and {len(good) - len(first)} more" if len(good) > len(first) else ""
        moved = f"Changed: {headline(first)}{more}."
    elif words[0]:
        state = "changed"
        moved = (
            f"Changed: {words[0]} of {_words(words[1])} stand{'s' if words[0] == 1 else ''} in more answers of one "
            f"side, and none of {len(claims)} behaviours and phrases was shown to move."
        )
    elif seen <= WIDE:
        state = "no change found"
        beside = f" and {_words(words[1])}" if words[1] else ""
        moved = f"No change found: none of {len(claims)} behaviours and phrases{beside} was shown to move."
    else:
        state = "could not tell"
        moved = (
            f"Could not tell: with {prompts:,} prompts a behaviour would have to go from 10% to "
            f"{min(1.0, 0.1 + seen):.0%} of answers to be confirmed."
        )
    exaggerated = claims[claims.get("only_amplified", pd.Series(False, index=claims.index))]
    if len(exaggerated):
        # a share of answers is what a reader sees first
        exaggerated = exaggerated.sort_values("unit", key=lambda unit: unit != "share", kind="stable")
        more = f"; and {len(exaggerated) - 1} more" if len(exaggerated) > 1 else ""
        moved = f"{moved} Shown only when the change is exaggerated: {exaggerated['amplified'].iloc[0]}{more}."
    sure = " ".join(filter(None, [_sure(claims, prompts, answers, alpha, words), scope]))
    return Verdict(state, moved, _unmoved(claims, seen), sure, tuple(first["hypothesis_id"]))


def told(claims: pd.DataFrame) -> pd.DataFrame:
    """The confirmed claims that a reader is told, the most worth telling first (``_worth``): of those that say nearly
    the same and are in one unit, one. An opening with "I" that comes with refusals is told as refusals."""
    good = claims[claims["confirmed"]]
    worth = _worth(good)
    of = good["like"].where(good["like"] != "", good["hypothesis_id"])
    stands = []
    for head in good.index[good["like"] == ""]:
        same = good.index[(of == good.loc[head, "hypothesis_id"]) & (good["unit"] == good.loc[head, "unit"])]
        stands.append(max(same, key=lambda i: worth[i]))
    first = worth[stands].sort_values(ascending=False, kind="stable").index
    return good.loc[first].reset_index(drop=True)


# What a claim's effect counts: what an answer does with the question says more than how it is written, and a behaviour
# more than a phrase or one of a group of sentences, which stand for something that the reader has to guess.
STANCE, PHRASE, GROUP = 1.25, 0.6, 0.5
UNSEEN = 0.02  # of shares, at both ends: a reader of answers does not see whether none or two in a hundred do it
LENGTH = 1.5  # an effect in place of Cohen's h for a length that changed by its whole: half of it is as 10% to 46%


def _worth(good: pd.DataFrame) -> pd.Series:
    """How much a confirmed claim tells a reader, by its index: of shares Cohen's h (Cohen 1988, "Statistical Power
    Analysis for the Behavioral Sciences", ch. 6), by which 2% to 15% is more than 40% to 53%, beyond what the length
    of the answers tells; of the length in words the part that it changed by; nothing of all other units."""
    base, now = good["base"].astype(float), good["intervention"].astype(float)
    lengths = good.get("at_length", pd.Series(np.nan, index=good.index)).astype(float).fillna(base)
    # between what it was and what it is; where length alone would have moved it further, nothing is left
    beyond = np.where(now > base, np.clip(lengths, base, now), np.clip(lengths, now, base))
    h = 2 * (_arc(now) - _arc(beyond)).abs()
    kind, proposer = good.get("kind", pd.Series("", index=good.index)), good["proposer"]
    told = proposer.isin(["panel", "person", "llm"])
    weight = np.select([kind == "stance", told, proposer == "groups"], [STANCE, 1.0, GROUP], PHRASE)
    moved = good["difference"].astype(float).abs()  # of answers to the same prompt, which the two medians need not show
    part = (moved / np.maximum(base.abs(), now.abs()).clip(lower=1e-9)).clip(upper=1)
    size = np.where(good["measure"] == "length_words", LENGTH * part, 0.0)
    return pd.Series(np.where(good["unit"] == "share", h * weight, size), index=good.index)


def _arc(share: pd.Series) -> np.ndarray:
    return np.arcsin(np.sqrt(UNSEEN + (1 - 2 * UNSEEN) * np.clip(share, 0, 1)))


MUCH = 1 / 3  # of the longer of two lengths: from such a difference on one is much longer or shorter
ALWAYS, EVER = 0.95, 0.03  # shares from which on an answer nearly always, or hardly ever, does it
# Labels complete "an answer ..."; the verdict speaks of the model that writes it.
_WRITES = (("has no end mark", "stops without an end mark"), ("is empty", "writes nothing"),
           ("is in another", "writes in another"), ("is a single", "writes a single"), ("is five", "writes five"),
           ("has ", "writes "))  # fmt: skip


# What a model does whose answers show more, and less, of a measure that is no share and no count; and its unit.
_DOES = {
    "words_a_sentence": (("writes longer sentences", "writes shorter sentences"), " words"),
    "letters_a_word": (("uses longer words", "uses shorter words"), " letters"),
    "sentiment": (("sounds more positive", "sounds less positive"), " on a scale from -1 to 1"),
    "reading_grade": (("is harder to read", "is easier to read"), " school grade"),
    "variety": (("repeats fewer words", "repeats more words"), " of the first hundred words differ"),
    "list_share": (("puts more of its lines in lists", "puts fewer of its lines in lists"), " of the lines"),
    "repeated_runs": (("repeats itself more", "repeats itself less"), " of its runs of three words"),
}


def _how_often(was: float, now: float) -> str:
    if now > was:
        return "nearly always" if now >= ALWAYS else "more often"
    return "hardly ever" if now <= EVER else "less often"


def phrase(claim: pd.Series) -> tuple[str, str]:
    """A claim as a model's doing: how often, and what it does: ("less often", "opens with an exclamation (32% →
    13%)"). ``claim`` is a row of the table of claims."""
    was, now, moved = (float(claim[k]) for k in ("base", "intervention", "difference"))
    more, label = moved > 0, _short(str(claim["text"]))
    if claim["unit"] == "share":
        often = "" if claim["proposer"] == "person" else _how_often(was, now)
        verb = next((new + label.removeprefix(old) for old, new in _WRITES if label.startswith(old)), label)
        return often, f"{verb} ({share(was)} → {share(now)})"

    def sides(unit: str, typical: str = "") -> str:
        if (now - was) * moved <= 0:  # medians of all answers need not go where answers to the same prompt go
            return f"(typically {fixed(moved, 1, signed=True)}{unit} to the same prompt)"
        return f"({typical}{' → '.join(apart(was, now, 1))}{unit})"

    if claim["unit"] in SIZES and label == f"length in {claim['unit']}":
        much = "much " if abs(moved) >= MUCH * max(was, now) else ""
        typical = "mean " if claim.get("scope") == "these prompts" else "median "
        return "", f"writes {much}{'longer' if more else 'shorter'} answers {sides(f' {claim.unit}', typical)}"
    if claim["unit"] in ("number", "rate"):
        unit = " an answer" if claim["unit"] == "number" else " per 100 words"
        return "", f"writes {'more' if more else 'fewer'} {label} {sides(unit)}"
    does, unit = _DOES.get(str(claim["measure"]), ((f"{label}: more", f"{label}: less"), ""))
    return "", f"{does[not more]} {sides(unit)}"


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def headline(strongest: pd.DataFrame) -> str:
    """The first of the claims, as one predicate of the changed model; empty without a claim. What is done more often
    is said in one run, so that it is said once."""
    runs: dict[str, list[str]] = {}
    for _, row in strongest.head(STRONGEST).iterrows():
        often, does = phrase(row)
        runs.setdefault(often or does, []).append(does)
    said = [_listed(own) if often in own else f"{often} {_listed(own)}" for often, own in runs.items()]
    return _listed(said, ", and ").replace("%)", "% of answers)", 1)


def _listed(said: list[str], last: str = " and ") -> str:
    return last.join(filter(None, [", ".join(said[:-1]), *said[-1:]]))


def _unmoved(claims: pd.DataFrame, seen: float) -> str:
    shares = claims[(claims["unit"] == "share") & (claims["proposer"] == "panel") & claims["low"].notna()]
    if shares.empty:
        return "No behaviour was measured as a share of answers."
    still = shares[~shares["confirmed"]]
    near = int((np.maximum(still["low"].abs(), still["high"].abs()) < NEAR).sum())
    rest = len(still) - near
    more = f"; of {rest} more no move was shown, and they can have moved by more" if rest else ""
    return (
        f"{near} of {len(shares)} behaviours moved by less than {100 * NEAR:.0f} points{more}. A behaviour of 10% of "
        f"answers that moved by {100 * seen:.0f} points would have been confirmed four times in five."
    )


def _sure(claims: pd.DataFrame, prompts: int, answers: tuple[int, int], alpha: float, words: tuple[int, int]) -> str:
    fewest, most = answers
    each = f"{most} answer{'' if most == 1 else 's'}" if fewest == most else f"{fewest} to {most} answers"
    own = claims[claims["proposer"] != "words"]
    good = int(own["confirmed"].sum())
    said = f"{good} of {len(own)} claims" + (f" and {words[0]} of {_words(words[1])}" if words[1] else "")
    false = f", of which at most {alpha:.0%} are false on average" if good or words[0] else ""
    return f"{prompts:,} prompts, {each} of each model to each; {said} are confirmed{false}."


def _words(count: int) -> str:
    return "1 word" if count == 1 else f"{count} words"
