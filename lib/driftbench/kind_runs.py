"""Every kind of intervention through decode, cluster and validate, small, by the functions that the notebooks call.

The stages hand on their files inside the folder of one bench or test instead of ``outputs/<experiment>``; everything
else is as in an experiment: the parameter models, the caches, the seeds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from driftbench.serving import Server, served_copy, transformers_server
from driftbook import cluster, decode, validate
from driftbook.discovery.amplification import ordinary
from driftbook.errors import DriftbookError
from driftbook.models.export import export_steered
from driftbook.models.finetune import train_lora
from driftbook.models.loading import load
from driftbook.models.sides import Pair, open_pair, open_sides
from driftbook.models.vectors import VectorSet
from driftbook.parameters import Experiment
from driftbook.prompts import load_saved
from driftbook.workbook.runner import run_stage
from driftbook.workbook.runs import Run


@dataclass
class StageRun(Run):
    """A stage whose files lie in the folder of another run. Its neighbours' lie beside them; the vectors of the traits
    stage are common to all."""

    def input(self, stage: str) -> Path:
        """The data folder of a stage before this one. Raises ``DriftbookError`` if it has not been run."""
        parent = self.folder.parent
        data = (parent.parent if stage == "traits" else parent) / stage / "data"
        if not data.is_dir():
            raise DriftbookError(f"{self.stage} reads {stage}, and {data} is not there")
        return data


def stage_run(outer: Run, params: Experiment, stage: str) -> StageRun:
    """A stage of ``params``, in a folder of the outer run, over the outer run's caches."""
    folder = outer.data / params.experiment / stage
    (folder / "data").mkdir(parents=True, exist_ok=True)
    return StageRun(stage, params, outer.layout, folder, outer.headless)


def experiment(outer: Run, name: str, intervention: dict[str, Any], sections: dict[str, Any]) -> Experiment:
    """The parameters of one small experiment. ``sections`` holds ``base`` and the sections of the stages."""
    values = {"experiment": name, "seed": outer.seed, "intervention": intervention, **sections}
    return Experiment.model_validate(values)


# ----------------------------------------------------------------------------------------------- what the kinds are of


def fit_vectors(params: Experiment, run: Run) -> VectorSet:
    """The vectors of the traits stage, for the steered and ablated kinds of this run.

    The notebook runs headless as in an experiment, in a folder of its own over the same caches.

    Raises:
        DriftbookError: the notebook failed; with its reason.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "params").mkdir()
        (root / "outputs").mkdir()
        for name in ("lib", "notebooks", "params/traits", "params/prompts"):
            (root / name).symlink_to(run.root / name)
        (root / "outputs/.cache").symlink_to(run.cache)
        file = root / f"params/{params.experiment}.yml"
        file.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True, exclude_unset=True)))
        result = run_stage(file, "traits", echo=False)
        if not result.good:
            raise DriftbookError(f"the traits stage failed: {result.reason}")
        data = run.data / "traits/data"
        shutil.copytree(result.folder / "data", data, dirs_exist_ok=True)
    return VectorSet.load(data)


def write_lesson(trait: Path, path: Path) -> Path:
    """The answers of a trait file's scenarios that show the trait, as data for a fine-tune."""
    scenarios = json.loads(trait.read_text(encoding="utf-8"))["scenarios"]
    lines = [json.dumps({"prompt": s["prompt"], "response": s["positive"]}, ensure_ascii=False) for s in scenarios]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def steered_checkpoint(params: Experiment, vectors: VectorSet, run: Run) -> Path:
    """The steered model of ``params`` as an ordinary checkpoint in the cache."""
    pair = open_pair(params.base, params.intervention, run.cache, run.root, vectors)
    (tap,) = pair.intervention.taps
    return export_steered(pair.base.model, tap, run.cache / "steered" / pair.intervention.key)


def table_of(decoded: Path, path: Path) -> Path:
    """The texts of a decode stage's data folder as a table that ``intervention.kind: texts`` reads."""
    texts = ordinary(pd.read_parquet(decoded / "texts.parquet")).sort_values("sample_index", kind="stable")
    prompts = load_saved(decoded)
    asked = [prompts[p] for p in texts["prompt_id"]]
    chats = any(p.messages for p in prompts.values())  # a column of parquet holds texts or conversations
    texts[["side", "text"]].assign(
        prompt=[p.chat() if chats else p.text for p in asked],
        family=[p.family for p in asked],
        system=[p.system for p in asked],
    ).to_parquet(path)
    return path


