"""One NumPy array and a table as a screen."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from deconfound import cli
from deconfound.data.ingest import arrays
from deconfound.data.ingest.arrays import ingest_array
from deconfound.data.ingest.forms import form_lines
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.errors import InputWarning, UserError

HEP2 = Path(__file__).parents[3].parent / "shared" / "data" / "hep2" / "hep2_78px.npz"


def table_of(rows: int, folder: Path) -> Path:
    table = pd.DataFrame({"Metadata_Label": [f"c{row % 3}" for row in range(rows)]})
    table["Metadata_Plate"] = [f"0{row % 2}" for row in range(rows)]
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def made(values: npt.NDArray[Any], folder: Path, **named: Any) -> Screen:
    file = folder / "values.npy"
    np.save(file, values, allow_pickle=values.dtype == object)
    return ingest_array(table_of(len(values), folder), file, folder / "s", quiet=True, **named)


def pixels(*shape: int, dtype: str = "uint16") -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, 4000, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "float32", "float64", "float16"])
def test_channels_first(tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 400)
    values = pixels(7, 2, 6, 6, dtype=dtype)
    screen = made(values, tmp_path, config=IngestConfig(channels=("DNA", "actin")))
    kept = {">u2": "uint16", "float64": "float32", "float16": "float32"}.get(dtype, dtype)
    assert (screen.image_shape, str(screen.dtype)) == ((2, 6, 6), kept)
    assert screen.channels == ("DNA", "actin")
    np.testing.assert_array_equal(screen.read(range(7)), values.astype(kept))
    assert screen.table["Metadata_Plate"].tolist() == [f"0{row % 2}" for row in range(7)]
    screen.check()


def test_channels_last_and_none(tmp_path: Path) -> None:
    values = pixels(5, 6, 6, 3)
    (tmp_path / "a").mkdir()
    screen = made(values, tmp_path / "a")
    np.testing.assert_array_equal(screen.read(range(5)), values.transpose(0, 3, 1, 2))
    (tmp_path / "b").mkdir()
    screen = made(values[..., 0], tmp_path / "b")
    assert screen.channels == ("channel_0",)
    np.testing.assert_array_equal(screen.read(range(5))[:, 0], values[..., 0])


def test_axes_that_cannot_be_told_are_asked_for(tmp_path: Path) -> None:
    for shape in ((4, 6, 6, 6), (4, 3, 6, 8)):
        with pytest.raises(UserError, match="give --array-axes NCHW or NHWC"):
            made(pixels(*shape), tmp_path)
    values = pixels(4, 6, 6, 6)
    screen = made(values, tmp_path, axes="NHWC")
    np.testing.assert_array_equal(screen.read(range(4)), values.transpose(0, 3, 1, 2))


def test_images_are_resized(tmp_path: Path) -> None:
    values = np.full((3, 2, 8, 8), 7, dtype=np.uint8)
    screen = made(values, tmp_path, config=IngestConfig(size=4))
    np.testing.assert_array_equal(screen.read(range(3)), np.full((3, 2, 4, 4), 7))


def test_profiles_keep_what_is_finite_and_varies(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 4))
    values[:, 1], values[4, 2] = 3, np.inf
    screen = made(values, tmp_path)
    assert screen.channels == ("feature_0", "feature_3")
    np.testing.assert_array_equal(screen.read(range(9)), values[:, [0, 3]].astype(np.float32))
    lost = {"constant": ["feature_1"], "not_finite": ["feature_2"]}
    assert screen.provenance["dropped"] == lost


def test_an_archive_of_several_arrays_needs_a_key(tmp_path: Path) -> None:
    values = pixels(6, 5, 5)
    np.savez_compressed(tmp_path / "cells.npz", image=values, other=np.arange(6))
    common = [str(table_of(6, tmp_path)), "--array", str(tmp_path / "cells.npz"), "--quiet"]
    with pytest.raises(UserError, match="holds the arrays image, other; name one"):
        ingest_array(tmp_path / "table.csv", tmp_path / "cells.npz", tmp_path / "s")
    cli.main(["ingest", *common, "--array-key", "image", "--out", str(tmp_path / "s")])
    np.testing.assert_array_equal(open_screen(tmp_path / "s").read(range(6))[:, 0], values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[{}, 1]] * 4, dtype=object), "cannot be read as a .npy or .npz of numbers"),
        (np.zeros((4, 2), complex), "complex128; expected numbers"),
        (np.zeros(4), "expected numbers as"),
        (np.zeros((4, 0)), "at least one row and value"),
        (np.zeros((4, 5, 5), np.int64), "pixels of type int64"),
        (np.where(np.arange(4) == 2, np.nan, 0.0)[:, None, None] * np.ones((5, 5)), r"row 2 \("),
    ],
)
def test_what_cannot_be_an_image_is_refused(
    tmp_path: Path, values: npt.NDArray[Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        made(values, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s").exists()


def test_table_and_names_must_fit_the_array(tmp_path: Path) -> None:
    np.save(tmp_path / "five.npy", pixels(5, 2, 6, 6))
    with pytest.raises(UserError, match=r"5 rows, but .*table\.csv has 4"):
        ingest_array(table_of(4, tmp_path), tmp_path / "five.npy", tmp_path / "s")
    config = IngestConfig(channels=("DNA",))
    with pytest.raises(UserError, match="2 channels or features, but --channels names 1"):
        ingest_array(table_of(5, tmp_path), tmp_path / "five.npy", tmp_path / "s", config=config)
    with pytest.raises(UserError, match="--rgb means nothing for arrays"):
        made(pixels(4, 6, 6), tmp_path, config=IngestConfig(rgb=True))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "five.npy").read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        ingest_array(tmp_path / "table.csv", tmp_path / "cut.npy", tmp_path / "s")
    with pytest.raises(UserError, match="cannot be read"):
        ingest_array(tmp_path / "table.csv", tmp_path / "none.npy", tmp_path / "s")


def test_hep2(tmp_path: Path) -> None:
    if not HEP2.is_file():
        pytest.skip("HEp-2 is not in ../shared/data")
    with np.load(HEP2, allow_pickle=False) as found:
        label, first = found["label"].astype(str), found["image"][:2]
    table = pd.DataFrame({"Metadata_Label": label, "Metadata_Environment": "all"})
    table.to_csv(tmp_path / "t.csv", index=False)
    screen = ingest_array(tmp_path / "t.csv", HEP2, tmp_path / "s", key="image", quiet=True)
    assert (len(screen), screen.image_shape) == (4200, (1, 78, 78))
    np.testing.assert_array_equal(screen.read([0, 1])[:, 0], first)


def test_names_of_channels_tell_the_axes(tmp_path: Path) -> None:
    values = pixels(4, 3, 6, 8)
    for number, (given, letters) in enumerate(
        ((values, "NCYX"), (values.transpose(0, 2, 3, 1), "NYXC"))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        screen = made(given, folder, config=IngestConfig(channels=("a", "b", "c")))
        np.testing.assert_array_equal(screen.read(range(4)), values)
        [taken] = screen.provenance["axes"]
        assert (taken["taken"], taken["guessed"]) == (letters, False)
    (tmp_path / "square").mkdir()
    with pytest.warns(InputWarning, match="axes are guessed, array N × 6 × 6 × 3 taken as NYXC"):
        screen = made(pixels(4, 6, 6, 3), tmp_path / "square")
    assert form_lines(screen)[0] == "3 channels (channel_0, channel_1, channel_2), 6 × 6 pixels"


def test_arrays_are_padded_and_cropped(tmp_path: Path) -> None:
    values = pixels(4, 2, 6, 6)
    for fit, size, inside in (("pad", 8, np.s_[:, :, 1:7, 1:7]), ("crop", 4, np.s_[...])):
        folder = tmp_path / fit
        folder.mkdir()
        screen = made(values, folder, config=IngestConfig(size=size, fit=fit))
        wanted = values if fit == "pad" else values[:, :, 1:5, 1:5]
        np.testing.assert_array_equal(screen.read(range(4))[inside], wanted)
        assert screen.provenance["fit"]["how"] == fit
    with pytest.raises(UserError, match=r"values in a row, more than 71; .* --max-pixels"):
        made(values, tmp_path, config=IngestConfig(max_pixels=71))
