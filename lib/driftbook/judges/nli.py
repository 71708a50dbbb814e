"""``kind: nli``: a cross-encoder for natural language inference that runs here, by the probability that the answer
entails the statement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from driftbook.errors import ModelError
from driftbook.replies import Answer, request_key
from driftbook.sections import Cost, JudgeOpening, JudgeSpec, Quote, judge

if TYPE_CHECKING:
    import numpy as np

    from driftbook.discovery.hypotheses import Hypothesis
    from driftbook.ledger import Ledger

SCHEMA = 1


@judge
class Nli(JudgeSpec):
    """``model``: a cross-encoder for natural language inference, from a folder or a hub; read at the first verdict that
    is not stored."""

    kind: Literal["nli"] = "nli"
    model: str
    paid: ClassVar[bool] = True
    places: ClassVar[tuple[str, ...]] = ("model",)

    def open(self, opening: JudgeOpening) -> NliJudge:
        from driftbook.models import loading  # torch; parameters are read without it

        source, weights = loading.place_and_hash(self.model, opening.cache)

        def load() -> Any:
            from sentence_transformers import CrossEncoder  # seconds; verdicts from the ledger need no model

            return CrossEncoder(source)

        name = f"{self.model} ({opening.role})"
        return NliJudge(name, load, weights, opening.ledger, progress=opening.progress)

    def cost(self, texts: int, hypotheses: int, answer_tokens: int) -> Cost:
        return Cost(texts * hypotheses, 0.0, texts * hypotheses / PAIRS_PER_S)


PAIRS_PER_S = 40.0  # a small cross-encoder on two cores


class NliJudge:
    """Scores [texts, hypotheses] in [0, 1]: P(entailment) of "The answer <statement>." by the answer.

    ``load`` gives a sentence-transformers ``CrossEncoder`` at the first text that is not in the ledger; ``weights``
    names it without loading it. The prompt is not shown: such models were trained on a premise alone. Texts beyond the
    model's length are cut at their end. Raises ModelError for a cross-encoder without a label that begins with
    "entail".
    """

    paid = True  # in minutes
    resolution = 0.5

    def __init__(
        self,
        name: str,
        load: Callable[[], Any],
        weights: str,
        ledger: Ledger,
        batch: int = 32,
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.load, self.ledger, self.batch, self.progress = name, load, ledger, batch, progress
        self.identity = {"kind": "nli", "schema": SCHEMA, "weights": weights}
        self._model: Any = None

    def _requests(self, texts: Sequence[str], hypotheses: Sequence[Hypothesis]) -> list[dict[str, Any]]:
        return [
            {**self.identity, "premise": t, "hypothesis": f"The answer {h.text}."} for t in texts for h in hypotheses
        ]

    def quote(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> Quote:
        requests = self._requests(texts, hypotheses)
        known = len(self.ledger.peek_all([request_key(r) for r in requests]))
        return Quote(calls=len(requests) - known, cached=known)

    def score(
        self, texts: Sequence[str], hypotheses: Sequence[Hypothesis], prompts: Sequence[str] | None = None
    ) -> np.ndarray:
        import numpy as np  # parameters are read without it

        requests = self._requests(texts, hypotheses)
        keys = [request_key(r) for r in requests]
        asked = dict(zip(keys, requests, strict=True))

        def compute(missing: list[str]) -> Iterator[tuple[list[str], list[Answer]]]:
            for start in range(0, len(missing), self.batch):
                batch = missing[start : start + self.batch]
                found = self._entailment([(asked[k]["premise"], asked[k]["hypothesis"]) for k in batch])
                yield batch, [Answer(json.dumps({"entailment": p}), 0, 0, 0.0) for p in found]

        bar = (lambda total: self.progress(total, self.name, "verdicts")) if self.progress else None
        held = self.ledger.made_here(self.name, keys, compute, bar)
        scores = np.array([json.loads(held[key].text)["entailment"] for key in keys])
        return scores.reshape(len(texts), len(hypotheses))

    def _entailment(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        import numpy as np  # parameters are read without it
        import torch

        if self._model is None:
            self._model = self.load()
        labels = {int(i): str(name).lower() for i, name in self._model.config.id2label.items()}
        column = next((i for i, name in sorted(labels.items()) if name.startswith("entail")), None)
        if column is None:
            raise ModelError(
                f"judge {self.name}: its labels are {sorted(labels.values())}, and none is entailment; "
                "validate.judges with kind: nli wants a cross-encoder for natural language inference"
            )
        logits = self._model.predict(
            list(pairs),
            batch_size=self.batch,
            show_progress_bar=False,
            activation_fn=torch.nn.Identity(),
            convert_to_numpy=True,
        )
        shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
        return (shifted / shifted.sum(axis=1, keepdims=True))[:, column].tolist()
