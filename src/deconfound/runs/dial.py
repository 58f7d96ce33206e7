"""What was tried to choose an option that is `auto`, as a run directory keeps it."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from deconfound.config import Options
from deconfound.errors import UserError
from deconfound.files import atomic
from deconfound.runs.run import FORMAT_VERSION, read_json

FILE = "dial.json"
Rule = Literal["left out", "in distribution"]


class Trial(Options):
    """One run with one value."""

    value: float
    without: str | None
    """What was left out of training and scored; None by the rule in distribution."""
    accuracy: float
    macro_f1: float
    """Of the rows left out, or of val rows, over the labels that the trial's training has."""
    environment: float | None
    """Share of the spread of content within a label that lies between environments; None unless
    scored in distribution, or where it cannot be told."""
    chance: float | None
    """The most of that share with environments shuffled within labels."""
    rows: int
    """Rows scored."""
    seconds: float
    """Of training."""


class Point(Options):
    """What the trials of one value say."""

    value: float
    score: float
    """Macro-F1, mean over what was left out; in distribution the accuracy on val rows."""
    sd: float
    """Over what was left out; in distribution the binomial standard error."""
    environment: float | None
    """As in `Trial`."""
    seconds: float
    """Of all its trials."""


class DialRecord(Options):
    """The choice, its curve and its cost."""

    format_version: int = FORMAT_VERSION
    option: str
    chosen: float
    rule: Rule
    screen_identity: str
    parts_sha256: str
    """Of the fold, as in fold.json."""
    curve: tuple[Point, ...] = Field(min_length=1)
    trials: tuple[Trial, ...]

    @property
    def seconds(self) -> float:
        """Training of all trials."""
        return sum(point.seconds for point in self.curve)

    @property
    def score_name(self) -> str:
        """What the scores of the curve are."""
        return "macro-F1 left out" if self.rule == "left out" else "accuracy in distribution"

    def text(self) -> str:
        """The choice and its reason, in one sentence."""
        tried = ", ".join(f"{point.value:g}" for point in self.curve)
        chosen = next(point for point in self.curve if point.value == self.chosen)
        said = f"{self.option} {self.chosen:g} of {tried}"
        if chosen is self.curve[0]:
            said += " (none of the others helps by more than chance)"
        groups = len({trial.without for trial in self.trials})
        if self.rule == "left out":
            how = f"macro-F1 {_spread(chosen)} on {groups} training groups left out in turn"
        else:
            how = f"accuracy {_spread(chosen)} in distribution, {_read(chosen)}"
        first, best = self.curve[0], max(self.curve, key=lambda point: point.score)
        others = {point.value: point for point in (first, best) if point is not chosen}
        between = self.rule == "in distribution"
        beside = [
            f"{_spread(point)}{f' and {_read(point)}' * between} at {value:g}"
            for value, point in others.items()
        ]
        against = f" ({', '.join(beside)})" if beside else ""
        return f"{said}: {how}{against}; {len(self.trials)} trials, {self.seconds:.0f} s"


def write_dial(run: Path, record: DialRecord) -> None:
    """Write dial.json of a run directory."""
    atomic.write_text(run / FILE, json.dumps(record.model_dump(mode="json"), indent=2))


def read_dial(run: Path) -> DialRecord | None:
    """What dial.json says; None if there is none. Raises UserError if it is damaged."""
    if not (run / FILE).is_file():
        return None
    try:
        return DialRecord.model_validate(read_json(run / FILE))
    except ValidationError as error:
        raise UserError(
            f"{run / FILE}: damaged; restore a copy, or remove {run} and fit again"
        ) from error


def _spread(point: Point) -> str:
    return f"{point.score:.3f} ± {point.sd:.3f}"


def _read(point: Point) -> str:
    told = "unknown" if point.environment is None else f"{point.environment:.3f}"
    return f"{told} between environments"
