"""crossval: the first table of Pernice et al., IST, for any methods on any screen.

In distribution, mixing of the embedding, and macro-F1 on groups held out at every level.
"""

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import yaml

from deconfound.config import validated
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import open_screen
from deconfound.embeddings.correct import correct
from deconfound.embeddings.embed import embed
from deconfound.embeddings.file import read_embeddings
from deconfound.errors import UserError
from deconfound.evaluation.measure import measure, prediction_scores
from deconfound.evaluation.scores import COLUMNS, score_row
from deconfound.experiments.held_out import (
    IID,
    KNN,
    CrossvalOptions,
    TableRow,
    choose_folds,
    chosen_levels,
    level_titles,
    read_rows,
    sweep_file,
)
from deconfound.experiments.plan import Plan, SweepFile, make_plan
from deconfound.experiments.running.messages import run_directory
from deconfound.experiments.select import read_result, score_table
from deconfound.experiments.sweep import ExecutorName, sweep
from deconfound.files import atomic
from deconfound.intervention.relative_style import style_reference
from deconfound.runtime.device import available_cores
from deconfound.runtime.progress import Progress
from deconfound.studies.ist_table import make_table, shown, write_crossval


@dataclass(frozen=True)
class Crossval:
    """What a cross-validation found."""

    table: pd.DataFrame
    """One row for each method, with the columns of `crossval_table.make_table`."""
    shown: pd.DataFrame
    """The same as text."""
    folds: pd.DataFrame
    """Every group of every level, and the reason where it was not held out."""
    failed: int
    """Runs that failed; `sweep/failures.csv` says why."""


def crossval(
    methods: tuple[str, ...],
    screen: Path,
    out: Path,
    options: CrossvalOptions | None = None,
    *,
    executor: ExecutorName = "local",
    workers: int | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> Crossval:
    """Train `methods` on an IID fold and on every fold of every level, and tabulate.

    A method is the name of a trained one, NAME=CONFIG.yaml for a recipe, or either with
    corrections after it: erm+knn, erm+symphony+knn; they are made of the embeddings of its runs.
    Writes below the directory `out`: `sweep/` (the runs; a killed call resumes, and another call
    with more methods, seeds or folds trains only what is new), `embeddings/`, `folds.csv`,
    `scores.parquet` and `table.csv`, `.md` and `.tex`. Raises UserError for an unknown method or
    level, a screen with one environment or nothing to hold out, if styles cannot be relative as
    asked, and if `out` holds something else.
    """
    options = options or CrossvalOptions()
    out = Path(out)
    rows, entries = read_rows(methods)
    opened = open_screen(screen)
    levels = chosen_levels(opened, options)
    folds = choose_folds(opened, levels, options)
    if options.relative_style is not None:
        style_reference(
            opened, roles_of(opened, options.data), options.relative_style, (), (), None
        )
    file = out / "crossval.yaml"
    if out.exists() and any(out.iterdir()) and not file.is_file():
        raise UserError(f"{out}: exists and is not a cross-validation; choose another --out")
    held_out = folds[folds["held_out"]]
    wanted = sweep_file(screen, entries, held_out["fold"].tolist(), options)
    plan = make_plan(Path("crossval"), validated(SweepFile, wanted, "crossval"))
    with atomic.locked(out):
        atomic.write_text(file, yaml.safe_dump(wanted, sort_keys=False))
        atomic.write_text(out / "folds.csv", folds.to_csv(index=False))
        done = sweep(
            file, out / "sweep", executor=executor, workers=workers, address=address, quiet=quiet
        )
        scores = _scores(plan, rows, out, options.knn, workers, quiet)
        with atomic.atomic_file(out / "scores.parquet") as temporary:
            scores.to_parquet(temporary)
        of_level = {level: held_out.loc[held_out["level"] == level, "fold"] for level in levels}
        table = make_table(
            scores,
            [row.name for row in rows],
            {level: names.tolist() for level, names in of_level.items()},
            _blocks(scores),
        )
        titles = level_titles(opened, levels)
        write_crossval(table, titles, out)
    return Crossval(table, shown(table, titles), folds, done.failed)


@dataclass(frozen=True)
class _Trained:
    """A finished run, and the rows of the table that rest on it."""

    name: str
    screen: Path
    fold: str
    rows: tuple[TableRow, ...]
    own: pd.DataFrame
    """The scores that the sweep has of it."""


def _scores(
    plan: Plan, rows: list[TableRow], out: Path, knn: int, workers: int | None, quiet: bool
) -> pd.DataFrame:
    """The scores of every row on every fold and seed; of mixing, on the IID fold alone.

    Runs are scored in as many processes as train, each with one thread; one where there is one.
    """
    runs = []
    for setting in plan.settings:
        of_entry = tuple(row for row in rows if row.entry == setting.entry)
        for name in setting.runs.values():
            result = read_result(out / "sweep", plan.jobs[name])
            if of_entry and result is not None:
                own = score_table([result])
                runs.append(_Trained(name, plan.jobs[name].screen, setting.fold, of_entry, own))
    if not runs:
        raise UserError(f"{out}: every run failed; {out / 'sweep' / 'failures.csv'} says why")
    processes = min(len(runs), workers or available_cores())
    threads = 1 if processes > 1 else None
    score = partial(_scores_of_run, out=out, knn=knn, threads=threads)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress("crossval", len(runs), "runs", quiet=quiet))
        found = []
        scored: Iterable[list[pd.DataFrame]] = map(score, runs)
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(processes, context, _take_one_thread))
            scored = pool.map(score, runs)
        for of_run in scored:
            found += of_run
            progress.update(1)
    records = [record for of_file in found for record in of_file.to_dict("records")]
    table = pd.DataFrame(records, columns=COLUMNS)
    key = [column for column in COLUMNS if column not in ("value", "n", "note", "config")]
    return table.drop_duplicates(key, ignore_index=True)


