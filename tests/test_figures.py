"""Figures: what they show, what they carry, and that nothing a model wrote becomes markup."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import pages
from driftbook.workbook import figures
from driftbook.workbook.axes import Axis, nice_ticks
from driftbook.workbook.packing import MOST_STEPS, csv_text, differences, pack, quantize, script_json, to_int16, unpack
from driftbook.workbook.page import inline_files
from driftbook.workbook.raster import indexed_png
from driftbook.workbook.static import picture
from driftbook.workbook.tables import html_table
from driftbook.workbook.wording import by_name
from pages import HOSTILE, Page

BUILDERS = {
    "interval_plot": pages.forest,
    "curve": pages.dose,
    "bars": pages.families,
    "histogram": pages.distribution,
    "layer_token_heatmap": pages.heatmap,
    "trace_explorer": lambda: pages.traces(samples=3, layers=6, traits=3, length=30),
    "map_scatter": lambda: pages.text_map(900),
}


@pytest.fixture(scope="module", params=BUILDERS)
def figure(request: pytest.FixtureRequest) -> figures.Figure:
    return BUILDERS[request.param]()


def test_the_first_picture_is_small_and_needs_no_script(figure: figures.Figure) -> None:
    svg = figure.static()
    assert 1_000 < len(svg) < 40_000
    page = Page(svg)
    assert page.count("svg") == 1 and page.count("script") == 0
    assert page.outside() == []
    assert "nan" not in re.sub(r'href="data:[^"]*"', "", svg).lower()


def test_a_figure_has_its_finding_its_words_and_its_data(figure: figures.Figure) -> None:
    page = Page(figure.html())
    assert figure.title in page.text and figure.caption in page.text
    image = next(a for t, a in page.elements if a.get("class") == "db-static")
    assert image["role"] == "img" and image["aria-label"] == figure.alt
    assert len(figure.alt) > 40 and any(c.isdigit() for c in figure.alt)
    assert page.count("table") == 1 and page.count("tr") > 1


def test_hostile_text_stays_text(figure: figures.Figure) -> None:
    page = Page(figure.html())
    assert page.count("img") == 0 and page.count("a") == 0 and page.count("b") == 0
    scripts = [a for t, a in page.elements if t == "script"]
    assert scripts and all(a["type"] == "application/json" and a["class"] == "db-block" for a in scripts)
    assert page.outside() == []
    for name, blocks in page.blocks.items():
        assert name and all("<" not in block for block in blocks)


def test_titles_captions_and_alt_texts_are_escaped() -> None:
    plain = go.Figure(go.Scatter(x=[1, 2], y=[1, 2]))
    page = Page(figures.Figure(plain, HOSTILE, HOSTILE, HOSTILE, pd.DataFrame({HOSTILE: [HOSTILE]})).html())
    assert page.count("img") == 0 and page.outside() == []
    assert page.text.count(HOSTILE) == 4  # title, caption, column, cell


def test_plotly_shows_hostile_labels_as_they_are() -> None:
    """plotly reads a little HTML in labels (a link would be a link), so labels must hold entities."""
    spec = json.dumps(json.loads(pages.forest().plotly.to_json()))
    assert "&lt;/script&gt;" in spec and "<img" not in spec and "<a " not in spec


def test_in_jupyterlab_a_figure_is_a_plotly_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRIFTBOOK_RUN_DIR", raising=False)
    data, _ = pages.heatmap()._repr_mimebundle_()
    spec = data["application/vnd.plotly.v1+json"]
    assert spec["layout"]["title"]["text"] == "The trait appears from layer 12 on"
    assert len(spec["layout"]["updatemenus"][0]["buttons"]) == 2
    assert spec["layout"]["updatemenus"][0]["buttons"][1]["args"][0]["visible"] == [False, True]
    assert "text/html" not in data


def test_in_jupyterlab_traces_bring_their_own_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRIFTBOOK_RUN_DIR", raising=False)
    data, _ = pages.traces(samples=2, layers=2, traits=2, length=12)._repr_mimebundle_()
    page = Page(data["text/html"])
    assert page.outside() == [] and page.count("figure", data_kind="trace") == 1
    assert any("window.driftbook.start" in code for code in page.blocks[""])


def test_headless_large_data_goes_beside_the_notebook_and_comes_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DRIFTBOOK_RUN_DIR", str(tmp_path))
    figure = pages.text_map(6_000)
    data, metadata = figure._repr_mimebundle_()
    assert metadata["driftbook"] == {"figure": figure.title, "best": False}
    assert len(data["text/html"]) < 150_000
    assert list((tmp_path / "figures").glob("*.b64"))
    assert inline_files(data["text/html"], tmp_path) == figure.html()


def test_arrays_travel_as_typed_arrays() -> None:
    spec = json.loads(pages.dose().plotly.to_json())
    assert {trace["y"]["dtype"] for trace in spec["data"]} == {"f4"}
    spec = json.loads(pages.forest().plotly.to_json())
    assert {trace["y"]["dtype"] for trace in spec["data"]} == {"i2"}


# ------------------------------------------------------------------------------------------------------------- builders


def test_intervals_that_exclude_the_reference_are_marked() -> None:
    figure = figures.interval_plot(
        ["up", "none", "down"], [0.3, 0.05, -0.4], [0.1, -0.1, -0.6], [0.5, 0.2, -0.2], title="t", caption="c"
    )
    assert figure.table.marked.tolist() == [True, False, True]
    assert "2 marked" in figure.alt and "up: 0.3 [0.1, 0.5]" in figure.alt
    assert [list(t.text) for t in figure.plotly.data] == [["up", "down"], ["none"]]


def test_base_and_intervention_have_the_same_hue_in_every_figure() -> None:
    for figure in (pages.dose(), pages.distribution(), pages.families()):
        hues = {t.name: (t.line.color if t.type == "scatter" else t.marker.color) for t in figure.plotly.data if t.name}
        assert hues == {"base": figures.BASE, "intervention": figures.INTERVENTION}


def test_histogram_bins_hold_every_finite_value() -> None:
    values = np.array([0.0, 1.0, 2.0, np.nan, 5.0])
    figure = figures.histogram(values, title="t", caption="c", bins=5)
    assert figure.table["count"].sum() == 4
    assert figure.plotly.data[0].y.max() == pytest.approx(0.25)


def test_a_long_legend_takes_nothing_from_the_picture() -> None:
    names = [f"a claim with many words in its name, number {i}" for i in range(10)]
    x, groups = np.tile([1, 2], 10), np.repeat(names, 2)
    few = figures.curve(x[:4], x[:4], groups=groups[:4], title="t", caption="c").plotly.layout
    many = figures.curve(x, x, groups=groups, title="t", caption="c").plotly.layout
    assert many.height - (many.margin.t or 0) >= few.height - 80
    assert many.height > few.height


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'labels': 2, 'estimate': 3"):
        figures.interval_plot(["a", "b"], [1, 2, 3], [0, 0, 0], [2, 2, 2], title="t", caption="c")


def test_a_trace_counts_the_tokens_outside_its_null_band() -> None:
    figure = figures.trait_trace(
        ["a", "b", "c"], [0.0, 2.0, -3.0], null_low=-1, null_high=1, intervention=[5.0, 5.0],
        intervention_tokens=["a", "x"], title="t", caption="c",
    )  # fmt: skip
    assert "base: mean −0.333, 2 of 3 tokens outside the null band" in figure.alt
    assert "intervention: mean 5, 2 of 2" in figure.alt
    assert figure.table.side.tolist() == ["base"] * 3 + ["intervention"] * 2


def test_the_static_picture_shows_the_first_choice_alone() -> None:
    svg = Page(pages.heatmap().static())
    assert "␣w0" in svg.text and "␣v0" not in svg.text


# --------------------------------------------------------------------------------------------------------------- static


def test_the_picture_puts_points_where_the_data_says() -> None:
    figure = go.Figure(go.Scatter(x=[0, 1, 4], y=[0, 10, 5], mode="markers"))
    circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', picture(figure))
    x, y = np.array(circles, dtype=float).T
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(4, abs=0.01)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.5, abs=0.01)  # up is up


def test_bars_have_lengths_in_proportion_and_start_at_zero() -> None:
    svg = picture(go.Figure(go.Bar(x=["a", "b"], y=[1.0, 3.0])))
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights[1] / heights[0] == pytest.approx(3, abs=0.02)


def test_colours_of_the_picture_follow_the_theme_of_the_page() -> None:
    svg = pages.dose().static()
    assert "var(--db-c0,#0072b2)" in svg and "var(--db-c1,#d55e00)" in svg
    assert not re.search(r"(?<!,)#0072b2", svg)


def test_a_trace_type_without_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="'pie'"):
        picture(go.Figure(go.Pie(values=[1, 2])))


def test_a_line_without_a_point_is_drawn_as_none() -> None:
    drawn = go.Figure([go.Scatter(x=[], y=[], mode="lines"), go.Scatter(x=[0, 1], y=[0, 1], mode="lines")])
    assert picture(drawn).count("<path") >= 1


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(-0.62, 0.95) == [-0.5, 0.0, 0.5]
    assert nice_ticks(0, 1000, most=6) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(2, 2) == [2]


def test_ticks_of_large_numbers_are_written_out() -> None:
    svg = picture(figures.curve([1000, 20000], [723, 1442], title="t", caption="n = 2").plotly)
    assert ">20,000<" in svg and ">1,400<" in svg and "e+0" not in svg


def test_a_log_axis_puts_powers_at_equal_distances() -> None:
    axis = Axis("log", 0, 2, 0, 100, "", [], [], True, True)
    assert axis.position([1, 10, 100]).tolist() == [0, 50, 100]


def test_the_raster_is_a_png_that_others_read() -> None:
    from PIL import Image

    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.open(io.BytesIO(indexed_png(indices, [(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 255, 255)])))
    pixels = np.asarray(image.convert("RGBA"))
    assert pixels[0, 0].tolist() == [0, 0, 0, 0] and pixels[1, 0].tolist() == [0, 0, 255, 255]


# -------------------------------------------------------------------------------------------------------------- packing


def test_packing_is_the_same_every_time_and_comes_back() -> None:
    text = "ü " + HOSTILE * 100
    assert pack(text) == pack(text)
    assert unpack(pack(text)).decode() == text


def test_json_for_a_script_cannot_end_it_and_reads_back() -> None:
    value = {"text": HOSTILE, "line": "a\u2028b", "missing": float("nan"), "array": np.arange(3)}
    text = script_json(value)
    assert "<" not in text and ">" not in text
    assert json.loads(text) == {"text": HOSTILE, "line": "a\u2028b", "missing": None, "array": [0, 1, 2]}


def test_quantization_errs_by_half_a_step_at_most() -> None:
    values = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    values[0, 40:] = np.nan
    scale = np.nanmax(np.abs(values), axis=1, keepdims=True) / MOST_STEPS
    stored = quantize(values, scale)
    assert stored.dtype == np.int8 and (stored[0, 40:] == -128).all()
    error = np.abs(stored * scale - values)
    assert np.nanmax(error / scale) <= 0.5 + 1e-3
    assert (np.cumsum(differences(stored, axis=1), axis=1, dtype=np.int8) == stored).all()


def test_coordinates_keep_their_place_as_int16() -> None:
    values = np.random.default_rng(0).normal(size=1000) * 7 + 3
    stored, offset, step = to_int16(values)
    assert stored.dtype == np.int16
    assert np.abs(offset + step * stored.astype(float) - values).max() <= step / 2 + 1e-9
    with pytest.raises(ValueError, match="finite"):
        to_int16(np.array([0.0, np.inf]))


def test_csv_holds_the_numbers_and_disarms_formulas() -> None:
    text = csv_text(pd.DataFrame({"n": [-1.5, 2.0], "t": ["=HYPERLINK(1)", "- a list"]}))
    assert text == "n,t\n-1.5,'=HYPERLINK(1)\n2.0,- a list\n"


def test_a_table_cuts_hashes_and_gives_sentences_room() -> None:
    frame = pd.DataFrame({"frozen": ["ab" * 32], "text": ["a sentence of a model " * 4], "side": ["base"]})
    html = html_table(frame, caption="c")
    assert f'<code title="{"ab" * 32}">abababababab</code>' in html
    assert re.findall(r'<td class="([^"]*)"', html) == ["t", "t wide", "t"]


def test_a_table_says_what_is_missing_and_cuts_long_text() -> None:
    frame = pd.DataFrame({"n": [1.0, np.nan], "t": ["x" * 1000, None], "b": [True, False]})
    page = Page(html_table(frame, caption="c"))
    assert page.text.count("–") == 2 and "yes" in page.text and "no" in page.text
    assert max(map(len, page.texts)) == 400


# ------------------------------------------------------------------------------------------------------------ explorers


def test_traces_of_a_whole_capture_are_small_and_read_back() -> None:
    data = pages.trace_data()
    figure = figures.trace_explorer(data, title="t", caption="c", budget=10_000_000)
    shape = (24, 30, 10, 50)
    steps = _steps(figure, "intervention", shape)
    scale, low, high = np.frombuffer(unpack(figure.view.blocks["scale"]), "<f4").reshape(3, 30, 10)
    read = np.where(steps == -128, np.nan, steps * scale[None, :, :, None])
    truth = data["projections"]["intervention"]
    assert (np.isnan(read) == np.isnan(truth)).all()
    assert np.nanmax(np.abs(read - truth) / scale[None, :, :, None]) <= 0.5 + 1e-3
    assert np.allclose(low, -0.35) and np.allclose(high, 0.35)
    assert json.loads(unpack(figure.view.blocks["tokens"]))["base"][0][3] == HOSTILE


def _steps(figure: figures.Figure, side: str, shape: tuple[int, ...]) -> np.ndarray:
    """The traces of one side as the page's script reads them."""
    stored = np.frombuffer(unpack(figure.view.blocks[side]), np.int8).reshape(shape)
    return np.cumsum(stored, axis=1, dtype=np.int8)


