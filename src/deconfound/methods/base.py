"""What a method is: a network that declares its stages, phases and losses, and embeds images."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.config import Options, SamplerName
from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.gather import global_mean

Tensors = dict[str, Tensor]
Kind = TypeVar("Kind")
OptimizerName = Literal["adamw", "adam", "sgd"]
Group = Literal["label", "environment", "control"]


class MethodOptions(Options):
    """Options every trained method has."""

    optimizer: OptimizerName = "adamw"
    """adamw, adam or sgd."""
    learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of the optimizer."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the optimizer."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of sgd."""
    skip_above: float | None = Field(None, gt=0)
    """A phase whose gradient has a larger norm, or one that is not finite, does not step, and is
    counted; if not given, a loss that is not finite ends the run."""
    clip_at: float | None = Field(None, gt=0)
    """Gradients of a phase with a larger norm are scaled down to it."""
    most_skipped: int = Field(100, ge=1)
    """So many skipped steps in a row end the run."""

    @property
    def sees_held_out(self) -> bool:
        """Whether batches of training are joined by as many images of test rows, unlabelled."""
        return False


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
    """Codes of the labels that are controls, in training; not told where weights are loaded."""

    def require_environments(self, method: str, least: int = 2) -> None:
        """Raise UserError if training has fewer than `least` environments, which `method` needs."""
        if self.environments < least:
            raise UserError(
                f"{method}: training has {self.environments} environment; expected {least} or "
                "more, choose another --environment or hold out less"
            )


class Loss(NamedTuple):
    """One term of an objective."""

    value: Tensor
    """Scalar."""
    weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """One optimizer and the named losses it minimises."""

    name: str
    parameters: list[nn.Parameter]
    losses: Callable[[Batch, Tensors], dict[str, Loss]]
    """From the batch and the method's `outputs`; called in the order of the phases, each after
    the step of the one before."""
    learning_rate: float
    weight_decay: float
    validates: bool = False
    """Whether the phase's weighted sum is the validation loss of its stage."""
    rule: OptimizerName = "adamw"
    """Update rule."""
    momentum: float = 0.0
    """Momentum of sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of adam's and adamw's two averages."""

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
    """Phases that step together for a number of steps, each stage with optimizers of its own.

    The selected weights start the next one, unless that `continues`.
    """

    name: str
    steps: int
    phases: tuple[Phase, ...]
    batch_size: int | None = None
    """Images in a batch; the training options' if None."""
    validation_batches: int = 500
    """At most so many batches are validated on."""
    classifies: bool = True
    """Whether the stage changes what `predict` says, so that accuracy can select a checkpoint."""
    continues: bool = False
    """Whether it starts from the last weights of the stage before, not from the selected ones."""
    draws: Group | None = None
    """Its batches are drawn uniformly over labels, over environments, or half of controls and half
    of what is none, with replacement; as the training options say if None."""
    partner: Group | None = None
    """As many rows, drawn in the same way and independently, follow those of each batch:
    `Batch.partners` of them."""
    partner_draws: int = 1
    """So many times as many: the partners of each row come from one label or environment, those of
    all rows after one another."""
    selects: bool = True
    """Whether validation selects its weights; the last are taken otherwise."""


