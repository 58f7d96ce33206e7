"""Checkpoints on disk, verified before they are used."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deconfound.errors import UserError


def read_resume(run: Path) -> dict[str, Any]:
    """The state in `resume.pt`, on the CPU; raises UserError if a bit of it changed."""
    file = run / "resume.pt"
    try:
        with zipfile.ZipFile(file) as members:
            if changed := members.testzip():
                raise ValueError(f"{changed} changed")
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"stage_number", "done"} <= state.keys():
            raise ValueError("holds something else")
    except Exception as error:  # neither library has one exception for a damaged file
        raise damaged_resume(run, error) from error
    return state


def damaged_resume(run: Path, error: Exception) -> UserError:
    """The line that says that `resume.pt` cannot be used."""
    return UserError(
        f"{run / 'resume.pt'}: damaged ({type(error).__name__}); remove {run} and fit again"
    )


def verify_weights(file: Path) -> None:
    """Read every tensor of a safetensors file; raises UserError if it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                opened.get_tensor(name)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file}: damaged ({reason}); remove {file.parent} and fit again"
        ) from error
