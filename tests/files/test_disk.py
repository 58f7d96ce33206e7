"""A disk that is full or cannot be written: one line, exit code 2, and nothing half-written."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

Said = pytest.CaptureFixture[str]
FIT = "--steps 4 --batch-size 24 --device cpu --precision 32 --threads 1 --quiet"
FIT += " --fold plate=S1/P1 --val-fraction 0.2"


def one_line(words: list[str], said: Said) -> str:
    said.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    lines = said.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("verb", ["simulate", "fit", "embed", "report"])
def test_a_file_in_the_way_of_a_folder_is_one_line(
    verb: str, screen: Screen, tmp_path: Path, finished_runs: Callable[[str], Path], capsys: Said
) -> None:
    """Permissions do not stop root; a file where a folder should be stops everybody."""
    (tmp_path / "file").write_text("mine")
    suffix = {"embed": ".h5ad", "report": ".html"}.get(verb, "")
    out = tmp_path / "file" / f"out{suffix}"
    run = str(finished_runs("erm"))
    words = {
        "simulate": ["--cells", "500", "--quiet"],
        "fit": ["erm", str(screen.path), *FIT.split()],
        "embed": [run, str(screen.path), "--quiet"],
        "report": [run],
    }[verb]
    said = one_line([verb, *words, "--out", str(out)], capsys)
    assert f"{out}: cannot be written (" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: Said) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write everywhere")
    words = ["simulate", "--cells", "500", "--quiet", "--out", str(closed / "screen")]
    assert "cannot be written (Permission denied)" in one_line(words, capsys)
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("file", ["resume.pt", "metrics.csv", "model.safetensors"])
def test_a_disk_that_becomes_full_leaves_a_run_that_resumes(
    file: str,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush = atomic.flush

    def full(path: Path) -> None:
        if path.name.startswith(f".{file}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush", full)
        with pytest.raises(UserError, match=rf"{file}: cannot be written \(No space left"):
            fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="not finished"):
        open_run(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".partial"]
    fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True)


def test_an_error_of_something_else_is_not_taken_for_the_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="elsewhere"),
        atomic.atomic_directory(tmp_path / "out"),
    ):
        (tmp_path / "elsewhere").read_text()
    with pytest.raises(ZeroDivisionError), atomic.atomic_file(tmp_path / "out"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def in_a_small_disk(folder: Path, kilobytes: int, words: list[str]) -> tuple[int, str, list[str]]:
    """Exit code and errors of a command, and what it leaves in `folder`, a disk of its own."""
    mount = shutil.which("unshare")
    script = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0" || exit 77; "$@"; c=$?; ls -A "$0"'
    if mount is None:
        pytest.skip("no unshare here")
    own = [mount, "--mount"] if os.geteuid() == 0 else [mount, "--map-root-user", "--mount"]
    done = subprocess.run(
        [*own, "sh", "-c", f"{script}; exit $c", str(folder), *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("nothing can be mounted here")
    return done.returncode, done.stderr, done.stdout.split()


WRITERS = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from safetensors.torch import save_file
from deconfound.files import atomic
from deconfound.embeddings.file import Embeddings, write_embeddings
from deconfound.errors import UserError
folder, reason = Path(sys.argv[1]), sys.argv[2]
if reason == "File too large":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
values = np.zeros(300_000, np.float32) + np.arange(300_000, dtype=np.float32)
tensors = {"a": torch.from_numpy(values)}
table = pd.DataFrame({"a": values.astype(float) * 0.1})
roles = {"roles": {"label": None, "environment": [], "levels": []}}
about = Embeddings(table, {"content": values[:, None]}, roles)
writers = {
    "torch": lambda file: torch.save(tensors, file),
    "safetensors": lambda file: save_file(tensors, file),
    "numpy": lambda file: np.save(file.open("wb"), values, allow_pickle=False),
    "text": lambda file: file.write_text("x" * 1_200_000),
    "parquet": lambda file: table.to_parquet(file),
    "csv": lambda file: table.to_csv(file),
}
for name, writer in writers.items():
    try:
        with atomic.atomic_file(folder / name) as temporary:
            writer(temporary)
    except UserError as error:
        assert reason in str(error), (name, error)
    else:
        raise AssertionError(name)
try:
    write_embeddings(folder / "e.h5ad", about)
except UserError as error:
    assert reason in str(error), error
else:
    raise AssertionError("h5ad")
"""


def test_every_library_that_meets_a_full_disk_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WRITERS, str(tmp_path), "No space left"]
    code, errors, left = in_a_small_disk(tmp_path, 512, words)
    assert (code, errors, left) == (0, "", [])


def test_every_library_that_meets_the_limit_of_a_file_is_one_line(tmp_path: Path) -> None:
    """As under `ulimit -f`: torch, numpy and safetensors name no number of an error."""
    words = [sys.executable, "-c", WRITERS, str(tmp_path), "File too large"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [])


def test_the_disk_is_asked_while_what_was_written_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is removed there is room again, and the library's error says nothing."""
    room = 2**20

    def limited(path: Path, *words: Any, **named: Any) -> Any:
        used = sum(file.stat().st_size for file in tmp_path.iterdir())
        if path.name.startswith(".probe.") and used >= room:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return opened(path, *words, **named)

    opened = Path.open
    monkeypatch.setattr(Path, "open", limited)
    said = r"out: cannot be written \(Disk quota exceeded\); make room there"
    with pytest.raises(UserError, match=said), atomic.atomic_file(tmp_path / "out") as temporary:
        temporary.write_bytes(bytes(room))
        raise RuntimeError("unexpected pos 704 vs 598")
    with pytest.raises(RuntimeError, match="a fault"), atomic.atomic_file(tmp_path / "out"):
        raise RuntimeError("a fault")
    assert list(tmp_path.iterdir()) == []


def test_simulate_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from deconfound.cli import main; main()", "simulate"]
    words = [*command, "--cells", "500", "--quiet", "--out", str(tmp_path / "screen")]
    code, errors, left = in_a_small_disk(tmp_path, 512, words)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "screen: cannot be written (No space left on device); make room" in errors
    assert left == []
