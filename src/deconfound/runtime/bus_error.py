"""One line where a mapped file is cut off, or its disk fails, just while its pages are read."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def explained() -> Iterator[None]:
    """Within the block SIGBUS says on stderr which file was cut off, and ends the process with 2.

    Python's own handlers run only after the read that fails, which never ends: this one is C's.
    """
    handle = ctypes.CDLL(None).signal
    handle.argtypes, handle.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    ours = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)
    previous = handle(signal.SIGBUS, ctypes.cast(ours, ctypes.c_void_p))
    try:
        yield
    finally:
        handle(signal.SIGBUS, previous)


def cut_off(maps: str) -> list[str]:
    """Files that are shorter than what is mapped of them, by the text of /proc/self/maps."""
    found: dict[str, None] = {}
    for line in maps.splitlines():
        span, kind, place, _, _, *path = line.split(maxsplit=5)
        if not path or not path[0].startswith("/") or not kind.startswith("r"):
            continue
        start, end = (int(address, 16) for address in span.split("-"))
        try:
            size = Path(path[0]).stat().st_size
        except OSError:
            continue
        pages = -(-size // os.sysconf("SC_PAGESIZE")) * os.sysconf("SC_PAGESIZE")
        if int(place, 16) + end - start > pages:
            found[path[0]] = None
    return list(found)


def _end(_: int) -> None:
    try:
        try:
            files = cut_off(Path("/proc/self/maps").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            files = []
        what = (
            f"{', '.join(files)}: cut off" if files else "a file was cut off, or its disk failed,"
        )
        said = f"deconfound: {what} while it was read; restore it or make it again\n"
        os.write(2, said.encode(errors="replace"))
    finally:
        os._exit(2)
