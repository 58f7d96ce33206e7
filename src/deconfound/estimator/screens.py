"""The screen that an estimator trains on or embeds: rows with labels, environments and levels."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Images
from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.profiles import usable
from deconfound.data.ingest.roles import found_roles
from deconfound.data.screens.memory import screen_in_memory, with_table
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.identifiers import refuse_repeated_ids
from deconfound.data.tables.table import Roles, columns_of, listed, refuse_empty
from deconfound.errors import InputWarning, UserError
from deconfound.estimator.columns import (
    are_labels,
    hold_out_of,
    place,
    replace,
    with_controls,
)
from deconfound.estimator.rows import IMAGES, PROFILES, Given
from deconfound.runs.run import Run

MADE_BY = "deconfound.Deconfounder"


class Training(NamedTuple):
    """What a model is fitted on."""

    screen: Screen
    data: dict[str, Any]
    """Options of the data that say what `fit` was told."""


def named_columns(told: Mapping[str, Any]) -> set[str]:
    """The columns that arguments of `fit` name, as texts, lists of them, Series or frames."""
    found: set[str] = set()
    for one in told.values():
        if isinstance(one, str):
            found.add(one)
        elif isinstance(one, (list, tuple)):
            found |= {name for name in one if isinstance(name, str)}
        elif isinstance(one, pd.Series):
            found.add(str(one.name))
        elif isinstance(one, (pd.DataFrame, Mapping)):
            found |= {str(name) for name in one}
    return found


def training_screen(given: Given, told: Mapping[str, Any], channels: Collection[str]) -> Training:
    """The screen of what is `given`, with label, environment, … as `told`, arrays or columns.

    A screen that is given stays itself where columns of it are named alone. `channels` names those
    of images. Raises UserError for a column that is not there, arrays of another length, rows
    without label, environment or level, and where label or environment are not known.
    """
    where, table = given.name, given.table
    label = place(table, told.get("label"), "label", where)
    if len(label.columns) > 1:
        raise UserError(f"label: {len(label.columns)} columns; expected one")
    environment = place(label.table, told.get("environment"), "environment", where)
    for what, placed in (("label", label), ("environment", environment)):
        for column in placed.columns:
            _refuse_among_features(given, placed.table[column], what)
    levels = place(environment.table, told.get("levels"), "level", where)
    table = levels.table
    data: dict[str, Any] = {}
    if (controls := told.get("controls")) is not None:
        labels = are_labels(controls, table)
        if labels is None:
            marks = table[controls] if isinstance(controls, str) else controls
            table = with_controls(table, marks, where)
        else:
            data["controls"] = labels
    split, of_levels = None, levels.columns
    if (hold_out := told.get("hold_out")) is not None:
        held = hold_out_of(table, hold_out, where)
        table, data["fold"], split = held.table, held.fold, held.split
        if held.level is not None:
            if of_levels:
                raise UserError(
                    "hold_out: a mask is a level of its own; leave levels out, or give "
                    "hold_out='COLUMN=GROUP'"
                )
            of_levels = (held.level,)
    roles_asked = {"label": label.columns[0] if label.columns else None,
                   "environment": environment.columns, "levels": of_levels}  # fmt: skip
    asked = {role: columns for role, columns in roles_asked.items() if columns}
    if given.screen is not None:
        if table is given.table:
            return Training(given.screen, data | asked)
        roles = given.screen.roles.model_copy(
            update=asked | ({} if split is None else {"split": split}) | {"identifier": None}
        )
        return Training(with_table(given.screen, table, roles), data)
    config = IngestConfig(**asked, split=split)
    roles = found_roles(set(table.columns), config)
    for what, known in (("label", roles.label), ("environment", roles.environment)):
        if not known:
            raise UserError(
                f"{where}: no {what}; give {what}= as an array or the name of a column, "
                f"{columns_of(table) if len(table.columns) else 'there is no table'}"
            )
    screen = _in_memory(given, table, roles, channels)
    refuse_empty(screen.table, screen.roles, where)
    refuse_repeated_ids(screen.table, screen.roles, where, row_is_image=where == IMAGES)
    return Training(screen, data)


def new_screen(
    run: Run, given: Given, told: Mapping[str, Any], shape: tuple[int, ...] = ()
) -> Screen:
    """The screen of rows to embed with `run`; label and environment take the names known to it.

    `shape` is that of an image trained on, if it is known. Raises UserError for images of another
    shape or type, features that are not finite, arrays of another length, and where `run` needs the
    environment, or another column, and it is not there.
    """
    where, roles = given.name, run.roles
    _refuse_unlike(run, given, shape)
    label = () if roles.label is None else (roles.label,)
    table = replace(given.table, told.get("label"), label, "label", where)
    table = replace(table, told.get("environment"), roles.environment, "environment", where)
    if (controls := told.get("controls")) is not None:
        marks = table[controls] if isinstance(controls, str) and controls in table else controls
        table = with_controls(table, marks, where)
    _refuse_without_groups(run, table, where)
    if given.screen is not None:
        if table is given.table:
            return given.screen
        return with_table(given.screen, table, _there(given.screen.roles, table))
    if given.values is not None and given.name == PROFILES:
        _refuse_not_finite(given)
    return _in_memory(given, table, _there(roles, table), run.channels)


def _refuse_among_features(given: Given, values: pd.Series, what: str) -> None:
    """Raise UserError if a feature of profiles is the label, or environment, in numbers."""
    if given.name != PROFILES or not pd.api.types.is_numeric_dtype(values):
        return
    assert given.values is not None
    numbers = values.to_numpy(dtype=np.float32, na_value=np.nan)
    same = np.flatnonzero((given.values == numbers[:, None]).all(axis=0))
    if len(same):
        name = (given.channels or ())[same[0]]
        raise UserError(
            f"{PROFILES}: feature {name!r} is the {what} itself; name the column, {what}={name!r}, "
            "or leave it out of the features"
        )


def _in_memory(
    given: Given, table: pd.DataFrame, roles: Roles, channels: Collection[str]
) -> Screen:
    assert given.values is not None
    values, names = given.values, tuple(given.channels or channels)
    provenance: dict[str, Any] = {"made_by": MADE_BY, "rows": len(values)}
    if given.name == PROFILES and not channels:
        values, names, dropped = _usable(values, names)
        provenance["dropped"] = dropped
    if not names:
        names = tuple(f"channel_{number}" for number in range(values.shape[1]))
    if len(names) != values.shape[1]:
        raise UserError(
            f"images of {values.shape[1]} channels, but channels names {len(names)} "
            f"({listed(names, 5)}); give one name for each"
        )
    return screen_in_memory(values, table, roles, names, given.name, provenance)


def _usable(
    values: Images, names: tuple[str, ...]
) -> tuple[Images, tuple[str, ...], dict[str, list[str]]]:
    """The features that vary and are finite, as `deconfound ingest --profiles` keeps them."""
    places = {name: number for number, name in enumerate(names)}
    kept, constant, lacking = usable(
        names, lambda wanted: iter([values[:, [places[name] for name in wanted]]])
    )
    if not kept:
        raise UserError(
            f"{PROFILES}: of {len(names)} features {len(constant)} are constant and {len(lacking)} "
            "missing or infinite in some row; none is left"
        )
    if lacking:
        warnings.warn(
            f"{PROFILES}: {len(lacking)} of {len(names)} features are missing or infinite in some "
            f"row and dropped: {listed(lacking, 5)}; mend them, or drop the rows, to keep them",
            InputWarning,
            stacklevel=6,
        )
    return (
        values[:, [places[name] for name in kept]],
        tuple(kept),
        {"constant": constant, "not_finite": lacking},
    )


def _refuse_unlike(run: Run, given: Given, shape: tuple[int, ...]) -> None:
    """Raise UserError for images of another number of channels, size or type than trained on."""
    source = given.values if given.screen is None else given.screen
    assert source is not None
    found = source.image_shape if isinstance(source, Screen) else source.shape[1:]
    expected = (len(run.channels), *(shape or found)[1:])
    if found != expected and (given.screen is None or len(found) == len(shape)):
        one, other = (" × ".join(map(str, sides)) for sides in (found, expected))
        raise UserError(
            f"{given.name} of {one}; the model was fitted on {other} (C × H × W), give the same "
            "channels and size"
        )
    if len(found) == 3 and run.transform != "percentile" and run.dtype not in (None, source.dtype):
        raise UserError(
            f"{given.name}: pixels are {source.dtype}; the model was fitted on {run.dtype}, whose "
            f"units may differ: give the images as {run.dtype}"
        )


def _refuse_not_finite(given: Given) -> None:
    assert given.values is not None
    wrong = np.argwhere(~np.isfinite(given.values))
    if len(wrong):
        row, place_ = wrong[0]
        feature = (given.channels or ())[place_]
        raise UserError(
            f"{PROFILES}: row {row} (from 0), feature {feature!r}: missing or infinite; the model "
            "needs every feature, mend or drop the row"
        )


def _refuse_without_groups(run: Run, table: pd.DataFrame, where: str) -> None:
    """Raise UserError where `table` lacks a column of groups that `run` treats apart."""
    needed = [*run.percentile_by, *run.standardise_by]
    intervention = run.config.intervention
    relative = intervention.intervene is not None and intervention.relative_style is not None
    if run.config.options.context is not None or relative:
        needed += run.roles.environment
    for column in needed:
        if column not in table.columns:
            how = "environment=" if column in run.roles.environment else "a table= with it"
            raise UserError(
                f"{where}: no {column!r}, by which the model treats its groups apart; give {how}, "
                "a value for each row"
            )


def _there(roles: Roles, table: pd.DataFrame) -> Roles:
    """The roles of columns that `table` has."""
    present = set(table.columns)

    def whole(columns: tuple[str, ...]) -> tuple[str, ...]:
        return columns if set(columns) <= present else ()

    return Roles(
        label=roles.label if roles.label in present else None,
        environment=whole(roles.environment),
        levels=whole(roles.levels),
        well=roles.well if roles.well in present else None,
        split=roles.split if roles.split in present else None,
    )
