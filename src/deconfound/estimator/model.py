"""A model in memory: trained on a screen, and used on rows."""

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from deconfound.data.folds.problem import pose
from deconfound.data.readers.features import Part
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import coded, joined, listed
from deconfound.embeddings.embed import CHUNK
from deconfound.embeddings.file import PREDICTED, Embeddings
from deconfound.embeddings.stream import EmbeddingStream
from deconfound.errors import InputWarning, UserError
from deconfound.estimator.kept import Files, Kept, in_python, kept_of, packed, unpacked
from deconfound.estimator.pixels import refuse_other_units
from deconfound.estimator.rows import is_anndata, rows_of
from deconfound.estimator.screens import new_screen
from deconfound.estimator.settings import WHERE
from deconfound.metrics.accuracy import macro_f1
from deconfound.runs.config import RunConfig
from deconfound.runs.run import open_run
from deconfound.runtime import stop
from deconfound.runtime.device import processes
from deconfound.training.fit import train


class NotFitted(UserError, AttributeError):
    """The estimator has no model yet."""


def train_model(
    config: RunConfig, screen: Screen, *, quiet: bool, say: Callable[[str], None]
) -> Files:
    """The files of the run that `deconfound fit` makes of `config` and `screen`; none is left.

    Warnings are InputWarnings, and `say` takes what was decided. Raises UserError as `fit` does,
    and under a launcher of several processes.
    """
    if processes().world > 1:
        raise UserError(f"{WHERE} trains in one process; for several use `deconfound fit`")
    with unpacked({}) as folder:

        def warn(text: str) -> None:
            said = in_python(text.removeprefix("warning: "), folder.parent)
            warnings.warn(said, InputWarning, stacklevel=6)

        problem = pose(screen, config.data)
        try:
            train(config, screen, problem, folder, quiet=quiet, warn=warn, say=say)
        except stop.Stopped as request:
            raise stop.Stopped(f"{WHERE}: stopped, nothing is kept; fit it again") from request
        return packed(folder)


def screen_of_rows(
    files: Files, data: Any, told: Mapping[str, Any], table: pd.DataFrame | None, part: Part
) -> Screen:
    """The screen of rows for a model to embed, with label, environment, … as `told`.

    Of AnnData the part that the model was fitted on is taken where none is named. Raises UserError
    for rows that do not fit the model.
    """
    kept = kept_of(files) or Kept()
    with unpacked(files) as folder:
        run = open_run(folder)
        if part == Part() and is_anndata(data):
            part = Part(kept.layer, kept.obsm)
        rows = rows_of(data, table=table, part=part, features=run.channels)
        screen = new_screen(run, rows, told, kept.image_shape)
    if rows.values is not None:
        refuse_other_units(rows.values, kept.brightest)
    return screen


def embed_screen(
    files: Files, screen: Screen, options: Mapping[str, Any], quiet: bool
) -> Embeddings:
    """As `deconfound embed`, on the device and threads that the options name."""
    with unpacked(files) as folder:
        device, threads = options.get("device", "auto"), options.get("threads")
        stream = EmbeddingStream(folder, screen, device=device, threads=threads)
        return stream.whole(CHUNK, quiet)


def predicted(embeddings: Embeddings) -> pd.Series:
    """The predicted label of each row; raises UserError where the method predicts none."""
    found = embeddings.table[PREDICTED]
    if found.isna().all():
        raise UserError(
            f"{embeddings.about['method']} predicts no label; transform, and train a classifier on "
            "a block of obsm"
        )
    return found


def macro_f1_of(embeddings: Embeddings) -> float:
    """Macro-F1 of the predicted labels, in [0, 1], over the labels that training has.

    Raises UserError where there is no label, and where no row has one of training.
    """
    column, names = str(embeddings.roles.label), [str(one) for one in embeddings.about["labels"]]
    if column not in embeddings.table.columns:
        raise UserError(f"score: no label; give label=, or rows with a column {column!r}")
    truth = coded(joined(embeddings.table, [column]), names).codes
    found = macro_f1(truth, coded(predicted(embeddings), names).codes, truth >= 0)
    if not found.n:
        raise UserError(f"score: no row has a label of training, which are {listed(names, 5)}")
    return float(found.value)


def label_type(files: Files, screen: Screen) -> str | None:
    """The type of labels that are numbers, which predictions get too; None for all others."""
    column = json.loads(files["classes.json"])["roles"]["label"]
    kind = screen.table[column].dtype
    numbers = isinstance(kind, np.dtype) and np.issubdtype(kind, np.number)
    return str(kind) if numbers else None


def described(files: Files) -> dict[str, str]:
    """What a model was fitted on, in a few words each."""
    with unpacked(files) as folder:
        run = open_run(folder)
    rows = {"fitted": f"{run.config.title}, fold {run.fold}, seed {run.config.seed}"}
    for what in ("labels", "environments", "channels"):
        names = getattr(run, what)
        rows[what] = f"{len(names):,}: {listed(names, 5)}"
    chosen = (run.config.chosen or {}).items()
    return rows | {f"{option} chosen": f"{value:g}" for option, value in chosen}
