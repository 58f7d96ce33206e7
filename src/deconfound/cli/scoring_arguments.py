"""The arguments of the forms of measure; the docstring of a field is its help."""

from pathlib import Path

from pydantic import Field
from tyro.conf import Positional

from deconfound.cli.arguments import ClusterArguments, ComputedArguments, Tabled, Watched
from deconfound.config import RelativeTo


class ScoresArguments(Watched, Tabled):
    """Base of the verbs that write scores."""

    out: Path
    """The Parquet file of scores to write."""
    all: bool = False
    """Print every score, one a line, instead of a summary."""


class MeasureArguments(ScoresArguments, ClusterArguments):
    """Score embeddings files."""

    embeddings: Positional[tuple[Path, ...]]
    """One or more .h5ad files, or directories of embeddings."""
    seed: int = 0
    """Seed of the sub-samples that probes and neighbour graphs are computed on."""


class RelationsArguments(ScoresArguments):
    """Score embeddings of genes against known complexes."""

    aggregates: Positional[tuple[Path, ...]]
    """One or more files of genes, made by aggregate."""
    complexes: Path
    """Known complexes: lines of a name and genes, CORUM's download, GMT, or pairs."""


class RetrievalArguments(ScoresArguments):
    """Score whether profiles of a perturbation, the label, find each other first."""

    embeddings: Positional[tuple[Path, ...]]
    """One or more .h5ad files of profiles: of aggregate --level guide, or of a screen of wells."""
    target: str | None = None
    """Column of targets or mechanisms, for consistency."""
    control: str | None = None
    """COLUMN=VALUE of the negative controls; if not given, Metadata_Control_Type=negcon, or where
    that column is missing the label nontargeting."""
    parts: tuple[str, ...] = ()
    """Parts of the fold to score, such as test; all if not given."""
    details: Path | None = None
    """Parquet file to write with a row for each perturbation or target."""
    null_size: int = Field(10_000, ge=1)
    """Rankings drawn at random for the p-values."""
    seed: int = 0
    """Seed of these draws."""


class ImputationArguments(ComputedArguments, Tabled):
    """Score the images that a run imputes, against the true ones of planted environments."""

    run: Positional[Path]
    """Directory of a finished run of a method that imputes, such as ist."""
    screen: Positional[Path]
    """The screen it was fitted on, made by simulate or inject."""
    out: Path
    """The Parquet file of scores to write; the oracle is kept beside it."""
    all: bool = False
    """Print every score, one a line, instead of a summary."""
    images: int = Field(2_000, ge=1)
    """Cells of a part at most, drawn by the seed."""
    style_images: int = Field(1, ge=1)
    """Images of an environment that one style is averaged over; 1 as in the paper."""
    relative_style: RelativeTo | None = None
    """Images keep how their style differs from the mean style of their environment, over all of its
    images or over its negative controls."""
    oracle_steps: int = Field(400, ge=1)
    """Training steps of the oracle that says which label an image shows."""
    seed: int = 0
    """Seed of the cells, environments and style images, and of the oracle."""
