"""GroupDRO: ERM with weights on the environments that grow where the loss is high."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import environment_risks
from deconfound.methods.contract import Loss, Task, Tensors
from deconfound.methods.erm import Erm, ErmOptions


class GroupDroOptions(ErmOptions):
    """Options of GroupDRO."""

    eta: float = Field(0.01, ge=0)
    """Step size of the weights of environments."""
    form: Literal["domainbed", "wilds"] = "domainbed"
    """How an environment absent from a batch counts: not at all, so that the other weights sum to 1
    (domainbed), or with a loss of 0 and its weight (wilds)."""


class GroupDro(Erm):
    """Group distributionally robust optimisation: Sagawa et al. 2020, algorithm 1.

    Σ_e q_e · cross-entropy in e. In training q_e is first multiplied by exp(eta · cross-entropy)
    and renormalised. q starts uniform; DomainBed's start at 1 gives the same after one step.
    Deviation from DomainBed: one forward pass, so batch normalisation sees all environments
    together.
    """

    Options = GroupDroOptions
    options: GroupDroOptions
    SUMMARY = "cross-entropy, weighted to the environments where it is high"
    PAPER = "Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, 2020, alg. 1"
    SAMPLER = "environment_balanced"
    ENVIRONMENTS = 2
    q: Tensor
    """(environments,), at least 0, sums to 1; saved with the weights."""

    def __init__(self, options: GroupDroOptions, task: Task) -> None:
        super().__init__(options, task)
        self.register_buffer("q", torch.full((task.environments,), 1 / task.environments))

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """The largest weight: 1 where a single environment counts."""
        del batch, outputs
        return {"largest_environment_weight": self.q.max()}

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        risks, rows = environment_risks(
            self.predict(outputs), batch.label, batch.environment, self.task.environments
        )
        if self.training:
            raised = self.q * (self.options.eta * risks.detach()).exp()
            self.q.copy_(raised / raised.sum())
        weight = self.q.clone()
        if self.options.form == "domainbed":
            weight = weight * (rows > 0)
            weight = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
        return {"weighted_cross_entropy": Loss((weight * risks).sum())}
