"""Conversations with any server that speaks the OpenAI chat API, with money in mind.

Calls run side by side, as many at once as the server bears: a 429 halves their number, success raises it again. An
answer is stored the moment it arrives, under the hash of everything that shaped it, so a warm run sends nothing. The
key is read from the environment variable that the parameters name, and goes nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from driftbook.errors import DriftbookError
from driftbook.evidence.judges import Quote
from driftbook.evidence.ledger import Answer, Ledger, request_key
from driftbook.evidence.levels import level_probabilities

T = TypeVar("T")
Message = dict[str, str]
ALTERNATIVES = 5  # likeliest tokens asked for at each place: what every server that gives any allows


class Conversation(Protocol):
    """Something that asks until it has what it wants. ``receive(None)`` says that the server could not be had for
    this one."""

    def next(self) -> dict[str, Any] | None:
        """The next request, or None at the end. A pure function of what was received so far."""
        ...

    def receive(self, answer: Answer | None) -> None: ...


class Chat(Protocol):
    """A model that conversations can be held with: behind a server (``Endpoint``) or on this machine
    (``LocalChat``)."""

    def request(self, messages: Sequence[Message], sample: int, temperature: float = 0.0) -> dict[str, Any]: ...

    def converse(self, conversations: Sequence[Conversation]) -> None: ...


class Throttle:
    """How many calls may be under way: additive increase, halved when the server says that it is too much."""

    def __init__(self, most: int) -> None:
        self.most, self.limit, self.active, self.until = most, float(min(4, most)), 0, 0.0
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.active < int(self.limit))
            self.active += 1
        if (wait := self.until - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    async def __aexit__(self, *_: object) -> None:
        async with self.changed:
            self.active -= 1
            self.changed.notify_all()

    def faster(self) -> None:
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def slower(self, pause: float) -> None:
        self.limit = max(1.0, self.limit / 2)
        self.until = max(self.until, time.monotonic() + pause)


class Endpoint:
    """One model on one server, with its prices and limits.

    A call that fails is sent again up to ``attempts`` times with growing pauses; after ``breaker`` failures in a row,
    whichever calls they belong to, the endpoint gives up with an error. Nothing is sent that the ledger's cap does
    not cover.
    """

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str,
        ledger: Ledger,
        *,
        api_key_env: str | None = None,
        usd_in: float = 0.0,
        usd_out: float = 0.0,
        concurrency: int = 8,
        max_tokens: int = 200,
        timeout: float = 60.0,
        attempts: int = 6,
        breaker: int = 12,
        pause: float = 0.5,
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.model, self.base_url, self.ledger = name, model, base_url, ledger
        self.usd_in, self.usd_out = usd_in / 1e6, usd_out / 1e6
        self.concurrency, self.max_tokens, self.timeout = concurrency, max_tokens, timeout
        self.attempts, self.breaker, self.pause, self.progress = attempts, breaker, pause, progress
        self._key, self._failures = "", 0
        self._logprobs = True  # until the server says that it has none
        if api_key_env is not None:
            self._key = os.environ.get(api_key_env, "")
            if not self._key:
                raise DriftbookError(f"{name}: the environment variable {api_key_env} (api_key_env) is not set")

    def request(
        self, messages: Sequence[Message], sample: int, temperature: float = 0.0, levels: Sequence[str] = ()
    ) -> dict[str, Any]:
        """A request in the form that is hashed: everything that shapes the answer, nothing else, no key.

        With ``levels`` the probabilities of these words are asked for, and kept where the server gives them.
        """
        clean = [{k: v.encode("utf-8", "replace").decode() for k, v in m.items()} for m in messages]
        return {
            "base_url": self.base_url,
            "model": self.model,
            "messages": clean,
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "sample": sample,
            **({"levels": list(levels)} if levels else {}),
        }

    def most(self, request: dict[str, Any]) -> float:
        """What a call can cost at most, in USD: a token is at least one byte."""
        size = sum(len(m["content"].encode()) + 16 for m in request["messages"])
        return size * self.usd_in + self.max_tokens * self.usd_out

    def quote(self, requests: Sequence[dict[str, Any]], out_tokens: int) -> Quote:
        """Requests that are not stored yet, at about four bytes a token and ``out_tokens`` tokens an answer. Sends
        nothing."""
        total = Quote()
        for request in requests:
            if self.ledger.peek(request_key(request)):
                total += Quote(cached=1)
                continue
            tokens = sum(len(m["content"].encode()) // 4 + 8 for m in request["messages"])
            out = min(self.max_tokens, out_tokens)
            total += Quote(1, 0, tokens, out, tokens * self.usd_in + out * self.usd_out)
        return total

    def converse(self, conversations: Sequence[Conversation]) -> None:
        """Hold all conversations to their end, from the cache where it can answer. Raises BudgetError at the cap.

        Works where an event loop is already running, as in a notebook.
        """
        bar = self.progress(len(conversations), self.name, "calls") if self.progress and conversations else None
        waiting = []
        for one in conversations:
            if self._from_cache(one):
                waiting.append(one)
            elif bar is not None:
                bar.update(1)
        if waiting:
            _in_a_thread(self._run(waiting, bar))
        if bar is not None:
            bar.close()

    def _from_cache(self, one: Conversation) -> bool:
        """Answer from the cache as long as it can; True when something is left to ask."""
        while (request := one.next()) is not None:
            stored = self.ledger.find(request_key(request), self.name)
            if stored is None:
                return True
            one.receive(stored)
        return False

    async def _run(self, waiting: Sequence[Conversation], bar: Any) -> None:
        import openai

        throttle, queue = Throttle(self.concurrency), iter(waiting)
        stop: list[BaseException] = []
        key = self._key or "none"  # the SDK wants one, servers without keys ignore it
        async with openai.AsyncOpenAI(
            api_key=key, base_url=self.base_url, max_retries=0, timeout=self.timeout
        ) as client:

            async def work() -> None:
                for one in queue:
                    if stop:
                        return
                    try:
                        while self._from_cache(one):
                            answer = await self._send(client, throttle, one.next(), stop)
                            one.receive(answer)
                            if answer is None:
                                break
                    except Exception as reason:  # the others finish what they have sent: it is paid
                        stop.append(reason)
                        return
                    if bar is not None:
                        bar.update(1)

            await asyncio.gather(*(work() for _ in range(self.concurrency)))
        if stop:
            raise stop[0]

    async def _send(
        self, client: Any, throttle: Throttle, request: dict[str, Any], stop: list[BaseException]
    ) -> Answer | None:
        """The answer, stored; None when all attempts failed. Raises for what no repetition mends."""
        import httpx
        import openai

        never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        most, sent = self.most(request), {k: request[k] for k in ("model", "messages", "temperature", "max_tokens")}
        for attempt in range(self.attempts):
            if stop:
                return None
            pause, billed = self.pause * 2**attempt * (0.5 + random.random()), False
            asked = {"logprobs": True, "top_logprobs": ALTERNATIVES} if self._logprobs and "levels" in request else {}
            async with throttle:
                self.ledger.reserve(self.name, most)
                try:
                    reply = await client.chat.completions.create(**sent, **asked)
                except openai.RateLimitError as reason:
                    pause = max(pause, _retry_after(reason))
                    throttle.slower(pause)
                    failure = reason
                except openai.APIConnectionError as reason:  # timeouts among them: unless it never got there, it counts
                    failure, billed = reason, not isinstance(reason.__cause__, never_sent)
                except openai.APIStatusError as reason:
                    if reason.status_code < 500 and reason.status_code not in (408, 409):
                        self.ledger.release(self.name, most, False)
                        if (
                            asked and reason.status_code in (400, 422) and "logprobs" in str(reason)
                        ):  # a server that refuses what it does not know
                            self._logprobs = False
                            continue
                        raise DriftbookError(self._clean(f"{self.name} at {self.base_url}: {reason}")) from None
                    failure = reason
                except (openai.APIResponseValidationError, ValueError) as reason:  # a body that is no chat completion
                    failure, billed = reason, True
                except BaseException:  # not for us to mend, but the money stays on the account
                    self.ledger.release(self.name, most, True)
                    raise
                else:
                    answer = self._read(reply, most, request.get("levels", ()))
                    if answer is not None:
                        self.ledger.settle(request_key(request), self.name, most, answer)
                        self._failures = 0
                        throttle.faster()
                        return answer
                    failure, billed = ValueError("a reply without choices"), True
            self.ledger.release(self.name, most, billed)
            self._failures += 1
            if self._failures >= self.breaker:
                last = self._clean(f"{type(failure).__name__}: {failure}")
                raise DriftbookError(
                    f"{self.name} at {self.base_url} failed {self._failures} times in a row, last with {last}. "
                    "Answers so far are kept: mend it and run again"
                )
            await asyncio.sleep(pause)
        return None

    def _read(self, reply: Any, most: float, levels: Sequence[str]) -> Answer | None:
        choices = getattr(reply, "choices", None)
        if not choices or choices[0].message is None:
            return None
        text, tokens = choices[0].message.content or "", _alternatives(choices[0]) if levels else []
        told = level_probabilities(tokens, levels) or None
        usage = getattr(reply, "usage", None)
        if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return Answer(text, 0, 0, most, told)  # no account from the server: the upper bound
        spent = usage.prompt_tokens * self.usd_in + usage.completion_tokens * self.usd_out
        return Answer(text, usage.prompt_tokens, usage.completion_tokens, spent, told)

    def _clean(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message


def _alternatives(choice: Any) -> list[tuple[str, dict[str, float]]]:
    """The tokens of a reply with the log-probabilities of their alternatives; empty where the server gives none."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    return [(t.token, {t.token: t.logprob} | {a.token: a.logprob for a in t.top_logprobs or []}) for t in content]


def _retry_after(reason: Any) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    try:
        return min(60.0, float(reason.response.headers.get("retry-after", 0)))
    except ValueError:  # a date instead of seconds: the growing pause does
        return 0.0


def _in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from a notebook, whose own event loop is busy."""
    box: list[Any] = []

    def body() -> None:
        try:
            box.append((True, asyncio.run(work)))
        except BaseException as reason:
            box.append((False, reason))

    thread = threading.Thread(target=body, name="endpoint")
    thread.start()
    thread.join()
    good, value = box[0]
    if not good:
        raise value
    return value
