"""An ingest that was stopped goes on, and ends with the bytes of one that was not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from deconfound.data.ingest import fields, rows, writing
from deconfound.data.ingest.images import IngestConfig, ingest
from deconfound.data.ingest.rows import RowReader
from deconfound.data.screens import writer
from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.shards import ShardWriter
from deconfound.data.screens.writer import ScreenWriter
from deconfound.errors import UserError
from deconfound.files import growing

ROWS = 23
SHARD_ROWS = 8
WHOLE = IngestConfig(name="screen")
CROPPED = IngestConfig(name="screen", crop=8)
PACKED = IngestConfig(name="screen", image_format="zarr")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images at a time, eight to a shard, and a mark after each two."""
    monkeypatch.setattr(rows, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(growing, "MARK_SECONDS", 0)
    monkeypatch.setattr(writer, "SHARD_BYTES", SHARD_ROWS * 64)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Cells of 8 × 8 pixels, a black one among them, and their centres in as many fields."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(1, 256, (ROWS, 12, 12), dtype=np.uint8)
    pixels[3] = 0
    for row in range(ROWS):
        Image.fromarray(pixels[row, :8, :8]).save(folder / f"{row:02d}.png")
        tifffile.imwrite(folder / f"{row:02d}.tif", pixels[row])
    values = {
        "Path": [f"{row:02d}.png" for row in range(ROWS)],
        "Metadata_Gene": [f"gene{row % 3}" for row in range(ROWS)],
        "Metadata_Plate": [f"P{row % 2}" for row in range(ROWS)],
    }
    pd.DataFrame(values).to_csv(folder / "table.csv", index=False)
    of_fields = {
        "Path": [f"{row % 9:02d}.tif" for row in range(ROWS)],
        "Metadata_X": [5.5 + row // 9 if row != 4 else 1.0 for row in range(ROWS)],
        "Metadata_Y": [5.5] * ROWS,
    }
    pd.DataFrame(values | of_fields).to_csv(folder / "fields.csv", index=False)
    return folder / "table.csv"


def source(table: Path, config: IngestConfig) -> Path:
    return table if config.crop is None else table.with_name("fields.csv")


def make(table: Path, out: Path, config: IngestConfig) -> dict[str, bytes]:
    """Ingest; the bytes of every file of the screen."""
    screen = ingest(source(table, config), table.parent, out, config=config, quiet=True)
    screen.check()
    files = [file for file in out.rglob("*") if file.is_file()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def stop_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> Callable[[], None]:
    """A signal arrives in the `call`-th call of a function; the function that takes that back."""
    function, calls = getattr(owner, name), 0

    def stopping(*words: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*words, **named)

    monkeypatch.setattr(owner, name, stopping)
    return lambda: monkeypatch.setattr(owner, name, function)


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows whose image is read from now on, but for the first, which is always read."""
    read, rows = RowReader.read, list[int]()

    def counting(self: RowReader, row: int, **named: bool) -> Any:
        rows.append(row)
        return read(self, row, **named)

    monkeypatch.setattr(RowReader, "read", counting)
    return rows


def left(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith((".", "s")))


@pytest.mark.parametrize("call", [1, 2, 5, 6, 12])
def test_images_go_on_behind_the_last_mark(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    whole = make(table, tmp_path / "whole", WHOLE)
    assert len(whole) == 5
    out = tmp_path / "screen"
    back = stop_at(monkeypatch, ScreenWriter, "append", call)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        make(table, out, WHOLE)
    back()
    assert left(out) == [".screen.unfinished"]
    for place in (out, tmp_path / ".screen.unfinished", tmp_path / ".screen.unfinished/screen"):
        with pytest.raises(UserError, match="not a screen"):
            open_screen(place)
    rows = rows_read(monkeypatch)
    assert make(table, out, WHOLE) == whole
    assert sorted(rows) == list(range(2 * (call - 1), ROWS))
    assert left(out) == ["screen"]
    assert open_screen(out).provenance["black_images"] == 1


@pytest.fixture
def packed() -> IngestConfig:
    pytest.importorskip("zarr", reason="zarr is not installed: pip install 'deconfound[zarr]'")
    return PACKED


SHARDS = {f"images.zarr/c.{number}.0.0.0" for number in range(3)}


@pytest.mark.parametrize("call", [1, 4, 5, 6, 9, 12])
def test_packed_images_go_on_behind_the_last_mark(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: IngestConfig,
    call: int,
) -> None:
    whole = make(table, tmp_path / "whole", packed)
    assert whole.keys() == {*SHARDS, "images.zarr/zarr.json", "screen.json", "table.parquet"}
    out = tmp_path / "screen"
    back = stop_at(monkeypatch, ScreenWriter, "append", call)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        make(table, out, packed)
    back()
    assert left(out) == [".screen.unfinished"]
    rows = rows_read(monkeypatch)
    assert make(table, out, packed) == whole
    assert sorted(rows) == list(range(2 * (call - 1), ROWS))
    assert left(out) == ["screen"]


@pytest.mark.parametrize("owner", ["mark", "drop_packed"])
@pytest.mark.parametrize("call", [4, 8, 12])
def test_a_kill_around_a_packed_shard_loses_no_image(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: IngestConfig,
    owner: str,
    call: int,
) -> None:
    """Behind a shard that was packed, before the mark that names it or before its copy goes."""
    whole = make(table, tmp_path / "whole", packed)
    back = stop_at(monkeypatch, ShardWriter, owner, call)
    with pytest.raises(KeyboardInterrupt):
        make(table, tmp_path / "screen", packed)
    back()
    rows = rows_read(monkeypatch)
    assert make(table, tmp_path / "screen", packed) == whole
    first = 2 * (call - 1) if owner == "mark" else 2 * call
    assert sorted(rows) == list(range(min(first, ROWS), ROWS))


@pytest.mark.parametrize("name", ["c.0.0.0.0", "zarr.json", "images-00002.npy"])
@pytest.mark.parametrize("how", ["a changed byte", "missing"])
def test_what_is_packed_and_damaged_is_made_again(
    table: Path, tmp_path: Path, packed: IngestConfig, name: str, how: str
) -> None:
    whole = make(table, tmp_path / "whole", packed)
    stopped(table, tmp_path / "screen", packed)
    [file] = (tmp_path / ".screen.unfinished").rglob(name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if how == "missing":
        file.unlink()
    assert make(table, tmp_path / "screen", packed) == whole


@pytest.mark.parametrize("call", [1, 4, 9])
def test_fields_go_on_behind_the_last_one_cut(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    whole = make(table, tmp_path / "whole", CROPPED)
    assert open_screen(tmp_path / "whole").provenance["crop"]["dropped_at_border"] == 1
    out = tmp_path / "screen"
    back = stop_at(monkeypatch, fields.atomic, "write_text", 2 + call)  # the identity and the forms
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        make(table, out, CROPPED)
    back()
    rows = rows_read(monkeypatch)
    assert make(table, out, CROPPED) == whole
    assert sorted(rows) == list(range(call - 1, 9))
    assert left(out) == ["screen"]


def test_crops_go_on_without_a_field_being_read_again(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(table, tmp_path / "whole", CROPPED)
    out = tmp_path / "screen"
    back = stop_at(monkeypatch, ScreenWriter, "append", 4)
    with pytest.raises(KeyboardInterrupt):
        make(table, out, CROPPED)
    back()
    rows = rows_read(monkeypatch)
    assert make(table, out, CROPPED) == whole
    assert rows == []


def stopped(table: Path, out: Path, config: IngestConfig = WHOLE) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, ScreenWriter, "append", 10)
        with pytest.raises(KeyboardInterrupt):
            make(table, out, config)


def change_table(table: Path) -> None:
    table.write_text(table.read_text().replace("gene2", "gene3"))


def change_an_image(table: Path) -> None:
    Image.new("L", (8, 8), 7).save(table.parent / "01.png")


@pytest.mark.parametrize("change", [change_table, change_an_image])
def test_another_input_starts_afresh(
    table: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    out = tmp_path / "screen"
    stopped(table, out)
    change(table)
    whole = make(table, tmp_path / "whole", WHOLE)
    assert make(table, out, WHOLE) == whole
    assert left(out) == ["screen"]


@pytest.mark.parametrize(
    "changed", [{"size": 4}, {"label": "Metadata_Plate"}, {"name": "other"}, {"channels": ("a",)}]
)
def test_other_options_start_afresh(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    out = tmp_path / "screen"
    stopped(table, out)
    rows = rows_read(monkeypatch)
    config = WHOLE.model_copy(update=changed)
    again = make(table, out, config)
    assert sorted(rows) == list(range(ROWS))
    assert again == make(table, tmp_path / "whole", config)


def test_threads_are_no_other_options(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(table, tmp_path / "screen")
    rows = rows_read(monkeypatch)
    config = WHOLE.model_copy(update={"threads": 2})
    assert make(table, tmp_path / "screen", config) == make(table, tmp_path / "whole", config)
    assert 0 in rows  # of the whole one
    assert rows.count(0) == 1


def test_another_version_of_the_format_starts_afresh(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FORMAT_VERSION", 0)
    stopped(table, tmp_path / "screen")
    monkeypatch.setattr(writer, "FORMAT_VERSION", 1)
    rows = rows_read(monkeypatch)
    make(table, tmp_path / "screen", WHOLE)
    assert sorted(rows) == list(range(ROWS))


@pytest.mark.parametrize("name", ["images-00001.npy", "images-00002.npy", "written.json", "cells"])
@pytest.mark.parametrize("how", ["a changed byte", "cut short", "missing"])
def test_what_is_kept_and_damaged_is_made_again(
    table: Path, tmp_path: Path, name: str, how: str
) -> None:
    config = CROPPED if name == "cells" else WHOLE
    whole = make(table, tmp_path / "whole", config)
    stopped(table, tmp_path / "screen", config)
    [file] = (tmp_path / ".screen.unfinished").rglob(name)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-9] if how == "cut short" else content)
    if how == "missing":
        file.unlink()
    assert make(table, tmp_path / "screen", config) == whole
    assert left(tmp_path / "screen") == ["screen"]


def test_a_mistake_met_after_resuming_leaves_nothing(table: Path, tmp_path: Path) -> None:
    file = table.parent / "20.png"
    stamp = file.stat()
    stopped(table, tmp_path / "screen")
    file.write_bytes(bytes(stamp.st_size))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(UserError, match=r"row 20 .* not a PNG"):
        make(table, tmp_path / "screen", WHOLE)
    assert left(tmp_path / "screen") == []


def test_what_a_finished_one_left_is_removed_by_the_next(table: Path, tmp_path: Path) -> None:
    """Killed between the appearance of the screen and the removal of what was kept."""
    stopped(table, tmp_path / "screen")
    (tmp_path / "screen").mkdir()
    with pytest.raises(UserError, match="already exists"):
        make(table, tmp_path / "screen", WHOLE)
    assert left(tmp_path / "screen") == ["screen"]


def test_another_verb_removes_what_is_kept(table: Path, tmp_path: Path) -> None:
    from deconfound.data.simulation.simulate import SimulateConfig, simulate

    stopped(table, tmp_path / "screen")
    simulate(tmp_path / "screen", config=SimulateConfig(cells=500), quiet=True)
    assert left(tmp_path / "screen") == ["screen"]


def test_kept_bytes_are_not_needed_again(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(table, tmp_path / "screen")
    usage = writing.shutil.disk_usage(tmp_path)._replace(free=(ROWS - 12) * 64)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    make(table, tmp_path / "screen", WHOLE)


def test_the_bar_says_where_it_resumed(
    table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped(table, tmp_path / "screen")
    capfd.readouterr()
    ingest(table, table.parent, tmp_path / "screen", config=WHOLE)
    assert "resumed at 18" in capfd.readouterr().err


SLOW = """
import signal, sys, time
from deconfound import cli
from deconfound.data.ingest import rows
from deconfound.data.screens import writer
from deconfound.files import growing
rows.CHUNK_IMAGES, growing.MARK_SECONDS = 2, 0
if "zarr" in sys.argv:
    writer.SHARD_BYTES = 2 * 64
append = writer.ScreenWriter.append
def slow(self, images):
    append(self, images)
    time.sleep(0.1)
writer.ScreenWriter.append = slow
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
cli.main(sys.argv[1:])
"""


@pytest.fixture(params=["npy", "zarr"])
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "zarr":
        pytest.importorskip("zarr", reason="zarr is not installed: pip install 'deconfound[zarr]'")
    return str(request.param)


@pytest.fixture
def running(table: Path, tmp_path: Path, form: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has ingested some of the images, two to a shard where they are packed."""
    words = ["ingest", table, "--images-root", table.parent, "--out", tmp_path / "screen"]
    words += ["--image-format", form]
    command = [sys.executable, "-c", SLOW, *map(str, words), "--name", "screen", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not (tmp_path / ".screen.unfinished" / "written.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_what_can_be_resumed(
    running: "subprocess.Popen[str]",
    table: Path,
    tmp_path: Path,
    form: str,
    number: int,
    code: int,
) -> None:
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == code
    if code > 0:
        assert said == "deconfound: stopped; the same command resumes\n"
    assert not (tmp_path / "screen").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_BYTES", 256 * 2**20 if form == "npy" else 2 * 64)
        rows = rows_read(patch)
        config = WHOLE if form == "npy" else PACKED
        resumed = make(table, tmp_path / "screen", config)
        assert 0 < min(rows) < ROWS
        assert resumed == make(table, tmp_path / "whole", config)
    assert left(tmp_path / "screen") == ["screen"]
