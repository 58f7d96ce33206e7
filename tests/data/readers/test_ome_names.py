"""Names of channels from the description of an OME-TIFF."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.readers.tiff import ome_channel_names

PIXELS = np.arange(2 * 6 * 6, dtype=np.uint16).reshape(2, 6, 6)


def ome(file: Path, names: Any) -> Path:
    channel = {} if names is None else {"Channel": {"Name": names}}
    tifffile.imwrite(file, PIXELS, ome=True, metadata={"axes": "CYX"} | channel)
    return file


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["DNA", " ER & µ "], ("DNA", "ER & µ")),
        (["DNA", "DNA"], None),
        (["DNA", " "], None),
        (None, None),
    ],
)
def test_names_count_where_every_channel_has_its_own(
    tmp_path: Path, names: Any, found: tuple[str, ...] | None
) -> None:
    assert ome_channel_names(ome(tmp_path / "a.ome.tif", names), 2) == found


def test_other_files_name_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", PIXELS)
    np.save(tmp_path / "a.npy", PIXELS)
    for name in ("plain.tif", "a.npy"):
        assert ome_channel_names(tmp_path / name, 2) is None
    file = ome(tmp_path / "a.ome.tif", ["DNA", "ER"])
    assert ome_channel_names(file, 3) is None
    file.write_bytes(file.read_bytes().replace(b"</Pixels>", b"</Pixel >"))
    assert ome_channel_names(file, 2) is None


def test_a_screen_of_ome_tiff_has_its_names(tmp_path: Path) -> None:
    for label in ("l", "m"):
        folder = tmp_path / "images" / "e" / label
        folder.mkdir(parents=True)
        ome(folder / "0.ome.tif", ["DNA", "ER"])
    root = tmp_path / "images"
    assert ingest(None, root, tmp_path / "a", quiet=True).channels == ("DNA", "ER")
    given = IngestConfig(channels=("x", "y"))
    assert ingest(None, root, tmp_path / "b", config=given, quiet=True).channels == ("x", "y")
