"""What a trained method is: a network that declares its stages and losses, and embeds images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from deconfound.config import SamplerName
from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract.options import (
    ContextOptions,
    Dial,
    MethodOptions,
    OptimizerName,
    PretrainedOptions,
)
from deconfound.nets.context import Context

__all__ = [
    "ContextOptions", "Dial", "DrawnOver", "Imputer", "Loss", "Method", "MethodOptions",
    "OptimizerName", "Phase", "PretrainedOptions", "Stage", "Task", "Tensors", "weighted_sum",
]  # fmt: skip

Backward = Callable[[Tensor, list[nn.Parameter]], None]
"""Adds the gradients of a loss () to parameters."""
Optimizers = Iterable[torch.optim.Optimizer]
Tensors = dict[str, Tensor]
DrawnOver = Literal["label", "environment", "control"]
"""Groups with equal probability: labels, environments, or controls and non-controls."""


@dataclass(frozen=True)
class Task:
    """What the training data look like."""

    channels: int
    """Channels of an image, or features of a profile."""
    image_size: int | None
    """Height, which equals the width; None for profiles."""
    labels: int
    """Labels present in training."""
    environments: int
    """Environments present in training."""
    controls: tuple[int, ...] = ()
    """Codes of the labels that are controls; empty where weights are loaded, not trained."""
    unit_pixels: bool = False
    """Whether pixels come in [0, 1], and not standardised."""

    def require_environments(self, method: str, least: int = 2) -> None:
        """Raise UserError if training has fewer than `least` environments, which `method` needs."""
        if self.environments < least:
            raise UserError(
                f"{method}: training has {self.environments} environment; expected {least} or "
                "more, choose another --environment or hold out less"
            )

    def require_images(self, does: str) -> int:
        """The image size; raises UserError for profiles, with what the method `does` to images."""
        if self.image_size is None:
            raise UserError(
                f"{does}, and the screen holds profiles, which have none; use another method"
            )
        return self.image_size


class Loss(NamedTuple):
    """One term of an objective."""

    value: Tensor
    """Scalar."""
    weight: float = 1.0
    selects: bool = True
    """Whether the term is part of the validation loss, by which a checkpoint is selected."""


Objective = Callable[[Batch, Tensors], dict[str, Loss]]


def weighted_sum(losses: dict[str, Loss]) -> Tensor:
    """Σ weight · value, a float32 scalar."""
    return torch.stack([loss.weight * loss.value.float() for loss in losses.values()]).sum()


@dataclass(frozen=True)
class Phase:
    """One optimizer and the named losses it minimises."""

    name: str
    parameters: list[nn.Parameter]
    losses: Objective
    """From the batch and the method's `outputs`; called in the order of the phases, each after
    the step of the one before."""
    learning_rate: float
    weight_decay: float
    validates: bool = False
    """Whether the weighted sum of the phase's losses that select is its stage's validation loss."""
    rule: OptimizerName = "adamw"
    """Update rule."""
    momentum: float = 0.0
    """Momentum of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two averages of adam and adamw."""

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer over the phase's parameters."""
        rate, decay = self.learning_rate, self.weight_decay
        if self.rule == "sgd":
            return torch.optim.SGD(
                self.parameters, lr=rate, momentum=self.momentum, weight_decay=decay
            )
        adam = torch.optim.Adam if self.rule == "adam" else torch.optim.AdamW
        return adam(self.parameters, lr=rate, betas=self.betas, weight_decay=decay)


@dataclass(frozen=True)
class Stage:
    """Phases that step together for a number of steps, with new optimizers.

    The next stage starts from the weights that validation selects, unless that one `continues`.
    """

    name: str
    steps: int
    phases: tuple[Phase, ...]
    batch_size: int | None = None
    """Images in a batch; the training options' if None."""
    validation_batches: int = 500
    """Most batches that a validation uses."""
    classifies: bool = True
    """Whether the stage changes what `predict` says, so that accuracy can select a checkpoint."""
    continues: bool = False
    """Whether it starts from the last weights of the stage before, not from the selected ones."""
    draws: DrawnOver | None = None
    """Groups that batches are drawn over, with replacement; by the options' sampler if None."""
    partner: DrawnOver | None = None
    """Groups that partners are drawn over, independently of the rows they follow in the batch
    (`Batch.partners`); no partners if None."""
    partner_draws: int = 1
    """Partners drawn for each row. All partners of a row share one group. They are stored as all
    first partners, then all second partners."""
    selects: bool = True
    """Whether validation selects the stage's weights; its last weights are used otherwise."""
    episodes: bool = False
    """Whether a batch is made of episodes, each of one environment, as the options' `context`
    says; whatever the options' sampler."""


