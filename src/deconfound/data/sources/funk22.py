"""Funk22: 26 million cells of an optical pooled screen of 5,000 genes, as packed for SCBD.

The archive could not be read here: this loader was written from the paper and from what the public
code of its authors says of the files, and tested on small LMDBs in that layout.
"""

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from pydantic import Field

from deconfound.arrays import Pixels
from deconfound.config import Options
from deconfound.data.folds.controls import CONTROL_TYPE, NEGATIVE
from deconfound.data.ingest.rows import CHUNK_IMAGES
from deconfound.data.ingest.writing import (
    THREADS,
    identity_of,
    refuse_full_disk,
    resizing,
)
from deconfound.data.readers.lmdb import LmdbImages
from deconfound.data.readers.resizing import resampled
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.simulation.layout import SPLIT, random_split
from deconfound.data.tables.compressed import readable
from deconfound.data.tables.table import Roles, refuse_divided, refuse_empty, require_columns
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.files.checksums import sha256
from deconfound.runtime import stop
from deconfound.runtime.prefetch import in_order
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import numpy_stream

SUMMARY = "Funk22: 26 million cells of a pooled screen of 5,000 genes, 34 wells in 6 plates"
PAPER = "Makino et al., Supervised Contrastive Block Disentanglement (SCBD), 2025"

CHANNELS = ("DNA damage", "F-actin", "DNA content", "Microtubules")
SHAPE = (4, 100, 100)
TILE, BORDER = 2960, 50  # pixels
GENE, GUIDE, PLATE, WELL = "Metadata_Gene", "Metadata_sgRNA", "Metadata_Plate", "Metadata_Well"
SITE, CELL = "Metadata_Site", "Metadata_CellID"
FOLDERS = {"perturbed": "treatment", "ntc": NEGATIVE}
"""The two LMDBs, and the control type of their cells."""
CATEGORIES = {"plate": PLATE, "well": WELL, "tile": SITE, "gene_symbol_0": GENE, "sgRNA_0": GUIDE}
IDS, PLACES = ("UID", "index"), ("cell_i", "cell_j")
KEYS = 4096  # looked up at a time
ROWS_READ = 1_000_000  # of key.csv at a time


class Config(Options):
    """Options of Funk22."""

    size: int = Field(64, ge=1)
    """Resize to SIZE × SIZE pixels; the crops have 100."""
    plates: tuple[str, ...] = (
        "20200202_6W-LaC024A",
        "20200202_6W-LaC024D",
        "20200202_6W-LaC024E",
        "20200202_6W-LaC024F",
        "20200206_6W-LaC025A",
        "20200206_6W-LaC025B",
    )
    """Plates taken; cells of others are left out."""
    seed: int = 0
    """Seed of the split."""
    threads: int = Field(THREADS, ge=1)
    """Threads that resize."""


@stop.told(stop.RESUMES)
def make(root: Path, out: Path, config: Config | None = None) -> Screen:
    """Write the cells of the two LMDBs in `root` (perturbed and ntc) at `out` and open the screen.

    Each folder has a `key.csv` with the columns UID, plate, well, tile, gene_symbol_0, sgRNA_0,
    index, cell_i and cell_j, and an LMDB whose record UID_plate_well_tile_gene_index holds the
    crop, 4 × 100 × 100 little-endian uint16. Cells within 50 px of the border of their tile (2960
    px) are dropped. Images (N, 4, size, size) uint16. Columns: `Metadata_Gene` (the label),
    `Metadata_sgRNA`, `Metadata_Plate`, `Metadata_Well` (together the environment, and the levels),
    `Metadata_Site`, `Metadata_CellID` (folder/UID), `Metadata_Control_Type` and `Metadata_Split`
    (train, val and test, 83, 2 and 15 of 100 cells at random). The table is held in memory, the
    pixels are not. A killed or stopped call is resumed by the same call.

    All records are looked up before the first is read. Raises UserError for a missing folder,
    column, gene, guide or record, a guide of two genes, a repeated cell, no controls, no cells
    left, and a record of another size.
    """
    config = config or Config()
    root, out = Path(root), Path(out)
    refuse_existing(out)
    with ExitStack() as stack:
        stores, tables = [], []
        made: dict[str, Any] = {
            "made_by": "source funk22",
            "paper": PAPER,
            "options": config.model_dump(mode="json"),
            "resize": resizing(config.size),
            "cells": {},
            "sha256": {},
        }
        for folder, kind in FOLDERS.items():
            store = LmdbImages(root / folder, SHAPE, np.dtype("uint16"), "source funk22")
            stores.append(stack.enter_context(closing(store)))
            table = _cells(root / folder / "key.csv", config, made)
            tables.append(table.assign(**{CONTROL_TYPE: kind}))
        if not sum(map(len, tables)):
            raise UserError(
                f"{root}: no cells of the plates {', '.join(config.plates)} away from the border "
                "of their tile; name others with --plates"
            )
        if not len(tables[1]):
            raise UserError(
                f"{root / 'ntc' / 'key.csv'}: no controls on these plates; expected cells of "
                "non-targeting guides"
            )
        for store, table, folder in zip(stores, tables, FOLDERS, strict=True):
            for start in range(0, len(table), KEYS):
                some = _keys(table, slice(start, start + KEYS))
                store.refuse_unfit(some, str(root / folder / "key.csv"), start)
        rows, size = sum(map(len, tables)), config.size
        refuse_full_disk(out, rows * SHAPE[0] * size * size * 2)

        def chunk(part: tuple[int, slice]) -> Pixels:
            store, some = part
            images = stores[store].read(_keys(tables[store], some))
            return np.stack([resampled(image, (size, size)) for image in images])

        roles = Roles(  # the release has one order of its cells
            label=GENE,
            environment=(PLATE, WELL),
            levels=(PLATE, WELL),
            well=WELL,
            split=SPLIT,
            identifier=(),
        )
        data = [(root / folder / "data.mdb",) for folder in FOLDERS]
        with (
            ScreenWriter(out, out.name, CHANNELS, roles, made, identity_of(made, data)) as writer,
            Progress("source funk22", rows, "cells", writer.rows) as progress,
        ):
            for images in in_order(chunk, _parts(tables, writer.rows), config.threads):
                writer.append(images)
                progress.update(len(images))
            made["rows"], made["black_images"] = writer.rows, writer.black
            writer.finish(_screen_table(tables, config), "arcsinh")
    return open_screen(out)


