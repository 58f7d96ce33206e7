"""The view by levels: the first table of Pernice et al., IST, for any methods on any screen.

In distribution, mixing of the embedding, and macro-F1 on groups held out at every level.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from deconfound.config import validated
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import roles_of
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.display.numbers import mean_and_sd
from deconfound.errors import UserError
from deconfound.experiments.execute import Call, Done, execute
from deconfound.experiments.held_out import Folds, chosen_levels, describe_folds, level_titles
from deconfound.experiments.layout import make_plan, refuse_many_runs
from deconfound.experiments.plan import Plan
from deconfound.experiments.plan_file import PlanFile
from deconfound.experiments.running.chain import main_block
from deconfound.experiments.table import said_of_entries, write_table_files
from deconfound.experiments.verdict import paired_differences
from deconfound.experiments.words import read_rows
from deconfound.files import atomic
from deconfound.intervention.styles import style_reference
from deconfound.runs.recommended import RECOMMENDED
from deconfound.runtime.escaping import csv_text
from deconfound.studies.comparison import CompareOptions, Comparison
from deconfound.studies.source import refuse_other

MARKER = "crossval.yaml"
"""The plan, by whose name earlier builds are known too."""
IID = "iid"
NEARBY = ("seen_nearby", "unseen_nearby")
IID_F1, LISI, BATCH_CV = "IID", "cLISI/bLISI", "kNN BatchCV"
METHODS = ("erm", RECOMMENDED, "scbd")
SEEDS = (0, 1, 2)


def compare_levels(
    screen: Path, out: Path, options: CompareOptions, intervention: Mapping[str, Any], call: Call
) -> Comparison:
    """Train methods on an IID fold and on every fold of every level, and tabulate.

    Corrections in the names of `options.methods`, as in erm+knn and erm+symphony+knn, are made of
    the embeddings of their method's runs. `intervention` holds values of `InterventionOptions`, for
    methods trained on imputed images. Another call with more methods, seeds or folds trains only
    what is new. Raises UserError for an unknown method or level, a screen with one environment or
    nothing to hold out, if styles cannot be relative as asked, if `out` holds something else, and
    if every run failed.
    """
    chains, entries = read_rows(options.methods or METHODS, options.knn)
    opened = open_screen(screen)
    levels = chosen_levels(opened, options.hold_out)
    _refuse_many_folds(opened, levels, len(entries), options)
    posed = Folds()
    folds = posed.choose(
        opened,
        levels,
        options.data,
        folds_per_level=options.folds_per_level,
        draw_seed=options.draw_seed,
    )
    refuse_unknown_controls(opened, options, intervention)
    file = out / MARKER
    refuse_other(out, file.name, "cross-validation")
    held_out = folds.loc[folds["held_out"], "fold"].tolist()
    wanted = plan_values(screen, entries, held_out, options, intervention)
    wanted |= {"chains": [chain.word for chain in chains], "knn": options.knn}
    plan = make_plan(
        Path("compare"), validated(PlanFile, wanted, "compare"), posed, max_runs=options.max_runs
    )
    with atomic.locked(out):
        atomic.write_text(file, yaml.safe_dump(wanted, sort_keys=False))
        atomic.write_text(out / "folds.csv", csv_text(folds))
        (shown, said), summary = execute(plan, out, write_view, call)
    return Comparison(shown, [*said, *describe_folds(folds)], summary)


def refuse_unknown_controls(
    screen: Screen, options: CompareOptions, intervention: Mapping[str, Any]
) -> None:
    """Raise UserError if styles are to be relative to controls and none are marked."""
    relative = intervention.get("relative_style")
    if relative is not None:
        style_reference(screen, roles_of(screen, options.data), relative, (), (), None)


def _refuse_many_folds(
    screen: Screen, levels: list[str], entries: int, options: CompareOptions
) -> None:
    """Raise UserError for too many runs before any fold is posed, each of which takes a while."""
    folds = 1
    for level in levels:
        every = groups(screen.table, roles_of(screen, options.data), level)
        possible = sum(group.refused is None for group in every)
        folds += min(possible, options.folds_per_level or possible)
    runs = folds * entries * len(options.seeds or SEEDS)
    refuse_many_runs(Path("compare"), runs, options.max_runs)


def plan_values(
    screen: Path,
    entries: dict[str, dict[str, Any]],
    folds: list[str],
    options: CompareOptions,
    intervention: Mapping[str, Any],
) -> dict[str, Any]:
    """The plan of a comparison by levels, as a plan file says it."""
    training = {"steps": options.steps, "batch_size": options.batch_size}
    given = {name: value for name, value in intervention.items() if value is not None}
    if given and not any("intervene" in entry for entry in entries.values()):
        flag = "--" + next(iter(given)).replace("_", "-")
        raise UserError(f"compare: {flag} belongs to METHOD+IMPUTER, such as erm+ist; add one")
    return {
        "screens": [str(Path(screen).resolve())],
        "folds": [IID, *folds],
        "seeds": list(options.seeds or SEEDS),
        "data": options.given_data,
        "training": {name: value for name, value in training.items() if value},
        "methods": {
            name: entry | ({"intervention": given} if given and "intervene" in entry else {})
            for name, entry in entries.items()
        },
    }


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write table.csv, .md and .tex of a plan's chains, or entries, over its folds by level.

    Of an entry that is searched the setting counts that the plan's first rule took.

    Returns the table as text and the differences from the first method on held-out groups. Raises
    UserError if the plan has several screens, and if no run has ended.
    """
    if len(plan.screens) > 1:
        raise UserError("compare: --view levels shows one screen; name one in the plan")
    if not done.results:
        raise UserError(f"{out}: every run failed; {out / 'failures.csv'} says why")
    (screen,) = plan.screens.values()
    folds = list(dict.fromkeys(setting.fold for setting in plan.settings))
    levels = {level: [fold for fold in folds if fold.startswith(f"{level}=")]
              for level in reversed(screen.roles.levels)}  # fmt: skip
    levels = {level: named for level, named in levels.items() if named}
    taken = done.taken()
    runs = {name for setting in taken for name in setting.runs.values()}
    scores = done.scores[done.scores["run"].isin(runs)]
    names = [chain.name for chain in plan.chains]
    if not names:
        scores = scores.assign(method=scores["entry"])
        names = list(dict.fromkeys(setting.entry for setting in taken))
    table = make_table(scores, names, levels)
    text = shown(table, level_titles(screen, list(levels)))
    atomic.write_text(out / "table.csv", csv_text(table))
    write_table_files(text, out, left=1)
    held_out = [fold for named in levels.values() for fold in named]
    differences = paired_differences(scores, names[0], held_out)
    return text, [*(one.text() for one in differences), *said_of_entries(plan)]


