"""A judge that runs here: a causal language model whose verdict is read off the probabilities of its answer tokens.

No sampling and no parsing: the expectation over HIGH, MID and LOW (of a text), or A, TIE and B (of a pair, asked in
both orders), at the position of the answer is the score. Expectations of log-probabilities beat written verdicts,
above all for small models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from driftbook.discovery.hypotheses import Hypothesis
from driftbook.errors import ModelError
from driftbook.evidence.levels import VALUES, Mode, expectation
from driftbook.evidence.rubrics import rubric as shipped
from driftbook.ledger import Ledger
from driftbook.models.finite import require_finite
from driftbook.models.loading import LoadedModel
from driftbook.models.local import left_pad
from driftbook.replies import Answer, Quote, request_key
from driftbook.workers import Workers

Batch = tuple[list[str], list[str]]
SCHEMA = 2


class LocalJudge:
    """Scores [texts, hypotheses] in [0, 1]: P(HIGH) + P(MID) / 2, normalized over the three levels.

    ``load`` gives the model at the first text that is not in the ledger; ``weights`` names its weights without loading
    it. Verdicts are kept in the ledger at no price. Raises ModelError for a tokenizer whose levels begin with the same
    token, or a text too long for the model.
    """

    paid = True  # in minutes

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        weights: str,
        ledger: Ledger,
        rubric: str | None = None,
        mode: Mode = "single",
        batch: int = 16,
        progress: Callable[..., Any] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers
        self.name, self.load, self.ledger, self.batch, self.progress = name, load, ledger, batch, progress
        self.mode, self.values, self.rubric = mode, VALUES[mode], rubric or shipped(f"local_{mode}")
        self.identity = {"kind": "local", "schema": SCHEMA, "weights": weights, "mode": mode, "rubric": self.rubric}
        self._model: LoadedModel | None = None

    def _single(self, text: str, prompt: str, hypothesis: Hypothesis) -> str:
        return (
            f"<prompt>\n{prompt}\n</prompt>\n<answer>\n{text}\n</answer>\n"
            f"Statement: the answer {hypothesis.text}.\nHow much does the answer show it? HIGH, MID or LOW?"
        )

    def _pair(self, a: str, b: str, prompt: str, hypothesis: Hypothesis) -> str:
        return (
            f"<prompt>\n{prompt}\n</prompt>\n<answer_a>\n{a}\n</answer_a>\n<answer_b>\n{b}\n</answer_b>\n"
            f"Statement: the answer {hypothesis.text}.\nWhich answer shows it more? A, B or TIE?"
        )

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        """In mode ``pair`` an upper bound: one call per text, since each pair is asked in both orders."""
        asked = prompts if prompts is not None else [""] * len(texts)
        users = [self._single(t, p, h) for t, p in zip(texts, asked, strict=True) for h in hypotheses]
        known = len(self.ledger.peek_all([request_key({**self.identity, "user": u}) for u in users]))
        return Quote(calls=len(users) - known, cached=known)

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        if self.mode != "single":
            raise ValueError("a judge in mode pair compares; it does not score single texts")
        asked = prompts if prompts is not None else [""] * len(texts)
        users = [self._single(t, p, h) for t, p in zip(texts, asked, strict=True) for h in hypotheses]
        return self._verdicts(users).reshape(len(texts), len(hypotheses))

    def compare(
        self, first: Sequence[str], second: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str]
    ) -> np.ndarray:
        """How much ``first`` shows it more than ``second``, mean over both orders: [pairs, hypotheses] in [0, 1]."""
        if self.mode != "pair":
            raise ValueError("a judge in mode single scores texts; it does not compare pairs")
        rows = list(zip(first, second, prompts, strict=True))
        shown = self._verdicts([self._pair(a, b, p, h) for a, b, p in rows for h in hypotheses])
        flipped = self._verdicts([self._pair(b, a, p, h) for a, b, p in rows for h in hypotheses])
        return ((shown + 1 - flipped) / 2).reshape(len(rows), len(hypotheses))

    def _verdicts(self, users: Sequence[str]) -> np.ndarray:
        keys = [request_key({**self.identity, "user": user}) for user in users]
        asked = dict(zip(keys, users, strict=True))

        def compute(missing: list[str]) -> Iterator[tuple[list[str], list[Answer]]]:
            # longest first: equal lengths need little padding, and what does not fit fails at once
            missing = sorted(missing, key=lambda k: -len(asked[k]))
            batches = (missing[start : start + self.batch] for start in range(0, len(missing), self.batch))
            for batch, found in self._read((batch, [asked[k] for k in batch]) for batch in batches):
                yield batch, [Answer(json.dumps(levels), 0, 0, 0.0) for levels in found]

        bar = (lambda total: self.progress(total, self.name, "verdicts")) if self.progress else None
        held = self.ledger.made_here(self.name, keys, compute, bar)
        return np.array([expectation(json.loads(held[key].text), self.values) for key in keys])

    def _read(self, batches: Iterable[Batch]) -> Iterator[tuple[list[str], list[dict[str, float]]]]:
        """Batches with their readings, here in their order, by workers as they are ready."""
        work = partial(read_levels, self.name, self.rubric, tuple(self.values))
        if self.workers is not None:
            yield from self.workers.map(f"judge {self.name} {self.identity['weights']}", self.load, work, batches)
            return
        for batch in batches:
            if self._model is None:
                self._model = self.load()
            yield work(self._model, batch)


def read_levels(
    name: str, rubric: str, levels: Sequence[str], loaded: LoadedModel, batch: Batch
) -> tuple[list[str], list[dict[str, float]]]:
    """Probability of each level as the first token of the reply to each text, beside the keys that the batch names."""
    import torch  # after driftbook.models, which says how its threads wait

    keys, users = batch
    first = {level: _first_token(loaded, level) for level in levels}
    if len(set(first.values())) < len(first):
        raise ModelError(f"judge {name}: {', '.join(first)} begin with the same token in its tokenizer")
    prompts = [loaded.encode_prompt(user, system=rubric) for user in users]
    width = max(map(len, prompts))
    if width > loaded.context:
        raise ModelError(f"judge {name} takes {loaded.context} tokens, and a text with its rubric has {width}")
    ids, mask = left_pad(prompts, width, loaded.device)
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        reply = loaded.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
    require_finite(loaded, reply.logits[:, -1], prompts[0])
    logits = reply.logits[:, -1, list(first.values())].float()
    return keys, [dict(zip(first, row, strict=True)) for row in logits.softmax(dim=-1).tolist()]


def _first_token(loaded: LoadedModel, word: str) -> int:
    return loaded.encode_answer(word)[0]
