"""Pictures of other verbs in a report: swapped cells, imputed cells, a diagnosis."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconfound.display.page import data_uri
from deconfound.errors import UserError
from deconfound.runs.run import read_json

_CELLS = {"method", "fold", "seed", "screen", "config"}
PICTURES: dict[str, tuple[str, str, set[str], tuple[str, ...]]] = {
    "diagnosis": (
        "compare", "diagnosis.json", {"screen", "folds", "sentences"}, ("diagnosis.png",),
    ),
    "imputed": (
        "transfer --to", "imputed.json", _CELLS | {"imputed_to", "images"},
        ("transfer.png", "umap.png"),
    ),
    "swap": ("transfer", "transfer.json", _CELLS | {"rows"}, ("swap.png",)),
}  # fmt: skip
"""By kind of directory: the verb, its JSON file, the keys needed of that file, and its pictures."""


@dataclass(frozen=True)
class Pictures:
    """One directory of `transfer`, `transfer --to` or `compare --view trade-off`."""

    name: str
    """As in `RunSource`; empty for a diagnosis."""
    about: dict[str, Any]
    """Contents of its JSON file."""
    pictures: tuple[str, ...]
    """PNG as data URIs, in the order of `PICTURES`."""


def read_pictures(path: Path, kind: str) -> Pictures:
    """Read a directory of pictures; raises UserError if a file is missing or damaged."""
    verb, described, keys, files = PICTURES[kind]
    about = read_json(path / described)
    if missing := keys - about.keys():
        raise UserError(f"{path / described}: lacks {min(missing)!r}; `deconfound {verb}` again")
    for file in files:
        if not (path / file).is_file():
            raise UserError(f"{path / file}: missing; `deconfound {verb}` again")
    shown = tuple(data_uri("image/png", (path / file).read_bytes()) for file in files)
    return Pictures(str(about.get("method", "")), about, shown)
