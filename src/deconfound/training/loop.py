"""The loop over the stages of a run: step, validate, save; knows no method by name."""

import contextlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from deconfound.data.folds.problem import Problem
from deconfound.data.loading.sampler import effective_sizes
from deconfound.data.screens.screen import Screen
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.files.checksums import write_checksums
from deconfound.intervention.intervention import Intervention
from deconfound.methods.contract import Stage
from deconfound.nets.pretrained import load_pretrained
from deconfound.runs.checkpoint import load_weights, save_weights
from deconfound.runs.config import RunConfig
from deconfound.runs.context import fit_contexts, negative_controls
from deconfound.runs.record import History, software
from deconfound.runtime.device import device_name, precision_name
from deconfound.runtime.progress import Progress
from deconfound.runtime.seeds import derived_seed
from deconfound.runtime.stop import Request, Stopped
from deconfound.training.batches import reader_of, sampler_of, validation_batches, with_partners
from deconfound.training.episodes import without_joined_labels
from deconfound.training.resume import Position, ResumeFile
from deconfound.training.step import Stepper, build_network
from deconfound.training.tracking.tracker import Tracker
from deconfound.training.validation import Predictions, Selection, validation_scores

LOG_EVERY = 10


class Training:
    """Trains one run from wherever its directory stands to the end."""

    def __init__(
        self,
        *,
        config: RunConfig,
        screen: Screen,
        problem: Problem,
        out: Path,
        fabric: Fabric,
        intervention: Intervention | None,
        quiet: bool,
        tracker: Tracker | None = None,
    ) -> None:
        self.config, self.problem, self.out, self.fabric = config, problem, out, fabric
        self.intervention, self.quiet = intervention, quiet
        self.writes, self.tracker = fabric.is_global_zero, tracker
        self.network = build_network(config, screen, problem, fabric, intervention)
        self.method = self.network.method
        begins = not (out / "resume.pt").is_file()
        self.pretrained = load_pretrained(self.method) if begins else []
        """What was taken from files of weights by a run that begins."""
        self.negative = negative_controls(config, screen, problem.roles.label)
        self.reader = reader_of(config, screen, problem, self.network.intensity, fabric.device)
        self.stages = self.method.stages(config.training.steps)
        self.position = Position()
        self.resumed_at = 0.0
        """What `position.seconds` was when this process took the run up."""
        self.request = Request()
        self.history = History(out / "metrics.csv")
        self.stepper = Stepper(config, self.method, fabric, intervention)
        self.selection = Selection(
            out, self.stages, config.training.selection, self.network, self.writes
        )
        self.resume_file = ResumeFile(out, self.network, self.stepper, self.selection, self.history)

    @property
    def stage(self) -> Stage:
        """The stage at hand."""
        return self.stages[self.position.stage_number]

    def run(self) -> None:
        """Train every stage that is not finished, select its weights and write the run's files."""
        if self.resume_file.path.is_file():
            self.position = self.resume_file.restore(self.stages)
            self.resumed_at = self.position.seconds
        else:
            self._begin()
        total = sum(stage.steps for stage in self.stages)
        before = sum(stage.steps for stage in self.stages[: self.position.stage_number])
        before += self.position.done
        with (
            self.request,
            Progress(self.out.name, total, "steps", before, self.quiet) as progress,
        ):
            while True:
                self._train(progress)
                self.fabric.barrier()
                last = self.stage is self.stages[-1]
                if last or not self.stages[self.position.stage_number + 1].continues:
                    file, network = self.selection.file(self.stage), self.network
                    load_weights(file, network.method, network.intensity)
                if last:
                    break
                self.position.stage_number += 1
                self.position.done = 0
                self._begin()
                self._save_resume()
        if self.writes:
            self._finish()
        self.fabric.barrier()

    @property
    def seconds(self) -> float:
        """Seconds that this process has trained, validated and waited for batches."""
        return self.position.seconds - self.resumed_at

    def alarm(self) -> str | None:
        """What the method has to say of the finished run, if its weights have failed."""
        scores = self.selection.scores(self.stages[-1])
        return None if scores is None else self.method.alarm(scores)

    def predicted(self) -> Predictions | None:
        """Predictions of the finished run's weights on validation rows; None if not exactly known.

        Returned only on one CPU in float32, where predictions do not depend on how rows are
        batched, without an intervention, whose validation draws differ from those of `embed`, and
        where no validation row is of a group or an environment that training lacks, which `embed`
        may measure.
        """
        stage, fabric = self.stages[-1], self.fabric
        exact = fabric.device.type == "cpu" and precision_name(fabric) == "32-true"
        same = fabric.world_size == 1 and self.intervention is None
        if self.problem.standardise_by and self.problem.group is not None:
            same &= bool((self.problem.group.codes[self.problem.fold.rows("val")] >= 0).all())
        if self.method.context is not None:
            same &= bool((self.problem.environment.codes[self.problem.fold.rows("val")] >= 0).all())
        return self.selection.predicted(stage) if exact and same and stage.classifies else None

    def _begin(self) -> None:
        """Begin the stage at hand, which may draw on the global stream."""
        torch.manual_seed(derived_seed(self.config.seed, "begin", self.stage.name))
        self.method.begin(self.stage)
        self.stepper.renew_optimizers(self.stage)

    def _train(self, progress: Progress) -> None:
        stage, training = self.stage, self.config.training
        if self.position.validation_due:
            self._validate()
            self._stop_if_asked()
        sampler = sampler_of(self.config, self.problem, "train", stage, self.negative)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        steps = range(self.position.done, stage.steps)
        batches = self.reader.stream(sampler.rows(step)[rank::world] for step in steps)
        with contextlib.closing(batches):
            started = time.perf_counter()
            for step, batch in zip(steps, batches, strict=True):
                if self.config.options.sees_held_out:
                    held_out = self.problem.fold.part[batch.row.numpy()] == "test"
                    batch = replace(batch, held_out=int(held_out.sum()))
                batch = without_joined_labels(with_partners(batch, stage), sampler, rank, world)
                logged = self.stepper.step(stage, step, batch)
                done = self.position.done = step + 1
                self._refuse_too_many_skipped()
                if done % LOG_EVERY == 0 or done == stage.steps:
                    values = {name: float(value) for name, value in logged.items()}
                    if done == min(LOG_EVERY, stage.steps):
                        values |= effective_sizes(sampler)
                    self._log(values)
                    first = list(values.items())[:3]
                    progress.update(1, " ".join(f"{name} {value:.3f}" for name, value in first))
                else:
                    progress.update(1)
                if done % training.validate_every == 0 or done == stage.steps:
                    self._validate()
                self.position.seconds += time.perf_counter() - started
                self._stop_if_asked()
                if done % training.checkpoint_every == 0 or done == stage.steps:
                    self._save_resume()
                started = time.perf_counter()

    def _log(self, values: dict[str, float]) -> None:
        """Add values of a step to the history; raises UserError for one that is not finite.

        Where steps may be skipped, it adds the number of those instead.
        """
        if self.stepper.rule.skip_above is not None:
            values["skipped_steps"] = float(self.stepper.rule.skipped)
        elif bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise UserError(
                f"{self.out}: {bad[0]} became {values[bad[0]]} by step {self.position.done}; "
                "lower --learning-rate or use --precision 32"
            )
        self.history.add(self.stage.name, self.position.done, "train", values)

    def _validate(self) -> None:
        """Score the weights on validation rows and keep them where they are the best yet."""
        stage, done = self.stage, self.position.done
        phase = next((phase for phase in stage.phases if phase.validates), None)
        if phase is None:
            return
        self.position.validation_due = True
        self.method.eval()
        torch.manual_seed(derived_seed(self.config.seed, "validation", stage.name, done))
        if self.method.context is not None:
            with self.fabric.autocast():
                fit_contexts(self.method, self.reader, self.config, self.problem, self.negative)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        own = slice(rank, None, world)
        batches = validation_batches(self.config, self.problem, stage, self.reader, own)
        if self.intervention is not None:
            batches = self.intervention.intervene_all(batches, stage.name, rank, world)
        found = validation_scores(self.method, stage, phase, batches, self.fabric, self._is_asked)
        if found is None:
            return
        scores, predicted = found
        self.history.add(stage.name, done, "val", scores)
        self.selection.consider(stage, done, scores, predicted)
        self.position.validation_due = False

    def _is_asked(self) -> bool:
        """Whether any process of the run has been asked to stop, the same answer in all."""
        if self.fabric.world_size == 1:
            return self.request.asked
        asked = torch.tensor(float(self.request.asked), device=self.fabric.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked)

    def _stop_if_asked(self) -> None:
        if not self._is_asked():
            return
        self.request.answered()
        self._save_resume()
        where = f"step {self.position.done} of {self.stage.steps} ({self.stage.name})"
        raise Stopped(f"{self.out}: saved at {where}; the same command resumes")

    def _save_resume(self) -> None:
        if self.writes:
            self.resume_file.save(self.position)
            self._track()

    def _track(self, *, last: bool = False) -> None:
        """Send what is saved to the tracker; a step that is still to be validated is sent whole."""
        if self.tracker is not None:
            before = sum(stage.steps for stage in self.stages[: self.position.stage_number])
            until = before + self.position.done - self.position.validation_due
            self.tracker.follow(self.history, self.stages, until, last=last)

    def _refuse_too_many_skipped(self) -> None:
        rule = self.stepper.rule
        if not rule.gives_up:
            return
        if self.writes:
            self.history.write()
        kept = "its checkpoints are kept; " if any(self.selection.best.values()) else ""
        raise UserError(
            f"{self.out}: {rule.in_a_row} steps in a row up to step {self.position.done} of "
            f"{self.stage.steps} ({self.stage.name}) had a loss or a gradient that is not finite, "
            f"or a gradient norm above {rule.skip_above:g}, and were skipped; {kept}"
            "lower --learning-rate, or look at the pixels with `deconfound describe`"
        )

    def _finish(self) -> None:
        """Write the files of the finished run, its weights last, and remove `resume.pt`."""
        self.history.write()
        self._track(last=True)
        self.selection.write()
        described: dict[str, Any] = software()
        described |= {
            "device": device_name(self.fabric),
            "precision": precision_name(self.fabric),
            "processes": self.fabric.world_size,
            "training_seconds": round(self.position.seconds, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        atomic.write_text(self.out / "provenance.json", json.dumps(described, indent=2))
        with atomic.atomic_file(self.out / "model.safetensors") as temporary:
            save_weights(temporary, self.network.weights())
            write_checksums(self.out, temporary)
        self.resume_file.path.unlink(missing_ok=True)
