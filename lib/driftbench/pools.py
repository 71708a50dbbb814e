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

from driftbook.discovery import composition, two_sample
from driftbook.discovery.screen import keep_divergent
from driftbook.discovery.strategies import Ask, State, plan_round, propensities
from driftbook.errors import DriftbookError
from driftbook.prompts import SIDES, Prompt


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
    they are drawn from. ``wording`` ``[prompts]``: standard deviation of the log-ratio of likelihoods that texts have
    besides what their behaviour gives away.

    ``planted``: behaviour, sign (+1: the intervention does it more), strength, prompts, scattered. ``js``
    ``[prompts]``.
    """

    world: World
    prompts: SimpleNamespace
    chances: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    js: np.ndarray
    wording: np.ndarray
    planted: pd.DataFrame
    seed: int

    @property
    def ids(self) -> list[str]:
        return [p.prompt_id for p in self.prompts.prompts]

    def divergence(self, keep: float, floor: float) -> pd.DataFrame:
        """The decode stage's table, as far as strategies read it."""
        return keep_divergent(pd.DataFrame({"prompt_id": self.ids, "js": self.js}), keep, floor)

    def texts(self, asked: Sequence) -> pd.DataFrame:
        """What decoding would return; requests beyond ``deepest`` samples of a prompt are dropped."""
        asked = [a for a in asked if a.sample < self.world.deepest]
        prompt = np.array([a.prompt for a in asked], int)
        sample = np.array([a.sample for a in asked], int)
        ids = np.array(self.ids, dtype=object)
        families = np.array([p.family for p in self.prompts.prompts], dtype=object)
        parts = []
        for side, name in enumerate(SIDES):
            row = (prompt * 2 + side) * self.world.deepest + sample
            parts.append(
                pd.DataFrame(
                    {
                        "text_id": row,
                        "side": name,
                        "prompt_id": ids[prompt],
                        "family": families[prompt],
                        "split": "discover",
                        "round": np.array([a.round for a in asked], int),
                        "text": row.astype(str),
                        "log_ratio": self.log_ratio(row),
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

    def log_ratio(self, row: np.ndarray) -> np.ndarray:
        """Log-likelihood of the texts under the intervention minus that under the base."""
        prompt, side = np.divmod(row // self.world.deepest, 2)
        chance = np.maximum(self.chances[prompt, self.labels.reshape(-1)[row]], 1e-300)
        width = self.wording[prompt]
        # normal with variance w and mean w / 2 under the intervention, -w / 2 under the base: a true log-ratio
        noise = self.vectors[self.world.behaviours :, -1]
        words = width * noise[(row * 104_729 + self.seed) % len(noise)] + (2 * side - 1) * width**2 / 2
        return np.log(chance[:, 1] / chance[:, 0]) + words

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
    scale = true[true > 1e-9].mean() if (true > 1e-9).any() else 0.06  # about what planted ones have
    words = world.nuisance * scale * rng.exponential(size=world.prompts)
    js = (true + words) * rng.lognormal(0, 0.3, world.prompts)
    centres = rng.standard_normal((world.behaviours, world.width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.concatenate([centres, rng.standard_normal((20_011, world.width))]).astype(np.float32)
    prompts = SimpleNamespace(
        prompts=[Prompt(f"prompt {i} of pool {seed}", f"family {f}") for i, f in enumerate(families)],
        splits=["discover"] * world.prompts,
    )
    planted = pd.DataFrame(rows, columns=["behaviour", "sign", "strength", "prompts", "scattered"])
    return Pool(world, prompts, chances, labels, vectors, js, wording_of(words), planted, seed)


def told(pool: Pool) -> float:
    """Mean of tanh^2(log ratio / 2) over one text a prompt and side: how much likelihoods tell about sides."""
    row = np.arange(2 * pool.world.prompts) * pool.world.deepest
    return float((np.tanh(pool.log_ratio(row) / 2) ** 2).mean())


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


def wording_of(js: np.ndarray) -> np.ndarray:
    """Standard deviation of a normal log-ratio (mean half its variance) between texts whose JS is ``js`` nats a text;
    JS ends at ln 2, and so the deviation at 12."""
    deviation = np.geomspace(0.01, 12, 200)
    z = np.linspace(-8, 8, 1601)
    density = np.exp(-(z**2) / 2)
    log_ratio = deviation[:, None] ** 2 / 2 + deviation[:, None] * z
    divergence = np.log(2) - (np.logaddexp(0, -log_ratio) * density).sum(1) / density.sum()
    return np.interp(js, divergence, deviation, left=0.0)


# ---------------------------------------------------------------------------------------------------------- real texts


@dataclass(frozen=True)
class TextPool:
    """Texts that exist already, in the place of decoding.

    ``prompts``: ``.prompts`` (of ``driftbook.prompts.Prompt``) and ``.splits``. ``table``: one row a text, sorted by
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
    name: str = ""

    @property
    def ids(self) -> list[str]:
        return [p.prompt_id for p in self.prompts.prompts]

    def divergence(self, keep: float, floor: float) -> pd.DataFrame | None:
        """The decode stage's table, as far as strategies read it; None where nothing was screened."""
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
    name: str = "",
) -> TextPool:
    """A pool of texts that were decoded elsewhere.

    Args:
        table: columns ``prompt_id``, ``side`` and ``text``, and where a scorer read them ``behaviour`` (its name, null
            for none). The samples of a prompt are its rows in a random order that ``seed`` decides, so another seed is
            another run over the same texts.
        prompts: those that may be asked; texts of others are left out.
        vectors: texts to float32 ``[n, d]``.
        planted: behaviour to +1 (the intervention was made to do it more) or -1.
        js: prompt id to divergence, as in ``divergence.parquet``; without it, ``screened`` and ``active`` go by the
            energy distance between answers, as the decode stage does for texts that were made elsewhere.
        name: what these texts are, for tables.

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
        family=held["prompt_id"].map({p.prompt_id: p.family for p in prompts}),
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
        name,
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
    sampling = SimpleNamespace(strategy=strategy, max_texts=max_texts, rounds=rounds, quality=quality)
    divergence = pool.divergence(keep, floor)
    texts = pool.texts([Ask(i, s, 0) for i in range(len(pool.ids)) for s in range(samples)])
    if divergence is None and strategy in ("screened", "active"):  # as decode does without next tokens to compare
        families = two_sample.family_energy(texts, pool.embed(texts["text"].tolist()), seed)
        family_of = texts.drop_duplicates("prompt_id").set_index("prompt_id")["family"]
        table = two_sample.energy_of_prompts(families, family_of).assign(js=np.nan)
        divergence = keep_divergent(table, keep, floor)
    for number in range(1, rounds + 1):
        state = State(pool.prompts, texts, divergence, seed, number, rounds, pool.embed)
        planned = plan_round(sampling, state, (max_texts - len(texts)) // 2)
        if not planned:
            break
        texts = pd.concat([texts, pool.texts(planned)], ignore_index=True)
    return texts


def found(
    texts: pd.DataFrame,
    labels: np.ndarray,
    weighted: bool = False,
    families: bool = True,
    likelihood: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Composition of the texts by ``labels``: cluster, difference (where it stands out most), p, q. ``weighted``: by
    1 / propensity, as the decode stage records it. ``families``: looked for inside families too. ``likelihood``: with
    the texts' ``log_ratio``.

    Without weights every text counts once. Under no difference both tests hold, because the sides have equal numbers in
    each prompt; only the weighted difference estimates the share over all prompts.
    """
    chance = propensities(texts) if weighted else None
    log_ratio = texts.log_ratio.to_numpy() if likelihood else None
    kinds = texts.family if families else None
    counts = composition.count(texts.prompt_id, labels, texts.side, chance, kinds, log_ratio)
    result = composition.compare(counts, resamples=40, seed=seed)
    return pd.DataFrame({"cluster": counts.clusters, "difference": result.there, "p": result.p, "q": result.q})


def recall(pool: Pool | TextPool, table: pd.DataFrame, level: float = 0.05) -> np.ndarray:
    """Per planted difference: was its behaviour found, in its direction? bool ``[planted]``."""
    own = table.set_index("cluster").reindex(pool.planted.behaviour)
    return ((own.q <= level) & (np.sign(own.difference) == pool.planted.sign.to_numpy())).to_numpy()
