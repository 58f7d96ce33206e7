"""Make a screen of profiles: a table of CellProfiler features, or any other."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.data.ingest.images import IngestConfig
from deconfound.data.ingest.joins import with_joined
from deconfound.data.ingest.roles import COLUMN, Problem, refusal, resolve_roles
from deconfound.data.ingest.writing import provenance_of, refuse_full_disk
from deconfound.data.readers.feature_files import open_features
from deconfound.data.readers.features import FeatureTable, Part, feature_columns
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.data.screens.writer import ScreenWriter
from deconfound.data.tables.image_table import joined_by_image, without_image_prefix
from deconfound.data.tables.proposals import feature_patterns
from deconfound.data.tables.table import Roles
from deconfound.errors import UserError
from deconfound.files.atomic import refuse_existing
from deconfound.runtime.progress import Progress

ROLE_OPTIONS = frozenset(
    {"label", "environment", "levels", "well", "split", "name"}
    | {"join", "platemap", "barcode_platemap"}
)

MOST_METADATA = 200
"""First columns of a table without known features in which metadata are looked for."""

Chunks = Callable[[Sequence[str]], Iterator[npt.NDArray[np.float32]]]


def ingest_profiles(
    table: Path,
    out: Path,
    *,
    features: Sequence[str] = (),
    part: Part | None = None,
    config: IngestConfig | None = None,
    quiet: bool = False,
) -> Screen:
    """Write the profiles of `table` as a screen at `out` and open it.

    `table` is text, Parquet, .h5ad, a directory of embeddings that `embed` wrote, or DeepProfiler's
    folder of .npz files. `part` chooses a layer or block of AnnData instead of X. `features` names
    the feature columns ("*" stands for anything), else the file says them or they are found by
    CellProfiler's names; all other columns form the screen's table, `Image_Metadata_X` as
    `Metadata_X`, with those of the tables that are joined. Features that are constant, missing or
    infinite somewhere are dropped, and named in the provenance under "dropped". Of `config` roles,
    name, image table, joined tables and plate maps are used; embeddings of deconfound bring their
    own roles, where none are given.

    Raises UserError, and leaves nothing at `out`, for a table that cannot be read, a feature that
    is not a number, a role without a column, an empty label, environment or level, a join that
    multiplies or loses rows, or if no feature is left.
    """
    config = config or IngestConfig()
    refuse_options(config, ROLE_OPTIONS | {"image_table"}, "profiles")
    refuse_existing(out)
    where = str(table)
    opened = open_features(table, part)
    if opened.roles is not None:
        config = _with_roles(config, opened.roles)
    command = ["deconfound", "ingest", where, "--profiles", "--out", str(out)]
    try:
        names = feature_columns(opened, features, where)
    except UserError as error:
        if features:
            raise
        wanted = [*command, "--feature-columns", *(feature_patterns(opened.columns) or [COLUMN])]
        raise UserError(_without_features(error, opened, config, where, wanted)) from error
    command += ["--feature-columns", *features] if features else []
    metadata = opened.metadata(sorted(set(opened.columns) - set(names), key=opened.columns.index))
    if metadata.empty:
        raise UserError(f"{where}: no rows, or features alone; expected metadata beside them")
    if config.image_table is not None:
        metadata = joined_by_image(metadata, config.image_table, where, config.named_columns())
    metadata = without_image_prefix(metadata, config.named_columns())
    metadata, joined_files = with_joined(metadata, config, where)
    roles = resolve_roles(metadata, config, where, command)
    provenance = provenance_of(table, None, config, config.size) | {
        "rows": len(metadata),
        "features": list(features),
        **joined_files,
    }
    if part is not None and part != Part():
        provenance["part"] = part._asdict()
    return write_profiles(
        names,
        opened.chunks,
        metadata,
        Path(out),
        roles,
        provenance,
        name=config.name,
        where=where,
        quiet=quiet,
    )


def _with_roles(config: IngestConfig, roles: Roles) -> IngestConfig:
    """`config` with the roles that it gives no column for."""
    own = {name: getattr(roles, name) for name in ("label", "environment", "levels", "well")}
    given = {name for name in own if getattr(config, name)}
    return config.model_copy(update={name: own[name] for name in own.keys() - given})


def write_profiles(
    names: Sequence[str],
    chunks: Chunks,
    metadata: pd.DataFrame,
    out: Path,
    roles: Roles,
    provenance: dict[str, Any],
    *,
    name: str | None = None,
    where: str,
    quiet: bool = False,
) -> Screen:
    """Write the features `names` that can be used as the screen `out`, and open it.

    `chunks` yields the values (B, D) of the features asked for, in the order of `metadata`. Raises
    UserError, which calls the table `where`, if no feature can be used.
    """
    kept, constant, not_finite = usable(names, chunks)
    if not kept:
        raise UserError(
            f"{where}: of {len(names)} features {len(constant)} are constant and "
            f"{len(not_finite)} missing or infinite in some row; none is left"
        )
    refuse_full_disk(out, 4 * len(kept) * len(metadata))
    made = provenance | {"dropped": {"constant": constant, "not_finite": not_finite}}
    with (
        ScreenWriter(out, name or out.name, kept, roles, made) as writer,
        Progress("ingest", len(metadata), "profiles", quiet=quiet) as progress,
    ):
        for values in chunks(kept):
            writer.append(values)
            progress.update(len(values))
        writer.finish(metadata)
    return open_screen(out)


def refuse_options(config: IngestConfig, allowed: Collection[str], what: str) -> None:
    """Raise UserError naming the first option set that `what` has no use for."""
    for name in config.model_fields_set - set(allowed):
        if getattr(config, name) != type(config).model_fields[name].default:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} means nothing for {what}; leave it out")


def _without_features(
    error: UserError,
    opened: FeatureTable,
    config: IngestConfig,
    where: str,
    command: Sequence[str],
) -> str:
    """The message on a table without features, and without roles if they lack too."""
    some = [
        name
        for place, name in enumerate(opened.columns)
        if place < MOST_METADATA or "Metadata_" in name
    ]
    metadata = without_image_prefix(opened.metadata(some), config.named_columns())
    problem = Problem(str(error).removeprefix(f"{where}: "), {})
    if not metadata.empty:
        resolve_roles(metadata, config, where, command, others=lambda: [problem])
    return refusal(metadata, config, where, command, [problem])


def usable(names: Sequence[str], chunks: Chunks) -> list[list[str]]:
    """The features that can be used, the constant ones, and those not finite in some row."""
    low = np.full(len(names), np.inf)
    high = np.full(len(names), -np.inf)
    for values in chunks(names):
        low = np.minimum(low, values.min(axis=0))  # NaN stays NaN
        high = np.maximum(high, values.max(axis=0))
    finite = np.isfinite(low) & np.isfinite(high)
    constant = finite & (low == high)
    return [list(compress(names, mask)) for mask in (finite & ~constant, constant, ~finite)]
