"""Kills verbs at random moments and asks whether anything was lost or looks whole and is not.

    python benchmarks/kill.py --kills 100 --out benchmarks/results/kill.json

The commands of `kill_cases.py` run on tiny screens: simulate, ingest, the fit of every method,
embed (also by two processes), measure, report, correct, aggregate, transfer and compare (a search,
and levels by two processes). Each is ended by SIGKILL: half of the times after a random time, half
at a random operation on files. After every kill each file that has its final name must be whole;
then the same command, never stopped again or stopped up to twice more, must end with the bytes of
an uninterrupted one and leave nothing else.
Runs too are stopped by SIGTERM at a random time; the seconds until their process has ended are
reported. Processes are forked after the libraries are loaded, so that the kills hit the work.
Leave the repository alone meanwhile: embeddings record its commit.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import anndata  # noqa: F401 - loaded before the forks, as are the verbs
import plotly.offline  # noqa: F401
import torch
from kill_cases import CASES, COPIES, content, made_of, write_inputs, wrong

from deconfound import cli
from deconfound.data.ingest import images, rows  # noqa: F401
from deconfound.data.screens import writer
from deconfound.experiments.running import executors
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.local import run_local as several
from deconfound.experiments.running.messages import Order, Outcome
from deconfound.files import growing
from deconfound.runtime.seeds import numpy_stream
from deconfound.studies import demo  # noqa: F401

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
ELSEWHERE = ("/usr", "/proc", "/sys", "/dev", sys.prefix, str(Path(cli.__file__).parents[1]))
"""Beginnings of paths that no output lies under."""


def run(
    words: list[str], folder: Path, *, die_at: int | None = None, rank: int = 0, of: int = 1
) -> int:
    """Start a verb in `folder`, dying at an operation on files there; its process."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        quiet = os.open(folder.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if of > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "LOCAL_WORLD_SIZE": of}
            os.environ.update({name: str(number) for name, number in places.items()})
        done = counting(die_at)
        cli.main(words)
        (folder.parent / "operations.txt").write_text(str(done[0]))
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(99)
    os._exit(0)


