"""The table of a search: what each entry reached on each fold, with the setting taken."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deconfound.arrays import Rows
from deconfound.data.folds.groups import well_units
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed, require_columns
from deconfound.display.numbers import mean_and_sd
from deconfound.errors import UserError
from deconfound.experiments.execute import Done
from deconfound.experiments.plan import Plan, Setting
from deconfound.experiments.running.messages import read_predictions
from deconfound.experiments.select import Choice, Result
from deconfound.experiments.table import said_of_entries, write_table_files
from deconfound.experiments.verdict import bootstrap
from deconfound.files import atomic
from deconfound.runtime.escaping import csv_text, from_spreadsheet

PARTS = ("val", "id_test", "test")
METRICS = ("accuracy", "macro_f1")
SHOWN = {
    "method": "method",
    "fold": "fold",
    "selected_by": "selected by",
    "setting": "setting",
    "seeds": "seeds",
    "val_accuracy": "accuracy, val",
    "id_test_accuracy": "accuracy, id_test",
    "test_accuracy": "accuracy, test",
    "interval": "95 % interval, test",
    "test_macro_f1": "macro-F1, test",
}
"""Columns of the table as a reader sees it."""


class Interval(NamedTuple):
    """A 95 % interval of the mean test accuracy."""

    low: float
    high: float
    over: str
    """What was drawn again."""


def make_table(
    plan: Plan, choices: list[Choice], results: dict[str, Result], out: Path
) -> pd.DataFrame:
    """One row for each choice, with means and sample sds over seeds; NaN where undefined.

    A setting that was chosen and then failed on a seed that was not searched has the means of its
    other seeds, and says so. Several folds that one entry and rule were chosen on end in a row of
    their mean, over the seeds that all have: its sd is over the seeds' means.
    """
    rows: list[dict[str, Any]] = []
    by_fold: dict[tuple[str, Path, str], list[dict[int, Result]]] = {}
    for choice in choices:
        row: dict[str, Any] = {
            "method": choice.entry,
            "screen": plan.screens[choice.screen].name,
            "fold": choice.fold,
            "selected_by": choice.rule,
            "criterion": choice.criterion,
            "compared": f"{choice.finished} of {choice.settings}",
        }
        if choice.setting is None:
            rows.append(row | {"setting": "none has finished", "seeds": 0})
            continue
        runs = {seed: name for seed, name in choice.setting.runs.items() if name in results}
        of_seed = {seed: results[name] for seed, name in runs.items()}
        by_fold.setdefault((choice.entry, choice.screen, choice.rule), []).append(of_seed)
        interval = _interval(plan.screens[choice.screen], list(of_seed.values()), out)
        row |= {
            "setting": _words(choice.setting) + _failed(choice.setting, runs),
            "seeds": len(of_seed),
            "test_accuracy_low": interval.low,
            "test_accuracy_high": interval.high,
            "interval_over": interval.over,
            "runs": " ".join(runs.values()),
        }
        rows.append(row | _means([of_seed]))
    for (entry, screen, rule), folds in by_fold.items():
        if len(folds) > 1:
            common = [seed for seed in folds[0] if all(seed in of_seed for of_seed in folds)]
            folds = [{seed: of_seed[seed] for seed in common} for of_seed in folds]
            row = {"method": entry, "screen": plan.screens[screen].name, "selected_by": rule}
            about = {"fold": f"mean of {len(folds)} folds", "setting": "of each fold"}
            rows.append(row | about | {"seeds": len(common)} | _means(folds))
    places = list(dict.fromkeys(map(_place, rows)))
    in_order = [row for place in places for row in rows if _place(row) == place]
    return pd.DataFrame(in_order, columns=_columns())


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write table.csv, .md and .tex of the settings taken.

    Returns the table as text, and what use is made of images of test rows.
    """
    table = make_table(plan, done.choices, done.results, out)
    write_table(table, out)
    return shown_table(table), said_of_entries(plan)


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write table.csv, with everything, and table.md and table.tex, for readers."""
    atomic.write_text(out / "table.csv", csv_text(table, shown=False))
    write_table_files(shown_table(table), out, left=4)


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text, with the columns `SHOWN`; the screen's too where there are several."""
    several = table["screen"].nunique() > 1
    rows = []
    for row in table.to_dict("records"):
        text = {
            name: mean_and_sd(row[f"{name}_mean"], row[f"{name}_sd"])
            for name in SHOWN
            if f"{name}_mean" in table.columns
        }
        low, high = row["test_accuracy_low"], row["test_accuracy_high"]
        text["interval"] = "–" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
        plain = {name: str(row[name]) for name in SHOWN if name in table.columns}
        fold = f"{row['screen']}: {row['fold']}" if several else str(row["fold"])
        rows.append(plain | text | {"fold": fold})
    return pd.DataFrame(rows, columns=list(SHOWN)).rename(columns=SHOWN)


