"""Images read by the workers of a local Ray cluster: the screen that one process makes."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound import cli
from deconfound.data.ingest import rows, whole
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.screens.screen import open_screen
from deconfound.errors import UserError
from deconfound.runtime.cluster import Cluster, connected

ROWS = 11


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'deconfound[ray]'")
    with connected(None):
        yield ray


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of 8 × 8 and one of 10 × 8 pixels, two at a time."""
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 2)
    stream = np.random.default_rng(0)
    for row in range(ROWS):
        shape = (10, 8) if row == 7 else (8, 8)
        Image.fromarray(stream.integers(0, 256, shape, np.uint8)).save(tmp_path / f"{row:02d}.png")
    values = {
        "Path": [f"{row:02d}.png" for row in range(ROWS)],
        "Metadata_Gene": [f"gene{row % 3}" for row in range(ROWS)],
        "Metadata_Plate": [f"P{row % 2}" for row in range(ROWS)],
    }
    pd.DataFrame(values).to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Dying(whole._Worker):
    """Kills its process once."""

    def __call__(self) -> Any:
        read = super().__call__()

        def dying(part: whole.Part) -> Any:
            life = part[1][0][0].parent / "life"
            if part[0].start and life.exists():
                life.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return read(part)

        return dying


def test_what_the_workers_cannot_do_is_one_line(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    with pytest.raises(UserError, match="--executor ray reads whole images; crops are cut here"):
        ingest(table, tmp_path, out, config=IngestConfig(crop=4), cluster=Cluster())
    words = ["ingest", str(table), "--profiles", "--out", str(out), "--executor", "ray"]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert (
        "--executor ray reads image files; it belongs to --images-root" in capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[ray\]'"):
        ingest(table, tmp_path, out, config=IngestConfig(size=8), cluster=Cluster())
    assert not out.exists()


@pytest.mark.usefixtures("ray")
@pytest.mark.filterwarnings("ignore::deconfound.errors.InputWarning")
def test_workers_make_the_screen_of_one_process_though_one_is_killed(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IngestConfig(size=8, name="s")
    ingest(table, tmp_path, tmp_path / "here", config=config, quiet=True)
    (tmp_path / "life").touch()
    monkeypatch.setattr(whole, "_Worker", Dying)
    cluster = Cluster(workers=1)
    ingest(table, tmp_path, tmp_path / "there", config=config, quiet=True, cluster=cluster)
    assert not (tmp_path / "life").exists()
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert open_screen(tmp_path / "there").provenance["sizes"]["largest"] == [10, 8]
    (tmp_path / "05.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"row 5 \(from 0\): column 'Path': .*05\.png") as error:
        ingest(table, tmp_path, tmp_path / "bad", config=config, quiet=True, cluster=cluster)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bad").exists()
