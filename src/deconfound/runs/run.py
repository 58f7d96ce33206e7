"""A run directory: one method, one fold, one seed, and everything needed to use it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconfound import methods
from deconfound.arrays import Rows
from deconfound.config import TransformName
from deconfound.data.folds.controls import marked_controls
from deconfound.data.folds.fold import fold_key
from deconfound.data.folds.problem import WITHOUT_CONTROLS, Problem, pose
from deconfound.data.loading.intensity import Intensity, learn_unseen
from deconfound.data.screens.screen import Screen
from deconfound.data.tables.table import Roles, joined_key, listed
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import CHECKSUMS, differs, read_checksums, sha256
from deconfound.methods.contract import Method, Task
from deconfound.runs.checkpoint import load_weights
from deconfound.runs.config import RunConfig, dump_config, read_config
from deconfound.runtime.seeds import derived_seed

FORMAT_VERSION = 1
"""Version of a run directory, as `classes.json` holds it."""
PRETRAINED = "pretrained.json"
"""File of a run whose encoder began with weights of others: which file, and what was taken."""


def build_method(
    config: RunConfig,
    screen: Screen,
    labels: int,
    environments: int,
    controls: tuple[int, ...] = (),
) -> Method:
    """The method of a run with its initial weights.

    `controls` are needed for training, not for loading weights. Raises UserError for images that
    are not square, and for augmentation of profiles.
    """
    channels, *sides = screen.image_shape
    if screen.holds_profiles and config.training.augment != "none":
        raise UserError(
            f"{screen.path}: holds profiles, and --augment {config.training.augment} is of images; "
            "leave --augment out"
        )
    if not screen.holds_profiles and (len(sides) != 2 or sides[0] != sides[1]):
        raise UserError(
            f"{screen.path}: images of {' × '.join(map(str, sides))} px; expected square ones, "
            "ingest with --size"
        )
    torch.manual_seed(derived_seed(config.seed, "initial weights"))
    unit = config.data.scaling == "unit"
    task = Task(channels, sides[0] if sides else None, labels, environments, controls, unit)
    return methods.load(config.method)(config.method_options, task)


@dataclass(frozen=True)
class Run:
    """A finished run, opened."""

    path: Path
    config: RunConfig
    labels: tuple[str, ...]
    environments: tuple[str, ...]
    roles: Roles
    channels: tuple[str, ...]
    dtype: str | None
    """Stored type of the values trained on, such as "uint8"; None in runs of older releases."""
    transform: TransformName
    percentile_by: tuple[str, ...]
    groups: tuple[str, ...]
    """The groups of `percentile_by`, or of `standardise_by`, in training rows."""
    standardise_by: tuple[str, ...] = ()

    @property
    def fold(self) -> str:
        """Name of the run's fold."""
        return fold_key(self.config.data.fold, self.roles)

    @property
    def screen_path(self) -> Path:
        """Where the screen that the run was trained on was at the time."""
        return Path(str(read_json(self.path / "fold.json")["screen"]))

    def trained_on(self, screen: Screen) -> bool:
        """Whether the run was trained on this very screen, wherever it is now."""
        return bool(read_json(self.path / "fold.json")["screen_identity"] == screen.identity)

    def parts(self, screen: Screen) -> npt.NDArray[np.str_]:
        """(N,) the fold's part of each row; "new" in a screen that the run was not trained on."""
        if self.trained_on(screen):
            problem = pose(screen, self.config.data)
            refuse_other_fold(self.path, problem)
            return problem.fold.part
        return np.full(len(screen), "new", dtype="U3")

    def provenance(self) -> dict[str, Any]:
        """Versions, commit, device and times."""
        return read_json(self.path / "provenance.json")

    def load(self, screen: Screen, selection: str | None = None) -> tuple[Method, Intensity]:
        """The method and intensity, on the CPU in evaluation mode.

        `selection` "loss", "accuracy" or "last" takes that checkpoint of the last stage that learns
        to classify instead of the one the run selected. Raises UserError if the channels differ
        from those of training, or the stored type of the pixels, on which their scaling depends.
        """
        if screen.channels != self.channels:
            raise UserError(
                f"{screen.path}: channels {listed(screen.channels)}; the run {self.path} was "
                f"trained on {listed(self.channels)}"
            )
        if self.dtype not in (None, screen.dtype.name) and not (
            screen.holds_profiles or self.transform == "percentile"
        ):
            raise UserError(
                f"{screen.path}: pixels are {screen.dtype.name}; the run {self.path} was trained "
                f"on {self.dtype} and scales those, ingest the images as {self.dtype}"
            )
        method = build_method(self.config, screen, len(self.labels), len(self.environments))
        kind = self.config.data.standardise if self.standardise_by else None
        intensity = Intensity(len(self.channels), self.transform, len(self.groups), kind)
        name = "model"
        if selection is not None:
            stages = method.stages(self.config.training.steps)
            *_, stage = (stage.name for stage in stages if stage.classifies)
            name = f"{stage}-{selection}"
        file = self.path / f"{name}.safetensors"
        refuse_changed(file)
        load_weights(file, method, intensity)
        return method.eval(), intensity


def group_codes(run: Run, screen: Screen) -> Rows | None:
    """The group of every row of a screen, (N,), for the `Intensity` of `run`; None without groups.

    Raises UserError if the screen lacks a column of the groups.
    """
    columns = run.percentile_by or run.standardise_by
    return screen.coded(columns, run.groups).codes if columns else None


