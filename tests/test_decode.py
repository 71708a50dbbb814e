"""The decode stage on a tiny model: texts by their seeds alone, resumable at any point, and where the sides part."""

import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from driftbook import decode
from driftbook.discovery.decoding import TEXT_SCHEMA, decode_texts, text_seed
from driftbook.discovery.screen import keep_divergent, score_texts, screen_divergence
from driftbook.discovery.strategies import Ask, first_round, propensities
from driftbook.errors import BudgetError, PromptError
from driftbook.models.local import LocalEngine, Request
from driftbook.models.replay import TokenSequence
from driftbook.models.sampling import SamplingParams, filtered_probabilities
from driftbook.models.sides import Pair, Side
from driftbook.models.steering import SteerTap
from driftbook.parameters import Decode, Experiment
from driftbook.prompts import Prompt, PromptSet, load_saved, save_prompts
from driftbook.report import decode as report
from driftbook.store import ShardStore
from models import full_logits, generated, loaded
from test_divergence import brute_force

SPLITS = ["discover", "discover", "screen", "validate"]
PROMPTS = PromptSet.of(
    [
        Prompt(f"{word} and tea, {i} of them?", family="ab"[i % 2])
        for i, word in enumerate(["rain", "drums", "plans"] * 4)
    ],
    SPLITS * 3,
)
PARAMS = SamplingParams(6, temperature=1.0, top_p=1.0)


def pair_of(amount: float = 3.0) -> Pair:
    model = loaded("llama", "sdpa")
    v = torch.randn(model.hooks.d_model, generator=torch.Generator().manual_seed(0))
    taps = (SteerTap(1, "resid_post", v, amount),) if amount else ()
    return Pair(Side("base", model, "b"), Side("intervention", model, f"i{amount}", taps=taps), 1)


def texts_of(folder, side=None, samples: int = 2, seed: int = 0, params=PARAMS, asks=None, **options) -> pd.DataFrame:
    side = replace(side or pair_of().base, batch_size=options.pop("batch_size", 3), engine=None)
    ids = decode.encode(pair_of(), PROMPTS, params.max_new_tokens)
    asks = first_round(PROMPTS, samples, 10**6) if asks is None else asks
    options = {"shard": 5, **options}
    return decode_texts([side], PROMPTS, ids, asks, params, seed, ShardStore(folder), **options)


def content(texts: pd.DataFrame) -> pd.DataFrame:
    return texts.drop(columns="seconds")


# ---------------------------------------------------------------------------------------------------------------- texts


def test_every_text_that_is_asked_for_comes_once_in_its_order(tmp_path):
    told = []
    texts = texts_of(tmp_path, progress=told.append)
    asks = first_round(PROMPTS, 2, 10**6)
    assert sum(told) == len(texts) == 24
    assert texts.prompt_id.tolist() == [PROMPTS.prompts[a.prompt].prompt_id for a in asks]
    assert texts.sample_index.tolist() == [a.sample for a in asks]
    assert texts.split.tolist() == [PROMPTS.splits[a.prompt] for a in asks]
    assert texts.text_id.is_unique and texts.text_id.str.fullmatch("[0-9a-f]{16}").all()
    model = loaded("llama", "sdpa")
    ids = decode.encode(pair_of(), PROMPTS, PARAMS.max_new_tokens)["base"]
    for row, ask in zip(texts.itertuples(), asks, strict=True):
        # The answer to this prompt under this seed, alone: no text may stand beside another prompt.
        assert row.seed == text_seed(0, "base", PROMPTS.prompts[ask.prompt], ask.sample)
        alone = generated(model, [Request(ids[ask.prompt], row.seed)], PARAMS)
        assert alone == [(row.token_ids, row.finish_reason)]
        assert row.text == model.decode(row.token_ids)
        assert (row.token_ids[-1] in model.eos_ids) == (row.finish_reason == "eos")
        assert row.finish_reason == "eos" or len(row.token_ids) == PARAMS.max_new_tokens
    assert texts.token_ids.map(tuple).nunique() > 20
    assert set(TEXT_SCHEMA.names) <= set(texts.columns)


