"""The embeddings file: AnnData with the table's rows, the representations and the run."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.arrays import Mask, Rows
from deconfound.config import did_you_mean
from deconfound.data.readers.blocks import Blocks, every_block
from deconfound.data.readers.embedded import ADDED, OWN, feature_names, main_block, own_table
from deconfound.data.readers.hdf5 import refuse_unfit_hdf5
from deconfound.data.tables.keys import row_order
from deconfound.data.tables.numbers import numbered
from deconfound.data.tables.table import ROW_NAME, Roles, joined, require_columns
from deconfound.embeddings import conventions
from deconfound.embeddings.shards import read_shards
from deconfound.errors import InputWarning, UserError
from deconfound.files import atomic, seal
from deconfound.files.object_store import fetched, is_url
from deconfound.metrics.neighbors import refuse_malformed

if TYPE_CHECKING:
    from anndata import AnnData

FORMAT_VERSION = 1
PART = "deconfound_part"
PREDICTED = "deconfound_predicted"
CONTENT = "content_sha256"


@dataclass(frozen=True)
class Embeddings:
    """Representations of the images of a screen by one run."""

    table: pd.DataFrame
    """The screen's table, with the fold's part of each row ("new" for another screen than the
    one trained on) and the predicted label, missing where the method has no classifier."""
    representations: dict[str, npt.NDArray[np.float32]]
    """By name ("representation", "content", "style"): (N, D) float32."""
    about: dict[str, Any]
    """Method, fold, seed, roles, run configuration, versions, screen."""

    @property
    def part(self) -> npt.NDArray[np.str_]:
        """(N,) part of each row: train, val, ood_val, id_test, test, unused or new."""
        return self.table[PART].astype(str).to_numpy(dtype="U7")

    @property
    def roles(self) -> Roles:
        """The roles of the table's columns in the run."""
        return Roles.model_validate(self.about["roles"])

    def of_parts(self, parts: tuple[str, ...], where: str) -> Mask:
        """(N,) whether each row is of one of `parts`; every row if none is given.

        Raises UserError for a part that no row is of.
        """
        part = self.part
        for name in parts:
            if name not in part:
                known = sorted(set(part.tolist()))
                raise UserError(f"{where}: no row is of part {name!r}; {did_you_mean(name, known)}")
        return np.isin(part, parts) if parts else np.ones(len(part), dtype=bool)

    def block(self, name: str, where: str) -> npt.NDArray[np.float32]:
        """The representation `name`, (N, D); raises UserError if it is missing or malformed."""
        if name not in self.representations:
            hint = did_you_mean(name, sorted(self.representations))
            raise UserError(f"{where}: holds no representation {name!r}; {hint}")
        refuse_malformed(self.representations[name], where)
        return self.representations[name]

    def order(self) -> Rows | None:
        """(N,) the rows in the order of the run's identifier.

        None where that is their own order, there is no identifier or another screen has no such
        columns.
        """
        columns = self.roles.identifier
        if not columns or not set(columns) <= set(self.table.columns):
            return None
        rows = row_order(self.table, columns)
        return None if bool((rows[1:] > rows[:-1]).all()) else rows

    def taken(self, rows: Rows | None) -> "Embeddings":
        """These rows alone, in this order; all as they are, and not copied, if None."""
        if rows is None:
            return self
        blocks = {name: values[rows] for name, values in self.representations.items()}
        return Embeddings(self.table.iloc[rows].reset_index(drop=True), blocks, self.about)

    def label(self) -> pd.Series:
        """The label of each row as text, missing where it has none; raises as `environment`."""
        return self._joined([str(self.roles.label)])

    def environment(self) -> pd.Series:
        """The environment of each row as text, columns joined by "/".

        Raises UserError if the rows are of another screen that has no such column.
        """
        return self._joined(self.roles.environment)

    def _joined(self, columns: Sequence[str]) -> pd.Series:
        where = f"embeddings of screen {self.about.get('screen')!r}"
        require_columns(self.table, columns, where)
        return joined(self.table, columns)