def learn_groups(run: Run, screen: Screen, intensity: Intensity) -> Rows | None:
    """As `group_codes`; first `intensity`, on the CPU, learns the groups that training never saw.

    Where the run standardises, such a group takes the statistics of its own rows, or controls,
    whatever their part; so does every group of a screen that the run was not trained on. Raises
    UserError also where controls are needed and not known.
    """
    known = group_codes(run, screen)
    if known is None or not run.standardise_by:
        return known
    if not run.trained_on(screen):
        known = np.full_like(known, -1)
    every = screen.coded(run.standardise_by)
    counted = np.ones(len(screen), dtype=bool)
    data = run.config.data
    if data.standardise_with == "controls" and ((known < 0) & (every.codes >= 0)).any():
        where = str(screen.path)
        counted = marked_controls(
            screen.table, run.roles.label, data.controls, where, WITHOUT_CONTROLS
        )
    rows = np.flatnonzero(counted)
    return learn_unseen(intensity, screen, every, known, rows, run.config.seed)


def open_run(path: Path) -> Run:
    """Open a finished run; raises UserError if `path` is not a run or the run is not finished."""
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: not a run (no config.yaml); make one with `deconfound fit`")
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{path}: the run is not finished; `deconfound fit` it again to resume")
    classes = read_json(path / "classes.json")
    config = read_config(path / "config.yaml")
    read_json(path / "fold.json")
    for name in ("config.yaml", "classes.json", "fold.json"):
        refuse_changed(path / name)
    try:
        names = ("labels", "environments", "channels", "percentile_by", "groups")
        lists = {name: tuple(classes[name]) for name in names}
        lists["standardise_by"] = tuple(classes.get("standardise_by", ()))
        roles = Roles.model_validate(classes["roles"])
        for name, columns in (
            ("labels", (str(roles.label),)),
            ("environments", roles.environment),
            ("groups", lists["percentile_by"] or lists["standardise_by"]),
        ):
            lists[name] = tuple(joined_key(str(one), columns) for one in lists[name])
        transform, dtype = classes["transform"], classes.get("dtype")
        return Run(path, config, roles=roles, dtype=dtype, transform=transform, **lists)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / 'classes.json'}: damaged; fit the run again") from error


def refuse_changed(file: Path) -> None:
    """Raise UserError if a file of a finished run has changed since the run ended."""
    recorded = read_checksums(file.parent) if (file.parent / CHECKSUMS).is_file() else {}
    if file.name in recorded and differs(file, recorded[file.name]):
        raise UserError(f"{file}: changed since the run ended; restore a copy, or fit again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file of a run; raises UserError if it is missing, damaged or of a newer format."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: missing or damaged; restore a copy, or remove {file.parent} and fit again"
        ) from error
    version = found.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file}: format version {version!r}; this release reads version {FORMAT_VERSION}, "
            "take a newer one"
        )
    return found


def refuse_other_fold(path: Path, problem: Problem) -> None:
    """Raise UserError if the run in `path` was trained on other rows than `problem` draws now."""
    recorded = read_json(path / "fold.json")
    counts, digest = problem.fold.counts(), problem.fold.digest()
    same = recorded.get("parts_sha256", digest) == digest
    if not same or counts != counts | recorded.get("counts", {}):
        raise UserError(
            f"{path}: fold {problem.fold.name} was drawn by another release, and this one would "
            "put other rows into its parts; fit the run again"
        )


def refuse_other_weights(path: Path) -> None:
    """Raise UserError if a file that the run in `path` began with has other weights by now.

    A file that is no longer there is not needed.
    """
    if not (path / PRETRAINED).is_file():
        return
    for taken in read_json(path / PRETRAINED).get("encoders", []):
        file = Path(str(taken["file"]))
        if file.is_file() and sha256(file) != taken["sha256"]:
            raise UserError(
                f"{path}: began with other weights than {file} holds now; choose another --out"
            )


def write_description(
    path: Path,
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    pretrained: list[dict[str, Any]],
) -> None:
    """Write config.yaml, classes.json and fold.json of a run that begins.

    `pretrained` is what was taken from files of weights, written too unless it is empty, as for a
    run that is resumed.
    """
    path.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path / "config.yaml", dump_config(config))
    classes = {
        "format_version": FORMAT_VERSION,
        "labels": problem.label.names,
        "environments": problem.environment.names,
        "roles": problem.roles.model_dump(),
        "channels": screen.channels,
        "dtype": screen.dtype.name,
        "transform": problem.transform,
        "percentile_by": problem.percentile_by,
        "groups": () if problem.group is None else problem.group.names,
    }
    if problem.standardise_by:
        classes["standardise_by"] = problem.standardise_by
    atomic.write_text(path / "classes.json", json.dumps(classes, indent=2))
    fold = {
        "name": problem.fold.name,
        "counts": problem.fold.counts(),
        "parts_sha256": problem.fold.digest(),
        "screen": str(screen.place),
        "screen_identity": screen.identity,
        "screen_provenance": screen.provenance,
        "config_sha256": sha256(path / "config.yaml"),
    }
    atomic.write_text(path / "fold.json", json.dumps(fold, indent=2))
    if pretrained:
        about = {"format_version": FORMAT_VERSION, "encoders": pretrained}
        atomic.write_text(path / PRETRAINED, json.dumps(about, indent=2))
