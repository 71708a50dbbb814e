"""What a model is asked and what it wrote: the records of both, and one way to read a reply.

Judges, labellers and sides of a comparison are read alike: the thought is cut off first, in whatever marks it stands;
JSON is found among other words, also where a model is careless with it; of several verdicts the last one counts, and
none that it only quotes. Nothing here needs a server or a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from driftbook.sections import ThoughtMarks

# A reply that is stuck in braces would else be read from each of them to the end.
TRIED = 100  # places of a text where an object may begin that turns out to be none
DEEP = 100  # braces inside of each other
LEAST_MASS = 0.5  # below it the model meant something else than a level: what it wrote counts
NO_ANSWER = ("cut", "content_filter", "too_long", "nothing")  # ends of a text that never began: no empty answers
NESTED = 8  # levels of lists and objects inside each other that are searched


def request_key(request: dict[str, Any]) -> str:
    """sha256 of everything that shapes an answer: model, messages, parameters, schema version, sample index."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a model said, before anyone reads it.

    ``reason`` is why it ended: ``stop``, ``length``, ``refusal``, ``content_filter``, ``too_long`` (the prompt, for the
    server) or ``nothing`` (no words at all, though it ended by itself). ``thought`` is what it thought before it
    answered, where that can be told apart.
    """

    text: str
    input_tokens: int
    output_tokens: int
    usd: float
    levels: dict[str, dict[str, float]] | None = None  # statement to level to probability, where the server tells
    reason: str = "stop"
    thought: str = ""

    @property
    def answered(self) -> bool:
        """False for what is no answer: cut before its first word, refused, filtered, not sent. An empty text may be
        one."""
        return self.reason == "stop" or (self.reason == "length" and bool(self.text))


# ------------------------------------------------------------------------------------------------------------- thought

# Marks around a thought at the beginning of a text: tags (DeepSeek, Qwen, Seed), [THINK] (Magistral), those of Kimi,
# Cohere, Gemma and Sky-T1, Granite's sentences. One that does not end is all there is.
_THOUGHT = re.compile(
    r"[\s\u200b\ufeff]*(?:<(?P<tag>(?i:think|thinking|thought|reasoning|seed:think))(?:\s[^<>]*)?>(.*?)"
    r"(?:</(?P=tag)>|\Z)"
    r"|\[THINK\](.*?)(?:\[/THINK\]|\Z)|◁think▷(.*?)(?:◁/think▷|\Z)"
    r"|<\|START_THINKING\|>(.*?)(?:<\|END_THINKING\|>|\Z)|<\|channel>thought(.*?)(?:<channel\|>|\Z)"
    r"|<\|begin_of_thought\|>(.*?)(?:<\|end_of_thought\|>|\Z)"
    r"|Here(?:'s| is) my thought process:(.*?)(?:Here(?:'s| is) my response:|\Z))",
    re.DOTALL,
)
# The template may have written the opening mark into the prompt: then the end stands without a beginning.
_OPENS = re.compile(r"<(?:think|thinking|seed:think)>|\[THINK\]|◁think▷")
_END_OF_THOUGHT = re.compile(r"(?<!`)(?:</(?:think|thinking|seed:think)>|\[/THINK\]|◁/think▷)")
# A message of the harmony format of gpt-oss, which thinks in the channel "analysis" and answers in "final" ...
_CHANNEL = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(.*?)(?:<\|(?:end|return|call)\|>|(?=<\|(?:start|channel)\|>)|\Z)",
    re.DOTALL,
)
# ... and what is left where the marks were dropped and the rest joined: "analysisThe user asks.assistantfinalYes"
_JOINED = re.compile(
    r"\s*analysis(?=[A-Z\"'“(\[{*]|[^\x00-\x7f])(.*?)(?:(?:assistant|(?<=[.!?\"”)\n]))final(?=[^\sa-z])|\Z)", re.DOTALL
)


def split_thought(text: str, marks: ThoughtMarks | None = None, opened: bool = False) -> tuple[str, str]:
    """(thought, answer) of a text that begins with a thought, or that ends one whose opening mark stood in the prompt.

    Known are ``<think>`` and its kin, ``[THINK]``, ``◁think▷``, Granite's sentences and the channels of gpt-oss, also
    where a server dropped their marks. A thought that does not end leaves no answer.

    Args:
        marks: those of the model, where they are known, and no others; opened: the prompt ends inside of the thought.
    """
    if marks is not None:
        begun = text.lstrip()
        if not begun.startswith(marks.open) and not opened and marks.close not in text:
            return "", text
        thought, _, answer = begun.removeprefix(marks.open).partition(marks.close)
        return thought.strip(), answer.lstrip()
    thoughts: list[str] = []
    for match in _channels(text):
        if match.group(1) == "final":
            return "\n".join(thoughts), match.group(2).strip()
        thoughts.append(match.group(2).strip())
    if thoughts:
        return "\n".join(thoughts), ""
    if match := _JOINED.match(text):
        return match.group(1).strip(), text[match.end() :]
    rest = text
    while match := _THOUGHT.match(rest):
        thoughts.append(next(g for g in match.groups()[1:] if g is not None).strip())
        rest = rest[match.end() :]
    if not thoughts and (end := _END_OF_THOUGHT.search(text)) and not _OPENS.search(text, 0, end.start()):
        thoughts, rest = [text[: end.start()].strip()], text[end.end() :]
    if opened and not thoughts:
        return text.strip(), ""
    return "\n".join(t for t in thoughts if t), rest.lstrip() if thoughts else text


def _channels(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while match := _CHANNEL.match(text, at):
        yield match
        at = match.end()


# ----------------------------------------------------------------------------------------- a message of the chat API


@dataclass(frozen=True)
class Heard:
    """What a message says: ``text`` is the answer alone, ``reason`` as in ``Answer``."""

    text: str
    thought: str
    reason: str


def read_message(choice: Any) -> Heard:
    """The answer of a choice of the chat API, its thought, and why it ended.

    Content may be a text, null, a part or a list of parts. A thought comes as ``reasoning_content`` (or ``reasoning``),
    as parts, or in the text (:func:`split_thought`).

    Raises ValueError for a content that is none of these, and for a reply that the server broke off.
    """
    message = choice.message
    content = message.content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(p, str | Mapping) or p is None or hasattr(p, "type") for p in parts):
        raise ValueError(f"a message whose content is no text: {str(content)[:80]!r}")
    text = "".join(_text_of(p) for p in parts if not _is_thought(p))
    thoughts = [_text_of(_field(p, "thinking")) or _text_of(p) for p in parts if _is_thought(p)]
    told = (_text_of(getattr(message, name, None)) for name in ("reasoning_content", "reasoning"))
    thoughts += [next(filter(None, told), "")]
    inside, text = split_thought(text)
    thought = "\n".join(dict.fromkeys(t for t in [*thoughts, inside] if t))
    said = str(choice.finish_reason or "stop")
    reason = _REASONS.get(said.lower(), said.lower())
    if reason == "error":
        raise ValueError(f"a reply that ended in an error of the server: {text[:80]!r}")
    if refusal := getattr(message, "refusal", None):
        text, reason = text or str(refusal), "refusal"
    elif reason not in ("length", "content_filter", "refusal"):
        nothing = not text and (content is None or thought)
        reason = "nothing" if nothing else "stop"
    return Heard(whole(text), whole(thought), reason)


#: What servers call the reasons that the API calls ``length`` and ``content_filter``.
_REASONS = dict.fromkeys(("max_tokens", "max_output_tokens", "model_length", "max_length"), "length") | dict.fromkeys(
    ("safety", "blocklist", "prohibited_content", "recitation", "guardrail_intervened", "content_filtered"),
    "content_filter",
)


def whole(text: str) -> str:
    """The text with halves of surrogate pairs joined where they belong together, and replaced by U+FFFD elsewhere."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _field(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)


