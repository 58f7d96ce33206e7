"""Sections of a report with images, matrices and plates, each with its place in the page."""

from typing import NamedTuple

from markupsafe import Markup

from deconfound.reports.cells import read_cells
from deconfound.reports.confusion import confusion_matrices
from deconfound.reports.neighbours import nearest_cells
from deconfound.reports.plates import plate_layouts
from deconfound.reports.samples import sample_images
from deconfound.reports.sources import Sources


class Section(NamedTuple):
    """A section of the page."""

    place: str
    """Its id."""
    title: str
    body: Markup


def sections(sources: Sources, seed: int) -> tuple[list[Section], list[Section]]:
    """The sections before the scores and those after them; none that would be empty.

    Raises UserError if a file of embeddings can no longer be read.
    """
    cells = read_cells(sources.samples)
    before = [Section("images", "Sample images", sample_images(sources.runs, cells, seed))]
    after = [
        Section("labels", "Labels", confusion_matrices(cells)),
        Section("plates", "Plates", plate_layouts(cells)),
        Section(
            "neighbours", "Neighbours across environments", nearest_cells(cells, sources.runs, seed)
        ),
    ]
    return [one for one in before if one.body], [one for one in after if one.body]
