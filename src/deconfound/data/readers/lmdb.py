"""Images in an LMDB: one record for each image, which holds its pixels alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deconfound.arrays import Pixels
from deconfound.errors import UserError


class LmdbImages:
    """Reads images of one `shape` (C, H, W) and little-endian `dtype` out of the LMDB in `folder`.

    The caller closes it; threads may read at the same time. Raises UserError, which names
    `asked_by`, if lmdb is not installed, and for a folder that holds no LMDB or a truncated one.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], asked_by: str
    ) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise UserError(
                f"{asked_by} needs the extra [lmdb]: pip install 'deconfound[lmdb]' ({error})"
            ) from error
        self._folder = Path(folder)
        self._shape, self._dtype = shape, dtype.newbyteorder("<")
        self._bytes = math.prod(shape) * dtype.itemsize
        try:
            self._environment = lmdb.open(
                str(folder), readonly=True, lock=False, create=False, max_readers=1024
            )
        except lmdb.Error as error:
            raise UserError(
                f"{folder}: no LMDB that can be read ({error}); expected its data.mdb there"
            ) from error
        # A file cut off at its end would kill the process when read.
        pages = self._environment.info()["last_pgno"] + 1
        least, file = pages * self._environment.stat()["psize"], self._folder / "data.mdb"
        if (found := file.stat().st_size) < least:
            self._environment.close()
            raise UserError(
                f"{file}: is cut off, {found:,} bytes of at least {least:,}; fetch it again"
            )

    def close(self) -> None:
        """Close the LMDB."""
        self._environment.close()

    def refuse_unfit(self, keys: Sequence[str], where: str, start: int = 0) -> None:
        """Raise UserError for the first key without a record, or with one of the wrong size.

        The records' pixels are not read, only their sizes; `where` names the table of the keys; the
        first key is that of cell `start`.
        """
        with self._environment.begin(buffers=True) as transaction:
            for cell, key in enumerate(keys, start):
                record = transaction.get(key.encode())
                if record is None:
                    raise UserError(
                        f"{self._folder}: no record {key!r}, which {where} has as cell {cell} of "
                        "those kept (from 0); fetch the archive again, or drop the cell's row"
                    )
                if len(record) != self._bytes:
                    form = " × ".join(map(str, self._shape))
                    raise UserError(
                        f"{self._folder}: record {key!r} has {len(record):,} bytes; expected "
                        f"{self._bytes:,}, {form} {self._dtype.name}; fetch the archive again, or "
                        "drop the cell's row"
                    )

    def read(self, keys: Sequence[str]) -> Pixels:
        """The images of keys that `refuse_unfit` accepted: (B, C, H, W), native byte order."""
        images = np.empty((len(keys), *self._shape), self._dtype.newbyteorder("="))
        with self._environment.begin(buffers=True) as transaction:
            for image, key in zip(images, keys, strict=True):
                record = transaction.get(key.encode())
                assert record is not None
                image[:] = np.frombuffer(record, self._dtype).reshape(self._shape)
        return images