def read_shown_table(out: Path) -> pd.DataFrame:
    """The table of the search in `out`, as text; raises UserError if it has none that is whole."""
    return shown_table(_read_table(out))


def selected_runs(out: Path) -> list[str]:
    """Names of the runs that the search in `out` took; raises as `read_shown_table` does."""
    runs = " ".join(_read_table(out)["runs"]).split()
    return list(dict.fromkeys(runs))


def _read_table(out: Path) -> pd.DataFrame:
    file = out / "table.csv"
    try:
        table = pd.read_csv(file, keep_default_na=False, na_values={c: [""] for c in _numbers()})
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: missing or damaged; compare again") from error
    require_columns(table, _columns(), str(file))
    return from_spreadsheet(table)


def _interval(screen: Screen, runs: list[Result], out: Path) -> Interval:
    correct = []
    rows: Rows = np.empty(0, dtype=np.int64)
    for run in runs:
        found = read_predictions(out, run.job.name)
        test = (found["part"] == "test") & found["seen"]
        rows = found["row"][test]
        correct.append(found["correct"][test])
    unit: Rows = rows
    over = "rows"
    tested = screen.table.iloc[rows]
    if screen.roles.well is not None and tested[screen.roles.well].notna().any():
        well = well_units(tested, screen.roles)
        if len(np.unique(well)) > 1:
            unit, over = well, "wells"
    drawn = f"seeds and {over}" if len(runs) > 1 else over
    return Interval(*bootstrap(np.stack(correct), unit), drawn)


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["screen"]), str(row["fold"])


def _means(folds: list[dict[int, Result]]) -> dict[str, float]:
    """Mean and sample sd over seeds of every score, averaged over folds within each seed."""
    found: dict[str, float] = {}
    for part in PARTS:
        for metric in METRICS:
            values = np.array([[run.value(part, metric) for run in f.values()] for f in folds])
            of_seed = values.mean(axis=0)
            sd = float(of_seed.std(ddof=1)) if len(of_seed) > 1 else math.nan
            found |= {
                f"{part}_{metric}_mean": float(of_seed.mean()),
                f"{part}_{metric}_sd": sd,
            }
    return found


def _columns() -> list[str]:
    about = ["method", "screen", "fold", "selected_by", "setting", "criterion", "compared", "seeds"]
    scores = [f"{p}_{m}_{what}" for p in PARTS for m in METRICS for what in ("mean", "sd")]
    return [*about, *scores, "test_accuracy_low", "test_accuracy_high", "interval_over", "runs"]


def _numbers() -> list[str]:
    about = ("method", "screen", "fold", "selected_by", "setting", "compared", "runs")
    return [name for name in _columns() if name not in (*about, "interval_over")]


def _words(setting: Setting) -> str:
    if setting.trial is None:
        words = ", ".join(f"{name} {value}" for name, value in setting.values.items())
        return words or "as given"
    short = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in setting.values.items()}
    words = ", ".join(f"{name} {value}" for name, value in short.items())
    return f"trial {setting.trial}: {words}"


def _failed(setting: Setting, done: dict[int, str]) -> str:
    failed = [seed for seed in setting.runs if seed not in done]
    return f" (failed on seed {listed(failed)})" if failed else ""
