"""Files and directories that appear whole or not at all, and have one writer."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deconfound import lock
from deconfound.errors import UserError

LITTLE = 2**20
"""Bytes; a disk with less free is full."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    Raises UserError if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    with _explained(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, claimed; on success rename it to `path`.

    Raises UserError as `claimed` does, and if the disk becomes full.
    """
    path = Path(path)
    temporary = _temporary(path)
    with claimed(path), _explained(path, temporary):
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            temporary.rename(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the right to make `path`; what killed processes left half-written of it is removed.

    Raises UserError if `path` exists, as nothing is ever overwritten, if another process is writing
    it, or if its folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path)
    with locked(path):
        refuse_existing(path)
        sweep(path.parent, path.name)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which may exist; its folder is made if need be.

    Raises UserError if another process holds it or if the folder cannot be written.
    """
    path = Path(path)
    with ExitStack() as stack:
        with _explained(path, lock.file_of(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(path))
        yield


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in `folder`, of all files or of `name`.

    The caller holds the lock of what it sweeps.
    """
    half = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.\d+\.partial")
    for left in folder.iterdir() if folder.is_dir() else ():
        if not half.fullmatch(left.name):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise UserError if `path` exists."""
    if Path(path).exists():
        raise UserError(f"{path}: already exists; remove it or choose another --out")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn errors of the file system, in whichever library they arise, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have no one exception for a full disk
        reason = _reason(error, path, temporary)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot be written ({reason}); make room there, or choose another --out"
        ) from error


def _reason(error: Exception, path: Path, temporary: Path) -> str | None:
    """What the file system said; None if the error is of something else."""
    if isinstance(error, OSError) and error.filename is not None:
        place = Path(os.fsdecode(error.filename))
        known = (path, temporary, *path.parents, *temporary.parents)
        if place not in known and temporary not in place.parents:
            return None
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < LITTLE else None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
