"""What the tests of the estimator share: arrays of the tiny screen, and a model fitted on them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deconfound import Deconfounder
from deconfound.data.screens.screen import Screen

FEW: dict[str, Any] = {
    "steps": 2, "batch_size": 24, "device": "cpu", "threads": 1, "precision": "32",
}  # fmt: skip


@pytest.fixture(scope="session")
def few() -> dict[str, Any]:
    """Options of a run of a moment."""
    return dict(FEW)


@pytest.fixture(scope="session")
def images(screen: Screen) -> npt.NDArray[np.uint16]:
    """(96, 2, 24, 24) uint16: those of the tiny screen."""
    found: npt.NDArray[np.uint16] = screen.read(np.arange(len(screen)))
    return found


@pytest.fixture(scope="session")
def fitted(screen: Screen, images: npt.NDArray[np.uint16]) -> Deconfounder:
    """ERM on the tiny screen's arrays; not to be changed."""
    plates = screen.table["series"] + screen.table["plate"]
    model = Deconfounder("erm", quiet=True, **FEW)
    return model.fit(images, screen.table["compound"], plates.to_numpy())
