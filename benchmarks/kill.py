"""Kills verbs at random moments and asks whether anything was lost or looks whole and is not.

    python benchmarks/kill.py --kills 100 --out benchmarks/results/kill.json

Simulate, ingest (of images and of fields of view), fit, embed, measure and report run on a tiny
screen, each in a process of its own that ends by SIGKILL: half of them after a random time, half at
a random operation on files. After every kill all that has its final name must be whole; then the
same command, never stopped again or stopped up to twice more, must end with the bytes of an
uninterrupted one and leave nothing else.
Runs too are stopped by SIGTERM at a random time; the seconds until their process has ended are
reported. Processes are forked after the libraries are loaded, so that the kills hit the work.
Leave the repository alone meanwhile: embeddings record its commit.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anndata  # noqa: F401 - loaded before the forks, as are the verbs
import numpy as np
import plotly.offline  # noqa: F401
from PIL import Image

from deconfound import cli, methods
from deconfound.data.ingest import images, rows  # noqa: F401
from deconfound.data.screens import writer
from deconfound.embeddings.file import read_embeddings
from deconfound.files import growing
from deconfound.runs.checkpoint import read_weights
from deconfound.runtime.seeds import numpy_stream
from deconfound.studies import demo  # noqa: F401
from deconfound.verification import check

FEW = "--batch-size 32 --device cpu --precision 32 --threads 1 --quiet"
FIT = f"--fold iid --steps 6 --validate-every 2 --checkpoint-every 2 --block-size 8 {FEW}"
COMMANDS = {
    "screen": "simulate --cells 200 --size 24 --plates 1 --sections 1 --quiet",
    "ingested": "ingest --images-root images --threads 1 --quiet",
    "cut": "ingest fields.csv --images-root images --crop 8 --threads 1 --quiet",
    "run": f"fit scbd screen --decoder-steps 4 --decoder-width 8 {FIT}",
    "e.h5ad": "embed fitted screen --device cpu --threads 1 --quiet",
    "scores.parquet": "measure e.h5ad --quiet",
    "report.html": "report fitted scores.parquet",
}
"""The command that makes each output, in an order in which they can be made."""
INPUTS = {"images", "fields.csv", "fitted"}
TIMED = ("provenance.json", "checksums.json")
"""Files of a run that hold the time."""
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def run(words: list[str], folder: Path, die_at: int | None = None) -> int:
    """Start a verb in `folder`, dying at an operation on files there; its process."""
    child = os.fork()
    if child:
        return child
    try:
        os.chdir(folder)
        quiet = os.open(folder.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if die_at is not None:
            sys.addaudithook(dying(die_at))
        cli.main(words)
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(99)
    os._exit(0)


def dying(at: int) -> Callable[[str, tuple[object, ...]], None]:
    """An audit hook that kills the process at an operation on a relative or hidden path."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in OPERATIONS and not str(arguments[0]).startswith(("/usr", "/proc", sys.prefix)):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def ended(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(child: int, seconds: float, number: int = signal.SIGKILL) -> tuple[int, float]:
    """Send a signal after some seconds; the exit code, and the seconds from signal to end."""
    sent = [time.perf_counter()]

    def send() -> None:
        sent[0] = time.perf_counter()
        os.kill(child, number)

    timer = threading.Timer(seconds, send)
    timer.start()
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    taken = time.perf_counter() - sent[0]
    timer.cancel()
    timer.join()
    return ended(child), taken


