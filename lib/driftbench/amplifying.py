"""What exaggerating a planted change buys: how plain it gets, what is found with as many texts, and what comes back.

The truth is the plant's own rule, which no pipeline sees. Both pipelines have the same budget and the code of the
stages *decode*, *cluster* (phrases) and *validate*; one spends a part of it on amplified answers.

Trained plants, decoded texts and what was made of them are kept, each under all that shaped it, the code included. So a
run that was killed goes on at the plant, or at the experiment without a change, where it stood.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.metrics import roc_auc_score

from driftbench import null_runs
from driftbench.proof.plants import Garden, Plant
from driftbench.proof.scoring import MATCH
from driftbook import decode
from driftbook.discovery import phrases
from driftbook.discovery.amplification import ordinary
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.hypotheses import Hypothesis, merge
from driftbook.discovery.readback import read_back, texts_from_beginnings
from driftbook.discovery.screen import screen_divergence
from driftbook.discovery.strategies import Ask
from driftbook.evidence import counting, panel, vocabulary
from driftbook.evidence.amplification import dose_response
from driftbook.evidence.counting import read_all
from driftbook.evidence.intervals import Interval, wilson
from driftbook.evidence.material import Material
from driftbook.evidence.outcomes import Outcome
from driftbook.hashes import file_hash
from driftbook.models.amplified import amplified
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import Exaggeration, Pair
from driftbook.parameters import Decode, Experiment, Validate
from driftbook.prompt_files import read_prompts
from driftbook.prompts import PromptSet
from driftbook.store import ShardStore, digest
from driftbook.workbook.sources import reached

ALPHA = 0.05
RUN = 5  # words of a planted sentence in a row that count as read back


@dataclass(frozen=True)
class Design:
    """The budget of a pipeline: ``max_texts`` ordinary answers, or as many of which ``share`` are amplified."""

    prompts: list[str]
    max_prompts: int
    max_texts: int
    share: float
    strengths: list[float]
    max_new_tokens: int = 20
    aimed: int = 72  # prompts that the change was aimed at, of which its plainness is told
    beginnings: int = 48

    def section(self, amplify: bool) -> Decode:
        more = {"amplify": {"strengths": self.strengths, "share": self.share, "beginnings": 0}} if amplify else {}
        return Decode.model_validate(
            {
                "prompts": self.prompts, "max_prompts": self.max_prompts, "samples": 1, "temperature": 0.8,
                "top_p": 0.95, "max_new_tokens": self.max_new_tokens, "screen": {"enabled": False}, "shard": 64,
                "splits": {"discover": 0.5, "screen": 0.0, "validate": 0.5},
                "sampling": {"strategy": "uniform", "max_texts": self.max_texts, "rounds": 1}, **more,
            }
        )  # fmt: skip

    def asked(self, garden: Garden, plant: Plant | None = None, away: bool = False, limit: int | None = None):
        """The prompts of the design, at most ``limit``: all, or those that a plant was aimed at, or (``away``) not."""
        read = read_prompts(self.prompts, garden.root)
        given = [p for p in read if plant is None or plant.targets(p) != away]
        shares = self.section(False).splits.model_dump(by_alias=True)
        return decode.load_prompts(self.prompts, garden.root, shares, limit, given)

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(self.max_new_tokens, 0.8, 0.95)


# ------------------------------------------------------------------------------------------------------------ how plain


def plainness(garden: Garden, pair: Pair, plant: Plant, design: Design, away: bool = False) -> pd.DataFrame:
    """How many answers to prompts that the change was aimed at (``away``: was not) show it, by its own rule: plant,
    strength (-1: the base), share, low, high (Wilson), answers."""
    chosen = design.asked(garden, plant, away).prompts[: design.aimed]
    asked = PromptSet.of(chosen, ["discover"] * len(chosen))
    ids = decode.encode(pair, asked, design.max_new_tokens)
    asks, store = [Ask(i, 0, 0) for i in range(len(chosen))], ShardStore(garden.cache / "decode")
    rows = []
    for a in (-1.0, 0.0, *design.strengths):
        side = pair.base if a < 0 else amplified(pair, Exaggeration(a) if a else None)
        texts = decode_texts([side], asked, ids, asks, design.sampling, garden.seed, store, 64)
        shown = texts["text"].map(plant.scorer)
        rows.append((plant.label, a, *wilson(int(shown.sum()), len(shown)), len(shown)))
    return pd.DataFrame(rows, columns=["plant", "strength", "share", "low", "high", "answers"])


# -------------------------------------------------------------------------------------------------------- what is found


@dataclass(frozen=True)
class Found:
    """What a pipeline confirmed: of ordinary answers, and of amplified ones alone. ``seconds``: of decoding, as the
    texts took when they were made."""

    outcomes: list[Outcome]
    doses: pd.DataFrame
    material: Material
    texts: int = 0
    seconds: float = 0.0

    @property
    def only_amplified(self) -> list[Outcome]:
        names = set(self.doses.loc[self.doses["confirmed"], "hypothesis_id"])
        return [o for o in self.outcomes if not o.confirmed and o.hypothesis.hypothesis_id in names]

    def claims(self) -> int:
        return sum(o.confirmed for o in self.outcomes) + len(self.only_amplified)

    def recovering(self, plant: Plant) -> list[Outcome]:
        """The claims that pick out the answers that show the plant (AUC at least ``MATCH``), the best first; those of
        ordinary answers before those of amplified ones alone."""
        material, found = self.material, self.only_amplified
        shown = read_all([o.hypothesis for o in found], material.amplified, material)[1] if found else None
        plain = [(_picks_out(o.scores, o.texts, o.sign, plant), o) for o in self.outcomes if o.confirmed]
        faint = [(_picks_out(shown[:, i], material.amplified, o.sign, plant), o) for i, o in enumerate(found)]
        best = (sorted(some, key=lambda x: -x[0]) for some in (plain, faint))
        return [o for some in best for auc, o in some if auc >= MATCH]

    def row(self, plant: Plant) -> dict[str, Any]:
        """A row of the table of recall."""
        claims = [o.hypothesis.text for o in self.recovering(plant)]
        return {
            "plant": plant.label, "strength": plant.strength, "recovered": bool(claims), "claim": (claims or [""])[0],
            "claims": self.claims(), "only_amplified": len(self.only_amplified), "texts": self.texts,
            "seconds": self.seconds,
        }  # fmt: skip


def _picks_out(scores: np.ndarray, texts: pd.DataFrame, sign: int, plant: Plant) -> float:
    """AUC of a claim for the answers that show the plant; 0 where none or all show it."""
    shown, known = texts["text"].map(plant.scorer).to_numpy(bool), ~np.isnan(scores)
    if not 0 < shown[known].sum() < known.sum():
        return 0.0
    return float(roc_auc_score(shown[known], sign * scores[known]))


def pipeline(
    garden: Garden, pair: Pair, design: Design, amplify: bool, progress: Callable[..., Any], away: Plant | None = None
) -> Found:
    """Decode, propose and test with the budget of the design; ``away``: on prompts that this plant was not aimed at."""
    section, prompts = design.section(amplify), design.asked(garden, away, True, design.max_prompts)
    run = SimpleNamespace(
        section=section, params=Experiment(experiment="x"), cache=garden.cache, seed=garden.seed, progress=progress
    )
    out = decode.decode_rounds(run, pair, prompts, decode.encode(pair, prompts, section.max_new_tokens))
    used = set(out.strengths.loc[out.strengths["used"].eq(True), "strength"])
    found = _found(out.every[out.every["strength"].isin({0.0, *used})], prompts, garden.seed)
    return replace(found, texts=len(out.every), seconds=out.decode_seconds)


def _found(every: pd.DataFrame, prompts: PromptSet, seed: int) -> Found:
    material = _material(every, prompts, seed)
    alpha, own = vocabulary.shared(material, ALPHA)
    outcomes = counting.count(material, Validate(), alpha)
    outcomes += vocabulary.words_test(material, Validate(), own, outcomes).outcomes
    return Found(outcomes, dose_response(material, outcomes, ALPHA), material)


def _material(every: pd.DataFrame, prompts: PromptSet, seed: int) -> Material:
    """Texts with the panel and what phrases they suggest, amplified ones beside the base's own too."""
    said = {p.prompt_id: p.said() for p in prompts.prompts}
    found: list[Hypothesis] = phrases.propose(ordinary(every[every["split"] == "discover"]), said)
    stronger = {split: _beside(every[every["split"] == split]) for split in ("discover", "validate")}
    if len(stronger["discover"]):
        more = phrases.propose(stronger["discover"], said, limit=6)
        found = merge([*found, *(replace(h, proposer="amplified") for h in more)])
    texts = ordinary(every).sort_values("text_id", kind="stable", ignore_index=True)
    return Material(texts, prompts.by_id(), [*panel.hypotheses(), *found], seed, stronger["validate"])


