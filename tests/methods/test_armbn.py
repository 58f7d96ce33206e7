"""ARM-BN and CS-ARM-BN: episodes in training, what a step sees, and what is refused."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from deconfound.data.folds.problem import pose
from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.errors import InputWarning, UserError
from deconfound.methods.armbn import ArmBn, ArmBnOptions
from deconfound.methods.contract import Task
from deconfound.nets.context import ContextNorm
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

MakeConfig = Callable[..., RunConfig]
DATA = {"environment": ("series", "plate"), "id_test_fraction": 0}
CS = {**DATA, "controls": ("c0",)}


def given(name: str) -> dict[str, Any]:
    return CS if name == "csarmbn" else DATA


def watched(
    config: RunConfig, screen: Screen, out: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Batch, bool]]:
    """The batches of a run that `outputs` gets, and whether they are of training."""
    seen: list[tuple[Batch, bool]] = []
    outputs = ArmBn.outputs

    def watch(self: ArmBn, batch: Batch, stage: str) -> dict[str, torch.Tensor]:
        seen.append((batch, self.training))
        return outputs(self, batch, stage)

    monkeypatch.setattr(ArmBn, "outputs", watch)
    fit(config, screen.path, out, quiet=True)
    yield from seen


def test_a_step_holds_episodes_of_one_environment_each(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"episodes": 2}
    config = make_config("armbn", data=DATA, options=options, training={"batch_size": 17})
    problem = pose(screen, config.data)
    drawn = set()
    for batch, trains in watched(config, screen, tmp_path / "run", monkeypatch):
        if trains:
            first, second = batch.environment.view(2, 8).unique(dim=1).T.squeeze().tolist()
            drawn |= {first, second}
            assert first != second
            assert set(problem.fold.part[batch.row.numpy()]) == {"train"}
            assert (batch.label >= 0).all()
    assert drawn == {0, 1, 2}


def test_controls_of_its_environment_join_an_episode_without_a_label(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"episodes": 2, "controls_per_episode": 3}
    config = make_config("csarmbn", data=CS, options=options, training={"batch_size": 16})
    steps = 0
    for batch, trains in watched(config, screen, tmp_path / "run", monkeypatch):
        if not trains:
            assert (batch.label >= 0).all()
            continue
        steps += 1
        assert len(batch) == 2 * 8 + 2 * 3
        own, joined = batch.environment[:16].view(2, 8), batch.environment[16:].view(2, 3)
        assert torch.equal(own[:, :3], joined)
        assert (batch.label[:16] >= 0).all()
        assert (batch.label[16:] == -1).all()
        rows = batch.row[16:].numpy()
        assert set(screen.table["compound"].iloc[rows]) == {"c0"}
        assert set(pose(screen, config.data).fold.part[rows]) == {"train"}
    assert steps == 6


def test_the_statistics_of_a_step_are_those_of_episode_and_controls_by_hand(
    screen: Screen, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first norm of the encoder, from the maps that the convolution before it makes."""
    options = {"episodes": 2, "controls_per_episode": 3}
    config = make_config("csarmbn", data=CS, options=options, training={"batch_size": 16})
    seen: list[torch.Tensor] = []
    maps: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = ContextNorm.forward

    def watch(self: ContextNorm, input: torch.Tensor) -> torch.Tensor:
        out = forward(self, input)
        if self.training and self is self.context.norms[0] and self.context.environment is not None:
            maps.append((input.detach(), out.detach().clone()))  # ReLU writes in place
            seen.append(self.context.environment)
        return out

    monkeypatch.setattr(ContextNorm, "forward", watch)
    fit(config, screen.path, tmp_path / "run", quiet=True)
    image, out = maps[0]  # weights are 1 and 0 before the first step
    assert len(image) == 22
    for first, joined in ((0, 16), (8, 19)):
        rows = [*range(first, first + 8), *range(joined, joined + 3)]
        expected = functional.batch_norm(image[rows], None, None, training=True)
        torch.testing.assert_close(out[rows], expected, rtol=1e-4, atol=1e-4)
    assert len(set(seen[0].tolist())) == 2


