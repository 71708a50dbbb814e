"""Amplified answers in an experiment: they propose, ordinary ones are tested, and growth with the change is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from driftbook import cluster, decode, validate
from driftbook.discovery.amplification import COHERENCE, ROUND, _scrambled, amplified_answers, coherence, ordinary
from driftbook.discovery.hypotheses import Hypothesis, from_frame, to_frame
from driftbook.errors import ParameterError
from driftbook.evidence.amplification import LEVEL, dose_response, with_doses
from driftbook.models.sides import Pair, Side
from driftbook.parameters import Cluster, load_experiment
from driftbook.report import decode as report
from driftbook.report import validate as validate_report
from driftbook.store import ShardStore
from driftbook.workbook import examples
from models import fresh
from planted import FILLER, HYPOTHESES, run_of, texts_of
from test_decode import PROMPTS, content, killed_at, pair_of
from test_decode import decoded as decoded_on
from test_decode import run_of as decode_run
from test_validate import stages

TEA = Hypothesis("mentions tea", "intervention", words=("tea",))


def said(rng, share: float, word: str = "tea") -> str:
    words = list(rng.choice(FILLER, size=20))
    if rng.random() < share:
        words[2] = word
    return " ".join(words)


def material_of(folder, shares: dict[float, float], ordinary_share=0.03, hypotheses=(*HYPOTHESES, TEA), strange=()):
    """Planted texts with amplified answers beside them: ``shares`` says how often those mention tea."""
    rng, texts = np.random.default_rng(1), texts_of().assign(strength=0.0)
    texts["text"] = [
        said(rng, ordinary_share) if r.side == "intervention" and "might" not in r.text else r.text
        for r in texts.itertuples()
    ]
    rows = []
    for split in ("discover", "validate"):
        for p in sorted(set(texts.loc[texts["split"] == split, "prompt_id"]))[:40]:
            for a, share in shares.items():
                rows.append((f"{p}-{a:g}", "intervention", p, "family0", split, ROUND, 1.0, said(rng, share), a))
    more = pd.DataFrame(rows, columns=[*texts.columns])
    run = run_of(folder, pd.concat([texts, more], ignore_index=True), hypotheses)
    table = pd.DataFrame({"strength": [0.0, *shares], "used": [False, *(a not in strange for a in shares)]})
    table.reindex(columns=list(COHERENCE)).to_parquet(folder / "decode" / "amplified.parquet")
    return run


# ------------------------------------------------------------------------------------------------------- who reads what


def test_whoever_counts_or_tests_reads_ordinary_answers_alone(tmp_path):
    run = material_of(tmp_path, {1.0: 0.4, 3.0: 0.9})
    folder = tmp_path / "decode"
    every = pd.read_parquet(folder / "texts.parquet")
    plain = set(ordinary(every)["text_id"])
    assert len(every) > len(plain) == (every["strength"] == 0).sum()
    every.assign(token_ids=[[1]] * len(every), log_ratio=np.nan).to_parquet(folder / "texts.parquet")
    assert set(cluster.load_texts(folder)["text_id"]) < plain
    assert set(cluster.load_answers(folder)["text_id"]) == plain
    material = validate.load(run)
    assert set(material.texts["text_id"]) == plain and set(material.paired()[0]["text_id"]) == plain
    assert set(material.amplified["split"]) == {"validate"}
    beside = material.amplified[material.amplified["strength"] == 0]
    assert set(beside["side"]) == {"base"} and set(beside["text_id"]) < plain


def test_answers_to_read_beside_claims_are_ordinary_ones(tmp_path):
    material_of(tmp_path, {3.0: 1.0})
    (tmp_path / "decode" / "data").mkdir()
    for name in ("texts", "prompts"):
        (tmp_path / "decode" / f"{name}.parquet").rename(tmp_path / "decode" / "data" / f"{name}.parquet")
    every = pd.read_parquet(tmp_path / "decode" / "data" / "texts.parquet")
    shown = examples.Material(tmp_path, None).texts
    assert set(shown["text_id"]) == set(ordinary(every)["text_id"]) < set(every["text_id"])


def test_a_strength_that_breaks_the_text_is_not_read(tmp_path):
    material_of(tmp_path, {1.0: 0.4, 3.0: 0.9}, strange=(3.0,))
    assert set(amplified_answers(tmp_path / "decode", "discover")["strength"]) == {0.0, 1.0}


# ------------------------------------------------------------------------------------------------------------ proposals


def test_what_is_faint_is_proposed_from_amplified_answers(tmp_path):
    """No ordinary answer mentions tea; of the exaggerated ones many do, and the base's own never."""
    material_of(tmp_path, {1.0: 0.3, 3.0: 0.8}, ordinary_share=0.0)
    plain = to_frame(HYPOTHESES)
    both = from_frame(cluster.propose_more(tmp_path / "decode", plain, Cluster(hypotheses=6), None))
    added = [h for h in both if h.proposer == "amplified"]
    assert [h for h in both if h.proposer != "amplified"] == HYPOTHESES
    assert any("tea" in h.words and h.direction == "intervention" for h in added) and len(added) <= 3
    (tmp_path / "decode" / "amplified.parquet").unlink()
    assert cluster.propose_more(tmp_path / "decode", plain, Cluster(), None) is plain


