"""Judging imputed images on a simulated screen, by imputers whose scores are known beforehand."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from deconfound import cli, methods
from deconfound.config import DataOptions, TrainingOptions
from deconfound.counterfactuals.judge import imputation, interventions
from deconfound.counterfactuals.oracle import Oracle, oracle_of
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.inject import InjectConfig, inject
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.errors import UserError
from deconfound.evaluation.scores import ALONE, COLUMNS, EXACT, MOMENTS
from deconfound.metrics.score import all_metrics
from deconfound.runs.config import config_model
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

TOY = '''
"""toy: an imputer that looks up what it is asked for."""

import numpy as np
import torch
from torch import nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Imputer, Loss, Stage


class Toy(Imputer):
    """Of Pernice et al. 2023 nothing but the interface; the style of an image is the image."""

    SUMMARY = "looks its images up"
    PAPER = "Nobody, 2000"
    answer = staticmethod(lambda source, *_: source)

    def __init__(self, options, task):
        super().__init__(options, task)
        self.shape = (task.channels, task.image_size, task.image_size)
        self.head = nn.Linear(task.channels, task.labels)

    def stages(self, steps):
        phase = self.phase("all", self.parameters(), self._losses, validates=True)
        return (Stage("only", steps, (phase,)),)

    def embed(self, image):
        return {"representation": image.mean(dim=(2, 3))}

    def predict(self, embedded):
        return self.head(embedded["representation"])

    def style(self, image, environment):
        return torch.cat([image.flatten(1), environment[:, None].float()], dim=1)

    def impute(self, image, style, source=None):
        shown = style[:, :-1].reshape(-1, *self.shape)
        return type(self).answer(image, shown, style[:, -1].long())

    def _losses(self, batch, outputs):
        return {"cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label))}
'''
SIMULATED = SimulateConfig(
    cells=240, labels=3, series=2, plates=2, sections=1, size=24, strength=6, variation=0.2, seed=1
)
DATA = DataOptions(fold="Metadata_Plate=S1/P1", id_test_fraction=0.3)
SOURCES = [
    f"imputation_source_{kind}{end}" for kind in ("environment", "level") for end in ("", "_chance")
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
        yield methods.load("toy")
        sys.modules.pop("deconfound.methods.toy", None)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    out = tmp_path_factory.mktemp("simulated") / "screen"
    return simulate(out, config=SIMULATED, threads=1, quiet=True)


@pytest.fixture(scope="module")
def problem(simulated: Screen) -> Problem:
    return pose(simulated, DATA)


def run_of(method: str, screen: Path, out: Path, data: DataOptions = DATA) -> Path:
    config = config_model(method)(
        method=method,
        seed=5,
        data=data,
        training=TrainingOptions(steps=1, batch_size=16, threads=1, precision="32", device="cpu"),
    )
    fit(config, screen, out, quiet=True)
    return out


@pytest.fixture(scope="module")
def run(toy: type, simulated: Screen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert toy.__name__ == "Toy"
    return run_of("toy", simulated.path, tmp_path_factory.mktemp("runs") / "toy")


@pytest.fixture(scope="module")
def oracles(simulated: Screen, problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps the oracle of all tests, trained once."""
    folder = tmp_path_factory.mktemp("oracles")
    oracle_of(simulated, problem, folder, steps=60, seed=0, threads=1, quiet=True)
    return folder


@pytest.fixture
def judged(run: Path, simulated: Screen, oracles: Path, tmp_path: Path) -> Iterator[Callable]:
    """Scores of the toy with an answer of the test's."""
    outs: list[Path] = []

    def judge(images: int = 60) -> pd.DataFrame:
        outs.append(oracles / f"{tmp_path.name}-{len(outs)}.parquet")
        return imputation(
            run, simulated.path, outs[-1], images=images, oracle_steps=60, device="cpu",
            threads=1, quiet=True,
        )  # fmt: skip

    yield judge
    assert len(list(oracles.glob("oracle-*"))) == 1
    for out in outs:
        out.unlink()


