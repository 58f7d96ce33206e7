"""crossval: the first table of Pernice et al., IST, for any methods on any screen.

In distribution, mixing of the embedding, and macro-F1 on groups held out at every level.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from deconfound import atomic
from deconfound.correct import correct
from deconfound.crossval_plan import (
    IID,
    KNN,
    CrossvalOptions,
    TableRow,
    choose_folds,
    chosen_levels,
    read_rows,
    sweep_file,
)
from deconfound.crossval_table import make_table, shown, write_crossval
from deconfound.data.screen import open_screen
from deconfound.embed import embed
from deconfound.embeddings import read_embeddings
from deconfound.errors import UserError
from deconfound.measure import COLUMNS, measure, prediction_scores, score_row
from deconfound.progress import Progress
from deconfound.sweep import ExecutorName, sweep
from deconfound.sweep_order import run_directory
from deconfound.sweep_plan import Plan, make_plan
from deconfound.sweep_select import read_result, score_table


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
    level, a screen with one environment or nothing to hold out, and if `out` holds something else.
    """
    options = options or CrossvalOptions()
    out = Path(out)
    rows, entries = read_rows(methods)
    opened = open_screen(screen)
    levels = chosen_levels(opened, options)
    folds = choose_folds(opened, levels, options)
    file = out / "crossval.yaml"
    if out.exists() and any(out.iterdir()) and not file.is_file():
        raise UserError(f"{out}: exists and is not a cross-validation; choose another --out")
    with atomic.locked(out):
        held_out = folds[folds["held_out"]]
        wanted = sweep_file(screen, entries, held_out["fold"].tolist(), options)
        atomic.write_text(file, yaml.safe_dump(wanted, sort_keys=False))
        atomic.write_text(out / "folds.csv", folds.to_csv(index=False))
        done = sweep(
            file, out / "sweep", executor=executor, workers=workers, address=address, quiet=quiet
        )
        plan = make_plan(file)
        scores = _scores(plan, rows, out, options.knn, quiet)
        with atomic.atomic_file(out / "scores.parquet") as temporary:
            scores.to_parquet(temporary)
        of_level = {level: held_out.loc[held_out["level"] == level, "fold"] for level in levels}
        table = make_table(
            scores,
            [row.name for row in rows],
            {level: names.tolist() for level, names in of_level.items()},
            _blocks(scores),
        )
        titles = {level: f"Level-{n}: {level}" for n, level in enumerate(levels, start=1)}
        write_crossval(table, titles, out)
    return Crossval(table, shown(table, titles), folds, done.failed)


def _scores(plan: Plan, rows: list[TableRow], out: Path, knn: int, quiet: bool) -> pd.DataFrame:
    """The scores of every row on every fold and seed; of mixing, on the IID fold alone."""
    runs = [
        (row, setting.fold, name)
        for row in rows
        for setting in plan.settings
        if setting.entry == row.entry
        for name in setting.runs.values()
    ]
    found = []
    with Progress("crossval", len(runs), "runs", quiet=quiet) as progress:
        for row, fold, name in runs:
            result = read_result(out / "sweep", plan.jobs[name])
            if result is not None:
                scores = [] if row.is_post_hoc else [score_table([result])]
                if row.is_post_hoc or fold == IID:
                    scores += _scores_of_file(plan, row, fold, name, out, knn)
                found += [one.assign(method=row.name) for one in scores]
            progress.update(1, row.name)
    if not found:
        raise UserError(f"{out}: every run failed; {out / 'sweep' / 'failures.csv'} says why")
    table = pd.concat(found, ignore_index=True)[COLUMNS]
    key = [column for column in COLUMNS if column not in ("value", "n", "note", "config")]
    return table.drop_duplicates(key, ignore_index=True)


def _scores_of_file(
    plan: Plan, row: TableRow, fold: str, name: str, out: Path, knn: int
) -> list[pd.DataFrame]:
    """What a row's embeddings of one run score: everything on the IID fold, else predictions."""
    file = _embedded(plan, name, out)
    if row.is_post_hoc:
        file = _corrected(file, row, knn)
    if fold != IID:
        opened = read_embeddings(file)
        found = [score_row(opened.about, fold, score) for score in prediction_scores(opened)]
        return [pd.DataFrame(found, columns=COLUMNS)]
    kept = out / "mixing" / f"{file.stem}.parquet"
    if not kept.exists():
        measure([file], kept, quiet=True)
    return [pd.read_parquet(kept)]


def _embedded(plan: Plan, name: str, out: Path) -> Path:
    file = out / "embeddings" / f"{name}.h5ad"
    if not file.exists():
        embed(run_directory(out / "sweep", name), plan.jobs[name].screen, file, quiet=True)
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
