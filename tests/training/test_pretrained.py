"""Runs whose encoder begins with the weights of others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deconfound import cli
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.embed import embed
from deconfound.errors import UserError
from deconfound.files.checksums import sha256
from deconfound.nets.encoder import build_encoder
from deconfound.runs.config import RunConfig
from deconfound.training import loop
from deconfound.training.fit import fit

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    network = build_encoder("small", 3, 24).network
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


def test_a_frozen_run_holds_the_weights_and_embeds_without_their_file(
    screen: Screen, make_config: MakeConfig, file: Path, tmp_path: Path
) -> None:
    given = load_file(file)
    options = {"weights": file, "channels_as": "sum", "tune": "frozen"}
    run = fit(make_config("erm", options=options), screen.path, tmp_path / "run", quiet=True)
    kept = load_file(run.path / "model.safetensors")
    for name, value in given.items():
        if name != "0.weight":
            assert torch.equal(kept[f"method.encoder.network.{name}"], value), name
    (about,) = json.loads((run.path / "pretrained.json").read_text())["encoders"]
    assert about["sha256"] == sha256(file)
    assert (about["tensors"], about["channels"]) == (len(given), 3)
    before = embed(run.path, screen.path, tmp_path / "a.h5ad", quiet=True)
    file.unlink()
    after = embed(run.path, screen.path, tmp_path / "b.h5ad", quiet=True)
    for name, values in before.representations.items():
        assert np.array_equal(values, after.representations[name])
    fit(make_config("erm", options=options), screen.path, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_a_killed_run_goes_on_without_the_file(
    screen: Screen, make_config: MakeConfig, file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, assert_same_run: Callable[[Path, Path], None], tune: str,
) -> None:  # fmt: skip
    options = {"weights": file, "channels_as": "repeat", "tune": tune}
    config = make_config("scbd", options=options)
    fit(config, screen.path, tmp_path / "whole", quiet=True)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(config, screen.path, tmp_path / "cut", quiet=True)
    moved = file.rename(file.with_name("moved"))
    fit(config, screen.path, tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    moved.rename(file)
    save_file({"other": torch.ones(1)}, file)
    with pytest.raises(UserError, match="began with other weights than"):
        fit(config, screen.path, tmp_path / "cut", quiet=True)


def test_weights_that_do_not_fit_leave_nothing(
    screen: Screen, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["fit", "erm", str(screen.path), "--out", str(out), "--fold", "plate=S1/P1", "--quiet"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--batch-size", "16", "--weights", str(file)])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(
        f"deconfound: {file}: its first layer takes 3 channels, and the screen has 2;"
    )
    assert "\n" not in said
    assert not (out / "config.yaml").exists()


def test_the_run_of_an_exported_program_says_which_file(
    screen: Screen, make_config: MakeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "net.pt2"

    def export(side: int) -> None:
        network = nn.Sequential(nn.Conv2d(2, 5, 3, stride=side), nn.AdaptiveMaxPool2d(1))
        flat = nn.Sequential(network, nn.Flatten()).eval()
        batch = {0: torch.export.Dim("batch", min=1, max=1024)}
        example = (torch.zeros(2, 2, 24, 24),)
        torch.export.save(torch.export.export(flat, example, dynamic_shapes=(batch,)), file)

    export(2)
    run = fit(
        make_config("erm", options={"encoder": f"torch:{file}"}),
        screen.path, tmp_path / "run", quiet=True,
    )  # fmt: skip
    made = embed(run.path, screen.path, tmp_path / "a.h5ad", quiet=True)
    assert made.representations["representation"].shape == (96, 5)
    export(3)
    with pytest.raises(UserError, match="is not the exported program that the run was trained"):
        embed(run.path, screen.path, tmp_path / "b.h5ad", quiet=True)
    file.unlink()
    with pytest.raises(UserError, match=r"net.pt2: no such exported program"):
        embed(run.path, screen.path, tmp_path / "b.h5ad", quiet=True)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("armbn", {}, "armbn trains the statistics of every batch norm; leave --weights"),
        ("dann", {"tune": "frozen"}, "and this encoder is frozen; use --tune lora or full"),
        ("mixstyle", {"channels_as": "average"}, "choose repeat or sum"),
    ],
)
def test_methods_say_what_they_cannot_do(
    screen: Screen, make_config: MakeConfig, file: Path, tmp_path: Path, method: str,
    options: dict[str, Any], message: str,
) -> None:  # fmt: skip
    config = make_config(method, options={"weights": file, "channels_as": "sum", **options})
    with pytest.raises(UserError, match=message):
        fit(config, screen.path, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("tune", ["frozen", "full", "lora"])
def test_a_transformer_of_timm_is_trained_and_embeds(
    timm: Any, screen: Screen, make_config: MakeConfig, tmp_path: Path, tune: str
) -> None:
    """On pixels in [0, 1], from weights of three channels, with a run of each kind of training."""
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), file)
    options = {
        "encoder": "timm:test_vit", "weights": file, "channels_as": "repeat", "input_size": 32,
        "tune": tune,
    }  # fmt: skip
    config = make_config("erm", options=options, data={"scaling": "unit"})
    run = fit(config, screen.path, tmp_path / "run", quiet=True)
    file.unlink()
    made = embed(run.path, screen.path, tmp_path / "a.h5ad", quiet=True)
    assert made.representations["representation"].shape == (96, 64)
