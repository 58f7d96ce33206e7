"""Files of a folder on this machine, read a span of bytes at a time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from deconfound.errors import UserError
from deconfound.files.checksums import sha256


class LocalFiles:
    """The files of a folder; asked as an `ObjectStore` is, with errors of one line."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder)

    def read_spans(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes `start` to `stop` of files, (name, start, stop) each.

        Raises UserError for a file that is missing, cut off or cannot be read.
        """
        found = []
        for name, of_file in groupby(spans, key=lambda span: span[0]):
            file = Path(self.url) / name
            with _explained(file), file.open("rb", buffering=0) as stream:
                for _, start, stop in of_file:
                    part = os.pread(stream.fileno(), stop - start, start)
                    if len(part) != stop - start:
                        raise UserError(
                            f"{file}: cut off, holds {len(part):,} of {stop - start:,} bytes from "
                            f"{start:,} on; restore it or make the screen again"
                        )
                    found.append(part)
        return found

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal; raises UserError if it cannot be read."""
        file = Path(self.url) / name
        with _explained(file):
            return sha256(file)


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{file}: missing; restore it or make the screen again") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); mend the disk") from error
