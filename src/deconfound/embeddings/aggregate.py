"""aggregate: means of the embeddings of cells, for every guide or gene."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from deconfound.arrays import Floats, Mask
from deconfound.config import Options
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE, control_rows, negative
from deconfound.data.readers.blocks import one_block
from deconfound.data.tables.declared import refuse_huge_parquet
from deconfound.data.tables.table import coded, listed, require_columns
from deconfound.embeddings.correct import named_line
from deconfound.embeddings.file import (
    PART,
    PREDICTED,
    Embeddings,
    read_embeddings,
    write_embeddings,
)
from deconfound.embeddings.group_means import (
    GroupMeans,
    Groups,
    group_cells,
    outer_levels,
    refuse_half_controls,
    standardised,
)
from deconfound.errors import UserError
from deconfound.files import atomic, seal
from deconfound.methods import post_hoc
from deconfound.methods.contract.post_hoc import TooFewControls
from deconfound.runs.config import HELD_OUT_NOTES, SAW_HELD_OUT
from deconfound.runtime.progress import Progress

GENE, GUIDE = "Metadata_Gene", "Metadata_sgRNA"
CELLS, GUIDES = "Metadata_Object_Count", "Metadata_Guide_Count"
ALIGNED_BY = {"centre-scale": "standardise", "tvn": "tvn"}
CHUNK_ROWS = 65_536
ABOUT = b"deconfound"
"""Key of `Aggregate.about` in the metadata of a Parquet file."""


class AggregateOptions(Options):
    """How cells become guides, and guides genes."""

    representation: str | None = None
    """Block to aggregate; content if there is any, else representation."""
    gene: str | None = None
    """Column of genes; Metadata_Gene if there, else the label."""
    guide: str | None = None
    """Column of guides; Metadata_sgRNA if there, else cells are averaged straight to genes."""
    control: str | None = None
    """COLUMN=VALUE of the negative controls; if not given, Metadata_Control_Type=negcon, or where
    that column is missing the gene nontargeting."""
    level: Literal["gene", "guide"] = "gene"
    """What a row is: the mean of a gene's guides, or a guide."""
    within: tuple[str, ...] = ()
    """Columns, such as Metadata_Plate, whose values are kept apart: a row for each gene in each.
    Levels around one of them in which its values repeat, such as the series, are kept apart too."""
    parts: tuple[str, ...] = ()
    """Parts of the fold to aggregate, such as test; all if not given."""
    align: Literal["none", "centre-scale", "tvn"] = "none"
    """Cells as they are, and genes standardised (Makino et al.); or the cells of every environment
    aligned on its controls first, and genes left as they are (EFAAR)."""
    align_on: Literal["train", "all"] = "train"
    """Cells that the alignment learns from: training rows, or all."""


@dataclass(frozen=True)
class Aggregate:
    """Guides or genes, one row for each."""

    table: pd.DataFrame
    """Metadata_Gene, Metadata_sgRNA of guides, the columns kept apart, Metadata_Control_Type
    (negcon or treatment) and the number of cells, and of guides of a gene."""
    values: npt.NDArray[np.float32]
    """(G, D)."""
    representation: str
    about: dict[str, Any]
    """What the embeddings file holds of its run; under "aggregated", how cells were averaged."""

    @property
    def control(self) -> Mask:
        """(G,) whether each row is a negative control."""
        return negative(self.table)

    @property
    def part(self) -> str:
        """The part of the fold that was aggregated, "all" for several."""
        parts = self.about["aggregated"]["parts"]
        return str(parts[0]) if len(parts) == 1 else "all"


