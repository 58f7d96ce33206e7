"""What every method in the folder promises, on a tiny screen."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deconfound import methods
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.loading.batch import Batch, BatchReader
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import PART, PREDICTED
from deconfound.methods.contract import Method, Phase, Stage, weighted_sum
from deconfound.runs.checkpoint import load_weights, weights
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runs.run import build_method, open_run
from deconfound.training.fit import fit

MakeConfig = Callable[..., RunConfig]
every_method = pytest.mark.parametrize("name", methods.names())


@pytest.fixture(params=methods.names())
def built(
    request: pytest.FixtureRequest, screen: Screen, make_config: MakeConfig
) -> tuple[Method, Batch, RunConfig, Problem, Intensity]:
    """A method with its initial weights and a batch of training rows."""
    config = make_config(request.param)
    problem = pose(screen, config.data)
    rows = problem.fold.rows("train")
    intensity = fit_intensity(screen, rows, "none", "standardise", 0)
    counts = len(problem.label.names), len(problem.environment.names)
    method = build_method(config, screen, *counts, problem.controls)
    reader = BatchReader(
        screen,
        label=problem.label.codes,
        environment=problem.environment.codes,
        intensity=intensity,
        device=torch.device("cpu"),
    )
    return method.train(), reader.read(rows[::3].copy()), config, problem, intensity


def stages_and_phases(method: Method) -> Iterator[tuple[Stage, Phase]]:
    for stage in method.stages(6):
        for phase in stage.phases:
            yield stage, phase


def test_losses_are_finite_scalars(built: tuple[Any, ...]) -> None:
    method, batch, *_ = built
    for stage, phase in stages_and_phases(method):
        method.train()
        losses = phase.losses(batch, method.outputs(batch, stage.name))
        assert losses
        for name, loss in losses.items():
            assert loss.value.shape == (), name
            assert torch.isfinite(loss.value), name


def test_a_batch_without_labels_or_environments_breaks_nothing(built: tuple[Any, ...]) -> None:
    """Both may be missing; a loss is then 0 or whatever the rest gives, never NaN."""
    method, batch, *_ = built
    missing = torch.full_like(batch.label, -1)
    half = torch.arange(len(batch)) % 2 == 0
    for label, environment in (
        (missing, missing),
        (batch.label.where(half, -1), batch.environment.where(~half, -1)),
    ):
        partial = Batch(batch.image, label, environment, batch.row)
        for stage, phase in stages_and_phases(method):
            losses = phase.losses(partial, method.outputs(partial, stage.name))
            assert all(torch.isfinite(loss.value) for loss in losses.values())


def test_gradients_of_a_phase_reach_its_own_parameters_and_no_others(
    built: tuple[Any, ...],
) -> None:
    """Off the zeros that a layer may begin with, behind which nothing has a gradient yet."""
    method, batch, *_ = built
    with torch.no_grad():
        for parameter in method.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    for stage, phase in stages_and_phases(method):
        method.train()
        own = {id(parameter) for parameter in phase.parameters}
        names, parameters = zip(*method.named_parameters(), strict=True)
        total = weighted_sum(phase.losses(batch, method.outputs(batch, stage.name)))
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            reached = gradient is not None and bool((gradient != 0).any())
            where = f"{stage.name}, {phase.name}: {name}"
            assert reached == (id(parameter) in own), where
            assert gradient is None or bool(torch.isfinite(gradient).all()), where


def test_every_parameter_is_trained_by_one_phase_of_a_stage(built: tuple[Any, ...]) -> None:
    method, *_ = built
    trained: set[int] = set()
    for stage in method.stages(6):
        own = [id(parameter) for phase in stage.phases for parameter in phase.parameters]
        assert len(own) == len(set(own))
        trained |= set(own)
    assert trained == {id(p) for p in method.parameters() if p.requires_grad}


def test_stages_are_declared_as_the_loop_needs_them(built: tuple[Any, ...]) -> None:
    method, *_ = built
    stages = method.stages(6)
    assert sum(stage.steps for stage in stages if stage.classifies) == 6
    assert len({stage.name for stage in stages}) == len(stages)
    assert not stages[0].continues
    for stage in stages:
        assert stage.steps > 0
        assert sum(phase.validates for phase in stage.phases) <= 1


def test_two_steps_move_every_phase_and_report_its_losses(built: tuple[Any, ...]) -> None:
    """Two, because the phases of an adversarial method take turns."""
    method, batch, *_ = built
    for stage in method.stages(6):
        method.train()
        before = {name: value.clone() for name, value in method.named_parameters()}
        optimizers = [phase.optimizer() for phase in stage.phases]
        for _ in range(2):
            logged = method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
        own = {id(p) for phase in stage.phases for p in phase.parameters}
        for name, value in method.named_parameters():
            assert torch.equal(before[name], value) == (id(value) not in own), name
        assert all(not value.requires_grad and torch.isfinite(value) for value in logged.values())


def test_embeddings_are_rows_of_floats_independent_of_the_batch(built: tuple[Any, ...]) -> None:
    method, batch, *_ = built
    method.eval()
    with torch.no_grad():
        embedded = method.embed(batch.image)
        alone = method.embed(batch.image[:2])
    assert "representation" in embedded
    for name, values in embedded.items():
        assert values.ndim == 2, name
        assert len(values) == len(batch), name
        assert values.dtype == torch.float32, name
        torch.testing.assert_close(alone[name], values[:2], rtol=1e-4, atol=1e-5)


def test_predictions_have_a_column_for_every_label(built: tuple[Any, ...]) -> None:
    method, batch, _, problem, _ = built
    method.eval()
    with torch.no_grad():
        from_embedding = method.predict(method.embed(batch.image))
        from_outputs = method.predict(method.outputs(batch, method.stages(6)[0].name))
    if from_embedding is None:
        assert from_outputs is None
        return
    assert from_embedding.shape == (len(batch), len(problem.label.names))
    torch.testing.assert_close(from_embedding, from_outputs)


def test_a_saved_method_loads_with_equal_embeddings(
    built: tuple[Any, ...], screen: Screen, tmp_path: Path
) -> None:
    method, batch, config, problem, intensity = built
    stage = method.stages(6)[0]
    optimizers = [phase.optimizer() for phase in stage.phases]
    method.step(batch, stage, optimizers, lambda loss, _: loss.backward())
    method.eval()
    save_file(weights(method, intensity), tmp_path / "model.safetensors")
    other = config.model_copy(update={"seed": config.seed + 1})
    loaded = build_method(other, screen, len(problem.label.names), len(problem.environment.names))
    scaling = Intensity(2, "none")
    with torch.no_grad():
        expected = method.embed(batch.image)
        assert not torch.equal(
            loaded.eval().embed(batch.image)["representation"], expected["representation"]
        )
        load_weights(tmp_path / "model.safetensors", loaded, scaling)
        found = loaded.embed(batch.image)
    for name, values in expected.items():
        assert torch.equal(found[name], values), name
    assert torch.equal(scaling.offset, intensity.offset)
    assert torch.equal(scaling.scale, intensity.scale)


def test_initial_weights_depend_on_the_seed_alone(built: tuple[Any, ...], screen: Screen) -> None:
    _, _, config, problem, _ = built
    counts = len(problem.label.names), len(problem.environment.names)
    torch.manual_seed(1)
    first = build_method(config, screen, *counts).state_dict()
    torch.manual_seed(2)
    again = build_method(config, screen, *counts).state_dict()
    other = build_method(config.model_copy(update={"seed": 9}), screen, *counts).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_method
def test_no_held_out_label_or_pixel_is_read(
    name: str,
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Everything a run writes is the same when held-out pixels and labels are noise."""
    part = pose(screen, make_config(name).data).fold.part
    stream = np.random.default_rng(7)
    images = screen.read(np.arange(len(screen)))
    hidden = np.isin(part, ["test", "id_test", "unused"])
    images[hidden] = stream.integers(0, 60_000, images[hidden].shape)
    table = screen.table.copy()
    noise = stream.choice(["c0", "c1", "c2", "unheard of"], (part == "test").sum())
    table.loc[part == "test", "compound"] = noise
    mutated = make_screen(tmp_path / "mutated", images, table)
    assert mutated.identity != screen.identity
    np.testing.assert_array_equal(pose(mutated, make_config(name).data).fold.part, part)

    run = finished_runs(name)
    again = fit(make_config(name), mutated.path, tmp_path / "run", quiet=True).path
    files = [file.name for file in run.iterdir() if file.suffix == ".safetensors"]
    for file in [*files, "metrics.csv", "selection.json", "classes.json"]:
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.parametrize(
    ("part", "what", "changes"),
    [
        ("test", "pixels", True),
        ("test", "labels", False),
        ("id_test", "pixels", False),
    ],
)
def test_domain_adaptation_reads_pixels_of_test_rows_and_nothing_else(
    part: str,
    what: str,
    changes: bool,
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """The one exception to the test before: a run that was asked by name to see them."""
    config = make_config("mixstyle", options={"domain_adaptation": True, "mix_probability": 1.0})
    parts = pose(screen, config.data).fold.part
    inside = parts == part
    assert inside.any()
    stream = np.random.default_rng(7)
    images, table = screen.read(np.arange(len(screen))), screen.table.copy()
    if what == "pixels":
        images[inside] = stream.integers(0, 60_000, images[inside].shape)
    else:
        table.loc[inside, "compound"] = stream.choice(["c0", "c1", "new"], inside.sum())
    mutated = make_screen(tmp_path / "mutated", images, table)
    np.testing.assert_array_equal(pose(mutated, config.data).fold.part, parts)
    first = fit(config, screen.path, tmp_path / "first", quiet=True).path
    again = fit(config, mutated.path, tmp_path / "again", quiet=True).path
    same = (first / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert same != changes


def test_training_pixels_are_read(
    screen: Screen,
    make_config: MakeConfig,
    make_screen: Callable[..., Screen],
    finished_runs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The control of the test before: noise on training rows does change the run."""
    part = pose(screen, make_config("erm").data).fold.part
    images = screen.read(np.arange(len(screen)))
    images[part == "train"] = images[part == "train"][::-1]
    trained_otherwise = make_screen(tmp_path / "other", images, screen.table)
    other = fit(make_config("erm"), trained_otherwise.path, tmp_path / "run", quiet=True).path
    run = finished_runs("erm")
    assert (other / "metrics.csv").read_bytes() != (run / "metrics.csv").read_bytes()


@every_method
def test_another_screen_can_be_embedded(
    name: str,
    finished_runs: Callable[[str], Path],
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., npt.NDArray[np.uint16]],
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    table = make_table(2)
    table["compound"] = "never seen"
    table["plate"] = "new"
    images = make_images(make_table(2), seed=3)
    other = make_screen(tmp_path / "other", images, table)
    run = finished_runs(name)
    found = embed(run, other.path, tmp_path / "e.h5ad", device="cpu", threads=1, quiet=True)
    assert (found.table[PART].astype(str) == "new").all()
    predicted = found.table[PREDICTED].dropna()
    assert set(predicted) <= set(open_run(run).labels)
    method, intensity = open_run(run).load(other)
    if method.context is not None:
        method.train()  # the batch is the whole environment
    with torch.inference_mode():
        expected = method.embed(intensity(torch.from_numpy(images)))
    for representation, values in expected.items():
        rows = found.representations[representation]
        assert rows.shape == values.shape
        torch.testing.assert_close(torch.from_numpy(rows), values, rtol=1e-4, atol=1e-5)


@every_method
def test_a_configuration_survives_its_file(
    name: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    for number, config in enumerate(
        (
            make_config(name),
            make_config(name, seed=3, options={"learning_rate": 1.5e-7, "weight_decay": 0.0},
                        data={"environment": ("plate", "section"), "transform": "arcsinh"},
                        training={"threads": None, "selection": "accuracy"}),
        )
    ):  # fmt: skip
        file = tmp_path / f"{number}.yaml"
        file.write_text(dump_config(config))
        for found in (read_config(file), read_config(file, name)):
            assert found.model_dump() == config.model_dump()
            assert type(found.options) is type(config.options)


@every_method
def test_methods_say_what_they_are(name: str) -> None:
    method = methods.load(name)
    assert method.SUMMARY
    assert "\n" not in method.SUMMARY
    assert method.PAPER
    for option, field in method.Options.model_fields.items():
        assert field.description, f"--{option} has no help"


@every_method
def test_the_selected_checkpoint_is_the_model(
    name: str, finished_runs: Callable[[str], Path], screen: Screen
) -> None:
    run = open_run(finished_runs(name))
    chosen = load_file(run.path / "model.safetensors")
    default, _ = run.load(screen)
    *_, classifying = (stage for stage in default.stages(6) if stage.classifies)
    selection = run.config.training.selection if classifying.selects else "last"
    named = run.load(screen, selection)[0]
    assert all(torch.equal(chosen[f"method.{k}"], v) for k, v in default.state_dict().items())
    own = method_parameters(default, classifying)
    assert own
    assert all(torch.equal(value, named.state_dict()[key]) for key, value in own.items())


def method_parameters(method: Method, stage: Stage) -> dict[str, nn.Parameter]:
    own = {id(parameter) for phase in stage.phases for parameter in phase.parameters}
    return {name: value for name, value in method.named_parameters() if id(value) in own}


def test_the_tiny_screen_is_whole(screen: Screen) -> None:
    open_screen(screen.path).check()
