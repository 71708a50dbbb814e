"""Validate: which differences survive on prompts that nobody has looked at?

The notebook calls, in order: ``load``, ``open_judges``, ``label``, ``freeze``, ``bill``, ``screen``, ``holdout_test``,
``audit``, ``coherence``, ``rivals``, ``beside_rivals``, ``claims_table``, ``transfer``, ``generative_check``,
``flagged``, ``write``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import MIN_STABILITY, Hypothesis, from_frame, merge, moved_answers
from driftbook.errors import DriftbookError
from driftbook.evidence import generative, labeller
from driftbook.evidence.baselines import NAMES, BagOfWords, Rivals, embedding_classifier, length_scores
from driftbook.evidence.cascade import Screening, Tested, alone_and_together, audit, caution, holdout_test, screen
from driftbook.evidence.claims import beside_rivals, claims_table, share_together
from driftbook.evidence.intervals import bootstrap_mean
from driftbook.evidence.judges import Judge
from driftbook.evidence.material import Material
from driftbook.evidence.opened import (
    COHERENT,
    Embed,
    Judges,
    open_coherence,
    open_embedder,
    open_judge,
    open_labeller,
    open_unlabelled,
)
from driftbook.evidence.reading import read
from driftbook.evidence.report import answer, areas, e_paths, side_by_side, threshold
from driftbook.evidence.transfer import clusters_near, outside, transfer
from driftbook.ledger import Ledger
from driftbook.prompts import load_saved
from driftbook.scale import open_workers

if TYPE_CHECKING:
    from driftbook.parameters import Judge as JudgeSpec
    from driftbook.parameters import Validate
    from driftbook.workbook.runs import Run

__all__ = [
    "Judges",
    "Material",
    "Rivals",
    "Screening",
    "Tested",
    "alone_and_together",
    "answer",
    "areas",
    "audit",
    "beside_rivals",
    "bill",
    "caution",
    "claims_table",
    "coherence",
    "e_paths",
    "flagged",
    "freeze",
    "generative_check",
    "holdout_test",
    "label",
    "load",
    "near_clusters",
    "open_embedder",
    "open_judges",
    "open_workers",
    "read_unlabelled",
    "rivals",
    "screen",
    "share_together",
    "side_by_side",
    "threshold",
    "trait_shift",
    "transfer",
    "write",
]


PROMPTS_BESIDE = 60  # that a paid judge reads for what stands beside claims: coherence, and sides without a label


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
        decode / "texts.parquet", columns=["text_id", "side", "prompt_id", "family", "split", "propensity", "text"]
    ).sort_values("text_id", kind="stable", ignore_index=True)
    proposed = from_frame(pd.read_parquet(cluster / "hypotheses.parquet"))
    check_held_out(texts)
    found = merge([*person_hypotheses(run.section), *proposed])
    return Material(texts, load_saved(decode), found, run.seed)


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
    assert spec is not None  # the parameter model has checked it
    endpoint = open_labeller(spec, ledger, run.cache, run.progress)
    seen = material.texts[material.texts["split"] == "discover"]
    folder = run.input("cluster")
    table = pd.read_parquet(folder / "composition.parquet", columns=["cluster", "stability"])
    stable = table.loc[(table["cluster"] >= 0) & (table["stability"] >= MIN_STABILITY), "cluster"]
    members = seen.merge(pd.read_parquet(folder / "clusters.parquet", columns=["text_id", "cluster"]), on="text_id")
    clusters = {int(c): members[members["cluster"] == c] for c in stable}
    moved = moved_answers(members, list(clusters))
    found = labeller.propose(endpoint, seen, material.prompts, clusters, moved, seed=material.seed)
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
    beside = (section.judges, material, ledger, run.cache, run.root, run.progress, workers)
    return Judges(
        cheap,
        judge(expensive, "expensive") if expensive else None,
        ledger,
        open_coherence(*beside) if section.coherence else None,
        open_unlabelled(*beside) if section.rivals else None,
    )


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
    screened = material.hypotheses if section.cascade == "screen_then_test" else []
    steps = [("screen", "screen", judges.cheap, screened), ("validate", "validate", judges.tester, material.hypotheses)]
    if judges.coherence is not None:
        steps.append(("coherence", "validate", judges.coherence, [COHERENT]))
    if judges.unlabelled is not None:
        steps.append(("sides without a label", "validate", judges.unlabelled[0], [judges.unlabelled[1]]))
    for step, split, judge, hypotheses in steps:
        held = material.held_out(split)
        texts = held.texts if step == split or not judge.paid else held.of(held.order[:PROMPTS_BESIDE])
        quote = asdict(judge.quote(texts["text"].tolist(), hypotheses, held.asked(texts["prompt_id"])))
        rows.append({"step": step, "judge": judge.name, "texts": len(texts), "hypotheses": len(hypotheses), **quote})
    return pd.DataFrame(rows).assign(budget_usd=section.budget_usd)


# --------------------------------------------------------------------------------------------------------------- rivals


def rivals(material: Material, embed: Embed, more: Mapping[str, Mapping[str, float]] | None = None) -> Rivals:
    """Train the rivals on split discover and let them score the texts of split validate.

    ``more``: scores by text id of rivals that were read elsewhere (``judge``, ``coherence``).
    """
    train, test_ = material.texts[material.texts["split"] == "discover"], material.held_out("validate").texts
    changed = (train["side"] == "intervention").to_numpy()
    if changed.all() or not changed.any():
        raise DriftbookError("split discover holds texts of one side only: there is nothing for a rival to learn from")

    def pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
        return [(t, material.prompts[p].said()) for t, p in zip(table["text"], table["prompt_id"], strict=True)]

    ids, seen, held = test_["text_id"].tolist(), train["text"].tolist(), test_["text"].tolist()
    scored = {
        "embeddings": embedding_classifier(embed(seen), changed, embed(held)),
        "length": length_scores(seen, changed, held),
    }
    others = {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in scored.items()}
    return Rivals(
        ids, BagOfWords(pairs(train), changed, pairs(test_)), others | {k: v for k, v in (more or {}).items() if v}
    )


def read_unlabelled(material: Material, judges: Judges, tested: Tested) -> dict[str, float]:
    """The rival that is a judge without a label: text id to how much it looks like the intervention's side.

    It reads the first prompts of split validate, at most ``PROMPTS_BESIDE``. Empty without a judge model, or when
    nothing was confirmed.
    """
    if judges.unlabelled is None or not tested.looks.rejected.any():
        return {}
    judge, statement = judges.unlabelled
    held = material.held_out("validate")
    reading = read(judge, held, held.order[:PROMPTS_BESIDE], [statement])
    return dict(zip(reading.texts["text_id"], reading.scores[:, 0].tolist(), strict=True))


# --------------------------------------------------------------------------------------- beside the claims


def coherence(material: Material, judges: Judges) -> tuple[pd.DataFrame, dict[str, float]]:
    """How coherent the held-out texts of each side are, judged apart from all claims, and the score of each text by id.

    Columns: judge, side (base, intervention, difference: intervention minus base), prompts, coherence, low, high; means
    over prompts with intervals over resampled prompts.
    """
    columns = ["judge", "side", "prompts", "coherence", "low", "high"]
    judge = judges.coherence
    if judge is None:
        return pd.DataFrame(columns=columns), {}
    held = material.held_out("validate")
    reading = read(judge, held, held.order[:PROMPTS_BESIDE] if judge.paid else held.order, [COHERENT])
    verdicts = reading.verdicts()
    sides = {name: verdicts[f"score_{name}"].to_numpy() for name in ("base", "intervention")}
    rows = []
    for side, values in (sides | {"difference": sides["intervention"] - sides["base"]}).items():
        values = values[~np.isnan(values)]
        if len(values):
            rows.append((judge.name, side, len(values), *bootstrap_mean(values, seed=material.seed)))
    scores = dict(zip(reading.texts["text_id"], reading.scores[:, 0].tolist(), strict=True))
    return pd.DataFrame(rows, columns=columns), scores


def near_clusters(run: Run, material: Material, embed: Embed) -> dict[str, set[int]]:
    """Held-out text id to the clusters that its nearest texts of split discover are in."""
    labels = pd.read_parquet(run.input("cluster") / "clusters.parquet", columns=["text_id", "cluster"])
    seen = material.texts[material.texts["split"] == "discover"].merge(labels, on="text_id")
    held = material.held_out("validate").texts
    if seen.empty:
        return {}
    near = clusters_near(embed(seen["text"].tolist()), seen["cluster"].to_numpy(), embed(held["text"].tolist()))
    return dict(zip(held["text_id"], near, strict=True))


def generative_check(run: Run, material: Material, judges: Judges, claims: pd.DataFrame, most: int = 2) -> pd.DataFrame:
    """Texts are written for the strongest confirmed claims, and the likelihoods of both models have to tell them apart.

    The labeller writes to prompts of split screen, where one is configured; else the claim's own words are put into
    answers of split discover. Empty when nothing was confirmed, ``validate.generative`` is 0, or a side has no
    likelihoods here (texts made elsewhere, a server).
    """
    section, empty = run.section, pd.DataFrame(columns=list(generative.COLUMNS))
    ids = claims.loc[claims["confirmed"], "hypothesis_id"].head(most).tolist()
    if not ids or not section.generative or run.params.intervention.kind in ("texts", "endpoint"):
        return empty
    by_id = {h.hypothesis_id: h for h in material.hypotheses}
    spec, seen = section.labeller_judge, material.texts[material.texts["split"] == "discover"]
    asked = material.held_out("screen").order[: section.generative]
    avoid, written = [w for h in material.hypotheses for w in h.words], {}
    for name in ids:
        if section.labeller == "llm" and spec is not None:
            writer, endpoint = spec.model, open_labeller(spec, judges.ledger, run.cache, run.progress)
            prompts = [material.prompts[p] for p in asked]
            written[name] = generative.written_by_labeller(endpoint, by_id[name], prompts)
        else:
            writer = "its words"
            written[name] = generative.written_with_words(by_id[name], seen, avoid, section.generative)
    from driftbook.models.interventions import open_sides
    from driftbook.models.likelihood import log_likelihood
    from driftbook.models.replay import TokenSequence

    pair = open_sides(run)

    def ratio(texts: list[tuple[str, str]]) -> np.ndarray:
        """Log-likelihood of (prompt id, text) under the intervention minus that under the base."""
        found = {}
        for side in pair:
            ids = [tuple(side.model.tokenizer(t, add_special_tokens=False)["input_ids"]) for _, t in texts]
            asked = (material.prompts[p] for p, _ in texts)
            prompts = [side.encode(p.text, p.system, p.chat() if p.messages else None) for p in asked]
            found[side.name] = log_likelihood(side, list(map(TokenSequence, prompts, ids)))
        return found["intervention"] - found["base"]

    rows = []
    for name, texts in written.items():
        if texts:
            h = by_id[name]
            row = generative.preferred(h, texts, ratio, material.seed)
            rows.append({"hypothesis_id": name, "text": h.text, "direction": h.direction, "writer": writer, **row})
    return pd.DataFrame(rows, columns=list(generative.COLUMNS)) if rows else empty


def flagged(
    claims: pd.DataFrame,
    beside: pd.DataFrame,
    coherent: pd.DataFrame,
    moved: pd.DataFrame,
    generated: pd.DataFrame,
) -> pd.DataFrame:
    """The same claims with a column ``flags``: what a reader should know of each, a sentence a line."""
    flags: dict[str, list[str]] = {name: [] for name in claims["hypothesis_id"]}
    for r in beside[beside["verdict"] == "explained"].itertuples():
        flags[r.hypothesis_id].append(
            f"{NAMES[r.rival].capitalize()}: with this held fixed, nothing is shown to be left of the claim "
            f"(correlation {r.left:.2f}, {r.left_low:.2f} to {r.left_high:.2f}; {r.correlation:.2f} before)."
        )
    sides = coherent.set_index("side")
    if len(sides):
        gap = sides.loc["difference"]
        lost = {"intervention": gap["high"] < 0, "base": gap["low"] > 0}
        for c in claims.itertuples():
            if lost[c.direction]:
                flags[c.hypothesis_id].append(
                    f"The texts of this side are less coherent ({sides.loc['base', 'coherence']:.2f} in base, "
                    f"{sides.loc['intervention', 'coherence']:.2f} in intervention, by {gap['judge']}): read them."
                )
    for r in outside(moved, list(flags)).itertuples():
        if r.verdict != "holds":
            flags[r.hypothesis_id].append(
                f"Outside of its cluster the win rate is {r.win_rate:.2f} ({r.low:.2f} to {r.high:.2f}, {r.prompts} "
                "prompts): it is not shown to hold there."
            )
    for r in generated[generated["verdict"] != "told apart"].itertuples():
        flags[r.hypothesis_id].append(
            f"Texts that were written for it are not told apart by the models' own likelihoods ({r.preferred:.2f}, "
            f"{r.low:.2f} to {r.high:.2f}; writer: {r.writer})."
        )
    return claims.assign(flags=["\n".join(flags[name]) for name in claims["hypothesis_id"]])


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
    more: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, float]:
    """Write the tables of the stage, and ``more`` by name, into ``folder``; returns its metrics."""
    verdicts = pd.concat([t for t in (screening.verdicts, tested.verdicts()) if len(t)] or [screening.verdicts])
    tables = {
        "frozen": frozen,
        "screening": screening.table,
        "verdicts": verdicts,
        "claims": claims,
        "ledger": judges.ledger.table(),
        **(more or {}),
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
    accounts = judges.ledger.accounts

    def calls(judge: Judge) -> int:
        return accounts[judge.name].calls

    confirmed = int(claims["confirmed"].sum())
    metrics = {
        "hypotheses": len(frozen),
        "screened_out": int((~screening.table["survives"]).sum()),
        "tested": len(tested.hypotheses),
        "confirmed": confirmed,
        "explained_by_rivals": int((claims["confirmed"] & (claims["explained_by"] != "")).sum()),
        "alpha": section.alpha,
        "prompts": len(tested.prompts),
        "calls_cheap": calls(judges.cheap),
        "calls_expensive": calls(judges.expensive) if judges.expensive else 0,
        "calls_cached": sum(a.cached for a in accounts.values()),
        "cost_usd": judges.ledger.spent,
        "saved_usd": sum(a.usd_saved for a in accounts.values()),
        "missing_share": float(verdicts["missing"].mean()) if len(verdicts) else 0.0,
    }
    return metrics | ({"usd_per_confirmed": judges.ledger.spent / confirmed} if confirmed else {})
