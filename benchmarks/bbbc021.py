"""BBBC021 with a week held out: untrained corrections beside the methods of a cross-validation.

python benchmarks/bbbc021.py SCREEN --crossval CROSSVAL --work FOLDER --out FILE.json

Writes numbers alone. Files that FOLDER holds already are not made again.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from deconfound.config import DataOptions
from deconfound.data.folds.groups import groups
from deconfound.data.screens.screen import open_screen
from deconfound.data.tables.table import coded
from deconfound.embeddings.correct import KNN, correct
from deconfound.embeddings.embed import profiles
from deconfound.embeddings.file import read_embeddings
from deconfound.evaluation.measure import measure, prediction_scores
from deconfound.evaluation.scores import COLUMNS, score_row
from deconfound.experiments.layout import make_plan
from deconfound.files.atomic import write_text
from deconfound.methods import post_hoc
from deconfound.metrics.probe import batch_prediction

WEEK, PLATE, IID = "Metadata_Week", "Metadata_Plate", "iid"
CORRECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "knn": (KNN, {}),
    "pca": ("pca", {}),
    "standardise": ("standardise", {}),
    "sphering": ("sphering", {}),
    "tvn": ("tvn", {}),
    "tvn, 64 components": ("tvn", {"components": 64}),
    "harmony": ("harmony", {}),
}
"""Post hoc methods and their options, by the end of a file's name."""
SEEDED = {"harmony"}
SEEDS = (0, 1, 2)
NEIGHBORS = 1
PLATE_METRIC = "plate_prediction_macro_f1"
STANDARDISED_METRIC = "batch_prediction_macro_f1_standardised"
SHOWN = {
    "week held out": ("week_held_out", "macro_f1"),
    "chance": ("week_held_out", "macro_f1_chance"),
    "accuracy": ("week_held_out", "accuracy"),
    "chance of accuracy": ("week_held_out", "accuracy_chance"),
    "IID": ("iid", "macro_f1"),
    "week predicted": ("iid", "batch_prediction_macro_f1"),
    "week predicted, standardised": ("iid", STANDARDISED_METRIC),
    "plate predicted": ("iid", PLATE_METRIC),
    "LISI ratio": ("iid", "lisi_ratio"),
}


def untrained(screen: Path, work: Path) -> pd.DataFrame:
    """Scores of the profiles as they are and corrected, on every week's fold and the IID one.

    The label is the vote of the nearest training row.
    """
    opened = open_screen(screen)
    weeks = groups(opened.table, opened.roles, WEEK)
    found = []
    for fold in (IID, *(week.fold for week in weeks)):
        file = work / f"{fold.replace('=', '-')}.h5ad"
        if not file.exists():
            profiles(screen, file, DataOptions(fold=fold))
        for title, (name, options) in CORRECTIONS.items():
            for seed in SEEDS if name in SEEDED else SEEDS[:1]:
                corrected = file.with_name(f"{file.stem}+{title}-{seed}.h5ad")
                seeded = options | ({"seed": seed} if name in SEEDED else {})
                made = None if name == KNN else post_hoc.load(name).Options(**seeded)
                if not corrected.exists():
                    correct(name, file, corrected, made, knn=NEIGHBORS)
                scores = scores_of(corrected, work / "scores").assign(seed=seed)
                shown = scores["method"].str.replace(name, title) if options else scores["method"]
                found.append(scores.assign(method=shown))
    return pd.concat(found, ignore_index=True)


def scores_of(file: Path, kept: Path) -> pd.DataFrame:
    """Everything on the IID fold, and what more of it is predicted; else predictions alone."""
    scored = kept / f"{file.stem}.parquet"
    if scored.exists():
        return pd.read_parquet(scored)
    kept.mkdir(parents=True, exist_ok=True)
    opened = read_embeddings(file)
    if opened.about["fold"] == IID:
        table = pd.concat([measure([file], quiet=True), probes_of(file)], ignore_index=True)
    else:
        rows = [score_row(opened.about, str(opened.about["fold"]), row)
                for row in prediction_scores(opened)]  # fmt: skip
        table = pd.DataFrame(rows, columns=COLUMNS)
    table.to_parquet(scored)
    return table