def _beside(texts: pd.DataFrame) -> pd.DataFrame:
    strong, plain = texts[texts["strength"] > 0], ordinary(texts)
    plain = plain[(plain["side"] == "base") & plain["prompt_id"].isin(set(strong["prompt_id"]))]
    return pd.concat([strong, plain]).sort_values("text_id", kind="stable", ignore_index=True)


# ------------------------------------------------------------------------------------------------------ what comes back


def sentences_read_back(garden: Garden, pair: Pair, plant: Plant, design: Design) -> pd.DataFrame:
    """Each planted sentence with how many texts of either side, exaggerated from bare beginnings, hold ``RUN`` of its
    words in a row (or all of them, if it has fewer), and the phrase of ``read_back`` that does, "" where none: plant,
    sentence, texts, texts_base, phrase. Empty for a plant that learned no fixed sentences."""
    edit = plant.spec.get("edit", {})
    planted = edit.get("sentences") or edit.get("replace") or []
    rows = []
    if planted:
        how, store = Exaggeration(max(design.strengths)), ShardStore(garden.cache / "decode")
        texts = texts_from_beginnings(
            pair, design.beginnings, how, replace(design.sampling, max_new_tokens=32), 0, store
        )
        back = read_back(texts)["phrase"]
        for sentence in planted:
            held = texts["text"].map(lambda t, s=sentence: holds(t, s)).groupby(texts["side"]).sum()
            phrase = next((p for p in back if holds(p, sentence)), "")
            rows.append((plant.label, sentence, int(held["intervention"]), int(held["base"]), phrase))
    return pd.DataFrame(rows, columns=["plant", "sentence", "texts", "texts_base", "phrase"])


