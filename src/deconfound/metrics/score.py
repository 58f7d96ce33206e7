"""The result of every metric, and the declaration of its direction and range."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal, NamedTuple


class Score(NamedTuple):
    """One raw value, never rescaled; NaN where it is undefined, with the reason in `note`.

    `n` is the number of rows that entered it. A defined score may carry a caveat in `note`.
    """

    value: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """The declaration beside a metric function: its direction and its range.

    `better` is "higher", "lower", or "context" for a value that only helps to read another score
    (chance level, coverage). `range` holds the smallest and the largest possible value.
    """

    name: str
    better: Literal["higher", "lower", "context"]
    paper: str
    summary: str
    range: tuple[float, float] = (0.0, 1.0)


def all_metrics() -> dict[str, Metric]:
    """Every `Metric` declared in a module of this package, by name, in alphabetical order.

    Raises ValueError if two metrics share a name.
    """
    package = importlib.import_module("deconfound.metrics")
    found: dict[str, Metric] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for declared in (value for value in vars(module).values() if isinstance(value, Metric)):
            if found.setdefault(declared.name, declared) != declared:
                raise ValueError(f"two metrics are called {declared.name!r}")
    return dict(sorted(found.items()))
