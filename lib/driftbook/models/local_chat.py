"""Conversations with a language model that runs here: what ``chat.ChatClient`` is for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from driftbook.chat import Conversation, Message
from driftbook.errors import ModelError
from driftbook.ledger import Ledger
from driftbook.models.loading import LoadedModel
from driftbook.models.local import LocalEngine, Request
from driftbook.models.sampling import SamplingParams, stream_seed
from driftbook.replies import Answer, request_key


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

    def request(
        self,
        messages: Sequence[Message],
        sample: int,
        temperature: float = 0.0,
        response_format: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A request in the form that is hashed: everything that shapes the answer, which ``response_format`` does not
        here."""
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
            requests = dict(zip(keys, (request for _, request in asked), strict=True))
            bar = (lambda total: self.progress(total, self.name, "answers")) if self.progress else None
            held = self.ledger.made_here(self.name, keys, partial(self._answer, requests), bar)
            for (one, _), key in zip(asked, keys, strict=True):
                one.receive(held[key])

    def _answer(
        self, requests: dict[str, dict[str, Any]], missing: list[str]
    ) -> Iterator[tuple[list[str], list[Answer]]]:
        if self._model is None:
            self._model = self.load()
        loaded = self._model
        prompts = {}
        for key in missing:
            system, user = (requests[key]["messages"][i]["content"] for i in (0, -1))
            prompts[key] = tuple(loaded.encode_prompt(user, system=system))
        longest = max(map(len, prompts.values())) + self.max_tokens
        if longest > loaded.context:
            raise ModelError(f"{self.name} takes {loaded.context} tokens, and a request with its answer has {longest}")
        for temperature in sorted({requests[key]["temperature"] for key in missing}):
            keys = [key for key in missing if requests[key]["temperature"] == temperature]
            params = SamplingParams(self.max_tokens, temperature)
            work = [Request(prompts[k], stream_seed("chat", prompts[k], requests[k]["sample"])) for k in keys]
            for done in LocalEngine(loaded).generate(work, params):
                said = loaded.said(done.token_ids, work[done.index].prompt_ids)
                reason = "length" if done.finish_reason == "length" else "stop"
                key = keys[done.index]
                counted = len(prompts[key]), len(done.token_ids)
                yield [key], [Answer(said.text, *counted, 0.0, None, reason, said.thought)]
