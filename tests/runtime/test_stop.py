import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.runs.config import RunConfig
from deconfound.runtime import stop
from deconfound.training.fit import fit
from deconfound.training.loop import Training
from deconfound.training.step import Stepper

AssertSameRun = Callable[[Path, Path], None]
MakeConfig = Callable[..., RunConfig]
VERB = [sys.executable, "-c", "from deconfound.cli import main; main()"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_terminated_process_saves_its_run_and_the_same_command_resumes(
    screen: Screen,
    tmp_path: Path,
    assert_same_run: AssertSameRun,
) -> None:
    """SIGTERM as soon as the run trains; what it has done is kept to the last step."""
    few = "--steps 40 --batch-size 12 --validate-every 5 --checkpoint-every 40 --device cpu"
    few += " --precision 32 --threads 1 --fold plate=S1/P1 --val-fraction 0.2 --quiet"
    command = [*VERB, "fit", "erm", str(screen.path), *few.split(), "--out"]
    with subprocess.Popen(
        [*command, str(tmp_path / "stopped")], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as running:
        while not (tmp_path / "stopped" / "classifier-loss.safetensors").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 0
    assert len(said.splitlines()) == 1
    assert "of 40 (classifier); the same command resumes" in said
    assert (tmp_path / "stopped" / "resume.pt").is_file()
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["stopped"]
    for name in ("stopped", "whole"):
        cli.main([*command[len(VERB) :], str(tmp_path / name)])
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def asking(function: Callable[..., Any], call: int, number: int) -> Callable[..., Any]:
    """`function`, at whose `call`-th call a signal arrives."""
    calls = 0

    def wrapped(*words: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return function(*words, **named)

    return wrapped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("owner", "place", "call", "steps"),
    [
        (Stepper, "step", 1, 1),
        (Stepper, "step", 3, 3),
        (Training, "_validate", 1, 2),
        (Stepper, "step", 6, 6),
        (Training, "_validate", 3, 6),
    ],
)
def test_a_stopped_run_loses_no_step_and_no_validation(
    number: int,
    owner: type,
    place: str,
    call: int,
    steps: int,
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, asking(getattr(owner, place), call, number))
        with pytest.raises(stop.Stopped, match=rf"saved at step {steps} of 6"):
            fit(make_config("scbd"), screen.path, out, quiet=True)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    steps_taken = []
    step = Stepper.step

    def counting(self: Stepper, *words: Any) -> Any:
        steps_taken.append(words)
        return step(self, *words)

    monkeypatch.setattr(Stepper, "step", counting)
    fit(make_config("scbd"), screen.path, out, quiet=True)
    assert len(steps_taken) == 6 - steps + 4  # the stage of the decoder has 4
    assert_same_run(out, finished_runs("scbd"))


def test_a_step_that_does_not_end_is_left(
    screen: Screen,
    make_config: MakeConfig,
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    out = tmp_path / "run"

    def endless(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(stop, "GRACE_SECONDS", 0.1)
        patch.setattr(Stepper, "step", endless)
        with pytest.raises(stop.Stopped):
            fit(make_config("erm"), screen.path, out, quiet=True)
    fit(make_config("erm"), screen.path, out, quiet=True)
    assert_same_run(out, finished_runs("erm"))


def test_a_second_interrupt_does_not_wait(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(Stepper, "step", impatient)
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(make_config("erm"), screen.path, tmp_path / "run", quiet=True)
    assert not isinstance(raised.value, stop.Stopped)


def test_another_verb_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "screen"
    command = [*VERB, "simulate", "--cells", "200000", "--quiet", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as running:
        while not any(file.suffix == ".partial" for file in tmp_path.iterdir()):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 143
    assert said == ("deconfound: stopped; the same command starts again, as nothing was written\n")
    assert list(tmp_path.iterdir()) == []


DROPPED = """
import os, signal, sys, time
from deconfound import cli
def signalled(): os.kill(os.getpid(), getattr(signal, sys.argv[1]))
def describe(words):
    try:
        signalled()
    except BaseException:
        if sys.argv[2] == "garbled":
            raise AttributeError("module 'numpy' has no attribute 'intp'")
    try:
        time.sleep(20)
    finally:
        time.sleep(0.4)
        print("cleaned", flush=True)
    raise AssertionError("not reached")
signal.signal(signal.SIGINT, signal.default_int_handler)
import deconfound.cli.screens
deconfound.cli.screens.call_describe = describe
cli.main(["describe", "s"])
"""


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("how", ["dropped", "garbled"])
def test_a_request_that_a_library_drops_or_garbles_is_obeyed(
    number: str, code: int, how: str
) -> None:
    """As numpy and pyarrow do while they are imported; what cleans up is not interrupted."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, number, how], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stdout == ("cleaned\n" if how == "dropped" else "")
    assert done.stderr == (
        "deconfound: stopped; the same command starts again, as nothing was written\n"
    )


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.at_once() as asked:
            os.kill(os.getpid(), signal.SIGINT)
        assert asked.by is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


ENDED = """
import os, signal, sys
import deconfound.cli.screens
from deconfound import cli
from deconfound.runtime import streams
number, refused = signal.NUMBER, streams.refused
def at_the_end():
    os.kill(os.getpid(), number)
    return refused()
signal.signal(signal.SIGINT, signal.default_int_handler)
deconfound.cli.screens.call_describe = lambda words: print("done", flush=True)
streams.refused = at_the_end
sys.argv[1:] = ["describe", "s"]
cli.main()
os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_request_that_comes_when_the_work_is_done_is_ignored(number: str) -> None:
    """While a last line is written, and while the process that did it clears up."""
    done = subprocess.run(
        [sys.executable, "-c", ENDED.replace("NUMBER", number)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("form", "function", "remedy"),
    [
        ("embed", "deconfound.embeddings.embed.EmbeddingStream", stop.RESUMES),
        ("embed profiles", "deconfound.embeddings.embed.profiles", stop.ANEW),
        ("ingest images", "deconfound.data.ingest.images.read_table", stop.RESUMES),
        ("ingest profiles", "deconfound.data.ingest.profiles.ingest_profiles", stop.ANEW),
        ("ingest array", "deconfound.data.ingest.arrays.ingest_array", stop.ANEW),
    ],
)
def test_each_form_of_a_verb_says_what_the_same_command_does(
    form: str,
    function: str,
    remedy: str,
    tmp_path: Path,
    screen: Screen,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(function, stopped)
    (tmp_path / "t.csv").touch()
    table, out = str(tmp_path / "t.csv"), ["--out", str(tmp_path / "out.h5ad")]
    words = {
        "embed": ["embed", str(tmp_path), str(screen.path), *out],
        "embed profiles": ["embed", str(screen.path), *out],
        "ingest images": ["ingest", table, "--images-root", str(tmp_path), *out],
        "ingest profiles": ["ingest", table, "--profiles", *out],
        "ingest array": ["ingest", table, "--array", table, *out],
    }
    with pytest.raises(SystemExit) as ended:
        cli.main(words[form])
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"deconfound: {remedy}\n"