@pytest.mark.numeric
def test_a_text_follows_from_its_seed_and_from_nothing_else(tmp_path):
    texts = texts_of(tmp_path / "a")
    for name, options in {"b": dict(shard=100), "c": dict(batch_size=1), "d": dict(shard=1, batch_size="auto")}.items():
        pd.testing.assert_frame_equal(content(texts_of(tmp_path / name, **options)), content(texts))
    asks = first_round(PROMPTS, 2, 10**6)
    some = [asks[i] for i in (17, 3, 8)]
    pd.testing.assert_frame_equal(
        content(texts_of(tmp_path / "e", asks=some)), content(texts).iloc[[17, 3, 8]].reset_index(drop=True)
    )
    other = texts_of(tmp_path / "a", seed=1)
    assert not set(other.text_id) & set(texts.text_id)
    assert (other.token_ids.map(tuple) == texts.token_ids.map(tuple)).mean() < 0.3


def test_sides_draw_independently_also_from_the_same_model(tmp_path):
    pair = pair_of(0.0)
    base, other = (texts_of(tmp_path, side) for side in pair)
    assert not set(base.seed) & set(other.seed) and not set(base.text_id) & set(other.text_id)
    assert (base.token_ids.map(tuple) == other.token_ids.map(tuple)).mean() < 0.3


def test_finished_shards_come_from_the_store(tmp_path, monkeypatch):
    first = texts_of(tmp_path)
    monkeypatch.setattr(LocalEngine, "generate", lambda *a: pytest.fail("the model ran again"))
    told = []
    pd.testing.assert_frame_equal(texts_of(tmp_path, progress=told.append), first)
    assert sum(told) == len(first)
    for change in (dict(seed=1), dict(params=SamplingParams(6, 0.9, 1.0)), dict(side=pair_of().intervention)):
        with pytest.raises(pytest.fail.Exception):
            texts_of(tmp_path, **change)


def test_a_damaged_shard_is_made_again(tmp_path):
    first = texts_of(tmp_path)
    shard = sorted(tmp_path.rglob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        again = texts_of(tmp_path)
    pd.testing.assert_frame_equal(content(again), content(first))
    assert pq.read_table(shard).num_rows > 0


def test_nothing_asked_is_an_empty_table(tmp_path):
    texts = texts_of(tmp_path, asks=[])
    assert len(texts) == 0 and set(TEXT_SCHEMA.names) <= set(texts.columns)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_decode import texts_of
texts = 0
def die(n):
    global texts
    texts += 1
    if texts == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
texts_of(Path(sys.argv[1]), samples=4, shard=3, progress=die)
"""


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    """SIGKILL in the middle: finished shards are read, the one in flight is made again, and no text differs."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parent), "23"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    held = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.parquet")}
    assert len(held) == 22 // 3
    resumed = texts_of(tmp_path / "killed", samples=4, shard=3)
    assert all(p.stat().st_mtime_ns == t for p, t in held.items())
    untouched = texts_of(tmp_path / "whole", samples=4)
    pd.testing.assert_frame_equal(content(resumed), content(untouched))
    assert len(resumed) == 48 and resumed.text_id.is_unique


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_keep_their_splits_and_the_limit_is_a_sample(tmp_path):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(400)]
    (tmp_path / "p.txt").write_text("".join(" ".join(words[i : i + 6]) + "\n" for i in range(0, 360, 6)))
    shares = {"discover": 0.5, "screen": 0.2, "validate": 0.3}
    whole = decode.load_prompts(["p.txt"], tmp_path, shares)
    assert set(whole.splits) == set(shares)
    some = decode.load_prompts(["p.txt"], tmp_path, shares, limit=20)
    assert len(some) == some.units == 20
    save_prompts(tmp_path, whole.prompts, range(len(whole)))
    assert load_saved(tmp_path) == whole.by_id()
    assert pd.read_parquet(tmp_path / "prompts.parquet").columns.tolist() == [
        *("prompt_id", "text", "system", "messages", "family", "source", "split", "unit", "n_tokens")
    ]
    decode.no_prompts(whole)
    with pytest.raises(PromptError, match="no prompt fell into the split 'validate'"):
        decode.no_prompts(PromptSet.of(whole.prompts, ["discover"] * len(whole.prompts)))


