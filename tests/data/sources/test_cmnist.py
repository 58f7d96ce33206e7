import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deconfound.arrays import Bytes
from deconfound.config import Options
from deconfound.data.screens.screen import open_screen
from deconfound.data.sources import cmnist, discover
from deconfound.errors import UserError

MNIST = Path(__file__).parents[3].parent / "shared" / "data" / "mnist"
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(values: Bytes) -> bytes:
    """`values` in the format of the MNIST files."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.tobytes()


def tiny_mnist(root: Path) -> dict[str, Bytes]:
    """50 training and 7 test digits in four plain files."""
    rng = np.random.default_rng(5)
    parts = {}
    root.mkdir(exist_ok=True)
    for name, rows in zip(NAMES, (50, 50, 7, 7), strict=True):
        shape = (rows, 28, 28) if "images" in name else (rows,)
        parts[name] = rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8)
        (root / name).write_bytes(idx(parts[name]))
    return parts


def exact(grey: Bytes, digit: int, environment: int) -> npt.NDArray[np.float64]:
    """The colours of one digit (3, 32, 32) in 0-1, pixel by pixel, as the paper defines them."""
    image = np.zeros((3, 32, 32))
    for row in range(32):
        for column in range(32):
            value = grey[int(row * 28 / 32), int(column * 28 / 32)] / 255
            if environment == 0:
                image[:, row, column] = [value, value * digit / 10, value * digit / 10]
            else:
                image[:, row, column] = [value * (9 - digit) / 10, value, value * (9 - digit) / 10]
    return image


def test_colours_are_those_of_the_paper_to_half_a_grey_level() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    digit = np.repeat(np.arange(10, dtype=np.uint8), 2)
    environment = np.tile([0, 1], 10)
    found = cmnist.coloured(grey, digit, environment)
    assert found.dtype == np.uint8
    expected = np.stack([exact(*row) for row in zip(grey, digit, environment, strict=True)])
    assert abs(found / 255 - expected).max() <= 0.5 / 255 + 1e-12


def test_extreme_digits() -> None:
    white = np.full((4, 28, 28), 255, np.uint8)
    found = cmnist.coloured(white, np.array([0, 9, 0, 9], np.uint8), np.array([0, 0, 1, 1]))
    # 9/10 of 255 is 229.5, rounded half up.
    expected = [[255, 0, 0], [255, 230, 230], [230, 255, 230], [0, 255, 0]]
    assert found[:, :, 16, 16].tolist() == expected


def test_upsampling_is_nearest() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grey)[:, None].float(), (32, 32), mode="nearest"
    )[:, 0]
    np.testing.assert_array_equal(cmnist.upsampled(grey), expected.numpy())


def test_a_tiny_screen(tmp_path: Path) -> None:
    parts = tiny_mnist(tmp_path / "mnist")
    screen = cmnist.make(tmp_path / "mnist", tmp_path / "s", cmnist.Config())
    table = screen.table
    assert (len(screen), screen.image_shape, screen.channels) == (57, (3, 32, 32), ("R", "G", "B"))
    labels = np.concatenate([parts[NAMES[1]], parts[NAMES[3]]])
    assert table["Metadata_Digit"].tolist() == [str(label) for label in labels]
    assert table["Metadata_Split"].value_counts().to_dict() == {"train": 40, "val": 10, "test": 7}
    assert (table["Metadata_Split"][50:] == "test").all()
    assert table["Metadata_Environment"].isna().tolist() == [False] * 50 + [True] * 7
    assert screen.coded(["Metadata_Environment"]).codes[50:].tolist() == [-1] * 7
    assert screen.roles.split == "Metadata_Split"
    for row in (0, 17, 49):
        digit, environment = (int(table[f"Metadata_{c}"][row]) for c in ("Digit", "Environment"))
        expected = exact(parts[NAMES[0]][row], digit, environment)
        assert abs(screen.read([row])[0] / 255 - expected).max() <= 0.5 / 255 + 1e-12
    white = screen.read(range(50, 57))
    assert (white == white[:, :1]).all()
    np.testing.assert_array_equal(white[:, 0], cmnist.upsampled(parts[NAMES[2]]))
    screen.check()


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    tiny_mnist(tmp_path / "mnist")
    same = [cmnist.make(tmp_path / "mnist", tmp_path / name) for name in ("a", "b")]
    other = cmnist.make(tmp_path / "mnist", tmp_path / "c", cmnist.Config(seed=1))
    assert same[0].index.model_copy(update={"name": ""}) == same[1].index.model_copy(
        update={"name": ""}
    )
    for column in ("Metadata_Environment", "Metadata_Split"):
        assert not other.table[column].equals(same[0].table[column])
    assert other.table["Metadata_Digit"].equals(same[0].table["Metadata_Digit"])


def test_other_names_and_gzip(tmp_path: Path) -> None:
    tiny_mnist(tmp_path / "mnist")
    plain = cmnist.make(tmp_path / "mnist", tmp_path / "plain")
    for name in NAMES[:2]:
        (tmp_path / "mnist" / name).rename(tmp_path / "mnist" / name.replace("-idx", ".idx"))
    for name in NAMES[2:]:
        file = tmp_path / "mnist" / name
        file.with_name(f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    zipped = cmnist.make(tmp_path / "mnist", tmp_path / "zipped")
    assert zipped.index.shards == plain.index.shards


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    tiny_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / name).unlink()
    with pytest.raises(UserError, match=rf"no {name} .*yann.lecun.com/exdb/mnist"):
        cmnist.make(tmp_path / "mnist", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def damaged(whole: bytes, how: str) -> bytes:
    match how:
        case "cut short":
            return whole[:-1]
        case "followed by foreign bytes":
            return whole + b"\0"
        case "ends inside its header":
            return whole[:6]
        case "magic number 2050":
            return struct.pack(">I", 2050) + whole[4:]
        case "size \\(4294967295":
            return whole[:4] + b"\xff\xff\xff\xff" + whole[8:]
    raise AssertionError(how)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        "cut short",
        "followed by foreign bytes",
        "ends inside its header",
        "magic number 2050",
        r"size \(4294967295",
    ],
)
@pytest.mark.parametrize("name", NAMES[:2])
def test_damaged_files(tmp_path: Path, name: str, how: str, zipped: bool) -> None:
    tiny_mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / name
    content = damaged(file.read_bytes(), how)
    file.unlink()
    file = file.with_name(f"{name}.gz") if zipped else file
    file.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(UserError, match=rf"{file.name}: .*{how}"):
        cmnist.make(tmp_path / "mnist", tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("cut", [12, 200, -1])
def test_damaged_gzip(tmp_path: Path, cut: int) -> None:
    tiny_mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / NAMES[0]
    whole = gzip.compress(file.read_bytes())
    file.unlink()
    file.with_name(f"{NAMES[0]}.gz").write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"ubyte.gz: damaged"):
        cmnist.make(tmp_path / "mnist", tmp_path / "s")


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    parts = tiny_mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / NAMES[1]
    file.write_bytes(idx(parts[NAMES[1]][:-1]))
    with pytest.raises(UserError, match="49 labels for the 50 images"):
        cmnist.make(tmp_path / "mnist", tmp_path / "s")
    file.write_bytes(idx(np.full(50, 10, np.uint8)))
    with pytest.raises(UserError, match="a label of 10, expected 0 to 9"):
        cmnist.make(tmp_path / "mnist", tmp_path / "s")


def test_discovered() -> None:
    source = discover()["cmnist"]
    assert source is cmnist
    assert "\n" not in source.SUMMARY
    assert "Makino" in source.PAPER
    assert issubclass(source.Config, Options)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"needs {MNIST}")
def test_all_of_mnist(tmp_path: Path) -> None:
    cmnist.make(MNIST, tmp_path / "s")
    screen = open_screen(tmp_path / "s")
    counts = screen.table["Metadata_Split"].value_counts().to_dict()
    assert counts == {"train": 48_000, "val": 12_000, "test": 10_000}
    environment = screen.coded(["Metadata_Environment"]).codes
    # A fair coin thrown 60,000 times: five standard deviations are 0.0102.
    assert abs(environment[:60_000].mean() - 0.5) < 0.0102
    assert (environment[60_000:] == -1).all()
    digit = screen.table["Metadata_Digit"].to_numpy()
    first = np.flatnonzero((environment == 0) & (digit == "3"))[:50]
    red, green, blue = np.moveaxis(screen.read(first).astype(int), 1, 0)
    np.testing.assert_array_equal(green, (red * 3 + 5) // 10)
    np.testing.assert_array_equal(green, blue)
    # The first training digits of MNIST are 5, 0, 4, 1, 9.
    assert digit[:5].tolist() == ["5", "0", "4", "1", "9"]
