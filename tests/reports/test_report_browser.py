"""The report in a real browser: from a tiny screen with hostile names to a drawn page."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from deconfound.config import DataOptions, TrainingOptions
from deconfound.counterfactuals.swap import transfer
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.embeddings.embed import embed
from deconfound.evaluation.measure import measure
from deconfound.reports import map as report_map
from deconfound.reports.report import report
from deconfound.runs.config import config_model
from deconfound.training.fit import fit

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)  # fmt: skip
LABELS = (
    "<script>document.title='run'</script>",
    "\"><img src=x onerror=document.title='run'>",
    "</script><script>document.title='run'</script>",
)
PLATES = ("{{7*7}}", "<b>P2</b>", "%{x} &lt;")
CELLS = 72
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


class Visit(NamedTuple):
    """What a browser made of a page."""

    dom: str
    asked: bool
    """Whether the page itself, and not the browser, asked for an address."""


def visited(page: Path, scratch: Path) -> Visit:
    """Open the page without any network."""
    assert BROWSER is not None
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
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    root = tmp_path_factory.mktemp("report")
    stream = np.random.default_rng(0)
    roles = Roles(label="<i>drug</i>", environment=("plate",), levels=("plate",))
    with ScreenWriter(root / "screen", "tiny", ("DNA", "actin"), roles, {}) as writer:
        writer.append(stream.integers(0, 255, (CELLS, 2, 16, 16), dtype=np.uint8))
        row = np.arange(CELLS)
        drug, plate = ([n[i] for i in c] for n, c in ((LABELS, row % 3), (PLATES, row // 3 % 3)))
        writer.finish(pd.DataFrame({"<i>drug</i>": drug, "plate": plate}))
    for method in ("erm", "scbd"):
        model = config_model(method)
        small = {"decoder_steps": 2, "decoder_width": 4, "block_size": 8}
        config = model.model_validate(
            {
                "method": method,
                "data": DataOptions(fold=f"plate={PLATES[1]}", val_fraction=0.3),
                "training": TrainingOptions(
                    steps=4, batch_size=16, validate_every=2, threads=1, precision="32",
                    device="cpu",
                ),
                "options": small if method == "scbd" else {},
            }
        )  # fmt: skip
        run = fit(config, root / "screen", root / method, quiet=True).path
        embed(run, root / "screen", run / "embeddings.h5ad", device="cpu", threads=1, quiet=True)
        if method == "scbd":
            transfer(run, root / "screen", root / "swap", images=3)
    files = [root / method / "embeddings.h5ad" for method in ("erm", "scbd")]
    measure(files, root / "scores.parquet", quiet=True)
    with pytest.MonkeyPatch.context() as patch:  # UMAP takes seconds to compile
        patch.setattr(report_map, "coordinates", lambda values, _seed: values[:, :2])
        report([root], root / "report.html")
    return root / "report.html"


@pytest.fixture(scope="module")
def visit(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visited(page, tmp_path_factory.mktemp("browser"))


def test_every_plot_is_drawn_without_an_error(page: Path, visit: Visit) -> None:
    assert re.search(r'<body[^>]*data-drawn="yes"', visit.dom)
    assert re.search(r'<p id="failure"[^>]* hidden=""></p>', visit.dom)
    places = re.findall(r'<div class="plot( map)?[ "]', page.read_text(encoding="utf-8"))
    assert len(places) >= 6
    assert places.count(" map") == 1
    assert visit.dom.count('class="main-svg"') >= len(places)
    assert len(re.findall(r'<path class="point[ "]', visit.dom)) >= 2 * CELLS


def test_hostile_names_are_shown_as_text_and_never_run(visit: Visit) -> None:
    assert "<title>deconfound report</title>" in visit.dom
    assert "<img src=x" not in visit.dom.replace('"', "")
    legend = re.search(r'<div id="map-legend".*?</div>', visit.dom, flags=re.DOTALL)
    assert legend is not None
    shown = {html.unescape(name) for name in re.findall(r"</i>(.*?)</button>", legend[0])}
    assert shown == set(LABELS)


def test_the_page_asks_for_no_address(visit: Visit) -> None:
    assert not visit.asked


def test_pointing_at_a_cell_shows_it(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    open_to_scripts = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text, count=1)
    copy = tmp_path / "hover.html"
    copy.write_text(HOVER.join(open_to_scripts.rsplit("</body>", 1)), encoding="utf-8")
    dom, asked = visited(copy, tmp_path)
    assert asked, "a page that asks for an address must be noticed"
    assert re.search(r'<body[^>]*data-lit="true"', dom)
    shown = re.search(r'<div id="cell"[^>]*>.*?<p>(.*?)</p>', dom, flags=re.DOTALL)
    assert shown is not None
    said = dict(line.split(": ", 1) for line in html.unescape(shown[1]).splitlines()[:3])
    assert said["Label"] in LABELS
    assert said["Environment"] in PLATES
