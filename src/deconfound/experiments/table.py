"""One long table of the scores of an experiment, and tables as files for readers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from deconfound.errors import UserError
from deconfound.evaluation.scores import COLUMNS, read_scores
from deconfound.experiments.plan import Plan, Setting
from deconfound.experiments.running.chain import Task
from deconfound.experiments.select import Result
from deconfound.files import atomic

OWN_COLUMNS = ["entry", "setting", "run"]
"""Columns of the long table beside those of a scores file."""


def score_table(results: Iterable[Result]) -> pd.DataFrame:
    """The scores of runs by their own predictions, in the columns of a scores file."""
    rows = []
    for result in results:
        config = result.job.config
        about = {
            "method": config.title,
            "fold": config.data.fold,
            "seed": config.seed,
            "representation": "prediction",
            "config": json.dumps(config.model_dump(mode="json")),
        }
        for score in result.scores:
            notes = [score["note"], *config.held_out_notes]
            rows.append(about | score | {"note": "; ".join(filter(None, notes))})
    return pd.DataFrame(rows, columns=COLUMNS)


def long_table(
    plan: Plan, results: dict[str, Result], taken: Sequence[Setting], out: Path
) -> pd.DataFrame:
    """Every score of every run and chain: the columns of a scores file, and `OWN_COLUMNS`.

    `method` is the name of the chain, or of what was trained where the plan has no chains. Runs
    without one of the training environments are not in it, and chains of the settings `taken` alone
    are. `results` by name of the run.
    """
    tables = []
    for setting in plan.settings:
        about = {"entry": setting.entry, "setting": json.dumps(setting.values)}
        tasks = plan.tasks(setting) if setting in taken else []
        for name in setting.runs.values():
            if name in results:
                found = _of_run(plan, setting, results[name], tasks, out)
                tables += [one.assign(**about, run=name) for one in found]
    columns = [*COLUMNS, *OWN_COLUMNS]
    records = [record for table in tables for record in table.to_dict("records")]
    scored = pd.DataFrame(records, columns=columns)
    key = [column for column in columns if column not in ("value", "n", "note", "config")]
    return scored.drop_duplicates(key, ignore_index=True)


def _of_run(
    plan: Plan, setting: Setting, result: Result, tasks: Sequence[Task], out: Path
) -> list[pd.DataFrame]:
    own = score_table([result])
    if not plan.chains:
        return [own]
    found = [
        own.assign(method=chain.name)
        for chain in plan.chains
        if chain.entry == setting.entry and not chain.is_post_hoc
    ]
    for task in tasks:
        file = task.file(out, result.job.name)
        if file.is_file():
            found.append(read_scores(file).assign(method=task.chain.name))
    return found


def said_of_entries(plan: Plan) -> list[str]:
    """What was recommended and why, and which entries make use of images of test rows, and how."""
    entries: dict[str, list[str]] = {}
    for setting in plan.settings:
        for name in setting.runs.values():
            for note in plan.jobs[name].config.held_out_notes:
                entries.setdefault(note, []).append(setting.entry)
    return [*plan.recommended] + [
        f"{', '.join(dict.fromkeys(names))}: {note}, without their labels."
        for note, names in entries.items()
    ]


def write_table_files(shown: pd.DataFrame, out: Path, left: int) -> None:
    """Write table.md and table.tex of a table of text, whose first `left` columns are words."""
    head = list(shown.columns)
    rows = shown.to_numpy().tolist()
    lines = [head, ["---"] * len(head), *rows]
    marked = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    atomic.write_text(out / "table.md", "".join(f"| {line} |\n" for line in marked))
    text = [" & ".join(map(_latex, line)) + r" \\" for line in [head, *rows]]
    body = [r"\toprule", text[0], r"\midrule", *text[1:], r"\bottomrule"]
    begin = rf"\begin{{tabular}}{{{'l' * left + 'r' * (len(head) - left)}}}"
    latex = "\n".join([r"% needs \usepackage{booktabs}", begin, *body, r"\end{tabular}", ""])
    atomic.write_text(out / "table.tex", latex)


def read_table_file(out: Path) -> pd.DataFrame:
    """The table.md that `write_table_files` wrote, as text; raises UserError if it is not whole."""
    file = out / "table.md"
    lines = file.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    if len(cells) < 2 or len({len(row) for row in cells}) > 1:
        raise UserError(f"{file}: damaged; compare again")
    return pd.DataFrame(cells[2:], columns=cells[0])


def _latex(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$").replace("–", "--").replace("~", r"\textasciitilde{}")
