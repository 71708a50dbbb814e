"""A series: what its entries mean, how it runs, what is told over all of it, and its page."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import pages
from conftest import write_notebook
from driftbook import series as stage
from driftbook.errors import DriftbookError, ParameterError
from driftbook.evidence.multiplicity import holm_adjusted
from driftbook.evidence.paired import paired_test
from driftbook.parameters import STAGES, Experiment, load_experiment, load_members, resolved
from driftbook.report import series as report
from driftbook.workbook import cli
from driftbook.workbook.comparison import members_apart
from driftbook.workbook.overview import render_outputs
from driftbook.workbook.runner import run_experiment
from driftbook.workbook.seriespage import render_series
from driftbook.workbook.state import explain, parts, verify

SMALL = (
    "traits: {files: [params/traits/calm.json]}\ncapture: {prompts: [params/prompts/few.txt]}\n"
    "decode: {prompts: [params/prompts/few.txt]}\ncluster: {clusters: 2}\n"
)


def write(root: Path, interventions: str, name: str = "many", more: str = "") -> Path:
    path = root / f"params/{name}.yml"
    path.write_text(f"experiment: {name}\n{SMALL}{more}interventions:\n{interventions}")
    return path


def members(root: Path, interventions: str) -> list[tuple[str, float | None]]:
    found = load_experiment(write(root, interventions))
    return [(m.name, m.number) for m in found.members]


# ------------------------------------------------------------------------------------------------------------- the file


def test_an_entry_is_one_change_or_a_range_of_them(root):
    for step in (20, 100, 3):
        (root / f"runs/step-{step}/adapter").mkdir(parents=True)
    assert members(root, "  - {kind: steer, trait: calm, coefficient: [0.4, 0.1, -0.2]}\n") == [
        ("coefficient--0.2", -0.2),
        ("coefficient-0.1", 0.1),
        ("coefficient-0.4", 0.4),
    ]
    assert members(root, "  - {kind: checkpoint, model: some/one, revision: [step-100, step-20]}\n") == [
        ("step-20", 20.0),
        ("step-100", 100.0),
    ]
    assert members(root, "  - {kind: adapter, path: runs/*/adapter}\n") == [
        ("step-3", 3.0),
        ("step-20", 20.0),
        ("step-100", 100.0),
    ]
    assert members(root, "  - {kind: quantize, bits: [8, 4], name: rounded}\n") == [
        ("rounded-4", 4.0),
        ("rounded-8", 8.0),
    ]
    mixed = "  - {kind: prompt, system: Be kind., name: kind}\n  - {kind: quantize, bits: 4, number: 4}\n"
    assert members(root, mixed) == [("kind", None), ("quantize", 4.0)]


@pytest.mark.parametrize(
    ("interventions", "said"),
    [
        (
            "  - {kind: quantize, bits: 8}\n  - {kind: quantize, bits: 4}\n",
            r"interventions holds 'quantize' twice: write each as an entry with a name",
        ),
        (
            "  - {kind: steer, trait: [calm, calm], coefficient: [1, 2]}\n",
            r"many.yml:7: .*trait and coefficient: one of",
        ),
        ("  - {kind: adapter, path: nowhere/*}\n", r"path: nowhere/\* matches nothing"),
        ("  - {kind: none}\n  - {kind: quantize, bitz: [8, 4]}\n", r"many.yml:8: interventions.1.bitz: .*'bits'"),
        ("  - {kind: quantize, bits: [8, 5]}\n", r"many.yml:7: interventions.0.bits: .*not one of 8, 4"),
        ("  - {kind: squeeze}\n", r"many.yml:7: interventions.0.kind: there is no 'squeeze'"),
        ("  - {kind: steer, trait: clam, coefficient: 1}\n", "'clam' is in none of traits.files"),
    ],
)
def test_what_is_no_series_is_named_with_its_line(root, interventions, said):
    with pytest.raises(ParameterError, match=said):
        load_experiment(write(root, interventions))


def test_a_change_stands_beside_no_other(root):
    with pytest.raises(ParameterError, match="interventions stands beside intervention"):
        load_experiment(write(root, "  - {kind: quantize}\n", more="intervention: {kind: quantize}\n"))


def test_a_member_is_an_experiment_and_traits_are_those_of_the_series(root):
    write(root, "  - {kind: steer, trait: calm, coefficient: [0.1, 0.25]}\n  - {kind: quantize}\n")
    one, other = (load_experiment(root / f"params/many:{n}.yml") for n in ("coefficient-0.25", "quantize"))
    assert one.experiment == "many:coefficient-0.25" and one.intervention.coefficient == 0.25 and not one.interventions
    assert resolved(one, "traits") == resolved(other, "traits") and resolved(one, "traits")["experiment"] == "many"
    assert one.traits.dose.traits == ["calm"]
    with pytest.raises(ParameterError, match=r"no change 'coefficient-0.3', did you mean 'coefficient-0.1'"):
        load_experiment(root / "params/many:coefficient-0.3.yml")
    with pytest.raises(ParameterError, match="small is no series"):
        load_experiment(root / "params/small:quantize.yml")


# -------------------------------------------------------------------------------------------------------------- the run


@pytest.fixture
def many(root, monkeypatch):
    """A series of three prompts in a repository whose stages write a number each."""
    for name in STAGES:
        write_notebook(root / f"notebooks/{name}.ipynb", name, 'run.metric("number", 1)')
    write_notebook(root / "notebooks/series.ipynb", "series", 'run.metric("changes", len(run.members()))')
    monkeypatch.chdir(root)
    return write(root, "  - {kind: prompt, system: [Be kind., Be calm., Be wild.]}\n")


def outcome(results):
    return [(r.experiment, r.stage, r.status) for r in results]


@pytest.mark.usefixtures("plain_reports")
def test_a_series_runs_its_traits_once_and_what_changed_again(root, many, no_kernel):
    done = outcome(run_experiment(many, echo=False))
    names = ["many:Be-kind", "many:Be-calm", "many:Be-wild"]
    fresh = [e for e in done if e[2] == "ok"]
    assert fresh == [("many", "traits", "ok"), *((n, s, "ok") for n in names[:1] for s in STAGES[1:]),
                     *((n, s, "ok") for n in names[1:] for s in STAGES[1:]), ("many", "series", "ok")]  # fmt: skip
    assert {e[2] for e in outcome(run_experiment(many, echo=False))} == {"skipped"}
    assert (root / "outputs/many/members/Be-calm/traits/run.json").samefile(root / "outputs/many/traits/run.json")
    many.write_text(many.read_text().replace("Be wild.]", "Be wild., Be bold.]"))
    again = [e for e in outcome(run_experiment(many, echo=False)) if e[2] == "ok"]
    assert again == [*(("many:Be-bold", s, "ok") for s in STAGES[1:]), ("many", "series", "ok")]
    assert '"changes": 4' in (root / "outputs/many/series/metrics.json").read_text()


@pytest.mark.usefixtures("plain_reports")
def test_a_series_of_answers_that_exist_has_no_stage_that_reads_inside(root, many, no_kernel):
    rows = [f"{side},Why {p}?,no {p},{c}" for p in "ab" for side, c in (
        ("base", ""), ("intervention", "loud"), ("intervention", "soft"))]  # fmt: skip
    (root / "answers.csv").write_text("side,prompt,text,change\n" + "\n".join(rows))
    many.write_text(
        "experiment: many\nnames: {base: x, changed: y}\n"
        "interventions:\n  - {kind: texts, path: answers.csv, change: [loud, soft]}\n"
    )
    done = outcome(run_experiment(many, echo=False))
    members = [(f"many:{change}", stage, "ok") for change in ("loud", "soft") for stage in STAGES[2:]]
    assert done == [*members, ("many", "series", "ok")]
    assert '"changes": 2' in (root / "outputs/many/series/metrics.json").read_text()
    with pytest.raises(DriftbookError, match=r"many:loud has no stage 'traits'; .* base\.model reads them where"):
        run_experiment(many, ["traits"], echo=False)


@pytest.mark.usefixtures("plain_reports")
def test_why_verify_and_clean_know_the_changes_of_a_series(root, many, no_kernel, capsys):
    assert cli.main(["why", "many"]) == 0
    said = capsys.readouterr().out
    assert said.count("many/traits: runs") == 1 and "many:Be-calm/decode: runs" in said and "many/series: runs" in said
    assert cli.main(["run", "many"]) == 0
    assert {s for file in parts(many) for s, _ in explain(file).values()} == {"up to date"}
    (root / "outputs/many/members/Be-calm/decode/metrics.json").write_text("{}")
    assert [bool(p) for p in verify(root / "params/many:Be-calm.yml").values()] == [False, False, True, False, False]
    capsys.readouterr()
    assert cli.main(["verify", "many"]) == 1
    assert "many:Be-calm/decode: NOT as recorded" in capsys.readouterr().out
    assert cli.main(["clean", "many:Be-calm"]) == 0 and cli.main(["clean", "many:.."]) == 1
    assert sorted(p.name for p in (root / "outputs/many/members").iterdir()) == ["Be-kind", "Be-wild"]
    assert (root / "outputs/many/traits/run.json").is_file()


@pytest.mark.usefixtures("plain_reports")
def test_after_a_change_that_fails_the_others_go_on_if_they_are_told_to(root, many, no_kernel, capsys):
    cell = 'if "calm" in intervention["system"]:\n    raise ValueError("not calm")\nrun.metric("number", 1)'
    write_notebook(root / "notebooks/decode.ipynb", "decode", cell)
    assert [r.experiment for r in run_experiment(many, echo=False)][-1] == "many:Be-calm"
    assert not (root / "outputs/many/series").exists()
    results = run_experiment(many, echo=False, keep_going=True)
    assert [(r.experiment, r.stage) for r in results if not r.good] == [("many:Be-calm", "decode")]
    assert '"changes": 2' in (root / "outputs/many/series/metrics.json").read_text()


@pytest.mark.usefixtures("plain_reports")
def test_what_is_missing_is_named_before_anything_runs(root, many, no_kernel, capsys):
    write(root, "  - {kind: prompt, system: Be kind., name: kind}\n  - {kind: adapter, path: [runs/a, runs/b]}\n")
    assert cli.main(["run", "many"]) == 1
    said = capsys.readouterr().err
    assert "runs/a: there is no such folder" in said and "runs/b: there is no such folder" in said and not no_kernel
    assert "params/many.yml:8: " in said and "--keep-going" in said
    assert cli.main(["run", "many", "--keep-going"]) == 1
    assert "many:a: left out: " in capsys.readouterr().out and (root / "outputs/many/members/kind/validate").is_dir()
    good, wrong = load_members(many)
    assert list(good) == ["kind"] and list(wrong) == ["a", "b"]


def test_a_checkpoint_that_cannot_be_had_is_told_without_loading_it(root, monkeypatch):
    import transformers.utils

    def asked(name, file, revision=None):
        if revision == "step-9":
            raise OSError(f"step-9 is not a valid\ngit identifier for {name}")

    monkeypatch.setattr(transformers.utils, "cached_file", asked)
    path = write(root, "  - {kind: checkpoint, model: some/one, revision: [step-1, step-9]}\n")
    good, wrong = load_members(path, ask=True)
    assert list(good) == ["step-1"] and "some/one at step-9: step-9 is not a valid git identifier" in wrong["step-9"]


def test_a_checkpoint_on_this_disk_is_looked_at_and_not_asked_of_the_hub(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "runs/half").mkdir(parents=True)
    more = "  - {kind: checkpoint, model: [./runs/half, ./runs/none, ./runs/none.gguf]}\n"
    good, wrong = load_members(write(root, more), ask=True)
    assert not good
    assert [w.partition(": ")[2] for w in wrong.values()] == [
        "./runs/half holds no config.json",
        "./runs/none: there is no such folder or file",
        "./runs/none.gguf: there is no such folder or file",
    ]
    good, wrong = load_members(write(root, "  - {kind: checkpoint, model: ./runs/half, revision: [a, b]}\n"), ask=True)
    assert not good and all("a revision is a version on the hub" in said for said in wrong.values())


# --------------------------------------------------------------------------------------------------------- what is told


def readings(p: np.ndarray, **columns) -> pd.DataFrame:
    """A table of ``stage.readings`` with p-values ``p`` [behaviours, changes]."""
    b, k = p.shape
    table = pd.DataFrame({"hypothesis_id": np.repeat([f"h{i:02d}" for i in range(b)], k), "p_value": p.ravel()})
    table["behaviour"] = table["hypothesis_id"].str.replace("h", "behaviour ")
    table = table.assign(change=np.tile([f"step-{j}" for j in range(k)], b), x=np.tile(np.arange(k, dtype=float), b))
    given = {"family": "form", "unit": "share", "base": 0.1, "changed": 0.3, "difference": 0.2, "low": 0.1, "high": 0.3}
    given |= {"size": 0.2, "attainable": 0.0, "prompts": 100, "claim": "a claim"}
    return table.assign(**given | columns)


def test_holm_is_holm_and_pays_not_for_tests_that_cannot_be_rejected():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).uniform(size=40) ** 3
    np.testing.assert_allclose(holm_adjusted(p), multipletests(p, method="holm")[1])
    with_others = np.concatenate([p, np.full(200, 0.6)])
    least = np.concatenate([np.zeros(40), np.full(200, 0.5)])
    found = holm_adjusted(with_others, least)
    np.testing.assert_allclose(found[:40], holm_adjusted(p))
    assert (found[40:] == 1).all()
    assert np.isnan(holm_adjusted(np.array([np.nan, 0.01]))[0])


def test_nothing_is_told_of_changes_that_change_nothing_more_often_than_stated():
    """Six copies of one model share its base's answers, so their tests depend; behaviours are of several rarities."""
    rng, runs, false = np.random.default_rng(1), 300, 0
    for _ in range(runs):
        rates = rng.uniform(0.01, 0.5, size=20)
        answers = rng.random((7, 60, 20)) < rates  # the base, and six changes
        p, least = np.empty((20, 6)), np.empty((20, 6))
        for k in range(6):
            test = paired_test(answers[0].astype(float), answers[k + 1].astype(float), np.zeros(20, int))
            p[:, k], least[:, k] = test.p, 2 * 0.5 ** (test.more + test.less)
        read = readings(p, attainable=np.minimum(least, 1).ravel())
        false += bool(stage.told(read, 0.05)["told"].any())
    assert false <= 0.05 * runs + 2 * (0.05 * 0.95 * runs) ** 0.5  # two standard deviations above


