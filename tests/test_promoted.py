"""What the screen tells besides divergence, and what it need not read twice."""

import numpy as np
import pandas as pd
import pytest
import torch

from driftbook import decode
from driftbook.discovery import promoted
from driftbook.discovery.screen import screen_divergence
from driftbook.models.divergence import kept_states, response_states, token_divergence
from driftbook.models.replay import TokenSequence
from driftbook.models.sides import Pair, Side
from driftbook.report import decode as report
from driftbook.store import ShardStore
from models import fresh, full_logits, loaded
from test_decode import PROMPTS, texts_of
from test_decode import decoded as decoded_on
from test_decode import pair_of as steered
from test_divergence import some_sequences

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi3"])
def test_an_output_layer_makes_of_kept_states_what_the_whole_model_says(family, tmp_path):
    """gemma2 caps its logits behind the output layer; a bfloat16 state comes back bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        model = fresh(family, "eager", dtype)
        side, sequences = Side("base", model, "b"), some_sequences()
        states = kept_states(side, sequences, ShardStore(tmp_path / str(dtype)))
        again = kept_states(side, sequences, ShardStore(tmp_path / str(dtype)))
        for s, held, same in zip(sequences, states, again, strict=True):
            assert held.dtype == dtype and torch.equal(held, same)
            expected = full_logits(model, s)[-len(s.response_ids) - 1 : -1]
            tolerance = 1e-4 if dtype == torch.float32 else 0.1  # rows are computed beside others; 8 bits of mantissa
            np.testing.assert_allclose(side.logits(held).float().numpy(), expected, atol=tolerance)
        assert "forward" not in model.model.base_model.__dict__


def counted(side: Side) -> list[int]:
    """Sequences that a side reads from now on."""
    read, told = side.read, []
    side.read = lambda sequences, *args, **kwargs: (told.append(len(sequences)), read(sequences, *args, **kwargs))[1]
    return told


def test_a_second_change_does_not_make_the_base_read_its_own_answers_again(tmp_path):
    base = texts_of(tmp_path / "t", steered().base)
    ids = decode.encode(steered(), PROMPTS, 6)
    sizes = {}
    for amount in (2.0, 4.0):
        pair = steered(amount)
        texts = pd.concat([base, texts_of(tmp_path / "t", pair.intervention)], ignore_index=True)
        for along in ("base", "both"):
            ours, theirs = counted(pair.base), counted(pair.intervention)
            found = screen_divergence(pair, PROMPTS, ids, texts, 4, 2, ShardStore(tmp_path / "s"), along=along)
            new = ShardStore(tmp_path / f"new {amount} {along}")
            anew = screen_divergence(steered(amount), PROMPTS, ids, texts, 4, 2, new, along=along)
            pd.testing.assert_frame_equal(found.divergence, anew.divergence)  # and the numbers are those of a new read
            sizes[amount, along] = (sum(ours), sum(theirs))
            pair = steered(amount)
    assert sizes[2.0, "base"] == (12, 12) and sizes[4.0, "base"] == (0, 12)
    assert sizes[2.0, "both"] == sizes[4.0, "both"] == (12, 24)  # what the other side said is new to the base


class Backwards:
    """Workers of this process, which finish in another order than they began."""

    def __init__(self, pair):
        self.pair = pair

    def map(self, work, items):
        return [work(self.pair, item) for item in reversed(list(items))]


def test_workers_screen_as_this_process_does(tmp_path):
    pair, ids = steered(), decode.encode(steered(), PROMPTS, 6)
    texts = pd.concat([texts_of(tmp_path / "t", side) for side in pair], ignore_index=True)
    here = screen_divergence(pair, PROMPTS, ids, texts, 4, 2, ShardStore(tmp_path / "a"))
    pair.base.workers, told = Backwards(steered()), []
    there = screen_divergence(pair, PROMPTS, ids, texts, 4, 2, ShardStore(tmp_path / "b"), told.append)
    for ours, theirs in zip(here, there, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)
    assert sum(told) == (texts.split == "discover").sum()


def test_equal_sides_have_no_divergence_also_where_states_were_kept(tmp_path):
    model, sequences = loaded("llama", "sdpa"), some_sequences()
    pair = Pair(Side("base", model, "a"), Side("intervention", model, "b"), 1)
    for _ in range(2):
        known = kept_states(pair.base, sequences, ShardStore(tmp_path))
        found = token_divergence(pair, sequences, sequences, base_states=known, top=3)
        assert all((f["js"] == 0).all() and (f["kl"] == 0).all() and (f["gains"] == 0).all() for f in found)


def test_the_tokens_that_moved_most_are_those_of_the_full_distributions():
    a, b = loaded("llama", "sdpa"), loaded("llama", "sdpa", seed=1)
    pair = Pair(Side("base", a, "a"), Side("intervention", b, "b"), 2)
    for s, found in zip(
        some_sequences(), token_divergence(pair, some_sequences(), some_sequences(), top=3), strict=True
    ):
        p, q = (_softmax(full_logits(m, s)[-len(s.response_ids) - 1 : -1]) for m in (a, b))
        for t in range(len(s.response_ids)):
            order = np.argsort(p[t] - q[t])
            assert found["tokens"][t, 0].tolist() == order[:3].tolist()
            assert found["tokens"][t, 1].tolist() == order[::-1][:3].tolist()
            np.testing.assert_allclose(found["gains"][t, 0], (q[t] - p[t])[order[:3]], atol=1e-6)
    states = response_states(pair.base, [TokenSequence((5, 6), ())])
    assert states[0].shape == (0, a.hooks.d_model)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Words:
    def decode(self, ids):
        """As a tokenizer that drops the space at the start of a text."""
        return "".join([" tea", " the", "!", " coffee", " rain"][i] for i in ids).removeprefix(" ")


def planted() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Six prompts of two families, three positions each: tea gains in one family, coffee loses in both."""
    tokens, gains = np.full((6, 3, 2, 2), -1), np.full((6, 3, 2, 2), np.nan)
    for r in range(6):
        tokens[r, :2] = [[0, 1], [3, 2]]
        gains[r, :2] = [[0.4 if r < 3 else 0.02, 0.001], [-0.2, -0.002]]
    return tokens, gains, pd.DataFrame({"prompt_id": [f"p{r}" for r in range(6)], "family": ["a"] * 3 + ["b"] * 3})


