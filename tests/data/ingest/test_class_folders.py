"""Images in class folders: PACS, VLCS and small trees."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.writing import remarks
from deconfound.errors import UserError

PACS = Path(__file__).parents[3].parent / "shared" / "data" / "pacs_64px"


VLCS = PACS.parent / "vlcs_mini"


def assert_refused(
    table: Path | None, root: Path, message: str, config: IngestConfig | None = None
) -> None:
    """`ingest` raises one line that matches, and leaves nothing behind."""
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        ingest(table, root, root.parent / "screen", config=config, quiet=True)
    assert "\n" not in str(error.value)
    assert sorted(root.parent.rglob("*")) == before


def test_class_folders(tmp_path: Path) -> None:
    for number, path in enumerate(["art/cat", "art/dog", "photo/cat"]):
        (tmp_path / "images" / path).mkdir(parents=True)
        Image.new("L", (4, 4), number).save(tmp_path / "images" / path / "a.png")
    screen = ingest(None, tmp_path / "images", tmp_path / "s", quiet=True)
    assert screen.roles.label == "Metadata_Label"
    assert screen.roles.environment == screen.roles.levels == ("Metadata_Environment",)
    assert screen.table["Metadata_Label"].tolist() == ["cat", "dog", "cat"]
    assert screen.read([0, 1, 2])[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert screen.provenance["table"] is None


def test_class_folders_and_a_table_of_environments(tmp_path: Path) -> None:
    for number, path in enumerate(["cat/a.png", "dog/b.png", "cat/c.png", "cat/left.png"]):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(tmp_path / "images" / path)
    table = tmp_path / "t.csv"
    table.write_text("File,Hospital\nc.png,h1\ndog/b.png,h2\na.png,h2\n")
    config = IngestConfig(class_folders=True, environment=("Hospital",))
    screen = ingest(table, tmp_path / "images", tmp_path / "s", config=config, quiet=True)
    assert screen.roles.label == "Metadata_Label"
    assert screen.roles.environment == ("Hospital",)
    assert screen.table["Metadata_Label"].tolist() == ["cat", "dog", "cat"]
    assert screen.read([0, 1, 2])[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert "1 images in class folders have no row" in remarks(screen.provenance)[0]
    assert_refused(None, tmp_path / "images", "--class-folders needs a table", config)


@pytest.mark.skipif(not PACS.is_dir(), reason=f"needs {PACS}")
def test_pacs(tmp_path: Path) -> None:
    kept = [(domain, kind) for domain in ("photo", "sketch") for kind in ("guitar", "house")]
    for domain, kind in kept:
        (tmp_path / "images" / domain).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / domain / kind).symlink_to((PACS / domain / kind).resolve())
    config = IngestConfig(size=32, allow_outside=True)
    screen = ingest(None, tmp_path / "images", tmp_path / "s", config=config, quiet=True)
    counts = screen.table.groupby(["Metadata_Environment", "Metadata_Label"]).size()
    for domain, kind in kept:
        assert counts[domain, kind] == len(list((PACS / domain / kind).iterdir()))
    row = len(screen) - 1
    with Image.open(PACS / screen.table["Metadata_Path"][row]) as image:
        whole = np.asarray(image, dtype=np.float64).transpose(2, 0, 1)
    means = whole.reshape(3, 32, 2, 32, 2).mean((2, 4))
    np.testing.assert_allclose(screen.read([row])[0], means, atol=0.501)


@pytest.mark.skipif(not VLCS.is_dir(), reason=f"needs {VLCS}")
def test_vlcs_mixes_grey_and_colour(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pass --rgb"):
        ingest(None, VLCS, tmp_path / "s", quiet=True)
    config = IngestConfig(rgb=True, size=64)
    screen = ingest(None, VLCS, tmp_path / "s", config=config, quiet=True)
    assert (len(screen), screen.image_shape) == (187, (3, 64, 64))
    assert screen.channels == ("R", "G", "B")