def test_a_prompt_that_leaves_no_room_is_named():
    long = PromptSet.of([Prompt("tea " * 400, source="p.txt:7")], ["discover"])
    with pytest.raises(PromptError, match=r"p\.txt:7"):
        decode.encode(pair_of(), long, 300)


def test_a_budget_below_the_first_round_is_refused():
    assert len(first_round(PROMPTS, 2, 48)) == 24
    with pytest.raises(BudgetError, match=r"max_texts 47 is less than the 48 texts of the first round"):
        first_round(PROMPTS, 2, 47)


# --------------------------------------------------------------------------------------------------------------- screen


def screened(tmp_path, pair, samples: int = 2, tokens: int = 4):
    ids = decode.encode(pair, PROMPTS, PARAMS.max_new_tokens)
    texts = pd.concat([texts_of(tmp_path / "t", side) for side in pair], ignore_index=True)
    told = []
    found = screen_divergence(pair, PROMPTS, ids, texts, tokens, samples, ShardStore(tmp_path / "s"), told.append)
    return found.divergence, found.profile, texts, told


@pytest.mark.numeric
def test_the_screen_is_the_exact_divergence_along_sampled_responses(tmp_path):
    """Two checkpoints, so that brute force needs no hooks."""
    a, b = loaded("llama", "sdpa"), loaded("llama", "sdpa", seed=1)
    pair = Pair(Side("base", a, "a"), Side("intervention", b, "c"), 2)
    divergence, profile, texts, told = screened(tmp_path, pair)
    discover = [p.prompt_id for p, s in zip(PROMPTS.prompts, PROMPTS.splits, strict=True) if s == "discover"]
    assert sorted(divergence.prompt_id) == sorted(discover) and sum(told) == 24
    ids = decode.encode(pair, PROMPTS, 6)["base"]
    kls, jss, first = [], [], []
    for row in texts[texts.prompt_id == discover[1]].itertuples():
        index = [p.prompt_id for p in PROMPTS.prompts].index(row.prompt_id)
        kl, js = brute_force(a, b, TokenSequence(ids[index], tuple(row.token_ids[:4])))
        kls += [kl.mean()] if row.side == "base" else []
        jss.append(js.mean())
    mine = divergence.set_index("prompt_id").loc[discover[1]]
    assert mine.kl == pytest.approx(np.mean(kls), rel=1e-3) and mine.js == pytest.approx(np.mean(jss), rel=1e-3)
    assert mine.js_low < mine.js < mine.js_high and mine.n_tokens == sum(
        min(4, len(t)) for t in texts[texts.prompt_id == discover[1]].token_ids
    )
    for row in texts[texts.split == "discover"].itertuples():
        index = [p.prompt_id for p in PROMPTS.prompts].index(row.prompt_id)
        first.append(brute_force(a, b, TokenSequence(ids[index], tuple(row.token_ids[:4])))[1][0])
    assert profile.js[0] == pytest.approx(np.mean(first), rel=1e-3) and profile.position.tolist() == [0, 1, 2, 3]
    again = screen_divergence(
        pair, PROMPTS, decode.encode(pair, PROMPTS, 6), texts, 4, 2, ShardStore(tmp_path / "s"), told.append
    )
    pd.testing.assert_frame_equal(again[0], divergence)


def test_a_wider_screen_is_not_read_from_a_narrower_one(tmp_path):
    """Responses are 6 tokens at most: the same tokens are scored, and the profile is as long as was asked for."""
    pair = pair_of()
    narrow, wide = (screened(tmp_path, pair, tokens=tokens) for tokens in (6, 9))
    pd.testing.assert_frame_equal(narrow[0], wide[0], rtol=1e-3)
    assert len(narrow[1]) == 6 and len(wide[1]) == 9 and wide[1].n[6:].eq(0).all()


@pytest.mark.numeric
def test_the_same_model_has_no_divergence_and_stronger_steering_has_more(tmp_path):
    sizes = []
    for amount in (0.0, 0.5, 4.0):
        divergence, *_ = screened(tmp_path, pair_of(amount))
        sizes.append(divergence.js.mean())
    assert sizes[0] == 0 < sizes[1] < sizes[2] < math.log(2)


