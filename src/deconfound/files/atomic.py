"""Files and directories that appear whole or not at all, and have one writer."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deconfound.errors import UserError
from deconfound.files import lock

LITTLE = 2**20
"""Bytes that a disk takes unless it is full."""
LONGER = "raise the limit of a file's size (`ulimit -f unlimited`)"


class Unwritable(UserError):
    """The output cannot be written: the disk is full or the folder is read-only.

    The data itself is fine.
    """


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    Raises UserError if the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _explained(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Claim `path` and yield a temporary directory beside it; on success rename it to `path`.

    Raises UserError as `claimed` does, and if the disk becomes full.
    """
    path = Path(path)
    temporary = _temporary(path)
    with claimed(path):
        try:
            with _explained(path, temporary):
                temporary.mkdir()
                yield temporary
                publish(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def resumable(path: Path, identity: str) -> Iterator[Path]:
    """Claim `path` and yield a folder `.NAME.unfinished` beside it that outlives the process.

    It holds the files that an earlier call of the same `identity` left; files of any other call are
    removed first. The folder is removed when the block ends without an exception, otherwise it is
    kept. Raises UserError as `claimed` does, and if the disk becomes full.
    """
    path = Path(path)
    folder = unfinished(path)
    kept = f"; what is done is kept in {folder.name}"
    with claimed(path, keep=folder), _explained(path, folder, kept):
        _keep_only(folder, identity)
        yield folder
        discard(folder)


@contextmanager
def resumable_together(path: Path, identity: str) -> Iterator[Path]:
    """`resumable` for processes of one command, each of which makes a part of `path`.

    The folder stays until one of the processes has renamed it to `path`. Raises UserError if a
    process of another `identity` is writing `path`, if its folder cannot be written or the disk
    becomes full.
    """
    path = Path(path)
    folder = unfinished(path)

    def prepare() -> None:
        _remove_all_leftovers(path, keep=folder)
        if not path.exists():
            _keep_only(folder, identity)

    def fits() -> bool:
        return path.exists() or _identity_of(folder) == identity

    with _explained(path, folder, f"; what is done is kept in {folder.name}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock.joined(path, prepare, fits):
            yield folder
            if path.exists():
                discard(folder)


def _keep_only(folder: Path, identity: str) -> None:
    """Make `folder`, or empty it if it belongs to another identity."""
    if _identity_of(folder) != identity:
        discard(folder)
        folder.mkdir()
        write_text(folder / "identity", identity)


def _identity_of(folder: Path) -> str | None:
    note = folder / "identity"
    return note.read_text(encoding="utf-8") if note.is_file() else None


def unfinished(path: Path) -> Path:
    """The folder beside `path` that keeps half-written files for a later call to continue from."""
    return lock.beside(path, f".{path.name}.unfinished")


def publish(folder: Path, path: Path) -> None:
    """Flush the files of `folder` to disk and rename it to `path`."""
    for file in folder.rglob("*"):
        flush(file)
    flush(folder)
    folder.rename(path)
    flush(path.parent)


@contextmanager
def claimed(path: Path, keep: Path | None = None) -> Iterator[None]:
    """Hold the right to make `path`; half-written files of killed processes, but `keep`, go.

    Raises UserError if `path` exists, as nothing is ever overwritten, if another process is writing
    it, or if its folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path)
    with locked(path):
        refuse_existing(path)
        _remove_all_leftovers(path, keep)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which may exist; its folder is made if it is missing.

    Raises UserError if another process holds it or if the folder cannot be written.
    """
    path = Path(path)
    with ExitStack() as stack:
        with _explained(path, lock.file_of(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(path))
        yield


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove half-written files of killed processes from `folder`, of all outputs or of `name`.

    The caller holds the lock of the output that the leftovers belong to.
    """
    for left in folder.iterdir() if folder.is_dir() else ():
        if is_leftover(left.name, name):
            discard(left)


def is_leftover(left: str, name: str | None = None) -> bool:
    """Whether `left` names a temporary file of any output, or of the output `name`."""
    of = ".+" if name is None else re.escape(name)
    return re.fullmatch(rf"\.{of}\.\d+\.partial", left) is not None


def discard(left: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raise UserError if `path` exists.

    Temporary files of a process that was killed just after it made `path` are removed.
    """
    path = Path(path)
    if path.exists():
        if unfinished(path).exists() or lock.file_of(path).exists():
            with suppress(UserError, OSError), locked(path):
                _remove_all_leftovers(path)
        raise UserError(f"{path}: already exists; remove it or choose another --out")


def refuse_foreign(out: Path, marker: str, kind: str, content: str | None = None) -> bool:
    """Whether `out` already holds a `kind`, such as "sweep", that the command can continue.

    A `kind` is known by its file `marker`, which must hold the text `content` if that is given. A
    directory that is missing, or holds only what killed processes left half-written, is free.
    Raises UserError if `out` holds a `kind` with other content, or something else.
    """
    file = Path(out) / marker
    if not file.is_file():
        if file.parent.exists() and not (
            file.parent.is_dir() and all(is_leftover(one.name) for one in file.parent.iterdir())
        ):
            raise UserError(f"{out}: exists and is not a {kind}; choose another --out")
        return False
    if content is not None and file.read_text(encoding="utf-8", errors="replace") != content:
        raise UserError(f"{out}: holds a {kind} with other options; choose another --out")
    return True


def _remove_all_leftovers(path: Path, keep: Path | None = None) -> None:
    """Remove all half-written files of `path` but `keep`; the caller holds its lock."""
    remove_leftovers(path.parent, path.name)
    if unfinished(path) != keep:
        discard(unfinished(path))


def _temporary(path: Path) -> Path:
    return lock.beside(path, f".{path.name}.{os.getpid()}.partial")


@contextmanager
def _explained(path: Path, temporary: Path, kept: str = "") -> Iterator[None]:
    """Turn errors of the file system, whichever library raises them, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries have no one exception for a full disk
        number = _number(error, path, temporary)
        if number is None:
            raise
        remedy = LONGER if number == errno.EFBIG else "make room there, or choose another --out"
        raise Unwritable(
            f"{path}: cannot be written ({os.strerror(number)}); {remedy}{kept}"
        ) from error


def _number(error: Exception, path: Path, temporary: Path) -> int | None:
    """The number of the file system's error; None if the error has another cause."""
    if isinstance(error, OSError) and error.filename is not None:
        place = Path(os.fsdecode(error.filename))
        known = (path, temporary, *path.parents, *temporary.parents)
        if place not in known and temporary not in place.parents:
            return None
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _refusal(temporary)


def _refusal(temporary: Path) -> int | None:
    """The error with which the system refuses a longer file or more bytes there; None if neither.

    Libraries that fail to write do not all say why. It is asked while what they wrote is still
    there.
    """
    folder = next(one for one in (temporary, *temporary.absolute().parents) if one.is_dir())
    written = [temporary, *(temporary.iterdir() if folder == temporary else ())]
    longest = max((file.stat().st_size for file in written if file.is_file()), default=0)
    probe = _temporary(folder / "probe")
    try:
        with probe.open("wb") as stream:
            stream.truncate(longest + LITTLE)
            stream.truncate(0)
            stream.write(bytes(LITTLE))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.errno
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


def flush(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
