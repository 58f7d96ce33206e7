"""One writer at a time: a lock that the system releases when its holder ends, however it ends.

Several processes of one command may also share the lock and make an output together.
Where the file system has no locks, which is said once for each folder, a single writer is kept
apart from others by the file of the lock alone: whoever creates it holds it.
"""

import errno
import fcntl
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deconfound.errors import InputWarning, UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems that have no locks."""
PATIENCE = 30.0
"""Seconds that a process waits for another one to prepare their common output."""
AT_ODDS = 1.0
"""Seconds after which the holders of the lock are taken to make another output."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of the output `path`, a file `.NAME.lock` beside it, gone when released.

    Raises UserError, naming the process, if another one holds it. A lock file that a killed process
    left behind locks nothing; on a file system without locks, one that a process of another machine
    left does.
    """
    file = file_of(path)
    descriptor = _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, alone=True)
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
        _flock(descriptor, fcntl.LOCK_EX, file)
        yield
    finally:
        os.close(descriptor)


def file_of(path: Path) -> Path:
    """The lock file of an output."""
    real = Path(path).resolve()
    return beside(real, f".{real.name}.lock")


def beside(path: Path, name: str) -> Path:
    """The file `name` beside an output; raises UserError if the output has no name of its own."""
    if not path.name:
        raise UserError(f"{path}: no name to write; give --out the name of a new file or folder")
    return path.with_name(name)


def _lock(file: Path, how: int, alone: bool = False) -> int | None:
    """A descriptor of the locked file, None if another process keeps from it.

    The file is the one that lies there, not an unlinked one. Without locks, who wants it `alone`
    gets it by having created it. Raises UserError, naming its file, if another process has.
    """
    while True:
        descriptor, created = _open(file)
        try:
            locked = _flock(descriptor, how, file)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        if locked or not alone:
            if _lies_at(file, descriptor):
                return descriptor
        elif created:
            return descriptor
        elif not _removed_of_ended(file):
            os.close(descriptor)
            raise UserError(
                f"{file}: made by process {_signature(file) or 'unknown'}, which writes this "
                "output; wait until it ends, or remove this file if it has ended"
            )
        os.close(descriptor)


def _open(file: Path) -> tuple[int, bool]:
    """A descriptor of the file, and whether this process has created it."""
    while True:
        with suppress(FileExistsError):
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        with suppress(FileNotFoundError):
            return os.open(file, os.O_RDWR), False


def _removed_of_ended(file: Path) -> bool:
    """Remove the file that a process of this machine created, if the process has ended."""
    signed = _signature(file)
    number, _, machine = signed.partition(" on ")
    if not number.isdigit() or machine != platform.node() or _runs(int(number)):
        return False
    aside = file.with_name(f"{file.stem}.{os.getpid()}.partial")
    with suppress(FileNotFoundError):
        file.rename(aside)
        if _signature(aside) != signed:  # another process was faster, and has signed
            aside.rename(file)
            return False
        aside.unlink()
    return True


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signature(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:300]
    except OSError:
        return ""


def _lock_together(file: Path, prepare: Callable[[], None], fits: Callable[[], bool]) -> int | None:
    """The shared lock, once the output is prepared; None if the holders make another output."""
    started = time.monotonic()
    while True:
        if (descriptor := _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            try:
                _sign(descriptor)
                prepare()
                _flock(descriptor, fcntl.LOCK_SH, file)
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


def _flock(descriptor: int, how: int, file: Path) -> bool:
    """Lock; False, with an InputWarning, where the file system has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        note = "no locks on this file system; do not run two commands that write one output there"
        warnings.warn(f"{file.parent}: {note}", InputWarning, stacklevel=2)
        return False
    return True


def _leave(file: Path, descriptor: int) -> None:
    """Release a shared lock; the last process to release it removes the file."""
    with suppress(BlockingIOError, FileNotFoundError):
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, file)
        if _lies_at(file, descriptor):
            file.unlink()
    os.close(descriptor)


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} on {platform.node()}".encode())


def _is_written(path: Path, file: Path) -> UserError:
    return UserError(
        f"{path}: process {_signature(file) or 'unknown'} is writing it; wait until it ends, or "
        f"choose another --out"
    )


def _lies_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
