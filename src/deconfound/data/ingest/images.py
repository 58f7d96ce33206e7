"""Make a screen from the user's own images: a table of image files, or class folders."""

from pathlib import Path
from typing import Any

from pydantic import Field

from deconfound.config import Options, TransformName
from deconfound.data.ingest.fields import FieldCrops
from deconfound.data.ingest.image_problems import image_problems, path_problem
from deconfound.data.ingest.joins import with_joined
from deconfound.data.ingest.paths import class_folders, labelled_by_folder
from deconfound.data.ingest.roles import refusal, resolve_roles
from deconfound.data.ingest.rows import RowReader, image_columns, row_files
from deconfound.data.ingest.writing import (
    PATH_COLUMNS,
    THREADS,
    provenance_of,
    write_screen,
)
from deconfound.data.readers.axes import Project
from deconfound.data.readers.bounds import MAX_PIXELS
from deconfound.data.readers.resizing import Fit
from deconfound.data.screens.screen import Screen
from deconfound.data.screens.zarr_images import ImageFormat
from deconfound.data.tables.image_table import joined_by_image, without_image_prefix
from deconfound.data.tables.table import read_table
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.files.checksums import sha256
from deconfound.runtime import stop
from deconfound.runtime.cluster import Cluster


class IngestConfig(Options):
    """How a table and its images become a screen."""

    path_column: str | None = None
    """Column of image paths, relative to the images' folder; looked up if not given (Metadata_Path,
    Path, File, FileName or Image, or CellProfiler's FileName_X and PathName_X)."""
    channel_columns: tuple[str, ...] = ()
    """Columns of image paths, one per channel, where each channel has its own file."""
    image_table: Path | None = None
    """CellProfiler's table of images (Image.csv): its files and metadata are joined to the rows of
    the table, of cells (Cells.csv, Nuclei.csv), by ImageNumber."""
    join: tuple[str, ...] = ()
    """Tables whose columns are joined to the rows, in this order: FILE, by the columns that both
    have, or FILE=COLUMN or FILE=COLUMN,COLUMN, by these. Every row must have one row there."""
    platemap: tuple[Path, ...] = ()
    """Plate maps of 96, 384 or 1,536 wells, CSV or TSV, or folders of them, whose columns are
    joined to the rows by well (well_position, Well, well) and plate."""
    barcode_platemap: Path | None = None
    """Table of plates (Assay_Plate_Barcode) and the names of their maps (Plate_Map_Name); if not
    given, barcode_platemap.csv beside the maps, or one map for all plates."""
    class_folders: bool = False
    """The images lie in LABEL/file: the folder is the label of each row, whose path in the table is
    LABEL/file or the file's name alone."""
    crop: int | None = Field(None, ge=1)
    """The images are fields of view: cut a square of CROP × CROP pixels around the cell of every
    row. Cells whose square would leave the field are dropped and counted."""
    centre_columns: tuple[str, ...] = ()
    """Columns of the cells' x and y in pixels, for --crop; looked up if not given
    (Nuclei_Location_Center_X and _Y, and CellProfiler's and DeepProfiler's other names)."""
    label: str | None = None
    """Column to predict; if not given, the first present of Metadata_Perturbation, Metadata_Gene,
    Metadata_sgRNA, Metadata_JCP2022, Metadata_Label."""
    environment: tuple[str, ...] = ()
    """Column or columns (joined) of the nuisance; Metadata_Environment, or else the levels."""
    levels: tuple[str, ...] = ()
    """Nested levels, outermost first; if not given, those present of Metadata_Source,
    Metadata_Series, Metadata_Batch, Metadata_Plate, Metadata_Section, or else the environment."""
    well: str | None = None
    """Column of the well; Metadata_Well where there is one."""
    split: str | None = None
    """Column of a given split (train, val, id_test, test); Metadata_Split where there is one."""
    channels: tuple[str, ...] = ()
    """Channel names; the columns' with one file per channel, those that the first OME-TIFF gives,
    R, G, B for colour PNG, JPEG and BMP, else channel_0, channel_1 … Of CellProfiler's FileName_X
    it chooses those X, in this order. The alpha channel of a PNG is dropped unless it is named
    here."""
    name: str | None = None
    """The screen's name; the output folder's name if not given."""
    size: int | None = Field(None, ge=1)
    """Resize every image or crop to SIZE × SIZE: area mean to shrink, linear to enlarge."""
    fit: Fit | None = None
    """What is done with images that are not SIZE × SIZE, or without --size not of the first one's
    height and width: resize (changes the scale), pad (zeros around, scale kept) or crop (the
    middle, scale kept). If not given, --size resizes and says so, and without it images of another
    size are refused."""
    project: Project | None = None
    """What becomes of the depth (z) and time of image files: max, mean or middle plane. Stacks are
    refused if it is not given."""
    rgb: bool = False
    """Repeat grey images to three channels, where a data set mixes grey and colour."""
    transform: TransformName = "none"
    """Intensity transform of the runs on this screen: none, arcsinh or percentile, which stretches
    each channel between its 0.1 and 99.9 percentiles. It is recorded, and fit can choose another;
    pixels are stored as they are."""
    percentile_by: str | None = None
    """Column, such as Metadata_Plate, whose groups share percentiles; each image has its own if
    not given."""
    image_format: ImageFormat = Field("npy", exclude_if=lambda given: given == "npy")
    """How the screen holds images: npy, as NumPy files, or zarr, as one Zarr array, packed in
    shards."""
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Largest image read, height × width × channels, with every plane of a stack."""
    allow_outside: bool = False
    """Accept paths and symbolic links that lead out of the images' folder."""
    threads: int = Field(THREADS, ge=1)
    """Files read at a time."""

    def named_columns(self) -> set[str]:
        """The columns that an option names."""
        one = (self.path_column, self.label, self.well, self.split)
        several = (*self.channel_columns, *self.centre_columns, *self.environment, *self.levels)
        return {name for name in (*one, *several) if name is not None}


