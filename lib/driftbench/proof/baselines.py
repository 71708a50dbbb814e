"""Simple ways to find a difference, which a pipeline has to beat: counting, and asking a model to guess."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from driftbench import plain
from driftbench.proof.harvest import Harvest
from driftbench.proof.pipelines import (
    CLAIM,
    NO_CLUSTERS,
    Known,
    Outcome,
    Paid,
    PricedLexicon,
    Prices,
    Rung,
    bill,
    claims_of,
    fixed,
)
from driftbook.discovery import hypotheses as hypothesis
from driftbook.discovery.hypotheses import Hypothesis, tokenize
from driftbook.evidence.multiplicity import bh_adjusted
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request
from driftbook.models.sampling import SamplingParams

QUESTION = (
    "Two writers, A and B, answered the same questions.\n\n{shown}\n\n"
    "In one short sentence, what does B do that A does not do?"
)


def bag_of_words(harvest: Harvest, alpha: float = 0.05, most: int = 20) -> Outcome:
    """Every word and pair of words on all texts: paired t-test over prompts of the share of answers that hold it,
    Benjamini-Hochberg over the vocabulary. Nothing is held out."""
    begun = time.monotonic()
    texts = harvest.texts
    words = hypothesis.read_vocabulary(texts["text"].tolist(), texts["prompt"].tolist(), min_texts=5)
    prompt, side = texts["prompt_id"].to_numpy(dtype=str), texts["side"].to_numpy(dtype=str)
    shares = words.shares(prompt, side, np.ones(len(texts), bool))
    difference = np.asarray((shares["intervention"] - shares["base"]).todense())
    spread = difference.std(axis=0, ddof=1)
    t = difference.mean(axis=0) / np.maximum(spread, 1e-9) * np.sqrt(len(difference))
    q = bh_adjusted(2 * stats.t.sf(np.abs(t), len(difference) - 1))
    chosen = [int(i) for i in np.argsort(-np.abs(t), kind="stable")[:most] if q[i] <= alpha]
    claims = claims_of(
        [(f'"{words.terms[i]}"', "intervention" if t[i] > 0 else "base", -1, [words.terms[i]], True) for i in chosen]
    )
    paid = _bill(harvest)
    paid.compute = time.monotonic() - begun
    return Outcome("bag of words", 1.0, claims, NO_CLUSTERS, {}, paid)


def plain_counts(harvest: Harvest, alpha: float = 0.05, most: int = 20, least: int = 5) -> Outcome:
    """What a script of an afternoon finds, without a line of driftbook: the shares and sizes of ``driftbench.plain``
    and every word of at least ``least`` answers, a sign test over prompts each, Benjamini-Hochberg (scipy) over all of
    them; the words that are claimed are the ``most`` surest. Nothing is held out."""
    begun = time.monotonic()
    table = harvest.texts[["side", "prompt", "text"]]
    said = [set(re.findall(r"[^\W\d_][\w'’]*", t.lower())) for t in table["text"]]
    counted = Counter(w for words in said for w in words)
    facts = plain.facts(table)
    words = [plain.held(w, [w in own for own in said], table) for w in sorted(counted) if counted[w] >= least]
    q = stats.false_discovery_control([f.p for f in (*facts, *words)], method="bh")
    sure = [int(i) for i in np.argsort(q, kind="stable") if q[i] <= alpha]
    told = [words[i - len(facts)] for i in sure if i >= len(facts)][:most]
    rows = [(f.name, f.side, -1, [f.name], True, None, None) for f in told]
    rows += [
        (f.name.replace("_", " "), f.side, -1, [], True, {"kind": "plain", "name": f.name}, None)
        for f in (facts[i] for i in sure if i < len(facts))
    ]
    paid = _bill(harvest)
    paid.embed, paid.compute = 0.0, time.monotonic() - begun
    return Outcome("plain counts", 1.0, pd.DataFrame(rows, columns=list(CLAIM)), NO_CLUSTERS, {}, paid)


def guesses(
    harvest: Harvest, model: LoadedModel, prices: Prices, seed: int, draws: int = 6, pairs: int = 4, alpha: float = 0.05
) -> Outcome:
    """A local model reads random pairs of answers and says what B does that A does not; what it says is tested on all
    held-out texts. Its words are those of the sentence that are not common ones."""
    begun = time.monotonic()
    texts = harvest.texts
    seen = texts[(texts["split"] == "discover") & (texts["sample_index"] == 0)]
    wide = seen.pivot(index="prompt_id", columns="side", values="text").dropna()
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(draws):
        own = wide.iloc[rng.choice(len(wide), min(pairs, len(wide)), replace=False)]
        shown = "\n\n".join(f"A: {_one_line(r.base)}\nB: {_one_line(r.intervention)}" for r in own.itertuples())
        requests.append(Request(tuple(model.encode_prompt(QUESTION.format(shown=shown))), int(rng.integers(2**62))))
    engine = LocalEngine(model)
    said = {
        c.index: model.decode(c.token_ids).strip()
        for c in engine.generate(requests, SamplingParams(40, temperature=0.0))
    }
    found = []
    for index in sorted(said):
        words = tuple(dict.fromkeys(w for w in tokenize(said[index]) if w not in ENGLISH_STOP_WORDS and len(w) > 1))[:8]
        if words:
            found.append(Hypothesis(said[index][:200], "intervention", words=words))
    found = list({h.hypothesis_id: h for h in found}.values())
    judge = PricedLexicon(prices)
    confirmed = fixed(texts, found, judge, alpha, 0.02)
    paid = _bill(harvest)
    paid.compute, paid.calls, paid.usd = time.monotonic() - begun, judge.calls, judge.usd
    claims = claims_of([(h.text, h.direction, -1, list(h.words), c) for h, c in zip(found, confirmed, strict=True)])
    return Outcome("a local model guesses", 1.0, claims, NO_CLUSTERS, {}, paid)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]


def _bill(harvest: Harvest) -> Paid:
    return bill(harvest, harvest.texts, Rung("baseline", "exhaustive"), Known())


def examples(outcomes: Sequence[Outcome], plants: Sequence[str], most: int = 3) -> pd.DataFrame:
    """What each outcome confirmed, to read: the first claims of every plant."""
    rows = []
    for plant, outcome in zip(plants, outcomes, strict=True):
        for claim in outcome.claims[outcome.claims["confirmed"].astype(bool)].head(most).itertuples():
            rows.append((plant, outcome.rung, claim.direction, claim.text))
    return pd.DataFrame(rows, columns=["plant", "pipeline", "side that does it more", "claim"])
