"""Arrays in .npy and .npz files, read a part at a time."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound.data.readers.array import open_array
from deconfound.errors import UserError

VALUES = np.arange(7 * 2 * 5 * 5, dtype=np.uint16).reshape(7, 2, 5, 5)
ROW = 2 * 5 * 5 * 2


def npy(values: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **named)
    return stream.getvalue()


def packed(file: Path, how: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("how", ["npy", "savez", "savez_compressed"])
def test_parts_are_the_array(tmp_path: Path, how: str, rows: int) -> None:
    file = tmp_path / "a.npz"
    if how == "npy":
        file.write_bytes(npy(VALUES))
    else:
        getattr(np, how)(file, image=VALUES, other=np.arange(3))
    opened = open_array(file, "image")
    assert (opened.shape, opened.dtype) == (VALUES.shape, VALUES.dtype)
    for _ in range(2):
        parts = list(opened.parts(rows * ROW))
        assert len(parts) == -(-7 // rows)
        np.testing.assert_array_equal(np.concatenate(parts), VALUES)


def test_memory_is_bounded_by_the_part(tmp_path: Path) -> None:
    """64 MiB of zeros, packed into kilobytes."""
    import tracemalloc

    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((4096, 128, 128), np.uint8))
    tracemalloc.start()
    rows = sum(map(len, open_array(tmp_path / "a.npz").parts(2**20)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 4096
    assert peak < 2**23


def test_a_size_that_the_archive_does_not_hold_is_refused(tmp_path: Path) -> None:
    content = npy(VALUES).replace(b"(7, 2, 5, 5)", b"(9, 9, 9, 9)")
    with pytest.raises(UserError, match=r"image says \(9, 9, 9, 9\) uint16 but holds 700 bytes"):
        open_array(packed(tmp_path / "a.npz", image=content))


def test_what_is_damaged_is_one_line(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.npz", zipfile.ZIP_STORED, image=npy(VALUES))
    content = bytearray(file.read_bytes())
    place = content.index(VALUES.tobytes())
    content[place + 300] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a.npz: cannot be read as .* \(Bad CRC-32"):
        list(open_array(file).parts(ROW))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[{}], [{}]], dtype=object), "Object arrays cannot be loaded"),
        (np.zeros((2, 2), np.complex64), "expected numbers as N"),
        (np.zeros(4), "expected numbers as N"),
        (np.zeros((0, 4)), "at least one row"),
        (np.asfortranarray(VALUES), "Fortran order"),
    ],
)
def test_what_is_no_array_of_rows_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_array(packed(tmp_path / "a.npz", image=npy(values, allow_pickle=True)))


def test_rows_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    described = {"descr": "<u2", "fortran_order": False, "shape": (2, 2**15, 2**15)}
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, described)
        stream.truncate(stream.tell() + 2 * 2**31)
    with pytest.raises(UserError, match=r"1073741824 values in a row, more than .* --max-pixels"):
        open_array(file)
