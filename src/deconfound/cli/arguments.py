"""The arguments of the verbs; the docstring of a field is its help."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from deconfound.config import Documented, RelativeTo

if TYPE_CHECKING:
    from deconfound.runtime.cluster import Cluster


class Arguments(Documented):
    """Base of the arguments of every verb."""


class Watched(Arguments):
    """Base of the verbs that show their progress."""

    quiet: bool = False
    """No progress bar, and no table of what is written."""


class Tabled(Arguments):
    """Base of the verbs that print a table."""

    as_json: Annotated[bool, arg(name="json")] = False
    """Print one JSON document on stdout instead, and nothing else there."""


class ListArguments(Tabled):
    """List what there is."""


class NewScreenArguments(Arguments):
    """Base of the verbs that make a screen."""

    out: Path
    """Screen to write; must not exist."""


class ComputedArguments(Watched):
    """Base of the verbs that run a network."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """Processor threads; all cores if not given."""


class ClusterArguments(Arguments):
    """Base of the verbs whose work a cluster can share."""

    executor: Literal["local", "ray"] = "local"
    """This process, or the workers of a Ray cluster, who share the folders named."""
    workers: int | None = None
    """Ray workers, of --threads processors each where embed runs them, else of one; as many as the
    cluster holds if not given."""
    address: str | None = None
    """Address of the Ray cluster; one is started here if not given."""

    def cluster(self) -> "Cluster | None":
        """The cluster that the options name, None for this process; raises as `cluster_of` does."""
        from deconfound.runtime.cluster import cluster_of

        return cluster_of(self.executor, self.workers, self.address)


class SimulateArguments(NewScreenArguments, Watched):
    """Make a screen of cells with planted truth."""


class IngestArguments(NewScreenArguments, Watched, ClusterArguments):
    """Make a screen of image files, of folders ENVIRONMENT/LABEL/, of profiles or of an array."""

    table: Positional[Path | None] = None
    """CSV, TSV or Parquet with one row per image; leave it out for class folders. Of --profiles
    also an .h5ad file, a directory of embeddings, or DeepProfiler's folder of .npz files."""
    images_root: Path | None = None
    """Folder that the paths in the table start from, or that holds the class folders."""
    profiles: bool = False
    """The table (or an AnnData .h5ad) holds features, such as CellProfiler's, and no images."""
    feature_columns: tuple[str, ...] = ()
    """Feature columns of --profiles, * for anything; if not given, those that begin with Cells_,
    Cytoplasm_ or Nuclei_, without coordinates, parents and identifiers."""
    layer: str | None = None
    """Layer of the .h5ad file that holds the profiles, instead of X."""
    obsm: str | None = None
    """Block of obsm of the .h5ad file that holds the profiles, instead of X."""
    array: Path | None = None
    """A .npy or .npz with one image or profile for each row of the table."""
    array_key: str | None = None
    """Which array of a .npz."""
    array_axes: Literal["NCHW", "NHWC"] | None = None
    """Order of the array's axes; if not given, the two equal ones are height and width."""


class InjectArguments(NewScreenArguments, Watched):
    """Put the technical effects of simulated environments into the real cells of a clean screen."""

    cells: Path
    """Screen of images without batches, or whose batches do not matter."""


class DescribeArguments(Watched, Tabled):
    """Say what a screen holds, what can be held out of it, and what is confounded in it."""

    screen: Positional[Path]
    """Screen to describe."""
    out: Path | None = None
    """Directory of tables, a picture and a page to write as well."""
    label: str | None = None
    """Column to predict; the screen's own label if not given."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; the screen's own if not given."""
    levels: tuple[str, ...] = ()
    """Nested levels, outermost first; the screen's own if not given."""
    images: int = 20_000
    """Images at most that statistics of pixels come from, evenly over the environments."""


class FitArguments(Watched):
    """Base of the arguments of fit; each method adds its own."""

    screen: Positional[Path]
    """Screen to train on."""
    out: Path
    """Directory of the run; if it holds this very run, the run is resumed."""
    tracker: str | None = None
    """Where metrics, options and pictures of the run are shown too: tensorboard[:DIRECTORY],
    wandb[:PROJECT] (offline unless WANDB_MODE says otherwise) or mlflow[:DIRECTORY or address]; in
    the directory of the run if no place is given. metrics.csv is always written."""


