"""Validate: which differences survive on prompts that nobody has looked at?

The notebook calls, in order: ``load``, ``open_judges``, ``label``, ``freeze``, ``count``, ``words``, ``bill``,
``screen``, ``holdout_test``, ``audit``, ``coherence``, ``baselines``, ``beside_baselines``, ``claims_table``,
``transfer``, ``generative_check``, ``flagged``, ``doses``, ``with_doses``, ``verdict``, ``write``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from driftbook.behaviours import catalogue
from driftbook.behaviours.own import measures_of
from driftbook.chat import Chat
from driftbook.discovery import groups
from driftbook.discovery.amplification import amplified_answers, ordinary
from driftbook.discovery.embeddings import through_cache
from driftbook.discovery.hypotheses import MIN_STABILITY, Hypothesis, from_frame, merge, moved_answers
from driftbook.discovery.phrases import examples
from driftbook.engines import open_workers
from driftbook.errors import DriftbookError
from driftbook.evidence import counting, generative, labeller, panel, vocabulary
from driftbook.evidence.amplification import dose_response, with_doses
from driftbook.evidence.baselines import NAMES, BagOfWords, Rivals, embedding_classifier, length_scores
from driftbook.evidence.cascade import (
    Screening,
    Tested,
    alone_and_together,
    audit,
    caution,
    holdout_test,
    outcomes,
    screen,
)
from driftbook.evidence.claims import beside_baselines, claims_table, share_together
from driftbook.evidence.intervals import student_mean, summary_interval
from driftbook.evidence.judges import Judge, Judges, reads_words
from driftbook.evidence.labels import AGREEMENT, CORRECTED, held_against, read_labels, readings
from driftbook.evidence.material import Material, asked_ids, by_judge
from driftbook.evidence.moved_groups import told
from driftbook.evidence.opened import (
    COHERENT,
    Embed,
    open_coherence,
    open_embedder,
    open_judge,
    open_labeller,
    open_unlabelled,
)
from driftbook.evidence.outcomes import Outcome, verdicts
from driftbook.evidence.reading import read
from driftbook.evidence.transfer import clusters_near, outside, transfer
from driftbook.evidence.verdict import Verdict, verdict_of
from driftbook.evidence.vocabulary import Words, words_test
from driftbook.ledger import Ledger
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import open_sides
from driftbook.parameters import Validate
from driftbook.prompts import by_unit, load_saved
from driftbook.sections import JudgeSpec
from driftbook.stage import Run

__all__ = [
    "Judges",
    "Material",
    "Rivals",
    "Screening",
    "Tested",
    "alone_and_together",
    "audit",
    "baselines",
    "beside_baselines",
    "bill",
    "caution",
    "claims_table",
    "coherence",
    "count",
    "doses",
    "flagged",
    "freeze",
    "generative_check",
    "holdout_test",
    "label",
    "levels",
    "load",
    "near_clusters",
    "open_answers",
    "open_judges",
    "open_workers",
    "outcomes",
    "people",
    "read_unlabelled",
    "screen",
    "share_together",
    "trait_shift",
    "transfer",
    "verdict",
    "with_doses",
    "words",
    "write",
]


PROMPTS_BESIDE = 60  # that a paid judge reads for what stands beside claims: coherence, and sides without a label


# ----------------------------------------------------------------------------------------------------------------- load


def person_hypotheses(section: Validate) -> list[Hypothesis]:
    """Hypotheses that a person wrote into the parameter file, each on the measure that it names: the share of answers
    that hold one of its words unless it says else, a judge's score where it has no words."""
    found = []
    for h in section.hypotheses:
        kind = h.measure or ("share" if h.words else "judge")
        measure: dict[str, Any] = {"kind": "panel", "name": kind}
        if kind == "judge":
            measure = {"kind": "judge"}
        elif kind in ("share", "number", "rate"):
            measure = {"kind": "words", "words": list(h.words), "place": "anywhere", "unit": kind}
        found.append(Hypothesis(h.text, h.direction, proposer="person", words=tuple(h.words), measure=measure))
    return found


def panel_hypotheses(section: Validate, root: Path) -> list[Hypothesis]:
    """The behaviours that were named before anybody looked: those that ship, and those of ``validate.behaviours``."""
    own = measures_of(section.behaviours, root)
    return [*panel.hypotheses(), *(Hypothesis(m.label, "either", proposer="panel", measure=m.spec) for m in own)]


