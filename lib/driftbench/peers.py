"""The same capture by other tools, each in a process of its own: is it as fast, and are the numbers the same?

A spec file says what is to be done: weights folder, prompt tokens, texts to replay, layers, directions. Every tool
reads it, generates and replays with all layers and three sites projected, and writes projections and seconds
(``peer_worker.py``).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from driftbook.errors import DriftbookError
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request
from driftbook.models.projection import ProjectionTap, Rows, all_points
from driftbook.models.replay import TokenSequence, replay
from driftbook.models.sampling import SamplingParams
from driftbook.sections import RESIDUAL_SITES

WORKS = ("live", "replay")
NAMES = {"transformer_lens": "TransformerLens", "nnsight": "nnsight", "transformers": "hooks written by hand"}
COLUMNS = (
    *("tool", "work", "seconds", "fastest", "slowest", "cpu_seconds", "tokens_per_s"),
    *("speedup", "least", "most", "cpu_speedup"),
    *("largest_difference", "rows_compared", "same_tokens", "version"),
)
_PACKAGES = {"transformer_lens": "transformer-lens", "nnsight": "nnsight", "transformers": "transformers"}
#: Largest |difference of projections| / |h| that fp32 sums in another order may cost (measured: 2e-6).
TOLERANCE = 2e-5


@dataclass(frozen=True)
class PeerResult:
    """What one tool did. ``seconds`` (of the clock) and ``cpu`` (of all cores) have a list per work, one entry a
    turn; ``live`` and ``replay`` hold one array ``[tokens, points, vectors]`` per sequence, prompt tokens first."""

    peer: str
    tokens: list[list[int]]
    live: list[np.ndarray]
    replay: list[np.ndarray]
    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    load: float
    versions: dict[str, str]


def write_spec(
    folder: Path,
    model: str,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    vectors: torch.Tensor,
    layers: int,
    max_new_tokens: int,
    repeats: int,
) -> None:
    """``spec.json`` and ``vectors.npy`` (``[layers * 3, d_model, vectors]``, unit length) for the processes of all
    tools."""
    spec = {
        "model": model,
        "prompts": [list(map(int, p)) for p in prompts],
        "texts": [list(map(int, t)) for t in texts],
        "layers": layers,
        "max_new_tokens": max_new_tokens,
        "repeats": repeats,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    np.save(folder / "vectors.npy", (vectors / vectors.norm(dim=1, keepdim=True)).numpy())


def python_of(path: str, root: Path) -> str:
    """The interpreter that runs the peers: this one where ``path`` is empty.

    Raises:
        DriftbookError: there is no such file.
    """
    if not path:
        return sys.executable
    found = root / Path(path).expanduser()
    if not found.is_file():
        raise DriftbookError(
            f"bench.peers_python {path!r}: no such file; name the python of an environment, or leave it"
        )
    return str(found)


def installed(python: str, peer: str) -> bool:
    """Whether an interpreter has the package of a peer."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def run_peer(python: str, peer: str, folder: Path) -> PeerResult:
    """One tool's process over the spec in ``folder``.

    Raises:
        DriftbookError: the process failed; the message ends with its last line.
    """
    worker = Path(__file__).with_name("peer_worker.py")
    done = subprocess.run([python, str(worker), peer, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise DriftbookError(f"{peer} failed in {python}: {last}")
    spec = json.loads((folder / "spec.json").read_text())
    head = json.loads((folder / f"{peer}.json").read_text())
    with np.load(folder / f"{peer}.npz") as held:
        tokens, live, replayed = held["tokens"].tolist(), held["live"], held["replay"]
    width = max(map(len, spec["prompts"]))
    return PeerResult(
        peer,
        tokens,
        [row[width - len(p) :] for row, p in zip(live, spec["prompts"], strict=True)],  # padded on the left
        [row[: len(t)] for row, t in zip(replayed, spec["texts"], strict=True)],
        **head,
    )


def run_ours(
    model: LoadedModel, prompts: Sequence[Sequence[int]], vectors: torch.Tensor, max_new_tokens: int, repeats: int
) -> tuple[PeerResult, list[Rows]]:
    """The same work here: answers to the prompts, read live, then prompts and answers read again as texts.

    Returns the result and the rows of the texts, whose |h| is the unit of every comparison.
    """
    endless = dataclasses.replace(model, eos_ids=frozenset())  # every row gets all its tokens, as in the peers
    params, engine = SamplingParams(max_new_tokens, 0.0), LocalEngine(endless, len(prompts))
    requests = [Request(tuple(p), 0) for p in prompts]
    seconds: dict[str, list[float]] = {work: [] for work in WORKS}
    cpu: dict[str, list[float]] = {work: [] for work in WORKS}
    for turn in range(repeats + 1):
        tap = ProjectionTap(all_points(model, RESIDUAL_SITES), vectors)
        wall, used = [time.perf_counter()], [time.process_time()]
        done = {c.index: c.token_ids for c in engine.generate(requests, params, [tap])}
        lengths = [len(p) + max_new_tokens for p in prompts]
        live = tap.rows([r.prompt_ids for r in requests], [r.strength for r in requests], lengths)
        wall.append(time.perf_counter())
        used.append(time.process_time())
        texts = [TokenSequence(r.prompt_ids, tuple(done[i])) for i, r in enumerate(requests)]
        for _ in replay(model, texts, [tap]):
            pass
        rows = tap.replayed(len(texts))
        wall.append(time.perf_counter())
        used.append(time.process_time())
        for k, work in enumerate(WORKS) if turn else ():  # the first turn warms up, as in the peers
            seconds[work].append(wall[k + 1] - wall[k])
            cpu[work].append(used[k + 1] - used[k])
    tokens = [done[i] for i in range(len(requests))]
    projections = [r.projection for r in live], [r.projection for r in rows]
    return PeerResult("driftbook", tokens, *projections, seconds, cpu, 0.0, {"torch": torch.__version__}), rows


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median seconds of theirs over ours, and the least and largest ratio of any two turns."""
    return (
        float(np.median(theirs) / np.median(ours)),
        float(min(theirs) / max(ours)),
        float(max(theirs) / min(ours)),
    )


@dataclass(frozen=True)
class Agreement:
    """``largest`` is the largest |difference of projections| / |h| over ``rows`` compared rows; ``tokens`` the share of
    generated tokens that are the same up to the first difference of each row."""

    largest: float
    rows: int
    tokens: float


def compare(ours: PeerResult, theirs: PeerResult, rows: Sequence[Rows]) -> dict[str, Agreement]:
    """How far a peer's numbers are from ours, per work.

    Live rows are compared as far as both drew the same tokens: prompt tokens, and every response token whose prefix is
    the same.

    Args:
        rows: ours of the replayed texts, which are the prompts and our answers, for |h|.

    Raises:
        DriftbookError: a difference beyond ``TOLERANCE``; the message names the peer, work, text, token and point.
    """
    same = []
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        differs = [k for k, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        same.append(differs[0] if differs else len(a))
    total = sum(map(len, ours.tokens))
    out = {}
    for work in WORKS:
        mine, other = getattr(ours, work), getattr(theirs, work)
        largest, compared = 0.0, 0
        for i, (a, b) in enumerate(zip(mine, other, strict=True)):
            n = min(len(a), len(b))
            if work == "live":
                n = min(n, len(a) - len(ours.tokens[i]) + same[i])
            error = np.abs(a[:n] - b[:n]).max(-1) / rows[i].norm[:n]
            worst = np.unravel_index(int(np.argmax(error)), error.shape)
            if not error[worst] <= TOLERANCE:
                raise DriftbookError(
                    f"{theirs.peer}, {work}: text {i}, token {worst[0]}, point {worst[1]} differs by "
                    f"{error[worst]:.2g} of |h|, more than {TOLERANCE:.0e}: the tools did not compute the same"
                )
            largest, compared = max(largest, float(error[worst])), compared + n
        out[work] = Agreement(largest, compared, sum(same) / total if work == "live" else 1.0)
    return out


def joined(first: PeerResult, second: PeerResult) -> PeerResult:
    """One result with the times of both runs of one tool."""
    both = {
        name: {work: getattr(first, name)[work] + getattr(second, name)[work] for work in WORKS}
        for name in ("seconds", "cpu")
    }
    return dataclasses.replace(first, **both)


def table(ours: PeerResult, theirs: Sequence[PeerResult], rows: Sequence[Rows], asked: Sequence[str]) -> pd.DataFrame:
    """One row per tool and work, ours first; a peer that was ``asked`` for and not run has no numbers.

    Raises:
        DriftbookError: as :func:`compare`.
    """
    out = []
    for work in WORKS:
        mine = ours.seconds[work]
        tokens = sum(len(r.norm) for r in rows) if work == "replay" else sum(map(len, ours.tokens))
        for peer in [ours, *theirs]:
            seconds = peer.seconds[work]
            middle = float(np.median(seconds))
            row = {"tool": peer.peer, "work": work, "seconds": middle, "fastest": min(seconds), "slowest": max(seconds)}
            row |= {"cpu_seconds": float(np.median(peer.cpu[work])), "tokens_per_s": tokens / middle}
            if peer is not ours:
                row |= dict(zip(("speedup", "least", "most"), speedup(mine, seconds), strict=True))
                row |= {"cpu_speedup": float(np.median(peer.cpu[work]) / np.median(ours.cpu[work]))}
                found = compare(ours, peer, rows)[work]
                row |= {"largest_difference": found.largest, "rows_compared": found.rows, "same_tokens": found.tokens}
                row |= {"version": peer.versions.get(_PACKAGES[peer.peer], "")}
            out.append(row)
        out += [
            {"tool": p, "work": work, "version": "not installed"} for p in asked if p not in {t.peer for t in theirs}
        ]
    return pd.DataFrame(out, columns=COLUMNS)


def metrics(table: pd.DataFrame) -> dict[str, float | str]:
    """The numbers of ``metrics.json``; a peer that was not run says so."""
    out: dict[str, float | str] = {}
    for row in table.itertuples():
        name = f"speedup_over_{row.tool}" if row.work == "live" else f"replay_speedup_over_{row.tool}"
        if row.tool == "driftbook":
            out[f"{row.work}_seconds_driftbook"] = row.seconds
        elif row.version == "not installed":
            out[name] = "not measured: not installed"
        else:
            out |= {name: row.speedup, f"{name}_low": row.least, f"{name}_high": row.most}
            out |= {f"cpu_{name}": row.cpu_speedup, f"{row.work}_seconds_{row.tool}": row.seconds}
            out |= {f"{row.work}_largest_difference_{row.tool}": row.largest_difference}
    return out


def title(table: pd.DataFrame) -> str:
    """The finding over the picture."""
    found = table[(table.work == "live") & table.speedup.notna()]
    if not len(found):
        return "No other tool is installed, so nothing was compared"
    return "Live capture is " + ", ".join(
        f"{r.speedup:.1f} times as fast as {NAMES[r.tool]}" for r in found.itertuples()
    )


def answer(table: pd.DataFrame) -> str:
    """The bench in a sentence or two."""
    missing = [NAMES[t] for t in table[table.version == "not installed"].tool.unique()]
    left = f" Not installed, so not measured: {', '.join(missing)}." if missing else ""
    worst = table.largest_difference.max()
    agree = "" if np.isnan(worst) else f"; projections agree to {worst:.0e} of |h|"
    return f"{title(table)}{agree}.{left}"
