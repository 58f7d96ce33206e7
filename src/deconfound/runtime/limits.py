"""What a machine refuses, whichever library says so: memory, disk, files; and why processes die."""

import errno
import os
import resource
import signal

from deconfound.errors import UserError

MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc",
          "failed to allocate", "alloc_failed", "failed to map segment")  # fmt: skip
"""Words of libraries that raise no MemoryError when there is none."""
MORE_MEMORY = (
    "lower --batch-size or --workers, or take a machine (or a `ulimit -v`) with more memory"
)
ADDRESSES = 3 * 2**30
"""Bytes of address space that the libraries take before any work. With less they not only fail, but
end the process or wait for threads that they could not start."""
REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f unlimited`)",
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
    errno.ENFILE: "end programs that hold files open",
    errno.EIO: "see to the disk, which failed to read or write",
    errno.EROFS: "choose a folder that can be written",
}
"""What to do where the system refuses a file; other errors are of the path or its permissions."""
REASONS = {
    signal.SIGKILL: "the system does so when memory runs out, or somebody did; lower --workers or "
    "the batch size",
    signal.SIGBUS: "a file that it read was cut off meanwhile, or its disk failed; run `deconfound "
    "check` on the screen",
    signal.SIGTERM: "somebody asked it to end; the same command resumes",
    signal.SIGXCPU: "its processor time ran out; raise `ulimit -t`",
}
"""Why a signal ends a process that did not ask for it."""


def refuse_few_addresses() -> None:
    """Raise UserError where `ulimit -v` leaves less than `ADDRESSES`.

    Where there is a limit at all, Arrow allocates as the system does: its own allocator waits for
    ever where it is refused memory.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if most < ADDRESSES:
        raise UserError(
            f"the address space is limited to {most / 2**30:.1f} GiB (`ulimit -v`), and libraries "
            f"alone take {ADDRESSES / 2**30:g}; raise it (`ulimit -v unlimited`), or that of the "
            "batch system's job"
        )


def refused(error: BaseException) -> str | None:
    """One line of what the machine refused and what to do; None for any other error.

    An error that another one was raised from counts as well.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if lacks_memory(one):
            said = " ".join(str(one).split())
            return f"memory ran out ({said[:200] or type(one).__name__}); {MORE_MEMORY}"
        one = one.__cause__
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"the system starts no more threads (`ulimit -u`, or its memory); {MORE_MEMORY}"
    if isinstance(error, OSError) and error.errno in REMEDIES:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{place}{os.strerror(error.errno)}; {REMEDIES[error.errno]}"
    return None


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of this process or of a GPU."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    kinds = (RuntimeError, ImportError, OSError, ValueError)
    return isinstance(error, kinds) and any(words in str(error).lower() for words in MEMORY)


def death(code: int) -> str:
    """How and why a process ended that should not have, by its exit code as subprocess has it."""
    if code >= 0:
        return f"ended with code {code}; if memory ran out, lower --workers"
    try:
        number = signal.Signals(-code)
    except ValueError:
        return f"was killed by signal {-code}"
    reason = REASONS.get(number, "a library failed; try again, with --workers 1 to see which")
    return f"was killed by signal {-code} ({number.name}): {reason}"
