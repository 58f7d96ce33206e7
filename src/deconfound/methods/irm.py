"""IRM: ERM with a head that is optimal in every environment at once."""

from dataclasses import replace
from functools import partial

from pydantic import Field

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.risk import environment_risks, irm_penalty
from deconfound.methods.contract import Loss, Stage, Tensors
from deconfound.methods.erm import Erm, ErmOptions

ANNEAL_STEPS = 500
"""Of DomainBed and WILDS."""


class IrmOptions(ErmOptions):
    """Options of IRM."""

    penalty_weight: float = Field(100.0, ge=0)
    """Weight of the penalty after annealing (DomainBed and WILDS: 100; WILDS on Camelyon17: 1)."""
    anneal_steps: int | None = Field(None, ge=0)
    """Steps at the beginning with a weight of 1; if not given 500, as in DomainBed and WILDS, or a
    third of --steps where that is fewer."""


class Irm(Erm):
    """IRMv1: Arjovsky et al. 2019, equation IRMv1, in the form of DomainBed and WILDS.

    Mean over environments of the cross-entropy + weight · `irm_penalty`. The weight is 1 during
    annealing; when it changes, the optimizer is renewed. The cross-entropy alone selects a
    checkpoint, as in WILDS, whose penalty is part of training only.
    """

    Options = IrmOptions
    options: IrmOptions
    SUMMARY = "cross-entropy, and a head that is optimal in every environment at once"
    PAPER = "Arjovsky et al., Invariant Risk Minimization, 2019, IRMv1"
    SAMPLER = "environment_balanced"
    ENVIRONMENTS = 2

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """Annealing at a weight of 1, if it has steps; then the rest, from the last weights.

        Raises UserError if annealing leaves no steps.
        """
        asked = self.options.anneal_steps
        if asked is not None and asked >= steps:
            raise UserError(
                f"--anneal-steps {asked}: leaves none of {steps} steps for the penalty; lower it, "
                "or raise --steps"
            )
        annealing = min(ANNEAL_STEPS, steps // 3) if asked is None else asked
        penalised = self._stage("penalised", steps - annealing, self.options.penalty_weight)
        if not annealing:
            return (penalised,)
        return (self._stage("annealing", annealing, 1.0), replace(penalised, continues=True))

    def _stage(self, name: str, steps: int, weight: float) -> Stage:
        losses = partial(self._weighted, weight)
        phase = self.phase("classify", self.parameters(), losses, validates=True)
        return Stage(name, steps, (phase,))

    def _weighted(self, weight: float, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        logits, environments = self.predict(outputs), self.task.environments
        penalty = irm_penalty(logits, batch.label, batch.environment)
        risks, rows = environment_risks(logits, batch.label, batch.environment, environments)
        return {
            "cross_entropy": Loss(risks.sum() / (rows > 0).sum().clamp(min=1)),
            "irm_penalty": Loss(penalty, weight, selects=False),
        }
