"""A judge that runs here: a causal language model whose verdict is read off the probabilities of its answer tokens.

No sampling and no parsing: the expectation over HIGH, MID and LOW at the position of the answer is the score.
Expectations of log-probabilities beat written verdicts, above all for small models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import ModelError
from driftbook.evidence.judges import Quote
from driftbook.evidence.ledger import Answer, Ledger, request_key

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel
    from driftbook.scale import Workers

Batch = tuple[list[int], list[str]]

SCHEMA = 1
LEVELS = {"HIGH": 1.0, "MID": 0.5, "LOW": 0.0}
RUBRIC = """Rate how much an answer shows a statement.
HIGH: the answer clearly shows it. MID: it shows it in part or weakly. LOW: it does not show it.
Statements describe tendencies: read "does X more often" as "does X". Judge the answer, not the prompt.
Reply with one word: HIGH, MID or LOW."""


class LocalJudge:
    """Scores [texts, hypotheses] in [0, 1]: P(HIGH) + P(MID) / 2, normalized over the three levels.

    ``load`` gives the model at the first text that is not in the ledger; ``identity`` names its weights without
    loading it. Verdicts are kept in the ledger at no price. Raises ModelError for a tokenizer whose levels begin with
    the same token, or a text too long for the model.
    """

    paid = True  # in minutes

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        weights: str,
        ledger: Ledger,
        rubric: str | None = None,
        batch: int = 16,
        progress: Callable[..., Any] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.name, self.load, self.ledger, self.batch, self.progress = name, load, ledger, batch, progress
        self.workers = workers
        self.rubric = rubric or RUBRIC
        self.identity = {"kind": "local", "schema": SCHEMA, "weights": weights, "rubric": self.rubric}
        self._model: LoadedModel | None = None

    def _request(self, text: str, prompt: str, hypothesis: Hypothesis) -> dict[str, Any]:
        user = (
            f"<prompt>\n{prompt}\n</prompt>\n<answer>\n{text}\n</answer>\n"
            f"Statement: the answer {hypothesis.text}.\nHow much does the answer show it? HIGH, MID or LOW?"
        )
        return {**self.identity, "user": user}

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        requests = self._requests(texts, hypotheses, prompts)
        known = sum(self.ledger.peek(request_key(r)) is not None for r in requests)
        return Quote(calls=len(requests) - known, cached=known)

    def _requests(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        asked = prompts if prompts is not None else [""] * len(texts)
        return [self._request(t, p, h) for t, p in zip(texts, asked, strict=True) for h in hypotheses]

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        requests = self._requests(texts, hypotheses, prompts)
        scores, waiting = np.full(len(requests), np.nan), []
        for i, request in enumerate(requests):
            stored = self.ledger.find(request_key(request), self.name)
            if stored is None:
                waiting.append(i)
            else:
                scores[i] = expectation(json.loads(stored.text))
        bar = self.progress(len(waiting), self.name, "verdicts") if self.progress and waiting else None
        # longest first: equal lengths need little padding, and what does not fit fails at once
        waiting.sort(key=lambda i: -len(requests[i]["user"]))
        batches = (waiting[start : start + self.batch] for start in range(0, len(waiting), self.batch))
        work = ((rows, [requests[i]["user"] for i in rows]) for rows in batches)
        for rows, found in self._read(work):
            for i, levels in zip(rows, found, strict=True):
                self.ledger.reserve(self.name, 0.0)
                self.ledger.settle(request_key(requests[i]), self.name, 0.0, Answer(json.dumps(levels), 0, 0, 0.0))
                scores[i] = expectation(levels)
            if bar is not None:
                bar.update(len(rows))
        if bar is not None:
            bar.close()
        return scores.reshape(len(texts), len(hypotheses))

    def _read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[int], list[dict[str, float]]]]:
        """Batches with their readings, here in their order, by workers as they are ready."""
        work = partial(read_levels, self.name, self.rubric)
        if self.workers is not None:
            yield from self.workers.map(f"judge {self.name} {self.identity['weights']}", self.load, work, batches)
            return
        for batch in batches:
            if self._model is None:
                self._model = self.load()
            yield work(self._model, batch)


def read_levels(name: str, rubric: str, loaded: LoadedModel, batch: Batch) -> tuple[list[int], list[dict[str, float]]]:
    """Probability of each level as the first token of the reply to each text, beside the rows that the batch names."""
    import torch

    from driftbook.models.local import left_pad

    rows, users = batch
    first = {level: _first_token(loaded, level) for level in LEVELS}
    if len(set(first.values())) < len(first):
        raise ModelError(f"judge {name}: HIGH, MID and LOW begin with the same token in its tokenizer")
    prompts = [loaded.encode_prompt(user, system=rubric) for user in users]
    width = max(map(len, prompts))
    if width > loaded.context:
        raise ModelError(f"judge {name} takes {loaded.context} tokens, and a text with its rubric has {width}")
    ids, mask = left_pad(prompts, width, loaded.device)
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        reply = loaded.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    logits = reply.logits[:, -1, list(first.values())].float()
    return rows, [dict(zip(LEVELS, row, strict=True)) for row in logits.softmax(dim=-1).tolist()]


def _first_token(loaded: LoadedModel, word: str) -> int:
    return loaded.tokenizer(word, add_special_tokens=False)["input_ids"][0]


def expectation(levels: dict[str, float]) -> float:
    """Mean level under the probabilities of the levels."""
    return sum(LEVELS[name] * p for name, p in levels.items()) / sum(levels.values())
