"""A screen imputed into one environment."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconfound import cli, open_screen
from deconfound.counterfactuals import impute as impute_module
from deconfound.counterfactuals import pictures
from deconfound.counterfactuals.impute import impute, stored
from deconfound.counterfactuals.pictures import Landing
from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig
from deconfound.training.fit import fit

Pixels = np.ndarray[Any, Any]


def stained(table: pd.DataFrame, images: Pixels) -> Pixels:
    """Images of plate P2 three times as bright."""
    factor = np.where(table["plate"] == "P2", 3, 1)[:, None, None, None]
    return (images * factor).astype(np.uint16)


@pytest.fixture(scope="module", autouse=True)
def _plain_map() -> Iterator[None]:
    """Two of the dimensions in place of UMAP, which takes half a minute to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "coordinates", lambda values, _: values[:, :2])
        yield


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("draw_imputed", "draw_landing"):
        monkeypatch.setattr(impute_module, name, lambda *_, **__: None)


@pytest.fixture(scope="module")
def plates(
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., Pixels],
    make_screen: Callable[..., Screen],
    tmp_path_factory: pytest.TempPathFactory,
) -> Screen:
    """The tiny screen with plates that differ in brightness."""
    table = make_table()
    images = stained(table, make_images(table))
    return make_screen(tmp_path_factory.mktemp("plates") / "plates", images, table)


