"""An option that is `auto`: chosen by trials on training data, before the run itself is trained.

Trials are runs in `.trials` of the run directory, removed when the choice is made. Each leaves out
a group of training rows (`--without`), of the level that the fold holds out if it holds one out,
and is scored on it: leave-one-domain-out cross-validation (Gulrajani & Lopez-Paz 2021). Where too
little would be left, as with two environments, one trial of each value is scored on val rows.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from deconfound.arrays import Codes, Doubles, Floats, Rows
from deconfound.data.folds.fold import Part
from deconfound.data.folds.groups import groups
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.intervention.embedder import Embedder, in_batches
from deconfound.losses.groups import group_sums, products
from deconfound.losses.within_label import invariance_given_label
from deconfound.methods.contract import Dial
from deconfound.metrics.accuracy import accuracy, macro_f1, seen_in_training
from deconfound.runs.config import RunConfig
from deconfound.runs.dial import DialRecord, Point, Rule, Trial, read_dial, write_dial
from deconfound.runs.run import open_run, read_json
from deconfound.runtime.device import processes, start_fabric
from deconfound.runtime.seeds import numpy_stream

MOST_LEFT_OUT = 5
"""Groups left out in turn; of more they are drawn."""
GIVEN_UP = 0.1
"""Share of the best accuracy in distribution that a value may cost where nothing is left out."""
SHUFFLINGS = 19
FOLDER = ".trials"
BATCH = 512

Train = Callable[[RunConfig, Problem, Path], object]
"""Trains a configuration on a problem of the same screen into a directory."""


def refuse_dial(config: RunConfig) -> None:
    """Raise UserError where an option is `auto` and trials cannot be made."""
    dial = config.options.dial
    if dial is None:
        return
    auto = f"{config.method}: --{dial.option} auto"
    if not dial.values:
        raise UserError(f"{auto}: no values to try are known with these options; give a number")
    if processes().world > 1:
        raise UserError(f"{auto} makes its trials in one process; start it without a launcher")
    if config.data.without is not None:
        raise UserError(f"{auto} leaves environments out by itself; leave --without out")
    if config.intervention.intervene is not None:
        raise UserError(
            f"{auto} leaves environments out, which the run of --intervene has seen; give a number"
        )
    if config.options.sees_held_out:
        raise UserError(f"{auto} is chosen without a look at held-out images; give a number")


def choose(
    config: RunConfig, screen: Screen, problem: Problem, out: Path, train: Train
) -> DialRecord:
    """What the run in `out` found for its option that is `auto`; trials are made where it did not.

    They resume. Raises UserError if `out` holds a choice for another screen or other rows.
    """
    dial = config.options.dial
    assert dial is not None
    record = read_dial(out)
    if record is None:
        record = _choice(config, dial, screen, problem, out / FOLDER, train)
        write_dial(out, record)
    elif (record.screen_identity, record.parts_sha256) != _identity(screen, problem):
        raise UserError(f"{out}: was begun on another screen or fold; choose another --out")
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    return record


def _choice(
    config: RunConfig, dial: Dial, screen: Screen, problem: Problem, folder: Path, train: Train
) -> DialRecord:
    left_out = _left_out(config, screen, problem)
    rule: Rule = "left out" if left_out else "in distribution"
    asked = left_out or {None: problem}
    trials = [
        _trial(config, dial.option, value, without, screen, posed, folder, train)
        for without, posed in asked.items()
        for value in dial.values
    ]
    points = [_point(value, rule, trials) for value in dial.values]
    best = (
        _best_left_out(dial.values, trials) if left_out else _best_in_distribution(points, trials)
    )
    identity, parts = _identity(screen, problem)
    return DialRecord(
        option=dial.option, chosen=dial.values[best], rule=rule, screen_identity=identity,
        parts_sha256=parts, curve=tuple(points), trials=tuple(trials),
    )  # fmt: skip


def _identity(screen: Screen, problem: Problem) -> tuple[str, str]:
    return screen.identity, problem.fold.digest()


def _left_out(config: RunConfig, screen: Screen, problem: Problem) -> dict[str | None, Problem]:
    """What trials leave out, with the problem that remains; empty where fewer than two can be.

    Groups of the level that the fold holds out, or else environments.
    """
    column, named, _ = problem.fold.name.partition("=")
    names: list[str] = []
    if named:
        names = [group.fold for group in groups(screen.table, problem.roles, column)]
    for candidates in (names, list(problem.environment.names)):
        order = numpy_stream(config.seed, "groups left out").permutation(len(candidates))
        found: dict[str | None, Problem] = {}
        for name in (candidates[place] for place in order):
            if len(found) < MOST_LEFT_OUT and (posed := _without(config, screen, name)):
                found[name] = posed
        if len(found) > 1:
            return found
    return {}


def _without(config: RunConfig, screen: Screen, name: str) -> Problem | None:
    """The problem without a group; None where it leaves too little to train on or to score."""
    try:
        posed = pose(screen, config.data.model_copy(update={"without": name}))
    except UserError:
        return None
    rows = posed.fold.rows("ood_val")
    scored = bool((posed.label.codes[rows] >= 0).any())
    large = len(posed.fold.rows("train")) >= config.training.batch_size
    return posed if len(posed.environment.names) > 1 and scored and large else None


def _trial(
    config: RunConfig,
    option: str,
    value: float,
    without: str | None,
    screen: Screen,
    problem: Problem,
    folder: Path,
    train: Train,
) -> Trial:
    """Train and score one trial, or read what it scored."""
    data = config.data.model_copy(update={"without": without})
    options = config.options.of_trials.model_copy(update={option: value})
    place = "in distribution" if without is None else f"without {without.replace('/', ' ')}"
    path = folder / f"{option} {value:g} {place}"
    file = path / "trial.json"
    if file.is_file():
        return Trial.model_validate(read_json(file))
    train(config.model_copy(update={"data": data, "options": options}), problem, path)
    part: Part = "val" if without is None else "ood_val"
    rows = problem.fold.rows(part)
    predicted, content = _embedded(path, screen, rows)
    truth = problem.label.codes[rows]
    seen = seen_in_training(truth, np.arange(len(problem.label.names)))
    told = None
    if without is None:
        told = _between_environments(content, truth, problem.environment.codes[rows])
    share, chance = told or (None, None)
    trial = Trial(
        value=value,
        without=without,
        accuracy=float(accuracy(truth, predicted, seen).value),
        macro_f1=float(macro_f1(truth, predicted, seen).value),
        environment=share,
        chance=chance,
        rows=int(seen.sum()),
        seconds=float(read_json(path / "provenance.json")["training_seconds"]),
    )
    atomic.write_text(file, json.dumps(trial.model_dump(mode="json")))
    return trial


def _embedded(path: Path, screen: Screen, rows: Rows) -> tuple[Codes, Floats]:
    """The labels that a finished trial predicts for rows, and their content, or representation."""
    run = open_run(path)
    training = run.config.training
    fabric = start_fabric(training.device, "32", training.threads)
    embedder = Embedder.of_run(run, screen, fabric)
    labels, blocks = [], []
    for one in embedder.stream(in_batches(rows, BATCH)):
        if one.predicted is None:
            raise UserError(f"{run.config.method}: predicts no label, by which trials are scored")
        labels.append(one.predicted.cpu().numpy())
        named = one.representations
        blocks.append(named.get("content", named["representation"]).cpu().numpy())
    return np.concatenate(labels), np.concatenate(blocks)


def _between_environments(
    content: Floats, label: Rows, environment: Rows
) -> tuple[float, float] | None:
    """Share of the spread of content within a label that lies between environments, and by chance.

    Half the mean squared distance of a label's environments (`invariance_given_label`) over that
    of its rows, which is about 0 where content does not tell the environment beyond the label. By
    chance: the most of 19 shufflings of the environments within labels. None without such a label.
    """
    known = np.flatnonzero((label >= 0) & (environment >= 0))
    z = normalize(torch.from_numpy(content[known]).double(), dim=1)
    group = torch.from_numpy(label[known])
    sums, size = group_sums(z, group)
    pairs = int((size - 1).sum())
    spread = 1 - float(products(z, sums).sum()) / pairs if pairs else 0.0
    if spread <= 0:
        return None
    by_label, stream = np.argsort(label[known], kind="stable"), numpy_stream(0, "within labels")
    found = []
    for shuffling in range(SHUFFLINGS + 1):
        code = environment[known]
        if shuffling:
            code[by_label] = code[np.lexsort((stream.random(len(code)), label[known]))]
        gap = invariance_given_label(z, group, torch.from_numpy(code), temperature=1.0)
        found.append(float(gap) / spread)
    return found[0], max(found[1:])


def _point(value: float, rule: Rule, trials: Sequence[Trial]) -> Point:
    own = [trial for trial in trials if trial.value == value]
    seconds = sum(trial.seconds for trial in own)
    if rule == "left out":
        scores = np.array([trial.macro_f1 for trial in own])
        mean, sd = float(scores.mean()), float(scores.std(ddof=1))
        return Point(value=value, score=mean, sd=sd, environment=None, seconds=seconds)
    (trial,) = own
    error = _standard_error(trial.accuracy, trial.rows)
    return Point(
        value=value, score=trial.accuracy, sd=error, environment=trial.environment, seconds=seconds
    )


def _best_left_out(values: Sequence[float], trials: Sequence[Trial]) -> int:
    """The first value whose scores are within one standard error of the best value's.

    The error is of the mean difference in pairs, of what both leave out.
    """
    scores: Doubles = np.array(
        [[trial.macro_f1 for trial in trials if trial.value == value] for value in values]
    )
    behind = scores[int(scores.mean(axis=1).argmax())] - scores
    error = behind.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    return int(np.flatnonzero(behind.mean(axis=1) <= error)[0])


def _best_in_distribution(points: Sequence[Point], trials: Sequence[Trial]) -> int:
    """The first value whose content tells the environment hardly more than that of any other.

    Among those whose accuracy is at most `GIVEN_UP` of the best below it; "hardly" is by what
    chance gives. The first of them where its environments are told by no more than chance.
    """
    enough = (1 - GIVEN_UP) * max(point.score for point in points)
    kept = [place for place, one in enumerate(points) if one.score >= enough]
    told = {
        place: (one.environment, one.chance)
        for place, one in enumerate(trials)
        if place in kept and one.environment is not None and one.chance is not None
    }
    if not told or told[min(told)][0] <= told[min(told)][1]:
        return kept[0]
    least, chance = min(told.values())
    return next(place for place, (share, _) in told.items() if share <= least + chance)


def _standard_error(share: float, rows: int) -> float:
    return float(np.sqrt(share * (1 - share) / max(1, rows)))
