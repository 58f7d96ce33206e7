"""Checkpoints: the weights of a method and its intensity on disk, verified when they are read."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deconfound.data.loading.intensity import Intensity
from deconfound.errors import UserError
from deconfound.methods.contract import Method
from deconfound.runtime.limits import MORE_MEMORY, lacks_memory


def read_resume(run: Path) -> dict[str, Any]:
    """The state in `resume.pt`, on the CPU.

    Raises UserError if the file is damaged, or would unpack to more bytes than it has: PyTorch
    packs nothing.
    """
    file = run / "resume.pt"
    try:
        with zipfile.ZipFile(file) as members:
            unpacked, size = sum(one.file_size for one in members.infolist()), file.stat().st_size
            if unpacked > size:
                raise UserError(
                    f"{file}: unpacks to {unpacked:,} bytes and has {size:,}, which no run writes; "
                    f"remove {run} and fit again"
                )
            if changed := members.testzip():
                raise ValueError(f"{changed} changed")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"stage_number", "done"} <= state.keys():
            raise ValueError("holds something else")
    except UserError:
        raise
    except Exception as error:  # neither library has one exception for a damaged file
        raise damaged_resume(run, error) from error
    return state


def damaged_resume(run: Path, error: Exception) -> UserError:
    """The error that `resume.pt` is damaged; where memory ran out, that it cannot be read."""
    if lacks_memory(error):
        return UserError(f"{run / 'resume.pt'}: cannot be read, as memory ran out; {MORE_MEMORY}")
    return UserError(
        f"{run / 'resume.pt'}: damaged ({type(error).__name__}); remove {run} and fit again"
    )


def save_weights(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file that holds the SHA-256 of its own tensors."""
    file.write_bytes(save(tensors, metadata={"sha256": _digest(tensors)}))


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; raises UserError if the file is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            recorded = (opened.metadata() or {}).get("sha256")
        if recorded not in (None, _digest(tensors)):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file}: damaged ({reason}); remove {file.parent} and fit again"
        ) from error
    return tensors


def load_weights(file: Path, method: Method, intensity: Intensity) -> None:
    """Load a checkpoint file into a method and its intensity.

    Raises UserError if the file is damaged or does not fit the method.
    """
    take_weights(read_weights(file), file, method, intensity)


def take_weights(
    tensors: dict[str, Tensor], file: Path, method: Method, intensity: Intensity
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


def weights(method: Method, intensity: Intensity) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name, contiguous and on the CPU."""
    modules = torch.nn.ModuleDict({"method": method, "intensity": intensity})
    return {k: v.detach().cpu().clone().contiguous() for k, v in modules.state_dict().items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