# -------------------------------------------------------------------------------------------------------- dose-response


def test_the_dose_response_is_plain_counting_over_held_out_prompts(tmp_path):
    run = material_of(tmp_path, {1.0: 0.3, 3.0: 0.8})
    found = stages(run)
    doses = dose_response(found.material, found.outcomes, 0.05).set_index(["text", "strength"]).loc["mentions tea"]
    every = pd.read_parquet(tmp_path / "decode" / "texts.parquet")
    held = every[(every["split"] == "validate")]
    chosen = set(held.loc[held["strength"] > 0, "prompt_id"])
    held = held[held["prompt_id"].isin(chosen)].assign(holds=held["text"].str.contains(r"\btea\b"))
    assert doses.index.tolist() == [-1.0, 0.0, 1.0, 3.0] and (doses["prompts"] == 40).all()
    for a, row in doses.iterrows():
        own = held[(held["strength"] == max(a, 0)) & (held["side"] == ("base" if a < 0 else "intervention"))]
        share = own.groupby("prompt_id")["holds"].mean()
        assert row["value"] == pytest.approx(share.mean())
        if a > 0:  # one answer a prompt: Wilson's interval, by hand
            z, n, p = student.isf(0.025, 39), 40, share.mean()
            n = n - 1  # as many trials as the unbiased variance is worth
            middle, half = p + z**2 / 2 / n, z * np.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
            low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
            assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert doses["confirmed"].tolist() == [False, False, False, True]
    assert doses["value"].is_monotonic_increasing


def test_a_claim_that_holds_only_under_amplification_is_told_as_one(tmp_path):
    found = stages(material_of(tmp_path, {3.0: 0.5}, ordinary_share=0.005))
    doses = dose_response(found.material, found.outcomes, 0.05)
    claims = with_doses(found.claims, doses)
    own = claims[~claims["proposer"].isin(["panel", "words"])].set_index("text")
    tea, hedges = own.loc["mentions tea"], own.loc["hedges"]
    assert not tea["confirmed"] and tea["only_amplified"] and tea["status"] == "only when amplified"
    assert tea["amplified"].startswith("mentions tea: when exaggerated threefold, ")
    assert "% of answers (" in tea["amplified"] and "; in ordinary answers " in tea["amplified"]
    assert hedges["confirmed"] and not hedges["only_amplified"]
    answer = validate.verdict(run_like(found), found.material, claims, found.words)
    assert "Shown only when the change is exaggerated: mentions tea" in answer.moved
    figure = validate_report.doses(doses, claims)
    assert figure is not None and validate_report.dose_table(doses) is not None


def test_the_picture_shows_what_is_told_of_ordinary_and_of_amplified_answers():
    names = [f"c{i}" for i in range(8)]
    claims = pd.DataFrame({"hypothesis_id": names, "unit": "share", "like": "", "amplified": names})
    claims = claims.assign(confirmed=[i < 5 for i in range(8)], only_amplified=[i >= 5 for i in range(8)])
    rows = [(n, n, a, 0.1, 0.0, 0.2) for n in names for a in (-1.0, 0.0, 3.0)]
    table = pd.DataFrame(rows, columns=["hypothesis_id", "text", "strength", "value", "low", "high"])

    def shown(claims):
        figure = validate_report.doses(table, claims)
        return figure and [t.name for t in figure.plotly.data if t.name]

    assert shown(claims) == ["c0", "c1", "c5", "c6"]
    assert shown(claims[claims["only_amplified"]]) == ["c5", "c6", "c7"]
    assert shown(claims.assign(only_amplified=False)) == ["c0", "c1", "c2", "c3"]
    assert shown(claims.assign(like="c9")) is None


def run_like(found):
    return SimpleNamespace(section=SimpleNamespace(alpha=0.05), input=lambda stage: Path("nowhere"))  # all answers came


