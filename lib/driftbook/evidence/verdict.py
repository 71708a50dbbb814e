"""The verdict of an experiment in three lines: what moved, what did not, how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from driftbook.evidence.counting import scope_of
from driftbook.evidence.material import Material, asked_ids
from driftbook.evidence.paired import smallest_seen
from driftbook.numbers import apart, share

State = Literal["changed", "no change found", "could not tell"]
STRONGEST = 3  # behaviours that the first line names
NEAR = 0.03  # points of answers within which a behaviour counts as unmoved
NEARLY = 0.8  # of the strongest claim's difference, for one that says the same in a reader's words
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


def verdict_of(material: Material, claims: pd.DataFrame, alpha: float) -> Verdict:
    """The verdict on the table of claims about what was read."""
    texts, prompts = material.paired()
    ids = asked_ids(texts)
    answers = int(texts.groupby([ids, "side"]).size().median()) if len(texts) else 0
    same = ids.nunique() - len(prompts)
    scope = scope_of(texts)
    within = scope.name == "these prompts"
    seen = smallest_seen(len(prompts) * (answers if within else 1), 0.1, max(1, len(claims)), alpha)
    alike = f"{ids.nunique():,} were asked: look-alikes count as one." if same else ""
    said = " ".join(filter(None, [alike, f"It {scope.sentence}." if within else ""]))
    return verdict(claims, len(prompts), answers, alpha, 0.9 if seen is None else seen, said)


def verdict(
    claims: pd.DataFrame, prompts: int, answers: int, alpha: float, seen: float, scope: str = ""
) -> Verdict:
    """``claims`` is the table of claims, strongest first; ``prompts`` and ``answers`` (of a side to each prompt) say
    what was read; ``seen`` is the smallest change of a share, from a tenth of answers, that would have been confirmed
    four times in five; ``scope`` is a sentence on what the claims speak of, where it is not prompts like these."""
    good = told(claims)
    first = good.head(STRONGEST)
    if len(good):
        state: State = "changed"
        more = f"; and {len(good) - len(first)} more" if len(good) > len(first) else ""
        moved = f"Changed: {'; '.join(first['claim'])}{more}."
    elif seen <= WIDE:
        state, moved = "no change found", f"No change found: none of {len(claims)} claims was confirmed."
    else:
        state = "could not tell"
        moved = (
            f"Could not tell: with {prompts:,} prompts a behaviour would have to go from 10% to "
            f"{min(1.0, 0.1 + seen):.0%} of answers to be confirmed."
        )
    exaggerated = claims[claims.get("only_amplified", pd.Series(False, index=claims.index))]
    if len(exaggerated):
        more = f"; and {len(exaggerated) - 1} more" if len(exaggerated) > 1 else ""
        moved = f"{moved} Shown only when the change is exaggerated: {exaggerated['amplified'].iloc[0]}{more}."
    sure = " ".join(filter(None, [_sure(claims, prompts, answers, alpha), scope]))
    return Verdict(state, moved, _unmoved(claims, seen), sure, tuple(first["hypothesis_id"]))


def told(claims: pd.DataFrame) -> pd.DataFrame:
    """The confirmed claims that a reader is told, in the order of telling: one of those that say nearly the same.

    That is the strongest, unless one that says what the answer does with the question (the family *stance*: refuses,
    warns, hedges) moved by nearly as much: an opening with "I" that comes with refusals is told as refusals.
    """
    good = claims[claims["confirmed"]]
    kind = good.get("kind", pd.Series("", index=good.index))
    size = good["difference"].abs()
    of = good["like"].where(good["like"] != "", good["hypothesis_id"])
    stands = {}
    for head in good.index[good["like"] == ""]:
        same = good.index[(of == good.loc[head, "hypothesis_id"]) & (good["unit"] == good.loc[head, "unit"])]
        means = [i for i in same if kind[i] == "stance" and size[i] >= NEARLY * size[head]]
        stands[head] = head if kind[head] == "stance" or not means else max(means, key=lambda i: size[i])
    first = good.loc[list(stands.values())].reset_index(drop=True)
    return first.loc[_told_first(first)].reset_index(drop=True)


def _told_first(good: pd.DataFrame) -> list[int]:
    """The order in which a reader wants to be told: by points of answers; a length by the part that it changed by. The
    points of a group of sentences count half: it is named by one of them, which says less than a behaviour's name."""
    size = good["difference"].abs()
    part = size / good[["base", "intervention"]].abs().max(axis=1).clip(lower=1e-9)
    named = np.where(good["proposer"] == "groups", 0.5, 1.0)
    told = np.where(good["unit"] == "share", size * named, np.where(good["measure"] == "length_words", part, 0.0))
    return good.index[np.lexsort((np.arange(len(good)), -told))].tolist()


def phrase(claim: pd.Series) -> str:
    """A claim as a model's doing: "opens with an exclamation less often (32% → 13%)". ``claim`` is a row of the table
    of claims."""
    was, now = float(claim["base"]), float(claim["intervention"])
    more, label = now > was, _short(str(claim["text"]))
    if claim["unit"] == "share":
        often = "" if claim["proposer"] == "person" else " more often" if more else " less often"
        return f"{label}{often} ({share(was)} → {share(now)})"
    before, after = apart(was, now, 1)
    if claim["unit"] in ("words", "sentences") and label == f"length in {claim['unit']}":
        return f"writes {'longer' if more else 'shorter'} answers (median {before} → {after} {claim['unit']})"
    return f"{label}: {'more' if more else 'less'} ({before} → {after})"


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def headline(strongest: pd.DataFrame) -> str:
    """The first of the claims, as one predicate of the changed model; empty without a claim."""
    said = [phrase(row) for _, row in strongest.head(STRONGEST).iterrows()]
    return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]]))


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


def _sure(claims: pd.DataFrame, prompts: int, answers: int, alpha: float) -> str:
    good = int(claims["confirmed"].sum())
    return (
        f"{prompts:,} prompts, {answers} answer{'' if answers == 1 else 's'} of each model to each; {good} of "
        f"{len(claims)} claims are confirmed{f', of which at most {alpha:.0%} are false on average' if good else ''}."
    )
