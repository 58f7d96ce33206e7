"""The files and directories under a path of which a report can show something."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd

from deconfound.data.readers.embedded import INDEX
from deconfound.errors import UserError
from deconfound.experiments.running.messages import run_directory
from deconfound.experiments.search_table import selected_runs
from deconfound.reports.pictures import PICTURES
from deconfound.reports.verdict import FILE as VERDICT
from deconfound.runtime.escaping import from_spreadsheet

STUDY = "study"
MOST_RUNS = 20
"""Runs of a study that are shown: those of the first seed, without those that only choose."""
MARKS = {
    STUDY: {"study.yaml", "runs.csv"},
    "run": {"config.yaml", "fold.json"},
    "sweep": {"sweep.yaml", "table.csv"},
    "levels": {"crossval.yaml", "table.md"},
    "embeddings": {INDEX},
    **{kind: {described} for kind, (_, described, *_) in PICTURES.items()},
}
"""Files by which a directory is known, by its kind; the first kind that fits counts."""


def candidates(named: Path) -> Iterator[Path]:
    """The path itself, or every directory and file under it that a report can show, sorted."""
    if named.is_file():
        if kind_of(named) is None:
            raise UserError(f"{named}: not something to report on; expected .h5ad or .parquet")
        yield named
        return
    for folder, inside, files in os.walk(named):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        here = Path(folder)
        kind = kind_of(here)
        if kind == STUDY:
            yield from _runs_of_study(here)
            inside[:] = [name for name in inside if name in ("embeddings", "recommended")]
        elif kind:
            yield here
        if kind == "sweep":  # of its runs those that were selected
            with suppress(UserError):  # reading the sweep says why
                yield from [run_directory(here, name) for name in selected_runs(here)]
            inside[:] = [name for name in inside if name == "embeddings"]
        if kind in ("diagnosis", "embeddings"):  # a diagnosis stands for its many runs
            inside[:], files = [], []
        for name in sorted(files):
            file = here / name
            searched = name.startswith("scores") or name == VERDICT or file.suffix == ".h5ad"
            if not name.startswith(".") and searched and kind_of(file):
                yield file


def _runs_of_study(study: Path) -> list[Path]:
    """Runs with a group held out that have ended, those that are measured first."""
    runs = from_spreadsheet(pd.read_csv(study / "runs.csv", keep_default_na=False))
    own = runs[(runs["without"] == "") & (runs["seed"] == runs["seed"].min())]
    own = own.sort_values("measured", ascending=False, kind="stable")
    paths = [run_directory(study, name) for name in own["run"]]
    return [path for path in paths if (path / "model.safetensors").is_file()][:MOST_RUNS]


def kind_of(path: Path) -> str | None:
    """What a file or directory is by its name and marks; None if a report shows nothing of it."""
    if path.is_dir():
        marks = MARKS.items()
        return next(
            (kind for kind, files in marks if all((path / f).is_file() for f in files)), None
        )
    if path.name == VERDICT:
        return "verdict"
    return {".h5ad": "embeddings", ".parquet": "scores"}.get(path.suffix)
