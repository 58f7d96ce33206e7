from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile

from deconfound import cli
from deconfound.arrays import Pixels
from deconfound.data.ingest import rows
from deconfound.data.ingest.fields import CENTRE_COLUMNS, centre_columns, centres
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.writing import remarks
from deconfound.data.readers.axes import Taken
from deconfound.data.readers.image import image_and_axes
from deconfound.errors import UserError
from deconfound.files import growing

X, Y = "Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"


def write_fields(folder: Path, cells: list[tuple[int, float, float]]) -> tuple[Path, Pixels]:
    """Three fields (2, 40, 50) uint16, a file per channel, and one row per (field, x, y)."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 65536, (3, 2, 40, 50), dtype=np.uint16)
    for field in range(3):
        for channel, name in enumerate(("DNA", "ER")):
            tifffile.imwrite(folder / f"f{field}-{name}.tif", pixels[field, channel])
    table = pd.DataFrame(cells, columns=["field", X, Y])
    for name in ("DNA", "ER"):
        table[f"FileName_{name}"] = [f"f{field}-{name}.tif" for field in table["field"]]
        table[f"PathName_{name}"] = "."
    table["Metadata_Perturbation"] = [f"gene{row % 2}" for row in range(len(table))]
    table["Metadata_Plate"] = table["field"]
    table.to_csv(folder / "cells.csv", index=False)
    return folder / "cells.csv", pixels


def assert_refused(table: Path, message: str, **options: Any) -> None:
    """`ingest` raises one line that matches, and leaves nothing behind."""
    before = sorted(table.parents[1].rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        config = IngestConfig(**{"crop": 8} | options)
        ingest(table, table.parent, table.parents[1] / "s", config=config, quiet=True)
    assert "\n" not in str(error.value)
    assert sorted(table.parents[1].rglob("*")) == before


def test_crops_around_the_centres(tmp_path: Path) -> None:
    cells = [(1, 10.0, 20.0), (0, 25.3, 12.6), (1, 45.0, 35.0), (2, 30.5, 30.5)]
    table, pixels = write_fields(tmp_path / "f", cells)
    even = ingest(table, table.parent, tmp_path / "even", config=IngestConfig(crop=8), quiet=True)
    assert (even.channels, even.image_shape) == (("DNA", "ER"), (2, 8, 8))
    corners = [(1, 6, 16), (0, 22, 9), (1, 41, 31), (2, 27, 27)]
    expected = [pixels[f, :, top : top + 8, left : left + 8] for f, left, top in corners]
    np.testing.assert_array_equal(even.read(range(4)), expected)
    odd = ingest(table, table.parent, tmp_path / "odd", config=IngestConfig(crop=7), quiet=True)
    for row, (field, x, y) in enumerate(cells[:1]):
        middle = odd.read([row])[0, :, 3, 3]
        np.testing.assert_array_equal(middle, pixels[field, :, int(y), int(x)])


@pytest.mark.parametrize("crop", [4, 7])
def test_the_middle_of_the_crop_is_nearest_to_the_centre(tmp_path: Path, crop: int) -> None:
    xs = np.arange(10, 12, 0.1).round(2)
    table, pixels = write_fields(tmp_path / "f", [(0, x, 20) for x in xs])
    config = IngestConfig(crop=crop)
    found = ingest(table, table.parent, tmp_path / "s", config=config, quiet=True).read(range(20))
    row = pixels[0, 0, 20]
    for crop_row, x in zip(found, xs, strict=True):
        starts = [s for s in range(20) if (row[s : s + crop] == crop_row[0, crop // 2]).all()]
        distance = abs(starts[0] + (crop - 1) / 2 - x)
        assert distance <= 0.5 + 1e-9


def test_cells_near_the_border_are_dropped_and_counted(tmp_path: Path) -> None:
    kept = [(0, 4, 4), (1, 46, 36), (0, 20, 20)]
    dropped = [(0, 3.0, 20), (2, 46.1, 20), (1, 20, 3.0), (1, 20, 36.1)]
    cells = [dropped[0], kept[0], dropped[1], kept[1], kept[2], dropped[2], dropped[3]]
    table, pixels = write_fields(tmp_path / "f", cells)
    config = IngestConfig(crop=8, size=4)
    screen = ingest(table, table.parent, tmp_path / "first", config=config, quiet=True)
    assert screen.table[["field", X, Y]].astype(float).values.tolist() == [list(c) for c in kept]
    assert screen.provenance["rows"] == len(screen) == 3
    assert screen.provenance["crop"] == {
        "centre_columns": [X, Y],
        "fields": 3,
        "rows_of_table": 7,
        "dropped_at_border": 4,
    }
    assert remarks(screen.provenance) == [
        "4 of 7 cells in 3 fields lie too near the border and were dropped"
    ]
    means = pixels[0, :, :8, :8].astype(float).reshape(2, 4, 2, 4, 2).mean((2, 4))
    np.testing.assert_allclose(screen.read([0])[0], means, atol=0.501)


def test_no_cell_is_left(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 3, 4), (1, 49, 20)])
    assert_refused(table, r"all 2 cells lie too near the border .* smaller --crop")


def test_scattered_rows_keep_their_order_and_each_field_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    cells = [(int(rng.integers(3)), *rng.uniform(1, 39, 2).round(2)) for _ in range(60)]
    table, pixels = write_fields(tmp_path / "f", cells)
    read: list[Path] = []

    def counting(file: Path, **options: Any) -> tuple[Pixels, Taken]:
        read.append(file)
        return image_and_axes(file, **options)

    monkeypatch.setattr(rows, "image_and_axes", counting)
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 7)
    config = IngestConfig(crop=6, threads=3)
    screen = ingest(table, table.parent, tmp_path / "s", config=config, quiet=True)
    assert sorted(read) == sorted(table.parent.glob("*.tif"))
    crops = []
    for field, x, y in cells:
        left, top = int(np.ceil(x - 3)), int(np.ceil(y - 3))
        if min(left, top) >= 0 and left <= 44 and top <= 34:
            crops.append(pixels[field, :, top : top + 6, left : left + 6])
    assert 0 < len(crops) < 60
    np.testing.assert_array_equal(screen.read(range(len(screen))), crops)
    screen.check()


def test_fields_may_differ_in_size(tmp_path: Path) -> None:
    table, pixels = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, 20)])
    for channel, name in enumerate(("DNA", "ER")):
        tifffile.imwrite(table.parent / f"f1-{name}.tif", pixels[1, channel, :30, :30])
    config = IngestConfig(crop=8)
    screen = ingest(table, table.parent, tmp_path / "first", config=config, quiet=True)
    np.testing.assert_array_equal(screen.read([1])[0], pixels[1, :, 16:24, 16:24])
    tifffile.imwrite(table.parent / "f1-ER.tif", pixels[1, 1])
    assert_refused(table, r"row 1 .*column 'FileName_ER': .*f1-ER.tif: \(40, 50\) .*'FileName_DNA'")


def test_a_centre_on_the_edge_by_either_convention_is_dropped_like_any_near_it(
    tmp_path: Path,
) -> None:
    """Counted from the middle of the first pixel a field ends at 49.5, from its corner at 50."""
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (1, 49.9, 20), (1, 20, 40)])
    screen = ingest(table, table.parent, tmp_path / "s", config=IngestConfig(crop=8), quiet=True)
    assert len(screen) == 1
    assert screen.provenance["crop"]["dropped_at_border"] == 2


@pytest.mark.parametrize(("x", "y", "column"), [(50.1, 20, X), (-0.6, 20, X), (20, 40.1, Y)])
def test_a_centre_outside_its_field(tmp_path: Path, x: float, y: float, column: str) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, 20), (1, x, y)])
    assert_refused(
        table,
        rf"row 2 \(from 0\): column '{column}': .*f1-DNA.tif: the centre .* outside its field of "
        r"40 × 50",
    )


def test_centres_that_are_no_numbers(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, np.nan), (2, 3, np.inf)])
    assert_refused(table, rf"row 1 \(from 0\): column '{Y}' holds nan; .* 2 rows")


def test_a_crop_larger_than_its_field(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20)])
    assert_refused(table, r"row 0 .* 40 × 50 pixels, smaller than a crop of 41", crop=41)
    table, pixels = write_fields(tmp_path / "g", [(0, 20, 20), (1, 2, 2)])
    for channel, name in enumerate(("DNA", "ER")):
        tifffile.imwrite(table.parent / f"f1-{name}.tif", pixels[1, channel, :5, :30])
    assert_refused(table, r"row 1 .* 5 × 30 pixels, smaller than a crop of 8")


def test_the_same_cell_twice(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, 20), (0, 20, 20)])
    assert_refused(table, r"row 2 .* the cell at 20, 20 is already in row 0")


def test_the_same_file_in_many_rows_asks_for_crops(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (0, 10, 10)])
    assert_refused(table, r"rows 0 and 1 .* --crop", crop=None)


def test_centres_without_crops_are_not_ignored(tmp_path: Path) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20)])
    assert_refused(table, r"--centre-columns .* give --crop", crop=None, centre_columns=(X, Y))


def test_what_was_dropped_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = write_fields(tmp_path / "f", [(0, 20, 20), (1, 2, 20)])
    words = f"ingest {table} --images-root {table.parent} --crop 8 --out {tmp_path / 's'} --quiet"
    cli.main(words.split())
    said = capsys.readouterr()
    assert "1 of 2 cells in 2 fields lie too near the border and were dropped" in said.out


def test_black_crops_are_counted(tmp_path: Path) -> None:
    table, pixels = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, 20), (2, 20, 20)])
    for name in ("DNA", "ER"):
        tifffile.imwrite(table.parent / f"f1-{name}.tif", np.zeros_like(pixels[1, 0]))
    config = IngestConfig(crop=8)
    screen = ingest(table, table.parent, tmp_path / "s", config=config, quiet=True)
    assert screen.provenance["black_images"] == 1
    assert remarks(screen.provenance)[1].startswith("warning: 1 images are black")


def test_usual_and_given_centre_columns() -> None:
    names = [name for pair in reversed(CENTRE_COLUMNS) for name in pair]
    table = pd.DataFrame({name: ["1"] for name in names})
    assert centre_columns(table, (), "t.csv") == (X, Y)
    assert centre_columns(table[["Metadata_X", "Metadata_Y"]], (), "t.csv")[0] == "Metadata_X"
    assert centre_columns(table, (Y, X), "t.csv") == (Y, X)
    with pytest.raises(UserError, match="names 1 columns; expected two, x and y"):
        centre_columns(table, (X,), "t.csv")
    with pytest.raises(UserError, match="there is no column 'cx'"):
        centre_columns(table, ("cx", Y), "t.csv")
    with pytest.raises(
        UserError, match=r"Location_Center_X/Y.*; it has Metadata_X; name .* --centre-columns"
    ):
        centre_columns(table[["Metadata_X"]], (), "t.csv")
    assert centres(table, (X, Y), "t.csv").tolist() == [[1.0, 1.0]]


def test_a_full_disk_while_cutting_leaves_what_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, pixels = write_fields(tmp_path / "f", [(0, 20, 20), (1, 20, 20)])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(growing.os, "pwrite", full)
        with pytest.raises(UserError, match=r"No space .* kept in \.s\.unfinished"):
            ingest(table, table.parent, tmp_path / "s", config=IngestConfig(crop=8), quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.unfinished", "f"]
    screen = ingest(table, table.parent, tmp_path / "s", config=IngestConfig(crop=8), quiet=True)
    np.testing.assert_array_equal(screen.read([0, 1]), pixels[:2, :, 16:24, 16:24])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "s"]
