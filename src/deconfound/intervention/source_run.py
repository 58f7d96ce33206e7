"""The run that imputes a new run's training images: opened, and refused where it does not fit."""

from pathlib import Path
from typing import Any

from deconfound import methods
from deconfound.config import DataOptions
from deconfound.data.folds.problem import Problem
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import listed
from deconfound.errors import UserError
from deconfound.intervention.intervention import DESCRIPTION
from deconfound.intervention.styles import of_sets, refuse_absolute, style_reference
from deconfound.methods.contract import Imputer
from deconfound.runs.config import RunConfig
from deconfound.runs.run import Run, open_run, read_json


def imputing_methods() -> list[str]:
    """Names of the methods that can impute."""
    return [name for name in methods.names() if issubclass(methods.load(name), Imputer)]


def refuse_unable(method: str, name: str, where: str) -> None:
    """Raise UserError, in which `where` says who asks for `name`, if `method` cannot impute."""
    able = imputing_methods()
    if method not in able:
        said = listed(able) or "a method that imputes"
        raise UserError(f"{where}: {name} cannot impute images; fit one of {said}")


def imputing_run(config: RunConfig, out: Path) -> Run | None:
    """The run given by --intervene; None without one, or where `out` has its own copy of it.

    Raises UserError if it is not a finished run.
    """
    path = config.intervention.intervene
    return None if path is None or (out / DESCRIPTION).is_file() else open_run(path)


def with_imputer(
    config: RunConfig, out: Path, run: Run | None, screen: Screen, problem: Problem
) -> RunConfig:
    """`config` with the method of the imputing `run`, or of the copy in `out`, if there is one.

    Where its styles are of sets, `relative_style` is filled in.
    """
    intervention = config.intervention
    if intervention.intervene is None:
        return config.model_copy(update={"imputer": None})
    if run is None:
        about = read_json(out / DESCRIPTION)
        name, over = about["method"], about.get("relative_style")
    else:
        name, train = run.config.method, problem.fold.rows("train")
        data, names = config.data, problem.environment.names
        over = of_sets(run, screen, problem.roles, data.controls, names, train)
    if intervention.relative_style is None and over is not None:
        intervention = intervention.model_copy(update={"relative_style": over})
    return config.model_copy(update={"imputer": name, "intervention": intervention})


def refuse_unfit(run: Run, config: RunConfig, screen: Screen, problem: Problem) -> None:
    """Raise UserError if the imputing `run` cannot serve the run that `config` describes.

    Its method must impute, relative to means if so asked; it must be trained on this screen, with
    the same rows held out and the same scaling, and have seen no test image and no imputed one.
    """
    path, name = config.intervention.intervene, run.config.title
    if config.options.context is not None:
        raise UserError(
            f"--intervene {path}: imputed images are of no environment of their own, and "
            f"{config.method} takes its batch statistics of one; leave it out, or fit erm"
        )
    for data in (config.data, run.config.data):
        refuse_standardised(data, f"--intervene {path}")
    refuse_unable(run.config.method, name, f"--intervene {path}")
    over = config.intervention.relative_style
    if over is not None:
        refuse_absolute(run.config.method, f"--intervene {path}")
        names, train = problem.environment.names, problem.fold.rows("train")
        style_reference(screen, problem.roles, over, config.data.controls, names, train)
    if run.config.options.sees_held_out:
        raise UserError(
            f"--intervene {path}: {name} saw images of test rows; give a run that did not"
        )
    if run.config.imputer is not None:
        raise UserError(
            f"--intervene {path}: {name} was itself trained with --intervene; give a run of "
            f"{run.config.method} that was not"
        )
    if not run.trained_on(screen):
        raise UserError(
            f"--intervene {path}: was trained on another screen than {screen.path}; fit "
            f"{name} on this one"
        )
    _refuse_other_data(run, config.data, problem)


def refuse_standardised(data: DataOptions, where: str) -> None:
    """Raise UserError, which begins with `where`, if groups of images are made alike."""
    if data.standardise_by is not None:
        raise UserError(
            f"{where}: images are imputed as they were taken, and --standardise-by "
            f"{data.standardise_by} makes them alike; leave one of both out, for both runs"
        )


def _refuse_other_data(run: Run, data: DataOptions, problem: Problem) -> None:
    theirs, own = (
        options.model_dump(exclude={"controls"})
        | {name: getattr(of.roles, name) for name in ("label", "environment", "levels")}
        | {"transform": of.transform, "percentile_by": of.percentile_by}
        for options, of in ((run.config.data, run), (data, problem))
    )
    for name, value in theirs.items():
        if value != own[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"--intervene {run.path}: its {flag} is {_said(value)}, here {_said(own[name])}; "
                "both must hold out and scale the same, give the same options"
            )


def _said(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
