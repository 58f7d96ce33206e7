"""Fish: one step in each environment in turn, then a fraction of the total move."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.gather import gather_rows
from deconfound.methods.contract import Backward, Optimizers, Stage, Task, Tensors, weighted_sum
from deconfound.methods.erm import Erm, ErmOptions


class FishOptions(ErmOptions):
    """Options of Fish; `optimizer` takes the inner steps."""

    form: Literal["domainbed", "authors"] = "domainbed"
    """domainbed: every step goes through all environments in order; authors: through
    --meta-steps of them, drawn at random, and --meta-learning-rate is divided by that number."""
    meta_learning_rate: float = Field(0.5, gt=0)
    """Fraction of the inner steps' total move that is kept (authors: 0.01)."""
    meta_steps: int = Field(3, ge=2)
    """Environments in a step of the authors' form."""
    pretrain_steps: int = Field(0, ge=0)
    """Steps of ERM at the beginning; Fish starts from their selected checkpoint (authors: 10000 on
    Camelyon17)."""


class Fish(Erm):
    """Fish: Shi et al. 2022, Gradient Matching for Domain Generalization, algorithm 1.

    θ' starts at θ and takes one step in each environment; then θ ← θ + ε · (θ' − θ), for buffers
    too. Deviations from the authors' code: environments are drawn uniformly, and the inner
    optimizer keeps its state for the whole training.
    """

    Options = FishOptions
    options: FishOptions
    SUMMARY = "steps through the environments in turn, so that their gradients agree"
    PAPER = "Shi et al., Gradient Matching for Domain Generalization, 2022, alg. 1"
    SAMPLER = "environment_balanced"
    ENVIRONMENTS = 2

    def __init__(self, options: FishOptions, task: Task) -> None:
        super().__init__(options, task)
        if options.form == "authors" and options.meta_steps > task.environments:
            raise UserError(
                f"--meta-steps {options.meta_steps}: training has {task.environments} "
                "environments; lower it"
            )

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """ERM, if it is given steps; then Fish, from the weights that ERM selects.

        Raises UserError if pretraining leaves no steps.
        """
        pretraining = self.options.pretrain_steps
        if pretraining >= steps:
            raise UserError(
                f"--pretrain-steps {pretraining}: leaves none of {steps} steps for Fish; lower it, "
                "or raise --steps"
            )
        phase = self.phase("classify", self.parameters(), self._losses, validates=True)
        fish = Stage("fish", steps - pretraining, (phase,))
        return (Stage("pretraining", pretraining, (phase,)), fish) if pretraining else (fish,)

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """A step of ERM in pretraining; afterwards one inner step for each environment.

        Raises UserError if no environment of the batch has the two labelled rows that batch
        normalisation needs.
        """
        if stage.name == "pretraining":
            return super().step(batch, stage, optimizers, backward)
        (optimizer,), (phase,) = optimizers, stage.phases
        before = {name: value.clone() for name, value in self.state_dict().items()}
        total, environments = torch.zeros((), device=batch.image.device), self._drawn(batch)
        for environment in environments:
            own = _rows(batch, (batch.environment == environment) & (batch.label >= 0))
            torch.clear_autocast_cache()  # of weights cast before they moved
            loss = weighted_sum(phase.losses(own, self.outputs(own, stage.name)))
            optimizer.zero_grad(set_to_none=True)
            backward(loss, phase.parameters)
            optimizer.step()
            total += loss.detach()
        options = self.options
        divisor = options.meta_steps if options.form == "authors" else 1
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.is_floating_point():
                    start = before[name]
                    value.copy_(start.lerp(value, options.meta_learning_rate / divisor))
        return {"cross_entropy": total / max(1, len(environments))}

    def _drawn(self, batch: Batch) -> list[int]:
        """The environments of this step, in order; the same on every rank."""
        known = gather_rows(batch.environment[(batch.label >= 0) & (batch.environment >= 0)])
        usable = (torch.bincount(known) > 1).nonzero()[:, 0]
        if len(known) and not len(usable):
            raise UserError(
                "no environment has 2 labelled images in the batch, as Fish needs; raise "
                "--batch-size, or use --sampler environment_balanced"
            )
        if self.options.form == "authors":
            drawn = gather_rows(torch.rand(1, len(usable), device=usable.device))[0]
            usable = usable[drawn.argsort()[: self.options.meta_steps]]
        return [int(environment) for environment in usable]


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    return Batch(
        batch.image[chosen], batch.label[chosen], batch.environment[chosen], batch.row[chosen]
    )
