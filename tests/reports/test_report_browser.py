"""The report in a real browser: from a tiny screen with hostile names to a drawn page."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)  # fmt: skip
# Moves the pointer onto the first point of a map, as a reader would, and asks for an address.
HOVER = """<script>
new Image().src = "http://example.invalid/x.png";
const wait = setInterval(() => {
  if (!document.body.dataset.drawn) return;
  clearInterval(wait);
  const point = document.querySelector(".map .point").getBoundingClientRect();
  const at = { clientX: point.x + 2, clientY: point.y + 2, bubbles: true };
  const layer = document.querySelector(".map .nsewdrag");
  layer.dispatchEvent(new MouseEvent("mouseover", at));
  layer.dispatchEvent(new MouseEvent("mousemove", at));
  setTimeout(() => {
    const canvas = document.querySelector("#cell canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, 160, 160).data;
    document.body.dataset.lit = pixels.some((value, i) => i % 4 < 3 && value > 40);
  }, 300);
}, 50);
</script></body>"""


HostileReport = Any


class Visit(NamedTuple):
    """What a browser made of a page."""

    dom: str
    asked: bool
    """Whether the page itself, and not the browser, asked for an address."""


def visited(page: Path, scratch: Path) -> Visit:
    """Open the page without any network."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={scratch / 'profile'}",
            f"--log-net-log={scratch / 'net.json'}", "--virtual-time-budget=20000",
            "--window-size=1400,2000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=400, check=True,
    )  # fmt: skip
    log = (scratch / "net.json").read_text(encoding="utf-8")
    return Visit(done.stdout, '"initiator":"null"' in log)


@pytest.fixture(scope="module")
def visit(hostile_report: HostileReport, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visited(hostile_report.page, tmp_path_factory.mktemp("browser"))


def test_every_plot_is_drawn_without_an_error(hostile_report: HostileReport, visit: Visit) -> None:
    assert re.search(r'<body[^>]*data-drawn="yes"', visit.dom)
    assert re.search(r'<p id="failure"[^>]* hidden=""></p>', visit.dom)
    places = re.findall(
        r'<div class="plot( map)?[ "]', hostile_report.page.read_text(encoding="utf-8")
    )
    assert len(places) >= 6
    assert places.count(" map") == 1
    assert visit.dom.count('class="main-svg"') >= len(places)
    assert len(re.findall(r'<path class="point[ "]', visit.dom)) >= 2 * hostile_report.cells


def test_hostile_names_are_shown_as_text_and_never_run(
    hostile_report: HostileReport, visit: Visit
) -> None:
    assert "<title>deconfound report</title>" in visit.dom
    assert "<img src=x" not in visit.dom.replace('"', "")
    legend = re.search(r'<div id="map-legend".*?</div>', visit.dom, flags=re.DOTALL)
    assert legend is not None
    shown = {html.unescape(name) for name in re.findall(r"</i>(.*?)</button>", legend[0])}
    assert shown == set(hostile_report.labels)


def test_the_page_asks_for_no_address(visit: Visit) -> None:
    assert not visit.asked


def test_pointing_at_a_cell_shows_it(hostile_report: HostileReport, tmp_path: Path) -> None:
    text = hostile_report.page.read_text(encoding="utf-8")
    open_to_scripts = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text, count=1)
    copy = tmp_path / "hover.html"
    copy.write_text(HOVER.join(open_to_scripts.rsplit("</body>", 1)), encoding="utf-8")
    dom, asked = visited(copy, tmp_path)
    assert asked, "a page that asks for an address must be noticed"
    assert re.search(r'<body[^>]*data-lit="true"', dom)
    shown = re.search(r'<div id="cell"[^>]*>.*?<p>(.*?)</p>', dom, flags=re.DOTALL)
    assert shown is not None
    said = dict(line.split(": ", 1) for line in html.unescape(shown[1]).splitlines()[:3])
    assert said["Label"] in hostile_report.labels
    assert said["Environment"] in hostile_report.plates