@stop.told(stop.RESUMES)
def ingest(
    table: Path | None,
    images_root: Path,
    out: Path,
    *,
    config: IngestConfig | None = None,
    quiet: bool = False,
    cluster: Cluster | None = None,
) -> Screen:
    """Write the images below `images_root` as a screen at `out` and open it.

    `table`, as `read_table` reads it, has one row per image, in one file or in one per channel, or
    with `config.crop` one row per cell, many to a field of view; `config.image_table` is joined to
    it, and `Image_Metadata_X` becomes `Metadata_X`. The screen's table has the rows kept, in their
    order. With `config.class_folders` the images lie in LABEL/file. Without a table they lie in
    ENVIRONMENT/LABEL/file and the table gets the columns Metadata_Environment, Metadata_Label and
    Metadata_Path. Pixels keep their type (uint8, uint16 or float32). Memory stays bounded whatever
    the number of images. Unless `quiet`, the terminal shows the rate and the time left. A killed or
    stopped call is resumed as `write_screen` says. Workers of a `cluster` read the images.

    Raises UserError, and leaves nothing at `out`, for a role without a column, an empty label,
    environment or level, a path that is missing or leaves `images_root`, a file that cannot be
    read, or one whose channels, size or type differ from the first, and for a centre outside its
    field; each names row, column and file.
    """
    config = config or IngestConfig()
    out = Path(out)
    images_root = Path(images_root)
    refuse_existing(out)
    command = ["deconfound", "ingest", *([] if table is None else [str(table)])]
    command += ["--images-root", str(images_root), "--out", str(out)]
    unnamed = 0
    joined_files: dict[str, Any] = {}
    if table is None:
        if config.class_folders:
            raise UserError(
                "--class-folders needs a table that gives the environment of each file; without a "
                "table the images lie in ENVIRONMENT/LABEL/file, drop the flag"
            )
        if config.image_table is not None:
            raise UserError("--image-table needs a table of cells beside it; give both")
        if config.join or config.platemap:
            option = "--join" if config.join else "--platemap"
            raise UserError(f"{option} needs a table of images to join to; give both")
        where = str(images_root)
        metadata = class_folders(images_root, allow_outside=config.allow_outside)
        columns = PATH_COLUMNS
    else:
        where = str(table)
        metadata = read_table(table)
        if config.image_table is not None:
            metadata = joined_by_image(metadata, config.image_table, where, config.named_columns())
        metadata = without_image_prefix(metadata, config.named_columns())
        metadata, joined_files = with_joined(metadata, config, where)
        try:
            columns = image_columns(
                metadata,
                where,
                path=config.path_column,
                per_channel=config.channel_columns,
                channels=config.channels,
            )
        except UserError as error:
            problem = path_problem(error, metadata, config, where)
            if not config.class_folders:
                resolve_roles(metadata, config, where, command, others=lambda: [problem])
            if not problem.options:
                raise
            said = refusal(metadata, config, where, command, [problem])
            raise UserError(said) from error
        if config.class_folders:
            if columns.channels:
                raise UserError(
                    f"{where}: --class-folders with one file per channel; name one column with "
                    "--path-column"
                )
            metadata, unnamed = labelled_by_folder(
                metadata, columns.columns[0].name, images_root, where
            )
            columns = PATH_COLUMNS

    def open_reader() -> RowReader:
        files = row_files(
            metadata,
            columns,
            images_root,
            where,
            allow_outside=config.allow_outside,
            shared=config.crop is not None,
        )
        return RowReader(
            files,
            columns,
            where,
            channels=config.channels,
            max_pixels=config.max_pixels,
            rgb=config.rgb,
            project=config.project,
        )

    roles = resolve_roles(
        metadata,
        config,
        where,
        command,
        row_is_image=config.crop is None,
        others=lambda: image_problems(open_reader, config, where),
    )
    reader = open_reader()
    crops = None
    if config.crop is None and config.centre_columns:
        raise UserError("--centre-columns is for fields of view; give --crop, the side of a cell")
    if config.crop is not None and cluster is not None:
        raise UserError("--executor ray reads whole images; crops are cut here, leave it out")
    if config.crop is not None and config.fit is not None:
        raise UserError("--fit is for whole images, crops are of one size; leave it out")
    if config.crop is not None:
        crops = FieldCrops(
            reader,
            metadata,
            where,
            columns=config.centre_columns,
            crop=config.crop,
            size=config.size,
            threads=config.threads,
        )
    scaled = config.size if config.fit in (None, "resize") else None
    made = provenance_of(table, images_root, config, scaled) | joined_files
    if config.image_table is not None:
        made["image_table_sha256"] = sha256(config.image_table)
    made["files_without_row"] = unnamed
    return write_screen(
        reader,
        metadata,
        out,
        roles,
        made,
        name=config.name or out.name,
        size=config.size,
        fit=config.fit,
        threads=config.threads,
        crops=crops,
        transform=config.transform,
        percentile_by=config.percentile_by,
        image_format=config.image_format,
        quiet=quiet,
        cluster=cluster,
    )
