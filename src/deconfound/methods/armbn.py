"""ARM-BN: ERM whose batch norms take the statistics of one environment at a time."""

from dataclasses import replace

from pydantic import Field

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.methods.contract import ContextOptions, Stage, Task, Tensors
from deconfound.methods.erm import Erm, ErmOptions
from deconfound.nets.context import adapt_batch_norm


class ArmBnOptions(ErmOptions):
    """Options of ARM-BN."""

    episodes: int = Field(4, ge=1)
    """Environments in a training batch, each with an equal share of it and statistics of its own;
    all environments where they are fewer."""
    context_images: int = Field(512, ge=16)
    """Images of an environment, drawn at random, that its statistics are taken over at most in
    validation and embedding."""

    @property
    def context(self) -> ContextOptions:
        """Episodes in training, and what is measured of an environment."""
        return ContextOptions(self.episodes, self.context_images)


class ArmBn(Erm):
    """Cross-entropy on the label, batch-normalised by the statistics of each image's environment.

    Zhang et al., Adaptive Risk Minimization, 2021, section 4.3 (ARM-BN). "representation" is the
    encoder's output r. Deviations: validation and embedding take the statistics of an environment
    as a whole, not of the batch at hand; an environment with fewer than 16 images takes those of
    all training rows.
    """

    Options = ArmBnOptions
    options: ArmBnOptions
    SUMMARY = "cross-entropy on the label, with the batch statistics of each environment"
    PAPER = "Zhang et al., Adaptive Risk Minimization, 2021"

    def __init__(self, options: ArmBnOptions, task: Task) -> None:
        if options.norm != "batch":
            raise UserError(
                f"--norm {options.norm} has no statistics of a batch, which adapt to the "
                "environment; use --norm batch, or another method"
            )
        if options.pretrained(task.unit_pixels) is not None:
            raise UserError(
                "armbn trains the statistics of every batch norm; leave --weights and the other "
                "options of pretraining out, or take another method"
            )
        super().__init__(options, task)
        where = f"--encoder {options.encoder}"
        self.context = adapt_batch_norm(self.encoder, task.environments, where)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage with one phase, whose batches are made of episodes."""
        (stage,) = super().stages(steps)
        return (replace(stage, episodes=True),)

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """The representation, by the statistics of each environment of the batch."""
        del stage
        return self.embed_in(batch.image, batch.environment)
