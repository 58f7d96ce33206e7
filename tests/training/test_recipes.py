"""The recipe of an experiment that needs a GPU, taken through its first steps on a processor."""

from pathlib import Path

import numpy as np
import pytest

from deconfound import cli
from deconfound.runs.config import read_config
from deconfound.runs.record import read_history

FUNK22 = Path(__file__).parents[2] / "recipes" / "scbd" / "funk22_paper.yaml"


def test_the_recipe_of_funk22_is_section_4_2_of_the_paper() -> None:
    config = read_config(FUNK22)
    training, options = config.training, config.options
    said = {
        "steps": training.steps,
        "classes": training.classes_per_batch,
        "images of each": training.batch_size // training.classes_per_batch,
        "sampler": training.sampler,
        "selection": training.selection,
        "precision": training.precision,
        "alpha": options.alpha,  # type: ignore[attr-defined]
        "temperature": options.temperature,  # type: ignore[attr-defined]
        "encoder": options.encoder,  # type: ignore[attr-defined]
        "z": options.block_size,  # type: ignore[attr-defined]
        "rate": options.learning_rate,
        "decay": options.weight_decay,
        "optimizer": options.optimizer,
    }
    assert said == {
        "steps": 150_000, "classes": 256, "images of each": 8, "sampler": "label_balanced",
        "selection": "loss", "precision": "32", "alpha": 1, "temperature": 0.1,
        "encoder": "resnet18", "z": 64, "rate": 1e-4, "decay": 0.01, "optimizer": "adamw",
    }  # fmt: skip


def test_the_recipe_of_funk22_runs_20_steps_on_a_simulated_pooled_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, at 64 pixels and with ResNet-18, but for the length and the batch."""
    screen, run = tmp_path / "screen", tmp_path / "run"
    cli.main([
        "simulate", "--out", str(screen), "--layout", "ops", "--size", "64", "--cells", "160",
        "--genes", "12", "--complexes", "3", "--plates", "2", "--wells", "4", "--dtype", "uint16",
        "--quiet",
    ])  # fmt: skip
    cli.main([
        "fit", "scbd", str(screen), "--out", str(run), "--config", str(FUNK22), "--device", "cpu",
        "--threads", "1", "--steps", "20", "--batch-size", "4", "--classes-per-batch", "2",
        "--quiet",
    ])  # fmt: skip
    config, recipe = read_config(run / "config.yaml"), read_config(FUNK22)
    shorter = {"device": "cpu", "threads": 1, "steps": 20, "batch_size": 4, "classes_per_batch": 2}
    assert config.training == recipe.training.model_copy(update=shorter)
    assert (config.options, config.data) == (recipe.options, recipe.data)
    history = read_history(run / "metrics.csv")
    assert np.isfinite(history["value"]).all()
    assert history.loc[history["part"] == "train", "step"].max() == 20
    capsys.readouterr()
