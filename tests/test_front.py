"""The names of ``import driftbook``: what they cost, what they say, and that their numbers are those of the stages."""

from __future__ import annotations

import functools
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import driftbook as db
from driftbook import validate as stage
from driftbook.discovery import phrases
from driftbook.discovery.hypotheses import merge
from driftbook.errors import DriftbookError
from driftbook.front import models as front_models
from driftbook.interventions import NoIntervention
from driftbook.interventions import Steer as SteerSection
from driftbook.models.sampling import SamplingParams
from driftbook.prompts import Prompt, to_frame
from models import generated, loaded, requests_for
from planted import FILLER, SUBJECTS, run_of
from test_validate import stages
from test_vectors import some_vectors

ROOT = Path(__file__).parent.parent
PLACES = ("Rome", "winter", "children's books", "old age", "the mountains")
PAIRS = [(subject, place) for subject in SUBJECTS for place in PLACES]
PROMPTS = [f"{s} in {p}, page {37 * i} to {91 * i + 5} and {53 * i}?" for i, (s, p) in enumerate(PAIRS)]  # none alike


def answers(share: float, seed: int, prompts: list[str] = PROMPTS) -> list[str]:
    """Answers of which ``share`` end with a question."""
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(FILLER, 20))}.{' Shall we continue?' * int(rng.random() < share)}" for _ in prompts]


BASE, CHANGED = answers(0.1, 0), answers(0.7, 1)


def ends(texts: list[str]) -> np.ndarray:
    return np.array([t.endswith("?") for t in texts], dtype=float)


# ---------------------------------------------------------------------------------------------------------------- names


