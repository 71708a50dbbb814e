"""Real verdicts of several judges on real texts, as material for the designs of the judge cascade.

The bundled model answers as it is, and once more steered along a trait vector that is fitted here. Hypotheses come
from one part of the prompts; on the others each judge says who wins. ``simulate.resampled`` then makes experiments of
these verdicts in which it is known what is real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftbench import cascade_designs as simulate
from driftbook import decode, traits
from driftbook.discovery import phrases
from driftbook.discovery.decoding import decode_texts
from driftbook.discovery.strategies import Ask
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import student_mean, summary_interval, wilson
from driftbook.evidence.judges import Judge
from driftbook.evidence.material import Material
from driftbook.evidence.opened import open_judge
from driftbook.evidence.reading import read
from driftbook.interventions import Steer
from driftbook.judges import Embedding, Lexicon, Local
from driftbook.ledger import Ledger
from driftbook.models.loading import load
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.models.traitfiles import read_traits
from driftbook.parameters import Decode, ModelSpec, Traits
from driftbook.sections import RESIDUAL_SITES
from driftbook.store import ShardStore


def material(
    cache: Path,
    root: Path,
    trait: str,
    coefficient: float,
    prompts: int,
    held_out: float,
    max_new_tokens: int,
    limit: int,
    seed: int,
    progress: Callable[..., Any],
) -> Material:
    """One answer of each side to each prompt of the discovery set, the intervention's steered along ``trait`` (a trait
    file) by ``coefficient``; at most ``limit`` hypotheses that are phrases found on split discover.

    ``held_out`` is the share of prompts in split validate. Raises DriftbookError when no hypothesis is found.
    """
    section = Decode()
    chosen = decode.load_prompts(section.prompts, root, {"discover": 1 - held_out, "validate": held_out}, prompts)
    wanted = Traits()
    model = load(ModelSpec(), cache)
    answers = [traits.written_answers(model, one) for one in read_traits([trait], root)]
    contrasts = traits.read_contrasts(model, answers, RESIDUAL_SITES, wanted.window, cache)
    method, choice = "mean_difference", (wanted.site, wanted.layer, wanted.depth, wanted.window, wanted.scenarios)
    vectors, _ = traits.fit_vectors(model, contrasts, RESIDUAL_SITES, method, *choice, 2, 1, seed, [method])
    steer = Steer(trait=Path(trait).stem, coefficient=coefficient)
    pair = open_pair(ModelSpec(), steer, cache, root, vectors)
    ids = decode.encode(pair, chosen, max_new_tokens)
    asks = [Ask(p, 0, 0) for p in range(len(chosen.prompts))]
    params = SamplingParams(max_new_tokens, section.temperature, section.top_p, section.top_k, section.min_p)
    bar, store = progress(2 * len(asks), "decode", "texts"), ShardStore(cache / "decode")
    texts = decode_texts(pair, chosen, ids, asks, params, seed, store, progress=bar.update)
    bar.close()
    seen = texts[texts["split"] == "discover"]
    found = phrases.propose(seen, {p.prompt_id: p.said() for p in chosen.prompts}, limit=limit)
    if not found:
        raise DriftbookError("no word tells the two sides apart: raise prompts, max_new_tokens or coefficient")
    return Material(texts, chosen.by_id(), found, seed)


def judges(found: Material, cache: Path, ledger: Ledger, progress: Callable[..., Any]) -> dict[str, Judge]:
    """Three judges that run here: by embeddings of exemplars, by the probabilities of the bundled model, by words."""
    specs = {"embedding": Embedding(), "language model": Local(), "words": Lexicon()}
    return {name: open_judge(s, "bench", found, ledger, cache, cache, progress) for name, s in specs.items()}


def verdicts(found: Material, judge: Judge) -> np.ndarray:
    """X of each hypothesis on each prompt of split validate, [hypotheses, prompts]; 1/2 where there is no verdict."""
    held = found.held_out("validate")
    return np.nan_to_num(read(judge, held, held.order, found.hypotheses).wins.x.T, nan=0.5)


def agreement(x: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """For each two judges: one, other, agreement (share of verdicts that say the same: more, less or a tie) with an
    interval over prompts, correlation of X over hypotheses and prompts."""
    names: Sequence[str] = list(x)
    rows = []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            same = (np.sign(x[one] - 0.5) == np.sign(x[other] - 0.5)).mean(axis=0)
            both = [x[name].ravel() for name in (one, other)]
            r = float(np.corrcoef(*both)[0, 1]) if all(v.std() > 0 for v in both) else np.nan
            rows.append((one, other, *summary_interval(same), r))
    return pd.DataFrame(rows, columns=["one", "other", "agreement", "low", "high", "correlation"])


def default_design(
    cheap: np.ndarray,
    strong: np.ndarray,
    sizes: Sequence[int],
    prompts: int,
    screen: int,
    runs: int,
    alpha: float,
    margin: float,
    level: float,
    seed: int,
) -> dict[str, tuple[float, float, float]]:
    """How screening by one judge and testing by another does on ``runs`` experiments made of their verdicts
    ``[hypotheses, prompts]`` (``simulate.resampled``), beside the borderline cascade and fixed samples of ``sizes``.

    Returns:
        measure to estimate, low and high: false discovery rate, power, share of experiments without effects that
        confirm anything, the borderline cascade's false discovery rate, calls saved at equal power; and the number of
        real hypotheses, without an interval.
    """
    made = [simulate.resampled(cheap, strong, margin, screen, prompts, s) for s in range(seed, seed + runs)]
    void = [
        simulate.resampled(cheap, strong, margin, screen, prompts, s, effects=False) for s in range(seed, seed + runs)
    ]
    fixed = [simulate.summarize(lambda d, n=n: simulate.fixed_sample(d, n, alpha, margin), made) for n in sizes]
    ours, without = (
        simulate.summarize(lambda d: simulate.screen_then_test(d, prompts, alpha, margin, level), drawn)
        for drawn in (made, void)
    )
    borderline = simulate.summarize(lambda d: simulate.borderline(d, alpha, margin), made)
    return {
        "real hypotheses": (float(made[0].real.sum()), np.nan, np.nan),
        "false discovery rate": student_mean(ours.fdp),
        "power": student_mean(ours.power),
        "any claim without effects": wilson(int((without.fdp > 0).sum()), runs),
        "borderline: false discovery rate": student_mean(borderline.fdp),
        "calls saved at equal power": simulate.saving(ours, fixed, seed=seed),
    }