def value(scores: pd.DataFrame, method: str, metric: str, part: str = "test") -> float:
    rows = scores[
        (scores["method"] == method)
        & (scores["metric"] == f"imputation_{metric}")
        & (scores["part"] == part)
        & (scores["representation"] == "image")
    ]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


class Lookup:
    """Finds the rows whose images, as the method sees them, are those given."""

    def __init__(self, run: Path, screen: Screen) -> None:
        self.screen = screen
        _, self.intensity = open_run(run).load(screen)
        self.images = self.intensity(torch.from_numpy(screen.read(np.arange(len(screen)))))

    def rows(self, image: torch.Tensor) -> list[int]:
        return torch.cdist(image.flatten(1), self.images.flatten(1)).argmin(dim=1).tolist()

    def true(self, rows: list[int], styles: list[int]) -> torch.Tensor:
        """The cells of `rows` rendered where those of `styles` were, as the method sees them."""
        levels = list(self.screen.roles.levels)
        names = ["/".join(self.screen.table.loc[style, levels]) for style in styles]
        found = [
            counterfactual(self.screen, [row], name, threads=1)[0]
            for row, name in zip(rows, names, strict=True)
        ]
        return self.intensity(torch.from_numpy(np.stack(found)))


def test_an_image_left_alone_scores_one(
    judged: Callable, toy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "answer", staticmethod(lambda source, *_: source))
    scores = judged()
    for part in ("test", "id_test"):
        for metric in ("error", "squared_error"):
            assert value(scores, ALONE, metric, part) == 1.0
            assert value(scores, "toy", metric, part) == pytest.approx(1, abs=1e-5)
        for metric in ("label_probability", "agreement", "hallucination"):
            alone = value(scores, ALONE, metric, part)
            assert value(scores, "toy", metric, part) == pytest.approx(alone, abs=1e-3)
    assert 0 < value(scores, MOMENTS, "error") < 1
    low, high = (value(scores, MOMENTS, f"error_{end}") for end in ("low", "high"))
    assert low < value(scores, MOMENTS, "error") < high
    assert list(scores.columns) == COLUMNS
    known = all_metrics()
    assert all(
        known[row.metric].range[0] <= row.value <= known[row.metric].range[1]
        for row in scores.itertuples()
    )
    assert set(scores[scores["method"] == "toy"]["seed"]) == {5}
    assert set(scores[scores["method"] == MOMENTS]["seed"]) == {0}
    assert scores["config"].isna().equals(scores["method"] != "toy")
    exact = scores[scores["method"] == EXACT]
    assert set(exact["metric"]) == set(SOURCES)
    assert set(exact["seed"]) == {0}
    for metric in SOURCES:
        name = metric.removeprefix("imputation_")
        alone = value(scores, ALONE, name, "id_test")
        assert value(scores, "toy", name, "id_test") == pytest.approx(alone, abs=0.02)
    channels = scores[scores["representation"] == "channel actin"]
    assert set(channels["method"]) == {"toy", ALONE, MOMENTS}