def test_without_a_difference_nothing_is_claimed_of_amplified_answers(tmp_path):
    """Equal sides write the same texts at every strength: over many such experiments, claims are as rare as allowed."""
    found, claimed = stages(material_of(tmp_path, {1.0: 0.1, 3.0: 0.1}, 0.1)), 0
    texts = found.material.texts
    same = texts[(texts["side"] == "base") & (texts["split"] == "validate")].drop_duplicates("prompt_id")
    for seed in range(10):
        other = np.random.default_rng(seed).permutation(same["text"].to_numpy())
        amplified = pd.concat([same.assign(strength=0.0), same.assign(side="intervention", strength=3.0, text=other)])
        doses = dose_response(replace(found.material, amplified=amplified), found.outcomes, 0.05)
        claimed += doses["confirmed"].any()
    assert claimed <= 1 and pytest.approx(0.005) == LEVEL * 0.05


def test_without_amplified_answers_claims_stay_as_they_are(tmp_path):
    found = stages(run_of(tmp_path, texts_of()))
    doses = dose_response(found.material, found.outcomes, 0.05)
    claims = with_doses(found.claims, doses)
    assert doses.empty and not claims["only_amplified"].any() and (claims["amplified"] == "").all()
    pd.testing.assert_frame_equal(claims[found.claims.columns.tolist()], found.claims)
    assert validate_report.doses(doses, claims) is None and validate_report.dose_table(doses) is None


# ----------------------------------------------------------------------------------------------------- the decode stage


AMPLIFY = {"strengths": [1.0, 3.0], "share": 0.3, "beginnings": 0}


def test_amplified_answers_are_part_of_the_budget(tmp_path):
    out = decoded_on(tmp_path, amplify=AMPLIFY)
    assert len(out.texts) + len(out.amplified) <= 80 and len(out.amplified) == 24
    assert set(out.texts["strength"]) == {0.0} and set(out.amplified["side"]) == {"intervention"}
    counts = out.amplified.groupby(["split", "strength"]).size()
    assert counts.to_dict() == {(s, a): 6 for s in ("discover", "validate") for a in (1.0, 3.0)}
    asked = out.amplified.groupby("strength")["prompt_id"].apply(sorted)
    assert asked[1.0] == asked[3.0]
    assert set(out.amplified["round"]) == {ROUND}
    assert out.strengths["strength"].tolist() == [0.0, 1.0, 3.0] and not out.strengths["used"][0]
    plain = decoded_on(tmp_path, sampling={"strategy": "screened", "max_texts": 56, "rounds": 2})
    pd.testing.assert_frame_equal(plain.texts, out.texts)  # ordinary sampling is what it is without them
    strengths, read = report.amplified(out, PROMPTS)
    assert strengths is not None and read is not None and report.amplified(plain, PROMPTS) == (None, None)


def test_equal_sides_give_ordinary_answers_at_every_strength(tmp_path):
    out = decoded_on(tmp_path, pair=pair_of(0.0), amplify=AMPLIFY)
    by = {a: own.set_index(["prompt_id", "sample_index"])["text"] for a, own in out.amplified.groupby("strength")}
    assert by[1.0].equals(by[3.0])
    plain = out.texts[out.texts["side"] == "intervention"].set_index(["prompt_id", "sample_index"])["text"]
    both = by[1.0].index.intersection(plain.index)
    assert len(both) and by[1.0][both].equals(plain[both])


def test_a_stage_that_is_killed_while_it_amplifies_loses_one_shard(tmp_path):
    """Killed at the eleventh of 24 amplified answers, in shards of four: two stay, and no text differs."""
    killed_at("amplified answers", tmp_path / "killed", amplify=AMPLIFY)
    stored = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.parquet")}
    assert len(stored) == 48 // 4 + 2
    resumed, whole = (decoded_on(tmp_path / name, shard=4, amplify=AMPLIFY) for name in ("killed", "whole"))
    pd.testing.assert_frame_equal(content(resumed.every), content(whole.every))
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.parquet")}
    assert stored.items() < kept.items()


def test_texts_are_written_with_their_strength(tmp_path):
    run, pair = decode_run(tmp_path, amplify=AMPLIFY), pair_of()
    ids = decode.encode(pair, PROMPTS, 6)
    figures = {}
    run.metric = lambda name, value: figures.update({name: value})
    decode.write(run, PROMPTS, ids, pair, decode.decode_rounds(run, pair, PROMPTS, ids))
    texts = pd.read_parquet(tmp_path / "texts.parquet")
    assert texts.groupby("strength").size().to_dict() == {0.0: figures["texts"], 1.0: 12, 3.0: 12}
    assert figures["texts_amplified"] == 24 and texts["text_id"].is_unique
    used = set(pd.read_parquet(tmp_path / "amplified.parquet").query("used")["strength"])
    assert set(amplified_answers(tmp_path, "discover")["strength"]) == used | ({0.0} if used else set())


