"""The options that every trained method has."""

from typing import Literal

from pydantic import Field

from deconfound.config import Options

OptimizerName = Literal["adamw", "adam", "sgd"]


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
    """Skipped steps in a row that end the run."""

    @property
    def sees_held_out(self) -> bool:
        """Whether each training batch is joined by an equal number of unlabelled test images."""
        return False