@pytest.fixture(scope="module")
def run(
    restain: str,
    plates: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    config = make_config(restain)
    return fit(config, plates.path, tmp_path_factory.mktemp("run") / "run", quiet=True).path


@pytest.fixture(scope="module")
def imputed(run: Path, plates: Screen, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("imputed") / "out"
    return impute(run, plates.path, out, to="P2", quiet=True)


def restained(content: Pixels, style: Pixels) -> Pixels:
    """The oracle, in stored units: the toy and the scaling of pixels are affine."""
    axes = (2, 3)
    content, style = content.astype(np.float64), style.astype(np.float64)
    scaled = content - content.mean(axis=axes, keepdims=True)
    scaled /= content.std(axis=axes, ddof=1, keepdims=True)
    spread = style.std(axis=axes, ddof=1, keepdims=True)
    return scaled * spread + style.mean(axis=axes, keepdims=True)


def test_images_get_the_style_of_training_rows_of_the_target(
    imputed: Any, plates: Screen, make_config: Callable[..., RunConfig]
) -> None:
    every = np.arange(len(plates))
    np.testing.assert_array_equal(imputed.rows, every)
    part = pose(plates, make_config("erm").data).fold.part
    assert set(part[imputed.style_rows]) == {"train"}
    assert set(plates.table["plate"][imputed.style_rows]) == {"P2"}
    assert len(set(imputed.style_rows)) > 8
    expected = restained(plates.read(every), plates.read(imputed.style_rows))
    found = imputed.screen.read(every)
    assert found.dtype == plates.dtype == np.uint16
    assert np.abs(np.clip(expected, 0, 65535) - found).max() <= 1
    beyond = (expected < -0.5) | (expected > 65535.5)
    assert beyond.any()
    assert imputed.clipped == pytest.approx(beyond.mean(), rel=0.02)


def test_the_screen_is_whole_and_says_where_it_is_from(
    imputed: Any, plates: Screen, run: Path
) -> None:
    screen = imputed.screen
    screen.check()
    assert screen.channels == plates.channels
    assert screen.roles == plates.roles
    assert (screen.table["deconfound_imputed_to"] == "P2").all()
    np.testing.assert_array_equal(screen.table["deconfound_source_row"], imputed.rows)
    pd.testing.assert_frame_equal(screen.table[plates.table.columns], plates.table)
    said = screen.provenance
    assert (said["run"], said["imputed_to"]) == (run.name, "P2")
    assert said["source_identity"] == plates.identity
    sums = json.loads((run / "checksums.json").read_text())
    assert said["model_sha256"] == sums["model.safetensors"]


def test_imputed_cells_land_on_the_target(imputed: Any, plates: Screen) -> None:
    shares = imputed.landing.shares()
    assert shares["originals"] == 0.0
    assert shares["imputed"] > 0.95
    assert 0.0 < shares["chance"] < 0.5
    source = plates.table["plate"] != "P2"
    assert len(imputed.landing.originals) == source.sum()
    assert set(imputed.landing.environments) == {"P1"}
    folder = imputed.screen.path.parent
    about = json.loads((folder / "imputed.json").read_text())
    assert about["neighbors_of_target"] == shares
    assert about["clipped"] == imputed.clipped
    for name in ("transfer.png", "umap.png"):
        picture = np.asarray(Image.open(folder / name))
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
    assert {file.name for file in folder.iterdir()} == {
        "imputed", "imputed.json", "transfer.png", "umap.png",
    }  # fmt: skip


def test_shares_are_those_counted_by_hand() -> None:
    """On a line: originals at 0 … 4, target at 10 … 14, imputed where they were, or on target."""
    line = np.arange(5, dtype=np.float32)[:, None]
    names = ("a",) * 5
    unmoved = Landing(line, line + 0.1, line + 10, names).shares()
    assert unmoved["neighbors"] == 5
    assert unmoved["imputed"] == 0.0
    assert unmoved["originals"] == pytest.approx(1 / 5)  # its own left out
    assert unmoved["chance"] == 0.5
    moved = Landing(line, line + 10.1, line + 10, names).shares()
    assert moved["imputed"] == 1.0
    between = Landing(line, line + 5.1, line[:3] + 10, names).shares()
    assert between["neighbors"] == 3
    assert between["imputed"] == pytest.approx(9 / 15)  # 0, 1, 2, 3 and 3 of 3, by hand


@pytest.mark.usefixtures("_undrawn")
def test_some_images_of_another_screen(
    run: Path,
    plates: Screen,
    make_table: Callable[..., pd.DataFrame],
    make_images: Callable[..., Pixels],
    make_screen: Callable[..., Screen],
    tmp_path: Path,
) -> None:
    """Styles come from the run's own screen, which must be where it was."""
    table = make_table(2).assign(plate="P9")
    other = make_screen(tmp_path / "other", make_images(make_table(2), seed=4), table)
    found = impute(run, other.path, tmp_path / "out", to="P1", images=9, seed=2, quiet=True)
    assert len(found.rows) == len(found.screen) == len(set(found.rows)) == 9
    expected = restained(other.read(found.rows), plates.read(found.style_rows))
    assert np.abs(np.clip(expected, 0, None) - found.screen.read(np.arange(9))).max() <= 1
    again = impute(run, other.path, tmp_path / "again", to="P1", images=9, seed=2, quiet=True)
    assert again.screen.identity == found.screen.identity
    assert (tmp_path / "again" / "imputed.json").read_bytes() == (
        tmp_path / "out" / "imputed.json"
    ).read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    fold = json.loads((copy / "fold.json").read_text())
    (copy / "checksums.json").unlink()
    (copy / "fold.json").write_text(json.dumps(fold | {"screen": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"gone: the screen that the run was trained on.*put it ba"):
        impute(copy, other.path, tmp_path / "no", to="P1", quiet=True)


def test_values_that_the_type_cannot_hold_are_clipped_and_counted() -> None:
    import torch

    image = torch.tensor([[[[-3.0, -0.4, 0.6, 254.7, 255.4, 260.0]]]])
    pixels, clipped = stored(image, np.dtype("uint8"))
    assert pixels.ravel().tolist() == [0, 0, 1, 255, 255, 255]
    assert (pixels.dtype, clipped) == (np.uint8, 2)
    same, none = stored(image, np.dtype("float32"))
    np.testing.assert_array_equal(same, image.numpy())
    assert none == 0


def test_refusals(
    run: Path,
    plates: Screen,
    finished_runs: Callable[[str], Path],
    make_screen: Callable[..., Screen],
    make_config: Callable[..., RunConfig],
    restain: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(message: str, of: Path = run, on: Path = plates.path, **given: Any) -> None:
        with pytest.raises(UserError, match=message):
            impute(of, on, tmp_path / "out", **{"to": "P2", **given}, quiet=True)
        assert not (tmp_path / "out").exists()

    refused("--to P22: no environment of the run's training; did you mean 'P2'", to="P22")
    refused(r"erm cannot impute images; fit one of .*restain", of=finished_runs("erm"))
    refused("--images 0: expected 1 to 96", images=0)
    only = plates.table[plates.table["plate"] == "P2"]
    same = make_screen(tmp_path / "same", plates.read(only.index), only)
    refused("all 48 images are of 'P2' already", on=same.path)
    grey = make_screen(tmp_path / "grey", plates.read([0, 1])[:, :1], plates.table[:2])
    refused("channels a; the run", on=grey.path)
    few, rows = plates.table[:2], plates.read([0, 1])
    coarse = make_screen(tmp_path / "coarse", rows.astype(np.uint8), few)
    refused(r"coarse: pixels are uint8; the run .* was trained on uint16", on=coarse.path)
    side = rows.shape[-1]
    small = make_screen(tmp_path / "small", rows[:, :, 4:, 4:].copy(), few)
    refused(
        rf"small: images of 2 × {side - 4} × {side - 4}; the run draws images of 2 × {side} × "
        rf"{side}, ingest with --size {side}",
        on=small.path,
    )
    profiles = make_screen(
        tmp_path / "profiles", np.zeros((2, 2), dtype=np.float32), plates.table[:2]
    )
    refused("holds profiles", on=profiles.path)
    stretched = make_config(restain, data={"transform": "percentile"})
    fit(stretched, plates.path, tmp_path / "stretched", quiet=True)
    refused("percentile forgets", of=tmp_path / "stretched")
    with pytest.raises(UserError, match="it imputes, add --to"):
        transfer(run, plates.path, tmp_path / "out")
    with pytest.raises(SystemExit):
        cli.main(["transfer", str(run), str(plates.path), "--out", str(tmp_path), "--to", "P2"])
    assert "already exists" in capsys.readouterr().err


@pytest.mark.usefixtures("_undrawn")
def test_the_command_says_what_it_did(
    run: Path, plates: Screen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", str(run), str(plates.path), "--out", str(tmp_path / "out"), "--to", "P2"]
    cli.main([*words, "--images", "20", "--seed", "1", "--quiet"])
    said = capsys.readouterr().out
    assert "20 images in" in said
    shares = re.search(r"(\d+) % are of P2, (\d+) % before", said)
    assert shares is not None
    assert int(shares[1]) > 50 > int(shares[2])
    assert len(open_screen(tmp_path / "out" / "imputed")) == 20
