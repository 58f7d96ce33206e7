import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deconfound.cli import main
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.experiments.running import slurm
from deconfound.experiments.running.executors import executor_options
from deconfound.experiments.running.job import Runner
from deconfound.experiments.running.messages import Order, run_directory
from deconfound.experiments.running.slurm import Ask, run_slurm
from deconfound.runs.config import RunConfig

ASK = Ask(None, 5, 0)
ORDER = Order("a", "screen", "id", "erm", "{}", "out")


def test_without_submitit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'deconfound\[slurm\]'"):
        next(run_slurm([ORDER], 1, 1, ASK))


@pytest.mark.parametrize("option", [{"partition": "gpu"}, {"job_minutes": 5}, {"job_gpus": 0}])
def test_what_is_of_slurm_needs_slurm(
    option: dict[str, int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ((name, value),) = option.items()
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SystemExit) as stop:
        main(["compare", "plan.yaml", "--out", str(tmp_path / "out"), flag, str(value)])
    assert stop.value.code == 2
    said = f"deconfound: {flag} is of a job of SLURM; add --executor slurm\n"
    assert capsys.readouterr().err == said
    assert executor_options({"executor": "slurm", name: value}).executor == "slurm"  # type: ignore[misc]


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are processes of this machine."""
    reason = "submitit is not installed: pip install 'deconfound[slurm]'"
    pytest.importorskip("submitit", reason=reason)
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)


@pytest.mark.usefixtures("local")
def test_where_there_is_no_slurm_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "CLUSTER", "slurm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no SLURM here") as error:
        next(run_slurm([ORDER._replace(out=str(tmp_path))], 1, 1, ASK))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("local")
def test_runs_of_jobs_are_those_of_this_process(
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path: Path,
    assert_same_run: Callable[[Path, Path], None],
) -> None:
    there, here = tmp_path / "jobs", tmp_path / "here"
    config = make_config("erm", training={"steps": 2}).model_dump_json()
    first = Order("a", str(screen.path), screen.identity, "erm", config, str(there))
    orders = [first, first._replace(name="c", identity="no")]
    outcomes = {one.name: one for one in run_slurm(orders, 2, 1, ASK)}
    assert outcomes.keys() == {"a", "c"}
    assert outcomes["a"].reason == ""
    assert outcomes["a"].training > 0
    assert "changed since the sweep began" in outcomes["c"].reason
    assert Runner().run(first._replace(out=str(here))).reason == ""
    assert_same_run(*[run_directory(folder, "a") for folder in (there, here)])


DYING = """
import os
from pathlib import Path
from deconfound.experiments.running.messages import Outcome

class Dying:
    def __init__(self, number):
        self.number = number

    def __call__(self, order):
        tries = len(list(Path(order.out).glob(f"{order.name}-*")))
        (Path(order.out) / f"{order.name}-{tries}").touch()
        if order.name == "wrong":
            raise ValueError("a fault")
        if tries < int(order.identity):
            os._exit(9)
        return Outcome(order.name, self.number, 0.0, 1.0)
"""
"""A job whose process dies at its first tries, as many as the order's identity says."""


@pytest.mark.usefixtures("local")
def test_a_lost_job_is_submitted_again_and_at_last_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying_job.py").write_text(DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(slurm, "_Run", importlib.import_module("dying_job").Dying)
    monkeypatch.setattr(slurm, "TRIES", 2)
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0.1)
    lost = {"once": 1, "ever": 9, "wrong": 0}
    orders = [ORDER._replace(name=n, identity=str(k), out=str(tmp_path)) for n, k in lost.items()]
    outcomes = {one.name: one for one in run_slurm(orders, 3, 1, ASK)}
    assert outcomes["once"].reason == ""
    assert "lost 2 times" in outcomes["ever"].reason
    assert "a fault" in outcomes["wrong"].reason
    for name in ("ever", "wrong"):
        assert "\n" not in outcomes[name].reason
        assert Path(outcomes[name].reason.rpartition("; see ")[2]).is_file()
    tries = {name: len(list(tmp_path.glob(f"{name}-*"))) for name in lost}
    assert tries == {"once": 2, "ever": 2, "wrong": 1}
