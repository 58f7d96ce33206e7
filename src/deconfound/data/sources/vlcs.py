"""VLCS: five classes in four photograph collections."""

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

SUMMARY = "VLCS: photographs of 5 classes from Caltech101, LabelMe, SUN09 and VOC2007"
PAPER = "Fang, Xu, Rockmore, Unbiased Metric Learning, 2013"
DOMAINS = {
    "Caltech101": ("caltech101", "caltech"),
    "LabelMe": ("labelme",),
    "SUN09": ("sun09", "sun"),
    "VOC2007": ("voc2007", "voc", "pascal"),
}
CLASSES = {
    "bird": ("bird", "vogel", "flying"),
    "car": ("car", "auto", "drive", "vehicle"),
    "chair": ("chair", "stuhl", "sit", "sofa"),
    "dog": ("dog", "hund", "husky"),
    "person": ("person", "mensch", "sapiens"),
}
"""Each class and the names that its folders have in one copy or another."""


class Config(Options):
    """Options of VLCS."""

    size: int = Field(64, ge=1)
    """Resize to SIZE × SIZE pixels; the published photographs differ in size."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the photographs in `root`/DOMAIN/CLASS/ at `out` and open the screen.

    Images (N, 3, size, size) uint8, 0-255; grey ones are repeated to three channels. Columns:
    `Metadata_Environment` (the collection), `Metadata_Label` and `Metadata_Path`. Folders may have
    the names of `DOMAINS` and `CLASSES`, in any case; not all collections need be there. Raises
    UserError for any other folder and for a photograph that cannot be read.
    """
    config = config or Config()
    table = class_folders(Path(root))
    for column, known in ((FOLDER_ENVIRONMENT, DOMAINS), (FOLDER_LABEL, CLASSES)):
        named = {alias: name for name, aliases in known.items() for alias in aliases}
        foreign = sorted(set(table[column]) - {n for n in table[column] if n.lower() in named})
        if foreign:
            raise UserError(
                f"{root}: folder {foreign[0]!r} is none of {listed(sorted(named))}; expected "
                "DOMAIN/CLASS/ of VLCS"
            )
        table[column] = table[column].str.lower().map(named)
    made = {"made_by": "source vlcs", "paper": PAPER, "options": config.model_dump(mode="json")}
    return screen_of_files(table, Path(root), out, FOLDER_ROLES, made, size=config.size, rgb=True)