def _cells(file: Path, config: Config, made: dict[str, Any]) -> pd.DataFrame:
    """The cells of one key.csv that are kept, in its order, with the screen's names of columns."""
    if not file.is_file():
        raise UserError(
            f"{file}: no such table; --root is the folder with perturbed/ and ntc/, each an LMDB "
            "with its key.csv"
        )
    where, folder = str(file), file.parent.name
    kinds: dict[Hashable, Any] = {
        **dict.fromkeys(CATEGORIES, str),
        **dict.fromkeys(IDS, "string[pyarrow]"),
        **dict.fromkeys(PLACES, "float64"),
    }
    with readable(file):
        require_columns(pd.read_csv(file, nrows=0), map(str, kinds), where)
        table = _key_table(file, kinds)
    named = {name: given for given, name in CATEGORIES.items()}
    levels = (*(named[name] for name in (GUIDE, PLATE, WELL)), *IDS)
    refuse_empty(table, Roles(label=named[GENE], levels=levels), where)
    refuse_divided(table, (named[GUIDE],), (named[GENE],), where)
    table = table.rename(columns=CATEGORIES)
    again = np.flatnonzero(table["UID"].duplicated())
    if len(again):
        uid = table["UID"].iloc[again[0]]
        first = int(np.flatnonzero(table["UID"] == uid)[0])
        raise UserError(
            f"{where}: rows {first} and {again[0]} (from 0) have the same UID ({uid}), "
            f"{len(again)} in all; drop the repeated rows"
        )
    on_plate = table[PLATE].isin(config.plates)
    inside = table[list(PLACES)].ge(BORDER).all(axis=1)
    inside &= table[list(PLACES)].le(TILE - BORDER).all(axis=1)
    made["cells"][folder] = {
        "rows": len(table),
        "of_other_plates": int((~on_plate).sum()),
        "dropped_at_border": int((on_plate & ~inside).sum()),
    }
    made["sha256"][f"{folder}/key.csv"] = sha256(file)
    kept = table[on_plate & inside].reset_index(drop=True)
    for name in CATEGORIES.values():
        kept[name] = kept[name].cat.remove_unused_categories()
    return kept


def _key_table(file: Path, kinds: dict[Hashable, Any]) -> pd.DataFrame:
    """The columns of key.csv; those of `CATEGORIES` as categories of text, "01" being no 1."""
    with pd.read_csv(
        file,
        usecols=list(kinds),
        dtype=kinds,
        keep_default_na=False,
        na_values=[""],
        chunksize=ROWS_READ,
    ) as reader:
        parts = [part.astype(dict.fromkeys(CATEGORIES, "category")) for part in reader]
    categories = {
        name: union_categoricals([part[name] for part in parts], sort_categories=True)
        for name in CATEGORIES
    }
    others = [part.drop(columns=list(CATEGORIES)) for part in parts]
    table: pd.DataFrame = pd.concat(others, ignore_index=True)
    return table.assign(**categories)


def _keys(table: pd.DataFrame, rows: slice) -> list[str]:
    parts = [
        table[name].iloc[rows].astype(str) for name in ("UID", PLATE, WELL, SITE, GENE, "index")
    ]
    return ["_".join(words) for words in zip(*parts, strict=True)]


def _parts(tables: list[pd.DataFrame], start: int) -> Iterator[tuple[int, slice]]:
    """Table and rows of every chunk of cells from the `start`-th on."""
    for store, table in enumerate(tables):
        for first in range(start, len(table), CHUNK_IMAGES):
            yield store, slice(first, min(first + CHUNK_IMAGES, len(table)))
        start = max(0, start - len(table))


def _screen_table(tables: list[pd.DataFrame], config: Config) -> pd.DataFrame:
    for folder, table in zip(FOLDERS, tables, strict=True):
        table[CELL] = folder + "/" + table["UID"]
    whole = pd.concat(tables, ignore_index=True)
    whole[SPLIT] = random_split(len(whole), numpy_stream(config.seed, "funk22", "split"))
    columns = [GENE, GUIDE, PLATE, WELL, SITE, CELL, CONTROL_TYPE, SPLIT]
    kinds = {name: "category" for name in columns if name != CELL}
    return whole[columns].astype(kinds)
