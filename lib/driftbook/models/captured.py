"""Captured answers: every trait at every token, layer and site, while a side answers or over tokens that exist."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from driftbook.evidence.shifts import Grid
from driftbook.models.answers import Question, Request, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.projection import ProjectionTap, Rows, all_points
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.models.sides import Pair, Side
from driftbook.models.vectors import VectorSet
from driftbook.prompts import Prompt
from driftbook.store import ShardStore, digest

if TYPE_CHECKING:
    import pandas as pd

REPLAY_SHARD = 128  # sequences that are replayed and kept together


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
    dropped: float = 0.0  # share of the rows that its batch computed for answers that had ended
    thought: int = 0  # tokens of the response that were thought before the answer

    @property
    def response(self) -> slice:
        """The rows of the answer, without what was thought before it."""
        return slice(len(self.sequence.prompt_ids) + self.thought, len(self.sequence))

    @property
    def answer_ids(self) -> tuple[int, ...]:
        return self.sequence.response_ids[self.thought :]


@dataclass(frozen=True)
class Probe(Grid):
    """What is read: points (layer, site) and directions ``[points, d_model, traits]``."""

    points: list[tuple[int, str]]
    matrix: torch.Tensor

    @property
    def key(self) -> str:
        content = hashlib.sha256(self.matrix.numpy().tobytes()).hexdigest()
        return digest(self.points, content, self.traits)

    def grid(self, projection: np.ndarray) -> np.ndarray:
        """``[..., points, traits]`` as ``[..., layers, sites, traits]``."""
        return projection.reshape(*projection.shape[:-2], len(self.layers), len(self.sites), -1)


def make_probe(vectors: VectorSet, method: str, sites: Sequence[str] | None, model: LoadedModel) -> Probe:
    """All traits of a vector set at every layer and the given sites, by default those that the vectors have."""
    sites = sites or vectors.sites
    points = all_points(model, sites)
    matrix = torch.from_numpy(vectors.matrix(vectors.traits, method, points))
    return Probe(list(range(model.hooks.n_layers)), list(sites), vectors.traits, points, matrix)


def null_probe(vectors: VectorSet, probe: Probe) -> Probe:
    """The null directions at the same points."""
    matrix = torch.from_numpy(np.ascontiguousarray(vectors.null_matrix(probe.points)))
    names = [f"null {i}" for i in range(matrix.shape[-1])]
    return replace(probe, matrix=matrix, traits=names)


# ----------------------------------------------------------------------------------------------------------------- live


def capture_live(
    side: Side,
    prompts: Sequence[Prompt],
    samples: int,
    params: SamplingParams,
    probe: Probe,
    seed: int,
    cache: Path,
    max_bytes: int = 8_000_000_000,
    progress: Callable[[int], Any] | None = None,
) -> list[Sample]:
    """Generate ``samples`` answers to every prompt and read them while they are made.

    Prompts are captured in shards of one batch each, which come from the cache when they are there.

    Raises:
        BudgetError: the rows of all samples would exceed ``max_bytes``, refused before anything runs.
    """
    store = ShardStore(cache / "capture")
    encoded = [side.encode(p) for p in prompts]
    worst = sum((len(e) + params.most_tokens) * samples for e in encoded)
    ProjectionTap(probe.points, probe.matrix, max_bytes).check_budget(worst)
    order = sorted(
        ((p, s) for p in range(len(prompts)) for s in range(samples)), key=lambda a: (-len(encoded[a[0]]), a)
    )
    out: dict[tuple[int, int], Sample] = {}
    shard = side.local.batch_size  # the engine's own shrinks when memory runs out
    for start in range(0, len(order), shard):
        chosen = order[start : start + shard]
        requests = [
            Question(encoded[p], stream_seed("capture", seed, side.name, q.prompt_id, s), prompt=q, sample=s)
            for p, s, q in ((p, s, prompts[p]) for p, s in chosen)
        ]
        key = digest(
            *("capture 2", side.local.version, side.key, asdict(params), probe.key),
            [(r.prompt_ids, r.seed) for r in requests],
        )
        generate = partial(_generate, side, requests, params, probe, progress)
        held = store.kept_arrays(key, generate, progress, len(chosen))
        for (p, s), request, piece in zip(chosen, requests, _pieces(held), strict=True):
            ids, finished, rows, seconds, dropped = piece
            sample_id = digest(side.name, side.key, request.prompt_ids, request.seed, asdict(params))[:16]
            said = side.model.said(ids, request.prompt_ids) if side.here else None
            reason, thought = "eos" if finished else "length", said.first if said else 0
            sequence = TokenSequence(request.prompt_ids, ids)
            reason = said.reason(reason) if said else reason
            out[p, s] = Sample(sample_id, side.name, p, s, sequence, reason, rows, seconds, dropped, thought)
    return [out[a] for a in sorted(out)]


def _generate(
    side: Side, requests: Sequence[Question], params: SamplingParams, probe: Probe, progress
) -> dict[str, np.ndarray]:
    begun = time.monotonic()
    tap = ProjectionTap(probe.points, probe.matrix)
    done: dict[int, tuple[list[int], bool]] = {}
    if side.here:
        for c in side.generate(requests, params, [tap]):
            finished = c.finish_reason == "eos"
            done[c.index] = (c.token_ids[:-1] if finished else c.token_ids, finished)
            if progress:
                progress(1)
    else:  # answered elsewhere: the model that is here reads what was said, as many tokens as it would have said
        for c in side.generate(requests, params):
            whole = len(c.token_ids) <= params.max_new_tokens
            done[c.index] = (c.token_ids[: params.max_new_tokens], whole and c.finish_reason == "eos")
    responses = [done[i][0] for i in range(len(requests))]
    if side.here:
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
        "dropped": np.array([tap.dropped / len(requests)]),
    }


def _read(side: Side, requests: Sequence[Question], responses: Sequence[list[int]], tap: ProjectionTap, progress):
    sequences = [TokenSequence(q.prompt_ids, tuple(ids)) for q, ids in zip(requests, responses, strict=True)]
    for batch, _ in side.read(sequences, [tap]):
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
        shares = float(held["seconds"][0]), float(held["dropped"][0])
        yield tuple(int(i) for i in held["tokens"][t - n : t]), bool(finished), rows, *shares


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
    shards = [sequences[start : start + REPLAY_SHARD] for start in range(0, len(sequences), REPLAY_SHARD)]
    keys = [
        digest("replay", side.key, probe.key, [(s.prompt_ids, s.response_ids) for s in chosen]) for chosen in shards
    ]
    made: set[str] = set()
    todo = [i for i, key in enumerate(keys) if not store.has_arrays(key)]
    if side.workers is not None and side.workers.workers.worth(len(todo)):
        missing = ((keys[i], list(shards[i])) for i in todo)
        for key, count in side.workers.map(partial(replay_into, side.name, probe, store.folder), missing):
            made.add(key)
            if progress:
                progress(count)
    out: list[Rows] = []
    for key, chosen in zip(keys, shards, strict=True):
        heard = None if key in made else progress
        held = store.kept_arrays(key, partial(replay_shard, side, chosen, probe, progress), heard, len(chosen))
        ends = np.cumsum(held["row_lengths"])
        out += [
            Rows(held["projection"][e - n : e], held["norm"][e - n : e])
            for n, e in zip(held["row_lengths"], ends, strict=True)
        ]
    return out


def replay_shard(
    side: Side, sequences: Sequence[TokenSequence], probe: Probe, progress: Callable[[int], Any] | None = None
) -> dict[str, np.ndarray]:
    """The rows of one shard of a replay, below each other."""
    tap = ProjectionTap(probe.points, probe.matrix)
    for batch, _ in side.read(sequences, [tap]):
        if progress:
            progress(len(batch))
    rows = tap.replayed(len(sequences))
    return {
        "row_lengths": np.array([len(r.norm) for r in rows], np.int32),
        "projection": np.concatenate([r.projection for r in rows]),
        "norm": np.concatenate([r.norm for r in rows]),
    }


def replay_into(
    name: str, probe: Probe, folder: Path, pair: Pair, shard: tuple[str, list[TokenSequence]]
) -> tuple[str, int]:
    """What a worker does with one shard of a replay through side ``name``: its rows go into the store. Returns its key
    and how many sequences it holds."""
    key, sequences = shard
    ShardStore(folder).put_arrays(key, replay_shard(getattr(pair, name), sequences, probe))
    return key, len(sequences)


# -------------------------------------------------------------------------------------------------------- decoded texts


def text_scores(
    pair: Pair,
    texts: pd.DataFrame,
    prompts: Mapping[str, Prompt],
    vectors: VectorSet,
    cache: Path,
    progress: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Mean score of every trait over each decoded text, or a part of it, read by replay under the side that wrote it.

    Scores are in null standard deviations at each trait's chosen layer and site, centred on the base's texts.

    Args:
        texts: ``text_id``, ``side``, ``prompt_id``, ``token_ids``, and ``text`` for a side that answers in words; with
            ``start`` and ``end`` a row is that part of ``text`` alone, and what comes after it is not read.
        prompts: by id.

    Returns:
        ``text_id`` and one column per trait; texts without a token are left out.
    """
    import pandas as pd  # a third of a second, and capturing does without

    chosen = {t: (vectors.chosen(t).layer, vectors.chosen(t).site) for t in vectors.traits}
    points = sorted(set(chosen.values()))
    method = vectors.chosen(vectors.traits[0]).method
    traits = torch.from_numpy(vectors.matrix(vectors.traits, method, points))
    null = torch.from_numpy(np.ascontiguousarray(vectors.null_matrix(points)))
    names = [*vectors.traits, *(f"null {i}" for i in range(null.shape[-1]))]
    probe = Probe([p[0] for p in points], [], names, points, torch.cat([traits, null], -1))
    means, ids, base_nulls, parts = [], [], [], "start" in texts
    for side in pair:
        mine = texts[texts.side == side.name]
        sequences, read = [], []
        for row in mine.itertuples():
            encoded = side.encode(prompts[row.prompt_id])
            response = [int(t) for t in row.token_ids]
            begin = side.model.said(response, encoded).first if side.here else 0  # what was thought before it
            if parts or not side.here:
                asked, thought = Request(encoded, 0), response[:begin]
                response = thought + read_tokens(side.model, asked, row.text[: row.end] if parts else row.text)
            if parts:  # a token may reach over the boundary: the part has one at least
                begin = min(begin + len(read_tokens(side.model, asked, row.text[: row.start])), len(response) - 1)
            # The end token says nothing about the answer.
            response = response[:-1] if len(response) > 1 and response[-1] in side.model.eos_ids else response
            if response[begin:]:
                sequences.append(TokenSequence(encoded, tuple(response)))
                read.append((row.text_id, len(encoded) + begin))
        rows = capture_replay(side, sequences, probe, cache, progress)
        spoken = [r.projection[begin:] for (_, begin), r in zip(read, rows, strict=True)]
        means += [s.mean(0) for s in spoken]
        ids += [text_id for text_id, _ in read]
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
