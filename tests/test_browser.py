"""Pages in a real browser, with the network cut: every plot is there, everything can be worked, nothing is asked for.

Needs Debian's chromium and chromium-driver; the accessibility check also npm (it fetches axe-core once). Both are
skipped with a reason where they are missing. ``DRIFTBOOK_SCREENSHOTS=folder`` keeps a picture of every page in light
and dark."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import pages
from driftbook.workbook.people import drawn
from driftbook.workbook.reports import render_compare, render_experiment, render_outputs, render_stage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,900"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"),
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="chromium and chromedriver are not installed (apt install chromium chromium-driver)",
)
SHOWN = {
    "plots": (pages.forest, pages.dose, pages.families, pages.distribution, pages.heatmap, pages.table),
    "readers": (lambda: pages.traces(samples=4, layers=8, traits=3, length=40), lambda: pages.text_map(1_500)),
}


class Browser:
    """Chromium, offline, with everything that it asked for and complained about."""

    def __init__(self, profile: Path) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(60)
        self.driver.execute_cdp_cmd("Network.enable", {})
        cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut)

    def open(self, path: Path, scheme: str = "light", media: str = "screen") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self.driver.get("about:blank")
        self.driver.get_log("performance"), self.driver.get_log("browser")
        self.driver.get(path.resolve().as_uri())

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, code: str, *arguments: Any, seconds: float = 30) -> Any:
        """The first true value of ``code``; a page that never gives one fails the test."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.js(f"return {code}", *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"still false after {seconds} s: {code}; console: {self.complaints()}")

    def wake(self) -> None:
        """Scroll every figure into view and wait until it lives."""
        for i in range(self.js("return document.querySelectorAll('.db-figure').length")):
            figure = "document.querySelectorAll('.db-figure')[arguments[0]]"
            self.js(f"{figure}.scrollIntoView({{block: 'center', behavior: 'instant'}})", i)
            state = f"{figure}.dataset"
            self.wait(f"['live', 'failed'].includes({state}.state) || {state}.kind === 'still'", i)

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        entries = [e for e in self.driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")]
        # Chromium without a GPU says of every WebGL page that reading pixels is slow.
        return [e["message"] for e in entries if "GPU stall due to ReadPixels" not in e["message"]]

    def picture(self, name: str) -> bytes:
        """The whole page as a PNG, kept where screenshots are asked for."""
        height = self.js("scrollTo(0, 0); return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": 1280, "height": min(height, 12_000), "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        data = base64.b64decode(shot["data"])
        if folder := os.environ.get("DRIFTBOOK_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}.png").write_bytes(data)
        return data


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page."""
    outputs = tmp_path_factory.mktemp("repository") / "outputs"
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = {}
        for name, builders in SHOWN.items():
            folder = outputs / name / "cluster"
            made[name] = render_stage(pages.run(folder, [b() for b in builders], monkeypatch, experiment=name))
        failure = {"cell": 3, "reason": "the kernel was killed by SIGKILL"}
        broken = outputs / "plots" / "decode.failed"
        made["failed"] = render_stage(pages.run(broken, [], monkeypatch, status="failed", failure=failure, answer=""))
        for name, coefficient in (("quickstart", 0.5), ("other", 0.9)):
            made[name] = render_experiment(pages.experiment(outputs / name, monkeypatch, coefficient))
        made["answers"] = outputs / "quickstart/answers.html"
        pages.claims(outputs / "other", confirmed=(False, False, True))
        made["compare"] = render_compare(outputs / "quickstart", outputs / "other", outputs / "compare.html")
        made["outputs"] = render_outputs(outputs)
    return made


PAGES = ("plots", "readers", "failed", "quickstart", "answers", "compare", "outputs")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_picture_lives_nothing_is_requested_nothing_complains(browser, site, name: str, scheme: str) -> None:
    browser.open(site[name], scheme)
    browser.wake()
    states = browser.js(
        """return [...document.querySelectorAll('.db-figure')].map((figure) => {
            const live = figure.querySelector('.db-live');
            const marks = live.querySelectorAll('.point, .bar, .js-line, .hm image, canvas, .db-tok').length;
            return [figure.dataset.kind, figure.dataset.state, live.getBoundingClientRect().height, marks];
        })"""
    )
    for kind, state, height, marks in states:
        assert (state, height > 100, marks > 0) == ("live", True, True), (
            kind,
            state,
            height,
            marks,
            browser.complaints(),
        )
    assert browser.requests() == [site[name].resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.js("return window.pwned") is None
    dark = browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    assert len(browser.picture(f"{name}-{scheme}")) > 20_000


@pytest.mark.parametrize("name", ["plots", "readers"])
def test_without_script_every_figure_shows_a_picture(browser, site, name: str) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(site[name])
        found = browser.driver.find_elements("css selector", ".db-static svg")
        assert len(found) >= 2 and all(svg.size["height"] > 100 for svg in found)
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_print_shows_static_pictures_on_white(browser, site) -> None:
    browser.open(site["plots"], "dark")
    browser.wake()
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    shown = browser.js(
        """return ['.db-live', '.db-static', '.db-controls'].map(
            (name) => getComputedStyle(document.querySelector('.db-figure ' + name)).display)"""
    )
    assert shown == ["none", "block", "none"]
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_theme_can_change_while_the_page_is_open(browser, site) -> None:
    browser.open(site["plots"])
    browser.wake()
    colour = "getComputedStyle(document.querySelector('.db-live .main-svg')).backgroundColor"
    assert browser.js(f"return {colour}") == "rgb(255, 255, 255)"
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.wait(f"{colour} === 'rgb(20, 23, 28)'")


@pytest.mark.parametrize("name", PAGES)
def test_no_page_scrolls_sideways_on_a_small_screen(browser, site, name: str) -> None:
    small = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", small)
    try:
        browser.open(site[name])
        browser.wake()
        assert browser.js("return document.documentElement.scrollWidth") <= 400
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_no_button_of_a_plot_leads_out_of_the_page(browser, site) -> None:
    """plotly's own tool bar holds one that sends the chart to a server."""
    browser.open(site["plots"])
    browser.wake()
    names = browser.js("return [...document.querySelectorAll('.modebar-btn')].map((b) => b.dataset.title)")
    assert names and set(names) <= {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


# --------------------------------------------------------------------------------------------------------- interactions


def choose(browser: Browser, figure: str, label: str, index: int) -> None:
    browser.js(
        """const box = [...document.querySelectorAll(arguments[0] + ' .db-controls label')]
             .find((node) => node.textContent.startsWith(arguments[1]));
           const control = box.querySelector('select, input');
           control.value = arguments[2];
           control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}));""",
        figure,
        label,
        index,
    )


def test_the_prompt_picker_changes_the_heat_map(browser, site) -> None:
    browser.open(site["plots"])
    browser.wake()
    browser.js("document.querySelector('.db-controls:not(:empty)').closest('figure').id = 'heat'")
    ticks = "[...document.querySelectorAll('#heat g.xtick')].map((tick) => tick.textContent)"
    assert "␣w0" in browser.js(f"return {ticks}")
    choose(browser, "#heat", "Prompt", 1)
    browser.wait(f"!{ticks}.includes('␣w0')")
    assert browser.js(f"return {ticks}")[:2] == ["</script>", "␣v0"]


TRACE = 'figure[data-kind="trace"]'
MAP = 'figure[data-kind="map"]'


def test_slider_trait_and_prompt_change_the_trace(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    readout, tokens = f"document.querySelector('{TRACE} .db-readout').textContent", f"'{TRACE} .db-tok'"
    choose(browser, TRACE, "Trait", 0)
    choose(browser, TRACE, "Layer", 7)
    deep, marked = browser.js(f"return [{readout}, document.querySelectorAll('{TRACE} .db-tok.above').length]")
    choose(browser, TRACE, "Layer", 0)
    shallow, fewer = browser.js(f"return [{readout}, document.querySelectorAll('{TRACE} .db-tok.above').length]")
    assert deep != shallow and marked > fewer + 20
    choose(browser, TRACE, "Trait", 2)
    assert browser.js(f"return {readout}") != shallow
    choose(browser, TRACE, "Prompt", 0)
    assert browser.js(f"return [...document.querySelectorAll({tokens})].map((t) => t.textContent)")[6] == pages.HOSTILE
    assert browser.js(f"return document.querySelectorAll('{TRACE} .db-line').length") >= 2
    assert browser.complaints() == []


def test_a_click_on_a_prompt_picks_it(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    rows, select = f"document.querySelectorAll('{TRACE} .db-prompt')", f"document.querySelector('{TRACE} select')"
    names, options = browser.js(
        f"return [[...{rows}].map((r) => r.textContent), [...{select}.options].map((o) => o.textContent)]"
    )
    assert names == options and len(names) > 2
    said = f"[...document.querySelectorAll('{TRACE} .db-tok')].map((t) => t.textContent).join('')"
    before = browser.js(f"return {said}")
    browser.js(f"{rows}[2].click()")
    pressed, value, after = browser.js(
        f"return [[...{rows}].map((r) => r.getAttribute('aria-pressed')), {select}.value, {said}]"
    )
    assert pressed.index("true") == 2 and pressed.count("true") == 1 and value == "2" and after != before
    marks = browser.js(f"return [...{rows}[2].querySelectorAll('circle, rect')].length")
    label = browser.js(f"return {rows}[2].getAttribute('aria-label')")
    assert marks == 3 and re.search(r": base [−\d.]+, intervention [−\d.]+$", label)
    assert browser.complaints() == []


def test_hovering_over_a_heat_map_names_layer_and_token(browser, site) -> None:
    browser.open(site["plots"])
    browser.wake()
    cell = """(() => {
        const plot = [...document.querySelectorAll('.js-plotly-plot')].find((p) => p.data[0].type === 'heatmap');
        plot.scrollIntoView({block: 'center', behavior: 'instant'});
        const [box, axes] = [plot.querySelector('.nsewdrag').getBoundingClientRect(), plot._fullLayout];
        return [box.x + axes.xaxis.d2p(3), box.y + axes.yaxis.d2p(20)];
    })()"""
    x, y = browser.js(f"return {cell}")
    browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x - 1, "y": y})
    browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    text = browser.wait("document.querySelector('.hoverlayer .hovertext')?.textContent")
    assert re.match(r"layer 20, token .w3", text)


def test_both_conventions_are_named_and_one_position_apart(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    read = f"""(() => {{
        const columns = [...document.querySelectorAll('{TRACE} .db-col')];
        return columns.slice(0, 12).map((column) => {{
            column.dispatchEvent(new Event('mouseenter'));
            return document.querySelector('{TRACE} .db-readout').textContent.match(/” (\\S+); intervention/)?.[1];
        }});
    }})()"""
    own = browser.js(f"return {read}")
    assert "convention own" in browser.js(f"return document.querySelector('{TRACE} .db-readout').textContent")
    choose(browser, TRACE, "Read", 1)
    producer = browser.js(f"return {read}")
    assert producer == ["–", *own[:-1]] and len(set(own)) > 5
    assert "convention producer" in browser.js(f"return document.querySelector('{TRACE} .db-readout').textContent")


def test_a_trace_is_read_with_the_arrow_keys(browser, site) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(site["readers"])
    browser.wake()
    area = browser.driver.find_element("css selector", f"{TRACE} .db-tokens")
    area.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    readout = browser.driver.find_element("css selector", f"{TRACE} .db-readout")
    assert readout.text.startswith("Token 1: base “") and "null band −0.3" in readout.text
    area.send_keys(Keys.END)
    assert re.match(r"Token 3\d: base", readout.text)


def test_a_click_on_the_map_lists_the_texts_around_it(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    browser.js(f"document.querySelector('{MAP}').scrollIntoView({{block: 'center', behavior: 'instant'}})")
    x, y = browser.wait(
        f"""(() => {{
            const point = document.querySelectorAll('{MAP} .point')[700];
            const box = point && point.getBoundingClientRect();
            return box && [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        event = {"type": kind, "x": x, "y": y, "button": "none" if kind == "mouseMoved" else "left", "clickCount": 1}
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        time.sleep(0.3)
    heading = browser.wait(
        f"""(() => {{
            const text = document.querySelector('{MAP} .db-panel h3').textContent;
            return text.startsWith('Around this point') && text;
        }})()"""
    )
    assert " texts (" in heading and " base, " in heading
    first = browser.js(f"return document.querySelector('{MAP} .db-panel li').textContent")
    assert "prompt: How should one decide" in first


def test_a_lasso_lists_the_texts_inside_it(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    browser.js(f"document.querySelector('{MAP}').scrollIntoView({{block: 'center', behavior: 'instant'}})")
    browser.js(
        f"[...document.querySelectorAll('{MAP} .db-controls button')].find((b) => b.textContent === 'Lasso').click()"
    )
    browser.wait(f"document.querySelector('{MAP} .js-plotly-plot')._fullLayout.dragmode === 'lasso'")
    left, top, width, height = browser.js(
        f"""const box = document.querySelector('{MAP} .nsewdrag').getBoundingClientRect();
            return [box.x, box.y, box.width, box.height];"""
    )
    # the left half, from corner to corner
    corners = [
        (0.02, 0.02),
        (0.25, 0.02),
        (0.5, 0.02),
        (0.5, 0.5),
        (0.5, 0.98),
        (0.25, 0.98),
        (0.02, 0.98),
        (0.02, 0.5),
    ]
    path = [(left + a * width, top + b * height) for a, b in corners]
    kinds = ["mousePressed", *["mouseMoved"] * (len(path) - 1), "mouseReleased"]
    for kind, (x, y) in zip(kinds, [*path, path[0]], strict=True):
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        time.sleep(0.05)
    heading = browser.wait(
        f"""(() => {{
            const text = document.querySelector('{MAP} .db-panel h3').textContent;
            return text.startsWith('In the lasso') && text;
        }})()"""
    )
    inside = browser.js(
        f"""const plot = document.querySelector('{MAP} .js-plotly-plot');
            return [...plot.data[0].x].filter((v) => plot._fullLayout.xaxis.d2p(v) < arguments[0]).length""",
        0.5 * width,
    )
    count = int(re.search(r"(\d+) texts", heading)[1])
    assert 300 < count <= inside and count > 0.9 * inside
    assert browser.js(f"return document.querySelectorAll('{MAP} .db-panel li').length") == 40


def test_clusters_sides_and_colours_of_the_map_are_chosen_without_a_mouse(browser, site) -> None:
    browser.open(site["readers"])
    browser.wake()
    columns = pages.map_columns(1_500)
    points = f"document.querySelectorAll('{MAP} .point').length"
    choose(browser, MAP, "Side", 1)
    base = int((columns["side"] == "base").sum())
    browser.wait(f"{points} >= arguments[0] && {points} < 1400", base)
    choose(browser, MAP, "Colour by", 1)
    browser.wait(f"new Set([...document.querySelectorAll('{MAP} .point')].map((p) => p.style.fill)).size > 4")
    choose(browser, MAP, "Side", 0)
    hostile = browser.js(
        f"""return [...document.querySelectorAll('{MAP} .db-controls option')]
            .findIndex((option) => option.textContent.startsWith('</script>'))"""
    )
    assert hostile >= 0
    own = int((columns["cluster"] == 0).sum())
    index = browser.js(
        f"""const select = [...document.querySelectorAll('{MAP} .db-controls select')].at(-1);
            return [...select.options].findIndex((option) => option.textContent.startsWith('</script>'))"""
    )
    choose(browser, MAP, "Read a cluster", index)
    heading = browser.wait(
        f"""(() => {{
            const text = document.querySelector('{MAP} .db-panel h3').textContent;
            return text.startsWith('</script>') && text;
        }})()"""
    )
    assert f": {own} texts (" in heading
    assert browser.complaints() == [] and browser.js("return window.pwned") is None


def test_tables_sort_and_code_unfolds(browser, site) -> None:
    browser.open(site["plots"])
    table = "document.querySelector('.db-table-block table')"
    cells = f"[...{table}.tBodies[0].rows].map((row) => row.cells[2].textContent)"
    assert browser.js(f"return {cells}") == ["0.12", "−0.3", "–"]
    browser.js(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
    browser.js(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
    assert browser.js(f"return {cells}") == ["−0.3", "0.12", "–"]  # what is missing stays last
    assert browser.js(f"return {table}.tHead.rows[0].cells[2].getAttribute('aria-sort')") == "ascending"
    browser.js("document.querySelector('.db-unfold').click()")
    assert browser.js("return [...document.querySelectorAll('.db-code')].every((d) => d.open)")


def test_the_csv_of_a_figure_can_be_downloaded(browser, site) -> None:
    browser.open(site["plots"])
    text = browser.driver.execute_async_script(
        """const done = arguments[0];
           const blob = URL.createObjectURL;
           URL.createObjectURL = (data) => { data.text().then(done); return blob.call(URL, data); };
           HTMLAnchorElement.prototype.click = () => {};
           const figure = document.querySelectorAll('.db-figure')[1];
           figure.querySelector('.db-data').open = true;
           figure.querySelector('.db-csv').click();"""
    )
    assert text.splitlines()[0] == "group,coefficient,share of answers,low,high" and len(text.splitlines()) == 13


def test_two_hundred_thousand_points_are_drawn_filtered_and_read(browser, tmp_path: Path, monkeypatch) -> None:
    path = render_stage(pages.run(tmp_path / "x" / "cluster", [pages.text_map(200_000)], monkeypatch))
    browser.open(path)
    browser.wake()
    assert browser.js(f"return document.querySelectorAll('{MAP} canvas').length") > 0
    assert browser.js(f"return document.querySelector('{MAP} .js-plotly-plot').data[0].x.length") == 200_000
    choose(browser, MAP, "Side", 2)
    browser.wait(f"document.querySelector('{MAP} .js-plotly-plot').data[0].x.length < 150000")
    choose(browser, MAP, "Read a cluster", 1)
    browser.wait(f"document.querySelectorAll('{MAP} .db-panel li').length === 40")
    heading = browser.js(f"return document.querySelector('{MAP} .db-panel h3').textContent")
    assert "this page holds" in heading and "data folder" in heading
    assert browser.requests() == [path.resolve().as_uri()] and browser.complaints() == []


def test_at_most_four_figures_hold_webgl(browser, tmp_path: Path, monkeypatch) -> None:
    maps = [pages.text_map(5_200 + 100 * i) for i in range(6)]
    path = render_stage(pages.run(tmp_path / "x" / "cluster", maps, monkeypatch))
    browser.open(path)
    browser.wake()
    live = browser.js("return document.querySelectorAll('.db-live:not([hidden]) canvas').length > 0")
    count = browser.js("return document.querySelectorAll('figure[data-state=live]').length")
    assert live and count == 4
    browser.js("document.querySelector('.db-figure').scrollIntoView()")
    browser.wait("document.querySelector('.db-figure').dataset.state === 'live'")
    assert browser.complaints() == []


# ------------------------------------------------------------------------------------------------------- answers, terms

PAIRS = "document.querySelectorAll('.db-list .db-pair')"


def find(browser: Browser, name: str, value: Any) -> int:
    """Set a field of the answers browser; how many pairs it then finds."""
    browser.js(
        """const field = document.querySelector('.db-find').elements[arguments[0]];
           if (field.type === 'checkbox') field.checked = arguments[1]; else field.value = arguments[1];
           field.dispatchEvent(new Event('input', {bubbles: true}));""",
        name,
        value,
    )
    return int(re.match(r"[\d,]+", browser.js("return document.querySelector('.db-found').textContent"))[0])


def test_answers_are_searched_filtered_and_paged(browser, site) -> None:
    browser.open(site["answers"])
    browser.wait("document.documentElement.dataset.ready === '1'")
    assert browser.js(f"return {PAIRS}.length") == 20
    assert find(browser, "text", "about P007?") == 1
    marked = browser.js("return [...document.querySelectorAll('.db-list mark')].map((m) => m.textContent)")
    assert marked == ["about p007?"]
    assert find(browser, "text", "") == 120 and find(browser, "split", "0") == 120
    shows = find(browser, "claim", "1")
    assert 0 < shows < 120 and find(browser, "differing", True) == shows
    assert browser.js("return document.querySelector('.db-list mark').textContent") == "Maybe"
    first = browser.js(f"return {PAIRS}[0].textContent")
    browser.js("document.querySelector('.db-turn button[data-by=\"1\"]').click()")
    assert browser.js(f"return {PAIRS}[0].textContent") != first
    assert browser.js("return window.pwned") is None and browser.complaints() == []


def test_a_link_opens_the_answers_of_a_claim_and_one_answer(browser, site) -> None:
    for anchor, count in (("claim-1", 20), ("claim-h0", 20), ("answer-intervention-p042", 1)):
        browser.open(site["answers"])
        browser.js("location.hash = arguments[0]", f"#{anchor}")
        browser.wait(f"document.documentElement.dataset.ready === '1' && {PAIRS}.length === arguments[0]", count)
        said = browser.js("return document.querySelector('.db-found').textContent")
        assert ("hedges with words" in said) == anchor.startswith("claim")
    assert "How should I decide about p042?" in browser.js(f"return {PAIRS}[0].textContent")


def test_next_pairs_and_words_of_art_are_shown(browser, site) -> None:
    browser.open(site["quickstart"])
    browser.wait("document.querySelector('.db-term')")
    browser.js("document.querySelector('.db-term').focus()")
    tip = "document.querySelector('.db-tip')"
    assert len(browser.wait(f"!{tip}.hidden && {tip}.textContent")) > 20
    assert browser.js(f"return document.querySelector('.db-term').getAttribute('aria-describedby') === {tip}.id")
    browser.js("document.querySelector('.db-term').blur()")
    assert browser.js(f"return {tip}.hidden") and browser.js("return document.querySelectorAll('.db-pair').length") == 2


def test_headings_of_tables_are_defined_for_the_pointer_and_the_keyboard(browser, site) -> None:
    browser.open(site["quickstart"])
    browser.wait("document.querySelector('.db-moved th button')")
    heads, tip = "[...document.querySelectorAll('.db-moved th')]", "document.querySelector('.db-tip')"
    browser.js(f"{heads}.find((h) => h.textContent === 'was').querySelector('button').focus()")
    assert "what the base does" in browser.wait(f"!{tip}.hidden && {tip}.textContent")
    assert browser.js(f"return document.activeElement.getAttribute('aria-describedby') === {tip}.id")
    browser.js("document.activeElement.blur()")
    assert browser.js(f"return {tip}.hidden")
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    known = "[...document.querySelectorAll('.db-data th.db-term')].map((h) => h.textContent)"
    assert {"win rate", "q value", "e value", "scope"} <= set(browser.js(f"return {known}"))


# -------------------------------------------------------------------------------------------------------- accessibility


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """The source of axe-core, from npm, kept in pytest's cache."""
    folder = pytestconfig.cache.mkdir("axe")
    script = folder / "node_modules/axe-core/axe.min.js"
    if not script.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed, so axe-core cannot be fetched")
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--silent", "axe-core@4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not script.is_file():
            pytest.skip(f"axe-core could not be fetched from npm: {done.stderr.strip()[-200:]}")
    return script.read_text()


def findings(browser: Browser, axe: str) -> list[str]:
    browser.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
    result = browser.driver.execute_async_script("axe.run(document).then(arguments[0])")
    return [
        f"{v['impact']} {v['id']}: {node['html'][:160]} ({node['failureSummary'][:200]})"
        for v in result["violations"]
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(browser, site, axe: str, name: str, scheme: str) -> None:
    browser.open(site[name], scheme)
    browser.wake()
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert findings(browser, axe) == []


def test_the_keyboard_reaches_content_controls_and_tables(browser, site) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(site["plots"])
    body: Callable[..., Any] = browser.driver.switch_to.active_element.send_keys
    body(Keys.TAB)
    assert browser.js("return document.activeElement.className") == "db-skip"
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.js("return document.activeElement.id") == "main"
    reached = set()
    for _ in range(40):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.js("return document.activeElement.tagName"))
    assert {"SUMMARY", "BUTTON"} <= reached


# ------------------------------------------------------------------------------------------------- the labelling page


def test_answers_are_labelled_by_keys_and_the_labels_survive_the_browser(browser, tmp_path: Path) -> None:
    about = {"claim_id": "c", "claim": "hedges", "prompt": "Will it rain?", "propensity": 0.25}
    tasks = [{**about, "text_id": str(i), "text": f'answer {i}, "perhaps",\n<b>maybe</b>'} for i in range(4)]
    page = tmp_path / "label.html"
    page.write_text(drawn("mine", tasks), encoding="utf-8")

    def press(key: str) -> None:
        browser.js("document.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))", key)

    browser.open(page)
    place = "document.getElementById('place').textContent"
    assert browser.js(f"return {place}") == "1 of 4"
    assert browser.js("return document.getElementById('text').textContent") == tasks[0]["text"]
    assert not browser.js("return document.querySelector('#text b')")
    for key in ("y", "N", "x", "s", "ArrowLeft"):
        press(key)
    assert browser.js(f"return {place}") == "3 of 4"
    browser.open(page)  # as it was left
    assert browser.js(f"return {place}") == "3 of 4"
    browser.js("document.querySelector('[data-label=skip]').click()")
    press("y")
    press("y")
    assert browser.js(f"return {place}") == "All 4 are seen: save the table."
    saved = browser.js("return table()")
    (tmp_path / "labels.csv").write_text(saved, encoding="utf-8", newline="")
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    assert table["label"].tolist() == ["yes", "no", "skip", "yes"] and table["text_id"].tolist() == list("0123")
    assert table["text"].tolist() == [t["text"] for t in tasks] and set(table["propensity"]) == {"0.25"}
    browser.js("document.getElementById('save').click()")
    assert browser.requests() == [page.resolve().as_uri()] and browser.complaints() == []
