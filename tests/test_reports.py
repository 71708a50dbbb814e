"""Pages: what stands in them, what they weigh, and that nothing in them leaves the file or runs by itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import pages
from driftbook.errors import DriftbookError
from driftbook.prompts import Prompt, to_frame
from driftbook.workbook import figures
from driftbook.workbook.frontpage import alone
from driftbook.workbook.glossary import headings_in, terms
from driftbook.workbook.overlay import overlaid_layers, overlaid_tokens
from driftbook.workbook.packing import unpack
from driftbook.workbook.page import build_page, packed_plotly, read_notebook, still, without_outside
from driftbook.workbook.reports import render_compare, render_experiment, render_outputs, render_stage
from driftbook.workbook.theme import ASSETS
from pages import HOSTILE, Page

PACKED_PLOTLY = re.compile(r'<script type="text/plain" id="db-plotly">([^<]+)</script>')

EVERYTHING = (
    pages.forest,
    pages.dose,
    pages.families,
    pages.distribution,
    pages.heatmap,
    lambda: pages.traces(samples=3, layers=6, traits=3, length=30),
    lambda: pages.text_map(600),
    pages.table,
)


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, patch) -> str:
    folder = tmp_path_factory.mktemp("outputs") / "quickstart" / "cluster"
    return render_stage(pages.run(folder, [build() for build in EVERYTHING], patch)).read_text()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, patch) -> Path:
    """Two experiments that differ in a coefficient and in what was confirmed."""
    root = tmp_path_factory.mktemp("repository") / "outputs"
    pages.experiment(root / "quickstart", patch)
    pages.experiment(root / "other", patch, coefficient=0.9)
    pages.claims(root / "other", confirmed=(False, False, True))
    return root


# ------------------------------------------------------------------------------------------------------------ one stage


def test_a_report_opens_with_question_answer_and_figures_with_intervals(report: str) -> None:
    page = Page(report)
    assert page.by_tag["h1"] == ["Which behaviours moved?"]
    lead = page.text.index("The answer of cluster.")
    first = page.text.index("12.1%")
    assert page.text.index("Which behaviours moved?") < lead < first < page.text.index("Both are clustered")
    assert "95% interval 8.2% to 16.3%" in page.text and "baseline 0%" in page.text and "4,000 texts" in page.text


def test_nothing_leaves_the_file(report: str) -> None:
    page = Page(report)
    assert [a for a in page.outside() if not a.startswith("../")] == []
    assert "a paper (https://example.org/p)" in page.text  # a link in prose becomes an address to read
    for asset in set(ASSETS.glob("*.js")) - set(ASSETS.glob("plotly-*.js")):  # the policy of the page holds plotly down
        assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|\bimport\s*\(|eval\(", asset.read_text())


def test_a_policy_in_the_page_forbids_requests_and_foreign_scripts(report: str) -> None:
    page = Page(report)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy and "*" not in policy
    nonce = re.search(r"'nonce-([^']+)'", policy)[1]
    for tag, attributes in page.elements:
        if tag == "script" and "type" not in attributes:
            assert attributes["nonce"] == nonce


def test_hostile_text_stays_text_everywhere(report: str) -> None:
    page = Page(report)
    assert page.count("img") == 0 and page.count("iframe") == 0
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert HOSTILE in page.text
    assert "a model said: " + HOSTILE in page.text


def test_code_is_folded_and_the_defaults_that_did_not_hold_are_left_out(report: str) -> None:
    page = Page(report)
    code = [a for t, a in page.elements if t == "details" and a.get("class") == "db-code"]
    assert len(code) > 5 and all("open" not in a for a in code)
    assert "experiment = 'quickstart'" in page.text and "'defaults'" not in page.text


def test_provenance_can_be_read(report: str) -> None:
    text = Page(report).text
    facts = ("driftbook run quickstart", "12" * 20 + ", with local changes", "no GPU was found", "2 min 3 s", "812 MB")
    for fact in (*facts, "cell 4 11.2 s", "uncertainty_calibration", "data/clusters.parquet"):
        assert fact in text, fact


def test_plotly_stands_once_in_a_page_with_plots_and_nowhere_else(report: str, tmp_path: Path, monkeypatch) -> None:
    assert report.count('id="db-plotly"') == 1
    assert PACKED_PLOTLY.search(report)[1] == packed_plotly(whole=True)  # the map is drawn by WebGL
    plotted = render_stage(pages.run(tmp_path / "x" / "decode", [pages.forest()], monkeypatch)).read_text()
    assert PACKED_PLOTLY.search(plotted)[1] == packed_plotly(whole=False) and len(plotted) < 850_000
    plain = render_stage(pages.run(tmp_path / "x" / "traits", [pages.table()], monkeypatch)).read_text()
    assert 'id="db-plotly"' not in plain and len(plain) < 60_000
    read = render_stage(pages.run(tmp_path / "x" / "capture", [EVERYTHING[5]()], monkeypatch)).read_text()
    assert 'id="db-plotly"' not in read and "kinds.trace" in read and "kinds.map" not in read


def test_the_small_plotly_is_the_one_that_figures_are_made_for() -> None:
    """Both bundles are of one version, with what figures.py draws in the small one: else update the asset."""
    whole, small = (unpack(packed_plotly(w)).decode() for w in (True, False))
    version = re.compile(r"^\* plotly\.js .*?v([\d.]+)$", re.M)
    assert version.search(small)[1] == version.search(whole)[1]
    assert all(f'name:"{kind}"' in small for kind in ("scatter", "bar", "heatmap"))
    assert "MIT License" in (ASSETS / "plotly-cartesian.LICENSE").read_text()


def test_a_plot_on_webgl_brings_the_whole_of_plotly(tmp_path: Path, monkeypatch) -> None:
    own = figures.Figure(go.Figure(go.Scattergl(x=[1, 2], y=[3, 4], mode="markers")), "t", "c", "a")
    page = render_stage(pages.run(tmp_path / "x" / "decode", [own], monkeypatch)).read_text()
    assert 'data-kind="gl"' in page and PACKED_PLOTLY.search(page)[1] == packed_plotly(whole=True)


def test_the_same_run_gives_the_same_page(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(tmp_path / "x" / "cluster", [pages.forest()], monkeypatch)
    first = render_stage(folder).read_bytes()
    assert render_stage(folder).read_bytes() == first


def test_there_is_one_h1_and_headings_of_a_notebook_follow_it(tmp_path: Path) -> None:
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# The *question*"), v4.new_markdown_cell("# Another\n\n```\n# a comment\n```")]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "notebook.ipynb")
    story = read_notebook(tmp_path / "notebook.ipynb")
    assert story.title == "The question"
    assert "<h1" not in story.html and "<h2" in story.html and "# a comment" in story.html


def test_a_traceback_is_open_and_escaped(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(
        tmp_path / "x" / "cluster.failed", [], monkeypatch, stage="cluster", status="failed", answer="", headlines=[],
        failure={"stage": "cluster", "cell": 3, "reason": f"ValueError: {HOSTILE}"},
    )  # fmt: skip
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    error = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="x", traceback=[f"\x1b[31mTrace {HOSTILE}\x1b[0m"]
    )
    notebook.cells[3].outputs = [error]
    nbformat.write(notebook, folder / "notebook.ipynb")
    page = Page(render_stage(folder).read_text())
    assert "This run failed" in page.text and "Stage cluster, cell 4: print(answer)" in page.text
    assert f"ValueError: {HOSTILE}" in page.text and f"Trace {HOSTILE}" in page.text
    opened = [a for t, a in page.elements if a.get("class") == "db-code" and "open" in a]
    assert len(opened) == 1 and page.count("img") == 0


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ({"cell": 3, "reason": "the kernel was killed by SIGKILL"}, "cell 4: print(answer)"),
        ({"cell": None, "reason": "the kernel did not start"}, "the kernel did not start"),
        ({"cell": 3, "reason": "the notebook ended without run.finish()"}, "run.finish()"),
        ({"cell": 99, "reason": "the cell took longer than the time allowed"}, "cell 100"),
        (None, "No reason was recorded"),
    ],
)
def test_every_failure_has_a_banner(tmp_path: Path, monkeypatch, failure, said: str) -> None:
    folder = tmp_path / "x" / "cluster.failed"
    pages.run(folder, [], monkeypatch, status="failed", failure=failure, answer="", headlines=[])
    page = Page(render_stage(folder).read_text())
    assert page.count("section", role="alert") == 1
    assert said in page.text and "Nothing on this page counts as a result" in page.text


def test_a_failed_run_without_notebook_still_has_a_report(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(tmp_path / "x" / "cluster.failed", [], monkeypatch, status="failed")
    (folder / "notebook.ipynb").unlink()
    assert "Which behaviours moved, by how much?" in Page(render_stage(folder).read_text()).by_tag["h1"]


def test_records_with_little_in_them_are_drawn(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(tmp_path / "x" / "cluster", [], monkeypatch)
    (folder / "run.json").write_text('{"stage": "cluster", "status": "ok"}')
    assert "Which behaviours moved?" in render_stage(folder).read_text()


def test_a_range_of_turns_is_not_called_an_interval(tmp_path: Path, monkeypatch) -> None:
    shown = [
        {"label": "speedup", "value": 3.0, "low": 2.0, "high": 4.0, "spread": "range of the turns"},
        {"label": "recall", "value": 0.5, "low": 0.25, "high": 0.75},
    ]
    folder = pages.run(tmp_path / "bench-embed", [], monkeypatch, experiment="bench-embed", headlines=shown)
    html = render_stage(folder).read_text()
    assert "range of the turns 2 to 4" in html and "95% interval 2 to 4" not in html
    assert "95% interval 0.25 to 0.75" in html


def test_a_bench_has_a_report_of_its_own(tmp_path: Path, monkeypatch) -> None:
    staging = tmp_path / ".staging-bench-embed-7"  # where the runner builds it
    folder = pages.run(staging, [pages.forest()], monkeypatch, experiment="bench-embed", stage="bench-embed")
    html = render_stage(folder).read_text()
    page = Page(html)
    assert "../index.html" in page.addresses and not any("/report.html" in a for a in page.addresses)
    assert "staging" not in html and "bench-embed</" in html


@pytest.mark.parametrize("name", ["run.json", "notebook.ipynb"])
def test_damaged_files_are_named_with_the_remedy(tmp_path: Path, monkeypatch, name: str) -> None:
    folder = pages.run(tmp_path / "x" / "cluster", [], monkeypatch)
    (folder / name).write_text("{ half")
    with pytest.raises(DriftbookError, match=rf"{name}.*run the stage again"):
        render_stage(folder)


def test_a_figure_whose_data_is_gone_is_an_error(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(tmp_path / "x" / "cluster", [pages.text_map(6_000)], monkeypatch)
    shutil.rmtree(folder / "figures")
    with pytest.raises(DriftbookError, match="the data of a figure is missing"):
        render_stage(folder)


def test_what_libraries_put_into_outputs_cannot_reach_out() -> None:
    html = (
        '<script src="https://cdn.example/x.js"></script><script>boom()</script><iframe src="https://a.example"></iframe>'
        '<img src="https://a.example/p.png"><img src="data:image/png;base64,AA"><a href="https://a.example/">text</a>'
        '<a href="#here">here</a><a href="../cluster/report.html">cluster</a><p background="//a.example/b">x</p>'
        '<a href="javascript:alert(1)">j</a><link rel="stylesheet" href="https://a.example/s.css">'
    )
    page = Page(without_outside(html))
    assert page.addresses == ["data:image/png;base64,AA", "#here", "../cluster/report.html"]
    assert page.count("script") == page.count("iframe") == page.count("link") == 0
    assert "text (https://a.example/)" in page.text and "boom" not in page.text


# --------------------------------------------------------------------------------------------------------------- weight


def test_two_hundred_thousand_points_weigh_less_than_five_and_a_half_megabytes(tmp_path: Path, monkeypatch) -> None:
    folder = pages.run(tmp_path / "x" / "cluster", [pages.text_map(200_000), pages.forest()], monkeypatch)
    assert (folder / "notebook.ipynb").stat().st_size < 200_000
    report = render_stage(folder).read_text()
    assert len(report.encode()) < 5_500_000
    assert 'data-kind="map"' in report


def test_a_page_without_maps_weighs_less_than_two_megabytes(tmp_path: Path, monkeypatch) -> None:
    figures = [build() for build in EVERYTHING[:5]]
    report = render_stage(pages.run(tmp_path / "x" / "capture", figures, monkeypatch)).read_text()
    assert len(report.encode()) < 2_000_000


def test_what_stands_before_the_scripts_is_small(report: str) -> None:
    """The first picture comes before plotly and before the data: a page says something at once."""
    start = report.index('class="db-live"')
    style = report.index("</style>")
    assert start - style < 100_000
    assert report.index('id="db-plotly"') > report.rindex("</figure>")


# ---------------------------------------------------------------------------------------------------------- front page

NAMES = ("smollm2-135m-instruct", "smollm2-135m-instruct, steered")
SECTIONS = [
    *("The verdict", "What moved % of answers", "Read it", "Where inside", "How sure", "Could not see", "Reproduce")
]


@pytest.fixture(scope="module")
def front(outputs: Path) -> Page:
    return Page(render_experiment(outputs / "quickstart").read_text())


def test_the_front_page_goes_from_the_verdict_to_how_it_is_made_again(front: Page) -> None:
    assert front.by_tag["h1"] == [f"{NAMES[0]} →, then {NAMES[1]}"]
    assert front.by_tag["h2"] == SECTIONS
    assert front.outside() == [] and front.count("img") == 0


def test_the_verdict_names_the_models_what_moved_and_how_sure_it_is(front: Page) -> None:
    claim = "hedges with words such as maybe"
    changed = "smollm2-135m-instruct (steered)"  # its comma would part the sentence
    assert f"changed Compared with {NAMES[0]}, {changed} more often {claim} (10% → 30% of answers)." in front.text
    assert "120 prompts, 2 answers of each model to each; 1 of 3 claims are confirmed." in front.text


def test_what_puts_results_in_doubt_stands_above_them(front: Page) -> None:
    cut = f"(!) 50% of {NAMES[0]}'s answers and 0% of {NAMES[1]}'s were cut off at the token limit."
    assert front.text.index(cut) < front.text.index("What moved")
    assert "The smallest change that could be seen: a behaviour of 10% of answers that goes to" in front.text


def test_a_row_tells_was_now_and_change_and_leads_to_the_answers(front: Page) -> None:
    row = next(r for r in front.by_tag["tr"] if r.startswith("hedges"))
    assert row == "hedges with words such as maybe10%30%+20 (10 to 30)[1]"
    assert "answers.html#claim-1" in front.addresses and front.count("tr", id="claim-1") == 1


def test_pairs_to_read_mark_the_evidence_and_never_show_it_on_both_sides(front: Page) -> None:
    marks = front.by_tag["mark"]
    assert marks == ["Maybe"] * 2
    assert all(a.startswith("answers.html#answer-intervention-p") for a in front.addresses if "#answer-" in a)
    assert "Do it now." in front.text and HOSTILE in front.text


def test_both_sides_that_show_it_are_no_example(outputs: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "x"
    shutil.copytree(outputs / "quickstart", experiment)
    path = experiment / "decode/data/texts.parquet"
    texts = pd.read_parquet(path)
    texts.assign(text="Maybe. " + texts["text"]).to_parquet(path)
    assert "mark" not in Page(render_experiment(experiment).read_text()).by_tag


def test_where_inside_is_a_curve_over_layers_and_the_tokens(front: Page) -> None:
    assert "Uncertainty rises from the third token on" in front.text  # the trace that capture marks
    assert "The trait appears from layer 12 on" not in front.text
    assert "Uncertainty calibration moved most" in front.text


def test_how_sure_says_what_was_checked_and_what_to_beware_of(front: Page) -> None:
    assert "1 of 3 behaviours, phrases and groups of sentences that were checked are confirmed" in front.text
    assert "hedges with words such as maybe: Nothing is left of it when length is held fixed." in front.text
    assert "Null run: none beside this experiment" in front.text


def given_intervention(experiment: Path, intervention: dict) -> None:
    for stage in ("traits", "capture", "decode", "cluster", "validate"):
        path = experiment / stage / "run.json"
        record = json.loads(path.read_text())
        record["components"]["params"]["intervention"] = intervention
        path.write_text(json.dumps(record))


def test_a_null_run_beside_it_is_told_but_for_answers_of_other_models(outputs: Path, tmp_path: Path) -> None:
    for name in ("quickstart", "null"):
        shutil.copytree(outputs / "quickstart", tmp_path / name)
    given_intervention(tmp_path / "null", {"kind": "none"})
    text = Page(render_experiment(tmp_path / "quickstart").read_text()).text
    assert "Null run: of the same model twice (null), 1 of 3 claims were confirmed." in text
    given_intervention(tmp_path / "quickstart", {"kind": "texts", "path": "a.csv"})
    text = Page(render_experiment(tmp_path / "quickstart").read_text()).text
    assert "Null run: none; a table of answers that one of the models gave twice makes one." in text


def test_what_could_not_be_seen_is_said_with_the_effect_that_would_have_been(front: Page) -> None:
    text = front.text
    assert "52 of 64 behaviours moved by less than 3 points." in text  # the verdict's second line
    assert "no judge read them" in text
    assert re.search(r"the mean over the 100 prompts that were screened is known to ±0\.00[34]", text)
    # 2.39 + 0.84 standard errors, of half-widths 1, 2 and 4 points, with three tests at once
    assert "2 of 3 clusters did not change their share beyond chance" in text
    assert "of 3.3 points in the median cluster, of 6.6 in the least certain one" in text
    # the chosen layers decide, not the one where most moved
    assert f"1 of 2 traits moved from {NAMES[0]} to {NAMES[1]}, and no shift was found of trait_1" in text


def test_to_reproduce_it_stands_command_commit_seed_and_answers(front: Page) -> None:
    for fact in ("make run EXP=quickstart", "12" * 6, "with local changes", "seed 0"):
        assert fact in front.text, fact
    assert "answers.csv" in front.addresses


def test_every_page_of_an_experiment_leads_to_every_other(outputs: Path, front: Page) -> None:
    stages = {f"{s}/report.html" for s in ("decode", "cluster", "capture", "traits", "validate")}
    assert stages | {"answers.html", "../index.html"} <= set(front.addresses)
    report = Page(render_stage(outputs / "quickstart/decode").read_text())
    above = {f"../{s}" for s in stages - {"decode/report.html"}}
    assert above | {"../index.html", "../answers.html", "../../index.html"} <= set(report.addresses)
    answers = Page((outputs / "quickstart/answers.html").read_text())
    assert stages | {"index.html", "../index.html"} <= set(answers.addresses)


def test_words_of_art_are_explained_from_the_glossary(outputs: Path, front: Page) -> None:
    block = re.search(r'class="db-glossary">([^<]*)<', (outputs / "quickstart/index.html").read_text())[1]
    explained = json.loads(block)
    assert {"95% interval", "token limit"} <= set(front.by_tag["dt"]) and "propensity" not in explained
    assert set(front.by_tag["dt"]) - {"decode", "cluster", "capture"} <= set(explained)


def test_headings_are_explained_however_their_words_are_joined() -> None:
    heads = "<th scope='col'>q value</th><th>e-value</th><th>win&nbsp;low</th><th>colour</th>"
    html = f"<table>{heads}</table><td>judge</td>"
    found = headings_in(html)
    assert set(found) == {"q value", "e-value", "win\xa0low"} and "wealth of a bet" in found["e-value"]


def test_every_word_that_pages_explain_is_in_the_glossary_once() -> None:
    found = [w.lower() for w in terms()]
    assert len(found) == len(set(found)) > 25 and "residual stream" in found


def test_a_page_that_stands_alone_leads_nowhere_and_says_the_same(outputs: Path) -> None:
    html = render_experiment(outputs / "quickstart").read_text()
    page, by_itself = Page(html), Page(alone(html))
    assert all(a.startswith(("#", "data:")) for a in by_itself.addresses) and by_itself.count("nav") == 0
    assert by_itself.blocks == page.blocks and by_itself.by_tag["h2"] == page.by_tag["h2"]


def test_texts_from_elsewhere_speak_of_who_wrote_them(tmp_path: Path, outputs: Path) -> None:
    experiment = tmp_path / "x"
    shutil.copytree(outputs / "quickstart", experiment)
    shutil.rmtree(experiment / "capture")
    for stage in ("traits", "decode", "cluster", "validate"):
        path = experiment / stage / "run.json"
        record = json.loads(path.read_text())
        told = {"intervention": {"kind": "texts", "path": "a.csv"}, "names": {"base": HOSTILE[:70], "changed": "SimPO"}}
        record["components"]["params"] |= told
        path.write_text(json.dumps(record))
    page = Page(render_experiment(experiment).read_text())
    assert page.by_tag["h1"] == [f"{HOSTILE[:70]} →, then SimPO"] and page.count("img") == 0
    assert "Text only: no weights were seen." in page.text and "read by smollm2-135m-instruct" in page.text
    assert "Not measurable from text." in page.text and "How did smollm2" not in page.text


def test_missing_and_failed_stages_are_named(tmp_path: Path, monkeypatch) -> None:
    experiment = tmp_path / "outputs" / "quickstart"
    pages.run(experiment / "decode", [pages.families()], monkeypatch)
    pages.run(
        experiment / "cluster.failed", [], monkeypatch, stage="cluster", status="failed",
        failure={"cell": 1, "reason": "out of memory"},
    )  # fmt: skip
    page = Page(render_experiment(experiment).read_text())
    assert "The last run of cluster failed" in page.text and "out of memory" in page.text
    assert "cluster.failed/report.html" in page.addresses
    assert "make validate EXP=quickstart" in page.text
    assert "Nothing has been validated yet" in page.text


def test_an_experiment_without_runs_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(DriftbookError, match="make run EXP=quickstart"):
        render_experiment(tmp_path / "quickstart")


def test_the_null_experiment_is_one_model_twice(tmp_path: Path, monkeypatch) -> None:
    record = pages.run_record("decode")
    record["components"]["params"]["intervention"] = {"kind": "none"}
    pages.run(tmp_path / "null" / "decode", [], monkeypatch, components=record["components"])
    page = Page(render_experiment(tmp_path / "null").read_text())
    assert page.by_tag["h1"] == ["smollm2-135m-instruct →, then smollm2-135m-instruct, again"]
    assert "Does anything differ between smollm2-135m-instruct and itself?" in page.text


# -------------------------------------------------------------------------------------------------------------- answers


def many_answers(experiment: Path, prompts: int, text: str) -> Path:
    """An experiment with that many prompts, whose answers hold ``text``."""
    (experiment / "decode/data").mkdir(parents=True)
    (experiment / "decode/run.json").write_text(json.dumps(pages.run_record("decode")))
    asked = [Prompt(f"Prompt {i}?", split="validate") for i in range(prompts)]
    to_frame(asked).to_parquet(experiment / "decode/data/prompts.parquet")
    noise = np.random.default_rng(0).integers(0, 10**18, (2, prompts, 4))
    rows = [
        {"text_id": f"{side}-{i}", "side": side, "prompt_id": p.prompt_id, "text": f"{text} {noise[k, i].tolist()}"}
        for k, side in enumerate(("base", "intervention"))
        for i, p in enumerate(asked)
    ]
    pd.DataFrame(rows).to_parquet(experiment / "decode/data/texts.parquet")
    return experiment


def test_answers_that_do_not_fit_are_left_to_the_table_and_the_page_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("driftbook.workbook.answers.BUDGET", 100_000)
    experiment = many_answers(tmp_path / "x", 2_000, "It depends on what you want, and on how long it may take.")
    render_experiment(experiment)
    html = (experiment / "answers.html").read_text()
    assert len(html.encode()) < 100_000 + 60_000
    held = re.search(r"This page holds ([\d,]+) of the prompts", html)[1].replace(",", "")
    assert 400 < int(held) < 2_000
    assert (experiment / "answers.csv").read_text().count("\n") == 4_001


def test_answers_of_every_kind_stand_in_the_page_as_data(outputs: Path) -> None:
    render_experiment(outputs / "quickstart")
    page = Page((outputs / "quickstart/answers.html").read_text())
    data = json.loads(unpack(page.blocks["answers"][0]))
    assert len(data["prompts"]) == 120 and [len(t) for t in data["texts"]] == [120, 120]
    assert set(data["shows"][0]) == {"b", "c", "."} and HOSTILE in data["texts"][0][0][0]
    spans = next(iter(data["marks"][0].values()))
    assert spans == [[[]], [[[0, 5]]]]  # Maybe


HOSTILE_TEXTS = {
    "script": HOSTILE,
    "ANSI": "\x1b[31mred\x1b[0m \x1b]0;title\x07",
    "right to left": "\u202eevil\u202c שלום \u2066abc",
    "combining": "a" + "\u0301" * 100_000,
    "NUL": "before\x00after",
    "surrogate": "half \ud800 pair",
    "line ends": "a\u2028b\u2029c\x85d",
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_answers_prompts_names_and_claims_are_text(tmp_path: Path, outputs: Path, name: str) -> None:
    said = HOSTILE_TEXTS[name]
    kept = said.encode("utf-8", "replace").decode()
    experiment = tmp_path / "x"
    shutil.copytree(outputs / "quickstart", experiment)
    for table in ("decode/data/texts", "decode/data/prompts", "validate/data/claims"):
        frame = pd.read_parquet(experiment / f"{table}.parquet")
        hostile = {i: f"Maybe {kept}" if i % 2 else kept for i in range(8)}
        frame["text"] = [hostile.get(i, old) for i, old in enumerate(frame["text"])]
        frame.to_parquet(experiment / f"{table}.parquet")
    for stage in ("traits", "capture", "decode", "cluster", "validate"):
        path = experiment / stage / "run.json"
        record = json.loads(path.read_text())
        record["components"]["params"]["names"] = {"base": said[:70], "changed": f"changed {said[:60]}"}
        path.write_text(json.dumps(record))
    html = render_experiment(experiment).read_text()
    page, answers = Page(html), Page((experiment / "answers.html").read_text())
    for drawn in (page, answers):
        assert drawn.count("img") == drawn.count("iframe") == 0 and drawn.outside() == []
        assert all(not a.startswith("on") for _, attributes in drawn.elements for a in attributes)
    assert page.by_tag["h2"] == SECTIONS and "\x00" not in html and "\x1b" not in html
    assert len(html) < 3_000_000
    assert "changed" in Page(render_outputs(tmp_path).read_text()).text


def test_a_report_too_large_to_send_keeps_its_heaviest_plots_still(tmp_path: Path, monkeypatch) -> None:
    noise = np.random.default_rng(0).random((100, 30, 200)).astype(np.float32)
    tokens = [[f" w{i}" for i in range(200)]] * 100
    prompts = [f"p{i}" for i in range(100)]
    heavy = figures.layer_token_heatmap(noise, tokens, range(30), title="t", caption="c", choices=prompts)
    shown = [pages.forest(), heavy, pages.traces(samples=3, layers=6, traits=3, length=30), heavy]
    html = render_stage(pages.run(tmp_path / "x" / "capture", shown, monkeypatch)).read_text()
    assert len(html.encode()) < 2_000_000
    assert re.findall(r'<figure class="db-figure" data-kind="(\w+)"', html) == ["plot", "still", "trace", "still"]
    page = Page(html)
    assert page.text.count("too large to send around") == 2 and page.count("svg", aria_hidden="true") >= 4


def test_a_still_figure_keeps_its_picture_words_and_csv() -> None:
    live = pages.forest().html()
    page = Page(still(live))
    assert page.count("svg") == 1 and set(page.blocks) == {"csv"} and page.count("figure", data_kind="still") == 1


# ------------------------------------------------------------------------------------------------------ all experiments


def test_the_list_has_a_row_an_experiment_with_names_verdict_what_moved_and_warnings(outputs: Path) -> None:
    for name in ("quickstart", "other"):
        render_experiment(outputs / name)
    page = Page(render_outputs(outputs).read_text())
    rows = [r for r in page.by_tag["tr"] if r.startswith("quickstart")]
    assert len(rows) == 1 and page.count("tr") == 3
    moved = "hedges with words such as maybe: 10% → 30%"
    for said in (" → ".join(NAMES), "changed", moved, "(!) 50% of", "2026-01-01"):
        assert said in rows[0], said
    assert rows[0].endswith("ran all stages") and "quickstart/index.html" in page.addresses


def test_five_hundred_experiments_are_listed_in_less_than_a_megabyte_without_opening_a_table(tmp_path: Path) -> None:
    for i in range(500):
        folder = tmp_path / f"experiment-{i:03d}" / "decode"
        folder.mkdir(parents=True)
        record = pages.run_record("decode", experiment=folder.parent.name, answer="Forty words. " * 30)
        (folder / "run.json").write_text(json.dumps(record))
    html = render_outputs(tmp_path).read_text()
    page = Page(html)
    assert len(html.encode()) < 1_000_000
    assert page.count("tr") == 501 and "experiment-042" in page.text
    assert page.outside() == []


def test_the_list_shows_failed_and_damaged_runs_benches_and_no_scaffolding(tmp_path: Path, monkeypatch) -> None:
    pages.run(tmp_path / "a" / "decode", [], monkeypatch, answer=HOSTILE, experiment="a")
    failure = {"cell": 1, "reason": "the kernel died"}
    pages.run(tmp_path / "a" / "cluster.failed", [], monkeypatch, status="failed", failure=failure, experiment="a")
    pages.run(tmp_path / "bench-embed", [], monkeypatch, experiment="bench-embed")
    pages.run(tmp_path / ".cache" / "decode", [], monkeypatch)
    (tmp_path / "b" / "traits").mkdir(parents=True)
    (tmp_path / "b" / "traits" / "run.json").write_text("{ half")
    page = Page(render_outputs(tmp_path).read_text())
    assert page.count("tr") == 5
    assert HOSTILE in page.text and "the kernel died" in page.text and "is damaged" in page.text
    assert "bench-embed/report.html" in page.addresses


# ----------------------------------------------------------------------------------------------------------- comparison


def test_a_comparison_shows_what_differs_and_nothing_else(outputs: Path, tmp_path: Path) -> None:
    text = Page(render_compare(outputs / "quickstart", outputs / "other", tmp_path / "c.html").read_text()).text
    assert "intervention.coefficient" in text and "0.5" in text and "0.9" in text
    assert "margin" not in text and "torch" not in text and "12.1%" not in text
    assert "On 240 texts that both hold, the adjusted Rand index is 1.0" in text


def test_claims_gained_and_lost(outputs: Path, tmp_path: Path) -> None:
    text = Page(render_compare(outputs / "quickstart", outputs / "other", tmp_path / "c.html").read_text()).text
    gained, lost = text.index("Confirmed in other alone"), text.index("Confirmed in quickstart alone")
    assert gained < text.index("ends with a question") < lost < text.index("hedges with words")
    assert "not confirmed, win rate 52% [45%, 59%]" in text


def test_traces_of_two_experiments_lie_over_one_another(outputs: Path) -> None:
    a, b = outputs / "quickstart", outputs / "other"
    figure = overlaid_tokens(a, b)
    settings = figure.view.settings
    assert settings["sides"] == ["quickstart", "other"] and len(settings["samples"]) == 4
    assert settings["samples"][0] == "asked 0" and settings["traits"] == ["uncertainty_calibration", "trait_1"]
    shape = (4, 6, 2, 12)
    scale, low, high = np.frombuffer(unpack(figure.view.blocks["scale"]), "<f4").reshape(3, 6, 2)
    means = []
    for side in settings["sides"]:
        steps = np.frombuffer(unpack(figure.view.blocks[side]), np.int8).reshape(shape)
        means.append((np.cumsum(steps, axis=1, dtype=np.int8) * scale[:, :, None]).mean(axis=(0, 3)))
    # shifts of 5 and 9, in null standard deviations of 2
    assert means[0][3:, 0] == pytest.approx(2.5, abs=0.4) and means[1][3:, 0] == pytest.approx(4.5, abs=0.4)
    assert np.allclose((low, high), [[[-1.96]], [[1.96]]])
    layers = overlaid_layers(a, b)
    assert set(layers.choices) == {"trait_1", "uncertainty_calibration"}
    assert set(layers.table.group) == {"quickstart", "other"}
    assert overlaid_tokens(a, a) is None and overlaid_layers(b, b) is None


def test_differences_of_headlines_have_intervals(tmp_path: Path, monkeypatch) -> None:
    for name, value in (("a", 10.0), ("b", 16.0)):
        entry = {"label": "shift", "value": value, "low": value - 3, "high": value + 4, "baseline": 0, "unit": "%"}
        pages.run(tmp_path / name / "capture", [], monkeypatch, headlines=[entry])
    text = Page(render_compare(tmp_path / "a", tmp_path / "b", tmp_path / "c.html").read_text()).text
    assert "6% [1, 11]" in text  # 3 and 4 on either side: as far off as the sides of a right triangle say


def test_experiments_that_are_alike_differ_in_nothing(outputs: Path, tmp_path: Path) -> None:
    page = Page(render_compare(outputs / "quickstart", outputs / "quickstart", tmp_path / "c.html").read_text())
    assert "Nothing: parameters, code, inputs, packages and numbers are alike." in page.text


def test_a_page_is_complete_html_with_landmarks() -> None:
    page = Page(build_page(title=HOSTILE, body=without_outside("<h1>x</h1>"), crumb=HOSTILE))
    for tag in ("html", "head", "title", "header", "main", "footer"):
        assert page.count(tag) == 1
    assert page.by_tag["title"] == [HOSTILE] and page.count("img") == 0
    assert page.count("a", href="#main") == 1 and page.count("main", id="main") == 1