def aggregate(
    embeddings: Path, out: Path, options: AggregateOptions | None = None, *, quiet: bool = False
) -> Aggregate:
    """Average the cells of an embeddings file by guide, and guides by gene; write `out`.

    The mean of the controls is subtracted and every dimension standardised over the rows (Makino et
    al., SCBD, A.3). With `align`, cells are aligned on controls before they are averaged instead
    (Celik et al. 2024); what either leaves out is told in `about["aggregated"]["notes"]`, which is
    missing where nothing is. `out` is AnnData (.h5ad, an embeddings file whose rows are genes) or
    Parquet (Metadata_ columns, then features). Raises UserError if `out` exists or is being
    written, for a missing column or block, for what `group_cells` and `control_rows` refuse, and
    for an environment without controls to align on.
    """
    options, out = options or AggregateOptions(), Path(out)
    if out.suffix not in (".h5ad", ".parquet"):
        raise UserError(f"{out}: expected a name ending in .h5ad or .parquet")
    with atomic.claimed(out):
        opened = read_embeddings(
            embeddings, lambda names: one_block(_block_name(names, options))(names)
        )
        made = _aggregated(opened, options, str(embeddings), quiet)
        write = _write_anndata if out.suffix == ".h5ad" else _write_parquet
        write(out, made)
    return made