class EmbedArguments(ComputedArguments, ClusterArguments):
    """Embed every image of a screen with a run."""

    run: Positional[Path]
    """Directory of a finished run."""
    screen: Positional[Path]
    """Screen to embed; any with the same channels."""
    out: Path
    """The .h5ad file to write; a name without an end is a directory of Parquet files."""
    selection: Literal["loss", "accuracy", "last"] | None = None
    """Another checkpoint than the one the run selected."""
    precision: Literal["auto", "32", "bf16"] = "32"
    """Precision of the network."""


class CorrectArguments(Arguments):
    """Base of the arguments of correct; each post hoc method adds its own."""

    embeddings: Positional[Path]
    """The .h5ad file, or directory of embeddings, to correct."""
    out: Path
    """The .h5ad file to write."""
    representation: str = "representation"
    """Which block is corrected and kept: representation, content or style."""
    knn: int | None = Field(None, ge=1)
    """Neighbours of each row, training rows all, that vote for its label; if not given, 10 for knn,
    and nothing is predicted otherwise."""
    reference: Path | None = None
    """Embeddings of the screen trained on, by the same run, to learn from; if not given, the
    training rows of the file itself."""
    control: str | None = None
    """COLUMN=VALUE of the negative controls, for methods that need them; if not given,
    Metadata_Control_Type=negcon, or where that column is missing the label nontargeting."""


class CellprofilerArguments(Watched):
    """Measure the features of CellProfiler on every image: a screen of profiles."""

    screen: Positional[Path]
    """Screen of images."""
    out: Path
    """Directory of the screen of profiles to write."""
    mask: str | None = None
    """Channel whose pixels above 0 are the object, itself not measured; the whole image if not
    given."""
    slow: bool = False
    """Measure granularity and Costes' correlation too, which takes five times as long."""


class ProfilesArguments(Arguments):
    """Write the profiles of a screen as they are as an embeddings file."""

    screen: Positional[Path]
    """Screen of profiles."""
    out: Path
    """The .h5ad file to write."""


class AggregateArguments(Watched):
    """Average embeddings of cells per guide and per gene."""

    embeddings: Positional[Path]
    """The .h5ad file of cells."""
    out: Path
    """The .h5ad or .parquet file to write."""


class CompareArguments(Watched, Tabled):
    """Compare methods on held-out groups: a table of scores, and what the scores say."""

    source: Positional[str]
    """A screen, a table of images or profiles, a plan FILE.yaml, or demo, which simulates one."""
    out: Path
    """Directory to write; runs that it holds are not done again."""


class TransferArguments(Watched):
    """Swap content and style blocks between cells, or impute a screen into one environment."""

    run: Positional[Path]
    """Directory of a finished run."""
    screen: Positional[Path]
    """Screen to take the cells from."""
    out: Path
    """Directory to write."""
    to: str | None = None
    """Environment of training to impute the images into, with a run of a method that imputes."""
    images: int | None = None
    """Cells on each side of the grid, 8 if not given; with --to images to impute, all if not
    given."""
    relative_style: RelativeTo | None = None
    """With --to: images keep how their style differs from the mean style of their environment, over
    all of its images or over its negative controls."""
    seed: int = 0
    """Seed of the choice of cells and styles."""


class ExportArguments(Watched):
    """Write a screen as OME-TIFF files and table.csv, or profiles as Parquet."""

    screen: Positional[Path]
    """Screen to write."""
    out: Path
    """Directory to write; must not exist."""


class ReportArguments(Arguments):
    """Write one self-contained HTML page from runs, embeddings, scores and transfers."""

    directories: Positional[tuple[Path, ...]]
    """Directories or files to report on."""
    out: Path
    """The .html file to write."""


class CheckArguments(Arguments):
    """Verify every file of a screen, a run, embeddings or scores."""

    path: Positional[Path]
    """A screen, a run, finished or not, embeddings, scores, or a directory of them."""
