"""Pictures of other verbs in a report: swapped cells, imputed cells, a diagnosis."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconfound.errors import UserError
from deconfound.runs.run import read_json


@dataclass(frozen=True)
class SwapSource:
    """One directory of `deconfound transfer`."""

    path: Path
    name: str
    """As in `RunSource`."""
    about: dict[str, Any]
    picture: bytes
    """PNG."""


@dataclass(frozen=True)
class DiagnosisSource:
    """One directory of `deconfound compare --view trade-off`."""

    path: Path
    about: dict[str, Any]
    picture: bytes
    """PNG."""


@dataclass(frozen=True)
class ImputedSource:
    """One directory of `deconfound transfer --to`."""

    path: Path
    name: str
    """As in `RunSource`."""
    about: dict[str, Any]
    picture: bytes
    """PNG of cells, style images, imputed images and differences."""
    landing: bytes
    """PNG of the map of imputed and real cells."""


def read_diagnosis(path: Path) -> DiagnosisSource:
    """Read the directory of a trade-off; raises UserError if a file is missing or damaged."""
    about = read_json(path / "diagnosis.json")
    file = path / "diagnosis.png"
    if missing := {"screen", "folds", "sentences"} - about.keys():
        raise UserError(f"{path / 'diagnosis.json'}: lacks {min(missing)!r}; diagnose again")
    if not file.is_file():
        raise UserError(f"{file}: missing; `deconfound compare` again")
    return DiagnosisSource(path, about, file.read_bytes())


def read_swap(path: Path) -> SwapSource:
    """Read a directory of `transfer`; raises UserError if a file is missing or damaged."""
    file = path / "swap.png"
    if not file.is_file():
        raise UserError(f"{file}: missing; `deconfound transfer` again")
    about = read_json(path / "transfer.json")
    if missing := {"method", "fold", "seed", "screen", "rows", "config"} - about.keys():
        raise UserError(f"{path / 'transfer.json'}: lacks {min(missing)!r}; transfer again")
    return SwapSource(path, str(about["method"]), about, file.read_bytes())


def read_imputed(path: Path) -> ImputedSource:
    """Read a directory of `transfer --to`; raises UserError if a file is missing or damaged."""
    about = read_json(path / "imputed.json")
    wanted = {"method", "fold", "seed", "screen", "imputed_to", "images", "config"}
    if missing := wanted - about.keys():
        raise UserError(f"{path / 'imputed.json'}: lacks {min(missing)!r}; transfer again")
    pictures = [path / "transfer.png", path / "umap.png"]
    for file in pictures:
        if not file.is_file():
            raise UserError(f"{file}: missing; `deconfound transfer --to` again")
    return ImputedSource(path, str(about["method"]), about, *(f.read_bytes() for f in pictures))