def _is_thought(part: Any) -> bool:
    return _field(part, "type") in ("thinking", "reasoning")


def _text_of(value: Any) -> str:
    """The text of a part, of a list of parts, or of what stands under ``text`` or ``value`` in one."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "".join(map(_text_of, value))
    return _text_of(_field(value, "text")) or _text_of(_field(value, "value"))


# ----------------------------------------------------------------------------------------------------------------- JSON

_STRICT = json.JSONDecoder(strict=False)  # with line breaks inside strings
_QUOTED = r'"(?:[^"\\]|\\.)*"' + r"|(?<=[{\[,:\s])'(?:[^'\\\n]|\\.)*'(?=\s*[,:}\]])"
_MARK = re.compile(rf"{_QUOTED}|[{{}}]", re.DOTALL)
# What is mended: strings in single quotes, a comma before the end, keys and words without quotes.
_CARELESS = re.compile(rf"{_QUOTED}|,(?=\s*[}}\]])|\b[^\W\d]\w*(?=\s*[,:}}\]])|\b\d+(?=\s*:)", re.DOTALL)
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text in their order, whatever stands around them; those inside lists and other objects
    follow what they stand in.

    Fenced or not, with a comma too many, single quotes or bare keys. What was cut before its end is left out, and what
    stood whole before it is found.
    """
    found: list[dict[str, Any]] = []
    for value, _ in _spans(text):
        found += _inside(value, NESTED)
    return found