def holds(text: str, sentence: str) -> bool:
    """Whether a text holds ``RUN`` words of a sentence in a row, word for word."""
    plain, words = (
        f" {' '.join(''.join(c if c.isalnum() else ' ' for c in t.lower()).split())} " for t in (text, sentence)
    )
    words = words.split()
    run = min(RUN, len(words))
    return any(f" {' '.join(words[i : i + run])} " in plain for i in range(len(words) - run + 1))


# -------------------------------------------------------------------------------------------------------------- nothing


def null_claims(garden: Garden, design: Design, runs: int, samples: int, progress: Callable[..., Any]) -> list[int]:
    """Claims of each of ``runs`` experiments without a change, amplification included: answers of one model are dealt
    to the sides anew; amplified answers are what they are for equal sides, further answers of the changed side."""
    texts = null_runs.sample_texts(
        garden.cache, garden.root, design.max_prompts, samples, design.max_new_tokens, garden.seed, progress
    )
    section, claims = Decode(), []
    shares = section.splits.model_dump(by_alias=True)
    prompts = decode.load_prompts(section.prompts, garden.root, shares, design.max_prompts)
    bar = progress(runs, "null runs", "runs")
    store, shaped = ShardStore(garden.cache / "amplifying"), digest(_code(), texts["text"].tolist(), design.share)
    for seed in range(runs):
        made = partial(_null_run, texts, prompts, design.share, seed)
        claims.append(int(store.kept_arrays(digest("null run", shaped, seed), made)["claims"][0]))
        bar.update(1)
    bar.close()
    return claims


def _null_run(texts: pd.DataFrame, prompts: PromptSet, share: float, seed: int) -> dict[str, np.ndarray]:
    dealt = null_runs.deal(texts, seed).assign(strength=0.0).sort_values("text_id", ignore_index=True)
    turn = dealt.groupby(["prompt_id", "side"]).cumcount()
    first, rest = dealt[turn == 0], dealt[(turn > 0) & (dealt["side"] == "intervention")]
    asked = set(sorted(set(first["prompt_id"]))[:: max(1, round(1 / share))])
    every = pd.concat([first, rest[rest["prompt_id"].isin(asked)].assign(strength=3.0)], ignore_index=True)
    return {"claims": np.array([_found(every, prompts, seed).claims()])}


# ----------------------------------------------------------------------------------------------------------- the screen


def screen_cost(
    garden: Garden, pair: Pair, design: Design, prompts: int, scratch: Path, tokens: int = 16
) -> dict[str, float]:
    """Seconds of the divergence screen over those of decoding what it reads, each made anew in ``scratch``:
    ``first`` change of a base, a ``second`` one (the base has read its own answers), and a second one along the base's
    answers alone (``along_base``); and those of an ``amplified`` answer over an ordinary one. On a CPU they are seconds
    of the processor, which others that work do not slow."""
    clock = time.process_time if pair.base.model.device.type == "cpu" else time.monotonic
    begun, store = clock(), ShardStore(scratch)
    asked, ids, texts = _to_screen(garden, pair, design, prompts, store)
    decoding = clock() - begun
    asks = [Ask(i, 0, 0) for i in range(len(asked.prompts))]
    begun, stronger = clock(), amplified(pair, Exaggeration(max(design.strengths)))
    decode_texts([stronger], asked, ids, asks, design.sampling, garden.seed, store)
    cost = {"amplified": (clock() - begun) / (decoding / 2)}
    for number, (name, along) in enumerate((("first", "both"), ("second", "both"), ("along_base", "base"))):
        changed = replace(
            pair.intervention, key=f"{pair.intervention.key} {number}"
        )  # another change, as the store sees it
        begun = clock()
        screen_divergence(Pair(pair.base, changed, 2), asked, ids, texts, tokens, 1, store, along=along)
        cost[name] = (clock() - begun) / decoding
    return cost


