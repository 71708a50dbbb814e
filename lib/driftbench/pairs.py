"""Real pairs: tables of answers of two models through the stages as users run them, held against plain counting.

Each table is one experiment of kind ``texts``: decode (a table), cluster, validate, by the real runner. What is said is
then counted again (``driftbench.plain``): is every confirmed claim borne out, is every plain difference told, does the
verdict name the largest?
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from driftbench import plain
from driftbook.discovery.hypotheses import Hypothesis, from_frame
from driftbook.errors import DriftbookError
from driftbook.prompts import SIDES
from driftbook.workbook.runner import run_stage
from driftbook.workbook.runs import RUN_FILE, Layout, read_json

STAGES = ("decode", "cluster", "validate")
# What only short answers do tells of a length of the other side.
SHORT: Mapping[str, str] = {"is_brief": "length_words", "is_one_sentence": "length_sentences"}


@dataclass(frozen=True)
class Told:
    """What was said of one pair: the table of claims, the proposals behind them, the verdict, seconds of each stage."""

    name: str
    table: pd.DataFrame
    claims: pd.DataFrame
    hypotheses: dict[str, Hypothesis]
    lines: list[str]
    strongest: list[str]
    seconds: dict[str, float]


def open_folder(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The tables of a folder, by name, or those of them that are named. None where the folder is not there: the bench
    then skips. Raises DriftbookError for a folder without a table and for a name that is not there."""
    if not folder.is_dir():
        return []
    found = {p.stem: p for p in sorted(folder.glob("*.parquet"))}
    unknown = [name for name in only if name not in found]
    if not found or unknown:
        missing = f"no table {unknown[0]!r}" if unknown else "no .parquet table"
        raise DriftbookError(f"bench.folder {folder}: {missing} is there; there are {', '.join(found) or 'none'}")
    return [path for name, path in found.items() if not only or name in only]


def tell(path: Path, root: Path, cache: Path, seed: int) -> Told:
    """Run one table through decode, cluster and validate, in a repository of its own that shares ``cache``.

    Raises DriftbookError, with the reason, where a stage fails.
    """
    frame = pd.read_parquet(path)
    answers = int(frame.groupby(["side", "prompt"]).size().max())
    experiment = {
        "experiment": "pair",
        "seed": seed,
        "names": {"base": f"{path.stem}, before", "changed": f"{path.stem}, after"},
        "intervention": {"kind": "texts", "path": str(path.resolve())},
        "decode": {
            "screen": {"enabled": False},
            "sampling": {"strategy": "exhaustive", "max_texts": max(4, 2 * answers * frame["prompt"].nunique())},
        },
        "cluster": {"trait_shift": False},
    }
    with tempfile.TemporaryDirectory() as place:
        there = Path(place)
        (there / "params").mkdir()
        (there / "outputs").mkdir()
        for name in ("notebooks", "params/prompts", "params/traits"):
            (there / name).symlink_to(root / name)
        (there / "outputs/.cache").symlink_to(cache)
        file = there / "params/pair.yml"
        file.write_text(yaml.safe_dump(experiment, sort_keys=False))
        seconds: dict[str, float] = {}
        for stage in STAGES:
            begun = time.monotonic()
            result = run_stage(file, stage, echo=False)
            seconds[stage] = time.monotonic() - begun
            if not result.good:
                raise DriftbookError(f"{path.name}: {stage} failed: {result.reason}")
        layout = Layout.of(there)
        data = {stage: layout.stage("pair", stage) for stage in STAGES}
        claims = pd.read_parquet(data["validate"] / "data/claims.parquet")
        found = from_frame(pd.read_parquet(data["cluster"] / "data/hypotheses.parquet"))
        record = read_json(data["validate"] / RUN_FILE)["verdict"]
    by_id = {h.hypothesis_id: h for h in found}
    return Told(path.stem, frame, claims, by_id, record["lines"], record["strongest"], seconds)


RECOUNTED = ("pair", "claim", "direction", "base", "intervention", "p", "borne_out")


def recount(told: Told) -> pd.DataFrame:
    """Every confirmed claim, counted again where plain counting can: claim, direction, fact (base, intervention, p),
    ``borne_out`` (True, False, or None where nothing here counts it)."""
    counted = {f.name: f for f in plain.facts(told.table)}
    rows = []
    for claim in told.claims[told.claims["confirmed"].eq(True)].itertuples():
        found = _fact_of(claim, told, counted)
        borne = None if found is None else bool(found.side == claim.direction and found.p < plain.HELD)
        numbers = (None, None, None) if found is None else (found.base, found.intervention, found.p)
        rows.append((told.name, claim.claim, claim.direction, *numbers, borne))
    return pd.DataFrame(rows, columns=list(RECOUNTED))


def no_claims() -> pd.DataFrame:
    """The table of ``recount`` where nothing was told."""
    return pd.DataFrame(columns=list(RECOUNTED))


def _fact_of(claim, told: Told, counted: Mapping[str, plain.Fact]) -> plain.Fact | None:
    if claim.measure in plain.SHARES_OF:
        return counted[plain.SHARES_OF[claim.measure]]
    if claim.proposer == "words":
        return plain.phrase_fact([claim.text.removeprefix('says "').removesuffix('"')], "anywhere", told.table)
    proposal = told.hypotheses.get(claim.hypothesis_id)
    measure = proposal.measure if proposal is not None else None
    if measure and measure.get("kind") == "words":
        return plain.phrase_fact(measure["words"], measure.get("place", "anywhere"), told.table)
    return None


