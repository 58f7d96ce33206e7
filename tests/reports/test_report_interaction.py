"""The report as a reader uses it, in a browser driven by playwright: hover, sort, search, save."""

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'deconfound[dev]'"
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)  # fmt: skip
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)
HostileReport = Any
Page = Any
WIDE = {"width": 1300, "height": 1000}
NARROW = {"width": 420, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        try:
            opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"{BROWSER} does not start here: {error}")
        yield opened
        opened.close()


class Reader:
    """Opens the page, and remembers every error of its console."""

    def __init__(self, browser: Any, report: HostileReport) -> None:
        self._browser, self._report = browser, report
        self.problems: list[str] = []

    def open(self, size: dict[str, int], **context: Any) -> Page:
        page = self._browser.new_context(viewport=size, offline=True, **context).new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text)
                if said.type == "error" else None)  # fmt: skip
        page.on("request", lambda asked: self.problems.append(asked.url)
                if not asked.url.startswith(("file:", "data:", "blob:")) else None)  # fmt: skip
        page.goto(self._report.page.as_uri())
        page.wait_for_selector("body[data-drawn=yes]", timeout=60_000)
        return page


@pytest.fixture
def reader(browser: Any, hostile_report: HostileReport) -> Iterator[Reader]:
    made = Reader(browser, hostile_report)
    yield made
    assert made.problems == []


@pytest.fixture(scope="module")
def shared(browser: Any, hostile_report: HostileReport) -> Iterator[Page]:
    made = Reader(browser, hostile_report)
    page = made.open(WIDE, accept_downloads=True)
    yield page
    assert made.problems == []
    assert page.locator("#failure").is_hidden()


def test_the_verdict_heads_the_page(shared: Page, hostile_report: HostileReport) -> None:
    assert shared.locator("main > section").first.get_attribute("id") == "verdict"
    verdict = shared.locator(".verdict")
    assert verdict.locator(".answer").inner_text() == f"It helps: {hostile_report.labels[1]}."
    assert verdict.locator("strong").inner_text() == "+0.125"
    assert "95 % interval +0.050 … +0.200, p = 0.002, over 3 groups and 2 seeds" in (
        verdict.locator(".carrying span").inner_text()
    )
    board = shared.locator("table.board")
    assert board.locator("tbody tr th").first.inner_text().startswith(hostile_report.labels[0])
    assert board.locator("tbody tr").first.locator("td").first.get_attribute("class") == (
        "number best"
    )


def test_hostile_names_are_text(shared: Page) -> None:
    assert shared.title() == "deconfound report"
    assert shared.locator("img[src=x]").count() == 0
    assert shared.locator("main b:text-is('P2')").count() == 0


def test_pointing_shows_the_cell(shared: Page, hostile_report: HostileReport) -> None:
    shared.locator("#map").scroll_into_view_if_needed()
    box = shared.locator("#map .point").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shared.mouse.move(x - 30, y - 30)
    shared.mouse.move(x, y, steps=10)  # as a hand does: a plot may pass over a single move
    shared.wait_for_selector("#cell:not([hidden])")
    said = shared.locator("#cell p").inner_text()
    assert said.splitlines()[0].removeprefix("Label: ") in hostile_report.labels
    lit = """() => {
      const canvas = document.querySelector("#cell canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, 160, 160);
      return data.some((value, i) => i % 4 < 3 && value > 40);
    }"""
    assert shared.evaluate(lit)
    shared.mouse.move(2, 2)
    shared.wait_for_selector("#cell", state="hidden")


def test_a_tap_shows_the_cell(reader: Reader) -> None:
    page = reader.open(NARROW, has_touch=True, is_mobile=True)
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map .point").first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#cell:not([hidden])")
    assert page.locator("#cell p").inner_text().startswith("Label: ")


def test_any_column_colours_all_maps(shared: Page, hostile_report: HostileReport) -> None:
    fills = "() => new Set(Array.from(document.querySelectorAll('#map .point'), p => p.style.fill))"
    options = shared.locator("#map-colour option").all_inner_texts()
    assert {"Label", "Environment", "Part of the fold", "site", "dose"} <= set(options)
    shared.select_option("#map-colour", "site")
    shared.locator("#map-legend button").nth(hostile_report.sites - 1).wait_for()
    assert shared.locator("#map-legend button").count() == hostile_report.sites
    assert shared.evaluate(f"Array.from(({fills})()).length") == hostile_report.sites
    shared.select_option("#map-colour", "dose")
    shared.locator("#map-legend .ramp").wait_for()
    assert (
        shared.locator("#map-legend .ramp i")
        .evaluate("i => i.style.background")
        .startswith("linear-gradient")
    )
    shared.select_option("#map-colour", "Label")
    shared.locator("#map-legend button").first.wait_for()


