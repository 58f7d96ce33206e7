"""The images that are judged: those of a run, of the baselines, and the true ones, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound.arrays import Images, Rows
from deconfound.counterfactuals.cells import Interventions
from deconfound.counterfactuals.impute import within_range
from deconfound.data.loading.intensity import Intensity
from deconfound.data.screens.screen import Screen
from deconfound.data.simulation.counterfactual import counterfactual
from deconfound.evaluation.scores import ALONE, EXACT, MOMENTS
from deconfound.intervention.styles import SourceStyles
from deconfound.methods.contract import Imputer
from deconfound.metrics.imputation import matched_moments

BATCH = 64
RUN = "run"
"""Name of the run's own images beside those of the baselines."""


@dataclass(frozen=True)
class StoredImputer:
    """A run's method that imputes stored pixels."""

    method: Imputer
    intensity: Intensity
    environments: tuple[str, ...]
    """Names of the training environments, by code."""
    source_styles: SourceStyles | None
    """Where the rows of the screen were taken; None where styles are not relative."""
    of_environment: bool
    """Whether the target is the mean style of its environment, and not of the style images."""

    @torch.inference_mode()
    def __call__(
        self, rows: Rows, source: Images, style: Images, environment: Rows
    ) -> npt.NDArray[np.float32]:
        """Impute the source images (B, C, H, W) of `rows`; stored units.

        `style` (B, K, C, H, W) holds the style images of each, taken in `environment` (B,).
        """
        device = self.intensity.offset.device
        source_pixels, style_pixels, taken_in = (
            torch.from_numpy(array).to(device) for array in (source, style, environment)
        )
        image = self.intensity(source_pixels)
        styles, own = self.source_styles, None
        if styles is not None:
            own = styles.of(torch.from_numpy(rows))
        if styles is None or not self.of_environment:
            images, of_style = style_pixels.shape[1], self.intensity(style_pixels.flatten(0, 1))
            every = self.method.style(of_style, taken_in.repeat_interleave(images))
            code = every.reshape(len(source), images, -1).mean(dim=1)
        else:
            code = styles.of_names([self.environments[one] for one in environment])
        imputed = self.method.impute(image, code, own)
        return np.asarray(self.intensity.inverse(imputed.float()).cpu().numpy())


def shown_images(
    screen: Screen, imputer: StoredImputer, drawn: Interventions, threads: int | None
) -> Iterator[tuple[Rows, dict[str, npt.NDArray[Any]]]]:
    """Impute every row with the run and the baselines, and render it where it is imputed to.

    Yields places in `drawn` and, by name, the images of these places in stored units, (B, C, H, W):
    `RUN`, `MOMENTS`, `ALONE`, and `EXACT` for the true ones.
    """
    for rendering in np.unique(drawn.rendering):
        of_rendering = np.flatnonzero(drawn.rendering == rendering)
        for places in np.split(of_rendering, np.arange(BATCH, len(of_rendering), BATCH)):
            rows = drawn.rows[places]
            source, style = screen.read(rows), screen.read(drawn.style[places].ravel())
            style = style.reshape(len(rows), -1, *screen.image_shape)
            true = counterfactual(screen, rows, str(rendering), threads=threads)
            imputed = imputer(rows, source, style, drawn.environment[places])
            yield (
                places,
                {
                    RUN: within_range(imputed, screen.dtype),
                    MOMENTS: within_range(matched_moments(source, style), screen.dtype),
                    ALONE: source,
                    EXACT: true,
                },
            )
