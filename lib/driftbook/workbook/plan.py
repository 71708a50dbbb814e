"""A dry run: what an experiment would read, write, take and cost, before anything of it is done.

Counts of prompts, texts and calls follow from the parameters. Tokens are estimated (four characters each, and every
answer as long as it may be, so upper bounds). Time divides tokens by speeds that are measured here for a few seconds
on the experiment's own prompts, or by stored ones: the sources of each are said in the plan. Answers that come from a
table or a server are not made here: they are read here, and that is counted.

The plan is kept in ``outputs/<experiment>/plan.json``, and the report of decode says how far it was off.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from driftbook.discovery.prompts import Prompt, read_prompts
from driftbook.workbook.parameters import (
    RESIDUAL_SITES,
    BenchExperiment,
    Experiment,
    Judge,
    ModelSpec,
    expand,
    load_experiment,
    resolved,
)
from driftbook.workbook.progress import duration
from driftbook.workbook.runs import Layout, Run, peak_rss_mb, read_json, write_json

CHARACTERS_PER_TOKEN = 4
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
# Two cores with AVX512-bf16: SmolLM2-135M generating in bf16, and all-MiniLM-L6-v2 under bf16 autocast on short texts.
STORED_TOKENS_PER_S, STORED_PARAMETERS, STORED_TEXTS_PER_S = 640.0, 135e6, 260.0
# A pass over given tokens is limited by arithmetic, generation by memory; between the two on the same two cores.
READING_OVER_GENERATING = 5.0
# One GPU of 80 GB at large batches: 2 operations a parameter and token, 40% of 300 TFLOP/s in bf16.
GPU_FLOPS, GPU_TEXTS_PER_S = 120e12, 5_000.0
# (parameters, layers, width, share of key-value heads) of common sizes; sizes between take the nearest.
SHAPES = (
    (135e6, 30, 576, 1 / 3),
    (0.5e9, 24, 896, 1 / 7),
    (1.5e9, 28, 1536, 1 / 6),
    (3e9, 32, 2560, 1 / 4),
    (7e9, 32, 4096, 1 / 4),
    (14e9, 40, 5120, 1 / 5),
    (32e9, 64, 5120, 1 / 5),
    (70e9, 80, 8192, 1 / 8),
)
LIBRARIES_GB = 1.5
BATCH_CPU, BATCH_GPU = 128, 512  # rows that the local engine computes together when it is not told
CALIBRATION_PROMPTS = 64
LEXICON_CHECKS_PER_S = 20_000.0
BESIDE_PROMPTS = 60  # validate.PROMPTS_BESIDE: importing it would read torch


@dataclass(frozen=True)
class Speeds:
    """Per second: tokens generated (reading their prompts included), tokens read in a forward pass, short texts
    embedded; where that is from; the share of their limit that answers use; and the tokens of a prompt, where known."""

    generate: float
    read: float
    embed: float
    source: str
    length: float = 1.0
    prompt_tokens: float | None = None


@dataclass(frozen=True)
class Size:
    """Parameters of a model, layers, width of the residual stream, and bytes of keys and values per token."""

    parameters: float
    layers: int
    width: int
    kv_bytes: float
    weight_bytes: float


@dataclass(frozen=True)
class Step:
    """One stage: what it does in words, tokens generated and read, seconds, bytes written, USD at most."""

    stage: str
    what: str
    generated: float = 0
    read: float = 0
    seconds: float = 0
    written: float = 0
    usd: float = 0


@dataclass(frozen=True)
class Plan:
    experiment: str
    model: str
    speeds: Speeds
    steps: list[Step]
    memory: list[str]
    notes: list[str] = field(default_factory=list)
    peak_bytes: float = 0  # of each process, or of each GPU
    key: str = ""  # of the parameters that decode depends on


def plan(experiment_file: Path, layout: Layout, calibrate: bool = True) -> Plan:
    """Plan an experiment without running any of it. ``calibrate`` measures this machine for a few seconds.

    Raises ``ParameterError`` as a run would, and ``PromptError`` for a prompt file that cannot be read.
    """
    experiment = load_experiment(experiment_file, layout.root)
    if isinstance(experiment, BenchExperiment):
        return Plan(experiment.experiment, "", _stored(experiment), [], [], ["a bench measures: it has no plan"])
    size = model_size(experiment.base, layout.root)
    speeds = measured(experiment, layout) if calibrate and _can_calibrate(experiment) else _stored(experiment, size)
    notes: list[str] = []
    steps = [
        _traits(experiment, layout.root, size, speeds),
        _capture(experiment, layout.root, size, speeds),
        *_decode_to_validate(experiment, layout.root, speeds, notes),
    ]
    usd = sum(step.usd for step in steps)
    cap = experiment.validation.budget_usd
    if usd > cap:
        notes.append(f"judging may cost {usd:,.2f} USD, above validate.budget_usd: it stops at {cap:,.2f}")
    model = f"{experiment.base.model}: {size.parameters / 1e9:.2f} billion parameters, {size.layers} layers"
    memory, peak = _memory(experiment, size)
    return Plan(experiment.experiment, model, speeds, steps, memory, notes, peak, decode_key(experiment))


# -------------------------------------------------------------------------------------------------------------- speeds


def measured(experiment: Experiment, layout: Layout) -> Speeds:
    """Speeds of this machine with the experiment's own model, prompts and sampling: the one place that loads anything
    for a plan."""
    from driftbook.models.calibration import measure
    from driftbook.models.sampling import SamplingParams

    d = experiment.decode
    here = _prompts(d.prompts, layout.root)
    some = [p.text for p in here[:: max(1, len(here) // CALIBRATION_PROMPTS)][:CALIBRATION_PROMPTS]]
    params = SamplingParams(d.max_new_tokens, d.temperature, d.top_p, d.top_k, d.min_p)
    found = measure(experiment.base, some, params, layout.cache)
    generate, read = (rate * _workers(experiment) for rate in (found.generate, found.read))
    return Speeds(generate, read, found.embed, "measured here", found.length, found.prompt_tokens)


def _can_calibrate(experiment: Experiment) -> bool:
    """Only with a model that is here, and on the kind of machine that would run it."""
    name = experiment.base.model
    local = name.startswith("bundled:") or Path(name).expanduser().exists()
    return local and not _on_gpu(experiment)


def _on_gpu(experiment: Experiment) -> bool:
    return experiment.base.device.startswith("cuda")


def _workers(experiment: Experiment) -> int:
    # Workers on one CPU share its cores; on GPUs each has its own.
    return experiment.engine.workers if experiment.engine.kind == "ray" and _on_gpu(experiment) else 1


def _stored(experiment: Experiment | BenchExperiment, size: Size | None = None) -> Speeds:
    if isinstance(experiment, BenchExperiment) or size is None:
        return Speeds(STORED_TOKENS_PER_S, STORED_TOKENS_PER_S, STORED_TEXTS_PER_S, "stored")
    if _on_gpu(experiment):
        workers = _workers(experiment)
        generate = GPU_FLOPS / (2 * size.parameters) * workers
        source = f"assumed: {workers} GPU(s) of 80 GB, {GPU_FLOPS / 1e12:.0f} TFLOP/s each in use"
        return Speeds(generate, generate, GPU_TEXTS_PER_S * workers, source)
    generate = STORED_TOKENS_PER_S * STORED_PARAMETERS / size.parameters
    source = "stored: two cores with AVX512-bf16, scaled by the number of parameters"
    return Speeds(generate, generate * READING_OVER_GENERATING, STORED_TEXTS_PER_S, source)


def model_size(spec: ModelSpec, root: Path) -> Size:
    """Size of a model from its files where they are here, else from its name (``-7B``), else 1 billion parameters."""
    width_bytes = BYTES[spec.dtype]
    folder = Path(spec.model).expanduser()
    folder = folder if folder.is_absolute() else root / folder
    config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
    stored = sum(p.stat().st_size for p in folder.glob("*.safetensors")) if config else 0
    named = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)(b|m)(?![a-z])", spec.model.lower())
    scale = {"b": 1e9, "m": 1e6}
    parameters = stored / 2 if stored else float(named[1]) * scale[named[2]] if named else 1e9
    _, layers, width, kv_share = min(SHAPES, key=lambda s: abs(math.log(s[0] / parameters)))
    layers, width = config.get("num_hidden_layers", layers), config.get("hidden_size", width)
    if "num_key_value_heads" in config:
        kv_share = config["num_key_value_heads"] / config["num_attention_heads"]
    return Size(parameters, layers, width, 2 * layers * width * kv_share * width_bytes, parameters * width_bytes)


# -------------------------------------------------------------------------------------------------------------- stages


def _tokens(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN


def _sides(experiment: Experiment) -> int:
    return 1 if experiment.intervention.kind == "none" else 2


def _answering(experiment: Experiment) -> float:
    """Share of the answers of both sides that are made here: not those of a table, nor those of a server."""
    return {"texts": 0.0, "endpoint": 0.5}.get(experiment.intervention.kind, 1.0)


def _generating(speeds: Speeds, tokens: float) -> float:
    """Seconds that answers of at most so many tokens take."""
    return tokens * speeds.length / speeds.generate


def _prompts(patterns: list[str], root: Path) -> list[Prompt]:
    here = [p for p in patterns if not p.startswith("hf:")]
    return list(read_prompts(here, root)) if here else []


def _mean_tokens(prompts: list[Prompt]) -> float:
    return sum(_tokens(p.text) for p in prompts) / max(len(prompts), 1)


def _traits(experiment: Experiment, root: Path, size: Size, speeds: Speeds) -> Step:
    section = experiment.traits
    read, contrasts = 0.0, 0
    files = expand(section.files, root)
    for path in files:
        scenarios = json.loads(path.read_text(encoding="utf-8")).get("scenarios", [])[: section.max_scenarios]
        contrasts += len(scenarios)
        if section.scenarios != "instructed":
            read += sum(2 * _tokens(s["prompt"]) + _tokens(s["positive"]) + _tokens(s["negative"]) for s in scenarios)
    generated, steered = 0.0, 0
    if section.dose is not None:
        named = section.dose.traits
        steered = len(files) if named == "all" else len(named) if isinstance(named, list) else 0
        steered = int(getattr(experiment.intervention, "trait", None) is not None) if named == "steered" else steered
        generated = steered * len(section.dose.coefficients) * section.dose.prompts * section.dose.max_new_tokens
    if section.scenarios != "natural":
        told = 2 * section.instructed.samples * contrasts * section.instructed.max_new_tokens
        generated, read = generated + told, read + told
    if section.choose == "steering" and section.layer == "auto":
        one = section.steering
        generated += (len(files) + len(section.combine)) * 2 * one.layers * one.prompts * one.max_new_tokens
    if "gradient" in (section.method, *section.compare):
        read *= 4  # forward and backward besides the replay
    what = f"{len(files)} traits, {contrasts} contrasts read; dose-response of {steered}"
    vectors = 4 * len(files) * size.layers * size.width * (1 + section.null_vectors)
    return Step("traits", what, generated, read, _generating(speeds, generated) + read / speeds.read, vectors)


def _capture(experiment: Experiment, root: Path, size: Size, speeds: Speeds) -> Step:
    section = experiment.capture
    prompts = _prompts(section.prompts, root)
    raw = _prompts(section.tier3.prompts, root)
    samples = _sides(experiment) * section.samples
    answers = samples * (len(prompts) + len(raw)) * section.max_new_tokens
    generated = answers * _answering(experiment)
    read = samples * sum(_tokens(p.text) for p in (*prompts, *raw)) + (answers - generated)
    # Each side's texts are also read by the other side, so that the same tokens can be compared.
    read += answers if samples > section.samples else 0
    directions = len(expand(experiment.traits.files, root)) + experiment.traits.null_vectors
    projections = 4 * (answers + read) * size.layers * len(section.sites or RESIDUAL_SITES) * directions
    internals = 2 * samples * len(raw) * (section.max_new_tokens + _mean_tokens(raw)) * size.width * 8 * size.layers
    what = f"{len(prompts)} prompts x {section.samples} samples x {_sides(experiment)} sides"
    what += f", raw internals of {len(raw)}" if raw else ""
    written = projections + min(internals, section.tier3.max_bytes)
    return Step("capture", what, generated, read, _generating(speeds, generated) + read / speeds.read, written)


def _decode_to_validate(experiment: Experiment, root: Path, speeds: Speeds, notes: list[str]) -> list[Step]:
    decode, cluster = experiment.decode, experiment.cluster
    here = _prompts(decode.prompts, root)
    prompts = len(here)
    if any(p.startswith("hf:") for p in decode.prompts):
        prompts = decode.max_prompts or prompts
        counted = "decode.max_prompts" if decode.max_prompts else "the prompts that are here"
        notes.append(f"prompts on the Hub are counted when decode runs; the plan takes {counted}: {prompts:,}")
    prompts = min(prompts, decode.max_prompts or prompts)
    texts = decode.sampling.max_texts
    fixed = 2 * decode.samples * prompts * (decode.splits.screen + decode.splits.validation)
    if fixed > texts:
        notes.append(
            f"screen and validate alone take {fixed:,.0f} texts, more than decode.sampling.max_texts: raise it, or "
            "lower decode.samples or decode.max_prompts"
        )
    here_made = round(texts * _answering(experiment))
    if experiment.intervention.kind == "endpoint":
        asked_there = texts - here_made
        notes.append(f"{asked_there:,} answers are asked of {experiment.intervention.base_url}: not timed, not priced")
    asked = speeds.prompt_tokens or _mean_tokens(here)
    # The screen reads answers that round 0 wrote anyway, on discover prompts, under both sides; it generates none. It
    # needs the distributions of both.
    scored = min(decode.screen.samples, decode.samples) if decode.screen.enabled and here_made == texts else 0
    screened = round(2 * prompts * decode.splits.discover) * scored
    generated = here_made * decode.max_new_tokens
    tokens_scored = min(decode.screen.tokens, decode.max_new_tokens)
    read = 2 * screened * (asked + tokens_scored)
    by_likelihood = 2 * max(texts - fixed, 0) * (asked + decode.max_new_tokens) if screened else 0
    if decode.screen.likelihood == "always":
        read += by_likelihood
    elif decode.screen.likelihood == "auto" and by_likelihood:
        notes.append(
            f"where the models turn out near, decode reads {by_likelihood:,.0f} tokens more, about "
            f"{duration(by_likelihood / speeds.read)} (decode.screen.likelihood)"
        )
    made = "" if here_made == texts else f", {here_made:,} of them made here"
    decoding = Step(
        "decode",
        f"{prompts:,} prompts, {texts:,} texts of both sides{made}, {screened:,} of them screened",
        generated,
        read,
        _generating(speeds, generated) + read / speeds.read,
        texts * (decode.max_new_tokens * 8 + 300),
    )
    grouped = max(texts - fixed, 0)
    shifted = cluster.trait_shift_texts * decode.max_new_tokens if cluster.trait_shift else 0
    # Mini-batch k-means of 50,000 x 384 with k = 100: 0.6 s on two cores; one fit per bootstrap on top of the first.
    fitting = 0.6 * grouped / 50_000 * (_k(experiment) / 100) * (1 + cluster.bootstraps)
    clustering = Step(
        "cluster",
        f"{grouped:,.0f} texts of split discover embedded, {_k(experiment)} clusters, {cluster.bootstraps} bootstraps",
        0,
        shifted,
        grouped / speeds.embed + shifted / speeds.read + fitting,
        grouped * (384 * 4 + 100),
    )
    return [decoding, clustering, _validate(experiment, prompts)]


def _k(experiment: Experiment) -> int:
    return experiment.cluster.clusters if isinstance(experiment.cluster.clusters, int) else 100


def _validate(experiment: Experiment, prompts: int) -> Step:
    """At most: every hypothesis passes the screen, and none is decided early."""
    decode, section = experiment.decode, experiment.validation
    hypotheses = experiment.cluster.hypotheses + len(section.hypotheses)
    per_prompt = 2 * decode.samples  # both sides' texts, or both orders of a pair
    screen = round(prompts * decode.splits.screen) * per_prompt
    held_out = round(prompts * decode.splits.validation) * per_prompt
    cheap, expensive = section.judges.cheap, section.judges.expensive
    bills = {"cheap": (cheap, screen if expensive is not None else screen + held_out)}
    if expensive is not None:
        bills["expensive"] = (expensive, held_out)
    named = [judge for judge in (expensive, cheap) if judge is not None and judge.kind in ("endpoint", "local")]
    beside = min(BESIDE_PROMPTS * per_prompt, held_out) if named else 0  # each a call about one statement
    usd, seconds, said = 0.0, 0.0, []
    for name, (judge, texts) in bills.items():
        calls = math.ceil(hypotheses / judge.per_call) * texts
        cost = calls * _usd_per_call(judge, decode.max_new_tokens)
        usd += cost
        if judge.kind in ("lexicon", "embedding"):
            seconds += hypotheses * texts / LEXICON_CHECKS_PER_S
            said.append(f"{name}: {judge.kind}, no calls")
        else:
            seconds += calls / judge.concurrency  # about a second a call
            said.append(f"{name}: at most {calls:,} calls, {cost:,.2f} USD")
    if beside:
        calls = beside * (section.coherence + section.rivals)
        cost = calls * _usd_per_call(named[0].model_copy(update={"per_call": 1}), decode.max_new_tokens)
        usd, seconds = usd + cost, seconds + calls / named[0].concurrency
        said.append(f"coherence and sides without a label: at most {calls:,} calls, {cost:,.2f} USD")
    return Step("validate", f"{hypotheses} hypotheses; {'; '.join(said)}", seconds=seconds, usd=usd)


def _usd_per_call(judge: Judge, answer_tokens: int) -> float:
    texts = 2 if judge.mode == "pair" else 1
    given = 150 + texts * answer_tokens + 40 * judge.per_call
    written = min(judge.max_output_tokens, 10 + 15 * judge.per_call)
    return (given * judge.usd_per_million_input + written * judge.usd_per_million_output) / 1e6


def _memory(experiment: Experiment, size: Size) -> tuple[list[str], float]:
    """What needs memory, in words, and bytes at most of each process or GPU."""
    copies = 2 if experiment.intervention.kind in ("checkpoint", "quantize") else 1
    told = experiment.engine.batch_size
    batch = told if isinstance(told, int) else BATCH_GPU if _on_gpu(experiment) else BATCH_CPU
    length = 100 + max(experiment.decode.max_new_tokens, experiment.capture.max_new_tokens)
    cache = size.kv_bytes * batch * length
    weights = f"{_gb(size.weight_bytes)} of weights a model" + (", two models" if copies == 2 else "")
    keys = f"{_gb(cache)} of keys and values for {batch} texts of {length} tokens"
    if _on_gpu(experiment):
        total = size.weight_bytes * copies + cache
        workers = _workers(experiment)
        return [
            f"each GPU: {weights}; {keys}; {_gb(total)} where both models are held at once (traits, capture)",
            f"{workers} worker(s), one GPU each; on the driver only tables",
        ], total
    # On a CPU the matrices are held a second time, packed for its instructions.
    total = 2 * size.weight_bytes * copies + cache + LIBRARIES_GB * 1e9
    return [f"{weights}, and packed once more; {keys}; with libraries about {_gb(total)} for each process"], total


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


# ------------------------------------------------------------------------------------------------------------- writing


def written(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    lines = [f"{plan.experiment}: a plan; nothing was run"]
    if plan.steps:
        speeds = plan.speeds
        lines += [f"  model   {plan.model}"]
        lines += [
            f"  speed   {speeds.generate:,.0f} tokens/s generated, {speeds.read:,.0f} read, {speeds.embed:,.0f} "
            f"texts/s embedded ({speeds.source})"
        ]
        lines += [f"  {'stage':10}{'generated':>14}{'read':>14}{'at most':>16}{'disk':>12}   what"]
        for step in plan.steps:
            lines.append(
                f"  {step.stage:10}{step.generated:>14,.0f}{step.read:>14,.0f}{duration(step.seconds):>16}"
                f"{_gb(step.written):>12}   {step.what}"
            )
        total = [sum(getattr(s, f) for s in plan.steps) for f in ("generated", "read", "seconds", "written", "usd")]
        lines.append(
            f"  {'all':10}{total[0]:>14,.0f}{total[1]:>14,.0f}{duration(total[2]):>16}{_gb(total[3]):>12}"
            f"   {total[4]:,.2f} USD"
        )
    lines += [f"  memory  {line}" for line in plan.memory]
    lines += [f"  note    {line}" for line in plan.notes]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ how far it was off


def decode_key(experiment: Experiment) -> str:
    """16 hex digits over the parameters that the decode stage is given: a plan is held against its own run alone."""
    return hashlib.sha256(json.dumps(resolved(experiment, "decode"), sort_keys=True).encode()).hexdigest()[:16]


def keep(plan: Plan, layout: Layout) -> Path | None:
    """Write the plan to ``outputs/<experiment>/plan.json``; a bench has none."""
    if not plan.steps:
        return None
    path = layout.outputs / plan.experiment / "plan.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(plan))
    return path


def held_against(run: Run, made: dict[str, float]) -> pd.DataFrame:
    """What decoding took, beside what a plan with the same parameters said.

    Args:
        made: ``texts``, ``tokens`` and ``seconds`` of the answers that were made here. Memory is that of this process.

    Returns:
        columns quantity, was, planned, was_over_planned; the last two are NaN when there is no such plan.
    """
    was = made | {"memory, MB": peak_rss_mb()}
    path = run.layout.outputs / run.params.experiment / "plan.json"
    kept: dict[str, Any] = read_json(path) if path.is_file() else {}
    planned = dict.fromkeys(was, float("nan"))
    if kept.get("key") == decode_key(run.params):
        (step,) = (s for s in kept["steps"] if s["stage"] == "decode")
        tokens = step["generated"] * kept["speeds"]["length"]
        planned |= {
            "texts": step["generated"] / run.section.max_new_tokens,
            "tokens": tokens,
            "seconds": tokens / kept["speeds"]["generate"],
            "memory, MB": kept["peak_bytes"] / 1e6,
        }
    out = pd.DataFrame([(name, was[name], planned[name]) for name in was], columns=["quantity", "was", "planned"])
    return out.assign(was_over_planned=out.was / out.planned)
