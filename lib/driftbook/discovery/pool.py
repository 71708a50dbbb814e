"""Pools of texts whose differences are known, to compare sampling strategies on.

A pool answers requests of ``strategies.plan_round`` as the decode stage would, without a model. In a ``Pool`` the truth
is planted and drawn anew for every seed: the text of (prompt, side, sample) is a row number, its embedding and its true
behaviour come from the prompt's own distribution. A ``TextPool`` replays texts that a model once wrote. Both give
``prompts``, ``planted``, ``seed``, ``divergence``, ``texts``, ``embed`` and ``truth``, so strategies run on either
through the code that decodes, and what they find can be checked against what was planted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from driftbook.discovery import composition
from driftbook.discovery.prompts import Prompt
from driftbook.discovery.strategies import State, plan_round
from driftbook.errors import DriftbookError
from driftbook.evidence.intervals import bootstrap_mean

SIDES = composition.SIDES


@dataclass(frozen=True)
class World:
    """What a pool is drawn from.

    Each of the first ``planted`` behaviours is done more by one side, on the share ``affected`` of one family's prompts
    (``scattered`` of them: on as many prompts of any family), by one of ``strengths``: that much of the prompt's
    probability moves to the behaviour. ``nuisance``: divergence that has nothing to do with behaviours (wording), its
    mean in units of the mean divergence of affected prompts. ``blur``: standard deviation of embeddings around their
    behaviour's centre, per coordinate; centres have length 1.
    """

    prompts: int = 480
    families: int = 12
    behaviours: int = 24
    planted: int = 8
    affected: float = 0.6
    scattered: float = 0.25
    strengths: tuple[float, ...] = (0.1, 0.2, 0.4)
    nuisance: float = 1.0
    depth: int = 32
    deepest: int = 128
    width: int = 16
    blur: float = 0.15


@dataclass(frozen=True)
class Pool:
    """``labels`` ``[prompts, 2, deepest]``: the behaviour of each text; ``chances`` ``[prompts, behaviours, 2]`` what
    they are drawn from.

    ``planted``: behaviour, sign (+1: the intervention does it more), strength, prompts, scattered. ``js``
    ``[prompts]``.
    """

    world: World
    prompts: SimpleNamespace
    chances: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    js: np.ndarray
    planted: pd.DataFrame
    seed: int

    @property
    def ids(self) -> list[str]:
        return [p.prompt_id for p in self.prompts.prompts]

    def divergence(self, keep: float, floor: float) -> pd.DataFrame:
        """The decode stage's table, as far as strategies read it."""
        from driftbook.decode import keep_divergent

        return keep_divergent(pd.DataFrame({"prompt_id": self.ids, "js": self.js}), keep, floor)

    def texts(self, asked: Sequence) -> pd.DataFrame:
        """What decoding would return; requests beyond ``deepest`` samples of a prompt are dropped."""
        asked = [a for a in asked if a.sample < self.world.deepest]
        prompt = np.array([a.prompt for a in asked], int)
        sample = np.array([a.sample for a in asked], int)
        ids = np.array(self.ids, dtype=object)
        parts = []
        for side, name in enumerate(SIDES):
            row = (prompt * 2 + side) * self.world.deepest + sample
            parts.append(
                pd.DataFrame(
                    {
                        "text_id": row,
                        "side": name,
                        "prompt_id": ids[prompt],
                        "split": "discover",
                        "round": np.array([a.round for a in asked], int),
                        "text": row.astype(str),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        row = np.array([int(t) for t in texts])
        centre = self.vectors[: self.world.behaviours]
        noise = self.vectors[self.world.behaviours :]
        # noise is drawn from a fixed stock: distinct enough for clustering, and no memory per text
        return centre[self.labels.reshape(-1)[row]] + self.world.blur * noise[(row * 7919 + self.seed) % len(noise)]

    def truth(self, texts: pd.DataFrame) -> np.ndarray:
        return self.labels.reshape(-1)[texts.text_id.to_numpy(int)]


def draw(world: World, seed: int) -> Pool:
    """A pool with its own prompts, distributions, planted differences and texts."""
    rng = np.random.default_rng([seed, 0x9001])
    families = rng.permutation(np.arange(world.prompts) % world.families)
    profile = rng.dirichlet(np.full(world.behaviours, 0.5), world.families) * 0.9 + 0.1 / world.behaviours
    base = np.stack([rng.dirichlet(8 * profile[f] + 0.02) for f in families])
    chances = np.stack([base, base], 2)
    rows = []
    size = round(world.affected * world.prompts / world.families)
    for behaviour in range(world.planted):
        scattered = behaviour < round(world.scattered * world.planted)
        among = np.arange(world.prompts)
        if not scattered:
            among = among[families == behaviour % world.families]
        chosen = rng.permutation(among)[:size]
        strength, side = world.strengths[behaviour % len(world.strengths)], int(rng.integers(2))
        chances[chosen, :, side] *= 1 - strength
        chances[chosen, behaviour, side] += strength
        rows.append((behaviour, 2 * side - 1, strength, len(chosen), scattered))
    labels = _labels(chances, world.deepest, rng)
    true = jensen_shannon(chances)
    scale = true[true > 1e-9].mean() if (true > 1e-9).any() else 0.01
    js = (true + world.nuisance * scale * rng.exponential(size=world.prompts)) * rng.lognormal(0, 0.3, world.prompts)
    centres = rng.standard_normal((world.behaviours, world.width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.concatenate([centres, rng.standard_normal((20_011, world.width))]).astype(np.float32)
    prompts = SimpleNamespace(
        prompts=[Prompt(f"prompt {i} of pool {seed}", f"family {f}") for i, f in enumerate(families)],
        splits=["discover"] * world.prompts,
    )
    planted = pd.DataFrame(rows, columns=["behaviour", "sign", "strength", "prompts", "scattered"])
    return Pool(world, prompts, chances, labels, vectors, js, planted, seed)


def redraw(pool: Pool, seed: int) -> Pool:
    """The same prompts, distributions and divergence with other texts."""
    rng = np.random.default_rng([pool.seed, seed, 0x7E47])
    return replace(pool, labels=_labels(pool.chances, pool.world.deepest, rng))


def _labels(chances: np.ndarray, depth: int, rng: np.random.Generator) -> np.ndarray:
    """Behaviours ``[prompts, 2, depth]`` drawn from ``chances`` ``[prompts, behaviours, 2]``."""
    edges = chances.cumsum(1).transpose(0, 2, 1)
    draws = rng.random((len(chances), 2, depth))
    return np.minimum((draws[..., None] > edges[:, :, None, :]).sum(-1), chances.shape[1] - 1).astype(np.int16)


def jensen_shannon(chances: np.ndarray) -> np.ndarray:
    """JS in nats between the sides of ``[prompts, behaviours, 2]``."""
    middle = chances.mean(2, keepdims=True)
    ratio = np.where(chances > 0, chances, 1) / np.maximum(middle, 1e-300)
    return np.maximum((chances * np.log(ratio)).sum((1, 2)) / 2, 0)


# ---------------------------------------------------------------------------------------------------------- real texts


@dataclass(frozen=True)
class TextPool:
    """Texts that exist already, in the place of decoding.

    ``prompts``: ``.prompts`` (of ``discovery.prompts.Prompt``) and ``.splits``. ``table``: one row a text, sorted by
    prompt, side and ``sample_index``, with ``row`` its number. ``js`` ``[prompts]``: divergence in nats a token, NaN
    where it is not known. ``behaviours``: the names behind the numbers that ``truth`` gives. ``planted``: behaviour
    (number), sign (+1: the intervention does it more), strength, prompts, scattered.
    """

    prompts: SimpleNamespace
    table: pd.DataFrame
    js: np.ndarray
    behaviours: tuple[str, ...]
    planted: pd.DataFrame
    vectors: Callable[[Sequence[str]], np.ndarray]
    seed: int = 0

    @property
    def ids(self) -> list[str]:
        return [p.prompt_id for p in self.prompts.prompts]

    def divergence(self, keep: float, floor: float) -> pd.DataFrame | None:
        """The decode stage's table, as far as strategies read it; None where nothing was screened."""
        from driftbook.decode import keep_divergent

        if not np.isfinite(self.js).any():
            return None
        return keep_divergent(pd.DataFrame({"prompt_id": self.ids, "js": self.js}), keep, floor)

    def texts(self, asked: Sequence[Any]) -> pd.DataFrame:
        """What decoding would return, the base's texts first; requests beyond the samples that both sides have are
        dropped."""
        wanted = pd.DataFrame(
            [(self.ids[a.prompt], a.sample, a.round) for a in asked], columns=["prompt_id", "sample_index", "round"]
        ).astype({"sample_index": int, "round": int})
        both = self.table.groupby(["prompt_id", "side"]).size().groupby("prompt_id").min()
        held = self.table[self.table["sample_index"] < self.table["prompt_id"].map(both)]
        parts = [wanted.merge(held[held["side"] == side], on=["prompt_id", "sample_index"]) for side in SIDES]
        return pd.concat(parts, ignore_index=True)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 ``[n, d]``."""
        return self.vectors(texts)

    def truth(self, texts: pd.DataFrame) -> np.ndarray:
        """Number of each text's behaviour in ``behaviours``, -1 where it shows none of them."""
        return self.table["behaviour"].to_numpy()[texts["row"].to_numpy()]


def read_texts(
    table: pd.DataFrame,
    prompts: Sequence[Prompt],
    vectors: Callable[[Sequence[str]], np.ndarray],
    planted: Mapping[str, int] | None = None,
    js: Mapping[str, float] | None = None,
    seed: int = 0,
) -> TextPool:
    """A pool of texts that were decoded elsewhere.

    Args:
        table: columns ``prompt_id``, ``side`` and ``text``, and where a scorer read them ``behaviour`` (its name, null
            for none). The samples of a prompt are its rows in a random order that ``seed`` decides, so another seed is
            another run over the same texts.
        prompts: those that may be asked; texts of others are left out.
        vectors: texts to float32 ``[n, d]``.
        planted: behaviour to +1 (the intervention was made to do it more) or -1.
        js: prompt id to divergence, as in ``divergence.parquet``.

    Raises:
        DriftbookError: a column is missing, or a prompt has texts of one side only.
    """
    for column in ("prompt_id", "side", "text"):
        if column not in table:
            raise DriftbookError(f"the table of texts has no column {column}; it has {', '.join(table.columns)}")
    ids = [p.prompt_id for p in prompts]
    held = table[table["prompt_id"].isin(ids)].reset_index(drop=True)
    sides = held.groupby("prompt_id")["side"].nunique().reindex(ids).fillna(0)
    if (sides < 2).any():
        raise DriftbookError(
            f"prompt {sides.index[sides < 2][0]} has no texts of both sides: leave it out, or add them"
        )
    held = held.iloc[np.random.default_rng([seed, 0x7E47]).permutation(len(held))]
    held = held.sort_values(["prompt_id", "side"], kind="stable").reset_index(drop=True)
    named = held["behaviour"] if "behaviour" in held else pd.Series(None, index=held.index, dtype=object)
    planted = dict(planted or {})
    behaviours = tuple(dict.fromkeys([*planted, *sorted(named.dropna().unique())]))
    numbers = {name: number for number, name in enumerate(behaviours)}
    frame = held[["prompt_id", "side", "text"]].assign(
        sample_index=held.groupby(["prompt_id", "side"]).cumcount(),
        behaviour=named.map(numbers).fillna(-1).astype(int),
        split="discover",
        row=np.arange(len(held)),
        text_id=np.arange(len(held)),
    )
    rows = [(numbers[name], sign, np.nan, len(ids), False) for name, sign in planted.items()]
    return TextPool(
        SimpleNamespace(prompts=list(prompts), splits=["discover"] * len(ids)),
        frame,
        np.array([(js or {}).get(i, np.nan) for i in ids], float),
        behaviours,
        pd.DataFrame(rows, columns=["behaviour", "sign", "strength", "prompts", "scattered"]),
        vectors,
        seed,
    )


# ----------------------------------------------------------------------------------------------------------- strategies


def sample(
    pool: Pool | TextPool,
    strategy: str,
    max_texts: int,
    *,
    rounds: int = 4,
    samples: int = 2,
    quality: float = 1.0,
    keep: float = 0.5,
    floor: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """The texts that ``strategy`` ends up with: round 0 with ``samples`` a prompt and side, then rounds as the decode
    stage plans them.
    """
    from driftbook.decode import Ask

    sampling = SimpleNamespace(strategy=strategy, max_texts=max_texts, rounds=rounds, quality=quality)
    divergence = pool.divergence(keep, floor)
    texts = pool.texts([Ask(i, s, 0) for i in range(len(pool.ids)) for s in range(samples)])
    for number in range(1, rounds + 1):
        state = State(pool.prompts, texts, divergence, seed, number, rounds, None, pool.embed)
        planned = plan_round(sampling, state, (max_texts - len(texts)) // 2)
        if not planned:
            break
        texts = pd.concat([texts, pool.texts(planned)], ignore_index=True)
    return texts


def found(texts: pd.DataFrame, labels: np.ndarray, weighted: bool = False, seed: int = 0) -> pd.DataFrame:
    """Composition of the texts by ``labels``: cluster, difference, p, q. ``weighted``: by 1 / propensity, as the decode
    stage records it.

    Without weights every text counts once. Under no difference both tests hold, because the sides have equal numbers in
    each prompt; only the weighted difference estimates the share over all prompts.
    """
    from driftbook.decode import propensities

    chance = propensities(texts) if weighted else None
    result = composition.compare(
        composition.count(texts.prompt_id, labels, texts.side, chance), resamples=40, seed=seed
    )
    return pd.DataFrame(
        {"cluster": result.counts.clusters, "difference": result.difference, "p": result.p, "q": result.q}
    )


def recall(pool: Pool | TextPool, table: pd.DataFrame, level: float = 0.05) -> np.ndarray:
    """Per planted difference: was its behaviour found, in its direction? bool ``[planted]``."""
    own = table.set_index("cluster").reindex(pool.planted.behaviour)
    return ((own.q <= level) & (np.sign(own.difference) == pool.planted.sign.to_numpy())).to_numpy()


# ------------------------------------------------------------------------------------------------------------ the bench

COLUMNS = ["strategy", "depth", "seed", "texts", "behaviour", "strength", "scattered", "found", "found_weighted"]


def compare_strategies(
    world: World, depths: Mapping[str, Sequence[int]], seeds: Sequence[int], *, rounds: int, samples: int
) -> pd.DataFrame:
    """Every strategy at every budget on the same pools: one row a planted difference, in ``COLUMNS``.

    ``depths`` maps a strategy to its budgets, in texts per prompt and side on average. ``found``: by the test in which
    every text counts once; ``found_weighted``: by that on shares weighted by 1 / propensity.
    """
    rows = []
    for seed in seeds:
        pool = draw(world, seed)
        for strategy, budgets in depths.items():
            for depth in budgets:
                texts = sample(pool, strategy, 2 * world.prompts * depth, rounds=rounds, samples=samples, seed=seed)
                labels = pool.truth(texts)
                plain, weighted = (recall(pool, found(texts, labels, w, seed)) for w in (False, True))
                for planted, one, other in zip(pool.planted.itertuples(), plain, weighted, strict=True):
                    about = (planted.behaviour, planted.strength, planted.scattered)
                    rows.append((strategy, depth, seed, len(texts), *about, bool(one), bool(other)))
    return pd.DataFrame(rows, columns=COLUMNS)


def recall_curve(table: pd.DataFrame, strategy: str, column: str = "found") -> tuple[np.ndarray, np.ndarray]:
    """(texts ``[budgets]``, recall ``[seeds, budgets]``) of a strategy, its budgets in order."""
    own = table[table.strategy == strategy]
    recalls = own.pivot_table(index="seed", columns="depth", values=column, aggfunc="mean")
    return own.groupby("depth").texts.mean().to_numpy(), recalls.to_numpy(float)


def mean_recall(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean recall of every strategy and budget with 95% intervals over pools: strategy, texts, recall, low, high."""
    rows = []
    for strategy in dict.fromkeys(table.strategy):
        texts, recalls = recall_curve(table, strategy)
        rows += [(strategy, t, *bootstrap_mean(r, seed=seed)) for t, r in zip(texts, recalls.T, strict=True)]
    return pd.DataFrame(rows, columns=["strategy", "texts", "recall", "low", "high"])


def texts_needed(texts: np.ndarray, recalls: np.ndarray, target: float, most: float) -> float:
    """Texts at which the mean recall first reaches ``target``, between budgets by interpolation in log texts.

    A curve that never gets there counts as ``most``, so that it cannot look better than it is.
    """
    mean = np.maximum.accumulate(recalls.mean(0))
    reached = np.flatnonzero(mean >= target - 1e-12)
    if not len(reached):
        return most
    k = int(reached[0])
    if k == 0:
        return float(texts[0])
    part = (target - mean[k - 1]) / (mean[k] - mean[k - 1])
    return float(np.exp(np.log(texts[k - 1]) + part * (np.log(texts[k]) - np.log(texts[k - 1]))))


def savings(
    table: pd.DataFrame, share: float = 0.95, resamples: int = 1000, seed: int = 0, column: str = "found"
) -> dict[str, tuple[float, float, float]]:
    """(ratio, low, high) of texts until ``share`` of the exhaustive recall; 95% intervals resample pools.

    ``texts_saved_<strategy>``: exhaustive / strategy; ``<strategy>_over_uniform``: uniform / strategy; and
    ``active_over_screened``. The recall to be reached is that of the exhaustive run on the same pools, in every
    resample.
    """
    curves = {s: recall_curve(table, s, column) for s in ("exhaustive", "uniform", "screened", "active")}
    everything = float(curves["exhaustive"][0][-1])
    uniform_texts = np.append(curves["uniform"][0], everything)
    curves["uniform"] = (uniform_texts, np.column_stack([curves["uniform"][1], curves["exhaustive"][1][:, -1]]))

    def ratios(pools: np.ndarray) -> dict[str, float]:
        target = share * curves["exhaustive"][1][pools, -1].mean()
        need = {s: texts_needed(t, r[pools], target, everything) for s, (t, r) in curves.items() if s != "exhaustive"}
        out = {f"texts_saved_{s}": everything / n for s, n in need.items()}
        out |= {f"{s}_over_uniform": need["uniform"] / need[s] for s in ("screened", "active")}
        return out | {"active_over_screened": need["screened"] / need["active"]}

    pools = len(curves["exhaustive"][1])
    rng = np.random.default_rng(seed)
    drawn = pd.DataFrame([ratios(rng.integers(0, pools, pools)) for _ in range(resamples)])
    low, high = drawn.quantile(0.025), drawn.quantile(0.975)
    return {name: (value, float(low[name]), float(high[name])) for name, value in ratios(np.arange(pools)).items()}


def false_alarms(world: World, strategy: str, depth: int, seeds: Sequence[int], *, rounds: int, samples: int) -> int:
    """In how many pools without any difference the test on that strategy's texts finds one."""
    alarms = 0
    for seed in seeds:
        pool = draw(replace(world, planted=0), seed)
        texts = sample(pool, strategy, 2 * world.prompts * depth, rounds=rounds, samples=samples, seed=seed)
        alarms += int((found(texts, pool.truth(texts), seed=seed).q <= 0.05).any())
    return alarms


def claim(saving: tuple[float, float, float], other: str) -> str:
    """A saving (ratio, low, high) against another way, in words: a gain only where the interval excludes 1."""
    sure = "fewer" if saving[1] > 1 else "more" if saving[2] < 1 else None
    said = f"{saving[0]:.1f} times [{saving[1]:.1f}, {saving[2]:.1f}]"
    return f"{sure} texts than {other} ({said})" if sure else f"not certainly fewer texts than {other} ({said})"
