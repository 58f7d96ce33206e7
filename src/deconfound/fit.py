"""fit: train one method on one fold with one seed, resumably; knows no method by name."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from deconfound import atomic, machine
from deconfound.checkpoint import damaged_resume, read_resume, save_weights
from deconfound.checksums import write_checksums
from deconfound.config import TrainingOptions
from deconfound.data.batch import Batch, BatchReader, augmented
from deconfound.data.intensity import Intensity, fit_intensity
from deconfound.data.sampler import (
    EnvironmentBalancedSampler,
    JoinedSampler,
    LabelBalancedSampler,
    PlainSampler,
    Sampler,
)
from deconfound.data.screen import Rows, Screen, open_screen
from deconfound.data.table import listed
from deconfound.errors import UserError
from deconfound.history import History
from deconfound.methods.base import Method, Stage, weighted_sum
from deconfound.nets.batch_norm import synchronise_batch_norm
from deconfound.problem import Problem, pose
from deconfound.progress import Progress
from deconfound.run import (
    Run,
    RunConfig,
    build_method,
    dump_config,
    load_weights,
    open_run,
    read_config,
    read_json,
    software,
    weights,
    write_description,
)
from deconfound.stop import Request, Stopped
from deconfound.streams import derived_seed

LOG_EVERY = 10


def fit(
    config: RunConfig,
    screen: Path,
    out: Path,
    *,
    quiet: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Run:
    """Train `config` on `screen` into the directory `out`, or resume what is there.

    On the CPU a resumed run ends bit-identical to an uninterrupted one. Raises UserError if `out`
    holds another run or something else, if another process is writing it, if the loss stops being
    finite, and for every mistake in the configuration. SIGTERM or Ctrl-C saves the run at the end
    of the step and raises Stopped. `warn` is given a sentence about labels that are never scored.
    """
    out, opened = Path(out), open_screen(screen)
    train(config, opened, pose(opened, config.data), out, quiet=quiet, warn=warn)
    return open_run(out)


def train(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    out: Path,
    *,
    quiet: bool = False,
    warn: Callable[[str], None] | None = None,
) -> float:
    """`fit` on an opened screen, posed as `config` asks: raises what `fit` does.

    Returns the seconds this call spent on steps, on validation and on waiting for batches, 0 if
    the run was finished.
    """
    first = os.environ.get("RANK", "0") == "0"  # of several processes, the one that writes
    if first and _claims(out, config, screen):
        _remove_leftovers(out)
        return 0.0
    _refuse_unfillable_batches(config.training, problem)
    if config.options.sees_held_out and not len(problem.fold.rows("test")):
        raise UserError(
            f"fold {problem.fold.name}: holds nothing out to adapt to; choose another --fold or "
            "leave --domain-adaptation out"
        )
    if first and warn is not None and problem.untrained():
        warn(_of_untrained(problem))
    with atomic.locked(out) if first else contextlib.nullcontext():
        finished = _claims(out, config, screen) if first else (out / "model.safetensors").is_file()
        if finished:
            return 0.0
        options = config.training
        fabric = machine.start(options.device, options.precision, options.threads)
        training = Training(config, screen, problem, out, fabric, quiet)
        if first:
            atomic.sweep(out)
            write_description(out, config, screen, problem)
        training.run()
        return training.seconds - training.resumed_at


class Training:
    """The state of a training run and the loop over it."""

    def __init__(
        self,
        config: RunConfig,
        screen: Screen,
        problem: Problem,
        out: Path,
        fabric: Fabric,
        quiet: bool,
    ) -> None:
        self.config, self.problem, self.out, self.fabric = config, problem, out, fabric
        self.quiet = quiet
        data = config.data
        self.intensity: Intensity = fit_intensity(
            screen,
            problem.fold.rows("train"),
            problem.transform,
            data.scaling,
            config.seed,
            problem.group,
        )
        method = build_method(
            config, screen, len(problem.label.names), len(problem.environment.names)
        )
        if fabric.world_size > 1:
            synchronise_batch_norm(method)
        self.method: Method = method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        known = np.isin(problem.fold.part, ("train", "val"))
        self.reader = BatchReader(
            screen,
            np.where(known, problem.label.codes, -1),
            np.where(known, problem.environment.codes, -1),
            self.intensity,
            fabric.device,
            channels_last=True,
            group=None if problem.group is None else problem.group.codes,
        )
        self.stages = self.method.stages(config.training.steps)
        self.stage_number = 0
        self.done = 0
        self.validation_due = False
        """Whether step `done` is still to be validated: the run was stopped before."""
        self.request = Request()
        self.seconds = 0.0
        self.resumed_at = 0.0
        """What `seconds` was when this process took the run up."""
        self.best: dict[str, dict[str, dict[str, float]]] = {s.name: {} for s in self.stages}
        self.history = History(out / "metrics.csv")
        self.optimizers: list[torch.optim.Optimizer] = []

    def run(self) -> None:
        """Train every stage from wherever the directory stands to the end."""
        self._new_optimizers()
        if (self.out / "resume.pt").is_file():
            self._resume()
        total = sum(stage.steps for stage in self.stages)
        before = sum(stage.steps for stage in self.stages[: self.stage_number]) + self.done
        with (
            self.request,
            Progress(self.out.name, total, "steps", before, self.quiet) as progress,
        ):
            while True:
                stage = self.stages[self.stage_number]
                self._train(stage, progress)
                self.fabric.barrier()
                last = self.stage_number == len(self.stages) - 1
                if last or not self.stages[self.stage_number + 1].continues:
                    file = self._checkpoint(self._selected(stage))
                    load_weights(file, self.method, self.intensity)
                if last:
                    break
                self.stage_number += 1
                self.done = 0
                self._new_optimizers()
                self._save_resume()
        self._finish()
        self.fabric.barrier()

    def _train(self, stage: Stage, progress: Progress) -> None:
        training = self.config.training
        if self.validation_due:
            self._validate(stage)
            self._stop_if_asked()
        sampler = _sampler(self.config, self.problem, "train", stage)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        steps = range(self.done, stage.steps)
        batches = self.reader.stream(sampler.rows(step)[rank::world] for step in steps)
        with contextlib.closing(batches):
            started = time.perf_counter()
            for step, batch in zip(steps, batches, strict=True):
                if self.config.options.sees_held_out:
                    held_out = self.problem.fold.part[batch.row.numpy()] == "test"
                    batch = replace(batch, held_out=int(held_out.sum()))
                logged = self._step(stage, step, batch)
                self.done = step + 1
                if self.done % LOG_EVERY == 0 or self.done == stage.steps:
                    values = {name: float(value) for name, value in logged.items()}
                    self._check_finite(values)
                    self.history.add(stage.name, self.done, "train", values)
                    progress.update(1, _headline(values))
                else:
                    progress.update(1)
                if self.done % training.validate_every == 0 or self.done == stage.steps:
                    self._validate(stage)
                self.seconds += time.perf_counter() - started
                self._stop_if_asked()
                if self.done % training.checkpoint_every == 0 or self.done == stage.steps:
                    self._save_resume()
                started = time.perf_counter()

    def _stop_if_asked(self) -> None:
        """Save the run as it stands and raise Stopped, if a signal asks for it."""
        if not self._is_asked():
            return
        self.request.answered()
        self._save_resume()
        stage = self.stages[self.stage_number]
        where = f"step {self.done} of {stage.steps} ({stage.name})"
        raise Stopped(f"{self.out}: saved at {where}; the same command resumes")

    def _is_asked(self) -> bool:
        """Whether any process of the run has been asked to stop, the same answer in all."""
        if self.fabric.world_size == 1:
            return self.request.asked
        asked = torch.tensor(float(self.request.asked), device=self.fabric.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)

    def _step(self, stage: Stage, step: int, batch: Batch) -> dict[str, Tensor]:
        training, seed = self.config.training, self.config.seed
        torch.manual_seed(derived_seed(seed, "step", stage.name, step, self.fabric.global_rank))
        self.method.train()
        for phase, optimizer in zip(stage.phases, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _schedule(training, step, stage.steps)
        if training.augment == "dihedral":
            fabric = self.fabric
            batch = augmented(batch, seed, step, fabric.global_rank, fabric.world_size)
        with self.fabric.autocast():
            return self.method.step(batch, stage, self.optimizers, self._backward)

    def _backward(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Losses are those of the global batch, so gradients add up over processes."""
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss)
        if self.fabric.world_size > 1:
            sum_gradients(parameters)

    @torch.no_grad()
    def _validate(self, stage: Stage) -> None:
        phase = next((phase for phase in stage.phases if phase.validates), None)
        if phase is None:
            return
        self.validation_due = True
        self.method.eval()
        torch.manual_seed(derived_seed(self.config.seed, "validation", stage.name, self.done))
        sums: dict[str, float] = {}
        loss_batches = correct = known = 0
        with self.fabric.autocast():
            for batch, whole in self._validation_batches(stage):
                if self._is_asked():
                    return
                outputs = self.method.outputs(batch, stage.name)
                logits = self.method.predict(outputs) if stage.classifies else None
                if logits is not None:
                    has_label = batch.label >= 0
                    correct += int(((logits.argmax(dim=1) == batch.label) & has_label).sum())
                    known += int(has_label.sum())
                if not whole:
                    continue
                losses = phase.losses(batch, outputs)
                values = {name: loss.value for name, loss in losses.items()}
                values |= self.method.diagnostics(batch, outputs)
                values["loss"] = weighted_sum(losses)
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                loss_batches += 1
        scores = {name: value / loss_batches for name, value in sums.items()}
        if self.fabric.world_size > 1:
            counts = torch.tensor([correct, known], device=self.fabric.device)
            dist.all_reduce(counts)
            correct, known = counts.tolist()
        if known:
            scores["accuracy"] = correct / known
        self.history.add(stage.name, self.done, "val", scores)
        self._keep("loss", scores["loss"], scores, lower=True)
        if known:
            self._keep("accuracy", scores["accuracy"], scores, lower=False)
        if self.done == stage.steps:
            self._keep("last", float("nan"), scores, lower=True)
        self.validation_due = False

    def _validation_batches(self, stage: Stage) -> Iterator[tuple[Batch, bool]]:
        """This process's share of the validation batches, and whether each is of full size.

        They are the same every time.
        """
        rows = self.problem.fold.rows("val")
        size = min(stage.batch_size or self.config.training.batch_size, len(rows))
        count = min(stage.validation_batches, max(1, len(rows) // size))
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        if self.config.training.sampler == "label_balanced":
            sampler = _sampler(self.config, self.problem, "val", stage)
            for batch in self.reader.stream(sampler.rows(step)[own] for step in range(count)):
                yield batch, True
            return
        sampler = PlainSampler(rows, len(rows), 0, "validation")
        chunks = np.split(sampler.rows(0), np.arange(size, len(rows), size))[: count + 1]
        for chunk, batch in zip(chunks, self.reader.stream(c[own] for c in chunks), strict=True):
            yield batch, len(chunk) == size

    def _keep(self, selection: str, value: float, scores: dict[str, float], lower: bool) -> None:
        """Write the checkpoint of a selection if `value` is the best so far."""
        best = self.best[self.stages[self.stage_number].name]
        if selection in best:
            previous = best[selection][selection]
            better = value < previous if lower else value > previous
            if not better and not math.isnan(previous):
                return
        best[selection] = {"step": float(self.done), **scores}
        if self.fabric.is_global_zero:
            with atomic.atomic_file(self._checkpoint(selection)) as temporary:
                save_weights(temporary, weights(self.method, self.intensity))

    def _checkpoint(self, selection: str) -> Path:
        return self.out / f"{self.stages[self.stage_number].name}-{selection}.safetensors"

    def _selected(self, stage: Stage) -> str:
        wanted = self.config.training.selection
        found = self.best[stage.name]
        return wanted if wanted in found else "loss" if "loss" in found else "last"

    def _new_optimizers(self) -> None:
        self.optimizers = [p.optimizer() for p in self.stages[self.stage_number].phases]

    def _save_resume(self) -> None:
        if not self.fabric.is_global_zero:
            return
        self.history.write()
        state = {
            "stage_number": self.stage_number,
            "done": self.done,
            "validation_due": self.validation_due,
            "seconds": self.seconds,
            "best": self.best,
            "weights": weights(self.method, self.intensity),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with atomic.atomic_file(self.out / "resume.pt") as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        state = read_resume(self.out)
        try:
            modules = nn.ModuleDict({"method": self.method, "intensity": self.intensity})
            modules.load_state_dict(state["weights"])
            self.stage_number, self.done = state["stage_number"], state["done"]
            self.validation_due = state["validation_due"]
            self.seconds = self.resumed_at = state["seconds"]
            self.best = state["best"]
            self._new_optimizers()
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except Exception as error:  # PyTorch has no one exception for what does not fit
            raise damaged_resume(self.out, error) from error
        self.history.resume([s.name for s in self.stages[: self.stage_number + 1]], self.done)

    def _check_finite(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{self.out}: {name} became {value} by step {self.done}; "
                    "lower --learning-rate or use --precision 32"
                )

    def _finish(self) -> None:
        if not self.fabric.is_global_zero:
            return
        self.history.write()
        selection = {
            "used": {
                stage.name: "last" if after and after.continues else self._selected(stage)
                for stage, after in zip_longest(self.stages, self.stages[1:])
            },
            "best": self.best,
        }
        atomic.write_text(self.out / "selection.json", json.dumps(selection, indent=2))
        described: dict[str, Any] = software()
        described |= {
            "device": machine.device_name(self.fabric),
            "precision": machine.precision_name(self.fabric),
            "processes": self.fabric.world_size,
            "training_seconds": round(self.seconds, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        atomic.write_text(self.out / "provenance.json", json.dumps(described, indent=2))
        with atomic.atomic_file(self.out / "model.safetensors") as temporary:
            save_weights(temporary, weights(self.method, self.intensity))
            write_checksums(self.out, temporary)
        (self.out / "resume.pt").unlink(missing_ok=True)


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace the gradient of every parameter by its sum over processes."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def _claims(out: Path, config: RunConfig, screen: Screen) -> bool:
    """Whether `out` already holds this run, finished; raises UserError if it holds another."""
    if not out.exists():
        return False
    if out.is_dir() and all(file.suffix == ".partial" for file in out.iterdir()):
        return False
    if not (out / "config.yaml").is_file():
        raise UserError(f"{out}: exists and is not a run; choose another --out")
    if dump_config(read_config(out / "config.yaml")) != dump_config(config):
        raise UserError(f"{out}: holds a run with another configuration; choose another --out")
    if (out / "classes.json").is_file():
        read_json(out / "classes.json")
    if (out / "fold.json").is_file():
        fold = read_json(out / "fold.json")
        if fold["screen_identity"] != screen.identity:
            raise UserError(f"{out}: was trained on another screen; choose another --out")
    return (out / "model.safetensors").is_file()


def _of_untrained(problem: Problem) -> str:
    found = [f"{name} ({rows} rows)" for name, rows in problem.untrained().items()]
    return (
        f"warning: fold {problem.fold.name}: training has no row of {listed(found, 5)}; their test "
        "rows are never scored, hold out another group if they must be"
    )


def _remove_leftovers(out: Path) -> None:
    """Remove what a process that was killed as it finished the run has left of its work."""
    resume = out / "resume.pt"
    if resume.is_file() or any(file.suffix == ".partial" for file in out.iterdir()):
        with contextlib.suppress(OSError, UserError), atomic.locked(out):
            resume.unlink(missing_ok=True)
            atomic.sweep(out)


def _refuse_unfillable_batches(training: TrainingOptions, problem: Problem) -> None:
    size, rows = training.batch_size, len(problem.fold.rows("train"))
    labels = min(training.classes_per_batch, len(problem.label.names))
    environments = len(problem.environment.names)
    if size > rows:
        raise UserError(f"--batch-size {size}: training has {rows} rows; lower it")
    if training.sampler == "label_balanced" and size < labels:
        raise UserError(
            f"--batch-size {size}: cannot hold an image of each of {labels} labels; raise it, or "
            "lower --classes-per-batch"
        )
    if training.sampler == "environment_balanced" and size < environments:
        raise UserError(
            f"--batch-size {size}: cannot hold an image of each of {environments} environments; "
            "raise it"
        )


def _sampler(
    config: RunConfig, problem: Problem, part: Literal["train", "val"], stage: Stage
) -> Sampler:
    """Of a part; in training joined by images of test rows where the method sees those."""
    sampler = _part_sampler(config, problem, part, stage)
    if part == "val" or not config.options.sees_held_out:
        return sampler
    size = stage.batch_size or config.training.batch_size
    seed = derived_seed(config.seed, "held out", stage.name)
    return JoinedSampler(sampler, PlainSampler(problem.fold.rows("test"), size, seed))


def _part_sampler(
    config: RunConfig, problem: Problem, part: Literal["train", "val"], stage: Stage
) -> Sampler:
    training = config.training
    size = stage.batch_size or training.batch_size
    rows: Rows = problem.fold.rows(part)
    seed = derived_seed(config.seed if part == "train" else 0, part, stage.name)
    if training.sampler == "label_balanced":
        label = problem.label.codes[rows]
        return LabelBalancedSampler(rows, label, size, training.classes_per_batch, seed)
    if training.sampler == "environment_balanced":
        environment = problem.environment.codes[rows]
        return EnvironmentBalancedSampler(rows, environment, size, seed)
    return PlainSampler(rows, size, seed)


def _schedule(training: TrainingOptions, step: int, steps: int) -> float:
    """Factor of the learning rate at `step`, a pure function of it."""
    rise = min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _headline(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in list(values.items())[:3])
