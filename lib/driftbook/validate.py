"""Validate: which differences survive on prompts that nobody has looked at?

The notebook calls, in order: ``load``, ``open_judges``, ``label``, ``freeze``, ``bill``, ``screen``, ``holdout_test``,
``rivals``, ``claims_table``, ``write``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import MIN_STABILITY, Hypothesis, from_frame, merge
from driftbook.errors import DriftbookError
from driftbook.evidence import labeller
from driftbook.evidence.cascade import Screening, Tested, audit, caution, holdout_test, screen
from driftbook.evidence.claims import claims_table
from driftbook.evidence.judges import Judge
from driftbook.evidence.ledger import Ledger
from driftbook.evidence.material import Material
from driftbook.evidence.panel import Embed, Judges, open_embedder, open_endpoint, open_judge
from driftbook.evidence.report import answer, beside_rivals, e_paths, side_by_side, threshold
from driftbook.evidence.rivals import Rivals, bag_of_words, embedding_classifier
from driftbook.scale import open_workers

if TYPE_CHECKING:
    from driftbook.workbook.parameters import Judge as JudgeSpec
    from driftbook.workbook.parameters import Validate
    from driftbook.workbook.runs import Run

__all__ = [
    "Judges",
    "Material",
    "Rivals",
    "Screening",
    "Tested",
    "answer",
    "audit",
    "beside_rivals",
    "bill",
    "caution",
    "claims_table",
    "e_paths",
    "freeze",
    "holdout_test",
    "label",
    "load",
    "open_embedder",
    "open_judges",
    "open_workers",
    "rivals",
    "screen",
    "side_by_side",
    "threshold",
    "trait_shift",
    "write",
]


# ----------------------------------------------------------------------------------------------------------------- load


def person_hypotheses(section: Validate) -> list[Hypothesis]:
    """Hypotheses that a person wrote into the parameter file."""
    return [
        Hypothesis(h.text, h.direction, proposer="person", words=tuple(h.words)) for h in section.hypotheses if h.text
    ]


def load(run: Run) -> Material:
    """Texts of the decode stage, hypotheses of the cluster stage and of the parameter file (near-duplicates merged).

    Raises DriftbookError when there is nothing to validate on, or when held-out texts were not sampled uniformly.
    """
    decode, cluster = run.input("decode"), run.input("cluster")
    texts = pd.read_parquet(
        decode / "texts.parquet", columns=["text_id", "side", "prompt_id", "split", "propensity", "text"]
    ).sort_values("text_id", kind="stable", ignore_index=True)
    prompts = pd.read_parquet(decode / "prompts.parquet", columns=["prompt_id", "text"])
    proposed = from_frame(pd.read_parquet(cluster / "hypotheses.parquet"))
    check_held_out(texts)
    found = merge([*person_hypotheses(run.section), *proposed])
    return Material(texts, dict(zip(prompts["prompt_id"], prompts["text"], strict=True)), found, run.seed)


def check_held_out(texts: pd.DataFrame) -> None:
    """Refuse a validate split that no test can use. Raises DriftbookError."""
    held = texts[texts["split"] == "validate"]
    both = held.groupby("prompt_id")["side"].nunique()
    if not (both == 2).any():
        raise DriftbookError(
            "no prompt of split validate has answers of both sides: raise decode.splits.validate or decode.max_prompts"
        )
    if held["propensity"].nunique() > 1:
        raise DriftbookError(
            "texts of split validate were sampled with unequal propensity: they must come from one fixed design"
        )


def label(run: Run, material: Material, ledger: Ledger) -> Material:
    """With ``labeller: llm``, the same material with the hypotheses of a language model that read split discover.

    They come before those of the cluster stage, and near-duplicates are merged. With ``labeller: keywords`` nothing
    changes.
    """
    section = run.section
    if section.labeller == "keywords":
        return material
    spec = section.labeller_judge
    if spec is None or spec.kind != "endpoint":
        raise DriftbookError("validate.labeller is llm: set validate.labeller_judge to a judge of kind endpoint")
    endpoint = open_endpoint(spec, f"{spec.model} (labeller)", ledger, run.progress)
    seen = material.texts[material.texts["split"] == "discover"]
    folder = run.input("cluster")
    table = pd.read_parquet(folder / "composition.parquet", columns=["cluster", "stability"])
    stable = table.loc[(table["cluster"] >= 0) & (table["stability"] >= MIN_STABILITY), "cluster"]
    members = seen.merge(pd.read_parquet(folder / "clusters.parquet", columns=["text_id", "cluster"]), on="text_id")
    clusters = {int(c): members[members["cluster"] == c] for c in stable}
    found = labeller.propose(endpoint, seen, material.prompts, clusters, seed=material.seed)
    persons = [h for h in material.hypotheses if h.proposer == "person"]
    others = [h for h in material.hypotheses if h.proposer != "person"]
    return replace(material, hypotheses=merge([*persons, *found, *others]))


# --------------------------------------------------------------------------------------------------------------- judges


def open_judges(run: Run, material: Material) -> Judges:
    """The judges of the parameter file, with the verdict cache that all experiments share and the cap of this run."""
    section = run.section
    ledger = Ledger(run.cache / "verdicts" / "answers.sqlite", section.budget_usd)
    workers = open_workers(run.params)

    def judge(spec: JudgeSpec, role: str) -> Judge:
        # a judge that also tests is asked batch by batch, under the bar of the test
        bar = run.progress if role == "cheap" and section.judges.expensive else None
        opened = open_judge(spec, role, material, ledger, run.cache, run.root, bar, workers)
        _ = ledger.accounts[opened.name]  # a judge that made no call has its line in the ledger too
        return opened

    expensive = section.judges.expensive
    cheap = judge(section.judges.cheap, "cheap")
    return Judges(cheap, judge(expensive, "expensive") if expensive else None, ledger)


# --------------------------------------------------------------------------------------------------------------- freeze


def freeze(material: Material, judges: Judges, section: Validate) -> pd.DataFrame:
    """One row per hypothesis with the sha256 of all that defines its test, taken before any held-out text is judged."""
    rows = []
    for h in material.hypotheses:
        sealed = {
            "text": h.text,
            "direction": h.direction,
            "words": list(h.words),
            "evidence": list(h.evidence),
            "cheap": dict(judges.cheap.identity),
            "tester": dict(judges.tester.identity),
            "margin": section.margin,
            "alpha": section.alpha,
            "cascade": section.cascade,
            "screen_level": section.screen_level,
            "seed": material.seed,
        }
        digest = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        rows.append((h.hypothesis_id, h.text, h.direction, h.proposer, h.cluster, list(h.words), digest))
    names = ["hypothesis_id", "text", "direction", "proposer", "cluster", "words", "frozen"]
    return pd.DataFrame(rows, columns=names)


def bill(material: Material, judges: Judges, section: Validate) -> pd.DataFrame:
    """Dry run: the most that each step may cost, before the first call. Sequential tests usually stop far earlier."""
    rows = []
    for step, judge in (("screen", judges.cheap), ("validate", judges.tester)):
        held = material.held_out(step)
        prompts = [held.prompts.get(p, "") for p in held.texts["prompt_id"]]
        skipped = step == "screen" and section.cascade != "screen_then_test"
        hypotheses = [] if skipped else material.hypotheses
        quote = asdict(judge.quote(held.texts["text"].tolist(), hypotheses, prompts))
        rows.append(
            {"step": step, "judge": judge.name, "texts": len(held.texts), "hypotheses": len(hypotheses), **quote}
        )
    return pd.DataFrame(rows).assign(budget_usd=section.budget_usd)


# --------------------------------------------------------------------------------------------------------------- rivals


def rivals(material: Material, embed: Embed) -> Rivals:
    """Train the rivals on split discover and let them score the texts of split validate."""
    train, test_ = material.texts[material.texts["split"] == "discover"], material.held_out("validate").texts
    changed = (train["side"] == "intervention").to_numpy()
    if changed.all() or not changed.any():
        raise DriftbookError("split discover holds texts of one side only: there is nothing for a rival to learn from")

    def pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
        return [(t, material.prompts.get(p, "")) for t, p in zip(table["text"], table["prompt_id"], strict=True)]

    words = bag_of_words(pairs(train), changed, pairs(test_))
    meaning = embedding_classifier(embed(train["text"].tolist()), changed, embed(test_["text"].tolist()))
    ids = test_["text_id"].tolist()
    return Rivals(dict(zip(ids, words.tolist(), strict=True)), dict(zip(ids, meaning.tolist(), strict=True)))


def trait_shift(run: Run, claims: pd.DataFrame) -> pd.DataFrame:
    """Where inside the change shows: shift of each trait in the cluster that a confirmed claim comes from, largest
    first.

    Columns: claim, cluster, trait, shift, low, high. Empty where the cluster stage measured none.
    """
    path = run.input("cluster") / "trait_shift.parquet"
    names = ["claim", "cluster", "trait", "shift", "low", "high"]
    mine = claims.loc[claims["confirmed"] & (claims["cluster"] >= 0), ["text", "cluster"]].rename(
        columns={"text": "claim"}
    )
    if mine.empty or not path.is_file():
        return pd.DataFrame(columns=names)
    table = mine.merge(pd.read_parquet(path), on="cluster")
    return table.sort_values("shift", key=np.abs, ascending=False, kind="stable", ignore_index=True)[names]


# ---------------------------------------------------------------------------------------------------------------- write


def write(
    folder: Path,
    frozen: pd.DataFrame,
    screening: Screening,
    tested: Tested,
    claims: pd.DataFrame,
    judges: Judges,
    section: Validate,
) -> dict[str, float]:
    """Write the tables of the stage into ``folder``; returns its metrics."""
    verdicts = pd.concat([t for t in (screening.verdicts, tested.verdicts()) if len(t)] or [screening.verdicts])
    tables = {
        "frozen": frozen,
        "screening": screening.table,
        "verdicts": verdicts,
        "claims": claims,
        "ledger": judges.ledger.table(),
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
    accounts = judges.ledger.accounts

    def calls(judge: Judge) -> int:
        return accounts[judge.name].calls

    return {
        "hypotheses": len(frozen),
        "screened_out": int((~screening.table["survives"]).sum()),
        "tested": len(tested.hypotheses),
        "confirmed": int(claims["confirmed"].sum()),
        "beat_rivals": int((claims["confirmed"] & claims["beats_rivals"]).sum()),
        "alpha": section.alpha,
        "prompts": len(tested.prompts),
        "calls_cheap": calls(judges.cheap),
        "calls_expensive": calls(judges.expensive) if judges.expensive else 0,
        "calls_cached": sum(a.cached for a in accounts.values()),
        "cost_usd": judges.ledger.spent,
        "saved_usd": sum(a.usd_saved for a in accounts.values()),
        "missing_share": float(verdicts["missing"].mean()) if len(verdicts) else 0.0,
    }
