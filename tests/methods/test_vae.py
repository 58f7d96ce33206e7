from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from deconfound.data.loading.batch import Batch
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.methods.contract import Task
from deconfound.methods.vae import Vae, VaeOptions
from deconfound.nets import encoder, vae
from deconfound.runs.record import read_history
from deconfound.training.fit import fit

MakeConfig = Callable[..., Any]
SMALL = (32, 32, 16)
TASK = Task(channels=2, image_size=24, labels=3, environments=4)


def test_the_defaults_are_the_papers() -> None:
    options = VaeOptions()
    assert (options.encoder, options.width, options.block_size) == ("vae", 32, 64)
    assert (options.optimizer, options.weight_decay, options.kl_weight) == ("adamw", 0.01, 1)
    assert (options.skip_above, options.clip_at) == (1e12, 1e6)


def test_the_representation_is_the_posterior_mean_without_noise() -> None:
    torch.manual_seed(0)
    method = Vae(VaeOptions(width=2, block_size=4), TASK).eval()
    image = torch.randn(5, 2, 24, 24)
    larger = image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    embedded = method.embed(image)
    assert list(embedded) == ["representation"]
    seen = method.encoder(torch.nn.functional.interpolate(image, (32, 32), mode="area"))
    assert torch.equal(embedded["representation"], method.head(seen)[:, :4])
    assert method.swap(embedded["representation"], embedded["representation"]) is None
    of_48 = Vae(VaeOptions(width=2, block_size=4), Task(2, 48, 3, 4))
    assert of_48.side == 64
    assert of_48.embed(larger)["representation"].shape == (5, 4)


def test_probes_are_trained_by_themselves() -> None:
    method = Vae(VaeOptions(width=2, block_size=4, probe_learning_rate=0.5), TASK)
    bound, probes = method.stages(5)[0].phases
    assert bound.validates
    assert {id(p) for p in probes.parameters} == {id(p) for p in method.label_probe.parameters()}
    assert (probes.learning_rate, bound.learning_rate) == (0.5, 1e-3)


def test_it_learns_to_reconstruct() -> None:
    """Two kinds of profiles, far apart: one dimension has to tell them, and comes to."""
    torch.manual_seed(0)
    with patch.object(encoder, "MLP_WIDTHS", SMALL), patch.object(vae, "MLP_WIDTHS", SMALL):
        method = Vae(VaeOptions(block_size=3, learning_rate=3e-3), Task(8, None, 2, 2)).train()
    kind = torch.arange(64) % 2
    image = torch.where(kind[:, None] > 0, 2.0, -2.0) + 0.3 * torch.randn(64, 8)
    batch = Batch(image, kind, kind, torch.arange(64))
    (stage,) = method.stages(150)
    optimizers = [phase.optimizer() for phase in stage.phases]
    losses = [
        method.step(batch, stage, optimizers, lambda loss, _: loss.backward()) for _ in range(150)
    ]
    assert losses[-1]["reconstruction"] < losses[0]["reconstruction"] - 5
    method.eval()
    outputs = method.outputs(batch, stage.name)
    found = method.diagnostics(batch, outputs)
    assert found["active_units_latent"] >= 1
    assert (method.predict(outputs).argmax(dim=1) == kind).float().mean() > 0.95


@pytest.mark.parametrize(("kl_weight", "collapses"), [(1e6, True), (1e-6, False)])
def test_a_run_whose_posterior_collapsed_ends_with_one_warning(
    kl_weight: float,
    collapses: bool,
    screen: Screen,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    few = {"steps": 20, "validate_every": 20, "checkpoint_every": 20}
    options = {"kl_weight": kl_weight, "learning_rate": 0.01}
    said: list[str] = []
    config = make_config("vae", training=few, options=options)
    run = fit(config, screen.path, tmp_path / "run", quiet=True, warn=said.append)
    history = read_history(run.path / "metrics.csv")
    history = history[history["part"] == "val"].set_index("name")["value"]
    assert (history["active_units_latent"] < 1) == collapses
    assert {"kl_latent", "kl_per_dimension_latent"} <= set(history.index)
    assert history["kl_per_dimension_latent"] == pytest.approx(history["kl_latent"] / 16)
    assert len(said) == collapses
    for line in said:
        assert "posterior collapse: of 16 dimensions none of latent depends on the image" in line
        assert "\n" not in line


def test_collapse_is_told_block_by_block() -> None:
    method = Vae(VaeOptions(width=2, block_size=4), TASK)
    assert method.alarm({"active_units_a": 1.0, "loss": 0.0}) is None
    said = method.alarm({"active_units_a": 0.5, "active_units_b": 3.0, "active_units_c": 0.0})
    assert said is not None
    assert "none of a and of c depends" in said


def test_what_profiles_lack_is_refused() -> None:
    with pytest.raises(UserError, match="takes images"):
        Vae(VaeOptions(encoder="resnet18"), Task(5, None, 3, 4))
