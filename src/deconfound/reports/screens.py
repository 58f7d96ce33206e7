"""The screens that the runs and embeddings of a report were made of."""

from collections.abc import Sequence
from typing import Any

from deconfound.data.screens.screen import Screen, holds_screen, open_screen
from deconfound.errors import UserError
from deconfound.reports.sources import RunSource


def screen_of_run(run: RunSource) -> Screen:
    """The screen that a run was trained on; raises UserError if it is gone or changed."""
    path = run.run.screen_path
    if not holds_screen(path):
        raise UserError(f"the screen is no longer at {path}")
    screen = open_screen(path)
    if not run.run.trained_on(screen):
        raise UserError(f"the screen at {path} has changed since")
    return screen


def screen_of(about: dict[str, Any], rows: int, runs: Sequence[RunSource]) -> Screen:
    """The screen whose `rows` images are embedded in a file described by `about`.

    Raises UserError as `screen_of_run`, if it holds profiles, and if the run is not among `runs` or
    was trained on another screen.
    """
    name = about.get("run")
    config = {key: value for key, value in about["config"].items() if key != "post_hoc"}
    run = next((one for one in runs if (one.path.name, one.config) == (name, config)), None)
    if run is None:
        raise UserError(f"its run ({name}) is not among the paths reported on")
    screen = screen_of_run(run)
    if len(screen) != rows:
        raise UserError(f"{about.get('screen')} is not the screen of the run")
    if screen.holds_profiles:
        raise UserError("the screen holds profiles, which have no pictures")
    return screen
