"""Conversations with a language model that runs here: what ``chat.Endpoint`` is for a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from driftbook.chat import Conversation, Message
from driftbook.errors import ModelError
from driftbook.ledger import Answer, Ledger, request_key

if TYPE_CHECKING:
    from driftbook.models.loading import LoadedModel


class LocalChat:
    """One model on this machine. ``load`` gives it at the first request that is not in the ledger; ``weights`` names
    it without loading it. Answers are kept in the ledger at no price. Raises ModelError for a request that does not
    fit into the model's context."""

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        weights: str,
        ledger: Ledger,
        max_tokens: int = 200,
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.load, self.weights, self.ledger = name, load, weights, ledger
        self.max_tokens, self.progress = max_tokens, progress
        self._model: LoadedModel | None = None

    def request(self, messages: Sequence[Message], sample: int, temperature: float = 0.0) -> dict[str, Any]:
        """A request in the form that is hashed: everything that shapes the answer."""
        return {
            "weights": self.weights,
            "messages": [dict(m) for m in messages],
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "sample": sample,
        }

    def converse(self, conversations: Sequence[Conversation]) -> None:
        """Hold all conversations to their end, round by round: what is asked at the same time is answered as a
        batch."""
        while True:
            asked = [(one, request) for one in conversations if (request := one.next()) is not None]
            if not asked:
                return
            keys = [request_key(request) for _, request in asked]
            stored = [self.ledger.find(key, self.name) for key in keys]
            fresh = [i for i, answer in enumerate(stored) if answer is None]
            for i, answer in zip(fresh, self._answer([asked[i][1] for i in fresh]), strict=True):
                self.ledger.reserve(self.name, 0.0)
                self.ledger.settle(keys[i], self.name, 0.0, answer)
                stored[i] = answer
            for (one, _), answer in zip(asked, stored, strict=True):
                one.receive(answer)

    def _answer(self, requests: Sequence[dict[str, Any]]) -> list[Answer]:
        if not requests:
            return []
        from driftbook.models.local import LocalEngine, Request
        from driftbook.models.sampling import SamplingParams, stream_seed

        if self._model is None:
            self._model = self.load()
        loaded = self._model
        prompts = [
            tuple(loaded.encode_prompt(r["messages"][-1]["content"], system=r["messages"][0]["content"]))
            for r in requests
        ]
        longest = max(map(len, prompts)) + self.max_tokens
        if longest > loaded.context:
            raise ModelError(f"{self.name} takes {loaded.context} tokens, and a request with its answer has {longest}")
        out: list[Answer | None] = [None] * len(requests)
        bar = self.progress(len(requests), self.name, "answers") if self.progress else None
        for temperature in sorted({r["temperature"] for r in requests}):
            rows = [i for i, r in enumerate(requests) if r["temperature"] == temperature]
            params = SamplingParams(self.max_tokens, temperature)
            work = [Request(prompts[i], stream_seed("chat", prompts[i], requests[i]["sample"])) for i in rows]
            for done in LocalEngine(loaded).generate(work, params):
                text = loaded.tokenizer.decode(done.token_ids, skip_special_tokens=True)
                i = rows[done.index]
                out[i] = Answer(text, len(prompts[i]), len(done.token_ids), 0.0)
                if bar is not None:
                    bar.update(1)
        if bar is not None:
            bar.close()
        return [answer for answer in out if answer is not None]
