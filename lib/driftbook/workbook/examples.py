"""The answers behind the claims: who shows what on which prompt, and pairs in which a reader sees it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from driftbook.behaviours.marks import Piece, Span, excerpt, marker, placed
from driftbook.behaviours.words import stream_safe
from driftbook.discovery.amplification import ordinary
from driftbook.prompts import SIDES, Prompt, load_saved
from driftbook.workbook.claims import Findings, parameters, read_table
from driftbook.workbook.wording import shorten

CLAIMS = 30  # whose scores and marks the pages hold
SHOWN = 5  # claims of which the front page shows pairs
EACH = 2  # pairs of each
TRIED = 40  # pairs of a claim that are looked at for a short one
FEWEST = 5  # prompts of a kind, for saying whether a claim holds there
COLUMNS = [
    *("text_id", "side", "prompt_id", "family", "split", "sample_index", "round"),
    *("text", "finish_reason", "engine"),
]


@dataclass(frozen=True)
class Pair:
    """One prompt with an excerpt of an answer of each model; one of them shows what claim ``n`` says."""

    n: int
    claim: str
    prompt: str
    sides: tuple[list[Piece], list[Piece]]
    answer: str
    """The id of the answer that shows it."""


class Material:
    """The answers of an experiment and what its claims read in them.

    ``texts`` has the columns of *decode* that pages need, sorted as they were made; ``prompts`` its table of prompts,
    ``asked`` the prompts by id.
    """

    def __init__(self, experiment: Path, findings: Findings | None) -> None:
        data = experiment / "decode" / "data"
        self.findings = findings
        self.there = (data / "texts.parquet").is_file() and (data / "prompts.parquet").is_file()
        texts = read_table(data / "texts.parquet") if self.there else pd.DataFrame(columns=COLUMNS)
        texts = ordinary(texts) if "strength" in texts else texts
        self.texts = texts[[c for c in COLUMNS if c in texts]]
        self.prompts = read_table(data / "prompts.parquet") if self.there else pd.DataFrame()
        self.asked: dict[str, Prompt] = dict(load_saved(data)) if self.there else {}
        self._marked: dict[tuple[str, str, str], list[Span]] = {}
        self.verdicts = experiment / "validate" / "data" / "verdicts.parquet"

    @cached_property
    def claims(self) -> pd.DataFrame:
        """The confirmed claims that pages tell of, in their order."""
        return self.findings.moved.head(CLAIMS) if self.findings is not None else pd.DataFrame()

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Claim to prompt id, score_base and score_intervention, where both were read. What a judge read on the prompts
        of its screen is no evidence."""
        if not len(self.claims) or not self.verdicts.is_file():
            return {}
        table = pd.read_parquet(self.verdicts, filters=[("hypothesis_id", "in", self.claims["hypothesis_id"].tolist())])
        if not {"score_base", "score_intervention"} <= set(table):
            return {}
        if "split" in table:
            table = table[(table["split"] != "screen") | (table["judge"] == "counting")]
        table = table.dropna(subset=["score_base", "score_intervention"])
        means = table.groupby(["hypothesis_id", "prompt_id"], sort=False)[["score_base", "score_intervention"]].mean()
        return {str(i): own.droplevel(0).reset_index() for i, own in means.groupby(level=0, sort=False)}

    @cached_property
    def markers(self) -> dict[str, Callable[[str, str], list[Span]] | None]:
        """Claim to what marks its evidence in a text."""
        specs = self.findings.specs if self.findings is not None else {}
        ids = self.claims["hypothesis_id"] if len(self.claims) else []
        return {i: marker(specs[i]) if i in specs else None for i in ids}

    @cached_property
    def answers(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """(prompt id, side) to the (text id, text) of its answers."""
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for row in self.texts.itertuples():
            found.setdefault((row.prompt_id, row.side), []).append((row.text_id, stream_safe(row.text)))
        return found

    def showing(self, claim: str, direction: str) -> pd.DataFrame:
        """Prompts on which one model shows a claim more than the other, the clearest first; ``direction`` says who."""
        table = self.scores.get(claim)
        if table is None:
            return pd.DataFrame(columns=["prompt_id", "by"])
        by = table["score_intervention"] - table["score_base"]
        by = by if direction == "intervention" else -by
        return table.assign(by=by)[by > 0].sort_values("by", ascending=False, kind="stable")

    def marks(self, claim: str, prompt_id: str, text: str) -> list[Span]:
        find, key = self.markers.get(claim), (claim, prompt_id, text)
        if find is not None and key not in self._marked:
            self._marked[key] = find(text, self.asked[prompt_id].said())
        return self._marked.get(key, [])

    def holds_in(self, claim: str) -> tuple[int, int]:
        """In how many kinds of prompts, of those with enough prompts, a claim goes the same way."""
        table, own = self.scores.get(claim), self.claims[self.claims["hypothesis_id"] == claim]
        if table is None or "family" not in self.prompts or own.empty:
            return 0, 0
        family = table["prompt_id"].map(self.prompts.set_index("prompt_id")["family"])
        by = (table["score_intervention"] - table["score_base"]).groupby(family)
        means = by.mean()[by.size() >= FEWEST]
        sign = 1 if own["direction"].iloc[0] == "intervention" else -1
        return int((sign * means > 0).sum()), len(means)


def pairs_to_read(material: Material) -> list[Pair]:
    """Pairs for the front page: claim by claim in turn, each prompt once, short ones first. One model's answer shows
    the claim and the other's does not, by what the measure reads in the very texts."""
    taken: set[str] = set()
    by_claim = [_pairs_of(material, row, taken) for _, row in material.claims.head(SHOWN).iterrows()]
    return [own[k] for k in range(EACH) for own in by_claim if len(own) > k]


def _pairs_of(material: Material, claim: pd.Series, taken: set[str]) -> list[Pair]:
    name, direction = claim["hypothesis_id"], claim["direction"]
    other = next(s for s in SIDES if s != direction)
    tried = []
    for prompt_id in material.showing(name, direction).head(TRIED)["prompt_id"]:
        if prompt_id in taken or prompt_id not in material.asked:
            continue
        mine, theirs = (material.answers.get((prompt_id, s), []) for s in (direction, other))
        if not mine or not theirs:
            continue
        (text_id, text), (_, beside) = mine[0], theirs[0]
        spans = material.marks(name, prompt_id, text)
        if (material.markers.get(name) is not None and not spans) or material.marks(name, prompt_id, beside):
            continue
        tried.append((len(text) + len(beside) + 3 * len(material.asked[prompt_id].shown()), prompt_id, text_id, spans))
    found = []
    for _, prompt_id, text_id, spans in sorted(tried, key=lambda t: t[:2])[:EACH]:
        taken.add(prompt_id)
        text = dict(material.answers[prompt_id, direction])[text_id]
        spec = material.findings.specs.get(name, {}) if material.findings is not None else {}
        spans = spans or placed(text, str(spec.get("place"))) if spec.get("kind") == "group" else spans
        near = spans[0][0] / max(1, len(text)) if spans else 0.0
        beside = excerpt(material.answers[prompt_id, other][0][1], [], near=1.0 if near > 0.7 else 0.0)
        own = excerpt(text, spans)
        sides = (own, beside) if direction == "base" else (beside, own)
        found.append(
            Pair(
                int(claim["n"]), shorten(claim["text"], 120), material.asked[prompt_id].shown()[:300], sides, text_id
            )
        )
    return found


def who_shows(scores: pd.DataFrame, prompts: Sequence[str]) -> str:
    """A character a prompt: b or c where the base or the changed model shows more, = where both show as much, a point
    where neither does, a space where it was not read."""
    by = scores.set_index("prompt_id")[["score_base", "score_intervention"]].reindex(list(prompts)).to_numpy(float)
    base, changed = by[:, 0], by[:, 1]
    said = np.select([np.isnan(base), base > changed, changed > base, base > 0], [" ", "b", "c", "="], ".")
    return "".join(said.tolist())


def null_run(experiment: Path, base: Mapping[str, object]) -> tuple[str, int, int] | None:
    """An experiment beside this one with the same base on both sides: its name, claims confirmed, claims tested."""
    for folder in sorted(p for p in experiment.parent.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder == experiment or not (folder / "validate" / "data" / "claims.parquet").is_file():
            continue
        params = parameters(folder)
        if (params.get("intervention") or {}).get("kind") == "none" and params.get("base") == base:
            claims = read_table(folder / "validate" / "data" / "claims.parquet")
            return folder.name, int(claims["confirmed"].sum()), len(claims)
    return None
