"""One run of an experiment: trained, scored, embedded and corrected, in a process that stays."""

import json
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconfound.arrays import Mask, Rows
from deconfound.config import DataOptions, validated
from deconfound.data.folds.nearby import seen_nearby
from deconfound.data.folds.problem import Problem, pose
from deconfound.data.screens.screen import Screen, open_screen
from deconfound.errors import UserError
from deconfound.evaluation.scores import classification
from deconfound.experiments.running.chain import do_tasks, tasks_of
from deconfound.experiments.running.followed import followed
from deconfound.experiments.running.messages import (
    Order,
    Outcome,
    predictions_file,
    result_file,
    run_directory,
    stored_result,
)
from deconfound.files import atomic, seal
from deconfound.intervention.embedder import Embedder
from deconfound.methods.contract import Imputer
from deconfound.metrics.accuracy import seen_in_training
from deconfound.runs.config import RunConfig, config_model
from deconfound.runs.run import Run, open_run, read_json
from deconfound.runtime import limits
from deconfound.runtime.device import start_fabric
from deconfound.training.fit import train
from deconfound.training.validation import Predictions

BATCH = 512
KEPT = 8
"""Problems at most that a process keeps; one holds a few arrays of the screen's length."""
SCORED = ("val", "ood_val", "id_test", "test")


class Runner:
    """Does runs one after the other; each screen and each problem is opened once."""

    def __init__(self, worker: int = 0) -> None:
        self._worker = worker
        self._screens: dict[str, Screen] = {}
        self._problems: dict[tuple[str, DataOptions], Problem] = {}

    def run(self, order: Order) -> Outcome:
        """Train or resume, predict, score, and do the run's chains.

        A mistake or a fault becomes the outcome's reason; the traceback of a fault is written to
        `failures/NAME.txt`.
        """
        started = time.time()
        reason, spent = "", (0.0, 0.0)
        try:
            spent = self._run(order)
        except UserError as error:
            reason = limits.refused(error) or _line(error)
        except Exception as error:  # one run's fault must not end the others
            reason = limits.refused(error) or self._fault(order, error)
        return Outcome(order.name, self._worker, started, time.time(), *spent, reason)

    def _fault(self, order: Order, error: Exception) -> str:
        """The reason of an outcome; the traceback is written where the disk takes it."""
        file = Path(order.out) / "failures" / f"{order.name}.txt"
        reason = f"{type(error).__name__}: {_line(error)}"
        try:
            atomic.write_text(file, traceback.format_exc())
        except UserError:
            return reason
        return f"{reason}; see {file}"

    def _run(self, order: Order) -> tuple[float, float]:
        """Seconds of training and of evaluation."""
        out = Path(order.out)
        config = validated(config_model(order.method), json.loads(order.config), order.name)
        training, scoring = 0.0, 0.0
        if stored_result(out, order.name) is None:
            training, scoring = self._train(order, config, out)
        started = time.perf_counter()
        options = config.training
        do_tasks(
            tasks_of(order.chains),
            out,
            order.name,
            Path(order.screen),
            device=options.device,
            threads=options.threads,
        )
        return training, scoring + time.perf_counter() - started

    def _train(self, order: Order, config: RunConfig, out: Path) -> tuple[float, float]:
        """Train and score; seconds of both."""
        screen = self._screen(order)
        problem = self._problem(order.screen, screen, config.data)
        path = run_directory(out, order.name)
        with followed(order.tracker, config, order.name) as tracker:
            trained = train(config, screen, problem, path, quiet=True, tracker=tracker)
        started = time.perf_counter()
        run = open_run(path)
        rows, predicted = _predict(run, screen, problem, trained.predicted)
        truth = problem.all_labels.codes[rows]
        seen = seen_in_training(truth, _codes_of(run.labels, problem))
        part = problem.fold.part[rows]
        near = seen_nearby(screen.table, problem.roles, config.data.fold, problem.fold.part)
        near = None if near is None else near[rows]
        file = predictions_file(out, order.name)
        with atomic.atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, row=rows, correct=predicted == truth, part=part, seen=seen)
        result = {
            "name": order.name,
            "screen": order.screen,
            "config": config.model_dump(mode="json"),
            "scores": _scores(truth, predicted, seen, part, near),
            "validation_loss": _validation_loss(run),
        }
        seal.write_json(result_file(out, order.name), result)
        return trained.seconds, time.perf_counter() - started

    def _problem(self, path: str, screen: Screen, data: DataOptions) -> Problem:
        key = (path, data)
        if key not in self._problems:
            if len(self._problems) == KEPT:
                self._problems.clear()
            self._problems[key] = pose(screen, data)
        return self._problems[key]

    def _screen(self, order: Order) -> Screen:
        if order.screen not in self._screens:
            self._screens[order.screen] = open_screen(Path(order.screen))
        screen = self._screens[order.screen]
        if screen.identity != order.identity:
            raise UserError(
                f"{order.screen}: changed since the sweep began; start the command again"
            )
        return screen


def _predict(
    run: Run, screen: Screen, problem: Problem, known: Predictions | None
) -> tuple[Rows, Rows]:
    """Rows of the scored parts, ascending, and the predicted code of each in `all_labels`.

    Those that are `known` from validation are not predicted again.
    """
    training = run.config.training
    fabric = start_fabric(training.device, "32", training.threads)
    embedder = Embedder.of_run(run, screen, fabric)
    rows = np.flatnonzero(np.isin(problem.fold.part, SCORED)).astype(np.int64)
    label = np.full(len(screen), -1, dtype=np.int64)
    if known is not None:
        label[known.row] = known.label
    unknown = rows[label[rows] < 0]
    predicted = embedder.labels(unknown, BATCH)
    if predicted is None and isinstance(embedder.method, Imputer):
        return rows[:0], rows[:0]  # what it imputes is scored elsewhere
    if predicted is None:
        raise UserError(f"{run.config.method}: predicts no label, and a comparison scores labels")
    label[unknown] = predicted
    return rows, _codes_of(run.labels, problem)[label[rows]]


def _codes_of(labels: tuple[str, ...], problem: Problem) -> Rows:
    """The code in `all_labels` of each of the run's labels."""
    code = {name: number for number, name in enumerate(problem.all_labels.names)}
    return np.array([code[name] for name in labels], dtype=np.int64)


def _scores(
    truth: Rows, predicted: Rows, seen: Mask, part: npt.NDArray[np.str_], nearby: Mask | None
) -> list[dict[str, Any]]:
    found = []
    for name in SCORED:
        inside = part == name
        if not inside.any():
            continue
        near = nearby[inside] if nearby is not None and name == "test" else None
        for row in classification(truth[inside], predicted[inside], seen[inside], name, near):
            score = {"value": float(row.score.value), "n": int(row.score.n), "note": row.score.note}
            found.append({"metric": row.metric, "part": row.part, **score})
    return found


def _validation_loss(run: Run) -> float | None:
    """The validation loss of the checkpoint in use, of the stage that learns to classify."""
    selection = read_json(run.path / "selection.json")
    for stage, used in selection["used"].items():
        best = selection["best"][stage].get(used)
        if best is not None and "accuracy" in best:
            loss: float = best["loss"]
            return loss
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
