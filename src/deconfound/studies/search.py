"""A search: methods × settings × folds × seeds, and the setting that each rule takes."""

from pathlib import Path

import pandas as pd

from deconfound.experiments.execute import Done
from deconfound.experiments.plan import Plan
from deconfound.experiments.search_table import make_table, shown_table, write_table


def write_view(plan: Plan, done: Done, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Write table.csv, .md and .tex of the settings taken; the table as text, and no sentences."""
    table = make_table(plan, done.choices, done.results, out)
    write_table(table, out)
    return shown_table(table), []
