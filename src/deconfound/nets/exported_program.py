"""Networks exported by PyTorch: programs in a file, used as they are."""

import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deconfound.errors import UserError
from deconfound.files.checksums import sha256

PROGRAM_PREFIX = "torch:"
COMPILED = "data/aotinductor/"
"""Folder of an archive that holds machine code."""
PICKLED = ("custom_obj_", "opaque_obj_")
"""Beginnings of the names of files of an archive that would be unpickled."""


class ExportedProgram(nn.Module):
    """The program in a `.pt2` file of `torch.export.save`: (B, C, H, W) float32 -> (B, features).

    Its own weights are no part of the state, which holds the SHA-256 of the file: a checkpoint
    opens where the same file lies at the same place, and raises UserError where another does. So
    does a file that is missing or damaged, and one that holds pickled objects or machine code,
    which are never loaded.
    """

    sha256: Tensor
    """(32,) uint8."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        program = open_program(file)
        self._held: tuple[Any, ...] = (program.module(check_guards=False),)  # no part of the state
        for weight in self._held[0].parameters():
            weight.requires_grad_(False)
        found = [tuple(one.shape) for one in (program.example_inputs or ((), {}))[0]]
        self.shape = found[0] if found else ()
        """Of the images that it was exported with."""
        self.register_buffer(
            "sha256", torch.tensor(list(bytes.fromhex(sha256(file))), dtype=torch.uint8)
        )

    def forward(self, image: Tensor) -> Tensor:
        if len(self.shape) == 4 and image.shape[1] == 1 < self.shape[1]:
            image = image.expand(-1, self.shape[1], -1, -1)
        found = self._held[0](image)
        if isinstance(found, dict):
            found = next(iter(found.values()))
        elif isinstance(found, tuple | list):
            found = found[0]
        representation: Tensor = found
        return representation

    def features(self, channels: int, side: int) -> int:
        """Width of what it gives for images of `channels` × `side` × `side`.

        Raises UserError if it cannot take two and three of them, or gives no (B, features).
        """
        try:
            with torch.no_grad():
                found = [self(torch.zeros(rows, channels, side, side)) for rows in (2, 3)]
        except Exception as error:  # a program checks its input by assertions of many kinds
            expected = " × ".join(map(str, self.shape)) or "unknown"
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{self.file}: cannot take batches of {channels} × {side} × {side} images "
                f"(exported with {expected}: {reason}); export it with these channels, this size "
                "or --input-size, and torch.export.Dim for the batch"
            ) from error
        shapes = [tuple(one.shape) for one in found]
        if any(
            len(shape) != 2 or shape[0] != rows for shape, rows in zip(shapes, (2, 3), strict=True)
        ):
            raise UserError(
                f"{self.file}: gives {shapes[0]} for 2 images; expected (2, features), pool what "
                "it returns before it is exported"
            )
        return int(shapes[0][1])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._held[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        held = state.get(f"{prefix}sha256")
        if held is not None and not torch.equal(held.cpu(), self.sha256.cpu()):
            raise UserError(
                f"{self.file}: is not the exported program that the run was trained with; restore "
                "that file, or fit again"
            )
        super()._load_from_state_dict(state, prefix, *rest)


def open_program(file: Path) -> torch.export.ExportedProgram:
    """Read an exported program; raises UserError as `ExportedProgram` does."""
    if not Path(file).is_file():
        raise UserError(f"{file}: no such exported program; make it with torch.export.save")
    _refuse_code(Path(file))
    log = logging.getLogger("torch.export")
    before, log.disabled = log.disabled, True
    try:
        return torch.export.load(str(file))
    except Exception as error:  # of JSON, zip and torch alike
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{file}: is not an exported program that torch {torch.__version__} reads ({reason}); "
            "export it again with torch.export.save"
        ) from error
    finally:
        log.disabled = before


def _refuse_code(file: Path) -> None:
    """Raise UserError for an archive that would be unpickled, or holds machine code."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
            bad = [name for name in names if name.startswith(COMPILED)]
            bad += [name for name in names if name.rpartition("/")[2].startswith(PICKLED)]
            tensors = [name for name in archive.namelist() if name.endswith(".pt")]
            for name in tensors:
                with archive.open(name) as member:
                    _refuse_unsafe(file, name, member)
            for name in archive.namelist():
                if name.endswith("_config.json") and _pickled(archive.read(name)):
                    bad.append(name)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: is not an exported program ({error}); export it again") from error
    if bad:
        raise UserError(
            f"{file}: holds {bad[0]}, pickled objects or machine code, which are never loaded; "
            "export the network again without custom objects"
        )


def _refuse_unsafe(file: Path, name: str, member: Any) -> None:
    content = member.read()
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file}: {name} holds objects besides tensors, which are never unpickled; export the "
            "network again with plain tensors as its example"
        ) from error


def _pickled(config: bytes) -> bool:
    read = json.loads(config)
    entries = read.get("config", {}).values() if isinstance(read, dict) else ()
    return any(isinstance(one, dict) and one.get("use_pickle") for one in entries)
