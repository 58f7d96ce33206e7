"""The state of a training run and the loop over it; knows no method by name."""

import contextlib
import json
import math
import time
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from deconfound.config import TrainingOptions
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.batch import Batch, BatchReader, augmented
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.loading.sampler import effective_sizes
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import write_checksums
from deconfound.intervention.intervention import Intervention
from deconfound.methods.base import Method, Stage
from deconfound.nets.batch_norm import synchronise_batch_norm
from deconfound.runs.checkpoint import damaged_resume, read_resume, save_weights
from deconfound.runs.config import RunConfig
from deconfound.runs.history import History
from deconfound.runs.run import build_method, software
from deconfound.runs.weights import load_weights, weights
from deconfound.runtime.device import device_name, precision_name
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import derived_seed, torch_stream
from deconfound.runtime.stop import Request, Stopped
from deconfound.training.batches import sampler_of, validation_batches, with_partners
from deconfound.training.gradient_rule import GradientRule
from deconfound.training.validation import Predictions, validation_scores

LOG_EVERY = 10


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
        intervention: Intervention | None = None,
    ) -> None:
        self.config, self.problem, self.out, self.fabric = config, problem, out, fabric
        self.quiet = quiet
        self.intervention = intervention
        data = config.data
        self.intensity: Intensity = (
            fit_intensity(
                screen,
                problem.fold.rows("train"),
                problem.transform,
                data.scaling,
                config.seed,
                problem.group,
            )
            if intervention is None
            else intervention.intensity
        )
        counts = len(problem.label.names), len(problem.environment.names)
        method = build_method(config, screen, *counts, problem.controls)
        if fabric.world_size > 1:
            synchronise_batch_norm(method)
        self.method: Method = method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        known = np.isin(problem.fold.part, ("train", "val"))
        self.reader = BatchReader(
            screen,
            label=np.where(known, problem.label.codes, -1),
            environment=np.where(known, problem.environment.codes, -1),
            intensity=self.intensity,
            device=fabric.device,
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
        self.predicted: dict[str, Predictions] = {}
        """What the checkpoints that this process kept predict of validation rows, by their file."""
        self.history = History(out / "metrics.csv")
        self.optimizers: list[torch.optim.Optimizer] = []
        options = config.options
        self.rule = GradientRule(options.skip_above, options.clip_at, options.most_skipped)

    def run(self) -> None:
        """Train every stage from wherever the directory stands to the end."""
        if (self.out / "resume.pt").is_file():
            self._resume()
        else:
            self._begin()
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
                self._begin()
                self._save_resume()
        self._finish()
        self.fabric.barrier()

    def _train(self, stage: Stage, progress: Progress) -> None:
        training = self.config.training
        if self.validation_due:
            self._validate(stage)
            self._stop_if_asked()
        sampler = sampler_of(self.config, self.problem, "train", stage)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        steps = range(self.done, stage.steps)
        batches = self.reader.stream(sampler.rows(step)[rank::world] for step in steps)
        with contextlib.closing(batches):
            started = time.perf_counter()
            for step, batch in zip(steps, batches, strict=True):
                if self.config.options.sees_held_out:
                    held_out = self.problem.fold.part[batch.row.numpy()] == "test"
                    batch = replace(batch, held_out=int(held_out.sum()))
                logged = self._step(stage, step, with_partners(batch, stage))
                self.done = step + 1
                self._refuse_too_many_skipped(stage)
                if self.done % LOG_EVERY == 0 or self.done == stage.steps:
                    values = {name: float(value) for name, value in logged.items()}
                    if self.done == min(LOG_EVERY, stage.steps):
                        values |= effective_sizes(sampler)
                    if self.rule.skip_above is None:
                        self._check_finite(values)
                    else:
                        values["skipped_steps"] = float(self.rule.skipped)
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
        self.rule.begin_step(self.method)
        for phase, optimizer in zip(stage.phases, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _schedule(training, step, stage.steps)
        share = self.fabric.global_rank, self.fabric.world_size
        with self.fabric.autocast():
            # An imputer learned from images as they are stored, so they are turned after it.
            if self.intervention is not None:
                stream = torch_stream(seed, "intervention", stage.name, step)
                batch = self.intervention.intervene(batch, stream, *share)
            if training.augment == "dihedral":
                batch = augmented(batch, seed, step, *share)
            logged = self.method.step(batch, stage, self.optimizers, self._backward)
        self.rule.end_step()
        return logged

    def _backward(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Losses are those of the global batch, so gradients add up over processes."""
        with torch.autocast(self.fabric.device.type, enabled=False):
            self.fabric.backward(loss)
        if self.fabric.world_size > 1:
            sum_gradients(parameters)
        self.rule.apply(loss, parameters)

    def _validate(self, stage: Stage) -> None:
        phase = next((phase for phase in stage.phases if phase.validates), None)
        if phase is None:
            return
        self.validation_due = True
        self.method.eval()
        torch.manual_seed(derived_seed(self.config.seed, "validation", stage.name, self.done))
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        batches = validation_batches(self.config, self.problem, stage, self.reader, own)
        if self.intervention is not None:
            share = self.fabric.global_rank, self.fabric.world_size
            batches = self.intervention.intervene_all(batches, stage.name, *share)
        found = validation_scores(self.method, stage, phase, batches, self.fabric, self._is_asked)
        if found is None:
            return
        scores, predicted = found
        self.history.add(stage.name, self.done, "val", scores)
        kept = [self._keep("loss", scores["loss"], scores, lower=True)]
        if "accuracy" in scores:
            kept.append(self._keep("accuracy", scores["accuracy"], scores, lower=False))
        if self.done == stage.steps:
            kept.append(self._keep("last", float("nan"), scores, lower=True))
        self.predicted |= {file.name: predicted for file in kept if file is not None}
        self.validation_due = False

    def alarm(self) -> str | None:
        """What the method has to say of the finished run, if its weights have failed."""
        stage = self.stages[-1]
        found = self.best[stage.name].get(self._selected(stage))
        return None if found is None else self.method.alarm(found)

    def of_validation(self) -> Predictions | None:
        """What the weights of the finished run predict of validation rows, if that is known here.

        On one CPU in float32 alone: there a prediction does not depend on the batch it is in, but
        for logits that are equal to the last digits. Not with an intervention, which validates on
        other draws than it predicts by.
        """
        stage, fabric = self.stages[-1], self.fabric
        exact = fabric.device.type == "cpu" and precision_name(fabric) == "32-true"
        same = fabric.world_size == 1 and self.intervention is None
        if not (exact and same and stage.classifies):
            return None
        return self.predicted.get(self._checkpoint(self._selected(stage)).name)

    def _keep(
        self, selection: str, value: float, scores: dict[str, float], lower: bool
    ) -> Path | None:
        """Write the checkpoint of a selection, and return its file, if `value` is the best yet."""
        best = self.best[self.stages[self.stage_number].name]
        if selection in best:
            previous = best[selection][selection]
            better = value < previous if lower else value > previous
            if not better and not math.isnan(previous):
                return None
        best[selection] = {"step": float(self.done), **scores}
        file = self._checkpoint(selection)
        if self.fabric.is_global_zero:
            with atomic.atomic_file(file) as temporary:
                save_weights(temporary, weights(self.method, self.intensity))
        return file

    def _checkpoint(self, selection: str) -> Path:
        return self.out / f"{self.stages[self.stage_number].name}-{selection}.safetensors"

    def _selected(self, stage: Stage) -> str:
        if not stage.selects:
            return "last"
        wanted = self.config.training.selection
        found = self.best[stage.name]
        return wanted if wanted in found else "loss" if "loss" in found else "last"

    def _begin(self) -> None:
        """Begin the stage at hand, which may draw on the global stream."""
        stage = self.stages[self.stage_number]
        torch.manual_seed(derived_seed(self.config.seed, "begin", stage.name))
        self.method.begin(stage)
        self._new_optimizers()

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
            "skipped": self.rule.state(),
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
            self.rule.resume(state.get("skipped", []))
            self._new_optimizers()
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except Exception as error:  # PyTorch has no one exception for what does not fit
            raise damaged_resume(self.out, error) from error
        self.history.resume([s.name for s in self.stages[: self.stage_number + 1]], self.done)

    def _refuse_too_many_skipped(self, stage: Stage) -> None:
        """Raise UserError if the rule says so; what is trained and measured so far stays."""
        if not self.rule.gives_up:
            return
        if self.fabric.is_global_zero:
            self.history.write()
        kept = "its checkpoints are kept; " if any(self.best.values()) else ""
        raise UserError(
            f"{self.out}: {self.rule.in_a_row} steps in a row up to step {self.done} of "
            f"{stage.steps} ({stage.name}) had a loss or a gradient that is not finite, or a "
            f"gradient norm above {self.rule.skip_above:g}, and were skipped; {kept}"
            "lower --learning-rate, or look at the pixels with `deconfound describe`"
        )

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
            "device": device_name(self.fabric),
            "precision": precision_name(self.fabric),
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


def _schedule(training: TrainingOptions, step: int, steps: int) -> float:
    """Factor of the learning rate at `step`, a pure function of it."""
    rise = min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _headline(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in list(values.items())[:3])