def test_importing_the_package_imports_nothing_else_and_its_names_are_listed():
    code = (
        "import sys, driftbook\n"
        "assert not {'torch', 'pandas', 'numpy', 'pydantic', 'driftbook.front'} & set(sys.modules)\n"
        "assert set(driftbook.__all__) <= set(dir(driftbook))\n"
        "driftbook.test, driftbook.compare\n"
        "assert 'torch' not in sys.modules and 'plotly' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        db.nothing  # noqa: B018


@pytest.mark.parametrize("name", db.__all__)
def test_every_name_says_what_it_is_and_what_it_refuses(name):
    found = getattr(db, name)
    assert found.__doc__ and not found.__doc__.startswith(f"{name}(")
    if inspect.isfunction(found) and found.__module__.startswith("driftbook.front"):
        assert "Raises:" in found.__doc__ and "return" in found.__annotations__


def test_the_page_of_the_library_lists_every_name_with_its_first_sentence():
    def first(name):
        paragraph = " ".join(inspect.getdoc(getattr(db, name)).split("\n\n")[0].split())
        return re.split(r"(?<=[.?]) (?=[A-Z`])", paragraph)[0]

    rows = [f"| `{name}` | {first(name).replace('``', '`')} |" for name in db.__all__]
    page = (ROOT / "docs/library.md").read_text()
    assert "\n".join(rows) in page, "write these rows into docs/library.md:\n" + "\n".join(rows)


# ---------------------------------------------------------------------------------------------------------------- texts


def test_a_claim_is_what_plain_counting_says():
    claim = db.test("ends with a question", BASE, CHANGED, PROMPTS)
    was, now = ends(BASE), ends(CHANGED)
    assert (claim.base, claim.changed) == pytest.approx((was.mean(), now.mean()))
    assert claim.difference == pytest.approx(now.mean() - was.mean())
    assert claim.interval[0] < claim.difference < claim.interval[1] and claim.prompts == len(PROMPTS)
    up, down = int((now > was).sum()), int((now < was).sum())
    heads = sum(np.prod([(up + down - i) / (i + 1) for i in range(k)]) for k in range(down + 1))
    assert claim.p_value == pytest.approx(2 * heads / 2 ** (up + down))  # McNemar's exact test
    stakes = (np.arange(32) + 0.5) / 32
    # a win pays the stake, a loss costs it, a tie nothing; half bets on each side, as none was named
    wealth = [((1 + u) ** up * (1 - u) ** down + (1 - u) ** up * (1 + u) ** down) / 2 for u in stakes]
    assert claim.e_value == pytest.approx(np.mean(wealth)) and claim.confirmed
    assert str(claim) == f"{claim.sentence}: confirmed" and claim.sentence in claim._repr_html_()
    assert claim.to_frame().loc[0, ["base", "changed"]].tolist() == [claim.base, claim.changed]
    assert "ends with a question" in claim.plot().title


def test_a_claim_is_named_by_behaviour_measure_or_words():
    asked = [
        db.test(what, BASE, CHANGED, PROMPTS)
        for what in ("Ends_with_question", db.measure("ends with a question"), ["shall we continue"], "/\\?$/")
    ]
    asked.append(db.test("offers more", BASE, CHANGED, PROMPTS, words=["shall we continue"]))
    asked.append(db.test(db.words("shall we continue", place="closing"), BASE, CHANGED, PROMPTS, direction="more"))
    assert {(c.base, c.changed) for c in asked} == {(asked[0].base, asked[0].changed)}
    assert asked[4].sentence.startswith("offers more: ") and asked[5].p_value == pytest.approx(asked[2].p_value / 2)
    assert not db.test("ends with a question", BASE, CHANGED, PROMPTS, direction="less").confirmed


def test_the_ways_to_give_answers_are_one():
    """Lists, arrays, columns and a table; several answers to a prompt in a list, or the prompt twice."""
    other, more = answers(0.1, 2), answers(0.7, 3)
    twice = [[list(pair) for pair in zip(*sides, strict=True)] for sides in ((BASE, other), (CHANGED, more))]
    rows = [(side, p, t) for side, s in zip(("base", "intervention"), twice, strict=True)
            for p, ts in zip(PROMPTS, s, strict=True) for t in ts]  # fmt: skip
    ways = [
        (*twice, [Prompt(p) for p in PROMPTS]),
        (pd.Series(BASE + other), np.array(CHANGED + more), PROMPTS * 2),
        (pd.DataFrame(rows, columns=["side", "prompt", "text"]),),
        (*twice, [[{"role": "user", "content": p}] for p in PROMPTS]),
    ]
    found = [db.test("ends with a question", *way) for way in ways]
    assert len({(c.base, c.changed, c.interval, c.p_value, c.e_value, c.prompts) for c in found}) == 1
    assert found[0].base == pytest.approx(np.mean([ends(BASE), ends(other)]))


def test_what_was_thought_before_an_answer_is_no_part_of_it():
    thought = [f"<think>Shall we continue?</think>{text}" for text in BASE]
    plain = db.test("ends with a question", BASE, CHANGED, PROMPTS)
    found = db.test("ends with a question", thought, CHANGED, PROMPTS)
    assert (found.base, found.changed, found.p_value) == (plain.base, plain.changed, plain.p_value)
    with pytest.warns(UserWarning, match=f"base: 2 of {len(BASE)} answers ended before they began"):
        cut = db.test("ends with a question", ["<think>Shall we?"] * 2 + BASE[2:], CHANGED, PROMPTS)
    rest = db.test("ends with a question", BASE[2:], CHANGED[2:], PROMPTS[2:])
    assert (cut.base, cut.changed, cut.prompts) == (rest.base, rest.changed, rest.prompts)


def test_few_prompts_with_many_answers_on_one_side_alone_are_tested_by_prompts():
    """Within a prompt both sides need answers that scatter."""
    base = [[f"{text} {n}" for n in range(20)] for text in BASE[:20]]
    claim = db.test(["number"], base, [f"number {n}" for n in range(20)], PROMPTS[:20])
    assert (claim.base, claim.changed, claim.confirmed) == (0.0, 1.0, True)


def test_as_many_answers_of_both_sides_are_read_to_a_prompt_so_that_sides_can_be_swapped():
    """Sides of one model, an answer against eight: of 200 such pairs a twentieth may be told, and a quarter were when
    the mean of eight answers was held against a single one."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(200):
        rains = [[f"It rains{' 🎉' if rng.random() < 0.02 else ''}." for _ in range(9)] for _ in PROMPTS[:60]]
        base, changed = [r[:1] for r in rains], [r[1:] for r in rains]
        false += db.test("has an emoji", base, changed, PROMPTS[:60]).p_value <= 0.05
    assert false <= 20  # 5% of 200, and more than three standard errors
    change = db.compare(base, changed, PROMPTS[:60], phrases=0)
    assert "60 prompts, 1 answer of each model to each" in str(change)
    assert "420 answers are not read: to their prompts the other side has fewer." in str(change)
    equal = db.compare(changed, changed, PROMPTS[:60], phrases=0)
    assert "8 answers of each model to each" in str(equal) and "not read" not in str(equal)


def test_of_few_prompts_with_many_answers_means_are_told_and_called_means():
    six, long = "It has six words in it.", "word " * 399 + "end."
    base, changed = [[six] * 20] * 10, [[six] * 17 + [long] * 3] * 10
    change = db.compare(base, [[*c] for c in changed], PROMPTS[:10], phrases=0)
    longer = change.claims.set_index("measure").loc["length_words", "claim"]
    assert longer.startswith("length: mean 65 words an answer, was 6 (+59")
    assert "writes much longer answers (mean 6 → 65 words)" in str(change)


def test_an_e_value_of_what_nobody_named_a_side_of_bets_on_both():
    """Its mean over all outcomes is 1 where both are as likely; betting on the side that the data name gives 1.8."""
    sides = [[int(b) for b in f"{n:08b}"] for n in range(2**8)]
    e = {}
    for ups in range(9):
        base = [["No.", "Yes?"][i < 8 - ups] for i in range(8)]
        changed = [["No.", "Yes?"][i >= 8 - ups] for i in range(8)]
        e[ups] = [db.test("ends with a question", base, changed, PROMPTS[:8], direction=d).e_value for d in
                  ("either", "more", "less")]  # fmt: skip
    assert np.mean([e[sum(s)][0] for s in sides]) == pytest.approx(1)
    for either, more, less in e.values():
        assert either >= min(more, less)


def test_several_changes_or_strengths_in_one_table_are_refused_and_answers_that_never_came_are_left_out():
    rows = [(side, p, "It rains.", change) for p in PROMPTS[:20] for side, change in
            (("base", None), ("intervention", "one"), ("intervention", "two"))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["side", "prompt", "text", "change"])
    with pytest.raises(DriftbookError, match="several changes: one, two; table"):
        db.compare(table, phrases=0)
    db.compare(table[table.change.isin(["one"]) | (table.side == "base")], phrases=0)
    doses = table.assign(strength=table.change.map({"one": 1.0, "two": 3.0}), change=None)
    with pytest.raises(DriftbookError, match=r"several strengths: 1.0, 3.0; keep those of one"):
        db.test("refuses", doses)
    one = table[table.change != "two"].drop(columns="change").reset_index(drop=True)
    ends = np.where((one.side == "intervention") & (one.index % 4 == 1), "cut", "eos")
    cut = one.assign(finish_reason=ends, text=one.text.where(ends == "eos", ""))
    with pytest.warns(UserWarning, match="intervention: 10 of 20 answers ended before they began, and are left out"):
        assert db.test("is empty", cut).prompts == 10
    silent = cut.assign(finish_reason=np.where(cut.side == "intervention", "cut", "eos"))
    with pytest.raises(DriftbookError, match="all 20 answers ended"):
        db.test("is empty", silent.assign(text=silent.text.where(silent.side == "base", "")))


def test_a_comparison_has_the_numbers_of_an_experiment(tmp_path):
    change = db.compare(BASE, CHANGED, PROMPTS, seed=3)
    texts, asked = change.answers, {p.prompt_id: p for p in map(Prompt, PROMPTS)}
    seen = texts[texts["split"] == "discover"]
    proposed = merge(phrases.propose(seen, {i: p.text for i, p in asked.items()}, limit=12))
    run = run_of(tmp_path, texts, proposed)
    run.seed = 3
    to_frame(list(asked.values())).to_parquet(tmp_path / "decode" / "prompts.parquet")
    found = stages(run)
    columns = ["claim", "direction", "base", "intervention", "difference", "low", "high", "win_rate", "like"]
    columns += ["p_value", "q_value", "e_value", "prompts", "scope", "confirmed", "proposer"]
    pd.testing.assert_frame_equal(change.claims[columns], found.claims[columns])
    assert change.verdict == stage.verdict(run, found.material, found.claims, found.words)

    row = change.table.set_index("behaviour").loc["ends with a question"]
    assert (row["base"], row["changed"]) == pytest.approx((ends(BASE).mean(), ends(CHANGED).mean()))
    assert row["confirmed"] and row["scope"] == "all prompts" and {*change.table["proposer"]} == {"panel", "phrases"}
    assert change.verdict.state == "changed" and str(change) == " ".join(change.verdict.lines)
    assert "ends with a question" in change._repr_html_() and len(change.plot().table)


def test_a_comparison_has_groups_of_sentences_that_are_tested_on_other_prompts(tmp_path):
    praised = [f"What a fascinating question! {text}" if i % 3 else text for i, text in enumerate(CHANGED)]
    change = db.compare(CHANGED, praised, PROMPTS, cache=tmp_path)
    found = change.groups
    first = found.iloc[0]
    assert first["place"] == "opener" and first["confirmed"] and first["base"] == 0 and first["changed"] > 0.5
    assert first["behaviour"].startswith('opens with "What a fascinating question!"')
    assert first["said_changed"] == ["What a fascinating question!"] and first["said_base"] == []
    assert change.groups is found
    with pytest.raises(DriftbookError, match="phrases above 0"):
        _ = db.compare(CHANGED, praised, PROMPTS, phrases=0).groups


def test_the_same_answers_twice_are_no_change():
    change = db.compare(BASE[:30], BASE[:30], PROMPTS[:30], phrases=0)
    assert not change.table["confirmed"].any() and (change.table["difference"].dropna() == 0).all()
    assert change.verdict.state != "changed" and {*change.table["proposer"]} == {"panel"}
    assert len(change.plot().table)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (lambda: db.compare(BASE, CHANGED), "prompts are not given"),
        (lambda: db.compare(BASE, CHANGED, "What?"), "give a list of prompts"),
        (lambda: db.compare(BASE, CHANGED[:-1], PROMPTS), f"changed: {len(PROMPTS) - 1} answers and {len(PROMPTS)} p"),
        (lambda: db.compare(BASE, [], PROMPTS), "changed: no answers"),
        (lambda: db.compare(BASE, None, PROMPTS), "changed: give a list"),
        (lambda: db.compare(BASE[:2], ["a", np.nan], PROMPTS[:2]), "answer 2 is nan"),
        (lambda: db.compare(BASE[:2], ["a", []], PROMPTS[:2]), "1 of 2 prompts have no answer of side intervention"),
        (lambda: db.compare(BASE[:2], CHANGED[:2], PROMPTS[:2]), "phrases=0"),
        (lambda: db.compare(pd.DataFrame({"side": [], "text": []})), "no column prompt"),
        (lambda: db.compare(pd.DataFrame({"side": ["x"], "prompt": "p", "text": "t"})), "side 'x'"),
        (lambda: db.test("ends with question", BASE, CHANGED, PROMPTS), "did you mean 'ends with a question'"),
        (lambda: db.test("hedges", BASE, CHANGED, PROMPTS, direction="up"), "use one of either, more, less"),
        (lambda: db.test("ends with a question", BASE, CHANGED, PROMPTS, alpha=2), "alpha"),
        (lambda: db.compare(dict(zip(PROMPTS, BASE, strict=True)), CHANGED, PROMPTS), "base: give a list"),
        (lambda: db.compare(BASE, set(CHANGED), PROMPTS), "changed: give a list with the answers to each"),
        (lambda: db.compare([{"text": "a"}], ["b"], ["What?"]), "base: answer 1 is {'text': 'a'}"),
        (lambda: db.compare([b"a"], ["b"], ["What?"]), "base: answer 1 is b'a'"),
        (lambda: db.compare(["a"], ["b"], [{"role": "user", "content": "What?"}]), "prompt 1 is {'role': 'user'"),
        (lambda: db.compare(["<think>a"], ["b"], ["What?"]), "base: all 1 answers ended before they began"),
        (lambda: db.compare(pd.DataFrame({"side": [], "prompt": [], "text": []})), "holds no rows"),
        (lambda: db.compare(pd.DataFrame({0: ["base"]})), "The table has 0"),
        (lambda: db.test("hedges", BASE, CHANGED, PROMPTS, words="perhaps"), "words: 'perhaps'; give words in a list"),
        (lambda: db.test(3, BASE, CHANGED, PROMPTS), "measure: 3; give the name"),
        (lambda: db.test("hedges", BASE, CHANGED, PROMPTS, margin=float("nan")), "Input should be a finite"),
        (lambda: db.words(), "word"),
        (lambda: db.Vectors.from_arrays({"calm": [0.0, 0.0]}, layer=1), "none of them zero"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(said, message):
    with pytest.raises(db.DriftbookError, match=re.escape(message)):
        said()


# --------------------------------------------------------------------------------------------------------------- models


def tiny():
    return loaded("llama", "sdpa")


def test_answers_are_those_of_the_engine_and_the_table_goes_on_to_a_test(tmp_path):
    asked = ["What is tea?", "Why?", "Go on then"]
    table = db.generate(tiny(), asked, samples=1, max_new_tokens=6, temperature=0.0, cache=tmp_path)
    prompts = [tuple(tiny().encode_prompt(p)) for p in asked]
    greedy = generated(tiny(), requests_for(prompts), SamplingParams(6, temperature=0.0))
    assert table["text"].tolist() == [tiny().decode(ids) for ids, _ in greedy]
    assert table["prompt"].tolist() == asked and {*table["side"]} == {"base"}
    pair = db.pair(tiny(), db.SystemPrompt("Be terse."), cache=tmp_path)
    both = db.generate(pair, asked, samples=2, max_new_tokens=6, cache=tmp_path)
    assert db.test("length in words", both).prompts == 3 and len(both) == 12


def test_an_exaggerated_change_is_asked_for_by_its_strength(tmp_path):
    pair = db.pair(tiny(), db.SystemPrompt("Be terse."), cache=tmp_path)
    asked = ["Rain and tea?", "Snow and milk?"]
    options = {"samples": 2, "max_new_tokens": 6, "temperature": 1.0, "cache": tmp_path}
    table = db.amplify(pair, asked, strength=[0, 2, -1], **options)
    plain = db.generate(pair, asked, **options)
    by = {k: own["text"].tolist() for k, own in table.groupby(["side", "strength"])}
    assert by["base", 0.0] == plain.loc[plain["side"] == "base", "text"].tolist()
    assert by["intervention", 0.0] == plain.loc[plain["side"] == "intervention", "text"].tolist()
    assert by["intervention", 2.0] != by["intervention", 0.0] != by["intervention", -1.0]
    with pytest.raises(db.DriftbookError, match="plausible"):
        db.amplify(pair, asked, plausible=2, **options)


def test_changes_are_the_sections_of_a_parameter_file():
    vectors = db.Vectors(some_vectors())
    assert db.Steer("warm", 0.4, vectors).parameters() == SteerSection(trait="warm", coefficient=0.4)
    kinds = [db.Ablate("warm", vectors), db.Quantize(4), db.SystemPrompt("x"), db.Adapter("a"), db.Checkpoint("m")]
    assert [k.parameters().kind for k in kinds] == ["ablate", "quantize", "prompt", "adapter", "checkpoint"]
    with pytest.raises(db.DriftbookError, match="bits"):
        db.Quantize(5).parameters()


def test_a_steered_model_diverges_from_its_layer_on_and_the_same_model_does_not(tmp_path):
    direction = np.random.default_rng(0).normal(size=48)
    vectors = db.Vectors.from_arrays({"calm": direction}, layer=2)
    asked = ["What is tea?", "Why?"]
    pair = db.pair(tiny(), db.Steer("calm", 3.0, vectors), cache=tmp_path)
    found = db.divergence(pair, asked, tokens=6, cache=tmp_path)
    assert 0 < found.js.low <= found.js.estimate <= found.js.high < np.log(2) and set(found.table["prompt"]) == {*asked}
    assert found.js.estimate == pytest.approx(found.table["js"].mean(), rel=1e-6) and str(found) in found.plot().title
    same = db.divergence(db.pair(tiny(), NoIntervention()), asked, tokens=3, cache=tmp_path)
    assert same.js.estimate == 0

    states = db.project(pair, asked, vectors, samples=1, max_new_tokens=6, cache=tmp_path)
    assert states.values.shape[0] == 4 and states.values.shape[2:] == (4, 3, 1) and states.unit == "projection"
    base, changed = (states.at("calm")[states.samples["side"] == s] for s in ("base", "intervention"))
    unit = vectors.on(tiny(), tmp_path).norms[2, 2]
    prompt = slice(1, int(states.samples["prompt_tokens"].min()))  # the same tokens on both sides
    np.testing.assert_allclose((changed - base)[:, prompt], 3.0 * unit, rtol=1e-3)  # float32 sums in two orders
    below = states.at("calm", layer=1, site="resid_post")
    np.testing.assert_allclose(below[:2, prompt], below[2:, prompt], atol=1e-3)
    assert states.plot("calm").title and "calm" in states._repr_html_()
    frame = states.to_frame()
    response = frame[(frame["sample"] == 0) & (frame["part"] == "response")]["value"].mean()
    assert states.means().loc[0, "calm"] == pytest.approx(response, rel=1e-5)
    with pytest.raises(db.DriftbookError, match="was not read"):
        states.at("warm")
    with pytest.raises(db.DriftbookError, match=r"shape \(47,\)"):
        db.Vectors.from_arrays({"calm": direction[1:]}, layer=2).on(tiny(), tmp_path)


def test_fitted_vectors_are_saved_and_read_as_those_of_an_experiment(tmp_path):
    settings = {"max_scenarios": 8, "folds": 2, "shuffles": 1, "null_vectors": 8, "cache": tmp_path}
    vectors = db.fit_vectors(tiny(), "params/traits/formality.json", root=ROOT, **settings)
    vectors.save(tmp_path / "kept")
    back = db.Vectors.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(back.to_frame(), vectors.to_frame())
    assert back.traits == ["formality"] and "formality" in vectors._repr_html_() and vectors.plot().title
    states = db.project(tiny(), ["What is tea?"], back, samples=2, max_new_tokens=6, cache=tmp_path)
    assert states.unit == "null SD" and (states.low < states.high).all() and states.plot().title
    response = np.concatenate([row[n:m] for row, n, m in zip(
        states.at("formality"), states.samples["prompt_tokens"], states.samples["tokens"], strict=True
    )])  # fmt: skip
    assert response.mean() == pytest.approx(0, abs=1e-4)  # centred on the base's tokens
    with pytest.raises(db.DriftbookError, match="methd"):
        db.fit_vectors(tiny(), "params/traits/formality.json", root=ROOT, methd="probe")


def test_an_experiment_runs_headless(bench, no_kernel, plain_reports):
    file = bench("x = 1")
    assert db.load_experiment(file).seed == 3
    table = db.run(file)
    assert table[["stage", "status"]].to_numpy().tolist() == [["bench-tiny", "ok"]]
    assert db.run(file)["status"].tolist() == ["skipped"] and Path(table.loc[0, "folder"]).is_dir()


# ------------------------------------------------------------------------------------------------------------- snippets


def section(heading: str) -> list[str]:
    """The Python blocks of the README's section."""
    text = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    """On a tiny model in the place of the bundled one, with few prompts and scenarios where a model answers."""
    few = {"max_scenarios": 6, "folds": 2, "shuffles": 1, "null_vectors": 8}
    monkeypatch.setattr(front_models, "fit_vectors", functools.partial(db.fit_vectors, **few))
    monkeypatch.setattr(front_models, "load", lambda *_, **__: tiny())
    monkeypatch.setattr(front_models, "folder_of", lambda cache: tmp_path)
    monkeypatch.chdir(ROOT)
    names = {"base_texts": BASE, "changed_texts": CHANGED, "prompts": PROMPTS}
    snippets = section("In Python")
    assert len(snippets) == 5
    for snippet in snippets:
        if "db.load(" in snippet:
            names["prompts"] = PROMPTS[:2]
        exec(snippet, names)
    assert names["claim"].confirmed and names["change"].verdict.state == "changed"
    assert names["states"].values.ndim == 5


def test_the_first_notebook_runs(tmp_path, monkeypatch):
    """On a tiny model in the place of the bundled one, with few prompts and scenarios."""
    few = {"folds": 2, "shuffles": 1, "null_vectors": 8}
    monkeypatch.setattr(front_models, "fit_vectors", functools.partial(db.fit_vectors, **few))
    monkeypatch.setattr(front_models, "load", lambda *_, **__: tiny())
    monkeypatch.setattr(front_models, "folder_of", lambda cache: tmp_path)
    monkeypatch.chdir(ROOT / "notebooks")
    cells = json.loads((ROOT / "notebooks/start.ipynb").read_text())["cells"]
    parameters, *code = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    names: dict = {}
    exec(parameters, names)
    names |= {"count": 12, "max_new_tokens": 6, "scenarios": 6}
    for cell in code:
        exec(cell, names)
    assert len(names["answers"]) == 24 and names["states"].values.ndim == 5
    assert names["claim"].prompts == len(names["asked"]) and len(names["change"].table)
