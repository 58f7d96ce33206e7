"""The decoder's share of the variance beyond each label's mean image, on known decoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deconfound.counterfactuals.explained import explained_share
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.table import Roles

LABELS = np.repeat([0, 1], 40)


@pytest.fixture
def screen(tmp_path: Path) -> Screen:
    import pandas as pd

    pixels = np.random.default_rng(0).normal(size=(80, 1, 4, 4)).astype(np.float32)
    pixels += 10 * LABELS[:, None, None, None]
    with ScreenWriter(tmp_path / "screen", "tiny", ("DNA",), Roles(), {}) as writer:
        writer.append(pixels)
        writer.finish(pd.DataFrame({"drug": LABELS}))
    return open_screen(tmp_path / "screen")


class Decoder:
    """Decodes an image as `keeps` of it and the rest of its label's mean image."""

    def __init__(self, screen: Screen, keeps: float) -> None:
        images = torch.from_numpy(screen.read(np.arange(80)))
        self._means = torch.stack([images[label == LABELS].mean(dim=0) for label in (0, 1)])
        self._keeps = keeps

    def embed(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"content": image, "style": image}

    def swap(self, content: torch.Tensor, _style: torch.Tensor) -> torch.Tensor | None:
        mean = self._means[(content.mean(dim=(1, 2, 3)) > 5).long()]
        return self._keeps * content + (1 - self._keeps) * mean


def share(screen: Screen, decoder: Any, labels: np.ndarray = LABELS) -> float | None:
    def as_stored(image: torch.Tensor) -> torch.Tensor:
        return image

    return explained_share(decoder, as_stored, screen, np.arange(80), labels, 0)  # type: ignore[arg-type]


def test_a_perfect_decoder_explains_all_and_a_mean_image_nothing(screen: Screen) -> None:
    assert share(screen, Decoder(screen, 1.0)) == pytest.approx(1.0)
    corrected = 39 / 40  # the mean is of the same 40 images
    assert share(screen, Decoder(screen, 0.0)) == pytest.approx(1 - corrected)
    assert share(screen, Decoder(screen, 0.5)) == pytest.approx(1 - 0.25 * corrected)
    worse = share(screen, Decoder(screen, -0.5))
    assert worse == pytest.approx(1 - 2.25 * corrected)


def test_without_two_images_of_a_label_nothing_is_said(screen: Screen) -> None:
    assert share(screen, Decoder(screen, 1.0), np.full(80, -1)) is None
    assert share(screen, Decoder(screen, 1.0), np.arange(80)) is None