def kinds(bench: dict[str, Any], steer: dict[str, Any], lesson: Path, checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The kinds that need nothing of another kind's run, as a parameter file says them."""
    return {
        "none": {"kind": "none"},
        "prompt": {"kind": "prompt", "system": bench["system"]},
        "steer": steer,
        "checkpoint": {"kind": "checkpoint", **bench["sections"]["base"], "model": str(checkpoint)},
        "ablate": {"kind": "ablate", "trait": steer["trait"]},
        "quantize8": {"kind": "quantize", "bits": 8},
        "quantize4": {"kind": "quantize", "bits": 4},
        "finetune": {"kind": "finetune", "data": str(lesson), "epochs": bench["epochs"]},
    }


def trained_adapter(params: Experiment, run: Run) -> Path:
    """The folder of the adapter that a ``finetune`` trains, or has trained."""
    return train_lora(load(params.base, run.cache), params.intervention, run.cache, run.root)


@contextlib.contextmanager
def serving(checkpoint: Path, run: Run) -> Iterator[Server]:
    """A real server on a checkpoint, in a copy in the cache that makes it sample as it is asked to; its log is among
    the run's data."""
    copy = served_copy(checkpoint, run.cache / "served" / checkpoint.name)
    with transformers_server(copy, run.data / "server.log") as server:
        yield server


# ------------------------------------------------------------------------------------------------------------- a run


def run_kind(outer: Run, name: str, intervention: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """One kind through the three stages.

    Args:
        name: of its folder in the outer run's data; ``steer`` and ``ablate`` need the vectors of ``fit_vectors``
            beside it.

    Returns:
        what it found: ``kind``, ``texts``, ``js`` with ``js_low`` and ``js_high`` (NaN where it is not defined),
        ``clusters``, ``moved`` (clusters, or different groups of sentences, at q <= 0.05), ``hypotheses``,
        ``confirmed``, ``asked`` (whether a hypothesis of the parameters is among them), ``finding`` (the first claim),
        ``model_loads`` and ``seconds``.
    """
    begun = time.monotonic()
    params = experiment(outer, name, intervention, sections)
    pair, decoded = run_decode(stage_run(outer, params, "decode"))
    figures = cluster.metrics(run_cluster(stage_run(outer, params, "cluster")))
    claims = run_validate(stage_run(outer, params, "validate"))
    js, low, high = decode.mean_divergence(decoded.divergence) or [float("nan")] * 3
    found = {
        "kind": name,
        "texts": len(decoded.texts),
        "js": js,
        "js_low": low,
        "js_high": high,
        "clusters": int(figures["clusters"]),
        "moved": int(figures.get("told_groups", figures.get("moved_clusters", 0))),
        "hypotheses": len(claims),
        "confirmed": int(claims["confirmed"].sum()),
        "asked": bool((claims["confirmed"] & (claims["proposer"] == "person")).any()),
        "finding": _finding(claims),
        "model_loads": pair.model_loads,
    }
    del pair, decoded
    gc.collect()  # two models may not wait for the next two
    return found | {"seconds": round(time.monotonic() - begun, 2)}


def run_decode(run: Run) -> tuple[Pair, decode.Decoded]:
    """The decode stage, its tables written."""
    d = run.section
    pair = open_sides(run)
    shares = d.splits.model_dump(by_alias=True)
    prompts = decode.load_prompts(d.prompts, run.root, shares, d.max_prompts, pair.prompts)
    decode.no_prompts(prompts)
    ids = decode.encode(pair, prompts, d.max_new_tokens)
    decoded = decode.decode_rounds(run, pair, prompts, ids)
    decode.write(run, prompts, ids, pair, decoded)
    return pair, decoded


def run_cluster(run: Run) -> cluster.Grouped:
    """The cluster stage without map, exemplars and trait shift, its tables written."""
    texts = cluster.load_texts(run.input("decode"))
    grouped = cluster.find(texts, run.section, run.cache, run.seed, run.params.base.device)
    cluster.save(run.data, grouped, hypotheses=cluster.proposals(grouped, run.section))
    return grouped


def run_validate(run: Run) -> pd.DataFrame:
    """The validate stage without baselines: its claims, which are written."""
    v = run.section
    material = validate.load(run)
    judges = validate.open_judges(run, material)
    material = validate.label(run, material, judges)
    frozen = validate.freeze(material, judges, v)
    counted = validate.count(run, material, judges)
    words = validate.words(run, material, judges, counted)
    screening = validate.screen(material, judges, v)
    alpha = validate.levels(material, judges, v.alpha).judged
    survivors = screening.survivors if judges.tester.paid else []
    tested = validate.holdout_test(material, judges, survivors, v, run.progress, alpha)
    outcomes = [*counted, *words.outcomes, *validate.outcomes(tested, v)]
    claims = validate.claims_table(material, frozen, screening, outcomes)
    claims.to_parquet(run.data / "claims.parquet", compression="zstd", index=False)
    return claims


def _finding(claims: pd.DataFrame) -> str:
    held = claims[claims["confirmed"]]
    if held.empty:
        return ""
    first = held.iloc[0]
    return f"{first['direction']}: {first['text']}"


def agreement(outer: Run, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """How far two kinds that are the same change agree: kind, with, texts (share of the intervention's answers to the
    same prompt and sample that are equal), claims confirmed by both, and by one of them alone."""
    rows = []
    for one, other in pairs:
        said = [_answers(outer.data / name / "decode/data") for name in (one, other)]
        both = said[0].merge(said[1], on=["prompt_id", "sample_index"])
        held = [_confirmed(outer.data / name / "validate/data") for name in (one, other)]
        equal = float((both["text_x"] == both["text_y"]).mean())
        rows.append((one, other, equal, len(held[0] & held[1]), len(held[0] ^ held[1])))
    return pd.DataFrame(rows, columns=["kind", "with", "texts", "claims_of_both", "claims_of_one"])


def _answers(decoded: Path) -> pd.DataFrame:
    columns = ["side", "prompt_id", "sample_index", "text", "strength"]
    texts = ordinary(pd.read_parquet(decoded / "texts.parquet", columns=columns))
    return texts[texts["side"] == "intervention"].drop(columns=["side", "strength"])


def _confirmed(validated: Path) -> set[str]:
    claims = pd.read_parquet(validated / "claims.parquet", columns=["direction", "text", "confirmed"])
    held = claims[claims["confirmed"]]
    return {f"{d}: {t}" for d, t in zip(held["direction"], held["text"], strict=True)}


def sentence(results: pd.DataFrame) -> str:
    """What was found, for the head of the report."""
    found, asked = results[results["confirmed"] > 0], results[results["asked"]]
    nothing = int(results.loc[results["kind"] == "none", "confirmed"].sum())
    return (
        f"All {len(results)} kinds ran. A claim was confirmed for {', '.join(found['kind']) or 'none of them'}; the "
        f"hypothesis of our own for {', '.join(asked['kind']) or 'none'}. Where nothing was changed, {nothing} claims "
        "were confirmed."
    )
