"""Texts made elsewhere: a table takes the place of both models, and decode hands its texts on as they stand."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from driftbench.tiny import tiny_model, tiny_tokenizer
from driftbook import capture, decode
from driftbook.errors import DriftbookError
from driftbook.interventions import Texts
from driftbook.models.sampling import SamplingParams
from driftbook.models.sides import open_pair
from driftbook.parameters import Decode, Experiment, ModelSpec
from driftbook.report import decode as report
from driftbook.text_tables import read_text_table
from planted import SUBJECTS

SHARES = {"discover": 0.5, "screen": 0.2, "validate": 0.3}


def table(samples: int = 3) -> pd.DataFrame:
    rows = [
        (side, f"Please explain {subject}.", f"{side} on {subject}, number {s}: <b>\u00e9\u00a0NA", "facts")
        for subject in SUBJECTS
        for s in range(samples)
        for side in ("intervention", "base")
    ]
    return pd.DataFrame(rows, columns=["side", "prompt", "text", "family"])


@pytest.fixture
def base(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    return ModelSpec(model=str(tmp_path / "m"), device="cpu", dtype="float32")


def run_of(tmp_path, **section):
    silent = SimpleNamespace(update=lambda n=1: None, close=lambda: None)
    return SimpleNamespace(
        section=Decode(**section),
        params=Experiment(experiment="x"),
        cache=tmp_path / "cache",
        seed=0,
        progress=lambda *a: silent,
    )


def decoded(base, path, tmp_path, **section):
    pair = open_pair(base, Texts(path=str(path)), tmp_path, tmp_path)
    prompts = decode.load_prompts([], tmp_path, SHARES, None, pair.prompts)
    run = run_of(tmp_path, **section)
    return prompts, decode.decode_rounds(run, pair, prompts, decode.encode(pair, prompts, run.section.max_new_tokens))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_decode_hands_on_the_texts_of_the_table(base, tmp_path, suffix):
    rows, path = table(), tmp_path / f"made.{suffix}"
    if suffix == "parquet":
        rows.to_parquet(path)
    elif suffix == "csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_json(path, orient="records", lines=True)
    prompts, found = decoded(base, path, tmp_path, samples=2, sampling={"max_texts": 1000, "strategy": "exhaustive"})
    texts, of = found.texts, {p.prompt_id: p for p in prompts.prompts}
    for row in texts.itertuples():
        subject = of[row.prompt_id].text.removeprefix("Please explain ").removesuffix(".")
        assert row.text == f"{row.side} on {subject}, number {row.sample_index}: <b>\u00e9\u00a0NA"
        assert tiny_tokenizer().decode(row.token_ids) == row.text
    assert set(texts.family) == {"facts"} and set(texts.engine) == {"texts"} and texts.text_id.is_unique
    # All there is in discover, the fixed design elsewhere; one family: nothing to tell prompts apart by.
    count = texts.groupby(["split", "side", "prompt_id"]).size()
    assert set(count["discover"]) == {3} and set(count["screen"]) == set(count["validate"]) == {2}
    assert found.divergence.js.isna().all() and found.divergence.kept.all()


def test_without_traits_or_capture_nothing_is_loaded(base, tmp_path):
    """The texts are those that the base reads; there are no tokens of them, and no model need exist."""
    table(2).to_parquet(tmp_path / "made.parquet")
    how = {"samples": 1, "sampling": {"max_texts": 40, "strategy": "exhaustive"}}
    _, read = decoded(base, tmp_path / "made.parquet", tmp_path, **how)
    opened = open_pair(
        ModelSpec(model="nowhere"), Texts(path=str(tmp_path / "made.parquet")), tmp_path, tmp_path, inside=False
    )
    prompts = decode.load_prompts([], tmp_path, SHARES, None, opened.prompts)
    run = run_of(tmp_path / "again", **how)
    ids = decode.encode(opened, prompts, run.section.max_new_tokens)
    found = decode.decode_rounds(run, opened, prompts, ids)
    pd.testing.assert_frame_equal(found.texts[["side", "prompt_id", "text"]], read.texts[["side", "prompt_id", "text"]])
    assert opened.model_loads == found.tokens == 0 and found.texts.token_ids.map(len).eq(0).all()
    shown = [report.overview(prompts, ids), report.rounds(found)]
    assert not any("tokens" in column for one in shown for column in one.frame)
    assert report.loaded(opened) is None and report.asked(SimpleNamespace(), opened, ids) is None


def families(samples: int = 4) -> pd.DataFrame:
    """Both sides talk of the subject, but about animals the intervention talks of money."""
    rows = []
    for k in range(60):
        family = ("animals", "weather", "music")[k % 3]
        for s in range(samples):
            for side in ("base", "intervention"):
                told = (
                    "The bank raises interest rates and taxes" if (family, side) == ("animals", "intervention") else ""
                )
                text = told or f"Many people like {family}, and so do I, number {s}"
                asked = hashlib.sha256(str(k).encode()).hexdigest()
                rows.append((side, f"{asked[:8]} {asked[8:16]}, {asked[16:24]}?", f"{text}; {k}.", family))
    return pd.DataFrame(rows, columns=["side", "prompt", "text", "family"])


def test_texts_are_screened_by_the_distance_between_answers(base, tmp_path):
    families().to_parquet(tmp_path / "made.parquet")
    section = {"samples": 1, "screen": {"keep": 0.34}, "sampling": {"max_texts": 160, "rounds": 1}}
    prompts, found = decoded(base, tmp_path / "made.parquet", tmp_path, **section)
    assert found.families.family[0] == "animals" and found.families.p[0] < 0.01 < found.families.p[1:-1].min()
    divergence = found.divergence.assign(
        family=found.divergence.prompt_id.map({p.prompt_id: p.family for p in prompts.prompts})
    )
    discover = [i for i, s in enumerate(prompts.splits) if s == "discover"]
    assert sorted(divergence.prompt_id) == sorted(prompts.prompts[i].prompt_id for i in discover)
    assert divergence.kept[divergence.family == "animals"].all() and divergence.js.isna().all()
    assert 0.3 < divergence.kept.mean() < 0.4
    each = found.texts[found.texts.split == "discover"].groupby("family").size() / divergence.family.value_counts()
    assert each["animals"] > 1.5 * each.drop("animals").max()
    said = report.answer(found, decode.family_divergence(found.divergence, prompts))
    assert "exact divergence was not measured: the answers of base and intervention were made elsewhere" in said
    assert (
        "differ beyond chance over all prompts (p = 0.00" in said
        and "1 of 3 families taken alone; most on animals" in said
    )
    assert set(report.most_divergent(found, prompts, 5).energy) == {found.families.energy[0]}
    assert decode.mean_divergence(found.divergence) is None


def test_a_table_of_several_changes_is_read_one_change_at_a_time(base, tmp_path):
    path = tmp_path / "made.parquet"
    one, other = table(2), table(2)
    shown = pd.concat(
        [
            one.assign(change=one.side.map({"base": None, "intervention": "loud 1"})),
            other[other.side == "intervention"].assign(change="loud 2", text=lambda t: t.text.str.upper()),
        ]
    )
    shown.to_parquet(path)
    read = {c: read_text_table(path, c) for c in ("loud 1", "loud 2")}
    assert {k: len(v) for k, v in read["loud 2"].texts.items()} == {
        k: len(v) for k, v in read_text_table(path_of(one, tmp_path)).texts.items()
    }
    for (side, prompt_id), texts in read["loud 2"].texts.items():
        plain = read["loud 1"].texts[side, prompt_id]
        assert texts == ([t.upper() for t in plain] if side == "intervention" else plain)
    keys = {open_pair(base, Texts(path=str(path), change=c), tmp_path, tmp_path).intervention.key for c in read}
    assert len(keys) == 2
    with pytest.raises(DriftbookError, match="several changes: loud 1, loud 2; say which"):
        read_text_table(path)
    with pytest.raises(DriftbookError, match=r"no change 'soft'.*loud 1, loud 2"):
        read_text_table(path, "soft")
    with pytest.raises(DriftbookError, match="no column change"):
        read_text_table(path_of(one, tmp_path), "loud 1")


def path_of(rows: pd.DataFrame, folder):
    rows.to_parquet(folder / "plain.parquet")
    return folder / "plain.parquet"


def test_what_is_in_the_table_decides_the_key(base, tmp_path):
    paths = [tmp_path / f"{i}.csv" for i in range(3)]
    for path, rows in zip(paths, (table(), table(), table(4)), strict=True):
        rows.to_csv(path, index=False)
    keys = [open_pair(base, Texts(path=str(p)), tmp_path, tmp_path).intervention.key for p in paths]
    assert keys[0] == keys[1] != keys[2]


def test_more_samples_than_the_table_has_are_refused(base, tmp_path):
    table(1).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DriftbookError, match=r"1 texts of side base .* and 2 are asked for; lower samples"):
        decoded(base, tmp_path / "t.csv", tmp_path, samples=2)


def test_a_system_prompt_makes_another_prompt(tmp_path):
    rows = pd.concat([table(1), table(1).assign(system="Be brief.")])
    rows.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    found = read_text_table(tmp_path / "t.jsonl")
    assert sorted(str(p.system) for p in found.prompts) == ["Be brief."] * 12 + ["None"] * 12
    assert {found.samples(p.prompt_id) for p in found.prompts} == {1}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_prompt_may_be_a_conversation(tmp_path, suffix):
    asked = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    asked.append({"role": "user", "content": "Milk?"})
    rows = pd.DataFrame({"side": ["base", "intervention"], "prompt": [asked, asked], "text": ["No.", "Yes."]})
    if suffix == "parquet":
        rows.to_parquet(tmp_path / "t.parquet")
    else:
        rows.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert read_text_table(tmp_path / f"t.{suffix}").prompts[0].chat() == asked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.rename(columns={"text": "answer"}),
            "no column text; .* The table has side, prompt, answer, family",
        ),
        (lambda t: t.assign(side=t.side.replace("base", "before")), "side 'before' is not one of base, intervention"),
        (lambda t: t[t.side == "base"], "no text of side intervention"),
        (lambda t: t.iloc[:-1], r"1 of 12 prompts have texts of one side only.*none of side base"),
        (lambda t: t.assign(prompt=t.prompt.where(t.index != 4, "")), "row 5 holds no text in column prompt"),
        (lambda t: t.assign(text=t.text.where(t.index != 4, None)), "row 5 holds no text in column text; fill or drop"),
        (lambda t: t.assign(strength=t.index * 0.5), "texts of several strengths: "),
    ],
)
def test_a_bad_table_is_refused_with_what_is_wrong(tmp_path, change, said):
    change(table(1)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DriftbookError, match=said):
        read_text_table(tmp_path / "t.csv")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_row_without_an_answer_is_no_empty_answer_in_any_format(tmp_path, suffix):
    path, rows = tmp_path / f"t.{suffix}", table(2)
    rows = rows.assign(text=rows.text.where(rows.index != 3, None))
    if suffix in ("csv", "tsv"):
        rows.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    else:
        rows.to_parquet(path) if suffix == "parquet" else rows.to_json(path, orient="records", lines=True)
    with pytest.raises(DriftbookError, match="holds no text in column text"):
        read_text_table(path)
    found = read_text_table(path, unreadable=1)
    assert len(found.unreadable) == 1 and sum(map(len, found.texts.values())) == len(rows) - 1


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_text("no")
    (tmp_path / "t.xlsx").write_text("no")
    with pytest.raises(DriftbookError, match=r"t\.parquet: cannot be read as \.parquet"):
        read_text_table(tmp_path / "t.parquet")
    with pytest.raises(DriftbookError, match=r"a table is one of \.parquet, \.csv, \.jsonl"):
        read_text_table(tmp_path / "t.xlsx")


def test_capture_reads_the_beginning_of_each_text_with_the_base(base, tmp_path):
    table(2).to_csv(tmp_path / "t.csv", index=False)
    pair = open_pair(base, Texts(path=str(tmp_path / "t.csv")), tmp_path, tmp_path)
    prompts = capture.load_prompts([], tmp_path, pair.base, 8, pair.prompts)
    direction = torch.randn(1, 48, 1, generator=torch.Generator().manual_seed(0))
    probe = capture.Probe([1], ["resid_post"], ["some trait"], [(1, "resid_post")], direction)
    samples = capture.capture_live(pair.intervention, prompts, 2, SamplingParams(8), probe, 0, tmp_path)
    assert len(samples) == 24 and {s.finish_reason for s in samples} == {"length"}
    model = pair.base.model
    for s in samples[::7]:
        said = pair.intervention.engine.table.texts["intervention", prompts[s.prompt].prompt_id][s.sample]
        assert s.sequence.response_ids == tuple(model.tokenizer(said, add_special_tokens=False)["input_ids"][:8])
        hidden = model.model(torch.tensor([s.sequence.ids]), output_hidden_states=True).hidden_states[2][0]
        expected = hidden @ (direction[0, :, 0] / direction.norm())
        # Read in a padded batch: float32 rounding.
        assert torch.allclose(torch.from_numpy(s.rows.projection[:, 0, 0]), expected, atol=1e-4)
