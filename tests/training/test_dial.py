import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deconfound.cli import main
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.methods.scbd import ALPHAS, Scbd, ScbdOptions
from deconfound.reports.report import report
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.dial import DialRecord, Trial, read_dial
from deconfound.runs.run import open_run
from deconfound.training import dial
from deconfound.training.fit import fit
from deconfound.training.loop import Training

MakeConfig = Callable[..., RunConfig]
AssertSameRun = Callable[[Path, Path], None]
VALUES = ALPHAS["balanced"]


class Killed(BaseException):
    """Stands for a process that ends here; nothing may handle it."""


@pytest.fixture(scope="module")
def auto(make_config: MakeConfig) -> RunConfig:
    return make_config("scbd", training={"steps": 2}, options={"alpha": "auto"})


@pytest.fixture(scope="module")
def chosen(auto: RunConfig, screen: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose alpha was chosen."""
    return fit(auto, screen.path, tmp_path_factory.mktemp("auto") / "run", quiet=True).path


def trials(scores: dict[float, list[float]]) -> list[Trial]:
    return [
        Trial(
            value=value, without=f"e{place}", accuracy=0.0, macro_f1=score, environment=None,
            chance=None, rows=10, seconds=1.0,
        )
        for value, own in scores.items()
        for place, score in enumerate(own)
    ]  # fmt: skip


def in_distribution(accuracy: list[float], environment: list[float]) -> list[Trial]:
    return [
        Trial(
            value=value,
            without=None,
            accuracy=a,
            macro_f1=a,
            environment=e,
            chance=0.02,
            rows=400,
            seconds=1.0,
        )
        for value, a, e in zip(VALUES, accuracy, environment, strict=True)
    ]


def test_every_value_is_tried_without_each_group_of_the_level_held_out(
    chosen: Path, auto: RunConfig, screen: Screen
) -> None:
    record = read_dial(chosen)
    assert record is not None
    assert record.rule == "left out"
    left_out = {trial.without for trial in record.trials}
    assert left_out == {"plate=S1/P2", "plate=S2/P2"}  # without S2/P1 training has P2 alone
    assert len(record.trials) == len(VALUES) * len(left_out)
    assert [point.value for point in record.curve] == list(VALUES)
    for point in record.curve:
        own = [trial.macro_f1 for trial in record.trials if trial.value == point.value]
        assert point.score == pytest.approx(np.mean(own))
        assert point.sd == pytest.approx(np.std(own, ddof=1))
        assert point.seconds > 0
    for trial in record.trials:
        data = auto.data.model_copy(update={"without": trial.without})
        assert trial.rows == len(pose(screen, data).fold.rows("ood_val"))


def test_the_run_is_that_of_the_value_chosen(
    chosen: Path, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    opened = open_run(chosen)
    assert opened.config.options.dial is not None
    record = read_dial(chosen)
    assert record is not None
    assert opened.config.chosen == {"alpha": record.chosen}
    plain = make_config("scbd", training={"steps": 2}, options={"alpha": record.chosen})
    same = fit(plain, screen.path, tmp_path / "plain", quiet=True).path
    for name in ("model.safetensors", "metrics.csv", "selection.json"):
        assert (chosen / name).read_bytes() == (same / name).read_bytes()
    assert not (chosen / dial.FOLDER).exists()
    assert "dial.json" in json.loads((chosen / "checksums.json").read_text())


@pytest.mark.parametrize("call", [3, 9])
def test_killed_anywhere_it_ends_with_the_same_bits(
    call: int,
    chosen: Path,
    auto: RunConfig,
    screen: Screen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_same_run: AssertSameRun,
) -> None:
    calls = 0
    validate = Training._validate

    def dying(training: Training) -> None:
        nonlocal calls
        calls += 1
        validate(training)
        if calls == call:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_validate", dying)
        with pytest.raises(Killed):
            fit(auto, screen.path, tmp_path / "run", quiet=True)
    fit(auto, screen.path, tmp_path / "run", quiet=True)
    assert_same_run(chosen, tmp_path / "run")
    again, once = read_dial(tmp_path / "run"), read_dial(chosen)
    assert again is not None and once is not None
    assert untimed(again) == untimed(once)


def untimed(record: DialRecord) -> Any:
    """The record without seconds."""
    values = record.model_dump()
    for one in (*values["curve"], *values["trials"]):
        one.pop("seconds")
    return values


def test_a_finished_run_is_not_chosen_again(
    chosen: Path, auto: RunConfig, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_choice", None)
    fit(auto, screen.path, chosen, quiet=True)
    # A configuration that holds another run's choice asks for a choice, as `auto` does.
    fit(auto.model_copy(update={"chosen": {"alpha": 99.0}}), screen.path, chosen, quiet=True)


def test_two_environments_are_compared_in_distribution(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(
        "scbd",
        data={"environment": ("series",), "fold": "iid"},
        training={"steps": 2},
        options={"alpha": "auto"},
    )
    said: list[str] = []
    record = read_dial(fit(config, screen.path, tmp_path / "run", quiet=True, say=said.append).path)
    assert record is not None
    assert record.rule == "in distribution"
    assert [trial.value for trial in record.trials] == list(VALUES)
    for trial in record.trials:
        assert trial.environment is not None
        assert trial.chance is not None
    assert said[0] == f"scbd: {record.text()}"
    assert "between environments" in said[0]
    assert said[1].startswith("scbd: ")


def test_left_out_the_first_value_within_one_standard_error_is_taken() -> None:
    clear = {0.0: [0.3, 0.4, 0.5], 1.0: [0.5, 0.6, 0.7], 3.0: [0.52, 0.58, 0.72]}
    assert dial._best_left_out(list(clear), trials(clear)) == 1
    none_helps = {0.0: [0.5, 0.6, 0.7], 1.0: [0.56, 0.56, 0.7], 3.0: [0.4, 0.5, 0.6]}
    assert dial._best_left_out(list(none_helps), trials(none_helps)) == 0
    # Environments differ, and in each of them the second value is better by the same.
    steady = {0.0: [0.1, 0.5, 0.9], 1.0: [0.15, 0.55, 0.95]}
    assert dial._best_left_out(list(steady), trials(steady)) == 1


@pytest.mark.parametrize(
    ("accuracy", "environment", "taken"),
    [
        ([0.90, 0.90, 0.85, 0.60], [0.50, 0.30, 0.10, 0.00], 2),  # the last costs accuracy
        ([0.90, 0.90, 0.85, 0.85], [0.50, 0.30, 0.11, 0.10], 2),  # no less but by chance
        ([0.90, 0.90, 0.89, 0.89], [0.01, 0.00, 0.01, 0.00], 0),  # shuffled: nothing to tell
        ([0.70, 0.90, 0.90, 0.90], [0.50, 0.10, 0.10, 0.11], 1),  # the first is worse
    ],
)
def test_in_distribution_the_first_that_hardly_reads_the_environment_is_taken(
    accuracy: list[float], environment: list[float], taken: int
) -> None:
    tried = in_distribution(accuracy, environment)
    points = [dial._point(value, "in distribution", tried) for value in VALUES]
    assert dial._best_in_distribution(points, tried) == taken


def test_environments_are_told_beyond_the_label() -> None:
    stream = np.random.default_rng(0)
    label = stream.integers(0, 4, 800)
    environment = label % 2 ^ (stream.random(800) < 0.2)  # mostly told by the label
    noise = stream.normal(0, 0.1, (800, 6))
    content = np.eye(6)[label] + noise
    blind = dial._between_environments(content.astype("f4"), label, environment)
    # In half of the labels the environment moves content one way, in the others the other way.
    content[:, 4] += 0.2 * (2 * environment - 1) * (2 * (label // 2) - 1)
    seeing = dial._between_environments(content.astype("f4"), label, environment)
    assert blind is not None and seeing is not None
    assert blind[0] < blind[1] < 0.05
    assert seeing[0] > 0.3 > 0.05 > seeing[1]
    alone = dial._between_environments(content[:4].astype("f4"), np.arange(4), environment[:4])
    assert alone is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"alpha": "auto", "invariance": "equation"}}, "no values to try"),
        ({"options": {"alpha": "auto"}, "data": {"without": "P2"}}, "leave --without out"),
    ],
)
def test_what_auto_refuses(
    change: dict[str, Any],
    message: str,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=message):
        fit(make_config("scbd", **change), screen.path, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_network_is_never_built_with_auto() -> None:
    with pytest.raises(UserError, match="needs a number"):
        Scbd(ScbdOptions(alpha="auto"), Task(1, 16, 2, 2))


@pytest.mark.parametrize("alpha", ["autos", -1, "-1", None])
def test_alpha_is_a_weight_or_auto(alpha: object) -> None:
    with pytest.raises(ValueError, match="expected a number of at least 0, or auto"):
        ScbdOptions(alpha=alpha)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "dial.json").write_text('{"option": "alpha"}')
    with pytest.raises(UserError, match=r"dial\.json: damaged"):
        read_dial(tmp_path)


def test_words_yaml_and_the_report(
    chosen: Path, screen: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(chosen / "config.yaml")
    assert "chosen:\n  alpha:" in dump_config(config)
    out = tmp_path / "again"
    words = ["--config", str(chosen / "config.yaml"), "--out", str(out), "--quiet"]
    main(["fit", "scbd", str(screen.path), *words])
    assert (out / "model.safetensors").read_bytes() == (chosen / "model.safetensors").read_bytes()
    assert "training groups left out in turn" in capsys.readouterr().out
    report([chosen], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "alpha auto" in page
    assert "macro-F1 left out" in page


def test_a_group_of_a_level_is_left_out(auto: RunConfig, screen: Screen) -> None:
    posed = pose(screen, auto.data.model_copy(update={"without": "plate=S2/P1"}))
    table = screen.table
    group = (table["series"] == "S2") & (table["plate"] == "P1")
    part = posed.fold.part
    assert set(part[group]) == {"ood_val"}
    assert not (part[~group] == "ood_val").any()
    with pytest.raises(UserError, match="training has no row of that group"):
        pose(screen, auto.data.model_copy(update={"without": "plate=S1/P1"}))
