"""The state from which another process can take a run up, in `resume.pt`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn

from deconfound.files import atomic
from deconfound.methods.contract import Stage
from deconfound.runs.checkpoint import damaged_resume, read_resume
from deconfound.runs.record import History
from deconfound.training.step import Network, Stepper
from deconfound.training.validation import Selection


@dataclass
class Position:
    """How far a run has come."""

    stage_number: int = 0
    """The stage at hand."""
    done: int = 0
    """Its steps that are taken."""
    validation_due: bool = False
    """Whether step `done` is still to be validated."""
    seconds: float = 0.0
    """Spent on steps, on validation and on waiting for batches."""


@dataclass(frozen=True)
class ResumeFile:
    """Saves and restores everything that a run changes as it goes on."""

    out: Path
    network: Network
    stepper: Stepper
    selection: Selection
    history: History

    @property
    def path(self) -> Path:
        """The file."""
        return self.out / "resume.pt"

    def save(self, position: Position) -> None:
        """Write the history and the state atomically."""
        self.history.write()
        state = asdict(position) | {
            "best": self.selection.best,
            "skipped": self.stepper.rule.state(),
            "weights": self.network.weights(),
            "optimizers": [optimizer.state_dict() for optimizer in self.stepper.optimizers],
        }
        with atomic.atomic_file(self.path) as temporary:
            torch.save(state, temporary)

    def restore(self, stages: Sequence[Stage]) -> Position:
        """Take the state over; raises UserError if the file is damaged or does not fit."""
        state, stepper = read_resume(self.out), self.stepper
        try:
            network = {"method": self.network.method, "intensity": self.network.intensity}
            nn.ModuleDict(network).load_state_dict(state["weights"])
            position = Position(**{field.name: state[field.name] for field in fields(Position)})
            self.selection.best = state["best"]
            stepper.rule.resume(state.get("skipped", []))
            stepper.renew_optimizers(stages[position.stage_number])
            for optimizer, saved in zip(stepper.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except Exception as error:  # PyTorch has no one exception for what does not fit
            raise damaged_resume(self.out, error) from error
        begun = stages[: position.stage_number + 1]
        self.history.resume([stage.name for stage in begun], position.done)
        return position