def test_a_behaviour_begins_at_the_first_change_at_which_it_is_told():
    p = np.full((4, 5), 0.5)
    p[0, 2:], p[1, 4], p[2, 1:3] = 1e-7, 1e-6, 1e-8
    first = stage.began(stage.told(readings(p), 0.05))
    assert first["behaviour"].tolist() == ["behaviour 02", "behaviour 00", "behaviour 01"]
    assert first["first"].tolist() == ["step-1", "step-2", "step-4"] and first["before"].tolist() == [
        "step-0",
        "step-1",
        "step-3",
    ]
    assert first["changes"].tolist() == [2, 3, 1]
    assert not len(stage.began(stage.told(readings(np.full((2, 2), 0.9)), 0.05)))


def tables(rates: list[float], prompts: int = 120, seed: int = 0) -> list[dict[str, pd.DataFrame]]:
    """Claims and verdicts of two behaviours at changes that show the first one in these shares of answers."""
    rng, found = np.random.default_rng(seed), []
    base = rng.random((prompts, 2)) < 0.2
    for rate in rates:
        changed = rng.random((prompts, 2)) < np.array([rate, 0.2])
        test = paired_test(base.astype(float), changed.astype(float), np.zeros(2, int))
        claims = pd.DataFrame(
            {"hypothesis_id": ["a", "b"], "text": ["hedges", "warns"], "kind": "stance", "unit": "share"}
        )
        claims = claims.assign(base=test.base, intervention=test.changed, difference=test.difference, low=test.low)
        claims = claims.assign(high=test.high, size=np.abs(test.difference), p_value=test.p, prompts=prompts)
        claims["direction"] = np.where(test.difference >= 0, "intervention", "base")
        claims = claims.assign(proposer="panel", scope="all prompts", claim="said", confirmed=test.rejected)
        sides = {"score_base": base.T.ravel().astype(float), "score_intervention": changed.T.ravel().astype(float)}
        ids = {"hypothesis_id": np.repeat(["a", "b"], prompts), "prompt_id": [f"p{i}" for i in range(prompts)] * 2}
        found.append({"claims": claims, "verdicts": pd.DataFrame(ids | sides)})
    return found