def counting(die_at: int | None) -> list[int]:
    """The count of operations on files from now on; at that of number `die_at` the process dies."""
    count = [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in OPERATIONS and not str(arguments[0]).startswith(ELSEWHERE):
            count[0] += 1
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def run_local(orders: Sequence[Order], workers: int) -> Generator[Outcome, None, None]:
    """The runs of one worker are done by the command itself, so that its kill hits them."""
    if workers > 1:
        yield from several(orders, workers)
        return
    yield from map(Runner().run, orders)


vars(executors).update(run_local=run_local)


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


class Harness:
    """A folder with the inputs of every verb, and the bytes and seconds of uninterrupted ones."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.whole: dict[str, dict[str, bytes]] = {}
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, int] = {}
        rows.CHUNK_IMAGES, growing.MARK_SECONDS = 8, 0  # a mark after every eight images
        writer.SHARD_BYTES = 32 * 256
        vars(importlib.import_module("deconfound.embeddings.embed")).update(SHARD_ROWS=32)
        torch.set_num_threads(1)
        write_inputs(folder)
        clean = "simulate --cells 200 --size 24 --plates 1 --sections 1 --technical 0 --quiet"
        self.refuse_failed(run([*clean.split(), "--out", "clean"], folder))
        for name in ("screen", *names):
            self.make(name)
        self.inputs = {path.name for path in folder.iterdir()} - self.whole.keys()

    def make(self, name: str) -> None:
        """Make an output, and what it is made of, without interruption."""
        if name in self.whole:
            return
        for one in made_of(name):
            self.make(one)
        start = time.perf_counter()
        for child in self.start(name):
            self.refuse_failed(child)
        self.seconds[name] = time.perf_counter() - start
        self.operations[name] = int((self.folder.parent / "operations.txt").read_text())
        out = self.folder / name
        self.whole[name] = content(out)
        if name in COPIES:
            copy = shutil.copytree if out.is_dir() else shutil.copy
            copy(out, self.folder / COPIES[name])

    @property
    def said(self) -> str:
        """What the last commands said."""
        return (self.folder.parent / "said.txt").read_text()

    def refuse_failed(self, child: int) -> None:
        """Raise SystemExit unless the process ends well."""
        if ended(child):
            raise SystemExit(self.said)

    def start(self, name: str, die_at: int | None = None) -> list[int]:
        """Start the processes that make an output; the last dies at an operation on files."""
        case = CASES[name]
        words, of = [*case.words.split(), "--out", name], case.processes
        (self.folder.parent / "said.txt").write_text("")
        return [
            run(words, self.folder, die_at=die_at if rank == of - 1 else None, rank=rank, of=of)
            for rank in range(of)
        ]

    def remove(self, name: str) -> None:
        """Remove an output."""
        out = self.folder / name
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)

    def judge(self, name: str, what: str) -> None:
        """Note what looks whole and is not."""
        found = wrong(CASES[name], self.folder / name, self.whole[name])
        self.problems += [f"{what}: {one}" for one in found]

    def again(self, name: str, what: str) -> None:
        """Run the command to its end, unless it has, and compare with an uninterrupted one."""
        case, out = CASES[name], self.folder / name
        expected = 2 if out.exists() and not case.continues else 0
        codes = [ended(child) for child in self.start(name)]
        if set(codes) != {expected}:
            self.problems.append(f"{what}: again: {codes} {self.said}")
            return
        listed = {path.name for path in self.folder.iterdir()} - self.inputs - self.whole.keys()
        hidden = [str(path.relative_to(out)) for path in out.rglob(".*")]
        if listed or hidden:
            self.problems.append(f"{what}: left {sorted(listed)} {hidden}")
        if (found := content(out)) != (whole := self.whole[name]):
            differ = [file for file in found.keys() | whole if found.get(file) != whole.get(file)]
            self.problems.append(f"{what}: {sorted(differ)} differ from an uninterrupted one")
        for other in listed:
            self.remove(other)

    def kill(self, name: str, number: int) -> int:
        """Kill the command up to three times, then let it end; the kills that hit it."""
        stream = numpy_stream(0, "kill", name, number)
        self.remove(name)
        hits, what = 0, ""
        for _ in range(int(stream.integers(1, 4))):
            by_operation = stream.random() < 0.5
            die_at = int(stream.integers(1, self.operations[name] + 1)) if by_operation else None
            seconds = float(stream.uniform(0, self.seconds[name]))
            *others, child = self.start(name, die_at)
            if by_operation:
                code = ended(child)
                what = f"{name} {number}, killed at file operation {die_at}"
            else:
                code, _ = killed_after(child, seconds)
                what = f"{name} {number}, killed after {seconds:.3f} s"
            for other in others:  # half of the times the machine dies, not one process alone
                if code == -signal.SIGKILL and stream.random() < 0.5:
                    os.kill(other, signal.SIGKILL)
                ended(other)
            hits += code == -signal.SIGKILL
            self.judge(name, what)
            if code != -signal.SIGKILL:
                break
        self.again(name, what)
        return hits

    def terminate(self, number: int) -> float | None:
        """SIGTERM to a fit at a random time; the seconds to its end, None if it had ended."""
        stream = numpy_stream(0, "terminate", number)
        self.remove("run")
        seconds = float(stream.uniform(0, self.seconds["run"]))
        (child,) = self.start("run")
        code, taken = killed_after(child, seconds, signal.SIGTERM)
        what = f"run {number}, SIGTERM after {seconds:.3f} s"
        stopped = "resumes" in self.said
        if code not in (0, -signal.SIGTERM) or (stopped and code):
            self.problems.append(f"{what}: exit code {code}")
        self.judge("run", what)
        self.again("run", what)
        return taken if stopped else None


def main() -> None:
    """Kill, print, and write JSON; exits with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        harness = Harness(work, arguments.cases)
        hits = dict.fromkeys(arguments.cases, 0)
        number = 0
        while sum(hits.values()) < arguments.kills or (
            arguments.kills >= len(hits) and not all(hits.values())
        ):
            name = arguments.cases[number % len(hits)]
            hits[name] += harness.kill(name, number)
            number += 1
            print(f"{sum(hits.values())} kills, {len(harness.problems)} problems", file=sys.stderr)
        harness.make("run")
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