@pytest.mark.parametrize("params", [PARAMS, SamplingParams(6, temperature=0.7, top_p=0.9)])
def test_a_text_is_scored_as_both_sides_sample_it(tmp_path, params):
    a, b = loaded("llama", "sdpa"), loaded("llama", "sdpa", seed=1)
    pair = Pair(Side("base", a, "a"), Side("intervention", b, "c"), 2)
    ids = decode.encode(pair, PROMPTS, params.max_new_tokens)
    texts = pd.concat([texts_of(tmp_path / "t", side, params=params) for side in pair], ignore_index=True)
    texts = texts[texts.split == "discover"]
    found = score_texts(pair, PROMPTS, ids, texts, params, ShardStore(tmp_path / "s"), shard=7)
    index = {p.prompt_id: i for i, p in enumerate(PROMPTS.prompts)}
    # the nucleus is read a little wider than it was drawn from: rounding decides about its edge
    wider = SamplingParams(6, params.temperature, min(1.0, params.top_p + 0.01))
    for row, log_ratio in zip(texts.itertuples(), found, strict=True):
        sequence = TokenSequence(ids["base"][index[row.prompt_id]], tuple(row.token_ids))
        log = []
        for model in (a, b):
            logits = torch.from_numpy(full_logits(model, sequence))[-len(row.token_ids) - 1 : -1]
            chances = filtered_probabilities(logits, wider)
            log.append(float(chances[range(len(row.token_ids)), list(row.token_ids)].double().log().sum()))
        assert log_ratio == pytest.approx(log[1] - log[0], rel=1e-3, abs=1e-3)
        assert log[row.side == "intervention"] > -math.inf
    again = score_texts(pair, PROMPTS, ids, texts, params, ShardStore(tmp_path / "s"), shard=7)
    assert np.array_equal(found, again)


def test_likelihoods_average_as_likelihoods_must(tmp_path):
    """E[q / p] is 1 over the base's texts: what makes counts by likelihood unbiased."""
    model, params = loaded("llama", "sdpa"), SamplingParams(2, temperature=1.0, top_p=1.0)
    pair = pair_of(0.3)
    ids = decode.encode(pair, PROMPTS, 2)
    asks = [Ask(0, k, 0) for k in range(400)]
    texts = texts_of(tmp_path / "t", pair.base, params=params, asks=asks, shard=400, batch_size=400)
    ratio = np.exp(score_texts(pair, PROMPTS, ids, texts, params, ShardStore(tmp_path / "s"), shard=400))
    assert model is pair.base.model and ratio.std() > 0.02
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))


AUTO = {"samples": 1, "tokens": 4, "likelihood": "auto"}


def test_sides_that_are_near_are_scored_and_others_are_not(plain, tmp_path):
    for amount, near in ((0.0, True), (0.05, True), (30.0, False)):
        out = decoded(tmp_path / str(amount), pair_of(amount), screen=AUTO)
        told = out.divergence.told
        assert (told.mean() < 0.5) == near and out.texts.log_ratio.notna().any() == near
        if near:
            scored = out.texts[out.texts.log_ratio.notna()]
            assert set(scored.split) == {"discover"} and len(scored) == (out.texts.split == "discover").sum()
        assert amount or ((told == 0).all() and (scored.log_ratio == 0).all())
    assert decoded(tmp_path, pair_of(30.0), screen={"likelihood": "always"}).texts.log_ratio.notna().any()
    _, never = plain
    assert never.texts.log_ratio.isna().all() and "told" not in never.divergence
    assert decoded(tmp_path, pair_of(0.0), screen=AUTO, temperature=0.0).texts.log_ratio.isna().all()


def test_no_prompt_becomes_invisible():
    divergence = pd.DataFrame({"prompt_id": list("abcdefgh"), "js": [0.1, 0.9, 0.3, 0.2, 0.8, 0.0, 0.5, 0.4]})
    out = keep_divergent(divergence, 0.25, 0.1)
    assert out.prompt_id[out.kept].tolist() == ["b", "e"]
    assert out.propensity.tolist() == [1.0 if k else 0.1 for k in out.kept]
    assert keep_divergent(divergence, 0.01, 0.2).kept.sum() == 1


