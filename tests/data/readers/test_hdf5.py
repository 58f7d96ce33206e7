"""HDF5 files that claim, or would unpack to, more than they should, or lead elsewhere."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from deconfound.data.ingest.profiles import ingest_profiles
from deconfound.data.readers import hdf5
from deconfound.data.readers.feature_files import open_features
from deconfound.errors import UserError

NAMES = ["Cells_A", "Cells_B", "Cells_C"]


def written(folder: Path, change: Callable[[Any], None]) -> Path:
    """Six profiles of three features, whose file is then changed."""
    obs = pd.DataFrame({"Metadata_Plate": [*"ppqqpp"], "Metadata_Gene": [*"ababab"]})
    obs.index = obs.index.astype(str)
    values = np.arange(18, dtype=np.float32).reshape(6, 3) ** 2
    file = folder / "a.h5ad"
    anndata.AnnData(values, obs, pd.DataFrame(index=NAMES)).write_h5ad(file, compression="gzip")
    with h5py.File(file, "a") as opened:
        change(opened)
    return file


def other(shape: tuple[int, ...], **how: Any) -> Callable[[Any], None]:
    def change(opened: Any) -> None:
        del opened["X"]
        opened.create_dataset("X", shape=shape, dtype="float32", **how)

    return change


def beside(opened: Any) -> None:
    opened["obsm"].create_dataset("m", (6, 10**11), "f4", chunks=(1, 10**5), compression="gzip")


def linked(opened: Any) -> None:
    del opened["X"]
    opened["X"] = h5py.ExternalLink("other.h5", "X")


def virtual(opened: Any) -> None:
    del opened["X"]
    layout = h5py.VirtualLayout((6, 3), "float32")
    layout[...] = h5py.VirtualSource("other.h5", "X", (6, 3))
    opened.create_virtual_dataset("X", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beside, r"obsm/m of 6 × 100,000,000,000 float32, 2,235.2 GiB in a file of .* at most 1 G"),
        (other((10**12, 3), chunks=(10**6, 3)), r"X of \(1000000000000, 3\), but 6 rows in obs"),
        (other((6, 3), chunks=(30_000, 30_000), maxshape=(None, None)), "more than 1 GiB"),
        (other((10**9, 3), chunks=(1, 1)), "3,000,000,000 chunks, more than 16,777,216"),
        (other((6, 3), external=[("secret", 0, 72)]), "X lies in another file"),
        (linked, "X lies in another file"),
        (virtual, "X lies in another file"),
    ],
)
def test_refused_before_it_is_read(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    file = written(tmp_path, change)
    with pytest.raises(UserError, match=rf"a\.h5ad: .*{message}") as error:
        open_features(file)
    assert "\n" not in str(error.value)


def test_a_chunk_that_unpacks_to_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "ALWAYS", 2**20)

    def change(opened: Any) -> None:
        other((6, 3), chunks=(6, 3), compression="gzip")(opened)
        opened["X"].id.write_direct_chunk((0, 0), zlib.compress(bytes(2**21)))

    with pytest.raises(UserError, match="a chunk that unpacks to more than its 72 bytes"):
        open_features(written(tmp_path, change))


def test_an_honest_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every chunk is unpacked once to look at it."""
    monkeypatch.setattr(hdf5, "RATIO", 2**31)
    file = written(tmp_path, lambda _: None)
    screen = ingest_profiles(file, tmp_path / "s", quiet=True)
    assert screen.channels == tuple(NAMES)
    np.testing.assert_array_equal(screen.read(range(6)), np.arange(18).reshape(6, 3) ** 2)
