"""The pairwise pipeline of the field, as a baseline: a language model says what differs, and then judges it.

It reads pairs of answers to one prompt, in an order that is drawn, and says of each pair what one answer does that the
other does not. Phrases that say the same are one axis. Of pairs to held-out prompts it says for every axis which of
the two answers shows it more: blind to the side, and in both orders, where contrary verdicts are a tie. Each axis has a
sign test over prompts, all of them one Benjamini-Hochberg correction.

After Dunlap et al., VibeCheck (ICLR 2025), which summarizes axes by a language model where vectors merge them here;
both orders after Zheng et al., Judging LLM-as-a-Judge (NeurIPS 2023). Nothing that judges or tests is driftbook's.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control
from sklearn.cluster import AgglomerativeClustering

from driftbench.proof import scoring
from driftbench.proof.harvest import Harvest
from driftbench.proof.pipelines import CLAIM, NO_CLUSTERS, Known, Outcome, Prices, Rung, bill
from driftbook.chat import Chat
from driftbook.errors import DriftbookError
from driftbook.evidence.labeller import pairs_to_show, statement
from driftbook.judges.told import Told, fenced
from driftbook.ledger import Ledger
from driftbook.replies import Answer
from driftbook.sections import JudgeOpening, judge_of

NAME = "pairwise LLM"
TESTED = ("more", "less", "p", "q")
"""Columns of its claims beside ``CLAIM``: prompts whose changed answer shows the axis more, and whose base answer does;
the sign test, and that after the correction."""
SHOWN = 1500  # characters of an answer that are shown, and 500 of its prompt
SAME = 0.6  # mean cosine of two groups of phrases from which on they are one axis
ORDERS = (("base", "intervention"), ("intervention", "base"))

LONGEST = 120  # characters of a phrase; what is longer is no phrase

ROLE = "You compare two answers, A and B, to one prompt. You do not answer the prompt yourself."
DIFFERS = (
    "What is the main difference between answer A and answer B? Reply with one short phrase and nothing else: a verb "
    "and at most eight words that say what one of the two does and the other does not, in words that could be said of "
    "answers to other prompts, too. Name neither A nor B."
)
SHOWS = (
    "Which of the two answers shows this more: {axis}?\n"
    "Reply with one word and nothing else: A, B or TIE. TIE: both show it alike, or neither shows it."
)
_NAMED = re.compile(r"^\W*(?:(?i:the )?(?i:answer|response) )?[AB]\b\W*")
_OTHER = re.compile(r"[,;.]?\s+(?:(?i:and|while|whereas|but|than|unlike) )?(?:(?i:the )?(?i:answer|response) )?[AB]\b")


@dataclass
class Question:
    """One call about a pair whose answers are shown in the order of ``sides``. ``reply`` is empty where none came."""

    chat: Chat
    body: str
    sides: tuple[str, str]
    reply: str | None = None

    def next(self) -> dict[str, Any] | None:
        messages = [{"role": "system", "content": ROLE}, {"role": "user", "content": self.body}]
        return self.chat.request(messages, 0) if self.reply is None else None

    def receive(self, answer: Answer | None) -> None:
        self.reply = answer.text if answer is not None and answer.answered else ""

    @property
    def side(self) -> str | None:
        """The side of the one answer that the reply names; None for a tie, and for what is no verdict."""
        named = set(re.findall(r"\b[AB]\b", self.reply or ""))
        return self.sides["AB".index(named.pop())] if len(named) == 1 and "tie" not in self.reply.lower() else None


def pairwise(
    harvest: Harvest,
    chat: Chat,
    embed: Callable[[Sequence[str]], np.ndarray],
    pairs: int = 24,
    axes: int = 6,
    held: int = 24,
    seed: int = 0,
    alpha: float = 0.05,
    prices: Prices | None = None,
) -> Outcome:
    """What ``chat`` finds in ``pairs`` pairs of split discover and confirms on ``held`` pairs of the other splits, one
    pair a prompt.

    ``embed``: phrases to unit vectors. The claims, in ``CLAIM`` and ``TESTED``, are the ``axes`` that were said of most
    pairs; ``scores`` of a confirmed one are 1 for a held-out text that shows it more than its partner, 0.5 for a tie, 0
    otherwise. Raises BudgetError at the cap.
    """
    begun, texts, prompts = time.monotonic(), harvest.texts, harvest.prompts.by_id()
    seen = texts["split"] == "discover"
    shown = pairs_to_show(texts[seen], prompts, pairs, f"{seed} shown")
    later = pairs_to_show(texts[~seen], prompts, held, f"{seed} held")
    said = differences(chat, shown, seed)
    found = merged([phrase(q.reply or "") for q in said], embed)[:axes]
    asked, won = verdicts(chat, later, found)
    more, less = (won > 0).sum(axis=0), (won < 0).sum(axis=0)
    p = [float(binomtest(int(m), int(m + n)).pvalue) if m + n else 1.0 for m, n in zip(more, less, strict=True)]
    q = false_discovery_control(p, method="bh") if p else []
    rows = []
    for i, axis in enumerate(found):
        direction, confirmed = ("intervention" if more[i] >= less[i] else "base"), bool(q[i] <= alpha)
        scores = dict(zip(later["intervention_id"], (1 + won[:, i]) / 2, strict=True))
        scores |= dict(zip(later["base_id"], (1 - won[:, i]) / 2, strict=True))
        claim = (axis, direction, -1, [], confirmed, {"kind": "judge"}, scores if confirmed else None)
        rows.append((*claim, int(more[i]), int(less[i]), p[i], float(q[i])))
    read = texts[texts["text_id"].isin([i for t in (shown, later) for s in ORDERS[0] for i in t[f"{s}_id"]])]
    paid = bill(harvest, read, Rung(NAME, "uniform"), Known())
    paid.calls, paid.usd = len(said) + len(asked), (prices or Prices()).usd([q.body for q in (*said, *asked)])
    paid.embed, paid.compute = 0.0, time.monotonic() - begun
    return Outcome(NAME, len(read) / len(texts), pd.DataFrame(rows, columns=[*CLAIM, *TESTED]), NO_CLUSTERS, {}, paid)


def differences(chat: Chat, pairs: pd.DataFrame, seed: int) -> list[Question]:
    """Each pair with what is said to differ; its order is drawn. ``pairs``: a table of ``pairs_to_show``."""
    asked = []
    for row in pairs.itertuples():
        sides = ORDERS[hashlib.sha256(f"{seed} order {row.prompt_id}".encode()).digest()[0] % 2]
        asked.append(Question(chat, f"{_material(row, sides)}\n\n{DIFFERS}", sides))
    chat.converse(asked)
    return asked


def phrase(reply: str) -> str:
    """What a reply says first that one answer does, without the names of the answers, which those of any other pair
    have too; empty where it says nothing."""
    said = statement(_OTHER.split(_NAMED.sub("", reply.strip().partition("\n")[0]))[0])
    return said if 3 <= len(said) <= LONGEST else ""


def merged(phrases: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]) -> list[str]:
    """Axes: phrases that say the same are one, called by its most frequent and then its shortest; most said first."""
    said = [p for p in phrases if p]
    groups = [0] * len(said)
    if len(said) > 1:
        linked = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - SAME)
        groups = linked.fit_predict(np.asarray(embed(said), float)).tolist()
    own = [Counter(p for p, g in zip(said, groups, strict=True) if g == number) for number in dict.fromkeys(groups)]
    return [min(c, key=lambda p: (-c[p], len(p), p)) for c in sorted(own, key=lambda c: -c.total())]


def verdicts(chat: Chat, pairs: pd.DataFrame, axes: Sequence[str]) -> tuple[list[Question], np.ndarray]:
    """All questions, and int ``[pairs, axes]``: 1 where the changed answer shows an axis more by the verdicts of both
    orders together (one and a tie is one), -1 where the base's does, else 0."""
    asked = [
        Question(chat, f"{_material(row, sides)}\n\n{SHOWS.format(axis=axis)}", sides)
        for row in pairs.itertuples()
        for sides in ORDERS
        for axis in axes
    ]
    chat.converse(asked)
    sign = {"intervention": 1, "base": -1, None: 0}
    one, two = np.array([sign[q.side] for q in asked], int).reshape(len(pairs), 2, len(axes)).transpose(1, 0, 2)
    return asked, np.sign(one + two)


