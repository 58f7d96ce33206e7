"""Everything that a report shows: runs, embeddings, scores and pictures found under paths."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.embeddings.file import read_embeddings
from deconfound.embeddings.shards import INDEX
from deconfound.errors import UserError
from deconfound.experiments.running.messages import run_directory
from deconfound.experiments.search_table import read_shown_table, selected_runs
from deconfound.experiments.table import read_table_file
from deconfound.reports.names import Names
from deconfound.reports.pictures import (
    DiagnosisSource,
    ImputedSource,
    SwapSource,
    read_diagnosis,
    read_imputed,
    read_swap,
)
from deconfound.reports.scores import (
    SCORE_COLUMNS,
    joined_scores,
    read_scores,
    without_repeats,
)
from deconfound.runs.history import read_history
from deconfound.runs.run import Run, open_run, read_json
from deconfound.runtime.seeds import numpy_stream


@dataclass(frozen=True)
class RunSource:
    """One run directory."""

    run: Run
    name: str
    """The method, with the options that tell its settings apart where there are several."""
    config: dict[str, Any]
    """The configuration as JSON."""
    history: pd.DataFrame
    selection: dict[str, Any]
    provenance: dict[str, Any]
    fold: dict[str, Any]
    """Contents of fold.json: counts of the parts, path and identity of the screen."""

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def title(self) -> str:
        """Name, fold and seed."""
        return f"{self.name} · {self.config['data']['fold']} · seed {self.config['seed']}"

    def selected_step(self, stage: str) -> float | None:
        """The step of the checkpoint a stage ended with; None if no validation chose one."""
        used = self.selection["used"][stage]
        step: float | None = self.selection["best"][stage].get(used, {}).get("step")
        return step


@dataclass(frozen=True)
class Sample:
    """Rows of one embeddings file, drawn for a map."""

    path: Path
    name: str
    """As in `RunSource`."""
    about: dict[str, Any]
    representation: str
    """content if the file holds it, else representation."""
    values: npt.NDArray[np.float32]
    """(P, D)."""
    rows: npt.NDArray[np.int64]
    """(P,) rows of the screen."""
    total: int
    """Rows of the file."""
    part: list[str]
    label: list[str]
    environment: list[str]
    predicted: list[str]
    """Empty text where missing."""


@dataclass(frozen=True)
class Sources:
    """Everything that was found."""

    runs: list[RunSource]
    samples: list[Sample]
    scores: pd.DataFrame
    """Columns `SCORE_COLUMNS` and `file`; `method` holds the name as in `RunSource`."""
    swaps: list[SwapSource]
    imputed: list[ImputedSource]
    sweeps: list[tuple[Path, pd.DataFrame]]
    """Directory and table, as text, of each comparison."""
    diagnoses: list[DiagnosisSource]
    left_out: list[str]
    """Reasons why something found could not be read."""


def find_sources(paths: Iterable[Path], points: int, seed: int) -> Sources:
    """Read everything under `paths`; at most `points` rows of each embeddings file, by `seed`.

    A file or directory that cannot be read is left out, with the reason, if it was found by
    searching. Raises UserError if such a path was named, if nothing is found, or if two files
    disagree about a score.
    """
    runs: list[RunSource] = []
    samples: list[Sample] = []
    scores: list[pd.DataFrame] = []
    swaps: list[SwapSource] = []
    imputed: list[ImputedSource] = []
    sweeps: list[tuple[Path, pd.DataFrame]] = []
    diagnoses: list[DiagnosisSource] = []
    left_out: list[str] = []
    seen: set[Path] = set()
    given = [Path(path) for path in paths]
    for named in given:
        if not named.exists():
            raise UserError(f"{named}: no such file or directory")
        for path in _candidates(named):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                match _kind(path):
                    case "run":
                        runs.append(_read_run(path))
                    case "sweep":
                        sweeps.append((path, read_shown_table(path)))
                    case "levels":
                        sweeps.append((path, read_table_file(path)))
                    case "diagnosis":
                        diagnoses.append(read_diagnosis(path))
                    case "swap":
                        swaps.append(read_swap(path))
                    case "imputed":
                        imputed.append(read_imputed(path))
                    case "embeddings":
                        samples.append(_read_sample(path, points, seed))
                    case "scores":
                        scores.append(read_scores(path))
            except UserError as error:
                if path == named:
                    raise
                left_out.append(str(error))
    if not (runs or samples or scores or swaps or imputed or sweeps or diagnoses):
        reason = f" ({left_out[0]})" if left_out else ""
        raise UserError(
            f"{', '.join(map(str, given))}: nothing to report on{reason}; expected run "
            "directories, .h5ad embeddings, scores*.parquet or directories of `deconfound transfer`"
        )
    return _with_names(
        Sources(runs, samples, joined_scores(scores), swaps, imputed, sweeps, diagnoses, left_out)
    )


def _candidates(named: Path) -> Iterator[Path]:
    """The path itself, or every directory and file under it that a report can show, sorted."""
    if named.is_file():
        if _kind(named) is None:
            raise UserError(f"{named}: not something to report on; expected .h5ad or .parquet")
        yield named
        return
    for folder, inside, files in os.walk(named):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        here = Path(folder)
        kind = _kind(here)
        if kind:
            yield here
        if kind == "sweep":  # of its runs those that were selected
            with suppress(UserError):  # reading the sweep says why
                yield from [run_directory(here, name) for name in selected_runs(here)]
            inside[:] = [name for name in inside if name == "embeddings"]
        if kind in ("diagnosis", "embeddings"):  # a diagnosis stands for its many runs
            inside[:], files = [], []
        for name in sorted(files):
            file = here / name
            searched = name.startswith("scores") or file.suffix == ".h5ad"
            if not name.startswith(".") and searched and _kind(file):
                yield file


def _kind(path: Path) -> str | None:
    if path.is_dir():
        if (path / "config.yaml").is_file() and (path / "fold.json").is_file():
            return "run"
        if (path / "sweep.yaml").is_file() and (path / "table.csv").is_file():
            return "sweep"
        if (path / "crossval.yaml").is_file() and (path / "table.md").is_file():
            return "levels"
        if (path / "diagnosis.json").is_file():
            return "diagnosis"
        if (path / "imputed.json").is_file():
            return "imputed"
        if (path / INDEX).is_file():
            return "embeddings"
        return "swap" if (path / "transfer.json").is_file() else None
    return {".h5ad": "embeddings", ".parquet": "scores"}.get(path.suffix)


def _read_run(path: Path) -> RunSource:
    opened = open_run(path)
    return RunSource(
        opened,
        opened.config.method,
        opened.config.model_dump(mode="json"),
        read_history(path / "metrics.csv"),
        read_json(path / "selection.json"),
        opened.provenance(),
        read_json(path / "fold.json"),
    )


def _read_sample(path: Path, points: int, seed: int) -> Sample:
    opened = read_embeddings(path)
    part = opened.part
    found = opened.representations
    if not found:
        raise UserError(f"{path}: holds no representation; embed again")
    name = next((n for n in ("content", "representation") if n in found), next(iter(found)))
    order = numpy_stream(seed, "report rows").permutation(len(part))
    rows = np.sort(order[part[order] != "unused"][:points]).astype(np.int64)

    def text(values: pd.Series) -> list[str]:
        return [str(value) for value in values.iloc[rows].astype("string").fillna("")]

    return Sample(
        path,
        str(opened.about["method"]),
        opened.about,
        name,
        found[name][rows],
        rows,
        len(part),
        part[rows].tolist(),
        text(opened.label()),
        text(opened.environment()),
        text(opened.table["deconfound_predicted"]),
    )


def _with_names(sources: Sources) -> Sources:
    """Name each method that comes in several settings after the options that differ."""
    scores = sources.scores
    texts: set[str] = set(scores["config"].dropna()) if "config" in scores.columns else set()
    of_scores = {text: json.loads(text) for text in texts}
    names = Names(
        [
            *(run.config for run in sources.runs),
            *(_config(sample.about) for sample in sources.samples),
            *(swap.about["config"] for swap in sources.swaps),
            *(one.about["config"] for one in sources.imputed),
            *of_scores.values(),
        ]
    )
    if of_scores:
        named = {text: names.of(config) for text, config in of_scores.items()}
        scores = scores.assign(method=scores["config"].map(named).fillna(scores["method"]))
    return Sources(
        [replace(run, name=names.of(run.config)) for run in sources.runs],
        [replace(sample, name=names.of(_config(sample.about))) for sample in sources.samples],
        without_repeats(scores[[*SCORE_COLUMNS, "file"]]),
        [replace(swap, name=names.of(swap.about["config"])) for swap in sources.swaps],
        [replace(one, name=names.of(one.about["config"])) for one in sources.imputed],
        sources.sweeps,
        sources.diagnoses,
        sources.left_out,
    )


def _config(about: dict[str, Any]) -> dict[str, Any]:
    """The run configuration of embeddings; only the method where nothing was trained."""
    found: dict[str, Any] = about.get("config") or {"method": about["method"]}
    return found
