"""What a run trains: a method, and the scaling of the pixels that the method sees."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from deconfound.data.folds.problem import Problem
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.screens.screen import Screen
from deconfound.files import atomic
from deconfound.intervention.intervention import Intervention
from deconfound.methods.contract import Method
from deconfound.nets.batch_norm import synchronise_batch_norm
from deconfound.runs.checkpoint import save_weights
from deconfound.runs.config import RunConfig
from deconfound.runs.run import build_method
from deconfound.runs.weights import load_weights, weights


@dataclass(frozen=True)
class Network:
    """A method and its scaling of pixels, whose weights are saved together."""

    method: Method
    intensity: Intensity

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, on the CPU."""
        return weights(self.method, self.intensity)

    def save(self, file: Path) -> None:
        """Write the weights atomically."""
        with atomic.atomic_file(file) as temporary:
            save_weights(temporary, self.weights())

    def load(self, file: Path) -> None:
        """Take the weights of a file; raises UserError if it is damaged or does not fit."""
        load_weights(file, self.method, self.intensity)


def build_network(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    fabric: Fabric,
    intervention: Intervention | None,
) -> Network:
    """The network of a run with its initial weights, on the device of `fabric`.

    Pixels are scaled as the training rows ask, or as the intervention's imputer scales them.
    Raises UserError as `build_method` does.
    """
    if intervention is None:
        train, data = problem.fold.rows("train"), config.data
        intensity = fit_intensity(
            screen, train, problem.transform, data.scaling, config.seed, problem.group
        )
    else:
        intensity = intervention.intensity
    counts = len(problem.label.names), len(problem.environment.names)
    method = build_method(config, screen, *counts, problem.controls)
    if fabric.world_size > 1:
        synchronise_batch_norm(method)
    placed: Method = method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(placed, intensity)