def _material(row: Any, sides: Sequence[str]) -> str:
    answers = ((who, getattr(row, side)[:SHOWN]) for who, side in zip("AB", sides, strict=True))
    return fenced(("prompt", row.prompt[:500]), *answers)


# ---------------------------------------------------------------------------------------------------- beside the others


def opened(spec: Mapping[str, Any] | None, ledger: Ledger, cache: Path, root: Path, progress: Any) -> Chat | None:
    """The language model that a judge's parameters name; None for none. Raises DriftbookError for one that is none."""
    if spec is None:
        return None
    told = judge_of(spec)
    if not isinstance(told, Told):
        raise DriftbookError(f"bench.pairwise.judge: {told.kind} is no language model; use endpoint or local")
    return told.talk(JudgeOpening("pairwise", ledger, cache, root, progress))


def on_plants(
    harvests: Sequence[Harvest], plants: Sequence[str], chat: Chat | None, *how: Any, **more: Any
) -> list[tuple[int, Outcome]]:
    """:func:`pairwise` on the plants of these labels: (number of the harvest, outcome); none without a model. Raises
    DriftbookError for a label that no harvest has."""
    numbers = {h.plant.label: n for n, h in enumerate(harvests)}
    if missing := [p for p in plants if p not in numbers]:
        raise DriftbookError(f"bench.pairwise.plants: {missing[0]!r} is none of {', '.join(numbers)}")
    return [(numbers[p], pairwise(harvests[numbers[p]], chat, *how, **more)) for p in plants] if chat else []