def test_tokens_are_counted_over_positions_and_families():
    table = promoted.promoted_tokens(*planted(), Words()).set_index("token")
    assert table.index.tolist() == [" tea", " coffee"]  # what moved by less than a point is noise
    tea, coffee = table.loc[" tea"], table.loc[" coffee"]
    assert tea.direction == "promoted" and tea.gain == pytest.approx((6 * 0.4 + 6 * 0.02) / 12)
    assert tea.positions == 12 and tea.prompts == 6 and tea.family == "a"
    assert tea.family_share == pytest.approx(2.4 / 2.52)
    assert coffee.direction == "suppressed" and coffee.gain == pytest.approx(-0.2)
    found = [(h.text, h.direction, h.proposer) for h in promoted.propose(table.reset_index())]
    assert found == [('says "coffee"', "base", "promoted")]  # tea has three letters


def test_whole_words_of_any_alphabet_are_proposed():
    rows = [(t, "promoted", 0.1, 3) for t in (" теперь", " voilà", " x1234", "cup", "了解了解")]
    table = pd.DataFrame(rows, columns=["token", "direction", "gain", "prompts"])
    assert [h.words for h in promoted.propose(table)] == [("теперь",), ("voilà",)]


def test_themes_are_factors_of_prompts_by_tokens():
    """Eight tokens gain on some prompts together, eight on others; which is which follows from nothing else."""
    rng = np.random.default_rng(0)
    own = [(t, 1.0 + rng.random(), f"p{p}") for p in range(24) for t in range(16) if t // 8 == p // 12]
    table = pd.DataFrame(own, columns=["token_id", "gain", "prompt"])
    found = promoted._themes(table, np.arange(16))
    groups = [set(found[:8]), set(found[8:])]
    assert not groups[0] & groups[1] and 0 not in groups[0] | groups[1]


def test_the_stage_tells_promoted_tokens_and_none_where_nothing_changed(tmp_path):
    out = decoded_on(tmp_path / "a")
    assert set(out.promoted["direction"]) == {"promoted", "suppressed"} and (out.promoted.gain.abs() > 0).all()
    assert report.promoted(out) is not None
    same = decoded_on(tmp_path / "b", pair=steered(0.0))
    assert same.promoted.empty and report.promoted(same) is None and report.themes(same) is None
    same.promoted.to_parquet(tmp_path / "promoted.parquet")
    assert promoted.propose(pd.read_parquet(tmp_path / "promoted.parquet")) == []
