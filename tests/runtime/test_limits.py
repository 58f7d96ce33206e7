"""What a machine refuses is one line, whichever library says so."""

import errno
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from deconfound import cli
from deconfound.errors import UserError
from deconfound.runtime import limits

Said = pytest.CaptureFixture[str]


def raised_by(call: str) -> Exception:
    """The error of a library that is asked for an exabyte."""
    calls = {
        "numpy": lambda: np.empty(2**60, np.uint8),
        "torch": lambda: torch.empty(2**60, dtype=torch.uint8),
        "pyarrow": lambda: pa.allocate_buffer(2**60),
        "python": lambda: bytes(2**60),
    }
    with pytest.raises(Exception) as raised:
        calls[call]()
    return raised.value


def ends(error: BaseException, said: Said, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and stderr of a verb that meets an error."""

    def meet(_: list[str]) -> None:
        raise error

    monkeypatch.setattr("deconfound.cli.screens.call_describe", meet)
    with pytest.raises(SystemExit) as stop:
        cli.main(["describe", "s"])
    return int(stop.value.code or 0), said.readouterr().err


@pytest.mark.parametrize("library", ["numpy", "torch", "pyarrow", "python"])
def test_no_memory_is_one_line(library: str, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = ends(raised_by(library), capsys, monkeypatch)
    assert code == 2
    assert said.startswith("deconfound: memory ran out (")
    assert said.endswith("more memory\n")
    assert said.count("\n") == 1


def test_a_damaged_file_is_not_said_where_memory_ran_out(
    capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = UserError("run/resume.pt: damaged (MemoryError); remove run and fit again")
    error.__cause__ = MemoryError("no 4 GiB")
    _, said = ends(error, capsys, monkeypatch)
    assert said.startswith("deconfound: memory ran out (no 4 GiB); lower --batch-size")


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.ENOSPC, None, "No space left on device; make room on the disk"),
        (errno.EDQUOT, "out", "out: Disk quota exceeded; make room in your quota"),
        (errno.EFBIG, "out", "out: File too large; raise the limit of a file's size (`ulimit -f"),
        (errno.EMFILE, "t.csv", "t.csv: Too many open files; raise the limit of open files"),
        (errno.EACCES, "t.csv", "t.csv: Permission denied; check the path and its permissions"),
        (errno.ENOMEM, "t.csv", "memory ran out ("),
    ],
)
def test_what_the_system_refuses_is_one_line(
    number: int, file: str | None, said: str, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = ends(OSError(number, os.strerror(number), file), capsys, monkeypatch)
    assert (code, line.count("\n")) == (2, 1)
    assert line.startswith(f"deconfound: {said}")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconfound.cli.screens.call_describe", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["describe", "s"])


@pytest.mark.parametrize("gibibytes", [0.9, 1.5, 2.5])
def test_a_limit_of_addresses_below_what_libraries_take_is_refused_at_once(
    gibibytes: float,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deconfound", "describe", "s"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, [int(gibibytes * 2**30)] * 2),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"deconfound: the address space is limited to {gibibytes} GiB (`ulimit -v`), and libraries "
        "alone take 3; raise it (`ulimit -v unlimited`), or that of the batch system's job\n",
    )


def test_arrow_allocates_as_the_system_where_addresses_are_limited() -> None:
    ask = (
        "from deconfound.runtime import limits; limits.refuse_few_addresses(); "
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, [2**36] * 2),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "system\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "ended with code 1; if memory ran out, lower --workers"),
        (-signal.SIGKILL, "was killed by signal 9 (SIGKILL): the system does so when memory runs"),
        (-signal.SIGBUS, "was killed by signal 7 (SIGBUS): a file that it read was cut off"),
        (-signal.SIGSEGV, "was killed by signal 11 (SIGSEGV): a library failed; try again"),
        (-63, "was killed by signal 63"),
    ],
)
def test_how_a_process_died(code: int, said: str) -> None:
    assert limits.death(code).startswith(said)