def test_two_changes_are_compared_with_each_other():
    one, other, same = tables([0.2, 0.7, 0.2])
    apart = stage.between(one, other)
    assert apart["behaviour"].tolist() == ["hedges", "warns"] and apart["confirmed"].tolist() == [True, False]
    shares = [t["verdicts"].query("hypothesis_id == 'a'")["score_intervention"].mean() for t in (one, other)]
    assert apart.loc[0, ["a", "b"]].tolist() == pytest.approx(shares)
    assert not stage.between(one, same)["confirmed"].any()
    asked_else = {**other, "verdicts": other["verdicts"].assign(prompt_id="q")}
    with pytest.raises(DriftbookError, match="not asked the same prompts"):
        stage.between(one, asked_else)


@pytest.fixture
def planted(tmp_path):
    """The folders of four changes, of which the last two hedge, and a run that reads them."""
    spec = {"kind": "steer", "trait": "calm", "coefficient": [0.1, 0.2, 0.3, 0.4]}
    params = Experiment(experiment="many", interventions=[spec], traits={"files": ["calm.json"]})
    folders = {}
    for member, found in zip(params.members, tables([0.2, 0.2, 0.6, 0.8]), strict=True):
        folder = folders[member.name] = tmp_path / "many/members" / member.name
        (folder / "validate/data").mkdir(parents=True)
        (folder / "decode/data").mkdir(parents=True)
        (folder / "validate/run.json").write_text('{"verdict": {"lines": ["Changed: <b>hedges</b>."]}, "answer": ""}')
        for name, table in found.items():
            table.to_parquet(folder / f"validate/data/{name}.parquet")
        js = np.full(30, np.nan if member.number == 0.1 else member.number)
        pd.DataFrame({"js": js}).to_parquet(folder / "decode/data/divergence.parquet")
        (folder / "decode/run.json").write_text('{"unscreened": "decode.screen.enabled is false"}')
    return SimpleNamespace(params=params, section=params.series, seed=0, members=lambda: folders)