def load(run: Run) -> Material:
    """Texts of the decode stage; the panel, the hypotheses of the parameter file and those of the cluster stage
    (near-duplicates of the last two merged).

    Raises DriftbookError when there is nothing to validate on, or when held-out texts were not sampled uniformly.
    """
    decode, cluster = run.input("decode"), run.input("cluster")
    columns = ["text_id", "side", "prompt_id", "family", "split", "strength", "round", "propensity", "text"]
    texts = ordinary(pd.read_parquet(decode / "texts.parquet", columns=columns)).sort_values(
        "text_id", kind="stable", ignore_index=True
    )
    proposed = from_frame(pd.read_parquet(cluster / "hypotheses.parquet"))
    check_held_out(texts)
    found = [
        *panel_hypotheses(run.section, run.root),
        *merge([*person_hypotheses(run.section), *proposed]),
    ]
    prompts = load_saved(decode)
    return Material(by_unit(texts, prompts), prompts, found, run.seed, amplified_answers(decode, "validate"))


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


def label(run: Run, material: Material, judges: Judges) -> Material:
    """The same material with the hypotheses of a language model that read split discover, where ``labeller: llm``.

    They come before those of the cluster stage, and near-duplicates are merged. Each is read by the behaviour of the
    panel or the phrase that shows what it says, else by a judge; where the only judge counts words, such a one is left
    out. Phrases get the name that the model has for them; what is tested stays the phrase.
    """
    section = run.section
    if section.labeller != "llm":
        return replace(material, hypotheses=[_readable(h, judges) for h in material.hypotheses])
    spec = section.labeller_judge
    assert spec is not None  # the parameter model has checked it
    endpoint = open_labeller(spec, judges.ledger, run.cache, run.progress)
    seen = material.texts[material.texts["split"] == "discover"]
    clusters, moved = _grouped(run.input("cluster"), seen)
    exaggerated = amplified_answers(run.input("decode"), "discover")
    shown = pd.concat([seen, exaggerated[exaggerated["strength"] > 0]], ignore_index=True)
    of = {who: [h for h in material.hypotheses if h.proposer == who] for who in ("panel", "person")}
    others = [h for h in material.hypotheses if h.proposer not in of]
    measures = [*catalogue.panel(), *(catalogue.measure_from(h.measure or {}) for h in others if _is_phrase(h))]
    embed, pairs = open_embedder(run.cache), section.labeller_pairs
    apart = {"clusters": clusters, "moved": moved, "count": pairs, "inside": max(1, pairs // 8)}
    found, account = labeller.propose(endpoint, shown, material.prompts, embed, measures, **apart, seed=material.seed)
    if reads_words(judges.tester):
        found = [h for h in found if not by_judge(h)]
    for name, value in (asdict(account) | {"hypotheses": len(found)}).items():
        run.metric(f"labeller_{name}", value)
    merged = [*of["panel"], *merge([*of["person"], *found, *_named(endpoint, others, seen)])]
    return replace(material, hypotheses=[_readable(h, judges) for h in merged])


def _grouped(folder: Path, seen: pd.DataFrame) -> tuple[dict[int, pd.DataFrame], dict[tuple[int, int], pd.DataFrame]]:
    """What a labeller reads apart: the answers in each stable cluster and those that moved between two, or the answers
    that hold a sentence of each of the groups that moved."""
    table = pd.read_parquet(folder / "composition.parquet")
    if "group" in table:
        holds = pd.read_parquet(folder / "groups.parquet", columns=["text_id", "group"]).drop_duplicates()
        members = seen.merge(holds, on="text_id")
        return {int(g): members[members["group"] == g] for g in told(table)["group"].head(12)}, {}
    stable = table.loc[(table["cluster"] >= 0) & (table["stability"] >= MIN_STABILITY), "cluster"]
    members = seen.merge(pd.read_parquet(folder / "clusters.parquet", columns=["text_id", "cluster"]), on="text_id")
    clusters = {int(c): members[members["cluster"] == c] for c in stable}
    return clusters, moved_answers(members, list(clusters))


def _is_phrase(hypothesis: Hypothesis) -> bool:
    return (hypothesis.measure or {}).get("kind") == "words"


def _named(endpoint: Chat, hypotheses: list[Hypothesis], seen: pd.DataFrame) -> list[Hypothesis]:
    """The same hypotheses, those about phrases and about groups of sentences called what the labeller calls them; the
    measure stays."""
    about = {h: ([], h.measure["examples"]) for h in hypotheses if h.measure and groups.is_group(h)}
    about |= {h: (h.words, examples(h, seen)["sentence"].tolist()) for h in hypotheses if _is_phrase(h)}
    names = dict(zip(about, labeller.name_phrases(endpoint, list(about.values())), strict=True))
    return [groups.called_by(h, names[h]) if names.get(h) else h for h in hypotheses]


def _readable(hypothesis: Hypothesis, judges: Judges) -> Hypothesis:
    """The hypothesis on a measure that somebody reads. Raises DriftbookError where nobody does."""
    if not by_judge(hypothesis) or not reads_words(judges.tester):
        return hypothesis
    if not hypothesis.words:
        raise DriftbookError(
            f"nobody can read {hypothesis.text!r}: give it words or a measure in validate.hypotheses, or set "
            "validate.judges to a model"
        )
    words = {"kind": "words", "words": list(hypothesis.words), "place": "anywhere", "unit": "share"}
    return replace(hypothesis, measure=words)


# --------------------------------------------------------------------------------------------------------------- judges


def open_judges(run: Run, material: Material) -> Judges:
    """The judges of the parameter file, with the verdict cache that all experiments share and the cap of this run."""
    section = run.section
    ledger = Ledger(run.cache / "verdicts" / "answers.sqlite", section.budget_usd)
    workers = open_workers(run.params.engine, run.params.base)
    beside = partial(
        open_judge, material=material, ledger=ledger, cache=run.cache, root=run.root, workers=workers,
        progress=run.progress,
    )  # fmt: skip

    def judge(spec: JudgeSpec, role: str) -> Judge:
        # a judge that also tests is asked batch by batch, under the bar of the test
        bar = run.progress if role == "cheap" and section.judges.expensive else None
        opened = beside(spec, role, progress=bar)
        _ = ledger.accounts[opened.name]  # a judge that made no call has its line in the ledger too
        return opened

    expensive = section.judges.expensive
    cheap = judge(section.judges.cheap, "cheap")
    return Judges(
        cheap,
        judge(expensive, "expensive") if expensive else None,
        ledger,
        open_coherence(section.judges, beside) if section.coherence else None,
        open_unlabelled(section.judges, material, beside) if section.baselines else None,
    )


# --------------------------------------------------------------------------------------------------------------- freeze


def freeze(material: Material, judges: Judges, section: Validate) -> pd.DataFrame:
    """One row per hypothesis with the sha256 of all that defines its test, taken before any held-out text is read."""
    rows = []
    for h in material.hypotheses:
        sealed: dict[str, Any] = {
            "text": h.text,
            "direction": h.direction,
            "measure": dict(h.measure or {}),
            "evidence": list(h.evidence),
            "margin": section.margin,
            "alpha": section.alpha,
            "seed": material.seed,
        }
        if by_judge(h):
            sealed |= {
                "cheap": dict(judges.cheap.identity),
                "tester": dict(judges.tester.identity),
                "cascade": section.cascade,
                "screen_level": section.screen_level,
            }
        digest = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        measure = json.dumps(sealed["measure"], sort_keys=True, ensure_ascii=False)
        about = (h.hypothesis_id, h.text, h.direction, h.proposer, h.cluster, measure, list(h.words), list(h.evidence))
        rows.append((*about, digest))
    names = ["hypothesis_id", "text", "direction", "proposer", "cluster", "measure", "words", "evidence", "frozen"]
    return pd.DataFrame(rows, columns=names)


class Levels(NamedTuple):
    """The part of alpha of what is counted, of words, and of what a paid judge reads."""

    counted: float
    words: float
    judged: float


def levels(material: Material, judges: Judges, alpha: float) -> Levels:
    """Half of alpha for what a paid judge reads, where there is something beside it."""
    judged = alpha
    if judges.tester.paid and 0 < len(material.judged) < len(material.hypotheses):
        judged = alpha = alpha / 2
    return Levels(*vocabulary.shared(material, alpha), judged)


def count(run: Run, material: Material, judges: Judges) -> list[Outcome]:
    """Every hypothesis whose verdicts are free, tested on a fixed sample (``evidence.counting``)."""
    path = run.input("cluster") / "behaviours.parquet"
    known = pd.read_parquet(path) if path.is_file() else None
    if groups.wanted(material.hypotheses):
        read_groups = group_readings(run, material, material.paired()[0].query("split != 'discover'"))
        known = read_groups if known is None else known.merge(read_groups, on="text_id", how="outer")
    judge = None if judges.tester.paid else judges.tester
    return counting.count(material, run.section, levels(material, judges, run.section.alpha).counted, known, judge)


def words(run: Run, material: Material, judges: Judges, counted: Sequence[Outcome]) -> Words:
    """Every word of the answers, tested on all prompts (``evidence.vocabulary``)."""
    return words_test(material, run.section, levels(material, judges, run.section.alpha).words, counted)


def doses(run: Run, material: Material, judges: Judges, found: Sequence[Outcome]) -> pd.DataFrame:
    """What every claim shows at each strength of amplification, where that costs nothing."""
    read_groups = partial(group_readings, run, material) if groups.wanted(material.hypotheses) else None
    judge = None if judges.tester.paid else judges.tester
    return dose_response(material, found, run.section.alpha, judge, read_groups)


def group_readings(run: Run, material: Material, texts: pd.DataFrame) -> pd.DataFrame:
    """Which of the ``texts`` hold a segment of which group that is claimed, as the cluster stage froze it.

    Raises DriftbookError where the groups of the cluster stage are others than those of the hypotheses.
    """
    found = groups.Groups.load(run.input("cluster") / "centres.npz")
    asked = groups.wanted(material.hypotheses)
    claimed = {h.measure["group"] for h in material.hypotheses if groups.is_group(h)}
    if claimed != {groups.name_of(found, g) for g in asked}:
        raise DriftbookError("hypotheses.parquet and centres.npz are of two runs: run the cluster stage again")
    workers = open_workers(run.params.engine, run.params.base)
    where, device = run.cache / "embeddings", run.params.base.device
    embed = through_cache(where, **json.loads(found.embedder), device=device, progress=run.progress, workers=workers)
    prompts = [material.prompts[p].said() for p in asked_ids(texts)]
    return groups.readings(found, asked, texts["text_id"].tolist(), texts["text"].tolist(), prompts, embed)


def bill(material: Material, judges: Judges, section: Validate) -> pd.DataFrame:
    """Dry run: the most that each step may cost, before the first call. Sequential tests usually stop far earlier."""
    rows = []
    screened = material.judged if section.cascade == "screen_then_test" else []
    steps = [("screen", "screen", judges.cheap, screened), ("validate", "validate", judges.tester, material.judged)]
    if judges.coherence is not None:
        steps.append(("coherence", "validate", judges.coherence, [COHERENT]))
    if judges.unlabelled is not None:
        steps.append(("sides without a label", "validate", judges.unlabelled[0], [judges.unlabelled[1]]))
    for step, split, judge, hypotheses in steps:
        held = material.held_out(split)
        texts = held.texts if step == split or not judge.paid else held.of(held.order[:PROMPTS_BESIDE])
        quote = asdict(judge.quote(texts["text"].tolist(), hypotheses, held.asked(texts)))
        rows.append({"step": step, "judge": judge.name, "texts": len(texts), "hypotheses": len(hypotheses), **quote})
    return pd.DataFrame(rows).assign(budget_usd=section.budget_usd)


# ------------------------------------------------------------------------------------------------------------ baselines


def baselines(material: Material, embed: Embed, more: Mapping[str, Mapping[str, float]] | None = None) -> Rivals:
    """Train the baselines on split discover and let them score the texts of all other prompts.

    ``more``: scores by text id of baselines that were read elsewhere (``judge``, ``coherence``).
    """
    train, (texts, _) = material.texts[material.texts["split"] == "discover"], material.paired()
    test_ = texts[texts["split"] != "discover"]
    changed = (train["side"] == "intervention").to_numpy()
    if changed.all() or not changed.any():
        raise DriftbookError("split discover holds texts of one side only: a baseline has nothing to learn from")

    def pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
        return [(t, material.prompts[p].said()) for t, p in zip(table["text"], asked_ids(table), strict=True)]

    ids, seen, held = test_["text_id"].tolist(), train["text"].tolist(), test_["text"].tolist()
    scored = {
        "embeddings": embedding_classifier(embed(seen), changed, embed(held)),
        "length": length_scores(seen, changed, held),
    }
    others = {name: dict(zip(ids, values.tolist(), strict=True)) for name, values in scored.items()}
    return Rivals(
        ids, BagOfWords(pairs(train), changed, pairs(test_)), others | {k: v for k, v in (more or {}).items() if v}
    )


def read_unlabelled(material: Material, judges: Judges, found: Sequence[Outcome]) -> dict[str, float]:
    """The baseline that is a judge without a label: text id to how much it looks like the intervention's side.

    It reads the first prompts of split validate, at most ``PROMPTS_BESIDE``. Empty without a judge model, or when
    nothing was confirmed.
    """
    if judges.unlabelled is None or not any(o.confirmed for o in found):
        return {}
    judge, statement = judges.unlabelled
    held = material.held_out("validate")
    reading = read(judge, held, held.order[:PROMPTS_BESIDE], [statement])
    return dict(zip(reading.texts["text_id"], reading.scores[:, 0].tolist(), strict=True))


# --------------------------------------------------------------------------------------- beside the claims


def coherence(material: Material, judges: Judges) -> tuple[pd.DataFrame, dict[str, float]]:
    """How coherent the held-out texts of each side are, judged apart from all claims, and the score of each text by id.

    Columns: judge, side (base, intervention, difference: intervention minus base), prompts, coherence, low, high; means
    over prompts with intervals over prompts.
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
            interval = student_mean(values) if side == "difference" else summary_interval(values)
            rows.append((judge.name, side, len(values), *interval))
    scores = dict(zip(reading.texts["text_id"], reading.scores[:, 0].tolist(), strict=True))
    return pd.DataFrame(rows, columns=columns), scores


def people(
    run: Run, material: Material, judges: Judges, claims: pd.DataFrame, found: Sequence[Outcome]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(how often judges and people agree, effects corrected for the judge's errors): ``evidence.labels.held_against``,
    on the table of ``validate.labels``. Empty without one."""
    if run.section.labels is None:
        return pd.DataFrame(columns=list(AGREEMENT)), pd.DataFrame(columns=list(CORRECTED))
    labels = read_labels(run.root / run.section.labels, material)
    read = readings(judges, material, partial(group_readings, run, material))
    return held_against(labels, claims, verdicts(found), material, read)


def open_answers(run: Run) -> Embed:
    """Vectors of answers as the cluster stage reads them: of their segments, or whole. The embedder is loaded when a
    text is missing in the cache."""
    workers, path = open_workers(run.params.engine, run.params.base), run.input("cluster") / "centres.npz"
    if not path.is_file():
        return open_embedder(run.cache, workers=workers)
    found = groups.Groups.load(path)
    device = run.params.base.device
    embed = through_cache(run.cache / "embeddings", **json.loads(found.embedder), device=device, workers=workers)
    return lambda texts: groups.answer_vectors(texts, found.most, embed)


def near_clusters(run: Run, material: Material, embed: Embed) -> dict[str, set[int]]:
    """Held-out text id to the clusters that its nearest texts of split discover are in."""
    labels = pd.read_parquet(run.input("cluster") / "clusters.parquet", columns=["text_id", "cluster"])
    seen = material.texts[material.texts["split"] == "discover"].merge(labels, on="text_id")
    texts, _ = material.paired()
    held = texts[texts["split"] != "discover"]
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
    ids = claims.loc[claims["confirmed"] & (claims["proposer"] != "panel"), "hypothesis_id"].head(most).tolist()
    if not ids or not section.generative or not run.params.intervention.likelihoods:
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
    pair = open_sides(run)
    thinking = set()
    if any(side.model.marks for side in pair):
        said = pd.read_parquet(run.input("decode") / "texts.parquet", columns=["side", "thought"])
        thinking = set(said.loc[said["thought"] != "", "side"])

    def ratio(texts: list[tuple[str, str]]) -> np.ndarray:
        """Log-likelihood of (prompt id, text) under the intervention minus that under the base."""
        found = {}
        for side in pair:
            ids = [tuple(side.model.encode_answer(t)) for _, t in texts]
            prompts = [side.encode(material.prompts[p]) for p, _ in texts]
            if side.name in thinking:  # no thought was written for these answers
                prompts = list(map(side.model.without_thought, prompts))
            found[side.name] = side.log_likelihood(list(map(TokenSequence, prompts, ids)))
        return found["intervention"] - found["base"]

    rows = []
    for name, texts in written.items():
        if texts:
            h = by_id[name]
            row = generative.preferred(h, texts, ratio)
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
            f"{NAMES[r.baseline].capitalize()}: with this held fixed, nothing is shown to be left of the claim "
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
    """Where inside the change shows: shift of each trait in the cluster that a confirmed claim comes from, or in the
    group of sentences that it is about, largest first.

    Columns: claim, cluster, trait, shift, low, high. Empty where the cluster stage measured none.
    """
    path = run.input("cluster") / "trait_shift.parquet"
    names = ["claim", "cluster", "trait", "shift", "low", "high"]
    good = claims[claims["confirmed"]]
    of_group = good["measure"].str.extract(r"^group_.*_(\d+)$")[0]
    mine = pd.DataFrame({"claim": good["text"], "cluster": of_group.fillna(good["cluster"]).astype(int)})
    mine = mine[mine["cluster"] >= 0]
    if mine.empty or not path.is_file():
        return pd.DataFrame(columns=names)
    table = mine.merge(pd.read_parquet(path).rename(columns={"group": "cluster"}), on="cluster")
    return table.sort_values("shift", key=np.abs, ascending=False, kind="stable", ignore_index=True)[names]


# -------------------------------------------------------------------------------------------------------------- verdict


def verdict(run: Run, material: Material, claims: pd.DataFrame, tested: Words) -> Verdict:
    """The answer of the experiment: what moved, what did not, how sure (``evidence.verdict``)."""
    return verdict_of(material, claims, run.section.alpha, tested.table, never_came(run.input("decode")))


def never_came(decode: Path) -> str:
    """What share of each side's answers is missing, in a sentence: the others are a selection. "" where all came."""
    path = decode / "unanswered.parquet"
    if not path.is_file():
        return ""
    tables = [pd.read_parquet(p, columns=["side", "strength"]) for p in (path, decode / "texts.parquet")]
    silent, there = (ordinary(table)["side"].value_counts() for table in tables)
    told = [f"{n / (n + there[side]):.0%} of {side}'s" for side, n in silent.sort_index().items()]
    return f"{' and '.join(told)} answers never came: the others are a selection." if told else ""


# ---------------------------------------------------------------------------------------------------------------- write


def write(
    folder: Path,
    frozen: pd.DataFrame,
    screening: Screening,
    found: Sequence[Outcome],
    claims: pd.DataFrame,
    judges: Judges,
    section: Validate,
    more: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, float]:
    """Write the tables of the stage, and ``more`` by name, into ``folder``; returns its metrics."""
    read = pd.concat([t for t in (screening.verdicts, verdicts(found)) if len(t)] or [screening.verdicts])
    tables = {
        "frozen": frozen,
        "screening": screening.table,
        "verdicts": read,
        "claims": claims,
        "ledger": judges.ledger.table(),
        **(more or {}),
    }
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", compression="zstd", index=False)
    accounts = judges.ledger.accounts

    def calls(judge: Judge) -> int:
        return accounts[judge.name].calls

    own = claims[claims["proposer"] != "words"]
    good, words = own[own["confirmed"]], tables.get("words", Words().table)
    metrics = {
        "hypotheses": len(frozen),
        "panel": int((claims["proposer"] == "panel").sum()),
        "screened_out": int((claims["status"] == "screened out").sum()),
        "tested": len(found) - (len(claims) - len(own)),
        "confirmed": len(good),
        "words_tested": len(words),
        "words_confirmed": int(words["confirmed"].sum()),
        "confirmed_of_panel": int((good["proposer"] == "panel").sum()),
        "only_amplified": int(claims.get("only_amplified", pd.Series(dtype=bool)).sum()),
        "explained_by_baselines": int((good["explained_by"] != "").sum()),
        "alpha": section.alpha,
        "prompts": int(claims["prompts"].max()) if len(claims) else 0,
        "calls_cheap": calls(judges.cheap),
        "calls_expensive": calls(judges.expensive) if judges.expensive else 0,
        "calls_cached": sum(a.cached for a in accounts.values()),
        "cost_usd": judges.ledger.spent,
        "saved_usd": sum(a.usd_saved for a in accounts.values()),
        "missing_share": float(read["missing"].mean()) if len(read) else 0.0,
    }
    return metrics | ({"usd_per_confirmed": judges.ledger.spent / len(good)} if len(good) else {})
