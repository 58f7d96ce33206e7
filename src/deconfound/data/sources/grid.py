"""GRID: fibroblasts of patients with inherited diseases, in sections of plates of series.

The archive could not be read here: this loader was written from the paper and tested on small trees
alone. It takes an index table with the columns named below, one row an image.
"""

from pathlib import Path

from deconfound.data.ingest.writing import IndexOptions, screen_of_index
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles

SUMMARY = "GRID: 17,030 images of fibroblasts of 19 patients, 8 inherited diseases and controls"
PAPER = "Pernice et al., Out of Distribution Generalization via Interventional Style Transfer, 2023"
DISEASE, PATIENT = "Metadata_Disease", "Metadata_Patient"
SERIES, PLATE, SECTION = "Metadata_Series", "Metadata_Plate", "Metadata_Section"
WELL = "Metadata_Well"


class Config(IndexOptions):
    """Options of GRID."""


def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the images that the index in `root` lists as a screen at `out` and open it.

    Images (N, C, size, size) of the files' type and channels; the paper states no count. The index
    has the columns `Metadata_Disease` (the label: 8 diseases and the controls), `Metadata_Patient`,
    `Metadata_Series`, `Metadata_Plate`, `Metadata_Section`, `Metadata_Well` and, relative to
    `root`, `Metadata_Path`, or FileName_X for each channel X; all others are kept. The environment
    is series, plate and section, which are also the levels, outermost first: a section is named
    within its plate and a plate within its series.

    Raises UserError for a column or file that is missing, an empty label or level, a patient of two
    diseases, and a well of a plate that lies in two sections or holds two patients.
    """
    levels, well = (SERIES, PLATE, SECTION), (SERIES, PLATE, WELL)
    roles = Roles(label=DISEASE, environment=levels, levels=levels, well=WELL)
    nested = [((PATIENT,), DISEASE), (well, SECTION), (well, PATIENT)]
    made = {"made_by": "source grid", "paper": PAPER}
    return screen_of_index(root, out, roles, config or Config(), nested, **made)
