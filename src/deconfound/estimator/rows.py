"""What an estimator is given, as rows: images or profiles in memory, or a screen on disk."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.utils.data import Dataset

from deconfound.arrays import Floats, Images
from deconfound.data.readers.anndata_table import named_parts
from deconfound.data.readers.features import NO_FEATURE, Part
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.table import ROW_NAME, listed, require_columns, with_index
from deconfound.errors import UserError
from deconfound.estimator.pixels import images_of_array, images_of_dataset

if TYPE_CHECKING:
    from anndata import AnnData

Data: TypeAlias = (
    "npt.NDArray[Any] | torch.Tensor | Dataset[Any] | pd.DataFrame | AnnData | Screen | Path | str"
)
"""What rows are given as."""
Values: TypeAlias = (
    "npt.ArrayLike | torch.Tensor | pd.Series | pd.DataFrame | Mapping[str, npt.ArrayLike] | str"
)
"""A value for each row, or the name of a column; of several columns a frame, a mapping or names."""
IMAGES, PROFILES = "images", "profiles"


class Given(NamedTuple):
    """N rows and what is known of them."""

    name: str
    """"images" or "profiles", or the name of the screen; messages call the rows so."""
    values: Images | None
    """(N, C, H, W), or profiles (N, D); None where a screen holds them."""
    table: pd.DataFrame
    """The columns that are no features; RangeIndex."""
    channels: tuple[str, ...] | None
    """Names of channels or features; None where images bring none."""
    screen: Screen | None = None

    def __len__(self) -> int:
        return len(self.table)


def is_anndata(data: Any) -> bool:
    """Whether `data` is AnnData, without importing it."""
    return type(data).__module__.partition(".")[0] == "anndata"


def rows_of(
    data: Data,
    *,
    table: pd.DataFrame | None = None,
    part: Part | None = None,
    features: Sequence[str] | None = None,
    named: Collection[str] = (),
) -> Given:
    """The rows of arrays, tensors, data sets, screens and their paths, DataFrames and AnnData.

    `table` has a row for each image. `part` chooses one of AnnData other than X.
    `features` are the columns wanted of profiles; where they are not given, all of numbers that are
    not `named` and, by their names, no metadata, coordinates or identifiers. Raises UserError for
    other kinds, and for a table of another length.
    """
    layer, obsm = part or Part()
    if isinstance(data, (str, os.PathLike)):
        data = open_screen(Path(data))
    if isinstance(data, Screen):
        _refuse_part(layer, obsm, table, "a screen")
        return Given(data.name, None, data.table, data.channels, data)
    if isinstance(data, pd.DataFrame):
        _refuse_part(layer, obsm, table, "a DataFrame")
        return _of_frame(data, features, named)
    if is_anndata(data):
        _refuse_part(None, None, table, "AnnData")
        return _of_anndata(data, layer, obsm, features)
    _refuse_part(layer, obsm, None, "arrays")
    if isinstance(data, (np.ndarray, torch.Tensor)):
        if data.ndim == 2:
            return _of_matrix(data, table, features)
        images = images_of_array(data)
    elif isinstance(data, Dataset):
        images = images_of_dataset(data)
    else:
        raise UserError(
            f"{type(data).__name__}; expected images as an array, tensor or Dataset, profiles as a "
            "DataFrame or AnnData, or a Screen"
        )
    return Given(IMAGES, images, _metadata(table, len(images)), None)


def _of_matrix(data: Any, table: pd.DataFrame | None, features: Sequence[str] | None) -> Given:
    values = _single(data.detach().cpu().float() if torch.is_tensor(data) else data)
    own = [f"feature_{number}" for number in range(values.shape[1])]
    names = tuple(own if features is None else features)
    if set(names) <= set(own):
        values = values[:, [own.index(name) for name in names]]
    elif len(names) != len(own):
        raise UserError(
            f"profiles of {len(own)} features; the model was fitted on {len(names)} "
            f"({listed(names, 3)}), give a DataFrame with their names"
        )
    return Given(PROFILES, values, _metadata(table, len(values)), names)


def _of_frame(data: pd.DataFrame, features: Sequence[str] | None, named: Collection[str]) -> Given:
    frame = data.rename(columns=str)
    _refuse_twice(frame.columns)
    if features is None:
        features = [
            str(name)
            for name, column in frame.items()
            if name not in named
            and pd.api.types.is_numeric_dtype(column)
            and not pd.api.types.is_bool_dtype(column)
            and not NO_FEATURE.search(str(name))
        ]
        if not features:
            raise UserError(
                "the DataFrame has no features: expected columns of numbers that are not Metadata_…"
            )
    require_columns(frame, features, "the DataFrame")
    text = [name for name in features if not pd.api.types.is_numeric_dtype(frame[name])]
    if text:
        kind = frame[text[0]].dtype
        raise UserError(f"the DataFrame: column {text[0]!r} holds {kind}; expected numbers")
    values = _single(frame[list(features)].to_numpy(dtype=np.float64, na_value=np.nan))
    table = with_index(frame.drop(columns=list(features)), "the DataFrame")
    return Given(PROFILES, values, _text_names(table), tuple(features))


def _of_anndata(
    data: "AnnData", layer: str | None, obsm: str | None, features: Sequence[str] | None
) -> Given:
    if layer is not None and obsm is not None:
        raise UserError("layer and obsm are both given; give one of them")
    names = [str(name) for name in data.var_names]
    if obsm is not None:
        values = _part(data.obsm, obsm, "obsm")
        own = getattr(values, "columns", range(values.shape[1]))
        names = [f"{obsm}_{name}" for name in own]
    else:
        values = data.X if layer is None else _part(data.layers, layer, "layer")
    if values is None or not names:
        raise UserError("AnnData: X is empty; name a layer= or an obsm= that holds the profiles")
    dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if features is None:
        features = names if obsm is not None else [n for n in names if not NO_FEATURE.search(n)]
    _refuse_twice(pd.Index(names))
    require_columns(pd.DataFrame(columns=names), features, "AnnData")
    places = [names.index(name) for name in features]
    obs = data.obs
    if list(obs.index) == [str(row) for row in range(len(obs))] or obs.index.name in obs.columns:
        table = obs.reset_index(drop=True)
    else:
        table = with_index(obs.rename_axis(index=obs.index.name or ROW_NAME), "obs")
    return Given(PROFILES, _single(dense[:, places]), _text_names(table), tuple(features))


def _part(parts: Any, name: str, what: str) -> Any:
    if name not in parts:
        raise UserError(f"AnnData: no {what} {name!r}; it has {named_parts(parts) or 'none'}")
    return parts[name]


def _metadata(table: pd.DataFrame | None, rows: int) -> pd.DataFrame:
    """The table of images, or one without columns."""
    if table is None:
        return pd.DataFrame(index=pd.RangeIndex(rows))
    if len(table) != rows:
        raise UserError(f"table: {len(table):,} rows for {rows:,} images; expected one for each")
    _refuse_twice(table.columns)
    return _text_names(with_index(table, "table"))


def _text_names(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns=str).reset_index(drop=True)


def _refuse_twice(columns: pd.Index) -> None:
    repeated = columns[columns.duplicated()]
    if len(repeated):
        raise UserError(f"column {repeated[0]!r} appears twice; rename one of them")


def _refuse_part(
    layer: str | None, obsm: str | None, table: pd.DataFrame | None, what: str
) -> None:
    for name, given, of in (("layer", layer, "AnnData"), ("obsm", obsm, "AnnData"),
                            ("table", table, "images")):  # fmt: skip
        if given is not None:
            raise UserError(f"{name} belongs to {of}, and {what} was given; leave it out")


def _single(values: Any) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=np.float32)
