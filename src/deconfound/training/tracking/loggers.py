"""Trackers as loggers of Lightning Fabric: TensorBoard, Weights & Biases and MLflow."""

import os
import sqlite3
import time
import uuid
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import imageio.v3 as imageio
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from deconfound.errors import UserError
from deconfound.runtime.reachable import answers
from deconfound.training.tracking.wandb_log import logged

PROJECT = "deconfound"
"""Project of Weights & Biases, and experiment of MLflow, that runs are put into."""
BATCH = 100
"""Hyperparameters that MLflow takes at a time."""


class PictureLogger(Logger):
    """A logger that takes pictures too."""

    reached: int | None = None
    """The last step that the tracker's run has, where the tracker itself can tell."""

    @abstractmethod
    def log_picture(self, name: str, file: Path, step: int) -> None:
        """Show the PNG `file` under `name`."""


class TensorBoard(TensorBoardLogger, PictureLogger):
    """Event files in one directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, name="", version="", default_hp_metric=True)

    def log_picture(self, name: str, file: Path, step: int) -> None:
        """See the base."""
        pixels = imageio.imread(file, extension=".png")
        self.experiment.add_image(name, pixels[..., :3], step, dataformats="HWC")


class WandB(PictureLogger):
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise."""

    def __init__(self, project: str, directory: Path, name: str, run: str | None) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        self._wandb = wandb
        if run is not None and mode == "offline":
            self.reached = max((step for step, _ in logged(directory, run)), default=0)
        self.experiment = wandb.init(
            project=project,
            dir=directory,
            name=name,
            id=run or uuid.uuid4().hex[:12],
            mode=mode,
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )
        if self.experiment.resumed:
            self.reached = self.experiment.starting_step - 1

    @property
    def name(self) -> str:
        """The project."""
        return str(self.experiment.project)

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self.experiment.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See the base."""
        self.experiment.log(dict(metrics), step=step, commit=True)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """See the base."""
        self.experiment.config.update(params, allow_val_change=True)

    def log_picture(self, name: str, file: Path, step: int) -> None:
        """See the base; the step itself is closed."""
        self.experiment.log({name: self._wandb.Image(str(file))}, step=step + 1, commit=True)

    def finalize(self, status: str) -> None:
        """See the base."""
        self.experiment.finish(exit_code=int(status != "success"))


class MLflow(PictureLogger):
    """A run in an MLflow store."""

    def __init__(self, store: str, artifacts: Path | None, name: str, run: str | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=store)
        experiment = _experiment(self._client, artifacts)
        if run is None:
            run = self._client.create_run(experiment, run_name=name).info.run_id
        self._client.update_run(run, status="RUNNING")
        self._run = str(run)

    @property
    def name(self) -> str:
        """The experiment."""
        return PROJECT

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See the base."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        every = [Metric(name, value, now, step or 0) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=every)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """See the base."""
        from mlflow.entities import Param

        every = [Param(name, str(value)[:500]) for name, value in dict(params).items()]
        for start in range(0, len(every), BATCH):
            self._client.log_batch(self._run, params=every[start : start + BATCH])

    def log_picture(self, name: str, file: Path, step: int) -> None:
        """See the base."""
        self._client.log_artifact(self._run, str(file), f"{name}/{step}")

    def finalize(self, status: str) -> None:
        """See the base."""
        said = "FINISHED" if status == "success" else "FAILED"
        self._client.set_terminated(self._run, status=said)


def open_logger(
    kind: str, place: str | None, out: Path, run: str | None, title: str
) -> PictureLogger:
    """The tracker of the run directory `out`, which goes on with the tracker's run if it is named.

    `place` is a directory of TensorBoard's, a project of Weights & Biases, or a store of MLflow's;
    `title` is the name of the run there. Raises UserError if a package is missing or the place
    cannot be opened.
    """
    with _explained(kind, place) as where:
        if kind == "tensorboard":
            board = TensorBoard(out / kind if place is None else Path(place) / title)
            board.experiment.flush()
            return board
        if kind == "wandb":
            return WandB(place or PROJECT, out, title, run)
        store, artifacts = _store(place, out, where)
        return MLflow(store, artifacts, title, run)


def refuse_missing(kind: str, place: str) -> None:
    """Raise UserError if the package of a tracker is missing."""
    with _explained(kind, place):
        import_module(kind)


def prepare(kind: str, place: str) -> None:
    """Make the place of a tracker, where processes will show many runs at a time.

    Raises UserError if it cannot be opened.
    """
    with _explained(kind, place) as where:
        if kind == "tensorboard":
            Path(place).mkdir(parents=True, exist_ok=True)
        elif kind == "mlflow":
            from mlflow import MlflowClient

            store, artifacts = _store(place, Path(), where)
            _experiment(MlflowClient(tracking_uri=store), artifacts)


@contextmanager
def _explained(kind: str, place: str | None) -> Iterator[str]:
    """The option as it was given; what a library raises becomes a UserError."""
    where = f"--tracker {kind}" + (f":{place}" if place else "")
    try:
        yield where
    except ImportError as error:
        raise UserError(
            f"{where}: {kind} is not installed; pip install 'deconfound[{kind}]'"
        ) from error
    except UserError:
        raise
    except Exception as error:  # each library has its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{where}: cannot be opened ({reason}); expected a place that can be written, or leave "
            "--tracker out: metrics.csv has everything"
        ) from error


def _experiment(client: Any, artifacts: Path | None) -> str:
    """The number of the MLflow experiment that runs are put into, made if it is not there."""
    found = client.get_experiment_by_name(PROJECT)
    if found is not None:
        return str(found.experiment_id)
    location = None if artifacts is None else artifacts.resolve().as_uri()
    return str(client.create_experiment(PROJECT, artifact_location=location))


def _store(place: str | None, out: Path, where: str) -> tuple[str, Path | None]:
    """The address of an MLflow store, and where it keeps pictures if that is not for it to say.

    Raises UserError where nothing answers, or a local file cannot be written.
    """
    if place is not None and (parts := urlsplit(place)).scheme in ("http", "https"):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not answers(parts.hostname or "", port):
            raise UserError(
                f"{where}: nothing answers there; start it with `mlflow server`, or leave "
                "--tracker out"
            )
        return place, None
    if place is not None and "://" in place:
        return place, None
    folder = out / "mlflow" if place is None else Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.resolve() / "mlflow.db"
    store = sqlite3.connect(file)  # MLflow itself would try for minutes
    try:
        store.execute("BEGIN IMMEDIATE")
    finally:
        store.close()
    return f"sqlite:///{file}", folder / "pictures"