def content(path: Path) -> dict[str, bytes]:
    """The bytes of an output, file by file, but for those that hold the time."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: b"" if file.name in TIMED else file.read_bytes() for file in files}


def looks_whole_and_is_not(name: str, folder: Path, whole: dict[str, bytes]) -> str | None:
    """What is wrong with what a killed process left."""
    out = folder / name
    try:
        if name == "run" and (out / "config.yaml").exists():
            check(out)
        elif name != "run" and out.exists() and content(out) != whole:
            return f"{name} is there and differs"
        for chunk in folder.glob(".*.unfinished/0*.safetensors"):
            read_weights(chunk)
    except Exception as error:
        return f"{name}: {error!r}"
    return None


class Harness:
    """A folder with the inputs of every verb, and the bytes and seconds of uninterrupted ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.whole: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        methods.load("scbd")
        rows.CHUNK_IMAGES, growing.MARK_SECONDS = 8, 0  # a mark after every eight images
        writer.SHARD_BYTES = 32 * 256
        for place in ("e1/l1", "e1/l2", "e2/l1", "e2/l2"):
            (folder / "images" / place).mkdir(exist_ok=True, parents=True)
            for number in range(20):
                pixels = numpy_stream(0, place, number).integers(0, 255, (16, 16), np.uint8)
                Image.fromarray(pixels).save(folder / "images" / place / f"{number}.png")
        cells = [
            f"e{e}/l{label}/{number}.png,{5 + cell},8,l{label},e{e}"
            for e in (1, 2) for label in (1, 2) for number in range(20) for cell in range(3)
        ]  # fmt: skip
        header = "Path,Metadata_X,Metadata_Y,Metadata_Gene,Metadata_Plate"
        (folder / "fields.csv").write_text("\n".join([header, *cells]) + "\n", encoding="utf-8")
        for name in COMMANDS:
            start = time.perf_counter()
            code = ended(run(self.words(name), folder))
            self.seconds[name] = time.perf_counter() - start
            if code:
                raise SystemExit((folder.parent / "said.txt").read_text())
            self.whole[name] = content(folder / name)
            if name == "run":  # what later verbs read is never stopped
                shutil.copytree(folder / "run", folder / "fitted")
        read_embeddings(folder / "e.h5ad")

    def words(self, name: str) -> list[str]:
        """The command that makes an output."""
        return [*COMMANDS[name].split(), "--out", name]

    def remove(self, name: str) -> None:
        """Remove an output."""
        out = self.folder / name
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)

    def again(self, name: str, what: str) -> None:
        """Run the command to its end, unless it has, and compare with an uninterrupted one."""
        out = self.folder / name
        was_whole = name != "run" and out.exists()
        code = ended(run(self.words(name), self.folder))
        if code != (2 if was_whole else 0):
            said = (self.folder.parent / "said.txt").read_text()
            self.problems.append(f"{what}: again: {code} {said}")
            return
        listed = {path.name for path in self.folder.iterdir()}
        if left := listed - INPUTS - set(COMMANDS):
            self.problems.append(f"{what}: left {sorted(left)}")
        if content(out) != self.whole[name]:
            self.problems.append(f"{what}: differs from an uninterrupted one")
        for other in left:
            self.remove(other)

    def kill(self, name: str, number: int) -> int:
        """Kill the command up to three times, then let it end; the kills that hit it."""
        stream = numpy_stream(0, "kill", name, number)
        self.remove(name)
        hits = 0
        for _ in range(int(stream.integers(1, 4))):
            if stream.random() < 0.5:
                die_at = int(stream.integers(1, 80))
                code = ended(run(self.words(name), self.folder, die_at))
                what = f"{name} {number}, killed at file operation {die_at}"
            else:
                seconds = float(stream.uniform(0, self.seconds[name]))
                code, _ = killed_after(run(self.words(name), self.folder), seconds)
                what = f"{name} {number}, killed after {seconds:.3f} s"
            hits += code == -signal.SIGKILL
            if wrong := looks_whole_and_is_not(name, self.folder, self.whole[name]):
                self.problems.append(f"{what}: {wrong}")
            if code != -signal.SIGKILL:
                break
        self.again(name, what)
        return hits

    def terminate(self, number: int) -> float | None:
        """SIGTERM to a fit at a random time; the seconds to its end, None if it had ended."""
        stream = numpy_stream(0, "terminate", number)
        self.remove("run")
        seconds = float(stream.uniform(0, self.seconds["run"]))
        code, taken = killed_after(run(self.words("run"), self.folder), seconds, signal.SIGTERM)
        what = f"run {number}, SIGTERM after {seconds:.3f} s"
        stopped = "resumes" in (self.folder.parent / "said.txt").read_text()
        if code not in (0, -signal.SIGTERM) or (stopped and code):
            self.problems.append(f"{what}: exit code {code}")
        if wrong := looks_whole_and_is_not("run", self.folder, self.whole["run"]):
            self.problems.append(f"{what}: {wrong}")
        self.again("run", what)
        return taken if stopped else None


def main() -> None:
    """Kill, print, and write JSON; exits with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        harness = Harness(work)
        hits = dict.fromkeys(COMMANDS, 0)
        number = 0
        while sum(hits.values()) < arguments.kills:
            name = list(COMMANDS)[number % len(COMMANDS)]
            hits[name] += harness.kill(name, number)
            number += 1
        ends = [harness.terminate(number) for number in range(arguments.terms)]
    taken = [seconds for seconds in ends if seconds is not None]
    report = {
        "kills": hits,
        "sigterm_to_exit_seconds": {
            "stopped": len(taken),
            "median": statistics.median(taken) if taken else None,
            "most": max(taken, default=None),
        },
        "problems": harness.problems,
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if harness.problems else 0)


if __name__ == "__main__":
    main()
