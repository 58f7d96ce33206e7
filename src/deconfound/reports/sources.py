"""Everything that a report shows: runs, embeddings, scores and pictures found under paths."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from deconfound.data.readers.embedded import main_block
from deconfound.data.tables.table import Coded, coded, require_columns
from deconfound.embeddings.file import PREDICTED, read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.scores import COLUMNS, read_scores
from deconfound.experiments.search_table import read_shown_table
from deconfound.experiments.table import read_table_file
from deconfound.reports.candidates import candidates, kind_of
from deconfound.reports.names import Names
from deconfound.reports.pictures import PICTURES, Pictures, read_pictures
from deconfound.reports.verdict import FoundVerdict, read_verdict
from deconfound.runs.dial import DialRecord, read_dial
from deconfound.runs.record import read_history
from deconfound.runs.run import Run, open_run, read_json
from deconfound.runtime.seeds import numpy_stream

ENTRY = "entry"
"""Column of the scores of a study alone, which name methods as the study does."""
SCORE_COLUMNS = [column for column in COLUMNS if column != "config"]
SCORE_KEY = ["method", "fold", "seed", "representation", "metric", "part"]


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
    dial: DialRecord | None
    """What was tried for an option that is `auto`."""

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
    marks: dict[str, Coded]
    """The part, label, environment and predicted label of each row; empty text where missing."""
    table: pd.DataFrame
    """All columns of these rows, (P, …)."""


@dataclass(frozen=True)
class Sources:
    """Everything that was found."""

    runs: list[RunSource]
    samples: list[Sample]
    scores: pd.DataFrame
    """Columns `SCORE_COLUMNS` and `file`; `method` holds the name as in `RunSource`."""
    pictures: dict[str, list[Pictures]]
    """By kind, as in `PICTURES`."""
    sweeps: list[tuple[Path, pd.DataFrame]]
    """Directory and table, as text, of each comparison."""
    verdicts: list[FoundVerdict]
    left_out: list[str]
    """Reasons why something found could not be read."""


def find_sources(paths: Iterable[Path], points: int, seed: int) -> Sources:
    """Read everything under `paths`; at most `points` rows of each embeddings file, by `seed`.

    A file or directory that cannot be read is left out, with the reason, if it was found by
    searching. Raises UserError if such a path was named, if nothing is found, or if two files
    disagree about a score.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        "run": _read_run,
        "sweep": lambda path: (path, read_shown_table(path)),
        "levels": lambda path: (path, read_table_file(path)),
        "embeddings": partial(_read_sample, points=points, seed=seed),
        "scores": _read_scores,
        "verdict": read_verdict,
        **{kind: partial(read_pictures, kind=kind) for kind in PICTURES},
    }
    found: dict[str, list[Any]] = defaultdict(list)
    left_out: list[str] = []
    seen: set[Path] = set()
    given = [Path(path) for path in paths]
    for named in given:
        if not named.exists():
            raise UserError(f"{named}: no such file or directory")
        for path in candidates(named):
            kind = kind_of(path)
            if kind is None or path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                made = readers[kind](path)
                found["table" if kind in ("sweep", "levels") else kind].append(made)
            except UserError as error:
                if path == named:
                    raise
                left_out.append(str(error))
    if not any(found.values()):
        reason = f" ({left_out[0]})" if left_out else ""
        raise UserError(
            f"{', '.join(map(str, given))}: nothing to report on{reason}; expected run "
            "directories, .h5ad embeddings, scores*.parquet or directories of `deconfound transfer`"
        )
    scores = _named(found)
    pictures = {kind: found[kind] for kind in PICTURES}
    return Sources(
        found["run"], found["embeddings"], scores, pictures, found["table"], found["verdict"],
        left_out,
    )  # fmt: skip


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
        read_dial(path),
    )