def missed(told: Told) -> list[plain.Fact]:
    """The plain differences that no confirmed claim tells: the same behaviour on the same side."""
    good = told.claims[told.claims["confirmed"].eq(True)]
    said = set(zip(good["measure"], good["direction"], strict=True))
    facts = [f for f in plain.facts(told.table) if f.plain]
    return [f for f in facts if not any((name, f.side) in said for name in plain.BESIDE[f.name])]


def largest(told: Told, most: int = 3) -> list[plain.Fact]:
    """The largest plain differences: shares by points, sizes by the part that they changed by."""
    facts = [f for f in plain.facts(told.table) if f.plain]
    return sorted(facts, key=lambda f: -f.size)[:most]


def named(told: Told) -> bool:
    """Whether the verdict names the change: one of the largest plain differences on its side, or something that moved
    by more points than any of them."""
    first, facts = told.claims[told.claims["hypothesis_id"].isin(told.strongest)], largest(told)
    said = set(zip(first["measure"], first["direction"], strict=True))
    said |= {(SHORT[name], SIDES[side == SIDES[0]]) for name, side in said if name in SHORT}
    if any((name, fact.side) in said for fact in facts for name in plain.BESIDE[fact.name]):
        return True
    points = first.loc[first["unit"] == "share", "difference"].abs()
    return bool(facts and (points >= facts[0].size).any())


COUNTS = ("pair", "prompts", "claims", "recounted", "wrong", "plain_differences", "missed", "named", "seconds")
COLUMNS = (*COUNTS, "verdict", "facts", "which_wrong", "which_missed")


def summary(told: Told) -> dict[str, object]:
    """One row of the bench: what was claimed, what counting says of it, what was missed, whether it was named."""
    again, plainly = recount(told), [f for f in plain.facts(told.table) if f.plain]
    wrong = again[again["borne_out"].eq(False)]
    return {
        "pair": told.name,
        "prompts": int(told.claims["prompts"].max()) if len(told.claims) else 0,
        "claims": len(again),
        "recounted": int(again["borne_out"].notna().sum()),
        "wrong": len(wrong),
        "plain_differences": len(plainly),
        "missed": len(missed(told)),
        "named": named(told) if plainly else None,
        "seconds": sum(told.seconds.values()),
        "verdict": told.lines[0],
        "facts": "; ".join(f.sentence for f in largest(told)) or "no plain difference",
        "which_wrong": "; ".join(wrong["claim"]),
        "which_missed": "; ".join(f.sentence for f in missed(told)),
    }


def answer(rows: pd.DataFrame, folder: Path) -> str:
    """The answer of the bench in a sentence, or why it was skipped."""
    if rows.empty:
        return f"Skipped: {folder} is not there; name a folder of paired answers as bench.folder."
    m = metrics(rows)
    return (
        f"Of {m['claims_recounted']} confirmed claims that can be counted again {m['wrong_claims']} are wrong; of "
        f"{m['plain_differences']} plain differences {m['missed_10_points']} are told by no claim; the verdict names "
        f"the change in {m['pairs_named']} of {m['pairs_changed']} changed pairs."
    )


def metrics(rows: pd.DataFrame) -> dict[str, float]:
    """The flat figures of the bench. A pair without a plain difference is near-null: hardly anything may be claimed."""
    changed, near = rows[rows["plain_differences"] > 0], rows[rows["plain_differences"] == 0]
    return {
        "pairs": len(rows),
        "claims": int(rows["claims"].sum()),
        "claims_recounted": int(rows["recounted"].sum()),
        "wrong_claims": int(rows["wrong"].sum()),
        "plain_differences": int(rows["plain_differences"].sum()),
        "missed_10_points": int(rows["missed"].sum()),
        "pairs_named": int(changed["named"].eq(True).sum()),
        "pairs_changed": len(changed),
        "near_null_claims": int(near["claims"].max()) if len(near) else 0,
        "seconds_per_pair": float(rows["seconds"].mean()) if len(rows) else 0.0,
        "seconds_worst_pair": float(rows["seconds"].max()) if len(rows) else 0.0,
    }


def written(rows: pd.DataFrame) -> str:
    """The verdicts beside their facts, as Markdown."""
    parts = ["| pair | the verdict | what plain counting finds largest |", "|---|---|---|"]
    parts += [f"| {r.pair} | {r.verdict} | {r.facts} |".replace("\n", " ") for r in rows.itertuples()]
    return "\n".join(parts) + "\n"


def save(rows: pd.DataFrame, again: pd.DataFrame, data: Path) -> None:
    """``pairs.parquet``, ``claims.parquet`` and ``verdicts.md`` of the bench."""
    rows.to_parquet(data / "pairs.parquet", index=False)
    again.to_parquet(data / "claims.parquet", index=False)
    (data / "verdicts.md").write_text(written(rows), encoding="utf-8")
    (data / "rows.json").write_text(json.dumps(json.loads(rows.to_json(orient="records")), indent=1))
