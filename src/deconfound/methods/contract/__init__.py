"""What a trained method is, by name: everything that a file of a method imports from here."""

from deconfound.methods.contract.imputer import Imputer
from deconfound.methods.contract.method import Method
from deconfound.methods.contract.options import MethodOptions, OptimizerName
from deconfound.methods.contract.records import (
    DrawnOver,
    Loss,
    Phase,
    Stage,
    Task,
    Tensors,
    weighted_sum,
)

__all__ = [
    "DrawnOver",
    "Imputer",
    "Loss",
    "Method",
    "MethodOptions",
    "OptimizerName",
    "Phase",
    "Stage",
    "Task",
    "Tensors",
    "weighted_sum",
]
