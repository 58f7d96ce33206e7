"""describe: what a screen holds, what can be held out of it, and what is confounded in it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from deconfound.arrays import Mask, Rows
from deconfound.config import DataOptions
from deconfound.data.folds.fold import make_fold
from deconfound.data.folds.groups import Level, physical_well
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.tables.keys import keys
from deconfound.data.tables.table import Coded, Roles, nested_ids, require_columns
from deconfound.description.description import Description, find_warnings
from deconfound.description.information import shared_information
from deconfound.description.pixels import pixel_statistics, sample_rows
from deconfound.errors import UserError
from deconfound.files import atomic

MOST_GROUPS = 500
"""Groups of one level whose folds are worked out."""
NAMED = 20
"""Labels named in one cell of the table of folds."""


def describe(
    screen: Path,
    out: Path | None = None,
    *,
    label: str | None = None,
    environment: tuple[str, ...] = (),
    levels: tuple[str, ...] = (),
    images: int = 20_000,
    quiet: bool = False,
) -> Description:
    """Describe a screen; with `out`, write that directory of tables, a picture and a page.

    `label`, `environment` and `levels` replace the screen's own columns. Statistics of pixels come
    from at most `images` images, evenly over the environments, a chunk at a time. Raises UserError
    for a path that is no screen, an unknown column, fewer than 1 image, or an `out` that exists.
    """
    if out is not None:
        atomic.refuse_existing(Path(out))
    if images < 1:
        raise UserError(f"--images {images}: expected 1 or more")
    opened = open_screen(screen)
    wanted = DataOptions(label=label, environment=environment, levels=levels)
    roles = roles_of(opened, wanted)
    require_columns(opened.table, roles.columns(), str(opened.path))
    labels = _codes(opened, () if roles.label is None else (roles.label,))
    environments = _codes(opened, roles.environment)
    folds, refused = _folds(opened.table, roles, labels, environments)
    rows = sample_rows(environments, images)
    found = Description(
        screen=opened,
        roles=roles,
        counts=_counts(opened.table, roles, labels, environments),
        levels=_levels(opened.table, roles, folds, refused),
        occupancy=_occupancy(opened.table, roles, labels, environments),
        folds=folds,
        statistics=pixel_statistics(opened, environments, rows, quiet=quiet),
        images_read=len(rows),
        shared_information=shared_information(labels.codes, environments.codes),
        warnings=(),
    )
    warnings = tuple(find_warnings(found, labels, environments))
    description = replace(found, warnings=warnings)
    if out is not None:
        from deconfound.description.page import write_page

        write_page(description, Path(out))
    return description


def _codes(screen: Screen, columns: tuple[str, ...]) -> Coded:
    if columns:
        return screen.coded(columns)
    return Coded(np.full(len(screen), -1, dtype=np.int64), ())


def _counts(table: pd.DataFrame, roles: Roles, label: Coded, environment: Coded) -> dict[str, int]:
    found = {"images": len(table)}
    for noun, column, values in (
        ("label", roles.label, label),
        ("environment", roles.environment, environment),
    ):
        if column:
            found[f"{noun}s"] = len(values.names)
            found[f"images without {noun}"] = int((values.codes < 0).sum())
    if roles.well is not None:
        found["wells"] = int(physical_well(table, roles).nunique())
    return found


def _occupancy(table: pd.DataFrame, roles: Roles, label: Coded, environment: Coded) -> pd.DataFrame:
    frame = pd.DataFrame({"label": label.codes, "environment": environment.codes, "images": 1})
    how = {"images": ("images", "sum")}
    if roles.well is not None:
        frame["wells"] = physical_well(table, roles).to_numpy()
        how["wells"] = ("wells", "nunique")
    found = frame.groupby(["label", "environment"]).agg(**how).reset_index()
    for name, values in (("label", label), ("environment", environment)):
        names = np.array([*values.names, None], dtype=object)
        found[name] = names[found[name].to_numpy()]
    return found


def _levels(
    table: pd.DataFrame, roles: Roles, folds: pd.DataFrame, refused: dict[str, str]
) -> pd.DataFrame:
    ids = nested_ids(table, roles.levels)
    rows = []
    for depth, level in enumerate(roles.levels):
        names = keys(table[level])
        parents = ids[roles.levels[depth - 1]].groupby(names).nunique() if depth else None
        own = folds[folds["level"] == level]
        reasons = own.loc[~own["possible"], "reason"]
        rows.append(
            {
                "level": level,
                "groups": int(ids[level].nunique()),
                "missing": int(ids[level].isna().sum()),
                "names": int(names.nunique()),
                "repeated": 0 if parents is None else int((parents > 1).sum()),
                "folds": pd.NA if level in refused else int(own["possible"].sum()),
                "refused": refused.get(level) or _tallied(reasons.tolist()),
            }
        )
    columns = ["level", "groups", "missing", "names", "repeated", "folds", "refused"]
    return pd.DataFrame(rows, columns=columns)


def _tallied(reasons: list[str]) -> str:
    """The most frequent reasons, each with its number of groups."""
    tally = Counter(reasons).most_common()
    said = [f"{reason} ({count})" if count > 1 else reason for reason, count in tally]
    return "; ".join(said[:3]) + (f"; and {len(said) - 3} more" if len(said) > 3 else "")


def _folds(
    table: pd.DataFrame, roles: Roles, label: Coded, environment: Coded
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row for every fold; and, by level, the reason why its folds were not worked out."""
    rows = [_fold("iid", table, roles, label, environment)]
    if roles.split is not None:
        rows.append(_fold("given", table, roles, label, environment))
    refused: dict[str, str] = {}
    # Rows with equal levels, well, label and environment are on one side of every fold: one each.
    columns = [c for c in (*roles.levels, roles.well) if c is not None]
    distinct = table[list(dict.fromkeys(columns))].apply(keys)
    distinct = distinct.assign(**{_LABEL: label.codes, _ENVIRONMENT: environment.codes})
    distinct = (
        distinct.assign(**{_ROWS: 1})
        .groupby(list(distinct.columns), dropna=False, sort=False, as_index=False)[[_ROWS]]
        .sum()
    )
    codes = (distinct[_LABEL].to_numpy(np.int64), distinct[_ENVIRONMENT].to_numpy(np.int64))
    weight = distinct[_ROWS].to_numpy(np.int64)
    for column in roles.levels:
        level = Level(distinct, roles, column)
        if len(level.groups) > MOST_GROUPS:
            refused[column] = f"{len(level.groups):,} groups are too many to work out one by one"
            continue
        for group in level.groups:
            if group.refused:
                rows.append({"level": column, "fold": group.fold, "reason": group.refused})
                continue
            test, unused = level.separated(group)
            kept = ~test & ~unused
            counts = _contents(*codes, weight, kept, test, label.names)
            rows.append({"level": column, "fold": group.fold, **counts})
    folds = pd.DataFrame(rows, columns=_FOLD_COLUMNS)
    folds["reason"] = folds["reason"].fillna("")
    folds["possible"] = folds["reason"] == ""
    whole = ["kept", "test", "unused", "training_environments", "untrained", "untested"]
    return folds.astype(dict.fromkeys(whole, "Int64")), refused


