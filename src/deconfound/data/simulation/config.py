"""Options of simulated screens and of their environments, and the defaults of each layout."""

from typing import Any, Literal, Self

from pydantic import Field

from deconfound.config import Options
from deconfound.errors import UserError

DEFAULTS: dict[str, dict[str, Any]] = {
    "grid": {"labels": 9, "plates": 2, "wells": 2, "plate_spread": 0.4},
    "lincs": {"labels": 13, "plates": 2, "wells": 2, "plate_spread": 0.4},
    "ops": {"plates": 6, "wells": 34, "plate_spread": 0.8},
}


class EnvironmentOptions(Options):
    """How many nested environments a simulated or injected screen has, and how much they differ."""

    series: int = Field(4, ge=2)
    """Series, the outermost level (grid and lincs)."""
    sections: int = Field(2, ge=1)
    """Sections of a plate (grid only)."""
    maps: int = Field(6, ge=1)
    """Plate maps (lincs only)."""
    technical: float = Field(1.0, ge=0, le=1.5)
    """Scale of all staining and optics; 0 leaves clean images."""
    series_spread: float = Field(1.0, ge=0)
    """Standard deviation of the technical draws from series to series (grid and lincs)."""
    section_spread: float = Field(0.2, ge=0)
    """The same from section to section of a plate (grid only)."""
    seed: int = 0
    """Seed of everything; the same seed gives the same bits on the same kind of processor."""


class SimulateConfig(EnvironmentOptions):
    """A simulated screen; the defaults are those every comparison in the documentation uses."""

    layout: Literal["grid", "lincs", "ops"] = "grid"
    """grid: sections in plates in series, conditions only partly shared. lincs: plate maps with
    exclusive treatments and shared controls, one full series and several partial ones. ops: an
    optical pooled screen, every gene in every well, genes grouped in complexes."""
    cells: int = Field(12_000, ge=1)
    """Cells, dealt evenly to the wells."""
    labels: int | None = Field(None, ge=2)
    """Labels, the control among them; 9 (grid) or 13 (lincs) if not given."""
    plates: int | None = Field(None, ge=1)
    """Plates of a series (grid), replicate plates of a map in a partial series (lincs), or plates
    of the screen (ops); 2, or 6 (ops), if not given."""
    wells: int | None = Field(None, ge=1)
    """Wells of a label in a section (grid) or on a plate (lincs), or of the screen (ops); 2, or 34
    (ops), if not given."""
    genes: int = Field(200, ge=1)
    """Genes, besides the non-targeting controls (ops only)."""
    complexes: int = Field(30, ge=0)
    """Complexes, which hold three genes in four between them (ops only)."""
    guides: int = Field(4, ge=1)
    """Guides of a gene (ops only)."""
    size: int = Field(48, ge=24, le=512)
    """Height and width of an image in pixels; the cells fill it at any size."""
    dtype: Literal["uint8", "uint16"] = "uint8"
    """Pixel type; its largest value is the camera's full scale."""
    strength: float = Field(1.5, ge=0)
    """How far a phenotype moves a trait, in logits of the trait's range; in ops the strongest."""
    variation: float = Field(0.5, ge=0)
    """Standard deviation of a trait from cell to cell, in logits of its range."""
    plate_spread: float | None = Field(None, ge=0)
    """Standard deviation of the technical draws from plate to plate; 0.4, or 0.8 (ops), if not
    given."""
    well_spread: float = Field(0.4, ge=0)
    """The same from well to well of a plate (ops only)."""

    def complete(self) -> Self:
        """A copy with the layout's defaults for options that are not given.

        Raises UserError for labels in a pooled screen.
        """
        if self.layout == "ops" and self.labels is not None:
            raise UserError("--labels with --layout ops, whose labels are genes; give --genes")
        missing = {k: v for k, v in DEFAULTS[self.layout].items() if getattr(self, k) is None}
        return self.model_copy(update=missing)

    def spread(self) -> tuple[float, ...]:
        """Standard deviation of the technical draws at each level, outermost first."""
        plate = self.plate_spread or 0.0
        if self.layout == "ops":
            return plate, self.well_spread
        return self.series_spread, plate, self.section_spread
