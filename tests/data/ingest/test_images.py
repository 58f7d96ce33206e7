import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from deconfound.arrays import Pixels
from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.ingest import rows
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.writing import remarks
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError


def cells(folder: Path, rows: int = 10, side: int = 6) -> tuple[Path, Pixels]:
    """A table of grey PNG cells and their pixels (rows, 1, side, side)."""
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (rows, 1, side, side), dtype=np.uint8)
    for row in range(rows):
        Image.fromarray(pixels[row, 0]).save(folder / f"{row:03d}.png")
    table = pd.DataFrame(
        {
            "path": [f"{row:03d}.png" for row in range(rows)],
            "Metadata_Perturbation": [f"gene{row % 3}" for row in range(rows)],
            "Metadata_Batch": ["01"] * rows,
            "Metadata_Plate": [f"P{row % 2}" for row in range(rows)],
            "Metadata_Well": ["A01"] * rows,
        }
    )
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv", pixels


def change(table: Path, row: int, column: str, value: str | None) -> None:
    changed = pd.read_csv(table, dtype=str)
    changed.loc[row, column] = value
    changed.to_csv(table, index=False)


def assert_refused(
    table: Path | None, root: Path, message: str, config: IngestConfig | None = None
) -> None:
    """`ingest` raises one line that matches, and leaves nothing behind."""
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        ingest(table, root, root.parent / "screen", config=config, quiet=True)
    assert "\n" not in str(error.value)
    assert sorted(root.parent.rglob("*")) == before


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_table_and_images(tmp_path: Path, suffix: str) -> None:
    table, pixels = cells(tmp_path / "images")
    values = pd.read_csv(table, dtype=str)
    if suffix == "parquet":
        values.to_parquet(table.with_suffix(".parquet"))
    else:
        values.to_csv(table.with_suffix(f".{suffix}"), index=False, sep=",\t"[suffix == "tsv"])
    source = table.with_suffix(f".{suffix}")
    screen = ingest(source, tmp_path / "images", tmp_path / "screen", quiet=True)
    np.testing.assert_array_equal(screen.read(range(10)), pixels)
    pd.testing.assert_frame_equal(screen.table, values)
    assert (screen.name, screen.channels, screen.dtype) == ("screen", ("channel_0",), np.uint8)
    assert screen.roles == Roles(
        label="Metadata_Perturbation",
        environment=("Metadata_Batch", "Metadata_Plate"),
        levels=("Metadata_Batch", "Metadata_Plate"),
        well="Metadata_Well",
    )
    screen.check()


@pytest.mark.parametrize("threads", [1, 5])
def test_order_is_kept_over_many_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    table, pixels = cells(tmp_path / "images", rows=53)
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 2)
    config = IngestConfig(threads=threads)
    screen = ingest(table, tmp_path / "images", tmp_path / "s", config=config, quiet=True)
    np.testing.assert_array_equal(screen.read(range(53)), pixels)


