"""profiles: the profiles of a screen, unchanged, as an embeddings file."""

from pathlib import Path

import numpy as np
import pandas as pd

from deconfound.config import DataOptions
from deconfound.data.folds.problem import pose
from deconfound.data.screens.screen import open_screen
from deconfound.embeddings.file import PART, PREDICTED, Embeddings, write_embeddings
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.runs.software import software

METHOD = "profiles"


def profiles(screen: Path, out: Path, data: DataOptions | None = None) -> Embeddings:
    """Write the profiles of `screen` and the parts of a fold as an embeddings file `out`.

    This is the baseline of untrained features: "representation" holds the profiles unchanged, and
    no label is predicted. `correct` and `measure` take the file like any other. Raises UserError
    if `out` exists or is being written, for a screen of images, and for what `pose` refuses.
    """
    data, out = data or DataOptions(), Path(out)
    if out.suffix != ".h5ad":
        raise UserError(f"{out}: expected a name ending in .h5ad")
    with atomic.claimed(out):
        opened = open_screen(screen)
        if not opened.holds_profiles:
            raise UserError(
                f"{opened.path}: holds images; measure their features with "
                "`deconfound ingest cellprofiler`, or train a method and `deconfound embed`"
            )
        problem = pose(opened, data)
        values = opened.read(np.arange(len(opened))).astype(np.float32)
        table = opened.table.copy()
        table[PART] = problem.fold.part
        table[PREDICTED] = pd.Series(pd.NA, index=table.index, dtype="string")
        about = {
            "method": METHOD,
            "saw_held_out": False,
            "fold": problem.fold.name,
            "seed": 0,
            "run": None,
            "screen": opened.name,
            "selection": "none",
            "roles": problem.roles.model_dump(mode="json"),
            "labels": list(problem.label.names),
            "environments": list(problem.environment.names),
            "config": {
                "method": METHOD, "seed": 0, "options": {}, "data": data.model_dump(mode="json"),
            },
            "software": software(),
        }  # fmt: skip
        made = Embeddings(table, {"representation": values}, about)
        write_embeddings(out, made)
    return made