def as_anndata(embeddings: Embeddings) -> "AnnData":
    """The AnnData that a file of the embeddings holds, made so that other programs take it.

    `X` is the content, or the representation where there is none, and `obsm["X_…"]` every block;
    `obs_names` differ between screens; sites, numbers and doses in `obs` are numbers;
    `obsm["spatial"]` has x and y where the table does. `uns["mantispy"]` is that package's stamp,
    and `uns["deconfound"]` holds the run and a checksum of the content, by which a file that
    another program wrote anew is known to hold the same.
    """
    data = _as_anndata(embeddings)
    data.X = data.X.copy()  # else what changes X in place would change the block too
    return data


def _as_anndata(embeddings: Embeddings) -> "AnnData":
    """`as_anndata`, whose X is the very array of its block."""
    import anndata

    about, roles = embeddings.about, embeddings.roles
    obs = numbered(embeddings.table, {*roles.columns()})
    names = conventions.row_names(obs, about)
    if names.name == ROW_NAME:
        obs = obs[[*(name for name in obs if name != ROW_NAME), ROW_NAME]]
    obs = _with_categories(obs)
    described: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "json": json.dumps(about),
        CONTENT: content_sha256(replace(embeddings, table=obs)),
    }
    added, stamp = conventions.stamped(obs, roles, about)
    uns = {OWN: described} if stamp is None else {
        OWN: described | {ADDED: json.dumps(list(added))}, conventions.MANTISPY: stamp
    }  # fmt: skip
    obs = _with_categories(obs.assign(**added))
    obs.index = names
    if names.name == ROW_NAME:
        obs = obs.drop(columns=ROW_NAME)
    blocks = embeddings.representations
    obsm: dict[str, npt.NDArray[Any]] = {f"X_{name}": values for name, values in blocks.items()}
    if (places := conventions.places(embeddings.table)) is not None:
        obsm[conventions.SPATIAL] = places
    name = main_block(list(blocks))
    var = conventions.features(feature_names(name, blocks[name].shape[1]))
    return anndata.AnnData(blocks[name], obs=obs, var=var, obsm=obsm, uns=uns)


