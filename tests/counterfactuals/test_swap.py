"""Swapping content and style between cells."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from deconfound.config import DataOptions, TrainingOptions
from deconfound.counterfactuals.cells import diverse
from deconfound.counterfactuals.swap import transfer
from deconfound.data.folds.problem import pose
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.display.pixels import contrast, rgb
from deconfound.errors import UserError
from deconfound.runs.config import config_model
from deconfound.runs.run import open_run
from deconfound.training.fit import fit

LABELS = ("$\\alpha$ drug", "control", "water")
PLATES = ("P1", "P2")
CELLS = 72


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "screen"
    stream = np.random.default_rng(0)
    roles = Roles(label="drug", environment=("plate",), levels=("plate",))
    with ScreenWriter(path, "tiny", ("DNA", "actin"), roles, {}) as writer:
        writer.append(stream.integers(0, 4000, (CELLS, 2, 16, 16), dtype=np.uint16))
        row = np.arange(CELLS)
        drug = [LABELS[i] for i in row % 3]
        plate = [PLATES[i] for i in row // 3 % 2]
        writer.finish(pd.DataFrame({"drug": drug, "plate": plate}))
    return path


def run_of(screen: Path, out: Path, method: str = "scbd", **options: object) -> Path:
    model = config_model(method)
    config = model(
        method=method,
        data=DataOptions(fold="iid", val_fraction=0.3, transform="arcsinh"),
        training=TrainingOptions(steps=2, batch_size=16, threads=1, precision="32", device="cpu"),
        options=model.model_fields["options"].annotation(**options),  # type: ignore[misc]
    )
    fit(config, screen, out, quiet=True)
    return out


@pytest.fixture(scope="module")
def run(screen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "scbd"
    return run_of(screen, out, decoder_steps=2, decoder_width=4, block_size=8)


def test_every_content_is_decoded_in_every_style(run: Path, screen: Path, tmp_path: Path) -> None:
    swap = transfer(run, screen, tmp_path / "swap", images=4)
    opened = open_screen(screen)
    method, intensity = open_run(run).load(opened)
    with torch.inference_mode():
        for i, j in [(0, 0), (1, 3), (3, 1)]:
            both = torch.from_numpy(opened.read(swap.rows[[i, j]]))
            embedded = method.embed(intensity(both))
            decoded = method.swap(embedded["content"][:1], embedded["style"][1:])
            assert decoded is not None
            seen = intensity(torch.from_numpy(swap.swapped[i, j])[None])
            torch.testing.assert_close(seen, decoded, atol=1e-3, rtol=1e-3)
    assert not np.array_equal(swap.swapped[0, 1], swap.swapped[1, 0])
    assert swap.originals.dtype == np.uint16
    np.testing.assert_array_equal(swap.originals, opened.read(swap.rows))


def test_cells_were_not_trained_on_and_differ(run: Path, screen: Path, tmp_path: Path) -> None:
    swap = transfer(run, screen, tmp_path / "swap", images=6)
    fold = pose(open_screen(screen), open_run(run).config.data).fold
    assert set(fold.part[swap.rows]) <= {"val", "id_test"}
    assert sorted(zip(swap.labels, swap.environments, strict=True)) == sorted(
        (label, plate) for label in LABELS for plate in PLATES
    )


def test_the_directory_holds_arrays_picture_and_origin(
    run: Path, screen: Path, tmp_path: Path
) -> None:
    swap = transfer(run, screen, tmp_path / "swap", images=3, seed=5)
    about = json.loads((tmp_path / "swap" / "transfer.json").read_text())
    assert about["rows"] == swap.rows.tolist()
    assert about["labels"] == list(swap.labels)
    assert (about["method"], about["run"], about["cells_seed"]) == ("scbd", "scbd", 5)
    np.testing.assert_array_equal(np.load(tmp_path / "swap" / "swapped.npy"), swap.swapped)
    assert np.load(tmp_path / "swap" / "originals.npy").shape == (3, 2, 16, 16)
    with Image.open(tmp_path / "swap" / "swap.png") as drawn:
        assert np.ptp(np.asarray(drawn.convert("L"))) > 100


def test_the_seed_decides_the_cells(run: Path, screen: Path, tmp_path: Path) -> None:
    one, again, other = (
        transfer(run, screen, tmp_path / name, images=4, seed=seed).rows.tolist()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again != other


def test_cells_of_rare_labels_and_environments_come_first() -> None:
    label = pd.Series(["a"] * 8 + ["b", "c"], dtype="string")
    environment = pd.Series(["P1"] * 8 + ["P2", "P1"], dtype="string")
    rows = diverse(np.arange(10), label, environment, 3, seed=0)
    assert set(label[rows]) == {"a", "b", "c"}
    assert set(environment[rows]) == {"P1", "P2"}
    environments = environment[rows].tolist()
    assert environments == sorted(environments)


def test_stored_units_undo_the_intensity() -> None:
    pixels = torch.rand(2, 3, 4, 4) * 900
    for transform in ("none", "arcsinh"):
        intensity = Intensity(3, transform)  # type: ignore[arg-type]
        intensity.offset.copy_(torch.tensor([1.0, 2.0, 3.0]))
        intensity.scale.copy_(torch.tensor([0.5, 2.0, 0.1]))
        torch.testing.assert_close(intensity.inverse(intensity(pixels)), pixels)


def test_methods_that_cannot_swap_say_what_to_do(screen: Path, tmp_path: Path) -> None:
    erm = run_of(screen, tmp_path / "erm", "erm")
    with pytest.raises(UserError, match=r"erm has no content and style to swap; fit .*scbd"):
        transfer(erm, screen, tmp_path / "swap")
    bare = run_of(screen, tmp_path / "bare", decoder="none", block_size=8)
    with pytest.raises(UserError, match="--decoder after"):
        transfer(bare, screen, tmp_path / "swap")
    styleless = run_of(screen, tmp_path / "styleless", style_block=False, block_size=8)
    with pytest.raises(UserError, match="no style block to swap; fit it again with --style-block"):
        transfer(styleless, screen, tmp_path / "swap")
    assert {path.name for path in tmp_path.iterdir()} == {"erm", "bare", "styleless"}


def test_a_joint_decoder_swaps(screen: Path, tmp_path: Path) -> None:
    joint = run_of(screen, tmp_path / "joint", decoder="joint", decoder_width=4, block_size=8)
    swap = transfer(joint, screen, tmp_path / "swap", images=3)
    assert np.isfinite(swap.swapped).all()


def test_refusals(run: Path, screen: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 cells or more"):
        transfer(run, screen, tmp_path / "swap", images=1)
    with pytest.raises(UserError, match="already exists"):
        transfer(run, screen, tmp_path)


def test_grey_photographs_and_stains() -> None:
    ramp = np.linspace(0, 200, 64, dtype=np.uint8).reshape(1, 1, 8, 8)
    grey = rgb(ramp, ["phase"], contrast(ramp, ["phase"]))
    assert grey.shape == (1, 8, 8, 3)
    assert (grey == grey[..., :1]).all()
    assert grey.min() == 0
    assert grey.max() == 255
    photograph = np.random.default_rng(0).integers(0, 99, (2, 3, 4, 4), dtype=np.uint8)
    shown = rgb(photograph, "RGB", contrast(photograph, "RGB"))
    np.testing.assert_array_equal(shown, photograph.transpose(0, 2, 3, 1))
    stained = np.zeros((1, 4, 2, 2), dtype=np.uint16)
    stained[0, 0, 0, 0] = stained[0, 1, 1, 1] = 1000
    channels = ["actin", "DNA", "something", "else"]
    bounds = np.array([[0.0, 1000.0]] * 4)
    red, blue = rgb(stained, channels, bounds)[0, [0, 1], [0, 1]]
    assert red.argmax() == 0
    assert blue.argmax() == 2


def test_contrast_ignores_outliers_and_spans_all_images() -> None:
    pixels = np.random.default_rng(0).uniform(10, 20, (50, 2, 16, 16)).astype(np.float32)
    pixels[0, 0, 0, 0] = 1e6
    bounds = contrast(pixels, ["DNA", "actin"])
    assert bounds.shape == (2, 2)
    assert (bounds[:, 1] < 21).all()
    assert (bounds[:, 0] < 10.2).all()