def test_provenance(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    config = IngestConfig(size=4, name="mine", channels=("DNA",))
    found = ingest(table, tmp_path / "images", tmp_path / "s", config=config, quiet=True)
    assert (found.name, found.channels) == ("mine", ("DNA",))
    provenance = open_screen(tmp_path / "s").provenance
    assert provenance["table"] == str(table)
    assert provenance["table_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert provenance["rows"] == 10
    assert IngestConfig(**provenance["options"]) == config
    assert provenance["resize"]["size"] == 4
    assert {"python", "deconfound", "pillow", "tifffile"} <= set(provenance["versions"])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    for name in ("a", "b"):
        config = IngestConfig(name="same", threads=3)
        ingest(table, tmp_path / "images", tmp_path / name, config=config, quiet=True)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_tiff_of_many_channels(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images", rows=4)
    pixels = np.random.default_rng(0).integers(0, 65536, (4, 5, 7, 9), dtype=np.uint16)
    for row in range(4):
        name = f"{row}.tif"
        tifffile.imwrite(table.parent / name, pixels[row], photometric="minisblack")
        change(table, row, "path", name)
    screen = ingest(table, table.parent, tmp_path / "s", quiet=True)
    assert screen.channels == tuple(f"channel_{channel}" for channel in range(5))
    assert (screen.dtype, screen.image_shape) == (np.dtype("uint16"), (5, 7, 9))
    np.testing.assert_array_equal(screen.read(range(4)), pixels)


def one_file_per_channel(folder: Path) -> tuple[Path, Pixels]:
    """A table with FileName_X and PathName_X and the pixels (4, 3, 6, 6) of its grey files."""
    folder.mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (4, 3, 6, 6), dtype=np.uint8)
    table = pd.DataFrame({"Metadata_Gene": list("abab"), "Metadata_Plate": list("ppqq")})
    for channel, name in enumerate(("DNA", "ER", "RNA")):
        (folder / name).mkdir()
        for row in range(4):
            Image.fromarray(pixels[row, channel]).save(folder / name / f"{row}.png")
        table[f"FileName_{name}"] = [f"{row}.png" for row in range(4)]
        table[f"PathName_{name}"] = name
        table[f"{name} file"] = [f"{name}/{row}.png" for row in range(4)]
    table.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv", pixels


def test_one_file_per_channel(tmp_path: Path) -> None:
    table, pixels = one_file_per_channel(tmp_path / "images")
    for number, (config, names, channels) in enumerate(
        [
            (IngestConfig(), ("DNA", "ER", "RNA"), [0, 1, 2]),
            (IngestConfig(channels=("RNA", "DNA")), ("RNA", "DNA"), [2, 0]),
            (
                IngestConfig(channel_columns=("ER file", "DNA file")),
                ("ER file", "DNA file"),
                [1, 0],
            ),
            (IngestConfig(channel_columns=("ER file",), channels=("ER",)), ("ER",), [1]),
        ]
    ):
        out = tmp_path / f"s{number}"
        screen = ingest(table, table.parent, out, config=config, quiet=True)
        assert screen.channels == names
        np.testing.assert_array_equal(screen.read(range(4)), pixels[:, channels])


def test_a_bad_file_of_one_channel_names_its_column(tmp_path: Path) -> None:
    table, _ = one_file_per_channel(tmp_path / "images")
    file = table.parent / "ER" / "2.png"
    place = r"row 2 \(from 0\): column 'FileName_ER': .*ER/2.png"
    file.write_bytes(b"none")
    assert_refused(table, table.parent, f"{place}: not a PNG")
    Image.new("RGB", (6, 6)).save(file)
    assert_refused(table, table.parent, f"{place}: 3 channels; expected one")
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(file)
    assert_refused(table, table.parent, rf"{place}: \(6, 6\) uint16, but .* 'FileName_DNA'")
    tifffile.imwrite(file, np.full((6, 6), np.nan, np.float32))
    assert_refused(table, table.parent, f"{place}: pixels that are not finite")
    file.unlink()
    assert_refused(table, table.parent, r"row 2 \(from 0\): column 'FileName_ER': no file")


def test_black_images_are_counted(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    for row in (2, 5):
        Image.new("L", (6, 6)).save(table.parent / f"{row:03d}.png")
    screen = ingest(table, table.parent, tmp_path / "s", quiet=True)
    assert screen.provenance["black_images"] == 2
    assert remarks(screen.provenance)[0].startswith("warning: 2 images are black")
    assert remarks({"black_images": 0}) == []


def test_channel_names(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images", rows=1)
    rgba = np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(table.parent / "000.png")
    screen = ingest(table, table.parent, tmp_path / "a", quiet=True)
    assert screen.channels == ("R", "G", "B")
    four = IngestConfig(channels=("DNA", "ER", "RNA", "Mito"))
    kept = ingest(table, table.parent, tmp_path / "b", config=four, quiet=True)
    np.testing.assert_array_equal(kept.read([0])[0], rgba.transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"3 channels, but --channels names 2 \(a, b\)"):
        ingest(
            table,
            table.parent,
            tmp_path / "c",
            config=IngestConfig(channels=("a", "b")),
            quiet=True,
        )


def test_a_differing_size_names_both_files(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    Image.new("L", (6, 9)).save(table.parent / "007.png")
    assert_refused(
        table,
        table.parent,
        r"row 7 \(from 0\): .*007.png: .*\(1, 9, 6\) uint8; expected \(1, 6, 6\) uint8 as in row 0 "
        r"\(000.png\); say what .* --fit resize, pad or crop, or pass --size N",
    )
    resized = ingest(table, table.parent, tmp_path / "s", config=IngestConfig(size=4), quiet=True)
    assert resized.image_shape == (1, 4, 4)


def test_a_differing_type_or_channel_count(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(table.parent / "004.png")
    assert_refused(table, table.parent, r"row 4 .* uint16; expected .* one pixel type")
    Image.new("RGB", (6, 6), (1, 2, 3)).save(table.parent / "004.png")
    assert_refused(table, table.parent, r"row 4 .* same channels, or pass --rgb")
    config = IngestConfig(rgb=True)
    screen = ingest(table, table.parent, tmp_path / "s", config=config, quiet=True)
    assert screen.read([4])[0, :, 0, 0].tolist() == [1, 2, 3]
    assert np.ptp(screen.read([5]), axis=1).max() == 0


def test_the_first_bad_row_is_named_whatever_the_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, _ = cells(tmp_path / "images", rows=40)
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 2)
    for row in (11, 12, 30):
        (table.parent / f"{row:03d}.png").write_bytes(b"not an image")
    assert_refused(table, table.parent, r"row 11 .*011.png: not a PNG", IngestConfig(threads=8))


def test_a_file_cut_short(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images", side=40)
    for row in (5, 0):
        file = table.parent / f"{row:03d}.png"
        file.write_bytes(file.read_bytes()[:-600])
        message = rf"table.csv: row {row} \(from 0\): .*{file.name}: damaged or cut short"
        assert_refused(table, table.parent, message)


def test_missing_files(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    for row in (3, 8):
        (table.parent / f"{row:03d}.png").unlink()
    assert_refused(table, table.parent, r"row 3 .*003.png; 2 of 10 files are missing")


def test_a_path_that_leaves_the_folder(tmp_path: Path) -> None:
    table, pixels = cells(tmp_path / "images")
    shutil.move(table.parent / "002.png", tmp_path / "secret.png")
    change(table, 2, "path", "../secret.png")
    assert_refused(table, table.parent, r"row 2 .*\.\./secret.png leads outside")
    config = IngestConfig(allow_outside=True)
    screen = ingest(table, table.parent, tmp_path / "s", config=config, quiet=True)
    np.testing.assert_array_equal(screen.read([2])[0], pixels[2])


def test_max_pixels(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    assert_refused(table, table.parent, r"36 pixels .* --max-pixels", IngestConfig(max_pixels=35))


@pytest.mark.parametrize("value", [None, "  "])
@pytest.mark.parametrize("column", ["Metadata_Perturbation", "Metadata_Plate"])
def test_empty_values_name_their_rows(tmp_path: Path, column: str, value: str | None) -> None:
    table, _ = cells(tmp_path / "images")
    for row in (1, 2, 4, 5, 6, 7):
        change(table, row, column, value)
    assert_refused(table, table.parent, f"'{column}' is empty in rows 1, 2, 4, 5, 6 and 1 more")


def test_an_existing_screen_is_never_touched(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    (tmp_path / "screen").mkdir()
    assert_refused(table, table.parent, "already exists")


def test_a_full_disk_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = cells(tmp_path / "images")
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 36 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert_refused(table, table.parent, "GiB are free; make room")


def test_the_transform_of_runs_to_come_is_recorded_and_pixels_stay(tmp_path: Path) -> None:
    table, pixels = cells(tmp_path / "images")
    config = IngestConfig(transform="percentile", percentile_by="Metadata_Plate")
    screen = ingest(table, tmp_path / "images", tmp_path / "screen", config=config, quiet=True)
    np.testing.assert_array_equal(screen.read(range(10)), pixels)
    recorded = json.loads((tmp_path / "screen" / "screen.json").read_text())
    assert (recorded["transform"], recorded["percentile_by"]) == ("percentile", "Metadata_Plate")
    data = {"environment": ("Metadata_Plate",), "levels": ("Metadata_Plate",), "val_fraction": 0.3}
    problem = pose(screen, DataOptions(**data))
    assert (problem.transform, problem.percentile_by) == ("percentile", ("Metadata_Plate",))
    assert problem.group is not None
    assert problem.group.names == ("P0", "P1")
    other = pose(screen, DataOptions(**data, transform="arcsinh"))
    assert (other.transform, other.percentile_by, other.group) == ("arcsinh", (), None)


def test_percentiles_by_a_column_are_for_the_transform_percentile(tmp_path: Path) -> None:
    table, _ = cells(tmp_path / "images")
    config = IngestConfig(percentile_by="Metadata_Plate")
    assert_refused(table, tmp_path / "images", "--transform percentile", config)
    config = IngestConfig(transform="percentile", percentile_by="Metadata_Plat")
    assert_refused(table, tmp_path / "images", "did you mean 'Metadata_Plate'", config)