def test_traces_leave_layers_and_then_prompts_out_rather_than_exceed_their_budget() -> None:
    data = pages.trace_data(samples=24, layers=30, traits=4, length=40)
    whole = figures.trace_explorer(data, title="t", caption="c", budget=10_000_000)
    assert whole.view.settings["note"] == "" and len(whole.view.settings["layers"]) == 30
    first = whole.view.settings["first"]
    for budget, layers, samples in ((180_000, range(11, 30), [24]), (40_000, [10], range(2, 24))):
        figure = figures.trace_explorer(data, title="t", caption="c", budget=budget)
        settings = figure.view.settings
        assert sum(len(figure.view.blocks[name]) for name in ("base", "intervention", "scale")) <= budget
        assert len(settings["layers"]) in layers and len(settings["samples"]) in samples
        assert f"{len(settings['layers'])} of 30 layers" in settings["note"]
        at, layer, trait = settings["first"]  # the first view is among what is left
        assert settings["samples"][at] == data["samples"][first[0]]
        assert settings["layers"][layer] == data["layers"][first[1]] and trait == first[2]
        kept = data["projections"]["base"][: len(settings["samples"]), settings["layers"]]
        if at < len(settings["samples"]) - 1:
            shape = kept.shape
            steps = _steps(figure, "base", shape)
            scale = np.frombuffer(unpack(figure.view.blocks["scale"]), "<f4").reshape(3, shape[1], 4)[0]
            assert np.nanmax(np.abs(np.where(steps == -128, np.nan, steps) - kept / scale[:, :, None])) <= 0.501
        assert len(figure.table) == 24 * 4  # the table tells of all


