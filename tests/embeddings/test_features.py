"""features: values, cache, resumption, and errors of one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from deconfound import cli
from deconfound.data.screens import writer as writing
from deconfound.data.screens.screen import Screen
from deconfound.embeddings.features import features
from deconfound.errors import UserError
from deconfound.files import growing
from deconfound.nets.encoder import Encoder, build_encoder
from deconfound.nets.pretrained import PretrainedEncoder
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

OWN: dict[str, Any] = {"encoder": "small", "channels_as": "concatenate", "quiet": True}


@pytest.fixture
def network() -> Encoder:
    torch.manual_seed(2)
    network = build_encoder("small", 3, 24)
    network.train()(torch.rand(16, 3, 24, 24))
    return network.eval()


@pytest.fixture
def weights(network: Encoder, tmp_path: Path) -> Path:
    save_file(network.network.state_dict(), tmp_path / "own.safetensors")
    return tmp_path / "own.safetensors"


@torch.no_grad()
def expected(network: Encoder, screen: Screen) -> npt.NDArray[np.float32]:
    """By hand: each channel between its percentiles, grey, through the network; joined."""
    pixels = torch.from_numpy(screen.read(np.arange(len(screen))).astype(np.float32))
    shares = torch.tensor([0.001, 0.999])
    low, high = torch.quantile(pixels.flatten(2), shares, dim=2)[..., None, None]
    grey = ((pixels - low) / (high - low)).clamp(0, 1)
    each = [network(grey[:, [c]].expand(-1, 3, -1, -1)) for c in range(grey.shape[1])]
    return torch.cat(each, dim=1).numpy()


def test_features_are_a_screen_that_methods_train_on(
    screen: Screen, network: Encoder, weights: Path, tmp_path: Path,
    make_config: Callable[..., RunConfig],
) -> None:  # fmt: skip
    made = features(screen.path, tmp_path / "f", weights=weights, **OWN)
    assert made.channels[:2] == ("a_000", "a_001")
    assert (len(made.channels), made.roles) == (512, screen.roles)
    pd.testing.assert_frame_equal(made.table, screen.table)
    values = made.read(np.arange(len(made)))
    np.testing.assert_allclose(values, expected(network, screen), atol=2e-5)
    run = fit(make_config("erm"), made.path, tmp_path / "run", quiet=True)
    assert run.config.method == "erm"


def test_the_same_command_again_does_nothing(
    screen: Screen, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "f"
    words = ["features", str(screen.path), "--encoder", "small", "--weights", str(weights)]
    words += ["--channels-as", "average", "--out", str(out), "--quiet"]
    cli.main(words)
    assert "96 profiles of 256 features in" in capsys.readouterr().out
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}

    def forward(*_: object) -> None:
        raise AssertionError("an image was embedded again")

    monkeypatch.setattr(PretrainedEncoder, "forward", forward)
    cli.main(words)
    assert "made before, of the same images, encoder and weights" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(SystemExit) as error:
        cli.main([*words, "--transform", "none"])
    assert error.value.code == 2
    assert "features of another screen, encoder, file or option" in capsys.readouterr().err


def test_a_killed_call_goes_on(
    screen: Screen, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call embeds what the first had not marked, and the files are the same."""
    monkeypatch.setattr("deconfound.embeddings.stream.BATCH", 16)
    monkeypatch.setattr(growing, "MARK_SECONDS", 0)
    whole = features(screen.path, tmp_path / "a" / "f", weights=weights, **OWN)
    append, seen = writing.ScreenWriter.append, []

    def killed(self: writing.ScreenWriter, images: Any) -> None:
        append(self, images)
        if self.rows >= 48:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing.ScreenWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            features(screen.path, tmp_path / "b" / "f", weights=weights, **OWN)
    assert not (tmp_path / "b" / "f").exists()

    def counted(self: writing.ScreenWriter, images: Any) -> None:
        seen.append(len(images))
        append(self, images)

    monkeypatch.setattr(writing.ScreenWriter, "append", counted)
    again = features(screen.path, tmp_path / "b" / "f", weights=weights, **OWN)
    assert sum(seen) == 48
    assert again.identity == whole.identity


def test_held_out_rows_change_nothing_of_other_rows(
    screen: Screen, weights: Path, tmp_path: Path, make_screen: Callable[..., Screen]
) -> None:
    """Nothing is fitted: other pixels in some rows leave the features of all other rows."""
    images = screen.read(np.arange(len(screen)))
    images[50:] = 3 * images[50:] + 7
    other = make_screen(tmp_path / "other", images, screen.table)
    first = features(screen.path, tmp_path / "a", weights=weights, **OWN)
    second = features(other.path, tmp_path / "b", weights=weights, **OWN)
    rows = np.arange(50)
    assert np.array_equal(first.read(rows), second.read(rows))


def test_the_provenance_tells_encoder_and_weights(
    screen: Screen, weights: Path, tmp_path: Path
) -> None:
    made = features(screen.path, tmp_path / "f", weights=weights, **OWN)
    found = json.loads((made.path / "screen.json").read_text())["provenance"]
    assert (found["encoder"], found["weights"]) == ("small", "own.safetensors")
    assert found["screen_identity"] == screen.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "small has random weights; add --weights FILE, or take torch:FILE"),
        (["--weights", "none.pt"], "none.pt: no such file; expected the weights of small"),
        (["--weights", "W", "--channels-as", "mean"], "--channels-as"),
        (["--weights", "W", "--input-size", "4"], "--input-size"),
        (["--weights", "W", "--transform", "arcsinh"], "--transform"),
        (["--weights", "W"], "its first layer takes 3 channels, and the screen has 2"),
    ],
)
def test_mistakes_are_one_line(
    screen: Screen, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    out = tmp_path / "f"
    words = ["features", str(screen.path), "--encoder", "small", "--out", str(out), "--quiet"]
    with pytest.raises(SystemExit) as error:
        cli.main([*words, *(str(weights) if word == "W" else word for word in options)])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not out.exists()


def test_other_screens_are_refused(
    screen: Screen, weights: Path, tmp_path: Path, make_screen: Callable[..., Screen]
) -> None:
    wide = np.zeros((96, 2, 12, 24), dtype=np.uint8)
    wide[:, :, 2:5] = 9
    oblong = make_screen(tmp_path / "wide", wide, screen.table)
    with pytest.raises(UserError, match="12 × 24 px; expected square ones, or --input-size"):
        features(oblong.path, tmp_path / "f", weights=weights, **OWN)
    made = features(oblong.path, tmp_path / "f", weights=weights, input_size=24, **OWN)
    with pytest.raises(UserError, match="holds profiles already; expected a screen of images"):
        features(made.path, tmp_path / "g", weights=weights, **OWN)


def test_a_network_of_timm_sees_pixels_as_it_was_trained(
    timm: Any, screen: Screen, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    made = features(
        screen.path, tmp_path / "f", encoder="timm:test_resnet", quiet=True, transform="none",
        weights=tmp_path / "own.safetensors", channels_as="average", input_size=32,
    )  # fmt: skip
    pixels = torch.from_numpy(screen.read(np.arange(4)).astype(np.float32)) / 65535
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, sd = (sum(network.pretrained_cfg[name]) / 3 for name in ("mean", "std"))
    with torch.no_grad():
        grey = ((pixels - mean) / sd).unbind(1)
        each = [network(one[:, None].expand(-1, 3, -1, -1)) for one in grey]
    wanted = torch.stack(each).mean(dim=0).numpy()
    np.testing.assert_allclose(made.read(np.arange(4)), wanted, atol=1e-5)
