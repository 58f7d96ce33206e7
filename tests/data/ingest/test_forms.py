"""What an ingest says and records of the axes and sizes of its images."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from deconfound import cli
from deconfound.arrays import Pixels
from deconfound.data.ingest import rows, writing
from deconfound.data.ingest.forms import form_lines
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.readers.resizing import Fit, fitted, resampled
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning, UserError

SCALE = "images of 16 × 20 to 21 × 20 pixels are resized to 12 × 12, which destroys their scale"


def noise(*shape: int, dtype: str = "uint8") -> Pixels:
    return np.random.default_rng(0).integers(1, 250, shape).astype(dtype)


def table(folder: Path, images: list[Pixels], suffix: str = "png", **how: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for row, image in enumerate(images):
        file = folder / f"{row}.{suffix}"
        if suffix == "tif":
            tifffile.imwrite(file, image, photometric="minisblack", **how)
        elif suffix == "npy":
            np.save(file, image)
        else:
            Image.fromarray(image).save(file)
    count = len(images)
    values = {
        "Path": [f"{row}.{suffix}" for row in range(count)],
        "Metadata_Gene": ["ab"[row % 2] for row in range(count)],
        "Metadata_Plate": ["pq"[row // 2 % 2] for row in range(count)],
    }
    pd.DataFrame(values).to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def made(file: Path, out: Path, **options: Any) -> Screen:
    return ingest(file, file.parent, out, config=IngestConfig(**options), quiet=True)


def differing(folder: Path) -> tuple[Path, list[Pixels]]:
    """Grey images 16 to 21 pixels high and 20 wide."""
    images = [noise(16 + row, 20) for row in range(6)]
    return table(folder, images), images


def test_height_width_channels_by_the_names_of_channels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [noise(16, 16, 5, dtype="uint16") for _ in range(4)]
    file = table(tmp_path / "im", images, "tif")
    words = ["ingest", str(file), "--images-root", str(file.parent), "--out", str(tmp_path / "s")]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    said = capsys.readouterr().err
    assert "0.tif: axes QYX (16, 16, 5)" in said
    assert "--channels" in said
    cli.main([*words, "--channels", *"abcde"])
    said = capsys.readouterr().out
    assert "5 channels (a, b, c, d, e), 16 × 16 pixels\n" in said
    assert "axes TIFF QYX taken as YXC: --channels names as many as the last axis has\n" in said
    screen = made(file, tmp_path / "again", channels=tuple("abcde"))
    np.testing.assert_array_equal(screen.read(range(4)), np.stack(images).transpose(0, 3, 1, 2))


def test_stacks_are_projected_and_recorded(tmp_path: Path) -> None:
    images = [noise(3, 2, 8, 8, dtype="uint16") + row for row in range(4)]
    file = table(tmp_path / "im", images, "tif", ome=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UserError, match=r"row 0 .*0\.tif: axes ZCYX .* --project max"):
        made(file, tmp_path / "s")
    screen = made(file, tmp_path / "s", project="max")
    np.testing.assert_array_equal(screen.read(range(4)), np.stack(images).max(1))
    [taken] = screen.provenance["axes"]
    assert (taken["axes"], taken["taken"], taken["guessed"]) == ("ZCYX", "CYX", False)
    assert form_lines(screen)[1:] == [
        "axes TIFF ZCYX taken as CYX: as the file says, max over depth"
    ]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_guess_is_said_also_with_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    file = table(tmp_path / "im", [noise(3, 8, 8) for _ in range(4)], "npy")
    words = ["ingest", str(file), "--images-root", str(file.parent), "--out", str(tmp_path / "s")]
    cli.main([*words, "--quiet"] if quiet else words)
    shown = capsys.readouterr()
    guess = "t.csv: axes are guessed, NPY QYX taken as CYX: the shorter of first and last axis is"
    assert shown.err.count(guess) == 1
    assert ("3 channels (channel_0" in shown.out) != quiet


def test_transparency_is_said_once(tmp_path: Path) -> None:
    file = table(tmp_path / "im", [noise(8, 8, 3 + (row > 2)) for row in range(6)])
    with pytest.warns(InputWarning) as warned:
        screen = made(file, tmp_path / "s")
    said = "transparency (alpha) is dropped; name as many --channels to keep it"
    assert [str(warning.message) for warning in warned] == [f"{file}: {said}"]
    assert form_lines(screen) == [
        "3 channels (R, G, B), 8 × 8 pixels",
        "axes PNG YXS taken as YXC: as the file says",
    ]


def test_resizing_images_of_differing_sizes_is_said(tmp_path: Path) -> None:
    file, images = differing(tmp_path / "im")
    with pytest.warns(InputWarning, match=rf"{SCALE}; --fit pad or crop keeps"):
        screen = made(file, tmp_path / "s", size=12)
    expected = np.stack([resampled(image[None], (12, 12)) for image in images])
    np.testing.assert_array_equal(screen.read(range(6)), expected)
    assert screen.provenance["sizes"] == {"smallest": [16, 20], "largest": [21, 20]}
    assert screen.provenance["resize"]["size"] == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = made(file, tmp_path / "asked", size=12, fit="resize")
    np.testing.assert_array_equal(asked.read(range(6)), expected)
    assert form_lines(asked)[-1] == SCALE.partition(",")[0]


def test_resizing_that_stretches_is_said(tmp_path: Path) -> None:
    file = table(tmp_path / "im", [noise(8, 12) for _ in range(4)])
    with pytest.warns(InputWarning, match="8 × 12 pixels are resized to 4 × 4, which stretches"):
        made(file, tmp_path / "s", size=4)
    file = table(tmp_path / "square", [noise(8, 8) for _ in range(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        screen = made(file, tmp_path / "t", size=4)
    assert form_lines(screen)[-1] == "images of 8 × 8 pixels are resized to 4 × 4"


@pytest.mark.parametrize(
    ("fit", "size", "sides"),
    [
        ("pad", 24, (24, 24)),
        ("crop", 12, (12, 12)),
        ("crop", None, (16, 20)),
        ("resize", None, (16, 20)),
    ],
)
def test_fit(tmp_path: Path, fit: Fit, size: int | None, sides: tuple[int, int]) -> None:
    file, images = differing(tmp_path / "im")
    screen = made(file, tmp_path / "s", size=size, fit=fit)
    expected = [fitted(image[None], sides, fit) for image in images]
    np.testing.assert_array_equal(screen.read(range(6)), np.stack(expected))
    height, width = sides
    about = {"how": fit, "height": height, "width": width, "asked": True}
    assert screen.provenance["fit"] == about
    assert (screen.provenance["resize"] is None) == (fit != "resize" or size is None)
    assert screen.provenance["options"]["fit"] == fit


def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file, _ = differing(tmp_path / "im")
    with pytest.raises(UserError, match=r"row 1 .*1\.png: 17 × 20 pixels do not fit into 16 × 20"):
        made(file, tmp_path / "s", fit="pad")
    with pytest.raises(UserError, match=r"row 0 .*0\.png: 16 × 20 pixels do not fill 32 × 32"):
        made(file, tmp_path / "s", fit="crop", size=32)
    with pytest.raises(UserError, match="--fit is for whole images"):
        made(file, tmp_path / "s", fit="pad", crop=4)
    assert not (tmp_path / "s").exists()


def test_what_is_said_of_other_sizes_is_not_asked_again(tmp_path: Path) -> None:
    """A table whose label lacks is refused for that alone."""
    file, _ = differing(tmp_path / "im")
    pd.read_csv(file).rename(columns={"Metadata_Gene": "drug"}).to_csv(file, index=False)
    with pytest.raises(UserError, match="images differ in size"):
        made(file, tmp_path / "s")
    with pytest.raises(UserError, match="label") as error:
        made(file, tmp_path / "s", fit="crop")
    assert "differ in size" not in str(error.value)


def test_a_stopped_ingest_records_the_forms_of_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of files read before it stopped too."""
    images = [noise(8, 8, 3 + (row == 1)) for row in range(9)]
    images[2] = noise(9, 30, 3)
    file = table(tmp_path / "im", images)
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 1)
    monkeypatch.setattr("deconfound.files.growing.MARK_SECONDS", 0)
    whole = made(file, tmp_path / "a" / "s", size=4, threads=1).index
    append, calls = writing.ScreenWriter.append, 0

    def stopping(*words: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        append(*words)

    monkeypatch.setattr(writing.ScreenWriter, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(file, tmp_path / "s", size=4, threads=1)
    resumed = made(file, tmp_path / "s", size=4, threads=1).index
    assert calls == 6 + 4
    assert resumed == whole
    assert len(whole.provenance["axes"]) == 2
    assert whole.provenance["sizes"] == {"smallest": [8, 8], "largest": [9, 30]}