def test_the_first_view_is_where_most_tokens_leave_the_band() -> None:
    figure = figures.trace_explorer(pages.trace_data(samples=3, layers=6, traits=3, length=30), title="t", caption="c")
    _, layer, trait = figure.view.settings["first"]
    assert trait == 0 and layer >= 4  # the shift grows with depth
    chosen = figures.trace_explorer(
        pages.trace_data(samples=3, layers=6, traits=3, length=30), title="t", caption="c",
        start={"sample": 2, "layer": 1, "trait": "trait_2"},
    )  # fmt: skip
    assert chosen.view.settings["first"] == [2, 1, 2]


def test_traces_of_one_model_need_no_second_side() -> None:
    data = pages.trace_data(samples=2, layers=3, traits=2, length=12)
    data["projections"].pop("intervention")
    figure = figures.trace_explorer(data, title="t", caption="c")
    assert figure.view.settings["sides"] == ["base"] and "intervention" not in figure.view.blocks


def test_traces_refuse_shapes_that_do_not_fit() -> None:
    data = pages.trace_data(samples=2, layers=3, traits=2, length=12)
    data["null_low"] = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\[layer, trait\] = \(3, 2\)"):
        figures.trace_explorer(data, title="t", caption="c")
    data = pages.trace_data(samples=2, layers=3, traits=2, length=12)
    data["layers"] = [0, 1]
    with pytest.raises(ValueError, match=r"projections\['base'\]"):
        figures.trace_explorer(data, title="t", caption="c")