class Method(nn.Module):
    """A trained method; a file in the folder `methods` with one subclass is one, by its name.

    A subclass sets `Options`, `SUMMARY` and `PAPER`, and defines `stages` and `embed`. All else is
    optional.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    SUMMARY: ClassVar[str]
    """One line for `deconfound list methods`."""
    PAPER: ClassVar[str]
    """Authors, title, equation."""
    SAMPLER: ClassVar[SamplerName] = "plain"
    """How batches are drawn unless the user says otherwise."""
    POSITIVES: ClassVar[bool] = False
    """Whether a loss pulls images of one label in a batch together: then batches are balanced over
    labels where few would have another of their label, and `fit` says how many have."""
    ENVIRONMENTS: ClassVar[int] = 1
    """Least environments in training: 2 for a method that compares them."""
    CONTROLS: ClassVar[bool] = False
    """Whether training needs both labels that are controls and labels that are not."""

    def __init__(self, options: MethodOptions, task: Task) -> None:
        super().__init__()
        task.require_environments(type(self).__module__.rpartition(".")[2], self.ENVIRONMENTS)
        if (dial := options.dial) is not None:
            raise UserError(f"{dial.option} auto: `fit` chooses it, and a network needs a number")
        self.options = options
        self.task = task
        self.context: Context | None = None
        """Of the network whose batch norms adapt to the environment, where the options say so."""

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The stages in order; the steps of those that classify add up to `steps`."""
        raise NotImplementedError

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation" and, if there are blocks, "content", "style".

        (B, C, H, W) or (B, features) to (B, D) float32 each.
        """
        raise NotImplementedError

    def embed_in(self, image: Tensor, environment: Tensor) -> Tensors:
        """As `embed`, of images in environments (B,) int64 that batch norms may adapt to."""
        if self.context is None:
            return self.embed(image)
        with self.context.of(environment):
            return self.embed(image)

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """What the losses of `stage` share; holds at least what `predict` needs."""
        del stage
        return self.embed(batch.image)

    def predict(self, embedded: Tensors) -> Tensor | None:
        """Logits (B, labels) from what `embed` or `outputs` returned; None if it has no head."""
        del embedded
        return None

    def swap(self, content: Tensor, style: Tensor) -> Tensor | None:
        """Images (B, C, H, W) composed of content and style blocks; None if it has no decoder."""
        del content, style
        return None

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """Scalars by name that are recorded on validation batches and are no part of a loss."""
        del batch, outputs
        return {}

    def alarm(self, scores: dict[str, float]) -> str | None:
        """A one-line warning if the validation scores of the selected weights mean a failure."""
        del scores
        return None

    def begin(self, stage: Stage) -> None:
        """Change weights before the first step of a stage; not called where a run is resumed."""

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """One optimisation step: every phase in order. Returns the unweighted losses, detached."""
        outputs = self.outputs(batch, stage.name)
        logged: Tensors = {}
        for phase, optimizer in zip(stage.phases, optimizers, strict=True):
            losses = phase.losses(batch, outputs)
            optimizer.zero_grad(set_to_none=True)
            backward(weighted_sum(losses), phase.parameters)
            optimizer.step()
            logged |= {name: loss.value.detach() for name, loss in losses.items()}
        return logged

    def phase(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        losses: Objective,
        *,
        learning_rate: float | None = None,
        validates: bool = False,
    ) -> Phase:
        """A phase with the optimizer of the method's options, or at another `learning_rate`."""
        options = self.options
        return Phase(
            name,
            list(parameters),
            losses,
            options.learning_rate if learning_rate is None else learning_rate,
            options.weight_decay,
            validates,
            options.optimizer,
            options.momentum,
        )


class Imputer(Method):
    """A method that imputes images as if they had been taken in another environment.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1: the intervention do(C = c). In
    evaluation mode `impute` returns the same image for the same arguments.
    """

    RELATIVE: ClassVar[bool] = False
    """Whether styles can be relative to the mean style of an image's environment."""

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        """The style of images: (B, C, H, W) taken in `environment` (B,) int64 to (B, S) float32.

        −1 is an unknown environment, for which a method may raise UserError.
        """
        raise NotImplementedError

    def impute(self, image: Tensor, style: Tensor, source: Tensor | None = None) -> Tensor:
        """The images (B, C, H, W) in the styles (B, S): (B, C, H, W) float32, as `Batch.image`.

        With `source` (B, S), the mean style of each image's environment, styles are relative: an
        image keeps how it differs from its environment. A row of NaN is an unknown environment,
        whose image takes `style` unchanged. A method that is not `RELATIVE` is given no `source`.
        """
        raise NotImplementedError
