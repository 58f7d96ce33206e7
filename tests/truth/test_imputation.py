"""Cells whose true images in other environments are known: IST's objective, and what it leaves.

The objective of the generator must prefer the true image to the image left alone, or training leads
away from it. Images that were imputed must not say where they were taken, or a predictor trained on
them still learns it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deconfound.arrays import Images, Rows
from deconfound.config import DataOptions, TrainingOptions
from deconfound.counterfactuals.cells import Interventions, interventions
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.data.simulation.simulate import SimulateConfig, simulate
from deconfound.intervention.styles import source_styles_of, styles_anywhere
from deconfound.methods.contract import Loss, weighted_sum
from deconfound.methods.ist import Ist, IstOptions
from deconfound.runs.config import config_model
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

CELLS = 360


class Known:
    """A finished run of `ist`, and training cells with their true images in other environments."""

    def __init__(self, folder: Path) -> None:
        config = SimulateConfig(cells=1600, size=24, labels=6, plates=1, sections=1, seed=7)
        path = simulate(folder / "screen", config=config, quiet=True).path
        data = DataOptions(fold="Metadata_Series=S2")
        training = TrainingOptions(
            steps=60, batch_size=64, validate_every=60, checkpoint_every=60, device="cpu",
            precision="32", threads=1,
        )  # fmt: skip
        options = IstOptions(transfer_steps=40, learning_rate=0.002)
        made = config_model("ist")(method="ist", data=data, training=training, options=options)
        self.run = open_run(fit(made, path, folder / "ist", quiet=True).path)
        self.screen: Screen = open_screen(path)
        self.problem: Problem = pose(self.screen, data)
        method, self.intensity = self.run.load(self.screen)
        assert isinstance(method, Ist)
        self.method: Ist = method.eval()
        self.drawn: Interventions = interventions(self.screen, self.problem, "train", CELLS, 0, 8)
        self.alone: Images = self.screen.read(self.drawn.rows)
        self.true: Images = np.empty_like(self.alone)
        for name in np.unique(self.drawn.rendering):
            places = np.flatnonzero(self.drawn.rendering == name)
            self.true[places] = counterfactual(self.screen, self.drawn.rows[places], str(name))
        self.series: Rows = np.unique(
            self.screen.table["Metadata_Series"].iloc[self.drawn.rows], return_inverse=True
        )[1]

    def scaled(self, pixels: Images) -> Tensor:
        found: Tensor = self.intensity(torch.from_numpy(pixels))
        return found

    @torch.no_grad()
    def imputed(self) -> Tensor:
        styles = styles_anywhere(self.run, self.screen, self.method, self.intensity)
        means = source_styles_of(self.run, self.screen, styles, "controls", 0)
        names = [self.problem.environment.names[code] for code in self.drawn.environment]
        source = means.of(torch.from_numpy(self.drawn.rows))
        return self.method.impute(self.scaled(self.alone), means.of_names(names), source)

    @torch.no_grad()
    def source_read(self, image: Tensor) -> float:
        """How often ridge regression on the encoder's features names the series of other cells."""
        features = self.method.encoder(image).pooled.double()
        features = (features - features.mean(dim=0)) / features.std(dim=0)
        series = torch.from_numpy(self.series)
        wanted = torch.nn.functional.one_hot(series).double()
        first = torch.arange(CELLS) % 2 == 0
        right = torch.zeros(CELLS, dtype=torch.bool)
        for train in (first, ~first):
            own = features[train]
            ridge = own.T @ own + 30 * torch.eye(own.shape[1], dtype=own.dtype)
            weight = torch.linalg.solve(ridge, own.T @ (wanted[train] - wanted[train].mean(dim=0)))
            read = features[~train] @ weight + wanted[train].mean(dim=0)
            right[~train] = read.argmax(dim=1) == series[~train]
        return float(right.double().mean())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return Known(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def objectives(known: Known) -> dict[str, dict[str, Loss]]:
    """The generator's losses at the true image, the image left alone, and the closed form."""
    method, drawn = known.method, known.drawn
    styles = [known.screen.read(rows) for rows in drawn.style.T]
    image = known.scaled(np.concatenate([known.alone, *styles]))
    code = known.problem.environment.codes
    rows = np.concatenate([drawn.rows, drawn.style.T.ravel()])
    label = torch.from_numpy(known.problem.label.codes[rows])
    batch = Batch(
        image, label, torch.from_numpy(code[rows]), torch.from_numpy(rows),
        partners=len(image) - CELLS,
    )  # fmt: skip
    _, stage = method.stages(1)
    generator = stage.phases[1]
    with torch.no_grad():
        outputs = method.outputs(batch, "transfer")
        shown = {
            "true": known.scaled(known.true),
            "alone": known.scaled(known.alone),
            "closed form": outputs["content"],
        }
        return {
            name: generator.losses(batch, outputs | {"drawn": one}) for name, one in shown.items()
        }


def test_the_objective_prefers_the_true_image(objectives: dict[str, dict[str, Loss]]) -> None:
    at = {name: float(weighted_sum(losses)) for name, losses in objectives.items()}
    assert at["true"] < at["alone"] - 0.1


def test_what_asks_for_change_prefers_the_true_image_to_the_closed_form(
    objectives: dict[str, dict[str, Loss]],
) -> None:
    """The distances to the closed form, with which the generator begins, cannot rank these."""
    at = {
        name: float(sum(losses[one].value for one in ("adversarial", "style", "source")))
        for name, losses in objectives.items()
    }
    assert at["true"] < at["closed form"] - 0.1
    assert at["closed form"] < at["alone"] - 0.5


def test_imputed_images_do_not_say_where_they_were_taken(known: Known) -> None:
    alone, true = (known.source_read(known.scaled(one)) for one in (known.alone, known.true))
    imputed = known.source_read(known.imputed())
    assert alone > 0.9
    assert true < 0.6
    assert imputed < true + 0.1


def test_imputed_images_are_near_the_true_ones(known: Known) -> None:
    imputed = known.intensity.inverse(known.imputed()).numpy()
    true = known.true.astype(np.float64)
    left = np.abs(known.alone - true).sum()
    assert np.abs(np.clip(imputed, 0, 255) - true).sum() < 0.5 * left
