"""One writer at a time: a lock that the system releases when its holder ends, however it ends.

Several processes of one command may also share the lock and make an output together.
"""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deconfound.errors import UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems that have no locks; two writers are not kept apart there."""
PATIENCE = 30.0
"""Seconds that a process waits for another one to prepare their common output."""
AT_ODDS = 1.0
"""Seconds after which the holders of the lock are taken to make another output."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of the output `path`, a file `.NAME.lock` beside it, gone when released.

    Raises UserError, naming the process, if another one holds it. A lock file that a killed process
    left behind locks nothing.
    """
    file = file_of(path)
    descriptor = _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        raise _is_written(path, file)
    try:
        _sign(descriptor)
        yield
    finally:
        with suppress(FileNotFoundError):
            file.unlink()
        os.close(descriptor)


@contextmanager
def joined(path: Path, prepare: Callable[[], None], fits: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of the output `path` beside other processes that make it together.

    The first one runs `prepare` alone. Raises UserError, naming a process, if the holders make
    another output: if `fits` returns False while they hold the lock.
    """
    file = file_of(path)
    descriptor = _lock_together(file, prepare, fits)
    if descriptor is None:
        raise _is_written(path, file)
    try:
        yield
    finally:
        _leave(file, descriptor)


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Hold the lock of `file`, creating the file if it is missing; waits for other holders."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def file_of(path: Path) -> Path:
    """The lock file of an output."""
    real = Path(path).resolve()
    return real.with_name(f".{real.name}.lock")


def _lock(file: Path, how: int) -> int | None:
    """A descriptor of the locked file, None if another process keeps from it.

    The file is the one that lies there, not an unlinked one.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        if _lies_at(file, descriptor):
            return descriptor
        os.close(descriptor)


def _lock_together(file: Path, prepare: Callable[[], None], fits: Callable[[], bool]) -> int | None:
    """The shared lock, once the output is prepared; None if the holders make another output."""
    started = time.monotonic()
    while True:
        if (descriptor := _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            try:
                _sign(descriptor)
                prepare()
                _flock(descriptor, fcntl.LOCK_SH)
            except BaseException:
                _leave(file, descriptor)
                raise
            if fits():
                return descriptor
            _leave(file, descriptor)  # another command came between
        waited = time.monotonic() - started
        if (descriptor := _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)) is not None:
            if fits():
                return descriptor
            _leave(file, descriptor)  # the one who prepared it died, or others make another
            if waited > AT_ODDS:
                return None
        elif waited > PATIENCE:
            return None
        time.sleep(0.05)


def _flock(descriptor: int, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def _leave(file: Path, descriptor: int) -> None:
    """Release a shared lock; the last process to release it removes the file."""
    with suppress(BlockingIOError, FileNotFoundError):
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _lies_at(file, descriptor):
            file.unlink()
    os.close(descriptor)


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} on {platform.node()}".encode())


def _is_written(path: Path, file: Path) -> UserError:
    try:
        holder = file.read_text(encoding="utf-8", errors="replace")[:300]
    except OSError:
        holder = ""
    return UserError(
        f"{path}: process {holder or 'unknown'} is writing it; wait until it ends, or choose "
        "another --out"
    )


def _lies_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
