import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from deconfound.arrays import Rows
from deconfound.data.loading.batch import READ_AHEAD, Batch, BatchReader
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles

LABEL = np.arange(30, dtype=np.int64) % 4 - 1
ENVIRONMENT = np.arange(30, dtype=np.int64)[::-1].copy()


@pytest.fixture
def numbered(make_screen: Callable[..., Screen], tmp_path: Path) -> Screen:
    """30 images; every pixel of image i is i."""
    images = np.tile(np.arange(30, dtype=np.uint8)[:, None, None, None], (1, 1, 4, 4))
    table = pd.DataFrame({"y": ["a"] * 30, "e": ["p"] * 30})
    return make_screen(tmp_path / "s", images, table, Roles(label="y", environment=("e",)))


@pytest.fixture
def reader(numbered: Screen) -> BatchReader:
    return reader_of(numbered, Intensity(1, "none"), label=LABEL, environment=ENVIRONMENT)


def reader_of(screen: Screen, intensity: Intensity, **given: Any) -> BatchReader:
    """A reader on the CPU; labels and environments are all 0 unless given."""
    codes = np.zeros(len(screen), dtype=np.int64)
    given = {"label": codes, "environment": codes} | given
    return BatchReader(screen, intensity=intensity, device=torch.device("cpu"), **given)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(READ_AHEAD)]


def wait_for_no_reader(seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while readers() and time.monotonic() < until:
        time.sleep(0.01)
    assert not readers()


def check(batch: Batch, rows: Rows) -> None:
    assert batch.row.tolist() == rows.tolist()
    assert batch.image[:, 0, 0, 0].tolist() == rows.tolist()
    assert batch.label.tolist() == LABEL[rows].tolist()
    assert batch.environment.tolist() == ENVIRONMENT[rows].tolist()
    assert len(batch) == len(rows)


def test_rows_stay_in_the_order_asked_for(reader: BatchReader) -> None:
    rows = np.array([3, 29, 0, 3, 17], dtype=np.int64)
    batch = reader.read(rows)
    check(batch, rows)
    assert batch.image.dtype == torch.float32
    assert batch.label.dtype == batch.environment.dtype == batch.row.dtype == torch.int64


def test_batches_are_streamed_in_order(reader: BatchReader) -> None:
    wanted = [np.random.default_rng(k).integers(0, 30, 1 + k % 5) for k in range(20)]
    batches = list(reader.stream(iter(wanted)))
    for batch, rows in zip(batches, wanted, strict=True):
        check(batch, rows)
    wait_for_no_reader()


def test_an_empty_stream_ends(reader: BatchReader) -> None:
    assert list(reader.stream([])) == []
    wait_for_no_reader()


def test_errors_of_the_reading_thread_surface(reader: BatchReader) -> None:
    stream = reader.stream([np.array([0]), np.array([1]), np.array([30])])
    assert next(stream).row.tolist() == [0]
    assert next(stream).row.tolist() == [1]
    with pytest.raises(IndexError, match="0 … 29"):
        next(stream)
    wait_for_no_reader()


def test_errors_of_the_sampler_surface(reader: BatchReader) -> None:
    def batches() -> Iterator[Rows]:
        yield np.array([0])
        raise ZeroDivisionError("sampler")

    with pytest.raises(ZeroDivisionError, match="sampler"):
        list(reader.stream(batches()))


def test_an_abandoned_stream_leaves_no_thread(reader: BatchReader) -> None:
    def endless() -> Iterator[Rows]:
        while True:
            yield np.array([1, 2])

    stream = reader.stream(endless())
    next(stream)
    assert len(readers()) == 1
    stream.close()
    assert not readers()


def test_reading_runs_at_most_two_batches_ahead(reader: BatchReader) -> None:
    asked: list[int] = []

    def batches() -> Iterator[Rows]:
        for row in range(30):
            asked.append(row)
            yield np.array([row])

    stream = reader.stream(batches())
    next(stream)
    until = time.monotonic() + 5
    while len(asked) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(asked) == 4  # in use, two waiting, one in the reader's hand
    stream.close()


def test_channels_last_changes_the_layout_alone(
    make_screen: Callable[..., Screen], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 3, 4, 4)).astype(np.uint8)
    table = pd.DataFrame({"y": ["a"] * 6, "e": ["p"] * 6})
    screen = make_screen(tmp_path / "s", images, table, Roles(label="y", environment=("e",)))
    rows = np.arange(6)
    plain, last = (
        reader_of(screen, Intensity(3, "none"), channels_last=layout).read(rows).image
        for layout in (False, True)
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("rows", [1, 8, 75])
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_scaled_in_parts_are_those_scaled_at_once(
    make_screen: Callable[..., Screen],
    tmp_path: Path,
    rows: int,
    channels_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deconfound.data.loading.batch.PART", 8 * 3 * 9 * 9)
    images = np.random.default_rng(0).integers(0, 255, (75, 3, 9, 9)).astype(np.uint8)
    table = pd.DataFrame({"y": ["a"] * 75, "e": ["p"] * 75})
    screen = make_screen(tmp_path / "s", images, table, Roles(label="y", environment=("e",)))
    group = np.arange(75) % 2
    intensity = Intensity(3, "percentile", groups=2)
    intensity.limits.copy_(torch.rand(3, 2, 3).cumsum(dim=1) * 100)
    reader = reader_of(screen, intensity, channels_last=channels_last, group=group)
    found = reader.read(np.arange(rows)).image
    expected = intensity(torch.from_numpy(images[:rows]), torch.from_numpy(group[:rows]))
    assert torch.equal(found, expected)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_are_the_same_whichever_thread_scales_them(
    reader: BatchReader, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scaled_in: list[str] = []
    plainly = reader._scaled

    def noted(*words: Any) -> torch.Tensor:
        scaled_in.append(threading.current_thread().name)
        return plainly(*words)

    monkeypatch.setattr(reader, "_scaled", noted)
    (batch,) = reader.stream([np.array([3, 1])])
    assert batch.image[:, 0, 0, 0].tolist() == [3, 1]
    (name,) = scaled_in
    assert name.startswith(READ_AHEAD) is (threads == 1)


def test_a_reader_of_images_alone_knows_no_label_and_the_environments_given(
    numbered: Screen,
) -> None:
    intensity, cpu, rows = Intensity(1, "none"), torch.device("cpu"), np.array([4, 0])
    batch = BatchReader(numbered, intensity=intensity, device=cpu).read(rows)
    assert batch.image[:, 0, 0, 0].tolist() == [4, 0]
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.label.tolist() == batch.environment.tolist() == [-1, -1]
    given = BatchReader(numbered, intensity=intensity, device=cpu, environment=ENVIRONMENT).read(
        rows
    )
    assert given.label.tolist() == [-1, -1]
    assert given.environment.tolist() == ENVIRONMENT[rows].tolist()
