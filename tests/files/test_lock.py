import errno
import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning, UserError
from deconfound.files import atomic, lock

HOLD = """
import sys, time
from pathlib import Path
from deconfound.files import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of `path`; killed at the end."""
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_held_output_is_refused_with_the_process_that_holds_it(tmp_path: Path) -> None:
    with (
        other_process(tmp_path / "out") as holder,
        pytest.raises(UserError, match=f"process {holder.pid} on .* is writing it"),
        lock.held(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / ".out.lock").exists()  # of the killed process
    with lock.held(tmp_path / "out"):
        assert f"{os.getpid()} on " in (tmp_path / ".out.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_one_place_has_one_lock_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        lock.held(tmp_path / "real" / ".." / "real"),
        pytest.raises(UserError, match="is writing it"),
        lock.held(tmp_path / "link"),
    ):
        pass
    with lock.held(tmp_path / "real"), lock.held(tmp_path / "other"):
        pass


def test_a_lock_taken_while_its_file_is_removed_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the file between our opening and our locking it."""
    flock, calls = fcntl.flock, []

    def racing(descriptor: int, how: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".out.lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", racing)
    with (
        lock.held(tmp_path / "out"),
        pytest.raises(UserError, match="is writing it"),
        lock.held(tmp_path / "out"),
    ):
        pass
    assert len(calls) == 3


@pytest.mark.parametrize("verb", ["simulate", "ingest", "fit", "embed", "measure", "report"])
def test_a_verb_refuses_an_output_that_is_being_written(
    verb: str,
    screen: Screen,
    tmp_path: Path,
    finished_runs: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    suffix = {"embed": ".h5ad", "measure": ".parquet", "report": ".html"}
    out = tmp_path / f"out{suffix.get(verb, '')}"
    folder = tmp_path / "images" / "e" / "l"
    folder.mkdir(parents=True)
    run = finished_runs("erm")
    embeddings = run.parent / "lock.h5ad"
    if verb == "measure" and not embeddings.exists():
        cli.main(["embed", str(run), str(screen.path), "--out", str(embeddings), "--quiet"])
    from PIL import Image

    Image.new("L", (8, 8)).save(folder / "a.png")
    words = {
        "simulate": ["--cells", "500"],
        "ingest": ["--images-root", str(tmp_path / "images")],
        "fit": [
            "erm",
            str(screen.path),
            "--fold",
            "plate=S1/P1",
            "--val-fraction",
            "0.2",
            "--batch-size",
            "24",
        ],
        "embed": [str(run), str(screen.path)],
        "measure": [str(embeddings)],
        "report": [str(run)],
    }[verb]
    before = sorted(path.name for path in tmp_path.iterdir())
    with lock.held(out), pytest.raises(SystemExit) as stop:
        cli.main([verb, *words, "--out", str(out)])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{out}: process {os.getpid()} on" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from deconfound.files import atomic
with atomic.atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len([path for path in tmp_path.iterdir() if path.suffix == ".partial"]) == 1
    (tmp_path / ".out.x.1.partial").write_text("another's")
    with atomic.atomic_directory(out) as temporary:
        (temporary / "whole").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.x.1.partial", "out"]


@pytest.mark.parametrize("made_of", ["a file", "a folder"])
def test_what_was_left_of_a_whole_output_is_removed_by_the_next_command(
    tmp_path: Path, made_of: str
) -> None:
    """Killed after the output appeared and before its own files beside it were gone."""
    program = """
import os, signal, sys
from pathlib import Path
from deconfound.files import atomic
out = Path(sys.argv[1])
with atomic.resumable(out, "this") as folder:
    (folder / "part").write_text("x")
    if sys.argv[2] == "a folder":
        out.mkdir()
    else:
        out.write_text("whole")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", program, str(out), made_of], check=False)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(UserError, match="already exists"):
        atomic.refuse_existing(out)
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_kept_is_found_by_the_same_identity_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for identity, found in (("a", False), ("a", True), ("b", False), ("a", False)):
        with pytest.raises(ZeroDivisionError), atomic.resumable(out, identity) as folder:
            assert (folder / "part").exists() == found
            (folder / "part").write_text("x")
            1 / 0  # noqa: B018
        assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    with atomic.claimed(out):
        assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
    with atomic.resumable(out, "a"):
        out.write_text("whole")
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture(params=sorted({*lock.WITHOUT_LOCKS}), ids=lambda number: errno.errorcode[number])
def _without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks."""

    def refuse(_: int, __: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("_without_locks")
def test_without_locks_it_is_said_and_a_second_writer_is_refused(tmp_path: Path) -> None:
    said = rf"^{re.escape(str(tmp_path))}: no locks on this file system; do not run two commands"
    out, file = tmp_path / "out", tmp_path / ".out.lock"
    with pytest.warns(InputWarning, match=said), lock.held(out):
        assert file.read_text() == f"{os.getpid()} on {platform.node()}"
        with pytest.raises(UserError, match=f"{file}: made by process {os.getpid()} on"), \
                lock.held(out):  # fmt: skip
            pass
        assert file.exists()
        with lock.held(tmp_path / "another"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_without_locks")
@pytest.mark.filterwarnings("ignore::deconfound.errors.InputWarning")
def test_without_locks_the_file_of_a_process_that_ended_locks_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    file = tmp_path / ".out.lock"
    file.write_text(f"{child.pid} on {platform.node()}")
    with lock.held(tmp_path / "out"):
        assert file.read_text().startswith(f"{os.getpid()} on")
    assert list(tmp_path.iterdir()) == []
    for signed in (f"{child.pid} on another-machine", f"1 on {platform.node()}", ""):
        file.write_text(signed)
        with pytest.raises(UserError, match="remove this file if it has ended"), \
                lock.held(tmp_path / "out"):  # fmt: skip
            pass
        assert file.read_text() == signed


@pytest.mark.usefixtures("_without_locks")
def test_without_locks_a_verb_says_so_in_one_line_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = ["simulate", "--cells", "200", "--size", "24", "--plates", "1", "--sections", "1"]
    cli.main([*words, "--quiet", "--out", str(out)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"deconfound: warning: {tmp_path}: no locks on this file system")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.usefixtures("_without_locks")
def test_without_locks_processes_of_one_command_still_share_an_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.warns(InputWarning, match="no locks"),
        atomic.resumable_together(out, "a") as folder,
    ):
        with lock.in_turn(folder / "publishing"):
            (folder / "part").write_text("x")
        with atomic.resumable_together(out, "a") as same:
            assert (same / "part").read_text() == "x"
