"""PACS: seven classes in photographs, art paintings, cartoons and sketches."""

from pathlib import Path

from pydantic import Field

from deconfound.config import Options
from deconfound.data.ingest.paths import (
    FOLDER_ENVIRONMENT,
    FOLDER_LABEL,
    FOLDER_ROLES,
    class_folders,
)
from deconfound.data.ingest.writing import screen_of_files
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError

SUMMARY = "PACS: 9,991 pictures of 7 classes in 4 styles"
PAPER = "Li et al., Deeper, Broader and Artier Domain Generalization, 2017"
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


class Config(Options):
    """Options of PACS."""

    size: int = Field(64, ge=1)
    """Resize to SIZE × SIZE pixels; the published pictures have 227."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the pictures in `root`/DOMAIN/CLASS/ at `out` and open the screen.

    Images (N, 3, size, size) uint8, 0-255. Columns: `Metadata_Environment` (the domain),
    `Metadata_Label` and `Metadata_Path`. Raises UserError for a folder that is none of the data
    set's four domains and seven classes, for one that is missing, and for a picture that cannot be
    read.
    """
    config = config or Config()
    table = class_folders(Path(root))
    for column, known in ((FOLDER_ENVIRONMENT, DOMAINS), (FOLDER_LABEL, CLASSES)):
        found = set(table[column])
        if found != set(known):
            what = "missing" if set(known) - found else "foreign"
            names = sorted(set(known) - found) or sorted(found - set(known))
            raise UserError(
                f"{root}: {what} folder {names[0]!r}; expected DOMAIN/CLASS/ with the domains "
                f"{listed(DOMAINS)} and the classes {listed(CLASSES)}"
            )
    made = {"made_by": "source pacs", "paper": PAPER, "options": config.model_dump(mode="json")}
    return screen_of_files(table, Path(root), out, FOLDER_ROLES, made, size=config.size)
