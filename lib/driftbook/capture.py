"""Capture: every trait is read at every token, layer and site while both sides answer, in one pass over all prompts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from driftbook.discovery.prompts import Prompt, check_lengths, from_frame, read_prompts
from driftbook.discovery.splits import sample_prompts
from driftbook.errors import BudgetError, DriftbookError
from driftbook.evidence.dynamics import dynamics
from driftbook.evidence.intervals import bootstrap_mean, resample_counts
from driftbook.models.answers import Question
from driftbook.models.internals import capture_internals
from driftbook.models.interventions import Pair, Side, taps_of
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine
from driftbook.models.projection import ProjectionTap, Rows, all_points
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.vectors import VectorSet
from driftbook.store import ShardStore, digest

MOST_GIVEN = 24  # prompts of a table of texts that are captured: a capture is for reading token by token


@dataclass(frozen=True)
class Sample:
    """One captured answer. ``rows`` hold prompt and response tokens in the ``own`` convention; the end token has no
    row."""

    sample_id: str
    side: str
    prompt: int
    sample: int
    sequence: TokenSequence
    finish_reason: str
    rows: Rows
    seconds: float = 0.0  # share of the capture of its batch, as it was measured then

    @property
    def response(self) -> slice:
        """The rows of the response."""
        return slice(len(self.sequence.prompt_ids), len(self.sequence))


@dataclass(frozen=True)
class Probe:
    """What is read: points (layer, site), directions ``[points, d_model, traits]`` and the names of the traits."""

    points: list[tuple[int, str]]
    matrix: torch.Tensor
    traits: list[str]
    layers: list[int]
    sites: list[str]

    @property
    def key(self) -> str:
        content = hashlib.sha256(self.matrix.numpy().tobytes()).hexdigest()
        return digest(self.points, content, self.traits)

    def grid(self, projection: np.ndarray) -> np.ndarray:
        """``[..., points, traits]`` as ``[..., layers, sites, traits]``."""
        return projection.reshape(*projection.shape[:-2], len(self.layers), len(self.sites), projection.shape[-1])


def make_probe(vectors: VectorSet, method: str, sites: Sequence[str], model: LoadedModel) -> Probe:
    """All traits of a vector set at every layer and the given sites."""
    points = all_points(model, sites)
    matrix = torch.from_numpy(vectors.matrix(vectors.traits, method, points))
    return Probe(points, matrix, vectors.traits, list(range(model.hooks.n_layers)), list(sites))


def null_probe(vectors: VectorSet, probe: Probe) -> Probe:
    """The null directions at the same points."""
    matrix = torch.from_numpy(np.ascontiguousarray(vectors.null_matrix(probe.points)))
    return Probe(probe.points, matrix, [f"null {i}" for i in range(matrix.shape[-1])], probe.layers, probe.sites)


def load_prompts(
    patterns: Sequence[str], root: Path, side: Side, max_new_tokens: int, given: Sequence[Prompt] | None = None
) -> list[Prompt]:
    """The prompts of a capture, or some of those ``given`` (families in proportion); each must leave room for its
    answer."""
    prompts = list(read_prompts(list(patterns), root)) if given is None else sample_prompts(given, MOST_GIVEN)
    check_lengths(
        prompts,
        lambda p: len(side.encode(p.text, p.system, p.chat() if p.messages else None)),
        side.model.context - max_new_tokens,
    )
    return prompts


# ----------------------------------------------------------------------------------------------------------------- live


def capture_live(
    side: Side,
    prompts: Sequence[Prompt],
    samples: int,
    params: SamplingParams,
    probe: Probe,
    seed: int,
    cache: Path,
    batch_size: int | str = "auto",
    max_bytes: int = 8_000_000_000,
    progress: Callable[[int], Any] | None = None,
) -> list[Sample]:
    """Generate ``samples`` answers to every prompt and read them while they are made.

    Prompts are captured in shards of one batch each, which come from the cache when they are there.

    Raises:
        BudgetError: the rows of all samples would exceed ``max_bytes``, refused before anything runs.
    """
    store = ShardStore(cache / "capture")
    encoded = [side.encode(p.text, p.system, p.chat() if p.messages else None) for p in prompts]
    worst = sum((len(e) + params.max_new_tokens) * samples for e in encoded)
    ProjectionTap(probe.points, probe.matrix, max_bytes).check_budget(worst)
    engine = LocalEngine(side.model, batch_size)
    order = sorted(
        ((p, s) for p in range(len(prompts)) for s in range(samples)), key=lambda a: (-len(encoded[a[0]]), a)
    )
    out: dict[tuple[int, int], Sample] = {}
    shard = engine.batch_size  # the engine's own shrinks when memory runs out
    for start in range(0, len(order), shard):
        chosen = order[start : start + shard]
        requests = [
            Question(encoded[p], stream_seed("capture", seed, side.name, q.prompt_id, s), prompt=q, sample=s)
            for p, s, q in ((p, s, prompts[p]) for p, s in chosen)
        ]
        key = digest(
            "capture", engine.version, side.key, asdict(params), probe.key, [(r.prompt_ids, r.seed) for r in requests]
        )
        held = store.arrays(key)
        if held is None:
            held = store.put_arrays(key, _generate(engine, side, requests, params, probe, progress))
        elif progress:
            progress(len(chosen))
        for (p, s), request, piece in zip(chosen, requests, _pieces(held), strict=True):
            ids, finished, rows, seconds = piece
            sample_id = digest(side.name, side.key, request.prompt_ids, request.seed, asdict(params))[:16]
            reason = "eos" if finished else "length"
            sequence = TokenSequence(request.prompt_ids, ids)
            out[p, s] = Sample(sample_id, side.name, p, s, sequence, reason, rows, seconds)
    return [out[a] for a in sorted(out)]


def _generate(
    engine, side: Side, requests: Sequence[Question], params: SamplingParams, probe: Probe, progress
) -> dict[str, np.ndarray]:
    begun = time.monotonic()
    tap = ProjectionTap(probe.points, probe.matrix)
    done: dict[int, tuple[list[int], bool]] = {}
    if side.source is None:
        with side.active():
            for c in engine.generate(requests, params, taps_of(side, [tap])):
                finished = c.finish_reason == "eos"
                done[c.index] = (c.token_ids[:-1] if finished else c.token_ids, finished)
                if progress:
                    progress(1)
    else:  # answered elsewhere: the model that is here reads what was said, as many tokens as it would have said
        for c in side.source.generate(requests, params):
            whole = len(c.token_ids) <= params.max_new_tokens
            done[c.index] = (c.token_ids[: params.max_new_tokens], whole and c.finish_reason == "eos")
    responses = [done[i][0] for i in range(len(requests))]
    if side.source is None:
        lengths = [len(r.prompt_ids) + len(ids) for r, ids in zip(requests, responses, strict=True)]
        rows = tap.rows([r.prompt_ids for r in requests], [r.strength for r in requests], lengths)
    else:
        rows = _read(side, requests, responses, tap, progress)
        lengths = [len(r.norm) for r in rows]
    return {
        "tokens": np.concatenate([np.array(ids, np.int32) for ids in responses]),
        "response_lengths": np.array([len(ids) for ids in responses], np.int32),
        "row_lengths": np.array(lengths, np.int32),
        "finished": np.array([done[i][1] for i in range(len(requests))], np.uint8),
        "projection": np.concatenate([r.projection for r in rows]),
        "norm": np.concatenate([r.norm for r in rows]),
        "seconds": np.array([(time.monotonic() - begun) / len(requests)]),
    }


def _read(side: Side, requests: Sequence[Question], responses: Sequence[list[int]], tap: ProjectionTap, progress):
    sequences = [TokenSequence(q.prompt_ids, tuple(ids)) for q, ids in zip(requests, responses, strict=True)]
    for batch, _ in replay(side.model, sequences, [tap]):
        if progress:
            progress(len(batch))
    return tap.replayed(len(sequences))


def _pieces(held: dict[str, np.ndarray]):
    token_ends = np.cumsum(held["response_lengths"])
    row_ends = np.cumsum(held["row_lengths"])
    for n, m, t, r, finished in zip(
        held["response_lengths"], held["row_lengths"], token_ends, row_ends, held["finished"], strict=True
    ):
        rows = Rows(held["projection"][r - m : r], held["norm"][r - m : r])
        yield tuple(int(i) for i in held["tokens"][t - n : t]), bool(finished), rows, float(held["seconds"][0])


# --------------------------------------------------------------------------------------------------------------- replay


def capture_replay(
    side: Side,
    sequences: Sequence[TokenSequence],
    probe: Probe,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> list[Rows]:
    """The same rows for tokens that already exist (another side's answers, decoded texts), one ``Rows`` per
    sequence."""
    store = ShardStore(cache / "capture")
    out: list[Rows] = []
    for start in range(0, len(sequences), 128):
        chosen = sequences[start : start + 128]
        key = digest("replay", side.key, probe.key, [(s.prompt_ids, s.response_ids) for s in chosen])
        held = store.arrays(key)
        if held is None:
            tap = ProjectionTap(probe.points, probe.matrix)
            with side.active():
                for batch, _ in replay(side.model, chosen, taps_of(side, [tap])):
                    if progress:
                        progress(len(batch))
            rows = tap.replayed(len(chosen))
            held = store.put_arrays(
                key,
                {
                    "row_lengths": np.array([len(r.norm) for r in rows], np.int32),
                    "projection": np.concatenate([r.projection for r in rows]),
                    "norm": np.concatenate([r.norm for r in rows]),
                },
            )
        elif progress:
            progress(len(chosen))
        ends = np.cumsum(held["row_lengths"])
        out += [
            Rows(held["projection"][e - n : e], held["norm"][e - n : e])
            for n, e in zip(held["row_lengths"], ends, strict=True)
        ]
    return out


# ---------------------------------------------------------------------------------------------------------------- scale


@dataclass(frozen=True)
class Scale:
    """Turns raw projections into null units: ``(h.v - mean) / sd``.

    ``mean`` is ``[layers, sites, traits]`` over the base's response tokens, ``sd`` is ``[layers, sites]`` over null
    directions on those tokens, ``low`` and ``high`` ``[layers, sites]`` hold 95% of the null's own scores.
    """

    mean: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def score(self, grid: np.ndarray) -> np.ndarray:
        """``[..., layers, sites, traits]`` raw projections as scores."""
        return (grid - self.mean) / self.sd[..., None]

    def table(self, probe: Probe) -> pd.DataFrame:
        """One row per layer, site and trait, as ``scale.parquet`` holds it: it turns raw projections into scores."""
        index = pd.MultiIndex.from_product([probe.layers, probe.sites, probe.traits], names=["layer", "site", "trait"])
        columns = {"mean": self.mean}
        for name in ("sd", "low", "high"):
            columns[name] = np.broadcast_to(getattr(self, name)[..., None], self.mean.shape)
        return pd.DataFrame({name: v.reshape(-1) for name, v in columns.items()}, index=index).reset_index()


def make_scale(
    base: Sequence[Sample],
    probe: Probe,
    side: Side,
    null: Probe,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> Scale:
    """The null of a capture: null directions read on the base's own answers (the first sample of every prompt)."""
    responses = np.concatenate([s.rows.projection[s.response] for s in base])
    mean = probe.grid(responses).mean(0)
    first = [s for s in base if s.sample == 0]
    rows = capture_replay(side, [s.sequence for s in first], null, cache, progress)
    values = np.concatenate(
        [r.projection[s.response] for s, r in zip(first, rows, strict=True)]
    )  # [tokens, points, directions]
    centred = values - values.mean(0)
    sd = centred.std(axis=(0, 2))
    low, high = np.quantile(centred / sd[:, None], [0.025, 0.975], axis=(0, 2))
    shape = (len(probe.layers), len(probe.sites))
    return Scale(mean, sd.reshape(shape), low.reshape(shape), high.reshape(shape))


# ---------------------------------------------------------------------------------------------------------------- shift


def same_tokens(
    pair: Pair,
    base: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, list[Sample]]:
    """The base's answers as each side processes them, replayed in the same batches after the prompt as that side gets
    it.

    Both sides are replayed, the base too: a difference is then exactly zero wherever the two compute the same, which
    the rows of the live capture, made in other batches, would blur by rounding.
    """
    out = {}
    for side in pair:
        encoded = [side.encode(p.text, p.system, p.chat() if p.messages else None) for p in prompts]
        sequences = [TokenSequence(encoded[s.prompt], s.sequence.response_ids) for s in base]
        rows = capture_replay(side, sequences, probe, cache, progress)
        out[side.name] = [
            replace(s, side=side.name, sequence=q, rows=r) for s, q, r in zip(base, sequences, rows, strict=True)
        ]
    return out


def prompt_means(samples: Sequence[Sample], probe: Probe, prompts: int) -> np.ndarray:
    """Mean raw projection over response tokens, then over samples: ``[prompts, layers, sites, traits]``.

    NaN where a prompt has no answer with a token in it.
    """
    out = np.full((prompts, len(probe.layers), len(probe.sites), len(probe.traits)), np.nan)
    for p in range(prompts):
        means = [s.rows.projection[s.response].mean(0) for s in samples if s.prompt == p and s.sequence.response_ids]
        if means:
            out[p] = probe.grid(np.mean(means, 0))
    return out


def shift_tables(
    base: Sequence[Sample],
    own: Sequence[Sample],
    same: dict[str, list[Sample]],
    prompts: int,
    scale: Scale,
    probe: Probe,
    seed: int,
) -> pd.DataFrame:
    """Both comparisons below each other: the intervention's own text, and the base's tokens, against the base."""
    own_text = [prompt_means(samples, probe, prompts) for samples in (base, own)]
    replayed = [prompt_means(same[side], probe, prompts) for side in ("base", "intervention")]
    return pd.concat(
        [
            shift_table(*own_text, scale, probe, "own_text", seed),
            shift_table(*replayed, scale, probe, "same_tokens", seed),
        ],
        ignore_index=True,
    )


def shift_table(
    before: np.ndarray, after: np.ndarray, scale: Scale, probe: Probe, comparison: str, seed: int, resamples: int = 2000
) -> pd.DataFrame:
    """How far each trait moved at each layer and site, in null units, with 95% intervals by resampling prompts.

    Args:
        before, after: ``[prompts, layers, sites, traits]`` from :func:`prompt_means`.
        comparison: ``own_text`` (each side's own answers) or ``same_tokens`` (the base's answers under both sides).
    """
    difference = (after - before) / scale.sd[None, ..., None]
    ok = np.isfinite(difference).all(axis=(1, 2, 3))
    difference = difference[ok]
    n = len(difference)
    weights = resample_counts(n, resamples, seed) / n
    means = (weights @ difference.reshape(n, -1)).reshape(resamples, *difference.shape[1:])
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    shift = difference.mean(0)
    rows = [
        (comparison, trait, layer, site, shift[i, j, k], low[i, j, k], high[i, j, k], n)
        for i, layer in enumerate(probe.layers)
        for j, site in enumerate(probe.sites)
        for k, trait in enumerate(probe.traits)
    ]
    return pd.DataFrame(rows, columns=["comparison", "trait", "layer", "site", "shift", "low", "high", "prompts"])


# --------------------------------------------------------------------------------------------------------------- tables


def token_table(
    samples: Sequence[Sample], prompts: Sequence[Prompt], model: LoadedModel, convention: str
) -> pd.DataFrame:
    """One row per captured row, in the order of ``projections.safetensors``."""
    frames = []
    for s in samples:
        ids = s.sequence.ids
        n = len(s.sequence.prompt_ids)
        roles = prompt_roles(model, s.sequence.prompt_ids, prompts[s.prompt].text) + ["response"] * (len(ids) - n)
        frames.append(
            pd.DataFrame(
                {
                    "sample": s.sample_id,
                    "side": s.side,
                    "prompt_id": prompts[s.prompt].prompt_id,
                    "sample_index": s.sample,
                    "position": np.arange(len(ids), dtype=np.int32),
                    "token": np.array(ids, np.int32),
                    "text": [model.tokenizer.decode([i]) for i in ids],
                    "role": roles,
                    "convention": convention,
                    "finished": s.finish_reason == "eos",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def prompt_roles(model: LoadedModel, prompt_ids: Sequence[int], text: str) -> list[str]:
    """``prompt`` for the tokens that hold the user's text, ``template`` for everything around it."""
    pieces = [model.tokenizer.decode([i]) for i in prompt_ids]
    whole = "".join(pieces)
    begin = whole.rfind(text.strip())
    if begin < 0:  # byte-level pieces of rare characters do not join to the text: everything counts as prompt
        return ["prompt"] * len(pieces)
    end = begin + len(text.strip())
    roles, at = [], 0
    for piece in pieces:
        roles.append("prompt" if at < end and at + len(piece) > begin else "template")
        at += len(piece)
    return roles


def dynamics_table(
    samples: Sequence[Sample], prompts: Sequence[Prompt], probe: Probe, scale: Scale, vectors: VectorSet
) -> pd.DataFrame:
    """Commitment, velocity, persistence and change points of every sample and trait, at the trait's chosen layer and
    site."""
    rows = []
    for s in samples:
        score = scale.score(probe.grid(s.rows.projection[s.response]))
        for k, trait in enumerate(probe.traits):
            record = vectors.chosen(trait)
            d = dynamics(score[:, probe.layers.index(record.layer), probe.sites.index(record.site), k])
            rows.append(
                {
                    "sample": s.sample_id,
                    "side": s.side,
                    "prompt_id": prompts[s.prompt].prompt_id,
                    "sample_index": s.sample,
                    "trait": trait,
                    "layer": record.layer,
                    "site": record.site,
                    "tokens": len(score),
                    "mean": d.mean,
                    "commitment": d.commitment,
                    "velocity": d.velocity,
                    "persistence": d.persistence,
                    "outside": d.outside,
                    "change_points": list(d.change_points),
                }
            )
    return pd.DataFrame(rows)


def explorer_data(
    pair: Pair,
    base: Sequence[Sample],
    other: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    site: str,
) -> dict[str, Any]:
    """First samples of both sides for the trace explorer: response tokens, scores ``[sample, layer, trait, position]``,
    null band."""
    j = probe.sites.index(site)
    chosen = {"base": [s for s in base if s.sample == 0], "intervention": [s for s in other if s.sample == 0]}
    longest = max(len(s.sequence.response_ids) for side in chosen.values() for s in side)
    projections, tokens = {}, {}
    for side, samples in chosen.items():
        block = np.full((len(samples), len(probe.layers), len(probe.traits), longest), np.nan, np.float32)
        for row, s in enumerate(samples):
            score = scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j]
            block[row, :, :, : len(score)] = score.transpose(1, 2, 0)
        projections[side] = block
        tokenizer = getattr(pair, side).model.tokenizer
        tokens[side] = [[tokenizer.decode([i]) for i in s.sequence.response_ids] for s in samples]
    band = (len(probe.layers), len(probe.traits))
    return {
        "samples": [prompts[s.prompt].text for s in chosen["base"]],
        "traits": probe.traits,
        "layers": probe.layers,
        "tokens": tokens,
        "projections": projections,
        "null_low": np.broadcast_to(scale.low[:, j, None], band),
        "null_high": np.broadcast_to(scale.high[:, j, None], band),
        "unit": "score in null standard deviations",
        "convention": "own",
    }


def write_rows(folder: Path, samples: Sequence[Sample], probe: Probe, convention: str) -> None:
    """``projections.safetensors``: ``projection`` ``[row, layer, site, trait]`` and ``norm`` ``[row, layer, site]``,
    float32, raw."""
    rows = [s.rows.producer() if convention == "producer" else s.rows for s in samples]
    projection = probe.grid(np.concatenate([r.projection for r in rows]))
    norm = np.concatenate([r.norm for r in rows]).reshape(-1, len(probe.layers), len(probe.sites))
    names = {
        "traits": ",".join(probe.traits),
        "layers": ",".join(map(str, probe.layers)),
        "sites": ",".join(probe.sites),
        "convention": convention,
    }
    save_file(
        {"projection": np.ascontiguousarray(projection), "norm": np.ascontiguousarray(norm)},
        folder / "projections.safetensors",
        metadata=names,
    )


# -------------------------------------------------------------------------------------------------------- decoded texts


def text_scores(
    pair: Pair,
    texts: pd.DataFrame,
    prompts: pd.DataFrame,
    vectors: VectorSet,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Mean score of every trait over each decoded text, read by replay under the side that wrote it.

    Scores are in null standard deviations at each trait's chosen layer and site, centred on the base's texts.

    Args:
        texts: ``text_id``, ``side``, ``prompt_id``, ``token_ids``.
        prompts: the table of prompts, as the decode stage wrote it.

    Returns:
        ``text_id`` and one column per trait; texts without a token are left out.
    """
    chosen = {t: (vectors.chosen(t).layer, vectors.chosen(t).site) for t in vectors.traits}
    points = sorted(set(chosen.values()))
    method = vectors.chosen(vectors.traits[0]).method
    traits = torch.from_numpy(vectors.matrix(vectors.traits, method, points))
    null = torch.from_numpy(np.ascontiguousarray(vectors.null_matrix(points)))
    names = [*vectors.traits, *(f"null {i}" for i in range(null.shape[-1]))]
    probe = Probe(points, torch.cat([traits, null], -1), names, [p[0] for p in points], [])
    asked = from_frame(prompts)
    texts = texts[texts.token_ids.map(len) > 0]
    means, ids, base_nulls = [], [], []
    for side in pair:
        mine = texts[texts.side == side.name]
        sequences = []
        for prompt_id, tokens in zip(mine.prompt_id, mine.token_ids, strict=True):
            p = asked[prompt_id]
            encoded = side.encode(p.text, p.system, p.chat() if p.messages else None)
            response = [int(t) for t in tokens]
            # The end token says nothing about the answer.
            response = response[:-1] if len(response) > 1 and response[-1] in side.model.eos_ids else response
            sequences.append(TokenSequence(encoded, tuple(response)))
        rows = capture_replay(side, sequences, probe, cache, progress)
        spoken = [r.projection[len(q.prompt_ids) :] for q, r in zip(sequences, rows, strict=True)]
        means += [s.mean(0) for s in spoken]
        ids += list(mine.text_id)
        if side.name == "base":
            base_nulls = [s[..., len(vectors.traits) :] for s in spoken]
    values, side_of = np.stack(means), texts.set_index("text_id").side.loc[ids].to_numpy()
    tokens_null = np.concatenate(base_nulls)
    sd = (tokens_null - tokens_null.mean(0)).std(axis=(0, 2))
    out = {"text_id": ids}
    for k, trait in enumerate(vectors.traits):
        point = points.index(chosen[trait])
        mean = values[side_of == "base", point, k].mean()
        out[trait] = (values[:, point, k] - mean) / sd[point]
    return pd.DataFrame(out)


# --------------------------------------------------------------------------------------------------------------- tier 3


def tier3_bytes(side: Side, layers: Sequence[int], lengths: Sequence[int]) -> int:
    """Bytes that the internals of those layers take for sequences of those lengths, from two tiny forwards."""
    sizes = {}
    for n in (4, 8):
        with side.active(), capture_internals(side.model.hooks, layers) as held, torch.inference_mode():
            side.model.model(input_ids=torch.ones(1, n, dtype=torch.long, device=side.model.device), use_cache=False)
            sizes[n] = sum(4 * t.numel() for part in held.values() for t in part.values())  # float32 on disk
    # Bytes are a n + b n^2 (the attention pattern is square).
    b = (sizes[8] - 2 * sizes[4]) / 32
    a = (sizes[4] - 16 * b) / 4
    return int(sum(a * n + b * n * n for n in lengths))


def capture_tier3(
    side: Side,
    samples: Sequence[Sample],
    layers: Sequence[int],
    folder: Path,
    max_bytes: int,
    progress: Callable[[int], Any] | None = None,
) -> list[Path]:
    """All internals of the chosen layers for every sample, one safetensors file each: ``<side>-<sample
    id>.safetensors``.

    Tensors are named ``<layer>.<name>`` with the names and shapes of ``models.internals`` without the batch axis; row t
    is the state at token t (own). Read them back with :func:`read_internals`.

    Raises:
        BudgetError: the files would exceed ``max_bytes``, refused before anything runs.
    """
    need = tier3_bytes(side, layers, [len(s.sequence) for s in samples])
    if need > max_bytes:
        raise BudgetError(_tier3_too_large(need, max_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with side.active():
        for s in samples:
            path = folder / f"{side.name}-{s.sample_id}.safetensors"
            with capture_internals(side.model.hooks, layers) as held:
                for _ in replay(side.model, [s.sequence], taps_of(side)):
                    pass
            arrays = {
                f"{layer}.{name}": t[0].float().cpu().numpy()
                for layer, part in held.items()
                for name, t in part.items()
            }
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
            paths.append(path)
            if progress:
                progress(1)
    return paths


def read_internals(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """The internals of one sample: ``{layer: {name: array}}`` (``pattern`` ``[heads, tokens, tokens]``, ``neurons``
    ``[tokens, m]``, ...)."""
    from safetensors.numpy import load_file

    out: dict[int, dict[str, np.ndarray]] = {}
    for name, array in load_file(path).items():
        layer, part = name.split(".", 1)
        out.setdefault(int(layer), {})[part] = array
    return out


def top_neurons(internals: dict[str, np.ndarray], response: slice, count: int = 10) -> pd.DataFrame:
    """Neurons with the largest mean |activation| over the response; columns neuron, mean, mean_abs, peak_token."""
    neurons = internals["neurons"][response]
    size = np.abs(neurons).mean(0)
    chosen = np.argsort(-size)[:count]
    peak = np.abs(neurons[:, chosen]).argmax(0)
    return pd.DataFrame(
        {"neuron": chosen, "mean": neurons[:, chosen].mean(0), "mean_abs": size[chosen], "peak_token": peak}
    )


@dataclass(frozen=True)
class Tier3:
    """What tier 3 shows: the files, top neurons per side and layer, and what each head read while answering."""

    paths: list[Path]
    neurons: pd.DataFrame
    caption: str
    reading: list[HeadReading]


@dataclass(frozen=True)
class HeadReading:
    """Mean attention ``[heads, tokens]`` from response tokens to every token of one answer."""

    side: str
    layer: int
    prompt: str
    values: np.ndarray
    tokens: list[str]


def tier3(run: Any, pair: Pair, live: dict[str, list[Sample]], prompts: Sequence[Prompt], vectors: VectorSet) -> Tier3:
    """Internals of the chosen layers for the tier 3 prompts of both sides (``capture.tier3``, else every captured
    prompt).

    With ``layers: auto``, the layer of the trait that the intervention names, else of the first trait.

    Raises:
        BudgetError: the files of both sides would exceed ``capture.tier3.max_bytes``.
        DriftbookError: the prompts asked for were not captured.
    """
    wanted = run.section.tier3
    asked = {p.prompt_id for p in read_prompts(list(wanted.prompts or run.section.prompts), run.root)}
    trait = getattr(run.params.intervention, "trait", None) or vectors.traits[0]
    layers = [vectors.chosen(trait).layer] if wanted.layers == "auto" else list(wanted.layers)
    chosen = {side: [s for s in samples if prompts[s.prompt].prompt_id in asked] for side, samples in live.items()}
    if not any(chosen.values()):
        raise DriftbookError(
            f"capture.tier3.prompts {wanted.prompts} are not among capture.prompts; tier 3 reads captured answers"
        )
    need = sum(tier3_bytes(s, layers, [len(x.sequence) for x in chosen[s.name]]) for s in pair)
    if need > wanted.max_bytes:
        raise BudgetError(_tier3_too_large(need, wanted.max_bytes))
    bar = run.progress(sum(map(len, chosen.values())), "tier 3", "answers")
    paths, tables, reading = [], [], []
    for side in pair:
        mine = capture_tier3(side, chosen[side.name], layers, run.data / "internals", wanted.max_bytes, bar.update)
        paths += mine
        held = read_internals(mine[0])
        sample = chosen[side.name][0]
        words = [side.model.tokenizer.decode([i]) for i in sample.sequence.ids]
        for layer in layers:
            table = top_neurons(held[layer], sample.response)
            table.insert(0, "layer", layer)
            table.insert(0, "side", side.name)
            tables.append(table.assign(peak_token=[words[sample.response.start + int(t)] for t in table.peak_token]))
            pattern = held[layer]["pattern"][:, sample.response].mean(1)
            reading.append(HeadReading(side.name, layer, prompts[sample.prompt].text, pattern, words))
    caption = (
        f"Mean |activation| over the response to the first tier 3 prompt. {len(paths)} files, {need / 1e6:.0f} MB."
    )
    return Tier3(paths, pd.concat(tables, ignore_index=True), caption, reading)


# ----------------------------------------------------------------------------------------------------------- the report


def overview(live: dict[str, list[Sample]]) -> pd.DataFrame:
    """One row per side: answers, tokens, how many ended by themselves, rows."""
    return pd.DataFrame(
        {
            "side": list(live),
            "answers": [len(s) for s in live.values()],
            "response_tokens": [sum(len(x.sequence.response_ids) for x in s) for s in live.values()],
            "ended_by_itself": [sum(x.finish_reason == "eos" for x in s) for s in live.values()],
            "rows": [sum(len(x.sequence) for x in s) for s in live.values()],
        }
    )


def first_view(intervention: Any, vectors: VectorSet) -> dict[str, Any] | None:
    """What the trace shows first: the trait that the intervention is about, at its layer."""
    trait = getattr(intervention, "trait", None)
    return {"trait": trait, "layer": vectors.chosen(trait).layer, "sample": 0} if trait in vectors.traits else None


def shift_at_chosen(shifts: pd.DataFrame, vectors: VectorSet, comparison: str) -> pd.DataFrame:
    """Each trait at its chosen layer and site, largest shift first."""
    where = pd.DataFrame(
        [(r.trait, r.layer, r.site) for r in map(vectors.chosen, vectors.traits)], columns=["trait", "layer", "site"]
    )
    mine = shifts[shifts.comparison == comparison].merge(where)
    return mine.iloc[mine["shift"].abs().argsort()[::-1]].reset_index(drop=True)


def moved(at_chosen: pd.DataFrame) -> pd.DataFrame:
    """Traits whose interval excludes 0."""
    return at_chosen[(at_chosen.low > 0) | (at_chosen.high < 0)]


def shift_title(at_chosen: pd.DataFrame) -> str:
    found = moved(at_chosen)
    if not len(found):
        return "No trait moved by more than its interval"
    top = found.iloc[0]
    return f"{len(found)} of {len(at_chosen)} traits moved; {top.trait} most ({top['shift']:+.2f} null SD)"


def profile_title(part: pd.DataFrame, comparison: str) -> str:
    words = {"own_text": "each model's own text", "same_tokens": "the same tokens through both"}[comparison]
    top = part.loc[part["shift"].abs().idxmax()]
    return f"On {words}, {top.trait} moves most, at layer {top.layer} ({top['shift']:+.2f} null SD)"


def most_moved(at_chosen: pd.DataFrame) -> str:
    return str(at_chosen.iloc[0].trait)


@dataclass(frozen=True)
class Heatmap:
    """Scores ``[samples, layers, tokens]`` of one trait for the layer x token picture, NaN beyond the end of an
    answer."""

    values: np.ndarray
    tokens: list[list[str]]
    labels: list[str]
    mean: float


def heatmap_data(
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    probe: Probe,
    scale: Scale,
    site: str,
    trait: str,
    model: LoadedModel,
    most: int = 6,
) -> Heatmap:
    """First samples of the first prompts, for one trait at one site."""
    j, k = probe.sites.index(site), probe.traits.index(trait)
    chosen = [s for s in samples if s.sample == 0 and s.sequence.response_ids][:most]
    scores = [scale.score(probe.grid(s.rows.projection[s.response]))[:, :, j, k].T for s in chosen]
    values = np.full((len(scores), len(probe.layers), max(v.shape[1] for v in scores)), np.nan, np.float32)
    for row, v in enumerate(scores):
        values[row, :, : v.shape[1]] = v
    tokens = [[model.tokenizer.decode([i]) for i in s.sequence.response_ids] for s in chosen]
    return Heatmap(values, tokens, [prompts[s.prompt].text for s in chosen], float(np.nanmean(values)))


def dynamics_summary(moves: pd.DataFrame, seed: int, resamples: int = 1000) -> pd.DataFrame:
    """Per trait and side: means over prompts with 95% intervals, and the share of answers that commit at all."""
    rows = []
    for (trait, side), group in moves.groupby(["trait", "side"], sort=True):
        row: dict[str, Any] = {
            "trait": trait,
            "side": side,
            "answers": len(group),
            "commits": group.commitment.notna().mean(),
        }
        for name in ("mean", "commitment", "velocity", "persistence"):
            per_prompt = group.groupby("prompt_id", sort=True)[name].mean().dropna().to_numpy(float)
            if len(per_prompt):
                i = bootstrap_mean(per_prompt, resamples=resamples, seed=seed)
                row[name], row[f"{name}_interval"] = i.estimate, f"{i.low:.2f} to {i.high:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def metrics(
    live: dict[str, list[Sample]], prompts: Sequence[Prompt], pair: Pair, at_chosen: pd.DataFrame
) -> dict[str, float]:
    """The stage's numbers for ``metrics.json``."""
    seconds = sum(s.seconds for samples in live.values() for s in samples)
    tokens = sum(len(s.sequence.response_ids) for samples in live.values() for s in samples)
    out = {
        "model_loads": pair.model_loads,
        "prompts": len(prompts),
        "samples": sum(map(len, live.values())),
        "tokens": tokens,
        "tokens_per_s": tokens / max(seconds, 1e-9),
        "traits_moved": len(moved(at_chosen)),
    }
    for row in at_chosen.itertuples():
        out[f"shift_{row.trait}"], out[f"shift_{row.trait}_low"], out[f"shift_{row.trait}_high"] = (
            row.shift,
            row.low,
            row.high,
        )
    return out


def answer(at_chosen: pd.DataFrame, shifts: pd.DataFrame) -> str:
    """The stage's answer in a sentence or two."""
    found = moved(at_chosen)
    if not len(found):
        widest = at_chosen.high.sub(at_chosen.low).max() / 2
        return (
            f"No trait moved: all intervals contain 0 (a shift of {widest:.2f} null standard deviations "
            f"would have shown)."
        )
    top = found.iloc[0]
    same = shifts[(shifts.comparison == "same_tokens") & (shifts.trait == top.trait) & (shifts.site == top.site)]
    onset = same[(same.low > 0) | (same.high < 0)].layer.min()
    where = (
        f", and on the same tokens from layer {int(onset)} on" if pd.notna(onset) else ", but not on the same tokens"
    )
    return (
        f"{len(found)} of {len(at_chosen)} traits moved on the models' own text; {top.trait} most, by "
        f"{top['shift']:+.2f} null standard "
        f"deviations ({top.low:.2f} to {top.high:.2f}) at layer {top.layer}{where}."
    )


def _tier3_too_large(need: int, bound: int) -> str:
    return (
        f"capture.tier3: the internals take {need / 1e9:.2f} GB, over max_bytes {bound / 1e9:.2f} GB; "
        "choose fewer prompts or layers, or raise capture.tier3.max_bytes"
    )