def test_the_page_says_what_moved_where_it_began_and_what_could_not_be_measured(planted):
    changes = stage.load(planted)
    apart, shifts = stage.divergence(changes), stage.trait_shifts(changes)
    read = stage.told(stage.readings(changes), 0.05)
    first = stage.began(read)
    assert first[["behaviour", "first", "before"]].values.tolist() == [["hedges", "coefficient-0.3", "coefficient-0.2"]]
    told = report.changes(planted, changes, apart, shifts)
    missing = told.frame["could not be measured"]
    assert missing[0] == "next-token divergence (decode.screen.enabled is false), traits inside"
    assert missing[1] == "traits inside"
    assert "&lt;b&gt;" in told.html() and "<b>" not in told.html()
    figures = [report.matrix(planted, read), report.multiples(planted, read, first), report.divergence(planted, apart)]
    for figure in figures:
        assert "<svg" in figure.html() and figure.alt and figure.caption
    assert figures[0].title == "1 of 2 behaviours are told to move, the first at coefficient-0.3"
    drawn = figures[0].plotly.layout
    assert drawn.xaxis.ticktext == ("0.1", "0.2", "0.3", "0.4") and drawn.yaxis.ticktext[0].startswith("hedges (")
    first_row = [(note.x, note.text) for note in drawn.annotations]
    share = read[read["told"]]["changed"]
    assert first_row == [(at, f"{value:.0%}") for at, value in zip((2, 3), share, strict=True)]
    assert "coefficient" in figures[1].title
    assert figures[0].table.iloc[0]["coefficient-0.4"].endswith("*") and report.traits(planted, shifts) is None
    assert report.began(first, 0.05).frame["first told at"].tolist() == ["coefficient-0.3"]
    said = report.answer(planted, read, first, changes)
    assert said.startswith(
        "1 of 2 behaviours are told to differ from the base somewhere in 4 changes. The first is told at coefficient"
    )