def test_a_selection_is_the_same_cells_on_all_maps(shared: Page) -> None:
    faint = "() => Array.from(document.querySelectorAll('#map .point'))" \
            ".filter(p => Number(p.style.opacity) < 0.2).length"  # fmt: skip
    total = shared.locator("#map .point").count()
    shared.locator("#map-legend button").first.click()
    shared.wait_for_selector("#map-clear:enabled")
    chosen = int(shared.locator("#map-selected").inner_text().split()[0])
    assert shared.evaluate(f"({faint})()") == total - 2 * chosen
    shared.locator("#map-clear").click()
    shared.wait_for_selector("#map-clear:disabled", state="attached")
    assert shared.evaluate(f"({faint})()") == 0
    shared.select_option("#map-drag", "select")
    area = shared.locator("#map .nsewdrag").first.bounding_box()
    left, top = area["x"], area["y"]
    shared.mouse.move(left + 4, top + 4)
    shared.mouse.down()
    shared.mouse.move(left + area["width"] / 2, top + area["height"] - 4, steps=5)
    shared.mouse.up()
    shared.wait_for_selector("#map-clear:enabled")
    chosen = int(shared.locator("#map-selected").inner_text().split()[0])
    assert 0 < chosen < total / 2
    assert shared.evaluate(f"({faint})()") == total - 2 * chosen
    shared.locator("#map-clear").click()


def test_tables_sort_and_search(shared: Page) -> None:
    shared.locator("summary", has_text="scores, one by one").click()
    table = shared.locator("table[data-rows=scores]")
    table.locator("tbody tr").first.wait_for()
    column = table.locator("thead th").all_inner_texts().index("value")
    head = table.locator("thead th").nth(column)

    def values() -> list[float]:
        texts = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        return [float(text) for text in texts if text != "–"]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    head.locator("button").click()
    assert values() == sorted(values())
    tools = shared.locator("details", has=table).locator("div.tools")
    tools.locator("input").fill("macro_f1 test")
    rows = table.locator("tbody tr").all_inner_texts()
    assert rows
    assert all("macro_f1" in row and "test" in row for row in rows)
    assert tools.locator(".count").inner_text().startswith(f"{len(rows)} of ")


def test_every_figure_saves_as_png_svg_and_csv(shared: Page, hostile_report: HostileReport) -> None:
    figures = shared.locator("figure:has(.plot):visible")
    assert figures.count() == shared.locator("figure:visible .tools").count() >= 5
    for figure, name in ((figures.first, "slopes"), (shared.locator("figure:has(#map)"), "map")):
        saved = {}
        for kind in ("PNG", "SVG", "CSV"):
            with shared.expect_download() as caught:
                figure.locator("button", has_text=kind).click()
            assert caught.value.suggested_filename.endswith(kind.lower()), name
            saved[kind] = Path(caught.value.path()).read_bytes()
        assert saved["PNG"].startswith(b"\x89PNG")
        assert b"<svg" in saved["SVG"][:200]
        rows = list(csv.DictReader(io.StringIO(saved["CSV"].decode())))
        if name == "map":
            assert len(rows) == 2 * hostile_report.cells
            assert {row["Label"] for row in rows} == set(hostile_report.labels)
        else:
            assert {"series", "x", "y"} <= rows[0].keys()


def test_dark_and_light(reader: Reader) -> None:
    page = reader.open(WIDE, color_scheme="dark")
    seen = {}
    for scheme in ("dark", "light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(400)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        words = page.locator("#map .annotation-text").first.evaluate("t => t.style.fill")
        assert seen.setdefault(scheme, (paper, words)) == (paper, words)
    assert seen["dark"] != seen["light"]
    assert seen["dark"][0] != seen["light"][0]
    assert seen["dark"][1] != seen["light"][1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_scrolls_down_only(reader: Reader, scheme: str) -> None:
    page = reader.open(NARROW, color_scheme=scheme)
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert page.locator("#failure").is_hidden()