def _take_one_thread() -> None:
    """What a process does that scores beside others."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def _scores_of_run(run: _Trained, out: Path, knn: int, threads: int | None) -> list[pd.DataFrame]:
    """The scores of every row that rests on a run."""
    found = []
    for row in run.rows:
        scores = [] if row.is_post_hoc else [run.own]
        if row.is_post_hoc or run.fold == IID:
            scores += _scores_of_file(run, row, out, knn, threads)
        found += [one.assign(method=row.name) for one in scores]
    return found


def _scores_of_file(
    run: _Trained, row: TableRow, out: Path, knn: int, threads: int | None
) -> list[pd.DataFrame]:
    """What a row's embeddings of one run score: everything on the IID fold, else predictions."""
    file = _embedded(run, out, threads)
    if row.is_post_hoc:
        file = _corrected(file, row, knn)
    if run.fold != IID:
        opened = read_embeddings(file)
        found = [score_row(opened.about, run.fold, score) for score in prediction_scores(opened)]
        return [pd.DataFrame(found, columns=COLUMNS)]
    kept = out / "mixing" / f"{file.stem}.parquet"
    if not kept.exists():
        measure([file], kept, quiet=True)
    return [pd.read_parquet(kept)]


def _embedded(run: _Trained, out: Path, threads: int | None) -> Path:
    file = out / "embeddings" / f"{run.name}.h5ad"
    if not file.exists():
        of_run = run_directory(out / "sweep", run.name)
        embed(of_run, run.screen, file, threads=threads, quiet=True)
    return file


def _corrected(file: Path, row: TableRow, knn: int) -> Path:
    """The embeddings of a run with a row's correction; content is corrected where there is any."""
    done = [row.correction, *([f"knn{knn}"] if row.votes else [])]
    corrected = file.with_name("+".join([file.stem, *filter(None, done)]) + ".h5ad")
    if not corrected.exists():
        blocks = read_embeddings(file).representations
        correct(
            row.correction or KNN,
            file,
            corrected,
            representation=_block(list(blocks)),
            knn=knn if row.votes else None,
        )
    return corrected


def _blocks(scores: pd.DataFrame) -> dict[str, str]:
    """The representation that counts, of each method that was embedded."""
    mixing = scores[scores["metric"] == "lisi_ratio"]
    return {
        str(name): _block(of_name["representation"].unique().tolist())
        for name, of_name in mixing.groupby("method")
    }


def _block(names: list[str]) -> str:
    return "content" if "content" in names else "representation"


def describe_folds(folds: pd.DataFrame) -> list[str]:
    """What was held out at each level and, by reason, what was not; a line each."""
    said = []
    for level, of_level in folds.groupby("level", sort=False):
        taken = of_level[of_level["held_out"]]
        names = ", ".join(fold.partition("=")[2] for fold in taken["fold"]) or "none"
        said.append(f"{level}: {len(taken)} of {len(of_level)} groups held out: {names}")
        for reason, refused in of_level[~of_level["held_out"]].groupby("reason", sort=False):
            said.append(f"{level}: {len(refused)} not held out: {reason}")
    return said