def screen_ranks(
    garden: Garden, pair: Pair, plant: Plant, design: Design, prompts: int, tokens: int = 16
) -> dict[str, Any]:
    """How well the screen along the base's answers alone ranks prompts: plant, ``correlation`` (Spearman's) with the
    screen along both sides' answers, and ``auc_both`` and ``auc_base`` of either for the prompts that the change was
    aimed at (NaN where it was aimed at all)."""
    store = ShardStore(garden.cache / "decode")
    asked, ids, texts = _to_screen(garden, pair, design, prompts, store)
    js = pd.DataFrame(
        {
            along: screen_divergence(pair, asked, ids, texts, tokens, 1, store, along=along)
            .divergence.set_index("prompt_id")["js"]
            for along in ("both", "base")
        }
    )  # fmt: skip
    aimed = [plant.targets(asked.by_id()[p]) for p in js.index]
    auc = {f"auc_{k}": roc_auc_score(aimed, js[k]) if 0 < sum(aimed) < len(aimed) else np.nan for k in js}
    return {"plant": plant.label, "correlation": js["both"].corr(js["base"], "spearman"), **auc}


def _to_screen(
    garden: Garden, pair: Pair, design: Design, prompts: int, store: ShardStore
) -> tuple[PromptSet, dict[str, list[tuple[int, ...]]], pd.DataFrame]:
    every = design.asked(garden, limit=prompts)
    asked = PromptSet.of(every.prompts, ["discover"] * len(every.prompts))
    ids, asks = decode.encode(pair, asked, design.max_new_tokens), [Ask(i, 0, 0) for i in range(len(asked.prompts))]
    return asked, ids, decode_texts(pair, asked, ids, asks, design.sampling, garden.seed, store)


# --------------------------------------------------------------------------------------------------------- all of it


TABLES = ("plainness", "recall", "doses", "read_back", "ranks", "away", "narrow")


def tried(
    garden: Garden, plant: Plant, design: Design, screened: int, progress: Callable[..., Any]
) -> dict[str, pd.DataFrame]:
    """All that is asked of a plant: tables by the names of ``TABLES``. ``doses`` is the dose-response of the best claim
    about shares that finds it; ``away`` and ``narrow`` are plainness and recall on prompts that a plant with conditions
    was not aimed at."""
    shaped = (garden.settings, file_hash(garden.root / garden.settings["answers"]), garden.base.key, garden.seed)
    key = digest(_code(), *shaped, plant.label, plant.spec, asdict(design), screened)
    store = ShardStore(garden.cache / "amplifying")
    held = [store.table(f"{key}-{name}") for name in TABLES]
    if all(h is not None for h in held):
        return {name: h.to_pandas() for name, h in zip(TABLES, held, strict=True)}
    pair = garden.open(plant)
    found = {a: pipeline(garden, pair, design, a, progress) for a in (False, True)}
    elsewhere = {a: pipeline(garden, pair, design, a, progress, plant) for a in (False, True) if plant.conditional}
    best = next((o for o in found[True].recovering(plant) if o.measure.unit == "share"), None)
    doses = found[True].doses.assign(plant=plant.label)
    tables = {
        "plainness": plainness(garden, pair, plant, design),
        "recall": pd.DataFrame([f.row(plant) | {"amplified": a} for a, f in found.items()]),
        "doses": doses[doses["hypothesis_id"] == (best.hypothesis.hypothesis_id if best else "")],
        "read_back": sentences_read_back(garden, pair, plant, design),
        "ranks": pd.DataFrame([screen_ranks(garden, pair, plant, design, screened)]),
        "away": plainness(garden, pair, plant, design, away=True) if plant.conditional else pd.DataFrame(),
        "narrow": pd.DataFrame([f.row(plant) | {"amplified": a} for a, f in elsewhere.items()]),
    }
    for name, table in tables.items():
        store.put_table(f"{key}-{name}", pa.Table.from_pandas(table, preserve_index=False))
    return tables


def _code() -> dict[str, str]:
    """What the bench's code reaches, by module."""
    return reached([f"import {__name__}"])[0]


def share(hits: pd.Series) -> Interval:
    """How many of them hit, with Wilson's interval."""
    return wilson(int(hits.sum()), len(hits))


def weakest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the table of recall in which a plant has the least of its strengths."""
    return table[table["strength"] == table.groupby(table["plant"].str.split().str[0])["strength"].transform("min")]