def test_weights_by_inverse_propensity_count_every_prompt_once():
    rng = np.random.default_rng(0)
    counts = [40, 3, 11, 2, 5]
    rows = [
        ("discover", side, f"p{i}") for side in ("base", "intervention") for i, n in enumerate(counts) for _ in range(n)
    ]
    rows += [("validate", side, f"v{i}") for side in ("base", "intervention") for i in range(3) for _ in range(2)]
    texts = pd.DataFrame(rows, columns=["split", "side", "prompt_id"]).sample(frac=1, random_state=0)
    texts["text_id"] = range(len(texts))
    propensity = propensities(texts)
    assert propensity.max() == 1 and (propensity > 0).all()
    assert (propensity[texts.split == "validate"] == 1).all()
    hit = rng.random(len(texts)) < np.where(texts.prompt_id == "p0", 0.9, 0.1)
    mine = (texts.split == "discover") & (texts.side == "base")
    weighted = np.average(hit[mine], weights=1 / propensity[mine])
    per_prompt = pd.Series(hit[mine]).groupby(texts.prompt_id[mine].to_numpy()).mean().mean()
    assert weighted == pytest.approx(per_prompt)
    assert abs(hit[mine].mean() - per_prompt) > 0.2


# ------------------------------------------------------------------------------------------------------------ the stage


def run_of(folder, seed: int = 0, **section) -> SimpleNamespace:
    values = {
        "samples": 2, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "shard": 16,
        "screen": {"samples": 1, "tokens": 4},
        "sampling": {"strategy": "screened", "max_texts": 80, "rounds": 2}, **section,
    }  # fmt: skip
    return SimpleNamespace(
        section=Decode.model_validate(values),
        params=Experiment(experiment="x"),
        cache=folder,
        data=folder,
        seed=seed,
        metrics={},
        metric=lambda name, value: None,
        progress=lambda total, label, unit="": SimpleNamespace(update=lambda n: None),
    )


def decoded(folder, pair=None, **section):
    pair = pair or pair_of()
    run = run_of(folder, **section)
    return decode.decode_rounds(run, pair, PROMPTS, decode.encode(pair, PROMPTS, 6))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The stage as it runs by default, and the folder of its store."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, decoded(folder)


def test_rounds_follow_divergence_inside_the_budget(plain):
    _, out = plain
    assert len(out.texts) == 80 and out.texts.text_id.is_unique and out.rounds["round"].tolist() == [0, 1, 2]
    assert out.rounds.texts.sum() == 80 and out.rounds.tokens.sum() == out.tokens == sum(map(len, out.texts.token_ids))
    counts = out.texts.groupby(["split", "side", "prompt_id"]).size()
    for side in ("base", "intervention"):
        # The design of what is tested later was not chosen by what was found.
        assert (counts["screen", side] == 2).all() and (counts["validate", side] == 2).all()
    assert counts["discover", "base"].equals(counts["discover", "intervention"])
    kept = out.divergence.set_index("prompt_id").kept
    extra = counts["discover", "base"] - 2
    assert kept.sum() == 3 and extra[kept[kept].index].sum() > 4 * extra[kept[~kept].index].sum()
    n = out.texts.groupby(["split", "side", "prompt_id"]).text_id.transform("size")
    np.testing.assert_allclose(out.texts.propensity * n.groupby(out.texts.split).transform("max"), n)


def test_a_second_run_reads_what_the_first_one_made(plain, monkeypatch):
    folder, first = plain
    monkeypatch.setattr(LocalEngine, "generate", lambda *a: pytest.fail("the model ran again"))
    second = decoded(folder)
    pd.testing.assert_frame_equal(first.texts, second.texts)
    pd.testing.assert_frame_equal(first.divergence, second.divergence)
    assert first.decode_seconds == second.decode_seconds > 0


class Killed(BaseException):
    pass


