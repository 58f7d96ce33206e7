"""What a search by trials may say, and the values that its trials are drawn from."""

import types
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from deconfound.config import Options
from deconfound.errors import UserError
from deconfound.runs.config import RunConfig

SamplerName = Literal["tpe", "random"]


class SearchOptions(Options):
    """A search whose settings Optuna proposes, trial after trial."""

    trials: int = Field(ge=1)
    """Settings to try on each screen and fold."""
    sampler: SamplerName = "tpe"
    """tpe proposes near what did well so far (the tree-structured Parzen estimator of Bergstra et
    al., 2011); random does not look at results."""
    startup: int = Field(10, ge=1)
    """Trials that are drawn at random before tpe looks at results."""
    batch: int = Field(4, ge=1)
    """Trials that are proposed together and run at a time; the next are proposed when all of them
    have ended, so that the number of workers changes nothing."""

    @property
    def batches(self) -> int:
        """How many times trials are proposed."""
        return -(-self.trials // self.batch)


class Range(Options):
    """Numbers that trials are drawn from; both ends belong to it."""

    low: float = Field(allow_inf_nan=False)
    """The least."""
    high: float = Field(allow_inf_nan=False)
    """The greatest."""
    log: bool = False
    """Whether their logarithms are drawn evenly."""
    step: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Distance of neighbours, counted from `low`; any number if not given, of a whole option 1."""

    @model_validator(mode="after")
    def _can_be_drawn_from(self) -> "Range":
        for wrong, said in (
            (self.low >= self.high, "low is not below high; give two different numbers"),
            (self.log and self.low <= 0, "log has no logarithm of low; give a low above 0"),
            (self.log and self.step is not None, "log and step do not go together; give one"),
        ):
            if wrong:
                raise PydanticCustomError("range", said)
        return self


class Numbers(NamedTuple):
    """The range of an option that takes numbers."""

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool
    """Whether the option takes whole numbers alone."""

    @property
    def ends(self) -> list[Any]:
        """The least and the greatest, as the option takes them."""
        return [int(end) if self.whole else end for end in (self.low, self.high)]


Space = dict[str, Numbers | list[Any]]
"""By name of the option: a range, or the values to choose from."""


def numbers_of(given: Range, annotation: Any, where: str) -> Numbers:
    """The range of an option of a type; raises UserError where it takes no such numbers."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    if float not in kinds and int not in kinds:
        raise UserError(f"{where}: the option is no number; list its values under grid")
    whole = float not in kinds
    for name in ("low", "high", "step") if whole else ():
        value = getattr(given, name)
        if value is not None and not float(value).is_integer():
            raise UserError(f"{where}.{name} is {value:g}; expected a whole number")
    return Numbers(given.low, given.high, given.log, given.step, whole)


def corners(space: Space) -> list[dict[str, Any]]:
    """Points of a space that hold each end of each range and each choice, once or more."""
    every = {
        name: values.ends if isinstance(values, Numbers) else values
        for name, values in space.items()
    }
    return [
        {name: values[min(number, len(values) - 1)] for name, values in every.items()}
        for number in range(max(map(len, every.values())))
    ]


def fixed_part(config: RunConfig, space: Space) -> dict[str, Any]:
    """A configuration without what is searched, as JSON takes it."""
    values = config.model_dump(mode="json", exclude={"seed"})
    for section, options in values.items():
        if isinstance(options, dict):
            values[section] = {name: one for name, one in options.items() if name not in space}
    return values
