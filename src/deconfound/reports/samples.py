"""Sample images of the screens of a report, before any score."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from deconfound.data.tables.table import Roles
from deconfound.display.samples import SampleTable, sample_table, samples_html
from deconfound.errors import UserError
from deconfound.reports.cells import Cells
from deconfound.reports.screens import screen_of_run
from deconfound.reports.sources import RunSource

MOST_SCREENS = 2


def sample_images(runs: Sequence[RunSource], cells: Iterable[Cells], seed: int) -> Markup:
    """HTML of sample images by label × environment of the screens of `runs`; empty without any.

    Each as `sample_table` has it, drawn by `seed`. Screens of profiles have none.
    """
    cells = list(cells)
    chosen: dict[tuple[str, Roles], RunSource] = {}
    for run in runs:
        chosen.setdefault((str(run.fold["screen_identity"]), run.run.roles), run)
    tables: list[SampleTable] = []
    absent: list[str] = []
    left = 0
    for run in chosen.values():
        try:
            screen = screen_of_run(run)
            if screen.holds_profiles:
                continue
            if len(tables) == MOST_SCREENS:
                left += 1
                continue
            tables.append(sample_table(screen, run.run.roles, _held_out(run, cells), seed))
        except UserError as error:
            absent.append(str(error))
    if not tables and not absent:
        return Markup("")
    return samples_html(tables, absent, left)


def _held_out(run: RunSource, cells: list[Cells]) -> set[str]:
    """Environments with rows held out in any fold of the page."""
    found: set[str] = set()
    for one in cells:
        roles = one.about["roles"]
        if tuple(roles["environment"]) == run.run.roles.environment and one.level != "iid":
            found |= set(one.environment[one.held_out].dropna())
    return found