def test_images_of_an_injected_screen_are_judged_by_the_same_cells_elsewhere(
    toy: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = SIMULATED.model_copy(update={"cells": 96, "technical": 0.0})
    simulate(tmp_path / "clean", config=clean, threads=1, quiet=True)
    config = InjectConfig(series=2, plates=2, sections=1, wells=1)
    screen = inject(tmp_path / "clean", tmp_path / "screen", config=config, threads=1, quiet=True)
    run = run_of("toy", screen.path, tmp_path / "run")
    look = Lookup(run, screen)

    def truth(source: torch.Tensor, style: torch.Tensor, environment: torch.Tensor) -> torch.Tensor:
        del environment
        return look.true(look.rows(source), look.rows(style))

    def judge(out: Path) -> pd.DataFrame:
        return imputation(
            run, screen.path, out, images=12, oracle_steps=2, device="cpu", threads=1, quiet=True
        )

    monkeypatch.setattr(toy, "answer", staticmethod(truth))
    scores = judge(tmp_path / "scores.parquet")
    assert value(scores, "toy", "error") < 1e-5
    assert value(scores, "toy", "agreement") == 1
    assert value(scores, ALONE, "error") == 1
    shutil.rmtree(tmp_path / "clean")
    with pytest.raises(UserError, match=r"its clean screen .* is gone"):
        judge(tmp_path / "again.parquet")


def test_the_true_image_scores_zero_and_that_of_another_label_is_hallucinated(
    judged: Callable,
    toy: type,
    run: Path,
    simulated: Screen,
    problem: Problem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Lookup(run, simulated)

    def truth(source: torch.Tensor, style: torch.Tensor, environment: torch.Tensor) -> torch.Tensor:
        styles = look.rows(style)
        assert environment.tolist() == problem.environment.codes[styles].tolist()
        return look.true(look.rows(source), styles)

    monkeypatch.setattr(toy, "answer", staticmethod(truth))
    scores = judged(24)
    assert value(scores, "toy", "error") < 1e-5
    assert value(scores, "toy", "agreement") == 1
    assert value(scores, "toy", "hallucination") == 0
    for metric in SOURCES:
        name = metric.removeprefix("imputation_")
        exact = value(scores, EXACT, name, "id_test")
        assert value(scores, "toy", name, "id_test") == pytest.approx(exact, abs=0.02)
    probability = value(scores, "toy", "label_probability")
    assert probability == pytest.approx(value(scores, "toy", "label_probability_true"), abs=1e-4)
    assert probability > 0.7

    label = problem.all_labels.codes

    def swapped(
        source: torch.Tensor, style: torch.Tensor, environment: torch.Tensor
    ) -> torch.Tensor:
        del environment
        rows = [int(np.flatnonzero(label != label[row])[0]) for row in look.rows(source)]
        return look.true(rows, look.rows(style))

    monkeypatch.setattr(toy, "answer", staticmethod(swapped))
    scores = judged(24)
    assert value(scores, "toy", "hallucination") > 0.8
    assert value(scores, "toy", "agreement") < 0.2
    assert value(scores, "toy", "label_probability") < 0.2
    assert value(scores, "toy", "error") > value(scores, MOMENTS, "error")
    assert value(scores, ALONE, "hallucination") < 0.3


def test_interventions_are_uniform_over_other_environments_and_read_training_rows_alone(
    simulated: Screen, problem: Problem
) -> None:
    drawn = interventions(simulated, problem, "test", 1000, 0)
    again = interventions(simulated, problem, "test", 1000, 0)
    other = interventions(simulated, problem, "test", 1000, 1)
    assert set(drawn.rows) == set(problem.fold.rows("test"))
    assert (drawn.style == again.style).all()
    assert (drawn.style != other.style).any()
    assert np.isin(drawn.style, problem.fold.rows("train")).all()
    code = problem.environment.codes
    assert drawn.style.shape == (len(drawn.rows), 1)
    assert (code[drawn.style[:, 0]] == drawn.environment).all()
    counts = np.bincount(drawn.environment, minlength=3)
    assert (counts > len(drawn.rows) / 6).all()
    levels = list(simulated.roles.levels)
    place = ["/".join(names) for names in simulated.table[levels].to_numpy()]
    assert [place[row] for row in drawn.style[:, 0]] == [*drawn.rendering]
    several = interventions(simulated, problem, "test", 1000, 0, style_images=3)
    assert (several.style[:, 0] == drawn.style[:, 0]).all()
    assert (code[several.style] == several.environment[:, None]).all()
    assert np.isin(several.style, problem.fold.rows("train")).all()
    assert [[place[row] for row in rows] for rows in several.style] == [
        [name] * 3 for name in several.rendering
    ]
    assert (np.diff(several.style, axis=1) != 0).any()
    within = interventions(simulated, problem, "id_test", 1000, 0)
    assert len(within.rows)
    assert (code[within.rows] != within.environment).all()
    assert len(interventions(simulated, problem, "test", 7, 0).rows) == 7


@pytest.mark.parametrize("style_images", [1, 3])
def test_a_part_without_rows_has_no_interventions(simulated: Screen, style_images: int) -> None:
    in_distribution = pose(simulated, DataOptions(fold="iid"))
    drawn = interventions(simulated, in_distribution, "id_test", 1000, 0, style_images)
    assert drawn.style.shape == (0, style_images)


def test_the_oracle_knows_unseen_cells_in_every_environment_and_is_kept(
    simulated: Screen, problem: Problem, oracles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("deconfound.counterfactuals.oracle._train", fails)
    oracle = oracle_of(simulated, problem, oracles, steps=60, seed=0, threads=1, quiet=True)
    rows = np.concatenate([problem.fold.rows("test"), problem.fold.rows("id_test")])
    label = problem.label.codes[rows]
    for environment in ("none", *problem.environment.names):
        images = counterfactual(simulated, rows, environment, threads=1)
        probability = oracle.probabilities(images)
        np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
        right = (probability.argmax(axis=1) == label)[label >= 0].mean()
        assert right > 0.75, environment
    with pytest.raises(AssertionError, match="trained again"):
        oracle_of(simulated, problem, oracles, steps=60, seed=1, threads=1, quiet=True)


def test_the_oracle_learns_from_training_rows_alone(
    simulated: Screen, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def seen(screen: Screen, rows: np.ndarray, environment: str, **_: object) -> np.ndarray:
        rendered.extend(rows.tolist())
        assert environment in ("none", *problem.environment.names)
        return np.zeros((len(rows), *screen.image_shape), screen.dtype)

    monkeypatch.setattr("deconfound.counterfactuals.oracle.counterfactual", seen)
    oracle = oracle_of(simulated, problem, tmp_path, steps=1, seed=3, quiet=True)
    assert isinstance(oracle, Oracle)
    assert set(rendered) == set(problem.fold.rows("train"))


def test_what_cannot_be_judged_is_said(
    run: Path,
    simulated: Screen,
    screen: Screen,
    tmp_path: Path,
    finished_runs: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores.parquet"
    with pytest.raises(UserError, match=r"erm cannot impute images; fit one of .*toy"):
        imputation(finished_runs("erm"), simulated.path, out, quiet=True)
    with pytest.raises(UserError, match="not a simulated screen"):
        imputation(run, screen.path, out, quiet=True)
    other = SIMULATED.model_copy(update={"cells": 60})
    simulate(tmp_path / "other", config=other, threads=1, quiet=True)
    with pytest.raises(UserError, match=r"not the screen that .* was fitted on"):
        imputation(run, tmp_path / "other", out, quiet=True)
    forgotten = DATA.model_copy(update={"transform": "percentile"})
    blind = run_of("toy", simulated.path, tmp_path / "blind", forgotten)
    with pytest.raises(UserError, match="transform percentile forgets how bright"):
        imputation(blind, simulated.path, out, quiet=True)
    assert not out.exists()
    out.touch()
    with pytest.raises(SystemExit):
        cli.main(["measure", str(run), str(simulated.path), "--out", str(out)])
    assert "already exists" in capsys.readouterr().err


def test_the_verb_prints_its_scores(
    run: Path, simulated: Screen, oracles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = oracles / "said.parquet"
    words = ["measure", str(run), str(simulated.path), "--out", str(out), "--images", "5",
             "--oracle-steps", "60", "--device", "cpu", "--threads", "1"]  # fmt: skip
    cli.main(words)
    printed = capsys.readouterr().out
    scores = pd.read_parquet(out)
    assert f"{len(scores)} scores in {out}" in printed
    assert set(scores["method"]) == {"toy", ALONE, MOMENTS, EXACT}