def _points(figure: figures.Figure) -> dict[str, np.ndarray]:
    """The columns of a map as the page's script reads them."""
    blocks, settings = figure.view.blocks, figure.view.settings
    x = np.cumsum(np.frombuffer(unpack(blocks["x"]), "<i4"))
    kept = np.unpackbits(np.frombuffer(unpack(blocks["kept"]), np.uint8), bitorder="little")[: settings["n"]].astype(
        bool
    )
    return {
        "x": settings["x"][0] + settings["x"][1] * x,
        "y": settings["y"][0] + settings["y"][1] * np.frombuffer(unpack(blocks["y"]), "<i2"),
        "side": np.array(settings["sides"], dtype=object)[np.frombuffer(unpack(blocks["side"]), np.uint8)],
        "cluster": np.frombuffer(unpack(blocks["cluster"]), "<i2"),
        "kept": kept,
        "texts": np.array(unpack(blocks["texts"]).decode().split("\x00"), dtype=object),
        "prompt": np.array(unpack(blocks["prompts"]).decode().split("\x00"), dtype=object)[
            np.frombuffer(unpack(blocks["prompt"]), "<u2")
        ],
    }


def test_a_map_keeps_each_point_with_its_text_side_cluster_and_prompt() -> None:
    columns = pages.map_columns(700)
    order = np.argsort(columns["x"], kind="stable")
    read = _points(pages.text_map(700))
    step = pages.text_map(700).view.settings["x"][1]
    assert np.abs(read["x"] - columns["x"][order]).max() <= 0.51 * step
    assert np.allclose(read["y"], columns["y"][order], atol=1e-3)
    assert (read["side"] == columns["side"][order]).all() and (read["cluster"] == columns["cluster"][order]).all()
    assert read["kept"].all()
    assert read["texts"].tolist() == [columns["texts"][i] for i in order]
    assert read["prompt"].tolist() == [columns["prompts"][i] for i in order]


