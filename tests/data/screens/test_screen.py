import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deconfound.arrays import Images
from deconfound.data.screens import writer
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError

ROLES = Roles(label="y", environment=("e",))


def images_of(rows: int, dtype: str = "uint16") -> Images:
    values = np.random.default_rng(0).integers(0, 255, (rows, 2, 3, 4))
    return values.astype(dtype)


def table_of(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"y": [f"g{row % 3}" for row in range(rows)], "e": ["p"] * rows})


def write(path: Path, images: Images) -> Screen:
    with ScreenWriter(path, "tiny", ("a", "b"), ROLES, {"made_by": "test"}) as writer:
        for start in range(0, len(images), 5):
            writer.append(images[start : start + 5])
        writer.finish(table_of(len(images)))
    return open_screen(path)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images of uint16 (2, 3, 4) per shard."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 3 * 2 * 3 * 4 * 2)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    images = images_of(7, dtype)
    screen = write(tmp_path / "s", images)
    assert (len(screen), screen.image_shape, screen.dtype) == (7, (2, 3, 4), np.dtype(dtype))
    assert (screen.name, screen.channels, screen.roles) == ("tiny", ("a", "b"), ROLES)
    assert screen.provenance == {"made_by": "test"}
    np.testing.assert_array_equal(screen.read(range(7)), images)
    pd.testing.assert_frame_equal(screen.table, table_of(7))
    screen.check()


