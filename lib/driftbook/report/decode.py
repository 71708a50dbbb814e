"""The pictures, tables and sentences of *decode*, in the order in which the notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from driftbook.decode import Decoded, mean_divergence, unreached
from driftbook.discovery.promoted import TOP
from driftbook.discovery.promoted import themes as tokens_by_theme
from driftbook.discovery.readback import LEAST_TEXTS
from driftbook.discovery.two_sample import FLIPS
from driftbook.models.sides import Pair
from driftbook.numbers import fixed, p_value
from driftbook.prompts import SIDES, PromptSet, look_alikes
from driftbook.report.loading import asked as asked
from driftbook.report.loading import loaded as loaded
from driftbook.workbook.figures import Figure, bars, curve, histogram, interval_plot
from driftbook.workbook.runs import Run
from driftbook.workbook.tables import Table

ROUNDS_CAPTION = (
    "quality: share of conclusions about clusters that are expected to stand when the rest of the budget is spent; "
    "empty under a strategy that does not read the texts."
)
ENERGY_CAPTION = (
    "Energy distance between the embedded answers of the two sides, each pair from two prompts of a family; 0: alike. "
    "95% intervals by the jackknife over prompts, p by random swaps of the sides of prompts."
)


def overview(prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]]) -> Table:
    """The prompts by split."""
    same = len(prompts) - prompts.units
    caption = f"{same} of {len(prompts)} prompts look like another: look-alikes share a split and count as one. "
    caption += look_alikes(prompts.prompts)
    if prompts.unreadable:
        caption += f" {len(prompts.unreadable)} rows could not be read, and were left out: {prompts.unreadable[0]}."
    return Table(counts(prompts, ids), "Prompts by split", caption)


def counts(prompts: PromptSet, ids: dict[str, list[tuple[int, ...]]]) -> pd.DataFrame:
    """Prompts, families and prompt tokens per split."""
    frame = pd.DataFrame(
        {
            "split": prompts.splits,
            "family": [p.family for p in prompts.prompts],
            "tokens": [len(i) for i in ids["base"]],
        }
    )
    out = frame.groupby("split", sort=True).agg(
        prompts=("family", "size"), families=("family", "nunique"), mean_tokens=("tokens", "mean")
    )
    return out.reset_index() if frame["tokens"].any() else out.drop(columns="mean_tokens").reset_index()


def rounds(decoded: Decoded) -> Table:
    """What every round asked for and took; without tokens and seconds where nothing was made here."""
    table = decoded.rounds if decoded.tokens else decoded.rounds.drop(columns=["tokens", "seconds"])
    return Table(table, "Rounds", ROUNDS_CAPTION)


def quality(decoded: Decoded, wanted: float) -> Figure | None:
    """How the quality grew towards the ``wanted`` one; None under a strategy that does not read the texts."""
    if not decoded.rounds.quality.notna().any():
        return None
    return curve(
        decoded.rounds.texts.cumsum(),
        decoded.rounds.quality,
        title=quality_title(decoded.rounds, wanted),
        caption=ROUNDS_CAPTION,
        x_title="texts of both sides",
        y_title="quality",
        reference=wanted,
    )


def quality_title(rounds: pd.DataFrame, wanted: float) -> str:
    """What the last round with a known quality has reached of the ``wanted`` one."""
    known = rounds.loc[rounds["quality"].notna(), "quality"]
    said = f"{known.iloc[-1]:.0%} of the conclusions are expected to stand"
    return f"In the end {said}: {wanted:.0%} {'is' if known.iloc[-1] >= wanted else 'is not'} reached"


def families(run: Run, decoded: Decoded, families: pd.DataFrame) -> Figure | None:
    """Where the sides part, family by family: by divergence, else by the answers where only those could be compared."""
    if len(families):
        figure = interval_plot(
            list(families.family),
            families.js,
            families.low,
            families.high,
            title=family_title(families),
            caption=f"Mean Jensen-Shannon divergence per token, {int(families.prompts.sum())} prompts, 95% intervals "
            f"over prompts, seed {run.seed}.",
            x_title="JS (nats per token; at most 0.69)",
        )
    elif len(decoded.families):
        apart = decoded.families
        figure = interval_plot(
            list(apart.family),
            apart.energy,
            apart.low,
            apart.high,
            title=energy_title(apart),
            caption=ENERGY_CAPTION,
            x_title="energy distance of the answers (0: alike)",
            reference=0.0,
            marked=beyond_chance(apart),
            marked_name="differ beyond chance",
            unmarked_name="not shown to differ",
        )
    else:
        return None
    figure.best = True
    return figure


def apart(decoded: Decoded) -> Table | None:
    """How far the answers lie apart, where only those could be compared."""
    if not len(decoded.families):
        return None
    return Table(decoded.families, "Answers apart, family by family", ENERGY_CAPTION)


def family_title(families: pd.DataFrame) -> str:
    top, last = families.iloc[0], families.iloc[-1]
    return (
        f"The two models part most on {top.family} ({fixed(top.js, 3)} nats a token), least on {last.family} "
        f"({fixed(last.js, 3)})"
    )


def beyond_chance(families: pd.DataFrame) -> np.ndarray:
    """Whether the answers of each row differ beyond chance: all prompts by themselves, families by Holm."""
    p = families.p.to_numpy()
    own = np.argsort(p[:-1], kind="stable")
    kept = (p[:-1][own] * np.arange(len(own), 0, -1) <= 0.05).cumprod().astype(bool)
    flags = np.zeros(len(p), bool)
    flags[own], flags[-1] = kept, p[-1] <= 0.05
    return flags


def energy_title(families: pd.DataFrame) -> str:
    """Whether answers lie apart beyond chance, and in which families (Holm over families)."""
    everything, own = families.iloc[-1], families.iloc[:-1]
    differ = int(beyond_chance(families)[:-1].sum())
    said = "differ" if everything.p <= 0.05 else "do not differ"
    top = own.iloc[0]
    return (
        f"Answers {said} beyond chance over all prompts (p {_p(everything.p)}), and in {differ} of {len(own)} "
        f"families taken alone; most on {top.family} ({fixed(top.energy, 3)})"
    )


def _p(p: float) -> str:
    said = p_value(p, FLIPS)
    return said if said.startswith("<") else f"= {said}"


def profile(profile: pd.DataFrame) -> Figure | None:
    """Divergence by response token; None without a screen."""
    if not len(profile):
        return None
    return curve(
        profile.position,
        profile.js,
        low=profile.js - 1.96 * profile.js_se,
        high=profile.js + 1.96 * profile.js_se,
        title=profile_title(profile),
        caption="Mean over responses of both sides, 95% intervals.",
        x_title="response token",
        y_title="JS (nats)",
    )


def profile_title(profile: pd.DataFrame) -> str:
    k = int(profile.js.to_numpy().argmax())
    return f"Divergence is largest at response token {int(profile.position[k])} ({fixed(profile.js[k], 3)} nats)"


def promoted(decoded: Decoded, most: int = 12) -> Figure | None:
    """The tokens that the change promotes and suppresses most; None without a screen, or where none moved."""
    table = decoded.promoted
    if table.empty:
        return None
    shown = pd.concat([own.head(most) for _, own in table.groupby("direction", sort=True)])
    shown = shown.sort_values("gain", ascending=False, kind="stable")
    first = shown.iloc[0] if shown.iloc[0].gain > 0 else shown.iloc[-1]
    return bars(
        [repr(t)[1:-1] or "(empty)" for t in shown.token],
        100 * shown.gain,
        title=f"Most {first.direction} as a next token: {first.token!r}, in {first.prompts} prompts",
        caption=f"Mean change of a next token's probability over {int(decoded.divergence.n_tokens.sum()):,} scored "
        f"positions, where it is among the {TOP} that moved most. No answer was sampled for it.",
        value_title="points of probability",
        horizontal=True,
        reference=0.0,
    )


def themes(decoded: Decoded) -> Table | None:
    """Promoted and suppressed tokens by theme and family; None where there are too few."""
    table = tokens_by_theme(decoded.promoted) if len(decoded.promoted) else decoded.promoted
    if table.empty:
        return None
    caption = "Factors of prompts by tokens (non-negative matrix factorisation). gain: mean change of probability."
    return Table(table, "Promoted and suppressed tokens by theme", caption)


def lens(table: pd.DataFrame) -> Figure | None:
    """How far the change moves activations on unrelated text, and towards which tokens; None where nothing moved."""
    if table.empty or not (table.norm > 0).any():
        return None
    top = table.loc[(table.relative / table.null.clip(lower=1e-12)).idxmax()]
    said = ", ".join(repr(t) for t in top.promoted[:5])
    return curve(
        [*table.layer, *table.layer],
        [*table.relative, *table.null],
        groups=["mean difference"] * len(table) + ["95% of draws with random signs"] * len(table),
        title=f"On unrelated text, block {int(top.layer)} moves towards {said}",
        caption="Mean difference of activations over the first tokens of neutral sentences, by the base's mean norm. "
        "The tokens are those that the direction promotes through final norm and output layer.",
        x_title="block",
        y_title="share of the activation norm",
    )


def lens_tokens(table: pd.DataFrame) -> Table | None:
    """The tokens that the mean difference promotes and suppresses, block by block."""
    if table.empty or not (table.norm > 0).any():
        return None
    shown = table.assign(**{k: [", ".join(map(repr, t)) for t in table[k]] for k in ("promoted", "suppressed")})
    return Table(shown, "What the difference of activations says, block by block", "", max_rows=100)


def weights_changed(table: pd.DataFrame) -> tuple[Figure, Table] | tuple[None, None]:
    """Which blocks and kinds of matrices the change is made of; None where both sides have the same weights."""
    if table.empty or not (table.change > 0).any():
        return None, None
    square = table.assign(square=table.change**2, size=table.norm**2)
    by = square[square.layer >= 0].groupby("layer")[["square", "size"]].sum()
    kinds = square.groupby("kind").agg(
        matrices=("change", "size"), square=("square", "sum"), relative=("relative", "mean"),
        effective_rank=("effective_rank", "mean"), top_share=("top_share", "mean"),
    )  # fmt: skip
    kinds["share_of_change"] = kinds.pop("square") / square.square.sum()
    kinds = kinds.sort_values("share_of_change", ascending=False).reset_index()
    figure = bars(
        [str(layer) for layer in by.index],
        np.sqrt(by["square"] / by["size"]),
        title=f"{len(table[table.change > 0])} weight matrices changed, block {int(by.square.idxmax())} most",
        caption="Norm of the change by the norm of the weights, block by block.",
        value_title="relative change",
    )
    caption = "share_of_change: of the squared norm; effective_rank: of the change; top_share: of its first direction."
    return figure, Table(kinds, "What kinds of weights changed", caption)


def weights(decoded: Decoded, floor: float) -> Figure | None:
    """Divergence by prompt, and how many keep full weight; None without a screen."""
    if not len(decoded.profile):
        return None
    return histogram(
        decoded.divergence.js,
        title=f"{int(decoded.divergence.kept.sum())} of {len(decoded.divergence)} prompts keep full weight",
        caption=f"JS per discover prompt. The others are sampled at {floor:g} of that rate.",
        x_title="JS (nats per token)",
    )


def answers(decoded: Decoded, prompts: PromptSet, count: int = 8) -> Table:
    """Answers of both sides where they differ most, to read."""
    caption = (
        "By mean JS; by the energy distance of the family where only texts could be compared; else the first prompts."
    )
    shown, title = most_divergent(decoded, prompts, count), "Where the two differ most"
    if len(decoded.families):  # one number a family: no prompt differs more than another
        title = f"From {decoded.families.iloc[0].family}, where answers lie farthest apart"
        shown = shown.drop(columns="energy")
    return Table(shown, title, caption)


def most_divergent(decoded: Decoded, prompts: PromptSet, count: int) -> pd.DataFrame:
    """The prompts with the largest JS (those of the families whose answers differ most, where only texts could be
    compared), with one answer of each side."""
    by = "energy" if len(decoded.families) else "js"
    order = decoded.divergence.sort_values(by, ascending=False, kind="stable").prompt_id.head(count).tolist()
    out = side_by_side(decoded.texts, prompts, order)
    size = decoded.divergence.set_index("prompt_id")[by]
    out.insert(0, by, [size[p] for p in order])
    return out


def side_by_side(texts: pd.DataFrame, prompts: PromptSet, order: Sequence[str], samples: int = 1) -> pd.DataFrame:
    """Prompts in the given order with one text of each side, for reading."""
    texts = texts[texts.sample_index < samples]
    wide = texts.drop_duplicates(["prompt_id", "side"]).pivot(index="prompt_id", columns="side", values="text")
    asked = prompts.by_id()
    said = {side: [wide.loc[p, side] for p in order] for side in SIDES}
    return pd.DataFrame({"prompt": [asked[p].shown() for p in order], **said})


def amplified(decoded: Decoded, prompts: PromptSet, count: int = 8) -> tuple[Table, Table] | tuple[None, None]:
    """The strengths and whether their answers make sense, and answers to read beside ordinary ones."""
    if decoded.amplified.empty:
        return None, None
    caption = (
        "Strength 0 is the changed side as it is. broken: share that is empty, loops or is no words; strangeness: 0 "
        "for a side's own answers, 1 for their words in random order. A strength that breaks the text is not used."
    )
    strengths = Table(decoded.strengths, strengths_title(decoded.strengths), caption)
    stronger = decoded.amplified[decoded.amplified["sample_index"] == 0]
    order = stronger["prompt_id"].drop_duplicates().tolist()[:count]
    read = side_by_side(decoded.texts, prompts, order)
    for a, own in stronger.groupby("strength", sort=True):
        read[f"a = {a:g}"] = own.set_index("prompt_id")["text"].reindex(order).to_numpy()
    return strengths, Table(read, "The change, exaggerated", "Both sides as they are, then by strength.")


def strengths_title(table: pd.DataFrame) -> str:
    """Which strengths are used."""
    asked, used = table.loc[table.strength > 0, "strength"], table.loc[table.used.eq(True), "strength"]
    broken = sorted(set(asked) - set(used))
    if not broken:
        return f"Amplified answers make sense at every strength ({', '.join(f'{a:g}' for a in asked)})"
    said = ", ".join(f"{a:g}" for a in broken)
    return f"Strength {said} breaks the text, and is not used"


def read_back(decoded: Decoded) -> Table | None:
    """What comes back from bare beginnings; None where nothing was asked or nothing came back."""
    table = decoded.read_back
    if table.empty:
        return None
    first = table.iloc[0]
    caption = (
        f"Phrases in {LEAST_TEXTS} texts or more that go on from nothing or vague first words, without a chat "
        f"template, at strength {first.strength:g}; texts_base: in as many texts of the base, exaggerated as much."
    )
    title = f"From bare beginnings comes back {first.phrase!r}, in {first.texts} texts ({first.texts_base} of the base)"
    return Table(table, title, caption, [c for c in table.columns if c != "strength"])


def costs(took: pd.DataFrame, pair: Pair, made: dict[str, float], busy: dict[str, float]) -> Table:
    """What decoding took beside what was planned."""
    return Table(took, "What decoding took", speed_caption(pair, made, busy))


def speed_caption(pair: Pair, made: dict[str, float], busy: dict[str, float]) -> str:
    """What the table of the costs counts, and how much of the machine was used."""
    if not busy:
        return "Nothing was decoded here: both sides' answers were made elsewhere."
    dtype = str(pair.base.model.dtype).removeprefix("torch.")
    gpu = f"; {busy['peak_gpu_mb']:,.0f} MB at most on the GPU" if "peak_gpu_mb" in busy else ""
    return (
        f"Answers made here: {made['tokens'] / made['seconds']:,.0f} tokens/s, {busy['matrix_share']:.0%} of what "
        f"square matrix products in {dtype} reach on this machine{gpu}. Seconds are those of decoding, without the "
        "screen. A plan is made by make plan before the run."
    )


def answer(decoded: Decoded, families: pd.DataFrame) -> str:
    """The stage's answer in a sentence, with 95% intervals over prompts."""
    said = f"{len(decoded.texts):,} answers were decoded{never_came(decoded)}"
    if not len(families):
        said = f"{said}; exact divergence was not measured: {decoded.unscreened}."
        if not len(decoded.families):
            return said
        return f"{said} By the energy distance between the answers: {energy_title(decoded.families)}."
    shared = f", {decoded.shared}" if decoded.shared else ""
    where = " everywhere: nothing differs"
    if (decoded.texts.thought != "").any():
        where = f" over the first {len(decoded.profile)}, which are of the thought or begin with it"
        shared += where
    mean = mean_divergence(decoded.divergence)
    if mean.estimate < 1e-6:
        return f"{said}; the two models give the same next-token distributions{where}."
    top = families.iloc[0]
    return (
        f"{said}; next-token distributions differ by {fixed(mean.estimate, 3)} nats (JS) a token on average{shared} "
        f"({fixed(mean.low, 3)} to {fixed(mean.high, 3)}), most on {top.family} ({fixed(top.js, 3)}, "
        f"{fixed(top.low, 3)} to {fixed(top.high, 3)})."
    )


def never_came(decoded: Decoded) -> str:
    """How many answers were never reached, by side; empty where all were."""
    shares = {side: share for side, share in unreached(decoded.texts).items() if share}
    if not shares:
        return ""
    told = " and ".join(f"{share:.0%} of {side}'s" for side, share in shares.items())
    return f", of which {told} never came (they ended inside of the thought: decode.max_thought_tokens)"


def headlines(run: Run, prompts: PromptSet, decoded: Decoded, made: dict[str, float]) -> None:
    """The cards of the stage."""
    run.headline("texts", len(decoded.texts), baseline=f"{len(prompts.prompts)} prompts, both sides")
    mean = mean_divergence(decoded.divergence)
    if mean is not None:
        scale = "0 for the same model, 0.69 at most"
        run.headline("mean divergence (JS)", mean.estimate, mean.low, mean.high, scale, "nats per token")
    if decoded.unscreened:
        run.record("unscreened", decoded.unscreened)
    if made["texts"]:
        run.headline("speed", made["tokens"] / max(made["seconds"], 1e-9), unit="tokens/s")