def _read_sample(path: Path, points: int, seed: int) -> Sample:
    opened = read_embeddings(path, lambda names: names and [main_block(names)])
    part = opened.part
    found = opened.representations
    if not found:
        raise UserError(f"{path}: holds no representation; embed again")
    name = main_block(list(found))
    order = numpy_stream(seed, "report rows").permutation(len(part))
    rows = np.sort(order[part[order] != "unused"][:points]).astype(np.int64)
    texts = {
        "part": pd.Series(part),
        "label": opened.label(),
        "environment": opened.environment(),
        "predicted": opened.table[PREDICTED],
    }
    marks = {key: coded(text.iloc[rows].astype("string").fillna("")) for key, text in texts.items()}
    about, table = opened.about, opened.table.iloc[rows].reset_index(drop=True)
    method, values = str(about["method"]), found[name][rows]
    return Sample(path, method, about, name, values, rows, len(part), marks, table)


def _read_scores(path: Path) -> pd.DataFrame:
    """The scores of one file, with the column `file`; raises UserError if it cannot be read."""
    table = read_scores(path)
    require_columns(table, SCORE_COLUMNS, str(path))
    kept = [column for column in (*COLUMNS, ENTRY) if column in table.columns]
    table = table[kept].copy()
    for column in ("method", "fold", "representation", "metric", "part", "note"):
        table[column] = table[column].astype("string").fillna("").astype(object)
    table["value"] = table["value"].astype(float)
    return table.assign(file=str(path))


def _named(found: dict[str, list[Any]]) -> pd.DataFrame:
    """Name each method that comes in several settings after the options that differ.

    Names what `found` holds in place, and returns its scores in one table, each score once. Raises
    UserError where two files give a score different values.
    """
    columns = [*SCORE_COLUMNS, "file"]
    scores: pd.DataFrame = pd.concat(
        found["scores"] or [pd.DataFrame(columns=columns)], ignore_index=True
    )
    configs = scores.get("config", pd.Series(dtype=object))
    of_scores = {text: json.loads(text) for text in configs.dropna().unique()}
    made = [one for kind in ("run", "embeddings", "swap", "imputed") for one in found[kind]]
    names = Names([*map(_config, made), *of_scores.values()])
    named = {text: names.of(config) for text, config in of_scores.items()}
    called = _called(scores, named)
    named = {text: called.get(name, name) for text, name in named.items()}
    for kind in ("run", "embeddings", "swap", "imputed"):
        own = [names.of(_config(one)) for one in found[kind]]
        found[kind] = [
            replace(one, name=called.get(name, name))
            for one, name in zip(found[kind], own, strict=True)
        ]
    if of_scores:
        scores = scores.assign(method=configs.map(named).fillna(scores["method"]))
    once = scores[columns].drop_duplicates([*SCORE_KEY, "value"])
    twice = once[once.duplicated(SCORE_KEY, keep=False)]
    if len(twice):
        first = twice.iloc[0]
        both = twice[(twice[SCORE_KEY] == first[SCORE_KEY]).all(axis=1)]
        raise UserError(
            f"{first.metric} of {first.method}, fold {first.fold}, seed {first.seed} is "
            f"{both.value.iloc[0]:.4g} in {both.file.iloc[0]} and {both.value.iloc[1]:.4g} in "
            f"{both.file.iloc[1]}; report one setting of a method, or one file of its scores"
        )
    return once.reset_index(drop=True)


def _called(scores: pd.DataFrame, named: dict[str, str]) -> dict[str, str]:
    """How a study calls a method, by the name made of its configuration, where both are unique."""
    if ENTRY not in scores:
        return {}
    of_study = scores[scores[ENTRY].notna()]
    pairs = pd.DataFrame({"name": of_study["config"].map(named), "called": of_study["method"]})
    pairs = pairs.dropna().drop_duplicates()
    alone = ~pairs["name"].duplicated(keep=False) & ~pairs["called"].duplicated(keep=False)
    return dict(pairs[alone].itertuples(index=False, name=None))


def _config(source: RunSource | Sample | Pictures) -> dict[str, Any]:
    """The run configuration; only the method where nothing was trained."""
    if isinstance(source, RunSource):
        return source.config
    found: dict[str, Any] = source.about.get("config") or {"method": source.about["method"]}
    return found
