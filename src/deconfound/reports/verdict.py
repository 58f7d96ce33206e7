"""The verdict of a comparison, as verdict.json of a study holds it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from deconfound.display.numbers import without_nan
from deconfound.errors import UserError
from deconfound.runs.run import read_json

FILE = "verdict.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Summed(_Part):
    """A score over groups and seeds."""

    mean: float | None
    sd: float | None
    n: int | None
    """Number of values."""
    chance: float | None


class Interval(_Part):
    """A difference from the baseline in pairs of the same group and seed, with its 95 % interval
    and the p value of its paired test."""

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    groups: int | None = None
    seeds: int | None = None

    @property
    def noise(self) -> bool | None:
        """Whether the interval holds 0; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= 0 <= self.high


class MethodVerdict(_Part):
    """What one method reads."""

    held_out: Summed
    """Macro-F1 on the groups held out."""
    in_distribution: Summed
    """Macro-F1 in distribution."""
    environment_readable: Summed
    """Balanced accuracy of a probe of the environment; the less the better."""
    biology_kept: Summed | None
    chosen_by_score: float | None
    """The score that the choice was made by; it saw no held-out group."""
    difference: Interval | None
    """Held out, from the baseline."""
    saw_held_out: bool
    """Whether it made use of images of held-out rows, without their labels."""


class Verdict(_Part):
    """Whether the recommended method does better than the baseline where it was never trained."""

    format: Literal[1]
    command: str = ""
    """What makes the study again, but for where; empty in those of earlier releases."""
    source: str
    label: str
    environment: str
    hold_out: tuple[str, ...]
    verdict: Literal["helps", "no difference", "harms", "cannot be told"]
    sentence: str
    why: str
    chosen_by: str
    recommended: str
    baseline: str
    difference: Interval | None
    """What was chosen − baseline, held out, macro-F1; None where nothing can be compared."""
    methods: dict[str, MethodVerdict]


@dataclass(frozen=True)
class FoundVerdict:
    """A verdict and the file that holds it."""

    path: Path
    verdict: Verdict


def read_verdict(path: Path) -> FoundVerdict:
    """Read a verdict.json; raises UserError if it is damaged, incomplete or of a newer format."""
    values = without_nan(read_json(path))
    if values.get("format") != 1:
        raise UserError(
            f"{path}: format {values.get('format')!r}; this release reads format 1, take a newer "
            "one, or `deconfound compare` again"
        )
    try:
        return FoundVerdict(path, Verdict.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; `deconfound compare` again") from error
