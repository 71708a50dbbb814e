"""A server that speaks the OpenAI chat API as one side of a comparison."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from driftbook.errors import CacheError, DriftbookError
from driftbook.models.answers import Answer, Question, read_tokens
from driftbook.models.loading import LoadedModel
from driftbook.models.local import Tap
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt
from driftbook.store import digest

ATTEMPTS = 6  # of one answer, before the run stops
SEEDS = 2**31  # servers disagree on larger ones
#: What a server that draws at all does not answer twice alike, asked under different seeds.
RANDOM = ("Write twenty random letters.", "Invent a name for a village and describe it.")
WARM = 0.3  # the temperature from which on equal answers to both of them mean that nothing is drawn


class EndpointEngine:
    """Chat completions of one model on one server, ``concurrency`` at a time.

    The SDK repeats a call that meets 408, 409, 429, a 5xx, a timeout or a broken connection, with growing pauses and as
    long as ``Retry-After`` asks; a reply that is no chat completion is asked for again the same way. An answer is
    stored when it arrives, so what was answered before a failure is not asked for again.

    Args:
        spec: the ``endpoint`` section; reader: the model whose tokens stand for the answer's; cache: for the answers.

    Raises:
        DriftbookError: the environment variable of the key is not set.
    """

    name = "endpoint"

    def __init__(self, spec: Any, reader: LoadedModel, cache: Path, pause: float = 0.5, timeout: float = 120.0):
        self.spec, self.reader, self.pause, self.timeout = spec, reader, pause, timeout
        self.key = ""
        if spec.api_key_env is not None:
            self.key = os.environ.get(spec.api_key_env, "")
            if not self.key:
                raise DriftbookError(
                    f"intervention.api_key_env: the environment variable {spec.api_key_env} is not set"
                )
        self.kept = _Kept(cache / "decode" / "endpoint.sqlite")

    def check(self, params: SamplingParams) -> None:
        """Ask the server before anything else is computed: is it there, and does it draw? Its answers are kept, too.

        A server that decodes greedily at any temperature says nothing of it, but answers alike under two seeds to what
        cannot come twice alike.

        Raises:
            DriftbookError: a sampling parameter that the API does not have or that the server passes over, a server
            that refuses or cannot be had.
        """
        refuse(params)
        asked = replace(params, max_new_tokens=24, top_p=1.0)
        client, stop = self._client(), _Stop()

        def said(text: str, seed: int) -> tuple[str, str]:
            body = self._body(Question((), seed, prompt=Prompt(text)), asked)
            key = digest("endpoint", self.spec.base_url, body)
            return self.kept.find(key) or self._ask(client, body, key, stop)

        with client:
            said(RANDOM[0], 1)
            if params.temperature < WARM or any(said(text, 1) != said(text, 2) for text in RANDOM):
                return
        raise DriftbookError(
            self._clean(
                f"answers alike under different seeds at temperature {params.temperature:g}, so it does not sample. "
                "transformers serve does that where the model's generation_config.json lacks "
                '"do_sample": true (and set "top_k": 0 there, else it takes 50); or set temperature: 0'
            )
        )

    def generate(self, requests: Sequence[Any], params: SamplingParams, taps: Sequence[Tap] = ()) -> Iterator[Answer]:
        """One answer a request, as they come.

        Raises:
            DriftbookError: a sampling parameter that the API does not have, a server that refuses or cannot be had.
        """
        refuse(params)
        bodies = [self._body(r, params) for r in requests]
        keys = [digest("endpoint", self.spec.base_url, body) for body in bodies]
        todo = []
        for index, key in enumerate(keys):
            held = self.kept.find(key)
            if held is None:
                todo.append(index)
            else:
                yield self._answer(index, requests[index], *held)
        if not todo:
            return
        client, stop = self._client(), _Stop()
        pool = ThreadPoolExecutor(self.spec.concurrency, thread_name_prefix="endpoint")
        try:
            running = {pool.submit(self._ask, client, bodies[i], keys[i], stop): i for i in todo}
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for one in finished:
                    index = running.pop(one)
                    yield self._answer(index, requests[index], *one.result())
        finally:
            # Calls under way are let end and stored: they are paid.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            client.close()

    def _client(self) -> Any:
        import openai

        # The SDK wants a key; servers without keys ignore it.
        return openai.OpenAI(
            base_url=self.spec.base_url, api_key=self.key or "none", max_retries=0, timeout=self.timeout
        )

    def _body(self, request: Any, params: SamplingParams) -> dict[str, Any]:
        assert isinstance(request, Question) and request.prompt is not None
        return {
            "model": self.spec.model,
            "messages": request.prompt.chat(),
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": request.seed % SEEDS,
        }

    def _answer(self, index: int, request: Any, text: str, reason: str) -> Answer:
        return Answer(index, read_tokens(self.reader, request, text), reason, text)

    def _ask(self, client: Any, body: dict[str, Any], key: str, stop: _Stop) -> tuple[str, str]:
        import openai

        failure: Exception | None = None
        for attempt in range(ATTEMPTS):
            stop.check()
            pause = self.pause * 2**attempt
            try:
                found = _said(client.chat.completions.create(**body))
                self.kept.put(key, *found)
                return found
            except openai.APIStatusError as error:
                failure = error
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise stop.because(self._clean(f"refused: {error}")) from None
                pause = max(pause, _retry_after(error))
            except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError) as error:
                failure = error
            stop.wait(pause)
        raise stop.because(
            self._clean(
                f"gave no answer in {ATTEMPTS} attempts, the last with {type(failure).__name__}: {failure}. Answers so "
                "far are kept: mend it and run again"
            )
        )

    def _clean(self, message: str) -> str:
        message = message.replace(self.key, "***") if self.key else message
        return f"intervention.base_url {self.spec.base_url}, model {self.spec.model}: {message}"


def refuse(params: SamplingParams) -> None:
    """Raise DriftbookError for what the chat API has no word for: servers would ignore it without a sound."""
    for name in ("top_k", "min_p"):
        if getattr(params, name):
            raise DriftbookError(
                f"{name} {getattr(params, name)}: an endpoint takes temperature and top_p only; set {name}: 0"
            )


def _said(reply: Any) -> tuple[str, str]:
    choices = getattr(reply, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise ValueError(f"a reply that is no chat completion: {str(reply)[:80]!r}")
    reason = choices[0].finish_reason
    return choices[0].message.content or "", {"stop": "eos", None: "eos"}.get(reason, reason)


def _retry_after(error: Any) -> float:
    try:
        return min(60.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:  # a date: the growing pause does
        return 0.0


class _Stop(threading.Event):
    """Set once no more calls shall be sent; the first reason is that of all."""

    reason: DriftbookError | None = None

    def because(self, message: str) -> DriftbookError:
        self.reason = self.reason or DriftbookError(message)
        self.set()
        return self.reason

    def check(self) -> None:
        if self.is_set():
            raise self.reason or DriftbookError("the calls were broken off")


class _Kept:
    """Answers under the digest of their request, committed as they come; several processes may share the file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        try:
            self.db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, reason TEXT NOT NULL, at REAL)"
            )
        except sqlite3.DatabaseError as error:
            raise CacheError(f"{path} cannot be used ({error}); move it away, and answers are asked for anew") from None

    def find(self, key: str) -> tuple[str, str] | None:
        with self.lock:
            return self.db.execute("SELECT text, reason FROM answers WHERE key = ?", (key,)).fetchone()

    def put(self, key: str, text: str, reason: str) -> None:
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, text, reason, time.time()))