class Method(nn.Module):
    """A trained method; a file in this folder with one subclass is a method by the file's name.

    A subclass sets `Options`, `SUMMARY` and `PAPER`, and defines `stages` and `embed`. It may
    define `outputs` (what the losses of a stage share), `predict`, `swap` and its own `step`.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    SUMMARY: ClassVar[str]
    """One line for `deconfound methods`."""
    PAPER: ClassVar[str]
    """Authors, title, equation."""
    SAMPLER: ClassVar[SamplerName] = "plain"
    """What batches are drawn by unless the user says otherwise."""
    ENVIRONMENTS: ClassVar[int] = 1
    """Environments it needs in training: 2 where it compares them."""
    CONTROLS: ClassVar[bool] = False
    """Whether it needs controls in training, and something else than controls."""

    def __init__(self, options: MethodOptions, task: Task) -> None:
        super().__init__()
        name = type(self).__module__.rpartition(".")[2]
        task.require_environments(name, self.ENVIRONMENTS)
        self.options = options
        self.task = task

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The stages in order; those that classify have `steps` steps together."""
        raise NotImplementedError

    def begin(self, stage: Stage) -> None:
        """Prepare for a stage that begins, and not for one that is resumed: weights are loaded."""
        del stage

    def phase(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        losses: Callable[[Batch, Tensors], dict[str, Loss]],
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

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation" and, if there are blocks, "content", "style".

        (B, C, H, W) or (B, features) to (B, D) float32 each.
        """
        raise NotImplementedError

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """What the losses of `stage` share; holds at least what `predict` needs."""
        del stage
        return self.embed(batch.image)

    def predict(self, embedded: Tensors) -> Tensor | None:
        """Logits (B, labels) from what `embed` or `outputs` returned; None if it has no head."""
        del embedded
        return None

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """Scalars worth watching on validation batches, by name; no loss is made of them."""
        del batch, outputs
        return {}

    def alarm(self, scores: dict[str, float]) -> str | None:
        """A line about the validation scores of the selected weights, if they mean a failure."""
        del scores
        return None

    def swap(self, content: Tensor, style: Tensor) -> Tensor | None:
        """Images (B, C, H, W) composed of content and style blocks; None if it has no decoder."""
        del content, style
        return None

    def step(
        self, batch: Batch, stage: Stage, optimizers: Iterable[torch.optim.Optimizer],
        backward: Callable[[Tensor, list[nn.Parameter]], None],
    ) -> dict[str, Tensor]:  # fmt: skip
        """One optimisation step: every phase in order. Returns the unweighted losses, detached."""
        outputs = self.outputs(batch, stage.name)
        logged: dict[str, Tensor] = {}
        for phase, optimizer in zip(stage.phases, optimizers, strict=True):
            losses = phase.losses(batch, outputs)
            optimizer.zero_grad(set_to_none=True)
            backward(weighted_sum(losses), phase.parameters)
            optimizer.step()
            logged |= {name: loss.value.detach() for name, loss in losses.items()}
        return logged


class Imputer(Method):
    """A method that imputes images as if they had been taken in another environment.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1: the intervention do(C = c). `impute`
    gives the same image for the same arguments in evaluation mode.
    """

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        """The style of images: (B, C, H, W) taken in `environment` (B,) int64 to (B, S) float32.

        −1 is an unknown environment, which a method may refuse by UserError.
        """
        raise NotImplementedError

    def relative_style(self, own: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """The styles (B, S) that images get whose environment's mean style becomes another.

        An image of style `own` keeps how that differs from `source`, the mean style of its
        environment, where the mean style is `target`; (B, S) each. Where `own` is `source` it is
        `target`. A method need not have it.
        """
        raise NotImplementedError

    def impute(self, image: Tensor, style: Tensor) -> Tensor:
        """The images (B, C, H, W) in the styles (B, S): (B, C, H, W) float32, as `Batch.image`."""
        raise NotImplementedError


def weighted_sum(losses: dict[str, Loss]) -> Tensor:
    """Σ weight · value, a scalar."""
    return torch.stack([loss.weight * loss.value.float() for loss in losses.values()]).sum()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the rows, of all processes, whose target is known; 0 where none is.

    logits (B, K) float; target (B,) int64, −1 = missing.
    """
    total = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    return global_mean(total, (target >= 0).sum())


def only_class(module: ModuleType, kind: type[Kind]) -> type[Kind]:
    """The class of this kind that a module defines; raises UserError if that is not just one."""
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, kind) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{module.__file__}: holds {len(found)} {kind.__name__} classes; expected one"
        )
    return found[0]
