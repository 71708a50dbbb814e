"""A server that speaks the OpenAI chat API as one side of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from driftbook.chat import ChatClient
from driftbook.errors import DriftbookError
from driftbook.ledger import Ledger
from driftbook.models.answers import Answer, Engine, Question, Tap, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt
from driftbook.store import digest

SEEDS = 2**31  # servers disagree on larger ones
#: What a server that draws at all does not answer twice alike, asked under different seeds.
RANDOM = ("Write twenty random letters.", "Invent a name for a village and describe it.")
WARM = 0.3  # the temperature from which on equal answers to both of them mean that nothing is drawn


class EndpointEngine(Engine):
    """Chat completions of one model on one server (:class:`driftbook.chat.ChatClient`).

    A reply is stored when it arrives, so what was answered before a failure is not asked for again. What is no answer
    has an empty text and one of ``replies.NO_ANSWER`` as its ``finish_reason``.

    Args:
        spec: the ``endpoint`` section; reader: the model whose tokens stand for the answer's; cache: for the answers.

    Raises:
        DriftbookError: the environment variable of the key is not set.
    """

    name = "endpoint"
    here = False

    def __init__(self, spec: Any, reader: LoadedModel, cache: Path, **limits: Any):
        self.spec, self.reader = spec, reader
        self.client = ChatClient(
            f"{spec.model} (intervention)",
            spec.model,
            spec.base_url,
            Ledger(cache / "verdicts" / "answers.sqlite", math.inf),
            **{"timeout": spec.timeout_s, **limits},
            api_key_env=spec.api_key_env,
            concurrency=spec.concurrency,
            extra_body=spec.extra_body,
            template_args=spec.template_args,
            key="decode.max_new_tokens",
        )

    @property
    def version(self) -> int | str:
        """Names what of the request the server does not take, which shapes its texts; 1: it takes all."""
        return digest(sorted(self.client.without)) if self.client.without else 1

    def check(self, params: SamplingParams) -> None:
        """Ask the server before anything else is computed: is it there, does it answer, and does it draw? Its answers
        are kept, too.

        A server that decodes greedily at any temperature says nothing of it, but answers alike under two seeds to what
        cannot come twice alike.

        Raises:
            DriftbookError: a sampling parameter that the API does not have or that the server passes over, a server
            that refuses or cannot be had, a model that thinks longer than a text may be.
        """
        refuse(params)
        asked = replace(params, top_p=1.0)

        def said(text: str, seed: int) -> str:
            question = Question((), seed, prompt=Prompt(text))
            ((_, answer),) = self.client.answers([self._request(question, asked)])
            if not answer.answered:
                raise DriftbookError(
                    f"{self.client.name} at {self.spec.base_url} gave no answer to {text!r} ({answer.reason}): with "
                    f"{params.max_new_tokens} tokens a model that thinks first does not begin to answer. Raise "
                    "max_new_tokens, or let it not think (intervention.template_args: {enable_thinking: false})"
                )
            return answer.text

        said(RANDOM[0], 1)
        if params.temperature < WARM or any(said(text, 1) != said(text, 2) for text in RANDOM):
            return
        raise DriftbookError(
            f"{self.client.name} at {self.spec.base_url} answers alike under different seeds at temperature "
            f"{params.temperature:g}, so it does not sample. transformers serve does that where the model's "
            'generation_config.json lacks "do_sample": true (and set "top_k": 0 there, else it takes 50); or set '
            "temperature: 0"
        )

    def generate(self, requests: Sequence[Any], params: SamplingParams, taps: Sequence[Tap] = ()) -> Iterator[Answer]:
        """One answer a request, as they come.

        Raises:
            DriftbookError: a sampling parameter that the API does not have, a server that refuses or cannot be had.
        """
        refuse(params)
        for index, said in self.client.answers([self._request(r, params) for r in requests]):
            reason = {"stop": "eos", "length": "length" if said.answered else "cut"}.get(said.reason, said.reason)
            text = said.text if said.answered or said.reason == "refusal" else ""
            yield Answer(index, read_tokens(self.reader, requests[index], text), reason, text, said.thought)

    def _request(self, request: Any, params: SamplingParams) -> dict[str, Any]:
        assert isinstance(request, Question) and request.prompt is not None
        asked = self.client.request(request.prompt.chat(), request.seed, params.temperature)
        sent = {"max_tokens": params.most_tokens, "top_p": params.top_p, "seed": request.seed % SEEDS}
        return asked | sent


def refuse(params: SamplingParams) -> None:
    """Raise DriftbookError for what the chat API has no word for: servers would ignore it without a sound."""
    for name in ("top_k", "min_p"):
        if getattr(params, name):
            raise DriftbookError(
                f"{name} {getattr(params, name)}: an endpoint takes temperature and top_p only; set {name}: 0"
            )
