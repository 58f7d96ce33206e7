"""Files in object storage, such as s3://BUCKET/SCREEN, read and written through fsspec."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from deconfound.errors import UserError

_URL = re.compile(r"((?:[a-z0-9]{2,}::)*[a-z][a-z0-9+.-]+):/+(.+)")
"""A protocol of two letters or more, since one is a disk of Windows; / once in a Path."""
TRIES = 3
PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extra of this package by protocol; another protocol's package is named by fsspec."""


def is_url(path: Path | str) -> bool:
    """Whether a path names a place in object storage and not on this machine."""
    return _URL.fullmatch(str(path)) is not None


def url_of(path: Path | str) -> str:
    """The URL that a path stands for, in which a Path has lost a slash."""
    found = _URL.fullmatch(str(path))
    if found is None:
        raise UserError(f"{path}: not a URL such as s3://BUCKET/FOLDER")
    return f"{found[1]}://{found[2]}"


class ObjectStore:
    """A folder or file in object storage; its errors are one line each.

    Raises UserError for a protocol that fsspec does not know, or whose package is not installed.
    """

    def __init__(self, path: Path | str) -> None:
        import fsspec

        self.url = url_of(path)
        protocol = self.url.partition("://")[0].rpartition("::")[2]
        try:
            self._files, self._root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            remedy = str(error)
            if protocol in PACKAGES:
                remedy = f"pip install 'deconfound[{PACKAGES[protocol]}]'"
            raise UserError(f"{self.url}: cannot be reached; {remedy}") from error

    def has(self, name: str = "") -> bool:
        """Whether a file, or the folder itself, is there."""
        try:
            return bool(self._files.exists(self._place(name)))
        except Exception as error:  # every store has exceptions of its own
            self._fail(name, "asked for", error)

    def read(self, name: str = "") -> bytes:
        """All bytes of a file."""
        try:
            return bytes(self._files.cat_file(self._place(name)))
        except Exception as error:
            self._fail(name, "read", error)

    def read_spans(self, spans: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Bytes `start` to `stop` of files, (name, start, stop) each, asked for together."""
        names, starts, stops = zip(*spans, strict=True)
        places = [self._place(name) for name in names]
        try:
            found = self._files.cat_ranges(places, list(starts), list(stops))
        except Exception as error:
            self._fail(names[0], "read", error)
        for (name, start, stop), part in zip(spans, found, strict=True):
            if isinstance(part, Exception):
                self._fail(name, "read", part)
            if len(part) != stop - start:
                raise UserError(
                    f"{self.url}/{name}: cut off, holds {len(part):,} of {stop - start:,} bytes "
                    f"from {start:,} on; restore it or make it again"
                )
        return list(found)

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal, read a part at a time."""
        found = hashlib.sha256()
        try:
            with self._files.open(self._place(name), "rb") as stream:
                while part := stream.read(2**22):
                    found.update(part)
        except Exception as error:
            self._fail(name, "read", error)
        return found.hexdigest()

    def fetch(self, folder: Path) -> Path:
        """Copy everything into `folder`; returns the copy, which has the place's own name."""
        target = folder / self.url.rstrip("/").rpartition("/")[2]
        try:
            self._files.get(self._root, str(target), recursive=self._files.isdir(self._root))
        except Exception as error:
            self._fail("", "read", error)
        return target

    def send(self, local: Path, last: Sequence[str]) -> None:
        """Write a file, or the files of a folder, those named `last` after all others.

        A folder whose marks come last cannot look whole before it is. Each file is tried 3 times.
        """
        if local.is_file():
            self._send_file(local, "")
            return
        files = sorted(file for file in local.rglob("*") if file.is_file())
        files.sort(key=lambda file: file.name in last)
        for file in files:
            self._send_file(file, file.relative_to(local).as_posix())

    def _send_file(self, local: Path, name: str) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._files.put_file(str(local), self._place(name))
                return
            except Exception as error:
                if attempt == TRIES:
                    self._fail(name, "written", error)

    def _place(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def _fail(self, name: str, what: str, error: Exception) -> NoReturn:
        place = f"{self.url}/{name}" if name else self.url
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{place}: no such file in the object store") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{place}: the object store failed when it was {what} ({type(error).__name__}: "
            f"{reason}); the same command tries again"
        ) from error


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """A copy on this machine of what a URL names, removed afterwards; any other path as it is."""
    if not is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deconfound-") as folder:
        yield ObjectStore(path).fetch(Path(folder))


@contextmanager
def staged(out: Path, last: Sequence[str]) -> Iterator[Path]:
    """A path to write to: `out`, or for a URL one on this machine that is sent there at the end.

    Files named `last` are sent after all others. The copy here lies in the folder of temporary
    files, so that a call that was killed while it made the copy goes on; it is removed once all is
    sent. Raises UserError if something is at the URL already, and if the store fails: then nothing
    there looks whole, and the copy here is kept.
    """
    if not is_url(out):
        yield out
        return
    store = ObjectStore(out)
    marks = [name for name in last if store.has(name)]
    if marks or (Path(out).suffix and store.has()):
        raise UserError(f"{store.url}: already exists; remove it or choose another --out")
    folder = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    stage = Path(tempfile.gettempdir()) / f"deconfound-{folder}"
    local = stage / Path(out).name
    if local.exists():  # whole, but not sent: of a call that the store failed
        shutil.rmtree(stage)
    stage.mkdir(exist_ok=True)
    yield local
    try:
        store.send(local, last)
    except UserError as error:
        raise UserError(f"{error}; what was to be written is whole in {local}") from error
    shutil.rmtree(stage)
