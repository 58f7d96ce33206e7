"""The cells that a picture shows, and what is written beside it."""

from typing import Any

import numpy as np
import pandas as pd

from deconfound.arrays import Rows
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import coded, joined
from deconfound.errors import UserError
from deconfound.runs.run import Run
from deconfound.runtime.seeds import numpy_stream

FORMAT_VERSION = 1
"""Format version of transfer.json and imputed.json."""


def names(screen: Screen, columns: Any) -> pd.Series:
    """Values of the joined columns; all missing if the screen lacks one of the columns."""
    if not columns or any(column not in screen.table.columns for column in columns):
        return pd.Series(pd.NA, index=screen.table.index, dtype="string")
    return joined(screen.table, columns)


def texts(values: pd.Series, rows: Rows) -> tuple[str, ...]:
    """The values of rows; empty text where a value is missing."""
    return tuple(values.iloc[rows].fillna("").tolist())


def diverse(
    candidates: Rows, label: pd.Series, environment: pd.Series, images: int, seed: int
) -> Rows:
    """Draw `images` rows that differ in label and environment, by `seed`.

    Each next row has the label, then the pair of both, then the environment drawn least often so
    far. Rows are returned ordered by environment, then label.
    """
    left = numpy_stream(seed, "transfer cells").permutation(candidates)
    labels, environments = coded(label).codes, coded(environment).codes
    pairs = labels * (environments.max(initial=0) + 2) + environments
    drawn: list[int] = []
    for _ in range(min(images, len(left))):
        times = [
            (codes[drawn] == codes[left, None]).sum(axis=1)
            for codes in (labels, pairs, environments)
        ]
        place = int(np.lexsort(times[::-1])[0])
        drawn.append(int(left[place]))
        left = np.delete(left, place)
    rows = np.array(sorted(drawn), dtype=np.int64)
    return rows[np.lexsort((rows, labels[rows], environments[rows]))]


def refuse_percentile(run: Run) -> None:
    """Raise UserError if images that the run draws cannot be put back into stored units."""
    if run.transform == "percentile":
        raise UserError(
            f"{run.path}: transform percentile forgets how bright images were, so none can be "
            "put back into stored units; fit it again with --transform none or arcsinh"
        )


def about_run(run: Run, screen: Screen) -> dict[str, Any]:
    """What the JSON file beside a picture says first: the run, and the screen of its cells."""
    return {
        "format_version": FORMAT_VERSION,
        "method": run.config.method,
        "fold": run.fold,
        "seed": run.config.seed,
        "run": run.path.resolve().name,
        "config": run.config.model_dump(mode="json"),
        "screen": screen.name,
    }