@pytest.mark.usefixtures("small_shards")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.integers(0, 10), max_size=20))
def test_read_keeps_order_and_duplicates(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "shared-screen"
    images = images_of(11)
    screen = open_screen(path) if path.exists() else write(path, images)
    assert [shard.rows for shard in screen.index.shards] == [3, 3, 3, 2]
    np.testing.assert_array_equal(screen.read(rows), images[rows])


def test_read_refuses_rows_outside(tmp_path: Path) -> None:
    screen = write(tmp_path / "s", images_of(4))
    for rows in ([4], [-1], [0, 99]):
        with pytest.raises(IndexError):
            screen.read(rows)


def test_coded_column(tmp_path: Path) -> None:
    screen = write(tmp_path / "s", images_of(4))
    assert screen.coded(["y"]).codes.tolist() == [0, 1, 2, 0]
    with pytest.raises(UserError, match="no column 'z'"):
        screen.coded(["z"])


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.append(images_of(3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leaving_before_finish_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="finish"),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.append(images_of(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before finish", "after finish"])
def test_a_killed_writer_leaves_nothing_that_opens(tmp_path: Path, when: str) -> None:
    code = f"""
import os, sys
import numpy as np, pandas as pd
from pathlib import Path
from deconfound.data.screens import writer
from deconfound.data.tables.table import Roles
writer.SHARD_BYTES = 100
with writer.ScreenWriter(Path(sys.argv[1]), "n", ("a",), Roles(), {{}}) as writer:
    writer.append(np.zeros((40, 1, 4, 4), np.uint8))
    if {when!r} == "after finish":
        writer.finish(pd.DataFrame({{"y": ["g"] * 40}}))
    os._exit(9)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], env=environment)
    assert done.returncode == 9
    left = list(tmp_path.iterdir())
    assert all(path.name.startswith(".s.") for path in left)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="not a screen"):
        open_screen(tmp_path / "s")
    write(tmp_path / "s", images_of(3)).check()


def test_writer_refuses_what_differs(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="one shape and type"),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.append(images_of(3))
        writer.append(images_of(3, "uint8"))
    with (
        pytest.raises(UserError, match="pixels of type int64"),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.append(images_of(3, "int64"))
    with (
        pytest.raises(UserError, match="for the channels a"),
        ScreenWriter(tmp_path / "s", "n", ("a",), ROLES, {}) as writer,
    ):
        writer.append(images_of(3))
    with (
        pytest.raises(UserError, match="2 table rows but 3 images"),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.append(images_of(3))
        writer.finish(table_of(2))
    with (
        pytest.raises(UserError, match="no images"),
        ScreenWriter(tmp_path / "s", "n", ("a", "b"), ROLES, {}) as writer,
    ):
        writer.finish(table_of(0))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "s", images_of(3))
    with pytest.raises(UserError, match="already exists"):
        write(tmp_path / "s", images_of(4))
    assert len(open_screen(tmp_path / "s")) == 3


@pytest.mark.usefixtures("small_shards")
def test_damage_is_found_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, images_of(7))
    shard = path / "images-00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"images-00001.npy: missing or cut short"):
        open_screen(path)
    shard.unlink()
    with pytest.raises(UserError, match=r"images-00001.npy: missing or cut short"):
        open_screen(path)
    np.save(shard, np.zeros((3, 2, 3, 4), np.float32))
    with pytest.raises(UserError, match=r"holds .* float32"):
        open_screen(path)
    shard.write_bytes(whole)
    open_screen(path).check()


@pytest.mark.usefixtures("small_shards")
def test_check_finds_one_changed_pixel(tmp_path: Path) -> None:
    screen = write(tmp_path / "s", images_of(7))
    shard = tmp_path / "s" / "images-00002.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"images-00002.npy: checksum differs"):
        screen.check()


def test_a_changed_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s", images_of(3))
    changed = table_of(3).assign(y="other")
    changed.to_parquet(tmp_path / "s" / "table.parquet")
    with pytest.raises(UserError, match=r"table.parquet: missing or changed"):
        open_screen(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3; this release reads versions 1 and 2"),
        ({"format_version": 2}, "its format version is not that of its images"),
        ({"rows": "many"}, "damaged"),
        ({"unknown": 1}, "damaged"),
        ({"rows": 4}, "its checksum differs"),
        ({"rows": 4, "sha256": ""}, "differ in length"),
        (
            {"shards": [{"file": "../x.npy", "rows": 3, "sha256": ""}], "sha256": ""},
            "lies outside the screen",
        ),
    ],
)
def test_a_tampered_index_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write(tmp_path / "s", images_of(3))
    file = tmp_path / "s" / "screen.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_screen(tmp_path / "s")
    file.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_screen(tmp_path / "s")


def test_a_shard_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    write(tmp_path / "s", images_of(3))
    np.save(tmp_path / "s" / "images-00000.npy", np.array([{}, {}, {}]), allow_pickle=True)
    with pytest.raises(UserError, match="missing or cut short"):
        open_screen(tmp_path / "s")


@pytest.mark.usefixtures("small_shards")
def test_profiles_round_trip(tmp_path: Path) -> None:
    profiles = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    screen = write(tmp_path / "s", profiles)
    assert screen.holds_profiles
    assert (screen.image_shape, screen.channels) == ((2,), ("a", "b"))
    assert len(screen.index.shards) > 1
    np.testing.assert_array_equal(screen.read([49, 0, 17]), profiles[[49, 0, 17]])
    assert not write(tmp_path / "images", images_of(3)).holds_profiles


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        (np.zeros((3, 2)), "float64"),
        (np.zeros((3, 2), np.uint8), "float32, one column for each feature"),
        (np.zeros((3, 5), np.float32), r"expected \(B, 2\) float32"),
        (np.array([[0, 0], [0, np.nan]], np.float32), "profile 1 of those added"),
    ],
)
def test_unfit_profiles_are_refused(tmp_path: Path, profiles: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        write(tmp_path / "s", profiles)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_cut_off_after_opening_is_refused(tmp_path: Path) -> None:
    """Its map would read zeros up to the end of a page, and end the process beyond it."""
    screen = write(tmp_path / "s", images_of(12))
    file = tmp_path / "s" / "images-00000.npy"
    whole = file.read_bytes()
    assert screen.read([11]).any()
    os.truncate(file, len(whole) - 2)
    with pytest.raises(UserError) as refused:
        screen.read([0])
    assert str(refused.value) == (
        f"{file}: cut off while it was read, holds {len(whole) - 2:,} of {len(whole):,} bytes; "
        "restore it or make the screen again"
    )
    file.write_bytes(whole)
    np.testing.assert_array_equal(screen.read([11]), images_of(12)[[11]])


def test_a_shard_that_no_memory_is_left_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = write(tmp_path / "s", images_of(12))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(UserError, match="npy: cannot be read; memory ran out"):
        open_screen(screen.path)