def beside(rows: Sequence[Mapping[str, Any]], table: pd.DataFrame, rungs: Sequence[str]) -> pd.DataFrame:
    """Rows of ``scoring.score`` and those of ``rungs`` on the same plants, at their largest budget, from ``table``."""
    own = pd.DataFrame(rows, columns=list(table.columns))
    others = table[table["rung"].isin(rungs) & (table["budget"] == table.groupby("rung")["budget"].transform("max"))]
    same = others.merge(own[["plant", "strength"]], on=["plant", "strength"])
    both = pd.concat([own, same], ignore_index=True) if len(own) else own
    return both.sort_values(["plant", "strength"], kind="stable", ignore_index=True)


def axes_of(found: Sequence[tuple[int, Outcome]], harvests: Sequence[Harvest]) -> pd.DataFrame:
    """Every axis that was tested, with the plant that it was found in."""
    columns = ["plant", "text", "direction", *TESTED, "confirmed"]
    parts = [o.claims.assign(plant=harvests[n].plant.label)[columns] for n, o in found]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def metrics(rows: pd.DataFrame) -> dict[str, float]:
    """``pairwise_*`` of ``metrics.json``, from the table of :func:`beside`; nothing where no model was given."""
    own = rows[rows["rung"] == NAME]
    if own.empty:
        return {}
    told = ("recall", "recall_low", "recall_high", "claims", "claims_of_nothing", "texts", "calls")
    summed = scoring.summary(own.assign(budget=1.0)).iloc[0]
    return {f"pairwise_{k}": float(summed[k]) for k in told} | {"pairwise_plants": float(len(own))}