def test_a_map_leaves_texts_out_rather_than_exceed_its_budget() -> None:
    columns = pages.map_columns(4_000)
    x, y = columns.pop("x"), columns.pop("y")
    figure = figures.map_scatter(x, y, title="t", caption="c", budget=120_000, **columns)
    assert sum(map(len, figure.view.blocks.values())) <= 122_000
    read = _points(figure)
    assert 0 < read["kept"].sum() == len(read["texts"]) == figure.view.settings["texts"] < 4_000
    order = np.argsort(x, kind="stable")
    assert read["texts"].tolist() == [columns["texts"][i] for i in order[read["kept"]]]


def test_a_map_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match="texts has 2 entries for 3 points"):
        figures.map_scatter([1, 2, 3], [1, 2, 3], title="t", caption="c", texts=["a", "b"])


def test_rows_of_a_heat_map_may_be_heads_neurons_or_tokens() -> None:
    values = np.array([[[3, 90], [7, 0]], [[1, 2], [3, 4]]], np.uint8)
    said, read = ["It", " is"], ["<s>", "It"]
    figure = figures.layer_token_heatmap(
        values, [read, read], range(2), choices=["head 0", "head 1"], title="t", caption="c", unit="attention, %",
        centre=None, row_title="token", rows_named=said,
    )  # fmt: skip
    trace, axis = figure.plotly.data[0], figure.plotly.layout.yaxis
    assert np.asarray(trace.z).dtype == np.uint8 and np.asarray(trace.z).tolist() == [[3, 90], [7, 0]]
    assert [t.strip("␣") for t in axis.ticktext] == ["It", "is"] and axis.autorange == "reversed"
    assert trace.hovertemplate.startswith("token %{y}, token %{x}") and axis.title.text == "token"
    assert figure.table["at token"].tolist()[0] == "It" and "2 tokens by 2 tokens" in figure.alt


def test_pictures_can_share_a_colour_scale() -> None:
    flat = np.full((3, 4), 0.5, np.float32)
    figure = figures.layer_token_heatmap(flat, list("abcd"), range(3), title="t", caption="c", reach=8.0)
    assert (figure.plotly.data[0].zmin, figure.plotly.data[0].zmax) == (-8.0, 8.0)


@pytest.mark.parametrize(
    ("sentence", "named"),
    [
        ("Intervention's texts minus base's", "SimPO's texts minus Llama's"),
        ('says "the base" in 3% of the base\'s answers', 'says "the base" in 3% of Llama\'s answers'),
        ("a database of base models, texts of base", "a database of base models, texts of Llama"),
    ],
)
def test_sentences_name_the_models_but_not_inside_what_was_quoted(sentence: str, named: str) -> None:
    assert by_name(sentence, ("Llama", "SimPO")) == named


def test_a_figure_of_a_run_names_the_models_in_legend_data_and_words() -> None:
    figure = pages.families().named(("Llama <8B>", "SimPO"))
    assert {t.name for t in figure.plotly.data} == {"Llama &lt;8B&gt;", "SimPO"}
    assert set(figure.table["group"]) == {"Llama <8B>", "SimPO"}
    traces = pages.traces(samples=2, layers=4, traits=2, length=10).named(("Llama", "SimPO"))
    assert traces.view.settings["names"] == {"base": "Llama", "intervention": "SimPO"}
    table = pages.Table(pd.DataFrame({"share_base": [0.1], "direction": ["base"]}), "Of the base").named(("Llama", "S"))
    assert list(table.frame) == ["share, Llama", "direction"] and table.frame["direction"][0] == "Llama"
    assert table.title == "Of Llama"