class Cell(NamedTuple):
    """What a column of the table holds of one method, over folds and seeds."""

    mean: float
    sd: float
    """Sample sd; NaN of a single run."""
    runs: int
    chance: float
    """Mean macro-F1 of the same predictions dealt out at random; NaN of other metrics."""


def make_table(scores: pd.DataFrame, names: list[str], folds: dict[str, list[str]]) -> pd.DataFrame:
    """One row for each of `names`; the columns NAME_mean, NAME_sd, NAME_runs, NAME_chance.

    `scores` has the columns of a scores file; `folds` holds the folds of each level, innermost
    first. Beside a level stand LEVEL_seen_nearby and LEVEL_unseen_nearby, its labels apart. Mixing
    is that of the content block, of methods that have one. Means and sds are over all folds of a
    level and all seeds. NaN where there is no run.
    """
    rows = []
    for name in names:
        own = scores[(scores["method"] == name) & (scores["part"] == "test")]
        in_distribution = own[own["fold"] == IID]
        mixing = in_distribution[in_distribution["metric"].isin(["lisi_ratio", "knn_batch_cv"])]
        mixing = mixing[mixing["representation"] == main_block(list(mixing["representation"]))]
        cells = {
            IID_F1: _f1(in_distribution),
            LISI: _cell(mixing[mixing["metric"] == "lisi_ratio"]["value"]),
            BATCH_CV: _cell(mixing[mixing["metric"] == "knn_batch_cv"]["value"]),
        }
        for level, of_level in folds.items():
            held_out = own[own["fold"].isin(of_level)]
            cells[level] = _f1(held_out)
            cells |= {f"{level}_{kind}": _f1(held_out, f"macro_f1_{kind}") for kind in NEARBY}
        flat = {
            f"{column}_{what}": value
            for column, cell in cells.items()
            for what, value in cell._asdict().items()
        }
        rows.append({"method": name} | flat)
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame, levels: dict[str, str]) -> pd.DataFrame:
    """The table as text; `levels` holds the title of each level, innermost first."""
    titles = {IID_F1: IID_F1, LISI: LISI, BATCH_CV: BATCH_CV} | levels
    rows = []
    for row in table.to_dict("records"):
        cells = {}
        for column, title in titles.items():
            cells[title] = mean_and_sd(row[f"{column}_mean"], row[f"{column}_sd"])
        rows.append({"method": str(row["method"])} | cells)
    return pd.DataFrame(rows, columns=["method", *titles.values()])


def _f1(scores: pd.DataFrame, metric: str = "macro_f1") -> Cell:
    predicted = scores[scores["representation"] == "prediction"]
    chance = predicted[predicted["metric"] == f"{metric}_chance"]["value"].mean()
    found = _cell(predicted[predicted["metric"] == metric]["value"])
    return found._replace(chance=float(chance))


def _cell(values: pd.Series) -> Cell:
    known = values.dropna()
    return Cell(float(known.mean()), float(known.std()), len(known), float("nan"))
