"""Models that think before they answer: where the thought ends, in tokens, and how long each may be.

The marks are those of :mod:`driftbook.replies`, or a model's own. They may be special tokens, which decoding drops, and
the opening one may stand in the prompt: so they are looked for in the text with special tokens, and the place of the
answer is told in tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driftbook.replies import split_thought
from driftbook.sections import ThoughtMarks

CHANNELS = ThoughtMarks(open="<|channel|>analysis<|message|>", close="<|channel|>final<|message|>")
#: What known models write around a thought.
KNOWN = (
    ThoughtMarks(open="<think>", close="</think>"),
    CHANNELS,
    ThoughtMarks(open="[THINK]", close="[/THINK]"),
    ThoughtMarks(open="<seed:think>", close="</seed:think>"),
    ThoughtMarks(open="<|START_THINKING|>", close="<|END_THINKING|>"),
    ThoughtMarks(open="<|channel>thought", close="<channel|>"),
    ThoughtMarks(open="◁think▷", close="◁/think▷"),
    ThoughtMarks(open="<thinking>", close="</thinking>"),
    ThoughtMarks(open="<thought>", close="</thought>"),
    ThoughtMarks(open="<reasoning>", close="</reasoning>"),
)
_TOKEN = re.compile(r"<[^<>]*>|\[[^\]]*\]|◁[^▷]*▷")  # what of a mark is one token
_NEXT = "<|start|>assistant"  # between two channels
_TAIL = 24  # tokens of a prompt that are looked at for a thought that it opens


def find_marks(tokenizer: Any, template: str) -> ThoughtMarks | None:
    """The marks that a model's template writes or that are tokens of its own; None for one that does not think."""
    vocabulary = tokenizer.get_added_vocab()
    for marks in KNOWN:
        both = (marks.open, marks.close)
        tokens = [_TOKEN.match(mark) for mark in both]
        if all(token and token[0] in vocabulary for token in tokens) or any(mark in template for mark in both):
            return marks
    return None


def is_opened(tokenizer: Any, prompt_ids: Sequence[int], marks: ThoughtMarks) -> bool:
    """Whether a prompt ends inside of a thought that it opened itself."""
    tail = tokenizer.decode(list(prompt_ids[-_TAIL:]))
    return tail.rfind(marks.open) > tail.rfind(marks.close)


@dataclass(frozen=True)
class Said:
    """What a response says: ``first`` is the place of the answer's first token, the number of tokens where none was
    reached, 0 where there was no thought."""

    thought: str
    text: str
    first: int

    def reason(self, ended: str) -> str:
        """The finish reason of the answer, where the response as a whole ``ended`` so: ``cut`` in the thought, or
        ``nothing`` behind it."""
        if self.text or not self.first:
            return ended
        return "cut" if ended == "length" else "nothing"


def said(tokenizer: Any, ids: Sequence[int], marks: ThoughtMarks | None, opened: bool = False) -> Said:
    """Thought and answer of a response.

    Args:
        ids: its tokens; opened: the prompt ends inside of the thought.
    """
    ids = list(ids)
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    if marks is None and split_thought(plain)[1] == plain:
        return Said("", plain, 0)
    spoken = list(ids)
    while (
        spoken and spoken[-1] in tokenizer.all_special_ids and tokenizer.decode(spoken[-1:]) != (marks and marks.close)
    ):
        spoken.pop()  # what ends the turn is no word of the thought
    whole = tokenizer.decode(spoken)
    thought, answer = split_thought(whole, None if marks == CHANNELS else marks, opened)
    if answer == whole:
        begun = marks is not None and whole.strip() and marks.open.startswith(whole.strip())  # cut inside of the mark
        return Said("", "", len(ids)) if begun else Said("", plain, 0)
    if not answer:
        return Said(thought, "", len(ids))
    begin = whole.rfind(answer)
    first = bisect_right(range(1, len(ids) + 1), begin, key=lambda n: len(tokenizer.decode(ids[:n])))
    # a token that holds the end of the mark, too
    over = begin - len(tokenizer.decode(ids[:first]))
    text = tokenizer.decode(ids[first:], skip_special_tokens=True)
    return Said(thought, text[over:].lstrip() if over > 0 else text.lstrip(), first)


def end_of_thought(marks: ThoughtMarks, said: str, opened: bool) -> str:
    """What stands between a prompt and the first word of the answer, where ``said`` was thought, to its end or not;
    ``opened``: the prompt led into the thought. Empty where neither shows one."""
    written = said.partition(marks.close)[0]
    if marks == CHANNELS:  # every answer has its channel, and follows a thought as a message of its own
        cut = written and not written.endswith(_NEXT)
        return f"{written}<|end|>{_NEXT}{marks.close}" if cut else f"{written}{marks.close}"
    begun = opened or said.lstrip().startswith(marks.open)
    return f"{written.rstrip()}\n{marks.close}\n\n" if begun else ""


def no_thought(marks: ThoughtMarks, opened: bool = False) -> str:
    """An empty thought: what stands between a prompt and an answer that begins at once."""
    return end_of_thought(marks, "" if opened or marks == CHANNELS else marks.open, opened)


class Watch:
    """How many tokens a response may have, while it grows: ``thought`` for the thought, and ``answer`` from its end on.

    One that does not begin with a thought has those of the answer alone.
    """

    def __init__(self, tokenizer: Any, marks: ThoughtMarks, opened: bool, thought: int, answer: int):
        self.tokenizer, self.marks, self.thought, self.answer = tokenizer, marks, thought, answer
        self.inside: bool | None = True if opened else None  # None: not known yet
        self.begins = 0  # the answer's first token, once it is not inside; blanks before it do not count
        self.window = len(tokenizer(marks.close, add_special_tokens=False)["input_ids"]) + 3

    def most(self, tokens: Sequence[int]) -> int:
        """How many tokens there may be, now that these are there. To be asked after every token."""
        if self.inside is None:
            begun = self.tokenizer.decode(list(tokens)).lstrip()
            if begun.startswith(self.marks.open):
                self.inside = True
            elif not self.marks.open.startswith(begun):
                self.inside = False
        if self.inside and self.marks.close in self.tokenizer.decode(list(tokens[-self.window :])):
            self.inside, self.begins = False, len(tokens)
        elif self.begins and not self.tokenizer.decode(list(tokens[self.begins :])).strip():
            self.begins = len(tokens)
        if self.inside is None:
            return self.thought + self.answer
        return self.thought if self.inside else min(self.begins, self.thought) + self.answer
