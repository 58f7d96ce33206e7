"""LINCS-SC: single A549 cells under 101 compounds, on plates with exclusive maps.

The archive could not be read here: this loader was written from the paper and tested on small trees
alone. It takes an index table with the columns named below, one row a crop of one cell.
"""

from pathlib import Path

from pydantic import Field

from deconfound.data.ingest.writing import IndexOptions, screen_of_index
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles

SUMMARY = "LINCS-SC: 200,000 single cells in Cell Painting under 101 compounds, 25 plate maps"
PAPER = "Pernice et al., Out of Distribution Generalization via Interventional Style Transfer, 2023"
COMPOUND, PLATE_MAP = "Metadata_Perturbation", "Metadata_PlateMap"
SERIES, PLATE, WELL = "Metadata_Series", "Metadata_Plate", "Metadata_Well"


class Config(IndexOptions):
    """Options of LINCS-SC."""

    size: int = Field(96, ge=1)
    """Resize to SIZE × SIZE pixels; the paper states no size."""
    channels: tuple[str, str, str, str, str] = ("DNA", "ER", "RNA", "AGP", "Mito")
    """Names of the five channels of Cell Painting, in the order of the files; those X of
    FileName_X, where each has its own."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the crops that the index in `root` lists as a screen at `out` and open it.

    Images (N, 5, size, size) of the files' type. The index has the columns `Metadata_Perturbation`
    (the label: the compound, DMSO of the controls), `Metadata_Series`, `Metadata_Plate`,
    `Metadata_PlateMap`, `Metadata_Well` and, relative to `root`, `Metadata_Path`, or FileName_X for
    each channel X; all others are kept. The environment is series and plate, which are also the
    levels: there are no sections, so no fold of a section.

    Raises UserError for a column or file that is missing, files of other than five channels, an
    empty label or level, a plate with two maps, a well of a plate with two compounds, and a well of
    a map with two compounds.
    """
    levels = (SERIES, PLATE)
    roles = Roles(label=COMPOUND, environment=levels, levels=levels, well=WELL)
    nested = [(levels, PLATE_MAP), ((*levels, WELL), COMPOUND), ((PLATE_MAP, WELL), COMPOUND)]
    made = {"made_by": "source lincs_sc", "paper": PAPER}
    return screen_of_index(root, out, roles, config or Config(), nested, **made)
