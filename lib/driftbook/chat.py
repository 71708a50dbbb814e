"""The one client for servers that speak the OpenAI chat API: judges, labellers and sides of a comparison ask by it.

Calls run side by side, as many at once as the server bears: a 429 halves their number, success raises it again. A
reply is stored the moment it arrives, under the hash of everything that shaped it, so a warm run sends nothing. Servers
differ in the fields that they take: one that is refused is left out from then on, which is remembered for the server,
stands in the ledger, and is part of what replies are stored under. The key is read from the environment variable that
the parameters name, and goes nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from driftbook.errors import DriftbookError
from driftbook.ledger import Ledger
from driftbook.replies import Answer, alternatives, level_probabilities, read_message, request_key
from driftbook.sections import Quote

Message = dict[str, str]
ALTERNATIVES = 5  # likeliest tokens asked for at each place: what every server that gives any allows
SENT = ("model", "messages", "temperature", "top_p", "max_tokens", "seed", "response_format")
#: Fields that a server may refuse, and what is sent in their place.
MAY_GO = {
    **{"response_format": None, "max_tokens": "max_completion_tokens", "logprobs": None, "seed": None},
    **{"top_p": None, "temperature": None},
}
MAY_REFUSE = (400, 403, 422)
RETRIED = (408, 409, 429)  # and every 5xx

_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
#: What else a server calls a field that it refuses.
_ALSO = {"response_format": "json_schema|json_object|json mode|structured outputs?|guided_json|grammar"}
_OUT_OF_RANGE = re.compile(
    r"above|below|exceed|out of range|too (large|long|high|many)|at (most|least)|(maximum|minimum) value|between|[<>]="
)
_TOO_LONG = re.compile(r"context_length_exceeded|maximum context|context (length|window|size)|prompt is too long", re.I)


class Conversation(Protocol):
    """Something that asks until it has what it wants. ``receive(None)`` says that the server could not be had for
    this one."""

    def next(self) -> dict[str, Any] | None:
        """The next request, or None at the end. A pure function of what was received so far."""
        ...

    def receive(self, answer: Answer | None) -> None: ...


class Chat(Protocol):
    """A model that conversations can be held with: behind a server (``ChatClient``) or on this machine
    (``LocalChat``)."""

    def request(
        self,
        messages: Sequence[Message],
        sample: int,
        temperature: float = 0.0,
        response_format: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]: ...

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


class ChatClient:
    """One model on one server, with its prices and limits.

    A call that meets 408, 409, 429, a 5xx, a timeout, a broken connection or a reply that is no chat completion is sent
    again up to ``attempts`` times with growing pauses (and as long as ``Retry-After`` asks); after ``breaker`` failures
    in a row, whichever calls they belong to, the client gives up with an error. Anything else that the server refuses,
    spent quota too, is an error at once. Nothing is sent that the ledger's cap does not cover.

    Args:
        name: the line in the ledger and in messages; key: the parameter section, for remedies.
        usd_in, usd_out: prices in USD per million tokens; timeout: seconds of a call; pause: seconds before a second
            attempt.
        extra_body: fields that go with every request as they stand; template_args: of the server's chat template.

    Raises:
        DriftbookError: the environment variable of the key is not set.
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
        extra_body: Mapping[str, Any] | None = None,
        template_args: Mapping[str, Any] | None = None,
        key: str = "max_output_tokens",
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self.name, self.model, self.base_url, self.ledger = name, model, base_url, ledger
        self.usd_in, self.usd_out = usd_in / 1e6, usd_out / 1e6
        self.concurrency, self.max_tokens, self.timeout = concurrency, max_tokens, timeout
        self.attempts, self.breaker, self.pause, self.progress = attempts, breaker, pause, progress
        self.length_key = key
        self.extra = dict(extra_body or {})
        if template_args:
            self.extra["chat_template_kwargs"] = {**self.extra.get("chat_template_kwargs", {}), **template_args}
        self._key, self._failures = "", 0
        self._server = f"{base_url} {model}"
        self._known: set[str] = set()
        self.without: set[str] = set()
        self._recall()
        if api_key_env is not None:
            self._key = os.environ.get(api_key_env, "")
            if not self._key:
                raise DriftbookError(f"{name}: the environment variable {api_key_env} (api_key_env) is not set")

    # ------------------------------------------------------------------------------------------------------- requests

    def request(
        self,
        messages: Sequence[Message],
        sample: int,
        temperature: float = 0.0,
        response_format: Mapping[str, Any] | None = None,
        levels: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A request in the form that is hashed: everything that shapes the answer, nothing else, no key.

        ``response_format`` is the form of the answer as the API has it, a JSON schema for one: a server that does not
        know it is asked without. With ``levels`` the probabilities of these words are asked for, and kept where the
        server gives them. Fields ``top_p`` and ``seed`` may be added; ``sample`` tells answers to the same question
        apart and is not sent.
        """
        clean = [{k: v.encode("utf-8", "replace").decode() for k, v in m.items()} for m in messages]
        return {
            "base_url": self.base_url,
            "model": self.model,
            "messages": clean,
            "temperature": temperature,
            "max_tokens": self.max_tokens,
            "sample": sample,
            **({"response_format": dict(response_format)} if response_format else {}),
            **({"levels": list(levels)} if levels else {}),
            **({"extra_body": self.extra} if self.extra else {}),
        }

    def key_of(self, request: dict[str, Any]) -> str:
        """What the answer is stored under: the request, and which of its fields the server does not take."""
        gone = sorted(f for f in self.without if f in request or (f == "logprobs" and "levels" in request))
        return request_key(request | ({"without": gone} if gone else {}))

    def _body(self, request: dict[str, Any]) -> dict[str, Any]:
        body = {field: request[field] for field in SENT if field in request}
        if "levels" in request:
            body |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        for field in self.without & set(body):
            value, instead = body.pop(field), MAY_GO[field]
            if instead:
                body[instead] = value
        if "logprobs" not in body:
            body.pop("top_logprobs", None)
        return body | ({"extra_body": self.extra} if self.extra else {})

    def most(self, request: dict[str, Any]) -> float:
        """What a call can cost at most, in USD: a token is at least one byte."""
        size = sum(len(m["content"].encode()) + 16 for m in request["messages"])
        return size * self.usd_in + request["max_tokens"] * self.usd_out

    def quote(self, requests: Sequence[dict[str, Any]], out_tokens: int) -> Quote:
        """Requests that are not stored yet, at about four bytes a token and ``out_tokens`` tokens an answer. Sends
        nothing."""
        total = Quote()
        for request in requests:
            if self.ledger.peek(self.key_of(request)):
                total += Quote(cached=1)
                continue
            tokens = sum(len(m["content"].encode()) // 4 + 8 for m in request["messages"])
            out = min(request["max_tokens"], out_tokens)
            total += Quote(1, 0, tokens, out, tokens * self.usd_in + out * self.usd_out)
        return total

    # ---------------------------------------------------------------------------------------------------------- asking

    def converse(self, conversations: Sequence[Conversation]) -> None:
        """Hold all conversations to their end, from the cache where it can answer. Raises BudgetError at the cap.

        Works where an event loop is already running, as in a notebook.
        """
        before = self.ledger.accounts[self.name].unanswered
        bar = self.progress(len(conversations), self.name, "calls") if self.progress and conversations else None
        for _ in self._held(conversations):
            if bar is not None:
                bar.update(1)
        if bar is not None:
            bar.close()
        self._warn(self.ledger.accounts[self.name].unanswered - before)

    def answers(self, requests: Sequence[dict[str, Any]]) -> Iterator[tuple[int, Answer]]:
        """Requests by index with their answers, stored ones first, then as they come.

        Raises:
            DriftbookError: an answer that could not be had; BudgetError: at the cap.
        """
        before = self.ledger.accounts[self.name].unanswered
        asked = [_Single(index, request) for index, request in enumerate(requests)]
        for one in self._held(asked, needed=True):
            assert one.answer is not None
            yield one.index, one.answer
        self._warn(self.ledger.accounts[self.name].unanswered - before)

    def _held(self, conversations: Sequence[Any], needed: bool = False) -> Iterator[Any]:
        """Conversations as they end. Calls under way when the caller leaves are let end, and stored: they are paid."""
        self._recall()
        waiting = []
        for one in conversations:
            if self._from_cache(one):
                waiting.append(one)
            else:
                yield one
        if not waiting:
            return
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stop: list[BaseException] = []

        def body() -> None:
            try:
                asyncio.run(self._run(waiting, ended, stop, needed))
            except BaseException as reason:
                stop.append(reason)
            ended.put(None)

        thread = threading.Thread(target=body, name=f"chat {self.name}")
        thread.start()
        try:
            while (one := ended.get()) is not None:
                yield one
        except BaseException as reason:
            stop.append(reason)
            raise
        finally:
            thread.join()
        if stop:
            raise stop[0]

    def _from_cache(self, one: Conversation) -> bool:
        """Answer from the cache as long as it can; True when something is left to ask."""
        while (request := one.next()) is not None:
            stored = self.ledger.find(self.key_of(request), self.name)
            if stored is None:
                return True
            one.receive(stored)
        return False

    async def _run(
        self, waiting: Sequence[Conversation], ended: queue.SimpleQueue[Any], stop: list[BaseException], needed: bool
    ) -> None:
        import openai  # two seconds; stored replies need none of it

        throttle, rest = Throttle(self.concurrency), iter(waiting)
        key = self._key or "none"  # the SDK wants one, servers without keys ignore it
        async with openai.AsyncOpenAI(
            api_key=key, base_url=self.base_url, max_retries=0, timeout=self.timeout
        ) as client:

            async def work() -> None:
                for one in rest:
                    if stop:
                        return
                    try:
                        while self._from_cache(one):
                            answer = await self._send(client, throttle, one.next() or {}, stop, needed)
                            if stop and answer is None:
                                return
                            one.receive(answer)
                            if answer is None:
                                break
                    except Exception as reason:  # the others finish what they have sent: it is paid
                        stop.append(reason)
                        return
                    ended.put(one)

            await asyncio.gather(*(work() for _ in range(self.concurrency)))

    async def _send(
        self, client: Any, throttle: Throttle, request: dict[str, Any], stop: list[BaseException], needed: bool
    ) -> Answer | None:
        """The answer, stored; None when all attempts failed and it is not ``needed``. Raises for what no repetition
        mends."""
        import openai  # two seconds; stored replies need none of it

        most, attempt = self.most(request), 0
        while True:
            if stop:
                return None
            body, pause = self._body(request), self.pause * 2**attempt * (0.5 + random.random())
            async with throttle:
                self.ledger.reserve(self.name, most)
                try:
                    reply = await client.chat.completions.create(**body)
                    answer = self._read(reply, most, request.get("levels", ()))
                except (openai.APIError, ValueError) as reason:  # ValueError: a body that is no chat completion
                    failure, status = reason, getattr(reason, "status_code", None)
                except BaseException:  # not for us to mend, but the money stays on the account
                    self.ledger.release(self.name, most, True)
                    raise
                else:
                    return self._keep(request, answer, most, throttle)
                if isinstance(failure, openai.APIStatusError) and (why := _about_this_text(failure)):
                    return self._keep(request, Answer("", 0, 0, 0.0, reason=why), most, throttle)
                self.ledger.release(self.name, most, _may_be_billed(failure))
                if status in MAY_REFUSE and (field := _refused_field(failure, body)):
                    self.without.add(field)
                    continue
                said = self._clean(f"{type(failure).__name__}: {failure}")
                if isinstance(failure, openai.APIStatusError) and not _passes(failure):
                    spent = "the account's quota is spent; " if _quota_spent(failure) else ""
                    raise DriftbookError(
                        f"{self.name} at {self.base_url}: {spent}refused: {said}. Answers so far are kept"
                    ) from None
                self._failures += 1
                if self._failures >= self.breaker:
                    raise DriftbookError(
                        f"{self.name} at {self.base_url} failed {self._failures} times in a row, last with {said}. "
                        "Answers so far are kept: mend it and run again"
                    ) from None
                if status == 429:
                    pause = max(pause, _retry_after(failure))
                    throttle.slower(pause)
            attempt += 1
            if attempt == self.attempts:
                if needed:
                    raise DriftbookError(
                        f"{self.name} at {self.base_url} gave no answer in {attempt} attempts, the last with {said}. "
                        "Answers so far are kept: mend it and run again"
                    )
                return None
            await asyncio.sleep(max(pause, _retry_after(failure)))

    def _keep(self, request: dict[str, Any], answer: Answer, reserved: float, throttle: Throttle) -> Answer:
        if (new := self.without - self._known) and answer.reason not in ("content_filter", "too_long"):
            # what was left out is known to be the reason once a request without it went through
            self.ledger.note_refused(self._server, sorted(new))
            self._known |= new
            self._note()
        self.ledger.settle(self.key_of(request), self.name, reserved, answer)
        self._failures = 0
        throttle.faster()
        return answer

    def _recall(self) -> None:
        """Leave out what this client, or another one of the same server, was refused before."""
        if new := set(self.ledger.refused(self._server)) - self._known:
            self._known |= new
            self.without |= new
            self._note()

    def _note(self) -> None:
        self.ledger.accounts[self.name].without = ", ".join(sorted(self.without))
        if drawn := sorted(self.without & {"temperature", "top_p"}):
            warnings.warn(
                f"{self.model} at {self.base_url} does not take {' and '.join(drawn)}. It samples by its own default: "
                "the same question may get another answer, and texts sampled otherwise are not comparable with its own",
                stacklevel=3,
            )

    def _read(self, reply: Any, most: float, levels: Sequence[str]) -> Answer:
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise ValueError(f"a reply that is no chat completion: {str(reply)[:80]!r}")
        heard = read_message(choices[0])
        told = None
        if levels:
            told = level_probabilities(alternatives(choices[0]), levels) or None
        usage = getattr(reply, "usage", None)
        if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            tokens_in, tokens_out, spent = 0, 0, most  # no account from the server: the upper bound
        else:
            tokens_in, tokens_out = usage.prompt_tokens, usage.completion_tokens
            spent = tokens_in * self.usd_in + tokens_out * self.usd_out
        return Answer(heard.text, tokens_in, tokens_out, spent, told, heard.reason, heard.thought)

    def _warn(self, unanswered: int) -> None:
        if unanswered:
            warnings.warn(
                f"{self.name} at {self.base_url}: {unanswered} replies are no answer: cut before their first word "
                f"(raise {self.length_key}; a model that thinks first needs room, or template_args: "
                "{enable_thinking: false}), refused, filtered by the server, or too long for it. They count as missing",
                stacklevel=3,
            )

    def _clean(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message


@dataclass
class _Single:
    """A conversation of one question."""

    index: int
    request: dict[str, Any]
    answer: Answer | None = None

    def next(self) -> dict[str, Any] | None:
        return self.request if self.answer is None else None

    def receive(self, answer: Answer | None) -> None:
        self.answer = answer


# ------------------------------------------------------------------------------------------------------ what went wrong


def _may_be_billed(failure: Exception) -> bool:
    """Whether a call without a reply may stand on the bill: it got there, and no status came back."""
    import openai  # two seconds; stored replies need none of it

    if isinstance(failure, openai.APIStatusError):
        return False
    if isinstance(failure, openai.APIConnectionError):  # timeouts among them
        return type(failure.__cause__).__name__ not in _NEVER_SENT
    return True


def _passes(failure: Any) -> bool:
    """Whether a status may be another one the next time."""
    return not _quota_spent(failure) and (failure.status_code >= 500 or failure.status_code in RETRIED)


def _quota_spent(failure: Any) -> bool:
    return "insufficient_quota" in (failure.code, failure.type) or (
        failure.status_code in (402, 429) and re.search(r"insufficient_quota|exceeded your current quota", str(failure))
    )


def _about_this_text(failure: Any) -> str | None:
    """Why the server would not answer this one prompt where others may pass: for what it says, or for its length."""
    if failure.status_code not in (*MAY_REFUSE, 413):
        return None
    if failure.code in ("content_filter", "content_policy_violation") or re.search(
        r"content_filter|content management policy|content policy violation", str(failure)
    ):
        return "content_filter"
    return "too_long" if _TOO_LONG.search(f"{failure.code} {failure}") else None


def _refused_field(failure: Any, body: Mapping[str, Any]) -> str | None:
    """The field that a server names as one it does not take: by ``param``, else in quotes, else as a word. None where
    it takes the field and not the value. Of two that it does not take together, the one that goes first."""
    said = str(failure).lower()
    names = {f: f"(?:top_)?{f}|{_ALSO.get(f, f)}" for f in MAY_GO if f in body}
    param = str(failure.param or "").lower()
    for form, where in ((r"(?:{})(?:\..*)?$", param), (r"[`'\"](?:{})[`'\"]", said), (r"\b(?:{})\b", said)):
        for field, name in names.items():
            if (re.match if where is param else re.search)(form.format(name), where):
                return None if _OUT_OF_RANGE.search(said) else field
    return None


def _retry_after(failure: Any) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    try:
        return min(60.0, float(failure.response.headers.get("retry-after", 0)))
    except (AttributeError, ValueError):  # no reply; a date instead of seconds: the growing pause does
        return 0.0
