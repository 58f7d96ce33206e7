"""CORAL: ERM with features whose means and covariances agree between environments."""

from pydantic import Field

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import coral_penalty, cross_entropy
from deconfound.methods.contract import Loss, Tensors
from deconfound.methods.erm import Erm, ErmOptions


class CoralOptions(ErmOptions):
    """Options of CORAL."""

    penalty_weight: float = Field(1.0, ge=0)
    """Weight of the penalty (DomainBed and WILDS: 1; WILDS on Camelyon17: 0.1)."""


class Coral(Erm):
    """Deep CORAL: Sun & Saenko 2016, in the form of DomainBed and WILDS.

    Cross-entropy + weight · `coral_penalty` of the encoder's output; both reach the encoder.
    "representation" is that output. The cross-entropy alone selects a checkpoint, as in WILDS,
    whose penalty is part of training only. Deviation from DomainBed: one forward pass, so batch
    normalisation sees all environments together.
    """

    Options = CoralOptions
    options: CoralOptions
    SUMMARY = "cross-entropy, and features whose means and covariances agree between environments"
    PAPER = "Sun & Saenko, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, 2016"
    SAMPLER = "environment_balanced"
    ENVIRONMENTS = 2

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        penalty = coral_penalty(outputs["representation"], batch.environment)
        return {
            "cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label)),
            "coral_penalty": Loss(penalty, self.options.penalty_weight, selects=False),
        }