def test_a_strength_whose_answers_loop_is_seen(tmp_path):
    pair, ids = pair_of(), decode.encode(pair_of(), PROMPTS, 6)
    out = decoded_on(tmp_path, amplify=AMPLIFY)
    both = pd.concat([out.texts, out.amplified], ignore_index=True)
    both.loc[both["strength"] == 3, "text"] = "the end of the end of the end of the end of the end of it"
    both.loc[both["strength"] != 3, "text"] = "The rain falls on the roof."
    table = coherence(pair, PROMPTS, ids, both, ShardStore(tmp_path / "c")).set_index("strength")
    assert table["broken"].tolist() == [0.0, 0.0, 1.0] and not table.loc[3.0, "used"] and table.loc[1.0, "used"]
    assert "3 breaks the text" in report.strengths_title(table.reset_index())


def test_strange_tokens_are_seen_by_both_sides(tmp_path):
    """Answers of tokens that neither side would ever draw, beside a side's own."""
    model, other = fresh("llama", "sdpa"), fresh("llama", "sdpa", seed=4)
    with_head(model)
    with_head(other)
    pair = Pair(Side("base", model, "a"), Side("intervention", other, "b"), 2)
    out = decoded_on(tmp_path, pair=pair, amplify=AMPLIFY)
    both = pd.concat([out.texts, out.amplified], ignore_index=True)
    ids = decode.encode(pair, PROMPTS, 6)
    worst = [399, 398, 397, 396]
    both.loc[both["strength"] == 3, "token_ids"] = pd.Series([worst] * len(both))
    table = coherence(pair, PROMPTS, ids, both, ShardStore(tmp_path / "c")).set_index("strength")
    assert table.loc[0.0, "strangeness"] < 0.5 < table.loc[3.0, "strangeness"] and not table.loc[3.0, "used"]


@pytest.mark.parametrize("text", ["the kettle is on and tea is nearly ready", "喝一杯热茶会对你有帮助，今天天气很好。"])
def test_words_in_random_order_are_those_of_the_text_in_every_script(text):
    found = _scrambled(text, np.random.default_rng(0))
    assert sorted(found) == sorted(text) and found != text
    assert (sorted(found.split()) == sorted(text.split())) == (" " in text)


def with_head(model) -> None:
    """Some tokens are likely and some never come, whatever was said."""
    width = model.model.config.vocab_size
    head = torch.nn.Linear(model.model.config.hidden_size, width)
    with torch.no_grad():
        head.weight.mul_(0.05)
        head.bias.copy_(-torch.arange(width) / 20)
    model.model.lm_head = head.requires_grad_(False)


# ----------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("intervention: {kind: texts, path: params/x.csv}\n", "decode.amplify needs the next tokens of both sides"),
        ("intervention: {kind: prompt, system: Be brief.}\n", "decode.amplify.by coefficient needs a change that has"),
    ],
)
def test_an_experiment_that_cannot_amplify_is_refused_at_once(tmp_path, more, expected):
    assert expected in refused(tmp_path, "{by: coefficient}", more)


def test_the_budget_must_hold_the_first_round_beside_the_share(tmp_path):
    said = refused(tmp_path, "{share: 0.5}", "", "sampling: {max_texts: 40}, samples: 1, ")
    assert "decode.sampling.max_texts: 20 without the share of decode.amplify" in said and "raise it to 48" in said
    assert "strengths must be above 0" in refused(tmp_path, "{strengths: [0]}")


def refused(root, amplify: str, more: str = "", decode_section: str = "") -> str:
    (root / "params").mkdir(exist_ok=True)
    asked = "How do trains brake?|Why is snow white?|Name three rivers.|Who wrote Faust?|Is tea healthy?|Draft a toast."
    asked += "|Explain tides briefly.|Can dogs dream?|Plan my Sunday.|What makes bread rise?|Sum up chess.|Fix my bike."
    (root / "params/few.txt").write_text(asked.replace("|", "\n"))
    (root / "params/x.csv").write_text("prompt,base,intervention\nHow are you?,Well.,Fine.\n")
    path = root / "params/x.yml"
    path.write_text(
        "experiment: x\ncapture: {prompts: [params/few.txt]}\ntraits: {files: []}\n"
        f"decode: {{prompts: [params/few.txt], {decode_section}amplify: {amplify}}}\n{more}"
    )
    with pytest.raises(ParameterError) as error:
        load_experiment(path)
    return str(error.value)