def _aggregated(
    opened: Embeddings, options: AggregateOptions, where: str, quiet: bool
) -> Aggregate:
    if "aggregated" in opened.about:
        raise UserError(f"{where}: is aggregated already; name the file it was made of")
    table = opened.table
    name = _block_name(list(opened.representations), options)
    cells = opened.block(name, where)
    gene, guide = _columns(opened, options, where)
    outer = outer_levels(table, options.within, opened.roles.levels)
    options = options.model_copy(update={"within": (*outer, *options.within)})
    control = control_rows(table, gene, options.control, where)
    groups = group_cells(table, gene, guide, options.within, where)
    refuse_half_controls(groups, control, where)
    taken = opened.of_parts(options.parts, where)
    aligned, notes = _aligned(opened, cells, control, options, where)
    means = GroupMeans(len(groups.gene), aligned.shape[1])
    controls = np.zeros(len(groups.gene), dtype=bool)
    code = np.where(taken, groups.guide, -1)
    controls[code[control & (code >= 0)]] = True
    with Progress("aggregate", len(table), "cells", quiet=quiet) as progress:
        for start in range(0, len(table), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            means.add(aligned[rows], code[rows])
            progress.update(len(code[rows]))
    rows_table, values = _levelled(means, groups, controls, options.level, guide is not None)
    is_control = (rows_table[CONTROL_TYPE] == NEGATIVE).to_numpy()
    if not is_control.any():
        raise UserError(f"{where}: no controls among rows of {', '.join(options.parts)}")
    if outer:
        notes.append(f"kept apart by {listed(outer)} too, in which what is kept apart repeats")
    if options.align == "none":
        values = standardised(values, is_control)
        if even := int((values == 0).all(axis=0).sum()):
            every = values.shape[1]
            notes.append(f"{even} of {every} dimensions do not vary beyond rounding and are 0")
    about = opened.about | {
        "roles": {"label": GENE, "environment": list(options.within)},
        "aggregated": options.model_dump(mode="json")
        | {"gene": gene, "guide": guide, "parts": list(options.parts), "from": Path(where).name},
    }
    if notes:
        about["aggregated"]["notes"] = notes
    if options.align != "none" and options.align_on == "all":
        about["saw_held_out"] = True
        if HELD_OUT_NOTES in about:
            about[HELD_OUT_NOTES] = list(dict.fromkeys([*about[HELD_OUT_NOTES], SAW_HELD_OUT]))
    return Aggregate(rows_table, values.astype(np.float32), name, about)


def _block_name(names: list[str], options: AggregateOptions) -> str:
    """The block to aggregate."""
    return options.representation or ("content" if "content" in names else "representation")


def _columns(opened: Embeddings, options: AggregateOptions, where: str) -> tuple[str, str | None]:
    """The names of the columns of genes and of guides."""
    table = opened.table
    gene = options.gene or (GENE if GENE in table.columns else opened.roles.label)
    guide = options.guide or (GUIDE if GUIDE in table.columns else None)
    named = [one for one in (gene, guide, *options.within) if one is not None]
    require_columns(table, named, where)
    if gene is None:
        raise UserError(f"{where}: no column {GENE} and no label; name the genes with --gene")
    return gene, guide


def _aligned(
    opened: Embeddings, values: Floats, control: Mask, options: AggregateOptions, where: str
) -> tuple[Floats, list[str]]:
    """The representation of all rows, aligned on controls if asked, and what that left out."""
    if options.align == "none":
        return values, []
    environment = coded(opened.environment())
    fitted = (opened.part == "train") | (options.align_on == "all")
    if not fitted.any():
        raise UserError(
            f"{where}: holds no training rows to learn the alignment from; add --align-on all to "
            "learn it from all rows"
        )
    method = post_hoc.load(ALIGNED_BY[options.align])
    alignment = method(method.Options())
    try:
        alignment.fit(values[fitted], environment.codes[fitted], control[fitted])
        aligned = alignment.transform(values, environment.codes, control)
    except TooFewControls as error:
        raise UserError(f"{where}: {named_line(error, environment.names)}") from error
    return aligned, [f"{options.align}: {note}" for note in alignment.notes()]


def _levelled(
    means: GroupMeans, groups: Groups, control: Mask, level: str, guided: bool
) -> tuple[pd.DataFrame, npt.NDArray[np.float64]]:
    """The table and the values of the guides or genes that have cells."""
    found = means.rows > 0
    values, cells = means.means(), means.rows
    table = groups.guides
    if level == "gene":
        of_gene = GroupMeans(len(groups.genes), values.shape[1])
        of_gene.add(values, np.where(found, groups.gene, -1))
        table = groups.genes.copy()
        if guided:
            table["guides"] = of_gene.rows
        cells = np.bincount(groups.gene, weights=cells, minlength=len(table)).astype(np.int64)
        control = np.bincount(groups.gene, weights=control, minlength=len(table)) > 0
        found, values = of_gene.rows > 0, of_gene.means()
    table = table.rename(columns={"gene": GENE, "guide": GUIDE, "guides": GUIDES})
    table = table.rename(
        columns=lambda one: one if one.startswith("Metadata_") else f"Metadata_{one}"
    )
    table[CONTROL_TYPE] = np.where(control, NEGATIVE, "treatment")
    table[CELLS] = cells
    return table[found].reset_index(drop=True), values[found]


def _write_anndata(path: Path, made: Aggregate) -> None:
    table = made.table.copy()
    table[PART] = made.part
    table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
    write_embeddings(path, Embeddings(table, {made.representation: made.values}, made.about))


def _write_parquet(path: Path, made: Aggregate) -> None:
    features = [f"{made.representation}_{number}" for number in range(made.values.shape[1])]
    frame = pd.concat([made.table, pd.DataFrame(made.values, columns=features)], axis=1)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    known = table.schema.metadata or {}
    table = table.replace_schema_metadata(known | {ABOUT: json.dumps(made.about).encode()})
    seal.write_parquet(path, table)


def read_aggregate(path: Path) -> Aggregate:
    """Read what `aggregate` wrote; raises UserError for any other file."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    opened = read_embeddings(path)
    if "aggregated" not in opened.about:
        raise _not_aggregated(path)
    (name, values), *_ = opened.representations.items()
    return Aggregate(opened.table.drop(columns=[PART, PREDICTED]), values, name, opened.about)


def _read_parquet(path: Path) -> Aggregate:
    if not path.is_file():
        raise UserError(f"{path}: no such file; make one with `deconfound aggregate`")
    seal.verify(path)
    try:
        refuse_huge_parquet(path)
        stored = pq.read_table(path, page_checksum_verification=True)
        about = json.loads((stored.schema.metadata or {})[ABOUT])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise _not_aggregated(path) from error
    frame = stored.to_pandas()
    metadata = [name for name in frame.columns if name.startswith("Metadata_")]
    features = [name for name in frame.columns if name not in metadata]
    values = frame[features].to_numpy(dtype=np.float32)
    return Aggregate(frame[metadata], values, features[0].rpartition("_")[0], about)


def _not_aggregated(path: Path) -> UserError:
    return UserError(f"{path}: was not written by `deconfound aggregate`; make one of embeddings")
