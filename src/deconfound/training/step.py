"""What a run trains, and one step: losses, gradients, skipped or clipped, and new weights."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deconfound.config import TrainingOptions
from deconfound.data.folds.problem import Problem
from deconfound.data.loading.augmentation import augmented
from deconfound.data.loading.batch import Batch
from deconfound.data.loading.intensity import Intensity, fit_intensity
from deconfound.data.screens.screen import Screen
from deconfound.intervention.intervention import Intervention
from deconfound.methods.contract import Method, Stage
from deconfound.nets.layers import synchronise_batch_norm
from deconfound.runs.checkpoint import weights
from deconfound.runs.config import RunConfig
from deconfound.runs.run import build_method
from deconfound.runtime.seeds import derived_seed, torch_stream


@dataclass(frozen=True)
class Network:
    """A method and its scaling of pixels, whose weights are saved together."""

    method: Method
    intensity: Intensity

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, on the CPU."""
        return weights(self.method, self.intensity)


def build_network(
    config: RunConfig,
    screen: Screen,
    problem: Problem,
    fabric: Fabric,
    intervention: Intervention | None,
) -> Network:
    """The network of a run with its initial weights, on the device of `fabric`.

    Pixels are scaled as the training rows ask, or as the intervention's imputer scales them.
    Raises UserError as `build_method` does.
    """
    if intervention is None:
        train, data = problem.fold.rows("train"), config.data
        intensity = fit_intensity(
            screen,
            train,
            problem.transform,
            data.scaling,
            config.seed,
            problem.group,
            data.standardise if problem.standardise_by else None,
            problem.reference,
        )
    else:
        intensity = intervention.intensity
    counts = len(problem.label.names), len(problem.environment.names)
    method = build_method(config, screen, *counts, problem.controls)
    if fabric.world_size > 1:
        synchronise_batch_norm(method)
    placed: Method = method.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(placed, intensity)


class GradientRule:
    """Skips the step of a phase whose gradient is unusable, and clips one that is only large.

    Child, Very Deep VAEs, 2021, used by Makino et al., SCBD, A.1.2: skipped above a norm of 1e12,
    clipped to a norm of 1e6. A phase whose loss or norm is not finite is skipped too. To skip a
    phase its gradients are removed, so its weights and its optimizer's state do not change; batch
    norms get back the running statistics that they had before the step.
    """

    def __init__(self, skip_above: float | None, clip_at: float | None, most_skipped: int) -> None:
        self.skip_above, self.clip_at, self._most = skip_above, clip_at, most_skipped
        self.skipped = 0
        """Steps so far in which a phase was skipped."""
        self.in_a_row = 0
        """Skipped steps since the last step that was not skipped."""
        self._skipping = False
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def begin_step(self, network: nn.Module) -> None:
        """Copy the running statistics of `network`, in case the step is skipped."""
        if self.skip_above is None:
            return
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [(kept, kept.clone()) for norm in norms for kept in norm.buffers()]

    def apply(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Remove or scale down the gradients of `parameters` with respect to `loss` ()."""
        if self.skip_above is None and self.clip_at is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.skip_above is not None:
            usable = (
                torch.isfinite(loss.detach()) & torch.isfinite(norm) & (norm <= self.skip_above)
            )
            if not usable:
                self._skipping = True
                for parameter in parameters:
                    parameter.grad = None
                return
        if self.clip_at is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_at, norm)

    def end_step(self) -> None:
        """Count the step; restore the running statistics if it was skipped."""
        if self._skipping:
            for kept, before in self._statistics:
                kept.copy_(before)
        self.skipped += self._skipping
        self.in_a_row = self.in_a_row + 1 if self._skipping else 0
        self._skipping = False

    @property
    def gives_up(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.in_a_row >= self._most

    def state(self) -> list[int]:
        """The counts, for `resume`."""
        return [self.skipped, self.in_a_row]

    def resume(self, state: list[int]) -> None:
        """Continue counting from a `state`; from 0 if it is empty."""
        self.skipped, self.in_a_row = state or (0, 0)


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
            # An imputer learned from images as they are stored, so they are augmented after it.
            if self._intervention is not None:
                stream = torch_stream(seed, "intervention", stage.name, step)
                batch = self._intervention.intervene(batch, stream, *share)
            with torch.autocast(self._fabric.device.type, enabled=False):
                batch = augmented(batch, training.augment, seed, step, *share)
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
    rise = min(1.0, (step + 1) / max(1, training.warmup_steps))
    if training.schedule == "constant":
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))
