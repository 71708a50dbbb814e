"""A tiny model that was taught, in seconds, to think before it answers, behind a template of its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from driftbench.tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

#: As Qwen 3's: it can be told not to think, and the thoughts of earlier turns are not said again.
THINKING_TEMPLATE = CHAT_TEMPLATE + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
#: As DeepSeek R1's: the opening mark stands in the prompt.
OPENING_TEMPLATE = CHAT_TEMPLATE + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
QUESTIONS = [f"Is {what} {how}?" for what in ("tea", "rain", "sun", "ice") for how in ("hot", "near")]


def taught(
    folder: Path,
    thought: str | Callable[[str], str],
    answer: str,
    template: str = THINKING_TEMPLATE,
    steps: int = 80,
    questions: Sequence[str] = QUESTIONS,
) -> Path:
    """A model folder. Asked anything of ``questions`` the model thinks ``thought`` (of the question, where that is a
    function) and answers ``answer``, greedily; told not to think, it answers at once."""
    tokenizer = tiny_tokenizer()
    tokenizer = type(tokenizer).from_pretrained(_saved(tokenizer, folder))
    tokenizer.chat_template = template
    model = tiny_model("llama", "sdpa", num_hidden_layers=2)
    rows = []
    for question in questions:
        thinks_of = thought if isinstance(thought, str) else thought(question)
        turns = [{"role": "user", "content": question}]
        for thinks in (True, False):
            prompt = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False, enable_thinking=thinks
            )
            opened = prompt.rstrip().endswith("<think>")
            begins = "" if opened else "<think>\n"
            said = f"{begins}{thinks_of}\n</think>\n\n{answer}" if thinks or opened else answer
            asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            told = tokenizer(f"{said}<|im_end|>", add_special_tokens=False)["input_ids"]
            rows.append((asked, told))
    width = max(len(a) + len(b) for a, b in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for row, (asked, told) in enumerate(rows):
        ids[row, : len(asked) + len(told)] = torch.tensor(asked + told)
        labels[row, len(asked) : len(asked) + len(told)] = torch.tensor(told)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=4e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _saved(tokenizer, folder: Path) -> Path:
    tokenizer.save_pretrained(folder)
    return folder
