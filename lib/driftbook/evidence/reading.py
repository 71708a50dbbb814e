"""Verdicts of one judge on the texts of some prompts: scores of texts, and who wins on each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.evidence.judges import Judge, PairJudge, reads_words
from driftbook.evidence.material import Held
from driftbook.evidence.wins import Wins, matched_win_rates, mean_by, win_rates


@dataclass(frozen=True)
class Reading:
    """Verdicts of one judge on some prompts: wins and scores; ``prompts`` [p], ``hypotheses`` [h], ``texts`` [t]."""

    judge: str
    split: str
    prompts: list[str]
    hypotheses: list[Hypothesis]
    texts: pd.DataFrame
    scores: np.ndarray  # [t, h]
    wins: Wins  # [p, h]

    def verdicts(self) -> pd.DataFrame:
        """Long table with the columns of ``verdicts.parquet``, and the worst-case bounds of x."""
        prompt, side = self.texts["prompt_id"].to_numpy(), self.texts["side"].to_numpy()
        means = {s: mean_by(self.scores[side == s], prompt[side == s], self.prompts) for s in ("base", "intervention")}
        size = pd.Series(prompt).value_counts()
        tables = []
        for column, h in enumerate(self.hypotheses):
            table = pd.DataFrame(
                {
                    "hypothesis_id": h.hypothesis_id,
                    "prompt_id": self.prompts,
                    "split": self.split,
                    "judge": self.judge,
                    "x": self.wins.x[:, column],
                    "x_low": self.wins.low[:, column],
                    "x_high": self.wins.high[:, column],
                    "score_base": means["base"][:, column],
                    "score_intervention": means["intervention"][:, column],
                    "texts": size.reindex(self.prompts).to_numpy(dtype=np.int32),
                }
            )
            tables.append(table.assign(missing=table["x_low"] < table["x_high"]))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(VERDICTS))


VERDICTS = (
    *("hypothesis_id", "prompt_id", "split", "judge", "x", "x_low", "x_high"),
    *("score_base", "score_intervention", "texts", "missing"),
)


def read(judge: Judge, held: Held, prompts: Sequence[str], hypotheses: Sequence[Hypothesis]) -> Reading:
    """Let one judge read the texts of some prompts for some hypotheses.

    A judge in pair mode compares the i-th text of one side with the i-th of the other; the score of a text is then
    its share of the comparison. Who counts words has no verdict on a hypothesis without them.
    """
    texts = held.of(prompts)
    claimed = np.array([h.direction for h in hypotheses])[None, :]
    if isinstance(judge, PairJudge) and judge.mode == "pair":
        own = [c for c in ("prompt_id", "asked") if c in texts]
        texts = texts.assign(place=texts.groupby([*own, "side"]).cumcount())
        first, second = (texts[texts["side"] == side] for side in ("intervention", "base"))
        pairs = first.merge(second, on=[*own, "place"], suffixes=("_i", "_b"))
        prompt = pairs["prompt_id"].to_numpy()
        asked = held.asked(pairs)
        more = judge.compare(pairs["text_i"].tolist(), pairs["text_b"].tolist(), hypotheses, asked)
        wins = matched_win_rates(np.where(claimed == "intervention", more, 1 - more), prompt, prompts)
        texts = texts.set_index("text_id").loc[[*pairs["text_id_i"], *pairs["text_id_b"]]].reset_index()
        return Reading(
            judge.name, held.split, list(prompts), list(hypotheses), texts, np.concatenate([more, 1 - more]), wins
        )
    asked = held.asked(texts)
    able = [i for i, h in enumerate(hypotheses) if h.words or not reads_words(judge)]
    scores = np.full((len(texts), len(hypotheses)), np.nan)
    if able:
        scores[:, able] = judge.score(texts["text"].tolist(), [hypotheses[i] for i in able], asked)
    up = texts["side"].to_numpy()[:, None] == claimed
    resolution = getattr(judge, "resolution", 0.0)
    wins = win_rates(scores, texts["prompt_id"].to_numpy(), up, prompts, resolution)
    return Reading(judge.name, held.split, list(prompts), list(hypotheses), texts, scores, wins)