def _with_categories(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with every column that holds no numbers as sorted categories of text."""
    table = table.copy()
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            values = table[column].astype("string")
            names = sorted(values.dropna().unique())
            table[column] = pd.Categorical(values, categories=pd.Index(names, dtype=object))
    return table


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write a `.h5ad` file of `as_anndata`, whole or not at all; the file is sealed.

    X and its block in obsm are one data set of the file, which is on the disk once.
    """
    import anndata
    import h5py

    data = _as_anndata(embeddings)
    main = main_block(list(embeddings.representations))
    with atomic.atomic_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with h5py.File(temporary, "w", userblock_size=seal.USER_BLOCK) as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            for name in ("obs", "var"):
                anndata.io.write_elem(file, name, getattr(data, name))
            for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
                parts = dict(getattr(data, name))
                parts.pop(None, None)  # the name of X among the layers of anndata 0.13
                anndata.io.write_elem(file, name, parts)
            file["X"] = file[f"obsm/X_{main}"]
        seal.seal_hdf5(temporary)


def content_sha256(embeddings: Embeddings) -> str:
    """SHA-256 of the values, in whatever file and types of columns they are kept."""
    found = hashlib.sha256(json.dumps(embeddings.about, sort_keys=True).encode())
    for name, column in embeddings.table.items():
        if pd.api.types.is_numeric_dtype(column.dtype):
            values, texts = column.to_numpy(dtype="<f8", na_value=np.nan), []
        else:
            if column.dtype != "category":
                column = column.astype("string").astype("category")
            names = column.cat.categories.astype(str)
            places = np.append(names.argsort().argsort(), -1)
            values, texts = places[column.cat.codes].astype("<i4"), sorted(names)
        found.update(json.dumps([str(name), texts]).encode())
        found.update(values.data)
    for name, block in sorted(embeddings.representations.items()):
        found.update(json.dumps([name, block.shape]).encode())
        found.update(np.ascontiguousarray(block, dtype="<f4").data)
    return found.hexdigest()


def read_embeddings(path: Path, blocks: Blocks = every_block) -> Embeddings:
    """Read an embeddings file, or a directory of embeddings, also at a URL, into memory.

    `blocks` chooses among the names of the representations those to read, which saves memory; of a
    file without a seal all are read. Warns with an InputWarning if another program has changed the
    file. Raises UserError if it is missing, damaged, not written by `deconfound embed`, or a
    directory larger than the free memory.
    """
    found, changed = open_embeddings(path, blocks)
    if changed:
        note = "was changed by another program since deconfound wrote it; the changed values count"
        warnings.warn(f"{path}: {note}", InputWarning, stacklevel=2)
    return found


def open_embeddings(path: Path, blocks: Blocks = every_block) -> tuple[Embeddings, bool]:
    """`read_embeddings` without the warning, and whether another program has changed the file."""
    path = Path(path)
    if is_url(path):
        with fetched(path) as local:
            return open_embeddings(local, blocks)
    if path.is_dir():
        return Embeddings(*read_shards(path, blocks)), False
    if not path.is_file():
        raise UserError(f"{path}: no such embeddings file; make one with `deconfound embed`")
    sealed = seal.verify(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuse_unfit_hdf5(path)
            data = _without_x(path, blocks if sealed else every_block)
    except UserError:
        raise
    except Exception as error:  # anndata and HDF5 raise nearly every type there is
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable .h5ad file ({reason}); embed again") from error
    about = data.uns.get(OWN)
    if not isinstance(about, dict) or "json" not in about:
        raise UserError(f"{path}: was not written by `deconfound embed` (no uns['deconfound'])")
    if (version := str(about.get("format_version", FORMAT_VERSION))) != str(FORMAT_VERSION):
        raise UserError(f"{path}: format version {version}; this release reads {FORMAT_VERSION}")
    try:
        described = json.loads(str(about["json"]))
        Roles.model_validate(described["roles"])
        table = own_table(data.obs, about)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged (uns['deconfound']); embed again") from error
    representations = {
        name.removeprefix("X_"): _dense(values, f"{path}: obsm[{name!r}]")
        for name, values in data.obsm.items()
    }
    require_columns(table, [PART, PREDICTED], f"{path}: obs")
    made = Embeddings(table, representations, described)
    expected = about.get(CONTENT)
    return made, not sealed and expected is not None and content_sha256(made) != str(expected)


def _without_x(path: Path, blocks: Blocks) -> "AnnData":
    """The file's obs, uns and chosen blocks of obsm; X is one of them once more and is not read."""
    import anndata
    import h5py

    with h5py.File(path) as file:
        parts = {name: anndata.io.read_elem(file[name]) for name in ("obs", "uns")}
        names = [name.removeprefix("X_") for name in file["obsm"] if name.startswith("X_")]
        obsm = {f"X_{name}": anndata.io.read_elem(file[f"obsm/X_{name}"]) for name in blocks(names)}
    return anndata.AnnData(obsm=obsm, **parts)


def _dense(values: Any, where: str) -> npt.NDArray[np.float32]:
    """(N, D) float32 of an entry of obsm; raises UserError if it holds no dense real numbers."""
    kind = getattr(values, "dtype", None)
    try:
        real = kind is None or np.dtype(kind).kind in "fiub"
        dense = np.asarray(values, dtype=np.float32) if real else np.empty(0, np.float32)
    except (TypeError, ValueError):
        dense = np.empty(0, np.float32)
    if dense.ndim != 2 or not dense.size:
        shape = getattr(values, "shape", "")
        raise UserError(
            f"{where}: {type(values).__name__} of {kind} {shape}; expected a "
            "dense array of real numbers, a row for each of obs and one column or more"
        )
    return dense
