"""Decoded texts read again: behind the prompts that they answered."""

import pandas as pd

from driftbook.models import captured
from driftbook.models.sides import Pair, Side
from driftbook.prompts import Prompt
from models import loaded
from test_vectors import some_vectors

TURNS = [
    {"role": "user", "content": "Tea?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Milk?"},
]
PROMPTS = [Prompt("Milk?", system="Be terse."), Prompt.from_messages(TURNS)]


def scores(prompts, tmp_path):
    model = loaded()
    pair = Pair(Side("base", model, "a"), Side("intervention", model, "b", system="Be kind."), 1)
    rows = [
        {"text_id": f"{side}{i}", "side": side, "prompt_id": p.prompt_id, "token_ids": [7 + i, 9, 11, 20]}
        for side in ("base", "intervention")
        for i, p in enumerate(prompts)
    ]
    return captured.text_scores(pair, pd.DataFrame(rows), {p.prompt_id: p for p in prompts}, some_vectors(), tmp_path)


def test_a_text_is_read_behind_the_whole_conversation_that_it_answered(tmp_path, monkeypatch):
    read, replay = {}, captured.capture_replay

    def spy(side, sequences, *more):
        read[side.name] = [side.model.tokenizer.decode(s.prompt_ids) for s in sequences]
        return replay(side, sequences, *more)

    monkeypatch.setattr(captured, "capture_replay", spy)
    found = scores(PROMPTS, tmp_path)
    assert set(found.columns) == {"text_id", "warm", "terse"} and len(found) == 4 and found.notna().all().all()
    single, conversation = read["base"]
    assert "system\nBe terse." in single and "Tea?" not in single
    assert conversation.index("Tea?") < conversation.index("Yes.") < conversation.index("Milk?")
    single, conversation = read["intervention"]
    assert "system\nBe kind.\n\nBe terse." in single
    assert conversation.index("Be kind.") < conversation.index("Tea?") < conversation.index("Milk?")