def killed_at(label: str, folder: Path, **section) -> None:
    """The stage, left when the progress that is called ``label`` tells of its eleventh text."""
    run, pair, told = run_of(folder, shard=4, **section), pair_of(), []

    def update(n):
        told.extend([None] * n)
        if len(told) >= 11:
            raise Killed

    run.progress = lambda total, name, unit="": SimpleNamespace(update=update if name == label else lambda n: None)
    with pytest.raises(Killed):
        decode.decode_rounds(run, pair, PROMPTS, decode.encode(pair, PROMPTS, 6))


def test_a_stage_that_is_killed_in_a_later_round_asks_for_the_same_texts_again(plain, tmp_path):
    """Killed while the second side answers: all but one shard of four texts are read, rounds and texts are the
    same as in shards of sixteen."""
    killed_at("round 1", tmp_path / "killed")
    _, whole = plain
    stored = {p.name for p in (tmp_path / "killed").rglob("*.parquet")}
    assert whole.rounds.texts.tolist() == [48, 16, 16] and len(stored) == (48 + 8) // 4
    resumed = decoded(tmp_path / "killed", shard=4)
    assert stored < {p.name for p in (tmp_path / "killed").rglob("*.parquet")}
    pd.testing.assert_frame_equal(content(resumed.texts), content(whole.texts))
    pd.testing.assert_frame_equal(content(resumed.rounds), content(whole.rounds))
    assert resumed.texts.text_id.is_unique


def test_costs_are_counted_of_the_sides_that_answer_here(plain):
    (_, out), pair = plain, pair_of()
    made = decode.made_here(pair, out.texts)
    assert made == {"texts": 80.0, "tokens": float(out.tokens), "seconds": pytest.approx(out.decode_seconds)}
    busy = decode.utilisation_of(pair, made)
    assert 0 < busy["matrix_share"] < 1 and "of what square matrix products in float32 reach" in report.speed_caption(
        pair, made, busy
    )
    pair.intervention.engine = SimpleNamespace(here=False)
    assert decode.made_here(pair, out.texts)["texts"] == 40
    pair.base.engine = SimpleNamespace(here=False)
    nothing = decode.made_here(pair, out.texts)
    assert set(nothing.values()) == {0.0} and decode.utilisation_of(pair, nothing) == {}
    assert report.speed_caption(pair, nothing, {}).startswith("Nothing was decoded here")


def test_without_a_screen_every_prompt_is_kept(tmp_path):
    out = decoded(tmp_path, screen={"enabled": False})
    assert out.divergence.js.isna().all() and out.divergence.kept.all() and (out.divergence.propensity == 1).all()
    counts = out.texts[out.texts.split == "discover"].groupby(["side", "prompt_id"]).size()
    assert counts.max() - counts.min() <= 2  # uniform, up to the rounding of two rounds
    assert decode.mean_divergence(out.divergence) is None


def test_tables_are_written_with_their_schema(plain, tmp_path):
    pair, run, (_, out) = pair_of(), run_of(tmp_path), plain
    metrics = {}
    run.metric = metrics.__setitem__
    ids = decode.encode(pair, PROMPTS, 6)
    decode.write(run, PROMPTS, ids, pair, out)
    assert pq.read_schema(tmp_path / "texts.parquet").equals(TEXT_SCHEMA, check_metadata=False)
    prompts = pd.read_parquet(tmp_path / "prompts.parquet")
    assert prompts.n_tokens.tolist() == [len(i) for i in ids["base"]] and prompts.split.tolist() == PROMPTS.splits
    assert {"prompt_id", "kl", "js", "kept", "propensity"} <= set(pd.read_parquet(tmp_path / "divergence.parquet"))
    assert metrics["texts"] == 80 and metrics["prompts_screened"] == 6 and metrics["prompts_kept"] == 3
    said = report.answer(out, decode.family_divergence(out.divergence, PROMPTS))
    assert said.startswith("80 answers were decoded; next-token distributions differ by")
    assert not (tmp_path / "unanswered.parquet").exists()
    out.texts.loc[:2, "finish_reason"] = ["cut", "content_filter", "nothing"]
    decode.write(run, PROMPTS, ids, pair, out)
    assert (metrics["texts"], metrics["texts_unanswered"]) == (77, 3)
    assert [len(pd.read_parquet(tmp_path / f"{name}.parquet")) for name in ("texts", "unanswered")] == [77, 3]
