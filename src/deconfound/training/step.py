"""One optimisation step: from a batch to losses, gradients and new weights."""

import math

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from deconfound.config import TrainingOptions
from deconfound.data.loading.batch import Batch, augmented
from deconfound.intervention.intervention import Intervention
from deconfound.methods.contract import Method, Stage
from deconfound.runs.config import RunConfig
from deconfound.runtime.seeds import derived_seed, torch_stream
from deconfound.training.gradient_rule import GradientRule


class Stepper:
    """Takes the steps of a run, a stage at a time; each step is a pure function of its number."""

    def __init__(
        self, config: RunConfig, method: Method, fabric: Fabric, intervention: Intervention | None
    ) -> None:
        self._config, self._method, self._fabric = config, method, fabric
        self._intervention = intervention
        options = config.options
        self.rule = GradientRule(options.skip_above, options.clip_at, options.most_skipped)
        self.optimizers: list[torch.optim.Optimizer] = []

    def renew_optimizers(self, stage: Stage) -> None:
        """Begin `stage` with optimizers that have no state."""
        self.optimizers = [phase.optimizer() for phase in stage.phases]

    def step(self, stage: Stage, step: int, batch: Batch) -> dict[str, Tensor]:
        """Take step `step`, counted from 0, of `stage`; returns the losses by name."""
        training, seed, rank = self._config.training, self._config.seed, self._fabric.global_rank
        torch.manual_seed(derived_seed(seed, "step", stage.name, step, rank))
        self._method.train()
        self.rule.begin_step(self._method)
        for phase, optimizer in zip(stage.phases, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * _schedule(training, step, stage.steps)
        share = rank, self._fabric.world_size
        with self._fabric.autocast():
            # An imputer learned from images as they are stored, so they are turned after it.
            if self._intervention is not None:
                stream = torch_stream(seed, "intervention", stage.name, step)
                batch = self._intervention.intervene(batch, stream, *share)
            if training.augment == "dihedral":
                batch = augmented(batch, seed, step, *share)
            logged = self._method.step(batch, stage, self.optimizers, self._backward)
        self.rule.end_step()
        return logged

    def _backward(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Losses are those of the global batch, so gradients add up over processes."""
        with torch.autocast(self._fabric.device.type, enabled=False):
            self._fabric.backward(loss)
        if self._fabric.world_size > 1:
            sum_gradients(parameters)
        self.rule.apply(loss, parameters)


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
