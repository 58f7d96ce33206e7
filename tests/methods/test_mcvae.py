from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.methods.mcvae import Mcvae, McvaeOptions
from deconfound.nets import encoder, vae
from deconfound.runs.run import open_run
from deconfound.training.batches import sampler_of
from deconfound.training.fit import fit

MakeConfig = Callable[..., Any]
CONTROL = 0
SMALL = (32, 32, 16)


def profiles(rows: int = 90) -> Batch:
    """All cells vary in four features; labels 1 and 2 shift the other four, each to its side."""
    torch.manual_seed(1)
    label = torch.arange(rows) % 3
    shift = torch.tensor([0.0, 3.0, -3.0])[label]
    cell = torch.randn(rows, 1) * 2
    image = torch.cat([cell.expand(-1, 4), shift[:, None].expand(-1, 4)], dim=1)
    return Batch(
        image + 0.3 * torch.randn(rows, 8), label, torch.arange(rows) % 2, torch.arange(rows)
    )


@pytest.fixture(scope="module", autouse=True)
def _small_perceptrons() -> Iterator[None]:
    with patch.object(encoder, "MLP_WIDTHS", SMALL), patch.object(vae, "MLP_WIDTHS", SMALL):
        yield


@torch.enable_grad()
def trained(batch: Batch, **options: Any) -> Mcvae:
    torch.manual_seed(0)
    given = {"block_size": 2, "learning_rate": 1e-2, "environment_size": 3} | options
    method = Mcvae(McvaeOptions(**given), Task(8, None, 3, 2, (CONTROL,))).train()
    (stage,) = method.stages(150)
    optimizers = [phase.optimizer() for phase in stage.phases]
    for _ in range(150):
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    return method.eval()


@pytest.fixture(scope="module")
def penalised() -> Mcvae:
    return trained(profiles())


@torch.no_grad()
def test_the_salient_block_is_inactive_on_controls_alone(penalised: Mcvae) -> None:
    """And without the penalty it is not: the background of a control reaches it as any other's."""
    batch = profiles()
    control = batch.label == CONTROL
    length = {}
    for weight, method in ((8.0, penalised), (0.0, trained(batch, wasserstein_weight=0))):
        embedded = method.embed(batch.image)
        of_salient = embedded["content"].square().sum(dim=1)
        length[weight] = float(of_salient[control].mean() / of_salient[~control].mean())
        assert embedded["style"][control].var(dim=0).max() > 0.1
    assert length[8.0] < 0.05
    assert length[0.0] > 3 * length[8.0]


@torch.no_grad()
def test_what_is_embedded_and_drawn(penalised: Mcvae) -> None:
    batch, method = profiles(), penalised
    embedded = method.embed(batch.image)
    both = torch.cat([embedded["content"], embedded["style"]], dim=1)
    assert torch.equal(embedded["representation"], both)
    assert (method.predict(embedded).argmax(dim=1) == batch.label).float().mean() > 0.7
    drawn = method.swap(embedded["content"], embedded["style"])
    assert (drawn - batch.image).square().mean() < 0.3 * batch.image.var()
    # A control's background with the salient block of a perturbation looks perturbed.
    perturbed, control = embedded["content"][1:2], embedded["style"][batch.label == CONTROL]
    moved = method.swap(perturbed.expand(len(control), -1), control)
    assert moved[:, 4:].mean() > 2


def test_the_ramp_rises_stays_and_begins_again() -> None:
    method = Mcvae(McvaeOptions(ramp_steps=4), Task(8, None, 3, 2, (CONTROL,)))
    method.stages(100)
    found = []
    for _ in range(10):
        found.append(method._share())
        method.updates += 1
    assert found == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.25, 0.5]
    whole = Mcvae(McvaeOptions(), Task(8, None, 3, 2, (CONTROL,)))
    whole.stages(6)
    assert whole._share() == pytest.approx(1 / 3)


def test_without_an_environment_vector_the_decoder_is_told_nothing() -> None:
    method = Mcvae(McvaeOptions(environment_size=0, block_size=2), Task(8, None, 3, 2, (CONTROL,)))
    assert method.environment is None
    assert method.swap(torch.zeros(5, 2), torch.zeros(5, 2)).shape == (5, 8)


def test_half_of_what_training_draws_are_controls(screen: Screen, make_config: MakeConfig) -> None:
    config = make_config("mcvae", training={"batch_size": 60})
    problem = pose(screen, config.data)
    counts = len(problem.label.names), len(problem.environment.names)
    method = Mcvae(config.options, Task(2, 24, *counts, problem.controls))
    sampler = sampler_of(config, problem, "train", method.stages(6)[0])
    rows = torch.cat([torch.from_numpy(sampler.rows(step)) for step in range(20)])
    share = (problem.label.codes[rows] == CONTROL).mean()
    assert 0.45 < share < 0.55
    known = problem.label.codes[problem.fold.rows("train")]
    assert (known == CONTROL).mean() < 0.4


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ((), "no label is a control: .*; name the controls with --controls LABEL"),
        (("c0", "c1", "c2"), "every label of training is a control; name fewer"),
        (("C0",), "--controls C0: no training row has this label; did you mean 'c0'?"),
    ],
)
def test_controls_that_cannot_be_are_refused_in_one_line(
    controls: tuple[str, ...],
    said: str,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    config = make_config("mcvae", data={"controls": controls})
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as error:
        fit(config, screen.path, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_knows_its_controls(
    finished_runs: Callable[[str], Path], screen: Screen
) -> None:
    method, _ = open_run(finished_runs("mcvae")).load(screen)
    assert isinstance(method, Mcvae)
    assert method.is_control.tolist() == [True, False, False]
