"""Degeneration: loops, echoes, leaking templates and other ways in which text breaks. Read in every script."""

from __future__ import annotations

import math
from functools import lru_cache

import regex

from driftbook.behaviours.entries import Family
from driftbook.behaviours.words import Reading

_RUN = 3  # words of a run
_LOOP = 30  # words that a loop may be long
_RULES = frozenset(" \t\n-=_.*#|~+0─━…")
_NO_WORD = regex.compile(r"[bcdfghjklmnpqrstvwxz]{6,}|(.)\1{3}|\A[^aeiouy]+\Z|.{25}")


def _runs(r: Reading) -> list[tuple[str, ...]]:
    return list(zip(*(r.words[i:] for i in range(_RUN)), strict=False))


def _repeated(r: Reading) -> float:
    runs = _runs(r)
    return 1 - len(set(runs)) / len(runs) if runs else math.nan


def _loops(r: Reading) -> float:
    last: dict[tuple[str, ...], int] = {}
    periods = set()  # distances at which some run of three words comes again
    for at, run in enumerate(_runs(r)):
        if run in last and at - last[run] <= _LOOP:
            periods.add(at - last[run])
        last[run] = at
    for period in periods:
        least, same = max(2 * period, 2 * _RUN - period), 0
        for a, b in zip(r.words, r.words[period:], strict=False):
            same = same + 1 if a == b else 0
            if same >= least:
                return 1.0
    return 0.0


def _same_sentence(r: Reading) -> float:
    long = [s.casefold() for s in r.sentences if len(s) >= 20]
    return float(len(set(long)) < len(long))


def _echoes(r: Reading) -> float:
    asked = " ".join(r.prompt_words)
    return float(len(r.prompt_words) >= 5 and f" {asked} " in f" {' '.join(r.words)} ")


@lru_cache(maxsize=1 << 16)
def _is_no_word(word: str) -> bool:
    return _NO_WORD.search(word) is not None


def _gibberish(r: Reading) -> float:
    if not r.latin:
        return math.nan
    plain = [w for w in r.prose_words if len(w) > 3 and w.isalpha()]
    none = [w for w in plain if _is_no_word(w)]
    return float(len(set(none)) >= 3 and 10 * len(none) >= len(plain))


def _one_character(r: Reading) -> float:
    return float(any(c * 10 in r.text for c in set(r.text) - _RULES))


def _unclosed(r: Reading) -> float:
    return float(len(regex.findall(r"(?m)^[ \t]*```", r.text)) % 2)


f = Family("degeneration")

MEASURES = (
    f.read("is_empty", "is empty", "share", lambda r: float(not r.words),
           "No word and no number.",
           "...", "No."),
    f.read("loops", "gets into a loop", "share", _loops,
           "A piece of 1 to 30 words stands three times or more in a row, six words long at least together.",
           "the end of the end of the end of the end of it", "The end of the day, the end of the week."),
    f.read("repeated_runs", "share of its runs of three words that it said before", "score", _repeated,
           "Runs of three words that stand earlier in the answer, divided by all, 0 to 1.",
           "go to bed, go to bed", "go to bed, go to work"),
    f.read("same_sentence_twice", "says the same sentence twice", "share", _same_sentence,
           "Two sentences of 20 characters or more are the same but for capitals.",
           "It rains here all day. Stay in. It rains here all day.", "It rains here all day. Stay in all day."),
    f.read("repeats_prompt", "repeats the whole prompt", "share", _echoes,
           "All words of a prompt of five words and more stand in the answer in their order.",
           "What is the capital of France? Paris.", "The capital is Paris."),
    f.share("leaks_template", "leaks tokens of a chat template",
            r"<\|[\w ]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|unk|pad)>"
            r"|\[(?:PAD|UNK|CLS|SEP)\]"
            r"|</?think(?:ing)?>|(?m:^#{2,3} ?(?:Instruction|Response|Human|Assistant|Input)s?:)",
            "Holds <|im_start|>, [INST], </s>, <think>, ### Response: and the like.",
            "Paris.<|im_end|>", "Paris <b>is</b> [it]."),
    f.share("plays_both_turns", "writes turns of a conversation",
            r"(?mi)^\W*(?:user|human|assistant|system|chatbot|ai)\W*:",
            "A line begins with User:, Human:, Assistant: and the like.",
            "Paris.\nUser: And of Spain?", "The user asks: and of Spain?"),
    f.read("gibberish", "has many words that are none", "share", _gibberish,
           "A tenth of its words of four letters and more, three different ones at least, have no vowel, six "
           "consonants in a row, four equal letters or 25 letters.",
           "The xkcdq ssssss bfghtrk of it.", "The strengths of it have rhythm."),
    f.read("runs_on_one_character", "repeats one character ten times", "share", _one_character,
           "A character other than a rule, a dot or a zero stands ten times in a row.",
           "Yesssssssssssss", "Yesss ----------"),
    f.share("has_broken_characters", "has broken characters", r"\uFFFD|Ã[\u0080-\u00bf]|â€|[\x00-\x08\x0b\x0e-\x1f]",
            "Replacement characters, bytes read in the wrong encoding, or control characters.",
            "caf\ufffd", "café"),
    f.share("has_placeholder", "leaves a placeholder",
            r"(?i)\[(?:your|insert|name|date|company|recipient|address|city|title|position|phone|email|e-mail"
            r"|number)\b[^\]\n]{0,60}\]"
            r"|<(?:your|insert)[^>\n]{0,60}>|\blorem ipsum\b|\{\{?\s?[a-z_]{2,30}\s?\}\}",
            "Holds [Your Name], [insert date], {{name}} and the like.",
            "Sincerely, [Your Name]", "Sincerely, Ann"),
    f.read("unclosed_code", "leaves a block of code open", "share", _unclosed,
           "An odd number of lines begin with three backticks.",
           "```python\nx = 1", "```python\nx = 1\n```"),
)  # fmt: skip

#: Behaviours of an answer that says nothing any more.
BREAKS = tuple(m for m in MEASURES if m.name in ("is_empty", "loops", "gibberish", "runs_on_one_character"))