_LABEL, _ENVIRONMENT, _ROWS = "\0label", "\0environment", "\0rows"
_FOLD_COLUMNS = [
    "level", "fold", "possible", "reason", "kept", "test", "unused", "training_environments",
    "untrained", "untested", "untrained_labels", "untested_labels",
]  # fmt: skip


def _fold(
    name: str, table: pd.DataFrame, roles: Roles, label: Coded, environment: Coded
) -> dict[str, object]:
    try:
        fold = make_fold(table, roles, name)
    except UserError as error:
        return {"level": name, "fold": name, "reason": str(error)}
    test = fold.part == "test"
    kept = np.isin(fold.part, ("train", "val", "id_test"))
    ones = np.ones(len(table), dtype=np.int64)
    counts = _contents(label.codes, environment.codes, ones, kept, test, label.names)
    return {"level": name, "fold": name, **counts}


def _contents(
    label: Rows, environment: Rows, weight: Rows, kept: Mask, test: Mask, names: tuple[str, ...]
) -> dict[str, object]:
    """Counts of the rows and labels a fold keeps and tests, and why it cannot be trained, if so."""
    trained, tested = (np.unique(label[part & (label >= 0)]) for part in (kept, test))
    untrained, untested = np.setdiff1d(tested, trained), np.setdiff1d(trained, tested)
    reason = None
    if not kept.any():
        reason = "no row is left to train on"
    elif len(names) and len(trained) < 2:
        reason = f"training would have {len(trained)} label"
    elif not test.any():
        reason = "no row is tested"
    return {
        "reason": reason,
        "kept": int(weight[kept].sum()),
        "test": int(weight[test].sum()),
        "unused": int(weight[~kept & ~test].sum()),
        "training_environments": len(np.unique(environment[kept & (environment >= 0)])),
        "untrained": len(untrained),
        "untested": len(untested),
        "untrained_labels": _named(untrained, names),
        "untested_labels": _named(untested, names),
    }


def _named(codes: Rows, names: tuple[str, ...]) -> str:
    text = "; ".join(names[code] for code in codes[:NAMED])
    return text + (f"; and {len(codes) - NAMED} more" if len(codes) > NAMED else "")
