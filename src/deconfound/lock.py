"""One writer at a time: a lock that the system releases when its holder ends, however it ends."""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deconfound.errors import UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems without locks answer; there two writers are not kept apart."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of the output `path`, a file `.NAME.lock` beside it, gone when released.

    Raises UserError, naming the process, if another one holds it. A lock file that a killed process
    left behind locks nothing.
    """
    file = file_of(path)
    descriptor = _lock(file, path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            file.unlink()
        os.close(descriptor)


def file_of(path: Path) -> Path:
    """The lock file of an output."""
    real = Path(path).resolve()
    return real.with_name(f".{real.name}.lock")


def _lock(file: Path, path: Path) -> int:
    """A descriptor of the locked file; the file is the one that lies there, not an unlinked one."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 300).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{path}: process {holder} is writing it; wait until it ends, or choose another "
                "--out"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(descriptor)
                raise
        if _lies_at(file, descriptor):
            return descriptor
        os.close(descriptor)


def _lies_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