def test_members_are_compared_on_a_page_and_other_experiments_are_not(planted, tmp_path):
    folders = planted.members()
    pair = members_apart(folders["coefficient-0.1"], folders["coefficient-0.4"])
    assert pair.title == "1 of 2 behaviours differ between coefficient-0.1 and coefficient-0.4"
    assert members_apart(tmp_path / "a", tmp_path / "b") is None
    pair.frame.loc[0, "low"] = -np.inf  # a length of which few prompts say nothing
    assert "−∞" in pair.html()


def test_the_front_page_of_a_series_leads_to_its_changes_and_leaves_its_line_in_the_list(tmp_path, monkeypatch):
    folder = tmp_path / "outputs/many"
    pages.run(folder / "series", [pages.heatmap()], monkeypatch, metrics={"changes": 2, "behaviours_told": 1})
    for name in ("step-1", "step-2"):
        (folder / "members" / name).mkdir(parents=True)
        (folder / f"members/{name}/summary.json").write_text('{"line": "<b>More</b> lists."}')
    untold = {"state": "could not tell", "line": "With 9 prompts it is hard."}
    (folder / "members/step-2/summary.json").write_text(json.dumps(untold))
    page = render_series(folder).read_text()
    assert "Could not tell. With 9 prompts it is hard." in page
    assert 'href="members/step-2/index.html"' in page and 'href="series/report.html"' in page
    assert "&lt;b&gt;More" in page and "<b>More" not in page
    listed = render_outputs(tmp_path / "outputs").read_text()
    assert 'href="many/index.html"' in listed and "2 changes" in listed
