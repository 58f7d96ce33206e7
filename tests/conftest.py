"""What all tests share: no network, one thread, a tiny screen with nested levels."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import importlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import settings

from deconfound import methods
from deconfound.config import DataOptions, TrainingOptions
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles
from deconfound.runs.config import RunConfig, config_model

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")

ROLES = Roles(
    label="compound", environment=("plate",), levels=("series", "plate", "section"), well="well"
)
CHEAP = {
    "decoder_width": 8, "decoder_steps": 4, "decoder_batch_size": 16, "block_size": 16,
    "transfer_steps": 4, "transfer_batch_size": 8,
    "width": 4, "max_width": 8, "mapping_width": 8,
    "controls_per_episode": 4,
}  # fmt: skip
"""Values that make any method that has such an option fast."""

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _refuse_network(connection: socket.socket, address: Any) -> None:
    local = connection.family not in (socket.AF_INET, socket.AF_INET6)
    if not local and not _is_loopback(str(address[0])):
        raise RuntimeError(f"a test tried to reach {address[0]}: tests use no network")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _checked_connect(connection: socket.socket, address: Any) -> None:
    _refuse_network(connection, address)
    _connect(connection, address)


def _checked_connect_ex(connection: socket.socket, address: Any) -> int:
    _refuse_network(connection, address)
    return _connect_ex(connection, address)


socket.socket.connect = _checked_connect  # type: ignore[method-assign]
socket.socket.connect_ex = _checked_connect_ex  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def nested_table(cells: int = 6) -> pd.DataFrame:
    """2 series × 2 plates × 2 sections × 2 wells, `cells` rows each; names repeat across parents.

    Sections of one plate have their own wells. Three compounds.
    """
    rows = [
        {"series": series, "plate": plate, "section": section, "well": f"{section}{well}"}
        for series in ("S1", "S2")
        for plate in ("P1", "P2")
        for section in ("A", "B")
        for well in (1, 2)
        for _ in range(cells)
    ]
    table = pd.DataFrame(rows)
    table["compound"] = [f"c{row % 3}" for row in range(len(table))]
    return table


def noisy_images(table: pd.DataFrame, seed: int = 0) -> npt.NDArray[np.uint16]:
    """(N, 2, 24, 24) uint16: noise, and a square in a place that depends on the compound."""
    images = np.random.default_rng(seed).integers(0, 600, (len(table), 2, 24, 24))
    for row, compound in enumerate(table["compound"]):
        corner = 2 + 6 * int(str(compound)[1:])
        images[row, 0, corner : corner + 6, corner : corner + 6] += 900
    return images.astype(np.uint16)


def write_screen(
    path: Path, images: npt.NDArray[Any], table: pd.DataFrame, roles: Roles = ROLES
) -> Screen:
    """Write and open a screen called "tiny"; channels are called a, b, c …"""
    channels = "abcdefgh"[: images.shape[1]]
    with ScreenWriter(path, "tiny", tuple(channels), roles, {"made_by": "test"}) as writer:
        writer.append(images)
        writer.finish(table)
    return open_screen(path)


def tiny_config(
    method: str = "scbd",
    *,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> RunConfig:
    """A run of a second: few steps, small batches, one thread, plate S1/P1 held out."""
    known = methods.load(method).Options
    cheap = {name: value for name, value in CHEAP.items() if name in known.model_fields}
    parts: dict[str, Any] = {"fold": "plate=S1/P1", "val_fraction": 0.2}
    if methods.load(method).CONTROLS or "controls_per_episode" in known.model_fields:
        parts["controls"] = ("c0",)
    few: dict[str, Any] = {
        "steps": 6, "batch_size": 24, "validate_every": 2, "checkpoint_every": 2,
        "device": "cpu", "precision": "32", "threads": 1,
    }  # fmt: skip
    return config_model(method)(
        method=method,
        seed=seed,
        data=DataOptions(**(parts | (data or {}))),
        training=TrainingOptions(**(few | (training or {}))),
        options=known(**(cheap | (options or {}))),
    )


@pytest.fixture(scope="session")
def timm() -> Any:
    """The library timm; the test is skipped where it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        pytest.skip("timm is not installed: pip install 'deconfound[timm]'")
    except RuntimeError:  # torchvision of another build than torch lacks operators; none is needed
        for name in [name for name in sys.modules if name.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)
        return importlib.import_module("timm")


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    """The tiny screen: 96 images of 2 × 24 × 24 uint16."""
    table = nested_table()
    return write_screen(tmp_path_factory.mktemp("screen") / "tiny", noisy_images(table), table)


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pd.DataFrame]:
    return nested_table


@pytest.fixture(scope="session")
def make_images() -> Callable[..., npt.NDArray[np.uint16]]:
    return noisy_images


@pytest.fixture(scope="session")
def make_screen() -> Callable[..., Screen]:
    return write_screen


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RunConfig]:
    return tiny_config


def same_run(first: Path, second: Path) -> None:
    """Assert that two finished runs hold the same files, and what training decides bit for bit."""
    named = [{file.name for file in folder.iterdir()} for folder in (first, second)]
    assert named[0] == named[1]
    whole = {"model.safetensors", "metrics.csv", "selection.json", "classes.json", "config.yaml"}
    for file in whole | {name for name in named[0] if name.endswith(".safetensors")}:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    return same_run


@pytest.fixture(scope="session")
def finished_runs(
    screen: Screen, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The directory of a finished run of a method on the tiny screen; trained once a session."""
    from deconfound.training.fit import fit

    folder = tmp_path_factory.mktemp("runs")

    def run(method: str) -> Path:
        if not (folder / method).exists():
            fit(tiny_config(method), screen.path, folder / method, quiet=True)
        return folder / method

    return run


@pytest.fixture(scope="module")
def restain() -> Iterator[str]:
    """The name of a method that imputes, small enough to check by hand; it is in tests/imputers."""
    folder = Path(__file__).parent / "imputers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
        yield "restain"
    sys.modules.pop("deconfound.methods.restain", None)


@pytest.fixture(scope="module")
def source(
    restain: str,
    screen: Screen,
    make_config: Callable[..., RunConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run of `restain`, to intervene with."""
    from deconfound.training.fit import fit

    out = tmp_path_factory.mktemp("source") / "run"
    return fit(make_config(restain, seed=5), screen.path, out, quiet=True).path