def probes_of(file: Path) -> pd.DataFrame:
    """The paper's batch prediction of every block of a file, with two changes in turn.

    With the plate for a batch; and of the week, with every dimension divided by its sd first.
    """
    opened = read_embeddings(file)
    plate, week = (coded(opened.table[column]).codes for column in (PLATE, WEEK))
    about = opened.about
    rows = []
    for name, values in opened.representations.items():
        sd = values.std(axis=0, dtype=float)
        standardised = values / np.where(sd > 0, sd, 1.0)
        for metric, of, batch in (
            (PLATE_METRIC, values, plate),
            (STANDARDISED_METRIC, standardised, week),
        ):
            score = batch_prediction(of, batch, int(about["seed"]))
            rows.append({"method": about["method"], "fold": about["fold"], "seed": about["seed"],
                         "representation": name, "metric": metric, "part": "all",
                         "value": float(score.value), "n": int(score.n), "note": score.note,
                         "config": json.dumps(about["config"])})  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def trained(crossval: Path, work: Path) -> pd.DataFrame:
    """Scores of a cross-validation, and what more its IID embeddings predict."""
    found = [pd.read_parquet(crossval / "scores.parquet")]
    for setting in make_plan(crossval / "crossval.yaml").settings:
        for name in setting.runs.values():
            file = crossval / "embeddings" / f"{name}.h5ad"
            if setting.fold != IID or not file.exists():
                continue
            kept = work / "scores" / f"{name}-probes.parquet"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                probes_of(file).to_parquet(kept)
            found.append(pd.read_parquet(kept).assign(method=setting.entry))
    return pd.concat(found, ignore_index=True)


def summary(scores: pd.DataFrame) -> dict[str, Any]:
    """By method: mean and sd over seeds of every number, each the mean over weeks, and the weeks.

    Of trained methods those of the content where there is any; predictions have no block.
    """
    rows: dict[str, Any] = {}
    for method, own in scores.groupby("method", sort=False):
        blocks = set(own["representation"])
        block = "content" if "content" in blocks else "representation"
        own = own[own["representation"].isin([block, "prediction"])]
        own = own[own["part"].isin(["test", "all"])]
        own = own[~own["fold"].str.contains("pooled")]
        held_out = own[own["fold"].str.startswith(f"{WEEK}=") & (own["part"] == "test")]
        iid = own[own["fold"] == IID]
        cells = {}
        for title, (part, metric) in SHOWN.items():
            rows_of_part = iid if part == IID else held_out
            of_metric = rows_of_part[rows_of_part["metric"] == metric]
            by_seed = of_metric.groupby("seed")["value"].mean()
            if len(by_seed):
                sd = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan
                cells[title] = {
                    "mean": round(float(by_seed.mean()), 4),
                    "sd": None if math.isnan(sd) else round(sd, 4),
                    "seeds": len(by_seed),
                }
        week = held_out[held_out["metric"] == "macro_f1"]
        by_week = week.groupby(week["fold"].str.partition("=")[2])["value"].mean()
        cells["of_week"] = {str(name): round(value, 4) for name, value in by_week.items()}
        rows[str(method)] = cells
    return rows


def coverage(scores: pd.DataFrame) -> dict[str, float]:
    """Share of the labels of each week that training has."""
    found = scores[(scores["metric"] == "class_coverage") & (scores["part"] == "test")]
    by_fold = found.groupby("fold")["value"].first()
    return {str(fold).partition("=")[2]: round(value, 4) for fold, value in by_fold.items()
            if str(fold).startswith(f"{WEEK}=") and "pooled" not in str(fold)}  # fmt: skip


def main() -> None:
    """Score, print the table and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--crossval", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    found = [untrained(given.screen, given.work)]
    if given.crossval is not None:
        found.append(trained(given.crossval, given.work))
    scores = pd.concat(found, ignore_index=True)
    rows = summary(scores)
    result = {"neighbors": NEIGHBORS, "coverage": coverage(scores), "methods": rows}
    write_text(given.out, json.dumps(result, indent=1) + "\n")
    table = Table("method", *SHOWN)
    for method, cells in rows.items():
        shown = [cells.get(title) for title in SHOWN]
        table.add_row(method, *("–" if one is None else f"{one['mean']:.3f}" for one in shown))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