def test_controls_change_the_loss_by_the_statistics_alone() -> None:
    task = Task(2, 24, 3, 2)
    method = ArmBn(ArmBnOptions(), task).train()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(12, 2, 24, 24, generator=generator)
    environment = torch.tensor([0] * 4 + [1] * 4 + [0] * 2 + [1] * 2)
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1, -1, -1, -1])
    batch = Batch(image, label, environment, torch.arange(12))
    loss = method._losses(batch, method.outputs(batch, ""))["cross_entropy"].value
    logits = method.predict(method.outputs(batch, ""))
    torch.testing.assert_close(loss, functional.cross_entropy(logits[:8], label[:8]))
    fewer = Batch(image[:8], label[:8], environment[:8], torch.arange(8))
    other = method._losses(fewer, method.outputs(fewer, ""))["cross_entropy"].value
    assert not torch.allclose(loss, other)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_a_norm_without_batch_statistics_is_refused(norm: str) -> None:
    with pytest.raises(
        UserError, match=rf"^--norm {norm} has no statistics of a batch, .*--norm b"
    ):
        ArmBn(ArmBnOptions(norm=norm), Task(2, 24, 3, 2))  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_before_anything_is_written(
    screen: Screen, make_screen: Callable[..., Screen], make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    small = make_config("armbn", data=DATA, training={"batch_size": 5})
    with pytest.raises(UserError, match="--batch-size 5: 3 episodes need two images each or more"):
        fit(small, screen.path, out, quiet=True)
    unknown = make_config("csarmbn", data={"controls": ()})
    with pytest.raises(UserError, match="mark them, or use the method armbn, which needs none"):
        fit(unknown, screen.path, out, quiet=True)
    table = screen.table.copy()
    lacking = ((table["series"] == "S2") & (table["plate"] == "P1")).to_numpy()
    table.loc[lacking & (table["compound"] == "c0"), "compound"] = "c1"
    other = make_screen(tmp_path / "s", screen.read(np.arange(len(screen))), table, screen.roles)
    with pytest.raises(UserError, match="csarmbn: training has no negative control of S2/P1; choo"):
        fit(make_config("csarmbn", data=CS), other.path, out, quiet=True)
    assert not out.exists()


def test_imputed_images_are_refused(
    source: Path, screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("armbn").model_copy(
        update={"intervention": make_config("erm").intervention.model_copy(
            update={"intervene": source})}
    )  # fmt: skip
    with pytest.raises(
        UserError, match="of no environment of their own, and armbn takes its batch"
    ):
        fit(config, screen.path, tmp_path / "run", quiet=True)


def test_few_training_rows_are_told_once(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("armbn", data={"environment": ("series", "plate", "section")})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(config, screen.path, tmp_path / "run", quiet=True)
    said = [str(one.message) for one in caught if issubclass(one.category, InputWarning)]
    assert len(said) == 1
    assert "fewer than 16 training rows for batch statistics of S1/P2/A (" in said[0]
    assert said[0].endswith("in validation and embedding those of all training rows stand in")


@pytest.mark.parametrize("name", ["armbn", "csarmbn"])
def test_profiles_train_too(
    name: str,
    make_table: Callable[..., pd.DataFrame],
    make_screen: Callable[..., Screen],
    make_config: MakeConfig,
    screen: Screen,
    tmp_path: Path,
) -> None:
    table = make_table(6)
    values = np.random.default_rng(0).normal(size=(len(table), 6)).astype(np.float32)
    profiles = make_screen(tmp_path / "s", values, table, screen.roles)
    assert profiles.holds_profiles
    run = fit(make_config(name, data=given(name)), profiles.path, tmp_path / "run", quiet=True)
    method, _ = run.load(profiles)
    assert method.context is not None
    assert len(method.context.norms) == 3
    assert all((norm.means[:-1] != norm.means[-1]).any() for norm in method.context.norms)


def test_a_configuration_is_called_by_what_it_sees(make_config: MakeConfig) -> None:
    for name in ("armbn", "csarmbn"):
        config = make_config(name)
        assert config.title == f"{name}-da"
        assert config.held_out_notes == [
            "batch statistics of unseen environments taken over images of test rows"
        ]
    assert make_config("erm").held_out_notes == []