def _spans(text: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The outermost objects of a text, and what each is written as."""
    at, tried = 0, 0
    while (at := text.find("{", at)) >= 0 and tried < TRIED:
        value, end = _decoded(text, at)
        if value is not None:
            yield value, text[at:end]
        tried += value is None
        at = end


def _decoded(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    """The object that begins at a place and where it ends; None and the next place where there is none."""
    try:
        return _STRICT.raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError):
        pass
    depth = 0
    for mark in _MARK.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth > DEEP:
            break
        if not depth:
            try:
                return json.loads(_CARELESS.sub(_mended, text[at : mark.end()]), strict=False), mark.end()
            except (json.JSONDecodeError, RecursionError):
                break
    return None, at + 1


def _mended(match: re.Match[str]) -> str:
    said = match.group()
    if said[0] in '",':
        return said if said[0] == '"' else ""
    return json.dumps(said[1:-1].replace("\\'", "'")) if said[0] == "'" else _CONSTANTS.get(said, json.dumps(said))


def _inside(value: Any, depth: int) -> list[dict[str, Any]]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) and depth else ()
    found = [one for inner in values for one in _inside(inner, depth - 1)]
    return [value, *found] if isinstance(value, dict) else found


# ------------------------------------------------------------------------------------------------------------- verdicts


def read_levels(text: str, count: int, values: Mapping[str, float], material: str = "") -> list[float]:
    """Values of the statements 1 to ``count`` in a reply, NaN where it holds none.

    The last JSON object with a verdict counts: what comes before is a note, or was thought better of. One that stands
    word for word in ``material``, which is what the reply speaks of, may be a quotation, and counts only where there is
    no other. Without JSON a line counts that holds nothing but a level (``2. HIGH``, ``Rating: **LOW**``), the last one
    of each statement.
    """
    nothing = [float("nan")] * count
    told: list[tuple[bool, list[float]]] = []
    for value, written in _spans(text):
        for one in _inside(value, NESTED):
            found = [_value(one.get(str(i + 1)), values) for i in range(count)]
            if not all(map(math.isnan, found)):
                told.append((written not in material, found))
    if told:
        return max(enumerate(told), key=lambda t: (t[1][0], t[0]))[1][1]
    level = "|".join(values)
    label = r"(?:[^\n:=]{0,60}[:=]|\\boxed\{)"
    lines = re.findall(rf"(?im)^[^\w\n]*(?:(\d+)\b[^\w\n]*)?(?:{label}[^\w\n]*)?({level})[^\w\n]*$", text)
    by_line = {int(number or 1): values[said.upper()] for number, said in lines if number or count == 1}
    if not by_line and count == 1 and (last := text.strip().splitlines()[-1:]):
        said = re.search(rf"\b(?:is|as)\b[^\w\n]*({level})[^\w\n]*$", last[0])
        by_line = {1: values[said.group(1)]} if said else {}
    return [by_line.get(i + 1, v) for i, v in enumerate(nothing)]


def _value(said: Any, values: Mapping[str, float]) -> float:
    """The value of an entry: a level, one with words behind it, or an object that holds a single one."""
    if isinstance(said, dict):
        inner = {v for v in (_value(one, values) for one in said.values() if isinstance(one, str)) if not math.isnan(v)}
        return inner.pop() if len(inner) == 1 else float("nan")
    match = re.match(r"\W*(\w+)\W*(?:$|\s*[-–—:;,.(])\W*(\w*)", said) if isinstance(said, str) else None
    if match is None or match.group(2).upper() in values:  # two of them are none
        return float("nan")
    return values.get(match.group(1).upper(), float("nan"))


def verdict_schema(count: int, levels: Sequence[str]) -> dict[str, Any]:
    """``response_format`` for a reply with one of ``levels`` for each of the statements 1 to ``count``."""
    numbers = [str(i + 1) for i in range(count)]
    properties = {number: {"type": "string", "enum": list(levels)} for number in numbers}
    schema = {"type": "object", "properties": properties, "required": numbers, "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": schema}}


# --------------------------------------------------------------------------------------------- probabilities of levels

_ENTRY = re.compile(r'"(\d+)"\s*:\s*"(?=[A-Za-z])')


def alternatives(choice: Any) -> list[tuple[str, dict[str, float]]]:
    """The tokens of a reply with the log-probabilities of their alternatives; empty where the server gives none. What
    stands in a thought is no verdict, and is left out."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    tokens = [(t.token, {t.token: t.logprob} | {a.token: a.logprob for a in t.top_logprobs or []}) for t in content]
    text = "".join(token for token, _ in tokens)
    begin, at = text.rfind(split_thought(text)[1]), 0
    for index, (token, _) in enumerate(tokens):
        if at >= begin:
            return tokens[index:]
        at += len(token)
    return []


def level_probabilities(
    tokens: Sequence[tuple[str, Mapping[str, float]]], levels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Probability of each level at the place where a JSON reply such as ``{"1": "HIGH"}`` states it.

    ``tokens``: the tokens of the reply, each with the log-probabilities of its likeliest alternatives. Returns the
    statement's number to level to probability; an alternative counts for the level that it begins, in the letters
    that follow the opening quote. Where a statement stands twice the last place counts; statements whose levels have
    less than half of the mass are left out.
    """
    text, starts = "", []
    for token, _ in tokens:
        starts.append(len(text))
        text += token
    found: dict[str, dict[str, float]] = {}
    for entry in _ENTRY.finditer(text):
        place = entry.end()
        index = max(i for i, start in enumerate(starts) if start <= place)
        before = tokens[index][0][: place - starts[index]]
        mass = dict.fromkeys(levels, 0.0)
        for alternative, logprob in tokens[index][1].items():
            rest = alternative[len(before) :].split('"')[0].upper()
            if not alternative.startswith(before) or not rest:
                continue
            begun = [level for level in levels if level.startswith(rest)]
            if len(begun) == 1:
                mass[begun[0]] += math.exp(logprob)
        if sum(mass.values()) >= LEAST_MASS:
            found[entry.group(1)] = mass
        else:
            found.pop(entry.group(1), None)
    return found
