"""Weights of a method and its intensity, to and from tensors by name."""

from pathlib import Path

import torch

from deconfound.data.loading.intensity import Intensity
from deconfound.errors import UserError
from deconfound.methods.contract import Method
from deconfound.runs.checkpoint import read_weights


def load_weights(file: Path, method: Method, intensity: Intensity) -> None:
    """Load a checkpoint file into a method and its intensity.

    Raises UserError if the file is damaged or does not fit the method.
    """
    take_weights(read_weights(file), file, method, intensity)


def take_weights(
    tensors: dict[str, torch.Tensor], file: Path, method: Method, intensity: Intensity
) -> None:
    """Put tensors read from `file` into a method and its intensity.

    Raises UserError if they do not fit.
    """
    try:
        modules = torch.nn.ModuleDict({"method": method, "intensity": intensity})
        modules.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file}: cannot be loaded ({reason}); fit the run again") from error


def weights(method: Method, intensity: Intensity) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint holds, by name, contiguous and on the CPU."""
    modules = torch.nn.ModuleDict({"method": method, "intensity": intensity})
    return {k: v.detach().cpu().clone().contiguous() for k, v in modules.state_dict().items()}
