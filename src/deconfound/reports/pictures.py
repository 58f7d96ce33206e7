"""Pictures of other verbs in a report: swapped cells, imputed cells, a diagnosis."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconfound.display.page import data_uri
from deconfound.errors import UserError
from deconfound.runs.run import read_json

MOST_WIDE, MOST_HIGH = 4_096, 16_383
"""Pixels of a picture in a page; WebP can hold no more."""
LOW_SHARE = 0.1
"""Share of the variance explained beneath which a grid of swapped cells says nothing."""
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
    """WebP as data URIs, in the order of `PICTURES`."""

    @property
    def explained(self) -> float | None:
        """The decoder's share of the pixel variance that each label's mean image leaves; None
        where it was not measured."""
        share = self.about.get("explained")
        return float(share) if isinstance(share, int | float) else None


def read_pictures(path: Path, kind: str) -> Pictures:
    """Read a directory of pictures; raises UserError if a file is missing or damaged."""
    verb, described, keys, files = PICTURES[kind]
    about = read_json(path / described)
    if missing := keys - about.keys():
        raise UserError(f"{path / described}: lacks {min(missing)!r}; `deconfound {verb}` again")
    for file in files:
        if not (path / file).is_file():
            raise UserError(f"{path / file}: missing; `deconfound {verb}` again")
    shown = tuple(_smaller(path / file) for file in files)
    return Pictures(str(about.get("method", "")), about, shown)


def _smaller(file: Path) -> str:
    """The picture as WebP, a tenth of its PNG; raises UserError if it is damaged."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        picture.thumbnail((MOST_WIDE, MOST_HIGH))
        picture.save(buffer, "WEBP", quality=88, method=5)
    except OSError as error:
        raise UserError(f"{file}: damaged picture; `deconfound transfer` again") from error
    return data_uri("image/webp", buffer.getvalue())
