"""What a method is told and what it declares: the task, and its stages, phases and losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract.options import OptimizerName

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


def weighted_sum(losses: dict[str, Loss]) -> Tensor:
    """Σ weight · value, a float32 scalar."""
    return torch.stack([loss.weight * loss.value.float() for loss in losses.values()]).sum()


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
    """Groups that batches are drawn uniformly over, with replacement: labels, environments, or
    controls and non-controls with equal probability. The training options' sampler if None."""
    partner: DrawnOver | None = None
    """Groups that partners are drawn over, independently of the rows they follow in the batch
    (`Batch.partners`); no partners if None."""
    partner_draws: int = 1
    """Partners drawn for each row. All partners of a row share one group. They are stored as all
    first partners, then all second partners."""
    selects: bool = True
    """Whether validation selects the stage's weights; its last weights are used otherwise."""
